"""Select rows by the k-centre greedy in blocks, or describe what given rows cover."""

import bisect
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skpatchcore._coreset._cover import Changes, Cover
from skpatchcore._neighbors import rows_at_once
from skpatchcore._utils import are_rows, is_array

# Candidates of a block. Fewer than the first do not pay for an update of the cover. A
# block compares all pairs of its candidates, so more than the second cost too much.
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 1024
# Fields of the record of a run.
_RECORD = ("picks", "distances", "ends", "log")


class Coreset(NamedTuple):
    """Selected rows in order, and what they cover.

    Attributes
    ----------
    indices : ndarray of shape (n_selected,), int64
        The selected rows.
    radii : ndarray of shape (n_selected,), float64
        Cover radius after each of them. Distances are Euclidean, not squared.
    distances : ndarray of shape (n_rows,), float64
        Distance of each row to its nearest selected row.
    nearest : ndarray of shape (n_rows,), int64
        Position of that row in `indices`.
    """

    indices: NDArray[np.int64]
    radii: NDArray[np.float64]
    distances: NDArray[np.float64]
    nearest: NDArray[np.int64]


def is_coreset(value: Any, n_rows: int, n_selected: int) -> bool:
    """Return whether `value`, read from a file, holds the fields of a `Coreset`."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and is_array(value[0], np.int64, (n_selected,))
        and is_array(value[1], np.float64, (n_selected,))
        and is_array(value[2], np.float64, (n_rows,))
        and is_array(value[3], np.int64, (n_rows,))
        and are_rows(value[0], n_rows)
        and are_rows(value[3], n_selected)
    )


class GreedyRun:
    """The k-centre greedy: pick, again and again, the row farthest from the picks.

    The usual form reads all of `X` for each pick. Here the picks are made in blocks,
    and all rows are updated once per block. The picks are the same. Let the candidates
    be the B rows that are farthest from the picks, and tau the distance of the next
    row. No other row is farther than tau, and distances only shrink. So the farthest
    candidate is the farthest row of all, as long as its distance, updated with the
    block's own picks, is larger than tau. Of rows at equal distance, the first is
    picked.

    The run logs the changes of each block. Any smaller coreset can be replayed from the
    log, and a larger one can continue it. Both are equal to a run made in one go, bit
    for bit.

    Parameters
    ----------
    X : Tensor of shape (n, d), floating point
    first : int
        The row to pick first.
    record : mapping or None
        The `record` of an earlier run on the same rows, to continue it.
    progress : callable or None
        Returns a progress bar with the interface of tqdm. Called with `total`, the
        number of picks, and `initial`, how many there are already.

    Attributes
    ----------
    picks : list of int
        Rows picked so far, in order.
    """

    def __init__(
        self,
        X: torch.Tensor,
        first: int,
        record: Mapping[str, Any] | None = None,
        progress: Callable[..., Any] | None = None,
    ) -> None:
        self.X, self._first, self._progress = X, first, progress
        record = record or dict.fromkeys(("picks", "distances", "ends"), ())
        self.picks = [int(row) for row in record["picks"]]
        # Squared distance of each pick to the nearest earlier one; infinite for the
        # first.
        self._distances = [float(value) for value in record["distances"]]
        # Number of picks after each whole block. A last block that was cut short is not
        # logged.
        self._ends = [int(end) for end in record["ends"]]
        self._log: list[Changes] = record.get("log", [])

    def record(self) -> dict[str, Any]:
        """Return everything that is needed to continue the run, as arrays."""
        return {
            "picks": np.array(self.picks, dtype=np.int64),
            "distances": np.array(self._distances, dtype=np.float64),
            "ends": np.array(self._ends, dtype=np.int64),
            "log": self._log,
        }

    def extend(self, n_selected: int) -> Cover:
        """Continue until `n_selected` rows are picked, and return their cover."""
        cover = self._replay(len(self._ends))
        n_before = len(cover.picks)
        self.picks, self._distances = cover.picks, self._distances[:n_before]
        progress = self._progress or functools.partial(tqdm, disable=True)
        with progress(total=n_selected, initial=n_before) as bar:
            while len(self.picks) < n_selected:
                rows, distances = self._next_block(cover)
                whole = len(rows) <= n_selected - len(self.picks)
                # Trim surplus picks only here, so that a shorter run is a prefix of
                # every longer one.
                rows = rows[: n_selected - len(self.picks)]
                self._distances += distances[: len(rows)]
                changes = cover.add(rows)
                if whole:
                    self._ends.append(len(self.picks))
                    self._log.append(changes)
                bar.update(len(rows))
        return cover

    def cut(self, n_selected: int) -> Coreset:
        """Return the coreset of the first `n_selected` picks; extend it if needed."""
        if len(self.picks) < n_selected:
            cover = self.extend(n_selected)
        else:
            n_blocks = bisect.bisect_right(self._ends, n_selected)
            cover = self._replay(n_blocks)
            if len(cover.picks) < n_selected:
                cover.add(self.picks[len(cover.picks) : n_selected])
        return _as_coreset(cover, self._distances[1:n_selected])

    def _next_block(self, cover: Cover) -> tuple[list[int], list[float]]:
        """Return the rows of the next block and the distance at which each is made."""
        if not self._ends:
            return [self._first], [np.inf]
        # Allow twice as many as the last block gave: a block that tau cut short is
        # followed by a smaller one, and a full block by a larger one.
        last = self._ends[-1] - ([0, *self._ends][-2])
        size = min(max(2 * last, _SMALLEST_BLOCK), _LARGEST_BLOCK)
        return cover.farthest(size)

    def _replay(self, n_blocks: int) -> Cover:
        """Return the cover after `n_blocks` blocks, without computing any distance."""
        cover = Cover(self.X)
        n_picks = self._ends[n_blocks - 1] if n_blocks else 0
        cover.restore(self.picks[:n_picks], self._log[:n_blocks])
        return cover


def is_record(value: Any, n_rows: int) -> bool:
    """Return whether `value`, read from a file, is a `GreedyRun.record` on `n_rows`."""
    if not (isinstance(value, dict) and value.keys() == set(_RECORD)):
        return False
    picks, distances, ends, log = (value[name] for name in _RECORD)
    return (
        is_array(picks, np.int64, (None,))
        and are_rows(picks, n_rows)
        and is_array(distances, np.float64, picks.shape)
        and is_array(ends, np.int64, (None,))
        and bool((np.diff(ends, prepend=0, append=len(picks) + 1) > 0).all())
        and isinstance(log, list)
        and len(log) == len(ends)
        and all(
            _are_changes(changes, n_rows, int(end))
            for changes, end in zip(log, ends, strict=True)
        )
    )


def _are_changes(changes: Any, n_rows: int, n_picks: int) -> bool:
    """Return whether `changes`, from a file, fit a block that ends at `n_picks`."""
    return (
        isinstance(changes, list)
        and len(changes) == 3
        and is_array(changes[0], np.int32, (None,))
        and is_array(changes[1], np.int32, changes[0].shape)
        and is_array(changes[2], np.float64, changes[0].shape)
        and are_rows(changes[0], n_rows)
        and are_rows(changes[1], n_picks)
    )


def k_center_greedy(X: torch.Tensor, n_selected: int, first: int) -> Coreset:
    """Return the first `n_selected` greedy picks, and what they cover."""
    return GreedyRun(X, first).cut(n_selected)


def cover_of(
    X: torch.Tensor,
    selected: NDArray[np.int64],
    update: Callable[[int], Any] | None = None,
) -> Coreset:
    """Return what the rows `selected` of `X`, taken in that order, cover.

    `update` is called with the number of rows of each block, for a progress bar.
    """
    cover = Cover(X)
    radii: list[float] = []
    while len(radii) < len(selected):
        # Each block doubles the number of rows, so that a row comes nearer about once
        # per block.
        size = min(max(1, len(radii)), _LARGEST_BLOCK)
        block = selected[len(radii) : len(radii) + size].tolist()
        radii.extend(cover.add_with_radii(block))
        if update is not None:
            update(len(block))
    return _as_coreset(cover, radii[:-1])


def farthest_from(X: torch.Tensor, rows: NDArray[np.int64]) -> int:
    """Return the row with the largest mean distance to `rows` of `X`."""
    others = X[torch.from_numpy(rows).to(X.device)].double()
    totals = [
        torch.cdist(
            part.double(), others, compute_mode="donot_use_mm_for_euclid_dist"
        ).sum(dim=1)
        for part in X.split(rows_at_once(X))
    ]
    return int(torch.cat(totals).argmax())


def _as_coreset(cover: Cover, radii: Sequence[float]) -> Coreset:
    """Return the coreset of a cover.

    `radii` are the squared radii after each row but the last. The last radius follows
    from the cover.
    """
    squared, nearest = cover.finish()
    return Coreset(
        np.array(cover.picks, dtype=np.int64),
        np.sqrt([*radii, squared.max()]),
        np.sqrt(squared),
        nearest,
    )
