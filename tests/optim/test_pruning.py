"""mfac_prune against dense float64 solutions of the surgeon's problem."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steepest.optim import apply_mask, keep_mask, mfac_prune
from steepest.optim.pruning import joint_move, surgeon

DAMPING = 1e-2


def gen(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def network(seed=0, batch_norm=False, dropout=False):
    layers = [nn.Linear(6, 8), nn.Tanh()]
    if batch_norm:
        layers.append(nn.BatchNorm1d(8))
    if dropout:
        layers.append(nn.Dropout(0.5))
    model = nn.Sequential(*layers, nn.Linear(8, 3)).double()
    for i, p in enumerate(model.parameters()):
        p.data = randn(*p.shape, seed=100 * seed + i)
    return model


def batches(n=20, size=4):
    x, y = randn(n * size, 6, seed=50), torch.randint(3, (n * size,), generator=gen(51))
    return list(zip(x.split(size), y.split(size)))


def weights_of(model):
    return torch.cat([model[0].weight.detach().flatten(), model[-1].weight.detach().flatten()])


def gradients_of(model, data):
    rows = []
    for x, y in data:
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), [model[0].weight, model[-1].weight])
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


def dense(G, damping, block_size=None):
    Fisher = G.T @ G / len(G)
    if block_size:
        where = torch.arange(len(Fisher)) // block_size
        Fisher = Fisher * (where[:, None] == where)
    return Fisher + damping * torch.eye(len(Fisher), dtype=torch.float64)


def best_move(Fisher, w, removed):
    """min 1/2 dw F dw with dw_Q = -w_Q, by its dense normal equations."""
    kept = [i for i in range(len(w)) if i not in set(removed.tolist())]
    dw = torch.zeros_like(w)
    dw[removed] = -w[removed]
    dw[kept] = torch.linalg.solve(Fisher[kept][:, kept], Fisher[kept][:, removed] @ w[removed])
    return dw


# ------------------------------------------------------------------------------------------------------ exact


@pytest.mark.parametrize("block_size", [None, 1, 7, 16, 40, 100])
@pytest.mark.parametrize("m", [1, 5, 60])
def test_joint_move_solves_the_constrained_problem(m, block_size):
    G, w = randn(m, 40), randn(40, seed=1)
    removed = torch.randperm(40, generator=gen(2))[:23]
    dw = joint_move(G, w, removed, DAMPING, block_size)
    dw[removed] = -w[removed]
    want = best_move(dense(G, DAMPING, block_size), w, removed)
    assert float((dw - want).norm() / want.norm()) <= 1e-10


def test_joint_cost_has_the_closed_form():
    """1/2 dw F dw = damping/2 (|w_Q|^2 + (G_Q w_Q)^T K^{-1} (G_Q w_Q)), and no other move costs less."""
    G, w, m = randn(9, 30), randn(30, seed=1), 9
    removed = torch.arange(0, 30, 3)
    Fisher = dense(G, DAMPING)
    dw = best_move(Fisher, w, removed)
    kept = torch.ones(30, dtype=torch.bool)
    kept[removed] = False
    K = G[:, kept] @ G[:, kept].T + m * DAMPING * torch.eye(m, dtype=torch.float64)
    a = G[:, removed] @ w[removed]
    closed = DAMPING / 2 * (w[removed].square().sum() + a @ torch.linalg.solve(K, a))
    assert math.isclose(float(dw @ Fisher @ dw / 2), float(closed), rel_tol=1e-10)
    for correction in ("independent", "none"):
        _, other = surgeon(G, w, 10, DAMPING, None, "mfac", correction)
        removed, mine = surgeon(G, w, 10, DAMPING, None, "mfac", "joint")
        assert float(mine @ Fisher @ mine) <= float(other @ Fisher @ other)


@pytest.mark.parametrize("block_size", [None, 13])
@pytest.mark.parametrize("correction", ["joint", "independent", "none"])
@pytest.mark.parametrize("score", ["mfac", "diagonal", "magnitude"])
def test_one_step_against_dense_algebra(score, correction, block_size):
    model, data = network(), batches()
    w, G = weights_of(model), gradients_of(model, data)
    Fisher = dense(G, DAMPING, block_size)
    inverse = torch.linalg.inv(Fisher)
    cost = {"mfac": w**2 / inverse.diag(), "diagonal": w**2 * dense(G, DAMPING).diag(), "magnitude": w.abs()}[score]
    removed = cost.argsort()[:43]
    if correction == "joint":
        dw = best_move(Fisher, w, removed)
    else:
        dw = torch.zeros_like(w)
        if correction == "independent":
            for p in removed:
                dw -= w[p] / inverse[p, p] * inverse[:, p]
        dw[removed] = -w[removed]
    options = {"damping": DAMPING, "score": score, "correction": correction, "block_size": block_size}
    result = mfac_prune(model, data, F.cross_entropy, 43 / 72, **options)
    torch.testing.assert_close(weights_of(model), w + dw, rtol=1e-9, atol=1e-11)
    assert math.isclose(result.predicted_increase, float(dw @ Fisher @ dw / 2), rel_tol=1e-9)
    mask = torch.cat([result.mask["0.weight"].flatten(), result.mask["2.weight"].flatten()])
    assert torch.equal((~mask).nonzero()[:, 0], removed.sort().values)
    assert (result.n_grads_used, result.success, result.nit) == (20, True, 1)


def test_a_single_weight_moves_the_others_as_the_surgeon_says():
    model, data = network(), batches()
    w, G = weights_of(model), gradients_of(model, data)
    inverse = torch.linalg.inv(dense(G, DAMPING))
    p = int((w**2 / inverse.diag()).argmin())
    for correction in ("joint", "independent"):
        other = copy.deepcopy(model)
        result = mfac_prune(other, data, F.cross_entropy, 1 / 72, damping=DAMPING, correction=correction)
        want = w - w[p] / inverse[p, p] * inverse[:, p]
        want[p] = 0
        torch.testing.assert_close(weights_of(other), want, rtol=1e-9, atol=1e-12)
        assert math.isclose(result.predicted_increase, float(w[p] ** 2 / inverse[p, p] / 2), rel_tol=1e-9)


def test_moving_the_others_costs_less_than_zeroing():
    G, w = randn(12, 10), randn(10, seed=1)
    H = dense(G, DAMPING)
    for score in ("mfac", "diagonal", "magnitude"):
        removed, dw = surgeon(G, w, 4, DAMPING, None, score, "joint")
        zeroing = torch.zeros_like(w)
        zeroing[removed] = -w[removed]
        assert float(dw @ H @ dw) < float(zeroing @ H @ zeroing)


def test_densities_are_geometric():
    result = mfac_prune(network(), batches(), F.cross_entropy, 0.9, damping=DAMPING, recompute=5)
    kept = [round(72 * (7 / 72) ** (j / 5)) for j in range(1, 6)]
    assert [round((1 - s) * 72) for s in result.history] == kept == [45, 28, 18, 11, 7]


def test_recomputing_is_pruning_in_steps():
    model, by_hand = network(), network()
    result = mfac_prune(model, batches(), F.cross_entropy, 0.8, damping=DAMPING, recompute=3)
    mask, predicted = None, 0.0
    for sparsity in result.history:
        step = mfac_prune(by_hand, batches(), F.cross_entropy, sparsity, damping=DAMPING, mask=mask)
        mask, predicted = step.mask, predicted + step.predicted_increase
    assert torch.equal(weights_of(model), weights_of(by_hand))
    assert math.isclose(result.predicted_increase, predicted, rel_tol=1e-12)


def test_removed_weights_are_excluded_from_the_gradients():
    """The second step equals the surgeon on the columns that are left, dense."""
    model, data = network(), batches()
    first = mfac_prune(model, data, F.cross_entropy, 0.5, damping=DAMPING)
    keep = torch.cat([first.mask[k].flatten() for k in ("0.weight", "2.weight")])
    w, G = weights_of(model), gradients_of(model, data)[:, keep]
    Fisher = dense(G, DAMPING)
    inside = w[keep]
    removed = (inside**2 / torch.linalg.inv(Fisher).diag()).argsort()[: 36 - 14]
    want = torch.zeros_like(w)
    want[keep] = inside + best_move(Fisher, inside, removed)
    mfac_prune(model, data, F.cross_entropy, 58 / 72, damping=DAMPING, mask=first.mask)
    torch.testing.assert_close(weights_of(model), want, rtol=1e-9, atol=1e-11)


def test_per_sample_gradients_are_the_batches_of_one():
    a, b = network(), network()
    whole = [(torch.cat([x for x, _ in batches()]), torch.cat([y for _, y in batches()]))]
    single = [(x[None], y[None]) for x, y in zip(*whole[0])]
    one = mfac_prune(a, whole, F.cross_entropy, 0.5, damping=DAMPING, per_sample=True, n_grads=30)
    two = mfac_prune(b, single, F.cross_entropy, 0.5, damping=DAMPING, n_grads=30)
    assert one.n_grads_used == two.n_grads_used == 30
    torch.testing.assert_close(weights_of(a), weights_of(b), rtol=1e-8, atol=1e-10)


# --------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.77, 0.999])
def test_the_count_is_exact(sparsity):
    model = network()
    result = mfac_prune(model, batches(), F.cross_entropy, sparsity, damping=DAMPING, recompute=3)
    removed = 72 - round((1 - sparsity) * 72)
    assert sum(int((~m).sum()) for m in result.mask.values()) == removed
    assert int((weights_of(model) == 0).sum()) == removed
    assert math.isclose(result.sparsity, removed / 72)
    assert result.history == sorted(result.history)
    assert result.predicted_increase >= 0


@pytest.mark.parametrize("score", ["mfac", "diagonal", "magnitude"])
def test_ties_go_by_position(score):
    model = nn.Linear(8, 1, bias=False)
    model.weight.data.fill_(2.0)
    x = torch.ones(1, 8)
    result = mfac_prune(model, [(x, torch.zeros(1, 1))], F.mse_loss, 0.375, score=score, correction="none")
    assert result.mask["weight"].tolist() == [[False] * 3 + [True] * 5]


def test_a_mask_is_kept_and_applied():
    model = network()
    mask = {"0.weight": torch.rand(8, 6, generator=gen(3)) > 0.5}
    removed = int((~mask["0.weight"]).sum())
    result = mfac_prune(model, batches(), F.cross_entropy, removed / 72, damping=DAMPING, mask=mask)
    assert torch.equal(result.mask["0.weight"], mask["0.weight"])
    assert bool(result.mask["2.weight"].all())
    assert bool((model[0].weight[~mask["0.weight"]] == 0).all())
    with pytest.raises(ValueError, match="sparsity must be at least that of mask"):
        mfac_prune(model, batches(), F.cross_entropy, 0.1, mask=mask)


def test_flags_gradients_and_other_parameters_are_as_before():
    model = network(batch_norm=True, dropout=True)
    model.train()
    model[2].eval()
    biases = [model[0].bias.clone(), model[-1].bias.clone(), model[2].running_mean.clone()]
    flags = [m.training for m in model.modules()]
    pointers = [p.data_ptr() for p in model.parameters()]
    once = copy.deepcopy(model)
    mfac_prune(model, batches(), F.cross_entropy, 0.5, damping=DAMPING)
    mfac_prune(once, batches(), F.cross_entropy, 0.5, damping=DAMPING)
    assert [m.training for m in model.modules()] == flags
    assert pointers == [p.data_ptr() for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    for a, b in zip(biases, [model[0].bias, model[-1].bias, model[2].running_mean]):
        assert torch.equal(a, b)
    assert torch.equal(weights_of(model), weights_of(once))  # no dropout in the gradients

    def broken(output, target):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        mfac_prune(model, batches(), broken, 0.6)
    assert [m.training for m in model.modules()] == flags


def test_parameters_by_name_and_fewer_batches():
    model = network()
    before = model[0].weight.clone()
    result = mfac_prune(model, batches(5), F.cross_entropy, 0.5, params=["2.weight"], damping=DAMPING, n_grads=64)
    assert torch.equal(model[0].weight, before)
    assert list(result.mask) == ["2.weight"]
    assert result.n_grads_used == 5
    assert "5 gradients were available of n_grads=64" in result.message


def test_no_batch_is_taken_beyond_the_last_one_used():
    taken = []

    class Loader:
        def __iter__(self):
            for k, pair in enumerate(batches()):
                taken.append(k)
                yield pair

    mfac_prune(network(), Loader(), F.cross_entropy, 0.5, n_grads=7, recompute=2, damping=DAMPING)
    assert taken == list(range(7)) * 2


def test_fine_tuning_keeps_the_mask():
    model, data = network(), batches()
    result = mfac_prune(model, data, F.cross_entropy, 0.5, damping=DAMPING)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=0.1)
    handle = keep_mask(model, result.mask, optimizer)
    gone = {name: ~keep for name, keep in result.mask.items()}
    moved = weights_of(model)
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert all(bool((model.get_parameter(name)[m] == 0).all()) for name, m in gone.items())
    assert not torch.equal(weights_of(model), moved)
    handle.remove()
    optimizer.step()
    assert any(bool((model.get_parameter(name)[m] != 0).any()) for name, m in gone.items())
    apply_mask(model, result.mask)
    assert all(bool((model.get_parameter(name)[m] == 0).all()) for name, m in gone.items())


def test_agrees_with_torch_on_magnitude():
    from torch.nn.utils import prune

    model, peer = network(), network()
    mfac_prune(model, batches(), F.cross_entropy, 0.5, score="magnitude", correction="none")
    prune.global_unstructured(
        [(peer[0], "weight"), (peer[2], "weight")], pruning_method=prune.L1Unstructured, amount=0.5
    )
    assert torch.equal(model[0].weight, peer[0].weight)
    assert torch.equal(model[2].weight, peer[2].weight)


def test_float32_smoke():
    model = network().float()
    data = [(x.float(), y) for x, y in batches()]
    exact = network()
    mfac_prune(exact, batches(), F.cross_entropy, 0.5, damping=DAMPING)
    mfac_prune(model, data, F.cross_entropy, 0.5, damping=DAMPING)
    torch.testing.assert_close(weights_of(model).double(), weights_of(exact), rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"sparsity": 1.0}, ValueError, "sparsity must be"),
        ({"sparsity": -0.1}, ValueError, "sparsity must be"),
        ({"sparsity": math.nan}, ValueError, "sparsity must be"),
        ({"n_grads": 0}, ValueError, "n_grads must be"),
        ({"recompute": 0}, ValueError, "recompute must be"),
        ({"damping": 0.0}, ValueError, "damping must be"),
        ({"block_size": 0}, ValueError, "block_size must be"),
        ({"correction": "both"}, ValueError, "correction must be one of"),
        ({"score": "random"}, ValueError, "score must be one of"),
        ({"params": ["3.weight"]}, ValueError, "params must be names of the model's parameters"),
        ({"params": []}, ValueError, "params must be"),
        ({"params": "0.weight"}, ValueError, "a sequence of parameter names"),
        ({"mask": {"9.weight": torch.ones(2, dtype=torch.bool)}}, ValueError, "mask must be"),
        ({"mask": {"0.weight": torch.ones(2, dtype=torch.bool)}}, ValueError, "of shape"),
        ({"mask": {"0.weight": torch.ones(8, 6)}}, TypeError, "a bool tensor"),
        ({"batches": []}, ValueError, "batches must be at least one"),
        ({"batches": iter([]), "recompute": 2}, TypeError, "re-iterable"),
    ],
)
def test_bad_input(options, kind, text):
    arguments = {"batches": batches(3), "loss_fn": F.cross_entropy, "sparsity": 0.5} | options
    model = network()
    before = weights_of(model)
    with pytest.raises(kind, match=text):
        mfac_prune(model, **arguments)
    assert torch.equal(weights_of(model), before)


def test_a_parameter_that_the_loss_does_not_see_is_named():
    model = network()
    model.extra = nn.Linear(2, 2)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    with pytest.raises(ValueError, match=r"extra\.weight"):
        mfac_prune(model, batches(3), F.cross_entropy, 0.5)
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"0\.weight"):
        mfac_prune(model, batches(3), F.cross_entropy, 0.5, params=["0.weight"])


def test_gradients_that_are_not_finite():
    model = network()
    data = batches(3)
    data[1] = (data[1][0] * math.nan, data[1][1])
    with pytest.raises(FloatingPointError, match="gradient 1 is not finite"):
        mfac_prune(model, data, F.cross_entropy, 0.5)
