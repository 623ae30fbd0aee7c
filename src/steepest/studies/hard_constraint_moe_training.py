"""Trains the networks of the study: with one least-squares layer (PI-HC), one per box (MoE), or without (PI-SC).

All are the same Fourier neural operator with the same batches and loss; only the layer behind differs, and PI-SC has
one output channel. Errors are relative to the solver, on starts that no network has seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core.parallel import ordered_map
from steepest.core.random import child_seeds, torch_generator
from steepest.physics import (
    FNO,
    DiffusionSorption1D,
    HardConstraint,
    HardConstraintMoE,
    NavierStokes2D,
    fit_pde_operator,
    operator_input,
    pde_loss,
    solve_diffusion_sorption,
    solve_navier_stokes_2d,
)
from steepest.physics._pde import PDE
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context

__all__ = [
    "HC",
    "LAYER",
    "MOE",
    "PADDING",
    "SC",
    "SMOOTHING",
    "Problem",
    "Run",
    "Score",
    "Trained",
    "best_rates",
    "best_settings",
    "by_method",
    "dots",
    "flow",
    "long_seeds",
    "moe_layer",
    "moe_on_bases",
    "ratio",
    "score",
    "score_of",
    "sorption",
    "train_all",
    "weighted",
    "workers_of",
]

HC, MOE, SC = "PI-HC", "PI-HC-MoE", "PI-SC"
RATES = (4e-3, 8e-3)
WIDE = {
    HC: ((4e-3, 0.1), (8e-3, 0.1), (4e-3, 0.3), (8e-3, 0.3)),
    SC: ((2e-3, 0.1), (4e-3, 0.1), (8e-3, 0.1), (1.6e-2, 0.1)),
}
PADDING = 0.5  # behind the axes that are not periodic: without it the last time resembles the first, errors are tenfold
SMOOTHING = 0.01  # of the isotherm: solves would end on its kink at zero and not converge
LAYER = {"ridge": 1e-2, "row_scaling": "balanced", "pde_weight": 0.1, "hessian": "gauss-newton", "start": "running"}
CHUNK = 4  # starts at a time when a network is scored


@dataclass(frozen=True)
class Problem:
    """An equation, its starts (n, nx[, ny]) with the solver's answers (n, *grid), and what is trained on it."""

    pde: PDE
    train: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    network: dict[str, Any]
    fields: int
    layer: dict[str, Any]
    experts: tuple[int, ...]
    batch_size: int = 4

    def net(self, method: str, seed: int) -> FNO:
        """Untrained network; one output channel without a layer."""
        fields = 1 if method == SC else self.fields
        return FNO(len(self.pde.grid) + 1, fields, seed=seed, **self.network)

    def constraint(self, method: str, seed: int) -> HardConstraint | None:
        """Layer of the method."""
        if method == SC:
            return None
        if method == HC:
            return HardConstraint(self.pde, seed=seed, **self.layer)
        return HardConstraintMoE(self.pde, self.experts, seed=seed, **self.layer)


@dataclass(frozen=True)
class Run:
    """One training: a number of steps, or CPU seconds."""

    problem: Problem
    method: str
    seed: int
    lr: float
    steps: int = 100_000
    max_seconds: float | None = None
    validate: bool = False  # score on the validation starts, for tuning
    device: str = "cpu"


@dataclass(frozen=True)
class Score:
    """Medians over starts: relative error, norms of the three parts of the loss; solves that did not converge."""

    error: float
    residual: float
    initial: float
    boundary: float
    not_converged: float
    finite: bool
    errors: tuple[float, ...] = ()
    example: Tensor | None = None  # field of the first start


@dataclass(frozen=True)
class Trained:
    """What came of a run: the network's numbers, the layer's, curves of the training, the score."""

    run: Run
    net: dict[str, Tensor]
    layer: dict[str, Tensor]
    history: dict[str, list[float]]
    score: Score

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return len(self.history["fun"])

    @property
    def seconds(self) -> float:
        """CPU seconds of the training."""
        return self.history["seconds"][-1]

    def model(self) -> tuple[FNO, HardConstraint | None]:
        """The network and its layer, in evaluation."""
        net = self.run.problem.net(self.run.method, self.run.seed)
        net.load_state_dict(self.net)
        layer = self.run.problem.constraint(self.run.method, self.run.seed)
        if layer is not None:
            layer.load_state_dict(self.layer)
            layer.eval()
        return net.eval(), layer


# --------------------------------------------------------------------------------------------------------- the problems


