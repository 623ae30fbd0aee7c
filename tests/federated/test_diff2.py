"""Tests of DIFF2: its noise arithmetic, the algorithm against a transcription, its guarantees by experiment."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from steepest.core.errors import SteepestWarning
from steepest.federated import SimulatedEngine
from steepest.federated._diff2 import diff2, dp_gd, noise_multipliers
from steepest.federated._diff2_client import Entropy, clipped_sum
from steepest.federated._privacy import accounted_epsilon

dp = pytest.importorskip("dp_accounting")
pld = pytest.importorskip("dp_accounting.pld")

RENYI, RECORDED = 1.15, "not private"
INF = {"epsilon": math.inf, "delta": 1e-5}
ONE = {"epsilon": 1.0, "delta": 1e-5}


def gaussian_epsilon(mu, delta):
    """Epsilon of a Gaussian mechanism by its exact delta, by bisection."""

    def exact(eps):
        return stats.norm.cdf(-eps / mu + mu / 2) - math.exp(eps) * stats.norm.cdf(-eps / mu - mu / 2)

    low, high = 0.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if exact(middle) > delta else (low, middle)
    return high


# ------------------------------------------------------------------------------------------- epsilon and multipliers


@pytest.mark.parametrize(
    ("R1", "z1", "R2", "z2", "delta"), [(10, 15.0, 90, 40.0, 1e-5), (1, 4.0, 31, 30.0, 1e-6), (40, 9.0, 0, None, 1e-4)]
)
def test_full_batch_messages_are_one_gaussian_mechanism(R1, z1, R2, z2, delta):
    mu = math.sqrt(R1 / z1**2 + (R2 / z2**2 if R2 else 0.0))
    exact = gaussian_epsilon(mu, delta)
    found = accounted_epsilon(delta, [(z1, R1), (z2, R2)])
    assert exact * (1 - 1e-6) <= found <= exact * (1 + 1e-4)
    renyi = accounted_epsilon(delta, [(z1, R1), (z2, R2)], accountant="rdp")
    assert exact <= renyi <= RENYI * exact


def test_the_number_of_the_worked_example():
    messages = [(15.0, 10), (40.0, 90)]
    assert accounted_epsilon(1e-5, messages) == pytest.approx(1.203951, abs=1e-6)
    assert accounted_epsilon(1e-5, messages, accountant="rdp") == pytest.approx(1.3134, abs=1e-4)


def test_opacus_agrees():
    pytest.importorskip("opacus")
    messages = [(15.0, 10), (40.0, 90)]
    renyi = accounted_epsilon(1e-5, messages, accountant="rdp")
    assert accounted_epsilon(1e-5, messages, accountant="opacus-rdp") == pytest.approx(renyi, rel=1e-6)
    exact = accounted_epsilon(1e-5, messages)
    assert accounted_epsilon(1e-5, messages, accountant="opacus-prv") == pytest.approx(exact, rel=0.02)
    options = {"neighbouring": "add_remove", "sampled": [(0.05, 2.0, 100)]}
    by_pld = accounted_epsilon(1e-5, [], **options)
    assert accounted_epsilon(1e-5, [], accountant="opacus-prv", **options) == pytest.approx(by_pld, rel=0.03)
    both = [accounted_epsilon(1e-5, [(15.0, 10)], accountant=name, **options) for name in ("rdp", "opacus-rdp")]
    assert both[0] == pytest.approx(both[1], rel=1e-6)
    found = noise_multipliers(1.0, 1e-5, rounds=20, restart=4, accountant="opacus-rdp")
    assert found[:2] == pytest.approx(noise_multipliers(1.0, 1e-5, rounds=20, restart=4, accountant="rdp")[:2])


def test_what_a_multiplier_means_to_dp_accounting():
    """Relative to one contribution's norm for the PLD accountant, so that replace-one doubles; RDP does not know it."""
    relations = dp.NeighboringRelation

    def epsilon(relation, event):
        return pld.PLDAccountant(relation).compose(event).get_epsilon(1e-5)

    by_hand = gaussian_epsilon(1 / 2, 1e-5)
    assert epsilon(relations.ADD_OR_REMOVE_ONE, dp.GaussianDpEvent(2.0)) == pytest.approx(by_hand, rel=1e-6)
    assert epsilon(relations.REPLACE_ONE, dp.GaussianDpEvent(4.0)) == pytest.approx(by_hand, rel=1e-6)
    assert epsilon(relations.REPLACE_ONE, dp.GaussianDpEvent(2.0)) == pytest.approx(4.377178, abs=1e-5)
    rdp = pytest.importorskip("dp_accounting.rdp")
    both = [rdp.RdpAccountant(neighboring_relation=r).compose(dp.GaussianDpEvent(2.0)).get_epsilon(1e-5)
            for r in (relations.ADD_OR_REMOVE_ONE, relations.REPLACE_ONE)]  # fmt: skip
    assert both[0] == both[1]


