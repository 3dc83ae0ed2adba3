"""Options of the command line."""

from pathlib import Path

import click
from click.core import ParameterSource

from skpatchcore._cli._types import (
    CommaSeparated,
    Fraction,
    KeywordOr,
    Pattern,
    Size,
    use_config,
)


def _options(*decorators):
    """Return one decorator that adds options in the order given."""

    def add(function):
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


def option(*names: str, **settings):
    return click.option(*names, **{"show_default": True, **settings})


def _choose_layers(ctx, param, layers: tuple[str, ...]) -> tuple[str | int, ...]:
    """Return the layers given, else those that the backbone has."""
    # A default is processed last, in the order of declaration: the backbone is known.
    given = ctx.get_parameter_source(param.name) is not ParameterSource.DEFAULT
    if given or ctx.params["backbone"] != "gabor":
        return tuple(int(name) if _is_int(name) else name for name in layers)
    return ("fine", "coarse")


def _is_int(text: str) -> bool:
    return text.lstrip("-").isdecimal()


_POSITIVE = click.IntRange(min=1)
_AUGMENTATION = click.Choice(["rotate", "flip", "brightness"])
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
NEW_FOLDER = click.Path(file_okay=False, path_type=Path)

common_options = _options(
    option(
        "--config",
        type=EXISTING_FILE,
        is_eager=True,
        expose_value=False,
        callback=use_config,
        help="YAML file of options by name; those on the command line win.",
    ),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)
random_state_option = option(
    "--random-state",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    help="Seed of all that is random.",
)
device_option = option(
    "--device",
    type=KeywordOr(click.STRING, "none"),
    default="none",
    metavar="NAME|none",
    help="Where to compute, 'cuda:1' for instance; none: the GPU if there is one.",
)
group_options = _options(
    option(
        "--group-pattern",
        metavar="REGEX",
        type=Pattern(),
        help="Several images show one part: regular expression that finds the part in "
        "the path of each. The first parentheses, or the whole match, name it.",
    ),
    option(
        "--group-list",
        metavar="FILE",
        type=EXISTING_FILE,
        help="The same from a CSV file with the columns path and --group-column. Paths "
        "are absolute or relative to the file.",
    ),
    option(
        "--group-column",
        metavar="NAME",
        default="group",
        help="Column of --group-list that names the part.",
    ),
)


def group_finder(pattern: str | None, file: Path | None, column: str):
    """Return what finds the groups of paths by the group options, or None."""
    if pattern is not None and file is not None:
        raise click.UsageError("Give --group-pattern or --group-list, not both.")
    from skpatchcore._utils import groups_by_pattern, groups_from_list

    if pattern is not None:
        return lambda paths: groups_by_pattern(paths, pattern)
    if file is not None:
        return lambda paths: groups_from_list(paths, file, column)
    return None


