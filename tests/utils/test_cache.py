"""The cache on disk: keys, bounds, damage, and several processes."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib.memory import Memory
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.base import clone
from torch import nn

from skpatchcore import (
    BoundedMemory,
    CoresetSampler,
    PatchCoreDetector,
    PatchFeatureTransformer,
    PatchMemoryBank,
)
from skpatchcore._backbones._backbone import load_backbone
from skpatchcore._coreset._greedy import GreedyRun
from skpatchcore._images._input import load_image
from skpatchcore._utils._cache import check_cache, content_key

KEY = content_key("a key")


def entries(folder) -> list[Path]:
    return sorted(Path(folder).rglob("output.pkl"))


# Keys -------------------------------------------------------------------------------


def test_equal_contents_have_equal_keys():
    x = np.arange(12.0).reshape(3, 4)
    assert content_key(x, "a", None) == content_key(x[:, ::-1][:, ::-1], "a", None)
    code = "from skpatchcore._utils._cache import content_key; import numpy as np;"
    code += "print(content_key(np.arange(12.0).reshape(3, 4), 'a', None))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True
    )
    assert found.stdout.decode().strip() == content_key(x, "a", None)


def test_different_contents_have_different_keys():
    x = np.arange(12.0)
    different = [
        (x,),
        (x + 1,),
        (x.reshape(3, 4),),
        (x.astype(np.float32),),
        (x[:6], x[6:]),
        (x[:7], x[7:]),
        (x.tobytes(),),
        (1,),
        (1.0,),
        ("1",),
        (True,),
        (None,),
        ("a", "b"),
        ("ab",),
        (("a", "b"),),
        ((("a",), "b"),),
        (np.float64(1),),
        (np.array(1.0),),
        (np.empty((0, 3)),),
        (np.empty((0, 2)),),
        (),
    ]
    assert len({content_key(*parts) for parts in different}) == len(different)


# The store --------------------------------------------------------------------------


def test_stored_entries_are_found(tmp_path):
    cache = check_cache(tmp_path)
    assert cache.get("kind", KEY) is None
    cache.put("kind", KEY, (np.arange(3), "text"))
    for memory in (tmp_path, str(tmp_path), Memory(str(tmp_path), verbose=0)):
        numbers, text = check_cache(memory).get("kind", KEY)
        assert_array_equal(numbers, np.arange(3))
        assert text == "text"
    assert check_cache(tmp_path).get("another kind", KEY) is None


def test_no_memory_means_no_cache():
    assert check_cache(None) is None
    assert check_cache(Memory(None)) is None


@pytest.mark.parametrize("memory", [3, object(), ["a"]])
def test_a_wrong_type_of_memory_is_refused(memory):
    with pytest.raises(TypeError, match=r"expected a folder, a joblib\.Memory or None"):
        check_cache(memory)


def test_clear_and_reduce_size_of_joblib_work(tmp_path):
    memory = Memory(str(tmp_path), verbose=0)
    cache = check_cache(memory)
    for i in range(4):
        cache.put("kind", content_key(i), np.zeros(1000))
    memory.reduce_size(items_limit=1)
    assert len(entries(tmp_path)) == 1
    memory.clear(warn=False)
    assert not entries(tmp_path)
    cache.put("kind", KEY, "anew")
    assert cache.get("kind", KEY) == "anew"


def double(x):
    return 2 * x


def test_a_bounded_memory_keeps_the_most_recently_used_entries(tmp_path):
    memory = BoundedMemory(tmp_path, bytes_limit="100K")
    of_others = memory.cache(double)
    assert of_others(3) == 6
    cache = check_cache(memory)
    keys = [content_key(i) for i in range(40)]
    for i, key in enumerate(keys):
        cache.put("kind", key, np.full(1250, i))  # 10 kB
        assert cache.get("kind", keys[0]) is not None
        ours = entries(tmp_path / "joblib" / "skpatchcore")
        assert sum(entry.stat().st_size for entry in ours) <= memory.bytes_limit
        # Each entry needs a time stamp of its own.
        time.sleep(0.002)
    assert cache.get("kind", keys[-1]) is not None
    assert cache.get("kind", keys[1]) is None
    assert of_others.check_call_in_cache(3)


@pytest.mark.parametrize("limit", [None, "1M", 2**20])
def test_the_limit_of_joblib_before_1_5_is_used(limit, tmp_path):
    memory = Memory(str(tmp_path), verbose=0)
    memory.bytes_limit = limit
    cache = check_cache(memory)
    cache.put("kind", KEY, np.zeros(3))
    assert_array_equal(cache.get("kind", KEY), np.zeros(3))


@pytest.mark.parametrize("limit", [0, -1, "20X", "much", None])
def test_invalid_limits_are_refused(limit, tmp_path):
    with pytest.raises(ValueError, match="expected a positive number of bytes"):
        BoundedMemory(tmp_path, bytes_limit=limit)


def test_a_bounded_memory_survives_clone_and_pickle(tmp_path):
    memory = BoundedMemory(tmp_path, bytes_limit="5M", compress=3)
    for copied in (
        clone(CoresetSampler(memory=memory)).memory,
        pickle.loads(pickle.dumps(memory)),
    ):
        assert copied.bytes_limit == memory.bytes_limit == 5 * 1024**2
        assert copied.location == str(tmp_path)
        check_cache(copied).put("kind", KEY, np.zeros(10**5))
    (entry,) = entries(tmp_path)
    assert entry.stat().st_size < 10**4


@pytest.fixture
def full_disk(monkeypatch):
    def write(file, *args):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("skpatchcore._utils._cache.write_entry", write)


def test_a_full_disk_is_a_warning(tmp_path, full_disk):
    cache = check_cache(tmp_path)
    with pytest.warns(UserWarning, match="No space left on device") as record:
        cache.put("kind", KEY, np.zeros(3))
    assert len(record) == 1
    assert str(tmp_path) in str(record[0].message)
    assert cache.get("kind", KEY) is None
    # No partial file is left.
    assert not any(path.is_file() for path in (tmp_path / "joblib").rglob("kind/**/*"))


def test_results_are_returned_although_the_disk_is_full(tmp_path, full_disk):
    X = np.random.default_rng(0).normal(size=(100, 6))
    with pytest.warns(UserWarning, match="No space left on device"):
        found = sampler(tmp_path).fit(X)
    assert_same_coreset(found, sampler().fit(X))


def test_claimed_keys_are_not_given_to_other_processes(tmp_path):
    cache = check_cache(tmp_path)
    others = [content_key(i) for i in range(8)]
    with cache.claim([KEY], wait=True):
        code = f"""
            from skpatchcore._utils import check_cache
            cache = check_cache({str(tmp_path)!r})
            with cache.claim({[KEY, *others]!r}, wait=False) as claimed:
                print(*claimed)
        """
        command = [sys.executable, "-c", textwrap.dedent(code)]
        found = subprocess.run(command, capture_output=True, check=True)
    free = [key for key in others if key[:2] != KEY[:2]]
    assert sorted(found.stdout.decode().split()) == sorted(free)


def test_a_worker_killed_while_writing_does_no_harm(tmp_path):
    """Its partial file is ignored, and its claim ends."""
    code = f"""
        import os, signal, numpy as np
        from skpatchcore._utils import _cache, check_cache

        def torn(file, *args):
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        _cache.write_entry = torn
        cache = check_cache({str(tmp_path)!r})
        with cache.claim([{KEY!r}], wait=True):
            cache.put("kind", {KEY!r}, np.zeros(3))
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("output.pkl.*"))
    cache = check_cache(tmp_path)
    with cache.claim([KEY], wait=False) as claimed:
        assert claimed == [KEY]
        assert cache.get("kind", KEY) is None
        cache.put("kind", KEY, np.arange(3))
    assert_array_equal(cache.get("kind", KEY), np.arange(3))


