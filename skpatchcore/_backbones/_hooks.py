"""Outputs of a network's layers, by hooks that live no longer than a pass."""

import contextlib
import itertools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from skpatchcore._utils import did_you_mean, fork_safe_lock, own_torch_state

# Hooks belong to the module, not to the thread: two simultaneous passes through one
# cached network would read each other's maps.
FORWARD_LOCK = fork_safe_lock()


class _LastLayerReached(Exception):
    """Ends a forward pass once all requested layers have answered."""


def check_layers(module: nn.Module, layers: Sequence[str]) -> None:
    """Raise a ValueError with suggestions for a layer that `module` does not have."""
    names = [name for name, _ in module.named_modules()]
    for layer in layers:
        if layer not in names:
            guess = did_you_mean(str(layer), names, n=5, cutoff=0.4)
            top = [name for name, _ in module.named_children()]
            raise ValueError(
                f"The backbone has no layer {layer!r}.{guess} Its top-level modules "
                f"are {', '.join(top)}; named_modules() lists all."
            )


def read_layers(
    module: nn.Module, layers: Sequence[str], batch: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Run `module` until the last of `layers` has answered; return their outputs."""
    outputs: dict[str, torch.Tensor] = {}
    over, process = False, os.getpid()

    def keep(name: str, output: Any) -> None:
        # An interrupt may leave a hook without a handle to remove it, and a process
        # forked during another thread's pass inherits hooks that nobody removes.
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
    """Copy tensors: the next operation of the network may well work in place."""
    if isinstance(output, list | tuple):
        return [_copy(part) for part in output]
    return output.clone() if isinstance(output, torch.Tensor) else output


@own_torch_state()
def modules_run(module: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return the names of the modules that run before the last layer has answered."""
    started = []
    config = getattr(module, "pretrained_cfg", None) or {}
    size = config.get("input_size", (3, 224, 224))
    # A network without weights, such as the bank of Gabor filters, has buffers alone.
    placed = next(itertools.chain(module.parameters(), module.buffers()), None)
    device = None if placed is None else placed.device
    probe = torch.zeros((1, *size), device=device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(FORWARD_LOCK)
        for name, child in module.named_modules():
            handle = child.register_forward_pre_hook(
                lambda _module, _args, name=name: started.append(name)
            )
            stack.callback(handle.remove)
        read_layers(module, layers, probe)
    return started
