"""Turn layer maps into patch features: neighbourhoods, alignment, layer weights."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import entr
from torch.nn import functional as F

from skpatchcore._utils import own_torch_state

# Most patches for the covariances of layers, drawn evenly.
MAX_BALANCE_PATCHES = 20_000
_TINY = np.finfo(np.float64).tiny


@own_torch_state()
def describe(
    maps: Sequence[torch.Tensor],
    *,
    patch_size: int,
    patch_stride: int,
    descriptor: str | int,
    layer_weights: Sequence[float],
) -> torch.Tensor:
    """Return patch features (b, d, h, w) from layer maps (b, c_i, h_i, w_i)."""
    if isinstance(descriptor, str):
        centered = descriptor == "centered"
        maps = [
            average_neighborhood(m, patch_size, patch_stride, centered and i == 0)
            for i, m in enumerate(maps)
        ]
    else:
        maps = [
            pool_neighborhood(m, patch_size, patch_stride, descriptor) for m in maps
        ]
    grid = maps[0].shape[-2:]
    features = torch.cat([upsample(m, grid) for m in maps], dim=1)
    if set(layer_weights) != {1.0}:
        scale = np.repeat(layer_weights, [m.shape[1] for m in maps])
        features = features * features.new_tensor(scale)[:, None, None]
    return (
        features if isinstance(descriptor, str) else adaptive_pool(features, descriptor)
    )


def average_neighborhood(
    features: torch.Tensor, patch_size: int, stride: int, centered: bool = False
) -> torch.Tensor:
    """Return the mean over the window of each position, padded with zeros.

    With `centered`, the centre of the window counts twice, which is the effect of the
    authors' adaptive pooling for maps of 512 channels.
    """
    mean = F.avg_pool2d(features, patch_size, stride, padding=patch_size // 2)
    if not centered:
        return mean
    n_positions = patch_size**2
    centers = features[:, :, ::stride, ::stride]
    return (n_positions * mean + centers) / (n_positions + 1)


def balance_layers(patches: np.ndarray, n_channels: Sequence[int]) -> tuple[float, ...]:
    """Return a weight for each layer's block of columns, from training patches.

    The total variance V of a block is the trace of its covariance. Its effective rank
    is the exponential of the entropy of the normalised eigenvalues of the covariance
    (Roy and Vetterli, "The effective rank", EUSIPCO 2007), that is, the number of
    directions in which normal patches vary. The weight of a layer has two factors:
    sqrt(V_1 / V), which gives it the variance of the first layer, and the ratio of its
    effective rank to that of the first layer, limited to [1/2, 1]. A layer that varies
    in few directions is coarse, and would blur maps more than it would help.

    Parameters
    ----------
    patches : ndarray of shape (n_patches, d)
    n_channels : sequence of int
        Width of each layer's block; their sum is d.

    Returns
    -------
    weights : tuple of float
        The first weight is 1. All are 1 if a layer does not vary.
    """
    ends = np.cumsum(n_channels)[:-1]
    blocks = np.split(patches.astype(np.float64), ends, axis=1)
    variances, ranks = zip(*map(_variance_and_rank, blocks), strict=True)
    if min(variances) == 0:
        return (1.0,) * len(blocks)
    return tuple(
        float(np.sqrt(variances[0] / variance) * np.clip(rank / ranks[0], 0.5, 1))
        for variance, rank in zip(variances, ranks, strict=True)
    )


def _variance_and_rank(block: np.ndarray) -> tuple[float, float]:
    """Return the total variance of a block (n, c), and its effective rank."""
    centered = block - block.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(centered.T @ centered / len(block))
    eigenvalues = eigenvalues[eigenvalues > 0]
    variance = float(eigenvalues.sum())
    return variance, float(np.exp(entr(eigenvalues / max(variance, _TINY)).sum()))


def pool_neighborhood(
    features: torch.Tensor, patch_size: int, stride: int, length: int
) -> torch.Tensor:
    """Pool each position's flattened window (c * patch_size^2) to `length` channels.

    This is the first half of the authors' descriptor (``MeanMapper`` in their code).
    Windows are unfolded one image at a time, because they take patch_size^2 times the
    memory of the map.
    """
    pooled = []
    for image in features:
        windows = F.unfold(
            image[None], patch_size, stride=stride, padding=patch_size // 2
        )
        pooled.append(F.adaptive_avg_pool1d(windows.transpose(1, 2), length))
    grid = [(size - 1) // stride + 1 for size in features.shape[-2:]]
    return torch.cat(pooled).transpose(1, 2).unflatten(2, grid)


def adaptive_pool(features: torch.Tensor, length: int) -> torch.Tensor:
    """Pool the channels of (b, c, h, w) to `length`, as the authors' ``Aggregator``."""
    flat = features.flatten(2).transpose(1, 2)
    pooled = F.adaptive_avg_pool1d(flat, length).transpose(1, 2)
    return pooled.unflatten(2, features.shape[-2:])


def upsample(features: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Resize maps bilinearly to `grid`."""
    if features.shape[-2:] == grid:
        return features
    return F.interpolate(features, grid, mode="bilinear", align_corners=False)
