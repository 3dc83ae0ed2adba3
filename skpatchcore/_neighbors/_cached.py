"""Neighbours of samples from a cache, for every k and every coreset of a run."""

from collections.abc import Sequence

import numpy as np

from skpatchcore._neighbors._index import NeighborIndex, bank_fingerprint, build_index
from skpatchcore._utils import Cache, are_rows, content_key, is_array

_KIND = "neighbors"
_PREFIXES = "prefixes"
# So many neighbours are looked for at once. What a search costs is the product of all
# patches with the bank: up to some ten neighbours more, it is the same.
_N_SHARED = (10, 50, 250)


def query_once(
    cache: Cache, index: NeighborIndex, samples: Sequence[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what ``index.query`` gives for the patches of all samples, one by one.

    A sample is an entry of the cache, under its own contents and those of the bank.
    Coresets of one greedy run are prefixes of each other: where a smaller one has been
    searched for all samples, only the further rows are.

    Parameters
    ----------
    cache : Cache
    index : NeighborIndex
        An exact one: an approximate search finds others for another k.
    samples : sequence of ndarray of shape (n_i, d)
    k : int
        At most the number of rows in the bank.

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
    squared, rows = map(np.concatenate, zip(*entries, strict=True))
    return squared[:, :k], rows[:, :k].astype(np.int64)


def _search(cache, index, samples, k: int) -> tuple[list, list]:
    """Return neighbours of each sample, helped by a bank that begins this one."""
    patches = np.concatenate(samples)
    n_known, known = _look_up_prefix(cache, index, samples, k)
    if n_known:
        rest = build_index(index.bank[n_known:], device=index.device)
        squared, rows = rest.query(patches, min(k, len(rest.bank)))
        squared = np.concatenate([known[0], squared], axis=1)
        rows = np.concatenate([known[1], rows + n_known], axis=1)
        # Stable, so that equal distances stay in the order of their rows.
        nearest = squared.argsort(axis=1, kind="stable")[:, :k]
        squared = np.take_along_axis(squared, nearest, axis=1)
        rows = np.take_along_axis(rows, nearest, axis=1)
    else:
        squared, rows = index.query(patches, k)
    ends = np.cumsum([len(sample) for sample in samples])[:-1]
    return np.split(squared, ends), np.split(rows, ends)


def _look_up_prefix(cache, index, samples, k: int):
    """Return the size of the largest prefix searched for all samples, and neighbours.

    Also note for others, under its first row, that this bank is about to be searched.
    """
    key = content_key(index.device.type, index.bank[:1])
    known = dict(cache.get(_PREFIXES, key, _are_prefixes) or ())
    usable = [n for n in known if k <= n < len(index.bank)]
    if known.get(len(index.bank)) != index.fingerprint:
        known[len(index.bank)] = index.fingerprint
        cache.put(_PREFIXES, key, tuple(known.items()))
    for n in sorted(usable, reverse=True):
        # Banks of other runs may begin with the same row, too.
        if bank_fingerprint(index.bank[:n], index.device) == known[n]:
            keys = _sample_keys(known[n], k, samples)
            entries = _get_all(cache, keys, samples, k, n)
            if all(entry is not None for entry in entries):
                return n, list(map(np.concatenate, zip(*entries, strict=True)))
    return 0, None


def _get_all(cache, keys, samples, k: int, n_bank: int) -> list:
    """Return the entry of each sample, None where there is none."""

    def get(key, sample):
        shape = (len(sample), k)
        return cache.get(_KIND, key, lambda entry: _is_valid(entry, shape, n_bank))

    return [get(key, sample) for key, sample in zip(keys, samples, strict=True)]


def _is_valid(entry, shape: tuple[int, int], n_bank: int) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and is_array(entry[0], np.float64, shape)
        and is_array(entry[1], np.int32, shape)
        and are_rows(entry[1], n_bank)
    )


def _are_prefixes(entry) -> bool:
    return isinstance(entry, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], int)
        and isinstance(pair[1], str)
        for pair in entry
    )


def _sample_keys(fingerprint: str, k: int, samples) -> list[str]:
    prefix = content_key(fingerprint, k)
    return [content_key(prefix, sample) for sample in samples]
