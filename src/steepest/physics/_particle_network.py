r"""Parts of networks on particles: graphs with their attributes, sums over neighbors, and two kinds of interaction.

    interaction (GIOROM)   m_ij = MLP[h_i, h_j, e_ij],  a_i = mean_j m_ij / (1 + |x_i - x_j| / R)
                           s = Linear(0.7 h + 0.3 D^-1/2 A D^-1/2 h)
                           h_i <- h_i + MLP[h_i, a_i] + s_i,  e_ij <- e_ij + m_ij
    interaction (GNS)      a_i = sum_j m_ij,  h_i <- h_i + MLP[h_i, a_i],  e_ij <- e_ij + m_ij

i receives from j; A holds the edges (with self loops where the graph has them), D how many a particle receives.

Papers: viswanath2024reduced, sanchezgonzalez2020learning.
Departures: the official spectral term hands the entries of a Laplacian to a convolution that adds self loops and
normalizes once more, with degrees that can be negative; ours is the symmetric normalized adjacency itself.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from steepest.physics._particle_sums import SparseRows, copies, entries

__all__ = ["Graph", "GraphLayer", "SpectralLayer", "first_weights", "graph_of", "mlp", "safe_norm"]

SPECTRAL_SHARE = 0.7  # of h itself, the official alpha


class Graph(NamedTuple):
    """Edges sorted by receiver with their attributes, as matrices between particles and edges; of a whole batch."""

    attributes: Tensor  # (E, d + 1): (x_i - x_j) / R and its norm
    degrees: Tensor  # (n, 1): edges received, at least 1
    to_receivers: SparseRows  # (E, n): what each edge's receiver has; transposed, sums over the edges of a receiver
    to_senders: SparseRows  # (E, n)
    adjacency: SparseRows  # (n, n): D^-1/2 A D^-1/2


def graph_of(x: Tensor, edges: Tensor, radius: float) -> Graph:
    """Give edges (2, E), sorted by receiver, their attributes at positions x (n, d)."""
    (senders, receivers), n = edges, len(x)
    by_sender = senders.argsort(stable=True)
    to_receivers, to_senders = copies(receivers, n), copies(senders, n, by_sender)
    relative = (x.index_select(0, receivers) - x.index_select(0, senders)) / radius
    attributes = torch.cat((relative, safe_norm(relative)), 1)
    degrees = torch.bincount(receivers, minlength=n).clamp(min=1).to(x.dtype)
    weights = (degrees[receivers] * degrees[senders]).rsqrt()
    adjacency = entries(receivers, senders, weights, (n, n), by_sender)
    return Graph(attributes, degrees[:, None], to_receivers, to_senders, adjacency)


def safe_norm(vectors: Tensor) -> Tensor:
    """Norms (E, 1) of vectors (E, d), whose gradient at zero is zero instead of NaN."""
    squares = vectors.square().sum(-1, keepdim=True)
    zero = squares == 0
    return torch.where(zero, 1.0, squares).sqrt() * ~zero


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Sequential:
    """Linear layers with an activation between them, and LayerNorm at the end where asked for."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    layers[-1:] = [nn.LayerNorm(sizes[-1])] if norm else []
    return nn.Sequential(*layers)


class GraphLayer(nn.Module):
    """One interaction of the graph network simulator."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.message = mlp(3 * hidden, hidden, hidden, hidden, norm=True)
        self.update = mlp(2 * hidden, hidden, hidden, hidden, norm=True)

    def forward(self, h: Tensor, e: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:  # (n, hidden), (E, hidden)
        """Give the new nodes and edges."""
        m = self._messages(h, e, graph)
        a = graph.to_receivers.T(m)
        return h + self.update(torch.cat((h, a), 1)), e + m

    def _messages(self, h: Tensor, e: Tensor, graph: Graph) -> Tensor:
        """Give MLP[h_i, h_j, e_ij]; the first layer multiplies nodes once a node, not once an edge."""
        first = cast(nn.Linear, self.message[0])
        of_i, of_j, of_edge = first.weight.split(h.shape[1], 1)
        received, sent = graph.to_receivers(h @ of_i.T), graph.to_senders(h @ of_j.T)
        messages: Tensor = self.message[1:](nn.functional.linear(e, of_edge, first.bias).add_(received).add_(sent))
        return messages


class SpectralLayer(GraphLayer):
    """One interaction of GIOROM: means in place of sums, the nearer the heavier, and a spectral term."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.spectral = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor, e: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:  # (n, hidden), (E, hidden)
        """Give the new nodes and edges."""
        m = self._messages(h, e, graph)
        distance = graph.attributes[:, -1:]
        a = graph.to_receivers.T(m / (1 + distance)) / graph.degrees
        s = self.spectral(SPECTRAL_SHARE * h + (1 - SPECTRAL_SHARE) * graph.adjacency(h))
        return h + self.update(torch.cat((h, a), 1)) + s, e + m


@torch.no_grad()
def first_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Normal weights of variance 1 / fan-in, zero biases, as in the official code; embeddings by Glorot's rule."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0.0, 1 / math.sqrt(max(1, module.in_features)), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            nn.init.xavier_uniform_(module.weight, generator=generator)
