"""Matches of patches: from several detectors, and by positions in another `X`.

Matches are the Bunch that `PatchCoreDetector.nearest_patches` returns, or one such
Bunch for each member of an ensemble.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

_PLACE = ("image", "row", "column", "transform")
_NAMES = (*_PLACE, "distance")


def stack_matches(found: Sequence[Sequence[NDArray]]) -> Bunch:
    """Return matches from the arrays (h, w, k) of each image, named as above."""
    columns = zip(*found, strict=True)
    return Bunch(**{n: _stack(list(c)) for n, c in zip(_NAMES, columns, strict=True)})


def renumber_images(matches: Bunch, rows: NDArray | None) -> Bunch:
    """Return matches with ``rows[i]`` for training image i; None changes nothing."""
    if rows is None:
        return matches
    if _is_by_member(matches):
        return _by_member([matches], lambda own: renumber_images(own[0], rows))
    images = matches.image
    images = [rows[i] for i in images] if isinstance(images, list) else rows[images]
    return Bunch(**{**matches, "image": images})


def merge_matches(found: Sequence[Bunch]) -> Bunch:
    """Return the nearest matches of several detectors, each training patch once.

    All detectors must have returned the same number of neighbours.
    """
    if len(found) == 1:
        return found[0]
    if _is_by_member(found[0]):
        return _by_member(found, merge_matches)
    images = zip(*(_split(matches) for matches in found), strict=True)
    return stack_matches([_merge_image(parts) for parts in images])


def _is_by_member(matches: Bunch) -> bool:
    # Not by the names: a member may be called "distance".
    return all(isinstance(part, Bunch) for part in matches.values())


def _by_member(found: Sequence[Bunch], function: Callable) -> Bunch:
    return Bunch(**{name: function([one[name] for one in found]) for name in found[0]})


def _split(matches: Bunch) -> list[tuple[NDArray, ...]]:
    """Return the arrays of each image."""
    return list(zip(*(matches[name] for name in _NAMES), strict=True))


def _merge_image(parts: Sequence[tuple[NDArray, ...]]) -> list[NDArray]:
    """Return the k nearest matches of one image, from the k of each detector."""
    k = parts[0][0].shape[-1]
    arrays = [np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)]
    order = np.argsort(arrays[-1], axis=-1, kind="stable")
    arrays = [np.take_along_axis(array, order, axis=-1) for array in arrays]
    # A patch that several banks hold counts once, where it is nearest. Each detector
    # returned k different patches, so at least k are left.
    place = np.stack(arrays[:-1])
    same = (place[..., :, np.newaxis] == place[..., np.newaxis, :]).all(axis=0)
    repeated = np.tril(same, -1).any(axis=-1)
    kept = np.argsort(repeated, axis=-1, kind="stable")[..., :k]
    return [np.take_along_axis(array, kept, axis=-1) for array in arrays]


def _stack(arrays: list[NDArray]) -> NDArray | list[NDArray]:
    """Return one array where shapes agree, else the list as it is."""
    same = len({array.shape for array in arrays}) == 1
    return np.stack(arrays) if same else arrays
