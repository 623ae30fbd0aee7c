import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from steepest.federated import (
    AsyncFedAvg,
    ClientError,
    FailureModel,
    FedAvg,
    FedBuff,
    FedFix,
    FunctionClient,
    Reply,
    Send,
    ServerRule,
    SimulatedEngine,
    Speeds,
    Stop,
    Timer,
    _events,
    linear_speeds,
    replay,
)
from steepest.federated._speeds import mean_ticks
from tests.federated.quadratics import CENTERS, START, TIMES, quadratic, quadratics

RULES = {
    "FedAvg": lambda: FedAvg(fraction=0.75),
    "FedAvg with a deadline": lambda: FedAvg(deadline=0.6),
    "AsyncFedAvg": lambda: AsyncFedAvg(server_lr=0.5),
    "FedBuff": lambda: FedBuff(3),
    "FedBuff at once": lambda: FedBuff(3, restart="immediate", staleness="polynomial", times="observed"),
    "FedFix": lambda: FedFix(0.3, server_optimizer=lambda p: torch.optim.Adam(p, 0.05)),
}
MISHAPS = [
    {"client": 1, "task": 2, "kind": "crash"},
    {"client": 3, "task": 4, "kind": "nan"},
    {"client": 0, "task": 1, "kind": "slow", "factor": 3.0},
    {"client": 2, "task": 3, "kind": "hang"},
]


def engine(**options):
    options = {"speeds": Speeds(TIMES, "lognormal"), "seed": 3, "failures": MISHAPS, "task_timeout": 2.5} | options
    return SimulatedEngine(quadratics(noise=0.1), **options)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def weigh(state):
    return {"sum": float(state["w"].sum())}


