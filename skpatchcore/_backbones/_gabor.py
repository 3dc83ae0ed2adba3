"""A bank of Gabor filters, a backbone without learned weights."""

import math

import torch
from torch import nn
from torch.nn import functional as F

_N_ORIENTATIONS = 6
_WAVELENGTH = 4.0
_BANDWIDTH = 2.0
# Luminance, blue against yellow, red against green.
OPPONENT = (
    (1 / 3, 1 / 3, 1 / 3),
    (-0.5, -0.5, 1.0),
    (1.0, -1.0, 0.0),
)


class GaborBank(nn.Module):
    """Energies of oriented filters and mean colours, at four scales.

    It is meant for demonstrations and tests without downloads. Its layers are "fine"
    (wavelengths of 4 and 8 pixels) and "coarse" (16 and 32 pixels), both with a stride
    of 8 pixels.

    At each scale, pairs of even and odd Gabor filters in six orientations are applied
    to luminance and two opponent colours. The square roots of their energies and the
    three mean colours are the 21 channels of a scale.
    """

    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

    def __init__(self) -> None:
        super().__init__()
        self.fine = GaborScales(range(2))
        self.coarse = GaborScales(range(2, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the channels of both layers, concatenated: (b, 84, h / 8, w / 8)."""
        return torch.cat([self.fine(images), self.coarse(images)], dim=1)


class GaborScales(nn.Module):
    """Channels of several octaves, resized to a stride of 8 pixels."""

    filters: torch.Tensor
    opponent: torch.Tensor

    def __init__(self, octaves: range, stride: int = 8):
        super().__init__()
        self.octaves = octaves
        self.stride = stride
        self.register_buffer("opponent", torch.tensor(OPPONENT), persistent=False)
        self.register_buffer("filters", gabor_filters(), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return maps (b, 21 * len(octaves), h, w) with one position every 8 pixels."""
        grid = [max(1, size // self.stride) for size in images.shape[-2:]]
        colors = torch.einsum("oc,bchw->bohw", self.opponent, images)
        return torch.cat([self._octave(colors, o, grid) for o in self.octaves], dim=1)

    def _octave(
        self, colors: torch.Tensor, octave: int, grid: list[int]
    ) -> torch.Tensor:
        size = [max(1, s >> octave) for s in colors.shape[-2:]]
        small = F.interpolate(
            colors, size, mode="bilinear", antialias=True, align_corners=False
        )
        margin = self.filters.shape[-1] // 2
        planes = F.pad(small.flatten(0, 1)[:, None], (margin,) * 4, mode="replicate")
        even, odd = F.conv2d(planes, self.filters).chunk(2, dim=1)
        energy = (even.square() + odd.square() + 1e-8).sqrt()
        energy = energy.unflatten(0, small.shape[:2]).flatten(1, 2)
        channels = torch.cat([small, energy], dim=1)
        return F.interpolate(
            channels, grid, mode="bilinear", antialias=True, align_corners=False
        )


def gabor_filters() -> torch.Tensor:
    """Return filters of zero mean (2 * n_orientations, 1, 9, 9): even, then odd."""
    radius = math.ceil(2 * _BANDWIDTH)
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    envelope = torch.exp(-(x**2 + y**2) / (2 * _BANDWIDTH**2))
    numbers = torch.arange(_N_ORIENTATIONS, dtype=torch.float32)
    angles = numbers * math.pi / _N_ORIENTATIONS
    along = [x * math.cos(angle) + y * math.sin(angle) for angle in angles]
    phases = [2 * math.pi * distance / _WAVELENGTH for distance in along]
    waves = [torch.cos(p) for p in phases] + [torch.sin(p) for p in phases]
    filters = torch.stack([envelope * (wave - _mean(wave, envelope)) for wave in waves])
    return (filters / filters.square().sum(dim=(1, 2), keepdim=True).sqrt())[:, None]


def _mean(wave: torch.Tensor, envelope: torch.Tensor) -> torch.Tensor:
    return (wave * envelope).sum() / envelope.sum()
