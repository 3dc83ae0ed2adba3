"""Format and write tables of results: plain text, CSV, JSON, Markdown and LaTeX."""

import csv
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tabulate import tabulate

from skpatchcore import __version__
from skpatchcore._benchmark._published import (
    Published,
    comparable,
    differences,
    published_value,
)
from skpatchcore._utils import atomic_write

IMAGE_COLUMNS = ("image_auroc", "image_ap", "image_f1")
PIXEL_COLUMNS = ("pixel_auroc", "pixel_ap", "pixel_f1", "aupro")
COLUMNS = (
    "category",
    "n_train",
    "n_test",
    *IMAGE_COLUMNS,
    *PIXEL_COLUMNS,
    "fit_seconds",
    "predict_seconds",
)
_PACKAGES = ("numpy", "scikit-learn", "timm", "torch")
# File names need not be valid text. Tables for programs keep the bytes of such names;
# documents contain escapes instead, as JSON always does.
NAME_BYTES, NAME_ESCAPES = "surrogateescape", "backslashreplace"


def mean_row(rows: Sequence[Mapping]) -> dict:
    """Return a row of means. Each mean is over the categories that have a value."""
    mean: dict[str, Any] = {"category": "mean"}
    for column in COLUMNS[1:]:
        values = [row[column] for row in rows if row[column] is not None]
        mean[column] = float(np.mean(values)) if values else None
    return mean


def write_results(
    folder: str | Path, rows: Sequence[Mapping], settings: Mapping
) -> list[Path]:
    """Write rows, their mean and published results; return the paths of the files.

    The files are results.csv, .json, .md and .tex. Each is replaced atomically.
    """
    folder, comparison = Path(folder), Comparison(rows, settings)
    rows = [*rows, mean_row(rows)]
    report = {
        "results": rows,
        "published": [comparison.describe(one) for one in comparison.published],
        "settings": dict(settings),
        "versions": versions(),
    }
    texts = [
        _as_csv(rows, comparison),
        json.dumps(report, indent=2) + "\n",
        _as_document(rows, comparison, "github"),
        _as_document(rows, comparison, "latex_booktabs"),
    ]
    files = result_files(folder)
    for file, text in zip(files, texts, strict=True):
        errors = NAME_BYTES if file.suffix == ".csv" else NAME_ESCAPES
        replace_text(file, text, errors)
    return files


def result_files(folder: Path) -> list[Path]:
    """Return the files that `write_results` writes."""
    return [folder / f"results.{suffix}" for suffix in ("csv", "json", "md", "tex")]


class Comparison:
    """Published results for the settings and the categories of a run."""

    def __init__(self, rows: Sequence[Mapping], settings: Mapping):
        self.rows, self.settings = rows, settings
        self.published = comparable(settings, rows)

    def columns(self) -> list[tuple[str, Published]]:
        """Return the pairs (metric, published setting) that have values."""
        return [
            (metric, one)
            for metric in (*IMAGE_COLUMNS, *PIXEL_COLUMNS)
            for one in self.published
            if metric in one.values
        ]

    def value(self, metric: str, one: Published, category: str) -> float | None:
        return published_value(one, metric, category, self.rows)

    def describe(self, one: Published) -> dict:
        """Return a published setting, its source and its values for this run."""
        names = [*(row["category"] for row in self.rows), "mean"]
        return {
            "name": one.name,
            "source": one.source,
            "url": one.url,
            "setting": dict(one.setting),
            "differs": differences(one, self.settings),
            "results": [
                {
                    "category": name,
                    **{metric: self.value(metric, one, name) for metric in one.values},
                }
                for name in names
            ],
        }

    def notes(self) -> list[str]:
        """Return the sources of published results, and how their settings differ."""
        notes = []
        for one in self.published:
            differs = differences(one, self.settings)
            setting = f"Differences: {differs}." if differs else "Same settings."
            notes.append(f"{one.name}: {one.source}, {one.url}. {setting}")
        return notes


def _as_csv(rows: Sequence[Mapping], comparison: Comparison) -> str:
    others = {
        f"{metric}_{one.name}": (metric, one) for metric, one in comparison.columns()
    }
    table: list[list] = [[*COLUMNS, *others]]
    for row in rows:
        theirs = [
            comparison.value(*column, row["category"]) for column in others.values()
        ]
        table.append([*(row[name] for name in COLUMNS), *theirs])
    return format_csv(table)


def format_csv(rows: Iterable[Sequence]) -> str:
    """Return rows as CSV; None becomes an empty field."""
    lines: list[str] = []
    # The csv module quotes a carriage return in a name only if line ends contain one.
    table = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    table.writerows(rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def _as_document(rows: Sequence[Mapping], comparison: Comparison, style: str) -> str:
    """Return the table and a comparison with published results, Markdown or LaTeX."""
    parts = [format_table(rows, style=style)]
    if comparison.published:
        parts.append(format_comparison(rows, comparison, style))
        is_latex = style.startswith("latex")
        parts += [("% " if is_latex else "") + note for note in comparison.notes()]
    return "\n\n".join(parts) + "\n"


def format_comparison(
    rows: Sequence[Mapping], comparison: Comparison, style: str
) -> str:
    """Return a table that compares a run with published results, metric by metric."""
    metrics = dict.fromkeys(metric for metric, _ in comparison.columns())
    headers = ["category"]
    columns = [[row["category"] for row in rows]]
    for metric in metrics:
        headers.append(f"{column_title(metric)} this run")
        columns.append([_format_cell(metric, row[metric]) for row in rows])
        for _, one in (
            column for column in comparison.columns() if column[0] == metric
        ):
            headers.append(f"{column_title(metric)} {one.name}")
            values = [comparison.value(metric, one, row["category"]) for row in rows]
            columns.append([_format_cell(metric, value) for value in values])
    return tabulate(
        list(zip(*columns, strict=True)),
        headers,
        tablefmt=style,
        colalign=["left", *["right"] * (len(headers) - 1)],
        disable_numparse=True,
    )


def replace_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file atomically; create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w", errors=errors) as file:
        file.write(text)


def versions() -> dict[str, str]:
    """Return the versions of the software that results depend on."""
    installed = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "skpatchcore": __version__,
        "python": platform.python_version(),
        **installed,
    }


def format_table(
    rows: Sequence[Mapping], columns: Sequence[str] = COLUMNS, style: str = "simple"
) -> str:
    """Return rows as a table, in plain text by default or in a style of tabulate."""
    cells = [[_format_cell(column, row[column]) for column in columns] for row in rows]
    # Two-line headers are for terminals only.
    header = _header if style == "simple" else column_title
    align = ["left" if column == "category" else "right" for column in columns]
    return tabulate(
        cells,
        [header(column) for column in columns],
        tablefmt=style,
        colalign=align,
        disable_numparse=True,
    )


def _header(column: str) -> str:
    for short in ("auroc", "aupro", "ap", "f1"):
        column = column.replace(f"_{short}", f"\n{short.upper()}")
    return {"aupro": "\nAUPRO"}.get(column, column.replace("_", "\n"))


def column_title(column: str) -> str:
    """Return the readable title of a column, on one line."""
    return _header(column).replace("\n", " ").strip()


def _format_cell(column: str, value) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if column.startswith("n_"):
        return f"{value:.0f}"
    return f"{value:.1f}" if column.endswith("_seconds") else f"{value:.3f}"
