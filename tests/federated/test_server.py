import numpy as np
import pytest
import torch
from torch.nn import functional as F

from steepest.federated import (
    AsyncFedAvg,
    ClientInfo,
    FedAvg,
    FedBuff,
    FedFix,
    FunctionClient,
    Reply,
    SimulatedEngine,
    Speeds,
    dirichlet_partition,
    expected_weights,
    iid_partition,
    linear_speeds,
    make_clients,
    schedule,
    shard_partition,
    weight_report,
)
from tests.federated.quadratics import CENTERS, START, TIMES, quadratics

F80 = linear_speeds(10)


def run(rule, until=20.0, clients=None, **options):
    return SimulatedEngine(clients or quadratics(), **{"speeds": TIMES, **options}).run(rule, START, until=until)


def models(rule, **options):
    seen = []

    def keep(intermediate_result):
        seen.append(intermediate_result.model["w"].clone())

    clients = options.pop("clients", None) or quadratics()
    SimulatedEngine(clients, **{"speeds": TIMES, **options}).run(rule, START, max_aggregations=12, callback=keep)
    return torch.stack(seen)


def test_a_window_above_the_slowest_time_is_fedavg():
    importance = [0.1, 0.2, 0.3, 0.4]
    expected = models(FedAvg(importance=importance))
    for rule in (FedFix(1.0, importance=importance), FedBuff(4, importance=importance)):
        torch.testing.assert_close(models(rule), expected, rtol=0, atol=1e-12)


def test_a_window_towards_zero_is_asynchronous():
    times = [1.0, 0.5311, 0.7717, 0.2093]  # no two returns at the same moment
    counts = [
        np.bincount([c for row in run(rule, 60.0, speeds=times).aggregations for c in row["clients"]], minlength=4)
        for rule in (FedFix(2e-3), AsyncFedAvg())
    ]
    assert counts[0] == pytest.approx(counts[1], rel=0.02)
    short, limit = FedFix(1e-4), AsyncFedAvg()
    for rule in (short, limit):
        run(rule, 0.1, speeds=times)
    assert short.weights_ == pytest.approx(limit.weights_, rel=0.01)


def test_one_client_is_plain_descent_under_every_rule():
    expected = []
    w = START["w"]
    for _ in range(12):
        w = w + (0.9**3 - 1) * (w - torch.tensor(CENTERS[0]))
        expected.append(w)
    for rule in (FedAvg(), AsyncFedAvg(), FedBuff(1), FedBuff(1, restart="immediate"), FedFix(0.1), FedFix(1.0)):
        made = models(rule, clients=quadratics(CENTERS[:1]), speeds=[1.0])
        torch.testing.assert_close(made, torch.stack(expected), rtol=0, atol=1e-12)
        assert rule.weights_ == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        (FedAvg(), np.full(4, 0.25)),
        (AsyncFedAvg(), TIMES * (1 / TIMES).sum() / 4),
        (FedFix(0.3), np.array([4, 2, 3, 1]) / 4),
        (FedFix(0.19), np.array([6, 3, 4, 2]) / 4 * 2 / 3),  # of 12 ticks, 4 bring nothing
        (FedBuff(2, restart="immediate"), (1 / TIMES).sum() * TIMES / 8),
    ],
    ids=lambda v: type(v).__name__,
)
def test_unbiased_weights_are_those_of_the_table(rule, weights):
    run(rule, until=3.0)
    assert rule.weights_ == pytest.approx(weights)


