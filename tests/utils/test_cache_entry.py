"""The file format of cache entries."""

import io

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skpatchcore._utils._cache_entry import (
    DamagedEntryError,
    are_rows,
    is_array,
    read_entry,
    write_entry,
)


def written(value, level=0, name="kind/key") -> bytes:
    file = io.BytesIO()
    write_entry(file, name, value, level)
    return file.getvalue()


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4)[:, ::2],
        np.array(1.5, dtype=np.float32),
        np.empty((0, 3), dtype=np.int32),
        np.array([True, False]),
        np.array([np.nan, -np.inf, -0.0]),
    ],
)
def test_arrays_are_restored_exactly_and_writable(array, level):
    found = read_entry(io.BytesIO(written(array, level)), "kind/key")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    found[...] = 1


def test_nested_values_are_restored():
    value = {"a": [1, (2.5, None), "text"], "b": np.arange(3), "c": {"array": True}}
    found = read_entry(io.BytesIO(written(value)), "kind/key")
    assert_array_equal(found.pop("b"), np.arange(3))
    assert found == {"a": [1, [2.5, None], "text"], "c": {"array": True}}


@pytest.mark.parametrize("value", [object(), np.array(["a"]), np.array([None]), {1}])
def test_other_values_are_refused(value):
    with pytest.raises(TypeError, match="Cache entries cannot contain"):
        written(value)


def test_the_file_of_another_entry_is_detected():
    with pytest.raises(DamagedEntryError, match="checksum"):
        read_entry(io.BytesIO(written(1, name="kind/other")), "kind/key")


@pytest.mark.parametrize("level", [0, 3])
def test_every_changed_byte_is_detected(level):
    whole = written([np.arange(5), "text"], level)
    for i in range(len(whole)):
        data = bytearray(whole)
        data[i] ^= 1
        with pytest.raises(DamagedEntryError):
            read_entry(io.BytesIO(data), "kind/key")


def test_every_truncation_is_detected():
    whole = written([np.arange(5), "text"])
    for n in range(len(whole)):
        with pytest.raises(DamagedEntryError):
            read_entry(io.BytesIO(whole[:n]), "kind/key")


@pytest.mark.parametrize(
    ("value", "dtype", "shape", "expected"),
    [
        (np.zeros((2, 3)), np.float64, (2, None), True),
        (np.zeros((2, 3)), np.float64, (3, None), False),
        (np.zeros((2, 3)), np.float32, (2, 3), False),
        (np.zeros(2), np.float64, (2, None), False),
        ([0.0, 0.0], np.float64, (2,), False),
    ],
)
def test_is_array(value, dtype, shape, expected):
    assert is_array(value, dtype, shape) is expected


@pytest.mark.parametrize(
    ("rows", "expected"), [([], True), ([0, 4], True), ([5], False), ([-1], False)]
)
def test_are_rows(rows, expected):
    assert bool(are_rows(np.array(rows, dtype=int), 5)) is expected
