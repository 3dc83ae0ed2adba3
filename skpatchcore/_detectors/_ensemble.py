"""Several detectors of images as one, each calibrated on held-out normal images."""

import os
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from joblib import Memory
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import Bunch, check_random_state, indexable
from sklearn.utils.validation import check_is_fitted

from skpatchcore._bank import AUTO_CONTAMINATION, PatchMemoryBank
from skpatchcore._detectors._base import (
    ImageDetector,
    Inspections,
    Reference,
    in_order,
    windows,
)
from skpatchcore._detectors._cross_fit import features_once, held_out_splits
from skpatchcore._detectors._detector import PatchCoreDetector
from skpatchcore._detectors._inspection import Inspection
from skpatchcore._detectors._maps import resize_map, seen_pixels
from skpatchcore._images import Images, check_images
from skpatchcore._utils import (
    MEMORY_CONSTRAINT,
    BaseComposition,
    encode_groups,
    fit_context,
    inherit_params,
    lower_quantile,
    normal_rows,
    unchanged_on_error,
    upper_quantile,
)
from skpatchcore.datasets import check_new_images, refuse_masks


class PatchCoreEnsemble(ImageDetector, BaseComposition):
    """Average detectors with other networks or layers, each on its own scale.

    Distances of two networks cannot be compared: the network with the larger numbers,
    or with more noise, would dominate their mean. So every member is cross-fitted:
    detectors fitted without some of the normal images score these as new ones, and the
    member's scores are divided by the standard deviation of the result. This needs no
    defects and no test images.

    The mean is then multiplied by one number, so that a typical new normal image has
    the score -1 (scores are higher for more *normal* images) and a map whose largest
    value is 1. Each score is only rescaled, so large defects are not clipped, and the
    order of images within a member stays the same.

    Parameters
    ----------
    estimators : list of (str, PatchCoreDetector)
        Names, and detectors to clone and fit. ``set_params(name="drop")`` leaves a
        member out, and ``set_params(name__features__layers=...)`` sets one of its
        parameters.

    cv : int or splitter, default=5
        Folds of the normal images; every image must be in exactly one test fold. An
        int is a shuffled :class:`~sklearn.model_selection.KFold`, with one fold per
        image if there are fewer images.

    contamination : "auto" or float, default="auto"
        "auto" puts `offset_` where 1 % of the *held-out* images are on the anomalous
        side; a float in (0, 0.5] is the share of the *training* images there, as in
        scikit-learn's detectors. For a stated false-alarm rate, wrap the ensemble in a
        :class:`~skpatchcore.calibration.ConformalDetector`.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache on disk for members that have none; see `PatchCoreDetector`. None keeps
        layer maps in a temporary folder during `fit`.

    device : str, torch.device or None, default=None
        Where to compute, for members that have no device set.

    random_state : int, RandomState instance or None, default=None
        Shuffles the folds, and seeds members that have no seed set.

    verbose : int, default=0
        Passed on to members whose `verbose` is 0.

    Attributes
    ----------
    estimators_ : list of PatchCoreDetector
        The members, fitted on all normal images; without those that are dropped.

    named_estimators_ : Bunch
        The same by name.

    score_weights_ : ndarray of shape (n_members,), float64
        ``score_samples`` is the sum of the members' with these factors.

    map_weights_ : ndarray of shape (n_members,), float64
        The same for maps.

    held_out_scores_ : ndarray of shape (n_training_images,), float64
        ``score_samples`` of the training images by members that had not seen them.

    training_scores_ : ndarray of shape (n_training_images,), float64
        ``score_samples`` of the training images by the members that learned them.
        What an image alone added to a memory bank is left out for its own score.

    training_indices_ : ndarray of shape (n_training_images,), int64
        The images of `X` that were learned from.

    offset_ : float
        Threshold: ``decision_function(X) = score_samples(X) - offset_``.

    map_threshold_ : float
        Default threshold of `predict_masks`: a share `contamination` of the held-out
        images (1 % for "auto") has a larger value in its map.

    See Also
    --------
    PatchCoreDetector : A member.
    sklearn.ensemble.VotingClassifier : Handles names and "drop" in the same way.

    Notes
    -----
    `fit` makes ``cv + 1`` coresets for each member; an image passes each network once.

    Maps are averaged pixel by pixel in the size of the image, so members may differ in
    their grids and input sizes. The sizes "resized" and "grid" need members that have
    them in common.

    Examples
    --------
    >>> from skpatchcore import (
    ...     PatchCoreDetector, PatchCoreEnsemble, PatchFeatureTransformer
    ... )
    >>> from skpatchcore.datasets import make_surface_defects
    >>> surfaces = make_surface_defects(6, 1, 1, image_size=64, random_state=0)
    >>> def detector(layer):
    ...     features = PatchFeatureTransformer("gabor", (layer,), image_size=64)
    ...     return PatchCoreDetector(features)
    >>> ensemble = PatchCoreEnsemble(
    ...     [("fine", detector("fine")), ("coarse", detector("coarse"))],
    ...     cv=3,
    ...     random_state=0,
    ... ).fit(surfaces.data, surfaces.target)
    >>> ensemble.score_samples(surfaces.data[-2:]).shape
    (2,)
    >>> float(ensemble.held_out_scores_.mean().round(6))
    -1.0
    >>> ensemble.predict_maps(surfaces.data[-2:]).shape
    (2, 64, 64)
    """

    _parameter_constraints = {
        "estimators": [list],
        "cv": ["cv_object"],
        "contamination": PatchMemoryBank._parameter_constraints["contamination"],
        "memory": MEMORY_CONSTRAINT,
        "device": PatchMemoryBank._parameter_constraints["device"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    # Groups decide what is held out. With metadata routing, searches pass them on
    # without a request by the user.
    __metadata_request__fit = {"groups": True}

    def __init__(
        self,
        estimators: list[tuple[str, Any]],
        *,
        cv: Any = 5,
        contamination: str | float = "auto",
        memory: str | os.PathLike | Memory | None = None,
        device: str | torch.device | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimators = estimators
        self.cv = cv
        self.contamination = contamination
        self.memory = memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return parameters, those of the members too.

        Parameters
        ----------
        deep : bool, default=True
            Include members by their names, and their parameters.

        Returns
        -------
        params : dict
            Names and values.
        """
        return self._get_params("estimators", deep=deep)

    def set_params(self, **params: Any) -> Self:
        """Set parameters, replace a member, or drop it.

        Parameters
        ----------
        **params : dict
            ``name=detector`` replaces a member, ``name="drop"`` leaves it out, and
            ``name__sampler__fraction=0.05`` sets a parameter of it.

        Returns
        -------
        self : PatchCoreEnsemble
            This estimator.
        """
        return self._set_params("estimators", **params)

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None, *, groups: Any = None) -> Self:
        """Fit the members, and calibrate each on images that were held out.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `PatchCoreDetector.fit`.

        y : array-like of shape (n,) or None, default=None
            +1 for normal and -1 for anomalous images, which are left out.

        groups : array-like of shape (n,) or None, default=None
            Which images belong together, such as those of one part. Groups are held
            out as a whole, as in :class:`~skpatchcore.calibration.ConformalDetector`.

        Returns
        -------
        self : PatchCoreEnsemble
            Fitted ensemble.

        Raises
        ------
        TypeError, ValueError, FileNotFoundError
            If a parameter or an image is not as described, no member is left, or there
            are fewer than two normal images, so that none can be held out.
        """
        members = self._members()
        (X,) = indexable(X)
        images = check_images(X)
        rows = normal_rows(y, len(images))
        refuse_masks(images.take(rows), X)
        random_state = check_random_state(self.random_state)
        groups = None if groups is None else encode_groups(groups, len(images))
        splits = self._split(X, rows, random_state, groups)
        fitted, held_out = [], []
        for _, member in members:
            one, seen = _cross_inspect(
                self._adopt(member, random_state), images, rows, splits
            )
            one.training_indices_ = rows
            fitted.append(one)
            held_out.append(seen)
        with unchanged_on_error(self):
            self.estimators_ = fitted
            self._member_names = [name for name, _ in members]
            self.training_indices_ = rows
            self._calibrate(held_out)
            return self

    @property
    def named_estimators_(self) -> Bunch:
        """The fitted members by the names they had in `fit`."""
        check_is_fitted(self)
        return Bunch(**dict(zip(self._member_names, self.estimators_, strict=True)))

    def nearest_patches(self, X: Any, n_neighbors: int | None = None) -> Bunch:
        """Return the training patches that each member compares patches with.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        n_neighbors : int or None, default=None
            How many for each patch; None is each member's own number.

        Returns
        -------
        matches : Bunch
            By name of the member, what `PatchCoreDetector.nearest_patches` returns;
            members differ in their grids and banks.
        """
        images = check_new_images(X)
        return Bunch(
            **{
                name: member.nearest_patches(images, n_neighbors)
                for name, member in self.named_estimators_.items()
            }
        )

    def _members(self) -> list[tuple[str, PatchCoreDetector]]:
        """Return names and detectors, without those that are dropped."""
        pairs = all(isinstance(e, tuple) and len(e) == 2 for e in self.estimators)
        if not pairs or not all(isinstance(name, str) for name, _ in self.estimators):
            raise ValueError(
                "estimators must be a list of (name, detector) tuples, got "
                f"{self.estimators!r:.80}."
            )
        self._validate_names([name for name, _ in self.estimators])
        members = [(n, e) for n, e in self.estimators if not _is_dropped(e)]
        for name, member in members:
            if not isinstance(member, PatchCoreDetector):
                raise TypeError(
                    f"Member {name!r} must be a PatchCoreDetector or 'drop', got "
                    f"{member!r:.80}."
                )
        if not members:
            raise ValueError(
                f"An ensemble needs at least one member; estimators={self.estimators}."
            )
        return members

    def _split(
        self, X: Any, rows: NDArray, random_state: Any, groups: NDArray | None
    ) -> list[tuple]:
        n = len(rows) if groups is None else len(np.unique(groups[rows]))
        if n < 2:
            raise ValueError(
                "An ensemble is calibrated on held-out normal images, or groups of "
                f"them, and needs at least 2; got n_samples = {n}. Use more images, or "
                "a single PatchCoreDetector, which needs one."
            )
        cv, params = self.cv, {} if groups is None else {"groups": groups}
        cv = min(cv, n) if isinstance(cv, Integral) else cv
        return held_out_splits(cv, X, rows, random_state, groups=groups, params=params)

    def _adopt(self, member: PatchCoreDetector, random_state: Any) -> PatchCoreDetector:
        """Return a clone of a member with inherited parameters."""
        # Drawn for every member, also for those that have a seed.
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        return inherit_params(
            clone(member),
            random_state=None if self.random_state is None else seed,
            device=self.device,
            memory=self.memory,
            verbose=self.verbose,
        )

    def _calibrate(self, held_out: list[list[Inspection]]) -> None:
        """Set weights and thresholds from what each member saw in held-out images."""
        scores = np.array([[-seen.score for seen in member] for member in held_out])
        peaks = np.array(
            [[seen.peak for seen in of_member] for of_member in held_out],
            dtype=np.float64,
        )
        self.score_weights_ = balanced_weights(scores)
        self.map_weights_ = balanced_weights(peaks)
        self.held_out_scores_ = -self.score_weights_ @ scores
        self.training_scores_ = self.score_weights_ @ np.array(
            [member.training_scores_ for member in self.estimators_]
        )
        share: Any = self.contamination
        if share == "auto":
            share = AUTO_CONTAMINATION
            decisive = self.held_out_scores_
        else:
            decisive = self.training_scores_
        self.offset_ = lower_quantile(decisive, share)
        combined = [
            self._combine(i, members).peak
            for i, members in enumerate(zip(*held_out, strict=True))
        ]
        self.map_threshold_ = upper_quantile(combined, share)

    def _inspect(self, images: Images) -> Inspections:
        """Yield what the members see in each image, in order."""
        for window in windows(images):
            part = images.take(window)
            seen = [in_order(member._inspect(part)) for member in self.estimators_]
            for i, *members in zip(window.tolist(), *seen, strict=True):
                yield self._combine(i, members)

    def _combine(self, index: int, members: Sequence[Inspection]) -> Inspection:
        """Return what members see in one image as one inspection."""
        score = self.score_weights_ @ np.array([seen.score for seen in members])
        first = members[0]
        grids = [resize_map(m.patch_scores, first.patch_scores.shape) for m in members]
        patch_scores = sum(
            weight * grid for weight, grid in zip(self.map_weights_, grids, strict=True)
        )
        return Inspection(
            index, float(score), patch_scores, first.geometry, self, tuple(members)
        )

    def _uncached_features(self) -> list[str] | None:
        return None if self.memory is None else []

    def _references(self) -> list[Reference]:
        # Members differ in grids and scales, so the first is shown.
        return [Reference(self.estimators_[0])]

    def _map(self, seen: Inspection, size: str, border: str = "nearest") -> NDArray:
        if size != "original" and not _agree(seen, size):
            raise ValueError(
                f"size={size!r} needs members with equal sizes, but their networks "
                f"see {[one.geometry.crop for one in seen.parts]} pixels and give "
                f"grids of {[one.patch_scores.shape for one in seen.parts]}; use "
                "size='original', or the maps of a member in named_estimators_."
            )
        weighted = zip(self.map_weights_, seen.parts, strict=True)
        merged = sum(weight * part.make_map(size) for weight, part in weighted)
        if border == "nan" and size == "original":
            covered = [seen_pixels(part.geometry) for part in seen.parts]
            merged[~np.logical_or.reduce(covered)] = np.nan
        return merged.astype(np.float32)

    def _peak(self, seen: Inspection) -> float:
        """Return the largest value of an image's map."""
        # If all maps are interpolated in the same way, their mean cannot exceed this.
        size = "resized" if _agree(seen, "resized") else "original"
        return self._map(seen, size).max()


def balanced_weights(anomaly: NDArray) -> NDArray:
    """Return a factor for each member that makes standard deviations equal.

    Parameters
    ----------
    anomaly : ndarray of shape (n_members, n_images)
        Anomaly scores of held-out normal images, at least 0.

    Returns
    -------
    weights : ndarray of shape (n_members,), float64
        Proportional to 1 / standard deviation; the mean of ``weights @ anomaly`` is 1.
    """
    center, deviation = anomaly.mean(axis=1), anomaly.std(axis=1)
    # Of equal images the standard deviation is 0, but for rounding.
    tiny = deviation <= 1e-6 * center
    weights = 1 / np.where(tiny, np.where(center > 0, center, 1), deviation)
    typical = weights @ center
    return weights / typical if typical > 0 else weights / len(weights)


def _cross_inspect(
    member: PatchCoreDetector, images: Images, rows: NDArray, splits: list[tuple]
) -> tuple[PatchCoreDetector, list[Inspection]]:
    """Return `member` fitted on all rows, and what it sees in those held out."""
    held_out: dict[int, Inspection] = {}
    with features_once(member, len(splits) + 1) as (remembering, give_back):
        for train, test in splits:
            fold = clone(remembering).fit(images.take(rows[train]))
            for seen in fold._inspect(images.take(rows[test])):
                held_out[int(test[seen.index])] = seen
        fitted = clone(remembering).fit(images.take(rows))
        give_back([fitted])
    # Inspections refer to their detector, and would keep the banks of the folds.
    return fitted, [replace(held_out[i], detector=fitted) for i in range(len(rows))]


def _agree(seen: Inspection, size: str) -> bool:
    """Return whether maps of that size show the same places in all members."""
    parts = seen.parts
    grids = {one.patch_scores.shape for one in parts} if size == "grid" else {()}
    return len({one.geometry for one in parts}) == len(grids) == 1


def _is_dropped(estimator: Any) -> bool:
    return isinstance(estimator, str) and estimator == "drop"
