"""Trajectories of particles: how they are checked, stored, and summed up in four statistics."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steepest.core.errors import kind_error, value_error

__all__ = [
    "Frame",
    "Statistics",
    "Trajectory",
    "as_trajectories",
    "check_positions",
    "check_types",
    "load_trajectories",
]

OUTSIDE = 0.05  # of the box that positions may lie beyond its bounds
TYPES = "_types"


class Trajectory(NamedTuple):
    """Frames (T, n, d) and the particles' kinds (n,)."""

    positions: Tensor
    types: Tensor


class Frame(NamedTuple):
    """What positions must fit: dimension, dtype, bounds and the number of kinds of particles."""

    dim: int
    dtype: torch.dtype
    low: Tensor
    high: Tensor
    n_types: int


class Statistics(NamedTuple):
    """Means and standard deviations (d,) over frames and particles, per frame (squared), in float64."""

    vel_mean: Tensor
    vel_std: Tensor
    acc_mean: Tensor
    acc_std: Tensor

    @classmethod
    def of(cls, trajectories: list[Trajectory]) -> Statistics:
        """Compute them, in one pass for the means and one for the spreads."""
        found: list[Tensor] = []
        for order in (1, 2):
            differences = [t.positions.double().diff(n=order, dim=0).flatten(0, 1) for t in trajectories]
            n = sum(map(len, differences))
            mean = torch.stack([x.sum(0) for x in differences]).sum(0) / n
            squares = torch.stack([(x - mean).square().sum(0) for x in differences]).sum(0)
            found += [mean, (squares / n).sqrt()]
        return cls(*found)


def as_trajectories(trajectories: Any, frame: Frame, least: int) -> list[Trajectory]:
    """Check trajectories of at least `least` frames and bring them into one form, copied to the CPU."""
    if isinstance(trajectories, np.ndarray | Tensor | Mapping | str) or not isinstance(trajectories, Iterable):
        raise kind_error(
            "trajectories", "a list of arrays (T, n, d), or of dicts with positions and types", trajectories
        )
    given = list(trajectories)
    if not given:
        raise value_error("trajectories", "at least one", given)
    found = []
    for number, item in enumerate(given):
        name = f"trajectories[{number}]"
        positions, types = (item.get("positions"), item.get("types")) if isinstance(item, Mapping) else (item, None)
        if not isinstance(positions, np.ndarray | Tensor):
            raise kind_error(name, "an array (T, n, d), or a dict with positions and types", item)
        x = positions.detach().cpu() if isinstance(positions, Tensor) else torch.tensor(positions)
        if x.ndim != 3 or x.shape[2] != frame.dim or not x.shape[1]:
            raise value_error(name, f"of shape (T, n, {frame.dim})", positions)
        if len(x) < least:
            raise value_error(name, f"of at least {least} frames (the window, one more, and those to predict)", x)
        check_positions(name, x, frame)
        found.append(Trajectory(x, check_types(f"{name}['types']", types, x.shape[1], frame.n_types)))
    return found


def check_positions(name: str, x: Tensor, frame: Frame) -> None:
    """Raise unless positions are finite, of the frame's dtype, and within its bounds or nearly so."""
    if x.dtype != frame.dtype:
        raise kind_error(name, f"of dtype {frame.dtype}, the model's", x, "nothing is cast silently")
    if not bool(torch.isfinite(x).all()):
        raise value_error(name, "finite", x)
    low, high = frame.low.to(x.device), frame.high.to(x.device)
    slack = OUTSIDE * (high - low)
    if bool((x < low - slack).any()) or bool((x > high + slack).any()):
        box = " x ".join(f"[{a:g}, {b:g}]" for a, b in zip(low.tolist(), high.tolist(), strict=True))
        span = tuple(round(float(v), 6) for v in (x.min(), x.max()))
        raise value_error(name, f"within the bounds {box} or at most 5 % outside", span, "scale them, or give bounds")


def check_types(name: str, types: Any, n: int, n_types: int, device: torch.device | None = None) -> Tensor:
    """Give kinds (n,) as int64, zero where none are given."""
    if types is None:
        return torch.zeros(n, dtype=torch.int64, device=device)
    kinds = types if isinstance(types, Tensor) else torch.as_tensor(np.array(types))
    if kinds.is_floating_point() or kinds.is_complex() or kinds.dtype == torch.bool:
        raise kind_error(name, "integers", types)
    if kinds.shape != (n,) or bool(((kinds < 0) | (kinds >= n_types)).any()):
        raise value_error(name, f"{n} integers in [0, {n_types})", types)
    return kinds.to(torch.int64)


def load_trajectories(path: str | os.PathLike[str]) -> list[np.ndarray | dict[str, np.ndarray]]:
    """Read particle trajectories, without running code from the file.

    Parameters
    ----------
    path : path
        ``.npz``: one array (T, n, d) a trajectory under any name, and its kinds of particles (n,) under that name and
        ``_types`` where there are several. ``.pt``: a list of tensors, or of dicts with ``positions`` and ``types``, or
        a dict of names to tensors that is read as an ``.npz`` is.

    Returns
    -------
    list
        In the file's order: float32 arrays (T, n, d), or dicts of one with its kinds, as `GIOROM.fit` takes them.
        Floating positions of another width are converted.

    Raises
    ------
    ValueError
        Another ending, no trajectory, objects in place of arrays (they would run code), shapes other than these.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(folder + "/drops.npz", first=np.zeros((8, 3, 2)), first_types=np.array([0, 0, 5]))
    ...     (trajectory,) = load_trajectories(folder + "/drops.npz")
    >>> trajectory["positions"].shape, trajectory["types"].tolist()
    ((8, 3, 2), [0, 0, 5])
    """
    where = Path(path)
    content: Any
    if where.suffix == ".npz":
        with np.load(where, allow_pickle=False) as archive:
            try:
                content = {name: archive[name] for name in archive.files}
            except ValueError as error:
                raise value_error(
                    "path", "an .npz of plain arrays", str(where), "save each trajectory as its own array"
                ) from error
    elif where.suffix == ".pt":
        content = torch.load(where, map_location="cpu", weights_only=True)
    else:
        raise value_error("path", "a file that ends in .npz or .pt", str(where))
    if isinstance(content, Mapping) and "positions" not in content:
        names = [name for name in content if not name.endswith(TYPES)]
        items: list[Any] = [{"positions": content[name], "types": content.get(name + TYPES)} for name in names]
    else:
        items = [content] if isinstance(content, Mapping | Tensor) else list(content)
    if not items:
        raise value_error("path", "a file with at least one trajectory", str(where))
    return [_loaded(item, str(where)) for item in items]


def _loaded(item: Any, path: str) -> np.ndarray | dict[str, np.ndarray]:
    positions, types = (item.get("positions"), item.get("types")) if isinstance(item, Mapping) else (item, None)
    x = np.asarray(positions)
    if x.ndim != 3 or x.dtype.kind != "f":
        raise value_error("path", f"a file of floating trajectories (T, n, d); {path} has another", x)
    x = x.astype(np.float32)
    if types is None:
        return x
    kinds = np.asarray(types)
    if kinds.shape != x.shape[1:2] or kinds.dtype.kind not in "iu":
        raise value_error("path", f"a file whose types are {x.shape[1]} integers; {path} has others", kinds)
    return {"positions": x, "types": kinds.astype(np.int64)}
