r"""Products with the inverse of the damped empirical Fisher of the last m gradients (dynamic algorithm).

With the window's gradients as the rows of G and K' = G G^T + m damping I_m,

    F^{-1} x   = (x - G^T K'^{-1} G x) / damping            two passes over G and one m x m solve
    F^{-1} g_s = m G^T K'^{-1} e_s                          for a gradient g_s of the window: nothing is subtracted

A new gradient replaces one row and column of K' (one pass over G).

Paper: frantar2021mfac, dynamic algorithm.

Departures: (1) the paper rebuilds its coefficient matrices D and B in O(m^3) on each change, here K' is factored by
Cholesky (O(m^3)), or its inverse is corrected by a symmetric rank-2 term (O(m^2)) and checked; (2) `normalize="count"`
divides by the number of gradients held instead of the window's length.
"""

from __future__ import annotations

import heapq
import math
import os
from typing import Any

import torch
from torch import Tensor

from steepest.core.distributed import all_reduce_sum
from steepest.core.errors import at_least, check_params, kind_error, one_of, positive, value_error
from steepest.curvature._gradient_matrix import full_precision

__all__ = ["SlidingFisherInverse"]

REFACTOR_EACH = 64  # rank-2 corrections between factorizations
RESIDUAL_LIMIT = 1e-8  # of a solve with the corrected inverse, relative; above it K' is factored anew
TILE_ROWS, TILE_COLUMNS = 16, 2**15  # of a float64 tile of the history: 4 MiB
LIMITS = {
    "d": at_least(1, integer=True),
    "window": at_least(1, integer=True),
    "damping": positive(),
    "dtype": one_of(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "gram_dtype": one_of(torch.float64, torch.float32),
    "normalize": one_of("window", "count"),
    "update": one_of("cholesky", "rank2"),
}


class SlidingFisherInverse:
    """Inverse of ``F = damping I + G^T G / m`` over a sliding window of gradients (M-FAC, dynamic algorithm).

    Parameters
    ----------
    d : int
        Length of a gradient.
    window : int
        How many gradients are kept; the oldest leaves first.
    damping : float
        λ > 0; may be changed between calls.
    dtype : torch.dtype
        Of the stored gradients. With float16 or bfloat16 vectors are float32 and so is the arithmetic on them.
    device : torch.device or str, optional
        Of the stored gradients and of the work; the CPU by default.
    gram_dtype : torch.dtype
        In which dot products of gradients are accumulated; K' and its factor are always float64.
    normalize : "window" or "count"
        What m is while the window is not full: its length (official code: missing gradients are zero rows), or the
        number of gradients held.
    update : "cholesky" or "rank2"
        O(m^3) factorization on a change, or an O(m^2) correction of K'^{-1}, with a factorization every 64 changes
        and whenever a solve leaves a relative residual above 1e-8.
    process_group
        Each rank holds its own d columns; m-vectors of dot products are summed over the ranks (None: one process).

    Attributes
    ----------
    window, d, damping : as given
    count : int
        Gradients held.
    m : int
        What the sum is divided by (see `normalize`).

    Raises
    ------
    ValueError, TypeError
        Arguments out of range; vectors of the wrong length, dtype or device.
    FloatingPointError
        A gradient that is not finite (or not in a 16-bit `dtype`) is pushed; the window is unchanged.
    MemoryError
        The window does not fit; the text says how many bytes it needs.
    torch.linalg.LinAlgError
        `damping` is below the rounding errors of the Gram matrix.

    References
    ----------
    frantar2021mfac, dynamic algorithm.

    Examples
    --------
    >>> inverse = SlidingFisherInverse(2, window=3, damping=0.5, dtype=torch.float64)
    >>> _ = inverse.push(torch.tensor([3.0, 0.0], dtype=torch.float64))
    >>> inverse.matvec(torch.tensor([7.0, 1.0], dtype=torch.float64)).tolist()
    [2.0, 2.0]
    >>> inverse.push_matvec(torch.tensor([0.0, 3.0], dtype=torch.float64)).round(decimals=6).tolist()
    [0.0, 0.857143]
    """

    def __init__(
        self,
        d: int,
        window: int,
        damping: float = 1e-5,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        gram_dtype: torch.dtype = torch.float64,
        normalize: str = "window",
        update: str = "cholesky",
        process_group: Any = None,
    ) -> None:
        self.d = d
        self.window = window
        self.damping = damping
        self.dtype = dtype
        self.device = torch.device(device or "cpu")
        self.gram_dtype = gram_dtype
        self.normalize = normalize
        self.update = update
        self.process_group = process_group
        check_params(self, LIMITS)
        self.vector_dtype = torch.float32 if dtype.itemsize == 2 else dtype
        self._G = allocate_history(window, d, dtype, self.device)  # (window, d), a ring in no particular order
        self._K = torch.zeros(window, window, dtype=torch.float64, device=self.device)
        self._order: list[int] = []  # slots, oldest gradient first
        self._free = list(range(window))  # a heap
        self._factor: tuple[float, Tensor] | None = None  # (m * damping, Cholesky factor or inverse of K')
        self._changes = 0  # rank-2 corrections since the last factorization
        self._tile = torch.empty(0)

    @property
    def count(self) -> int:
        """Number of gradients held."""
        return len(self._order)

    @property
    def m(self) -> int:
        """What the sum over gradients is divided by."""
        return self.window if self.normalize == "window" else max(self.count, 1)

    def push(self, g: Tensor) -> SlidingFisherInverse:
        """Append a gradient (d,), evicting the oldest of a full window; return self."""
        self._insert(g)
        return self

    def pop(self, age: int = -1) -> Tensor:
        """Remove a gradient and return it.

        Parameters
        ----------
        age : int
            Position in order of age: 0 (or -1, the default) is the oldest, ``count - 1`` the newest.

        Raises
        ------
        IndexError
            The window is empty or holds no gradient of that age.
        """
        if not self._order:
            raise IndexError("pop from an empty window")
        if not -1 <= age < self.count:
            raise IndexError(f"age must be in [0, {self.count}) or -1, got {age}")
        slot = self._order[max(age, 0)]
        g = self._G[slot].clone()
        self._replace(slot, None, torch.zeros(self.window, dtype=torch.float64, device=self.device))
        self._order.remove(slot)
        heapq.heappush(self._free, slot)
        return g

    def matvec(self, x: Tensor) -> Tensor:
        """Multiply the inverse with `x`, (d,) or (d, k); ``x / damping`` while the window is empty."""
        X = self._checked(x, "x", columns=True)
        if not self._order:
            return X / self.damping
        with full_precision(self.device):
            G = self._rows()
            Y = self._left_product(G, X)
            all_reduce_sum([Y], self.process_group)
            C = self._solve(Y.double())
            return (X - self._combine(G, C)) / self.damping

    __call__ = matvec

    def push_matvec(self, g: Tensor) -> Tensor:
        """Push `g` (d,) and return ``F^{-1} g`` with `g` in the window, free of cancellation."""
        slot = self._insert(g)
        with full_precision(self.device):
            G = self._rows()
            e = torch.zeros(len(G), dtype=torch.float64, device=self.device)
            e[slot] = self.m
            return self._combine(G, self._solve(e))

    def grads(self) -> Tensor:
        """Copy the gradients held, (count, d), oldest first."""
        return self._G[self._order]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continued run needs to be bit-equal; a full history is not copied."""
        factor = None if self._factor is None or self.update == "cholesky" else self._factor[1]
        return {
            "history": self._G if self.count == self.window else self._rows().clone(),
            "gram": self._K,
            "order": list(self._order),
            "window": self.window,
            "d": self.d,
            "inverse": factor,
            "shift": None if factor is None or self._factor is None else self._factor[0],
            "changes": self._changes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a state in; `ValueError` if it is of another window or length."""
        for name in ("window", "d"):
            if state[name] != getattr(self, name):
                raise value_error(f"{name} of the state", f"{getattr(self, name)}", state[name])
        history = state["history"]
        self._G[: len(history)].copy_(history)
        self._G[len(history) :].zero_()
        self._K.copy_(state["gram"])
        self._order = list(state["order"])
        self._free = sorted(set(range(self.window)) - set(self._order))
        self._changes = state["changes"]
        inverse = state["inverse"]
        self._factor = None if inverse is None else (state["shift"], inverse.to(self._K, copy=True))

    def extend(self, columns: int) -> None:
        """Lengthen the gradients by `columns` entries, zero in those already held."""
        G = allocate_history(self.window, self.d + columns, self.dtype, self.device)
        G[:, : self.d] = self._G
        self._G, self.d, self._tile = G, self.d + columns, torch.empty(0)

    def clear(self, d: int | None = None) -> None:
        """Empty the window, and let gradients have length `d` from now on."""
        if d is None or d == self.d:
            self._G.zero_()
        else:
            self._G, self.d, self._tile = allocate_history(self.window, d, self.dtype, self.device), d, torch.empty(0)
        self._K.zero_()
        self._order, self._free = [], list(range(self.window))
        self._factor, self._changes = None, 0

    def __repr__(self) -> str:
        held = f"{self.count} of {self.window}"
        return f"{type(self).__name__}(d={self.d}, window={held}, damping={self.damping:g}, dtype={self.dtype})"

    # ------------------------------------------------------------------ the window

    def _insert(self, g: Tensor) -> int:
        g = self._checked(g, "g").to(self.dtype)  # as it will be stored
        dots = torch.zeros(self.window + 1, dtype=torch.float64, device=self.device)  # G g, then g.g
        wide = g.to(self.gram_dtype)
        dots[: len(self._rows())] = self._accurate_dots(self._rows(), wide)
        dots[-1] = wide @ wide
        all_reduce_sum([dots], self.process_group)
        if not bool(torch.isfinite(dots).all()):
            raise FloatingPointError("a gradient that is not finite was pushed; the window is unchanged")
        slot = self._order.pop(0) if len(self._order) == self.window else heapq.heappop(self._free)
        dots[slot] = dots[-1]
        self._replace(slot, g, dots[:-1])
        self._order.append(slot)
        return slot

    def _replace(self, slot: int, g: Tensor | None, row: Tensor) -> None:
        """Put `g` (or nothing) in a slot and `row` into K; correct the inverse in rank2 mode."""
        change = row - self._K[slot]
        self._K[slot] = row
        self._K[:, slot] = row
        if g is None:
            self._G[slot].zero_()
        else:
            self._G[slot] = g
        if self.update == "rank2" and self._factor is not None and self._changes < REFACTOR_EACH:
            self._changes += 1
            correct_inverse(self._factor[1], slot, change)
        else:
            self._factor = None

    def _rows(self) -> Tensor:
        """The history up to the last slot in use."""
        return self._G[: max(self._order, default=-1) + 1]

    # ------------------------------------------------------------------ the m x m system

    def _solve(self, B: Tensor) -> Tensor:
        """K'^{-1} B on the rows in use; float64, (rows,) or (rows, k)."""
        rhs, n = B.reshape(len(B), -1), len(B)
        shift = self.m * self.damping
        if self.update == "rank2":
            C = self._solve_corrected(rhs, shift)
            if C is not None:
                return C.reshape(B.shape)
        if self._factor is None or self._factor[0] != shift or self.update == "rank2" or len(self._factor[1]) != n:
            L = self._factorize(shift, n)
            inverse = torch.eye(self.window, dtype=torch.float64, device=self.device) / shift
            if self.update == "rank2":
                inverse[:n, :n] = torch.cholesky_inverse(L)
                self._changes = 0
            self._factor = (shift, L if self.update == "cholesky" else inverse)
        else:
            L = self._factor[1]
        return torch.cholesky_solve(rhs, L).reshape(B.shape)

    def _solve_corrected(self, rhs: Tensor, shift: float) -> Tensor | None:
        """Solve with the kept inverse and one step of refinement, or give None where that is not good enough."""
        if self._factor is None or self._factor[0] != shift:
            return None
        n = len(rhs)
        P, K = self._factor[1][:n, :n], self._K[:n, :n]
        C = P @ rhs
        C += P @ (rhs - K @ C - shift * C)
        residual = torch.linalg.vector_norm(rhs - K @ C - shift * C)
        return C if bool(residual <= RESIDUAL_LIMIT * torch.linalg.vector_norm(rhs)) else None

    def _factorize(self, shift: float, n: int) -> Tensor:
        L, info = self._cholesky(shift, n)
        if bool(info != 0) and self.gram_dtype != torch.float64:
            self._regram()
            L, info = self._cholesky(shift, n)
        if bool(info != 0):
            message = f"damping={self.damping:g} is below the rounding errors of the Gram matrix; raise damping"
            raise torch.linalg.LinAlgError(message)  # type: ignore[attr-defined]
        return L

    def _cholesky(self, shift: float, n: int) -> tuple[Tensor, Tensor]:
        K = self._K[:n, :n].clone()
        K.diagonal().add_(shift)
        L, info = torch.linalg.cholesky_ex(K)
        return L, info

    def _regram(self) -> None:
        """Recompute K from float64 products."""
        self.gram_dtype = torch.float64
        self._tile = torch.empty(0)
        G = self._rows()
        K = torch.zeros_like(self._K)
        for slot in self._order:
            K[slot, : len(G)] = self._accurate_dots(G, G[slot].double())
        all_reduce_sum([K], self.process_group)
        self._K.copy_(K)

    # ------------------------------------------------------------------ passes over the history

    def _accurate_dots(self, G: Tensor, g: Tensor) -> Tensor:
        """G g, accumulated in `gram_dtype` (that of g) over tiles that stay in cache."""
        if G.dtype == g.dtype:
            return G @ g
        columns = TILE_COLUMNS if self.device.type == "cpu" else 2**20
        if self._tile.numel() == 0:
            self._tile = g.new_empty(min(TILE_ROWS, self.window) * min(columns, self.d))
        out = g.new_zeros(len(G))
        for i in range(0, len(G), TILE_ROWS):
            for a in range(0, self.d, columns):
                part = G[i : i + TILE_ROWS, a : a + columns]
                tile = self._tile[: part.numel()].view(part.shape)
                tile.copy_(part)
                out[i : i + TILE_ROWS].addmv_(tile, g[a : a + columns])
        return out

    def _left_product(self, G: Tensor, X: Tensor) -> Tensor:
        """G X in the vectors' dtype."""
        if G.dtype == self.vector_dtype:
            return G @ X
        step = max(256, 2**20 // len(G))
        return sum(
            (G[:, a : a + step].to(X.dtype) @ X[a : a + step] for a in range(0, self.d, step)),
            X.new_zeros(len(G), *X.shape[1:]),
        )

    def _combine(self, G: Tensor, C: Tensor) -> Tensor:
        """G^T C in the vectors' dtype."""
        C = C.to(self.vector_dtype)
        if G.dtype == self.vector_dtype:
            return G.mT @ C
        step = max(256, 2**20 // len(G))
        return torch.cat([G[:, a : a + step].to(C.dtype).mT @ C for a in range(0, self.d, step)])

    def _checked(self, x: Tensor, name: str, *, columns: bool = False) -> Tensor:
        if not isinstance(x, Tensor):
            raise kind_error(name, "a Tensor", x)
        if x.dtype != self.vector_dtype:
            raise kind_error(name, f"of dtype {self.vector_dtype}", x)
        if x.ndim not in ((1, 2) if columns else (1,)) or len(x) != self.d:
            raise value_error(name, f"of shape ({self.d},)" + (f" or ({self.d}, k)" if columns else ""), x)
        return x.detach()


def correct_inverse(P: Tensor, slot: int, change: Tensor) -> None:
    """Correct P = A^{-1} in place for ``A += e c^T + c e^T``, which adds `change` to one row and column of A."""
    c = change.clone()
    c[slot] /= 2
    W = torch.stack([P[:, slot], P @ c], dim=1)  # P [e, c]
    cross = 1 + W[slot, 1]
    S = torch.stack([W[slot, 0], cross, cross, c @ W[:, 1]]).reshape(2, 2)
    P -= W @ torch.linalg.solve_ex(S, W.mT)[0]


def allocate_history(window: int, d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make the zero history, or say how many bytes it needs."""
    need = window * d * dtype.itemsize
    message = f"a window of {window} gradients of length {d} in {dtype} needs {need:,} bytes on {device}"
    if device.type == "cpu" and need > physical_memory():
        raise MemoryError(f"{message}, more than the memory of this machine; lower window or use history_dtype")
    try:
        return torch.zeros(window, d, dtype=dtype, device=device)
    except (RuntimeError, MemoryError) as error:
        raise MemoryError(f"{message}, which could not be had; lower window or use history_dtype") from error


def physical_memory() -> float:
    """Bytes of main memory, infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf
