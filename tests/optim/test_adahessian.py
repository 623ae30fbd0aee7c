"""AdaHessian: transcription with known Hessians, estimator statistics, both ways in, states, peers, misuse."""

import gc
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steepest.curvature.diagonal import hessian_diagonal
from steepest.optim import AdaHessian
from tests.optim.curvature_problems import backward, coefficients, coupled, make_params, quartic, tanh_network


def run_quartic(steps: int, *, k: int = 1, seed: int = 0, **options) -> tuple[list[nn.Parameter], AdaHessian]:
    params, a = make_params(), coefficients()
    opt = AdaHessian(params, update_each=k, seed=seed, **options)
    for _ in range(steps):
        loss = quartic(params, a)
        if opt.hessian_due():
            opt.update_hessian(loss, retain_graph=True)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return params, opt


# ------------------------------------------------------------------------------------------------------------ exact


def block_mean(D: np.ndarray, block: str | int | None) -> np.ndarray:
    """Step 2 of the algorithm, written with loops; the mean is copied to every element of its block."""
    if block is None or D.ndim == 0:
        return D
    if isinstance(block, int):
        if D.ndim == 1:
            return D
        flat = D.reshape(-1).copy()
        for start in range(0, len(flat), block):
            flat[start : start + block] = flat[start : start + block].mean()
        return flat.reshape(D.shape)
    out = D.copy()
    if D.ndim >= 3:
        for o in range(D.shape[0]):
            for i in range(D.shape[1]):
                out[o, i] = D[o, i].mean()
    elif D.ndim == 2 and block == "row":
        for o in range(D.shape[0]):
            out[o] = D[o].mean()
    return out


def transcription(x, a, steps, *, lr, betas, eps, weight_decay, power, block, average, k, maximize=False):
    """Steps 1 to 5 on the quartic."""
    b1, b2 = betas
    x = [t.copy() for t in x]
    m, v = [np.zeros_like(t) for t in x], [np.zeros_like(t) for t in x]
    n = 0
    for t in range(1, steps + 1):
        fresh = (t - 1) % k == 0
        n += fresh
        for i in range(len(x)):
            g = a[i] * x[i] ** 3 / 3 * (-1 if maximize else 1)
            if fresh:
                D = a[i] * x[i] ** 2
                D_s = block_mean(D if average == "signed" else np.abs(D), block)
                v[i] = b2 * v[i] + (1 - b2) * D_s**2
            m[i] = b1 * m[i] + (1 - b1) * g
            denominator = (v[i] / (1 - b2**n)) ** (power / 2) + eps
            x[i] = x[i] - lr * (m[i] / (1 - b1**t) / denominator + weight_decay * x[i])
    return x, m, v, n


@pytest.mark.parametrize("average", ["signed", "abs"])
@pytest.mark.parametrize("block", ["auto", "row", None, 1, 4, 5, 1000])
@pytest.mark.parametrize(
    ("power", "k", "path"),
    [
        (1.0, 1, {"foreach": False, "compile": False}),
        (0.5, 1, {"foreach": True}),
        (1.0, 3, {"compile_after": 0}),
        (0.7, 4, {"compile_after": 10, "foreach": False}),
    ],
)
def test_thirty_steps_equal_a_transcription(average, block, power, k, path):
    settings = {"lr": 0.004, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    params, opt = run_quartic(30, k=k, hessian_power=power, block=block, average=average, **settings, **path)
    start = [p.detach().numpy() for p in make_params()]
    a = [c.numpy() for c in coefficients()]
    x, m, v, n = transcription(start, a, 30, power=power, block=block, average=average, k=k, **settings)
    for p, want, m_want, v_want, diagonal in zip(params, x, m, v, opt.hessian_diagonal()):
        np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(opt.state[p]["exp_avg"].numpy(), m_want, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(diagonal.numpy(), np.sqrt(v_want / (1 - 0.99**n)), rtol=1e-10, atol=1e-12)
        assert float(opt.state[p]["hessian_step"]) == n
        assert float(opt.state[p]["step"]) == 30


def test_defaults_are_the_official_ones():
    group = AdaHessian(make_params()).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.15, (0.9, 0.999), 1e-4, 0.0)
    assert (group["hessian_power"], group["block"], group["average"]) == (1.0, "auto", "signed")


def test_one_joint_probe_of_signs_for_all_tensors():
    """D = z * (H z) with one z over all parameters: some sign pattern reproduces the whole estimate exactly."""
    g = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=g, dtype=torch.float64)
    A = A + A.T
    p, q = (nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64)) for s in ((2, 2), (2,)))
    opt = AdaHessian([p, q], lr=0.0, betas=(0.0, 0.0), block=None, seed=3)

    def loss() -> Tensor:
        x = torch.cat([p.reshape(-1), q])
        return 0.5 * x @ A @ x

    seen = set()
    for _ in range(8):
        opt.update_hessian(loss)
        loss().backward()
        opt.step()
        got = torch.cat([d.reshape(-1) for d in opt.hessian_diagonal()])  # |D|
        signs = torch.tensor([[1.0 if b >> i & 1 else -1.0 for i in range(6)] for b in range(64)]).double()
        errors = ((signs * (signs @ A)).abs() - got).abs().amax(1)
        assert float(errors.min()) < 1e-12
        seen.add(int(errors.argmin()) % 32)
    assert len(seen) > 2  # a fresh probe for every call


