"""What every optimizer of the room owes its caller, whatever its update.

A test file supplies a `Case` for each optimizer and asks::

    @pytest.mark.parametrize("case", CASES, ids=str)
    @pytest.mark.parametrize("check", OPTIMIZER_CHECKS, ids=lambda check: check.__name__)
    def test_contract(check, case):
        check(case)

    def test_two_processes():
        check_two_processes(CASES)
"""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from steepest.core.errors import SteepestWarning
from steepest.core.memory import peak_tensor_bytes
from tests import processes

SHAPES = [(4, 3, 3, 3), (6, 5), (7,), ()]


def no_curvature(opt: Any, loss_fn: Callable[[], Tensor]) -> None:
    """First-order optimizers are fed by `backward` alone."""


@dataclass(frozen=True)
class Case:
    """An optimizer under examination.

    `make(params, **options)` builds it with a learning rate that moves things and a fixed seed if it draws; `feed(opt,
    loss_fn)` hands it curvature before a step if it is due (`loss_fn()` is the loss, a scalar with a graph). Both must
    be importable (they are pickled). `paths` says whether it has foreach, capturable and compile, `native` whether it
    has a kernel; `ddp` holds options for a run on several ranks, `options` those for every run.
    """

    name: str
    make: Callable[..., Any]
    feed: Callable[[Any, Callable[[], Tensor]], None] = no_curvature
    paths: bool = True
    native: bool = True
    ddp: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def build(self, params: Any, **options: Any) -> Any:
        return self.make(params, **(self.options | options))

    def step(self, opt: Any, params: list[Tensor], k: int, sign: float = 1.0) -> None:
        def loss_fn() -> Tensor:
            return sign * loss_of(params, k)

        opt.zero_grad()
        self.feed(opt, loss_fn)
        loss_fn().backward()
        opt.step()

    def train(self, opt: Any, params: list[Tensor], steps: int, start: int = 0, sign: float = 1.0) -> None:
        for k in range(start, start + steps):
            self.step(opt, params, k, sign)


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64, shapes: Iterable = SHAPES) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(dtype)) for s in shapes]


def loss_of(params: Iterable[Tensor], k: int) -> Tensor:
    """A smooth coupled loss, another one for each k; the second tensor enters by direction only."""
    g = torch.Generator().manual_seed(1000 + k)
    total, means = 0.0, 0.0
    for i, p in enumerate(params):
        a, b = (torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype) for _ in range(2))
        x = p / p.norm(dim=1, keepdim=True) if i == 1 and p.dim() == 2 else p
        total = total + (b * (x - a).tanh() + 0.3 * (x - a) ** 2).sum()
        means = means + x.mean()
    return total + 0.5 * means**2


def values(params: Iterable[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def same(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(x.detach(), y.detach()) for x, y in zip(a, b, strict=True))


def gap(a: Iterable[Tensor], b: Iterable[Tensor]) -> float:
    """Largest difference relative to the largest entry, over tensors."""
    pairs = [(x.detach().double(), y.detach().double()) for x, y in zip(a, b, strict=True)]
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(1e-30)) for x, y in pairs)


def state_of(opt: Any, params: Iterable[Tensor]) -> list[Tensor]:
    return [t for p in params for _, t in sorted(opt.state.get(p, {}).items()) if isinstance(t, Tensor)]


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ----------------------------------------------------------------------------------------------------- groups and steps


def check_is_a_torch_optimizer_that_moves(case: Case) -> None:
    params = parameters()
    before = values(params)
    opt = case.build(params)
    assert isinstance(opt, torch.optim.Optimizer)
    case.step(opt, params, 0)
    assert all(not torch.equal(a, b) for a, b in zip(before, values(params), strict=True))
    assert all(p.isfinite().all() for p in params)


def check_accepts_tensors_named_pairs_and_groups(case: Case) -> None:
    plain, named, grouped = parameters(), parameters(), parameters()
    opts = [
        case.build(iter(plain)),
        case.build([(f"p{i}", p) for i, p in enumerate(named)]),
        case.build([{"params": grouped[:2]}, {"params": grouped[2:]}]),
    ]
    for opt, params in zip(opts, (plain, named, grouped), strict=True):
        case.train(opt, params, 3)
    assert same(plain, named)
    assert gap(grouped, plain) < 1e-12
    assert opts[1].param_groups[0]["param_names"] == ["p0", "p1", "p2", "p3"]
    with pytest.raises(TypeError):
        case.build(plain[0])
    with pytest.raises(ValueError, match="empty"):
        case.build([])


