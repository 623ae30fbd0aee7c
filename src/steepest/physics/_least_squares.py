r"""Many small nonlinear least-squares problems at once, differentiable in their data.   min_w 1/2 ||F(w, θ)||²

Levenberg-Marquardt for M members side by side, G = JᵀF, A = JᵀJ, in float64:

    (A + μ I) d = -G,   μ₀ = damping trace(A)/N
    ρ = (cost(w) - cost(w + d)) / predicted,   predicted = 1/2 dᵀ(μ d - G)
    accept d if ρ > 1e-4;   μ <- μ/3 if ρ > 3/4;   on rejection μ <- 2μ, 4μ, 8μ, ...
    stop when 1/2 Gᵀ(A + 1e-14 trace(A)/N I)⁻¹G <= rtol cost + atol²                        (Newton decrement)
    give up, not converged, when μ > 1e16 trace(A)/N: steps are below rounding (a kink of F)

Cost alone locates w to some 1e-8 (cancellation). So once the predicted reduction is below 1e-10 of the cost a step is
accepted when it shortens G, and converged members end with up to three Newton steps with the exact Hessian.

Backward, by the implicit function theorem at G(w, θ) = 0, with H = dG/dw:  H λ = dL/dw,  dL/dθ = -d(λᵀG)/dθ.

Paper: chalapathi2024scaling, Sec. 3. The constants of acceptance and damping are ours, of Nielsen's type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from steepest.core.errors import at_least, check, kind_error, nonnegative, one_of, positive, value_error

__all__ = ["LeastSquares", "Settings", "Solved", "implicit_solve", "nonlinear_least_squares", "solve"]

Info = dict[str, Tensor]
NEWTON_STEPS = 3
STUCK = 1e16


class LeastSquares(Protocol):
    """M members with N unknowns each; whatever is differentiated lies in the tensors they were made from."""

    def normal(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cost (M,), gradient (M, N) and Gauss-Newton matrix (M, N, N)."""

    def hessian(self, w: Tensor) -> Tensor:
        """Exact Hessian of the cost (M, N, N)."""

    def pullback(self, w: Tensor, adjoint: Tensor) -> list[Tensor | None]:
        """Give ``-d(adjoint · G)/dθ`` for every tensor."""

    def take(self, members: Tensor) -> LeastSquares:
        """Keep some of the members."""


@dataclass(frozen=True)
class Settings:
    """When to stop, how much to damp at the start, and which matrix stands for dG/dw."""

    maxiter: int
    atol: float
    rtol: float
    damping: float = 1e-3
    hessian: str = "exact"

    def __post_init__(self) -> None:
        check("maxiter", self.maxiter, at_least(0, integer=True))
        check("atol", self.atol, nonnegative())
        check("rtol", self.rtol, nonnegative())
        check("damping", self.damping, positive())
        check("hessian", self.hessian, one_of("exact", "gauss-newton"))


@dataclass
class Solved:
    """What `solve` found: weights (M, N), how it went, and a Cholesky factor of dG/dw (M, N, N)."""

    w: Tensor
    info: Info
    factor: Tensor


