"""A fitted detector as one safe file: JSON and safetensors in a zip, no pickle."""

import hashlib
import warnings
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.numpy
import safetensors.torch
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skpatchcore._backbones import (
    Backbone,
    check_layers,
    create_network,
    modules_run,
    name_layers,
)
from skpatchcore._bank import PatchMemoryBank
from skpatchcore._detectors import PatchCoreDetector, PatchCoreEnsemble, unwrap
from skpatchcore._features import describe
from skpatchcore._utils import resolve_device
from skpatchcore.calibration import ConformalDetector, TunedThresholdDetector
from skpatchcore.persistence._archive import (
    ARRAYS,
    BACKBONE,
    entry,
    naming,
    read_members,
    write_members,
)
from skpatchcore.persistence._encoding import Reader, Writer
from skpatchcore.persistence._schema import DETECTORS
from skpatchcore.persistence._validation import check_detector, image_detectors
from skpatchcore.persistence._values import Text, in_short

# What `save` writes and `load` returns.
Detector: TypeAlias = (
    PatchCoreDetector
    | PatchCoreEnsemble
    | PatchMemoryBank
    | ConformalDetector
    | TunedThresholdDetector
)
Weights: TypeAlias = str | PathLike[str]

_SHA256 = Text("a SHA-256", r"[0-9a-f]{64}", 64)
# Numbers in the windows of a layer's map: 2 GB.
_LARGEST_UNFOLDED = 2**29


