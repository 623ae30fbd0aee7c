"""AdamP and SGDP against transcriptions of the paper, other libraries, and what the projection promises."""

from __future__ import annotations

import math
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from steepest.optim import SGDP, AdamP, EffectiveStepMonitor, effective_step
from tests import processes
from tests.optim.check_optimizer import OPTIMIZER_CHECKS, Case, check_two_processes, gap, parameters, same, values

CASES = [
    Case("adamp", partial(AdamP, lr=0.02, weight_decay=0.01)),
    Case("adamp-nesterov", partial(AdamP, lr=0.02, nesterov=True)),
    Case("sgdp", partial(SGDP, lr=0.02, momentum=0.9, weight_decay=0.01)),
    Case("sgdp-legacy", partial(SGDP, lr=0.02, momentum=0.9, legacy_buffer=True)),
]
PATHS = [{"compile": False}, {"foreach": True}, {"capturable": True}, {"compile_after": 0}]
SHAPES = [(8, 3, 3, 3), (1, 20_000), (3, 9_000), (300, 70), (37,), (), (5, 1), (1, 7)]
F64 = torch.float64


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("check", OPTIMIZER_CHECKS, ids=lambda check: check.__name__)
def test_contract(check, case):
    check(case)


@pytest.mark.slow
def test_two_processes():
    check_two_processes(CASES)


# ---------------------------------------------------------------------------------------------------------------- exact


def project(w: Tensor, g: Tensor, u: Tensor, delta: float, wd_ratio: float, eps: float) -> tuple[Tensor, float, int]:
    """Algorithm 1's projection, written out row by row."""
    for code, rows in ((1, w.shape[0]), (2, 1)):
        W, G, U = (t.reshape(rows, -1) for t in (w, g, u))
        cosines = [abs(a @ b) / (max(a.norm(), eps) * max(b.norm(), eps)) for a, b in zip(W, G)]
        if max(cosines) < delta / math.sqrt(W.shape[1]):
            q = torch.stack([b - a * (a @ b) / (a.norm() + eps) ** 2 for a, b in zip(W, U)])
            return q.reshape(w.shape), wd_ratio, code
    return u, 1.0, 0


def by_the_book(kind: str, params: list[Tensor], grads: list[list[Tensor]], nesterov: bool, wd: float) -> list[Tensor]:
    """AdamP and SGDP in float64, lr 0.01, momentum or betas of the defaults, without in-place operations."""
    lr, b1, b2, eps, delta, ratio0 = 0.01, 0.9, 0.999, 1e-8, 0.1, 0.1
    w, m, v = [p.clone() for p in params], [p * 0 for p in params], [p * 0 for p in params]
    for t, step in enumerate(grads, 1):
        for i, g in enumerate(step):
            if kind == "adamp":
                m[i] = b1 * m[i] + (1 - b1) * g
                v[i] = b2 * v[i] + (1 - b2) * g * g
                D = v[i].sqrt() / math.sqrt(1 - b2**t) + eps
                u = (b1 * m[i] + (1 - b1) * g) / D if nesterov else m[i] / D
                step_size, decay = lr / (1 - b1**t), lr * wd
            else:
                m[i] = b1 * m[i] + g
                u = g + b1 * m[i] if nesterov else m[i]
                step_size, decay = lr, lr * wd / (1 - b1)
            q, ratio, _ = project(w[i], g, u, delta, ratio0, eps) if g.dim() > 1 else (u, 1.0, 0)
            w[i] = w[i] * (1 - decay * ratio) - step_size * q
    return w


def gradients(params: list[Tensor], steps: int) -> list[list[Tensor]]:
    """Gradients that reach every decision: orthogonal to every row, to the whole tensor only, or to neither."""
    g = torch.Generator().manual_seed(3)
    found = []
    for k in range(steps):
        row = []
        for i, p in enumerate(params):
            x = torch.randn(p.shape, generator=g, dtype=F64)
            if p.dim() > 1 and i % 2 == 0:
                w, r = p.flatten(1), x.flatten(1)
                per_row = (r * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True)
                x = (r - w * (per_row if k % 3 else (r * w).sum() / (w * w).sum())).reshape(p.shape)
            row.append(x)
        found.append(row)
    return found


def train(opt, params: list[Tensor], grads: list[list[Tensor]]) -> set[str]:
    seen: set[str] = set()
    for step in grads:
        for p, g in zip(params, step):
            p.grad = g.to(p.dtype)
        opt.step()
        seen |= set(opt.projection_report())
    return seen


