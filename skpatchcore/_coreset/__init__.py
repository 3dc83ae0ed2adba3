"""The k-centre greedy selection of patches for a memory bank.

`CoresetSampler` is the estimator; the other modules make its selection exact and fast.
"""

from skpatchcore._coreset._sampler import CoresetSampler

__all__ = ["CoresetSampler"]
