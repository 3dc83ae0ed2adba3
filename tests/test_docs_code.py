"""Every block of code in the README and the documentation runs, or parses.

Blocks with prompts are doctests, which pytest collects itself. The other Python blocks
of a page are one program here: they run in order, with `READERS` names given. Command
lines are parsed by the command itself, and what they name of this project must exist.
"""

import re
import shlex
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from skpatchcore import _backbone, cli
from skpatchcore.datasets import make_surface_defects

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(```+|:::+)[ {]*(\w[\w-]*)[^\n]*\n(.*?)^\1 *$", re.M | re.S)
KNOWN = {"python", "sh", "yaml", "text", "toctree", "eval-rst"}


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text("utf-8"))
    return [code for _, kind, code in found if kind == language]


def programs():
    for page in PAGES:
        code = [block for block in blocks(page, "python") if ">>> " not in block]
        if code:
            name = page.relative_to(ROOT).as_posix()
            yield pytest.param("\n".join(code), id=name)


def command_lines():
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip():
                    name = page.relative_to(ROOT).as_posix()
                    yield pytest.param(line, id=f"{name}: {line.strip()[:40]}")


@pytest.fixture
def small_networks(monkeypatch):
    """Networks of timm are small ones without weights, so that nothing is fetched."""
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: create("resnet18"))
    _backbone._build_cached.cache_clear()
    yield create
    _backbone._build_cached.cache_clear()


@pytest.fixture
def readers_names(small_networks, tmp_path, monkeypatch):
    """What a page takes for granted: pictures in a folder, labels, masks, weights."""
    import safetensors.torch

    monkeypatch.chdir(tmp_path)
    surfaces = make_surface_defects(24, 3, 3, image_size=64, random_state=0)
    kinds = ["good"] * 24 + ["test"] * 6
    paths = [f"{kind}/{i:03}.png" for i, kind in enumerate(kinds, 1)]
    for path, pixels in zip(paths, surfaces.data, strict=True):
        Path(path).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    Image.fromarray(surfaces.data[-1]).save("new.png")
    weights = {k: v.clone() for k, v in small_networks("resnet18").state_dict().items()}
    safetensors.torch.save_file(weights, "resnet18.safetensors")
    return {
        "good_pictures": paths[:24],
        "new_pictures": paths[24:],
        "X": np.array(paths[15:], dtype=object),
        "y": surfaces.target[15:],
        "masks": surfaces.masks[15:],
    }


def test_kinds_of_blocks_are_known():
    kinds = {kind for page in PAGES for _, kind, _ in BLOCK.findall(page.read_text())}
    directives = {kind for kind in kinds if kind not in KNOWN}
    assert directives <= {"card", "dropdown", "figure", "grid", "grid-item-card", "note"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed")
@pytest.mark.parametrize("program", programs())
def test_python_runs(program, readers_names):
    exec(compile(program, "page", "exec"), readers_names)


@pytest.mark.parametrize("line", command_lines())
def test_command_line_parses(line):
    for command in re.split(r"&&|\|", line.split("#")[0].strip().lstrip("$ ")):
        words = shlex.split(command)
        words = words[next(i for i, word in enumerate(words) if "=" not in word) :]
        check = {"skpatchcore": parse, "pip": check_extras, "python": check_script}
        if words[0] in check:
            check[words[0]](words[1:])
        else:
            known = {"export", "pytest", "ruff", "sphinx-build", "rsync", "dask", "git"}
            assert words[0] in known | {"cd"}


def parse(words: list[str], group: click.Group = cli.main) -> None:
    """Parse and convert, but ask no path whether it exists."""
    context = click.Context(group)
    if words[0].startswith("-"):
        group.make_parser(context).parse_args(words)
        return
    command = group.commands[words[0]]
    context = click.Context(command, info_name=words[0])
    values, rest, order = command.make_parser(context).parse_args(words[1:])
    assert rest == []
    for parameter in order:
        if not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, values[parameter.name])


def check_extras(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words:
        if asked := re.search(r"\[(.*)\]", word):
            assert set(asked[1].split(",")) <= set(project["optional-dependencies"])


def check_script(words: list[str]) -> None:
    if words[0] == "-m":
        assert words[1] in {"pip", "venv", "timm", "build"}
    elif words[0] != "-c":
        assert (ROOT / words[0]).is_file()


def test_mistyped_command_is_found():
    with pytest.raises(click.NoSuchOption):
        parse(["fit", "GOOD", "--modle", "part.skpc"])
    with pytest.raises(click.BadParameter):
        parse(["fit", "GOOD", "--model", "part.skpc", "--metric", "manhattan"])