@pytest.mark.parametrize(
    "make",
    [FedAvg, AsyncFedAvg, lambda **o: FedBuff(2, **o), lambda **o: FedBuff(3, restart="immediate", **o),
     lambda **o: FedFix(0.3, **o), lambda **o: FedAvg(fraction=0.5, **o)],
)  # fmt: skip
@pytest.mark.parametrize("weights", ["unbiased", "identical", [0.1, 0.4, 0.2, 0.3]])
def test_expected_weights_are_those_that_a_run_applies(make, weights):
    importance = np.array([0.4, 0.3, 0.2, 0.1])
    rule = make(weights=weights, importance=importance)
    report = weight_report(run(rule, until=240.0), importance)
    found = expected_weights(make(weights=weights), TIMES, importance)
    assert found.sum() == pytest.approx(1)
    limit = 0.08 if isinstance(rule, FedAvg) else 0.01
    assert report.q_normalised == pytest.approx(found, abs=limit)
    if isinstance(weights, str) and weights == "unbiased":
        assert found == pytest.approx(importance, abs=1e-9)


def test_random_times_are_expected_rightly():
    p = np.full(4, 0.25)
    for law in ("exponential", "lognormal"):
        for rule in (AsyncFedAvg(weights="identical"), FedFix(0.4, weights="identical"),
                     FedBuff(2, weights="identical")):  # fmt: skip
            result = run(rule, until=400.0, speeds=Speeds(TIMES, law))
            report = weight_report(result, p)
            assert report.q_normalised == pytest.approx(expected_weights(rule, TIMES, p, law=law), abs=0.025)
    unbiased = FedFix(0.4)
    report = weight_report(run(unbiased, until=600.0, speeds=Speeds(TIMES, "exponential")), p)
    assert report.unbiased(0.12)


def test_closed_forms_of_the_bias_with_a_spread_of_80_percent():
    p = np.full(10, 0.1)
    for rule, chi2 in ((AsyncFedAvg(weights="identical"), 0.32), (FedFix(0.5, weights="identical"), 0.1224)):
        qt = expected_weights(rule, F80, p)
        assert ((p - qt) ** 2 / p).sum() == pytest.approx(chi2, rel=0.02)
        clients = quadratics(np.random.default_rng(0).normal(size=(10, 2)), rate=0.01)
        report = weight_report(run(rule, 100.0, clients, speeds=F80), "uniform")
        assert report.chi2_importance == pytest.approx(chi2, rel=0.02)
        assert report.chi2 == pytest.approx(((p - qt) ** 2 / qt).sum(), rel=0.03)


