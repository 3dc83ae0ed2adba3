"""More references from few images: turned, mirrored, brighter and darker ones."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from skpatchcore._images._input import Images, image_contents

# The turns of AnomalyDINO's code (Damm et al., 2025), in degrees.
_ANGLES = (45, 90, 135, 180, 225, 270, 315)
# As far as the light of a fixed set-up drifts; a stop of exposure would be 0.5 and 2.
_GAINS = (0.8, 1.25)


class Transform(NamedTuple):
    """An image turned or mirrored about its centre, and made brighter.

    `matrix` leads from (row, column) about the centre of the new image to those of
    the given one. What comes from beyond the rim is mirrored at it.
    """

    matrix: NDArray  # (2, 2)
    gain: float = 1.0

    def __call__(self, image: NDArray) -> NDArray:
        """Return the new image (h, w, 3), of the same size, in [0, 1]."""
        if not np.array_equal(self.matrix, np.eye(2)):
            center = (np.array(image.shape[:2]) - 1) / 2
            options = {
                "offset": center - self.matrix @ center,
                "order": 1,
                "mode": "reflect",
            }
            channels = [
                affine_transform(channel, self.matrix, **options)
                for channel in np.moveaxis(image, -1, 0)
            ]
            image = np.stack(channels, axis=-1)
        return np.clip(image * np.float32(self.gain), 0, 1)

    def origin(
        self, rows: NDArray, columns: NDArray, shapes: NDArray, aspects: NDArray
    ) -> tuple[NDArray, NDArray]:
        """Return where patches of the new image come from in the given one.

        Positions are in grids of `shapes` (n, 2); `aspects` (n,) are heights of patches
        over their widths, in pixels of the images: those were turned, not the grids.
        """
        center = shapes.T / 2 - 0.5
        pitch = np.stack([aspects, np.ones_like(aspects)])
        turned = np.tensordot(
            self.matrix, (np.stack([rows, columns]) - center) * pitch, 1
        )
        found = np.rint(turned / pitch + center).astype(np.int64)
        found = _mirror(found, *shapes.T)
        return found[0], found[1]


def _mirror(places: NDArray, heights: NDArray, widths: NDArray) -> NDArray:
    """Return positions (2, ...) beyond a rim mirrored at it, as pixels are."""
    sizes = np.stack([heights, widths])
    within = places % (2 * sizes)
    return np.where(within < sizes, within, 2 * sizes - 1 - within)


def _turn(degrees: float) -> Transform:
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    # Right angles are exact: nothing is interpolated.
    return Transform(np.rint(matrix) if degrees % 90 == 0 else matrix)


#: What names of augmentations stand for.
AUGMENTATIONS: dict[str, list[Transform]] = {
    "rotate": [_turn(degrees) for degrees in _ANGLES],
    "flip": [Transform(np.diag(signs)) for signs in ((1.0, -1.0), (-1.0, 1.0))],
    "brightness": [Transform(np.eye(2), gain) for gain in _GAINS],
}


def find_transforms(augmentation) -> list[Transform | Callable]:
    """Return the transforms that the parameter `augmentation` asks for."""
    if augmentation is None:
        return []
    single = isinstance(augmentation, str) or callable(augmentation)
    transforms = []
    for asked in [augmentation] if single else augmentation:
        if callable(asked):
            transforms.append(asked)
        elif isinstance(asked, str) and asked in AUGMENTATIONS:
            transforms += AUGMENTATIONS[asked]
        else:
            raise ValueError(
                f"augmentation holds {asked!r}; expected a function or one of "
                f"{', '.join(AUGMENTATIONS)}."
            )
    return transforms


class Augmented(Sequence):
    """Images, then all of them through the first transform, and so on."""

    def __init__(self, images: Sequence[NDArray], transforms: Sequence[Callable]):
        self._images = images
        self._transforms = transforms

    def __len__(self) -> int:
        return len(self._images) * (1 + len(self._transforms))

    def __getitem__(self, index: int) -> NDArray:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        i_transform, i_image = divmod(index, len(self._images))
        image = self._images[i_image]
        if i_transform == 0:
            return image
        transform = self._transforms[i_transform - 1]
        name = f"what {transform!r:.60} made of {self._name(i_image)}"
        # A copy: functions may work in place.
        given = _apply(transform, image.copy(), name)
        try:
            # What mirrors an image may return a view with negative strides.
            made = np.array(given, dtype=np.float32, order="C")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is no array of numbers: {error}") from error
        if made.shape != image.shape:
            raise ValueError(
                f"{name} has shape {made.shape}; expected that of the image, "
                f"{image.shape}."
            )
        if not (made.min() >= 0 and made.max() <= 1):
            raise ValueError(f"{name} holds NaN or values outside [0, 1].")
        return made

    def contents(self, index: int) -> NDArray | bytes:
        """Return what tells an image from others: for given ones as without this."""
        if index < len(self._images):
            return image_contents(self._images, index)
        return self[index]

    def _name(self, i: int) -> str:
        return self._images.names[i] if isinstance(self._images, Images) else str(i)


def _apply(transform: Callable, image: NDArray, name: str):
    try:
        return transform(image)
    except Exception as error:
        raise ValueError(
            f"{name} could not be made: {type(error).__name__}: {error}"
        ) from error
