"""For any response of a server, a download succeeds or raises an OSError."""

import contextlib
import gc
import gzip
import hashlib
import io
import lzma
import socket
import struct
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from skpatchcore.datasets import _download, fetch_mvtec_ad
from skpatchcore.datasets._download import download

# After a malformed redirect, requests does not close the connection.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
DATA = np.random.default_rng(0).bytes(50_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
RESET = object()


def answer(body=DATA, status="200 OK", length=True, cut=None, **headers):
    """Return the bytes of a response; `cut` ends the connection after that many."""
    lines = [f"HTTP/1.1 {status}", "Connection: close"]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body[:cut]


class Server:
    """Send prepared responses, one for each connection, and record the requests."""

    def __init__(self, answers):
        self.answers, self.requests = list(answers), []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/file"
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        self.socket.settimeout(5)
        for prepared in self.answers:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65536).decode("latin-1"))
                is_reset = isinstance(prepared, tuple)
                data = prepared[0] if is_reset else prepared
                try:
                    connection.sendall(data.replace(b"PORT", self.url[17:-5].encode()))
                except OSError:  # The client has seen enough.
                    continue
                if is_reset:  # Closed with a reset instead of an end.
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        # No client should wait for a response that was not prepared.
        self.socket.close()

    def stop(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(20)
        self.socket.close()


@pytest.fixture(scope="module", autouse=True)
def _collect_lost_connections():
    yield
    gc.collect()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(*answers):
        servers.append(Server(answers))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def get(server, folder, n_retries=2):
    path = folder / "file"
    download(server.url, path, sha256=SHA256, n_retries=n_retries, delay=0.0)
    return path.read_bytes()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


HALF = _download._CHUNK_SIZE  # What has come of another chunk is lost.
REST = {
    "body": DATA[HALF:],
    "status": "206 Partial Content",
    "Content_Range": f"bytes {HALF}-{len(DATA) - 1}/{len(DATA)}",
}
CHUNKED = b"".join(
    b"%x\r\n%b\r\n" % (len(DATA[i:][:999]), DATA[i:][:999])
    for i in range(0, len(DATA), 999)
)
ZIPPED = gzip.compress(DATA)

GOOD = {
    "plain": [answer()],
    "no length": [answer(length=False)],
    "length that is no number": [answer(length=False, Content_Length="many")],
    "negative length": [answer(length=False, Content_Length="-1")],
    "length with a sign": [answer(length=False, Content_Length="+50000")],
    "length in other digits": [answer(length=False, Content_Length="\u00b2")],
    "chunked": [
        answer(CHUNKED + b"0\r\n\r\n", length=False, Transfer_Encoding="chunked")
    ],
    "partial, not asked for": [answer(status="206 Partial Content")],
    "redirect": [
        answer(b"", "302 Found", Location="http://127.0.0.1:PORT/other"),
        answer(),
    ],
    "compressed": [answer(ZIPPED, Content_Encoding="gzip")],
    "compressed, of unknown length": [
        answer(ZIPPED, length=False, Content_Encoding="gzip")
    ],
    "cut": [answer(cut=HALF), answer(**REST)],
    "cut, then compressed": [answer(cut=HALF), answer(ZIPPED, Content_Encoding="gzip")],
    "cut, rest compressed": [
        answer(cut=HALF),
        answer(
            status=REST["status"],
            body=gzip.compress(REST["body"]),
            Content_Encoding="gzip",
            Content_Range=REST["Content_Range"],
        ),
        answer(),
    ],
    "compressed and cut": [answer(ZIPPED, Content_Encoding="gzip", cut=HALF), answer()],
    "rest without a range": [
        answer(cut=HALF),
        answer(REST["body"], REST["status"]),
        answer(),
    ],
    "rest in two parts": [
        answer(cut=HALF),
        answer(
            DATA[HALF : HALF + 100],
            REST["status"],
            Content_Range=f"bytes {HALF}-{HALF + 99}/{len(DATA)}",
        ),
        answer(
            DATA[HALF + 100 :],
            REST["status"],
            Content_Range=f"bytes {HALF + 100}-{len(DATA) - 1}/{len(DATA)}",
        ),
    ],
    "rest of unknown length": [answer(cut=HALF), answer(**REST, length=False)],
    "whole file instead of the rest": [answer(cut=HALF), answer()],
    "reset in the body": [(answer(cut=HALF),), answer(**REST)],
    "reset in the header": [(b"HTTP/1.1 200",), answer()],
    "cut in a chunk": [
        answer(CHUNKED[:5000], length=False, Transfer_Encoding="chunked"),
        answer(),
    ],
    "a chunk without a size": [
        answer(b"zz\r\n", length=False, Transfer_Encoding="chunked"),
        answer(),
    ],
    "busy for a while": [answer(b"", "503 Busy", Retry_After="0"), answer()],
}


@pytest.mark.parametrize("case", GOOD)
def test_valid_responses_are_downloaded(serve, tmp_path, case):
    assert get(serve(*GOOD[case]), tmp_path) == DATA
    assert names_in(tmp_path) == ["file"]


BAD = {
    "empty": [answer(b"")],
    "no content": [answer(b"", "204 No Content")],
    "not modified": [answer(b"", "304 Not Modified", length=False)],
    "another file": [answer(DATA[::-1])],
    "too short": [answer(length=False, Content_Length=HALF)],
    "cut, of unknown length": [answer(length=False, cut=HALF)],
    "no gzip": [answer(Content_Encoding="gzip")],
    "gzip cut": [answer(ZIPPED[:HALF], Content_Encoding="gzip")] * 3,
    "unknown encoding": [answer(Content_Encoding="secret")[:-9]] * 3,
    "part from the middle": [answer(**REST)],
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_contents_are_removed(serve, tmp_path, case):
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        get(serve(*BAD[case]), tmp_path)
    assert all(path.stat().st_size == 0 for path in tmp_path.iterdir())
    assert get(serve(answer()), tmp_path) == DATA


REFUSED = {
    "no HTTP": [b"SSH-2.0-OpenSSH_9.2\r\n"],
    "nothing": [b""] * 3,
    "reset": [(b"",)] * 3,
    "endless header": [b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000],
    "two lengths": [answer(length=False, Content_Length="5, 7")],
    "wait for a word": [answer(b"", "503 Busy", Retry_After="soon")],
    "wrong range": [answer(b"", "416 Range Not Satisfiable")],
    "gone": [answer(b"", "404 Not Found")],
    "redirect in a circle": [answer(b"", "302 Found", Location="/file")] * 40,
    "redirect to a file": [answer(b"", "302 Found", Location="file:///etc/passwd")],
    "redirect nowhere": [answer(b"", "302 Found", Location="http://[")],
    "redirect to no address": [answer(b"", "302 Found", Location="http://")],
    "redirect to bytes": [answer(b"", "302 Found", Location="http://\xff\xfe/")],
    "redirect to a strange port": [
        answer(b"", "302 Found", Location="http://a:99999/")
    ],
    "redirect to a long name": [
        answer(b"", "302 Found", Location=f"http://{'a' * 70}.b/")
    ],
}


@pytest.mark.parametrize("case", REFUSED)
def test_failing_servers_raise_an_oserror(serve, tmp_path, case):
    with pytest.raises(OSError, match="Could not download") as caught:
        get(serve(*REFUSED[case]), tmp_path, n_retries=1)
    assert type(caught.value) is OSError
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file",
        "ftp://a/b",
        "http://[::1",
        "http://a\0b/",
        "http:///x",
        "http://*.x/",
    ],
)
def test_invalid_addresses_raise_an_oserror(tmp_path, url):
    with pytest.raises(OSError, match="Could not download"):
        download(url, tmp_path / "file", sha256=SHA256, n_retries=0, delay=0)
    assert names_in(tmp_path) == []


