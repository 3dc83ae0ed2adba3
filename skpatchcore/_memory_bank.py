"""The detector on patch vectors: distances to a bank of normal patches."""

from contextlib import contextmanager
from numbers import Integral, Real

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, OutlierMixin, _fit_context, clone
from sklearn.preprocessing import normalize
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_params,
)
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._cache import MEMORY_CONSTRAINT, check_cache
from skpatchcore._coreset import CoresetSampler
from skpatchcore._distances import (
    as_tensor,
    paired_distances,
    rows_at_once,
    squared_distances,
)
from skpatchcore._labels import normal_rows
from skpatchcore._neighbor_cache import query_once
from skpatchcore._neighbors import NeighborIndex, build_index, squared_to_metric

# The training scores' quantile that "auto" puts the threshold at.
_AUTO_CONTAMINATION = 0.01
_FIRST_SEARCHED = 4
# Bank rows looked at for a bound beside as many as neighbours are asked for.
_SPARE_ROWS = 3
# More than the rounding of a distance in float32 over any number of features in use.
_SLACK = 1e-4


class PatchMemoryBank(OutlierMixin, BaseEstimator):
    """Detect anomalies by the distance of patch vectors to a bank of normal ones.

    The detector half of PatchCore (Roth et al., 2022, sections 3.2 and 3.3), on
    features extracted before: it takes a matrix, where each row is a sample of one
    patch, or an array of more dimensions, where a sample has many patches and its score
    is that of its most anomalous ones. Search its parameters on features extracted
    once.

    Signs are scikit-learn's: ``score_samples`` and ``decision_function`` are higher for
    more *normal* samples; ``score_patches`` is a distance, higher for more *anomalous*
    patches.

    Parameters
    ----------
    sampler : estimator or None, default=None
        Chooses the patches to keep; after ``fit(patches)`` it has ``sample_indices_``.
        None is ``CoresetSampler()``: 10 % of the patches by the k-centre greedy.

    n_neighbors : int, default=1
        A patch's score is its mean distance to this many nearest patches of the bank.

    metric : {"euclidean", "sqeuclidean", "cosine"}, default="euclidean"
        Distance of two patches: Euclidean; squared Euclidean, as in the authors' code;
        or 1 - cosine similarity, where patches are brought to unit length before the
        coreset is chosen. Zero vectors are at cosine distance 1/2 from others.

    algorithm : {"auto", "torch", "faiss", "pynndescent"}, default="auto"
        Nearest-neighbour search. "torch" and "faiss" are exact, "pynndescent" is
        approximate. "auto" is "torch", the faster of the two exact ones where patches
        vary in few directions, as those of networks do.

    reduction : "max" or float, default="max"
        A sample's score from those of its patches: the largest, or the mean of the top
        fraction in (0, 1], of at least one patch.

    reweight : int or None, default=None
        Number b of neighbours in eq. 7 of the paper, which scales a sample's score by
        how ordinary the matched patch is within the bank; 9 in anomalib. At least 2;
        goes with ``reduction="max"`` and ``n_neighbors=1``.

    contamination : "auto" or float, default="auto"
        Share of the training samples, in (0, 0.5], that `offset_` puts on the anomalous
        side; "auto" is 0.01. Training samples lie in or near the bank, so new normal
        samples are flagged more often than this.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache on disk for a sampler that has none of its own, and for the nearest
        neighbours of samples: whatever `n_neighbors` a search asks for, a sample is
        compared with a bank once. See :class:`BoundedMemory`.

    device : str, torch.device or None, default=None
        Where to search; None is the GPU if there is one, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seeds a sampler that has no seed of its own, and approximate searches.

    verbose : int, default=0
        Passed on to a sampler that is silent.

    Attributes
    ----------
    bank_ : ndarray of shape (n_bank, n_features)
        The patches kept.

    bank_indices_ : ndarray of shape (n_bank,), int64
        Where they stood among the training patches: rows of
        ``X.reshape(-1, n_features)``, after rows with ``y == -1`` were left out.

    sampler_ : estimator
        The fitted sampler.

    training_scores_ : ndarray of shape (n_training_samples,), float64
        ``score_samples`` of the training samples used. All 0 if every patch was kept.

    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.

    patch_threshold_ : float
        The same share of training samples has no patch with a larger distance; the
        default threshold for masks. Equals ``-offset_`` for ``reduction="max"`` without
        `reweight`.

    n_features_in_ : int
        Length of a patch vector.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features, if `X` is a matrix with names that are all strings.

    See Also
    --------
    PatchCoreDetector : The same on pictures.
    CoresetSampler : Chooses the patches to keep.

    References
    ----------
    Roth, K., Pemula, L., Zepeda, J., Schölkopf, B., Brox, T., Gehler, P. "Towards Total
    Recall in Industrial Anomaly Detection", CVPR 2022, arXiv:2106.08265.

    Examples
    --------
    Five samples of four patches each, and a new one with an odd patch:

    >>> import numpy as np
    >>> from skpatchcore import PatchMemoryBank
    >>> X = np.random.default_rng(0).normal(size=(5, 4, 3))
    >>> bank = PatchMemoryBank(random_state=0).fit(X)
    >>> odd = X[:1].copy()
    >>> odd[0, 2] = 9
    >>> bank.predict(np.concatenate([X[:1], odd]))
    array([ 1, -1])
    """

    _parameter_constraints = {
        "sampler": [HasMethods(["fit"]), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "metric": [StrOptions({"euclidean", "sqeuclidean", "cosine"})],
        "algorithm": [StrOptions({"auto", "torch", "faiss", "pynndescent"})],
        "reduction": [StrOptions({"max"}), Interval(Real, 0, 1, closed="right")],
        "reweight": [Interval(Integral, 2, None, closed="left"), None],
        "contamination": [
            StrOptions({"auto"}),
            Interval(Real, 0, 0.5, closed="right"),
        ],
        "memory": MEMORY_CONSTRAINT,
        "device": [str, torch.device, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        sampler=None,
        *,
        n_neighbors=1,
        metric="euclidean",
        algorithm="auto",
        reduction="max",
        reweight=None,
        contamination="auto",
        memory=None,
        device=None,
        random_state=None,
        verbose=0,
    ):
        self.sampler = sampler
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.algorithm = algorithm
        self.reduction = reduction
        self.reweight = reweight
        self.contamination = contamination
        self.memory = memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def set_params(self, **params):
        """Set parameters, those of a `sampler` left at None too.

        Parameters
        ----------
        **params : dict
            Names and values; ``sampler__fraction`` is the sampler's ``fraction``.

        Returns
        -------
        self : PatchMemoryBank
            This estimator.
        """
        return super().set_params(**with_defaults(self, params, sampler=CoresetSampler))

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Choose the bank among the patches of normal samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, ..., n_features)
            Patch features, float32 or float64.

        y : array-like of shape (n_samples,) or None, default=None
            Samples labelled -1 (anomalous) are left out; all others are learned from.

        Returns
        -------
        self : PatchMemoryBank
            Fitted detector.

        Raises
        ------
        ValueError
            If no sample is left, or the bank has fewer rows than `n_neighbors` or
            `reweight` ask for.
        """
        with unchanged_on_error(self):
            patches, shape = self._validate_patches(X, reset=True)
            rows = normal_rows(y, shape[0])
            n_per_sample = int(np.prod(shape[1:]))
            if len(rows) < shape[0]:
                patches = patches.reshape(shape[0], n_per_sample, -1)[rows]
                patches = patches.reshape(len(rows) * n_per_sample, -1)
            return self._fit_patches(patches, np.arange(len(rows) + 1) * n_per_sample)

    def fit_predict(self, X, y=None):
        """Fit, and decide on the same samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, ..., n_features)
            Patch features.

        y : array-like of shape (n_samples,) or None, default=None
            As for `fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int64
            +1 for normal and -1 for anomalous samples.
        """
        self.fit(X, y)
        if y is None:
            # The scores are there; searching again would give the same.
            return labels_from_decision(self.training_scores_ - self.offset_)
        return self.predict(X)

    def score_samples(self, X):
        """Return the negative anomaly score of samples: higher is more normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, ..., n_features)
            Patch features.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            At most 0, in the unit of `metric`.
        """
        check_is_fitted(self)
        patches, shape = self._validate_patches(X, reset=False)
        offsets = np.arange(shape[0] + 1) * int(np.prod(shape[1:]))
        return self._score(patches, offsets)[0]

    def decision_function(self, X):
        """Return ``score_samples(X) - offset_``: negative for anomalous samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, ..., n_features)
            Patch features.

        Returns
        -------
        decision : ndarray of shape (n_samples,), float64
            Higher is more normal; 0 is still normal.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """Decide whether samples are normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, ..., n_features)
            Patch features.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int64
            +1 for normal and -1 for anomalous samples.
        """
        return labels_from_decision(self.decision_function(X))

    def score_patches(self, X):
        """Return the distance of every patch to the bank: higher is more anomalous.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, ..., n_features)
            Patch features.

        Returns
        -------
        distances : ndarray of shape (n_samples, ...), float64
            Mean distance to the `n_neighbors` nearest patches of the bank.
        """
        distances, _ = self.kneighbors(X)
        return distances.mean(axis=-1)

    @validate_params(
        {"n_neighbors": [Interval(Integral, 1, None, closed="left"), None]},
        prefer_skip_nested_validation=True,
    )
    def kneighbors(self, X, n_neighbors=None):
        """Return the nearest patches of the bank for every patch.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, ..., n_features)
            Patch features.

        n_neighbors : int or None, default=None
            How many; None is the parameter `n_neighbors`.

        Returns
        -------
        distances : ndarray of shape (n_samples, ..., n_neighbors), float64
            Ascending, in the unit of `metric`.

        indices : ndarray of shape (n_samples, ..., n_neighbors), int64
            Rows of ``bank_``; ``bank_indices_[indices]`` are training patches.
        """
        check_is_fitted(self)
        patches, shape = self._validate_patches(X, reset=False)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        distances, indices = self._query(patches, k)
        return distances.reshape(*shape, -1), indices.reshape(*shape, -1)

    def _validate_patches(self, X, *, reset: bool):
        """Return patches (n_patches, d), and the shape of `X` without its last axis."""
        ndim = X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim
        if ndim > 2:
            X = check_array(
                X, dtype=[np.float64, np.float32], allow_nd=True, input_name="X"
            )
            shape, X = X.shape[:-1], X.reshape(-1, X.shape[-1])
            return validate_data(self, X, dtype=X.dtype, reset=reset), shape
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)
        return X, X.shape[:1]

    def _fit_patches(
        self, patches: np.ndarray, offsets: np.ndarray, n_scored: int | None = None
    ):
        """Fit on validated patches; sample i has rows offsets[i] to offsets[i+1].

        With `n_scored`, training scores and thresholds are those of the first samples.
        """
        if self.reweight is not None and (
            self.reduction != "max" or self.n_neighbors != 1
        ):
            raise ValueError(
                f"reweight={self.reweight} (eq. 7) is defined for reduction='max' and "
                f"n_neighbors=1; got reduction={self.reduction!r} and "
                f"n_neighbors={self.n_neighbors}."
            )
        prepared = normalize(patches) if self.metric == "cosine" else patches
        random_state = check_random_state(self.random_state)
        sampler = self._make_sampler(random_state)
        sampler.fit(prepared)
        indices = np.asarray(sampler.sample_indices_)
        self._check_bank_size(len(indices))
        self.n_features_in_ = patches.shape[1]
        self.sampler_ = sampler
        self.bank_indices_ = indices
        self.bank_ = prepared[indices]
        self._index_seed = int(random_state.randint(np.iinfo(np.int32).max))
        self._index = self._build_index()
        offsets = offsets if n_scored is None else offsets[: n_scored + 1]
        self.training_scores_, largest = self._score_training(
            patches[: offsets[-1]], offsets
        )
        share = self.contamination
        share = _AUTO_CONTAMINATION if share == "auto" else share
        self.offset_ = float(np.quantile(self.training_scores_, share))
        self.patch_threshold_ = float(np.quantile(largest, 1 - share))
        return self

    def _make_sampler(self, random_state):
        # Not safe: a sampler of one's own need not be an estimator.
        default = CoresetSampler() if self.sampler is None else self.sampler
        sampler = clone(default, safe=False)
        seed = None
        if self.random_state is not None:
            seed = int(random_state.randint(np.iinfo(np.int32).max))
        return inherit_params(
            sampler,
            random_state=seed,
            device=self.device,
            memory=self.memory,
            verbose=self.verbose,
        )

    def _check_bank_size(self, n_bank: int) -> None:
        for name in ("n_neighbors", "reweight"):
            asked = getattr(self, name)
            if asked is not None and asked > n_bank:
                raise ValueError(
                    f"{name}={asked} asks for more neighbours than the bank has rows, "
                    f"{n_bank}; lower it or raise the sampler's fraction."
                )

    def _build_index(self):
        return build_index(
            self.bank_,
            algorithm=self.algorithm,
            device=self.device,
            random_state=self._index_seed,
        )

    def _search_index(self) -> NeighborIndex:
        """Return the index, built again where a pickle left it out."""
        if not hasattr(self, "_index"):
            self._index = self._build_index()
        return self._index

    def _query(self, patches: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return distances in the unit of `metric` and bank rows, (n, k) each."""
        if k > len(self.bank_):
            raise ValueError(
                f"n_neighbors={k} is more than the bank has rows, {len(self.bank_)}."
            )
        patches = self._prepare(patches)
        squared, indices = self._search_index().query(patches, k)
        return squared_to_metric(squared, self.metric), indices

    def _prepare(self, patches: np.ndarray) -> np.ndarray:
        patches = patches.astype(self.bank_.dtype, copy=False)
        return normalize(patches) if self.metric == "cosine" else patches

    def _score(self, patches, offsets):
        """Return score_samples (n,), patch distances and bank rows (n_patches, k)."""
        samples = np.split(patches, offsets[1:-1])
        distances, indices = self._query_once(samples, self.n_neighbors)
        patch_scores = distances.mean(axis=1)
        if self.reweight is None:
            scores = reduce_patches(patch_scores, offsets, self.reduction)
        else:
            farthest = argmax_patches(patch_scores, offsets)
            scores = patch_scores[farthest] * self._reweighting(
                patches[farthest], patch_scores[farthest], indices[farthest, 0]
            )
        return -scores, patch_scores, indices

    def _query_once(self, samples, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Query patches of each of `samples`, from the cache where they are there."""
        cache, index = check_cache(self.memory), self._search_index()
        if cache is None or not index.exact:
            return self._query(np.concatenate(samples), k)
        squared, rows = query_once(cache, index, list(map(self._prepare, samples)), k)
        return squared_to_metric(squared, self.metric), rows

    def _score_training(self, patches, offsets):
        """Return score_samples and the largest patch distance of training samples."""
        nearest = getattr(self.sampler_, "nearest_picks_", None)
        if nearest is None or self.reduction != "max":
            scores, patch_scores, _ = self._score(patches, offsets)
            return scores, reduce_patches(patch_scores, offsets, "max")

        def query(subset):
            distances, rows = self._query(patches[subset], self.n_neighbors)
            return distances.mean(axis=1), rows[:, 0]

        bounds = self._bound_scores(patches, nearest[: len(patches)])
        farthest, rows, largest = farthest_patches(query, bounds, offsets)
        scores = largest
        if self.reweight is not None:
            scores = largest * self._reweighting(patches[farthest], largest, rows)
        return -scores, largest

    def _bound_scores(self, patches, nearest) -> np.ndarray:
        """Return upper bounds of patch scores, from a bank row near each patch.

        Any k bank rows give one; the nearest of those around that row give a good one.
        """
        patches, bank = as_tensor(self._prepare(patches)), as_tensor(self.bank_)
        nearest = torch.from_numpy(nearest)
        if self.n_neighbors == 1:
            everyone = torch.arange(len(patches))
            squared = paired_distances(patches, everyone, bank, nearest)
            return squared_to_metric(squared.numpy(), self.metric)
        n_around = min(self.n_neighbors + _SPARE_ROWS, len(self.bank_))
        _, around = self._query_once([self.bank_], n_around)
        around = torch.from_numpy(around)
        step = rows_at_once(bank, n_around)
        bounds = []
        for part, rows in zip(patches.split(step), nearest.split(step), strict=True):
            squared = (bank[around[rows]] - part[:, None]).square_().sum(dim=2)
            closest = squared.topk(self.n_neighbors, largest=False, sorted=False)
            distances = squared_to_metric(closest.values.numpy(), self.metric)
            bounds.append(distances.mean(axis=1))
        # Not in float64, and a bound must not be less than what it bounds.
        return np.concatenate(bounds).astype(np.float64) * (1 + _SLACK)

    def _reweighting(self, patches, distances, rows):
        """Return the factor of eq. 7 for patches (n, d) matched with bank rows (n,)."""
        _, neighborhood = self._search_index().query(self.bank_[rows], self.reweight)
        squared = squared_distances(
            as_tensor(self._prepare(patches)), as_tensor(self.bank_[neighborhood])
        )
        others = squared_to_metric(squared.numpy(), self.metric)
        # exp(distance) overflows float32 at 88.7, and float64 at 709.
        return 1 - np.exp(distances - logsumexp(others, axis=1))

    def __getstate__(self):
        """Leave the search index out; it is built again from `bank_` at first use."""
        state = dict(super().__getstate__())
        state.pop("_index", None)
        return state


@contextmanager
def unchanged_on_error(estimator):
    """Give `estimator` its attributes back if the block fails."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def with_defaults(estimator, params: dict, **defaults) -> dict:
    """Add to `params` the sub-estimators that they are for, where these are None."""
    missing = {
        name: default()
        for name, default in defaults.items()
        if any(key.startswith(f"{name}__") for key in params)
        and params.get(name, getattr(estimator, name)) is None
    }
    return {**params, **missing}


def inherit_params(estimator, **params):
    """Set those of `params` that `estimator` has and leaves at None, or silent."""
    if not hasattr(estimator, "get_params"):
        return estimator
    own = estimator.get_params(deep=False)
    unset = {
        name: value
        for name, value in params.items()
        if name in own and value is not None and _is_unset(name, own[name])
    }
    return estimator.set_params(**unset)


def _is_unset(name: str, value) -> bool:
    # 0 is a seed like any other, but no verbosity.
    return value is None or (name == "verbose" and not value)


def labels_from_decision(decision: np.ndarray) -> np.ndarray:
    """Return +1 where `decision` is 0 or more, else -1."""
    return np.where(decision >= 0, 1, -1)


def reduce_patches(patch_scores, offsets, reduction) -> np.ndarray:
    """Reduce patch scores (n_patches,) to one score a sample."""
    if reduction == "max":
        return np.maximum.reduceat(patch_scores, offsets[:-1])
    return np.array(
        [
            np.sort(scores)[-max(1, int(reduction * len(scores))) :].mean()
            for scores in np.split(patch_scores, offsets[1:-1])
        ]
    )


def argmax_patches(patch_scores, offsets) -> np.ndarray:
    """Return the row of each sample's largest patch score."""
    parts = np.split(patch_scores, offsets[1:-1])
    return offsets[:-1] + np.array([part.argmax() for part in parts])


def farthest_patches(query, bounds, offsets):
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
        active = unfinished[best[2, unfinished] < next_bounds]
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