def check_groups_have_their_own_hyperparameters(case: Case) -> None:
    params = parameters()
    opt = case.build([{"params": params[:2]}, {"params": params[2:], "lr": 0.0}])
    before = values(params)
    case.step(opt, params, 0)
    assert same(params[2:], before[2:])
    assert not same(params[:2], before[:2])
    opt.param_groups[1]["lr"] = opt.param_groups[0]["lr"]
    case.step(opt, params, 1)
    assert not same(params[2:], before[2:])


def check_follows_a_scheduler(case: Case) -> None:
    params, twin = parameters(), parameters()
    opt, by_hand = case.build(params), case.build(twin)
    lr = by_hand.param_groups[0]["lr"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 1.0 / (1 + k))
    for k in range(4):
        by_hand.param_groups[0]["lr"] = lr * (1.0 / (1 + k))
        case.step(opt, params, k)
        case.step(by_hand, twin, k)
        scheduler.step()
    assert same(params, twin)


def check_runs_a_closure_with_gradients(case: Case) -> None:
    params, twin = parameters(), parameters()
    opt, plain = case.build(params), case.build(twin)
    calls = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        calls.append(1)
        opt.zero_grad()
        loss = loss_of(params, 0)
        loss.backward()
        return loss

    case.feed(opt, lambda: loss_of(params, 0))
    expected = loss_of(params, 0).detach()
    with torch.no_grad():
        assert torch.equal(opt.step(closure).detach(), expected)
    assert len(calls) == 1
    case.feed(plain, lambda: loss_of(twin, 0))
    loss_of(twin, 0).backward()
    assert plain.step() is None
    assert same(params, twin)


def check_skips_what_has_no_gradient(case: Case) -> None:
    params = parameters()
    frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    unused = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    empty = nn.Parameter(torch.ones(0, 3, dtype=torch.float64))
    opt = case.build([{"params": [*params, frozen, unused, empty]}])
    opt.step() if case.feed is no_curvature else None  # nothing has a gradient: nothing to do
    before = values(params)
    case.step(opt, params, 0)
    assert not same(params, before)
    assert torch.equal(frozen, torch.ones(3, dtype=torch.float64))
    assert torch.equal(unused, torch.ones(2, 3, dtype=torch.float64))
    assert not any(opt.state.get(p) for p in (frozen, unused))
    params[0].grad = None
    before = values(params)
    opt.step()
    if case.paths:  # a joint update may move a parameter whose own gradient is missing
        assert torch.equal(params[0], before[0])
    assert not same(params[1:], before[1:])


def check_leaves_gradients_alone(case: Case) -> None:
    for maximize in (False, True):
        for options in _path_options(case):
            params = parameters()
            opt = case.build(params, maximize=maximize, **options)
            opt.param_groups[0]["weight_decay"] = 0.1
            case.train(opt, params, 2)
            opt.zero_grad()
            case.feed(opt, lambda params=params: loss_of(params, 2))
            loss_of(params, 2).backward()
            grads, copies = [p.grad for p in params], [p.grad.clone() for p in params]
            opt.step()
            assert all(p.grad is g for p, g in zip(params, grads, strict=True))
            assert same(grads, copies)


