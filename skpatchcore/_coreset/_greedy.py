"""The k-centre greedy, in blocks of picks, and the cover of given picks."""

import bisect
import functools
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from skpatchcore._coreset._cover import Cover
from skpatchcore._neighbors import rows_at_once
from skpatchcore._utils import are_rows, is_array

_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 1024
# What the record of a run consists of.
_RECORD = ("picks", "distances", "ends", "log")


class Coreset(NamedTuple):
    """Picks in order, and what they cover; distances are Euclidean, not squared."""

    indices: np.ndarray
    radii: np.ndarray
    distances: np.ndarray
    nearest: np.ndarray


def is_coreset(value, n_rows: int, n_selected: int) -> bool:
    """Return whether `value`, from a file, are the fields of a `Coreset`."""
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

    The picks are made in blocks without changing them. Of the rows farthest from the
    picks, B are candidates; any other row is no farther than the next distance, tau,
    and distances only shrink. As long as the farthest candidate, with distances to the
    block's own picks accounted for, is beyond tau, it is the farthest row of all. One
    update then brings everyone up to date, where the usual form reads all of `X` for
    each pick. Of rows equally far the first is picked.

    A run keeps what every block changed. So each smaller coreset can be cut from it,
    and it can be continued, with the very picks of a run that never stopped.

    Parameters
    ----------
    X : Tensor of shape (n, d), floating point
    first : int
        The row to begin with.
    record : dict or None
        What `record` of an earlier run on the same rows gave.
    progress : callable or None
        Gives a progress bar in the manner of tqdm, for a `total` number of picks.

    Attributes
    ----------
    picks : list of int
        Rows picked so far, in order.
    """

    def __init__(self, X: torch.Tensor, first: int, record=None, progress=None):
        self.X, self._first, self._progress = X, first, progress
        record = record or dict.fromkeys(("picks", "distances", "ends"), ())
        self.picks = [int(row) for row in record["picks"]]
        # Squared distance of each pick to those before it: infinite for the first.
        self._distances = [float(value) for value in record["distances"]]
        # Number of picks after each whole block; a last, shorter one is not logged.
        self._ends = [int(end) for end in record["ends"]]
        self._log = record.get("log", [])

    def record(self) -> dict:
        """Return all that is needed to continue, as arrays."""
        return {
            "picks": np.array(self.picks, dtype=np.int64),
            "distances": np.array(self._distances, dtype=np.float64),
            "ends": np.array(self._ends, dtype=np.int64),
            "log": self._log,
        }

    def extend(self, n_selected: int) -> Cover:
        """Go on until `n_selected` rows are picked."""
        cover = self._replay(len(self._ends))
        n_before = len(cover.picks)
        self.picks, self._distances = cover.picks, self._distances[:n_before]
        progress = self._progress or functools.partial(tqdm, disable=True)
        with progress(total=n_selected, initial=n_before) as bar:
            while len(self.picks) < n_selected:
                rows, distances = self._next_block(cover)
                whole = len(rows) <= n_selected - len(self.picks)
                # What is too much goes only now, so that a run is a prefix of every
                # longer one.
                rows = rows[: n_selected - len(self.picks)]
                self._distances += distances[: len(rows)]
                changes = cover.add(rows)
                if whole:
                    self._ends.append(len(self.picks))
                    self._log.append(changes)
                bar.update(len(rows))
        return cover

    def cut(self, n_selected: int) -> Coreset:
        """Return the coreset of the first `n_selected` picks, made if need be."""
        if len(self.picks) < n_selected:
            cover = self.extend(n_selected)
        else:
            n_blocks = bisect.bisect_right(self._ends, n_selected)
            cover = self._replay(n_blocks)
            if len(cover.picks) < n_selected:
                cover.add(self.picks[len(cover.picks) : n_selected])
        return _as_coreset(cover, self._distances[1:n_selected])

    def _next_block(self, cover: Cover) -> tuple[list[int], list[float]]:
        if not self._ends:
            return [self._first], [np.inf]
        # A block cut short by tau was too large; one used up may grow.
        last = self._ends[-1] - ([0, *self._ends][-2])
        size = min(max(2 * last, _SMALLEST_BLOCK), _LARGEST_BLOCK)
        return cover.farthest(size)

    def _replay(self, n_blocks: int) -> Cover:
        """Return the cover after so many blocks, without any distance computed."""
        cover = Cover(self.X)
        n_picks = self._ends[n_blocks - 1] if n_blocks else 0
        cover.restore(self.picks[:n_picks], self._log[:n_blocks])
        return cover


def is_record(value, n_rows: int) -> bool:
    """Return whether `value`, from a file, is a `GreedyRun.record` on these rows."""
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


def _are_changes(changes, n_rows: int, n_picks: int) -> bool:
    """Return whether `changes`, from a file, are those of a block up to `n_picks`."""
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
    """Return the first `n_selected` picks of a `GreedyRun` and what they cover."""
    return GreedyRun(X, first).cut(n_selected)


def cover_of(X: torch.Tensor, picks: np.ndarray, update=None) -> Coreset:
    """Return radii and nearest picks for rows `picks` of `X`, taken in that order."""
    cover, radii = Cover(X), []
    while len(radii) < len(picks):
        # As many again as there are: so each row comes nearer about once a block.
        size = min(max(1, len(radii)), _LARGEST_BLOCK)
        block = picks[len(radii) : len(radii) + size].tolist()
        radii.extend(cover.add_with_radii(block))
        if update is not None:
            update(len(block))
    return _as_coreset(cover, radii[:-1])


def farthest_from(X: torch.Tensor, rows: np.ndarray) -> int:
    """Return the row with the largest mean distance to `rows` of `X`."""
    others = X[torch.from_numpy(rows).to(X.device)].double()
    totals = [
        torch.cdist(
            part.double(), others, compute_mode="donot_use_mm_for_euclid_dist"
        ).sum(dim=1)
        for part in X.split(rows_at_once(X))
    ]
    return int(torch.cat(totals).argmax())


def _as_coreset(cover: Cover, radii) -> Coreset:
    """Return the coreset; `radii` are squared, after all picks but the last."""
    squared, nearest = cover.finish()
    return Coreset(
        np.array(cover.picks, dtype=np.int64),
        np.sqrt([*radii, squared.max()]),
        np.sqrt(squared),
        nearest,
    )
