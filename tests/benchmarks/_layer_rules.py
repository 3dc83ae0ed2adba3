"""Rules that set the weights of layers from the features of training images."""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from skpatchcore._features._descriptors import balance_layers

N_IMAGES, N_PATCHES = 24, 4000


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


def _distances_to_others(X, n_channels):
    """Return, a layer, distances to the nearest patch in other training images."""
    chosen = np.random.default_rng(0).permutation(len(X))[:N_IMAGES]
    bank, queries = (
        np.split(X[rows].reshape(-1, X.shape[-1]), np.cumsum(n_channels)[:-1], axis=1)
        for rows in np.array_split(chosen, 2)
    )
    step = max(1, len(queries[0]) // N_PATCHES)
    return [
        NearestNeighbors(n_neighbors=1).fit(near).kneighbors(query[::step])[0]
        for near, query in zip(bank, queries, strict=True)
    ]


def nearest_neighbors(X, n_channels):
    """Equal distance to the nearest patch in other training images."""
    means = [distances.mean() for distances in _distances_to_others(X, n_channels)]
    return means[0] / np.array(means)


def nearest_neighbors_tail(X, n_channels):
    """The same of the 99 % quantiles of these distances."""
    tails = [np.quantile(d, 0.99) for d in _distances_to_others(X, n_channels)]
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
