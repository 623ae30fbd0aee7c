"""Augmented covariances: the embedded copy in float64, closed forms, MOABB's transformer, pyRiemann, scikit-learn."""

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, lfilter, sosfiltfilt
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf, oas
from sklearn.model_selection import GridSearchCV, cross_val_score

from steepest.core.errors import SteepestWarning
from steepest.core.extras import MissingExtra
from steepest.manifold import AugmentedCovariance, DelayEmbedding, augmented_covariance_pipeline
from steepest.manifold import augmented_covariance as module
from steepest.manifold._riemannian import TangentSpace

ESTIMATORS = {
    "scm": lambda Z: np.cov(Z, bias=True),
    "cov": np.cov,
    "corr": np.corrcoef,
    "oas": lambda Z: oas(Z.T)[0],
    "lwf": lambda Z: ledoit_wolf(Z.T)[0],
}


def trials(n=6, m=3, T=120, seed=0, scale=1e-5):
    noise = np.random.default_rng(seed).standard_normal((n, m, T + 20))
    mixing = np.random.default_rng(seed + 1).standard_normal((m, m))
    return scale * (mixing @ lfilter([1], [1, -0.9], noise)[:, :, 20:])


def embedded(x, delays, length=None):
    length = length or x.shape[1] - max(delays)
    return np.concatenate([x[:, d : d + length] for d in delays])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "how", [{"order": 4, "lag": 5}, {"order": 1, "lag": 3}, {"order": 3, "lag": 30}, {"delays": (0, 3, 4, 11)}]
)
def test_equals_the_covariance_of_the_embedded_copy(estimator, how):
    X = trials() + 3e-5  # an offset must not cost accuracy
    model = AugmentedCovariance(estimator=estimator, **how).fit(X)
    found = model.transform(X)
    expected = np.stack([ESTIMATORS[estimator](embedded(x, model.delays_)) for x in X])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())
    assert found.dtype == np.float64
    assert (found == found.mT).all()
    assert np.linalg.eigvalsh(found).min() > 0


def test_windows_that_do_not_all_overlap():
    X = trials(T=60)
    model = AugmentedCovariance(4, 18, estimator="scm", n_jobs=1)  # 6 samples, windows 54 apart
    with pytest.warns(SteepestWarning, match="singular"):
        found = model.fit(X).transform(X)
    expected = np.stack([np.cov(embedded(x, (0, 18, 36, 54)), bias=True) for x in X])
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=5, unique=True), st.integers(1, 3), st.integers(0, 10**6))
def test_any_delays_in_any_order(delays, m, seed):
    X = trials(2, m, 60, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteepestWarning)
        found = AugmentedCovariance(delays=delays, estimator="scm").fit_transform(X)
    expected = np.stack([np.cov(embedded(x, delays), bias=True).reshape(found.shape[1:]) for x in X])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * np.abs(expected).max())


def test_a_large_artefact_at_the_edge_costs_no_accuracy_elsewhere():
    """Windows are put together by addition only: subtracting the edges would leave the artefact's rounding behind."""
    X = trials(1, 2, 200, scale=1.0)
    X[:, :, 0] += 1e5
    C = AugmentedCovariance(3, 5, estimator="scm").fit_transform(X)
    expected = np.cov(embedded(X[0], (0, 5, 10)), bias=True)
    np.testing.assert_allclose(C[0, 2:, 2:], expected[2:, 2:], rtol=1e-8, atol=1e-9)


def test_block_toeplitz_averages_the_lags():
    X, p, m = trials(2, 2, 400), 4, 2
    plain = AugmentedCovariance(p, 3, estimator="scm").fit_transform(X).reshape(2, p, m, p, m)
    found = AugmentedCovariance(p, 3, estimator="scm", block_toeplitz=True).fit_transform(X).reshape(2, p, m, p, m)
    for k in range(p):
        mean = np.mean([plain[:, i, :, i + k, :] for i in range(p - k)], axis=0)
        for i in range(p - k):
            np.testing.assert_allclose(found[:, i, :, i + k, :], mean, rtol=1e-12)
            np.testing.assert_allclose(found[:, i + k, :, i, :], mean.mT, rtol=1e-12)


