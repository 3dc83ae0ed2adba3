"""Which layers a network has by number, and which sizes of images it takes."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from skpatchcore._backbones._layouts import patch_ratio


def name_layers(module: nn.Module, layers: Sequence) -> tuple[str, ...]:
    """Return module names for `layers`, of which ints count timm's feature levels.

    Raises
    ------
    ValueError
        If the network has no such level, or does not say what its levels are.
    """
    return tuple(
        layer if isinstance(layer, str) else _name_level(module, layer)
        for layer in layers
    )


def _name_level(module: nn.Module, level: int) -> str:
    names = _level_names(module)
    if not names:
        raise ValueError(
            f"layers: {level!r} is a number, but the network does not say what its "
            "levels are; give names of modules, as in named_modules()."
        )
    if not -len(names) <= level < len(names):
        raise ValueError(
            f"layers: there is no level {level!r}; the network has {len(names)}: "
            f"{', '.join(names)}."
        )
    return names[level]


def _level_names(module: nn.Module) -> list[str]:
    """Return the modules whose outputs are timm's features, from input to output."""
    levels = getattr(module, "feature_info", ())
    # Networks that timm builds by stages have an object around the list.
    levels = getattr(levels, "info", levels)
    return [level["module"] for level in levels]


def fit_to_patches(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Resize images (b, c, h, w) to whole patches, if `module` takes no others.

    The whole image stays in view, so that maps keep their place on it; sides change
    by half a patch at most.
    """
    whole = whole_size(module, batch.shape[-2:])
    if whole == tuple(batch.shape[-2:]):
        return batch
    return F.interpolate(
        batch, whole, mode="bilinear", align_corners=False, antialias=True
    )


def whole_size(module: nn.Module, size: Sequence[int]) -> tuple[int, int]:
    """Return the size (h, w) nearest to `size` that consists of whole patches."""
    ratio = patch_ratio(module)
    height, width = (max(1, round(n / r)) * r for n, r in zip(size, ratio, strict=True))
    return height, width
