"""Rules that set the weights of layers from the features of training pictures."""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from skpatchcore._descriptors import balance_layers

N_PICTURES, N_PATCHES = 24, 4000


def _blocks(X, n_channels):
    flat = X.reshape(-1, X.shape[-1])
    flat = flat[:: max(1, len(flat) // 20_000)]
    return np.split(flat, np.cumsum(n_channels)[:-1], axis=1)


def concatenation(X, n_channels):
    return np.ones(len(n_channels))


def equal_variance(X, n_channels):
    spread = [block.var(axis=0).sum() ** 0.5 for block in _blocks(X, n_channels)]
    return spread[0] / np.array(spread)


def equal_norm(X, n_channels):
    norms = [np.linalg.norm(block, axis=1).mean() for block in _blocks(X, n_channels)]
    return norms[0] / np.array(norms)


def equal_variance_halved(X, n_channels):
    """Every layer after the first at half of its standard deviation."""
    return equal_variance(X, n_channels) * np.r_[1, [0.5] * (len(n_channels) - 1)]


def halved(X, n_channels):
    return np.r_[1, [0.5] * (len(n_channels) - 1)]


def equal_channels(X, n_channels):
    """The mean square of a channel counts the same in all layers."""
    return (n_channels[0] / np.array(n_channels)) ** 0.5


def nearest_neighbors(X, n_channels):
    """Equal distance to the nearest patch in other training pictures."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(X))[:N_PICTURES]
    half = len(chosen) // 2
    ends = np.cumsum(n_channels)[:-1]
    banks = np.split(X[chosen[:half]].reshape(-1, X.shape[-1]), ends, axis=1)
    queries = X[chosen[half:]].reshape(-1, X.shape[-1])
    queries = queries[:: max(1, len(queries) // N_PATCHES)]
    nearest = [
        np.mean(NearestNeighbors(n_neighbors=1).fit(bank).kneighbors(query)[0])
        for bank, query in zip(banks, np.split(queries, ends, axis=1), strict=True)
    ]
    return nearest[0] / np.array(nearest)


def nearest_neighbors_tail(X, n_channels):
    """Equal spread of the distances to the nearest patch in other pictures' tail."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(X))[:N_PICTURES]
    half = len(chosen) // 2
    ends = np.cumsum(n_channels)[:-1]
    banks = np.split(X[chosen[:half]].reshape(-1, X.shape[-1]), ends, axis=1)
    queries = X[chosen[half:]].reshape(-1, X.shape[-1])
    queries = queries[:: max(1, len(queries) // N_PATCHES)]
    nearest = [
        NearestNeighbors(n_neighbors=1).fit(bank).kneighbors(query)[0]
        for bank, query in zip(banks, np.split(queries, ends, axis=1), strict=True)
    ]
    tails = [np.quantile(distances, 0.99) for distances in nearest]
    return tails[0] / np.array(tails)


def auto(X, n_channels):
    blocks = np.concatenate(_blocks(X, n_channels), axis=1)
    return balance_layers(blocks, n_channels)


RULES = {
    rule.__name__: rule
    for rule in (
        concatenation,
        halved,
        equal_channels,
        equal_norm,
        equal_variance,
        equal_variance_halved,
        nearest_neighbors,
        nearest_neighbors_tail,
        auto,
    )
}
