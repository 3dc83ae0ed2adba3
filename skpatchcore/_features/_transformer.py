"""Patch features: layer maps of a backbone, aggregated, aligned and concatenated."""

from collections.abc import Generator, Sequence
from contextlib import closing
from numbers import Integral
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn
from tqdm.auto import tqdm

from skpatchcore._backbones import Backbone, load_backbone
from skpatchcore._features._batch_limit import BatchLimit
from skpatchcore._features._descriptors import (
    MAX_BALANCE_PATCHES,
    balance_layers,
    describe,
)
from skpatchcore._features._extraction import iter_layer_maps
from skpatchcore._features._patch_grids import PatchGrids, collect_grids
from skpatchcore._features._projection import (
    MAX_PROJECTION_PATCHES,
    fit_projection,
    project,
    project_all,
)
from skpatchcore._images import check_images, take_images
from skpatchcore._utils import (
    MEMORY_CONSTRAINT,
    HasMethods,
    Interval,
    StrOptions,
    check_cache,
    fit_context,
    normal_rows,
    unchanged_on_error,
)


class PatchFeatureTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Turn images into patch features of a pretrained network.

    Each position of a feature map is a patch. Layer maps are averaged over the
    neighbourhood of every patch, brought to the grid of the first layer, weighted and
    concatenated (Roth et al., 2022, section 3.1). Use it on its own to extract features
    once and search a grid over :class:`PatchMemoryBank`, or to hand one vector per
    image (``output="mean"``) to any scikit-learn estimator.

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="wide_resnet50_2.tv_in1k"
        A model name of timm, convolutional or transformer; "embedded" for a small
        network whose weights, learned from procedural images, come with the package,
        so that nothing is downloaded; "gabor" for a bank of Gabor filters that needs no
        weights, with the layers "fine" and "coarse"; or a network. A network is copied
        before use; its mean and standard deviation are taken from its
        ``pretrained_cfg`` if it has one, else those of ImageNet.

    layers : sequence of str or int, default=("layer2", "layer3")
        Names of the modules to read, as in ``module.get_submodule``; or ints, which
        count timm's feature levels (``out_indices``) from 0: blocks of a vision
        transformer, stages of others; negative ones count from the end. The forward
        pass stops after the last of them. Maps may have channels first or last; of
        tokens, class and register tokens are left out. Layers may have any strides;
        patches are those of the first.

    weights : str, path-like or None, default=None
        None takes timm's pretrained weights, from timm's cache or the network, or those
        that come with the package if `backbone` is "embedded". A local file,
        ``.safetensors`` or a torch state dict, whole or without the layers behind the
        last one read, is loaded without any network access. "random" is a network
        seeded by `random_state`. Goes with a `backbone` given by name.

    image_size : int, (int, int) or None, default=256
        Size in pixels to resize to, with antialiasing: an int is the short side, the
        aspect ratio is kept; a pair is height and width; None keeps the size. Vision
        transformers resample their position embeddings; where sides are not multiples
        of their patches, the network's input is resized to the nearest that are. Some
        families (MLP-Mixer, CaiT, ...) take images of one size only, and say so.

    crop_size : int, (int, int) or None, default=None
        Size in pixels of a central crop after resizing. None takes the whole image.

    patch_size : int, default=3
        Side of the neighbourhood, in positions of each layer's own grid; odd. Beyond
        the border zeros are counted, as in both published implementations.

    patch_stride : int, default=1
        Step between neighbourhoods, in positions of each layer's own grid.

    descriptor : {"centered", "concat"} or int, default="centered"
        - "concat" takes the mean over each neighbourhood and concatenates the layers,
          as anomalib does.
        - "centered" is the same, but the centre of the first layer's neighbourhoods
          counts twice, which makes maps sharper.
        - An int is the length of the descriptor of the authors' code (there 1024):
          every neighbourhood, flattened, is pooled adaptively to that length for each
          layer, and the concatenation again.

    layer_weights : "auto", None or sequence of float, default="auto"
        Factor for each layer's block of the concatenation; the larger, the more a layer
        counts in distances. "auto" learns them from the training patches: every layer
        is brought to the same total variance as the first, then scaled by the ratio of
        their effective ranks, within 1/2 and 1. None leaves layers as they are, as
        published; so does "auto" where `descriptor` is an int, and with "layer2" and
        "layer3" of the embedded backbone, which balances these two itself.

    projection : int, transformer or None, default=None
        An int projects patch features to this many dimensions by a Gaussian random
        projection; a scikit-learn transformer such as
        :class:`~sklearn.decomposition.PCA` is cloned and fitted on the training patches
        (on 100 000 of them, drawn evenly, if there are more).

    device : str, torch.device or None, default=None
        Where the network runs; None is the GPU if there is one, else the CPU.

    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Arithmetic of the network. "auto" is float16 where the device has matrix units
        for it, a GPU since Volta or a processor with AMX for float16, and float32
        elsewhere: AUROC on real classes is the same to 0.001. "bfloat16" is not chosen
        by itself, as it moves the AUROC of hard classes by more. Features are float32
        in any case.

    batch_size : int, default=32
        Most images per forward pass. Fewer go at once where they take more memory
        than is good: on a CPU 128 MB, on a GPU a quarter of what is
        free, up to 4 GB. It sets memory and speed; results differ by rounding alone.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache on disk for the layer maps of images: an image passes the network once,
        for all folds of a cross-validation, candidates of a search and methods, also in
        other processes and later runs. An image is known by
        the contents of its file or its pixels, together with everything its maps depend
        on, such as the network's weights. See :class:`BoundedMemory`.

    output : {"map", "flat", "mean"}, default="map"
        Shape of what `transform` gives for n images with a grid of h times w patches:
        "map" (n, h, w, d), "flat" (n, h * w * d), "mean" (n, d), the mean over patches.

    random_state : int, RandomState instance or None, default=None
        Seeds random weights and the random projection.

    verbose : int, default=0
        Show a progress bar over images if positive.

    Attributes
    ----------
    layer_weights_ : tuple of float
        The factor of each layer's block.

    projection_ : transformer or None
        The fitted projection.

    n_patch_features_ : int
        Length d of a patch's feature vector.

    grid_shape_ : tuple of int
        Height and width of the patch grid of the first training image.

    See Also
    --------
    PatchCoreDetector : Composes this with a memory bank.
    PatchMemoryBank : Scores patch features.

    Notes
    -----
    A pickle does not hold a network given by name; it is built again, from its name and
    weights, at first use. If its weights are then others than in the fit, that is a
    ValueError; so is a `backbone` given as a module whose weights, buffers, settings or
    hooks were changed after the fit.

    References
    ----------
    Roth, K., Pemula, L., Zepeda, J., Schölkopf, B., Brox, T., Gehler, P. "Towards Total
    Recall in Industrial Anomaly Detection", CVPR 2022, arXiv:2106.08265.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PatchFeatureTransformer
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    >>> features = PatchFeatureTransformer(
    ...     "resnet18", weights="random", image_size=64, random_state=0
    ... )
    >>> features.fit_transform(images).shape
    (2, 8, 8, 384)
    """

    _parameter_constraints = {
        "backbone": [str, nn.Module],
        "layers": ["array-like"],
        "weights": [str, HasMethods("__fspath__"), None],
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "crop_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "patch_size": [Interval(Integral, 1, None, closed="left")],
        "patch_stride": [Interval(Integral, 1, None, closed="left")],
        "descriptor": [
            StrOptions({"centered", "concat"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "layer_weights": [StrOptions({"auto"}), "array-like", None],
        "projection": [
            Interval(Integral, 1, None, closed="left"),
            HasMethods(["fit", "transform"]),
            None,
        ],
        "device": [str, torch.device, None],
        "precision": [StrOptions({"auto", "float32", "bfloat16", "float16"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "memory": MEMORY_CONSTRAINT,
        "output": [StrOptions({"map", "flat", "mean"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        backbone="wide_resnet50_2.tv_in1k",
        layers=("layer2", "layer3"),
        *,
        weights=None,
        image_size=256,
        crop_size=None,
        patch_size=3,
        patch_stride=1,
        descriptor="centered",
        layer_weights="auto",
        projection=None,
        device=None,
        precision="auto",
        batch_size=32,
        memory=None,
        output="map",
        random_state=None,
        verbose=0,
    ):
        self.backbone = backbone
        self.layers = layers
        self.weights = weights
        self.image_size = image_size
        self.crop_size = crop_size
        self.patch_size = patch_size
        self.patch_stride = patch_stride
        self.descriptor = descriptor
        self.layer_weights = layer_weights
        self.projection = projection
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.memory = memory
        self.output = output
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: npt.ArrayLike | None = None) -> Self:
        """Build the network, learn layer weights and fit the projection.

        All images are passed through the network if there is something to learn from
        them, ``layer_weights="auto"`` or a `projection` that is a transformer;
        otherwise only the first, for the number of features.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            Paths, PIL images, arrays of uint8, uint16 or float in [0, 1], or torch
            tensors (n, c, h, w).

        y : array-like of shape (n,) or None, default=None
            +1 for normal and -1 for anomalous images, from which nothing is learned.
            Before a classifier, whose labels are others, use a fitted transformer in a
            :class:`~sklearn.frozen.FrozenEstimator`.

        Returns
        -------
        self : PatchFeatureTransformer
            Fitted transformer.

        Raises
        ------
        TypeError, ValueError, FileNotFoundError
            If a parameter, the weights or an image is not as described; the message
            names the culprit.
        """
        with unchanged_on_error(self):
            images = self._validate_images(X, reset=True)
            rows = normal_rows(y, len(images))
            self._fit_extract(take_images(images, rows), whole=False)
            return self

    @fit_context(prefer_skip_nested_validation=True)
    def fit_transform(
        self, X: Any, y: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.float32]:
        """Fit, and return the features of the same images, extracted only once.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        y : array-like of shape (n,) or None, default=None
            As for `fit`. Features of images labelled -1 are returned, too.

        Returns
        -------
        features : ndarray of float32
            As `transform` gives them.
        """
        images = self._validate_images(X, reset=True)
        grids = self._fit_extract(images, normal_rows(y, len(images)))
        features = self._arrange(grids)
        # Projected in place, they would keep the memory of what was projected.
        whole = features.base is None or features.base.size == features.size
        return features if whole else features.copy()

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the patch features of images.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        Returns
        -------
        features : ndarray of float32
            (n, h, w, d) for ``output="map"``, (n, h * w * d) for "flat", (n, d) for
            "mean".

        Raises
        ------
        ValueError
            If the images have grids of different shapes and `output` is not "mean".
        """
        check_is_fitted(self)
        images = self._validate_images(X, reset=False)
        with closing(self._iter_projected(images)) as batches:
            grids = collect_grids(batches, len(images))
        return self._arrange(grids)

    @property
    def _n_features_out(self) -> int:
        n_patches = int(np.prod(self.grid_shape_)) if self.output == "flat" else 1
        return n_patches * self.n_patch_features_

    def _validate_images(self, X, *, reset: bool) -> Sequence[np.ndarray]:
        """Return the images as a sequence of arrays (h, w, c), decoded on access."""
        return check_images(X)

    def _fit_extract(self, images, rows=None, *, whole: bool = True) -> PatchGrids:
        """Fit on validated images and return their features.

        With `rows`, nothing is learned from other images than these. Without `whole`,
        features are not needed beyond those that something is learned from.
        """
        check_sizes(self)
        weights = _explicit_layer_weights(self.layer_weights, self.layers)
        random_state = check_random_state(self.random_state)
        seed = int(random_state.randint(np.iinfo(np.int32).max))
        network = self._load(seed)
        learns_weights = self._learns_weights(network)
        if not (whole or learns_weights or hasattr(self.projection, "fit")):
            images = take_images(images, [0])
        n_channels: list[int] = []
        batches = self._iter_grids(images, network, weights, n_channels)
        with closing(batches):
            grids = collect_grids(batches, len(images))
        if learns_weights:
            weights = balance_layers(
                grids.sample(rows, MAX_BALANCE_PATCHES), n_channels
            )
            scale = np.repeat(weights, n_channels).astype(np.float32)
            np.multiply(grids.patches, scale, out=grids.patches)
        sample = grids.sample(rows, MAX_PROJECTION_PATCHES)
        projection = fit_projection(self.projection, sample, random_state)
        del sample
        shape = grids.shapes[0 if rows is None else rows[0]]
        # What a transformer was fitted on may be a part of it, and must be left alone.
        patches = project_all(
            projection, grids.patches, in_place=isinstance(self.projection, Integral)
        )
        grids = grids._replace(patches=patches)
        # Only now, so that a fit that fails leaves an earlier one as it was.
        self._seed, self._network = seed, network
        self.layer_weights_ = weights
        self.projection_ = projection
        self.n_patch_features_ = grids.patches.shape[1]
        self.grid_shape_ = tuple(int(size) for size in shape)
        return grids

    def _learns_weights(self, network: Backbone) -> bool:
        asked_for = isinstance(self.layer_weights, str)
        return asked_for and isinstance(self.descriptor, str) and not network.balanced

    def _load(self, seed: int) -> Backbone:
        return load_backbone(
            self.backbone,
            tuple(self.layers),
            weights=self.weights,
            seed=seed,
            device=self.device,
            precision=self.precision,
        )

    def _fitted_network(self) -> Backbone:
        """Return the network, built again where a pickle left it out."""
        if not hasattr(self, "_network"):
            network = self._load(self._seed)
            _check_unchanged(self, network)
            self._network = network
        return self._network

    def _iter_grids(
        self, images, network: Backbone, layer_weights, n_channels: list | None = None
    ) -> Generator[tuple, None, None]:
        """Yield (indices, patch features (b, h, w, d), geometries) batch by batch.

        The widths of the layers' blocks are put into the list `n_channels`.
        """
        limit = BatchLimit(self.batch_size, network.device, len(images))
        batches = iter_layer_maps(
            images,
            network,
            image_size=self.image_size,
            crop_size=self.crop_size,
            limit=limit,
            cache=check_cache(self.memory),
        )
        bar = tqdm(total=len(images), desc="images", disable=not self.verbose)
        with bar, closing(batches):
            for indices, maps, geometries in batches:
                if n_channels is not None:
                    n_channels[:] = [layer.shape[1] for layer in maps]
                size = geometries[0].crop
                with limit.measure("descriptor", size, len(indices)):
                    features = self._describe(maps, layer_weights)
                # What a batch takes is given back before the next one.
                del maps
                yield indices, features, geometries
                del features
                bar.update(len(indices))

    @torch.inference_mode()
    def _describe(self, maps, layer_weights) -> torch.Tensor:
        features = describe(
            maps,
            patch_size=self.patch_size,
            patch_stride=self.patch_stride,
            descriptor=self.descriptor,
            layer_weights=layer_weights,
        )
        return features.permute(0, 2, 3, 1)

    def _iter_projected(
        self, images
    ) -> Generator[tuple[list[int], np.ndarray, list], None, None]:
        """Yield what `_iter_grids` does, as arrays, through the fitted projection."""
        batches = self._iter_grids(images, self._fitted_network(), self.layer_weights_)
        with closing(batches):
            for indices, features, geometries in batches:
                features = features.cpu().numpy()
                if self.projection_ is not None:
                    flat = features.reshape(-1, features.shape[-1])
                    flat = project(self.projection_, flat)
                    features = flat.reshape(*features.shape[:-1], -1)
                yield indices, features, geometries

    def _arrange(self, grids: PatchGrids) -> np.ndarray:
        if self.output == "mean":
            per_image = np.split(grids.patches, grids.offsets[1:-1])
            return np.stack([patches.mean(axis=0) for patches in per_image])
        if len(np.unique(grids.shapes, axis=0)) > 1:
            raise ValueError(
                "The images have patch grids of different shapes, "
                f"{np.unique(grids.shapes, axis=0).tolist()}; give image_size=(height, "
                "width) or crop_size, or use output='mean'."
            )
        maps = grids.patches.reshape(len(grids.shapes), *grids.shapes[0], -1)
        return maps.reshape(len(maps), -1) if self.output == "flat" else maps

    def __getstate__(self):
        """Leave the network out: `_load` builds it again from the parameters."""
        state = dict(super().__getstate__())
        network = state.pop("_network", None)
        if network is not None:
            state["_network_key"] = network.state_key
        return state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def check_sizes(params) -> None:
    if params.patch_size % 2 == 0:
        raise ValueError(f"patch_size must be odd, got {params.patch_size}.")
    if len(params.layers) == 0 or isinstance(params.layers, str):
        raise ValueError(
            "layers must be a non-empty sequence of names or ints, got "
            f"{params.layers!r}."
        )
    for layer in params.layers:
        if not isinstance(layer, str | Integral) or isinstance(layer, bool):
            raise ValueError(f"layers must hold names or ints, got {layer!r}.")
    for name in ("image_size", "crop_size"):
        value = getattr(params, name)
        if isinstance(value, (tuple, list)) and (
            len(value) != 2
            or not all(isinstance(v, Integral) and int(v) >= 1 for v in value)
        ):
            raise ValueError(
                f"{name} must be an int or (height, width) of positive ints, got "
                f"{value!r}."
            )


