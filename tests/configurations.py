"""Configurations whose results must survive changes of the code's structure.

``python tests/configurations.py FOLDER`` writes their results, and model files of some,
to FOLDER. `tests/test_earlier_version.py` compares today's results with those that the
code before the folders were made wrote to `tests/earlier_version`.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.datasets import make_surface_defects

# Model files are kept for these, one for each kind of detector.
SAVED = ("gabor", "ensemble", "conformal", "tuned", "bank")


def gabor(*layers, **params) -> PatchFeatureTransformer:
    return PatchFeatureTransformer(
        "gabor", layers or ("fine",), image_size=48, **params
    )


def detector(features=None, fraction=0.05, **params) -> PatchCoreDetector:
    features = gabor() if features is None else features
    sampler = CoresetSampler(fraction)
    return PatchCoreDetector(features, sampler, random_state=0, **params)


def configurations() -> dict:
    """Return unfitted detectors by name."""
    resnet = PatchFeatureTransformer("resnet18", weights="random", image_size=64)
    pooled = PatchFeatureTransformer(
        "resnet18", weights="random", image_size=64, descriptor=64, projection=32
    )
    return {
        "gabor": detector(),
        "embedded": detector(PatchFeatureTransformer("embedded", image_size=64)),
        "resnet": detector(resnet, metric="cosine"),
        "pooled": detector(pooled, smoothing=0),
        "crop": detector(gabor("fine", "coarse", crop_size=32), n_neighbors=3),
        "top": detector(reduction=0.1, n_neighbors=2, metric="sqeuclidean"),
        "reweighted": detector(reweight=3),
        "window": detector(position_window=5),
        "filtered": detector(outlier_filter="lof"),
        "augmented": detector(augmentation="flip", foreground="auto"),
        "projected": detector(gabor(projection=PCA(4, svd_solver="full"))),
        "ensemble": PatchCoreEnsemble(
            [("fine", detector()), ("coarse", detector(gabor("coarse")))],
            cv=2,
            random_state=0,
        ),
        "conformal": ConformalDetector(detector(), alpha=0.2, cv=2, random_state=0),
        "refit": ConformalDetector(
            detector(), alpha=0.2, cv=2, method="refit", random_state=0
        ),
        "tuned": TunedThresholdDetector(detector(), cv=2),
        "bank": PatchMemoryBank(CoresetSampler(0.1), n_neighbors=2, random_state=0),
    }


def data():
    """Return images and labels, or patch features for a bank."""
    surfaces = make_surface_defects(6, 2, 2, image_size=64, random_state=0)
    return surfaces.data, surfaces.target


def compute(name: str, unfitted) -> tuple[object, dict[str, np.ndarray]]:
    """Return the fitted detector, and what it gives, as arrays by name."""
    images, labels = data()
    if name == "bank":
        X = np.random.default_rng(0).normal(size=(60, 5, 7))
        fitted = unfitted.fit(X[:40])
        distances, indices = fitted.kneighbors(X[40:])
        arrays = {"distances": distances, "indices": indices}
        return fitted, {**arrays, **_scores(fitted, X)}
    fitted = unfitted.fit(images, labels)
    arrays = _scores(fitted, images)
    if name not in ("tuned", "conformal"):
        arrays["maps"] = fitted.predict_maps(images[-2:])
        arrays["map_threshold"] = np.array(fitted.map_threshold_)
    if name == "conformal":
        arrays["maps"] = fitted.predict_maps(images[-2:], normalized=True)
        arrays["p_values"] = fitted.predict_pvalue(images)
    if isinstance(fitted, PatchCoreDetector):
        arrays["bank_indices"] = fitted.memory_bank_.bank_indices_
        matches = fitted.nearest_patches(images[-2:], 1)
        for key in ("row", "column", "transform", "distance"):
            arrays[key] = matches[key]
    return fitted, arrays


def _scores(fitted, X) -> dict[str, np.ndarray]:
    return {
        "scores": fitted.score_samples(X),
        "offset": np.array(fitted.offset_),
    }


def main(folder: Path) -> None:
    from skpatchcore.persistence import save

    folder.mkdir(parents=True, exist_ok=True)
    everything = {}
    for name, unfitted in configurations().items():
        fitted, arrays = compute(name, unfitted)
        everything |= {f"{name}/{key}": array for key, array in arrays.items()}
        if name in SAVED:
            save(fitted, folder / f"{name}.skpc")
    np.savez_compressed(folder / "results.npz", **everything)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