def test_hutchinson_is_unbiased_and_exact_on_diagonal_hessians():
    params, loss, H = tanh_network()
    assert sum(p.numel() for p in params) == 30
    estimate = hessian_diagonal(loss(), params, n_samples=4_000, generator=torch.Generator().manual_seed(0))
    got = torch.cat([d.reshape(-1) for d in estimate])
    assert float((got - H.diagonal()).norm() / H.diagonal().norm()) <= 0.03
    x, a = make_params(), coefficients()
    for d, p, c in zip(hessian_diagonal(quartic(x, a), x, generator=torch.Generator().manual_seed(1)), x, a):
        torch.testing.assert_close(d, c * p.detach() ** 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_samples", [1, 4])
def test_several_probes_are_averaged_before_blocks_and_squares(n_samples):
    params, loss, _ = tanh_network()
    opt = AdaHessian(params, lr=0.0, betas=(0.0, 0.0), block="row", n_samples=n_samples, seed=5)
    D = hessian_diagonal(loss(), params, n_samples=n_samples, generator=torch.Generator().manual_seed(5))
    opt.update_hessian(loss)
    loss().backward()
    opt.step()
    for p, d, got in zip(params, D, opt.hessian_diagonal()):
        want = d.mean(1, keepdim=True).expand_as(d) if d.ndim == 2 else d
        torch.testing.assert_close(got, want.abs(), rtol=1e-12, atol=1e-14)
        assert opt.state[p]["exp_hessian_diag_sq"].numel() == (p.shape[0] if p.ndim == 2 else p.numel())


# ------------------------------------------------------------------------------------------------- headline claims


def test_running_root_mean_square_smooths_the_estimate():
    """Stationary noisy quadratic, 200 steps: sqrt(v_hat) spreads at most a fifth of what the raw |D| does."""
    d = 60
    g = torch.Generator().manual_seed(0)
    A = torch.randn(d, d, generator=g, dtype=torch.float64) / math.sqrt(d) + 3 * torch.eye(d, dtype=torch.float64)
    A = (A + A.T) / 2
    raw, smooth = [], []
    for seed in range(30):
        x = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        opt, once = (AdaHessian([x], lr=0.0, betas=(0.0, b), block=None, seed=seed) for b in (0.999, 0.0))
        for _ in range(200 if seed < 8 else 0):
            opt.update_hessian(0.5 * x @ A @ x)
            x.grad = torch.zeros_like(x)
            opt.step()
        once.update_hessian(0.5 * x @ A @ x)
        x.grad = torch.zeros_like(x)
        once.step()
        raw.append(once.hessian_diagonal()[0])
        if seed < 8:
            smooth.append(opt.hessian_diagonal()[0])
    spread = [torch.stack(s).std(0) / torch.stack(s).mean(0) for s in (raw, smooth)]
    assert float((spread[1] / spread[0]).mean()) <= 0.2


@pytest.mark.parametrize("betas", [(0.0, 0.99)])
def test_one_learning_rate_for_any_condition_number(betas):
    """Diagonal quadratics: the steps to 1e-8 do not depend on kappa at lr 1 (gradient descent's grow with it)."""
    steps = {}
    for kappa in (1e2, 1e4, 1e6):
        a = torch.logspace(0, math.log10(kappa), 20, dtype=torch.float64)
        x = nn.Parameter(torch.ones(20, dtype=torch.float64))
        opt = AdaHessian([x], lr=1.0, betas=betas, eps=1e-4, seed=0)
        first = float((0.5 * a * x.detach() ** 2).sum())
        for t in range(1, 200):  # noqa: B007
            loss = (0.5 * a * x**2).sum()
            opt.update_hessian(loss, retain_graph=True)
            opt.zero_grad()
            loss.backward()
            opt.step()
            if float((0.5 * a * x.detach() ** 2).sum()) <= 1e-8 * first:
                break
        steps[kappa] = t
    assert max(steps.values()) / min(steps.values()) <= 1.1
    assert max(steps.values()) < 20


# -------------------------------------------------------------------------------------------------------- properties


def both_ways(k: int, **options):
    runs = []
    for graph in (False, True):
        params, a = make_params(), coefficients()
        opt = AdaHessian(params, lr=0.02, update_each=k, n_samples=2, seed=7, **options)
        for _ in range(7):
            loss = coupled(params, a)
            due = opt.hessian_due()
            if due and not graph:
                opt.update_hessian(loss, retain_graph=True)
            opt.zero_grad()
            backward(loss, create_graph=due and graph)
            opt.step()
            assert all(p.grad.grad_fn is None and not p.grad.requires_grad for p in params)
        runs.append((params, opt))
    return runs


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_both_ways_in_give_equal_states(k, distribution):
    (p_a, a), (p_b, b) = both_ways(k, distribution=distribution, block=4)
    for x, y in zip(p_a, p_b):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)
        for name in ("exp_avg", "exp_hessian_diag_sq", "hessian_step", "step"):
            torch.testing.assert_close(a.state[x][name], b.state[y][name], rtol=1e-13, atol=1e-13)
    assert a.missed_updates == b.missed_updates == 0


