import numpy as np
import pytest
import torch

from steepest.policy import harpg_ascent, igt_ascent
from steepest.policy._ascent import State, StepRule, harpg_step, igt_step

A = torch.diag(torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64))
A[0, 2] = A[2, 0] = 0.4
OPTIMUM = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
START = torch.zeros(3, dtype=torch.float64)


def gradient(theta, generator):
    """Of J = -(theta - optimum)^T A (theta - optimum) / 2."""
    return A @ (OPTIMUM - theta)


def hvp(theta, vector, generator):
    return -A @ vector


def noisy_gradient(theta, generator):
    return gradient(theta, generator) + torch.randn(3, generator=generator, dtype=torch.float64)


def noisy_hvp(theta, vector, generator):
    noise = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return -(A + 0.5 * (noise + noise.T)) @ vector


def run(name, **options):
    if name == "igt":
        return igt_ascent(options.pop("gradient", gradient), options.pop("theta0", START), **options)
    oracles = options.pop("gradient", gradient), options.pop("hvp", hvp)
    return harpg_ascent(*oracles, options.pop("theta0", START), **options)


@pytest.mark.parametrize("momentum", [1.0, 0.6])
@pytest.mark.parametrize("normalize", [True, False])
def test_igt_is_the_written_recursion(normalize, momentum):
    n, step, seed = 12, 0.2, 3
    generator = torch.Generator().manual_seed(seed)
    theta = previous = np.zeros(3)
    d = np.zeros(3)
    for t in range(n):
        eta = 1.0 if t == 0 else momentum * (2 / (t + 2)) ** 0.8
        transported = theta + (1 - eta) / eta * (theta - previous)
        d = (1 - eta) * d + eta * noisy_gradient(torch.tensor(transported), generator).numpy()
        move = step * 2 / (t + 2) * d / (np.linalg.norm(d) if normalize else 1)
        theta, previous = theta + move, theta
    result = run("igt", gradient=noisy_gradient, n_iter=n, step=step, momentum=momentum, normalize=normalize, seed=seed)
    np.testing.assert_allclose(result.x, theta, rtol=1e-12)
    np.testing.assert_allclose(result.direction, d, rtol=1e-12)


@pytest.mark.parametrize("momentum", [1.0, 0.6])
@pytest.mark.parametrize("normalize", [True, False])
def test_harpg_is_the_written_recursion(normalize, momentum):
    n, step, seed = 12, 0.2, 3
    generator = torch.Generator().manual_seed(seed)
    theta = previous = np.zeros(3)
    d = np.zeros(3)

    def curved(theta, vector, generator):  # an oracle that knows where it was asked
        return noisy_hvp(theta, vector, generator) * (1 + theta[0])

    for t in range(n):
        eta = 1.0 if t == 0 else momentum * 2 / (t + 2)
        g = noisy_gradient(torch.tensor(theta), generator).numpy()
        v = np.zeros(3)
        if t > 0:
            q = float(torch.rand((), generator=generator, dtype=torch.float64))
            point = torch.tensor(q * theta + (1 - q) * previous)
            v = curved(point, torch.tensor(theta - previous), generator).numpy()
        d = (1 - eta) * (d + v) + eta * g
        move = step * (2 / (t + 2)) ** (1 if normalize else 0.5) * d / (np.linalg.norm(d) if normalize else 1)
        theta, previous = theta + move, theta
    options = {"n_iter": n, "step": step, "momentum": momentum, "normalize": normalize, "seed": seed}
    result = run("harpg", gradient=noisy_gradient, hvp=curved, **options)
    np.testing.assert_allclose(result.x, theta, rtol=1e-12)
    np.testing.assert_allclose(result.direction, d, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [("igt", {}), ("igt", {"momentum": 0.5}), ("harpg", {"normalize": True}), ("harpg", {"momentum": 0.5})],
)
def test_without_noise_the_direction_of_a_quadratic_is_its_gradient(name, options):
    result = run(name, n_iter=200, return_all=True, **options)
    exact = torch.stack([gradient(theta, None) for theta in result.allvecs[:-1]])
    assert (result.directions - exact).abs().max() < 1e-10


