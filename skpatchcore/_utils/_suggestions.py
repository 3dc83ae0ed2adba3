"""Suggestions for misspelt names, for error messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(
    name: str, names: Iterable[str], *, n: int = 3, cutoff: float = 0.6
) -> str:
    """Return a question that starts with a space, or nothing if no name is close.

    Parameters
    ----------
    name : str
        What was given.
    names : iterable of str
        What is accepted.
    n : int
        Most names to suggest.
    cutoff : float
        Least similarity, from 0 to 1.
    """
    close = difflib.get_close_matches(name, list(names), n=n, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
