"""Test the memory bank against its definition, computed in float64."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import cosine_distances
from sklearn.model_selection import GridSearchCV

from skpatchcore import CoresetSampler, PatchFeatureTransformer, PatchMemoryBank
from skpatchcore._bank._search import BankSearch
from skpatchcore._utils._params import inherit_params
from skpatchcore.metrics import image_auroc_scorer

METRICS = ["euclidean", "sqeuclidean", "cosine"]
ALGORITHMS = ["torch", "faiss"]
# Shapes of X without the last axis, the features.
SHAPES = [(30,), (12, 5), (10, 3, 4)]
# Together they reach every branch of the fast computation of training scores.
SETTINGS = [
    {},
    {"metric": "sqeuclidean"},
    {"metric": "cosine"},
    {"reweight": 4},
    {"reweight": 3, "metric": "cosine"},
    {"n_neighbors": 3},
    {"reduction": 0.3},
    {"sampler": CoresetSampler(0.3, method="random")},
    {"sampler": CoresetSampler(7)},
    {"sampler": CoresetSampler(method="none")},
]


# Data and definitions ---------------------------------------------------------------


def patches(*shape, d=6, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, d)).astype(dtype)


def make_bank(fraction=0.3, **params):
    params = {"sampler": CoresetSampler(fraction), "random_state": 0} | params
    return PatchMemoryBank(**params)


def naive_distances(fitted, X):
    """Return distances (n_patches, n_bank) by SciPy and scikit-learn, in float64."""
    training = fitted.bank_.astype(np.float64)
    flat = X.reshape(-1, X.shape[-1]).astype(np.float64)
    if fitted.metric == "cosine":
        return cosine_distances(flat, training)
    return cdist(flat, training, fitted.metric)


def naive_patch_scores(fitted, X):
    nearest = np.sort(naive_distances(fitted, X), axis=1)[:, : fitted.n_neighbors]
    return nearest.mean(axis=1).reshape(X.shape[:-1])


def naive_scores(fitted, X):
    per_sample = naive_patch_scores(fitted, X).reshape(len(X), -1)
    if fitted.reduction == "max":
        return -per_sample.max(axis=1)
    n_top = max(1, int(fitted.reduction * per_sample.shape[1]))
    return -np.sort(per_sample, axis=1)[:, -n_top:].mean(axis=1)


def naive_equation_7(bank, X, b):
    """Return s = (1 - exp(s*) / sum of exp over the b neighbours of m*) s*."""
    scores = []
    for sample in X.reshape(len(X), -1, X.shape[-1]).astype(np.longdouble):
        distances = np.array(
            [np.sqrt(np.square(bank - patch).sum(axis=1)) for patch in sample]
        )
        patch = distances.min(axis=1).argmax()
        match = distances[patch].argmin()
        s_star = distances[patch, match]
        within = np.sqrt(np.square(bank - bank[match]).sum(axis=1))
        neighbors = np.argsort(within, kind="stable")[:b]
        # In extended precision, where exp overflows only at 11356.
        weight = 1 - np.exp(s_star) / np.exp(distances[patch, neighbors]).sum()
        scores.append(weight * s_star)
    return -np.array(scores, dtype=np.float64)


def softmax_weighted(bank, X, b):
    """Return scores as anomalib computes them: 1 - softmax(distances)[0]."""
    bank = torch.from_numpy(bank).double()
    scores = []
    for sample in torch.from_numpy(X.reshape(len(X), -1, X.shape[-1])).double():
        distances, matches = torch.cdist(sample, bank).min(dim=1)
        patch = distances.argmax()
        match = bank[matches[patch]]
        support = torch.cdist(match[None], bank)[0].topk(b, largest=False).indices
        others = torch.cdist(sample[patch][None], bank[support])[0]
        weight = 1 - torch.softmax(others, dim=0)[0]
        scores.append(float(weight * distances[patch]))
    return -np.array(scores)


# Scores -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["max", 0.01, 0.4, 1.0])
@pytest.mark.parametrize("n_neighbors", [1, 3])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_equal_their_definition(shape, metric, n_neighbors, reduction, dtype):
    bank = make_bank(metric=metric, n_neighbors=n_neighbors, reduction=reduction)
    bank.fit(patches(*shape, dtype=dtype))
    X = patches(7, *shape[1:], dtype=dtype, seed=1)
    # Unit vectors in float32 are as exact as float32 is.
    atol = 1e-6 if metric == "cosine" and dtype == np.float32 else 1e-12
    assert_allclose(bank.score_samples(X), naive_scores(bank, X), atol=atol)
    assert_allclose(bank.score_patches(X), naive_patch_scores(bank, X), atol=atol)
    assert bank.score_samples(X).dtype == bank.score_patches(X).dtype == np.float64


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_backends_agree(algorithm):
    pytest.importorskip(algorithm)
    X, new = patches(20, 9, d=40, dtype=np.float32), patches(5, 9, d=40, seed=1)
    expected = make_bank().fit(X).score_samples(new)
    assert_array_equal(
        make_bank(algorithm=algorithm).fit(X).score_samples(new), expected
    )


@pytest.mark.slow
def test_approximate_search_may_only_find_farther_patches():
    pytest.importorskip("pynndescent")
    X, new = patches(40, 20, dtype=np.float32), patches(9, 20, seed=1)
    sampler = CoresetSampler(0.5, random_state=0)
    expected = make_bank(sampler=sampler).fit(X).score_patches(new)
    approximate = make_bank(sampler=sampler, algorithm="pynndescent").fit(X)
    found = approximate.score_patches(new)
    assert np.all(found >= expected * (1 - 1e-12))
    assert np.mean(found == expected) > 0.95


@pytest.mark.parametrize("reference", [naive_equation_7, softmax_weighted])
@pytest.mark.parametrize("b", [2, 9, 30])
@pytest.mark.parametrize("shape", SHAPES)
def test_reweighting_is_equation_7(shape, b, reference):
    X, new = patches(*shape), patches(8, *shape[1:], seed=1)
    bank = make_bank(30, reweight=b).fit(X)
    assert_allclose(bank.score_samples(new), reference(bank.bank_, new, b), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_reweighting_stays_finite_where_exp_overflows(scale, dtype):
    X = (scale * patches(20, 4)).astype(dtype)
    new = (scale * patches(6, 4, seed=1)).astype(dtype)
    bank = make_bank(30, reweight=9).fit(X)
    scores = bank.score_samples(new)
    assert np.isfinite(scores).all()
    assert_allclose(scores, softmax_weighted(bank.bank_, new, 9), rtol=1e-6)


@pytest.mark.parametrize("params", [{"reduction": 0.5}, {"n_neighbors": 2}])
def test_reweighting_goes_with_the_maximum_and_one_neighbor_only(params):
    with pytest.raises(ValueError, match=r"reweight=3 \(eq. 7\) is defined for"):
        make_bank(reweight=3, **params).fit(patches(20, 3))


@pytest.mark.parametrize("params", [{"n_neighbors": 9}, {"reweight": 9}])
def test_more_neighbors_than_the_bank_has_are_refused(params):
    (name,) = params
    with pytest.raises(ValueError, match=rf"{name}=9 .* the bank has rows, 6"):
        make_bank(6, **params).fit(patches(20, 3))


def test_zero_vectors_are_at_cosine_distance_one_half():
    X = np.eye(4)[:, None]
    bank = make_bank(1.0, metric="cosine").fit(X)
    assert_array_equal(bank.score_patches(np.zeros((1, 1, 4))), [[0.5]])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_score_does_not_depend_on_the_batch(settings):
    bank = make_bank(**settings).fit(patches(20, 9, d=30, dtype=np.float32))
    X = patches(64, 9, d=30, dtype=np.float32, seed=1)
    together = bank.score_samples(X)
    assert_allclose([bank.score_samples(x[None])[0] for x in X], together, rtol=1e-9)
    shuffled = np.random.default_rng(0).permutation(64)
    assert_allclose(bank.score_samples(X[shuffled]), together[shuffled], rtol=1e-9)


@pytest.mark.parametrize("copies", [1, 4])
def test_real_features_score_the_same_in_any_batch(assets, copies):
    """Use 384 features, and 1536 as four copies that differ slightly."""
    images = sorted((assets / "data/mvtec_ad_reduced").rglob("train/good/*.*"))[:7]
    features = PatchFeatureTransformer(
        "resnet18",
        weights=assets / "weights/resnet18_tv_in1k_trunk.safetensors",
        crop_size=96,
    ).fit_transform(images)
    noise = patches(*features.shape[:-1], d=384 * copies, dtype=np.float32)
    features = np.tile(features, copies) + 1e-3 * (copies > 1) * noise
    bank = make_bank(0.1, reweight=9).fit(features[:5])
    together = bank.score_samples(features)
    alone = [bank.score_samples(x[None])[0] for x in features]
    assert_allclose(alone, together, rtol=1e-6)
    distances, _ = bank.kneighbors(features)
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    expected = cdist(flat, bank.bank_.astype(np.float64))
    assert_allclose(distances.ravel(), expected.min(axis=1), rtol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_neighbors_are_rows_of_the_bank_and_of_the_training_patches(metric):
    X, new = patches(9, 4, 3), patches(5, 4, 3, seed=1)
    bank = make_bank(0.5, metric=metric).fit(X)
    distances, rows = bank.kneighbors(new, n_neighbors=3)
    assert distances.shape == rows.shape == (5, 4, 3, 3)
    expected = np.sort(naive_distances(bank, new), axis=1)[:, :3]
    assert_allclose(distances.reshape(-1, 3), expected, atol=1e-12)
    origins = X.reshape(-1, 6)[bank.bank_indices_[rows]]
    found = pairwise_distances(
        new.reshape(-1, 6), origins.reshape(-1, 6), metric=metric
    )
    own = found.reshape(60, 60, 3)[np.arange(60), np.arange(60)]
    assert_allclose(distances.reshape(-1, 3), own, atol=1e-7)


@pytest.mark.parametrize(
    ("n_neighbors", "message"),
    [(-1, "'n_neighbors' parameter"), (0, "'n_neighbors' parameter"), (7, "rows, 6")],
)
def test_an_impossible_number_of_neighbors_is_refused(n_neighbors, message):
    bank = make_bank(6).fit(patches(20, 3))
    with pytest.raises(ValueError, match=message):
        bank.kneighbors(patches(2, 3), n_neighbors=n_neighbors)


def test_scores_of_patches_are_positive_and_those_of_samples_negative():
    bank = make_bank().fit(patches(20, 5))
    new = patches(9, 5, seed=1)
    assert np.all(bank.score_patches(new) > 0)
    assert np.all(bank.score_samples(new) < 0)
    assert np.all(bank.score_samples(new + 100) < bank.score_samples(new))


# Training scores and the threshold --------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_scores_are_the_scores_of_the_training_samples(settings, dtype):
    for seed in range(12):
        X = patches(9, 17, d=4, dtype=dtype, seed=seed)
        bank = make_bank(**settings).set_params(random_state=seed).fit(X)
        assert_array_equal(bank.training_scores_, bank.score_samples(X))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_scores_hold_among_ties(settings):
    for seed in range(12):
        X = np.random.default_rng(seed).integers(1, 4, (8, 12, 2)).astype(np.float32)
        bank = make_bank(**settings).fit(X)
        assert_array_equal(bank.training_scores_, bank.score_samples(X))


def test_training_scores_take_few_searches(monkeypatch):
    searched = []
    query = BankSearch.query

    def count(self, patches, positions, k):
        searched.append(len(patches))
        return query(self, patches, positions, k)

    monkeypatch.setattr(BankSearch, "query", count)
    make_bank(0.1).fit(patches(20, 500, d=20, dtype=np.float32))
    assert sum(searched) < 0.2 * 20 * 500


@pytest.mark.parametrize(("contamination", "share"), [("auto", 0.01), (0.2, 0.2)])
def test_the_offset_is_a_quantile_of_the_training_scores(contamination, share):
    bank = make_bank(contamination=contamination).fit(patches(50, 3))
    assert bank.offset_ == np.quantile(bank.training_scores_, share)
    assert bank.patch_threshold_ == pytest.approx(-bank.offset_)


@pytest.mark.parametrize("contamination", [0.1, 0.3, 0.5])
def test_contamination_is_the_share_of_training_samples_flagged(contamination):
    labels = make_bank(contamination=contamination).fit_predict(patches(60, 3))
    assert np.mean(labels == -1) == pytest.approx(contamination, abs=1 / 60)


def test_the_decision_is_the_score_less_the_offset_and_a_tie_is_an_inlier():
    X = patches(40, 3)
    bank = make_bank(contamination=0.25).fit(X)
    assert_array_equal(bank.decision_function(X), bank.score_samples(X) - bank.offset_)
    bank.offset_ = bank.training_scores_[7]
    decision, labels = bank.decision_function(X), bank.predict(X)
    assert decision[7] == 0
    assert labels[7] == 1
    assert_array_equal(labels, np.where(decision >= 0, 1, -1))
    assert labels.dtype == np.int64


@pytest.mark.parametrize("y", [None, [1] * 20 + [-1] * 5])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_fit_predict_equals_fit_then_predict(settings, y):
    X = patches(25, 4)
    estimator = make_bank(**settings, contamination=0.2)
    fitted = clone(estimator).fit(X, y)
    assert_array_equal(estimator.fit_predict(X, y), fitted.predict(X))


# Labels -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_labelled_anomalous_are_left_out(shape):
    X = patches(*shape)
    y = np.ones(len(X), dtype=int)
    y[[0, 4, 5]] = -1
    bank, expected = make_bank().fit(X, y), make_bank().fit(X[y == 1])
    assert_array_equal(bank.bank_, expected.bank_)
    assert_array_equal(bank.training_scores_, expected.training_scores_)
    assert bank.offset_ == expected.offset_
    kept = X[y == 1].reshape(-1, X.shape[-1])
    assert_array_equal(bank.bank_, kept[bank.bank_indices_])


def test_only_anomalies_leave_nothing_to_learn_from():
    with pytest.raises(ValueError, match="All 10 samples are labelled -1"):
        make_bank().fit(patches(10, 3), -np.ones(10))


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"9.*10|10.*9"):
        make_bank().fit(patches(10, 3), np.ones(9))


# The sampler ------------------------------------------------------------------------


class FirstRows:
    """A user's sampler that is not an estimator and whose `fit` returns nothing."""

    def __init__(self, n):
        self.n = n

    def fit(self, X):
        self.sample_indices_ = list(range(self.n))


