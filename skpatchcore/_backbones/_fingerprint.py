"""Identify networks by weights, settings, hooks and code."""

import warnings
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules import module as torch_modules

from skpatchcore._backbones._description import Description
from skpatchcore._backbones._hooks import modules_run
from skpatchcore._utils import content_key, fork_safe_lock

# Held while a network is described, which happens once for many fits.
_LOCK = fork_safe_lock()
_DESCRIPTIONS: WeakKeyDictionary[nn.Module, Description] = WeakKeyDictionary()
_WEIGHTS_KEYS: WeakKeyDictionary[nn.Module, dict[tuple, str]] = WeakKeyDictionary()
# Hooks that torch calls for every module of the process.
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
_N_NAMED = 3


def describe_network(module: nn.Module) -> Description:
    """Return the description of what `module` computes with, made at the first call.

    It is equal for copies of the module, in this process and in others.
    """
    with _LOCK:
        if module not in _DESCRIPTIONS:
            _DESCRIPTIONS[module] = Description(module)
        return _DESCRIPTIONS[module]


def fingerprint_module(module: nn.Module) -> str | None:
    """Return a key of what `module` computes, the same for its copies.

    None, with a warning, if its output may depend on something that cannot be
    described.
    """
    description = describe_network(module)
    # Not remembered: they come and go without a trace in the module.
    hooks = [list(getattr(torch_modules, name, {}).values()) for name in _GLOBAL_HOOKS]
    everywhere = Description(hooks)
    gaps = [*description.gaps, *everywhere.gaps]
    if gaps:
        more = f" and {len(gaps) - _N_NAMED} more" if len(gaps) > _N_NAMED else ""
        warnings.warn(
            f"The layer maps of {type(module).__name__} are not cached, because its "
            "output may depend on what cannot be described: "
            f"{'; '.join(gaps[:_N_NAMED])}{more}. Keep such objects out of the "
            "network, or set memory=None on the features to silence this.",
            stacklevel=2,
        )
        return None
    return content_key(description.key, everywhere.key)


def weights_key(module: nn.Module, layers: Sequence[str]) -> str:
    """Return a key of the weights that shape the output of `layers`.

    Weights behind the last layer do not count, as some files do not have them.
    """
    keys = _WEIGHTS_KEYS.setdefault(module, {})
    layers = tuple(layers)
    if layers not in keys:
        keys[layers] = Description(_weights_used(module, layers)).state
    return keys[layers]


def _weights_used(module: nn.Module, layers: tuple[str, ...]) -> dict:
    names = [name for name, _ in module.named_modules()]
    try:
        # Those defined before the last that is called count, since some attentions use
        # the weights of a module that they never call.
        last = max(map(names.index, modules_run(module, layers)))
    except (AssertionError, RuntimeError, ValueError):
        # It cannot take an image of the size that it was tried with.
        last = len(names)
    inside = tuple(f"{layer}." for layer in layers)
    used = {n for i, n in enumerate(names) if i <= last or n.startswith(inside)}
    return {
        name: value
        for name, value in module.state_dict().items()
        # The count of training batches shapes nothing, and not all files have it.
        if name.rpartition(".")[0] in used and not name.endswith("num_batches_tracked")
    }
