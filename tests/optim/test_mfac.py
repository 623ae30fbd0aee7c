"""MFAC against the update written out in dense float64 algebra, and its promises as an optimizer."""

import copy
import io
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from steepest.optim import MFAC, mfac_prune
from tests import processes
from tests.optim.check_optimizer import OPTIMIZER_CHECKS, Case, check_two_processes


def gen(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def tensors(*shapes, seed=0):
    return [randn(*shape, seed=seed + i).requires_grad_() for i, shape in enumerate(shapes)]


def set_gradients(params, step, seed=1000):
    for i, p in enumerate(params):
        p.grad = randn(*p.shape, seed=seed + 50 * step + i).to(p.dtype)


def flat(params):
    return torch.cat([p.detach().flatten() for p in params])


class Reference:
    """The paper's step with a dense Fisher matrix."""

    def __init__(self, w, lr, momentum, weight_decay, window, damping, normalize="window"):
        self.w, self.lr, self.beta, self.decay = w.clone(), lr, momentum, weight_decay
        self.window, self.damping, self.normalize = window, damping, normalize
        self.rows, self.v = [], torch.zeros_like(w)

    def step(self, gradient):
        g = gradient + self.decay * self.w
        self.rows = [*self.rows, g][-self.window :]
        G = torch.stack(self.rows)
        m = self.window if self.normalize == "window" else len(G)
        fisher = G.T @ G / m + self.damping * torch.eye(len(g), dtype=torch.float64)
        u = torch.linalg.solve(fisher, g)
        self.v = self.beta * self.v + (1 - self.beta) * u
        self.w = self.w - self.lr * self.v


SHAPES = [(3, 4), (4,), (2, 2, 3)]


# ------------------------------------------------------------------------------------------------------ exact


@pytest.mark.parametrize("normalize", ["window", "count"])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.1)])
@pytest.mark.parametrize("window", [1, 4, 20])
def test_steps_are_the_papers(window, momentum, weight_decay, normalize):
    params = tensors(*SHAPES)
    optimizer = MFAC(params, 0.05, momentum, weight_decay, window, 1e-2, normalize=normalize)
    reference = Reference(flat(params), 0.05, momentum, weight_decay, window, 1e-2, normalize)
    for step in range(12):
        set_gradients(params, step)
        reference.step(torch.cat([p.grad.flatten() for p in params]))
        optimizer.step()
        torch.testing.assert_close(flat(params), reference.w, rtol=1e-9, atol=1e-11)


def test_damping_may_change_between_steps():
    (p,) = tensors((5,))
    optimizer = MFAC([p], 0.1, window=3, damping=0.1)
    reference = Reference(flat([p]), 0.1, 0.0, 0.0, 3, 0.1)
    for step, damping in enumerate((0.1, 0.02, 3.0, 3.0)):
        optimizer.damping = reference.damping = damping
        set_gradients([p], step)
        reference.step(p.grad)
        optimizer.step()
        torch.testing.assert_close(flat([p]), reference.w, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="damping must be"):
        optimizer.damping = 0.0


def test_defaults_are_those_of_the_official_code():
    optimizer = MFAC([torch.zeros(2, requires_grad=True)])
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-3, 0.0, 0.0)
    assert (optimizer.window, optimizer.damping, optimizer.fisher.normalize) == (1024, 1e-5, "window")


def test_one_window_spans_groups_and_settings_are_per_group():
    a, b = tensors((3,), (4,))
    w = flat([a, b])
    groups = [{"params": [a], "lr": 0.1}, {"params": [b], "weight_decay": 0.3, "momentum": 0.6}]
    optimizer = MFAC(groups, lr=0.02, window=5, damping=0.1)
    rows, v = [], torch.zeros(4, dtype=torch.float64)
    for step in range(7):
        set_gradients([a, b], step)
        g = torch.cat([a.grad, b.grad + 0.3 * w[3:]])
        rows = [*rows, g][-5:]
        G = torch.stack(rows)
        u = torch.linalg.solve(G.T @ G / 5 + 0.1 * torch.eye(7, dtype=torch.float64), g)
        v = 0.6 * v + 0.4 * u[3:]
        w = w - torch.cat([0.1 * u[:3], 0.02 * v])
        optimizer.step()
        torch.testing.assert_close(flat([a, b]), w, rtol=1e-9, atol=1e-11)


