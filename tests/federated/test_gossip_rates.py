"""Tests of gossip rates: constants in closed form, optimal rates by two methods, their certificate, misuse."""

import math

import numpy as np
import pytest
from scipy import sparse

from steepest.core.errors import SteepestWarning
from steepest.federated import _gossip_graph
from steepest.federated._gossip_barrier import _Model, _Point
from steepest.federated._gossip_graph import as_graph
from steepest.federated._gossip_rates import gossip_constants, optimal_gossip_rates, uniform_gossip_rates


def cycle(n):
    return n, [(i, (i + 1) % n) for i in range(n)]


def complete(n):
    return n, [(i, j) for i in range(n) for j in range(i + 1, n)]


def star(n):
    return n, [(0, i) for i in range(1, n)]


def path(n):
    return n, [(i, i + 1) for i in range(n - 1)]


def barbell(k):
    """Two complete graphs of k nodes and an edge between them."""
    one = complete(k)[1]
    return 2 * k, [*one, (k - 1, k), *((i + k, j + k) for i, j in one)]


def grid(rows, columns):
    index = np.arange(rows * columns).reshape(rows, columns)
    pairs = [*zip(index[:, :-1].ravel(), index[:, 1:].ravel()), *zip(index[:-1].ravel(), index[1:].ravel())]
    return rows * columns, np.array(pairs)


# --------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize("rate", [0.3, 1.0, 7.0])
def test_constants_in_closed_form(n, rate):
    def of(graph):
        return gossip_constants(graph, np.full(len(graph[1]), rate))

    np.testing.assert_allclose(of(cycle(n)), [1 / (rate * (2 - 2 * math.cos(2 * math.pi / n))), (1 - 1 / n) / 2 / rate])
    np.testing.assert_allclose(of(path(n)), [1 / (rate * (2 - 2 * math.cos(math.pi / n))), 0.5 / rate])
    np.testing.assert_allclose(of(complete(n)), [1 / (rate * n), 1 / (rate * n)])
    np.testing.assert_allclose(of(star(n)), [1 / rate, 0.5 / rate])


def test_constants_of_unequal_rates_and_unused_edges():
    n, edges = barbell(4)
    rates = np.random.default_rng(0).uniform(0.1, 2.0, len(edges))
    rates[1] = 0.0
    B = np.zeros((len(edges), n))
    for k, (i, j) in enumerate(edges):
        B[k, i], B[k, j] = 1, -1
    Lam = B.T @ np.diag(rates) @ B
    resistance = np.diag(B @ np.linalg.pinv(Lam) @ B.T)
    chi1, chi2 = gossip_constants((n, edges), rates)
    assert chi1 == pytest.approx(1 / np.linalg.eigvalsh(Lam)[1])
    assert chi2 == pytest.approx(resistance[rates > 0].max() / 2)
    assert chi2 <= chi1
    assert (rates * resistance).sum() == pytest.approx(n - 1)  # Foster


def test_sparse_solves_agree(monkeypatch):
    rng = np.random.default_rng(0)
    W = sparse.random_array((60, 60), density=0.1, rng=rng)
    graph = W + W.T + sparse.diags_array(np.ones(59), offsets=1) + sparse.diags_array(np.ones(59), offsets=-1)
    graph = graph - sparse.diags_array(graph.diagonal())
    rates = rng.uniform(0.5, 2.0, len(uniform_gossip_rates(graph).edges))
    dense = gossip_constants(graph, rates)
    monkeypatch.setattr(_gossip_graph, "DENSE", 10)
    monkeypatch.setattr(_gossip_graph, "BATCH", 7)
    np.testing.assert_allclose(gossip_constants(graph, rates), dense, rtol=1e-9)


def test_uniform_rates_just_meet_the_condition():
    result = uniform_gossip_rates(cycle(20))
    assert len(set(result.rates)) == 1
    assert 2 * result.chi1 * result.chi2 == pytest.approx(1)
    assert gossip_constants(cycle(20), result.rates) == pytest.approx((result.chi1, result.chi2))
    assert result.total == pytest.approx(20 * math.sqrt(0.95 / (2 - 2 * math.cos(math.pi / 10))))


METHODS = ["sdp", "barrier", "cutting-plane"]


