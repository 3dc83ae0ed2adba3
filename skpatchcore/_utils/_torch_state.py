"""Make computations independent of the caller's settings of torch."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

# The id of the process with torch's threads, which a fork does not copy: the one in
# which this package, or other code before a fork, first used torch. Empty before that.
_FIRST_PROCESS: list[int] = []
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
# These return the default dtype unless another one is passed ...
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
# ... and these do so for Python floats.
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
    """Run the block, or the decorated function, with torch's default settings.

    Tensors created without a dtype or device are float32 and on the CPU; autocast and
    gradients are off. This affects only the calling thread, and the caller's settings
    are restored afterwards. Do not use it in generators: the settings would stay active
    in the code that consumes them.
    """
    _compute_alone_in_forks()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            # Tensors created here may be stored and modified later.
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # Both slow down every call of torch, so use them only if necessary.
        # Not torch.get_default_device: before 2.7 it ignores device blocks, and fails
        # after a reset.
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.enter_context(_Float32Defaults())
        yield


class _Float32Defaults(TorchFunctionMode):
    """Make float32 the default dtype of the calling thread.

    torch.set_default_dtype would affect all threads, including the caller's.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, with float32 in the place of the default dtype."""
        kwargs = kwargs or {}
        explicit = kwargs.get("dtype") is not None or "out" in kwargs
        if function in _FLOAT_FACTORIES and not explicit:
            return function(*args, **{**kwargs, "dtype": torch.float32})
        result = function(*args, **kwargs)
        if explicit or not _took_default(result, function, args, kwargs):
            return result
        if function in _VALUE_FACTORIES:
            # Called again, because the first result may be rounded to fewer bits.
            return function(*args, **{**kwargs, "dtype": torch.float32})
        args, kwargs = tree_map(_integers_as_float32, (args, kwargs))
        return function(*args, **kwargs)


def _integers_as_float32(leaf: Any) -> Any:
    is_integer = isinstance(leaf, torch.Tensor) and not leaf.dtype.is_floating_point
    return leaf.to(torch.float32) if is_integer else leaf


def _took_default(
    result: Any,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bool:
    """Return whether the dtype of the result comes from the default dtype."""
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
    """Limit torch to one thread in a process forked after torch was used.

    OpenMP, which torch uses to split work across cores, would wait for ever for threads
    that exist only in the parent.
    """
    if not _FIRST_PROCESS:
        _FIRST_PROCESS.append(os.getpid())
    if os.getpid() != _FIRST_PROCESS[0] and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


def _count_native_threads() -> int:
    """Return how many threads of libraries run; 0 where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/task")) - threading.active_count()
    except OSError:
        return 0


_N_AT_IMPORT = _count_native_threads()


def _remember_threads() -> None:
    """Before a fork, note whether somebody else's code has started torch's threads."""
    if not _FIRST_PROCESS and _count_native_threads() > _N_AT_IMPORT:
        _FIRST_PROCESS.append(os.getpid())


# Windows has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_remember_threads)


@contextmanager
def onnx_log_disabled() -> Iterator[None]:
    """Keep torch from printing the graph of a network that it cannot export to ONNX.

    The exporter enables its log for each export, and the log goes to standard output
    below Python, where it would mix with results.
    """
    if not hasattr(torch._C, "_jit_set_onnx_log_enabled"):
        yield
        return
    enable = torch._C._jit_set_onnx_log_enabled
    enable(False)
    torch._C._jit_set_onnx_log_enabled = lambda enabled: None
    try:
        yield
    finally:
        torch._C._jit_set_onnx_log_enabled = enable