def test_a_parameter_without_gradient_contributes_zeros_and_stays():
    a, b = tensors((3,), (2,))
    optimizer = MFAC([a, b], 0.1, weight_decay=0.5, window=4, damping=0.1)
    set_gradients([a, b], 0)
    optimizer.step()
    before = b.detach().clone()
    set_gradients([a], 1)
    b.grad = None
    optimizer.step()
    assert torch.equal(b, before)
    newest = optimizer.fisher.grads()[-1]
    assert torch.equal(newest[3:], torch.zeros(2, dtype=torch.float64))
    frozen = torch.ones(2)
    idle = MFAC([frozen, torch.ones(1, requires_grad=True)], window=2)
    idle.step()
    assert idle.fisher.count == 0
    assert not idle.state


def test_update_is_bounded():
    """|u| <= sqrt(m / damping) / 2 for any gradient."""
    for scale in (1e-6, 1e-2, 0.2, 1.0, 1e4):
        (p,) = tensors((6,))
        start = p.detach().clone()
        optimizer = MFAC([p], 1.0, window=16, damping=1e-2)
        p.grad = scale * randn(6, seed=9)
        optimizer.step()
        assert float((p.detach() - start).norm()) <= math.sqrt(16 / 1e-2) / 2 * (1 + 1e-12)


def test_masked_weights_take_no_part():
    dense = tensors((3, 4), (5,))
    masks = [torch.rand(3, 4, generator=gen(1)) > 0.4, None]
    kept = torch.cat([masks[0].flatten(), torch.ones(5, dtype=torch.bool)])
    start = flat(dense)
    optimizer = MFAC(dense, 0.1, 0.5, 0.2, window=6, damping=0.05, mask=masks)
    reference = Reference(start[kept], 0.1, 0.5, 0.2, 6, 0.05)
    for step in range(8):
        set_gradients(dense, step)
        reference.step(torch.cat([p.grad.flatten() for p in dense])[kept])
        optimizer.step()
    assert optimizer.fisher.d == int(kept.sum())
    torch.testing.assert_close(flat(dense)[kept], reference.w, rtol=1e-9, atol=1e-11)
    assert torch.equal(flat(dense)[~kept], start[~kept])


def test_sparse_leaves_zeros_out_for_ever():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(4, 6, generator=gen(i)), torch.randint(3, (4,), generator=gen(i))) for i in range(20)]
    result = mfac_prune(model, data, F.cross_entropy, 0.6, damping=1e-2)
    twin = copy.deepcopy(model)
    by_mask = MFAC(twin.named_parameters(), 0.1, window=8, damping=1e-2, mask=result.mask)
    optimizer = MFAC(model.parameters(), 0.1, window=8, damping=1e-2, sparse=True)
    for network, opt in ((model, optimizer), (twin, by_mask)):
        for x, y in data:
            opt.zero_grad()
            F.cross_entropy(network(x), y).backward()
            opt.step()
    for name, mask in result.mask.items():
        assert bool((model.get_parameter(name)[~mask] == 0).all())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    assert optimizer.fisher.d == sum(p.numel() for p in model.parameters()) - int(
        sum((~m).sum() for m in result.mask.values())
    )


# ------------------------------------------------------------------------------------------------- as an optimizer


def make(params, **options):
    return MFAC(params, **({"lr": 0.05, "momentum": 0.5, "window": 4, "damping": 0.1} | options))


CASE = Case("MFAC", make, paths=False, native=False)