@pytest.mark.parametrize("neighbouring", ["replace", "add_remove"])
def test_sampled_steps_by_direct_integration(neighbouring):
    """One step: a sample's contribution moves the mean by +1 or -1 (replace), or by +1 or 0, with probability q."""
    q, z, delta = 0.1, 1.5, 1e-3
    other = -1.0 if neighbouring == "replace" else 0.0

    def density(u, shift):
        return q * stats.norm.pdf(u, shift, z) + (1 - q) * stats.norm.pdf(u, 0, z)

    u = np.linspace(-15, 15, 60_001)
    P, Q = density(u, 1.0), density(u, other)

    def exact(eps):
        there = [integrate.trapezoid(np.maximum(0, a - math.exp(eps) * b), u) for a, b in ((P, Q), (Q, P))]
        return max(there)

    found = accounted_epsilon(delta, [], neighbouring=neighbouring, sampled=[(q, z, 1)])
    assert exact(found) <= delta
    assert exact(found - 2e-3) >= delta


def test_known_costs_of_sampled_steps():
    for neighbouring, expected in (("replace", 2.004), ("add_remove", 1.097)):
        found = accounted_epsilon(1e-5, [], neighbouring=neighbouring, sampled=[(0.05, 2.0, 100)])
        assert found == pytest.approx(expected, abs=1e-3)
    # beside full-batch messages, whose z is relative to the sensitivity under both relations
    for neighbouring in ("replace", "add_remove"):
        mixed = accounted_epsilon(1e-5, [(15.0, 10), (40.0, 90)], neighbouring=neighbouring, sampled=[(0.01, 200.0, 1)])
        assert mixed == pytest.approx(1.20395, abs=2e-4)


def test_multipliers_spend_the_budget_and_split_it():
    found = noise_multipliers(1.0, 1e-5, rounds=100, restart=10, restart_share=0.3)
    first, second = 10 / found.z1**2, 90 / found.z2**2
    assert first / (first + second) == pytest.approx(0.3)
    assert gaussian_epsilon(math.sqrt(first + second), 1e-5) == pytest.approx(1.0, abs=1e-5)
    assert found.rho == pytest.approx((first + second) / 2)
    assert 1 - 1e-5 < found.epsilon <= 1.0
    alone = noise_multipliers(1.0, 1e-5, rounds=25, restart=1, accountant="rdp")
    assert alone.z1 == pytest.approx(5 * noise_multipliers(1.0, 1e-5, rounds=1, restart=1, accountant="rdp").z1)
    assert alone.z2 is None
    assert alone.z3 is None
    options = {"rounds": 7, "restart": 3, "accountant": "rdp"}
    uneven = noise_multipliers(1.0, 1e-5, **options)  # rounds 0, 3 and 6 restart
    assert 3 / uneven.z1**2 == pytest.approx(4 / uneven.z2**2)
    assert noise_multipliers(1.0, 1e-5, **options, neighbouring="add_remove") == uneven


def test_local_steps_take_their_share():
    """By Renyi divergences, which are quick to evaluate; the noise that a run draws is tested with both."""
    options = {"neighbouring": "add_remove", "accountant": "rdp"}
    found = noise_multipliers(1.0, 1e-5, rounds=8, restart=4, **options, local=(0.3, [0.05, 0.02, 0.05], [2, 8, 4]))
    without = noise_multipliers(1.0, 1e-5, rounds=8, restart=4, **options)
    assert found.z1 == pytest.approx(without.z1 / math.sqrt(0.7))
    assert 0.996 <= found.epsilon <= 1.0
    messages = [(found.z1, 2), (found.z2, 6)]
    costs = [
        accounted_epsilon(1e-5, messages, sampled=[(q, found.z3, n)], **options)
        for q, n in ((0.05, 2), (0.02, 8), (0.05, 4))
    ]
    assert max(costs) == pytest.approx(found.epsilon)
    assert all(cost <= 1.0 for cost in costs)


# ----------------------------------------------------------------------------------------------------------- algorithm


