"""Damaged cache entries are computed again with a warning, and change no score."""

import os
import pickle
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore._utils._cache import check_cache, content_key
from skpatchcore._utils._cache_entry import read_entry, write_entry

# 500 were run once; each fits two detectors.
N_DAMAGES = int(os.environ.get("SKPATCHCORE_DAMAGES", "24"))
KINDS = ["coresets", "maps", "neighbors", "prefixes", "runs"]


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def score(memory, fractions=(0.2, 0.3)):
    """Return scores of detectors with coresets of these fractions."""
    scores = []
    for fraction in fractions:
        # One image at a time, because larger batches round differently.
        features = PatchFeatureTransformer(
            "gabor", ("coarse",), image_size=32, batch_size=1
        )
        detector = PatchCoreDetector(
            features, CoresetSampler(fraction), memory=memory, random_state=0
        )
        scores.append(detector.fit(images()).score_samples(images(1)))
    return np.concatenate(scores)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Return a cache with entries of every kind."""
    folder = tmp_path_factory.mktemp("filled")
    score(folder, (0.5, 0.2))
    return folder


@pytest.fixture(scope="module")
def expected():
    return score(None)


def entries(folder) -> list[Path]:
    return sorted(Path(folder).rglob("output.pkl"))


def cut(path, rng, folder):
    whole = path.read_bytes()
    path.write_bytes(whole[: rng.integers(len(whole))])


def flip_bit(path, rng, folder):
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def zero(path, rng, folder):
    data = bytearray(path.read_bytes())
    # Not a part that contains only zeros.
    start = rng.integers(60)
    data[start : start + 64] = bytes(64)
    path.write_bytes(data)


def lengthen(path, rng, folder):
    path.write_bytes(path.read_bytes() + rng.bytes(7))


def swap(path, rng, folder):
    others = [p for p in entries(folder) if p.read_bytes() != path.read_bytes()]
    shutil.copy(others[rng.integers(len(others))], path)


def make_folder(path, rng, folder):
    path.unlink()
    path.mkdir()


def old_format(path, rng, folder):
    path.write_bytes(pickle.dumps(np.zeros(3)))


def other_content(path, rng, folder):
    """Write an entry with a correct checksum but invalid contents."""
    name = "/".join(path.parts[-3:-1])
    with path.open("rb") as file:
        value = read_entry(file, name)
    with path.open("wb") as file:
        write_entry(file, name, [value, np.zeros(3)])


DAMAGES = [
    *(cut, flip_bit, zero, lengthen),
    *(swap, make_folder, old_format, other_content),
]


def test_damage_gives_a_warning_and_changes_no_score(filled, expected, tmp_path):
    rng = np.random.default_rng(0)
    assert {path.parts[-3] for path in entries(filled)} == set(KINDS)
    n_told = 0
    for i in range(N_DAMAGES):
        folder = tmp_path / str(i)
        shutil.copytree(filled, folder)
        kind = KINDS[i % len(KINDS)]
        some = [p for p in entries(folder) if p.parts[-3] == kind]
        path = some[rng.integers(len(some))]
        DAMAGES[i % len(DAMAGES)](path, rng, folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert_array_equal(score(folder), expected)
            # The entry has been computed again by then.
            assert_array_equal(score(folder), expected)
        told = [str(warning.message) for warning in caught]
        assert len(told) <= 1, told
        if told:
            assert "/".join(path.parts[-3:-1]) in told[0]
            assert str(folder) in told[0]
            n_told += 1
        shutil.rmtree(folder)
    print(f"\n{N_DAMAGES} damaged entries, {n_told} of them read and told")
    # Some entries belong only to the larger coreset, which is not used again.
    assert n_told > N_DAMAGES / 2


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["maps", "neighbors"])
def test_all_entries_of_a_kind_are_damaged(damage, kind, filled, expected, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(filled, folder)
    rng = np.random.default_rng(0)
    for path in [p for p in entries(folder) if p.parts[-3] == kind]:
        damage(path, rng, filled)
    with pytest.warns(UserWarning, match=rf"The entry {kind}/\w+ of the cache '.*'"):
        found = score(folder)
    assert_array_equal(found, expected)


def test_a_hostile_pickle_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    cache, key = check_cache(tmp_path), content_key("a key")
    cache.put("kind", key, 1)
    (path,) = entries(tmp_path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.warns(UserWarning, match="not in the format of this version"):
        assert cache.get("kind", key) is None
    assert not (tmp_path / "executed").exists()


def test_an_unreadable_entry_counts_as_missing(tmp_path, monkeypatch):
    cache, key = check_cache(tmp_path), content_key("a key")
    cache.put("kind", key, 1)

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("skpatchcore._utils._cache.read_entry", refuse)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert cache.get("kind", key) is None


def test_a_folder_that_cannot_be_a_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"memory='.*file.*' cannot be used as a cache"):
        check_cache(tmp_path / "file" / "cache")


def test_readers_and_writers_of_one_entry_see_complete_values(tmp_path):
    cache, key = check_cache(tmp_path), content_key("a key")
    stop, wrong = threading.Event(), []

    def write(value):
        while not stop.is_set():
            cache.put("kind", key, np.full(20_000, value))

    def read():
        while not stop.is_set():
            found = cache.get("kind", key)
            if found is not None and len(set(found.tolist())) != 1:
                wrong.append(found)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
    threads += [threading.Thread(target=read) for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for thread in threads:
            thread.start()
        stop.wait(0.5)
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert not caught
    assert cache.get("kind", key) is not None


def test_writing_survives_deletions_by_other_processes(tmp_path):
    cache, key = check_cache(tmp_path), content_key("a key")
    stop = threading.Event()

    def make_room():
        while not stop.is_set():
            cache._store.enforce_store_limits(0)

    thread = threading.Thread(target=make_room)
    thread.start()
    try:
        for i in range(100):
            cache.put("kind", key, i)
            assert cache.get("kind", key) in (None, i)
    finally:
        stop.set()
        thread.join()
