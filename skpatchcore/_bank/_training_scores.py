"""Score training samples against the bank, each without what it added itself.

`Support` says how much each bank row counts for a sample. A patch is searched for more
and more neighbours, until enough of them count.

The score of a sample (reduction "max") is that of its farthest patch, and most patches
need not be searched to find it. The sampler has already found a bank row near each
training patch, and if that row counts in full, the distance to it is an upper bound of
the score of the patch. So a patch whose upper bound is below the score of another patch
of the sample cannot be the farthest, and is never searched.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skpatchcore._bank._search import BankSearch
from skpatchcore._bank._support import Support
from skpatchcore._utils import Samples, reduce_patches

# Marks a patch for which no near bank row is known.
UNKNOWN = -1
# Patches of each sample that are searched first. The upper bounds are close to the
# distances, so the farthest patch is usually one of the first few.
_FIRST_SEARCHED = 4

# Rows of patches -> their scores (n,) and nearest bank rows (n,).
Query: TypeAlias = Callable[[NDArray], tuple[NDArray, NDArray]]


class TrainingSearch:
    """Search the bank for training patches, without what their samples added to it.

    The score of a patch with k neighbours is the mean of k distances. The j-th is the
    distance within which the weights of rows add up to j, or to their total if that is
    less. For weights of 1, these are the k nearest rows.

    Parameters
    ----------
    search : BankSearch
    support : Support
        Weights of the bank rows.
    samples : Samples
        The patches to search for.
    groups : ndarray of shape (n_patches,), int64
        The sample that each patch belongs to, as numbered in `support`.
    n_neighbors : int
    """

    def __init__(
        self,
        search: BankSearch,
        support: Support,
        samples: Samples,
        groups: NDArray[np.int64],
        n_neighbors: int,
    ) -> None:
        self.samples, self.n_neighbors = samples, n_neighbors
        self._search, self._support, self._groups = search, support, groups
        wanted = np.arange(1, n_neighbors + 1) * support.n_samples
        self._targets = np.minimum(wanted, support.totals[groups][:, None])

    def query(self, patches: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
        """Return scores (n,) and matched bank rows (n,) of the patches at rows (n,)."""
        scores = np.empty(len(patches))
        matched = np.empty(len(patches), dtype=np.int64)
        pending = np.arange(len(patches))
        if self.samples.positions is not None:
            allowed = self._search.n_allowed(self.samples.positions[patches])
            pending = self._extend(patches, pending, scores, matched, allowed)
        everything = np.full(len(patches), len(self._search.bank))
        self._extend(patches, pending, scores, matched, everything, windowed=False)
        return scores, matched

    def bounds(self, near_rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return upper bounds of the scores of all patches, infinite without one.

        `near_rows` (n_patches,) are bank rows near the patches, or UNKNOWN.
        """
        bounds = np.full(len(near_rows), np.inf)
        known = np.flatnonzero(near_rows != UNKNOWN)
        weights = self._support.weights(near_rows[known], self._groups[known])
        known = known[weights >= self._targets[known, 0]]
        # In a window, only the nearest selected row is sure to be allowed, and a bound
        # for k neighbours needs k rows.
        if self.n_neighbors > 1 and self.samples.positions is not None:
            return bounds
        bounds[known] = self._search.bound_scores(
            self.samples.patches,
            known,
            near_rows[known],
            self.n_neighbors,
            self._counts_in_full,
        )
        return bounds

    def reweighting(
        self, patches: NDArray, distances: NDArray, matched: NDArray, b: int
    ) -> NDArray[np.float64]:
        """Return the factor of eq. 7 for the patches at rows (n,).

        The b neighbours of the matched rows are those that count for the sample.
        """
        groups, n_found = self._groups[patches][:, None], b
        while True:
            near = self._search.neighbors_of_rows(matched, n_found)
            counting = self._support.weights(near, groups) > 0
            if n_found == len(self._search.bank) or (counting.sum(axis=1) >= b).all():
                break
            n_found = min(2 * n_found, len(self._search.bank))
        # Rows that count come first; `near` is ascending by distance.
        order = np.argsort(~counting, axis=1, kind="stable")[:, :b]
        return self._search.reweighting(
            self.samples.patches[patches],
            distances,
            np.take_along_axis(near, order, axis=1),
            np.take_along_axis(counting, order, axis=1),
        )

    def _counts_in_full(self, rows: NDArray, patches: NDArray) -> NDArray[np.bool_]:
        groups = self._groups[patches][:, None]
        return self._support.weights(rows, groups) >= self._support.n_samples

    def _extend(
        self,
        patches: NDArray,
        pending: NDArray,
        scores: NDArray,
        matched: NDArray,
        limits: NDArray,
        *,
        windowed: bool = True,
    ) -> NDArray[np.int64]:
        """Search for more and more neighbours, each patch up to its limit.

        Fills `scores` and `matched`. Returns those of the `pending` patches that are
        unfinished at their limit.
        """
        unfinished = [pending[limits[pending] == 0]]
        pending = pending[limits[pending] > 0]
        # One more than needed, since the nearest row is often the patch itself.
        n_found = self.n_neighbors + 1
        while len(pending):
            sizes = np.minimum(n_found, limits[pending])
            remaining = []
            for size in np.unique(sizes).tolist():
                part = pending[sizes == size]
                done, score, row = self._match(patches[part], size, windowed)
                scores[part[done]], matched[part[done]] = score[done], row[done]
                remaining.append(part[~done])
            pending = np.concatenate(remaining)
            at_limit = limits[pending] <= n_found
            unfinished.append(pending[at_limit])
            pending, n_found = pending[~at_limit], 2 * n_found
        return np.concatenate(unfinished)

    def _match(
        self, patches: NDArray, n_found: int, windowed: bool
    ) -> tuple[NDArray, NDArray, NDArray]:
        """Return whether each patch is finished, its score, and its matched row."""
        distances, rows = self._find(patches, n_found, windowed)
        groups = self._groups[patches][:, None]
        reached = self._support.weights(rows, groups).cumsum(axis=1)
        targets = self._targets[patches]
        # Position of the first row with which the weights reach each target.
        places = (reached[:, :, None] < targets[:, None]).sum(axis=1)
        done = reached[:, -1] >= targets[:, -1]
        places = places.clip(max=n_found - 1)
        found = np.take_along_axis(distances, places, axis=1)
        row = np.take_along_axis(rows, places[:, :1], axis=1)[:, 0]
        return done, found.mean(axis=1), row

    def _find(
        self, patches: NDArray, n_found: int, windowed: bool
    ) -> tuple[NDArray, NDArray]:
        samples = self.samples
        if windowed and samples.positions is not None:
            positions = samples.positions[patches]
            return self._search.query(samples.patches[patches], positions, n_found)
        everything = np.arange(len(samples.patches))
        if samples.positions is None and np.array_equal(patches, everything):
            # A cache may hold the neighbours of whole samples.
            return self._search.query_once(samples, n_found)
        return self._search.query(samples.patches[patches], None, n_found)


