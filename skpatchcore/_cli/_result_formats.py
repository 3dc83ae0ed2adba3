"""Formats of the results of ``skpatchcore score``: CSV, JSON Lines and COCO JSON.

Each format turns the result of an image into one record, which is appended to a file as
soon as it is known. CSV and JSON Lines files are made of these records. A COCO file is
one JSON document, which is written at the end from a file of records.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from skpatchcore import __version__
from skpatchcore._benchmark import NAME_BYTES, format_csv
from skpatchcore.scoring import Inspection, Outcome, UnreadableImage

LABELS = {1: "normal", -1: "anomalous"}
UNREADABLE = "unreadable"
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "coco"}
# COCO has one class of objects here.
_DEFECT = 1


def format_name(output: Path | None, given: str | None) -> str:
    """Return the format asked for, or else that of the suffix; by default CSV."""
    if given is not None:
        return given
    return "csv" if output is None else _SUFFIXES.get(output.suffix.lower(), "csv")


class Identity(NamedTuple):
    """What a later run recognises a finished image by.

    Parameters
    ----------
    path : str
        The image, as the command lists it.
    sha256 : str
        Hash of the contents of its file; empty if it cannot be read.
    run : str
        Hash of the model and of the options that results depend on.
    """

    path: str
    sha256: str
    run: str


class ResultFormat(Protocol):
    """How results are written as records, and read again to resume a run."""

    header: bytes

    def record(self, outcome: Outcome, of: Identity) -> bytes:
        """Return the record of an image, which ends with a line break."""

    def read(self, record: bytes) -> tuple[Identity, str]:
        """Return the image of a record, and its label.

        Raises
        ------
        ValueError
            If it is not a record of this format.
        """

    def is_whole(self, lines: bytes) -> bool:
        """Return whether lines from the start of a record are all of it."""


def make_format(
    name: str, *, is_calibrated: bool, min_area: int | None
) -> ResultFormat:
    """Return the format of a name: "csv", "jsonl" or "coco"."""
    if name == "csv":
        return CsvFormat(is_calibrated, min_area)
    return JsonLinesFormat(min_area) if name == "jsonl" else CocoFormat(min_area)


class CsvFormat:
    """A table with one row for each image.

    With a smallest area of regions, it has their number and total area.
    """

    def __init__(self, is_calibrated: bool, min_area: int | None):
        self._min_area = min_area
        calibrated = ["p_value", "anomaly_score"] if is_calibrated else []
        self._numbers = ["score", "decision", *calibrated]
        regions = [] if min_area is None else ["n_regions", "region_area"]
        self._columns = ["path", *self._numbers, "label", *regions, "sha256", "run"]
        self._n_regions = len(regions)
        self.header = self._encode(self._columns)

    def record(self, outcome: Outcome, of: Identity) -> bytes:
        """Return the row of an image."""
        if isinstance(outcome, UnreadableImage):
            values: list = ["nan"] * len(self._numbers) + [UNREADABLE]
            values += [None] * self._n_regions
        else:
            values = [getattr(outcome, name) for name in self._numbers]
            values.append(LABELS[outcome.label])
            if self._min_area is not None:
                regions = outcome.find_regions(self._min_area)
                values += [len(regions), sum(region.area for region in regions)]
        return self._encode([of.path, *values, of.sha256, of.run])

    def read(self, record: bytes) -> tuple[Identity, str]:
        """Return the image of a row, and its label."""
        text = record.decode("utf-8", NAME_BYTES)
        (values,) = csv.reader(io.StringIO(text, newline=""), strict=True)
        row = dict(zip(self._columns, values, strict=True))
        return Identity(row["path"], row["sha256"], row["run"]), row["label"]

    def is_whole(self, lines: bytes) -> bool:
        """Return whether a line break at the end is outside of quotes."""
        return lines.count(b'"') % 2 == 0

    def _encode(self, row: Sequence) -> bytes:
        return format_csv([row]).encode("utf-8", NAME_BYTES)


class JsonLinesFormat:
    """One JSON object for each image, with its regions, in a line of its own."""

    header = b""

    def __init__(self, min_area: int | None):
        self._min_area = min_area or 1

    def record(self, outcome: Outcome, of: Identity) -> bytes:
        """Return the line of an image."""
        if isinstance(outcome, UnreadableImage):
            return self._encode(of, label=UNREADABLE, reason=outcome.reason)
        regions = outcome.find_regions(self._min_area)
        return self._encode(
            of,
            **_describe(outcome),
            map_threshold=float(outcome.map_threshold),
            map_peak=float(outcome.map.max()),
            regions=[region.as_dict() for region in regions],
        )

    def read(self, record: bytes) -> tuple[Identity, str]:
        """Return the image of a line, and its label."""
        values = _read_object(record)
        return Identity(values["path"], values["sha256"], values["run"]), values[
            "label"
        ]

    def is_whole(self, lines: bytes) -> bool:
        """Return True: JSON escapes line breaks in names."""
        return True

    def _encode(self, of: Identity, **values: Any) -> bytes:
        return _as_line({"path": of.path, **values, "sha256": of.sha256, "run": of.run})


class CocoFormat:
    """The entries of each image in a COCO file: an image, and its annotations."""

    header = b""

    def __init__(self, min_area: int | None):
        self._min_area = min_area or 1

    def record(self, outcome: Outcome, of: Identity) -> bytes:
        """Return the line of an image; their numbers follow in the COCO file."""
        if isinstance(outcome, UnreadableImage):
            raise TypeError("An unreadable image has no size, which COCO requires.")
        values = _describe(outcome)
        size = {name: values.pop(name) for name in ("width", "height")}
        image = {**size, "file_name": of.path, **values}
        image |= {"sha256": of.sha256, "run": of.run}
        annotations = [
            {
                "category_id": _DEFECT,
                "bbox": list(region.box),
                "segmentation": [region.polygon.ravel().tolist()],
                "area": region.area,
                "iscrowd": 0,
                "score": region.peak,
                "mean": region.mean,
            }
            for region in outcome.find_regions(self._min_area)
        ]
        return _as_line({"image": image, "annotations": annotations})

    def read(self, record: bytes) -> tuple[Identity, str]:
        """Return the image of a line, and its label."""
        image = _read_object(record)["image"]
        of = Identity(image["file_name"], image["sha256"], image["run"])
        return of, image["label"]

    def is_whole(self, lines: bytes) -> bool:
        """Return True: JSON escapes line breaks in names."""
        return True


def coco_parts(records: IO[bytes]) -> Iterator[bytes]:
    """Yield a COCO file in small parts, from a file of records."""
    category = {"id": _DEFECT, "name": "defect", "supercategory": "anomaly"}
    info = {"description": "skpatchcore score", "version": __version__}
    head = json.dumps({"info": info, "licenses": [], "categories": [category]})
    yield head.removesuffix("}").encode() + b', "images": ['
    yield from _items(_coco_images(records))
    yield b'], "annotations": ['
    yield from _items(_coco_annotations(records))
    yield b"]}\n"


def split_coco(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the records that a COCO file was written from.

    Raises
    ------
    ValueError
        If it is not such a file.
    """
    try:
        content = json.load(file)
    except ValueError:
        raise ValueError("it is not a JSON document") from None
    annotations: dict[int, list] = {}
    try:
        for one in content["annotations"]:
            plain = {k: v for k, v in one.items() if k not in ("id", "image_id")}
            annotations.setdefault(one["image_id"], []).append(plain)
        for image in content["images"]:
            found = annotations.get(image.pop("id"), [])
            yield _as_line({"image": image, "annotations": found})
    except (KeyError, TypeError, AttributeError):
        raise ValueError("it is not a COCO file with the results of score") from None


