"""What networks of all families give, as maps: channels, tokens, several outputs."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

# Tokens that stand before those of patches where a network does not say: none; a class
# token; one for distillation too, or a class token and four registers (DINOv2, DINOv3).
_N_PREFIX_TOKENS = (0, 1, 2, 5)
# By how many cells the grid of a layer may differ from the shape of the picture: what
# strides, paddings and pooling round.
_ROUNDING = 2
# Their tokens are ordered by windows, not by rows.
_UNORDERED = {"Hiera": "its tokens are grouped by windows, not in the order of rows"}


def name_layers(module: nn.Module, layers: Sequence) -> tuple[str, ...]:
    """Return module names for `layers`, of which ints count timm's feature levels.

    Raises
    ------
    ValueError
        If the network has no such level, or does not say what its levels are.
    """
    return tuple(
        layer if isinstance(layer, str) else _name_level(module, layer)
        for layer in layers
    )


def _name_level(module: nn.Module, level: int) -> str:
    names = _level_names(module)
    if not names:
        raise ValueError(
            f"layers: {level!r} is a number, but the network does not say what its "
            "levels are; give names of modules, as in named_modules()."
        )
    if not -len(names) <= level < len(names):
        raise ValueError(
            f"layers: there is no level {level!r}; the network has {len(names)}: "
            f"{', '.join(names)}."
        )
    return names[level]


def _level_names(module: nn.Module) -> list[str]:
    """Return the modules whose outputs are timm's features, from input to output."""
    levels = getattr(module, "feature_info", None)
    if levels is None:
        # Other libraries' vision transformers call them so, too.
        blocks = getattr(module, "blocks", ())
        return [f"blocks.{i}" for i in range(len(blocks))]
    levels = getattr(levels, "info", levels)
    return [level["module"] for level in levels]


def fit_to_patches(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Resize pictures (b, c, h, w) to whole patches, if `module` takes no others.

    The whole picture stays in view, so that maps keep their place on it; sides change
    by half a patch at most.
    """
    ratio = _patch_ratio(module)
    size = tuple(batch.shape[-2:])
    whole = tuple(max(1, round(n / r)) * r for n, r in zip(size, ratio, strict=True))
    if whole == size:
        return batch
    return F.interpolate(
        batch, whole, mode="bilinear", align_corners=False, antialias=True
    )


def _patch_ratio(module: nn.Module) -> tuple[int, int]:
    """Return how many pixels a token is high and wide, (1, 1) where it is no matter."""
    embed = getattr(module, "patch_embed", None)
    if not hasattr(embed, "feat_ratio"):
        return 1, 1
    ratio = embed.feat_ratio(as_scalar=False)
    return int(ratio[0]), int(ratio[1])


def as_map(
    output, module: nn.Module, shape: Sequence[int], layer: str = ""
) -> torch.Tensor:
    """Return a layer's output as a map (b, c, h, w) of pictures of `shape` (b, h, w).

    Outputs are maps (b, c, h, w) or (b, h, w, c), or tokens (b, n, c) in the order of
    rows, class and register tokens before them; of several, the first that is one of
    these. Which one it is, tell the sides of the picture: a map's are in the same
    proportion.

    Raises
    ------
    ValueError
        If there is no map in it.
    """
    reason = _UNORDERED.get(type(module).__name__)
    if reason is not None:
        raise ValueError(f"Layer {layer!r} of {type(module).__name__}: {reason}.")
    candidates = output if isinstance(output, list | tuple) else (output,)
    for candidate in candidates:
        found = _arrange(candidate, module, *shape)
        if found is not None:
            return found
    got = [
        tuple(c.shape) if isinstance(c, torch.Tensor) else type(c).__name__
        for c in candidates
    ]
    raise ValueError(
        f"Layer {layer!r} gives {got[0] if len(got) == 1 else got} for a picture of "
        f"{shape[1]} x {shape[2]} pixels; expected a map (b, c, h, w) or (b, h, w, c), "
        "or tokens (b, n, c) that fill a grid of the picture's proportions."
    )


def _arrange(output, module: nn.Module, b: int, *size: int) -> torch.Tensor | None:
    if not isinstance(output, torch.Tensor) or len(output) != b:
        return None
    if output.ndim == 4:
        if _misfit(output.shape[2:], size) <= _misfit(output.shape[1:3], size):
            return output
        return output.permute(0, 3, 1, 2)
    if output.ndim == 3:
        return _arrange_tokens(output, module, size)
    return None


def _misfit(grid: Sequence[int], size: Sequence[int]) -> float:
    """Return by how many cells `grid` differs from the proportions of `size`."""
    scale = max(n / full for n, full in zip(grid, size, strict=True))
    return max(abs(full * scale - n) for n, full in zip(grid, size, strict=True))


def _arrange_tokens(tokens, module, size) -> torch.Tensor | None:
    n = tokens.shape[1]
    declared = getattr(module, "num_prefix_tokens", None)
    counts = _N_PREFIX_TOKENS if declared is None else (declared, 0)
    grids = [
        (_misfit(grid, size), k, grid)
        for k, n_prefix in enumerate(counts)
        for grid in _grids(n - n_prefix)
    ]
    if not grids:
        return None
    misfit, k, grid = min(grids)
    if misfit >= _ROUNDING:
        return None
    return tokens[:, counts[k] :].transpose(1, 2).unflatten(2, grid)


def _grids(n: int) -> list[tuple[int, int]]:
    """Return all shapes of `n` tokens in rows."""
    return [(h, n // h) for h in range(1, n + 1) if n % h == 0]
