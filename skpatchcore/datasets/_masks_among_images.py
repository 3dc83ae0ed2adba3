"""Find images that are masks of others, so that no detector learns them as good parts.

Loaders and commands ask about the files that they list, detectors about the files that
a user passes.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skpatchcore._images import Images, check_images, is_file, open_image, path_of
from skpatchcore.datasets._image_search import MASK_SUBFOLDERS
from skpatchcore.datasets._mask_files import find_named, fold, in_short

# The fewest grey levels that 90 % of the pixels of a photograph have. Those of a mask
# have one level for each class, and a few more around them if it is a JPEG file.
_SHARE, _N_LEVELS = 0.9, 16
# Formats of masks that have the name of their image: lossless, and in common use.
_MASK_SUFFIXES = {".png", ".bmp", ".gif", ".tif", ".tiff", ".pbm", ".pgm"}
_LEARNED = "A detector would learn them as good parts."
_SCORED = "They are scored like images."


class _Pair(NamedTuple):
    """A mask, its image if it is known, and a shell pattern that fits such masks."""

    mask: Path
    image: Path | None
    pattern: str


def check_not_masks(images: Iterable[Path]) -> None:
    """Raise an error if some of the images are masks of others."""
    found = describe_masks(list(images))
    if found:
        raise ValueError(f"{found} {_LEARNED}")


def describe_masks(images: Sequence[Path]) -> str:
    """Return which images are masks of others, and how to leave them out.

    They are, if they do not look like photographs, and have the name of another image
    in their folder and words that mark masks; or the same name and another suffix; or
    are in a folder of masks next to folders of images.
    """
    found, pattern = _describe(images)
    return found and (
        f"{found} Leave them out with exclude={pattern!r} (--exclude on the command "
        "line), or move them to another folder, such as ground_truth/."
    )


def refuse_masks(images: Images, X: object) -> None:
    """Raise an error if some of the training images `X` are masks of others.

    Images that were checked before, as part of a larger `X`, are not checked again.
    """
    found = "" if isinstance(X, Images) else _describe_given(images)
    if found:
        raise ValueError(f"{found} {_LEARNED}")


def check_new_images(X: object) -> Images:
    """Return images to score like `check_images`; warn if some are masks of others."""
    images = check_images(X)  # type: ignore[arg-type]
    if not isinstance(X, Images):
        warn_of_masks(images)
    return images


def warn_of_masks(images: Images) -> None:
    """Warn if some of the images to score are masks of others."""
    if found := _describe_given(images):
        images.notices.say(f"{found} {_SCORED}", "masks")


def _describe_given(images: Images) -> str:
    # Pages of a file count once.
    files = dict.fromkeys(path_of(s) for s in images.sources if is_file(s))
    found, pattern = _describe([Path(file) for file in files])
    return found and (
        f"{found} Leave them out of X; load_image_folder of skpatchcore.datasets lists "
        f"a folder without them, if need be with exclude={pattern!r}."
    )


def _describe(images: Sequence[Path]) -> tuple[str, str | list[str]]:
    """Return a sentence about masks of others, and patterns for them."""
    pairs = _pairs(images) if images else []
    if not pairs:
        return "", ""
    patterns = sorted({pair.pattern for pair in pairs})
    paths = [path for mask, image, _ in pairs for path in (mask, image or mask)]
    place = max(_shared_folders(paths), key=lambda path: len(path.parts), default=None)
    names = [
        _name(mask, place) + (f" of {_name(image, place)}" if image else "")
        for mask, image, _ in pairs
    ]
    return (
        f"{len(pairs)} of {len(images)} images look like masks of others: "
        f"{in_short(names)}{f', in {place}' if place else ''}."
    ), patterns[0] if len(patterns) == 1 else patterns


def _name(path: Path, place: Path | None) -> str:
    return (path.relative_to(place) if place else path).as_posix()


def _shared_folders(paths: Iterable[Path]) -> set[Path]:
    """Return the folders that all files are below."""
    folders = {path.parent for path in paths}
    return set.intersection(*({folder, *folder.parents} for folder in folders))


def _pairs(images: Sequence[Path]) -> list[_Pair]:
    """Return masks, each with its image and a pattern like it."""
    by_name: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in images:
        by_name[path.parent][fold(path.stem)].append(path)
    pairs = []
    for mask in images:
        siblings = by_name[mask.parent]
        named = find_named(mask.stem, siblings)
        if named and not _is_photograph(mask):
            pairs.append(_Pair(mask, siblings[named[0]][0], f"{named[1]}.*"))
    pairs += _same_stems(by_name.values())
    found = {pair.mask for pair in pairs}
    return pairs + [pair for pair in _in_mask_folders(images) if pair.mask not in found]


def _same_stems(folders: Iterable[Mapping[str, Sequence[Path]]]) -> list[_Pair]:
    """Return the same for masks that differ from their image in the suffix only."""
    pairs = []
    groups = [group for folder in folders for group in folder.values()]
    for group in (set(group) for group in groups if len(group) > 1):
        photographs = sorted(path for path in group if _is_photograph(path))
        masks = sorted(path for path in group if _is_photograph(path) is False)
        masks = [mask for mask in masks if mask.suffix.lower() in _MASK_SUFFIXES]
        if photographs:
            pairs += [_Pair(mask, photographs[0], f"*{mask.suffix}") for mask in masks]
    return pairs


def _in_mask_folders(images: Sequence[Path]) -> list[_Pair]:
    """Return the same for masks in a folder of masks, if not all images are in it.

    Their images are in a folder of the same name elsewhere, as in MVTec AD.
    """
    shared = _shared_folders(images)
    folders = {path.parent for path in images}
    marks = {folder: _mask_folder(folder, shared) for folder in folders}
    by_kind: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in images:
        if not marks[path.parent]:
            by_kind[path.parent.name][fold(path.stem)] = path
    pairs = []
    for path in images:
        if marks[path.parent] and _is_photograph(path) is False:
            kind = by_kind[path.parent.name]
            named = find_named(path.stem, kind)
            image = kind.get(named[0] if named else fold(path.stem))
            pairs.append(_Pair(path, image, marks[path.parent]))
    return pairs


def _mask_folder(folder: Path, shared: Container[Path]) -> str:
    """Return the name of a folder of masks at or above `folder`, outside `shared`."""
    # If all images are in it, its name does not say that they are masks.
    around = [path.name for path in (folder, *folder.parents) if path not in shared]
    return next((name for name in around if name.lower() in MASK_SUBFOLDERS), "")


def _is_photograph(path: Path) -> bool | None:
    """Return whether an image has many grey levels; None if it is unreadable."""
    try:
        with open_image(path) as image:
            counts = np.sort(image.convert("L").histogram())[::-1]
    except Exception:  # Unreadable files are reported when they are read.
        return None
    shares = np.cumsum(counts) / counts.sum()
    return bool(np.searchsorted(shares, _SHARE) + 1 > _N_LEVELS)
