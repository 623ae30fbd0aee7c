"""The upsampler against motions it must reproduce, dense least squares, and its own definition."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from steepest.physics import _upsampling as code
from steepest.physics._upsampling import Upsampler, kernel_weights, neighbor_lists

dims = pytest.mark.parametrize("d", [2, 3])
orders = pytest.mark.parametrize("order", [0, 1, 2])


def points(n, d, seed=0):
    return np.random.default_rng(seed).random((n, d))


def rotation(d):
    return np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]


# ------------------------------------------------------------------------------------------------------ exact


@dims
@orders
def test_translations_and_no_motion_come_out_to_rounding(d, order):
    Y, X = points(200, d), points(500, d, 1)
    upsampler = Upsampler(Y, X, order=order)
    shift = np.array([0.3, -2.0, 1.0])[:d]
    np.testing.assert_array_equal(upsampler(Y), X)
    np.testing.assert_allclose(upsampler(Y + shift), X + shift, atol=1e-10)
    assert upsampler.matrix.shape == (500, 200)
    np.testing.assert_allclose(upsampler.matrix.sum(1), 1, atol=1e-10)


@dims
@pytest.mark.parametrize(("order", "bound"), [(1, 1e-4), (2, 1e-6)])
def test_rigid_and_affine_motions_up_to_the_tikhonov_term(d, order, bound):
    Y, X = points(400, d), 0.2 + 0.6 * points(500, d, 1)
    upsampler = Upsampler(Y, X, order=order)
    for A in (rotation(d), np.random.default_rng(2).standard_normal((d, d))):
        np.testing.assert_allclose(upsampler(Y @ A.T + 0.5), X @ A.T + 0.5, atol=bound)
    assert np.abs(Upsampler(Y, X, order=0)(Y @ A.T) - X @ A.T).max() > 1e-2


@dims
def test_quadratic_motions_at_order_two(d):
    Y, X = points(600, d), 0.2 + 0.6 * points(500, d, 1)
    B = np.random.default_rng(2).standard_normal((d, d, d))

    def bent(x):
        return x + np.einsum("abc,nb,nc->na", B, x, x)

    error = {order: np.abs(Upsampler(Y, X, order=order)(bent(Y)) - bent(X)).mean() for order in (1, 2)}
    assert error[2] < 1e-4
    assert error[2] < 0.02 * error[1]


@dims
def test_without_tikhonov_reproduction_is_exact(d, monkeypatch):
    monkeypatch.setattr(code, "TIKHONOV", (0.0, 0.0))
    monkeypatch.setattr(code, "TIKHONOV_FIRST", 0.0)
    Y, X = points(600, d), points(300, d, 1)
    A, B = np.random.default_rng(2).standard_normal((d, d)), np.random.default_rng(2).standard_normal((d, d, d))
    np.testing.assert_allclose(Upsampler(Y, X, order=1)(Y @ A.T), X @ A.T, atol=1e-9)
    bent = [x + x @ A.T + np.einsum("abc,nb,nc->na", B, x, x) for x in (Y, X)]
    np.testing.assert_allclose(Upsampler(Y, X)(bent[0]), bent[1], atol=1e-8)


@dims
def test_order_two_is_a_weighted_least_squares_fit(d):
    """Row by row with a dense solver: 14 or 27 nearest, weights exp(-4 (d/R)^2), Tikhonov terms as extra rows."""
    Y, X = points(100, d), points(40, d, 1)
    S = Upsampler(Y, X).matrix.toarray()
    u = points(100, 1, 3)[:, 0]
    for x, row in zip(X, S, strict=True):
        k = {2: 14, 3: 27}[d]
        distance, near = cKDTree(Y).query(x, k=k)
        r = (Y[near] - x) / distance[-1]
        quadratic = [r[:, a] * r[:, b] for a in range(d) for b in range(a, d)]
        basis = np.column_stack([np.ones(k), r, *quadratic])
        root = np.exp(-2 * (distance / distance[-1]) ** 2)
        ridge = np.diag(np.sqrt([0.0] + [1e-8] * d + [1e-4] * len(quadratic)))
        system = np.vstack((root[:, None] * basis, ridge))
        fit = np.linalg.lstsq(system, np.concatenate((root * u[near], np.zeros(len(ridge)))), rcond=None)[0]
        assert row @ u == pytest.approx(fit[0], abs=1e-8)
        assert set(np.nonzero(row)[0]) <= set(near)


@dims
@pytest.mark.parametrize("order", [0, 1])
def test_orders_zero_and_one_by_their_definition(d, order):
    Y, X, R = points(300, d), points(50, d, 1), 0.25
    S = Upsampler(Y, X, order=order, radius=R, kernel=lambda f: torch.sin(5 * f.sum(1))).matrix.toarray()
    rich = 0
    for x, row in zip(X, S, strict=True):
        distance = np.linalg.norm(Y - x, axis=1)
        near, scale = np.nonzero(distance <= R)[0], R
        if len(near) < d + 2:
            near = np.argsort(distance)[: d + 2]
            scale = distance[near[-1]]
        else:
            rich += 1
        r = (Y[near] - x) / scale
        weight = np.exp(np.sin(5 * (np.linalg.norm(r, axis=1) + r.sum(1)).astype(np.float32)))
        alpha = weight / weight.sum()
        if order:
            c = r - alpha @ r
            M = (c * alpha[:, None]).T @ c + 1e-6 * np.eye(d)
            alpha = alpha * (1 + c @ np.linalg.solve(M, -(r - c)[0]))
        expected = np.zeros(len(Y))
        expected[near] = alpha
        np.testing.assert_allclose(row, expected, atol=2e-5)
    assert rich > 0


def test_few_samples_within_the_radius_fall_back_to_the_nearest():
    Y, X = points(50, 2), points(30, 2, 1)
    rows, columns, features = neighbor_lists(Y, X, 1e-3)
    assert torch.equal(rows, torch.arange(30).repeat_interleave(4))
    np.testing.assert_array_equal(columns.numpy().reshape(30, 4), cKDTree(Y).query(X, k=4)[1])
    np.testing.assert_allclose(features[:, 0].reshape(30, 4).max(1).values, 1)
    A = rotation(2)
    np.testing.assert_allclose(Upsampler(Y, X, order=1, radius=1e-3)(Y @ A.T), X @ A.T, atol=2e-3)


def test_badly_conditioned_queries_take_order_one():
    """Samples on a circle leave the quadratic fit without a unique answer; a handful of samples too."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = np.stack((np.cos(angle), np.sin(angle)), -1)
    A = rotation(2)
    X = np.array([[0.9, 0.1], [0.0, 0.95]])
    circle = Upsampler(ring, X)
    assert circle.n_linear == 2
    np.testing.assert_allclose(circle(ring @ A.T), X @ A.T, atol=1e-3)
    few = points(5, 2)
    upsampler = Upsampler(few, X)
    assert upsampler.n_linear == 2
    np.testing.assert_allclose(upsampler(few @ A.T), X @ A.T, atol=1e-5)
    line = np.stack((np.linspace(0, 1, 20), np.zeros(20)), -1)
    stretched = Upsampler(line, [[0.42, 0.0]])(line * [2.0, 1.0])
    np.testing.assert_allclose(stretched, [[0.84, 0.0]], atol=1e-6)
    assert Upsampler(points(200, 2), points(100, 2, 1)).n_linear == 0
    assert np.isfinite(Upsampler(np.zeros((20, 2)), X).matrix.data).all()


