"""Score training samples by searching the bank for only a few of their patches.

The score of a sample (reduction "max") is that of its farthest patch. The sampler has
already found a bank row near each training patch, and the distance to any bank row is
an upper bound of the distance to the nearest one. So a patch whose upper bound is below
the score of another patch of the sample cannot be the farthest, and is never searched.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skpatchcore._bank._search import BankSearch
from skpatchcore._utils import Samples, reduce_patches

# Marks a patch for which no near bank row is known.
UNKNOWN = -1
# Patches of each sample that are searched first. The upper bounds are close to the
# distances, so the farthest patch is usually one of the first few.
_FIRST_SEARCHED = 4

# Rows of patches -> their scores (n,) and nearest bank rows (n,).
Query: TypeAlias = Callable[[NDArray], tuple[NDArray, NDArray]]


def score_training(
    search: BankSearch,
    samples: Samples,
    near_rows: NDArray[np.int64],
    *,
    n_neighbors: int,
    reduction: str | float,
    reweight: int | None,
    verbose: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return score_samples and the largest patch distance of training samples.

    The result equals that of searching for all patches. That is also what is done if
    there are no bounds, or if the score does not depend on the farthest patch alone.

    Parameters
    ----------
    search : BankSearch
    samples : Samples
    near_rows : ndarray of shape (n_patches,), int64
        A bank row near each patch, or UNKNOWN.
    n_neighbors, reduction, reweight, verbose
        Parameters of the memory bank.

    Returns
    -------
    scores : ndarray of shape (n_samples,), float64
    largest : ndarray of shape (n_samples,), float64
    """
    known = np.flatnonzero(near_rows != UNKNOWN)
    # A bound for k neighbours needs k bank rows. In a window, only the nearest selected
    # row is sure to be allowed.
    bounded = n_neighbors == 1 or samples.positions is None
    if len(known) == 0 or reduction != "max" or not bounded:
        scores, patch_scores, _ = search.score(
            samples, n_neighbors, reduction, reweight
        )
        return scores, reduce_patches(patch_scores, samples.offsets, "max")

    def query(rows: NDArray) -> tuple[NDArray, NDArray]:
        positions = None if samples.positions is None else samples.positions[rows]
        distances, found = search.query(samples.patches[rows], positions, n_neighbors)
        return distances.mean(axis=1), found[:, 0]

    # A patch without a known row has no bound, so it is searched first.
    bounds = np.full(len(near_rows), np.inf)
    bounds[known] = search.bound_scores(
        samples.take(known).patches, near_rows[known], n_neighbors
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


def farthest_patches(
    query: Query,
    bounds: NDArray[np.float64],
    offsets: NDArray[np.int64],
    finished: Callable[[int], Any] = lambda n: None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Find the patch of each sample that is farthest from the bank.

    The patches of a sample are searched in the order of falling upper bounds.

    **Invariant.** `best` holds the farthest patch among those searched so far, and all
    patches not searched yet have bounds of at most the next one. So as soon as the
    largest score reaches the next bound, no other patch can be farther, and the sample
    is finished.

    All unfinished samples are searched together, and the number of patches per sample
    doubles from round to round. So the number of rounds is logarithmic, and at most
    about twice as many patches are searched as necessary, or `_FIRST_SEARCHED`.

    Parameters
    ----------
    query : callable
        Maps rows of patches to their scores (n,) and nearest bank rows (n,).
    bounds : ndarray of shape (n_patches,), float64
        Upper bounds of the scores.
    offsets : ndarray of shape (n_samples + 1,), int64
        Where the patches of each sample begin, and the end of the last one.
    finished : callable
        Called with the number of samples that each round finishes.

    Returns
    -------
    farthest : ndarray of shape (n_samples,), int64
        Row of the farthest patch.
    rows : ndarray of shape (n_samples,), int64
        The bank row nearest to it.
    distances : ndarray of shape (n_samples,), float64
        Its score.
    """
    sample = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    by_bound = np.lexsort((-bounds, sample))
    # Patch, bank row and score per sample. Scores are never negative, so any patch is
    # farther than -1.
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


def _keep_largest(
    best: NDArray[np.float64],
    sample: NDArray,
    patches: NDArray,
    rows: NDArray,
    distances: NDArray,
) -> None:
    """Update `best` (3, n_samples) with newly searched patches.

    Its rows are the patch, bank row and distance of each sample.
    """
    order = np.lexsort((-patches, distances))
    # The last of several assignments counts, so the largest distance must come last.
    sample, patches, rows = sample[order], patches[order], rows[order]
    distances = distances[order]
    last = np.full(best.shape[1], -1)
    last[sample] = np.arange(len(sample))
    found = np.flatnonzero(last >= 0)
    found = found[distances[last[found]] > best[2, found]]
    best[:, found] = patches[last[found]], rows[last[found]], distances[last[found]]
