"""Sophia: transcriptions of G and H, unbiasedness of both estimators, bounds, accumulation, misuse."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.curvature.diagonal import gnb_diagonal, hessian_diagonal, sampled_label_loss
from steepest.optim import Sophia
from tests.optim.curvature_problems import coefficients, coupled, make_params, quartic, tanh_network

SHAPES = [(4, 3), (5,), ()]


def transcription(x, gradients, estimates, *, lr, betas, gamma, weight_decay, eps=1e-12, clip=1.0):
    """The algorithm box, one coordinate at a time; `estimates[t]` is None where none was made."""
    b1, b2 = betas
    x, m, h = [t.copy() for t in x], [np.zeros_like(t) for t in x], [np.zeros_like(t) for t in x]
    for g, h_est in zip(gradients, estimates):
        for i in range(len(x)):
            if h_est is not None:
                h[i] = np.asarray(b2 * h[i] + (1 - b2) * h_est[i])
            m[i] = np.asarray(b1 * m[i] + (1 - b1) * g[i])
            x[i] = np.asarray(x[i] * (1 - lr * weight_decay))
            for j in np.ndindex(x[i].shape):
                u = m[i][j] / max(gamma * h[i][j], eps)
                x[i][j] = x[i][j] - lr * min(max(u, -clip), clip)
    return x, m, h


SETTINGS = {"lr": 0.03, "betas": (0.9, 0.8), "gamma": 0.7, "weight_decay": 0.1}


# ------------------------------------------------------------------------------------------------------------ exact


PATHS = [{"foreach": False, "compile": False}, {"foreach": True}, {"compile_after": 0}, {"capturable": True}]


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("clip", [1.0, 0.3])
def test_gauss_newton_form_equals_a_transcription(clip, path):
    """25 steps, 3 tensors, gradients read from `p.grad` (the official convention): every number is known."""
    rng = np.random.default_rng(0)
    start = [rng.normal(size=s) for s in SHAPES]
    gradients = [[rng.normal(size=s) for s in SHAPES] for _ in range(25)]
    sampled = [[0.3 * rng.normal(size=s) for s in SHAPES] for _ in range(25)]
    params = [nn.Parameter(torch.tensor(t)) for t in start]
    opt = Sophia(params, update_each=4, clip=clip, **SETTINGS, **path)
    estimates = []
    for t in range(25):
        if opt.hessian_due():
            for p, g in zip(params, sampled[t]):
                p.grad = torch.tensor(g)
            opt.update_hessian(batch_size=20)
            estimates.append([20 * g * g for g in sampled[t]])
        else:
            estimates.append(None)
        for p, g in zip(params, gradients[t]):
            p.grad = torch.tensor(g)
        opt.step()
    assert [e is not None for e in estimates] == [t % 4 == 0 for t in range(25)]
    compare(params, opt, transcription(start, gradients, estimates, clip=clip, **SETTINGS))


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("maximize", [False, True])
def test_hutchinson_form_equals_a_transcription(maximize, path):
    """25 steps on quartics with negative curvature; Rademacher probes are exact on a diagonal Hessian."""
    params, a = make_params(shapes=SHAPES), coefficients(shapes=SHAPES)
    start, sign = [p.detach().numpy().copy() for p in params], -1.0 if maximize else 1.0
    opt = Sophia(params, estimator="hutchinson", distribution="rademacher", update_each=3, maximize=maximize, seed=0,
                 **SETTINGS, **path)  # fmt: skip
    gradients, estimates = [], []
    for t in range(25):
        loss = quartic(params, a)
        x = [p.detach().numpy().copy() for p in params]
        gradients.append([sign * c.numpy() * v**3 / 3 for c, v in zip(a, x)])
        estimates.append([sign * c.numpy() * v**2 for c, v in zip(a, x)] if t % 3 == 0 else None)
        if opt.hessian_due():
            opt.update_hessian(loss, retain_graph=True)
        opt.zero_grad()
        loss.backward()
        opt.step()
    compare(params, opt, transcription(start, gradients, estimates, **SETTINGS))
    assert any((opt.state[p]["hessian"] < 0).any() for p in params)


def compare(params, opt, wanted):
    for p, x, m, h in zip(params, *wanted):
        np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(opt.state[p]["exp_avg"].numpy(), m, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(opt.state[p]["hessian"].numpy(), h, rtol=1e-12, atol=1e-13)
        assert set(opt.state[p]) == {"step", "exp_avg", "hessian"}


@pytest.mark.parametrize(("estimator", "gamma"), [("gnb", 0.05), ("hutchinson", 0.01)])
def test_defaults_are_the_published_ones(estimator, gamma):
    opt = Sophia(make_params(), estimator=estimator)
    group = opt.param_groups[0]
    assert (group["lr"], group["betas"], group["gamma"]) == (6e-4, (0.965, 0.99), gamma)
    assert (group["weight_decay"], group["eps"], group["clip"]) == (0.1, 1e-12, 1.0)
    due = []
    for p in make_params():
        p.grad = torch.zeros_like(p)
    for _ in range(21):
        due.append(opt.hessian_due())
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        if due[-1]:
            opt.update_hessian(lambda: quartic(opt.param_groups[0]["params"], coefficients()), batch_size=1)
        opt.step()
    assert due == [t % 10 == 0 for t in range(21)]


def test_gauss_newton_bartlett_is_unbiased():
    """Softmax regression, 40 x 5: mean of h over 4,000 draws against the dense Gauss-Newton diagonal."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(40, 4, generator=g, dtype=torch.float64)
    W = nn.Parameter(torch.randn(5, 4, generator=g, dtype=torch.float64))
    P = (X @ W.detach().T).softmax(-1)
    exact = torch.einsum("nc,nd->cd", P * (1 - P), X**2) / 40  # diagonal of J^T (diag p - p p^T) J, averaged
    opt = Sophia([W], lr=0.0, betas=(0.0, 0.0), weight_decay=0.0, update_each=1)
    draws = torch.empty(4000, 5, 4, dtype=torch.float64)
    W.grad = torch.zeros_like(W)
    for k in range(4000):
        opt.update_hessian(sampled_label_loss(X @ W.T, g), batch_size=40)
        opt.step()
        draws[k] = opt.state[W]["hessian"]
    mean, error = draws.mean(0), draws.std(0) / math.sqrt(4000)
    assert ((mean - exact).abs() <= 4 * error).all()
    assert float((mean - exact).norm() / exact.norm()) <= 0.05
    assert float((draws.mean(0) / 40 - exact).norm() / exact.norm()) > 0.5  # a B per sequence would be seen