@pytest.mark.parametrize("options", PATHS, ids=str)
@pytest.mark.parametrize(("kind", "nesterov"), [("adamp", False), ("adamp", True), ("sgdp", False), ("sgdp", True)])
def test_update_is_the_algorithm(kind, nesterov, options):
    params = parameters(shapes=SHAPES)
    start = values(params)
    grads = gradients(start, 6)
    expected = by_the_book(kind, start, grads, nesterov, wd=0.1)
    make = AdamP if kind == "adamp" else partial(SGDP, momentum=0.9)
    opt = make(params, lr=0.01, weight_decay=0.1, nesterov=nesterov, **options)
    seen = train(opt, params, grads)
    assert gap(params, expected) < 1e-13
    assert {"none", "channel"} <= seen


@pytest.mark.parametrize("options", PATHS, ids=str)
def test_the_three_decisions(options):
    """Channel where every row is orthogonal, layer where only the whole is, none else; vectors never."""
    w = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]], dtype=F64)
    channel = torch.tensor([[2.0, 5.0, -1.0], [1.0, 1.0, -3.0]], dtype=F64)
    layer = torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.5, -0.5]], dtype=F64)
    params = [nn.Parameter(w.clone()) for _ in range(3)] + [nn.Parameter(w[0].clone())]
    opt = AdamP(params, lr=0.1, **options)
    assert opt.projection_report() == ["none"] * 4
    for p, g in zip(params, (channel, layer, w, channel[0])):
        p.grad = g.clone()
    opt.step()
    assert opt.projection_report() == ["channel", "layer", "none", "none"]
    first, second = params[0].detach() - w, params[1].detach() - w
    assert (first * w).sum(1).abs().max() < 1e-8
    assert abs((second * w).sum()) < 1e-8
    assert (second * w).sum(1).abs().max() > 1e-3
    assert all(opt.state[p]["projection"].dtype == torch.int8 for p in params)


@pytest.mark.parametrize("options", PATHS, ids=str)
def test_threshold_uses_the_row_length_of_the_view_and_is_strict(options):
    """cos = 0.1 sqrt(1/4) is not below delta / sqrt(4); just below it is."""
    for cosine, expected in ((0.05, "none"), (0.05 - 1e-9, "channel")):
        w = torch.zeros(1, 4, dtype=F64)
        w[0, 0] = 1.0
        p = nn.Parameter(w)
        opt = SGDP([p], lr=0.1, **options)
        p.grad = torch.tensor([[cosine, math.sqrt(1 - cosine**2), 0.0, 0.0]], dtype=F64)
        p.grad[0, 0] = 0.1 / math.sqrt(4) if expected == "none" else cosine
        opt.step()
        assert opt.projection_report() == [expected]


@pytest.mark.parametrize("options", PATHS, ids=str)
@pytest.mark.parametrize("mode", ["channel", "layer", "none"])
def test_forced_views(mode, options):
    params = parameters()
    grads = gradients(values(params), 3)
    opt = SGDP(params, lr=0.1, momentum=0.9, weight_decay=0.1, projection=mode, **options)
    start = values(params)
    train(opt, params, grads[:1])
    assert opt.projection_report() == [mode, mode, "none", "none"]
    for w, p, g in zip(start[:2], params, grads[0]):
        u, W = g.flatten(1), w.flatten(1)
        if mode == "layer":
            u, W = u.reshape(1, -1), W.reshape(1, -1)
        coef = (u * W).sum(1, keepdim=True) / (W.norm(dim=1, keepdim=True) + 1e-8) ** 2 if mode != "none" else 0.0
        ratio = 1.0 if mode == "none" else 0.1
        expected = W * (1 - 0.1 * 0.1 * ratio / 0.1) - 0.1 * (u - coef * W)
        assert gap([p.detach().reshape(W.shape)], [expected]) < 1e-13


