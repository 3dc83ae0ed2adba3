"""Identify networks by weights, settings, hooks and code."""

from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules import module as torch_modules

from skpatchcore._backbones._description import Description
from skpatchcore._backbones._layers import Layers
from skpatchcore._backbones._used_weights import weights_used
from skpatchcore._utils import content_key, fork_safe_lock, warn_user

# Held while a network is described, so that this happens only once for many fits.
_LOCK = fork_safe_lock()
_DESCRIPTIONS: WeakKeyDictionary[nn.Module, Description] = WeakKeyDictionary()
_WEIGHTS_KEYS: WeakKeyDictionary[nn.Module, dict[tuple, str]] = WeakKeyDictionary()
# Hooks that torch calls for every module of the process.
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
_N_NAMED = 3


def describe_network(module: nn.Module) -> Description:
    """Return the description of `module`, made at the first call.

    It is equal for copies of the module, in this process and in others.
    """
    with _LOCK:
        if module not in _DESCRIPTIONS:
            _DESCRIPTIONS[module] = Description(module)
        return _DESCRIPTIONS[module]


def fingerprint_module(module: nn.Module) -> str | None:
    """Return a key of what `module` computes, equal for its copies.

    If its output may depend on something that cannot be described, warn and return
    None.
    """
    description = describe_network(module)
    # Described each time, because they come and go without a trace in the module.
    hooks = [list(getattr(torch_modules, name, {}).values()) for name in _GLOBAL_HOOKS]
    everywhere = Description(hooks)
    gaps = [*description.gaps, *everywhere.gaps]
    if gaps:
        more = f" and {len(gaps) - _N_NAMED} more" if len(gaps) > _N_NAMED else ""
        warn_user(
            f"The layer maps of {type(module).__name__} are not cached, because the "
            "output of the network may depend on objects that cannot be described: "
            f"{'; '.join(gaps[:_N_NAMED])}{more}. Remove them from the network, or set "
            "memory=None on the features to silence this warning.",
        )
        return None
    return content_key(description.key, everywhere.key)


def weights_key(module: nn.Module, layers: Layers) -> str:
    """Return a key of the weights that the output of `layers` depends on.

    Weights after the last layer do not count, because some files lack them.
    """
    keys = _WEIGHTS_KEYS.setdefault(module, {})
    if layers not in keys:
        keys[layers] = Description(weights_used(module, layers)).state
    return keys[layers]
