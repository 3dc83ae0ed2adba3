"""Results of an earlier version are reproduced, and its files are recognised."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from configurations import compute, configurations
from skpatchcore.persistence import ModelFileError, load

FOLDER = Path(__file__).parent / "earlier_version"


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