def test_random_responses_give_the_file_or_an_oserror(serve, tmp_path):
    """Bytes are changed, inserted and removed in the header of a valid response."""
    rng = np.random.default_rng(1)
    n_right, kinds = 0, set()
    for _ in range(60):
        answers = []
        for _ in range(4):
            data = bytearray(answer(**REST) if rng.random() < 0.5 else answer())
            for place in rng.integers(0, 150, rng.integers(1, 4)):
                data[place : place + rng.integers(3)] = rng.bytes(rng.integers(3))
            answers.append(
                bytes(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
            )
        server = serve(*answers)
        try:
            n_right += get(server, tmp_path, n_retries=2) == DATA
            (tmp_path / "file").unlink()
        except OSError as error:
            kinds.add(type(error))
        server.stop()
        assert set(names_in(tmp_path)) <= {"file.part"}
    assert n_right > 5
    assert kinds == {OSError}


def test_requested_waits_are_limited(serve, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waited.append)
    server = serve(answer(b"", "503 Busy", Retry_After="31536000"), answer())
    assert get(server, tmp_path) == DATA
    assert waited == [_download._LONGEST_WAIT]


def test_blocked_paths_raise_an_oserror(serve, tmp_path):
    server = serve(answer())
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        get(server, tmp_path)
    assert server.requests == []
    with pytest.raises(FileNotFoundError, match="create it first"):
        get(server, tmp_path / "gone")


# Archives -----------------------------------------------------------------------------


def png():
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(*members, mode="w:xz"):
    """Return an archive with a category, and members (name, type, linkname)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for i in range(20):
            info = tarfile.TarInfo(f"bottle/train/good/{i}.png")
            info.size = len(png())
            archive.addfile(info, io.BytesIO(png()))
        for name, kind, linkname in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, linkname
            archive.addfile(info)
    return buffer.getvalue()


def fetch(serve, folder, data, **options):
    server = serve(answer(data))
    return fetch_mvtec_ad(
        "bottle",
        data_home=folder,
        accept_license=True,
        url=server.url,
        sha256=hashlib.sha256(data).hexdigest(),
        n_retries=0,
        delay=0.0,
        **options,
    )


PLAIN, XZ = tar(mode="w"), tar()
ARCHIVES = {
    "empty": b"",
    "text": b"<html>Not found</html>",
    "xz of text": lzma.compress(b"no archive" * 1000),
    "xz cut": XZ[: len(XZ) // 2],
    "xz without its end": XZ[:-60],
    "xz damaged": XZ[:200] + bytes(50) + XZ[250:],
    "tar cut in a member": PLAIN[:700],
    "tar cut in a header": PLAIN[: 20 * 1024 - 300],
    "tar with a bad header": PLAIN[:1024] + b"\xff" * 512 + PLAIN[1536:],
    "gz cut": gzip.compress(PLAIN)[:300],
    "gz damaged": gzip.compress(PLAIN)[:60] + bytes(9) + gzip.compress(PLAIN)[69:],
    "path above": tar(("../evil", tarfile.REGTYPE, "")),
    "link above": tar(("bottle/x", tarfile.SYMTYPE, "../../../evil")),
    "absolute link": tar(("bottle/x", tarfile.SYMTYPE, "/etc/passwd")),
    "hard link to nothing": tar(("bottle/x", tarfile.LNKTYPE, "nothing")),
    "hard link above": tar(("bottle/x", tarfile.LNKTYPE, "../../evil")),
    "device": tar(("bottle/x", tarfile.CHRTYPE, "")),
    "pipe": tar(("bottle/x", tarfile.FIFOTYPE, "")),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_bad_archives_raise_an_oserror_and_are_removed(serve, tmp_path, case):
    with pytest.raises(
        OSError, match=r"Could not unpack mvtec.*It was removed"
    ) as raised:
        fetch(serve, tmp_path / "home", ARCHIVES[case])
    assert type(raised.value) is OSError
    assert names_in(tmp_path) == ["home"]
    assert {path.name for path in (tmp_path / "home").iterdir()} <= {".mvtec_ad.lock"}


def test_random_damage_of_an_archive_is_survived(serve, tmp_path):
    rng = np.random.default_rng(2)
    refused, missing = [], []
    for i in range(40):
        data = bytearray(PLAIN if i % 2 else gzip.compress(PLAIN, 1))
        for place in rng.integers(0, 3000 if i % 2 else len(data), 3):
            data[place : place + rng.integers(1, 3)] = rng.bytes(rng.integers(3))
        home = tmp_path / str(i)
        try:
            fetch(serve, home, bytes(data))
        except ValueError as error:
            missing.append(str(error))
        except OSError as error:
            refused.append(type(error))
        assert not list(home.glob("mvtec*"))
    assert len(refused) > 10
    assert set(refused) == {OSError}
    assert all("Found no category" in text for text in missing)


def test_a_full_disk_keeps_the_archive(serve, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "extractall", fail)
        with pytest.raises(OSError, match="No space left"):
            fetch(serve, tmp_path, XZ)
    assert any(name.endswith(".tar.xz") for name in names_in(tmp_path))
    assert len(fetch(serve, tmp_path, XZ).data) == 20


def test_a_file_as_data_home_is_named(serve, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"data_home=.*is a file"):
        fetch(serve, tmp_path / "file", XZ)
