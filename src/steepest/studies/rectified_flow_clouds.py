"""Clouds in the plane: eight Gaussians to moons, noise to moons, and what each round of reflow does to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steepest.core.extras import installed
from steepest.core.random import child_seeds
from steepest.generative import (
    FlowFit,
    MLPVelocity,
    RectifiedFlow,
    crossing,
    distill,
    fit_flow,
    reflow,
    sliced_wasserstein,
    straightness,
    transport_cost,
)

__all__ = [
    "CLOUDS",
    "COSTS",
    "Found",
    "Setting",
    "between_clouds",
    "cost_ratios",
    "from_noise",
    "identity_gap",
    "ot_cfm",
]

Array = NDArray[Any]
CURVED = {"VP": "vp", "sub-VP": "subvp"}
STEPS = (1, 2, 4, 8, 16, 32)
EULER = {"method": "euler"}
TRAINING: dict[str, Any] = {"lr": 2e-3, "ema": 0.99}  # short runs: 0.999 would still remember how they began
NEVER_TWICE = 0x5EED  # keeps test samples apart from the seeds of training


@dataclass(frozen=True)
class Setting:
    """Sizes of a scale."""

    steps: int
    pairs: int
    test: int
    rounds: int = 2
    fine: int = 30  # steps of the measure of straightness
    batch: int = 256
    curved: tuple[str, ...] = tuple(CURVED)

    @property
    def training(self) -> dict[str, int]:
        """What every training of this scale is given."""
        return {"n_steps": self.steps, "batch_size": self.batch}


@dataclass
class Found:
    """What one seed gave: numbers by claim or name, curves by (figure, method), arrays for pictures."""

    numbers: dict[str, float] = field(default_factory=dict)
    curves: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------- data


def noise(n: int, generator: torch.Generator) -> Tensor:
    """N(0, I)."""
    return torch.randn(n, 2, generator=generator)


def eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    """Equal parts on a circle of radius 5, variance 0.1 each."""
    angles = 2 * torch.pi * torch.randint(8, (n,), generator=generator) / 8
    centers = 5 * torch.stack([torch.cos(angles), torch.sin(angles)], 1)
    return centers + 0.1**0.5 * noise(n, generator)


def moons(n: int, generator: torch.Generator) -> Tensor:
    """Two half circles of radius 3 that reach into one another, with noise 0.2."""
    upper = torch.rand(n, generator=generator) < 0.5
    angle = torch.pi * torch.rand(n, generator=generator)
    arc = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    shape = torch.where(upper[:, None], arc, torch.tensor([1.0, 0.5]) - arc)
    return 3 * shape - 1 + 0.2 * noise(n, generator)


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """The black squares of a board of 4 x 4, side 2."""
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    return 2 * (torch.stack([column, row], 1) + torch.rand(n, 2, generator=generator)) - 4


def spirals(n: int, generator: torch.Generator) -> Tensor:
    """Two arms of one and a half turns."""
    angle = 3 * torch.pi * torch.rand(n, generator=generator).sqrt()
    sign = 2.0 * torch.randint(2, (n,), generator=generator) - 1
    arm = torch.stack([-torch.cos(angle), torch.sin(angle)], 1) * (sign * angle / 2.5)[:, None]
    return arm + 0.1 * noise(n, generator)


CLOUDS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "noise": noise, "eight": eight_gaussians, "moons": moons, "checkerboard": checkerboard, "spirals": spirals
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ measures


def _huber(d: Tensor) -> Tensor:
    lengths = d.norm(dim=1)
    return torch.where(lengths < 1, lengths**2 / 2, lengths - 0.5)


COSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "length": lambda d: d.norm(dim=1),
    "square": lambda d: d.square().sum(1),
    "fourth power": lambda d: d.square().sum(1).square(),
    "Huber": _huber,
    "largest coordinate": lambda d: d.abs().amax(1),
}
"""Convex costs of ``z1 - z0``."""


def cost_ratios(after: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Each convex cost of pairs, divided by that of other pairs."""
    return {name: float(transport_cost(*after, cost) / transport_cost(*before, cost)) for name, cost in COSTS.items()}


def distance(x: Tensor, y: Tensor) -> float:
    """Sliced W2, always along the same directions."""
    return float(sliced_wasserstein(x, y, generator=0))


def optimal_cost(x0: Tensor, x1: Tensor) -> float | None:
    """Exact cost of optimal transport between equal clouds, where POT is installed."""
    if not installed("ot"):
        return None
    import ot

    M = torch.cdist(x0.double(), x1.double()).square().numpy()
    return float(ot.emd2(np.full(len(x0), 1 / len(x0)), np.full(len(x1), 1 / len(x1)), M, numItermax=1_000_000))


