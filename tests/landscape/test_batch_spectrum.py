"""Tests of extreme curvature and learning rates as functions of the batch size, and of the learner."""

import itertools
import math
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.exceptions import NotFittedError
from torch import nn

from steepest.core.errors import SteepestWarning
from steepest.core.extras import installed
from steepest.curvature import GGNOperator, HessianOperator, SpectralDensity, slq
from steepest.landscape import (
    BatchSpectrum,
    LearningRate,
    _batch_curvature,
    batch_extreme_eigenvalue,
    effective_batch,
    learning_rate_from_spectrum,
    scale_learning_rate,
)
from steepest.landscape._curvature_steps import CurvatureSteps, Measured
from steepest.landscape._learning_rates import population_extreme, saturation_batch
from tests import processes

# ------------------------------------------------------------------------------------------------------- the formulas


def test_effective_batch_is_what_a_mean_without_replacement_counts():
    """Over all batches of a small population the variance of the mean is S^2 / b, S^2 with divisor N - 1."""
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 3.0])
    for B in range(1, 6):
        means = [np.mean(batch) for batch in itertools.combinations(values, B)]
        assert np.var(means) == pytest.approx(values.var(ddof=1) / effective_batch(B, 6), rel=1e-12)
    assert effective_batch(6, 6) == math.inf
    assert effective_batch(2.5) == 2.5


@pytest.mark.parametrize("lam", [6.0, -6.0, 2.0, -0.5])
def test_spiked_model_by_sampled_matrices(lam):
    """H + E with Wigner noise of variance sigma^2 / b: both sides of the threshold, both ends."""
    P, noise, B = 500, 64.0, 8
    s = math.sqrt(noise / B)  # 2.83
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2):
        E = rng.standard_normal((P, P)) * math.sqrt(noise / P / B)
        E = np.triu(E) + np.triu(E, 1).T
        E[3, 3] += lam
        ends = np.linalg.eigvalsh(E)
        found.append(ends[-1] if lam > 0 else ends[0])
    predicted = batch_extreme_eigenvalue(lam, noise, B)
    assert np.mean(found) == pytest.approx(predicted, rel=0.03)  # the edge of 500 lies 2 % inside
    assert predicted == pytest.approx(lam + s * s / lam if abs(lam) > s else math.copysign(2 * s, lam))


def test_extreme_is_continuous_odd_and_saturates():
    noise, B = 5.0, 7.0
    s = math.sqrt(noise / B)
    assert batch_extreme_eigenvalue(s * (1 + 1e-9), noise, B) == pytest.approx(2 * s, rel=1e-8)
    assert batch_extreme_eigenvalue(s * (1 - 1e-9), noise, B) == pytest.approx(2 * s, rel=1e-8)
    assert batch_extreme_eigenvalue(-1.3, noise, B) == -batch_extreme_eigenvalue(1.3, noise, B)
    assert batch_extreme_eigenvalue(0.0, noise, B) == pytest.approx(2 * s)
    assert batch_extreme_eigenvalue(1.3, noise, 50, num_data=50) == 1.3
    assert batch_extreme_eigenvalue(0.0, noise, 50, num_data=50) == 0.0
    assert batch_extreme_eigenvalue(1.3, 0.0, 1) == 1.3


def test_slopes_of_the_three_regimes():
    def slope(lam, low, high):
        a, b = (batch_extreme_eigenvalue(lam, 100.0, B) - (lam if lam > 1 else 0) for B in (low, high))
        return math.log(b / a) / math.log(high / low)

    assert slope(0.01, 2, 32) == pytest.approx(-0.5)
    assert slope(50.0, 2, 32) == pytest.approx(-1.0)


def test_population_extreme_undoes_the_formula():
    for lam in (3.0, -3.0):
        assert population_extreme(batch_extreme_eigenvalue(lam, 4.0, 2), 2.0) == pytest.approx(lam, rel=1e-12)
    assert population_extreme(1.0, 100.0) == 0.5  # hidden: all that is known is |lambda| <= s
    assert population_extreme(0.0, 0.0) == 0.0


def test_saturation_batch_doubles_the_extreme():
    lam, noise, N = 0.7, 30.0, 500
    B = saturation_batch(lam, noise, N)
    assert batch_extreme_eigenvalue(lam * (1 + 1e-12), noise, B, num_data=N) == pytest.approx(2 * lam)
    assert saturation_batch(0.0, 1.0) == math.inf


