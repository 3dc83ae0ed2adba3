"""Exact and approximate k-nearest-neighbour indexes behind one small interface."""

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import torch

from skpatchcore._neighbors._distances import (
    as_tensor,
    rounding_error,
    rows_at_once,
    squared_distances,
)
from skpatchcore._neighbors._magnitude import (
    check_finite,
    fits_float32,
    with_safe_squares,
)
from skpatchcore._neighbors._projected import ProjectedSearch
from skpatchcore._utils import content_key, own_torch_state, resolve_device

# More candidates than neighbours asked for, so that rounding in the fast product rarely
# decides which ones are recomputed exactly.
_SPARE_CANDIDATES = 8
# Elements of queries taken to the device at a time: 64 MB in float32.
_CHUNK_ELEMENTS = 2**24


class NeighborIndex(ABC):
    """Euclidean nearest neighbours of queries among the rows of a bank.

    Whatever a backend finds, distances are always computed directly as differences in
    float64, so they depend neither on the backend's rounding nor on the other queries
    of a batch.

    Parameters
    ----------
    bank : ndarray of shape (m, d), float32 or float64
    device : str, torch.device or None
    random_state : int
        For backends that draw.
    """

    exact = True

    @own_torch_state()
    def __init__(self, bank: np.ndarray, *, device=None, random_state: int = 0):
        self.bank = bank
        self.device = resolve_device(device)
        self.random_state = random_state
        self._bank = as_tensor(with_safe_squares(bank)).to(self.device)
        self._search = ProjectedSearch(self._bank)
        self._build()

    @cached_property
    def fingerprint(self) -> str:
        """What the neighbours of an exact search depend on, but for the queries."""
        return bank_fingerprint(self.bank, self.device)

    @own_torch_state()
    def query(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return squared distances (n, k), ascending, and bank rows (n, k).

        Equal distances come in the order of their rows.

        Raises
        ------
        ValueError
            If squared distances overflow.
        """
        rows = max(1, _CHUNK_ELEMENTS // self.bank.shape[1])
        pairs = [
            self._query_chunk(as_tensor(queries[i : i + rows]).to(self._bank), k)
            for i in range(0, len(queries), rows)
        ]
        squared, indices = zip(*pairs, strict=True)
        squared, indices = torch.cat(squared).cpu().numpy(), torch.cat(indices)
        check_finite(squared, queries)
        return squared, indices.cpu().numpy()

    def _build(self) -> None:  # noqa: B027
        """Prepare the search; overridden where there is something to prepare."""

    @abstractmethod
    def _query_chunk(self, queries: torch.Tensor, k: int):
        """Return what `query` does, as tensors."""


class TorchIndex(NeighborIndex):
    """Exact search by matrix products, on the CPU or a GPU."""

    def _query_chunk(self, queries, k):
        return self._search.query(queries, k)


class CandidateIndex(NeighborIndex):
    """A backend that proposes candidates, and a bound of all others.

    Where it cannot tell that its candidates hold the nearest rows, the exact search is
    asked; always where the bank is beyond the range of float32, in which backends
    compute.
    """

    def _build(self):
        self._in_range = fits_float32(self.bank)
        if self._in_range:
            self._build_backend()

    def _build_backend(self) -> None:
        """Prepare the backend; overridden where there is something to prepare."""

    def _query_chunk(self, queries, k):
        n_candidates = min(len(self.bank), k + _SPARE_CANDIDATES)
        if n_candidates == len(self.bank) or not self._in_range:
            return self._search.query(queries, k)
        candidates, bound = self._candidates(queries, n_candidates)
        squared, indices = self._nearest_of(queries, candidates, k)
        # A row outside may tie with the bound; NaN, after an overflow, is in doubt too.
        doubtful = (~(squared[:, -1] < bound)).nonzero()[:, 0]
        if len(doubtful):
            found = self._search.query(queries[doubtful], k)
            squared[doubtful], indices[doubtful] = found
        return squared, indices

    def _nearest_of(self, queries, candidates, k):
        """Return exact squared distances and rows of the `k` nearest candidates."""
        candidates = candidates.sort(dim=1).values
        rows = rows_at_once(self._bank, candidates.shape[1])
        squared = torch.cat(
            [
                squared_distances(q, self._bank[c])
                for q, c in zip(
                    queries.split(rows), candidates.split(rows), strict=True
                )
            ]
        )
        squared, order = squared.sort(dim=1, stable=True)
        return squared[:, :k], candidates.gather(1, order[:, :k])

    @abstractmethod
    def _candidates(self, queries: torch.Tensor, n_candidates: int):
        """Return candidate rows (n, c) and a lower bound (n,).

        No row outside a query's candidates is nearer than the square root of its bound.
        """


class FaissIndex(CandidateIndex):
    """Flat search of faiss, on CPU, or on GPU where faiss-gpu is there and a device."""

    def _build_backend(self):
        faiss = _import_backend("faiss", "faiss")
        self._flat = faiss.IndexFlatL2(self.bank.shape[1])
        if self.device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
            self._resources = faiss.StandardGpuResources()
            self._flat = faiss.index_cpu_to_gpu(
                self._resources, self.device.index or 0, self._flat
            )
        # Rounding is least about the mean; distances are the same about any point.
        self._center = self._bank.mean(dim=0)
        centered = self._bank - self._center
        self._largest = centered.double().square().sum(dim=1).max().sqrt()
        self._flat.add(_as_float32(centered))

    def _candidates(self, queries, n_candidates):
        centered = queries - self._center
        values, candidates = self._flat.search(_as_float32(centered), n_candidates)
        nearest_outside = torch.from_numpy(values[:, -1]).double().to(self.device)
        reach = centered.double().square().sum(dim=1).sqrt() + self._largest
        error = rounding_error(self.bank.shape[1], torch.float32, reach)
        return torch.from_numpy(candidates).to(self.device), nearest_outside - error


class PyNNDescentIndex(CandidateIndex):
    """Approximate search on a nearest-neighbour graph, for very large banks."""

    exact = False
    # Below this many rows PyNNDescent's own trees are no graph; all rows are searched.
    _MIN_ROWS = 64

    def _build_backend(self):
        pynndescent = _import_backend("pynndescent", "pynndescent")
        self._graph = None
        if len(self.bank) >= self._MIN_ROWS:
            self._graph = pynndescent.NNDescent(
                _as_float32(self._bank),
                metric="euclidean",
                n_neighbors=min(30, len(self.bank) - 1),
                random_state=self.random_state,
            )
            self._graph.prepare()

    def _candidates(self, queries, n_candidates):
        bound = torch.full((len(queries),), torch.inf, dtype=torch.float64)
        # Any rows do where all are looked at, but no row twice.
        anything = torch.arange(n_candidates).expand(len(queries), -1)
        if self._graph is None:
            return anything.to(self.device), -bound.to(self.device)
        rows, _ = self._graph.query(_as_float32(queries), k=n_candidates)
        candidates = torch.from_numpy(rows.astype(np.int64))
        # A graph in pieces may give fewer than asked for, and -1 for the rest.
        incomplete = (candidates < 0).any(dim=1)
        bound[incomplete] = -torch.inf
        candidates = torch.where(incomplete[:, None], anything, candidates)
        return candidates.to(self.device), bound.to(self.device)


def build_index(
    bank, *, algorithm="auto", device=None, random_state=0
) -> NeighborIndex:
    """Return an index over the rows of `bank`; "auto" is exact search in torch."""
    backends = {
        "auto": TorchIndex,
        "torch": TorchIndex,
        "faiss": FaissIndex,
        "pynndescent": PyNNDescentIndex,
    }
    return backends[algorithm](bank, device=device, random_state=random_state)


def bank_fingerprint(bank: np.ndarray, device: torch.device) -> str:
    """Return what exact neighbours among the rows of `bank` depend on."""
    return content_key(device.type, torch.__version__, bank)


def squared_to_metric(squared: np.ndarray, metric: str) -> np.ndarray:
    """Turn squared Euclidean distances into those of `metric`.

    For "cosine" the vectors are of unit length, where 1 - cos = |a - b|^2 / 2.
    """
    if metric == "sqeuclidean":
        return squared
    return squared / 2 if metric == "cosine" else np.sqrt(squared)


def _as_float32(tensor: torch.Tensor) -> np.ndarray:
    # By torch: NumPy warns of values that become infinite.
    return np.ascontiguousarray(tensor.float().cpu().numpy())


def _import_backend(module: str, extra: str):
    try:
        return __import__(module)
    except ImportError as error:
        raise ImportError(
            f"algorithm={extra!r} needs a package that is not installed: "
            f"pip install 'skpatchcore[{extra}]'."
        ) from error
