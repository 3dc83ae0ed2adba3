"""Ensembles of detectors: calibration, averages, members, and their company."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from torch import nn

from skpatchcore import (
    CoresetSampler,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PatchFeatureTransformer,
)
from skpatchcore._backbones._backbone import Backbone
from skpatchcore._detectors._ensemble import balanced_weights
from skpatchcore._detectors._maps import resize_map
from skpatchcore.calibration import ConformalDetector
from skpatchcore.metrics import image_auroc, image_auroc_scorer
from skpatchcore.model_selection import OneClassKFold
from skpatchcore.scoring import score_images


class Strided(nn.Module):
    """One layer of random filters with a stride of its own."""

    def __init__(self, stride, gain=1.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stride)
            self.filters = nn.Conv2d(3, 6, stride, stride=stride)
        self.gain = gain

    def forward(self, x):
        return torch.relu(self.filters(x)) * self.gain


def member(stride, gain=1.0, **params):
    sizes = {name: params.pop(name, None) for name in ("image_size", "crop_size")}
    # The layer is the network's output, so that its gain counts.
    features = PatchFeatureTransformer(
        Strided(stride, gain), ("",), layer_weights=None, **sizes
    )
    return PatchCoreDetector(features, CoresetSampler(0.2), **params)


def make_ensemble(**params):
    members = [("fine", member(4)), ("coarse", member(8))]
    return PatchCoreEnsemble(members, **{"cv": 2, "random_state": 0} | params)


def gabor_member(layer):
    features = PatchFeatureTransformer("gabor", (layer,), image_size=(32, 48))
    return PatchCoreDetector(features, CoresetSampler(0.2))


def gabor_ensemble(**params):
    """Return an ensemble whose networks come with the package.

    Copies of other networks are tried with an image each before the cache is used.
    """
    members = [(layer, gabor_member(layer)) for layer in ("fine", "coarse")]
    return PatchCoreEnsemble(members, cv=2, random_state=0, **params)


def images(n, seed=0, size=(32, 48)):
    """Return smooth noise, alike but not equal."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(90, 150, (n, size[0] // 4, size[1] // 4, 3))
    return np.kron(blocks, np.ones((1, 4, 4, 1))).astype(np.uint8)


def defective(n, seed=9):
    X = images(n, seed)
    X[:, 8:16, 16:24] = [250, 20, 20]
    return X


@pytest.fixture(scope="module")
def good():
    return images(9)


@pytest.fixture(scope="module")
def new():
    return np.concatenate([images(3, 1), defective(3)])


@pytest.fixture
def passes(monkeypatch):
    """Collect how many images pass a network at once."""
    seen = []
    call = Backbone.__call__

    def count(network, batch):
        seen.append(len(batch))
        return call(network, batch)

    monkeypatch.setattr(Backbone, "__call__", count)
    return seen


@pytest.fixture(scope="module")
def fitted(good):
    return make_ensemble().fit(good)


# Calibration ------------------------------------------------------------------------


def test_weights_follow_their_definition(fitted, good):
    """Folds, fits and quantiles spelled out, with seeds given to the members."""
    rng = np.random.RandomState(0)
    splits = list(KFold(2, shuffle=True, random_state=rng).split(good))
    scores, peaks = np.empty((2, 2, 9))
    for m, stride in enumerate((4, 8)):
        seed = int(rng.randint(np.iinfo(np.int32).max))
        for train, test in splits:
            fold = member(stride, random_state=seed).fit(good[train])
            scores[m, test] = -fold.score_samples(good[test])
            peaks[m, test] = fold.predict_maps(good[test]).max(axis=(1, 2))
    for found, anomaly in (
        (fitted.score_weights_, scores),
        (fitted.map_weights_, peaks),
    ):
        expected = 1 / anomaly.std(axis=1)
        expected /= expected @ anomaly.mean(axis=1)
        assert_allclose(found, expected, rtol=1e-5)
    held_out = -fitted.score_weights_ @ scores
    assert_allclose(fitted.held_out_scores_, held_out, rtol=1e-6)
    assert_allclose(held_out.mean(), -1)
    assert_allclose(fitted.offset_, np.quantile(held_out, 0.01), rtol=1e-6)


