"""The embedded backbone: trunk, filters, readouts and weights."""

from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from skpatchcore._backbones.embedded._byte_planes import join_bytes
from skpatchcore._backbones.embedded._filters import ColorsAndEnergies
from skpatchcore._backbones.embedded._trunk import STAGE_WIDTHS, Trunk

WEIGHTS_PATH = Path(__file__).with_name("embedded.safetensors")
MEAN, STD = 0.5, 0.25
# Two other groups of channels together weigh as much as the learned ones.
_OTHERS = 0.5**0.5
# More of the third stage blurs maps and hides small defects (see the model card).
_COARSE = 0.6


class EmbeddedBackbone(nn.Module):
    """A small network whose weights come with the package.

    It has two layers for patch features. "layer2" has a stride of 8 pixels, 128 learned
    channels, 69 channels of filters, and the means of 48 channels learned at a stride
    of 4 pixels. "layer3" has a stride of 16 pixels and 256 learned channels. Both are
    standardised and balanced, so that Euclidean distances compare them well.
    """

    pretrained_cfg = {"mean": (MEAN,) * 3, "std": (STD,) * 3}
    # layer_weights="auto" learns nothing for these layers.
    balanced_layers = ("layer2", "layer3")

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(normed=False)
        self.filters = ColorsAndEnergies()
        self.layer2 = Readout(
            (STAGE_WIDTHS[1], 1.0),
            (self.filters.n_channels, _OTHERS),
            (STAGE_WIDTHS[0], _OTHERS),
        )
        self.layer3 = Readout((STAGE_WIDTHS[2], _COARSE))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the map of "layer3" (b, 256, h / 16, w / 16)."""
        shallow = self.trunk.stage1(self.trunk.stem(images))
        fine = self.trunk.stage2(shallow)
        grid = fine.shape[-2:]
        # A hook reads the result if this layer is requested.
        self.layer2(
            fine, self.filters(images, grid), F.adaptive_avg_pool2d(shallow, grid)
        )
        return self.layer3(self.trunk.stage3(fine))


class Readout(nn.Module):
    """Standardise channels by statistics of procedural images, and fix their length.

    Training compares cosines of standardised channels. For vectors of the same length,
    Euclidean distances have the same order as cosines.

    Parameters
    ----------
    *parts : (int, float)
        Number of channels of each map, and the length to scale their vectors to.
    """

    def __init__(self, *parts: tuple[int, float]):
        super().__init__()
        self.widths, self.lengths = zip(*parts, strict=True)
        self.center = nn.Parameter(torch.zeros(sum(self.widths)))
        self.factor = nn.Parameter(torch.ones(sum(self.widths)))

    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        """Return (b, sum(widths), h, w)."""
        center, factor = self.center[:, None, None], self.factor[:, None, None]
        standard = (torch.cat(maps, dim=1) - center) * factor
        parts = zip(standard.split(self.widths, dim=1), self.lengths, strict=True)
        return torch.cat([n * F.normalize(part, dim=1) for part, n in parts], dim=1)


def load_embedded() -> EmbeddedBackbone:
    """Return the backbone with the weights of the package."""
    network = EmbeddedBackbone()
    network.load_state_dict(join_bytes(safetensors.torch.load_file(WEIGHTS_PATH)))
    return network


def random_embedded(seed: int) -> EmbeddedBackbone:
    """Return the backbone with random weights."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs' generators, permanently.
        torch.default_generator.manual_seed(seed)
        return EmbeddedBackbone()
