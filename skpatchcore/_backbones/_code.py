"""The code of functions and classes: its origin, and the globals that it reads."""

import dis
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LIBRARIES = tuple(
    Path(sysconfig.get_path(name)).resolve()
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_INSTALLED = {"site-packages", "dist-packages"}


def is_library(item: types.FunctionType | type) -> bool:
    """Return whether a function or class is from an installed package."""
    module = sys.modules.get(_module_name(item))
    return module is not None and _is_library_module(module)


def library_code(item: types.FunctionType | type) -> str:
    """Return a key of the file that defines a function or class of a library."""
    path = getattr(sys.modules.get(_module_name(item)), "__file__", None)
    return _hash_file(path) if path and path.endswith(".py") else ""


def replaced_methods(cls: type) -> dict[str, types.FunctionType]:
    """Return methods of a library class that were replaced from outside the library."""
    return {
        f"{base.__qualname__}.{name}": value
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, types.FunctionType) and not is_library(value)
    }


def plain_code(code: types.CodeType) -> tuple:
    """Return the bytecode of a function without file names and line numbers."""
    return (
        code.co_code,
        code.co_exceptiontable,
        [_plain_constant(constant) for constant in code.co_consts],
        (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars),
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        code.co_flags,
    )


def globals_read(function: types.FunctionType) -> dict[str, Any]:
    """Return the globals that a function reads, by name.

    For a module of the user, this includes the attributes that the function may read.
    """
    found = {}
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    for name in set(_global_names(function.__code__)) & function.__globals__.keys():
        value = found[name] = function.__globals__[name]
        if isinstance(value, types.ModuleType) and not _is_library_module(value):
            attributes = names & vars(value).keys()
            found |= {f"{name}.{key}": vars(value)[key] for key in attributes}
    return found


def qualified_name(item: types.FunctionType | type) -> str:
    """Return a name that does not depend on how the user's code is run."""
    if is_library(item):
        return f"{_module_name(item)}.{item.__qualname__}"
    # The module is `__main__` in a script, but has a name if it is imported.
    return item.__qualname__


def _module_name(item: types.FunctionType | type) -> str:
    # The attribute `__module__` of a decorated function is that of the wrapped one.
    if isinstance(item, types.FunctionType):
        return item.__globals__.get("__name__", "")
    return item.__module__


def _is_library_module(module: types.ModuleType) -> bool:
    name, path = module.__name__, getattr(module, "__file__", None)
    if name == "__main__":
        return False
    if name.partition(".")[0] == "skpatchcore":
        return True
    if path is None:
        return name in sys.builtin_module_names or hasattr(module, "__path__")
    return _is_library_path(path)


@functools.cache
def _is_library_path(path: str) -> bool:
    resolved = Path(path).resolve()
    return bool(_INSTALLED & set(resolved.parts)) or any(
        resolved.is_relative_to(folder) for folder in _LIBRARIES
    )


@functools.cache
def _hash_file(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        # For example, a file in a zip.
        return ""


def _plain_constant(constant: Any) -> Any:
    if isinstance(constant, types.CodeType):
        return plain_code(constant)
    if isinstance(constant, frozenset):
        # The order depends on the process.
        return ("frozenset", sorted(map(repr, constant)))
    if isinstance(constant, tuple):
        return tuple(map(_plain_constant, constant))
    return constant


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code of a function and of all functions and classes inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _global_names(code: types.CodeType) -> Iterator[str]:
    for inner in _codes(code):
        for instruction in dis.get_instructions(inner):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield instruction.argval
