"""Columns of tables are lists of images; tables of several columns are errors."""

import numpy as np
import pandas as pd
import pytest

from skpatchcore._images._input import check_images

FILES = [f"{name}.png" for name in "abc"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).write_bytes(b"")


def polars(make):
    return lambda: make(pytest.importorskip("polars"))


def pyarrow(make):
    return lambda: make(pytest.importorskip("pyarrow"))


COLUMNS = {
    "pandas frame": lambda: pd.DataFrame({"path": FILES}),
    "pandas series": lambda: pd.Series(FILES),
    "pandas categories": lambda: pd.Series(FILES).astype("category"),
    "pandas index": lambda: pd.Index(FILES),
    "polars frame": polars(lambda pl: pl.DataFrame({"path": FILES})),
    "polars series": polars(lambda pl: pl.Series(FILES)),
    "pyarrow table": pyarrow(lambda pa: pa.table({"path": FILES})),
    "pyarrow column": pyarrow(lambda pa: pa.table({"path": FILES})["path"]),
    "pyarrow array": pyarrow(lambda pa: pa.array(FILES)),
    "pyarrow batch": pyarrow(lambda pa: pa.record_batch({"path": FILES})),
    "pandas of pyarrow": pyarrow(
        lambda pa: pd.Series(FILES, dtype=pd.ArrowDtype(pa.string()))
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_paths_is_a_list_of_images(kind):
    assert list(check_images(COLUMNS[kind]()).sources) == FILES


def test_a_column_of_arrays_is_a_list_of_images():
    arrays = [np.zeros((8, 8, 3)), np.ones((8, 9, 3))]
    assert [
        source.shape for source in check_images(pd.DataFrame({"x": arrays})).sources
    ] == [(8, 8, 3), (8, 9, 3)]


TABLES = {
    "pandas": lambda: pd.DataFrame({"path": FILES, "label": [1, 1, -1]}),
    "polars": polars(lambda pl: pl.DataFrame({"path": FILES, "label": [1, 1, -1]})),
    "pyarrow": pyarrow(lambda pa: pa.table({"path": FILES, "label": [1, 1, -1]})),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_two_columns_is_an_error_that_names_them(kind):
    with pytest.raises(ValueError, match=r"2 columns.*'path', 'label'.*X\['path'\]"):
        check_images(TABLES[kind]())


def test_a_table_of_many_numbers_names_only_some_columns():
    with pytest.raises(ValueError, match="784 columns") as caught:
        check_images(pd.DataFrame(np.zeros((2, 784))))
    assert len(str(caught.value)) < 300
    assert "(n, h, w)" in str(caught.value)


def test_a_table_without_columns_is_an_error():
    with pytest.raises(ValueError, match="without columns"):
        check_images(pd.DataFrame(index=range(3)))


HOLES = ["a.png", None, "b.png"]
MISSING = {
    "list": (lambda: HOLES, "None"),
    "array": (lambda: np.array(HOLES, dtype=object), "None"),
    "pandas": (lambda: pd.Series(HOLES, dtype=object), "None"),
    "pandas NaN": (lambda: pd.Series(["a.png", np.nan]), "NaN"),
    "pandas NA": (lambda: pd.Series(HOLES, dtype="string"), "<NA>"),
    "pandas NaT": (lambda: ["a.png", pd.NaT], "NaT"),
    "pandas frame": (lambda: pd.DataFrame({"path": HOLES}, dtype=object), "None"),
    "polars": (polars(lambda pl: pl.Series(HOLES)), "None"),
    "polars frame": (polars(lambda pl: pl.DataFrame({"path": HOLES})), "None"),
    "pyarrow": (pyarrow(lambda pa: pa.array(HOLES)), "None"),
    "pyarrow table": (pyarrow(lambda pa: pa.table({"path": HOLES})), "None"),
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_row_without_an_image_is_named(kind):
    make, shown = MISSING[kind]
    with pytest.raises(ValueError, match=f"image 1 is missing: X has {shown} in its"):
        check_images(make())
    failures = {}
    images = check_images(make(), failures)
    assert len(images) == len(make())
    assert list(failures) == [1]


@pytest.mark.parametrize("path", ["", " "])
def test_a_row_with_an_empty_path_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"^image 1 is missing: its path is "):
        check_images(["a.png", path])
