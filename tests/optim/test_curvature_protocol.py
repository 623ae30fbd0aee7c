"""How curvature gets in: one protocol, examined on AdaHessian, Sophia-G and Sophia-H alike."""

import copy
import gc
import io
import pickle
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from steepest.core.errors import SteepestWarning
from steepest.optim import AdaHessian, Sophia
from tests.optim.check_optimizer import OPTIMIZER_CHECKS, Case, check_two_processes
from tests.optim.curvature_problems import backward, coefficients, coupled, make_params, quartic

KINDS = ["adahessian", "sophia-g", "sophia-h"]


def make(kind: str, params, **options):
    """An optimizer whose one estimate is exact on a diagonal Hessian (h and v have no memory unless told)."""
    options = {"lr": 0.01, "seed": 0} | options
    if kind == "adahessian":
        return AdaHessian(params, **({"block": None} | options))
    if kind == "sophia-h":
        options = {"distribution": "rademacher"} | options
    return Sophia(params, estimator="gnb" if kind == "sophia-g" else "hutchinson", **options)


def curvature(opt, p) -> Tensor:
    return opt.state[p]["exp_hessian_diag_sq" if isinstance(opt, AdaHessian) else "hessian"]


def feed(opt, loss, **options) -> None:
    opt.update_hessian(loss, batch_size=4, **options) if isinstance(opt, Sophia) else opt.update_hessian(
        loss, **options
    )


def train(opt, params, a, steps: int, *, each_step=None) -> None:
    for _ in range(steps):
        loss = coupled(params, a)
        if opt.hessian_due():
            feed(opt, loss, retain_graph=True)
        opt.zero_grad()
        loss.backward()
        opt.step()