def test_rules_without_and_with_a_spectrum():
    assert scale_learning_rate(0.1, 32, 128) == pytest.approx(0.4)
    assert scale_learning_rate(0.1, 32, 128, optimizer="adam") == pytest.approx(0.2)
    assert scale_learning_rate(0.1, 32, 8192, max_lr=1.0) == 1.0
    hidden = scale_learning_rate(0.1, 32, 128, spectrum=(1e-9, 50.0))
    assert hidden == pytest.approx(0.2)  # lambda_B ~ B^-1/2 while the spike is hidden
    saturated = scale_learning_rate(0.1, 500, 1000, spectrum=(10.0, 50.0), num_data=1000)
    assert saturated == pytest.approx(0.1 * (10 + 0.1 / 2 / 10 * 1) / 10, rel=1e-3)
    both = scale_learning_rate(0.1, 32, 128, spectrum=(1.0, 10.0))
    assert scale_learning_rate(0.1, 32, 128, spectrum=(1.0, 10.0), optimizer="adam") == pytest.approx(
        0.1 * math.sqrt(both / 0.1)
    )
    assert scale_learning_rate(0.3, 7, 7, spectrum=(1.0, 10.0)) == pytest.approx(0.3)


def test_heavy_ball_rate_is_the_quadratics_optimum():
    """The error falls by sqrt(momentum) a step at both ends, and by more at no other setting nearby."""
    eigenvalues = np.array([0.2, 1.0, 7.0])
    found = learning_rate_from_spectrum(eigenvalues)

    def radius(lr, beta):
        return max(np.abs(np.linalg.eigvals([[1 + beta - lr * a, -beta], [1.0, 0.0]])).max() for a in eigenvalues)

    assert radius(found.lr, found.momentum) == pytest.approx(math.sqrt(found.momentum), abs=1e-6)
    for lr, beta in itertools.product((0.97, 1.0, 1.03), repeat=2):
        assert radius(found.lr * lr, found.momentum * beta) >= math.sqrt(found.momentum) - 1e-6
    plain = learning_rate_from_spectrum(eigenvalues, momentum=False)
    assert (plain.lr, plain.momentum, plain.condition) == (pytest.approx(2 / 7.2), 0.0, pytest.approx(35.0))


def test_torch_sgd_converges_at_that_rate():
    eigenvalues = torch.tensor([0.2, 1.0, 7.0], dtype=torch.float64)
    found = learning_rate_from_spectrum(eigenvalues)
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt = torch.optim.SGD([w], lr=found.lr, momentum=found.momentum)
    lengths = []
    for _ in range(60):
        opt.zero_grad()
        (eigenvalues * w**2).sum().div(2).backward()
        opt.step()
        lengths.append(float(w.detach().norm()))
    rate = (lengths[-1] / lengths[29]) ** (1 / 30)
    assert rate == pytest.approx(math.sqrt(found.momentum), rel=0.04)


@pytest.mark.parametrize("momentum", [True, False])
def test_the_loss_times_c_divides_the_rate_by_c(momentum):
    eigenvalues = np.array([-3.0, 1e-7, 0.3, 2.0, 5.0])
    one = learning_rate_from_spectrum(eigenvalues, momentum=momentum)
    sixteen = learning_rate_from_spectrum(16 * eigenvalues, momentum=momentum)
    assert one.lr / sixteen.lr == 16.0  # a power of 4: exact
    assert one.momentum == sixteen.momentum


def test_negative_and_flat_directions_do_not_count():
    found = learning_rate_from_spectrum([-9.0, 0.0, 3.9e-4, 4.1e-4, 4.0], safety=0.5)
    assert (found.lambda_min, found.lambda_max) == (4.1e-4, 4.0)
    assert learning_rate_from_spectrum([-9.0, 4.0]) == LearningRate(0.25, 0.0, 4.0, 4.0, 1.0)
    assert learning_rate_from_spectrum([0.3, 4.0], relative_floor=0.1).lambda_min == 4.0
    density = SpectralDensity(*(torch.tensor([[x]]) for x in (2.0, 1.0, 0.0)), 1, 1)
    assert learning_rate_from_spectrum(density).lr == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------------- a model's data


def problem(n=96, d=5, classes=4, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=dtype)
    y = torch.randint(classes, (n,), generator=g)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(d, 6), nn.Tanh(), nn.Linear(6, classes)).to(dtype)
    return model, nn.CrossEntropyLoss(), X, y


