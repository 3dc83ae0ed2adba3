"""The modules of the package: all are needed, and none serves the tests alone."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): (
        path
    )
    for path in (ROOT / "skpatchcore").rglob("*.py")
}


def imported_by(module: str) -> set[str]:
    """Return the modules of the package that a module names in its imports."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    # Importing a module imports the packages that it is in.
    parts = [name.split(".") for name in names]
    names = {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}
    return names & MODULES.keys()


def is_public(module: str) -> bool:
    return not any(part.startswith("_") for part in module.split("."))


def test_no_private_module_serves_tests_or_training_alone():
    # The command `skpatchcore` has the same entry point as __main__.
    used = {module for module in MODULES if is_public(module)}
    used.add("skpatchcore.__main__")
    waiting = list(used)
    while waiting:
        found = imported_by(waiting.pop()) - used
        used |= found
        waiting += found
    unused = MODULES.keys() - used
    assert unused == set()


def test_only_tests_read_the_variable_of_the_tests():
    scripts = [*(ROOT / "examples").glob("*.py"), *(ROOT / "docs").rglob("*.py")]
    for path in (*MODULES.values(), *scripts):
        assert "SKPATCHCORE_ASSETS" not in path.read_text("utf-8"), path


def test_the_training_script_starts_in_any_folder(tmp_path):
    script = ROOT / "docs" / "embedded_backbone" / "train.py"
    subprocess.run(
        [sys.executable, script, "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
