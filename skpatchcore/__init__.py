"""PatchCore visual anomaly detection as scikit-learn estimators.

Fit on pictures of good parts only; get, for a new picture, a score, a decision, a map
of where the defect is, and the normal patches it was compared with.
"""

from skpatchcore._coreset import CoresetSampler
from skpatchcore._detector import PatchCoreDetector
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._memory_bank import PatchMemoryBank

__version__ = "0.1.0.dev0"

__all__ = [
    "CoresetSampler",
    "PatchCoreDetector",
    "PatchFeatureTransformer",
    "PatchMemoryBank",
    "__version__",
]
