r"""A neural operator on particles: kernel integrals to a regular grid and back, and a linear transformer between them.

    encode   v(q) = mean over particles y within R_o of q of kappa[y - q, h_y]         0 where there are none
    blocks   tokens  t = trunk v(q),  branch  b = MLP(q)
             t <- t + attention(t, b),  t <- t + norm experts(t),  the same with attention(t, t)
    decode   h(x) <- h(x) + MLP(mean over nodes q within R_o of x of kappa'(q - x) * head t(q))

    attention(t, b) = Linear(Q + Q (K'V) / (Q . sum K)),
    Q = softmax W_q t and K = softmax W_k b over the features of each head,  V = W_v b

The sums over tokens come first, so the cost is linear in their number. The branch meets the tokens in such sums only,
and the experts' gate reads the token alone: whatever moves all particles by a spacing of the grid, away from its ends,
moves the result by as much.

Paper: viswanath2024reduced; the blocks are hao2023gnot's.
Departures: kappa sees y - q, where the official code drops q; the gate does not see the position; no dropout; R_o is
1.5 spacings by default, so that every particle meets a node (the official 2D setting leaves most without).
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steepest.core.errors import at_least, check, value_error
from steepest.physics._particle_network import mlp
from steepest.physics._particle_sums import SparseRows, copies

__all__ = ["GatedExperts", "LatentPairs", "LinearAttention", "NeuralOperator", "grid_sizes"]


LATENT_GRIDS = {2: 32, 3: 16}  # official


class LatentPairs(NamedTuple):
    """Particles and grid nodes at most R_o apart, sorted by particle."""

    particles: Tensor  # (p,)
    nodes: Tensor  # (p,), of the whole batch: graph * nodes of a grid + node
    relative: Tensor  # (p, d): (node - particle) / R_o
    by_node: Tensor  # (p,): the order that sorts the nodes


class NeuralOperator(nn.Module):
    """What particles anywhere in the box can tell each other at a cost that is linear in particles and grid nodes."""

    low: Tensor
    spacing: Tensor
    nodes: Tensor

    def __init__(
        self, hidden: int, low: list[float], high: list[float], grid: tuple[int, ...], radius: float | None,
        n_layers: int, heads: int, experts: int,
    ) -> None:  # fmt: skip
        super().__init__()
        d, width = len(grid), 2 * hidden
        small, middle = max(1, hidden // 4), max(1, hidden // 2)
        self.grid = grid
        spacing = [(b - a) / (g - 1) for a, b, g in zip(low, high, grid, strict=True)]
        self.radius = 1.5 * max(spacing) if radius is None else radius
        self.stencil = [math.floor(self.radius / s) + 1 for s in spacing]
        self.encode_kernel = mlp(hidden + d, small, middle, middle, activation=nn.GELU)
        self.trunk = mlp(middle, width, width, activation=nn.GELU)
        self.branch = mlp(d, width, width, activation=nn.GELU)
        self.blocks = nn.ModuleList(_Block(width, heads, experts) for _ in range(n_layers))
        self.head = mlp(width, width, hidden, activation=nn.GELU)
        self.decode_kernel = mlp(d, small, middle, hidden, activation=nn.GELU)
        self.channels = mlp(hidden, width, width, hidden, activation=nn.GELU)

    def set_grid(self, low: Tensor, high: Tensor) -> None:
        """Lay the nodes out, row by row (the last axis fastest), from one bound to the other."""
        axes = [torch.linspace(0.0, 1.0, g, dtype=torch.float64) for g in self.grid]
        unit = torch.cartesian_prod(*axes).reshape(-1, len(self.grid))
        self.register_buffer("low", low.clone(), persistent=False)
        self.register_buffer("spacing", (high - low) / (torch.tensor(self.grid) - 1), persistent=False)
        self.register_buffer("nodes", 2 * unit.to(low) - 1, persistent=False)  # as the branch sees them

    def forward(self, h: Tensor, x: Tensor, graph_index: Tensor, n_graphs: int) -> Tensor:
        """Add to h (n, hidden) what the particles at x (n, d) hear through the grid of their graph."""
        pairs = self.pairs(x, graph_index)
        v = self.encode(h, pairs, n_graphs * len(self.nodes))
        tokens = self.trunk(v.unflatten(0, (n_graphs, -1)))
        branch = self.branch(self.nodes)[None]
        for block in self.blocks:
            tokens = block(tokens, branch)
        return h + self.channels(self.decode(self.head(tokens).flatten(0, 1), pairs, len(h)))

    def pairs(self, x: Tensor, graph_index: Tensor) -> LatentPairs:
        """Find the nodes within R_o of each particle; those that left the box count as on its wall."""
        shape = torch.tensor(self.grid, device=x.device)
        place = ((x.detach() - self.low) / self.spacing).clamp(min=torch.zeros_like(self.low), max=(shape - 1).to(x))
        reach = [torch.arange(1 - s, s + 1, device=x.device) for s in self.stencil]
        offsets = torch.cartesian_prod(*reach).reshape(-1, len(self.grid))
        cells = place.floor().long()[:, None] + offsets  # (n, s, d)
        relative = (cells - place[:, None]) * self.spacing / self.radius
        near = (relative.square().sum(-1) <= 1) & ((cells >= 0) & (cells < shape)).all(-1)
        particles, which = near.nonzero(as_tuple=True)
        strides = torch.tensor([*itertools.accumulate(reversed(self.grid[1:]), int.__mul__, initial=1)][::-1])
        nodes = (cells[particles, which] * strides.to(x.device)).sum(-1)
        nodes = nodes + graph_index.index_select(0, particles) * len(self.nodes)
        return LatentPairs(particles, nodes, relative[particles, which], nodes.argsort(stable=True))

    def encode(self, h: Tensor, pairs: LatentPairs, n_nodes: int) -> Tensor:
        """Mean over the particles around each node of kappa[y - q, h_y]: (n_nodes, c)."""
        heard = copies(pairs.particles, len(h))(h)
        kappa = self.encode_kernel(torch.cat((-pairs.relative, heard), 1))
        return _mean(kappa, copies(pairs.nodes, n_nodes, pairs.by_node))

    def decode(self, z: Tensor, pairs: LatentPairs, n: int) -> Tensor:
        """Mean over the nodes around each particle of kappa'(q - x) * z(q): (n, hidden)."""
        heard = copies(pairs.nodes, len(z), pairs.by_node)(z)
        return _mean(self.decode_kernel(pairs.relative) * heard, copies(pairs.particles, n))