def test_plain_momentum_lags_behind_the_gradient():
    result = run("igt", transport=False, n_iter=200, return_all=True)
    exact = torch.stack([gradient(theta, None) for theta in result.allvecs[:-1]])
    assert (result.directions - exact).abs().max() > 1e-2


def test_uniform_points_of_the_segment_give_the_difference_of_gradients():
    """On a function with no constant curvature the mean over q of v_t is the difference, to quadrature's precision."""
    theta, previous = torch.tensor([1.2, -0.5]).double(), torch.tensor([0.1, 0.4]).double()
    rule = StepRule(1.0, 1e-3, 0.0, 0.0, False)
    nodes, weights = np.polynomial.legendre.leggauss(30)
    mean = 0.0
    for q, w in zip((nodes + 1) / 2, weights / 2):
        state, _ = harpg_step(
            State(theta, previous, torch.zeros(2).double(), 3),
            rule,
            lambda point: torch.zeros(2).double(),
            lambda point, u: -(1 - torch.tanh(point) ** 2) * u,
            lambda q=float(q): q,
        )
        mean = mean + w * state.direction
    expected = (1 - 1e-3) * (torch.tanh(previous) - torch.tanh(theta))
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_are_runs_of_their_own(normalize):
    rule = StepRule(0.3, 0.7, 0.8, 1.0, normalize, transport=True)
    starts = torch.tensor([[0.0, 0.0, 0.0], [3.0, 1.0, -2.0], [1.0, -2.0, 0.5]], dtype=torch.float64)  # the last: d = 0
    q = torch.tensor([[0.2], [0.9], [0.5]], dtype=torch.float64)

    def run_rows(theta, q):
        ends = []
        for step in (
            lambda state: igt_step(state, rule, lambda point: (OPTIMUM - point) @ A),
            lambda state: harpg_step(
                state, rule, lambda point: (OPTIMUM - point) @ A, lambda point, u: -(1 + point**2) * u, lambda: q
            ),
        ):
            state = State.start(theta)
            for _ in range(4):
                state, _ = step(state)
            ends += [state.theta, state.direction]
        return ends

    together = run_rows(starts, q)
    for k in range(3):
        for rows, alone in zip(together, run_rows(starts[k], q[k])):
            torch.testing.assert_close(rows[k], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("igt", {"step": 1.0}),
        ("harpg", {"step": 1.0, "normalize": True}),
        ("harpg", {"step": 0.2}),
    ],
)
def test_noise_averages_out_at_the_optimum(name, options):
    oracles = {"gradient": noisy_gradient} | ({"hvp": noisy_hvp} if name == "harpg" else {})
    runs = [run(name, n_iter=900, seed=seed, return_all=True, **oracles, **options) for seed in range(2)]
    assert np.mean([(r.x - OPTIMUM).norm() for r in runs]) < 0.2  # the start is 2.3 away
    lags = [(r.direction - gradient(r.allvecs[-2], None)).norm() for r in runs]
    assert np.mean(lags) < 0.3  # a single gradient is off by sqrt(3)


def test_the_first_direction_is_the_gradient_whatever_the_momentum():
    for name in ("igt", "harpg"):
        result = run(name, n_iter=1, momentum=0.1)
        assert torch.equal(result.direction, gradient(START, None))


def test_at_a_stationary_point_nothing_moves():
    for name in ("igt", "harpg"):
        result = run(name, theta0=OPTIMUM, n_iter=5, normalize=True)
        assert torch.equal(result.x, OPTIMUM)
        assert torch.equal(result.direction, torch.zeros(3).double())


def test_what_the_result_holds():
    start = START.clone()
    one = run("igt", gradient=noisy_gradient, n_iter=7, seed=1, return_all=True, theta0=start)
    two = run("harpg", gradient=noisy_gradient, n_iter=7, seed=1, return_all=True)
    assert (one.nit, one.ntraj, two.nit, two.ntraj) == (7, 7, 7, 13)
    for result in (one, two):
        assert result.success
        assert result.status == 0
        assert "7 iterations" in result.message
        assert result.allvecs.shape == (8, 3)
        assert result.directions.shape == (7, 3)
        assert torch.equal(result.allvecs[-1], result.x)
        assert torch.equal(result.directions[-1], result.direction)
        assert len(result.history["eta"]) == 7
    assert one.history["step_size"][:2] == pytest.approx([0.1, 0.1 * 2 / 3])
    assert np.isnan(two.history["hvp_norm"][0])
    assert two.history["hvp_norm"][1] > 0
    assert "allvecs" not in run("igt", n_iter=1)
    assert torch.equal(start, START)


