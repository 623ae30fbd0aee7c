"""TargetSurrogate: exact cases, majorization, rules for eta, inner minimizers, checkpoints, two ranks, misuse."""

import copy
import math
import tempfile
from datetime import timedelta
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.core.errors import ConvergenceWarning
from steepest.optim._surrogate import DIVERGENCES, Surrogate, Targets
from steepest.optim.target_surrogate import TargetSurrogate
from tests import processes
from tests.optim import check_optimizer as family
from tests.optim.check_optimizer import gap, parameters, same, through_a_file, values

D64 = torch.float64


def data(n: int = 30, d: int = 5, c: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=D64)
    return X, torch.randint(c, (n,), generator=g), torch.randn(n, c, generator=g, dtype=D64)


def network(d: int = 5, c: int = 3, hidden: int = 8, seed: int = 0, dtype: torch.dtype = D64) -> nn.Sequential:
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(d, hidden), nn.Tanh(), nn.Linear(hidden, c)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=g, dtype=D64))
    return model


def logistic(z: Tensor, y: Tensor) -> Tensor:
    return F.softplus(-(2.0 * y - 1) * z[:, 0]).mean()


def squared(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().sum(1).mean()


LOSSES = {  # loss, targets of the data, columns of z, smoothness L of one row's loss
    "squared": (squared, lambda X, k, Y: Y, 3, 2.0),
    "logistic": (logistic, lambda X, k, Y: (k > 0).to(D64), 1, 0.25),
    "softmax": (lambda z, k: F.cross_entropy(z, k), lambda X, k, Y: k, 3, 0.5),
}


def sgd(lr: float):
    return partial(torch.optim.SGD, lr=lr)


# ------------------------------------------------------------------------------------------------------------ exact


@pytest.mark.parametrize("c", [1, 3])
def test_kl_with_unit_step_is_the_cross_entropy_itself(c):
    X, k, _ = data()
    k = k.clamp(max=1) if c == 1 else k

    def loss(z: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z[:, 0], k.to(D64)) if c == 1 else F.cross_entropy(z, k)

    model = network(c=c)
    params = list(model.parameters())
    z_t = model(X)
    value = loss(z_t)
    (g,) = torch.autograd.grad(value, z_t, retain_graph=True)
    s = Surrogate(
        Targets(lambda: model(X), None), z_t.detach(), g, loss=value.item(), graph=z_t, divergence="kl",
        weight=1 / len(X), params=params, decays=[0.0] * 4, foreach=False, reduce=lambda tensors: None,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for size in (0.01, 1.0, 5.0):
        with torch.no_grad():
            for p in params:
                p.add_(size * torch.randn(p.shape, generator=generator, dtype=D64))
        difference, grads = s.difference_and_grads()
        expected = loss(model(X))
        assert math.isclose(s.base + difference, expected.item(), rel_tol=1e-12)
        assert math.isclose(s.difference(), difference, rel_tol=1e-12, abs_tol=1e-14)
        assert gap(grads, torch.autograd.grad(expected, params)) < 1e-11


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("c", [1, 4])
def test_divergences_against_their_definition_and_finite_differences(name, c):
    g = torch.Generator().manual_seed(0)
    z, z_t = torch.randn(6, c, generator=g, dtype=D64), torch.randn(6, c, generator=g, dtype=D64)
    D, slope = DIVERGENCES[name](z, z_t, z - z_t)
    if name == "euclidean":
        expected = 0.5 * float((z - z_t).norm() ** 2)
    else:
        p_t, p = (torch.softmax(torch.cat([t, torch.zeros_like(t)], 1) if c == 1 else t, 1) for t in (z_t, z))
        expected = float((p_t * (p_t.log() - p.log())).sum())
    assert math.isclose(float(D), expected, rel_tol=1e-12)
    assert float(DIVERGENCES[name](z_t, z_t, 0 * z_t)[0]) == pytest.approx(0.0, abs=1e-14)

    def D_at(z: Tensor) -> Tensor:
        return DIVERGENCES[name](z, z_t, z - z_t)[0]

    numeric = torch.zeros_like(z)
    for i in range(z.numel()):
        h = torch.zeros(z.numel(), dtype=D64)
        h[i] = 1e-6
        h = h.view_as(z)
        numeric.view(-1)[i] = (D_at(z + h) - D_at(z - h)) / 2e-6
    assert gap([slope], [numeric]) < 1e-7


@pytest.mark.parametrize("loss_name", LOSSES)
def test_one_inner_step_is_a_step_of_sgd(loss_name):
    loss, pick, c, _ = LOSSES[loss_name]
    X, k, Y = data()
    y = pick(X, k, Y)
    ours, theirs = network(c=c), network(c=c)
    opt = TargetSurrogate(ours.parameters(), target_lr=0.3, inner_steps=1, inner=sgd(0.2))
    plain = torch.optim.SGD(theirs.parameters(), 0.2)
    for _ in range(3):
        plain.zero_grad()
        expected = loss(theirs(X), y)
        expected.backward()
        plain.step()
        assert torch.equal(opt.step(lambda: ours(X), lambda z: loss(z, y)), expected.detach())
    assert gap(ours.parameters(), theirs.parameters()) < 1e-14


def test_exact_inner_minimization_is_projected_gradient_descent_in_target_space():
    X, _, Y = data()
    w = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=D64))
    P = X @ torch.linalg.pinv(X)
    eta = 0.2
    z = (X @ w).detach()
    opt = TargetSurrogate([w], target_lr=eta, inner="lbfgs", inner_steps=200)
    for _ in range(3):
        z = z - eta * P @ (2 * (z - Y))  # nu times the gradient of the mean
        opt.step(lambda: X @ w, lambda z: squared(z, Y))
        assert gap([X @ w], [z]) < 1e-5


