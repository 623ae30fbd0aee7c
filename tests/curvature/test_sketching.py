"""Sketches against their dense forms and against their moments."""

import numpy as np
import pytest
import torch

from steepest.curvature import Sketch, aslinearoperator, sketch
from steepest.curvature.sketching import _hadamard
from tests.curvature.test_products import close, gen

KINDS = ("gaussian", "count", "sparse_sign", "srht", "rows")
WEIGHTS = torch.arange(1, 38, dtype=torch.float64) / (37 * 38 / 2)


def make(kind, seed, s=16, m=37):
    return sketch(kind, s, m, seed=seed, p=WEIGHTS if kind == "rows" and m == 37 else None)


# exact -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_dense_sketch(kind, monkeypatch):
    import scipy.sparse as sp
    import scipy.sparse.linalg as spl

    A = torch.randn(37, 5, generator=gen(0), dtype=torch.float64)
    A[A.abs() < 0.7] = 0
    Y = torch.randn(16, 4, generator=gen(1), dtype=torch.float64)
    for block in (2**22, 50):  # whole, and in several blocks
        monkeypatch.setattr("steepest.curvature.sketching.BLOCK_ELEMENTS", block)
        S = make(kind, 3)
        dense = S.dense()
        assert dense.shape == S.shape == (16, 37)
        close(S @ A, dense @ A, 1e-13)
        close(S @ A[:, 0], dense @ A[:, 0], 1e-13)
        close(S.T @ Y, dense.T @ Y, 1e-13)
        close(S.T @ Y[:, 0], dense.T @ Y[:, 0], 1e-13)
        close(S.T @ torch.eye(16, dtype=torch.float64), dense.T, 1e-13)
        for other in (A.numpy(), sp.csr_matrix(A.numpy()), sp.coo_array(A.numpy()), spl.aslinearoperator(A.numpy())):
            close(S @ other, dense @ A, 1e-13)
            assert isinstance(S @ other, torch.Tensor)
        close(S.T @ Y.numpy(), dense.T @ Y, 1e-13)
        close(S.T @ sp.csr_matrix(Y.numpy()), dense.T @ Y, 1e-13)
        close(S.T @ aslinearoperator(Y), dense.T @ Y, 1e-13)
        close(S @ aslinearoperator(A), dense @ A, 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_moment_is_the_identity(kind):
    draws = torch.stack([make(kind, seed, 8, 37).dense() for seed in range(1500)])
    gram = draws.mT @ draws
    error = gram.std(0) / np.sqrt(len(gram))
    assert ((gram.mean(0) - torch.eye(37)).abs() <= 5 * error + 1e-12).all()


def test_structure_of_each_kind():
    count = make("count", 0).dense()
    assert ((count != 0).sum(0) == 1).all()
    assert set(count[count != 0].tolist()) == {1.0, -1.0}
    for s, nnz in ((16, 8), (200, 8), (4, 8), (16, 3)):
        S = sketch("sparse_sign", s, 37, seed=0, nnz=nnz).dense()
        assert ((S != 0).sum(0) == min(s, nnz)).all()
        close(S[S != 0].abs(), torch.full((37 * min(s, nnz),), min(s, nnz) ** -0.5, dtype=torch.float64), 1e-15)
    rows = make("rows", 0)
    D = rows.dense()
    assert ((D != 0).sum(1) == 1).all()
    close(D.sum(1), (16 * WEIGHTS[rows.rows]).rsqrt(), 1e-14)
    full = sketch("srht", 64, 37, seed=0).dense()
    close(full.T @ full, torch.eye(37, dtype=torch.float64), 1e-14)  # all rows: an isometry
    assert abs(float(make("gaussian", 0, 100, 400).dense().var()) - 0.01) < 0.0005


def test_rows_follow_their_probabilities():
    p = torch.tensor([0.5, 0.0, 0.2, 0.3, 0.0], dtype=torch.float64)
    rows = sketch("rows", 20_000, 5, seed=0, p=p).rows
    assert torch.allclose(torch.bincount(rows, minlength=5) / 20_000, p.float(), atol=0.015)
    assert int((rows == 1).sum() + (rows == 4).sum()) == 0
    uniform = torch.bincount(sketch("rows", 20_000, 5, seed=0).rows, minlength=5) / 20_000
    assert torch.allclose(uniform, torch.full((5,), 0.2), atol=0.015)


@pytest.mark.parametrize("order", [1, 2, 32, 64, 2048])
def test_hadamard_matches_scipy(order):
    import scipy.linalg

    H = torch.from_numpy(scipy.linalg.hadamard(order, dtype=float))
    x = torch.randn(order, 3, generator=gen(0), dtype=torch.float64)
    close(_hadamard(x), H @ x, 1e-12)


# properties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_sketched_least_squares_is_near_the_best(kind):
    A = torch.randn(2000, 8, generator=gen(0), dtype=torch.float64)
    b = torch.randn(2000, 1, generator=gen(1), dtype=torch.float64)
    best = float((A @ torch.linalg.lstsq(A, b).solution - b).norm())
    S = make(kind, 0, 200, 2000)
    x = torch.linalg.lstsq(S @ A, S @ b).solution
    assert float((A @ x - b).norm()) < 1.08 * best


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_sketch(kind):
    A = torch.randn(37, 2, generator=gen(0), dtype=torch.float64)
    S = make(kind, 4)
    assert torch.equal(S @ A, S @ A)
    assert torch.equal(S @ A, make(kind, 4) @ A)
    assert torch.equal(S @ A, make(kind, gen(4)) @ A)
    assert not torch.equal(S @ A, make(kind, 5) @ A)
    g = gen(4)
    assert not torch.equal(make(kind, g) @ A, make(kind, g) @ A)
    single = sketch(kind, 16, 37, seed=4, dtype=torch.float32)
    assert (single @ A.float()).dtype == torch.float32
    assert (single.T @ torch.ones(16)).dtype == torch.float32
    assert isinstance(single, Sketch)
    backwards = A.numpy()[::-1]
    close(S @ backwards, S @ A.flip(0), 1e-14)
    frozen = A.numpy().copy()
    frozen.flags.writeable = False
    close(S @ frozen, S @ A, 1e-14)


# misuse ------------------------------------------------------------------------------------------------------------


def test_misuse():
    for call, text in (
        (lambda: sketch("leverage", 4, 8), "kind must be one of 'gaussian'"),
        (lambda: sketch("count", 0, 8), "s must be an integer >= 1, got 0"),
        (lambda: sketch("count", 4, 0), "m must be an integer >= 1"),
        (lambda: sketch("sparse_sign", 4, 8, nnz=0), "nnz must be an integer >= 1"),
        (lambda: sketch("srht", 9, 8), "s must be <= 8"),
        (lambda: sketch("count", 4, 8, p=torch.ones(8) / 8), "p must be None unless kind='rows'"),
        (lambda: sketch("rows", 4, 8, p=torch.ones(7) / 7), "p must be 8 probabilities"),
        (lambda: sketch("rows", 4, 8, p=torch.ones(8)), "p must be 8 probabilities"),
        (lambda: sketch("count", 4, 8, dtype=torch.long), "dtype must be real"),
        (lambda: sketch("count", 4, 8) @ torch.ones(7, dtype=torch.float64), r"A must be of shape \(8,\) or \(8, k\)"),
        (lambda: sketch("count", 4, 8) @ torch.ones(8), r"sketch's dtype torch\.float64, got 'torch\.float32'"),
        (lambda: sketch("count", 4, 8) @ np.ones(8, np.float32), "sketch's dtype"),
        (lambda: sketch("count", 4, 8).T @ torch.ones(8, dtype=torch.float64), r"A must be of shape \(4,\)"),
        (lambda: sketch("count", 4, 8) @ torch.ones(8, 2, 2, dtype=torch.float64), "A must be of shape"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match="A must be a tensor, an array"):
        sketch("count", 4, 8) @ [1.0] * 8
