"""Tensors as the optimizers see them: precision of the state, layout in memory, and blocks that stay in cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "blockwise",
    "foreach_working_copies",
    "is_dense",
    "is_plain",
    "moment_dtype",
    "moment_like",
    "same_layout",
]

BLOCK = (
    1 << 18
)  # elements of the plain path on the CPU: larger blocks leave the cache, smaller ones cost calls (measured)


def is_plain(t: Tensor) -> bool:
    """Whether a tensor is one of torch's own kind, no subclass (DTensor and others, which own no flat memory)."""
    return type(t) in (Tensor, torch.nn.Parameter)


def moment_dtype(p: Tensor) -> torch.dtype:
    """float32 for half-precision parameters, else the parameter's dtype."""
    return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype


def moment_like(p: Tensor) -> Tensor:
    """Zeros of a parameter's shape, device and memory format, in float32 if it is half precision."""
    return torch.zeros_like(p, dtype=moment_dtype(p), memory_format=torch.preserve_format, requires_grad=False)


def blockwise(
    update: Callable[..., None],
    p: Tensor,
    g: Tensor | None,
    *moments: Tensor,
    maximize: bool = False,
    write: bool = True,
    block: int = BLOCK,
) -> None:
    """Call ``update(w, g, *moments)`` on corresponding blocks of a parameter, its gradient and its moments.

    Parameters
    ----------
    update : callable
        Changes `w` and the moments in place, element by element; never `g`.
    p, g : Tensor
        Parameter and gradient, any layout. Blocks of half-precision ones arrive as float32 copies, and the
        parameter is rounded once afterwards. With ``g=None`` `update` is called as ``update(w, *moments)``.
    *moments : Tensor
        Of the parameter's shape.
    maximize : bool
        Hand over the negated gradient.
    write : bool
        False: `update` leaves `w` alone, so nothing is rounded back.
    block : int
        Elements of a block.
    """
    tensors = (p, *moments) if g is None else (p, g, *moments)
    for parts in _blocks(tensors, block):
        _update_block(update, parts, g is not None, maximize, write)


def _update_block(
    update: Callable[..., None], parts: Sequence[Tensor], has_grad: bool, maximize: bool, write: bool
) -> None:
    target = parts[0]
    half = moment_dtype(target) != target.dtype
    w = target.float() if half else target
    rest = list(parts[1:])
    if has_grad:
        rest[0] = rest[0].to(w.dtype)
        if maximize:
            rest[0] = rest[0].neg()
    update(w, *rest)
    if half and write:
        target.copy_(w)


def _blocks(tensors: Sequence[Tensor], block: int) -> list[tuple[Tensor, ...]]:
    """Cut tensors of one shape into corresponding blocks, in memory order where they share a dense layout."""
    first = tensors[0]
    if first.numel() <= block or torch.compiler.is_compiling() or not is_plain(first):
        return [tuple(tensors)]
    if is_dense(first) and all(same_layout(t, first) for t in tensors[1:]):
        flat = [t.as_strided((t.numel(),), (1,)) for t in tensors]
        return list(zip(*(t.split(block) for t in flat), strict=True))
    rows = max(1, block * first.shape[0] // first.numel())
    return list(zip(*(t.split(rows) for t in tensors), strict=True))


def foreach_working_copies(params: list[Tensor], grads: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and gradients to compute with: themselves, or float32 copies of half-precision ones."""
    dtype = moment_dtype(params[0])
    if dtype == params[0].dtype:
        return params, grads
    return [p.to(dtype) for p in params], [g.to(dtype) for g in grads]


def is_dense(t: Tensor) -> bool:
    """Whether the elements of a tensor fill one piece of memory without gaps or overlaps, in any order of the axes."""
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape order their elements alike in memory (axes of length one do not count)."""
    return a.stride() == b.stride() or all(
        n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True)
    )
