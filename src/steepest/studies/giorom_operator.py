"""The kernel integral of the neuraloperator library, trained to infer the particles of a jelly from samples."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.physics._upsampling import default_radius

__all__ = ["trained_operator"]

Array = NDArray[np.float64]
WIDTH = 32
QUERIES = 512  # points of one step, as `GIOROM.fit_upsampler` has


def trained_operator(
    training: Sequence[NDArray[Any]], n_sample: int, steps: int, lr: float = 1e-2
) -> Callable[[Array, Array, Array, Array], Array]:
    """Train u(X) = mean over samples Y near X of kappa(Y, X) * u(Y) by Adam, as our kernel is trained.

    Parameters
    ----------
    training : sequence of ndarray (T, n, d)
    n_sample : int
        Samples, drawn anew in every step.
    steps : int
    lr : float
        The best of 1e-3, 1e-2 and 3e-2 on validation scenes (250 steps).

    Returns
    -------
    callable
        From samples Y, queries X and samples' displacements (T, n, d) give those of the queries; the fourth argument is
        not used.
    """
    kind = importlib.import_module("neuralop.layers.gno_block").GNOBlock
    rng = np.random.default_rng(0)
    x = training[0]
    radius = default_radius(np.asarray(x[0, rng.permutation(x.shape[1])[:n_sample]], dtype=np.float64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = kind(
            x.shape[2], x.shape[2], x.shape[2], radius=radius, reduction="mean", pos_embedding_type=None,
            channel_mlp_layers=[WIDTH, WIDTH], use_torch_scatter_reduce=False, use_open3d_neighbor_search=False,
        )  # fmt: skip
    scale = float(np.mean([np.square(x[1:] - x[0]).mean() for x in training]))
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
    for _ in range(steps):
        frames = torch.tensor(training[int(rng.integers(len(training)))])
        order = torch.from_numpy(rng.permutation(frames.shape[1]))
        samples, queries = order[:n_sample], order[n_sample:][:QUERIES]
        u = frames[int(rng.integers(1, len(frames)))] - frames[0]
        found = layer(frames[0, samples], frames[0, queries], u[samples])
        loss = (found - u[queries]).square().mean() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def interpolate(Y: Array, X: Array, u: Array, early: Array) -> Array:
        placed = layer(*(torch.tensor(a, dtype=torch.float32) for a in (Y, X, u)))
        return np.asarray(placed.double())

    return interpolate
