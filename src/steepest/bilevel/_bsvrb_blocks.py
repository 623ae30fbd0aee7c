"""The blocks of `bsvrb`: their rows, moved when somebody looks, and one step's work on the drawn ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steepest.bilevel._oracles import Oracles
from steepest.bilevel.problem import BilevelProblem
from steepest.curvature.autodiff import backward

__all__ = [
    "BlockOracles",
    "Blocks",
    "Rule",
    "Share",
    "Updated",
    "draw_blocks",
    "floored",
    "into_ball",
    "measure",
    "solve_blocks",
    "update",
]


@dataclass(frozen=True)
class Rule:
    """The numbers of the method that blocks need."""

    variant: str
    lr_y: float
    lr_v: float
    alpha: float
    gamma: float
    hessian_floor: float
    v_bound: float


class Blocks:
    """All m rows, each kept as it was before the move of the step that last drew it (`since`).

    Between two draws a row moves by the same ``lr_y s_i`` in every step, so that its value at any later step follows
    from what is kept: a step costs what the drawn rows cost, whatever m.
    """

    def __init__(self, y: Tensor, rule: Rule, n_drawn: int) -> None:
        m, p = y.shape
        self.rule = rule
        self.y = y.clone()
        self.s = torch.zeros_like(y)
        self.since = torch.zeros(m, dtype=torch.long, device=y.device)
        self.seen = torch.zeros(m, dtype=torch.bool, device=y.device)
        if rule.variant == "v1":
            self.H = torch.eye(p, dtype=y.dtype, device=y.device).repeat(m, 1, 1)
            self.H_old = self.H[:n_drawn].clone()  # of the rows drawn last: only theirs differ from H
            self.slot = torch.full((m,), -1, device=y.device)
            self.last = self.since[:0]
        else:
            self.v, self.u = torch.zeros_like(y), torch.zeros_like(y)

    def y_at(self, t: int, blocks: Tensor) -> tuple[Tensor, Tensor]:  # (I, p), (I, p)
        """Give the rows of y at steps t and t - 1."""
        n = (t - self.since[blocks]).unsqueeze(1)
        y, move = self.y[blocks], self.rule.lr_y * self.s[blocks]
        return y - n * move, y - (n - 1).clamp(min=0) * move

    def v_at(self, t: int, blocks: Tensor) -> tuple[Tensor, Tensor]:  # (I, p), (I, p)
        """Give the rows of v at steps t and t - 1."""
        n = t - self.since[blocks]
        move = self.rule.lr_v * self.u[blocks]
        before = _moved_in_ball(self.v[blocks], move, (n - 1).clamp(min=0), self.rule.v_bound)
        now = torch.where((n > 0).unsqueeze(1), into_ball(before - move, self.rule.v_bound), before)
        return now, before

    def H_at(self, blocks: Tensor) -> tuple[Tensor, Tensor]:  # (I, p, p), (I, p, p)
        """Give H before this step and before the last one."""
        H, slot = self.H[blocks], self.slot[blocks]
        return H, torch.where((slot >= 0)[:, None, None], self.H_old[slot.clamp(min=0)], H)

    def settle(self, t: int) -> None:
        """Move every row to step t, which changes none of the values above."""
        everything = torch.arange(len(self.y), device=self.y.device)
        self.y = self.y_at(t, everything)[0]
        if self.rule.variant == "v2":
            self.v = self.v_at(t, everything)[0]
        self.since.fill_(t)

    def put(self, t: int, share: Share, new: Updated) -> None:
        """Write what step t found for the drawn rows."""
        at = share.blocks
        self.y[at], self.s[at], self.since[at], self.seen[at] = share.y, new.s, t, True
        if self.rule.variant == "v1":
            self.slot[self.last] = -1
            self.slot[at] = torch.arange(len(at), device=at.device)
            self.last, self.H_old = at, share.aid
            self.H[at] = new.aid
        else:
            self.v[at], self.u[at] = share.aid, new.aid


@dataclass(frozen=True)
class Share:
    """Some of the drawn blocks: all that one step's work on them needs. `aid` is H or v."""

    t: int
    blocks: Tensor  # (I,)
    upper_batch: Any
    lower_batch: Any
    x: Tensor  # (n,)
    x_old: Tensor
    y: Tensor  # (I, p)
    y_old: Tensor
    aid: Tensor  # (I, p, p) or (I, p)
    aid_old: Tensor
    s: Tensor  # (I, p)
    e: Tensor  # H or u
    first: Tensor  # (I,) bool


@dataclass(frozen=True)
class Updated:
    """What it gives: the means over the share of G now and at the previous point, and the new s and H or u."""

    G: Tensor  # (n,)
    G_old: Tensor
    s: Tensor  # (I, p)
    aid: Tensor  # (I, p, p) or (I, p)
    counts: dict[str, int]


def update(problem: BilevelProblem, rule: Rule, share: Share) -> Updated:
    """Measure a share at the current and the previous point, on the same batches, and fold it into its estimators."""
    oracles = BlockOracles(problem)
    batches = share.upper_batch, share.lower_batch, share.blocks
    G, q_s, q_e = measure(oracles, rule.variant, share.x, share.y, share.aid, *batches)
    G_old, q_s_old, q_e_old = G, q_s, q_e
    if share.t > 0:
        G_old, q_s_old, q_e_old = measure(oracles, rule.variant, share.x_old, share.y_old, share.aid_old, *batches)
    s = _msvr(rule, share.s, q_s, q_s_old, share.first)
    e = _msvr(rule, share.e, q_e, q_e_old, share.first)
    if rule.variant == "v1":
        e = floored(e, rule.hessian_floor)
    return Updated(G, G_old, s, e, oracles.counts)


