"""Settings of torch that the caller has made change no result, and stay as they are."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._backbones._backbone import _build_cached
from skpatchcore._utils._torch_state import own_torch_state
from skpatchcore.persistence import load, save

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 48, 40, 3), np.uint8)
NEW = RNG.integers(0, 256, (2, 48, 40, 3), np.uint8)
ROWS = RNG.normal(size=(6, 3, 4, 20)).astype(np.float32)


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def fast_products():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: default_device("meta"),
    "meta block": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "gradients": torch.enable_grad,
    "fast products": fast_products,
    "deterministic": deterministic,
}


def settings_now() -> dict:
    return {
        "dtype": torch.get_default_dtype(),
        "made": (torch.ones(1).dtype, torch.ones(1).device),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "products": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random": torch.get_rng_state().tolist(),
    }


def test_a_default_device_that_was_reset_is_the_cpu():
    with default_device("meta"):
        pass
    with own_torch_state():
        assert torch.ones(1).device.type == "cpu"


def run_detector(backbone, layers, **params) -> dict:
    weights = None if backbone in ("gabor", "embedded") else "random"
    features = PatchFeatureTransformer(
        backbone, layers, weights=weights, image_size=32, random_state=0
    )
    detector = PatchCoreDetector(
        features, CoresetSampler(0.5), random_state=0, **params
    ).fit(IMAGES)
    return {
        "bank": detector.memory_bank_.bank_,
        "training scores": detector.training_scores_,
        "scores": detector.score_samples(NEW),
        "maps": detector.predict_maps(NEW),
        "matches": detector.nearest_patches(NEW, n_neighbors=2).distance,
    }


def run_bank(**params) -> dict:
    bank = PatchMemoryBank(CoresetSampler(0.4), random_state=0, **params).fit(ROWS)
    distances, rows = bank.kneighbors(ROWS + 1, n_neighbors=3)
    return {
        "bank": bank.bank_,
        "scores": bank.score_samples(ROWS + 1),
        "distances": distances,
        "rows": rows,
    }


def run_sampler(method) -> dict:
    sampler = CoresetSampler(9, method=method, projection_dim=8, random_state=0)
    sampler.fit(ROWS.reshape(-1, 20))
    return {"picks": sampler.sample_indices_, "radii": sampler.radii_}


RUNS = {
    "gabor": lambda: run_detector("gabor", ("fine",), n_neighbors=2),
    "embedded": lambda: run_detector("embedded", ("layer2",), position_window=3),
    "faiss": lambda: run_bank(algorithm="faiss"),
    "cosine": lambda: run_bank(metric="cosine", reweight=3),
    "window": lambda: run_bank(position_window=3),
    "lof": lambda: run_bank(outlier_filter="lof"),
    "gaussian": lambda: run_bank(outlier_filter="gaussian"),
    "sample": lambda: run_bank(outlier_filter="sample"),
    "greedy": lambda: run_sampler("greedy"),
    "random": lambda: run_sampler("random"),
}


# Built anew, these take longer.
NETWORKS = {
    "resnet18": lambda: run_detector("resnet18", ("layer1",)),
    "vit_tiny_patch16_224": lambda: run_detector("vit_tiny_patch16_224", (1,)),
}


@pytest.fixture(scope="module")
def undisturbed() -> dict:
    return {name: run() for name, run in RUNS.items()}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", RUNS)
def test_settings_of_the_caller_change_nothing(name, setting, undisturbed):
    _build_cached.cache_clear()
    try:
        with SETTINGS[setting]():
            before = settings_now()
            found = RUNS[name]()
            assert settings_now() == before
    finally:
        _build_cached.cache_clear()
    for key, expected in undisturbed[name].items():
        assert found[key].dtype == expected.dtype
        assert_allclose(found[key], expected, rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_built_under_a_setting_serve_other_fits(name):
    expected = NETWORKS[name]()
    for setting in ("float64", "meta"):
        _build_cached.cache_clear()
        try:
            with SETTINGS[setting]():
                found = NETWORKS[name]()
            afterwards = NETWORKS[name]()
        finally:
            _build_cached.cache_clear()
        for key, values in expected.items():
            assert_allclose(found[key], values, rtol=1e-6, atol=1e-6)
            assert_allclose(afterwards[key], values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_files_are_read_under_any_setting(setting, tmp_path):
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=32)
    detector = PatchCoreDetector(features, random_state=0).fit(IMAGES)
    expected = detector.score_samples(NEW)
    with SETTINGS[setting]():
        save(detector, tmp_path / "model.skpc")
        found = load(tmp_path / "model.skpc").score_samples(NEW)
    assert_allclose(found, expected, rtol=1e-6)


class MakesTensors(nn.Module):
    """Makes tensors without a dtype while it runs, and looks what others get."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.elsewhere = []

    def forward(self, x):
        thread = threading.Thread(
            target=lambda: self.elsewhere.append(torch.ones(1).dtype)
        )
        thread.start()
        thread.join()
        ramp = torch.linspace(0, 1, x.shape[-1]) + torch.arange(x.shape[-1]) / 7
        return self.conv(x * ramp * torch.tensor(2.0) * torch.full((1,), 0.1))


def test_code_of_networks_gets_float32_and_other_threads_what_they_chose():
    def run(module):
        features = PatchFeatureTransformer(module, ("conv",), image_size=None)
        maps = features.fit_transform(NEW)
        return maps, features._network.module.elsewhere

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MakesTensors()
    expected, _ = run(module)
    with default_dtype(torch.float64):
        found, elsewhere = run(module)
    assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert set(elsewhere) == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_modules_of_other_dtypes_compute_in_float32(dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2)).to(dtype)
    found, expected = (
        PatchFeatureTransformer(m, ("0",), image_size=None).fit_transform(NEW)
        for m in (module, nn.Sequential(*module).float())
    )
    assert_array_equal(found, expected)


def test_explicit_dtypes_are_kept():
    with default_dtype(torch.float64), own_torch_state():
        assert torch.zeros(2).dtype == torch.float32
        assert torch.tensor([1.5]).dtype == torch.float32
        assert (torch.arange(3) / 2).dtype == torch.float32
        assert torch.zeros(2, dtype=torch.float64).dtype == torch.float64
        assert torch.tensor(np.zeros(2)).dtype == torch.float64
        assert torch.arange(3).double().dtype == torch.float64
        assert torch.arange(3).to(torch.float64).dtype == torch.float64
        assert torch.zeros(2).double().sum().dtype == torch.float64
        assert torch.arange(3).dtype == torch.int64
    with default_dtype(torch.float16), own_torch_state():
        assert float(torch.tensor(0.1)) == float(np.float32(0.1))


# A process whose own code has used torch with two threads, and that then forks.
FORK = """
import os, signal, time
import numpy as np
import torch
from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
import timm
torch.set_num_threads(2)
torch.rand(2000, 2000) @ torch.rand(2000, 2000)
child = os.fork()
if child == 0:
    features = PatchFeatureTransformer("gabor", ("fine",), image_size=256)
    images = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8)
    PatchCoreDetector(features, random_state=0).fit(images)
    os._exit(0)
end = time.monotonic() + 60
while time.monotonic() < end:
    if os.waitpid(child, os.WNOHANG)[0]:
        print("has ended")
        break
    time.sleep(0.05)
else:
    os.kill(child, signal.SIGKILL)
    print("hangs")
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_a_fork_after_other_code_has_used_torch_does_not_hang():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", FORK]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.stdout == "has ended\n", run.stderr