class FirstRowsEstimator(BaseEstimator):
    def __init__(self, n=3):
        self.n = n

    def fit(self, X, y=None):
        self.sample_indices_ = np.arange(self.n, dtype=np.int32)
        return self


@pytest.mark.parametrize("sampler", [FirstRows(5), FirstRowsEstimator(5)])
def test_any_object_with_fit_and_sample_indices_is_a_sampler(sampler):
    X, new = patches(8, 3), patches(4, 3, seed=1)
    bank = make_bank(sampler=sampler).fit(X)
    assert_array_equal(bank.bank_, X.reshape(-1, 6)[:5])
    assert_allclose(bank.score_samples(new), naive_scores(bank, new))
    assert_array_equal(bank.training_scores_, bank.score_samples(X))
    assert not hasattr(sampler, "sample_indices_")


def test_a_frozen_sampler_keeps_its_selection():
    X, new = patches(20, 3), patches(5, 3, seed=1)
    sampler = CoresetSampler(0.3, random_state=0).fit(X.reshape(-1, 6))
    frozen = PatchMemoryBank(FrozenEstimator(sampler), random_state=1).fit(X)
    expected = PatchMemoryBank(CoresetSampler(0.3, random_state=0)).fit(X)
    assert_array_equal(frozen.bank_indices_, sampler.sample_indices_)
    assert_array_equal(frozen.score_samples(new), expected.score_samples(new))
    assert frozen.offset_ == expected.offset_


