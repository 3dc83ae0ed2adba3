"""See what a detector sees: maps, matched patches, scores and coresets.

Plots need matplotlib: ``pip install "skpatchcore[plot]"``. Colours mean the same in all
of them, and line styles and hatches say it again in greyscale.
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
