"""Errors about single images, which say which image is at fault."""

from contextlib import contextmanager


class UnreadableImageError(OSError, ValueError):
    """An image that cannot be decoded: truncated, or no image at all."""


@contextmanager
def blaming(name: str):
    """Note on an error whose fault it is, for those who can do without the image."""
    try:
        yield
    except (OSError, ValueError) as error:
        error.image = name
        raise


@contextmanager
def _naming(name: str):
    """Turn what goes wrong while an image is read into an error that names it."""
    try:
        yield
    except Exception as error:
        # What Pillow raises for a broken file depends on where it is broken: OSError,
        # SyntaxError, ValueError, DecompressionBombError, ...
        raise UnreadableImageError(f"Could not read {name}: {error}") from error
