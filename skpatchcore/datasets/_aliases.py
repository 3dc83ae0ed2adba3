"""List each file and folder once, even if symbolic links give it several names.

Links are followed, out of a folder as well, because data versioning tools link to files
named by their hash. Hard links are separate files: they cannot be distinguished from
copies. Broken links stay in the list and are reported when they are read; if they were
left out, nobody would notice.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path


def without_aliases(
    paths: Sequence[Path], root: Path, rank: Callable[[Path], int] = lambda path: 0
) -> list[Path]:
    """Return paths inside `root`, in their order, only one for each real path.

    That is the path of the lowest rank. Ties are broken in favour of a path without
    links below `root`, then of the first.
    """
    resolve, real_root = Resolver(), os.path.realpath(root)
    best: dict[str, tuple[tuple[int, bool], Path]] = {}
    for path in paths:
        real = resolve(path)
        is_linked = real != os.path.join(real_root, path.relative_to(root))
        key = (rank(path), is_linked)
        if real not in best or key < best[real][0]:
            best[real] = (key, path)
    chosen = {path for _, path in best.values()}
    return [path for path in paths if path in chosen]


def contains(folder: str | os.PathLike, path: Path) -> bool:
    """Return whether `path` is really inside `folder`, or is this folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


class Resolver:
    """Resolve paths of files, many of them in the same folders.

    A broken link resolves to itself.
    """

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, path: str | os.PathLike) -> str:
        """Return the absolute path without links."""
        folder, name = os.path.split(os.fspath(path))
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder or os.curdir)
        own = os.path.join(self._folders[folder], name)
        if not os.path.islink(own):
            return own
        return os.path.realpath(own) if os.path.exists(own) else own


def walk_folders(
    root: Path, list_folders: Callable[[Path], Iterable[Path]]
) -> Iterator[Path]:
    """Yield `root` and all folders below it, each real folder once.

    Links are followed after everything that can be reached without them. Links to a
    folder that contains `root` are not followed: they lead back here.
    """
    seen: set[str] = set()
    now: list[Path] = [root]
    links: list[Path] = []
    while now or links:
        folder = now.pop() if now else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen or (folder != root and contains(real, root)):
            continue
        seen.add(real)
        yield folder
        for subfolder in list_folders(folder):
            (links if subfolder.is_symlink() else now).append(subfolder)
