"""Logistic regression with large steps: the paper's table, perceptrons written out, then properties."""

import math
import warnings

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import nnls
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from steepest.core.errors import ConvergenceWarning
from steepest.landscape import LargeStepLogisticRegression, perceptron_bound, worst_case_data
from steepest.landscape import _margin_sums as sums_module
from steepest.landscape import _row_blocks as blocks
from steepest.landscape.separable import _block_sums

inf = math.inf
VARIANTS = [(gamma, normalize) for gamma in (0.5, 100.0, inf) for normalize in (True, False)]


def digits_pair(a, b):
    X, y = load_digits(return_X_y=True)
    both = (y == a) | (y == b)
    return X[both] / 16, y[both]


def separable(seed, n=60, d=5, gap=0.3):
    """Points on both sides of a random plane through a random offset, with a gap."""
    rng = np.random.default_rng(seed)
    normal, X = rng.standard_normal(d), rng.standard_normal((n, d))
    normal /= np.linalg.norm(normal)
    side = np.where(X @ normal + 0.2 > 0, 1, -1)
    return X + gap * side[:, None] * normal, side


def signed(X, y, intercept=True):
    """Rows y_i a_i, with the constant 1."""
    return y[:, None] * (np.column_stack([X, np.ones(len(X))]) if intercept else X)


def hard_margin(A):
    """Largest margin of rows y_i a_i: the point of their convex hull nearest to 0, with its certificate."""
    share, _ = nnls(np.vstack([A.T, np.ones(len(A))]), np.append(np.zeros(A.shape[1]), 1.0))
    nearest = A.T @ share / share.sum()
    upper, lower = np.linalg.norm(nearest), (A @ nearest).min() / np.linalg.norm(nearest)
    assert upper - lower < 1e-9 * upper
    return upper


def batch_perceptron(A, normalize):
    """The limit, from its definition: half of the mean first, then sums over what is misclassified."""
    theta = A.mean(axis=0) * (1.0 if normalize else 0.5)
    count = 1
    while (wrong := A @ theta <= 0).any():
        theta, count = theta + A[wrong].sum(axis=0) / (wrong.sum() if normalize else len(A)), count + 1
    return theta, count


def coefficients(model):
    return np.append(model.coef_.ravel(), model.intercept_ if model.fit_intercept else [])


# --------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize(
    ("gamma", "normalize", "count"),
    [(100, True, 2), (10, True, 2), (1, True, 16), (0.1, True, 157), (100, False, 308)],
)
def test_the_papers_table(gamma, normalize, count):
    model = LargeStepLogisticRegression(gamma, normalize=normalize, fit_intercept=False).fit(*worst_case_data(1_000))
    assert model.n_iter_.tolist() == [count]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pair", [(3, 8), (4, 9), (1, 7)])
def test_infinite_steps_are_the_batch_perceptron(pair, normalize):
    X, y = digits_pair(*pair)
    theta, count = batch_perceptron(signed(X, np.where(y == pair[1], 1, -1)), normalize)
    model = LargeStepLogisticRegression(inf, normalize=normalize).fit(X, y)
    assert model.n_iter_.tolist() == [count]
    np.testing.assert_allclose(coefficients(model), theta, rtol=1e-9)


@pytest.mark.parametrize("normalize", [True, False])
def test_large_steps_approach_the_batch_perceptron(normalize):
    X, y = digits_pair(4, 9)
    limit = LargeStepLogisticRegression(inf, normalize=normalize).fit(X, y)
    large = LargeStepLogisticRegression(1e6, normalize=normalize).fit(X, y)
    assert large.n_iter_ == limit.n_iter_
    np.testing.assert_allclose(large.coef_ / 1e6, limit.coef_, rtol=1e-4)


