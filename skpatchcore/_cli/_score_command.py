"""The command ``score``."""

from collections.abc import Sequence
from pathlib import Path

import click

from skpatchcore._cli._files import NamedPath, check_targets
from skpatchcore._cli._messages import Command
from skpatchcore._cli._options import (
    EXISTING_FILE,
    NEW_FILE,
    NEW_FOLDER,
    common_options,
    device_option,
    exclude_option,
    max_pixels_option,
    option,
    pages_option,
    split_all,
)
from skpatchcore._cli._types import Integer


@click.command(cls=Command)
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True))
@option("--model", type=EXISTING_FILE, required=True, help="Model file from fit.")
@option(
    "--output",
    type=NEW_FILE,
    help="File to write results to, image by image.  [default: standard output]",
)
@option(
    "--format",
    "output_format",
    type=click.Choice(["csv", "jsonl", "coco"]),
    help="Format of the results. Default: by the suffix of --output, jsonl for .jsonl "
    "and .ndjson, coco for .json, csv for all others.",
)
@option(
    "--min-area",
    type=Integer(min=1),
    metavar="N",
    help="Leave out defect regions of fewer than N pixels. With csv, also add their "
    "number and total area to the table.",
)
@option(
    "--resume",
    is_flag=True,
    help="Keep the results in --output of images that are unchanged, and score only "
    "the others.",
)
@option(
    "--overlays",
    type=NEW_FOLDER,
    help="Folder to write PNG files to: the images overlaid with their anomaly maps "
    "(heat maps).",
)
@option(
    "--masks",
    type=NEW_FOLDER,
    help="Folder to write PNG files to: white where an image is anomalous.",
)
@option(
    "--on-error",
    type=click.Choice(["raise", "skip", "nan"]),
    default="raise",
    help="If images are unreadable: raise scores the others and exits with code 1; "
    "skip scores the others; nan also lists the unreadable ones, with the score nan.",
)
@option(
    "--report",
    type=NEW_FILE,
    help="CSV file to write: the unreadable images, each with the reason.",
)
@option(
    "--weights",
    type=EXISTING_FILE,
    help="Local weights file of the network. Always required if fit used --weights "
    "with a file, unless it also used --include-backbone: a model file does not store "
    "the path.",
)
@exclude_option
@pages_option
@max_pixels_option
@device_option
@common_options
def score(
    images: Sequence[str],
    model: Path,
    output: Path | None,
    output_format: str | None,
    min_area: int | None,
    resume: bool,
    overlays: Path | None,
    masks: Path | None,
    on_error: str,
    report: Path | None,
    weights: Path | None,
    exclude: Sequence[str],
    pages: str | None,
    device: str | None,
) -> None:
    """Score new images.

    IMAGES are image files or folders, which are searched with all their subfolders.
    Writes the path, score, decision and label of each image once it is scored, in the
    order of the images, and the p-value and anomaly score if the model is
    calibrated. JSON Lines and COCO files also have the defect regions. Higher scores
    and decisions are more normal. An image with a decision below 0 is anomalous. The
    last line on standard error counts the images.
    """
    from skpatchcore._cli import _result_file, _result_formats, _score_output
    from skpatchcore._cli._score_run import ScoreRun, identify_run
    from skpatchcore._detectors import find_detector
    from skpatchcore.persistence import load

    name = _result_formats.format_name(output, output_format)
    _check_options(name, output, on_error, resume)
    files = _score_output.find_images(images, exclude)
    paths = split_all(files, pages)
    folders = {"--overlays": overlays, "--masks": masks}
    pngs = {
        name: _score_output.png_paths(paths, images, folder)
        for name, folder in folders.items()
    }
    records = _result_file.records_path(output, name)
    targets = [("--output", output), ("--report", report), ("--output", records)]
    check_targets(
        [(n, p) for n, p in dict.fromkeys(targets) if p],
        [(n, p) for n, p in folders.items() if p],
        inside=[(n, path) for n, drawn in pngs.items() for path in drawn],
        read=_inputs([*images, *files], model, weights),
    )
    detector = load(model, weights=weights and str(weights), device=device)
    run = ScoreRun(
        paths,
        _result_formats.make_format(
            name,
            is_calibrated=find_detector(detector).detector._is_calibrated,
            min_area=min_area,
        ),
        identify_run(model, name, min_area),
        overlays=pngs["--overlays"],
        masks=pngs["--masks"],
        lists_unreadable=on_error == "nan",
    )
    run.write(detector, output, report, resume=resume)
    if run.n_unreadable and on_error == "raise":
        click.get_current_context().exit(1)


def _check_options(name: str, output: Path | None, on_error: str, resume: bool) -> None:
    """Reject options that contradict each other."""
    if name == "coco" and on_error == "nan":
        raise click.UsageError(
            "--on-error nan lists unreadable images among the results, but COCO "
            "requires the size of each image. Use --on-error skip, and --report for "
            "the unreadable images."
        )
    if not resume:
        return
    from skpatchcore._utils import is_special

    if output is None or is_special(output):
        raise click.UsageError(
            "--resume needs a file of earlier results: pass its path with --output."
        )


def _inputs(
    images: Sequence[str], model: Path, weights: Path | None
) -> list[NamedPath]:
    """Return the files and folders that the command reads, with their names."""
    read: list[NamedPath] = [("IMAGES", image) for image in images]
    read.append(("--model", model))
    return [*read, ("--weights", weights)] if weights else read
