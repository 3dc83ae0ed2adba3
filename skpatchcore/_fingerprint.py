"""What tells networks apart: weights, settings and code."""

import contextlib
import inspect
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from skpatchcore._cache import content_key
from skpatchcore._locks import fork_safe_lock

_LOCK = fork_safe_lock()
# By module, so that networks that serve many fits are looked at once.
_FINGERPRINTS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
# What `vars(module)` holds beside what makes the module different from others.
_MODULE_STATE = frozenset(vars(nn.Module()))


def fingerprint_module(module: nn.Module) -> str:
    """Return a key of what `module` computes, the same for its copies."""
    # `inspect` parses source code, which threads must not do at once.
    with _LOCK:
        if module not in _FINGERPRINTS:
            _FINGERPRINTS[module] = content_key(*_describe_module(module))
    return _FINGERPRINTS[module]


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