def test_identical_weights_end_at_the_surrogates_optimum_and_unbiased_ones_at_the_intended_one():
    for make in (AsyncFedAvg, lambda **o: FedFix(0.3, **o), lambda **o: FedBuff(2, **o)):
        qt = expected_weights(make(weights="identical"), TIMES, "uniform")
        surrogate, intended = qt @ CENTERS, CENTERS.mean(0)
        for weights, goal in (("identical", surrogate), ("unbiased", intended)):
            late = []
            rule = make(weights=weights)
            SimulatedEngine(quadratics(rate=0.004), speeds=TIMES).run(
                rule, START, until=700.0,
                callback=lambda intermediate_result, late=late: late.append(intermediate_result.model["w"].numpy()),
            )  # fmt: skip
            mean = np.mean(late[len(late) // 2 :], 0)
            assert np.linalg.norm(mean - goal) < 0.05 * np.linalg.norm(surrogate - intended)


def test_windows_of_a_cyclic_schedule_are_reported():
    report = weight_report(run(FedFix(0.5), until=64.0), "uniform", window=4)
    assert report.window_bias.shape[1] == 4
    assert np.abs(report.window_bias).max() < 0.2
    assert not weight_report(run(AsyncFedAvg(weights="identical")), "uniform").unbiased()
    stale = weight_report(run(AsyncFedAvg(staleness="polynomial"), until=400.0), "uniform")
    assert not stale.unbiased()  # the discount hits the slow ones
    with pytest.raises(ValueError, match="window must be at most the number of aggregations"):
        weight_report(run(FedAvg(), until=2.0), "uniform", window=9)


def test_the_schedule_is_the_engines():
    times, participation = schedule("FedBuff", [1.0, 0.4], 2.2, buffer_size=1)
    assert times == pytest.approx([0.4, 0.8, 1.0, 1.2, 1.6, 2.0, 2.0])
    assert participation.tolist() == [[-1, 0], [-1, 1], [0, -1], [-1, 2], [-1, 4], [3, -1], [-1, 5]]
    assert schedule("FedAvg", [1.0, 0.5], 3.0)[1].tolist() == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(ValueError, match="window must be given"):
        schedule("FedFix", [1.0], 3.0)


def test_observed_times_become_the_true_ones():
    for make in (AsyncFedAvg, lambda **o: FedFix(0.3, **o)):
        known, observed = make(), make(times="observed")
        run(known, 30.0)
        run(observed, 30.0)
        assert observed.weights_ == pytest.approx(known.weights_)
    given = AsyncFedAvg(times=TIMES)
    run(given, 3.0, speeds=None)
    assert given.weights_ == pytest.approx(TIMES * (1 / TIMES).sum() / 4)
    buffered = FedBuff(2, restart="immediate", times="observed")
    run(buffered, 400.0)
    assert buffered.weights_ == pytest.approx((1 / TIMES).sum() * TIMES / 8, rel=0.02)


def test_a_fraction_of_clients_is_drawn_without_replacement_and_without_bias():
    result = run(FedAvg(fraction=0.5), until=2000.0)
    counts = np.bincount([c for row in result.aggregations for c in row["clients"]])
    assert all(len(set(row["clients"])) == 2 for row in result.aggregations)
    assert counts / result.nit == pytest.approx(np.full(4, 0.5), abs=0.04)
    assert weight_report(result, "uniform").unbiased(0.1)
    assert all(sum(row["weights"]) == pytest.approx(1.0) for row in result.aggregations)


def test_the_order_of_arrival_does_not_change_a_bit():
    def client(k):
        return FunctionClient(lambda model, task: Reply({"w": torch.full((3,), 0.1 * 3.0**k) + 1e-3 * model["w"]}))

    clients, start = [client(k) for k in range(8)], {"w": torch.zeros(3)}
    forth, back = (
        SimulatedEngine(clients, speeds=speeds).run(FedAvg(importance=1 / (1.0 + np.arange(8))), start, until=9.0).model
        for speeds in (linear_speeds(8), linear_speeds(8)[::-1])
    )
    assert torch.equal(forth["w"], back["w"])


def test_a_deadline_takes_what_has_come_and_discards_what_is_late():
    rule = FedAvg(deadline=0.6, importance=[0.4, 0.3, 0.2, 0.1])
    result = run(rule, until=0.6)
    (row,) = result.aggregations
    assert (row["time"], row["clients"]) == (0.6, [1, 3])
    assert row["weights"] == pytest.approx([0.75, 0.25])
    longer = run(FedAvg(deadline=0.6), until=30.0)
    assert sum(u["client"] == 0 for u in longer.updates) > 10
    assert all(0 not in r["clients"] for r in longer.aggregations)
    rule = FedAvg(deadline=0.6)
    run(rule, until=30.0)
    assert rule.n_discarded > 10
    none_in_time = run(FedAvg(deadline=0.1), until=30.0)
    assert none_in_time.nit == 0
    assert none_in_time.n_tasks > 20


def test_the_servers_optimizer_takes_the_negative_step_as_gradient():
    plain = models(FedAvg(server_lr=0.5))
    by_sgd = models(FedAvg(server_optimizer=lambda p: torch.optim.SGD(p, 0.5)))
    torch.testing.assert_close(plain, by_sgd)
    first = models(FedAvg(server_optimizer=lambda p: torch.optim.Adam(p, 0.1)))[0]
    assert first.abs().tolist() == pytest.approx([0.1, 0.1])


def test_unequal_numbers_of_steps_need_not_pull():
    clients = quadratics(rate=3e-3)
    clients[0] = quadratics(CENTERS[:1], rate=3e-3, steps=30)[0]
    biased, fair = (
        SimulatedEngine(clients).run(FedAvg(normalise_steps=flag), START, until=900.0).model["w"].numpy()
        for flag in (False, True)
    )
    assert np.linalg.norm(fair - CENTERS.mean(0)) < 0.1 * np.linalg.norm(biased - CENTERS.mean(0))


def test_a_delta_per_step_is_scaled_by_the_mean_number_of_steps():
    clients = [
        FunctionClient(lambda model, task, k=k: Reply({"w": torch.ones(1)}, metrics={"steps": k})) for k in (1.0, 3.0)
    ]
    result = SimulatedEngine(clients).run(FedAvg(normalise_steps=True), {"w": torch.zeros(1)}, max_aggregations=1)
    assert result.model["w"].item() == pytest.approx(0.5 * 2 / 1 + 0.5 * 2 / 3)


def test_before_anything_was_seen_all_clients_count_the_same():
    rule = FedBuff(2, times="observed", importance=[0.4, 0.3, 0.2, 0.1])
    rule.start([ClientInfo(k, 1) for k in range(4)], START, seed=0)
    assert rule.weights_ == pytest.approx(np.array([0.4, 0.3, 0.2, 0.1]) * 4 / 2)


def test_whole_numbers_are_taken_from_the_newest_update():
    def fit(model, task, k):
        return Reply({"w": torch.ones(1), "seen": model["seen"] + k})

    clients = [FunctionClient(lambda m, t, k=k: fit(m, t, k)) for k in (1, 5, 3)]
    start = {"w": torch.zeros(1), "seen": torch.tensor(0)}
    result = SimulatedEngine(clients).run(FedAvg(), start, max_aggregations=2)
    assert (result.model["seen"].item(), result.model["w"].item()) == (10, 2.0)


def test_local_training_equals_averaging_by_hand():
    generator = torch.Generator().manual_seed(0)
    X, y = torch.randn(60, 5, generator=generator), torch.randint(3, (60,), generator=generator)
    parts = dirichlet_partition(y, 3, 1.0, seed=1, min_samples=5)
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.2), torch.nn.BatchNorm1d(8),
                              torch.nn.Linear(8, 3))  # fmt: skip
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    clients = make_clients(
        net, (X, y), parts, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), steps=4,
        batch_size=None, max_grad_norm=1.0,
    )  # fmt: skip
    result = SimulatedEngine(clients).run(FedAvg(), net, max_aggregations=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[n], v) for n, v in net.state_dict().items())
    hand = {name: value.clone() for name, value in before.items()}
    from steepest.federated._seeds import task_seed

    for number in range(3):
        ends = []
        for k, part in enumerate(parts):
            net.load_state_dict(hand)
            net.train()
            optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
            with torch.random.fork_rng():
                torch.manual_seed(task_seed(0, k, number))
                for _ in range(4):
                    optimizer.zero_grad()
                    F.cross_entropy(net(X[part]), y[part]).backward()
                    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                    optimizer.step()
            ends.append({name: value.clone() for name, value in net.state_dict().items()})
        for name in hand:
            if hand[name].is_floating_point():
                hand[name] = sum(e[name] * (len(p) / 60) for e, p in zip(ends, parts, strict=True))
            else:
                hand[name] = ends[0][name]
    for name, value in result.model.items():
        torch.testing.assert_close(value, hand[name], rtol=0, atol=1e-6)
    assert result.updates[0]["metrics"]["steps"] == 4


