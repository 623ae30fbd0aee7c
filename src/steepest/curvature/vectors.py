"""Parameter vectors: flat or as a list of tensors, and the random probes that stochastic estimators multiply with.

A parameter vector is a flat tensor of length P or a sequence of tensors shaped as the parameters; the flat order is
the order of the parameters, each row-major. Probes z have independent entries with E[z] = 0 and E[z z^T] = I.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from steepest.core.errors import check, kind_error, one_of, value_error

__all__ = ["accumulation_dtype", "check_parameters", "flatten", "probe_like", "probes", "unflatten"]

DISTRIBUTIONS = one_of("rademacher", "gaussian")


def flatten(seq: Iterable[Tensor]) -> Tensor:  # (P,)
    """Concatenate tensors into one flat vector: in order, each row-major.

    Parameters
    ----------
    seq : iterable of Tensor

    Returns
    -------
    Tensor of shape (P,)

    Raises
    ------
    ValueError
        `seq` is empty.

    Examples
    --------
    >>> flatten([torch.tensor([[1.0, 2.0]]), torch.tensor(3.0)]).tolist()
    [1.0, 2.0, 3.0]
    """
    parts = [t.reshape(-1) for t in seq]
    if not parts:
        raise value_error("seq", "a non-empty sequence of tensors", [])
    return torch.cat(parts)


def unflatten(vec: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """Split a flat vector into views shaped as the tensors of `like`; the inverse of `flatten`.

    Parameters
    ----------
    vec : Tensor of shape (P,)
    like : iterable of Tensor
        Only their shapes are used.

    Returns
    -------
    list of Tensor

    Raises
    ------
    ValueError
        `vec` is not flat, or its length is not the number of elements in `like`.

    Examples
    --------
    >>> [t.tolist() for t in unflatten(torch.arange(3.0), [torch.zeros(2, 1), torch.zeros(1)])]
    [[[0.0], [1.0]], [2.0]]
    """
    shapes = [t.shape for t in like]
    sizes = [s.numel() for s in shapes]
    if vec.shape != (sum(sizes),):
        raise value_error("vec", f"of shape {(sum(sizes),)}", vec)
    return [part.view(shape) for part, shape in zip(vec.split(sizes), shapes, strict=True)]


def probes(
    n: int,
    k: int,
    *,
    distribution: str = "rademacher",
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:  # (n, k)
    """Draw k probes of length n, one a column; the first columns do not depend on k.

    Parameters
    ----------
    n, k : int
    distribution : "rademacher" or "gaussian"
    generator : torch.Generator
        Advanced by the draw; it lives on `device`.
    dtype : torch.dtype
    device : torch.device, optional

    Examples
    --------
    >>> z = probes(5, 2, generator=torch.Generator().manual_seed(0))
    >>> z.shape, (z * z).sum().item()
    (torch.Size([5, 2]), 10.0)
    """
    check("distribution", distribution, DISTRIBUTIONS)
    rows = [_draw(n, distribution, generator, dtype, device) for _ in range(k)]
    return torch.stack(rows, 1) if rows else torch.empty(n, 0, dtype=dtype, device=device)


def probe_like(
    params: Iterable[Tensor], distribution: str = "rademacher", *, generator: torch.Generator
) -> list[Tensor]:
    """Draw one joint probe shaped as `params`, in their dtypes and on their devices.

    Parameters
    ----------
    params : iterable of Tensor
    distribution : "rademacher" or "gaussian"
    generator : torch.Generator
        Advanced by the draw.

    Examples
    --------
    >>> z = probe_like([torch.zeros(2, 3), torch.zeros(4)], generator=torch.Generator().manual_seed(0))
    >>> [tuple(t.shape) for t in z], sorted(set(z[0].abs().reshape(-1).tolist()))
    ([(2, 3), (4,)], [1.0])
    """
    check("distribution", distribution, DISTRIBUTIONS)
    return [
        _draw(p.numel(), distribution, generator, p.dtype, generator.device).view(p.shape).to(p.device) for p in params
    ]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums over samples are kept: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_parameters(params: Iterable[Tensor], name: str = "params") -> list[Tensor]:
    """Return `params` as a list after checking that every one is a real tensor that autograd tracks.

    Raises
    ------
    TypeError
        A member is no tensor.
    ValueError
        No parameters, a complex one, or one without ``requires_grad``.
    """
    found = [params] if isinstance(params, Tensor) else list(params)
    if not found:
        raise value_error(name, "a non-empty sequence of tensors", found)
    for i, p in enumerate(found):
        if not isinstance(p, Tensor):
            raise kind_error(f"{name}[{i}]", "a tensor", p)
        if not p.is_floating_point():
            raise value_error(f"{name}[{i}]", "real floating point", str(p.dtype))
        if not p.requires_grad:
            raise value_error(f"{name}[{i}]", "a tensor with requires_grad=True", p)
    return found


def _draw(
    n: int,
    distribution: str,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:  # (n,)
    if distribution == "gaussian":
        return torch.randn(n, generator=generator, dtype=dtype, device=device)
    words = torch.empty((n + 63) // 64, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)  # 64 fair coins each: 5 times faster than one draw an entry
    coins = (words.view(torch.int32).unsqueeze(1) >> torch.arange(32, dtype=torch.int32, device=device)) & 1
    return coins.view(-1)[:n].to(dtype).mul_(2).sub_(1)
