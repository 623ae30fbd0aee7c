"""Tests of FZooS: its surrogate against dense algebra and another library, its rounds against a transcription."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime

from steepest.federated import SimulatedEngine, replay
from steepest.federated._fedzo import FedZO, FedZOClient, orthonormal_directions
from steepest.federated._fourier_basis import FourierBasis
from steepest.federated._seeds import RULE, stream, task_seed
from steepest.federated._trajectory_surrogate import TrajectorySurrogate
from steepest.federated.fzoos import FZooS, FZooSClient

SMALL = {"local_steps": 3, "n_init": 4, "n_active": 2, "n_candidates": 8, "n_sync_active": 3, "n_features": 64}
CENTERS = np.array([[0.3, 0.6, 0.5], [0.7, 0.4, 0.5]])
START = np.array([0.4, 0.4, 0.4])


class Counted:
    """A quadratic that counts its calls and keeps the points."""

    def __init__(self, center, width=1.0):
        self.center, self.width, self.points = np.asarray(center, float), width, []

    def __call__(self, x):
        self.points.append(x.copy())
        return float(self.width * ((x - self.center) ** 2).sum() + math.sin(3 * x[0]))


def counted():
    return [Counted(c, w) for c, w in zip(CENTERS, (1.0, 2.0), strict=True)]


def calls(fs):
    return sum(len(f.points) for f in fs)


def history(n=25, d=4, spread=0.6, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-spread, spread, (n, d))
    return X, 5 + 3 * np.sin(2 * X[:, 0]) + X[:, 1] * X[:, -1]


def surrogate_of(X, y, **options):
    surrogate = TrajectorySurrogate(X.shape[1], **options)
    surrogate.add(X, y)
    return surrogate


# ----------------------------------------------------------------------------------------------------- the surrogate


def kernel_value(name, x, z, length):
    r = np.linalg.norm(x - z)
    if name == "rbf":
        return math.exp(-(r**2) / (2 * length**2))
    u = math.sqrt(5) * r / length
    return (1 + u + u * u / 3) * math.exp(-u)


def dense(name, X, y, x, length, noise):
    """Mean and covariance of the gradient, with derivatives of the kernel by complex-free central differences."""
    n, d = X.shape
    K = np.array([[kernel_value(name, a, b, length) for b in X] for a in X])
    A = np.linalg.inv(K + noise * np.eye(n))
    e = 1e-4
    J = np.array([[(kernel_value(name, x + e * u, a, length) - kernel_value(name, x - e * u, a, length)) / (2 * e)
                   for u in np.eye(d)] for a in X])  # fmt: skip
    scale = y.std()
    prior = (1.0 if name == "rbf" else 5 / 3) / length**2
    return scale * J.T @ A @ ((y - y.mean()) / scale), scale**2 * (prior * np.eye(d) - J.T @ A @ J)


@pytest.mark.parametrize("name", ["rbf", "matern52"])
@pytest.mark.parametrize("length", [0.5, 1.3])
def test_gradient_and_variance_by_dense_algebra(name, length):
    X, y = history()
    s = surrogate_of(X, y, kernel=name, lengthscale=length, noise=1e-3)
    x = np.array([0.1, -0.2, 0.3, 0.05])
    mean, cov = dense(name, X, y, x, length, 1e-3)
    got, spread = s.gradient(x, return_var=True)
    np.testing.assert_allclose(got, mean, rtol=1e-5)
    np.testing.assert_allclose(spread, np.diag(cov), rtol=1e-4)
    np.testing.assert_array_equal(s.gradient(x), got)
    Z = x + np.random.default_rng(1).uniform(-0.3, 0.3, (6, 4))
    by_candidate = [np.trace(dense(name, X, y, z, length, 1e-3)[1]) for z in Z]
    np.testing.assert_allclose(s.variance(Z, x), by_candidate, rtol=1e-4)
    np.testing.assert_allclose(s.variance(Z, x), [s.gradient(z, return_var=True)[1].sum() for z in Z], rtol=1e-8)


@pytest.mark.parametrize("name", ["rbf", "matern52"])
def test_gradient_is_that_of_scikit_learns_posterior(name):
    gp = pytest.importorskip("sklearn.gaussian_process")
    kernel = gp.kernels.RBF(0.8) if name == "rbf" else gp.kernels.Matern(0.8, nu=2.5)
    X, y = history(40)
    theirs = gp.GaussianProcessRegressor(kernel, alpha=1e-4, optimizer=None, normalize_y=True).fit(X, y)
    x = np.array([0.1, -0.2, 0.3, 0.05])
    slopes = [(theirs.predict([x + 1e-5 * u])[0] - theirs.predict([x - 1e-5 * u])[0]) / 2e-5 for u in np.eye(4)]
    s = surrogate_of(X, y, kernel=name, lengthscale=0.8, noise=1e-4)
    np.testing.assert_allclose(s.gradient(x), slopes, rtol=1e-5, atol=1e-6)


def test_marginal_likelihood_agrees_with_scikit_learn():
    gp = pytest.importorskip("sklearn.gaussian_process")
    X, y = history(40)
    theirs = gp.GaussianProcessRegressor(gp.kernels.RBF(1.0, (1e-2, 1e2)), alpha=1e-4, normalize_y=True).fit(X, y)
    length = surrogate_of(X, y, noise=1e-4).fitted_lengthscale()
    assert length == pytest.approx(theirs.kernel_.length_scale, rel=1e-3)


def test_only_the_nearest_points_count_and_values_are_scaled_by_all():
    X, y = history(30)
    x = np.zeros(4)
    near = np.argsort(np.linalg.norm(X, axis=1))[:9]
    s = surrogate_of(X, y, max_points=9, noise=1e-2)
    K = np.exp(-((X[near, None] - X[near]) ** 2).sum(-1) / 2)
    alpha = np.linalg.solve(K + 1e-2 * np.eye(9), y[near] - y.mean())
    by_hand = (alpha * np.exp(-(X[near] ** 2).sum(1) / 2)) @ X[near]
    np.testing.assert_allclose(s.gradient(x), by_hand, rtol=1e-8)
    assert len(s.X) == len(s.y) == 30
    elsewhere = np.full(4, 0.5)
    assert set(s.nearest(elsewhere, 9)) != set(near)  # another x, another factor
    np.testing.assert_allclose(s.gradient(x), by_hand, rtol=1e-8)


def test_a_new_point_is_used_at_once():
    X, y = history(30)
    s = surrogate_of(X[:20], y[:20], max_points=20)
    s.gradient(X[25])
    s.variance(X[:3], X[25])
    s.add(X[20:], y[20:])
    fresh = surrogate_of(X, y, max_points=20)
    np.testing.assert_array_equal(s.gradient(X[25]), fresh.gradient(X[25]))
    np.testing.assert_array_equal(s.variance(X[:3], X[25]), fresh.variance(X[:3], X[25]))


def test_units_of_y():
    X, y = history()
    a, b = surrogate_of(X, y), surrogate_of(X, -7 * y + 100)
    np.testing.assert_allclose(b.gradient(X[0]), -7 * a.gradient(X[0]), rtol=1e-6)
    np.testing.assert_allclose(b.variance(X[:2] + 0.1, X[0]), 49 * a.variance(X[:2] + 0.1, X[0]), rtol=1e-6)


def test_a_small_cloud_far_from_the_origin_loses_no_digits():
    """Inner products are taken relative to x: shifting everything by 1e3 must change nothing."""
    X, y = history(30, spread=0.01)
    near, far = surrogate_of(X, y), surrogate_of(X + 1024.0, y)
    Z = np.random.default_rng(2).uniform(-0.01, 0.01, (5, 4))
    # coordinates near 1024 carry 1e-13; the kernel matrix has condition 1e7
    np.testing.assert_allclose(far.gradient(np.full(4, 1024.0)), near.gradient(np.zeros(4)), rtol=1e-4)
    np.testing.assert_allclose(far.variance(Z + 1024.0, np.full(4, 1024.0)), near.variance(Z, np.zeros(4)), rtol=1e-4)


def test_constant_values_duplicates_and_a_matrix_that_needs_jitter():
    X, _ = history(12)
    flat = surrogate_of(X, np.full(12, 3.3))
    assert not flat.gradient(X[0]).any()
    assert (flat.variance(X + 0.1, X[0]) > 0).all()
    twice = surrogate_of(np.vstack([X, X, X]), np.tile(X[:, 0], 3))
    once = surrogate_of(X, X[:, 0], noise=1e-6 / 3)  # three looks at a point are one with a third of the noise
    np.testing.assert_allclose(twice.gradient(X[0]), once.gradient(X[0]), rtol=1e-4, atol=1e-5)
    assert twice.jitter == 0
    tiny = surrogate_of(np.repeat(X[:1], 40, 0) + 1e-9, np.arange(40.0), noise=1e-18)
    tiny.gradient(X[0])
    assert tiny.jitter == 1e-8


def test_many_points_are_all_kept():
    X, y = history(300)
    s = TrajectorySurrogate(4)
    for k in range(0, 300, 7):
        s.add(X[k : k + 7], y[k : k + 7])
    np.testing.assert_array_equal(s.X, X)
    np.testing.assert_array_equal(s.y, y)


# ------------------------------------------------------------------------------------------------------ the features


@pytest.mark.parametrize("name", ["rbf", "matern52"])
def test_features_stand_for_the_kernel(name):
    X, _ = history(12, spread=1.0)
    basis = FourierBasis(4, 40_000, 0.7, seed=3, kernel=name)
    K = np.array([[kernel_value(name, a, b, 0.7) for b in X] for a in X])
    np.testing.assert_allclose(basis.phi(X) @ basis.phi(X).T, K, atol=0.03)


def test_fit_and_gradient_of_features():
    X, y = history()
    basis = FourierBasis(4, 200, 1.0, seed=0)
    F, w = basis.phi(X), basis.fit(X, y, 1e-2)
    ridge = np.linalg.solve(
        F.T @ F + 1e-2 * np.eye(200), F.T @ (y - y.mean())
    )  # the same by the other normal equations
    np.testing.assert_allclose(w, ridge, rtol=1e-6, atol=1e-9)
    x = np.array([0.1, -0.2, 0.3, 0.05])
    slope = approx_fprime(x, lambda z: (basis.phi(z) @ w).item(), 1e-6)
    np.testing.assert_allclose(basis.gradient(x, w), slope, atol=1e-4)
    assert basis.phi(x).shape == (1, 200)
    np.testing.assert_allclose(basis.fit(X, 5 * y - 2, 1e-2), 5 * w, rtol=1e-9)


def test_compressed_gradient_approximates_the_surrogates():
    X, y = history(30)
    x = np.array([0.1, -0.2, 0.3, 0.05])
    exact = surrogate_of(X, y, noise=1e-3).gradient(x)
    basis = FourierBasis(4, 20_000, 1.0, seed=0)
    near = basis.gradient(x, basis.fit(X, y, 1e-3))
    assert np.linalg.norm(near - exact) < 0.03 * np.linalg.norm(exact)


def test_same_seed_same_features_stretched_by_the_length_scale():
    one, two = FourierBasis(3, 50, 1.0, seed=5), FourierBasis(3, 50, 2.0, seed=5)
    np.testing.assert_array_equal(one.b, two.b)
    np.testing.assert_allclose(one.W, 2 * two.W)
    assert not np.array_equal(one.W, FourierBasis(3, 50, 1.0, seed=6).W)


# -------------------------------------------------------------------------------------------------------- the rounds


def transcription(fs, x0, rounds, seed, *, T, lr, n_init, n_active, n_candidates, n_sync, M, gamma, p):
    """FZooS with plain gradient steps, as the paper's loop."""
    d, n = len(x0), len(fs)
    basis = FourierBasis(d, M, 1.0, int(stream(seed, RULE, 0).integers(2**62)))
    surrogates, number = [TrajectorySurrogate(d) for _ in fs], [0] * n

    def rng(i):
        number[i] += 1
        return np.random.default_rng(task_seed(seed, i, number[i] - 1))

    def learn(i, X):
        surrogates[i].add(X, [fs[i](z) for z in X])

    def uncertain(i, x, radius, count, candidates, draws):
        Z = x + draws.uniform(-radius, radius, (candidates, d))
        V = [surrogates[i].gradient(z, return_var=True)[1].sum() for z in Z]
        learn(i, Z[np.argsort(-np.array(V), kind="stable")[:count]])

    for i in range(n):
        learn(i, np.vstack([x0, x0 + rng(i).uniform(-0.01, 0.01, (n_init, d))]))
    x_r, w_i, spreads = np.array(x0), None, []
    for _ in range(rounds):
        ends = []
        for i in range(n):
            x, draws = x_r.copy(), rng(i)
            for t in range(1, T + 1):
                g = surrogates[i].gradient(x)
                if w_i is not None:
                    w = sum(p[k] * w_i[k] for k in range(n))
                    g = g + gamma(t) * (basis.gradient(x, w) - basis.gradient(x, w_i[i]))
                x = x - lr * g
                learn(i, x[None])
                if t < T:
                    uncertain(i, x, 0.01, n_active, n_candidates, draws)
            ends.append(x)
        x_r = sum(p[k] * ends[k] for k in range(n))
        spreads.append(sum(p[k] * ((ends[k] - x_r) ** 2).sum() for k in range(n)))
        w_i = []
        for i in range(n):
            draws = rng(i)
            learn(i, x_r[None])
            uncertain(i, x_r, np.abs(x_r - ends[i]).mean() / 2, n_sync, 4 * n_sync, draws)
            w_i.append(basis.fit(surrogates[i].X, surrogates[i].y, 1e-6))
    return x_r, w_i, surrogates, spreads