def test_a_frozen_sampler_of_other_patches_is_refused():
    sampler = CoresetSampler(0.3).fit(patches(61))
    with pytest.raises(ValueError, match=r"fitted on other patches \(n_patches = 61"):
        PatchMemoryBank(FrozenEstimator(sampler)).fit(patches(20, 3))


def test_a_frozen_sampler_must_be_fitted():
    with pytest.raises(NotFittedError):
        PatchMemoryBank(FrozenEstimator(CoresetSampler())).fit(patches(20, 3))


def test_the_class_of_a_sampler_is_refused():
    with pytest.raises(
        TypeError, match=r"got the class CoresetSampler.* CoresetSampler\(\)"
    ):
        PatchMemoryBank(CoresetSampler).fit(patches(20, 3))


def test_the_default_sampler_keeps_a_tenth_by_the_greedy():
    bank = PatchMemoryBank(random_state=0).fit(patches(50, 4))
    assert isinstance(bank.sampler_, CoresetSampler)
    assert bank.sampler_.method == "greedy"
    assert len(bank.bank_) == 20


@pytest.mark.parametrize("own", [0, 7])
def test_a_sampler_keeps_its_own_seed(own):
    X = patches(50, 4)
    sampler = CoresetSampler(random_state=own)
    bank = PatchMemoryBank(sampler, random_state=5).fit(X)
    expected = CoresetSampler(random_state=own).fit(X.reshape(-1, 6))
    assert bank.sampler_.random_state == own
    assert_array_equal(bank.bank_indices_, expected.sample_indices_)


