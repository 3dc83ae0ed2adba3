"""A fitted detector as one safe file: JSON and safetensors in a zip, no pickle."""

import functools
import hashlib
import json
import math
import os
import secrets
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from scipy.sparse import csr_matrix, issparse
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skpatchcore import __version__
from skpatchcore._backbone import (
    Backbone,
    _create,
    _modules_run,
    check_layers,
    resolve_device,
)
from skpatchcore._coreset import CoresetSampler
from skpatchcore._detector import PatchCoreDetector
from skpatchcore._features import PatchFeatureTransformer
from skpatchcore._memory_bank import PatchMemoryBank

__all__ = ["ModelFileError", "load", "save"]

_FORMAT, _FORMAT_VERSION = "skpatchcore model", 1
_MANIFEST = "model.json"
_ARRAYS, _BACKBONE = "arrays.safetensors", "backbone.safetensors"
# A manifest takes some kilobytes; no more than this of one is parsed.
_MAX_MANIFEST_BYTES = 2**20

# What a fitted estimator of ours consists of beside its parameters.
_FITTED = {
    PatchCoreDetector: {
        *("features_", "memory_bank_", "training_indices_", "_training_shapes"),
        *("training_scores_", "offset_", "map_threshold_"),
    },
    PatchFeatureTransformer: {
        *("layer_weights_", "projection_", "n_patch_features_", "grid_shape_", "_seed")
    },
    PatchMemoryBank: {
        *("sampler_", "bank_", "bank_indices_", "training_scores_", "offset_"),
        *("patch_threshold_", "n_features_in_", "_index_seed"),
    },
    CoresetSampler: {"sample_indices_", "radii_", "n_features_in_"},
}
_RANDOM_PROJECTIONS = (GaussianRandomProjection, SparseRandomProjection)
_DECOMPOSITIONS = (PCA, IncrementalPCA, TruncatedSVD)
_SCALERS = (Normalizer, StandardScaler)
_PROJECTIONS = (*_RANDOM_PROJECTIONS, *_DECOMPOSITIONS, *_SCALERS, Pipeline)
_CLASSES = {cls.__name__: cls for cls in (*_FITTED, *_PROJECTIONS)}
# Caches belong to a machine, not to a model.
_NOT_STORED = {"memory"}

# Types of a fitted detector's attributes, and dtypes and shapes of its arrays, where a
# letter is the same number everywhere: m rows of the bank, d features, n pictures.
_TYPES = {
    "features_": PatchFeatureTransformer,
    "features_._seed": Integral,
    "features_.layer_weights_": tuple,
    "features_.n_patch_features_": Integral,
    "features_.grid_shape_": tuple,
    "memory_bank_": PatchMemoryBank,
    "memory_bank_.sampler_": CoresetSampler,
    "memory_bank_._index_seed": Integral,
    "memory_bank_.offset_": Real,
    "memory_bank_.patch_threshold_": Real,
    "offset_": Real,
    "map_threshold_": Real,
}
_ARRAY_SHAPES = {
    "memory_bank_.bank_": ("float32", "md"),
    "memory_bank_.bank_indices_": ("int64", "m"),
    "memory_bank_.sampler_.sample_indices_": ("int64", "m"),
    "memory_bank_.sampler_.radii_": ("float64", "m"),
    "memory_bank_.training_scores_": ("float64", "n"),
    "training_scores_": ("float64", "n"),
    "training_indices_": ("int64", "n"),
    "_training_shapes": ("int64", "n2"),
}


class ModelFileError(ValueError):
    """A model file is damaged, was tampered with, or asks for what is not there."""