@pytest.mark.parametrize(("correction", "gamma"), [("decay", lambda t: 1 / t), ("constant", lambda t: 1.0)])
def test_rounds_by_transcription(correction, gamma):
    p = np.array([0.25, 0.75])
    rule = FZooS(**SMALL, optimizer="sgd", lr=0.03, correction=correction, importance=[1, 3])
    result = rule.minimize(counted(), START, rounds=3, seed=7)
    x, w_i, surrogates, spreads = transcription(
        counted(), START, 3, 7, T=3, lr=0.03, n_init=4, n_active=2, n_candidates=8, n_sync=3, M=64, gamma=gamma, p=p
    )
    np.testing.assert_allclose(result.x, x, atol=1e-9)
    for mine, theirs in zip(result.surrogates, surrogates, strict=True):
        np.testing.assert_allclose(mine.X, theirs.X, atol=1e-9)
        np.testing.assert_allclose(mine.y, theirs.y, atol=1e-9)
    np.testing.assert_allclose(result.local_weights[1], w_i[1], atol=1e-5)
    np.testing.assert_allclose(result.global_weights, 0.25 * w_i[0] + 0.75 * w_i[1], atol=1e-5)
    np.testing.assert_allclose([row["disparity"] for row in result.history[1:]], spreads, rtol=1e-6)
    F = sum(pk * f(result.x) for pk, f in zip(p, counted(), strict=True))
    assert result.fun == pytest.approx(F, rel=1e-12)
    assert result.fun_best == min(row["fun"] for row in result.history)


