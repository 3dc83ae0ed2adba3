"""Files are written completely or not at all, and keep their other properties."""

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest

from skpatchcore._utils._atomic import (
    GrowingFile,
    atomic_write,
    check_writable,
    move_into_place,
)

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs the files of Linux")


def write(path, data=b"new"):
    with atomic_write(path) as file:
        file.write(data)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    return path


# Complete or not at all ---------------------------------------------------------------


@pytest.mark.parametrize("as_given", [str, os.fsencode, lambda path: path])
def test_a_file_is_written(tmp_path, as_given):
    write(as_given(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names_in(tmp_path) == ["file"]


def test_the_old_file_is_there_until_the_block_ends(old):
    with atomic_write(old) as file:
        file.write(b"new")
        file.flush()
        assert old.read_bytes() == b"old"
    assert old.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("mode", ["wb", "w"])
def test_an_error_leaves_the_old_file_and_nothing_else(old, error, mode):
    def fail():
        with atomic_write(old, mode) as file:
            file.write("new" if mode == "w" else b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert old.read_bytes() == b"old"
    assert names_in(old.parent) == ["file"]


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_a_failure_of_the_last_steps_leaves_the_old_file(old, monkeypatch, step, error):
    def fail(*args):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(step, fail)
        with pytest.raises(type(error)):
            write(old)
    assert old.read_bytes() == b"old"
    assert names_in(old.parent) == ["file"]


def test_data_reach_the_disk_before_the_name(old, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def record(*args, name=name, real=real):
            steps.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, record)
    write(old)
    assert steps[:2] == ["fsync", "replace"]


def test_line_ends_are_written_unchanged(tmp_path):
    with atomic_write(tmp_path / "file", "w") as file:
        file.write("ä\r\nb\n")
    assert (tmp_path / "file").read_bytes() == "ä\r\nb\n".encode()


def test_text_that_cannot_be_encoded_leaves_the_old_file(old):
    with (
        pytest.raises(UnicodeEncodeError),
        atomic_write(old, "w") as file,
    ):
        file.write("\udc80")
    assert old.read_bytes() == b"old"
    assert names_in(old.parent) == ["file"]


def test_names_may_be_bytes(tmp_path):
    with atomic_write(tmp_path / "file", "w", errors="surrogateescape") as file:
        file.write("a\udc80")
    assert (tmp_path / "file").read_bytes() == b"a\x80"


def test_other_modes_are_refused(tmp_path):
    write_more = atomic_write(tmp_path / "file", "a")
    with pytest.raises(ValueError, match=r"mode='a'; expected 'wb' or 'w'"):
        write_more.__enter__()


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    for name in ("a" * 255, "ä" * 127):
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"new"


def test_threads_may_write_one_file(tmp_path):
    contents = [bytes([i]) * 100_000 for i in range(8)]
    threads = [
        threading.Thread(target=write, args=(tmp_path / "file", data))
        for data in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert names_in(tmp_path) == ["file"]


# Permissions --------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755, 0o200])
def test_an_existing_file_keeps_its_mode(old, mode):
    old.chmod(mode)
    write(old)
    assert mode_of(old) == mode


@posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_new_file_obeys_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file") == mode


@posix
@pytest.mark.skipif(getattr(os, "geteuid", int)() != 0, reason="needs the superuser")
def test_an_existing_file_keeps_its_owner(old):
    os.chown(old, 12345, 54321)
    old.chmod(0o640)
    write(old)
    status = old.stat()
    assert (status.st_uid, status.st_gid, mode_of(old)) == (12345, 54321, 0o640)


@posix
def test_a_private_file_stays_private_while_it_is_written(old):
    old.chmod(0o600)
    with atomic_write(old):
        modes = {path.name: mode_of(path) for path in old.parent.iterdir()}
    assert len(modes) == 2
    assert set(modes.values()) == {0o600}


@posix
def test_a_read_only_file_is_refused(old):
    old.chmod(0o444)
    with pytest.raises(PermissionError, match=r"read-only \(mode 0444\)") as caught:
        write(old)
    assert caught.value.filename == str(old)
    assert old.read_bytes() == b"old"
    assert names_in(old.parent) == ["file"]


@posix
def test_the_error_of_a_read_only_folder_names_the_file(old):
    old.parent.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="is read-only") as caught:
            write(old.with_name("other"))
    finally:
        old.parent.chmod(0o755)
    assert caught.value.filename == str(old.with_name("other"))
    assert names_in(old.parent) == ["file"]


def test_a_folder_that_does_not_exist_is_named_with_the_file(tmp_path):
    path = tmp_path / "gone" / "file"
    with pytest.raises(FileNotFoundError, match="create it first") as caught:
        write(path)
    assert caught.value.filename == str(path)
    assert ".tmp" not in str(caught.value)


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write(tmp_path / "file")


@posix
def test_a_file_in_the_place_of_the_folder_is_refused(old):
    with pytest.raises(NotADirectoryError) as caught:
        write(old / "file")
    assert caught.value.filename == str(old / "file")


@pytest.mark.parametrize("path", ["", "a\0b", b"a\0b"])
def test_invalid_names_are_refused(path):
    with pytest.raises(ValueError, match="Could not write"):
        write(path)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda path: path.mkdir(),
        pytest.param(lambda path: (path.touch(), path.chmod(0o444)), marks=posix),
    ],
)
def test_a_check_raises_the_errors_of_writing(tmp_path, prepare):
    prepare(tmp_path / "file")
    with pytest.raises(OSError, match="Could not write"):
        check_writable(tmp_path / "file")


def test_a_check_writes_nothing(old):
    check_writable(old)
    check_writable(old.with_name("new"))
    assert names_in(old.parent) == ["file"]


# Links --------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(tmp_path, exists):
    (tmp_path / "deep").mkdir()
    target = tmp_path / "deep" / "target"
    if exists:
        target.write_bytes(b"old")
    (tmp_path / "second").symlink_to("deep/target")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    write(tmp_path / "first")
    assert (tmp_path / "first").is_symlink()
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()
    assert names_in(tmp_path / "deep") == ["target"]


@posix
def test_circular_links_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links") as caught:
        write(tmp_path / "a")
    assert caught.value.errno == errno.ELOOP
    assert names_in(tmp_path) == ["a", "b"]


@posix
def test_another_hard_link_keeps_the_old_contents(old):
    os.link(old, old.with_name("other"))
    write(old)
    assert old.with_name("other").read_bytes() == b"old"


# Devices, pipes, open files -----------------------------------------------------------


@posix
def test_a_device_is_written_to_and_stays_a_device(tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    write(tmp_path / "null")
    write("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert (tmp_path / "null").is_symlink()


@posix
def test_a_pipe_is_written_to(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    thread.start()
    with atomic_write(pipe) as file:
        file.write(b"old")
        file.seek(0)
        file.write(b"new")
    thread.join(20)
    assert received == [b"new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@posix
def test_a_device_gets_nothing_after_an_error(tmp_path):
    reader, writer = os.pipe()
    with (
        pytest.raises(UnicodeEncodeError),
        atomic_write(f"/dev/fd/{writer}", "w") as file,
    ):
        file.writelines(["half of it", "\udc80"])
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == b""


@linux
def test_a_full_device_is_named():
    with pytest.raises(OSError, match="/dev/full") as caught:
        write("/dev/full")
    assert caught.value.errno == errno.ENOSPC


@posix
def test_an_open_file_continues_at_its_position(old, tmp_path):
    with open(old, "r+b") as file:
        file.seek(0, os.SEEK_END)
        number = file.fileno()
        (tmp_path / "link").symlink_to(f"/dev/fd/{number}")
        write(f"/dev/fd/{number}", b" 1")
        write(tmp_path / "link", b" 2")
        if sys.platform == "linux":
            write(f"/proc/self/fd/{number}", b" 3")
            write(f"/proc/{os.getpid()}/fd/{number}", b" 4")
    expected = b"old 1 2 3 4" if sys.platform == "linux" else b"old 1 2"
    assert old.read_bytes() == expected


@posix
def test_standard_output_comes_in_order_and_empties_no_file(old):
    program = (
        "from skpatchcore._utils._atomic import atomic_write\n"
        "print('first')\n"
        "with atomic_write('/dev/stdout', 'w') as file: file.write('second\\n')\n"
        "print('third')\n"
    )
    with open(old, "ab") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True)
    assert old.read_text() == "oldfirst\nsecond\nthird\n"


@posix
def test_a_file_that_is_not_open_is_an_error():
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        write("/dev/fd/987")
    assert caught.value.errno == errno.EBADF


# Finished parts -----------------------------------------------------------------------


def test_a_finished_part_is_renamed(old):
    part = old.with_name("part")
    part.write_bytes(b"new")
    move_into_place(part, old)
    assert old.read_bytes() == b"new"
    assert names_in(old.parent) == ["file"]


@posix
def test_a_part_does_not_replace_a_read_only_file(old):
    part = old.with_name("part")
    part.write_bytes(b"new")
    old.chmod(0o444)
    with pytest.raises(PermissionError, match="read-only"):
        move_into_place(part, old)
    assert old.read_bytes() == b"old"


# Growing files ------------------------------------------------------------------------


def test_a_growing_file_can_be_read_while_it_grows(tmp_path):
    path = tmp_path / "a.csv"
    file = GrowingFile(path)
    file.write(b"1\n")
    assert path.read_bytes() == b"1\n"
    file.write(b"2\n")
    file.close()
    assert path.read_bytes() == b"1\n2\n"
    assert os.listdir(tmp_path) == ["a.csv"]


@pytest.mark.parametrize(("append", "expected"), [(False, b"new"), (True, b"oldnew")])
def test_a_growing_file_replaces_or_continues_the_old_one(tmp_path, append, expected):
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")
    path.chmod(0o600)
    file = GrowingFile(path, append=append)
    file.write(b"new")
    file.close()
    assert path.read_bytes() == expected
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_growing_file_refuses_what_an_atomic_one_refuses(tmp_path):
    (tmp_path / "read-only").write_bytes(b"old")
    (tmp_path / "read-only").chmod(0o444)
    for path in (tmp_path / "missing" / "a", tmp_path, tmp_path / "read-only"):
        with pytest.raises(OSError, match="Could not write the file") as caught:
            GrowingFile(path)
        assert caught.value.filename == str(path)
    with pytest.raises(ValueError, match="must not be empty"):
        GrowingFile("")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_growing_file_names_a_full_device():
    file = GrowingFile("/dev/full")
    with pytest.raises(OSError, match="/dev/full"):
        file.write(b"data")
    file.close()
