"""Products and operators against dense matrices made by `torch.func`, finite differences and curvlinops."""

import copy
import itertools
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev
from torch.nn import functional

from steepest.curvature import (
    FisherOperator,
    GGNOperator,
    HessianOperator,
    aslinearoperator,
    fisher_vp,
    flatten,
    ggn_vp,
    hvp,
    per_sample_gradients,
    per_sample_jacobian,
    unflatten,
)
from steepest.curvature.losses import loss_weight, output_hessian, sampled_factors
from steepest.curvature.vectors import probe_like, probes
from tests import processes


def gen(seed):
    return torch.Generator().manual_seed(seed)


def mlp(seed=0, sizes=(4, 5, 3), act=nn.Tanh, dtype=torch.float64):
    layers = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b, dtype=dtype), act()]
        return nn.Sequential(*layers[:-1])


def conv(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Softplus(), nn.Flatten(), nn.Linear(8, 3)).double()


def targets(kind, n, C, seed=1):
    g = gen(seed)
    if kind == "classes":
        return torch.randint(C, (n,), generator=g)
    if kind == "probabilities":
        return torch.rand(n, C, generator=g, dtype=torch.float64).softmax(1)
    if kind == "binary":
        return torch.randint(2, (n, C), generator=g).double()
    return torch.randn(n, C, generator=g, dtype=torch.float64)


W3 = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
LOSSES = {
    "mse": (nn.MSELoss(), "real"),
    "mse-sum": (nn.MSELoss(reduction="sum"), "real"),
    "ce": (nn.CrossEntropyLoss(), "classes"),
    "ce-sum": (nn.CrossEntropyLoss(reduction="sum"), "classes"),
    "ce-weight-smooth": (nn.CrossEntropyLoss(weight=W3, label_smoothing=0.2), "classes"),
    "ce-ignore": (nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1), "classes"),
    "ce-probabilities": (nn.CrossEntropyLoss(weight=W3, label_smoothing=0.3), "probabilities"),
    "bce": (nn.BCEWithLogitsLoss(), "binary"),
    "bce-weights": (nn.BCEWithLogitsLoss(weight=W3, pos_weight=3 * W3), "binary"),
    "function": (functional.cross_entropy, "classes"),
    "other": (lambda f, y: (f - y).abs().pow(3).mean(), "real"),
}


def loss_of(model, loss_fn, X, y):
    """The loss as a function of the flat parameters."""
    named = dict(model.named_parameters())
    theta = flatten([p.detach() for p in named.values()])

    def loss(t):
        return loss_fn(functional_call(model, dict(zip(named, unflatten(t, named.values()), strict=True)), (X,)), y)

    return loss, theta


def dense_hessian(model, loss_fn, X, y):
    loss, theta = loss_of(model, loss_fn, X, y)
    return hessian(loss)(theta)


def dense_ggn(model, loss_fn, X, y):
    output, theta = loss_of(model, lambda f, _: f.reshape(-1), X, y)
    J = jacrev(output)(theta)
    f = model(X).detach()
    H = hessian(lambda f: loss_fn(f, y))(f).reshape(f.numel(), f.numel())
    return J.T @ H @ J


def close(a, b, tol=1e-11):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


# exact -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("cache", [True, False])
def test_operators_are_the_dense_matrices(name, cache):
    loss_fn, kind = LOSSES[name]
    model, X, y = mlp(), targets("real", 7, 4, 5), targets(kind, 7, 3)
    reduction = getattr(loss_fn, "reduction", "mean")
    options = {"cache": cache, "reduction": reduction}
    H = HessianOperator(model, loss_fn, (X, y), **options)
    G = GGNOperator(model, loss_fn, (X, y), **options)
    close(H.dense(), dense_hessian(model, loss_fn, X, y))
    close(G.dense(), dense_ggn(model, loss_fn, X, y))
    v = torch.randn(H.shape[0], generator=gen(2), dtype=torch.float64)  # one vector takes another path than a block
    close(H @ v, dense_hessian(model, loss_fn, X, y) @ v)
    close(G @ v, dense_ggn(model, loss_fn, X, y) @ v)
    close(ggn_vp(model, loss_fn, X, y, v), G @ v)


@pytest.mark.parametrize("make", [conv, lambda: mlp(act=nn.ReLU)])
def test_other_models(make):
    model = make()
    X = torch.randn(6, *((1, 3, 3) if make is conv else (4,)), generator=gen(3), dtype=torch.float64)
    y, loss_fn = targets("classes", 6, 3), nn.CrossEntropyLoss()
    close(HessianOperator(model, loss_fn, (X, y)).dense(), dense_hessian(model, loss_fn, X, y))
    close(GGNOperator(model, loss_fn, (X, y)).dense(), dense_ggn(model, loss_fn, X, y))


