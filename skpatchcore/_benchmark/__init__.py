"""The evaluation behind ``skpatchcore benchmark``.

Runs detectors on data sets, compares results with published ones, and writes
reports.
"""

from skpatchcore._benchmark._evaluate import (
    build_detector,
    measure_images,
    measure_pixels,
    score_and_map,
)
from skpatchcore._benchmark._report import check_report, write_report
from skpatchcore._benchmark._tables import (
    IMAGE_COLUMNS,
    NAME_BYTES,
    PIXEL_COLUMNS,
    format_csv,
    format_table,
    replace_text,
)

__all__ = [
    "IMAGE_COLUMNS",
    "NAME_BYTES",
    "PIXEL_COLUMNS",
    "build_detector",
    "check_report",
    "format_csv",
    "format_table",
    "measure_images",
    "measure_pixels",
    "replace_text",
    "score_and_map",
    "write_report",
]
