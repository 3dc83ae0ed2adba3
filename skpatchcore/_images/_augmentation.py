"""Transforms that add reference images: rotations, reflections, other brightness."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from skpatchcore._images._input import Images, image_contents
from skpatchcore._images._pixels import Notices

# The rotations in the code of AnomalyDINO (Damm et al., 2025), in degrees.
_ANGLES = (45, 90, 135, 180, 225, 270, 315)
# A typical drift of the light in a fixed setup. One stop of exposure would be 0.5 or 2.
_GAINS = (0.8, 1.25)


class Transform(NamedTuple):
    """Rotation or reflection of an image about its centre, and a change of brightness.

    `matrix` maps (row, column), relative to the centre, from the new image to the given
    one. Pixels from outside the given image are mirrored at its border.
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

        Positions are in grids of `shapes` (n, 2). `aspects` (n,) are height / width of
        the patches in pixels of the images, because images were rotated, not grids.
        """
        center = shapes.T / 2 - 0.5
        pitch = np.stack([aspects, np.ones_like(aspects)])
        turned = np.tensordot(
            self.matrix, (np.stack([rows, columns]) - center) * pitch, 1
        )
        found = np.rint(turned / pitch + center).astype(np.int64)
        found = _mirror(found, *shapes.T)
        return found[0], found[1]


def _mirror(positions: NDArray, heights: NDArray, widths: NDArray) -> NDArray:
    """Mirror positions (2, ...) outside the grid at its border, as for pixels."""
    sizes = np.stack([heights, widths])
    within = positions % (2 * sizes)
    return np.where(within < sizes, within, 2 * sizes - 1 - within)


def _rotation(degrees: float) -> Transform:
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    # Multiples of 90 degrees are exact, so that nothing is interpolated.
    return Transform(np.rint(matrix) if degrees % 90 == 0 else matrix)


#: A transform: an image (h, w, 3) to one of the same size.
Function = Transform | Callable[[NDArray], Any]

#: The transforms that each name of an augmentation adds.
AUGMENTATIONS: dict[str, list[Transform]] = {
    "rotate": [_rotation(degrees) for degrees in _ANGLES],
    "flip": [Transform(np.diag(signs)) for signs in ((1.0, -1.0), (-1.0, 1.0))],
    "brightness": [Transform(np.eye(2), gain) for gain in _GAINS],
}


def find_transforms(augmentation: Any) -> list[Function]:
    """Return the transforms for the parameter `augmentation`.

    Raises
    ------
    ValueError
        If an entry is neither callable nor a known name.
    """
    if augmentation is None:
        return []
    single = isinstance(augmentation, str) or callable(augmentation)
    transforms: list[Function] = []
    for entry in [augmentation] if single else augmentation:
        if callable(entry):
            transforms.append(entry)
        elif isinstance(entry, str) and entry in AUGMENTATIONS:
            transforms += AUGMENTATIONS[entry]
        else:
            raise ValueError(
                f"augmentation contains {entry!r}; expected a function or one of "
                f"{', '.join(AUGMENTATIONS)}."
            )
    return transforms


class Augmented(Sequence[NDArray]):
    """The given images, followed by all of them after each transform."""

    def __init__(
        self,
        images: Sequence[NDArray],
        transforms: Sequence[Function],
    ):
        self._images = images
        self._transforms = transforms
        self.notices = images.notices if isinstance(images, Images) else Notices()

    def __len__(self) -> int:
        return len(self._images) * (1 + len(self._transforms))

    # Slices are not supported: they would run the transforms of many images.
    def __getitem__(self, index: int) -> NDArray:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        i_transform, i_image = divmod(index, len(self._images))
        image = self._images[i_image]
        if i_transform == 0:
            return image
        transform = self._transforms[i_transform - 1]
        name = f"{transform!r:.60} of {self._name(i_image)}"
        # A copy, because a function may work in place.
        returned = _apply(transform, image.copy(), name)
        try:
            # Copied as well: a reflected image may be a view with negative strides.
            augmented = np.array(returned, dtype=np.float32, order="C")
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The augmentation {name} did not return an array of numbers: {error}"
            ) from error
        if augmented.shape != image.shape:
            raise ValueError(
                f"The augmentation {name} has shape {augmented.shape}; expected that "
                f"of the image, {image.shape}."
            )
        if not (augmented.min() >= 0 and augmented.max() <= 1):
            raise ValueError(
                f"The augmentation {name} contains NaN or values outside [0, 1]; clip "
                "them in the function."
            )
        return augmented

    def with_channels(self, n: int) -> "Augmented":
        """Return the same images with `n` channels, as a network takes them."""
        if not isinstance(self._images, Images):
            return self
        return Augmented(self._images.with_channels(n), self._transforms)

    def contents(self, index: int) -> NDArray | bytes:
        """Return the bytes or pixels that identify an image, as `image_contents`."""
        if index < len(self._images):
            return image_contents(self._images, index)
        return self[index]

    def _name(self, i: int) -> str:
        return (
            self._images.names[i] if isinstance(self._images, Images) else f"image {i}"
        )


def _apply(transform: Function, image: NDArray, name: str) -> Any:
    try:
        return transform(image)
    except Exception as error:
        raise ValueError(
            f"The augmentation {name} failed: {type(error).__name__}: {error}"
        ) from error
