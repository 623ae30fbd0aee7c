"""The learned step of time: symmetries, dense doubles of every part, the algebra of training, bad input."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from steepest.physics._gns import GNS
from steepest.physics._neural_operator import GatedExperts, LinearAttention, NeuralOperator
from steepest.physics._particle_data import Statistics, Trajectory, load_trajectories
from steepest.physics._particle_graph import radius_graph
from steepest.physics._particle_network import SpectralLayer, graph_of, safe_norm
from steepest.physics._particle_sums import copies, entries
from steepest.physics._particle_training import Batch, Windows, least_squares_skip, random_walk, wanted
from steepest.physics._upsampling import Upsampler
from steepest.physics.giorom import GIOROM
from tests import processes

SMALL = {"hidden": 8, "connectivity_radius": 0.15}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def window(n: int = 30, d: int = 2, seed: int = 0, low: float = 0.4, high: float = 0.6) -> Tensor:
    """Six frames of n points that move a little, in float64."""
    g = generator(seed)
    start = low + (high - low) * torch.rand(n, 1, d, generator=g, dtype=torch.float64)
    return start + 0.004 * torch.randn(n, 6, d, generator=g, dtype=torch.float64).cumsum(1)


def giorom(seed: int = 0, **settings: object) -> GIOROM:
    model = GIOROM(**{**SMALL, "latent_grid": 17, "skip": None, "seed": seed, **settings}).double()  # type: ignore[arg-type]
    return stirred(model)


def layer_of(kind: type, *sizes: object) -> torch.nn.Module:
    """A layer of its own in float64; torch's first weights come from the global stream."""
    with torch.random.fork_rng(devices=[]):
        return stirred(kind(*sizes)).double()


def stirred(model: torch.nn.Module, seed: int = 9) -> torch.nn.Module:  # zero biases would hide mistakes
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g, dtype=torch.float32).to(p))
    return model


def motion(n: int = 40, T: int = 16, d: int = 2, seed: int = 0) -> np.ndarray:
    """Points on smooth paths inside the unit box."""
    rng = np.random.default_rng(seed)
    start, v = rng.uniform(0.3, 0.7, (n, d)), rng.normal(0, 0.004, (n, d))
    t = np.arange(T)[:, None, None]
    waves = 0.002 * np.sin(0.7 * t + rng.uniform(0, 6, (n, d)))
    return (start + t * v + waves).astype(np.float32)


@pytest.fixture(autouse=True)
def global_stream_untouched() -> Iterator[None]:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    yield
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()  # type: ignore[index]


class TestSymmetries:
    def test_moving_by_a_spacing_of_the_grid_changes_nothing(self) -> None:
        model = giorom()
        x = window()
        moved = x + torch.tensor([1 / 16, -2 / 16], dtype=torch.float64)
        torch.testing.assert_close(model(moved), model(x), rtol=1e-9, atol=1e-11)
        assert model(x).std() > 1e-3

    @pytest.mark.parametrize("node_input", ["accelerations", "velocities"])
    def test_gns_is_translation_equivariant(self, node_input: str) -> None:
        model = stirred(GNS(**SMALL, n_layers=3, node_input=node_input).double())
        x = window()
        moved = x + torch.tensor([0.0317, -0.0723], dtype=torch.float64)
        torch.testing.assert_close(model(moved), model(x), rtol=1e-9, atol=1e-11)

    def test_walls_are_felt_within_the_radius_only(self) -> None:
        model = stirred(GNS(**SMALL, n_layers=1).double())
        x = window(low=0.4, high=0.6)
        near = x - torch.tensor([0.35, 0.0], dtype=torch.float64)
        assert (model(near) - model(x)).abs().max() > 1e-3

    @pytest.mark.parametrize("d", [2, 3])
    def test_permuting_particles_permutes_the_result(self, d: int) -> None:
        model = giorom(dim=d, latent_grid=5, n_types=3)
        x = window(d=d)
        types = torch.randint(3, (30,), generator=generator(3))
        order = torch.randperm(30, generator=generator(4))
        torch.testing.assert_close(model(x[order], types[order]), model(x, types)[order], rtol=1e-9, atol=1e-11)
        assert not torch.allclose(model(x, types), model(x))

    def test_scenes_of_a_batch_do_not_hear_each_other(self) -> None:
        from steepest.physics._particle_training import collate

        model = giorom(latent_grid=6)
        a, b = window(20), window(12, seed=1)
        kinds = [torch.zeros(20, dtype=torch.int64), torch.zeros(12, dtype=torch.int64)]
        batch = collate([(a, kinds[0]), (b, kinds[1])], torch.device("cpu"))
        torch.testing.assert_close(model.accelerations(batch), torch.cat((model(a), model(b))), rtol=1e-9, atol=1e-11)

    def test_bitwise_reproducible_and_edges_in_any_order(self) -> None:
        model = GIOROM(**SMALL, latent_grid=8)
        x = window().float()
        edges = radius_graph(x[:, -1], 0.15)
        assert (edges[1].diff() >= 0).all()
        shuffled = edges[:, torch.arange(edges.shape[1]).flip(0)]
        first = model(x)
        assert torch.equal(first, model(x))
        assert torch.equal(first, model(x, None, edges))
        assert torch.equal(first, GIOROM(**SMALL, latent_grid=8)(x))
        torch.testing.assert_close(model(x, None, shuffled), first, rtol=1e-4, atol=1e-5)


