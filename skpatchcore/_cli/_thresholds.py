"""Fit the detector of ``skpatchcore fit`` with its threshold, and describe both."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from skpatchcore._cli._calibration_options import DEFAULT_CALIBRATION, ThresholdOptions
from skpatchcore._cli._training_images import CALIBRATION, TRAIN, GivenImage, choose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from skpatchcore._detectors import PatchCoreDetector
    from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector

_N_FOLDS = 5
# Half of fewer images cannot be fitted. The features of more take gigabytes of disk.
_FEWEST_RATED, _MOST_RATED = 4, 1000


class Outcome(NamedTuple):
    """A fitted detector, its threshold in words, and what rates this threshold.

    `rate` fits once more. Call it when the detector is saved, so that Ctrl-C loses
    nothing.
    """

    detector: Any
    threshold: str
    rate: Callable[[], str] | None = None

    @property
    def detectors(self) -> "list[PatchCoreDetector]":
        """The detectors with a memory bank that `detector` consists of."""
        from skpatchcore._detectors import unwrap

        inner = getattr(self.detector, "estimator_", self.detector)
        return [unwrap(one)[0] for one in getattr(inner, "estimators_", [inner])]


class ImageGroups:
    """The part that each image shows, if several images show one."""

    def __init__(self, images: Sequence[GivenImage], find: Any = None):
        self._by_image = {}
        if find is not None:
            names = find([image.source for image in images]).tolist()
            self._by_image = dict(zip(images, names, strict=True))
        self.known = find is not None

    def of(self, images: Sequence[GivenImage]) -> list[str] | None:
        """Return the group of each image, or None if groups are not known."""
        return [self._by_image[image] for image in images] if self.known else None

    def count(self, images: Sequence[GivenImage]) -> int:
        """Return the number of groups, or of images if groups are not known."""
        return len(set(self.of(images) or images))

    def check_apart(self, images: Sequence[GivenImage]) -> None:
        """Raise if images of one part both fit and calibrate."""
        fitted = set(self.of(choose(images, TRAIN, label=1)) or ())
        for image in choose(images, CALIBRATION, label=1):
            if self.known and self._by_image[image] in fitted:
                raise click.UsageError(
                    f"{image.source} in --calibration-images shows the part "
                    f"{self._by_image[image]!r}, which is in TRAIN too. A threshold "
                    "needs parts that the detector was not fitted on; keep all images "
                    "of a part in one of the two."
                )


def check_counts(
    images: Sequence[GivenImage], groups: ImageGroups, options: ThresholdOptions
) -> None:
    """Raise, before the first image is decoded, if there are too few."""
    from skpatchcore.calibration import check_supported

    good = choose(images, TRAIN, label=1)
    n_good = len(good)
    if n_good < 2:
        raise click.ClickException(
            f"Fitting needs at least 2 images of good parts, found {n_good}: the "
            "threshold comes from comparing them with each other."
        )
    if options.alpha is not None and options.calibration_images is None:
        # "split" holds some of them out only, so it may still need more.
        check_supported(options.alpha, groups.count(good), grouped=groups.known)
    if options.calibration_images is not None and options.alpha is not None:
        n_units = groups.count(choose(images, CALIBRATION, label=1))
        check_supported(options.alpha, n_units, grouped=groups.known)
        groups.check_apart(images)


@contextmanager
def fit_with_threshold(
    detector: Any,
    images: Sequence[GivenImage],
    groups: ImageGroups,
    options: ThresholdOptions,
    random_state: int,
) -> Iterator[Outcome]:
    """Yield the fitted detector. Features are kept on disk until the block ends."""
    if options.alpha is not None:
        calibrated = _fit_calibrated(detector, images, groups, options, random_state)
        yield Outcome(calibrated, _describe_calibrated(calibrated))
    elif options.defective is not None:
        tuned = _fit_tuned(detector, images, groups, random_state)
        yield Outcome(tuned, _describe_tuned(tuned, images, grouped=groups.known))
    else:
        with _fit_default(detector, images, groups, random_state) as outcome:
            yield outcome


def _fit_calibrated(
    detector: Any,
    images: Sequence[GivenImage],
    groups: ImageGroups,
    options: ThresholdOptions,
    random_state: int,
) -> "ConformalDetector":
    """Return a detector with a threshold for the rate ``options.alpha``."""
    import numpy as np
    from sklearn.frozen import FrozenEstimator

    from skpatchcore.calibration import ConformalDetector

    assert options.alpha is not None, "without a rate, nothing is calibrated"
    calibrating = choose(images, TRAIN, label=1)
    lowest = -np.inf
    if options.calibration_images is not None:
        detector.fit([image.source for image in calibrating])
        lowest = detector.training_scores_.min()
        detector = FrozenEstimator(detector)
        calibrating = choose(images, CALIBRATION, label=1)
    calibrated = ConformalDetector(
        detector,
        alpha=options.alpha,
        method=options.calibration or DEFAULT_CALIBRATION,
        cv=max(2, min(_N_FOLDS, groups.count(calibrating))),
        random_state=random_state,
    ).fit([image.source for image in calibrating], groups=groups.of(calibrating))
    _warn_of_other_images(calibrated.calibration_scores_, lowest)
    return calibrated


def _warn_of_other_images(scores: "NDArray[np.float64]", lowest: float) -> None:
    """Say if most images that calibrate look more anomalous than any that was fitted.

    Training scores are a little too high, so some good images are below, but not most.
    """
    n_below = int((scores < lowest).sum())
    if n_below > len(scores) / 2:
        click.echo(
            f"Warning: {n_below} of {len(scores)} images in --calibration-images score "
            "lower than all images of TRAIN. If they show defects, this threshold "
            "accepts such defects: pass good images. If light, camera or material have "
            "changed, fit on images of the present state.",
            err=True,
        )


def _describe_offset(detector: Any) -> str:
    offset = detector.offset_ + 0.0  # A threshold of -0.0 is 0.
    return f"Threshold: images that score below {offset:.4g} are anomalous"


def _describe_calibrated(detector: "ConformalDetector") -> str:
    """Return the threshold, what it rests on, and what it flags out of sample."""
    from skpatchcore.calibration import held_out_share, percent, rate_range, round_up

    n, what = len(detector.calibration_scores_), "good images"
    if hasattr(detector, "calibration_groups_"):
        what += f" of {len(set(detector.calibration_groups_.tolist()))} parts"
    rate = f"{100 * detector.alpha_:.3g} %"
    smallest = round_up(100 * detector.min_alpha_, 3)
    lines = [
        f"{_describe_offset(detector)}, calibrated for {rate} false alarms on {n} "
        f"{what}. The smallest rate that they support is {smallest} %."
    ]
    if spread := rate_range(detector):
        low, high = map(percent, spread)
        lines.append(
            f"False alarms: at most {rate} on average. The rate depends on which {n} "
            f"images calibrate: for 95 % of such sets, it is between {low} and {high} "
            "%."
        )
    elif share := held_out_share(detector):
        lines.append(
            f"Out of sample: {share.n_flagged} of {share.n} good images flagged "
            f"({share}). Each was scored by a detector that was not fitted on it, and "
            "judged by the scores of images that other detectors had not seen."
        )
    else:
        lines.append(
            "Out of sample: not measured. Without the images of one fold, too few are "
            f"left for {rate}."
        )
    return "\n".join(lines)


def _fit_tuned(
    detector: Any,
    images: Sequence[GivenImage],
    groups: ImageGroups,
    random_state: int,
) -> "TunedThresholdDetector":
    """Return a detector with the threshold of the best F1 for known defects."""
    from skpatchcore.calibration import TunedThresholdDetector
    from skpatchcore.model_selection import OneClassKFold

    n_units = groups.count([image for image in images if image.label == 1])
    if n_units < 2:
        raise click.ClickException(
            f"Tuning the threshold needs good images of at least 2 parts, found "
            f"{n_units}: they are held out in turn."
        )
    # All folds test the defects, so a few of them are enough.
    cv = OneClassKFold(min(_N_FOLDS, n_units), shuffle=True, random_state=random_state)
    return TunedThresholdDetector(detector, cv=cv).fit(
        [image.source for image in images],
        [image.label for image in images],
        groups=groups.of(images),
    )


def _describe_tuned(
    detector: "TunedThresholdDetector", images: Sequence[GivenImage], *, grouped: bool
) -> str:
    """Return the threshold, and what it flags of the images that it was chosen on."""
    import numpy as np

    from skpatchcore.calibration import tuned_shares

    labels = np.array([image.label for image in images])
    good, defective = tuned_shares(detector, labels, grouped=grouped)
    return (
        f"{_describe_offset(detector)}, tuned for the best F1.\n"
        f"Out of fold: F1 {detector.best_score_:.3f}; {good.n_flagged} of {good.n} "
        f"good images flagged ({good}), {defective.n_flagged} of {defective.n} "
        f"defective ones found ({defective}). The detectors had not seen these "
        "images, but the threshold was chosen on them: expect a little less on new "
        "ones."
    )


@contextmanager
def _fit_default(
    detector: Any,
    images: Sequence[GivenImage],
    groups: ImageGroups,
    random_state: int,
) -> Iterator[Outcome]:
    """Yield a detector with its own threshold.

    Rating the threshold takes another fit, on half of the images, whose features are
    kept until then.
    """
    from sklearn.base import clone

    from skpatchcore._detectors import features_once

    good = choose(images, TRAIN, label=1)
    rated = groups.count(good) >= _FEWEST_RATED and len(good) <= _MOST_RATED
    with features_once(detector, 2 if rated else 1) as (given, give_back):
        fitted = clone(given).fit([image.source for image in good])
        give_back([fitted])

        def rate() -> str:
            share = _rate_half(given, good, groups, random_state) if rated else ""
            return (
                f"No false-alarm rate is known for this threshold{share}. To set one, "
                "add --alpha."
            )

        yield Outcome(fitted, f"{_describe_offset(fitted)}.", rate)


def _rate_half(
    detector: Any,
    good: Sequence[GivenImage],
    groups: ImageGroups,
    random_state: int,
) -> str:
    """Return what the detector of one half of the images flags in the other."""
    from skpatchcore.calibration import share_of_other_half

    click.echo("Rating the threshold with half of the images ...", err=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The fit on all images has shown them.
            share = share_of_other_half(
                detector,
                [image.source for image in good],
                groups=groups.of(good),
                random_state=random_state,
            )
    except ValueError:
        return ""  # Options may ask for more patches than half of the images have.
    return (
        f": with half of the images, it flagged {share.n_flagged} of the {share.n} "
        f"others ({share})"
    )
