"""Exact and approximate k-nearest-neighbour indexes behind one small interface."""

from abc import ABC, abstractmethod
from contextlib import contextmanager

import numpy as np
import torch

from skpatchcore._backbone import resolve_device

# More candidates than neighbours asked for, so that rounding in the fast product rarely
# decides which ones are recomputed exactly.
_SPARE_CANDIDATES = 8
# Elements of a temporary matrix: 64 MB in float32.
_CHUNK_ELEMENTS = 2**24


class NeighborIndex(ABC):
    """Euclidean nearest neighbours of queries among the rows of a bank.

    A backend proposes candidates; distances are always recomputed here, directly as
    differences in float64, so they depend neither on the backend's rounding nor on the
    other queries of a batch.

    Parameters
    ----------
    bank : ndarray of shape (m, d), float32 or float64
    device : str, torch.device or None
    random_state : int
        For backends that draw.
    """

    def __init__(self, bank: np.ndarray, *, device=None, random_state: int = 0):
        self.bank = bank
        self.device = resolve_device(device)
        self.random_state = random_state
        self._bank = torch.from_numpy(np.ascontiguousarray(bank)).to(self.device)
        self._build()

    def query(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return squared distances (n, k), ascending, and bank rows (n, k).

        Equal distances come in the order of their rows.
        """
        rows = max(1, _CHUNK_ELEMENTS // len(self.bank))
        pairs = [
            self._query_chunk(queries[start : start + rows], k)
            for start in range(0, len(queries), rows)
        ]
        squared, indices = zip(*pairs, strict=True)
        return np.concatenate(squared), np.concatenate(indices)

    def _query_chunk(self, queries, k):
        queries = torch.from_numpy(np.ascontiguousarray(queries)).to(self.device)
        n_candidates = min(len(self.bank), k + _SPARE_CANDIDATES)
        candidates, bound = self._candidates(queries, n_candidates)
        squared, indices = _nearest_of(queries, self._bank, candidates, k)
        doubtful = (squared[:, -1] > bound).nonzero()[:, 0]
        if len(doubtful):
            candidates = _double_candidates(queries[doubtful], self._bank, n_candidates)
            squared[doubtful], indices[doubtful] = _nearest_of(
                queries[doubtful], self._bank, candidates, k
            )
        return squared.cpu().numpy(), indices.cpu().numpy()

    def _build(self) -> None:
        """Prepare the search; overridden where there is something to prepare."""

    @abstractmethod
    def _candidates(self, queries: torch.Tensor, n_candidates: int):
        """Return candidate rows (n, c) and a lower bound (n,).

        No row outside a query's candidates is nearer than the square root of its bound.
        """


class TorchIndex(NeighborIndex):
    """Exact search by a matrix product on vectors centred at the bank's mean."""

    def _build(self):
        self._center = self._bank.mean(dim=0)
        self._centered = self._bank - self._center
        norms = self._centered.double().square().sum(dim=1)
        self._norms = norms.to(self._bank.dtype)
        self._largest_norm = norms.max().sqrt()

    def _candidates(self, queries, n_candidates):
        centered = queries - self._center
        with _full_precision():
            partial = torch.addmm(self._norms, centered, self._centered.T, alpha=-2)
        values, candidates = partial.topk(n_candidates, dim=1, largest=False)
        if n_candidates == len(self.bank):
            return candidates, torch.full_like(values[:, 0].double(), torch.inf)
        norm = centered.double().square().sum(dim=1).sqrt()
        nearest_outside = values[:, -1].double() + norm.square()
        return candidates, nearest_outside - self._rounding_error(norm)

    def _rounding_error(self, norm: torch.Tensor) -> torch.Tensor:
        """Bound the error of a squared distance from the product.

        With unit roundoff u and centred q, b of length d, the dot product errs by at
        most d u |q||b| / (1 - d u) (Higham, Accuracy and Stability of Numerical
        Algorithms, 2nd ed., eq. 3.5); centring, norms and the sum add a few u (|q| +
        |b|)^2. Twice the sum of both is (d + 8) u (|q| + |b|)^2 with room to spare.
        """
        unit_roundoff = torch.finfo(self._bank.dtype).eps / 2
        d = self._bank.shape[1]
        return 2 * (d + 8) * unit_roundoff * (norm + self._largest_norm).square()


class FaissIndex(NeighborIndex):
    """Flat search of faiss, on CPU, or on GPU where faiss-gpu and a device are there."""

    def _build(self):
        faiss = _import_backend("faiss", "faiss")
        self._center = self.bank.mean(axis=0)
        self._flat = faiss.IndexFlatL2(self.bank.shape[1])
        if self.device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
            self._resources = faiss.StandardGpuResources()
            self._flat = faiss.index_cpu_to_gpu(
                self._resources, self.device.index or 0, self._flat
            )
        self._flat.add(np.ascontiguousarray(self.bank - self._center, dtype=np.float32))

    def _candidates(self, queries, n_candidates):
        centered = queries.cpu().numpy() - self._center
        _, candidates = self._flat.search(
            np.ascontiguousarray(centered, dtype=np.float32), n_candidates
        )
        return _uncertified(candidates, self.device)


class PyNNDescentIndex(NeighborIndex):
    """Approximate search on a nearest-neighbour graph, for very large banks."""

    # Below this many rows PyNNDescent's own trees are no graph; every row is a candidate.
    _MIN_ROWS = 64

    def _build(self):
        pynndescent = _import_backend("pynndescent", "pynndescent")
        self._graph = None
        if len(self.bank) >= self._MIN_ROWS:
            self._graph = pynndescent.NNDescent(
                self.bank.astype(np.float32, copy=False),
                metric="euclidean",
                n_neighbors=min(30, len(self.bank) - 1),
                random_state=self.random_state,
            )
            self._graph.prepare()

    def _candidates(self, queries, n_candidates):
        if self._graph is None or n_candidates == len(self.bank):
            rows = np.broadcast_to(
                np.arange(len(self.bank)), (len(queries), len(self.bank))
            )
            return _uncertified(rows, self.device)
        candidates, _ = self._graph.query(
            queries.cpu().numpy().astype(np.float32, copy=False), k=n_candidates
        )
        return _uncertified(candidates, self.device)


def build_index(bank, *, algorithm="auto", device=None, random_state=0) -> NeighborIndex:
    """Return an index over the rows of `bank`; "auto" is exact search in torch."""
    backends = {
        "auto": TorchIndex,
        "torch": TorchIndex,
        "faiss": FaissIndex,
        "pynndescent": PyNNDescentIndex,
    }
    return backends[algorithm](bank, device=device, random_state=random_state)


def squared_to_metric(squared: np.ndarray, metric: str) -> np.ndarray:
    """Turn squared Euclidean distances into those of `metric`.

    For "cosine" the vectors are of unit length, where 1 - cos = |a - b|^2 / 2.
    """
    if metric == "sqeuclidean":
        return squared
    return squared / 2 if metric == "cosine" else np.sqrt(squared)


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances (n, c) of rows a (n, d) to their own b (n, c, d), in float64."""
    return (b.double() - a.double()[:, None]).square_().sum(dim=-1)


def _nearest_of(queries, bank, candidates, k):
    """Return exact squared distances and rows of the `k` nearest candidates."""
    candidates = candidates.sort(dim=1).values
    rows = max(1, _CHUNK_ELEMENTS // 2 // (candidates.shape[1] * bank.shape[1]))
    squared = torch.cat(
        [
            squared_distances(q, bank[c])
            for q, c in zip(queries.split(rows), candidates.split(rows), strict=True)
        ]
    )
    squared, order = squared.sort(dim=1, stable=True)
    return squared[:, :k], candidates.gather(1, order[:, :k])


def _double_candidates(queries, bank, n_candidates) -> torch.Tensor:
    """Return candidates by a product in float64, for queries amid near-duplicates."""
    n_candidates = min(2 * n_candidates, len(bank))
    center = bank.double().mean(dim=0)
    centered, queries = bank.double() - center, queries.double() - center
    partial = torch.addmm(centered.square().sum(dim=1), queries, centered.T, alpha=-2)
    return partial.topk(n_candidates, dim=1, largest=False).indices


def _uncertified(candidates, device):
    candidates = torch.from_numpy(np.ascontiguousarray(candidates, dtype=np.int64))
    bound = torch.full((len(candidates),), torch.inf, dtype=torch.float64)
    return candidates.to(device), bound.to(device)


@contextmanager
def _full_precision():
    """Keep the process's choice of TF32 or bf16 products out of the error bound."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _import_backend(module: str, extra: str):
    try:
        return __import__(module)
    except ImportError as error:
        raise ImportError(
            f"algorithm={extra!r} needs a package that is not installed: "
            f"pip install 'skpatchcore[{extra}]'."
        ) from error