@pytest.mark.parametrize("options", PATHS, ids=str)
def test_zero_rows_and_zero_gradients_give_no_nan(options):
    for eps in (1e-8, 0.0):
        w = torch.randn(4, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
        w[1] = 0.0
        g = torch.randn(4, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
        g[2] = 0.0
        g[[0, 3]] -= w[[0, 3]] * ((g * w).sum(1) / (w * w).sum(1))[[0, 3], None]
        p = nn.Parameter(w.clone())
        opt = SGDP([p], lr=0.1, eps=eps, **options)
        p.grad = g.clone()
        opt.step()
        assert opt.projection_report() == ["channel"]
        assert torch.allclose(p.detach()[1], -0.1 * g[1], atol=1e-15)  # q = u where w = 0
        assert torch.equal(p.detach()[2], w[2])


def test_delta_zero_is_adamw_and_sgd():
    for options in PATHS:
        ours, theirs = parameters(), parameters()
        a, b = (
            AdamP(ours, lr=0.01, weight_decay=0.1, delta=0.0, **options),
            torch.optim.AdamW(theirs, 0.01, weight_decay=0.1),
        )
        for step in gradients(values(ours), 8):
            for ps, opt in ((ours, a), (theirs, b)):
                for p, g in zip(ps, step):
                    p.grad = g
                opt.step()
        assert gap(ours, theirs) < 1e-13
        ours, theirs = parameters(), parameters()
        nesterov = options == PATHS[1]
        c = SGDP(ours, lr=0.01, momentum=0.9, nesterov=nesterov, delta=0.0, **options)
        d = torch.optim.SGD(theirs, lr=0.01, momentum=0.9, nesterov=nesterov)
        for step in gradients(values(ours), 8):
            for ps, opt in ((ours, c), (theirs, d)):
                for p, g in zip(ps, step):
                    p.grad = g
                opt.step()
        assert gap(ours, theirs) < 1e-13


# ---------------------------------------------------------------------------------------------- what the paper promises


def rayleigh(w: Tensor) -> Tensor:
    """Sum of Rayleigh quotients of the rows: scale-invariant in every row."""
    A = torch.diag(torch.linspace(-1.0, 1.0, w.shape[1], dtype=w.dtype))
    x = w / w.norm(dim=1, keepdim=True)
    return ((x @ A) * x).sum()


def growth(make, steps: int = 400) -> float:
    """Growth of the squared norm over the sum of squared updates."""
    w = nn.Parameter(torch.randn(4, 50, dtype=F64, generator=torch.Generator().manual_seed(0)))
    opt, start, moved = make([w]), float(w.detach().square().sum()), 0.0
    for _ in range(steps):
        opt.zero_grad()
        rayleigh(w).backward()
        before = w.detach().clone()
        opt.step()
        moved += float((w.detach() - before).square().sum())
    return (float(w.detach().square().sum()) - start) / moved


@pytest.mark.parametrize("b", [0.5, 0.9])
def test_momentum_multiplies_the_growth_of_the_norm(b):
    assert growth(lambda p: torch.optim.SGD(p, lr=0.05, momentum=b)) == pytest.approx(1 + 2 * b / (1 - b), rel=0.02)
    assert growth(lambda p: torch.optim.SGD(p, lr=0.05)) == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("options", PATHS, ids=str)
def test_projection_removes_the_extra_growth(options):
    for nesterov in (False, True):
        ours = partial(SGDP, lr=0.05, momentum=0.9, nesterov=nesterov, **options)
        assert growth(ours, 100) == pytest.approx(1.0, abs=1e-6)
    assert growth(partial(AdamP, lr=0.05, **options), 100) == pytest.approx(1.0, abs=1e-5)


def test_only_the_effective_step_changes_not_the_direction():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(1, 40, dtype=F64, generator=g)
    tangents = []
    for mode in ("channel", "none"):
        p = nn.Parameter(w.clone())
        opt = SGDP([p], lr=0.1, momentum=0.9, projection=mode)
        draws = torch.Generator().manual_seed(1)
        opt.state[p]["step"] = torch.zeros(())
        opt.state[p].update(opt._init_state(p, opt.param_groups[0]))
        opt.state[p]["momentum_buffer"].copy_(torch.randn(1, 40, dtype=F64, generator=draws))
        p.grad = torch.randn(1, 40, dtype=F64, generator=draws)
        opt.step()
        x, y = (w / w.norm())[0], (p / p.norm()).detach()[0]
        tangents.append((y - x * (x @ y)) / (y - x * (x @ y)).norm())
    assert float(tangents[0] @ tangents[1]) >= 1 - 1e-10


# ---------------------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("nesterov", [False, True])
def test_agrees_with_the_official_code(nesterov):
    adamp = pytest.importorskip("adamp")
    for ours_of, theirs_of in (
        (partial(AdamP, lr=0.01), partial(adamp.AdamP, lr=0.01)),
        (partial(SGDP, lr=0.01, momentum=0.9, legacy_buffer=True), partial(adamp.SGDP, lr=0.01, momentum=0.9)),
    ):
        for options in PATHS:
            ours, theirs = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
            a = ours_of(ours, weight_decay=0.1, nesterov=nesterov, **options)
            b = theirs_of(theirs, weight_decay=0.1, nesterov=nesterov)
            grads = gradients(values(ours), 5)
            train(a, ours, grads)
            for step in grads:
                for p, g in zip(theirs, step):
                    p.grad = g
                b.step()
            assert gap(ours, theirs) < 1e-12


def test_the_stored_momentum_is_not_projected():
    """The official code projects the buffer too; the paper projects what is applied."""
    buffers = []
    for legacy in (False, True):
        w = nn.Parameter(torch.randn(4, 50, dtype=F64, generator=torch.Generator().manual_seed(0)))
        opt = SGDP([w], lr=0.05, momentum=0.9, legacy_buffer=legacy)
        for _ in range(20):
            opt.zero_grad()
            rayleigh(w).backward()
            before = w.detach().clone()
            opt.step()
        buffers.append(float((opt.state[w]["momentum_buffer"] * before).sum(1).abs().max()))
    assert buffers[1] < 1e-6 < 1e-3 < buffers[0]


# -------------------------------------------------------------------------------------------------------------- sharded


@pytest.mark.slow
def test_sharded_parameters_take_the_steps_of_whole_ones(tmp_path):
    """FSDP2: rows on two ranks in unequal numbers, decisions of the whole tensor."""
    with processes.pool(2) as pool:
        jobs = [pool.submit(sharded_rank, rank, f"file://{tmp_path}/meeting") for rank in range(2)]
        ranks = [job.result(timeout=240) for job in jobs]
    for rank in ranks:
        for kind, found in rank.items():
            expected, codes = train_whole(kind)
            assert gap(found[0], expected) < 1e-12, kind
            assert found[1] == codes
            assert {"channel", "layer", "none"} <= set(codes)


def sharded_model() -> nn.Module:
    """First layer invariant row by row, second as a whole, third not at all."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)).double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=F64))
    return model


def sharded_loss(weights: list[Tensor]) -> Tensor:
    a, b, c = weights
    g = torch.Generator().manual_seed(1)
    x, y, z = (torch.randn(w.shape, generator=g, dtype=F64) for w in weights)
    return (a / a.norm(dim=1, keepdim=True) * x).sum() + (b / b.norm() * y).sum() + ((c - z) ** 2).sum()


SHARDED = {"adamp": partial(AdamP, lr=0.02, weight_decay=0.1), "sgdp": partial(SGDP, lr=0.02, momentum=0.9)}


def train_whole(kind: str) -> tuple[list[Tensor], list[str]]:
    model = sharded_model()
    opt = SHARDED[kind](model.parameters())
    for _ in range(4):
        opt.zero_grad()
        (sharded_loss([m.weight for m in model]) + sum(m.bias.square().sum() for m in model)).backward()
        opt.step()
    return values(model.parameters()), opt.projection_report()


def sharded_rank(rank: int, meeting: str) -> dict[str, tuple[list[Tensor], list[str]]]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    try:
        mesh = init_device_mesh("cpu", (2,))
        found = {}
        for kind, make in SHARDED.items():
            whole = sharded_model()
            model = sharded_model()
            for layer in model:
                fully_shard(layer, mesh=mesh)
            opt = make(model.parameters())
            for _ in range(4):
                with torch.no_grad():
                    for p, q in zip(whole.parameters(), model.parameters()):
                        p.copy_(q.full_tensor())
                whole.zero_grad()
                (sharded_loss([m.weight for m in whole]) + sum(m.bias.square().sum() for m in whole)).backward()
                for p, q in zip(whole.parameters(), model.parameters()):
                    q.grad = distribute_tensor(p.grad, mesh, q.placements)
                opt.step()
            found[kind] = ([q.full_tensor().detach() for q in model.parameters()], opt.projection_report())
        return found
    finally:
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------------ effective steps


def test_effective_step_by_rows_and_layers():
    a, b = (torch.randn(3, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    rows = [float((y / y.norm() - x / x.norm()).norm()) for x, y in zip(a, b)]
    assert torch.allclose(effective_step(a, b), torch.tensor(rows, dtype=F64), atol=1e-14)
    assert torch.allclose(effective_step(a, b, "layer"), (b / b.norm() - a / a.norm()).norm()[None], atol=1e-14)
    assert effective_step(a, 7.0 * a).max() < 1e-14
    assert effective_step(torch.zeros(2), torch.ones(2)).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="view"):
        effective_step(a, b, "row")
    with pytest.raises(ValueError, match="after must be a tensor of shape"):
        effective_step(a, b[:2])


def test_monitor_records_every_step():
    params = parameters()
    opt = AdamP([{"params": params[:2]}, {"params": params[2:]}], lr=0.01)
    monitor = EffectiveStepMonitor(opt)
    assert monitor.table()["norm"].shape == (0, 4)
    for step in gradients(values(params), 3):
        before = values(params)
        train(opt, params, [step])
        monitor.record()
    table = monitor.table()
    assert {key: x.shape for key, x in table.items()} == dict.fromkeys(table, (3, 4))
    p, g, w = params[0].detach(), params[0].grad, before[0]
    assert table["norm"][-1, 0] == pytest.approx(float(p.norm()))
    assert table["effective_step"][-1, 0] == pytest.approx(float((p / p.norm() - w / w.norm()).norm()))
    assert table["cosine"][-1, 0] == pytest.approx(abs(float((g * w).sum() / g.norm() / w.norm())))
    assert [("none", "channel", "layer")[int(c)] for c in table["projection"][-1]] == opt.projection_report()


# --------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize("kind", [AdamP, SGDP])
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("eps", -1e-8, ValueError),
        ("weight_decay", -0.1, ValueError),
        ("delta", -0.1, ValueError),
        ("wd_ratio", 1.5, ValueError),
        ("wd_ratio", -0.1, ValueError),
        ("projection", "row", ValueError),
        ("nesterov", 1, TypeError),
        ("delta", "0.1", TypeError),
        ("lr", math.nan, ValueError),
        ("compile_after", -1, ValueError),
        ("compile", "yes", TypeError),
    ],
)
def test_bad_arguments(kind, name, value, error):
    with pytest.raises(error, match=f"{name} must be"):
        kind(parameters(), **{name: value})


def test_bad_momentum_and_betas():
    for betas in ((1.0, 0.999), (0.9, 1.0), (-0.1, 0.9)):
        with pytest.raises(ValueError, match=r"betas must be 2 numbers in \[0, 1\)"):
            AdamP(parameters(), betas=betas)
    for betas in (0.9, (0.9,), ("a", "b")):
        with pytest.raises(TypeError, match="betas"):
            AdamP(parameters(), betas=betas)
    for momentum in (1.0, -0.1):
        with pytest.raises(ValueError, match="momentum must be"):
            SGDP(parameters(), momentum=momentum)
    for options in ({}, {"momentum": 0.9, "dampening": 0.5}):
        with pytest.raises(ValueError, match="nesterov=True needs momentum > 0 and dampening 0"):
            SGDP(parameters(), nesterov=True, **options)
    opt = SGDP(parameters()[:1])
    with pytest.raises(ValueError, match="nesterov"):
        opt.add_param_group({"params": parameters()[1:], "nesterov": True})


def test_positional_order_is_that_of_the_official_package():
    opt = AdamP(parameters(), 0.1, (0.8, 0.9), 1e-6, 0.2, 0.3, 0.4, True)
    names = ("lr", "betas", "eps", "weight_decay", "delta", "wd_ratio", "nesterov")
    assert [opt.defaults[n] for n in names] == [0.1, (0.8, 0.9), 1e-6, 0.2, 0.3, 0.4, True]
    opt = SGDP(parameters(), 0.1, 0.9, 0.0, 0.2, True, 1e-6, 0.3, 0.4)
    names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "eps", "delta", "wd_ratio")
    assert [opt.defaults[n] for n in names] == [0.1, 0.9, 0.0, 0.2, True, 1e-6, 0.3, 0.4]


def test_official_dampening_acts_on_the_first_gradient_too():
    p = nn.Parameter(torch.ones(2, dtype=F64))
    p.grad = torch.ones(2, dtype=F64)
    SGDP([p], lr=1.0, momentum=0.9, dampening=0.5).step()
    assert same([p], [torch.full((2,), 0.5, dtype=F64)])
