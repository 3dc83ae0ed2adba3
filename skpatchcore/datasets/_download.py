"""Download a large file with resuming, retries, a progress bar and a hash check."""

import hashlib
import re
import time
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from skpatchcore._utils import check_writable, move_into_place

# Small, because an incomplete chunk is lost when the connection breaks.
_CHUNK_SIZE = 1 << 14
# Seconds to connect, and to wait for the next data.
_TIMEOUT = (10, 60)
# Seconds. A server could request a wait of any length.
_LONGEST_WAIT = 120
_TEMPORARY_FAILURES = (429, 500, 502, 503, 504)


def download(
    url: str, path: Path, *, sha256: str, n_retries: int, delay: float, hint: str = ""
) -> None:
    """Download `url` to `path`, unless a file with the right hash exists there.

    During the download, the data are in ``<path>.part``. After an interruption, this
    file is kept, and the next call resumes the download. If its hash is wrong, it is
    removed.

    Raises
    ------
    OSError
        If the server cannot be reached, refuses the request, or violates the protocol;
        if the connection breaks `n_retries` + 1 times; if the hash is wrong; or if the
        file cannot be written. Errors of the server end with `hint`.
    """
    check_writable(path)
    if path.exists() and _hash_file(path) == sha256.lower():
        return
    part = path.with_name(path.name + ".part")
    try:
        with _open_session(n_retries, delay) as session:
            _download_resuming(session, url, part, n_retries, delay)
    except (requests.RequestException, HTTPError, ValueError) as error:
        # For malformed addresses and redirects, requests also raises errors of urllib3
        # and plain ValueErrors.
        raise OSError(f"Could not download {url}: {error}. {hint}") from error
    _check_hash(part, sha256.lower(), url)
    move_into_place(part, path)


class _Retry(Retry):
    """Wait as long as the server requests, up to a limit."""

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        """Return how many seconds to wait, or None if the server does not say."""
        seconds = super().get_retry_after(response)
        return None if seconds is None else min(seconds, _LONGEST_WAIT)


def _open_session(n_retries: int, delay: float) -> requests.Session:
    """Return a session that retries when a connection or a server fails."""
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
    """Download to `part`, and resume when the connection breaks."""
    for i in range(n_retries + 1):
        if i > 0:
            time.sleep(delay)
        with _request_rest(session, url, part) as response:
            if response.status_code == 416 or _append(response, part):
                return
    raise OSError(
        f"The connection to {url} broke {n_retries + 1} times. {_n_bytes(part)} bytes "
        f"are kept in {part}. Call the function again to resume the download."
    )


def _n_bytes(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _request_rest(session: requests.Session, url: str, part: Path) -> requests.Response:
    """Request the missing bytes of `part`; status 416 means that it is complete."""
    n_bytes = _n_bytes(part)
    # The offset refers to the uncompressed file.
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
    """Return whether a partial response starts (or an empty one ends) at `n_bytes`."""
    if response.status_code == 206 and _is_encoded(response):
        return False
    expected = r"\*/{}" if response.status_code == 416 else "{}-.*"
    content_range = response.headers.get("Content-Range", "")
    return bool(re.fullmatch("bytes " + expected.format(n_bytes), content_range))


def _is_encoded(response: requests.Response) -> bool:
    """Return whether the server compresses the data in spite of the request."""
    return response.headers.get("Content-Encoding", "identity") not in ("", "identity")


def _total_size(response: requests.Response, n_before: int) -> int | None:
    """Return the size of the whole file, or None if the server does not state it."""
    content_range = response.headers.get("Content-Range", "")
    if n_before and (match := re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", content_range)):
        return int(match[1])
    length = re.fullmatch(r"\d{1,18}", response.headers.get("Content-Length", ""))
    # If the data are compressed, the header states the compressed size.
    if length is None or _is_encoded(response):
        return None
    return n_before + int(length[0])


def _append(response: requests.Response, part: Path) -> bool:
    """Write the response to `part`; return whether it was complete."""
    # If no range was requested, a partial response is a mistake of the server, and the
    # file starts again.
    is_rest = response.status_code == 206 and "Range" in response.request.headers
    n_before = _n_bytes(part) if is_rest else 0
    total, complete = _total_size(response, n_before), False
    with (
        part.open("ab" if is_rest else "wb") as file,
        # disable=None hides the bar if the output is not a terminal.
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
                file.truncate(0)  # A compressed download cannot be resumed.
    return complete


def _check_hash(part: Path, sha256: str, url: str) -> None:
    actual = _hash_file(part)
    if actual == sha256:
        return
    n_bytes = part.stat().st_size
    part.unlink()
    raise OSError(
        f"The {n_bytes} bytes from {url} have the SHA-256 hash {actual}; expected "
        f"{sha256}. They were removed. The file has changed at its source, or was "
        "damaged during the download. Try again, or pass another url."
    )


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