@pytest.mark.parametrize(("gamma", "normalize"), VARIANTS[:4])
def test_updates_are_those_of_gradient_descent_on_the_loss(gamma, normalize):
    """The recorded loss and gradient, and the third iterate, from the definition of the loss."""
    X, y = separable(0, gap=0.02)
    A = signed(X, y)
    model = LargeStepLogisticRegression(gamma, normalize=normalize, record_history=True, max_iter=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    theta = np.zeros(6)
    history = model.history_[0]
    assert history["loss"][0] == pytest.approx(math.log(2))
    for t in range(int(model.n_iter_[0]) + 1):
        h = 1e-6 * np.eye(6)
        loss = np.logaddexp(0, -A @ theta).mean()
        gradient = np.array([(np.logaddexp(0, -A @ (theta + e)) - np.logaddexp(0, -A @ (theta - e))).mean() for e in h])
        gradient /= 2e-6
        assert history["loss"][t] == pytest.approx(loss, rel=1e-6)
        assert history["accuracy"][t] == pytest.approx((A @ theta > 0).mean())
        assert history["grad_norm"][t] == pytest.approx(np.linalg.norm(gradient), rel=1e-5, abs=1e-9)
        last, w = theta, 1 / (1 + np.exp(np.clip(A @ theta, -500, 500)))
        theta = theta + gamma * A.T @ w / (w.sum() if normalize else len(A))
    if model.separated_[0]:
        np.testing.assert_allclose(coefficients(model), last, rtol=1e-9)


def test_bounds_are_never_violated():
    tight = []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        X, y = separable(seed, int(rng.integers(10, 200)), int(rng.integers(2, 20)), rng.uniform(0.02, 1))
        A = signed(X, y)
        mu, R = hard_margin(A), np.linalg.norm(A, axis=1).max()
        for gamma, normalize in VARIANTS:
            model = LargeStepLogisticRegression(gamma, normalize=normalize, max_iter=1_000_000).fit(X, y)
            bound = perceptron_bound(R, mu, len(X), gamma, normalize)
            assert model.n_iter_[0] <= bound
            assert 0 < model.margin_[0] <= mu * (1 + 1e-9)
            tight.append(model.n_iter_[0] / bound)
    assert max(tight) > 0.05  # not because the bounds are vacuous


def test_bounds_by_hand():
    assert perceptron_bound(2, 0.5) == 16
    assert perceptron_bound(2, 0.5, 10, inf, False) == 160
    assert perceptron_bound(2, 0.5, 10, 4.0) == pytest.approx(16 + 2 * math.log(19))
    assert perceptron_bound(2, 0.5, 10, 4.0, False) == pytest.approx(20 * (16 + 2 * math.log(19)))


def test_worst_case_data_need_a_multiple_of_n_and_normalized_ones_do_not():
    plain, normalized = [], []
    for n in (100, 200, 400):
        X, y = worst_case_data(n)
        assert X.shape == (n, 2)
        assert (y == 1).sum() == 1
        assert hard_margin(signed(X, y, False)) == pytest.approx(0.5)
        plain.append(LargeStepLogisticRegression(inf, normalize=False, fit_intercept=False).fit(X, y).n_iter_[0])
        normalized.append(LargeStepLogisticRegression(inf, fit_intercept=False).fit(X, y).n_iter_[0])
    assert plain == [31, 61, 121]
    assert normalized == [2, 2, 2]


def test_block_sums_are_the_sums():
    rng = np.random.default_rng(0)
    X, theta, s = rng.standard_normal((30, 4)), rng.standard_normal((5, 2)), rng.uniform(0.5, 2, (30, 1))
    y = np.where(rng.random((30, 2)) > 0.5, 1.0, -1.0)
    A = np.column_stack([X, np.ones(30)])
    m = y * (A @ theta)
    w = s / (1 + np.exp(3 * m))
    for rows in (X, sparse.csr_matrix(X)):
        sums = _block_sums(rows, y, theta, s, step_size=3.0, with_loss=True)
        np.testing.assert_allclose(sums.gradient, A.T @ (y * w), rtol=1e-12)
        np.testing.assert_allclose(sums.weight, w.sum(axis=0), rtol=1e-12)
        np.testing.assert_allclose(sums.wrong, (s * (m <= 0)).sum(axis=0))
        np.testing.assert_allclose(sums.lowest, m.min(axis=0))
        np.testing.assert_allclose(sums.loss, (s * np.log1p(np.exp(-3 * m))).sum(axis=0), rtol=1e-12)
        halves = [_block_sums(rows[p], y[p], theta, s[p], step_size=3.0) for p in (slice(0, 11), slice(11, 30))]
        for whole, part in zip(sums[:4], halves[0].plus(halves[1])):
            np.testing.assert_allclose(part, whole, rtol=1e-12)
        far = _block_sums(rows, np.ones((30, 2)), 1e4 * np.abs(theta) * [[0], [0], [0], [0], [1]], s)
        assert (far.weight == 0).all()  # so that
        relative = _block_sums(
            rows, np.ones((30, 2)), 1e4 * np.abs(theta) * [[0], [0], [0], [0], [1]], s, relative_to=far.lowest
        )
        np.testing.assert_allclose(relative.weight, s.sum())


def test_a_margin_of_zero_is_wrong():
    X, y = np.array([[1.0], [0.0], [-1.0]]), np.ones((3, 1))
    assert _block_sums(X, y, np.array([[2.0]])).wrong.tolist() == [2]


def test_rows_that_are_left_out_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((400, 30)), np.ones((400, 1))
    theta = 200 * rng.standard_normal((31, 1))
    all_rows = _block_sums(X, y, theta).gradient
    monkeypatch.setattr(sums_module, "LARGE", 1)
    monkeypatch.setattr(sums_module, "_weights", lambda m, *_: np.exp(-np.abs(m)))
    few = _block_sums(X, y, theta).gradient
    monkeypatch.setattr(sums_module, "LARGE", 10**9)
    np.testing.assert_allclose(few, _block_sums(X, y, theta).gradient, rtol=1e-14)
    assert not np.allclose(few, all_rows)
    monkeypatch.setattr(sums_module, "NEGLIGIBLE", 1e3)
    monkeypatch.setattr(sums_module, "LARGE", 1)
    assert not np.allclose(few, _block_sums(X, y, theta).gradient, rtol=1e-6)  # the way that leaves rows out


# ----------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize(("gamma", "normalize"), VARIANTS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_integer_weights_are_repeated_rows(gamma, normalize, n_classes):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((40, 6))
    y = (X[:, :n_classes]).argmax(axis=1)
    X[np.arange(40), y] += 0.7
    weight = rng.integers(0, 4, 40)
    model = LargeStepLogisticRegression(gamma, normalize=normalize, record_history=True)
    one = clone(model).fit(X, y, sample_weight=weight)
    many = clone(model).fit(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    np.testing.assert_array_equal(one.n_iter_, many.n_iter_)
    np.testing.assert_allclose(one.coef_, many.coef_, rtol=1e-8)
    np.testing.assert_allclose(one.intercept_, many.intercept_, rtol=1e-8)
    for a, b in zip(one.history_, many.history_):
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-8, atol=1e-12)
    scaled = clone(model).fit(X, y, sample_weight=0.37 * weight)
    np.testing.assert_allclose(one.coef_, scaled.coef_, rtol=1e-8)


@pytest.mark.parametrize("gamma", [1.0, inf])
def test_several_classes_are_as_many_binary_runs(gamma):
    X, y = load_digits(n_class=5, return_X_y=True)
    X = X / 16
    together = LargeStepLogisticRegression(gamma, record_history=True).fit(X, y)
    assert len(set(together.n_iter_.tolist())) > 2  # they do not finish together
    for k in range(5):
        alone = LargeStepLogisticRegression(gamma, record_history=True).fit(X, y == k)
        assert together.n_iter_[k] == alone.n_iter_[0]
        np.testing.assert_allclose(together.coef_[k], alone.coef_[0], rtol=1e-6, atol=1e-9)
        assert together.margin_[k] == pytest.approx(alone.margin_[0], rel=1e-6)
        assert len(together.history_[k]["accuracy"]) == together.n_iter_[k] + 1
        np.testing.assert_allclose(together.history_[k]["accuracy"], alone.history_[0]["accuracy"])
    assert together.score(X, y) == 1.0


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("gamma", [100.0, inf])
def test_sparse_rows_stay_sparse_and_agree(monkeypatch, dtype, gamma):
    X, y = digits_pair(4, 9)
    dense = LargeStepLogisticRegression(gamma).fit(X.astype(dtype), y)
    monkeypatch.setattr(sparse.csr_matrix, "toarray", None)
    monkeypatch.setattr(sparse.csr_matrix, "todense", None)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**12)
    found = LargeStepLogisticRegression(gamma).fit(sparse.csc_matrix(X.astype(dtype)), y)
    assert found.coef_.dtype == dtype
    assert found.n_iter_[0] == dense.n_iter_[0]
    np.testing.assert_allclose(found.coef_, dense.coef_, rtol=1e-3 if dtype == np.float32 else 1e-8, atol=1e-5)
    assert found.score(sparse.csr_matrix(X), y) == 1.0


