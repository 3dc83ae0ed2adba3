"""The command ``score``."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from skpatchcore._cli._files import NamedPath, check_overwrites
from skpatchcore._cli._group import Command, print_text, report_unreadable
from skpatchcore._cli._options import (
    EXISTING_FILE,
    NEW_FILE,
    NEW_FOLDER,
    common_options,
    device_option,
    option,
)


@click.command(cls=Command)
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True))
@option("--model", type=EXISTING_FILE, required=True, help="Model file from fit.")
@option(
    "--output", type=NEW_FILE, help="CSV file to write.  [default: standard output]"
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
    help="If an image is unreadable, stop with an error, skip the image, or list it "
    "with the score nan.",
)
@option(
    "--report",
    type=NEW_FILE,
    help="CSV file to write: the unreadable images, each with the reason.",
)
@option(
    "--weights",
    type=EXISTING_FILE,
    help="Local weights file of the network, if it is not where fit found it.",
)
@device_option
@common_options
def score(
    images: Sequence[str],
    model: Path,
    output: Path | None,
    overlays: Path | None,
    masks: Path | None,
    on_error: str,
    report: Path | None,
    weights: Path | None,
    device: str | None,
) -> None:
    """Score new images.

    IMAGES are image files or folders, which are searched with all their subfolders.
    Writes a CSV table with the path, score, decision and label of each image, and its
    p-value if the model is calibrated. Higher scores and decisions are more normal. An
    image with a decision below 0 is anomalous.
    """
    from skpatchcore._benchmark import NAME_BYTES, replace_text
    from skpatchcore._cli import _score_output
    from skpatchcore._utils import check_writable
    from skpatchcore.persistence import load
    from skpatchcore.scoring import as_results, inspect_images

    paths = _score_output.find_images(images)
    overlay_paths = _score_output.png_paths(paths, overlays)
    mask_paths = _score_output.png_paths(paths, masks)
    tables = [(n, p) for n, p in (("--output", output), ("--report", report)) if p]
    pngs = {"--overlays": overlay_paths, "--masks": mask_paths}
    _check_files(paths, model, weights, tables, pngs)
    for _, path in tables:
        if path.parent.is_dir():
            check_writable(path)
    detector = load(model, weights=weights, device=device)
    decoded, found, unreadable = inspect_images(
        detector, paths, on_error, progress=True
    )
    kept = range(len(paths)) if on_error == "nan" else sorted(found)
    table = _score_output.as_csv(paths, as_results(kept, found, unreadable))
    if output is None:
        print_text(table, nl=False)
    else:
        replace_text(output, table, NAME_BYTES)
    report_unreadable(unreadable, len(paths))
    if report:
        replace_text(report, _score_output.as_report(paths, unreadable), NAME_BYTES)
    seen = [found[i] for i in sorted(found)]
    if overlays:
        drawn = _score_output.draw_overlays(decoded, seen)
        _save_pngs(drawn, [overlay_paths[one.index] for one in seen])
    if masks:
        drawn = _score_output.draw_masks(seen)
        _save_pngs(drawn, [mask_paths[one.index] for one in seen])


def _check_files(
    images: Sequence[str],
    model: Path,
    weights: Path | None,
    tables: Sequence[tuple[str, Path]],
    pngs: dict[str, list[Path]],
) -> None:
    """Raise if a file would be written twice, or written although it is read."""
    read: list[NamedPath] = [("IMAGES", image) for image in images]
    read.append(("--model", model))
    if weights:
        read.append(("--weights", weights))
    drawn = [(name, path) for name, paths in pngs.items() for path in paths]
    check_overwrites([*tables, *drawn], read)


def _save_pngs(images: Iterable, paths: Sequence[Path]) -> None:
    from PIL import Image
    from tqdm.auto import tqdm

    from skpatchcore._utils import atomic_write

    pairs = zip(images, paths, strict=True)
    # disable=None shows the bar only in a terminal.
    for pixels, path in tqdm(pairs, "writing", total=len(paths), disable=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            Image.fromarray(pixels).save(file, "PNG")
