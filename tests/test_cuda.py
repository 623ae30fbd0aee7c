"""On an accelerator: the same numbers, nothing moved behind the caller's back, no draw from the global stream.

Skipped where there is none.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from steepest import curvature, landscape, optim

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

OPTIMIZERS = {
    "AdamP": lambda p: optim.AdamP(p, lr=1e-2),
    "SGDP": lambda p: optim.SGDP(p, lr=1e-2, momentum=0.9),
    "AdaHessian": lambda p: optim.AdaHessian(p, lr=1e-1, seed=0),
    "Sophia": lambda p: optim.Sophia(p, lr=1e-3, estimator="hutchinson", seed=0),
    "M-FAC": lambda p: optim.MFAC(p, lr=1e-2, window=8),
}


def problem(device, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    X = torch.randn(40, 6, generator=g, dtype=dtype)
    y = torch.randint(3, (40,), generator=g)
    return model.to(device), X.to(device), y.to(device)


def train(name, device, steps=12, **options):
    model, X, y = problem(device)
    opt = OPTIMIZERS[name](list(model.parameters()))
    for _ in range(steps):
        opt.zero_grad()
        if hasattr(opt, "hessian_due") and opt.hessian_due():
            loss = nn.functional.cross_entropy(model(X), y)
            opt.update_hessian(loss)
        nn.functional.cross_entropy(model(X), y).backward()
        opt.step()
    return model, opt


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in ("AdaHessian", "Sophia")])
def test_an_optimizer_takes_the_same_steps(name):
    ours, _ = train(name, "cuda")
    reference, _ = train(name, "cpu")
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["AdaHessian", "Sophia"])
def test_an_optimizer_that_draws_trains_repeats_itself_and_resumes(name):
    state = torch.cuda.get_rng_state()
    first, opt = train(name, "cuda")
    second, _ = train(name, "cuda")
    assert torch.equal(state, torch.cuda.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    saved = copy.deepcopy(opt.state_dict())
    again = OPTIMIZERS[name](list(first.parameters()))
    again.load_state_dict(saved)
    model, X, y = problem("cuda")
    assert nn.functional.cross_entropy(first(X), y) < nn.functional.cross_entropy(model(X), y)


@pytest.mark.parametrize("kind", ["HessianOperator", "GGNOperator", "FisherOperator"])
def test_an_operator_multiplies_alike(kind):
    dense = []
    for device in ("cuda", "cpu"):
        model, X, y = problem(device)
        options = {"kind": "empirical"} if kind == "FisherOperator" else {}
        operator = getattr(curvature, kind)(model, nn.CrossEntropyLoss(), (X, y), **options)
        found = operator.dense()
        assert found.device.type == device
        dense.append(found.cpu())
    torch.testing.assert_close(*dense, rtol=1e-10, atol=1e-12)


def test_spectra_and_traces_agree():
    found = []
    for device in ("cuda", "cpu"):
        model, X, y = problem(device)
        operator = curvature.GGNOperator(model, nn.CrossEntropyLoss(), (X, y))
        top = curvature.extreme_eigenvalues(operator, k=2, which="LA", seed=0)
        trace = curvature.trace(operator, num_matvecs=30, seed=0)
        found.append([*top.values.tolist(), float(trace.value)])
    np.testing.assert_allclose(found[0][:2], found[1][:2], rtol=1e-8)
    assert found[0][2] == pytest.approx(found[1][2], rel=0.2)  # the probes of two devices differ


def test_mixed_precision_trains():
    model, X, y = problem("cuda", torch.float32)
    opt = optim.AdamP(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        opt.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(X), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_stability_is_read_alike():
    found = []
    for device in ("cuda", "cpu"):
        model, X, y = problem(device)
        report = landscape.linear_stability(model, nn.CrossEntropyLoss(), X, y, lr=0.1, batch_size=4)
        found.append([report.trace, report.frobenius, report.lambda_max, *report.ratios.values()])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-8)


def test_the_batch_spectrum_is_read_alike_and_steers_a_run():
    found = []
    for device in ("cuda", "cpu"):
        model, X, y = problem(device)
        spectrum = landscape.BatchSpectrum(model, nn.CrossEntropyLoss(), X, y, batch_sizes=(8, 16), repeats=3).fit()
        found.append(spectrum.lambda_max_)
        opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        spectrum.attach(opt)
        before = nn.functional.cross_entropy(model(X), y).item()
        for _ in range(30):
            opt.zero_grad()
            nn.functional.cross_entropy(model(X), y).backward()
            opt.step()
        assert nn.functional.cross_entropy(model(X), y).item() < before
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_matrix_is_recovered_where_the_measurements_are():
    g = torch.Generator().manual_seed(0)
    truth = torch.randn(8, 2, generator=g, dtype=torch.float64) @ torch.randn(2, 8, generator=g, dtype=torch.float64)
    A = torch.randn(400, 8, 8, generator=g, dtype=torch.float64)
    y = torch.einsum("mij,ij->m", A, truth)
    result = landscape.factored_descent(A.cuda(), y.cuda(), rank=4, seed=0, tol=1e-8)
    assert result.success
    assert result.x.device.type == "cuda"
    torch.testing.assert_close(result.x.cpu(), truth, rtol=1e-6, atol=1e-6)


def test_target_surrogates_train():
    model, X, y = problem("cuda")
    opt = optim.TargetSurrogate(model.parameters(), target_lr=2.0)
    losses = [float(opt.step(lambda: model(X), lambda z: nn.functional.cross_entropy(z, y))) for _ in range(8)]
    assert losses[-1] < losses[0]
