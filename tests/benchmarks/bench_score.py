"""Memory of ``skpatchcore score``, and runs of it that are killed and resumed.

Scores 2 000 and 20 000 small images and reports the peak memory of each run. Then the
run over 20 000 images is killed (SIGKILL) at 20 random moments and resumed each time,
and its table is compared with that of an undisturbed run.

    python tests/benchmarks/bench_score.py [--images 20000] [--kills 20]
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from skpatchcore import PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.persistence import save

SIDE = 32
# How long a run takes to start, in which a kill would hit no row.
START_SECONDS = 5.0


def make_images(folder: Path, n: int) -> None:
    """Write small PNG files, 1000 to a folder, every 997th of them damaged."""
    rng = np.random.default_rng(0)
    for i in range(n):
        path = folder / f"{i // 1000:03}" / f"{i:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(90, 160, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        if i % 997 == 996:
            path.write_bytes(path.read_bytes()[:60])


def command(model: Path, output: Path, folders: list[Path], *options: str) -> list[str]:
    """Return the command line of a run."""
    given = ["--model", model, "--output", output, "--on-error", "skip", *options]
    words = [sys.executable, "-m", "skpatchcore", "score", *folders, *given]
    return list(map(str, words))


def measure(words: list[str]) -> tuple[float, float, str]:
    """Run a command; return its seconds, its peak memory in MB and its last line."""
    started = time.perf_counter()
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        last = child.stderr.read().splitlines()[-1]
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(last)
    return time.perf_counter() - started, usage.ru_maxrss / 1024, last


def kill_and_resume(words: list[str], output: Path, n_kills: int, n_bytes: int) -> int:
    """Kill a run at random moments and resume it; return the number of kills.

    `n_bytes` is the size of the finished table.
    """
    rng = random.Random(0)
    for i in range(n_kills):
        # Somewhat early, so that the run does not end before the last kill.
        target = _size(output) + rng.uniform(0, 1.6 * n_bytes / n_kills)
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as child:
            if i % 5 == 4:
                # While it starts, or reads what is done.
                time.sleep(rng.uniform(0, START_SECONDS))
            while i % 5 != 4 and _size(output) < target and child.poll() is None:
                time.sleep(0.002)
            if child.poll() is not None:
                return i
            child.kill()
        data = output.read_bytes() if output.exists() else b""
        half, n_rows = not data.endswith(b"\n"), max(0, data.count(b"\n") - 1)
        print(f"kill {i + 1}: {n_rows} rows{', the last cut' if half else ''}")
    return n_kills


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "images", args.images)
        features = PatchFeatureTransformer("embedded", image_size=SIDE)
        good = np.random.default_rng(1).integers(90, 160, (40, SIDE, SIDE, 3), np.uint8)
        detector = PatchCoreDetector(features, random_state=0).fit(good)
        save(detector, folder / "model.skpc")
        folders = sorted((folder / "images").iterdir())
        for part in (folders[: max(1, len(folders) // 10)], folders):
            whole = folder / "whole.csv"
            words = command(folder / "model.skpc", whole, part)
            seconds, memory, last = measure(words)
            print(f"{last}: {seconds:.1f} s, peak memory {memory:.0f} MB")
        output = folder / "killed.csv"
        words = command(folder / "model.skpc", output, folders, "--resume")
        n_kills = kill_and_resume(words, output, args.kills, _size(whole))
        print(f"after {n_kills} kills: {measure(words)[2]}")
        equal = output.read_bytes() == whole.read_bytes()
        print(f"table equal to that of the undisturbed run: {equal}")
        if not equal:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