def save(detector, path, *, include_backbone=False):
    """Write a fitted detector to one file that is safe to load.

    Use it to ship a model: the file holds numbers and names, and nothing in it is ever
    executed, unlike a pickle. The same model gives the same bytes. The file is complete
    or not there: it is written under a temporary name in the same folder, and renamed.

    Parameters
    ----------
    detector : PatchCoreDetector
        Fitted. Its sampler is a :class:`CoresetSampler`, and its projection is None, an
        int, or one of scikit-learn's ``GaussianRandomProjection``,
        ``SparseRandomProjection``, ``PCA``, ``IncrementalPCA``, ``TruncatedSVD``,
        ``StandardScaler``, ``Normalizer``, or a ``Pipeline`` of these.

    path : str or path-like
        File to write, ``.skpc`` by convention. An existing file is replaced.

    include_backbone : bool, default=False
        Store the network's weights too, up to the last layer that is read, so that
        neither timm's cache nor a weights file is needed to load the model: 100 MB for
        the default network, which is otherwise built from its name and `weights`.

    Raises
    ------
    TypeError
        If `detector` is no PatchCoreDetector, or holds an object of another class.

    ValueError
        If `detector` is not fitted, or `include_backbone` is asked for a network that
        was given as a module.

    See Also
    --------
    load : Read such a file.

    Notes
    -----
    A file is an uncompressed zip of ``model.json``, ``arrays.safetensors`` and, if it
    was asked for, ``backbone.safetensors``. The JSON has the version of the format,
    those of the packages, all parameters, fitted numbers, the SHA-256 of the other
    members and that of the weights of the network.

    Left out are ``min_distances_`` and ``nearest_picks_`` of the sampler, which have an
    entry for each training patch; caches (`memory`); and ``RandomState`` instances as
    `random_state`, which become None: what they drew is kept.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
    >>> from skpatchcore.datasets import make_surface_defects
    >>> from skpatchcore.persistence import load, save
    >>> surfaces = make_surface_defects(4, 1, 1, image_size=64, random_state=0)
    >>> features = PatchFeatureTransformer("resnet18", weights="random", image_size=64)
    >>> detector = PatchCoreDetector(features, random_state=0)
    >>> detector = detector.fit(surfaces.data, surfaces.target)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(detector, Path(folder) / "brushed.skpc")
    ...     loaded = load(Path(folder) / "brushed.skpc")
    >>> scores = detector.score_samples(surfaces.data)
    >>> bool((loaded.score_samples(surfaces.data) == scores).all())
    True
    """
    if type(detector) is not PatchCoreDetector:
        raise TypeError(f"Expected a PatchCoreDetector, got {type(detector).__name__}.")
    check_is_fitted(detector)
    writer = _Writer()
    record = writer.encode(detector, "", fitted=True)
    members = {_ARRAYS: safetensors.numpy.save(writer.arrays)}
    if include_backbone:
        members[_BACKBONE] = _backbone_bytes(detector.features_)
    manifest = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "versions": _versions(),
        "members": {name: _describe(data) for name, data in members.items()},
        "backbone_sha256": _fingerprint(detector.features_),
        "detector": record,
    }
    text = json.dumps(manifest, allow_nan=False, indent=1, sort_keys=True)
    _write_atomically(Path(path), {_MANIFEST: text.encode(), **members})