def test_scores_and_maps_are_weighted_sums_of_the_members(fitted, new):
    members = fitted.named_estimators_.values()
    scores = [one.score_samples(new) for one in members]
    assert_allclose(fitted.score_samples(new), fitted.score_weights_ @ scores)
    maps = [one.predict_maps(new) for one in members]
    assert {one.predict_maps(new, size="grid").shape for one in members} == {
        (6, 8, 12),
        (6, 4, 6),
    }
    expected = np.tensordot(fitted.map_weights_, np.stack(maps), axes=1)
    assert_allclose(fitted.predict_maps(new), expected, rtol=1e-5)
    assert fitted.predict_maps(new).dtype == np.float32


def test_units_of_members_do_not_matter(good, new):
    """A network with features a thousand times larger counts as much as before."""
    louder = [("fine", member(4, 1000.0)), ("coarse", member(8))]
    expected, found = (
        ensemble.fit(good)
        for ensemble in (make_ensemble(), make_ensemble().set_params(estimators=louder))
    )
    assert_allclose(found.score_samples(new), expected.score_samples(new), rtol=1e-4)
    assert_allclose(found.predict_maps(new), expected.predict_maps(new), rtol=1e-3)
    assert found.map_threshold_ == pytest.approx(expected.map_threshold_, rel=1e-3)


def test_one_member_keeps_its_order_and_is_never_saturated(good):
    alone = make_ensemble().set_params(coarse="drop").fit(good)
    (inner,) = alone.estimators_
    X = np.concatenate([images(5, 3), defective(5)])
    assert_allclose(
        alone.score_samples(X), inner.score_samples(X) * alone.score_weights_[0]
    )
    assert np.argsort(alone.score_samples(X)).tolist() == (
        np.argsort(inner.score_samples(X)).tolist()
    )


@pytest.mark.parametrize(
    "anomaly",
    [
        np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]]),
        np.array([[0.0, 0.0], [0.0, 0.0]]),
        np.array([[0.0, 0.0], [1.0, 3.0]]),
        np.array([[1e-30, 2e-30], [1e30, 3e30]]),
    ],
)
def test_members_without_spread_get_finite_weights(anomaly):
    weights = balanced_weights(anomaly)
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    if anomaly.any():
        assert_allclose((weights @ anomaly).mean(), 1)


def test_defects_are_found_and_located(fitted, new):
    assert_array_equal(fitted.predict(new), [1, 1, 1, -1, -1, -1])
    decision = fitted.decision_function(new)
    assert_array_equal(decision, fitted.score_samples(new) - fitted.offset_)
    masks = fitted.predict_masks(new)
    assert masks[3:, 8:16, 16:24].mean() > 0.5
    assert_array_equal(masks, fitted.predict_maps(new) > fitted.map_threshold_)


def test_images_left_out_by_y_are_not_learned_from(good, fitted):
    X = np.concatenate([defective(2), good])
    y = np.repeat([-1, 1], [2, len(good)])
    ensemble = make_ensemble().fit(X, y)
    assert_array_equal(ensemble.training_indices_, np.arange(2, 11))
    assert_array_equal(ensemble.held_out_scores_, fitted.held_out_scores_)
    matches = ensemble.nearest_patches(X[3:4], 1)
    assert set(matches) == {"fine", "coarse"}
    assert matches.fine.image.shape == (1, 8, 12, 1)
    found = matches.fine.distance < 1e-6
    assert_array_equal(np.unique(matches.fine.image[found]), [3])


def test_a_float_contamination_is_a_share_of_the_training_images(fitted, good):
    ensemble = clone(fitted).set_params(contamination=0.4)
    labels = ensemble.fit_predict(good)
    assert_array_equal(labels, ensemble.predict(good))
    assert np.sum(labels == -1) == 4
    assert_allclose(ensemble.training_scores_, ensemble.score_samples(good), rtol=1e-5)
    assert fitted.offset_ < fitted.training_scores_.min()


# Maps of members that see different things ------------------------------------------


def test_maps_of_crops_are_put_together_in_the_image(good, new):
    members = [("all", member(4)), ("centre", member(4, crop_size=(16, 24)))]
    ensemble = PatchCoreEnsemble(members, cv=2, random_state=0).fit(good)
    maps = ensemble.predict_maps(new, border="nan")
    assert maps.shape == new.shape[:3]
    assert np.isfinite(maps).all()
    for size in ("resized", "grid"):
        with pytest.raises(ValueError, match="needs members with equal sizes"):
            ensemble.predict_maps(new, size=size)


