"""Helpers that several test modules share."""

import hashlib
import itertools
import json
import zipfile

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, OutlierMixin

from skpatchcore._coreset._greedy import k_center_greedy
from skpatchcore.persistence import ModelFileError, load, save

# Images and points --------------------------------------------------------------------


def random_images(n, height=24, width=32, seed=0):
    """Return uniform colour noise, as an array (n, height, width, 3) of uint8."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, height, width, 3), np.uint8)


def blobs(n, d, dtype=np.float32, seed=0):
    """Return points (n, d) around 8 random centres."""
    rng = np.random.default_rng(seed)
    centers = 4 * rng.normal(size=(8, d))
    return (centers[rng.integers(8, size=n)] + rng.normal(size=(n, d))).astype(dtype)


def sample(n, d, dtype=np.float32, seed=0, n_blobs=20):
    """Return points (n, d) around centres that are the same for every seed."""
    rng = np.random.default_rng(seed)
    centers = 3 * np.random.default_rng(99).normal(size=(n_blobs, d))
    return (centers[rng.integers(n_blobs, size=n)] + rng.normal(size=(n, d))).astype(
        dtype
    )


# Coreset ------------------------------------------------------------------------------


def greedy(X, n_selected, first=0):
    return k_center_greedy(torch.from_numpy(X), n_selected, first)


def cover_radii(X, picks):
    """Return the cover radius after each pick, by brute force."""
    distances = cdist(X.astype(np.float64), X[picks].astype(np.float64))
    return np.minimum.accumulate(distances, axis=1).max(axis=0)


# Nearest neighbours -------------------------------------------------------------------

DTYPES = [np.float32, np.float64]


def nearest(bank, queries, k):
    """Return squared distances and rows, one query at a time, in float64."""
    bank = bank.astype(np.float64)
    squared, rows = [], []
    for query in queries.astype(np.float64):
        distances = np.square(bank - query).sum(axis=1)
        order = np.argsort(distances, kind="stable")[:k]
        squared.append(distances[order])
        rows.append(order)
    return np.array(squared), np.array(rows)


def assert_nearest(found, bank, queries, k):
    squared, rows = nearest(bank, queries, k)
    assert_allclose(found[0], squared, rtol=1e-12)
    assert_array_equal(found[1], rows)


# Detectors ----------------------------------------------------------------------------


class DistanceToMean(OutlierMixin, BaseEstimator):
    """The simplest detector; optionally in whole steps, so that scores tie."""

    def __init__(self, step=None):
        self.step = step

    def fit(self, X, y=None):
        self.mean_ = np.mean(X, axis=0)
        return self

    def score_samples(self, X):
        scores = -np.linalg.norm(X - self.mean_, axis=1)
        return scores if self.step is None else np.round(scores / self.step)


class NotANumber(DistanceToMean):
    """Scores are `bad` where the first number is beyond 50."""

    def __init__(self, bad=np.nan):
        self.bad = bad

    def score_samples(self, X):
        scores = -np.linalg.norm(X - np.median(X, axis=0), axis=1)
        return np.where(X[:, 0] > 50, self.bad, scores)


# Model files --------------------------------------------------------------------------


def unzip(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    """Write a zip without the checks of the package; `members` are a dict or pairs."""
    pairs = members.items() if isinstance(members, dict) else members
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in pairs:
            archive.writestr(name, data)
    return path


def seal(manifest, arrays: bytes):
    """Return members whose manifest describes the arrays, as a forger would."""
    described = {"size": len(arrays), "sha256": hashlib.sha256(arrays).hexdigest()}
    manifest = {**manifest, "members": {"arrays.safetensors": described}}
    return {"model.json": json.dumps(manifest), "arrays.safetensors": arrays}


def params_of(record):
    return record["estimator"]["params"]


def assert_rejected(path, match):
    with pytest.raises(ModelFileError, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)


def save_forever(detectors, path, started) -> None:
    """Replace a model file again and again, until the process is killed."""
    for detector in itertools.cycle(detectors):
        started.set()
        save(detector, path)