def test_without_correction_the_clients_work_alone():
    rule = FZooS(**SMALL, optimizer="sgd", correction="none")
    together = rule.minimize(counted(), START, rounds=2)
    x, *_ = transcription(counted(), START, 2, 0, T=3, lr=0.01, n_init=4, n_active=2, n_candidates=8, n_sync=3, M=64,
                          gamma=lambda t: 0.0, p=[0.5, 0.5])  # fmt: skip
    np.testing.assert_allclose(together.x, x, atol=1e-9)


def test_it_finds_the_common_minimum_and_the_correction_is_why():
    fs = [lambda x, c=c: float(((x - c) ** 2).sum()) for c in CENTERS]
    middle = CENTERS.mean(0)
    gaps = {}
    for correction in ("decay", "none"):
        x = FZooS(n_sync_active=10, correction=correction).minimize(fs, START, rounds=6).x
        gaps[correction] = ((x - middle) ** 2).sum()
    assert gaps["decay"] < 5e-4
    assert gaps["decay"] < gaps["none"] / 5


@pytest.mark.parametrize("rule", [FZooS(**SMALL), FZooS(**SMALL, safeguard=True), FedZO(q=3, local_steps=2),
                                  FedZO(q=3, local_steps=2, correction="prox"),
                                  FedZO(q=3, local_steps=2, correction="scaffold1"),
                                  FedZO(q=3, local_steps=2, correction="scaffold2", safeguard=True)])  # fmt: skip