def test_pixels_that_no_member_saw_are_nan(good, new):
    members = [
        ("wide", member(4, crop_size=(16, 40))),
        ("high", member(4, crop_size=(24, 24))),
    ]
    ensemble = PatchCoreEnsemble(members, cv=2, random_state=0).fit(good)
    seen = np.zeros((32, 48), dtype=bool)
    seen[8:24, 4:44] = seen[4:28, 12:36] = True
    maps = ensemble.predict_maps(new[:1], border="nan")
    assert_array_equal(np.isfinite(maps[0]), seen)


def test_maps_of_the_inputs_are_those_of_members_that_agree(good, new):
    members = [("a", member(4, image_size=24)), ("b", member(4, image_size=24))]
    ensemble = PatchCoreEnsemble(members, cv=2, random_state=0).fit(good)
    assert ensemble.predict_maps(new, size="resized").shape == (6, 24, 36)
    assert ensemble.predict_maps(new, size="grid").shape == (6, 6, 9)


# Members ----------------------------------------------------------------------------


def test_members_can_be_replaced_dropped_and_tuned(good):
    ensemble = make_ensemble().set_params(coarse__sampler__fraction=0.5)
    assert ensemble.get_params()["coarse"].sampler.fraction == 0.5
    ensemble.set_params(fine="drop").fit(good)
    assert list(ensemble.named_estimators_) == ["coarse"]
    assert ensemble.named_estimators_.coarse is ensemble.estimators_[0]
    ensemble.set_params(coarse=member(16)).fit(good)
    assert ensemble.named_estimators_.coarse.features_.grid_shape_ == (2, 3)
    # Those that were given are never fitted.
    assert not hasattr(ensemble.estimators[0][1], "offset_")


