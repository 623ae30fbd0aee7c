"""Gradients as the rows of one matrix, and the pages of columns in which it is worked on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import kind_error, value_error

__all__ = ["block_spans", "full_precision", "gradient_matrix", "spans", "triangle_rows"]


def gradient_matrix(grads: Any, *, writable: bool = False) -> Tensor:
    """Check gradients and see them as one (m, d) tensor; arrays and files are not copied, rows are gathered once."""
    if isinstance(grads, np.ndarray):
        if writable and not grads.flags.writeable:
            raise value_error("grads", "writable with overwrite=True", grads)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # read only
            grads = torch.from_numpy(grads)
    elif not isinstance(grads, Tensor):
        grads = gather_rows(grads)
    if grads.dtype not in (torch.float32, torch.float64):
        raise kind_error("grads", "float32 or float64", grads)
    if grads.ndim != 2 or grads.numel() == 0:
        raise value_error("grads", "of shape (m, d) and not empty", grads)
    return grads.detach()


def gather_rows(rows: Any) -> Tensor:
    """Copy a re-iterable of rows into one matrix, holding no second copy: it is walked through twice."""
    if not isinstance(rows, Iterable) or isinstance(rows, Iterator | str | bytes):
        raise kind_error("grads", "an (m, d) tensor or array, or a re-iterable of rows", rows)
    m = sum(1 for _ in rows)
    if m == 0:
        raise value_error("grads", "of shape (m, d) and not empty", "no rows")
    out: Tensor | None = None
    for i, row in enumerate(rows):
        g = torch.as_tensor(row).detach()
        if g.ndim != 1:
            raise value_error("grads", "rows of shape (d,)", g)
        if out is None:
            out = torch.empty(m, len(g), dtype=g.dtype, device=g.device)
        if len(g) != out.shape[1] or g.dtype != out.dtype:
            raise value_error("grads", f"rows of length {out.shape[1]} and dtype {out.dtype}", g, f"it is row {i}")
        out[i] = g
    if out is None or i + 1 != m:
        raise value_error("grads", f"the same {m} rows each time it is walked through", rows)
    return out


def triangle_rows(m: int, device: torch.device) -> int:
    """Row blocks by which products with a triangle skip its other half: 5/8 of the work on a CPU."""
    return max(32, m // 8) if device.type == "cpu" else m


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep TF32 out of float32 products on an accelerator."""
    if device.type != "cuda":
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def spans(d: int, width: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive pages of `width` columns.

    Examples
    --------
    >>> list(spans(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for a in range(0, d, width):
        yield a, min(a + width, d)


def block_spans(d: int, block_size: int, columns: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, width) of pages of about `columns` columns that hold equal blocks; a smaller last block is alone.

    Examples
    --------
    >>> list(block_spans(7, 2, 4))
    [(0, 4, 2), (4, 6, 2), (6, 7, 1)]
    """
    full = d // block_size * block_size
    for a, b in spans(full, max(columns // block_size, 1) * block_size):
        yield a, b, block_size
    if full < d:
        yield full, d, d - full