def nonlinear_least_squares(
    residual: Callable[..., Tensor],
    w0: Tensor,  # (N,) or (B, N)
    args: Sequence[Any] = (),
    *,
    maxiter: int = 50,
    atol: float = 1e-8,
    rtol: float = 1e-8,
    damping: float = 1e-3,
    hessian: str = "exact",
) -> tuple[Tensor, Info]:
    """Minimize ``1/2 ||residual(w, *args)||²`` by Levenberg-Marquardt, differentiably in `args`.

    Parameters
    ----------
    residual : callable
        ``residual(w, *args)`` gives (R,) for w (N,), or (B, R) for w (B, N), row k depending on ``w[k]`` only. Written
        with torch operations that `torch.func` can differentiate twice.
    w0 : Tensor of shape (N,) or (B, N)
        Start. Its dtype is the one that `residual` sees; the linear algebra is float64.
    args : sequence
        Further arguments. The result is differentiable in every floating tensor among them, whether it carries the
        batch axis or not; tensors that `residual` holds otherwise count as constants.
    maxiter : int
        Budget of trial steps, rejected ones included, 50 by default.
    atol, rtol : float
        A member has converged when its Newton decrement is at most ``rtol * cost + atol**2``, both 1e-8 by default.
    damping : float
        First damping in units of the mean diagonal of ``J^T J``, 1e-3 by default.
    hessian : "exact" or "gauss-newton"
        For the backward pass and the last steps. ``J^T J`` is right only where the residual vanishes at the solution.

    Returns
    -------
    w : Tensor
        Shaped as `w0`, in its dtype.
    info : dict
        ``converged`` bool, ``nit`` int64, ``cost`` (``1/2 ||F||²``), ``gradient_norm`` and ``ill_conditioned`` bool
        (the Hessian was not positive definite, ``J^T J`` took its place), each of shape (B,), or () without a batch.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits, a start that is not finite, a residual of the wrong shape.

    Examples
    --------
    >>> x = torch.linspace(0, 1, 20, dtype=torch.float64)
    >>> y = (2 * torch.exp(-3 * x)).requires_grad_()
    >>> w, info = nonlinear_least_squares(
    ...     lambda w, y: w[0] * torch.exp(-w[1] * x) - y, torch.ones(2, dtype=torch.float64), (y,))
    >>> [round(v, 6) for v in w.tolist()], bool(info["converged"])
    ([2.0, 3.0], True)
    >>> w[0].backward()  # through the solution, not through the iterations
    >>> y.grad.shape
    torch.Size([20])
    """
    settings = Settings(maxiter, atol, rtol, damping, hessian)
    if not isinstance(w0, Tensor) or not w0.is_floating_point():
        raise kind_error("w0", "a floating tensor", w0)
    if w0.ndim not in (1, 2) or 0 in w0.shape:
        raise value_error("w0", "of shape (N,) or (B, N)", w0)
    if not bool(torch.isfinite(w0).all()):
        raise value_error("w0", "finite", w0)
    if not isinstance(args, (tuple, list)):
        raise kind_error("args", "a tuple or list", args)
    if not callable(residual):
        raise kind_error("residual", "callable", residual)
    single = w0.ndim == 1
    batched = (lambda w, *args: residual(w[0], *args)[None]) if single else residual
    where = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]
    start = w0.detach().reshape(-1, w0.shape[-1])
    with torch.no_grad():
        F = batched(start, *args)
    if not isinstance(F, Tensor) or F.ndim != 2 or len(F) != len(start):
        expected = "a tensor of shape (R,)" if single else f"a tensor of shape ({len(start)}, R)"
        raise value_error("residual", f"a function that returns {expected}", F[0] if single else F)

    def make(tensors: Sequence[Tensor]) -> LeastSquares:
        values = list(args)
        for i, tensor in zip(where, tensors, strict=True):
            values[i] = tensor
        return _Residual(batched, tuple(values), where, start)

    w, info = implicit_solve(make, start.double(), settings, [args[i] for i in where])
    if single:
        return w[0].to(w0.dtype), {name: value[0] for name, value in info.items()}
    return w.to(w0.dtype), info


# ------------------------------------------------------------------------------------------------- forward and backward


def implicit_solve(
    make: Callable[[Sequence[Tensor]], LeastSquares],
    w0: Tensor,  # (M, N) float64
    settings: Settings,
    tensors: Sequence[Tensor],
    run: Callable[[LeastSquares, Tensor, Settings], Solved] | None = None,
) -> tuple[Tensor, Info]:
    """Solve ``make(tensors)`` from `w0`; w is differentiable in `tensors`. `run` may be `solve` done elsewhere."""
    info: Info = {}
    w = _Implicit.apply(make, w0, settings, run or solve, info, *tensors)
    return cast(Tensor, w), info


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, make: Any, w0: Tensor, settings: Settings, run: Any, info: Info, *tensors: Tensor) -> Tensor:
        solved = run(make(tensors), w0, settings)
        info.update(solved.info)
        ctx.make = make
        ctx.save_for_backward(solved.w, solved.factor, *tensors)
        return cast(Tensor, solved.w)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        w, factor, *tensors = ctx.saved_tensors
        adjoint = _solve(factor, gradient)
        return (*(None,) * 5, *ctx.make(tensors).pullback(w, adjoint))


