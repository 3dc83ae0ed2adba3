"""From images to patch features.

Passes images through a backbone in batches bounded by memory, aggregates neighbourhoods
of the feature maps, and aligns, weights, concatenates and projects the layers.
"""

from skpatchcore._features._descriptors import describe
from skpatchcore._features._protocol import PatchFeatures, check_features, thaw
from skpatchcore._features._transformer import PatchFeatureTransformer, check_sizes

__all__ = [
    "PatchFeatureTransformer",
    "PatchFeatures",
    "check_features",
    "check_sizes",
    "describe",
    "thaw",
]