@pytest.mark.parametrize("check", OPTIMIZER_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(CASE)


@pytest.mark.slow
def test_two_processes():
    check_two_processes([CASE, Case("sharded MFAC", make, paths=False, native=False, ddp={"process_group": "default"})])


def test_maximize_is_minimizing_the_negative():
    up, down = tensors(*SHAPES), tensors(*SHAPES)
    a, b = MFAC(up, 0.1, 0.9, window=4, damping=0.1, maximize=True), MFAC(down, 0.1, 0.9, window=4, damping=0.1)
    for step in range(6):
        set_gradients(up, step)
        for p, q in zip(up, down):
            q.grad = -p.grad
        a.step()
        b.step()
    assert torch.equal(flat(up), flat(down))


def test_gradients_and_storage_are_left_alone():
    p = torch.randn(8, 3, 4, 4, generator=gen(0)).to(memory_format=torch.channels_last).requires_grad_()
    base = torch.randn(10, 6, generator=gen(1))
    view = base[2:8, ::2].requires_grad_()
    flat_p = p.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    flat_view = view.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    optimizer = MFAC([p, view], 0.1, 0.9, 0.01, window=3, damping=0.1)
    twin = MFAC([flat_p, flat_view], 0.1, 0.9, 0.01, window=3, damping=0.1)
    pointers = (p.data_ptr(), view.data_ptr(), p.stride(), view.stride())
    for step in range(5):
        for a, b in ((p, flat_p), (view, flat_view)):
            b.grad = randn(*b.shape, seed=step).float()
            a.grad = torch.empty_like(a).copy_(b.grad)
        before = [p.grad.clone(), view.grad.clone()]
        optimizer.step()
        twin.step()
        assert torch.equal(p.grad, before[0])
        assert torch.equal(view.grad, before[1])
    assert pointers == (p.data_ptr(), view.data_ptr(), p.stride(), view.stride())
    assert torch.equal(p.contiguous(), flat_p)
    assert torch.equal(view, flat_view)
    assert optimizer.state[p]["momentum_buffer"].stride() == p.stride()


@pytest.mark.parametrize("steps", [2, 9])
@pytest.mark.parametrize("history_dtype", [None, torch.bfloat16])
def test_a_stopped_run_continues_bit_equal(tmp_path, steps, history_dtype):
    def fresh(params):
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.01, "weight_decay": 0.1}]
        return MFAC(groups, 0.1, 0.9, window=4, damping=0.1, sparse=True, history_dtype=history_dtype)

    params = [p.detach().float().requires_grad_() for p in tensors(*SHAPES)]
    params[0].data[0, 0] = 0
    optimizer = fresh(params)
    for step in range(steps):
        set_gradients(params, step)
        optimizer.step()
    torch.save({"opt": optimizer.state_dict(), "w": [p.detach() for p in params]}, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)

    others = [torch.ones_like(p).requires_grad_() for p in params]  # the zero is not there when the mask is made
    resumed = fresh(others)
    for p, w in zip(others, saved["w"]):
        p.data.copy_(w)
    resumed.load_state_dict(saved["opt"])
    clone = copy.deepcopy(optimizer)
    cloned = [p for g in clone.param_groups for p in g["params"]]
    for step in range(steps, steps + 6):
        for network, opt in ((params, optimizer), (others, resumed), (cloned, clone)):
            set_gradients(network, step)
            opt.step()
    assert torch.equal(flat(params), flat(others))
    assert torch.equal(flat(params), flat(cloned))
    assert params[0][0, 0] == 0
    assert optimizer.n_steps == resumed.n_steps == steps + 6
    assert isinstance(repr(optimizer), str)


def test_pickling():
    import pickle

    params = tensors((3,))
    optimizer = MFAC(params, 0.1, window=3, damping=0.1)
    set_gradients(params, 0)
    optimizer.step()
    other = pickle.loads(pickle.dumps(optimizer))
    assert torch.equal(other.fisher.grads(), optimizer.fisher.grads())


def test_a_checkpoint_without_a_window_starts_a_fresh_one():
    params = tensors((3,))
    optimizer = MFAC(params, 0.1, window=3, damping=0.1)
    set_gradients(params, 0)
    optimizer.step()
    plain = {k: v for k, v in optimizer.state_dict().items() if k != "steepest"}
    with pytest.warns(UserWarning, match="no key 'steepest'"):
        optimizer.load_state_dict(plain)
    assert optimizer.fisher.count == 0


