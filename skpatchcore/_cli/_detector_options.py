"""Options for the parameters of a detector: its network, its coreset and its scores."""

import click
from click.core import ParameterSource

from skpatchcore._cli._options import (
    device_option,
    option,
    option_group,
    random_state_option,
)
from skpatchcore._cli._types import (
    CommaSeparated,
    Fraction,
    Integer,
    KeywordOr,
    Number,
    Size,
)

_POSITIVE = Integer(min=1)
_AUGMENTATION = click.Choice(["rotate", "flip", "brightness"])


def _choose_layers(
    ctx: click.Context, param: click.Parameter, layers: tuple[str, ...]
) -> tuple[str | int, ...]:
    """Return the given layers, or the default layers of the backbone."""
    # click processes defaults last and in order of declaration: the backbone is known.
    source = ctx.get_parameter_source(param.name or "")
    given = source is not ParameterSource.DEFAULT
    if given or ctx.params["backbone"] != "gabor":
        return tuple(int(name) if _is_int(name) else name for name in layers)
    return ("fine", "coarse")


def _is_int(text: str) -> bool:
    return text.lstrip("-").isdecimal()


detector_options = option_group(
    option(
        "--backbone",
        default="wide_resnet50_2.tv_in1k",
        help="Network: a timm model, 'embedded' (part of this package), or 'gabor' "
        "(has no weights).",
    ),
    option(
        "--weights",
        metavar="FILE|random|none",
        type=KeywordOr(click.STRING, "none"),
        default="none",
        help="Path to a weights file, or 'random'; none: the network's pretrained "
        "weights (timm downloads its own once).",
    ),
    option(
        "--layers",
        metavar="A,B",
        type=CommaSeparated(),
        default="layer2,layer3",
        callback=_choose_layers,
        help="Layers of the network to take features from. For gabor, the default is "
        "fine,coarse.",
    ),
    option(
        "--layer-weights",
        metavar="X,Y|auto|none",
        type=KeywordOr(CommaSeparated(click.FLOAT), "auto", "none"),
        default="auto",
        help="Weight of each layer; none: equal weights.",
    ),
    option(
        "--image-size",
        metavar="N|H,W|none",
        type=KeywordOr(Size(), "none"),
        default="256",
        help="Resize images to this shorter side, or this height and width, in pixels.",
    ),
    option(
        "--crop-size",
        metavar="N|H,W|none",
        type=KeywordOr(Size(), "none"),
        default="none",
        help="Crop the centre to this size after resizing.",
    ),
    option(
        "--patch-size",
        type=_POSITIVE,
        metavar="N",
        default=3,
        help="Side length of the neighbourhood that each patch averages; odd.",
    ),
    option(
        "--patch-stride",
        type=_POSITIVE,
        metavar="N",
        default=1,
        help="Step between neighbouring patches.",
    ),
    option(
        "--descriptor",
        metavar="centered|concat|N",
        type=KeywordOr(_POSITIVE, "centered", "concat"),
        default="centered",
        help="Patch descriptor; an integer N pools to N features (the paper's code "
        "uses 1024).",
    ),
    option(
        "--projection",
        metavar="N|none",
        type=KeywordOr(_POSITIVE, "none"),
        default="none",
        help="Project patch features to N random dimensions.",
    ),
    option(
        "--coreset-fraction",
        metavar="SHARE|N",
        type=Fraction(),
        default="0.1",
        help="Share (up to 1.0) or number of the training patches to keep.",
    ),
    option(
        "--coreset-method",
        type=click.Choice(["greedy", "random", "none"]),
        default="greedy",
        help="How to select the patches to keep; none: keep all.",
    ),
    option(
        "--coreset-projection-dim",
        metavar="N|none",
        type=KeywordOr(_POSITIVE, "none"),
        default="128",
        help="Select patches by distances in N random dimensions; none: in all.",
    ),
    option(
        "--coreset-n-starts",
        type=_POSITIVE,
        metavar="N",
        default=10,
        help="Number of random patches used to choose the starting point.",
    ),
    option(
        "--n-neighbors",
        type=_POSITIVE,
        metavar="N",
        default=1,
        help="Nearest neighbours; a patch's score is its mean distance to them.",
    ),
    option(
        "--metric",
        type=click.Choice(["euclidean", "sqeuclidean", "cosine"]),
        default="euclidean",
        help="Distance between patches.",
    ),
    option(
        "--algorithm",
        type=click.Choice(["auto", "torch", "faiss", "pynndescent"]),
        default="auto",
        help="Algorithm of the nearest-neighbour search.",
    ),
    option(
        "--reduction",
        metavar="max|SHARE",
        type=KeywordOr(Number(0, 1, min_open=True), "max"),
        default="max",
        help="Score of an image: the maximum of its patch scores, or the mean of this "
        "share of the highest.",
    ),
    option(
        "--reweight",
        metavar="N|none",
        type=KeywordOr(Integer(min=2), "none"),
        default="none",
        help="Reweight image scores with N neighbours, as in equation 7 of the paper.",
    ),
    option(
        "--position-window",
        metavar="N|H,W|none",
        type=KeywordOr(Size(), "none"),
        default="none",
        help="Compare a patch only with normal patches in a window of this size around "
        "its grid position; odd. For aligned parts.",
    ),
    option(
        "--outlier-filter",
        type=KeywordOr(click.Choice(["sample", "lof", "nearest", "gaussian"]), "none"),
        metavar="sample|lof|nearest|gaussian|none",
        default="none",
        help="Remove outliers among the training images or patches.",
    ),
    option(
        "--outlier-fraction",
        type=Number(0, 1, min_open=True, max_open=True),
        metavar="SHARE",
        default=0.15,
        help="Share that the outlier filter removes.",
    ),
    option(
        "--augmentation",
        metavar="A,B|none",
        type=KeywordOr(CommaSeparated(_AUGMENTATION), "none"),
        default="none",
        help="Transforms that add reference images: any of rotate, flip, brightness.",
    ),
    option(
        "--foreground",
        type=KeywordOr(click.Choice(["auto"]), "none"),
        metavar="auto|none",
        default="none",
        help="Ignore patches of an even background, in training and in scoring.",
    ),
    option(
        "--smoothing",
        type=Number(min=0),
        metavar="SIGMA",
        default=4.0,
        help="Standard deviation of the Gaussian that smooths maps, in pixels.",
    ),
    device_option,
    option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        help="Number format of the network's arithmetic.",
    ),
    option(
        "--batch-size",
        type=_POSITIVE,
        metavar="N",
        default=32,
        help="Number of images that the network processes at a time.",
    ),
    random_state_option,
    option(
        "-v",
        "--verbose",
        count=True,
        show_default=False,
        help="Show progress bars even if standard error is not a terminal.",
    ),
)
