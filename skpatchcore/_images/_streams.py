"""Consume images from an iterator, as a camera or a database cursor provides them."""

import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from skpatchcore._images._pages import as_encoded

# A window is one or a few batches of a network. The bytes are those of arrays in
# memory, or of files before they are decoded.
_MOST_IMAGES, _MOST_BYTES = 32, 256 * 2**20
# How long to wait for more images while some are there: a person or a machine waits for
# the result of the first. A camera of 30 images a second gives windows of two.
_PATIENCE_SECONDS = 0.05


def is_stream(X: Any) -> bool:
    """Return whether X can be iterated over only once, such as a generator."""
    # Of an open file, the images would be its lines.
    return isinstance(X, Iterator) and not isinstance(X, io.IOBase)


def iter_windows(
    stream: Iterator[Any],
    *,
    patience: float = _PATIENCE_SECONDS,
    most_bytes: int = _MOST_BYTES,
) -> Iterator[list[Any]]:
    """Yield the next images of a stream, as many as arrive together, in a list.

    An image that is held back waits until the next one arrives, because an iterator
    cannot be asked whether it has one. So after a pause longer than `patience` seconds,
    as between parts on a line, each image is yielded at once, until many have arrived
    without a pause. If the stream fails, the images before the failure are yielded
    first.
    """
    window: list[Any] = []
    n_bytes, n_quick = 0, _MOST_IMAGES
    asked = started = time.monotonic()
    images = iter_owned(stream)
    try:
        for image in images:
            arrived = time.monotonic()
            n_quick = n_quick + 1 if arrived - asked <= patience else 0
            window.append(image)
            n_bytes += _n_bytes(image)
            is_due = n_quick < _MOST_IMAGES or arrived - started > patience
            if is_due or len(window) >= _MOST_IMAGES or n_bytes >= most_bytes:
                yield window
                window, n_bytes, started = [], 0, time.monotonic()
            asked = time.monotonic()
    except Exception:
        if window:
            yield window
        raise
    if window:
        yield window


def iter_owned(stream: Iterator[Any]) -> Iterator[Any]:
    """Yield images that the stream cannot change afterwards.

    Cameras and animations often return the same object for each image, with other
    contents.
    """
    for image in stream:
        if isinstance(image, np.ndarray):
            yield image.copy()
        elif isinstance(image, torch.Tensor):
            yield image.clone()
        elif isinstance(image, Image.Image) and getattr(image, "n_frames", 1) > 1:
            yield image.copy()
        else:
            yield as_encoded(image)


def _n_bytes(image: Any) -> int:
    if isinstance(image, bytes):
        return len(image)
    return int(getattr(image, "nbytes", 0))
