"""Create the axes of plots, or use existing ones, and label them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Axes for several plots, or one Axes to divide.
AxesLike: TypeAlias = "Axes | Sequence[Axes] | NDArray"

# Width of one image in a plot, in inches.
_IMAGE_WIDTH = 2.2


def check_matplotlib() -> None:
    """Raise an error that says how to install matplotlib if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Plots need matplotlib: pip install "skpatchcore[plot]".'
        ) from error


def one_axes(ax: "Axes | None", figsize: tuple[float, float]) -> "Axes":
    """Return `ax`, or the axes of a new figure if it is None."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def grid_of_axes(
    ax: "AxesLike | None", shapes: Sequence[tuple[int, ...]], n_columns: int
) -> NDArray:
    """Return axes of shape (n_images, n_columns): existing ones, or new ones.

    `shapes` has the height and width of the images in each row. New axes fit them.
    """
    size = (len(shapes), n_columns)
    if ax is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=_sheet_size(shapes, n_columns), layout="compressed")
        return figure.subplots(*size, squeeze=False)
    if not isinstance(ax, np.ndarray | Sequence):
        return _divide(ax, size)
    axes = np.asarray(ax, dtype=object)
    if axes.size != size[0] * size[1]:
        raise ValueError(
            f"ax holds {axes.size} axes; expected {size[0]} images x {size[1]} "
            f"columns = {size[0] * size[1]}."
        )
    return axes.reshape(size)


def _divide(ax: "Axes", size: tuple[int, int]) -> NDArray:
    """Return axes in the place of a single one, which becomes invisible."""
    spec = ax.get_subplotspec()
    if spec is None:
        raise ValueError(
            "ax is not part of a grid, so it cannot be divided. Create it with "
            f"subplots, or pass an array of {size[0]} x {size[1]} Axes."
        )
    ax.set_axis_off()
    return spec.subgridspec(*size).subplots(squeeze=False)


def _sheet_size(
    shapes: Sequence[tuple[int, ...]], n_columns: int
) -> tuple[float, float]:
    """Return the size in inches of a figure that fits images of these shapes."""
    aspect = np.median([height / width for height, width in shapes])
    # Margins for titles and colour bar.
    width = _IMAGE_WIDTH * n_columns + 1.8
    return width, _IMAGE_WIDTH * len(shapes) * min(aspect, 3) + 0.7


def label_row(axes: "Axes", title: str) -> None:
    """Write the title of a row to its left."""
    axes.set_ylabel(title, rotation=0, ha="right", va="center")


def title_axes(axes: "Axes", title: str) -> None:
    """Give axes a title, unless they have one, as those of a caller may."""
    if not axes.get_title():
        axes.set_title(title)


def title_figure(ax: "AxesLike | None", figure: Any, title: str) -> None:
    """Give a figure of several axes a title, if it was made for them: `ax` is None."""
    if ax is None:
        figure.suptitle(title)


def image_title(source: Any, i: int, *, n_parts: int = 1) -> str:
    """Return the last parts of an image's path, or its number if it has none.

    Two parts are folder and file: in most data sets the folder names the kind of
    defect, and file names are numbers.
    """
    if not isinstance(source, str | os.PathLike):
        return f"image {i}"
    return "/".join(Path(source).parts[-n_parts:])


def row_titles(sources: Sequence[Any]) -> list[str]:
    """Return folder and file name of images, or numbers, for the rows of a plot."""
    return [image_title(source, i, n_parts=2) for i, source in enumerate(sources)]
