"""Tests of low-rank recovery by factored descent: dense algebra, scalar recursions, every kind of measurement."""

import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import aslinearoperator
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import steepest.landscape.matrix_sensing as module
from steepest.core.errors import ConvergenceWarning, SteepestWarning
from steepest.landscape import MatrixSensing, factored_descent
from steepest.landscape._low_rank import numerical_rank, product_error, top_svd
from steepest.landscape._measurements import EntryMeasurements, LazyProduct
from steepest.landscape._sensing_arguments import as_measurements


def target(n1, n2, sigmas=(1.0, 0.8, 0.6), seed=0):
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((n1, len(sigmas))))[0]
    V = np.linalg.qr(rng.standard_normal((n2, len(sigmas))))[0]
    return (U * sigmas) @ V.T


def sensing(n1=9, n2=7, m=300, seed=0, **options):
    M = target(n1, n2, seed=seed, **options)
    A = np.random.default_rng(seed + 1).standard_normal((m, n1, n2))
    return A, np.einsum("mij,ij->m", A, M), M


def isometry(n1, n2):
    """Measurements whose normalized adjoint is exactly the inverse: the population case."""
    return np.sqrt(n1 * n2) * np.eye(n1 * n2).reshape(-1, n1, n2)


def measured(A, M):
    return np.einsum("mij,ij->m", A, M)


# ------------------------------------------------------------------------------------------------- exact: the updates


def test_one_asymmetric_update_is_simultaneous_and_follows_the_gradient():
    A, y, _ = sensing()
    rng = np.random.default_rng(5)
    F, G = rng.standard_normal((9, 4)), rng.standard_normal((7, 4))
    D = np.einsum("m,mij->ij", measured(A, F @ G.T) - y, A) / len(A)
    found = factored_descent(A, y, rank=4, method="gd", x0=(F, G), step_size=0.01, maxiter=1)
    np.testing.assert_allclose(found.factors[0], F - 0.01 * D @ G, rtol=1e-12)
    np.testing.assert_allclose(found.factors[1], G - 0.01 * D.T @ F, rtol=1e-12)
    assert (found.nit, found.status, found.success) == (1, 1, False)
    np.testing.assert_allclose(found.x, found.factors[0] @ found.factors[1].T, rtol=1e-14)

    tensors = [torch.tensor(part, requires_grad=True) for part in (F, G)]
    r = torch.einsum("mij,ij->m", torch.tensor(A), tensors[0] @ tensors[1].T) - torch.tensor(y)
    (r.square().sum() / (2 * len(A))).backward()
    for before, after, tensor in zip((F, G), found.factors, tensors, strict=True):
        np.testing.assert_allclose((before - after) / 0.01, tensor.grad.numpy(), rtol=1e-10)


def test_one_symmetric_update_symmetrizes_the_gradient():
    rng = np.random.default_rng(0)
    A, X = rng.standard_normal((200, 6, 6)), rng.standard_normal((6, 3))
    M = target(6, 6) @ target(6, 6).T
    y = measured(A, M)
    D = np.einsum("m,mij->ij", measured(A, X @ X.T) - y, A) / len(A)
    options = {"rank": 3, "parametrization": "symmetric", "method": "gd"}
    found = factored_descent(A, y, x0=X, step_size=0.02, maxiter=1, **options)
    np.testing.assert_allclose(found.factors[0], X - 0.02 * (D + D.T) / 2 @ X, rtol=1e-12)
    np.testing.assert_array_equal(*found.factors)


def test_numbers_of_the_result_by_hand():
    A, y, M = sensing()
    F, G = np.ones((9, 2)), np.ones((7, 2))
    seen = []
    found = factored_descent(
        A, y, rank=2, x0=(F, G), step_size=1e-3, maxiter=3, truth=M, method="gd", callback=lambda now: seen.append(now)
    )
    r = measured(A, found.x) - y
    assert found.fun == pytest.approx((r @ r) / (2 * len(A)))
    assert found.residual == pytest.approx(np.linalg.norm(r) / np.linalg.norm(y))
    assert found.history["residual"].shape == found.history["error"].shape == (4,)
    assert found.history["residual"][0] == pytest.approx(np.linalg.norm(measured(A, F @ G.T) - y) / np.linalg.norm(y))
    assert found.history["error"][-1] == pytest.approx(np.linalg.norm(found.x - M))
    assert [now.nit for now in seen] == [1, 2, 3]
    assert "x" not in seen[-1]  # formed when asked for
    np.testing.assert_array_equal(seen[-1].x, found.x)
    assert seen[-1].residual == found.residual
    assert seen[-1].fun == found.fun
    with pytest.raises(AttributeError):
        _ = seen[-1].nonsense


