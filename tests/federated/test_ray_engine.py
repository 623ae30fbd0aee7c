import os
import time

import pytest
import torch

from steepest.core.errors import SteepestWarning
from steepest.federated import (
    AsyncFedAvg,
    FedAvg,
    FedBuff,
    FedFix,
    FunctionClient,
    RayEngine,
    Reply,
    SimulatedEngine,
    replay,
)
from tests.federated.quadratics import CENTERS, START, quadratics

pytestmark = pytest.mark.slow


def asleep(center, seconds):
    """A quadratic client that takes a while."""
    c = torch.as_tensor(center, dtype=torch.float64)

    def fit(model, task):
        time.sleep(seconds * (1 + task.number % 2))
        return Reply({"w": 0.2 * (c - model["w"])})

    return FunctionClient(fit)


class Counter:
    """Remembers how often it worked, which it returns as its delta."""

    n_samples = 1

    def __init__(self):
        self.count = 0

    def fit(self, model, task):
        if task.number == 2 and task.attempt == 0:
            os._exit(1)
        self.count += 1
        return Reply({"w": torch.full((2,), float(self.count), dtype=torch.float64)})

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_a_rule_in_step_gives_the_same_model_on_both_engines(ray):
    clients = quadratics(noise=0.3)
    simulated = SimulatedEngine(clients, seed=7).run(FedAvg(), START, max_aggregations=5)
    real = RayEngine(clients, workers=2, seed=7).run(FedAvg(), START, max_aggregations=5)
    assert same(simulated.model, real.model)
    assert [row["weights"] for row in real.aggregations] == [row["weights"] for row in simulated.aggregations]
    assert (real.n_tasks, real.bytes_up, real.message) == (
        simulated.n_tasks, simulated.bytes_up, simulated.message,
    )  # fmt: skip
    assert ray.is_initialized()


@pytest.mark.parametrize(
    "make",
    [AsyncFedAvg, lambda: FedBuff(3, restart="immediate"), lambda: FedFix(0.15)],
    ids=["AsyncFedAvg", "FedBuff", "FedFix"],
)
def test_a_replay_of_a_real_run_makes_the_same_model(ray, make):
    clients = [asleep(c, s) for c, s in zip(CENTERS, (0.02, 0.1, 0.05, 0.03), strict=True)]
    result = RayEngine(clients, workers=2, record=("events", "aggregations")).run(make(), START, until=1.5)
    assert result.nit >= 5
    assert len({tuple(row["clients"]) for row in result.aggregations}) > 1
    assert same(result.model, replay(result, make(), START).model)
    assert 1.5 <= result.time < 1.7


def test_one_dies_one_hangs_one_returns_nan_and_the_run_goes_on(ray):
    def broken(kind):
        def fit(model, task):
            if kind == "dies":
                os._exit(1)
            if kind == "hangs":
                time.sleep(60)
            return Reply({"w": torch.full((2,), float("nan"), dtype=torch.float64)})

        return FunctionClient(fit)

    sound = [asleep(CENTERS[k % 4], 0.03) for k in range(7)]
    clients = [*sound[:2], broken("dies"), *sound[2:4], broken("hangs"), *sound[4:], broken("nan")]
    engine = RayEngine(clients, workers=4, task_timeout=1.0)
    rule = FedFix(0.2, max_failures=2, importance="uniform")
    goal = torch.as_tensor(CENTERS[[0, 1, 2, 3, 0, 1, 2]].mean(0))

    def until_settled(intermediate_result):
        distance = float((rule.model["w"] - goal).norm())
        if len(rule.dropped) == 3 and distance < 0.1 * float(goal.norm() + 1):
            raise StopIteration

    result = engine.run(rule, START, until=90.0, callback=until_settled)
    assert result.message == "callback"
    assert sorted(result.dropped) == [2, 5, 9]
    assert {(f.task.client, f.kind) for f in result.failures} == {(2, "died"), (5, "timeout"), (9, "nonfinite")}


def test_a_reply_that_dies_with_its_process_is_not_a_failure_of_its_client(ray):
    def dies(model, task):
        os._exit(1)

    clients = [*quadratics()[:3], FunctionClient(dies)]  # it kills while the others' replies may be on the way
    engine = RayEngine(clients, workers=1)
    result = engine.run(FedAvg(max_failures=2), START, max_aggregations=6)
    assert result.dropped == [3]
    assert [(f.task.client, f.kind) for f in result.failures] == [(3, "died")] * 2


def test_a_client_that_died_comes_back_as_it_was_and_a_restarted_server_goes_on(ray, tmp_path):
    clients = [Counter(), *quadratics()[:2]]
    engine = RayEngine(clients, workers=3)
    first = engine.run(FedAvg(), START, max_aggregations=4, checkpoint=tmp_path / "run.pt")
    assert [(f.task.client, f.task.number, f.kind) for f in first.failures] == [(0, 2, "died")]
    assert first.dropped == []
    again = RayEngine(clients, workers=3).resume(tmp_path / "run.pt", max_aggregations=6)
    assert again.nit == 6
    undisturbed = []

    def counted(model, task):
        undisturbed.append(task)
        return Reply({"w": torch.full((2,), float(len(undisturbed)), dtype=torch.float64)})

    whole = SimulatedEngine([FunctionClient(counted), *quadratics()[:2]]).run(FedAvg(), START, max_aggregations=6)
    torch.testing.assert_close(again.model, whole.model)


def test_emulated_times_are_the_simulated_ones_and_a_hang_without_limit_is_said(ray):
    times = [0.4, 0.15, 0.35, 0.1]
    simulated = SimulatedEngine(quadratics(), speeds=times).run(FedFix(0.25), START, until=2.6)
    real = RayEngine(quadratics(), workers=4, emulate_speeds=times).run(FedFix(0.25), START, until=2.6)
    ticks = {round(row["time"] / 0.25): row["clients"] for row in simulated.aggregations}
    agree = [row["clients"] == ticks[round(row["time"] / 0.25)] for row in real.aggregations]
    assert sum(agree) >= len(ticks) - 3  # a busy machine may be late at a tick
    clients = [*quadratics()[:1], FunctionClient(lambda model, task: time.sleep(20))]
    with pytest.warns(SteepestWarning, match="client 1 has worked for .* set task_timeout"):
        RayEngine(clients, workers=2).run(FedFix(0.5), START, until=7.0)
