"""The patch of each sample that is farthest from the bank, by few searches."""

import numpy as np

_FIRST_SEARCHED = 4


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
