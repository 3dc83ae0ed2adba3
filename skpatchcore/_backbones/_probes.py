"""Find the layouts of layers with blank probe images of two sizes."""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn

from skpatchcore._backbones._hooks import FORWARD_LOCK, read_layers
from skpatchcore._backbones._layouts import Hints, Layout, Probe, find_layout
from skpatchcore._backbones._network_input import (
    input_channels,
    native_size,
    whole_size,
)

# By module, so that a network that many fits share is probed once for each layer.
_LAYOUTS: WeakKeyDictionary[nn.Module, dict[str, Layout]] = WeakKeyDictionary()
# With one image, the batch axis could be confused with others of length 1.
_BATCH = 2
# Networks whose tokens are grouped by windows, not ordered by rows.
_UNORDERED = {"Hiera"}


def learn_layouts(
    module: nn.Module, layers: Sequence[str], size: Sequence[int]
) -> dict[str, Layout]:
    """Return the layouts of `layers`, each found at its first call.

    The network itself is neither run nor changed. A twin runs on torch's device for
    shapes, without arithmetic, or a copy with the weights if the code needs numbers.
    The probe images have about the size that the network was made for, or `size` (h,
    w), and a larger one. None of them is square.

    Returns
    -------
    layouts : dict of Layout
        Layers that no probe has reached are missing.

    Raises
    ------
    ValueError
        If the output of a layer is not a map, or its channel axis is ambiguous.
    """
    with FORWARD_LOCK:
        known = _LAYOUTS.setdefault(module, {})
        new = [layer for layer in dict.fromkeys(layers) if layer not in known]
        if new:
            keep_layouts(module, _probe(module, new, (size[0], size[1])))
        return {layer: known[layer] for layer in layers if layer in known}


def keep_layouts(module: nn.Module, passes: Sequence[dict[str, Probe]]) -> None:
    """Find the layouts of layers from their outputs in some passes, and keep them."""
    hints, known = Hints.of(module), _LAYOUTS.setdefault(module, {})
    if type(module).__name__ in _UNORDERED:
        raise ValueError(
            f"Layers of {type(module).__name__} cannot be read by module name, because "
            "their tokens are grouped by windows, not ordered by rows. Pass the "
            "network by its timm name, and numbers as layers, which count timm's "
            "feature levels: layers=(1, 2)."
        )
    for layer in passes[0] if passes else ():
        known[layer] = find_layout([given[layer] for given in passes], hints, layer)


def _probe(
    module: nn.Module, layers: Sequence[str], size: tuple[int, int]
) -> list[dict[str, Probe]]:
    """Return the outputs of layers in two passes, or in one or none if more fail."""
    bases = list(dict.fromkeys([native_size(module), size]))
    # The first sizes show best which outputs are no maps, since strides do not divide
    # them. Some networks take multiples of their stride only.
    choices = [[(h, 3 * w // 2), (2 * h, 5 * w // 2)] for h, w in bases]
    choices += [[(h, 2 * w), (2 * h, 3 * w)] for h, w in bases]
    choices += [[base] for base in bases]
    for twin in (_shapes_only, _with_weights):
        for sizes in choices:
            # A network may raise any error for a size that it was not made for, or if
            # it needs numbers. If the error matters, the pass of the images fails too.
            with contextlib.suppress(Exception):
                return _passes(module, layers, sizes, twin)
    return []


def _passes(
    module: nn.Module,
    layers: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    make_twin: Callable[[nn.Module], contextlib.AbstractContextManager[tuple]],
) -> list[dict[str, Probe]]:
    passes = []
    with make_twin(module) as (twin, device):
        for size in sizes:
            size = whole_size(module, size)
            batch = torch.zeros((_BATCH, input_channels(module), *size), device=device)
            outputs = read_layers(twin, layers, batch)
            passes.append({k: Probe(_BATCH, size, v) for k, v in outputs.items()})
    return passes


@contextlib.contextmanager
def _shapes_only(module: nn.Module) -> Iterator[tuple]:
    """Provide a twin of `module` whose tensors have shapes but no data."""
    if any(isinstance(child, nn.RNNBase) for child in module.modules()):
        # Each of thousands of steps would be a separate operation, which takes seconds.
        raise NotImplementedError
    twin = copy.deepcopy(module, {id(t): _emptied(t) for t in _tensors(module)})
    with torch.inference_mode(), torch.device("meta"):
        yield twin, torch.device("meta")


@contextlib.contextmanager
def _with_weights(module: nn.Module) -> Iterator[tuple]:
    """Provide a twin of `module` that shares its weights but not its buffers."""
    twin = copy.deepcopy(module, {id(weight): weight for weight in module.parameters()})
    placed = next(_tensors(module), None)
    device = torch.device("cpu") if placed is None else placed.device
    cuda = [device] if device.type == "cuda" else []
    # A network may draw random numbers.
    with torch.inference_mode(), torch.random.fork_rng(devices=cuda):
        yield twin, device


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield parameters, buffers, and tensors among the plain attributes."""
    yield from itertools.chain(module.parameters(), module.buffers())
    for child in module.modules():
        yield from (v for v in vars(child).values() if isinstance(v, torch.Tensor))


def _emptied(tensor: torch.Tensor) -> torch.Tensor:
    empty = tensor.detach().to("meta")
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(empty, requires_grad=False) if is_parameter else empty
