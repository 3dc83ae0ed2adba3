"""Cross-validation when only one class is learned."""

import numpy as np
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold
from sklearn.utils import (
    check_array,
    check_consistent_length,
    check_random_state,
    column_or_1d,
)

from skpatchcore._utils import check_outlier_labels

# In the place of a fold's number: tested in all of them.
_EVERY_FOLD = -1


class OneClassKFold(BaseCrossValidator):
    """K folds that train on normal samples and test on held-out ones and anomalies.

    Use it to search parameters of a detector, or to estimate how well it will do, when
    nobody has divided the samples for you: every normal sample is held out once, no
    anomaly is ever trained on. Data sets that come with a division of their own have it
    as ``Bunch.cv``; use that for figures to be compared with published ones.

    The splitters of scikit-learn are wrong for one class. `KFold` without shuffling
    takes blocks of rows: where the anomalies stand at the end, as in most data sets,
    most test folds are all of one class and AUROC is nan. `StratifiedKFold` puts
    anomalies into every training fold: an ordinary outlier detector learns them, and
    one that leaves them out, as :class:`~skpatchcore.PatchCoreDetector` does, is tested
    on a fraction of the few there are.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2.

    shuffle : bool, default=False
        Whether to shuffle the samples (or groups) before they are divided. Without it,
        a fold is a block of consecutive normal samples: the stricter test where
        neighbours are alike, as the frames of a video are.

    random_state : int, RandomState instance or None, default=None
        Seeds the shuffling. Pass an int for the same folds in every call. Must be None
        if `shuffle` is False.

    outliers : {"all", "split"}, default="all"
        Which anomalies a fold is tested on. With "all" it is every anomaly, in every
        fold: the steadiest figures, if they are few. With "split" they are divided
        among the folds, dealt out in turn so that kinds that stand together are spread:
        test folds have no sample in common then, and ``cross_val_predict`` works.

    See Also
    --------
    sklearn.model_selection.GroupKFold : How groups are divided among the folds.
    skpatchcore.metrics.image_auroc_scorer : The scorer to use with it.

    Notes
    -----
    With ``groups``, such as the part or the shift that images are of, no group is on
    both sides of a split. An anomaly whose group has normal samples is tested only in
    the fold that holds these out, so that a fold may be without any anomaly under
    ``outliers="all"`` if every group has normal samples. Anomalies of other groups
    follow `outliers`; "split" keeps their groups whole.

    The splitter asks for ``groups`` when metadata are routed, as `GroupKFold` does.

    Training folds are of one class, for which AUROC and its like are not defined: in
    the halving searches, which score them by default, set ``return_train_score=False``.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.model_selection import OneClassKFold
    >>> X = np.arange(6).reshape(-1, 1)
    >>> y = np.array([1, 1, 1, 1, -1, -1])
    >>> cv = OneClassKFold(n_splits=2)
    >>> cv
    OneClassKFold(n_splits=2, outliers='all', random_state=None, shuffle=False)
    >>> for train, test in cv.split(X, y):
    ...     print(train, test)
    [2 3] [0 1 4 5]
    [0 1] [2 3 4 5]
    >>> for train, test in OneClassKFold(n_splits=2, outliers="split").split(X, y):
    ...     print(train, test)
    [2 3] [0 1 4]
    [0 1] [2 3 5]
    """

    # The documented way to change a request that a base class has set.
    __metadata_request__split = {"groups": True}

    def __init__(self, n_splits=5, *, shuffle=False, random_state=None, outliers="all"):
        # For its errors; as in scikit-learn, a splitter is checked when it is made.
        folds = KFold(n_splits, shuffle=shuffle, random_state=random_state)
        if outliers not in ("all", "split"):
            raise ValueError(f'outliers must be "all" or "split", got {outliers!r}.')
        self.n_splits = folds.n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        self.outliers = outliers

    def split(self, X, y=None, groups=None):
        """Generate the indices of training and test samples, fold by fold.

        Parameters
        ----------
        X : sequence of length n_samples, or array-like of shape (n_samples, ...)
            The samples, such as a list of paths. Only their number matters.

        y : array-like of shape (n_samples,)
            +1 for normal and -1 for anomalous samples. Without any -1, test folds hold
            held-out normal samples alone, as calibration needs them.

        groups : array-like of shape (n_samples,) or None, default=None
            Samples that share a value are kept on one side of each split.

        Yields
        ------
        train : ndarray of shape (n_train,), int64
            Normal samples to learn from, ascending.

        test : ndarray of shape (n_test,), int64
            The normal samples held out, and anomalies, ascending.

        Raises
        ------
        ValueError
            If `y` is missing, differs in length from `X`, or has labels other than +1
            and -1; if there are fewer normal samples, or groups with normal samples,
            than folds; or if ``outliers="split"`` leaves a fold without any of the
            anomalies.
        """
        if y is None:
            raise ValueError(
                "OneClassKFold needs y, the labels +1 (normal) and -1 (anomalous), to "
                "keep anomalies out of training; got y=None."
            )
        y = check_outlier_labels(y)
        check_consistent_length(X, y, groups)
        folds = self._assign_folds(y, groups)
        for fold in range(self.n_splits):
            train = (y == 1) & (folds != fold)
            test = (folds == fold) | (folds == _EVERY_FOLD)
            yield np.flatnonzero(train), np.flatnonzero(test)

    def get_n_splits(self, X=None, y=None, groups=None):
        """Return the number of folds.

        Parameters
        ----------
        X : object
            Ignored, present for scikit-learn's interface.

        y : object
            Ignored, present for scikit-learn's interface.

        groups : object
            Ignored, present for scikit-learn's interface.

        Returns
        -------
        n_splits : int
            The parameter `n_splits`.
        """
        return self.n_splits

    def _assign_folds(self, y: np.ndarray, groups) -> np.ndarray:
        """Return the fold that tests each sample, or `_EVERY_FOLD`."""
        # Without groups, each sample is one of its own.
        units = np.arange(len(y)) if groups is None else _encode_groups(groups)
        normal, anomalous = np.flatnonzero(y == 1), np.flatnonzero(y == -1)
        _check_enough_normal(units[normal], len(y), self.n_splits, groups is not None)
        rng = check_random_state(self.random_state) if self.shuffle else None
        folds = np.full(len(y), _EVERY_FOLD)

        splitter = KFold if groups is None else GroupKFold
        splitter = splitter(self.n_splits, shuffle=self.shuffle, random_state=rng)
        normal_groups = None if groups is None else units[normal]
        for fold, (_, test) in enumerate(splitter.split(normal, groups=normal_groups)):
            folds[normal[test]] = fold

        fold_of_unit = np.full(units.max() + 1, _EVERY_FOLD)
        fold_of_unit[units[normal]] = folds[normal]
        folds[anomalous] = fold_of_unit[units[anomalous]]
        if self.outliers == "split" and anomalous.size:
            folds[anomalous] = _deal(
                units[anomalous], folds[anomalous], self.n_splits, rng
            )
        return folds


