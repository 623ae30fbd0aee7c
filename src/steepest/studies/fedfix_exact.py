"""What holds exactly or in closed form: limits of the rules, the surrogate that they minimise, FedAvg by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from steepest.federated import (
    AsyncFedAvg,
    FedAvg,
    FedBuff,
    FedFix,
    FunctionClient,
    Reply,
    SimulatedEngine,
    expected_weights,
    linear_speeds,
    make_clients,
    weight_report,
)
from steepest.studies.context import Context
from steepest.studies.fedfix_training import digits_federation

__all__ = ["measure"]

F80 = linear_speeds(10)
START = {"w": torch.zeros(3, dtype=torch.float64)}
BIASED = {"async": AsyncFedAvg, "fedfix": lambda **options: FedFix(0.5, **options)}


def quadratics(centers: np.ndarray, rate: float, steps: int = 5) -> list[FunctionClient]:
    """Clients with losses ``|w - c_i|^2 / 2``, whose local descent has a closed form."""
    shrunk = (1 - rate) ** steps - 1

    def client(center: np.ndarray) -> FunctionClient:
        c = torch.as_tensor(center)
        return FunctionClient(lambda model, task: Reply({"w": shrunk * (model["w"] - c)}))

    return [client(center) for center in centers]


def path(rule: Any, clients: Sequence[Any], speeds: Any, **stop: Any) -> np.ndarray:
    """The models after each aggregation."""
    kept: list[np.ndarray] = []
    SimulatedEngine(clients, speeds=speeds, record=()).run(
        rule, START, callback=lambda intermediate_result: kept.append(intermediate_result.model["w"].numpy()), **stop
    )
    return np.array(kept)


def measure(ctx: Context) -> None:
    """Measure; see the module."""
    centers = np.random.default_rng(ctx.seed).normal(size=(10, 3))
    ctx.measured("limits", _limits(centers))
    ctx.measured("by-hand", _by_hand(ctx.seed))
    until = ctx.pick(tiny=60.0, quick=400.0, full=1500.0, paper=1500.0)
    p = np.full(10, 0.1)
    worst: dict[str, list[float]] = {"identical": [], "unbiased": []}
    for name, make in BIASED.items():
        qt = expected_weights(make(weights="identical"), F80, p)
        surrogate, intended = qt @ centers, p @ centers
        for weights, goal in (("identical", surrogate), ("unbiased", intended)):
            rule = make(weights=weights, importance="uniform")
            models = path(rule, quadratics(centers, 0.002), F80, until=until)
            late = models[len(models) // 2 :].mean(0)
            worst[weights].append(float(np.linalg.norm(late - goal) / np.linalg.norm(surrogate - intended)))
            engine = SimulatedEngine(quadratics(centers, 0.002), speeds=F80, record=("aggregations",))
            report = weight_report(engine.run(rule, START, until=100.0), p)
            title = "asynchronous" if name == "async" else "FedFix, 0.5"
            ctx.series("applied weights", list(zip(F80, report.q_normalised, strict=True)),
                       method=f"{title}, {weights}")  # fmt: skip
            if weights == "identical":
                ctx.measured(f"chi2-{name}", report.chi2_importance)
                ctx.series("applied weights", list(zip(F80, qt, strict=True)), method=f"{title}, theory")
                ctx.note(f"{title}, identical weights: chi-square {report.chi2_importance:.4g} with p below, "
                         f"{report.chi2:.4g} with the applied weights below.")  # fmt: skip
            else:
                worst.setdefault("chi2", []).append(report.chi2)
    ctx.measured("surrogate-identical", max(worst["identical"]))
    ctx.measured("surrogate-unbiased", max(worst["unbiased"]))
    ctx.measured("chi2-unbiased", max(worst["chi2"]))


def _limits(centers: np.ndarray) -> float:
    """The largest difference between rules that must be the same."""
    clients, stop = quadratics(centers, 0.05), {"max_aggregations": 20}
    fedavg = path(FedAvg(), clients, F80, **stop)
    same: list[np.ndarray] = [path(rule, clients, F80, **stop) - fedavg for rule in (FedFix(1.0), FedBuff(10))]
    one, alone = quadratics(centers[:1], 0.05), [1.0]
    steps = 1 - 0.95 ** (5 * np.arange(1, 21))[:, None]
    rules: tuple[Callable[[], Any], ...] = (FedAvg, AsyncFedAvg, lambda: FedBuff(1), lambda: FedFix(0.5))
    same += [path(make(), one, alone, **stop) - steps * centers[0] for make in rules]
    return float(max(np.abs(gap).max() for gap in same))


def _by_hand(seed: int) -> float:
    """Difference of the final losses of `FedAvg` and of averaging written out, after three rounds on digits."""
    there = digits_federation(seed)
    X, y = there.data
    network = there.network
    start = {name: value.clone() for name, value in network.state_dict().items()}
    clients = make_clients(network, there.data, there.parts, F.cross_entropy, steps=4, batch_size=None,
                           optimizer=lambda p: torch.optim.SGD(p, 0.05))  # fmt: skip
    ours = SimulatedEngine(clients, seed=seed).run(FedAvg(), network, max_aggregations=3).model
    model = start
    for _ in range(3):
        mean = {name: torch.zeros_like(value) for name, value in model.items()}
        for part in there.parts:
            network.load_state_dict(model)
            for _ in range(4):
                gradients = torch.autograd.grad(F.cross_entropy(network(X[part]), y[part]), list(network.parameters()))
                with torch.no_grad():
                    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                        parameter.sub_(0.05 * gradient)
            for name, value in network.state_dict().items():
                mean[name] += value * (len(part) / len(y))
        model = mean
    return abs(there.loss(ours) - there.loss(model))
