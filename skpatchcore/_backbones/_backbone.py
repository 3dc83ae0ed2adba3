"""Build networks, by name or from modules, and read the maps of their layers."""

import copy
import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn

from skpatchcore._backbones._engines import (
    EngineError,
    Network,
    check_engine,
    compile_network,
    describe_engine,
    draw_probes,
    installed_engines,
)
from skpatchcore._backbones._fingerprint import (
    describe_network,
    fingerprint_module,
    weights_key,
)
from skpatchcore._backbones._gabor import GaborBank
from skpatchcore._backbones._hooks import FORWARD_LOCK, read_layers
from skpatchcore._backbones._layers import (
    Layers,
    are_names,
    read_levels,
    resolve_layers,
)
from skpatchcore._backbones._layouts import Layout, Probe
from skpatchcore._backbones._network_input import (
    fit_to_patches,
    input_channels,
    input_config,
    whole_size,
)
from skpatchcore._backbones._probes import keep_layouts, learn_layouts
from skpatchcore._backbones._timm import create_by_timm
from skpatchcore._backbones._weights import check_missing, load_weights
from skpatchcore._backbones.embedded._network import load_embedded, random_embedded
from skpatchcore._utils import (
    choose_dtype,
    content_key,
    fork_safe_lock,
    full_precision,
    own_torch_state,
    resolve_device,
    warn_user,
)

# By module, so that a network that many fits share is cast once.
_CAST: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()
# Autocast would cast the weights of these layers in every pass. Subclasses are not
# included, because some transform their weights first.
_CAST_TYPES = (nn.Conv2d, nn.Linear)
# By module, so that a network that many fits share is compiled once for each size. None
# stands for torch.
_COMPILED: WeakKeyDictionary[
    nn.Module, dict[tuple, dict[tuple[int, int], Network | None]]
] = WeakKeyDictionary()
# A compiled network holds a copy of the weights, and takes about a second.
_MAX_SIZES = 4
_COMPILE_LOCK = fork_safe_lock()
# Random weights come from torch's only generator, so threads must take turns.
_BUILD_LOCK = fork_safe_lock()