@pytest.mark.parametrize("name", LOSSES)
def test_output_hessian_matches_double_backward(name):
    loss_fn, kind = LOSSES[name]
    f, y = targets("real", 6, 3, 8), targets(kind, 6, 3)
    H = hessian(lambda f: loss_fn(f, y))(f).reshape(18, 18)
    product = output_hessian(loss_fn, f, y)
    columns = [product(e.view(6, 3)).reshape(-1) for e in torch.eye(18, dtype=torch.float64)]
    close(torch.stack(columns, 1), H)


def test_output_hessian_of_sequences():
    f, y = torch.randn(2, 4, 3, generator=gen(0), dtype=torch.float64), torch.tensor([[0, 1, 3], [2, -100, 1]])
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), label_smoothing=0.1)
    H = hessian(lambda f: loss_fn(f, y))(f).reshape(24, 24)
    columns = [output_hessian(loss_fn, f, y)(e.view(2, 4, 3)).reshape(-1) for e in torch.eye(24, dtype=torch.float64)]
    close(torch.stack(columns, 1), H)
    assert loss_weight(loss_fn, f, y) == 1 + 2 + 4 + 3 + 2


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("function", "other")])
def test_sampled_factors_have_the_output_hessian_as_their_second_moment(name):
    loss_fn, kind = LOSSES[name]
    f, y = targets("real", 4, 3, 8), targets(kind, 4, 3)
    s = sampled_factors(loss_fn, f, y, 20_000, gen(0))
    second = torch.einsum("mni,mnj->nij", s, s) / len(s)
    H = hessian(lambda f: loss_fn(f, y))(f)
    exact = torch.stack([H[n, :, n] for n in range(4)])
    spread = torch.einsum("mni,mnj->nij", s**2, s**2) / len(s) - second**2
    assert ((second - exact).abs() <= 5 * (spread.clamp(min=0) / len(s)).sqrt() + 1e-12).all()


def test_hvp_matches_finite_differences_and_keeps_the_kind_of_vector():
    model, X, y = mlp(), targets("real", 7, 4, 5), targets("classes", 7, 3)
    params = list(model.parameters())

    def loss():
        return functional.cross_entropy(model(X), y)

    def gradient():
        return flatten(torch.autograd.grad(loss(), params))

    v = torch.randn(sum(p.numel() for p in params), generator=gen(0), dtype=torch.float64)
    flat = hvp(loss, params, v)
    sequence = hvp(loss(), params, unflatten(v, params))
    assert isinstance(sequence, list)
    assert not flat.requires_grad
    close(flatten(sequence), flat)
    before, h = [p.detach().clone() for p in params], 1e-5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, b, d in zip(params, before, unflatten(v, params), strict=True):
                p.copy_(b + sign * h * d)
        ends.append(gradient())
    close((ends[0] - ends[1]) / (2 * h), flat, 1e-8)
    assert all(p.grad is None for p in params)


def test_retain_graph_and_unused_and_linear_parts():
    a, b, c = (torch.tensor([float(i)], requires_grad=True) for i in (1, 2, 3))
    loss = (a**2 + 5 * b).sum()  # linear in b, free of c
    ones = [torch.ones(1)] * 3
    for _ in range(2):
        assert [float(h) for h in hvp(loss, [a, b, c], ones, retain_graph=True)] == [2.0, 0.0, 0.0]
    assert [float(h) for h in hvp(5 * b.sum(), [b, c], ones[:2])] == [0.0, 0.0]
    assert torch.equal(HessianOperator.from_loss(5 * b.sum(), [b, c]).dense(), torch.zeros(2, 2))
    assert torch.equal(HessianOperator.from_loss((a**3 * b).sum(), [a, b]).dense(), torch.tensor([[12.0, 3], [3, 0]]))


def test_layers_that_the_output_does_not_use_give_zeros():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 2)})
    model.forward = lambda X: model["used"](X)
    data = (torch.ones(3, 2), torch.zeros(3, 1))
    for cache in (True, False):
        for kind in (HessianOperator, GGNOperator):
            M = kind(model, nn.MSELoss(), data, cache=cache).dense()
            assert float(M[3:].abs().sum()) == 0.0
            assert float(M[:3, :3].abs().sum()) > 1.0


