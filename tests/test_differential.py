"""Drawn combinations of options: a detector equals its file, its pickle and its clone.

``SKPATCHCORE_DIFFERENTIAL_CASES`` sets the number of cases, 20 by default.
"""

import os
import pickle
import re
import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
)
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.datasets import make_surface_defects
from skpatchcore.persistence import load, save

N_CASES = int(os.environ.get("SKPATCHCORE_DIFFERENTIAL_CASES", "20"))
SURFACES = make_surface_defects(8, 3, 3, image_size=40, random_state=0)


class Draw:
    """Options of one case."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def one(self, *choices):
        return choices[self._rng.integers(len(choices))]

    def features(self) -> PatchFeatureTransformer:
        return PatchFeatureTransformer(
            "gabor",
            self.one(("fine",), ("fine", "coarse"), ("coarse", "fine")),
            image_size=self.one(32, (32, 40)),
            crop_size=self.one(None, None, 24),
            patch_size=self.one(1, 3),
            patch_stride=self.one(1, 1, 2),
            descriptor=self.one("centered", "concat", 12),
            layer_weights=self.one("auto", None),
            projection=self.one(None, None, 6, PCA(5), PCA(4, svd_solver="randomized")),
            batch_size=self.one(1, 3, 32),
        )

    def sampler(self) -> CoresetSampler:
        return CoresetSampler(
            self.one(0.1, 0.3, 1.0, 20),
            method=self.one("greedy", "greedy", "random", "none"),
            projection_dim=self.one(None, 8),
        )

    def detector(self) -> PatchCoreDetector:
        eq7 = self.one(True, False, False)
        return PatchCoreDetector(
            self.features(),
            self.sampler(),
            n_neighbors=1 if eq7 else self.one(1, 1, 3),
            metric=self.one("euclidean", "sqeuclidean", "cosine"),
            algorithm=self.one("auto", "torch", "faiss", "pynndescent"),
            reduction="max" if eq7 else self.one("max", 0.1, 1.0),
            reweight=3 if eq7 else None,
            position_window=self.one(None, None, 3, (1, 5)),
            outlier_filter=self.one(None, None, "sample", "lof", "nearest", "gaussian"),
            contamination=self.one("auto", 0.2),
            augmentation=self.one(None, None, "flip", ["brightness"]),
            foreground=self.one(None, None, "auto"),
            smoothing=self.one(0, 1.5),
            random_state=0,
        )

    def estimator(self):
        kind = self.one("plain", "ensemble", "conformal", "tuned", "pipeline", "both")
        if kind == "ensemble":
            members = [("a", self.detector()), ("b", self.detector())]
            return PatchCoreEnsemble(members, cv=self.one(2, 4), random_state=0)
        if kind == "tuned":
            return TunedThresholdDetector(self.detector(), cv=2)
        if kind == "pipeline":
            return Pipeline([("detector", self.detector())])
        if kind in ("conformal", "both"):
            method = self.one("cross", "refit", "split", "jackknife+")
            inner = self.detector()
            if kind == "both":
                inner = Pipeline([("detector", inner)])
            return ConformalDetector(
                inner, alpha=0.3, method=method, cv=3, random_state=0
            )
        return self.detector()


def fit(estimator):
    with warnings.catch_warnings():
        # Eight images of 40 pixels are few, and some options say so.
        warnings.simplefilter("ignore", UserWarning)
        y = SURFACES.target
        rows = np.arange(len(y))
        if not isinstance(estimator, TunedThresholdDetector):
            rows = np.flatnonzero(y == 1)
        return estimator.fit([SURFACES.data[i] for i in rows], y[rows])


def flat(values) -> np.ndarray:
    """Return arrays of unequal shapes, by image or by member of an ensemble, as one."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list) or np.asarray(values).dtype.kind == "O":
        return np.concatenate([flat(value) for value in values])
    return np.ravel(values)


def answers(detector) -> dict[str, np.ndarray]:
    """Return all that a detector of images says about new images."""
    detector = detector[-1] if isinstance(detector, Pipeline) else detector
    images = SURFACES.data[-6:]
    matches = detector.nearest_patches(images[:2])
    found = {
        "scores": detector.score_samples(images),
        "decisions": detector.decision_function(images),
        "labels": detector.predict(images),
        "maps": np.stack(detector.predict_maps(images)),
        "masks": np.stack(detector.predict_masks(images)),
        "thresholds": np.array([detector.offset_, detector.map_threshold_]),
        **{f"nearest {name}": flat(matches[name]) for name in matches},
    }
    if isinstance(detector, ConformalDetector):
        found["p-values"] = detector.predict_pvalue(images)
    return found


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("seed", range(N_CASES))
def test_file_pickle_and_refitted_clone_answer_as_the_original(seed, tmp_path):
    unfitted = Draw(seed).estimator()
    try:
        original = fit(clone(unfitted))
    except ValueError as error:
        # Such as too few rows for eq. 7.
        with pytest.raises(ValueError, match=re.escape(str(error))):
            fit(unfitted)
        return
    expected = answers(original)
    assert np.isfinite(expected["scores"]).all()
    save(original, tmp_path / "model.skpc")
    assert_same(answers(load(tmp_path / "model.skpc")), expected)
    assert_same(answers(pickle.loads(pickle.dumps(original))), expected)
    assert_same(answers(fit(clone(original))), expected)


def test_cases_reach_every_kind_of_detector_and_option():
    drawn = [Draw(seed).estimator() for seed in range(60)]
    params = [estimator.get_params() for estimator in drawn]
    kinds = {type(estimator) for estimator in drawn}
    assert len(kinds) == 5
    for option in ("metric", "reduction", "algorithm", "outlier_filter", "foreground"):
        values = {
            str(value)
            for given in params
            for name, value in given.items()
            if name.split("__")[-1] == option
        }
        assert len(values) >= 2, option
