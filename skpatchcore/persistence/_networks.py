"""Networks in model files: their weights, fingerprints and checks."""

import hashlib

import safetensors.torch
import torch
from torch import nn

from skpatchcore._backbones import (
    Backbone,
    blank_image,
    create_network,
    resolve_layers,
    weights_used,
)
from skpatchcore._features import PatchFeatureTransformer, describe
from skpatchcore._utils import fitted_params, resolve_device
from skpatchcore.persistence._archive import entry
from skpatchcore.persistence._values import Text, in_short

_SHA256 = Text("a SHA-256", r"[0-9a-f]{64}", 64)
# Most numbers in the windows of a layer's map: 2 GB.
_LARGEST_UNFOLDED = 2**29


def check_fingerprints(manifest: dict, n_networks: int) -> list[str]:
    """Return the SHA-256 that the file lists for each network."""
    found = entry(manifest, "backbone_sha256", list)
    if len(found) != n_networks or not all(map(_SHA256.accepts, found)):
        raise ValueError(
            f"backbone_sha256 must contain {n_networks} fingerprints, one per network; "
            f"got {in_short(found)}."
        )
    return found


def _weights(features: PatchFeatureTransformer) -> dict[str, torch.Tensor]:
    """Return the weights that the features depend on; all weights of a module."""
    network = features._fitted_network()
    if isinstance(fitted_params(features)["backbone"], str):
        state = weights_used(network.module, network.layers)
    else:
        state = network.module.state_dict()
    # The number of training batches has no effect, and some weights files lack it.
    return {
        key: value.detach().cpu().contiguous()
        for key, value in sorted(state.items())
        if not key.endswith("num_batches_tracked")
    }


def backbone_bytes(features: list, fingerprints: list[str]) -> bytes:
    """Return the member that holds the weights of all networks, each once."""
    networks = dict(zip(fingerprints, features, strict=True))
    if not networks:
        raise ValueError(
            "include_backbone=True needs a network, but a PatchMemoryBank has none."
        )
    weights: dict[str, torch.Tensor] = {}
    for fingerprint, part in networks.items():
        backbone = fitted_params(part)["backbone"]
        if not isinstance(backbone, str):
            raise ValueError(
                "include_backbone=True needs a backbone given by its timm name, but "
                f"this one is a module, {type(backbone).__name__}. Save the "
                "detector without it, and pass the module to load(..., "
                "backbone=module)."
            )
        # Copies, because safetensors refuses tensors that share memory.
        prefix = _prefix(fingerprint, fingerprints)
        weights |= {f"{prefix}{k}": v.clone() for k, v in _weights(part).items()}
    return safetensors.torch.save(weights)


def _prefix(fingerprint: str, fingerprints: list[str]) -> str:
    """Return the prefix of the names of a network's weights in the file."""
    # A single network has no prefix, so the names are timm's.
    return f"{fingerprint}/" if len(set(fingerprints)) > 1 else ""


def fingerprints_of(features: list) -> list[str]:
    """Return the fingerprint of each network; equal networks are hashed once."""
    known = {}
    for part in features:
        network = part._fitted_network()
        key = (network.module, network.layers)
        if key not in known:
            known[key] = _fingerprint(part)
    return [known[part._network.module, part._network.layers] for part in features]


def _fingerprint(features: PatchFeatureTransformer) -> str:
    """Return the SHA-256 of the weights and of the normalisation of images."""
    digest = hashlib.sha256()
    tensors = _weights(features)
    for name in ("mean", "std"):
        tensors[f"input {name}"] = getattr(features._network, name).cpu()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    if not isinstance(fitted_params(features)["backbone"], str):
        # Buffers that are not in a state dict, settings, hooks, ...
        digest.update(features._network.state_key.encode())
    return digest.hexdigest()


def fill_networks(
    features: list, fingerprints: list[str], state: dict[str, torch.Tensor]
) -> None:
    """Build networks without pretrained weights, and load those of the file."""
    modules: dict[tuple, nn.Module] = {}
    for part, fingerprint in zip(features, fingerprints, strict=True):
        key = (part.backbone, fingerprint)
        if key not in modules:
            prefix = _prefix(fingerprint, fingerprints)
            own = {k: v for k, v in state.items() if k.startswith(prefix)}
            own = {k.removeprefix(prefix): v for k, v in own.items()}
            modules[key] = _filled_module(part.backbone, own)
        layers = resolve_layers(modules[key], part.layers, own=False)
        device = resolve_device(part.device)
        module = modules[key].to(device)
        part._network = Backbone(
            module, layers, device, part.precision, engine=part.engine
        )


def _filled_module(backbone: str, state: dict[str, torch.Tensor]) -> nn.Module:
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"weights {name!r:.80} have values that are not finite.")
    module = create_network(backbone, pretrained=False, seed=0)
    unknown = module.load_state_dict(state, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{backbone!r} has no parameters {unknown[:5]}.")
    return module.eval().requires_grad_(False)


def check_networks(features: list, expected: list[str]) -> None:
    """Raise a ValueError unless networks have the fingerprints of the fit."""
    found = fingerprints_of(features)
    for part, of_fit, of_now in zip(features, expected, found, strict=True):
        if of_fit == of_now:
            continue
        raise ValueError(
            f"the network {part.backbone!r:.40} has other weights than in the fit, or "
            "is a module with other settings or hooks: "
            f"SHA-256 {of_now[:12]}... instead of {of_fit[:12]}... Pass the original "
            "weights file to load(..., weights=...), or save the detector with "
            "include_backbone=True where it was fitted. Random and pretrained weights "
            "may change with the versions of torch and timm."
        )


def _check_windows(features: PatchFeatureTransformer, maps: list[torch.Tensor]) -> None:
    """Check that neighbourhoods fit into memory if they are unfolded."""
    if isinstance(features.descriptor, str):
        return
    largest = max(layer[0].numel() for layer in maps) * features.patch_size**2
    if largest > _LARGEST_UNFOLDED:
        raise ValueError(
            f"patch_size={features.patch_size} makes windows of {largest} numbers for "
            f"each image; the limit for a model file is {_LARGEST_UNFOLDED}."
        )


def check_widths(features: list) -> None:
    """Check the number of features of each network with a blank image."""
    seen = {}
    for part in features:
        network = part._network
        if not isinstance(part.backbone, str):
            continue
        if (network.module, network.layers) not in seen:
            blank = blank_image(network.module)
            # An engine would be compiled for a size that no image may have.
            in_torch = network.moved(None, "torch")
            seen[network.module, network.layers] = in_torch(blank)
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
                f"the network returns {grid.shape[1]} features per patch, not "
                f"{expected}."
            )