def check_drops_graphs_from_gradients(case: Case) -> None:
    params = parameters()
    opt = case.build(params)
    case.feed(opt, lambda: loss_of(params, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward.* with create_graph=True")
        loss_of(params, 0).backward(create_graph=True)
    grads = [p.grad.detach().clone() for p in params]
    opt.step()
    assert all(not p.grad.requires_grad and p.grad.grad_fn is None for p in params)
    assert same([p.grad for p in params], grads)


def check_updates_in_place(case: Case) -> None:
    for options in _path_options(case):
        params = parameters()
        where = [(id(p), p.data_ptr(), p.stride(), p.dtype) for p in params]
        opt = case.build(params, **options)
        case.train(opt, params, 3)
        assert where == [(id(p), p.data_ptr(), p.stride(), p.dtype) for p in params]
        assert [id(p) for p in opt.param_groups[0]["params"]] == [w[0] for w in where]


def _odd_layouts() -> tuple[list[nn.Parameter], list[Tensor]]:
    """The parameters of `parameters()` as channels_last, transposed, view with gaps, and scalar view."""
    base = parameters()
    buffers = [torch.zeros(20, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)]
    with torch.no_grad():
        conv = base[0].detach().clone(memory_format=torch.channels_last)
        matrix = base[1].detach().T.contiguous().T
        vector = buffers[0][3:17:2].copy_(base[2])
        scalar = buffers[1][2].copy_(base[3])
    params = [nn.Parameter(t) for t in (conv, matrix, vector, scalar)]
    assert params[2].data_ptr() == buffers[0][3:].data_ptr()
    return params, buffers


def check_takes_any_memory_layout(case: Case) -> None:
    for options in _path_options(case):
        params = parameters()
        case.train(case.build(params, **options), params, 4)
        odd, buffers = _odd_layouts()
        strides = [p.stride() for p in odd]
        opt = case.build(odd, **options)
        case.train(opt, odd, 4)
        assert gap(odd, params) < 1e-12, options
        assert [p.stride() for p in odd] == strides
        assert torch.count_nonzero(buffers[0]) == 7, "a neighbor in the buffer was written"
        assert torch.count_nonzero(buffers[1]) == 1


def check_takes_gradients_of_another_layout(case: Case) -> None:
    """DDP and custom functions may hand a contiguous gradient to a channels_last parameter."""
    for options in _path_options(case):
        reference, params = parameters(), parameters()
        params[0] = nn.Parameter(params[0].detach().clone(memory_format=torch.channels_last))
        for ps in (reference, params):
            opt = case.build(ps, **options)
            for k in range(4):
                opt.zero_grad()
                case.feed(opt, lambda ps=ps, k=k: loss_of(ps, k))
                loss_of(ps, k).backward()
                ps[0].grad = ps[0].grad.contiguous()
                opt.step()
        assert gap(params, reference) < 1e-12, options


def check_maximize_is_minimize_of_the_negative(case: Case) -> None:
    for options in _path_options(case):
        up, down = parameters(), parameters()
        case.train(case.build(up, maximize=True, **options), up, 5)
        case.train(case.build(down, maximize=False, **options), down, 5, sign=-1.0)
        assert same(up, down), options


def check_refuses_bad_arguments(case: Case) -> None:
    for name, bad, kind in [("lr", -1.0, ValueError), ("lr", "fast", TypeError), ("maximize", 1, TypeError)]:
        with pytest.raises(kind, match=name):
            case.build(parameters(), **{name: bad})
        params = parameters()
        opt = case.build(params[:2])
        with pytest.raises(kind, match=name):
            opt.add_param_group({"params": params[2:], name: bad})
        assert len(opt.param_groups) == 1


def check_refuses_complex_parameters_and_sparse_gradients(case: Case) -> None:
    strange = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"parameter 1 of group 1 must be real"):
        case.build([{"params": parameters()[:1]}, {"params": [parameters()[1], strange]}])
    params = parameters()
    opt = case.build(params)
    case.feed(opt, lambda: loss_of(params, 0))
    loss_of(params, 0).backward()
    params[1].grad = params[1].grad.to_sparse()
    before = values(params)
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    assert same(params, before)


def check_repr_shows_the_groups(case: Case) -> None:
    opt = case.build([{"params": parameters()[:1]}, {"params": parameters()[1:], "lr": 0.125}])
    assert type(opt).__name__ in repr(opt)
    assert "Parameter Group 1" in repr(opt)
    assert "lr: 0.125" in repr(opt)


def check_accumulates_gradients(case: Case) -> None:
    whole, parts = parameters(), parameters()
    one, two = case.build(whole), case.build(parts)
    for k in range(3):
        for opt, params, halves in ((one, whole, 1), (two, parts, 2)):
            opt.zero_grad()
            case.feed(opt, lambda params=params, k=k: loss_of(params, k))
            for _ in range(halves):
                (loss_of(params, k) / halves).backward()
            opt.step()
    assert gap(parts, whole) < 1e-12


def check_passes_non_finite_gradients_on(case: Case) -> None:
    if not case.paths:
        return
    for options in _path_options(case):
        params = parameters()
        opt = case.build(params, **options)
        case.train(opt, params, 2)
        opt.zero_grad()
        case.feed(opt, lambda params=params: loss_of(params, 0))
        loss_of(params, 0).backward()
        params[2].grad[3] = math.nan
        params[1].grad[0, 0] = math.inf
        opt.step()
        assert params[2][3].isnan()
        assert all(p.isfinite().all() for p in (params[0], params[1][1:], params[3], params[2][:3], params[2][4:]))
        assert params[1][0, 1:].isfinite().all()


# ------------------------------------------------------------------------------------------------ state and checkpoints


def check_state_follows_the_parameter(case: Case) -> None:
    params, _ = _odd_layouts()
    opt = case.build(params)
    case.train(opt, params, 2)
    for p in params:
        state = opt.state[p]
        if "step" in state:
            step = state["step"]
            assert (step.dtype, step.shape, step.device.type, float(step)) == (torch.float32, (), "cpu", 2.0)
        for name, t in state.items():
            if isinstance(t, Tensor) and t.shape == p.shape and p.dim() > 0:
                assert t.dtype == p.dtype, name
                if p.dim() == 4:
                    assert t.is_contiguous(memory_format=torch.channels_last), name


def check_half_precision_keeps_float32_state(case: Case) -> None:
    for options in _path_options(case):
        half = parameters(dtype=torch.bfloat16)
        full = [nn.Parameter(p.detach().float()) for p in half]
        opt, reference = case.build(half, **options), case.build(full, **options)
        for p, q in zip(half, full, strict=True):
            g = torch.Generator().manual_seed(7)
            q.grad = torch.randn(q.shape, generator=g).bfloat16().float()
            p.grad = q.grad.bfloat16()
        if case.feed is not no_curvature:
            return  # estimates of two precisions are not comparable bit by bit
        opt.step()
        reference.step()
        assert all(p.dtype == torch.bfloat16 for p in half)
        for p in half:
            assert all(t.dtype != torch.bfloat16 for t in opt.state[p].values() if isinstance(t, Tensor))
        assert same(half, [q.detach().bfloat16() for q in full]), "rounded more than once"
        loaded = case.build(half, **options)
        loaded.load_state_dict(through_a_file(opt.state_dict()))
        assert same(state_of(loaded, half), state_of(opt, half))
        assert [t.dtype for t in state_of(loaded, half)] == [t.dtype for t in state_of(opt, half)]


def check_continues_from_a_file_bit_by_bit(case: Case) -> None:
    for options in _path_options(case):
        options = options | ({"compile_after": 5} if case.native and options.get("compile") is None else {})
        params, twin = parameters(), parameters(seed=9)
        opt, other = case.build(params, **options), case.build(twin, **options)
        case.train(opt, params, 3)
        with torch.no_grad():
            for p, q in zip(params, twin, strict=True):
                q.copy_(p)
        saved = through_a_file(opt.state_dict())
        assert "steepest" in saved
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other.load_state_dict(saved)
        case.train(opt, params, 6, start=3)
        case.train(other, twin, 6, start=3)
        assert same(params, twin), options
        assert same(state_of(opt, params), state_of(other, twin))


def check_loading_copies(case: Case) -> None:
    params, twin = parameters(), parameters()
    opt, other = case.build(params), case.build(twin)
    case.train(opt, params, 2)
    other.load_state_dict(opt.state_dict())
    kept = [t.clone() for t in state_of(opt, params)]
    case.train(other, twin, 2)
    assert same(state_of(opt, params), kept)
    with pytest.raises(ValueError, match="group"):
        case.build(parameters()[:2]).load_state_dict(opt.state_dict())


def check_loads_a_plain_checkpoint_with_one_warning(case: Case) -> None:
    params = parameters()
    plain = torch.optim.AdamW(params, lr=0.01)
    for k in range(2):
        plain.zero_grad()
        loss_of(params, k).backward()
        plain.step()
    opt = case.build(params)
    with pytest.warns(SteepestWarning, match="steepest") as caught:
        opt.load_state_dict(through_a_file(plain.state_dict()))
    assert len(caught) == 1
    assert opt.param_groups[0]["lr"] == 0.01
    case.train(opt, params, 2)
    assert all(p.isfinite().all() for p in params)
    if case.paths:
        assert all(float(opt.state[p]["step"]) == 4.0 for p in params)


def check_copies_and_pickles(case: Case) -> None:
    for make_copy in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        for options in _path_options(case):
            params = parameters()
            opt = case.build(params, **options)
            torch.optim.lr_scheduler.ConstantLR(opt)  # wraps opt.step, which must not travel
            case.train(opt, params, 3)
            other = make_copy(opt)
            twin = other.param_groups[0]["params"]
            assert all(p is not q for p, q in zip(params, twin, strict=True))
            case.train(opt, params, 3, start=3)
            case.train(other, twin, 3, start=3)
            assert same(params, twin)
            assert same(state_of(opt, params), state_of(other, twin))


def check_takes_a_group_in_the_middle(case: Case) -> None:
    for options in _path_options(case):
        params = parameters()
        opt = case.build(params[:2], **options)
        case.train(opt, params[:2], 3)
        opt.add_param_group({"params": params[2:]})
        before = values(params)
        case.train(opt, params, 3, start=3)
        assert not same(params[2:], before[2:])
        if case.paths:
            assert [float(opt.state[p]["step"]) for p in params] == [6, 6, 3, 3]


# ------------------------------------------------------------------------------------------------------ paths of a step


def _path_options(case: Case) -> list[dict[str, Any]]:
    """Options that reach every path of a step."""
    if not case.paths:
        return [{}]
    found: list[dict[str, Any]] = [{"compile": False}, {"foreach": True}, {"capturable": True}]
    return [*found, {"compile_after": 0}] if case.native else found


def check_paths_agree(case: Case) -> None:
    if not case.paths:
        return
    for dtype, tol in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        reference = parameters(dtype=dtype)
        opt = case.build(reference, compile=False, foreach=False)
        begin = values(reference)
        case.train(opt, reference, 3)
        for options in _path_options(case)[1:]:
            params = parameters(dtype=dtype)
            other = case.build(params, **options)
            for k in range(3):  # one step at a time from equal states: agreement of a step, not of a trajectory
                case.step(other, params, k)
            assert gap(params, reference) <= 3 * tol, (options, dtype)
        assert not same(reference, begin)


def check_tensor_lr_and_scheduler_when_capturable(case: Case) -> None:
    if not case.paths:
        return
    params, twin = parameters(), parameters()
    lr = case.build(parameters()).param_groups[0]["lr"]
    opt = case.build(params, lr=torch.tensor(lr, dtype=torch.float64), capturable=True)
    reference = case.build(twin, capturable=True)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1.0 / (1 + k)) for o in (opt, reference)]
    for k in range(3):
        case.step(opt, params, k)
        case.step(reference, twin, k)
        for s in schedulers:
            s.step()
    assert isinstance(opt.param_groups[0]["lr"], Tensor)
    assert gap(params, twin) < 1e-12