def test_hutchinson_with_gaussian_probes_is_unbiased():
    params, loss, H = tanh_network()
    opt = Sophia(params, lr=0.0, betas=(0.0, 0.0), weight_decay=0.0, estimator="hutchinson", n_samples=4_000, seed=0)
    opt.update_hessian(loss)
    loss().backward()
    opt.step()
    got = torch.cat([opt.state[p]["hessian"].reshape(-1) for p in params])
    exact = H.diagonal()
    assert float((got - exact).norm() / exact.norm()) <= 0.05
    large = exact.abs() > 0.1 * exact.abs().max()
    assert torch.equal(got[large].sign(), exact[large].sign())


def test_estimators_are_those_of_the_curvature_room():
    """Sophia-H draws Gaussian probes as `hessian_diagonal` does; Sophia-G squares as `gnb_diagonal` does."""
    params, a = make_params(), coefficients()
    opt = Sophia(params, betas=(0.9, 0.0), estimator="hutchinson", n_samples=3, seed=4)
    loss = coupled(params, a)
    wanted = hessian_diagonal(
        coupled(params, a), params, n_samples=3, distribution="gaussian", generator=torch.Generator().manual_seed(4)
    )
    opt.update_hessian(loss, retain_graph=True)
    loss.backward()
    opt.step()
    for p, h in zip(params, wanted):
        torch.testing.assert_close(opt.state[p]["hessian"], h, rtol=1e-12, atol=1e-12)
    params = make_params()
    opt = Sophia(params, betas=(0.9, 0.0))
    wanted = gnb_diagonal(coupled(params, a), params, 7)
    loss = coupled(params, a)
    opt.update_hessian(loss, batch_size=7, retain_graph=True)
    loss.backward()
    opt.step()
    for p, h in zip(params, wanted):
        torch.testing.assert_close(opt.state[p]["hessian"], h, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------- headline claims


@pytest.mark.parametrize("estimator", ["gnb", "hutchinson"])
@pytest.mark.parametrize("clip", [1.0, 0.5])
def test_no_coordinate_moves_by_more_than_lr_times_clip(estimator, clip):
    params, a = make_params(dtype=torch.float64), coefficients()
    opt = Sophia(params, lr=0.01, weight_decay=0.0, clip=clip, estimator=estimator, update_each=2, seed=0)
    reached = 0.0
    for _ in range(30):
        before = [p.detach().clone() for p in params]
        loss = coupled(params, a)
        if opt.hessian_due():
            opt.update_hessian(loss, batch_size=3, retain_graph=True)
        opt.zero_grad()
        loss.backward()
        opt.step()
        moved = max(float((p.detach() - b).abs().max()) for p, b in zip(params, before))
        assert moved <= 0.01 * clip * (1 + 1e-6)
        reached = max(reached, moved)
    assert reached >= 0.01 * clip * (1 - 1e-6)


def test_steps_do_not_depend_on_the_condition_number():
    """sum a_i (sqrt(1 + x_i^2) - 1), exact diagonal, b1 = b2 = 0, gamma 1, lr 0.5: steps to 1e-6 relative."""
    counts = {}
    for kappa in (1e1, 1e3, 1e5):
        a = torch.logspace(0, math.log10(kappa), 30, dtype=torch.float64)
        x = nn.Parameter(torch.full((30,), 2.0, dtype=torch.float64))
        opt = Sophia([x], lr=0.5, betas=(0.0, 0.0), gamma=1.0, weight_decay=0.0, estimator="hutchinson",
                     distribution="rademacher", update_each=1, seed=0)  # fmt: skip
        first = None
        for t in range(1, 300):  # noqa: B007
            loss = (a * ((1 + x**2).sqrt() - 1)).sum()
            value = float(loss.detach())
            first = first or value
            if value <= 1e-6 * first:
                break
            opt.update_hessian(loss, retain_graph=True)
            opt.zero_grad()
            loss.backward()
            opt.step()
        counts[kappa] = t
    assert max(counts.values()) / min(counts.values()) <= 1.2
    assert max(counts.values()) < 100


# -------------------------------------------------------------------------------------------------------- properties


def test_accumulated_gradients_are_summed_before_they_are_squared():
    """G = sum w_a g_a, B = sum B_a, h_est = B G G; squaring every micro-batch first is another estimator."""
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    opt = Sophia([p], lr=0.0, betas=(0.0, 0.0))
    c = [torch.tensor(v, dtype=torch.float64) for v in ([1.0, 3.0], [5.0, -3.0], [0.0, 1.0])]
    for v, B, w in zip(c, (8, 4, 4), (0.5, 0.25, 0.25)):
        opt.update_hessian((v * p).sum(), batch_size=B, weight=w)
    p.grad = torch.zeros_like(p)
    opt.step()
    G = 0.5 * c[0] + 0.25 * c[1] + 0.25 * c[2]
    torch.testing.assert_close(opt.state[p]["hessian"], 16 * G * G, rtol=1e-14, atol=0.0)


def test_without_a_loss_the_gradients_are_read_and_left_alone():
    p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    q = nn.Parameter(torch.ones(2, dtype=torch.float64))
    a, b = Sophia([p], betas=(0.9, 0.5), lr=0.1), Sophia([q], betas=(0.9, 0.5), lr=0.1)
    with torch.no_grad():
        q.copy_(p)
    for _ in range(3):
        p.grad = None
        (p**3).sum().backward()
        kept = p.grad
        before = kept.clone()
        a.update_hessian(batch_size=6)
        b.update_hessian((q**3).sum(), batch_size=6)
        assert p.grad is kept
        assert torch.equal(kept, before)
        kept.fill_(7.0)  # the estimate is a copy, not an alias
        for x, opt in ((p, a), (q, b)):
            x.grad = torch.ones_like(x)
            opt.step()
    assert torch.equal(p, q)
    assert torch.equal(a.state[p]["hessian"], b.state[q]["hessian"])


def test_before_any_estimate_every_coordinate_takes_a_sign_step():
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    opt = Sophia([p], lr=0.1, weight_decay=0.0)
    p.grad = torch.tensor([1e-3, -50.0, 0.0], dtype=torch.float64)
    opt.step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.1, 0.1, 0.0], dtype=torch.float64), rtol=1e-12, atol=0.0)
    assert opt.missed_updates == 1