def logistic(n=60, d=4, seed=0):
    rng = np.random.default_rng(seed)
    a = torch.as_tensor(rng.standard_normal((n, d)))
    b = torch.as_tensor(np.where(rng.random(n) > 0.5, 1.0, -1.0))
    return a, b


def loss(x, a, b):
    return torch.nn.functional.softplus(-b * (a @ x))


def rows(x, a, b):
    return -(b * torch.sigmoid(-b * (a @ x)))[:, None] * a


def pairs(x, a, b):
    return -(b * torch.sigmoid(-b * (a @ x))), a


def penalty(x):
    return 0.01 * (x**2 / (1 + x**2)).sum()


A, B = logistic()
X0 = torch.full((4,), 0.5, dtype=torch.float64)
OPTIONS = {"rounds": 9, "restart": 4, "lr": 0.7, "clip": 0.6, "clip_difference": 0.2}


def transcribed(x, options, noise=None, K=1):
    """The method in NumPy, for one client, all samples in every step and noise handed in; returns all points."""

    def clipped(g, C):
        return sum(r * min(1.0, C / max(np.linalg.norm(r), 1e-300)) for r in g)

    def gradients(x):
        x = torch.as_tensor(x)
        return np.array([torch.func.grad(loss)(x, a, b).numpy() for a, b in zip(A, B, strict=True)])

    def public(x):
        return 0.02 * x / (1 + x**2) ** 2

    xs, v = [x.numpy()], None
    for r in range(options["rounds"]):
        if r % options["restart"] == 0:
            v = clipped(gradients(xs[r]), options["clip"]) / len(A)
        else:
            C = options["clip_difference"] * np.linalg.norm(xs[r] - xs[r - 1])
            v = v + clipped(gradients(xs[r]) - gradients(xs[r - 1]), C) / len(A)
        v = v + (0 if noise is None else noise[r])
        ys, u = [xs[r], xs[r] - options["lr"] * (v + public(xs[r]))], v
        for k in range(1, K):
            C = options["clip_difference"] * np.linalg.norm(ys[k] - ys[k - 1])
            u = u + clipped(gradients(ys[k]) - gradients(ys[k - 1]), C) / len(A)
            ys.append(ys[k] - options["lr"] * (u + public(ys[k])))
        xs.append(ys[-1])
    return np.array(xs)


def test_without_noise_it_is_the_transcription_and_clips_the_differences():
    xs = transcribed(X0, OPTIONS)
    seen = []
    found = diff2(loss, X0, (A, B), **INF, **OPTIONS, public_term=penalty, callback=lambda x: seen.append(x.numpy()))
    np.testing.assert_allclose(np.array(seen), xs[1:], atol=1e-13)
    np.testing.assert_allclose(found.steps, np.linalg.norm(np.diff(xs, axis=0), axis=1), atol=1e-13)
    assert found.private is False
    assert found.z1 == 0
    assert found.n_restarts == 3
    with pytest.warns(SteepestWarning, match=RECORDED):
        told = diff2(loss, X0, (A, B), **INF, **OPTIONS, diagnostics=True).diagnostics
    assert 0 < told[0]["clipped"] < 1  # the clipping of both kinds was at work
    assert 0 < told[1]["clipped"] < 1
    np.testing.assert_allclose(told[0]["grad_norm"], np.linalg.norm(rows(X0, A, B).mean(0)), rtol=1e-12)
    assert told[0]["loss"] == pytest.approx(float(sum(loss(X0, a, b) for a, b in zip(A, B, strict=True)) / 60))


def test_the_noise_enters_as_released():
    with pytest.warns(SteepestWarning):
        found = diff2(loss, X0, (A, B), **ONE, **OPTIONS, public_term=penalty, record_messages=True)
    noise = [(m["released"] - m["clean"]).numpy() for m in found.messages]
    xs = transcribed(X0, OPTIONS, noise)
    np.testing.assert_allclose(found.x, xs[-1], atol=1e-12)
    kinds = ["restart" if r % 4 == 0 else "difference" for r in range(9)]
    assert [m["kind"] for m in found.messages] == kinds
    for r, m in enumerate(found.messages):
        C = 0.6 if r % 4 == 0 else 0.2 * np.linalg.norm(xs[r] - xs[r - 1])
        z = found.z1 if r % 4 == 0 else found.z2
        assert m["std"] == pytest.approx(z * 2 * C / 60)
    v = found.messages[8]["released"]
    assert found.estimates[8] == pytest.approx(float(v.norm()))