@dataclass
class Samples:
    """Fresh samples for measuring: two of each end, so that the floor is seen."""

    x0: Tensor
    x1: Tensor
    again: Tensor

    @classmethod
    def draw(cls, source: str, target: str, n: int, seed: int) -> Samples:
        """Those of a seed."""
        generator = torch.Generator().manual_seed(child_seeds(seed + NEVER_TWICE, 1)[0])
        return cls(*(CLOUDS[name](n, generator) for name in (source, target, target)))

    @property
    def floor(self) -> float:
        """Sliced W2 between two clouds of true samples."""
        return distance(self.again, self.x1)


def first_flow(source: str, target: str, setting: Setting, seed: int, **options: Any) -> FlowFit:
    """A 1-flow on fresh independent pairs."""
    flow = RectifiedFlow(MLPVelocity(2, seed=seed), **options)
    return fit_flow(flow, CLOUDS[source], CLOUDS[target], generator=seed, **setting.training, **TRAINING)


def further_rounds(first: FlowFit, source: str, setting: Setting, seed: int) -> list[FlowFit]:
    """The flow and `rounds - 1` reflows of it, each on fresh pairs of the one before."""
    fits = [first]
    for k in range(1, setting.rounds):
        pairs = {"n_pairs": setting.pairs, "generator": seed + 1000 * k}
        fits.append(reflow(fits[-1].flow, CLOUDS[source], **pairs, **setting.training))
    return fits


# --------------------------------------------------------------------------------------------------------- experiments


def between_clouds(work: tuple[Setting, int]) -> Found:
    """Eight Gaussians to moons: costs, marginals, straightness, distillation."""
    setting, seed = work
    found, test = Found(), Samples.draw("eight", "moons", setting.test, seed)
    fits = further_rounds(first_flow("eight", "moons", setting, seed), "eight", setting, seed)
    ends = [fit.flow.sample(test.x0).x for fit in fits]
    numbers, few = found.numbers, test.x0[:500]
    numbers["marginals"] = distance(ends[0], test.x1) / test.floor
    pairs = [(test.x0, test.x1), *((test.x0, z1) for z1 in ends)]
    for k, (before, after) in enumerate(itertools.pairwise(pairs[:3]), 1):
        ratios = cost_ratios(after, before)
        numbers[f"convex-{k}"] = max(ratios.values())
        found.curves.update({(f"convex costs, {k}-flow", name): [(0, r)] for name, r in ratios.items()})
        if k == 1:
            numbers["convex-square"] = ratios["square"]
    n = min(1000, setting.test)
    optimal = optimal_cost(test.x0[:n], test.x1[:n])
    if optimal is not None:
        numbers["optimal"] = float(transport_cost(test.x0[:n], ends[1][:n])) / optimal
        costs = [float(transport_cost(test.x0[:n], z1[:n])) / optimal for z1 in [test.x1, *ends]]
        found.curves["cost by round", "measured"] = list(enumerate(costs))
        found.curves["cost by round", "optimal transport"] = [(k, 1.0) for k in range(len(costs))]
    S = [float(straightness(fit.flow, few, steps=setting.fine)) for fit in fits]
    one = [distance(fit.flow.sample(test.x0, steps=1, **EULER).x, test.x1) for fit in fits]
    numbers["straightens"], numbers["one-step"] = S[1] / S[0], one[0] / one[1]
    mean_square = float(transport_cost(test.x0, test.x1))
    numbers["law"] = max(min(S[:k]) * k for k in range(1, len(S) + 1)) / mean_square
    found.curves["straightness", "eight Gaussians to moons"] = list(enumerate(S, 1))
    found.curves["straightness", "theory"] = [(k, mean_square / k) for k in range(1, len(S) + 1)]
    found.curves["drift", "accurate solver"] = [(k, distance(z1, test.x1) / test.floor) for k, z1 in enumerate(ends, 1)]
    found.curves["drift", "one step"] = [(k, value / test.floor) for k, value in enumerate(one, 1)]
    numbers["rounds V"] = float(crossing(fits[0].flow, test.x0, test.x1, n_times=16, generator=seed))
    distilled = distill(
        fits[1].flow, eight_gaussians, n_pairs=setting.pairs, generator=seed + 5000, **setting.training, **TRAINING
    )
    end = distilled.flow.sample(test.x0, steps=1, **EULER).x
    numbers["distilled"] = distance(end, test.x1) / distance(ends[0], test.x1)
    found.arrays = _paths([fit.flow for fit in fits[:2]], test)
    return found


def _paths(flows: list[RectifiedFlow], test: Samples) -> dict[str, Array]:
    arrays = {"source": test.x0[:600], "target": test.x1[:600]}
    for k, flow in enumerate(flows, 1):
        kept = flow.sample(test.x0[:120], keep=True)
        assert kept.path is not None
        arrays[f"path_{k}"] = kept.path
    return {name: value.numpy() for name, value in arrays.items()}