def test_block_toeplitz_clips_what_is_not_definite():
    X = trials(4, 4, 30)
    model = AugmentedCovariance(4, 2, estimator="oas", block_toeplitz=True).fit(X)
    assert np.linalg.eigvalsh(model.transform(X)).min() > 0
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.standard_normal((3, 3, 40)), axis=2)
    model = AugmentedCovariance(8, 2, estimator="scm", block_toeplitz=True)
    model.fit(steps)
    with pytest.warns(SteepestWarning, match="condition"):
        C = model.transform(steps)
    assert model.n_clipped_ > 0
    raw = AugmentedCovariance(8, 2, estimator="scm")
    blocks = raw.fit_transform(steps)
    module._average_equal_lags(blocks, raw.delays_)
    floor = 1e-10 * np.trace(blocks, axis1=1, axis2=2) / 24
    w, V = np.linalg.eigh(blocks)
    assert model.n_clipped_ == (w < floor[:, None]).sum()
    expected = (V * np.maximum(w, floor[:, None])[:, None]) @ V.mT
    np.testing.assert_allclose(C, expected, atol=1e-10 * np.abs(expected).max())


def test_normalise():
    X = trials()
    plain = AugmentedCovariance(3, 4).fit_transform(X)
    by_trace = AugmentedCovariance(3, 4, normalise="trace").fit_transform(X)
    np.testing.assert_allclose(by_trace, plain / (np.trace(plain, axis1=1, axis2=2)[:, None, None] / 9))
    by_diagonal = AugmentedCovariance(3, 4, normalise="corr").fit_transform(X)
    d = np.sqrt(np.einsum("nii->ni", plain))
    np.testing.assert_allclose(by_diagonal, plain / d[:, :, None] / d[:, None, :])


def test_units_do_not_matter():
    X = trials(scale=1.0)
    for estimator in ("oas", "lwf"):
        a, b = (AugmentedCovariance(3, 4, estimator=estimator).fit_transform(s * X) for s in (1.0, 1e-6))
        np.testing.assert_allclose(b, 1e-12 * a, rtol=1e-9, atol=1e-24)


def test_blocks_solve_the_yule_walker_equations():
    A = 0.5 * np.linalg.qr(np.random.default_rng(1).standard_normal((2, 2)))[0]
    x, noise = np.zeros((2, 20_000)), np.random.default_rng(0).standard_normal((2, 20_000))
    for t in range(1, 20_000):
        x[:, t] = A @ x[:, t - 1] + noise[:, t]
    C = AugmentedCovariance(2, 1, estimator="scm", block_toeplitz=True).fit_transform(x[None])[0]
    np.testing.assert_allclose(C[2:, :2] @ np.linalg.inv(C[:2, :2]), A, atol=0.02)  # Gamma(1) Gamma(0)^-1


def test_n_jobs_and_batches_do_not_change_a_bit(monkeypatch):
    X = trials(9, 4, 100)
    one = AugmentedCovariance(4, 3).fit_transform(X)
    monkeypatch.setattr(module, "BATCH_BYTES", 2 * 8 * 16**2)
    assert (AugmentedCovariance(4, 3).fit_transform(X) == one).all()
    assert (AugmentedCovariance(4, 3, n_jobs=2).fit_transform(X) == one).all()


def test_embedding_is_ordered_delay_by_delay():
    X = trials(2, 3, 50)
    Z = DelayEmbedding(3, 7).fit_transform(X)
    assert Z.shape == (2, 9, 36)
    for k in range(3):
        np.testing.assert_array_equal(Z[:, 3 * k : 3 * k + 3], X[:, :, 7 * k : 7 * k + 36])
    np.testing.assert_array_equal(DelayEmbedding(delays=(0, 9)).fit_transform(X)[:, 3:], X[:, :, 9:])


def theirs(X, order, lag):
    """MOABB's transformer, in our words: order copies of T - order * lag samples."""
    if order == 1:
        return X
    return np.concatenate([X[:, :, k * lag : X.shape[2] - (order - k) * lag] for k in range(order)], axis=1)


@pytest.mark.parametrize(("order", "lag"), [(1, 4), (2, 1), (5, 3)])
def test_compat_reproduces_moabb(order, lag):
    X = trials()
    found = AugmentedCovariance(order, lag, compat="moabb").fit_transform(X)
    expected = np.stack([oas(z.T)[0] for z in theirs(X, order, lag)])
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13 * np.abs(expected).max())


def test_compat_against_moabb_itself():
    moabb = pytest.importorskip("moabb.pipelines.features")
    X = trials()
    np.testing.assert_array_equal(moabb.AugmentedDataset(5, 3).transform(X), theirs(X, 5, 3))


