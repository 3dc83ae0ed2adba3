"""Exact and approximate nearest-neighbour search.

`build_index` returns one of several backends behind the interface `NeighborIndex`;
also distances with bounds on their rounding errors, and search by grid position.
"""

from skpatchcore._neighbors._cached import query_once
from skpatchcore._neighbors._distances import (
    as_tensor,
    length_margin,
    paired_distances,
    rounding_error,
    rows_at_once,
    squared_distances,
)
from skpatchcore._neighbors._index import NeighborIndex, build_index, squared_to_metric
from skpatchcore._neighbors._magnitude import (
    check_squares,
    unit_rows,
    with_safe_squares,
)
from skpatchcore._neighbors._windowed import (
    PositionSearch,
    check_window,
    covered_cells,
    reference_cells,
)

__all__ = [
    "NeighborIndex",
    "PositionSearch",
    "as_tensor",
    "build_index",
    "check_squares",
    "check_window",
    "covered_cells",
    "length_margin",
    "paired_distances",
    "query_once",
    "reference_cells",
    "rounding_error",
    "rows_at_once",
    "squared_distances",
    "squared_to_metric",
    "unit_rows",
    "with_safe_squares",
]
