"""Warnings point to the line of the user, however deep in the package they arise."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore.calibration import ConformalDetector

X = np.random.default_rng(0).normal(size=(8, 4))
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


def small_bank():
    return PatchMemoryBank(CoresetSampler(1), random_state=0)


def make_detector():
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=32)
    return PatchCoreDetector(features, CoresetSampler(1), random_state=0)


CALLS = {
    "fit": lambda: small_bank().fit(X),
    "fit_predict": lambda: small_bank().fit_predict(X),
    "pipeline": lambda: make_pipeline("passthrough", small_bank()).fit(X),
    "conformal": lambda: ConformalDetector(small_bank(), alpha=0.5, cv=2).fit(X),
    "detector": lambda: make_detector().fit(IMAGES),
    "labels": lambda: PatchMemoryBank(CoresetSampler(0.5)).fit(X, [0, 1, 2, 0] * 2),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("always")
def test_warnings_point_to_the_line_of_the_user(call):
    with pytest.warns(UserWarning, match=r"bank has 1 row|y was ignored") as caught:
        CALLS[call]()
    assert {one.filename for one in caught} == {__file__}
