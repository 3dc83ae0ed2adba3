"""The detector on patch vectors: distances to a bank of normal patches."""

from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skpatchcore._bank._outliers import inlying_patches
from skpatchcore._bank._search import BankSearch
from skpatchcore._bank._training_scores import UNKNOWN, score_training
from skpatchcore._coreset import CoresetSampler
from skpatchcore._neighbors import (
    NeighborIndex,
    PositionSearch,
    build_index,
    check_squares,
    check_window,
    covered_cells,
    reference_cells,
    unit_rows,
)
from skpatchcore._utils import (
    MEMORY_CONSTRAINT,
    DecisionMixin,
    HasMethods,
    Interval,
    Samples,
    StrOptions,
    fit_context,
    inherit_params,
    lower_quantile,
    normal_rows,
    unchanged_on_error,
    upper_quantile,
    validate_params,
    with_defaults,
)

# The training scores' quantile that "auto" puts the threshold at.
AUTO_CONTAMINATION = 0.01


class PatchMemoryBank(DecisionMixin, BaseEstimator):
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

    position_window : int, (int, int) or None, default=None
        Height and width, odd numbers of grid positions, of a window about each patch:
        it is compared only with bank rows that stand for training patches in there. A
        row stands for those that it was the coreset's nearest pick to, so every
        training position has one, however small the coreset. Where fewer than
        `n_neighbors` rows are allowed, the whole bank is searched. For parts that lie
        alike in all images; None compares patches wherever they are. Grids of other
        shapes than ``position_grid_`` are scaled to it. Samples must have a grid: (n,
        height, width, d), or (n, width, d). Eq. 7 looks at neighbours in the whole
        bank. Searches in a window are exact with any `algorithm`, and not kept in
        `memory`.

    outlier_filter : {"sample", "lof", "nearest", "gaussian"} or None, default=None
        What is left out before the coreset is chosen, where some training samples may
        be anomalous: a greedy coreset takes outliers first.

        - "sample": whole samples, the 4 % oddest patches of which are farthest, on
          average, from other samples, wherever in the grid: to the third nearest, for
          two of one defect not to vouch for each other.
        - "lof", "nearest", "gaussian": single patches, compared with those at the same
          place of the grid in other samples, as in SoftPatch (Jiang et al., 2022):
          local outlier factor, distance to the nearest, Mahalanobis distance. They are
          for parts that lie alike in all images.

        None leaves nothing out. Work grows with the square of the number of samples;
        rows of a matrix are samples of one patch.

    outlier_fraction : float, default=0.15
        Share of the training samples ("sample"), or patches, to leave out, in (0, 1):
        those with scores above the quantile ``1 - outlier_fraction``. What is left out
        of clean samples is lost, so it should not be much more than what is feared.

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
        The fitted sampler. With `outlier_filter` its indices are rows of the patches
        that were not left out.

    outlier_indices_ : ndarray of shape (n_outliers,), int64
        The patches that `outlier_filter` left out, numbered as in `bank_indices_`. Only
        there with a filter.

    position_grid_ : tuple of two ints
        Height and width of the grid that windows are measured in: the largest of the
        training samples. Only there with `position_window`.

    training_scores_ : ndarray of shape (n_training_samples,), float64
        ``score_samples`` of the training samples used, those left out as outliers too.
        All 0 if every patch was kept and `n_neighbors` is 1.

    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``. What
        `outlier_filter` left out has no say in it.

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
    PatchCoreDetector : The same on images.
    CoresetSampler : Chooses the patches to keep.

    References
    ----------
    Roth, K., Pemula, L., Zepeda, J., Schölkopf, B., Brox, T., Gehler, P. "Towards Total
    Recall in Industrial Anomaly Detection", CVPR 2022, arXiv:2106.08265.

    Jiang, X., Liu, J., Wang, J., Nie, Q., Wu, K., Liu, Y., Wang, C., Zheng, F.
    "SoftPatch: Unsupervised Anomaly Detection with Noisy Data", NeurIPS 2022,
    arXiv:2403.14233.

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

    def __init__(
        self,
        sampler=None,
        *,
        n_neighbors=1,
        metric="euclidean",
        algorithm="auto",
        reduction="max",
        reweight=None,
        position_window=None,
        outlier_filter=None,
        outlier_fraction=0.15,
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
        self.position_window = position_window
        self.outlier_filter = outlier_filter
        self.outlier_fraction = outlier_fraction
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

    @fit_context(prefer_skip_nested_validation=False)
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
            If no sample is left, the bank has fewer rows than `n_neighbors` or
            `reweight` ask for, or the largest absolute value of `X` is above 1e140 or
            below 1e-130 but not 0, so that squares leave the range of float64.
        """
        with unchanged_on_error(self):
            patches, shape = self._validate_patches(X, reset=True)
            rows = normal_rows(y, shape[0])
            n_per_sample = int(np.prod(shape[1:]))
            if len(rows) < shape[0]:
                patches = patches.reshape(shape[0], n_per_sample, -1)[rows]
                patches = patches.reshape(len(rows) * n_per_sample, -1)
            return self._fit_patches(
                patches, self._grid_shapes((len(rows), *shape[1:]))
            )

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
        samples = self._samples(patches, self._grid_shapes(shape))
        return self._score(samples)[0]

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
        {"n_neighbors": [Interval(Integral, 1, None, closed="left"), None]}
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
        samples = self._samples(patches, self._grid_shapes(shape))
        distances, indices = self._search().query(samples.patches, samples.cells, k)
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

    def _grid_shapes(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return heights and widths (n, 2) of the grids of samples of one shape."""
        n_samples, *grid = shape
        if self.position_window is not None and len(grid) not in (1, 2):
            raise ValueError(
                f"position_window={self.position_window} needs samples with a grid: X "
                "of shape (n_samples, height, width, n_features), or (n_samples, "
                f"width, n_features); got {len(grid) + 2} dimensions."
            )
        pair = grid if len(grid) == 2 else (1, int(np.prod(grid)))
        return np.tile(np.array(pair, dtype=np.int64), (n_samples, 1))

    def _fit_patches(
        self,
        patches: np.ndarray,
        shapes: np.ndarray,
        *,
        foreground: np.ndarray | None = None,
        n_given: int | None = None,
    ):
        """Fit on validated patches of samples with grids of `shapes` (n, 2).

        Only rows `foreground`, ascending, are learned and scored; None is all. Samples
        beyond the first `n_given` are the same ones, transformed: they are learned from
        too, but training scores and thresholds are of the given ones.
        """
        self._check_params_agree()
        n_given = len(shapes) if n_given is None else n_given
        prepared = unit_rows(patches) if self.metric == "cosine" else patches
        check_squares(prepared)
        random_state = check_random_state(self.random_state)
        sampler = self._make_sampler(random_state)
        kept = self._filter(prepared, shapes, n_given)
        if foreground is not None:
            kept = _intersection(kept, foreground)
        # Thresholds are of the given samples, so some of theirs must be left.
        if not np.any(kept < shapes[:n_given].prod(axis=1).sum()):
            raise ValueError(
                f"outlier_filter={self.outlier_filter!r} takes all patches of the "
                "foreground for outliers; lower outlier_fraction, or do without one of "
                "the two."
            )
        sampler.fit(prepared if len(kept) == len(prepared) else prepared[kept])
        # Where nothing is left out they are one array, which a model file holds once.
        indices = np.asarray(sampler.sample_indices_)
        if len(kept) < len(prepared):
            indices = kept[indices]
        self._check_bank_size(len(indices))
        self.n_features_in_ = patches.shape[1]
        self.sampler_ = sampler
        self.bank_indices_ = indices
        self.bank_ = prepared[indices]
        self._normalized = self.metric == "cosine"
        self._place_bank(shapes, kept)
        self._index_seed = int(random_state.randint(np.iinfo(np.int32).max))
        self._index = self._build_index()
        samples = self._samples(patches, shapes)
        scored = np.arange(samples.offsets[n_given])
        if foreground is not None:
            scored = foreground[foreground < len(scored)]
        self._set_thresholds(samples, scored, kept)
        return self

    def _check_params_agree(self) -> None:
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

    def _filter(self, prepared, shapes, n_given: int) -> np.ndarray:
        """Return the rows of patches that may enter the bank; note the others."""
        everything = np.arange(len(prepared))
        # Not left from an earlier fit.
        vars(self).pop("outlier_indices_", None)
        if self.outlier_filter is None:
            return everything
        groups = np.split(shapes, range(n_given, len(shapes), n_given))
        ends = np.cumsum([group.prod(axis=1).sum() for group in groups])
        # Like is compared with like: what was made of an outlier would vouch for it.
        kept = np.concatenate(
            [
                start
                + inlying_patches(
                    part,
                    group,
                    self.outlier_filter,
                    self.outlier_fraction,
                    self.device,
                )
                for start, part, group in zip(
                    [0, *ends[:-1]], np.split(prepared, ends[:-1]), groups, strict=True
                )
            ]
        )
        self.outlier_indices_ = np.setdiff1d(everything, kept, assume_unique=True)
        return kept

    def _place_bank(self, shapes, kept) -> None:
        """Note in which cells of a grid each bank row stands for training patches."""
        for name in ("position_grid_", "_bank_cells", "_positions"):
            vars(self).pop(name, None)
        if self.position_window is None:
            return
        self.position_grid_ = tuple(shapes.max(axis=0).tolist())
        cells = reference_cells(shapes, self.position_grid_)
        nearest = getattr(self.sampler_, "nearest_picks_", None)
        if nearest is None:
            cells, nearest = cells[self.bank_indices_], np.arange(len(self.bank_))
        else:
            cells = cells[kept]
        self._bank_cells = covered_cells(cells, nearest)

    def _set_thresholds(self, samples: Samples, scored, kept) -> None:
        """Score the training samples, and put thresholds at quantiles of the scores.

        Scores are those of the rows `scored`, thresholds those of the rows `kept` among
        them: outliers would move them to where none is found.
        """
        picks = np.full(len(samples.patches), UNKNOWN)
        picks[kept] = getattr(self.sampler_, "nearest_picks_", UNKNOWN)

        def score(rows):
            return score_training(
                self._search(),
                samples.take(rows),
                picks[rows],
                n_neighbors=self.n_neighbors,
                reduction=self.reduction,
                reweight=self.reweight,
                verbose=self.verbose,
            )

        self.training_scores_, largest = score(scored)
        scores, inlying = self.training_scores_, _intersection(scored, kept)
        if len(inlying) < len(scored):
            scores, largest = score(inlying)
        share = self.contamination
        share = AUTO_CONTAMINATION if share == "auto" else share
        self.offset_ = lower_quantile(scores, share)
        self.patch_threshold_ = upper_quantile(largest, share)

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

    def _search_positions(self) -> PositionSearch:
        window = check_window(self.position_window)
        kept = vars(self).get("_positions")
        if kept is None or kept.window != window:
            self._positions = PositionSearch(
                self._search_index(), self._bank_cells, self.position_grid_, window
            )
        return self._positions

    def _samples(self, patches: np.ndarray, shapes: np.ndarray) -> Samples:
        """Return all patches of samples, with where they are if that matters."""
        self._check_as_fitted()
        cells = None
        if self.position_window is not None:
            cells = reference_cells(shapes, self.position_grid_)
        return Samples.of_grids(patches, shapes, cells)

    def _check_as_fitted(self) -> None:
        """Refuse what was set after the fit and would need another one."""
        if (self.metric == "cosine") != self._normalized:
            changed = "metric"
        elif self.position_window is not None and not hasattr(self, "position_grid_"):
            changed = "position_window"
        else:
            return
        raise ValueError(
            f"{changed}={getattr(self, changed)!r} was set after the fit, which "
            "prepared the bank for another one; fit again."
        )

    def _search(self) -> BankSearch:
        """Return what finds distances to the bank, by the parameters as they are."""
        windowed = self.position_window is not None
        return BankSearch(
            self._search_index(),
            self.metric,
            positions=self._search_positions() if windowed else None,
            memory=self.memory,
        )

    def _score(self, samples: Samples):
        """Return score_samples (n,), patch distances and bank rows (n_patches, k)."""
        return self._search().score(
            samples, self.n_neighbors, self.reduction, self.reweight
        )

    def __getstate__(self):
        """Leave the search index out; it is built again from `bank_` at first use."""
        state = dict(super().__getstate__())
        state.pop("_index", None)
        state.pop("_positions", None)
        return state


def _intersection(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the rows that are in both, ascending; each has none twice."""
    return np.intersect1d(rows, others, assume_unique=True)