def test_groups_can_be_added_in_the_middle():
    a, b = tensors((3,), (4,))
    w = flat([a, b])
    optimizer = MFAC([a], 0.1, window=3, damping=0.1)
    rows = []
    for step in range(6):
        if step == 2:
            optimizer.add_param_group({"params": [b]})
        set_gradients([a, b], step)
        g = torch.cat([a.grad, b.grad if step >= 2 else torch.zeros(4, dtype=torch.float64)])
        rows = [*rows, g][-3:]
        G = torch.stack(rows)
        w = w - 0.1 * torch.linalg.solve(G.T @ G / 3 + 0.1 * torch.eye(7, dtype=torch.float64), g)
        optimizer.step()
        torch.testing.assert_close(flat([a, b]), w, rtol=1e-9, atol=1e-11)


def test_closure_scheduler_and_tensor_learning_rate():
    (p,) = tensors((4,))
    optimizer = MFAC([p], torch.tensor(0.1), window=3, damping=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    scheduler.step()
    second = optimizer.step(closure)
    assert second.item() < first.item()
    assert math.isclose(float(optimizer.param_groups[0]["lr"]), 0.05, rel_tol=1e-6)


def test_a_gradient_that_carries_a_graph_is_detached():
    (p,) = tensors((4,))
    optimizer = MFAC([p], 0.1, window=3, damping=0.1)
    (p.grad,) = torch.autograd.grad(p.pow(3).sum(), p, create_graph=True)
    values = p.grad.detach().clone()
    optimizer.step()
    assert not p.grad.requires_grad
    assert torch.equal(p.grad, values)


def test_a_gradient_that_is_not_finite_stays_out_of_the_window():
    params = tensors((3,), (2,))
    optimizer = MFAC(params, 0.1, window=4, damping=0.1)
    set_gradients(params, 0)
    optimizer.step()
    window = optimizer.fisher.grads()
    set_gradients(params, 1)
    params[1].grad[0] = math.nan
    optimizer.step()
    assert torch.equal(optimizer.fisher.grads(), window)
    assert optimizer.dropped_estimates == 1
    assert bool(params[1].isnan().any())  # applied, as AdamW would: the caller's scaler decides


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precision_of_parameters_and_history(dtype):
    exact = tensors(*SHAPES)
    params = [p.detach().to(dtype).requires_grad_() for p in exact]
    kind = dtype if dtype != torch.float32 else torch.bfloat16
    optimizer = MFAC(params, 0.05, 0.5, window=4, damping=0.1, history_dtype=kind)
    reference = MFAC(exact, 0.05, 0.5, window=4, damping=0.1)
    for step in range(6):
        set_gradients(exact, step)
        for p, q in zip(params, exact):
            p.grad = q.grad.to(dtype)
        optimizer.step()
        reference.step()
    assert optimizer.fisher.dtype == kind
    assert all(p.dtype == dtype for p in params)
    torch.testing.assert_close(flat(params).double(), flat(exact), rtol=0.05, atol=0.05)


def test_memory_stays_level():
    params = [torch.randn(300, 100, generator=gen(0)).requires_grad_()]
    optimizer = MFAC(params, 1e-3, window=4, damping=0.1)
    history = optimizer.fisher._G.data_ptr()
    for step in range(6):
        params[0].grad = torch.randn(300, 100, generator=gen(step))
        optimizer.step()
    assert optimizer.fisher._G.data_ptr() == history


def test_digits_are_learned():
    from steepest.studies.images import digits, mlp

    data = digits(300).flat()
    torch.manual_seed(0)
    model = mlp()
    optimizer = MFAC(model.parameters(), 0.1, 0.9, window=32, damping=1e-3)
    for step in range(120):
        rows = torch.randint(300, (32,), generator=gen(step))
        optimizer.zero_grad()
        F.cross_entropy(model(data.x_train[rows]), data.y_train[rows]).backward()
        optimizer.step()
    assert float((model(data.x_test).argmax(1) == data.y_test).float().mean()) > 0.8


# ------------------------------------------------------------------------------------------------------ processes


def _replicated(rank, world, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    params = tensors(*SHAPES)
    optimizer = MFAC(params, 0.05, 0.5, 0.1, window=4, damping=0.1, process_group="default")
    late = tensors((3,), seed=77)
    for step in range(9):
        if step == 5:
            optimizer.add_param_group({"params": late})
        set_gradients(params + late, step)
        optimizer.step()
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    torch.save((flat(params + late), optimizer.fisher.d), f"{out}{rank}.pt")
    from torch.distributed.fsdp import fully_shard

    model = shardable()
    fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (world,)))
    sharded = MFAC(model.parameters(), 0.05, 0.5, window=4, damping=0.1)
    for step in range(6):
        sharded.zero_grad()
        model(randn(8, 5, seed=step)).square().mean().backward()
        sharded.step()
    whole = torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])
    torch.save((whole, sharded.fisher.d), f"{out}s{rank}.pt")
    dist.destroy_process_group()