@pytest.mark.filterwarnings("ignore:Convergence not reached", "ignore::DeprecationWarning")  # pyRiemann's own
@pytest.mark.parametrize("estimator", [*ESTIMATORS, "sch", "hub"])
def test_agrees_with_pyriemann_on_the_embedded_trials(estimator):
    estimation = pytest.importorskip("pyriemann.estimation")
    X = trials(3)
    found = AugmentedCovariance(3, 4, estimator=estimator).fit_transform(X)
    expected = estimation.Covariances(estimator).fit_transform(DelayEmbedding(3, 4).fit_transform(X))
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12 * np.abs(expected).max())


# ------------------------------------------------------------------------------------------------------------ choice


def resonances(n=24, m=10, T=300):
    X = lfilter([1], [1, -1.8, 0.9], np.random.default_rng(0).standard_normal((n, m, T)))
    return X * np.arange(1, m + 1)[:, None]


def test_automatic_choice_looks_at_some_trials_and_the_strongest_channels(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "select", lambda X, *rest: (seen.append((X, rest)), (0, 4, 8))[1])
    X = resonances()
    model = AugmentedCovariance("auto", 4, selector="ami-cao", max_order=6, max_lag=9, random_state=3).fit(X)
    assert (model.delays_, model.order_, model.lag_) == ((0, 4, 8), 3, 4)
    sample, rest = seen[0]
    assert sample.shape == (20, 8, 300)
    assert rest == ("ami-cao", None, 4, 6, 9)
    assert all((x[None] == X[:, 2:]).all(axis=(1, 2)).any() for x in sample)
    model.fit(X)
    np.testing.assert_array_equal(seen[1][0], sample)


@pytest.mark.parametrize("selector", ["ami-fnn", "ami-cao", "mdop"])
def test_selectors(selector):
    X = resonances(6, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteepestWarning)  # noise keeps some neighbours false
        model = AugmentedCovariance("auto", "auto", selector=selector, max_lag=15, random_state=0, sfreq=250.0).fit(X)
    assert model.delays_[0] == 0
    assert 2 <= model.order_ <= 10
    if selector == "mdop":
        assert model.transform(X).shape[1] == 2 * model.order_
    else:
        assert model.lag_ == 5
        assert model.lag_ms_ == 20.0


# ----------------------------------------------------------------------------------------------------- scikit-learn


def spectra(n=40, T=200, seed=0):
    y = np.arange(n) % 2
    X = np.random.default_rng(seed).standard_normal((n, 2, T + 1))
    return X[:, :, 1:] + np.where(y, 0.9, -0.9)[:, None, None] * X[:, :, :-1], y


@pytest.mark.parametrize("classifier", ["tangent-svm", "tangent-lr", "mdm"])
def test_pipelines_see_what_a_plain_covariance_cannot(classifier):
    pytest.importorskip("pyriemann")
    X, y = spectra()
    model = augmented_covariance_pipeline(classifier, order=2, lag=1)
    assert cross_val_score(model, X, y, cv=4, error_score="raise").mean() > 0.95
    plain = clone(model).set_params(augmentedcovariance__order=1)
    assert cross_val_score(plain, X, y, cv=4).mean() < 0.8
    again = pickle.loads(pickle.dumps(model.fit(X, y)))
    assert (again.predict(X) == model.predict(X)).all()
    assert model.param_grid_["augmentedcovariance__order"] == list(range(1, 11))


def test_grid_search_over_order_and_lag():
    X, y = spectra()
    model = augmented_covariance_pipeline("tangent-lr")
    assert set(model.param_grid_) <= set(model.get_params())
    grid = {"augmentedcovariance__order": [1, 2], "augmentedcovariance__lag": [1]}
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(X, y)
    assert search.best_params_["augmentedcovariance__order"] == 2


def test_without_pyriemann(monkeypatch):
    X, y = spectra()
    theirs = augmented_covariance_pipeline("tangent-svm", order=2, lag=1).fit(X, y).decision_function(X)
    monkeypatch.setattr(module, "installed", lambda package: False)
    model = augmented_covariance_pipeline("tangent-svm", order=2, lag=1)
    assert isinstance(model[1], TangentSpace)
    np.testing.assert_allclose(model.fit(X, y).decision_function(X), theirs, atol=1e-5)

    def missing(package, extra=None, *, what="this"):
        raise MissingExtra(what, package.split(".")[0], extra)

    monkeypatch.setattr(module, "require", missing)
    with pytest.raises(ImportError, match=r'classifier=.mdm. needs pyriemann: pip install "steepest\[eeg\]"'):
        augmented_covariance_pipeline("mdm")
    with pytest.raises(ImportError, match="estimator='hub' needs pyriemann"):
        AugmentedCovariance(2, 1, estimator="hub").fit_transform(X)