@pytest.mark.parametrize("gamma", [0.5, 100.0, 1e5, inf])
def test_single_precision_stays_and_is_judged_in_double(gamma):
    X, y = digits_pair(3, 8)
    X32 = X.astype(np.float32)
    model = LargeStepLogisticRegression(gamma).fit(X32, y)
    assert model.coef_.dtype == model.intercept_.dtype == model.decision_function(X32).dtype == np.float32
    assert model.margin_.dtype == np.float64
    theta = coefficients(model).astype(np.float64)
    exact = (signed(X, np.where(y == 8, 1, -1)) @ theta).min() / np.linalg.norm(theta)
    assert model.margin_[0] == pytest.approx(exact, rel=1e-9)
    assert exact > 0
    assert model.score(X32, y) == 1.0


def test_what_rounds_to_a_tie_does_not_count_as_separated():
    """In float32 the first update, 2**-25 + 1, loses the small part on which the second sample depends."""
    X = np.array([[1.0, 2.0**-24], [-1.0, 0.0]], dtype=np.float32)
    X = np.vstack([X, [[0.0, 2.0**-24]]]).astype(np.float32)
    y = np.array([1, 0, 1])
    model = LargeStepLogisticRegression(inf).fit(X, y)
    assert model.separated_[0]
    precise = X.astype(np.float64) @ model.coef_[0].astype(np.float64) + float(model.intercept_[0])
    assert (np.where(y == 1, 1, -1) * precise > 0).all()
    assert model.score(X, y) == 1.0


