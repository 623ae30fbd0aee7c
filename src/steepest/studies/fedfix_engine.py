"""Whether the engines keep their promises: the same rule on both, failures, speed and memory."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steepest.core.extras import installed
from steepest.core.parallel import ordered_map
from steepest.federated import (
    AsyncFedAvg,
    FailureModel,
    FedAvg,
    FedBuff,
    FederatedResult,
    FedFix,
    FunctionClient,
    RayEngine,
    Reply,
    SimulatedEngine,
    Speeds,
    linear_speeds,
    replay,
)
from steepest.studies import fedfix_flower
from steepest.studies.context import Context
from steepest.studies.provenance import peak_memory

__all__ = ["measure_flower", "measure_real", "measure_simulated"]

CENTERS = np.array([[-2.0, 1.0], [0.5, 3.0], [4.0, -1.0], [1.0, 0.0]])
START = {"w": torch.zeros(2, dtype=torch.float64)}
RULES: dict[str, Any] = {
    "FedAvg": FedAvg,
    "AsyncFedAvg": AsyncFedAvg,
    "FedBuff": lambda: FedBuff(2, restart="immediate"),
    "FedFix": lambda: FedFix(0.3),
}


def noisy(k: int, seconds: float = 0.0) -> FunctionClient:
    """A quadratic client with noise, that sleeps."""
    center = torch.as_tensor(CENTERS[k % 4])

    def fit(model: dict[str, torch.Tensor], task: Any) -> Reply:
        time.sleep(seconds * (1 + task.number % 2))
        draws = torch.Generator().manual_seed(task.seed)
        noise = torch.randn(2, generator=draws, dtype=torch.float64)
        return Reply({"w": 0.2 * (center - model["w"]) + 0.02 * noise})

    return FunctionClient(fit)


def nothing(shape: int) -> FunctionClient:
    """A client that does no work."""
    delta = {"w": torch.zeros(shape)}
    return FunctionClient(lambda model, task: Reply(delta))


def measure_simulated(ctx: Context) -> None:
    """Determinism, resuming and tasks per second of the simulation."""
    times = Speeds([1.0, 0.5, 0.75, 0.2], "lognormal")
    chances = FailureModel(crash=0.05, hang=0.03, nan=0.05)

    def engine() -> SimulatedEngine:
        clients = [noisy(k) for k in range(4)]
        return SimulatedEngine(clients, speeds=times, seed=ctx.seed, failures=chances, task_timeout=3.0)

    same, resumed = [], []
    moments = np.random.default_rng(ctx.seed).uniform(0.1, 11.9, ctx.pick(tiny=2, quick=7, full=7, paper=7))
    for make in RULES.values():
        whole, again = (engine().run(make(), START, until=12.0) for _ in range(2))
        same.append(_equal(whole, again))
        with tempfile.TemporaryDirectory() as folder:
            for moment in moments:
                file = Path(folder) / "run.pt"
                engine().run(make(), START, until=float(moment), checkpoint=file)
                resumed.append(_equal(whole, engine().resume(file, until=12.0)))
    ctx.measured("deterministic", float(np.mean(same)))
    ctx.measured("resume", float(np.mean(resumed)))
    ctx.measured("tasks-per-second", tasks_per_second(ctx.pick(tiny=20.0, quick=200.0, full=800.0, paper=800.0)))


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a.model["w"], b.model["w"]) and a.aggregations == b.aggregations and a.updates == b.updates


def tasks_per_second(until: float) -> float:
    """Tasks of ten clients without work, 650 parameters, per CPU second of the simulation."""
    start = time.process_time()
    return _simulate_nothing(until).n_tasks / (time.process_time() - start)


def _simulate_nothing(until: float) -> FederatedResult:
    engine = SimulatedEngine([nothing(650)] * 10, speeds=linear_speeds(10), record=())
    return engine.run(FedFix(0.2), {"w": torch.zeros(650)}, until=until)


def memory(until: float) -> float:
    """Peak GiB of a fresh process that simulates 1,000 clients of a model with a million parameters."""
    (found,) = ordered_map(_thousand_clients, [until], backend="processes", n_workers=1)
    return found


def _thousand_clients(until: float) -> float:
    def fit(model: dict[str, torch.Tensor], task: Any) -> Reply:
        return Reply({"w": torch.full((1_000_000,), 1e-9 * (task.client + 1))})

    clients = [FunctionClient(fit) for _ in range(1_000)]
    engine = SimulatedEngine(clients, speeds=linear_speeds(1_000), record=())
    engine.run(FedFix(0.05), {"w": torch.zeros(1_000_000)}, until=until)
    return peak_memory() / 2**30


# ----------------------------------------------------------------------------------------------------------- on Ray


def measure_real(ctx: Context) -> None:
    """Replays, emulated times, failures and tasks per second of the distributed engine, and the simulation's memory."""
    ctx.measured("memory", memory(ctx.pick(tiny=0.1, quick=1.5, full=3.0, paper=3.0)))
    names = ["replay", "emulated-ticks", "emulated-loss", "faults-dropped", "faults-loss"]
    if ctx.scale == "tiny" or not installed("ray"):
        for name in names:
            ctx.skipped(name, 'needs ray: pip install "steepest[federated]"' if ctx.scale != "tiny" else "not at tiny")
        return
    ctx.measured("replay", float(np.mean([_replayed(make) for make in RULES.values()])))
    agree, gap = _emulated(8.0)
    ctx.measured("emulated-ticks", agree)
    ctx.measured("emulated-loss", gap)
    exact, loss = _faults()
    ctx.measured("faults-dropped", exact)
    ctx.measured("faults-loss", loss)


