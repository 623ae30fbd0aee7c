r"""Bilevel problems: one description that every method takes, and what every method returns.

    minimize F(x, y) over x in X   with   y in argmin over y in Y of { f(x, y) : g(x, y) <= 0 (or = 0) }

Where f is strongly convex in y and no constraint is active, y is a function of x and the gradient of F(x, y(x)) is

    dF/dx - (d2f/dxdy) v,     (d2f/dy2) v = dF/dy

Notation: F = `upper`, f = `lower`, g = `constraint` or ``A x + B y + c`` = `affine`; with `n_blocks` = m there are m
lower problems, y holds one row for each, and F is the mean over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from scipy.optimize import OptimizeResult
from torch import Tensor

from steepest.bilevel._hypergradient import hypergradient, solve_hessian
from steepest.bilevel._lower import minimize_lower, minimize_lower_on_set
from steepest.bilevel._oracles import Oracles
from steepest.core.errors import at_least, check, kind_error, optional, positive, value_error
from steepest.curvature.vectors import flatten, unflatten

__all__ = ["BilevelProblem", "BilevelResult", "hypergradient", "solve_hessian", "solve_lower"]

Point = Tensor | dict[str, Tensor]


class BilevelResult(OptimizeResult):
    """What a bilevel method found, and how.

    Attributes
    ----------
    x, y : Tensor or dict of str to Tensor
        In the form, dtype and device of the problem's x0 and y0.
    fun, lower_fun : float
        F and f at (x, y) on the full data; with blocks the mean of F and the sum of f over them.
    nit : int
    success : bool
        Status 0, or 1 where no tolerance was asked for.
    status : int
        0 tolerance reached, 1 maxiter, 2 a value that is not finite (x and y are the last finite ones), 6 callback.
    message : str
    counts : dict of str to int
        Oracle calls: ``upper_grad, lower_grad, hvp, jvp, hessian, projection, samples``.
    history : dict of str to list
        ``nit, fun, seconds, samples`` and the method's own; seconds leave out reports and callbacks.
    seconds : float
    """


class BilevelProblem:
    """Minimize ``upper(x, y)`` over x, where y minimizes ``lower(x, .)``.

    Parameters
    ----------
    upper, lower : callable
        ``upper(x, y, batch)`` returns a 0-d tensor, made by torch operations; `batch` is what the sampler drew, None
        for the full data. With `n_blocks` they are called as ``upper(x, yb, batch, blocks)`` on rows yb (I, p) of the
        blocks in the LongTensor (I,), and return (I,) values, value i depending on ``yb[i]`` alone.
    x0, y0 : Tensor of any shape, or dict of str to Tensor
        The start. With `n_blocks` y0 is a tensor (m, p). Results come back in this form.
    constraint : callable, optional
        ``constraint(x, y) -> (p,)``, wanted <= 0 (or = 0). Needs `project_joint`.
    equality : bool, or bool Tensor (p,)
        Which rows are to be 0.
    affine : (A, B, c), optional
        ``g = A x + B y + c`` on x and y flattened (of a dict: in its order), A (p, n), B (p, d), c (p,); A and B may be
        sparse. The projection on C comes with it.
    project_x, project_y, project_joint : callable, optional
        Euclidean projections on X, on Y, and ``project_joint(x, y) -> (x, y)`` on {x in X, y in Y, g <= 0}.
    sample_upper, sample_lower : callable, optional
        ``sample(generator, size)``, with blocks ``sample(generator, size, blocks)``: a batch, of which nothing is asked
        but that it may be handed to `upper` or `lower` any number of times. `size` is None for the sampler's own.
    n_blocks : int, optional
        m.
    name : str

    Raises
    ------
    TypeError
        `upper`, `lower` or another function is not callable; x0 or y0 is not made of tensors.
    ValueError
        A start that is not finite, dtypes or devices that differ, a y0 whose rows are not `n_blocks`, `affine` of other
        shapes, `affine` together with `constraint`, a `constraint` without `project_joint`.

    Examples
    --------
    >>> problem = BilevelProblem(
    ...     lambda x, y, batch: ((y - 1) ** 2).sum() / 2, lambda x, y, batch: ((y - x) ** 2).sum() / 2,
    ...     torch.zeros(2), torch.zeros(2))
    >>> gradient, v = hypergradient(problem, problem.x0, problem.y0)
    >>> gradient.tolist()
    [-1.0, -1.0]
    """

    def __init__(
        self,
        upper: Callable[..., Tensor],
        lower: Callable[..., Tensor],
        x0: Point,
        y0: Point,
        *,
        constraint: Callable[[Any, Any], Tensor] | None = None,
        equality: bool | Tensor = False,
        affine: tuple[Tensor, Tensor, Tensor] | None = None,
        project_x: Callable[[Any], Any] | None = None,
        project_y: Callable[[Any], Any] | None = None,
        project_joint: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        sample_upper: Callable[..., Any] | None = None,
        sample_lower: Callable[..., Any] | None = None,
        n_blocks: int | None = None,
        name: str = "",
    ) -> None:
        for key, function in {"upper": upper, "lower": lower}.items():
            if not callable(function):
                raise kind_error(key, "callable", function)
        optional_functions: dict[str, Callable[..., Any] | None] = {
            "constraint": constraint,
            "project_x": project_x,
            "project_y": project_y,
            "project_joint": project_joint,
            "sample_upper": sample_upper,
            "sample_lower": sample_lower,
        }
        for key, given in optional_functions.items():
            if given is not None and not callable(given):
                raise kind_error(key, "None or callable", given)
        check("n_blocks", n_blocks, optional(positive(integer=True)))
        self.upper, self.lower = upper, lower
        self.x0, self.y0 = x0, y0
        self.constraint, self.equality, self.affine = constraint, equality, affine
        self.project_x, self.project_y, self.project_joint = project_x, project_y, project_joint
        self.sample_upper, self.sample_lower = sample_upper, sample_lower
        self.n_blocks, self.name = n_blocks, name
        like = _check_point("x0", x0, None)
        _check_point("y0", y0, like)
        self._x_size = self.pack_x(x0).numel()
        self._y_size = self.pack_y(y0).numel()
        if n_blocks is not None and (not isinstance(y0, Tensor) or y0.ndim != 2 or len(y0) != n_blocks):
            raise value_error("y0", f"a tensor of shape ({n_blocks}, p), one row for each of n_blocks", y0)
        self._check_constraint(like)

    def _check_constraint(self, like: Tensor) -> None:
        if self.affine is None:
            if self.constraint is not None and self.project_joint is None:
                raise value_error(
                    "project_joint",
                    "given with a constraint",
                    None,
                    "for affine constraints affine=(A, B, c) needs none",
                )
            _check_equality(self.equality, None)
            return
        if self.constraint is not None:
            raise value_error("constraint", "None where affine is given", self.constraint)
        if not isinstance(self.affine, tuple) or len(self.affine) != 3:
            raise kind_error("affine", "a tuple (A, B, c) of tensors", self.affine)
        for part, M in zip("ABc", self.affine, strict=True):
            _check_tensor(f"affine {part}", M, like)
        A, B, c = self.affine
        if c.ndim != 1:
            raise value_error("affine c", "of shape (p,)", c)
        for part, M, size in (("A", A, self._x_size), ("B", B, self._y_size)):
            if tuple(M.shape) != (len(c), size):
                raise value_error(f"affine {part}", f"of shape {(len(c), size)}", tuple(M.shape))
        _check_equality(self.equality, len(c))

    # ---------------------------------------------------------------------------------------------------- flat vectors

    def pack_x(self, x: Any, name: str = "x") -> Tensor:  # (n,)
        """Flatten a point in the form of x0; no graph, no copy where none is needed."""
        return _pack(x, self.x0, name)

    def pack_y(self, y: Any, name: str = "y") -> Tensor:  # (d,)
        """Flatten a point in the form of y0; no graph, no copy where none is needed."""
        return _pack(y, self.y0, name)

    def unpack_x(self, x: Tensor) -> Any:
        """Bring a flat vector into the form of x0, as views of it; a graph is kept."""
        return _unpack(x, self.x0)

    def unpack_y(self, y: Tensor) -> Any:
        """Bring a flat vector into the form of y0, as views of it; a graph is kept."""
        return _unpack(y, self.y0)

    @property
    def all_blocks(self) -> Tensor:
        """``arange(n_blocks)`` on the device of y0."""
        assert isinstance(self.y0, Tensor)
        return torch.arange(self.n_blocks or 0, device=self.y0.device)

    def equality_mask(self, p: int) -> Tensor:  # (p,)
        """Give `equality` as a mask for p rows."""
        if isinstance(self.equality, Tensor):
            return self.equality
        return torch.full((p,), self.equality, device=self.pack_x(self.x0).device)

    @property
    def is_constrained(self) -> bool:
        """Whether there is a constraint that couples x and y."""
        return self.constraint is not None or self.affine is not None

    def __repr__(self) -> str:
        rows = "" if self.n_blocks is None else f", n_blocks={self.n_blocks}"
        return f"BilevelProblem({self.name!r}, x: {self._x_size}, y: {self._y_size}{rows})"


def solve_lower(
    problem: BilevelProblem, x: Any, y: Any = None, *, tol: float = 1e-8, maxiter: int = 1000
) -> tuple[Any, int]:
    """Minimize ``lower(x, .)`` on the full data, within Y and the affine rows where the problem has them.

    Without sets by Newton steps with conjugate gradients and a line search (all blocks at once, each problem for itself
    in the sum); with `project_y` or `affine` by accelerated projected gradients.

    Parameters
    ----------
    problem : BilevelProblem
    x : Tensor or dict
    y : Tensor or dict, optional
        Start; y0 by default.
    tol : float
        On the norm of the gradient; with sets on that of the projected step over its length.
    maxiter : int
        Newton or gradient steps.

    Returns
    -------
    y
        In the form of y0.
    info : int
        0 where `tol` was met, else the number of steps made (the budget, or fewer where rounding forbade progress).

    Raises
    ------
    ValueError
        A constraint that is not affine.
    FloatingPointError
        The lower objective or its gradient is not finite.

    Examples
    --------
    >>> problem = BilevelProblem(
    ...     lambda x, y, batch: y.sum(), lambda x, y, batch: ((y - x) ** 2).sum(), torch.tensor([3.0]), torch.zeros(1))
    >>> solve_lower(problem, problem.x0)
    (tensor([3.]), 0)
    """
    check("tol", tol, positive())
    check("maxiter", maxiter, at_least(0, integer=True))
    if problem.constraint is not None:
        raise value_error("problem", "without a constraint that is not affine", problem)
    oracles = Oracles(problem)
    at = problem.pack_x(x)
    start = problem.pack_y(problem.y0 if y is None else y)
    constrained = problem.affine is not None or problem.project_y is not None
    solve = minimize_lower_on_set if constrained else minimize_lower
    found, info = solve(oracles, at, start, tol=tol, maxiter=maxiter)
    return problem.unpack_y(found), info


def _check_point(name: str, point: Any, like: Tensor | None) -> Tensor:
    """Check x0 or y0 and return a tensor that others must resemble."""
    if isinstance(point, Mapping):
        if not point:
            raise value_error(name, "a non-empty dict of tensors", point)
        parts = {f"{name}[{key!r}]": part for key, part in point.items()}
    else:
        parts = {name: point}
    for key, part in parts.items():
        like = _check_tensor(key, part, like)
    assert like is not None
    return like


def _check_tensor(name: str, part: Any, like: Tensor | None) -> Tensor:
    if not isinstance(part, Tensor):
        raise kind_error(name, "a tensor", part)
    if not part.is_floating_point():
        raise value_error(name, "real floating point", str(part.dtype))
    like = part if like is None else like
    if part.dtype != like.dtype or part.device != like.device:
        raise value_error(name, f"{like.dtype} on {like.device}, as x0 is", f"{part.dtype} on {part.device}")
    entries = part if part.layout is torch.strided else part.to_sparse_coo().coalesce().values()
    if not bool(torch.isfinite(entries).all()):
        raise value_error(name, "finite", part if part.numel() == 1 else "values that are not")
    return like


def _check_equality(equality: Any, p: int | None) -> None:
    if isinstance(equality, bool):
        return
    if not isinstance(equality, Tensor) or equality.dtype is not torch.bool:
        raise kind_error("equality", "a bool or a bool tensor (p,)", equality)
    if equality.ndim != 1 or (p is not None and len(equality) != p):
        raise value_error("equality", f"of shape ({'p' if p is None else p},)", tuple(equality.shape))


def _pack(point: Any, like: Point, name: str) -> Tensor:
    if isinstance(like, Mapping):
        if not isinstance(point, Mapping) or point.keys() != like.keys():
            raise value_error(name, f"a dict with the keys {list(like)}", point)
        pairs = [(point[key], part) for key, part in like.items()]
    else:
        pairs = [(point, like)]
    for part, wanted in pairs:
        if not isinstance(part, Tensor):
            raise kind_error(name, "made of tensors", part)
        if part.shape != wanted.shape or part.dtype != wanted.dtype:
            raise value_error(name, f"of shape {tuple(wanted.shape)} and dtype {wanted.dtype}", part)
    return flatten(part.detach() for part, _ in pairs)


def _unpack(vector: Tensor, like: Point) -> Any:
    if isinstance(like, Mapping):
        return dict(zip(like, unflatten(vector, like.values()), strict=True))
    return vector.view(like.shape)
