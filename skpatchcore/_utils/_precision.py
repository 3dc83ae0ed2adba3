"""Full float32 precision of matrix products, independent of torch's settings."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from skpatchcore._utils._locks import fork_safe_lock

# From 2.9 on, torch has one setting for each backend. In a process that has used it,
# reading the older global setting raises an error.
_BY_BACKEND = hasattr(torch.backends.cuda.matmul, "fp32_precision")


_PRECISION_LOCK = fork_safe_lock()


# The active blocks of `full_precision` in all threads, and the settings before them.
_precise_blocks: set[object] = set()


_precision_before: list[str] = []


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute matrix products in full float32, not in TF32 or bfloat16."""
    # The setting belongs to the process. The first thread to enter changes it and the
    # last one to leave restores it, so that no thread waits for another.
    block = object()
    try:
        with _PRECISION_LOCK:
            if not _precise_blocks:
                _precision_before[:] = _matmul_precision()
                _set_matmul_precision(["ieee"] * 3 if _BY_BACKEND else ["highest"])
            _precise_blocks.add(block)
        yield
    finally:
        with _PRECISION_LOCK:
            _precise_blocks.discard(block)
            if not _precise_blocks:
                _set_matmul_precision(_precision_before)


def _leave_blocks_of_the_parent() -> None:
    """In a forked process, restore the settings, as threads of its parent would."""
    if _precise_blocks:
        _precise_blocks.clear()
        _set_matmul_precision(_precision_before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_blocks_of_the_parent)


def _matmul_precision() -> list[str]:
    if _BY_BACKEND:
        return [backend.fp32_precision for backend in _matmul_backends()]
    return [torch.get_float32_matmul_precision()]


def _set_matmul_precision(precision: list[str]) -> None:
    if not _BY_BACKEND:
        torch.set_float32_matmul_precision(*precision)
        return
    for backend, value in zip(_matmul_backends(), precision, strict=True):
        backend.fp32_precision = value


def _matmul_backends() -> tuple[Any, Any, Any]:
    # Any: the settings are read and set by attributes that type stubs lack.
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv
