"""Helpers that several test modules share."""

from collections.abc import Callable

import pytest

from skpatchcore._backbones import Backbone


def count_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count from now on the images that pass a network; return the counter.

    Not by an attribute of a test's own network: that is part of what cached results
    depend on.
    """
    sizes: list[int] = []
    forward = Backbone.__call__

    def count(network, batch):
        sizes.append(len(batch))
        return forward(network, batch)

    monkeypatch.setattr(Backbone, "__call__", count)
    return lambda: sum(sizes)
