"""Selection of lag and order: closed forms, brute force, systems of known dimension."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.spatial.distance import cdist
from sklearn.metrics import mutual_info_score

from steepest.core.errors import SteepestWarning
from steepest.manifold import (
    _delay_selection as selection,
)
from steepest.manifold import cao_e1, false_nearest_neighbours, mdop, mutual_information, select_lag, select_order


def resonance(shape, seed=0):
    return lfilter([1], [1, -1.8, 0.9], np.random.default_rng(seed).standard_normal(shape))


def henon(n):
    x = [0.3, 0.5]
    for _ in range(n + 98):
        x.append(1 - 1.4 * x[-1] ** 2 + 0.3 * x[-2])
    return np.array(x[100:])


def test_information_of_a_series_with_itself_is_the_entropy_of_its_bins():
    x = np.random.default_rng(0).standard_normal(1600)
    found = mutual_information(x, 5, bins=16)
    assert found[0] == pytest.approx(math.log(16), rel=1e-12)
    assert found[1:].max() < (15 * 15) / (2 * 1595) * 1.5  # independent: the bias (b - 1)^2 / 2 T alone
    np.testing.assert_allclose(mutual_information(np.exp(x), 5), found)  # ranks


def test_information_is_that_of_scikit_learn_on_the_same_bins():
    x = resonance(500)
    bins = np.argsort(np.argsort(x)) * 8 // 500
    expected = [mutual_info_score(bins[: 500 - lag], bins[lag:]) for lag in range(12)]
    np.testing.assert_allclose(mutual_information(x, 11, bins=8), expected, atol=1e-12)


def test_ties_are_broken_by_order():
    x = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert mutual_information(x, 1, bins=4)[0] == pytest.approx(math.log(4))


def test_lag_is_the_first_minimum_of_the_average():
    X = resonance((4, 3, 400))
    mean = np.mean([mutual_information(x, 30) for x in X.reshape(-1, 400)], axis=0)
    first = next(k for k in range(1, 30) if mean[k] < mean[k - 1] and mean[k] < mean[k + 1])
    assert select_lag(X, 30) == first == 5


def test_lag_without_a_minimum(monkeypatch):
    X = resonance((1, 1, 100))
    monkeypatch.setattr(selection, "_information", lambda *a: np.array([2.0, 1.5, 0.7, 0.5]))
    assert select_lag(X) == 2  # below 2 / e = 0.736
    monkeypatch.setattr(selection, "_information", lambda *a: np.array([2.0, 1.5, 0.9]))
    with pytest.warns(SteepestWarning, match="raise max_lag"):
        assert select_lag(X) == 2


def brute(x, lag, max_order, theiler=0):
    """Shares of false neighbours and Cao's growth, straight from their definitions."""
    false, growth = [], []
    for m in range(1, max_order + 1):
        n = len(x) - m * lag
        z = np.array([[x[t + i * lag] for i in range(m)] for t in range(n)])
        far = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) > theiler
        D = np.where(far, cdist(z, z), np.inf)
        s = D.argmin(axis=1)
        d, step = D.min(axis=1), np.abs(x[m * lag :] - x[s + m * lag])
        false.append(np.mean((step / d > 15) | (np.sqrt(d**2 + step**2) / x.std() > 2)))
        D = np.where(far, cdist(z, z, "chebyshev"), np.inf)
        s = D.argmin(axis=1)
        growth.append(np.mean(np.maximum(D.min(axis=1), np.abs(x[m * lag :] - x[s + m * lag])) / D.min(axis=1)))
    return np.array(false), np.array(growth)


@pytest.mark.parametrize("theiler", [0, 7])
@pytest.mark.parametrize("dense", [0, 3000])
def test_neighbours_are_those_of_brute_force(monkeypatch, theiler, dense):
    monkeypatch.setattr(selection, "DENSE", dense)
    x = resonance(300)
    false, growth = brute(x, 3, 6, theiler)
    np.testing.assert_allclose(false_nearest_neighbours(x, 3, 6, theiler=theiler), false, atol=1e-12)
    if not theiler:
        np.testing.assert_allclose(cao_e1(x, 3, 5), growth[1:] / growth[:-1], rtol=1e-12)


def test_henon_needs_two_dimensions():
    x = henon(1500)
    shares = false_nearest_neighbours(x, 1, 4)
    assert shares[0] > 0.5
    assert (shares[1:] < 0.01).all()
    assert select_order(x[None, None], 1, 4) == 2
    e1 = cao_e1(x, 1, 6)
    assert e1[0] < 0.5
    assert (np.abs(e1[2:] - 1) < 0.2).all()


def test_quantized_series_have_neighbours_at_distance_zero():
    x = np.round(resonance(400))
    assert np.isfinite(cao_e1(x, 3, 4)).all()
    assert np.isfinite(false_nearest_neighbours(x, 3, 4)).all()
    assert mdop(x, max_delay=10, max_order=3)[0] == 0


def test_order_without_a_match_is_the_one_with_fewest_false_neighbours():
    X = np.random.default_rng(0).standard_normal((1, 2, 200))
    shares = np.mean([false_nearest_neighbours(x, 1, 4) for x in X[0]], axis=0)
    with pytest.warns(SteepestWarning, match="above the threshold 0"):
        assert select_order(X, 1, 4, threshold=0.0) == int(shares.argmin()) + 1


