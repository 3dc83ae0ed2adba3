"""Train the embedded backbone: ``python docs/embedded_backbone/train.py --help``.

Everything random in a step follows from the seed and the step's number, so a run that
is interrupted and started again ends like one that is not, bit for bit on one device.
"""

import time
from pathlib import Path

import click
import numpy as np
import torch
from numpy.random import SeedSequence
from tqdm import tqdm

from skpatchcore._backbones.embedded._network import WEIGHTS_PATH
from skpatchcore._utils._atomic import atomic_write
from skpatchcore._utils._device import resolve_device
from training.export import make_embedded, save_weights
from training.images import ImageStore, is_scene
from training.trainer import Trainer
from training.views import draw_pairs

N_POINTS = 14
# As many determine the mean and variance of channels to about 1 %.
N_STANDARD = 256
POSITIVE = click.IntRange(min=1)
# An image is told from others: there must be some.
SEVERAL = click.IntRange(min=2)


def draw_batch(store: ImageStore, n: int, size: int, seed: int, step: int, device):
    """Return the pairs of views of a step, and which of them are of scenes."""
    entropy = SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(entropy >> 1))
    # Without replacement: an image that meets itself would be told from itself.
    numbers = torch.randperm(len(store), generator=generator)[:n].sort().values
    images = torch.from_numpy(store[numbers.numpy()]).to(device)
    pairs = draw_pairs(images, size, N_POINTS, generator)
    return pairs, is_scene(numbers).to(device)


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--steps", default=20_000, type=POSITIVE, help="Length of the whole schedule."
)
@click.option(
    "--stop-at",
    type=click.IntRange(min=0),
    help="Stop early, after this many steps; 0 only writes the weights so far.",
)
@click.option(
    "--cool-down",
    default=0.2,
    type=click.FloatRange(0, 1),
    help="Part of the steps with falling rate.",
)
@click.option(
    "--batch-size",
    default=64,
    type=SEVERAL,
    help="Images per step; two views of each.",
)
@click.option(
    "--view-size",
    default=96,
    type=click.IntRange(min=32),
    help="Side of a view in pixels.",
)
@click.option(
    "--images",
    default=32_768,
    type=SEVERAL,
    help="Number of different images.",
)
@click.option(
    "--image-size",
    default=160,
    type=click.IntRange(min=32),
    help="Side of an image in pixels.",
)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(min=0),
    help="Of images, first weights, and views.",
)
@click.option("--device", help="By default the GPU if there is one.")
@click.option("--jobs", default=1, type=POSITIVE, help="Processes that draw images.")
@click.option(
    "--save-every", default=200, type=POSITIVE, help="Steps between checkpoints."
)
@click.option(
    "--keep-every",
    default=0,
    type=click.IntRange(min=0),
    help="Steps between checkpoints to keep; 0 keeps the last alone.",
)
def main(
    folder: Path,
    steps: int,
    stop_at: int | None,
    cool_down: float,
    batch_size: int,
    view_size: int,
    images: int,
    image_size: int,
    seed: int,
    device: str | None,
    jobs: int,
    save_every: int,
    keep_every: int,
) -> None:
    """Train in FOLDER, or go on with what was interrupted there."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(steps, cool_down, seed, resolve_device(device), image_size)
    checkpoint = folder / "checkpoint.pt"
    _restore(trainer, checkpoint)
    # Only now: drawing takes minutes, and leaves files.
    store = ImageStore(
        folder / "images", images, seed=seed, size=image_size, n_jobs=jobs
    )
    log_path = folder / "log.tsv"
    _forget_later_steps(log_path, trainer.step)
    last = steps if stop_at is None else min(steps, stop_at)
    bar = tqdm(total=last, initial=trainer.step, desc="training", smoothing=0.05)
    with bar, log_path.open("a", buffering=1) as log:
        while trainer.step < last:
            batch = draw_batch(
                store, batch_size, view_size, seed, trainer.step, trainer.device
            )
            loss = trainer.learn(*batch)
            log.write(f"{trainer.step}\t{loss:.4f}\t{time.time():.1f}\n")
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
            keep = keep_every > 0 and trainer.step % keep_every == 0
            if keep or trainer.step % save_every == 0 or trainer.step == last:
                trainer.save(checkpoint)
            if keep:
                trainer.save(folder / f"checkpoint-{trainer.step:06d}.pt")
    standard = store[np.arange(min(N_STANDARD, len(store)))]
    network = make_embedded(trainer.average.cpu(), standard)
    save_weights(network, folder / WEIGHTS_PATH.name)


def _restore(trainer: Trainer, checkpoint: Path) -> None:
    """Continue from a checkpoint if there is one."""
    if checkpoint.exists():
        try:
            trainer.restore(checkpoint)
        except ValueError as error:
            raise click.ClickException(str(error)) from None


def _forget_later_steps(log_path: Path, step: int) -> None:
    """Remove what was logged after the checkpoint: it will be done again."""
    if log_path.exists():
        lines = log_path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if int(line.split("\t")[0]) <= step]
        with atomic_write(log_path, "w") as log:
            log.writelines(kept)


if __name__ == "__main__":
    main()
