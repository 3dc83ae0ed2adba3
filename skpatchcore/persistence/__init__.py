"""Save a fitted detector to one safe file: JSON and safetensors in a zip, no pickle.

`save` writes a file and `load` reads it. Nothing in a file is executed, and every value
is checked against a list of what is allowed, so files from others are safe to load. A
`ModelFileError` says why a file cannot be used.
"""

from skpatchcore.persistence._archive import ModelFileError
from skpatchcore.persistence._save_load import load, save

__all__ = ["ModelFileError", "load", "save"]