def test_the_surrogate_by_hand_with_weight_decay():
    """A line of s and its gradient against dense algebra and finite differences."""
    X, _, Y = data()
    w = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=D64))
    z_t, eta, decay, a = (X @ w).detach(), 0.7, 0.3, 1e-2
    g = 2 * (z_t - Y) / 30
    w_t = w.detach().clone()

    def s(v: Tensor) -> float:
        z = X @ v
        D = (z - z_t).square().sum() / 2
        return float(squared(z_t, Y) + (g * (z - z_t)).sum() + D / (eta * 30) + decay / 2 * v.square().sum())

    opt = TargetSurrogate([w], target_lr=eta, inner=sgd(a), inner_steps=2, weight_decay=decay)
    opt.step(lambda: X @ w, lambda z: squared(z, Y))
    expected, trace = w_t, [s(w_t)]
    for _ in range(2):
        grad = X.T @ (g + (X @ expected - z_t) / (eta * 30)) + decay * expected
        expected = expected - a * grad
        trace.append(s(expected))
    assert gap([w], [expected]) < 1e-12
    torch.testing.assert_close(torch.tensor(opt.info["surrogate"]), torch.tensor(trace), rtol=1e-6, atol=0)
    for inner in ("armijo", "lbfgs"):
        with torch.no_grad():
            w.copy_(w_t)
        opt = TargetSurrogate([w], target_lr=eta, inner=inner, inner_steps=300, weight_decay=decay)
        opt.step(lambda: X @ w, lambda z: squared(z, Y))
        A = X.T @ X / (eta * 30) + decay * torch.eye(5, dtype=D64)
        best = torch.linalg.solve(A, X.T @ (z_t / (eta * 30) - g))
        assert gap([w], [best]) < 1e-5
        assert math.isclose(opt.info["surrogate"][-1], s(best), rel_tol=1e-9)


# ------------------------------------------------------------------------------------------------- majorization


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("inner", ["armijo", "lbfgs"])
def test_majorizes_and_never_raises_the_loss(loss_name, inner):
    loss, pick, c, L = LOSSES[loss_name]
    X, k, Y = data()
    y = pick(X, k, Y)
    model = network(c=c)
    for inner_steps in (1, 5, 20):
        opt = TargetSurrogate(model.parameters(), target_lr=1 / L, inner_steps=inner_steps, inner=inner)
        before = loss(model(X), y).item()
        for _ in range(8):
            opt.step(lambda: model(X), lambda z: loss(z, y))
            after = loss(model(X), y).item()
            s = opt.info["surrogate"]
            assert all(b <= a for a, b in pairwise(s))
            assert after <= s[-1] + 1e-10
            assert after <= before + 1e-10
            before = after


@pytest.mark.parametrize("loss_name", LOSSES)
def test_smoothness_constants_are_tight(loss_name):
    """With 1/eta = 0.8 L some point violates the bound, so L is not merely large enough."""
    loss, pick, c, L = LOSSES[loss_name]
    X, k, Y = data(n=1)
    y = pick(X, k, Y)
    g = torch.Generator().manual_seed(0)

    def worst(eta: float) -> float:
        excess = -math.inf
        for _ in range(400):
            z_t = 0.7 * torch.randn(1, c, generator=g, dtype=D64)
            if loss_name == "softmax":
                z_t[0, int(k[0])], z_t[0, int(k[0]) - 1], z_t[0, int(k[0]) - 2] = 1e-3, -1e-3, -9.0
            if loss_name == "logistic":
                z_t.mul_(0.1)
            z_t.requires_grad_()
            value = loss(z_t, y)
            (slope,) = torch.autograd.grad(value, z_t)
            d = 0.3 * torch.randn(1, c, generator=g, dtype=D64)
            if loss_name == "softmax":
                d[0, int(k[0]) - 1], d[0, int(k[0]) - 2] = -d[0, int(k[0])], 0.0
            s = value.detach() + (slope * d).sum() + d.square().sum() / (2 * eta)
            excess = max(excess, (loss(z_t + d, y) - s).item())
        return excess

    assert worst(1 / L) <= 1e-12
    assert worst(1 / (0.8 * L)) > 1e-6


