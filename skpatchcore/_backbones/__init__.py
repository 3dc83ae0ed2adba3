"""Pretrained networks and the feature maps of their layers.

Builds networks by name or takes the user's own, loads weights, identifies networks for
caches, and reads intermediate layers through hooks.
"""

from skpatchcore._backbones._backbone import Backbone, create_network, load_backbone
from skpatchcore._backbones._feature_maps import name_layers
from skpatchcore._backbones._hooks import check_layers, modules_run
from skpatchcore._backbones._weights import WeightsNotStored

__all__ = [
    "Backbone",
    "WeightsNotStored",
    "check_layers",
    "create_network",
    "load_backbone",
    "modules_run",
    "name_layers",
]
