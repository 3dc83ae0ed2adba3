"""Networks by name or as modules, and their layer maps through scoped hooks."""

import contextlib
import copy
import difflib
import functools
import inspect
import itertools
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from skpatchcore._cache import content_key
from skpatchcore._gabor import GaborBank
from skpatchcore._layer_outputs import as_map, fit_to_patches, name_layers

_PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Hooks belong to the module, not to the thread: two forward passes at once through one
# cached network would read each other's maps.
_FORWARD_LOCK = threading.RLock()
_FINGERPRINT_LOCK = threading.Lock()
# By module, so that networks that serve many fits are looked at once.
_FINGERPRINTS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_COMPLETE_LAYERS: WeakKeyDictionary[nn.Module, set] = WeakKeyDictionary()
_CAST: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()
# What autocast would cast the weights of, at every pass. Not subclasses: some compute
# with their weights before they use them.
_CAST_TYPES = (nn.Conv2d, nn.Linear)
# What `vars(module)` holds beside what makes the module different from others.
_MODULE_STATE = frozenset(vars(nn.Module()))


class _LastLayerReached(Exception):
    """Ends a forward pass whose further layers nobody asked for."""


class Backbone:
    """A frozen network and the layers to read from it.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode, on `device`.
    layers : sequence of str
        Module names, as in ``module.get_submodule``.
    device : torch.device
    precision : {"auto", "float32", "bfloat16", "float16"}
    """

    def __init__(self, module, layers, device, precision="auto"):
        # Channels last is how convolutions run fastest, on CPU and GPU alike.
        self.module = module.to(memory_format=torch.channels_last)
        self.layers = tuple(layers)
        self.device = device
        self.dtype = choose_dtype(precision, device)
        config = getattr(module, "pretrained_cfg", None) or {}
        # Without a configuration of its own, a network is taken to be trained on
        # ImageNet: these are torchvision's and timm's constants.
        mean = config.get("mean", (0.485, 0.456, 0.406))
        std = config.get("std", (0.229, 0.224, 0.225))
        self.mean = torch.tensor(mean, device=device).reshape(-1, 1, 1)
        self.std = torch.tensor(std, device=device).reshape(-1, 1, 1)

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Return a float32 map (b, c, h, w) for each layer; `batch` is in [0, 1]."""
        # From pinned memory the copy goes on while the processor does.
        batch = batch.to(self.device, torch.float32, non_blocking=batch.is_pinned())
        batch = (batch - self.mean) / self.std
        batch = fit_to_patches(self.module, batch)
        batch = batch.contiguous(memory_format=torch.channels_last)
        maps = self._forward(batch, self.dtype)
        if self.dtype == torch.float16 and not _all_finite(maps):
            # Beyond 65504, which networks that were trained in float32 may reach.
            maps = self._forward(batch, torch.float32)
        return maps

    def _forward(self, batch: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        autocast = torch.autocast(
            self.device.type, dtype, enabled=dtype != torch.float32
        )
        with autocast, _FORWARD_LOCK:
            outputs = self._read(cast_weights(self.module, dtype), batch)
        shape = (len(batch), *batch.shape[-2:])
        return [
            as_map(outputs[name], self.module, shape, name).to(torch.float32)
            for name in self.layers
        ]

    def _read(self, module: nn.Module, batch: torch.Tensor) -> dict:
        config = getattr(module, "pretrained_cfg", None) or {}
        expected = tuple(config.get("input_size", ()))[1:]
        size = tuple(batch.shape[-2:])
        try:
            return read_layers(module, self.layers, batch)
        except (AssertionError, RuntimeError) as error:
            # Only of another size than it was made for, the size is likely to blame.
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            if out_of_memory or not expected or size == expected:
                raise
            raise ValueError(
                f"The network {type(module).__name__} cannot take pictures of "
                f"{size[0]} x {size[1]} pixels; it was made for "
                f"image_size={expected}: {error}"
            ) from error

    @property
    def fingerprint(self) -> str:
        """What maps depend on, but for the picture: weights, code and arithmetic."""
        # `inspect` parses source code, which threads must not do at once.
        with _FINGERPRINT_LOCK:
            if self.module not in _FINGERPRINTS:
                _FINGERPRINTS[self.module] = content_key(*_describe_module(self.module))
        arithmetic = (self.device.type, str(self.dtype), torch.__version__)
        normalization = (self.mean.cpu().numpy(), self.std.cpu().numpy())
        return content_key(
            _FINGERPRINTS[self.module], self.layers, arithmetic, normalization
        )


def load_backbone(backbone, layers, *, weights, seed, device, precision) -> Backbone:
    """Build, or take from this process's cache, the network with given parameters."""
    device = resolve_device(device)
    if isinstance(backbone, nn.Module):
        if weights is not None:
            raise ValueError(
                f"weights={weights!r} only goes with a backbone given by name; load "
                "them into the module instead."
            )
        # A copy: evaluation mode and device of the user's own module stay untouched.
        module, missing = copy.deepcopy(backbone).eval().to(device), frozenset()
    else:
        module, missing = _build_by_name(backbone, weights, seed, device)
    layers = name_layers(module, layers)
    check_layers(module, layers)
    if missing:
        _check_missing(module, layers, missing, weights)
    return Backbone(module, layers, device, precision)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the arithmetic of a network; "auto" is the fastest that is good enough.

    On real classes float16, where every number is rounded to 11 bits, moves the image
    AUROC by no more than 0.0005. The 8 bits of bfloat16 move it by up to 0.005 on the
    hardest class, those of the weights alone by 0.002, so it is for users to choose.
    """
    if precision != "auto":
        return _PRECISIONS[precision]
    return torch.float16 if has_float16_units(device) else torch.float32


def has_float16_units(device: torch.device) -> bool:
    """Tell whether `device` multiplies matrices of float16 faster than of float32."""
    if device.type == "cuda":
        # Tensor cores came with compute capability 7.0.
        return torch.cuda.get_device_capability(device) >= (7, 0)
    if device.type != "cpu":
        return False
    # AMX of Granite Rapids. Other processors know float16 as a format at most.
    supported = getattr(torch.cpu, "_is_amx_fp16_supported", None)
    return supported is not None and supported()


def _all_finite(maps: Sequence[torch.Tensor]) -> bool:
    # One answer to wait for, however many layers.
    return bool(torch.stack([layer.isfinite().all() for layer in maps]).all())


def resolve_device(device) -> torch.device:
    """Return `device`, or CUDA when there is one and `device` is None."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is no torch device: {str(error).splitlines()[0]}"
        ) from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={device!r} was asked for, but torch sees no CUDA GPU."
        )
    try:
        torch.zeros(1, device=resolved).cpu()
    except Exception as error:
        # The type depends on the kind of device: RuntimeError, AssertionError, ...
        raise ValueError(
            f"device={device!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return resolved


def read_layers(
    module: nn.Module, layers: Sequence[str], batch: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Run `module` until the last of `layers` has answered; return their outputs."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name, output):
        outputs[name] = _copy(output)
        if len(outputs) == len(set(layers)):
            raise _LastLayerReached

    with contextlib.ExitStack() as stack:
        for name in set(layers):
            handle = module.get_submodule(name).register_forward_hook(
                lambda _module, _args, output, name=name: keep(name, output)
            )
            stack.callback(handle.remove)
        with contextlib.suppress(_LastLayerReached):
            module(batch)
    unreached = [name for name in layers if name not in outputs]
    if unreached:
        raise ValueError(f"The forward pass never calls the layers {unreached}.")
    return outputs


def _copy(output):
    """Copy tensors: the next operation of the network may well work in place."""
    if isinstance(output, list | tuple):
        return [_copy(part) for part in output]
    return output.clone() if isinstance(output, torch.Tensor) else output


def cast_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a twin of `module` whose large weights are of `dtype`, made only once.

    It shares everything else with `module`, norms too, which stay in float32.
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


def check_layers(module: nn.Module, layers: Sequence[str]) -> None:
    """Raise a ValueError with suggestions for a layer that `module` does not have."""
    names = [name for name, _ in module.named_modules()]
    for layer in layers:
        if layer not in names:
            close = difflib.get_close_matches(str(layer), names, n=5, cutoff=0.4)
            top = [name for name, _ in module.named_children()]
            raise ValueError(
                f"The backbone has no layer {layer!r}; close names: {close}; top-level "
                f"modules: {top}."
            )


def _build_by_name(name: str, weights, seed: int, device: torch.device):
    stamp = None
    if weights not in (None, "random"):
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"weights={os.fspath(weights)!r} is no file.")
        weights, stamp = str(path.resolve()), path.stat().st_mtime_ns
    # The seed shapes random weights only; elsewhere it would split the cache.
    seed = seed if weights == "random" else None
    return _build_cached(name, weights, stamp, seed, device)


@functools.lru_cache(maxsize=4)
def _build_cached(name, weights, stamp, seed, device) -> tuple[nn.Module, frozenset]:
    """Return the network and the names of parameters its weights file did not have."""
    module = _create(name, pretrained=weights is None, seed=seed or 0)
    missing = frozenset()
    if weights not in (None, "random"):
        missing = load_weights(module, weights)
    return module.eval().requires_grad_(False).to(device), missing


def _create(name: str, *, pretrained: bool, seed: int) -> nn.Module:
    if name == "gabor":
        return GaborBank()
    # timm takes seconds to import: only those who need a network by name wait for it.
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(
            f"backbone={name!r} is no timm model; close names: {close}. See "
            "timm.list_models()."
        )
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs' generators too, for good.
        torch.default_generator.manual_seed(seed)
        try:
            return _create_for_any_size(timm.create_model, name, pretrained)
        except Exception as error:
            if not pretrained:
                raise ValueError(f"timm could not build {name!r}: {error}") from error
            raise OSError(
                f"The pretrained weights of {name!r} could not be had: {error}. "
                "Without network access give weights= a local file, or 'random'."
            ) from error


def _create_for_any_size(create, name: str, pretrained: bool) -> nn.Module:
    """Let transformers take pictures of any size, where timm can."""
    state = torch.default_generator.get_state()
    try:
        # Position embeddings are resampled at every pass.
        return create(name, pretrained=pretrained, dynamic_img_size=True)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
    torch.default_generator.set_state(state)
    return create(name, pretrained=pretrained)


def load_weights(module: nn.Module, path: str) -> frozenset:
    """Load a state dict, whole or trunk only; return the names it did not have."""
    state = _read_state_dict(path)
    own = module.state_dict()
    usable = _usable(state, own)
    if len(usable) < len(own):
        converted = _convert(state, module)
        if len(_usable(converted, own)) > len(usable):
            state, usable = converted, _usable(converted, own)
    if not usable:
        raise ValueError(
            f"weights={path!r} hold no parameter of the backbone; they begin with "
            f"{', '.join(list(state)[:3])}. Are they the weights of another network?"
        )
    module.load_state_dict(usable, strict=False)
    unknown = frozenset(state.keys() - own.keys())
    missing = frozenset(
        key for key in own.keys() - usable.keys() if not key.endswith("batches_tracked")
    )
    return missing | unknown


def _usable(state: dict, own: dict) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}