# Layer maps -------------------------------------------------------------------------


@pytest.fixture
def n_passed(batch_sizes):
    """Return a function that counts the images that have passed a network."""
    return lambda: sum(batch_sizes)


def transformer(memory, **params):
    params = {"weights": "random", "image_size": 32, "random_state": 0, **params}
    return PatchFeatureTransformer(
        "resnet18", ("layer1", "layer2"), memory=memory, **params
    )


def images(n=5, size=(40, 40), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)


def test_features_are_equal_with_and_without_a_cache(tmp_path, n_passed):
    X = [*images(3), *images(3, (64, 40)), *images(2)]
    params = {"output": "mean", "batch_size": 3}
    expected = transformer(None, **params).fit(X).transform(X)
    n_before = n_passed()
    for _ in range(2):
        found = transformer(tmp_path, **params).fit(X).transform(X)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # The last two images are copies of the first two.
    assert n_passed() == n_before + 6
    assert_array_equal(transformer(tmp_path, **params).fit_transform(X), found)


def test_known_images_are_not_decoded(tmp_path, monkeypatch):
    X, new = images(5), images(2, seed=7)
    features = transformer(tmp_path).fit(X)
    expected = features.transform(X)
    features.transform(new[:1])
    decoded = []
    monkeypatch.setattr(
        "skpatchcore._images._input.load_image",
        lambda source, name, *rest: (
            decoded.append(name) or load_image(source, name, *rest)
        ),
    )
    assert_array_equal(features.transform(X), expected)
    assert decoded == []
    features.transform([*X, *new])
    assert decoded == ["image 6"]


