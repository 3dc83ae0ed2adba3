"""Records of images in folders, with their masks, and the Bunch made of them."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skpatchcore._images import split_pages
from skpatchcore.datasets._aliases import Resolver, without_aliases
from skpatchcore.datasets._mask_files import all_masks, in_short
from skpatchcore.datasets._masks_among_images import check_not_masks

SPLITS = ("train", "validation", "test")


class Record(NamedTuple):
    """One file on disk. `mask` is None if it has no mask or needs none."""

    path: Path
    split: str
    defect_type: str
    mask: Path | None = None


def collect_subset(
    subset: str, list_split: Callable[[str], list[Record]], source: Path
) -> list[Record]:
    """Return the records of all splits, or of a single one that must not be empty.

    Each image is in only one split, even if several links lead to it.
    """
    splits = SPLITS if subset == "all" else (subset,)
    records = [record for split in splits for record in list_split(split)]
    if subset != "all" and not records:
        raise ValueError(f"subset={subset!r}: found no {subset} images in {source}.")
    _check_labels(records)
    check_not_masks(record.path for record in records)
    kept = set(without_aliases([record.path for record in records], source))
    return [record for record in records if record.path in kept]


def _check_labels(records: Sequence[Record]) -> None:
    """Reject an image that is good under one name and defective under another."""
    resolve = Resolver()
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(resolve(record.path), record)
        if (other.defect_type == "good") != (record.defect_type == "good"):
            raise ValueError(
                f"{other.path} and {record.path} are the same image (one is a link), "
                "but one is listed as good and the other as defective. Remove one."
            )


def check_masks(
    records: Sequence[Record],
    mask_roots: Sequence[Path],
    *,
    is_complete: bool,
    stacklevel: int,
) -> None:
    """Reject a mask that fits two images; warn of masks and images without a partner.

    `is_complete` says whether `records` has all images that may have a mask there.
    """
    _check_claims(records)
    lacking = [r for r in records if r.defect_type != "good" and not r.mask]
    used = {record.mask for record in records}
    unused = [
        mask.relative_to(root).as_posix()
        for root in mask_roots
        for mask in all_masks(root)
        if mask not in used
    ]
    parts = []
    if lacking and mask_roots:
        parts.append(_describe_lacking(records, lacking))
    if unused and is_complete:
        parts.append(
            f"No image belongs to {_count(unused, 'mask')}: {in_short(unused)}."
        )
    if parts:
        listed = " or ".join(map(str, mask_roots))
        parts.append(
            f"Masks are looked for in {listed}, in a folder with the name of the kind, "
            "under the name of the image, with or without a word such as _mask or _GT."
        )
        warnings.warn(" ".join(parts), stacklevel=stacklevel + 1)


def _describe_lacking(records: Sequence[Record], lacking: Sequence[Record]) -> str:
    totals = Counter(record.defect_type for record in records)
    kinds = defaultdict(list)
    for record in lacking:
        kinds[record.defect_type].append(record.path.name)
    listed = "; ".join(
        f"{len(names)} of {totals[kind]} in {kind} ({in_short(names)})"
        for kind, names in kinds.items()
    )
    return (
        f"{_count(lacking, 'defective image')} without a mask: {listed}. read_masks "
        "treats them as free of defects: add the masks, or leave these images out of "
        "pixel-level metrics."
    )


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _check_claims(records: Sequence[Record]) -> None:
    claims = Counter(record.mask for record in records if record.mask)
    for mask, n_claims in claims.items():
        if n_claims > 1:
            claimants = " and ".join(str(r.path) for r in records if r.mask == mask)
            raise ValueError(
                f"{mask} could be the mask of {claimants}. Give these images different "
                "names, and name a mask after each of them."
            )


def bunch_of_records(
    records: Sequence[Record], descr: str, with_cv: bool, *, all_pages: bool = False
) -> Bunch:
    """Return the Bunch of images on disk, as absolute paths.

    With `all_pages`, a file that has several is listed once for each page.
    """
    entries = [
        (image, mask, record)
        for record in records
        for image, mask in (_pages if all_pages else _whole)(record)
    ]
    return make_bunch(
        object_array([image for image, _, _ in entries]),
        object_array([mask for _, mask, _ in entries]),
        defect_types=[record.defect_type for _, _, record in entries],
        split=[record.split for _, _, record in entries],
        descr=descr,
        with_cv=with_cv,
    )


def _whole(record: Record) -> list[tuple[Any, Any]]:
    return [(str(record.path), record.mask and str(record.mask))]


def _pages(record: Record) -> list[tuple[Any, Any]]:
    """Return the pages of an image, each with the same page of its mask."""
    images = split_pages(record.path)
    if record.mask is None or len(images) == 1:
        return [(image, record.mask and str(record.mask)) for image in images]
    masks = split_pages(record.mask)
    if len(masks) != len(images):
        raise ValueError(
            f"{record.path} has {len(images)} pages, but its mask {record.mask} has "
            f"{len(masks)}; expected one page of the mask for each page of the image."
        )
    return list(zip(images, masks, strict=True))


def make_bunch(
    data: NDArray,
    masks: NDArray,
    *,
    defect_types: Sequence[str],
    split: Sequence[str],
    descr: str,
    with_cv: bool,
) -> Bunch:
    """Return the Bunch of a loader; `target` and `cv` are derived from the rest."""
    kinds, splits = object_array(defect_types), object_array(split)
    bunch = Bunch(
        data=data,
        target=np.where(kinds == "good", 1, -1).astype(np.int64),
        masks=masks,
        defect_types=kinds,
        split=splits,
        DESCR=descr,
    )
    train, test = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test")
    if with_cv and len(train) and len(test):
        bunch.cv = [(train, test)]
    return bunch


def object_array(values: Sequence[Any]) -> NDArray[np.object_]:
    """Return a 1-D object array, even if the values are sequences."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
