"""Cross-validation that trains on one class only."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold
from sklearn.utils import check_consistent_length, check_random_state

from skpatchcore._utils import check_outlier_labels, encode_groups

# Instead of the number of a fold, for samples that are tested in all folds.
_EVERY_FOLD = -1


class OneClassKFold(BaseCrossValidator):
    """K-fold splitter that trains on normal samples only.

    Each fold is tested on held-out normal samples and on anomalies. Use it to tune the
    parameters of a detector, or to estimate how well it works, if there is no fixed
    split into training and test samples. Every normal sample is held out once, and no
    anomaly is used for training. If a data set has an official split, use its
    ``Bunch.cv`` for results that you compare with published ones.

    The splitters of scikit-learn do not suit one-class learning. `KFold` without
    shuffling uses blocks of rows. If the anomalies are at the end, as in most data
    sets, most test folds contain only one class, and the AUROC is NaN.
    `StratifiedKFold` puts anomalies into every training fold. An ordinary outlier
    detector learns them as normal. A detector that leaves them out, such as
    :class:`~skpatchcore.PatchCoreDetector`, is tested on only a fraction of the few
    anomalies.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2.

    shuffle : bool, default=False
        Whether to shuffle the samples (or groups) before they are split. If False, a
        fold is a block of consecutive normal samples. This is the stricter test if
        neighbouring samples are similar, as the frames of a video are.

    random_state : int, RandomState instance or None, default=None
        Seed of the shuffling. Pass an int to get the same folds in every call. Must be
        None if `shuffle` is False.

    outliers : {"all", "split"}, default="all"
        Which anomalies each fold is tested on. With "all", every fold is tested on all
        of them, which gives the most stable results if there are few. With "split",
        each anomaly is tested in one fold only, so that ``cross_val_predict`` works.
        They are assigned to the folds in turn, so that anomalies of the same kind,
        which are usually adjacent, are distributed over the folds.

    See Also
    --------
    sklearn.model_selection.GroupKFold : How groups are distributed over the folds.
    skpatchcore.metrics.image_auroc_scorer : A scorer to use with it.

    Notes
    -----
    Pass ``groups`` if several samples belong together, such as images of the same part
    or from the same shift. Then no group is on both sides of a split. An anomaly whose
    group has normal samples is tested only in the fold that holds these out. So with
    ``outliers="all"``, a fold may have no anomalies if every group has normal samples.
    Other anomalies follow `outliers`; "split" keeps their groups together.

    The splitter requests ``groups`` by metadata routing, as `GroupKFold` does.

    AUROC and similar metrics are not defined on training folds, because these contain
    only one class. Halving searches score the training folds by default: set
    ``return_train_score=False``.

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

    # The documented way to change the default request of a base class.
    __metadata_request__split = {"groups": True}

    def __init__(
        self,
        n_splits: int = 5,
        *,
        shuffle: bool = False,
        random_state: int | np.random.RandomState | None = None,
        outliers: str = "all",
    ):
        # As in scikit-learn, a splitter is validated when it is created. KFold raises
        # the errors for the first three parameters.
        folds = KFold(n_splits, shuffle=shuffle, random_state=random_state)
        if outliers not in ("all", "split"):
            raise ValueError(f'outliers must be "all" or "split", got {outliers!r}.')
        self.n_splits = folds.n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        self.outliers = outliers

    def split(
        self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Generate the indices of training and test samples for each fold.

        Parameters
        ----------
        X : sequence of length n_samples, or array-like of shape (n_samples, ...)
            The samples, such as a list of paths. Only their number is used.

        y : array-like of shape (n_samples,)
            +1 for normal and -1 for anomalous samples. If no label is -1, test folds
            contain only held-out normal samples, as calibration needs them.

        groups : array-like of shape (n_samples,) or None, default=None
            Group of each sample. Samples of one group stay on one side of each split.

        Yields
        ------
        train : ndarray of shape (n_train,), int64
            Indices of the normal samples to learn from, ascending.

        test : ndarray of shape (n_test,), int64
            Indices of the held-out normal samples and the anomalies, ascending.

        Raises
        ------
        ValueError
            If `y` is missing, differs in length from `X`, or has labels other than +1
            and -1; if `groups` differs in length from `X` or has missing values; if
            there are fewer normal samples, or groups with normal samples,
            than folds; or if ``outliers="split"`` leaves a fold without anomalies.
        """
        if y is None:
            raise ValueError(
                "OneClassKFold needs y, the labels +1 (normal) and -1 (anomalous), to "
                "keep anomalies out of training; got y=None. Pass y."
            )
        labels = check_outlier_labels(y)
        check_consistent_length(X, labels)
        folds = self._assign_folds(labels, groups)
        for fold in range(self.n_splits):
            train = (labels == 1) & (folds != fold)
            test = (folds == fold) | (folds == _EVERY_FOLD)
            yield np.flatnonzero(train), np.flatnonzero(test)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds.

        Parameters
        ----------
        X : object
            Ignored, present for compatibility with scikit-learn.

        y : object
            Ignored, present for compatibility with scikit-learn.

        groups : object
            Ignored, present for compatibility with scikit-learn.

        Returns
        -------
        n_splits : int
            The parameter `n_splits`.
        """
        return self.n_splits

    def _assign_folds(
        self, labels: NDArray, groups: ArrayLike | None
    ) -> NDArray[np.int64]:
        """Return the fold that tests each sample, or `_EVERY_FOLD`."""
        # Without groups, each sample is a group of its own.
        n_samples = len(labels)
        group_of = (
            np.arange(n_samples) if groups is None else encode_groups(groups, n_samples)
        )
        normal, anomalous = np.flatnonzero(labels == 1), np.flatnonzero(labels == -1)
        _check_enough_normal(
            group_of[normal], len(labels), self.n_splits, groups is not None
        )
        rng = check_random_state(self.random_state) if self.shuffle else None
        folds = np.full(len(labels), _EVERY_FOLD)

        splitter = KFold if groups is None else GroupKFold
        splitter = splitter(self.n_splits, shuffle=self.shuffle, random_state=rng)
        normal_groups = None if groups is None else group_of[normal]
        for fold, (_, test) in enumerate(splitter.split(normal, groups=normal_groups)):
            folds[normal[test]] = fold

        fold_of_group = np.full(group_of.max() + 1, _EVERY_FOLD)
        fold_of_group[group_of[normal]] = folds[normal]
        folds[anomalous] = fold_of_group[group_of[anomalous]]
        if self.outliers == "split" and anomalous.size:
            folds[anomalous] = _distribute(
                group_of[anomalous], folds[anomalous], self.n_splits, rng
            )
        return folds


def _check_enough_normal(
    groups: NDArray, n_samples: int, n_splits: int, grouped: bool
) -> None:
    """Check that each fold can hold out one of the `groups` of normal samples."""
    if groups.size == 0:
        raise ValueError(
            f"None of the {n_samples} samples is labelled +1 (normal). Add normal "
            "samples: training folds consist only of these."
        )
    n_groups = len(np.unique(groups))
    if n_groups < n_splits:
        what = "group(s) with normal samples" if grouped else "normal sample(s)"
        raise ValueError(
            f"n_splits={n_splits}, but there are only {n_groups} {what} among "
            f"{n_samples} samples; each fold must hold out at least one. Lower "
            "n_splits."
        )


def _distribute(
    groups: NDArray,
    folds: NDArray[np.int64],
    n_splits: int,
    rng: np.random.RandomState | None,
) -> NDArray[np.int64]:
    """Assign a fold to each anomaly that has none yet, whole groups at a time.

    The largest group comes first. Each goes to the fold with the fewest anomalies.
    """
    free = folds == _EVERY_FOLD
    loads = np.bincount(folds[~free], minlength=n_splits)
    names, group_of, sizes = np.unique(
        groups[free], return_inverse=True, return_counts=True
    )
    order = np.arange(len(names)) if rng is None else rng.permutation(len(names))
    fold_of_group = np.empty_like(names)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of_group[group] = np.argmin(loads)
        loads[fold_of_group[group]] += sizes[group]
    if not loads.all():
        raise ValueError(
            f'outliers="split" leaves {np.sum(loads == 0)} of n_splits={n_splits} '
            f"folds without any of the {len(folds)} anomalies; use fewer folds or "
            'outliers="all".'
        )
    assigned = folds.copy()
    assigned[free] = fold_of_group[group_of]
    return assigned
