"""The command ``fit``."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skpatchcore._cli._calibration_options import (
    ThresholdOptions,
    calibration_options,
    take_threshold_options,
)
from skpatchcore._cli._detector_options import detector_options
from skpatchcore._cli._files import NamedPath, check_targets
from skpatchcore._cli._messages import (
    Command,
    print_text,
    print_weights_hint,
    progress_level,
)
from skpatchcore._cli._options import (
    NEW_FILE,
    common_options,
    exclude_option,
    group_finder,
    max_pixels_option,
    option,
    pages_option,
)
from skpatchcore._cli._thresholds import (
    ImageGroups,
    check_counts,
    fit_with_threshold,
)
from skpatchcore._cli._training_images import (
    CALIBRATION,
    TRAIN,
    GivenImage,
    choose,
    gather_images,
    read_images,
)
from skpatchcore._cli._types import KeywordOr, Number

if TYPE_CHECKING:
    from skpatchcore._detectors import PatchCoreDetector


@click.command(cls=Command)
@click.argument("train", nargs=-1, required=True, type=click.Path(exists=True))
@option("--model", type=NEW_FILE, required=True, help="Model file to write, *.skpc.")
@option(
    "--include-backbone",
    is_flag=True,
    help="Store the network's weights in the model file too.",
)
@calibration_options
@option(
    "--contamination",
    metavar="auto|SHARE",
    type=KeywordOr(Number(0, 0.5, min_open=True), "auto"),
    default="auto",
    help="Share of the training images beyond the threshold, if --alpha does not set "
    "it; auto: 0.01. With --defective, it sets the threshold of masks only.",
)
@option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    help="If an image is unreadable, stop with an error or skip the image.",
)
@exclude_option
@pages_option
@max_pixels_option
@detector_options
@common_options
def fit(
    train: Sequence[str],
    model: Path,
    include_backbone: bool,
    on_error: str,
    exclude: Sequence[str],
    pages: str | None,
    group_pattern: str | None,
    group_list: Path | None,
    group_column: str,
    **settings: Any,
) -> None:
    """Fit a detector on images of good parts.

    TRAIN are image files or folders. A folder either contains only images of good
    parts, also in subfolders, or has a subfolder train/good. Writes the fitted detector
    to a model file. Pass --alpha to set the false-alarm rate of its threshold.
    """
    from skpatchcore._benchmark import build_detector
    from skpatchcore.persistence import save

    options = take_threshold_options(settings)
    find_groups = group_finder(group_pattern, group_list, group_column)
    if not model.parent.is_dir():
        raise click.BadParameter(
            f"The folder {model.parent} does not exist. Create it first.",
            param_hint="'--model'",
        )
    given = gather_images(
        train, options.calibration_images, options.defective, exclude=exclude
    )
    weights = None if settings["weights"] == "random" else settings["weights"]
    _check_model(model, given, weights, group_list)
    images = read_images(given, pages, on_error)
    used = images if options.defective else choose(images, TRAIN, CALIBRATION, label=1)
    groups = ImageGroups(used, find_groups)
    check_counts(images, groups, options)
    click.echo(_announce(images, options), err=True)
    detector = build_detector(settings)
    detector.set_params(verbose=detector.verbose or progress_level())
    started = time.perf_counter()
    with fit_with_threshold(
        detector, images, groups, options, settings["random_state"]
    ) as fitted:
        kept = _describe_kept(fitted.detectors, time.perf_counter() - started)
        save(fitted.detector, model, include_backbone=include_backbone)
        print_text(f"{kept}\n{fitted.threshold}")
        print_text(f"Model: {model} ({model.stat().st_size / 1e6:.1f} MB)")
        if weights and not include_backbone:
            print_weights_hint(weights)
        if fitted.rate:
            print_text(fitted.rate())


def _check_model(
    model: Path,
    given: Sequence[GivenImage],
    weights: str | None,
    group_list: Path | None,
) -> None:
    """Raise if the model file cannot be written, or would replace an input."""
    named = {"--weights": weights, "--group-list": group_list}
    read: list[NamedPath] = [(image.role, str(image.source)) for image in given]
    read += [(name, path) for name, path in named.items() if path]
    check_targets([("--model", model)], read=read)


def _describe_kept(detectors: "Sequence[PatchCoreDetector]", seconds: float) -> str:
    sizes = [detector.memory_bank_.bank_.shape for detector in detectors]
    n_kept, n_features = sum(size[0] for size in sizes), sizes[0][1]
    where = f" in {len(sizes)} detectors" if len(sizes) > 1 else ""
    return (
        f"Kept {n_kept} patches of {n_features} features{where} after {seconds:.1f} s."
    )


def _announce(images: Sequence[GivenImage], options: ThresholdOptions) -> str:
    """Return how many images are used for what."""
    n_others = len(choose(images, CALIBRATION, label=1))
    both = options.alpha is not None and not n_others
    parts = [
        f"Fitting {'and calibrating ' if both else ''}on "
        f"{len(choose(images, TRAIN, label=1))} images"
    ]
    if n_others:
        parts.append(f"calibrating on {n_others} others")
    if n := sum(image.label == -1 for image in images):
        use = "leaving out" if options.defective is None else "tuning on"
        parts.append(f"{use} {n} defective one{'s' * (n != 1)}")
    return ", ".join(parts) + " ..."
