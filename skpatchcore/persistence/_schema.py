"""The parameters and fitted attributes of each class that a model file may hold.

A parameter that is not listed here is neither written nor read, so a file cannot name a
path, a device, a cache or a function. Ranges are those of the constructors, but limited
where a larger number would only exhaust memory or time.
"""

from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import get_scorer_names
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    LeaveOneOut,
    StratifiedGroupKFold,
    StratifiedKFold,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection
from torch import nn

from skpatchcore._backbones import WeightsNotStored
from skpatchcore._bank import PatchMemoryBank
from skpatchcore._coreset import CoresetSampler
from skpatchcore._detectors import PatchCoreDetector, PatchCoreEnsemble
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._images import AUGMENTATIONS
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.model_selection import OneClassKFold
from skpatchcore.persistence._values import (
    LARGEST,
    Array,
    Choice,
    Flag,
    Instance,
    Items,
    Kind,
    Names,
    Null,
    Number,
    Row,
    Text,
    Whole,
    in_short,
)

#: Parameters that belong to a machine or a session, not to a model.
LEFT_OUT = {"memory", "device", "engine", "transform_input", "verbose"}
DETECTORS = (
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchMemoryBank,
    ConformalDetector,
    TunedThresholdDetector,
)
SPLITTERS = (
    *(KFold, LeaveOneOut, StratifiedKFold, OneClassKFold),
    *(GroupKFold, LeaveOneGroupOut, StratifiedGroupKFold),
)
PROJECTIONS = (
    *(GaussianRandomProjection, SparseRandomProjection),
    *(PCA, IncrementalPCA, TruncatedSVD),
    *(Normalizer, StandardScaler, Pipeline),
)

#: The squares of features up to this value fit into float32.
LARGEST_FEATURE = 1e18
# Most pixels of a side or positions of a grid, and features of a patch. No detector
# comes near.
_SIDE, _WIDTH = 2**16, 2**20
# A wider Gaussian takes seconds per map, and a larger window gigabytes per layer.
_MAX_SMOOTHING, _MAX_WINDOW = 2**10, 2**10 - 1

_NONE, _FLAG, _NAMES = Null(), Flag(), Names()
_COUNT = Whole(1, 2**31 - 1)
_ANY_COUNT = Whole(0, 2**53)
_FEATURES = Whole(1, _WIDTH)
_SEED = Whole(0, 2**31 - 2)
_RANDOM_STATE = _NONE | Whole(0, 2**32 - 1)
_FLOAT = Number(-LARGEST, LARGEST, fraction=True)
_NOT_NEGATIVE = Number(0, LARGEST)
_SHARE = Number(0, 1, "low, high")
_PART_OF_ROWS = Number(0, 1, "low", fraction=True) | _COUNT
_SIDES = _NONE | Whole(1, _SIDE) | Items(Whole(1, _SIDE), 2, 2)
_GRID = Row(Whole(1, _SIDE), Whole(1, _SIDE))
_LAYER = Text("the name of a layer") | Whole(-(2**10), 2**10)
_MEMBER = Text("the name of a member")
# timm accepts "hf-hub:..." and "local-dir:..." as places to load code and weights from.
# The names in its own registry are words, with a tag after a dot.
_BACKBONE = Text(
    "a model name of timm's registry", r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", 100
)
_WEIGHTS = _NONE | Choice("random") | Instance(WeightsNotStored)


def _integers(ndim: int, low: int = 0, dtype: str = "int64") -> Array:
    return Array((dtype,), ndim, low, 2**62)


def _floats(
    ndim: int, *, low: float = -LARGEST, dtypes=("float64",), gaps=False
) -> Array:
    return Array(dtypes, ndim, low, LARGEST, gaps)


def _learned(ndim: int, *, low: float = -LARGEST_FEATURE, sparse=False) -> Array:
    """Return the kind of an array that a projection has learned."""
    return Array(("float32", "float64"), ndim, low, LARGEST_FEATURE, sparse=sparse)


