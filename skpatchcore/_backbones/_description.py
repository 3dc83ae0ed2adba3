"""Describe what an object computes with, equally for all its copies.

Numbers, tensors and containers are described by their contents, objects by their
attributes, and functions by their code, closures, defaults and the globals that they
read. A description does not depend on addresses, the order of sets, or the process. If
a part cannot be described, it is noted as a gap.
"""

import copyreg
import enum
import functools
import logging
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from skpatchcore._backbones._code import (
    globals_read,
    is_library,
    library_code,
    plain_code,
    qualified_name,
    replaced_methods,
)
from skpatchcore._utils import content_key

# The functions with which pickle creates objects of most classes.
_MAKERS = [getattr(copyreg, name) for name in ("__newobj__", "__newobj_ex__")]
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_NAMED = (torch.dtype, torch.layout, torch.memory_format, torch.device, np.dtype, range)
# Objects of these classes have no effect on results.
_WITHOUT_CONTENT = (logging.Logger, type(threading.Lock()), type(threading.RLock()))
# Functions in C: only their names can differ.
_BUILTIN = (
    types.BuiltinFunctionType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
# Attributes of modules for training, for files, and for hooks, which are described
# separately.
_MODULE_INTERNALS = frozenset(vars(nn.Module())) - {"_parameters", "_buffers"}
# Attributes that every class has, or that are only for readers.
_CLASS_INTERNALS = frozenset(
    {
        *("__module__", "__qualname__", "__dict__", "__weakref__", "__doc__"),
        *("__annotations__", "__annotate__", "__annotate_func__"),
        *("__annotations_cache__", "__firstlineno__", "__static_attributes__"),
        *("__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__"),
    }
)


class Description:
    """A description of one object.

    Parameters
    ----------
    value : object

    Attributes
    ----------
    state : str
        Key of all values inside `value`, with the names of classes and functions but
        without their code.
    key : str
        Key of the state and the code, including the globals that the code reads.
    gaps : list of str
        The parts that could not be described, and where they are.
    """

    def __init__(self, value: Any):
        self.gaps: list[str] = []
        # Classes and functions found, and where, by identity. The objects are kept, so
        # that no identity is used again meanwhile. The same goes for objects seen.
        self._code: dict[int, tuple[Any, str]] = {}
        self._seen: dict[int, tuple[int, Any]] = {}
        self._keys_of_sets: list = []
        self.state = content_key(self._describe(value, ""))
        # Counted from zero again: objects that the code refers to are not part of the
        # state.
        self._seen = {}
        self.key = content_key(self.state, self._describe_code(), self._keys_of_sets)

    def _describe(self, value: Any, where: str) -> Any:
        """Return a value for `content_key` that describes `value`, found at `where`."""
        if isinstance(value, _PLAIN) and type(value) in _PLAIN:
            return value
        if isinstance(value, _NAMED):
            return (type(value).__name__, str(value))
        if isinstance(value, _WITHOUT_CONTENT):
            return type(value).__name__
        if id(value) in self._seen:
            return ("seen", self._seen[id(value)][0])
        if type(value) is not tuple:
            # Tuples are not counted, because the interpreter may or may not store equal
            # ones as one object.
            self._seen[id(value)] = (len(self._seen), value)
        try:
            return self._describe_contents(value, where)
        except MemoryError:
            raise
        except Exception as error:
            # Access to an attribute may run any code, and objects may nest too deeply.
            return self._note_gap(value, where, f"{type(error).__name__}: {error}")

    def _describe_contents(self, value: Any, where: str) -> Any:
        # Classes derived from these may have more than items.
        if type(value) in (list, tuple):
            return self._describe_sequence(value, where)
        if type(value) in (set, frozenset):
            return self._describe_set(value, where)
        if type(value) is dict:
            return self._describe_mapping(value, where)
        for kinds, describe in self._METHODS:
            if isinstance(value, kinds):
                return describe(self, value, where)
        return self._describe_object(value, where)

    def _note_gap(self, value: Any, where: str, reason: str) -> tuple:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        self.gaps.append(f"{where.lstrip('.') or 'the object'} ({kind}: {reason})")
        return ("gap", kind)

    # Data ---------------------------------------------------------------------------

    def _describe_tensor(self, tensor: torch.Tensor, where: str) -> Any:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            return self._note_gap(tensor, where, "not a dense tensor")
        flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
        # As bytes, because NumPy has no bfloat16.
        data = flat.contiguous().view(torch.uint8).numpy()
        kind = qualified_name(type(tensor))
        # Only the key is kept, so that copies from a GPU do not accumulate.
        return (kind, str(tensor.dtype), tuple(tensor.shape), content_key(data))

    def _describe_array(self, array: np.ndarray | np.generic, where: str) -> Any:
        if array.dtype.hasobject:
            items = [self._describe(item, where) for item in np.ravel(array).tolist()]
            return ("array", np.shape(array), items)
        return (qualified_name(type(array)), np.asarray(array))

    def _describe_sequence(self, value: Sequence, where: str) -> Any:
        items = [self._describe(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return (type(value).__name__, items)

    def _describe_set(self, value: Iterable, where: str) -> Any:
        # Sorted by contents, because the order of a set depends on the process.
        alone = [Description(item) for item in value]
        self.gaps += [f"{where}: {gap}" for part in alone for gap in part.gaps]
        self._keys_of_sets.append(sorted(part.key for part in alone))
        return (type(value).__name__, sorted(part.state for part in alone))

    def _describe_mapping(self, value: Mapping, where: str) -> Any:
        items = [
            (self._describe(k, where), self._describe(v, f"{where}[{k!r:.40}]"))
            for k, v in value.items()
        ]
        return ("dict", items)

    # Objects ------------------------------------------------------------------------

    def _describe_object(self, value: Any, where: str) -> Any:
        """Describe an object by its attributes and by what pickle would store."""
        kind = self._describe(type(value), where)
        try:
            # The object's own __getstate__ may leave something out.
            state = object.__getstate__(value)
            made_from = _reduce(value)
        except Exception as error:
            return self._note_gap(value, where, str(error))
        attributes = state if isinstance(state, dict) else {}
        return (
            kind,
            self._describe_attributes(attributes, where),
            self._each([None if state is attributes else state, *made_from], where),
        )

    def _each(self, parts: Iterable, where: str) -> list:
        return [self._describe(part, where) for part in parts]

    def _describe_attributes(self, attributes: Mapping[str, Any], where: str) -> list:
        return [
            (name, self._describe(value, f"{where}.{name}"))
            for name, value in sorted(attributes.items(), key=lambda item: str(item[0]))
        ]

    def _describe_module(self, module: nn.Module, where: str) -> Any:
        if isinstance(module, torch.jit.ScriptModule):
            return self._note_gap(module, where, "its code is compiled")
        state = vars(module)
        own = {k: v for k, v in state.items() if k not in _MODULE_INTERNALS}
        if isinstance(module, torch.fx.GraphModule):
            # The graph is a linked list of many nodes; its code is equivalent.
            own["_graph"] = module.code
        # The keys of hooks are not described: they are numbered over the whole process.
        hooks = [
            (
                [*state[f"_forward{kind}_hooks"].values()],
                [key in flags for key in state[f"_forward{kind}_hooks"]],
            )
            for kind in ("", "_pre")
            for flags in [state.get(f"_forward{kind}_hooks_with_kwargs", ())]
        ]
        return (
            self._describe(type(module), where),
            self._describe_attributes(own, where),
            self._describe(hooks, f"{where}.hooks"),
            [
                (name, self._describe(child, f"{where}.{name}"))
                for name, child in module._modules.items()
            ],
        )

    def _describe_enum(self, value: enum.Enum, where: str) -> Any:
        return (qualified_name(type(value)), value.name)

    def _describe_reference(self, value: weakref.ref, where: str) -> Any:
        return ("reference", self._describe(value(), where))

    # Code ---------------------------------------------------------------------------

    def _describe_class(self, cls: type, where: str) -> Any:
        where = f"{where or 'the object'}: class {cls.__qualname__}"
        self._code.setdefault(id(cls), (cls, where))
        return qualified_name(cls)

    def _describe_function(self, function: types.FunctionType, where: str) -> Any:
        where = f"{where or 'the object'}: function {function.__qualname__}"
        self._code.setdefault(id(function), (function, where))
        return (
            qualified_name(function),
            self._describe([_contents(c) for c in function.__closure__ or ()], where),
            self._describe(function.__defaults__, where),
            self._describe(function.__kwdefaults__, where),
            self._describe_attributes(vars(function), where),
        )

    def _describe_code(self) -> list:
        """Describe the classes and functions found, and those that they refer to."""
        described: list[Any] = []
        while len(described) < len(self._code):
            item, where = list(self._code.values())[len(described)]
            if isinstance(item, type):
                described.append(self._describe_class_body(item, where))
            else:
                described.append(self._describe_function_body(item, where))
        return described

    def _describe_class_body(self, cls: type, where: str) -> Any:
        if is_library(cls):
            replaced = self._describe_attributes(replaced_methods(cls), where)
            return (library_code(cls), replaced)
        own = {k: v for k, v in vars(cls).items() if k not in _CLASS_INTERNALS}
        bases = [self._describe(base, where) for base in cls.__bases__]
        return (bases, self._describe_attributes(own, where))

    def _describe_function_body(self, function: types.FunctionType, where: str) -> Any:
        if is_library(function):
            return library_code(function)
        read = self._describe_attributes(globals_read(function), where)
        return (plain_code(function.__code__), read)

    def _describe_builtin(self, value: Any, where: str) -> Any:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, types.ModuleType):
            owner = owner.__name__
        return (value.__qualname__, self._describe(owner, where))

    def _describe_method(self, method: types.MethodType, where: str) -> Any:
        return (
            self._describe(method.__func__, where),
            self._describe(method.__self__, where),
        )

    def _describe_wrapper(self, value: Any, where: str) -> Any:
        """Describe the functions in an lru_cache, static method, property etc."""
        names = ("__wrapped__", "__func__", "fget", "fset", "fdel")
        inner = [getattr(value, name, None) for name in names]
        return (type(value).__name__, self._each(inner, where))

    def _describe_python_module(self, value: types.ModuleType, where: str) -> Any:
        return ("module", value.__name__)

    _METHODS: ClassVar[tuple[tuple[Any, Callable], ...]] = (
        (torch.Tensor, _describe_tensor),
        ((np.ndarray, np.generic), _describe_array),
        (nn.Module, _describe_module),
        (enum.Enum, _describe_enum),
        (type, _describe_class),
        (types.FunctionType, _describe_function),
        (types.MethodType, _describe_method),
        (_BUILTIN, _describe_builtin),
        (types.ModuleType, _describe_python_module),
        (
            (staticmethod, classmethod, property, functools._lru_cache_wrapper),
            _describe_wrapper,
        ),
        (weakref.ref, _describe_reference),
        (types.MappingProxyType, _describe_mapping),
    )


def _reduce(value: Any) -> list:
    """Return what pickle would store of `value`, in addition to its attributes."""
    reducer = copyreg.dispatch_table.get(type(value))
    parts = reducer(value) if reducer else value.__reduce_ex__(4)
    if isinstance(parts, str):
        # The name of an object that exists only once.
        return [parts]
    function, arguments, state, items, pairs = (*parts, None, None, None)[:5]
    contents = [arguments, list(items or ()), list(pairs or ())]
    if any(function is maker for maker in _MAKERS):
        return contents
    return [*contents, function, state]


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # Not assigned yet.
        return "empty cell"
