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

# For other folders of this package.
from skpatchcore.inspection._axes import check_matplotlib as check_matplotlib
from skpatchcore.inspection._colors import GUIDE as GUIDE
from skpatchcore.inspection._colors import NEUTRAL as NEUTRAL
from skpatchcore.inspection._colors import THRESHOLD as THRESHOLD
from skpatchcore.inspection._overlays import draw_overlay as draw_overlay
from skpatchcore.inspection._patch_boxes import find_matches as find_matches
