"""Scores of training samples, by searching for few of their patches."""

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skpatchcore._bank._search import BankSearch
from skpatchcore._utils import Samples, reduce_patches

# Stands for a bank row near a patch where none is known.
UNKNOWN = -1
_FIRST_SEARCHED = 4


def score_training(
    search: BankSearch,
    samples: Samples,
    picks: NDArray,
    *,
    n_neighbors: int,
    reduction,
    reweight: int | None,
    verbose: int,
) -> tuple[NDArray, NDArray]:
    """Return score_samples and the largest patch distance of training samples.

    Parameters
    ----------
    picks : ndarray of shape (n_patches,), int64
        A bank row near each patch, or UNKNOWN.
    """
    known = np.flatnonzero(picks != UNKNOWN)
    # In a window, only the nearest pick is sure to be allowed.
    bounded = n_neighbors == 1 or samples.cells is None
    if len(known) == 0 or reduction != "max" or not bounded:
        scores, patch_scores, _ = search.score(
            samples, n_neighbors, reduction, reweight
        )
        return scores, reduce_patches(patch_scores, samples.offsets, "max")

    def query(rows):
        cells = None if samples.cells is None else samples.cells[rows]
        distances, found = search.query(samples.patches[rows], cells, n_neighbors)
        return distances.mean(axis=1), found[:, 0]

    bounds = np.full(len(picks), np.inf)
    bounds[known] = search.bound_scores(
        samples.take(known).patches, picks[known], n_neighbors
    )
    n_samples = len(samples.offsets) - 1
    with tqdm(total=n_samples, desc="training scores", disable=not verbose) as bar:
        farthest, rows, largest = farthest_patches(
            query, bounds, samples.offsets, bar.update
        )
    scores = largest
    if reweight is not None:
        patches = samples.patches[farthest]
        scores = largest * search.reweighting(patches, largest, rows, reweight)
    return -scores, largest


def farthest_patches(query, bounds, offsets, finished=lambda n: None):
    """Find the patch of each sample that is farthest from the bank.

    Patches are searched by falling upper bound; a sample is done when the largest
    distance found reaches the next bound. That takes a few searches a sample.

    Parameters
    ----------
    query : callable
        Rows of patches -> their scores (n,) and nearest bank rows (n,).
    bounds : ndarray of shape (n_patches,)
        Upper bounds of the scores.
    offsets : ndarray of shape (n_samples + 1,)
    finished : callable
        Is told how many more samples are done.

    Returns
    -------
    farthest, rows, distances : ndarray of shape (n_samples,)
        Row of the patch, bank row nearest to it, and its score.
    """
    sample = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    by_bound = np.lexsort((-bounds, sample))
    best = np.full((3, len(offsets) - 1), -1.0)
    position, step = offsets[:-1].copy(), _FIRST_SEARCHED
    active = np.arange(len(best[0]))
    while len(active):
        stop = np.minimum(position[active] + step, offsets[active + 1])
        ranks = np.concatenate(
            [np.arange(*ends) for ends in zip(position[active], stop, strict=True)]
        )
        subset = by_bound[ranks]
        distances, rows = query(subset)
        _keep_largest(best, sample[subset], subset, rows, distances)
        position[active] = stop
        unfinished = active[stop < offsets[active + 1]]
        next_bounds = bounds[by_bound[position[unfinished]]]
        unfinished = unfinished[best[2, unfinished] < next_bounds]
        finished(len(active) - len(unfinished))
        active = unfinished
        step *= 2
    farthest, rows, distances = best
    return farthest.astype(np.int64), rows.astype(np.int64), distances


def _keep_largest(best, sample, patches, rows, distances) -> None:
    """Update (patch, bank row, distance) per sample with newly searched patches."""
    order = np.lexsort((-patches, distances))
    # Later assignments win, so the largest distance comes last.
    sample, patches, rows = sample[order], patches[order], rows[order]
    distances = distances[order]
    last = np.full(best.shape[1], -1)
    last[sample] = np.arange(len(sample))
    found = np.flatnonzero(last >= 0)
    found = found[distances[last[found]] > best[2, found]]
    best[:, found] = patches[last[found]], rows[last[found]], distances[last[found]]