def load(path, *, weights=None, backbone=None, device=None):
    """Read a detector that `save` wrote.

    Scores and maps are those of the detector that was saved, bit for bit on the same
    machine and package versions. Nothing in the file is executed, and no other file is
    touched, except that a network which is not in the file is built as `fit` builds it:
    from timm's weights or from a local file. Its weights must be those of the fit.

    Parameters
    ----------
    path : str or path-like
        File to read.

    weights : str, path-like or None, default=None
        Local weights file of the network, where it is not the one, or no longer in the
        place, that the detector was fitted with.

    backbone : torch.nn.Module or None, default=None
        The network, for a detector that was fitted with a module.

    device : str, torch.device or None, default=None
        Where to compute from now on; None is where the detector was told to.

    Returns
    -------
    detector : PatchCoreDetector
        Fitted detector.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no such weights file.

    ModelFileError
        A ValueError, if the file is damaged, inconsistent or of a newer format, if the
        network has other weights than in the fit, or if `backbone` is needed.

    OSError
        If timm's pretrained weights are needed and cannot be had.

    See Also
    --------
    save : Write such a file, with an example.

    Notes
    -----
    A pickle or copy of a detector holds no network given by name, also if the network
    came from the file: it is built again from the name and `weights` of ``features_``.
    """
    overrides = {"weights": weights, "backbone": backbone, "device": device}
    overrides = {k: v for k, v in overrides.items() if v is not None}
    if backbone is not None:
        overrides["weights"] = weights
    with _naming(path):
        manifest, members = _read_members(path)
        arrays = safetensors.numpy.load(members[_ARRAYS])
        record = _entry(manifest, "detector", dict)
        detector = _Reader(arrays, overrides).decode(record)
        _check_detector(detector)
        if arrays:
            raise ValueError(f"nothing refers to the arrays {sorted(arrays)}.")
        state = members.get(_BACKBONE)
        if state is None or "weights" in overrides:
            detector.features_._network = _build_network(detector.features_)
        else:
            state = safetensors.torch.load(state)
            detector.features_._network = _fill_network(detector.features_, state)
        _check_network(detector.features_, _entry(manifest, "backbone_sha256", str))
    return detector


@contextmanager
def _naming(path) -> Iterator[None]:
    """Turn whatever a damaged file leads to into an error that names the file."""
    try:
        yield
    except (
        TypeError,
        ValueError,
        RuntimeError,  # of zipfile and torch; also NotImplementedError, RecursionError
        OverflowError,
        EOFError,
        struct.error,
        zipfile.BadZipFile,
        SafetensorError,
    ) as error:
        raise ModelFileError(
            f"The model file {os.fspath(path)!r} cannot be used: {error}"
        ) from error


def _versions() -> dict[str, str]:
    """Return versions for those who wonder about a file; nothing depends on them."""
    packages = ("numpy", "safetensors", "scikit-learn", "timm", "torch")
    return {"skpatchcore": __version__} | {name: version(name) for name in packages}


class _Writer:
    """Turns objects into JSON, and puts the arrays it refers to aside.

    What JSON cannot say is an object of one key, which tells what it is.
    """

    def __init__(self):
        self.arrays = {}

    def encode(self, value, where: str, *, fitted: bool = False):
        """Return JSON for `value`, found at `where`; `fitted` goes for estimators."""
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, np.random.RandomState):
            return None
        if isinstance(value, str | Integral):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if isinstance(value, torch.device | os.PathLike):
            return str(value)
        if isinstance(value, list | tuple):
            items = [
                self.encode(item, f"{where}.{i}", fitted=fitted)
                for i, item in enumerate(value)
            ]
            return items if isinstance(value, list) else {"tuple": items}
        return self._encode_object(value, where, fitted)

    def _encode_object(self, value, where, fitted):
        if isinstance(value, nn.Module):
            return {"module": type(value).__name__}
        if isinstance(value, np.ndarray):
            numeric = value.dtype.kind in "biuf" and value.ndim > 0
            return self._keep(value, where) if numeric else value.tolist()
        if issparse(value) and value.format == "csr":
            names = ("data", "indices", "indptr")
            parts = {n: self._keep(getattr(value, n), f"{where}.{n}") for n in names}
            return {"csr": {**parts, "shape": list(value.shape)}}
        if type(value) in _CLASSES.values():
            return {"estimator": self._encode_estimator(value, where, fitted)}
        raise TypeError(
            f"{where} is {value!r}, of {type(value)}, which a model file cannot hold; "
            f"beside numbers, names and arrays it holds {', '.join(_CLASSES)}."
        )

    def _keep(self, array, where):
        # Matrix products of the transposed layout round differently.
        transposed = array.ndim == 2 and array.strides[0] < array.strides[1]
        array = array.T if transposed else array
        self.arrays[where] = np.ascontiguousarray(array)
        return {"transposed": where} if transposed else {"array": where}

    def _encode_estimator(self, estimator, where, fitted):
        cls = type(estimator)
        params = estimator.get_params(deep=False)
        # What was given to our estimators was cloned; a Pipeline fits its own steps.
        keep = fitted and cls not in _FITTED
        state = vars(estimator) if fitted else {}
        names = _FITTED.get(cls, state.keys() - params) if fitted else ()
        prefix = f"{where}." if where else ""
        return {
            "class": cls.__name__,
            "params": {
                name: self.encode(value, f"{prefix}{name}", fitted=keep)
                for name, value in params.items()
                if name not in _NOT_STORED
            },
            "fitted": {
                name: self.encode(state[name], f"{prefix}{name}", fitted=True)
                for name in sorted(names)
            },
        }


