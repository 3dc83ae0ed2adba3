"""Coreset subsampling of patch features: k-centre greedy, random, or none."""

import os
from collections.abc import Mapping
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from joblib import Memory
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import validate_data
from tqdm.auto import tqdm

from skpatchcore._coreset._equal_rows import first_equal_rows
from skpatchcore._coreset._greedy import (
    Coreset,
    GreedyRun,
    cover_of,
    farthest_from,
    is_coreset,
    is_record,
)
from skpatchcore._neighbors import as_tensor, with_safe_squares
from skpatchcore._utils import (
    MEMORY_CONSTRAINT,
    Cache,
    Interval,
    RealNotInt,
    StrOptions,
    check_cache,
    content_key,
    fit_context,
    floor_fraction,
    own_torch_state,
    refuse_lazy,
    resolve_device,
    take_rows,
)

# Part of the key of cached runs. Change it with the contents of their records.
_RUNS = "exact distances, equal rows"


class _Omitted:
    """The default of a `y` for which None is another answer."""

    def __repr__(self) -> str:
        return "<omitted>"


OMITTED = _Omitted()


class CoresetSampler(BaseEstimator):
    """Select the rows of a matrix that a memory bank keeps.

    Use it to make a memory bank smaller and faster to search, with little loss in
    detection. PatchCore keeps a fraction of all training patches that covers the others
    well: the k-centre greedy picks, again and again, the row farthest from those picked
    so far (Roth et al., 2022, Algorithm 1). The picks are a prefix sequence: the first
    m of them are the coreset of size m, and ``radii_`` gives the distance of the
    farthest row for each m.

    The sampler changes the number of rows, so it is not a transformer. Like the
    samplers of imbalanced-learn, it has ``fit_resample`` and ``sample_indices_``, and
    is a step of imbalanced-learn's pipeline.

    Parameters
    ----------
    fraction : float or int, default=0.1
        Share of rows to keep, in (0, 1], rounded down but at least one row. An int is
        the number of rows. A share is read as a decimal number: 0.29 of 100 rows are
        29, although the product in binary is slightly smaller.

    method : {"greedy", "random", "none"}, default="greedy"
        - "greedy": k-centre greedy, a 2-approximation of the smallest cover radius.
        - "random": rows drawn uniformly without replacement.
        - "none": all rows in their given order; `fraction` is ignored.

    projection_dim : int or None, default=128
        Rows with more features than this are projected to this many by a Gaussian
        random projection before distances are computed, as in the paper
        (Johnson-Lindenstrauss). The returned rows are the original ones. None compares
        the rows without a projection.

    n_starts : int, default=10
        Number of random rows that determine the first greedy pick: it is the row with
        the largest mean distance to them, as in the authors' code.

    max_fraction : float, int or None, default=None
        Largest `fraction` that you plan to use with the same `memory`. Rows up to this
        fraction are selected at once, and smaller fractions are cut from them. None
        selects as many rows as `fraction` asks for; a larger fraction continues from
        there later. Ignored without `memory`.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache on disk for selected rows. Each set of rows is processed once, and all
        fractions are cut from the same run, also later and in other processes. The
        result is the same as without a cache. With ``random_state=None``, the first
        draw for a set of rows is reused; with a RandomState instance, the cache is not
        used. See :class:`BoundedMemory`.

    device : str, torch.device or None, default=None
        Device for the computation. None uses the GPU if there is one, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seed of the starting rows, the projection and the random subset. Pass an int for
        the same selection in every call.

    verbose : int, default=0
        Show a progress bar over the selected rows if positive.

    Attributes
    ----------
    sample_indices_ : ndarray of shape (n_selected,), int64
        The selected rows, in the order of selection.

    radii_ : ndarray of shape (n_selected,), float64
        Cover radius after each selected row: the largest Euclidean distance from a row
        to its nearest selected row, after the projection if there is one. For
        ``method="none"`` only the last is known, 0; the others are NaN.

    min_distances_ : ndarray of shape (n_samples,), float64
        Distance from each row to its nearest selected row, measured like ``radii_``.

    nearest_picks_ : ndarray of shape (n_samples,), int64
        Position of that selected row in ``sample_indices_``.

    n_features_in_ : int
        Number of features seen during `fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features, if `X` had names that are all strings.

    See Also
    --------
    PatchMemoryBank : Scores patches by their distance to the selected rows.

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
        fraction: float = 0.1,
        *,
        method: str = "greedy",
        projection_dim: int | None = 128,
        n_starts: int = 10,
        max_fraction: float | None = None,
        memory: str | os.PathLike | Memory | None = None,
        device: str | torch.device | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.fraction = fraction
        self.method = method
        self.projection_dim = projection_dim
        self.n_starts = n_starts
        self.max_fraction = max_fraction
        self.memory = memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    @own_torch_state()
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Select rows of `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), float32 or float64
            Rows to select from, usually patch features.

        y : None
            Ignored, present for API consistency.

        Returns
        -------
        self : CoresetSampler
            Fitted sampler.

        Raises
        ------
        ValueError
            If `fraction` is an int larger than n_samples; if `max_fraction` is smaller
            than `fraction`; or if the largest absolute value of `X` is above 1e140, or
            below 1e-130 but not 0, so that squares leave the range of float64.
        """
        refuse_lazy(X)
        rows: NDArray = validate_data(self, X, dtype=[np.float32, np.float64])
        n_selected, n_max = self._n_selected(len(rows))
        cache = check_cache(self.memory)
        if self.method == "none":
            coreset = _keep_all(len(rows))
        elif cache is None or isinstance(self.random_state, np.random.RandomState):
            coreset = self._select(rows, n_selected)
        else:
            coreset = self._recall(cache, rows, n_selected, n_max)
        self.sample_indices_ = coreset.indices
        self.radii_ = coreset.radii
        self.min_distances_ = coreset.distances
        self.nearest_picks_ = coreset.nearest
        return self

    def fit_resample(self, X: ArrayLike, y: Any = OMITTED) -> Any:
        """Select rows of `X` and return them in the order of selection.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), float32 or float64
            Rows to select from.

        y : array-like of shape (n_samples,) or None, optional
            Labels or targets of the rows. They do not influence the selection. Omit
            `y` to get only rows. A pipeline of imbalanced-learn always passes it: None
            if the pipeline is fitted without labels, as a detector may be.

        Returns
        -------
        X_resampled : ndarray or table of shape (n_selected, n_features)
            The selected rows, unchanged. Tables of pandas, polars and PyArrow keep
            their type.

        y_resampled : ndarray, series or None
            Their labels, of shape (n_selected,), returned only if `y` is given, as in
            imbalanced-learn. None for ``y=None``.

        Raises
        ------
        TypeError
            If `X` is sparse, or a lazy table of polars.

        ValueError
            As for `fit`, or if `y` does not have the length of `X`.
        """
        refuse_lazy(X)
        has_labels = y is not OMITTED and y is not None
        if has_labels:
            check_consistent_length(X, y)
        self.fit(X)
        rows = take_rows(X, self.sample_indices_)
        if y is OMITTED:
            return rows
        return rows, take_rows(y, self.sample_indices_) if has_labels else None

    def _n_selected(self, n_samples: int) -> tuple[int, int]:
        """Return how many rows to select now, and how many to prepare in the cache."""
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

    def _select(self, X: NDArray, n_selected: int) -> Coreset:
        points, random_state = self._project(X)
        if self.method == "greedy":
            return self._greedy_run(points, random_state).cut(n_selected)
        selected = random_state.permutation(len(points))[:n_selected]
        with self._progress(total=n_selected) as bar:
            return cover_of(points, selected, bar.update)

    def _recall(self, cache: Cache, X: NDArray, n_selected: int, n_max: int) -> Coreset:
        """Return the coreset from the cache; if it is missing, compute and store it."""
        device = resolve_device(self.device)
        params = (self.method, self.projection_dim, self.n_starts, self.random_state)
        run_key = content_key(_RUNS, X, *params, device.type, torch.__version__)
        key = content_key(run_key, n_selected)
        found = cache.get(
            "coresets", key, lambda value: is_coreset(value, len(X), n_selected)
        )
        if found is not None:
            return Coreset(*found)
        # Concurrent requests for the same run wait.
        with cache.claim([run_key], wait=True):
            if self.method == "random":
                coreset = self._select(X, n_selected)
            else:
                record = cache.get("runs", run_key, lambda v: is_record(v, len(X)))
                points, random_state = self._project(X)
                run = self._greedy_run(points, random_state, record)
                if len(run.picks) < n_selected:
                    run.extend(n_max)
                    cache.put("runs", run_key, run.record())
                coreset = run.cut(n_selected)
            cache.put("coresets", key, tuple(coreset))
        return coreset

    def _project(self, X: NDArray) -> tuple[torch.Tensor, np.random.RandomState]:
        """Return the rows to compare, and the random state for later draws."""
        random_state = check_random_state(self.random_state)
        X = with_safe_squares(X)
        if self.projection_dim is not None and X.shape[1] > self.projection_dim:
            projected = GaussianRandomProjection(
                self.projection_dim, random_state=random_state
            ).fit_transform(X)
            # A product may round equal rows differently, depending on their position.
            X = projected[first_equal_rows(X)]
        return as_tensor(X).to(resolve_device(self.device)), random_state

    def _greedy_run(
        self,
        X: torch.Tensor,
        random_state: np.random.RandomState,
        record: Mapping[str, Any] | None = None,
    ) -> GreedyRun:
        starts = random_state.randint(len(X), size=self.n_starts)
        return GreedyRun(X, farthest_from(X, starts), record, self._progress)

    def _progress(self, **kwargs: Any) -> tqdm:
        return tqdm(desc="coreset", disable=not self.verbose, **kwargs)


def _n_rows(name: str, fraction: float, n_samples: int) -> int:
    """Return the number of rows for a share, or for a number given as an int."""
    if not isinstance(fraction, Integral):
        return max(1, floor_fraction(fraction, n_samples))
    n_rows = int(fraction)
    if n_rows > n_samples:
        raise ValueError(
            f"{name}={fraction} rows were requested, but X has only n_samples = "
            f"{n_samples}. Pass at most {n_samples}, or a share in (0, 1]."
        )
    return n_rows


def _keep_all(n_samples: int) -> Coreset:
    radii = np.full(n_samples, np.nan)
    radii[-1] = 0.0
    everything = np.arange(n_samples)
    return Coreset(everything, radii, np.zeros(n_samples), everything.copy())
