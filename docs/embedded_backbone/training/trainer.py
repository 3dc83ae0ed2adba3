"""One step of training, and all there is to continue from."""

import copy
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from skpatchcore._backbones.embedded._trunk import Trunk
from skpatchcore._utils._atomic import atomic_write
from training.losses import total_loss
from training.views import Pairs

LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.03
WARM_UP_STEPS = 200
TEMPERATURES = (0.15, 0.10)
AVERAGE_STEPS = 300


class Trainer:
    """The network, the moving average of its weights, the optimiser, the step.

    Parameters
    ----------
    n_steps : int
        Of the whole schedule: the learning rate is constant after a warm-up, and goes
        down to 0 over the last part.
    cool_down : float
        Length of that part, relative to `n_steps`.
    seed : int
        Of the first weights, and of the images.
    device : torch.device
    image_size : int
        Kept with the seed: a run goes on with the images that it was begun with.
    """

    def __init__(
        self, n_steps: int, cool_down: float, seed: int, device, image_size: int
    ):
        self.n_steps, self.cool_down, self.device = n_steps, cool_down, device
        self.images = {"seed": seed, "image_size": image_size}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = Trunk()
        self.network = network.to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.network), lr=LEARNING_RATE
        )
        self.step = 0

    def learn(self, pairs: Pairs, is_scene: torch.Tensor) -> float:
        """Make one step with what is on the device; return its loss."""
        rate = learning_rate(self.step, self.n_steps, self.cool_down)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        views = pairs.views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        on_gpu = self.device.type == "cuda"
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
            fine, coarse = self.network(views)
        heat = temperature(self.step, self.n_steps)
        loss = total_loss(fine.float(), coarse.float(), pairs, is_scene, heat)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self._follow()
        return loss.item()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average on; at first it forgets sooner."""
        share = max(1 / AVERAGE_STEPS, 1 / self.step)
        current = self.network.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], share)
            else:
                value.copy_(current[name])

    def save(self, path: Path) -> None:
        """Write all there is to continue from, at once or not at all."""
        state = {
            "step": self.step,
            "images": self.images,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_write(path) as file:
            torch.save(state, file)

    def restore(self, path: Path) -> None:
        """Go on from what `save` has written.

        Raises
        ------
        ValueError
            If it is damaged, has other images, or is beyond the end of the schedule.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            begun, step = state["images"], state["step"]
        except (RuntimeError, KeyError, TypeError, EOFError, UnpicklingError) as error:
            raise ValueError(f"{path} is no checkpoint, or a damaged one.") from error
        if begun != self.images:
            raise ValueError(
                f"{path} was begun with {begun}, not {self.images}; go on with that, "
                "or begin in another folder."
            )
        if step > self.n_steps:
            raise ValueError(
                f"{path} is at step {step}, beyond the end of {self.n_steps} steps."
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = step


def learning_rate(step: int, n_steps: int, cool_down: float) -> float:
    """Return the rate of a step: a warm-up, a plateau, and a straight way down."""
    warm_up = (step + 1) / WARM_UP_STEPS
    way_down = (n_steps - step) / max(cool_down * n_steps, 1)
    return LEARNING_RATE * min(1.0, warm_up, way_down)


def temperature(step: int, n_steps: int) -> float:
    """Return the temperature of a step; it goes down evenly."""
    start, end = TEMPERATURES
    return start + (end - start) * min(1.0, step / n_steps)


def _parameter_groups(network: nn.Module) -> list[dict]:
    """Decay the filters only, not the offsets and factors of norms."""
    parameters = list(network.parameters())
    return [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": WEIGHT_DECAY,
        },
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