def test_a_sampler_without_a_seed_gets_one():
    X = patches(50, 4)
    first, again, other = (
        PatchMemoryBank(CoresetSampler(), random_state=seed).fit(X)
        for seed in (1, 1, 2)
    )
    assert_array_equal(first.bank_indices_, again.bank_indices_)
    assert not np.array_equal(first.bank_indices_, other.bank_indices_)


def test_the_sampler_given_is_left_as_it_was():
    sampler = CoresetSampler(0.2)
    make_bank(sampler=sampler, verbose=1).fit(patches(20, 3))
    assert sampler.random_state is None
    assert sampler.verbose == 0
    assert not hasattr(sampler, "sample_indices_")


def test_parameters_are_handed_down_only_where_they_are_unset():
    sampler = CoresetSampler(device="cpu", random_state=0)
    inherit_params(sampler, device="meta", random_state=9, verbose=2)
    assert (sampler.device, sampler.random_state, sampler.verbose) == ("cpu", 0, 2)
    inherit_params(sampler, verbose=1)
    assert sampler.verbose == 2
    inherit_params(sampler, method=None)
    assert sampler.method == "greedy"


def test_verbose_shows_the_bar_of_the_sampler(capsys):
    make_bank(20, verbose=1).fit(patches(20, 3))
    assert "20/20" in capsys.readouterr().err


