"""Find nearest neighbours, exactly or approximately.

`build_index` returns one of several backends with the interface `NeighborIndex`, and
`PositionSearch` restricts a search to a window of grid positions. The folder also
provides distances with proven bounds of their rounding errors.
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
    covered_positions,
    reference_positions,
)

__all__ = [
    "NeighborIndex",
    "PositionSearch",
    "as_tensor",
    "build_index",
    "check_squares",
    "check_window",
    "covered_positions",
    "length_margin",
    "paired_distances",
    "query_once",
    "reference_positions",
    "rounding_error",
    "rows_at_once",
    "squared_distances",
    "squared_to_metric",
    "unit_rows",
    "with_safe_squares",
]
