"""The evaluation behind ``skpatchcore benchmark``.

Runs detectors on data sets, compares results with published ones, and writes
reports.
"""

from skpatchcore._benchmark._evaluate import (
    build_detector,
    choose_categories,
    evaluate_category,
    find_groups,
    measure_images,
    measure_pixels,
    score_and_map,
    try_settings,
)
from skpatchcore._benchmark._report import check_rate, check_report, write_report
from skpatchcore._benchmark._tables import (
    IMAGE_COLUMNS,
    NAME_BYTES,
    PIXEL_COLUMNS,
    format_csv,
    format_table,
    mean_row,
    result_files,
    write_results,
)

__all__ = [
    "IMAGE_COLUMNS",
    "NAME_BYTES",
    "PIXEL_COLUMNS",
    "build_detector",
    "check_rate",
    "check_report",
    "choose_categories",
    "evaluate_category",
    "find_groups",
    "format_csv",
    "format_table",
    "mean_row",
    "measure_images",
    "measure_pixels",
    "result_files",
    "score_and_map",
    "try_settings",
    "write_report",
    "write_results",
]
