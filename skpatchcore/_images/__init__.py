"""Image inputs: validation, decoding, geometry, batches and augmentation.

This folder turns paths, encoded and PIL images, arrays and tensors into batches for a
network. It keeps the geometry of each image, that is, how it was resized and cropped.
"""

from skpatchcore._images._augmentation import (
    AUGMENTATIONS,
    Augmented,
    Transform,
    find_transforms,
)
from skpatchcore._images._batches import iter_batches
from skpatchcore._images._colors import learn_cast, warn_if_mixed, warn_if_swapped
from skpatchcore._images._decoding import image_size
from skpatchcore._images._errors import UnreadableImageError
from skpatchcore._images._files import (
    accepted_suffixes,
    open_image,
    refused_suffixes,
    split_pages,
)
from skpatchcore._images._geometry import (
    Geometry,
    Size,
    plan_geometry,
    resize_masks,
)
from skpatchcore._images._input import (
    DECODING_VERSION,
    ImageInput,
    Images,
    check_images,
    check_stream,
    image_contents,
    take_images,
)
from skpatchcore._images._pages import (
    EncodedSource,
    FileSource,
    ImagePage,
    as_encoded,
    is_file,
    path_of,
)
from skpatchcore._images._streams import is_stream

__all__ = [
    "AUGMENTATIONS",
    "DECODING_VERSION",
    "Augmented",
    "EncodedSource",
    "FileSource",
    "Geometry",
    "ImageInput",
    "ImagePage",
    "Images",
    "Size",
    "Transform",
    "UnreadableImageError",
    "accepted_suffixes",
    "as_encoded",
    "check_images",
    "check_stream",
    "find_transforms",
    "image_contents",
    "image_size",
    "is_file",
    "is_stream",
    "iter_batches",
    "learn_cast",
    "open_image",
    "path_of",
    "plan_geometry",
    "refused_suffixes",
    "resize_masks",
    "split_pages",
    "take_images",
    "warn_if_mixed",
    "warn_if_swapped",
]
