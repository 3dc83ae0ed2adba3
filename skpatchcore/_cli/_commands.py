"""The command ``skpatchcore``: demo, benchmark, fit and score.

Only click is imported here; all else, torch above all, where it is needed, so that help
and mistyped options are answered at once.
"""

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from skpatchcore import __version__
from skpatchcore._cli._options import (
    EXISTING_FILE,
    NEW_FILE,
    NEW_FOLDER,
    common_options,
    detector_options,
    device_option,
    group_finder,
    group_options,
    option,
    random_state_option,
)
from skpatchcore._cli._types import CommaSeparated, KeywordOr

# What a shell reports for a process that SIGINT ended: 128 + 2.
_INTERRUPTED = 130


# Errors -----------------------------------------------------------------------------


class _Command(click.Command):
    """A command that answers every error in one line, but for ``--debug``."""

    def invoke(self, ctx):
        debug = ctx.params.pop("debug")
        try:
            with _plain_warnings():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except BrokenPipeError:  # Who reads the output has seen enough: click knows.
            raise
        except Exception as error:
            if debug:
                raise
            raise click.ClickException(_describe(error)) from error


class _Group(click.Group):
    command_class = _Command


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings without the line of code that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: click.echo(
            f"Warning: {message}", err=True
        )
        yield