@pytest.mark.parametrize(("curvature", "operator"), [("ggn", GGNOperator), ("hessian", HessianOperator)])
def test_measured_extremes_are_those_of_dense_matrices(curvature, operator):
    model, loss_fn, X, y = problem()
    spectrum = BatchSpectrum(model, loss_fn, X, y, curvature=curvature, num_steps=64, batch_sizes=(8,), repeats=3)
    ends = spectrum.measure_ends(16, 2)
    rng = np.random.default_rng([0, 16, 1])
    for k in range(2):
        index = rng.choice(96, 16, replace=False)
        dense = torch.linalg.eigvalsh(operator(model, loss_fn, (X[index], y[index])).dense())
        assert ends[k] == pytest.approx([float(dense[0]), float(dense[-1])], abs=1e-9)
    full = torch.linalg.eigvalsh(operator(model, loss_fn, (X, y)).dense())
    spectrum.fit()
    assert spectrum.lambda_max_ == pytest.approx(float(full[-1]), rel=1e-9)
    assert spectrum.lambda_min_ == pytest.approx(float(full[0]), abs=1e-9)
    assert spectrum.measure(96, 1)[0] == pytest.approx(spectrum.lambda_max_, rel=1e-9)
    np.testing.assert_array_equal(spectrum.measure_ends(16, 5)[:2], ends)  # neither fit nor repeats change the draws
    assert spectrum.extreme(8) == pytest.approx(spectrum.measured_[8], rel=1e-12)
    assert spectrum.measured_[8] == pytest.approx(spectrum.measure(8).mean())
    low = spectrum.extreme_lower(8)
    assert low == pytest.approx(spectrum.measure_ends(8)[:, 0].mean() if curvature == "hessian" else 0.0, abs=1e-9)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_directional_noise_is_that_of_dense_per_sample_matrices(curvature):
    model, loss_fn, X, y = problem(n=24)
    operator = GGNOperator if curvature == "ggn" else HessianOperator
    H = operator(model, loss_fn, (X, y)).dense()
    u = torch.linalg.eigh(H)[1][:, -1]
    samples = [operator(model, loss_fn, (X[i : i + 1], y[i : i + 1])).dense() for i in range(24)]
    exact = sum(float(((H_i - H) @ u).square().sum()) for H_i in samples) / 23
    frobenius = sum(float((H_i - H).square().sum()) for H_i in samples) / 23 / len(H)
    found = BatchSpectrum(
        model, loss_fn, X, y, curvature=curvature, num_steps=64, batch_sizes=(4,), noise="directional"
    )
    found.fit()
    assert found.noise_estimates_["directional"] == pytest.approx(exact, rel=1e-8)
    assert found.noise_ == found.noise_estimates_["directional"]
    assert found.noise_estimates_["frobenius"] == pytest.approx(frobenius, rel=0.25)  # eight probes


def test_frobenius_noise_is_exact_where_sample_curvature_is_diagonal():
    X = torch.eye(4, dtype=torch.float64).repeat(3, 1) * torch.arange(1.0, 13.0, dtype=torch.float64)[:, None]
    model = nn.Linear(4, 1, bias=False).double()
    found = BatchSpectrum(model, nn.MSELoss(), X, torch.zeros(12, 1, dtype=torch.float64), batch_sizes=(3,))
    found.fit()
    H_i = 2 * torch.einsum("ni,nj->nij", X, X)
    exact = float((H_i - H_i.mean(0)).square().sum() / 11 / 4)
    assert found.noise_estimates_["frobenius"] == pytest.approx(exact, rel=1e-12)


def test_noise_is_solved_for_in_either_regime():
    model, loss_fn, X, y = problem()
    spectrum = BatchSpectrum(model, loss_fn, X, y)
    b = effective_batch(16, 96)
    for lam, noise in ((2.0, 8.0), (0.1, 8.0), (-2.0, 8.0), (-0.1, 8.0)):
        lam_B = batch_extreme_eigenvalue(lam, noise, 16, num_data=96)
        assert spectrum._measured_noise(lam, {16: lam_B}) == pytest.approx(noise, rel=1e-12)
    two = spectrum._measured_noise(2.0, {16: 2.0 + 1.0 / b / 2.0, 32: 2.0 + 9.0 / effective_batch(32, 96) / 2.0})
    assert two == pytest.approx(3.0)  # the geometric mean


