"""Load weights from local files: complete or up to a layer, also with other names."""

import os
import pickle
import sys
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from skpatchcore._backbones._layers import Layers
from skpatchcore._backbones._used_weights import modules_run

# By module, so that a network that many fits share is checked once.
_COMPLETE_LAYERS: WeakKeyDictionary[nn.Module, set] = WeakKeyDictionary()


class WeightsNotStored(os.PathLike):
    """Stands for the local weights file of a fit in an estimator from a model file.

    A model file holds no path of a weights file, and `load` would not open one. Using
    this object as a path raises an error that says how to pass the file.

    Parameters
    ----------
    name : str
        Name of the file without its folder, for messages.
    """

    def __init__(self, name: str):
        self.name = name

    def __fspath__(self) -> str:
        raise FileNotFoundError(
            f"The network was fitted with weights from a local file, {self.name!r}. "
            "A model file does not hold its path. Pass the path to load(..., "
            "weights=...), or with --weights on the command line; or save the "
            "detector with include_backbone=True where it was fitted."
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightsNotStored) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"WeightsNotStored({self.name!r})"


def load_weights(module: nn.Module, path: str) -> frozenset[str]:
    """Load a state dict, complete or up to a layer; return names that do not match."""
    own = module.state_dict()
    state = _choose_state_dict(_read_checkpoint(path), own, path)
    usable = _usable(state, own)
    if len(usable) < len(own):
        converted = _convert(state, module)
        if len(_usable(converted, own)) > len(usable):
            state, usable = converted, _usable(converted, own)
    if not usable:
        raise ValueError(
            f"weights={path!r} contains no parameter of the backbone. Its first names "
            f"are {', '.join(list(state)[:3])}. Are these the weights of another "
            "network?"
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
    """Let timm translate names, and resize position embeddings of another grid."""
    home = sys.modules[type(module).__module__]
    convert = getattr(home, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), module))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        # The file contains the weights of another family of networks.
        return state


def _read_checkpoint(path: str) -> dict[str, Any]:
    from timm.models import load_state_dict

    try:
        checkpoint = load_state_dict(path, weights_only=True)
    except pickle.UnpicklingError as error:
        # What torch says of it advises to execute code of the file.
        raise ValueError(
            f"Could not read weights={path!r}: it is not a file of weights, or it "
            "contains Python objects other than tensors, which could run code. Pass a "
            ".safetensors file or a torch state dict."
        ) from error
    except Exception as error:
        raise ValueError(
            f"Could not read weights={path!r} as .safetensors or torch state dict: "
            f"{error}"
        ) from error
    return checkpoint if isinstance(checkpoint, dict) else {}


def _choose_state_dict(
    checkpoint: dict[str, Any], own: dict[str, torch.Tensor], path: str
) -> dict[str, torch.Tensor]:
    """Return the state dict in a checkpoint that fits the parameters `own` best.

    Training scripts store it under a name, next to optimizers and counters, or inside a
    larger module, whose name then precedes all names of parameters.
    """
    found = dict(_state_dicts(checkpoint))
    if not found:
        raise ValueError(f"weights={path!r} contains no state dict.")
    found |= {
        f"{where}.{prefix}": _without_prefix(state, prefix)
        for where, state in found.items()
        for prefix in _prefixes(state, own)
    }
    counts = {where: len(_usable(state, own)) for where, state in found.items()}
    most = max(counts.values())
    best = [where for where, count in counts.items() if count == most]
    if most > 0 and len(best) > 1:
        raise ValueError(
            f"weights={path!r} contains several networks that fit the backbone: "
            f"{', '.join(where.strip('.') for where in best)}. Save the one that you "
            "want to a separate file."
        )
    return found[best[0]]


def _state_dicts(
    checkpoint: dict[str, Any], where: str = ""
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield the dicts of tensors in nested dicts, with their dotted paths."""
    tensors = {
        name: value
        for name, value in checkpoint.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if tensors:
        yield where, tensors
    for name, value in checkpoint.items():
        if isinstance(value, dict):
            yield from _state_dicts(value, f"{where}.{name}")


def _prefixes(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> set[str]:
    """Return the prefixes of names that end with the network's first parameter."""
    first = next(iter(own), "")
    return {
        key.removesuffix(f".{first}")
        for key, value in state.items()
        if key.endswith(f".{first}") and value.shape == own[first].shape
    }


def _without_prefix(
    state: dict[str, torch.Tensor], prefix: str
) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}


def check_missing(
    module: nn.Module,
    layers: Layers,
    missing: frozenset[str],
    weights: str | os.PathLike[str],
) -> None:
    """Raise a ValueError if the file lacks parameters that `layers` depend on."""
    complete = _COMPLETE_LAYERS.setdefault(module, set())
    if layers in complete:
        return
    used = set(modules_run(module, layers))
    wrong = sorted(key for key in missing if _owner(module, key) in used)
    if wrong:
        raise ValueError(
            f"weights={os.fspath(weights)!r} does not fit the backbone. Up to the "
            f"layers {list(layers)}, {len(wrong)} parameters are missing in the file, "
            f"have another shape, or are unknown to the network: "
            f"{', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}. Are these the "
            "weights of another network?"
        )
    complete.add(layers)


def _owner(module: nn.Module, key: str) -> str:
    """Return the innermost existing module along a parameter's dotted name."""
    owner = ""
    for part in key.split(".")[:-1]:
        child = f"{owner}.{part}".lstrip(".")
        if not _has_submodule(module, child):
            # Directly below the root and unknown to the network: another head.
            return owner or key
        owner = child
    return owner


def _has_submodule(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True