def test_fisher_kinds():
    model, X = mlp(), targets("real", 7, 4, 5)
    for name in ("mse", "ce-weight-smooth", "bce", "ce-sum"):
        loss_fn, kind = LOSSES[name]
        y, reduction = targets(kind, 7, 3), loss_fn.reduction
        exact = dense_ggn(model, loss_fn, X, y)
        close(FisherOperator(model, loss_fn, (X, y), reduction=reduction).dense(), exact)
        F = FisherOperator(model, loss_fn, (X, y), kind="mc", num_samples=4000, seed=0, reduction=reduction).dense()
        assert float((F - exact).norm() / exact.norm()) < 0.05
        v = torch.randn(len(F), generator=gen(1), dtype=torch.float64)
        close(fisher_vp(model, loss_fn, X, y, v), exact @ v)
        estimate = fisher_vp(model, loss_fn, X, y, v, kind="mc", num_samples=4000, generator=0)
        assert float((estimate - exact @ v).norm() / (exact @ v).norm()) < 0.1


@pytest.mark.parametrize("name", ["mse", "mse-sum", "ce", "bce", "other"])
def test_empirical_fisher_is_made_of_per_sample_gradients(name):
    loss_fn, kind = LOSSES[name]
    model, X, y = mlp(), targets("real", 7, 4, 5), targets(kind, 7, 3)
    g = per_sample_gradients(model, loss_fn, X, y)
    g = torch.cat([t.reshape(7, -1) for t in g.values()], 1)
    reduction = getattr(loss_fn, "reduction", "mean")
    exact = g.T @ g / (7 if reduction == "mean" else 1)
    for cache in (True, False):
        F = FisherOperator(model, loss_fn, (X, y), kind="empirical", cache=cache, reduction=reduction)
        close(F.dense(), exact)
    v = torch.randn(len(exact), generator=gen(1), dtype=torch.float64)
    close(fisher_vp(model, loss_fn, X, y, v, kind="empirical"), exact @ v)


def test_per_sample_gradients_and_jacobians_match_a_loop():
    model, X, y = mlp(), targets("real", 7, 4, 5), targets("classes", 7, 3)
    params = list(model.parameters())
    for chunk in (None, 2):
        g = per_sample_gradients(model, functional.cross_entropy, X, y, chunk_size=chunk)
        J = per_sample_jacobian(model, X, chunk_size=chunk)
        for i in range(7):
            one = torch.autograd.grad(functional.cross_entropy(model(X[i : i + 1]), y[i : i + 1]), params)
            for t, (name, p) in zip(one, model.named_parameters(), strict=True):
                assert g[name].shape == (7, *p.shape)
                close(g[name][i], t)
            for c in range(3):
                close(J[i, c], flatten(torch.autograd.grad(model(X[i : i + 1])[0, c], params)))
    wide = nn.Linear(1, 4, bias=False).double()  # more outputs than parameters once one weight is left
    assert per_sample_jacobian(wide, X[:, :1]).shape == (7, 4, 4)
    assert list(per_sample_gradients(model, functional.cross_entropy, X, y, params=["0.bias"])) == ["0.bias"]


def test_forward_mode_for_more_outputs_than_parameters():
    class Broadcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(2.0))

        def forward(self, X):
            return self.a**2 * X

    J = per_sample_jacobian(Broadcast(), torch.tensor([[1.0, 2.0, 3.0]]))
    assert J.tolist() == [[[4.0], [8.0], [12.0]]]


def test_dropout_randomness_is_passed_through():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 1, bias=False))
    X, y = torch.ones(3, 50), torch.zeros(3)

    def rows(randomness):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return per_sample_gradients(model, lambda f, y: f.sum(), X, y, randomness=randomness)["1.weight"]

    with pytest.raises(RuntimeError, match="random"):
        rows("error")
    same, different = rows("same"), rows("different")
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])


def test_batches_are_weighted_so_that_the_operator_is_that_of_all_data():
    model, X = mlp(), targets("real", 7, 4, 5)
    for name in ("mse", "ce", "ce-ignore", "ce-weight-smooth", "ce-sum", "bce-weights", "other"):
        loss_fn, kind = LOSSES[name]
        y = targets(kind, 7, 3)
        parts = [(X[:3], y[:3]), (X[3:6], y[3:6]), (X[6:], y[6:])]
        reduction = getattr(loss_fn, "reduction", "mean")
        exact = dense_hessian(model, loss_fn, X, y)
        for cache in (True, False):
            H = HessianOperator(model, loss_fn, parts, cache=cache, reduction=reduction)
            close(H.dense(), exact)
            G = GGNOperator(model, loss_fn, parts, cache=cache, reduction=reduction)
            v = torch.randn(H.shape[0], generator=gen(0), dtype=torch.float64)
            close(G @ v, dense_ggn(model, loss_fn, X, y) @ v)
        F = FisherOperator(model, loss_fn, parts, kind="mc", seed=3, reduction=reduction) if name != "other" else H
        close(F @ v, F @ v, 0)  # one fixed matrix: the labels are the same at every pass
        close(F.dense(), F.dense().T)