# ----------------------------------------------------------------------------------------------- estimates and steps


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_accumulate_to_the_whole_batch(kind):
    """Two calls of weight 1/2 equal one call on the mean loss (GNB: with B the sum of both)."""
    a, b = coefficients(1), coefficients(2)
    whole, parts = make_params(), make_params()
    one, two = (make(kind, p, betas=(0.9, 0.5)) for p in (whole, parts))
    for _ in range(3):
        mean = 0.5 * (quartic(whole, a) + quartic(whole, b))
        one.update_hessian(mean, **({"batch_size": 8} if kind != "adahessian" else {}), retain_graph=True)
        for c in (a, b):
            feed(two, quartic(parts, c), weight=0.5)
        for opt, p in ((one, whole), (two, parts)):
            opt.zero_grad()
            (0.5 * (quartic(p, a) + quartic(p, b))).backward()
            opt.step()
    for p, q in zip(whole, parts):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(curvature(one, p), curvature(two, q), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_is_folded_once_before_the_parameters_move(kind):
    params, a = make_params(), coefficients()
    opt = make(kind, params, betas=(0.9, 0.75), update_each=5)
    x = [p.detach().clone() for p in params]
    loss = quartic(params, a)
    feed(opt, loss, retain_graph=True)
    assert all(torch.equal(p, q) for p, q in zip(params, x))  # nothing moves before step
    loss.backward()
    opt.step()
    for p, q, c in zip(params, x, a):
        D = c * q**2
        h = {"adahessian": D**2, "sophia-h": D, "sophia-g": 4 * (c * q**3 / 3) ** 2}[kind]
        torch.testing.assert_close(curvature(opt, p), 0.25 * h, rtol=1e-12, atol=1e-14)
    before = [curvature(opt, p).clone() for p in params]
    opt.step()
    assert all(torch.equal(curvature(opt, p), h) for p, h in zip(params, before))  # once


@pytest.mark.parametrize("kind", KINDS)
def test_due_every_k_steps_and_advisory(kind):
    params, a = make_params(), coefficients()
    opt = make(kind, params, update_each=3)
    due = []
    for t in range(9):
        due.append(opt.hessian_due())
        loss = coupled(params, a)
        if due[-1] and t != 6:
            feed(opt, loss, retain_graph=True)
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert due[:7] == [True, False, False, True, False, False, True]
    assert opt.missed_updates >= 1
    before = [curvature(opt, p).clone() for p in params]
    missed = opt.missed_updates
    loss = coupled(params, a)
    feed(opt, loss, retain_graph=True)  # due or not, a call counts
    opt.zero_grad()
    loss.backward()
    opt.step()
    assert not any(torch.equal(curvature(opt, p), h) for p, h in zip(params, before))
    assert opt.missed_updates == missed


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_hooks_and_global_streams_are_left_alone(kind):
    params, a = make_params(), coefficients()
    opt = make(kind, params)
    fired = []
    for p in params:
        p.grad = torch.full_like(p, 3.0)
        p.register_post_accumulate_grad_hook(lambda _: fired.append(1))
    kept = [p.grad for p in params]
    state = torch.get_rng_state()
    feed(opt, lambda: coupled(params, a))
    with torch.no_grad():
        feed(opt, lambda: coupled(params, a))  # a callable is called under enable_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is g and bool((g == 3.0).all()) for p, g in zip(params, kept))
    assert not fired


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_consumed_unless_retained(kind):
    params, a = make_params(), coefficients()
    opt = make(kind, params)
    loss = coupled(params, a)
    feed(opt, loss, retain_graph=True)
    feed(opt, loss)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_memory_returns_after_the_call(kind):
    params, a = make_params(), coefficients()
    opt = make(kind, params)

    def live() -> int:
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        counts = []
        for _ in range(4):
            feed(opt, coupled(params, a))
            counts.append(live())
    finally:
        gc.enable()
    assert len(set(counts[1:])) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_and_unused_parameters(kind):
    p, frozen, unused = (nn.Parameter(torch.ones(3)) for _ in range(3))
    frozen.requires_grad_(False)
    opt = make(kind, [p, frozen, unused])
    loss = (frozen * p**4).sum()
    feed(opt, loss, retain_graph=True)
    loss.backward()
    opt.step()
    assert list(opt.state) == [p]
    assert torch.equal(frozen, torch.ones(3))
    assert torch.equal(unused.detach(), torch.ones(3))


# ------------------------------------------------------------------------------------------------ what is not finite


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", ["nan", "overflow"])
def test_curvature_that_is_not_finite_is_dropped_and_counted(kind, bad):
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    opt = make(kind, [p, q], betas=(0.9, 0.9))

    def good() -> Tensor:
        return (p**4).sum() + (q**4).sum()

    def step() -> None:
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        opt.step()

    feed(opt, good)
    step()
    before = [curvature(opt, x).clone() for x in (p, q)]
    scale = float("nan") if bad == "nan" else 1e25  # (1e25)^2 is no float32
    if kind == "sophia-h" and bad == "overflow":
        scale = float("inf")  # a finite Hutchinson estimate is not squared
    with pytest.warns(SteepestWarning, match="not finite"):
        feed(opt, lambda: (p**4).sum() + scale * (q**4).sum())
    step()
    assert opt.dropped_estimates == 1
    assert all(torch.equal(curvature(opt, x), h) for x, h in zip((p, q), before))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning for all of a run
        feed(opt, lambda: (p**4).sum() + scale * (q**4).sum())
        step()
        assert opt.dropped_estimates == 2
        feed(opt, good)
        step()
    assert opt.dropped_estimates == 2
    assert not any(torch.equal(curvature(opt, x), h) for x, h in zip((p, q), before))
    assert all(curvature(opt, x).isfinite().all() for x in (p, q))


def test_first_step_with_only_a_dropped_estimate_raises():
    p = nn.Parameter(torch.ones(2))
    opt = make("adahessian", [p])
    with pytest.warns(SteepestWarning, match="not finite"):
        opt.update_hessian(float("nan") * p.square().sum())
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="update_hessian"):
        opt.step()
    assert torch.equal(p.detach(), torch.ones(2))