def test_ignoring_the_number_of_rows_would_shorten_steps():
    X, _, Y = data()
    ends = []
    for reduction, loss in (("mean", squared), ("sum", lambda z, y: (z - y).square().sum())):
        model = network()
        opt = TargetSurrogate(model.parameters(), target_lr=0.2, inner="lbfgs", inner_steps=300, reduction=reduction)
        opt.step(lambda m=model: m(X), lambda z, loss=loss: loss(z, Y))
        ends.append(squared(model(X), Y).detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=5e-3, atol=0)


# ---------------------------------------------------------------------------------------------------- rules for eta


@pytest.mark.parametrize(("schedule", "factor"), [
    ("constant", lambda t: 1.0), ("sqrt", lambda t: t**-0.5), ("exponential", lambda t: (1 / 7) ** (t / 7))
])  # fmt: skip
def test_schedules(schedule, factor):
    X, _, Y = data()
    model = network()
    opt = TargetSurrogate(model.parameters(), target_lr=0.4, schedule=schedule, total_steps=7, inner_steps=1)
    for t in range(1, 5):
        opt.step(lambda: model(X), lambda z: squared(z, Y))
        assert math.isclose(opt.info["eta"], 0.4 * factor(t), rel_tol=1e-12)


def test_torch_schedulers_and_hand_made_changes():
    X, _, Y = data()
    model = network()
    opt = TargetSurrogate(model.parameters(), target_lr=0.4, inner_steps=1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 0.5**k)
    found = []
    for _ in range(3):
        opt.step(lambda: model(X), lambda z: squared(z, Y))
        scheduler.step()
        found.append(opt.info["eta"])
    assert found == [0.4, 0.2, 0.1]
    opt.param_groups[0]["target_lr"], opt.param_groups[0]["lr"] = 0.3, 1.0
    opt.step(lambda: model(X), lambda z: squared(z, Y))
    assert opt.info["eta"] == 0.3
    opt.param_groups[0]["lr"] = 0.0
    before = values(model.parameters())
    opt.step(lambda: model(X), lambda z: squared(z, Y))
    assert same(before, model.parameters())
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be >= 0"):
        opt.step(lambda: model(X), lambda z: squared(z, Y))


def test_adagrad_rule_by_hand():
    X, _, Y = data()
    model = network()
    opt = TargetSurrogate(model.parameters(), target_lr="adagrad", adagrad_scale=3.0, eps=1e-3, inner_steps=2)
    total = 0.0
    for _ in range(4):
        g_tilde = 2 * (model(X).detach() - Y)
        total += float(g_tilde.square().sum()) / 30
        opt.step(lambda: model(X), lambda z: squared(z, Y))
        assert math.isclose(opt.info["eta"], 3 / (math.sqrt(total) + 1e-3), rel_tol=1e-12)
    opt = TargetSurrogate(model.parameters(), target_lr="adagrad", inner_steps=1, reduction="sum")
    g = 2 * (model(X).detach() - Y)
    opt.step(lambda: model(X), lambda z: (z - Y).square().sum())
    assert math.isclose(opt.info["eta"], 1 / (float(g.norm()) + 1e-8), rel_tol=1e-12)


def test_armijo_rule_by_hand_counts_values_and_no_gradients():
    X, k, _ = data()
    model = network()
    opt = TargetSurrogate(
        model.parameters(), target_lr="armijo", inner_steps=2, outer_c=0.8, backtrack=0.7, expand=1.5
    )  # fmt: skip
    gradients, calls = 0, 0

    def loss(z: Tensor) -> Tensor:
        nonlocal gradients, calls
        calls += 1
        gradients += torch.is_grad_enabled() and z.requires_grad
        return F.cross_entropy(30 * z, k)

    previous = 1.0
    for _ in range(4):
        z = model(X).detach().requires_grad_()
        value = F.cross_entropy(30 * z, k)
        (g,) = torch.autograd.grad(value, z)
        eta, tries = 1.5 * previous, 1
        while F.cross_entropy(30 * (z - eta * 30 * g), k) > value - 0.8 * eta * 30 * g.square().sum():
            eta, tries = eta * 0.7, tries + 1
        opt.step(lambda: model(X), loss)
        assert math.isclose(opt.info["eta"], eta, rel_tol=1e-12)
        assert opt.info["target_backtracks"] == tries - 1
        previous = eta
    assert gradients == 4
    assert opt.info["loss_calls"] == calls > 12


