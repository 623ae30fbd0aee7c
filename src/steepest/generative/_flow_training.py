"""Rectification: pairs from a flow, a flow from pairs; straighter each time, or fitted to few steps of Euler."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from steepest.core.errors import SteepestWarning, at_least, boolean, check, value_error
from steepest.core.parallel import Backend, ordered_map
from steepest.core.random import Seed, child_seeds, torch_generator
from steepest.generative._flow_batches import Batch, Cloud, draw_from, without_some
from steepest.generative._flow_fit import FlowFit, fit_flow
from steepest.generative._samples import check_samples
from steepest.generative.metrics import sliced_wasserstein
from steepest.generative.rectified_flow import RectifiedFlow

__all__ = ["FlowFit", "distill", "fit_flow", "rectify", "reflow", "simulate_coupling"]

FOR_DRIFT = 2000  # samples in which the drift from the data is seen
DRIFT = 1.5


def simulate_coupling(
    flow: RectifiedFlow,
    x0: Cloud,
    *,
    n_pairs: int | None = None,
    batch_size: int = 4096,
    out: str | os.PathLike[str] | None = None,
    backend: Backend = "serial",
    n_workers: int | None = None,
    generator: Seed = None,
    y: Tensor | None = None,
    **sample_kw: Any,
) -> tuple[Tensor, Tensor]:
    """Pairs ``(z_0, z_1)`` of the flow from samples of pi_0, in batches.

    Parameters
    ----------
    flow : RectifiedFlow
    x0 : Tensor (m, *shape) or callable
        Samples of pi_0; or ``(n, generator)`` to fresh ones, with `n_pairs`.
    n_pairs : int, optional
        Pairs to draw from a callable (official CIFAR-10: at least a million).
    batch_size : int
        Samples that rk45 carries with common steps; each batch has a seed of its own.
    out : path, optional
        A folder, in which the pairs are written to ``z0.npy`` and ``z1.npy`` batch by batch; the tensors that come back
        are maps of these files. Workers on other machines must see it.
    backend, n_workers
        Where batches are carried (`core.parallel.ordered_map`). The pairs do not depend on it, up to the rounding of
        operations that use several threads: worker processes have one each.
    generator : int, torch.Generator or None
        Of a callable's draws and of noise.
    y : Tensor (m,), optional
        Labels beside the samples.
    **sample_kw
        For `RectifiedFlow.sample`: rk45 with 1e-5 by default, as in the paper.

    Returns
    -------
    (Tensor, Tensor)
        z_0 and z_1, both (m, *shape).

    Raises
    ------
    TypeError, ValueError
        Arguments that do not fit, or not together.

    Examples
    --------
    >>> flow = RectifiedFlow(lambda x, t: torch.ones_like(x))
    >>> z0, z1 = simulate_coupling(flow, torch.zeros(3, 1))
    >>> bool((z1 - 1).abs().max() < 1e-5)
    True
    """
    check("batch_size", batch_size, at_least(1, integer=True))
    if callable(x0) and not isinstance(x0, Tensor):
        check("n_pairs", n_pairs, at_least(1, integer=True))
        total = n_pairs or 0
    else:
        check_samples("x0", x0)
        if n_pairs is not None:
            raise value_error("n_pairs", "None with a tensor x0", n_pairs)
        total = len(x0)
    if y is not None and y.shape != (total,):
        raise value_error("y", f"a label for each of {total} samples", y)
    own = torch_generator(generator, name="generator") if not isinstance(generator, torch.Generator) else generator
    base = int(torch.randint(2**62, (), generator=own, device=own.device))
    begins = range(0, total, batch_size)
    shards = [
        (
            partial(x0, min(batch_size, total - a)) if not isinstance(x0, Tensor) else x0[a : a + batch_size],
            a,
            seed,
            None if y is None else y[a : a + batch_size],
        )
        for a, seed in zip(begins, child_seeds(base, len(begins)), strict=True)
    ]
    if out is None:
        work = partial(_carried, flow, sample_kw)
        z0, z1 = zip(*ordered_map(work, shards, backend=backend, n_workers=n_workers), strict=True)
        return torch.cat(z0), torch.cat(z1)
    files = _Files(Path(out), total)
    work_to_file = partial(_carried_to_file, flow, sample_kw, files)
    _carried_to_file(flow, sample_kw, files, shards[0], create=True)
    ordered_map(work_to_file, shards[1:], backend=backend, n_workers=n_workers)
    return files.tensors()


Shard = tuple[Any, int, int, Tensor | None]


def _carried(flow: RectifiedFlow, sample_kw: Mapping[str, Any], shard: Shard) -> tuple[Tensor, Tensor]:
    source, _, seed, y = shard
    if isinstance(source, Tensor):
        x0, generator = source, torch_generator(seed, source.device)
    else:
        device = next((p.device for p in flow.parameters()), torch.device("cpu"))
        generator = torch_generator(seed, device)
        x0 = source(generator)
        check_samples("x0(n, generator)", x0)
    return x0, flow.sample(x0, y=y, generator=generator, **sample_kw).x


class _Files:
    """Pairs on disk, written part by part."""

    def __init__(self, folder: Path, total: int) -> None:
        self.total = total
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / "z0.npy", folder / "z1.npy"]

    def write(self, begin: int, parts: tuple[Tensor, Tensor], *, create: bool) -> None:
        for path, part in zip(self.paths, parts, strict=True):
            values = part.cpu().numpy()
            if create:
                place = open_memmap(path, "w+", values.dtype, (self.total, *values.shape[1:]))
            else:
                place = open_memmap(path, "r+")
            place[begin : begin + len(values)] = values
            place.flush()

    def tensors(self) -> tuple[Tensor, Tensor]:
        z0, z1 = (torch.from_numpy(np.load(path, mmap_mode="r+")) for path in self.paths)
        return z0, z1


def _carried_to_file(
    flow: RectifiedFlow, sample_kw: Mapping[str, Any], files: _Files, shard: Shard, *, create: bool = False
) -> None:
    files.write(shard[1], _carried(flow, sample_kw, shard), create=create)


def reflow(
    flow: RectifiedFlow,
    x0: Cloud,
    *,
    velocity: nn.Module | None = None,
    online: bool = False,
    n_pairs: int | None = None,
    pairs_kw: Mapping[str, Any] | None = None,
    generator: Seed = None,
    y: Tensor | None = None,
    drop_label: float = 0.1,
    **fit_kw: Any,
) -> FlowFit:
    """Train a straighter flow on the pairs of `flow`, which itself is left as it is.

    Parameters
    ----------
    flow : RectifiedFlow
        The k-th flow, of any interpolation; the next one is linear.
    x0 : Tensor (m, *shape) or callable
        Samples of pi_0; or ``(n, generator)`` to fresh ones, with `n_pairs`.
    velocity : nn.Module, optional
        What to train; by default a copy of the flow's velocity, weights included (official).
    online : bool
        Simulate each batch afresh while training instead of once before it: no pair is seen twice, at the price of
        solving for a batch each step.
    n_pairs : int, optional
        Pairs to simulate when `x0` is a callable.
    pairs_kw : mapping, optional
        For `simulate_coupling` (solver, batches, backend, files); when `online` for `RectifiedFlow.sample`.
    generator : int, torch.Generator or None
        Of pairs and training.
    y : Tensor (m,), optional
        Labels beside a tensor `x0`.
    drop_label : float
        As in `fit_flow`.
    **fit_kw
        As in `fit_flow`.

    Returns
    -------
    FlowFit
        With the new flow.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As `simulate_coupling` and `fit_flow`.

    Notes
    -----
    Each round learns from generated samples and can drift from the data: look at `sliced_wasserstein` for each round,
    as `rectify` does.

    Examples
    --------
    >>> from steepest.generative import GaussianSourceVelocity, MLPVelocity
    >>> flow = RectifiedFlow(GaussianSourceVelocity(torch.tensor([[-3.0], [3.0]])))
    >>> x0 = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    >>> fit = reflow(flow, x0, velocity=MLPVelocity(1, seed=0), n_steps=400, generator=0)
    >>> fit.flow.sample(x0, steps=1, method="euler").nfe
    1
    """
    check("online", online, boolean())
    own = torch_generator(generator, _device_of(x0, flow), name="generator")
    options = dict(pairs_kw or {})
    net = copy.deepcopy(flow.velocity) if velocity is None else velocity
    straight = RectifiedFlow(net, t_eps=flow.t_eps, source_std=flow.source_std)
    if online:
        if n_pairs is not None:
            raise value_error("n_pairs", "None with online=True, which makes every pair afresh", n_pairs)
        teacher = copy.deepcopy(flow).eval()

        def draw(n: int, source: torch.Generator) -> Batch:
            z0, chosen = draw_from(x0, n, source)
            labels = None if y is None or chosen is None else y[chosen]
            z1 = teacher.sample(z0, y=labels, generator=source, **options).x
            return z0, z1, without_some(labels, drop_label, source)

        return fit_flow(straight, draw, None, generator=own, **fit_kw)
    z0, z1 = simulate_coupling(flow, x0, n_pairs=n_pairs, generator=own, y=y, **options)
    return fit_flow(straight, z0, z1, paired=True, generator=own, y=y, drop_label=drop_label, **fit_kw)


def _device_of(x0: Cloud, flow: RectifiedFlow) -> torch.device:
    return x0.device if isinstance(x0, Tensor) else next((p.device for p in flow.parameters()), torch.device("cpu"))


def distill(flow: RectifiedFlow, x0: Cloud, *, steps: int = 1, **fit_kw: Any) -> FlowFit:
    """Fit a copy of the velocity to few steps of Euler on the flow's own pairs; worth it after `reflow`.

    Parameters
    ----------
    flow : RectifiedFlow
    x0 : Tensor (m, *shape) or callable
        As in `reflow`.
    steps : int
        N, the times i/N that are trained; sample with ``fit.flow.sample(x, steps=N, method="euler")``.
    **fit_kw
        As in `reflow`. With ``t_schedule="t1"`` the way back is distilled: ``x1 - v(x1, 1)``. A `metric` such as LPIPS
        replaces the squared difference.

    Returns
    -------
    FlowFit

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As `reflow`.

    Examples
    --------
    >>> from steepest.generative import MLPVelocity
    >>> flow = RectifiedFlow(MLPVelocity(1, width=16, depth=1, seed=0))
    >>> x0 = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    >>> fit = distill(flow, x0, n_steps=300, lr=1e-2, generator=0)
    >>> error = fit.flow.sample(x0, steps=1, method="euler").x - flow.sample(x0).x
    >>> float(error.abs().mean()) < 0.1
    True
    """
    check("steps", steps, at_least(1, integer=True))
    return reflow(flow, x0, **{"t_schedule": steps, **fit_kw})


def rectify(
    x0: Cloud,
    x1: Cloud,
    make_velocity: Callable[[], nn.Module],
    *,
    k: int = 2,
    n_pairs: int | None = None,
    pairs_kw: Mapping[str, Any] | None = None,
    generator: Seed = None,
    **fit_kw: Any,
) -> list[FlowFit]:
    """Train a flow and straighten it: k trainings, each later one on the pairs of the one before.

    Parameters
    ----------
    x0, x1 : Tensor (m, *shape) or callable
        As in `fit_flow`; with a callable `x0` the pairs of each round are `n_pairs` fresh ones.
    make_velocity : callable
        ``make_velocity()`` gives the first network; later flows start from a copy of the one before.
    k : int
        Trainings: 1 is a flow, 2 a flow and its reflow (the paper's recommendation).
    n_pairs, pairs_kw
        As in `reflow`.
    generator : int, torch.Generator or None
        Of everything.
    **fit_kw
        As in `fit_flow`, for each training; `coupling` serves the first, whose batches alone are not paired.

    Returns
    -------
    list of FlowFit
        Their histories also hold ``sliced_w2``: the distance of generated samples from `x1`, one number.

    Warns
    -----
    SteepestWarning
        The distance grew by more than half from one round to the next: the flows drift from the data.

    Raises
    ------
    TypeError, ValueError, FloatingPointError
        As `fit_flow` and `reflow`.

    Examples
    --------
    >>> from steepest.generative import MLPVelocity
    >>> x0 = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    >>> fits = rectify(x0, 2 * x0 + 1, lambda: MLPVelocity(1, seed=0), n_steps=200, generator=0)
    >>> len(fits)
    2
    """
    check("k", k, at_least(1, integer=True))
    if "y" in fit_kw:
        raise value_error("y", "left out: there are no labels beside x0", fit_kw["y"], "use fit_flow and reflow")
    coupling = fit_kw.pop("coupling", None)
    flow = RectifiedFlow(make_velocity())
    own = torch_generator(generator, _device_of(x0, flow), name="generator")
    fits = [fit_flow(flow, x0, x1, generator=own, coupling=coupling, **fit_kw)]
    fit_kw.pop("paired", None)  # later flows train on pairs in any case
    starts, data = (cloud[:FOR_DRIFT] if isinstance(cloud, Tensor) else cloud(FOR_DRIFT, own) for cloud in (x0, x1))
    for round_ in range(1, k + 1):
        flow = fits[-1].flow
        distance = float(sliced_wasserstein(flow.sample(starts).x, data, generator=own))
        fits[-1].history["sliced_w2"] = [distance]
        before = fits[-2].history["sliced_w2"][0] if round_ > 1 else distance
        if distance > DRIFT * before:
            warnings.warn(
                f"flow {round_} is {distance / before:.2f} times as far from the data as the one before: "
                "more pairs, more steps or fewer rounds",
                SteepestWarning,
                stacklevel=2,
            )
        if round_ < k:
            fits.append(reflow(flow, x0, n_pairs=n_pairs, pairs_kw=pairs_kw, generator=own, **fit_kw))
    return fits
