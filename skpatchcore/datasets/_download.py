"""Download one large file: with resuming, retries, a progress bar and a hash."""

import hashlib
import re
import time
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from skpatchcore._utils import check_writable, move_into_place

# What has come of a chunk is lost when the connection breaks off.
_CHUNK_SIZE = 1 << 14
# Seconds to connect, and between two pieces of data.
_TIMEOUT = (10, 60)
# Seconds: a server could ask to come back in a year.
_LONGEST_WAIT = 120
_TEMPORARY_FAILURES = (429, 500, 502, 503, 504)


def download(
    url: str, path: Path, *, sha256: str, n_retries: int, delay: float, hint: str = ""
) -> None:
    """Bring `url` to `path`, unless it is there with the right hash.

    Until then the data are in ``<path>.part``: when interrupted, the file stays and the
    next call goes on with it. With a wrong hash it is removed.

    Raises
    ------
    OSError
        If the server cannot be reached, refuses, or does not keep to the protocol; the
        connection breaks off `n_retries` + 1 times; the hash is wrong; or the file
        cannot be written. `hint` ends the first message.
    """
    check_writable(path)
    if path.exists() and _hash_file(path) == sha256.lower():
        return
    part = path.with_name(path.name + ".part")
    try:
        with _open_session(n_retries, delay) as session:
            _download_resuming(session, url, part, n_retries, delay)
    except (requests.RequestException, HTTPError, ValueError) as error:
        # Of requests, too, some errors of malformed addresses and redirects are
        # urllib3's or plain ValueErrors.
        raise OSError(f"Could not download {url}: {error}. {hint}") from error
    _check_hash(part, sha256.lower(), url)
    move_into_place(part, path)


class _Retry(Retry):
    """Wait as long as a server asks for, within reason."""

    def get_retry_after(self, response) -> float | None:
        """Return how many seconds to wait, if the server says so."""
        seconds = super().get_retry_after(response)
        return None if seconds is None else min(seconds, _LONGEST_WAIT)


def _open_session(n_retries: int, delay: float) -> requests.Session:
    """Return a session that tries again when a connection or a server fails."""
    retry = _Retry(
        total=n_retries,
        backoff_factor=delay,
        status_forcelist=_TEMPORARY_FAILURES,
        raise_on_status=False,
    )
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=retry))
    session.mount("https://", HTTPAdapter(max_retries=retry))
    return session


def _download_resuming(
    session: requests.Session, url: str, part: Path, n_retries: int, delay: float
) -> None:
    """Fill `part`; when the connection breaks off, go on where it did."""
    for i in range(n_retries + 1):
        if i > 0:
            time.sleep(delay)
        with _request_rest(session, url, part) as response:
            if response.status_code == 416 or _append(response, part):
                return
    raise OSError(
        f"The connection to {url} broke off {n_retries + 1} times. "
        f"{_n_bytes(part)} bytes are kept in {part}; call again to go on."
    )


def _n_bytes(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _request_rest(session: requests.Session, url: str, part: Path) -> requests.Response:
    """Ask for what `part` lacks; the status is 416 only if it lacks nothing."""
    n_bytes = _n_bytes(part)
    # Compressed on its way, the file would not continue at the same offset.
    headers = {"Accept-Encoding": "identity"}
    if n_bytes:
        headers["Range"] = f"bytes={n_bytes}-"
    response = session.get(url, headers=headers, stream=True, timeout=_TIMEOUT)
    if n_bytes and response.status_code in (206, 416):
        if _continues(response, n_bytes):
            return response
        response.close()
        part.unlink()
        return _request_rest(session, url, part)
    if not response.ok:
        response.close()
    response.raise_for_status()
    return response


def _continues(response: requests.Response, n_bytes: int) -> bool:
    """Tell if a partial answer begins, or an empty one ends, at `n_bytes`."""
    if response.status_code == 206 and _is_encoded(response):
        return False
    expected = r"\*/{}" if response.status_code == 416 else "{}-.*"
    content_range = response.headers.get("Content-Range", "")
    return bool(re.fullmatch("bytes " + expected.format(n_bytes), content_range))


def _is_encoded(response: requests.Response) -> bool:
    """Tell if a server compresses what it sends although it was asked not to."""
    return response.headers.get("Content-Encoding", "identity") not in ("", "identity")


def _total_size(response: requests.Response, n_before: int) -> int | None:
    """Return how large the whole file is to be, if the server says so."""
    content_range = response.headers.get("Content-Range", "")
    if n_before and (match := re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", content_range)):
        return int(match[1])
    length = re.fullmatch(r"\d{1,18}", response.headers.get("Content-Length", ""))
    # Of a compressed file, it is the compressed size.
    if length is None or _is_encoded(response):
        return None
    return n_before + int(length[0])


def _append(response: requests.Response, part: Path) -> bool:
    """Save what arrives, and tell if it was everything."""
    # Without a request for the rest, a partial answer is a mistake of the server, and
    # begins the file anew.
    is_rest = response.status_code == 206 and "Range" in response.request.headers
    n_before = _n_bytes(part) if is_rest else 0
    total, complete = _total_size(response, n_before), False
    with (
        part.open("ab" if is_rest else "wb") as file,
        # disable=None: no bar where the output is no terminal.
        tqdm(
            total=total,
            initial=n_before,
            desc=part.stem,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar,
    ):
        try:
            for chunk in response.iter_content(_CHUNK_SIZE):
                file.write(chunk)
                bar.update(len(chunk))
            complete = total is None or file.tell() == total
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            pass
        finally:
            if not complete and _is_encoded(response):
                file.truncate(0)  # A compressed file cannot be continued.
    return complete


def _check_hash(part: Path, sha256: str, url: str) -> None:
    actual = _hash_file(part)
    if actual == sha256:
        return
    n_bytes = part.stat().st_size
    part.unlink()
    raise OSError(
        f"The {n_bytes} bytes from {url} have the SHA-256 hash {actual}; expected "
        f"{sha256}. They were removed. The file there is another one, or was damaged "
        "on its way."
    )


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
