"""Types of command-line options, and YAML files that set options."""

import contextlib
import difflib
import re
from pathlib import Path
from typing import Any

import click


class Integer(click.IntRange):
    """An integer in a range."""

    name = "integer"


class Number(click.FloatRange):
    """A number in a range."""

    name = "number"


class Rate(Number):
    """A share between 0 and 1, which users tend to write in per cent."""

    def __init__(self) -> None:
        super().__init__(0, 1, min_open=True, max_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the value that a command receives."""
        try:
            return float(super().convert(value, param, ctx))
        except click.BadParameter as error:
            self.fail(f"{error.message} Write 5 % as 0.05.", param, ctx)


class CommaSeparated(click.ParamType):
    """Values separated by commas, or a list in a configuration file, as a tuple."""

    name = "list"

    def __init__(self, inner: click.ParamType = click.STRING):
        self.inner = inner

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Return the value that a command receives."""
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        parts = [part.strip() if isinstance(part, str) else part for part in parts]
        if "" in parts or not parts:
            self.fail(f"{value!r} has nothing before or after a comma.", param, ctx)
        return tuple(self.inner.convert(part, param, ctx) for part in parts)


class Size(CommaSeparated):
    """A shorter side, or height and width, in pixels."""

    name = "size"

    def __init__(self) -> None:
        super().__init__(Integer(min=1))

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Return the value that a command receives."""
        sizes = super().convert(value, param, ctx)
        if len(sizes) > 2:
            self.fail(f"{value!r} is neither N nor HEIGHT,WIDTH.", param, ctx)
        return sizes if len(sizes) == 2 else sizes[0]


class Fraction(click.ParamType):
    """A share, or a number of at least 2. A lone 1 is ambiguous and refused."""

    name = "fraction"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Return the value that a command receives."""
        with contextlib.suppress(ValueError):
            if int(str(value)) > 1:
                return int(str(value))
            if int(str(value)) == 1:
                self.fail(
                    f"{value!r} is ambiguous; write 1.0 for all patches, a share such "
                    "as 0.1, or a number of at least 2.",
                    param,
                    ctx,
                )
        share = Number(0, 1, min_open=True)
        return share.convert(value, param, ctx)


class Pattern(click.ParamType):
    """A regular expression, as text."""

    name = "regex"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Return the value that a command receives."""
        try:
            re.compile(value)
        except (re.error, TypeError) as error:
            self.fail(f"{value!r} is not a regular expression: {error}.", param, ctx)
        return value


class KeywordOr(click.ParamType):
    """One of a few words, or a value of another type; "none" becomes None."""

    name = "keyword"

    def __init__(self, inner: click.ParamType, *keywords: str):
        self.inner, self.keywords = inner, keywords

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Return the value that a command receives."""
        if isinstance(value, str) and value.lower() in self.keywords:
            return None if value.lower() == "none" else value.lower()
        try:
            return self.inner.convert(value, param, ctx)
        except click.BadParameter as error:
            words = " or ".join(map(repr, self.keywords))
            self.fail(f"{error.message.rstrip('.')}; nor is it {words}.", param, ctx)


# Configuration file -----------------------------------------------------------------


# The key of the path in the context of the command.
CONFIG_FILE = "skpatchcore.config_file"


def use_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Use the settings in a file as defaults of a command's options."""
    if path is None:
        return
    ctx.meta[CONFIG_FILE] = path
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
                f"{path} sets {key!r}, which is not an option of "
                f"{ctx.command.name!r}.{guess}"
            )
        if name in settings:
            raise click.BadParameter(f"{path} sets {name!r} twice.")
        settings[name] = _check_setting(path, key, value, options[name])
    ctx.default_map = {**(ctx.default_map or {}), **settings}


def _read_config(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise click.BadParameter(f"{path} is not a YAML file: {reason}") from None
    if not isinstance(settings, dict):
        raise click.BadParameter(
            f"{path} must contain lines of the form 'option: value', but "
            f"contains {_in_words(settings)}."
        )
    return settings


def _in_words(content: Any) -> str:
    if content is None:
        return "nothing"
    return "a list" if isinstance(content, list) else f"only {str(content)!r:.40}"


def _check_setting(path: Path, key: Any, value: Any, param: click.Option) -> Any:
    """Return a setting in a form that its option accepts, or name the file and line."""
    kind = param.type
    inner = kind.inner if isinstance(kind, KeywordOr) else kind
    if isinstance(value, list | dict) and not (
        isinstance(value, list) and isinstance(inner, CommaSeparated)
    ):
        raise click.BadParameter(f"{path}: {key!r} takes one value, but is {value!r}.")
    if str(value).lower() in ("none", "null"):
        # YAML's null is the word "none" on the command line.
        if not _accepts_none(kind):
            raise click.BadParameter(
                f"{path}: {key!r} has no value. Give one, or remove the line to use "
                "the default."
            )
        return "none"
    given = str(value) if isinstance(value, int | float) else value
    try:
        kind.convert(given, None, None)
    except click.BadParameter as error:
        raise click.BadParameter(f"{path}: {key!r}: {error.message}") from None
    return given


def _accepts_none(kind: click.ParamType) -> bool:
    words = kind.keywords if isinstance(kind, KeywordOr) else ()
    choices = kind.choices if isinstance(kind, click.Choice) else ()
    return "none" in (*words, *choices)