_INDICES = Items(Whole(0, 2**53), most=2**20) | Array(
    ("int32", "int64", "uint8", "bool"), 1, 0, 2**53
)
_CV = _NONE | _COUNT | Instance(*SPLITTERS) | Items(Row(_INDICES, _INDICES), 1)
_WRAPPED = Instance(*DETECTORS, FrozenEstimator)
_PROJECTION = Instance(*PROJECTIONS, FrozenEstimator)
_STEP = _NONE | Choice("passthrough") | _PROJECTION
_BANK_PARAMS: dict[str, Kind] = {
    "sampler": _NONE | Instance(CoresetSampler, FrozenEstimator),
    "n_neighbors": _COUNT,
    "metric": Choice("euclidean", "sqeuclidean", "cosine"),
    "algorithm": Choice("auto", "torch", "faiss", "pynndescent"),
    "reduction": Choice("max") | Number(0, 1, "low"),
    "reweight": _NONE | Whole(2, 2**31 - 1),
    "position_window": _NONE | Whole(1, _SIDE) | _GRID,
    "outlier_filter": _NONE | Choice("sample", "lof", "nearest", "gaussian"),
    "outlier_fraction": _SHARE,
    "contamination": Choice("auto") | Number(0, 0.5, "low"),
    "random_state": _RANDOM_STATE,
}
_FOLDS: dict[str, Kind] = {
    "n_splits": Whole(2, 2**31 - 1),
    "shuffle": _FLAG,
    "random_state": _RANDOM_STATE,
}
_RANDOM_PROJECTION: dict[str, Kind] = {
    "n_components": Choice("auto") | _FEATURES,
    "eps": Number(0, LARGEST, "low"),
    "compute_inverse_components": _FLAG,
    "random_state": _RANDOM_STATE,
}
_RANDOMIZED: dict[str, Kind] = {
    "n_oversamples": _COUNT,
    "power_iteration_normalizer": Choice("auto", "QR", "LU", "none"),
    "random_state": _RANDOM_STATE,
    "tol": _NOT_NEGATIVE,
}

#: Parameters by class, including scikit-learn's projections and splitters.
PARAMS: dict[type, dict[str, Kind]] = {
    PatchMemoryBank: _BANK_PARAMS,
    PatchCoreDetector: {
        **_BANK_PARAMS,
        "features": _NONE | Instance(PatchFeatureTransformer, FrozenEstimator),
        "augmentation": _NONE
        | Choice(*AUGMENTATIONS)
        | Items(Choice(*AUGMENTATIONS), most=64),
        "foreground": _NONE | Choice("auto"),
        "smoothing": Number(0, _MAX_SMOOTHING),
    },
    PatchFeatureTransformer: {
        "backbone": _BACKBONE | Instance(nn.Module, subclassed=True),
        "layers": Items(_LAYER, 1, 256) | Array(("int32", "int64"), 1, -1024, 1024),
        "weights": _WEIGHTS,
        "image_size": _SIDES,
        "crop_size": _SIDES,
        "patch_size": Whole(1, _MAX_WINDOW),
        "patch_stride": Whole(1, _SIDE),
        "descriptor": Choice("centered", "concat") | Whole(1, _SIDE),
        "layer_weights": _NONE
        | Choice("auto")
        | Items(Number(0, LARGEST_FEATURE, "low"), 1, 256)
        | Array(("int64", "float32", "float64"), 1, 0, LARGEST_FEATURE),
        "projection": _NONE | _FEATURES | _PROJECTION,
        "precision": Choice("auto", "float32", "bfloat16", "float16"),
        "batch_size": _COUNT,
        "output": Choice("map", "flat", "mean"),
        "random_state": _RANDOM_STATE,
    },
    CoresetSampler: {
        "fraction": _PART_OF_ROWS,
        "method": Choice("greedy", "random", "none"),
        "projection_dim": _NONE | _COUNT,
        "n_starts": _COUNT,
        "max_fraction": _NONE | _PART_OF_ROWS,
        "random_state": _RANDOM_STATE,
    },
    PatchCoreEnsemble: {
        "estimators": Items(
            Row(_MEMBER, Choice("drop") | Instance(PatchCoreDetector)), 1, types=(list,)
        ),
        "cv": _CV,
        "contamination": _BANK_PARAMS["contamination"],
        "random_state": _RANDOM_STATE,
    },
    ConformalDetector: {
        "estimator": _WRAPPED,
        "alpha": _SHARE,
        "method": Choice("cross", "jackknife+", "split", "refit"),
        "cv": _CV,
        "calibration_size": Number(0, 1, "low, high", fraction=True) | _COUNT,
        "random_state": _RANDOM_STATE,
    },
    TunedThresholdDetector: {
        "estimator": _WRAPPED,
        "scoring": Choice(*get_scorer_names()),
        "cv": _CV,
    },
    FrozenEstimator: {
        "estimator": Instance(
            *(*DETECTORS, *PROJECTIONS, PatchFeatureTransformer, CoresetSampler),
            FrozenEstimator,
        )
    },
    GaussianRandomProjection: _RANDOM_PROJECTION,
    SparseRandomProjection: {
        **_RANDOM_PROJECTION,
        "density": Choice("auto") | Number(0, 1, "low"),
        "dense_output": _FLAG,
    },
    PCA: {
        **_RANDOMIZED,
        "n_components": _NONE
        | Choice("mle")
        | Whole(0, _WIDTH)
        | Number(0, 1, "low, high", fraction=True),
        "copy": _FLAG,
        "whiten": _FLAG,
        "svd_solver": Choice(
            *("auto", "full", "covariance_eigh", "arpack", "randomized")
        ),
        "iterated_power": Choice("auto") | Whole(0, 2**31 - 1),
    },
    IncrementalPCA: {
        "n_components": _NONE | _FEATURES,
        "whiten": _FLAG,
        "copy": _FLAG,
        "batch_size": _NONE | _COUNT,
    },
    TruncatedSVD: {
        **_RANDOMIZED,
        "n_components": _FEATURES,
        "algorithm": Choice("arpack", "randomized"),
        "n_iter": Whole(0, 2**31 - 1),
    },
    StandardScaler: {"copy": _FLAG, "with_mean": _FLAG, "with_std": _FLAG},
    Normalizer: {"norm": Choice("l1", "l2", "max"), "copy": _FLAG},
    Pipeline: {
        "steps": Items(
            Row(Text("the name of a step"), _STEP), 1, 64, types=(list, tuple)
        ),
    },
    KFold: _FOLDS,
    StratifiedKFold: _FOLDS,
    LeaveOneOut: {},
    LeaveOneGroupOut: {},
    GroupKFold: _FOLDS,
    StratifiedGroupKFold: _FOLDS,
    OneClassKFold: {**_FOLDS, "outliers": Choice("all", "split")},
}