def test_local_steps_on_all_samples_are_the_transcription():
    """A sample at rate 1 is everybody, so that b is the client's size."""
    options = {**OPTIONS, "rounds": 5}
    found = diff2(
        loss, X0, (A, B), **INF, **options, public_term=penalty, routine="bvr-l-sgd", local_steps=4, local_batch_size=60
    )
    np.testing.assert_allclose(found.x, transcribed(X0, options, K=4)[-1], atol=1e-12)
    assert found.schedule == (0,) * 5


def test_one_local_step_is_plain_and_a_restart_in_each_round_is_dp_gd():
    plain = diff2(loss, X0, (A, B), **ONE, **OPTIONS)
    local = diff2(loss, X0, (A, B), **ONE, **OPTIONS, routine="bvr-l-sgd", local_steps=1)
    assert torch.equal(plain.x, local.x)
    assert local.z3 is None
    options = {**OPTIONS, "restart": 1}
    every = diff2(loss, X0, (A, B), **ONE, **options)
    for name in ("restart", "clip_difference"):
        options.pop(name)
    baseline = dp_gd(loss, X0, (A, B), **ONE, **options)
    assert torch.equal(every.x, baseline.x)
    assert baseline.z2 is None


def test_how_gradients_are_made_does_not_matter():
    reference = diff2(loss, X0, (A, B), **ONE, **OPTIONS)
    for options in ({"chunk_size": 7}, {"per_sample_grad": rows}, {"per_sample_grad": rows, "chunk_size": 1},
                    {"per_sample_grad": pairs}, {"per_sample_grad": pairs, "chunk_size": 11}):  # fmt: skip
        torch.testing.assert_close(diff2(loss, X0, (A, B), **ONE, **OPTIONS, **options).x, reference.x)
    assert diff2(None, X0, (A, B), **ONE, **OPTIONS, per_sample_grad=rows).success


def test_gradients_are_kept_where_they_fit(monkeypatch):
    calls = []

    def counted(x, a, b):
        calls.append(len(a))
        return rows(x, a, b)

    kept = diff2(None, X0, (A, B), **ONE, **OPTIONS, per_sample_grad=counted)
    assert len(calls) == 9
    monkeypatch.setattr("steepest.federated._diff2_client._CACHE_BYTES", 0)
    again = diff2(None, X0, (A, B), **ONE, **OPTIONS, per_sample_grad=counted)
    assert len(calls) == 9 + 9 + 6
    assert torch.equal(kept.x, again.x)


def split(parts=(10, 20, 30)):
    ends = np.cumsum((0, *parts))
    return [(A[i:j], B[i:j]) for i, j in itertools.pairwise(ends)]


@pytest.mark.parametrize("noise", ["central", "local"])
def test_uneven_clients_share_the_objective(noise):
    one = diff2(loss, X0, (A, B), **INF, **OPTIONS)
    many = diff2(loss, X0, split(), **INF, **OPTIONS, noise=noise)
    torch.testing.assert_close(many.x, one.x)
    assert many.bytes_up == 9 * 3 * 4 * 8
    assert many.bytes_down == 9 * 3 * (4 + 1) * 8  # the point, and the round's number


def test_float32_stays_and_global_randomness_is_untouched():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    found = diff2(loss, X0.float(), (A.float(), B.float()), **ONE, **OPTIONS)
    assert found.x.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    torch.testing.assert_close(found.x.double(), diff2(loss, X0, (A, B), **ONE, **OPTIONS).x, atol=1e-4, rtol=1e-4)


def test_automatic_rounds():
    n, d = 10_000, 4
    kappa = n / math.sqrt(d * math.log(1e5))
    a = torch.zeros(n, 1, dtype=torch.float64)
    options = {"lr": 1e-3, "clip": 1.0, "per_sample_grad": lambda x, z: z.expand(-1, d)}
    found = diff2(None, X0, (a,), **ONE, **options, clip_difference=1.0, max_rounds=50)
    assert (found.rounds, found.restart) == (50, 50)

    def give_up(x):
        raise StopIteration

    stop = {"callback": give_up}
    found = diff2(None, X0, (a,), **ONE, **options, clip_difference=1.0, max_rounds=10**6, **stop)
    assert (found.rounds, found.restart) == (math.ceil(kappa ** (4 / 3)), round(kappa ** (2 / 3)))
    assert found.nit == 1
    assert found.message == "callback"
    assert dp_gd(None, X0, (a,), **ONE, **options, **stop).rounds == math.ceil(kappa)


