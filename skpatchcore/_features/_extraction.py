"""Extract layer maps of images. With a cache, each image passes the network once."""

import itertools
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from skpatchcore._backbones import Backbone
from skpatchcore._features._batch_limit import BatchLimit
from skpatchcore._images import (
    DECODING_VERSION,
    Geometry,
    Size,
    image_contents,
    iter_batches,
    plan_geometry,
    take_images,
)
from skpatchcore._utils import Cache, content_key, is_array, warn_user

_KIND = "maps"
# Part of the keys: raise it if outputs of layers are arranged differently.
_ARRANGEMENT = 3
# Most bytes of cached maps held at once: 200 images of 224 pixels (Wide ResNet-50).
_WINDOW_BYTES = 512 * 2**20
# Relative difference of maps. The effect of rounding, also in half precision or with
# another number of threads, is much smaller.
_TOLERANCE = 0.02
_Sizes = tuple[Size, Size]
_Batches = Generator[tuple[list[int], list[torch.Tensor], list[Geometry]], None, None]
# Networks given as modules whose output was found to agree with the cache.
_CONFIRMED: WeakSet[nn.Module] = WeakSet()


def iter_layer_maps(
    images: Sequence[np.ndarray],
    network: Backbone,
    *,
    image_size: Size,
    crop_size: Size,
    limit: BatchLimit,
    cache: Cache | None = None,
) -> _Batches:
    """Yield (indices, a map (b, c, h, w) for each layer, geometries), batch by batch.

    Without a cache, the batches are those of `iter_batches`. With a cache, only images
    whose maps are missing are decoded and pass through the network, once even if
    several processes need them. Close the iterator to stop the threads that decode
    ahead.
    """
    sizes = (image_size, crop_size)
    fingerprint = None if cache is None else network.fingerprint
    if cache is None or fingerprint is None:
        yield from _extract(images, network, sizes, limit)
        return
    versions = (_ARRANGEMENT, DECODING_VERSION)
    prefix = content_key(fingerprint, *versions, *map(_as_plain, sizes))
    pending: Sequence[int] = range(len(images))
    wait, n = False, 1
    while pending:
        busy: list[int] = []
        remaining = iter(pending)
        while window := list(itertools.islice(remaining, n)):
            known = _Window(images, window, prefix, cache, len(network.layers))
            if not known.agrees_with(network, sizes, limit):
                # The busy images, and all that were not looked up yet.
                rest = [*busy, *window, *remaining]
                yield from _extract(images, network, sizes, limit, rest)
                return
            with cache.claim(known.missing, wait=wait) as claimed:
                known.look_up(claimed)
                known.extract(network, sizes, limit, set(claimed))
            busy += [i for i in window if known.keys[i] not in known.entries]
            yield from known.batches(sizes, network.device, limit)
            n = known.affordable(limit.batch_size)
        # Entries that another process is working on come last, because they are
        # probably complete by then.
        pending, wait = busy, True


def _extract(
    images: Sequence[np.ndarray],
    network: Backbone,
    sizes: _Sizes,
    limit: BatchLimit,
    rows: Sequence[int] | None = None,
) -> _Batches:
    """Yield indices, layer maps and geometries from the network, without the cache.

    `rows` selects some of the images.
    """
    if rows is not None:
        images = take_images(images, rows)
    pinned = network.device.type == "cuda"
    image_size, crop_size = sizes
    inputs = iter_batches(images, image_size, crop_size, limit, pinned=pinned)
    with closing(inputs) as batches:
        for indices, batch, geometries in batches:
            size = geometries[0].crop
            network.prepare(size)
            if network.compiles and limit.measures("network", size, len(indices)):
                # Only torch's memory can be measured. Engines need about as much.
                with limit.measure("network", size, 1):
                    network.run_in_torch(batch[:1])
            with limit.measure("network", size, len(indices)):
                maps = network(batch)
            if rows is not None:
                indices = [rows[i] for i in indices]
            yield indices, maps, geometries


