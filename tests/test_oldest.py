"""The list of the oldest tested versions agrees with pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PINNED = dict(
    line.split("==")
    for line in (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    if not line.startswith("#")
)


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tested = extras["test"] + [
        line
        for requirement in map(Requirement, extras["test"])
        if requirement.name == project["name"]
        for extra in sorted(requirement.extras)
        for line in extras[extra]
    ]
    found = map(Requirement, project["dependencies"] + tested)
    return [requirement for requirement in found if requirement.name != project["name"]]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_lower_bound_is_what_is_tested(requirement):
    pinned = PINNED[requirement.name]
    assert pinned in requirement.specifier
    bound = re.fullmatch(r">=([\d.]+)", str(requirement.specifier))[1]
    # Where the bound itself was never released, the first version after it.
    assert pinned.split(".")[: bound.count(".") + 1] == bound.split(".")
