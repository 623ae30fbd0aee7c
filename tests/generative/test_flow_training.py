"""Tests of training: bit for bit resumption, least squares, averages, couplings, reflow, distillation, misuse."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.errors import SteepestWarning
from steepest.generative import (
    MLPVelocity,
    RectifiedFlow,
    UNetVelocity,
    distill,
    fit_flow,
    rectify,
    reflow,
    simulate_coupling,
    sliced_wasserstein,
    straightness,
    transport_cost,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(dim=2, seed=0, **options):
    return RectifiedFlow(MLPVelocity(dim, **{"width": 16, "depth": 1, "seed": seed, **options}))


def weights(flow):
    return torch.cat([p.detach().ravel() for p in flow.parameters()])


class Linear(nn.Module):
    """v = A x + b t + c, whose least squares have a closed form."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, x, t):
        return self.a * x + self.b * t[:, None] + self.c


# --------------------------------------------------------------------------------------------------------------- exact


def test_training_is_the_plain_loop():
    """Without averaging and clipping: Adam on the mean squared difference, draw by draw."""
    x0, x1 = randn(50, 2), randn(40, 2, seed=1) + 2
    ours, theirs = small(), small()
    fit = fit_flow(ours, x0, x1, n_steps=30, batch_size=8, ema=None, grad_clip=None, generator=5)
    generator = torch.Generator().manual_seed(5)
    torch.randint(2**62, (), generator=generator)  # the network's own stream
    optimizer = torch.optim.Adam(theirs.parameters(), 1e-3, fused=True)
    for step in range(30):
        i = torch.randint(50, (8,), generator=generator)
        j = torch.randint(40, (8,), generator=generator)
        t = torch.rand(8, generator=generator)
        x_t = t[:, None] * x1[j] + (1 - t[:, None]) * x0[i]
        loss = (theirs.velocity(x_t, t) - (x1[j] - x0[i])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert fit.history["loss"][step] == pytest.approx(loss.item(), rel=1e-5)
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in theirs.parameters()))
        assert fit.history["grad_norm"][step] == pytest.approx(norm, rel=1e-4)
        optimizer.step()
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-6)
    assert fit.history["step"] == list(range(1, 31))
    assert fit.flow is ours


def test_averages_are_free_of_the_start():
    """The k-th of N weights counts (1 - d) d^(N-k) / (1 - d^N)."""
    flow, path, d = small(), [], 0.8
    fit = fit_flow(flow, randn(20, 2), randn(20, 2, seed=1), n_steps=6, lr=1e-2, ema=d, generator=0,
                   callback=lambda record: path.append(weights(flow)))  # fmt: skip
    shares = torch.tensor([d ** (5 - k) for k in range(6)])
    expected = (shares / shares.sum()) @ torch.stack(path)
    torch.testing.assert_close(weights(fit.flow), expected, rtol=1e-5, atol=1e-6)
    raw = torch.cat([fit.raw_state[name].ravel() for name, _ in flow.named_parameters()])
    torch.testing.assert_close(raw, path[-1])


def test_the_minimizer_is_found():
    """Pairs with x1 = x0 + 1 have v = 1; a linear model on independent pairs has E[x1 - x0 | x_t] in closed form."""
    x0 = randn(500, 1)
    fit = fit_flow(RectifiedFlow(Linear()), x0, x0 + 1, paired=True, n_steps=300, lr=0.05, ema=None, generator=0)
    found = weights(fit.flow).tolist()
    assert found == pytest.approx([0, 0, 1], abs=0.02)


def test_warmup_and_clipping():
    x0, x1 = randn(20, 1), randn(20, 1, seed=1) + 100
    for warmup, grad_clip, rate in ((4, None, 0.25), (0, 0.5, 1.0)):
        flow = RectifiedFlow(Linear())
        fit = fit_flow(flow, x0, x1, n_steps=1, ema=None, warmup=warmup, grad_clip=grad_clip, generator=0,
                       optimizer=lambda p: torch.optim.SGD(p, 1e-3))  # fmt: skip
        moved = float(weights(fit.flow).norm())
        norm = fit.history["grad_norm"][0]
        assert moved == pytest.approx(1e-3 * rate * min(norm, grad_clip or math.inf), rel=1e-4)
        assert norm > 10