class TestParts:
    def test_norm_and_means_at_zero(self) -> None:
        vectors = torch.zeros(2, 2, requires_grad=True)
        safe_norm(vectors).sum().backward()
        assert torch.equal(vectors.grad, torch.zeros(2, 2))
        assert copies(torch.tensor([2]), 4).T(torch.ones(1, 3))[0].tolist() == [0, 0, 0]

    def test_sparse_products_against_dense_ones(self) -> None:
        g = generator(6)
        of = torch.randint(6, (15,), generator=g)
        of[of == 2] = 3  # nobody copies row 2
        copy = copies(of, 6, of.argsort(stable=True))
        chosen = torch.nn.functional.one_hot(of, 6).double()
        dense = torch.rand(6, 5, generator=g, dtype=torch.float64) * (torch.rand(6, 5, generator=g) < 0.5)
        rows, columns = dense.nonzero().T
        sparse = entries(rows, columns, dense[rows, columns], (6, 5), columns.argsort(stable=True))
        for matrix, expected in ((copy, chosen), (copy.T, chosen.T), (sparse, dense), (sparse.T, dense.T)):
            values = torch.randn(expected.shape[1], 3, generator=g, dtype=torch.float64, requires_grad=True)
            torch.testing.assert_close(matrix(values), expected @ values)
            with torch.random.fork_rng(devices=[]):  # both draw directions from the global stream
                assert torch.autograd.gradcheck(matrix, values)
                assert torch.autograd.gradgradcheck(matrix, values)

    def test_no_neighbors_at_all(self) -> None:
        model = giorom(latent_grid=17, operator_radius=0.01)
        x = window().requires_grad_()
        out = model(x, None, torch.empty(2, 0, dtype=torch.int64))
        out.square().sum().backward()
        assert torch.isfinite(out).all()
        assert torch.isfinite(x.grad).all()

    def test_coinciding_particles_have_a_gradient(self) -> None:
        model = giorom()
        x = window().detach()
        x[1] = x[0]
        x.requires_grad_()
        model(x).sum().backward()
        assert torch.isfinite(x.grad).all()

    def test_interaction_against_a_loop(self) -> None:
        layer = layer_of(SpectralLayer, 6)
        x = window()[:12, -1]
        edges = radius_graph(x, 0.08)
        edges = edges[:, edges[1] != 3]  # particle 3 receives nothing
        graph = graph_of(x, edges, 0.08)
        g = generator(5)
        h = torch.randn(12, 6, generator=g, dtype=torch.float64)
        e = torch.randn(edges.shape[1], 6, generator=g, dtype=torch.float64)
        m = [layer.message(torch.cat((h[r], h[s], e[k]))) for k, (s, r) in enumerate(edges.T.tolist())]
        degree = [max(1, sum(r == i for r in edges[1].tolist())) for i in range(12)]
        expected = []
        for i in range(12):
            total, spread = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
            for k, (s, r) in enumerate(edges.T.tolist()):
                if r == i:
                    total = total + m[k] / (1 + (x[i] - x[s]).norm() / 0.08)
                    spread = spread + h[s] / math.sqrt(degree[i] * degree[s])
            s_i = layer.spectral(0.7 * h[i] + 0.3 * spread)
            expected.append(h[i] + layer.update(torch.cat((h[i], total / degree[i]))) + s_i)
        nodes, new_edges = layer(h, e, graph)
        torch.testing.assert_close(nodes, torch.stack(expected))
        torch.testing.assert_close(new_edges, e + torch.stack(m))

    def test_linear_attention_against_a_loop(self) -> None:
        layer = layer_of(LinearAttention, 8, 2)
        g = generator(1)
        x, y = (torch.randn(2, n, 8, generator=g, dtype=torch.float64) for n in (5, 7))
        expected = torch.empty(2, 5, 8, dtype=torch.float64)
        for b in range(2):
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                q, k = layer.query(x[b])[:, part].softmax(-1), layer.key(y[b])[:, part].softmax(-1)
                v = layer.value(y[b])[:, part]
                for i in range(5):
                    weights = torch.stack([q[i] @ k[j] for j in range(7)])
                    expected[b, i, part] = q[i] + (weights[:, None] * v).sum(0) / weights.sum()
        torch.testing.assert_close(layer(x, y), layer.out(expected))

    def test_gated_experts_against_a_loop(self) -> None:
        layer = layer_of(GatedExperts, 4, 3)
        x = torch.randn(6, 4, generator=generator(2), dtype=torch.float64)
        for row, got in zip(x, layer(x), strict=True):
            gate = layer.gate(row).softmax(0)
            torch.testing.assert_close(got, sum(gate[k] * layer.experts[k](row) for k in range(3)))

    @pytest.mark.parametrize(("grid", "radius"), [((6, 9), None), ((5, 4, 6), None), ((6, 6), 0.4), ((11, 11), 0.2)])
    def test_kernel_integrals_against_a_double_loop(self, grid: tuple[int, ...], radius: float | None) -> None:
        d = len(grid)
        operator = layer_of(NeuralOperator, 8, [0.0] * d, [1.0] * d, grid, radius, 1, 2, 2)
        operator.set_grid(torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64))
        R = operator.radius
        assert radius is not None or math.isclose(R, 1.5 / (min(grid) - 1))
        g = generator(1)
        x = 0.4 + 0.61 * torch.rand(14, d, generator=g, dtype=torch.float64)  # the lower nodes stay empty
        h = torch.randn(14, 8, generator=g, dtype=torch.float64)
        axes = [torch.linspace(0, 1, n, dtype=torch.float64) for n in grid]
        nodes = torch.cartesian_prod(*axes)
        z = torch.randn(len(nodes), 8, generator=g, dtype=torch.float64)
        inside = x.clamp(0, 1)
        distance = torch.cdist(nodes, inside)
        near = distance <= R
        pairs = operator.pairs(x, torch.zeros(14, dtype=torch.int64))
        found = torch.zeros_like(near)
        found[pairs.nodes, pairs.particles] = True
        assert torch.equal(found, near)
        v = operator.encode(h, pairs, len(nodes))
        w = operator.decode(z, pairs, 14)
        for q, node in enumerate(nodes):
            parts = [
                operator.encode_kernel(torch.cat(((inside[y] - node) / R, h[y]))) for y in range(14) if found[q, y]
            ]
            torch.testing.assert_close(v[q], torch.stack(parts).mean(0) if parts else torch.zeros_like(v[q]))
        assert not found.any(1).all()
        assert found.any(0).all()
        for i in range(14):
            parts = [operator.decode_kernel((nodes[q] - inside[i]) / R) * z[q] for q in found[:, i].nonzero()[:, 0]]
            torch.testing.assert_close(w[i], torch.stack(parts).mean(0))

    @pytest.mark.skipif(importlib.util.find_spec("torch_geometric") is None, reason="needs torch_geometric")
    def test_gns_against_message_passing(self) -> None:
        from torch_geometric.nn import MessagePassing

        model = stirred(GNS(**SMALL, n_layers=3).double())
        assert isinstance(model, GNS)

        class Peer(MessagePassing):  # type: ignore[misc]
            def __init__(self, layer: torch.nn.Module) -> None:
                super().__init__(aggr="add", flow="source_to_target")
                self.layer = layer

            def forward(self, h: Tensor, e: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
                a = self.propagate(edge_index, h=h, e=e)
                return h + self.layer.update(torch.cat((h, a), 1)), e + self.m

            def message(self, h_i: Tensor, h_j: Tensor, e: Tensor) -> Tensor:
                self.m = self.layer.message(torch.cat((h_i, h_j, e), 1))
                return self.m

        x = window()
        last = x[:, -1]
        sender, receiver = edges = (torch.cdist(last, last) <= 0.15).nonzero().T
        relative = (last[receiver] - last[sender]) / 0.15
        e = model.edge_encoder(torch.cat((relative, relative.norm(dim=1, keepdim=True)), 1))
        velocity = x[:, 1:] - x[:, :-1]
        walls = (torch.cat((last, 1 - last), 1) / 0.15).clamp(-1, 1)
        inputs = (
            model.types(torch.zeros(30, dtype=torch.int64)),
            velocity[:, -1],
            velocity.diff(dim=1).flatten(1),
            walls,
        )
        h = model.node_encoder(torch.cat(inputs, 1))
        assert torch.cat(inputs, 1).shape[1] == 16 + 2 * (5 + 2)
        for layer in model.layers:
            h, e = Peer(layer)(h, e, edges)
        expected = model.decoder(h) + model.autoregression(velocity.diff(dim=1).flatten(1))
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("kind", [GIOROM, GNS])
    def test_every_weight_has_its_part(self, kind: type[GIOROM] | type[GNS]) -> None:
        model = giorom(latent_grid=6) if kind is GIOROM else stirred(GNS(**SMALL, n_layers=3, skip=None).double())
        model(window()).square().sum().backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []


class TestTraining:
    def test_statistics_by_hand(self) -> None:
        parts = [motion(5, 9), motion(7, 12, seed=1)]
        found = Statistics.of([Trajectory(torch.tensor(p), torch.zeros(p.shape[1])) for p in parts])
        for order, mean, std in ((1, found.vel_mean, found.vel_std), (2, found.acc_mean, found.acc_std)):
            values = np.concatenate([np.diff(p.astype(float), order, 0).reshape(-1, 2) for p in parts])
            np.testing.assert_allclose(mean, values.mean(0), rtol=1e-10)
            np.testing.assert_allclose(std, values.std(0), rtol=1e-10)

    @pytest.mark.parametrize("unit", ["acceleration", "frame"])
    def test_fitted_scales_contain_the_noise(self, unit: str) -> None:
        data = motion()
        noise = 0.5 if unit == "acceleration" else 1e-3
        model = GIOROM(**SMALL, latent_grid=6).fit([data], steps=0, noise=noise, noise_unit=unit)
        v, a = (np.diff(data.astype(float), k, 0).reshape(-1, 2) for k in (1, 2))
        sigma = noise * math.sqrt((a.std(0) ** 2).mean()) if unit == "acceleration" else noise
        np.testing.assert_allclose(model.vel_std_, np.sqrt(v.std(0) ** 2 + sigma**2), rtol=1e-5)
        np.testing.assert_allclose(model.acc_std_, np.sqrt(a.std(0) ** 2 + sigma**2), rtol=1e-5)
        np.testing.assert_allclose(model.vel_mean_, v.mean(0), rtol=1e-4)
        np.testing.assert_allclose(model.acc_mean_, a.mean(0), rtol=1e-3, atol=1e-9)

    def test_random_walk(self) -> None:
        noise = random_walk(40000, 5, 2, 0.3, generator())
        velocities = noise.diff(dim=1)
        assert noise.shape == (40000, 6, 2)
        assert noise[:, 0].abs().max() == 0
        for k in range(5):
            assert velocities[:, k].std() == pytest.approx(0.3 * math.sqrt((k + 1) / 5), rel=0.02)
        steps = velocities.diff(dim=1)
        assert abs((steps[:, 0] * steps[:, 1]).mean()) < 0.03 * steps.var()

    def test_target_takes_the_noisy_state_to_the_true_next_one(self) -> None:
        data = torch.tensor(motion(6).astype(np.float64))
        windows = Windows([Trajectory(data, torch.arange(6))], 5, None, 0.01, generator(3))
        noisy, types, velocity = windows.draw(4)
        target = wanted(velocity, noisy)
        clean = data[4:11][:, types].transpose(0, 1)
        offset = noisy[:, -1] - clean[:, 5]
        assert offset.abs().min() > 0
        assert torch.equal(noisy[:, 0], clean[:, 0])
        moved = noisy[:, -1] + (noisy[:, -1] - noisy[:, -2] + target)
        torch.testing.assert_close(moved, clean[:, 6] + offset, rtol=0, atol=1e-14)
        velocity_noise = (noisy - clean[:, :6]).diff(dim=1)[:, -1]
        torch.testing.assert_close(target, clean.diff(n=2, dim=1)[:, -1] - velocity_noise, rtol=0, atol=1e-14)

    def test_unrolled_batches_come_back_to_the_true_velocity(self) -> None:
        data = torch.tensor(motion(6).astype(np.float64))
        windows = Windows([Trajectory(data, torch.arange(6))], 5, None, 0.0, generator(3))
        start, chosen, velocity = windows.draw(8, 3)  # the last of the seven windows that have so many frames
        first = 8 % (16 - 6 - 3)
        clean = data[first : first + 10][:, chosen].transpose(0, 1)
        torch.testing.assert_close(start, clean[:, :6], rtol=0, atol=1e-14)
        torch.testing.assert_close(velocity, clean[:, 9] - clean[:, 8], rtol=0, atol=1e-14)
        assert {windows.further(3) for _ in range(60)} == {0, 1, 2, 3}
        before = windows.generator.get_state()
        assert windows.further(0) == 0
        assert torch.equal(before, windows.generator.get_state())

    def test_unrolling_uses_the_models_own_steps(self) -> None:
        settings = {"steps": 12, "n_sample": 15, "batch_size": 1}
        plain = GNS(**SMALL, n_layers=1).fit([motion()], **settings)  # type: ignore[arg-type]
        model = GNS(**SMALL, n_layers=1)
        calls = []
        step = model._advance
        model._advance = lambda batch: calls.append(1) or step(batch)  # type: ignore[method-assign,assignment,func-returns-value]
        model.fit([motion()], unroll=2, **settings)  # type: ignore[arg-type]
        assert 2 <= len(calls) <= 24
        assert model.history_["loss"] != plain.history_["loss"]
        with pytest.raises(ValueError, match="10 frames"):
            GNS(**SMALL, n_layers=1).fit([motion(5, 9)], unroll=3)

    def test_draws_are_fresh_subsets(self) -> None:
        windows = Windows([Trajectory(torch.tensor(motion(40)), torch.arange(40))], 5, 0.25, 0.0, generator())
        drawn = [windows.draw(0)[1] for _ in range(2)]
        assert len(windows.where) == 16 - 6
        assert all(len(set(d.tolist())) == 10 for d in drawn)
        assert not torch.equal(*drawn)

    def test_skip_is_the_dense_least_squares_autoregression(self) -> None:
        scenes = [Trajectory(torch.tensor(motion(12, seed=k)), torch.zeros(12, dtype=torch.int64)) for k in range(2)]
        model = GIOROM(**SMALL, latent_grid=6)
        model._set_statistics(Statistics.of(scenes), 1e-4)
        coefficients = least_squares_skip(model, Windows(scenes, 5, 0.5, 1e-4, generator(7)))
        twin = Windows(scenes, 5, 0.5, 1e-4, generator(7))
        past, following = [], []
        for number in torch.randperm(20, generator=twin.generator).tolist():
            noisy, _, velocity = twin.draw(number)
            target = velocity - (noisy[:, -1] - noisy[:, -2])
            past.append(((noisy.diff(n=2, dim=1) - model.acc_mean_) / model.acc_std_).flatten(1).double())
            following.append(((target - model.acc_mean_) / model.acc_std_).double())
        assert torch.cat(past).shape == (20 * 6, 8)
        dense = np.linalg.lstsq(torch.cat(past).numpy(), torch.cat(following).numpy(), rcond=None)[0]
        np.testing.assert_allclose(coefficients, dense.T, rtol=1e-6, atol=1e-8)

    def test_skip_with_neighbors_by_hand(self) -> None:
        model = GIOROM(**SMALL, latent_grid=6, skip="neighbors", bounds=[[0.35, 1.0], [0.0, 0.58]])
        x = torch.tensor(motion(12)[:6]).transpose(0, 1)
        batch = Batch(x, torch.zeros(12, dtype=torch.int64), torch.zeros(12, dtype=torch.int64), 1)
        own = torch.cat((x.diff(n=2, dim=1).flatten(1), x[:, -1] - x[:, -2]), 1)
        near = (x[:, None, -1] - x[None, :, -1]).norm(dim=-1) <= 0.15
        beside = torch.stack([own[row].mean(0) for row in near]) - own
        d = torch.cat((x[:, -1] - torch.tensor([0.35, 0.0]), torch.tensor([1.0, 0.58]) - x[:, -1]), 1)
        walls = (1 - d / 0.15).clamp(0, 1)
        assert 0 < (walls > 0).sum() < walls.numel()
        v = own[:, -2:]
        expected = torch.cat((own[:, :8], beside, torch.ones(12, 1), walls, walls * torch.cat((v, v), 1)), 1)
        torch.testing.assert_close(model.linear_inputs(batch), expected, rtol=1e-4, atol=1e-7)

    @pytest.mark.parametrize("kind", [GIOROM, GNS])
    def test_skip_with_neighbors_finds_a_linear_law(self, kind: type[GIOROM] | type[GNS]) -> None:
        """Particles that follow their neighbors' mean velocity: the skip alone has it, the other one has not."""
        frames = torch.tensor(motion(40, 6))
        while len(frames) < 24:
            x, v = frames[-1], frames[-1] - frames[-2]
            near = ((x[:, None] - x[None]).norm(dim=-1) <= 0.15).float()
            following = x + v + 0.3 * (near @ v / near.sum(1, keepdim=True) - v)
            frames = torch.cat((frames, following[None]))
        settings = {"latent_grid": 6} if kind is GIOROM else {"n_layers": 2}
        errors = []
        for skip in ("neighbors", "least_squares"):
            model = kind(**SMALL, **settings, skip=skip).fit([frames[5:].numpy()], steps=0, noise=0.0)
            found = model.step(frames[12:18].transpose(0, 1).contiguous())
            errors.append(float((found - frames[18]).abs().max()))
        assert errors[0] < 1e-5
        assert errors[1] > 10 * errors[0]

    @pytest.mark.parametrize("kind", [GIOROM, GNS])
    def test_the_first_fit_starts_at_the_autoregression(self, kind: type[GIOROM] | type[GNS]) -> None:
        settings = {"latent_grid": 6} if kind is GIOROM else {"n_layers": 2}
        model = kind(**SMALL, **settings)
        x = torch.tensor(motion()[:6]).transpose(0, 1)
        assert model.autoregression is not None
        assert model.autoregression.weight.abs().max() == 0
        assert model(x).abs().max() > 0  # the constructor leaves the decoder alone
        model.fit([motion()], steps=0)
        assert model.history_["loss"] == []
        past = (x.diff(n=2, dim=1) - model.acc_mean_) / model.acc_std_
        expected = past.flatten(1) @ model.autoregression.weight.T
        assert torch.equal(model(x), model.autoregression(past.flatten(1)))
        torch.testing.assert_close(model(x), expected)
        skip, mean = model.autoregression.weight.clone(), model.acc_mean_.clone()
        model.fit([motion(seed=5)], steps=1)
        assert torch.equal(model.acc_mean_, mean)
        assert (model.autoregression.weight - skip).abs().max() <= 1.01e-3  # one step of Adam, not another fit

    def test_step_is_semi_implicit_euler(self) -> None:
        model = GIOROM(**SMALL, latent_grid=6).fit([motion()], steps=3)
        x = torch.tensor(motion(seed=2)[:6]).transpose(0, 1)
        a = model(x).detach() * model.acc_std_ + model.acc_mean_
        torch.testing.assert_close(model.step(x), 2 * x[:, -1] - x[:, -2] + a, rtol=0, atol=1e-6)
        frames = model.rollout(x, 3)
        by_hand = x
        for k in range(3):
            by_hand = torch.cat((by_hand[:, 1:], model.step(by_hand)[:, None]), 1)
            torch.testing.assert_close(frames[k], by_hand[:, -1], rtol=0, atol=1e-6)

    def test_training_lowers_the_loss(self) -> None:
        rng, t = np.random.default_rng(0), np.arange(12.0)[:, None, None]
        pull = t**2 * rng.choice([-4e-4, 4e-4], (30, 2))  # each particle has its own constant acceleration
        data = rng.uniform(0.4, 0.6, (30, 2)) + t * rng.normal(0, 0.004, (30, 2)) + pull
        model = GIOROM(**SMALL, latent_grid=6, skip=None, n_mp_layers=1)
        losses = model.fit([data.astype(np.float32)], steps=30, lr=1e-2).history_["loss"]
        assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])
        np.testing.assert_allclose(model.history_["lr"], 1e-2 * (1e-5 / 1e-2) ** (np.arange(30) / 30))

    def test_training_repeats(self) -> None:
        def losses(seed: int) -> list[float]:
            return GIOROM(**SMALL, latent_grid=6).fit([motion()], steps=3, n_sample=15, seed=seed).history_["loss"]

        first = losses(0)
        assert first == losses(0)
        assert first != losses(1)

    def test_position_weight_is_an_error_of_positions(self) -> None:
        losses = []
        for weight in (0.0, 1e6):
            model = GIOROM(**SMALL, latent_grid=6, skip=None)
            model.fit([motion()], steps=1, position_weight=weight)
            losses.append(model.history_["loss"][0])
        scale = model.acc_std_.square()
        assert losses[1] > losses[0]
        share = (losses[1] / losses[0] - 1) / 1e6
        assert scale.min() <= share <= scale.max()

    def test_callback_limits_and_rollouts(self) -> None:
        seen: list[int] = []

        def stop(step: int, history: dict[str, list[float]]) -> None:
            seen.append(step)
            if step == 4:
                raise StopIteration

        model = GNS(**SMALL, n_layers=1).fit([motion()], steps=50, rollout_every=2, callback=stop)
        assert seen == [1, 2, 3, 4]
        assert len(model.history_["rollout"]) == 2
        model.fit([motion()], steps=10**6, max_seconds=0.05)
        assert 0 < len(model.history_["loss"]) < 10**4
        assert model.history_["lr"][-1] < 1e-3

    def test_resting_axis(self) -> None:
        data = motion()
        data[:, :, 1] = 0.5
        model = GNS(**SMALL, n_layers=1).fit([data], steps=1, noise=0.0)
        assert model.acc_std_[1] == 1
        assert torch.isfinite(model.rollout(torch.tensor(data[:6]).transpose(0, 1), 2)).all()

    def test_the_paper_by_name(self) -> None:
        model = GIOROM(**SMALL, latent_grid=6, node_input="velocities", skip=None, upsample_order=0)
        model.fit([motion()], steps=2, noise=3e-4, noise_unit="frame")
        assert model.autoregression is None
        raw = GIOROM(**SMALL, latent_grid=6, node_input="velocities", skip=None, normalize_velocity=False)
        raw.load_state_dict(model.state_dict(), strict=False)
        x = torch.tensor(motion()[:6]).transpose(0, 1)
        normalized = (x.diff(dim=1) - model.vel_mean_) / model.vel_std_
        batch = Batch(x, torch.zeros(40, dtype=torch.int64), torch.zeros(40, dtype=torch.int64), 1)
        past = model.normalized_accelerations(x)
        torch.testing.assert_close(model._inputs(batch, past)[:, 16:26], normalized.flatten(1))
        torch.testing.assert_close(raw._inputs(batch, past)[:, 16:26], x.diff(dim=1).flatten(1))


