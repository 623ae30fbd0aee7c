"""Tests of the tuning protocol."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from steepest.studies import task as task_module
from steepest.studies.training import (
    Budget,
    Contender,
    Curvature,
    Task,
    compare,
    decay_groups,
    fresh_model,
    learning_rates,
    schedule,
    speedup,
    steps_to_reach,
    train,
    tune,
)


class Recorder:
    """Stands for a study's context."""

    seed = 0

    def __init__(self):
        self.kept, self.fractions, self.notes, self.labels = [], [], [], []

    def timed(self, label, fn):
        self.labels.append(label)
        return fn()

    def series(self, name, values, *, method=None, seed=None):
        self.kept.append((name, method, seed, list(values)))

    def progress(self, fraction, **numbers):
        self.fractions.append(fraction)

    def note(self, text):
        self.notes.append(text)


class Counter(torch.optim.Optimizer):
    """Adds lr to the first element at every step: after n steps of a constant schedule it is n lr."""

    def __init__(self, params, lr, pace=1.0, **others):
        super().__init__(params, {"lr": lr, "pace": pace, **others})

    @torch.no_grad()
    def step(self, closure=None):
        group = self.param_groups[0]
        group["params"][0].view(-1)[0] += group["pace"]


def power_law_task(exponent=0.3, score=None):
    """A model whose loss after n counted steps is 10 n^-exponent, or whatever `score(optimizer setting)` says."""

    def model(seed):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    return Task(
        name="power",
        model=model,
        batches=lambda seed, steps: ((torch.ones(1, 1), torch.ones(1, 1)) for _ in range(steps)),
        evaluate=lambda m, split: 10 * float(m.weight.detach()) ** -exponent,
        metric="loss",
        loss=lambda m, x, y: (m(x) - y).square().mean(),
    )


def scored_task(score, better="lower"):
    """A task that judges a run by the setting it was made with; the learning rate is that of the full schedule."""
    seen = {}

    class Remember(torch.optim.SGD):
        def __init__(self, params, lr, **others):
            super().__init__(params, lr=0.0)
            seen["setting"] = {"lr": lr, **others}

    task = Task(
        name="scored",
        model=lambda seed: nn.Linear(2, 1),
        batches=lambda seed, steps: ((torch.ones(1, 2), torch.ones(1, 1)) for _ in range(steps)),
        evaluate=lambda m, split: score(**seen["setting"]),
        metric="score",
        better=better,
        loss=lambda m, x, y: m(x).square().mean(),
    )
    return task, Remember


def regression_task(better="lower"):
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])

    def batches(seed, steps):
        g = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            rows = torch.randint(64, (8,), generator=g)
            yield x[rows], y[rows]

    @torch.no_grad()
    def evaluate(m, split):
        half = slice(0, 32) if split == "tune" else slice(32, 64)
        return float((m(x[half]) - y[half]).square().mean())

    def model(seed):
        return fresh_model(lambda: nn.Linear(3, 1), seed)

    return Task("regression", model, batches, evaluate, "mse", loss=lambda m, a, b: (m(a) - b).square().mean())


def sgd(name="SGD", lr=0.1, **space):
    return Contender(
        name, lambda params, lr, weight_decay=0.0: torch.optim.SGD(params, lr=lr, weight_decay=weight_decay), lr, space
    )


# --------------------------------------------------------------------------------------------------------- exact


def test_schedule_warms_up_linearly_and_ends_at_five_percent():
    values = [schedule(t, 300) for t in range(300)]
    assert values[:15] == pytest.approx([(t + 1) / 15 for t in range(15)])
    assert values[15] == 1.0
    assert values[-1] == pytest.approx(0.05)
    middle = 15 + 284 // 2
    assert values[middle] == pytest.approx(0.05 + 0.95 * 0.5)
    assert all(a > b for a, b in pairwise(values[15:]))


@pytest.mark.parametrize("target", [8.0, 3.0, 1.7])
def test_steps_to_reach_is_exact_for_a_power_law(target):
    steps = [75, 100, 150, 200, 300]
    losses = [20 * n**-0.4 for n in steps]
    expected = (20 / target) ** (1 / 0.4)
    assert steps_to_reach(target, steps, losses) == pytest.approx(max(75.0, expected), rel=1e-12)