def optimal(graph, method, **options):
    if method == "sdp":
        pytest.importorskip("cvxpy")
    return optimal_gossip_rates(graph, method=method, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", [cycle(9), complete(6), star(7), path(7)], ids=["cycle", "complete", "star", "path"])
def test_uniform_is_optimal_where_symmetry_or_a_tree_says_so(graph, method):
    result = optimal(graph, method)
    assert result.gain == pytest.approx(1, abs=1e-3)
    assert result.success
    assert result.lower_bound == pytest.approx(result.uniform_total, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_optimal_rates_of_a_barbell_and_a_grid(method):
    for graph, gain in ((barbell(10), 5.190), (grid(4, 5), 1.128)):
        result = optimal(graph, method)
        assert result.gain == pytest.approx(gain, abs=1e-3)
        assert result.success
        assert result.total <= result.lower_bound * (1 + 1e-4)
        assert 2 * result.chi1 * result.chi2 == pytest.approx(1)
        assert gossip_constants(graph, result.rates) == pytest.approx((result.chi1, result.chi2))
        assert result.foster_bound <= result.total * (1 + 1e-9)
        assert result.gain == pytest.approx(result.uniform_total / result.total)


def test_the_barrier_finds_the_same_optimum_on_random_graphs_and_proves_it():
    pytest.importorskip("cvxpy")
    for seed in range(6):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(3, 13))
        graph = n, [e for e in complete(n)[1] if rng.random() < 0.5 or e[1] == e[0] + 1]
        ours, theirs = (optimal_gossip_rates(graph, method=method) for method in ("barrier", "sdp"))
        assert ours.total == pytest.approx(theirs.total, rel=1e-5)
        assert ours.total <= ours.lower_bound * (1 + 1e-7)
        assert ours.lower_bound <= min(ours.total, theirs.total) * (1 + 1e-9)
        assert gossip_constants(graph, ours.rates) == pytest.approx((ours.chi1, ours.chi2))


def test_the_barrier_goes_beyond_what_a_solver_can_do():
    """40 nodes and 150 edges in a fraction of a second; the optimum is proved to 1e-7."""
    points = np.random.default_rng(0).random((40, 2))
    near = np.linalg.norm(points[:, None] - points, axis=2)
    graph = 40, [e for e in complete(40)[1] if near[e] < 0.27]
    assert len(graph[1]) > 120
    result = optimal_gossip_rates(graph, method="barrier")
    assert result.success
    assert result.total <= result.lower_bound * (1 + 1e-7)
    assert result.gain > 1.3


def test_derivatives_of_the_barrier_by_finite_differences():
    graph = as_graph(barbell(4))
    rng = np.random.default_rng(0)
    rates = 3 * uniform_gossip_rates(graph).rates * rng.uniform(0.8, 1.2, len(graph.edges))
    s = np.linalg.eigvalsh(graph.laplacian(rates).toarray())[1] / 3
    x = np.r_[rates, s]

    def model(x):
        return _Model.of(_Point.at(graph, x[:-1], x[-1]))

    def value(x):
        return _Point.at(graph, x[:-1], x[-1]).barrier

    middle = model(x)
    steps = 1e-6 * np.eye(len(x))
    slopes = [(value(x + e) - value(x - e)) / 2e-6 for e in steps]
    np.testing.assert_allclose(middle.gradient, slopes, rtol=1e-5, atol=1e-5)
    curves = np.array([(model(x + e).gradient - model(x - e).gradient) / 2e-6 for e in steps])
    step, decrement = middle.newton(0.1)
    g = middle.gradient + np.r_[np.full(len(rates), 10.0), 0.0]
    np.testing.assert_allclose(step, np.linalg.solve(curves, -g), rtol=1e-4, atol=1e-6)
    assert decrement == pytest.approx(-g @ step)


def test_what_the_barrier_proves_holds_for_whatever_step():
    """The bound needs no Newton step: along any short way its weights prove something below the optimum."""
    graph = as_graph(grid(3, 4))
    rng = np.random.default_rng(1)
    optimum = optimal_gossip_rates(grid(3, 4), method="cutting-plane").total
    rates = 2 * uniform_gossip_rates(graph).rates
    point = _Point.at(graph, rates, np.linalg.eigvalsh(graph.laplacian(rates).toarray())[1] / 2)
    proved = [_Model.of(point).proved(1e-2 * scale * np.r_[rates, point.s] * rng.standard_normal(len(rates) + 1))
              for scale in np.repeat([0.1, 1.0, 3.0], 20)]  # fmt: skip
    assert max(proved) <= optimum * (1 + 1e-6)
    assert np.mean(np.array(proved) > 0) > 0.5
    far = -1e3 * np.r_[rates, -point.s]
    assert _Model.of(point).proved(far) == 0.0


def test_points_outside_are_refused():
    graph = as_graph(cycle(5))
    rates = 2 * uniform_gossip_rates(graph).rates
    least = np.linalg.eigvalsh(graph.laplacian(rates).toarray())[1]
    largest = 2 * gossip_constants(cycle(5), rates)[1]
    assert _Point.at(graph, rates, (least + largest) / 2) is not None
    for s in (-1.0, 0.0, largest * 0.999, least * 1.001):
        assert _Point.at(graph, rates, s) is None
    assert _Point.at(graph, np.r_[0.0, rates[1:]], (least + largest) / 2) is None


def small_graphs():
    rng = np.random.default_rng(3)
    for n in (4, 5, 6):
        edges = complete(n)[1]
        kept = [e for e in edges if rng.random() < 0.6 or e[1] == e[0] + 1]
        yield n, kept


def test_no_search_finds_less_than_the_lower_bound():
    """Nelder-Mead on the logarithms of the rates, from the optimum: nothing that it sees is below the bound."""
    from scipy.optimize import minimize

    for graph in small_graphs():
        result = optimal_gossip_rates(graph, method="cutting-plane")

        def total(z, graph=graph):
            rates = np.exp(z)
            chi1, chi2 = gossip_constants(graph, rates)
            return rates.sum() * math.sqrt(2 * chi1 * chi2)

        found = minimize(total, np.log(result.rates + 1e-4), method="Nelder-Mead", options={"maxfev": 400})
        assert found.fun >= result.lower_bound * (1 - 1e-9)
        assert total(np.log(result.rates + 1e-12)) == pytest.approx(result.total, rel=1e-6)
        assert result.success


def test_a_weak_bound_is_no_success(monkeypatch):
    from steepest.federated import _gossip_rates

    monkeypatch.setattr(_gossip_rates, "ROUNDS", 4)
    result = optimal_gossip_rates(barbell(5), method="cutting-plane")
    assert not result.success
    assert result.status == 1
    monkeypatch.undo()
    exact = optimal_gossip_rates(barbell(5), method="cutting-plane")
    assert result.lower_bound <= exact.total * (1 + 1e-9) <= result.total * (1 + 1e-6)


def test_weights_that_are_no_dual_point_prove_nothing_false(monkeypatch):
    """A linear solver that overstates the weights of resistances: s must not come for free."""
    from scipy import optimize

    from steepest.federated import _gossip_rates

    graph = grid(3, 3)
    optimum = optimal_gossip_rates(graph, method="barrier").total
    solve = optimize.linprog

    def overstated(*arguments, **options):
        found = solve(*arguments, **options)
        resistive = np.asarray(options["A_ub"])[:, -1] < 0
        found.ineqlin.marginals = np.where(resistive, 3.0, 1.0) * found.ineqlin.marginals
        return found

    monkeypatch.setattr(optimize, "linprog", overstated)
    monkeypatch.setattr(_gossip_rates, "ROUNDS", 10)
    assert optimal_gossip_rates(graph, method="cutting-plane").lower_bound <= optimum * (1 + 1e-9)


# --------------------------------------------------------------------------------------------------------------- misuse


def test_misuse_is_named(monkeypatch):
    with pytest.raises(ValueError, match="method must be one of"):
        optimal_gossip_rates(cycle(4), method="lp")
    with pytest.raises(ValueError, match="connected"):
        optimal_gossip_rates((4, [(0, 1), (2, 3)]))
    with pytest.raises(ValueError, match="self-loops"):
        uniform_gossip_rates(np.eye(3) + np.ones((3, 3)))
    with pytest.raises(ValueError, match="symmetric"):
        uniform_gossip_rates(sparse.csr_array(np.triu(np.ones((4, 4)), 1)))
    with pytest.raises(ValueError, match="tol"):
        optimal_gossip_rates(cycle(4), tol=0.0)
    with pytest.raises(TypeError, match="solver"):
        optimal_gossip_rates(cycle(4), solver=3)
    with pytest.raises(ValueError, match="connect all nodes"):
        gossip_constants(path(3), [1.0, 0.0])
    from steepest.federated import _gossip_rates

    pytest.importorskip("cvxpy")
    monkeypatch.setattr(_gossip_rates, "SDP_NODES", 3)
    with pytest.warns(SteepestWarning, match="barrier"):
        optimal_gossip_rates(cycle(4))
