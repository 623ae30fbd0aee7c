r"""Learned simulation of all particles: interactions between neighbors, one after another, on the dense cloud.

    h_i = encoder(particle),  e_ij = encoder((x_i - x_j) / R, its norm)
    ten times  m_ij = MLP[h_i, h_j, e_ij],  h_i <- h_i + MLP[h_i, sum_j m_ij],  e_ij <- e_ij + m_ij
    acceleration = decoder(h)

Paper: sanchezgonzalez2020learning.
Departures: a self loop on every particle, the inputs by accelerations and the linear skip, all as in `GIOROM`, so that
the two differ in what lies between encoder and decoder alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steepest.core.errors import Limit, at_least
from steepest.physics._particle_model import ParticleModel
from steepest.physics._particle_network import Graph, GraphLayer
from steepest.physics._particle_training import Batch

__all__ = ["GNS"]


class GNS(ParticleModel):
    """Graph network simulator (sanchezgonzalez2020learning), with the inputs and the training of `GIOROM`.

    Parameters
    ----------
    dim : 2 or 3
    window : int
        Velocities in the input; 5 as in the paper.
    hidden : int
        Width; 128 as in the paper.
    n_layers : int
        Interactions, each with its own weights; 10 as in the paper.
    n_types : int
        Kinds of particles; 9 as in the paper's data.
    bounds, connectivity_radius, node_input, skip, normalize_velocity, seed
        As in `GIOROM`.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind or outside its limits.

    Examples
    --------
    >>> model = GNS(hidden=8, n_layers=2, connectivity_radius=0.3)
    >>> model(torch.rand(5, 6, 2, generator=torch.Generator().manual_seed(0))).shape
    torch.Size([5, 2])
    """

    LIMITS: ClassVar[Mapping[str, Limit]] = {**ParticleModel.LIMITS, "n_layers": at_least(1, integer=True)}

    def __init__(
        self,
        dim: int = 2,
        *,
        window: int = 5,
        hidden: int = 128,
        n_layers: int = 10,
        n_types: int = 9,
        bounds: Any = None,
        connectivity_radius: float | None = None,
        node_input: str = "accelerations",
        skip: str | None = "least_squares",
        normalize_velocity: bool = True,
        seed: int | torch.Generator | None = 0,
    ) -> None:
        super().__init__(
            seed,
            {
                "dim": dim, "window": window, "hidden": hidden, "n_layers": n_layers, "n_types": n_types,
                "bounds": bounds, "connectivity_radius": connectivity_radius, "node_input": node_input, "skip": skip,
                "normalize_velocity": normalize_velocity,
            },
        )  # fmt: skip

    def _build(self, box: list[list[float]]) -> None:
        self.layers = nn.ModuleList(GraphLayer(self.hidden) for _ in range(self.settings["n_layers"]))

    def _process(self, h: Tensor, e: Tensor, graph: Graph, batch: Batch) -> Tensor:
        for layer in self.layers:
            h, e = layer(h, e, graph)
        return h