def test_outputs():
    points, options = [X0], {**OPTIONS, "rounds": 12}
    last = diff2(loss, X0, (A, B), **ONE, **options, callback=lambda x: points.append(x))
    assert torch.equal(last.x, points[-1])
    found = {
        name: diff2(loss, X0, (A, B), **ONE, **options, output=name) for name in ("smallest_estimate", "best_half")
    }
    assert torch.equal(found["smallest_estimate"].x, points[int(np.argmin(last.estimates))])
    assert torch.equal(found["best_half"].x, points[6 + int(np.argmin(last.estimates[6:]))])
    drawn = {
        next(k for k, p in enumerate(diff2_path(seed, options)[1]) if torch.equal(p, diff2_path(seed, options)[0]))
        for seed in range(12)
    }
    assert len(drawn) > 4
    assert max(drawn) < 12


@functools.cache
def _path(seed, rounds):
    points, options = [X0], {**OPTIONS, "rounds": rounds}
    found = diff2(loss, X0, (A, B), **ONE, **options, output="random", seed=seed, callback=points.append)
    return found.x, points


def diff2_path(seed, options):
    return _path(seed, options["rounds"])


# -------------------------------------------------------------------------------------------- noise, sampling, clipping


def chi_square_is_plausible(standard, alpha=1e-4):
    standard = np.asarray(standard).ravel()
    p = stats.chi2.cdf(float(standard @ standard), len(standard))
    return alpha < p < 1 - alpha


@pytest.mark.parametrize(("neighbouring", "s"), [("replace", 2), ("add_remove", 1)])
@pytest.mark.parametrize(("noise", "factor"), [("central", 1.0), ("local", math.sqrt(3))])
def test_messages_have_the_stated_noise(neighbouring, s, noise, factor):
    """Three clients of 20: 200 draws of each kind see a factor of 1.5."""
    d, lr = 40, 1e-3
    x = torch.zeros(d, dtype=torch.float64)
    a = torch.as_tensor(np.random.default_rng(0).standard_normal((60, d)))
    with pytest.warns(SteepestWarning):
        found = diff2(
            lambda x, a: ((x - a) ** 2).sum() / 2, x, [(a[:20],), (a[20:40],), (a[40:],)], **ONE,
            rounds=10, restart=2, lr=lr, clip=1.0, clip_difference=3.0, neighbouring=neighbouring, noise=noise,
            record_messages=True,
        )  # fmt: skip
    standard = {"restart": [], "difference": []}
    for r, m in enumerate(found.messages):
        C = 1.0 if m["kind"] == "restart" else 3.0 * found.steps[r - 1]
        z = {"restart": found.z1, "difference": found.z2}[m["kind"]]
        stated = factor * z * s * C / 60
        assert m["std"] == pytest.approx(stated)
        standard[m["kind"]].append(((m["released"] - m["clean"]) / stated).numpy())
    for draws in standard.values():
        assert chi_square_is_plausible(draws)
        assert not chi_square_is_plausible(np.array(draws) * 1.5)
        assert not chi_square_is_plausible(np.array(draws) / 1.5)
    mu = math.sqrt(5 / found.z1**2 + 5 / found.z2**2)
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(1.0, abs=1e-4)


def test_a_local_client_hides_its_records_by_itself():
    """Its own message, over its own samples, has the noise of its own sensitivity."""
    from steepest.federated._diff2_client import Mechanism

    m = Mechanism(1.5, 1.0, 4.0, 5.0, 0.0, 2.0, True, 60, 3, 0.1)
    assert m.client_std("restart", 1.5, 10) == pytest.approx(4 * 2 * 1.5 / 10)
    assert m.client_std("difference", 0.1, 10) == pytest.approx(5 * 2 * 0.1 / 10)


@pytest.mark.parametrize(("neighbouring", "accountant"), [("replace", "pld"), ("add_remove", "rdp")])
def test_local_steps_have_the_stated_noise(neighbouring, accountant):
    """The loss is linear: its differences are zero, and the second local step shows the noise alone."""
    d, lr, b, n = 400, 0.1, 5, 50
    a = torch.ones(n, d, dtype=torch.float64)
    options = {"rounds": 1, "restart": 1, "lr": lr, "clip": 1.0, "clip_difference": 0.3, "neighbouring": neighbouring}
    options["accountant"] = accountant
    with pytest.warns(SteepestWarning):
        found = diff2(
            None, torch.zeros(d, dtype=torch.float64), (a,), **ONE, **options, per_sample_grad=lambda x, a: a,
            routine="bvr-l-sgd", local_steps=2, local_batch_size=b, record_messages=True,
        )  # fmt: skip
    v = found.messages[0]["released"]
    drawn = -found.x / lr - 2 * v
    stated = found.z3 * 0.3 * lr * float(v.norm()) / b
    assert chi_square_is_plausible((drawn / stated).numpy())
    assert not chi_square_is_plausible((drawn / stated).numpy() * 1.25)
    assert not chi_square_is_plausible((drawn / stated).numpy() / 1.25)