# Conventions of scikit-learn --------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_pickle_scores_the_same_and_holds_no_index(settings):
    X, new = patches(20, 4), patches(6, 4, seed=1)
    bank = make_bank(**settings).fit(X)
    restored = pickle.loads(pickle.dumps(bank))
    assert not hasattr(restored, "_index")
    assert hasattr(bank, "_index")
    assert_array_equal(restored.score_samples(new), bank.score_samples(new))
    assert_array_equal(restored.predict(new), bank.predict(new))


def test_a_bank_mapped_read_only_into_memory_scores_without_a_warning(tmp_path):
    joblib = pytest.importorskip("joblib")
    X, new = patches(20, 4), patches(6, 4, seed=1)
    bank = make_bank(reweight=3).fit(X)
    joblib.dump(bank, tmp_path / "bank.joblib")
    joblib.dump(new, tmp_path / "new.joblib")
    mapped = joblib.load(tmp_path / "bank.joblib", mmap_mode="r")
    new = joblib.load(tmp_path / "new.joblib", mmap_mode="r")
    assert not mapped.bank_.flags.writeable
    torch.set_warn_always(True)
    try:
        scores = mapped.score_samples(new)
        make_bank(reweight=3).fit(new)
    finally:
        torch.set_warn_always(False)
    assert_array_equal(scores, bank.score_samples(new))