def test_armijo_rule_stays_within_its_range():
    w = nn.Parameter(torch.ones(2, dtype=D64))
    opt = TargetSurrogate([w], target_lr="armijo", inner_steps=1, reduction="sum", inner_lr=1e-3)
    for _ in range(20):  # linear loss: every step is accepted
        opt.step(lambda: w, lambda z: z.sum())
    assert opt.info["eta"] == 1e4
    steep = TargetSurrogate([w], target_lr="armijo", inner_steps=1, reduction="sum", inner_lr=1e-9)
    steep.step(lambda: w, lambda z: 1e8 * z.square().sum())
    assert steep.info["eta"] == 1e-4


# ------------------------------------------------------------------------------------------------- inner minimizers


def test_inner_armijo_by_hand():
    X, _, Y = data()
    w = nn.Parameter(torch.zeros(5, 3, dtype=D64))
    H, eta, n = X.T @ X, 0.1, 30
    g = -2 * Y / n

    def s(v: Tensor) -> Tensor:
        return (g * (X @ v)).sum() + (X @ v).square().sum() / (2 * eta * n)

    v, a, tries, backtracks = torch.zeros_like(w.detach()), 4.0, 0, 0
    for _ in range(6):
        grad = X.T @ g + H @ v / (eta * n)
        tries += 1
        while s(v - a * grad) > s(v) - 0.3 * a * grad.square().sum():
            a, tries, backtracks = 0.8 * a, tries + 1, backtracks + 1
        v, a = v - a * grad, 1.6 * a
    opt = TargetSurrogate(
        [w], target_lr=eta, inner_steps=6, inner_lr=4.0, c=0.3, backtrack=0.8, expand=1.6, check_deterministic=False
    )  # fmt: skip
    opt.step(lambda: X @ w, lambda z: squared(z, Y))
    assert gap([w], [v]) < 1e-12
    assert opt.info["inner_steps"] == 6
    assert opt.info["backtracks"] == backtracks
    assert opt.info["forward_calls"] == 1 + 5 + tries  # the first gradient reuses the forward pass of z_t
    assert len(opt.info["surrogate"]) == 7


def test_no_acceptance_keeps_parameters_bit_by_bit_and_warns_once():
    X, _, Y = data()
    model = network()
    opt = TargetSurrogate(model.parameters(), inner_lr=1e12, max_backtracks=3)
    before = values(model.parameters())
    with pytest.warns(ConvergenceWarning, match="accepted no step") as caught:
        opt.step(lambda: model(X), lambda z: squared(z, Y))
    assert caught[0].filename == __file__
    opt.step(lambda: model(X), lambda z: squared(z, Y))
    assert same(before, model.parameters())
    assert opt.info["inner_steps"] == 0
    assert opt.info["backtracks"] == 3
    assert opt.n_steps == 2


def test_search_does_not_accept_nan():
    """The first trials leave the domain of the model."""
    w = nn.Parameter(torch.tensor([0.5], dtype=D64))
    opt = TargetSurrogate([w], inner_steps=1, inner_lr=30.0, reduction="sum")
    opt.step(w.log, lambda z: z.sum())
    assert w.isfinite().all()
    assert opt.info["inner_steps"] == 1
    assert opt.info["backtracks"] > 3


def test_stops_where_the_gradient_vanishes():
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=D64))
    for inner in ("armijo", "lbfgs", sgd(1.0)):
        opt = TargetSurrogate([w], inner=inner)
        opt.step(lambda: w, lambda z: (z - w.detach()).square().sum())
        assert opt.info["inner_steps"] == 0
        assert len(opt.info["surrogate"]) == 1
    opt = TargetSurrogate([w], target_lr=1.0, inner_steps=100, inner_lr=1.0, c=0.4, reduction="sum")
    opt.step(lambda: w, lambda z: z.square().sum() / 2)
    assert opt.info["inner_steps"] == 1  # one step of size eta is the minimizer


def test_callable_inner_and_undoing_of_divergence():
    X, _, Y = data()
    made = []

    def adam(params):
        made.append(torch.optim.Adam(params, 0.05))
        return made[-1]

    model = network()
    opt = TargetSurrogate(model.parameters(), target_lr=0.5, inner=adam, inner_steps=7)
    opt.step(lambda: model(X), lambda z: squared(z, Y))
    opt.step(lambda: model(X), lambda z: squared(z, Y))
    assert len(made) == 2
    assert len(opt.info["surrogate"]) == 8
    assert opt.info["inner_steps"] == 7
    before = values(model.parameters())
    wild = TargetSurrogate(model.parameters(), target_lr=0.5, inner=sgd(1e200), inner_steps=5)
    with pytest.warns(ConvergenceWarning):
        wild.step(lambda: model(X), lambda z: squared(z, Y))
    assert same(before, model.parameters())
    with pytest.raises(TypeError, match=r"inner\(params\) must be a torch.optim.Optimizer"):
        TargetSurrogate(model.parameters(), inner=lambda p: 3).step(lambda: model(X), lambda z: squared(z, Y))
    assert same(before, model.parameters())


