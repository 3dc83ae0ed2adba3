"""The modules and weights of a network that its layers depend on."""

import contextlib
import itertools
from weakref import WeakKeyDictionary

import torch
from torch import nn

from skpatchcore._backbones._hooks import FORWARD_LOCK, read_layers
from skpatchcore._backbones._layers import Layers, are_names, read_levels
from skpatchcore._backbones._network_input import input_channels, native_size
from skpatchcore._utils import own_torch_state

# By module, because the pass that finds them takes as long as one image.
_USED: WeakKeyDictionary[nn.Module, dict[Layers, set[str]]] = WeakKeyDictionary()


@own_torch_state()
def modules_run(module: nn.Module, layers: Layers) -> list[str]:
    """Return the names of the modules that run, up to the last of `layers`."""
    started = []
    # A network without weights, such as the bank of Gabor filters, has only buffers.
    placed = next(itertools.chain(module.parameters(), module.buffers()), None)
    device = None if placed is None else placed.device
    shape = (1, input_channels(module), *native_size(module))
    probe = torch.zeros(shape, device=device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(FORWARD_LOCK)
        for name, child in module.named_modules():
            handle = child.register_forward_pre_hook(
                lambda _module, _args, name=name: started.append(name)
            )
            stack.callback(handle.remove)
        if are_names(layers):
            read_layers(module, layers, probe)
        else:
            read_levels(module, layers, probe)
    return started


def weights_used(module: nn.Module, layers: Layers) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers that shape the output of `layers`, by name."""
    used = _modules_used(module, layers)
    return {
        name: value
        for name, value in module.state_dict().items()
        # The number of training batches has no effect, and some files lack it.
        if name.rpartition(".")[0] in used and not name.endswith("num_batches_tracked")
    }


def _modules_used(module: nn.Module, layers: Layers) -> set[str]:
    """Return the names of the modules whose weights count.

    Modules count up to the last one that runs, since some weights files contain no
    others. Modules that are defined before it but never run count too, because some
    attention layers use the weights of a module without calling it.
    """
    known = _USED.setdefault(module, {})
    if layers not in known:
        names = [name for name, _ in module.named_modules()]
        try:
            last = max(map(names.index, modules_run(module, layers)))
        except (AssertionError, RuntimeError, ValueError):
            # The network does not accept an image of the size that was tried.
            last = len(names)
        inside = tuple(f"{name}." for name in layers if isinstance(name, str))
        known[layers] = {
            n for i, n in enumerate(names) if i <= last or n.startswith(inside)
        }
    return known[layers]
