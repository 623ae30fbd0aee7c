"""The attention network: channels, tokens and neighbors by hand, invariances, training, misuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest.geometry import surface_features
from steepest.physics import WingPressureModel, make_wing_dataset, train_wing_pressure, wing_pressure
from steepest.physics._wing_network import neighbors, patches
from steepest.physics._wings import WingData

INTRINSIC = ("g_11", "g_12", "g_22", *(f"Gamma{k}_{ij}" for k in (1, 2) for ij in (11, 12, 22)), "K")


@pytest.fixture(scope="module")
def data():
    return make_wing_dataset(6, 0, n_u=11, n_v=7, conditions_per_wing=2)  # centers: 10 x 6, padded to 12 x 8


def small(**options):
    return WingPressureModel(10, 6, **{"d_model": 16, "n_layers": 1, **options})


def fitted(data, **options):
    return small(**options).fit_normaliser(data.points, data.conditions, data.cp)


# ------------------------------------------------------------------------------------------------------ exact


def test_tokens_are_patches_padded_by_zeros():
    x = torch.arange(2 * 5 * 3 * 2.0).reshape(2, 5, 3, 2)
    padded = torch.zeros(2, 6, 4, 2)
    padded[:, :5, :3] = x
    expected = [padded[:, i : i + 3, j : j + 2].reshape(2, -1) for i in (0, 3) for j in (0, 2)]
    assert torch.equal(patches(x, (3, 2)), torch.stack(expected, 1))


def test_neighbors_repeat_the_edge():
    x = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    found = neighbors(x, 3)
    for i in range(5):
        for j in range(4):
            around = [x[:, min(max(i + k, 0), 4), min(max(j + m, 0), 3)] for k in (-1, 0, 1) for m in (-1, 0, 1)]
            assert torch.equal(found[:, i, j], torch.cat(around, -1))
    assert torch.equal(neighbors(x, 1), x)


def test_channels_are_squashed_and_standardized(data):
    model = fitted(data)
    assert model.channel_names == ("x", "y", "z", *INTRINSIC)
    found = model.local_channels(data.points)
    assert found.dtype == torch.float32
    points = data.points.double()
    raw = torch.cat((points, surface_features(points)), -1).reshape(-1, 13)
    raw[:, 3:] = torch.asinh(raw[:, 3:] / raw[:, 3:].abs().median(0).values)
    expected = (raw - raw.mean(0)) / raw.std(0, correction=0)
    torch.testing.assert_close(found.reshape(-1, 13).double(), expected, rtol=1e-4, atol=1e-4)


def test_forward_by_hand(data):
    """The whole network written out once more, head by head."""
    model = fitted(data, neighbourhood=3).double()
    net, x = model.attention, model.local_channels(data.points)
    c = model.normaliser.conditions(data.conditions.double())

    def attend(layer, q, kv):
        wq, wk, wv = layer.in_proj_weight.chunk(3)
        bq, bk, bv = layer.in_proj_bias.chunk(3)
        heads = []
        for h in range(4):
            s = slice(4 * h, 4 * h + 4)
            queries, keys, values = q @ wq[s].T + bq[s], kv @ wk[s].T + bk[s], kv @ wv[s].T + bv[s]
            heads.append(torch.softmax(queries @ keys.mT / 2, -1) @ values)
        return layer.out_proj(torch.cat(heads, -1))

    tokens = net.embed(patches(x, (4, 4))) + net.positions
    layer = net.encoder[0]
    normed = layer.norm1(tokens)
    tokens = tokens + attend(layer.self_attn, normed, normed)
    tokens = tokens + layer.linear2(torch.nn.functional.gelu(layer.linear1(layer.norm2(tokens))))
    flow = c[:, None].expand(-1, 60, -1)
    query = net.query(torch.cat((neighbors(x, 3).flatten(1, 2), flow), -1))
    out = net.head(torch.cat((query, attend(net.cross, query, tokens), flow), -1))[..., 0]
    expected = out.reshape(-1, 10, 6) * model.normaliser.cp_std + model.normaliser.cp_mean
    torch.testing.assert_close(model(data.points, data.conditions), expected, rtol=1e-8, atol=1e-8)


# --------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize(
    ("features", "names"),
    [
        ("none", ()),
        ("intrinsic", INTRINSIC),
        ("all", (*INTRINSIC, "H", "kappa_1", "kappa_2")),
        (["K", "g_22"], ("K", "g_22")),
        ([], ()),
    ],
)
def test_channel_names(data, features, names):
    model = fitted(data, features=features)
    assert model.channel_names == ("x", "y", "z", *names)
    assert model.local_channels(data.points).shape == (12, 10, 6, 3 + len(names))
    assert model(data.points, data.conditions).shape == (12, 10, 6)


def test_samples_do_not_see_one_another(data):
    model = fitted(data).eval()
    whole = model(data.points, data.conditions)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(data.points[order], data.conditions[order]), whole[order])
    torch.testing.assert_close(model(data.points[3:4], data.conditions[3:4]), whole[3:4])


def test_modes_agree(data):
    model = fitted(data)
    with torch.no_grad():
        torch.testing.assert_close(
            model.train()(data.points, data.conditions), model.eval()(data.points, data.conditions)
        )


def test_state_round_trip(data, tmp_path):
    model = fitted(data, features="all")
    torch.save(model.state_dict(), tmp_path / "wing.pt")
    other = small(features="all", seed=5)
    other.load_state_dict(torch.load(tmp_path / "wing.pt", weights_only=True))
    torch.testing.assert_close(other(data.points, data.conditions), model(data.points, data.conditions), rtol=0, atol=0)


def test_weights_come_from_the_seed_and_the_trunk_from_nothing_else():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, plain, other = small(), small(), small(features="none"), small(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    unlike = set()
    for (name, p), q, r in zip(a.named_parameters(), b.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
        if p.shape != r.shape or not torch.equal(p, r):
            unlike.add(name)
    assert unlike == {"attention.embed.weight", "attention.query.0.weight"}
    assert not torch.equal(a.attention.positions, other.attention.positions)
    assert all(torch.isfinite(p).all() for p in a.parameters())


def test_training_is_deterministic_and_learns(data):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train, test = data.of_wings([0, 1, 2, 3]), data.of_wings([4, 5])
    heard, runs = [], []
    for _ in range(2):
        model = small()
        history = train_wing_pressure(
            model, train, epochs=4, batch_size=4, validation=test, seed=4, callback=lambda k, h: heard.append(k)
        )
        runs.append((history, model(test.points, test.conditions).detach()))
    assert torch.equal(torch.get_rng_state(), before)
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert heard == [*range(1, 5)] * 2
    history, prediction = runs[0]
    assert len(history["train_mse"]) == len(history["val_mse"]) == 4
    assert history["val_mse"][-1] == pytest.approx(float(((prediction - test.cp) ** 2).mean()), rel=1e-4)
    third = train_wing_pressure(small(), train, epochs=60, batch_size=3, seed=5)
    assert third["train_mse"][-1] < 0.1 * float(train.cp.var())
    assert third["train_mse"][:4] != history["train_mse"]
    assert third["val_mse"] == []


def test_first_error_is_that_of_the_first_weights(data):
    model = fitted(data)
    expected = float(((model(data.points, data.conditions).detach() - data.cp) ** 2).mean())
    history = train_wing_pressure(model, data, epochs=1, batch_size=100)
    assert history["train_mse"][0] == pytest.approx(expected, rel=1e-4)


def test_normaliser_is_of_the_training_wings(data):
    train = data.of_wings([0, 1])
    model = small()
    train_wing_pressure(model, train, epochs=1, validation=data.of_wings([4]))
    assert float(model.normaliser.cp_mean) == pytest.approx(float(train.cp.mean()), rel=1e-5)
    np.testing.assert_allclose(model.normaliser.condition_mean, train.conditions.mean(0), rtol=1e-5)


def test_a_constant_channel_or_condition_is_harmless(data):
    same = torch.tensor([3.0, 0.2]).expand(12, 2)
    model = small(features="none").fit_normaliser(data.points * torch.tensor([1.0, 1.0, 0.0]), same, data.cp)
    assert torch.isfinite(model(data.points, same)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_trains_on_a_gpu(data):
    model = small().to("cuda")
    train_wing_pressure(model, data, epochs=2)
    assert model(data.points.cuda(), data.conditions.cuda()).device.type == "cuda"


# ------------------------------------------------------------------------------------------------------- misuse


def test_order_of_calls(data):
    for call in (lambda m: m(data.points, data.conditions), lambda m: m.local_channels(data.points)):
        with pytest.raises(RuntimeError, match="fit_normaliser"):
            call(small())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"features": "metric"}, ValueError, "features must be one of"),
        ({"features": ["K", "R"]}, ValueError, "features.*g_11"),
        ({"features": ["K", "K"]}, ValueError, "features"),
        ({"features": 3}, ValueError, "features"),
        ({"d_model": 18}, ValueError, "d_model must be a multiple of n_heads=4"),
        ({"n_heads": 0}, ValueError, "n_heads"),
        ({"n_layers": -1}, ValueError, "n_layers"),
        ({"patch": 4}, ValueError, "patch"),
        ({"patch": (4, 0)}, ValueError, "patch"),
        ({"neighbourhood": 2}, ValueError, "neighbourhood must be odd"),
        ({"neighbourhood": 1.0}, TypeError, "neighbourhood"),
        ({"seed": "a"}, TypeError, "seed"),
    ],
)
def test_misuse_of_the_constructor(options, error, match):
    with pytest.raises(error, match=match):
        small(**options)
    with pytest.raises(ValueError, match="n_u"):
        WingPressureModel(3, 8)


def test_misuse_of_data(data):
    model = fitted(data)
    points, conditions, cp = data.points, data.conditions, data.cp
    for arguments, error, match in (
        ((points[:, 1:], conditions), ValueError, r"points must be of shape \(B, 10, 6, 3\)"),
        ((points[:5], conditions), ValueError, "conditions must be of 5 samples"),
        ((points, conditions[:, :1]), ValueError, "conditions must be of shape"),
        ((points * torch.nan, conditions), ValueError, "points must be finite"),
        ((points, conditions / 0), ValueError, "conditions must be finite"),
        ((points.numpy(), conditions), TypeError, "points"),
        ((points, conditions.long()), TypeError, "conditions"),
    ):
        with pytest.raises(error, match=match):
            model(*arguments)
    with pytest.raises(ValueError, match="cp must be of shape"):
        model.fit_normaliser(points, conditions, cp[:, 1:])
    for options, error, match in (
        ({"epochs": 0}, ValueError, "epochs"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"lr": 0.0}, ValueError, "lr"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"validation": WingData(points[:, 1:], conditions, cp, data.wing)}, ValueError, "points"),
    ):
        with pytest.raises(error, match=match):
            train_wing_pressure(model, data, **options)
    with pytest.raises(TypeError, match="model"):
        train_wing_pressure(torch.nn.Linear(1, 1), data)


def test_a_loss_that_is_not_finite_stops(data):
    model = small()
    with torch.no_grad():
        model.attention.positions.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="lower lr"):
        train_wing_pressure(model, data, epochs=2)


def test_channels_of_many_samples_are_read_from_a_file(data, monkeypatch):
    whole, parts = small(), small()
    expected = train_wing_pressure(whole, data, epochs=3, validation=data)
    parts.normaliser.load_state_dict(whole.normaliser.state_dict())
    seen = []
    monkeypatch.setattr(wing_pressure, "IN_MEMORY", 11)
    monkeypatch.setattr(wing_pressure, "CHUNK", 5)
    monkeypatch.setattr(WingPressureModel, "fit_normaliser", lambda self, *some: seen.append(len(some[0])))
    assert train_wing_pressure(parts, data, epochs=3, validation=data) == expected
    assert seen == [11]
