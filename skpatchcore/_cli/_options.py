"""Options that several commands share, and functions to define them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click
from click.core import ParameterSource

from skpatchcore._cli._types import (
    CommaSeparated,
    Integer,
    KeywordOr,
    Pattern,
    use_config,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skpatchcore._images import ImagePage

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


def option_group(*decorators: Decorator) -> Decorator:
    """Return one decorator that adds several options in this order."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


def option(*names: str, **settings: Any) -> Decorator:
    """Return a decorator that adds an option, with its default in the help text."""
    return click.option(*names, **{"show_default": True, **settings})


def is_given(name: str) -> bool:
    """Return whether an option of the command is set, in a file or by the user."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not ParameterSource.DEFAULT


EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
NEW_FOLDER = click.Path(file_okay=False, path_type=Path)

common_options = option_group(
    option(
        "--config",
        type=EXISTING_FILE,
        is_eager=True,
        expose_value=False,
        callback=use_config,
        help="YAML file of options by name. Options on the command line override it.",
    ),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)
random_state_option = option(
    "--random-state",
    type=Integer(min=0),
    metavar="N",
    default=0,
    help="Seed of the random number generator.",
)
device_option = option(
    "--device",
    type=KeywordOr(click.STRING, "none"),
    default="none",
    metavar="NAME|none",
    help="Device to compute on, such as cpu or cuda:1; none: a GPU if available.",
)
exclude_option = option(
    "--exclude",
    metavar="A,B",
    type=CommaSeparated(),
    callback=lambda ctx, param, patterns: patterns or (),
    help="Shell patterns, such as '*_GT.png', of files and folders to leave out.",
)
pages_option = option(
    "--pages",
    type=click.Choice(["all"]),
    help="List each page of a file with several pages as an image of its own. Without "
    "this option, such a file is unreadable.",
)


def split_all(paths: Sequence[str], pages: str | None) -> "list[str | ImagePage]":
    """Return the pages of files if the option says so, else the paths."""
    from skpatchcore._images import split_pages

    return [page for path in paths for page in (split_pages(path) if pages else [path])]


@contextlib.contextmanager
def _pixel_limit(n_pixels: int) -> Iterator[None]:
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, n_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _limit_pixels(
    ctx: click.Context, param: click.Parameter, n_pixels: int | None
) -> None:
    if n_pixels is not None:
        ctx.with_resource(_pixel_limit(n_pixels))


max_pixels_option = option(
    "--max-pixels",
    type=Integer(min=1),
    metavar="N",
    expose_value=False,
    callback=_limit_pixels,
    help="Largest number of pixels of an image that is read without a warning; images "
    "of more than twice as many are unreadable. Raise it for line-scan images. "
    "[default: 89478485]",
)
group_options = option_group(
    option(
        "--group-pattern",
        metavar="REGEX",
        type=Pattern(),
        help="If several images show one part: regular expression that finds the name "
        "of the part in each path. The name is the text in the first parentheses, or "
        "else the whole match.",
    ),
    option(
        "--group-list",
        metavar="FILE",
        type=EXISTING_FILE,
        help="Alternative to --group-pattern: CSV file with the columns path and "
        "--group-column. Paths are absolute or relative to the file.",
    ),
    option(
        "--group-column",
        metavar="NAME",
        default="group",
        help="Column of --group-list that contains the name of the part.",
    ),
)


def group_finder(
    pattern: str | None, file: Path | None, column: str
) -> "Callable[[Sequence], NDArray] | None":
    """Return a function from paths to their groups, or None without group options."""
    if pattern is not None and file is not None:
        raise click.UsageError("Pass --group-pattern or --group-list, not both.")
    from skpatchcore._utils import groups_by_pattern, groups_from_list

    # A list names files, a pattern may also find the number of a page.
    if pattern is not None:
        return lambda paths: groups_by_pattern([str(one) for one in paths], pattern)
    if file is not None:
        return lambda paths: groups_from_list(
            [getattr(one, "path", one) for one in paths], file, column
        )
    return None
