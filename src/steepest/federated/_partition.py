"""Cut a data set into clients' parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from steepest.core.errors import at_least, check, nonnegative, value_error
from steepest.core.random import numpy_generator

__all__ = ["dirichlet_partition", "iid_partition", "shard_partition"]

_REDRAWS = 1_000


def _read(labels: Any, n_clients: int) -> tuple[np.ndarray, int]:
    check("n_clients", n_clients, at_least(1, integer=True))
    read = np.asarray(labels)
    if read.ndim != 1 or not len(read):
        raise value_error("labels", "one label per sample", read)
    if n_clients > len(read):
        raise value_error("n_clients", f"at most the number of samples ({len(read)})", n_clients)
    return read, len(read)


def dirichlet_partition(
    labels: Any, n_clients: int, alpha: float, *, seed: int = 0, min_samples: int = 1, balance: bool = False
) -> list[np.ndarray]:
    """Split samples so that clients differ in their mix of classes.

    Each class is shared out by a draw from a symmetric Dirichlet law.

    Parameters
    ----------
    labels : array_like of shape (n_samples,)
    n_clients : int
    alpha : float
        Concentration: 0.1 gives most clients few classes, ``inf`` every client the same shares, up to one sample.
    seed : int
    min_samples : int
        Draw again, at most 1,000 times, until every client has so many.
    balance : bool
        Draw a mix of classes per client instead, around the whole set's, and give all clients the same number of
        samples, up to one.

    Returns
    -------
    list of ndarray of int64
        Sorted, disjoint indices that cover all samples.

    Raises
    ------
    ValueError
        ``alpha <= 0``, more clients than samples, or no draw that gives every client `min_samples`.

    Examples
    --------
    >>> parts = dirichlet_partition([0, 0, 0, 0, 1, 1, 1, 1], n_clients=2, alpha=float("inf"))
    >>> [len(part) for part in parts]
    [4, 4]
    """
    read, n = _read(labels, n_clients)
    if not isinstance(alpha, (int, float)) or not alpha > 0:
        raise value_error("alpha", "> 0 (inf for equal shares)", alpha)
    check("min_samples", min_samples, nonnegative(integer=True))
    if min_samples * n_clients > n:
        raise value_error("min_samples", f"at most {n // n_clients} ({n} samples, {n_clients} clients)", min_samples)
    rng = numpy_generator(seed)
    groups = [np.flatnonzero(read == label) for label in np.unique(read)]
    for _ in range(_REDRAWS):
        parts = _balanced(groups, n, n_clients, alpha, rng) if balance else _by_class(groups, n_clients, alpha, rng)
        if min(map(len, parts)) >= min_samples:
            return [np.sort(part).astype(np.int64) for part in parts]
    raise value_error(
        "alpha", f"large enough that every client gets {min_samples} samples", alpha, "lower min_samples or n_clients"
    )


def _shares(alpha: float, n: int, rng: np.random.Generator) -> np.ndarray:
    if math.isinf(alpha):
        return np.full(n, 1 / n)
    shares = rng.dirichlet(np.full(n, alpha))
    # all gamma draws of a tiny alpha may underflow: the limit law has one client take everything
    return shares if np.isfinite(shares).all() else np.eye(n)[rng.integers(n)]


def _by_class(groups: list[np.ndarray], n_clients: int, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
    parts: list[list[np.ndarray]] = [[] for _ in range(n_clients)]
    for k, group in enumerate(groups):
        shares = _shares(alpha, n_clients, rng)
        if math.isinf(alpha):
            sizes = [len(piece) for piece in np.array_split(group, n_clients)]
            cuts = np.cumsum(np.roll(sizes, k))[:-1]  # the odd samples go to other clients for every class
        else:
            cuts = np.floor(np.cumsum(shares)[:-1] * len(group) + 1e-12).astype(int)
        for part, piece in zip(parts, np.split(rng.permutation(group), cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def _balanced(
    groups: list[np.ndarray], n: int, n_clients: int, alpha: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Fill clients one by one from their own mixes; a class that has run out is left out of the mix."""
    left = [list(rng.permutation(group)) for group in groups]
    whole = np.array([len(group) for group in groups]) / n
    sizes = [len(piece) for piece in np.array_split(np.arange(n), n_clients)]
    parts = []
    for size in sizes:
        mix = whole if math.isinf(alpha) else rng.dirichlet(np.maximum(alpha * len(groups) * whole, 1e-3))
        part: list[int] = []
        while len(part) < size:
            stock = np.array([len(pool) for pool in left])
            weights = np.where(stock > 0, mix, 0.0)
            weights = stock.astype(float) if weights.sum() <= 0 else weights
            share = (size - len(part)) * weights / weights.sum()
            wanted = np.floor(share).astype(int)
            missing = size - len(part) - wanted.sum()
            wanted[np.argsort(wanted - share, kind="stable")[:missing]] += 1  # the largest remainders
            for pool, count in zip(left, np.minimum(wanted, stock), strict=True):
                part += [pool.pop() for _ in range(count)]
        parts.append(np.array(part))
    return parts


def iid_partition(n_samples: int, n_clients: int, *, seed: int = 0) -> list[np.ndarray]:
    """Split samples at random into parts of equal size, up to one.

    Examples
    --------
    >>> [len(part) for part in iid_partition(7, 3)]
    [3, 2, 2]
    """
    check("n_samples", n_samples, at_least(1, integer=True))
    _read(np.zeros(n_samples), n_clients)
    order = numpy_generator(seed).permutation(n_samples)
    return [np.sort(part).astype(np.int64) for part in np.array_split(order, n_clients)]


def shard_partition(labels: Any, n_clients: int, shards_per_client: int = 2, *, seed: int = 0) -> list[np.ndarray]:
    """Sort samples by label, cut them into shards and deal these out, as McMahan et al. [mcmahan2017communication] did.

    Raises
    ------
    ValueError
        More shards than samples.

    Examples
    --------
    >>> parts = shard_partition([0, 1, 0, 1, 2, 2], n_clients=3, shards_per_client=1)
    >>> sorted(part.tolist() for part in parts)
    [[0, 2], [1, 3], [4, 5]]
    """
    read, n = _read(labels, n_clients)
    check("shards_per_client", shards_per_client, at_least(1, integer=True))
    if n_clients * shards_per_client > n:
        raise value_error("shards_per_client", f"at most {n // n_clients} ({n} samples)", shards_per_client)
    rng = numpy_generator(seed)
    order = np.lexsort((rng.permutation(n), read))  # at random within a label
    shards = np.array_split(order, n_clients * shards_per_client)
    dealt = rng.permutation(len(shards)).reshape(n_clients, shards_per_client)
    return [np.sort(np.concatenate([shards[k] for k in hand])).astype(np.int64) for hand in dealt]
