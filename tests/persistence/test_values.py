"""Kinds of values in model files: accepted values and descriptions."""

import inspect

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA

from skpatchcore.persistence._schema import FITTED, LEFT_OUT, OPTIONAL, PARAMS
from skpatchcore.persistence._values import (
    LARGEST,
    Array,
    Choice,
    Flag,
    Instance,
    Items,
    Names,
    Null,
    Number,
    Row,
    Text,
    Whole,
    in_short,
)

COUNT = Whole(1, 9)
FLOATS = Array(("float64",), 1, 0, 9)


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (Null(), [None], [0, False, ""]),
        (Flag(), [True, False], [0, 1, None, np.True_]),
        (COUNT, [1, 9], [0, 10, True, 1.0, "1", None, 10**30, np.int64(1)]),
        (Number(0, 1), [0, 1, 0.5], [True, -0.1, np.nan, np.inf, 10**400, "0", None]),
        (Number(0, 1, "low"), [1, 1e-9], [0, 0.0]),
        (Number(0, 1, "low, high"), [0.5], [0.0, 1.0]),
        (Number(0, 1, fraction=True), [1.0], [1, 0, True]),
        (Choice("a", "b"), ["a"], ["", "c", None, ["a"], 1]),
        (Text("a word", r"\w+", 3), ["abc"], ["", "abcd", "a\n", "a b", 1, None]),
        (Items(COUNT, 1, 2), [[1], (1, 2)], [[], [1, 2, 3], [True], 1, {1}, "1"]),
        (Items(COUNT, types=(tuple,)), [(), (1,)], [[1]]),
        (Row(COUNT, Null()), [(1, None)], [(1,), [1, None], (None, 1), 1]),
        (Names(), [np.array(["a"], object)], [["a"], np.array([1], object), "a"]),
        (Instance(PCA), [PCA()], [type("Own", (PCA,), {})(), PCA, None]),
        (Instance(PCA, subclassed=True), [type("Own", (PCA,), {})()], [None]),
        (COUNT | Null(), [1, None], [0, True]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_kinds_accept_their_values(kind, accepted, refused):
    assert all(map(kind.accepts, accepted))
    assert not any(map(kind.accepts, refused))
    assert str(kind)


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.0, np.nan]),
        np.array([np.inf]),
        np.array([-1.0]),
        np.array([10.0]),
        np.array([1]),
        np.array([1.0], np.float32),
        np.array([[1.0]]),
        np.array(1.0),
        [1.0],
        csr_matrix([[1.0]]),
    ],
    ids=str,
)
def test_arrays_of_another_type_or_range_are_refused(array):
    assert not FLOATS.accepts(array)


def test_arrays_may_be_empty_sparse_or_have_gaps():
    assert FLOATS.accepts(np.array([0.0, 9.0]))
    assert FLOATS.accepts(np.empty(0))
    assert Array(("float64",), 1, 0, 9, gaps=True).accepts(np.array([np.nan, 1]))
    assert Array(("float64",), 2, 0, 9, sparse=True).accepts(csr_matrix([[1.0]]))
    assert not Array(("float64",), 2, 2, 9, sparse=True).accepts(csr_matrix([[1.0]]))


def test_unbounded_numbers_and_arrays_are_described_as_finite():
    assert "finite" in str(Number(-LARGEST, LARGEST))
    assert "finite" in str(Array(("float32",), 2, -LARGEST, LARGEST))


def test_values_are_shown_in_short():
    assert in_short(np.arange(3.0)) == "float64 of shape (3,) with values from 0 to 2"
    assert len(in_short("x" * 10_000)) == 80
    assert in_short([1, 2]) == "[1, 2]"


OURS = [cls for cls in PARAMS if cls.__module__.startswith("skpatchcore")]


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_every_parameter_of_ours_is_stored_or_left_out(cls):
    """A new parameter must be added to one of the two lists."""
    expected = set(inspect.signature(cls.__init__).parameters) - {"self"}
    assert PARAMS[cls].keys() == expected - LEFT_OUT


@pytest.mark.parametrize("cls", FITTED, ids=lambda cls: cls.__name__)
def test_no_fitted_attribute_shadows_a_class_attribute(cls):
    names = FITTED[cls].keys() | OPTIONAL.get(cls, {}).keys()
    assert not names & PARAMS[cls].keys()
    assert not [name for name in names if hasattr(cls, name)]
