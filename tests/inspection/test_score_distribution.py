import numpy as np
import pytest
from scipy.stats import beta, iqr
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from skpatchcore import PatchMemoryBank
from skpatchcore.calibration import ConformalDetector
from skpatchcore.inspection import ScoreDistributionDisplay
from skpatchcore.inspection._score_distribution import estimate_density

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(40, 3)), rng.normal(4, 1, (15, 3))])
    return X, np.repeat([1, -1], [40, 15])


def labels_of(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_rates_are_those_of_predict(samples):
    X, y = samples
    bank = PatchMemoryBank(contamination=0.2, random_state=0)
    detector = ConformalDetector(bank, alpha=0.1, random_state=0).fit(X[:20])
    display = ScoreDistributionDisplay.from_estimator(detector, X[20:], y[20:])
    predicted = detector.predict(X[20:])
    normal = y[20:] == 1
    assert display.false_alarm_rate_ == np.mean(predicted[normal] == -1)
    assert display.miss_rate_ == np.mean(predicted[~normal] == 1)
    assert "set for 10 %" in labels_of(display)[-1]


def test_the_interval_of_the_rate_is_clopper_and_pearsons():
    display = ScoreDistributionDisplay.from_predictions(
        [1] * 20, np.arange(20.0), threshold=1.0
    )
    # A score at the threshold is normal, as with decision_function.
    assert display.false_alarm_rate_ == 1 / 20
    low, high = beta.ppf(0.025, 1, 20), beta.ppf(0.975, 2, 19)
    np.testing.assert_allclose(display.false_alarm_interval_, (low, high))
    assert np.isnan(display.miss_rate_)
    low, high = (f"{100 * end:.3g}" for end in display.false_alarm_interval_)
    assert (
        "95 % confidence interval\n(Clopper-Pearson): " + f"{low} to {high} %"
    ) in labels_of(display)[-1]


def test_the_legend_states_the_level_that_the_threshold_was_set_for(samples):
    X, y = samples
    detector = ConformalDetector(OneClassSVM(), alpha=0.1, random_state=0).fit(X[:20])
    detector.set_params(alpha=0.5)
    display = ScoreDistributionDisplay.from_estimator(detector, X, y)
    assert "set for 10 %" in labels_of(display)[-1]


def test_legend_title_and_labels_do_not_overlap(samples):
    _, y = samples
    display = ScoreDistributionDisplay.from_predictions(
        y, np.where(y == 1, -1.0, -5.0), threshold=-3.0, alpha=0.01
    )
    display.figure_.canvas.draw()
    axes = display.ax_
    boxes = [
        part.get_window_extent()
        for part in (axes, axes.title, axes.xaxis.label, axes.get_legend())
    ]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x0 >= 0
        assert box.x1 <= display.figure_.bbox.x1
        assert box.y0 >= 0


def test_a_figure_has_a_title_but_that_of_given_axes_stays(samples):
    _, y = samples
    scores = np.where(y == 1, -1.0, -5.0)
    display = ScoreDistributionDisplay.from_predictions(y, scores)
    assert display.ax_.get_title() == "Anomaly scores of normal and anomalous samples"
    _, ax = plt.subplots()
    ax.set_title("test images")
    ScoreDistributionDisplay.from_predictions(y, scores, ax=ax)
    assert ax.get_title() == "test images"


@pytest.mark.parametrize(
    "detector",
    [
        OneClassSVM(nu=0.1),
        IsolationForest(n_estimators=20, random_state=0),
        make_pipeline(StandardScaler(), OneClassSVM(nu=0.2)),
    ],
    ids=["array", "float", "pipeline"],
)
def test_thresholds_of_scikit_learn_are_found(samples, detector):
    X, y = samples
    detector.fit(X[:20])
    display = ScoreDistributionDisplay.from_estimator(detector, X, y)
    assert display.false_alarm_rate_ == np.mean(detector.predict(X[y == 1]) == -1)


def test_the_axis_is_higher_for_more_anomalous(samples):
    _, y = samples
    scores = np.where(y == 1, -1.0, -5.0) + np.linspace(0, 0.5, len(y))
    display = ScoreDistributionDisplay.from_predictions(y, scores, threshold=-3.0)
    line = display.ax_.lines[-1]
    assert list(line.get_xdata()) == [3.0, 3.0]
    assert labels_of(display)[:2] == ["normal (40)", "anomalous (15)"]
    normal_ticks, normal_curve = display.ax_.lines[:2]
    assert (normal_ticks.get_xdata() < 3).all()
    assert normal_curve.get_ydata().max() == 1


def test_one_sample_has_no_density_but_a_tick(samples):
    display = ScoreDistributionDisplay.from_predictions([1, 1, 1, -1], [0, 0, 0, -2.0])
    assert labels_of(display) == ["normal (3)", "anomalous (1)"]
    assert display.ax_.get_lines()[0].get_marker() == "|"
    assert np.isnan(display.false_alarm_rate_)
    display.figure_.canvas.draw()


def test_a_density_is_a_sum_of_gaussians():
    values = np.array([0.0, 1.0, 4.0])
    x, density = estimate_density(values, 0.5)
    reference = sum(np.exp(-2 * (x - value) ** 2) for value in values)
    np.testing.assert_allclose(density, reference / reference.max())


def test_far_values_do_not_blur_the_others():
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(size=99), 1e3)
    x, density = estimate_density(values, None)
    assert np.ptp(x[density > 0.5]) < 20


@pytest.mark.parametrize("bandwidth", [0, -1.0, np.nan])
def test_a_bandwidth_that_is_not_positive_is_refused(samples, bandwidth):
    with pytest.raises(ValueError, match=r"bandwidth=.* must be positive"):
        ScoreDistributionDisplay.from_predictions(
            samples[1], samples[0][:, 0], bandwidth=bandwidth
        )


def test_bandwidth_is_silvermans_with_quartiles():
    values = np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 50.0])
    bandwidth = 0.9 * iqr(values, scale="normal") * len(values) ** -0.2
    np.testing.assert_allclose(
        estimate_density(values, None), estimate_density(values, bandwidth)
    )


def test_labels_of_another_kind_are_explained():
    with pytest.raises(ValueError, match=r"y_true must contain the labels \+1"):
        ScoreDistributionDisplay.from_predictions([0, 1], [0.0, 1.0])