class Backbone:
    """A frozen network and the layers to read from it.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode, on `device`.
    layers : tuple of str or tuple of int
        Module names, as in ``module.get_submodule``, or feature levels of timm.
    device : torch.device
    precision : {"auto", "float32", "bfloat16", "float16"}
    engine : {"torch", "auto", "openvino", "onnxruntime"}
    own : bool
        Whether the user gave the network as a module rather than by name.
    """

    @own_torch_state()
    def __init__(
        self,
        module: nn.Module,
        layers: Layers,
        device: torch.device,
        precision: str = "auto",
        *,
        engine: str = "torch",
        own: bool = False,
    ) -> None:
        self.own = own
        # Convolutions are fastest with channels last, on CPUs and GPUs.
        self.module = module.to(memory_format=torch.channels_last)
        self.layers = layers
        self._layouts: dict[str, Layout] = {}
        self.device = device
        self.precision = precision
        self.dtype = choose_dtype(precision, device)
        check_engine(engine, device, self.dtype)
        self.engine = engine
        # Whether the network itself balances the weights of these layers.
        self.balanced = set(self.layers) <= set(getattr(module, "balanced_layers", ()))
        self.n_channels = input_channels(module)
        # Without a configuration, a network is assumed to be trained on ImageNet. These
        # constants are torchvision's and timm's.
        self.mean = self._constant("mean", (0.485, 0.456, 0.406))
        self.std = self._constant("std", (0.229, 0.224, 0.225))

    def _constant(self, name: str, default: Sequence[float]) -> torch.Tensor:
        """Return a number of the configuration for each channel, (c, 1, 1)."""
        values = input_config(self.module).get(name, default)
        if len(values) not in (1, self.n_channels):
            # Constants of red, green and blue do not apply to other channels.
            values = [sum(values) / len(values)]
        return torch.tensor(values, device=self.device).reshape(-1, 1, 1)

    def moved(self, device: str | torch.device | None, engine: str) -> "Backbone":
        """Return the network on `device`, run by `engine`; itself if it is so already.

        None is the device of the network.
        """
        target = self.device if device is None else resolve_device(device)
        if (target, engine) == (self.device, self.engine):
            return self
        module = self.module
        if target != self.device:
            module = copy.deepcopy(module).to(target)
        return Backbone(
            module, self.layers, target, self.precision, engine=engine, own=self.own
        )

    @property
    def compiles(self) -> bool:
        """Whether an engine other than torch is to run the network."""
        return bool(self._engines(self.dtype))

    @own_torch_state()
    @torch.inference_mode()
    def prepare(self, size: tuple[int, int]) -> None:
        """Learn how to read layers given by name, and compile, for images of `size`.

        A call does the same. Call this first if the memory of a call is measured,
        because both need memory too.
        """
        self._learn_layouts(size)
        if engines := self._engines(self.dtype):
            self._compiled(engines, whole_size(self.module, size), self.dtype)

    def _learn_layouts(self, size: tuple[int, int]) -> None:
        if are_names(self.layers) and len(self._layouts) < len(set(self.layers)):
            self._layouts = learn_layouts(self.module, self.layers, size)

    @own_torch_state()
    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Return a float32 map (b, c, h, w) for each layer; `batch` is in [0, 1]."""
        self._learn_layouts(_size(batch))
        batch = self._normalize(batch)
        maps = self._run(batch, self.dtype)
        if self.dtype == torch.float16 and not _all_finite(maps):
            # Networks trained in float32 may exceed 65504, the largest float16.
            maps = self._run(batch, torch.float32)
        return maps

    @own_torch_state()
    @torch.inference_mode()
    def run_in_torch(self, batch: torch.Tensor) -> None:
        """Do as a call does without an engine, whose memory cannot be measured."""
        self._learn_layouts(_size(batch))
        self._forward(self._normalize(batch), self.dtype)

    def _normalize(self, batch: torch.Tensor) -> torch.Tensor:
        """Return images in [0, 1] as the network takes them."""
        # A copy from pinned memory does not block the CPU.
        batch = batch.to(self.device, torch.float32, non_blocking=batch.is_pinned())
        batch = (batch - self.mean) / self.std
        batch = fit_to_patches(self.module, batch)
        return batch.contiguous(memory_format=torch.channels_last)

    def _run(self, batch: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        """Return maps of normalised images, by the engine."""
        engines = self._engines(dtype)
        compiled = self._compiled(engines, _size(batch), dtype) if engines else None
        return compiled(batch) if compiled else self._forward(batch, dtype)

    def _engines(self, dtype: torch.dtype) -> list[str]:
        """Return the engines to try before torch."""
        if self.engine != "auto":
            return [] if self.engine == "torch" else [self.engine]
        # Code of the user's own may depend on the image, which no probe shows.
        if self.own or self.device.type != "cpu":
            return []
        return installed_engines(dtype)

    def _compiled(
        self, engines: Sequence[str], size: tuple[int, int], dtype: torch.dtype
    ) -> Network | None:
        """Return the network compiled for images of `size`; None: run it in torch."""
        with _COMPILE_LOCK:
            process = (torch.get_num_threads(), os.getpid())
            network = (*engines, dtype, self.layers, *process)
            known = _COMPILED.setdefault(self.module, {}).setdefault(network, {})
            if size not in known:
                # Stored only when it is compiled: after an error or Ctrl-C, the next
                # call must not run in torch without a word.
                if len(known) < _MAX_SIZES:
                    known[size] = self._compile(engines, size, dtype)
                    return known[size]
                if len(known) == _MAX_SIZES:
                    warn_user(
                        f"The images have more than {_MAX_SIZES} sizes. The network is "
                        f"compiled by {engines[0]} for the first {_MAX_SIZES}, and "
                        "runs in torch for all others. For the fastest scores, set "
                        "image_size=(height, width) or crop_size."
                    )
                known[size] = None
            return known[size]

    def _compile(
        self, engines: Sequence[str], size: tuple[int, int], dtype: torch.dtype
    ) -> Network | None:
        probes = draw_probes(self.n_channels, size).sub_(self.mean).div_(self.std)
        for engine in engines:
            try:
                return compile_network(
                    engine, lambda x: self._forward(x, torch.float32), probes, dtype
                )
            except EngineError as error:
                name = type(self.module).__name__
                if self.engine != "auto":
                    raise EngineError(
                        f"engine={engine!r} cannot be used for {name}: {error}. Set "
                        "engine='torch'."
                    ) from error
                warn_user(f"engine='auto': {name}: {error}.")
        return None

    def _forward(self, batch: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        autocast = torch.autocast(
            self.device.type, dtype, enabled=dtype != torch.float32
        )
        with autocast, FORWARD_LOCK, full_precision():
            outputs = self._read(cast_weights(self.module, dtype), batch)
        if are_names(self.layers):
            outputs = self._arrange(self.layers, outputs, len(batch), _size(batch))
        return [outputs[layer].to(torch.float32) for layer in self.layers]

    def _arrange(
        self, names: Sequence[str], outputs: dict, n: int, size: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        """Return outputs of layers for n images of `size` as maps (n, c, h, w)."""
        given = {name: Probe(n, size, out) for name, out in outputs.items()}
        if unknown := given.keys() - self._layouts.keys():
            # No probe passed the network: it probably accepts only one size.
            keep_layouts(self.module, [{name: given[name] for name in unknown}])
            self._layouts = learn_layouts(self.module, names, size)
        return {k: self._layouts[k].arrange(probe, k) for k, probe in given.items()}

    def _read(self, module: nn.Module, batch: torch.Tensor) -> dict:
        expected = tuple(input_config(module).get("input_size", ()))[1:]
        size = _size(batch)
        try:
            if are_names(self.layers):
                return read_layers(module, self.layers, batch)
            return read_levels(module, self.layers, batch)
        except (AssertionError, RuntimeError) as error:
            # The size is only a likely cause if it differs from the network's own.
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            if out_of_memory or not expected or size == expected:
                raise
            raise ValueError(
                f"The network {type(module).__name__} cannot take images of "
                f"{size[0]} x {size[1]} pixels; it was made for "
                f"image_size={expected}: {error}"
            ) from error

    @property
    def fingerprint(self) -> str | None:
        """A key of all that maps depend on except the image, or None.

        It covers weights, code and arithmetic, and is None if they cannot be described.
        """
        network = fingerprint_module(self.module)
        if network is None:
            return None
        arithmetic = (
            self.device.type,
            str(self.dtype),
            torch.__version__,
            *describe_engine(self.engine),
        )
        normalization = (self.mean.cpu().numpy(), self.std.cpu().numpy())
        return content_key(network, self.layers, arithmetic, normalization)

    @property
    def state_key(self) -> str:
        """A key that shows whether a network that is built later is the same.

        It covers the weights of a network given by name, and all state of a module,
        including hooks. Code is left out, because another version may do the same.
        """
        if self.own:
            return describe_network(self.module).state
        return weights_key(self.module, self.layers)


@own_torch_state()
def load_backbone(
    backbone: str | nn.Module,
    layers: Sequence[str | int],
    *,
    weights: str | os.PathLike[str] | None,
    seed: int,
    device: str | torch.device | None,
    precision: str,
    engine: str = "torch",
) -> Backbone:
    """Return a network, built at the first call with these parameters."""
    device = resolve_device(device)
    if isinstance(backbone, nn.Module):
        if weights is not None:
            raise ValueError(
                f"weights={weights!r} can only be used with a backbone given by name. "
                "Load the weights into the module instead."
            )
        # A copy, so that the user's module keeps its mode, dtype and device.
        module = copy.deepcopy(backbone).eval().requires_grad_(False)
        missing: frozenset[str] = frozenset()
        module = module.to(device).float()
        # Before the first pass, because some networks change with every pass.
        describe_network(module)
    else:
        module, missing = _build_by_name(backbone, weights, seed, device)
    own = isinstance(backbone, nn.Module)
    found = resolve_layers(module, layers, own=own)
    if missing and weights is not None:
        check_missing(module, found, missing, weights)
    return Backbone(module, found, device, precision, engine=engine, own=own)


def _size(batch: torch.Tensor) -> tuple[int, int]:
    height, width = batch.shape[-2:]
    return height, width


def _all_finite(maps: Sequence[torch.Tensor]) -> bool:
    # A GPU is waited for once, not once per layer.
    return bool(torch.stack([layer.isfinite().all() for layer in maps]).all())


def cast_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a twin of `module` with its large weights in `dtype`, made only once.

    The twin shares everything else with `module`, including norms, which stay in
    float32.
    """
    if dtype == torch.float32:
        return module
    twins = _CAST.setdefault(module, {})
    if dtype not in twins:
        state = itertools.chain(module.parameters(), module.buffers())
        twin = copy.deepcopy(module, {id(tensor): tensor for tensor in state})
        for child in twin.modules():
            if type(child) in _CAST_TYPES:
                for name, weight in child.named_parameters(recurse=False):
                    cast = nn.Parameter(weight.to(dtype), requires_grad=False)
                    setattr(child, name, cast)
        twins[dtype] = twin
    return twins[dtype]