def save(
    detector: Any, path: str | PathLike[str], *, include_backbone: bool = False
) -> None:
    """Write a fitted detector to one file that is safe to load.

    Use it to deploy a model: the file holds numbers and names, and nothing in it is
    ever executed, unlike a pickle. The same model gives the same bytes. The file is
    written under a temporary name in the same folder and then renamed, so that it is
    complete or not there.

    Parameters
    ----------
    detector : PatchCoreDetector, PatchCoreEnsemble, PatchMemoryBank, \
            ConformalDetector or TunedThresholdDetector
        Fitted; the last two around one of the others, or each other. Samplers are a
        :class:`~skpatchcore.CoresetSampler`, and a projection is None, an int, or one
        of scikit-learn's ``GaussianRandomProjection``, ``SparseRandomProjection``,
        ``PCA``, ``IncrementalPCA``, ``TruncatedSVD``, ``StandardScaler``,
        ``Normalizer``, or a ``Pipeline`` of these. A splitter given as `cv` is a
        ``KFold``, ``StratifiedKFold``, ``LeaveOneOut`` or
        :class:`~skpatchcore.model_selection.OneClassKFold`.

    path : str or path-like
        File to write, ``.skpc`` by convention. An existing file is replaced and keeps
        its permissions; symbolic links are followed; devices and pipes are written to.

    include_backbone : bool, default=False
        Store the network's weights too, up to the last layer that is read, so that
        neither timm's cache nor a weights file is needed to load the model: 100 MB for
        the default network, which is otherwise built from its name and `weights`.
        Detectors that read the same network up to the same layer share its weights.

    Raises
    ------
    TypeError
        If `detector` is, or holds, an object of another class, or a function.

    ValueError
        If `detector` is not fitted, or its parameters were changed since to values that
        contradict the fit; if `include_backbone` is set, but the network was given as a
        module, or there is none.

    FileNotFoundError, PermissionError, IsADirectoryError
        If the folder of `path` does not exist, `path` or its folder is read-only, or
        `path` is a folder.

    Warns
    -----
    UserWarning
        If a part that scores has a `device`, which the file does not hold.

    See Also
    --------
    load : Read such a file.

    Notes
    -----
    A file is an uncompressed zip of ``model.json``, ``arrays.safetensors`` and, with
    `include_backbone`, ``backbone.safetensors``. The JSON has the version of the
    format, those of the packages, all parameters, fitted numbers, the SHA-256 of the
    other members and that of the weights of the network. Parameters are those of the
    fit, also if others were set later.

    Left out are ``min_distances_`` and ``nearest_picks_`` of the sampler, which have an
    entry for each training patch; ``RandomState`` instances as `random_state`, which
    become None: what they drew is kept; `verbose`; and all that belongs to this
    machine:

    - caches: `memory` of every part is None after `load`;
    - `device`: after `load` it is None, which is the GPU if there is one. A warning
      says so if a device was set on a part that scores;
    - the path of a local weights file. The file holds its name, for messages, and
      `load` asks for the path.

    A process that is killed while it writes leaves the old file unchanged, and in its
    folder a hidden file that ends in ``.tmp`` and may be deleted.

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
    detector, steps = unwrap(detector)
    if steps:
        raise TypeError(
            "A model file holds a detector, not the transformers in front of it; got "
            f"{steps[0]!r:.80}. Save the last step of the pipeline, and transform new "
            "images before you pass them to it."
        )
    if type(detector) not in DETECTORS:
        names = ", ".join(cls.__name__ for cls in DETECTORS)
        raise TypeError(f"Expected one of {names}; got {type(detector).__name__}.")
    check_is_fitted(detector)
    writer = Writer()
    record = writer.encode(detector, "", fitted=True)
    _check_loads(record, writer.arrays)
    features = [part.features_ for part in image_detectors(detector)]
    fingerprints = _fingerprints(features)
    members = {ARRAYS: safetensors.numpy.save(writer.arrays)}
    if include_backbone:
        members[BACKBONE] = _backbone_bytes(features, fingerprints)
    content = {"backbone_sha256": fingerprints, "detector": record}
    write_members(Path(path), content, members)
    _tell_devices(writer.devices)


def load(
    path: str | PathLike[str],
    *,
    weights: Weights | dict[str, Weights] | None = None,
    backbone: nn.Module | dict[str, nn.Module] | None = None,
    device: str | torch.device | None = None,
) -> Detector:
    """Read a detector that `save` wrote.

    Scores and maps are those of the detector that was saved, bit for bit on the same
    machine and package versions. Nothing in the file is executed, and no file that it
    names is opened. A network that is not in the file is built by its name in timm's
    registry, with timm's pretrained weights, or with those of the file that you pass as
    `weights`. They must be those of the fit.

    Parameters
    ----------
    path : str or path-like
        File to read.

    weights : str, path-like, dict or None, default=None
        Local weights file of the network. Needed if the detector was fitted with a
        local file and saved without its network. For an ensemble, a dict of such files
        by name of the member.

    backbone : torch.nn.Module, dict or None, default=None
        The network, for a detector that was fitted with a module. For an ensemble, a
        dict of networks by name of the member.

    device : str, torch.device or None, default=None
        Where to compute from now on; None is the GPU if there is one, else the CPU.

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
        A ValueError, if the file is damaged, inconsistent or of a newer format, if the
        network has other weights than in the fit, or if `backbone` is needed.

    TypeError
        If `backbone` is given by member and `weights` is not.

    OSError
        If timm's pretrained weights are needed and cannot be loaded.

    See Also
    --------
    save : Write such a file, with an example.

    Notes
    -----
    A pickle or copy of a detector holds no network given by name, also if the network
    came from the file: it is built again from the name and `weights` of ``features_``.
    """
    given = {"weights": weights, "backbone": backbone, "device": device}
    overrides: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if isinstance(backbone, dict):
        if not isinstance(weights, dict | None):
            raise TypeError(
                f"backbone is given by name of the member, but weights={weights!r} is "
                "not; pass a dict of files."
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
            raise ValueError(f"nothing refers to the arrays {sorted(arrays)}.")
        features = [part.features_ for part in image_detectors(detector)]
        fingerprints = _check_fingerprints(manifest, len(features))
        state = members.get(BACKBONE)
        if state is None or "weights" in overrides:
            for part in features:
                part._network = part._load(part._seed)
        else:
            _fill_networks(features, fingerprints, safetensors.torch.load(state))
        _check_networks(features, fingerprints)
        _check_widths(features)
    return detector


def _tell_devices(devices: dict[str, str]) -> None:
    """Warn of devices that were left out: others round scores differently."""
    if not devices:
        return
    found = ", ".join(sorted({repr(device) for device in devices.values()}))
    warnings.warn(
        f"The model file does not hold the device, {found} in {len(devices)} places "
        f"({', '.join(sorted(devices))}). A detector that is loaded from it computes "
        "on the GPU if there is one; pass load(..., device=...) to choose.",
        UserWarning,
        stacklevel=3,
    )


def _check_loads(record: dict, arrays: dict) -> None:
    """Read what is about to be written, so that no file is written that cannot be."""
    # In place of networks that were given as modules, and that `load` is given.
    reader = Reader(dict(arrays), {"backbone": nn.Identity()})
    try:
        check_detector(reader.decode(record))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Could not save the detector, since it could not be loaded: {error}"
        ) from error


def _check_fingerprints(manifest: dict, n_networks: int) -> list[str]:
    """Return the SHA-256 that the file lists for each network."""
    found = entry(manifest, "backbone_sha256", list)
    if len(found) != n_networks or not all(map(_SHA256.accepts, found)):
        raise ValueError(
            f"backbone_sha256 must list {n_networks} fingerprints, one for each "
            f"network; got {in_short(found)}."
        )
    return found


def _weights(features) -> dict[str, torch.Tensor]:
    """Return the weights that the features depend on, or may depend on."""
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


def _backbone_bytes(features: list, fingerprints: list[str]) -> bytes:
    networks = dict(zip(fingerprints, features, strict=True))
    if not networks:
        raise ValueError(
            "include_backbone=True needs a network; a PatchMemoryBank has none."
        )
    weights: dict[str, torch.Tensor] = {}
    for fingerprint, part in networks.items():
        if not isinstance(part.backbone, str):
            raise ValueError(
                "include_backbone=True needs a backbone given by its timm name; this "
                f"one is a module, {type(part.backbone).__name__}. Save the detector "
                "without, and pass the module to load(..., backbone=module)."
            )
        # Copies: safetensors refuses tensors that share memory.
        prefix = _prefix(fingerprint, fingerprints)
        weights |= {f"{prefix}{k}": v.clone() for k, v in _weights(part).items()}
    return safetensors.torch.save(weights)


def _prefix(fingerprint: str, fingerprints: list[str]) -> str:
    """Return what the names of a network's weights begin with in the file."""
    # One network alone has the names that timm gives them.
    return f"{fingerprint}/" if len(set(fingerprints)) > 1 else ""


