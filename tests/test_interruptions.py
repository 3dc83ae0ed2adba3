"""Ctrl-C at any line of a fit leaves the estimator as it was before."""

import linecache
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import skpatchcore
from helpers import random_images
from skpatchcore import PatchCoreDetector, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore._backbones._hooks import FORWARD_LOCK
from skpatchcore._utils._precision import _PRECISION_LOCK
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector

FOLDER = str(Path(skpatchcore.__file__).parent)


def make_images(seed, n=10):
    return random_images(n, 16, 16, seed)


def make_features(**params):
    return PatchFeatureTransformer("gabor", ("fine",), image_size=16, **params)


def make_detector():
    return PatchCoreDetector(make_features(projection=5), random_state=0)


def make_rows(seed):
    return np.random.default_rng(seed).normal(size=(40, 3))


def conformal(method):
    return lambda: ConformalDetector(
        make_detector(), alpha=0.2, method=method, cv=2, random_state=0
    )


ESTIMATORS = {
    "transformer": (make_features, make_images, "transform"),
    "bank": (lambda: PatchMemoryBank(random_state=0), make_rows, "score_samples"),
    "detector": (make_detector, make_images, "predict_maps"),
    "cross": (conformal("cross"), make_images, "score_samples"),
    "split": (conformal("split"), make_images, "predict_masks"),
    "refit": (conformal("refit"), make_images, "score_samples"),
    "tuned": (
        lambda: TunedThresholdDetector(make_detector(), cv=2),
        make_images,
        "decision_function",
    ),
}


class Interruption:
    """Raises KeyboardInterrupt at the n-th line of the package that is run."""

    def __init__(self, n):
        self.n, self.n_lines = n, 0

    def __call__(self, frame, event, arg):
        code = frame.f_code
        # Python itself drops what is raised while it disposes of an object.
        if code.co_name == "forget" or not code.co_filename.startswith(FOLDER):
            return None
        return self.trace

    def trace(self, frame, event, arg):
        # Between the end of a block and what its "with" gives back, and where a "try"
        # begins, a trace can raise, but no signal does: locks would be kept for good.
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not line.lstrip().startswith(("with ", "try:")):
            self.n_lines += 1
            if self.n_lines == self.n:
                raise KeyboardInterrupt
        return self.trace

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *exception):
        sys.settrace(self.before)


def is_free(lock):
    """Return whether another thread can have the lock."""
    with ThreadPoolExecutor(1) as pool:
        free = pool.submit(lock.acquire, blocking=False).result()
        if free:
            pool.submit(lock.release).result()
    return free


# joblib opens a file some lines before it is guarded: a trace may raise between them.
@pytest.mark.filterwarnings("ignore:unclosed file .*/joblib/:ResourceWarning")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_interrupted_fit_changes_nothing(name):
    make, make_X, method = ESTIMATORS[name]
    X, other, y = make_X(0), make_X(1), np.repeat([1, -1], [7, 3])
    y = y if name == "tuned" else None
    estimator = make().fit(X, y)
    with Interruption(0) as counted:
        estimator.fit(other, y)
    n = counted.n_lines
    estimator.fit(X, y)
    expected = getattr(estimator, method)(other)
    before = dict(vars(estimator))
    # Its last lines are those that set attributes.
    moments = {*np.linspace(1, n, 12).astype(int), *range(max(1, n - 20), n + 1)}
    for moment in sorted(moments):
        with pytest.raises(KeyboardInterrupt), Interruption(moment):
            estimator.fit(other, y)
        after = vars(estimator)
        assert after.keys() == before.keys(), moment
        assert all(after[key] is before[key] for key in before), moment
    assert_array_equal(getattr(estimator, method)(other), expected)
    assert all(map(is_free, (_PRECISION_LOCK, FORWARD_LOCK)))