def _convert(state: dict, module: nn.Module) -> dict[str, torch.Tensor]:
    """Let timm translate other names, and position embeddings of another grid."""
    home = sys.modules[type(module).__module__]
    convert = getattr(home, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), module))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        # What is in the file is the weights of another family.
        return state


def _read_state_dict(path: str) -> dict[str, torch.Tensor]:
    from timm.models import load_state_dict

    try:
        state = load_state_dict(path, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"weights={path!r} could not be read as .safetensors or as a torch state "
            f"dict: {error}"
        ) from error
    tensors = {}
    if isinstance(state, dict):
        tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise ValueError(f"weights={path!r} holds no state dict.")
    return tensors


def _check_missing(module, layers, missing: frozenset, weights) -> None:
    """Tolerate a misfit of file and network only where no layer asked for looks."""
    complete = _COMPLETE_LAYERS.setdefault(module, set())
    if tuple(layers) in complete:
        return
    used = set(_modules_run(module, layers))
    wrong = sorted(key for key in missing if _owner(module, key) in used)
    if wrong:
        raise ValueError(
            f"weights={os.fspath(weights)!r} do not fit the backbone. Up to the layers "
            f"{list(layers)}, {len(wrong)} parameters are missing in the file, have "
            f"another shape, or are unknown to the network: {', '.join(wrong[:5])}"
            f"{', ...' if len(wrong) > 5 else ''}. Are they the weights of another "
            "network?"
        )
    complete.add(tuple(layers))