@pytest.mark.parametrize(
    "params",
    [
        {"image_size": 48},
        {"crop_size": 24},
        {"precision": "bfloat16"},
        {"random_state": 1},
        {"layers": ("layer1",)},
        {"backbone": "resnet10t"},
    ],
)
def test_parameters_that_affect_the_maps_are_in_the_key(params, tmp_path, n_passed):
    X = images(2)
    transformer(tmp_path).fit(X)
    other = transformer(tmp_path).set_params(**params).fit(X)
    assert n_passed() == 4
    expected = transformer(None).set_params(**params).fit_transform(X)
    np.testing.assert_allclose(other.transform(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "params",
    [
        {"patch_size": 5},
        {"descriptor": 16},
        {"descriptor": "concat"},
        {"layer_weights": (1.0, 0.5)},
        {"projection": 3},
        {"batch_size": 1},
        {"output": "mean"},
    ],
)
def test_parameters_of_later_steps_are_not_in_the_key(params, tmp_path, n_passed):
    X = images(2)
    transformer(tmp_path).fit(X)
    found = transformer(tmp_path, **params).fit_transform(X)
    assert n_passed() == 2
    expected = transformer(None, **params).fit_transform(X)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_changed_file_is_another_image(tmp_path, n_passed):
    path = tmp_path / "part.png"
    first, second = images(2)
    Image.fromarray(first).save(path)
    features = transformer(tmp_path / "cache").fit([path])
    stamp = path.stat()
    Image.fromarray(second).save(path)
    # With the same time stamp.
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert_array_equal(features.transform([path]), features.transform([second]))
    assert n_passed() == 3
    path.rename(tmp_path / "renamed.png")
    features.transform([tmp_path / "renamed.png"])
    assert n_passed() == 3


def test_a_cached_image_that_is_gone_is_an_error(tmp_path):
    path = tmp_path / "part.png"
    Image.fromarray(images(1)[0]).save(path)
    features = transformer(tmp_path / "cache").fit([path])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(OSError, match=r"image 0 \(.*part.png\)"):
        features.transform([path])
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"image 0 \(.*part.png\) does not"):
        features.transform([path])


class Scaled(nn.Module):
    """One layer whose output is scaled by a plain number."""

    def __init__(self, scale):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.scale = scale

    def forward(self, x):
        return self.conv(self.scale * x)


