"""Write an HTML report about a category: metrics, threshold and misjudged images."""

import base64
import io
import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.metrics import confusion_matrix
from tqdm.auto import tqdm

from skpatchcore._benchmark import _report_figures as figures
from skpatchcore._benchmark._evaluate import Evaluation, training_set
from skpatchcore._benchmark._tables import (
    IMAGE_COLUMNS,
    NAME_BYTES,
    NAME_ESCAPES,
    PIXEL_COLUMNS,
    Comparison,
    column_title,
    format_csv,
    replace_text,
    versions,
)
from skpatchcore._utils import atomic_write, resolve_device
from skpatchcore.calibration import (
    Calibration,
    ConformalDetector,
    anomaly_score,
    check_supported,
    n_needed,
    n_supported,
)
from skpatchcore.inspection import check_matplotlib, find_matches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = Path(__file__).with_name("_report_template.html")
_N_FOLDS = 5
_N_NEIGHBORS = 3
# Largest numbers of images shown, to keep the file below 5 MB. The CSV lists all.
_MOST_MISJUDGED = 12
_N_CLOSEST = 2
_DPI = 110
_JPEG_QUALITY = 85
_CSV_COLUMNS = (
    *("path", "kind", "verdict", "score", "decision", "p_value"),
    *("nearest_image", "distance"),
)
# JPEG for photographs, PNG for line graphics.
_MEDIA = {".jpg": "image/jpeg", ".png": "image/png"}


class Judgement(NamedTuple):
    """A threshold from normal images only, and its decisions on the test images."""

    alpha: float
    offset: float  # lower scores are flagged
    held_out: Calibration  # scores of training images, by detectors not fitted on them
    peaks: Calibration  # likewise, the negative maxima of their maps
    flagged: np.ndarray  # (n,), bool
    seconds: float

    @property
    def map_threshold(self) -> float:
        return -self.peaks.offset(self.alpha)


def check_report() -> None:
    """Raise an error that says how to install missing packages for reports."""
    check_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Reports need jinja2: pip install "skpatchcore[plot]".'
        ) from error


def check_rate(
    alpha: float,
    data_root: str | os.PathLike[str],
    categories: Sequence[str],
    groups: Mapping[str, np.ndarray],
) -> None:
    """Raise if a category has too few good training images for reports at a rate.

    Parameters
    ----------
    alpha : float
        Requested false-alarm rate.
    data_root : str or path-like
        Folder with one subfolder for each category.
    categories : sequence of str
        Names of the categories to report on.
    groups : mapping of str to ndarray
        The part that each training image shows, by category, if several show one.
    """
    too_few = {}
    for category in categories:
        try:
            train = training_set(Path(data_root), category)
        except (OSError, ValueError):
            continue  # Reported when this category is evaluated.
        n = _count_good(train.target, groups.get(category))
        if n_supported(alpha, n) == 0:
            too_few[category] = n
    if not too_few:
        return
    what = "parts with good training images" if groups else "good training images"
    listed = ", ".join(f"{name}: {n}" for name, n in too_few.items())
    smallest = np.ceil(1e4 / (min(too_few.values()) + 1)) / 1e4
    raise ValueError(
        f"alpha={alpha} needs at least {n_needed(alpha)} {what} for the threshold of "
        f"a report; there are fewer in {len(too_few)} of {len(categories)} categories "
        f"({listed}). Add images, pass alpha={smallest:g} or more, or leave out the "
        "report."
    )


def _count_good(target: np.ndarray, groups: np.ndarray | None = None) -> int:
    """Return the number of good images, or of groups that have some."""
    good = target == 1
    return int(np.sum(good)) if groups is None else len(np.unique(groups[good]))


def judge(
    evaluation: Evaluation, alpha: float, groups: np.ndarray | None = None
) -> Judgement:
    """Set a threshold from held-out training images, and apply it to the test images.

    The test scores come from the detector that was fitted on all training images, as
    with ``ConformalDetector(method="refit")``.

    Raises
    ------
    ValueError
        If the good training images, or their `groups`, are too few for `alpha`.
    """
    started = time.perf_counter()
    train, detector = evaluation.train, evaluation.detector
    n = _count_good(train.target, groups)
    check_supported(alpha, n, grouped=groups is not None)
    # A large alpha is supported by a single image, which nothing can be fitted without.
    n_folds = max(2, min(_N_FOLDS, n))
    conformal = ConformalDetector(
        clone(detector), alpha=alpha, cv=n_folds, random_state=0
    ).fit(train.data, train.target, groups=groups)
    # All are compared with scores of the one detector that has seen everything.
    one_detector = np.zeros(len(conformal.calibration_scores_), dtype=int)
    groups = getattr(conformal, "calibration_groups_", None)
    held_out = Calibration(conformal.calibration_scores_, one_detector, groups)
    offset = held_out.offset(alpha)
    return Judgement(
        alpha,
        offset,
        held_out,
        Calibration(-conformal._calibration_peaks, one_detector, groups),
        evaluation.scores < offset,
        time.perf_counter() - started,
    )


