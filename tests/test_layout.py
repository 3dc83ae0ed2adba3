"""Folders import each other only through their ``__init__``."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "skpatchcore"
FOLDERS = sorted(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists())
MODULES = sorted(PACKAGE.rglob("*.py"))


def folder_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def imported_modules(path: Path) -> list[str]:
    """Return the modules of this package that a module imports from."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == PACKAGE.name]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_other_folders_are_imported_from_their_init(path):
    own = path.relative_to(PACKAGE).parts[0]
    inner = [
        name
        for name in imported_modules(path)
        if folder_of(name) not in ("", own) and name.count(".") > 1
    ]
    assert inner == []


def test_few_modules_are_outside_the_folders():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_describes_its_purpose(folder):
    tree = ast.parse((PACKAGE / folder / "__init__.py").read_text("utf-8"))
    assert len(ast.get_docstring(tree).splitlines()) >= 3


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_init_has_all_names_that_it_lists(folder):
    module = __import__(f"skpatchcore.{folder}", fromlist=["__all__"])
    assert all(hasattr(module, name) for name in module.__all__)