def test_negative_curvature_takes_a_sign_step_too():
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    opt = Sophia([p], lr=0.1, betas=(0.0, 0.0), gamma=1.0, weight_decay=0.0, estimator="hutchinson",
                 distribution="rademacher", seed=0)  # fmt: skip
    loss = -50.0 * p.square().sum()
    opt.update_hessian(loss, retain_graph=True)
    loss.backward()
    opt.step()
    assert float(opt.state[p]["hessian"]) == -100.0
    assert float(p.detach()) == pytest.approx(1.1, rel=1e-12)


def test_unclipped_fraction_counts_coordinates():
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    q = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    opt = Sophia([{"params": [p]}, {"params": [q], "gamma": 2.0}], betas=(0.0, 0.0), gamma=1.0, update_each=1)
    assert math.isnan(opt.unclipped_fraction())
    scale = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    opt.update_hessian((scale * p).sum() + q.sum(), batch_size=1)  # h = 1, 4, 9, 0 and 1
    p.grad = torch.tensor([0.5, 5.0, 8.9, 1e-3], dtype=torch.float64)
    q.grad = torch.tensor([1.9], dtype=torch.float64)
    opt.step()
    assert opt.unclipped_fraction() == pytest.approx(3 / 5)


def test_small_gradients_do_not_underflow():
    """(sqrt(B) g)^2, not B (g g): g^2 = 1e-46 is zero in float32, B g^2 = 1e-40 is not."""
    p = nn.Parameter(torch.zeros(2))
    opt = Sophia([p], lr=0.0, betas=(0.0, 0.0))
    opt.update_hessian(1e-23 * p.sum(), batch_size=1_000_000)
    p.grad = torch.zeros_like(p)
    opt.step()
    torch.testing.assert_close(opt.state[p]["hessian"], torch.full((2,), 1e-40), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_float32_state_and_rounds_once(dtype):
    w = nn.Parameter(torch.full((8,), 0.5, dtype=dtype))
    twin = nn.Parameter(w.detach().float())
    opt, other = (Sophia([x], lr=1e-2, betas=(0.5, 0.5), weight_decay=0.1) for x in (w, twin))
    for x, o in ((w, opt), (twin, other)):
        o.update_hessian((1e-4 * x.float()).sum(), batch_size=100)  # B g^2 = 1e-6
        x.grad = torch.full_like(x, 1e-5)
        o.step()
    assert opt.state[w]["hessian"].dtype == opt.state[w]["exp_avg"].dtype == torch.float32
    torch.testing.assert_close(opt.state[w]["hessian"], other.state[twin]["hessian"], rtol=2e-2, atol=0.0)
    assert torch.equal(w.detach(), twin.detach().to(dtype))


def test_clipping_the_sampled_gradient_is_joint_and_happens_before_squaring():
    p, q = nn.Parameter(torch.zeros(1, dtype=torch.float64)), nn.Parameter(torch.zeros(1, dtype=torch.float64))
    opt = Sophia([p, q], lr=0.0, betas=(0.0, 0.0), hessian_grad_clip=1.0)
    opt.update_hessian(3.0 * p.sum() + 4.0 * q.sum(), batch_size=10)
    p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
    opt.step()
    assert float(opt.state[p]["hessian"]) == pytest.approx(10 * 0.6**2, rel=1e-5)
    assert float(opt.state[q]["hessian"]) == pytest.approx(10 * 0.8**2, rel=1e-5)
    opt.update_hessian(0.3 * p.sum() + 0.4 * q.sum(), batch_size=10)
    opt.step()
    assert float(opt.state[p]["hessian"]) == pytest.approx(10 * 0.3**2, rel=1e-12)


def test_maximize_leaves_the_gauss_newton_estimate_alone():
    p, q = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    up, down = Sophia([p], maximize=True), Sophia([q])
    for x, opt, sign in ((p, up, 1.0), (q, down, -1.0)):
        opt.update_hessian((x**2).sum(), batch_size=5)
        x.grad = sign * torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
        opt.step()
    assert torch.equal(p, q)
    assert torch.equal(up.state[p]["hessian"], down.state[q]["hessian"])
    assert (up.state[p]["hessian"] > 0).all()


# ------------------------------------------------------------------------------------------------------------- peers


def test_hutchinson_form_equals_pytorch_optimizer():
    """Their first-version form clip(m / max(h, eps), p) is ours with lr -> lr p and gamma = p."""
    peer = pytest.importorskip("pytorch_optimizer")
    params, a = make_params(shapes=SHAPES), coefficients(shapes=SHAPES)
    twin = [nn.Parameter(p.detach().clone()) for p in params]
    ours = Sophia(params, lr=0.05, betas=(0.9, 0.8), gamma=1.0, clip=0.5, weight_decay=0.0, estimator="hutchinson",
                  distribution="rademacher", update_each=2, seed=0)  # fmt: skip
    theirs = peer.SophiaH(twin, lr=0.05, betas=(0.9, 0.8), p=0.5, update_period=2, hessian_distribution="rademacher")
    for t in range(8):
        loss = quartic(params, a)
        if ours.hessian_due():
            ours.update_hessian(loss, retain_graph=True)
        ours.zero_grad()
        loss.backward()
        ours.step()
        grads = [c * p.detach() ** 3 / 3 for c, p in zip(a, twin)]
        curvature = [c * p.detach() ** 2 for c, p in zip(a, twin)]
        for p, g in zip(twin, grads):
            p.grad = g
        theirs.step(hessian=curvature if t % 2 == 0 else None)
        for p, q in zip(params, twin):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"gamma": 0.0}, "gamma must be .*got 0"),
        ({"clip": 0.0}, "clip must be"),
        ({"eps": 0.0}, "eps must be"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"update_each": 0}, "update_each must be"),
        ({"update_each": 2.5}, "update_each must be"),
        ({"n_samples": 0}, "n_samples must be"),
        ({"estimator": "fisher"}, "estimator must be .*'fisher'"),
        ({"distribution": "uniform"}, "distribution must be"),
        ({"hessian_grad_clip": 0.0}, "hessian_grad_clip must be"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Sophia(make_params(), **options)


def test_calls_that_cannot_work_say_what_to_call():
    params, a = make_params(), coefficients()
    G, H = Sophia(params), Sophia(params, estimator="hutchinson")
    with pytest.raises(ValueError, match="batch_size must be"):
        G.update_hessian(quartic(params, a))
    with pytest.raises(ValueError, match=r"batch_size must be .*got 0"):
        G.update_hessian(quartic(params, a), batch_size=0)
    with pytest.raises(RuntimeError, match="sampled_label_loss"):
        G.update_hessian(batch_size=4)
    with pytest.raises(ValueError, match=r"loss must be .*update_hessian\(loss\)"):
        H.update_hessian(batch_size=4)
    H.update_hessian(quartic(params, a), batch_size=None)