@pytest.mark.parametrize("network", ["mlp", "dropout"])
def test_resumed_is_uninterrupted_bit_for_bit(network, tmp_path):
    x0, x1, path = randn(40, 1, 4, 4), randn(40, 1, 4, 4, seed=1), tmp_path / "flow.pt"

    def fresh():
        if network == "mlp":
            return small(16)
        return RectifiedFlow(UNetVelocity(1, 4, width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.5, seed=0))

    options = {"batch_size": 8, "generator": 3, "warmup": 5, "checkpoint_every": 4, "val": (x0, x1)}
    whole = fit_flow(fresh(), x0, x1, n_steps=12, **options)
    fit_flow(fresh(), x0, x1, n_steps=9, checkpoint=path, callback=lambda r: r["step"] == 8, **options)
    rest = fit_flow(fresh(), x0, x1, n_steps=12, checkpoint=path, resume=True, **{**options, "generator": 99})
    assert rest.history == whole.history
    assert rest.n_steps == 12
    for name, value in whole.flow.state_dict().items():
        assert torch.equal(value, rest.flow.state_dict()[name]), name
        assert torch.equal(whole.raw_state[name], rest.raw_state[name]), name
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "flow.pt"
    data = (randn(9, 2), randn(9, 2))
    fit_flow(small(), *data, n_steps=2, checkpoint=path, generator=0)
    before = path.read_bytes()

    def crash(state, place):
        Path(place).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        fit_flow(small(), *data, n_steps=2, checkpoint=path, generator=0)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_held_out_loss_is_that_of_averaged_weights():
    x0, x1 = randn(64, 2), randn(64, 2, seed=1) + 1
    fit = fit_flow(small(), x0, x1, n_steps=6, generator=0, val=(x0, x1), checkpoint_every=3)
    assert [step for step, _ in fit.history["val"]] == [3, 6]
    t = (torch.arange(64, dtype=torch.float64) + 0.5) * (math.sqrt(5) - 1) / 2 % 1
    loss = fit.flow.loss(x0, x1, t=t.float()).detach()
    assert fit.history["val"][-1][1] == pytest.approx(float(loss), rel=1e-5)


def test_transport_plans_pair_the_batches():
    """A coupling from `steepest.transport`: its pairs are those of the optimal assignment."""
    from scipy.optimize import linear_sum_assignment

    from steepest.transport import sinkhorn_newton_sparse

    seen = []

    def coupling(x0, x1, generator):
        n = len(x0)
        uniform = torch.full((n,), 1 / n, dtype=torch.float64)
        plan = sinkhorn_newton_sparse(uniform, uniform, torch.cdist(x0, x1).double().square(), 0.02)
        chosen = torch.multinomial(plan.ravel(), n, replacement=True, generator=generator)
        seen.append((x0, x1, plan))
        return chosen // n, chosen % n

    x0, x1 = randn(100, 2), randn(100, 2, seed=1) + 1
    fit = fit_flow(small(), x0, x1, n_steps=3, batch_size=16, coupling=coupling, generator=0)
    assert len(fit.history["loss"]) == 3
    a, b, plan = seen[0]
    rows, columns = linear_sum_assignment(torch.cdist(a, b).square())
    cost = float((plan * torch.cdist(a, b).square()).sum() / plan.sum())
    assert cost == pytest.approx(float((a[rows] - b[columns]).square().sum(1).mean()), rel=0.15)


def test_labels_follow_their_samples():
    x1, y = torch.tensor([[10.0], [20.0]]), torch.tensor([0, 1])
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Parameter(torch.zeros(()))

        def forward(self, x, t, y):
            seen.append((x, t, y))
            return self.c * x

    def shuffled(a, b, generator):  # labels follow through a coupling too
        return torch.arange(len(a)), torch.randperm(len(b), generator=generator)

    fit_flow(RectifiedFlow(Watch()), torch.zeros(3, 1), x1, y=y, drop_label=0.5, n_steps=5, batch_size=200, generator=0,
             coupling=shuffled)  # fmt: skip
    x, t, labels = (torch.cat(part) for part in zip(*seen, strict=True))
    known = labels >= 0
    torch.testing.assert_close((x[:, 0] / t)[known], 10.0 * (labels[known] + 1))
    assert float((~known).double().mean()) == pytest.approx(0.5, abs=0.05)


# ----------------------------------------------------------------------------------------------------- pairs of a flow


class Shift:
    """Draws that a process can be sent."""

    def __call__(self, n, generator):
        return torch.randn(n, 2, generator=generator)


def turn(x, t):
    return torch.stack([-x[:, 1], x[:, 0]], 1) + t[:, None]


def test_pairs_are_samples():
    flow, x0 = RectifiedFlow(turn), randn(10, 2)
    z0, z1 = simulate_coupling(flow, x0, batch_size=4)
    assert torch.equal(z0, x0)
    expected = torch.cat([flow.sample(x0[a : a + 4]).x for a in (0, 4, 8)])
    assert torch.equal(z1, expected)