def shardable():
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    for i, p in enumerate(model.parameters()):
        p.data = randn(*p.shape, seed=i)
    return model


@pytest.mark.slow
def test_columns_shard_over_processes(tmp_path):
    processes.on_two_ranks(_replicated, 2, tmp_path / "store", str(tmp_path / "r"))
    params, late = tensors(*SHAPES), tensors((3,), seed=77)
    optimizer = MFAC(params, 0.05, 0.5, 0.1, window=4, damping=0.1)
    for step in range(9):
        if step == 5:
            optimizer.add_param_group({"params": late})
        set_gradients(params + late, step)
        optimizer.step()
    (w0, d0), (w1, d1) = (torch.load(tmp_path / f"r{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(w0, w1)
    assert d0 + d1 == optimizer.fisher.d
    assert abs(d0 - d1) <= 2
    torch.testing.assert_close(w0, flat(params + late), rtol=1e-10, atol=1e-12)

    model = shardable()
    single = MFAC(model.parameters(), 0.05, 0.5, window=4, damping=0.1)
    for step in range(6):
        single.zero_grad()
        model(randn(8, 5, seed=step)).square().mean().backward()
        single.step()
    (s0, e0), (s1, e1) = (torch.load(tmp_path / f"rs{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(s0, s1)
    assert e0 + e1 <= single.fisher.d + 1
    torch.testing.assert_close(s0, flat(model.parameters()), rtol=1e-9, atol=1e-11)


# --------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"lr": -1.0}, ValueError, "lr must be"),
        ({"momentum": 1.0}, ValueError, "momentum must be"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be"),
        ({"window": 0}, ValueError, "window must be"),
        ({"damping": 0.0}, ValueError, "damping must be"),
        ({"damping": math.inf}, ValueError, "damping must be"),
        ({"normalize": "all"}, ValueError, "normalize must be"),
        ({"sparse": 1}, TypeError, "sparse must be"),
        ({"sparse": True, "mask": [None, None]}, ValueError, "explicit mask"),
        ({"mask": [None]}, ValueError, "one entry for each of the 2 parameters"),
        ({"mask": [torch.ones(3), None]}, TypeError, "bool tensors"),
        ({"mask": [torch.ones(2, dtype=torch.bool), None]}, ValueError, "of shape"),
        ({"mask": {"w": torch.ones(3, dtype=torch.bool)}}, ValueError, "named_parameters"),
        ({"history_dtype": torch.int8}, ValueError, "dtype must be"),
        ({"process_group": "default"}, RuntimeError, "init_process_group"),
    ],
)
def test_bad_options(options, kind, text):
    with pytest.raises(kind, match=text):
        MFAC(tensors((3,), (2,)), **options)


def test_bad_parameters_and_gradients():
    with pytest.raises(ValueError, match="parameter 0 of group 0"):
        MFAC([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(ValueError, match="mask must be for parameters among w"):
        MFAC([("w", torch.zeros(2, requires_grad=True))], mask={"v": torch.ones(2, dtype=torch.bool)})
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = MFAC(embedding.parameters(), window=2)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()


def test_a_window_that_does_not_fit_says_how_many_bytes_it_needs():
    p = torch.empty(1).expand(10**12).requires_grad_()
    with pytest.raises(MemoryError, match="4,096,000,000,000,000 bytes"):
        MFAC([p])


def test_damping_below_rounding_is_said():
    (p,) = tensors((20,))
    p = p.detach().float().requires_grad_()
    optimizer = MFAC([p], window=16, damping=1e-30)
    direction = randn(20, seed=3).float()

    def run():
        for step in range(16):
            p.grad = direction * (1 + step)
            optimizer.step()

    with pytest.raises(torch.linalg.LinAlgError, match="damping"):
        run()
