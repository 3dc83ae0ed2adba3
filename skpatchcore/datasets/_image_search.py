"""Find image files in folders: one rule for all loaders and commands.

A folder is searched with its subfolders. What is left out is remembered and reported
once, with counts. Of hidden files, only images count.
"""

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from skpatchcore._images import accepted_suffixes, refused_suffixes
from skpatchcore.datasets._aliases import contains, walk_folders, without_aliases

# Folders of these names hold masks, not images, wherever they are.
MASK_SUBFOLDERS = ("ground_truth", "groundtruth", "masks", "mask", "gt")
# Windows writes these files into folders that it has shown; there they are hidden.
_HIDDEN_NAMES = ("thumbs.db", "desktop.ini")
# Groups of files and examples that a message names.
_N_NAMED = 6
_SPECIAL, _BROKEN = "pipes or devices", "broken links"
_NO_SUFFIX, _MASKS, _HIDDEN = "without a suffix", "masks", "hidden"


def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the files that count as images."""
    return accepted_suffixes()


class ImageSearch:
    """Find the images in a folder, and remember what was left out.

    Parameters
    ----------
    root : Path
        Folder that the names in messages and patterns are relative to.
    exclude : sequence of str
        Shell patterns. A file is excluded if one of them matches its name, its path
        relative to `root`, or the name of a folder on this path.
    """

    def __init__(self, root: Path, exclude: Sequence[str] = ()) -> None:
        self.root, self.exclude = root, tuple(exclude)
        self.passed_over: dict[Path, str] = {}
        self.excluded: dict[Path, str] = {}

    def below(self, folder: Path) -> list[Path]:
        """Return the images in a folder, followed by those in its subfolders.

        Each is listed once, even if links give it several names.
        """
        folders = walk_folders(folder, self._searched_folders)
        images = [path for inside in folders for path in self._images(inside)]

        def order(path: Path) -> list[tuple[bool, str]]:
            *above, name = path.relative_to(folder).parts
            return [*((True, part) for part in above), (False, name)]

        return without_aliases(sorted(images, key=order), folder)

    def directly_in(self, folder: Path) -> list[Path]:
        """Return the images directly in a folder, each once, sorted by name."""
        return without_aliases(self._images(folder), folder)

    def keeps(self, file: Path) -> bool:
        """Return whether a file that was given by itself is not excluded."""
        pattern = self._matching(Path(file.name))
        if pattern is not None:
            self.excluded[file] = pattern
        return pattern is None

    def pass_over(self, images: Iterable[Path]) -> None:
        """Remember images that are in a place where nothing is looked for."""
        for path in images:
            if self._excluding(path) is None:
                self.passed_over[path] = path.suffix.lower()

    def _images(self, folder: Path) -> list[Path]:
        suffixes, images = image_suffixes(), []
        self._pass_over_hidden(folder, suffixes)
        for entry in visible(folder):
            path = Path(entry.path)
            if is_folder(entry):
                continue
            pattern = self._excluding(path)
            if pattern is not None:
                self.excluded[path] = pattern
            elif path.suffix.lower() in suffixes and may_be_read(entry):
                images.append(path)
            else:
                self.passed_over[path] = _describe(entry)
        return images

    def _pass_over_hidden(self, folder: Path, suffixes: Collection[str]) -> None:
        """Remember the hidden images in a folder, also those in its hidden folders."""
        for path in hidden(folder):
            below = [Path(top, f) for top, _, files in os.walk(path) for f in files]
            for file in below or [path]:
                pattern = self._excluding(file)
                if file.suffix.lower() in suffixes and pattern is None:
                    self.passed_over[file] = _HIDDEN
                elif pattern is not None:
                    self.excluded[file] = pattern

    def _searched_folders(self, folder: Path) -> list[Path]:
        searched = []
        for path in list_folders(folder):
            if path.name.lower() not in MASK_SUBFOLDERS:
                searched.append(path)
            else:
                self.passed_over |= dict.fromkeys(image_files_below(path), _MASKS)
        return searched

    def _excluding(self, path: Path) -> str | None:
        """Return the pattern that excludes a file below `root`, if there is one."""
        return self._matching(path.relative_to(self.root))

    def _matching(self, relative: Path) -> str | None:
        names = (relative.as_posix(), *relative.parts)
        for pattern in self.exclude:
            if any(fnmatchcase(name, pattern) for name in names):
                return pattern
        return None


def report_passed_over(searches: Iterable[ImageSearch], *, stacklevel: int) -> None:
    """Warn once about all files that searches left out, and about unused patterns."""
    searches = list(searches)
    parts = [describe_passed_over(searches)]
    used = {pattern for search in searches for pattern in search.excluded.values()}
    given = dict.fromkeys(p for search in searches for p in search.exclude)
    unused = [pattern for pattern in given if pattern not in used]
    if unused:
        parts.append(f"No file matches the pattern {' or '.join(unused)} of exclude.")
    if any(parts):
        warnings.warn(" ".join(filter(None, parts)), stacklevel=stacklevel + 1)


def describe_passed_over(searches: Iterable[ImageSearch]) -> str:
    """Return one line about the files that were left out, by suffix and folder."""
    groups: Counter[tuple[str, str]] = Counter()
    for search in searches:
        for path, kind in search.passed_over.items():
            groups[kind, name_folder(path.parent, search.root)] += 1
    if not groups:
        return ""
    n_files = groups.total()
    named = [f"{n} {kind} in {folder}" for (kind, folder), n in groups.most_common()]
    rest = named[_N_NAMED:]
    listed = ", ".join(named[:_N_NAMED]) + (
        f", and {len(rest)} more kinds" * bool(rest)
    )
    refused = sorted({kind for kind, _ in groups} & refused_suffixes())
    return f"Passed over {n_files} file{'s' * (n_files != 1)}: {listed}." + (
        f" {' and '.join(refused)} may be images, but only common formats are read, "
        "by decoders that are well tested. Convert them to PNG."
    ) * bool(refused)


def name_folder(folder: Path, root: Path) -> str:
    """Return what to call a folder in messages: its path from above `root`."""
    return (Path(root.name or str(root)) / folder.relative_to(root)).as_posix()


def list_folders(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, including links to them, sorted."""
    return [Path(entry.path) for entry in visible(folder) if is_folder(entry)]