def _describe(error: Exception) -> str:
    """Return what to tell a user of an error."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError | ValueError | TypeError | ImportError):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


def _print(text: str, *, nl: bool = True) -> None:
    """Print text with names of files, which need not be valid in any encoding."""
    try:
        text.encode()  # click replaces what is not text where the locale is ASCII.
        click.echo(text, nl=nl)
    except UnicodeEncodeError:
        click.echo(text.encode("utf-8", "surrogateescape"), nl=nl)


def _watched() -> int:
    """Return 1 where a person sees progress bars, and 0 in scripts and in CI."""
    return int(sys.stderr.isatty())


# Commands ---------------------------------------------------------------------------


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="skpatchcore")
def main():
    """Find defects in images, having seen only good parts (PatchCore)."""


@main.command()
@option(
    "--output",
    type=NEW_FOLDER,
    default="skpatchcore_demo",
    help="Folder for demo_sheet.png.",
)
@random_state_option
@common_options
def demo(output, random_state):
    """Try it out on generated images.

    Needs neither data nor a download. Prints how well defects are found, and draws
    images, anomaly maps and masks on a sheet.
    """
    from skpatchcore._benchmark import format_table
    from skpatchcore._cli._demo import COLUMNS, draw_sheet, run_demo
    from skpatchcore.inspection import check_matplotlib

    output.mkdir(parents=True, exist_ok=True)
    click.echo("Learning what good surfaces look like ...", err=True)
    found = run_demo(random_state, verbose=_watched())
    click.echo(format_table([found.metrics], COLUMNS))
    try:
        check_matplotlib()
    except ImportError as error:
        click.echo(f"No sheet of images was drawn. {error}", err=True)
    else:
        draw_sheet(found, output / "demo_sheet.png")
        _print(f"\nImages, anomaly maps and masks: {output / 'demo_sheet.png'}")
    click.echo(
        "Next, your own images:  skpatchcore fit FOLDER_OF_GOOD --model part.skpc\n"
        "                          skpatchcore score --model part.skpc NEW_IMAGES"
    )


@main.command()
@click.argument("data_root", type=click.Path(exists=True, file_okay=False))
@option(
    "--categories",
    metavar="A,B",
    type=CommaSeparated(),
    help="Categories, each a folder in DATA_ROOT.  [default: all]",
)
@option(
    "--output",
    type=NEW_FOLDER,
    default="skpatchcore_benchmark",
    help="Folder for results.csv, .json, .md and .tex, and reports.",
)
@option(
    "--report",
    is_flag=True,
    help="Write an HTML page for each category: curves, threshold, misjudged images.",
)
@option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    default=0.05,
    help="Share of good images that the threshold of reports may flag.",
)
@group_options
@detector_options
@common_options
def benchmark(
    data_root,
    categories,
    output,
    report,
    alpha,
    group_pattern,
    group_list,
    group_column,
    **settings,
):
    """Measure on data sets like MVTec AD.

    DATA_ROOT holds a folder for each category, with train/good, test/<kind> and
    ground_truth/<kind>. For each, a detector is fitted and its results are written,
    beside published ones where there are any for the setting.
    """
    from skpatchcore._benchmark import _evaluate as _benchmark
    from skpatchcore._benchmark import _tables as _results
    from skpatchcore._utils import check_writable

    if output.is_dir():
        check_writable(output / "results.csv")
    find_groups = group_finder(group_pattern, group_list, group_column)
    if find_groups and not report:
        raise click.UsageError(
            "--group-pattern and --group-list are for the threshold of reports; add "
            "--report."
        )
    if report:
        from skpatchcore._benchmark import check_report

        check_report()
    detector = _benchmark.build_detector(settings)
    detector.set_params(verbose=detector.verbose or _watched())
    categories = _benchmark.choose_categories(data_root, categories)
    _benchmark.try_settings(detector, data_root, categories)
    settings = {"data_root": data_root, "categories": categories} | dict(
        sorted(settings.items())
    )
    groups = {}
    if find_groups:
        groups = _benchmark.find_groups(find_groups, data_root, categories)
    run = _Run(output, settings, alpha if report else None, groups)
    failures = run.evaluate(detector, data_root, categories)
    if run.rows:
        rows = [*run.rows, _results.mean_row(run.rows)]
        click.echo(_results.format_table(rows))
        _print("\n" + run.describe_files())
    if failures:
        listed = "".join(f"\n  {name}: {text}" for name, text in failures.items())
        raise click.ClickException(
            f"{len(failures)} of {len(categories)} categories failed:{listed}"
        )


class _Run:
    """Results of one category after the other, written as they come."""

    def __init__(self, output: Path, settings: dict, alpha: float | None, groups: dict):
        self.output, self.settings, self.alpha = output, settings, alpha
        self.groups = groups
        self.rows, self.files, self.reports = [], [], []

    def evaluate(self, detector, data_root, categories) -> dict[str, str]:
        """Evaluate each category; return what failed, and why."""
        from sklearn.base import clone

        failures = {}
        for i, category in enumerate(categories, 1):
            click.echo(f"[{i}/{len(categories)}] {category} ...", err=True)
            try:
                self._add(clone(detector), data_root, category)
            # Whatever it is: hours of other categories are not to be lost to it.
            except Exception as error:
                failures[category] = _describe(error)
                click.echo(f"  failed: {failures[category]}", err=True)
        return failures

    def _add(self, detector, data_root, category: str) -> None:
        from skpatchcore._benchmark import _evaluate as _benchmark
        from skpatchcore._benchmark import _tables as _results

        evaluation = _benchmark.evaluate_category(detector, data_root, category)
        self.rows.append(evaluation.row)
        self.files = _results.write_results(self.output, self.rows, self.settings)
        click.echo(f"  {_summarize(evaluation.row)}", err=True)
        if self.alpha is not None:
            from skpatchcore._benchmark import write_report

            folder, verbose = self.output / "reports", detector.verbose
            report = write_report(
                folder,
                evaluation,
                self.settings,
                self.alpha,
                groups=self.groups.get(category),
                verbose=verbose,
            )
            self.reports.append(report)

    def describe_files(self) -> str:
        first, *others = self.files
        suffixes = ", ".join(file.suffix for file in others)
        lines = [f"Results: {first}, {suffixes}"]
        lines += [f"Report: {report}" for report in self.reports]
        return "\n".join(lines)


def _summarize(row: dict) -> str:
    parts = [f"image AUROC {row['image_auroc']:.3f}"]
    if row["pixel_auroc"] is not None:
        parts.append(f"pixel AUROC {row['pixel_auroc']:.3f}")
        parts.append(f"AUPRO {row['aupro']:.3f}")
    seconds = f"{row['fit_seconds']:.1f} s + {row['predict_seconds']:.1f} s"
    return f"{', '.join(parts)}  ({seconds})"


@main.command()
@click.argument("train", nargs=-1, required=True, type=click.Path(exists=True))
@option("--model", type=NEW_FILE, required=True, help="File to write, *.skpc.")
@option(
    "--include-backbone",
    is_flag=True,
    help="Store the network's weights in the model as well.",
)
@option(
    "--contamination",
    metavar="auto|SHARE",
    type=KeywordOr(click.FloatRange(0, 0.5, min_open=True), "auto"),
    default="auto",
    help="Share of the training images to put beyond the threshold; auto: 0.01.",
)
@option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    help="Images that cannot be read: end with an error, or leave them out.",
)
@detector_options
@common_options
def fit(train, model, include_backbone, on_error, **settings):
    """Learn from images of good parts.

    TRAIN are images, or folders: either with images of good parts directly inside,
    or with train/good. What was learned is written to a model file.
    """
    from skpatchcore._benchmark import build_detector
    from skpatchcore._utils import check_writable
    from skpatchcore.persistence import save

    if not model.parent.is_dir():
        raise click.BadParameter(
            f"The folder {model.parent} does not exist.", param_hint="'--model'"
        )
    check_writable(model)
    images, target = _gather_training(train)
    if on_error == "skip":
        images, target = _leave_out_unreadable(images, target)
    click.echo(f"Learning from {target.count(1)} images ...", err=True)
    started = time.perf_counter()
    detector = build_detector(settings)
    detector.set_params(verbose=detector.verbose or _watched())
    detector.fit(images, target)
    seconds = time.perf_counter() - started
    save(detector, model, include_backbone=include_backbone)
    n_kept, n_features = detector.memory_bank_.bank_.shape
    _print(
        f"Kept {n_kept} patches of {n_features} features after {seconds:.1f} s; "
        f"images that score below {detector.offset_:.4g} are anomalous.\n"
        f"Model: {model} ({model.stat().st_size / 1e6:.1f} MB)"
    )


def _gather_training(paths: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return images and labels of files and folders, each image once."""
    from skpatchcore.datasets import Resolver, load_image_folder

    resolve, found = Resolver(), {}
    for path in paths:
        labelled = [(path, 1)]
        if os.path.isdir(path):
            data, labels = load_image_folder(path, subset="train", return_X_y=True)
            labelled = zip(data.tolist(), labels.tolist(), strict=True)
        for image, label in labelled:
            name, known = found.setdefault(resolve(image), (image, label))
            if label != known:
                raise ValueError(
                    f"{name} and {image} are the same image, given as good and as "
                    "defective. Leave one of them out."
                )
    return [name for name, _ in found.values()], [label for _, label in found.values()]


