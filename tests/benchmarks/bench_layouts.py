"""Which axis of a layer has channels: every layer of the tested networks, every size.

Run as ``python tests/benchmarks/bench_layouts.py [--step 1] [names]``. Shapes alone are
computed, on torch's device for that. Rows of a map depend on the height of an image and
columns on its width, so one pass of a square image for each side gives the maps of all
sizes; some sizes are passed as they are, to see that this is so. Beside it, how often
the proportions of an image would have chosen the wrong axis.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backbones"))

from test_architectures import FIXED, SMALL

from skpatchcore._backbones._hooks import read_layers
from skpatchcore._backbones._layouts import Hints, Layout, Probe, find_layout
from skpatchcore._backbones._network_input import native_size, whole_size

SHORT, ASPECT = range(192, 321), 2
N_CHECKED = 12


def make(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        try:
            module = timm.create_model(name, dynamic_img_size=True)
        except TypeError:
            module = timm.create_model(name)
    return module.eval()


def called(module, size) -> list[str]:
    """Return the names of the modules, but for the network itself, that are run."""
    names, handles = [], []
    for name, child in module.named_modules():
        if name:
            handles.append(
                child.register_forward_hook(lambda *_, name=name: names.append(name))
            )
    with torch.inference_mode():
        module(torch.zeros((2, 3, *size), device="meta"))
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(names))


def look(module, layers, size) -> dict[str, Probe]:
    with torch.inference_mode(), torch.device("meta"):
        outputs = read_layers(module, layers, torch.zeros(2, 3, *size))
    return {name: Probe(2, size, output) for name, output in outputs.items()}


def layouts_of(module, layers, sizes) -> dict[str, Layout]:
    passes = [look(module, layers, whole_size(module, size)) for size in sizes]
    found = {}
    for layer in layers:
        try:
            probes = [given[layer] for given in passes]
            found[layer] = find_layout(probes, Hints.of(module), layer)
        except ValueError:
            continue
    return found


def arranged_shape(layout: Layout, probe) -> tuple[int, ...] | None:
    """Return channels, height and width of a layer's map; None if it is refused."""
    try:
        return tuple(layout.arrange(probe).shape[1:])
    except ValueError:
        return None


def chosen_by_proportions(shape, size) -> int:
    """Return the axis of channels that the proportions of one image speak for."""

    def misfit(grid):
        scale = max(n / full for n, full in zip(grid, size, strict=True))
        return max(abs(full * scale - n) for n, full in zip(grid, size, strict=True))

    return 1 if misfit(shape[2:]) <= misfit(shape[1:3]) else 3


def sweep(name: str, step: int) -> tuple[int, int, int, int, int]:
    """Return numbers: layers, images, arranged wrongly, misread before, layers thus."""
    module = make(name)
    h, w = native_size(module)
    if name in FIXED:
        layers = called(module, (h, w))
        layouts = layouts_of(module, layers, [(h, w)])
        given = look(module, list(layouts), (h, w))
        maps = [layouts[layer].arrange(given[layer]) for layer in layouts]
        return len(layouts), 1, sum(m.shape[2] != m.shape[3] for m in maps), 0, 0
    sizes = [(h, 3 * w // 2), (2 * h, 5 * w // 2)]
    try:
        for size in sizes:
            layers = called(module, whole_size(module, size))
    except RuntimeError:
        # Some networks take multiples of 32 only.
        sizes = [(h, 2 * w), (2 * h, 3 * w)]
        layers = called(module, sizes[0])
    layouts = layouts_of(module, layers, sizes)
    if any(isinstance(child, torch.nn.RNNBase) for child in module.modules()):
        # Seconds a pass.
        step = max(step, 64)
    sides = range(SHORT[0], ASPECT * SHORT[-1] + 1)
    seen, squares = {}, {}
    for side in sides[::step]:
        whole = whole_size(module, (side, side))
        if whole not in seen:
            try:
                given = look(module, list(layouts), whole)
            except RuntimeError:
                # Some networks take multiples of 32 only.
                continue
            seen[whole] = {
                layer: shape
                for layer, probe in given.items()
                if (shape := arranged_shape(layouts[layer], probe)) is not None
            }
        squares[side] = seen[whole]
    # A layer that is refused by an error at some size is not read wrongly.
    kept = set.intersection(*map(set, seen.values()))
    refused = layouts.keys() - kept
    if refused:
        print(f"{name}: {len(refused)} layers refused at some size, not counted")
    layouts = {layer: layouts[layer] for layer in layouts if layer in kept}
    squares = {
        side: {layer: shapes[layer] for layer in layouts}
        for side, shapes in squares.items()
    }
    pairs = [(s, t) for s in SHORT for t in range(s, ASPECT * s + 1)]
    pairs = [(s, t) for s, t in pairs if s in squares and t in squares]
    pairs += [(t, s) for s, t in pairs if s != t]
    wrong, misread, fooled = 0, 0, 0
    for (layout, shapes), n_layers in alike(layouts, squares).items():
        by_side = dict(zip(squares, shapes, strict=True))
        checks = [
            check(layout, by_side[s], by_side[t], whole_size(module, (s, t)))
            for s, t in pairs
        ]
        bad, before = np.sum(checks, axis=0)
        wrong += n_layers * bad
        misread += n_layers * before
        fooled += n_layers * (before > 0)
    rng = np.random.default_rng(0)
    for i in rng.choice(len(pairs), min(N_CHECKED, len(pairs)), replace=False):
        s, t = pairs[i]
        for layer, probe in look(
            module, list(layouts), whole_size(module, (s, t))
        ).items():
            found = arranged_shape(layouts[layer], probe)
            expected = squares[s][layer][:2] + squares[t][layer][2:]
            # A layer that is refused by an error is not read wrongly.
            wrong += found not in (None, expected)
    return len(layouts), len(pairs), wrong, misread, fooled


def alike(layouts, squares) -> Counter:
    """Count layers of the same layout and shapes."""
    return Counter(
        (layouts[layer], tuple(shapes[layer] for shapes in squares.values()))
        for layer in layouts
    )


def check(layout: Layout, of_height, of_width, size) -> tuple[bool, bool]:
    """Return whether a layer is read wrongly, and was by the image's proportions."""
    c, rows, columns = layout.n_channels, of_height[1], of_width[2]
    same = of_height[0] == of_width[0] == c
    if layout.n_dims == 3:
        try:
            grid = layout._grid(rows * columns, size, "")
        except ValueError:
            return False, False
        return not same or grid != (rows, columns), False
    first = layout.channel_axis == 1
    shape = (2, c, rows, columns) if first else (2, rows, columns, c)
    return not same, chosen_by_proportions(shape, size) != layout.channel_axis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*SMALL, *FIXED])
    parser.add_argument("--step", type=int, default=1, help="take every n-th side")
    args = parser.parse_args()
    total = np.zeros(5, dtype=int)
    print("network: layers, sizes, read wrongly, misread by proportions, in layers")
    for name in args.names:
        # Normalisation keeps the shape, and takes most of a pass for shapes alone.
        with mock.patch("torch.nn.functional.batch_norm", lambda x, *_, **__: x):
            counts = sweep(name, args.step)
        total += counts
        print(name, *counts, flush=True)
    print("in all", *total)


if __name__ == "__main__":
    main()