def measure_flower(ctx: Context) -> None:
    """Tasks a second beside Flower's, in the same minute, on ten clients that do no work; in seconds of the clock."""
    claims = ("flower", "flower-ray")
    python = ctx.options.get("flower-python", sys.executable if installed("flwr") else None)
    if python is None or ctx.scale == "tiny" or not installed("ray"):
        for claim in claims:
            ctx.skipped(claim, 'needs ray and an environment with Flower: pip install "flwr[simulation]" in one of its '
                        "own, then --option flower-python=its/bin/python")  # fmt: skip
        return
    start = time.perf_counter()
    simulated = _simulate_nothing(200.0).n_tasks / (time.perf_counter() - start)
    # workers answer at once, as Flower's do; a rule in rounds on both
    result = RayEngine([nothing(650)] * 10, workers=2, record=()).run(
        FedAvg(), {"w": torch.zeros(650)}, max_aggregations=100
    )
    real = result.n_tasks / result.time
    with tempfile.TemporaryDirectory() as folder:  # Flower writes where it runs
        told = subprocess.run(
            [os.path.abspath(python), str(Path(fedfix_flower.__file__).resolve()), "20"], cwd=folder, text=True,
            capture_output=True, timeout=600, check=False, env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
        )  # fmt: skip
    if told.returncode:
        for claim in claims:
            ctx.skipped(claim, f"Flower did not run: {told.stderr.strip().splitlines()[-1][:200]}")
        return
    flower = json.loads(told.stdout.splitlines()[-1])["tasks_per_second"]
    ctx.measured("flower", simulated / flower)
    ctx.measured("flower-ray", real / flower)
    ctx.note(f"Tasks without work a second: simulated {simulated:.0f}, Ray {real:.0f}, Flower {flower:.0f}.")


def _replayed(make: Any) -> bool:
    """Whether the log of a run with real seconds makes the same model again."""
    clients = [noisy(k, seconds) for k, seconds in enumerate((0.02, 0.1, 0.05, 0.03))]
    result = RayEngine(clients, workers=4, record=("events",)).run(make(), START, until=1.5)
    return torch.equal(result.model["w"], replay(result, make(), START).model["w"])


def _objective(state: dict[str, torch.Tensor]) -> dict[str, float]:
    return {"loss": float(((state["w"].numpy() - CENTERS) ** 2).sum(1).mean() / 2)}


def _emulated(until: float) -> tuple[float, float]:
    """Share of ticks with the same clients, and the largest relative gap of the losses after equal aggregations."""
    times, clients = [0.4, 0.15, 0.3, 0.1], [noisy(k) for k in range(4)]
    simulated = SimulatedEngine(clients, speeds=times).run(FedFix(0.25), START, until=until, evaluate=_objective)
    real = RayEngine(clients, workers=4, emulate_speeds=times).run(
        FedFix(0.25), START, until=until, evaluate=_objective
    )
    ticks: list[dict[int, list[int]]] = [
        {round(row["time"] / 0.25): list(row["clients"]) for row in result.aggregations} for result in (simulated, real)
    ]
    agree = [ticks[1].get(tick) == clients for tick, clients in ticks[0].items()]
    pairs = zip(simulated.history[1:], real.history[1:], strict=False)
    return float(np.mean(agree)), max(abs(b["loss"] / a["loss"] - 1) for a, b in pairs)


def _faults(until: float = 45.0) -> tuple[float, float]:
    """One of ten clients dies, one hangs, one returns NaN.

    Whether just those are dropped and the run goes on to its end; its final loss beside that of a run without them,
    less 1.
    """

    def broken(kind: str) -> FunctionClient:
        def fit(model: dict[str, torch.Tensor], task: Any) -> Reply:
            if kind == "dies":
                os._exit(1)
            if kind == "hangs":
                time.sleep(3600)
            return Reply({"w": torch.full((2,), torch.nan, dtype=torch.float64)})

        return FunctionClient(fit)

    sound = [noisy(k, 0.03) for k in range(7)]
    places = {2: "dies", 5: "hangs", 9: "nan"}
    left = iter(sound)
    clients = [broken(places[k]) if k in places else next(left) for k in range(10)]
    rule = FedFix(0.2, importance="uniform", max_failures=2)
    result = RayEngine(clients, workers=4, task_timeout=1.0).run(rule, START, until=until, evaluate=_objective)
    dropped = float(sorted(result.dropped) == sorted(places) and result.message == "until")
    alone = RayEngine(sound, workers=4).run(
        FedFix(0.2, importance="uniform"), START, max_aggregations=45, until=60.0, evaluate=_objective
    )
    last = [np.mean([row["loss"] for row in itertools.islice(reversed(r.history), 5)]) for r in (result, alone)]
    return dropped, float(last[0] / last[1] - 1)
