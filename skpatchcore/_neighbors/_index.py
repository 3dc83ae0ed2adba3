"""Exact and approximate k-nearest-neighbour indexes with one small interface."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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

# Candidates in addition to the requested neighbours. A backend returns candidates by
# rounded distances; with a few more of them, the true neighbours are rarely missing.
_SPARE_CANDIDATES = 8
# Elements of queries that are moved to the device at a time: 64 MB in float32.
_CHUNK_ELEMENTS = 2**24


class NeighborIndex(ABC):
    """Euclidean nearest neighbours of queries among the rows of a bank.

    With every backend, distances are computed directly as differences in float64. So
    they depend neither on the rounding of the backend nor on the other queries of a
    batch.

    Parameters
    ----------
    bank : ndarray of shape (m, d), float32 or float64
    device : str, torch.device or None
    random_state : int
        Seed of approximate backends.
    """

    exact = True

    @own_torch_state()
    def __init__(
        self,
        bank: NDArray,
        *,
        device: str | torch.device | None = None,
        random_state: int = 0,
    ) -> None:
        self.bank = bank
        self.device = resolve_device(device)
        self.random_state = random_state
        self._bank = as_tensor(with_safe_squares(bank)).to(self.device)
        self._search = ProjectedSearch(self._bank)
        self._build()

    @cached_property
    def fingerprint(self) -> str:
        """Key of everything but the queries that an exact search depends on."""
        return bank_fingerprint(self.bank, self.device)

    @own_torch_state()
    def query(
        self, queries: NDArray, k: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return squared distances (n, k), ascending, and bank rows (n, k).

        Rows at equal distance are in ascending order.

        Raises
        ------
        ValueError
            If squared distances overflow.
        """
        step = max(1, _CHUNK_ELEMENTS // self.bank.shape[1])
        pairs = [
            self._query_chunk(as_tensor(queries[i : i + step]).to(self._bank), k)
            for i in range(0, len(queries), step)
        ]
        squared, rows = (
            torch.cat(parts).cpu().numpy() for parts in zip(*pairs, strict=True)
        )
        check_finite(squared, queries)
        return squared, rows

    def _build(self) -> None:  # noqa: B027
        """Prepare the backend; override it if that is necessary."""

    @abstractmethod
    def _query_chunk(
        self, queries: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the result of `query` as tensors."""


class TorchIndex(NeighborIndex):
    """Exact search by matrix products, on the CPU or a GPU."""

    def _query_chunk(
        self, queries: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._search.query(queries, k)


class CandidateIndex(NeighborIndex):
    """A backend that returns candidates, and a lower bound for all other rows.

    If the bound does not prove that the candidates include the nearest rows, the exact
    search answers the query. It answers all queries if the bank is outside the range of
    float32, the dtype of the backends.
    """

    def _build(self) -> None:
        self._in_range = fits_float32(self.bank)
        if self._in_range:
            self._build_backend()

    def _build_backend(self) -> None:
        """Prepare the backend; override it if that is necessary."""

    def _query_chunk(
        self, queries: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n_candidates = min(len(self.bank), k + _SPARE_CANDIDATES)
        if n_candidates == len(self.bank) or not self._in_range:
            return self._search.query(queries, k)
        candidates, bound = self._candidates(queries, n_candidates)
        squared, indices = self._nearest_of(queries, candidates, k)
        # Negated, because another row may tie with the bound, and NaN (overflow) proves
        # nothing.
        doubtful = (~(squared[:, -1] < bound)).nonzero()[:, 0]
        if len(doubtful):
            found = self._search.query(queries[doubtful], k)
            squared[doubtful], indices[doubtful] = found
        return squared, indices

    def _nearest_of(
        self, queries: torch.Tensor, candidates: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
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
    def _candidates(
        self, queries: torch.Tensor, n_candidates: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return candidate rows (n, c) and a bound (n,) for all other rows.

        The squared distance of a query to a row that is not among its candidates is at
        least the bound.
        """


class FaissIndex(CandidateIndex):
    """Flat search of faiss, on a CPU, or on a GPU if faiss-gpu is installed."""

    def _build_backend(self) -> None:
        faiss = _import_backend("faiss", "faiss")
        self._flat = faiss.IndexFlatL2(self.bank.shape[1])
        if self.device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
            self._resources = faiss.StandardGpuResources()
            self._flat = faiss.index_cpu_to_gpu(
                self._resources, self.device.index or 0, self._flat
            )
        # Rounding errors are smallest around the mean; distances do not change.
        self._center = self._bank.mean(dim=0)
        centered = self._bank - self._center
        self._largest = centered.double().square().sum(dim=1).max().sqrt()
        self._flat.add(_as_float32(centered))

    def _candidates(
        self, queries: torch.Tensor, n_candidates: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        centered = queries - self._center
        values, candidates = self._flat.search(_as_float32(centered), n_candidates)
        nearest_outside = torch.from_numpy(values[:, -1]).double().to(self.device)
        reach = centered.double().square().sum(dim=1).sqrt() + self._largest
        error = rounding_error(self.bank.shape[1], torch.float32, reach)
        return torch.from_numpy(candidates).to(self.device), nearest_outside - error


class PyNNDescentIndex(CandidateIndex):
    """Approximate search on a nearest-neighbour graph, for very large banks."""

    exact = False
    # With fewer rows PyNNDescent builds no useful graph, so all rows are searched.
    _MIN_ROWS = 64

    def _build_backend(self) -> None:
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

    def _candidates(
        self, queries: torch.Tensor, n_candidates: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        bound = torch.full((len(queries),), torch.inf, dtype=torch.float64)
        # Without a proven bound all rows are searched, so any distinct rows will do.
        anything = torch.arange(n_candidates).expand(len(queries), -1)
        if self._graph is None:
            return anything.to(self.device), -bound.to(self.device)
        rows, _ = self._graph.query(_as_float32(queries), k=n_candidates)
        candidates = torch.from_numpy(rows.astype(np.int64))
        # A graph with several components may return fewer rows, padded with -1.
        incomplete = (candidates < 0).any(dim=1)
        bound[incomplete] = -torch.inf
        candidates = torch.where(incomplete[:, None], anything, candidates)
        return candidates.to(self.device), bound.to(self.device)


def build_index(
    bank: NDArray,
    *,
    algorithm: str = "auto",
    device: str | torch.device | None = None,
    random_state: int = 0,
) -> NeighborIndex:
    """Return an index over the rows of `bank`; "auto" is exact search in torch."""
    backends: dict[str, Callable[..., NeighborIndex]] = {
        "auto": TorchIndex,
        "torch": TorchIndex,
        "faiss": FaissIndex,
        "pynndescent": PyNNDescentIndex,
    }
    return backends[algorithm](bank, device=device, random_state=random_state)


def bank_fingerprint(bank: NDArray, device: torch.device) -> str:
    """Return a key of everything that exact neighbours in `bank` depend on."""
    return content_key(device.type, torch.__version__, bank)


def squared_to_metric(squared: NDArray, metric: str) -> NDArray:
    """Convert squared Euclidean distances to distances of `metric`.

    For "cosine" the vectors have unit length, so 1 - cos = |a - b|^2 / 2.
    """
    if metric == "sqeuclidean":
        return squared
    return squared / 2 if metric == "cosine" else np.sqrt(squared)


def _as_float32(tensor: torch.Tensor) -> NDArray[np.float32]:
    # Converted by torch, because NumPy warns about values that become infinite.
    return np.ascontiguousarray(tensor.float().cpu().numpy())


def _import_backend(module: str, extra: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise ImportError(
            f"algorithm={extra!r} needs a package that is not installed. Install it "
            f"with: pip install 'skpatchcore[{extra}]'."
        ) from error
