"""Layers by name or by number, where a number is one of timm's feature levels.

timm counts levels from the input to the output. It returns them as maps (b, c, h, w)
for every order of axes and tokens that a network computes with. So, unlike layers by
name, levels need no layout.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeGuard, cast

import torch
from torch import nn

from skpatchcore._utils import did_you_mean

#: All layers of a network by name, or all by number.
Layers: TypeAlias = tuple[str, ...] | tuple[int, ...]


def resolve_layers(
    module: nn.Module, layers: Sequence[str | int], *, own: bool
) -> Layers:
    """Return how the layers are read: all by number, or all by name.

    Numbers are kept if there are only numbers, for a network that timm built and can
    return the levels of. Otherwise they become names of modules: older versions of timm
    lack the method for some networks, and a module of the user's own may have hooks
    that only its `forward` calls.

    Parameters
    ----------
    module : nn.Module
    layers : sequence of str or int
        Negative numbers count from the last level.
    own : bool
        Whether the user gave the network as a module.

    Raises
    ------
    ValueError
        If the network has no such layer, or does not declare its levels.
    """
    levels = [_find_level(module, n) for n in layers if not isinstance(n, str)]
    has_levels = hasattr(module, "forward_intermediates") and not own
    if has_levels and len(levels) == len(layers):
        return tuple(levels)
    found = _level_names(module)
    names = tuple(n if isinstance(n, str) else found[n] for n in layers)
    _check_names(module, names)
    return names


def are_names(layers: Layers) -> TypeGuard[tuple[str, ...]]:
    """Return whether layers from `resolve_layers` are names."""
    return isinstance(layers[0], str)


def read_levels(
    module: nn.Module, levels: Layers, batch: torch.Tensor
) -> dict[Any, torch.Tensor]:
    """Run `module` up to the last of `levels`; return their maps (b, c, h, w)."""
    wanted = sorted(cast(set[int], set(levels)))
    maps = cast(Any, module).forward_intermediates(
        batch,
        indices=wanted,
        stop_early=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )
    return dict(zip(wanted, maps, strict=True))


def _find_level(module: nn.Module, level: int) -> int:
    """Return `level` counted from the first one."""
    names = _level_names(module)
    if not names:
        raise ValueError(
            f"layers contains the number {level!r}, but the network does not declare "
            "feature levels. Use module names, as listed by named_modules()."
        )
    if not -len(names) <= level < len(names):
        raise ValueError(
            f"layers contains {level!r}, but the network has {len(names)} feature "
            f"levels, 0 to {len(names) - 1}: {', '.join(names)}."
        )
    return int(level) % len(names)


def _level_names(module: nn.Module) -> list[str]:
    """Return the modules whose outputs are timm's features, from input to output."""
    levels = getattr(module, "feature_info", ())
    # Networks that timm builds by stages have an object around the list.
    levels = getattr(levels, "info", levels)
    return [level["module"] for level in levels]


def _check_names(module: nn.Module, layers: Sequence[str]) -> None:
    """Raise a ValueError with suggestions for a layer that `module` does not have."""
    names = [name for name, _ in module.named_modules()]
    for layer in layers:
        if layer not in names:
            guess = did_you_mean(str(layer), names, n=5, cutoff=0.4)
            top = [name for name, _ in module.named_children()]
            raise ValueError(
                f"The backbone has no layer {layer!r}.{guess} Its top-level modules "
                f"are {', '.join(top)}; named_modules() lists all."
            )