def test_drowned_noise_warns_and_is_left_out():
    X = torch.ones(40, 2)
    model = nn.Linear(2, 1, bias=False)
    spectrum = BatchSpectrum(model, nn.MSELoss(), X, torch.zeros(40, 1), batch_sizes=(4,))
    with pytest.warns(SteepestWarning, match="batches of 4 .* no noise is seen"):
        spectrum.fit()
    assert spectrum.noise_ == 0.0
    assert spectrum.measured_[4] == pytest.approx(spectrum.lambda_max_)
    assert spectrum.extreme(1) == spectrum.lambda_max_


def test_unresolved_extremes_warn():
    model, loss_fn, X, y = problem()
    with pytest.warns(SteepestWarning, match="raise num_steps"):
        BatchSpectrum(model, loss_fn, X, y, num_steps=2).measure(16, 1)


def test_large_graphs_are_built_part_by_part(monkeypatch):
    """A sample of the network 5-6-4 keeps its input, the hidden layer and the loss's log-probabilities, at least."""
    model, loss_fn, X, y = problem()
    whole = BatchSpectrum(model, loss_fn, X, y)
    assert whole._part() == 4096
    per_sample = whole._kept_bytes(2) - whole._kept_bytes(1)
    assert per_sample >= 8 * (5 + 6 + 4)
    assert whole._kept_bytes(9) - whole._kept_bytes(1) == 8 * per_sample
    monkeypatch.setattr(_batch_curvature, "GRAPH_BYTES", 17 * per_sample + 3)
    parts = BatchSpectrum(model, loss_fn, X, y)
    assert parts._part() == 17
    assert parts.measure(96, 1) == pytest.approx(whole.measure(96, 1), rel=1e-10)
    assert parts._loss(X, y) == pytest.approx(whole._loss(X, y), rel=1e-12)


def test_models_without_per_sample_products_say_so():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if float(x.sum()) > 1e9 else 1.0)  # not possible under vmap

    model, (_, loss_fn, X, y) = Branching(5, 4).double(), problem()
    with pytest.warns(SteepestWarning, match="no per-sample curvature"):
        found = BatchSpectrum(model, loss_fn, X, y).fit()
    assert math.isnan(found.noise_estimates_["frobenius"])
    assert found.noise_ > 0
    with pytest.raises(RuntimeError):
        BatchSpectrum(model, loss_fn, X, y, noise="frobenius").fit()


def test_a_subset_is_freed_of_its_own_excess():
    model, loss_fn, X, y = problem()
    alone = BatchSpectrum(model, loss_fn, X, y).fit()
    part = BatchSpectrum(model, loss_fn, X, y, num_data=960).fit()
    assert part.noise_ == alone.noise_
    excess = part.noise_ * (1 / 96 - 1 / 960)
    assert part.lambda_max_ + excess / part.lambda_max_ == pytest.approx(alone.lambda_max_, rel=1e-12)
    assert part.extreme(96) == pytest.approx(alone.lambda_max_, rel=1e-12)
    assert part.extreme(960) == part.lambda_max_


def test_advice():
    model, loss_fn, X, y = problem()
    found = BatchSpectrum(model, loss_fn, X, y).fit()
    pair = (found.lambda_max_, found.noise_)
    advice = found.recommend(0.1, 8, 32)
    assert advice.lr == scale_learning_rate(0.1, 8, 32, spectrum=pair, num_data=96)
    assert advice.lr / 0.1 == pytest.approx(found.max_learning_rate(32) / found.max_learning_rate(8))
    adam = found.recommend(0.1, 8, 32, "adam")
    assert adam.lr / 0.1 == pytest.approx(found.max_learning_rate(32, "adam") / found.max_learning_rate(8, "adam"))
    assert advice.saturation_batch == saturation_batch(*pair, 96)
    assert "batch 8 -> 32" in str(advice)
    assert found.max_learning_rate(8) == 2 / found.extreme(8)
    assert learning_rate_from_spectrum(found).lambda_max == pytest.approx(found.lambda_max_)


# --------------------------------------------------------------------------------------------------------- the learner


def density(*eigenvalues):
    nodes = torch.tensor([sorted(eigenvalues)], dtype=torch.float64)
    return SpectralDensity(nodes, torch.full_like(nodes, 1 / nodes.numel()), torch.zeros_like(nodes), 9, 9)


