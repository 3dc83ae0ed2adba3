"""A process that is forked while other threads work is not blocked."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skpatchcore._utils._locks import fork_safe_lock

# The script of a process that forks while other threads work. It prints the outcome
# of each fork.
SCRIPT = """
import os, signal, threading, time
import numpy as np
import torch
from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._backbones import _backbone, _fingerprint
from skpatchcore._backbones._hooks import FORWARD_LOCK
from skpatchcore._images import _input
from skpatchcore._utils import _cache, _precision

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
LOCKS = (
    FORWARD_LOCK,
    _backbone._BUILD_LOCK,
    _cache._growth._lock,
    _fingerprint._LOCK,
    _input._PIL_LOCK,
    _precision._PRECISION_LOCK,
)

class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.begun, self.go_on = [], []

    def forward(self, x):
        x = self.conv(x)
        if threading.current_thread() is not threading.main_thread():
            self.begun.append(1)
            while not self.go_on:
                time.sleep(0.01)
        return self.norm(x)

def make(backbone, layers, **params):
    features = PatchFeatureTransformer(backbone, layers, image_size=32)
    return PatchCoreDetector(features, random_state=0, **params)

def fork(name, work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(name, repr(error), sep=":", flush=True)
            os._exit(1)
    outcome, end = "hangs", time.monotonic() + 90
    while outcome == "hangs" and time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            outcome = "has ended"
        time.sleep(0.02)
    if outcome == "hangs":
        os.kill(child, signal.SIGKILL)
    print(name, outcome, sep=":", flush=True)

# Threads of OpenMP in the parent.
torch.rand(2000, 2000) @ torch.rand(2000, 2000)
detector = make(Slow(), ("conv", "norm"), n_neighbors=2).fit(IMAGES)
module = detector.features_._network.module
expected = detector.score_samples(255 - IMAGES)
fork("cores", lambda: make("gabor", ("fine",)).fit(np.tile(IMAGES, (1, 8, 8, 1))))

# Another thread is passing images through the network.
torch.set_float32_matmul_precision("high")

def score():
    found = detector.score_samples(255 - IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert torch.get_float32_matmul_precision() == "high"
    make(Slow(), ("norm",)).fit(IMAGES)

thread = threading.Thread(target=detector.score_samples, args=(IMAGES,))
thread.start()
while not module.begun:
    time.sleep(0.01)
fork("pass", score)
module.go_on.append(1)
thread.join()

# Locks that another thread holds.
held, over = threading.Event(), threading.Event()

def hold():
    for lock in LOCKS:
        lock.acquire()
    held.set()
    over.wait()

def fit():
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        make("gabor", ("fine",), memory=folder).fit(IMAGES).predict_maps(IMAGES)

threading.Thread(target=hold, daemon=True).start()
held.wait()
fork("locks", fit)
"""


@pytest.fixture(scope="module")
def forks() -> list[str]:
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    package = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_fork_does_not_wait_for_threads_of_its_parent(forks):
    assert [line for line in forks if "cores" in line] == ["cores:has ended"]


def test_a_pass_in_another_thread_does_not_disturb_a_fork(forks):
    assert [line for line in forks if "pass" in line] == ["pass:has ended"]


def test_locks_held_by_another_thread_are_free_in_a_fork(forks):
    assert [line for line in forks if "locks" in line] == ["locks:has ended"]


def test_a_lock_keeps_other_threads_out():
    lock = fork_safe_lock()
    with ThreadPoolExecutor(1) as other:
        with lock, lock:
            assert not other.submit(lock.acquire, blocking=False).result()
        assert other.submit(lock.acquire, blocking=False).result()
        other.submit(lock.release).result()
