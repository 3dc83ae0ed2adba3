"""Networks compiled by OpenVINO or ONNX Runtime, which may be faster than torch.

A compiled network is a graph for images of one size, in batches of any size. It is
recorded from one pass in torch, so it must not depend on the values in an image. Before
it is used, its maps of probe images are compared with those of torch.
"""

import contextlib
import importlib
import importlib.util
import io
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from skpatchcore._utils import onnx_log_disabled

# Names of packages, the fastest first.
ENGINES = ("openvino", "onnxruntime")
# Largest difference of a map from that of torch, relative to the largest value. Without
# rounding to 16 bits, it is about 1e-6.
_BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.01}
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}

#: Images (n, c, h, w), normalised -> a map (n, c_i, h_i, w_i) for each layer.
Network: TypeAlias = Callable[[torch.Tensor], list[torch.Tensor]]


class EngineError(ValueError):
    """An engine cannot run a network as torch does."""


def installed_engines(dtype: torch.dtype = torch.float32) -> list[str]:
    """Return the installed engines other than torch that compute in `dtype`.

    The fastest comes first.
    """
    names = ENGINES if dtype == torch.float32 else ENGINES[:1]
    return [name for name in names if importlib.util.find_spec(name) is not None]


def describe_engine(engine: str) -> tuple[str, ...]:
    """Return the names and versions of the libraries that `engine` stands for."""
    names = installed_engines() if engine == "auto" else [engine]
    return tuple(
        f"{name} {importlib.import_module(name).__version__}"
        for name in names
        if name in ENGINES
    )


def check_engine(engine: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise an error if `engine` cannot be used here.

    Raises
    ------
    ImportError
        If it is not installed.
    ValueError
        If it does not run on `device`, or not in `dtype`.
    """
    if engine in ("auto", "torch"):
        return
    if engine not in installed_engines():
        extra = "onnx" if engine == "onnxruntime" else engine
        raise ImportError(
            f"engine={engine!r} needs a package that is not installed. Install it "
            f"with: pip install 'skpatchcore[{extra}]'."
        )
    if device.type != "cpu":
        raise ValueError(
            f"engine={engine!r} runs on CPUs only, and device is {str(device)!r}. Set "
            "device='cpu', or engine='torch'."
        )
    if engine == "onnxruntime" and dtype != torch.float32:
        raise ValueError(
            f"engine={engine!r} computes in float32 only, and precision is "
            f"{str(dtype).removeprefix('torch.')!r}. Set precision='float32', or "
            "engine='openvino'."
        )


def compile_network(
    engine: str, network: Network, probes: torch.Tensor, dtype: torch.dtype
) -> Network:
    """Return `network` as compiled by `engine`, for images of the size of `probes`.

    Parameters
    ----------
    engine : {"openvino", "onnxruntime"}
    network : callable
        Runs in torch, in float32.
    probes : Tensor of shape (2, c, h, w), float32
        Images to record and compare with.
    dtype : torch.dtype
        Of the products in the compiled network.

    Raises
    ------
    EngineError
        If `engine` cannot convert the network, or returns other maps.
    """
    # Each image alone as well, which is another size of batch than the recorded one.
    parts = [probes[:1], probes[1:], probes]
    expected = [network(part) for part in parts]
    try:
        with warnings.catch_warnings():
            # Tracing warns of every decision that depends on a size. Decisions that
            # depend on an image are found by the comparison.
            warnings.simplefilter("ignore")
            build = _open_vino if engine == "openvino" else _onnx_runtime
            compiled = build(_Recorded(network), probes, dtype)
        found = [compiled(part) for part in parts]
    except Exception as error:
        raise EngineError(f"{engine} cannot run it: {_first_line(error)}") from error
    for maps, correct in zip(found, expected, strict=True):
        _check_close(engine, maps, correct, _BOUNDS[dtype])
    return compiled


def draw_probes(n_channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Return a dark and a bright image of noise in [0, 1], (2, c, h, w)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, n_channels, *size, generator=generator) / 2
    noise[1] += 0.5
    return noise


class _Recorded(nn.Module):
    """A function as a module, which is what engines convert."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._network(images))


def _open_vino(module: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> Network:
    import openvino

    traced = torch.jit.trace(module, images, check_trace=False)
    model = openvino.convert_model(traced, example_input=images)
    model.reshape({0: openvino.PartialShape([-1, *images.shape[1:]])})
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    # A request holds the outputs of one pass, so each thread has its own.
    own = threading.local()

    def run(batch: torch.Tensor) -> list[torch.Tensor]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        outputs = own.request.infer([_as_array(batch)], share_inputs=True)
        return [torch.from_numpy(np.array(part)) for part in outputs.values()]

    return run


def _onnx_runtime(
    module: nn.Module, images: torch.Tensor, dtype: torch.dtype
) -> Network:
    import onnxruntime

    with TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        # If the export fails, torch prints the whole graph. What other threads print
        # meanwhile is lost, too, so nothing else is in this block.
        with contextlib.redirect_stdout(io.StringIO()), onnx_log_disabled():
            torch.onnx.export(
                module,
                (images,),
                path,
                dynamo=False,
                input_names=["images"],
                dynamic_axes={"images": {0: "n"}},
            )
        model = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait actively hold up those of torch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )

    def run(batch: torch.Tensor) -> list[torch.Tensor]:
        outputs = session.run(None, {"images": _as_array(batch)})
        return [torch.from_numpy(part) for part in outputs]

    return run


def _as_array(batch: torch.Tensor) -> np.ndarray:
    return batch.contiguous(memory_format=torch.contiguous_format).numpy()


def _check_close(
    engine: str,
    maps: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    bound: float,
) -> None:
    for found, correct in zip(maps, expected, strict=True):
        largest = float(correct.abs().max())
        difference = float((found - correct).abs().max())
        # Negated, so that NaN is an error.
        if not difference <= bound * largest:
            raise EngineError(
                f"{engine} returns other maps than torch: they differ by "
                f"{difference / largest if largest else np.inf:.1g} of the largest "
                f"value; the limit is {bound:g}"
            )


def _first_line(error: Any) -> str:
    lines = str(error).strip().splitlines()
    # The exporter to ONNX adds pleas for support, and pieces of the graph.
    text = re.split(
        r"\.?\. Please feel free|\s+\[Caused by", lines[0] if lines else ""
    )[0]
    return f"{type(error).__name__}: {text}"
