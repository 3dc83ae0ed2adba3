"""The command ``benchmark``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skpatchcore._cli._detector_options import detector_options
from skpatchcore._cli._files import NamedPath, check_targets
from skpatchcore._cli._messages import (
    Command,
    describe_error,
    print_text,
    print_weights_hint,
    progress_level,
    use_option_names,
)
from skpatchcore._cli._options import (
    NEW_FOLDER,
    common_options,
    group_finder,
    group_options,
    is_given,
    max_pixels_option,
    option,
)
from skpatchcore._cli._types import CommaSeparated, Rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skpatchcore._detectors import PatchCoreDetector


@click.command(cls=Command)
@click.argument("data_root", type=click.Path(exists=True, file_okay=False))
@option(
    "--categories",
    metavar="A,B",
    type=CommaSeparated(),
    help="Categories to evaluate: names of folders in DATA_ROOT.  [default: all]",
)
@option(
    "--output",
    type=NEW_FOLDER,
    default="skpatchcore_benchmark",
    help="Folder to write results.csv, .json, .md, .tex and reports to.",
)
@option(
    "--report",
    is_flag=True,
    help="Write an HTML page for each category: curves, threshold, misjudged images.",
)
@option(
    "--alpha",
    type=Rate(),
    metavar="SHARE",
    default=0.05,
    help="False-alarm rate of the threshold in reports: the share of good images that "
    "it may flag. 0.05 needs at least 19 good training images, 0.01 needs 99.",
)
@option(
    "--save-models",
    type=NEW_FOLDER,
    help="Folder to write the fitted detector of each category to, as CATEGORY.skpc. "
    "Its threshold is the default one; to calibrate it, use fit --alpha.",
)
@group_options
@max_pixels_option
@detector_options
@common_options
def benchmark(
    data_root: str,
    categories: Sequence[str] | None,
    output: Path,
    report: bool,
    alpha: float,
    save_models: Path | None,
    group_pattern: str | None,
    group_list: Path | None,
    group_column: str,
    **settings: Any,
) -> None:
    """Measure on data sets in the layout of MVTec AD.

    DATA_ROOT contains a folder for each category, with the subfolders train/good,
    test/<kind> (or test_public/<kind>) and ground_truth/<kind>. Fits a detector on each
    category and writes its results. If results were published for the same settings,
    they are listed too.
    """
    from skpatchcore._benchmark import (
        build_detector,
        check_rate,
        check_report,
        choose_categories,
        find_groups,
        result_files,
        try_settings,
    )

    weights = None if settings["weights"] == "random" else settings["weights"]
    named = {"--group-list": group_list, "--weights": weights}
    read: list[NamedPath] = [(name, path) for name, path in named.items() if path]
    read += [("DATA_ROOT", path) for path in _image_folders(Path(data_root))]
    check_targets(
        [("--output", path) for path in result_files(output)],
        [
            ("--output", output / "reports" if report else output),
            *([("--save-models", save_models)] if save_models else []),
        ],
        read=read,
    )
    finder = group_finder(group_pattern, group_list, group_column)
    if not report and (finder or is_given("alpha")):
        raise click.UsageError(
            "--alpha, --group-pattern and --group-list affect only the threshold of "
            "reports. Add --report, or remove them."
        )
    if report:
        check_report()
    detector = build_detector(settings)
    detector.set_params(verbose=detector.verbose or progress_level())
    names = choose_categories(data_root, categories)
    try_settings(detector, data_root, names)
    models = {name: save_models / f"{name}.skpc" for name in names if save_models}
    check_targets([("--save-models", path) for path in models.values()], read=read)
    groups = find_groups(finder, data_root, names) if finder else {}
    if report:
        check_rate(alpha, data_root, names, groups)
    inputs = {"data_root": data_root, "categories": names}
    shown = inputs | dict(sorted(settings.items()))
    run = _Run(output, shown, alpha if report else None, groups, models)
    failures = run.evaluate(detector, data_root, names)
    run.print_results()
    if run.saved and weights:
        print_weights_hint(weights, "files do")
    _raise_failures(failures, len(names))


def _raise_failures(failures: Mapping[str, str], n_categories: int) -> None:
    if failures:
        listed = "".join(f"\n  {name}: {text}" for name, text in failures.items())
        raise click.ClickException(
            f"{len(failures)} of {n_categories} categories failed:{listed}"
        )


def _image_folders(data_root: Path) -> list[Path]:
    """Return the folders of a data set, which must not receive any output."""
    from skpatchcore.datasets import is_category

    return [path for path in data_root.iterdir() if is_category(path)]


class _Run:
    """The results of a run. They are written after each category."""

    def __init__(
        self,
        output: Path,
        settings: Mapping[str, Any],
        alpha: float | None,
        groups: "Mapping[str, NDArray]",
        models: Mapping[str, Path],
    ):
        self.output, self.settings, self.alpha = output, settings, alpha
        self.groups, self.models = groups, models
        self.rows: list[dict] = []
        self.files: list[Path] = []
        self.reports: list[Path] = []
        self.saved: list[Path] = []

    def evaluate(
        self,
        detector: "PatchCoreDetector",
        data_root: str,
        categories: Sequence[str],
    ) -> dict[str, str]:
        """Evaluate each category. Return the error messages of those that failed."""
        from sklearn.base import clone

        failures = {}
        for i, category in enumerate(categories, 1):
            click.echo(f"[{i}/{len(categories)}] {category} ...", err=True)
            try:
                self._add(clone(detector), data_root, category)
            # Any error: it must not discard hours of results from other categories.
            except Exception as error:
                params = click.get_current_context().command.params
                failures[category] = use_option_names(describe_error(error), params)
                click.echo(f"  failed: {failures[category]}", err=True)
        return failures

    def _add(
        self, detector: "PatchCoreDetector", data_root: str, category: str
    ) -> None:
        from skpatchcore._benchmark import (
            evaluate_category,
            write_report,
            write_results,
        )

        evaluation = evaluate_category(detector, data_root, category)
        self.rows.append(evaluation.row)
        self.files = write_results(self.output, self.rows, self.settings)
        click.echo(f"  {_summarize(evaluation.row)}", err=True)
        if category in self.models:
            _save_model(detector, self.models[category])
            self.saved.append(self.models[category])
        if self.alpha is not None:
            report = write_report(
                self.output / "reports",
                evaluation,
                self.settings,
                self.alpha,
                groups=self.groups.get(category),
                verbose=detector.verbose,
            )
            self.reports.append(report)

    def print_results(self) -> None:
        """Print the table of results, if there are any, and the files with them."""
        from skpatchcore._benchmark import format_table, mean_row

        if self.rows:
            click.echo(format_table([*self.rows, mean_row(self.rows)]))
            print_text("\n" + self._describe_files())

    def _describe_files(self) -> str:
        first, *others = self.files
        suffixes = ", ".join(file.suffix for file in others)
        lines = [f"Results: {first}, {suffixes}"]
        lines += [f"Report: {report}" for report in self.reports]
        lines += [f"Model: {path}" for path in self.saved]
        return "\n".join(lines)


def _save_model(detector: "PatchCoreDetector", path: Path) -> None:
    """Write a fitted detector to a model file, in a folder that may be new."""
    from skpatchcore.persistence import save

    path.parent.mkdir(parents=True, exist_ok=True)
    save(detector, path)


def _summarize(row: Mapping[str, Any]) -> str:
    parts = [f"image AUROC {row['image_auroc']:.3f}"]
    if row["pixel_auroc"] is not None:
        parts.append(f"pixel AUROC {row['pixel_auroc']:.3f}")
        parts.append(f"AUPRO {row['aupro']:.3f}")
    seconds = f"{row['fit_seconds']:.1f} s + {row['predict_seconds']:.1f} s"
    return f"{', '.join(parts)}  ({seconds})"