# ------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_a_resumed_run_is_bit_equal(kind, way):
    """Probe generator, clock and a pending estimate travel."""
    params, a = make_params(), coefficients()
    opt = make(kind, params, update_each=2, n_samples=2)
    train(opt, params, a, 3)
    feed(opt, coupled(params, a))  # pending at the time of the checkpoint
    if way == "state_dict":
        buffer = io.BytesIO()
        torch.save({"opt": opt.state_dict(), "params": params}, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        twin_params = [nn.Parameter(p.detach().clone()) for p in saved["params"]]
        twin = make(kind, twin_params, update_each=2, n_samples=2, seed=99)
        twin.load_state_dict(saved["opt"])
    else:
        twin, twin_params = (
            copy.deepcopy((opt, params)) if way == "deepcopy" else pickle.loads(pickle.dumps((opt, params)))
        )
    train(opt, params, a, 5)
    train(twin, twin_params, a, 5)
    for p, q in zip(params, twin_params):
        assert torch.equal(p, q)
        assert torch.equal(curvature(opt, p), curvature(twin, q))
    assert opt.missed_updates == twin.missed_updates


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_without_our_key_loads_with_one_warning(kind):
    params, a = make_params(), coefficients()
    opt = make(kind, params)
    train(opt, params, a, 2)
    plain = opt.state_dict()
    assert "steepest" in plain
    del plain["steepest"]
    other = make(kind, make_params())
    with pytest.warns(SteepestWarning) as seen:
        other.load_state_dict(plain)
    assert len(seen) == 1
    assert other.hessian_due()


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_run(kind):
    ends = []
    for seed in (1, 1, 2):
        params, a = make_params(), coefficients()
        opt = make(kind, params, seed=seed)
        train(opt, params, a, 4)
        ends.append(torch.cat([curvature(opt, p).reshape(-1) for p in params]))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2]) == (kind == "sophia-g")  # G draws nothing itself


@pytest.mark.parametrize("kind", ["adahessian", "sophia-h"])
def test_a_generator_can_be_given(kind):
    ends = []
    for options in ({"seed": 3}, {"seed": None, "generator": torch.Generator().manual_seed(3)}):
        params, a = make_params(), coefficients()
        train(make(kind, params, **options), params, a, 3)
        ends.append(torch.cat([p.detach().reshape(-1) for p in params]))
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match="seed"):
        make(kind, make_params(), seed=3, generator=torch.Generator())


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_added_in_the_middle_of_a_run(kind):
    params, a = make_params(), coefficients()
    opt = make(kind, params[:3], update_each=4)
    train(opt, params[:3], a[:3], 2)
    assert not opt.hessian_due()
    opt.add_param_group({"params": params[3:], "lr": 0.02})
    assert opt.hessian_due()
    before = [p.detach().clone() for p in params]
    train(opt, params, a, 2)
    assert not any(torch.equal(p, q) for p, q in zip(params, before))


# ----------------------------------------------------------------------------------------- mixed precision, attention


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_scaler_step_keeps_the_pending_estimate(kind):
    p = nn.Parameter(torch.ones(3))
    opt = make(kind, [p], betas=(0.9, 0.5))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def attempt(factor: float) -> None:
        opt.zero_grad()
        scaler.scale(factor * (p**4).sum()).backward()
        scaler.step(opt)
        scaler.update()

    feed(opt, (p**4).sum() / 12)
    attempt(float("inf"))
    assert len(opt.state) == 0
    attempt(1.0)
    h = {"adahessian": 1.0, "sophia-h": 1.0, "sophia-g": 4 / 9}[kind]
    torch.testing.assert_close(curvature(opt, p), torch.full((3,), 0.5 * h))


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_estimates_are_kept_in_float32(kind):
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(6, 3)
    x, y = torch.randn(32, 6, generator=g), torch.randint(3, (32,), generator=g)
    wanted, got = [], []
    for half, results in ((False, wanted), (True, got)):
        opt = make(kind, model.parameters(), lr=0.0, betas=(0.0, 0.0))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x), y)
        feed(opt, loss)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opt.step()
        results.extend(curvature(opt, p) for p in model.parameters())
    for a, b in zip(wanted, got):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1 * float(a.abs().max()))


