"""Pretrained networks and the feature maps of their layers.

This folder builds networks by name or copies modules, loads weights, identifies
networks for caches, and reads intermediate layers.
"""

from skpatchcore._backbones._backbone import Backbone, create_network, load_backbone
from skpatchcore._backbones._layers import resolve_layers
from skpatchcore._backbones._network_input import blank_image
from skpatchcore._backbones._used_weights import weights_used
from skpatchcore._backbones._weights import WeightsNotStored

__all__ = [
    "Backbone",
    "WeightsNotStored",
    "blank_image",
    "create_network",
    "load_backbone",
    "resolve_layers",
    "weights_used",
]
