"""Patches of test pictures beside the normal patches that they were compared with."""

import numpy as np
from sklearn.utils import check_consistent_length

from skpatchcore._images import check_images
from skpatchcore.inspection._axes import (
    check_matplotlib,
    grid_of_axes,
    label_row,
    picture_title,
)
from skpatchcore.inspection._colors import NORMAL, PATCH, cased
from skpatchcore.inspection._patch_boxes import find_matches

# Side of what is cut out around a patch, in sides of the patch.
SURROUNDINGS = 2.5


class PatchMatchDisplay:
    """Patches of test pictures beside the nearest normal patches of the memory bank.

    One row a picture: the picture with one of its patches outlined, the patch cut out
    of it, and the nearest patches of the bank, cut out of the training pictures that
    they come from, with their distances. It answers why a patch is anomalous: this is
    the most similar that was seen in training. It works with any coreset, as a bank
    knows the place of each of its patches.

    Use `from_estimator` with a fitted detector, or `from_predictions` with places that
    are already known. The constructor takes what the latter does, and draws nothing.

    Parameters
    ----------
    images : sequence of n pictures, or ndarray of shape (n, h, w) or (n, h, w, c)
        Paths, PIL images, arrays of uint8, uint16 or float in [0, 1], or torch tensors
        (n, c, h, w).

    boxes : array-like of shape (n, 4)
        Top, left, bottom and right of a patch in each picture, in pixels.

    training_images : sequence of pictures, or ndarray
        The pictures that the matches are cut out of.

    match_pictures : array-like of shape (n, n_neighbors), int
        Position in `training_images` of the picture of each match, the nearest first.

    match_boxes : array-like of shape (n, n_neighbors, 4)
        Top, left, bottom and right of each match in its picture, in pixels.

    distances : array-like of shape (n, n_neighbors)
        How far each match is from the patch.

    titles : sequence of str or None, default=None
        What to write beside each picture; None writes names of files, or numbers.

    Attributes
    ----------
    axes_ : ndarray of shape (n, 2 + n_neighbors) of matplotlib Axes
        Picture, patch and matches of each row.

    figure_ : matplotlib Figure
        The figure that they are in.

    See Also
    --------
    skpatchcore.PatchCoreDetector.nearest_patches : Matches as numbers.
    animate_patch_matches : Walks over all patches of a picture.

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
        images,
        boxes,
        *,
        training_images,
        match_pictures,
        match_boxes,
        distances,
        titles=None,
    ):
        self.images = images
        self.boxes = boxes
        self.training_images = training_images
        self.match_pictures = match_pictures
        self.match_boxes = match_boxes
        self.distances = distances
        self.titles = titles

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        *,
        training_images,
        patches=None,
        n_neighbors=3,
        titles=None,
        ax=None,
        **kwargs,
    ):
        """Find the nearest normal patches of one patch of each picture, and draw them.

        Parameters
        ----------
        estimator : PatchCoreDetector or ConformalDetector
            A fitted detector; of a
            :class:`~skpatchcore.calibration.ConformalDetector` with several banks, one
            of its ``estimators_``.

        X : sequence of pictures, or ndarray of shape (n, h, w) or (n, h, w, c)
            As the detector takes them.

        training_images : sequence of pictures, or ndarray
            The `X` that the estimator was fitted on, in the same order. Only pictures
            that a match comes from are read.

        patches : sequence of n pairs of int or None, default=None
            Row and column of a patch of each picture, in the grid of
            ``predict_maps(size="grid")``; None is the most anomalous patch of each.

        n_neighbors : int, default=3
            How many normal patches to show of each.

        titles : sequence of str or None, default=None
            What to write beside each picture; None writes names of files, or numbers.

        ax : matplotlib Axes, array of Axes or None, default=None
            As for `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        PatchMatchDisplay
            The sheet, drawn.

        Raises
        ------
        TypeError
            If `estimator` has no bank, or several.

        ValueError
            If `training_images` are fewer than were learned from, or a patch is
            outside the grid.

        FileNotFoundError
            If a training picture that a match comes from is gone or unreadable; the
            message names it.

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
        images,
        boxes,
        *,
        training_images,
        match_pictures,
        match_boxes,
        distances,
        titles=None,
        ax=None,
        **kwargs,
    ):
        """Draw patches and matches whose places are known.

        Parameters
        ----------
        images : sequence of n pictures, or ndarray of shape (n, h, w) or (n, h, w, c)
            Paths, PIL images, arrays or torch tensors.

        boxes : array-like of shape (n, 4)
            Top, left, bottom and right of a patch in each picture, in pixels.

        training_images : sequence of pictures, or ndarray
            The pictures that the matches are cut out of.

        match_pictures : array-like of shape (n, n_neighbors), int
            Position in `training_images` of the picture of each match.

        match_boxes : array-like of shape (n, n_neighbors, 4)
            Top, left, bottom and right of each match in its picture, in pixels.

        distances : array-like of shape (n, n_neighbors)
            How far each match is from the patch.

        titles : sequence of str or None, default=None
            What to write beside each picture; None writes names of files, or numbers.

        ax : matplotlib Axes, array of Axes or None, default=None
            As for `plot`.

        **kwargs : dict
            Further parameters of `plot`.

        Returns
        -------
        PatchMatchDisplay
            The sheet, drawn.

        Raises
        ------
        ValueError
            If the shapes do not fit together.

        ImportError
            If matplotlib is not installed.
        """
        display = cls(
            images,
            boxes,
            training_images=training_images,
            match_pictures=match_pictures,
            match_boxes=match_boxes,
            distances=distances,
            titles=titles,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, *, surroundings=SURROUNDINGS):
        """Draw the sheet.

        Parameters
        ----------
        ax : matplotlib Axes, array of Axes or None, default=None
            Where to draw: an array with ``2 + n_neighbors`` axes for each picture, or a
            single one, which is divided. None makes a new figure with pyplot.

        surroundings : float or None, default=2.5
            Side of what is cut out round a patch, in sides of the patch; at least 1.
            None cuts nothing out, but shows whole training pictures.

        Returns
        -------
        PatchMatchDisplay
            The sheet, drawn.
        """
        check_matplotlib()
        self._prepare(surroundings)
        shapes = [image.shape[:2] for image in self._images]
        n_columns = 2 + self._distances.shape[1]
        self.axes_ = grid_of_axes(ax, shapes, n_columns)
        self.figure_ = self.axes_[0, 0].figure
        for i, (first, second, *others) in enumerate(self.axes_):
            image, box = self._images[i], self._boxes[i]
            draw_cutout(first, image, box, PATCH)
            label_row(first, self._titles[i])
            draw_cutout(second, image, box, PATCH, surroundings)
            for j, cell in enumerate(others):
                self._draw_match(cell, i, j, surroundings)
        self.axes_[0, 0].set_title("picture")
        self.axes_[0, 1].set_title("patch")
        return self

    def _draw_match(self, cell, i: int, j: int, surroundings) -> None:
        picture = int(self._pictures[i, j])
        box = self._match_boxes[i, j]
        draw_cutout(cell, self._training[picture], box, NORMAL, surroundings)
        title = f"distance {self._distances[i, j]:.3g}"
        if i == 0:
            title = f"{'nearest' if j == 0 else f'{j + 1}.'} normal patch\n{title}"
        cell.set_title(title, fontsize="medium")
        source = picture_title(self._training._sources[picture], picture)
        cell.set_xlabel(f"of {source}", fontsize="small")

    def _prepare(self, surroundings) -> None:
        """Decode and check what is to be drawn."""
        if surroundings is not None and surroundings < 1:
            raise ValueError(
                f"surroundings={surroundings} is less than the patch; expected at "
                "least 1, or None."
            )
        images = check_images(self.images)
        check_consistent_length(
            images, self.boxes, self.match_pictures, self.titles, self.distances
        )
        # Training pictures that match nothing may be gone.
        self._training = check_images(self.training_images, {})
        self._images = list(images)
        self._boxes = np.asarray(self.boxes, dtype=float)
        self._pictures = np.asarray(self.match_pictures)
        self._match_boxes = np.asarray(self.match_boxes, dtype=float)
        self._distances = np.asarray(self.distances, dtype=float)
        expected = (*self._pictures.shape, 4)
        shapes = (self._match_boxes.shape, (*self._distances.shape, 4))
        if self._pictures.ndim != 2 or shapes != (expected, expected):
            raise ValueError(
                f"match_pictures, match_boxes and distances have the shapes "
                f"{self._pictures.shape}, {self._match_boxes.shape} and "
                f"{self._distances.shape}; expected (n, k), (n, k, 4) and (n, k)."
            )
        self._titles = self.titles
        if self.titles is None:
            sources = images._sources
            self._titles = [picture_title(s, i) for i, s in enumerate(sources)]


def draw_cutout(cell, image: np.ndarray, box, color: str, surroundings=None):
    """Draw what is around a box in a picture, or all of it, with the box outlined."""
    from matplotlib.patches import Rectangle

    top, left, bottom, right = box
    cell.imshow(image)
    outline = Rectangle(
        # imshow has the centre of the first pixel at 0.
        (left - 0.5, top - 0.5),
        right - left,
        bottom - top,
        fill=False,
        edgecolor=color,
        linewidth=1.8,
        path_effects=cased(1.8),
    )
    cell.add_patch(outline)
    if surroundings is not None:
        (low, high), (start, end) = (
            window(*ends, surroundings, size)
            for ends, size in zip(
                ((top, bottom), (left, right)), image.shape[:2], strict=True
            )
        )
        cell.set(xlim=(start - 0.5, end - 0.5), ylim=(high - 0.5, low - 0.5))
    cell.set(xticks=[], yticks=[])
    return outline


def window(start: float, end: float, surroundings: float, size: int) -> tuple:
    """Return what is shown of an axis of a picture: around an interval, but inside."""
    half = min(surroundings * (end - start), size) / 2
    center = min(max((start + end) / 2, half), size - half)
    return center - half, center + half