def measure(
    oracles: BlockOracles,
    variant: str,
    x: Tensor,
    y: Tensor,
    aid: Tensor,
    upper_batch: Any,
    lower_batch: Any,
    blocks: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give G, the gradient of the lower objectives, and d2g_i/dy2 (v1) or (d2g_i/dy2) v_i - grad_y f_i (v2)."""
    dF_dx, dF_dy = oracles.upper_grad(x, y, upper_batch, blocks)
    dense = variant == "v1"
    w = solve_blocks(aid, dF_dy) if dense else aid
    dg_dy, curvature, Jw = oracles.lower_derivatives(x, y, w, lower_batch, blocks, dense=dense)
    return dF_dx - Jw, dg_dy, curvature if dense else curvature - dF_dy


class BlockOracles(Oracles):
    """Oracles that take all derivatives of the lower objectives from one graph."""

    def lower_derivatives(
        self, x: Tensor, y: Tensor, w: Tensor, batch: Any, blocks: Tensor, *, dense: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give rows grad_y g_i, d2g_i/dy2 (`dense`) or rows (d2g_i/dy2) w_i, and the mean of (d2g_i/dxdy) w_i."""
        for name in ("lower_grad", "jvp", "hessian" if dense else "hvp"):
            self.counts[name] += 1
        x, y = (part.detach().requires_grad_() for part in (x, y))
        n, p = y.shape
        g: Tensor | None = None
        with torch.enable_grad():
            value = self._lower(x, y, batch, blocks)
            if value.requires_grad:
                (g,) = backward(value, (y,), create_graph=True)
        H: Tensor | None = None
        Hw: Tensor | None = None
        Jw: Tensor | None = None
        if g is not None and g.requires_grad:
            if dense:
                basis = torch.eye(p, dtype=y.dtype, device=y.device).unsqueeze(1).expand(p, n, p)
                (H,) = backward(g, (y,), basis, is_grads_batched=True, retain_graph=True)
                (Jw,) = backward(g, (x,), w)
            else:
                Hw, Jw = backward(g, (y, x), w)
        g = torch.zeros_like(y) if g is None else g.detach()
        Jw = torch.zeros_like(x) if Jw is None else Jw / n
        if dense:
            return g, y.new_zeros(n, p, p) if H is None else H.movedim(0, -1), Jw
        return g, torch.zeros_like(y) if Hw is None else Hw, Jw


def _msvr(rule: Rule, e: Tensor, q: Tensor, q_old: Tensor, first: Tensor) -> Tensor:
    """MSVR: ``(1 - alpha) e + alpha q + gamma (q - q_old)``, and q itself in a block's first draw."""
    new = (1 - rule.alpha) * e + rule.alpha * q + rule.gamma * (q - q_old)
    return torch.where(first.view(-1, *[1] * (q.ndim - 1)), q, new)


def floored(H: Tensor, floor: float) -> Tensor:
    """Project each matrix on ``{H = H^T, H >= floor I}``; the floor is never below what a Cholesky factor can bear.

    A matrix that has a Cholesky factor with twice that floor taken off is its own projection: eigenvalues are found for
    the others alone.
    """
    if not bool(torch.isfinite(H).all()):
        raise FloatingPointError("an estimate of the Hessian is not finite")
    H, rounding = (H + H.mT) / 2, H.shape[-1] * torch.finfo(H.dtype).eps
    lowest = (rounding * H.abs().sum(-1).amax(-1)).clamp(min=floor)
    low = torch.linalg.cholesky_ex(H - torch.diag_embed(2 * lowest.unsqueeze(-1).expand(H.shape[:-1]))).info > 0
    if not bool(low.any()):
        return H
    values, vectors = torch.linalg.eigh(H[low])
    smallest = rounding * values.abs().amax(-1, keepdim=True)
    values = torch.maximum(values, smallest.clamp(min=floor))
    H[low] = (vectors * values.unsqueeze(-2)) @ vectors.mT
    return H


def solve_blocks(H: Tensor, b: Tensor) -> Tensor:  # (I, p)
    """Solve ``H_i w_i = b_i`` by Cholesky factors."""
    L, failed = torch.linalg.cholesky_ex(H)
    if bool(failed.any()):
        raise FloatingPointError("an estimate of the Hessian is not positive definite; raise hessian_floor")
    return torch.cholesky_solve(b.unsqueeze(-1), L).squeeze(-1)


def into_ball(v: Tensor, radius: float) -> Tensor:
    return v * (radius / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp(min=radius))


def _moved_in_ball(v: Tensor, move: Tensor, n: Tensor, radius: float) -> Tensor:
    """Take n_i steps ``v_i <- into the ball (v_i - move_i)``; one step where the ball is not met.

    The norm is convex along a line: if v and the end are inside, so is all between them.
    """
    end = v - n.unsqueeze(1) * move
    out = torch.linalg.vector_norm(end, dim=1) > radius
    if bool(out.any()):
        w, move, n = v[out], move[out], n[out]
        for k in range(int(n.max())):
            w = torch.where((k < n).unsqueeze(1), into_ball(w - move, radius), w)
        end[out] = w
    return end


def draw_blocks(m: int, n: int, generator: torch.Generator) -> Tensor:  # (n,)
    """Draw n distinct of m blocks, ascending, in O(n) draws: repeats are drawn again."""
    if 2 * n > m:
        left_out = torch.ones(m, dtype=torch.bool, device=generator.device)
        left_out[draw_blocks(m, m - n, generator)] = False
        return left_out.nonzero().squeeze(1)
    drawn = torch.empty(0, dtype=torch.long, device=generator.device)
    while len(drawn) < n:
        more = torch.randint(m, (n - len(drawn),), generator=generator, device=generator.device)
        drawn = torch.cat([drawn, more]).unique()
    return drawn
