"""Colours of all plots. Each has one meaning and is distinct in greyscale."""

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from matplotlib.patheffects import AbstractPathEffect

# A name, or an offset with the lengths of dashes and gaps.
LineStyle: TypeAlias = str | tuple[int, tuple[float, ...]]

# Their lightness in CIELAB is 40 and 69 of 100.
NORMAL = "#1f5fa8"
ANOMALOUS = "#f28e2b"
# A second cue for greyscale.
NORMAL_HATCH, ANOMALOUS_HATCH = "", "////"
NORMAL_LINE: LineStyle = "solid"
ANOMALOUS_LINE: LineStyle = (0, (5, 1))

THRESHOLD = "black"
THRESHOLD_LINE = (0, (4, 2))

# Outlines of defects on images: true ones light and solid, predicted ones dashed.
TRUE_MASK = "#37d67a"
PREDICTED_MASK = "#e6007e"
PREDICTED_LINE = (0, (3, 1.5))

# The patch of a test image; the patches that it matches are NORMAL.
PATCH = "#00d5ff"

# Neither normal nor anomalous: curves over both classes, limits, guide lines.
NEUTRAL = "0.25"
GUIDE = "0.6"


def cased(width: float, color: str = "white") -> "list[AbstractPathEffect]":
    """Return effects that outline a line of this width, to be visible on any image."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width + 1.6, foreground=color)]