def _encode_groups(groups) -> np.ndarray:
    """Return the groups of samples as integers from 0."""
    groups = check_array(groups, ensure_2d=False, dtype=None, input_name="groups")
    return np.unique(column_or_1d(groups), return_inverse=True)[1]


def _check_enough_normal(units, n_samples: int, n_splits: int, grouped: bool) -> None:
    """Check that each fold can hold out one of the `units` of normal samples."""
    if units.size == 0:
        raise ValueError(
            f"None of the {n_samples} samples is labelled +1 (normal); normal ones are "
            "needed to learn from."
        )
    n_units = len(np.unique(units))
    if n_units < n_splits:
        what = "group(s) with normal samples" if grouped else "normal sample(s)"
        raise ValueError(
            f"n_splits={n_splits}, but there are only {n_units} {what} among "
            f"{n_samples} samples; each fold holds out at least one."
        )


def _deal(units: np.ndarray, folds: np.ndarray, n_splits: int, rng) -> np.ndarray:
    """Give each anomaly a fold, whole units at a time; some may have theirs already.

    The largest unit goes first, each to the fold with the fewest anomalies.
    """
    free = folds == _EVERY_FOLD
    loads = np.bincount(folds[~free], minlength=n_splits)
    names, unit_of, sizes = np.unique(
        units[free], return_inverse=True, return_counts=True
    )
    order = np.arange(len(names)) if rng is None else rng.permutation(len(names))
    fold_of_unit = np.empty_like(names)
    for unit in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of_unit[unit] = np.argmin(loads)
        loads[fold_of_unit[unit]] += sizes[unit]
    if not loads.all():
        raise ValueError(
            f'outliers="split" leaves {np.sum(loads == 0)} of n_splits={n_splits} '
            f"folds without any of the {len(folds)} anomalies; use fewer folds or "
            'outliers="all".'
        )
    dealt = folds.copy()
    dealt[free] = fold_of_unit[unit_of]
    return dealt
