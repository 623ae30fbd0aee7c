"""Tests of the two-layer network, its tangent kernel and gradient descent in closed form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.generative._full_batch import FullBatch, train
from steepest.generative._kernel_path import KernelPath
from steepest.generative._tangent_kernel import KernelGradientFlow, TwoLayerReLU, empirical_ntk, relu_ntk


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(n, p=4, seed=0):
    return torch.cat([torch.randn(n, p - 1, generator=gen(seed), dtype=torch.float64), torch.ones(n, 1).double()], 1)


def labels(n, d=2, seed=9):
    return torch.randn(n, d, generator=gen(seed), dtype=torch.float64)


# -------------------------------------------------------------------------------------------------------------- network


def test_network_by_hand_and_starts_at_zero_to_the_last_bit():
    net = TwoLayerReLU(4, 2, 10, generator=0, dtype=torch.float64)
    u = inputs(7)
    assert float(net(u).detach().abs().max()) == 0.0
    assert torch.equal(net.W[:5], net.W[5:])
    assert torch.equal(net.A[:5], -net.A[5:])
    assert set(net.A.unique().tolist()) == {-1.0, 1.0}
    assert [name for name, _ in net.named_parameters()] == ["W"]
    with torch.no_grad():
        net.W[3] += 1.0  # both halves then move freely
    by_hand = sum(net.A[r] * torch.relu(u @ net.W[r])[:, None] for r in range(10)) / np.sqrt(10)
    torch.testing.assert_close(net(u), by_hand)
    free = TwoLayerReLU(4, 2, 9, antisymmetric=False, generator=0)
    assert free.W.dtype == torch.get_default_dtype()
    assert float(free(u.float()).detach().abs().max()) > 0


def test_same_generator_same_network_in_either_precision():
    a, b = (TwoLayerReLU(3, 1, 8, generator=4, dtype=dtype) for dtype in (torch.float64, torch.float32))
    torch.testing.assert_close(a.W.detach().float(), b.W.detach())


# --------------------------------------------------------------------------------------------------------------- kernel


def test_kernel_against_the_arc_cosine():
    U, V = inputs(6), inputs(5, seed=1)
    rho = (U @ V.T) / U.norm(dim=1)[:, None] / V.norm(dim=1)
    torch.testing.assert_close(relu_ntk(U, V), (U @ V.T) * (torch.pi - rho.arccos()) / (2 * torch.pi))


def test_kernel_against_monte_carlo():
    """E[ 1(w.u > 0) 1(w.v > 0) ] <u, v> over normal w."""
    U = inputs(4)
    W = torch.randn(400_000, 4, generator=gen(3), dtype=torch.float64)
    on = (U @ W.T > 0).double()
    torch.testing.assert_close(relu_ntk(U), (U @ U.T) * (on @ on.T) / len(W), rtol=0.02, atol=0.01)


def test_kernel_diagonal_is_exact_and_small_angles_are_not_lost():
    U = inputs(50) * 1e3
    assert torch.equal(relu_ntk(U).diagonal(), U.square().sum(1) / 2)
    for angle in (1e-9, 1e-5, np.pi - 1e-5):
        v = np.array([[np.cos(angle), np.sin(angle)]])
        exact = v[0, 0] * (np.pi - angle) / (2 * np.pi)
        # near pi the kernel is small: what counts is its own relative error
        assert relu_ntk(np.array([[1.0, 0.0]]), v)[0, 0] == pytest.approx(exact, rel=1e-10)
    assert float(relu_ntk(torch.zeros(1, 2), torch.ones(1, 2))) == 0.0


def test_kernel_does_not_depend_on_blocks(monkeypatch):
    from steepest.generative import _tangent_kernel

    U = inputs(30)
    whole = relu_ntk(U)
    monkeypatch.setattr(_tangent_kernel, "BLOCK", 40)
    torch.testing.assert_close(relu_ntk(U), whole, rtol=0, atol=1e-15)


def test_kinds_and_precision_are_kept():
    U = inputs(3)
    assert isinstance(relu_ntk(U.numpy()), np.ndarray)
    assert relu_ntk(U.numpy().astype(np.float32)).dtype == np.float32
    frozen = U.numpy().copy()
    frozen.flags.writeable = False
    np.testing.assert_allclose(relu_ntk(frozen), relu_ntk(U).numpy())
    net = TwoLayerReLU(4, 2, 8, generator=0)
    assert isinstance(empirical_ntk(net, U.numpy()), np.ndarray)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_kernel_is_symmetric_positive_and_homogeneous(seed, p):
    U = torch.randn(6, p, generator=gen(seed), dtype=torch.float64)
    K = relu_ntk(U)
    torch.testing.assert_close(K, K.T)
    assert float(torch.linalg.eigvalsh(K)[0]) > -1e-12 * max(1.0, float(K.abs().max()))
    torch.testing.assert_close(relu_ntk(3 * U, U), 3 * K)


def test_kernel_equals_that_of_neural_tangents():
    """ReLU there is normalized alike: the kernel of W and A together less that of A alone is ours times 2."""
    stax = pytest.importorskip("neural_tangents.stax")
    U = inputs(5).numpy()
    p = U.shape[1]
    _, _, kernel = stax.serial(stax.Dense(64), stax.Relu(), stax.Dense(1))
    both = kernel(U, U, ("ntk", "nngp"))
    np.testing.assert_allclose(p * np.asarray(both.ntk - both.nngp), relu_ntk(U), rtol=1e-5)


@pytest.mark.parametrize("antisymmetric", [True, False])
def test_empirical_kernel_is_that_of_the_jacobian(antisymmetric):
    net = TwoLayerReLU(4, 3, 12, antisymmetric=antisymmetric, generator=0, dtype=torch.float64)
    U, V = inputs(5), inputs(4, seed=1)

    def jacobian(X):
        J = torch.func.jacrev(lambda W: torch.func.functional_call(net, {"W": W}, X))(net.W.detach())
        return J.flatten(2)  # (n, d, P)

    full = torch.einsum("nip,mjp->nmij", jacobian(U), jacobian(V))
    torch.testing.assert_close(empirical_ntk(net, U, V), full.diagonal(dim1=2, dim2=3).mean(-1))


def test_wide_networks_have_the_limit_kernel():
    U = inputs(8)
    errors = []
    for width in (256, 4096, 65_536):
        net = TwoLayerReLU(4, 2, width, generator=1, dtype=torch.float64)
        errors.append(float((empirical_ntk(net, U) - relu_ntk(U)).norm() / relu_ntk(U).norm()))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.02


# ----------------------------------------------------------------------------------------------------- gradient descent


@pytest.fixture(scope="module")
def problem():
    U, Y = inputs(20), labels(20)
    K = relu_ntk(U)
    return U, Y, K, 0.9 / float(torch.linalg.eigvalsh(K / 20)[-1])


@pytest.mark.parametrize("k", [0, 1, 7, 60])
def test_flow_is_the_loop(problem, k):
    _, Y, K, eta = problem
    f, c, n = torch.zeros_like(Y), torch.zeros_like(Y), len(Y)
    for _ in range(k):
        c = c + eta / n * (Y - f)
        f = K @ c
    flow = KernelGradientFlow(K, Y, step_size=eta)
    torch.testing.assert_close(flow.residual(k), Y - f)
    torch.testing.assert_close(flow.coef(k), c, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(flow.predict(K[:3], k), f[:3], rtol=1e-8, atol=1e-10)
    assert flow.loss(k) == pytest.approx(float((Y - f).square().mean()))
    torch.testing.assert_close(flow.norms(k), torch.einsum("nd,nm,md->d", c, K, c).sqrt())
    H = torch.eye(n).double() - torch.linalg.matrix_power(torch.eye(n).double() - eta * K / n, k)
    assert flow.freedom(k) == pytest.approx(float(H.trace()))
    B = torch.kron(torch.eye(n // 2), torch.ones(2, 2)).double()
    assert flow.freedom(k, block=2) == pytest.approx(float((H @ B).trace()))


def test_flow_at_a_million_steps_and_at_zero_eigenvalues(problem):
    _, Y, K, eta = problem
    flow = KernelGradientFlow(K, Y, step_size=eta)
    exact = torch.linalg.solve(K, Y)
    k = 10**9
    torch.testing.assert_close(flow.coef(k), exact, rtol=1e-6, atol=1e-9)
    doubled = KernelGradientFlow(
        torch.tensor([[1.0, 1.0], [1.0, 1.0]]).double(), torch.tensor([[1.0], [0.0]]).double(), step_size=0.5
    )
    # along (1, -1) the kernel is 0: the coefficient grows as k eta / n and the prediction not at all
    torch.testing.assert_close(doubled.predict(torch.ones(1, 2).double(), 10**6), torch.tensor([[0.5]]).double())
    assert float((doubled.coef(10)[0] - doubled.coef(10)[1]).item()) == pytest.approx(10 * 0.5 / 2)
    small = KernelGradientFlow(torch.eye(1).double() * 1e-14, torch.ones(1, 1).double(), step_size=1.0)
    assert float(1 - small.residual(5)) == pytest.approx(5e-14, rel=0.05)
    assert float(small.coef(5)) == pytest.approx(5, rel=1e-10)


def test_features_give_the_same_flow():
    Phi, Y = torch.randn(15, 4, generator=gen(), dtype=torch.float64), labels(15)
    few = KernelGradientFlow.from_features(Phi, Y, step_size=0.2)
    full = KernelGradientFlow(Phi @ Phi.T, Y, step_size=0.2)
    for k in (0, 3, 50):
        torch.testing.assert_close(few.residual(k), full.residual(k))
        torch.testing.assert_close(Phi @ few.coef(k), full.predict(Phi @ Phi.T, k))
        torch.testing.assert_close(few.norms(k), full.norms(k))
        assert few.loss(k) == pytest.approx(full.loss(k))
        assert few.freedom(k, block=3) == pytest.approx(full.freedom(k, block=3))
    torch.testing.assert_close(few.eigenvalues, full.eigenvalues[:4])


def test_all_points_as_landmarks_are_the_full_kernel():
    U, Y = inputs(24), labels(24)
    full = KernelPath.build(U, Y)
    some = KernelPath.build(U, Y, n_landmarks=24, step_size=full.step_size)
    torch.testing.assert_close(some.eigenvalues, full.eigenvalues, rtol=1e-6, atol=1e-9)
    order = [int((a == U).all(1).nonzero()) for a in some.anchors]
    torch.testing.assert_close(some.dual(40), full.dual(40)[order], rtol=1e-5, atol=1e-7)
    assert full.step_size * full.top == pytest.approx(0.9)
    assert full.top == pytest.approx(float(full.eigenvalues[0]), rel=1e-3)


def test_few_landmarks_are_the_projected_kernel():
    U, Y = inputs(40), labels(40)
    path = KernelPath.build(U, Y, n_landmarks=10, step_size=0.1)
    C, M = relu_ntk(U, path.anchors), relu_ntk(path.anchors)
    projected = KernelGradientFlow(C @ torch.linalg.solve(M, C.T), Y, step_size=0.1)
    torch.testing.assert_close(C @ path.dual(30), Y - projected.residual(30), rtol=1e-6, atol=1e-8)
    assert path.eigenvalues.shape == (40,)
    assert int((path.eigenvalues > 0).sum()) == 10
    torch.testing.assert_close(path.eigenvalues[:10].flip(0), torch.linalg.eigvalsh(M / 10))


def test_noisings_of_a_point_count_once():
    U, Y = inputs(12), labels(6).repeat_interleave(2, 0)
    path = KernelPath.build(U, Y, block=2)
    P = torch.kron(torch.eye(6), torch.full((1, 2), 0.5)).double()
    torch.testing.assert_close(path.eigenvalues.flip(0), torch.linalg.eigvalsh(P @ relu_ntk(U) @ P.T / 6))


def test_a_step_too_large_is_named():
    with pytest.raises(FloatingPointError, match=r"learning_rate=10 .* lambda_max"):
        KernelPath.build(inputs(5), labels(5), step_size=10.0)


# ------------------------------------------------------------------------------------------------- full-batch steps


@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
@pytest.mark.parametrize("antisymmetric", [True, False])
def test_gradient_is_autograds(chunk, antisymmetric):
    U, Y = inputs(30), labels(30, 3)
    net = TwoLayerReLU(4, 3, 16, antisymmetric=antisymmetric, generator=0, dtype=torch.float64)
    loss = (net(U) - Y).square().sum() / 60
    loss.backward()
    descent = FullBatch(net, U, Y, chunk=chunk)
    for _ in range(2):  # nothing is left in the buffers
        assert descent.evaluate() == pytest.approx(loss.item())
        torch.testing.assert_close(descent.gradient, net.W.grad)
    before = net.W.detach().clone()
    descent.step(0.1)
    torch.testing.assert_close(net.W.detach(), before - 0.1 * net.W.grad)


def test_training_a_wide_network_is_the_kernel_regression():
    U, Y = inputs(12), labels(12)
    path = KernelPath.build(U, Y)
    errors = []
    for width in (512, 32_768):
        net = TwoLayerReLU(4, 2, width, generator=2, dtype=torch.float64)
        train(FullBatch(net, U, Y), path.step_size, 50)
        exact = Y - path.flow.residual(50)
        errors.append(float((net(U).detach() - exact).norm() / exact.norm()))
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.05


def test_training_returns_to_the_lowest_held_out_loss():
    U, Y = inputs(12), labels(12)
    net = TwoLayerReLU(4, 2, 32, generator=2, dtype=torch.float64)
    seen, kept = iter([3.0, 1.0, 2.0]), []

    def held_out():
        kept.append(net.W.detach().clone())
        return next(seen)

    losses, watched = train(FullBatch(net, U, Y), 0.05, 9, grid=[1, 4, 9], held_out=held_out)
    assert (len(losses), watched) == (9, [3.0, 1.0, 2.0])
    assert torch.equal(net.W.detach(), kept[1])


def test_training_gives_up_long_after_the_lowest():
    U, Y = inputs(6), labels(6)
    net = TwoLayerReLU(4, 2, 8, generator=2, dtype=torch.float64)
    worse = iter(range(1000))
    grid = [1, 100, 321, 5000]
    losses, watched = train(FullBatch(net, U, Y), 0.01, 5000, grid=grid, held_out=lambda: float(next(worse)))
    assert (len(losses), len(watched)) == (321, 3)


def test_divergence_raises():
    U, Y = inputs(6), labels(6)
    net = TwoLayerReLU(4, 2, 8, generator=2, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="fun is"):
        train(FullBatch(net, U, Y), 1e9, 500)


# --------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: TwoLayerReLU(2, 1, 1), "width must be"),
        (lambda: TwoLayerReLU(2, 1, 7), "width must be even"),
        (lambda: relu_ntk(torch.zeros(2, 3), torch.zeros(2, 2)), "V must be of shape"),
        (lambda: KernelGradientFlow(torch.eye(3), torch.zeros(2, 1), step_size=0.1), "K must be of shape"),
        (lambda: KernelGradientFlow(torch.eye(2), torch.zeros(2, 1), step_size=2.0), "step_size must be less than"),
        (lambda: KernelGradientFlow(torch.eye(2), torch.zeros(2, 1), step_size=0.0), "step_size must be > 0"),
        (lambda: KernelGradientFlow(-torch.eye(2), torch.zeros(2, 1), step_size=0.1), "K must be positive semidef"),
        (lambda: KernelGradientFlow(torch.eye(2), torch.zeros(2, 1), step_size=0.1).coef(-1), "k must be"),
        (lambda: KernelGradientFlow.from_features(torch.eye(3), torch.zeros(2, 1), step_size=0.1), "Phi must be"),
        (lambda: FullBatch(TwoLayerReLU(2, 1, 4), torch.zeros(3, 3), torch.zeros(3, 1)), "U must be of shape"),
        (lambda: FullBatch(TwoLayerReLU(2, 1, 4), torch.zeros(3, 2), torch.zeros(3, 2)), "Y must be of shape"),
    ],
)
def test_misuse_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