@torch.no_grad()
def solve(problem: LeastSquares, w0: Tensor, settings: Settings) -> Solved:
    """Levenberg-Marquardt for all members; members that have converged or are stuck leave the computation."""
    M, exact = len(w0), settings.hessian == "exact"
    w, nit = w0.clone(), torch.zeros(M, dtype=torch.int64, device=w0.device)
    converged = torch.zeros(M, dtype=torch.bool, device=w0.device)
    cost, G, A = problem.normal(w)
    here, moving = torch.arange(M, device=w0.device), problem
    state = [
        w.clone(),
        cost.clone(),
        G.clone(),
        A.clone(),
        settings.damping * _mean_diagonal(A),
        torch.full_like(cost, 2),
    ]
    for k in range(settings.maxiter + 1):
        v, c, g, a, mu, _ = state
        done = _decrement(g, a) <= settings.rtol * c + settings.atol**2
        hopeless = ~(torch.isfinite(c) & torch.isfinite(g).all(-1)) | (mu > STUCK * _mean_diagonal(a))
        converged[here[done]] = True
        for whole, part in ((w, v), (cost, c), (G, g), (A, a)):
            whole[here] = part
        stay = (~(done | hopeless)).nonzero()[:, 0]
        if len(stay) == 0 or k == settings.maxiter:
            break
        if len(stay) < len(here):
            here, moving, state = here[stay], moving.take(stay), [x[stay] for x in state]
        nit[here] += 1
        state = _trial(moving, *state)
    if exact and bool(converged.any()):
        ends = converged.nonzero()[:, 0]
        w[ends], cost[ends], G[ends], A[ends] = _newton(
            problem if len(ends) == M else problem.take(ends), w[ends], cost[ends], G[ends], A[ends]
        )
    factor, ill = _factor(problem.hessian(w) if exact else A, A)
    size = torch.linalg.vector_norm(G, dim=-1)
    info = {"converged": converged, "nit": nit, "cost": cost, "gradient_norm": size, "ill_conditioned": ill}
    return Solved(w, info, factor)


def _trial(
    problem: LeastSquares, w: Tensor, cost: Tensor, G: Tensor, A: Tensor, mu: Tensor, grow: Tensor
) -> list[Tensor]:
    factor, failed = torch.linalg.cholesky_ex(A + torch.diag_embed(mu[:, None].expand_as(G)))
    d = -_solve(factor, G)
    d = torch.where((failed == 0)[:, None] & torch.isfinite(d), d, 0.0)
    new = problem.normal(w + d)
    predicted = (d * (mu[:, None] * d - G)).sum(-1) / 2
    rho = (cost - new[0]) / predicted
    # below 1e-10 of the cost its difference is rounding, and only the gradient says whether w came closer
    closer = _shorter(new[1], G) & (new[0] <= cost * (1 + 1e-10))
    fine = predicted < 1e-10 * cost
    good = torch.where(fine, closer, rho > 1e-4) & (predicted > 0) & torch.isfinite(new[1]).all(-1)
    very = good & (fine | (rho > 0.75))
    mu = torch.where(good, torch.where(very, mu / 3, mu), (mu * grow).clamp(max=1e100))
    grow = torch.where(good, 2.0, (2 * grow).clamp(max=1e100))
    kept = [_where(good, x, y) for x, y in zip((w + d, *new), (w, cost, G, A), strict=True)]
    return [*kept, mu, grow]


def _newton(problem: LeastSquares, w: Tensor, cost: Tensor, G: Tensor, A: Tensor) -> tuple[Tensor, ...]:
    """Steps with the exact Hessian where it is positive definite, while they shorten the gradient."""
    now: tuple[Tensor, ...] = (w, cost, G, A)
    for _ in range(NEWTON_STEPS):
        factor, failed = torch.linalg.cholesky_ex(problem.hessian(now[0]))
        d = torch.where((failed == 0)[:, None], -_solve(factor, now[2]), 0.0)
        trial = (now[0] + d, *problem.normal(now[0] + d))
        good = (failed == 0) & _shorter(trial[2], now[2]) & (trial[1] <= now[1] * (1 + 1e-10))
        small = -(d * now[2]).sum(-1) <= 1e-24 * now[1]
        now = tuple(_where(good, x, y) for x, y in zip(trial, now, strict=True))
        if not bool((good & ~small).any()):
            break
    return now


