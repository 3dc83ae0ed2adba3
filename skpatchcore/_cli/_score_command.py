"""The command ``score``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skpatchcore._cli._files import NamedPath, check_targets
from skpatchcore._cli._messages import Command, print_text, report_unreadable
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

if TYPE_CHECKING:
    from skpatchcore._images import Images
    from skpatchcore.scoring import Inspection


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
    Writes a CSV table with the path, score, decision and label of each image, and its
    p-value if the model is calibrated. Higher scores and decisions are more normal. An
    image with a decision below 0 is anomalous. The last line on standard error counts
    the images.
    """
    from skpatchcore._benchmark import NAME_BYTES, replace_text
    from skpatchcore._cli import _score_output
    from skpatchcore.persistence import load
    from skpatchcore.scoring import as_results, inspect_images

    files = _score_output.find_images(images, exclude)
    paths = split_all(files, pages)
    overlay_paths = _score_output.png_paths(paths, images, overlays)
    mask_paths = _score_output.png_paths(paths, images, masks)
    pngs = {"--overlays": (overlays, overlay_paths), "--masks": (masks, mask_paths)}
    check_targets(
        [(n, p) for n, p in (("--output", output), ("--report", report)) if p],
        [(name, folder) for name, (folder, _) in pngs.items() if folder],
        inside=[(name, path) for name, (_, drawn) in pngs.items() for path in drawn],
        read=_inputs([*images, *files], model, weights),
    )
    detector = load(model, weights=weights and str(weights), device=device)
    decoded, found, unreadable = inspect_images(detector, paths, "skip", progress=True)
    kept = range(len(paths)) if on_error == "nan" else sorted(found)
    results = as_results(detector, kept, found, unreadable)
    table = _score_output.as_csv(paths, results)
    if output is None:
        print_text(table, nl=False)
    else:
        replace_text(output, table, NAME_BYTES)
    report_unreadable(unreadable, len(paths))
    if report:
        replace_text(report, _score_output.as_report(paths, unreadable), NAME_BYTES)
    seen = [found[i] for i in sorted(found)]
    _write_pngs(decoded, seen, overlay_paths, mask_paths)
    click.echo(_score_output.summarize(results, len(unreadable)), err=True)
    if unreadable and on_error == "raise":
        click.get_current_context().exit(1)


def _inputs(
    images: Sequence[str], model: Path, weights: Path | None
) -> list[NamedPath]:
    """Return the files and folders that the command reads, with their names."""
    read: list[NamedPath] = [("IMAGES", image) for image in images]
    read.append(("--model", model))
    return [*read, ("--weights", weights)] if weights else read


def _write_pngs(
    images: "Images",
    seen: "Sequence[Inspection]",
    overlays: Sequence[Path],
    masks: Sequence[Path],
) -> None:
    """Write what was asked for: `overlays` and `masks` have a path for each image."""
    from skpatchcore._cli._score_output import draw_masks, draw_overlays

    if overlays:
        paths = [overlays[one.index] for one in seen]
        _save_pngs(draw_overlays(images, seen), paths)
    if masks:
        _save_pngs(draw_masks(seen), [masks[one.index] for one in seen])


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
