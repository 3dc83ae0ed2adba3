"""Load your own images, download or load MVTec AD, or generate images with defects.

Every loader returns a :class:`~sklearn.utils.Bunch` with the images (`data`), their
labels (`target`, +1 normal and -1 anomalous), the segmentation masks of the defects
(`masks`), the kinds of defects (`defect_types`), and the official split (`split`,
`cv`).
"""

from skpatchcore._images import ImagePage
from skpatchcore.datasets._folder import load_image_folder
from skpatchcore.datasets._masks import read_masks
from skpatchcore.datasets._mvtec import (
    find_mvtec_ad,
    load_mvtec_ad,
    mvtec_ad_categories,
)
from skpatchcore.datasets._mvtec_fetch import fetch_mvtec_ad
from skpatchcore.datasets._surface_defects import make_surface_defects

__all__ = [
    "ImagePage",
    "fetch_mvtec_ad",
    "find_mvtec_ad",
    "load_image_folder",
    "load_mvtec_ad",
    "make_surface_defects",
    "mvtec_ad_categories",
    "read_masks",
]

# Not public, but used by other folders of this package.
from skpatchcore.datasets._aliases import Resolver as Resolver
from skpatchcore.datasets._aliases import walk_folders as walk_folders
from skpatchcore.datasets._aliases import without_aliases as without_aliases
from skpatchcore.datasets._listing import check_folder as check_folder
from skpatchcore.datasets._listing import list_folders as list_folders
from skpatchcore.datasets._listing import list_images as list_images
from skpatchcore.datasets._mvtec import find_category as find_category
from skpatchcore.datasets._mvtec import is_category as is_category
