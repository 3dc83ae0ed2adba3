"""Resize images to sizes that a network accepts."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from skpatchcore._backbones._layouts import patch_ratio


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
