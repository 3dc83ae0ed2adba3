"""The gallery runs from start to end, on procedural pictures."""

import runpy
from pathlib import Path

import pytest

matplotlib = pytest.importorskip("matplotlib")
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("plot_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, monkeypatch, tmp_path):
    # No real pictures: their number decides how long an example takes.
    monkeypatch.setenv("SKPATCHCORE_ASSETS", str(tmp_path))
    monkeypatch.setenv("SKPATCHCORE_DATA", str(tmp_path))
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "show", lambda: None)
    with matplotlib.rc_context({"backend": "Agg"}):
        runpy.run_path(str(example))
        assert plt.get_fignums()
        plt.close("all")