def _build_by_name(
    name: str,
    weights: str | os.PathLike[str] | None,
    seed: int,
    device: torch.device,
) -> tuple[nn.Module, frozenset[str]]:
    stamp = None
    if weights not in (None, "random"):
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(
                f"weights={os.fspath(weights)!r} is not a file (in {os.getcwd()!r}). "
                "If it was moved, pass its new path: weights= of the features, "
                "detector.features_.set_params(weights=...) after a fit, or --weights "
                "on the command line."
            )
        status, weights = path.stat(), str(path.resolve())
        # A copy may have the same time as its original, but hardly all of these.
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    # Only random weights depend on the seed; otherwise it would split the cache.
    drawn = seed if weights == "random" else None
    with _BUILD_LOCK:
        return _build_cached(name, weights, stamp, drawn, device)


@functools.lru_cache(maxsize=4)
def _build_cached(
    name: str,
    weights: str | None,
    stamp: tuple[int, ...] | None,
    seed: int | None,
    device: torch.device,
) -> tuple[nn.Module, frozenset[str]]:
    """Return the network, and the names that its weights file does not match."""
    module = create_network(name, pretrained=weights is None, seed=seed or 0)
    missing: frozenset[str] = frozenset()
    if weights not in (None, "random"):
        missing = load_weights(module, weights)
    return module.eval().requires_grad_(False).to(device).float(), missing


@own_torch_state()
def create_network(name: str, *, pretrained: bool, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs' generators, permanently.
        torch.default_generator.manual_seed(seed)
        if name == "gabor":
            return GaborBank()
        if name == "embedded":
            return load_embedded() if pretrained else random_embedded(seed)
        return create_by_timm(name, pretrained=pretrained)
