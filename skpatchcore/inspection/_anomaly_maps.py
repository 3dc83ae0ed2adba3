"""Sheets of pictures with their anomaly maps, overlays and masks."""

import numpy as np
from sklearn.utils import check_consistent_length

from skpatchcore._images import check_images
from skpatchcore.calibration import ConformalDetector
from skpatchcore.datasets import read_masks
from skpatchcore.inspection._axes import (
    check_matplotlib,
    grid_of_axes,
    label_row,
    picture_title,
)
from skpatchcore.inspection._colors import (
    PREDICTED_LINE,
    PREDICTED_MASK,
    THRESHOLD,
    THRESHOLD_LINE,
    TRUE_MASK,
    cased,
)
from skpatchcore.inspection._overlays import (
    ALPHA,
    blend,
    color_limits,
    strength_of,
    value_range,
)

_COLUMNS = ("input", "map", "overlay", "mask", "truth")
_COLUMN_TITLES = {
    "input": "input",
    "map": "anomaly map",
    "overlay": "overlay",
    "mask": "defect",
    "truth": "ground truth",
}
# On the scale of `ConformalDetector.predict_maps(normalized=True)` 1/2 is the threshold
# and 1/8 the peak of a typical normal picture; 7/8 is as far on the other side.
_CALIBRATED_LIMITS, _CALIBRATED_THRESHOLD = (1 / 8, 7 / 8), 1 / 2


