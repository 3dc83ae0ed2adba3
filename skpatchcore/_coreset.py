"""Coreset subsampling of patch features: the k-centre greedy and its plain rivals."""

import bisect
import functools
from collections.abc import Iterator
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, _fit_context
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.validation import validate_data
from tqdm import tqdm

from skpatchcore._backbone import resolve_device
from skpatchcore._cache import MEMORY_CONSTRAINT, Cache, check_cache, content_key
from skpatchcore._neighbors import as_tensor, full_precision, paired_distances

# Elements of a temporary distance block: 32 MB in float32.
_BLOCK_ELEMENTS = 2**23
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 512


class Coreset(NamedTuple):
    """Picks in order, and what they cover; distances are Euclidean, not squared."""

    indices: np.ndarray
    radii: np.ndarray
    distances: np.ndarray
    nearest: np.ndarray


class CoresetSampler(BaseEstimator):
    """Choose the rows of a matrix that a memory bank keeps.

    PatchCore keeps a fraction of all training patches that covers the others well: a
    k-centre greedy picks, again and again, the row farthest from those picked so far
    (Roth et al., 2022, Algorithm 1). The picks are a prefix sequence: the first m of
    them are the coreset of size m; ``radii_`` tells how far the farthest row is then.

    It is no transformer, since it changes the number of rows; like the samplers of
    imbalanced-learn it has ``fit_resample`` and ``sample_indices_``.

    Parameters
    ----------
    fraction : float or int, default=0.1
        Share of rows to keep, in (0, 1], at least one row; or, as an int, their number.

    method : {"greedy", "random", "none"}, default="greedy"
        - "greedy": k-centre greedy, a 2-approximation of the smallest cover radius.
        - "random": rows drawn uniformly without replacement.
        - "none": every row in its given order; `fraction` is not looked at.

    projection_dim : int or None, default=128
        Rows with more features are taken through a Gaussian random projection to this
        many before distances are computed, as in the paper (Johnson-Lindenstrauss). The
        rows returned are the original ones. None compares the rows as they are.

    n_starts : int, default=10
        The first greedy pick is the row with the largest mean distance to this many
        rows drawn at random, as in the authors' code.

    max_fraction : float, int or None, default=None
        The largest `fraction` that will be asked for, where `memory` is given: picks
        are made up to it at once, and smaller fractions are cut from them. None makes
        as many as `fraction` asks for; a larger fraction later goes on from there.
        Without `memory` nothing is made in advance.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache on disk for the picks: a set of rows is run through once, and all
        fractions are cut from the same run, also in other processes and later. The
        picks are those made without it. With ``random_state=None`` the first draw for a
        set of rows is remembered; a RandomState instance is never looked up. See
        :class:`BoundedMemory`.

    device : str, torch.device or None, default=None
        Where to compute; None is the GPU if there is one, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Draws the starting rows, the projection and the random subset. Pass an int for
        the same picks in every call.

    verbose : int, default=0
        Show a progress bar over the picks if positive.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_selected,), int64
        Rows picked, in the order of picking.

    radii_ : ndarray of shape (n_selected,), float64
        Cover radius after each pick: the largest Euclidean distance from a row to its
        nearest pick, in the space in which distances were compared. For
        ``method="none"`` only the last is known, 0; the others are NaN.

    min_distances_ : ndarray of shape (n_samples,), float64
        Distance of each row to its nearest pick, in the same space.

    nearest_picks_ : ndarray of shape (n_samples,), int64
        Position in ``sample_indices_`` of that nearest pick.

    n_features_in_ : int
        Number of features seen during `fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features, if `X` had names that are all strings.

    See Also
    --------
    PatchMemoryBank : Scores patches by their distance to the rows kept.

    References
    ----------
    Roth, K., Pemula, L., Zepeda, J., Schölkopf, B., Brox, T., Gehler, P. "Towards Total
    Recall in Industrial Anomaly Detection", CVPR 2022, arXiv:2106.08265.

    Gonzalez, T. F. "Clustering to minimize the maximum intercluster distance",
    Theoretical Computer Science 38, 1985.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import CoresetSampler
    >>> X = np.array([[0.0], [1.0], [10.0], [12.0], [5.0]])
    >>> sampler = CoresetSampler(3, n_starts=1, random_state=0).fit(X)
    >>> sampler.sample_indices_
    array([3, 0, 4])
    >>> sampler.radii_
    array([12.,  5.,  2.])
    """

    _parameter_constraints = {
        "fraction": [
            Interval(RealNotInt, 0, 1, closed="right"),
            Interval(Integral, 1, None, closed="left"),
        ],
        "method": [StrOptions({"greedy", "random", "none"})],
        "projection_dim": [Interval(Integral, 1, None, closed="left"), None],
        "n_starts": [Interval(Integral, 1, None, closed="left")],
        "max_fraction": [
            Interval(RealNotInt, 0, 1, closed="right"),
            Interval(Integral, 1, None, closed="left"),
            None,
        ],
        "memory": MEMORY_CONSTRAINT,
        "device": [str, torch.device, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        fraction=0.1,
        *,
        method="greedy",
        projection_dim=128,
        n_starts=10,
        max_fraction=None,
        memory=None,
        device=None,
        random_state=None,
        verbose=0,
    ):
        self.fraction = fraction
        self.method = method
        self.projection_dim = projection_dim
        self.n_starts = n_starts
        self.max_fraction = max_fraction
        self.memory = memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Choose rows of `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), float32 or float64
            Rows to choose from, patch features as a rule.

        y : None
            Ignored, present for API consistency.

        Returns
        -------
        self : CoresetSampler
            Fitted sampler.

        Raises
        ------
        ValueError
            If `fraction` is an int larger than n_samples, or `max_fraction` is smaller
            than `fraction`.
        """
        X = validate_data(self, X, dtype=[np.float32, np.float64])
        n_selected, n_max = self._n_selected(len(X))
        cache = check_cache(self.memory)
        if self.method == "none":
            coreset = _keep_all(len(X))
        elif cache is None or isinstance(self.random_state, np.random.RandomState):
            coreset = self._select(X, n_selected)
        else:
            coreset = self._recall(cache, X, n_selected, n_max)
        self.sample_indices_ = coreset.indices
        self.radii_ = coreset.radii
        self.min_distances_ = coreset.distances
        self.nearest_picks_ = coreset.nearest
        return self

    def fit_resample(self, X, y=None):
        """Choose rows of `X` and return them in the order of picking.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), float32 or float64
            Rows to choose from.

        y : None
            Ignored, present for API consistency.

        Returns
        -------
        X_resampled : ndarray of shape (n_selected, n_features)
            The rows chosen, unchanged.
        """
        self.fit(X)
        # Names were checked in fit; here X need only be sliced.
        X = X.to_numpy() if hasattr(X, "iloc") else np.asarray(X)
        return X[self.sample_indices_]

    def _n_selected(self, n_samples: int) -> tuple[int, int]:
        """Return how many rows to select, and how many may yet be asked for."""
        n_selected = _n_rows("fraction", self.fraction, n_samples)
        if self.max_fraction is None:
            return n_selected, n_selected
        n_max = _n_rows("max_fraction", self.max_fraction, n_samples)
        if n_max < n_selected:
            raise ValueError(
                f"max_fraction={self.max_fraction} must not be smaller than "
                f"fraction={self.fraction}."
            )
        return n_selected, n_max

    def _select(self, X, n_selected: int) -> Coreset:
        X, random_state = self._project(X)
        if self.method == "greedy":
            return self._greedy_run(X, random_state).cut(n_selected)
        picks = random_state.permutation(len(X))[:n_selected]
        with self._progress(total=n_selected) as bar:
            return cover(X, picks, bar.update)

    def _recall(self, cache: Cache, X, n_selected: int, n_max: int) -> Coreset:
        """Take the coreset from the cache, or make it and leave it there."""
        device = resolve_device(self.device)
        params = (self.method, self.projection_dim, self.n_starts, self.random_state)
        run_key = content_key(X, *params, device.type, torch.__version__)
        key = content_key(run_key, n_selected)
        found = cache.get("coresets", key)
        if found is not None:
            return Coreset(*found)
        # Others who want the same run wait for it.
        with cache.claim([run_key], wait=True):
            if self.method == "random":
                coreset = self._select(X, n_selected)
            else:
                run = self._greedy_run(*self._project(X), cache.get("runs", run_key))
                if len(run.picks) < n_selected:
                    run.extend(n_max)
                    cache.put("runs", run_key, run.record())
                coreset = run.cut(n_selected)
            cache.put("coresets", key, tuple(coreset))
        return coreset

    def _project(self, X):
        """Return the rows to compare, and the random state for what comes next."""
        random_state = check_random_state(self.random_state)
        if self.projection_dim is not None and X.shape[1] > self.projection_dim:
            X = GaussianRandomProjection(
                self.projection_dim, random_state=random_state
            ).fit_transform(X)
        return as_tensor(X).to(resolve_device(self.device)), random_state

    def _greedy_run(self, X, random_state, record=None) -> "GreedyRun":
        starts = random_state.randint(len(X), size=self.n_starts)
        return GreedyRun(X, farthest_from(X, starts), record, self._progress)

    def _progress(self, **kwargs):
        return tqdm(desc="coreset", disable=not self.verbose, **kwargs)


def _n_rows(name: str, fraction, n_samples: int) -> int:
    if not isinstance(fraction, Integral):
        return max(1, int(fraction * n_samples))
    if fraction > n_samples:
        raise ValueError(
            f"{name}={fraction} rows were asked for, but X has only n_samples = "
            f"{n_samples}."
        )
    return int(fraction)


def farthest_from(X: torch.Tensor, rows: np.ndarray) -> int:
    """Return the row with the largest mean distance to `rows` of `X`."""
    others = X[torch.from_numpy(rows).to(X.device)].double()
    step = max(1, _BLOCK_ELEMENTS // X.shape[1])
    totals = [_direct_distances(part.double(), others).sum(1) for part in X.split(step)]
    return int(torch.cat(totals).argmax())


class GreedyRun:
    """The k-centre greedy: pick, again and again, the row farthest from the picks.

    The picks are made in blocks without changing them. Of the rows farthest from the
    picks, B are candidates; any other row is no farther than the next distance, tau,
    and distances only shrink. As long as the farthest candidate, with distances to the
    block's own picks accounted for, is beyond tau, it is the farthest row of all. One
    matrix product then updates everyone, where the usual form reads all of `X` for each
    pick.

    A run keeps what every block changed. So each smaller coreset can be cut from it,
    and it can be continued, with the very picks of a run that never stopped.

    Parameters
    ----------
    X : Tensor of shape (n, d), floating point
    first : int
        The row to begin with.
    record : dict or None
        What `record` of an earlier run on the same rows gave.
    progress : callable or None
        Gives a progress bar in the manner of tqdm, for a `total` number of picks.

    Attributes
    ----------
    picks : list of int
        Rows picked so far, in order.
    """

    def __init__(self, X: torch.Tensor, first: int, record=None, progress=None):
        self.X, self._first, self._progress = X, first, progress
        record = record or dict.fromkeys(("picks", "distances", "ends"), ())
        self.picks = [int(row) for row in record["picks"]]
        # Squared distance of each pick to those before it: infinite for the first.
        self._distances = [float(value) for value in record["distances"]]
        # Number of picks after each whole block; a last, shorter one is not logged.
        self._ends = [int(end) for end in record["ends"]]
        self._log = record.get("log", [])

    def record(self) -> dict:
        """Return all that is needed to continue, as arrays."""
        return {
            "picks": np.array(self.picks),
            "distances": np.array(self._distances),
            "ends": np.array(self._ends),
            "log": self._log,
        }

    def extend(self, n_selected: int) -> "_CoverState":
        """Go on until `n_selected` rows are picked."""
        state = self._replay(len(self._ends))
        n_before = len(state.picks)
        self.picks, self._distances = state.picks, self._distances[:n_before]
        progress = self._progress or functools.partial(tqdm, disable=True)
        with progress(total=n_selected, initial=n_before) as bar:
            while len(self.picks) < n_selected:
                rows, distances = self._next_block(state)
                whole = len(rows) <= n_selected - len(self.picks)
                # What is too much goes only now, so that a run is a prefix of every
                # longer one.
                rows = rows[: n_selected - len(self.picks)]
                self._distances += distances[: len(rows)]
                changes = state.add(rows)
                if whole:
                    self._ends.append(len(self.picks))
                    self._log.append(changes)
                bar.update(len(rows))
        return state

    def cut(self, n_selected: int) -> Coreset:
        """Return the coreset of the first `n_selected` picks, made if need be."""
        if len(self.picks) < n_selected:
            state = self.extend(n_selected)
        else:
            n_blocks = bisect.bisect_right(self._ends, n_selected)
            state = self._replay(n_blocks)
            if len(state.picks) < n_selected:
                state.add(self.picks[len(state.picks) : n_selected])
        return state.finish(self._distances[1:n_selected])

    def _next_block(self, state: "_CoverState") -> tuple[list[int], list[float]]:
        if not self._ends:
            return [self._first], [np.inf]
        # A block cut short by tau was too large; one used up may grow.
        last = self._ends[-1] - ([0, *self._ends][-2])
        size = min(max(2 * last, _SMALLEST_BLOCK), _LARGEST_BLOCK)
        return state.farthest(size)

    def _replay(self, n_blocks: int) -> "_CoverState":
        """Return the state after so many blocks, without any distance computed."""
        state = _CoverState(self.X)
        n_picks = self._ends[n_blocks - 1] if n_blocks else 0
        state.restore(self.picks[:n_picks], self._log[:n_blocks])
        return state


def k_center_greedy(X: torch.Tensor, n_selected: int, first: int) -> Coreset:
    """Return the first `n_selected` picks of a `GreedyRun` and what they cover."""
    return GreedyRun(X, first).cut(n_selected)


def cover(X: torch.Tensor, picks: np.ndarray, update=None) -> Coreset:
    """Return radii and nearest picks for rows `picks` of `X`, taken in that order."""
    state = _CoverState(X)
    radii = np.empty(len(picks))
    for start in range(0, len(picks), _LARGEST_BLOCK):
        block = picks[start : start + _LARGEST_BLOCK].tolist()
        radii[start : start + len(block)] = state.add_with_radii(block)
        if update is not None:
            update(len(block))
    return state.finish(radii[:-1])


class _CoverState:
    """Squared distance of each row to its nearest pick so far, and which pick it is."""

    def __init__(self, X: torch.Tensor):
        self.X = X
        # Rounding of the product is least about the mean.
        self.centered = X - X.mean(dim=0)
        self.norms = self.centered.square().sum(dim=1)
        self.squared = torch.full_like(self.norms, torch.inf)
        self.nearest = torch.full((len(X),), -1, device=X.device)
        self.picks: list[int] = []

    def add(self, rows: list[int]) -> tuple:
        """Account for new picks; return rows whose nearest pick changed, for `restore`.

        A change is a row, its new nearest pick, and the squared distance to it.
        """
        before = self.nearest.clone()
        for part, block in self._products(rows):
            self._keep_nearer(part, block)
        self._pick(rows)
        changed = (self.nearest != before).nonzero()[:, 0]
        parts = (changed.int(), self.nearest[changed].int(), self.squared[changed])
        return tuple(part.cpu().numpy() for part in parts)

    def restore(self, picks: list[int], log: list[tuple]) -> None:
        """Bring the state of nothing picked to that after the changes in `log`."""
        if log:
            rows, nearest, squared = map(np.concatenate, zip(*log, strict=True))
            # Of several changes of a row the last one counts.
            last = np.full(len(self.X), -1)
            last[rows] = np.arange(len(rows))
            device = self.X.device
            self.nearest = torch.from_numpy(nearest[last]).long().to(device)
            self.squared = torch.from_numpy(squared[last]).to(device)
        self.picks = list(picks)

    def add_with_radii(self, rows: list[int]) -> np.ndarray:
        """Account for new picks; return squared cover radii after each of them."""
        radii = torch.zeros(len(rows), dtype=self.squared.dtype, device=self.X.device)
        for part, block in self._products(rows):
            so_far = block.cummin(dim=1).values
            so_far = torch.minimum(so_far, self.squared[part, None])
            radii = torch.maximum(radii, so_far.amax(dim=0))
            self._keep_nearer(part, block)
        self._pick(rows)
        return radii.double().cpu().numpy()

    def _products(self, rows: list[int]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield squared distances (b, len(rows)) of a part of all rows to `rows`."""
        centers, norms = self.centered[rows], self.norms[rows]
        step = max(1, _BLOCK_ELEMENTS // len(rows))
        for start in range(0, len(self.X), step):
            part = slice(start, start + step)
            with full_precision():
                block = torch.addmm(norms, self.centered[part], centers.T, alpha=-2)
            yield part, block.add_(self.norms[part, None]).clamp_(min=0)

    def _keep_nearer(self, part: slice, block: torch.Tensor) -> None:
        best, which = block.min(dim=1)
        closer = best < self.squared[part]
        self.squared[part] = torch.where(closer, best, self.squared[part])
        self.nearest[part] = torch.where(
            closer, which + len(self.picks), self.nearest[part]
        )

    def _pick(self, rows: list[int]) -> None:
        # Never picked twice.
        self.squared[rows] = -torch.inf
        n_before = len(self.picks)
        self.picks += rows
        self.nearest[rows] = torch.arange(
            n_before, len(self.picks), device=self.X.device
        )

    def farthest(self, n_candidates: int) -> tuple[list[int], list[float]]:
        """Return the next greedy picks and the squared distance at which each is made.

        The last ones may be picks already, once no other rows are left.
        """
        n_top = min(n_candidates + 1, len(self.X))
        values, rows = self.squared.topk(n_top)
        tau = float(values[-1]) if n_top > n_candidates else -np.inf
        values, rows = values[:n_candidates].double(), rows[:n_candidates]
        # Directly as differences, free of the product's rounding: candidates may be
        # near-duplicates of each other.
        values = torch.where(values.isneginf(), values, self.exact_distances(rows))
        candidates = self.X[rows].double()
        mutual = _direct_distances(candidates, candidates).square_().cpu().numpy()
        values, rows = values.cpu().numpy(), rows.cpu().numpy()
        picked, distances = [], []
        while len(picked) < len(rows):
            farthest = values.argmax()
            if picked and values[farthest] < tau:
                break
            picked.append(int(rows[farthest]))
            distances.append(float(values[farthest]))
            values = np.minimum(values, mutual[farthest])
            values[farthest] = -np.inf
        return picked, distances

    def exact_distances(self, rows: torch.Tensor) -> torch.Tensor:
        """Squared distances of `rows` to their nearest picks, in float64."""
        picks = torch.tensor(self.picks, device=self.X.device)
        return paired_distances(self.X, rows, self.X, picks[self.nearest[rows]])

    def finish(self, radii) -> Coreset:
        """Return the coreset; `radii` are squared, after all picks but the last."""
        rows = torch.arange(len(self.X), device=self.X.device)
        squared = self.exact_distances(rows).cpu().numpy()
        # The product's rounding may hide for a while how far a row is; but no radius is
        # less than a later one.
        radii = np.maximum.accumulate([squared.max(), *radii[::-1]])[::-1]
        picks = np.array(self.picks, dtype=np.int64)
        return Coreset(
            picks, np.sqrt(radii), np.sqrt(squared), self.nearest.cpu().numpy()
        )


def _direct_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _keep_all(n_samples: int) -> Coreset:
    radii = np.full(n_samples, np.nan)
    radii[-1] = 0.0
    everything = np.arange(n_samples)
    return Coreset(everything, radii, np.zeros(n_samples), everything.copy())