class Script:
    """Optimizer steps with written measurements and gradients."""

    def __init__(self, measured, optimizer=None, **options):
        self.w = nn.Parameter(torch.zeros(1))
        self.optimizer = optimizer([self.w]) if optimizer else torch.optim.SGD([self.w], lr=7.0, momentum=0.3)
        self.left, self.history = list(measured), []
        defaults = {"every": 1, "momentum": True, "safety": 1.0, "relative_floor": 1e-3, "ema": 0.0, "max_growth": 1.2}
        defaults["warmup"] = 0
        self.steps = CurvatureSteps(
            self.optimizer, self.measure, self.history, **{**defaults, "callback": None, **options}
        )

    def measure(self):
        eigenvalue, loss = self.left.pop(0)
        return Measured(density(eigenvalue), loss)

    def step(self, gradient=1.0):
        self.w.grad = torch.full((1,), gradient)
        self.optimizer.step()
        return self.optimizer.param_groups[0]["lr"]


def test_growth_is_capped_and_decrease_is_not():
    script = Script([(1.0, 9.0), (0.1, 8.0), (100.0, 7.0)])
    assert [script.step() for _ in range(3)] == pytest.approx([1.0, 1.2, 0.01])


def test_logarithms_are_averaged_from_the_second_update_on():
    script = Script([(1.0, 9.0), (16.0, 8.0)], ema=0.25)
    assert [script.step() for _ in range(2)] == pytest.approx([1.0, 1 / 8.0])


def test_the_guard_halves_and_looks_again():
    """lambda_1 falls to less than a third while the loss rises: saturation. The second look replaces the first."""
    script = Script([(1.0, 1.0), (0.3, 2.0), (0.9, 1.1), (0.9, 1.0)], every=3)
    assert [script.step() for _ in range(4)] == pytest.approx([1.0, 1.0, 1.0, 0.5])
    assert len(script.history) == 2
    assert script.history[-1].lambda_max == 1.0  # not believed
    assert script.step() == pytest.approx(1 / 0.9)  # believed, and growth counts from 1, not from 0.5
    assert [r.lambda_max for r in script.history] == pytest.approx([1.0, 0.9])
    assert [script.step() for _ in range(2)] == pytest.approx([1 / 0.9] * 2)
    assert not script.left


def test_the_guard_stays_halved_where_the_second_look_agrees():
    script = Script([(1.0, 1.0), (0.3, 2.0), (0.2, 2.1), (0.2, 2.0)], every=2)
    assert [script.step() for _ in range(5)] == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.6])
    assert [r.lambda_max for r in script.history] == pytest.approx([1.0, 0.2, 0.2])


@pytest.mark.parametrize("second", [(0.3, 0.9), (0.34, 2.0)])
def test_the_guard_lets_flatness_and_small_changes_pass(second):
    script = Script([(1.0, 1.0), second])
    assert [script.step() for _ in range(2)] == pytest.approx([1.0, 1.2])


def test_vanished_curvature_keeps_the_rate():
    script = Script([(1.0, 1.0), (0.0, 0.5), (1.0, 0.4)])
    assert [script.step() for _ in range(3)] == pytest.approx([1.0, 1.0, 1.0])
    stuck = Script([(1.0, 1.0), (0.0, 2.0), (0.0, 2.0)], every=2)
    assert [stuck.step() for _ in range(4)] == pytest.approx([1.0, 1.0, 0.5, 0.5])


def test_a_gradient_twice_as_long_has_the_curvature_measured_at_once():
    script = Script([(1.0, 9.0), (4.0, 9.0), (0.8, 8.0), (0.4, 8.0)], every=4)
    assert [script.step(g) for g in (1.0, 1.9, 4.0, 4.0)] == pytest.approx([1.0, 1.0, 0.25, 0.25])
    assert len(script.history) == 1
    assert script.step(3.0) == pytest.approx(1.2)  # the cap counts from the rate before
    assert script.step(8.1) == pytest.approx(1.2)  # out of turn the rate may only fall
    assert not script.left


def test_the_watch_remembers_two_periods():
    script = Script([(1.0, 9.0), (1.0, 8.0), (1.0, 7.0), (4.0, 6.0)], every=2)
    for gradient in (4.0, 1.0, 1.0, 3.0, 1.0):  # 3 is no more than twice the 4 of the period before
        script.step(gradient)
    assert len(script.left) == 1
    assert script.step(6.1) == pytest.approx(0.25)  # 4 is forgotten, 3 is not
    assert not script.left


