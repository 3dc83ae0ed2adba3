"""See what a detector sees: sheets of pictures, anomaly maps and masks.

Plots need matplotlib: ``pip install "skpatchcore[plot]"``.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.utils import check_consistent_length

from skpatchcore._images import check_images
from skpatchcore.datasets import read_masks

__all__ = ["AnomalyMapDisplay"]

_COLUMNS = ("input", "map", "overlay", "mask")
_COLUMN_TITLES = {
    "input": "input",
    "map": "anomaly map",
    "overlay": "overlay",
    "mask": "defect",
}
_ALPHA = 0.7
# Width of one picture on a sheet, in inches.
_CELL_WIDTH = 2.2
_TRUE_COLOR, _PREDICTED_COLOR = "#00c853", "#ff1744"
# The colour map "inferno" of matplotlib (CC0) at 0, 1/8, ..., 1: overlays are drawn
# without matplotlib.
_HEAT = np.array(
    [
        [0.001, 0.000, 0.014],
        [0.129, 0.047, 0.291],
        [0.342, 0.062, 0.429],
        [0.541, 0.135, 0.415],
        [0.736, 0.216, 0.330],
        [0.894, 0.353, 0.194],
        [0.978, 0.558, 0.035],
        [0.975, 0.798, 0.206],
        [0.988, 0.998, 0.645],
    ]
)


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

    def __init__(self, images, maps, *, masks=None, threshold=None, titles=None):
        self.images = images
        self.maps = maps
        self.masks = masks
        self.threshold = threshold
        self.titles = titles

    @classmethod
    def from_estimator(
        cls, estimator, X, *, masks=None, threshold=None, titles=None, ax=None, **kwargs
    ):
        """Compute the maps of pictures and draw them.

        Parameters
        ----------
        estimator : PatchCoreDetector
            A fitted detector, or anything with its ``predict_maps``. Of a search, pass
            ``best_estimator_``; of a pipeline, the last step.

        X : sequence of pictures, or ndarray of shape (n, h, w) or (n, h, w, c)
            As the detector takes them.

        masks : sequence of length n or None, default=None
            True defects, as paths, arrays or None for each picture; None: not known.

        threshold : float or None, default=None
            Pixels whose map is larger are predicted to be anomalous; None is the
            estimator's ``map_threshold_``.

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
        if threshold is None:
            threshold = getattr(estimator, "map_threshold_", None)
        display = cls(
            X,
            estimator.predict_maps(X),
            masks=masks,
            threshold=threshold,
            titles=titles,
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
        display = cls(images, maps, masks=masks, threshold=threshold, titles=titles)
        return display.plot(ax, **kwargs)

    def plot(
        self,
        ax=None,
        *,
        columns=None,
        vmin=None,
        vmax=None,
        cmap=None,
        alpha=_ALPHA,
        colorbar=True,
    ):
        """Draw the sheet.

        Parameters
        ----------
        ax : matplotlib Axes, array of Axes or None, default=None
            Where to draw: an array with one for each picture and column, or a single
            one, which is divided. None makes a new figure with pyplot.

        columns : sequence of {"input", "map", "overlay", "mask"} or None, default=None
            What to draw of each picture, from left to right. None is all of them, but
            for "mask" if neither masks nor a threshold are known.

        vmin, vmax : float or None, default=None
            Values of the maps at which the colour scale starts and ends. None is 0.5
            and 1.5 times the threshold: normal patches mostly have more than half of
            it. Without a threshold, the smallest and the largest value.

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
        vmin = limits[0] if vmin is None else vmin
        vmax = limits[1] if vmax is None else vmax
        self._colors = ScalarMappable(Normalize(vmin, vmax), _as_colormap(cmap))
        self._alpha = alpha
        self.axes_ = _make_axes(ax, [i.shape[:2] for i in self._images], len(columns))
        self.figure_ = self.axes_[0, 0].figure
        for i, row in enumerate(self.axes_):
            for column, cell in zip(columns, row, strict=True):
                getattr(self, f"_draw_{column}")(cell, i)
                cell.set(xticks=[], yticks=[])
                if i == 0:
                    cell.set_title(_COLUMN_TITLES[column])
            label = {"rotation": 0, "ha": "right", "va": "center"}
            row[0].set_ylabel(self._titles[i], **label)
        if "mask" in columns:
            self._draw_legend(self.axes_[-1, columns.index("mask")])
        self.colorbar_ = self._draw_colorbar() if colorbar else None
        return self

    def _check_columns(self, columns) -> list[str]:
        if columns is None:
            has_outlines = self.masks is not None or self.threshold is not None
            return list(_COLUMNS if has_outlines else _COLUMNS[:-1])
        if len(columns) == 0 or not set(columns) <= set(_COLUMNS):
            raise ValueError(
                f"columns={columns!r}; expected some of {', '.join(_COLUMNS)}."
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
            self._titles = [_title(s, i) for i, s in enumerate(images._sources)]

    def _draw_input(self, cell, i: int) -> None:
        cell.imshow(self._images[i])

    def _draw_map(self, cell, i: int) -> None:
        cell.imshow(self._maps[i], norm=self._colors.norm, cmap=self._colors.cmap)

    def _draw_overlay(self, cell, i: int) -> None:
        norm = self._colors.norm
        strength = _strength(self._maps[i], norm.vmin, norm.vmax)
        colors = self._colors.cmap(strength)[..., :3]
        cell.imshow(_blend(self._images[i], strength, colors, self._alpha))

    def _draw_mask(self, cell, i: int) -> None:
        cell.imshow(self._images[i])
        if self._masks is not None:
            _fill(cell, self._masks[i], _TRUE_COLOR)
        if self.threshold is not None:
            _outline(cell, self._maps[i] > self.threshold, _PREDICTED_COLOR)

    def _draw_legend(self, cell) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        handles = []
        if self._masks is not None:
            handles.append(Patch(color=_TRUE_COLOR, alpha=0.6, label="true"))
        if self.threshold is not None:
            handles.append(Line2D([], [], color=_PREDICTED_COLOR, label="predicted"))
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
        low, high = _value_range(self._maps)
        extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
        bar = self.figure_.colorbar(
            self._colors,
            ax=self.axes_,
            extend=extend.get((low < vmin, high > vmax), "neither"),
            label="anomaly score of a pixel",
            aspect=12 * len(self.axes_),
            fraction=0.05,
            pad=0.02,
        )
        if self.threshold is not None and vmin < self.threshold < vmax:
            bar.ax.axhline(self.threshold, color="white", linewidth=1.5)
            labels = [f"{vmin:.3g}", f"{self.threshold:.3g}\nthreshold", f"{vmax:.3g}"]
            bar.set_ticks([vmin, self.threshold, vmax], labels=labels)
        return bar


def color_limits(
    threshold: float | None, maps: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Return where the common colour scale of maps starts and ends."""
    if threshold is not None and threshold > 0:
        return 0.5 * float(threshold), 1.5 * float(threshold)
    low, high = _value_range(maps)
    return (low, high) if low < high else (low, low + 1)


def _value_range(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    seen = [values[np.isfinite(values)] for values in maps]
    ends = [(values.min(), values.max()) for values in seen if values.size]
    lows, highs = zip(*ends, strict=True) if ends else ((0,), (0,))
    return float(min(lows)), float(max(highs))


def blend_overlay(
    image: np.ndarray, anomaly_map: np.ndarray, limits: tuple[float, float]
) -> np.ndarray:
    """Lay a map (h, w) over a picture (h, w, 3) of floats in [0, 1]; gives uint8."""
    strength = _strength(anomaly_map, *limits)
    blended = _blend(image, strength, _heat_colors(strength), _ALPHA)
    return np.rint(255 * blended).astype(np.uint8)


def _strength(anomaly_map: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values as parts of the colour scale in [0, 1]; 0 where nobody looked."""
    strength = (anomaly_map - low) / (high - low)
    return np.clip(np.nan_to_num(strength, nan=0.0), 0, 1)


def _blend(image, strength, colors, alpha: float) -> np.ndarray:
    opacity = alpha * strength[..., np.newaxis]
    return (1 - opacity) * image + opacity * colors


def _heat_colors(strength: np.ndarray) -> np.ndarray:
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(strength, stops, values) for values in _HEAT.T]
    return np.stack(channels, axis=-1)


def _fill(cell, mask: np.ndarray, color: str) -> None:
    """Tint the pixels of a mask, and draw their outline."""
    from matplotlib.colors import to_rgb

    tint = np.zeros((*mask.shape, 4))
    tint[mask] = (*to_rgb(color), 0.45)
    cell.imshow(tint)
    _outline(cell, mask, color)


def _outline(cell, mask: np.ndarray, color: str) -> None:
    # The margin closes outlines at the rim; one of nothing would be a warning.
    if mask.any():
        rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
        padded = np.pad(mask, 1).astype(float)
        cell.contour(columns, rows, padded, [0.5], colors=color, linewidths=1.5)
        cell.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _make_axes(ax, shapes: Sequence[tuple[int, int]], n_columns: int) -> np.ndarray:
    """Return axes (n_pictures, n_columns): those given, or new ones."""
    size = (len(shapes), n_columns)
    if ax is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=_sheet_size(shapes, n_columns), layout="compressed")
        return figure.subplots(*size, squeeze=False)
    if not isinstance(ax, np.ndarray | list | tuple):
        ax.set_axis_off()
        grid = ax.get_subplotspec().subgridspec(*size)
        return grid.subplots(squeeze=False)
    axes = np.asarray(ax, dtype=object)
    if axes.size != size[0] * size[1]:
        raise ValueError(
            f"ax holds {axes.size} axes; expected {size[0]} pictures x {size[1]} "
            f"columns = {size[0] * size[1]}."
        )
    return axes.reshape(size)


def _sheet_size(shapes: Sequence[tuple[int, int]], n_columns: int) -> tuple:
    """Return the size of a figure in inches that fits pictures of these shapes."""
    aspect = np.median([height / width for height, width in shapes])
    # Margins for titles and colour bar.
    width = _CELL_WIDTH * n_columns + 1.8
    return width, _CELL_WIDTH * len(shapes) * min(aspect, 3) + 0.7


def _as_colormap(cmap):
    from matplotlib import colormaps

    cmap = "inferno" if cmap is None else cmap
    colors = colormaps[cmap] if isinstance(cmap, str) else cmap
    return colors.with_extremes(bad="0.5")


def _title(source, i: int) -> str:
    is_path = isinstance(source, str | os.PathLike)
    return Path(source).name if is_path else f"picture {i}"


def check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Plots need matplotlib: pip install "skpatchcore[plot]".'
        ) from error
