"""Computations that do not depend on the settings of torch that the caller has made."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

# The process in which this package first computed with torch; empty before that.
_FIRST_PROCESS: list[int] = []
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
# What these make is of the default dtype, unless they are told another one ...
_FLOAT_FACTORIES = frozenset(
    (
        torch.empty,
        torch.empty_strided,
        torch.eye,
        torch.linspace,
        torch.logspace,
        torch.normal,
        torch.ones,
        torch.rand,
        torch.randn,
        torch.zeros,
    )
)
# ... and what these make if they are given floats of Python.
_VALUE_FACTORIES = frozenset(
    (
        torch.arange,
        torch.as_tensor,
        torch.asarray,
        torch.full,
        torch.scalar_tensor,
        torch.tensor,
    )
)


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Run the block, or the function it decorates, as if no setting had been made.

    Tensors made without a dtype or device are float32 and on the CPU, autocast and
    gradients are off. All of this is for the calling thread alone: no other thread sees
    a difference, and afterwards the caller's settings are what they were. Not for
    generators, which would leave it to whoever gets what they yield.
    """
    _compute_alone_in_forks()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            # What is made here may be kept, and written to later.
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # Both of these cost time at every call of torch, so only where there is need.
        # In torch 2.6, get_default_device ignores blocks and fails after a reset.
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.enter_context(_Float32Defaults())
        yield


class _Float32Defaults(TorchFunctionMode):
    """Make float32 the default dtype of the calling thread.

    torch.set_default_dtype would do so for all threads, those of the caller too.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call a function of torch, and make of float32 what it chose the dtype of."""
        kwargs = kwargs or {}
        explicit = kwargs.get("dtype") is not None or "out" in kwargs
        if function in _FLOAT_FACTORIES and not explicit:
            return function(*args, **{**kwargs, "dtype": torch.float32})
        result = function(*args, **kwargs)
        if explicit or not _took_default(result, function, args, kwargs):
            return result
        if function in _VALUE_FACTORIES:
            # Again, since the values may have been rounded to fewer bits.
            return function(*args, **{**kwargs, "dtype": torch.float32})
        args, kwargs = tree_map(_integers_as_float32, (args, kwargs))
        return function(*args, **kwargs)


def _integers_as_float32(leaf):
    is_integer = isinstance(leaf, torch.Tensor) and not leaf.dtype.is_floating_point
    return leaf.to(torch.float32) if is_integer else leaf


def _took_default(result, function, args, kwargs) -> bool:
    """Tell whether the result's dtype is the default for want of anything else."""
    if not isinstance(result, torch.Tensor):
        return False
    if result.dtype != torch.get_default_dtype() or function is torch.Tensor.double:
        return False
    return not any(
        isinstance(leaf, torch.dtype | np.ndarray | np.generic)
        or (isinstance(leaf, torch.Tensor) and leaf.dtype.is_floating_point)
        for leaf in tree_leaves((args, kwargs))
    )


def _compute_alone_in_forks() -> None:
    """Use one thread of torch in a process forked from one that has computed.

    OpenMP, which shares torch's work among cores, waits in such a process for threads
    that only its parent has, for ever.
    """
    if not _FIRST_PROCESS:
        _FIRST_PROCESS.append(os.getpid())
    if os.getpid() != _FIRST_PROCESS[0] and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
