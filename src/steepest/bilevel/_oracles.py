"""What the methods ask a bilevel problem, on flat vectors, and how often they asked.

Joined form (``blocks=None``): x (n,), y (d,); of a problem with blocks, y holds all rows, the upper objective is the
mean over the blocks and the lower one the sum, so that every lower problem keeps its own scale. Block form: `yb` (I, p)
are the rows of `blocks` (I,); derivatives in them come row by row, derivatives in x as the mean over these I blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest.bilevel._projections import AffineProjection
from steepest.core.errors import kind_error, value_error
from steepest.core.linalg import operator_norm
from steepest.core.random import Seed
from steepest.curvature.autodiff import backward

if TYPE_CHECKING:
    from steepest.bilevel.problem import BilevelProblem

__all__ = ["COUNTS", "Oracles"]

COUNTS = ("upper_grad", "lower_grad", "hvp", "jvp", "hessian", "projection", "samples")


class Oracles:
    """Derivatives, samples and projections of a problem, counted.

    Parameters
    ----------
    problem : BilevelProblem
    generator : torch.Generator, optional
        Handed to the problem's samplers; needed by `draw_upper` and `draw_lower` where the problem has them.
    batch_size : int, optional
        Handed to the samplers; None is the sampler's own.

    Attributes
    ----------
    counts : dict of str to int
        One a call: ``upper_grad``, ``lower_grad`` (first derivatives in x, in y, or in both), ``hvp`` and ``jvp``
        (products with d2f/dy2 and d2f/dxdy), ``hessian`` (dense ones), ``projection`` (on X, on Y or on C where such a
        set is given). ``samples`` adds up what the samplers drew: the size asked for, times the number of blocks, or
        the length of the batch's first tensor (times its second axis where there are blocks). Values are not counted.

    Notes
    -----
    Every derivative that the functions do not depend on is a zero of the right shape. Only `products`, `hvp`, `jvp` and
    `hessian` differentiate twice.
    """

    def __init__(
        self, problem: BilevelProblem, *, generator: torch.Generator | None = None, batch_size: int | None = None
    ) -> None:
        self.problem = problem
        self.generator = generator
        self.batch_size = batch_size
        self.counts = dict.fromkeys(COUNTS, 0)
        self._projection: AffineProjection | None = None

    # --------------------------------------------------------------------------------------------------------- samples

    def draw_upper(self, blocks: Tensor | None = None) -> Any:
        """Draw a batch for the upper objective; None where the problem has no sampler for it."""
        return self._draw(self.problem.sample_upper, blocks)

    def draw_lower(self, blocks: Tensor | None = None) -> Any:
        """Draw a batch for the lower objective; None where the problem has no sampler for it."""
        return self._draw(self.problem.sample_lower, blocks)

    def _draw(self, sampler: Callable[..., Any] | None, blocks: Tensor | None) -> Any:
        if sampler is None:
            return None
        if self.problem.n_blocks is None:
            batch, rows = sampler(self.generator, self.batch_size), 1
        else:
            blocks = self.problem.all_blocks if blocks is None else blocks
            batch, rows = sampler(self.generator, self.batch_size, blocks), len(blocks)
        drawn = rows * self.batch_size if self.batch_size is not None else _length(batch, 1 if rows == 1 else 2)
        self.counts["samples"] += drawn
        return batch

    # ---------------------------------------------------------------------------------------------------------- values

    @torch.no_grad()
    def upper_value(self, x: Tensor, y: Tensor, batch: Any = None, blocks: Tensor | None = None) -> Tensor:
        """Evaluate F, 0-d; in block form the mean over the blocks."""
        return self._upper(x, y, batch, blocks)

    @torch.no_grad()
    def lower_value(self, x: Tensor, y: Tensor, batch: Any = None, blocks: Tensor | None = None) -> Tensor:
        """Evaluate f, 0-d; with blocks the sum over them."""
        return self._lower(x, y, batch, blocks)

    def _upper(self, x: Tensor, y: Tensor, batch: Any, blocks: Tensor | None) -> Tensor:
        return self._value("upper", x, y, batch, blocks).mean()

    def _lower(self, x: Tensor, y: Tensor, batch: Any, blocks: Tensor | None) -> Tensor:
        return self._value("lower", x, y, batch, blocks).sum()

    def _value(self, name: str, x: Tensor, y: Tensor, batch: Any, blocks: Tensor | None) -> Tensor:
        problem = self.problem
        function = getattr(problem, name)
        wanted: tuple[int, ...]
        if problem.n_blocks is None:
            value, wanted = function(problem.unpack_x(x), problem.unpack_y(y), batch), ()
        else:
            rows = problem.unpack_y(y) if blocks is None else y
            blocks = problem.all_blocks if blocks is None else blocks
            value, wanted = function(problem.unpack_x(x), rows, batch, blocks), (len(blocks),)
        if not isinstance(value, Tensor):
            raise kind_error(name, f"a function that returns a tensor of shape {wanted}", value)
        if tuple(value.shape) != wanted:
            raise value_error(name, f"a function that returns a tensor of shape {wanted}", tuple(value.shape))
        return value

    # --------------------------------------------------------------------------------------------------- one derivative

    def upper_grad(
        self, x: Tensor, y: Tensor, batch: Any = None, blocks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Differentiate F in x and y; in block form ``(mean_i grad_x f_i, rows grad_y f_i)``. One ``upper_grad``."""
        self.counts["upper_grad"] += 1
        x, y = _leaf(x), _leaf(y)
        with torch.enable_grad():
            value = self._upper(x, y, batch, blocks)
        g_x, g_y = _gradient(value, (x, y))
        return g_x, g_y if blocks is None else g_y * len(blocks)

    def lower_grad(
        self, x: Tensor, y: Tensor, batch: Any = None, blocks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Differentiate f in x and y; in block form ``(mean_i grad_x g_i, rows grad_y g_i)``. One ``lower_grad``."""
        self.counts["lower_grad"] += 1
        x, y = _leaf(x), _leaf(y)
        with torch.enable_grad():
            value = self._lower(x, y, batch, blocks)
        g_x, g_y = _gradient(value, (x, y))
        return g_x if blocks is None else g_x / len(blocks), g_y

    def lower_grad_y(self, x: Tensor, y: Tensor, batch: Any = None, blocks: Tensor | None = None) -> Tensor:
        """Differentiate f in y alone, which is cheaper. One ``lower_grad``."""
        self.counts["lower_grad"] += 1
        y = _leaf(y)
        with torch.enable_grad():
            value = self._lower(x.detach(), y, batch, blocks)
        return _gradient(value, (y,))[0]

    # -------------------------------------------------------------------------------------------------- two derivatives

    def products(
        self, x: Tensor, y: Tensor, v: Tensor, batch: Any = None, blocks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Multiply ``(d2f/dy2) v`` and ``(d2f/dxdy) v`` by one double backward. One ``hvp`` and one ``jvp``.

        In block form v (I, p) gives rows ``(d2g_i/dy2) v_i`` and the mean over i of ``(d2g_i/dxdy) v_i``.
        """
        self.counts["hvp"] += 1
        self.counts["jvp"] += 1
        x, y = _leaf(x), _leaf(y)
        with torch.enable_grad():
            g = self._lower_graph(x, y, batch, blocks)
        Hv, Jv = _second(g, (y, x), v)
        return Hv, Jv if blocks is None else Jv / len(blocks)

    def hvp(self, x: Tensor, y: Tensor, v: Tensor, batch: Any = None, blocks: Tensor | None = None) -> Tensor:
        """Multiply ``(d2f/dy2) v``. One ``hvp``."""
        return self.hessian_operator(x, y, batch, blocks)(v)

    def jvp(self, x: Tensor, y: Tensor, v: Tensor, batch: Any = None, blocks: Tensor | None = None) -> Tensor:
        """Multiply ``(d2f/dxdy) v``, shaped as x. One ``jvp``."""
        self.counts["jvp"] += 1
        x, y = _leaf(x), _leaf(y)
        with torch.enable_grad():
            g = self._lower_graph(x, y, batch, blocks)
        (Jv,) = _second(g, (x,), v)
        return Jv if blocks is None else Jv / len(blocks)

    def hessian_operator(
        self, x: Tensor, y: Tensor, batch: Any = None, blocks: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Give ``v -> (d2f/dy2) v`` at one point and batch, whose gradient is evaluated once. One ``hvp`` a call."""
        y = _leaf(y)
        with torch.enable_grad():
            g = self._lower_graph(x.detach(), y, batch, blocks)

        def multiply(v: Tensor) -> Tensor:
            self.counts["hvp"] += 1
            return _second(g, (y,), v, retain_graph=True)[0]

        return multiply

    def hessian(self, x: Tensor, y: Tensor, batch: Any = None, blocks: Tensor | None = None) -> Tensor:
        """Form ``d2f/dy2`` densely: (d, d), in block form (I, p, p). One ``hessian``."""
        self.counts["hessian"] += 1
        y = _leaf(y)
        with torch.enable_grad():
            g = self._lower_graph(x.detach(), y, batch, blocks)
        p = y.shape[-1]
        if g is None:
            return y.new_zeros(*y.shape, p)
        basis = torch.eye(p, dtype=y.dtype, device=y.device)
        basis = basis if y.ndim == 1 else basis.unsqueeze(1).expand(p, *y.shape)
        (H,) = backward(g, (y,), basis, is_grads_batched=True)
        return y.new_zeros(*y.shape, p) if H is None else H.movedim(0, -1)

    def curvature_bound(
        self, x: Tensor, y: Tensor, batch: Any = None, *, iterations: int = 20, seed: Seed = 0
    ) -> float:
        """Estimate the largest curvature of f in y by `iterations` power iterations. So many ``hvp``."""
        multiply = self.hessian_operator(x, y, batch)
        generator = torch.Generator(y.device).manual_seed(seed) if isinstance(seed, int) else seed
        v = torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)
        estimate = 0.0
        for _ in range(iterations):
            v = multiply(v / torch.linalg.vector_norm(v))
            estimate = float(torch.linalg.vector_norm(v))
            if not 0 < estimate < float("inf"):
                break
        return estimate

    def _lower_graph(self, x: Tensor, y: Tensor, batch: Any, blocks: Tensor | None) -> Tensor | None:
        """Differentiate f in y with a graph; None where that gradient is constant."""
        value = self._lower(x, y, batch, blocks)
        g = backward(value, (y,), create_graph=True)[0] if value.requires_grad else None
        return g if g is not None and g.requires_grad else None

    # ----------------------------------------------------------------------------------------------------- constraints

    def constraint_value(self, x: Tensor, y: Tensor) -> Tensor:  # (p,)
        """Evaluate g."""
        problem = self.problem
        if problem.affine is not None:
            A, B, c = problem.affine
            return A @ x + B @ y + c
        with torch.no_grad():
            return self._constraint(x, y)

    def constraint_vjp(self, x: Tensor, y: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply ``(J_x g)^T lam`` and ``(J_y g)^T lam``."""
        problem = self.problem
        if problem.affine is not None:
            A, B, _ = problem.affine
            return A.t() @ lam, B.t() @ lam
        x, y = _leaf(x), _leaf(y)
        with torch.enable_grad():
            g = self._constraint(x, y)
        g_x, g_y = _gradient(g, (x, y), lam)
        return g_x, g_y

    def constraint_norm(self, x: Tensor, y: Tensor, *, seed: Seed = 0) -> float:
        """Estimate the norm of ``J_y g`` by power iteration."""
        g = self.constraint_value(x, y)

        def forward(v: Tensor) -> Tensor:
            if self.problem.affine is not None:
                return self.problem.affine[1] @ v
            return torch.func.jvp(lambda y: self._constraint(x, y), (y,), (v,))[1]

        return operator_norm(
            forward,
            len(y),
            adjoint=lambda u: self.constraint_vjp(x, y, u)[1],
            seed=seed,
            dtype=g.dtype,
            device=g.device,
        )

    def _constraint(self, x: Tensor, y: Tensor) -> Tensor:
        problem = self.problem
        if problem.constraint is None:
            raise value_error("constraint", "given, or affine", None)
        g = problem.constraint(problem.unpack_x(x), problem.unpack_y(y))
        if not isinstance(g, Tensor):
            raise kind_error("constraint", "a function that returns a tensor of shape (p,)", g)
        if g.ndim != 1:
            raise value_error("constraint", "a function that returns a tensor of shape (p,)", tuple(g.shape))
        return g

    # ----------------------------------------------------------------------------------------------------- projections

    def project_x(self, x: Tensor) -> Tensor:
        """Project on X. One ``projection`` where the problem has that set, else x itself."""
        if self.problem.project_x is None:
            return x
        self.counts["projection"] += 1
        return self._in_x(x)

    def project_y(self, y: Tensor) -> Tensor:
        """Project on Y. One ``projection`` where the problem has that set, else y itself."""
        if self.problem.project_y is None:
            return y
        self.counts["projection"] += 1
        return self._in_y(y)

    def project_joint(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Project on C = {x in X, y in Y, g <= 0 (or = 0)}. One ``projection``.

        Multipliers of affine rows start from those of this object's last call.
        """
        problem = self.problem
        self.counts["projection"] += 1
        if problem.project_joint is not None:
            with torch.no_grad():
                x_new, y_new = problem.project_joint(problem.unpack_x(x), problem.unpack_y(y))
            return problem.pack_x(x_new), problem.pack_y(y_new)
        if problem.affine is None:
            return self._in_x(x), self._in_y(y)
        if self._projection is None:
            A, B, c = problem.affine
            self._projection = AffineProjection([A, B], c, problem.equality_mask(len(c)), self.set_projections())
        x_new, y_new = self._projection(x, y)
        return x_new, y_new

    def set_projections(self) -> list[Callable[[Tensor], Tensor] | None]:
        """Give the projections on X and Y as functions of flat vectors, None where there is no set; not counted."""
        problem = self.problem
        return [
            None if problem.project_x is None else self._in_x,
            None if problem.project_y is None else self._in_y,
        ]

    def _in_x(self, x: Tensor) -> Tensor:
        problem = self.problem
        if problem.project_x is None:
            return x
        with torch.no_grad():
            return problem.pack_x(problem.project_x(problem.unpack_x(x)), "project_x")

    def _in_y(self, y: Tensor) -> Tensor:
        problem = self.problem
        if problem.project_y is None:
            return y
        with torch.no_grad():
            return problem.pack_y(problem.project_y(problem.unpack_y(y)), "project_y")


def _leaf(v: Tensor) -> Tensor:
    return v.detach().requires_grad_()


def _gradient(value: Tensor, inputs: tuple[Tensor, ...], weights: Tensor | None = None) -> list[Tensor]:
    found = backward(value, inputs, weights) if value.requires_grad else (None,) * len(inputs)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, inputs, strict=True)]


def _second(g: Tensor | None, inputs: tuple[Tensor, ...], v: Tensor, *, retain_graph: bool = False) -> list[Tensor]:
    found = (None,) * len(inputs) if g is None else backward(g, inputs, v, retain_graph=retain_graph)
    return [torch.zeros_like(w) if h is None else h for h, w in zip(found, inputs, strict=True)]


def _length(batch: Any, axes: int) -> int:
    """Count the samples of a batch object: the product of the first `axes` axes of its first tensor."""
    while not isinstance(batch, Tensor):
        if isinstance(batch, Mapping):
            batch = list(batch.values())
        if not isinstance(batch, list | tuple) or not batch:
            return len(batch) if hasattr(batch, "__len__") else 1
        batch = batch[0]
    size = 1
    for n in batch.shape[:axes]:
        size *= n
    return size