def test_every_query_is_counted_and_the_budget_is_kept(rule):
    fs = counted()
    result = rule.minimize(fs, START, rounds=3)
    costs = rule.costs()
    per_round = costs["local"] + costs["sync"] + (costs["check"] if rule.safeguard else 0)
    most = 2 * (costs["init"] + 3 * per_round)
    assert result.nfev == calls(fs) == result.history[-1]["queries"] <= most
    assert result.nfev >= most - 2 * 3  # a known value at a kept point is not asked for again
    assert (result.nit, result.message, result.success) == (3, "rounds", True)
    assert [row["round"] for row in result.history] == [0, 1, 2, 3]
    for budget in range(2 * costs["init"], most + 1, 7):
        fs = counted()
        result = rule.minimize(fs, START, rounds=3, max_queries=budget)
        assert calls(fs) == result.nfev <= budget
        assert result.message == ("max_queries" if budget < most else result.message)
        assert result.nfev + 2 * per_round > budget or result.nit == 3
        assert result.history[-1]["queries"] == result.nfev  # none is spent on a round that cannot be ended


def test_traffic():
    d, M, n, rounds = 3, 64, 2, 3
    result = FZooS(**SMALL).minimize(counted(), START, rounds=rounds)
    numbers = result.bytes_up / 8
    assert numbers == n * (d + 2 + rounds * (2 * d + M + 3))  # an empty step, the value and the count ride along
    assert result.history[-1]["bytes_up"] == result.bytes_up


