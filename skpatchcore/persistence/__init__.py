"""A fitted detector as one safe file: JSON and safetensors in a zip, no pickle."""

from skpatchcore.persistence._archive import ModelFileError
from skpatchcore.persistence._save_load import load, save

__all__ = ["ModelFileError", "load", "save"]
