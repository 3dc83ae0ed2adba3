"""One HTML file about a category: how a detector judges it, and where it errs."""

import base64
import csv
import io
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.base import clone
from tqdm.auto import tqdm

from skpatchcore import _report_figures as figures
from skpatchcore._benchmark import Evaluation
from skpatchcore._conformal import Calibration, anomaly_score
from skpatchcore._device import resolve_device
from skpatchcore._results import (
    IMAGE_COLUMNS,
    PIXEL_COLUMNS,
    Comparison,
    column_title,
    replace_text,
    versions,
)
from skpatchcore.calibration import ConformalDetector
from skpatchcore.inspection._axes import check_matplotlib
from skpatchcore.inspection._patch_boxes import find_matches

_TEMPLATE = Path(__file__).with_name("_report_template.html")
_N_FOLDS = 5
_N_NEIGHBORS = 3
# What is shown of each kind, so that a file stays below 5 MB; the CSV lists all.
_MOST_MISJUDGED = 12
_N_CLOSEST = 2
_DPI = 110
_JPEG_QUALITY = 85
_CSV_COLUMNS = (
    *("path", "kind", "verdict", "score", "decision", "p_value"),
    *("nearest_picture", "distance"),
)
# Of two suffixes: photographs, and what has lines.
_MEDIA = {".jpg": "image/jpeg", ".png": "image/png"}


class Judgement(NamedTuple):
    """What a threshold from normal pictures alone makes of the test pictures."""

    alpha: float
    offset: float  # scores below are flagged
    held_out: Calibration  # scores of training pictures, by detectors without them
    peaks: Calibration  # the same of the largest values of their maps, negative
    flagged: np.ndarray  # (n,), bool
    seconds: float

    @property
    def map_threshold(self) -> float:
        return -self.peaks.offset(self.alpha)


def check_report() -> None:
    """Raise an error that says how to get what reports need, if it is not there."""
    check_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Reports need jinja2: pip install "skpatchcore[plot]".'
        ) from error


def judge(evaluation: Evaluation, alpha: float, groups=None) -> Judgement:
    """Set a threshold by training pictures held out in turn, and judge by it.

    The scores are those of the detector that has seen all of them, as with
    ``ConformalDetector(method="refit")``. An `alpha` smaller than the pictures, or
    their `groups`, support is raised to the smallest that they do.
    """
    started = time.perf_counter()
    train, detector = evaluation.train, evaluation.detector
    good = train.target == 1
    n = int(np.sum(good)) if groups is None else len(np.unique(groups[good]))
    if n < 2:
        raise ValueError(
            f"A report needs at least 2 good training pictures, or groups of them, to "
            f"hold out in turn, found {n}."
        )
    alpha = max(alpha, 1 / (n + 1))
    conformal = ConformalDetector(
        clone(detector), alpha=alpha, cv=min(_N_FOLDS, n), random_state=0
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
    folder,
    evaluation: Evaluation,
    settings: Mapping,
    alpha: float,
    *,
    groups=None,
    verbose=0,
) -> Path:
    """Write CATEGORY.html, and the pictures in it and a CSV to a folder CATEGORY.

    Parameters
    ----------
    folder : str or path-like
        Where to write; made if need be.
    evaluation : Evaluation
        What `evaluate_category` returns.
    settings : mapping
        What the run was asked to do.
    alpha : float
        Share of good pictures that the threshold may flag.
    groups : ndarray of shape (n_train,) or None
        The part that each training picture shows, if several show one.
    verbose : int
        Show a progress bar if positive.

    Returns
    -------
    path : Path
        The HTML file. All that it shows is in it: it opens without a network, and
        without the folder beside it.
    """
    category = evaluation.row["category"]
    pictures = Path(folder) / category
    pictures.mkdir(parents=True, exist_ok=True)
    judgement = judge(evaluation, alpha, groups)
    book = _Book(pictures)
    wrong = misjudged(evaluation, judgement)
    places = _find_places(evaluation, wrong)
    replace_text(
        pictures / "misjudged.csv", _as_csv(evaluation, judgement, wrong, places)
    )
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
    replace_text(path, text)
    return path


def misjudged(evaluation: Evaluation, judgement: Judgement) -> list[int]:
    """Return test pictures on the wrong side of the threshold, the worst first."""
    wrong = np.flatnonzero(judgement.flagged != (evaluation.test.target == -1))
    distance = np.abs(evaluation.scores[wrong] - judgement.offset)
    return wrong[np.argsort(-distance, kind="stable")].tolist()


def closest_calls(evaluation: Evaluation, judgement: Judgement) -> list[int]:
    """Return those on the right side nearest to the threshold, good and defective."""
    right = judgement.flagged == (evaluation.test.target == -1)
    distance = np.abs(evaluation.scores - judgement.offset)
    close = []
    for label in (1, -1):
        rows = np.flatnonzero(right & (evaluation.test.target == label))
        close += rows[np.argsort(distance[rows], kind="stable")][:_N_CLOSEST].tolist()
    return close


def _find_places(evaluation: Evaluation, rows: Sequence[int]) -> dict[int, dict]:
    """Return for each picture its most anomalous patch and the nearest normal ones."""
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
    """Figures saved to a folder, and given back as they go into a page."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, figure, name: str, alt: str) -> dict:
        path = self.folder / name
        options = {}
        if path.suffix == ".jpg":
            options = {"pil_kwargs": {"quality": _JPEG_QUALITY}}
        figure.savefig(path, dpi=_DPI, **options)
        data = base64.b64encode(path.read_bytes()).decode("ascii")
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
    return np.array(
        [
            [np.sum(flagged[target == label] == judged) for judged in (False, True)]
            for label in (1, -1)
        ]
    )


def _draw_sheet(book, evaluation, judgement, i: int, places: dict) -> dict:
    """Draw a picture with its map and its matches, and tell how it was judged."""
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
        "p_value": float(judgement.held_out.p_values(score)),
        "pictures": [
            book.add(maps, f"{name}_maps.jpg", "input, map, overlay and outlines"),
            book.add(matches, f"{name}_matches.jpg", "patch and nearest normal ones"),
        ],
    }


def _short_name(path) -> str:
    return "/".join(Path(path).parts[-2:])


def _verdict(label: int, flagged: bool) -> str:
    if label == 1:
        return "false alarm" if flagged else "passed"
    return "found" if flagged else "missed"


def _as_csv(evaluation, judgement, rows: Sequence[int], places: Mapping) -> str:
    """Return a table of pictures, how they were judged, and what they matched."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(_CSV_COLUMNS)
    for i in rows:
        score = float(evaluation.scores[i])
        table.writerow(
            [
                evaluation.test.data[i],
                evaluation.test.defect_types[i],
                _verdict(evaluation.test.target[i], judgement.flagged[i]),
                score,
                score - judgement.offset,
                float(judgement.held_out.p_values(score)),
                evaluation.train.data[places[i]["match_pictures"][0]],
                float(places[i]["distances"][0]),
            ]
        )
    return buffer.getvalue()


def _metric_rows(evaluation, judgement, settings) -> list[dict]:
    """Return a line for each metric: its name, value, and what others published."""
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
        value = "-" if row[name] is None else f"{row[name]:.3f}"
        lines.append(
            {"name": column_title(name), "value": value, "others": ", ".join(published)}
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
    """Return for each kind of test picture how many were flagged."""
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


def _render(**values) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(**values)
