"""Long runs over many pictures, some of which may be unreadable."""

from skpatchcore.scoring._score_images import find_unreadable, score_pictures
from skpatchcore.scoring._unreadable import UnreadablePicture

__all__ = ["UnreadablePicture", "find_unreadable", "score_pictures"]

# For other folders of this package.
from skpatchcore.scoring._inspections import map_of as map_of
from skpatchcore.scoring._inspections import map_threshold as map_threshold
from skpatchcore.scoring._score_images import as_results as as_results
from skpatchcore.scoring._score_images import inspect_pictures as inspect_pictures
from skpatchcore.scoring._score_images import unreadable_pictures as unreadable_pictures