def test_steps_to_reach_takes_the_first_crossing_and_is_infinite_without_progress():
    assert steps_to_reach(2.0, [10, 20, 40], [3.0, 1.9, 2.5]) < 20
    assert steps_to_reach(1.0, [10, 20], [2.0, 2.0]) == math.inf
    assert steps_to_reach(5.0, [10, 20], [4.0, 2.0]) == 10.0


def test_speedup_of_an_optimizer_that_counts_twice_as_fast_is_two():
    task = power_law_task()
    slow = Contender("slow", Counter, 1.0, {})
    fast = Contender("fast", Counter, 1.0, {"pace": (2.0,)})
    baseline = [train(task, slow, {"lr": 1.0}, steps=240, seed=s) for s in (1, 2)]
    tuned = tune(task, fast, n_trials=2, steps=24)
    full = [train(task, fast, tuned.setting, steps=240, seed=s) for s in (1, 2)]
    factors, runs = speedup(task, tuned, baseline, full, steps=240)
    assert factors == pytest.approx([2.0, 2.0], rel=1e-9)
    assert [len(r) for r in runs] == [5, 5]
    halves, _ = speedup(task, tune(task, slow, n_trials=2, steps=24), full, baseline, steps=240)
    assert halves == pytest.approx([0.5, 0.5], rel=1e-9)  # beyond the longest run the power law goes on


def test_learning_rates_are_centred_and_log_spaced():
    assert learning_rates(0.01, 4.0, 2) == pytest.approx([0.005, 0.02])
    rates = learning_rates(0.01, 3.0, 5)
    assert rates[2] == pytest.approx(0.01)
    assert np.diff(np.log(rates)) == pytest.approx([math.log(3.0)] * 4)