def test_a_batch_without_a_target_counts_for_nothing():
    model, X, loss_fn = mlp(), targets("real", 5, 4, 5), nn.CrossEntropyLoss()
    y = torch.tensor([0, 2, 1, -100, -100])
    exact = dense_hessian(model, loss_fn, X, y)
    for cache in (True, False):
        H = HessianOperator(model, loss_fn, [(X[:3], y[:3]), (X[3:], y[3:])], cache=cache)
        close(H.dense(), exact)
        close(H @ exact[0], exact @ exact[0])
        G = GGNOperator(model, loss_fn, [(X[3:], y[3:]), (X[:3], y[:3])], cache=cache)
        close(G @ exact[0], dense_ggn(model, loss_fn, X[:3], y[:3]) @ exact[0])


def test_block_products_match_single_ones_on_both_paths():
    model, X, y = mlp(sizes=(4, 6, 3)), targets("real", 9, 4, 5), targets("classes", 9, 3)
    for kind in (HessianOperator, GGNOperator):
        A = kind(model, nn.CrossEntropyLoss(), (X, y))
        V = torch.randn(A.shape[0], 5, generator=gen(0), dtype=torch.float64)
        at_once = A @ V
        assert A._batched
        A._batched = False
        close(A @ V, at_once)
        close(torch.stack([A @ v for v in V.T], 1), at_once)


def test_a_layer_without_forward_mode_or_batching():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * g

    class Layer(nn.Module):
        def forward(self, x):
            return Cube.apply(x)

    class Plain(nn.Module):
        def forward(self, x):
            return x**3

    odd = nn.Sequential(nn.Linear(4, 3).double(), Layer(), nn.Linear(3, 2).double())
    plain = copy.deepcopy(odd)
    plain[1] = Plain()
    X, y = targets("real", 5, 4, 5), targets("real", 5, 2)
    for cache in (True, False):
        for kind in (HessianOperator, GGNOperator):
            exact = kind(plain, nn.MSELoss(), (X, y), cache=cache).dense()
            A = kind(odd, nn.MSELoss(), (X, y), cache=cache)
            close(A.dense(), exact)
            close(A @ exact[0], exact @ exact[0])


# operators ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_matrix_becomes_an_operator():
    import scipy.sparse as sp
    import scipy.sparse.linalg as spl

    M = np.random.default_rng(0).standard_normal((4, 3))
    V, U = torch.randn(3, 2, generator=gen(0), dtype=torch.float64), torch.ones(4, 2, dtype=torch.float64)
    exact, back = torch.from_numpy(M) @ V, torch.from_numpy(M).T @ U
    T = torch.from_numpy(M)
    for A in (M, T, T.to_sparse(), sp.csr_matrix(M), sp.coo_array(M), spl.aslinearoperator(M)):
        operator = aslinearoperator(A)
        close(operator @ V, exact)
        close(operator @ V[:, 0], exact[:, 0])
        close(operator.rmatmat(U), back)
        assert operator.n_products == 5
        assert aslinearoperator(operator) is operator
    integers = aslinearoperator(np.array([[2, 1], [1, 3]]))
    assert integers.dtype == torch.float64
    assert integers.matvec(torch.ones(2, dtype=torch.float64)).tolist() == [3.0, 4.0]
    assert aslinearoperator(torch.eye(2, dtype=torch.long)).dtype == torch.float64
    assert aslinearoperator(lambda V: 2 * V, (3, 3), dtype=torch.float32).dense().trace() == 6


def test_sums_multiples_and_shifts_are_lazy():
    A, B = (torch.randn(4, 4, generator=gen(i), dtype=torch.float64) for i in (0, 1))
    operator = 2 * aslinearoperator(A) - aslinearoperator(B).shift(0.5) + torch.eye(4, dtype=torch.float64)
    exact = 2 * A - B - 0.5 * torch.eye(4, dtype=torch.float64) + torch.eye(4, dtype=torch.float64)
    close(operator.dense(), exact)
    close(operator.rmatmat(torch.eye(4, dtype=torch.float64)), exact.T)
    assert operator.n_products == 8


