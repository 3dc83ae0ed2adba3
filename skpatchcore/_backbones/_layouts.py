"""Find the channel axis of each layer's output by probes, once for each network.

One image is not enough. A map (b, 32, 32, 33) of an image of 256 x 257
pixels has 32 channels or 33. But passed through the network at two sizes, rows and
columns change, and channels do not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from skpatchcore._backbones._token_grids import (
    ROUNDING,
    all_grids,
    divide,
    find_stride,
    misfit,
    near_grids,
)

# Tokens that stand before those of patches where a network does not say, and only one
# size can be probed: none; a class token; one for distillation too, or a class token
# and four registers (DINOv2, DINOv3).
_USUAL_PREFIXES = (0, 1, 2, 5)
# timm's name for the order of axes that a network works with.
_DECLARED_AXES = {"NCHW": 1, "NHWC": 3}


class Probe(NamedTuple):
    """What a layer gave for `n` images of `size` (h, w): one output, or a sequence."""

    n: int
    size: tuple[int, int]
    output: object

    @property
    def parts(self) -> Sequence:
        """The output as a sequence, of length 1 if it is none."""
        return self.output if isinstance(self.output, list | tuple) else (self.output,)

    def tensor(self, part: int) -> torch.Tensor | None:
        """Return a part that is a tensor with an entry for each image."""
        value = self.parts[part] if part < len(self.parts) else None
        fits = (
            isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == self.n
        )
        return value if fits else None


class Hints(NamedTuple):
    """What a network says about its outputs, for what probes leave open.

    `prefixes` are numbers of tokens that may stand before those of patches, `ratio` the
    height and width of a patch in pixels, `channel_axis` where maps have channels.
    """

    prefixes: Sequence[int] | None = None
    ratio: tuple[int, int] = (1, 1)
    channel_axis: int | None = None

    @classmethod
    def of(cls, module: nn.Module) -> "Hints":
        """Return the hints of a network that follows timm's conventions."""
        n_prefix = getattr(module, "num_prefix_tokens", None)
        axes = getattr(module, "output_fmt", None)
        return cls(
            None if n_prefix is None else (n_prefix, 0),
            patch_ratio(module),
            _DECLARED_AXES.get(str(getattr(axes, "value", axes))),
        )


class Layout(NamedTuple):
    """How to read a layer's output as a map (b, c, h, w), the same for every image.

    Attributes
    ----------
    part : int
        Which of several outputs is the map.
    n_dims : int
        4 for maps, 3 for tokens.
    channel_axis, n_channels : int
        Where channels are, and how many.
    n_prefix : int
        Tokens to leave out, before those of patches.
    stride : pair of float or None
        Pixels between patches, down and across; for tokens only.
    grid : (int, int) or None
        Rows and columns of tokens that are as many for every image.
    """

    part: int
    n_dims: int
    channel_axis: int
    n_channels: int
    n_prefix: int = 0
    stride: tuple[float, float] | None = None
    grid: tuple[int, int] | None = None

    def arrange(self, probe: Probe, layer: str = "") -> torch.Tensor:
        """Return the output for n images as a map (n, c, h, w).

        Raises
        ------
        ValueError
            If it is not what the layer gave in the probes.
        """
        tensor = probe.tensor(self.part)
        if tensor is None or not self._fits(tensor):
            raise ValueError(
                f"Layer {layer!r} gives {_given([probe])}, but {self.n_channels} "
                f"channels in axis {self.channel_axis} of {self.n_dims} for other "
                "sizes. Layers must give as many channels for every image; choose "
                "another layer, or an image_size that suits the network."
            )
        channels_first = tensor.movedim(self.channel_axis, 1)
        if self.n_dims == 4:
            return channels_first
        tokens = channels_first[:, :, self.n_prefix :]
        return tokens.unflatten(2, self._grid(tokens.shape[2], probe.size, layer))

    def _fits(self, tensor: torch.Tensor) -> bool:
        has_axes = tensor.ndim == self.n_dims
        return has_axes and tensor.shape[self.channel_axis] == self.n_channels

    def _grid(self, n: int, size: Sequence[int], layer: str) -> tuple[int, int]:
        if self.grid is not None and n == self.grid[0] * self.grid[1]:
            return self.grid
        near = near_grids(n, divide(size, self.stride)) if self.stride else {}
        if not near:
            raise ValueError(
                f"Layer {layer!r} gives {n} tokens for images of {_text([size])} "
                "pixels, which fill no grid of their proportions; choose another "
                "layer, or an image_size that suits the network."
            )
        return min(near, key=lambda grid: near[grid])