def _mean(values: Tensor, to_rows: SparseRows) -> Tensor:
    """Average values (e, c) over the members of each row, zero without any."""
    counts = to_rows.transposed.offsets.diff().clamp(min=1)
    return to_rows.T(values) / counts.to(values.dtype)[:, None]


class LinearAttention(nn.Module):
    """Attention whose softmax runs over features, so that sums over tokens come first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # (B, G, width), (B or 1, G', width) -> (B, G, width)
        """Let every token of x ask all of y."""
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.query, x), (self.key, y), (self.value, y))
        )  # (B, heads, G, width / heads)
        q, k = q.softmax(-1), k.softmax(-1)
        heard = q @ (k.transpose(-1, -2) @ v) / (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
        attended: Tensor = self.out((q + heard).transpose(1, 2).flatten(-2))
        return attended


class GatedExperts(nn.Module):
    """A mixture of small networks, weighted by a gate that reads the same token."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(mlp(width, width, width, activation=nn.GELU) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        gate = self.gate(x).softmax(-1)
        mixed: Tensor = sum(expert(x) * share for expert, share in zip(self.experts, gate.split(1, -1), strict=True))
        return mixed


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, experts: int) -> None:
        super().__init__()
        self.cross, self.own = LinearAttention(width, heads), LinearAttention(width, heads)
        self.first, self.second = GatedExperts(width, experts), GatedExperts(width, experts)
        self.norm_cross, self.norm_branch, self.norm_own, self.norm_first, self.norm_second = (
            nn.LayerNorm(width) for _ in range(5)
        )

    def forward(self, tokens: Tensor, branch: Tensor) -> Tensor:
        tokens = tokens + self.cross(self.norm_cross(tokens), self.norm_branch(branch))
        tokens = tokens + self.norm_first(self.first(tokens))
        normal = self.norm_own(tokens)
        tokens = tokens + self.own(normal, normal)
        return tokens + self.norm_second(self.second(tokens))


def grid_sizes(latent_grid: Any, dim: int) -> tuple[int, ...]:
    """Give the nodes of each axis."""
    sizes = LATENT_GRIDS[dim] if latent_grid is None else latent_grid
    if isinstance(sizes, list | tuple):
        if len(sizes) != dim:
            raise value_error("latent_grid", f"an integer, or {dim} of them", latent_grid)
    else:
        sizes = (sizes,) * dim
    for size in sizes:
        check("latent_grid", size, at_least(2, integer=True))
    return tuple(int(size) for size in sizes)
