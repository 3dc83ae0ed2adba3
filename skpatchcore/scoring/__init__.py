"""Long runs over many images, some of which may be unreadable.

`score_images` scores what can be read in one pass, and reports the rest.
`find_unreadable` gives that report alone, before a fit. The command uses both.
"""

from skpatchcore._detectors import Inspection, Region
from skpatchcore.scoring._score_images import find_unreadable, score_images
from skpatchcore.scoring._unreadable import UnreadableImage

__all__ = ["Inspection", "Region", "UnreadableImage", "find_unreadable", "score_images"]

# For other folders of this package.
from skpatchcore.scoring._outcomes import Outcome as Outcome
from skpatchcore.scoring._outcomes import iter_outcomes as iter_outcomes
from skpatchcore.scoring._score_images import unreadable_images as unreadable_images
