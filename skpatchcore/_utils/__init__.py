"""Helpers that know nothing of images, networks or detectors.

Caching, devices, threads, labels, parameters of nested estimators, and files written
atomically. Every other folder may import from here; this one imports from none.
"""

from skpatchcore._utils._atomic import atomic_write, check_writable, move_into_place
from skpatchcore._utils._cache import (
    MEMORY_CONSTRAINT,
    BoundedMemory,
    Cache,
    check_cache,
    content_key,
)
from skpatchcore._utils._cache_entry import are_rows, is_array
from skpatchcore._utils._device import choose_dtype, resolve_device
from skpatchcore._utils._file_locks import file_lock
from skpatchcore._utils._fractions import (
    ceil_fraction,
    floor_fraction,
    lower_quantile,
    upper_quantile,
)
from skpatchcore._utils._groups import (
    encode_groups,
    groups_by_pattern,
    groups_from_list,
)
from skpatchcore._utils._labels import (
    check_outlier_labels,
    labels_from_decision,
    learnable_rows,
    normal_rows,
)
from skpatchcore._utils._locks import fork_safe_lock
from skpatchcore._utils._params import inherit_params, unchanged_on_error, with_defaults
from skpatchcore._utils._patches import (
    Samples,
    argmax_patches,
    draw_evenly,
    reduce_patches,
)
from skpatchcore._utils._read_ahead import read_ahead
from skpatchcore._utils._scores import check_scores, normality
from skpatchcore._utils._threads import map_threads, shares
from skpatchcore._utils._torch_state import own_torch_state

__all__ = [
    "are_rows",
    "argmax_patches",
    "atomic_write",
    "BoundedMemory",
    "Cache",
    "ceil_fraction",
    "check_cache",
    "check_outlier_labels",
    "check_scores",
    "check_writable",
    "choose_dtype",
    "content_key",
    "draw_evenly",
    "encode_groups",
    "file_lock",
    "floor_fraction",
    "fork_safe_lock",
    "groups_by_pattern",
    "groups_from_list",
    "inherit_params",
    "is_array",
    "labels_from_decision",
    "learnable_rows",
    "lower_quantile",
    "map_threads",
    "MEMORY_CONSTRAINT",
    "move_into_place",
    "normal_rows",
    "normality",
    "own_torch_state",
    "read_ahead",
    "reduce_patches",
    "resolve_device",
    "Samples",
    "shares",
    "unchanged_on_error",
    "upper_quantile",
    "with_defaults",
]
