"""The command ``fit``."""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skpatchcore._cli._detector_options import detector_options
from skpatchcore._cli._files import NamedPath, check_targets
from skpatchcore._cli._group import (
    Command,
    print_text,
    progress_level,
    report_unreadable,
)
from skpatchcore._cli._options import (
    NEW_FILE,
    common_options,
    exclude_option,
    max_pixels_option,
    option,
    pages_option,
    split_all,
)
from skpatchcore._cli._types import KeywordOr, Number

if TYPE_CHECKING:
    from skpatchcore._images import ImagePage


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
    type=KeywordOr(Number(0, 0.5, min_open=True), "auto"),
    default="auto",
    help="Share of the training images beyond the threshold; auto: 0.01.",
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
    **settings: Any,
) -> None:
    """Fit a detector on images of good parts.

    TRAIN are image files or folders. A folder either contains only images of good
    parts, also in subfolders, or has a subfolder train/good. Writes the fitted detector
    to a model file.
    """
    from skpatchcore._benchmark import build_detector
    from skpatchcore.persistence import save

    if not model.parent.is_dir():
        raise click.BadParameter(
            f"The folder {model.parent} does not exist. Create it first.",
            param_hint="'--model'",
        )
    files, labels = gather_training(train, exclude)
    read: list[NamedPath] = [("TRAIN", file) for file in files]
    weights = None if settings["weights"] == "random" else settings["weights"]
    if weights:
        read.append(("--weights", weights))
    check_targets([("--model", model)], read=read)
    images, target = _split(files, labels, pages)
    if on_error == "skip":
        images, target = _leave_out_unreadable(images, target)
    n_good = target.count(1)
    if n_good < 2:
        raise click.ClickException(
            f"Fitting needs at least 2 images of good parts, found {n_good}: the "
            "threshold comes from comparing them with each other."
        )
    click.echo(f"Fitting on {n_good} images ...", err=True)
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
    if weights and not include_backbone:
        print_text(
            f"The model file does not contain the network or its path: pass --weights "
            f"{weights} to score as well."
        )


def gather_training(
    paths: Sequence[str], exclude: Sequence[str] = ()
) -> tuple[list[str], list[int]]:
    """Return the images in files and folders, and their labels; each image once."""
    from skpatchcore.datasets import (
        ImageSearch,
        Resolver,
        check_not_masks,
        load_image_folder,
    )

    resolve, by_itself = Resolver(), ImageSearch(Path(), exclude)
    found: dict[Any, tuple[str, int]] = {}
    for path in paths:
        labelled: Iterable[tuple[str, int]]
        if not os.path.isdir(path):
            labelled = [(path, 1)] if by_itself.keeps(Path(path)) else []
        else:
            data, labels = load_image_folder(
                path, subset="train", exclude=list(exclude), return_X_y=True
            )
            labelled = zip(data.tolist(), labels.tolist(), strict=True)
        for image, label in labelled:
            name, known = found.setdefault(resolve(image), (image, label))
            if label != known:
                raise ValueError(
                    f"{name} and {image} are the same image, given as good and as "
                    "defective. Remove one of them."
                )
    check_not_masks(Path(name) for name, _ in found.values())
    return [name for name, _ in found.values()], [label for _, label in found.values()]


def _split(
    files: Sequence[str], labels: Sequence[int], pages: str | None
) -> "tuple[list[str | ImagePage], list[int]]":
    """Return the pages of files, and their labels."""
    pairs = [
        (page, label)
        for file, label in zip(files, labels, strict=True)
        for page in split_all([file], pages)
    ]
    return [page for page, _ in pairs], [label for _, label in pairs]


def _leave_out_unreadable(
    images: "Sequence[str | ImagePage]", target: Sequence[int]
) -> "tuple[list[str | ImagePage], list[int]]":
    from skpatchcore.scoring import unreadable_images

    unreadable = unreadable_images(images, progress=True)
    report_unreadable(unreadable, len(images))
    skipped = {image.index for image in unreadable}
    kept = [i for i in range(len(images)) if i not in skipped]
    return [images[i] for i in kept], [target[i] for i in kept]
