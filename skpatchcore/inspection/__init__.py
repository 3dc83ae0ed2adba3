"""Plot anomaly maps (heat maps), matched patches, score distributions and coresets.

Plots need matplotlib: ``pip install "skpatchcore[plot]"``. Each colour has the same
meaning in all plots. Line styles and hatches keep plots readable in greyscale.
"""

from skpatchcore.inspection._animation import animate_patch_matches
from skpatchcore.inspection._anomaly_maps import AnomalyMapDisplay
from skpatchcore.inspection._coreset_curve import CoresetCurveDisplay
from skpatchcore.inspection._patch_matches import PatchMatchDisplay
from skpatchcore.inspection._score_distribution import ScoreDistributionDisplay

__all__ = [
    "AnomalyMapDisplay",
    "CoresetCurveDisplay",
    "PatchMatchDisplay",
    "ScoreDistributionDisplay",
    "animate_patch_matches",
]