def test_a_clone_has_the_parameters_and_nothing_learned():
    bank = make_bank(metric="cosine", n_neighbors=2).fit(patches(20, 4))
    copy = clone(bank)
    assert not hasattr(copy, "bank_")
    assert copy.get_params()["sampler__fraction"] == 0.3
    assert {k: v for k, v in copy.get_params().items() if k != "sampler"} == {
        k: v for k, v in bank.get_params().items() if k != "sampler"
    }


@pytest.mark.parametrize("d_of_failure", [6, 3])
@pytest.mark.parametrize("n_neighbors", [1, 1000])
def test_a_failed_fit_leaves_the_earlier_one_usable(d_of_failure, n_neighbors):
    pandas = pytest.importorskip("pandas")
    X, new = patches(20), patches(5, seed=1)
    bank = make_bank().fit(pandas.DataFrame(X, columns=list("abcdef")))
    new = pandas.DataFrame(new, columns=list("abcdef"))
    expected = bank.score_samples(new)
    y = -np.ones(20) if n_neighbors == 1 else None
    bank.set_params(n_neighbors=n_neighbors)
    with pytest.raises(ValueError, match=r"labelled -1|more neighbours"):
        bank.fit(patches(20, d=d_of_failure), y)
    bank.set_params(n_neighbors=1)
    assert_array_equal(bank.score_samples(new), expected)
    assert list(bank.feature_names_in_) == list("abcdef")


@pytest.mark.parametrize("position_window", [None, 3])
@pytest.mark.parametrize(
    "params",
    [
        {"metric": "sqeuclidean"},
        {"metric": "cosine"},
        {"n_neighbors": 4},
        {"n_neighbors": 10**6},
        {"reduction": 0.2},
        {"reweight": 3},
        {"position_window": 1},
        {"algorithm": "pynndescent"},
        {"outlier_filter": "lof"},
        {"contamination": 0.4},
        {"sampler__fraction": 0.9},
        {"random_state": 7},
        {"verbose": 0, "memory": None, "device": "cpu"},
    ],
    ids=str,
)
def test_parameters_set_after_the_fit_change_no_answer(params, position_window):
    X, new = patches(12, 3, 4), patches(5, 3, 4, seed=1)
    bank = make_bank(position_window=position_window).fit(X)

    def answers():
        methods = (bank.score_samples, bank.score_patches, bank.decision_function)
        return [method(new) for method in methods] + list(bank.kneighbors(new))

    before = answers()
    bank.set_params(**params)
    for found, expected in zip(answers(), before, strict=True):
        assert_array_equal(found, expected)
    del bank._index
    assert_array_equal(bank.score_samples(new), before[0])
    copied = pickle.loads(pickle.dumps(bank))
    assert_array_equal(copied.score_samples(new), before[0])


