"""The first three stages of a narrow ResNet-18, for training and for inference."""

import torch
from torch import nn

STEM_WIDTH = 32
# Early maps are large, so more channels there cost more time than they are worth.
STAGE_WIDTHS = (48, 128, 256)
STAGE_DEPTHS = (1, 2, 2)


class Trunk(nn.Module):
    """Basic residual blocks in stages of stride 4, 8 and 16.

    The stem has two convolutions instead of ResNet-18's convolution and max-pooling.

    Parameters
    ----------
    normed : bool, default=True
        Whether batch norms follow convolutions, as in training. Otherwise the norms are
        folded into the convolutions, which then have offsets.
    """

    def __init__(self, *, normed: bool = True):
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(3, STEM_WIDTH, 7, 2, normed),
            nn.ReLU(inplace=True),
            *_convolution(STEM_WIDTH, STAGE_WIDTHS[0], 3, 2, normed),
            nn.ReLU(inplace=True),
        )
        self.stage1 = _stage(0, normed)
        self.stage2 = _stage(1, normed)
        self.stage3 = _stage(2, normed)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the maps of stage 2 and 3, (b, 128, h / 8, w / 8) and (b, 256, ...).

        `images` (b, 3, h, w) are normalised to about zero mean and unit variance.
        """
        fine = self.stage2(self.stage1(self.stem(images)))
        return fine, self.stage3(fine)


class Block(nn.Module):
    """Two convolutions with a shortcut (He et al., CVPR 2016)."""

    def __init__(self, n_in: int, n_out: int, stride: int, normed: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(n_in, n_out, 3, stride, normed),
            nn.ReLU(inplace=True),
            *_convolution(n_out, n_out, 3, 1, normed),
        )
        self.shortcut: nn.Module = nn.Identity()
        if n_in != n_out or stride > 1:
            convolution = _convolution(n_in, n_out, 1, stride, normed)
            self.shortcut = nn.Sequential(*convolution)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (b, n_out, h / stride, w / stride)."""
        return torch.relu_(self.residual(x) + self.shortcut(x))


def _stage(i: int, normed: bool) -> nn.Sequential:
    n_in, n_out = STAGE_WIDTHS[max(i - 1, 0)], STAGE_WIDTHS[i]
    blocks = [Block(n_in, n_out, 2 if i else 1, normed)]
    blocks += [Block(n_out, n_out, 1, normed) for _ in range(STAGE_DEPTHS[i] - 1)]
    return nn.Sequential(*blocks)


def _convolution(
    n_in: int, n_out: int, size: int, stride: int, normed: bool
) -> tuple[nn.Module, ...]:
    """Return a convolution and its norm, or an identity if the norm is folded."""
    convolution = nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=not normed)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(n_out) if normed else nn.Identity()
