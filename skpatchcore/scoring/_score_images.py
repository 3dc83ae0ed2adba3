"""Long runs over many images, some of which may be unreadable."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted
from tqdm.auto import tqdm

from skpatchcore._detectors import Inspection, check_refitted, find_detector
from skpatchcore._images import Images, check_images
from skpatchcore._utils import StrOptions, validate_params
from skpatchcore.datasets import warn_of_masks
from skpatchcore.scoring._unreadable import (
    UnreadableImage,
    find_failures,
    iter_readable,
    report_failures,
)


@validate_params({"on_error": [StrOptions({"raise", "skip", "nan"})]})
def score_images(detector: Any, X: Any, *, on_error: str = "raise") -> Bunch:
    """Score images in one pass, and go on after those that cannot be read.

    The methods of a detector score every image, or raise an error that names the first
    bad one. Use this function for long runs over unchecked folders, which one truncated
    file should not end. Its scores are those of ``detector.score_samples``.

    Parameters
    ----------
    detector : estimator
        A fitted detector with maps: `PatchCoreDetector`, `PatchCoreEnsemble`, or
        `ConformalDetector` or `TunedThresholdDetector` around one; also a `Pipeline`, a
        search, of which ``best_estimator_`` is used, or a `FrozenEstimator` of one.

    X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
        As `PatchCoreDetector` takes them.

    on_error : {"raise", "skip", "nan"}, default="raise"
        What to do with an image that cannot be used: None, NaN or an empty path in its
        place, as tables have; a file that is missing, truncated, no image, or a
        decompression bomb; NaN or values outside [0, 1] in a float image; one smaller
        than `crop_size`, or so thin that resizing would give it more pixels than Pillow
        permits in a file.

        - "raise": raise its error.
        - "skip": leave it out of the results.
        - "nan": keep its row, with NaN as score and 0 as label.

    Returns
    -------
    results : Bunch
        Arrays with a row for each image scored, in the order of `X`:

        - ``index``: int64, its number in `X`;
        - ``score``: float64, as ``score_samples`` gives it, higher for more normal;
        - ``decision``: float64, ``score - detector.offset_``;
        - ``label``: int64, +1 for normal and -1 for anomalous images;
        - ``p_value``: float64, if the detector is calibrated.

        And ``unreadable``, a list of :class:`UnreadableImage` (index, image,
        reason) for those that could not be used.

    Raises
    ------
    TypeError
        If `detector` is of another kind, or `X` is not a container of images. A list
        that holds other things than images is an error for any `on_error`, too.

    NotFittedError
        If `detector` is not fitted, or is a search without ``best_estimator_``.

    OSError, ValueError
        If an image cannot be used and `on_error` is "raise".

    See Also
    --------
    find_unreadable : The report alone, before a fit.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
    >>> from skpatchcore.datasets import make_surface_defects
    >>> from skpatchcore.scoring import score_images
    >>> good = make_surface_defects(6, 0, 0, image_size=64, random_state=0).data
    >>> features = PatchFeatureTransformer("gabor", ("fine",), image_size=64)
    >>> detector = PatchCoreDetector(features, random_state=0).fit(good)
    >>> new = [good[0] / 255.0, np.full((64, 64), np.nan), good[1]]
    >>> results = score_images(detector, new, on_error="skip")
    >>> results.index, results.label
    (array([0, 2]), array([1, 1]))
    >>> results.unreadable[0].reason
    'image 1 contains NaN or infinity.'
    """
    check_refitted(detector)
    check_is_fitted(detector)
    images, found, unreadable = inspect_images(detector, X, on_error)
    if not isinstance(X, Images):
        warn_of_masks(images)
    kept = range(len(images)) if on_error == "nan" else sorted(found)
    return as_results(detector, kept, found, unreadable)


def find_unreadable(X: Any) -> list[UnreadableImage]:
    """Return which images cannot be read, and why, without a detector.

    It decodes each image once. Use it before a fit, which refuses bad images.

    Parameters
    ----------
    X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
        As `PatchCoreDetector` takes them.

    Returns
    -------
    unreadable : list of UnreadableImage
        Index in `X`, name, and reason of each, in the order of `X`.

    See Also
    --------
    score_images : Scores of those that can be read.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.scoring import find_unreadable
    >>> bad = find_unreadable([np.zeros((8, 8)), np.full((8, 8), 7.0)])
    >>> [image.index for image in bad]
    [1]
    """
    return unreadable_images(X)


def unreadable_images(X: Any, *, progress: bool = False) -> list[UnreadableImage]:
    """Do as `find_unreadable` does; with `progress`, a terminal shows a bar."""
    failures: dict[int, Exception] = {}
    images = check_images(X, failures)
    readable = [i for i in range(len(images)) if i not in failures]
    failures |= find_failures(images, readable, progress=progress)
    return report_failures(images, failures)


def inspect_images(
    detector: Any, X: Any, on_error: str, *, progress: bool = False
) -> tuple[Images, dict[int, Inspection], list[UnreadableImage]]:
    """Return the images, what was seen in the readable ones by index, and the others.

    With `progress`, a terminal shows a bar.
    """
    found = find_detector(detector)
    failures: dict[int, Exception] = {}
    images = check_images(X, None if on_error == "raise" else failures)
    inspections = (
        found.inspect(images)
        if on_error == "raise"
        else iter_readable(found.inspect, images, failures)
    )
    seen_by_index: dict[int, Inspection] = {}
    disable = None if progress else True
    with tqdm(total=len(images), desc="images", disable=disable) as bar:
        for seen in inspections:
            seen_by_index[seen.index] = seen
            bar.update()
    return images, seen_by_index, report_failures(images, failures)


def as_results(
    detector: Any,
    kept: Iterable[int],
    found: Mapping[int, Inspection],
    unreadable: list[UnreadableImage],
) -> Bunch:
    """Return what `score_images` does of inspections, for the images `kept`."""
    index = np.array(list(kept), dtype=np.int64)
    rows = [found.get(i) for i in index]

    def column(name: str, missing: float) -> NDArray:
        return np.array([missing if r is None else getattr(r, name) for r in rows])

    results = Bunch(
        index=index,
        score=column("score", np.nan).astype(np.float64),
        decision=column("decision", np.nan).astype(np.float64),
        label=column("label", 0).astype(np.int64),
        unreadable=unreadable,
    )
    # Not from `found`, so that the columns do not depend on which files are readable.
    if find_detector(detector).detector._is_calibrated:
        results.p_value = column("p_value", np.nan).astype(np.float64)
    return results