def test_parameters_set_after_the_fit_count_in_the_next_one():
    X, new = patches(20, 3), patches(5, 3, seed=1)
    bank = make_bank().fit(X).set_params(metric="cosine", n_neighbors=2).fit(X)
    expected = make_bank(metric="cosine", n_neighbors=2).fit(X)
    assert_array_equal(bank.score_samples(new), expected.score_samples(new))


def test_the_number_of_neighbors_is_free_in_kneighbors():
    bank = make_bank().fit(patches(20))
    assert bank.kneighbors(patches(5), n_neighbors=3)[0].shape == (5, 3)


@pytest.mark.parametrize("cached", [False, True])
def test_more_neighbours_than_the_bank_has_are_refused(cached, tmp_path):
    bank = make_bank(4, memory=tmp_path if cached else None).fit(patches(20))
    with pytest.raises(ValueError, match="n_neighbors=5 is more than the bank has"):
        bank.kneighbors(patches(5), n_neighbors=5)


@pytest.mark.parametrize("params", [{"n_neighbors": 3}, {"reweight": 2}])
def test_a_single_sample_with_too_few_patches_is_named_in_the_message(params):
    with pytest.raises(ValueError, match="n_samples = 1"):
        make_bank(**params).fit(patches(1))


def test_a_bank_of_one_row_is_told():
    with pytest.warns(UserWarning, match="The bank has 1 row, selected from 15"):
        PatchMemoryBank(random_state=0).fit(patches(15))


def test_a_bank_of_rows_of_one_sample_is_told():
    with pytest.warns(UserWarning, match="All rows of the bank come from one of 8"):
        make_bank(sampler=FirstRowsEstimator()).fit(patches(8, 3))


def test_a_single_sample_is_matched_with_itself():
    X, new = patches(1, 30), patches(1, 30, seed=1)
    bank = make_bank().fit(X)
    assert bank.training_scores_ == -bank.score_patches(X).max()
    assert bank.score_samples(new) == -bank.score_patches(new).max()


def test_a_failed_first_fit_leaves_nothing_behind():
    bank = make_bank(6, n_neighbors=9)
    with pytest.raises(ValueError, match="n_neighbors=9"):
        bank.fit(patches(20, 3))
    assert not [name for name in vars(bank) if name.endswith("_")]


def test_fitting_again_forgets_the_first_bank():
    X, other = patches(20, 4), patches(30, 5, d=3, seed=1)
    bank, fresh = make_bank().fit(X).fit(other), make_bank().fit(other)
    assert_array_equal(bank.score_samples(other), fresh.score_samples(other))
    assert bank.n_features_in_ == 3


def test_names_of_features_are_checked():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(patches(20), columns=list("abcdef"))
    bank = make_bank().fit(frame)
    assert list(bank.feature_names_in_) == list("abcdef")
    assert_array_equal(bank.score_samples(frame), bank.training_scores_)
    with pytest.raises(ValueError, match="feature names should match"):
        bank.score_samples(frame[list("fedcba")])


def test_another_number_of_features_is_refused():
    bank = make_bank().fit(patches(10, 3))
    for X in (patches(4, 3, d=5), patches(4, d=5)):
        with pytest.raises(ValueError, match=r"has 5 features, but .* expecting 6"):
            bank.score_samples(X)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", SHAPES)
def test_nan_and_infinity_are_refused(shape, bad):
    X = patches(*shape)
    bank = make_bank().fit(X)
    X[0] = bad
    for method in (bank.fit, bank.score_samples, bank.kneighbors):
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            method(X)