def test_safeguard_never_goes_up():
    fs = counted()
    wild = {**SMALL, "lr": 0.3}
    free = FZooS(**wild).minimize(counted(), START, rounds=6)
    kept = FZooS(**wild, safeguard=True).minimize(fs, START, rounds=6)
    values = [row["fun"] for row in kept.history]
    assert all(b <= a for a, b in itertools.pairwise(values))
    assert any(b["fun"] > a["fun"] for a, b in itertools.pairwise(free.history))
    stayed = [k for k in range(1, 7) if np.array_equal(kept.history[k]["x"], kept.history[k - 1]["x"])]
    assert stayed
    assert kept.fun == pytest.approx(np.mean([f(kept.x) for f in counted()]))


def test_nothing_is_queried_out_of_bounds():
    for rule in (FZooS(**SMALL, lr=0.1, bounds=(0.35, [0.45, 0.45, 0.41])),
                 FedZO(q=3, lr=0.1, bounds=(0.35, [0.45, 0.45, 0.41]))):  # fmt: skip
        fs = counted()
        result = rule.minimize(fs, START, rounds=2)
        P = np.vstack([f.points for f in fs])
        assert (P >= 0.35).all()
        assert (P <= [0.45, 0.45, 0.41]).all()
        assert result.x[0] in (0.35, 0.45) or result.nit == 2


def test_vectorized_functions_give_the_same_run():
    one = FZooS(**SMALL).minimize([lambda x, c=c: ((x - c) ** 2).sum() for c in CENTERS], START, rounds=2)
    many = FZooS(**SMALL).minimize([lambda X, c=c: ((X - c) ** 2).sum(1) for c in CENTERS], START, rounds=2,
                                   vectorized=True)  # fmt: skip
    np.testing.assert_allclose(many.x, one.x, atol=1e-12)
    assert many.nfev == one.nfev


def test_length_scale_by_likelihood():
    fs = [lambda x, c=c: float(np.sin(9 * (x - c)).sum()) for c in CENTERS]
    options = {**SMALL, "n_init": 30, "init_radius": 0.4, "lengthscale": "mle", "noise": 1e-4}
    result = FZooS(**options).minimize(fs, START, rounds=2)
    first = []
    for s in result.surrogates:
        fitted = surrogate_of(s.X[:31], s.y[:31], noise=1e-4).fitted_lengthscale()
        first.append(fitted)
        assert s.lengthscale == result.lengthscale
    assert result.lengthscale == pytest.approx(np.median(first))
    refitted = FZooS(**options, lengthscale_refit=2).minimize(fs, START, rounds=2)
    assert refitted.lengthscale != result.lengthscale
    own = [s.fitted_lengthscale() for s in refitted.surrogates]
    assert refitted.lengthscale == pytest.approx(np.median(own))
    s = refitted.surrogates[0]
    np.testing.assert_allclose(refitted.local_weights[0], refitted.basis.fit(s.X, s.y, 1e-4), atol=1e-9)
    assert refitted.nfev == result.nfev


