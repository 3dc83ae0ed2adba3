"""Animations that step through the patches of an image."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from skpatchcore._images import Images, check_images
from skpatchcore._utils import atomic_write, check_writable
from skpatchcore.inspection._axes import check_matplotlib, image_title
from skpatchcore.inspection._colors import GUIDE, NORMAL, PATCH, cased
from skpatchcore.inspection._overlays import color_limits
from skpatchcore.inspection._patch_boxes import Matches, PatchPlaces
from skpatchcore.inspection._patch_matches import SURROUNDINGS, draw_cutout

if TYPE_CHECKING:
    from matplotlib.animation import AbstractMovieWriter
    from matplotlib.axes import Axes

_WRITERS = {".gif": "pillow", ".mp4": "ffmpeg"}
# Inches, and pixels per inch. 900 x 580 pixels: MP4 needs even numbers.
_SIZE, _DPI = (9.0, 5.8), 100


def animate_patch_matches(
    estimator: Any,
    image: Any,
    path: str | os.PathLike[str],
    *,
    training_images: Any,
    step: int | None = None,
    max_frames: int = 100,
    fps: float = 4,
    verbose: int = 0,
) -> Path:
    """Write an animation that shows the nearest normal patch of each patch.

    Use it for a talk or a report, to explain how a detector scores one image. The
    animation steps through the patches of the image row by row and ends at the most
    anomalous one. The upper row shows the image, its patch scores, and the training
    image of the nearest normal patch. The lower row shows the two patches with their
    surroundings. Between them, a histogram shows where the score lies among those of
    all patches.

    Parameters
    ----------
    estimator : PatchCoreDetector or ConformalDetector
        A fitted detector with one memory bank.

    image : path, PIL image, ndarray of shape (h, w) or (h, w, c), or torch tensor
        A single image, or the bytes of an image file.

    path : str or path-like
        File to write. ``.gif`` uses Pillow; ``.mp4`` uses ffmpeg, which must be
        installed. An existing file is replaced.

    training_images : sequence of images, or ndarray
        The `X` that the estimator was fitted on, in the same order.

    step : int or None, default=None
        Show every `step`-th patch of every `step`-th row. None chooses the smallest
        step that needs at most `max_frames` frames.

    max_frames : int, default=100
        Largest number of patches to show if `step` is None, not counting the last one.

    fps : float, default=4
        Patches per second.

    verbose : int, default=0
        If positive, show a progress bar.

    Returns
    -------
    path : pathlib.Path
        Path of the written file.

    Raises
    ------
    ValueError
        If the file name ends in neither ``.gif`` nor ``.mp4``, or if `step`,
        `max_frames` or `fps` is not positive.

    RuntimeError
        If `path` ends in ``.mp4`` and ffmpeg is not installed.

    FileNotFoundError
        If the training image of a match is missing or unreadable, or the folder of
        `path` does not exist.

    ImportError
        If matplotlib is not installed.

    See Also
    --------
    PatchMatchDisplay : Plot single patches with several neighbours each.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
    >>> from skpatchcore.datasets import make_surface_defects
    >>> from skpatchcore.inspection import animate_patch_matches
    >>> surfaces = make_surface_defects(4, 0, 1, image_size=64, random_state=0)
    >>> train, odd = surfaces.data[:4], surfaces.data[4]
    >>> features = PatchFeatureTransformer("resnet18", weights="random", image_size=64)
    >>> detector = PatchCoreDetector(features, random_state=0).fit(train)
    >>> with TemporaryDirectory() as folder:
    ...     path = animate_patch_matches(
    ...         detector,
    ...         odd,
    ...         Path(folder, "walk.gif"),
    ...         training_images=train,
    ...         max_frames=4,
    ...     )
    ...     path.read_bytes()[:6]
    b'GIF89a'
    """
    check_matplotlib()
    path = Path(path)
    writer = _make_writer(path, fps)
    check_writable(path)
    images = check_images([image])
    places = PatchPlaces(estimator, training_images)
    scene = _Scene(images, places)
    walk = _plan_walk(scene.matches, step, max_frames)
    # Writers of animations take names only, and ffmpeg seeks in what it writes.
    with atomic_write(path) as file, TemporaryDirectory() as folder:
        made = Path(folder, f"animation{path.suffix}")
        with writer.saving(scene.figure, str(made), _DPI):
            for place in tqdm(walk, desc="patches", disable=not verbose):
                scene.show(place)
                writer.grab_frame()
        file.write(made.read_bytes())
    return path


def _make_writer(path: Path, fps: float) -> "AbstractMovieWriter":
    from matplotlib.animation import AbstractMovieWriter, writers

    kind = _WRITERS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"path={str(path)!r} must end in .gif or .mp4.")
    if not fps > 0:
        raise ValueError(f"fps={fps} must be positive.")
    if not writers.is_available(kind):
        raise RuntimeError(
            f"{path.name} needs ffmpeg, which was not found. Install ffmpeg and add it "
            "to the PATH, or write a .gif file."
        )
    make: Callable[..., AbstractMovieWriter] = writers[kind]
    return make(fps=fps)


def _plan_walk(
    matches: Matches, step: int | None, max_frames: int
) -> list[tuple[int, int]]:
    """Return grid positions, row by row, and the most anomalous one last."""
    for name, value in (("step", step), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be positive.")
    height, width = matches.scores.shape
    if step is None:
        steps = range(1, max(height, width) + 1)
        step = next(s for s in steps if -(-height // s) * -(-width // s) <= max_frames)
    # Start in the middle of the first step, not at the border.
    rows, columns = (range((step - 1) // 2 % n, n, step) for n in (height, width))
    walk = [(row, column) for row in rows for column in columns]
    return [*walk, matches.most_anomalous]


class _Scene:
    """A figure that shows one patch at a time, and the normal patch that it matches."""

    def __init__(self, images: Images, places: PatchPlaces):
        from matplotlib.figure import Figure

        self.places = places
        self.image = images[0]
        self.matches = places.matches(images, 1)
        # Not pyplot, which may need a window system.
        self.figure = Figure(figsize=_SIZE, layout="constrained")
        self.figure.suptitle("Nearest normal patch of each patch")
        grid = self.figure.subplots(2, 3)
        (whole, scores, self.source), (self.patch, distances, self.match) = grid
        self._draw_image(whole, image_title(images._sources[0], 0))
        self._draw_scores(scores)
        self._draw_distances(distances)
        self.show(self.matches.most_anomalous)
        # Fix the layout: computing it for each frame is slow and makes the axes move.
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    def _draw_image(self, axes: "Axes", title: str) -> None:
        box = self._box(self.matches.most_anomalous)
        self.outline = draw_cutout(axes, self.image, box, PATCH)
        axes.set_title(title)

    def _draw_scores(self, axes: "Axes") -> None:
        from matplotlib.patches import Rectangle

        low, high = color_limits(None, [self.matches.scores])
        height, width = self.image.shape[:2]
        rows, columns = self.matches.scores.shape
        aspect = (height / rows) / (width / columns)
        scores = self.matches.scores
        axes.imshow(scores, vmin=low, vmax=high, cmap="inferno", aspect=aspect)
        self.mark = Rectangle((0, 0), 1, 1, fill=False, edgecolor=PATCH, linewidth=1.8)
        self.mark.set_path_effects(cased(1.8))
        axes.add_patch(self.mark)
        axes.set(title="patch scores", xticks=[], yticks=[])

    def _draw_distances(self, axes: "Axes") -> None:
        axes.hist(self.matches.scores.ravel(), bins=40, color=GUIDE)
        axes.set(xlabel="patch score (feature distance)", ylabel="number of patches")
        axes.set_box_aspect(0.8)
        self.score = axes.axvline(0, color=PATCH, linewidth=2)
        self.score.set_path_effects(cased(2, "black"))

    def _box(self, place: tuple[int, int]) -> np.ndarray:
        return self.places.box(self.image.shape[:2], self.matches.scores.shape, place)

    def show(self, place: tuple[int, int]) -> None:
        """Show one patch of the grid."""
        image, row, column, distance = (part[place][0] for part in self.matches[:4])
        box, match_box = (
            self._box(place),
            self.places.training_box(image, row, column),
        )
        training = self.places.training_image(image)
        self.outline.set_xy((box[1] - 0.5, box[0] - 0.5))
        self.mark.set_xy((place[1] - 0.5, place[0] - 0.5))
        self.score.set_xdata([self.matches.scores[place]] * 2)
        for axes in (self.source, self.patch, self.match):
            axes.clear()
        draw_cutout(self.source, training, match_box, NORMAL)
        draw_cutout(self.patch, self.image, box, PATCH, SURROUNDINGS)
        draw_cutout(self.match, training, match_box, NORMAL, SURROUNDINGS)
        name = image_title(self.places.training._sources[image], image)
        self.source.set_title(f"training: {name}")
        self.patch.set_xlabel(f"patch in row {place[0]}, column {place[1]}")
        self.match.set_xlabel(f"nearest normal patch, distance {distance:.3g}")