# ---------------------------------------------------------------------------------------------------- properties


def test_kernel_weights_are_differentiable():
    Y, X = points(40, 2), points(5, 2, 1)
    rows, _, features = neighbor_lists(Y, X, 0.4)
    logits = torch.randn(len(rows), generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    for order in (0, 1):
        assert torch.autograd.gradcheck(lambda z, order=order: kernel_weights(z, rows, features, 5, order), logits)


@dims
def test_frames_and_blocks_do_not_change_the_result(d, monkeypatch):
    Y, X = points(100, d), points(300, d, 1)
    frames = Y + 0.1 * np.random.default_rng(2).standard_normal((19, 100, d))
    for order in (1, 2):
        upsampler = Upsampler(Y, X, order=order)
        together = upsampler(frames)
        assert together.shape == (19, 300, d)
        np.testing.assert_allclose(together, [upsampler(f) for f in frames], atol=1e-14)
        monkeypatch.setattr(code, "BLOCK", 37)
        monkeypatch.setattr(code, "KERNEL_BLOCK", 37)
        np.testing.assert_allclose(Upsampler(Y, X, order=order)(frames), together, atol=1e-10)
        monkeypatch.undo()


def test_kind_and_dtype_are_those_of_the_samples():
    Y, X = torch.from_numpy(points(50, 2)).float(), torch.from_numpy(points(20, 2, 1)).float()
    upsampler = Upsampler(Y, X)
    moved = 1.1 * Y.repeat(3, 1, 1)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 1e-2)):
        out = upsampler(moved.to(dtype))
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), 1.1 * X.double().repeat(3, 1, 1), rtol=0, atol=tolerance)
    assert upsampler(moved.numpy()).dtype == np.float32
    x = moved.clone().requires_grad_()
    out = upsampler(x)
    torch.testing.assert_close(out, upsampler(moved))
    (gradient,) = torch.autograd.grad(out[1].sum(), x)
    expected = torch.from_numpy(upsampler.matrix.sum(0)).float()[:, None].expand(-1, 2)
    torch.testing.assert_close(gradient[1], expected)
    assert gradient[0].abs().max() == 0