def test_scipy_solves_with_our_operator():
    import scipy.sparse.linalg as spl

    model, X, y = mlp(), targets("real", 7, 4, 5), targets("classes", 7, 3)
    G = GGNOperator(model, nn.CrossEntropyLoss(), (X, y))
    exact = torch.linalg.eigvalsh(G.dense())
    scipy_operator = G.to_scipy()
    top = spl.eigsh(scipy_operator, k=2, which="LA", return_eigenvectors=False, v0=np.ones(len(exact)))
    assert np.allclose(np.sort(top), exact[-2:].numpy(), atol=1e-10)
    assert scipy_operator.matmat(np.ones((len(exact), 3))).shape == (len(exact), 3)
    assert scipy_operator.matvec(np.ones((len(exact), 1))).shape == (len(exact), 1)
    assert (mlp(dtype=torch.float32), scipy_operator.dtype)[1] == np.float64


def test_sequences_in_sequences_out():
    model, X, y = mlp(), targets("real", 7, 4, 5), targets("classes", 7, 3)
    for cache in (True, False):
        H = HessianOperator(model, nn.CrossEntropyLoss(), (X, y), params=["2.weight", "0.bias"], cache=cache)
        assert H.shape == (20, 20)
        v = probe_like(H.params, generator=gen(0))
        result = H.matvec(v)
        assert [r.shape for r in result] == [(3, 5), (5,)]
        close(flatten(result), H @ flatten(v))
    assert H.n_products == 2


# properties --------------------------------------------------------------------------------------------------------


def test_flatten_and_unflatten_are_inverse_and_probes_do_not_depend_on_their_number():
    parts = [torch.arange(6.0).view(2, 3), torch.arange(4.0).view(2, 2).T]
    assert flatten(parts).tolist() == [0, 1, 2, 3, 4, 5, 0, 2, 1, 3]
    for a, b in zip(unflatten(flatten(parts), parts), parts, strict=True):
        assert torch.equal(a, b)
    for distribution in ("rademacher", "gaussian"):
        z = probes(101, 5, distribution=distribution, generator=gen(0))
        assert torch.equal(z[:, :2], probes(101, 2, distribution=distribution, generator=gen(0)))
        z = probes(200_001, 1, distribution=distribution, generator=gen(1))
        assert abs(float(z.mean())) < 0.01
        assert abs(float((z**2).mean()) - 1) < 0.02
    assert set(probes(64, 1, generator=gen(0)).unique().tolist()) == {-1.0, 1.0}


def test_tied_weights_and_mixed_precision():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False).double()
            self.b = nn.Linear(3, 3, bias=False).double()
            self.b.weight = self.a.weight

        def forward(self, X):
            return self.b(torch.tanh(self.a(X)))

    model, X, y = Tied(), targets("real", 5, 3), targets("real", 5, 3, 2)
    w = model.a.weight.detach()

    def output(w):
        return (torch.tanh(X @ w.T) @ w.T).reshape(-1)

    J = jacrev(output)(w).reshape(15, 9)
    exact = 2 / 15 * J.T @ J
    for cache in (True, False):
        G = GGNOperator(model, nn.MSELoss(), (X, y), cache=cache)
        assert G.shape == (9, 9)
        close(G.dense(), exact)
        close(G @ exact[0], exact @ exact[0])
    a = torch.ones(2, dtype=torch.float64, requires_grad=True)
    b = torch.ones(1, dtype=torch.float32, requires_grad=True)

    def loss():
        return (a**3).sum() + (b.double() ** 2).sum()

    v = torch.ones(3, dtype=torch.float64)
    assert hvp(loss, [a, b], v).tolist() == [6.0, 6.0, 2.0]
    H = HessianOperator.from_loss(loss, [a, b])
    assert H.dtype == torch.float64
    assert (H @ v).tolist() == [6.0, 6.0, 2.0]
    assert [h.dtype for h in H.matvec([a.detach(), b.detach()])] == [torch.float64, torch.float32]


def test_only_one_batch_s_graph_is_alive():
    model, loss_fn = mlp(sizes=(4, 50, 3)), nn.CrossEntropyLoss()
    alive, most = set(), [0]

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, X):
            key = object()
            alive.add(key)
            most[0] = max(most[0], len(alive))
            f = self.inner(X)
            weakref.finalize(f, alive.discard, key)
            return f

    data = [(targets("real", 5, 4, s), targets("classes", 5, 3, s)) for s in range(4)]
    for kind in (HessianOperator, GGNOperator):
        A = kind(Watched(), loss_fn, data, deterministic=False)
        for k in (1, 3, 5):
            A @ torch.ones(A.shape[0], k, dtype=torch.float64)
    assert most[0] == 1