def test_the_rate_is_worked_up_to():
    script = Script([(0.5, 9.0), (1.0, 8.0), (1.0, 8.0)], every=3, warmup=4)
    assert [script.step() for _ in range(7)] == pytest.approx([0.5, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0])
    assert [r.lr for r in script.history] == pytest.approx([2.0, 1.0, 1.0])  # what it rises to
    script = Script([(1.0, 9.0), (4.0, 9.0)], every=5, warmup=4)
    assert [script.step(g) for g in (1.0, 2.1, 1.0, 1.0)] == pytest.approx([0.25, 0.125, 0.1875, 0.25])  # watched


def test_adaptive_methods_follow_the_root_relative_to_their_own_rate():
    groups = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]

    def adam(params):
        return torch.optim.Adam([{"params": params, "lr": 0.1}, {"params": [groups[0]], "lr": 0.02}])

    script = Script([(1.0, 9.0), (4.0, 8.0), (4.0, 8.0)], adam, momentum=False)
    script.step()
    assert [g["lr"] for g in script.optimizer.param_groups] == pytest.approx([0.1, 0.02])
    script.step()
    assert [g["lr"] for g in script.optimizer.param_groups] == pytest.approx([0.05, 0.01])
    script.optimizer.add_param_group({"params": [groups[1]], "lr": 0.3})
    script.step()
    assert script.optimizer.param_groups[2]["lr"] == pytest.approx(0.15)
    script.steps.remove()
    assert [g["lr"] for g in script.optimizer.param_groups] == [0.1, 0.02, 0.3]


def test_a_rate_that_is_a_tensor_is_set_in_place():
    lr = torch.tensor(7.0)
    script = Script([(4.0, 9.0)], lambda params: torch.optim.SGD(params, lr=lr, momentum=0.3))
    script.step()
    assert lr.item() == pytest.approx(0.25)
    assert script.optimizer.param_groups[0]["lr"] is lr
    script.steps.remove()
    assert lr.item() == 7.0


def test_attach_sets_the_closed_form_and_detach_gives_back():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(50, 3, generator=g, dtype=torch.float64)
    model, y = nn.Linear(3, 1, bias=False).double(), torch.zeros(50, 1, dtype=torch.float64)
    opt = torch.optim.SGD(model.parameters(), lr=9.0, momentum=0.4, weight_decay=0.0)
    seen = []
    tool = BatchSpectrum(model, nn.MSELoss(), X, y).attach(
        opt, every=3, safety=0.5, relative_floor=1e-6, callback=seen.append
    )
    eigenvalues = torch.linalg.eigvalsh(2 * X.T @ X / 50)
    expected = learning_rate_from_spectrum(eigenvalues, safety=0.5)
    for t in range(7):
        opt.zero_grad()
        nn.MSELoss()(model(X), y).backward()
        opt.step()
        assert len(tool.history) == t // 3 + 1
        assert opt.param_groups[0]["lr"] == pytest.approx(expected.lr, rel=1e-9)
        assert opt.param_groups[0]["momentum"] == pytest.approx(expected.momentum, rel=1e-7)
    assert seen == tool.history
    assert tool.history[0].condition == pytest.approx(expected.condition, rel=1e-7)
    tool.detach().detach()
    assert (opt.param_groups[0]["lr"], opt.param_groups[0]["momentum"]) == (9.0, 0.4)
    opt.step()
    assert len(tool.history) == 3


def test_attach_touches_nothing_but_rate_and_momentum():
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(40, 3, generator=g), torch.randint(2, (40,), generator=g)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))
    opt = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.0)
    tool = BatchSpectrum(model, nn.CrossEntropyLoss(), X, y).attach(opt, batch_size=16, safety=1e-9)
    nn.CrossEntropyLoss()(model(X), y).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    random = torch.random.get_rng_state()
    opt.step()
    assert len(tool.history) == 1
    assert all(torch.equal(p.grad, before) for p, before in zip(model.parameters(), grads))
    assert all(torch.equal(b, before) for b, before in zip(model.buffers(), buffers))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(m.training for m in model.modules())