def test_pairs_on_disk_are_the_same(tmp_path):
    flow = RectifiedFlow(turn)
    options = {"n_pairs": 10, "batch_size": 4, "generator": 3, "steps": 3, "method": "euler", "noise": 0.3}
    memory, disk = (simulate_coupling(flow, Shift(), out=out, **options) for out in (None, tmp_path / "pairs"))
    for a, b in zip(memory, disk, strict=True):
        assert torch.equal(a, b)
    assert sorted(p.name for p in (tmp_path / "pairs").iterdir()) == ["z0.npy", "z1.npy"]
    assert np.load(tmp_path / "pairs" / "z1.npy").shape == (10, 2)
    fit = fit_flow(small(), *disk, paired=True, n_steps=2, generator=0)  # batches straight from the files
    assert math.isfinite(fit.history["loss"][-1])
    other = simulate_coupling(flow, Shift(), **{**options, "generator": 4})
    assert not torch.equal(other[0], memory[0])
    assert not torch.equal(memory[0][:4], memory[0][4:8])


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_pairs_do_not_depend_on_the_workers(tmp_path):
    torch.set_num_threads(1)
    flow, options = RectifiedFlow(turn), {"n_pairs": 10, "batch_size": 4, "generator": 3}
    alone = simulate_coupling(flow, Shift(), **options)
    two = simulate_coupling(flow, Shift(), out=tmp_path, backend="processes", n_workers=2, **options)
    for a, b in zip(alone, two, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
@pytest.mark.filterwarnings("ignore")
def test_pairs_from_ray_are_the_same():
    torch.set_num_threads(1)

    def draw(n, generator):  # a local function travels by value: workers need not find this file
        return torch.randn(n, 2, generator=generator)

    flow, options = small(), {"n_pairs": 10, "batch_size": 4, "generator": 3}
    alone = simulate_coupling(flow, draw, **options)
    actors = simulate_coupling(flow, draw, backend="ray", n_workers=2, **options)
    for a, b in zip(alone, actors, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- further trainings


@pytest.fixture(scope="module")
def two_points():
    """A flow from N(0, 1) to two points, and one round of reflow."""
    x0, x1 = randn(2000, 1), torch.where(randn(2000, 1, seed=1) > 0, 3.0, -3.0)
    make = lambda: MLPVelocity(1, width=48, depth=2, seed=0)  # noqa: E731
    fits = rectify(x0, x1, make, k=2, n_steps=500, lr=3e-3, ema=0.98, generator=0)
    return x0, x1, fits


def test_reflow_straightens_and_keeps(two_points):
    x0, x1, (first, second) = two_points
    S = [float(straightness(fit.flow, x0[:500], steps=30)) for fit in (first, second)]
    assert S[1] < 0.1 * S[0]
    one = [fit.flow.sample(x0, steps=1, method="euler").x for fit in (first, second)]
    errors = [float(sliced_wasserstein(z, x1, generator=0)) for z in one]
    assert errors[1] < 0.4 * errors[0]
    costs = [float(transport_cost(x0, fit.flow.sample(x0).x)) for fit in (first, second)]
    assert costs[0] < float(transport_cost(x0, x1))
    assert costs[1] < 1.03 * costs[0]
    assert [len(fit.history["sliced_w2"]) for fit in (first, second)] == [1, 1]
    assert first.flow.velocity is not second.flow.velocity


def test_distilled_flows_reach_the_end(two_points):
    x0, _, (first, _) = two_points
    ends = first.flow.sample(x0).x
    for options, steps in (({}, 1), ({"steps": 2}, 2)):
        fit = distill(first.flow, x0, n_steps=300, lr=3e-3, ema=0.98, generator=0, **options)
        error, before = (
            float((flow.sample(x0, steps=steps, method="euler").x - ends).square().mean())
            for flow in (fit.flow, first.flow)
        )
        assert error < 0.5 * before
    back = distill(first.flow, x0, n_steps=300, lr=3e-3, t_schedule="t1", ema=0.98, generator=0).flow
    start = ends - back(ends, 1.0).detach()
    assert float((start - x0).square().mean()) < 0.6


def test_distillation_trains_at_the_steps_alone():
    """N steps of Euler ask for the velocity at i/N only, and so does the loss."""
    seen = []

    class Watch(Linear):
        def forward(self, x, t):
            seen.append(t.detach().clone())
            return super().forward(x, t)

    teacher = RectifiedFlow(lambda x, t: torch.ones_like(x))
    for options, times in (({}, {0.0}), ({"steps": 2}, {0.0, 0.5}), ({"t_schedule": "t1"}, {1.0})):
        seen.clear()
        distill(teacher, randn(20, 1), velocity=Watch(), n_steps=4, batch_size=16, generator=0, **options)
        assert set(torch.cat(seen).tolist()) == times


def test_a_metric_trains_too(two_points):
    x0, _, (first, _) = two_points
    seen = []

    def metric(end, z1):
        seen.append(len(end))
        return (end - z1).abs().sum(1)

    fit = distill(first.flow, x0[:200], n_steps=3, batch_size=7, metric=metric, generator=0)
    assert seen == [7, 7, 7]
    assert fit.history["loss"][0] > 0


def test_the_teacher_stays_as_it_is():
    teacher = small()
    before = copy.deepcopy(teacher.state_dict())
    for online in (False, True):
        fit = reflow(teacher, randn(50, 2), online=online, n_steps=2, batch_size=8, generator=0)
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
        assert not torch.equal(weights(fit.flow), weights(teacher))
    fresh = reflow(teacher, Shift(), n_pairs=20, velocity=MLPVelocity(2, width=8, seed=1), n_steps=1, generator=0)
    assert fresh.flow.velocity.layers[0].out_features == 8


def test_online_pairs_are_those_of_the_teacher():
    """With the shift as teacher every batch has loss |v - 1|^2."""
    teacher = RectifiedFlow(lambda x, t: torch.ones_like(x))
    fit = reflow(teacher, Shift(), velocity=Linear(), online=True, n_steps=300, lr=0.05, batch_size=32, ema=None,
                 generator=0, pairs_kw={"steps": 1, "method": "euler"})  # fmt: skip
    assert weights(fit.flow).tolist() == pytest.approx([0, 0, 1], abs=0.03)


def test_labels_pass_through_reflow():
    teacher = small(n_classes=2)
    y = torch.tensor([0, 1] * 10)
    for online in (False, True):
        fit = reflow(teacher, randn(20, 2), y=y, online=online, n_steps=2, batch_size=4, generator=0)
        assert math.isfinite(fit.history["loss"][-1])


def test_drift_is_told(monkeypatch):
    from steepest.generative import _flow_training

    distances = iter([1.0, 1.4, 2.2])
    monkeypatch.setattr(_flow_training, "sliced_wasserstein", lambda *a, **k: next(distances))
    with pytest.warns(SteepestWarning, match="flow 3 is 1.57 times as far"):
        rectify(
            randn(20, 1), randn(20, 1), lambda: MLPVelocity(1, width=4, depth=1, seed=0), k=3, n_steps=1, generator=0
        )


# ------------------------------------------------------------------------------------------------------------ property


def test_same_seed_same_bits_and_the_global_stream_rests():
    before = torch.get_rng_state()
    x0, x1 = randn(30, 1, 4, 4), randn(30, 1, 4, 4, seed=1)
    found = []
    for seed in (1, 1, 2):
        flow = RectifiedFlow(UNetVelocity(1, 4, width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.5, seed=0))
        fit_flow(flow, x0, x1, n_steps=3, batch_size=4, generator=seed)
        found.append(weights(flow))
        assert not flow.training
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(before, torch.get_rng_state())


def test_callables_and_whole_batches():
    def shifted(n, generator):
        return torch.randn(n, 2, generator=generator) + 5

    fit = fit_flow(small(), Shift(), shifted, n_steps=3, batch_size=16, generator=0)
    assert len(fit.history["loss"]) == 3
    whole = fit_flow(RectifiedFlow(Linear()), lambda n, g: (torch.zeros(n, 1), torch.ones(n, 1)), None, n_steps=300,
                     lr=0.05, ema=None, generator=0)  # fmt: skip
    assert float(whole.flow.sample(torch.zeros(1, 1)).x) == pytest.approx(1, abs=0.02)


def test_a_wrapped_velocity_will_do():
    class Wrapped(nn.Module):
        """Nothing of the network can be seen but its call, as behind DistributedDataParallel."""

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return self.module(*inputs)

    fit = fit_flow(RectifiedFlow(Wrapped(MLPVelocity(2, width=8, seed=0))), randn(20, 2), randn(20, 2), n_steps=2)
    assert fit.n_steps == 2


def test_autocast_of_the_caller():
    with torch.autocast("cpu", torch.bfloat16):
        fit = fit_flow(small(), randn(20, 2), randn(20, 2), n_steps=2, generator=0)
    assert all(p.dtype == torch.float32 for p in fit.flow.parameters())


def test_single_bad_steps_are_skipped_and_three_raise():
    class Sometimes(nn.Module):
        def __init__(self, bad):
            super().__init__()
            self.c, self.bad, self.calls = nn.Parameter(torch.zeros(())), bad, 0

        def forward(self, x, t):
            self.calls += 1
            scale = math.nan if self.calls in self.bad else 1.0
            return self.c * scale + 0 * x

    data = (randn(20, 1), randn(20, 1, seed=1) + 1)
    fit = fit_flow(RectifiedFlow(Sometimes({2, 3, 5})), *data, n_steps=6, ema=None, lr=0.1, generator=0)
    assert fit.n_nonfinite == 3
    assert [math.isnan(v) for v in fit.history["loss"]] == [False, True, True, False, True, False]
    assert 0 < float(weights(fit.flow)) < 0.4
    with pytest.raises(FloatingPointError, match=r"velocity at t = 0\.\d+ is not finite at step 4, the third in a row"):
        fit_flow(RectifiedFlow(Sometimes({2, 3, 4})), *data, n_steps=6, generator=0)


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"x1": torch.zeros(5, 3)}, ValueError, "x1 must be"),
        ({"x1": torch.zeros(4, 2), "paired": True}, ValueError, "x1 must be as many"),
        ({"x1": torch.zeros(5, 2).double()}, TypeError, "x1 must be"),
        ({"x1": torch.zeros(5, 2).long()}, TypeError, "x1 must be"),
        ({"x0": torch.zeros(5, 2).long()}, TypeError, "x0 must be"),
        ({"x0": lambda n, g: torch.zeros(n, 2), "paired": True}, ValueError, "x0 must be"),
        ({"x0": lambda n, g: torch.zeros(n, 3)}, ValueError, "x1 must be"),
        ({"x1": None}, TypeError, "x0 must be"),
        ({"n_steps": 0}, ValueError, "n_steps"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"lr": 0.0}, ValueError, "lr"),
        ({"ema": 1.0}, ValueError, "ema"),
        ({"grad_clip": 0.0}, ValueError, "grad_clip"),
        ({"warmup": -1}, ValueError, "warmup"),
        ({"t_schedule": "late"}, ValueError, "t_schedule"),
        ({"coupling": lambda a, b, g: (0, 0), "paired": True}, ValueError, "coupling"),
        ({"coupling": lambda a, b, g: (torch.arange(3), torch.arange(2))}, ValueError, "coupling"),
        ({"resume": True}, ValueError, "checkpoint"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every"),
        ({"y": torch.zeros(4)}, ValueError, "y must be"),
        ({"drop_label": 2.0}, ValueError, "drop_label"),
        ({"val": (torch.zeros(3, 2), torch.zeros(2, 2))}, ValueError, "val"),
        ({"flow": RectifiedFlow(lambda x, t: x)}, ValueError, "parameters"),
        ({"flow": MLPVelocity(2)}, TypeError, "flow"),
        ({"generator": "seed"}, TypeError, "generator"),
    ],
)
def test_misuse_names_the_argument(options, error, words):
    arguments = {"flow": small(), "x0": torch.zeros(5, 2), "x1": torch.zeros(5, 2), "n_steps": 1, **options}
    with pytest.raises(error, match=words):
        fit_flow(**arguments)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, x: simulate_coupling(f, x, n_pairs=3), "n_pairs"),
        (lambda f, x: simulate_coupling(f, x, batch_size=0), "batch_size"),
        (lambda f, x: simulate_coupling(f, x, y=torch.zeros(2)), "y must be"),
        (lambda f, x: simulate_coupling(f, x, steps=2), "steps"),
        (lambda f, x: reflow(f, Shift(), online=True, n_pairs=3), "n_pairs"),
        (lambda f, x: reflow(RectifiedFlow(turn), x, n_steps=1), "parameters"),
        (lambda f, x: distill(f, x, steps=0), "steps"),
        (lambda f, x: rectify(x, x, lambda: None, k=0), "k must be"),
        (lambda f, x: rectify(x, x, lambda: MLPVelocity(2), y=torch.zeros(5)), "y must be"),
    ],
)
def test_misuse_of_later_trainings(call, words):
    with pytest.raises(ValueError, match=words):
        call(small(), torch.zeros(5, 2))


def test_a_callable_needs_the_number_of_pairs():
    with pytest.raises(TypeError, match="n_pairs"):
        simulate_coupling(small(), Shift())


def test_a_foreign_checkpoint_is_refused(tmp_path):
    torch.save({"other": 1}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="checkpoint"):
        fit_flow(small(), randn(5, 2), randn(5, 2), checkpoint=tmp_path / "x.pt", resume=True)