def _leave_out_unreadable(images, target) -> tuple[list[str], list[int]]:
    from skpatchcore.scoring import unreadable_images

    unreadable = unreadable_images(images, progress=True)
    _tell_unreadable(unreadable, len(images))
    bad = {one.index for one in unreadable}
    kept = [i for i in range(len(images)) if i not in bad]
    return [images[i] for i in kept], [target[i] for i in kept]


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True))
@option("--model", type=EXISTING_FILE, required=True, help="File that fit wrote.")
@option("--output", type=NEW_FILE, help="CSV file.  [default: standard output]")
@option(
    "--overlays",
    type=NEW_FOLDER,
    help="Folder for PNG files of the images with their anomaly maps laid over.",
)
@option(
    "--masks",
    type=NEW_FOLDER,
    help="Folder for PNG files that are white where an image is anomalous.",
)
@option(
    "--on-error",
    type=click.Choice(["raise", "skip", "nan"]),
    default="raise",
    help="Images that cannot be read: end with an error, leave them out and go on, "
    "or list them with the score nan.",
)
@option(
    "--report",
    type=NEW_FILE,
    help="CSV file of the images that could not be read, and why.",
)
@option(
    "--weights",
    type=EXISTING_FILE,
    help="Local weights file of the network, if not the one of the fit.",
)
@device_option
@common_options
def score(images, model, output, overlays, masks, on_error, report, weights, device):
    """Score new images.

    IMAGES are files, or folders that are searched with all their subfolders. The
    result is a CSV of path, score, decision and label, and of p-values if the model has
    them. Scores and decisions are higher for more normal images; a decision below 0
    is anomalous.
    """
    from skpatchcore._benchmark import NAME_BYTES, replace_text
    from skpatchcore._cli import _score_output as _scoring
    from skpatchcore._utils import check_writable
    from skpatchcore.persistence import load
    from skpatchcore.scoring import as_results, inspect_images

    for path in (output, report):
        if path and path.parent.is_dir():
            check_writable(path)
    paths = _scoring.find_images(images)
    names = {folder: _scoring.png_paths(paths, folder) for folder in (overlays, masks)}
    detector = load(model, weights=weights, device=device)
    decoded, found, unreadable = inspect_images(
        detector, paths, on_error, progress=True
    )
    seen = [found[i] for i in sorted(found)]
    kept = range(len(paths)) if on_error == "nan" else sorted(found)
    table = _scoring.as_csv(paths, as_results(kept, found, unreadable))
    if output is None:
        _print(table, nl=False)
    else:
        replace_text(output, table, NAME_BYTES)
    _tell_unreadable(unreadable, len(paths))
    if report:
        replace_text(report, _scoring.as_report(paths, unreadable), NAME_BYTES)
    for folder, draw in (
        (overlays, lambda: _scoring.draw_overlays(decoded, seen)),
        (masks, lambda: _scoring.draw_masks(seen)),
    ):
        if folder:
            _save_pngs(draw(), [names[folder][one.index] for one in seen])


def _tell_unreadable(unreadable: Sequence, n_images: int) -> None:
    for bad in unreadable:
        click.echo(f"Unreadable: {bad.reason}", err=True)
    if unreadable:
        click.echo(f"{len(unreadable)} of {n_images} were unreadable.", err=True)


def _save_pngs(images: Iterable, paths: Sequence[Path]) -> None:
    from PIL import Image
    from tqdm.auto import tqdm

    from skpatchcore._utils import atomic_write

    pairs = zip(images, paths, strict=True)
    # None: only where a terminal is.
    for pixels, path in tqdm(pairs, "writing", total=len(paths), disable=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            Image.fromarray(pixels).save(file, "PNG")
