"""General helpers that do not depend on images, networks or detectors.

They cover caching, devices, threads, labels and groups, parameters of nested
estimators, atomic file writing, and private names of scikit-learn. Every other folder
may import from here; this folder imports from no other one.
"""

from skpatchcore._utils._atomic import (
    GrowingFile,
    atomic_write,
    check_writable,
    is_special,
    move_into_place,
)
from skpatchcore._utils._cache import (
    MEMORY_CONSTRAINT,
    BoundedMemory,
    Cache,
    check_cache,
    content_key,
)
from skpatchcore._utils._cache_entry import are_rows, is_array
from skpatchcore._utils._compat import (
    BaseComposition,
    BaseSearchCV,
    HasMethods,
    Interval,
    RealNotInt,
    ScikitLearnScorer,
    StrOptions,
    available_if,
    check_method_params,
    fit_context,
    num_samples,
    safe_indexing,
    validate_params,
)
from skpatchcore._utils._decisions import DecisionMixin
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
    missing_name,
    normal_rows,
)
from skpatchcore._utils._locks import fork_safe_lock
from skpatchcore._utils._params import (
    FrozenParams,
    fitted_params,
    inherit_params,
    seed_unset,
    unchanged_on_error,
    with_defaults,
)
from skpatchcore._utils._patches import (
    Samples,
    argmax_patches,
    draw_evenly,
    reduce_patches,
)
from skpatchcore._utils._precision import full_precision
from skpatchcore._utils._read_ahead import read_ahead
from skpatchcore._utils._scores import check_scores, normality
from skpatchcore._utils._suggestions import did_you_mean
from skpatchcore._utils._tables import refuse_lazy, take_rows
from skpatchcore._utils._threads import map_threads, shares
from skpatchcore._utils._torch_state import onnx_log_disabled, own_torch_state
from skpatchcore._utils._warnings import warn_user

__all__ = [
    "MEMORY_CONSTRAINT",
    "BaseComposition",
    "BaseSearchCV",
    "BoundedMemory",
    "Cache",
    "DecisionMixin",
    "FrozenParams",
    "GrowingFile",
    "HasMethods",
    "Interval",
    "RealNotInt",
    "Samples",
    "ScikitLearnScorer",
    "StrOptions",
    "are_rows",
    "argmax_patches",
    "atomic_write",
    "available_if",
    "ceil_fraction",
    "check_cache",
    "check_method_params",
    "check_outlier_labels",
    "check_scores",
    "check_writable",
    "choose_dtype",
    "content_key",
    "did_you_mean",
    "draw_evenly",
    "encode_groups",
    "file_lock",
    "fit_context",
    "fitted_params",
    "floor_fraction",
    "fork_safe_lock",
    "full_precision",
    "groups_by_pattern",
    "groups_from_list",
    "inherit_params",
    "is_array",
    "is_special",
    "lower_quantile",
    "map_threads",
    "missing_name",
    "move_into_place",
    "normal_rows",
    "normality",
    "num_samples",
    "onnx_log_disabled",
    "own_torch_state",
    "read_ahead",
    "reduce_patches",
    "refuse_lazy",
    "resolve_device",
    "safe_indexing",
    "seed_unset",
    "shares",
    "take_rows",
    "unchanged_on_error",
    "upper_quantile",
    "validate_params",
    "warn_user",
    "with_defaults",
]
