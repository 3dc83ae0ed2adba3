"""The sampler keeps the contract of imbalanced-learn's samplers.

Written anew after the behaviour that these tests of imbalanced-learn 0.14 (MIT) check:
``imblearn/utils/estimator_checks.py`` (``check_samplers_*``) and
``imblearn/tests/test_pipeline.py``.
"""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from skpatchcore import CoresetSampler, PatchMemoryBank
from skpatchcore.scoring import find_unreadable

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


def test_none_is_returned_for_none():
    """Pipelines of imbalanced-learn unpack two values, also without labels."""
    chosen = sampler()
    X_res, y_res = chosen.fit_resample(X, None)
    assert_array_equal(X_res, X[chosen.sample_indices_])
    assert y_res is None


@pytest.mark.parametrize("n_rows", [2, 30])
def test_a_pipeline_without_labels_fits_a_detector(n_rows):
    pipeline = pytest.importorskip("imblearn.pipeline")
    model = pipeline.make_pipeline(sampler(n_rows), IsolationForest(random_state=0))
    model.fit(X)
    expected = IsolationForest(random_state=0).fit(sampler(n_rows).fit_resample(X))
    assert_array_equal(model.score_samples(X), expected.score_samples(X))


@pytest.mark.parametrize("kind", ["table", "record_batch"])
def test_tables_and_columns_of_pyarrow_keep_their_types(kind):
    pyarrow = pytest.importorskip("pyarrow")
    table = getattr(pyarrow, kind)({name: X[:, i] for i, name in enumerate("abcd")})
    X_res, y_res = sampler().fit_resample(table, pyarrow.array(Y))
    expected = sampler().fit_resample(X, Y)
    assert type(X_res) is type(table)
    assert isinstance(y_res, pyarrow.Array)
    columns = [column.to_numpy(zero_copy_only=False) for column in X_res.columns]
    assert_array_equal(np.transpose(columns), expected[0])
    assert_array_equal(y_res.to_numpy(), expected[1])


@pytest.mark.parametrize(
    "use",
    [
        lambda frame: sampler().fit_resample(frame, Y),
        lambda frame: sampler().fit(frame),
        lambda frame: PatchMemoryBank(sampler()).fit(frame),
        lambda frame: find_unreadable(frame),
    ],
    ids=["fit_resample", "fit", "bank", "images"],
)
def test_lazy_frames_are_refused_with_the_remedy(use):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(X).lazy()
    with pytest.raises(TypeError, match=r"of type LazyFrame.*Pass X\.collect\(\)"):
        use(frame)


def test_sparse_rows_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"Sparse.*Use '\.toarray\(\)'"):
        sampler().fit_resample(sparse.csr_array(X), Y)


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
