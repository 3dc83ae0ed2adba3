"""The input that a network accepts: number of channels and sizes of images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from skpatchcore._backbones._layouts import patch_ratio


def input_channels(module: nn.Module) -> int:
    """Return the number of channels of a network's input.

    This is the network's attribute ``in_chans``, which timm sets, or the number of
    channels of its first convolution, or 3.
    """
    declared = getattr(module, "in_chans", None)
    if declared is not None:
        return int(declared)
    convolutions = (m for m in module.modules() if isinstance(m, nn.Conv2d))
    return next((m.in_channels for m in convolutions), 3)


def input_config(module: nn.Module) -> Mapping[str, Any]:
    """Return timm's configuration of a network, empty if there is none."""
    return getattr(module, "pretrained_cfg", None) or {}


def native_size(module: nn.Module) -> tuple[int, int]:
    """Return the size (h, w) of the images that a network was made for, or 224."""
    height, width = input_config(module).get("input_size", (3, 224, 224))[1:]
    return height, width


def blank_image(module: nn.Module) -> torch.Tensor:
    """Return zeros (1, c, h, w) of the size that a network was made for."""
    shape = (1, input_channels(module), *native_size(module))
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def fit_to_patches(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Resize images (b, c, h, w) to whole patches if `module` requires them.

    The image is not cropped, so that maps stay aligned with it. Each side changes by at
    most half a patch.
    """
    whole = whole_size(module, batch.shape[-2:])
    if whole == tuple(batch.shape[-2:]):
        return batch
    return F.interpolate(
        batch, whole, mode="bilinear", align_corners=False, antialias=True
    )


def whole_size(module: nn.Module, size: Sequence[int]) -> tuple[int, int]:
    """Return the nearest size (h, w) that is a multiple of the patch size."""
    ratio = patch_ratio(module)
    height, width = (max(1, round(n / r)) * r for n, r in zip(size, ratio, strict=True))
    return height, width
