"""Detectors that consist of the estimators of several folds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skpatchcore._detectors import (
    Inspection,
    Inspections,
    Reference,
    find_detector,
    has_maps,
    in_order,
    is_frozen,
    merge_matches,
    renumber_images,
    windows,
)
from skpatchcore._images import Images
from skpatchcore._utils import available_if
from skpatchcore.calibration._calibrator import Calibrator
from skpatchcore.calibration._p_values import Calibration, anomaly_score
from skpatchcore.datasets import check_new_images


class FoldDetector(Calibrator):
    """A detector that merges what the estimators of folds see, by their calibration.

    `fit` sets ``estimators_``; ``_training_rows`` and ``_training_folds``, which row of
    `X` each was fitted on; the scores, folds and groups of the calibration; and
    ``_calibration_peaks``, if there are maps.
    """

    estimators_: list[Any]
    calibration_scores_: NDArray[np.float64]
    calibration_folds_: NDArray[np.int64]
    _training_rows: NDArray[np.int64]
    _training_folds: NDArray[np.int64]
    _calibration_peaks: NDArray[np.float64]

    @available_if(lambda self: self._has_maps())
    def nearest_patches(self, X: Any, n_neighbors: int | None = None) -> Bunch:
        """Return the training patches that every patch of an image is nearest to.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As `PatchCoreDetector` accepts them.

        n_neighbors : int or None, default=None
            As for `PatchCoreDetector.nearest_patches`.

        Returns
        -------
        matches : Bunch
            As `PatchCoreDetector.nearest_patches` returns it. ``image`` is the position
            in the `X` that this detector was fitted on, or that a frozen estimator was
            fitted on. The estimators of several folds have different banks; their
            matches are merged, and the nearest of all are returned.
        """
        check_is_fitted(self)
        images = check_new_images(X)
        parts = map(find_detector, self.estimators_)
        found = [
            part.detector.nearest_patches(part.prepare(images), n_neighbors)
            for part in parts
        ]
        pairs = zip(found, self._fold_rows(), strict=True)
        return merge_matches([renumber_images(*pair) for pair in pairs])

    @property
    def _calibration(self) -> Calibration:
        return self._calibrated_by(self.calibration_scores_)

    @property
    def _map_calibration(self) -> Calibration:
        return self._calibrated_by(-self._calibration_peaks)

    def _calibrated_by(self, scores: NDArray) -> Calibration:
        groups = getattr(self, "calibration_groups_", None)
        return Calibration(scores, self.calibration_folds_, groups)

    def _fold_rows(self) -> list[NDArray | None]:
        """Return the rows of `X` in `fit` that each estimator was fitted on.

        None stands for a frozen estimator, which was fitted on another `X`.
        """
        n_rows = np.bincount(self._training_folds, minlength=len(self.estimators_))
        rows = np.split(self._training_rows, np.cumsum(n_rows)[:-1])
        pairs = zip(self.estimators_, rows, strict=True)
        return [None if is_frozen(one) else learned for one, learned in pairs]

    def _has_maps(self) -> bool:
        # What was fitted decides, also after `set_params`.
        return has_maps(getattr(self, "estimators_", [self.estimator])[0])

    @property
    def _is_frozen(self) -> bool:
        return is_frozen(self.estimators_[0])

    def _inspect(self, images: Images) -> Inspections:
        """Yield what the estimators of all folds see in each image, in order."""
        for window in windows(images):
            part = images.take(window)
            folds = [in_order(find_detector(e).inspect(part)) for e in self.estimators_]
            scores = [np.array([seen.score for seen in fold]) for fold in folds]
            pooled = self._calibration.pool(scores)
            rows = zip(window.tolist(), pooled, *folds, strict=True)
            for i, score, *seen in rows:
                grid = np.mean([one.patch_scores for one in seen], axis=0)
                yield Inspection(
                    i, float(score), grid, seen[0].geometry, self, tuple(seen)
                )

    def _references(self) -> list[Reference]:
        pairs = zip(self.estimators_, self._fold_rows(), strict=True)
        return [
            reference.within(rows)
            for estimator, rows in pairs
            for reference in find_detector(estimator).references()
        ]

    def _map(self, seen: Inspection, size: str, border: str = "nearest") -> NDArray:
        maps = [-part.make_map(size, border).astype(np.float64) for part in seen.parts]
        return -self._map_calibration.pool(maps)

    def _peak(self, seen: Inspection) -> float:
        if len(seen.parts) == 1:
            return seen.parts[0].peak
        # Members of an ensemble may agree on no other size.
        return float(self._map(seen, "original").max())

    @property
    def _is_calibrated(self) -> bool:
        return True

    def _p_value(self, score: float) -> float:
        return float(self._calibration.p_values(np.array(score)))

    def _anomaly_score(self, score: float) -> float:
        scale = self._calibration.scale(self.offset_)
        return float(anomaly_score(np.array(-score), -self.offset_, scale))

    def _normalize(self, values: NDArray) -> NDArray:
        scale = self._map_calibration.scale(-self.map_threshold_)
        return anomaly_score(values, self.map_threshold_, scale)