@pytest.mark.parametrize("shape", ["C", "F", "csr"])
def test_blocks_and_threads_change_nothing(monkeypatch, shape):
    X, y = digits_pair(2, 8)
    X = sparse.csr_matrix(X) if shape == "csr" else np.asarray(X, order=shape)
    whole = LargeStepLogisticRegression(inf, record_history=True).fit(X, y)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2**14)
    found = [LargeStepLogisticRegression(inf, n_jobs=n).fit(X, y) for n in (None, 2, -1)]
    assert len(blocks.RowBlocks(X, y, 1, None, 2)._X) > 3
    for model in found:
        assert model.n_iter_ == whole.n_iter_
        np.testing.assert_allclose(model.coef_, whole.coef_, rtol=1e-9)
        np.testing.assert_array_equal(model.coef_, found[0].coef_)


@pytest.mark.parametrize(("gamma", "normalize"), VARIANTS)
def test_rotations_and_units_of_the_data_do_not_matter(gamma, normalize):
    X, y = separable(5)
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    model = LargeStepLogisticRegression(gamma, normalize=normalize, fit_intercept=False)
    one, turned = clone(model).fit(X, y), clone(model).fit(X @ Q, y)
    assert one.n_iter_ == turned.n_iter_
    np.testing.assert_allclose(turned.coef_, one.coef_ @ Q, rtol=1e-7, atol=1e-10)
    smaller = clone(model).set_params(step_size=gamma * 9).fit(X / 3, y)  # gamma R^2 is what matters
    assert smaller.n_iter_ == one.n_iter_
    swapped = clone(model).fit(X, -y)
    np.testing.assert_allclose(swapped.coef_, -one.coef_, rtol=1e-9)


@pytest.mark.parametrize("gamma", [1.0, 100.0, inf])
def test_a_wider_margin_where_it_is_asked_for(gamma):
    X, y = separable(2)
    A = signed(X, y)
    mu, R = hard_margin(A), np.linalg.norm(A, axis=1).max()
    first = LargeStepLogisticRegression(gamma).fit(X, y)
    wide = LargeStepLogisticRegression(gamma, tol_margin=0.8 * mu / R, max_iter=100_000).fit(X, y)
    assert first.margin_[0] < 0.8 * mu <= wide.margin_[0] <= mu
    assert wide.n_iter_[0] > first.n_iter_[0]
    with pytest.warns(ConvergenceWarning, match="separated by less than tol_margin"):
        never = LargeStepLogisticRegression(gamma, tol_margin=1.01 * mu / R, max_iter=500).fit(X, y)
    assert never.separated_[0]
    assert never.margin_[0] > first.margin_[0]


def test_weights_that_underflow_are_taken_in_logarithms():
    """All margins are far above 745 / step_size: only the smallest one counts, as in the limit."""
    X, y = separable(2)
    A = signed(X, y)
    tol = 0.7 * hard_margin(A) / np.linalg.norm(A, axis=1).max()
    large = LargeStepLogisticRegression(1e9, tol_margin=tol).fit(X, y)
    limit = LargeStepLogisticRegression(inf, tol_margin=tol).fit(X, y)
    assert large.n_iter_ == limit.n_iter_
    np.testing.assert_allclose(large.coef_ / 1e9, limit.coef_, rtol=1e-6)


