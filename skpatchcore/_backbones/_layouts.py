"""The order of axes and tokens in the output of a layer, found with probe images.

One image is not enough: a map (b, 32, 32, 33) of an image of 256 x 257 pixels has 32 or
33 channels. If images of two sizes pass through the network, the numbers of rows and
columns change, and the number of channels does not.
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

# Numbers of tokens before the patch tokens to try, if a network does not declare it and
# accepts only one size: none; a class token; also a distillation token; a class token
# and four registers (DINOv2, DINOv3).
_USUAL_PREFIXES = (0, 1, 2, 5)
# The channel axis for timm's names of the order of axes.
_DECLARED_AXES = {"NCHW": 1, "NHWC": 3}


class Probe(NamedTuple):
    """The output of a layer, a value or a sequence, for `n` images of `size` (h, w)."""

    n: int
    size: tuple[int, int]
    output: object

    @property
    def parts(self) -> Sequence:
        """The output as a sequence, of length 1 for a single value."""
        return self.output if isinstance(self.output, list | tuple) else (self.output,)

    def tensor(self, part: int) -> torch.Tensor | None:
        """Return a part if it is a tensor with an entry for each image, else None."""
        value = self.parts[part] if part < len(self.parts) else None
        fits = (
            isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == self.n
        )
        return value if fits else None


class Hints(NamedTuple):
    """What a network declares about its outputs, used where probes are ambiguous.

    `prefixes` are possible numbers of tokens before the patch tokens, `ratio` is the
    height and width of a patch in pixels, and `channel_axis` the channel axis of maps.
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
    """How to read the output of a layer as a map (b, c, h, w), for all images.

    Attributes
    ----------
    part : int
        Index of the map among several outputs.
    n_dims : int
        4 for maps, 3 for tokens.
    channel_axis, n_channels : int
        Axis and number of channels.
    n_prefix : int
        Number of tokens before the patch tokens, which are dropped.
    stride : pair of float or None
        For tokens: pixels between patches, vertically and horizontally.
    grid : (int, int) or None
        Rows and columns of tokens, if their number is the same for all images.
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
            If the output does not match the layout.
        """
        tensor = probe.tensor(self.part)
        if tensor is None or not self._fits(tensor):
            raise ValueError(
                f"Layer {layer!r} returned {_given([probe])}, but {self.n_channels} "
                f"channels in axis {self.channel_axis} of {self.n_dims} for other "
                "sizes. The number of channels must be the same for all images. Choose "
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
                f"Layer {layer!r} returned {n} tokens for images of {_text([size])} "
                "pixels, which do not form a grid of these proportions. Choose another "
                "layer, or an image_size that suits the network."
            )
        return min(near, key=lambda grid: near[grid])


def find_layout(probes: Sequence[Probe], hints: Hints, layer: str = "") -> Layout:
    """Return the layout of a layer, found from probes.

    Parameters
    ----------
    probes : sequence of Probe
        Two, with different heights and widths, or one if the network accepts only one
        size.
    hints : Hints
    layer : str
        For error messages.

    Raises
    ------
    ValueError
        If no output is a map, or the channel axis is ambiguous.
    """
    for part in range(min(len(probe.parts) for probe in probes)):
        tensors = [probe.tensor(part) for probe in probes]
        shapes = [tuple(tensor.shape) for tensor in tensors if tensor is not None]
        if len(shapes) == len(probes):
            layout = _layout_of(part, shapes, [p.size for p in probes], hints, layer)
            if layout is not None:
                return layout
    raise ValueError(
        f"Layer {layer!r} returned {_given(probes)}; expected a map (b, c, h, w) or "
        "(b, h, w, c) with the same number of channels for all sizes, or tokens "
        "(b, n, c) that form a grid with the proportions of the image. Choose another "
        "layer."
    )


def _layout_of(
    part: int,
    shapes: Sequence[tuple[int, ...]],
    sizes: Sequence[tuple[int, int]],
    hints: Hints,
    layer: str,
) -> Layout | None:
    """Return the layout of tensors of `shapes`, or None if they are not maps."""
    n_dims = len(shapes[0])
    if n_dims not in (3, 4) or any(len(shape) != n_dims for shape in shapes):
        return None
    steady = [a for a in (1, n_dims - 1) if len({shape[a] for shape in shapes}) == 1]
    if not steady:
        return None
    if n_dims == 3:
        return _token_layout(part, shapes, sizes, hints, steady)
    if len(steady) == 2:
        # All axes stayed the same, or there is only one probe.
        steady = [a for a in steady if _is_grid(shapes[0], a, sizes)]
        if not steady:
            return None
    if len(steady) == 2:
        steady = [a for a in steady if a == hints.channel_axis]
    if not steady:
        raise ValueError(
            f"Layer {layer!r} returned {shapes[0]} for images of {_text(sizes)} "
            "pixels, whose channels may be first or last. The network accepts no other "
            "size that would show which. Set an attribute of the network: "
            "module.output_fmt = 'NCHW' or 'NHWC'."
        )
    return Layout(part, n_dims, steady[0], shapes[0][steady[0]])


def _is_grid(
    shape: Sequence[int], channel_axis: int, sizes: Sequence[tuple[int, int]]
) -> bool:
    """Return whether the other axes may be rows and columns of images of `sizes`.

    If they did not change between several sizes, the network resizes all images to a
    square.
    """
    height, width = shape[2:] if channel_axis == 1 else shape[1:3]
    (h, w), *others = sizes
    if others or h == w:
        return height == width
    return misfit((height, width), (h, w)) < ROUNDING


def _token_layout(
    part: int,
    shapes: Sequence[tuple[int, ...]],
    sizes: Sequence[tuple[int, int]],
    hints: Hints,
    steady: Sequence[int],
) -> Layout | None:
    # If both axes are possible, the usual order counts: tokens before channels.
    channel_axis = steady[-1]
    counts = [shape[3 - channel_axis] for shape in shapes]
    layout = Layout(part, 3, channel_axis, shapes[0][channel_axis])
    if len(sizes) == 2 and counts[0] != counts[1]:
        found = find_stride(counts, sizes, hints.prefixes, hints.ratio)
        if found is None:
            return None
        n_prefix, stride = found
        return layout._replace(n_prefix=n_prefix, stride=stride)
    # A network whose number of tokens is constant resizes all images to a square.
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
    """Return the height and width of a patch in pixels, (1, 1) if any size works."""
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