def sorption(
    nt: int, nx: int, n_test: int, seed: int, *, network: dict[str, Any], layer: dict[str, Any],
    compatible: bool, skip_corner: int = 0, smoothing: float = 0.0, n_train: int = 256, n_validation: int = 4,
    batch_size: int = 4,
) -> Problem:  # fmt: skip
    """Diffusion-sorption from starts u0 ~ U(0, 0.2), which jump at the inlet unless `compatible`."""
    pde = DiffusionSorption1D(nt, nx, skip_corner=skip_corner, smoothing=smoothing)
    x = (torch.arange(nx, dtype=torch.float64) + 0.5) / nx
    edge, right = torch.exp(-((x / 0.15) ** 2)), 1 - torch.exp(-(((1 - x) / 0.15) ** 2))
    if not compatible:
        edge, right = torch.zeros_like(x), torch.ones_like(x)

    def starts(n: int, seed: int) -> Tensor:
        u0 = 0.2 * torch.rand(n, 1, generator=torch_generator(seed), dtype=torch.float64)
        return edge + u0 * (1 - edge) * right

    def solved(n: int, seed: int) -> tuple[Tensor, Tensor]:
        given = starts(n, seed)
        return given.float(), torch.stack([solve_diffusion_sorption(u0, nt, nx, rtol=1e-6) for u0 in given])

    seeds = child_seeds(seed, 3)
    return Problem(
        pde, starts(n_train, seeds[0]).float(), solved(n_validation, seeds[1]), solved(n_test, seeds[2]),
        network, 16, layer, (1, 4), batch_size,
    )  # fmt: skip