@pytest.mark.parametrize("kind", ["adahessian", "sophia-h"])
def test_fused_attention_is_named_with_its_cure(kind):
    q = nn.Parameter(torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0)))
    opt = make(kind, [q])

    def loss() -> Tensor:
        return F.scaled_dot_product_attention(q, q, q, is_causal=True).square().sum()

    with pytest.raises(RuntimeError, match=r"sdpa_kernel\(SDPBackend\.MATH\).*Sophia"):
        opt.update_hessian(loss)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        opt.update_hessian(loss)
    feed(make("sophia-g", [q]), loss)


# ----------------------------------------------------------------------------------------------------- many processes


@pytest.fixture
def one_rank_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=60))
    yield
    dist.destroy_process_group()


def test_sharded_parameters_work_with_g_only(one_rank_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    full = torch.linspace(0.5, 2.0, 12).reshape(4, 3)
    for kind in ("adahessian", "sophia-h"):
        p = nn.Parameter(distribute_tensor(full, mesh, [Shard(0)]))
        with pytest.raises(NotImplementedError, match="DTensor"):
            make(kind, [p]).update_hessian((p**2).sum())
    p, q = nn.Parameter(distribute_tensor(full, mesh, [Shard(0)])), nn.Parameter(full.clone())
    for x in (p, q):
        opt = make("sophia-g", [x], hessian_grad_clip=1.0)
        for _ in range(2):
            opt.zero_grad()
            loss = (x**2).sum()
            loss.backward()
            opt.update_hessian(batch_size=5)
            opt.step()
    torch.testing.assert_close(p.full_tensor(), q)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    ends = {}
    for kind in KINDS:
        params, a = make_params(), coefficients(10 + rank)
        opt = make(kind, params, process_group="default", betas=(0.9, 0.5), update_each=2)
        for _ in range(3):
            loss = coupled(params, a)
            if opt.hessian_due():
                opt.update_hessian(
                    loss, **({} if kind == "adahessian" else {"batch_size": 3 + rank}), retain_graph=True
                )
            opt.zero_grad()
            loss.backward()
            for p in params:  # what DistributedDataParallel does
                dist.all_reduce(p.grad)
                p.grad /= 2
            opt.step()
        ends[kind] = {
            "params": [p.detach() for p in params],
            "curvature": [curvature(opt, p) for p in params],
            "generator": opt.state_dict()["steepest"],
        }
    torch.save(ends, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("ranks"))
    torch.multiprocessing.start_processes(_rank, (folder,), nprocs=2, start_method="fork")
    return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_hold_bit_equal_states_that_one_process_reproduces(kind, two_ranks):
    """Hutchinson estimates are averaged; gradients of G are averaged before squaring, with B summed."""
    for name in ("params", "curvature"):
        assert all(torch.equal(x, y) for x, y in zip(*(r[kind][name] for r in two_ranks)))
    params, a = make_params(), [coefficients(10 + rank) for rank in range(2)]
    opt = make(kind, params, betas=(0.9, 0.5), update_each=2)
    probes = [make(kind, params, seed=rank) for rank in range(2)]  # seed + rank
    for _ in range(3):
        if opt.hessian_due() and kind == "sophia-g":
            for rank in range(2):
                opt.update_hessian(coupled(params, a[rank]), batch_size=3 + rank, weight=0.5)
        elif opt.hessian_due():
            for rank in range(2):
                opt._generator.set_state(probes[rank]._generator.get_state())
                opt.update_hessian(coupled(params, a[rank]), weight=0.5)
                probes[rank]._generator.set_state(opt._generator.get_state())
        opt.zero_grad()
        (0.5 * (coupled(params, a[0]) + coupled(params, a[1]))).backward()
        opt.step()
    for p, q, h in zip(params, two_ranks[0][kind]["params"], two_ranks[0][kind]["curvature"]):
        torch.testing.assert_close(p.detach(), q, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(curvature(opt, p), h, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize("kind", KINDS)
def test_losses_that_cannot_work(kind):
    p = nn.Parameter(torch.ones(3))
    opt = make(kind, [p])
    with pytest.raises(ValueError, match="loss must be"):
        feed(opt, p.square())
    with pytest.raises(ValueError, match="loss must be"):
        feed(opt, torch.tensor(1.0))
    with pytest.raises(TypeError, match="loss"):
        feed(opt, 3.0)
    with pytest.raises(TypeError, match="loss"):
        feed(opt, lambda: 3.0)
    with pytest.raises(ValueError, match=r"loss must .*parameter"):
        feed(opt, nn.Parameter(torch.ones(2)).sum())
    for weight in (0.0, -1.0):
        with pytest.raises(ValueError, match="weight must be > 0"):
            feed(opt, p.sum(), weight=weight)


def test_a_process_group_needs_torch_distributed():
    with pytest.raises(RuntimeError, match="init_process_group"):
        make("adahessian", make_params(), process_group="default")


def test_create_graph_and_explicit_estimate_in_one_step_count_once():
    """With an estimate already pending, gradients that carry a graph are only detached."""
    params, a = make_params(), coefficients()
    opt = make("adahessian", params)
    loss = coupled(params, a)
    opt.update_hessian(loss, retain_graph=True)
    backward(loss, create_graph=True)
    opt.step()
    assert {float(opt.state[p]["hessian_step"]) for p in params} == {1.0}
    assert not any(p.grad.requires_grad for p in params)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_step_folds_every_estimate(kind):
    """The branches on pending estimates are taken anew in each step, and what was folded is cleared."""
    runs = []
    for compiled in (False, True):
        params, a = make_params(), coefficients()
        opt = make(kind, params, update_each=2, capturable=True, betas=(0.9, 0.8))
        torch._dynamo.reset()
        step = torch.compile(lambda opt=opt: opt.step(), backend="eager", fullgraph=True) if compiled else opt.step
        for t in range(6):
            loss = coupled(params, a)
            if opt.hessian_due():
                feed(opt, loss, retain_graph=True)
            opt.zero_grad()
            loss.backward()
            step() if t else opt.step()
        runs.append([*params, *(curvature(opt, p) for p in params)])
    torch._dynamo.reset()
    for x, y in zip(*runs):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------------------------------- what every optimizer owes


def give_hutchinson(opt, loss_fn) -> None:
    if opt.hessian_due():
        opt.update_hessian(loss_fn)


def give_gnb(opt, loss_fn) -> None:
    if opt.hessian_due():
        opt.update_hessian(loss_fn, batch_size=5)


CASES = [
    Case("adahessian", AdaHessian, give_hutchinson, ddp={"process_group": "default"}, options={"lr": 0.01, "seed": 3}),
    Case(
        "adahessian-blocks",
        AdaHessian,
        give_hutchinson,
        ddp={"process_group": "default"},
        options={"lr": 0.01, "seed": 3, "block": 4, "hessian_power": 0.7, "weight_decay": 0.1, "update_each": 2},
    ),
    Case("sophia-g", Sophia, give_gnb, ddp={"process_group": "default"}, options={"lr": 0.01, "update_each": 2}),
    Case(
        "sophia-h",
        Sophia,
        give_hutchinson,
        ddp={"process_group": "default"},
        options={"lr": 0.01, "seed": 3, "estimator": "hutchinson", "gamma": 1.0, "update_each": 3},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("check", OPTIMIZER_CHECKS, ids=lambda check: check.__name__)
def test_contract(check, case):
    check(case)


@pytest.mark.slow
def test_two_processes_keep_the_contract():
    check_two_processes(CASES)