def test_local_samples_have_the_stated_rate():
    """With a quadratic loss and no noise, u grows by the sample's size over b; Poisson, so sizes vary."""
    n, b = 200, 20
    z = torch.ones(n, dtype=torch.float64)
    sizes = []
    for seed in range(60):
        found = diff2(
            None, torch.ones(1, dtype=torch.float64), (z,), **INF, rounds=1, restart=1, lr=0.5, clip=math.inf,
            clip_difference=math.inf, per_sample_grad=lambda x, z: z[:, None] * x, routine="bvr-l-sgd", local_steps=2,
            local_batch_size=b, seed=seed,
        )  # fmt: skip
        # y1 = 1/2, u1 = 1 - (|S|/b)/2, y2 = 1/2 - u1/2
        sizes.append(b * 2 * (1 - 2 * (0.5 - float(found.x))))
    sizes = np.array(sizes)
    np.testing.assert_allclose(sizes, np.round(sizes), atol=1e-9)
    deviation = math.sqrt(n * 0.1 * 0.9)
    assert abs(sizes.mean() - b) < 4 * deviation / math.sqrt(60)
    assert 0.65 < sizes.std(ddof=1) / deviation < 1.4


@pytest.mark.filterwarnings("ignore::steepest.core.errors.SteepestWarning")
def test_a_record_moves_no_message_further_than_its_sensitivity():
    """Clean messages of neighbors at the same released points differ by at most s C/N, and by as much as that."""
    found = [canary(sign, 0, rounds=1, restart=1).messages[0]["clean"] for sign in (-1.0, 1.0)]
    assert float((found[1] - found[0]).norm()) == pytest.approx(2 * 1.0 / 20)


def canary(sign, seed, rounds=4, restart=2):
    """One of 20 records pushes with full norm in one direction in every round; the others are silent."""
    calls = []

    def gradients(x, z):
        calls.append(0)
        return z[:, None] * torch.tensor([[len(calls) * 1e3, 0.0]]).double()

    z = torch.zeros(20, dtype=torch.float64)
    z[0] = sign
    options = {"lr": 0.1, "clip": 1.0, "clip_difference": 0.1, "record_messages": True, "seed": seed}
    start = torch.zeros(2, dtype=torch.float64)
    return diff2(None, start, (z,), **ONE, rounds=rounds, restart=restart, per_sample_grad=gradients, **options)


@pytest.mark.filterwarnings("ignore::steepest.core.errors.SteepestWarning")
def test_an_attacker_learns_no_more_than_epsilon(monkeypatch):
    """100 runs on each side: the bound stays below epsilon; at a tenth of the noise it must not."""

    def score(sign, seed):
        return sum(float(m["released"][0]) / m["std"] for m in canary(sign, seed).messages)

    def lower_bound(first_seed):
        scores = [[score(sign, first_seed + 2 * k + (sign > 0)) for k in range(100)] for sign in (-1.0, 1.0)]
        return clopper_pearson_epsilon(np.array(scores[1]), np.array(scores[0]), 1e-5)

    assert lower_bound(0) <= 1.0
    original = Entropy.normal
    monkeypatch.setattr(Entropy, "normal", lambda self, n: original(self, n) / 10)
    assert lower_bound(1000) > 1.0


def clopper_pearson_epsilon(with_record, without, delta):
    """Lower end of the 95 % interval of epsilon, at a threshold between the two means."""
    threshold = (with_record.mean() + without.mean()) / 2
    hits, alarms, n = int((with_record > threshold).sum()), int((without > threshold).sum()), len(without)
    power = stats.beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    false = stats.beta.ppf(0.975, alarms + 1, n - alarms) if alarms < n else 1.0
    return math.log(max(power - delta, 1e-12) / false)


