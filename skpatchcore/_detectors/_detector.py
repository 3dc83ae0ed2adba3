"""PatchCore on images: features, coreset, memory bank and maps composed."""

import os
from contextlib import closing
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from joblib import Memory
from sklearn.base import BaseEstimator, clone
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skpatchcore._bank import SAME_IMAGE, PatchMemoryBank
from skpatchcore._coreset import CoresetSampler
from skpatchcore._detectors._base import ImageDetector, Inspections, Reference
from skpatchcore._detectors._foreground import Foreground, fit_foreground
from skpatchcore._detectors._inspection import Inspection
from skpatchcore._detectors._maps import anomaly_map
from skpatchcore._detectors._matches import stack_matches
from skpatchcore._features import PatchFeatureTransformer, check_features, thaw
from skpatchcore._images import (
    AUGMENTATIONS,
    Augmented,
    Images,
    Transform,
    check_images,
    find_transforms,
    learn_cast,
    warn_if_mixed,
    warn_if_swapped,
)
from skpatchcore._utils import (
    FrozenParams,
    HasMethods,
    Interval,
    StrOptions,
    fit_context,
    inherit_params,
    normal_rows,
    unchanged_on_error,
    validate_params,
    with_defaults,
)
from skpatchcore.datasets import check_new_images, refuse_masks


