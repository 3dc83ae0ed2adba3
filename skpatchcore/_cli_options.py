"""Options of the command line: their types, their declarations, and YAML files."""

import contextlib
import difflib
from pathlib import Path

import click
from click.core import ParameterSource

# Types of options -------------------------------------------------------------------


class CommaSeparated(click.ParamType):
    """Values between commas, or a list of a configuration file, as a tuple."""

    name = "list"

    def __init__(self, inner=click.STRING):
        self.inner = inner

    def convert(self, value, param, ctx):
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        parts = [part.strip() if isinstance(part, str) else part for part in parts]
        if "" in parts or not parts:
            self.fail(f"{value!r} has nothing before or after a comma.", param, ctx)
        return tuple(self.inner.convert(part, param, ctx) for part in parts)


class _Size(CommaSeparated):
    """A short side, or height and width, in pixels."""

    name = "size"

    def __init__(self):
        super().__init__(click.IntRange(min=1))

    def convert(self, value, param, ctx):
        sizes = super().convert(value, param, ctx)
        if len(sizes) > 2:
            self.fail(f"{value!r} is neither N nor HEIGHT,WIDTH.", param, ctx)
        return sizes if len(sizes) == 2 else sizes[0]


class _Fraction(click.ParamType):
    """A share, or a number of at least 2: what a lone 1 means is not obvious."""

    name = "fraction"

    def convert(self, value, param, ctx):
        with contextlib.suppress(ValueError):
            if int(str(value)) > 1:
                return int(str(value))
            self.fail(
                f"{value!r} is ambiguous; write 1.0 for all patches, a share such as "
                "0.1, or a number of at least 2.",
                param,
                ctx,
            )
        share = click.FloatRange(0, 1, min_open=True)
        return share.convert(value, param, ctx)


class KeywordOr(click.ParamType):
    """One of a few words, or a value of another type; "none" becomes None."""

    name = "keyword"

    def __init__(self, inner: click.ParamType, *keywords: str):
        self.inner, self.keywords = inner, keywords

    def convert(self, value, param, ctx):
        if isinstance(value, str) and value.lower() in self.keywords:
            return None if value.lower() == "none" else value.lower()
        try:
            return self.inner.convert(value, param, ctx)
        except click.BadParameter as error:
            words = " or ".join(map(repr, self.keywords))
            self.fail(f"{error.message.rstrip('.')}; nor is it {words}.", param, ctx)


# Configuration file -----------------------------------------------------------------


def _use_config(ctx, param, path: Path | None) -> None:
    """Make the settings in a file the defaults of a command's options."""
    if path is None:
        return
    options = {
        option.name: option
        for option in ctx.command.params
        if isinstance(option, click.Option) and option is not param
    }
    settings = {}
    for key, value in _read_config(path).items():
        name = str(key).replace("-", "_")
        if name not in options:
            close = difflib.get_close_matches(name, options)
            guess = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.BadParameter(
                f"{path} sets {key!r}, which {ctx.command.name!r} does not know.{guess}"
            )
        if name in settings:
            raise click.BadParameter(f"{path} sets {name!r} twice.")
        settings[name] = _check_setting(path, key, value, options[name].type)
    ctx.default_map = {**(ctx.default_map or {}), **settings}


def _read_config(path: Path) -> dict:
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first_lines = " ".join(str(error).split())
        raise click.BadParameter(f"{path} is no YAML file: {first_lines}") from None
    if not isinstance(settings, dict):
        raise click.BadParameter(
            f"{path} must hold lines of the form 'option: value', got "
            f"{type(settings).__name__}."
        )
    return settings


def _check_setting(path: Path, key, value, kind: click.ParamType):
    inner = kind.inner if isinstance(kind, KeywordOr) else kind
    if isinstance(value, list) and isinstance(inner, CommaSeparated):
        return value
    if isinstance(value, list | dict):
        raise click.BadParameter(f"{path}: {key!r} takes one value, got {value!r}.")
    # "none" is how options spell what YAML calls null.
    return "none" if value is None else value


# Options ----------------------------------------------------------------------------


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
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
NEW_FOLDER = click.Path(file_okay=False, path_type=Path)

common_options = _options(
    option(
        "--config",
        type=EXISTING_FILE,
        is_eager=True,
        expose_value=False,
        callback=_use_config,
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
        type=KeywordOr(_Size(), "none"),
        default="256",
        help="Resize pictures to this short side, or height and width.",
    ),
    option(
        "--crop-size",
        metavar="N|H,W|none",
        type=KeywordOr(_Size(), "none"),
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
        type=_Fraction(),
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
        help="A picture's score: that of its worst patch, or mean of a top share.",
    ),
    option(
        "--reweight",
        metavar="N|none",
        type=KeywordOr(click.IntRange(min=2), "none"),
        default="none",
        help="Neighbours in equation 7 of the paper.",
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
        help="Pictures at a time.",
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
