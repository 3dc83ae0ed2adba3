"""Results of an earlier version are reproduced, and its files are recognised."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from configurations import compute, configurations, data
from skpatchcore.persistence import ModelFileError, load

FOLDER = Path(__file__).parent / "earlier_version"
# The earlier version matched training samples with themselves. So their scores differ,
# and so do thresholds, except those that are set on held-out images.
OF_TRAINING_SAMPLES = {"scores", "p_values"}
FROM_TRAINING_SCORES = {"offset", "map_threshold"}
# Patches and their mirror images are at equal distances up to rounding, so processors
# select, and match, different ones. Distances, scores and maps agree.
TIES = {f"augmented/{key}" for key in ("bank_indices", "row", "column", "transform")}
HELD_OUT = {"ensemble", "conformal", "refit", "tuned"}


def new_samples(name):
    """Return which of the samples of a configuration nothing was learned from."""
    if name == "bank":
        return np.arange(60) >= 40
    _, labels = data()
    return labels == -1


@pytest.fixture(scope="module")
def earlier():
    with np.load(FOLDER / "results.npz") as results:
        return dict(results)


@pytest.mark.filterwarnings("ignore:The reference images have no foreground")
@pytest.mark.parametrize("name", configurations())
def test_results_are_those_of_the_earlier_version(name, earlier):
    _, arrays = compute(name, configurations()[name])
    assert {f"{name}/{key}" for key in arrays} == {
        key for key in earlier if key.startswith(f"{name}/")
    }
    for key, array in arrays.items():
        expected = earlier[f"{name}/{key}"]
        if key in FROM_TRAINING_SCORES and name not in HELD_OUT:
            continue
        if f"{name}/{key}" in TIES:
            assert array.shape == expected.shape
            continue
        if key in OF_TRAINING_SAMPLES:
            array, expected = array[new_samples(name)], expected[new_samples(name)]
        if expected.dtype.kind in "iu":
            assert_array_equal(array, expected, err_msg=key)
        else:
            # Processors round differently.
            scale = np.abs(expected).max()
            assert_allclose(array, expected, rtol=1e-5, atol=1e-6 * scale, err_msg=key)


@pytest.mark.parametrize("name", ["gabor", "conformal"])
def test_files_of_the_earlier_format_are_refused_by_name(name):
    with pytest.raises(
        ModelFileError, match=r"format version 1, written by skpatchcore 0\.1\.0\.dev0"
    ):
        load(FOLDER / f"{name}.skpc")