@pytest.mark.parametrize(
    ("estimators", "message"),
    [
        ([], "at least one member"),
        ([("a", "drop")], "at least one member"),
        ([("a", 3)], "Member 'a' must be a PatchCoreDetector"),
        ([member(4)], r"list of \(name, detector\)"),
        ([("a", member(4)), ("a", member(8))], "not unique"),
        ([("cv", member(4))], "conflict with constructor"),
        ([("a__b", member(4))], "must not contain __"),
    ],
)
def test_wrong_members_are_refused(good, estimators, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PatchCoreEnsemble(estimators).fit(good)


def test_fitted_members_keep_the_names_they_were_fitted_under(good, new):
    ensemble = make_ensemble().fit(good)
    before = ensemble.named_estimators_
    ensemble.set_params(estimators=ensemble.estimators[::-1], fine="drop")
    assert ensemble.named_estimators_ == before
    assert set(ensemble.nearest_patches(new[:1])) == {"fine", "coarse"}


@pytest.mark.parametrize("estimators", [None, [member(4)]])
def test_wrong_members_are_refused_in_a_search(good, estimators):
    search = GridSearchCV(
        PatchCoreEnsemble(estimators), {"cv": [2]}, cv=2, scoring=lambda *args: 0.0
    )
    with pytest.raises(ValueError, match=r"'list'|list of \(name, detector\)"):
        search.fit(good)


@pytest.mark.parametrize("cv", [[], [([0], range(1, 10))], [([0, 1], range(9))] * 2])
def test_folds_must_hold_every_image_out_once(good, cv):
    with pytest.raises(ValueError, match="9 normal rows must be in exactly one"):
        make_ensemble(cv=cv).fit(good)


def test_wrong_images_are_called_by_their_number_in_all_of_them(good):
    X = [image / 255 for image in good]
    X[7][0, 0] = np.nan
    y = np.repeat([-1, 1], [2, 7])
    with pytest.raises(ValueError, match="image 7 contains NaN"):
        make_ensemble().fit(X, y)
    with pytest.raises(TypeError, match="For a folder see"):
        make_ensemble().fit("folder")
    with pytest.raises(ValueError, match=r"\(32, 48, 3\).* a single image"):
        make_ensemble().fit(good[0])


def test_few_images_are_held_out_one_by_one(new):
    ensemble = make_ensemble(cv=5).fit(images(2))
    assert len(ensemble.held_out_scores_) == 2
    assert np.isfinite(ensemble.score_samples(new)).all()
    with pytest.raises(ValueError, match=r"needs at least 2; got n_samples = 1"):
        make_ensemble().fit(images(1))


def test_a_failed_fit_leaves_an_earlier_one_as_it_was(good, new):
    ensemble = make_ensemble().fit(good)
    before = ensemble.score_samples(new)
    with pytest.raises(ValueError, match="crop_size"):
        ensemble.set_params(coarse__features__crop_size=999).fit(good)
    ensemble.set_params(coarse__features__crop_size=None)
    assert_array_equal(ensemble.score_samples(new), before)


def test_seeds_are_handed_to_members_without_one(good, new):
    own = make_ensemble().set_params(fine__random_state=7).fit(good)
    again = clone(own).fit(good)
    assert_array_equal(own.score_samples(new), again.score_samples(new))
    assert own.named_estimators_.fine.random_state == 7
    assert own.named_estimators_.coarse.random_state is not None


def test_fit_predict_passes_groups_on(good):
    groups = np.arange(9) // 3
    found, expected = make_ensemble(cv=3), make_ensemble(cv=3)
    labels = found.fit_predict(good, groups=groups)
    expected.fit(good, groups=groups)
    assert_array_equal(found.held_out_scores_, expected.held_out_scores_)
    assert_array_equal(labels, np.where(found.training_scores_ < found.offset_, -1, 1))


# Company ----------------------------------------------------------------------------


def test_an_image_passes_each_network_once_in_fit(good, passes):
    ensemble = gabor_ensemble().fit(good)
    assert sum(passes) == 2 * len(good)
    passes.clear()
    detector = ConformalDetector(gabor_ensemble(), alpha=0.2, cv=2, random_state=0)
    detector.fit(good)
    assert sum(passes) == 2 * len(good)
    for one in (ensemble, *detector.estimators_):
        parts = [*one.estimators_, *(part for _, part in one.estimators)]
        assert all(part.get_params()["features__memory"] is None for part in parts)
        assert all(part.features_.memory is None for part in one.estimators_)


@pytest.mark.parametrize("method", ["cross", "refit"])
def test_in_a_conformal_detector(good, new, method):
    detector = ConformalDetector(
        make_ensemble(), alpha=0.2, cv=2, method=method, random_state=0
    ).fit(good)
    assert_array_equal(detector.predict(new)[3:], -1)
    # Held out, at most the share alpha has a pixel above the threshold.
    assert np.mean(detector._calibration_peaks > detector.map_threshold_) <= 0.2
    assert detector.predict_maps(new).shape == new.shape[:3]
    results = score_images(detector, new)
    assert_allclose(results.score, detector.score_samples(new))


def test_in_a_search_with_a_cache(good, tmp_path, passes):
    X = np.concatenate([good, defective(3)])
    y = np.repeat([1, -1], [len(good), 3])
    search = GridSearchCV(
        gabor_ensemble(memory=str(tmp_path)),
        {"coarse": ["drop", gabor_member("coarse")]},
        scoring=image_auroc_scorer,
        cv=OneClassKFold(2),
    ).fit(X, y)
    assert sum(passes) == 2 * len(X)
    assert search.best_score_ == 1
    assert search.best_estimator_.predict_maps(X[:1]).shape == (1, 32, 48)


def test_scores_do_not_depend_on_the_batch_or_a_copy(fitted, new):
    expected = fitted.score_samples(new)
    alone = [fitted.score_samples(new[i : i + 1])[0] for i in range(len(new))]
    assert_allclose(alone, expected, rtol=1e-5)
    copied = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(copied.score_samples(new), expected)
    assert not hasattr(clone(fitted), "offset_")


def test_images_of_other_sizes(fitted):
    X = [images(1, 4)[0], images(1, 5, (48, 32))[0]]
    maps = fitted.predict_maps(X)
    assert [values.shape for values in maps] == [(32, 48), (48, 32)]
    (seen, _) = fitted.inspect(X)
    first = fitted.map_weights_[0] * seen.parts[0].patch_scores
    second = fitted.map_weights_[1] * resize_map(seen.parts[1].patch_scores, (8, 12))
    assert_allclose(seen.patch_scores, first + second, rtol=1e-6)


def test_more_images_than_members_look_at_at_once(fitted):
    X = np.concatenate([images(40, 6), defective(2)])
    labels = np.repeat([1, -1], [40, 2])
    assert image_auroc(labels, fitted.score_samples(X)) == 1
    assert_allclose(fitted.score_samples(X)[35:36], fitted.score_samples(X[35:36]))


def test_parameters_set_after_the_fit_change_no_answer(good, new):
    ensemble = make_ensemble().fit(good)
    decision, maps = ensemble.decision_function(new), ensemble.predict_maps(new)
    ensemble.set_params(
        fine__metric="sqeuclidean", fine__smoothing=9.0, contamination=0.4, cv=2
    )
    assert_array_equal(ensemble.decision_function(new), decision)
    assert_array_equal(ensemble.predict_maps(new), maps)