def fingerprint(module):
    return load_backbone(
        module, ("conv",), weights=None, seed=0, device="cpu", precision="auto"
    ).fingerprint


def test_a_module_is_identified_by_weights_settings_and_code():
    torch.manual_seed(0)
    module = Scaled(1.0)
    first = fingerprint(module)
    assert fingerprint(pickle.loads(pickle.dumps(module))) == first
    module.train()
    assert fingerprint(module) == first
    module.scale = 2.0
    assert fingerprint(module) != first
    module.scale = 1.0
    assert fingerprint(module) == first
    with torch.no_grad():
        module.conv.weight[0, 0, 0, 0] += 1
    assert fingerprint(module) != first


def test_changed_weights_in_a_file_are_another_network(tmp_path, n_passed):
    import timm

    path = tmp_path / "weights.pth"
    X = images(2)
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(timm.create_model("resnet18").state_dict(), path)
        # Otherwise the network comes from memory and the file is not read again.
        os.utime(path, ns=(seed * 10**9, seed * 10**9))
        transformer(tmp_path / "cache", weights=path).fit(X)
    assert n_passed() == 4


# Coresets ---------------------------------------------------------------------------


def sampler(memory=None, fraction=0.1, **params):
    return CoresetSampler(fraction, **{"memory": memory, "random_state": 0, **params})


def assert_same_coreset(first, second):
    for name in ("sample_indices_", "radii_", "min_distances_", "nearest_picks_"):
        assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


@pytest.mark.parametrize(
    "order", [(0.02, 0.1, 0.5), (0.5, 0.1, 0.02), (0.1, 1.0, 0.013)]
)
@pytest.mark.parametrize("duplicates", [False, True])
def test_cut_and_continued_runs_equal_complete_runs(order, duplicates, tmp_path):
    X = np.random.default_rng(0).normal(size=(1500, 6)).astype(np.float32)
    if duplicates:
        X = np.round(X[:, :2])
    for fraction in order:
        cached = sampler(tmp_path, fraction).fit(X)
        assert_same_coreset(cached, sampler(None, fraction).fit(X))
        assert_same_coreset(sampler(tmp_path, fraction).fit(X), cached)


def test_max_fraction_makes_the_picks_in_advance(tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(500, 6))
    expected = sampler(None, 0.3).fit(X)
    sampler(tmp_path, 0.1, max_fraction=0.5).fit(X)

    def never(*args):
        raise AssertionError("picked once more")

    monkeypatch.setattr(GreedyRun, "extend", never)
    assert_same_coreset(sampler(tmp_path, 0.3).fit(X), expected)


def test_max_fraction_is_at_least_the_fraction():
    X = np.zeros((100, 2))
    with pytest.raises(ValueError, match=r"max_fraction=0\.1 must not be smaller than"):
        sampler(None, 0.2, max_fraction=0.1).fit(X)
    with pytest.raises(ValueError, match="max_fraction=101 rows were requested"):
        sampler(None, 0.2, max_fraction=101).fit(X)


@pytest.mark.parametrize(
    "change",
    [
        {"random_state": 1},
        {"n_starts": 3},
        {"projection_dim": 2},
        {"method": "random"},
    ],
)
def test_parameters_that_affect_a_coreset_are_in_the_key(change, tmp_path):
    X = np.random.default_rng(0).normal(size=(300, 6))
    sampler(tmp_path).fit(X)
    cached = sampler(tmp_path, **change).fit(X)
    assert_same_coreset(cached, sampler(**change).fit(X))
    X[7] += 1
    assert_same_coreset(sampler(tmp_path).fit(X), sampler().fit(X))


def test_without_a_seed_the_first_result_is_reused(tmp_path):
    X = np.random.default_rng(0).normal(size=(300, 6))
    first = sampler(tmp_path, random_state=None).fit(X)
    assert_same_coreset(sampler(tmp_path, random_state=None).fit(X), first)


