"""anomalib as a rival: an environment of its own, and the tasks it is given there."""

import json
import os
import subprocess
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

VERSION = "2.7.0"
_ASK_VERSION = "from importlib.metadata import version; print(version('anomalib'))"


class Anomalib:
    """anomalib in a second environment, which is made if it is not there.

    Arrays and results pass through files in a temporary folder. Times and memory are
    those that the process there measures of itself, its start and imports apart.

    Parameters
    ----------
    environment : Path
        Folder of the virtual environment. Its torch alone takes several GB.
    n_threads : int
    """

    def __init__(self, environment: Path, n_threads: int):
        self._python = _make_environment(environment)
        self._n_threads = n_threads
        self._scratch = TemporaryDirectory(prefix="anomalib-")

    @property
    def folder(self) -> Path:
        return Path(self._scratch.name)

    def put(self, **arrays: np.ndarray) -> None:
        """Leave arrays for the tasks to come, as .npy files."""
        for name, array in arrays.items():
            np.save(self.folder / f"{name}.npy", array)

    def run(self, task: str, **params) -> dict:
        """Return what a task of ``_anomalib_tasks.py`` says of itself."""
        (self.folder / "params.json").write_text(json.dumps(params))
        tasks = Path(__file__).with_name("_anomalib_tasks.py")
        environ = {**os.environ, "OMP_NUM_THREADS": str(self._n_threads)}
        done = subprocess.run(
            [self._python, tasks, task, self.folder],
            env=environ,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"anomalib's task {task!r} failed:\n{done.stderr}")
        return json.loads((self.folder / "result.json").read_text())


def _make_environment(folder: Path) -> Path:
    # Absolute, but not resolved: python finds its environment by the link's own place.
    python = Path(os.path.abspath(folder)) / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    if _installed(python) != VERSION:
        install = [python, "-m", "pip", "install", f"anomalib=={VERSION}"]
        subprocess.run(install, check=True)
    return python


def _installed(python: Path) -> str:
    asked = subprocess.run([python, "-c", _ASK_VERSION], capture_output=True, text=True)
    return asked.stdout.strip()
