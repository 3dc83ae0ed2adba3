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
from skpatchcore.datasets._folder import NORMAL_NAMES as NORMAL_NAMES
from skpatchcore.datasets._image_search import ImageSearch as ImageSearch
from skpatchcore.datasets._image_search import check_folder as check_folder
from skpatchcore.datasets._image_search import (
    describe_passed_over as describe_passed_over,
)
from skpatchcore.datasets._image_search import image_suffixes as image_suffixes
from skpatchcore.datasets._image_search import report_passed_over as report_passed_over
from skpatchcore.datasets._masks_among_images import (
    check_new_images as check_new_images,
)
from skpatchcore.datasets._masks_among_images import check_not_masks as check_not_masks
from skpatchcore.datasets._masks_among_images import describe_masks as describe_masks
from skpatchcore.datasets._masks_among_images import refuse_masks as refuse_masks
from skpatchcore.datasets._masks_among_images import warn_of_masks as warn_of_masks
from skpatchcore.datasets._mvtec import find_category as find_category
from skpatchcore.datasets._mvtec import is_category as is_category