def from_noise(work: tuple[Setting, int, str]) -> Found:
    """Noise to moons (or another cloud): linear, reflowed and curved flows by number of steps."""
    setting, seed, target = work
    found, test = Found(), Samples.draw("noise", target, setting.test, seed)
    fits = further_rounds(first_flow("noise", target, setting, seed), "noise", setting, seed)
    S = [float(straightness(fit.flow, test.x0[:500], steps=setting.fine)) for fit in fits]
    found.curves["straightness", f"noise to {target}"] = list(enumerate(S, 1))
    flows = {"1-flow": fits[0].flow, "2-flow": fits[1].flow}
    found.numbers["straightens"] = S[1] / S[0]
    if target != "moons":
        found.arrays = _samples_by_steps(flows, test)
        return found
    for name in setting.curved:
        flows[name] = first_flow("noise", "moons", setting, seed, interpolation=CURVED[name], t_eps=1e-3).flow
    found.arrays = _samples_by_steps(flows, test)
    table: dict[str, dict[int, float]] = {}
    accurate: dict[str, float] = {}
    for name, flow in flows.items():
        table[name] = {n: distance(flow.sample(test.x0, steps=n, **EULER).x, test.x1) for n in STEPS}
        sample = flow.sample(test.x0)
        accurate[name] = distance(sample.x, test.x1)
        found.numbers[f"nfe {name}"] = sample.nfe
        found.curves["error by steps", name] = [(n, value / test.floor) for n, value in table[name].items()]
    best = {n: min(table[name][n] for name in setting.curved) for n in STEPS}
    found.numbers["one-step"] = table["1-flow"][1] / table["2-flow"][1]
    found.numbers["curved-one-step"] = best[1] / table["2-flow"][1]
    found.numbers["curved-four-steps"] = table["1-flow"][4] / best[4]
    found.numbers["curved-straightness"] = float(straightness(flows["VP"], test.x0[:500], steps=setting.fine)) / S[0]
    found.numbers["quality"] = accurate["1-flow"] / min(accurate[name] for name in setting.curved)
    return found


def _samples_by_steps(flows: dict[str, RectifiedFlow], test: Samples) -> dict[str, Array]:
    arrays = {"target": test.x1[:800].numpy()}
    for name, flow in flows.items():
        for n in (1, 2, 8):
            arrays[f"{name} {n}"] = flow.sample(test.x0[:800], steps=n, **EULER).x.numpy()
        arrays[f"{name} accurate"] = flow.sample(test.x0[:800]).x.numpy()
    return arrays


def identity_gap(n: int, seed: int) -> float:
    """Relative gap between the drop of the cost and S + V, exact velocity of independent N(0, I) and N(0, I)."""
    generator = torch.Generator().manual_seed(seed)
    x0, x1 = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for _ in range(2))

    def exact(x: Tensor, t: Tensor) -> Tensor:
        s = t[:, None]
        return (2 * s - 1) * x / (s**2 + (1 - s) ** 2)

    flow = RectifiedFlow(exact)
    total = straightness(flow, x0, steps=50) + crossing(flow, x0, x1, n_times=32, generator=generator)
    drop = transport_cost(x0, x1) - transport_cost(x0, flow.sample(x0).x)
    return abs(float(total / drop) - 1)


def ot_cfm(work: tuple[Setting, int]) -> Found:
    """The rival for straightness: batches paired by exact transport, as many network calls as a 2-flow takes."""
    import ot

    setting, seed = work
    test = Samples.draw("noise", "moons", setting.test, seed)
    fits = further_rounds(first_flow("noise", "moons", setting, seed), "noise", setting, seed)
    nfe = fits[0].flow.sample(noise(4096, torch.Generator().manual_seed(seed))).nfe
    steps = 2 * setting.steps + setting.pairs * nfe // 256

    def coupling(x0: Tensor, x1: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        weights = np.full(len(x0), 1 / len(x0))
        plan = ot.emd(weights, weights, torch.cdist(x0.double(), x1.double()).square().numpy())
        i, j = np.nonzero(plan)
        return torch.from_numpy(i[: len(x0)]), torch.from_numpy(j[: len(x0)])

    flow = RectifiedFlow(MLPVelocity(2, seed=seed))
    rival = fit_flow(flow, noise, moons, n_steps=steps, coupling=coupling, generator=seed, **TRAINING).flow
    found = Found()
    S = {name: float(straightness(f, test.x0[:500], steps=setting.fine)) for name, f in
         {"2-flow": fits[1].flow, "OT-CFM": rival}.items()}  # fmt: skip
    found.numbers = {"ot-cfm": S["2-flow"] / S["OT-CFM"], "steps": float(steps)}
    found.curves = {("rival", name): [(0, value)] for name, value in S.items()}
    for name, f in {"2-flow": fits[1].flow, "OT-CFM": rival}.items():
        one = distance(f.sample(test.x0, steps=1, **EULER).x, test.x1) / test.floor
        found.curves["rival, one step", name] = [(0, one)]
        found.numbers[f"one step {name}"] = one
    return found
