"""What callers of the transport room pass, checked and made into problems with positive weights of mass one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.core.errors import (
    at_least,
    boolean,
    check,
    interval,
    kind_error,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)

__all__ = ["Options", "Reduced", "as_problems", "double", "reduce_problem"]

Array = NDArray[np.float64]
EQUAL_MASS = 1e-6

LIMITS = {
    "reg": positive(),
    "n_sinkhorn": optional(nonnegative(integer=True)),
    "sparsity": optional(interval(0, 1, low_open=True)),
    "adaptive": boolean(),
    "forcing": positive(),
    "damping": nonnegative(),
    "linear_solver": one_of("auto", "cg", "direct"),
    "cg_tol": positive(),
    "cg_maxiter": optional(at_least(1, integer=True)),
    "numItermax": at_least(1, integer=True),
    "stopThr": nonnegative(),
    "verbose": boolean(),
    "log": boolean(),
    "warn": boolean(),
}


@dataclass(frozen=True)
class Options:
    """The options of a solve, checked."""

    reg: float
    n_sinkhorn: int | None
    anneal: float | None
    sparsity: float | None
    adaptive: bool
    forcing: float
    damping: float
    linear_solver: str
    cg_tol: float
    cg_maxiter: int | None
    numItermax: int
    stopThr: float
    verbose: bool
    log: bool
    warn: bool

    @classmethod
    def checked(cls, **given: Any) -> Options:
        """Check every option; `anneal` may be None, False or a factor above 1."""
        anneal = given.pop("anneal")
        for name, limit in LIMITS.items():
            check(name, given[name], limit)
        if anneal is None or anneal is False:
            factor = None
        else:
            check("anneal", anneal, interval(1, low_open=True))
            factor = float(anneal)
        given["reg"] = float(given["reg"])
        return cls(anneal=factor, **given)


@dataclass(frozen=True)
class Reduced:
    """One problem without its zero weights: a, b of mass one, C = (M - min M) / reg in double precision."""

    a: Array
    b: Array
    C: Array
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    shape: tuple[int, int]
    mass: float
    offset: float  # min M / reg


def double(x: Any) -> Array:
    """The values of an array or CPU tensor in double precision; shared where they have it already."""
    values = x.detach().numpy() if isinstance(x, torch.Tensor) else x
    return np.asarray(values, dtype=np.float64)


def _array(name: str, x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        if not x.dtype.is_floating_point:
            raise kind_error(name, "a tensor of floating-point numbers", x)
        if x.device.type != "cpu":
            raise kind_error(name, "on the CPU, where the sparse systems are solved", x, f"call {name}.cpu()")
        return x
    if x is None or not (isinstance(x, np.ndarray | Sequence) or hasattr(x, "__array__")):
        raise kind_error(name, "an array, a list or a tensor", x)
    try:
        found = np.asarray(x)
    except ValueError:
        raise value_error(name, "a rectangular array of numbers", x) from None
    if found.dtype.kind not in "fiub" or found.dtype.itemsize > 8:
        raise kind_error(name, "an array of real numbers", found)
    return found if found.dtype in (np.float32, np.float64) else found.astype(np.float64)


def as_problems(a: Any, b: Any, M: Any) -> tuple[list[tuple[Any, Any, Any]], bool]:
    """One (a, b, M) for every problem, in the caller's kind, and whether there is a batch axis."""
    M = _array("M", M)
    if M.ndim not in (2, 3):
        raise value_error("M", "of shape (n, m) or (B, n, m)", M)
    if 0 in M.shape:
        raise value_error("M", "with at least one entry", M)
    n_tensor = isinstance(M, torch.Tensor)
    weights = []
    for name, w, size in (("a", a, M.shape[-2]), ("b", b, M.shape[-1])):
        if w is None or (isinstance(w, list | tuple) and len(w) == 0):
            uniform = np.full(size, 1.0 / size)
            w = torch.from_numpy(uniform).to(M.dtype) if n_tensor else uniform
        w = _array(name, w)
        if isinstance(w, torch.Tensor) != n_tensor:
            raise kind_error(name, f"of M's kind ({type(M).__name__})", w)
        if w.ndim not in (1, 2) or w.shape[-1] != size:
            raise value_error(name, f"of shape ({size},) or (B, {size})", w)
        weights.append(w)
    batches = {len(x) for x, single in ((M, 2), (weights[0], 1), (weights[1], 1)) if x.ndim > single}
    if len(batches) > 1:
        raise value_error("M, a and b", "of one batch size", sorted(batches))
    if not batches:
        return [(weights[0], weights[1], M)], False

    def entry(x: Any, single: int, k: int) -> Any:
        return x[k] if x.ndim > single else x

    return [(entry(weights[0], 1, k), entry(weights[1], 1, k), entry(M, 2, k)) for k in range(batches.pop())], True


def reduce_problem(a: Any, b: Any, M: Any, reg: float) -> Reduced:
    """Check the values, leave zero weights out and bring the rest to mass one."""
    a, b, M = double(a), double(b), double(M)
    if not np.isfinite(M).all():
        raise value_error("M", "finite", M[~np.isfinite(M)][0])
    for name, w in (("a", a), ("b", b)):
        bad = ~np.isfinite(w) | (w < 0)
        if bad.any():
            raise value_error(name, "finite and >= 0", w[bad][0])
        if not w.any():
            raise value_error(name, "with some mass", w, "all weights are zero")
    mass = float(a.sum())
    if abs(mass - b.sum()) > EQUAL_MASS * mass:
        raise value_error("b", f"of a's total mass {mass:.9g}", float(b.sum()), "rescale one of them")
    rows, columns = np.flatnonzero(a), np.flatnonzero(b)
    shape = (len(a), len(b))
    everything = len(rows) == len(a) and len(columns) == len(b)
    kept = M if everything else M[np.ix_(rows, columns)]
    least = float(kept.min())
    with np.errstate(over="ignore"):
        C = kept - least
        C /= reg
    if not np.isfinite(C.max()) or not np.isfinite(least / reg):
        raise value_error("reg", "so large that M / reg is finite", reg)
    a, b = a[rows], b[columns]
    return Reduced(a / a.sum(), b / b.sum(), C, rows, columns, shape, mass, least / reg)
