"""Detect anomalies by the distance of patch features to a bank of normal patches.

`PatchMemoryBank` is the estimator: it selects the bank with a sampler, searches it with
a neighbour index, and scores samples. `_outliers` filters training patches, `_search`
computes distances and scores, and `_training_scores` scores the training samples by
searching for only a few of their patches. `_support` says how much each row of the bank
counts for a training sample, so that what a sample alone added does not count, and
`_recognition` finds out whether a sample to score is one of the training samples.
"""

from skpatchcore._bank._memory_bank import AUTO_CONTAMINATION, PatchMemoryBank
from skpatchcore._bank._recognition import SAME_IMAGE

__all__ = ["AUTO_CONTAMINATION", "SAME_IMAGE", "PatchMemoryBank"]
