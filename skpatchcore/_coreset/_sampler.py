"""Coreset subsampling of patch features: the k-centre greedy or its plain rivals."""

from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils import check_random_state
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
    resolve_device,
)

# Names what runs in a cache hold; those of another form are left alone.
_RUNS = "exact distances, equal rows"


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
        Share of rows to keep, in (0, 1], rounded down but at least one row; or, as an
        int, their number. A share is read as the decimal it is written as: 0.29 of 100
        rows are 29, though the product in binary is a little less.

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

    @fit_context(prefer_skip_nested_validation=True)
    @own_torch_state()
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
            If `fraction` is an int larger than n_samples, if `max_fraction` is smaller
            than `fraction`, or if the largest absolute value of `X` is above 1e140 or
            below 1e-130 but not 0, so that squares leave the range of float64.
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
            return cover_of(X, picks, bar.update)

    def _recall(self, cache: Cache, X, n_selected: int, n_max: int) -> Coreset:
        """Take the coreset from the cache, or make it and leave it there."""
        device = resolve_device(self.device)
        params = (self.method, self.projection_dim, self.n_starts, self.random_state)
        run_key = content_key(_RUNS, X, *params, device.type, torch.__version__)
        key = content_key(run_key, n_selected)
        found = cache.get(
            "coresets", key, lambda value: is_coreset(value, len(X), n_selected)
        )
        if found is not None:
            return Coreset(*found)
        # Others who want the same run wait for it.
        with cache.claim([run_key], wait=True):
            if self.method == "random":
                coreset = self._select(X, n_selected)
            else:
                record = cache.get("runs", run_key, lambda v: is_record(v, len(X)))
                run = self._greedy_run(*self._project(X), record)
                if len(run.picks) < n_selected:
                    run.extend(n_max)
                    cache.put("runs", run_key, run.record())
                coreset = run.cut(n_selected)
            cache.put("coresets", key, tuple(coreset))
        return coreset

    def _project(self, X):
        """Return the rows to compare, and the random state for what comes next."""
        random_state = check_random_state(self.random_state)
        X = with_safe_squares(X)
        if self.projection_dim is not None and X.shape[1] > self.projection_dim:
            projected = GaussianRandomProjection(
                self.projection_dim, random_state=random_state
            ).fit_transform(X)
            # A product may round equal rows differently, depending on where they are.
            X = projected[first_equal_rows(X)]
        return as_tensor(X).to(resolve_device(self.device)), random_state

    def _greedy_run(self, X, random_state, record=None) -> "GreedyRun":
        starts = random_state.randint(len(X), size=self.n_starts)
        return GreedyRun(X, farthest_from(X, starts), record, self._progress)

    def _progress(self, **kwargs):
        return tqdm(desc="coreset", disable=not self.verbose, **kwargs)


def _n_rows(name: str, fraction, n_samples: int) -> int:
    if not isinstance(fraction, Integral):
        return max(1, floor_fraction(fraction, n_samples))
    if fraction > n_samples:
        raise ValueError(
            f"{name}={fraction} rows were asked for, but X has only n_samples = "
            f"{n_samples}."
        )
    return int(fraction)


def _keep_all(n_samples: int) -> Coreset:
    radii = np.full(n_samples, np.nan)
    radii[-1] = 0.0
    everything = np.arange(n_samples)
    return Coreset(everything, radii, np.zeros(n_samples), everything.copy())