def test_a_frame_of_many_points_is_fast():
    """Bounds of 2 s and 0.02 s, in CPU time."""
    Y, X = points(1000, 2), points(100_000, 2, 1)
    start = time.process_time()
    upsampler = Upsampler(Y, X)
    assert time.process_time() - start < 2
    seconds = []
    for _ in range(5):
        start = time.process_time()
        upsampler(Y)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device():
    Y, X = points(50, 2), points(20, 2, 1)
    upsampler = Upsampler(Y, X)
    moved = torch.from_numpy(1.1 * Y).cuda()
    assert upsampler(moved).device == moved.device
    np.testing.assert_allclose(upsampler(moved).cpu(), upsampler(1.1 * Y), atol=1e-12)


# -------------------------------------------------------------------------------------------------------- misuse


def test_bad_arguments_are_named():
    Y, X = points(20, 2), points(3, 2)
    with pytest.raises(RuntimeError, match="at least 4 samples, got 3"):
        Upsampler(Y[:3], X)
    with pytest.raises(ValueError, match="order must be one of 0, 1, 2, got 3"):
        Upsampler(Y, X, order=3)
    with pytest.raises(ValueError, match="radius must be"):
        Upsampler(Y, X, order=1, radius=0.0)
    with pytest.raises(ValueError, match="neighbors must be"):
        Upsampler(Y, X, neighbors=3)
    with pytest.raises(ValueError, match="reference_queries must be"):
        Upsampler(Y, points(3, 3))
    with pytest.raises(ValueError, match="reference_samples must be finite"):
        Upsampler(Y * np.nan, X)
    with pytest.raises(ValueError, match="kernel must be a function that gives"):
        Upsampler(Y, X, order=0, kernel=lambda f: f)
    with pytest.raises(ValueError, match="radius must be given where most samples coincide"):
        Upsampler(np.zeros((20, 2)), X, order=1)
    upsampler = Upsampler(Y, X)
    with pytest.raises(ValueError, match=r"samples must be of shape \(20, 2\) or \(T, 20, 2\)"):
        upsampler(Y[:5])
    with pytest.raises(ValueError, match="samples must be finite"):
        upsampler(torch.full((20, 2), torch.nan))