def _owner(module: nn.Module, key: str) -> str:
    """Return the innermost existing module along a parameter's dotted name."""
    owner = ""
    for part in key.split(".")[:-1]:
        child = f"{owner}.{part}".lstrip(".")
        if not _has_submodule(module, child):
            # Unknown to the network and right below the root: a foreign head.
            return owner or key
        owner = child
    return owner


def _has_submodule(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _modules_run(module: nn.Module, layers: Sequence[str]) -> Iterator[str]:
    """Return the names of the modules that run before the last layer has answered."""
    started = []
    config = getattr(module, "pretrained_cfg", None) or {}
    size = config.get("input_size", (3, 224, 224))
    # A network without weights, such as the bank of Gabor filters, has buffers alone.
    placed = next(itertools.chain(module.parameters(), module.buffers()), None)
    device = None if placed is None else placed.device
    probe = torch.zeros((1, *size), device=device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(_FORWARD_LOCK)
        for name, child in module.named_modules():
            handle = child.register_forward_pre_hook(
                lambda _module, _args, name=name: started.append(name)
            )
            stack.callback(handle.remove)
        read_layers(module, layers, probe)
    return started


def _describe_module(module: nn.Module) -> Iterator:
    """Yield, for `content_key`, what `module` computes with; equal for its copies."""
    for name, value in module.state_dict().items():
        yield name
        yield _raw(value)
    for name, child in module.named_modules():
        yield name
        yield f"{type(child).__module__}.{type(child).__qualname__}"
        for key, value in sorted(vars(child).items()):
            if key not in _MODULE_STATE and (plain := _plain(value)) is not None:
                yield (key, plain)
    for kind in sorted({type(child) for child in module.modules()}, key=str):
        # Not to be had for what was typed into an interpreter.
        with contextlib.suppress(OSError, TypeError):
            yield inspect.getsource(kind)


def _plain(value):
    """Return settings in a form that `content_key` takes, None for anything else."""
    if isinstance(value, bool | int | float | str | np.ndarray):
        return value
    if isinstance(value, torch.Tensor):
        return _raw(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return None


def _raw(tensor: torch.Tensor):
    """Return dtype, shape and bytes of a tensor; NumPy has no bfloat16."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return (str(tensor.dtype), tuple(tensor.shape), flat.view(torch.uint8).numpy())
