"""Stability of SGD against dense algebra, enumeration of all batches and simulation; what a monitor leaves alone."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, hessian, jacrev

from steepest.core.errors import SteepestWarning
from steepest.curvature import GGNOperator
from steepest.landscape import (
    DiagonalLinear,
    StabilityMonitor,
    TwoLayerReLU,
    linear_stability,
    stability_of_factors,
)
from steepest.landscape._measures import _per_sample, bounds
from steepest.landscape._sample_space import FactorSamples, ModelSamples
from steepest.landscape._second_moment import Coordinates, critical_curvature, noise_fraction, second_moment_step

DOUBLE = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=generator(seed))


def fork(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def network(*widths, activation=nn.Tanh):
    def make():
        layers = []
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Linear(inner, outer), activation()]
        return nn.Sequential(*layers[:-1]).double()

    return fork(make)


def per_sample(A):  # (n, C, P) -> (n, P, P)
    return A.mT @ A


# ----------------------------------------------------------------------------------------- exact: the recursion and p


@pytest.mark.parametrize("C", [1, 2])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_noise_fraction_and_recursion_equal_the_mean_over_all_batches(C, replacement, batch_size):
    """E (I - lr H_b) M (I - lr H_b), enumerated."""
    n, P, lr = 5, 4, 0.3
    A = normal(n, C, P)
    H, M = per_sample(A), normal(P, P, seed=1)
    M = M @ M.T
    if replacement:
        batches = list(itertools.product(range(n), repeat=batch_size))
    else:
        batches = list(itertools.combinations(range(n), batch_size))
    steps = [torch.eye(P, dtype=DOUBLE) - lr * H[list(b)].mean(0) for b in batches]
    mean = sum(step @ M @ step for step in steps) / len(steps)
    p = noise_fraction(n, batch_size, replacement)
    coordinates = Coordinates.from_rows(A)
    V = torch.linalg.eigh(H.mean(0)).eigenvectors
    mine = V @ second_moment_step(coordinates, V.T @ M @ V, lr, p) @ V.T
    torch.testing.assert_close(mine, mean, rtol=1e-12, atol=1e-12)


def dense_critical(A, p):
    """lambda_max(C^+ D) from r^2 x r^2 Kronecker matrices."""
    H = per_sample(A)
    s, V = torch.linalg.eigh(H.mean(0))
    V = V[:, s > 1e-10 * s[-1]]
    H = V.T @ H @ V
    mean, eye = H.mean(0), torch.eye(V.shape[1], dtype=DOUBLE)
    C = (torch.kron(mean, eye) + torch.kron(eye, mean)) / 2
    D = (1 - p) * torch.kron(mean, mean) + p * sum(torch.kron(h, h) for h in H) / len(H)
    root = torch.linalg.inv(torch.linalg.cholesky(C))
    return float(torch.linalg.eigvalsh(root @ D @ root.T)[-1])


@pytest.mark.parametrize("shape", [(6, 1, 12), (6, 2, 5), (7, 1, 3), (1, 1, 4), (4, 3, 20)])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_exact_threshold_equals_the_dense_kronecker_operator(shape, p):
    A = normal(*shape)
    expected = dense_critical(A, p)
    n, C, P = shape
    flat = A.reshape(n * C, P)
    assert critical_curvature(Coordinates.from_gram(flat @ flat.T / n, n), p) == pytest.approx(expected, rel=1e-9)
    assert critical_curvature(Coordinates.from_rows(A), p) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_recursion_decays_below_the_threshold_and_grows_above(seed):
    """16,384 steps of the recursion, by squaring its matrix."""
    A = normal(6, 1 + seed % 2, 5, seed=seed)
    report = stability_of_factors(A, lr=1.0, batch_size=1 + seed % 3)
    coordinates = Coordinates.from_rows(A)
    r = len(coordinates.eigenvalues)
    for factor, grows in ((0.99, False), (1.01, True)):
        lr = factor * report.max_lr["exact"]
        columns = [
            second_moment_step(coordinates, E.view(r, r), lr, report.noise_fraction).reshape(-1)
            for E in torch.eye(r * r, dtype=DOUBLE)
        ]
        T = torch.stack(columns, 1)
        M = torch.linalg.matrix_power(T, 2**14) @ torch.eye(r, dtype=DOUBLE).reshape(-1)
        assert (float(M.norm()) > r) == grows


def test_a_threshold_by_hand():
    """One sample along each axis: every direction is on its own, E (1 - lr h)^2 <= 1 with h = 0 or n s."""
    report = stability_of_factors(torch.diag(torch.tensor([2.0, 1.0, 0.5])), lr=0.1)
    assert report.max_lr["exact"] == pytest.approx(2 / 4)  # sample curvature 4
    assert report.max_lr["gd"] == pytest.approx(2 / (4 / 3))
    assert report.max_lr["trace"] == pytest.approx(2 / (5.25 / 3))
    assert report.max_lr["necessary"] == pytest.approx(2 * 5.25 / (16 + 1 + 1 / 16))
    assert report.verdict == "stable"
    assert report.nearest == "exact"


def test_full_batch_is_gradient_descent_exactly():
    A = normal(9, 2, 7)
    report = stability_of_factors(A, lr=0.05, batch_size=9)
    assert report.noise_fraction == 0
    assert report.ratios["exact"] == pytest.approx(report.ratios["gd"], rel=1e-10)
    assert report.ratios["trace"] == 0
    single = stability_of_factors(normal(1, 3), lr=0.05)
    assert single.noise_fraction == 0  # not 0/0
    assert math.isfinite(single.ratios["exact"])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_the_chain_of_bounds_always_holds(n, C, P, seed, replacement):
    A = normal(n, C, P, seed=seed) * torch.logspace(0, -2, P, dtype=DOUBLE)
    B = 1 + seed % n
    r = stability_of_factors(A, lr=0.1, batch_size=B, replacement=replacement).ratios
    slack = 1 + 1e-9
    assert r["trace"] <= r["necessary"] * slack
    assert r["necessary"] <= r["exact"] * slack
    assert r["gd"] <= r["exact"] * slack


# -------------------------------------------------------------------------------- exact: models against dense matrices


def dense_reference(model, loss_fn, X, y):
    """Per-sample Gauss-Newton matrices and gradients by torch.func, each sample a batch of one."""
    theta = {k: v.detach() for k, v in model.named_parameters()}
    H, g = [], []
    for x, target in zip(X.split(1), y.split(1)):
        f = functional_call(model, theta, (x,)).detach()
        jacobian = jacrev(lambda t, x=x: functional_call(model, t, (x,)).reshape(-1))(theta)
        J = torch.cat([jacobian[k].reshape(f.numel(), -1) for k in theta], 1)
        loss = lambda z, f=f, target=target: loss_fn(z.reshape(f.shape), target)  # noqa: E731
        H.append(J.T @ hessian(loss)(f.reshape(-1)) @ J)
        g.append(J.T @ jacrev(loss)(f.reshape(-1)))
    return torch.stack(H), torch.stack(g)


def expected_values(H, g, loss):
    mean = H.mean(0)
    S = torch.cov(g.T, correction=0)
    return {
        "trace": float(mean.trace()),
        "frobenius": float(mean.norm()),
        "lambda_max": float(torch.linalg.eigvalsh(mean)[-1]),
        "mean_fourth": float(H.square().sum() / len(H)),
        "alignment": float((mean @ S).trace() / (2 * loss * mean.square().sum())),
        "interpolation_error": loss,
    }


X12 = normal(12, 5, seed=3)
LABELS = torch.arange(12) % 3
CASES = {
    "mse": (network(5, 8, 3), nn.MSELoss(), normal(12, 3, seed=4)),
    "cross-entropy": (network(5, 8, 3), nn.CrossEntropyLoss(), LABELS),
    "smoothing": (network(5, 8, 3), nn.CrossEntropyLoss(label_smoothing=0.2), LABELS),
    "probabilities": (network(5, 8, 3), nn.CrossEntropyLoss(), normal(12, 3, seed=5).softmax(1)),
    "binary": (
        network(5, 6, 2),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 0.5], dtype=DOUBLE)),
        normal(12, 2, seed=6).sigmoid(),
    ),
    "fourth power": (network(5, 8, 2), lambda f, y: (f - y).pow(4).mean(), normal(12, 2, seed=4)),
    "relu in place": (
        nn.Sequential(*network(5, 7)[:1], nn.ReLU(inplace=True), *network(7, 2)),
        nn.MSELoss(),
        normal(12, 2, seed=4),
    ),
    "no layers": (TwoLayerReLU(5, 7, dtype=DOUBLE, seed=0), nn.MSELoss(), normal(12, 1, seed=4)),
    "few parameters": (network(5, 1), nn.MSELoss(), normal(12, 1, seed=4)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["exact", "bounds"])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_readings_equal_dense_matrices(case, method, chunk_size):
    model, loss_fn, y = CASES[case]
    H, g = dense_reference(model, loss_fn, X12, y)
    expected = expected_values(H, g, float(loss_fn(model(X12), y).detach()))
    report = linear_stability(model, loss_fn, X12, y, lr=0.1, batch_size=4, method=method, chunk_size=chunk_size)
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value, rel=1e-9), name
    p = 8 / (4 * 11)
    assert report.noise_fraction == pytest.approx(p)
    C = y[0].numel() if y.is_floating_point() else 3
    assert report.ratios["trace"] == pytest.approx(0.1 * p * expected["trace"] / (2 * C))
    noise = 2 * expected["alignment"] * report.interpolation_error * expected["frobenius"] ** 2
    assert report.ratios["frobenius"] == pytest.approx(0.1 * math.sqrt(p * noise / (2 * report.interpolation_error)))
    if method == "exact":
        s, V = torch.linalg.eigh(H.mean(0))
        root = torch.stack([_factor(h) for h in H])
        assert report.ratios["exact"] == pytest.approx(0.05 * dense_critical(root @ _range(s, V), p), rel=1e-7)
        assert report.std_error is None
    else:
        assert "exact" not in report.ratios
        assert all(error <= 1e-6 * expected[name] for name, error in report.std_error.items())


def _factor(h):
    s, V = torch.linalg.eigh(h)
    return (V[:, -3:] * s[-3:].clamp(min=0).sqrt()).T


def _range(s, V):
    return V[:, s > 1e-10 * s[-1]]


def test_a_loss_summed_over_the_batch_is_scaled_by_the_batch():
    model, X, y = network(5, 4, 2), X12, normal(12, 2, seed=8)
    mean = linear_stability(model, nn.MSELoss(), X, y, lr=0.2, batch_size=3)
    total = linear_stability(model, nn.MSELoss(reduction="sum"), X, y, lr=0.2 / 6, batch_size=3)
    for name, ratio in mean.ratios.items():  # 3 samples times 2 outputs more
        assert total.ratios[name] == pytest.approx(ratio, rel=1e-10), name


def test_ignored_and_weighted_targets_count_by_their_share_of_the_loss():
    model, X = network(5, 4, 3), X12
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=DOUBLE), ignore_index=2)
    report = linear_stability(model, loss_fn, X, LABELS, lr=0.1, method="exact")
    dense = GGNOperator(model, loss_fn, (X, LABELS)).dense()
    assert report.trace == pytest.approx(float(dense.trace()), rel=1e-10)
    assert report.frobenius == pytest.approx(float(dense.norm()), rel=1e-10)
    assert report.lambda_max == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-10)


def test_layers_used_twice_or_shared_are_not_taken_for_linear_ones():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = network(5, 5)[0], network(5, 2)[0]

        def forward(self, x):
            return self.b(torch.tanh(self.a(torch.tanh(self.a(x))))) + nn.functional.linear(x, self.b.weight)

    model, y = Twice(), normal(12, 2, seed=4)
    assert ModelSamples(model, nn.MSELoss(), X12, y, batch_size=1)._layers is None
    H, _ = dense_reference(model, nn.MSELoss(), X12, y)
    report = linear_stability(model, nn.MSELoss(), X12, y, lr=0.1)
    assert report.mean_fourth == pytest.approx(float(H.square().sum() / 12), rel=1e-9)
    assert report.frobenius == pytest.approx(float(H.mean(0).norm()), rel=1e-9)


def test_layers_on_vectors_take_the_fast_way_and_frozen_parameters_are_left_out():
    model, y = network(5, 8, 3), normal(12, 3, seed=4)
    model[0].weight.requires_grad_(False)
    samples = ModelSamples(model, nn.MSELoss(), X12, y, batch_size=1)
    assert samples._layers is not None
    fast, (K, AG) = samples.grams(samples.basis()), samples.kernel()
    samples._layers = None
    slow, (K2, AG2) = samples.grams(samples.basis()), samples.kernel()
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(K, K2)
    torch.testing.assert_close(AG, AG2)
    model[0].weight.requires_grad_(True)


def test_rows_in_blocks_give_the_same_gram_matrix(monkeypatch):
    model, y = TwoLayerReLU(5, 30, dtype=DOUBLE, seed=0), normal(12, 1, seed=4)
    whole = ModelSamples(model, nn.MSELoss(), X12, y, batch_size=1).kernel()
    monkeypatch.setattr("steepest.landscape._sample_space.BLOCK", 5 * 2 * 180)
    parts = ModelSamples(model, nn.MSELoss(), X12, y, batch_size=1).kernel()
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])


# ---------------------------------------------------------------------------------------------------- stochastic bounds


def test_bounds_are_unbiased_and_their_errors_honest():
    """25 repetitions: the mean lies within four standard errors, the stated error is that of the spread."""
    X = normal(60, 6, seed=1)
    model, y = network(6, 10, 12), torch.arange(60) % 12
    dense = linear_stability(model, nn.CrossEntropyLoss(), X, y, lr=0.1, method="exact")
    found = []
    for seed in range(25):
        samples = ModelSamples(model, nn.CrossEntropyLoss(), X, y, batch_size=1)
        found.append(bounds(samples, 24, seed, None)[0])
    for name in ("trace", "mean_fourth", "frobenius", "alignment"):
        values = np.array([getattr(m, name) for m in found])
        errors = np.array([m.std_error[name] for m in found])
        exact = getattr(dense, name)
        assert abs(values.mean() - exact) <= 4 * values.std() / 5 + 2e-3 * exact, name
        assert 0.5 < values.std() / np.sqrt((errors**2).mean()) < 2, name
        z = np.abs(values - exact) / errors
        assert np.mean(z < 3) > 0.9, name
    for m in found:  # a Ritz value never overshoots, and some eigenvalue lies within the residual
        assert 0.9 * dense.lambda_max <= m.lambda_max <= dense.lambda_max * (1 + 1e-9)
    enough = linear_stability(model, nn.CrossEntropyLoss(), X, y, lr=0.1, method="bounds", num_matvecs=150)
    assert enough.lambda_max == pytest.approx(dense.lambda_max, rel=1e-6)
    assert enough.std_error["lambda_max"] < 1e-3 * dense.lambda_max


def test_the_error_of_the_per_sample_term_is_the_jackknife_over_mixtures():
    A, k = normal(7, 6, 9), 4
    samples = FactorSamples(A)
    (_, trace_error), (value, error) = _per_sample(samples, k, generator(3))
    U = samples.signs(k, generator(3))
    x = torch.einsum("knc,ncp->knp", U, A)

    def mean_over_pairs(kept):
        return np.mean([float((x[j] * x[m]).sum(1).square().mean()) for j, m in itertools.combinations(kept, 2)])

    without = np.array([mean_over_pairs([j for j in range(k) if j != left]) for left in range(k)])
    assert value == pytest.approx(mean_over_pairs(range(k)))
    assert error == pytest.approx(math.sqrt((k - 1) / k * ((without - without.mean()) ** 2).sum()))
    assert trace_error == pytest.approx(float(x.square().sum(2).mean(1).std()) / 2)


def test_bounds_of_factors_agree_with_exact_ones():
    A = normal(200, 2, 150) * torch.logspace(0, -2, 150, dtype=DOUBLE)
    exact = stability_of_factors(A, lr=0.01, batch_size=4)
    rough = stability_of_factors(A, lr=0.01, batch_size=4, method="bounds")
    assert rough.trace == pytest.approx(exact.trace, rel=1e-12)
    assert rough.mean_fourth == pytest.approx(exact.mean_fourth, rel=1e-12)
    assert rough.lambda_max == pytest.approx(exact.lambda_max, rel=1e-6)
    assert abs(rough.frobenius - exact.frobenius) <= 4 * rough.std_error["frobenius"]
    assert rough.ratios["necessary"] == pytest.approx(exact.ratios["necessary"], rel=0.01)
    assert stability_of_factors(A, lr=0.01, max_exact=399).method == "bounds"
    assert stability_of_factors(A, lr=0.01, max_exact=400).method == "exact"


def test_a_start_that_no_longer_leads_is_left():
    A = torch.diag(torch.linspace(1, 2, 40, dtype=DOUBLE)).unsqueeze(1)
    samples = FactorSamples(A)
    start = torch.zeros(40, dtype=DOUBLE)
    start[0] = 1
    for _ in range(6):
        found, start = bounds(samples, 30, 0, start)
    assert found.lambda_max == pytest.approx(4 / 40, rel=0.02)


def test_same_seed_same_numbers():
    A = normal(300, 1, 80)
    one, two = (stability_of_factors(A, lr=0.01, method="bounds", seed=7) for _ in range(2))
    assert one == two


# ----------------------------------------------------------------------------------------------------------- the models


def test_expected_traces_are_those_of_the_population():
    X = torch.randn(5_000, 4, dtype=DOUBLE, generator=generator())
    for model in (TwoLayerReLU(4, 6, dtype=DOUBLE, seed=1), DiagonalLinear(4, scale=0.6, dtype=DOUBLE)):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + 0.3 * torch.rand(p.shape, generator=generator(2), dtype=DOUBLE))
        loss_fn = lambda f, y: (f - y).square().mean() / 2  # noqa: E731
        report = linear_stability(model, loss_fn, X, torch.zeros(5_000, 1, dtype=DOUBLE), lr=0.1, method="bounds")
        assert report.trace == pytest.approx(model.expected_trace(), rel=0.05)


def test_norms_and_their_equality_when_balanced():
    model = DiagonalLinear(3, scale=0.5)
    assert model.expected_trace() == pytest.approx(4 * 6 * 0.25)
    with torch.no_grad():
        model.u.copy_(torch.tensor([1.0, 0.0, 2.0]))
        model.v.copy_(torch.tensor([0.0, 3.0, 0.0]))
    assert model.coef.tolist() == [1.0, -9.0, 4.0]
    assert model.parameter_norm() == 14
    assert model.expected_trace() == pytest.approx(4 * model.parameter_norm())
    net = TwoLayerReLU(4, 2, seed=0)
    with torch.no_grad():
        net.b.copy_(torch.tensor([[0.0, 3.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
        net.a.copy_(torch.tensor([-1.5, 0.5]))
    assert net.parameter_norm() == pytest.approx(5.0)
    assert net.expected_trace() == pytest.approx(2 * net.parameter_norm())  # sqrt(d) = 2, balanced
    assert net(torch.tensor([[1.0, 1.0, 0.0, 0.0]])).tolist() == [[-4.0]]
    assert torch.equal(TwoLayerReLU(4, 2, seed=3).a, TwoLayerReLU(4, 2, seed=3).a)
    assert TwoLayerReLU(2, 2, dtype=DOUBLE).b.dtype == DOUBLE


# ----------------------------------------------------------------------------------------------------------- the report


def test_verdicts_and_limits():
    A = torch.tensor([[2.0]])
    for lr, verdict in ((0.39, "stable"), (0.41, "edge"), (0.4999, "edge"), (0.51, "unstable")):
        report = stability_of_factors(A, lr=lr)
        assert report.verdict == verdict
        assert report.max_lr["exact"] == pytest.approx(0.5)
        assert "frobenius" not in report.ratios
        assert report.interpolation_error is None
    zero = stability_of_factors(torch.zeros(3, 2), lr=1.0)
    assert set(zero.ratios.values()) == {0.0}
    assert set(zero.max_lr.values()) == {math.inf}
    assert zero.verdict == "stable"
    assert stability_of_factors(torch.zeros(3, 2), lr=1.0, method="bounds").verdict == "stable"


def test_momentum_leaves_what_is_known_with_it():
    A = normal(6, 4)
    plain, heavy = stability_of_factors(A, lr=0.1), stability_of_factors(A, lr=0.1, momentum=0.9)
    assert set(heavy.ratios) == {"gd"}
    assert heavy.ratios["gd"] == pytest.approx(plain.ratios["gd"] / 1.9)
    model, y = network(5, 3, 1), normal(12, 1)
    report = linear_stability(model, nn.MSELoss(), X12, y, lr=0.1, momentum=0.5)
    assert set(report.ratios) == {"gd", "frobenius"}
    assert len(str(report).splitlines()) == 6


def test_at_zero_loss_there_is_no_alignment():
    model = network(5, 3, 1)
    report = linear_stability(model, nn.MSELoss(), X12, model(X12).detach(), lr=0.1)
    assert report.alignment is None
    assert report.interpolation_error == 0
    assert "frobenius" not in report.ratios


def test_num_data_enters_p_alone():
    model, y = network(5, 3, 1), normal(12, 1)
    part = linear_stability(model, nn.MSELoss(), X12, y, lr=0.1, batch_size=20, num_data=1000)
    assert part.n == 1000
    assert part.noise_fraction == pytest.approx(980 / (20 * 999))
    assert part.trace == pytest.approx(linear_stability(model, nn.MSELoss(), X12, y, lr=0.1).trace)


def test_float32_models_are_summed_in_double():
    model, y = network(5, 16, 3), normal(12, 3, seed=4)
    exact = linear_stability(model, nn.MSELoss(), X12, y, lr=0.1)
    single = linear_stability(model.float(), nn.MSELoss(), X12.float(), y.float(), lr=0.1)
    model.double()
    for name in exact.ratios:
        assert single.ratios[name] == pytest.approx(exact.ratios[name], rel=2e-5), name


# ---------------------------------------------------------------------------------------------------------- the monitor


def training(optimizer, model, loss_fn, X, y, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model(X), y).backward()
        optimizer.step()


def quiet_problem(lr=0.05, **kw):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 1))
    model = fork(lambda: model).double()
    X, y = normal(10, 4), normal(10, 1, seed=2)
    return model, X, y, torch.optim.SGD(model.parameters(), lr=lr, **kw)


@pytest.mark.parametrize("method", ["exact", "bounds"])
def test_a_monitored_run_is_the_run_without_monitor(method):
    """Global generators, modes, buffers and gradients are as without."""
    ends = []
    for watched in (False, True):
        model, X, y, optimizer = fork(quiet_problem)
        model[1].eval()  # frozen statistics in a model that trains: the mode is kept
        monitor = StabilityMonitor(model, nn.MSELoss(), X, y, every=2, batch_size=2, method=method)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", SteepestWarning)
            torch.manual_seed(5)
            np_state = np.random.get_state()[1].copy()
            if watched:
                monitor.attach(optimizer)
            training(optimizer, model, nn.MSELoss(), X, y, 6)
            drawn = torch.rand(3)
            assert (np.random.get_state()[1] == np_state).all()
        assert [m.training for m in model] == [True, False, True, True]
        grads = [p.grad.clone() for p in model.parameters()]
        ends.append([*model.state_dict().values(), *grads, drawn])
        assert len(monitor.history) == (3 if watched else 0)
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def test_history_counts_steps_and_reads_the_present_learning_rate():
    model, X, y = DiagonalLinear(4, scale=0.5, dtype=DOUBLE), normal(10, 4), normal(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    seen = []
    with (
        StabilityMonitor(
            model, nn.MSELoss(), X, y, every=3, batch_size=2, optimizer=optimizer, callback=seen.append
        ) as monitor,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", SteepestWarning)
        training(optimizer, model, nn.MSELoss(), X, y, 4)
        optimizer.param_groups[0]["lr"] = 0.01
        training(optimizer, model, nn.MSELoss(), X, y, 5)
        optimizer.param_groups[0]["lr"] = 0.0
        training(optimizer, model, nn.MSELoss(), X, y, 3)
    training(optimizer, model, nn.MSELoss(), X, y, 3)  # detached
    assert [(r.step, r.lr) for r in monitor.history] == [(3, 0.02), (6, 0.01), (9, 0.01)]
    assert seen == monitor.history
    assert monitor.last is monitor.history[-1]
    now = monitor.measure(lr=0.01)
    assert now.step is None
    assert now.ratios == linear_stability(model, nn.MSELoss(), X, y, lr=0.01, batch_size=2).ratios
    assert len(monitor.history) == 3
    frame = pytest.importorskip("pandas") and monitor.to_frame()
    assert frame["step"].tolist() == [3, 6, 9]
    assert frame["ratio_exact"].tolist() == [r.ratios["exact"] for r in monitor.history]


def test_a_warm_start_finds_the_leading_eigenvalue_with_few_products():
    X = normal(80, 6, seed=1)
    model, y = network(6, 20, 5), normal(80, 5, seed=2)
    monitor = StabilityMonitor(model, nn.MSELoss(), X, y, batch_size=4, method="bounds")
    exact = linear_stability(model, nn.MSELoss(), X, y, lr=0.1, method="exact")
    readings = [monitor.measure(lr=0.1).lambda_max for _ in range(10)]
    assert readings[-1] == pytest.approx(exact.lambda_max, rel=0.02)
    assert readings[0] < 0.95 * exact.lambda_max  # the first one is rough


def test_only_what_the_optimizer_trains_is_measured():
    model, y = network(5, 4, 1), normal(12, 1)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    monitor = StabilityMonitor(model, nn.MSELoss(), X12, y, batch_size=2, optimizer=optimizer)
    whole = linear_stability(model, nn.MSELoss(), X12, y, lr=0.1, batch_size=2)
    assert monitor.measure(lr=0.1).trace < whole.trace
    model[0].requires_grad_(False)
    assert monitor.measure(lr=0.1).trace == linear_stability(model, nn.MSELoss(), X12, y, lr=0.1).trace
    model[0].requires_grad_(True)


def test_wrapped_models_are_unwrapped():
    model, y = network(5, 4, 1), normal(12, 1)
    assert StabilityMonitor(nn.DataParallel(model), nn.MSELoss(), X12, y, batch_size=2).model is model


def test_attention_is_measured_although_its_fused_form_has_no_double_backward():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(4, 12).double(), nn.Linear(4, 2).double()

        def forward(self, x):  # (n, t, 4) -> (n, 2, t)
            q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
            h = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(h.squeeze(1)).transpose(1, 2)

    model, X, y = fork(Attention), normal(3, 5, 4), (torch.arange(15) % 2).view(3, 5)
    exact, rough = (linear_stability(model, nn.CrossEntropyLoss(), X, y, lr=0.1, method=m) for m in ("exact", "bounds"))
    dense = GGNOperator(model, nn.CrossEntropyLoss(), [(X, y)], cache=False)
    assert exact.lambda_max == pytest.approx(rough.lambda_max, rel=1e-6)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert exact.trace == pytest.approx(float(dense.dense().trace()), rel=1e-9)


def test_warnings_say_what_is_not_modelled_and_when_the_loss_is_far():
    model, X, y, optimizer = fork(lambda: quiet_problem(weight_decay=0.1, momentum=0.5, nesterov=True))
    monitor = StabilityMonitor(model, nn.MSELoss(), X, y, every=1, batch_size=2)
    with pytest.warns(SteepestWarning, match="do not model weight_decay, nesterov"):
        monitor.attach(optimizer)
    model.eval()
    training(optimizer, model, nn.MSELoss(), X, y, 1)  # the first reading cannot be compared
    with pytest.warns(SteepestWarning, match="above a tenth of the first"):
        training(optimizer, model, nn.MSELoss(), X, y, 1)
    training(optimizer, model, nn.MSELoss(), X, y, 1)  # once is enough
    assert set(monitor.last.ratios) == {"gd", "frobenius"}


# ------------------------------------------------------------------------------------------------------------- misuse


def test_bad_numbers_are_named():
    A = normal(4, 3)
    for lr in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="lr must be > 0"):
            stability_of_factors(A, lr=lr)
    for B in (0, 5):
        with pytest.raises(ValueError, match="batch_size must be"):
            stability_of_factors(A, lr=0.1, batch_size=B)
    assert stability_of_factors(A, lr=0.1, batch_size=5, replacement=True).noise_fraction == 0.2
    for momentum in (-0.1, 1.0):
        with pytest.raises(ValueError, match="momentum must be"):
            stability_of_factors(A, lr=0.1, momentum=momentum)
    with pytest.raises(ValueError, match="method must be one of"):
        stability_of_factors(A, lr=0.1, method="fast")
    for bad in (torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match="A must be a non-empty real tensor"):
            stability_of_factors(bad, lr=0.1)
    with pytest.raises(ValueError, match="A must be finite"):
        stability_of_factors(torch.tensor([[math.nan]]), lr=0.1)
    with pytest.raises(TypeError, match="A must be a tensor"):
        stability_of_factors([[1.0]], lr=0.1)


def test_bad_models_and_data_are_named():
    model, y = network(5, 2), normal(12, 2)
    with pytest.raises(ValueError, match="X must be a tensor with at least one sample"):
        linear_stability(model, nn.MSELoss(), X12[:0], y[:0], lr=0.1)
    with pytest.raises(ValueError, match="y must be of length 12"):
        linear_stability(model, nn.MSELoss(), X12, y[:5], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's own, before ours
        with pytest.raises(ValueError, match="y must be of the output's shape"):
            linear_stability(network(5, 1), nn.MSELoss(), X12, y[:, 0], lr=0.1)
    with pytest.raises(ValueError, match="loss_fn must be convex"):
        linear_stability(model, lambda f, t: -(f - t).square().mean(), X12, y, lr=0.1)
    with pytest.raises(FloatingPointError, match="loss on X is nan"):
        linear_stability(model, nn.MSELoss(), X12 * math.nan, y, lr=0.1)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        linear_stability(lambda x: x, nn.MSELoss(), X12, y, lr=0.1)
    with pytest.raises(TypeError, match="X must be a tensor"):
        linear_stability(model, nn.MSELoss(), X12.numpy(), y, lr=0.1)
    with pytest.raises(ValueError, match="num_data must be None or an integer >= 12"):
        linear_stability(model, nn.MSELoss(), X12, y, lr=0.1, num_data=5)
    with pytest.raises(ValueError, match="num_matvecs must be"):
        linear_stability(model, nn.MSELoss(), X12, y, lr=0.1, num_matvecs=3)
    batch = nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2, track_running_stats=False)).double()
    with pytest.raises(ValueError, match="without normalization by batch statistics"):
        linear_stability(batch, nn.MSELoss(), X12, y, lr=0.1)
    with pytest.raises(ValueError, match="classes on the second axis"):
        linear_stability(
            network(5, 3000), lambda f, t: (f - t).square().mean(), X12.repeat(2, 1), normal(24, 3000), lr=0.1
        )


def test_only_plain_sgd_can_be_followed():
    model, y = network(5, 2), normal(12, 2)
    monitor = StabilityMonitor(model, nn.MSELoss(), X12, y, batch_size=2)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.SGD"):
        monitor.attach(torch.optim.Adam(model.parameters()))
    groups = [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[0].bias], "lr": 0.2}]
    with pytest.raises(ValueError, match="optimizer's lr must be the same in all parameter groups"):
        monitor.attach(torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(ValueError, match="maximize must be False"):
        monitor.attach(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True))
    with pytest.raises(ValueError, match="trains parameters of the model"):
        monitor.attach(torch.optim.SGD(network(5, 2).parameters(), lr=0.1))
    with pytest.raises(TypeError, match="num_data, num_matvecs"):
        StabilityMonitor(model, nn.MSELoss(), X12, y, batch_size=2, momentum=0.9)
    with pytest.raises(ValueError, match="every must be"):
        StabilityMonitor(model, nn.MSELoss(), X12, y, batch_size=2, every=0)
    with pytest.raises(ValueError, match="batch_size must be"):
        StabilityMonitor(model, nn.MSELoss(), X12, y, batch_size=13)
