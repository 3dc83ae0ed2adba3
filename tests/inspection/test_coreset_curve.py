import numpy as np
import pytest

from skpatchcore import CoresetSampler, PatchMemoryBank
from skpatchcore.inspection import CoresetCurveDisplay

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(50, 4, 3))


@pytest.fixture(scope="module")
def bank(X):
    return PatchMemoryBank(CoresetSampler(0.25), random_state=0).fit(X)


def texts_of(display):
    return [text.get_text() for text in display.ax_.texts]


def test_a_curve_is_the_radii_of_the_picks(bank, X):
    display = CoresetCurveDisplay.from_estimator(bank, name="bank")
    x, y = display.line_.get_data()
    np.testing.assert_array_equal(x, np.arange(1, 51))
    # The oracle: how far the farthest patch is from the first selected patches.
    patches = X.reshape(-1, 3)
    selected = patches[bank.sampler_.sample_indices_[:7]]
    distances = np.linalg.norm(patches[:, None] - selected, axis=2).min(axis=1)
    assert y[6] == pytest.approx(distances.max(), rel=1e-5)
    assert display.ax_.get_xlabel() == "patches kept, out of 200"
    assert display.ax_.get_xscale() == "log"
    assert display.ax_.get_title() == "Cover radius of the coreset"
    assert display.ax_.get_legend() is not None


def test_holders_of_a_sampler_give_the_same_curve(bank):
    class Detector:
        memory_bank_ = bank

    for holder in (bank.sampler_, Detector()):
        display = CoresetCurveDisplay.from_estimator(holder)
        np.testing.assert_array_equal(display.line_.get_ydata(), bank.sampler_.radii_)


@pytest.mark.parametrize(
    ("mark", "text"), [(0.1, "20 patches (10 %)"), (50, "50 patches (25 %)")]
)
def test_a_fraction_or_a_number_can_be_marked(bank, mark, text):
    display = CoresetCurveDisplay.from_estimator(bank, mark=mark, log=False)
    (found,) = texts_of(display)
    count = int(text.split()[0])
    assert found == f"{text}\nradius {bank.sampler_.radii_[count - 1]:.3g}"


def test_marks_that_are_not_on_the_curve_are_refused(bank):
    display = CoresetCurveDisplay.from_estimator(bank)
    with pytest.raises(ValueError, match=r"mark=0\.5 means 100 patches; .* 1 to 50"):
        display.plot(mark=0.5)
    with pytest.raises(ValueError, match="n_samples is None"):
        CoresetCurveDisplay.from_predictions([2.0, 1.0], mark=0.5)


def test_curves_share_axes(bank):
    _, ax = plt.subplots()
    for name in ("a", "b"):
        display = CoresetCurveDisplay.from_estimator(bank, name=name, ax=ax)
    assert display.ax_ is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_what_has_no_radii_is_refused(X):
    with pytest.raises(TypeError, match="has no cover radii"):
        CoresetCurveDisplay.from_estimator(CoresetSampler())
    keeps_all = CoresetSampler(method="none").fit(X[:, 0])
    with pytest.raises(ValueError, match="method='none' every patch is kept"):
        CoresetCurveDisplay.from_estimator(keeps_all)
