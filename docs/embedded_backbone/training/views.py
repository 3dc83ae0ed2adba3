"""Two views of each image, and which points of them correspond.

A view is a turned, scaled and shifted window of the image in a light of its own.
Where the windows and points are is drawn on the CPU, the same for all devices; pixels
are computed where the images are.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

MAX_ANGLE = math.radians(23)
MAX_LOG_SCALE = math.log(1.28)
# Between the windows' centres, as a part of their side.
MAX_SHIFT = 0.25
# Points keep this distance from the rim, as a part of the side.
MARGIN = 0.06
_N_CANDIDATES = 96


class Pairs(NamedTuple):
    """Two views of b images, and n corresponding points in each.

    `views` is (2, b, 3, size, size), normalised; `points` (2, b, n, 2) are x and y in
    [-1, 1] as `grid_sample` takes them; `places` (b, n, 2) where they are in the
    image, in pixels; `valid` (b, n) is False for points to be left out.
    """

    views: torch.Tensor
    points: torch.Tensor
    places: torch.Tensor
    valid: torch.Tensor


def draw_pairs(
    images: torch.Tensor, size: int, n_points: int, generator: torch.Generator
) -> Pairs:
    """Draw two views of each of `images` (b, s, s, 3), uint8; all on their device.

    `generator` is on the CPU.
    """
    n, side = images.shape[:2]
    frames = _draw_frames(n, side, size, generator)
    drawn = _draw_points(frames, size, n_points, generator)
    points, places, valid = (tensor.to(images.device) for tensor in drawn)
    source = images.permute(0, 3, 1, 2).float() / 255
    views = [_cut(source, frame.to(source.device), size) for frame in frames]
    views = torch.stack([_relight(view, generator) for view in views])
    return Pairs((views - 0.5) / 0.25, points, places, valid)


def _uniform(shape, low: float, high: float, generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _draw_frames(n: int, side: int, size: int, generator) -> torch.Tensor:
    """Return (2, n, 2, 3): from a view's pixels to the image's, both centred."""
    angles = _uniform((2, n), -MAX_ANGLE, MAX_ANGLE, generator)
    scales = _uniform((2, n), -MAX_LOG_SCALE, MAX_LOG_SCALE, generator).exp()
    room = max(side - size, 0) / 2
    middle = _uniform((1, n, 2), -room, room, generator)
    shift = _uniform((1, n, 2), -MAX_SHIFT / 2, MAX_SHIFT / 2, generator) * size
    centers = torch.cat([middle + shift, middle - shift])
    cos, sin = scales * angles.cos(), scales * angles.sin()
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return torch.cat([turn, centers[..., None]], dim=-1)


def _draw_points(frames: torch.Tensor, size: int, n_points: int, generator):
    """Return points that both views show: where in the views, where in the image."""
    n = frames.shape[1]
    turn, center = frames[..., :2], frames[..., 2]
    inside = (1 - 2 * MARGIN) * size / 2
    first = _uniform((n, _N_CANDIDATES, 2), -inside, inside, generator)
    places = first @ turn[0].mT + center[0][:, None]
    second = (places - center[1][:, None]) @ torch.linalg.inv(turn[1]).mT
    outside = (second.abs() > inside).any(dim=-1)
    # Those that both views show, in random order, come first.
    chosen = outside.to(torch.uint8).sort(dim=1, stable=True).indices[:, :n_points]
    points = torch.stack([_pick(first, chosen), _pick(second, chosen)]) / (size / 2)
    return points, _pick(places, chosen), ~outside.gather(1, chosen)


def _pick(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return values.gather(1, chosen[..., None].expand(-1, -1, 2))


def _cut(source: torch.Tensor, frame: torch.Tensor, size: int) -> torch.Tensor:
    side = source.shape[-1]
    # `affine_grid` thinks in halves of the sides, on both ends.
    theta = torch.cat([frame[..., :2] * (size / side), frame[..., 2:] * 2 / side], -1)
    grid = F.affine_grid(theta, [len(source), 3, size, size], align_corners=False)
    return F.grid_sample(source, grid, padding_mode="reflection", align_corners=False)


def _relight(view: torch.Tensor, generator) -> torch.Tensor:
    """Change brightness, contrast and colours a little, and add noise."""
    n, device = len(view), view.device
    contrast = _uniform((n, 1, 1, 1), -0.2, 0.2, generator).exp().to(device)
    tint = _uniform((n, 3, 1, 1), -0.06, 0.06, generator).exp().to(device)
    brightness = _uniform((n, 1, 1, 1), -0.08, 0.08, generator).to(device)
    strength = _uniform((n, 1, 1, 1), 0, 0.02, generator).to(device)
    view = ((view - 0.5) * contrast + 0.5) * tint + brightness
    # As many numbers as pixels: a GPU draws them itself.
    seed = torch.randint(2**62, (), generator=generator).item()
    own = torch.Generator(device).manual_seed(seed)
    return view + strength * torch.randn(view.shape, generator=own, device=device)
