"""Plot the score distributions of normal and anomalous samples, and the threshold."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, gaussian_kde, iqr
from sklearn.utils import check_consistent_length, column_or_1d

from skpatchcore._detectors import check_signs, unwrap
from skpatchcore._utils import check_outlier_labels, normality
from skpatchcore.inspection._axes import check_matplotlib, one_axes, title_axes
from skpatchcore.inspection._colors import (
    ANOMALOUS,
    ANOMALOUS_HATCH,
    ANOMALOUS_LINE,
    NORMAL,
    NORMAL_HATCH,
    NORMAL_LINE,
    THRESHOLD,
    THRESHOLD_LINE,
    cased,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KINDS = {
    1: ("normal", NORMAL, NORMAL_LINE, NORMAL_HATCH),
    -1: ("anomalous", ANOMALOUS, ANOMALOUS_LINE, ANOMALOUS_HATCH),
}
_CONFIDENCE = 0.95
# Points between the axes and the legend below: ticks, and the label of the axis.
_LEGEND_GAP = 28
_N_POINTS = 400


class ScoreDistributionDisplay:
    """Plot the score densities of normal and anomalous samples, and the threshold.

    Use it to judge a threshold: how many false alarms it causes and how many defects it
    misses. Each sample is a mark near the bottom. The curves are kernel density
    estimates, one per class. Each curve is scaled to its own peak, because anomalous
    scores often vary so much more that their curve would be invisible on a common
    scale. Samples beyond the threshold are flagged. Flagged normal samples are false
    alarms. The legend states their rate with its 95 % confidence interval, because a
    few dozen samples say little about a rate of 1 %.

    Like all plots, it shows anomaly scores: higher is more *anomalous*. They are the
    negative of ``score_samples``.

    Call `from_estimator` with a fitted detector, or `from_predictions` with scores. The
    constructor has the parameters of the latter and draws nothing.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        +1 for normal and -1 for anomalous samples. One class may be missing.

    y_score : array-like of shape (n,)
        Scores as returned by ``score_samples``: higher is more normal.

    threshold : float or None, default=None
        Samples with a lower score are flagged, as with ``offset_``. None: unknown.

    alpha : float or None, default=None
        Nominal false-alarm rate of the threshold, in (0, 1). None: not stated.

    Attributes
    ----------
    false_alarm_rate_ : float
        Share of normal samples that are flagged, in [0, 1]. NaN if there is no
        threshold or no normal sample.

    false_alarm_interval_ : tuple of float
        Lower and upper end of the exact (Clopper-Pearson) 95 % confidence interval of
        the false-alarm rate.

    miss_rate_ : float
        Share of anomalous samples that are not flagged, in [0, 1]. NaN if there is no
        threshold or no anomalous sample.

    ax_ : matplotlib Axes
        Axes that contain the plot.

    figure_ : matplotlib Figure
        Figure that contains the axes.

    See Also
    --------
    skpatchcore.calibration.ConformalDetector : Set a threshold with a stated rate.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.inspection import ScoreDistributionDisplay
    >>> rng = np.random.default_rng(0)
    >>> y_true = np.repeat([1, -1], [60, 40])
    >>> y_score = np.where(y_true == 1, -2, -6) + rng.normal(size=100)
    >>> display = ScoreDistributionDisplay.from_predictions(
    ...     y_true, y_score, threshold=-3.5
    ... )
    >>> round(display.false_alarm_rate_, 3), round(display.miss_rate_, 3)
    (0.017, 0.0)

    >>> import matplotlib.pyplot as plt
    >>> plt.close(display.figure_)
    """

    def __init__(
        self,
        y_true: npt.ArrayLike,
        y_score: npt.ArrayLike,
        *,
        threshold: float | None = None,
        alpha: float | None = None,
    ):
        self.y_true = y_true
        self.y_score = y_score
        self.threshold = threshold
        self.alpha = alpha

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: npt.ArrayLike,
        *,
        ax: "Axes | None" = None,
        **kwargs: Any,
    ) -> Self:
        """Score samples and draw the distributions of their scores.

        Parameters
        ----------
        estimator : estimator
            Fitted outlier detector with ``score_samples`` and ``offset_``, or with
            ``decision_function``, or a pipeline that ends in such a detector.

        X : array-like of shape (n, ...), or sequence of images
            Samples that the estimator accepts. Use other samples than in fit.

        y : array-like of shape (n,)
            +1 for normal and -1 for anomalous samples.

        ax : matplotlib Axes or None, default=None
            See `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        ScoreDistributionDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If a label is neither +1 nor -1.

        TypeError
            If the estimator's scores are higher for more anomalous samples.

        ImportError
            If matplotlib is not installed.
        """
        check_signs(estimator, X)
        display = cls(
            y,
            normality(estimator, X),
            threshold=_threshold_of(estimator),
            alpha=getattr(unwrap(estimator)[0], "alpha_", None),
        )
        return display.plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: npt.ArrayLike,
        y_score: npt.ArrayLike,
        *,
        threshold: float | None = None,
        alpha: float | None = None,
        ax: "Axes | None" = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the distributions of existing scores.

        Parameters
        ----------
        y_true : array-like of shape (n,)
            +1 for normal and -1 for anomalous samples. One class may be missing.

        y_score : array-like of shape (n,)
            Scores; higher is more normal.

        threshold : float or None, default=None
            Samples with a lower score are flagged. None draws no threshold.

        alpha : float or None, default=None
            Nominal false-alarm rate of the threshold, in (0, 1). None: not stated.

        ax : matplotlib Axes or None, default=None
            See `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        ScoreDistributionDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If a label is neither +1 nor -1, or the numbers of labels and scores differ.

        ImportError
            If matplotlib is not installed.
        """
        return cls(y_true, y_score, threshold=threshold, alpha=alpha).plot(ax, **kwargs)

    def plot(self, ax: "Axes | None" = None, *, bandwidth: float | None = None) -> Self:
        """Draw the densities.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw. None creates a new figure with pyplot.

        bandwidth : float or None, default=None
            Standard deviation of the kernel, on the scale of the scores; greater than
            0. None uses Silverman's rule of thumb for each class.

        Returns
        -------
        ScoreDistributionDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If `bandwidth` is not positive.
        """
        check_matplotlib()
        if bandwidth is not None and not bandwidth > 0:
            raise ValueError(
                f"bandwidth={bandwidth} must be positive, or None for Silverman's rule."
            )
        y_true = check_outlier_labels(self.y_true, "y_true")
        anomaly = -column_or_1d(self.y_score).astype(float)
        check_consistent_length(y_true, anomaly)
        self._count(y_true, anomaly)
        self.ax_ = one_axes(ax, (6, 3.8))
        self.figure_ = self.ax_.figure
        # Normal samples first, so that they come first in the legend.
        for kind in (1, -1):
            if (y_true == kind).any():
                self._draw_kind(kind, anomaly[y_true == kind], bandwidth)
        if self.threshold is not None:
            self._draw_threshold(self.threshold)
        self.ax_.set(xlabel="anomaly score", ylabel="density (peak = 1)")
        # Leave space for the marks at the bottom.
        self.ax_.set(ylim=(-0.15, 1.05), yticks=[0, 0.5, 1])
        title_axes(self.ax_, "Anomaly scores of normal and anomalous samples")
        self._draw_legend()
        return self

    def _draw_legend(self) -> None:
        """Draw the legend below the label of the axis, where it hides nothing."""
        from matplotlib.transforms import ScaledTranslation

        scale = self.figure_.dpi_scale_trans
        self.ax_.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            bbox_transform=self.ax_.transAxes
            + ScaledTranslation(0, -_LEGEND_GAP / 72, scale),
            frameon=False,
            ncols=2,
        )

    def _count(self, y_true: np.ndarray, anomaly: np.ndarray) -> None:
        self._n_normal = int(np.sum(y_true == 1))
        self._n_anomalous = len(y_true) - self._n_normal
        self.false_alarm_rate_ = self.miss_rate_ = np.nan
        self.false_alarm_interval_ = (np.nan, np.nan)
        if self.threshold is None:
            return
        # As in the detectors, a score equal to the threshold is normal.
        flagged = -anomaly < self.threshold
        self._n_false = int(np.sum(flagged[y_true == 1]))
        self._n_missed = int(np.sum(~flagged[y_true == -1]))
        if self._n_normal:
            self.false_alarm_rate_ = self._n_false / self._n_normal
            test = binomtest(self._n_false, self._n_normal)
            ends = test.proportion_ci(_CONFIDENCE)
            self.false_alarm_interval_ = (float(ends.low), float(ends.high))
        if self._n_anomalous:
            self.miss_rate_ = self._n_missed / self._n_anomalous

    def _draw_kind(
        self, kind: int, anomaly: np.ndarray, bandwidth: float | None
    ) -> None:
        name, color, line, hatch = _KINDS[kind]
        label = f"{name} ({len(anomaly)})"
        at_bottom = self.ax_.get_xaxis_transform()
        height = 0.065 if kind == 1 else 0.02
        self.ax_.plot(
            anomaly,
            np.full(len(anomaly), height),
            linestyle="none",
            marker="|" if kind == 1 else "x",
            markersize=6 if kind == 1 else 4,
            color=color,
            transform=at_bottom,
            # A single sample, or samples with equal scores, have no density curve.
            label=label if np.ptp(anomaly) == 0 else None,
        )
        if np.ptp(anomaly) == 0:
            return
        x, density = estimate_density(anomaly, bandwidth)
        self.ax_.plot(x, density, color=color, linestyle=line)
        self.ax_.fill_between(
            x,
            density,
            facecolor=(color, 0.3),
            edgecolor=color,
            hatch=hatch,
            linewidth=0,
            label=label,
        )

    def _draw_threshold(self, threshold: float) -> None:
        label = f"threshold {-threshold:.4g}"
        if self.alpha is not None:
            label += f", set for {100 * self.alpha:.3g} % false alarms"
        if self._n_normal:
            low, high = (100 * end for end in self.false_alarm_interval_)
            label += (
                f"\nfalse alarms: {self._n_false} of {self._n_normal} = "
                f"{100 * self.false_alarm_rate_:.3g} %\n"
                "95 % confidence interval\n"
                f"(Clopper-Pearson): {low:.3g} to {high:.3g} %"
            )
        if self._n_anomalous:
            label += f"\nmissed: {self._n_missed} of {self._n_anomalous}"
        self.ax_.axvline(
            -threshold,
            color=THRESHOLD,
            linestyle=THRESHOLD_LINE,
            path_effects=cased(1.5),
            label=label,
        )


def estimate_density(
    values: np.ndarray, bandwidth: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return points, and the kernel density there, scaled to 1 at its peak.

    The values must not all be equal.
    """
    deviation = values.std(ddof=1)
    if bandwidth is None:
        # Silverman (1986), eq. 3.31: robust, so that a few distant values do not blur
        # all the others. SciPy's "silverman" is the rule without the quartiles.
        robust = min(deviation, iqr(values, scale="normal")) or deviation
        bandwidth = 0.9 * robust * len(values) ** -0.2
    margin = 3 * bandwidth
    x = np.linspace(values.min() - margin, values.max() + margin, _N_POINTS)
    # SciPy takes the bandwidth in units of the standard deviation.
    density = gaussian_kde(values, bandwidth / deviation)(x)
    return x, density / density.max()


def _threshold_of(estimator: Any) -> float | None:
    """Return the decision threshold of an estimator, on the scale of `normality`."""
    if not hasattr(estimator, "score_samples"):
        return 0.0
    offset = getattr(unwrap(estimator)[0], "offset_", None)
    # scikit-learn's one-class SVM has an array with one element.
    return None if offset is None else float(np.ravel(offset)[0])