def test_defaults_come_from_the_adjoint():
    A, y, _ = sensing()
    sigma = np.linalg.norm(np.einsum("m,mij->ij", y, A) / len(A), 2)
    found = factored_descent(A, y, rank=4, seed=0, maxiter=1)
    assert found.step_size == pytest.approx(0.25 / sigma)
    U, S, Vt = np.linalg.svd(np.einsum("m,mij->ij", y, A) / len(A))
    start = (U[:, :4] * S[:4] ** 0.5, Vt[:4].T * S[:4] ** 0.5)
    a = factored_descent(A, y, rank=4, init="spectral", maxiter=3)
    b = factored_descent(A, y, rank=4, x0=start, maxiter=3)
    np.testing.assert_allclose(a.x, b.x, rtol=1e-9)


def test_scale_of_the_random_start():
    A, y, _ = sensing(60, 50, m=500)
    sigma = np.linalg.norm(np.einsum("m,mij->ij", y, A) / len(A), 2)

    def start(**options):  # one update of vanishing length
        return factored_descent(A, y, rank=5, seed=3, maxiter=1, step_size=1e-300, method="gd", **options).factors

    F, G = start()
    assert F.std() == pytest.approx(0.1, rel=0.1)
    assert G.std() == pytest.approx(0.1 / 3, rel=0.1)
    for a, b in zip(start(init_scale=0.7), (7 * F, 7 * G), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    factor = np.sqrt(sigma) * min(0.1, 1 / (np.sqrt(60) + np.sqrt(5)))
    np.testing.assert_allclose(start(init_scale=None)[0], F / 0.1 * factor, rtol=1e-12)


def test_spectral_start_of_the_symmetric_form_leaves_negative_eigenvalues_out():
    M = np.diag([2.0, 1.0, 0.0, -1.5])
    A = isometry(4, 4)
    options = {"parametrization": "symmetric", "method": "gd", "init": "spectral", "maxiter": 1, "step_size": 1e-300}
    found = factored_descent(A, measured(A, M), rank=3, **options)
    np.testing.assert_allclose(found.x, np.diag([2.0, 1.0, 0.0, 0.0]), atol=1e-12)


# ------------------------------------------------------------------------------------------------- exact: the theory


def test_a_redundant_direction_obeys_the_scalar_recursion():
    """x <- x (1 - eta x^2) exactly, hence x^2 = 1 / (1 / x_0^2 + 2 eta t) up to logarithms."""
    A, eta, T = isometry(3, 3), 0.2, 4000
    X = np.array([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    options = {"rank": 2, "parametrization": "symmetric", "method": "gd", "step_size": eta, "maxiter": T, "tol": 0.0}
    M = np.diag([1.0, 0.0, 0.0])
    found = factored_descent(A, measured(A, M), x0=X, truth=M, **options)
    x, path = 0.5, []
    for _ in range(T):
        x *= 1 - eta * x * x
        path.append(x * x)
    np.testing.assert_allclose(found.history["error"][1:], path, rtol=1e-9)
    assert path[-1] * 2 * eta * T == pytest.approx(1.0, rel=0.02)


@pytest.fixture(scope="module")
def population():
    """Exact measurements, 10 x 8, rank 3 with 5 columns: asymmetric descent at three scales of one start."""
    A, M = isometry(10, 8), target(10, 8)
    rng = np.random.default_rng(1)
    F, G = rng.standard_normal((10, 5)), rng.standard_normal((8, 5)) / 3
    runs = {}
    for alpha in (0.05, 0.1):
        runs[alpha] = factored_descent(
            A, measured(A, M), rank=5, method="gd", x0=(alpha * F, alpha * G), step_size=0.25, truth=M,
            maxiter=round(60 / alpha**2 / 0.25 / 4), tol=1e-11,
        )  # fmt: skip
    return M, F, G, runs


def tail(errors):
    """Rate a step over the last fifth above rounding."""
    e = errors[errors > 1e-11]
    part = np.arange(int(0.8 * len(e)), len(e))
    return -np.polyfit(part, np.log(e[part]), 1)[0]


def test_tail_rate_is_the_smallest_eigenvalue_of_f_and_nearly_the_imbalance_of_the_start(population):
    M, F0, G0, runs = population
    U, _, Vt = np.linalg.svd(M)
    signal = U[:, :3].T @ F0 + Vt[:3] @ G0  # what grows first: its row space is taken by the signal
    W = np.linalg.svd(signal)[2][3:].T
    imbalance = np.linalg.eigvalsh(W.T @ (F0.T @ F0 - G0.T @ G0) @ W)[0]
    for alpha, run in runs.items():
        F, G = run.factors
        rate = tail(run.history["error"])
        assert rate == pytest.approx(-np.log1p(-0.25 * np.linalg.svd(F)[1][-1] ** 2), rel=0.01)
        assert rate == pytest.approx(0.25 * alpha**2 * imbalance, rel=0.02 + 3 * alpha)
        kept = W.T @ (F.T @ F - G.T @ G) @ W  # conserved where there is no signal
        np.testing.assert_allclose(kept, alpha**2 * W.T @ (F0.T @ F0 - G0.T @ G0) @ W, atol=0.05 * alpha**2)


def test_rebalanced_rate_is_that_of_the_spectrum_alone():
    """The smaller of F's last and G's last signal eigenvalue, near min(beta^2, sigma_r^2 / beta^2) for every start."""
    A, M = isometry(10, 8), target(10, 8)
    for alpha in (0.01, 0.1, 0.3):
        run = factored_descent(
            A, measured(A, M), rank=5, init_scale=alpha, step_size=0.25, beta=1.0, seed=0, truth=M, tol=1e-12
        )
        assert run.success
        F, G = (np.linalg.svd(part)[1] ** 2 for part in run.factors)
        assert tail(run.history["error"]) == pytest.approx(-np.log(1 - 0.25 * min(F[-1], G[2])), rel=0.02)
        assert min(F[-1], G[2]) == pytest.approx(0.36, rel=0.15)
        assert run.step_size == 0.25


# ------------------------------------------------------------------------------------------------ exact: rebalancing


@pytest.mark.parametrize("kind", ["full", "zero columns", "tensor"])
def test_rebalancing_keeps_the_product_and_evens_out_f(kind):
    rng = np.random.default_rng(0)
    F, G = rng.standard_normal((9, 4)), rng.standard_normal((7, 4))
    if kind == "zero columns":
        F[:, 2:] = 0
    if kind == "tensor":
        F, G = torch.tensor(F), torch.tensor(G)
    F2, G2 = (np.asarray(part) for part in module._rebalance(F, G, 1.7))
    np.testing.assert_allclose(F2 @ G2.T, np.asarray(F @ G.T), atol=1e-13)
    np.testing.assert_allclose(F2.T @ F2, 1.7**2 * np.eye(4), atol=1e-13)


def test_the_switch_happens_once_at_the_first_near_iterate(monkeypatch):
    A, y, M = sensing(m=600)
    calls = []
    rebalance = module._rebalance
    monkeypatch.setattr(module, "_rebalance", lambda *parts: calls.append(parts) or rebalance(*parts))
    options = {"rank": 5, "seed": 0, "maxiter": 400, "truth": M}
    plain = factored_descent(A, y, method="gd", **options)
    assert not calls
    assert plain.switch_iter is None
    found = factored_descent(A, y, **options)
    assert len(calls) == 1
    at = found.switch_iter
    assert at == np.flatnonzero(plain.history["residual"] <= 0.1)[0]
    np.testing.assert_array_equal(found.history["residual"][: at + 1], plain.history["residual"][: at + 1])
    assert found.history["residual"][at + 1] != plain.history["residual"][at + 1]
    assert factored_descent(A, y, switch_iter=7, **options).switch_iter == 7
    assert len(calls) == 2
    assert factored_descent(A, y, switch_tol=0.3, **options).switch_iter < at


def test_after_the_switch_the_step_respects_both_factors():
    A, y, M = sensing(m=600)
    for beta in (2.0, 0.5):
        found = factored_descent(A, y, rank=5, beta=beta, seed=0, truth=M)
        G = np.linalg.norm(M, 2) / beta
        limits = 0.25 / np.linalg.norm(M, 2), 0.5 / beta**2, 1 / (beta**2 + G**2)
        assert found.step_size == pytest.approx(min(limits), rel=0.1)
        assert found.success
        assert found.history["error"][-1] < 1e-8


def test_noise_that_keeps_the_residual_up_does_not_prevent_the_switch():
    A, y, _ = sensing(m=600)
    y = y + 0.4 * y.std() * np.random.default_rng(9).standard_normal(len(y))
    found = factored_descent(A, y, rank=5, seed=0, maxiter=300)
    h, at = found.history["residual"], found.switch_iter
    assert at is not None
    assert h[at] > 0.1
    assert h[at] > 0.99 * h[at - 50]
    assert not any(h[t] > 0.99 * h[t - 50] and h[t] <= 0.9 for t in range(50, at))


def test_the_plateau_at_the_origin_is_no_reason_to_switch():
    A, y, _ = sensing(m=600)
    found = factored_descent(A, y, rank=5, init_scale=1e-12, seed=0, maxiter=600)
    assert found.history["residual"][60] > 0.99
    assert found.switch_iter > 60
    assert found.history["residual"][found.switch_iter] <= 0.1


# -------------------------------------------------------------------------------- exact: all kinds of measurements


def test_every_kind_of_dense_measurements_gives_the_same_path(tmp_path):
    A, y, M = sensing(m=150)
    file = np.memmap(tmp_path / "A", dtype=np.float64, mode="w+", shape=A.shape)
    file[:] = A
    flat = A.reshape(len(A), -1)
    sparse_stack = [sparse.csr_array(a) for a in A]
    kinds = {
        "flat": (flat, M.shape, None),
        "blocks": (A, None, 7),
        "memmap": (np.memmap(tmp_path / "A", dtype=np.float64, mode="r", shape=A.shape), None, 32),
        "operator": (aslinearoperator(flat), M.shape, None),
        "sparse": (sparse_stack, None, None),
        "sparse, flat": (sparse.csc_array(flat), M.shape, None),
        "tensor": (torch.tensor(A), None, None),
        "tensor, blocks": (torch.tensor(A), None, 7),
        "sparse tensor": (torch.tensor(A).to_sparse(), None, None),
        "strided": (np.asfortranarray(A), None, None),
    }
    start = tuple(np.random.default_rng(2).standard_normal((n, 4)) / 3 for n in M.shape)
    expected = factored_descent(A, y, rank=4, x0=start, maxiter=60)
    assert expected.switch_iter is not None
    for name, (B, shape, block) in kinds.items():
        tensors = name.startswith(("tensor", "sparse tensor"))
        values, x0 = (torch.tensor(y), tuple(map(torch.tensor, start))) if tensors else (y, start)
        found = factored_descent(B, values, shape=shape, rank=4, x0=x0, maxiter=60, block_size=block)
        assert type(found.x) is type(values), name
        np.testing.assert_allclose(np.asarray(found.x), expected.x, rtol=1e-8, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(found.history["residual"], expected.history["residual"], rtol=1e-8, err_msg=name)


@pytest.mark.parametrize("parametrization", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("init", ["random", "spectral"])
def test_entries_are_measurements_by_unit_matrices(parametrization, init):
    rng = np.random.default_rng(0)
    n, m = 12, 300
    rows, cols = rng.integers(0, n, (2, m))  # some pairs twice, unsorted
    assert len(set(zip(rows, cols, strict=True))) < m
    M = target(n, n) @ target(n, n).T
    A = np.zeros((m, n, n))
    A[np.arange(m), rows, cols] = n  # so that 1 / m becomes n^2 / m
    options = {"rank": 4, "parametrization": parametrization, "init": init, "method": "gd", "seed": 0, "maxiter": 40}
    dense = factored_descent(A, n * M[rows, cols], step_size=0.2, **options)
    found = factored_descent((rows, cols), M[rows, cols], shape=(n, n), step_size=0.2, **options)
    np.testing.assert_allclose(found.x, dense.x, atol=1e-8)
    pairs = factored_descent(np.column_stack([rows, cols]), M[rows, cols], shape=(n, n), step_size=0.2, **options)
    np.testing.assert_array_equal(pairs.x, found.x)
    tensors = tuple(map(torch.tensor, (rows, cols)))
    start = found.factors[0] if parametrization == "symmetric" else found.factors
    start_tensor = torch.tensor(start) if parametrization == "symmetric" else tuple(map(torch.tensor, start))
    a = factored_descent((rows, cols), M[rows, cols], shape=(n, n), x0=start, **options)
    b = factored_descent(tensors, torch.tensor(M[rows, cols]), shape=(n, n), x0=start_tensor, **options)
    np.testing.assert_allclose(b.x.numpy(), a.x, rtol=1e-7, atol=1e-9)
    spectral = {**options, "init": "spectral", "maxiter": 1}
    a = factored_descent((rows, cols), M[rows, cols], shape=(n, n), **spectral)
    b = factored_descent(tensors, torch.tensor(M[rows, cols]), shape=(n, n), **spectral)
    np.testing.assert_allclose(b.x.numpy(), a.x, rtol=1e-6, atol=1e-8)


def test_pairs_that_occur_twice_accumulate():
    rows, cols = np.array([2, 0, 2, 2]), np.array([1, 0, 1, 0])
    expected = np.zeros((3, 2))
    np.add.at(expected, (rows, cols), [1.0, 2.0, 4.0, 8.0])
    expected *= 6 / 4
    for tensor in (False, True):
        index, r = (rows, cols), np.array([1.0, 2.0, 4.0, 8.0])
        eye = np.eye(2), np.eye(3)
        if tensor:
            index, r = tuple(map(torch.tensor, index)), torch.tensor(r)
            eye = tuple(map(torch.tensor, eye))
        D = as_measurements(index, (3, 2)).adjoint(r)
        np.testing.assert_allclose(np.asarray(D @ eye[0]), expected)
        np.testing.assert_allclose(np.asarray(D.T @ eye[1]), expected.T)


def test_adjoints_are_adjoint():
    """<A(F G^T), r> weight = <F G^T, A*(r)> for each kind, on rectangles."""
    rng = np.random.default_rng(0)
    F, G, r = rng.standard_normal((6, 2)), rng.standard_normal((4, 2)), rng.standard_normal(11)
    A = rng.standard_normal((11, 6, 4)) * (rng.random((11, 6, 4)) < 0.2)
    kinds = [A, [sparse.coo_array(a) for a in A], aslinearoperator(A.reshape(11, -1))]
    kinds.append((rng.integers(0, 6, 11), rng.integers(0, 4, 11)))
    for kind in kinds:
        measurements = as_measurements(kind, (6, 4))
        left = measurements.weight * (measurements.forward(F, G) @ r)
        assert left == pytest.approx(np.sum(F * (measurements.adjoint(r) @ G)))
        assert left == pytest.approx(np.sum(G * (measurements.adjoint(r).T @ F)))


def test_completion_needs_no_dense_matrix(monkeypatch):
    rng = np.random.default_rng(0)
    n, m = 2000, 20_000
    U, V = rng.standard_normal((2, n, 2))
    rows, cols = rng.integers(0, n, (2, m))
    y = (U[rows] * V[cols]).sum(1)
    model = MatrixSensing(rank=3, max_iter=5, random_state=0)
    monkeypatch.setattr(module, "LAZY", n * n - 1)
    tracemalloc.start()
    with pytest.warns(ConvergenceWarning):
        model.fit((rows, cols), y, shape=(n, n))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.1 * 8 * n * n
    assert isinstance(model.matrix_, LazyProduct)
    F, G = model.factors_
    np.testing.assert_allclose(model.matrix_.entries(rows[:9], cols[:9]), (F[rows[:9]] * G[cols[:9]]).sum(1))
    np.testing.assert_allclose(model.predict((rows, cols)), (F[rows] * G[cols]).sum(1))


def test_lazy_product_is_the_product():
    rng = np.random.default_rng(0)
    F, G = rng.standard_normal((6, 2)), rng.standard_normal((4, 2))
    lazy, B = LazyProduct(F, G), rng.standard_normal((4, 3))
    np.testing.assert_allclose(lazy @ B, F @ G.T @ B)
    np.testing.assert_allclose(lazy.T @ F, G @ F.T @ F)
    np.testing.assert_allclose(lazy.toarray(), F @ G.T)
    operator = aslinearoperator(lazy)
    np.testing.assert_allclose(operator @ B[:, 0], F @ G.T @ B[:, 0])
    np.testing.assert_allclose(operator.T @ F[:, 0], G @ F.T @ F[:, 0])


def test_subspace_iteration_finds_the_leading_triples():
    rng = np.random.default_rng(0)
    D = sparse.random_array((120, 80), density=0.05, rng=rng).tocsr()
    D = D + sparse.csr_array(np.outer(np.ones(120), np.linspace(0, 1, 80)))
    U, S, V = top_svd(D, 2, np.zeros(1), np.random.default_rng(1))
    exact = np.linalg.svd(D.toarray())
    np.testing.assert_allclose(S[0], exact[1][0], rtol=1e-10)
    np.testing.assert_allclose(S[1], exact[1][1], rtol=0.03)
    np.testing.assert_allclose(np.abs(U[:, 0]), np.abs(exact[0][:, 0]), atol=1e-8)
    np.testing.assert_allclose(U[:, 0] * S[0], D @ V[:, 0], rtol=1e-8)


def test_rank_and_error_from_the_factors():
    rng = np.random.default_rng(0)
    F, G = rng.standard_normal((1500, 3)), rng.standard_normal((20, 3))
    F[:, 2] = F[:, 0]
    assert numerical_rank(F, G, 0.0) == 2
    G[:, 1] *= 1e-6
    F[:, 2] = 0
    assert numerical_rank(F, G, 1e-9) == 2
    assert numerical_rank(F, G, 1e-5) == 1
    truth = rng.standard_normal((1500, 20))
    assert product_error(F, G, truth) == pytest.approx(np.linalg.norm(F @ G.T - truth))


# ----------------------------------------------------------------------------------------------------------- properties


def test_recovers_every_parametrization_and_start():
    A, y, M = sensing(8, 8, m=500)
    for options in ({}, {"init": "spectral"}, {"init_scale": None}, {"method": "gd", "init_scale": 0.4}):
        found = factored_descent(A, y, rank=5, seed=0, **options)
        assert found.success, options
        assert found.status == 0
        assert np.linalg.norm(found.x - M) < 1e-9 * 10
    P = M @ M.T
    options = {"parametrization": "symmetric", "method": "gd", "seed": 0}
    found = factored_descent(A, measured(A, P), rank=3, **options)
    assert found.success
    assert np.linalg.norm(found.x - P) < 1e-8
    assert factored_descent(A, measured(A, P), rank=6, seed=0).success  # asymmetric, the cure


def test_same_seed_same_result_and_no_global_generator():
    A, y, _ = sensing(m=100)
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    a, b = (factored_descent(A, y, rank=4, seed=1, maxiter=5) for _ in range(2))
    c = factored_descent(A, y, rank=4, seed=np.random.default_rng(1), maxiter=5)
    d = factored_descent(A, y, rank=4, maxiter=5)
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(a.x, c.x)
    assert not np.array_equal(a.x, d.x)
    e = factored_descent(torch.tensor(A), torch.tensor(y), rank=4, seed=torch.Generator().manual_seed(1), maxiter=5)
    f = factored_descent(torch.tensor(A), torch.tensor(y), rank=4, seed=1, maxiter=5)
    assert torch.equal(e.x, f.x)
    assert torch.equal(torch_state, torch.random.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])
    assert pickle.loads(pickle.dumps(a)).message == a.message


def test_types_follow_the_inputs():
    A, y, _ = sensing(m=200)
    single = factored_descent(A.astype(np.float32), y.astype(np.float32), rank=4, seed=0, tol=1e-5)
    assert single.success
    assert single.x.dtype == single.factors[0].dtype == np.float32
    assert factored_descent(A.astype(np.float32), y, rank=4, seed=0, maxiter=2).x.dtype == np.float64
    whole = factored_descent(np.rint(A).astype(int), np.rint(y).astype(int), rank=4, seed=0, maxiter=2)
    assert whole.x.dtype == np.float64
    tensor = factored_descent(torch.tensor(A).float(), torch.tensor(y).float(), rank=4, seed=0, tol=1e-5)
    assert tensor.success
    assert tensor.x.dtype == torch.float32
    assert isinstance(tensor.history["residual"], np.ndarray)
    assert isinstance(tensor.fun, float)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_on_an_accelerator():
    A, y, M = sensing(m=300)
    cuda = [torch.tensor(part, device="cuda") for part in (A, y)]
    found = factored_descent(*cuda, rank=4, seed=0)
    assert found.x.device.type == "cuda"
    np.testing.assert_allclose(found.x.cpu().numpy(), M, atol=1e-8)


def test_starts_are_left_alone_and_may_be_the_answer():
    A, y, M = sensing(m=200)
    U, S, Vt = np.linalg.svd(M)
    start = (U[:, :3] * S[:3], Vt[:3].T)
    copies = tuple(part.copy() for part in start)
    factored_descent(A, y, rank=3, x0=start, maxiter=5)
    for part, copy in zip(start, copies, strict=True):
        np.testing.assert_array_equal(part, copy)
    found = factored_descent(A, y, rank=3, x0=start, tol=1e-8)
    assert (found.nit, found.success, found.status, len(found.history["residual"])) == (0, True, 0, 1)


def test_callbacks_stop():
    A, y, _ = sensing(m=100)
    found = factored_descent(A, y, rank=4, seed=0, callback=lambda now: now.nit == 3)
    assert (found.nit, found.status, found.success) == (3, 3, False)
    assert "callback" in found.message

    def leave(intermediate):
        raise StopIteration

    assert factored_descent(A, y, rank=4, seed=0, callback=leave).nit == 1


def test_divergence_is_told_and_the_last_good_iterate_kept():
    A, y, _ = sensing(m=100)
    found = factored_descent(A, y, rank=4, seed=0, step_size=50.0, init_scale=1.0, method="gd")
    assert (found.status, found.success) == (2, False)
    assert "step_size" in found.message
    assert np.isfinite(found.x).all()
    assert found.residual <= 1e6
    assert found.residual == found.history["residual"][-1]
    assert len(found.history["residual"]) == found.nit + 1


def test_zero_measurements_give_the_zero_matrix():
    A, y, _ = sensing(m=50)
    for B, values in ((A, 0 * y), (torch.tensor(A), torch.zeros(50, dtype=torch.float64))):
        found = factored_descent(B, values, rank=4)
        assert (found.success, found.status, found.nit) == (True, 0, 0)
        assert type(found.x) is type(B)
        assert not found.x.any()


def test_equal_factors_are_warned_of():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((200, 6, 6))
    X = rng.standard_normal((6, 3)) / 3
    M = target(6, 6) @ target(6, 6).T
    both = A + A.transpose(0, 2, 1)
    with pytest.warns(SteepestWarning, match="equal for ever"):
        found = factored_descent(both, measured(both, M), rank=3, x0=(X, X), method="gd", maxiter=30)
    np.testing.assert_allclose(*found.factors, rtol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factored_descent(A, measured(A, M), rank=3, x0=(X, X), method="gd", maxiter=3)
        factored_descent(both, measured(both, M), rank=3, x0=(X, X), maxiter=3)


# ---------------------------------------------------------------------------------------------------------- estimator


def test_estimator_fits_predicts_scores_and_clones():
    A, y, M = sensing(m=300)
    model = MatrixSensing(rank=5).fit(A, y)
    assert model.converged_
    assert model.rank_ == 3
    assert model.n_iter_ == model.result_.nit
    np.testing.assert_allclose(model.matrix_, M, atol=1e-6)
    np.testing.assert_allclose(model.predict(A[:9]), y[:9], atol=1e-5)
    np.testing.assert_allclose(model.predict(A[:9].reshape(9, -1)), y[:9], atol=1e-5)
    assert model.score(A, y) > 1 - 1e-9
    other = clone(model.set_params(rank=3, random_state=0))
    assert other.get_params()["rank"] == 3
    assert not hasattr(other, "matrix_")
    with pytest.raises(Exception, match="not fitted"):
        other.predict(A)
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        other.set_params(max_iter=2).fit(A, y)


@pytest.mark.parametrize("kind", ["stack", "flat", "pairs"])
def test_grid_search_over_the_rank(kind):
    rng = np.random.default_rng(0)
    A, y, M = sensing(m=250)
    shape = None if kind == "stack" else M.shape
    if kind == "flat":
        A = A.reshape(len(A), -1)
    if kind == "pairs":
        M = target(30, 25, (1.0, 0.9))
        A = np.column_stack(np.divmod(rng.choice(750, 500, replace=False), 25))
        y, shape = M[tuple(A.T)], M.shape
    y = y + 0.02 * y.std() * rng.standard_normal(len(y))
    search = GridSearchCV(MatrixSensing(max_iter=60, tol=1e-4), {"rank": [1, 2, 3]}, cv=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(A, y, shape=shape) if shape else search.fit(A, y)
    assert search.best_params_["rank"] == (2 if kind == "pairs" else 3)
    assert search.best_score_ > 0.9


# -------------------------------------------------------------------------------------------------------------- misuse

GOOD_A, GOOD_Y, _ = sensing(m=30)
PAIR = (np.array([0, 1]), np.array([1, 0]))
LINEAR = aslinearoperator(GOOD_A.reshape(30, -1))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be an integer in \\[1, 7\\], got 0"),
        ({"rank": 8}, ValueError, "rank"),
        ({"rank": 2.0}, TypeError, "rank"),
        ({"y": GOOD_Y[:-1]}, ValueError, "y must be of shape \\(30,\\)"),
        ({"y": GOOD_Y * np.nan}, ValueError, "y must be finite"),
        ({"y": torch.tensor(GOOD_Y)}, TypeError, "y must be a NumPy array"),
        ({"y": GOOD_Y + 1j}, TypeError, "y must be real"),
        ({"A": GOOD_A * np.inf}, ValueError, "A must be finite"),
        ({"A": torch.tensor(GOOD_A)}, TypeError, "y must be a tensor"),
        ({"A": torch.tensor(GOOD_A), "y": torch.tensor(GOOD_Y).float()}, TypeError, "y must be of A's dtype"),
        ({"A": GOOD_A + 1j}, TypeError, "A must be real"),
        ({"A": GOOD_A[0, 0]}, ValueError, "A must be an array"),
        ({"A": "A"}, TypeError, "A must be an array"),
        ({"A": GOOD_A.reshape(30, -1)}, ValueError, "shape must be given"),
        ({"A": GOOD_A.reshape(30, -1), "shape": (9, 6)}, ValueError, "A.shape\\[1\\] must be n1 \\* n2 = 54"),
        ({"shape": (7, 9)}, ValueError, "shape must be that of the matrices"),
        ({"shape": (9, 0)}, ValueError, "shape must be a pair"),
        ({"shape": 9}, ValueError, "shape must be a pair"),
        ({"A": LINEAR}, ValueError, "shape must be given"),
        ({"A": LINEAR, "shape": (9, 6)}, ValueError, "A.shape"),
        ({"A": PAIR}, ValueError, "shape must be given"),
        ({"A": PAIR, "shape": (2, 1), "rank": 1}, ValueError, "A \\(cols\\) must be indices in 0..0, got 1"),
        ({"A": (PAIR[0] - 1, PAIR[1]), "shape": (2, 2)}, ValueError, "A \\(rows\\).*got -1"),
        ({"A": (PAIR[0] * 1.0, PAIR[1]), "shape": (2, 2)}, TypeError, "integer arrays"),
        ({"A": (PAIR[0], PAIR[1][:1]), "shape": (2, 2)}, ValueError, "one length"),
        ({"A": [sparse.eye_array(2), sparse.eye_array(3)], "shape": (2, 2)}, ValueError, "of one shape"),
        ({"A": [sparse.eye_array(2) * np.nan] * 30}, ValueError, "A must be finite"),
        ({"A": torch.eye(3).to_sparse()}, ValueError, "A must be a sparse tensor"),
        ({"init_scale": 0.0}, ValueError, "init_scale must be None or > 0"),
        ({"step_size": -1.0}, ValueError, "step_size"),
        ({"beta": 0.0}, ValueError, "beta"),
        ({"tol": 1.0}, ValueError, "tol"),
        ({"maxiter": 0}, ValueError, "maxiter"),
        ({"switch_tol": 0.0}, ValueError, "switch_tol"),
        ({"switch_iter": -1}, ValueError, "switch_iter"),
        ({"block_size": 0}, ValueError, "block_size"),
        ({"method": "newton"}, ValueError, "method must be one of 'rebalanced', 'gd'"),
        ({"init": "zero"}, ValueError, "init must be one of"),
        ({"parametrization": "skew"}, ValueError, "parametrization"),
        ({"parametrization": "symmetric"}, ValueError, "use parametrization='asymmetric'"),
        ({"parametrization": "symmetric", "method": "gd"}, ValueError, "square"),
        ({"x0": np.ones((9, 3))}, TypeError, "x0 must be a pair"),
        ({"x0": (np.ones((9, 3)), np.ones((9, 3)))}, ValueError, "x0\\[1\\] must be of shape \\(7, 3\\)"),
        ({"x0": (np.ones((9, 3)), torch.ones(7, 3))}, TypeError, "x0\\[1\\]"),
        ({"x0": (1e9 * np.ones((9, 3)), np.ones((7, 3)))}, ValueError, "x0 must be of a residual"),
        ({"truth": np.ones((7, 9))}, ValueError, "truth must be of shape"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": "a"}, TypeError, "seed"),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    arguments = {"A": GOOD_A, "y": GOOD_Y, "rank": 3} | changes
    with pytest.raises(error, match=message):
        factored_descent(arguments.pop("A"), arguments.pop("y"), **arguments)


def test_measurements_that_do_not_see_y():
    with pytest.raises(ValueError, match="y must be seen by the measurements"):
        factored_descent(np.zeros((4, 2, 2)), np.ones(4), rank=1)


def test_estimator_names_its_own_arguments():
    with pytest.raises(ValueError, match="max_iter"):
        MatrixSensing(max_iter=0).fit(GOOD_A, GOOD_Y)
    with pytest.raises(ValueError, match="rank"):
        MatrixSensing(rank=20).fit(GOOD_A, GOOD_Y)
    assert EntryMeasurements(*PAIR, (2, 2)).weight == 2.0
