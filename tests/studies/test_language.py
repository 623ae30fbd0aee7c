"""Tests of the language-model task."""

import math
import sys

import pytest
import torch
from torch.nn import functional as F

from steepest.studies import language
from steepest.studies.language import (
    GPT,
    GPT2_SMALL,
    QUICK,
    GPTConfig,
    describe_text,
    language_task,
    load_text,
    require_same_text,
)

TINY = GPTConfig(vocab=17, block=8, n_layer=2, n_head=2, n_embd=8)


def seeded(config, seed=0, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build().to(dtype)


def tokens(n, length, vocab=17, seed=0):
    return torch.randint(vocab, (n, length), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------- text


def test_the_embedded_text_is_pythons_own_help():
    from pydoc_data.topics import topics

    text = "\n".join(topics[k] for k in sorted(topics))
    train, val, vocab = load_text()
    assert bytes(torch.cat([train, val]).to(torch.uint8).numpy()) == text.encode()
    assert len(train) == int(0.9 * len(text.encode()))
    assert vocab == 256
    train, val, vocab = load_text(level="char")
    assert vocab == len(set(text))
    alphabet = sorted(set(text))
    assert "".join(alphabet[i] for i in train[:500]) == text[:500]
    assert "".join(alphabet[i] for i in val[-500:]) == text[-500:]


def test_a_text_is_identified_by_its_digest(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("abcä" * 30, encoding="utf-8")
    two.write_text("abcd" * 30, encoding="utf-8")
    facts = describe_text(one)
    assert facts["length"] == 150  # ä is two bytes
    assert describe_text(one, "char")["length"] == 120
    require_same_text(facts, describe_text(one))
    with pytest.raises(ValueError, match="results must be of one text"):
        require_same_text(facts, describe_text(two))


def test_a_missing_text_says_what_to_do(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_text(tmp_path / "nothing.txt")
    language._read.cache_clear()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match="libpython3-stdlib"):
        load_text()
    language._read.cache_clear()


# --------------------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("config", [QUICK, TINY, GPT2_SMALL])
def test_the_number_of_parameters(config):
    with torch.device("meta"):
        model = config.build()
    d = config.n_embd
    expected = (config.vocab + config.block) * d + config.n_layer * (12 * d * d + 2 * d) + d
    assert sum(p.numel() for p in model.parameters()) == expected
    if config is GPT2_SMALL:
        assert expected == 124_373_760


def test_biases_are_there_when_asked_for():
    model = GPT(17, 8, 1, 2, 8, bias=True)
    assert sum(p.numel() for p in model.parameters()) == (17 + 8) * 8 + 12 * 64 + (24 + 8 + 32 + 8) + 2 * 16 + 16


def test_output_and_input_embedding_are_one_tensor():
    model = seeded(TINY)
    x = tokens(1, 4, vocab=16)
    before = model(x)
    with torch.no_grad():
        model.tokens.weight[16] += torch.arange(8.0)  # a token that is not in x: only its logit may move
    after = model(x)
    assert torch.equal(before[..., :16], after[..., :16])
    assert not torch.allclose(before[..., 16], after[..., 16])


@pytest.mark.parametrize("attention", ["sdpa", "math"])
def test_no_logit_sees_later_tokens(attention):
    model = seeded(TINY)
    model.attention = attention
    x = tokens(3, 8)
    for cut in (1, 4, 7):
        changed = x.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % 17
        assert torch.equal(model(x)[:, :cut], model(changed)[:, :cut])
        assert not torch.allclose(model(x)[:, cut], model(changed)[:, cut])


@pytest.mark.parametrize("by_layer", [False, True])
def test_logits_against_a_computation_by_hand(by_layer):
    model = seeded(GPTConfig(**{**vars(TINY), "scale_attn_by_layer": by_layer}))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(20 if p.dim() == 2 else 1)  # large scores, so that their scale matters
    x = tokens(2, 8)
    h = model.tokens.weight[x] + model.positions.weight
    for i, block in enumerate(model.blocks):
        z = F.layer_norm(h, (8,), block.norm_1.weight)
        q, k, v = (z @ w.T for w in block.attention.expand.weight.chunk(3))
        heads = []
        for j in range(2):
            a, b, c = (t[..., 4 * j : 4 * j + 4] for t in (q, k, v))
            scores = torch.einsum("nid,njd->nij", a, b) / math.sqrt(4) / (i + 1 if by_layer else 1)
            weights = torch.where(torch.ones(8, 8).tril().bool(), scores.exp(), 0.0)
            heads.append(weights / weights.sum(-1, keepdim=True) @ c)
        h = h + torch.cat(heads, -1) @ block.attention.project.weight.T
        z = F.layer_norm(h, (8,), block.norm_2.weight)
        inner = z @ block.mlp[0].weight.T
        h = h + (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))) @ block.mlp[2].weight.T
    expected = F.layer_norm(h, (8,), model.norm.weight) @ model.tokens.weight.T
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    with model.twice():
        assert model.attention == "math"
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert model.attention == "sdpa"


def test_initial_weights_have_the_published_spread():
    model = seeded(GPTConfig(vocab=512, block=64, n_layer=8, n_head=4, n_embd=128))
    for name, p in model.named_parameters():
        if p.dim() == 2:
            residual = name.endswith(("project.weight", "mlp.2.weight"))
            assert float(p.detach().std()) == pytest.approx(0.02 / (4 if residual else 1), rel=0.03), name
    untrained = seeded(QUICK)(tokens(8, 64, 256)).detach()
    assert float(F.cross_entropy(untrained.flatten(0, 1), tokens(8, 64, 256, 1).flatten())) == pytest.approx(
        math.log(256), rel=0.02
    )


def test_the_math_path_can_be_differentiated_twice():
    model = seeded(TINY)
    params = list(model.parameters())
    with model.twice():
        loss = F.cross_entropy(model(tokens(2, 8)).flatten(0, 1), tokens(2, 8, seed=1).flatten())
        grads = torch.autograd.grad(loss, params, create_graph=True)
        second = torch.autograd.grad(sum((g * g).sum() for g in grads), params)
    assert all(bool(s.isfinite().all()) for s in second)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="n_embd must be a multiple of n_head = 3, got 8"):
        GPT(17, 8, 1, 3, 8)
    with pytest.raises(ValueError, match="attention must be one of 'sdpa', 'math'"):
        GPT(17, 8, 1, 2, 8, attention="flash")
    with pytest.raises(ValueError, match="x must be at most 8 tokens long"):
        seeded(TINY)(tokens(1, 9))


