"""Tests of DADAO: flow and jumps against plain linear algebra, clocks, stops, kinds, and nodes spread over workers."""

import copy
import math
import random
import types

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from steepest.core.errors import SteepestWarning
from steepest.federated import FunctionClient, RayEngine, _dadao_events, _dadao_ray
from steepest.federated._dadao import dadao
from steepest.federated._dadao_events import Clocks
from steepest.federated._dadao_flow import DadaoConstants
from steepest.federated._gossip_graph import as_graph
from steepest.federated._gossip_rates import gossip_constants, uniform_gossip_rates

N, D, KAPPA = 6, 3, 10.0
RING = (N, [(i, (i + 1) % N) for i in range(N)])


@pytest.fixture(scope="module")
def problem():
    """Quadratics with eigenvalues from 1 / KAPPA to 1 in different directions, and their common minimum."""
    rng = np.random.default_rng(0)
    A = []
    for _ in range(N):
        Q = np.linalg.qr(rng.standard_normal((D, D)))[0]
        A.append(Q * np.geomspace(1 / KAPPA, 1, D) @ Q.T)
    A, b = np.array(A), rng.standard_normal((N, D))
    x_star = np.linalg.solve(A.sum(0), b.sum(0))
    return types.SimpleNamespace(A=A, b=b, x_star=x_star, grad=lambda i, x: A[i] @ x - b[i])


def solve(problem, grads=None, x0=None, **options):
    options = {"graph": RING, "L": 1.0, "mu": 1 / KAPPA} | options
    return dadao(grads or problem.grad, np.zeros(D) if x0 is None else x0, **options)


# --------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("kappa", [1, 1.5, 2, 10, 40, 160, 640, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("L", [0.01, 1.0, 100.0])
def test_flow_is_the_exponential(kappa, L):
    """A general eigensolver fails here for some L / mu (10 and 160 among them) and not for others."""
    constants = DadaoConstants(L, L / kappa, 3.0)
    for dt in (0.0, 1e-6, 0.01, 0.7, 5.0, 60.0):
        exact = expm(dt * constants.generator)
        np.testing.assert_allclose(constants.flow(dt), exact, rtol=0, atol=5e-14 * max(1.0, np.abs(exact).max()))


def test_constants_by_hand():
    c = DadaoConstants(L=8.0, mu=4.0, chi1=3.0)  # nu = 2, r = 1 / 2
    found = [c.nu, c.alpha, c.alpha_tilde, c.eta, c.eta_tilde, c.theta, c.beta, c.beta_tilde, c.delta, c.delta_tilde]
    assert found == [2.0, 1 / 8, 1 / 16, 1 / 16, 1 / 16, 1.0, 0.5, 12.0, 1 / 8, 1.0]
    assert (c.gamma, c.gamma_tilde) == (1 / 32, 1 / 16)


def test_generator_and_its_null_vectors():
    c = DadaoConstants(5.0, 0.3, 1.0)
    X, Xt, Y, Yt, Z, Zt = S = np.random.default_rng(0).standard_normal(6)
    np.testing.assert_allclose(
        c.generator @ S,
        [c.eta * (Xt - X), c.eta_tilde * (X - Xt), c.alpha * (Yt - Y), -c.theta * (Y + Z + c.nu * Xt),
         c.alpha * (Zt - Z), c.alpha_tilde * (Z - Zt)],
    )  # fmt: skip
    for still in ([1, 1, -c.nu, -c.nu, 0, 0], [0, 0, -1, -1, 1, 1]):
        np.testing.assert_allclose(c.flow(7.0) @ still, still, atol=1e-15)
    np.testing.assert_allclose(c.flow(0.3) @ c.flow(1.1), c.flow(1.4), atol=1e-14)