def score_training(
    search: TrainingSearch,
    near_rows: NDArray[np.int64],
    *,
    reduction: str | float,
    reweight: int | None,
    verbose: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return score_samples and the largest patch score of training samples.

    The result equals that of searching for all patches. That is also what is done if
    the score does not depend on the farthest patch alone.

    Parameters
    ----------
    search : TrainingSearch
    near_rows : ndarray of shape (n_patches,), int64
        A bank row near each patch, or UNKNOWN.
    reduction, reweight, verbose
        Parameters of the memory bank.

    Returns
    -------
    scores : ndarray of shape (n_samples,), float64
    largest : ndarray of shape (n_samples,), float64
    """
    offsets = search.samples.offsets
    if reduction != "max":
        patch_scores, _ = search.query(np.arange(offsets[-1]))
        scores = reduce_patches(patch_scores, offsets, reduction)
        return -scores, reduce_patches(patch_scores, offsets, "max")
    bounds = search.bounds(near_rows)
    with tqdm(
        total=len(offsets) - 1, desc="training scores", disable=not verbose
    ) as bar:
        farthest, rows, largest = farthest_patches(
            search.query, bounds, offsets, bar.update
        )
    scores = largest
    if reweight is not None:
        scores = largest * search.reweighting(farthest, largest, rows, reweight)
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
