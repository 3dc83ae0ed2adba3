"""Contrastive losses at corresponding points, and of whole views."""

import torch
from torch.nn import functional as F

from training.views import Pairs

FINE_WEIGHT = 0.4
WHOLE_WEIGHT = 0.5
PATCH_SIZE = 3
# In a scene, points nearer than this, in pixels, may well look alike.
NEAR = 20.0
IGNORED = -100


def total_loss(fine, coarse, pairs: Pairs, is_scene, temperature: float):
    """Return the loss of the maps (2 * b, c, h, w) of both views.

    Points of both maps together, of the finer alone (times 0.4), and means over whole
    views of the coarser (times 0.5) have to find their partners in the other view.
    """
    samples = [_sample(layer, pairs.points) for layer in (fine, coarse)]
    blocks = [_standardize(layer) for layer in samples]
    negatives = allowed_negatives(pairs.places, is_scene)
    valid = pairs.valid.flatten()
    both = contrast(torch.cat(blocks, dim=-1), negatives, valid, temperature)
    alone = contrast(blocks[0], negatives, valid, temperature)
    whole = _standardize(coarse.mean(dim=(2, 3)).unflatten(0, (2, -1)))
    n = whole.shape[1]
    others = ~torch.eye(n, dtype=torch.bool, device=whole.device)
    views = contrast(whole, others, others.any(dim=0), temperature)
    return both + FINE_WEIGHT * alone + WHOLE_WEIGHT * views


def contrast(vectors, negatives, valid, temperature: float) -> torch.Tensor:
    """Return the InfoNCE of `vectors` (2, n, d) with their partners, both ways.

    Parameters
    ----------
    vectors : Tensor of shape (2, n, d)
        Row i of the one and row i of the other correspond.
    negatives : Tensor of shape (n, n), bool
        True at (i, j) if j is to be told from i.
    valid : Tensor of shape (n,), bool
        False for rows that are left out altogether.
    temperature : float
        What cosines are divided by.

    Returns
    -------
    loss : Tensor of shape ()
    """
    first, second = F.normalize(vectors, dim=-1)
    logits = first @ second.T / temperature
    usable = negatives & valid & valid[:, None]
    # Nobody's partner is masked, so that no row is empty.
    usable = usable.fill_diagonal_(True)
    logits = logits.masked_fill(~usable, -torch.inf)
    targets = torch.arange(len(logits), device=logits.device).where(valid, IGNORED)
    return 0.5 * (
        F.cross_entropy(logits, targets, ignore_index=IGNORED)
        + F.cross_entropy(logits.T, targets, ignore_index=IGNORED)
    )


def allowed_negatives(places: torch.Tensor, is_scene: torch.Tensor) -> torch.Tensor:
    """Tell which points (b, n, 2) are to be told apart: (b * n, b * n), bool.

    A texture looks the same everywhere; a scene does not, except near by.
    """
    b, n = places.shape[:2]
    image = torch.arange(b, device=places.device).repeat_interleave(n)
    same = image[:, None] == image
    flat = places.flatten(0, 1)
    far = (flat[:, None] - flat).square().sum(dim=-1) > NEAR**2
    return ~same | (far & is_scene[image][:, None])


def _sample(layer: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return neighbourhood means (2, b * n, c) at `points` (2, b, n, 2)."""
    means = F.avg_pool2d(layer, PATCH_SIZE, 1, PATCH_SIZE // 2)
    at_points = F.grid_sample(means, points.flatten(0, 1)[:, None], align_corners=False)
    return at_points[:, :, 0].mT.unflatten(0, (2, -1)).flatten(1, 2)


def _standardize(vectors: torch.Tensor) -> torch.Tensor:
    """Bring channels to mean 0 and equal variance; all of them sum up to 1."""
    flat = vectors.flatten(0, 1)
    deviation = flat.std(dim=0, correction=0) + 1e-3
    return (vectors - flat.mean(dim=0)) / deviation / vectors.shape[-1] ** 0.5