def check_step_compiles_without_graph_breaks(case: Case) -> None:
    if not case.paths:
        return
    for options in ({"capturable": True}, {"foreach": True, "capturable": True}):
        params, twin = parameters(), parameters()
        opt, eager = case.build(params, **options), case.build(twin, **options)
        torch._dynamo.reset()
        compiled = torch.compile(lambda opt=opt: opt.step(), backend="eager", fullgraph=True)
        for k in range(3):
            for o, ps, step in ((opt, params, compiled), (eager, twin, eager.step)):
                o.zero_grad()
                case.feed(o, lambda ps=ps, k=k: loss_of(ps, k))
                loss_of(ps, k).backward()
                step() if k else o.step()  # the first step makes the state
        assert gap(params, twin) < 1e-12
    torch._dynamo.reset()


def check_memory_of_a_step(case: Case) -> None:
    """A step allocates, at its peak, no more than the largest tensor."""
    if not case.paths:
        return
    shapes = [(300, 400), (600, 500), (1, 200_000), (300_000,)]
    largest = max(math.prod(s) for s in shapes) * 4
    options = [{"compile": False}, *([{"compile_after": 0}] if case.native else [])]
    for choice in options:
        params = parameters(dtype=torch.float32, shapes=shapes)
        opt = case.build(params, **choice)
        case.train(opt, params, 2)
        opt.zero_grad()
        loss_of(params, 0).backward()  # no curvature: the update is what is measured
        gc.collect()
        peak = peak_tensor_bytes(opt.step)
        assert peak <= 1.1 * largest, (choice, peak / largest)