def test_the_same_seed_the_same_run_and_no_global_draws():
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    a, b, c = (FZooS(**SMALL).minimize(counted(), START, rounds=2, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(a.x, b.x)
    assert not np.array_equal(a.x, c.x)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_callback():
    seen = []

    def watch(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 2:
            raise StopIteration

    result = FZooS(**SMALL).minimize(counted(), START, rounds=5, callback=watch)
    assert (result.message, result.nit) == ("callback", 2)
    assert [row["fun"] for row in result.history[1:]] == [r.fun for r in seen]
    assert [row["queries"] for row in result.history[1:]] == [r.nfev for r in seen]
    points = []
    FZooS(**SMALL).minimize(counted(), START, rounds=2, callback=lambda x: points.append(x))
    np.testing.assert_array_equal(points[1], result.x)


# ------------------------------------------------------------------------------------------------------- on an engine


@pytest.mark.parametrize(("rule", "client"), [
    (functools.partial(FZooS, **SMALL), FZooSClient),
    (functools.partial(FZooS, **SMALL, safeguard=True, lengthscale="mle", lengthscale_refit=1), FZooSClient),
    (functools.partial(FedZO, q=3, local_steps=2, correction="scaffold1", safeguard=True), FedZOClient),
    (functools.partial(FedZO, q=3, local_steps=2, correction="scaffold2"), FedZOClient)])  # fmt: skip
def test_interrupted_and_resumed_is_uninterrupted(rule, client, tmp_path):
    model = {"x": torch.tensor(START)}

    def engine(**options):
        return SimulatedEngine([client(f) for f in counted()], speeds=[1.0, 0.7], seed=5, **options)

    whole = engine(record=("events",)).run(rule(), model, max_aggregations=4)
    for until in (0.8, 1.2, 2.5, 3.9, 5.2, 6.7):
        engine().run(rule(), model, until=until, checkpoint=tmp_path / "run.pt")
        resumed = engine().resume(tmp_path / "run.pt", max_aggregations=4)
        assert torch.equal(resumed.model["x"], whole.model["x"])
    assert torch.equal(replay(whole, rule(), model).model["x"], whole.model["x"])


def test_single_precision_models_stay_so():
    clients = [FZooSClient(f) for f in counted()]
    run = SimulatedEngine(clients).run(FZooS(**SMALL), {"p": torch.tensor(START).float()}, max_aggregations=2)
    assert run.model["p"].dtype == torch.float32


def test_importance_by_samples():
    clients = [FZooSClient(f, n_samples=n) for f, n in zip(counted(), (1, 3), strict=True)]
    run = SimulatedEngine(clients).run(FZooS(**SMALL, importance="samples"), {"x": torch.tensor(START)},
                                       max_aggregations=2)  # fmt: skip
    same = FZooS(**SMALL, importance=[0.25, 0.75]).minimize(counted(), START, rounds=2)
    np.testing.assert_allclose(run.model["x"].numpy(), same.x, atol=1e-12)


def test_a_lost_client_is_left_out_with_its_weights():
    make = functools.partial(SimulatedEngine, failures=[{"client": 1, "task": t, "kind": "crash"} for t in (3, 4, 5)])
    fs = [Counted(c) for c in ([0.3, 0.6, 0.5], [0.9, 0.9, 0.9], [0.3, 0.6, 0.5])]
    result = FZooS(**SMALL).minimize(fs, START, rounds=4, engine=make)
    assert result.dropped == [1]
    assert sorted(result.local_weights) == [0, 2]
    np.testing.assert_allclose(result.global_weights, (result.local_weights[0] + result.local_weights[2]) / 2)
    assert (result.nit, result.success, result.nfev) == (4, True, calls(fs))
    ended = FZooS(**SMALL).minimize(fs, START, rounds=4, engine=make, max_queries=85)
    assert (ended.dropped, ended.message, ended.nit) == ([1], "max_queries", 1)
    assert sorted(ended.local_weights) == [0, 2]  # also where no later round replaces them


def test_failed_tasks_are_tried_again_within_the_budget():
    class Fragile(Counted):
        def __call__(self, x):
            value = super().__call__(x)
            if len(self.points) in (3, 9, 30):
                raise RuntimeError("the instrument is warming up")
            return value

    for budget in (None, 10, 12, *range(20, 90, 6)):
        fs = [Fragile(CENTERS[0]), Counted(CENTERS[1])]
        result = FZooS(**SMALL).minimize(fs, START, rounds=3, max_queries=budget)
        assert result.nfev == calls(fs) <= (budget or 10_000)
        assert result.failures[0].kind == "exception"
        kept = [len(s.y) for s in result.surrogates]
        assert sum(kept) == calls(fs) - len(result.failures)
        if budget is None:  # a failed task whose client lives is counted by what the client says, not in full
            assert result.history[-1]["queries"] == result.nfev
    assert np.isfinite(result.fun)


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize(("at", "round_"), [(2, 0), (9, 1), (14, 1), (18, 2)])
def test_a_value_that_is_not_finite_ends_the_run(at, round_, vectorized):
    class Broken(Counted):
        def __call__(self, x):
            if x.ndim == 2:
                return np.array([self(row) for row in x])
            value = super().__call__(x)
            return math.nan if len(self.points) == at else value

    fs = [Broken(CENTERS[0]), Broken(CENTERS[1])]
    fs[0].points += [None] * 1000
    result = FZooS(**SMALL).minimize(fs, START, rounds=4, vectorized=vectorized)
    assert not result.success
    assert "client 1" in result.message
    assert f"round {round_}" in result.message
    np.testing.assert_array_equal(result.offending, fs[1].points[at - 1])
    assert np.isfinite(result.x).all()
    assert all(np.isfinite(s.y).all() for s in result.surrogates)
    assert result.nfev == calls(fs) - 1000


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_gives_the_same_run():
    from steepest.federated import RayEngine

    fs = [lambda x, c=c: float(((x - c) ** 2).sum()) for c in CENTERS]
    here = FZooS(**SMALL).minimize(fs, START, rounds=2, seed=4)
    there = FZooS(**SMALL).minimize(fs, START, rounds=2, seed=4, engine=functools.partial(RayEngine, workers=1))
    np.testing.assert_allclose(there.x, here.x, atol=1e-12)
    assert (there.nfev, there.bytes_up, there.surrogates) == (here.nfev, here.bytes_up, [])


# -------------------------------------------------------------------------------------------------------- the baselines


def test_directions_are_orthonormal_in_blocks():
    U = orthonormal_directions(np.random.default_rng(0), 7, 3)
    assert U.shape == (7, 3)
    for block in (U[:3], U[3:6], U[6:]):
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-12)


def test_finite_differences_of_a_linear_function_are_exact():
    slope = np.array([1.0, -2.0, 0.5])
    rule = FedZO(q=3, local_steps=1, lr=0.1, optimizer="sgd")
    result = rule.minimize([lambda x: float(slope @ x)], START, rounds=1)
    np.testing.assert_allclose(
        result.x, START - 0.1 * slope / 3, atol=1e-9
    )  # all three directions: the gradient over q


def test_baselines_by_hand():
    """With q = d on linear losses every estimate is exact, so the corrections have closed forms."""
    A = np.array([[1.0, 0.0, 2.0], [-3.0, 1.0, 0.0]])
    fs = [lambda x, a=a: float(a @ x) for a in A]
    options = {"q": 3, "local_steps": 2, "lr": 0.1, "optimizer": "sgd"}
    end = {}
    for correction in ("none", "prox", "scaffold1", "scaffold2"):
        result = FedZO(correction=correction, prox=0.5, **options).minimize(fs, START, rounds=2)
        end[correction] = result
    mean = A.mean(0) / 3
    np.testing.assert_allclose(end["none"].x, START - 0.4 * mean, atol=1e-9)
    np.testing.assert_allclose(end["prox"].x, START - 2 * (0.1 + 0.1 * 0.95) * mean, atol=1e-9)
    for correction in ("scaffold1", "scaffold2"):
        np.testing.assert_allclose(end[correction].x, START - 0.4 * mean, atol=1e-9)
        np.testing.assert_allclose(end[correction].local_weights[1], A[1] / 3, atol=1e-9)
    assert end["none"].history[-1]["disparity"] == pytest.approx(((0.2 * (A[0] - A[1]) / 6) ** 2).sum())
    assert end["scaffold1"].history[1]["disparity"] == pytest.approx(0, abs=1e-12)
    assert end["scaffold2"].history[1]["disparity"] == end["none"].history[1]["disparity"]
    assert end["scaffold2"].history[2]["disparity"] == pytest.approx(0, abs=1e-12)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(("options", "text"), [
    ({"local_steps": 0}, "local_steps"), ({"lr": 0.0}, "lr"), ({"optimizer": "lbfgs"}, "optimizer"),
    ({"kernel": "cosine"}, "kernel"), ({"correction": "half"}, "correction"), ({"lengthscale": 0.0}, "lengthscale"),
    ({"lengthscale": "median"}, "lengthscale"), ({"noise": 0.0}, "noise"), ({"n_active": 101}, "n_active"),
    ({"n_init": -1}, "n_init"), ({"active_radius": -1.0}, "active_radius"), ({"server_lr": 0.0}, "server_lr"),
    ({"bounds": (1.0, 0.0)}, "bounds"), ({"importance": "size"}, "importance"), ({"max_points": 0}, "max_points"),
    ({"lengthscale_refit": 2}, "lengthscale_refit"), ({"n_features": 0}, "n_features")])  # fmt: skip
def test_options_out_of_range(options, text):
    with pytest.raises(ValueError, match=rf"^{text} must be"):
        FZooS(**options)


@pytest.mark.parametrize(("options", "text"), [
    ({"correction": "half"}, "correction"), ({"q": 0}, "q"), ({"mu": 0.0}, "mu"), ({"prox": -1.0}, "prox"),
    ({"lr": -1.0}, "lr"), ({"local_steps": 0}, "local_steps")])  # fmt: skip
def test_baseline_options_out_of_range(options, text):
    with pytest.raises(ValueError, match=rf"^{text} must be"):
        FedZO(**options)


def test_bad_calls():
    rule, f = FZooS(**SMALL), counted()[0]
    for arguments, text in (
        (([], START), "fs must be at least one"),
        (([f], [0.1, math.nan, 0.2]), "x0 must be finite"),
        (([f], np.zeros((2, 2))), "x0 must be finite and of shape"),
    ):
        with pytest.raises(ValueError, match=text):
            rule.minimize(*arguments)
    with pytest.raises(ValueError, match="max_queries must be None or an integer >= 10"):
        rule.minimize([f, f], START, max_queries=9)
    with pytest.raises(ValueError, match="x0 must be within bounds"):
        FZooS(bounds=(0.0, 0.39)).minimize([f], START)
    with pytest.raises(ValueError, match="bounds must be numbers or vectors of x0's shape"):
        FZooS(bounds=([0.0, 0.0], [1.0, 1.0])).minimize([f], START)
    with pytest.raises(ValueError, match="importance must be one value per client"):
        FZooS(importance=[1.0]).minimize([f, f], START)
    with pytest.raises(TypeError, match=r"fs\[1\] must be callable"):
        rule.minimize([f, 3], START)
    with pytest.raises(TypeError, match="f must be callable"):
        FZooSClient(3)
    with pytest.raises(ValueError, match="model must be one floating vector"):
        SimulatedEngine([FZooSClient(f)]).run(rule, {"a": torch.zeros(2), "b": torch.zeros(2)}, max_aggregations=1)


def test_bad_points():
    s = TrajectorySurrogate(3)
    with pytest.raises(ValueError, match="history must be at least one point"):
        s.gradient(START)
    for X, y, text in ((np.zeros((2, 2)), [1, 2], "X must be"), (np.zeros((2, 3)), [1.0], "y must be one value"),
                       (np.zeros((1, 3)), [np.nan], "y must be finite"),
                       (np.full((1, 3), np.inf), [0.0], "X must be finite")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            s.add(X, y)
    assert len(s.y) == 0
    for options in ({"kernel": "linear"}, {"lengthscale": -1.0}, {"noise": 0.0}, {"max_points": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            TrajectorySurrogate(3, **options)
    with pytest.raises(ValueError, match="kernel"):
        FourierBasis(3, 10, 1.0, 0, kernel="linear")
    with pytest.raises(ValueError, match="noise"):
        FourierBasis(3, 10, 1.0, 0).fit(np.zeros((2, 3)), np.zeros(2), 0.0)