def test_closure_that_keeps_the_graph():
    params, a = make_params(), coefficients()
    twin = [nn.Parameter(p.detach().clone()) for p in params]
    opt, other = AdaHessian(params, lr=0.02, seed=1), AdaHessian(twin, lr=0.02, seed=1)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = coupled(params, a)
        backward(loss, create_graph=True)
        return loss

    for _ in range(3):
        value = opt.step(closure)
        loss = coupled(twin, a)
        other.update_hessian(loss, retain_graph=True)
        other.zero_grad()
        loss.backward()
        other.step()
        assert float(value.detach()) == pytest.approx(float(loss.detach()), rel=1e-13)
    for x, y in zip(params, twin):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("graph", [True, False])
def test_live_tensors_are_constant_over_fifty_steps(graph):
    """`create_graph=True` makes a cycle of parameter and gradient; `step` breaks it without the collector's help."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    params = list(model.parameters())
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    opt = AdaHessian(params, lr=0.01, seed=0)
    counts = []
    gc.collect()
    gc.disable()
    try:
        for t in range(50):
            loss = model(x).square().mean()
            if not graph:
                opt.update_hessian(loss, retain_graph=True)
            opt.zero_grad()
            backward(loss, create_graph=graph)
            opt.step()
            del loss
            if t in (2, 10, 30, 49):
                counts.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
    finally:
        gc.enable()
    assert len(counts) == 4
    assert len(set(counts)) == 1


def test_groups_of_equal_shapes_get_their_own_gradients_and_curvature():
    """The official multi-group code gives the second group the first one's estimates."""
    p, q = (nn.Parameter(torch.full((3,), 1.0, dtype=torch.float64)) for _ in range(2))
    opt = AdaHessian([{"params": [p]}, {"params": [q], "lr": 0.5}], lr=1.0, betas=(0.0, 0.5), eps=0.0, seed=0)
    loss = (0.5 * p**2).sum() + (50.0 * q**2).sum()
    opt.update_hessian(loss, retain_graph=True)
    loss.backward()
    opt.step()
    torch.testing.assert_close(opt.hessian_diagonal()[0], torch.full((3,), 1.0, dtype=torch.float64))
    torch.testing.assert_close(opt.hessian_diagonal()[1], torch.full((3,), 100.0, dtype=torch.float64))
    torch.testing.assert_close(p.detach(), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(q.detach(), torch.full((3,), 0.5, dtype=torch.float64))


def test_state_is_stored_at_block_resolution():
    params, opt = run_quartic(2, block="auto")
    sizes = [opt.state[p]["exp_hessian_diag_sq"].numel() for p in params]
    assert sizes == [2 * 3, 4 * 6, 5, 1, 3 * 2]
    assert opt.state[params[0]]["exp_hessian_diag_sq"].shape == (2, 3, 1, 1)
    assert [d.shape for d in opt.hessian_diagonal()] == [p.shape for p in params]


def test_channels_last_kernels_give_the_same_numbers():
    runs = []
    for layout in (torch.contiguous_format, torch.channels_last):
        g = torch.Generator().manual_seed(0)
        w = nn.Parameter(torch.randn(4, 3, 3, 3, generator=g, dtype=torch.float64).to(memory_format=layout))
        opt = AdaHessian([w], lr=0.02, seed=0)
        for _ in range(4):
            loss = (w**4).sum() / 12
            opt.update_hessian(loss, retain_graph=True)
            opt.zero_grad()
            loss.backward()
            opt.step()
        assert w.is_contiguous(memory_format=layout)
        assert opt.state[w]["exp_avg"].stride() == w.stride()
        runs.append(w.detach())
    torch.testing.assert_close(runs[0], runs[1].contiguous(), rtol=1e-13, atol=1e-13)


def test_parameters_without_second_derivative_are_counted():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    opt = AdaHessian([p, q], lr=1e-5, seed=0)
    for _ in range(2):
        opt.zero_grad()
        loss = p.square().sum() + q.sum()
        opt.update_hessian(loss, retain_graph=True)
        loss.backward()
        opt.step()
    assert opt.zero_curvature_parameters() == 1
    torch.testing.assert_close(q.detach(), torch.full((2,), 1 - 2 * 1e-5 / 1e-4))


def test_half_precision_keeps_float32_state():
    w = nn.Parameter(torch.ones(8, dtype=torch.float16))
    opt = AdaHessian([w], lr=0.01, seed=0)
    loss = (1e-5 * w.float().square()).sum()  # D^2 ~ 4e-10 is nothing in float16
    opt.update_hessian(loss, retain_graph=True)
    loss.backward()
    opt.step()
    assert opt.state[w]["exp_hessian_diag_sq"].dtype == torch.float32
    assert opt.state[w]["exp_avg"].dtype == torch.float32
    torch.testing.assert_close(opt.hessian_diagonal()[0], torch.full((8,), 2e-5), rtol=1e-2, atol=0.0)
    assert w.dtype == torch.float16


def test_maximize_is_the_mirror_of_minimize():
    runs = []
    for sign, maximize in ((1.0, True), (-1.0, False)):
        params, a = make_params(dtype=torch.float32), coefficients()
        opt = AdaHessian(params, lr=0.02, block=3, maximize=maximize, seed=0)
        for _ in range(5):
            loss = sign * coupled(params, a)
            opt.update_hessian(loss, retain_graph=True)
            opt.zero_grad()
            loss.backward()
            opt.step()
        runs.append([p.detach() for p in params])
    assert all(torch.equal(x, y) for x, y in zip(*runs))


# ------------------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_absolute_averages_reproduce_the_official_trajectory(power):
    """torch_optimizer's port of the official code (|H z|, kernels of four dimensions), exact probes."""
    torch_optimizer = pytest.importorskip("torch_optimizer")
    params, a = make_params()[:3], coefficients()
    twin = [nn.Parameter(p.detach().clone()) for p in params]
    settings = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1, "hessian_power": power}
    ours = AdaHessian(params, average="abs", seed=0, **settings)
    theirs = torch_optimizer.Adahessian(twin, **settings)
    for _ in range(10):
        for opt, x in ((ours, params), (theirs, twin)):
            opt.zero_grad()
            backward(quartic(x, a), create_graph=True)
            opt.step()
    for x, y in zip(params, twin):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be"),
        ({"eps": -1e-3}, "eps must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"betas": (0.9, -0.1)}, "betas"),
        ({"hessian_power": 0.0}, r"hessian_power must be .*got 0\.0"),
        ({"hessian_power": 1.5}, "hessian_power must be"),
        ({"update_each": 0}, "update_each must be"),
        ({"n_samples": 0}, "n_samples must be"),
        ({"update_each": 1.5}, "update_each must be"),
        ({"n_samples": 1.5}, "n_samples must be"),
        ({"block": "column"}, "block must be .*'column'"),
        ({"block": 0}, "block must be .*got 0"),
        ({"block": 2.5}, "block must be"),
        ({"block": True}, "block must be"),
        ({"average": "mean"}, "average must be"),
        ({"distribution": "uniform"}, "distribution must be"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AdaHessian(make_params(), **options)


def test_bad_settings_of_a_group_are_named():
    p = make_params()
    with pytest.raises(ValueError, match="block must be"):
        AdaHessian([{"params": p, "block": "column"}])


def test_first_step_without_curvature_names_both_ways():
    p = nn.Parameter(torch.ones(3))
    opt = AdaHessian([p])
    p.square().sum().backward()
    with pytest.raises(RuntimeError, match=r"update_hessian.*create_graph=True"):
        opt.step()
    torch.testing.assert_close(p.detach(), torch.ones(3))
    assert len(opt.state) == 0
