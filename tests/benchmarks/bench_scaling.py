"""Time and memory as images, the kept fraction and the dimensions grow; with plots.

Run as ``python tests/benchmarks/bench_scaling.py`` with real weights and images in
the folder that SKPATCHCORE_ASSETS names. Each point is a fit and a prediction, each in
a process of its own: "images" of a PatchCoreDetector with a ResNet-18 on files
(bottle; beyond its 209 images shifted, noisy copies), "fraction" and "dimensions" of
a PatchMemoryBank on features of bottle, for the dimensions in random projections.

Results are written to bench_scaling.json in ``--output``, one log-log plot for each
sweep beside it. ``--plot`` draws again from the file, and times nothing.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import _bottle
import joblib
import numpy as np
from _timing import in_fresh_process, limit_threads, print_table, seconds

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchMemoryBank
from skpatchcore.persistence import load, save

LABELS = {
    "images": "training images of 784 patches",
    "fraction": "fraction of patches kept",
    "dimensions": "dimensions of a patch",
}
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
N_FEATURES = 384
N_PREDICTED = 8


def fit_detector(folder: Path, images: list[str], fraction: float) -> dict:
    sampler = CoresetSampler(fraction)
    detector = PatchCoreDetector(_bottle.resnet18(), sampler, random_state=0)
    taken = seconds(detector.fit, images)
    save(detector, folder / "model.skpc")
    return {"s": taken}


def predict_detector(folder: Path, images: list[str]) -> dict:
    detector = load(folder / "model.skpc")
    detector.predict_maps(images[:1])
    return {"s": seconds(detector.predict_maps, images) / len(images)}


def fit_bank(folder: Path, fraction: float) -> dict:
    X = np.load(folder / "train.npy")
    bank = PatchMemoryBank(CoresetSampler(fraction), random_state=0)
    taken = seconds(bank.fit, X)
    joblib.dump(bank, folder / "bank.joblib")
    return {"s": taken}


def predict_bank(folder: Path) -> dict:
    bank = joblib.load(folder / "bank.joblib")
    X = np.load(folder / "test.npy")
    bank.score_samples(X[:1])
    return {"s": seconds(bank.score_samples, X) / len(X)}


def measure(fit, predict, n_patches: int, d: int, n_repeats: int) -> dict:
    """Return medians of both jobs, and the size of the training features."""
    found = {"fit": [], "predict": []}
    for _ in range(n_repeats):
        found["fit"].append(in_fresh_process(*fit))
        found["predict"].append(in_fresh_process(*predict))
    point = {
        f"{job} {name}": median(turn[name] for turn in turns)
        for job, turns in found.items()
        for name in turns[0]
    }
    return {**point, "features MB": n_patches * d * 4 / 1e6}


def sweep_images(folder: Path, args) -> Iterator[dict]:
    files = _bottle.write_more(folder, max(args.images))
    test = _bottle.paths("test")[:N_PREDICTED]
    for n in args.images:
        fit = (fit_detector, folder, files[:n], args.fraction)
        predict = (predict_detector, folder, test)
        n_patches = n * _bottle.N_PATCHES
        found = measure(fit, predict, n_patches, N_FEATURES, args.repeats)
        yield {"images": n, **found}


def sweep_bank(folder: Path, fraction: float, d: int, args) -> dict:
    X = _bottle.features(args.features or folder / "features.npz")
    train, test = X["train"][: args.bank_images], X["test"][:N_PREDICTED]
    np.save(folder / "train.npy", _bottle.to_dimensions(train, d))
    np.save(folder / "test.npy", _bottle.to_dimensions(test, d))
    fit, predict = (fit_bank, folder, fraction), (predict_bank, folder)
    return measure(fit, predict, len(train) * _bottle.N_PATCHES, d, args.repeats)


def sweep_fraction(folder: Path, args) -> Iterator[dict]:
    for fraction in args.fractions:
        found = sweep_bank(folder, fraction, N_FEATURES, args)
        yield {"fraction": fraction, **found}


def sweep_dimensions(folder: Path, args) -> Iterator[dict]:
    for d in args.dimensions:
        yield {"dimensions": d, **sweep_bank(folder, args.fraction, d, args)}


SWEEPS = {
    "images": sweep_images,
    "fraction": sweep_fraction,
    "dimensions": sweep_dimensions,
}


def draw(name: str, points: list[dict], path: Path) -> None:
    # Here, so that the processes whose memory is measured do not hold it.
    import matplotlib.pyplot as plt

    x = [point[name] for point in points]
    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    fits = [point["fit s"] for point in points]
    times.plot(x, fits, "ko-", label="fit")
    times.plot(x, [p["predict s"] for p in points], "ks--", label="predict an image")
    memory.plot(x, [p["fit peak_MB"] for p in points], "ko-", label="fit")
    memory.plot(x, [p["predict peak_MB"] for p in points], "ks--", label="predict")
    memory.plot(
        x, [p["features MB"] for p in points], ":", color="0.5", label="features"
    )
    imports = median(p["fit imports_MB"] for p in points)
    memory.axhline(imports, color="0.75", label="imports alone")
    times.set(title="Time", ylabel="time (s)")
    memory.set(title="Memory", ylabel="peak resident memory (MB)")
    for axes in (times, memory):
        axes.set(xscale="log", yscale="log", xlabel=LABELS[name])
        axes.set_xticks(x, [f"{value:g}" for value in x], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(color="0.9", which="both")
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument(
        "--images", type=int, nargs="+", default=[50, 100, 200, 400, 800]
    )
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=[0.001, 0.005, 0.02, 0.1, 0.25]
    )
    parser.add_argument(
        "--dimensions", type=int, nargs="+", default=[128, 256, 512, 1024, 1536]
    )
    parser.add_argument(
        "--fraction", type=float, default=0.1, help="where something else grows"
    )
    parser.add_argument(
        "--bank-images", type=int, default=100, help="where the images do not grow"
    )
    parser.add_argument("--features", type=Path, help="file to keep features in (.npz)")
    parser.add_argument("--output", type=Path, default=IMAGES)
    parser.add_argument("--plot", action="store_true", help="only draw again")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    limit_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    record = args.output / "bench_scaling.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    for name in args.only:
        if not args.plot:
            with TemporaryDirectory() as scratch:
                results[name] = list(SWEEPS[name](Path(scratch), args))
            # At once, so that what was measured outlives an interruption.
            record.write_text(json.dumps(results, indent=1))
        print_table(f"By {name}", results[name])
        draw(name, results[name], args.output / f"bench_{name}.png")


if __name__ == "__main__":
    main()