def replayed(problem, result, start, seed, t_max, chunk):
    """The same events with `expm` and the jumps as the paper writes them, on arrays (n, d) a variable."""
    rates = result.rates
    c = DadaoConstants(1.0, 1 / KAPPA, result.chi1)
    clocks = Clocks([as_graph(RING)], [rates], math.inf, np.random.default_rng(seed))
    drawn = [np.concatenate(part) for part in zip(*(clocks.draw(chunk) for _ in range(2048 // chunk)), strict=True)]
    S, now = start.transpose(1, 0, 2).copy(), 0.0
    for t, i, j in zip(*drawn, strict=True):
        if t > t_max:
            break
        S, now = np.einsum("ab,bnd->and", expm((t - now) * c.generator), S), t
        X, Xt, Y, Yt, Z, Zt = S
        if j < 0:
            g = problem.A[i] @ X[i] - problem.b[i] - c.nu * X[i] - Yt[i]
            X[i] -= c.gamma * g
            Xt[i] -= c.gamma_tilde * g
            Yt[i] += (c.delta + c.delta_tilde) * g
        else:
            P = np.zeros((N, N))
            P[[i, j, i, j], [i, j, j, i]] = 1, 1, -1, -1
            m = P @ (Y + Z)
            Z -= c.beta * m
            Zt -= c.beta_tilde * m
    return np.einsum("ab,bnd->nad", expm((t_max - now) * c.generator), S)


@pytest.mark.parametrize("chunk", [2048, 32])
def test_run_is_the_papers_algorithm(problem, monkeypatch, chunk):
    """From a state without zeros; a node's first event in a chunk is led there from the chunk before."""
    monkeypatch.setattr(_dadao_events, "CHUNK", chunk)
    start = np.random.default_rng(1).standard_normal((N, 6, D))
    result = solve(problem, state=start, t_max=20.0, seed=5)
    assert result.time == 20.0
    exact = replayed(problem, result, start, 5, 20.0, chunk)
    np.testing.assert_allclose(result.state, exact, rtol=1e-10, atol=1e-11)
    np.testing.assert_array_equal(result.x_nodes, result.state[:, 0])
    np.testing.assert_allclose(result.x, result.x_nodes.mean(0))


def stationary(problem):
    x, nu = problem.x_star, 0.5 / KAPPA
    Y = np.array([problem.grad(i, x) for i in range(N)]) - nu * x
    return np.stack([np.tile(x, (N, 1)), np.tile(x, (N, 1)), Y, Y, -(Y + nu * x), -(Y + nu * x)], axis=1)


def test_optimum_stays(problem):
    start = stationary(problem)
    result = solve(problem, state=start, t_max=50.0, x_star=problem.x_star)
    np.testing.assert_allclose(result.state, start, atol=1e-13)
    assert max(row["distance"] for row in result.history) < 1e-26


def test_sums_of_z_stay_zero_and_the_run_converges(problem):
    result = solve(problem, t_max=700.0, x_star=problem.x_star, x0=np.ones(D))
    assert np.abs(result.state[:, 4:].sum(0)).max() < 1e-12
    assert np.abs(result.x_nodes - problem.x_star).max() < 1e-6
    distance = {row["time"]: row["distance"] for row in result.history}
    guaranteed = 1 / (8 * math.sqrt(2 * KAPPA))
    assert math.log(distance[50.0] / distance[450.0]) / 400 > guaranteed
    np.testing.assert_allclose(distance[0.0], ((np.ones(D) - problem.x_star) ** 2).sum())


# -------------------------------------------------------------------------------------------------------------- clocks


def test_clocks_tick_at_their_rates():
    path = as_graph((3, [(0, 1), (1, 2), (0, 2)]))
    clocks = Clocks([path], [np.array([0.5, 4.0, 0.0])], math.inf, np.random.default_rng(1))
    times, first, second = clocks.draw(60_000)
    T = times[-1]
    assert pytest.approx(60_000 / 7.5, rel=0.02) == T
    for node in range(3):
        assert ((first == node) & (second < 0)).sum() / T == pytest.approx(1.0, rel=0.05)
    counts = [((first == i) & (second == j)).sum() / T for i, j in path.edges]
    np.testing.assert_allclose(counts, [0.5, 4.0, 0.0], rtol=0.05)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # exponential


def test_graphs_take_turns():
    graphs = [as_graph((4, [(0, 1), (1, 2), (2, 3)])), as_graph((4, [(0, 2), (1, 3), (0, 3)]))]
    rates = [np.array([1.0, 2.0, 1.0]), np.array([5.0, 5.0, 6.0])]
    clocks = Clocks(graphs, rates, 0.7, np.random.default_rng(0))
    parts = [clocks.draw(5000) for _ in range(4)]
    times, first, second = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert (np.diff(times) >= 0).all()
    which = (np.floor(times / 0.7) % 2).astype(int)
    for k in range(2):
        pairs = {(i, j) for i, j in zip(first[which == k], second[which == k], strict=True) if j >= 0}
        assert pairs == set(map(tuple, graphs[k].edges.tolist()))
        in_use = times[-1] / 2
        assert ((which == k) & (second >= 0)).sum() / in_use == pytest.approx(rates[k].sum(), rel=0.05)
        assert ((which == k) & (second < 0)).sum() / in_use == pytest.approx(4.0, rel=0.05)


def test_time_varying_graphs_meet_the_condition_at_the_worst(problem):
    star = (N, [(0, i) for i in range(1, N)])
    result = solve(problem, graph=[RING, star], switch_every=0.5, t_max=400.0, x_star=problem.x_star)
    alone = [gossip_constants(g, r) for g, r in zip([RING, star], result.rates, strict=True)]
    assert (result.chi1, result.chi2) == pytest.approx([max(pair) for pair in zip(*alone, strict=True)], rel=1e-12)
    assert 2 * result.chi1 * result.chi2 == pytest.approx(1)
    assert [len(e) for e in result.edges] == [6, 5]
    assert result.history[-1]["distance"] < 1e-8
    again = solve(problem, graph=[RING, star], switch_every=0.5, t_max=400.0, rates=result.rates)
    np.testing.assert_allclose(again.state, result.state, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ looks and stops


def test_looking_changes_nothing(problem):
    a, b = (solve(problem, t_max=30.0, record_every=each) for each in (0.3, 7.0))
    np.testing.assert_array_equal(a.state, b.state)
    assert [row["time"] for row in b.history] == [0.0, 7.0, 14.0, 21.0, 28.0, 30.0]
    assert [row["time"] for row in a.history][:5] == [k * 0.3 for k in range(5)]
    assert a.history[-1]["time"] == 30.0
    assert a.history[-1]["gradients"] == a.n_gradients == b.n_gradients
    assert a.nit == a.n_gradients + a.n_communications
    at_7 = solve(problem, t_max=7.0)
    spread = np.linalg.norm(at_7.x_nodes - at_7.x, axis=1).max()
    assert b.history[1]["consensus"] == pytest.approx(spread)
    assert b.history[1]["communications"] == at_7.n_communications


def test_a_state_continues(problem):
    a = solve(problem, t_max=11.0)
    b = solve(problem, x0=np.zeros(D), state=a.state, t_max=300.0, x_star=problem.x_star, seed=1)
    assert b.history[0]["consensus"] == a.history[-1]["consensus"]
    assert b.history[-1]["distance"] < 1e-6
    whole = solve(problem, t_max=311.0, x_star=problem.x_star)
    assert b.history[-1]["distance"] < 1e3 * whole.history[-1]["distance"]


@pytest.mark.parametrize("budget", [{"max_gradients": 37}, {"max_communications": 41}, {"max_gradients": 4000}])
def test_budgets_end_with_the_event(problem, budget):
    result = solve(problem, **budget, t_max=1e6, record_every=2.5)
    (name, value), counts = next(iter(budget.items())), {}
    counts["max_gradients"], counts["max_communications"] = result.n_gradients, result.n_communications
    assert counts[name] == value
    assert result.success
    assert name in result.message
    assert result.history[-1]["time"] == result.time < 1e6
    same = solve(problem, t_max=result.time)
    assert counts["max_gradients"] + counts["max_communications"] == same.nit
    np.testing.assert_array_equal(same.state, result.state)


def test_tolerance_is_met_and_its_gradients_are_counted(problem):
    calls = []

    def counted(i, x):
        calls.append(i)
        return problem.grad(i, x)

    result = solve(problem, counted, tol=1e-5, t_max=5000.0)
    assert result.message.startswith("converged")
    assert len(calls) == result.n_gradients
    mean = np.mean([problem.grad(i, result.x) for i in range(N)], axis=0)
    assert np.linalg.norm(mean) <= 1e-5 * (1 + 1e-9)
    assert np.linalg.norm(result.x_nodes - result.x, axis=1).max() <= 1e-5 * (1 + 1e-9)
    calls.clear()
    short = solve(problem, counted, tol=1e-5, max_gradients=3 * N)
    assert len(calls) == short.n_gradients == 3 * N
    assert "before tol" in short.message
    at_once = solve(problem, state=stationary(problem), tol=1e-5)
    assert (at_once.nit, at_once.time) == (N, 0.0)


def test_callbacks(problem):
    seen = []

    def tell(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 4:
            raise StopIteration

    result = solve(problem, t_max=20.0, callback=tell)
    assert (result.success, result.status, result.time) == (False, 5, 3.0)
    assert seen[-1].time == 3.0
    np.testing.assert_allclose(seen[-1].x_nodes, result.x_nodes, atol=1e-14)
    points = []
    solve(problem, t_max=2.0, callback=points.append)
    assert [p.shape for p in points] == [(D,)] * 3


def test_a_gradient_that_is_not_finite_ends_the_run(problem):
    calls = []

    def broken(i, x):
        calls.append(i)
        return np.full(D, np.nan) if i == 4 and calls.count(4) == 5 else problem.grad(i, x)

    result = solve(problem, broken, t_max=100.0)
    assert not result.success
    assert f"node 4 is not finite at time {result.time:.6g}" in result.message
    assert np.isfinite(result.state).all()
    assert result.n_gradients == len(calls) - 1
    before = solve(problem, t_max=result.time * (1 - 1e-12))
    assert before.nit == result.nit
    np.testing.assert_allclose(result.state, before.state, atol=1e-10)


@pytest.mark.parametrize("known", [True, False])
def test_divergence_is_seen(problem, known):
    result = solve(problem, L=0.02, mu=0.02, t_max=1e5, x_star=problem.x_star if known else None)
    assert not result.success
    assert "diverged by time" in result.message
    assert result.time < 1000
    assert np.isfinite(result.state).all()


def test_a_start_at_the_solution_is_no_divergence(problem):
    assert solve(problem, x0=problem.x_star, t_max=100.0, x_star=problem.x_star).success
    assert solve(problem, lambda i, x: x, L=1.0, mu=1.0, t_max=50.0, x_star=np.zeros(D)).success


# --------------------------------------------------------------------------------------------------------------- kinds


def test_tensors_and_lists_of_gradients_are_the_same_run(problem):
    A, b = torch.from_numpy(problem.A), torch.from_numpy(problem.b)
    here = solve(problem, t_max=10.0)
    there = solve(
        problem, [lambda x, i=i: A[i] @ x - b[i] for i in range(N)], x0=torch.zeros(D, dtype=torch.float64), t_max=10.0
    )
    assert isinstance(there.x, torch.Tensor)
    np.testing.assert_allclose(there.state.numpy(), here.state, rtol=1e-12, atol=1e-14)
    listed = solve(problem, [lambda x, i=i: problem.grad(i, x) for i in range(N)], x0=[0, 0, 0], t_max=10.0)
    np.testing.assert_array_equal(listed.state, here.state)
    each = solve(problem, x0=np.zeros((N, D)), t_max=10.0)
    np.testing.assert_array_equal(each.state, here.state)


def test_single_precision_is_kept(problem):
    A, b = problem.A.astype("f4"), problem.b.astype("f4")
    result = solve(problem, lambda i, x: A[i] @ x - b[i], x0=np.zeros(D, "f4"), t_max=300.0)
    assert result.state.dtype == np.float32
    np.testing.assert_allclose(result.x, problem.x_star, atol=1e-4)
    with pytest.warns(SteepestWarning, match="float32"):
        dadao(lambda i, x: x, np.zeros(1, "f4"), graph=RING, L=1.0, mu=5e-5, t_max=0.1)
    with pytest.raises(TypeError, match="grads of node"):
        solve(problem, x0=np.zeros(D, "f4"), t_max=2.0)


def test_random_numbers_are_its_own(problem):
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    a, b, c = (solve(problem, t_max=5.0, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.state, b.state)
    assert a.nit != c.nit or not np.array_equal(a.state, c.state)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_networkx_and_matrices_are_the_same_graph(problem):
    nx = pytest.importorskip("networkx")
    edges = [(0, 1), (0, 5), (1, 2), (2, 3), (3, 4), (4, 5)]
    W = np.zeros((N, N))
    W[tuple(np.array(edges).T)] = 1
    named = nx.Graph([("abcdef"[i], "abcdef"[j]) for i, j in edges])
    runs = [solve(problem, graph=g, t_max=5.0) for g in ((N, edges), W + W.T)]
    np.testing.assert_array_equal(runs[0].state, runs[1].state)
    np.testing.assert_array_equal(runs[1].edges, edges)
    place = {name: k for k, name in enumerate(named.nodes)}
    found = solve(problem, graph=named, t_max=1.0).edges.tolist()
    assert found == [[place[a], place[b]] for a, b in named.edges]


# -------------------------------------------------------------------------------------------------------------- workers


class FakeRay:
    """Actors that work at once, whose returns come in any order between workers."""

    exceptions = types.SimpleNamespace(RayTaskError=KeyError)

    def __init__(self, seed):
        self.random, self.busiest = random.Random(seed), 0

    def is_initialized(self):
        return True

    def remote(self, **resources):
        def make(cls):
            return types.SimpleNamespace(remote=lambda *args: self.actor(cls(*copy.deepcopy(args))))

        return make

    def actor(self, host):
        def method(name):
            return types.SimpleNamespace(remote=lambda *args: self.reference(getattr(host, name)(*args)))

        return types.SimpleNamespace(do=method("do"), gradients_at=method("gradients_at"))

    def reference(self, value):
        return _Reference(copy.deepcopy(value))

    def get(self, references):
        return [r.value for r in references] if isinstance(references, list) else references.value

    def wait(self, references, num_returns):
        self.busiest = max(self.busiest, len(references))
        self.random.shuffle(references)
        return references[:1], references[1:]

    def kill(self, host):
        pass


class _Reference:
    def __init__(self, value):
        self.value = value


def ray_engine(workers):
    return RayEngine([FunctionClient(lambda model, task: None)] * N, workers=workers)


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_workers_give_the_same_bits(problem, monkeypatch, workers):
    pytest.importorskip("ray")
    fake = FakeRay(workers)
    monkeypatch.setattr(_dadao_ray, "require", lambda *args, **kwargs: fake)
    options = {"t_max": 25.0, "x_star": problem.x_star, "record_every": 0.8}
    alone = solve(problem, **options)
    spread = solve(problem, engine=ray_engine(workers), **options)
    np.testing.assert_array_equal(spread.state, alone.state)
    assert spread.history == alone.history
    assert fake.busiest == workers
    for stop in ({"tol": 1e-2}, {"max_gradients": 50}, {"max_communications": 50}):
        alone, spread = solve(problem, **stop), solve(problem, engine=ray_engine(workers), **stop)
        np.testing.assert_array_equal(spread.state, alone.state)
        assert spread.history == alone.history
        assert spread.message == alone.message


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_workers_end_at_the_same_gradient_that_is_not_finite(problem, monkeypatch, broken):
    pytest.importorskip("ray")
    monkeypatch.setattr(_dadao_ray, "require", lambda *args, **kwargs: FakeRay(0))

    def grad(i, x):
        return problem.grad(i, x) * (broken if x[0] > 0.3 else 1.0)

    alone = solve(problem, grad, t_max=400.0)
    spread = solve(problem, grad, t_max=400.0, engine=ray_engine(3))
    assert "is not finite" in alone.message
    assert spread.message == alone.message
    assert spread.history == alone.history
    np.testing.assert_array_equal(spread.state, alone.state)


@pytest.mark.slow
def test_real_workers_give_the_same_bits(problem):
    ray = pytest.importorskip("ray")
    alone = solve(problem, t_max=4.0)
    spread = solve(problem, t_max=4.0, engine=ray_engine(2))
    np.testing.assert_array_equal(spread.state, alone.state)
    assert not ray.is_initialized()


# --------------------------------------------------------------------------------------------------------------- misuse


BAD = [
    ({"graph": (6, [(0, 1), (2, 3), (3, 4), (4, 5)])}, "graph must be connected"),
    ({"graph": (6, [*RING[1], (2, 2)])}, "without self-loops"),
    ({"graph": (6, [*RING[1], (1, 0)])}, "occur twice"),
    ({"graph": np.triu(np.ones((6, 6)), 1)}, "symmetric"),
    ({"graph": (1, [])}, "at least 2 nodes"),
    ({"graph": (6, [(0, 6)])}, "indices from 0 to 5"),
    ({"graph": []}, "at least one"),
    ({"graph": [RING, RING]}, "switch_every"),
    ({"graph": [RING, (3, [(0, 1), (1, 2)])], "switch_every": 1.0}, "same number of nodes"),
    ({"switch_every": 1.0}, "unless graph is a list"),
    ({"mu": 0.0}, "mu must be > 0"),
    ({"mu": -1.0}, "mu must be > 0"),
    ({"mu": 2.0}, "mu must be at most L = 1"),
    ({"grads": [abs, abs]}, "6 callables"),
    ({"x0": np.array([0.0, np.nan, 0.0])}, "x0 must be finite"),
    ({"x0": 0.0, "state": np.zeros((6, 6, 3))}, r"of shape \(d,\) or \(6, d\)"),
    ({"x0": np.zeros((5, 3))}, r"of shape \(d,\) or \(6, d\)"),
    ({"x0": np.zeros(3, complex)}, "float32 or float64"),
    ({"rates": [-1.0] * 6}, "nonnegative"),
    ({"rates": [np.nan] * 6}, "nonnegative"),
    ({"rates": [1.0] * 5}, r"of shape \(6,\)"),
    ({"rates": [0.0, 0.0, 9.0, 9.0, 9.0, 9.0]}, "connect all nodes"),
    ({"rates": "best"}, "'uniform', 'sdp' or an array"),
    ({"t_max": None}, "max_gradients, max_communications and tol"),
    ({"t_max": 0.0}, "t_max"),
    ({"record_every": 0.0}, "record_every"),
    ({"max_gradients": 0}, "max_gradients"),
    ({"x_star": np.zeros(2)}, r"x_star must be of shape \(3,\)"),
    ({"state": np.zeros((6, 5, 3))}, r"state must be of shape \(6, 6, 3\)"),
    ({"seed": -1}, "seed"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "text"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_values_are_named(problem, options, text):
    with pytest.raises(ValueError, match=text):
        solve(problem, **{"t_max": 1.0} | options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"grads": 3.0}, "grads must be a list of callables"),
        ({"graph": "ring"}, "graph must be a networkx.Graph"),
        ({"engine": "ray"}, "engine must be None or a RayEngine"),
        ({"callback": 1}, "callback"),
        ({"x_star": torch.zeros(3)}, "x_star must be a NumPy array"),
        ({"grads": lambda i, x: list(x)}, "grads of node"),
        ({"grads": lambda i, x: x[:2]}, "grads of node"),
    ],
)
def test_wrong_kinds_are_named(problem, options, text):
    with pytest.raises(TypeError, match=text):
        solve(problem, **{"t_max": 5.0} | options)


def test_rates_that_talk_too_little_are_told_the_factor(problem):
    rates = uniform_gossip_rates(RING).rates
    with pytest.raises(ValueError, match="multiply them by 2"):
        solve(problem, t_max=1.0, rates=rates / 2)
    with pytest.raises(ValueError, match=r"multiply them by 1\.01"):
        solve(problem, t_max=1.0, rates=rates / 1.01)
    solve(problem, t_max=1.0, rates=rates * (1 - 1e-7))
