"""Fit and prediction end to end against anomalib's PatchcoreModel: time and memory.

Run as ``python tests/benchmarks/bench_detector.py --anomalib-env DIR`` with the
images of bottle in the folder that SKPATCHCORE_ASSETS names. Both sides take the same
random weights of a WRN-50-2, layers 2 and 3, the same images of 224 pixels in memory,
3 x 3 means concatenated, and one nearest neighbour; both give maps of 224 pixels. Each
figure comes from a process of its own. anomalib's coreset is extrapolated from its
first picks, and the bank it searches drawn at random: a full search costs the same.

"network" and "product" are the least that prediction can take: one forward pass
(channels last), and the product of the patches with the bank, each by itself.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import _bottle
import numpy as np
import timm
import torch
from _anomalib import Anomalib
from _timing import (
    Pace,
    in_fresh_process,
    limit_threads,
    print_table,
    seconds,
    with_ratios,
)

from skpatchcore import CoresetSampler, PatchCoreDetector, PatchFeatureTransformer
from skpatchcore.persistence import load, save

OURS = "skpatchcore"
NETWORK = "wide_resnet50_2"
N_FEATURES = 1536


def make_detector(weights: Path, fraction: float, precision: str) -> PatchCoreDetector:
    features = PatchFeatureTransformer(
        NETWORK,
        weights=weights,
        image_size=224,
        descriptor="concat",
        layer_weights=None,
        precision=precision,
    )
    return PatchCoreDetector(features, CoresetSampler(fraction), random_state=0)


def fit(folder: Path, fraction: float, precision: str) -> dict:
    detector = make_detector(folder / "weights.pth", fraction, precision)
    taken = seconds(detector.fit, np.load(folder / "train.npy"))
    save(detector, folder / "model.skpc")
    return {"s": taken}


def predict(folder: Path, batch_size: int) -> dict:
    detector = load(folder / "model.skpc", weights=folder / "weights.pth")
    images = np.load(folder / "test.npy")
    predict_maps = partial(detector.predict_maps, size="resized")
    predict_maps(images[:batch_size])

    def predict_all():
        for start in range(0, len(images), batch_size):
            predict_maps(images[start : start + batch_size])

    return images_per_second(len(images), seconds(predict_all))


def images_per_second(n_images: int, taken: float) -> dict:
    return {"ms an image": 1e3 * taken / n_images, "images/s": n_images / taken}


def least(batch_size: int, n_bank: int, dtype: torch.dtype, n_repeats: int) -> dict:
    """Time the network alone and one bare product, in ms an image."""
    network = timm.create_model(NETWORK, features_only=True, out_indices=(2, 3)).eval()
    network = network.to(dtype=dtype, memory_format=torch.channels_last)
    batch = torch.rand(batch_size, 3, 224, 224).to(
        dtype=dtype, memory_format=torch.channels_last
    )
    patches = torch.rand(batch_size * _bottle.N_PATCHES, N_FEATURES).to(dtype)
    bank = torch.rand(n_bank, N_FEATURES).to(dtype)
    milliseconds = {}
    with torch.inference_mode():
        for name, run in {
            "network": lambda: network(batch),
            "product": lambda: patches @ bank.T,
        }.items():
            run()
            taken = median(seconds(run) for _ in range(n_repeats))
            milliseconds[name] = 1e3 * taken / batch_size
    return milliseconds


def anomalib_fit(rival: Anomalib, fraction: float, n_picks: int) -> dict:
    picks = [n_picks // 10, n_picks]
    found = rival.run("fit", picks=picks, fraction=fraction)
    pace = Pace.through(picks[0], found["coreset"][0], picks[1], found["coreset"][1])
    print(
        f"anomalib: features {found['embed']:.1f} s, then {pace.fixed:.2f} s and "
        f"{pace.per_pick:.4f} s for each of {found['n_bank']} picks",
        flush=True,
    )
    memory = {name: found[name] for name in ("imports_MB", "peak_MB")}
    return {"s": found["embed"] + pace.total(found["n_bank"]), **memory}


def anomalib_predict(rival: Anomalib, batch_size: int) -> dict:
    found = rival.run("predict", batch_size=batch_size)
    memory = {name: found[name] for name in ("imports_MB", "peak_MB")}
    return {**images_per_second(found["n_images"], found["seconds"]), **memory}


def medians(turns: list[dict[str, dict]]) -> list[dict]:
    """Return one row for each name, with the median of every figure over `turns`.

    >>> medians([{"us": {"s": 1.0}}, {"us": {"s": 5.0}}, {"us": {"s": 2.0}}])
    [{'by': 'us', 's': 2.0}]
    """
    return [
        {"by": name, **{k: median(turn[name][k] for turn in turns) for k in figures}}
        for name, figures in turns[0].items()
    ]


def prepare(folder: Path, n_train: int | None, n_test: int) -> int:
    """Write weights and images for both sides; return the number to train on."""
    torch.manual_seed(0)
    network = timm.create_model(NETWORK, pretrained=False)
    torch.save(network.state_dict(), folder / "weights.pth")
    train = _bottle.crops("train", n_train)
    np.save(folder / "train.npy", train)
    np.save(folder / "test.npy", _bottle.crops("test", n_test))
    return len(train)


def run(folder: Path, rival: Anomalib | None, args) -> None:
    n_train = prepare(folder, args.images, args.test_images)
    n_bank = int(n_train * _bottle.N_PATCHES * args.fraction)
    fits, predictions = [], {batch_size: [] for batch_size in args.batches}
    for _ in range(args.repeats):
        job = (folder, args.fraction, args.precision)
        fits.append({OURS: in_fresh_process(fit, *job)})
        if rival is not None:
            fits[-1]["anomalib"] = anomalib_fit(rival, args.fraction, args.rival_picks)
        for batch_size, turns in predictions.items():
            turns.append({OURS: in_fresh_process(predict, folder, batch_size)})
            if rival is not None:
                turns[-1]["anomalib"] = anomalib_predict(rival, batch_size)
            for name in args.least:
                job = (batch_size, n_bank, getattr(torch, name), 5)
                found = in_fresh_process(least, *job)
                both = (found["network"] + found["product"]) / 1e3
                turns[-1][f"least, {name}"] = {**images_per_second(1, both), **found}
    title = f"{n_train} images, {n_bank} picks, {args.threads} threads"
    rows = with_ratios(medians(fits), "s", OURS)
    print_table(f"Fit: {title}, median of {args.repeats}", rows)
    for batch_size, turns in predictions.items():
        rows = with_ratios(medians(turns), "ms an image", OURS)
        print_table(f"Prediction, {batch_size} at a time", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anomalib-env", type=Path, help="made there if absent")
    parser.add_argument("--images", type=int, help="train on this many; default all")
    parser.add_argument("--test-images", type=int, default=24)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--least", nargs="*", choices=("float32", "bfloat16"), default=["float32"]
    )
    parser.add_argument("--rival-picks", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    args.threads = limit_threads(args.threads)
    with TemporaryDirectory() as scratch:
        if args.anomalib_env is None:
            run(Path(scratch), None, args)
        else:
            rival = Anomalib(args.anomalib_env, args.threads)
            run(rival.folder, rival, args)


if __name__ == "__main__":
    main()
