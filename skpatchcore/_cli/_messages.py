"""Run commands: one-line errors, warnings without code, and text for the terminal."""

import contextlib
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from skpatchcore.scoring import UnreadableImage

# A parameter and its value in a message: text in quotes, a tuple or list, a word.
_PARAMETER = re.compile(
    r"(?<![\w/\\.-])([a-z]\w*)=(?:'([^'\n]*)'|(\([^)\n]*\)|\[[^]\n]*\]|[\w.+-]*\w|\.\.\.|))"
)
# What only a Python program can do, where the message also names the option.
_IN_PYTHON = re.compile(
    r" to load\(\.\.\., \w+=\.\.\.\), or(?= with --)|; or save the detector with .*$"
    r"|\bPass skpatchcore\.datasets\.ImagePage.*pages=\"all\" \(loaders\) or (?=--)"
    r"|groups=, one value per sample that names its part, to fit, or (?=--)"
    r"| to the command(?=; see)"
    r"| If all samples are independent, groups=range\S+ says so\."
    r"|; named_modules\(\) lists all|; give names of modules, as in named_modules\(\)"
    r"| \(command\)|\b\w+= of the features, .*?\bor (?=--)"
    r"| \(--[\w-]+ on the command line\)| on the command line"
)
_LAYERS_HINT = (
    " Choose others with --layers: names of modules, or numbers of the levels of a "
    "timm network, such as --layers 2,3."
)
# What a shell reports for a process that SIGINT ended: 128 + 2.
_INTERRUPTED = 130


class Command(click.Command):
    """A command that reports every error in one line, unless ``--debug`` is given."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        debug = ctx.params.pop("debug")
        try:
            with _ended_by_signals(), _plain_warnings(ctx.command.params):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            raise  # The reader of the output has closed it; click exits quietly.
        except Exception as error:
            if debug:
                raise
            text = use_option_names(describe_error(error), ctx.command.params)
            raise click.ClickException(text) from error


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the block by an exception if the process is told to terminate.

    Otherwise temporary files would stay: images that are being written, and the
    features of all training images, which may take gigabytes.
    """

    def end(number: int, frame: object) -> None:
        # What a shell reports for a process that a signal ended.
        raise SystemExit(128 + number)

    before = {}
    # A closed terminal ends a command too, unless nohup protects it.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP.
        if number is None or signal.getsignal(number) != signal.SIG_DFL:
            continue
        with contextlib.suppress(ValueError):  # Outside the main thread.
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _plain_warnings(params: Sequence[click.Parameter]) -> Iterator[None]:
    """Show warnings in the words of the options, without the line of code."""

    def show(message: Warning | str, *_: object) -> None:
        click.echo(f"Warning: {use_option_names(str(message), params)}", err=True)

    with warnings.catch_warnings():
        show_plainly: Callable[..., None] = show
        warnings.showwarning = show_plainly
        yield


def describe_error(error: Exception) -> str:
    """Return the text that a user sees of an error."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        # Of a file that could not be renamed, the second name is the user's.
        return f"{error.filename2 or error.filename}: {error.strerror}"
    if isinstance(error, OSError | ValueError | TypeError | ImportError):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


def use_option_names(text: str, params: Sequence[click.Parameter]) -> str:
    """Return a message about parameters in the words of the command's options.

    "weights='a.pth' is not a file" becomes "--weights a.pth is not a file".
    """
    names = {param.name for param in params if isinstance(param, click.Option)}

    def replace(match: re.Match[str]) -> str:
        name, quoted, plain = match.groups()
        if name not in names:
            return match[0]
        value = quoted if quoted is not None else plain or ""
        if value.startswith(("(", "[")):
            value = re.sub(r"[][()' ]", "", value)
        if quoted is not None or "*" in value:
            value = shlex.quote(value)
        return f"--{name.replace('_', '-')}" + f" {value}" * bool(value.strip("."))

    if "max_pixels" in names:
        text = text.replace("PIL.Image.MAX_IMAGE_PIXELS", "--max-pixels")
    hint = _LAYERS_HINT if "has no layer" in text and "layers" in names else ""
    return _PARAMETER.sub(replace, _IN_PYTHON.sub("", text)) + hint


def print_text(text: str, *, nl: bool = True) -> None:
    """Print text that may contain file names in an unknown encoding."""
    try:
        text.encode()  # click replaces characters that the terminal cannot show.
        click.echo(text, nl=nl)
    except UnicodeEncodeError:
        click.echo(text.encode("utf-8", "surrogateescape"), nl=nl)


def print_weights_hint(weights: object, subject: str = "file does") -> None:
    """Say that `score` needs the path of a local weights file."""
    print_text(
        f"The model {subject} not contain the network or its path: pass --weights "
        f"{weights} to score as well."
    )


def progress_level() -> int:
    """Return 1, for progress bars, if standard error is a terminal, else 0."""
    return int(sys.stderr.isatty())


def print_bytes(data: bytes) -> None:
    """Print whole lines of text in UTF-8, with names of any bytes, for programs.

    A terminal shows them in its own encoding.
    """
    if sys.stdout.isatty():
        print_text(data.decode("utf-8", "surrogateescape"), nl=False)
    else:
        click.echo(data, nl=False)


def print_unreadable(image: "UnreadableImage") -> None:
    """Name an unreadable image on standard error."""
    params = click.get_current_context().command.params
    reason = use_option_names(image.reason, params)
    click.echo(f"Unreadable: {reason}", err=True)


def report_unreadable(unreadable: "Sequence[UnreadableImage]", n_images: int) -> None:
    """Name the unreadable images on standard error, and count them."""
    for image in unreadable:
        print_unreadable(image)
    count_unreadable(len(unreadable), n_images)


def count_unreadable(n_unreadable: int, n_images: int) -> None:
    """Say on standard error how many images were unreadable, if any."""
    if n_unreadable:
        click.echo(f"{n_unreadable} of {n_images} were unreadable.", err=True)