def write_report(
    folder: str | os.PathLike[str],
    evaluation: Evaluation,
    settings: Mapping,
    alpha: float,
    *,
    groups: np.ndarray | None = None,
    verbose: int = 0,
) -> Path:
    """Write CATEGORY.html, and a folder CATEGORY with its images and a CSV file.

    Parameters
    ----------
    folder : str or path-like
        Where to write. Created if it does not exist.
    evaluation : Evaluation
        Result of `evaluate_category`.
    settings : mapping
        Settings of the run, shown in the report.
    alpha : float
        Nominal false-alarm rate of the threshold, in (0, 1).
    groups : ndarray of shape (n_train,) or None
        The part that each training image shows, if several show one.
    verbose : int
        If positive, show a progress bar.

    Returns
    -------
    path : Path
        Path of the HTML file. It contains all its images, so it opens offline and
        without the folder.
    """
    category = evaluation.row["category"]
    images = Path(folder) / category
    images.mkdir(parents=True, exist_ok=True)
    judgement = judge(evaluation, alpha, groups)
    book = _Book(images)
    wrong = misjudged(evaluation, judgement)
    places = _find_places(evaluation, wrong)
    table = _as_csv(evaluation, judgement, wrong, places)
    replace_text(images / "misjudged.csv", table, NAME_BYTES)
    charts = _draw_charts(book, evaluation, judgement)
    close = closest_calls(evaluation, judgement)
    shown = [*wrong[:_MOST_MISJUDGED], *close]
    places |= _find_places(evaluation, close)
    bar = tqdm(shown, desc="report", disable=not verbose)
    sheets = [_draw_sheet(book, evaluation, judgement, i, places[i]) for i in bar]
    n_wrong = len(shown) - len(close)
    text = _render(
        category=category,
        row=evaluation.row,
        judgement=judgement,
        charts=charts,
        wrong=sheets[:n_wrong],
        n_wrong=len(wrong),
        close=sheets[n_wrong:],
        metrics=_metric_rows(evaluation, judgement, settings),
        notes=Comparison([evaluation.row], settings).notes(),
        kinds=_kind_rows(evaluation, judgement),
        settings=settings,
        versions=versions() | {"machine": _machine(settings)},
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    path = Path(folder) / f"{category}.html"
    replace_text(path, text, NAME_ESCAPES)
    return path


def misjudged(evaluation: Evaluation, judgement: Judgement) -> list[int]:
    """Return the test images on the wrong side of the threshold, the worst first."""
    wrong = np.flatnonzero(judgement.flagged != (evaluation.test.target == -1))
    distance = np.abs(evaluation.scores[wrong] - judgement.offset)
    return wrong[np.argsort(-distance, kind="stable")].tolist()


def closest_calls(evaluation: Evaluation, judgement: Judgement) -> list[int]:
    """Return the correctly judged images nearest to the threshold, of both classes."""
    right = judgement.flagged == (evaluation.test.target == -1)
    distance = np.abs(evaluation.scores - judgement.offset)
    close = []
    for label in (1, -1):
        rows = np.flatnonzero(right & (evaluation.test.target == label))
        close += rows[np.argsort(distance[rows], kind="stable")][:_N_CLOSEST].tolist()
    return close


def _find_places(evaluation: Evaluation, rows: Sequence[int]) -> dict[int, dict]:
    """Return the most anomalous patch of each image, and its nearest normal patches."""
    if not rows:
        return {}
    bank = evaluation.detector.memory_bank_.bank_
    found = find_matches(
        evaluation.detector,
        [evaluation.test.data[i] for i in rows],
        evaluation.train.data,
        None,
        min(_N_NEIGHBORS, len(bank)),
    )
    return {
        row: {name: values[j] for name, values in found.items()}
        for j, row in enumerate(rows)
    }


class _Book:
    """Saves figures to a folder, and returns them in the form that a page embeds."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, figure: "Figure", name: str, alt: str) -> dict:
        path = self.folder / name
        options: dict[str, Any] = {"format": path.suffix[1:], "dpi": _DPI}
        if path.suffix == ".jpg":
            options["pil_kwargs"] = {"quality": _JPEG_QUALITY}
        buffer = io.BytesIO()
        figure.savefig(buffer, **options)
        with atomic_write(path) as file:
            file.write(buffer.getvalue())
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        width, height = (round(side * _DPI) for side in figure.get_size_inches())
        return {
            "source": f"data:{_MEDIA[path.suffix]};base64,{data}",
            "alt": alt,
            "width": width,
            "height": height,
        }


def _draw_charts(book: _Book, evaluation: Evaluation, judgement: Judgement) -> dict:
    target, scores, offset = evaluation.test.target, evaluation.scores, judgement.offset
    drawn = {
        "roc": figures.draw_roc(target, scores, offset),
        "precision_recall": figures.draw_precision_recall(target, scores, offset),
        "densities": figures.draw_densities(
            judgement.held_out.scores, target, scores, offset, judgement.alpha
        ),
        "confusion": figures.draw_confusion(_confusion(target, judgement.flagged)),
    }
    return {
        name: book.add(figure, f"{name}.png", name.replace("_", " "))
        for name, figure in drawn.items()
    }


def _confusion(target: np.ndarray, flagged: np.ndarray) -> np.ndarray:
    """Return counts: rows are truly good, defective; columns are passed, flagged."""
    return confusion_matrix(target, np.where(flagged, -1, 1), labels=[1, -1])


def _draw_sheet(
    book: _Book, evaluation: Evaluation, judgement: Judgement, i: int, places: dict
) -> dict:
    """Draw an image with its map and its matches, and return how it was judged."""
    test, name = evaluation.test, f"{i:04}"
    (values,) = evaluation.detector.predict_maps([test.data[i]])
    scale = judgement.peaks.scale(-judgement.map_threshold)
    values = anomaly_score(values, judgement.map_threshold, scale)
    maps = figures.draw_map_row(
        test.data[i],
        values,
        test.masks[i],
        masks_known=test.target[i] == 1 or test.masks[i] is not None,
    )
    matches = figures.draw_match_row(test.data[i], evaluation.train.data, places)
    score = float(evaluation.scores[i])
    return {
        "name": _short_name(test.data[i]),
        "kind": test.defect_types[i],
        "verdict": _verdict(test.target[i], judgement.flagged[i]),
        "score": score,
        "p_value": float(judgement.held_out.p_values(evaluation.scores[i])),
        "images": [
            book.add(maps, f"{name}_maps.jpg", "input, map, overlay and outlines"),
            book.add(matches, f"{name}_matches.jpg", "patch and nearest normal ones"),
        ],
    }


def _short_name(path: str | os.PathLike[str]) -> str:
    return "/".join(Path(path).parts[-2:])


def _verdict(label: int, flagged: bool) -> str:
    if label == 1:
        return "false alarm" if flagged else "passed"
    return "found" if flagged else "missed"


def _as_csv(
    evaluation: Evaluation,
    judgement: Judgement,
    rows: Sequence[int],
    places: Mapping[int, dict],
) -> str:
    """Return a CSV table of images: how they were judged, and what they match."""
    table: list[Sequence] = [_CSV_COLUMNS]
    for i in rows:
        score = float(evaluation.scores[i])
        table.append(
            [
                evaluation.test.data[i],
                evaluation.test.defect_types[i],
                _verdict(evaluation.test.target[i], judgement.flagged[i]),
                score,
                score - judgement.offset,
                float(judgement.held_out.p_values(evaluation.scores[i])),
                evaluation.train.data[places[i]["match_images"][0]],
                float(places[i]["distances"][0]),
            ]
        )
    return format_csv(table)


def _metric_rows(
    evaluation: Evaluation, judgement: Judgement, settings: Mapping
) -> list[dict]:
    """Return a row for each metric: its name, its value and published values."""
    row = evaluation.row
    others = Comparison([row], settings)
    lines = []
    for name in (*IMAGE_COLUMNS, *PIXEL_COLUMNS):
        published = [
            f"{one.name} {value:.3f}"
            for metric, one in others.columns()
            if metric == name
            and (value := others.value(name, one, row["category"])) is not None
        ]
        own = "-" if row[name] is None else f"{row[name]:.3f}"
        lines.append(
            {"name": column_title(name), "value": own, "others": ", ".join(published)}
        )
    (_, false_alarms), (missed, found) = _confusion(
        evaluation.test.target, judgement.flagged
    ).tolist()
    at_threshold = {
        "false alarms at the threshold": _share(
            false_alarms, np.sum(evaluation.test.target == 1)
        ),
        "missed at the threshold": _share(missed, missed + found),
        "precision at the threshold": _share(found, found + false_alarms),
    }
    return lines + [
        {"name": name, "value": value, "others": ""}
        for name, value in at_threshold.items()
    ]


def _share(count: int, total: int) -> str:
    return f"{count} of {total} = {100 * count / total:.1f} %" if total else "-"


def _kind_rows(evaluation: Evaluation, judgement: Judgement) -> list[dict]:
    """Return the number of flagged images for each kind of test image."""
    kinds = evaluation.test.defect_types.astype(str)
    return [
        {
            "kind": kind,
            "n": int(np.sum(kinds == kind)),
            "flagged": int(np.sum(judgement.flagged[kinds == kind])),
            "median": f"{np.median(-evaluation.scores[kinds == kind]):.4g}",
        }
        for kind in np.unique(kinds)
    ]


def _machine(settings: Mapping) -> str:
    return f"{platform.system()} {platform.machine()}, " + str(
        resolve_device(settings.get("device"))
    )


def _render(**values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(**values)
