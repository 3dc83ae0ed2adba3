"""The detector on patch features, by distances to a bank of normal patches."""

import os
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from joblib import Memory
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._bank._outliers import inlying_rows
from skpatchcore._bank._recognition import SAME_NUMBERS, recognize, sketch
from skpatchcore._bank._search import BankSearch
from skpatchcore._bank._support import Support
from skpatchcore._bank._training_scores import UNKNOWN, TrainingSearch, score_training
from skpatchcore._coreset import CoresetSampler
from skpatchcore._neighbors import (
    NeighborIndex,
    PositionSearch,
    build_index,
    check_squares,
    check_window,
    covered_positions,
    reference_positions,
    unit_rows,
)
from skpatchcore._utils import (
    MEMORY_CONSTRAINT,
    DecisionMixin,
    FrozenParams,
    HasMethods,
    Interval,
    Samples,
    StrOptions,
    fit_context,
    inherit_params,
    lower_quantile,
    normal_rows,
    refuse_lazy,
    unchanged_on_error,
    upper_quantile,
    validate_params,
    warn_user,
    with_defaults,
)

# Quantile of the training scores at which `contamination="auto"` sets the threshold.
AUTO_CONTAMINATION = 0.01


class PatchMemoryBank(DecisionMixin, FrozenParams, BaseEstimator):
    """Detect anomalies by the distance of patch features to a bank of normal patches.

    This is the detector half of PatchCore (Roth et al., 2022, sections 3.2 and 3.3).
    Use it on features that are already extracted, for example to search parameters
    without running the network again. In a matrix, each row is a sample of one patch.
    In an array of more dimensions, a sample has many patches, and its score is that of
    its most anomalous patches.

    Signs are scikit-learn's: ``score_samples`` and ``decision_function`` are higher for
    more *normal* samples. ``score_patches`` is a distance, so it is higher for more
    *anomalous* patches.

    Parameters
    ----------
    sampler : estimator or None, default=None
        Selects the patches to keep. After ``fit(patches)`` it must have
        ``sample_indices_``. None is ``CoresetSampler()``: 10 % of the patches by the
        k-centre greedy. A :class:`~sklearn.frozen.FrozenEstimator` around a sampler
        that was fitted on the same patches keeps its selection.

    n_neighbors : int, default=1
        The score of a patch is its mean distance to this many nearest patches of the
        bank.

    metric : {"euclidean", "sqeuclidean", "cosine"}, default="euclidean"
        Distance between two patches: Euclidean; squared Euclidean, as in the authors'
        code; or 1 - cosine similarity, where patches are scaled to unit length before
        the coreset is selected. Zero vectors have a cosine distance of 1/2 to others.

    algorithm : {"auto", "torch", "faiss", "pynndescent"}, default="auto"
        Nearest-neighbour search. "torch" and "faiss" are exact, "pynndescent" is
        approximate. "auto" is "torch": of the two exact ones, it is faster for patches
        that vary in few directions, such as those of networks.

    reduction : "max" or float, default="max"
        How the score of a sample follows from those of its patches: "max" is the
        largest, and a float in (0, 1] is the mean of this top fraction, of at least one
        patch.

    reweight : int or None, default=None
        Number b of neighbours in eq. 7 of the paper, at least 2; 9 in anomalib. The
        equation scales the score of a sample by how typical the matched patch is within
        the bank. Requires ``reduction="max"`` and ``n_neighbors=1``.

    position_window : int, (int, int) or None, default=None
        Height and width, in odd numbers of grid positions, of a window around each
        patch. The patch is compared only with bank rows that represent training patches
        inside the window. Use it only for parts that are aligned in all images. None
        compares patches regardless of their position.

        Experimental: in the project's benchmarks (page "Benchmarks", "Position
        windows"), a window raised the pixel AUROC by 0.006 on one class, whose defects
        are misplaced parts. It improved nothing on the other classes.

        Each bank row represents the training patches closest to it among all selected
        rows. So every training position has a row, even in a small coreset. If fewer
        than `n_neighbors` rows are allowed, the whole bank is searched. Samples must
        have a grid: (n, height, width, d), or (n, width, d). Grids of other shapes than
        ``position_grid_`` are scaled to it. Eq. 7 uses neighbours in the whole bank.
        Searches in a window are exact with every `algorithm`, and are not stored in
        `memory`.

    outlier_filter : {"sample", "lof", "nearest", "gaussian"} or None, default=None
        Removes outliers before the coreset is selected. Use it if some training samples
        may be anomalous: a greedy coreset picks outliers first.

        - "sample": removes whole samples. A sample is scored by the mean distance of
          its most unusual patches (4 %) to other samples, at any grid position. The
          distance is that to the third nearest sample, so that two images with the same
          defect do not mask each other.
        - "lof", "nearest", "gaussian": removes single patches. A patch is compared with
          those at the same grid position of other samples, as in SoftPatch (Jiang et
          al., 2022), by the local outlier factor, the distance to the nearest, or the
          Mahalanobis distance. Use these only for parts that are aligned in all images.

        None removes nothing. The computation grows with the square of the number of
        samples. Rows of a matrix are samples of one patch.

    outlier_fraction : float, default=0.15
        Share of the training samples (for "sample") or patches to remove, in (0, 1):
        those with scores above the quantile ``1 - outlier_fraction``. Clean samples
        that are removed are lost to the bank, so it should not be much larger than the
        expected share of anomalous ones.

    contamination : "auto" or float, default="auto"
        Share of the training samples, in (0, 0.5], on the anomalous side of `offset_`.
        "auto" is 0.01, of the samples that `outlier_filter` did not remove. What
        a sample alone added to the bank is left out when it is scored, but the bank
        still covers the training samples better than new ones. Expect a few times this
        share of false alarms on new normal samples; a
        :class:`~skpatchcore.calibration.ConformalDetector` holds a rate.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache on disk for a sampler without its own, and for the nearest neighbours of
        samples. Each sample is compared with a bank only once, for all values of
        `n_neighbors`. See :class:`BoundedMemory`.

    device : str, torch.device or None, default=None
        Device for the search. None uses the GPU if there is one, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seeds approximate searches, and a sampler without its own seed.

    verbose : int, default=0
        Show progress bars if positive; also passed to a sampler with ``verbose=0``.

    Attributes
    ----------
    bank_ : ndarray of shape (n_bank, n_features)
        The selected patches.

    bank_indices_ : ndarray of shape (n_bank,), int64
        Rows of the selected patches in ``X.reshape(-1, n_features)``, after samples
        with ``y == -1`` were left out.

    sampler_ : estimator
        The fitted sampler. With `outlier_filter`, its indices are rows of the patches
        that were not removed.

    outlier_indices_ : ndarray of shape (n_outliers,), int64
        The patches that `outlier_filter` removed, numbered as in `bank_indices_`.
        Exists only with a filter.

    position_grid_ : tuple of two ints
        Height and width of the grid in which windows are measured: the largest height
        and width of the training samples. Exists only with `position_window`.

    training_scores_ : ndarray of shape (n_training_samples,), float64
        ``score_samples`` of the training samples used, including removed outliers.
        What a sample alone added to the bank is left out for its own score; see Notes.

    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.

    patch_threshold_ : float
        Default threshold for masks: a share `contamination` of the training samples has
        a patch at a larger distance. Equals ``-offset_`` for ``reduction="max"``
        without `reweight`.

    n_features_in_ : int
        Number of features of a patch.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features, if `X` is a matrix with names that are all strings.

    See Also
    --------
    PatchCoreDetector : The same detector on images.
    CoresetSampler : Selects the patches to keep.

    Notes
    -----
    What a sample alone added to the bank is left out when it is scored. A bank row
    represents the training patches that are closer to it than to other rows. Rows that
    represent only patches of the sample are left out, since it alone put them there.
    Other rows stay: without this sample, the sampler would have selected another patch
    near them. So the score of a sample that was selected for others too may be 0. If
    the bank has fewer rows than there are samples, a row represents
    several samples on average, and those that represent fewer *other* samples than that
    count as a part of a neighbour. So a few similar outliers do not mask each
    other. With ``CoresetSampler(1.0)`` and samples of one patch, training scores are
    leave-one-out distances. A single training sample has no others, so it is matched
    with itself: its score, and `offset_`, are then too high for new samples.

    `score_samples`, `decision_function` and `predict` recognise training samples and
    return their training scores, so ``fit_predict(X)`` equals ``fit(X).predict(X)``.
    `score_patches` and `kneighbors` always compare with the whole bank.

    Parameters that are set after `fit` change no answer until the next `fit`, except
    `memory`, `device` and `verbose`.

    References
    ----------
    Roth, K., Pemula, L., Zepeda, J., Schölkopf, B., Brox, T., Gehler, P. "Towards Total
    Recall in Industrial Anomaly Detection", CVPR 2022, arXiv:2106.08265.

    Jiang, X., Liu, J., Wang, J., Nie, Q., Wu, K., Liu, Y., Wang, C., Zheng, F.
    "SoftPatch: Unsupervised Anomaly Detection with Noisy Data", NeurIPS 2022,
    arXiv:2403.14233.

    Examples
    --------
    Five samples of four patches each, and a new one with an unusual patch:

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
        "position_window": [Interval(Integral, 1, None, closed="left"), tuple, None],
        "outlier_filter": [StrOptions({"sample", "lof", "nearest", "gaussian"}), None],
        "outlier_fraction": [Interval(Real, 0, 1, closed="neither")],
        "contamination": [
            StrOptions({"auto"}),
            Interval(Real, 0, 0.5, closed="right"),
        ],
        "memory": MEMORY_CONSTRAINT,
        "device": [str, torch.device, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _frozen_names = (
        "n_neighbors",
        "metric",
        "algorithm",
        "reduction",
        "reweight",
        "position_window",
        "outlier_filter",
    )

    def __init__(
        self,
        sampler: Any = None,
        *,
        n_neighbors: int = 1,
        metric: str = "euclidean",
        algorithm: str = "auto",
        reduction: str | float = "max",
        reweight: int | None = None,
        position_window: int | tuple[int, int] | None = None,
        outlier_filter: str | None = None,
        outlier_fraction: float = 0.15,
        contamination: str | float = "auto",
        memory: str | os.PathLike | Memory | None = None,
        device: str | torch.device | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.sampler = sampler
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.algorithm = algorithm
        self.reduction = reduction
        self.reweight = reweight
        self.position_window = position_window
        self.outlier_filter = outlier_filter
        self.outlier_fraction = outlier_fraction
        self.contamination = contamination
        self.memory = memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def set_params(self, **params: Any) -> Self:
        """Set parameters, including those of the default sampler if `sampler` is None.

        Parameters
        ----------
        **params : dict
            Names and values. ``sampler__fraction`` is the sampler's ``fraction``.

        Returns
        -------
        self : PatchMemoryBank
            This estimator.
        """
        return super().set_params(**with_defaults(self, params, sampler=CoresetSampler))

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Select the bank from the patches of normal samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, ..., n_features)
            Patch features, float32 or float64.

        y : array-like of shape (n_samples,) or None, default=None
            +1 for normal and -1 for anomalous samples, which are left out. Numbers of
            classes (0 and more) are ignored, with a warning that shows how to convert
            them.

        Returns
        -------
        self : PatchMemoryBank
            Fitted detector.

        Raises
        ------
        ValueError
            If no sample is left; if there are other labels than these; if the bank has
            fewer rows than `n_neighbors` or `reweight`; or if the largest absolute
            value of `X` is above 1e140, or below 1e-130 but not 0, so that squares
            leave the range of float64.

        Warns
        -----
        UserWarning
            If the bank is too small to score training samples without their own
            patches: it has a single row, or all its rows come from one sample. Also if
            `y` was ignored.
        """
        with unchanged_on_error(self):
            patches, shape = self._validate_patches(X, reset=True)
            rows = normal_rows(y, shape[0], ignore_others=True)
            n_per_sample = int(np.prod(shape[1:]))
            if len(rows) < shape[0]:
                patches = patches.reshape(shape[0], n_per_sample, -1)[rows]
                patches = patches.reshape(len(rows) * n_per_sample, -1)
            # `_grid_shapes` asks for the window of this fit.
            self._freeze_params()
            return self._fit_patches(
                patches, self._grid_shapes((len(rows), *shape[1:]))
            )

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the negative anomaly score of samples: higher is more normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, ..., n_features)
            Patch features.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            At most 0, a distance of `metric` with negative sign.
        """
        check_is_fitted(self)
        patches, shape = self._validate_patches(X, reset=False)
        samples = self._samples(patches, self._grid_shapes(shape))
        return self._with_training_scores(samples, self._score(samples)[0])

    def score_patches(self, X: ArrayLike) -> NDArray[np.float64]:
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
        {"n_neighbors": [Interval(Integral, 1, None, closed="left"), None]}
    )
    def kneighbors(
        self, X: ArrayLike, n_neighbors: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the nearest patches of the bank for every patch.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, ..., n_features)
            Patch features.

        n_neighbors : int or None, default=None
            Number of neighbours. None uses the parameter `n_neighbors`.

        Returns
        -------
        distances : ndarray of shape (n_samples, ..., n_neighbors), float64
            Distances of `metric`, ascending.

        indices : ndarray of shape (n_samples, ..., n_neighbors), int64
            Rows of ``bank_``; ``bank_indices_[indices]`` are training patches.
        """
        check_is_fitted(self)
        patches, shape = self._validate_patches(X, reset=False)
        k = self._frozen.n_neighbors if n_neighbors is None else n_neighbors
        samples = self._samples(patches, self._grid_shapes(shape))
        search = self._search()
        distances, indices = search.query(samples.patches, samples.positions, k)
        return distances.reshape(*shape, -1), indices.reshape(*shape, -1)

    def _validate_patches(
        self, X: Any, *, reset: bool
    ) -> tuple[NDArray, tuple[int, ...]]:
        """Return patches (n_patches, d), and the shape of `X` without its last axis."""
        refuse_lazy(X)
        ndim = X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim
        if ndim > 2:
            X = check_array(
                X, dtype=[np.float64, np.float32], allow_nd=True, input_name="X"
            )
            shape, X = X.shape[:-1], X.reshape(-1, X.shape[-1])
            return validate_data(self, X, dtype=X.dtype, reset=reset), shape
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)
        return X, X.shape[:1]

    def _grid_shapes(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Return heights and widths (n, 2) of the grids of samples of one shape."""
        n_samples, *grid = shape
        window = self._frozen.position_window
        if window is not None and len(grid) not in (1, 2):
            raise ValueError(
                f"position_window={window} needs samples with a grid: X "
                "of shape (n_samples, height, width, n_features), or (n_samples, "
                f"width, n_features); got {len(grid) + 2} dimensions."
            )
        pair = grid if len(grid) == 2 else (1, int(np.prod(grid)))
        return np.tile(np.array(pair, dtype=np.int64), (n_samples, 1))

    def _fit_patches(
        self,
        patches: NDArray,
        shapes: NDArray[np.int64],
        *,
        foreground: NDArray[np.int64] | None = None,
        n_given: int | None = None,
    ) -> Self:
        """Fit on validated patches of samples with grids of `shapes` (n, 2).

        Only the rows `foreground`, ascending, enter the bank and are scored; None means
        all rows. Samples after the first `n_given` are transformed copies of these.
        They enter the bank, too, but training scores and thresholds are those of the
        given samples.
        """
        self._check_params_agree()
        self._freeze_params()
        n_given = len(shapes) if n_given is None else n_given
        prepared = unit_rows(patches) if self.metric == "cosine" else patches
        check_squares(prepared)
        random_state = check_random_state(self.random_state)
        sampler = self._make_sampler(random_state)
        kept = self._select_rows(prepared, shapes, n_given, foreground)
        candidates = prepared if len(kept) == len(prepared) else prepared[kept]
        if isinstance(sampler, FrozenEstimator):
            sampler = sampler.estimator
            _check_fitted_on(sampler, candidates.shape)
        else:
            sampler.fit(candidates)
        # If nothing was removed, keep the array itself: a model file stores it once.
        indices = np.asarray(sampler.sample_indices_)
        if len(kept) < len(prepared):
            indices = kept[indices]
        self._check_bank_size(len(indices), n_given)
        self.n_features_in_ = patches.shape[1]
        self.sampler_ = sampler
        self.bank_indices_ = indices
        self.bank_ = prepared[indices]
        self._store_positions(shapes, kept)
        self._index_seed = int(random_state.randint(np.iinfo(np.int32).max))
        self._index = self._build_index()
        samples = self._samples(patches, shapes)
        scored = np.arange(samples.offsets[n_given])
        self._training_sketches = sketch(samples.take(scored))
        if foreground is not None:
            scored = foreground[foreground < len(scored)]
        groups = np.repeat(np.arange(len(shapes)) % n_given, np.diff(samples.offsets))
        self._set_thresholds(samples, scored, kept, groups)
        return self

    def _select_rows(
        self,
        prepared: NDArray,
        shapes: NDArray[np.int64],
        n_given: int,
        foreground: NDArray[np.int64] | None,
    ) -> NDArray[np.int64]:
        """Return the rows of patches that may enter the bank, ascending."""
        kept = self._filter(prepared, shapes, n_given)
        if foreground is not None:
            kept = _intersection(kept, foreground)
        # Thresholds come from the given samples, so some of their patches must be left.
        if not np.any(kept < shapes[:n_given].prod(axis=1).sum()):
            raise ValueError(
                f"outlier_filter={self.outlier_filter!r} removes every foreground "
                "patch; lower outlier_fraction, or disable one of the two options, "
                "outlier_filter or foreground."
            )
        return kept

    def _check_params_agree(self) -> None:
        if isinstance(self.sampler, type):
            name = self.sampler.__name__
            raise TypeError(
                f"sampler must be an estimator, got the class {name}. Pass an "
                f"instance, such as {name}()."
            )
        if self.reweight is not None and (
            self.reduction != "max" or self.n_neighbors != 1
        ):
            raise ValueError(
                f"reweight={self.reweight} (eq. 7) is defined for reduction='max' and "
                f"n_neighbors=1; got reduction={self.reduction!r} and "
                f"n_neighbors={self.n_neighbors}."
            )
        if self.position_window is not None:
            check_window(self.position_window)

    def _filter(
        self, prepared: NDArray, shapes: NDArray[np.int64], n_given: int
    ) -> NDArray[np.int64]:
        """Return the rows of patches that may enter the bank; store the others."""
        everything = np.arange(len(prepared))
        # Remove the attribute of an earlier fit.
        self.__dict__.pop("outlier_indices_", None)
        if self.outlier_filter is None:
            return everything
        kept = inlying_rows(
            prepared,
            shapes,
            n_given,
            self.outlier_filter,
            self.outlier_fraction,
            self.device,
        )
        self.outlier_indices_ = np.setdiff1d(everything, kept, assume_unique=True)
        return kept

    def _store_positions(
        self, shapes: NDArray[np.int64], kept: NDArray[np.int64]
    ) -> None:
        """Store the grid positions of the training patches that each row represents."""
        for name in ("position_grid_", "_bank_positions", "_position_search"):
            self.__dict__.pop(name, None)
        if self.position_window is None:
            return
        height, width = shapes.max(axis=0).tolist()
        self.position_grid_ = (height, width)
        positions = reference_positions(shapes, self.position_grid_)
        nearest = getattr(self.sampler_, "nearest_picks_", None)
        if nearest is None:
            # Another sampler: each row represents only its own position.
            positions = positions[self.bank_indices_]
            nearest = np.arange(len(self.bank_))
        else:
            positions = positions[kept]
        self._bank_positions = covered_positions(positions, nearest)

    def _set_thresholds(
        self,
        samples: Samples,
        scored: NDArray[np.int64],
        kept: NDArray[np.int64],
        groups: NDArray[np.int64],
    ) -> None:
        """Score the training samples, and set thresholds at quantiles of the scores.

        Scores use the patches at rows `scored`. A number as `contamination` is the
        share of all samples that are anomalous. The default says nothing about
        outliers, so its thresholds use only patches that were `kept`: otherwise, they
        would lie among the outliers. `groups` are the given samples that all patches
        belong to.
        """
        near_rows = np.full(len(samples.patches), UNKNOWN)
        near_rows[kept] = getattr(self.sampler_, "nearest_picks_", UNKNOWN)
        support = self._support(near_rows, groups)
        self._tell_of_small_bank(support, len(samples.patches))

        def score(rows: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
            return score_training(
                TrainingSearch(
                    self._search(),
                    support,
                    samples.take(rows),
                    groups[rows],
                    self.n_neighbors,
                ),
                near_rows[rows],
                reduction=self.reduction,
                reweight=self.reweight,
                verbose=self.verbose,
            )

        self.training_scores_, largest = score(scored)
        scores = self.training_scores_
        share: Any = self.contamination
        if share == "auto":
            share, inlying = AUTO_CONTAMINATION, _intersection(scored, kept)
            if len(inlying) < len(scored):
                scores, largest = score(inlying)
        self.offset_ = lower_quantile(scores, share)
        self.patch_threshold_ = upper_quantile(largest, share)

    def _support(
        self, near_rows: NDArray[np.int64], groups: NDArray[np.int64]
    ) -> Support:
        """Return how much each bank row counts for each training sample."""
        represented = np.flatnonzero(near_rows != UNKNOWN)
        nearest = near_rows[represented]
        if len(represented) == 0:
            # Another sampler: each row represents only itself.
            represented, nearest = self.bank_indices_, np.arange(len(self.bank_))
        n_groups = int(groups.max()) + 1
        return Support(nearest, groups[represented], len(self.bank_), n_groups)

    def _tell_of_small_bank(self, support: Support, n_patches: int) -> None:
        """Warn if the bank is too small to score training samples without their own."""
        n_samples = len(support.alone)
        # A fit on a single sample is deliberate, and the class documents its scores.
        if n_samples == 1 or not (len(self.bank_) == 1 or support.alone.any()):
            return
        problem = f"All rows of the bank come from one of {n_samples} training samples"
        if len(self.bank_) == 1:
            problem = f"The bank has 1 row, selected from {n_patches}"
        warn_user(
            f"{problem}. Training scores and offset_ say little about new samples. Fit "
            "on more samples, or raise the sampler's fraction.",
        )

    def _make_sampler(self, random_state: np.random.RandomState) -> Any:
        """Return an unfitted sampler with the parameters that it inherits."""
        # safe=False, because a user's sampler need not be an estimator.
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

    def _check_bank_size(self, n_bank: int, n_samples: int) -> None:
        for name in ("n_neighbors", "reweight"):
            n_needed = getattr(self, name)
            if n_needed is not None and n_needed > n_bank:
                raise ValueError(
                    f"{name}={n_needed} needs more neighbours than the bank has rows, "
                    f"{n_bank}, from n_samples = {n_samples}. Lower {name}, raise the "
                    "sampler's fraction, or fit on more samples."
                )

    def _build_index(self) -> NeighborIndex:
        return build_index(
            self.bank_,
            algorithm=self._frozen.algorithm,
            device=self.device,
            random_state=self._index_seed,
        )

    def _search_index(self) -> NeighborIndex:
        """Return the index; build it again after unpickling, which leaves it out."""
        if not hasattr(self, "_index"):
            self._index = self._build_index()
        return self._index

    def _search_positions(self) -> PositionSearch | None:
        """Return the search in a window, or None without a window."""
        if self._frozen.position_window is None:
            return None
        search: PositionSearch | None = vars(self).get("_position_search")
        if search is None:
            search = self._position_search = PositionSearch(
                self._search_index(),
                self._bank_positions,
                self.position_grid_,
                check_window(self._frozen.position_window),
            )
        return search

    def _samples(self, patches: NDArray, shapes: NDArray[np.int64]) -> Samples:
        """Return samples with their patches and, with a window, grid positions."""
        positions = None
        if self._frozen.position_window is not None:
            positions = reference_positions(shapes, self.position_grid_)
        return Samples.of_grids(patches, shapes, positions)

    def _search(self) -> BankSearch:
        return BankSearch(
            self._search_index(),
            self._frozen.metric,
            position_search=self._search_positions(),
            memory=self.memory,
        )

    def _score(self, samples: Samples) -> tuple[NDArray, NDArray, NDArray]:
        """Return score_samples (n,), patch distances and bank rows (n_patches, k)."""
        frozen = self._frozen
        return self._search().score(
            samples, frozen.n_neighbors, frozen.reduction, frozen.reweight
        )

    def _with_training_scores(
        self, samples: Samples, scores: NDArray, tolerance: float = SAME_NUMBERS
    ) -> NDArray[np.float64]:
        """Return `scores` (n,) with the training scores of training samples.

        `samples` have all their patches, as in the fit.
        """
        known = recognize(self._training_sketches, samples, tolerance)
        return np.where(known >= 0, self.training_scores_[known], scores)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the search index out; it is built again from `bank_` at first use."""
        state = dict(super().__getstate__())
        state.pop("_index", None)
        state.pop("_position_search", None)
        return state


def _intersection(
    rows: NDArray[np.int64], others: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rows that are in both, ascending; neither has duplicates."""
    return np.intersect1d(rows, others, assume_unique=True)


def _check_fitted_on(sampler: Any, shape: tuple[int, int]) -> None:
    """Raise unless a frozen sampler was fitted on patches of this shape (n, d)."""
    check_is_fitted(sampler)
    n_features = getattr(sampler, "n_features_in_", shape[1])
    nearest = getattr(sampler, "nearest_picks_", None)
    n_patches = shape[0] if nearest is None else len(nearest)
    largest = int(np.max(sampler.sample_indices_, initial=0))
    if (n_patches, n_features) != shape or largest >= shape[0]:
        raise ValueError(
            f"The frozen sampler {sampler!r:.80} was fitted on other patches "
            f"(n_patches = {max(n_patches, largest + 1)}, n_features = {n_features}) "
            f"than the bank is given {shape}. Fit it on the same patches, or pass it "
            "without FrozenEstimator."
        )
