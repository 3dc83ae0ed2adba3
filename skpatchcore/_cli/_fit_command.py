"""The command ``fit``."""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from skpatchcore._cli._detector_options import detector_options
from skpatchcore._cli._files import NamedPath, check_overwrites
from skpatchcore._cli._group import (
    Command,
    print_text,
    progress_level,
    report_unreadable,
)
from skpatchcore._cli._options import NEW_FILE, common_options, option
from skpatchcore._cli._types import KeywordOr


@click.command(cls=Command)
@click.argument("train", nargs=-1, required=True, type=click.Path(exists=True))
@option("--model", type=NEW_FILE, required=True, help="Model file to write, *.skpc.")
@option(
    "--include-backbone",
    is_flag=True,
    help="Store the network's weights in the model file too.",
)
@option(
    "--contamination",
    metavar="auto|SHARE",
    type=KeywordOr(click.FloatRange(0, 0.5, min_open=True), "auto"),
    default="auto",
    help="Share of the training images beyond the threshold; auto: 0.01.",
)
@option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    help="If an image is unreadable, stop with an error or skip the image.",
)
@detector_options
@common_options
def fit(
    train: Sequence[str],
    model: Path,
    include_backbone: bool,
    on_error: str,
    **settings: Any,
) -> None:
    """Fit a detector on images of good parts.

    TRAIN are image files or folders. A folder either contains images of good parts
    directly, or has a subfolder train/good. Writes the fitted detector to a model file.
    """
    from skpatchcore._benchmark import build_detector
    from skpatchcore._utils import check_writable
    from skpatchcore.persistence import save

    if not model.parent.is_dir():
        raise click.BadParameter(
            f"The folder {model.parent} does not exist. Create it first.",
            param_hint="'--model'",
        )
    check_writable(model)
    images, target = gather_training(train)
    read: list[NamedPath] = [("TRAIN", image) for image in images]
    if settings["weights"] not in (None, "random"):
        read.append(("--weights", settings["weights"]))
    check_overwrites([("--model", model)], read)
    if on_error == "skip":
        images, target = _leave_out_unreadable(images, target)
    n_good = target.count(1)
    click.echo(f"Fitting on {n_good} image{'s' * (n_good != 1)} ...", err=True)
    started = time.perf_counter()
    detector = build_detector(settings)
    detector.set_params(verbose=detector.verbose or progress_level())
    detector.fit(images, target)
    seconds = time.perf_counter() - started
    save(detector, model, include_backbone=include_backbone)
    n_kept, n_features = detector.memory_bank_.bank_.shape
    print_text(
        f"Kept {n_kept} patches of {n_features} features after {seconds:.1f} s; "
        f"images that score below {detector.offset_:.4g} are anomalous.\n"
        f"Model: {model} ({model.stat().st_size / 1e6:.1f} MB)"
    )


def gather_training(paths: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the images in files and folders, and their labels; each image once."""
    from skpatchcore.datasets import Resolver, load_image_folder

    resolve = Resolver()
    found: dict[Any, tuple[str, int]] = {}
    for path in paths:
        labelled: Iterable[tuple[str, int]] = [(path, 1)]
        if os.path.isdir(path):
            data, labels = load_image_folder(path, subset="train", return_X_y=True)
            labelled = zip(data.tolist(), labels.tolist(), strict=True)
        for image, label in labelled:
            name, known = found.setdefault(resolve(image), (image, label))
            if label != known:
                raise ValueError(
                    f"{name} and {image} are the same image, given as good and as "
                    "defective. Remove one of them."
                )
    return [name for name, _ in found.values()], [label for _, label in found.values()]


def _leave_out_unreadable(
    images: Sequence[str], target: Sequence[int]
) -> tuple[list[str], list[int]]:
    from skpatchcore.scoring import unreadable_images

    unreadable = unreadable_images(images, progress=True)
    report_unreadable(unreadable, len(images))
    skipped = {image.index for image in unreadable}
    kept = [i for i in range(len(images)) if i not in skipped]
    return [images[i] for i in kept], [target[i] for i in kept]