def _coco_images(records: IO[bytes]) -> Iterator[dict]:
    records.seek(0)
    for number, line in enumerate(records, start=1):
        yield {"id": number, **json.loads(line)["image"]}


def _coco_annotations(records: IO[bytes]) -> Iterator[dict]:
    records.seek(0)
    number = 0
    for image, line in enumerate(records, start=1):
        for annotation in json.loads(line)["annotations"]:
            number += 1
            yield {"id": number, "image_id": image, **annotation}


def _items(values: Iterable[dict]) -> Iterator[bytes]:
    separator = b"\n"
    for value in values:
        yield separator + json.dumps(value).encode()
        separator = b",\n"


def _describe(seen: Inspection) -> dict[str, Any]:
    """Return what JSON formats say about an image."""
    height, width = seen.map.shape
    values: dict[str, Any] = {
        "width": width,
        "height": height,
        "score": float(seen.score),
        "decision": float(seen.decision),
    }
    if seen.p_value is not None and seen.anomaly_score is not None:
        values["p_value"] = float(seen.p_value)
        values["anomaly_score"] = float(seen.anomaly_score)
    return values | {"label": LABELS[seen.label]}


def _as_line(values: dict[str, Any]) -> bytes:
    # ASCII: names of any bytes become escapes.
    return json.dumps(values, allow_nan=False).encode("ascii") + b"\n"


def _read_object(record: bytes) -> dict[str, Any]:
    values = json.loads(record)
    if not isinstance(values, dict):
        raise ValueError(f"expected a JSON object, got {record[:40]!r}")
    return values
