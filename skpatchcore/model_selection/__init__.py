"""Cross-validation for detectors that learn from normal samples only.

The splitters keep anomalies out of training folds, and test on held-out normal samples
and anomalies. They work wherever scikit-learn accepts ``cv``.
"""

from skpatchcore.model_selection._one_class import OneClassKFold

__all__ = ["OneClassKFold"]