def flow(
    nt: int, n: int, n_test: int, seed: int, *, network: dict[str, Any], layer: dict[str, Any], Re: float = 1e3,
    t_max: float = 2.0, rms: float = 1.5, fields: int = 16, n_train: int = 64, n_validation: int = 2,
    batch_size: int = 4,
) -> Problem:  # fmt: skip
    """Vorticity from random starts with power spectrum (k² + 49)^-2.5, scaled to `rms`."""
    pde = NavierStokes2D(nt, n, n, Re=Re, t_max=t_max)
    t = torch.linspace(0, t_max, nt, dtype=torch.float64)
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)[:, None], torch.fft.rfftfreq(n, 1 / n, dtype=torch.float64)
    squared = (2 * math.pi) ** 2 * (k[0] ** 2 + k[1] ** 2)
    amplitude = torch.where(squared > 0, (squared + 49.0) ** -1.25, 0.0)

    def starts(count: int, seed: int) -> Tensor:
        white = torch.randn(count, n, n, generator=torch_generator(seed), dtype=torch.float64)
        w0 = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(n, n))
        return rms * w0 / w0.square().mean((1, 2), keepdim=True).sqrt()

    def solved(count: int, seed: int) -> tuple[Tensor, Tensor]:
        w0 = starts(count, seed)
        return w0.float(), torch.stack([solve_navier_stokes_2d(one, t, Re) for one in w0])

    seeds = child_seeds(seed, 3)
    return Problem(
        pde, starts(n_train, seeds[0]).float(), solved(n_validation, seeds[1]), solved(n_test, seeds[2]),
        network, fields, layer, (1, 2, 2), batch_size,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- training


def train_all(runs: Sequence[Run], workers: int) -> list[Trained]:
    """All runs, in processes of one thread each where there are several workers."""
    if workers == 1:
        return [_train(run) for run in runs]
    return ordered_map(_train, runs, backend="processes", n_workers=workers)


@functools.cache
def _warm_up() -> None:
    """One step on a toy, so that what is loaded at the first use is in nobody's time."""
    pde = DiffusionSorption1D(4, 8)
    net, layer = FNO(3, 2, (1, 1), (2, 2), 2), HardConstraint(pde)
    fit_pde_operator(net, layer, pde, torch.full((1, 8), 0.1), steps=1, schedule="cosine")


def _train(run: Run) -> Trained:
    _warm_up()
    problem = run.problem
    net, layer = problem.net(run.method, run.seed).to(run.device), problem.constraint(run.method, run.seed)
    history = fit_pde_operator(
        net, layer, problem.pde, problem.train.to(run.device), steps=run.steps, max_seconds=run.max_seconds, lr=run.lr,
        schedule="cosine", batch_size=problem.batch_size, seed=run.seed,
    )  # fmt: skip
    found = score(problem, net, layer, problem.validation if run.validate else problem.test)
    kept = {} if layer is None else {name: x.clone() for name, x in layer.state_dict().items()}
    return Trained(run, net.state_dict(), kept, history, found)


def best_rates(problem: Problem, methods: Sequence[str], seed: int, seconds: float, workers: int) -> dict[str, float]:
    """Learning rate of the lower validation error, method by method: the same trials and seconds for all."""
    runs = [Run(problem, m, seed, lr, max_seconds=seconds, validate=True) for m in methods for lr in RATES]
    errors = [trained.score.error for trained in train_all(runs, workers)]
    at = {(run.method, run.lr): error for run, error in zip(runs, errors, strict=True)}
    return {m: min(RATES, key=lambda lr: at[m, lr]) for m in methods}


def best_settings(problem: Problem, seed: int, seconds: float, workers: int) -> dict[str, tuple[float, float]]:
    """Learning rate and, where there is a layer, its `pde_weight`, of the lower validation error: four trials each."""
    trials = [(m, lr, weight) for m, settings in WIDE.items() for lr, weight in settings]
    runs = [
        Run(weighted(problem, weight), m, seed, lr, max_seconds=seconds, validate=True) for m, lr, weight in trials
    ]  # fmt: skip
    errors = dict(zip(trials, (trained.score.error for trained in train_all(runs, workers)), strict=True))
    return {m: min(settings, key=lambda setting: errors[m, *setting]) for m, settings in WIDE.items()}


def weighted(problem: Problem, pde_weight: float) -> Problem:
    """The problem with this weight of the equation's rows in the layer."""
    return replace(problem, layer=problem.layer | {"pde_weight": pde_weight})


@torch.no_grad()
def score(problem: Problem, net: FNO, layer: HardConstraint | None, data: tuple[Tensor, Tensor]) -> Score:
    """Errors and losses on starts with known solutions."""
    errors, parts, converged, finite, example = [], [], [], True, None
    device = next(net.parameters()).device
    for u0, truth in zip(*(x.to(device).split(CHUNK) for x in data), strict=True):
        basis = net(operator_input(problem.pde, u0))
        if layer is None:
            fields, added = problem.pde.ansatz(basis, u0)
            u = fields[..., 0] if added is None else fields[..., 0] + added
        else:
            out = layer(basis, u0)
            u = out.solution
            converged.append(out.converged.double().flatten())
        finite &= bool(torch.isfinite(u).all())
        errors += _relative(u, truth)
        parts += [pde_loss(problem.pde, u[i : i + 1], u0[i : i + 1]) for i in range(len(u))]
        example = u[0].double().cpu() if example is None else example

    def median(name: str) -> float:
        return float(np.median([float(p[name]) if name in p else 0.0 for p in parts]))

    failed = 1 - float(torch.cat(converged).mean()) if converged else 0.0
    return Score(
        float(np.median(errors)), median("residual"), median("initial"), median("boundary"), failed, finite,
        tuple(errors), example,
    )  # fmt: skip


def moe_on_bases(trained: Trained, anchor: str) -> Score:
    """The score when PI-HC's layer is exchanged for experts, the network left as it is."""
    return score(trained.run.problem, trained.model()[0], moe_layer(trained, anchor), trained.run.problem.test)


def moe_layer(trained: Trained, anchor: str) -> HardConstraint:
    """Experts that start from the weights that PI-HC starts from, in evaluation."""
    problem, running = trained.run.problem, trained.layer.get("running")
    layer = HardConstraintMoE(problem.pde, problem.experts, anchor=anchor, seed=trained.run.seed, **problem.layer)
    if running is not None and anchor == "global":
        layer.running_global = running.clone()
    elif running is not None:
        layer.running = running.expand(math.prod(problem.experts), -1).clone()
    return layer.eval()


def _relative(u: Tensor, truth: Tensor) -> list[float]:
    difference = torch.linalg.vector_norm((u.double() - truth).flatten(1), dim=1)
    return [float(x) for x in difference / torch.linalg.vector_norm(truth.flatten(1), dim=1)]


# ------------------------------------------------------------------------------------------------------- what is told


def workers_of(ctx: Context) -> int:
    """Trainings at a time."""
    return int(ctx.options.get("workers", ctx.pick(tiny=1, quick=1, full=2, paper=1)))


def long_seeds(ctx: Context) -> list[int]:
    """Two seeds for the long trainings, unless more were asked for."""
    return ctx.seeds if ctx.seeds_asked else ctx.seeds[:2]


def by_method(found: Sequence[Trained]) -> dict[str, list[Trained]]:
    """Runs of each method, in their order."""
    groups: dict[str, list[Trained]] = {}
    for trained in found:
        groups.setdefault(trained.run.method, []).append(trained)
    return groups


def score_of(item: Trained | Score) -> Score:
    """The score of a run, or the score itself."""
    return item.score if isinstance(item, Trained) else item


def ratio(
    ctx: Context, claim: str, ours: Sequence[Trained | Score], theirs: Sequence[Trained | Score], part: str = "error"
) -> None:
    """Ratio seed by seed: the median, and its interval."""
    ratios = [getattr(score_of(a), part) / getattr(score_of(b), part) for a, b in zip(ours, theirs, strict=True)]
    ctx.measured(claim, float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))


def dots(
    ctx: Context, name: str, groups: Mapping[str, Sequence[Trained | Score]], seeds: Sequence[int] | None = None
) -> None:
    """Errors of every method, seed by seed, for a figure."""
    for method, group in groups.items():
        for seed, item in zip(seeds or ctx.seeds, group, strict=True):
            ctx.series(name, [score_of(item).error], method=method, seed=seed)
