"""Create the axes of plots, or use existing ones, and label them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Width of one image in a plot, in inches.
_CELL_WIDTH = 2.2


def check_matplotlib() -> None:
    """Raise an error that says how to install matplotlib if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Plots need matplotlib: pip install "skpatchcore[plot]".'
        ) from error


def one_axes(ax, figsize: tuple[float, float]):
    """Return `ax`, or the axes of a new figure if it is None."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def grid_of_axes(ax, shapes: Sequence[tuple[int, int]], n_columns: int) -> np.ndarray:
    """Return axes of shape (n_images, n_columns): existing ones, or new ones.

    `shapes` has the height and width of the images in each row. New axes fit them.
    """
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
            f"ax holds {axes.size} axes; expected {size[0]} images x {size[1]} "
            f"columns = {size[0] * size[1]}."
        )
    return axes.reshape(size)


def _sheet_size(shapes: Sequence[tuple[int, int]], n_columns: int) -> tuple:
    """Return the size in inches of a figure that fits images of these shapes."""
    aspect = np.median([height / width for height, width in shapes])
    # Margins for titles and colour bar.
    width = _CELL_WIDTH * n_columns + 1.8
    return width, _CELL_WIDTH * len(shapes) * min(aspect, 3) + 0.7


def label_row(cell, title: str) -> None:
    """Write the title of a row to its left."""
    cell.set_ylabel(title, rotation=0, ha="right", va="center")


def image_title(source, i: int) -> str:
    """Return the file name of an image, or its number if it has none."""
    is_path = isinstance(source, str | os.PathLike)
    return Path(source).name if is_path else f"image {i}"
