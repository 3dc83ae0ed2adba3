"""Colours of all plots: each means one thing, and is told apart in greyscale too."""

# Lightness of the two, in CIELAB: 40 and 69 of 100.
NORMAL = "#1f5fa8"
ANOMALOUS = "#f28e2b"
# The second cue, where there is no colour.
NORMAL_HATCH, ANOMALOUS_HATCH = "", "////"
NORMAL_LINE, ANOMALOUS_LINE = "solid", (0, (5, 1))

THRESHOLD = "black"
THRESHOLD_LINE = (0, (4, 2))

# Outlines of defects, on pictures: the true one light and solid, the other dashed.
TRUE_MASK = "#37d67a"
PREDICTED_MASK = "#e6007e"
PREDICTED_LINE = (0, (3, 1.5))

# The patch of a test picture that is looked at; those it matches are NORMAL.
PATCH = "#00d5ff"

# What is neither normal nor anomalous: curves over both, limits, guides.
NEUTRAL = "0.25"
GUIDE = "0.6"


def cased(width: float, color: str = "white") -> list:
    """Return effects that give a line of this width a rim, to be seen on anything."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width + 1.6, foreground=color)]