def test_inseparable_data_give_the_first_iterate_with_the_fewest_errors():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 3)), np.where(rng.random(50) > 0.5, 1, -1)
    weight = rng.integers(1, 4, 50)
    A = signed(X, y)
    for gamma, normalize in VARIANTS[2:]:
        theta, best, kept = np.zeros(4), inf, None
        for t in range(41):
            m = A @ theta
            if t and (errors := weight[m <= 0].sum()) < best:
                best, kept = errors, theta
            w = np.full(50, 0.5) if t == 0 else (m <= 0) * 1.0 if gamma == inf else 1 / (1 + np.exp(gamma * m))
            theta = theta + A.T @ (w * weight) / ((w * weight).sum() if normalize else weight.sum())
        model = LargeStepLogisticRegression(gamma, normalize=normalize, max_iter=40)
        with pytest.warns(ConvergenceWarning, match="not separated"), np.errstate(over="ignore"):
            model.fit(X, y, weight)
        np.testing.assert_allclose(coefficients(model) / (1 if gamma == inf else gamma), kept, rtol=1e-7)
        assert not model.separated_[0]
        assert model.margin_[0] < 0
        assert model.n_iter_[0] == 40


def test_the_linear_program_decides():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    for columns, answer in ((X, True), (X[:, :10], False)):  # all thirty separate, by a margin of less than 1e-3 R
        with pytest.warns(ConvergenceWarning):
            model = LargeStepLogisticRegression(check_separable=True, max_iter=20).fit(columns, y)
        assert model.separable_ == [answer]
        assert not model.separated_[0]
        assert model.score(columns, y) > 0.92
    X, y = load_digits(n_class=3, return_X_y=True)
    assert LargeStepLogisticRegression(check_separable=True).fit(X, y).separable_ == [True] * 3
    assert LargeStepLogisticRegression(check_separable=True).fit(sparse.csr_matrix(X), y).separable_ == [True] * 3
    assert LargeStepLogisticRegression().fit(X, y).separable_ == [None] * 3
    line = np.array([[0.0], [1.0], [2.0], [3.0]])
    away_from_zero = np.array([1, 1, 1, 0])
    assert LargeStepLogisticRegression(check_separable=True).fit(line, away_from_zero).separable_ == [True]
    rows = sparse.csr_matrix(line)
    assert LargeStepLogisticRegression(check_separable=True).fit(rows, away_from_zero).separable_ == [True]
    model = LargeStepLogisticRegression(check_separable=True, fit_intercept=False, max_iter=5)
    with pytest.warns(ConvergenceWarning):
        model.fit(rows, away_from_zero)
    assert model.separable_ == [False]
    with pytest.warns(ConvergenceWarning):
        model.fit(line, away_from_zero)
    assert model.separable_ == [False]


def test_the_linear_program_is_not_asked_too_much(monkeypatch):
    X, y = separable(0)
    monkeypatch.setattr(blocks, "LARGEST_PROGRAM", 10)
    assert LargeStepLogisticRegression(check_separable=True).fit(X, y).separable_ == [None]


def test_the_start_does_not_pass():
    """Theta = 0 has margins of exactly 0, which are wrong; symmetric data leave it there."""
    X, y = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]), np.array([0, 0, 1, 1])
    with pytest.warns(ConvergenceWarning, match=r"misclassified|misclassifies"):
        model = LargeStepLogisticRegression(max_iter=3).fit(X, y)
    assert not model.separated_[0]
    assert model.margin_[0] == 0
    assert (model.coef_ == 0).all()


def test_the_limit_has_no_loss_and_its_gradients():
    X, y = separable(0, gap=0.05)
    A = signed(X, y)
    history = LargeStepLogisticRegression(inf, normalize=False, record_history=True).fit(X, y).history_[0]
    assert np.isnan(history["loss"]).all()
    theta = A.mean(axis=0) / 2
    assert history["grad_norm"][0] == pytest.approx(np.linalg.norm(theta))
    assert history["grad_norm"][1] == pytest.approx(np.linalg.norm(A[A @ theta <= 0].sum(axis=0)) / len(A))
    assert history["grad_norm"][-1] == 0
    assert history["accuracy"][-1] == 1


