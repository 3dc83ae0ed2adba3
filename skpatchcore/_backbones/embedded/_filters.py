"""Colours and oriented energies that complement the embedded backbone's channels."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from skpatchcore._backbones._gabor import OPPONENT, gabor_filters

_N_OCTAVES = 3


class ColorsAndEnergies(nn.Module):
    """Mean colours, and energies of Gabor filters with wavelengths of 4 to 32 pixels.

    Training views differ in lighting, so the learned channels respond weakly to small
    differences of colour, and to details smaller than their stride. These channels are
    those of :class:`~skpatchcore._backbones._gabor.GaborBank`. The finest ones use only
    brightness, at every second pixel; in colour and at every pixel they would take
    longer than the network.
    """

    filters: torch.Tensor
    opponent: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = gabor_filters()
        self.register_buffer("opponent", torch.tensor(OPPONENT), persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        n_orientations = len(filters) // 2
        self.n_channels = n_orientations + _N_OCTAVES * len(OPPONENT) * (
            1 + n_orientations
        )

    def forward(self, images: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        """Return channels (b, 69, *grid) of images (b, 3, h, w)."""
        colors = torch.einsum("oc,bchw->bohw", self.opponent, images)
        channels = [self._energies(colors[:, :1], stride=2)]
        for _ in range(_N_OCTAVES):
            colors = F.avg_pool2d(colors, 2, ceil_mode=True, count_include_pad=False)
            channels += [colors, self._energies(colors)]
        height, width = grid
        pooled = [F.adaptive_avg_pool2d(c, (height, width)) for c in channels]
        return torch.cat(pooled, dim=1)

    def _energies(self, colors: torch.Tensor, stride: int = 1) -> torch.Tensor:
        """Return energies in six orientations, (b, 6 * c, h / stride, w / stride)."""
        margin = self.filters.shape[-1] // 2
        planes = colors.contiguous().flatten(0, 1)[:, None]
        padded = F.pad(planes, (margin,) * 4, mode="replicate")
        even, odd = F.conv2d(padded, self.filters, stride=stride).chunk(2, dim=1)
        energies = (even.square() + odd.square() + 1e-8).sqrt()
        return energies.unflatten(0, colors.shape[:2]).flatten(1, 2)
