"""What options of the command line take, and YAML files of them."""

import contextlib
import difflib
import re
from pathlib import Path

import click


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


class Size(CommaSeparated):
    """A short side, or height and width, in pixels."""

    name = "size"

    def __init__(self):
        super().__init__(click.IntRange(min=1))

    def convert(self, value, param, ctx):
        sizes = super().convert(value, param, ctx)
        if len(sizes) > 2:
            self.fail(f"{value!r} is neither N nor HEIGHT,WIDTH.", param, ctx)
        return sizes if len(sizes) == 2 else sizes[0]


class Fraction(click.ParamType):
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


class Pattern(click.ParamType):
    """A regular expression, as it was written."""

    name = "regex"

    def convert(self, value, param, ctx):
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

    def convert(self, value, param, ctx):
        if isinstance(value, str) and value.lower() in self.keywords:
            return None if value.lower() == "none" else value.lower()
        try:
            return self.inner.convert(value, param, ctx)
        except click.BadParameter as error:
            words = " or ".join(map(repr, self.keywords))
            self.fail(f"{error.message.rstrip('.')}; nor is it {words}.", param, ctx)


# Configuration file -----------------------------------------------------------------


def use_config(ctx, param, path: Path | None) -> None:
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