def _check_unchanged(features, network: Backbone) -> None:
    """Raise a ValueError if a network built for a pickle is not that of the fit."""
    # Pickles of earlier versions have no key.
    expected = vars(features).get("_network_key")
    if expected is None or network.state_key == expected:
        return
    if network.own:
        name, reason = type(features.backbone).__name__, "state (weights, hooks, ...)"
        remedy = "Use the module as it was in the fit"
    else:
        name, reason = features.backbone, "weights"
        remedy = (
            "Restore the weights of the fit (random and pretrained ones may change "
            "with the versions of torch and timm)"
        )
    raise ValueError(
        f"The network {name!r} has other {reason} than when this "
        f"{type(features).__name__} was fitted and pickled or copied. {remedy}, or "
        "fit again."
    )


def _explicit_layer_weights(layer_weights, layers) -> tuple[float, ...]:
    """Return the given weights, or ones where weights are learned or equal."""
    if layer_weights is None or isinstance(layer_weights, str):
        return (1.0,) * len(layers)
    try:
        values = tuple(float(value) for value in layer_weights)
    except (TypeError, ValueError):
        values = ()
    if len(values) != len(layers) or not all(0 < v < np.inf for v in values):
        raise ValueError(
            f"layer_weights must hold a positive number for each of the {len(layers)} "
            f"layers, got {layer_weights!r}."
        )
    return values