def test_counts_of_oracle_calls():
    calls = {"gradient": 0, "hvp": 0}

    def counted(name, oracle):
        def ask(*arguments):
            calls[name] += 1
            return oracle(*arguments)

        return ask

    run("harpg", gradient=counted("gradient", gradient), hvp=counted("hvp", hvp), n_iter=9)
    assert calls == {"gradient": 9, "hvp": 8}


def test_seeds_and_global_generators():
    before = torch.get_rng_state()
    for name in ("igt", "harpg"):
        a, b, c = (run(name, gradient=noisy_gradient, n_iter=5, seed=seed).x for seed in (0, 0, 1))
        d = run(name, gradient=noisy_gradient, n_iter=5, seed=torch.Generator().manual_seed(0)).x
        assert torch.equal(a, b)
        assert torch.equal(a, d)
        assert not torch.equal(a, c)
        run(name, gradient=noisy_gradient, n_iter=2)
    assert torch.equal(before, torch.get_rng_state())


def test_float32_stays_float32():
    result = run("igt", gradient=lambda theta, generator: 1 - theta, theta0=torch.zeros(2), n_iter=50)
    assert result.x.dtype == torch.float32


def test_callback_sees_the_iterates_and_can_stop():
    seen = []

    def callback(x):
        seen.append(x)
        if len(seen) == 3:
            raise StopIteration

    result = run("igt", n_iter=10, callback=callback, return_all=True)
    assert (result.nit, result.ntraj, result.success) == (3, 3, False)
    assert torch.equal(torch.stack(seen), result.allvecs[1:])


@pytest.mark.parametrize("name", ["igt", "harpg"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"n_iter": 0}, ValueError, "n_iter must be an integer >= 1, got 0"),
        ({"step": 0.0}, ValueError, "step must be"),
        ({"step": float("nan")}, ValueError, "step must be"),
        ({"momentum": 0.0}, ValueError, r"momentum must be a number in \(0, 1\]"),
        ({"momentum": 1.1}, ValueError, "momentum must be"),
        ({"momentum_exponent": -1.0}, ValueError, "momentum_exponent must be"),
        ({"step_exponent": -1.0}, ValueError, "step_exponent must be"),
        ({"normalize": 1}, TypeError, "normalize must be True or False"),
        ({"gradient": 3}, TypeError, "gradient must be callable"),
        ({"theta0": [0.0]}, TypeError, "theta0 must be a tensor"),
        ({"theta0": torch.zeros(2, 2)}, ValueError, r"theta0 must be .* shape \(p,\)"),
        ({"theta0": torch.zeros(0)}, ValueError, "theta0 must be"),
        ({"theta0": torch.full((2,), torch.nan)}, ValueError, "theta0 must be finite"),
        ({"theta0": torch.zeros(2, dtype=torch.int64)}, ValueError, "theta0 must be"),
        ({"gradient": lambda theta, generator: 0.0}, TypeError, "the output of gradient must be a tensor"),
        ({"gradient": lambda theta, generator: torch.zeros(2)}, ValueError, "the output of gradient must be"),
        ({"gradient": lambda theta, generator: theta * torch.nan}, FloatingPointError, "gradient .* at iteration 0"),
        ({"seed": -1}, ValueError, "seed must be"),
    ],
)
def test_bad_input(name, change, error, text):
    with pytest.raises(error, match=text):
        run(name, **({"n_iter": 3} | change))


def test_bad_hessian_oracles():
    with pytest.raises(TypeError, match="hvp must be callable"):
        run("harpg", hvp=None, n_iter=3)
    with pytest.raises(ValueError, match="output of hvp"):
        run("harpg", hvp=lambda theta, u, generator: u[:1], n_iter=3)
    with pytest.raises(FloatingPointError, match="Hessian-vector product is not finite at iteration 1"):
        run("harpg", hvp=lambda theta, u, generator: u / 0, n_iter=3)
