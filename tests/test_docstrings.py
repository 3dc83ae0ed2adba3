"""Every public object has a docstring that numpydoc accepts."""

import importlib
import inspect

import pytest

from skpatchcore._cli import _commands as cli

numpydoc_validate = pytest.importorskip("numpydoc.validate")

# GL01: summaries start on the first line. SA01, ES01, EX01: not every object needs a
# "See Also" section, an extended summary or an example. RT02: return values have names,
# as in scikit-learn.
IGNORED = {"GL01", "SA01", "ES01", "EX01", "RT02"}
MODULES = [
    "skpatchcore",
    "skpatchcore.calibration",
    "skpatchcore.datasets",
    "skpatchcore.inspection",
    "skpatchcore.metrics",
    "skpatchcore.model_selection",
    "skpatchcore.persistence",
    "skpatchcore.scoring",
]


def public_objects():
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            yield f"{module_name}.{name}"
            if inspect.isclass(thing):
                for method in own_methods(thing):
                    yield f"{module_name}.{name}.{method}"


def own_methods(cls):
    for name, value in inspect.getmembers(cls, inspect.isfunction):
        # Methods inherited from scikit-learn are documented by scikit-learn.
        if not name.startswith("_") and value.__module__.startswith("skpatchcore"):
            yield name


@pytest.mark.parametrize("name", sorted(set(public_objects())))
def test_docstring_is_valid(name):
    errors = numpydoc_validate.validate(name)["errors"]
    assert [error for error in errors if error[0] not in IGNORED] == []


def test_command_is_documented():
    assert all(command.help for command in cli.main.commands.values())
