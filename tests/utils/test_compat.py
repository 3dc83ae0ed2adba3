"""Private names of scikit-learn and joblib are used in one module only."""

import ast
import inspect
from numbers import Integral
from pathlib import Path

import joblib
import numpy as np
import pytest
from joblib import Memory
from sklearn.base import BaseEstimator

import skpatchcore
from skpatchcore._utils import _compat

PACKAGE = Path(skpatchcore.__file__).parent
COMPAT = Path(_compat.__file__)
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {COMPAT})


def imported_names(source: str) -> list[str]:
    """Return the dotted names of all imports, inside functions as well."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def dotted_names(source: str) -> list[str]:
    """Return all expressions of names and attributes, such as ``a.b.c``."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
    ]


def private_names(source: str) -> list[str]:
    names = [name.split(".") for name in imported_names(source) + dotted_names(source)]
    from_sklearn = [
        parts
        for parts in names
        if parts[0] == "sklearn" and any(part.startswith("_") for part in parts)
    ]
    # joblib documents only the names of its top level, and none of its modules.
    from_joblib = [
        parts
        for parts in names
        if parts[0] == "joblib"
        and parts[1:]
        and inspect.ismodule(getattr(joblib, parts[1], joblib))
    ]
    return [".".join(parts) for parts in from_sklearn + from_joblib]


@pytest.mark.parametrize(
    "source",
    [
        "from sklearn.base import _fit_context",
        "from sklearn.model_selection._search import BaseSearchCV",
        "import sklearn.utils._param_validation",
        "def f():\n    from sklearn.utils import _safe_indexing as g",
        "import sklearn\nsklearn.utils._safe_indexing",
        "from joblib.disk import memstr_to_bytes",
        "import joblib\njoblib.disk.memstr_to_bytes",
    ],
)
def test_private_names_are_found(source):
    assert private_names(source)


@pytest.mark.parametrize(
    "source",
    [
        "from sklearn.utils import check_array as _check",
        "import sklearn\nsklearn.base.clone",
        "from joblib import Memory\nimport joblib",
        "from skpatchcore._utils import safe_indexing",
    ],
)
def test_public_names_are_allowed(source):
    assert private_names(source) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_compat_uses_private_names(path):
    assert private_names(path.read_text("utf-8")) == []


@pytest.mark.parametrize("name", _compat.__all__)
def test_every_name_exists_in_the_installed_versions(name):
    assert callable(getattr(_compat, name))


class Positive(BaseEstimator):
    _parameter_constraints = {"n": [_compat.Interval(Integral, 1, None, closed="left")]}

    def __init__(self, n=1):
        self.n = n

    @_compat.fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        return self

    @_compat.available_if(lambda self: self.n > 1)
    def predict(self, X):
        return X


def test_parameters_are_validated_in_fit():
    assert Positive().fit([[0]]).n == 1
    with pytest.raises(ValueError, match="'n' parameter"):
        Positive(0).fit([[0]])


def test_arguments_are_validated_in_calls():
    @_compat.validate_params({"mode": [_compat.StrOptions({"a", "b"})]})
    def function(mode):
        return mode

    assert function("a") == "a"
    with pytest.raises(ValueError, match="'mode' parameter"):
        function("c")


def test_methods_are_hidden():
    assert hasattr(Positive(2), "predict")
    assert not hasattr(Positive(1), "predict")


def test_samples_are_counted_and_indexed():
    assert _compat.num_samples(np.zeros((3, 2))) == 3
    assert list(_compat.safe_indexing(["a", "b", "c"], [2, 0])) == ["c", "a"]
    params = _compat.check_method_params(["a", "b"], {"w": [1, 2], "k": 3}, [1])
    assert params == {"w": [2], "k": 3}


def test_sizes_of_memory_have_units():
    assert _compat.memstr_to_bytes("2K") == 2048


def test_files_are_moved_in_a_store(tmp_path):
    store = Memory(tmp_path, verbose=0).store_backend
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    with _compat.open_item(store, source, "wb") as file:
        file.write(b"contents")
    _compat.move_item(store, source, target)
    assert not _compat.store_contains(store, source)
    assert _compat.store_contains(store, target)
    with _compat.open_item(store, target, "rb") as file:
        assert file.read() == b"contents"