@pytest.mark.parametrize("rule", RULES)
def test_the_same_seed_gives_the_same_run_bit_for_bit(rule):
    first, second = (engine().run(RULES[rule](), START, until=9.0, evaluate=weigh) for _ in range(2))
    assert same(first.model, second.model)
    for books in ("history", "aggregations", "updates", "idle", "n_tasks", "bytes_up"):
        assert first[books] == second[books]
    other = engine(seed=4).run(RULES[rule](), START, until=9.0)
    assert not same(first.model, other.model)
    assert torch.equal(START["w"], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("rule", RULES)
def test_interrupted_and_resumed_equals_uninterrupted(rule, tmp_path):
    whole = engine().run(RULES[rule](), START, until=9.0, evaluate=weigh)
    given = RULES[rule]() if rule == "FedFix" else None  # it was made with a callable
    for k, time in enumerate(np.random.default_rng(0).uniform(0.05, 8.9, 7)):
        path = tmp_path / f"{k}.pt"
        engine().run(RULES[rule](), START, until=float(time), evaluate=weigh, checkpoint=path)
        again = engine(seed=99).resume(path, rule=given and RULES[rule](), until=9.0, evaluate=weigh)
        assert same(whole.model, again.model), time
        for books in ("history", "aggregations", "updates", "idle", "n_tasks", "bytes_up", "bytes_down", "dropped"):
            assert whole[books] == again[books], (books, time)
        assert [(f.task.task_id, f.kind, f.time) for f in whole.failures] == [
            (f.task.task_id, f.kind, f.time) for f in again.failures
        ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spilled", [False, True])
def test_a_recorded_log_makes_the_same_model_again(rule, spilled, tmp_path, monkeypatch):
    monkeypatch.setattr(_events, "_PER_FILE", 7)
    record = (tmp_path / "log",) if spilled else ("events",)
    result = engine(record=record).run(RULES[rule](), START, until=9.0)
    again = replay(tmp_path / "log" if spilled else result, RULES[rule](), START)
    assert same(result.model, again.model)
    assert again.nit == result.nit


def test_an_interrupt_in_a_clients_work_costs_nothing(tmp_path):
    whole = SimulatedEngine(quadratics(), speeds=TIMES).run(FedBuff(2), START, until=5.0)
    calls = []

    def interrupted(model, task):
        calls.append(task)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return quadratics()[1].fit(model, task)

    clients = quadratics()
    clients[1] = FunctionClient(interrupted)
    with pytest.raises(KeyboardInterrupt):
        SimulatedEngine(clients, speeds=TIMES).run(FedBuff(2), START, until=5.0, checkpoint=tmp_path / "c.pt")
    again = SimulatedEngine(quadratics(), speeds=TIMES).resume(tmp_path / "c.pt", until=5.0)
    assert same(whole.model, again.model)
    assert whole.aggregations == again.aggregations


def test_checkpoints_come_by_the_clock_and_the_last_whole_one_stays(tmp_path, monkeypatch):
    written = []
    path = tmp_path / "run"
    save = torch.save

    def full_disk(state, file):
        written.append(state["now"])
        if len(written) > 3:
            raise OSError("no space left")
        save(state, file)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        engine().run(FedAvg(), START, until=9.0, checkpoint=path, checkpoint_every=1.0)
    assert len(written) == 4
    assert all(k <= now / 1e9 for k, now in enumerate(written))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    whole = engine().run(FedAvg(), START, until=9.0)
    monkeypatch.setattr(torch, "save", save)
    assert same(engine().resume(path, until=9.0).model, whole.model)


def test_what_a_checkpoint_does_not_fit_is_said(tmp_path):
    path = tmp_path / "run.pt"
    engine().run(FedBuff(2), START, until=2.0, checkpoint=path)
    with pytest.raises(ValueError, match="rule must be of the checkpoint's class FedBuff, got 'FedAvg'"):
        engine().resume(path, rule=FedAvg(), until=3.0)
    with pytest.raises(ValueError, match="n_clients of the checkpoint must be 2, this engine's, got 4"):
        SimulatedEngine(quadratics()[:2]).resume(path, until=3.0)
    state = torch.load(path, weights_only=True)
    torch.save({**state, "format": 99}, path)
    with pytest.raises(ValueError, match="format of the checkpoint must be at most 1, got 99"):
        engine().resume(path, until=3.0)
    torch.save({**state, "engine": "ray"}, path)
    with pytest.raises(ValueError, match="engine of the checkpoint"):
        engine().resume(path, until=3.0)
    engine().run(FedBuff(2, staleness=lambda s: 1.0), START, until=2.0, checkpoint=path)
    with pytest.raises(ValueError, match="rule must be given, for FedBuff cannot be rebuilt"):
        engine().resume(path, until=3.0)


def test_a_client_that_returns_at_a_tick_counts_for_it():
    # 7 * 0.3 is 2.1000000000000001 in floats, and 2.1 / 0.3 is 7.000000000000001
    result = SimulatedEngine(quadratics()[:1], speeds=[2.1]).run(FedFix(0.3), START, until=4.3)
    assert [row["time"] for row in result.aggregations] == [2.1, 4.2]
    assert result.time == 4.3
    assert result.idle == [0.0]


def test_a_clients_draws_do_not_depend_on_the_others():
    def seeds(rule, clients):
        seen = []

        def fit(model, task):
            seen.append((task.number, task.seed))
            return Reply({"w": torch.zeros_like(model["w"])})

        SimulatedEngine([*clients, FunctionClient(fit)], seed=5).run(rule, START, until=6.0)
        return seen

    alone = seeds(FedAvg(), quadratics()[:3])
    assert alone == seeds(AsyncFedAvg(), quadratics()[:3])
    assert len({seed for _, seed in alone}) == len(alone) == 6
    assert all(0 <= seed < 2**63 for _, seed in alone)
    expected = int(np.random.SeedSequence([5, 1, 3, 0]).generate_state(1, np.uint64)[0]) >> 1
    assert alone[0] == (0, expected)


def test_clients_work_from_the_model_that_they_were_sent():
    times = np.array([1.0, 0.5311, 0.7717, 0.2093])  # no two return at once
    model, weights = START["w"].numpy().copy(), times * (1 / times).sum() / 4
    sent, due = [model] * 4, times.copy()
    while due.min() <= 4.1:
        k = int(np.argmin(due))
        model = model + weights[k] * (0.9**3 - 1) * (sent[k] - CENTERS[k])
        sent[k], due[k] = model, due[k] + times[k]
    result = SimulatedEngine(quadratics(), speeds=times).run(AsyncFedAvg(), START, until=4.1)
    np.testing.assert_allclose(result.model["w"].numpy(), model, rtol=0, atol=1e-12)


def test_only_failures_in_a_row_drop_a_client():
    failures = [{"client": 1, "task": k, "kind": "crash"} for k in (0, 1, 3, 4, 6, 7)]
    result = SimulatedEngine(quadratics(), failures=failures).run(AsyncFedAvg(), START, until=12.0)
    assert len(result.failures) == 6
    assert result.dropped == []


def test_a_task_that_takes_longer_than_allowed_is_given_up_at_the_limit():
    slow = [{"client": 0, "task": 1, "kind": "slow", "factor": 1.5}]
    result = SimulatedEngine(quadratics(), failures=slow, task_timeout=1.2).run(FedAvg(), START, until=4.0)
    assert [(f.task.client, f.kind, f.time) for f in result.failures] == [(0, "timeout", 2.2)]


def test_a_resumed_run_keeps_the_order_of_what_comes_at_the_same_time(tmp_path):
    clients = quadratics(noise=0.1)
    whole = SimulatedEngine(clients).run(AsyncFedAvg(), START, until=6.0)
    SimulatedEngine(clients).run(AsyncFedAvg(), START, until=3.5, checkpoint=tmp_path / "c.pt")
    again = SimulatedEngine(clients).resume(tmp_path / "c.pt", until=6.0)
    assert [row["clients"] for row in again.aggregations] == [row["clients"] for row in whole.aggregations]
    assert same(whole.model, again.model)


class Recorder(ServerRule):
    """Sends to client 0 whenever something happened, and notes all it is told."""

    def start(self, clients, model, *, seed):
        self.begin(clients, model)
        self.told = []
        return [Send(0), Timer(1.0, "a"), Timer(0.5, "b")]

    def on_update(self, update, now):
        self.told.append(("update", now, update.started, update.finished, update.task.version))
        return [Send(0, after=0.25)]

    def on_timer(self, tag, now):
        self.told.append((tag, now))
        return []


def test_events_come_in_order_of_time_returns_before_timers():
    rule = Recorder()
    result = SimulatedEngine(quadratics()[:1], speeds=[0.5]).run(rule, START, until=1.3)
    assert rule.told == [("update", 0.5, 0.0, 0.5, 0), ("b", 0.5), ("a", 1.0), ("update", 1.25, 0.75, 1.25, 0)]
    assert result.idle == [0.25]
    assert result.bytes_up == 2 * 16
    assert result.bytes_down == 2 * 16
    assert result.message == "until"


def test_nothing_that_can_happen_any_more_is_a_deadlock():
    hang = [{"client": 1, "task": 0, "kind": "hang"}]
    result = SimulatedEngine(quadratics(), failures=hang).run(FedAvg(), START, max_aggregations=5)
    assert (result.success, result.message) == (False, "deadlock: waiting for clients [1]")
    everyone = [{"client": k, "task": 0, "kind": "hang"} for k in range(4)]
    result = SimulatedEngine(quadratics(), failures=everyone).run(FedFix(1.0), START, max_aggregations=5)
    assert result.message == "deadlock: waiting for clients [0, 1, 2, 3]"
    with_limit = SimulatedEngine(quadratics(), failures=hang, task_timeout=3.0).run(FedAvg(), START, until=6.0)
    assert with_limit.success
    assert [(f.kind, f.time) for f in with_limit.failures] == [("timeout", 3.0)]
    assert [row["time"] for row in with_limit.aggregations] == [4.0, 5.0, 6.0]


@pytest.mark.parametrize(("kind", "reported"), [("crash", "exception"), ("nan", "nonfinite"), ("hang", "timeout")])
def test_a_client_that_keeps_failing_is_dropped_and_its_importance_shared_out(kind, reported):
    failures = [{"client": 2, "task": k, "kind": kind} for k in range(3)]
    for rule in (FedAvg(backoff=0.1), AsyncFedAvg(), FedBuff(4), FedFix(0.5)):
        result = SimulatedEngine(quadratics(), failures=failures, task_timeout=2.0).run(rule, START, until=20.0)
        assert result.dropped == [2]
        assert [f.kind for f in result.failures] == [reported] * 3
        assert rule.importance_ == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
        assert all(2 not in row["clients"] for row in result.aggregations)
        assert result.aggregations[-1]["time"] > 18
        assert torch.isfinite(result.model["w"]).all()
    rule = FedAvg(backoff=0.5)
    run = SimulatedEngine(quadratics(), failures=failures[:2], task_timeout=2.0).run(rule, START, until=20.0)
    assert run.dropped == []
    waits = {"crash": 1.0, "nan": 1.0, "hang": 2.0}[kind]
    assert run.aggregations[0]["time"] == 2 * waits + 0.5 + 1.0 + 1.0  # two failures, two pauses, the work


def test_failures_end_the_run_where_they_are_meant_to():
    failures = [{"client": 2, "task": 1, "kind": "crash"}]
    with pytest.raises(ClientError, match=r"client 2 failed in its task 1 \(exception\): injected crash"):
        SimulatedEngine(quadratics(), failures=failures).run(FedAvg(on_failure="raise"), START, until=5.0)
    result = SimulatedEngine(quadratics(), failures=failures).run(FedAvg(on_failure="drop"), START, until=5.0)
    assert result.dropped == [2]
    result = SimulatedEngine(quadratics(), failures=FailureModel(crash=1.0)).run(FedAvg(), START, until=50.0)
    assert not result.success
    assert "no client is left" in result.message
    assert sorted(result.dropped) == [0, 1, 2, 3]


def test_random_failures_come_as_often_as_told_and_depend_on_the_task_alone():
    model = FailureModel(crash=0.2, hang=0.1, nan=0.1)
    found = [model(0, 1, k) for k in range(4000)]
    kinds = [f and f.kind for f in found]
    assert [kinds.count(k) / 4000 for k in ("crash", "hang", "nan")] == pytest.approx([0.2, 0.1, 0.1], abs=0.03)
    assert found == [model(0, 1, k) for k in range(4000)]


@pytest.mark.parametrize(
    ("broken", "kind", "text"),
    [
        (lambda d: Reply({}), "malformed", r"missing \['w'\]"),
        (lambda d: Reply({"w": d, "v": d}), "malformed", r"unknown \['v'\]"),
        (lambda d: Reply({"w": d[:1]}), "malformed", r"must be \(2,\) torch.float64, got \(1,\)"),
        (lambda d: Reply({"w": d.float()}), "malformed", "torch.float32"),
        (lambda d: Reply({"w": d / 0}), "nonfinite", r"\['w'\]"),
        (lambda d: {"w": d}, "malformed", "must return a Reply, got dict"),
        (lambda d: 1 // 0, "exception", "ZeroDivisionError"),
    ],
)
def test_what_is_broken_is_never_aggregated(broken, kind, text):
    clients = quadratics()
    clients[1] = FunctionClient(lambda model, task: broken(torch.ones(2, dtype=torch.float64)))
    result = SimulatedEngine(clients).run(FedAvg(on_failure="drop"), START, until=4.0)
    (failure,) = result.failures
    assert failure.kind == kind
    assert re.search(text, failure.error)
    without = SimulatedEngine([clients[0], *clients[2:]]).run(FedAvg(), START, until=4.0)
    torch.testing.assert_close(result.model, without.model)


def test_large_finite_values_are_finite():
    big = {"w": torch.full((3,), 3e38)}
    client = FunctionClient(lambda model, task: Reply({"w": torch.full((3,), 2e38)}))
    result = SimulatedEngine([client]).run(FedAvg(server_lr=1e-30), {"w": torch.zeros(3)}, until=1.0)
    assert result.nit == 1
    assert not result.failures
    assert math.isinf(big["w"].sum())


def test_a_rule_can_end_the_run_and_a_callback_too():
    class Once(Recorder):
        stops_itself = True

        def on_update(self, update, now):
            return [Stop("enough")]

    assert SimulatedEngine(quadratics()[:1]).run(Once(), START).message == "enough"
    seen = []

    def stop(intermediate_result):
        seen.append(intermediate_result.nit)
        if len(seen) == 3:
            raise StopIteration

    result = SimulatedEngine(quadratics()).run(FedAvg(), START, until=50.0, callback=stop)
    assert (result.message, result.nit, seen) == ("callback", 3, [1, 2, 3])
    result = SimulatedEngine(quadratics()).run(FedAvg(), START, max_aggregations=2, evaluate=weigh, evaluate_every=3)
    assert (result.message, result.nit) == ("max_aggregations", 2)
    assert [row["version"] for row in result.history] == [0, 2]


def test_a_rule_is_not_allowed_what_makes_no_sense():
    class Twice(Recorder):
        def start(self, clients, model, *, seed):
            self.begin(clients, model)
            return [Send(0), Send(0)]

    with pytest.raises(ValueError, match="client of a Send must be one that is not at work, got 0"):
        SimulatedEngine(quadratics()).run(Twice(), START, until=1.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"speeds": [1.0]}, r"speeds must be one per client \(4\), got '1 values'"),
        ({"speeds": [1.0, 2.0, 0.0, 1.0]}, "speeds must be a list of positive, finite seconds"),
        ({"failures": [{"client": 0, "task": 0, "kind": "burn"}]}, "kind of a failure must be one of 'crash'"),
        ({"failures": [{"client": 9, "task": 0, "kind": "crash"}]}, "client of a failure"),
        ({"failures": [{"client": 0}]}, "failures must be dicts with"),
        ({"task_timeout": 0}, "task_timeout must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_engines_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        SimulatedEngine(quadratics(), **options)


def test_bad_runs_are_refused():
    with pytest.raises(ValueError, match="clients must be at least one client"):
        SimulatedEngine([])
    with pytest.raises(TypeError, match=r"clients\[0\] must be a Client"):
        SimulatedEngine([object()])
    ready = SimulatedEngine(quadratics())
    with pytest.raises(ValueError, match="until or max_aggregations must be given"):
        ready.run(FedAvg(), START)
    with pytest.raises(ValueError, match="until must be"):
        ready.run(FedAvg(), START, until=math.nan)
    with pytest.raises(ValueError, match="checkpoint must be a path"):
        ready.run(FedAvg(), START, until=1.0, checkpoint_every=1.0)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module or a dict of tensors"):
        ready.run(FedAvg(), [1.0], until=1.0)
    with pytest.raises(ValueError, match="model must be finite"):
        ready.run(FedAvg(), {"w": torch.tensor([math.nan])}, until=1.0)
    with pytest.raises(ValueError, match="record must be made of"):
        SimulatedEngine(quadratics(), record=("everything",)).run(FedAvg(), START, until=1.0)


@pytest.mark.parametrize("law", ["exponential", "lognormal"])
def test_laws_of_speed_keep_the_mean_and_ticks_are_expected_rightly(law):
    speeds = Speeds([2.0, 0.5], law, 0.8)
    drawn = np.array([speeds.duration(1, 0, k) for k in range(20_000)])
    assert drawn.mean() == pytest.approx(2.0, rel=0.03)
    for window in (0.3, 2.0, 11.0):
        expected = np.ceil(drawn / window).mean()
        assert mean_ticks(speeds.info(0, 1), window) == pytest.approx(expected, rel=0.03)
    constant = Speeds([2.1])
    assert mean_ticks(constant.info(0, 1), 0.3) == 7.0  # in floats 2.1 / 0.3 is 7.000000000000001
    drawn_info = replace(speeds.info(0, 1), law="drawn", draws=tuple(drawn))
    assert mean_ticks(drawn_info, 0.3) == pytest.approx(np.ceil(drawn / 0.3).mean(), rel=1e-6)


def test_speeds_of_a_function():
    result = SimulatedEngine(
        quadratics(), speeds=lambda client, number, rng: math.inf if client == 1 and number == 2 else 1.0 + rng.random()
    ).run(FedFix(1.0), START, until=12.0)
    seconds = [row["time"] - row["started"] for row in result.updates]
    assert 1 <= min(seconds) < max(seconds) < 2
    assert sum(row["client"] == 1 for row in result.updates) == 2
    assert linear_speeds(3, slowest=2.0, spread=0.5).tolist() == [2.0, 1.5, 1.0]


def test_quadratic_clients_do_what_they_say():
    w = torch.tensor([1.0, 1.0], dtype=torch.float64)
    delta = quadratic([0.0, 2.0], rate=0.1, steps=2).fit({"w": w}, None).delta["w"]
    assert (w + delta).tolist() == pytest.approx([0.81, 1.19])
