"""Kinds of values that a model file may hold: types, ranges and their descriptions."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, csr_matrix

#: The largest float.
LARGEST = float(np.finfo(np.float64).max)


class Kind(ABC):
    """A condition on a value. ``str(kind)`` completes the sentence "... must be"."""

    @abstractmethod
    def accepts(self, value: object) -> bool:
        """Return whether `value` is of this kind."""

    def __or__(self, other: "Kind") -> "Kind":
        return Either(self, other)


class Either(Kind):
    """One of two kinds."""

    def __init__(self, first: Kind, second: Kind):
        self.kinds = (first, second)

    def accepts(self, value: object) -> bool:
        return any(kind.accepts(value) for kind in self.kinds)

    def __str__(self) -> str:
        return " or ".join(map(str, self.kinds))


class Null(Kind):
    """None."""

    def accepts(self, value: object) -> bool:
        return value is None

    def __str__(self) -> str:
        return "None"


class Flag(Kind):
    """A bool, not an int."""

    def accepts(self, value: object) -> bool:
        return type(value) is bool

    def __str__(self) -> str:
        return "a bool"


@dataclass(frozen=True)
class Whole(Kind):
    """An int in a range, not a bool."""

    low: int
    high: int

    def accepts(self, value: object) -> bool:
        return type(value) is int and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"an int from {self.low} to {self.high}"


@dataclass(frozen=True)
class Number(Kind):
    """A finite number in a range; `excluded` says which ends are not included.

    With `fraction`, ints are refused. This is for parameters where 1 is a count and 1.0
    a fraction, and for fitted numbers, which are always floats.
    """

    low: float
    high: float
    excluded: str = ""
    fraction: bool = False

    def accepts(self, value: object) -> bool:
        if type(value) is not float and (self.fraction or type(value) is not int):
            return False
        # NaN fails these comparisons, and Python compares ints of any size exactly.
        above = value > self.low if "low" in self.excluded else value >= self.low
        below = value < self.high if "high" in self.excluded else value <= self.high
        return above and below

    def __str__(self) -> str:
        noun = "a float" if self.fraction else "a number"
        if (self.low, self.high) == (-LARGEST, LARGEST):
            return f"{noun} that is finite"
        left = "(" if "low" in self.excluded else "["
        right = ")" if "high" in self.excluded else "]"
        return f"{noun} in {left}{self.low:g}, {self.high:g}{right}"


class Choice(Kind):
    """One of several strings."""

    def __init__(self, *names: str):
        self.names = names

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and value in self.names

    def __str__(self) -> str:
        return " or ".join(map(repr, self.names))


@dataclass(frozen=True)
class Text(Kind):
    """A string of limited length that fully matches a regular expression."""

    what: str
    pattern: str = r"[\s\S]*"
    longest: int = 256

    def accepts(self, value: object) -> bool:
        if not isinstance(value, str) or len(value) > self.longest:
            return False
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Items(Kind):
    """A list or tuple of values of one kind."""

    kind: Kind
    least: int = 0
    most: int = 2**16
    types: tuple[type, ...] = (list, tuple)

    def accepts(self, value: object) -> bool:
        # Derived classes are refused.
        if type(value) not in self.types or not isinstance(value, list | tuple):
            return False
        if not self.least <= len(value) <= self.most:
            return False
        return all(map(self.kind.accepts, value))

    def __str__(self) -> str:
        count = f"{self.least}" if self.least == self.most else f"at most {self.most}"
        names = " or ".join(one.__name__ for one in self.types)
        return f"a {names} of {count} items, each {self.kind}"


class Row(Kind):
    """A tuple with a kind for each item."""

    def __init__(self, *kinds: Kind):
        self.kinds = kinds

    def accepts(self, value: object) -> bool:
        if not isinstance(value, tuple) or type(value) is not tuple:
            return False
        if len(value) != len(self.kinds):
            return False
        return all(kind.accepts(v) for kind, v in zip(self.kinds, value, strict=True))

    def __str__(self) -> str:
        return f"a tuple ({', '.join(map(str, self.kinds))})"


@dataclass(frozen=True)
class Array(Kind):
    """An ndarray of given dtypes and dimensions, with finite values in a range.

    With `gaps`, values may be NaN. With `sparse`, it may be a CSR matrix.
    """

    dtypes: tuple[str, ...]
    ndim: int
    low: float
    high: float
    gaps: bool = False
    sparse: bool = False

    def accepts(self, value: object) -> bool:
        if self.sparse and isinstance(value, csr_array | csr_matrix):
            return value.ndim == self.ndim and self._inside(value.data)
        if not isinstance(value, np.ndarray) or value.ndim != self.ndim:
            return False
        return self._inside(value)

    def _inside(self, values: np.ndarray) -> bool:
        if str(values.dtype) not in self.dtypes:
            return False
        if self.gaps:
            values = values[~np.isnan(values)]
        if values.size == 0:
            return True
        # Python numbers are compared without a cast. NaN fails both comparisons.
        return values.min().item() >= self.low and values.max().item() <= self.high

    def __str__(self) -> str:
        values = f"values from {self.low:g} to {self.high:g}"
        if (self.low, self.high) == (-LARGEST, LARGEST):
            values = "finite values"
        shape = ", ".join("?" * self.ndim)
        return (
            f"{' or '.join(self.dtypes)} of shape ({shape}) with {values}"
            f"{' or NaN' if self.gaps else ''}"
        )


class Names(Kind):
    """An object array of strings, such as ``feature_names_in_``."""

    def accepts(self, value: object) -> bool:
        if not isinstance(value, np.ndarray) or value.dtype != object:
            return False
        return value.ndim == 1 and all(type(name) is str for name in value)

    def __str__(self) -> str:
        return "an array of names"


class Instance(Kind):
    """An instance of one of several classes; of subclasses only if `subclassed`."""

    def __init__(self, *classes: type, subclassed: bool = False):
        self.classes, self.subclassed = classes, subclassed

    def accepts(self, value: object) -> bool:
        if self.subclassed:
            return isinstance(value, self.classes)
        return type(value) in self.classes

    def __str__(self) -> str:
        return " or ".join(f"a {cls.__name__}" for cls in self.classes)


def in_short(value: object) -> str:
    """Return a value as one line of limited length, for error messages."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size:
        extent = f"values from {value.min():g} to {value.max():g}"
        return f"{value.dtype} of shape {value.shape} with {extent}"
    return re.sub(r"\s+", " ", f"{value!r:.400}")[:80]