detector_options = _options(
    option(
        "--backbone",
        default="wide_resnet50_2.tv_in1k",
        help="Network by its timm name; embedded comes along, gabor has no weights.",
    ),
    option(
        "--weights",
        metavar="FILE|random|none",
        type=KeywordOr(click.STRING, "none"),
        default="none",
        help="Local weights file, or 'random'; none: timm's, or the embedded ones.",
    ),
    option(
        "--layers",
        metavar="A,B",
        type=CommaSeparated(),
        default="layer2,layer3",
        callback=_choose_layers,
        help="Layers of the network to read; for gabor, by default fine,coarse.",
    ),
    option(
        "--layer-weights",
        metavar="X,Y|auto|none",
        type=KeywordOr(CommaSeparated(click.FLOAT), "auto", "none"),
        default="auto",
        help="How much each layer counts; none: all alike.",
    ),
    option(
        "--image-size",
        metavar="N|H,W|none",
        type=KeywordOr(Size(), "none"),
        default="256",
        help="Resize images to this short side, or height and width.",
    ),
    option(
        "--crop-size",
        metavar="N|H,W|none",
        type=KeywordOr(Size(), "none"),
        default="none",
        help="Crop the centre after resizing.",
    ),
    option(
        "--patch-size",
        type=_POSITIVE,
        metavar="N",
        default=3,
        help="Side of the neighbourhood that a patch is averaged over; odd.",
    ),
    option(
        "--patch-stride",
        type=_POSITIVE,
        metavar="N",
        default=1,
        help="Step between patches.",
    ),
    option(
        "--descriptor",
        metavar="centered|concat|N",
        type=KeywordOr(_POSITIVE, "centered", "concat"),
        default="centered",
        help="How a patch is described; N: as in the authors' code, there 1024.",
    ),
    option(
        "--projection",
        metavar="N|none",
        type=KeywordOr(_POSITIVE, "none"),
        default="none",
        help="Project patch features to N dimensions at random.",
    ),
    option(
        "--coreset-fraction",
        metavar="SHARE|N",
        type=Fraction(),
        default="0.1",
        help="Share, or number, of the training patches to keep.",
    ),
    option(
        "--coreset-method",
        type=click.Choice(["greedy", "random", "none"]),
        default="greedy",
        help="How to choose the patches to keep; none: keep all.",
    ),
    option(
        "--coreset-projection-dim",
        metavar="N|none",
        type=KeywordOr(_POSITIVE, "none"),
        default="128",
        help="Choose by distances in N random dimensions.",
    ),
    option(
        "--coreset-n-starts",
        type=_POSITIVE,
        metavar="N",
        default=10,
        help="Patches drawn at random to find the first to keep.",
    ),
    option(
        "--n-neighbors",
        type=_POSITIVE,
        metavar="N",
        default=1,
        help="A patch's score is its mean distance to so many patches kept.",
    ),
    option(
        "--metric",
        type=click.Choice(["euclidean", "sqeuclidean", "cosine"]),
        default="euclidean",
        help="Distance of patches.",
    ),
    option(
        "--algorithm",
        type=click.Choice(["auto", "torch", "faiss", "pynndescent"]),
        default="auto",
        help="Nearest-neighbour search.",
    ),
    option(
        "--reduction",
        metavar="max|SHARE",
        type=KeywordOr(click.FloatRange(0, 1, min_open=True), "max"),
        default="max",
        help="An image's score: that of its worst patch, or mean of a top share.",
    ),
    option(
        "--reweight",
        metavar="N|none",
        type=KeywordOr(click.IntRange(min=2), "none"),
        default="none",
        help="Neighbours in equation 7 of the paper.",
    ),
    option(
        "--position-window",
        metavar="N|H,W|none",
        type=KeywordOr(Size(), "none"),
        default="none",
        help="Compare a patch only with what is normal so near on the grid; odd.",
    ),
    option(
        "--outlier-filter",
        type=KeywordOr(click.Choice(["sample", "lof", "nearest", "gaussian"]), "none"),
        metavar="sample|lof|nearest|gaussian|none",
        default="none",
        help="Leave outliers among the training images out.",
    ),
    option(
        "--outlier-fraction",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="SHARE",
        default=0.15,
        help="How much an outlier filter leaves out.",
    ),
    option(
        "--augmentation",
        metavar="A,B|none",
        type=KeywordOr(CommaSeparated(_AUGMENTATION), "none"),
        default="none",
        help="Learn from training images turned, mirrored, brighter too: any of "
        "rotate, flip and brightness.",
    ),
    option(
        "--foreground",
        type=KeywordOr(click.Choice(["auto"]), "none"),
        metavar="auto|none",
        default="none",
        help="Learn and look only at what stands out from an even background.",
    ),
    option(
        "--smoothing",
        type=click.FloatRange(min=0),
        metavar="SIGMA",
        default=4.0,
        help="Standard deviation, in pixels, of the Gaussian that smooths maps.",
    ),
    device_option,
    option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        help="Arithmetic of the network.",
    ),
    option(
        "--batch-size",
        type=_POSITIVE,
        metavar="N",
        default=32,
        help="Images at a time.",
    ),
    random_state_option,
    option(
        "-v",
        "--verbose",
        count=True,
        show_default=False,
        help="Show progress bars even if standard error is no terminal.",
    ),
)