class _Reader:
    """Turns the JSON of `_Writer` back into objects, and takes `arrays` away for it.

    Parameters of estimators that `overrides` names get its values.
    """

    def __init__(self, arrays: dict[str, np.ndarray], overrides: dict):
        self.arrays = arrays
        self.overrides = overrides

    def decode(self, value):
        """Return the object that `value` describes."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        decoders = {
            "tuple": lambda items: tuple(map(self.decode, items)),
            "array": self._take,
            "transposed": lambda name: self._take(name).T,
            "csr": self._decode_csr,
            "module": self._decode_module,
            "estimator": self._decode_estimator,
        }
        kind, content = next(iter(value.items()), (None, None))
        if len(value) != 1 or kind not in decoders:
            raise ValueError(f"no such kind of object: {sorted(value)}.")
        return decoders[kind](content)

    def _take(self, name):
        if not isinstance(name, str) or name not in self.arrays:
            raise ValueError(f"there is no array {name!r}, or it is referred to twice.")
        # A copy is aligned, and writable as fitted arrays are.
        return self.arrays.pop(name).copy()

    def _decode_csr(self, content):
        parts = [
            self.decode(_entry(content, n, dict)) for n in ("data", "indices", "indptr")
        ]
        matrix = csr_matrix(tuple(parts), shape=_entry(content, "shape", list))
        # SciPy's kernels trust indices; out of range they would read foreign memory.
        matrix.check_format(full_check=True)
        return matrix

    def _decode_module(self, name):
        if "backbone" not in self.overrides:
            raise ValueError(
                f"its network was given as a module, {name}; pass one with the same "
                "weights to load(..., backbone=module)."
            )
        return self.overrides["backbone"]

    def _decode_estimator(self, content):
        name = _entry(content, "class", str)
        if name not in _CLASSES:
            raise ValueError(f"class {name!r} is none of {', '.join(_CLASSES)}.")
        cls = _CLASSES[name]
        params = _entry(content, "params", dict)
        known = set(cls._get_param_names())
        if not params.keys() <= known:
            raise ValueError(
                f"{name} has no parameters {sorted(params.keys() - known)}."
            )
        params = {name: self.decode(value) for name, value in params.items()}
        params |= {name: self.overrides[name] for name in known & self.overrides.keys()}
        estimator = cls(**params)
        estimator._validate_params()
        self._restore(estimator, _entry(content, "fitted", dict))
        return estimator

    def _restore(self, estimator, fitted: dict) -> None:
        cls = type(estimator)
        odd = fitted.keys() ^ _FITTED.get(cls, fitted.keys())
        if fitted and odd:
            raise ValueError(f"{cls.__name__} lacks, or does not have, {sorted(odd)}.")
        for name, value in fitted.items():
            # Nothing that a class defines may be replaced by data.
            if hasattr(cls, name) or name in cls._get_param_names():
                raise ValueError(f"{name!r} is no fitted attribute of {cls.__name__}.")
            setattr(estimator, name, self.decode(value))


def _entry(record, name: str, kind: type):
    """Return an entry of a JSON object that has to be there, and of a type."""
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name!r} must be of {kind.__name__}, got {value!r:.80}.")
    return value


def _check_detector(detector) -> None:
    """Raise a ValueError unless all parts of a detector from a file fit together."""
    if not isinstance(detector, PatchCoreDetector):
        raise ValueError("it holds no PatchCoreDetector.")
    for where, kind in _TYPES.items():
        if not isinstance(_at(detector, where), kind):
            raise ValueError(f"{where} is missing, or is not of {kind.__name__}.")
    sizes = _check_arrays(detector)
    _check_values(detector)
    _check_features(detector.features_, sizes["d"])
    bank = detector.memory_bank_
    if bank.n_features_in_ != sizes["d"]:
        raise ValueError(
            f"bank_ has {sizes['d']} columns, n_features_in_ is {bank.n_features_in_}."
        )
    bank._check_bank_size(sizes["m"])


def _at(detector, where: str):
    """Return what is at a dotted path, or None."""
    names = where.split(".")
    return functools.reduce(lambda o, name: getattr(o, name, None), names, detector)


def _check_arrays(detector) -> dict[str, int]:
    """Check dtypes and shapes; return the sizes that the letters stand for."""
    sizes = {"2": 2}
    for where, (dtype, letters) in _ARRAY_SHAPES.items():
        array = _at(detector, where)
        expected = f"{where} must be {dtype} of shape ({', '.join(letters)})"
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            raise ValueError(f"{expected}, got {getattr(array, 'dtype', array)!r:.80}.")
        for letter, size in zip(letters, array.shape, strict=False):
            sizes.setdefault(letter, size)
        if array.shape != tuple(sizes.get(letter, 0) for letter in letters):
            raise ValueError(f"{expected}, got {array.shape} where {sizes}.")
    return sizes


def _check_values(detector) -> None:
    bank, shapes = detector.memory_bank_, detector._training_shapes
    for where in ("memory_bank_.bank_", "memory_bank_.training_scores_"):
        if not np.isfinite(_at(detector, where)).all():
            raise ValueError(f"{where} has values that are not finite.")
    places = bank.bank_indices_
    if shapes.min() < 1 or places.min() < 0 or places.max() >= shapes.prod(1).sum():
        raise ValueError("bank_indices_ point to no patch of the training pictures.")


def _check_features(features, n_features: int) -> None:
    weights = features.layer_weights_
    if len(weights) != len(features.layers) or not all(w > 0 for w in weights):
        raise ValueError(f"layer_weights_ must be positive, for each layer: {weights}.")
    if features.n_patch_features_ != n_features:
        raise ValueError(
            f"bank_ has {n_features} columns, but n_patch_features_ is "
            f"{features.n_patch_features_}."
        )
    if features.projection_ is None:
        return
    try:
        patch = np.zeros((1, features.projection_.n_features_in_), np.float32)
        shape = features.projection_.transform(patch).shape
    except Exception as error:
        raise ValueError(f"its projection does not work: {error}") from error
    if shape != (1, n_features):
        raise ValueError(f"its projection gives {shape}, not {n_features} features.")


def _weights(features) -> dict[str, torch.Tensor]:
    """Return the weights that shape the features, as far as can be told."""
    module = features._fitted_network().module
    state = module.state_dict()
    if isinstance(features.backbone, str):
        used = _modules_used(module, features.layers)
        state = {k: v for k, v in state.items() if k.rpartition(".")[0] in used}
    # The count of training batches shapes nothing, and not all weights files have it.
    return {
        key: value.detach().cpu().contiguous()
        for key, value in sorted(state.items())
        if not key.endswith("num_batches_tracked")
    }


def _backbone_bytes(features) -> bytes:
    if not isinstance(features.backbone, str):
        raise ValueError(
            "include_backbone=True needs a backbone given by its timm name; this one "
            f"is a module, {type(features.backbone).__name__}. Save the detector "
            "without, and pass the module to load(..., backbone=module)."
        )
    # Copies: safetensors refuses tensors that share memory.
    weights = {key: value.clone() for key, value in _weights(features).items()}
    return safetensors.torch.save(weights)


def _modules_used(module: nn.Module, layers) -> set[str]:
    """Return the names of the modules up to the last one that is called.

    All that are defined before it count, since some attentions use the weights of a
    module that they never call.
    """
    names = [name for name, _ in module.named_modules()]
    last = max(map(names.index, _modules_run(module, layers)))
    inside = tuple(f"{layer}." for layer in layers)
    return {n for i, n in enumerate(names) if i <= last or n.startswith(inside)}


def _fingerprint(features) -> str:
    """Return the SHA-256 of the weights and of how input is normalised."""
    digest = hashlib.sha256()
    tensors = _weights(features)
    for name in ("mean", "std"):
        tensors[f"input {name}"] = getattr(features._network, name).cpu()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _build_network(features) -> Backbone:
    try:
        return features._load(features._seed)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} The detector was fitted with these weights; if they have moved, "
            "pass their place to load(..., weights=...)."
        ) from None


def _fill_network(features, state: dict[str, torch.Tensor]) -> Backbone:
    """Build the network without looking for weights, and give it those of the file."""
    module = _create(features.backbone, pretrained=False, seed=0)
    check_layers(module, features.layers)
    unknown = module.load_state_dict(state, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{features.backbone!r} has no parameters {unknown[:5]}.")
    device = resolve_device(features.device)
    module = module.eval().requires_grad_(False).to(device)
    return Backbone(module, features.layers, device, features.precision)


def _check_network(features, expected: str) -> None:
    found = _fingerprint(features)
    if found != expected:
        raise ValueError(
            f"the network {features.backbone!r:.40} has other weights than in the fit: "
            f"SHA-256 {found[:12]}... instead of {expected[:12]}... Pass the file of "
            "the original ones to load(..., weights=...), or save the detector with "
            "include_backbone=True where it was fitted. Random and pretrained weights "
            "may change with the versions of torch and timm."
        )


def _describe(data: bytes) -> dict:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_atomically(path: Path, members: dict[str, bytes]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            _write_zip(file, members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        # The new name, too, has to reach the disk; other systems cannot open folders.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_zip(file, members: dict[str, bytes]) -> None:
    """Write an uncompressed zip with nothing in it that depends on time or system."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data)


