"""After ``kill -9`` while a model file is replaced, the old or the new file loads."""

import multiprocessing
import os
import time

import numpy as np
import pytest

from helpers import save_forever
from skpatchcore import CoresetSampler, PatchMemoryBank
from skpatchcore.persistence import load, save

# Each repetition starts a process. 50 were run once.
N_KILLS = int(os.environ.get("SKPATCHCORE_KILLS", "6"))


@pytest.fixture(scope="module")
def banks():
    """Two detectors whose files take a while to write: 8 MB each."""
    X = np.random.default_rng(0).normal(size=(2, 8000, 250)).astype(np.float32)
    sampler = CoresetSampler(method="none")
    return [PatchMemoryBank(sampler, random_state=0).fit(part) for part in X]


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is of POSIX")
def test_a_killed_save_leaves_the_old_or_the_new_file(banks, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skpatchcore.persistence"])
    path = tmp_path / "model.skpc"
    save(banks[0], path)
    new = np.zeros((1, 250), np.float32)
    expected = [bank.score_samples(new)[0] for bank in banks]
    start = time.perf_counter()
    save(banks[1], path)
    seconds = time.perf_counter() - start
    found, n_interrupted = [], 0
    for moment in np.random.default_rng(0).uniform(0, 3 * seconds, N_KILLS):
        started = context.Event()
        process = context.Process(target=save_forever, args=(banks, path, started))
        process.start()
        assert started.wait(60)
        time.sleep(moment)
        process.kill()
        process.join()
        assert process.exitcode == -9
        found.append(load(path).score_samples(new)[0])
        for leftover in tmp_path.glob(".*.tmp"):
            n_interrupted += 1
            leftover.unlink()
    assert set(found) <= set(expected)
    print(f"\n{N_KILLS} kills, {n_interrupted} of them while the file was written")
