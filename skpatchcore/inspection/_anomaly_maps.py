"""Plots of images with their anomaly maps (heat maps), overlays and masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_consistent_length

from skpatchcore._detectors import find_maps
from skpatchcore._images import check_images
from skpatchcore.datasets import read_masks
from skpatchcore.inspection._axes import (
    AxesLike,
    check_matplotlib,
    grid_of_axes,
    label_row,
    row_titles,
    title_figure,
)
from skpatchcore.inspection._colors import (
    PREDICTED_LINE,
    PREDICTED_MASK,
    THRESHOLD,
    THRESHOLD_LINE,
    TRUE_MASK,
    LineStyle,
    cased,
)
from skpatchcore.inspection._overlays import (
    ALPHA,
    CALIBRATED_LIMITS,
    CALIBRATED_THRESHOLD,
    blend,
    color_limits,
    strength_of,
    value_range,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap

_COLUMNS = ("input", "map", "overlay", "mask", "truth")
_COLUMN_TITLES = {
    "input": "input",
    "map": "anomaly map",
    "overlay": "overlay",
    "mask": "defect",
    "truth": "ground truth",
}


class AnomalyMapDisplay:
    """Plot images with their anomaly maps (heat maps), overlays and masks.

    Use it to see where a detector finds defects, and how well they agree with the
    ground truth. Each image has one row. The columns show the image, its anomaly map,
    the map as an overlay on the image, and the outlines of the true and the predicted
    defect (segmentation). All rows share one colour scale with the threshold in the
    middle, so that a normal image stays dark instead of showing its own noise in full
    colour.

    Call `from_estimator` with a fitted detector, or `from_predictions` with existing
    maps. The constructor has the parameters of the latter and draws nothing.

    Parameters
    ----------
    images : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
        Paths, encoded images, PIL images, arrays of uint8, uint16 or float in [0, 1],
        or torch tensors (n, c, h, w). Sizes may differ.

    maps : sequence of n ndarray of shape (h, w)
        Anomaly maps in the size of their images. Higher is more anomalous; NaN marks
        pixels without a score.

    masks : sequence of length n or None, default=None
        True defects. For each image, the path of a mask, an array (h, w) that is
        non-zero where the image is defective, or None if it has no defect. If `masks`
        itself is None, the true defects are unknown.

    threshold : float or None, default=None
        Pixels with a larger map value are predicted to be anomalous. On the scale of
        `maps`. If None, nothing is predicted, and the colour scale ends at the largest
        value.

    titles : sequence of str or None, default=None
        Label of each row. None uses folder and file names, or numbers.

    calibrated : bool, default=False
        Whether `maps` come from a
        :class:`~skpatchcore.calibration.ConformalDetector` with ``normalized=True``.
        The colour scale then goes from 1/8, the typical maximum of a normal image's
        map, to 7/8, with the threshold 1/2 in the middle. It is the same in the plots
        of all calibrated detectors.

    Attributes
    ----------
    axes_ : ndarray of shape (n, n_columns) of matplotlib Axes
        Axes of each image and column.

    figure_ : matplotlib Figure
        Figure that contains the axes.

    colorbar_ : matplotlib Colorbar or None
        The colour bar.

    See Also
    --------
    skpatchcore.PatchCoreDetector.predict_maps : Compute the maps.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
    >>> from skpatchcore.datasets import make_surface_defects
    >>> from skpatchcore.inspection import AnomalyMapDisplay
    >>> surfaces = make_surface_defects(6, 1, 2, image_size=64, random_state=0)
    >>> features = PatchFeatureTransformer("resnet18", weights="random", image_size=64)
    >>> detector = PatchCoreDetector(features, random_state=0)
    >>> detector = detector.fit(surfaces.data, surfaces.target)
    >>> display = AnomalyMapDisplay.from_estimator(
    ...     detector,
    ...     surfaces.data[-3:],
    ...     masks=surfaces.masks[-3:],
    ...     titles=surfaces.defect_types[-3:],
    ... )
    >>> display.axes_.shape
    (3, 4)

    In a script, save the plot with ``display.figure_.savefig("sheet.png")``.

    >>> import matplotlib.pyplot as plt
    >>> plt.close(display.figure_)
    """

    def __init__(
        self,
        images: Any,
        maps: Sequence[NDArray] | NDArray,
        *,
        masks: Sequence[Any] | None = None,
        threshold: float | None = None,
        titles: Sequence[str] | None = None,
        calibrated: bool = False,
    ):
        self.images = images
        self.maps = maps
        self.masks = masks
        self.threshold = threshold
        self.titles = titles
        self.calibrated = calibrated

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        masks: Sequence[Any] | None = None,
        threshold: float | None = None,
        titles: Sequence[str] | None = None,
        ax: "AxesLike | None" = None,
        **kwargs: Any,
    ) -> Self:
        """Compute the anomaly maps of images and draw them.

        Parameters
        ----------
        estimator : PatchCoreDetector or ConformalDetector
            A fitted detector, or another object that has ``predict_maps``. For a
            search, pass ``best_estimator_``; for a pipeline, pass the last step. The
            maps of a :class:`~skpatchcore.calibration.ConformalDetector` are shown on
            the calibrated scale, unless you pass a `threshold`.

        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            Any images that the detector accepts.

        masks : sequence of length n or None, default=None
            True defects: a path, array or None for each image. If `masks` itself is
            None, they are unknown.

        threshold : float or None, default=None
            Pixels with a larger map value are predicted to be anomalous. On the scale
            of the estimator's maps. None uses its ``map_threshold_``.

        titles : sequence of str or None, default=None
            Label of each row. None uses folder and file names, or numbers.

        ax : matplotlib Axes, array of Axes or None, default=None
            See `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        AnomalyMapDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If `estimator` has no ``predict_maps``.

        ImportError
            If matplotlib is not installed.
        """
        found = find_maps(estimator)
        detector, images = found.detector, found.prepare(X)
        calibrated = threshold is None and getattr(detector, "_is_calibrated", False)
        if calibrated:
            maps = detector.predict_maps(images, normalized=True)
            threshold = CALIBRATED_THRESHOLD
        else:
            maps = detector.predict_maps(images)
            if threshold is None:
                threshold = getattr(detector, "map_threshold_", None)
        display = cls(
            images if found.steps else X,
            maps,
            masks=masks,
            threshold=threshold,
            titles=titles,
            calibrated=calibrated,
        )
        return display.plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        maps: Sequence[NDArray] | NDArray,
        *,
        masks: Sequence[Any] | None = None,
        threshold: float | None = None,
        titles: Sequence[str] | None = None,
        calibrated: bool = False,
        ax: "AxesLike | None" = None,
        **kwargs: Any,
    ) -> Self:
        """Draw images with existing anomaly maps.

        Parameters
        ----------
        images : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            Paths, encoded images, PIL images, arrays or torch tensors.

        maps : sequence of n ndarray of shape (h, w)
            Anomaly maps in the size of their images. Higher is more anomalous.

        masks : sequence of length n or None, default=None
            True defects: a path, array or None for each image. If `masks` itself is
            None, they are unknown.

        threshold : float or None, default=None
            Pixels with a larger map value are predicted to be anomalous. None draws no
            prediction.

        titles : sequence of str or None, default=None
            Label of each row. None uses folder and file names, or numbers.

        calibrated : bool, default=False
            Whether `maps` are on the calibrated scale of ``normalized=True``.

        ax : matplotlib Axes, array of Axes or None, default=None
            See `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        AnomalyMapDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If the numbers of images, maps, masks and titles differ, or if a map or mask
            does not have the size of its image.

        ImportError
            If matplotlib is not installed.
        """
        display = cls(
            images,
            maps,
            masks=masks,
            threshold=threshold,
            titles=titles,
            calibrated=calibrated,
        )
        return display.plot(ax, **kwargs)

    def plot(
        self,
        ax: "AxesLike | None" = None,
        *,
        columns: Sequence[str] | None = None,
        vmin: float | None = None,
        vmax: float | None = None,
        cmap: "str | Colormap | None" = None,
        alpha: float = ALPHA,
        colorbar: bool = True,
    ) -> Self:
        """Draw the images, maps and masks.

        Parameters
        ----------
        ax : matplotlib Axes, array of Axes or None, default=None
            Where to draw: an array with one Axes per image and column, or a single
            Axes, which is divided. None creates a new figure with pyplot.

        columns : sequence of str or None, default=None
            Columns to draw, from left to right: "input", "map", "overlay", "mask" (the
            true and the predicted defect on the image) and "truth" (only the true
            defect, in white). None draws all except "truth"; it also leaves out "mask"
            if there are neither masks nor a threshold.

        vmin, vmax : float or None, default=None
            Map values at which the colour scale starts and ends. None uses 0.5 and 1.5
            times the threshold, because most normal patches have more than half of it.
            For calibrated maps, None uses 1/8 and 7/8. Without a threshold, it uses
            the smallest and the largest value.

        cmap : str, matplotlib Colormap or None, default=None
            Colours of map and overlay. None is "inferno".

        alpha : float, default=0.7
            Opacity of the overlay at `vmax` and above, in [0, 1]. It decreases linearly
            to 0 at `vmin`.

        colorbar : bool, default=True
            Whether to draw a colour bar.

        Returns
        -------
        AnomalyMapDisplay
            The drawn display.
        """
        check_matplotlib()
        from matplotlib.colors import Normalize

        columns = self._check_columns(columns)
        self._prepare()
        limits = color_limits(self.threshold, self._maps)
        if self.calibrated:
            limits = CALIBRATED_LIMITS
        self._vmin = limits[0] if vmin is None else vmin
        self._vmax = limits[1] if vmax is None else vmax
        self._norm, self._cmap = Normalize(self._vmin, self._vmax), _as_colormap(cmap)
        self._alpha = alpha
        self.axes_ = grid_of_axes(ax, [i.shape[:2] for i in self._images], len(columns))
        self.figure_ = self.axes_[0, 0].figure
        title_figure(ax, self.figure_, "Anomaly maps")
        for i, row in enumerate(self.axes_):
            for column, axes in zip(columns, row, strict=True):
                getattr(self, f"_draw_{column}")(axes, i)
                axes.set(xticks=[], yticks=[])
                if i == 0:
                    axes.set_title(_COLUMN_TITLES[column])
            label_row(row[0], self._titles[i])
        if "mask" in columns:
            self._draw_legend(self.axes_[-1, columns.index("mask")])
        self.colorbar_ = self._draw_colorbar() if colorbar else None
        return self

    def _check_columns(self, columns: Sequence[str] | None) -> list[str]:
        if columns is None:
            has_outlines = self.masks is not None or self.threshold is not None
            return list(_COLUMNS[:4] if has_outlines else _COLUMNS[:3])
        if len(columns) == 0 or not set(columns) <= set(_COLUMNS):
            raise ValueError(
                f"columns={columns!r} is not valid; expected one or more of "
                f"{', '.join(_COLUMNS)}."
            )
        if "truth" in columns and self.masks is None:
            raise ValueError(
                f"columns={columns!r} has 'truth', but masks is None. Pass the true "
                "defects as masks, or leave 'truth' out."
            )
        return list(columns)

    def _prepare(self) -> None:
        """Decode and check the images, maps and masks."""
        images = check_images(self.images)
        check_consistent_length(images, self.maps, self.masks, self.titles)
        self._images = list(images)
        self._maps = [np.asarray(values, dtype=float) for values in self.maps]
        for i, (image, values) in enumerate(zip(self._images, self._maps, strict=True)):
            if values.shape != image.shape[:2]:
                raise ValueError(
                    f"maps[{i}] has the shape {values.shape}, but image {i} is "
                    f"{image.shape[0]} x {image.shape[1]}. Use "
                    "predict_maps(size='original')."
                )
        self._masks: list[np.ndarray] | None = None
        if self.masks is not None:
            self._masks = read_masks(self.masks, self._images)
        self._titles: Sequence[str] = row_titles(images.sources)
        if self.titles is not None:
            self._titles = self.titles

    def _draw_input(self, axes: "Axes", i: int) -> None:
        axes.imshow(self._images[i])

    def _draw_map(self, axes: "Axes", i: int) -> None:
        axes.imshow(self._maps[i], norm=self._norm, cmap=self._cmap)

    def _draw_overlay(self, axes: "Axes", i: int) -> None:
        strength = strength_of(self._maps[i], self._vmin, self._vmax)
        colors = self._cmap(strength)[..., :3]
        axes.imshow(blend(self._images[i], strength, colors, self._alpha))

    def _draw_mask(self, axes: "Axes", i: int) -> None:
        axes.imshow(self._images[i])
        if self._masks is not None:
            _fill(axes, self._masks[i], TRUE_MASK)
        if self.threshold is not None:
            predicted = self._maps[i] > self.threshold
            _outline(axes, predicted, PREDICTED_MASK, PREDICTED_LINE)

    def _draw_truth(self, axes: "Axes", i: int) -> None:
        assert self._masks is not None  # Checked with the columns.
        axes.imshow(self._masks[i], cmap="gray", vmin=0, vmax=1)

    def _draw_legend(self, axes: "Axes") -> None:
        from matplotlib.artist import Artist
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        handles: list[Artist] = []
        if self._masks is not None:
            handles.append(Patch(color=TRUE_MASK, alpha=0.6, label="true"))
        if self.threshold is not None:
            line = Line2D([], [], color=PREDICTED_MASK, linestyle=PREDICTED_LINE)
            line.set_label("predicted")
            handles.append(line)
        if handles:
            axes.legend(
                handles=handles,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.02),
                ncols=2,
                frameon=False,
                handlelength=1.2,
                columnspacing=1.0,
            )

    def _draw_colorbar(self) -> "Colorbar":
        from matplotlib.cm import ScalarMappable

        low, high = value_range(self._maps)
        extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
        bar = self.figure_.colorbar(
            ScalarMappable(self._norm, self._cmap),
            ax=self.axes_,
            extend=extend.get((low < self._vmin, high > self._vmax), "neither"),
            label="calibrated score" if self.calibrated else "anomaly score per pixel",
            aspect=12 * len(self.axes_),
            fraction=0.05,
            pad=0.02,
        )
        self._mark_threshold(bar)
        return bar

    def _mark_threshold(self, bar: "Colorbar") -> None:
        vmin, vmax = self._vmin, self._vmax
        if self.threshold is None or not vmin < self.threshold < vmax:
            return
        line = bar.ax.axhline(self.threshold, color=THRESHOLD, linewidth=1.5)
        line.set(linestyle=THRESHOLD_LINE, path_effects=cased(1.5))
        labels = [f"{vmin:.3g}", f"{self.threshold:.3g}\nthreshold", f"{vmax:.3g}"]
        if self.calibrated and vmin == CALIBRATED_LIMITS[0]:
            labels[0] += "\ntypical\nnormal"
        bar.set_ticks([vmin, self.threshold, vmax], labels=labels)


def _fill(axes: "Axes", mask: np.ndarray, color: str) -> None:
    """Tint the pixels of a mask, and draw their outline."""
    from matplotlib.colors import to_rgb

    tint = np.zeros((*mask.shape, 4))
    tint[mask] = (*to_rgb(color), 0.45)
    axes.imshow(tint)
    _outline(axes, mask, color)


def _outline(
    axes: "Axes", mask: np.ndarray, color: str, line: LineStyle = "solid"
) -> None:
    # The padding closes outlines at the border. An empty contour would be a warning.
    if mask.any():
        rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
        padded = np.pad(mask, 1).astype(float)
        outline = axes.contour(
            columns,
            rows,
            padded,
            [0.5],
            colors=color,
            linestyles=[line],
            linewidths=1.5,
        )
        outline.set_path_effects(cased(1.5, "black"))
        axes.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _as_colormap(cmap: "str | Colormap | None") -> "Colormap":
    from matplotlib import colormaps

    cmap = "inferno" if cmap is None else cmap
    colors = colormaps[cmap] if isinstance(cmap, str) else cmap
    return colors.with_extremes(bad="0.5")