def test_the_same_point_twice_needs_no_noise_and_is_charged():
    a = torch.zeros(30, 2, dtype=torch.float64)
    with pytest.warns(SteepestWarning):
        found = diff2(None, torch.zeros(2, dtype=torch.float64), (a,), **INF, rounds=3, restart=3, lr=1.0, clip=1.0,
                      clip_difference=1.0, per_sample_grad=lambda x, a: a, record_messages=True)  # fmt: skip
    assert found.steps == [0.0] * 3
    assert found.messages[1]["std"] == 0
    assert not found.messages[1]["released"].any()
    messages = [(4.0, 1), (8.0, 2)]
    assert accounted_epsilon(1e-5, messages) > accounted_epsilon(1e-5, messages[:1])


def test_broken_gradients_count_as_zero():
    g = torch.tensor([[3.0, 4.0], [math.nan, 1.0], [0.3, 0.4], [math.inf, 0.0], [1e30, 0.0]])
    torch.testing.assert_close(clipped_sum(g, 1.0), torch.tensor([0.9, 1.2]))
    assert not clipped_sum(g, 0.0).any()
    torch.testing.assert_close(clipped_sum(g[:3], math.inf), torch.tensor([3.3, 4.4]))
    c = torch.tensor([2.0, math.inf, -1.0])
    torch.testing.assert_close(clipped_sum((c, g[[0, 2, 2]]), 1.0), torch.tensor([0.3, 0.4]))
    broken = A.clone()
    broken[5] = math.nan
    whole = torch.cat([A[:5], A[6:]]), torch.cat([B[:5], B[6:]])
    with pytest.warns(SteepestWarning, match=RECORDED):
        found = diff2(loss, X0, (broken, B), **INF, **OPTIONS, diagnostics=True)
    assert found.diagnostics[1]["nonfinite"] == 1
    expected = diff2(loss, X0, whole, **INF, **{**OPTIONS, "lr": 0.7 * 59 / 60})
    torch.testing.assert_close(found.x, expected.x, atol=1e-3, rtol=1e-3)


def test_entropy():
    a, b = (Entropy(3, 5, 0) for _ in range(2))
    np.testing.assert_array_equal(a.normal(4), b.normal(4))
    assert not np.array_equal(Entropy(3, 5, 0).normal(4), Entropy(3, 6, 0).normal(4))
    draws = Entropy(None).normal(20_000)
    assert stats.kstest(draws, "norm").pvalue > 1e-4
    assert not np.array_equal(draws[:5], Entropy(None).normal(5))
    u = Entropy(None).uniform(1000)
    assert 0 < u.min() < u.max() < 1


# ------------------------------------------------------------------------------------------------- failures and engines


def faulty(failures):
    return functools.partial(SimulatedEngine, failures=failures, record=())


@pytest.mark.parametrize("routine", ["gd", "bvr-l-sgd"])
def test_a_repeated_task_repeats_its_message(routine):
    options = {**OPTIONS, "routine": routine, "local_steps": 2}
    kinds = [("crash", 0), ("crash", 1), ("nan", 3), ("crash", 7)]
    failures = [{"client": 1, "task": task, "kind": kind} for kind, task in kinds]
    whole = diff2(loss, X0, split(), **ONE, **options)
    found = diff2(loss, X0, split(), **ONE, **options, engine=faulty(failures))
    torch.testing.assert_close(found.x, whole.x, rtol=1e-12, atol=1e-14)
    assert found.success
    assert found.epsilon == whole.epsilon


def test_a_lost_client_ends_the_run():
    failures = [{"client": 2, "task": task, "kind": "crash"} for task in (3, 4, 5)]
    found = diff2(loss, X0, split(), **ONE, **OPTIONS, engine=faulty(failures))
    assert not found.success
    assert "client 2 is lost" in found.message
    assert found.nit == 3


def test_noise_of_the_system_is_never_repeated():
    options = {**OPTIONS, "secure_rng": True, "seed": None}
    a, b = (diff2(loss, X0, split(), **ONE, **options) for _ in range(2))
    assert not torch.equal(a.x, b.x)
    assert a.seed is None
    found = diff2(loss, X0, split(), **ONE, **options, engine=faulty([{"client": 1, "task": 2, "kind": "crash"}]))
    assert not found.success
    assert "cannot be repeated" in found.message
    assert found.nit == 2


