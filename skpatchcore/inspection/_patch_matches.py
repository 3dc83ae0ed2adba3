"""Plots of patches of test images with the normal patches that they match."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_consistent_length

from skpatchcore._images import check_images
from skpatchcore.inspection._axes import (
    AxesLike,
    check_matplotlib,
    grid_of_axes,
    image_title,
    label_row,
    row_titles,
    title_figure,
)
from skpatchcore.inspection._colors import NORMAL, PATCH, cased
from skpatchcore.inspection._patch_boxes import find_matches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

# Side length of the cutout around a patch, in side lengths of the patch.
SURROUNDINGS = 2.5


class PatchMatchDisplay:
    """Plot patches of test images with the nearest normal patches in the memory bank.

    Use it to explain why a patch is anomalous: the plot shows the most similar patches
    seen in training. Each image has one row: the image with one of its patches
    outlined, the patch cut out of it, and the nearest patches of the memory bank with
    their distances, cut out of their training images. It works with any coreset,
    because the bank stores the position of each of its patches.

    Call `from_estimator` with a fitted detector, or `from_predictions` with known
    boxes. The constructor has the parameters of the latter and draws nothing.

    Parameters
    ----------
    images : sequence of n images, or ndarray of shape (n, h, w) or (n, h, w, c)
        Paths, encoded images, PIL images, arrays of uint8, uint16 or float in [0, 1],
        or torch tensors (n, c, h, w).

    boxes : array-like of shape (n, 4)
        Top, left, bottom and right of one patch in each image, in pixels.

    training_images : sequence of images, or ndarray
        The images that contain the matches.

    match_images : array-like of shape (n, n_neighbors), int
        Index in `training_images` of the image of each match, the nearest first.

    match_boxes : array-like of shape (n, n_neighbors, 4)
        Top, left, bottom and right of each match in its image, in pixels.

    distances : array-like of shape (n, n_neighbors)
        Distance of each match from the patch, in feature space.

    titles : sequence of str or None, default=None
        Label of each row. None uses folder and file names, or numbers.

    Attributes
    ----------
    axes_ : ndarray of shape (n, 2 + n_neighbors) of matplotlib Axes
        Axes of the image, the patch and the matches in each row.

    figure_ : matplotlib Figure
        Figure that contains the axes.

    See Also
    --------
    skpatchcore.PatchCoreDetector.nearest_patches : Return the matches as numbers.
    animate_patch_matches : Animate the matches of all patches of an image.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
    >>> from skpatchcore.datasets import make_surface_defects
    >>> from skpatchcore.inspection import PatchMatchDisplay
    >>> surfaces = make_surface_defects(6, 1, 2, image_size=64, random_state=0)
    >>> train = surfaces.data[:6]
    >>> features = PatchFeatureTransformer("resnet18", weights="random", image_size=64)
    >>> detector = PatchCoreDetector(features, random_state=0).fit(train)
    >>> display = PatchMatchDisplay.from_estimator(
    ...     detector, surfaces.data[-2:], training_images=train, n_neighbors=3
    ... )
    >>> display.axes_.shape
    (2, 5)

    >>> import matplotlib.pyplot as plt
    >>> plt.close(display.figure_)
    """

    def __init__(
        self,
        images: Any,
        boxes: npt.ArrayLike,
        *,
        training_images: Any,
        match_images: npt.ArrayLike,
        match_boxes: npt.ArrayLike,
        distances: npt.ArrayLike,
        titles: Sequence[str] | None = None,
    ):
        self.images = images
        self.boxes = boxes
        self.training_images = training_images
        self.match_images = match_images
        self.match_boxes = match_boxes
        self.distances = distances
        self.titles = titles

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        training_images: Any,
        patches: Sequence[tuple[int, int]] | None = None,
        n_neighbors: int = 3,
        titles: Sequence[str] | None = None,
        ax: "AxesLike | None" = None,
        **kwargs: Any,
    ) -> Self:
        """Find the nearest normal patches of one patch of each image, and draw them.

        Parameters
        ----------
        estimator : PatchCoreDetector or ConformalDetector
            A fitted detector. If a
            :class:`~skpatchcore.calibration.ConformalDetector` has several memory
            banks, pass one of its ``estimators_``.

        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            Any images that the detector accepts.

        training_images : sequence of images, or ndarray
            The `X` that the estimator was fitted on, in the same order. Only images
            that contain a match are read.

        patches : sequence of n pairs of int or None, default=None
            Row and column of one patch of each image, in the grid of
            ``predict_maps(size="grid")``. None uses the most anomalous patch of each
            image.

        n_neighbors : int, default=3
            Number of normal patches to show for each image.

        titles : sequence of str or None, default=None
            Label of each row. None uses folder and file names, or numbers.

        ax : matplotlib Axes, array of Axes or None, default=None
            See `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        PatchMatchDisplay
            The drawn display.

        Raises
        ------
        TypeError
            If `estimator` has no memory bank, or several.

        ValueError
            If `training_images` has fewer images than the estimator was fitted on, or
            if a patch is outside the grid.

        FileNotFoundError
            If the training image of a match is missing or unreadable. The message
            names it.

        ImportError
            If matplotlib is not installed.
        """
        check_matplotlib()
        check_consistent_length(X, patches, titles)
        found = find_matches(estimator, X, training_images, patches, n_neighbors)
        display = cls(X, training_images=training_images, titles=titles, **found)
        return display.plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        boxes: npt.ArrayLike,
        *,
        training_images: Any,
        match_images: npt.ArrayLike,
        match_boxes: npt.ArrayLike,
        distances: npt.ArrayLike,
        titles: Sequence[str] | None = None,
        ax: "AxesLike | None" = None,
        **kwargs: Any,
    ) -> Self:
        """Draw patches and matches with known boxes.

        Parameters
        ----------
        images : sequence of n images, or ndarray of shape (n, h, w) or (n, h, w, c)
            Paths, encoded images, PIL images, arrays or torch tensors.

        boxes : array-like of shape (n, 4)
            Top, left, bottom and right of one patch in each image, in pixels.

        training_images : sequence of images, or ndarray
            The images that contain the matches.

        match_images : array-like of shape (n, n_neighbors), int
            Index in `training_images` of the image of each match.

        match_boxes : array-like of shape (n, n_neighbors, 4)
            Top, left, bottom and right of each match in its image, in pixels.

        distances : array-like of shape (n, n_neighbors)
            Distance of each match from the patch, in feature space.

        titles : sequence of str or None, default=None
            Label of each row. None uses folder and file names, or numbers.

        ax : matplotlib Axes, array of Axes or None, default=None
            See `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        PatchMatchDisplay
            The drawn display.

        Raises
        ------
        ValueError
            If the shapes are inconsistent.

        ImportError
            If matplotlib is not installed.
        """
        display = cls(
            images,
            boxes,
            training_images=training_images,
            match_images=match_images,
            match_boxes=match_boxes,
            distances=distances,
            titles=titles,
        )
        return display.plot(ax, **kwargs)

    def plot(
        self, ax: "AxesLike | None" = None, *, surroundings: float | None = SURROUNDINGS
    ) -> Self:
        """Draw the images, patches and matches.

        Parameters
        ----------
        ax : matplotlib Axes, array of Axes or None, default=None
            Where to draw: an array with ``2 + n_neighbors`` Axes per image, or a single
            Axes, which is divided. None creates a new figure with pyplot.

        surroundings : float or None, default=2.5
            Side length of the cutout around a patch, in side lengths of the patch; at
            least 1. None shows whole images instead of cutouts.

        Returns
        -------
        PatchMatchDisplay
            The drawn display.
        """
        check_matplotlib()
        self._prepare(surroundings)
        shapes = [image.shape[:2] for image in self._images]
        n_columns = 2 + self._distances.shape[1]
        self.axes_ = grid_of_axes(ax, shapes, n_columns)
        self.figure_ = self.axes_[0, 0].figure
        title_figure(ax, self.figure_, "Patches and the nearest normal patches")
        for i, (first, second, *others) in enumerate(self.axes_):
            image, box = self._images[i], self._boxes[i]
            draw_cutout(first, image, box, PATCH)
            label_row(first, self._titles[i])
            draw_cutout(second, image, box, PATCH, surroundings)
            for j, axes in enumerate(others):
                self._draw_match(axes, i, j, surroundings)
        self.axes_[0, 0].set_title("image")
        self.axes_[0, 1].set_title("patch")
        return self

    def _draw_match(
        self, axes: "Axes", i: int, j: int, surroundings: float | None
    ) -> None:
        image = int(self._matched[i, j])
        box = self._match_boxes[i, j]
        draw_cutout(axes, self._training[image], box, NORMAL, surroundings)
        title = f"distance {self._distances[i, j]:.3g}"
        if i == 0:
            title = f"{'nearest' if j == 0 else f'{j + 1}.'} normal patch\n{title}"
        axes.set_title(title, fontsize="medium")
        source = image_title(self._training._sources[image], image)
        axes.set_xlabel(f"from {source}", fontsize="small")

    def _prepare(self, surroundings: float | None) -> None:
        """Decode the images, and check that they fit the boxes."""
        if surroundings is not None and surroundings < 1:
            raise ValueError(
                f"surroundings={surroundings} is smaller than the patch; expected at "
                "least 1, or None."
            )
        images = check_images(self.images)
        check_consistent_length(
            images, self.boxes, self.match_images, self.titles, self.distances
        )
        # Training images without a match may be missing.
        self._training = check_images(self.training_images, {})
        self._images = list(images)
        self._boxes = np.asarray(self.boxes, dtype=float)
        self._matched = np.asarray(self.match_images)
        self._match_boxes = np.asarray(self.match_boxes, dtype=float)
        self._distances = np.asarray(self.distances, dtype=float)
        expected = (*self._matched.shape, 4)
        shapes = (self._match_boxes.shape, (*self._distances.shape, 4))
        if self._matched.ndim != 2 or shapes != (expected, expected):
            raise ValueError(
                f"match_images, match_boxes and distances have the shapes "
                f"{self._matched.shape}, {self._match_boxes.shape} and "
                f"{self._distances.shape}; expected (n, k), (n, k, 4) and (n, k)."
            )
        self._titles: Sequence[str] = row_titles(images.sources)
        if self.titles is not None:
            self._titles = self.titles


def draw_cutout(
    axes: "Axes",
    image: np.ndarray,
    box: np.ndarray,
    color: str,
    surroundings: float | None = None,
) -> "Rectangle":
    """Draw an image, or the surroundings of a box in it, with the box outlined."""
    from matplotlib.patches import Rectangle

    top, left, bottom, right = box
    axes.imshow(image)
    outline = Rectangle(
        # imshow puts the centre of the first pixel at 0.
        (left - 0.5, top - 0.5),
        right - left,
        bottom - top,
        fill=False,
        edgecolor=color,
        linewidth=1.8,
        path_effects=cased(1.8),
    )
    axes.add_patch(outline)
    if surroundings is not None:
        (low, high), (start, end) = (
            window(*ends, surroundings, size)
            for ends, size in zip(
                ((top, bottom), (left, right)), image.shape[:2], strict=True
            )
        )
        axes.set(xlim=(start - 0.5, end - 0.5), ylim=(high - 0.5, low - 0.5))
    axes.set(xticks=[], yticks=[])
    return outline


def window(
    start: float, end: float, surroundings: float, size: int
) -> tuple[float, float]:
    """Return the visible range of an image axis: around an interval, but inside."""
    half = min(surroundings * (end - start), size) / 2
    center = min(max((start + end) / 2, half), size - half)
    return center - half, center + half