def test_a_stale_graph_is_refused_and_refresh_rebuilds_it():
    model, X, y = mlp(), targets("real", 7, 4, 5), targets("classes", 7, 3)
    loss_fn = nn.CrossEntropyLoss()
    for kind, dense in ((HessianOperator, dense_hessian), (GGNOperator, dense_ggn)):
        A = kind(model, loss_fn, (X, y))
        streamed = kind(model, loss_fn, (X, y), cache=False)
        v = torch.ones(A.shape[0], dtype=torch.float64)
        with torch.no_grad():
            model[2].bias.add_(0.3)  # not saved by any node: autograd itself would not notice
        with pytest.raises(RuntimeError, match=r"refresh\(\).*cache=False"):
            A @ v
        close(streamed @ v, dense(model, loss_fn, X, y) @ v)
        A.refresh()
        close(A @ v, dense(model, loss_fn, X, y) @ v)
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="callable"):
        HessianOperator.from_loss((w**2).sum(), [w]).refresh()
    with torch.no_grad():
        loss = (w**3).sum()
    graph = torch.autograd.grad((w**3).sum(), w, create_graph=True)[0].sum()
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        hvp(graph, [w], torch.ones(2))
    assert loss.item() == 2.0


def test_from_a_callable_follows_the_parameters():
    w = torch.tensor([1.0], requires_grad=True)
    H = HessianOperator.from_loss(lambda: (w**3).sum(), [w])
    assert H.dense().item() == 6.0
    with torch.no_grad():
        w.fill_(2.0)
    assert H.dense().item() == 12.0


def test_running_statistics_and_the_global_random_state_stay():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).double()
    X, y = targets("real", 7, 4, 5), targets("classes", 7, 3)
    before = {k: b.clone() for k, b in model.named_buffers()}
    loss_fn = nn.CrossEntropyLoss()
    state = torch.get_rng_state()
    stateless = copy.deepcopy(model)
    stateless[1] = nn.BatchNorm1d(3, track_running_stats=False).double()
    loss, theta = loss_of(stateless, loss_fn, X, y)
    exact = jacfwd(grad(loss))(theta)  # torch.func.hessian is wrong for batch statistics (torch 2.13)
    for cache in (True, False):
        close(HessianOperator(model, loss_fn, (X, y), cache=cache).dense(), exact, 1e-9)
        GGNOperator(model, loss_fn, (X, y), cache=cache) @ torch.ones(len(exact), dtype=torch.float64)
    assert all(torch.equal(b, before[k]) for k, b in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="full batch"):
        HessianOperator(model, loss_fn, [(X, y), (X, y)])
    with pytest.raises(ValueError, match="batch normalization"):
        per_sample_gradients(model, loss_fn, X, y)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        per_sample_jacobian(model, X)
    assert per_sample_jacobian(model.eval(), X).shape == (7, 3, 33)


def test_dropout_in_training_mode_is_refused_unless_told():
    model = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.Linear(30, 3)).double()
    X, y = targets("real", 7, 4, 5), targets("classes", 7, 3)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"deterministic.*model\.eval\(\)"):
        HessianOperator(model, nn.CrossEntropyLoss(), (X, y))
    assert torch.equal(torch.get_rng_state(), state)
    HessianOperator(model, nn.CrossEntropyLoss(), (X, y), deterministic=False)
    HessianOperator(model.eval(), nn.CrossEntropyLoss(), (X, y))


def test_float32_and_half_precision():
    X, y = targets("real", 64, 4, 5), targets("classes", 64, 3)
    model = mlp(sizes=(4, 16, 3))
    exact = dense_hessian(model, nn.CrossEntropyLoss(), X, y)
    v = torch.ones(len(exact), dtype=torch.float64)
    for dtype, tol in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        low = copy.deepcopy(model).to(dtype)
        for data in ((X.to(dtype), y), [(X[:32].to(dtype), y[:32]), (X[32:].to(dtype), y[32:])]):
            H = HessianOperator(low, nn.CrossEntropyLoss(), data)
            Hv = H @ v.to(dtype)
            assert Hv.dtype == dtype
            assert float((Hv.double() - exact @ v).norm() / (exact @ v).norm()) < tol


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    X, y = targets("real", 64, 4, 5), targets("classes", 64, 3)
    model = mlp(sizes=(4, 16, 3))
    exact = dense_hessian(model, nn.CrossEntropyLoss(), X, y)
    H = HessianOperator(model.cuda(), nn.CrossEntropyLoss(), (X.cuda(), y.cuda()))
    close(H.dense().cpu(), exact)
    close(torch.from_numpy(H.to_scipy() @ np.ones(len(exact))), exact.sum(1))