def test_only_the_parameters_that_are_trained_count():
    model, loss_fn, X, y = problem()
    opt = torch.optim.SGD(model[2].parameters(), lr=1.0)
    tool = BatchSpectrum(model, loss_fn, X, y).attach(opt)
    loss_fn(model(X), y).backward()
    opt.step()
    model, loss_fn, X, y = problem()  # as it was
    last = GGNOperator(model, loss_fn, (X, y), params=list(model[2].parameters()))
    assert tool.history[0].lambda_max == pytest.approx(float(torch.linalg.eigvalsh(last.dense())[-1]), rel=1e-6)


def test_training_with_the_learner_descends_and_repeats():
    results = []
    for _ in range(2):
        model, loss_fn, X, y = problem(n=200, seed=1)
        y = (X[:, 0] > 0).long()
        opt = torch.optim.SGD(model.parameters(), lr=1.0)
        tool = BatchSpectrum(model, loss_fn, X, y, seed=3).attach(opt, batch_size=64, every=10)
        for _ in range(120):
            opt.zero_grad()
            loss_fn(model(X), y).backward()
            opt.step()
        results.append((float(loss_fn(model(X), y).detach()), tool.history))
    assert results[0] == results[1]
    assert results[0][0] < 0.05
    assert len(results[0][1]) == 12


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        model, loss_fn, X, y = problem()
        ddp = nn.parallel.DistributedDataParallel(model)
        mine = slice(rank, None, 2)
        tool = BatchSpectrum(ddp, loss_fn, X[mine], y[mine])
        tool.fit()
        opt = torch.optim.SGD(ddp.parameters(), lr=1.0)
        tool.attach(opt, every=2)
        for _ in range(5):
            opt.zero_grad()
            loss_fn(ddp(X[mine]), y[mine]).backward()
            opt.step()
        drawn = len(tool._draw(17, np.random.default_rng(0))[0])
        return [(r.lr, r.momentum, r.lambda_max) for r in tool.history], tool.noise_estimates_, tool.lambda_max_, drawn
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_decide_as_one(tmp_path):
    with processes.pool(2) as pool:
        first, second = pool.map(_rank, range(2), [tmp_path] * 2)
    assert first[:3] == second[:3]
    assert (first[3], second[3]) == (9, 8)
    model, loss_fn, X, y = problem()
    tool = BatchSpectrum(model, loss_fn, X, y).fit()
    assert first[2] == pytest.approx(tool.lambda_max_, rel=1e-9)
    for name in ("directional", "frobenius"):
        assert first[1][name] == pytest.approx(tool.noise_estimates_[name], rel=1e-6)
    opt = torch.optim.SGD(model.parameters(), lr=1.0)
    tool.attach(opt, every=2)
    for _ in range(5):
        opt.zero_grad()
        loss_fn(model(X), y).backward()
        opt.step()
    np.testing.assert_allclose(first[0], [(r.lr, r.momentum, r.lambda_max) for r in tool.history], rtol=1e-6)