def test_batches_of_a_map_style_data_set_are_those_of_tensors():
    X, y = torch.randn(30, 4), torch.randn(30, 1)
    made = [
        make_clients(
            torch.nn.Linear(4, 1), data, iid_partition(30, 2), F.mse_loss, optimizer=lambda p: torch.optim.SGD(p, 0.1),
            batch_size=7,
        )
        for data in ((X, y), torch.utils.data.TensorDataset(X, y))
    ]  # fmt: skip
    start = torch.nn.Linear(4, 1)
    a, b = (SimulatedEngine(clients).run(FedAvg(), start, max_aggregations=3).model for clients in made)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("alpha", [0.05, 1.0, 1000.0, float("inf")])
def test_dirichlet_parts_cover_all_and_are_as_skewed_as_told(balance, alpha):
    from sklearn.datasets import load_digits

    labels = load_digits().target
    parts = dirichlet_partition(labels, 10, alpha, seed=3, balance=balance)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert all((np.diff(part) > 0).all() for part in parts)
    whole = np.bincount(labels) / len(labels)
    skew = np.mean([np.abs(np.bincount(labels[p], minlength=10) / len(p) - whole).sum() / 2 for p in parts])
    if alpha == 0.05:
        assert skew > 0.6
    if alpha >= 1000:
        assert skew < 0.1
    if balance:
        assert np.ptp([len(p) for p in parts]) <= 1
    if alpha == float("inf") and not balance:
        shares = np.array([np.bincount(labels[p], minlength=10) for p in parts])
        assert np.ptp(shares, axis=0).max() <= 1
    again = dirichlet_partition(labels, 10, alpha, seed=3, balance=balance)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_other_partitions_cover_all():
    parts = iid_partition(101, 4, seed=1)
    assert sorted(np.concatenate(parts)) == list(range(101))
    assert np.ptp([len(p) for p in parts]) == 1
    labels = np.repeat(np.arange(5), 20)
    shards = shard_partition(labels, 5, 2)
    assert sorted(np.concatenate(shards)) == list(range(100))
    assert all(len(set(labels[p])) <= 2 for p in shards)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FedFix(0.0), "window must be > 0"),
        (lambda: FedFix(float("inf")), "window must be > 0"),
        (lambda: FedBuff(0), "buffer_size must be"),
        (lambda: FedBuff(2, restart="soon"), "restart must be one of"),
        (lambda: FedAvg(fraction=0.0), "fraction must be"),
        (lambda: FedAvg(server_lr=0.0), "server_lr must be > 0"),
        (lambda: FedAvg(importance="size"), "importance must be one of 'samples', 'uniform'"),
        (lambda: FedAvg(importance=[-1.0, 2.0]), "importance must be finite numbers >= 0"),
        (lambda: FedAvg(importance=[0.0, 0.0]), "importance must be finite numbers >= 0"),
        (lambda: FedAvg(weights="fair"), "weights must be one of"),
        (lambda: FedAvg(times=[0.0, 1.0]), "times must be positive seconds"),
        (lambda: FedAvg(staleness="linear"), "staleness must be None"),
        (lambda: FedAvg(on_failure="ignore"), "on_failure must be one of"),
        (lambda: FedAvg(max_failures=0), "max_failures must be"),
        (lambda: dirichlet_partition([0, 1], 3, 1.0), "n_clients must be at most the number of samples"),
        (lambda: dirichlet_partition([0, 1], 2, 0.0), "alpha must be > 0"),
        (lambda: dirichlet_partition([0] * 20, 10, 1e-3, min_samples=2), "alpha must be large enough"),
        (lambda: iid_partition(2, 3), "n_clients must be at most"),
        (lambda: shard_partition([0, 1, 2], 2, 2), "shards_per_client must be at most"),
    ],
)
def test_bad_arguments_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_what_depends_on_the_clients_is_refused_at_the_start():
    with pytest.raises(ValueError, match=r"buffer_size must be at most the number of clients \(4\), got 5"):
        run(FedBuff(5))
    with pytest.raises(ValueError, match=r"importance must be one value per client \(4\)"):
        run(FedAvg(importance=[1.0, 1.0]))
    with pytest.raises(TypeError, match="importance must be one of"):
        FedAvg(importance=object())
