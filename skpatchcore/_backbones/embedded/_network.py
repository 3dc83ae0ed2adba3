"""The embedded backbone as it is used: trunk, filters, readouts, and weights."""

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
# Together, the other channels of a layer weigh as much as the learned ones.
_BESIDE = 0.5**0.5
# More of the third stage blurs maps and hides small defects (see the model card).
_COARSE = 0.6


class EmbeddedBackbone(nn.Module):
    """A small network whose weights come with the package.

    Its layers for patch features are "layer2", at a stride of 8 pixels: 128 learned
    channels, and in addition 69 of filters and the means of 48 learned at a stride of
    4; and "layer3", 256 learned channels at a stride of 16. Both are standardised and
    weighed against each other: what they give is compared by Euclidean distances.
    """

    pretrained_cfg = {"mean": (MEAN,) * 3, "std": (STD,) * 3}
    # Of these, nothing is left for layer_weights="auto" to learn.
    balanced_layers = ("layer2", "layer3")

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(normed=False)
        self.filters = ColorsAndEnergies()
        self.layer2 = Readout(
            (STAGE_WIDTHS[1], 1.0),
            (self.filters.n_channels, _BESIDE),
            (STAGE_WIDTHS[0], _BESIDE),
        )
        self.layer3 = Readout((STAGE_WIDTHS[2], _COARSE))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the map of "layer3" (b, 256, h / 16, w / 16)."""
        shallow = self.trunk.stage1(self.trunk.stem(images))
        fine = self.trunk.stage2(shallow)
        grid = fine.shape[-2:]
        # The result is read by a hook, if this layer is requested.
        self.layer2(
            fine, self.filters(images, grid), F.adaptive_avg_pool2d(shallow, grid)
        )
        return self.layer3(self.trunk.stage3(fine))


class Readout(nn.Module):
    """Channels standardised by what they are on procedural images, at fixed length.

    In training, cosines of standardised channels are compared; among vectors of one
    length Euclidean distances order like cosines.

    Parameters
    ----------
    *parts : (int, float)
        Number of channels of each map, and the length that their vectors get.
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
    """Return the backbone with random weights, to be compared with or overwritten."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs' generators too, for good.
        torch.default_generator.manual_seed(seed)
        return EmbeddedBackbone()
