"""Consensus-based optimization and consensus hopping against hand-made steps, closed forms and cbx."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, OptimizeResult, minimize

from steepest.core.errors import SteepestWarning
from steepest.particles import consensus_hopping, consensus_point, minimize_cbo
from steepest.particles._arguments import Box
from steepest.particles.test_functions import ackley, canyon, rastrigin, rastrigin_cbo

Array = NDArray[np.float64]


def bowl(x: Any) -> Any:
    return (x * x).sum(-1)


def ensemble(n: int = 8, d: int = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, d)) * 2 + 1


def normals(seed: int, *shapes: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Array]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.empty(s, dtype=dtype).normal_(generator=generator).double().numpy() for s in shapes]


def cbo(x0: Any, **options: Any) -> OptimizeResult:
    given = {"vectorized": True, "draw": "native", "seed": 3, "maxiter": 1, "tol": 0.0}
    return minimize_cbo(options.pop("fun", bowl), x0, **(given | options))


# ----------------------------------------------------------------------------------------------------- one step by hand


def moved(x: Array, c: Array, xi: Array, noise: str, lam: float, sigma: float, dt: float) -> Array:
    D = x - c
    size = np.abs(D) if noise == "anisotropic" else np.sqrt((D**2).sum(1, keepdims=True))
    if noise == "anisotropic":
        xi = xi * np.sign(D)  # the code multiplies by D: the same law
    return x - lam * dt * D + sigma * math.sqrt(dt) * size * xi


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_three_steps_by_hand(noise: str) -> None:
    x, expected = ensemble(), ensemble()
    for xi in normals(3, *[x.shape] * 3):
        f = rastrigin(expected)
        w = np.exp(-20 * (f - f.min()))
        c = w / w.sum() @ expected
        expected = moved(expected, c, xi, noise, 1.3, 0.8, 0.05)
    got = cbo(x, fun=rastrigin, maxiter=3, noise=noise, alpha=20.0, lam=1.3, sigma=0.8, dt=0.05, return_all=True)
    np.testing.assert_allclose(got.population, expected, rtol=1e-11)
    np.testing.assert_allclose(got.allvecs[-1], c, rtol=1e-11)
    np.testing.assert_allclose(got.population_fun, rastrigin(expected), rtol=1e-10)
    final = consensus_point(expected, rastrigin(expected), 20.0)
    np.testing.assert_allclose(got.consensus, final, rtol=1e-10)
    assert got.spread == pytest.approx(((expected - final) ** 2).sum(1).mean())
    assert got.nit == 3
    assert got.nfev == 3 * 8 + 8 + 1 + 3  # three swarms, the final one, its consensus, the trajectory


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_steps_are_those_of_cbx(noise: str) -> None:
    dynamics = pytest.importorskip("cbx.dynamics")
    x = ensemble(12, 4)
    draws = iter(normals(3, *[x.shape] * 5))
    theirs = dynamics.CBO(
        rastrigin, f_dim="2D", x=x[None], noise=noise, sampler=lambda size: next(draws).reshape(size),
        check_f_dims=False, alpha=10.0, lamda=1.2, dt=0.03, sigma=0.9, max_it=5, verbosity=0,
    )  # fmt: skip
    for _ in range(5):
        theirs.step()
    ours = cbo(x, fun=rastrigin, maxiter=5, noise=noise, alpha=10.0, lam=1.2, dt=0.03, sigma=0.9)
    np.testing.assert_allclose(ours.population, theirs.x[0], rtol=1e-9)


def test_narrow_draws_are_float32_normals() -> None:
    x = ensemble()
    (xi,) = normals(3, x.shape, dtype=torch.float32)
    got = cbo(x, draw="float32", alpha=1.0, sigma=1.0).population
    c = consensus_point(x, bowl(x), 1.0)
    np.testing.assert_allclose(got, x - 0.01 * (x - c) + 0.1 * (x - c) * xi, rtol=1e-13)
    np.testing.assert_array_equal(got, cbo(x, draw=None, alpha=1.0, sigma=1.0).population)  # the default on CPUs


@pytest.mark.parametrize("draw", ["native", "float32"])
@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_draws_in_blocks_are_those_of_one_draw(noise: str, draw: str) -> None:
    x = ensemble(700, 60)  # more numbers than a block
    (xi,) = normals(3, x.shape, dtype=torch.float32 if draw == "float32" else torch.float64)
    got = cbo(x, alpha=1.0, sigma=1.0, noise=noise, draw=draw)
    D = x - consensus_point(x, bowl(x), 1.0)
    far = D if noise == "anisotropic" else np.sqrt((D**2).sum(1, keepdims=True))
    np.testing.assert_allclose(got.population, x - 0.01 * D + 0.1 * far * xi, rtol=1e-12, atol=1e-14)


def test_gradient_drift_by_hand() -> None:
    x = ensemble()
    c = consensus_point(x, bowl(x), 2.0)
    y = x - 0.1 * (x - c)
    got = cbo(x, alpha=2.0, sigma=0.0, dt=0.1, jac=lambda x: 2 * x, gradient_weight=3.0, gradient_lr=0.5)
    np.testing.assert_allclose(got.population, y - 3.0 * 0.5 * 0.1 * 2 * y, rtol=1e-13)
    assert got.njev == len(x)
    scalar = cbo(
        x, alpha=2.0, sigma=0.0, dt=0.1, jac=lambda x: 2 * x, gradient_weight=3.0, gradient_lr=0.5, vectorized=False
    )  # fmt: skip
    np.testing.assert_allclose(scalar.population, got.population, rtol=1e-13)


def test_batches_by_hand() -> None:
    """One permutation, a consensus per batch, moved batches seen by the next; the last batch is smaller."""
    x = ensemble(7, 2)
    for update in ("full", "partial"):
        generator = torch.Generator().manual_seed(3)
        order = torch.randperm(7, generator=generator)
        expected = x.copy()
        for rows in (order[:3].numpy(), order[3:6].numpy(), order[6:].numpy()):
            c = consensus_point(expected[rows], bowl(expected[rows]), 2.0)
            target = slice(None) if update == "full" else rows
            D = expected[target] - c
            xi = torch.empty(D.shape, dtype=torch.float64).normal_(generator=generator).numpy()
            expected[target] = expected[target] - 0.1 * D + 0.7 * math.sqrt(0.1) * D * xi
        got = cbo(x, alpha=2.0, sigma=0.7, dt=0.1, batch_size=3, batch_update=update)
        np.testing.assert_allclose(got.population, expected, rtol=1e-12)
        assert got.nfev == 7 + 7 + 1


def test_one_batch_of_everybody_is_no_batch() -> None:
    x = ensemble()
    a, b = cbo(x, maxiter=4, batch_size=8, sigma=1.0), cbo(x, maxiter=4, sigma=1.0)
    np.testing.assert_array_equal(a.population, b.population)


def test_standing_consensus_shakes_everybody() -> None:
    x = ensemble()
    flat = {"fun": lambda x: 0 * bowl(x), "lam": 1.0, "sigma": 0.5, "dt": 0.04}
    still = np.tile([1.0, 2.0, 3.0], (8, 1))
    one, two = (cbo(still, maxiter=k, stagnation_tol=1e-5, **flat).population for k in (1, 2))
    np.testing.assert_array_equal(one, still)  # the first consensus has none to stand still with
    _, _, kick = normals(3, *[x.shape] * 3)
    np.testing.assert_allclose(two, still + 0.5 * 0.2 * kick, rtol=1e-13)
    np.testing.assert_array_equal(cbo(still, maxiter=2, **flat).population, still)


def test_cooling() -> None:
    x = ensemble()
    got = cbo(x, maxiter=6, steps_per_epoch=2, alpha=50.0, alpha_schedule=2.0, sigma=0.6, sigma_schedule="log")
    assert got.alpha == 400
    assert got.sigma == pytest.approx(0.6 / math.log2(5))  # the factors log2(e + 1) / log2(e + 2) telescope
    assert cbo(x, maxiter=6, alpha=50.0, alpha_schedule=2.0, alpha_max=130.0).alpha == 130
    constant, cooled = cbo(x, sigma=0.6), cbo(x, sigma=0.6, sigma_schedule="log")
    np.testing.assert_array_equal(constant.population, cooled.population)  # the first epoch is not cooled


def test_effective_alpha_is_chosen_anew() -> None:
    x = ensemble(100, 3)
    got = cbo(x, fun=rastrigin, maxiter=3, sigma=0.5, alpha_schedule="effective", ess_fraction=0.3)
    f = got.population_fun
    w = np.exp(-got.alpha * (f - f.min()))
    assert w.sum() ** 2 / (w**2).sum() == pytest.approx(30, rel=1e-8)


def test_particle_reduction_by_hand() -> None:
    x = ensemble(20, 3)
    options = {"alpha": 1.0, "sigma": 0.0, "dt": 0.1, "batch_size": 2, "particle_reduction": 0.6}
    for minimum, kept in ((2, 20), (20, 20)):
        assert len(cbo(x, n_particles_min=minimum, **options | {"dt": 1e-9}).population) == kept
    one = cbo(x, **options | {"particle_reduction": 0.0})
    before, after = (np.linalg.norm(v.var(0, ddof=1)) for v in (x, one.population))
    r = (0.6 * after + 0.4 * before) / before
    assert 0.4 < r < 0.8
    got = cbo(x, n_particles_min=2, **options)
    assert len(got.population) == math.ceil(20 / 2 * r) * 2 == len(got.population_fun)
    assert {tuple(row) for row in got.population} <= {tuple(row) for row in one.population}
    assert len(cbo(x, n_particles_min=19, maxiter=3, **options).population) == 19


def test_particle_reduction_goes_down_to_the_minimum() -> None:
    got = cbo(ensemble(40, 3), maxiter=60, sigma=0.1, dt=0.2, particle_reduction=0.3, n_particles_min=10)
    assert len(got.population) == 10


# ------------------------------------------------------------------------------------------------------ limits and laws


def test_full_drift_without_noise_lands_on_the_consensus() -> None:
    x = ensemble()
    c = consensus_point(x, bowl(x), 5.0)
    got = cbo(x, alpha=5.0, lam=4.0, dt=0.25, sigma=0.0)
    np.testing.assert_allclose(got.population, np.tile(c, (8, 1)), rtol=1e-13)
    assert got.spread < 1e-25


def test_one_step_has_the_mean_and_variance_of_its_noise() -> None:
    n, d = 200_000, 2
    x = np.tile([1.0, 3.0], (n, 1))
    x[0] = 0.0  # the best: with alpha = 1e15 the consensus
    for noise, scale in (("anisotropic", [1.0, 3.0]), ("isotropic", [math.sqrt(10)] * 2)):
        y = cbo(x, alpha=1e15, lam=1.0, sigma=0.5, dt=0.04, noise=noise, draw="float32").population[1:]
        np.testing.assert_allclose(y.mean(0), 0.96 * x[1], atol=5 * 0.1 * 3.2 / math.sqrt(n))
        np.testing.assert_allclose(y.std(0), 0.5 * 0.2 * np.array(scale), rtol=0.01)
        assert abs(np.corrcoef(y.T)[0, 1]) < 0.02
        assert d == y.shape[1]


def test_invariances() -> None:
    x = ensemble()
    options = {"maxiter": 5, "alpha": 3.0, "sigma": 0.8}
    base = cbo(x, fun=rastrigin, **options).population
    np.testing.assert_allclose(cbo(x, fun=lambda x: rastrigin(x) + 7, **options).population, base, rtol=1e-9)
    np.testing.assert_allclose(cbo(x + 2, fun=lambda x: rastrigin(x - 2), **options).population, base + 2, rtol=1e-9)
    np.testing.assert_allclose(
        cbo(x, fun=lambda x: 10 * rastrigin(x), **options | {"alpha": 0.3}).population, base, rtol=1e-9
    )
    half = cbo(x / 2, fun=lambda x: rastrigin(2 * x), **options).population
    np.testing.assert_allclose(half, base / 2, rtol=1e-9)


def test_hop_is_the_proximal_step_on_quadratics() -> None:
    """Its error falls as one over the square root of the number of particles."""
    H, target, c, tau = np.diag([1.0, 4.0]), np.array([0.5, -0.3]), np.array([1.0, 0.0]), 0.1
    exact = np.linalg.solve(np.eye(2) + tau * H, c + tau * H @ target)

    def energy(x: Array) -> Array:
        return 0.5 * ((x - target) ** 2 * np.diag(H)).sum(1)

    errors = []
    for n in (400, 6400):
        hops = [
            consensus_hopping(
                energy, c, n_particles=n, alpha=2.0, step=tau, maxiter=1, vectorized=True, seed=s
            ).x - exact for s in range(40)
        ]  # fmt: skip
        errors.append(math.sqrt(np.mean(np.square(hops).sum(1))))
        np.testing.assert_allclose(np.mean(hops, 0), 0, atol=4 * errors[-1] / math.sqrt(40))
    assert math.log(errors[1] / errors[0]) / math.log(16) == pytest.approx(-0.5, abs=0.12)


def test_hopping_by_hand() -> None:
    c = np.array([2.0, -1.0])
    path, s = [c], 0.5
    for k, xi in enumerate(normals(4, *[(6, 2)] * 4), 1):
        x = path[-1] + s * xi
        path.append(consensus_point(x, rastrigin(x), 3.0))
        if k % 2 == 0:
            s *= 0.9
    got = consensus_hopping(
        rastrigin, c, n_particles=6, alpha=3.0, sigma=0.5, sigma_factor=0.9, sigma_every=2, maxiter=4, seed=4,
        vectorized=True, draw="native", return_all=True,
    )  # fmt: skip
    np.testing.assert_allclose(got.allvecs, path, rtol=1e-11)
    np.testing.assert_allclose(got.allfuns, rastrigin(got.allvecs), rtol=1e-13)
    np.testing.assert_array_equal(got.x, got.consensus)
    assert got.fun == rastrigin(got.x)
    assert got.step == pytest.approx(3.0 * s**2)
    assert got.best_fun == min([*got.population_fun, got.best_fun, got.fun])
    assert rastrigin(got.best_x) == got.best_fun
    assert (got.nit, got.nfev, got.status, got.success) == (4, 4 * 6 + 1 + 5, 1, True)


def test_hopping_stops_when_hops_are_short() -> None:
    got = consensus_hopping(bowl, [3.0], step=0.01, n_particles=50, tol=0.05, vectorized=True, seed=0)
    assert got.status == 0
    assert got.nit < 250


# ----------------------------------------------------------------------------------------------- it finds global minima


def test_finds_the_minimum_of_rough_functions() -> None:
    box = [(-3, 3)] * 5
    got = minimize_cbo(ackley, bounds=box, vectorized=True, seed=0, maxiter=1500)
    assert got.fun < 1e-3
    got = minimize_cbo(rastrigin_cbo, bounds=box, vectorized=True, seed=0, n_particles=400)
    assert got.fun < 1e-3
    assert np.abs(got.x).max() < 0.02


def test_follows_the_canyon_over_its_ripples() -> None:
    found = [
        minimize_cbo(
            canyon, [8.0, 8.0], init_std=0.5, alpha=100.0, noise="isotropic", sigma=1.6, maxiter=250,
            vectorized=True, seed=s,
        ).consensus for s in range(5)
    ]  # fmt: skip
    assert np.linalg.norm(found, axis=1).max() < 0.5


def test_default_noise_keeps_its_total_with_the_dimension() -> None:
    assert cbo(ensemble(4, 8), noise="isotropic").sigma == pytest.approx(1.6 * math.sqrt(2 / 8))
    assert cbo(ensemble(4, 8)).sigma == 5


# ----------------------------------------------------------------------------------------------- kinds, seeds and boxes


def test_the_answer_has_the_kind_of_the_start() -> None:
    for x0 in ([2.0, 1.0], (2, 1), np.array([2, 1])):
        got = minimize_cbo(bowl, x0, maxiter=3, seed=0)
        assert got.x.dtype == np.float64
    f32 = minimize_cbo(lambda x: bowl(x), np.array([2, 1], np.float32), maxiter=3, seed=0, vectorized=True)
    assert f32.x.dtype == f32.population.dtype == f32.consensus.dtype == np.float32
    for dtype in (torch.float32, torch.float64):
        seen = set()

        def fun(x: torch.Tensor, dtype: torch.dtype = dtype, seen: set[torch.dtype] = seen) -> torch.Tensor:
            seen.add(x.dtype)
            return bowl(x)

        got = minimize_cbo(fun, torch.ones(3, dtype=dtype), maxiter=3, seed=0, vectorized=True, return_all=True)
        for name in ("x", "consensus", "population", "allvecs"):
            assert got[name].dtype == dtype
            assert not got[name].requires_grad
        assert seen == {dtype}
        one = minimize_cbo(fun, torch.ones(3, dtype=dtype), maxiter=3, seed=0)
        assert torch.equal(one.x, got.x)


def test_runs_repeat_by_seed_and_touch_no_global_generator() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b, c = (minimize_cbo(rastrigin, [1.0, 2.0], maxiter=20, vectorized=True, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.population, b.population)
    assert not np.array_equal(a.population, c.population)
    minimize_cbo(rastrigin, [1.0, 2.0], maxiter=2, vectorized=True)
    consensus_hopping(rastrigin, [1.0, 2.0], maxiter=2, vectorized=True)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_before, np.random.get_state()[1])


def test_scalar_and_vectorized_objectives_agree() -> None:
    scalar = minimize_cbo(lambda x: float(rastrigin(x)), ensemble(), maxiter=5, seed=0)
    together = minimize_cbo(rastrigin, ensemble(), maxiter=5, seed=0, vectorized=True)
    np.testing.assert_array_equal(scalar.population, together.population)


def test_runs_go_on_from_a_population() -> None:
    whole = cbo(ensemble(), fun=rastrigin, maxiter=10, seed=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    half = cbo(ensemble(), fun=rastrigin, maxiter=4, seed=generator)
    rest = cbo(half.population, fun=rastrigin, maxiter=6, seed=generator)
    np.testing.assert_array_equal(whole.population, rest.population)


def test_the_callers_arrays_are_left_alone() -> None:
    x0 = ensemble()

    def rude(x: Array) -> Array:
        f = bowl(x)
        x[:] = math.nan
        return f

    got = cbo(x0, fun=rude, maxiter=3, sigma=0.3)
    np.testing.assert_array_equal(x0, ensemble())
    np.testing.assert_array_equal(got.population, cbo(x0, maxiter=3, sigma=0.3).population)
    tensor = torch.from_numpy(ensemble())
    minimize_cbo(bowl, tensor, maxiter=3, vectorized=True)
    assert torch.equal(tensor, torch.from_numpy(ensemble()))
    result_twice = cbo(x0, maxiter=1)
    result_twice.population[:] = 0
    np.testing.assert_array_equal(x0, ensemble())


def test_reflection_is_that_of_mirrors() -> None:
    box = Box(torch.tensor([0.0, -1.0]).double(), torch.tensor([1.0, -1.0]).double())
    x = torch.tensor([[1.25, 3.0], [-0.25, -1.0], [2.75, -5.0], [0.5, -1.0], [-3.25, 0.0]]).double()
    box.reflect(x)
    assert x[:, 0].tolist() == [0.75, 0.25, 0.75, 0.5, 0.75]
    assert x[:, 1].tolist() == [-1.0] * 5


@pytest.mark.parametrize("bounds", [[(-1, 2), (0, 1)], Bounds([-1, 0], [2, 1]), torch.tensor([[-1.0, 2], [0, 1]])])
def test_particles_stay_in_the_box(bounds: Any) -> None:
    def inside(x: Any) -> Any:
        assert x[:, 0].min() >= -1
        assert x[:, 0].max() <= 2
        assert x[:, 1].min() >= 0
        assert x[:, 1].max() <= 1
        return (x - 3).square().sum(1) if isinstance(x, torch.Tensor) else ((x - 3) ** 2).sum(1)

    got = minimize_cbo(inside, bounds=bounds, vectorized=True, seed=0, maxiter=100, stagnation_tol=1e-3)
    assert type(got.x) is (torch.Tensor if isinstance(bounds, torch.Tensor) else np.ndarray)
    assert float(got.fun) == pytest.approx(5, abs=0.05)
    first = minimize_cbo(inside, bounds=bounds, vectorized=True, seed=0, maxiter=0, n_particles=4000).population
    assert np.asarray(first).mean(0) == pytest.approx([0.5, 0.5], abs=0.06)
    assert np.asarray(first).std(0) == pytest.approx([3 / math.sqrt(12), 1 / math.sqrt(12)], rel=0.05)
    if not isinstance(bounds, torch.Tensor):
        minimize_cbo(inside, [1.9, 0.5], bounds=bounds, vectorized=True, seed=0, maxiter=5)


# ------------------------------------------------------------------------------------------------- results and statuses


def test_the_best_point_ever_is_kept() -> None:
    seen: list[float] = []

    def fun(x: Array) -> Array:
        seen.extend(rastrigin(x))
        return rastrigin(x)

    got = cbo(ensemble(), fun=fun, maxiter=30, sigma=5.0)
    assert got.fun == min(seen) == rastrigin(got.x)
    assert got.nfev == len(seen)
    assert got.history["fun"] == sorted(got.history["fun"], reverse=True)
    assert got.fun_consensus == rastrigin(got.consensus)


def test_statuses() -> None:
    done = cbo(ensemble(), maxiter=5000, tol=1e-6, sigma=0.3, dt=0.05)
    assert (done.status, done.success) == (0, True)
    assert done.spread < 1e-6
    assert done.nfev == 8 * done.nit + 1
    stopped = cbo(ensemble(), maxiter=3)
    assert (stopped.status, stopped.success, stopped.nit) == (1, False, 3)
    assert "maxiter" in stopped.message
    none = cbo(ensemble(), maxiter=0)
    assert (none.status, none.nit, none.nfev) == (1, 0, 9)
    np.testing.assert_array_equal(none.population, ensemble())
    for most, nit in ((9, 0), (16, 0), (17, 1), (100, 11)):
        capped = cbo(ensemble(), maxiter=1000, maxfev=most)
        assert (capped.status, capped.success, capped.nit) == (2, False, nit)
        assert capped.nfev <= most
        assert "maxfev" in capped.message


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
@pytest.mark.parametrize("batch", [None, 4])
def test_divergence_is_said_and_nothing_is_nan(noise: str, batch: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteepestWarning)
        got = cbo(
            ensemble(), maxiter=5000, sigma=500.0, alpha=1.0, noise=noise, batch_size=batch, return_all=True,
            fun=lambda x: np.tanh(bowl(np.clip(x, -9, 9))),
        )  # fmt: skip
    assert (got.status, got.success) == (3, False)
    for name in ("x", "consensus", "population", "population_fun", "allvecs"):
        assert np.isfinite(got[name]).all(), name
    assert len(got.allvecs) == got.nit == len(got.history["fun"])


def test_a_leap_to_infinity_is_taken_back() -> None:
    x = np.array([[1e3, 0.0], [0.0, 0.0], [1.0, 1.0]])
    got = cbo(x, sigma=1e308, fun=lambda x: np.abs(x).max(1))
    assert got.status == 3
    np.testing.assert_array_equal(got.population, x)


def test_batches_of_an_unstable_swarm_warn_once() -> None:
    with pytest.warns(SteepestWarning, match="fly apart") as caught:
        cbo(ensemble(), batch_size=2, sigma=5.0)
    assert len(caught) == 1
    with pytest.warns(SteepestWarning, match="fly apart"):
        cbo(ensemble(), batch_size=2, sigma=1.0, noise="isotropic")
    cbo(ensemble(), batch_size=2, sigma=1.0)
    cbo(ensemble(), sigma=5.0)


def test_callbacks_see_and_stop() -> None:
    seen: list[OptimizeResult] = []

    def look(intermediate_result: OptimizeResult) -> None:
        seen.append(intermediate_result)
        if len(seen) == 3:
            raise StopIteration

    got = cbo(ensemble(), maxiter=10, callback=look, sigma=0.5)
    assert (got.status, got.success, got.nit) == (99, False, 3)
    assert [r.nit for r in seen] == [1, 2, 3]
    assert [r.nfev for r in seen] == [8, 16, 24]
    assert seen[0].fun == bowl(seen[0].x)
    assert seen[0].spread > 0
    np.testing.assert_allclose(seen[0].consensus, consensus_point(ensemble(), bowl(ensemble()), 1e5))
    points: list[Array] = []
    got = cbo(ensemble(), maxiter=10, callback=lambda xk: points.append(xk) or len(points) == 2, sigma=0.5)
    assert (got.status, got.nit) == (99, 2)
    hop = consensus_hopping(bowl, [1.0], maxiter=9, vectorized=True, callback=lambda xk: True)
    assert (hop.status, hop.nit, hop.success) == (99, 1, True)


def test_trajectory() -> None:
    plain, whole = (cbo(ensemble(), maxiter=5, sigma=0.5, return_all=r) for r in (False, True))
    assert "allvecs" not in plain
    assert whole.allvecs.shape == (5, 3)
    np.testing.assert_array_equal(whole.allfuns, bowl(whole.allvecs))
    np.testing.assert_array_equal(plain.population, whole.population)


def test_resample_is_called_before_each_iteration() -> None:
    calls: list[Any] = []

    def fun(x: Array) -> Array:
        calls.append("fun")
        return bowl(x)

    cbo(ensemble(), fun=fun, maxiter=3, resample=calls.append)
    assert calls == [0, "fun", 1, "fun", 2, "fun", "fun", "fun"]


def test_is_a_method_of_scipy() -> None:
    options = {"seed": 0, "maxiter": 300, "sigma": 1.0, "dt": 0.1, "n_particles": 200}
    seen: list[int] = []
    got = minimize(
        lambda x, a: float(((x - a) ** 2).sum()), [3.0, 1.0], args=(0.5,), method=minimize_cbo, options=options,
        tol=1e-8, callback=lambda intermediate_result: seen.append(intermediate_result.nit), jac="2-point",
        bounds=[(-4, 4), (-4, 4)],
    )  # fmt: skip
    assert got.success
    assert got.x == pytest.approx([0.5, 0.5], abs=1e-2)
    assert seen[-1] == got.nit
    with pytest.raises(ValueError, match="constraints must be empty"):
        minimize(bowl, [3.0], method=minimize_cbo, constraints={"type": "eq", "fun": bowl})


# ------------------------------------------------------------------------------------------------- objectives that fail


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_values_that_are_no_numbers_raise_and_keep_the_best(value: float) -> None:
    calls = 0

    def fun(x: Array) -> Array:
        nonlocal calls
        calls += 1
        f = bowl(x)
        if calls == 3:
            f[5] = value
        return f

    with pytest.raises(FloatingPointError, match=r"fun returned (nan|-inf) at particle 5, x = \[") as caught:
        cbo(ensemble(), fun=fun, maxiter=10, sigma=0.5)
    kept = caught.value.result
    assert (kept.status, kept.success) == (4, False)
    assert kept.fun == bowl(kept.x) <= bowl(ensemble()).min()
    assert np.isfinite(kept.population).all()
    assert kept.nfev == 24


def test_an_objective_that_raises_names_the_particle_and_keeps_the_best() -> None:
    calls = 0

    def fun(x: Array) -> float:
        nonlocal calls
        calls += 1
        if calls == 8 + 4:
            raise RuntimeError("the simulator crashed")
        return float(bowl(x))

    with pytest.raises(RuntimeError, match="the simulator crashed") as caught:
        cbo(ensemble(), fun=fun, vectorized=False, maxiter=10, sigma=0.5)
    assert "particle 3, x = [" in caught.value.__notes__[0]
    assert caught.value.result.fun == bowl(ensemble()).min()
    calls = 0
    with pytest.raises(RuntimeError) as hop:
        consensus_hopping(fun, [1.0, 1.0], n_particles=8, maxiter=5)
    assert hop.value.result.best_fun == bowl(hop.value.result.best_x)
    assert not hop.value.result.success


def test_infeasible_points_are_allowed() -> None:
    got = cbo(ensemble(50), fun=lambda x: np.where(x[:, 0] > 0.5, bowl(x), math.inf), maxiter=200, sigma=1.0, dt=0.05)
    assert got.x[0] > 0.5
    assert 0.25 < got.fun < 0.4 < bowl(ensemble(50)[ensemble(50)[:, 0] > 0.5]).min()
    with pytest.raises(FloatingPointError, match="all values of fun are inf"):
        cbo(ensemble(), fun=lambda x: np.full(len(x), math.inf))


# ------------------------------------------------------------------------------------------------------------- workers


def costly(x: Array, shift: float) -> float:
    return float(rastrigin(x - shift))


def picky(x: Array) -> float:
    if x[0] > 1e6:
        raise RuntimeError("too far")
    return float(bowl(x))


def test_a_callers_map_is_used_for_every_point() -> None:
    asked: list[int] = []

    def mapper(f: Any, points: Any) -> Any:
        points = list(points)
        asked.append(len(points))
        return map(f, points)

    ours = minimize_cbo(costly, ensemble(), (0.5,), maxiter=3, seed=0, workers=mapper)
    plain = minimize_cbo(costly, ensemble(), (0.5,), maxiter=3, seed=0, workers=1)
    np.testing.assert_array_equal(ours.population, plain.population)
    assert asked == [8, 8, 8, 8, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_processes_give_the_serial_numbers() -> None:
    shared = minimize_cbo(costly, ensemble(), (0.5,), maxiter=3, seed=0, workers=2)
    plain = minimize_cbo(costly, ensemble(), (0.5,), maxiter=3, seed=0)
    np.testing.assert_array_equal(shared.population, plain.population)
    far = ensemble()
    far[6, 0] = 1e7
    with pytest.raises(RuntimeError, match="too far") as caught:
        minimize_cbo(picky, far, workers=2)
    assert any("particle 6" in note for note in caught.value.__notes__)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_gives_the_serial_numbers() -> None:
    def local_costly(x: Array, shift: float) -> float:  # Ray's workers cannot import the tests
        return float(((x - shift) ** 2).sum())

    def local_picky(x: Array) -> float:
        if x[0] > 1e6:
            raise RuntimeError("too far")
        return float((x**2).sum())

    shared = minimize_cbo(local_costly, ensemble(), (0.5,), maxiter=3, seed=0, workers="ray")
    far = ensemble()
    far[6, 0] = 1e7
    with pytest.raises(RuntimeError, match="too far") as caught:
        minimize_cbo(local_picky, far, workers="ray")
    plain = minimize_cbo(local_costly, ensemble(), (0.5,), maxiter=3, seed=0)
    np.testing.assert_array_equal(shared.population, plain.population)
    assert "particle 6" in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_particles": 1}, ValueError, "n_particles must be an integer >= 2, got 1"),
        ({"alpha": 0.0}, ValueError, "alpha must be > 0"),
        ({"alpha_max": -1.0}, ValueError, "alpha_max must be > 0"),
        ({"lam": 0.0}, ValueError, "lam must be > 0"),
        ({"dt": -0.1}, ValueError, "dt must be > 0"),
        ({"sigma": -1.0}, ValueError, "sigma must be None or >= 0"),
        ({"noise": "white"}, ValueError, "noise must be one of"),
        ({"batch_update": "half"}, ValueError, "batch_update must be one of"),
        ({"alpha_schedule": "warm"}, ValueError, "alpha_schedule must be None, 'effective'"),
        ({"alpha_schedule": 0.0}, ValueError, "alpha_schedule must be None or > 0"),
        ({"sigma_schedule": "linear"}, ValueError, "sigma_schedule must be None or one of"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"batch_size": 201}, ValueError, "batch_size must be <= 200"),
        ({"ess_fraction": 0.0}, ValueError, "ess_fraction must be"),
        ({"particle_reduction": 1.0}, ValueError, "particle_reduction must be"),
        ({"maxiter": -1}, ValueError, "maxiter must be"),
        ({"maxiter": 1.5}, TypeError, "maxiter must be"),
        ({"maxfev": 200}, ValueError, "maxfev must be >= 201"),
        ({"tol": -1.0}, ValueError, "tol must be"),
        ({"draw": "float16"}, ValueError, "draw must be"),
        ({"vectorized": 1}, TypeError, "vectorized must be True or False"),
        ({"gradient_weight": 1.0}, ValueError, "jac must be callable"),
        ({"workers": 0}, ValueError, "workers must be >= 1"),
        ({"workers": "threads"}, ValueError, "workers must be None, an int"),
        ({"workers": 2.0}, TypeError, "workers must be None, an int"),
        ({"workers": 2, "vectorized": True}, ValueError, "workers must be None with vectorized"),
        ({"callback": 3}, TypeError, "callback must be callable"),
        ({"resample": 3}, TypeError, "resample must be callable"),
        ({"seed": "one"}, TypeError, "seed must be"),
        ({"constraints": [1]}, ValueError, "constraints must be empty"),
        ({"bounds": [(0, 1)]}, ValueError, "bounds must be 2 pairs like x0"),
        ({"bounds": [(0, 3), (3, 1)]}, ValueError, "bounds must be pairs with low <= high"),
        ({"bounds": [(0, 3), (0, math.inf)]}, ValueError, "bounds must be finite"),
        ({"bounds": [(0, 3), (0, None)]}, ValueError, "bounds must be .low, high. pairs"),
        ({"bounds": [(0, 1), (0, 3)]}, ValueError, "x0 must be within bounds"),
        ({"x0": [1.0, math.nan]}, ValueError, "x0 must be finite"),
        ({"x0": np.zeros((2, 2, 2))}, ValueError, r"x0 must be of shape \(d,\) or \(N, d\)"),
        ({"x0": np.zeros((1, 2))}, ValueError, "x0 must be an ensemble of at least 2"),
        ({"x0": []}, ValueError, "x0 must be of shape"),
        ({"x0": 3.0}, ValueError, "x0 must be of shape"),
        ({"x0": ["a", "b"]}, TypeError, "x0 must be real numbers"),
        ({"x0": torch.ones(2, dtype=torch.int64)}, TypeError, "x0 must be of a floating dtype"),
        ({"x0": None}, ValueError, "x0 must be given when bounds are not"),
        ({"fun": 3}, TypeError, "fun must be callable"),
        ({"fun": None}, TypeError, "fun must be callable"),
        ({"fun": lambda x: x}, ValueError, "fun must be a function that returns one number"),
        ({"fun": lambda x: x, "vectorized": True}, ValueError, r"fun must be a function that returns shape \(200,\)"),
        ({"fun": lambda x: 1.0, "vectorized": True}, ValueError, "fun must be a function that returns shape"),
        (
            {"jac": lambda x: x[:1], "gradient_weight": 1.0, "vectorized": True},
            ValueError, "jac must be a function that returns",
        ),
        ({"workers": lambda f, x: [1.0]}, ValueError, "workers must be a map that returns 200 values"),
    ],
)  # fmt: skip
def test_bad_input_is_named(options: dict[str, Any], error: type[Exception], match: str) -> None:
    given = {"fun": bowl, "x0": [2.0, 1.0], "maxiter": 2, "seed": 0} | options
    with pytest.raises(error, match=match):
        minimize_cbo(**given)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sigma": 1.0, "step": 1.0}, "sigma must be None when step is given"),
        ({"step": 0.0}, "step must be"),
        ({"step": 1.0, "alpha": math.inf}, "alpha must be finite when step is given"),
        ({"alpha": -1.0}, "alpha must be > 0"),
        ({"sigma_factor": 0.0}, "sigma_factor must be"),
        ({"sigma_every": 0}, "sigma_every must be"),
        ({"x0": np.zeros((3, 2))}, r"x0 must be of shape \(d,\)"),
        ({"maxiter": -1}, "maxiter must be"),
        ({"n_particles": 1}, "n_particles must be"),
    ],
)
def test_bad_input_of_hopping_is_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        consensus_hopping(**({"fun": bowl, "x0": [2.0, 1.0]} | options))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="n_particle"):
        minimize_cbo(bowl, [1.0], n_particle=3)
