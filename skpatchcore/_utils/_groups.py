"""Groups of samples, such as several images of the same part."""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, column_or_1d


def encode_groups(groups: ArrayLike, n_samples: int) -> NDArray:
    """Return the group of each sample as an integer from 0.

    Raises
    ------
    ValueError
        If `groups` does not have the length of X, is not one-dimensional, or a group is
        missing (None or NaN).
    """
    groups = check_array(
        groups,
        ensure_2d=False,
        dtype=None,
        ensure_all_finite=False,
        input_name="groups",
    )
    names: NDArray = column_or_1d(groups)
    if len(names) != n_samples:
        raise ValueError(
            f"groups has {len(names)} values, but X has {n_samples} samples; pass one "
            "value per sample."
        )
    # Only NaN differs from itself.
    missing = [i for i, one in enumerate(names.tolist()) if one is None or one != one]
    if missing:
        raise ValueError(
            f"groups has {len(missing)} missing values, the first at {missing[0]} "
            f"({names[missing[0]]}); give every sample the name of its group, and a "
            "sample that belongs to no other a name of its own."
        )
    return np.unique(names, return_inverse=True)[1]


def groups_by_pattern(
    paths: Sequence[str | os.PathLike], pattern: str
) -> NDArray[np.str_]:
    """Return the part of each path that matches a regular expression.

    Parameters
    ----------
    paths : sequence of str or path-like
        Image files.
    pattern : str
        Searched in each path, with forward slashes on every system. The group is the
        match of the first pair of parentheses, or the whole match if there are none.

    Returns
    -------
    groups : ndarray of shape (n_paths,), of str

    Raises
    ------
    ValueError
        If `pattern` is not a regular expression, or a path does not match it.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}.") from None
    groups = []
    for path in paths:
        found = expression.search(Path(path).as_posix())
        name = found and found.group(1 if expression.groups else 0)
        if not name:
            raise ValueError(
                f"The group pattern {pattern!r} finds no group in {path}. Every image "
                "needs one; the first pair of parentheses, or the whole pattern, must "
                "match the part of the path that names the group."
            )
        groups.append(name)
    return np.array(groups, dtype=str)


def groups_from_list(
    paths: Sequence[str | os.PathLike], file: str | os.PathLike, column: str = "group"
) -> NDArray[np.str_]:
    """Return the group of each path from a CSV file.

    Parameters
    ----------
    paths : sequence of str or path-like
        Image files.
    file : str or path-like
        CSV file with a header. Its column ``path`` names images, absolute or relative
        to the folder of the file. Rows for other images are ignored.
    column : str
        Name of the column with the groups.

    Returns
    -------
    groups : ndarray of shape (n_paths,), of str

    Raises
    ------
    ValueError
        If a column is missing, or an image has no row, an empty group, or two groups.
    """
    file = Path(file)
    group_of = _read_list(file, column)
    groups = []
    for path in paths:
        name = group_of.get(Path(path).resolve())
        if not name:
            raise ValueError(
                f"{file} gives no group for {path}. Every image needs a row with its "
                f"path, absolute or relative to {file.parent}, and its {column!r}."
            )
        groups.append(name)
    return np.array(groups, dtype=str)


def _read_list(file: Path, column: str) -> dict[Path, str]:
    """Return the group of each image that a CSV file lists."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        table = csv.DictReader(lines)
        missing = {"path", column} - set(table.fieldnames or ())
        if missing:
            raise ValueError(
                f"{file} has no column {' or '.join(map(repr, sorted(missing)))}; its "
                f"first line names the columns {table.fieldnames}."
            )
        group_of: dict[Path, str] = {}
        for row in table:
            path, name = (file.parent / row["path"]).resolve(), row[column] or ""
            if group_of.setdefault(path, name.strip()) != name.strip():
                raise ValueError(
                    f"{file}, line {table.line_num}: {row['path']} has the groups "
                    f"{group_of[path]!r} and {name.strip()!r}; an image has one."
                )
    return group_of