class _Window:
    """Some images, their keys, and the cache entries found for them.

    An entry is the original size of the image, its cast, and a map (h, w, c) for each
    layer.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        indices: Sequence[int],
        prefix: str,
        cache: Cache,
        n_layers: int,
    ) -> None:
        self.images, self.cache, self._n_layers = images, cache, n_layers
        self.keys = {i: content_key(prefix, image_contents(images, i)) for i in indices}
        self.entries: dict[str, tuple] = {}
        self.look_up(self.keys.values())

    @property
    def missing(self) -> list[str]:
        return [k for k in dict.fromkeys(self.keys.values()) if k not in self.entries]

    def look_up(self, keys: Iterable[str]) -> None:
        """Read the cache entries of those `keys` that were not found yet."""
        unknown = [key for key in dict.fromkeys(keys) if key not in self.entries]
        found = self.cache.get_all(_KIND, unknown, self._is_valid)
        for key, entry in zip(unknown, found, strict=True):
            if entry is not None:
                self.entries[key] = entry

    def _is_valid(self, entry: Any) -> bool:
        if not (isinstance(entry, list) and len(entry) == 3):
            return False
        size, cast, maps = entry
        return (
            isinstance(cast, float)
            and isinstance(size, list)
            and len(size) == 2
            and all(isinstance(side, int) and side > 0 for side in size)
            and isinstance(maps, list)
            and len(maps) == self._n_layers
            and all(is_array(layer, np.float32, (None,) * 3) for layer in maps)
        )

    def agrees_with(self, network: Backbone, sizes: _Sizes, limit: BatchLimit) -> bool:
        """Return whether the network agrees with the cache, and warn if not.

        A network given as a module is checked once, with the first image in the cache,
        because its output may depend on something that cannot be described.
        """
        known = [i for i, key in self.keys.items() if key in self.entries]
        if not network.own or not known or network.module in _CONFIRMED:
            return True
        ((_, maps, _),) = _extract(self.images, network, sizes, limit, known[:1])
        expected = self.entries[self.keys[known[0]]][-1]
        if not all(map(_are_close, maps, expected)):
            warn_user(
                f"The layer maps of {type(network.module).__name__} differ from those "
                "in the cache for a network with the same weights, settings and code. "
                "The output must depend on something else, such as random numbers, a "
                "file or the environment. The cache is not used for this network.",
            )
            return False
        _CONFIRMED.add(network.module)
        return True

    def extract(
        self, network: Backbone, sizes: _Sizes, limit: BatchLimit, claimed: set[str]
    ) -> None:
        """Pass the missing images whose keys are in `claimed` through the network."""
        # Copies of an image share a key. The last copy represents them all.
        position_of = {key: i for i, key in self.keys.items()}
        absent = [position_of[key] for key in self.missing if key in claimed]
        with closing(_extract(self.images, network, sizes, limit, absent)) as batches:
            for indices, maps, geometries in batches:
                self._keep([self.keys[i] for i in indices], maps, geometries)

    def _keep(
        self,
        keys: Sequence[str],
        maps: Sequence[torch.Tensor],
        geometries: Sequence[Geometry],
    ) -> None:
        # Channels last, as in descriptors.
        last = [layer.permute(0, 2, 3, 1).contiguous().cpu().numpy() for layer in maps]
        for j, (key, geometry) in enumerate(zip(keys, geometries, strict=True)):
            size = tuple(map(int, geometry.original))
            entry = (size, geometry.cast, [layer[j].copy() for layer in last])
            self.entries[key] = entry
            self.cache.put(_KIND, key, entry)

    def batches(
        self, sizes: _Sizes, device: torch.device, limit: BatchLimit
    ) -> _Batches:
        """Yield the known maps, in batches of maps of the same shapes."""
        known = [i for i, key in self.keys.items() if key in self.entries]
        by_shape: dict[tuple, list[int]] = {}
        for i in known:
            shapes = tuple(layer.shape for layer in self.entries[self.keys[i]][-1])
            by_shape.setdefault(shapes, []).append(i)
        for alike in by_shape.values():
            crop = self._geometries(alike[:1], sizes)[0].crop
            for indices in _batched(alike, limit(crop)):
                entries = [self.entries[self.keys[i]] for i in indices]
                layers = zip(*(maps for *_, maps in entries), strict=True)
                maps = [
                    torch.from_numpy(np.stack(layer)).to(device).permute(0, 3, 1, 2)
                    for layer in layers
                ]
                yield indices, maps, self._geometries(indices, sizes)

    def _geometries(self, indices: Sequence[int], sizes: _Sizes) -> list[Geometry]:
        entries = [self.entries[self.keys[i]] for i in indices]
        return [
            plan_geometry(tuple(size), *sizes)._replace(cast=cast)
            for size, cast, _ in entries
        ]

    def affordable(self, most: int) -> int:
        """Return how many images of this kind to look up next, at most `most`."""
        sizes = [sum(m.nbytes for m in maps) for *_, maps in self.entries.values()]
        return max(1, min(most, _WINDOW_BYTES // max(sizes, default=_WINDOW_BYTES)))


def _are_close(maps: torch.Tensor, expected: np.ndarray) -> bool:
    """Return whether maps (1, c, h, w) are `expected` (h, w, c), up to rounding."""
    found = maps[0].permute(1, 2, 0).cpu().numpy()
    if found.shape != expected.shape:
        return False
    difference = np.linalg.norm(found - expected)
    # The negated comparison would accept NaN.
    return bool(difference <= _TOLERANCE * np.linalg.norm(expected))


def _as_plain(size: Any) -> Any:
    return size if size is None or np.isscalar(size) else tuple(map(int, size))


def _batched(indices: Sequence[int], n: int) -> Generator[list[int], None, None]:
    # itertools.batched came with Python 3.12.
    remaining = iter(indices)
    while window := list(itertools.islice(remaining, n)):
        yield window
