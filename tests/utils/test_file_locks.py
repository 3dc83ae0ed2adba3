"""File locks, and file systems that do not support them."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from importlib.metadata import version

import filelock
import pytest

from skpatchcore._utils._cache import check_cache, content_key
from skpatchcore._utils._file_locks import _can_lock, file_lock

fcntl = pytest.importorskip("fcntl")


@pytest.fixture(autouse=True)
def forget_folders():
    _can_lock.cache_clear()


def is_held(path) -> bool:
    with file_lock(path, wait=True) as held:
        return held


def refuse_with(monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gives_one_warning(number, tmp_path, monkeypatch):
    refuse_with(monkeypatch, number)
    with pytest.warns(UserWarning, match="cannot be locked"):
        assert is_held(tmp_path / "a.lock")
    assert is_held(tmp_path / "b.lock")
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_refused_later_gives_a_warning(tmp_path, monkeypatch):
    with file_lock(tmp_path / "a.lock", wait=True):
        pass
    refuse_with(monkeypatch, errno.ENOLCK)
    with pytest.warns(UserWarning, match="No locks available"):
        assert is_held(tmp_path / "a.lock")


def test_a_cache_works_without_locks(tmp_path, monkeypatch):
    refuse_with(monkeypatch, errno.ENOLCK)
    cache, key = check_cache(tmp_path), content_key("a key")
    claim = cache.claim([key], wait=True)
    with pytest.warns(UserWarning, match=r"cannot be locked .*No locks available"):
        assert claim.__enter__() == [key]
    claim.__exit__(None, None, None)


def test_errors_of_the_block_are_passed_on_and_free_the_lock(tmp_path):
    with (
        pytest.raises(OSError, match="of the block"),
        file_lock(tmp_path / "a.lock", wait=False),
    ):
        raise OSError("of the block")
    with file_lock(tmp_path / "a.lock", wait=False) as held:
        assert held


def test_only_one_holder_gets_a_lock(tmp_path):
    path = str(tmp_path / "a.lock")
    with file_lock(path, wait=True):
        other = filelock.FileLock(path)
        with pytest.raises(filelock.Timeout):
            other.acquire(timeout=0)


def test_a_killed_process_frees_its_lock(tmp_path):
    path = str(tmp_path / "a.lock")
    code = f"""
        import os, signal
        from skpatchcore._utils._file_locks import file_lock
        with file_lock({path!r}, wait=True):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with file_lock(path, wait=False) as held:
        assert held


def test_the_installed_filelock_does_not_hang():
    """Up to 3.20, it retries for ever if flock is refused."""
    assert tuple(map(int, version("filelock").split(".")[:2])) >= (3, 21)