def test_decay_groups_decay_weights_of_layers_alone():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Conv1d(3, 2, 1), nn.BatchNorm1d(2))
    decayed, others = decay_groups(model)
    assert {id(p) for p in decayed["params"]} == {id(model[1].weight), id(model[3].weight)}
    assert others["weight_decay"] == 0.0
    assert sum(p.numel() for g in (decayed, others) for p in g["params"]) == sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize("n_trials", [2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("space", [{}, {"weight_decay": (0.1, 0.0)}, {"a": (1, 2, 3), "b": (1, 2, 3, 4)}])
@pytest.mark.parametrize("best_lr", [1e-5, 1e-2, 10.0])
def test_every_contender_spends_the_same_number_of_trials(n_trials, space, best_lr):
    task, make = scored_task(lambda lr, **others: 1 + abs(math.log(lr / best_lr)) + sum(others.values()))
    tuned = tune(task, Contender("c", make, 1e-2, space), n_trials=n_trials, steps=1)
    assert len(tuned.trials) == n_trials
    assert len({tuple(sorted(run.setting.items())) for run in tuned.trials}) == n_trials  # no trial is spent twice
    assert min(run.value for run in tuned.trials) == next(r.value for r in tuned.trials if r.setting == tuned.setting)


def test_a_best_rate_at_the_edge_moves_the_grid_once():
    task, make = scored_task(lambda lr, weight_decay: 1 + abs(math.log10(lr / 10.0)))
    tuned = tune(task, Contender("c", make, 1e-2, {"weight_decay": (0.1, 0.0)}, ratio=10.0), n_trials=6, steps=1)
    tried = sorted({round(math.log10(r.setting["lr"]), 6) for r in tuned.trials})
    assert tried[:4] == [-3.0, -2.0, -1.0, 0.0]
    assert any("centred anew on 0.1" in r for r in tuned.remarks)
    inside, make = scored_task(lambda lr, weight_decay: 1 + abs(math.log10(lr / 1e-2)))
    again = tune(inside, Contender("c", make, 1e-2, {"weight_decay": (0.1, 0.0)}, ratio=10.0), n_trials=6, steps=1)
    assert not again.remarks
    assert again.setting["lr"] == pytest.approx(1e-2)


def test_the_other_hyperparameters_are_tried_one_at_a_time_and_the_rest_is_told():
    task, make = scored_task(lambda lr, a, b: 10 + abs(math.log(lr / 1e-2)) - (a == 2) - (b == 5))
    tuned = tune(task, Contender("c", make, 1e-2, {"a": (1, 2), "b": (4, 5, 6)}), n_trials=6, steps=1)
    assert (tuned.setting["a"], tuned.setting["b"]) == (2, 5)
    short = tune(task, Contender("c", make, 1e-2, {"a": (1, 2), "b": (4, 5, 6)}), n_trials=4, steps=1)
    assert any("b=5" in r and "b=6" in r for r in short.remarks)


def test_what_moves_the_best_rate_is_tried_before_it():
    task, make = scored_task(lambda lr, b, w: 3 - (b == 2) + abs(math.log2(lr / (0.08 if b == 2 else 0.005))) / 10 + w)
    space = {"w": (0, 1), "b": (1, 2)}
    tuned = tune(task, Contender("c", make, 0.04, space, ratio=2.0, first=("b",)), n_trials=6, steps=1)
    assert len(tuned.trials) == 6
    assert tuned.setting == {"lr": pytest.approx(0.08), "b": 2, "w": 0}
    assert [run.setting["b"] for run in tuned.trials[:3]] == [1, 2, 2]


def test_higher_is_better_turns_the_selection_around():
    task, make = scored_task(lambda lr: 50 - abs(math.log(lr / 3e-2)), better="higher")
    tuned = tune(task, Contender("c", make, 3e-2, {}, ratio=10.0), n_trials=6, steps=1)
    assert tuned.setting["lr"] == pytest.approx(3e-2)
    assert task.worst == -math.inf


def test_compare_reports_paired_gains_on_fresh_seeds():
    ctx, task = Recorder(), regression_task()
    contenders = [sgd("good", 0.1), sgd("slow", 1e-4)]
    wanted = Budget(n_trials=6, steps=400, n_seeds=5)
    result = compare(ctx, task, contenders, Budget(2, 40, 3), wanted=wanted, span=(0.2, 0.8))
    assert [r.seed for r in result.runs["good"]] == [1, 2, 3]
    assert {run.seed for t in result.tuned.values() for run in t.trials} == {0}
    gain, (low, high) = result.gain("good", "slow")
    expected = np.mean(np.subtract(result.values("slow"), result.values("good")))
    assert gain == pytest.approx(expected)
    assert 0 < low <= gain <= high
    assert result.best(["slow", "good"]) == "good"
    assert [(k[0], k[1], k[2]) for k in ctx.kept] == [
        ("loss", name, seed) for seed in (1, 2, 3) for name in ("good", "slow")
    ]
    assert ctx.labels == ["good", "slow"] * 3
    assert ctx.fractions[-1] == pytest.approx(0.8)
    assert ctx.fractions == sorted(ctx.fractions)
    assert any(
        "3 seeds instead of 5, 2 trials per optimizer instead of 6, 40 steps instead of 400" in n for n in ctx.notes
    )
    assert not Budget(6, 400, 5).cut_from(wanted)


# ---------------------------------------------------------------------------------------------------- properties


def test_a_run_depends_on_its_seed_alone():
    task, state = regression_task(), torch.get_rng_state()
    one, two, other = (train(task, sgd(), {"lr": 0.1}, steps=30, seed=s) for s in (1, 1, 2))
    assert one.value == two.value
    assert one.losses == two.losses
    assert one.value != other.value
    assert torch.equal(state, torch.get_rng_state())


def test_the_two_halves_judge_differently():
    task = regression_task()
    a = train(task, sgd(), {"lr": 0.01}, steps=10, seed=1, split="tune")
    b = train(task, sgd(), {"lr": 0.01}, steps=10, seed=1, split="held-out")
    assert a.losses == b.losses
    assert a.value != b.value


def test_the_training_curve_averages_between_its_points():
    task, losses = regression_task(), []
    plain = task.loss

    def spy(m, x, y):
        loss = plain(m, x, y)
        losses.append(float(loss.detach()))
        return loss

    spied = Task("regression", task.model, task.batches, task.evaluate, "mse", loss=spy)
    run = train(spied, sgd(), {"lr": 0.1}, steps=40, seed=1, n_points=10)
    assert run.steps == list(range(4, 41, 4))
    assert run.losses == pytest.approx(np.reshape(losses, (10, 4)).mean(1))


def test_the_rate_follows_the_schedule_and_gradients_are_clipped():
    task, rates, norms = regression_task(), [], []

    def watch(step, model, optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        norms.append(float(torch.cat([p.grad.ravel() for p in model.parameters()]).norm()))

    train(task, sgd(), {"lr": 0.3}, steps=40, seed=1, clip=0.5, watch=watch)
    assert rates == pytest.approx([0.3 * schedule(t, 40) for t in range(40)])
    assert max(norms) <= 0.5 * (1 + 1e-5)


def test_clipping_is_torchs():
    ours = [torch.randn(3, 4), torch.randn(5), torch.zeros(2)]
    for scale in (1.0, 1e-3):
        params = [nn.Parameter(torch.zeros_like(g)) for g in ours]
        for p, g in zip(params, ours):
            p.grad = scale * g
        mine = [p.grad.clone() for p in params]
        nn.utils.clip_grad_norm_(params, 0.7)
        task_module._clip(mine, 0.7)
        for p, g in zip(params, mine):
            torch.testing.assert_close(g, p.grad, rtol=1e-6, atol=0)


def test_a_diverged_run_is_the_worst():
    assert train(regression_task(), sgd(), {"lr": 1e20}, steps=40, seed=1, clip=None).value == math.inf


class Asking(torch.optim.SGD):
    """Asks for curvature every third step and writes down what it is given."""

    def __init__(self, params, lr, calls):
        super().__init__(params, lr=lr)
        self.calls, self.t = calls, 0

    def hessian_due(self):
        return self.t % 3 == 0

    def update_hessian(self, loss, *, batch_size=None, weight=1.0):
        self.calls.append((float(loss.detach()), batch_size, weight))

    def step(self, closure=None):
        self.t += 1
        return super().step(closure)


def classifier_task(model):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    y = torch.arange(20) % 4
    return Task(
        "classes", lambda seed: model, lambda seed, steps: ((x, y) for _ in range(steps)), lambda m, split: 1.0, "loss"
    )


@pytest.mark.parametrize(("kind", "size"), [("gnb", 5), ("hutchinson", None)])
def test_estimates_see_their_share_of_the_batch_when_they_are_due(kind, size):
    pytest.importorskip("steepest.curvature.diagonal")
    calls = []
    contender = Contender("c", lambda params, lr: Asking(params, lr, calls), 0.1, {}, Curvature(kind, share=0.25))
    train(classifier_task(nn.Linear(3, 4)), contender, {"lr": 0.1}, steps=7, seed=0)
    assert len(calls) == 3
    assert {c[1] for c in calls} == {size}


def test_an_estimate_leaves_running_statistics_alone():
    pytest.importorskip("steepest.curvature.diagonal")

    def statistics(curvature):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
        c = Contender("c", lambda params, lr: Asking(params, lr, []), 0.1, {}, curvature)
        train(classifier_task(model), c, {"lr": 0.1}, steps=4, seed=0)
        return model[1].running_mean.clone(), int(model[1].num_batches_tracked)

    plain, counted = statistics(None)
    for kind in ("gnb", "hutchinson"):
        mean, count = statistics(Curvature(kind))
        assert torch.equal(plain, mean)
        assert count == counted == 4


def test_gradients_keep_their_graph_when_a_peer_wants_it():
    graphs = []

    class Peer(torch.optim.SGD):
        def step(self, closure=None):
            graphs.append(self.param_groups[0]["params"][0].grad.requires_grad)
            for p in self.param_groups[0]["params"]:
                p.grad = p.grad.detach()
            return super().step(closure)

    c = Contender("c", lambda params, lr: Peer(params, lr=lr), 0.1, {}, Curvature("create_graph", each=3))
    train(classifier_task(nn.Linear(3, 4, bias=False)), c, {"lr": 0.1}, steps=5, seed=0)
    assert graphs == [True, False, False, True, False]


# -------------------------------------------------------------------------------------------------------- misuse


def test_misuse_is_named():
    with pytest.raises(ValueError, match="n_trials must be an integer >= 2, got 1"):
        Budget(1, 10, 1)
    with pytest.raises(ValueError, match="contenders must be of different names"):
        compare(Recorder(), regression_task(), [sgd(), sgd()], Budget(2, 4, 1))
    with pytest.raises(ValueError, match="steps must be at least two increasing lengths"):
        steps_to_reach(1.0, [10, 10], [2.0, 1.0])
    with pytest.raises(ValueError, match="losses must be positive"):
        steps_to_reach(1.0, [10, 20], [2.0, -1.0])
    run = SimpleNamespace(seed=1, value=1.0)
    with pytest.raises(ValueError, match="full_runs must be of the baseline's seeds"):
        speedup(regression_task(), None, [run], [SimpleNamespace(seed=2, value=1.0)], steps=10)
