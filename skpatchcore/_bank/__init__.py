"""The memory bank: an outlier detector on patch features.

`PatchMemoryBank` composes a sampler and a neighbour index, filters outliers from the
training patches, and scores training and new samples.
"""

from skpatchcore._bank._memory_bank import AUTO_CONTAMINATION, PatchMemoryBank

__all__ = ["AUTO_CONTAMINATION", "PatchMemoryBank"]
