"""The zip archive of a model file: its members, and the manifest that lists them."""

import hashlib
import json
import math
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from skpatchcore import __version__
from skpatchcore._utils import atomic_write

_FORMAT, _FORMAT_VERSION = "skpatchcore model", 3
_MANIFEST = "model.json"
ARRAYS, BACKBONE = "arrays.safetensors", "backbone.safetensors"
# A manifest has a few kilobytes per detector. A larger one than this is not parsed.
_MAX_MANIFEST_BYTES = 2**22
# Digits of a 64-bit integer, with a sign.
_MAX_DIGITS = 20


class ModelFileError(ValueError):
    """A model file is damaged, was tampered with, or needs a missing network."""


@contextmanager
def naming(path) -> Iterator[None]:
    """Turn errors that a damaged file causes into a `ModelFileError` with its name."""
    try:
        yield
    except (
        TypeError,
        ValueError,
        RuntimeError,  # of zipfile and torch; also NotImplementedError, RecursionError
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,  # of safetensors, for dtypes that NumPy lacks
        MemoryError,
        EOFError,
        struct.error,
        zipfile.BadZipFile,
        SafetensorError,
    ) as error:
        raise ModelFileError(
            f"Could not load the model file {os.fspath(path)!r}: {error}"
        ) from error


def write_members(path: Path, content: dict, members: dict[str, bytes]) -> None:
    """Write a manifest with `content` and the hashes of `members`, then `members`."""
    manifest = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "versions": _versions(),
        "members": {name: _describe(data) for name, data in members.items()},
        **content,
    }
    text = json.dumps(manifest, allow_nan=False, indent=1, sort_keys=True).encode()
    if len(text) > _MAX_MANIFEST_BYTES:
        raise ValueError(
            f"The model description is too large ({len(text)} bytes; limit "
            f"{_MAX_MANIFEST_BYTES}). Use a smaller cv, or method='refit'."
        )
    with atomic_write(path) as file:
        _write_zip(file, {_MANIFEST: text, **members})


def _versions() -> dict[str, str]:
    """Return versions of packages, for information only."""
    packages = ("numpy", "safetensors", "scikit-learn", "timm", "torch")
    return {"skpatchcore": __version__} | {name: version(name) for name in packages}


def _describe(data: bytes) -> dict:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_zip(file, members: dict[str, bytes]) -> None:
    """Write an uncompressed zip that does not depend on time or operating system."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data)


def read_members(path) -> tuple[dict, dict[str, bytes]]:
    """Return the manifest and the other members, after checking them against it."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        infos = _check_listing(archive, os.fstat(file.fileno()).st_size)
        if _MANIFEST not in infos:
            raise ValueError(f"it has no {_MANIFEST}.")
        info = infos.pop(_MANIFEST)
        if info.file_size > _MAX_MANIFEST_BYTES:
            raise ValueError(f"its {_MANIFEST} is too large, {info.file_size} bytes.")
        manifest = _parse_manifest(_read_member(archive, info))
        described = entry(manifest, "members", dict)
        if not {ARRAYS} <= infos.keys() <= {ARRAYS, BACKBONE}:
            raise ValueError(f"missing or extra members: it holds {sorted(infos)}.")
        if infos.keys() != described.keys():
            raise ValueError(f"it holds {sorted(infos)} but lists {sorted(described)}.")
        members = {name: _read_member(archive, info) for name, info in infos.items()}
    for name, data in members.items():
        if _describe(data) != described[name]:
            raise ValueError(f"size or SHA-256 of {name} is not as listed.")
    return manifest, members


def _check_listing(archive, n_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name, after checks that do not read them."""
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) != len(archive.infolist()):
        raise ValueError("it has several members of the same name.")
    for name, info in infos.items():
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"member {name!r} is a link or folder, not a file.")
        packed = info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1
        if packed or info.file_size != info.compress_size or info.header_offset < 0:
            raise ValueError(f"member {name!r} is compressed, encrypted or damaged.")
    if sum(info.file_size for info in infos.values()) > n_bytes:
        raise ValueError("its members claim to be larger than the file.")
    return infos


def _read_member(archive, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as member:
        data = member.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise ValueError(
            f"the size of {info.filename} does not match the archive header."
        )
    return data


def _parse_manifest(data: bytes) -> dict:
    manifest = json.loads(
        data.decode(),
        parse_int=_integer,
        parse_float=_finite,
        parse_constant=_finite,
        object_pairs_hook=_unambiguous,
    )
    try:
        json.dumps(manifest, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"its {_MANIFEST} has text that is not Unicode.") from error
    if entry(manifest, "format", str) != _FORMAT:
        raise ValueError(f"its format is {manifest['format']!r:.40}, not {_FORMAT!r}.")
    written = entry(manifest, "format_version", int)
    if written != _FORMAT_VERSION:
        raise ValueError(
            f"it has format version {written}, written by skpatchcore "
            f"{_writer(manifest)}, but skpatchcore {__version__} reads version "
            f"{_FORMAT_VERSION}. Load it with the version that wrote it, or fit and "
            "save the detector again."
        )
    return manifest


def _writer(manifest) -> str:
    """Return the version that wrote a file, if the file says so."""
    versions = manifest.get("versions")
    version = versions.get("skpatchcore") if isinstance(versions, dict) else None
    return f"{version:.40}" if isinstance(version, str) else "of an unknown version"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number.")
    return value


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"{text[:_MAX_DIGITS]}... is an int of too many digits.")
    return int(text)


def _unambiguous(pairs: list[tuple]) -> dict:
    """Return an object; refuse equal names, among which JSON readers differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"its {_MANIFEST} says {twice!r:.80} twice in one object.")
    return found


def entry(record: Any, name: str, kind: type) -> Any:
    """Return an entry of a JSON object; raise if it is missing or of another type."""
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name!r} must be of {kind.__name__}, got {value!r:.80}.")
    return value