def test_parameters_are_stored_as_they_are():
    delays = [0, 2, 5]
    model = AugmentedCovariance(delays=delays, normalise="corr")
    assert clone(model).get_params()["delays"] == delays
    model.fit(trials())
    assert model.delays is delays
    assert (model.delays_, model.order_, model.lag_) == ((0, 2, 5), 3, None)


# ------------------------------------------------------------------------------------------------------------ misuse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 0}, 'order must be an integer >= 1 or "auto", got 0'),
        ({"order": 2.5}, "order must be an integer >= 1"),
        ({"lag": -1}, "lag must be"),
        ({"lag": "best"}, "lag must be"),
        ({"order": 13, "lag": 10}, r"X must be trials of at least 122 samples for the delays .* got '120 samples'"),
        ({"delays": [0, 3, 3]}, r"delays must be different integers >= 0, got \[0, 3, 3\]"),
        ({"delays": [0, -3]}, "delays must be different integers"),
        ({"delays": [0, 119]}, "at least 121 samples"),
        ({"delays": [0, 2], "compat": "moabb"}, "delays must be None with compat='moabb'"),
        ({"estimator": "best"}, "estimator must be one of 'scm', 'cov'"),
        ({"selector": "best"}, "selector must be one of 'ami-fnn'"),
        ({"normalise": "max"}, "normalise must be None or one of"),
        ({"compat": "mne"}, "compat must be"),
        ({"sfreq": 0.0}, "sfreq must be"),
    ],
)
def test_arguments_are_checked_at_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        AugmentedCovariance(**arguments).fit(trials())


def test_data_are_checked():
    X, model = trials(), AugmentedCovariance(2, 1).fit(trials())
    for estimator in (model, DelayEmbedding(2, 1).fit(X)):
        with pytest.raises(ValueError, match=r"X must be trials of shape \(n, m, T\)"):
            estimator.fit(X[0])
        with pytest.raises(ValueError, match="3 channels, as in fit"):
            estimator.transform(X[:, :2])
        for bad in (np.nan, np.inf):
            broken = X.copy()
            broken[1, 2, 3] = bad
            with pytest.raises(ValueError, match="X must be finite"):
                estimator.transform(broken)
    flat = X.copy()
    flat[4, 1] = 2.0
    with pytest.raises(ValueError, match="constant channel 1 in trial 4"):
        model.fit(flat)
    with pytest.raises(ValueError, match="got '50 samples'"):
        AugmentedCovariance(5, 20).fit(X).transform(X[:, :, :50])
    with pytest.raises(ValueError, match="order must be"):
        DelayEmbedding(order=0).fit(X)
    with pytest.raises(ValueError, match="classifier must be one of"):
        augmented_covariance_pipeline("svm")
    with pytest.raises(TypeError, match="block_toeplitz must be True or False"):
        AugmentedCovariance(block_toeplitz=1).fit(X)


def test_singular_and_ill_conditioned_matrices_are_told():
    X = trials(2, 3, 40)
    for estimator in ("scm", "cov"):
        with pytest.warns(SteepestWarning, match="31 samples give 30 x 30|singular"):
            AugmentedCovariance(10, 2, estimator=estimator).fit(X)
    AugmentedCovariance(10, 1, estimator="oas").fit_transform(X)  # silent
    band = butter(4, [8, 12], "bandpass", fs=160, output="sos")
    narrow = sosfiltfilt(band, np.random.default_rng(0).standard_normal((2, 2, 3000)), axis=-1)
    model = AugmentedCovariance(10, 1, estimator="scm").fit(narrow)
    with pytest.warns(SteepestWarning, match="condition numbers above 1e\\+10"):
        C = model.transform(narrow)
    w = np.linalg.eigvalsh(C)
    assert (w[:, -1] > 1e10 * np.abs(w[:, 0])).any()
    AugmentedCovariance(10, 1).fit_transform(narrow)  # shrunk: silent