def find_layout(probes: Sequence[Probe], hints: Hints, layer: str = "") -> Layout:
    """Return how to read a layer, from probes.

    Parameters
    ----------
    probes : sequence of Probe
        Of two sizes that differ in height and width; or of one, where the network
        takes no others.
    hints : Hints
    layer : str
        For error messages.

    Raises
    ------
    ValueError
        If no output is a map, or its axes cannot be told apart.
    """
    for part in range(min(len(probe.parts) for probe in probes)):
        tensors = [probe.tensor(part) for probe in probes]
        shapes = [tuple(tensor.shape) for tensor in tensors if tensor is not None]
        if len(shapes) == len(probes):
            layout = _layout_of(part, shapes, [p.size for p in probes], hints, layer)
            if layout is not None:
                return layout
    raise ValueError(
        f"Layer {layer!r} gives {_given(probes)}; expected a map (b, c, h, w) or (b, "
        "h, w, c) with as many channels for every size, or tokens (b, n, c) that fill "
        "a grid of the image's proportions. Choose another layer."
    )


def _layout_of(part, shapes, sizes, hints: Hints, layer: str) -> Layout | None:
    """Return how to read tensors of `shapes`, None if they are no maps."""
    n_dims = len(shapes[0])
    if n_dims not in (3, 4) or any(len(shape) != n_dims for shape in shapes):
        return None
    steady = [a for a in (1, n_dims - 1) if len({shape[a] for shape in shapes}) == 1]
    if not steady:
        return None
    if n_dims == 3:
        return _token_layout(part, shapes, sizes, hints, steady)
    if len(steady) == 2:
        # Nothing has changed, or there is nothing to compare with.
        steady = [a for a in steady if _is_grid(shapes[0], a, sizes)]
        if not steady:
            return None
    if len(steady) == 2:
        steady = [a for a in steady if a == hints.channel_axis]
    if not steady:
        raise ValueError(
            f"Layer {layer!r} gives {shapes[0]} for images of {_text(sizes)} pixels, "
            "which may have channels first or last, and the network takes no other "
            "size to tell by. Say which with an attribute of the network: "
            "module.output_fmt = 'NCHW' or 'NHWC'."
        )
    return Layout(part, n_dims, steady[0], shapes[0][steady[0]])


def _is_grid(shape, channel_axis: int, sizes) -> bool:
    """Tell whether the other axes may be the rows and columns of images of `sizes`.

    For several sizes they are as many, so the network brings images to a size of its
    own, a square.
    """
    height, width = shape[2:] if channel_axis == 1 else shape[1:3]
    (h, w), *others = sizes
    if others or h == w:
        return height == width
    return misfit((height, width), (h, w)) < ROUNDING


def _token_layout(part, shapes, sizes, hints: Hints, steady) -> Layout | None:
    # Where nothing tells them apart, tokens come before their features.
    channel_axis = steady[-1]
    counts = [shape[3 - channel_axis] for shape in shapes]
    layout = Layout(part, 3, channel_axis, shapes[0][channel_axis])
    if len(sizes) == 2 and counts[0] != counts[1]:
        found = find_stride(counts, sizes, hints.prefixes, hints.ratio)
        if found is None:
            return None
        n_prefix, stride = found
        return layout._replace(n_prefix=n_prefix, stride=stride)
    # Of a network that makes all images one size, a square.
    size = (1, 1) if len(sizes) == 2 else sizes[0]
    prefixes = _USUAL_PREFIXES if hints.prefixes is None else hints.prefixes
    grids = [
        (misfit(grid, size), k, grid)
        for k, n_prefix in enumerate(prefixes)
        for grid in all_grids(counts[0] - n_prefix)
    ]
    off, k, grid = min(grids, default=(ROUNDING, 0, (0, 0)))
    if off >= (ROUNDING if size[0] != size[1] else 1e-6):
        return None
    layout = layout._replace(n_prefix=prefixes[k], grid=grid)
    return layout if len(sizes) == 2 else layout._replace(stride=divide(size, grid))


def patch_ratio(module: nn.Module) -> tuple[int, int]:
    """Return how many pixels a token is high and wide, (1, 1) where it is no matter."""
    feat_ratio = getattr(getattr(module, "patch_embed", None), "feat_ratio", None)
    if feat_ratio is None:
        return 1, 1
    ratio = feat_ratio(as_scalar=False)
    return int(ratio[0]), int(ratio[1])


def _given(probes: Sequence[Probe]) -> str:
    outputs = " and ".join(str(_describe(probe.parts)) for probe in probes)
    return f"{outputs} for images of {_text([p.size for p in probes])} pixels"


def _describe(parts: Sequence) -> object:
    got = [
        tuple(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__
        for part in parts
    ]
    return got[0] if len(got) == 1 else got


def _text(sizes: Sequence[Sequence[int]]) -> str:
    return " and ".join(f"{h} x {w}" for h, w in sizes)
