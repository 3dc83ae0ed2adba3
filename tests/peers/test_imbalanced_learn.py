"""The sampler keeps the contract of imbalanced-learn's samplers.

Written anew after the behaviour that these tests of imbalanced-learn 0.14 (MIT) check:
``imblearn/utils/estimator_checks.py`` (``check_samplers_*``) and
``imblearn/tests/test_pipeline.py``.
"""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from skpatchcore import CoresetSampler

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
Y = (X[:, 0] > 0).astype(int)


def sampler(fraction=0.5):
    return CoresetSampler(fraction, random_state=0)


def test_labels_are_resampled_with_the_rows():
    """check_samplers_fit_resample."""
    chosen = sampler()
    X_res, y_res = chosen.fit_resample(X, Y)
    assert_array_equal(X_res, X[chosen.sample_indices_])
    assert_array_equal(y_res, Y[chosen.sample_indices_])


def test_without_labels_only_rows_are_returned():
    assert_array_equal(sampler().fit_resample(X), X[sampler().fit(X).sample_indices_])


def test_lists_are_resampled_like_arrays():
    """check_samplers_list."""
    X_res, y_res = sampler().fit_resample(X.tolist(), Y.tolist())
    expected = sampler().fit_resample(X, Y)
    assert_array_equal(X_res, expected[0])
    assert_array_equal(y_res, expected[1])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_and_series_keep_their_types(library):
    """check_samplers_pandas: values, names and types."""
    module = pytest.importorskip(library)
    frame = module.DataFrame({name: X[:, i] for i, name in enumerate("abcd")})
    labels = module.Series(Y)
    X_res, y_res = sampler().fit_resample(frame, labels)
    expected = sampler().fit_resample(X, Y)
    assert type(X_res) is type(frame)
    assert type(y_res) is type(labels)
    assert list(X_res.columns) == list("abcd")
    assert_array_equal(X_res.to_numpy(), expected[0])
    assert_array_equal(y_res.to_numpy(), expected[1])


def test_rows_of_pandas_keep_their_index():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, index=RNG.permutation(60), columns=list("abcd"))
    chosen = sampler()
    found = chosen.fit_resample(frame)
    pandas.testing.assert_frame_equal(found, frame.iloc[chosen.sample_indices_])


def test_strings_are_labels():
    """check_samplers_string."""
    names = np.where(Y == 1, "good", "bad")
    chosen = sampler()
    _, y_res = chosen.fit_resample(X, names)
    assert_array_equal(y_res, names[chosen.sample_indices_])


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        sampler().fit_resample(X, Y[:-1])


def test_a_step_of_a_pipeline_resamples_the_training_set_only():
    """test_pipeline_sampler: a step of fit, and no step of predict."""
    pipeline = pytest.importorskip("imblearn.pipeline")
    model = pipeline.make_pipeline(StandardScaler(), sampler(), LogisticRegression())
    model.fit(X, Y)
    scaled = StandardScaler().fit_transform(X)
    expected = LogisticRegression().fit(*sampler().fit_resample(scaled, Y))
    assert_array_equal(model.predict_proba(X), expected.predict_proba(scaled))
    assert len(model.predict(X)) == 60


def test_a_pipeline_returns_what_its_sampler_returns():
    """test_pipeline_fit_resample."""
    pipeline = pytest.importorskip("imblearn.pipeline")
    model = pipeline.make_pipeline(StandardScaler(), sampler())
    X_res, y_res = model.fit_resample(X, Y)
    assert X_res.shape == (30, 4)
    assert y_res.shape == (30,)