# ---------------------------------------------------------------------------------------------------------- task


def test_targets_are_inputs_shifted_by_one_and_come_from_the_training_part():
    task = language_task(batch=4)
    train, _, _ = load_text()
    text = bytes(train.to(torch.uint8).numpy())
    pairs = list(task.batches(3, 5))
    again = list(task.batches(3, 5))
    for (x, y), (u, v) in zip(pairs, again):
        assert x.shape == y.shape == (4, 64)
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert torch.equal(x, u)
        assert torch.equal(y, v)
        assert bytes(torch.cat([x[0], y[0, -1:]]).to(torch.uint8).numpy()) in text
    assert not torch.equal(pairs[0][0], next(iter(task.batches(4, 1)))[0])


def test_evaluation_is_the_mean_loss_over_each_half():
    task = language_task(GPTConfig(block=32, n_layer=1, n_head=1, n_embd=8))
    model = task.model(0)
    _, val, _ = load_text()
    for split, half in (("tune", val[: len(val) // 2]), ("held-out", val[len(val) // 2 :])):
        n = (len(half) - 1) // 32
        x, y = half[: n * 32].view(n, 32), half[1 : n * 32 + 1].view(n, 32)
        with torch.no_grad():
            expected = float(F.cross_entropy(model(x).flatten(0, 1), y.flatten()))
        assert task.evaluate(model, split) == pytest.approx(expected, rel=1e-5)
    assert task.evaluate(model, "tune") != task.evaluate(model, "held-out")


def test_initial_weights_depend_on_the_seed_and_leave_the_global_generator():
    task, state = language_task(), torch.get_rng_state()
    a, b, c = task.model(1), task.model(1), task.model(2)
    assert torch.equal(a.tokens.weight, b.tokens.weight)
    assert not torch.equal(a.tokens.weight, c.tokens.weight)
    assert torch.equal(state, torch.get_rng_state())
    decayed, others = task.groups(a)
    assert sum(p.numel() for p in decayed["params"]) == 2 * 12 * 64 * 64
    assert any(p is a.tokens.weight for p in others["params"])