def brute_mdop_choice(x, delays, max_delay, theiler):
    t = np.arange(max_delay, len(x))
    z = np.stack([x[t - d] for d in delays], axis=1)
    D = cdist(z, z)
    D[np.abs(np.subtract.outer(t, t)) <= theiler] = np.inf
    s, d = D.argmin(axis=1), D.min(axis=1)
    means = {
        c: np.exp(np.mean(np.log(np.abs(x[t - c] - x[t[s] - c]) / d)))
        for c in range(1, max_delay + 1)
        if c not in delays
    }
    return max(means, key=means.get)


def test_mdop_takes_the_delay_of_largest_mean_derivative():
    x = resonance(300)
    found = mdop(x, max_delay=20, max_order=3, fnn_threshold=0.0)
    assert found[0] == 0
    assert found[1] == brute_mdop_choice(x, [0], 20, 20)
    assert found[2] == brute_mdop_choice(x, found[:2], 20, 20)


def test_mdop_stops_when_nothing_is_false():
    assert mdop(np.arange(300.0) ** 2, max_delay=10) == [0]  # monotone: one coordinate tells everything
    assert len(mdop(np.sin(0.3 * np.arange(500)), max_delay=10)) == 2  # a circle needs two


def test_many_ties_are_broken_by_order():
    x = np.random.default_rng(0).integers(3, size=400).astype(float)
    bins = np.argsort(np.argsort(x, kind="stable")) * 16 // 400
    expected = [mutual_info_score(bins[: 400 - lag], bins[lag:]) for lag in range(5)]
    np.testing.assert_allclose(mutual_information(x, 4), expected, atol=1e-12)


@pytest.mark.parametrize("dense", [0, 3000])
def test_theiler_window_ends_where_it_says(monkeypatch, dense):
    monkeypatch.setattr(selection, "DENSE", dense)
    points = np.sqrt(np.arange(60.0))[:, None]  # the later neighbour is the nearer one
    index, _ = selection._nearest(points, 7, norm=2, apart=False)
    np.testing.assert_array_equal(index[:40] - np.arange(40), 8)
    index, _ = selection._nearest(-(np.arange(60.0)[:, None] ** 2), 7, norm=2, apart=False)
    np.testing.assert_array_equal(index[20:] - np.arange(20, 60), -8)


def test_order_obeys_its_threshold():
    X = resonance((1, 3, 300))
    shares = np.mean([false_nearest_neighbours(x, 2, 4) for x in X[0]], axis=0)
    assert shares[0] > shares[1] > shares[2]
    assert select_order(X, 2, 4, threshold=float(shares[1] + shares[2]) / 2) == 3
    assert select_order(X, 2, 4, threshold=float(shares[0] + shares[1]) / 2) == 2


def test_plateau_is_the_mean_of_the_last_three():
    assert selection._plateau(np.array([0.1, 0.5, 0.93, 0.96, 0.99, 1.0, 1.01])) == 4


@pytest.mark.filterwarnings("ignore:.*neighbours are false")
def test_selected_delays_fit_the_trials():
    X = resonance((2, 2, 60))
    assert selection.select(X, "ami-fnn", 3, 4, 10, 50) == (0, 4, 8)
    for selector in ("ami-fnn", "ami-cao"):  # 60 samples allow less than order 10 at lag 9
        delays = selection.select(X, selector, None, 9, 10, 50)
        assert set(np.diff(delays)) <= {9}
        assert max(delays) < 58
    order = select_order(X, 3, 6)
    assert selection.select(X, "ami-fnn", None, 3, 6, 50) == tuple(3 * i for i in range(order))


def test_misuse():
    x = resonance(100)
    with pytest.raises(ValueError, match="max_lag must be below the length 100"):
        mutual_information(x, 100)
    with pytest.raises(ValueError, match="bins must be"):
        mutual_information(x, 5, bins=1)
    with pytest.raises(ValueError, match="bins must be at most"):
        mutual_information(x, 5, bins=101)
    with pytest.raises(ValueError, match="varies, got 'the constant 3'"):
        cao_e1(np.full(50, 3.0), 1)
    with pytest.raises(ValueError, match="finite"):
        mdop(np.append(x, np.nan))
    with pytest.raises(ValueError, match="max_order must be at most 9 with lag 10 and 100 samples"):
        false_nearest_neighbours(x, 10, 10)
    with pytest.raises(ValueError, match="max_delay must be"):
        mdop(x, max_delay=40)
    with pytest.raises(ValueError, match="rtol must be > 0"):
        false_nearest_neighbours(x, 1, 3, rtol=0)
    with pytest.raises(ValueError, match=r"trials \(n, m, T\)"):
        select_lag(x)
    with pytest.raises(ValueError, match="constant channel 1 in trial 0"):
        select_order(np.stack([x, np.zeros(100)])[None], 1)
    with pytest.raises(ValueError, match=r"a series \(T,\)"):
        mutual_information(x[None], 5)
