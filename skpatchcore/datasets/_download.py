"""Download one large file: with resuming, retries, a progress bar and a hash."""

import hashlib
import re
import time
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm
from urllib3.util import Retry

# What has come of a chunk is lost when the connection breaks off.
_CHUNK_SIZE = 1 << 14
# Seconds to connect, and between two pieces of data.
_TIMEOUT = (10, 60)
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
        If the server cannot be reached or refuses, the connection breaks off
        `n_retries` + 1 times, or the hash is wrong; `hint` ends the first message.
    """
    if path.exists() and _hash_file(path) == sha256.lower():
        return
    part = path.with_name(path.name + ".part")
    try:
        with _open_session(n_retries, delay) as session:
            _download_resuming(session, url, part, n_retries, delay)
    except requests.RequestException as error:
        raise OSError(f"Could not download {url}: {error}. {hint}") from error
    _check_hash(part, sha256.lower(), url)
    part.replace(path)


def _open_session(n_retries: int, delay: float) -> requests.Session:
    """Return a session that tries again when a connection or a server fails."""
    retry = Retry(
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
        f"{part.stat().st_size} bytes are kept in {part}; call again to go on."
    )


def _request_rest(session: requests.Session, url: str, part: Path) -> requests.Response:
    """Ask for what `part` lacks; the status is 416 only if it lacks nothing."""
    n_bytes = part.stat().st_size if part.exists() else 0
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
    response.raise_for_status()
    return response


def _continues(response: requests.Response, n_bytes: int) -> bool:
    """Tell if a partial answer begins, or an empty one ends, at `n_bytes`."""
    expected = r"\*/{}" if response.status_code == 416 else "{}-.*"
    content_range = response.headers.get("Content-Range", "")
    return bool(re.fullmatch("bytes " + expected.format(n_bytes), content_range))


def _append(response: requests.Response, part: Path) -> bool:
    """Save what arrives, and tell if it was everything."""
    is_rest = response.status_code == 206
    n_before = part.stat().st_size if is_rest else 0
    length = response.headers.get("Content-Length")
    total = None if length is None else n_before + int(length)
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
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            return False
    return total is None or part.stat().st_size == total


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