# ---------------------------------------------------------------------------------------------------- mixed precision


def check_grad_scaler(case: Case) -> None:
    params, twin = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    opt, plain = case.build(params), case.build(twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for k in range(3):
        opt.zero_grad()
        case.feed(opt, lambda k=k: loss_of(params, k))
        scaler.scale(loss_of(params, k)).backward()
        scaler.step(opt)
        scaler.update()
        case.step(plain, twin, k)
    assert gap(params, twin) < 1e-4
    before = values(params)
    opt.zero_grad()
    case.feed(opt, lambda: loss_of(params, 3))
    scaler.scale(loss_of(params, 3)).backward()
    params[0].grad.view(-1)[0] = math.inf
    scaler.step(opt)
    scaler.update()
    assert same(params, before), "a step that the scaler skips moves nothing"
    scaler.scale(loss_of(params, 4)).backward()


def check_autocast(case: Case) -> None:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    x = torch.randn(64, 5, generator=g)
    y = x.sum(1, keepdim=True).tanh()
    opt = case.build(model.parameters())

    def loss_fn() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return nn.functional.mse_loss(model(x).float(), y)

    first = loss_fn().item()
    for _ in range(30):
        opt.zero_grad()
        case.feed(opt, loss_fn)
        loss_fn().backward()
        opt.step()
    assert loss_fn().item() < 0.9 * first
    assert all(p.dtype == torch.float32 for p in model.parameters())


OPTIMIZER_CHECKS: list[Callable[[Case], None]] = [
    value for name, value in list(globals().items()) if name.startswith("check_")
]


# --------------------------------------------------------------------------------------------------- several processes


def check_two_processes(cases: list[Case]) -> None:
    """Two ranks under DDP hold equal parameters and state; a new process continues a saved run bit by bit."""
    with tempfile.TemporaryDirectory() as folder:
        expected = {}
        for case in cases:
            params = parameters()
            opt = case.build(params)
            case.train(opt, params, 3)
            torch.save({"opt": opt.state_dict(), "params": values(params)}, Path(folder) / f"{case.name}.pt")
            case.train(opt, params, 3, start=3)
            expected[case.name] = values(params)
        with processes.pool(2) as pool:
            jobs = [pool.submit(_rank, rank, folder, cases) for rank in range(2)]
            ranks = [job.result(timeout=240) for job in jobs]
    for case in cases:
        assert same(ranks[0]["continued"][case.name], expected[case.name]), f"{case}: a new process continues otherwise"
        assert same(ranks[0]["ddp"][case.name], ranks[1]["ddp"][case.name]), f"{case}: ranks differ"
        if case.feed is no_curvature:
            alone = _train_linear(case, None, slice(0, 8))
            assert gap(ranks[0]["ddp"][case.name], alone) < 1e-12, f"{case}: DDP differs from the whole batch"


def _rank(rank: int, folder: str, cases: list[Case]) -> dict[str, dict[str, list[Tensor]]]:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        ddp = {case.name: _train_linear(case, rank, slice(4 * rank, 4 * rank + 4)) for case in cases}
    finally:
        dist.destroy_process_group()
    continued = {case.name: _continue(case, folder) for case in cases}
    return {"ddp": ddp, "continued": continued}


def _train_linear(case: Case, rank: int | None, part: slice) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    model: nn.Module = nn.Linear(3, 2, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    x, y = (torch.randn(8, n, generator=g, dtype=torch.float64)[part] for n in (3, 2))
    opt = case.build(model.parameters(), **(case.ddp if rank is not None else {}))
    wrapped = model if rank is None else nn.parallel.DistributedDataParallel(model)
    for _ in range(4):
        opt.zero_grad()
        case.feed(opt, lambda: (model(x) - y).square().mean())
        (wrapped(x) - y).square().mean().backward()
        opt.step()
    params = list(model.parameters())
    return [*values(params), *(t.clone() for t in state_of(opt, params))]


def _continue(case: Case, folder: str) -> list[Tensor]:
    saved = torch.load(Path(folder) / f"{case.name}.pt", weights_only=True)
    params = [nn.Parameter(p) for p in saved["params"]]
    opt = case.build(params)
    opt.load_state_dict(saved["opt"])
    case.train(opt, params, 3, start=3)
    return values(params)