def test_a_random_state_instance_is_not_cached(tmp_path):
    X = np.random.default_rng(0).normal(size=(300, 6))
    state = np.random.RandomState(0)
    first, second = (sampler(tmp_path, random_state=state).fit(X) for _ in range(2))
    assert not np.array_equal(first.sample_indices_, second.sample_indices_)
    assert not entries(tmp_path)


# Detectors --------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["torch", "faiss", "pynndescent"])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
def test_a_bank_scores_the_same_with_a_cache(algorithm, metric, tmp_path):
    if algorithm != "torch":
        pytest.importorskip(algorithm)
    X = np.random.default_rng(0).normal(size=(12, 20, 4)).astype(np.float32)
    for k in (3, 1, 12):
        params = {"n_neighbors": k, "metric": metric, "algorithm": algorithm}
        plain, cached = (
            PatchMemoryBank(sampler(fraction=0.2), random_state=0, memory=m, **params)
            for m in (None, tmp_path)
        )
        assert_array_equal(
            cached.fit(X).score_samples(X), plain.fit(X).score_samples(X)
        )
        assert cached.offset_ == plain.offset_


@pytest.mark.parametrize("order", [(0.1, 0.2, 0.5), (0.5, 0.1, 0.2)])
@pytest.mark.parametrize("duplicates", [False, True])
def test_banks_of_one_run_share_their_neighbours(order, duplicates, tmp_path):
    """A larger coreset starts with a smaller one, so only other rows are searched."""
    X = np.random.default_rng(0).normal(size=(12, 30, 3)).astype(np.float32)
    X = np.round(X) if duplicates else X
    for fraction in order:
        plain, cached = (
            PatchMemoryBank(
                sampler(fraction=fraction), n_neighbors=3, random_state=0, memory=m
            ).fit(X)
            for m in (None, tmp_path)
        )
        new = X[:, ::-1] + np.float32(0.5)
        assert_array_equal(cached.score_samples(new), plain.score_samples(new))
        assert_array_equal(rows_of(cached, new), rows_of(plain, new))
        assert cached.offset_ == plain.offset_


def rows_of(bank, X):
    shapes = np.tile([1, X.shape[1]], (len(X), 1))
    samples = bank._samples(X.reshape(-1, X.shape[-1]), shapes)
    return bank._score(samples)[2]


def test_a_saved_detector_has_no_cache(tmp_path):
    from skpatchcore.persistence import load, save

    detector = PatchCoreDetector(
        transformer(None), sampler(), memory=tmp_path / "cache", random_state=0
    ).fit(images())
    save(detector, tmp_path / "model.skpc")
    loaded = load(tmp_path / "model.skpc")
    assert loaded.memory is None
    assert loaded.features_.memory is None
    X = images(seed=1)
    assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


def test_two_processes_with_one_cache(tmp_path):
    """Both run a search at once, get the same result, and pass each image only once."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        import time
        from pathlib import Path
        from skpatchcore._backbones import Backbone
        import test_search

        n_passed = 0
        forward = Backbone.__call__

        def count(network, batch):
            global n_passed
            n_passed += len(batch)
            return forward(network, batch)

        Backbone.__call__ = count
        surfaces = test_search.make_surfaces()
        detector = test_search.make_detector({str(tmp_path / "cache")!r})
        # Each waits until the other one has started.
        name, other = sys.argv[1:]
        Path(name).touch()
        while not Path(other).exists():
            time.sleep(0.01)
        grid = {{"sampler__fraction": [0.01, 0.02]}}
        search = test_search.make_search(detector, grid, refit=False)
        search.fit(surfaces.data, surfaces.target)
        print(n_passed, *search.cv_results_["mean_test_score"])
    """
    names = [str(tmp_path / name) for name in ("first", "second")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *order],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for order in (names, names[::-1])
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [error for _, error in outputs] == [b"", b""]
    (n_first, *first), (n_second, *second) = (out.split() for out, _ in outputs)
    assert first == second
    assert int(n_first) + int(n_second) == 42
