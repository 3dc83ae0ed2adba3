"""Write trained weights as the package stores them: ``pack.py TRAINED PACKED``."""

import sys
from pathlib import Path

import safetensors.torch

from skpatchcore._backbones.embedded._byte_planes import split_bytes
from skpatchcore._utils import atomic_write


def pack(trained: Path, packed: Path) -> None:
    """Write a file of `train.py` with the bytes of each weight separated."""
    planes = split_bytes(safetensors.torch.load_file(trained))
    with atomic_write(packed) as file:
        # In a fixed order and layout: equal weights make equal files.
        file.write(safetensors.torch.save(planes))


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
