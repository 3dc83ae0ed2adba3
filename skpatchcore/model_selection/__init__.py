"""Cross-validation when only one class is learned."""

from skpatchcore.model_selection._one_class import OneClassKFold

__all__ = ["OneClassKFold"]