class AnomalyMapDisplay:
    """A sheet of pictures with their anomaly maps, overlays and masks.

    One row a picture; the columns are the picture, its anomaly map, the map laid over
    the picture, and the outlines of the true and of the predicted defect. All rows
    share one colour scale with the threshold at its middle, so that a normal picture
    stays dark instead of showing its own noise in full colour.

    Use `from_estimator` with a fitted detector, or `from_predictions` with maps that
    are already there. The constructor takes what the latter does, and draws nothing.

    Parameters
    ----------
    images : sequence of pictures, or ndarray of shape (n, h, w) or (n, h, w, c)
        Paths, PIL images, arrays of uint8, uint16 or float in [0, 1], or torch tensors
        (n, c, h, w). Sizes may differ.

    maps : sequence of n ndarray of shape (h, w)
        Anomaly maps in the size of their pictures, higher is more anomalous; NaN where
        nobody looked.

    masks : sequence of length n or None, default=None
        True defects: for each picture the path of a mask, an array (h, w) that is
        non-zero where defective, or None where there is no defect. None: not known.

    threshold : float or None, default=None
        Pixels whose map is larger are predicted to be anomalous, in the unit of `maps`.
        With None, nothing is predicted and the colour scale ends at the largest value.

    titles : sequence of str or None, default=None
        What to write beside each picture; None writes names of files, or numbers.

    calibrated : bool, default=False
        Whether `maps` are those that a
        :class:`~skpatchcore.calibration.ConformalDetector` gives with
        ``normalized=True``. The colour scale then goes from 1/8, the peak of a
        typical normal picture, to 7/8, with the threshold 1/2 at its middle, and means
        the same on every sheet of every detector.

    Attributes
    ----------
    axes_ : ndarray of shape (n, n_columns) of matplotlib Axes
        Where each picture was drawn.

    figure_ : matplotlib Figure
        The figure that they are in.

    colorbar_ : matplotlib Colorbar or None
        The colour scale.

    See Also
    --------
    skpatchcore.PatchCoreDetector.predict_maps : Gives the maps.

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

    In a script, ``display.figure_.savefig("sheet.png")`` keeps it.

    >>> import matplotlib.pyplot as plt
    >>> plt.close(display.figure_)
    """

    def __init__(
        self,
        images,
        maps,
        *,
        masks=None,
        threshold=None,
        titles=None,
        calibrated=False,
    ):
        self.images = images
        self.maps = maps
        self.masks = masks
        self.threshold = threshold
        self.titles = titles
        self.calibrated = calibrated

    @classmethod
    def from_estimator(
        cls, estimator, X, *, masks=None, threshold=None, titles=None, ax=None, **kwargs
    ):
        """Compute the maps of pictures and draw them.

        Parameters
        ----------
        estimator : PatchCoreDetector or ConformalDetector
            A fitted detector, or anything with its ``predict_maps``. Of a search, pass
            ``best_estimator_``; of a pipeline, the last step. The maps of a
            :class:`~skpatchcore.calibration.ConformalDetector` are shown on its
            calibrated scale, unless a `threshold` is given.

        X : sequence of pictures, or ndarray of shape (n, h, w) or (n, h, w, c)
            As the detector takes them.

        masks : sequence of length n or None, default=None
            True defects, as paths, arrays or None for each picture; None: not known.

        threshold : float or None, default=None
            Pixels whose map is larger are predicted to be anomalous, in the unit of the
            estimator's maps; None is its ``map_threshold_``.

        titles : sequence of str or None, default=None
            What to write beside each picture; None writes names of files, or numbers.

        ax : matplotlib Axes, array of Axes or None, default=None
            As for `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        AnomalyMapDisplay
            The sheet, drawn.

        Raises
        ------
        TypeError
            If `estimator` gives no maps.

        ImportError
            If matplotlib is not installed.
        """
        if not hasattr(estimator, "predict_maps"):
            raise TypeError(
                f"{type(estimator).__name__} has no predict_maps; pass a fitted "
                "PatchCoreDetector: of a search its best_estimator_, of a pipeline its "
                "last step, pipeline[-1]."
            )
        calibrated = threshold is None and isinstance(estimator, ConformalDetector)
        if calibrated:
            maps = estimator.predict_maps(X, normalized=True)
            threshold = _CALIBRATED_THRESHOLD
        else:
            maps = estimator.predict_maps(X)
            if threshold is None:
                threshold = getattr(estimator, "map_threshold_", None)
        display = cls(
            X,
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
        images,
        maps,
        *,
        masks=None,
        threshold=None,
        titles=None,
        calibrated=False,
        ax=None,
        **kwargs,
    ):
        """Draw pictures and maps that are already there.

        Parameters
        ----------
        images : sequence of pictures, or ndarray of shape (n, h, w) or (n, h, w, c)
            Paths, PIL images, arrays or torch tensors.

        maps : sequence of n ndarray of shape (h, w)
            Anomaly maps in the size of their pictures, higher is more anomalous.

        masks : sequence of length n or None, default=None
            True defects, as paths, arrays or None for each picture; None: not known.

        threshold : float or None, default=None
            Pixels whose map is larger are predicted to be anomalous; None draws no
            prediction.

        titles : sequence of str or None, default=None
            What to write beside each picture; None writes names of files, or numbers.

        calibrated : bool, default=False
            Whether `maps` are on the calibrated scale, of ``normalized=True``.

        ax : matplotlib Axes, array of Axes or None, default=None
            As for `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        AnomalyMapDisplay
            The sheet, drawn.

        Raises
        ------
        ValueError
            If the numbers of pictures, maps, masks and titles differ, or the sizes of a
            picture and its map or mask.

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
        ax=None,
        *,
        columns=None,
        vmin=None,
        vmax=None,
        cmap=None,
        alpha=ALPHA,
        colorbar=True,
    ):
        """Draw the sheet.

        Parameters
        ----------
        ax : matplotlib Axes, array of Axes or None, default=None
            Where to draw: an array with one for each picture and column, or a single
            one, which is divided. None makes a new figure with pyplot.

        columns : sequence of str or None, default=None
            What to draw of each picture, from left to right: out of "input", "map",
            "overlay", "mask" (the true and the predicted defect on the picture) and
            "truth" (the true defect alone, white). None is all but the last, and
            without "mask" if neither masks nor a threshold are known.

        vmin, vmax : float or None, default=None
            Values of the maps at which the colour scale starts and ends. None is 0.5
            and 1.5 times the threshold: normal patches mostly have more than half of
            it. Without a threshold, the smallest and the largest value; of calibrated
            maps, 1/8 and 7/8.

        cmap : str, matplotlib Colormap or None, default=None
            Colours of map and overlay; None is "inferno".

        alpha : float, default=0.7
            How much of an overlay is map at `vmax` and above, in [0, 1]; below, it is
            proportionally less, and nothing at `vmin`.

        colorbar : bool, default=True
            Draw the colour scale beside the sheet.

        Returns
        -------
        AnomalyMapDisplay
            The sheet, drawn.
        """
        check_matplotlib()
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        columns = self._check_columns(columns)
        self._prepare()
        limits = color_limits(self.threshold, self._maps)
        if self.calibrated:
            limits = _CALIBRATED_LIMITS
        vmin = limits[0] if vmin is None else vmin
        vmax = limits[1] if vmax is None else vmax
        self._colors = ScalarMappable(Normalize(vmin, vmax), _as_colormap(cmap))
        self._alpha = alpha
        self.axes_ = grid_of_axes(ax, [i.shape[:2] for i in self._images], len(columns))
        self.figure_ = self.axes_[0, 0].figure
        for i, row in enumerate(self.axes_):
            for column, cell in zip(columns, row, strict=True):
                getattr(self, f"_draw_{column}")(cell, i)
                cell.set(xticks=[], yticks=[])
                if i == 0:
                    cell.set_title(_COLUMN_TITLES[column])
            label_row(row[0], self._titles[i])
        if "mask" in columns:
            self._draw_legend(self.axes_[-1, columns.index("mask")])
        self.colorbar_ = self._draw_colorbar() if colorbar else None
        return self

    def _check_columns(self, columns) -> list[str]:
        if columns is None:
            has_outlines = self.masks is not None or self.threshold is not None
            return list(_COLUMNS[:4] if has_outlines else _COLUMNS[:3])
        if len(columns) == 0 or not set(columns) <= set(_COLUMNS):
            raise ValueError(
                f"columns={columns!r}; expected some of {', '.join(_COLUMNS)}."
            )
        if "truth" in columns and self.masks is None:
            raise ValueError(
                f"columns={columns!r} has 'truth', but masks is None: the true defects "
                "are not known."
            )
        return list(columns)

    def _prepare(self) -> None:
        """Decode and check what is to be drawn."""
        images = check_images(self.images)
        check_consistent_length(images, self.maps, self.masks, self.titles)
        self._images = list(images)
        self._maps = [np.asarray(values, dtype=float) for values in self.maps]
        for i, (image, values) in enumerate(zip(self._images, self._maps, strict=True)):
            if values.shape != image.shape[:2]:
                raise ValueError(
                    f"maps[{i}] has the shape {values.shape}, but picture {i} is "
                    f"{image.shape[0]} x {image.shape[1]}; take "
                    "predict_maps(size='original')."
                )
        self._masks = self.masks
        if self.masks is not None:
            self._masks = read_masks(self.masks, self._images)
        self._titles = self.titles
        if self.titles is None:
            self._titles = [picture_title(s, i) for i, s in enumerate(images._sources)]

    def _draw_input(self, cell, i: int) -> None:
        cell.imshow(self._images[i])

    def _draw_map(self, cell, i: int) -> None:
        cell.imshow(self._maps[i], norm=self._colors.norm, cmap=self._colors.cmap)

    def _draw_overlay(self, cell, i: int) -> None:
        norm = self._colors.norm
        strength = strength_of(self._maps[i], norm.vmin, norm.vmax)
        colors = self._colors.cmap(strength)[..., :3]
        cell.imshow(blend(self._images[i], strength, colors, self._alpha))

    def _draw_mask(self, cell, i: int) -> None:
        cell.imshow(self._images[i])
        if self._masks is not None:
            _fill(cell, self._masks[i], TRUE_MASK)
        if self.threshold is not None:
            predicted = self._maps[i] > self.threshold
            _outline(cell, predicted, PREDICTED_MASK, PREDICTED_LINE)

    def _draw_truth(self, cell, i: int) -> None:
        cell.imshow(self._masks[i], cmap="gray", vmin=0, vmax=1)

    def _draw_legend(self, cell) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        handles = []
        if self._masks is not None:
            handles.append(Patch(color=TRUE_MASK, alpha=0.6, label="true"))
        if self.threshold is not None:
            line = {"color": PREDICTED_MASK, "linestyle": PREDICTED_LINE}
            handles.append(Line2D([], [], **line, label="predicted"))
        if handles:
            cell.legend(
                handles=handles,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.02),
                ncols=2,
                frameon=False,
                handlelength=1.2,
                columnspacing=1.0,
            )

    def _draw_colorbar(self):
        vmin, vmax = self._colors.norm.vmin, self._colors.norm.vmax
        low, high = value_range(self._maps)
        extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
        bar = self.figure_.colorbar(
            self._colors,
            ax=self.axes_,
            extend=extend.get((low < vmin, high > vmax), "neither"),
            label="calibrated score" if self.calibrated else "anomaly score of a pixel",
            aspect=12 * len(self.axes_),
            fraction=0.05,
            pad=0.02,
        )
        self._mark_threshold(bar)
        return bar

    def _mark_threshold(self, bar) -> None:
        vmin, vmax = self._colors.norm.vmin, self._colors.norm.vmax
        if self.threshold is None or not vmin < self.threshold < vmax:
            return
        line = {"color": THRESHOLD, "linestyle": THRESHOLD_LINE, "linewidth": 1.5}
        bar.ax.axhline(self.threshold, **line, path_effects=cased(1.5))
        labels = [f"{vmin:.3g}", f"{self.threshold:.3g}\nthreshold", f"{vmax:.3g}"]
        if self.calibrated and vmin == _CALIBRATED_LIMITS[0]:
            labels[0] += "\ntypical\nnormal"
        bar.set_ticks([vmin, self.threshold, vmax], labels=labels)


def _fill(cell, mask: np.ndarray, color: str) -> None:
    """Tint the pixels of a mask, and draw their outline."""
    from matplotlib.colors import to_rgb

    tint = np.zeros((*mask.shape, 4))
    tint[mask] = (*to_rgb(color), 0.45)
    cell.imshow(tint)
    _outline(cell, mask, color)


def _outline(cell, mask: np.ndarray, color: str, line="solid") -> None:
    # The margin closes outlines at the rim; one of nothing would be a warning.
    if mask.any():
        rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
        padded = np.pad(mask, 1).astype(float)
        outline = cell.contour(
            columns,
            rows,
            padded,
            [0.5],
            colors=color,
            linestyles=[line],
            linewidths=1.5,
        )
        outline.set_path_effects(cased(1.5, "black"))
        cell.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _as_colormap(cmap):
    from matplotlib import colormaps

    cmap = "inferno" if cmap is None else cmap
    colors = colormaps[cmap] if isinstance(cmap, str) else cmap
    return colors.with_extremes(bad="0.5")