def test_an_error_inside_restores_parameters_and_gradients():
    X, _, Y = data()
    for inner in ("armijo", "lbfgs", sgd(0.1)):
        model, calls = network(), 0
        opt = TargetSurrogate(model.parameters(), inner=inner)

        def forward(model=model):
            nonlocal calls
            calls += 1
            if calls == 5:
                raise KeyboardInterrupt
            return model(X)

        before = values(model.parameters())
        with pytest.raises(KeyboardInterrupt):
            opt.step(forward, lambda z: squared(z, Y))
        assert same(before, model.parameters())
        assert all(p.grad is None for p in model.parameters())
        assert opt.n_steps == 0


# ------------------------------------------------------------------------------------------------------- interface


def test_black_box_loss_and_closure_idiom_give_the_same():
    X, _, Y = data()
    models = [network() for _ in range(3)]
    opts = [TargetSurrogate(m.parameters(), target_lr="armijo", inner="lbfgs") for m in models]

    def black_box(z: Tensor) -> tuple[float, Tensor]:
        assert not torch.is_grad_enabled() or z.requires_grad
        z = z.detach()
        return float(squared(z, Y)), 2 * (z - Y) / 30

    for _ in range(3):
        a = opts[0].step(lambda: models[0](X), lambda z: squared(z, Y))
        b = opts[1].step(lambda: models[1](X), black_box)
        c = opts[2].step_closure(lambda: (models[2](X), lambda z: squared(z, Y)))
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
        assert torch.equal(a, c)
        assert not a.requires_grad
    assert gap(models[1].parameters(), models[0].parameters()) < 1e-9
    assert same(models[2].parameters(), models[0].parameters())
    assert opts[0].info == opts[2].info


def test_only_one_gradient_of_the_loss_a_step():
    X, _, Y = data()
    for inner in ("armijo", "lbfgs", sgd(0.01)):
        model = network()
        opt = TargetSurrogate(model.parameters(), inner=inner, inner_steps=20)
        for t in range(1, 4):
            opt.step(lambda m=model: m(X), lambda z: squared(z, Y))
            assert opt.info["loss_calls"] == t
            assert opt.info["forward_calls"] >= 20