def _modules_used(module: nn.Module, layers) -> set[str]:
    """Return the names of the modules up to the last one that is called.

    All that are defined before it count, since some attentions use the weights of a
    module that they never call.
    """
    names = [name for name, _ in module.named_modules()]
    layers = name_layers(module, layers)
    last = max(map(names.index, modules_run(module, layers)))
    inside = tuple(f"{layer}." for layer in layers)
    return {n for i, n in enumerate(names) if i <= last or n.startswith(inside)}


def _fingerprints(features: list) -> list[str]:
    """Return the fingerprint of the network of each, computed once for each network."""
    known = {}
    for part in features:
        network = part._fitted_network()
        key = (network.module, network.layers)
        if key not in known:
            known[key] = _fingerprint(part)
    return [known[part._network.module, part._network.layers] for part in features]


def _fingerprint(features) -> str:
    """Return the SHA-256 of the weights and of how input is normalised."""
    digest = hashlib.sha256()
    tensors = _weights(features)
    for name in ("mean", "std"):
        tensors[f"input {name}"] = getattr(features._network, name).cpu()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    if not isinstance(features.backbone, str):
        # Buffers that are not in a state dict, settings, hooks, ...
        digest.update(features._network.state_key.encode())
    return digest.hexdigest()


def _fill_networks(features: list, fingerprints: list, state: dict) -> None:
    """Build networks without looking for weights, and give them those of the file."""
    modules: dict[tuple, nn.Module] = {}
    for part, fingerprint in zip(features, fingerprints, strict=True):
        key = (part.backbone, fingerprint)
        if key not in modules:
            prefix = _prefix(fingerprint, fingerprints)
            own = {k: v for k, v in state.items() if k.startswith(prefix)}
            own = {k.removeprefix(prefix): v for k, v in own.items()}
            modules[key] = _filled_module(part.backbone, own)
        layers = name_layers(modules[key], part.layers)
        check_layers(modules[key], layers)
        device = resolve_device(part.device)
        module = modules[key].to(device)
        part._network = Backbone(module, layers, device, part.precision)


def _filled_module(backbone: str, state: dict[str, torch.Tensor]) -> nn.Module:
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"weights {name!r:.80} have values that are not finite.")
    module = create_network(backbone, pretrained=False, seed=0)
    unknown = module.load_state_dict(state, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{backbone!r} has no parameters {unknown[:5]}.")
    return module.eval().requires_grad_(False)


def _check_networks(features: list, expected: list) -> None:
    found = _fingerprints(features)
    for part, of_fit, of_now in zip(features, expected, found, strict=True):
        if of_fit == of_now:
            continue
        raise ValueError(
            f"the network {part.backbone!r:.40} has other weights than in the fit, or "
            "is a module with other settings or hooks: "
            f"SHA-256 {of_now[:12]}... instead of {of_fit[:12]}... Pass the file of "
            "the original ones to load(..., weights=...), or save the detector with "
            "include_backbone=True where it was fitted. Random and pretrained weights "
            "may change with the versions of torch and timm."
        )


def _check_windows(features, maps: list[torch.Tensor]) -> None:
    """Check that neighbourhoods fit into memory where they are unfolded."""
    if isinstance(features.descriptor, str):
        return
    largest = max(layer[0].numel() for layer in maps) * features.patch_size**2
    if largest > _LARGEST_UNFOLDED:
        raise ValueError(
            f"patch_size={features.patch_size} makes windows of {largest} numbers for "
            f"each image; at most {_LARGEST_UNFOLDED} are read from a model file."
        )


def _check_widths(features: list) -> None:
    """Pass a blank image through each network, to see how long its features are."""
    seen = {}
    for part in features:
        network = part._network
        if not isinstance(part.backbone, str):
            continue
        if (network.module, network.layers) not in seen:
            config = getattr(network.module, "pretrained_cfg", None) or {}
            size = config.get("input_size", (3, 224, 224))
            blank = torch.zeros((1, *size), dtype=torch.float32, device="cpu")
            seen[network.module, network.layers] = network(blank)
        _check_windows(part, seen[network.module, network.layers])
        grid = describe(
            seen[network.module, network.layers],
            patch_size=part.patch_size,
            patch_stride=part.patch_stride,
            descriptor=part.descriptor,
            layer_weights=part.layer_weights_,
        )
        expected = part.n_patch_features_
        if part.projection_ is not None:
            expected = part.projection_.n_features_in_
        if grid.shape[1] != expected:
            raise ValueError(
                f"the network gives {grid.shape[1]} features a patch, not {expected}."
            )