def _factor(H: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors of H; of A where H is not positive definite, lifted by rounding where even A is singular."""
    factor, failed = torch.linalg.cholesky_ex(H)
    ill = (failed != 0) | ~torch.isfinite(factor).all(-1).all(-1)
    if bool(ill.any()):
        other, failed = torch.linalg.cholesky_ex(A[ill])
        lifted = torch.linalg.cholesky_ex(_lifted(A[ill]))[0]
        factor = factor.clone()
        factor[ill] = _where(failed == 0, other, lifted)
    return factor, ill


def _decrement(G: Tensor, A: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(_lifted(A))
    decrement = (G * _solve(factor, G)).sum(-1) / 2
    return torch.where((failed == 0) | (G == 0).all(-1), decrement.nan_to_num(nan=0.0), torch.inf)


def _lifted(A: Tensor) -> Tensor:
    return A + torch.diag_embed((1e-14 * _mean_diagonal(A))[:, None].expand(A.shape[:-1]))


def _mean_diagonal(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).mean(-1)


def _solve(factor: Tensor, b: Tensor) -> Tensor:
    return torch.cholesky_solve(b[..., None], factor)[..., 0]


def _shorter(new: Tensor, old: Tensor) -> Tensor:
    return torch.linalg.vector_norm(new, dim=-1) < torch.linalg.vector_norm(old, dim=-1)


def _where(choice: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(choice.reshape(-1, *(1,) * (x.ndim - 1)), x, y)


# ------------------------------------------------------------------------------------------- any residual, by autograd


class _Residual:
    """A residual of (B, N) as least-squares problems; `members` move, the others stay where `start` has them."""

    def __init__(
        self,
        residual: Callable[..., Tensor],
        args: tuple[Any, ...],
        where: Sequence[int],
        start: Tensor,
        members: Tensor | None = None,
    ) -> None:
        self.residual, self.args, self.where, self.start = residual, args, where, start
        self.members = torch.arange(len(start), device=start.device) if members is None else members

    def normal(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        F, J = (x.double() for x in self._derivative(self._rows, w))
        return F.square().sum(-1) / 2, (J.mT @ F[..., None])[..., 0], J.mT @ J

    def hessian(self, w: Tensor) -> Tensor:
        gradient = torch.func.grad(lambda w: self._rows(w).square().sum() / 2)
        return self._derivative(gradient, w)[1].double()

    def pullback(self, w: Tensor, adjoint: Tensor) -> list[Tensor | None]:
        with torch.enable_grad():
            args = list(self.args)
            for i in self.where:
                args[i] = args[i].detach().requires_grad_()
            v = w.to(self.start.dtype).requires_grad_()
            cost = self.residual(v, *args).square().sum() / 2
            (G,) = torch.autograd.grad(cost, v, create_graph=True)
            inner = (G * adjoint.to(G)).sum()
            if not inner.requires_grad:
                return [None] * len(self.where)
            found = torch.autograd.grad(inner, [args[i] for i in self.where], allow_unused=True)
        return [None if g is None else -g for g in found]

    def take(self, members: Tensor) -> _Residual:
        return _Residual(self.residual, self.args, self.where, self.start, self.members[members])

    def _rows(self, w: Tensor) -> Tensor:
        return self.residual(self.start.index_copy(0, self.members, w), *self.args)[self.members]

    def _derivative(self, f: Callable[[Tensor], Tensor], w: Tensor) -> tuple[Tensor, Tensor]:
        """Value (M, ·) and derivative (M, ·, N) of an f whose row k depends on w[k] only."""
        v = w.to(self.start.dtype)
        directions = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        along = torch.func.vmap(lambda e: torch.func.jvp(f, (v,), (e.expand_as(v),))[1], out_dims=-1)
        return f(v), along(directions)
