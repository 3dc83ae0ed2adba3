"""Long runs over many images, some of which may be unreadable."""

import copy
from collections.abc import Collection
from contextlib import closing
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skpatchcore._detectors import Inspection, check_refitted, find_detector
from skpatchcore._images import Images, check_images, check_stream, is_stream
from skpatchcore._utils import Interval, StrOptions, validate_params
from skpatchcore.datasets import warn_of_masks
from skpatchcore.scoring._outcomes import iter_outcomes
from skpatchcore.scoring._unreadable import (
    UnreadableImage,
    find_failures,
    report_failures,
)

# Columns of results with their values for images that could not be used, and the types
# of those that are not of floats.
_MISSING: dict[str, Any] = {
    "index": 0,
    "score": np.nan,
    "decision": np.nan,
    "label": 0,
}
_DTYPES = {"index": np.int64, "label": np.int64}


@validate_params(
    {
        "on_error": [StrOptions({"raise", "skip", "nan"})],
        "maps": ["boolean"],
        "regions": ["boolean"],
        "min_area": [Interval(Integral, 1, None, closed="left")],
    }
)
def score_images(
    detector: Any,
    X: Any,
    *,
    on_error: str = "raise",
    maps: bool = False,
    regions: bool = False,
    min_area: int = 1,
) -> Bunch:
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

    X : iterable of images, or ndarray of shape (n, h, w) or (n, h, w, c)
        As `PatchCoreDetector` takes them. An iterator, such as a generator, is consumed
        as a stream: only a few images are in memory at a time.

    on_error : {"raise", "skip", "nan"}, default="raise"
        What to do with an image that cannot be used: None, NaN or an empty path in its
        place, as tables have; a file that is missing, truncated, no image, or a
        decompression bomb; NaN or values outside [0, 1] in a float image; one smaller
        than `crop_size`, or so thin that resizing would give it more pixels than Pillow
        permits in a file.

        - "raise": raise its error.
        - "skip": leave it out of the results.
        - "nan": keep its row, with NaN as score and 0 as label.

    maps : bool, default=False
        Whether to return the anomaly maps, which take 4 or 8 bytes for each pixel of
        the images.

    regions : bool, default=False
        Whether to return the defect regions.

    min_area : int, default=1
        Regions of fewer pixels are left out.

    Returns
    -------
    results : Bunch
        Arrays with a row for each image scored, in the order of `X`:

        - ``index``: int64, its number in `X`;
        - ``score``: float64, as ``score_samples`` gives it, higher for more normal;
        - ``decision``: float64, ``score - detector.offset_``;
        - ``label``: int64, +1 for normal and -1 for anomalous images;
        - ``p_value`` and ``anomaly_score``: float64, if the detector is calibrated.

        And lists with an entry for each row, if requested:

        - ``map``: ndarray of shape (height, width), as
          ``predict_maps`` gives it, or None if the image could not be used;
        - ``regions``: list of :class:`Region`, as
          :meth:`Inspection.find_regions` gives it.

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
    skpatchcore.PatchCoreDetector.inspect : The results of one image after the other.

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
    if not is_stream(X) and not isinstance(X, Images):
        warn_of_masks(check_images(X, {}))
    missing = dict(_MISSING)
    # Not from the images, so that columns do not depend on which are readable.
    if find_detector(detector).detector._is_calibrated:
        missing |= {"p_value": np.nan, "anomaly_score": np.nan}
    missing |= {"map": None} if maps else {}
    missing |= {"regions": []} if regions else {}
    rows: list[dict[str, Any]] = []
    unreadable: list[UnreadableImage] = []
    with closing(iter_outcomes(detector, X, skip=on_error != "raise")) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, UnreadableImage):
                unreadable.append(outcome)
                if on_error == "nan":
                    rows.append(copy.deepcopy(missing) | {"index": outcome.index})
            else:
                rows.append(_describe(outcome, missing, min_area))
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in missing}
    for name in missing.keys() - {"map", "regions"}:
        columns[name] = np.array(columns[name], dtype=_DTYPES.get(name, np.float64))
    return Bunch(**columns, unreadable=unreadable)


def _describe(
    seen: Inspection, names: Collection[str], min_area: int
) -> dict[str, Any]:
    """Return the columns `names` of an image."""
    # The inspection, which would keep more, is not kept.
    found = {name: getattr(seen, name) for name in names if name != "regions"}
    if "regions" in names:
        found["regions"] = seen.find_regions(min_area)
    return found


def find_unreadable(X: Any) -> list[UnreadableImage]:
    """Return which images cannot be read, and why, without a detector.

    It decodes each image once. Use it before a fit, which refuses bad images.

    Parameters
    ----------
    X : iterable of images, or ndarray of shape (n, h, w) or (n, h, w, c)
        As `PatchCoreDetector` takes them. An iterator is consumed as a stream.

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
    if is_stream(X):
        windows = check_stream(X, keep_failures=True)
        return [bad for window in windows for bad in _unreadable_in(*window)]
    failures: dict[int, Exception] = {}
    images = check_images(X, failures)
    return _unreadable_in(0, images, failures, progress=progress)


def _unreadable_in(
    first: int,
    images: Images,
    failures: dict[int, Exception],
    *,
    progress: bool = False,
) -> list[UnreadableImage]:
    """Return the unreadable ones of some images, the first of which has a number."""
    unknown = [i for i in range(len(images)) if i not in failures]
    failures |= find_failures(images, unknown, progress=progress)
    found = report_failures(images, failures)
    return [bad._replace(index=first + bad.index) for bad in found]