class PatchCoreDetector(ImageDetector, FrozenParams, BaseEstimator):
    """Detect defective images, and where they are defective, from normal ones only.

    PatchCore (Roth et al., 2022): patch features of a pretrained network, a coreset of
    those of the training images as memory bank, and the distance to the bank as
    anomaly score. An image is as anomalous as its most anomalous patch.

    Signs are scikit-learn's for images: ``score_samples`` and ``decision_function``
    are higher for more *normal* images, ``predict`` gives +1 for normal and -1 for
    anomalous. Maps and plots are the other way round: ``predict_maps`` is higher where
    an image is more *anomalous*.

    Parameters
    ----------
    features : PatchFeatureTransformer or None, default=None
        Turns images into patch features. None is ``PatchFeatureTransformer()``.

    sampler : estimator or None, default=None
        Chooses the patches of the memory bank; None is ``CoresetSampler()``, the greedy
        k-centre coreset of 10 % of the patches.

    n_neighbors : int, default=1
        A patch's score is its mean distance to this many nearest patches of the bank.

    metric : {"euclidean", "sqeuclidean", "cosine"}, default="euclidean"
        Distance of two patches; see :class:`PatchMemoryBank`.

    algorithm : {"auto", "torch", "faiss", "pynndescent"}, default="auto"
        Nearest-neighbour search; see :class:`PatchMemoryBank`.

    reduction : "max" or float, default="max"
        An image's score from those of its patches: the largest, or the mean of the top
        fraction in (0, 1].

    reweight : int or None, default=None
        Number of neighbours in eq. 7 of the paper, or no reweighting.

    position_window : int, (int, int) or None, default=None
        Experimental. Height and width, odd numbers of grid positions, of a window that
        patches are compared in, for parts that are aligned in all images; see
        :class:`PatchMemoryBank`. On the classes measured, a window of 5 gained .006
        pixel AUROC on one, whose defects are misplaced parts, and nothing on the
        others.

    outlier_filter : {"sample", "lof", "nearest", "gaussian"} or None, default=None
        What is left out of the bank if some training images may be defective: whole
        images ("sample") or single patches (the others); see
        :class:`PatchMemoryBank`.

    outlier_fraction : float, default=0.15
        Share of the training images ("sample"), or of their patches, to leave out, in
        (0, 1).

    contamination : "auto" or float, default="auto"
        Share of the training images, in (0, 0.5], that `offset_` puts on the anomalous
        side. "auto" is 0.01, of the images that `outlier_filter` did not remove.
        What an image alone added to the bank is left out when it is scored, but the
        bank still covers the training images better than new ones. New normal images
        may be flagged a few times as often; a
        :class:`~skpatchcore.calibration.ConformalDetector` holds a rate.

    augmentation : {"rotate", "flip", "brightness"}, callable, sequence of these or \
            None, default=None
        Transforms that add reference images; use them if you have few images, and
        parts come in more positions, or in more light, than these show. Each is
        applied to the given images, not to the result of another; thresholds and
        training scores are those of the given images alone.

        - "rotate": 7 rotations about the centre, by 45 to 315 degrees. The size stays
          the same, and corners are filled with the mirrored image;
        - "flip": 2, left to right and top to bottom;
        - "brightness": 2, of 0.8 and 1.25 times the brightness, clipped;
        - a function of an image, float32 (h, w, 3) in [0, 1], that returns another of
          the same shape, always the same one for the same image.

    foreground : "auto" or None, default=None
        "auto" uses only the patches of the object: Otsu's threshold splits the first
        principal component of the features of all training patches, and the side that
        is rarer at the border of images, grown by a patch, is the object. Other
        patches are neither learned nor scored, and are 0 in maps. If the two sides of
        the training images do not stand out, it warns and uses all patches; it also
        uses all patches of an image in which it finds no object. None uses all
        patches. AnomalyDINO's recipe has such a mask; on the classes measured it
        gained nothing.

    smoothing : float, default=4.0
        Standard deviation of the Gaussian that smooths maps, in pixels of the network's
        input, so that it scales with the image. 0 does not smooth.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache on disk for `features`, `sampler` and the search for neighbours. With it,
        a whole grid search passes every image through the network once, runs the
        greedy once per training set, and compares every image with a bank once. None
        keeps nothing. See :class:`BoundedMemory`.

    device : str, torch.device or None, default=None
        Where to compute, also for `features` and `sampler` unless they have a device
        set; None is the GPU if there is one, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seeds `features` and `sampler` if they have no seed set. Pass an int for the
        same bank in every call.

    verbose : int, default=0
        Show progress bars if positive.

    Attributes
    ----------
    features_ : PatchFeatureTransformer
        The fitted transformer.

    memory_bank_ : PatchMemoryBank
        The fitted bank of patches.

    training_indices_ : ndarray of shape (n_training_images,), int64
        The images of `X` that were learned from.

    foreground_ : tuple of (ndarray of shape (d,), float) or None
        Direction and threshold: patches are of the object where their product with the
        direction is above. None: all are.

    training_scores_ : ndarray of shape (n_training_images,), float64
        Their ``score_samples``, including those left out as outliers. What an
        image alone added to the bank is left out for its own score; see the notes of
        :class:`PatchMemoryBank`.

    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.

    map_threshold_ : float
        Default threshold of `predict_masks`: a share `contamination` of the training
        images has a larger patch distance to the patches of other images.

    See Also
    --------
    PatchMemoryBank : The same on features that you extracted.
    PatchFeatureTransformer : Turns images into patch features.

    Notes
    -----
    In a :class:`~sklearn.pipeline.Pipeline` or a grid search, reach the methods for
    maps through the last step or ``search.best_estimator_``.

    Training images are recognised by their features, and have their training scores in
    `score_samples`, `predict` and `inspect`. Their maps and matches are those of the
    whole memory bank, which contains patches of their own.

    Parameters that are set after `fit` change no answer until the next `fit`, except
    `memory`, `device` and `verbose`.

    References
    ----------
    Roth, K., Pemula, L., Zepeda, J., Schölkopf, B., Brox, T., Gehler, P. "Towards Total
    Recall in Industrial Anomaly Detection", CVPR 2022, arXiv:2106.08265.

    Damm, S., Laszkiewicz, M., Lederer, J., Fischer, A. "AnomalyDINO: Boosting
    Patch-based Few-shot Anomaly Detection with DINOv2", WACV 2025, arXiv:2405.14529,
    for turned references and foreground masks; there each image has a component of
    its own, and a threshold fixed for DINOv2.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
    >>> from skpatchcore.datasets import make_surface_defects
    >>> surfaces = make_surface_defects(
    ...     n_train=6, n_test_good=1, n_test_defective=1, image_size=64, random_state=0
    ... )
    >>> features = PatchFeatureTransformer("resnet18", weights="random", image_size=64)
    >>> detector = PatchCoreDetector(features, random_state=0)
    >>> detector = detector.fit(surfaces.data, surfaces.target)
    >>> detector.score_samples(surfaces.data).shape
    (8,)
    >>> detector.predict_maps(surfaces.data[-2:]).shape
    (2, 64, 64)
    """

    _parameter_constraints = {
        **PatchMemoryBank._parameter_constraints,
        "features": [HasMethods(["fit", "transform"]), None],
        "augmentation": [StrOptions(set(AUGMENTATIONS)), callable, "array-like", None],
        "foreground": [StrOptions({"auto"}), None],
        "smoothing": [Interval(Real, 0, None, closed="left")],
    }

    _frozen_names = (*PatchMemoryBank._frozen_names, "smoothing")

    def __init__(
        self,
        features: Any = None,
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
        augmentation: Any = None,
        foreground: str | None = None,
        smoothing: float = 4.0,
        memory: str | os.PathLike | Memory | None = None,
        device: str | torch.device | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.features = features
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
        self.augmentation = augmentation
        self.foreground = foreground
        self.smoothing = smoothing
        self.memory = memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of `features` and a `sampler` left at None too.

        Parameters
        ----------
        **params : dict
            Names and values; ``sampler__fraction`` is the sampler's ``fraction``.

        Returns
        -------
        self : PatchCoreDetector
            This estimator.
        """
        defaults = {"features": PatchFeatureTransformer, "sampler": CoresetSampler}
        return super().set_params(**with_defaults(self, params, **defaults))

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn what normal patches look like.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            Paths, encoded images (bytes or BytesIO with the contents of a file), PIL
            images, arrays of uint8, uint16 or float in [0, 1], or torch tensors (n, c,
            h, w). Sizes may differ. Colours must be RGB: OpenCV returns BGR.

        y : array-like of shape (n,) or None, default=None
            +1 for normal and -1 for anomalous images, which are left out.

        Returns
        -------
        self : PatchCoreDetector
            Fitted detector.

        Raises
        ------
        TypeError, ValueError, FileNotFoundError
            If a parameter or an image is not as described; the message names it. Also
            if paths in `X` look like masks of other images, such as ``0_mask.png`` of
            ``0.png``, or files in ``ground_truth``.

        Warns
        -----
        UserWarning
            If many images look as if their red and blue were swapped.
        """
        # Check parameters before the network sees any image.
        bank = PatchMemoryBank(**self._bank_params())
        bank._check_params_agree()
        transforms = find_transforms(self.augmentation)
        images = check_images(X)
        rows = normal_rows(y, len(images))
        images = images.take(rows)
        refuse_masks(images, X)
        features = self._make_features()
        grids = features._fit_extract(
            Augmented(images, transforms) if transforms else images
        )
        # Of the images as they were given: augmentation comes after them.
        casts = [geometry.cast for geometry in grids.geometries[: len(rows)]]
        warn_if_mixed(images, casts)
        foreground = kept = None
        if self.foreground is not None:
            foreground = fit_foreground(grids.patches, grids.shapes)
        if foreground is not None:
            kept = foreground.select(grids.patches, grids.shapes)
        bank._fit_patches(
            grids.patches, grids.shapes, foreground=kept, n_given=len(rows)
        )
        with unchanged_on_error(self):
            self.features_ = thaw(features)
            self.memory_bank_ = bank
            self.training_indices_ = rows
            self._training_shapes = grids.shapes
            self._training_aspects = np.array([g.aspect for g in grids.geometries])
            self._color_cast = learn_cast(casts)
            self._augmentation = self.augmentation
            self._freeze_params()
            self.foreground_ = None if foreground is None else (*foreground,)
            self.training_scores_ = bank.training_scores_
            self.offset_ = bank.offset_
            self.map_threshold_ = bank.patch_threshold_
            return self

    @validate_params(
        {"n_neighbors": [Interval(Integral, 1, None, closed="left"), None]}
    )
    def nearest_patches(self, X: Any, n_neighbors: int | None = None) -> Bunch:
        """Return the training patches that every patch of an image is nearest to.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        n_neighbors : int or None, default=None
            How many for each patch; None is the parameter `n_neighbors`.

        Returns
        -------
        matches : Bunch
            The arrays ``image`` (position in the `X` given to `fit`), ``row`` and
            ``column`` (position in that image's patch grid), ``transform`` (0 for the
            image as it was given, i for the i-th that `augmentation` stands for), all
            int64, and ``distance`` (float64, ascending, in the unit of `metric`), each
            of shape (n, h, w, n_neighbors), where h times w is the patch grid; lists of
            n arrays if grids differ. For images that were rotated or flipped, row and
            column are those of the nearest patch in the given image; for images that a
            function made, they are positions in what it made. With `foreground`,
            patches outside the object have matches too, although they have no score.
        """
        check_is_fitted(self)
        images = check_new_images(X)
        k = self._frozen.n_neighbors if n_neighbors is None else n_neighbors
        found: dict[int, list[np.ndarray]] = {}
        with closing(self.features_._iter_projected(images)) as batches:
            for indices, grids, _ in batches:
                bank = self.memory_bank_
                samples = bank._samples(
                    grids.reshape(-1, grids.shape[-1]),
                    bank._grid_shapes(grids.shape[:3]),
                )
                distances, rows = bank._search().query(
                    samples.patches, samples.positions, k
                )
                shape = (*grids.shape[:3], k)
                places = [part.reshape(shape) for part in self._locate(rows)]
                for j, i in enumerate(indices):
                    found[i] = [part[j] for part in (*places, distances.reshape(shape))]
        return stack_matches([found[i] for i in range(len(images))])

    def _make_features(self) -> PatchFeatureTransformer:
        features = self.features
        features = PatchFeatureTransformer() if features is None else features
        features = clone(check_features(features))
        features = inherit_params(
            features,
            random_state=self.random_state,
            device=self.device,
            memory=self.memory,
            verbose=self.verbose,
        )
        if hasattr(features, "_parameter_constraints"):
            features._validate_params()
        return features

    def _uncached_features(self) -> list[str] | None:
        if self.memory is not None:
            return []
        return ["features__memory"] if self.features is None else None

    def _bank_params(self) -> dict:
        names = PatchMemoryBank._parameter_constraints
        return {name: getattr(self, name) for name in names}

    def _inspect(self, images: Images) -> Inspections:
        """Yield what one pass over each image gives, not always in order."""
        casts: list[float] = []
        with closing(self.features_._iter_projected(images)) as batches:
            for indices, grids, geometries in batches:
                casts += [geometry.cast for geometry in geometries]
                scores, patch_scores = self._score_grids(grids)
                found = zip(indices, scores, patch_scores, geometries, strict=True)
                for index, score, grid, geometry in found:
                    yield Inspection(index, float(score), grid, geometry, self)
        warn_if_swapped(images, casts, self._color_cast)

    def _score_grids(self, grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (n,) and patch scores (n, h, w) of features (n, h, w, d)."""
        n, h, w, d = grids.shape
        bank = self.memory_bank_
        samples = bank._samples(grids.reshape(-1, d), bank._grid_shapes((n, h, w)))
        if self.foreground_ is None:
            scores, inside, _ = bank._score(samples)
            patch_scores = inside.reshape(n, h, w)
        else:
            direction, threshold = self.foreground_
            foreground = Foreground(direction, threshold)
            masks = np.stack([foreground.mask(grid) for grid in grids])
            scores, inside, _ = bank._score(samples.take(np.flatnonzero(masks)))
            patch_scores = np.zeros(masks.shape)
            patch_scores[masks] = inside
        return bank._with_training_scores(samples, scores, SAME_IMAGE), patch_scores

    def _references(self) -> list[Reference]:
        return [Reference(self)]

    def _map(self, seen: Inspection, size: str, border: str = "nearest") -> np.ndarray:
        return anomaly_map(
            seen.patch_scores,
            seen.geometry,
            size=size,
            smoothing=self._frozen.smoothing,
            border=border,
        )

    def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return image, row, column and transform of bank rows."""
        patches = self.memory_bank_.bank_indices_[rows]
        sizes = self._training_shapes.prod(axis=1)
        ends = sizes.cumsum()
        made = np.searchsorted(ends, patches, side="right")
        row, column = np.divmod(
            patches - (ends - sizes)[made], self._training_shapes[made, 1]
        )
        number, image = np.divmod(made, len(self.training_indices_))
        for i, transform in enumerate(find_transforms(self._augmentation), start=1):
            of_it = number == i
            if of_it.any() and isinstance(transform, Transform):
                row[of_it], column[of_it] = transform.origin(
                    row[of_it],
                    column[of_it],
                    self._training_shapes[made[of_it]],
                    self._training_aspects[made[of_it]],
                )
        return self.training_indices_[image], row, column, number
