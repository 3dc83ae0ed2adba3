"""Networks that timm builds by name, with weights from its cache or the internet."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from skpatchcore._utils import did_you_mean

# The names of weights files on the Hugging Face Hub, in timm's order of preference.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# Seconds to wait for an answer of the Hub.
_TIMEOUT = 10


def create_by_timm(name: str, *, pretrained: bool) -> nn.Module:
    """Return a network of timm.

    Raises
    ------
    ValueError
        If timm has no such network, or cannot build it.
    OSError
        If pretrained weights cannot be loaded. Without a connection to the Hugging Face
        Hub, it is raised at once; timm would retry for a minute.
    """
    # Importing timm takes seconds, so only networks by name import it.
    import timm

    if not timm.is_model(name):
        names = ["embedded", "gabor", *timm.list_models()]
        guess = did_you_mean(name, names, n=5, cutoff=0.5)
        raise ValueError(
            f"backbone={name!r} is not a timm model.{guess} timm.list_models() lists "
            "them; 'embedded' and 'gabor' come with the package."
        )
    try:
        options = _local_source(name) if pretrained else {}
        module = _create_for_any_size(timm.create_model, name, pretrained, options)
    except Exception as error:
        if not pretrained:
            raise ValueError(f"timm could not build {name!r}: {error}") from error
        raise OSError(
            f"Could not load pretrained weights for {name!r}: {error}. Offline? Use "
            "backbone='embedded', or pass a local file with weights=."
        ) from error
    # Older versions of timm do not set it.
    vars(module)["in_chans"] = 3
    return module


def _create_for_any_size(
    create: Callable[..., nn.Module], name: str, pretrained: bool, options: dict
) -> nn.Module:
    """Create a network, a transformer for images of any size where timm can do so."""
    state = torch.default_generator.get_state()
    try:
        # Position embeddings are resampled at every pass.
        return create(name, pretrained=pretrained, dynamic_img_size=True, **options)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
    torch.default_generator.set_state(state)
    return create(name, pretrained=pretrained, **options)


def _local_source(name: str) -> dict[str, Any]:
    """Return how to load weights from the local cache if the Hub cannot be reached.

    Raises
    ------
    OSError
        If the Hub cannot be reached, and the weights are not in the cache.
    """
    # timm depends on huggingface_hub.
    import huggingface_hub
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    repository = getattr(config, "hf_hub_id", None)
    # In offline mode the Hub's client reads only the cache, and does not retry.
    if not repository or huggingface_hub.constants.HF_HUB_OFFLINE:
        return {}
    endpoint = huggingface_hub.constants.ENDPOINT
    reason = _find_obstacle(endpoint)
    if reason is None:
        return {}
    files = [getattr(config, "hf_hub_filename", None), *_HUB_FILES]
    for file in filter(None, files):
        path = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return {"pretrained_cfg_overlay": {"file": path}}
    raise OSError(f"{endpoint} cannot be reached ({reason})")


def _find_obstacle(url: str) -> str | None:
    """Return why a server cannot be reached, None if it answers.

    Any response counts, also an error. Proxies of the environment are used. Problems
    with certificates do not count, because the client that downloads may be configured
    differently.
    """
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT):
            return None
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except OSError as error:
        return str(error)