def _read_members(path) -> tuple[dict, dict[str, bytes]]:
    """Return the manifest, and the other members after comparison with it."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        infos = _check_listing(archive, os.fstat(file.fileno()).st_size)
        if _MANIFEST not in infos:
            raise ValueError(f"it has no {_MANIFEST}.")
        info = infos.pop(_MANIFEST)
        if info.file_size > _MAX_MANIFEST_BYTES:
            raise ValueError(f"its {_MANIFEST} is too large, {info.file_size} bytes.")
        manifest = _parse_manifest(_read_member(archive, info))
        described = _entry(manifest, "members", dict)
        if not {_ARRAYS} <= infos.keys() <= {_ARRAYS, _BACKBONE}:
            raise ValueError(f"missing or extra members: it holds {sorted(infos)}.")
        if infos.keys() != described.keys():
            raise ValueError(f"it holds {sorted(infos)} but lists {sorted(described)}.")
        members = {name: _read_member(archive, info) for name, info in infos.items()}
    for name, data in members.items():
        if _describe(data) != described[name]:
            raise ValueError(f"size or SHA-256 of {name} is not as listed.")
    return manifest, members


def _check_listing(archive, n_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name, after checks that need no reading."""
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) != len(archive.infolist()):
        raise ValueError("it has several members of the same name.")
    for name, info in infos.items():
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
        raise ValueError(f"{info.filename} has not the size it claims.")
    return data


def _parse_manifest(data: bytes) -> dict:
    manifest = json.loads(data.decode(), parse_float=_finite, parse_constant=_finite)
    if _entry(manifest, "format", str) != _FORMAT:
        raise ValueError(f"its format is {manifest['format']!r:.40}, not {_FORMAT!r}.")
    written = _entry(manifest, "format_version", int)
    if written != _FORMAT_VERSION:
        raise ValueError(
            f"it has format version {written}, and skpatchcore {__version__} reads "
            f"version {_FORMAT_VERSION}; use the release that wrote it, or a newer one."
        )
    return manifest


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number.")
    return value
