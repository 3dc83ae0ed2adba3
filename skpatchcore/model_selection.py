"""Cross-validation for detectors that learn from normal samples alone."""

from numbers import Integral

import numpy as np
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold
from sklearn.utils import check_random_state, indexable
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import column_or_1d

__all__ = ["OneClassKFold"]

_NO_FOLD = -1


class OneClassKFold(BaseCrossValidator):
    """Folds that train on normal samples only, and test on held-out ones and anomalies.

    Use it as `cv` wherever scikit-learn takes one, with labels +1 (normal) and -1
    (anomalous). Its own splitters do not fit data of one class: in an unshuffled
    :class:`~sklearn.model_selection.KFold` of normal samples followed by anomalies,
    most test folds have one class alone, and scores are NaN;
    :class:`~sklearn.model_selection.StratifiedKFold` hands anomalies to `fit`.

    Where a data set has an official split, as ``Bunch.cv`` of
    :func:`~skpatchcore.datasets.load_mvtec_ad`, pass that as `cv` for figures that
    compare with others'.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2. Each holds out another part of the normal samples.

    shuffle : bool, default=False
        Shuffle the samples before they are divided. Do, if neighbours in `X` resemble
        each other.

    random_state : int, RandomState instance or None, default=None
        Seeds the shuffling; leave it at None without.

    outliers : {"all", "split"}, default="all"
        - "all": every test fold has all anomalies; scores of folds differ less.
        - "split": anomalies are divided among the folds, so that each sample is tested
          once, as :func:`~sklearn.model_selection.cross_val_predict` needs it.

    See Also
    --------
    sklearn.model_selection.KFold : Folds of all samples alike.

    Notes
    -----
    With `groups`, such as the number of the part that several pictures show, no group
    is both trained on and tested: anomalies of a group that has normal samples are
    tested in the fold that holds these out, and only there, whatever `outliers` says.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.model_selection import OneClassKFold
    >>> X, y = np.zeros((6, 1)), np.array([1, 1, 1, 1, -1, -1])
    >>> for train, test in OneClassKFold(2).split(X, y):
    ...     print(train, test)
    [2 3] [0 1 4 5]
    [0 1] [2 3 4 5]
    >>> for train, test in OneClassKFold(2, outliers="split").split(X, y):
    ...     print(train, test)
    [2 3] [0 1 4]
    [0 1] [2 3 5]
    """

    # Groups reach the splitter by metadata routing too, without being asked for.
    __metadata_request__split = {"groups": True}

    def __init__(self, n_splits=5, *, shuffle=False, random_state=None, outliers="all"):
        constraints = {
            "n_splits": [Interval(Integral, 2, None, closed="left")],
            "shuffle": [bool, np.bool_],
            "outliers": [StrOptions({"all", "split"})],
        }
        given = {"n_splits": n_splits, "shuffle": shuffle, "outliers": outliers}
        validate_parameter_constraints(constraints, given, type(self).__name__)
        if random_state is not None and not shuffle:
            raise ValueError(
                f"random_state={random_state!r} has no effect without shuffle=True."
            )
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        self.outliers = outliers

    def get_n_splits(self, X=None, y=None, groups=None):
        """Return the number of folds.

        Parameters
        ----------
        X : None
            Ignored, present for API consistency.

        y : None
            Ignored, present for API consistency.

        groups : None
            Ignored, present for API consistency.

        Returns
        -------
        n_splits : int
            The parameter `n_splits`.
        """
        return self.n_splits

    def split(self, X, y=None, groups=None):
        """Yield rows to train on and rows to test on.

        Parameters
        ----------
        X : sequence of length n_samples
            Only its length is looked at.

        y : array-like of shape (n_samples,)
            +1 for normal and -1 for anomalous samples. Without any anomaly, test folds
            are held-out normal samples alone.

        groups : array-like of shape (n_samples,) or None, default=None
            Samples of one group are never in training and test at once.

        Yields
        ------
        train : ndarray of int64
            Normal rows, ascending.

        test : ndarray of int64
            The other normal rows, and anomalous ones, ascending.

        Raises
        ------
        ValueError
            If labels are missing or are not +1 and -1, or there are too few normal
            samples, or anomalies to divide, for `n_splits`.
        """
        X, y, groups = indexable(X, y, groups)
        y = _check_labels(y)
        if groups is not None:
            groups = column_or_1d(groups)
        # For normal rows the fold that tests them; so for anomalies, or _NO_FOLD for
        # those that all folds test.
        folds = np.full(len(y), _NO_FOLD)
        random_state = check_random_state(self.random_state) if self.shuffle else None
        normal, anomalous = np.flatnonzero(y == 1), np.flatnonzero(y == -1)
        self._assign(folds, normal, "normal", groups, random_state)
        if groups is not None:
            anomalous = _follow_groups(folds, normal, anomalous, groups)
        if self.outliers == "split" and len(anomalous):
            self._assign(folds, anomalous, "anomalous", groups, random_state)
        for fold in range(self.n_splits):
            tested = (folds == fold) | (folds == _NO_FOLD)
            yield np.flatnonzero((y == 1) & ~tested), np.flatnonzero(tested)

    def _assign(self, folds, rows, kind: str, groups, random_state) -> None:
        """Divide `rows` among the folds."""
        if groups is None:
            n, unit = len(rows), "samples"
        else:
            n, unit = len(np.unique(groups[rows])), "groups"
        if n < self.n_splits:
            raise ValueError(
                f"n_splits={self.n_splits} folds need at least as many {unit} with "
                f"{kind} samples, but there are {n}."
            )
        splitter = KFold if groups is None else GroupKFold
        if self.shuffle:
            splitter = splitter(self.n_splits, shuffle=True, random_state=random_state)
        else:
            splitter = splitter(self.n_splits)
        of_rows = None if groups is None else groups[rows]
        for fold, (_, test) in enumerate(splitter.split(rows, groups=of_rows)):
            folds[rows[test]] = fold


def _check_labels(y) -> np.ndarray:
    if y is None:
        raise ValueError(
            "OneClassKFold needs labels: y with +1 for normal and -1 for anomalous "
            "samples, for instance GridSearchCV(...).fit(X, y)."
        )
    y = column_or_1d(y)
    labels = set(y.tolist())
    if labels - {-1, 1}:
        shown = ", ".join(sorted(map(repr, labels))[:5])
        raise ValueError(
            "y must hold the labels +1 (normal) and -1 (anomalous), got "
            f"{shown}{', ...' if len(labels) > 5 else ''}. If 1 stands for anomalous, "
            "pass np.where(y == 1, -1, 1)."
        )
    if 1 not in labels:
        raise ValueError(f"None of the {len(y)} samples is normal (+1) in y.")
    return y


def _follow_groups(folds, normal, anomalous, groups) -> np.ndarray:
    """Put anomalies to the fold of their group; return those whose group has none."""
    fold_of = dict(zip(groups[normal].tolist(), folds[normal].tolist(), strict=True))
    following = np.array(
        [fold_of.get(group, _NO_FOLD) for group in groups[anomalous].tolist()],
        dtype=int,
    )
    folds[anomalous] = following
    return anomalous[following == _NO_FOLD]
