"""Save and load fitted detectors."""

import os
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.numpy
import safetensors.torch
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skpatchcore._bank import PatchMemoryBank
from skpatchcore._detectors import (
    PatchCoreDetector,
    PatchCoreEnsemble,
    advise_detector,
    check_refitted,
    unwrap,
)
from skpatchcore._utils import warn_user
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.persistence._archive import (
    ARRAYS,
    BACKBONE,
    entry,
    naming,
    read_members,
    write_members,
)
from skpatchcore.persistence._decoding import Reader
from skpatchcore.persistence._encoding import Writer
from skpatchcore.persistence._networks import (
    backbone_bytes,
    check_fingerprints,
    check_networks,
    check_widths,
    fill_networks,
    fingerprints_of,
)
from skpatchcore.persistence._schema import DETECTORS
from skpatchcore.persistence._validation import check_detector, image_detectors

# What `save` writes and `load` returns.
Detector: TypeAlias = (
    PatchCoreDetector
    | PatchCoreEnsemble
    | PatchMemoryBank
    | ConformalDetector
    | TunedThresholdDetector
)
Weights: TypeAlias = str | PathLike[str]


def save(
    detector: Any, path: str | PathLike[str], *, include_backbone: bool = False
) -> None:
    """Write a fitted detector to one file that is safe to load.

    Use it to deploy a model: the file holds numbers and names, and nothing in it is
    ever executed, unlike a pickle. It holds the model, but not what belongs to this
    machine: caches (`memory`), devices, engines and paths of weights files are left out
    (see Notes). The same model gives the same bytes. The file is written under a
    temporary name in the same folder and then renamed, so it is never incomplete.

    Parameters
    ----------
    detector : PatchCoreDetector, PatchCoreEnsemble, PatchMemoryBank, \
            ConformalDetector or TunedThresholdDetector
        Fitted detector; the last two may wrap any of the others, or each other. A
        fitted search or ``Pipeline`` is unwrapped if it contains nothing but such a
        detector. The sampler must be a :class:`~skpatchcore.CoresetSampler`. The
        features must be a :class:`~skpatchcore.PatchFeatureTransformer`, or a
        ``FrozenEstimator`` around one. A projection must be None, an int, or
        scikit-learn's ``GaussianRandomProjection``, ``SparseRandomProjection``,
        ``PCA``, ``IncrementalPCA``, ``TruncatedSVD``, ``StandardScaler`` or
        ``Normalizer``, or a ``Pipeline`` of these. `cv` may be one of scikit-learn's
        ``KFold``, ``StratifiedKFold``, ``GroupKFold``, ``StratifiedGroupKFold``,
        ``LeaveOneOut`` and ``LeaveOneGroupOut``, or
        :class:`~skpatchcore.model_selection.OneClassKFold`.

    path : str or path-like
        File to write, by convention with the suffix ``.skpc``. An existing file is
        replaced, and its permissions are kept. Symbolic links are followed. Devices and
        pipes can be written to.

    include_backbone : bool, default=False
        Also store the weights of the network, up to the last layer that is read. Then
        neither timm's cache nor a weights file is needed to load the model. This takes
        100 MB for the default network, which is otherwise built from its name and
        `weights`. Detectors that read the same network up to the same layer share its
        weights.

    Raises
    ------
    TypeError
        If `detector` is an object of another class, or contains one, or a function.

    ValueError
        If `detector` is not fitted, or its parameters were changed after the fit to
        values that contradict it; if `include_backbone` is set, but there is no network
        or it was given as a module.

    FileNotFoundError, PermissionError, IsADirectoryError
        If the folder of `path` does not exist, if `path` or its folder is read-only, or
        if `path` is a folder.

    Warns
    -----
    UserWarning
        If a device or engine was set on a part that scores; the file does not hold it.

    See Also
    --------
    load : Read such a file.

    Notes
    -----
    A file is an uncompressed zip of ``model.json``, ``arrays.safetensors`` and, with
    `include_backbone`, ``backbone.safetensors``. The JSON contains the version of the
    format, the versions of packages, all parameters, fitted numbers, and the SHA-256 of
    the other members and of the weights of the network.

    A file does not contain:

    - ``min_distances_`` and ``nearest_picks_`` of the sampler, which have an entry for
      each training patch;
    - ``RandomState`` instances. Such a `random_state` is None after `load`; numbers
      that were drawn are kept;
    - caches. `memory` of every part is None after `load`; set it again to use a cache;
    - devices and engines. After `load`, `device` is None, which is the GPU if there is
      one, and `engine` is "torch";
    - the path of a local weights file. The file holds its name, for messages, and
      `load` asks for the path.

    A process that is killed while it writes does not change the old file. It may leave
    a hidden file that ends in ``.tmp`` in the same folder, which can be deleted.

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
    check_refitted(detector)
    if advice := advise_detector(detector):
        raise TypeError(f"A model file holds no pipeline with features.{advice}")
    detector, steps = unwrap(detector)
    if steps:
        raise TypeError(
            "A model file holds a detector, not the transformers in front of it; got "
            f"{steps[0]!r:.80}. Save the last step of the pipeline, and transform new "
            "data before you pass them to it."
        )
    if type(detector) not in DETECTORS:
        names = ", ".join(cls.__name__ for cls in DETECTORS)
        raise TypeError(f"Expected one of {names}; got {type(detector).__name__}.")
    check_is_fitted(detector)
    writer = Writer()
    record = writer.encode(detector, "", fitted=True)
    _check_loads(record, writer.arrays)
    features = [part.features_ for part in image_detectors(detector)]
    fingerprints = fingerprints_of(features)
    members = {ARRAYS: safetensors.numpy.save(writer.arrays)}
    if include_backbone:
        members[BACKBONE] = backbone_bytes(features, fingerprints)
    content = {"backbone_sha256": fingerprints, "detector": record}
    write_members(Path(path), content, members)
    _tell_machine(writer.machine)


def load(
    path: str | PathLike[str],
    *,
    weights: Weights | dict[str, Weights] | None = None,
    backbone: nn.Module | dict[str, nn.Module] | None = None,
    device: str | torch.device | None = None,
    engine: str | None = None,
) -> Detector:
    """Read a detector that `save` wrote.

    On the same machine and with the same versions of packages, scores and maps are bit
    for bit those of the saved detector. Nothing in the file is executed, and no file
    that it names is opened. A network that is not in the file is built from its name in
    timm's registry, with timm's pretrained weights or those that you pass as `weights`.
    They must be the weights of the fit.

    Parameters
    ----------
    path : str or path-like
        File to read.

    weights : str, path-like, dict or None, default=None
        Local weights file of the network. Needed if the detector was fitted with a
        local file and saved without its network. For an ensemble, a dict with the file
        of each member, by its name.

    backbone : torch.nn.Module, dict or None, default=None
        The network, for a detector that was fitted with a module. For an ensemble, a
        dict with the network of each member, by its name.

    device : str, torch.device or None, default=None
        Where to compute. None is the GPU if there is one, otherwise the CPU.

    engine : {"torch", "auto", "openvino", "onnxruntime"} or None, default=None
        What runs the network, as for `PatchFeatureTransformer`. None is "torch".

    Returns
    -------
    detector : PatchCoreDetector, PatchCoreEnsemble, PatchMemoryBank, \
            ConformalDetector or TunedThresholdDetector
        Fitted detector, as it was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no such weights file, or `weights` is needed.

    ModelFileError
        This is a ValueError. If the file is damaged, inconsistent or of another format
        version, if the weights of the network are not those of the fit, or if
        `backbone` is needed.

    TypeError
        If `backbone` is a dict and `weights` is not.

    OSError
        If timm's pretrained weights are needed and cannot be loaded.

    See Also
    --------
    save : Write such a file, with an example.

    Notes
    -----
    A pickle or copy of a detector does not contain a network given by name, even if the
    network came from the file. It is built again from the name and `weights` of
    ``features_``.
    """
    weights = _with_absolute_paths(weights)
    given = {
        "weights": weights,
        "backbone": backbone,
        "device": device,
        "engine": engine,
    }
    overrides: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if isinstance(backbone, dict):
        if not isinstance(weights, dict | None):
            raise TypeError(
                f"backbone is a dict of networks, but weights={weights!r} is not a "
                "dict. Pass a dict of files by name of the member."
            )
        overrides["weights"] = {**dict.fromkeys(backbone), **(weights or {})}
    elif backbone is not None:
        overrides["weights"] = weights
    with naming(path):
        manifest, members = read_members(path)
        arrays = safetensors.numpy.load(members[ARRAYS])
        record = entry(manifest, "detector", dict)
        detector = Reader(arrays, overrides).decode(record)
        check_detector(detector)
        if arrays:
            raise ValueError(f"the arrays {sorted(arrays)} are not used.")
        features = [part.features_ for part in image_detectors(detector)]
        fingerprints = check_fingerprints(manifest, len(features))
        state = members.get(BACKBONE)
        if state is None or "weights" in overrides:
            for part in features:
                part._network = part._load(part._seed)
        else:
            fill_networks(features, fingerprints, safetensors.torch.load(state))
        check_networks(features, fingerprints)
        check_widths(features)
    return detector


def _with_absolute_paths(
    weights: Weights | dict[str, Weights] | None,
) -> Weights | dict[str, Weights] | None:
    """Return paths that are valid in any folder, for pickles of what is loaded."""
    if isinstance(weights, dict):
        return {name: _absolute(path) for name, path in weights.items()}
    return weights if weights is None else _absolute(weights)


def _absolute(path: Weights) -> Weights:
    return path if path == "random" or os.path.isabs(path) else os.path.abspath(path)


def _tell_machine(machine: dict[str, str]) -> None:
    """Warn about devices and engines that were left out: others round differently."""
    if not machine:
        return
    found = ", ".join(f"{path}={value!r}" for path, value in sorted(machine.items()))
    warn_user(
        f"The model file does not hold {found}. After load, the detector computes on "
        "the GPU if there is one, and runs the network in torch; choose with "
        "load(..., device=..., engine=...).",
    )


def _check_loads(record: dict, arrays: dict) -> None:
    """Check that `load` could read a detector, before it is written."""
    # The identity replaces networks given as modules, which users pass to `load`.
    reader = Reader(dict(arrays), {"backbone": nn.Identity()})
    try:
        check_detector(reader.decode(record))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Could not save the detector, because it could not be loaded: {error}"
        ) from error
