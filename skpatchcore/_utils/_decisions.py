"""Decide whether samples are outliers, from their scores and a threshold."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import OutlierMixin

from skpatchcore._utils._labels import labels_from_decision


class DecisionMixin(OutlierMixin):
    """Outlier decisions for a detector with `score_samples` and a fitted `offset_`."""

    offset_: float

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return scores of samples: higher is more normal."""
        raise NotImplementedError

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return ``score_samples(X) - offset_``: negative for anomalous samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or sequence of images
            As for `fit`.

        Returns
        -------
        decision : ndarray of shape (n_samples,), float64
            Higher is more normal. Exactly 0 counts as normal.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Decide whether samples are normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or sequence of images
            As for `fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int64
            +1 for normal and -1 for anomalous samples.
        """
        return labels_from_decision(self.decision_function(X))

    def fit_predict(
        self, X: Any, y: ArrayLike | None = None, **fit_params: Any
    ) -> NDArray[np.int64]:
        """Fit the detector, and decide whether the same samples are normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or sequence of images
            As for `fit`.

        y : array-like of shape (n_samples,) or None, default=None
            As for `fit`.

        **fit_params : dict
            Additional parameters of `fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int64
            +1 for normal and -1 for anomalous samples.
        """
        self.fit(X, y, **fit_params)
        if y is None and hasattr(self, "training_scores_"):
            # `fit` has already scored these samples.
            return labels_from_decision(self.training_scores_ - self.offset_)
        return self.predict(X)
