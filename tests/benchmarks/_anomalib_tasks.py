"""Tasks for anomalib; `_anomalib.Anomalib` runs this file in anomalib's environment.

``python _anomalib_tasks.py TASK FOLDER`` reads params.json and arrays of FOLDER and
leaves result.json there. Nothing here imports skpatchcore, nor, before a task is asked
for, anomalib.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# As many images at a time as anomalib's data modules take by default.
_TRAIN_BATCH = 32


def coreset(folder: Path, picks: list[int]) -> dict:
    """Time KCenterGreedy, its projection included, for each number of picks."""
    features = torch.from_numpy(np.load(folder / "features.npy"))
    _pick(features, 2)
    return {"seconds": [_seconds(_pick, features, n) for n in picks]}


def fit(folder: Path, picks: list[int], fraction: float) -> dict:
    """Time features and coreset of training images; leave a bank of the right size.

    The coreset is timed for a few picks, and takes the same memory as for all. The
    bank is drawn at random: to a full search it is as good as any.
    """
    model = _model(folder)
    images = np.load(folder / "train.npy")
    model.train()
    embed = _seconds(_embed, model, images)
    start = time.perf_counter()
    embeddings = torch.vstack(model.embedding_store)
    model.embedding_store.clear()
    embed += time.perf_counter() - start
    timed = [_seconds(_pick, embeddings, n) for n in picks]
    n_bank = int(len(embeddings) * fraction)
    rows = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(0))
    np.save(folder / "bank.npy", embeddings[rows[:n_bank]].numpy())
    return {"embed": embed, "coreset": timed, "n_bank": n_bank}


def predict(folder: Path, batch_size: int) -> dict:
    """Time scores and maps of test images, in batches."""
    model = _model(folder)
    model.memory_bank = torch.from_numpy(np.load(folder / "bank.npy"))
    images = np.load(folder / "test.npy")
    model.eval()
    with torch.inference_mode():
        model(_normalised(images[:batch_size]))
        seconds = _seconds(_predict_all, model, images, batch_size)
    return {"seconds": seconds, "n_images": len(images)}


def _predict_all(model, images: np.ndarray, batch_size: int) -> None:
    for start in range(0, len(images), batch_size):
        model(_normalised(images[start : start + batch_size]))


def _embed(model, images: np.ndarray) -> None:
    for start in range(0, len(images), _TRAIN_BATCH):
        model(_normalised(images[start : start + _TRAIN_BATCH]))


def _model(folder: Path):
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    # With one neighbour the score is the largest patch's, as ours is by default.
    model = PatchcoreModel(
        ["layer2", "layer3"], "wide_resnet50_2", pre_trained=False, num_neighbors=1
    )
    network = model.feature_extractor.feature_extractor
    state = torch.load(folder / "weights.pth", weights_only=True)
    missing, _ = network.load_state_dict(state, strict=False)
    assert not missing, missing
    return model


def _normalised(images: np.ndarray) -> torch.Tensor:
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return (batch - mean) / std


def _pick(features: torch.Tensor, n: int) -> None:
    from anomalib.models.components import KCenterGreedy

    # The ratio is multiplied out and cut off again.
    KCenterGreedy(features, (n + 0.5) / len(features)).select_coreset_idxs()


def _seconds(function, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def _resident_megabytes(entry: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(entry))
    return int(kilobytes) * 1024 / 1e6


def main(task: str, folder: Path) -> None:
    import anomalib.models.image.patchcore  # noqa: F401

    imports = _resident_megabytes("VmRSS")
    tasks = {"coreset": coreset, "fit": fit, "predict": predict}
    result = tasks[task](folder, **json.loads((folder / "params.json").read_text()))
    memory = {"imports_MB": imports, "peak_MB": _resident_megabytes("VmHWM")}
    (folder / "result.json").write_text(json.dumps({**result, **memory}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