def list_distinct_folders(folder: Path, preferred: Collection[str] = ()) -> list[Path]:
    """Return the subfolders of a folder, each once, sorted by name.

    If links give a subfolder several names, a name in `preferred` (in lower case)
    counts first. Links to the folder itself, or to a folder around it, are left out.
    """
    folders = [path for path in list_folders(folder) if not contains(path, folder)]
    return without_aliases(
        folders, folder, rank=lambda path: path.name.lower() not in preferred
    )


def find_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the subfolder that has one of the names, in upper or lower case."""
    named = [folder for folder in list_folders(root) if folder.name.lower() in names]
    found = without_aliases(named, root)
    if len(found) > 1:
        listed = " and ".join(folder.name for folder in found)
        raise ValueError(
            f"Found {listed} in {root}; expected only one of them. Merge them."
        )
    return found[0] if found else None


def image_files(folder: Path) -> list[Path]:
    """Return the files directly in a folder that have the suffix of an image, sorted.

    Unlike an `ImageSearch`, it lists all names of a file, and reports nothing.
    """
    suffixes = image_suffixes()
    return [
        Path(entry.path)
        for entry in visible(folder)
        if Path(entry.name).suffix.lower() in suffixes
        and not is_folder(entry)
        and may_be_read(entry)
    ]


def image_files_below(folder: Path) -> list[Path]:
    """Return the same for a folder and all its subfolders."""
    folders = walk_folders(folder, list_folders)
    return [path for inside in folders for path in image_files(inside)]


def check_folder(path: str | os.PathLike, parameter: str) -> Path:
    """Return `path` as an absolute path after checking that it is a folder."""
    # Symbolic links are kept: data versioning tools link to files named by their hash.
    folder = Path(path).expanduser().absolute()
    if not folder.exists():
        raise FileNotFoundError(f"{parameter}={os.fspath(path)!r} does not exist.")
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{parameter}={os.fspath(path)!r} is a file; expected a folder."
        )
    return folder


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not hidden, sorted by name."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not _is_hidden(entry.name)]
    # By name, because Windows paths are compared without regard to case.
    return sorted(shown, key=lambda entry: entry.name)


def hidden(folder: Path) -> list[Path]:
    """Return the files and folders in a folder that are hidden, sorted."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if _is_hidden(entry.name))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one."""
    # entry.is_dir() raises an error for circular links; os.path.isdir returns False.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def may_be_read(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a regular file, or a link to one or to nothing."""
    if not entry.is_symlink():
        return entry.is_file()
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)


def _describe(entry: os.DirEntry[str]) -> str:
    """Return what kind of file was left out."""
    if not os.path.exists(entry.path):
        return _BROKEN
    if not may_be_read(entry):
        return _SPECIAL
    return Path(entry.name).suffix.lower() or _NO_SUFFIX


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN_NAMES