def test_seeds():
    a, b, c = (diff2(loss, X0, split(), **ONE, **OPTIONS, seed=seed).x for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    fresh = diff2(loss, X0, split(), **ONE, **OPTIONS, seed=None)
    assert torch.equal(fresh.x, diff2(loss, X0, split(), **ONE, **OPTIONS, seed=fresh.seed).x)


def test_a_run_away_point_ends_the_run():
    found = diff2(None, X0, (A,), **INF, rounds=50, restart=50, lr=10.0, clip=math.inf, clip_difference=math.inf,
                  per_sample_grad=lambda x, a: -x.expand(len(a), -1))  # fmt: skip
    assert not found.success
    assert "diverged" in found.message
    assert found.nit < 15


def test_unstable_settings_are_warned_of():
    with pytest.warns(SteepestWarning, match="likely to diverge"):
        diff2(loss, X0, (A, B), **ONE, **{**OPTIONS, "clip_difference": 2.0})


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_on_ray():
    from steepest.federated import RayEngine

    options = {**OPTIONS, "routine": "bvr-l-sgd", "local_steps": 2}
    simulated = diff2(loss, X0, split(), **ONE, **options)
    found = diff2(loss, X0, split(), **ONE, **options, engine=functools.partial(RayEngine, workers=2))
    assert torch.equal(found.x, simulated.x)
    assert found.bytes_up == simulated.bytes_up


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"epsilon": 0.0}, ValueError, "epsilon must be > 0"),
        ({"epsilon": -1.0}, ValueError, "epsilon"),
        ({"delta": 0.0}, ValueError, "delta"),
        ({"delta": 1.0}, ValueError, "delta"),
        ({"restart": 10}, ValueError, "restart must be at most rounds"),
        ({"rounds": 0}, ValueError, "rounds"),
        ({"lr": 0.0}, ValueError, "lr"),
        ({"clip": -1.0}, ValueError, "clip"),
        ({"clip": math.inf}, ValueError, "clip"),
        ({"clip_difference": 0.0}, ValueError, "clip_difference"),
        ({"restart_share": 1.0}, ValueError, "restart_share"),
        ({"routine": "sgd"}, ValueError, "routine"),
        ({"noise": "none"}, ValueError, "noise"),
        ({"output": "best"}, ValueError, "output"),
        ({"neighbouring": "swap"}, ValueError, "neighbouring"),
        ({"accountant": "own"}, ValueError, "accountant"),
        ({"secure_rng": True}, ValueError, "seed must be None"),
        ({"routine": "bvr-l-sgd", "local_steps": 0}, ValueError, "local_steps"),
        ({"routine": "bvr-l-sgd", "local_batch_size": 61}, ValueError, "local_batch_size"),
        ({"routine": "bvr-l-sgd", "accountant": "rdp"}, ValueError, "accountant must be \"pld\""),
        ({"clients": [(A, B), (A[:0], B[:0])]}, ValueError, r"clients\[1\] must be at least one sample"),
        ({"clients": [(A, B[:3])]}, ValueError, "tensors of one length"),
        ({"clients": []}, TypeError, "clients"),
        ({"x0": X0.reshape(2, 2)}, TypeError, "x0"),
        ({"x0": X0 * math.nan}, ValueError, "x0"),
        ({"fun": None}, ValueError, "fun"),
        ({"fun": 3}, TypeError, "fun"),
        ({"epsilon": "1"}, TypeError, "epsilon"),
    ],
)  # fmt: skip
def test_bad_input(change, error, text):
    arguments = {"fun": loss, "x0": X0, "clients": (A, B), **ONE, **OPTIONS, **change}
    with pytest.raises(error, match=text):
        diff2(**arguments)


def test_batch_normalization_is_refused():
    net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))

    def through(x, a, b):
        return net(a[None]).sum() + x.sum()

    with pytest.raises(ValueError, match="batch normalization"):
        diff2(through, X0, (A, B), **ONE, **OPTIONS)


def test_a_large_delta_is_warned_of():
    with pytest.warns(SteepestWarning, match="not below 1/N"):
        diff2(loss, X0, (A, B), epsilon=1.0, delta=0.02, **OPTIONS)


def test_a_missing_accountant_says_how_to_get_it(monkeypatch):
    import sys

    from steepest.federated import _privacy

    for cached in (_privacy._calibrated, _privacy._gaussian_mu):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r'pip install "steepest\[federated\]"'):
        noise_multipliers(1.0, 1e-5, rounds=3, restart=1)


@pytest.mark.parametrize("local", [(0.3, [0.1], [1, 2]), (0.3, [0.0], [1]), (1.0, [0.1], [1]), (0.3, [], [])])
def test_bad_local_steps(local):
    with pytest.raises(ValueError, match="local"):
        noise_multipliers(1.0, 1e-5, rounds=3, restart=1, local=local)
