"""Errors that name the image that caused them."""

from collections.abc import Iterator
from contextlib import contextmanager


class UnreadableImageError(OSError, ValueError):
    """A file or an object that cannot be decoded as an image, for example truncated."""


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Store the name of an image on errors, so that callers can skip the image."""
    try:
        yield
    except (OSError, ValueError) as error:
        error.image = name  # type: ignore[union-attr]  # Not declared by the built-in.
        raise


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn any error into an `UnreadableImageError` that names the image."""
    try:
        yield
    except Exception as error:
        # Pillow raises various types for a damaged file: OSError, SyntaxError,
        # ValueError, DecompressionBombError, ...
        raise UnreadableImageError(f"Could not read {name}: {error}") from error