def test_chunks_agree_with_the_whole():
    X, _, Y = data()
    reference = network()
    whole = TargetSurrogate(reference.parameters(), inner="lbfgs", weight_decay=0.01)
    for _ in range(3):
        whole.step(lambda: reference(X), lambda z: squared(z, Y))
    for chunk in (7, 10, 40):
        model, sizes = network(), []

        def forward(rows: slice, model=model, sizes=sizes) -> Tensor:
            sizes.append(len(X[rows]))
            return model(X[rows])

        opt = TargetSurrogate(model.parameters(), inner="lbfgs", weight_decay=0.01, chunk_size=chunk)
        for _ in range(3):
            opt.step(forward, lambda z: squared(z, Y))
        assert gap(model.parameters(), reference.parameters()) < 1e-8
        assert max(sizes) <= chunk
        assert opt.info["loss_calls"] == 3
        closure = TargetSurrogate(model.parameters(), chunk_size=chunk)
        closure.step_closure(lambda rows, m=model: (m(X[rows]), lambda z: squared(z, Y)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inner", ["armijo", "lbfgs", sgd(0.05)])
def test_half_precision_models_have_a_surrogate_in_single(dtype, inner):
    X, k, _ = data()
    model = network(dtype=dtype)
    seen = []

    def loss(z: Tensor) -> Tensor:
        seen.append(z.dtype)
        return F.cross_entropy(z, k)

    opt = TargetSurrogate(model.parameters(), target_lr=2.0, inner=inner, inner_steps=5)
    first = opt.step(lambda: model(X.to(dtype)), loss)
    for _ in range(10):
        last = opt.step(lambda: model(X.to(dtype)), loss)
    assert set(seen) == {torch.float32}
    assert all(p.dtype == dtype for p in model.parameters())
    assert last < first - 0.1
    assert last.dtype == torch.float32


def test_half_precision_steps_accumulate_within_a_step():
    """Steps far below the rounding of a parameter add up, since they are made on a float32 copy."""
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    opt = TargetSurrogate([w], target_lr=1e9, inner=sgd(1e-3), inner_steps=20, reduction="sum")
    opt.step(lambda: w, lambda z: -z.sum())  # 20 steps of 0.001; the spacing above 1 is 0.0078
    assert w.item() == torch.tensor(1.02).bfloat16().item()


def test_frozen_unused_and_foreign_parameters_stay():
    X, _, Y = data()
    model = network()
    frozen = nn.Parameter(torch.ones(3, dtype=D64), requires_grad=False)
    unused = nn.Parameter(torch.ones(3, dtype=D64))
    for inner in ("armijo", "lbfgs", sgd(0.1)):
        opt = TargetSurrogate([*model.parameters(), frozen, unused], weight_decay=0.1, inner=inner)
        opt.step(lambda: model(X), lambda z: squared(z, Y))
        assert torch.equal(frozen, torch.ones(3, dtype=D64))
        assert torch.equal(unused, torch.ones(3, dtype=D64))


def test_gradients_are_left_as_found():
    X, _, Y = data()
    for inner in ("armijo", "lbfgs", sgd(0.1)):
        model = network()
        squared(model(X), Y).backward()
        grads, copies = [p.grad for p in model.parameters()], [p.grad.clone() for p in model.parameters()]
        TargetSurrogate(model.parameters(), inner=inner).step(lambda m=model: m(X), lambda z: squared(z, Y))
        assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
        assert same(grads, copies)


def test_forward_must_be_deterministic():
    X, _, Y = data()
    model = nn.Sequential(network(), nn.Dropout(0.5))
    generator_state = torch.get_rng_state()
    before = values(model.parameters())
    with pytest.raises(RuntimeError, match="different targets at the same parameters"):
        TargetSurrogate(model.parameters()).step(lambda: model(X), lambda z: squared(z, Y))
    assert same(before, model.parameters())
    model.eval()
    opt = TargetSurrogate(model.parameters(), inner_steps=1, inner=sgd(0.1))
    opt.step(lambda: model(X), lambda z: squared(z, Y))
    first = opt.info["forward_calls"]
    opt.step(lambda: model(X), lambda z: squared(z, Y))
    assert opt.info["forward_calls"] - first == first - 1  # checked in the first step only
    torch.set_rng_state(generator_state)
    model.train()
    free = TargetSurrogate(model.parameters(), check_deterministic=False, inner=sgd(0.1))
    free.step(lambda: model(X), lambda z: squared(z, Y))


def test_foreach_agrees():
    X, _, Y = data()
    ends = []
    for foreach in (False, True):
        model = network()
        opt = TargetSurrogate(model.parameters(), foreach=foreach)
        for _ in range(3):
            opt.step(lambda m=model: m(X), lambda z: squared(z, Y))
        ends.append(values(model.parameters()))
    assert gap(ends[0], ends[1]) < 1e-13


def test_maximize_reports_what_it_maximizes():
    X, _, Y = data()
    model, twin = network(), network()
    up = TargetSurrogate(model.parameters(), maximize=True)
    down = TargetSurrogate(twin.parameters())
    for _ in range(3):
        value = up.step(lambda: model(X), lambda z: -squared(z, Y))
        down.step(lambda: twin(X), lambda z: squared(z, Y))
    assert same(model.parameters(), twin.parameters())
    assert float(value) == up.info["loss"] == -down.info["loss"]
    assert up.info["surrogate"] == [-s for s in down.info["surrogate"]]


# ------------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("rule", ["adagrad", "armijo", 0.3])
def test_continues_from_a_file_bit_by_bit(rule):
    X, _, Y = data()
    model, twin = network(), network(seed=5)
    make = partial(TargetSurrogate, target_lr=rule, schedule="sqrt", inner="lbfgs", inner_steps=4)
    opt, other = make(model.parameters()), make(twin.parameters())
    for _ in range(3):
        opt.step(lambda: model(X), lambda z: squared(z, Y))
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(through_a_file(opt.state_dict()))
    for _ in range(2):
        opt.step(lambda: model(X), lambda z: squared(z, Y))
        other.step(lambda: twin(X), lambda z: squared(z, Y))
    assert same(model.parameters(), twin.parameters())
    assert opt.info == other.info


class Through(family.Case):
    """The family's cases, stepped through targets: all entries of the parameters, the second by direction."""

    def step(self, opt, params, k, sign=1.0):
        opt.step(lambda: _entries(params), lambda z: sign * _loss_of_entries(z, k))


def _entries(params: list[Tensor]) -> Tensor:
    turned = (
        p / p.norm(dim=1, keepdim=True) if i == 1 and p.dim() == 2 else p
        for i, p in enumerate(params)
        if p.requires_grad
    )
    return torch.cat([p.reshape(-1) for p in turned])


def _loss_of_entries(z: Tensor, k: int) -> Tensor:
    g = torch.Generator().manual_seed(1000 + k)
    a, b = (torch.randn(z.shape, generator=g, dtype=D64).to(z.dtype) for _ in range(2))
    return (b * (z - a).tanh() + 0.3 * (z - a) ** 2).sum() + 0.5 * z.mean() ** 2


APPLICABLE = [
    family.check_is_a_torch_optimizer_that_moves,
    family.check_accepts_tensors_named_pairs_and_groups,
    family.check_follows_a_scheduler,
    family.check_updates_in_place,
    family.check_takes_any_memory_layout,
    family.check_maximize_is_minimize_of_the_negative,
    family.check_refuses_bad_arguments,
    family.check_state_follows_the_parameter,
    family.check_continues_from_a_file_bit_by_bit,
    family.check_loading_copies,
    family.check_copies_and_pickles,
    family.check_takes_a_group_in_the_middle,
]
"""What of the family's examination a step with arguments can pass.

The others call ``step()`` or ``step(closure)`` on gradients that `backward` left (closures, skipped, accumulated,
sparse and non-finite gradients, their layouts and graphs, GradScaler, autocast, memory, compilation, two ranks): this
optimizer reads no ``.grad``. Groups may not differ in ``lr``, which two more ask for (own hyperparameters, repr), and
there is no ``capturable`` or state per parameter, so that a
checkpoint of AdamW holds nothing for it. Tests of this file cover what has a counterpart here.
"""


def _make(params, lr=1.0, **options):
    """Build it as the examination does: with the groups' ``lr``, which the constructor does not take."""
    check = {"params": params} if isinstance(params, Tensor) else params
    opt = TargetSurrogate(check, target_lr=0.3, inner_steps=3, reduction="sum", **options)
    for group in opt.param_groups:
        group["lr"] = lr
    opt._check_param_group(0)
    return opt


@pytest.mark.parametrize("check", APPLICABLE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("inner", ["armijo", "lbfgs"])
def test_contract(check, inner):
    check(Through("TargetSurrogate", partial(_make, inner=inner), paths=False, native=False))


def test_repr_and_deepcopy():
    opt = TargetSurrogate(parameters(), target_lr="adagrad")
    assert "target_lr: adagrad" in repr(opt)
    assert copy.deepcopy(opt).param_groups[0]["target_lr"] == "adagrad"


# ------------------------------------------------------------------------------------------------ several processes


def _train(
    part: slice, process_group: str | None, rule: float | str, reduction: str, inner
) -> tuple[list[Tensor], list]:
    X, _, Y = data(n=32)
    X, Y = X[part], Y[part]
    model = network()
    loss = squared if reduction == "mean" else lambda z, y: (z - y).square().sum()
    decays = [{"params": list(model[0].parameters()), "weight_decay": 0.02}, {"params": list(model[2].parameters())}]
    opt = TargetSurrogate(
        decays, target_lr=rule, reduction=reduction, process_group=process_group, inner=inner, inner_lr=1.0,
        max_backtracks=200,
    )  # fmt: skip
    history = []
    for _ in range(4):
        opt.step(lambda: model(X), lambda z: loss(z, Y))
        history.append(dict(opt.info))
    return values(model.parameters()), history


RUNS = [
    (0.3, "mean", "lbfgs"),
    ("armijo", "mean", "armijo"),
    ("adagrad", "mean", "armijo"),
    ("adagrad", "sum", "lbfgs"),
]


def _rank(rank: int, folder: str) -> tuple[list, str]:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        runs = [_train(slice(16 * rank, 16 * rank + 16), "default", *run) for run in RUNS]
        model = network()
        X, _, Y = data(n=32)
        opt = TargetSurrogate(model.parameters(), process_group="default")
        try:  # one rank alone sees the infinity; both must stop
            opt.step(lambda: model(X), lambda z: squared(z, Y) / (rank if rank else 0.0))
        except FloatingPointError as error:
            message = str(error)
        return runs, message
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one_process_with_the_joined_batch():
    with tempfile.TemporaryDirectory() as folder, processes.pool(1) as pool:
        other = pool.submit(_rank, 1, folder)
        ranks = [_rank(0, folder), other.result(timeout=240)]
    for i, run in enumerate(RUNS):
        alone, history = _train(slice(0, 32), None, *run)
        (first, info), (second, info_too) = ranks[0][0][i], ranks[1][0][i]
        assert same(first, second), run
        assert info == info_too
        assert gap(first, alone) < 1e-7, run
        for ours, theirs in zip(info, history, strict=True):
            for name in ("inner_steps", "backtracks", "target_backtracks", "loss_calls", "forward_calls"):
                assert ours[name] == theirs[name], (run, name)
            assert math.isclose(ours["eta"], theirs["eta"], rel_tol=1e-9)
            if run[1] == "mean":
                assert math.isclose(ours["loss"], theirs["loss"], rel_tol=1e-8)
    assert "not finite" in ranks[0][1]
    assert ranks[0][1] == ranks[1][1]


# ---------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(("options", "match"), [
    ({"target_lr": 0.0}, "target_lr must be a number > 0, 'armijo' or 'adagrad', got 0.0"),
    ({"target_lr": -1.0}, "target_lr"),
    ({"target_lr": math.nan}, "target_lr"),
    ({"target_lr": "auto"}, "target_lr"),
    ({"inner_steps": 0}, "inner_steps must be an integer >= 1"),
    ({"inner": "newton"}, "inner must be"),
    ({"divergence": "hellinger"}, "divergence must be one of"),
    ({"schedule": "cosine"}, "schedule must be one of"),
    ({"schedule": "exponential"}, "total_steps must be the number of outer steps"),
    ({"reduction": "none"}, "reduction must be one of"),
    ({"inner_lr": 0.0}, "inner_lr"),
    ({"backtrack": 1.0}, "backtrack"),
    ({"expand": 0.5}, "expand"),
    ({"weight_decay": -0.1}, "weight_decay"),
    ({"chunk_size": 0}, "chunk_size"),
])  # fmt: skip
def test_refuses_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        TargetSurrogate(parameters(), **options)


def test_refuses_wrong_kinds_and_differing_groups():
    for options in ({"target_lr": None}, {"inner": 3}, {"inner_steps": 2.5}, {"check_deterministic": 1}):
        with pytest.raises(TypeError, match=next(iter(options))):
            TargetSurrogate(parameters(), **options)
    params = parameters()
    with pytest.raises(ValueError, match=r"target_lr of group 1 must be that of group 0, 1.0, got 2.0"):
        TargetSurrogate([{"params": params[:2]}, {"params": params[2:], "target_lr": 2.0}])
    opt = TargetSurrogate(params[:2])
    with pytest.raises(ValueError, match="target_lr of group 1"):
        opt.add_param_group({"params": params[2:], "target_lr": "armijo"})
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": params[2:]})
    opt.param_groups[1]["target_lr"] = 0.5
    with pytest.raises(ValueError, match="target_lr of group 1"):
        opt.step(lambda: _entries(params), lambda z: z.sum())
    with pytest.raises(ValueError, match="real"):
        TargetSurrogate([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


def test_refuses_bad_losses_and_forwards_before_anything_changes():
    X, k, _ = data()
    model = network()
    opt = TargetSurrogate(model.parameters())
    before = values(model.parameters())
    cases = [
        (lambda: model(X), lambda z: z.square(), ValueError, r"target_loss\(z\) must be a scalar"),
        (lambda: model(X), lambda z: 1.0, ValueError, "scalar tensor or a pair"),
        (lambda: model(X), lambda z: torch.tensor(1.0), ValueError, "function of z"),
        (lambda: model(X), lambda z: (1.0, z, z), ValueError, "pair"),
        (lambda: model(X), lambda z: (1.0, z[:3]), ValueError, r"targets' shape \(30, 3\)"),
        (lambda: model(X), lambda z: (1.0, 2.0), TypeError, "gradient of target_loss must be a tensor"),
        (lambda: X, lambda z: z.sum(), ValueError, r"forward\(\) must depend on a parameter"),
        (lambda: network(seed=1)(X), lambda z: z.sum(), ValueError, r"forward\(\) must depend on a parameter"),
        (lambda: 3.0, lambda z: z, ValueError, r"forward\(\) must be a tensor"),
        (lambda: model(X).sum(), lambda z: z, ValueError, r"forward\(\) must be a tensor"),
        (lambda: model(X), lambda z: z.sum() / 0, FloatingPointError, "the loss: not finite"),
        (lambda: model(X), lambda z: (1.0, z.detach() / 0), FloatingPointError, "the gradient of the loss: not finite"),
        (lambda: model(X) / 0, lambda z: z.sum(), FloatingPointError, r"the targets forward\(\) gave: not finite"),
        (lambda: Overflow.apply(model(X)), lambda z: z.sum(), FloatingPointError, "gradient of the surrogate"),
    ]
    for forward, loss, kind, match in cases:
        with pytest.raises(kind, match=match):
            opt.step(forward, loss)
        assert same(before, model.parameters())
        assert opt.n_steps == 0
        assert opt.info == {}
    logits = TargetSurrogate(model.parameters(), divergence="kl")
    with pytest.raises(ValueError, match="logits of shape"):
        logits.step(lambda: model(X)[:, 0], lambda z: z.sum())
    table = nn.Embedding(4, 3, sparse=True)
    with pytest.raises(RuntimeError, match="sparse"):
        TargetSurrogate(table.parameters()).step(lambda: table(k), lambda z: z.square().sum())


class Overflow(torch.autograd.Function):
    """Finite forward, infinite backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.inf


def test_non_finite_values_leave_the_rules_alone():
    X, _, Y = data()
    for rule in ("armijo", "adagrad"):
        model = network()
        opt = TargetSurrogate(model.parameters(), target_lr=rule)
        opt.step(lambda m=model: m(X), lambda z: squared(z, Y))
        state, before = opt.state_dict()["steepest"], values(model.parameters())
        with pytest.raises(FloatingPointError):
            opt.step(lambda m=model: m(X), lambda z: squared(z, Y) * math.nan)
        after = opt.state_dict()["steepest"]
        assert same(before, model.parameters())
        for name in ("n_steps", "adagrad_sum", "searched_eta"):
            assert after[name] == state[name]


def test_process_group_needs_torch_distributed():
    with pytest.raises(RuntimeError, match=r"torch\.distributed"):
        TargetSurrogate(parameters(), process_group="default")
