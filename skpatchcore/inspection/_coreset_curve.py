"""Plot how well a coreset covers the patches that it was selected from."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.utils import column_or_1d

from skpatchcore.inspection._axes import check_matplotlib, one_axes, title_axes
from skpatchcore.inspection._colors import GUIDE, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CoresetCurveDisplay:
    """Plot the cover radius of a coreset against its number of patches.

    Use it to choose the size of a coreset without defective images. The cover radius is
    the largest distance from a training patch to the nearest selected patch, so no
    normal training patch is farther from the bank. Greedy picks are a prefix sequence:
    one run shows every smaller coreset. Where the curve is flat, more patches add
    little.

    Call `from_estimator` with a fitted sampler, bank or detector, or `from_predictions`
    with radii. The constructor has the parameters of the latter and draws nothing.

    Parameters
    ----------
    radii : array-like of shape (n_selected,)
        Cover radius after each selected patch, as a distance between features.

    n_samples : int or None, default=None
        Number of patches that the coreset was selected from. None: unknown.

    name : str or None, default=None
        Name of the curve in the legend. None draws no legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.

    ax_ : matplotlib Axes
        Axes that contain the curve.

    figure_ : matplotlib Figure
        Figure that contains the axes.

    See Also
    --------
    skpatchcore.CoresetSampler : Selects the coreset and computes its ``radii_``.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import CoresetSampler
    >>> from skpatchcore.inspection import CoresetCurveDisplay
    >>> X = np.random.default_rng(0).normal(size=(300, 8))
    >>> sampler = CoresetSampler(0.5, random_state=0).fit(X)
    >>> display = CoresetCurveDisplay.from_estimator(sampler)
    >>> display.line_.get_xdata().shape
    (150,)

    >>> import matplotlib.pyplot as plt
    >>> plt.close(display.figure_)
    """

    def __init__(
        self,
        radii: npt.ArrayLike,
        *,
        n_samples: int | None = None,
        name: str | None = None,
    ):
        self.radii = radii
        self.n_samples = n_samples
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        name: str | None = None,
        ax: "Axes | None" = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of a fitted sampler, bank or detector.

        Parameters
        ----------
        estimator : CoresetSampler, PatchMemoryBank or PatchCoreDetector
            A fitted estimator. For a search, pass ``best_estimator_``; for a
            :class:`~skpatchcore.calibration.ConformalDetector`, pass one of its
            ``estimators_``.

        name : str or None, default=None
            Name of the curve in the legend. None draws no legend.

        ax : matplotlib Axes or None, default=None
            See `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        CoresetCurveDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If `estimator` has no cover radii: it is not fitted, or of another type.

        ValueError
            If the radii are unknown. With ``method="none"``, only the last one is
            known.

        ImportError
            If matplotlib is not installed.
        """
        sampler = _sampler_of(estimator)
        distances = getattr(sampler, "min_distances_", None)
        n_samples = None if distances is None else len(distances)
        display = cls(sampler.radii_, n_samples=n_samples, name=name)
        return display.plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        radii: npt.ArrayLike,
        *,
        n_samples: int | None = None,
        name: str | None = None,
        ax: "Axes | None" = None,
        **kwargs: Any,
    ) -> Self:
        """Draw a curve of existing radii.

        Parameters
        ----------
        radii : array-like of shape (n_selected,)
            Cover radius after each selected patch, as a distance between features.

        n_samples : int or None, default=None
            Number of patches that the coreset was selected from. None: unknown.

        name : str or None, default=None
            Name of the curve in the legend. None draws no legend.

        ax : matplotlib Axes or None, default=None
            See `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        CoresetCurveDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If a radius is NaN.

        ImportError
            If matplotlib is not installed.
        """
        return cls(radii, n_samples=n_samples, name=name).plot(ax, **kwargs)

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        mark: float | None = None,
        log: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw. None creates a new figure with pyplot.

        mark : int, float or None, default=None
            Coreset size to mark with its radius: a number of patches (int), or a
            fraction of all patches in (0, 1] (float).

        log : bool, default=True
            Whether the axis of the number of patches is logarithmic.

        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        CoresetCurveDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If a radius is NaN, if `mark` is outside the range of the curve, or if
            `mark` is a fraction and `n_samples` is None.
        """
        check_matplotlib()
        radii = column_or_1d(self.radii)
        if np.isnan(radii).any():
            raise ValueError(
                "radii contains NaN. With method='none' every patch is kept and there "
                "is no curve; use method='greedy' or 'random'."
            )
        self.ax_ = one_axes(ax, (5.5, 3.6))
        self.figure_ = self.ax_.figure
        counts = np.arange(1, len(radii) + 1)
        style = {"color": NEUTRAL, "label": self.name, **kwargs}
        (self.line_,) = self.ax_.plot(counts, radii, **style)
        self.ax_.set(xlabel="patches kept", ylabel="cover radius (feature distance)")
        title_axes(self.ax_, "Cover radius of the coreset")
        if log:
            self.ax_.set_xscale("log")
        # Keep autoscaling: another curve in the same axes may be higher.
        self.ax_.set_ylim(bottom=0, auto=True)
        self.ax_.grid(alpha=0.3)
        if self.n_samples is not None:
            self.ax_.set_xlabel(f"patches kept, out of {self.n_samples}")
        if mark is not None:
            self._draw_mark(self._count(mark, len(radii)), radii)
        if self.name is not None:
            self.ax_.legend()
        return self

    def _count(self, mark, n_selected: int) -> int:
        is_fraction = isinstance(mark, float)
        if is_fraction and self.n_samples is None:
            raise ValueError(
                f"mark={mark} is a fraction, but n_samples is None. Pass n_samples, or "
                "a number of patches (int) as mark."
            )
        count = max(1, int(mark * self.n_samples)) if is_fraction else mark
        if not 1 <= count <= n_selected:
            raise ValueError(
                f"mark={mark} means {count} patches; the curve has 1 to {n_selected}."
            )
        return count

    def _draw_mark(self, count: int, radii: np.ndarray) -> None:
        radius = radii[count - 1]
        self.ax_.vlines(count, 0, radius, color=GUIDE, linestyle=":")
        self.ax_.plot([count], [radius], "o", color=self.line_.get_color())
        share = ""
        if self.n_samples is not None:
            share = f" ({100 * count / self.n_samples:.3g} %)"
        # Put the text on the side with more space.
        on_left = count > np.sqrt(len(radii))
        self.ax_.annotate(
            f"{count} patches{share}\nradius {radius:.3g}",
            (count, radius),
            xytext=(-6 if on_left else 6, -8 if on_left else 8),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="top" if on_left else "bottom",
        )


def _sampler_of(estimator: Any) -> Any:
    """Return the sampler of an estimator: the object that has `radii_`."""
    if hasattr(estimator, "radii_"):
        return estimator
    for name in ("memory_bank_", "sampler_"):
        if hasattr(estimator, name):
            return _sampler_of(getattr(estimator, name))
    raise TypeError(
        f"{estimator!r:.80} has no cover radii. Expected a fitted CoresetSampler with "
        "method='greedy' or 'random', or a fitted PatchMemoryBank or PatchCoreDetector "
        "with such a sampler. For a search, pass best_estimator_; for a "
        "ConformalDetector, pass one of its estimators_."
    )