_SVD_ATTRIBUTES: dict[str, Kind] = {
    "explained_variance_ratio_": _learned(1),
    "singular_values_": _learned(1),
    "n_components_": Whole(0, _WIDTH),
    "n_samples_": _ANY_COUNT,
    "noise_variance_": _NOT_NEGATIVE,
    "_fit_svd_solver": Choice("full", "covariance_eigh", "arpack", "randomized"),
    # A float if scikit-learn counts weighted rows.
    "n_samples_seen_": _ANY_COUNT | Number(0, 2**53) | _integers(1),
    "batch_size_": _COUNT,
    "var_": _learned(1, low=0),
}
_THRESHOLDS: dict[str, Kind] = {"offset_": _FLOAT, "map_threshold_": _FLOAT}

#: Attributes that a fitted estimator must have, in addition to its parameters.
FITTED: dict[type, dict[str, Kind]] = {
    ConformalDetector: {
        "calibration_scores_": _floats(1),
        "calibration_indices_": _integers(1),
        "calibration_folds_": _integers(1),
        "alpha_": _SHARE,
        "offset_": _FLOAT,
        "min_alpha_": Number(0, 1, "low", fraction=True),
        "_training_rows": _integers(1),
        "_training_folds": _integers(1),
    },
    TunedThresholdDetector: {
        "offset_": _FLOAT,
        "best_score_": _FLOAT,
        "_training_rows": _NONE | _integers(1),
    },
    FrozenEstimator: {},
    PatchCoreEnsemble: {
        **_THRESHOLDS,
        "estimators_": Items(Instance(PatchCoreDetector), 1, types=(list,)),
        "score_weights_": _floats(1, low=0),
        "map_weights_": _floats(1, low=0),
        "held_out_scores_": _floats(1),
        "training_scores_": _floats(1),
        "training_indices_": _integers(1),
        "_member_names": Items(_MEMBER, 1, types=(list,)),
    },
    PatchCoreDetector: {
        **_THRESHOLDS,
        "memory_bank_": Instance(PatchMemoryBank),
        "training_indices_": _integers(1),
        "_training_shapes": Array(("int64",), 2, 1, _SIDE),
        "training_scores_": _floats(1),
        "foreground_": _NONE | Row(_floats(1, dtypes=("float32",)), _FLOAT),
        "_augmentation": PARAMS[PatchCoreDetector]["augmentation"],
        "_training_aspects": _floats(1, low=0),
        "_color_cast": _floats(1),
    },
    PatchFeatureTransformer: {
        "layer_weights_": Items(
            Number(0, LARGEST_FEATURE, "low"), 1, 256, types=(tuple,)
        ),
        "projection_": _NONE | _PROJECTION,
        "n_patch_features_": _FEATURES,
        "grid_shape_": _GRID,
        "_seed": _SEED,
    },
    PatchMemoryBank: {
        "sampler_": Instance(CoresetSampler),
        "bank_": _floats(2, dtypes=("float32", "float64")),
        "bank_indices_": _integers(1),
        "training_scores_": _floats(1),
        "offset_": _FLOAT,
        "patch_threshold_": _FLOAT,
        "n_features_in_": _FEATURES,
        "_index_seed": _SEED,
        "_training_sketches": _floats(2),
    },
    CoresetSampler: {
        "sample_indices_": _integers(1),
        # Unknown for single picks if every row was kept.
        "radii_": _floats(1, low=0, gaps=True),
        "n_features_in_": _FEATURES,
    },
    GaussianRandomProjection: {"components_": _learned(2), "n_features_in_": _FEATURES},
    SparseRandomProjection: {
        "components_": _learned(2, sparse=True),
        "n_features_in_": _FEATURES,
    },
    **{
        cls: {
            "components_": _learned(2),
            "explained_variance_": _learned(1, low=0),
            "mean_": _learned(1),
            "n_features_in_": _FEATURES,
        }
        for cls in (PCA, IncrementalPCA)
    },
    TruncatedSVD: {"components_": _learned(2), "n_features_in_": _FEATURES},
    StandardScaler: {
        "mean_": _NONE | _learned(1),
        "scale_": _NONE | _learned(1, low=0),
        "n_features_in_": _FEATURES,
    },
    Normalizer: {"n_features_in_": _FEATURES},
    Pipeline: {},
}
#: Attributes that a fitted estimator may also have.
OPTIONAL: dict[type, dict[str, Kind]] = {
    ConformalDetector: {
        "estimators_": Items(_WRAPPED, 1, types=(list,)),
        "map_threshold_": _FLOAT,
        "_calibration_peaks": _floats(1),
        "calibration_groups_": _integers(1),
        "calibration_splits_": _integers(1),
        "n_features_in_": _FEATURES,
        "feature_names_in_": _NAMES,
    },
    TunedThresholdDetector: {
        "estimator_": _WRAPPED,
        "tuning_scores_": _floats(1),
        "n_features_in_": _FEATURES,
        "feature_names_in_": _NAMES,
    },
    # Only features that were fitted by themselves have a cast of their own.
    PatchFeatureTransformer: {"_color_cast": _floats(1)},
    # Missing for frozen features, which are stored as the parameter.
    PatchCoreDetector: {"features_": Instance(PatchFeatureTransformer)},
    PatchMemoryBank: {
        "feature_names_in_": _NAMES,
        "outlier_indices_": _integers(1),
        "position_grid_": _GRID,
        "_bank_positions": Array(("int32",), 2, 0, 2**31 - 1),
    },
    CoresetSampler: {"feature_names_in_": _NAMES},
    **{
        cls: {
            "n_components_": _FEATURES,
            "_n_features_out": _FEATURES,
            "density_": Number(0, 1, "low"),
            "inverse_components_": _learned(2),
        }
        for cls in (GaussianRandomProjection, SparseRandomProjection)
    },
    **dict.fromkeys((PCA, IncrementalPCA), _SVD_ATTRIBUTES),
    TruncatedSVD: {"explained_variance_": _learned(1, low=0), **_SVD_ATTRIBUTES},
    StandardScaler: {
        "var_": _NONE | _learned(1, low=0),
        "n_samples_seen_": _SVD_ATTRIBUTES["n_samples_seen_"],
    },
}
ESTIMATORS = {cls.__name__: cls for cls in FITTED}


def check_values(cls: type, values: dict, kinds: dict[str, Kind]) -> None:
    """Raise a ValueError unless all values of an object are of their kinds."""
    for name, value in values.items():
        if not kinds[name].accepts(value):
            raise ValueError(
                f"{name} of {cls.__name__} must be {kinds[name]}, got "
                f"{in_short(value)}."
            )
