"""How well a coreset covers the patches it was chosen from, pick by pick."""

import numpy as np
from sklearn.utils import column_or_1d

from skpatchcore.inspection._axes import check_matplotlib, one_axes
from skpatchcore.inspection._colors import GUIDE, NEUTRAL


class CoresetCurveDisplay:
    """Cover radius of a coreset over the number of its picks.

    The cover radius is the distance of the patch farthest from all picks: no normal
    patch of the training set is farther from the bank. Since the picks are a prefix
    sequence, one run shows every smaller coreset: where the curve has become flat, more
    patches buy little.

    Use `from_estimator` with a fitted sampler, bank or detector, or `from_predictions`
    with radii. The constructor takes what the latter does, and draws nothing.

    Parameters
    ----------
    radii : array-like of shape (n_picks,)
        Cover radius after each pick, in the unit of the features.

    n_samples : int or None, default=None
        Number of patches that were chosen from; None: not known.

    name : str or None, default=None
        What the legend calls the curve; None: no legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.

    ax_ : matplotlib Axes
        Where it was drawn.

    figure_ : matplotlib Figure
        The figure that it is in.

    See Also
    --------
    skpatchcore.CoresetSampler : Its ``radii_`` are drawn.

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

    def __init__(self, radii, *, n_samples=None, name=None):
        self.radii = radii
        self.n_samples = n_samples
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, *, name=None, ax=None, **kwargs):
        """Draw the curve of a fitted sampler, bank or detector.

        Parameters
        ----------
        estimator : CoresetSampler, PatchMemoryBank or PatchCoreDetector
            Fitted. Of a search pass ``best_estimator_``, of a
            :class:`~skpatchcore.calibration.ConformalDetector` one of ``estimators_``.

        name : str or None, default=None
            What the legend calls the curve; None: no legend.

        ax : matplotlib Axes or None, default=None
            As for `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        CoresetCurveDisplay
            The curve, drawn.

        Raises
        ------
        TypeError
            If `estimator` holds no cover radii: not fitted, or of another kind.

        ValueError
            If the radii are not known: of ``method="none"`` only the last one is.

        ImportError
            If matplotlib is not installed.
        """
        sampler = _sampler_of(estimator)
        distances = getattr(sampler, "min_distances_", None)
        n_samples = None if distances is None else len(distances)
        display = cls(sampler.radii_, n_samples=n_samples, name=name)
        return display.plot(ax, **kwargs)

    @classmethod
    def from_predictions(cls, radii, *, n_samples=None, name=None, ax=None, **kwargs):
        """Draw a curve of radii.

        Parameters
        ----------
        radii : array-like of shape (n_picks,)
            Cover radius after each pick, in the unit of the features.

        n_samples : int or None, default=None
            Number of patches that were chosen from; None: not known.

        name : str or None, default=None
            What the legend calls the curve; None: no legend.

        ax : matplotlib Axes or None, default=None
            As for `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        CoresetCurveDisplay
            The curve, drawn.

        Raises
        ------
        ValueError
            If a radius is NaN.

        ImportError
            If matplotlib is not installed.
        """
        return cls(radii, n_samples=n_samples, name=name).plot(ax, **kwargs)

    def plot(self, ax=None, *, mark=None, log=True, **kwargs):
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure with pyplot.

        mark : int, float or None, default=None
            A number of picks, or a fraction of the patches in (0, 1], to mark with the
            radius there.

        log : bool, default=True
            Count picks on a logarithmic axis.

        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        CoresetCurveDisplay
            The curve, drawn.

        Raises
        ------
        ValueError
            If `mark` lies beyond the picks, or is a fraction while `n_samples` is None.
        """
        check_matplotlib()
        radii = column_or_1d(self.radii)
        if np.isnan(radii).any():
            raise ValueError(
                "radii holds NaN: with method='none' every patch is kept, and no curve "
                "is known; use method='greedy' or 'random'."
            )
        self.ax_ = one_axes(ax, (5.5, 3.6))
        self.figure_ = self.ax_.figure
        picks = np.arange(1, len(radii) + 1)
        style = {"color": NEUTRAL, "label": self.name, **kwargs}
        (self.line_,) = self.ax_.plot(picks, radii, **style)
        self.ax_.set(xlabel="patches kept", ylabel="cover radius")
        if log:
            self.ax_.set_xscale("log")
        # Another curve in the same axes may be higher.
        self.ax_.set_ylim(bottom=0, auto=True)
        self.ax_.grid(alpha=0.3)
        if self.n_samples is not None:
            self.ax_.set_xlabel(f"patches kept, out of {self.n_samples}")
        if mark is not None:
            self._draw_mark(self._count(mark, len(radii)), radii)
        if self.name is not None:
            self.ax_.legend()
        return self

    def _count(self, mark, n_picks: int) -> int:
        is_fraction = isinstance(mark, float)
        if is_fraction and self.n_samples is None:
            raise ValueError(
                f"mark={mark} is a fraction, but n_samples is None; give a number of "
                "picks."
            )
        count = max(1, int(mark * self.n_samples)) if is_fraction else mark
        if not 1 <= count <= n_picks:
            raise ValueError(
                f"mark={mark} stands for {count} picks; there are 1 to {n_picks}."
            )
        return count

    def _draw_mark(self, count: int, radii: np.ndarray) -> None:
        radius = radii[count - 1]
        self.ax_.vlines(count, 0, radius, color=GUIDE, linestyle=":")
        self.ax_.plot([count], [radius], "o", color=self.line_.get_color())
        share = ""
        if self.n_samples is not None:
            share = f" ({100 * count / self.n_samples:.2g} %)"
        # To the side on which there is more of the axis.
        on_left = count > np.sqrt(len(radii))
        self.ax_.annotate(
            f"{count} patches{share}\nradius {radius:.3g}",
            (count, radius),
            xytext=(-6 if on_left else 6, -8 if on_left else 8),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="top" if on_left else "bottom",
        )


def _sampler_of(estimator):
    """Return what has radii, of whatever holds it."""
    if hasattr(estimator, "radii_"):
        return estimator
    for name in ("memory_bank_", "sampler_"):
        if hasattr(estimator, name):
            return _sampler_of(getattr(estimator, name))
    raise TypeError(
        f"{estimator!r:.80} has no cover radii; expected a fitted CoresetSampler with "
        "method='greedy' or 'random', or a PatchMemoryBank or PatchCoreDetector with "
        "one; of a search pass best_estimator_, of a ConformalDetector one of "
        "estimators_."
    )
