"""EmpiricalFisherInverse and SlidingFisherInverse against dense float64 algebra."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.curvature import EmpiricalFisherInverse, SlidingFisherInverse
from steepest.curvature._sliding_fisher import correct_inverse
from tests import processes

D = 200


def gen(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(m, d=D, seed=0, dtype=torch.float64):
    return torch.randn(m, d, generator=gen(seed), dtype=dtype)


def correlated(m, d, seed=0, common=100):
    """Gradients with a common direction that is much longer than the rest, as in training."""
    return common * gaussian(1, d, seed) + gaussian(m, d, seed + 1)


def dense_fisher(G, damping, block_size=None, m=None):
    F = G.double().T @ G.double() / (m or len(G))
    if block_size is not None:
        where = torch.arange(len(F)) // block_size
        F = F * (where[:, None] == where)
    return F + damping * torch.eye(len(F), dtype=torch.float64)


def error(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def tolerance(damping):
    return 1e-9 if damping >= 1e-3 else 1e-7


# ------------------------------------------------------------------------------------------------------ exact


@pytest.mark.parametrize("algorithm", ["cholesky", "recursive"])
@pytest.mark.parametrize("damping", [1.0, 1e-3, 1e-5])
@pytest.mark.parametrize("m", [1, 10, 64, 300])
def test_inverse_is_exact(m, damping, algorithm):
    G, X = gaussian(m), gaussian(D, 3, seed=1)
    exact = torch.linalg.inv(dense_fisher(G, damping))
    inverse = EmpiricalFisherInverse(G, damping, algorithm=algorithm)
    i, j = torch.randint(D, (2, 60), generator=gen(2))
    for got, want in [
        (inverse.matvec(X), exact @ X),
        (inverse(X[:, 0]), exact @ X[:, 0]),
        (inverse.to_dense(), exact),
        (inverse.diag(), exact.diag()),
        (inverse.element(i, j), exact[i, j]),
        (inverse.element(3, 3), exact[3, 3]),
        (inverse.element(3, 4), exact[3, 4]),
    ]:
        assert got.shape == want.shape
        assert error(got, want) <= tolerance(damping)
    assert error(inverse.fisher_matvec(X), dense_fisher(G, damping) @ X) <= 1e-13
    assert inverse.residual(X) <= 1e-8
    assert (inverse.m, inverse.d, inverse.shape, inverse.dtype) == (m, D, (D, D), torch.float64)


@pytest.mark.parametrize("algorithm", ["cholesky", "recursive"])
@pytest.mark.parametrize("block_size", [1, 32, 64, 200, 500])
@pytest.mark.parametrize("m", [5, 48])
def test_blocks_are_inverted_alone(m, block_size, algorithm):
    damping = 1e-3
    G, X = gaussian(m), gaussian(D, 2, seed=1)
    exact = torch.linalg.inv(dense_fisher(G, damping, block_size))
    inverse = EmpiricalFisherInverse(G, damping, block_size=block_size, algorithm=algorithm)
    rows, cols = torch.meshgrid(torch.arange(D), torch.arange(D), indexing="ij")
    assert error(inverse @ X, exact @ X) <= 1e-9
    assert error(inverse.diag(), exact.diag()) <= 1e-9
    assert error(inverse.element(rows.reshape(-1), cols.reshape(-1)).reshape(D, D), exact) <= 1e-9
    assert math.isclose(float(inverse.element(0, D - 1)), float(exact[0, D - 1]), rel_tol=1e-9)
    assert error(inverse.fisher_matvec(X), dense_fisher(G, damping, block_size) @ X) <= 1e-13


def test_the_recursion_makes_the_cholesky_factor():
    G = gaussian(30)
    by_rows = EmpiricalFisherInverse(G, 0.1, algorithm="recursive")
    by_blocks = EmpiricalFisherInverse(G, 0.1)
    assert error(by_rows._V, by_blocks._V) <= 1e-12


def test_element_and_diagonal_follow_the_papers_formula():
    m, damping = 7, 0.3
    G = gaussian(m, 20)
    H, dots = [], []
    for g in G:  # the recursion as printed
        h = g / damping - sum((v * (v @ g) / q for v, q in zip(H, dots)), torch.zeros(20, dtype=torch.float64))
        H.append(h)
        dots.append(m + g @ h)
    inverse = EmpiricalFisherInverse(G, damping)
    want = -sum(h[2] * h[5] / q for h, q in zip(H, dots))
    assert math.isclose(float(inverse.element(2, 5)), float(want), rel_tol=1e-11)
    want = 1 / damping - sum(h[2] ** 2 / q for h, q in zip(H, dots))
    assert math.isclose(float(inverse.diag()[2]), float(want), rel_tol=1e-11)


@pytest.mark.parametrize("algorithm", ["cholesky", "recursive"])
@pytest.mark.parametrize("block_size", [None, 30])
@pytest.mark.parametrize("m", [20, 100, 250])
def test_overwrite_puts_the_factor_where_the_gradients_were(m, block_size, algorithm):
    G, x = gaussian(m), gaussian(D, 1, seed=1)[:, 0]
    kept = EmpiricalFisherInverse(G.clone(), 1e-3, block_size=block_size, algorithm=algorithm)
    buffer = G.clone()
    inverse = EmpiricalFisherInverse(buffer, 1e-3, block_size=block_size, algorithm=algorithm, overwrite=True)
    assert inverse._V.data_ptr() == buffer.data_ptr()
    assert not torch.equal(buffer, G)
    torch.testing.assert_close(inverse @ x, kept @ x, rtol=1e-12, atol=0)
    torch.testing.assert_close(inverse.diag(), kept.diag(), rtol=1e-12, atol=0)
    for call in (inverse.fisher_matvec, inverse.residual, lambda v: inverse.matvec(v, refine=1)):
        with pytest.raises(RuntimeError, match="overwrite=False"):
            call(x)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("block_size", [None, 16])
def test_pages_of_a_memory_mapped_file(tmp_path, block_size, overwrite):
    G, x = gaussian(12), gaussian(D, 2, seed=1)
    path = tmp_path / "grads.bin"
    G.numpy().tofile(path)
    file = np.memmap(path, dtype=np.float64, mode="r+" if overwrite else "r", shape=(12, D))
    inverse = EmpiricalFisherInverse(file, 1e-3, block_size=block_size, overwrite=overwrite, page_columns=37)
    whole = EmpiricalFisherInverse(G, 1e-3, block_size=block_size)
    assert error(inverse @ x, whole @ x) <= 1e-12
    assert error(inverse.diag(), whole.diag()) <= 1e-12
    unchanged = np.array_equal(np.fromfile(path).reshape(12, D), G.numpy())
    if overwrite:
        file.flush()
        assert not np.array_equal(np.fromfile(path).reshape(12, D), G.numpy())
    else:
        assert unchanged
        assert inverse.residual(x) <= 1e-9


def test_rows_from_a_reiterable():
    G, x = gaussian(6), gaussian(D, 1, seed=1)[:, 0]
    want = EmpiricalFisherInverse(G, 1e-3) @ x
    assert torch.equal(EmpiricalFisherInverse(list(G), 1e-3) @ x, want)
    assert torch.equal(EmpiricalFisherInverse([g.numpy() for g in G], 1e-3) @ x, want)
    assert torch.equal(EmpiricalFisherInverse(G.numpy(), 1e-3) @ x, want)


def test_linear_operator():
    from scipy.sparse.linalg import cg

    inverse = EmpiricalFisherInverse(gaussian(9), 1e-3)
    operator = inverse.as_linear_operator()
    X = gaussian(D, 2, seed=1)
    assert operator.shape == (D, D)
    assert error(torch.from_numpy(operator @ X.numpy()), inverse @ X) == 0
    assert error(torch.from_numpy(operator.rmatvec(X[:, 0].numpy())), inverse @ X[:, 0]) == 0
    solution, info = cg(operator, (inverse @ X[:, 0]).numpy(), rtol=1e-10, maxiter=200)
    assert info == 0
    assert error(torch.from_numpy(solution), X[:, 0]) <= 1e-5


# --------------------------------------------------------------------------------------------------- numerical care


def test_refinement_recovers_what_float32_loses():
    G = correlated(16, 500, common=10).float()
    inverse = EmpiricalFisherInverse(G, 1.0)
    x = (G.double().T @ gaussian(16, 1, seed=5)).float()[:, 0]  # in the span of the gradients
    exact = torch.linalg.solve(dense_fisher(G, 1.0), x.double())
    plain, refined = inverse.matvec(x), inverse.matvec(x, refine=3)
    assert error(refined, exact) <= 0.1 * error(plain, exact)
    assert error(refined, exact) <= 1e-6


def test_refinement_stops_where_it_would_diverge():
    G = correlated(16, 500).float() * 1e3
    inverse = EmpiricalFisherInverse(G, 1e-4)
    x = G[0] + G[3]
    residuals = []
    for steps in (0, 1, 5, 50):
        y = inverse.matvec(x, refine=steps).double()
        r = 1e-4 * y + G.double().T @ (G.double() @ y) / 16 - x.double()
        residuals.append(float(r.norm() / x.double().norm()))
    assert all(b <= a * 1.01 for a, b in pairwise(residuals))
    assert np.isfinite(residuals).all()


def test_refinement_treats_columns_alone():
    G = correlated(8, 300, common=10).float()
    inverse = EmpiricalFisherInverse(G, 1.0)
    X = torch.stack([G[0], gaussian(1, 300, seed=7)[0].float()], dim=1)
    both = inverse.matvec(X, refine=4)
    for k in range(2):
        assert error(both[:, k], inverse.matvec(X[:, k], refine=4)) <= 1e-6


def test_refinement_never_makes_a_column_worse():
    G = correlated(16, 200)
    inverse = EmpiricalFisherInverse(G, 1e-3)
    X = torch.cat([G[:3], gaussian(3, 200, seed=9)]).T.contiguous()
    residuals = torch.stack(
        [(inverse.fisher_matvec(inverse.matvec(X, refine=steps)) - X).norm(dim=0) for steps in range(8)]
    )
    assert bool((residuals[1:] <= residuals[:-1]).all())
    assert bool((residuals[-1] < residuals[0]).all())


def test_cholesky_is_more_accurate_than_the_recursion_on_correlated_gradients():
    G = correlated(64, 2000, seed=3).float() / 100
    x = G[0].clone()
    damping = 1e-3
    c = torch.linalg.solve((G.double() @ G.double().T) + 64 * damping * torch.eye(64), G.double() @ x.double())
    exact = (x.double() - G.double().T @ c) / damping
    by = {a: error(EmpiricalFisherInverse(G, damping, algorithm=a) @ x, exact) for a in ("cholesky", "recursive")}
    assert by["cholesky"] < by["recursive"]


def test_the_diagonal_is_never_below_the_reciprocal_diagonal():
    G = gaussian(64, 100).float() * 1e3
    G[:, 40:] = 0
    damping = 1e-6
    inverse = EmpiricalFisherInverse(G, damping)
    floor = 1 / (damping + G.square().mean(0))
    raw = (1 - inverse._V.square().sum(0)) / damping
    assert bool((raw < floor).any())  # the case that needs it
    diagonal = inverse.diag()
    assert bool((diagonal >= floor).all())
    assert bool((diagonal > 0).all())
    assert torch.equal(inverse.element(torch.arange(100), torch.arange(100)), diagonal)
    assert all(float(inverse.element(i, i)) > 0 for i in range(100))
    buffer = EmpiricalFisherInverse(G.clone(), damping, overwrite=True)
    assert torch.equal(buffer.diag(), diagonal)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.floats(1e-3, 10))
def test_diagonal_bounds(m, d, seed, damping):
    """1 / F_ii <= [F^{-1}]_ii <= 1 / damping."""
    G = gaussian(m, d, seed)
    diagonal = EmpiricalFisherInverse(G, damping).diag()
    assert bool((diagonal >= 1 / (damping + G.square().mean(0)) * (1 - 1e-12)).all())
    assert bool((diagonal <= 1 / damping * (1 + 1e-12)).all())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10), st.integers(1, 15), st.integers(1, 17), st.integers(0, 10**6))
def test_inverse_undoes_the_fisher_for_any_shape(m, d, block, seed):
    inverse = EmpiricalFisherInverse(gaussian(m, d, seed), 0.05, block_size=block)
    x = gaussian(1, d, seed + 1)[0]
    torch.testing.assert_close(inverse @ inverse.fisher_matvec(x), x, rtol=1e-9, atol=1e-9)


def test_permuting_gradients_changes_nothing():
    G, x = gaussian(20), gaussian(D, 1, seed=1)[:, 0]
    a = EmpiricalFisherInverse(G, 1e-3) @ x
    b = EmpiricalFisherInverse(G[torch.randperm(20, generator=gen(3))], 1e-3) @ x
    assert error(a, b) <= 1e-11


def test_a_hopeless_damping_is_said_not_repaired():
    G = (gaussian(40, 3) @ gaussian(3, 60, seed=1) * 1e6).float()  # 40 gradients, three directions
    for call in (
        lambda: EmpiricalFisherInverse(G, 1e-12),
        lambda: EmpiricalFisherInverse(G, 1e-12, gram_dtype=torch.float32),
        lambda: EmpiricalFisherInverse(G, 1e-12, block_size=60),
        lambda: [S.push_matvec(g) for S in [SlidingFisherInverse(60, 40, 1e-12)] for g in G],
    ):
        with pytest.raises(torch.linalg.LinAlgError, match="damping"):
            call()


def test_a_float32_gram_matrix_that_fails_is_made_again_in_float64():
    G = (1e4 * gaussian(30, 3) @ gaussian(3, 400, seed=1) + gaussian(30, 400, seed=2)).float()
    x = gaussian(1, 400, seed=5)[0].float()
    exact = torch.linalg.solve(dense_fisher(G, 10.0), x.double())
    K = G @ G.T + 300 * torch.eye(30)
    assert int(torch.linalg.cholesky_ex(K.double())[1]) != 0  # float32 products alone are not definite
    inverse = EmpiricalFisherInverse(G, 10.0, gram_dtype=torch.float32)
    assert error(inverse @ x, exact) <= 1e-2
    sliding = SlidingFisherInverse(400, 30, 10.0, gram_dtype=torch.float32)
    for g in G:
        sliding.push(g)
    assert error(sliding.matvec(x), exact) <= 1e-2
    assert sliding.gram_dtype == torch.float64


def test_float32_smoke():
    G, x = gaussian(20).float(), gaussian(D, 1, seed=1)[:, 0].float()
    exact = torch.linalg.solve(dense_fisher(G, 0.1), x.double())
    inverse = EmpiricalFisherInverse(G, 0.1)
    assert inverse.matvec(x).dtype == torch.float32
    assert error(inverse @ x, exact) <= 1e-5
    assert inverse.residual(x) <= 1e-4
    assert inverse.residual(torch.zeros(D)) == 0


# -------------------------------------------------------------------------------------------------------- sliding


def check_against_dense(sliding, held, x, bound=1e-9):
    want = dense_fisher(torch.stack(held), sliding.damping, m=sliding.m)
    assert error(sliding.matvec(x), torch.linalg.solve(want, x)) <= bound


@pytest.mark.parametrize("update", ["cholesky", "rank2"])
@pytest.mark.parametrize("normalize", ["window", "count"])
@pytest.mark.parametrize("window", [1, 10, 64])
@pytest.mark.parametrize("damping", [1.0, 1e-3, 1e-5])
def test_sliding_window_is_exact_after_pushes_and_pops(window, damping, normalize, update):
    d = 80
    sliding = SlidingFisherInverse(d, window, damping, dtype=torch.float64, normalize=normalize, update=update)
    held, x = [], gaussian(d, 3, seed=99)
    generator = gen(4)
    bound = tolerance(damping)
    for t, g in enumerate(gaussian(3 * window + 7, d, seed=1)):
        u = sliding.push_matvec(g)
        held = [*held, g][-window:]
        assert error(u, torch.linalg.solve(dense_fisher(torch.stack(held), damping, m=sliding.m), g)) <= bound
        if t % 5 == 3 and len(held) > 1:
            age = int(torch.randint(len(held), (), generator=generator))
            assert torch.equal(sliding.pop(age), held.pop(age))
        if t % 4 == 0:
            check_against_dense(sliding, held, x, bound)
        assert sliding.count == len(held)
        assert sliding.m == (window if normalize == "window" else len(held))
        assert torch.equal(sliding.grads(), torch.stack(held))


def test_full_window_equals_the_static_inverse():
    G, x = gaussian(12, 50), gaussian(50, 1, seed=1)[:, 0]
    sliding = SlidingFisherInverse(50, 12, 1e-3, dtype=torch.float64)
    for g in gaussian(5, 50, seed=8):
        sliding.push(g)
    for g in G:
        assert sliding.push(g) is sliding
    assert error(sliding(x), EmpiricalFisherInverse(G, 1e-3) @ x) <= 1e-11


def test_an_empty_window_only_damps():
    sliding = SlidingFisherInverse(4, 3, 0.5)
    x = torch.arange(4.0)
    assert torch.equal(sliding.matvec(x), 2 * x)
    sliding.push(torch.ones(4)).pop()
    assert torch.equal(sliding.matvec(x), 2 * x)
    assert sliding.grads().shape == (0, 4)


def test_pushed_gradient_is_free_of_cancellation_in_float32():
    """At condition number 1e8 the difference form has no digits left, push_matvec keeps three."""
    d, m, damping = 4000, 32, 1e-2
    G = correlated(m, d).float()
    K = G.double() @ G.double().T
    assert float(torch.linalg.eigvalsh(K)[-1] / m / damping) > 1e8
    sliding = SlidingFisherInverse(d, m, damping)
    for g in G[:-1]:
        sliding.push(g)
    u = sliding.push_matvec(G[-1])
    c = torch.linalg.solve(K + m * damping * torch.eye(m, dtype=torch.float64), torch.eye(m, dtype=torch.float64)[-1])
    exact = m * G.double().T @ c
    assert error(u, exact) <= 1e-3
    assert error(sliding.matvec(G[-1]), exact) > 10 * error(u, exact)


def test_rank2_correction_of_an_inverse():
    A = gaussian(30, 30)
    A = A @ A.T + torch.eye(30, dtype=torch.float64)
    P, change = torch.linalg.inv(A), gaussian(1, 30, seed=2)[0]
    B = A.clone()
    B[7] += change
    B[:, 7] = B[7]
    correct_inverse(P, 7, change)
    assert error(P, torch.linalg.inv(B)) <= 1e-10


def test_rank2_factors_again_when_due():
    sliding = SlidingFisherInverse(40, 8, 1e-2, dtype=torch.float64, update="rank2")
    seen = []
    for g in gaussian(150, 40, seed=3):
        sliding.push_matvec(g)
        seen.append(sliding._changes)
    assert max(seen) == 64
    assert seen.count(0) == 3  # the first solve, and twice after 64 corrections
    sliding._factor[1].mul_(1.1)  # a spoiled inverse is noticed by its residual
    check_against_dense(sliding, list(sliding.grads()), gaussian(40, 1, seed=5))
    assert sliding._changes == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_history(dtype):
    sliding = SlidingFisherInverse(60, 5, 1e-2, dtype=dtype)
    G = gaussian(8, 60).float()
    for g in G[:-1]:
        sliding.push(g)
    u = sliding.push_matvec(G[-1])
    held = sliding.grads().double()  # the rounded gradients are what F is made of, to float32 accuracy
    F = dense_fisher(held, 1e-2, m=5)
    assert u.dtype == torch.float32
    assert error(u, torch.linalg.solve(F, held[-1])) <= 1e-5
    assert error(sliding.matvec(G[0]), torch.linalg.solve(F, G[0].double())) <= 1e-4
    if dtype == torch.float16:
        before = sliding.grads()
        with pytest.raises(FloatingPointError):
            sliding.push(torch.full((60,), 1e6))  # infinite in float16
        assert torch.equal(sliding.grads(), before)


@pytest.mark.parametrize("update", ["cholesky", "rank2"])
@pytest.mark.parametrize("pushed", [3, 11])
def test_state_dict_continues_bit_equal(tmp_path, update, pushed):
    def fresh():
        return SlidingFisherInverse(30, 6, 1e-3, update=update)

    first, G = fresh(), gaussian(40, 30).float()
    for g in G[:pushed]:
        first.push_matvec(g)
    first.pop(1)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = fresh()
    second.push(G[0]).push(G[1])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for g in G[pushed:]:
        assert torch.equal(first.push_matvec(g), second.push_matvec(g))
    assert torch.equal(first.grads(), second.grads())
    with pytest.raises(ValueError, match="window of the state must be 7, got 6"):
        SlidingFisherInverse(30, 7).load_state_dict(first.state_dict())


def test_extend_adds_columns_that_old_gradients_do_not_have():
    sliding = SlidingFisherInverse(5, 3, 0.1, dtype=torch.float64)
    G = gaussian(2, 5)
    sliding.push(G[0]).push(G[1]).extend(4)
    held = torch.cat([G, torch.zeros(2, 4, dtype=torch.float64)], dim=1)
    check_against_dense(sliding, list(held), gaussian(9, 1, seed=4)[:, 0])
    new = gaussian(1, 9, seed=5)[0]
    sliding.push(new)
    check_against_dense(sliding, [*held, new], gaussian(9, 1, seed=4)[:, 0])


def _shard(rank, world, store, out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    part = slice(0, 13) if rank == 0 else slice(13, 40)
    sliding = SlidingFisherInverse(part.stop - part.start, 6, 1e-3, dtype=torch.float64, process_group="default")
    G = gaussian(9, 40)
    for g in G:
        u = sliding.push_matvec(g[part].contiguous())
    y = sliding.matvec(gaussian(40, 2, seed=3)[part])
    torch.save((u, y), f"{out}{rank}.pt")
    torch.distributed.destroy_process_group()


def test_columns_shard_over_processes(tmp_path):
    processes.on_two_ranks(_shard, 2, tmp_path / "store", tmp_path / "r")
    parts = [torch.load(tmp_path / f"r{rank}.pt", weights_only=True) for rank in range(2)]
    G = gaussian(9, 40)
    F = dense_fisher(G[-6:], 1e-3)
    assert error(torch.cat([u for u, _ in parts]), torch.linalg.solve(F, G[-1])) <= 1e-10
    assert error(torch.cat([y for _, y in parts]), torch.linalg.solve(F, gaussian(40, 2, seed=3))) <= 1e-9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_with_pages_from_the_host():
    G, x = gaussian(30, 3000).float(), gaussian(3000, 1, seed=1)[:, 0].float()
    F = dense_fisher(G, 1e-2)
    exact = torch.linalg.solve(F, x.double())
    for options in ({"page_columns": 700}, {"page_columns": 700, "block_size": 3000}, {}):
        inverse = EmpiricalFisherInverse(G, 1e-2, device="cuda", **options)
        assert error((inverse @ x.cuda()).cpu(), exact) <= 1e-4
    sliding = SlidingFisherInverse(3000, 30, 1e-2, device="cuda")
    for g in G:
        u = sliding.push_matvec(g.cuda())
    assert error(u.cpu(), torch.linalg.solve(F, G[-1].double())) <= 1e-4


# --------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("grads", "options", "kind", "text"),
    [
        (torch.ones(3), {}, ValueError, "grads must be of shape"),
        (torch.ones(0, 3), {}, ValueError, "not empty"),
        (torch.ones(2, 3, dtype=torch.int64), {}, TypeError, "grads must be float32 or float64"),
        (torch.ones(2, 3, dtype=torch.bfloat16), {}, TypeError, "float32 or float64"),
        (torch.tensor([[1.0, math.nan]]), {}, ValueError, "grads must be finite"),
        (torch.tensor([[1.0, math.inf]]), {"algorithm": "recursive"}, ValueError, "finite"),
        (torch.tensor([[1.0, math.inf]]), {"block_size": 1}, ValueError, "finite"),
        ([], {}, ValueError, "not empty"),
        (iter([torch.ones(2)]), {}, TypeError, "re-iterable"),
        ([torch.ones(2), torch.ones(3)], {}, ValueError, "it is row 1"),
        ([torch.ones(2, 2)], {}, ValueError, "rows of shape"),
        (3.0, {}, TypeError, "grads must be"),
        (torch.ones(2, 3), {"damping": 0.0}, ValueError, "damping must be > 0"),
        (torch.ones(2, 3), {"damping": math.inf}, ValueError, "damping must be > 0"),
        (torch.ones(2, 3), {"damping": math.nan}, ValueError, "damping must be > 0"),
        (torch.ones(2, 3), {"block_size": 0}, ValueError, "block_size must be"),
        (torch.ones(2, 3), {"page_columns": 0}, ValueError, "page_columns must be"),
        (torch.ones(2, 3), {"algorithm": "lu"}, ValueError, "algorithm must be one of"),
        (torch.ones(2, 3), {"algorithm": "recursive", "page_columns": 2}, ValueError, "whole rows"),
        (torch.ones(2, 3), {"gram_dtype": torch.float16}, ValueError, "gram_dtype"),
    ],
)
def test_bad_gradients_and_options(grads, options, kind, text):
    with pytest.raises(kind, match=text):
        EmpiricalFisherInverse(grads, **options)


def test_bad_vectors_and_indices():
    inverse = EmpiricalFisherInverse(torch.ones(2, 3), 0.1)
    for x, kind in [
        (torch.ones(4), ValueError),
        (torch.ones(3, 1, 1), ValueError),
        (torch.ones(3, dtype=torch.float64), TypeError),
        ([1.0, 2.0, 3.0], TypeError),
    ]:
        with pytest.raises(kind, match="x must be"):
            inverse.matvec(x)
    for i in (-1, 3, torch.tensor([0, 3])):
        with pytest.raises(IndexError, match=r"must be in \[0, 3\)"):
            inverse.element(i, 0)
    with pytest.raises(TypeError, match="j must be"):
        inverse.element(0, 1.5)
    with pytest.raises(TypeError, match="i must be"):
        inverse.element(torch.tensor([0.0, 1.0]), 0)
    with pytest.raises(ValueError, match="refine"):
        inverse.matvec(torch.ones(3), refine=-1)


def test_a_read_only_array_cannot_be_overwritten():
    array = np.ones((2, 3), dtype=np.float32)
    array.flags.writeable = False
    EmpiricalFisherInverse(array, 0.1)
    with pytest.raises(ValueError, match="writable"):
        EmpiricalFisherInverse(array, 0.1, overwrite=True)


def test_a_large_dense_inverse_is_refused():
    inverse = EmpiricalFisherInverse(torch.ones(1, 20_001), 0.1)
    with pytest.raises(ValueError, match="force=True"):
        inverse.to_dense()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"d": 0}, "d must be"),
        ({"window": 0}, "window must be"),
        ({"damping": -1.0}, "damping must be > 0"),
        ({"normalize": "mean"}, "normalize must be one of"),
        ({"update": "qr"}, "update must be one of"),
        ({"dtype": torch.int32}, "dtype must be one of"),
    ],
)
def test_bad_window_options(options, text):
    with pytest.raises(ValueError, match=text):
        SlidingFisherInverse(**({"d": 3, "window": 2} | options))


def test_bad_pushes_and_pops():
    sliding = SlidingFisherInverse(3, 2, 0.1)
    with pytest.raises(IndexError, match="empty"):
        sliding.pop()
    sliding.push(torch.ones(3)).push(torch.ones(3))
    before, y = sliding.grads(), sliding.matvec(torch.ones(3))
    for bad in (math.nan, math.inf):
        with pytest.raises(FloatingPointError, match="unchanged"):
            sliding.push(torch.tensor([1.0, bad, 0.0]))
    assert torch.equal(sliding.grads(), before)
    assert torch.equal(sliding.matvec(torch.ones(3)), y)
    for age in (2, -2):
        with pytest.raises(IndexError, match="age must be"):
            sliding.pop(age)
    with pytest.raises(ValueError, match="g must be of shape"):
        sliding.push(torch.ones(4))
    with pytest.raises(TypeError, match="g must be of dtype"):
        sliding.push(torch.ones(3, dtype=torch.float64))
    with pytest.raises(MemoryError, match="4,000,000,000,000,000 bytes"):
        SlidingFisherInverse(10**9, 10**6)
