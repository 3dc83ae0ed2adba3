"""Cache the neighbours of samples, for all k and all coresets of one greedy run."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skpatchcore._neighbors._index import NeighborIndex, bank_fingerprint, build_index
from skpatchcore._utils import Cache, are_rows, content_key, is_array

_KIND = "neighbors"
_PREFIXES = "prefixes"
# Numbers of neighbours that are searched and stored; a smaller k shares the entry. The
# product of all patches with the bank dominates the cost of a search, so about ten
# neighbours more cost nothing.
_N_SHARED = (10, 50, 250)

# Squared distances (n, k), and bank rows (n, k), of the patches of a sample.
Neighbors: TypeAlias = tuple[NDArray, NDArray]


def query_once(
    cache: Cache, index: NeighborIndex, samples: Sequence[NDArray], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the result of ``index.query`` for all samples, searching each only once.

    Each sample has an entry in the cache. Its key is made of the contents of the sample
    and of the bank. Coresets of one greedy run are prefixes of each other: if a smaller
    one has been searched for all samples, only the additional rows are searched.

    Parameters
    ----------
    cache : Cache
    index : NeighborIndex
        Must be exact: an approximate search may find other rows for another k.
    samples : sequence of ndarray of shape (n_i, d)
    k : int
        Number of neighbours; at most the number of rows in the bank.

    Returns
    -------
    squared : ndarray of shape (n_patches, k), float64
    rows : ndarray of shape (n_patches, k), int64
    """
    n_shared = min([n for n in _N_SHARED if n >= k], default=k)
    n_shared = min(n_shared, len(index.bank))
    keys = _sample_keys(index.fingerprint, n_shared, samples)
    entries = _get_all(cache, keys, samples, n_shared, len(index.bank))
    missing = [i for i, entry in enumerate(entries) if entry is None]
    if missing:
        absent = [samples[i] for i in missing]
        found = _search(cache, index, absent, n_shared)
        for i, squared, rows in zip(missing, *found, strict=True):
            entries[i] = (squared, rows.astype(np.int32))
            cache.put(_KIND, keys[i], entries[i])
    found_entries = [entry for entry in entries if entry is not None]
    squared, rows = map(np.concatenate, zip(*found_entries, strict=True))
    return squared[:, :k], rows[:, :k].astype(np.int64)


def _search(
    cache: Cache, index: NeighborIndex, samples: Sequence[NDArray], k: int
) -> tuple[list[NDArray], list[NDArray]]:
    """Return the neighbours of each sample, starting from a searched prefix if any."""
    patches = np.concatenate(samples)
    n_known, known = _look_up_prefix(cache, index, samples, k)
    if known is not None:
        rest = build_index(index.bank[n_known:], device=index.device)
        squared, rows = rest.query(patches, min(k, len(rest.bank)))
        squared = np.concatenate([known[0], squared], axis=1)
        rows = np.concatenate([known[1], rows + n_known], axis=1)
        # A stable sort keeps equal distances in the order of their rows.
        nearest = squared.argsort(axis=1, kind="stable")[:, :k]
        squared = np.take_along_axis(squared, nearest, axis=1)
        rows = np.take_along_axis(rows, nearest, axis=1)
    else:
        squared, rows = index.query(patches, k)
    ends = np.cumsum([len(sample) for sample in samples])[:-1]
    return np.split(squared, ends), np.split(rows, ends)


def _look_up_prefix(
    cache: Cache, index: NeighborIndex, samples: Sequence[NDArray], k: int
) -> tuple[int, Neighbors | None]:
    """Return the largest prefix of the bank that was searched for all samples.

    Returns its number of rows and the neighbours in it, or 0 and None. Also registers
    this bank under its first row, so that later searches can find it.
    """
    key = content_key(index.device.type, index.bank[:1])
    known = dict(cache.get(_PREFIXES, key, _are_prefixes) or ())
    usable = [n for n in known if k <= n < len(index.bank)]
    if known.get(len(index.bank)) != index.fingerprint:
        known[len(index.bank)] = index.fingerprint
        cache.put(_PREFIXES, key, tuple(known.items()))
    for n in sorted(usable, reverse=True):
        # A bank of another run may begin with the same row.
        if bank_fingerprint(index.bank[:n], index.device) == known[n]:
            keys = _sample_keys(known[n], k, samples)
            entries = _get_all(cache, keys, samples, k, n)
            found = [entry for entry in entries if entry is not None]
            if len(found) == len(entries):
                squared, rows = map(np.concatenate, zip(*found, strict=True))
                return n, (squared, rows)
    return 0, None


def _get_all(
    cache: Cache,
    keys: Sequence[str],
    samples: Sequence[NDArray],
    k: int,
    n_bank: int,
) -> list[Neighbors | None]:
    """Return the entry of each sample, or None if it is missing."""

    def get(key: str, sample: NDArray) -> Neighbors | None:
        shape = (len(sample), k)
        return cache.get(_KIND, key, lambda entry: _is_valid(entry, shape, n_bank))

    return [get(key, sample) for key, sample in zip(keys, samples, strict=True)]


def _is_valid(entry: Any, shape: tuple[int, int], n_bank: int) -> bool:
    """Return whether `entry`, read from a file, holds neighbours of a sample."""
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and is_array(entry[0], np.float64, shape)
        and is_array(entry[1], np.int32, shape)
        and are_rows(entry[1], n_bank)
    )


def _are_prefixes(entry: Any) -> bool:
    """Return whether `entry`, read from a file, lists sizes of banks and their keys."""
    return isinstance(entry, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], int)
        and isinstance(pair[1], str)
        for pair in entry
    )


def _sample_keys(fingerprint: str, k: int, samples: Sequence[NDArray]) -> list[str]:
    prefix = content_key(fingerprint, k)
    return [content_key(prefix, sample) for sample in samples]
