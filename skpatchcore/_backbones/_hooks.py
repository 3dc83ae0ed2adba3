"""Read the outputs of layers through hooks that exist only during a forward pass."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from skpatchcore._utils import fork_safe_lock

# Hooks belong to the module, not to the thread, so two simultaneous passes through a
# cached network would read each other's maps.
FORWARD_LOCK = fork_safe_lock()


class _LastLayerReached(Exception):
    """Ends a forward pass as soon as all requested layers have run."""


def read_layers(
    module: nn.Module, layers: Sequence[str], batch: torch.Tensor
) -> dict[str, Any]:
    """Run `module` up to the last of `layers`; return their outputs by name."""
    outputs: dict[str, torch.Tensor] = {}
    over, process = False, os.getpid()

    def keep(name: str, output: Any) -> None:
        # An interrupt may leave a hook behind without a handle to remove it. A process
        # forked during a pass in another thread inherits hooks that nobody removes.
        if over or os.getpid() != process:
            return
        outputs[name] = _copy(output)
        if len(outputs) == len(set(layers)):
            raise _LastLayerReached

    try:
        with contextlib.ExitStack() as stack:
            for name in set(layers):
                handle = module.get_submodule(name).register_forward_hook(
                    lambda _module, _args, output, name=name: keep(name, output)
                )
                stack.callback(handle.remove)
            with contextlib.suppress(_LastLayerReached):
                module(batch)
    finally:
        over = True
    unreached = [name for name in layers if name not in outputs]
    if unreached:
        raise ValueError(f"The forward pass never calls the layers {unreached}.")
    return outputs


def _copy(output: Any) -> Any:
    """Copy tensors, because the next operation of the network may work in place."""
    if isinstance(output, list | tuple):
        return [_copy(part) for part in output]
    return output.clone() if isinstance(output, torch.Tensor) else output
