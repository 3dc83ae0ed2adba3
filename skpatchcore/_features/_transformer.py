"""The transformer from images to patch features."""

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from numbers import Integral
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from joblib import Memory
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
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
from skpatchcore._features._parameters import check_sizes, explicit_layer_weights
from skpatchcore._features._patch_grids import PatchGrids, collect_grids
from skpatchcore._features._projection import (
    MAX_PROJECTION_PATCHES,
    fit_projection,
    project,
    project_all,
)
from skpatchcore._features._rebuilding import check_unchanged, with_absolute_path
from skpatchcore._images import (
    Augmented,
    Images,
    Size,
    check_images,
    learn_cast,
    take_images,
    warn_if_mixed,
    warn_if_swapped,
)
from skpatchcore._utils import (
    MEMORY_CONSTRAINT,
    FrozenParams,
    HasMethods,
    Interval,
    StrOptions,
    check_cache,
    fit_context,
    normal_rows,
    unchanged_on_error,
)
from skpatchcore.datasets import check_new_images, refuse_masks


class PatchFeatureTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, FrozenParams, BaseEstimator
):
    """Turn images into patch features of a pretrained network.

    Each position of a feature map is a patch. Layer maps are averaged over the
    neighbourhood of each patch, resized to the grid of the first layer, weighted and
    concatenated (Roth et al., 2022, section 3.1). Use it on its own to extract features
    once for a grid search over :class:`PatchMemoryBank`, or to pass one vector per
    image (``output="mean"``) to any scikit-learn estimator.

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="wide_resnet50_2.tv_in1k"
        - The name of a timm model, convolutional or transformer.
        - "embedded" is a small network whose weights, learned from generated images,
          come with the package, so that nothing is downloaded.
        - "gabor" is a bank of Gabor filters without weights, with the layers "fine" and
          "coarse".
        - A module is copied before use. Images are normalised with the mean and
          standard deviation in its ``pretrained_cfg``, or those of ImageNet. It may
          take other images than RGB: their number of channels is its attribute
          ``in_chans``, or that of its first convolution.

    layers : sequence of str or int, default=("layer2", "layer3")
        Names of the modules to read, as in ``module.get_submodule``; or ints, which
        count timm's feature levels from 0: blocks of a vision transformer, stages of
        most other networks. Negative ints count from the last level. If all layers of
        a network given by name are ints, timm returns the maps itself, as with
        ``features_only=True`` and ``out_indices``. The forward pass stops after the
        last layer. Maps may have channels first or last; class and register tokens are
        dropped. Layers may have any stride. The patches are those of the first layer.

    weights : str, path-like or None, default=None
        Only for a `backbone` given by name. None loads timm's pretrained weights, from
        timm's cache or the internet, or those that come with the package if `backbone`
        is "embedded". A local file is loaded without access to the internet: a
        ``.safetensors`` file, or a torch state dict or checkpoint, complete or without
        the layers after the last one read. "random" draws weights with `random_state`.

    image_size : int, (int, int) or None, default=256
        Size in pixels to resize to, with antialiasing. An int is the short side, and
        the aspect ratio is kept; a pair is height and width; None keeps the size.
        Vision transformers resample their position embeddings. If the sides are not
        multiples of the patch size, the input of the network is resized to the nearest
        multiples. Some families (MLP-Mixer, CaiT, ...) accept images of only one size,
        and raise an error for others.

    crop_size : int, (int, int) or None, default=None
        Size in pixels of a central crop after resizing. None keeps the whole image.

    patch_size : int, default=3
        Side of the neighbourhood in positions of each layer's own grid, an odd number.
        Maps are padded with zeros, as in both published implementations.

    patch_stride : int, default=1
        Step between neighbourhoods, in positions of each layer's own grid.

    descriptor : {"centered", "concat"} or int, default="centered"
        - "concat" averages each neighbourhood and concatenates the layers, as anomalib
          does.
        - "centered" does the same, but counts the centre of the first layer's
          neighbourhoods twice, which makes maps sharper.
        - An int N pools to N features, as the authors' code does with N = 1024: each
          layer's flattened neighbourhood is pooled adaptively to N features, and the
          concatenation of the layers again.

    layer_weights : "auto", None or sequence of float, default="auto"
        Factor for each layer's features. A larger factor makes a layer count more in
        distances. "auto" learns the factors from the training patches: each layer is
        scaled to the total variance of the first layer, and then by the ratio of their
        effective ranks, limited to 1/2 to 1. None does not scale layers, as in the
        paper. "auto" is the same as None if `descriptor` is an int, and for "layer2"
        and "layer3" of the embedded backbone, which balances these layers itself.

    projection : int, transformer or None, default=None
        An int is the number of dimensions of a Gaussian random projection. A
        scikit-learn transformer such as :class:`~sklearn.decomposition.PCA` is cloned
        and fitted on the training patches, or on 100 000 of them, drawn evenly, if
        there are more.

    device : str, torch.device or None, default=None
        Where the network runs. None is the GPU if there is one, otherwise the CPU.

    precision : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Arithmetic of the network. "auto" is float16 if the device has matrix units for
        it (NVIDIA GPUs since Volta, processors with AMX for float16), otherwise
        float32; the AUROC on real classes differs by at most 0.001. "auto" never
        chooses "bfloat16", which changes the AUROC of hard classes by more. Features
        are always float32.

    engine : {"torch", "auto", "openvino", "onnxruntime"}, default="torch"
        What runs the network. "openvino" and "onnxruntime" may be faster on a CPU, and
        must be installed (``pip install 'skpatchcore[openvino]'`` or ``[onnx]``). They
        compile the network at the first image of each size, for up to four sizes; other
        sizes run in torch, with a warning. Maps differ from those of torch by at most
        1e-4 of the largest value in float32, which is checked with two probe images; a
        network for which they differ by more is an error. "auto" is the first of
        "openvino" and "onnxruntime" that is installed and keeps this limit, otherwise
        torch; also for a `backbone` that is a module, and on GPUs.

    batch_size : int, default=32
        Most images per forward pass. Batches are smaller if they would need more than
        128 MB on a CPU, or a quarter of the free memory on a GPU, at most 4 GB. It
        affects memory and speed; results differ only by rounding.

    memory : str, path-like, joblib.Memory or None, default=None
        Cache on disk for the layer maps of images. With it, an image passes the network
        once for all folds of a cross-validation, candidates of a search and methods,
        also in other processes and later runs. An image is identified by the contents
        of its file or its pixels, and by everything else that its maps depend on, such
        as the network's weights. See :class:`BoundedMemory`. It is not part of the
        model: a model file does not hold it.

    output : {"map", "flat", "mean"}, default="map"
        Shape of the result of `transform` for n images with h * w patches each: (n, h,
        w, d) for "map", (n, h * w * d) for "flat", and (n, d) for "mean", the mean over
        patches. "map" is always an array; the others may be data frames, see
        `set_output`.

    random_state : int, RandomState instance or None, default=None
        Seeds random weights and the random projection.

    verbose : int, default=0
        Show a progress bar over images if positive.

    Attributes
    ----------
    layer_weights_ : tuple of float
        The factor of each layer's features.

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
    A pickle does not hold a network given by name. The network is built again at first
    use, from its name and weights. A relative path in `weights` counts from the folder
    of the fit. If the weights have changed, a ValueError is raised; also if `backbone`
    is a module whose weights, buffers, settings or hooks were changed after the fit.

    Parameters that are set after `fit` change no answer until the next `fit`, except
    `memory`, `device`, `engine`, `batch_size` and `verbose`. If the file in `weights`
    was moved, set its new path: it is read if the network cannot be built with the path
    of the fit.

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
        "engine": [StrOptions({"torch", "auto", "openvino", "onnxruntime"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "memory": MEMORY_CONSTRAINT,
        "output": [StrOptions({"map", "flat", "mean"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _frozen_names = (
        "backbone",
        "layers",
        "weights",
        "image_size",
        "crop_size",
        "patch_size",
        "patch_stride",
        "descriptor",
        "layer_weights",
        "projection",
        "precision",
        "output",
        "random_state",
    )

    def __init__(
        self,
        backbone: str | nn.Module = "wide_resnet50_2.tv_in1k",
        layers: Sequence[str | int] = ("layer2", "layer3"),
        *,
        weights: str | os.PathLike | None = None,
        image_size: Size = 256,
        crop_size: Size = None,
        patch_size: int = 3,
        patch_stride: int = 1,
        descriptor: str | int = "centered",
        layer_weights: str | Sequence[float] | None = "auto",
        projection: Any = None,
        device: str | torch.device | None = None,
        precision: str = "auto",
        engine: str = "torch",
        batch_size: int = 32,
        memory: str | os.PathLike | Memory | None = None,
        output: str = "map",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
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
        self.engine = engine
        self.batch_size = batch_size
        self.memory = memory
        self.output = output
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: npt.ArrayLike | None = None) -> Self:
        """Build the network, learn layer weights and fit the projection.

        All images pass through the network if something is learned from them: for
        ``layer_weights="auto"``, or a `projection` that is a transformer. Otherwise
        only the first image passes, to count the features.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            Paths, encoded images (bytes or BytesIO with the contents of a file), PIL
            images, arrays of uint8, uint16 or float in [0, 1], or torch tensors (n, c,
            h, w). Colours must be RGB: OpenCV returns BGR.

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
            If a parameter, the weights or an image is not valid; the message says
            which. Also if paths in `X` look like masks of other images, such as
            ``0_mask.png`` of ``0.png``, or files in ``ground_truth``.

        Warns
        -----
        UserWarning
            If red and blue look swapped in a part of the images, and all of them pass
            through the network.
        """
        with unchanged_on_error(self):
            images, rows = self._check_training(X, y)
            grids = self._fit_extract(take_images(images, rows), whole=False)
            self._learn_cast(images, grids, len(rows))
            return self

    @fit_context(prefer_skip_nested_validation=True)
    def fit_transform(
        self, X: Any, y: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.float32]:
        """Fit, and return the features of the same images, which are extracted once.

        Parameters
        ----------
        X : sequence of images, or ndarray of shape (n, h, w) or (n, h, w, c)
            As for `fit`.

        y : array-like of shape (n,) or None, default=None
            As for `fit`. Features of images labelled -1 are also returned.

        Returns
        -------
        features : ndarray of float32
            As `transform` returns them.
        """
        with unchanged_on_error(self):
            images, rows = self._check_training(X, y)
            grids = self._fit_extract(images, rows)
            self._learn_cast(images, grids, len(images), rows)
            features = self._arrange(grids)
        # After a projection in place, they would keep the memory of all features.
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

        Warns
        -----
        UserWarning
            If half of the images or more look as if their red and blue were swapped. It
            compares with the training images, if all of them passed through the
            network: in `fit_transform`, as a pipeline calls it, or in a `fit` that
            learns something from them. Also if some look like masks of others.
        """
        check_is_fitted(self)
        images = self._validate_images(X, reset=False)
        with closing(self._iter_projected(images)) as batches:
            grids = collect_grids(batches, len(images))
        if hasattr(self, "_color_cast"):
            casts = [geometry.cast for geometry in grids.geometries]
            warn_if_swapped(images, casts, self._color_cast)
        return self._arrange(grids)

    @available_if(lambda self: self._fitted.output != "map")
    def get_feature_names_out(
        self, input_features: Any = None
    ) -> npt.NDArray[np.object_]:
        """Return a name for each column of ``output="flat"`` or ``"mean"``.

        Maps have no columns, so the method does not exist for ``output="map"``.

        Parameters
        ----------
        input_features : None
            Not used; images have no feature names.

        Returns
        -------
        names : ndarray of str
            The name of the class in lower case, followed by the index of the column.
        """
        return super().get_feature_names_out(input_features)

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose the container that `transform` and `fit_transform` return.

        It applies to ``output="flat"`` and ``"mean"``, which are tables. Maps have more
        than two dimensions and are always arrays, here and for
        ``sklearn.set_config(transform_output=...)``.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None, default=None
            Container; None leaves the choice unchanged.

        Returns
        -------
        self : PatchFeatureTransformer
            The same transformer.
        """
        if transform is not None and {self.output, self._fitted.output} != {"map"}:
            # scikit-learn's method does not exist while the fit's output is "map", but
            # the next fit may return tables.
            self._sklearn_output_config = {"transform": transform}
        return self

    @property
    def _n_features_out(self) -> int:
        flat = self._fitted.output == "flat"
        n_patches = int(np.prod(self.grid_shape_)) if flat else 1
        return n_patches * self.n_patch_features_

    @property
    def _fitted(self) -> Any:
        """The parameters of the fit as attributes; before a fit, those that are set."""
        # Pickles of earlier versions do not have those of the fit either.
        return vars(self).get("_frozen", self)

    def _validate_images(self, X: Any, *, reset: bool) -> Images:
        """Return the images as a sequence of arrays (h, w, c), decoded on access."""
        return check_images(X) if reset else check_new_images(X)

    def _check_training(self, X: Any, y: Any) -> tuple[Images, npt.NDArray[np.int64]]:
        """Return images, decoded on access, and the rows that something is learned of.

        Raises an error if some of these are masks of others.
        """
        images = self._validate_images(X, reset=True)
        rows = normal_rows(y, len(images))
        refuse_masks(images.take(rows), X)
        return images, rows

    def _learn_cast(
        self,
        images: Images,
        grids: PatchGrids,
        n_expected: int,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Keep the colour cast of the training images, if all of them were read."""
        self.__dict__.pop("_color_cast", None)
        if len(grids.geometries) == n_expected:
            casts = np.array([geometry.cast for geometry in grids.geometries])
            casts = casts if rows is None else casts[rows]
            warn_if_mixed(images, casts)
            self._color_cast = learn_cast(casts)

    def _fit_extract(
        self,
        images: Sequence[np.ndarray],
        rows: npt.NDArray[np.int64] | None = None,
        *,
        whole: bool = True,
    ) -> PatchGrids:
        """Fit on validated images and return their features.

        If `rows` are given, something is learned only from these images. If `whole` is
        False, only the features that something is learned from are needed.
        """
        check_sizes(self)
        # `_load` and `_iter_grids` use the parameters of this fit.
        self._freeze_params()
        weights = explicit_layer_weights(self.layer_weights, self.layers)
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
        # A transformer may keep the patches that it was fitted on, so they must not be
        # overwritten.
        patches = project_all(
            projection, grids.patches, in_place=isinstance(self.projection, Integral)
        )
        grids = grids._replace(patches=patches)
        self._seed, self._network = seed, network
        self._weights_at_fit = with_absolute_path(self.weights)
        self.layer_weights_ = weights
        self.projection_ = projection
        self.n_patch_features_ = grids.patches.shape[1]
        self.grid_shape_ = tuple(int(size) for size in shape)
        return grids

    def _learns_weights(self, network: Backbone) -> bool:
        asked_for = isinstance(self.layer_weights, str)
        return asked_for and isinstance(self.descriptor, str) and not network.balanced

    def _load(self, seed: int, weights: Any = None) -> Backbone:
        """Return the network; `weights` is another path to the file of the fit."""
        fitted = self._fitted
        return load_backbone(
            fitted.backbone,
            tuple(fitted.layers),
            weights=weights or fitted.weights,
            seed=seed,
            device=self.device,
            precision=fitted.precision,
            engine=self.engine,
        )

    def _fitted_network(self) -> Backbone:
        """Return the network; build it again if a pickle left it out."""
        if hasattr(self, "_network"):
            self._network = self._network.moved(self.device, self.engine)
            return self._network
        of_fit = self._fitted.weights
        # A relative path counts from the folder of the fit.
        given, absolute = vars(self).get("_weights_at_fit", (None, None))
        try:
            network = self._rebuild(absolute if of_fit == given else None)
        except (OSError, ValueError):
            if self.weights in (None, "random", of_fit):
                raise
            # The file was moved, or a model file left it out.
            network = self._rebuild(self.weights)
        self._network = network
        return network

    def _rebuild(self, weights: Any) -> Backbone:
        network = self._load(self._seed, weights)
        check_unchanged(self, network)
        return network

    def _iter_grids(
        self,
        images: Sequence[np.ndarray],
        network: Backbone,
        layer_weights: Sequence[float],
        n_channels: list[int] | None = None,
    ) -> Generator[tuple, None, None]:
        """Yield (indices, patch features (b, h, w, d), geometries) batch by batch.

        The numbers of features of the layers are stored in the list `n_channels`.
        """
        if isinstance(images, Images | Augmented):
            images = images.with_channels(network.n_channels)
        limit = BatchLimit(self.batch_size, network.device, len(images))
        batches = iter_layer_maps(
            images,
            network,
            image_size=self._fitted.image_size,
            crop_size=self._fitted.crop_size,
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
                # Release the memory of a batch before the next one.
                del maps
                yield indices, features, geometries
                del features
                bar.update(len(indices))

    @torch.inference_mode()
    def _describe(
        self, maps: Sequence[torch.Tensor], layer_weights: Sequence[float]
    ) -> torch.Tensor:
        features = describe(
            maps,
            patch_size=self._fitted.patch_size,
            patch_stride=self._fitted.patch_stride,
            descriptor=self._fitted.descriptor,
            layer_weights=layer_weights,
        )
        return features.permute(0, 2, 3, 1)

    def _iter_projected(
        self, images: Sequence[np.ndarray]
    ) -> Generator[tuple[list[int], np.ndarray, list], None, None]:
        """Yield the same as `_iter_grids`, as arrays and after the projection."""
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
        output = self._fitted.output
        if output == "mean":
            per_image = np.split(grids.patches, grids.offsets[1:-1])
            return np.stack([patches.mean(axis=0) for patches in per_image])
        if len(np.unique(grids.shapes, axis=0)) > 1:
            raise ValueError(
                "The images have patch grids of different shapes, "
                f"{np.unique(grids.shapes, axis=0).tolist()}. Set image_size=(height, "
                "width) or crop_size, or use output='mean'."
            )
        maps = grids.patches.reshape(len(grids.shapes), *grids.shapes[0], -1)
        return maps.reshape(len(maps), -1) if output == "flat" else maps

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the network, which `_load` builds again from the parameters."""
        state = dict(super().__getstate__())
        network = state.pop("_network", None)
        if network is not None:
            state["_network_key"] = network.state_key
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
