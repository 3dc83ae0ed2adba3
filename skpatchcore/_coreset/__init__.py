"""Select a small set of patches that covers all others well.

`CoresetSampler` is the estimator. The other modules implement the k-centre greedy
selection so that it is both exact and fast: `_greedy` selects in blocks, `_cover`
keeps the distance of each row to its nearest selected row, and `_clusters` rules out
most comparisons by the triangle inequality.
"""

from skpatchcore._coreset._sampler import CoresetSampler

__all__ = ["CoresetSampler"]