def test_probabilities():
    X, y = load_digits(n_class=4, return_X_y=True)
    for gamma in (1e-3, 1e6, inf):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LargeStepLogisticRegression(gamma, max_iter=50).fit(X, y)
        far = np.vstack([X[:5], -1e3 * X[:5]])
        p = model.predict_proba(far)
        np.testing.assert_allclose(p.sum(axis=1), 1)
        np.testing.assert_allclose(p[np.arange(10), model.predict(far)], p.max(axis=1))
    X, y = digits_pair(3, 8)
    model = LargeStepLogisticRegression(0.1).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], 1 / (1 + np.exp(-model.decision_function(X))))


def test_string_labels_and_a_pipeline():
    X, y = digits_pair(4, 9)
    names = np.where(y == 4, "four", "nine")
    model = make_pipeline(StandardScaler(), LargeStepLogisticRegression()).fit(X, names)
    assert model.score(X, names) == 1.0
    assert model[-1].classes_.tolist() == ["four", "nine"]
    assert ((model.decision_function(X) > 0) == (names == "nine")).all()


def test_huge_steps_and_features_overflow_nowhere():
    X, y = separable(0)
    limit = LargeStepLogisticRegression(inf, fit_intercept=False).fit(X, y)
    for scale, gamma in ((1e-150, 1e308), (1e100, 1e100), (1e120, inf), (1, 1e305), (1e-10, 1e306)):
        model = LargeStepLogisticRegression(gamma, fit_intercept=False).fit(scale * X, y)
        assert model.n_iter_ == limit.n_iter_
        assert model.margin_[0] / scale == pytest.approx(limit.margin_[0], rel=1e-6)
        assert np.isfinite(model.coef_).all()
    wide = LargeStepLogisticRegression(1e300, fit_intercept=False, tol_margin=0.05)
    assert wide.fit(X, y).n_iter_ == wide.set_params(step_size=inf).fit(X, y).n_iter_ > limit.n_iter_


# --------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0.0}, "step_size must be a number > 0, or infinity, got 0.0"),
        ({"step_size": math.nan}, "step_size must be"),
        ({"max_iter": 0}, "max_iter must be an integer >= 1, got 0"),
        ({"tol_margin": -0.1}, "tol_margin must be >= 0, got -0.1"),
        ({"tol_margin": 0.1, "step_size": inf, "normalize": False}, "normalize=True goes on"),
        ({"n_jobs": 0}, "n_jobs must be None or a nonzero integer, got 0"),
        ({"step_size": 1e308}, "step_size must be such that decisions are finite"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    X, y = separable(0)
    with pytest.raises(ValueError, match=message):
        LargeStepLogisticRegression(**settings).fit(1e5 * X if settings.get("step_size") == 1e308 else X, y)


def test_data_that_make_no_sense():
    X, y = separable(0)
    model = LargeStepLogisticRegression()
    with pytest.raises(ValueError, match="at least two classes, got 1 class"):
        model.fit(X, np.ones(len(X)))
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.where(np.isclose(X, X[0, 0]), np.nan, X), y)
    with pytest.raises(ValueError, match="infinity"):
        model.fit(np.where(np.isclose(X, X[0, 0]), np.inf, X), y)
    with pytest.raises(ValueError, match="Negative values"):
        model.fit(X, y, sample_weight=-np.ones(len(X)))
    with pytest.raises(ValueError, match="two classes"):
        model.fit(X, y, sample_weight=y > 0)
    with pytest.raises(ValueError, match="continuous"):
        model.fit(X, X[:, 0])
    with pytest.raises(TypeError, match="normalize must be True or False"):
        LargeStepLogisticRegression(normalize=1).fit(X, y)
    with pytest.raises(FloatingPointError, match="scale the columns"), np.errstate(over="ignore", invalid="ignore"):
        model.fit((1e25 * X).astype(np.float32), y)
    for bad in ({"n": 1}, {"n": 2.5}):
        with pytest.raises((ValueError, TypeError), match="n must be"):
            worst_case_data(**bad)
    with pytest.raises(ValueError, match="n must be given"):
        perceptron_bound(1, 0.1, step_size=1.0)
    with pytest.raises(ValueError, match="mu must be > 0"):
        perceptron_bound(1, 0)


@pytest.mark.filterwarnings("ignore::steepest.core.errors.ConvergenceWarning")
@parametrize_with_checks(
    [LargeStepLogisticRegression(100, max_iter=100), LargeStepLogisticRegression(inf, max_iter=100)]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
