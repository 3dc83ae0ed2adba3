"""The gallery runs from start to end, on generated images."""

import runpy
from pathlib import Path

import pytest

matplotlib = pytest.importorskip("matplotlib")
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("plot_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, monkeypatch, tmp_path):
    # No real images: their number decides how long an example takes.
    monkeypatch.setenv("SKPATCHCORE_DATA", str(tmp_path))
    run(example, monkeypatch)


@pytest.mark.slow
def test_an_example_uses_mvtec_ad_where_it_is_found(assets, monkeypatch):
    monkeypatch.setenv("SKPATCHCORE_DATA", str(assets / "data"))
    names = run(EXAMPLES[0], monkeypatch)
    assert names["data_home"] == assets / "data" / "mvtec_ad"
    assert "bottle" in names["dataset"].DESCR


def run(example, monkeypatch):
    """Run an example, whose figures need titles, and return its variables."""
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "show", lambda: None)
    with matplotlib.rc_context({"backend": "Agg"}):
        names = runpy.run_path(str(example))
        assert plt.get_fignums()
        assert all(has_title(plt.figure(number)) for number in plt.get_fignums())
        plt.close("all")
    return names


def has_title(figure):
    """Return whether a figure has a title for all of it, or one for each plot."""
    # Colour bars are not plots and need no title.
    plots = [ax for ax in figure.axes if ax.get_subplotspec() is not None]
    return bool(figure.get_suptitle()) or all(ax.get_title() for ax in plots)