# --------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: effective_batch(0.5), "batch_size must be >= 1"),
        (lambda: effective_batch(11, 10), r"batch_size must be a number in \[1, 10\]"),
        (lambda: batch_extreme_eigenvalue(1.0, -1.0, 4), "noise must be >= 0"),
        (lambda: batch_extreme_eigenvalue(math.nan, 1.0, 4), "lam must be a finite number"),
        (lambda: scale_learning_rate(0.0, 1, 2), "lr must be > 0"),
        (lambda: scale_learning_rate(math.inf, 1, 2), "lr must be > 0"),
        (lambda: scale_learning_rate(0.1, 1, 0), "new_batch_size must be >= 1"),
        (lambda: scale_learning_rate(0.1, 1, 2, optimizer="lamb"), "optimizer must be one of"),
        (lambda: scale_learning_rate(0.1, 1, 2, spectrum=(1.0, -1.0)), "noise must be >= 0"),
        (lambda: scale_learning_rate(0.1, 1, 2, spectrum=(-5.0, 1.0)), "nothing to scale by"),
        (lambda: scale_learning_rate(0.1, 1, 2, max_lr=-1.0), "max_lr must be > 0"),
        (lambda: learning_rate_from_spectrum([1.0, math.nan]), "finite eigenvalues"),
        (lambda: learning_rate_from_spectrum([]), "finite eigenvalues"),
        (lambda: learning_rate_from_spectrum([-1.0, 0.0]), "no positive curvature: nothing to scale by"),
        (lambda: learning_rate_from_spectrum([1.0], relative_floor=0.0), "relative_floor"),
    ],
)
def test_bad_numbers_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_spectrum_of_the_wrong_kind_is_named():
    with pytest.raises(TypeError, match="SpectralDensity"):
        learning_rate_from_spectrum("large")
    with pytest.raises(TypeError, match="pair"):
        scale_learning_rate(0.1, 1, 2, spectrum=3.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"curvature": "fisher"}, "curvature"),
        ({"noise": "none"}, "noise"),
        ({"batch_sizes": (0,)}, "batch_sizes"),
        ({"batch_sizes": ()}, "batch_sizes"),
        ({"repeats": 0}, "repeats"),
        ({"num_data": 95}, "num_data"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        BatchSpectrum(*problem(), **options)


def test_bad_data_and_order_are_named():
    model, loss_fn, X, y = problem()
    with pytest.raises(TypeError, match="X must be a tensor"):
        BatchSpectrum(model, loss_fn, [1, 2], y)
    with pytest.raises(ValueError, match="same length"):
        BatchSpectrum(model, loss_fn, X, y[:3])
    spectrum = BatchSpectrum(model, loss_fn, X, y)
    for call in (
        lambda: spectrum.extreme(4),
        lambda: spectrum.extreme_lower(4),
        lambda: spectrum.max_learning_rate(4),
        lambda: spectrum.recommend(0.1, 4, 8),
        lambda: learning_rate_from_spectrum(spectrum),
    ):
        with pytest.raises(NotFittedError, match="fit"):
            call()
    with pytest.raises(ValueError, match=r"batch_sizes must be an integer in \[1, 96\)"):
        BatchSpectrum(model, loss_fn, X, y, batch_sizes=(96,)).fit()
    with pytest.raises(ValueError, match="batch_size"):
        spectrum.measure(97)
    with pytest.raises(ValueError, match="batch_size"):
        spectrum.fit().extreme(97)


@pytest.mark.parametrize(
    ("optimizer", "options", "match"),
    [
        (lambda p: torch.optim.Adam(p), {}, "momentum must be False for Adam"),
        (lambda p: torch.optim.RMSprop(p), {}, "momentum must be False for RMSprop"),
        (lambda p: torch.optim.Rprop(p), {"momentum": False}, "optimizer must be SGD or an adaptive"),
        (lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True), {}, "nesterov"),
        (lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, dampening=0.5), {}, "dampening"),
        (lambda p: torch.optim.SGD(p, lr=1.0), {"every": 0}, "every"),
        (lambda p: torch.optim.SGD(p, lr=1.0), {"safety": 0.0}, "safety"),
        (lambda p: torch.optim.SGD(p, lr=1.0), {"ema": 1.0}, "ema"),
        (lambda p: torch.optim.SGD(p, lr=1.0), {"max_growth": 0.9}, "max_growth"),
        (lambda p: torch.optim.SGD(p, lr=1.0), {"batch_size": 97}, "batch_size"),
        (lambda p: torch.optim.SGD(p, lr=1.0), {"warmup": -1}, "warmup"),
    ],
)
def test_bad_attachments_are_named(optimizer, options, match):
    model, loss_fn, X, y = problem()
    with pytest.raises(ValueError, match=match):
        BatchSpectrum(model, loss_fn, X, y).attach(optimizer(model.parameters()), **options)


def test_foreign_parameters_and_no_curvature_are_named():
    model, loss_fn, X, y = problem()
    with pytest.raises(ValueError, match="param"):
        BatchSpectrum(model, loss_fn, X, y).attach(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0))
    flat = nn.Linear(2, 1)
    opt = torch.optim.SGD(flat.parameters(), lr=1.0)
    BatchSpectrum(flat, lambda f, y: f.mean(), torch.ones(70, 2), torch.zeros(70)).attach(opt)
    with pytest.raises(ValueError, match="no positive curvature"):
        opt.step()


def test_callbacks_follow_a_trainer_or_name_its_package():
    tool = BatchSpectrum(*problem())
    for package, make in (("lightning", tool.as_lightning_callback), ("transformers", tool.as_trainer_callback)):
        if installed(package):
            assert make() is not None
        else:
            with pytest.raises(ImportError, match=package):
                make()


def test_slq_and_lanczos_agree_on_the_full_data():
    model, loss_fn, X, y = problem()
    found = BatchSpectrum(model, loss_fn, X, y, num_probes=3).fit()
    again = slq(GGNOperator(model, loss_fn, (X, y)), 30, 3, seed=0)
    assert torch.equal(found.spectrum_.nodes, again.nodes)
