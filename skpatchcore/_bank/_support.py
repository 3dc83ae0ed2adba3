"""How much each bank row counts when a training sample is scored.

A sample must not be matched with itself. The bank was selected from the training
samples, so the rows that only the sample itself put there are left out when it is
scored. Any other row stays. Without this sample, the greedy would have selected another
patch near such a row, because patches of other samples lie there as well.
"""

import numpy as np
from numpy.typing import NDArray


class Support:
    """Weights of bank rows, by how many other training samples they represent.

    A bank row represents the training patches that are closer to it than to any other
    row. Let n be the number of samples, m the number of rows, and s the number of
    samples *other than the one scored* that a row represents. The row counts as
    min(1, s m / n) neighbours:

    - A row that represents no other sample counts as none.
    - If the bank has at least as many rows as there are samples, every other row counts
      as one. This is the case for images, which have many patches each.
    - If it has fewer, a row represents n / m samples on average. A row that represents
      fewer counts less, so that a few similar outliers do not mask each other.
    - If every patch was selected and a sample is a single patch, the neighbours are the
      nearest other samples. This is leave-one-out.

    Weights are multiplied by n here, which makes them whole numbers.

    Parameters
    ----------
    nearest : ndarray of shape (n_patches,), int64
        The bank row that represents each patch.
    groups : ndarray of shape (n_patches,), int64
        The sample of each of these patches. Transformed copies of a sample have the
        number of that sample.
    n_bank : int
        Number of rows of the bank.
    n_groups : int
        Number of samples that are to be scored, from 0. Some may have no patch here.

    Attributes
    ----------
    n_samples : int
        The weight of one whole neighbour.
    totals : ndarray of shape (n_groups,), int64
        Sum of the weights of all rows for each sample.
    alone : ndarray of shape (n_groups,), bool
        Samples for which no row represents another sample. Their own rows count.
    """

    def __init__(
        self,
        nearest: NDArray[np.int64],
        groups: NDArray[np.int64],
        n_bank: int,
        n_groups: int,
    ) -> None:
        self.n_samples = len(np.unique(groups))
        self._n_bank, self._n_groups = n_bank, n_groups
        # One number for each pair of a row and a sample that it represents.
        self._pairs = np.unique(nearest * n_groups + groups)
        rows, samples = np.divmod(self._pairs, n_groups)
        self._n_represented = np.bincount(rows, minlength=n_bank)
        # All rows count in full, less what each sample does not give to itself.
        everyone = self._weight(self._n_represented)
        lost = everyone[rows] - self._weight(self._n_represented[rows] - 1)
        lost_by_sample = np.bincount(samples, lost, minlength=n_groups)
        self.totals = everyone.sum() - lost_by_sample.astype(np.int64)
        self.alone = self.totals == 0
        self.totals[self.alone] = everyone.sum()

    def weights(
        self, rows: NDArray[np.int64], groups: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the weight of bank rows, of any shape, for samples of that shape."""
        pairs = rows * self._n_groups + groups
        places = np.searchsorted(self._pairs, pairs).clip(max=len(self._pairs) - 1)
        own = (self._pairs[places] == pairs) & ~self.alone[groups]
        return self._weight(self._n_represented[rows] - own)

    def _weight(self, n_others: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.minimum(self.n_samples, n_others * self._n_bank)
