"""Settings and fixtures for all tests."""

import os

# Before SciPy is imported: one of scikit-learn's checks needs it, or it is skipped.
os.environ["SCIPY_ARRAY_API"] = "1"
# Before torch is: threads that spin while they wait starve those of other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: one thread each.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")

from pathlib import Path

import pytest

from skpatchcore._backbones import Backbone


def assets_folder() -> Path | None:
    """Return where real weights and images lie, if anywhere."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "assets"
    folder = Path(os.environ.get("SKPATCHCORE_ASSETS", beside))
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def assets() -> Path:
    folder = assets_folder()
    if folder is None:
        pytest.skip("no real weights and images: set SKPATCHCORE_ASSETS")
    return folder


@pytest.fixture
def batch_sizes(monkeypatch):
    """Note how many images pass any network at once, batch by batch.

    A counter inside a network would be a part of what caches know it by.
    """
    sizes = []
    forward = Backbone.__call__

    def note(network, batch):
        sizes.append(len(batch))
        return forward(network, batch)

    monkeypatch.setattr(Backbone, "__call__", note)
    return sizes
