"""From images to patch features.

This folder passes images through a backbone in batches of limited memory, aggregates
neighbourhoods of feature maps, and aligns, weights, concatenates and projects layers.
"""

from skpatchcore._features._descriptors import describe
from skpatchcore._features._parameters import check_sizes
from skpatchcore._features._protocol import PatchFeatures, check_features, thaw
from skpatchcore._features._transformer import PatchFeatureTransformer

__all__ = [
    "PatchFeatureTransformer",
    "PatchFeatures",
    "check_features",
    "check_sizes",
    "describe",
    "thaw",
]
