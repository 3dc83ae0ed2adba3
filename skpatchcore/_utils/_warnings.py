"""Warnings that point to the user's line."""

import sys
import warnings
from types import FrameType

# Packages whose functions stand between a user's line and a warning: decorators of
# methods, meta-estimators and parallel loops.
_INSIDE = {"skpatchcore", "sklearn", "joblib", "contextlib", "imblearn"}


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and point to the first line outside this package and scikit-learn."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _package(frame) in _INSIDE:
        level += 1
        frame = frame.f_back
    # A thread of this package has no frame of the user: point to its first one.
    warnings.warn(message, category, stacklevel=level if frame is None else level + 1)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