def ranked_fit(group: str | None) -> tuple[list[float], list[np.ndarray]]:
    model = GIOROM(**SMALL, latent_grid=5, n_mp_layers=1).double()
    model.fit([motion(20).astype(np.float64)], n_sample=8, steps=3, batch_size=3, process_group=group)
    return model.history_["loss"], [p.detach().numpy() for p in model.parameters()]


def rank(number: int, folder: str) -> tuple[list[float], list[np.ndarray]]:
    torch.set_num_threads(1)
    meeting = {"init_method": f"file://{folder}/meeting", "timeout": timedelta(seconds=120)}
    dist.init_process_group("gloo", rank=number, world_size=2, **meeting)  # type: ignore[arg-type]
    try:
        return ranked_fit("default")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path: object) -> None:
    with processes.pool(1) as pool:
        other = pool.submit(rank, 1, str(tmp_path))
        ranks = [rank(0, str(tmp_path)), other.result(timeout=240)]
    losses, weights = ranked_fit(None)
    for their_losses, their_weights in ranks:
        np.testing.assert_allclose(their_losses, losses, rtol=1e-9)
        for a, b in zip(their_weights, weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


class TestRollout:
    def test_clamp(self) -> None:
        t = np.arange(12.0)[:, None, None]
        data = (np.array([[0.85, 0.5], [0.8, 0.45], [0.82, 0.55]]) + t * [0.012, 0.0]).astype(np.float32)
        model = GNS(**SMALL, n_layers=1).fit([data], steps=0)
        x = torch.tensor(data[:6]).transpose(0, 1)
        assert model.rollout(x, 20)[-1].max() == 1
        assert model.rollout(x, 20, clamp=False)[-1].max() > 1.05

    def test_walls_stop_particles_without_throwing_them_back(self) -> None:
        """A stop that stayed in the window was read as a force, and drops bounced off the floor as spray."""
        t = np.arange(30.0)[:, None, None]
        fall = (np.array([[0.3, 0.4], [0.6, 0.5]]) + t * [0.004, 0.0] - t**2 * [0.0, 4e-4]).astype(np.float32)
        model = GNS(**SMALL, n_layers=1).fit([fall], steps=0, noise=0.0)
        x = torch.tensor(fall[20:26]).transpose(0, 1)
        assert (model.rollout(x, 25)[10:, :, 1] == 0).all()
        window = torch.tensor([[[0.5, 0.2], [0.6, 0.1], [0.7, -0.1]], [[0.5, 0.2], [0.6, 0.1], [0.7, 0.0]]])
        expected = window.clone()
        expected[0, :, 1] = 0.0  # at rest along the axis it left by, the other goes on
        assert torch.equal(model.kept_inside(window), expected)

    def test_not_finite(self) -> None:
        model = GNS(**SMALL, n_layers=1).fit([motion()], steps=0)
        x = torch.tensor(motion()[:6]).transpose(0, 1)
        calls = 0
        plain = model._advance

        def advance(batch: object) -> Tensor:
            nonlocal calls
            calls += 1
            return plain(batch) if calls < 4 else torch.full((40, 2), math.nan)  # type: ignore[arg-type]

        model._advance = advance  # type: ignore[method-assign,assignment]
        with pytest.raises(RuntimeError, match="frame 3 of 9") as caught:
            model.rollout(x, 9)
        del model._advance
        assert torch.equal(caught.value.partial, model.rollout(x, 3))  # type: ignore[attr-defined]

    @pytest.mark.parametrize("kind", [GIOROM, GNS])
    def test_save_and_load(self, kind: type[GIOROM] | type[GNS], tmp_path: object) -> None:
        settings = {"latent_grid": (6, 5), "upsample_order": 1} if kind is GIOROM else {"n_layers": 2}
        model = kind(**SMALL, **settings, bounds=[(0, 1), (-0.5, 1.5)], seed=4).fit([motion()], steps=2)
        model.save(f"{tmp_path}/model.pt")
        loaded = kind.load(f"{tmp_path}/model.pt")
        x = torch.tensor(motion()[:6]).transpose(0, 1)
        assert torch.equal(loaded.rollout(x, 3), model.rollout(x, 3))
        assert loaded.history_ == model.history_
        assert loaded.settings == model.settings


class TestAllPoints:
    def test_build_and_apply(self) -> None:
        rng = np.random.default_rng(0)
        Y, X = rng.random((40, 2)), rng.random((100, 2))
        turn = np.array([[0.6, -0.8], [0.8, 0.6]])
        frames = np.stack((Y, Y @ turn.T + 0.1))
        for order in (0, 1, 2):
            model = GIOROM(**SMALL, latent_grid=4, upsample_order=order, upsample_radius=0.3)
            upsampler = model.build_upsampler(Y, X)
            plain = Upsampler(Y, X, order=order, radius=0.3)
            assert abs(upsampler.matrix - plain.matrix).max() < 1e-6  # untrained, the kernel is the default one
            placed = model.upsample(Y, frames, X, chunk=33)
            np.testing.assert_allclose(placed, upsampler(frames), rtol=0, atol=1e-9)
            np.testing.assert_allclose(model.upsample(Y, frames[1], X), placed[1], rtol=0, atol=1e-9)
            if order:
                np.testing.assert_allclose(placed[1], X @ turn.T + 0.1, atol=1e-4)

    @pytest.mark.parametrize("order", [0, 1])
    def test_training_the_kernel_helps(self, order: int) -> None:
        rng = np.random.default_rng(1)
        start = rng.uniform(0.2, 0.8, (300, 2))
        t = np.linspace(0, 1, 6)[:, None, None]
        bend = np.stack((np.sin(7 * start[:, 1]), np.cos(6 * start[:, 0])), 1)
        data = (start + 0.1 * t * bend).astype(np.float32)
        model = GIOROM(**SMALL, latent_grid=4, upsample_order=order)

        def error() -> float:
            placed = model.upsample(data[0, :60], data[-1, :60], data[0, 60:])
            return float(np.square(placed - data[-1, 60:]).mean())

        before = error()
        weights = [p.clone() for p in model.trained_parameters()]
        model.fit_upsampler([data], n_sample=60, steps=60, lr=1e-2)
        assert error() < 0.9 * before
        assert len(model.upsampler_history_) == 60
        assert all(torch.equal(a, b) for a, b in zip(weights, model.trained_parameters(), strict=True))

    def test_simulate(self) -> None:
        model = GIOROM(**SMALL, latent_grid=6).fit([motion(60)], steps=0)
        dense = torch.tensor(motion(60)[:6]).transpose(0, 1)
        for sampling in ("random", "fps"):
            found = model.simulate(dense, 7, 20, sampling=sampling, seed=3)
            indices = found["indices"]
            assert len(set(indices.tolist())) == 20
            assert torch.equal(found["samples"], model.rollout(dense[indices], 7))
            expected = model.upsample(dense[indices, -1], found["samples"], dense[:, -1])
            torch.testing.assert_close(found["positions"], expected, rtol=0, atol=1e-6)
        assert torch.equal(
            model.simulate(dense, 2, 20, seed=3)["indices"], model.simulate(dense, 2, 20, seed=3)["indices"]
        )

    def test_rebase(self) -> None:
        model = GIOROM(**SMALL, latent_grid=6).fit([motion(60)], steps=0)
        dense = torch.tensor(motion(60)[:6]).transpose(0, 1)
        found = model.simulate(dense, 5, 20, rebase_every=2)
        samples, positions = found["samples"], found["positions"]
        second = model.upsample(samples[1], samples[2:4], positions[1])
        torch.testing.assert_close(positions[2:4], second, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            positions[4], model.upsample(samples[3], samples[4], positions[3]), rtol=0, atol=1e-6
        )

    @pytest.mark.slow
    @pytest.mark.usefixtures("ray")
    def test_ray_gives_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from steepest.physics import giorom as module

        monkeypatch.setattr(module, "SIMULATION_CHUNK", 25)
        model = GIOROM(**SMALL, latent_grid=6, upsample_order=1).fit([motion(60)], steps=0)
        dense = torch.tensor(motion(60)[:6]).transpose(0, 1)
        serial, ray = (model.simulate(dense, 4, 20, rebase_every=3, backend=b) for b in ("serial", "ray"))
        assert all(torch.equal(serial[name], ray[name]) for name in serial)


class TestFiles:
    def test_npz_and_pt(self, tmp_path: object) -> None:
        a, b = motion(5, 9), motion(7, 8).astype(np.float64)
        kinds = np.arange(7) % 3
        np.savez(f"{tmp_path}/x.npz", a=a, b=b, b_types=kinds)
        torch.save([torch.tensor(a), {"positions": torch.tensor(b), "types": torch.tensor(kinds)}], f"{tmp_path}/x.pt")
        torch.save({"a": torch.tensor(a), "b": torch.tensor(b), "b_types": torch.tensor(kinds)}, f"{tmp_path}/y.pt")
        for name in ("x.npz", "x.pt", "y.pt"):
            first, second = load_trajectories(f"{tmp_path}/{name}")
            assert isinstance(second, dict)
            assert np.array_equal(first, a)
            assert second["positions"].dtype == np.float32
            assert np.array_equal(second["types"], kinds)
            GNS(**SMALL, n_layers=1).fit([first, second], steps=1)

    def test_refused_files(self, tmp_path: object) -> None:
        np.savez(f"{tmp_path}/objects.npz", a=np.array([{"x": 1}], dtype=object))
        np.savez(f"{tmp_path}/flat.npz", a=np.zeros((4, 2)))
        np.savez(f"{tmp_path}/empty.npz")
        np.savez(f"{tmp_path}/kinds.npz", a=motion(5, 9), a_types=np.zeros(4, dtype=int))
        for name in ("objects.npz", "flat.npz", "empty.npz", "kinds.npz", "x.tfrecord"):
            with pytest.raises(ValueError, match="path must be"):
                load_trajectories(f"{tmp_path}/{name}")


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "word"),
        [
            ({"dim": 4}, "dim"), ({"window": 1}, "window"), ({"hidden": 0}, "hidden"), ({"n_types": 0}, "n_types"),
            ({"n_mp_layers": 0}, "n_mp_layers"), ({"latent_grid": 1}, "latent_grid"),
            ({"latent_grid": (3, 3, 3)}, "latent_grid"), ({"bounds": [(0, 1)]}, "bounds"),
            ({"bounds": [(0, 1), (1, 0)]}, "bounds"), ({"connectivity_radius": 0.0}, "connectivity_radius"),
            ({"operator_radius": -1.0}, "operator_radius"), ({"operator_layers": 0}, "operator_layers"),
            ({"heads": 3, "hidden": 8}, "heads"), ({"experts": 0}, "experts"),
            ({"upsample_radius": 0}, "upsample_radius"),
            ({"upsample_order": 3}, "upsample_order"), ({"upsample_neighbors": 3}, "upsample_neighbors"),
            ({"node_input": "positions"}, "node_input"), ({"skip": "ridge"}, "skip"),
        ],
    )  # fmt: skip
    def test_settings(self, settings: dict[str, object], word: str) -> None:
        with pytest.raises(ValueError, match=word):
            GIOROM(**settings)  # type: ignore[arg-type]

    def test_gns_settings(self) -> None:
        with pytest.raises(ValueError, match="n_layers"):
            GNS(n_layers=0)
        with pytest.raises(TypeError, match="normalize_velocity"):
            GNS(normalize_velocity=1)  # type: ignore[arg-type]

    def test_positions(self) -> None:
        model = GNS(**SMALL, n_layers=1)
        x = window().float()
        bad = x.clone()
        bad[0, 0, 0] = math.nan
        for value, word in (
            (x[:, :5], "window"), (x[:, :, :1], "shape"), (x[:0], "shape"), (bad, "finite"), (x + 0.9, "bounds"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=word):
                model(value)
        with pytest.raises(TypeError, match="dtype"):
            model(x.double())
        with pytest.raises(TypeError, match="positions"):
            model(x.numpy())
        model(x - x[:, -1].min() - 0.03)  # 5 % outside is let through

    def test_types_and_edges(self) -> None:
        model = GNS(**SMALL, n_layers=1)
        x = window().float()
        with pytest.raises(ValueError, match="types"):
            model(x, torch.full((30,), 9))
        with pytest.raises(ValueError, match="types"):
            model(x, torch.zeros(29, dtype=torch.int64))
        with pytest.raises(TypeError, match="types"):
            model(x, torch.zeros(30))
        with pytest.raises(ValueError, match="edges"):
            model(x, None, torch.tensor([[0], [30]]))
        with pytest.raises(TypeError, match="edges"):
            model(x, None, torch.zeros(2, 3))

    def test_before_fit(self) -> None:
        model = GIOROM(**SMALL, latent_grid=4)
        x = window().float()
        model(x)
        for call in (lambda: model.step(x), lambda: model.rollout(x, 2), lambda: model.simulate(x, 2, 10)):
            with pytest.raises(RuntimeError, match="fit"):
                call()

    @pytest.mark.parametrize(
        ("trajectories", "settings", "word"),
        [
            ([], {}, "at least one"), ([motion(5, 6)], {}, "7 frames"), ([motion(5)[:, :, :1]], {}, "shape"),
            ([motion(5) + np.float32(1)], {}, "bounds"), ([motion(5) * np.float32(np.nan)], {}, "finite"),
            ([motion(5)], {"n_sample": 6}, "n_sample"), ([motion(5)], {"n_sample": 1.5}, "n_sample"),
            ([motion(5)], {"n_sample": 0}, "n_sample"), ([motion(5)], {"noise": -1.0}, "noise"),
            ([motion(5)], {"noise_unit": "meter"}, "noise_unit"), ([motion(5)], {"steps": -1}, "steps"),
            ([motion(5)], {"max_seconds": 0.0}, "max_seconds"), ([motion(5)], {"batch_size": 0}, "batch_size"),
            ([motion(5)], {"lr": 0.0}, "lr"), ([motion(5)], {"unroll": -1}, "unroll"),
            ([motion(5)], {"rollout_every": 0}, "rollout_every"),
            ([{"positions": motion(5), "types": np.full(5, 9)}], {}, "types"),
        ],
    )  # fmt: skip
    def test_fit(self, trajectories: list[object], settings: dict[str, object], word: str) -> None:
        model = GNS(**SMALL, n_layers=1)
        with pytest.raises(ValueError, match=word):
            model.fit(trajectories, **settings)  # type: ignore[arg-type]
        assert not model.fitted

    def test_fit_kinds(self) -> None:
        model = GNS(**SMALL, n_layers=1)
        with pytest.raises(TypeError, match="list of arrays"):
            model.fit(motion(5))
        with pytest.raises(TypeError, match="dtype"):
            model.fit([motion(5).astype(np.float64)])

    def test_upsampling(self) -> None:
        model = GIOROM(**SMALL, latent_grid=4)
        with pytest.raises(ValueError, match="order"):
            model.fit_upsampler([motion(40)], n_sample=10)
        few = np.random.default_rng(0).random((3, 2))
        with pytest.raises(RuntimeError, match="at least 4 samples"):
            model.upsample(few, few, few)
        with pytest.raises(ValueError, match="chunk"):
            model.upsample(few, few, few, chunk=0)
        with pytest.raises(RuntimeError, match="at least 4 samples"):
            GIOROM(**SMALL, latent_grid=4, upsample_order=1).fit_upsampler([motion(40)], n_sample=3)

    def test_simulate(self) -> None:
        model = GIOROM(**SMALL, latent_grid=4).fit([motion(30)], steps=0)
        dense = torch.tensor(motion(30)[:6]).transpose(0, 1)
        for settings, word in (
            ({"sampling": "grid"}, "sampling"), ({"backend": "dask"}, "backend"), ({"rebase_every": 0}, "rebase_every"),
            ({"n_sample": 31}, "n_sample"), ({"n_steps": 0}, "n_steps"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=word):
                model.simulate(dense, **{"n_steps": 2, "n_sample": 10, **settings})  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="at least 4 samples"):
            model.simulate(dense, 2, 3)
