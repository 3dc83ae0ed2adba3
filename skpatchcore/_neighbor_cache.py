"""Nearest neighbours of samples, from a cache for every number of neighbours."""

from collections.abc import Callable, Sequence

import numpy as np

from skpatchcore._cache import Cache, content_key

_KIND = "neighbors"
# So many neighbours are looked for at once. What a search costs is the product of all
# patches with the bank: up to some ten neighbours more, it is the same.
_N_SHARED = (10, 50, 250)


def query_once(
    cache: Cache,
    index_key: str,
    samples: Sequence[np.ndarray],
    n_neighbors: int,
    query: Callable,
    *,
    n_bank: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and bank rows (n_patches, n_neighbors) of samples' patches.

    Parameters
    ----------
    cache : Cache
    index_key : str
        Stands for the bank, the metric and the way of searching.
    samples : sequence of ndarray of shape (n_i, d)
        Patches of each sample, an entry of the cache.
    n_neighbors : int
    query : callable
        Patches and k -> distances, ascending, and bank rows (n, k).
    n_bank : int
        Rows of the bank.
    """
    n_shared = min([k for k in _N_SHARED if k >= n_neighbors], default=n_neighbors)
    n_shared = min(n_shared, n_bank)
    prefix = content_key(index_key, n_shared)
    keys = [content_key(prefix, sample) for sample in samples]
    entries = [cache.get(_KIND, key) for key in keys]
    missing = [i for i, entry in enumerate(entries) if entry is None]
    if missing:
        patches = np.concatenate([samples[i] for i in missing])
        ends = np.cumsum([len(samples[i]) for i in missing])[:-1]
        distances, rows = query(patches, n_shared)
        found = zip(np.split(distances, ends), np.split(rows, ends), strict=True)
        for i, (near, which) in zip(missing, found, strict=True):
            entries[i] = (near, which.astype(np.int32))
            cache.put(_KIND, keys[i], entries[i])
    distances, rows = map(np.concatenate, zip(*entries, strict=True))
    return distances[:, :n_neighbors], rows[:, :n_neighbors].astype(np.int64)
