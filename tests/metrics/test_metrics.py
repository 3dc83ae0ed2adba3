"""Compare the metrics with scikit-learn and with independent definitions."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from skimage.measure import label
from sklearn.ensemble import IsolationForest
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    get_scorer,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_validate
from sklearn.neighbors import LocalOutlierFactor

from skpatchcore.metrics import _pixel as metrics
from skpatchcore.metrics import (
    aupro,
    average_precision,
    average_precision_scorer,
    f1_max,
    f1_max_scorer,
    image_auroc,
    image_auroc_scorer,
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_max,
    pixel_metrics,
)

IMAGE_METRICS = [image_auroc, average_precision, f1_max]
PIXEL_METRICS = [
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_max,
    aupro,
    pixel_metrics,
]
SCORERS = {
    image_auroc: image_auroc_scorer,
    average_precision: average_precision_scorer,
    f1_max: f1_max_scorer,
}


# Inputs and definitions -------------------------------------------------------------


def naive_aupro(masks, maps, max_fpr=0.3):
    """Compute AUPRO by its definition, with one pass over all images per threshold."""
    seen = [~np.isnan(scores) for scores in maps]
    n_normal = sum(((mask == 0) & s).sum() for mask, s in zip(masks, seen, strict=True))
    points = [(0.0, 0.0)]
    thresholds = {float(v) for scores in maps for v in np.ravel(scores) if v == v}
    for threshold in sorted(thresholds, reverse=True):
        false_positives, overlaps = 0, []
        for mask, scores, visible in zip(masks, maps, seen, strict=True):
            marked = visible & (scores >= threshold)
            false_positives += (marked & (mask == 0)).sum()
            regions = label(mask != 0, connectivity=2)
            for region in range(1, regions.max() + 1):
                pixels = (regions == region) & visible
                if pixels.any():
                    overlaps.append(marked[pixels].mean())
        points.append((false_positives / n_normal, np.mean(overlaps)))

    area = 0.0
    for (left, low), (right, high) in pairwise(points):
        if left >= max_fpr:
            break
        if right > max_fpr:
            high = low + (high - low) * (max_fpr - left) / (right - left)
            right = max_fpr
        area += (right - left) * (low + high) / 2
    return area / max_fpr


def flatten(masks, maps):
    """Return labels (True for anomalous) and scores of all pixels that are not NaN."""
    scores = np.concatenate([np.ravel(m) for m in maps])
    labels = np.concatenate([np.ravel(m) for m in masks]) != 0
    return labels[~np.isnan(scores)], scores[~np.isnan(scores)]


def best_f1_on_curve(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))


@st.composite
def labelled_scores(draw):
    n = draw(st.integers(2, 30))
    y_true = draw(
        st.lists(st.sampled_from([1, -1]), min_size=n, max_size=n).filter(
            lambda labels: len(set(labels)) == 2
        )
    )
    scores = draw(
        st.one_of(
            st.lists(st.integers(-2, 2).map(float), min_size=n, max_size=n),
            st.lists(st.floats(-1e300, 1e300), min_size=n, max_size=n),
            st.lists(
                st.floats(width=32, allow_nan=False, allow_infinity=False),
                min_size=n,
                max_size=n,
            ).map(np.float32),
        )
    )
    return np.array(y_true), np.asarray(scores)


@st.composite
def masked_maps(draw):
    """Draw one to three images of different sizes, with few distinct scores and NaN."""
    sizes = draw(
        st.lists(
            st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_levels = draw(st.integers(1, 12))
    share_hidden = draw(st.sampled_from([0.0, 0.2]))
    masks, maps = [], []
    for size in sizes:
        masks.append((rng.random(size) < draw(st.sampled_from([0.0, 0.2, 0.5]))) * 255)
        scores = rng.integers(n_levels, size=size).astype(np.float32)
        maps.append(np.where(rng.random(size) < share_hidden, np.nan, scores))
    labels, _ = flatten(masks, maps)
    if len(set(labels)) < 2:
        masks.append(np.array([[0, 1]]))
        maps.append(np.array([[0.0, 1.0]], dtype=np.float32))
    return masks, maps


def cut_in_two(masks, maps):
    """Return pieces 30 and 2 pixels wide; no defect of `inspected` crosses the cut."""
    return [
        [piece for image in images for piece in np.split(image, [30], axis=1)]
        for images in (masks, maps)
    ]


@pytest.fixture
def inspected():
    """Return five float32 maps of 24 x 32 that find rectangular defects imperfectly."""
    rng = np.random.default_rng(0)
    masks = np.zeros((5, 24, 32), dtype=bool)
    masks[0, 3:9, 3:9] = masks[0, 15:17, 20:23] = masks[2, 10:20, 5:30] = True
    maps = (rng.normal(size=masks.shape) + masks).astype(np.float32)
    return masks, maps


# Image level ------------------------------------------------------------------------


@given(labelled_scores())
@settings(deadline=None, max_examples=50)
def test_image_metrics_agree_with_sklearn(case):
    y_true, y_score = case
    anomalous, anomaly = y_true == -1, -y_score
    assert_allclose(image_auroc(y_true, y_score), roc_auc_score(anomalous, anomaly))
    assert_allclose(
        average_precision(y_true, y_score), average_precision_score(anomalous, anomaly)
    )
    assert_allclose(f1_max(y_true, y_score).f1, best_f1_on_curve(anomalous, anomaly))


@given(labelled_scores(), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_weighted_image_metrics_agree_with_sklearn(case, seed):
    y_true, y_score = case
    weights = np.random.default_rng(seed).integers(1, 5, len(y_true)) / 4
    anomalous, anomaly, weighted = y_true == -1, -y_score, {"sample_weight": weights}
    assert_allclose(
        image_auroc(y_true, y_score, **weighted),
        roc_auc_score(anomalous, anomaly, **weighted),
    )
    assert_allclose(
        average_precision(y_true, y_score, **weighted),
        average_precision_score(anomalous, anomaly, **weighted),
    )
    best = f1_max(y_true, y_score, **weighted)
    called = np.where(y_score < best.threshold, -1, 1)
    assert_allclose(best.f1, f1_score(y_true, called, pos_label=-1, **weighted))


def test_equal_weights_change_nothing():
    y_true, y_score = [1, 1, -1, -1], [3.0, 1.0, 2.0, 0.0]
    for metric in (image_auroc, average_precision):
        assert metric(y_true, y_score, sample_weight=[2] * 4) == metric(y_true, y_score)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, -1, 1], r"sample_weight\[1\] = -1"),
        ([1, 1, np.nan], r"sample_weight\[2\] = nan"),
        ([1, 1], "inconsistent"),
        ([1, 1, 0], "no anomalous image"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        image_auroc([1, 1, -1], [1.0, 2.0, 3.0], sample_weight=weights)


@given(labelled_scores())
@settings(deadline=None, max_examples=50)
def test_f1_threshold_reproduces_its_values_exactly(case):
    y_true, y_score = case
    best = f1_max(y_true, y_score)
    called = np.where(y_score < best.threshold, -1, 1)
    assert best.f1 == f1_score(y_true, called, pos_label=-1)
    assert best.precision == precision_score(y_true, called, pos_label=-1)
    assert best.recall == recall_score(y_true, called, pos_label=-1)


@given(labelled_scores())
@settings(deadline=None, max_examples=50)
def test_image_metrics_depend_on_the_order_of_scores_only(case):
    y_true, y_score = case
    _, ranks = np.unique(y_score, return_inverse=True)
    assert image_auroc(y_true, y_score) == image_auroc(y_true, ranks)
    assert average_precision(y_true, y_score) == average_precision(y_true, ranks)
    assert f1_max(y_true, y_score).f1 == f1_max(y_true, ranks).f1


def test_lower_scores_mean_anomalous():
    assert image_auroc([1, 1, -1], [2.0, 3.0, 1.0]) == 1.0
    assert image_auroc([1, 1, -1], [1.0, 2.0, 3.0]) == 0.0
    assert average_precision([1, 1, -1], [1.0, 2.0, 3.0]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_f1_threshold_separates_neighbouring_floats(dtype):
    low = np.nextafter(dtype(1), dtype(2))
    for lower in (dtype(1), low):
        y_score = np.array([lower, np.nextafter(lower, dtype(2))], dtype=dtype)
        best = f1_max([-1, 1], y_score)
        assert (y_score < best.threshold).tolist() == [True, False]


def test_f1_threshold_does_not_overflow():
    largest = np.finfo(np.float32).max
    scores = np.array([largest / 2, largest], dtype=np.float32)
    assert f1_max([-1, 1], scores).threshold == pytest.approx(0.75 * largest)


def test_f1_threshold_is_midway_between_distinct_scores():
    assert f1_max([-1, -1, 1], [1.0, 1.0, 4.0]).threshold == 2.5
    assert f1_max([-1, 1, -1, 1, 1, 1, 1], range(7)).threshold == 2.5


def test_f1_threshold_of_zero_has_no_sign():
    assert str(f1_max([-1, 1], [-1.0, 1.0]).threshold) == "0.0"


def test_f1_threshold_is_inf_when_everything_is_called_anomalous():
    best = f1_max([1, -1, -1], [0.0, 0.0, 0.0])
    assert best == {"f1": 0.8, "threshold": np.inf, "precision": 2 / 3, "recall": 1.0}


def test_among_equal_f1_the_fewest_false_alarms_win():
    # F1 is 2/3 if the first image or the first four are called anomalous.
    y_true = [-1, 1, 1, -1, 1]
    best = f1_max(y_true, [0.0, 1.0, 2.0, 3.0, 4.0])
    assert (best.f1, best.precision, best.recall) == (2 / 3, 1.0, 0.5)
    assert best.threshold == 0.5


@pytest.mark.parametrize("metric", IMAGE_METRICS)
@pytest.mark.parametrize(
    ("y_true", "y_score", "message"),
    [
        ([0, 1, 1], [1.0, 2.0, 3.0], r"\+1 \(normal\) and -1 .*got 0, 1\. If 1 stands"),
        (["good", "bad"], [1.0, 2.0], "got 'bad', 'good'"),
        (["-1", "1"], [1.0, 2.0], "got '-1', '1'"),
        (np.linspace(0, 1, 9), np.ones(9), r"got 0\.0, 0\.125, .*, \.\.\."),
        ([1, 1, 1], [1.0, 2.0, 3.0], r"no anomalous image \(-1\) among 3"),
        ([-1, -1], [1.0, 2.0], r"no normal image \(\+1\) among 2"),
        ([1, -1], [1.0, np.nan], "y_score contains NaN"),
        ([1, -1], [1.0, -np.inf], "y_score contains infinity"),
        ([1, -1], [1.0, 2.0, 3.0], r"inconsistent numbers of samples: \[2, 3\]"),
        ([1, 1], [1.0, 2.0, 3.0], r"inconsistent numbers of samples: \[2, 3\]"),
        ([1, -1], [[1.0, 2.0], [3.0, 4.0]], r"1d array.*\(2, 2\)"),
        ([], [], "y_true contains no normal image"),
    ],
)
def test_bad_labels_and_scores_are_refused(metric, y_true, y_score, message):
    with pytest.raises(ValueError, match=message):
        metric(y_true, y_score)


def test_integer_scores_and_lists_are_accepted():
    assert image_auroc([1, -1], np.array([3, 1], dtype=np.uint8)) == 1.0
    assert f1_max(np.array([1.0, -1.0]), [3, 1]).threshold == 2.0


# Pixel level ------------------------------------------------------------------------


@given(masked_maps())
@settings(deadline=None, max_examples=40)
def test_pixel_metrics_agree_with_sklearn_on_flattened_pixels(case):
    labels, scores = flatten(*case)
    assert_allclose(pixel_auroc(*case), roc_auc_score(labels, scores))
    assert_allclose(
        pixel_average_precision(*case), average_precision_score(labels, scores)
    )
    assert_allclose(pixel_f1_max(*case).f1, best_f1_on_curve(labels, scores))


@given(masked_maps())
@settings(deadline=None, max_examples=40)
def test_pixel_f1_threshold_reproduces_its_values_exactly(case):
    labels, scores = flatten(*case)
    best = pixel_f1_max(*case)
    called = scores > best.threshold
    assert best.f1 == f1_score(labels, called)
    assert best.precision == precision_score(labels, called)
    assert best.recall == recall_score(labels, called)


@given(masked_maps(), st.sampled_from([0.01, 0.3, 0.5, 1.0]))
@settings(deadline=None, max_examples=40)
def test_aupro_agrees_with_its_definition(case, max_fpr):
    assert_allclose(
        aupro(*case, max_fpr=max_fpr), naive_aupro(*case, max_fpr), atol=1e-12
    )


@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
def test_aupro_agrees_with_its_definition_on_distinct_scores(inspected, max_fpr):
    masks, maps = inspected
    masks, maps = masks[:1], maps[:1]
    assert_allclose(
        aupro(masks, maps, max_fpr=max_fpr), naive_aupro(masks, maps, max_fpr)
    )


@given(masked_maps())
@settings(deadline=None, max_examples=30)
def test_pixel_metrics_depend_on_the_order_of_scores_only(case):
    masks, maps = case
    before = pixel_metrics(masks, maps)
    after = pixel_metrics(masks, [np.exp(scores) - 7 for scores in maps])
    del before["threshold"], after["threshold"]
    assert after == before


@given(masked_maps(), st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=30)
def test_every_metric_stays_in_its_range(case, max_fpr):
    report = pixel_metrics(*case, max_fpr=max_fpr)
    del report["threshold"]
    assert all(0 <= value <= 1 + 1e-12 for value in report.values())


def test_report_equals_the_single_metrics(inspected):
    assert pixel_metrics(*inspected, max_fpr=0.1) == {
        "auroc": pixel_auroc(*inspected),
        "average_precision": pixel_average_precision(*inspected),
        "aupro": aupro(*inspected, max_fpr=0.1),
        **pixel_f1_max(*inspected),
    }


def test_report_ranks_the_pixels_once(inspected, monkeypatch):
    sorts = []
    monkeypatch.setattr(
        metrics,
        "rank",
        lambda *args, rank=metrics.rank: sorts.append(1) or rank(*args),
    )
    pixel_metrics(*inspected)
    assert len(sorts) == 1


@pytest.mark.parametrize(
    "as_given",
    [
        lambda masks, maps: (list(masks), list(maps)),
        lambda masks, maps: (masks.astype(np.uint8) * 255, maps),
        lambda masks, maps: (masks * 0.5, maps.tolist()),
        lambda masks, maps: ([m if m.any() else None for m in masks], maps),
        lambda masks, maps: (masks[::-1], maps[::-1]),
        lambda masks, maps: (masks[:, ::-1], maps[:, ::-1]),
        cut_in_two,
    ],
    ids=["list", "uint8", "float64", "None", "reversed", "flipped", "sizes"],
)
def test_arrays_and_lists_give_the_same_metrics(inspected, as_given):
    masks, maps = inspected
    expected, got = pixel_metrics(masks, maps), pixel_metrics(*as_given(masks, maps))
    # The threshold is rounded to the dtype of the maps.
    assert got.pop("threshold") == pytest.approx(expected.pop("threshold"), rel=1e-6)
    assert got == pytest.approx(expected, rel=1e-12)


def test_inputs_are_not_changed(inspected):
    masks, maps = (array.copy() for array in inspected)
    for array in inspected:
        array.flags.writeable = False
    pixel_metrics(*inspected)
    np.testing.assert_array_equal(inspected, (masks, maps))


def test_perfect_maps_score_one_and_inverted_maps_score_zero(inspected):
    masks, _ = inspected
    perfect = pixel_metrics(masks, masks)
    assert perfect.pop("threshold") == 0.5
    assert set(perfect.values()) == {1.0}
    assert pixel_auroc(masks, ~masks) == 0.0
    assert aupro(masks, ~masks) == 0.0


def test_constant_maps_score_like_random_ones(inspected):
    masks, maps = inspected
    report = pixel_metrics(masks, np.zeros_like(maps))
    assert report.auroc == 0.5
    assert report.average_precision == report.precision == masks.mean()
    assert report.aupro == pytest.approx(0.15)
    assert report.threshold == -np.inf


def test_regions_touching_at_a_corner_are_one():
    # As one region: 2 of 3 pixels come first. As two: 1 of 1, then half of 2.
    mask = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    scores = np.array([[9.0, 0, 0], [0, 8.0, -1.0], [0, 0, 0]])
    assert aupro([mask], [scores], max_fpr=0.5) == pytest.approx(2 / 3)


def test_small_regions_weigh_as_much_as_large_ones():
    mask = np.array([[1, 1, 1, 1, 0, 1, 0]])
    scores = np.array([[5.0, 5.0, 5.0, 5.0, 1.0, 0.0, 1.0]])
    assert aupro([mask], [scores], max_fpr=0.9) == pytest.approx(0.5)


def test_regions_do_not_join_across_images():
    mask = np.array([[1], [0]])
    scores = [np.array([[9.0], [0.0]]), np.array([[-1.0], [0.0]])]
    assert aupro([mask, mask], scores) == pytest.approx(0.5)


def test_nan_pixels_at_the_border_are_not_counted(inspected):
    masks, maps = inspected
    masks[3, 0, 0] = True  # A region completely hidden by the border.
    masks[1, 10:12, 0:6] = True  # and one it hides in part
    inner = np.s_[:, 2:-2, 2:-2]
    rimmed = np.full_like(maps, np.nan)
    rimmed[inner] = maps[inner]
    assert pixel_metrics(masks, rimmed) == pixel_metrics(masks[inner], maps[inner])


def test_hidden_pixels_still_join_their_region():
    # One region with three counted pixels, not two regions with one and two pixels.
    mask = np.array([[1, 1, 1, 1, 0]])
    scores = np.array([[5.0, np.nan, -1.0, -1.0, 0.0]])
    assert aupro([mask], [scores]) == pytest.approx(1 / 3)


def test_float32_maps_are_ranked_as_float32(inspected):
    ranking = metrics._rank_pixels(*inspected)
    assert ranking.normal.dtype == ranking.scores.dtype == np.float32


@pytest.mark.parametrize("metric", PIXEL_METRICS)
@pytest.mark.parametrize(
    ("masks", "maps", "message"),
    [
        (np.zeros((2, 3, 3)), np.ones((2, 3, 3)), "anomalous .* of 2 image"),
        ([None], np.ones((1, 3, 3)), "anomalous .* of 1 image"),
        (np.ones((2, 3, 3)), np.ones((2, 3, 3)), "is normal"),
        ([[[1, 0]]], [[[np.nan, 1.0]]], "None of the pixels with a score is anomalous"),
        (
            [[[1, 0]], [[1, 0]]],
            [[[1, 0]], [[1], [0]]],
            r"masks\[1\] has the shape \(1, 2\), but maps\[1\] has \(2, 1\)",
        ),
        (np.ones((1, 3, 3, 3)), np.ones((1, 3, 3)), r"masks\[0\].*\(3, 3, 3\)"),
        (np.eye(3), np.eye(3), r"maps\[0\] must be one 2-D map .*\(3,\)"),
        ([None], [None], r"maps\[0\] must be one 2-D map .*\(\)"),
        ([[[1, 0]]], [[[np.inf, 0]]], r"maps\[0\] contains infinity"),
        ([[[1.0, np.nan]]], [[[1, 0]]], r"masks\[0\] contains NaN"),
        (np.ones((2, 3, 3)), np.ones((1, 3, 3)), r"numbers of samples: \[2, 1\]"),
        ([], [], "empty"),
    ],
)
def test_bad_masks_and_maps_are_refused(metric, masks, maps, message):
    with pytest.raises(ValueError, match=message):
        metric(masks, maps)


@pytest.mark.parametrize("metric", [aupro, pixel_metrics])
@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.5, np.nan])
def test_bad_max_fpr_is_refused(inspected, metric, max_fpr):
    with pytest.raises(ValueError, match=r"max_fpr must be in \(0, 1\]"):
        metric(*inspected, max_fpr=max_fpr)


# Scorers ----------------------------------------------------------------------------


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(60, 2)), rng.normal(3, 1, size=(15, 2))])
    return X, np.repeat([1, -1], [60, 15])


@pytest.mark.parametrize("metric", SCORERS)
def test_scorer_equals_its_metric_and_survives_pickling(samples, metric):
    X, y = samples
    detector = LocalOutlierFactor(novelty=True).fit(X[:30])
    expected = metric(y, detector.score_samples(X))
    scorer = pickle.loads(pickle.dumps(SCORERS[metric]))
    value = scorer(detector, X, y)
    assert isinstance(value, float)
    assert value == pytest.approx(getattr(expected, "f1", expected))


def test_scorers_work_in_searches(samples):
    X, y = samples
    scoring = {metric.__name__: scorer for metric, scorer in SCORERS.items()}
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    forest = IsolationForest(n_estimators=10, random_state=0)
    result = cross_validate(forest, X, y, cv=cv, scoring=scoring, error_score="raise")
    for name in scoring:
        assert np.all(result[f"test_{name}"] > 0.5)

    grid = {"max_samples": [4, 40]}
    search = GridSearchCV(
        forest, grid, cv=cv, scoring=scoring, refit="f1_max", error_score="raise"
    ).fit(X, y)
    assert search.best_score_ == search.cv_results_["mean_test_f1_max"].max()


def test_scorers_named_by_sklearn_are_misleading_and_ours_are_not(samples):
    X, y = samples
    detector = LocalOutlierFactor(novelty=True).fit(X[:30])
    auroc = image_auroc_scorer(detector, X, y)
    assert auroc > 0.9
    assert get_scorer("roc_auc")(detector, X, y == -1) == pytest.approx(1 - auroc)
    with pytest.raises(ValueError, match=r"got 0, 1"):
        image_auroc_scorer(detector, X, (y == -1).astype(int))
    shuffled = np.random.default_rng(1).permutation(y)
    assert get_scorer("average_precision")(detector, X, shuffled) > 0.7
    assert average_precision_scorer(detector, X, shuffled) < 0.4