def _shard(rank, folder, X, y):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        part = slice(0, 5) if rank == 0 else slice(5, 7)
        model, loss_fn = mlp(), nn.CrossEntropyLoss()
        v = torch.randn(43, generator=gen(2), dtype=torch.float64)
        for cache in (True, False):
            H = HessianOperator(model, loss_fn, (X[part], y[part]), cache=cache, process_group="default")
            close(H @ v, dense_hessian(model, loss_fn, X, y) @ v)
            batches = [(X[part][:1], y[part][:1]), (X[part][1:], y[part][1:])]
            G = GGNOperator(model, loss_fn, batches, cache=cache, process_group="default")
            close(G.dense(), dense_ggn(model, loss_fn, X, y))
        F = FisherOperator(model, loss_fn, (X[part], y[part]), kind="mc", seed=0, process_group="default")
        torch.save(F @ v, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_one_operator(tmp_path):
    X, y = targets("real", 7, 4, 5), targets("classes", 7, 3)
    processes.on_two_ranks(_shard, str(tmp_path), X, y)
    assert torch.equal(torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt"))


def test_importing_the_room_costs_neither_scipy_nor_peers():
    code = (
        "import sys, steepest.curvature; "
        "print([m for m in ('scipy', 'sklearn', 'curvlinops', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


# peers -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_curvlinops_in_both_directions():
    curvlinops = pytest.importorskip("curvlinops")
    model, X, y = mlp(dtype=torch.float32), targets("real", 7, 4, 5).float(), targets("classes", 7, 3)
    params, data, loss_fn = list(model.parameters()), [(X[:4], y[:4]), (X[4:], y[4:])], nn.CrossEntropyLoss()
    for theirs, ours in (
        (curvlinops.HessianLinearOperator, HessianOperator),
        (curvlinops.GGNLinearOperator, GGNOperator),
        (curvlinops.EFLinearOperator, lambda *a: FisherOperator(*a, kind="empirical")),
    ):
        peer = theirs(model, loss_fn, params, data)
        adapted = aslinearoperator(peer)
        v = torch.randn(adapted.shape[0], generator=gen(0))
        mine = ours(model, loss_fn, data)
        close(adapted @ v, mine @ v, 1e-6)
        close(torch.from_numpy(mine.to_scipy() @ v.numpy()), peer @ v, 1e-6)
        close(adapted.rmatmat(v.unsqueeze(1)).squeeze(1), adapted @ v, 1e-6)


# misuse ------------------------------------------------------------------------------------------------------------


def test_vectors_that_do_not_fit():
    w = torch.ones(3, requires_grad=True)

    def loss():
        return (w**2).sum()

    H = HessianOperator.from_loss(loss, [w])
    for bad, text in (
        (torch.ones(2), r"v must be of shape \(3,\)"),
        (torch.ones(3, dtype=torch.float64), "v must be of dtype torch.float32, got 'torch.float64'"),
        ([torch.ones(3), torch.ones(1)], "v must be a sequence of 1 tensors"),
        ([torch.ones(2)], r"v\[0\] must be of shape \(3,\)"),
        (torch.ones(3, dtype=torch.complex64), "dtype"),
        ([torch.ones(3, dtype=torch.float64)], r"v\[0\] must be of dtype torch.float32"),
    ):
        with pytest.raises(ValueError, match=text):
            hvp(loss, [w], bad)
        with pytest.raises(ValueError, match="v"):
            H.matvec(bad)
    with pytest.raises(TypeError, match="v must be a flat tensor"):
        hvp(loss, [w], "ones")
    with pytest.raises(ValueError, match=r"V must be of shape \(3, k\)"):
        H.matmat(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"vec must be of shape \(3,\)"):
        unflatten(torch.ones(4), [w])


def test_losses_and_parameters_that_do_not_fit():
    w, v = torch.ones(2, requires_grad=True), torch.ones(2)
    with pytest.raises(ValueError, match="loss must be a real scalar"):
        hvp(w**2, [w], v)
    with pytest.raises(ValueError, match="a scalar with a graph"):
        hvp(torch.ones(()), [w], v)
    with pytest.raises(TypeError, match="loss must be a scalar tensor or a callable"):
        hvp(3.0, [w], v)
    with pytest.raises(ValueError, match=r"params\[0\] must be real"):
        hvp((w**2).sum(), [torch.ones(2, dtype=torch.complex64, requires_grad=True)], v)
    with pytest.raises(ValueError, match=r"params\[0\].*requires_grad"):
        hvp((w**2).sum(), [torch.ones(2)], v)
    with pytest.raises(ValueError, match="non-empty"):
        hvp((w**2).sum(), [], v)
    model, data = nn.Linear(2, 1), (torch.ones(1, 2), torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"params\[0\] must be a parameter of the model"):
        HessianOperator(model, nn.MSELoss(), data, params=[w])
    with pytest.raises(ValueError, match=r"reduction must be 'mean', as loss_fn\.reduction is, got 'sum'"):
        HessianOperator(model, nn.MSELoss(), data, reduction="sum")
    with pytest.raises(ValueError, match=r"loss_fn\.reduction must be 'mean' or 'sum', got 'none'"):
        ggn_vp(model, nn.MSELoss(reduction="none"), *data, torch.ones(3))
    with pytest.raises(ValueError, match="cache must be"):
        HessianOperator(model, nn.MSELoss(), data, cache="always")
    with pytest.raises(ValueError, match="kind='type-2'"):
        fisher_vp(model, lambda f, y: f.sum(), *data, torch.ones(3))
    with pytest.raises(ValueError, match="to draw labels from"):
        fisher_vp(model, lambda f, y: f.sum(), *data, torch.ones(3), kind="mc")
    with pytest.raises(ValueError, match="kind must be one of"):
        FisherOperator(model, nn.MSELoss(), data, kind="exact")


def test_data_that_cannot_be_read_twice():
    model, batch = nn.Linear(2, 1), (torch.ones(1, 2), torch.ones(1, 1))

    class Once:
        def __init__(self):
            self.left = [batch]

        def __iter__(self):
            left, self.left = self.left, []
            return iter(left)

    with pytest.raises(TypeError, match="one-shot"):
        HessianOperator(model, nn.MSELoss(), (b for b in [batch]))
    with pytest.raises(TypeError, match="a pair"):
        HessianOperator(model, nn.MSELoss(), 3)
    with pytest.raises(ValueError, match=r"a pair \(X, y\) of tensors"):
        HessianOperator(model, nn.MSELoss(), (batch[0], np.ones(1)))
    with pytest.raises(ValueError, match="non-empty"):
        HessianOperator(model, nn.MSELoss(), [])
    with pytest.raises(ValueError, match="exhausted at the second pass"):
        HessianOperator(model, nn.MSELoss(), Once())
    with pytest.raises(ValueError, match="non-empty"):
        HessianOperator(model, nn.MSELoss(), [], deterministic=False) @ torch.ones(3)


def test_matrices_that_are_none():
    with pytest.raises(ValueError, match="A must be two-dimensional"):
        aslinearoperator(torch.ones(3))
    with pytest.raises(ValueError, match="A must be real"):
        aslinearoperator(np.eye(2, dtype=complex))
    with pytest.raises(ValueError, match="A must be real"):
        aslinearoperator(torch.eye(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="A must be a matrix"):
        aslinearoperator("A")
    with pytest.raises(ValueError, match="shape must be given"):
        aslinearoperator(lambda V: V)
    with pytest.raises(ValueError, match="max_dense must be >= 3"):
        aslinearoperator(torch.eye(3)).dense(max_dense=2)
    with pytest.raises(ValueError, match="the same shape"):
        aslinearoperator(torch.eye(3)) + torch.eye(2)
    with pytest.raises(ValueError, match="square"):
        aslinearoperator(torch.ones(3, 2)).shift(1.0)
    with pytest.raises(TypeError, match="v must be a tensor"):
        aslinearoperator(torch.eye(3)).matvec([1.0, 2.0, 3.0])


def test_fused_attention_names_the_cure():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, X):
            return functional.scaled_dot_product_attention(*self.qkv(X).unflatten(-1, (3, 1, 8)).permute(2, 0, 3, 1, 4))

    model, X = Attention(), torch.randn(2, 5, 8, generator=gen(0))
    y = torch.zeros(2, 1, 5, 8)
    v = torch.ones(216)
    with pytest.raises(RuntimeError, match="use the math attention backend"):
        HessianOperator(model, nn.MSELoss(), (X, y)) @ v
    with pytest.raises(RuntimeError, match="use the math attention backend"):
        GGNOperator(model, nn.MSELoss(), (X, y)) @ v
    with pytest.raises(RuntimeError, match="use the math attention backend"):
        ggn_vp(model, nn.MSELoss(), X, y, v)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        Gv = GGNOperator(model, nn.MSELoss(), (X, y)) @ v
        close(ggn_vp(model, nn.MSELoss(), X, y, v), Gv, 1e-5)
        assert torch.isfinite(HessianOperator(model, nn.MSELoss(), (X, y)) @ v).all()
