"""Generate a data set of surfaces with and without defects."""

from numbers import Integral

import numpy as np
from numpy.random import RandomState
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from skpatchcore.datasets._defects import DEFECTS, paint_defect
from skpatchcore.datasets._listing import make_bunch
from skpatchcore.datasets._textures import TEXTURES, render_texture

_DESCR = """\
Procedural pictures of a {texture} surface, {size} x {size} pixels, from
skpatchcore.datasets.make_surface_defects: {n_train} good ones to train with, {n_good}
good and {n_defective} defective ones ({defects}) to test with.
"""


@validate_params(
    {
        "n_train": [Interval(Integral, 1, None, closed="left")],
        "n_test_good": [Interval(Integral, 0, None, closed="left")],
        "n_test_defective": [Interval(Integral, 0, None, closed="left")],
        "texture": [StrOptions(set(TEXTURES))],
        "defects": ["array-like", None],
        "image_size": [Interval(Integral, 32, None, closed="left")],
        "random_state": ["random_state"],
        "return_X_y": ["boolean"],
    },
    prefer_skip_nested_validation=True,
)
def make_surface_defects(
    n_train=40,
    n_test_good=10,
    n_test_defective=20,
    *,
    texture="brushed",
    defects=None,
    image_size=128,
    random_state=None,
    return_X_y=False,
):
    """Generate pictures of an industrial surface, some of them with a defect.

    For examples and tests, where no data are at hand: colour pictures of one surface
    each time at another spot, in slightly different light and with sensor noise, as a
    line camera would take them. Some defects are plain, others small and faint. With
    a plain nearest-neighbour detector on pretrained features, ``"brushed"`` and
    ``"wood"`` are easy, ``"cast"`` and ``"knurled"`` harder, and ``"brick"`` and
    ``"woven"``, which have the coarsest patterns, the hardest.

    Parameters
    ----------
    n_train : int, default=40
        Number of training pictures, all good.
    n_test_good : int, default=10
        Number of good test pictures.
    n_test_defective : int, default=20
        Number of test pictures with one defect each, as many of each kind as of the
        others, or one more.
    texture : {"brick", "brushed", "cast", "knurled", "wood", "woven"}, \
default="brushed"
        The surface: bricks, brushed steel, cast iron, knurled brass, planed wood or
        woven fabric.
    defects : sequence of str, default=None
        Kinds of defects, out of "crack", "dent", "discoloration", "foreign" (a scrap of
        tape), "scratch", "spot", "stain" and "wear" (the texture is gone). If None, all.
    image_size : int, default=128
        Height and width of the pictures in pixels, at least 32. Larger pictures show
        the same section of the surface in more detail.
    random_state : int, RandomState instance or None, default=None
        Determines the pictures; pass an int for the same ones, to the byte, at each
        call. The training pictures do not depend on the number of test pictures.
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        Dictionary-like, sorted by split and kind, with:

        data : ndarray of shape (n_pictures, image_size, image_size, 3), dtype uint8
            The pictures, RGB.
        target : ndarray of shape (n_pictures,), dtype int64
            +1 for normal and -1 for anomalous pictures.
        masks : ndarray of shape (n_pictures, image_size, image_size), dtype bool
            True where a defect has changed the picture; all else is as it would be
            without.
        defect_types : ndarray of str, shape (n_pictures,), dtype object
            ``"good"``, or the kind of defect.
        split : ndarray of str, shape (n_pictures,), dtype object
            ``"train"`` or ``"test"``.
        cv : list of one (train_indices, test_indices)
            The split, for ``cross_validate(cv=...)``; only if there are test pictures.
        DESCR : str
            What was generated.

    (data, target) : tuple if ``return_X_y=True``
        The two arrays described above.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or `defects` is empty or has an unknown name.

    See Also
    --------
    load_mvtec_ad : Load pictures of real parts with real defects.
    load_image_folder : Load your own pictures.

    Examples
    --------
    >>> from skpatchcore.datasets import make_surface_defects
    >>> wood = make_surface_defects(
    ...     n_train=6, n_test_good=2, n_test_defective=3, texture="wood",
    ...     defects=["scratch", "stain"], image_size=64, random_state=0,
    ... )
    >>> wood.data.shape, wood.data.dtype
    ((11, 64, 64, 3), dtype('uint8'))
    >>> wood.defect_types[wood.split == "test"].tolist()
    ['good', 'good', 'scratch', 'scratch', 'stain']
    >>> wood.masks.any(axis=(1, 2)).astype(int)
    array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1])
    """
    names = _check_defects(defects)
    defective = [names[i % len(names)] for i in range(n_test_defective)]
    kinds = ["good"] * n_train + sorted(["good"] * n_test_good + defective)
    seeds = check_random_state(random_state).randint(2**31 - 1, size=len(kinds))
    shots = [
        _take_picture(texture, kind, image_size, RandomState(seed))
        for kind, seed in zip(kinds, seeds, strict=True)
    ]
    pictures, masks = zip(*shots, strict=True)
    bunch = make_bunch(
        np.stack(pictures),
        np.stack(masks),
        defect_types=kinds,
        split=["train"] * n_train + ["test"] * (len(kinds) - n_train),
        descr=_DESCR.format(
            texture=texture,
            size=image_size,
            n_train=n_train,
            n_good=n_test_good,
            n_defective=n_test_defective,
            defects=", ".join(names),
        ),
        with_cv=True,
    )
    return (bunch.data, bunch.target) if return_X_y else bunch


def expose(surface: np.ndarray, rng: RandomState) -> np.ndarray:
    """Take a picture (h, w, 3), uint8, of a surface in uneven light, with sensor noise."""
    height, width = surface.shape[:2]
    v, u = np.mgrid[:height, :width] / min(height, width) - 0.5
    gain, slope_u, slope_v = rng.uniform(-0.06, 0.06, size=3)
    light = 1 + gain + slope_u * u + slope_v * v
    noise = 0.01 * rng.standard_normal(surface.shape)
    picture = surface * light[..., np.newaxis] + noise
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def _take_picture(texture: str, kind: str, size: int, rng: RandomState):
    """Return a picture and its mask."""
    surface, mask = render_texture(texture, size, rng), np.zeros((size, size), bool)
    if kind != "good":
        surface, mask = paint_defect(surface, kind, rng)
    return expose(surface, rng), mask


def _check_defects(defects) -> list[str]:
    names = list(DEFECTS) if defects is None else list(defects)
    unknown = [name for name in names if name not in DEFECTS]
    if unknown or not names:
        raise ValueError(
            f"defects={defects!r}; expected one or more of {', '.join(DEFECTS)}."
        )
    return names
