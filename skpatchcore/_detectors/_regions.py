"""Defect regions: the connected parts of a mask, with box, outline and size."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: Corners (x, y) of a closed outline, shape (n, 2), int64.
Polygon: TypeAlias = NDArray[np.int64]

# Pixels that touch at a corner belong together: a thin diagonal scratch is one defect.
_TOUCHING = np.ones((3, 3))
# Steps (x, y) along the edges of pixels, y downwards: right, down, left, up. Adding 1
# turns right.
_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
_LEFT, _STRAIGHT, _RIGHT = -1, 0, 1


@dataclass(frozen=True, eq=False)
class Region:
    """A defect region: connected pixels of an image's mask.

    Coordinates are in pixels of the original image, x to the right and y downwards from
    the top left corner of the image, as in COCO. They count corners of pixels, not
    centres: the pixel in column c and row r covers c to c + 1 and r to r + 1.

    Parameters
    ----------
    box : tuple of int
        The smallest box around the region: x and y of its top left corner, width and
        height.
    polygon : ndarray of shape (n, 2), int64
        Corners (x, y) of the outline, along the edges of pixels, clockwise as shown on
        a screen. The last corner is connected to the first. Where two pixels touch only
        at a corner, the outline passes through this corner twice.
    holes : tuple of ndarray of shape (n, 2), int64
        Outlines of the holes, anticlockwise. The area of `polygon` less that of all
        `holes` is `area`.
    area : int
        Number of pixels, without holes.
    peak : float
        Largest value of the anomaly map in the region.
    mean : float
        Mean value of the anomaly map in the region.
    """

    box: tuple[int, int, int, int]
    polygon: Polygon
    holes: tuple[Polygon, ...]
    area: int
    peak: float
    mean: float

    def as_dict(self) -> dict[str, Any]:
        """Return the same as numbers, lists and a dict, for JSON.

        Returns
        -------
        values : dict
            The attributes by name, outlines as lists of ``[x, y]``.
        """
        return {
            "box": list(self.box),
            "polygon": self.polygon.tolist(),
            "holes": [hole.tolist() for hole in self.holes],
            "area": self.area,
            "peak": self.peak,
            "mean": self.mean,
        }


def find_regions(
    anomaly_map: NDArray, threshold: float, min_area: int = 1
) -> list[Region]:
    """Return the regions of a map above a threshold, the highest peak first.

    Parameters
    ----------
    anomaly_map : ndarray of shape (height, width)
        Higher is more anomalous. NaN is never in a region.
    threshold : float
        Pixels whose map is larger are in a region.
    min_area : int
        Regions of fewer pixels are left out.

    Returns
    -------
    regions : list of Region

    Raises
    ------
    ValueError
        If `min_area` is not an integer of at least 1.
    """
    if not isinstance(min_area, Integral) or isinstance(min_area, bool) or min_area < 1:
        raise ValueError(
            f"min_area={min_area!r}; expected an integer of at least 1, the number of "
            "pixels of the smallest region to return."
        )
    numbers, _ = ndimage.label(anomaly_map > threshold, _TOUCHING)
    areas = np.bincount(numbers.ravel())
    regions = [
        _describe(numbers[box] == i, anomaly_map[box], box)
        for i, box in enumerate(ndimage.find_objects(numbers), start=1)
        if areas[i] >= min_area
    ]
    # Regions of equal peaks stay in the order of their first pixels.
    return sorted(regions, key=lambda region: -region.peak)


def _describe(
    inside: NDArray[np.bool_], values: NDArray, box: tuple[slice, slice]
) -> Region:
    """Return the region of the pixels `inside` a box of the map."""
    rows, columns = box
    corner = np.array([columns.start, rows.start])
    outline, *holes = (loop + corner for loop in trace_outlines(inside))
    height, width = inside.shape
    found = values[inside].astype(np.float64)
    return Region(
        box=(columns.start, rows.start, width, height),
        polygon=outline,
        holes=tuple(holes),
        area=len(found),
        peak=float(found.max()),
        mean=float(found.mean()),
    )


def trace_outlines(inside: NDArray[np.bool_]) -> list[Polygon]:
    """Return the outline of one connected region, then those of its holes.

    The boundary consists of the edges between a pixel inside and one outside, each
    directed so that the inside is on its right. Every corner of pixels has as many
    edges that end there as edges that start there, so following them gives closed
    loops. Where two pixels touch only at a corner, two edges start: turning left
    continues along the other pixel, so that both belong to one outline.
    """
    starts, directions = _find_edges(inside)
    following = _follow(starts, directions, inside.shape[1] + 2)
    loops = []
    waiting = [True] * len(starts)
    successors = following.tolist()
    for first in range(len(starts)):
        if not waiting[first]:
            continue
        loop, edge = [], first
        while waiting[edge]:
            waiting[edge] = False
            loop.append(edge)
            edge = successors[edge]
        turned = directions[loop] != np.roll(directions[loop], 1)
        loops.append(starts[loop][turned])
    # Only the outline around everything runs clockwise.
    return sorted(loops, key=_signed_area, reverse=True)


def _find_edges(inside: NDArray[np.bool_]) -> tuple[Polygon, NDArray[np.int64]]:
    """Return the start (x, y) and the direction of each edge of the boundary."""
    padded = np.pad(inside, 1)
    # For each direction: the pixel on the left of the edge, and where the edge starts,
    # both relative to the pixel on its right, which is inside.
    sides = [((-1, 0), (0, 0)), ((0, 1), (1, 0)), ((1, 0), (1, 1)), ((0, -1), (0, 1))]
    starts, directions = [], []
    for direction, (outside, (x, y)) in enumerate(sides):
        left = np.roll(padded, (-outside[0], -outside[1]), axis=(0, 1))
        rows, columns = np.nonzero(padded & ~left)
        starts.append(np.stack([columns - 1 + x, rows - 1 + y], axis=1))
        directions.append(np.full(len(rows), direction))
    return np.concatenate(starts).astype(np.int64), np.concatenate(directions)


def _follow(
    starts: Polygon, directions: NDArray[np.int64], stride: int
) -> NDArray[np.int64]:
    """Return which edge follows each: left if there is one, else straight or right."""
    edge_at = np.full((4, (int(starts[:, 1].max()) + 2) * stride), -1, dtype=np.int64)
    edge_at[directions, starts @ [1, stride]] = np.arange(len(starts))
    ends = (starts + _STEPS[directions]) @ [1, stride]
    following = np.full(len(starts), -1, dtype=np.int64)
    for turn in (_RIGHT, _STRAIGHT, _LEFT):
        candidates = edge_at[(directions + turn) % 4, ends]
        following = np.where(candidates >= 0, candidates, following)
    return following


def _signed_area(loop: Polygon) -> float:
    """Return the area of a polygon, negative if it runs anticlockwise on a screen."""
    x, y = loop.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