@pytest.mark.parametrize("kind", [np.float16, np.int16, np.uint8, bool])
@pytest.mark.parametrize("metric", METRICS)
def test_other_types_of_numbers_are_those_numbers(metric, kind):
    X = np.random.default_rng(0).integers(0, 5, size=(40, 3, 6)).astype(kind)
    found, expected = (
        make_bank(metric=metric, n_neighbors=2).fit(part)
        for part in (X, X.astype(np.float64))
    )
    assert_array_equal(found.score_samples(X), expected.score_samples(X))
    assert found.offset_ == expected.offset_


def fortran(X, tmp_path):
    return np.asfortranarray(X)


def strided(X, tmp_path):
    return np.repeat(X, 2, axis=-1)[..., ::2]


def mapped(X, tmp_path):
    np.save(tmp_path / "X.npy", X)
    return np.load(tmp_path / "X.npy", mmap_mode="r")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lay_out", [fortran, strided, mapped])
def test_the_layout_in_memory_does_not_matter(lay_out, shape, tmp_path):
    X = patches(*shape, dtype=np.float32)
    expected = make_bank(n_neighbors=2).fit(X)
    laid_out = lay_out(X, tmp_path)
    found = make_bank(n_neighbors=2).fit(laid_out)
    assert_array_equal(found.bank_, expected.bank_)
    assert_array_equal(found.score_samples(laid_out), expected.score_samples(X))


@pytest.mark.parametrize("metric", METRICS)
def test_one_row_is_a_bank(metric):
    X = patches(3)
    bank = make_bank(metric=metric).fit(X[:1])
    expected = pairwise_distances(X, X[:1], metric=metric)
    assert_allclose(-bank.score_samples(X), expected[:, 0], atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_rows_are_neighbors_at_distance_0_in_their_order(dtype):
    X = np.full((600, 3), 0.1, dtype=dtype)
    bank = PatchMemoryBank(CoresetSampler(600), random_state=0).fit(X)
    distances, rows = bank.kneighbors(X[:5], n_neighbors=4)
    assert_array_equal(distances, np.zeros((5, 4)))
    assert_array_equal(rows, np.tile(np.arange(4), (5, 1)))


@pytest.mark.parametrize("n_neighbors", [1, 3])
def test_subnormal_numbers_have_distances(n_neighbors):
    step = float(np.finfo(np.float32).smallest_subnormal)
    X = (np.arange(40)[:, None] * step).astype(np.float32)
    bank = PatchMemoryBank(CoresetSampler(40), random_state=0).fit(X)
    distances, rows = bank.kneighbors(X, n_neighbors)
    expected = np.sort(np.abs(np.subtract.outer(np.arange(40), np.arange(40))))
    assert_allclose(distances / step, expected[:, :n_neighbors], rtol=1e-12)
    assert_array_equal(bank.bank_indices_[rows[:, 0]], np.arange(40))


def test_the_training_samples_are_left_unchanged():
    X = patches(20, 3, dtype=np.float32)
    before = X.copy()
    make_bank(metric="cosine").fit(X).score_samples(X)
    assert_array_equal(X, before)


def test_a_grid_search_finds_the_settings_that_separate_anomalies():
    """Anomalies differ only in direction; other metrics see mostly the lengths."""
    rng = np.random.default_rng(0)
    lengths = rng.uniform(1, 100, size=(40, 4, 1))
    X = np.abs(rng.normal(size=(40, 4, 8))) * lengths
    X[30:, 0] *= np.where(np.arange(8) < 4, -1, 1)
    y = np.repeat([1, -1], [30, 10])
    search = GridSearchCV(
        make_bank(),
        {"metric": METRICS[:1] + METRICS[2:], "sampler__fraction": [0.1, 0.5]},
        scoring=image_auroc_scorer,
        cv=[(np.arange(20), np.arange(20, 40)), (np.arange(10, 30), np.r_[:10, 30:40])],
        error_score="raise",
    ).fit(X, y)
    assert search.best_params_["metric"] == "cosine"
    assert search.best_score_ > 0.9
    # The refit on all samples leaves the anomalies out.
    assert len(search.best_estimator_.training_scores_) == 30
