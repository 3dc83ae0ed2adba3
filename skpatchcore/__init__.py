"""PatchCore visual anomaly detection as scikit-learn estimators.

Fit a detector on images of good parts only. For a new image it returns a score, a
decision, an anomaly map (heat map) that shows where the defect is, and the normal
patches it was compared with.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skpatchcore._bank import PatchMemoryBank
    from skpatchcore._coreset import CoresetSampler
    from skpatchcore._detectors import PatchCoreDetector, PatchCoreEnsemble
    from skpatchcore._features import PatchFeatureTransformer
    from skpatchcore._utils import BoundedMemory

__version__ = "0.1.0.dev0"

__all__ = [
    "BoundedMemory",
    "CoresetSampler",
    "PatchCoreDetector",
    "PatchCoreEnsemble",
    "PatchFeatureTransformer",
    "PatchMemoryBank",
    "__version__",
]

# Imported at first use: importing torch takes seconds, and ``skpatchcore --help`` does
# not need it.
_MODULES = {
    "BoundedMemory": "skpatchcore._utils._cache",
    "CoresetSampler": "skpatchcore._coreset._sampler",
    "PatchCoreDetector": "skpatchcore._detectors._detector",
    "PatchCoreEnsemble": "skpatchcore._detectors._ensemble",
    "PatchFeatureTransformer": "skpatchcore._features._transformer",
    "PatchMemoryBank": "skpatchcore._bank._memory_bank",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
