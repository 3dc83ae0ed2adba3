"""Every block of code in the README and the documentation runs, or parses.

Blocks with prompts are doctests, which pytest collects itself. The other Python blocks
of a page are one program here: they run in order, with `READERS` names given. Command
lines are parsed by the command itself, and what they name of this project must exist.
"""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image
from torch import nn

from skpatchcore._backbones import _backbone
from skpatchcore._cli import _commands as cli
from skpatchcore.datasets import make_surface_defects
from tests.test_docstrings import MODULES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(```+|:::+)[ {]*(\w[\w-]*)[^\n]*\n(.*?)^\1 *$", re.M | re.S)
LANGUAGES = {"text", "python", "sh", "yaml"}
PROGRAMS = {"lint-imports", "mypy", "pytest", "ruff", "source", "sphinx-build"}
DIRECTIVES = {"eval-rst", "grid", "grid-item-card", "toctree", "warning"}


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text("utf-8"))
    return [code for _, kind, code in found if kind == language]


def programs():
    for page in PAGES:
        code = [block for block in blocks(page, "python") if ">>> " not in block]
        if code:
            name = page.relative_to(ROOT).as_posix()
            # Dask's shutting down is not ours to keep silent.
            marks = [pytest.mark.filterwarnings("default")] if "cluster" in name else []
            yield pytest.param("\n".join(code), id=name, marks=marks)


def command_lines():
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip():
                    name = page.relative_to(ROOT).as_posix()
                    yield pytest.param(line, id=f"{name}: {line.strip()[:40]}")


class SmallNetwork(nn.Module):
    """A tiny network with layers named as in a ResNet."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Conv2d(3, 8, 8, stride=8)
        self.layer2 = nn.Conv2d(8, 96, 3, stride=2, padding=1)
        self.layer3 = nn.Conv2d(96, 96, 3, stride=2, padding=1)

    def forward(self, images):
        return self.layer3(self.layer2(self.layer1(images)).relu())


@pytest.fixture
def small_networks(monkeypatch):
    """Every network that a page requests from timm is small; nothing is downloaded."""
    monkeypatch.setattr("timm.create_model", lambda *_, **__: SmallNetwork())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _backbone._build_cached.cache_clear()
    yield
    _backbone._build_cached.cache_clear()


@pytest.fixture
def local_cluster(monkeypatch):
    """Pages that connect to a cluster get one within this process."""
    distributed = pytest.importorskip("dask.distributed")
    connect = distributed.Client
    settings = {"processes": False, "n_workers": 1, "threads_per_worker": 1}
    settings["dashboard_address"] = "127.0.0.1:0"
    monkeypatch.setattr(distributed, "Client", lambda _: connect(**settings))


@pytest.fixture
def readers_names(small_networks, local_cluster, tmp_path, monkeypatch):
    """Names that pages assume: images in a folder, labels, masks, weights."""
    import safetensors.torch

    monkeypatch.chdir(tmp_path)
    surfaces = make_surface_defects(24, 3, 3, image_size=64, random_state=0)
    kinds = ["good"] * 24 + ["test"] * 6
    paths = [f"{kind}/{i:03}.png" for i, kind in enumerate(kinds, 1)]
    for path, pixels in zip(paths, surfaces.data, strict=True):
        Path(path).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    Image.fromarray(surfaces.data[-1]).save("new.png")
    safetensors.torch.save_file(SmallNetwork().state_dict(), "resnet18.safetensors")
    return {
        "good_images": paths[:24],
        "new_images": paths[24:],
        "X": np.array(paths[15:], dtype=object),
        "y": surfaces.target[15:],
        "masks": surfaces.masks[15:],
    }


def test_kinds_of_blocks_are_known():
    kinds = {kind for page in PAGES for _, kind, _ in BLOCK.findall(page.read_text())}
    assert kinds <= LANGUAGES | DIRECTIVES


@pytest.mark.slow
@pytest.mark.parametrize("program", list(programs()))
def test_python_runs(program, readers_names):
    exec(compile(program, "page", "exec"), readers_names)


@pytest.mark.parametrize("line", list(command_lines()))
def test_command_line_parses(line):
    for command in re.split(r"&&|\|", line.split("#")[0].strip().lstrip("$ ")):
        words = shlex.split(command)
        words = words[next(i for i, word in enumerate(words) if "=" not in word) :]
        check = {"skpatchcore": parse, "pip": check_extras, "python": check_script}
        if words[0] in check:
            check[words[0]](words[1:])
        else:
            assert words[0] in PROGRAMS


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


@pytest.mark.parametrize("module", [*MODULES, "skpatchcore.scoring"])
def test_every_public_name_is_in_the_reference(module):
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    names = set(importlib.import_module(module).__all__) - {"__version__"}
    assert {name for name in names if not re.search(rf"\b{name}\b", page)} == set()


def test_every_symptom_has_a_cause_a_check_and_a_remedy():
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    symptoms = re.split(r"^### ", page, flags=re.M)[1:]
    assert len(symptoms) > 20
    parts = ("**Cause.**", "**Check.**", "**Remedy.**")
    for symptom in symptoms:
        assert re.findall(r"^\*\*\w+\.\*\*", symptom, re.M) == list(parts), symptom


def test_figures_of_the_guide_are_drawn_by_the_script():
    guide = (ROOT / "docs" / "user_guide.md").read_text("utf-8")
    script = (ROOT / "docs" / "draw_figures.py").read_text("utf-8")
    shown = set(re.findall(r"images/guide_(\w+)\.png", guide))
    assert shown == set(re.findall(r"^def draw_(\w+)", script, re.M))
    there = (ROOT / "docs" / "images").glob("guide_*.png")
    assert shown == {path.stem.removeprefix("guide_") for path in there}


def test_images_are_small():
    for image in (ROOT / "docs" / "images").iterdir():
        assert image.stat().st_size <= 300_000, image.name


def test_mistyped_command_is_found():
    with pytest.raises(click.NoSuchOption):
        parse(["fit", "GOOD", "--modle", "part.skpc"])
    with pytest.raises(click.BadParameter):
        parse(["fit", "GOOD", "--model", "part.skpc", "--metric", "manhattan"])
