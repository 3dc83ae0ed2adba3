import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from skpatchcore._utils import floor_fraction
from skpatchcore._utils._patches import (
    Samples,
    argmax_patches,
    draw_evenly,
    reduce_patches,
)

SHAPES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1)


@given(SHAPES, st.data())
def test_selected_rows_stay_with_their_samples(shapes, data):
    shapes = np.array(shapes)
    n = shapes.prod(axis=1).sum()
    owner = np.repeat(np.arange(len(shapes)), shapes.prod(axis=1))
    samples = Samples.of_grids(np.arange(n)[:, None], shapes, np.arange(n) + 100)
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    rows = np.sort(rows)
    taken = samples.take(rows)
    assert_array_equal(taken.patches[:, 0], rows)
    assert_array_equal(taken.positions, rows + 100)
    expected = [rows[owner[rows] == i] for i in np.unique(owner[rows])]
    parts = np.split(taken.patches[:, 0], taken.offsets[1:-1])
    assert list(map(list, parts)) == list(map(list, expected))


def test_consecutive_rows_are_a_view():
    samples = Samples.of_grids(np.zeros((12, 2)), np.array([[2, 3], [1, 6]]))
    assert samples.take(np.arange(12)) is samples
    assert np.shares_memory(samples.take(np.arange(3, 9)).patches, samples.patches)


@given(st.lists(st.lists(st.floats(0, 9), min_size=1), min_size=1), st.floats(0.01, 1))
def test_scores_are_reduced_for_each_sample(samples, share):
    offsets = np.cumsum([0, *map(len, samples)])
    scores = np.concatenate(samples)
    largest = [max(one) for one in samples]
    assert_array_equal(reduce_patches(scores, offsets, "max"), largest)
    assert_array_equal(scores[argmax_patches(scores, offsets)], largest)
    # The share 0.9999999999999999 differs from 1 only by rounding.
    counts = [max(1, floor_fraction(share, len(one))) for one in samples]
    top = [np.mean(sorted(one)[-n:]) for one, n in zip(samples, counts, strict=True)]
    np.testing.assert_allclose(reduce_patches(scores, offsets, share), top)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 60))
def test_patches_are_drawn_from_all_columns_and_rows(height, width, n_most):
    sizes = np.full(200, height * width)
    drawn = np.arange(sizes.sum())[draw_evenly(sizes, n_most)]
    assert len(drawn) <= n_most
    places, n_times = np.unique(drawn % (height * width), return_counts=True)
    # Each position is drawn once before any is drawn again.
    assert len(places) == min(len(drawn), height * width)
    assert np.ptp(n_times) <= 1


def test_all_patches_are_drawn_if_there_are_few():
    assert draw_evenly(np.array([6, 0, 4]), 10) == slice(None, None, 1)
