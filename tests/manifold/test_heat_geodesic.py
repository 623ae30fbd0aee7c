"""The embedding against its formulas on dense matrices, every option, landmarks, new points and misuse."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from scipy.spatial.distance import cdist
from sklearn.utils.estimator_checks import check_estimator

from steepest.core.errors import ConvergenceWarning
from steepest.geometry import GeometryWarning, alpha_decay_graph, heat_geodesic_distance, knn_graph, laplacian
from steepest.geometry._heat_flow import HeatFlow
from steepest.manifold import HeatGeodesicEmbedding, _new_points, phate_like, sne_like
from steepest.manifold._diffusion_time import choose_time, entropy, floored_share, unit_columns
from steepest.manifold._landmarks import heat_diagonal


def roll(n, noise=0.1, seed=42):
    rng = np.random.default_rng(seed)
    t, h = 1.5 * np.pi * (1 + 2 * rng.random(n)), 5 * rng.random(n)
    X = np.column_stack([t * np.cos(t), h, t * np.sin(t)]) + noise * rng.standard_normal((n, 3))
    return X, np.column_stack([0.5 * (t * np.sqrt(1 + t * t) + np.arcsinh(t)), h])


def agreement(D, T):
    """Mean Pearson correlation of the rows of D with true distances."""
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(D, cdist(T, T), strict=True)]))


@pytest.fixture(scope="module")
def data():
    return roll(250)


@pytest.fixture(scope="module")
def fitted(data):
    return HeatGeodesicEmbedding(random_state=0).fit(data[0])


def quietly(model, X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeometryWarning)
        return model.fit(X)


# ---- exact ----


@pytest.mark.parametrize("method", ["chebyshev", "exact", "euler", "lowrank"])
@pytest.mark.parametrize("kind", ["combinatorial", "normalized"])
def test_heat_kernel_and_distances_are_their_formulas(data, method, kind):
    X, t = data[0][:120], 6.0
    model = quietly(HeatGeodesicEmbedding(t=t, laplacian=kind, heat_method=method, max_floored=1.0), X)
    L = laplacian(alpha_decay_graph(X, 10), kind).toarray()
    assert np.allclose((scipy.sparse.csgraph.laplacian(model.graph_, kind == "normalized") - L), 0, atol=1e-12)
    if method == "euler":
        expected = np.linalg.matrix_power(np.linalg.inv(np.eye(120) + t / 32 * L), 32)
    else:
        expected = scipy.linalg.expm(-t * L)
    assert model.heat_kernel_.min() >= 0.0
    assert np.abs(model.heat_kernel_ - expected).max() < 1e-8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeometryWarning)
        assert np.allclose(model.distances_, heat_geodesic_distance(model.heat_kernel_, t), atol=1e-12)


def test_powers_times_logarithms_and_denoising_are_their_formulas(data):
    X, times = data[0][:120], np.array([2.0, 5.0, 9.0])
    L = laplacian(alpha_decay_graph(X, 10)).toarray()
    kernels = [np.maximum(scipy.linalg.expm(-t * L), 0) for t in times]

    def d(H, t, sigma):
        diagonal = H.diagonal()
        square = 4 * t * (sigma * np.log(0.5 * (diagonal[:, None] + diagonal) + 1e-16) - np.log(H + 1e-16))
        out = np.sqrt(np.maximum(square, 0))
        out[np.diag_indices(120)] = 0
        return out

    seen = [H > 1e-7 for H in kernels]  # where the logarithm is not of round-off
    settings = {"max_floored": 1.0, "heat_method": "exact"}
    model = quietly(HeatGeodesicEmbedding(t=times, harnack_regul=0.5, distance_power=1.5, **settings), X)
    weights = (1 - times / times.sum()) / 2
    expected = sum(w * d(H, t, 0.5) ** 1.5 for w, H, t in zip(weights, kernels, times, strict=True))
    assert np.allclose(model.distances_[seen[0]], expected[seen[0]], rtol=1e-6)
    assert model.heat_kernel_.shape == (3, 120, 120)
    assert np.array_equal(model.t_, times)

    base = quietly(HeatGeodesicEmbedding(t=5.0, **settings), X).distances_
    half = quietly(HeatGeodesicEmbedding(t=5.0, denoise=0.3, **settings), X).distances_
    assert np.allclose(half, 0.7 * base + 0.3 * cdist(base, base), atol=1e-5)
    assert np.array_equal(half, half.T)

    log = quietly(HeatGeodesicEmbedding(t=5.0, log_normalize=True, **settings), X).distances_
    expected = np.abs(np.log(kernels[1] + 1e-16) / np.log(5.0))
    off = seen[1] & ~np.eye(120, dtype=bool)
    assert np.allclose(log[off], expected[off], rtol=1e-6)


def test_phates_potential_distance_is_a_special_case(data):
    X, t = data[0][:150], 30.0
    model = quietly(phate_like(t=t, n_neighbors=8, heat_method="exact"), X)
    H = np.maximum(scipy.linalg.expm(-t * laplacian(alpha_decay_graph(X, 8), "normalized").toarray()), 0)
    potential = -np.log(H + 1e-7)
    np.fill_diagonal(potential, 0.0)
    assert np.allclose(model.distances_, 4 * t * cdist(potential, potential), rtol=1e-6, atol=1e-5)
    assert (model.floor, phate_like(floor=1e-16).floor) == (1e-7, 1e-16)
    assert sne_like(n_neighbors=7).get_params()["n_neighbors"] == 7
    assert (sne_like(3).n_components, sne_like().t, sne_like(t="auto").t) == (3, 2.0, "auto")


def test_the_floor_reaches_distances_shares_weights_and_time(data):
    X, options = data[0], {"heat_method": "exact", "max_floored": 1.0}
    model = quietly(HeatGeodesicEmbedding(t=4.0, floor=1e-5, mds_weights="reached", **options), X)
    H, D = model.heat_kernel_, model.distances_
    assert (H < 1e-9).mean() + 0.05 < model.floored_share_
    assert model.floored_share_ == (H < 1e-5).mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeometryWarning)
        assert np.allclose(D, heat_geodesic_distance(H, 4.0, floor=1e-5), atol=1e-12)
    i, j = np.triu_indices(250, 1)
    residuals = np.square(np.linalg.norm(model.embedding_[i] - model.embedding_[j], axis=1) - D[i, j])
    assert model.stress_ == pytest.approx(np.where(H[i, j] < 1e-5, 0.05, 1.0) @ residuals, rel=1e-6)

    log = quietly(HeatGeodesicEmbedding(t=4.0, floor=1e-5, log_normalize=True, **options), X).distances_
    assert np.allclose(log[i, j], np.abs(np.log(H[i, j] + 1e-5) / np.log(4.0)), rtol=1e-9)
    with pytest.warns(GeometryWarning, match="below 1e-05 at t=4"):
        HeatGeodesicEmbedding(t=4.0, floor=1e-5).fit(X)
    usual, coarse = (HeatGeodesicEmbedding(floor=floor, random_state=0).fit(X) for floor in (1e-12, 1e-5))
    assert usual.t_ == HeatGeodesicEmbedding(random_state=0).fit(X).t_  # heat below 1e-9 does not count anyway
    assert coarse.t_ > usual.t_
    assert coarse.floored_share_ == pytest.approx((coarse.heat_kernel_ < 1e-5).mean(), abs=1e-3)
    assert coarse.floored_share_ <= 0.25


def test_zero_harnack_is_varadhan(data):
    model = HeatGeodesicEmbedding(t=20.0, harnack_regul=0.0, heat_method="exact", mds="classic").fit(data[0])
    off = model.heat_kernel_ > 1e-8
    off[np.diag_indices(250)] = False
    assert np.allclose(model.distances_[off] ** 2, -80.0 * np.log(model.heat_kernel_[off]), rtol=1e-7)


def test_stress_and_weights_are_those_of_the_embedding(data):
    X = data[0][:150]
    for kind in (None, "heat", "reached", "inverse", "gaussian"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = quietly(HeatGeodesicEmbedding(t=3.0, mds_weights=kind, mds_weight_scale=0.7), X)
        D, H = model.distances_, model.heat_kernel_
        positive = np.where(D > 0, D, D[D > 0].min())
        weights = {
            None: np.ones_like(D),
            "heat": H + 1e-5,
            "reached": np.where(H < 1e-9, 0.05, 1.0),
            "inverse": positive**-0.7,
            "gaussian": np.exp(-((D / D.max()) ** 2) / 0.7),
        }[kind]
        i, j = np.triu_indices(150, 1)
        Y = model.embedding_
        expected = (weights[i, j] * (np.linalg.norm(Y[i] - Y[j], axis=1) - D[i, j]) ** 2).sum()
        assert model.stress_ == pytest.approx(expected, rel=1e-6)
        assert (np.diff(model.stress_history_) <= 0).all()
        assert model.stress_history_[-1] == model.stress_
        assert (Y[np.argmax(np.abs(Y), axis=0), [0, 1]] > 0).all()


# ---- the time ----


def test_entropy_and_time_are_read_from_the_kernel(data):
    X = data[0]
    model = HeatGeodesicEmbedding(random_state=0, heat_method="exact").fit(X)
    w, V = np.linalg.eigh(laplacian(model.graph_).toarray())
    for t, value in zip(model.t_grid_, model.entropy_, strict=True):
        H = np.maximum((V * np.exp(-t * w)) @ V.T, 0)
        assert value == pytest.approx(-(H * np.log(H + 1e-10)).sum(), rel=1e-6)
    assert model.t_ in model.t_grid_
    assert model.t_grid_[-1] > model.t_
    assert (np.diff(model.t_grid_) > 0).all()
    assert model.floored_share_ == pytest.approx((model.heat_kernel_ < 1e-9).mean(), abs=1e-3)
    assert model.floored_share_ <= 0.25

    knee = HeatGeodesicEmbedding(random_state=0, max_floored=1.0).fit(X)
    grid = np.linspace(0.05, 50, 20)
    assert np.allclose(knee.t_grid_, grid)
    S = knee.entropy_
    rise = (S - S.min()) / np.ptp(S) - (grid - grid[0]) / np.ptp(grid)
    assert knee.t_ == grid[np.argmax(rise)]


def test_time_is_raised_by_half_until_the_share_falls():
    n = 400  # a long path: heat is slow
    W = scipy.sparse.diags_array([np.ones(n - 1), np.ones(n - 1)], offsets=[-1, 1]).tocsr()
    flow, labels = HeatFlow(laplacian(W)), np.zeros(n, dtype=int)
    rng, grid = np.random.default_rng(0), np.linspace(0.05, 50, 20)
    knee = choose_time(flow, labels, grid, rng, max_floored=1.0, t_max=1e6)
    raised = choose_time(flow, labels, grid, rng, max_floored=0.25, t_max=1e6)
    steps = np.log(raised.t / knee.t) / np.log(1.5)
    assert steps == pytest.approx(round(steps))
    assert round(steps) > 3
    exact = scipy.linalg.expm(-raised.t * laplacian(W).toarray())
    assert raised.floored_share == pytest.approx((exact < 1e-9).mean(), abs=0.01)
    assert raised.floored_share <= 0.25 < floored_share(flow(np.eye(n), raised.t / 1.5), None)
    assert raised.entropy[list(raised.grid).index(raised.t)] == pytest.approx(entropy(exact), rel=1e-6)
    capped = choose_time(flow, labels, grid, rng, max_floored=0.25, t_max=2 * knee.t)
    assert capped.t == 2 * knee.t


def test_a_knee_at_the_end_of_the_grid_is_said(data):
    with pytest.warns(GeometryWarning, match="first time of t_grid"):
        HeatGeodesicEmbedding(t_grid=[1e5, 2e5, 3e5], max_floored=1.0).fit(data[0][:60])


# ---- quality ----


@pytest.mark.parametrize("graph", ["alpha_decay", "knn", "gaussian", "self_tuning"])
@pytest.mark.parametrize("options", [{}, {"n_landmarks": 80}])
def test_the_roll_is_unrolled(graph, options):
    X, T = roll(400)
    model = HeatGeodesicEmbedding(graph=graph, random_state=0, **options).fit(X)
    Y = model.embedding_
    assert Y.shape == (400, 2)
    assert agreement(cdist(Y, Y), T) >= 0.98
    new, truth = roll(60, seed=7)
    placed = cdist(model.transform(new), Y)
    rows = [np.corrcoef(a, b)[0, 1] for a, b in zip(placed, cdist(truth, T), strict=True)]
    assert np.mean(rows) >= 0.98


@pytest.mark.parametrize("mds", ["classic", "smacof", "sgd"])
def test_every_scaling_unrolls(data, mds):
    model = HeatGeodesicEmbedding(mds=mds, random_state=0).fit(data[0])
    assert agreement(cdist(model.embedding_, model.embedding_), data[1]) >= 0.97


def test_options_of_the_graph_reach_it(data):
    X = np.column_stack([data[0], 1e-3 * np.random.default_rng(0).standard_normal((250, 4))])
    centered = X - X.mean(axis=0)
    scores = centered @ np.linalg.svd(centered, full_matrices=False)[2][:3].T
    model = HeatGeodesicEmbedding(n_pca=3, n_neighbors=7, decay=10.0, random_state=0).fit(X)
    assert np.allclose((model.graph_ - alpha_decay_graph(scores, 7, decay=10.0)).toarray(), 0, atol=1e-9)
    assert np.abs(model.transform(X) - model.embedding_).max() < 1e-6
    plain, dense = (HeatGeodesicEmbedding(t=9.0, anisotropy=a, max_floored=1.0).fit(data[0]).graph_ for a in (0.0, 1.0))
    q = 1 + plain.sum(axis=1)
    assert np.allclose(dense.toarray(), plain.toarray() / np.outer(q, q), atol=1e-12)


# ---- landmarks ----


def test_landmarks_carry_the_same_heat_and_distances(data, fitted):
    X, t = data[0], fitted.t_
    model = HeatGeodesicEmbedding(t=t, n_landmarks=60, random_state=0).fit(X)
    chosen = model.landmarks_
    assert model.heat_kernel_ is None
    assert model.distances_.shape == (60, 250)
    assert len(set(chosen)) == 60
    seen = fitted.heat_kernel_[chosen] > 1e-7
    assert np.abs(model.distances_ - fitted.distances_[chosen])[seen].max() < 1e-2
    assert np.array_equal(model.distances_[np.arange(60), chosen], np.zeros(60))
    block = model.distances_[:, chosen]
    assert np.array_equal(block, block.T)
    dense, whole = (HeatGeodesicEmbedding(t=t, heat_method="exact", n_landmarks=k).fit(X) for k in (None, 250))
    assert whole.stress_ == pytest.approx(dense.stress_, rel=0.02)


def test_heat_that_stayed(data, monkeypatch):
    L = laplacian(knn_graph(data[0], 10))
    times = np.array([1.0, 8.0])
    exact = np.stack([scipy.linalg.expm(-t * L.toarray()).diagonal() for t in times])
    rng = np.random.default_rng(0)
    for method in ("chebyshev", "exact"):
        assert np.abs(heat_diagonal(HeatFlow(L, method), times, rng) - exact).max() < 1e-8
    euler = HeatFlow(L, "euler")
    assert np.abs(heat_diagonal(euler, times, rng)[1] - euler(np.eye(250), 8.0).diagonal()).max() < 1e-10
    monkeypatch.setattr("steepest.manifold._landmarks.EXACT", 10)  # as with many points
    probed = heat_diagonal(HeatFlow(L), times, rng)
    assert (probed > 0).all()
    spread = np.sqrt(np.mean((probed / exact - 1) ** 2))
    assert 0.7 * np.sqrt(2 / 64) < spread < 1.3 * np.sqrt(2 / 64)


def test_many_samples_get_landmarks_by_themselves(data, monkeypatch):
    monkeypatch.setattr("steepest.manifold.heat_geodesic.DENSE", 249)
    monkeypatch.setattr("steepest.manifold.heat_geodesic.LANDMARKS", 40)
    assert len(HeatGeodesicEmbedding(t=12.0).fit(data[0]).landmarks_) == 40
    assert HeatGeodesicEmbedding(t=12.0).fit(data[0][1:]).landmarks_ is None


@pytest.mark.parametrize(
    "options",
    [
        {"denoise": 0.4},
        {"t": [2.0, 12.0]},
        {"mds_weights": "gaussian"},
        {"mds": "classic"},
        {"heat_method": "euler"},
        {"distance_power": 2.0, "harnack_regul": 0.5},
    ],
)
def test_options_agree_with_and_without_landmarks(data, options):
    X = data[0]
    settings = {"t": 12.0, "random_state": 0, "max_floored": 1.0} | options
    dense = HeatGeodesicEmbedding(**settings).fit(X)
    few = HeatGeodesicEmbedding(n_landmarks=100, **settings).fit(X)
    a, b = (cdist(m.embedding_, m.embedding_) for m in (dense, few))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    new = X + 0.01
    for model in (dense, few):  # next to a training point, next to its place
        moved = np.linalg.norm(model.transform(new) - model.embedding_, axis=1)
        assert np.median(moved) < 0.1 * a.max()


# ---- new points, kinds, determinism ----


def test_training_points_get_their_embedding(data, fitted):
    X = data[0]
    assert np.abs(fitted.transform(X[::-1]) - fitted.embedding_[::-1]).max() <= 1e-6
    both = fitted.transform(np.vstack([X[:3], X[:3] + 0.01]))
    assert np.abs(both[:3] - fitted.embedding_[:3]).max() <= 1e-6
    assert np.abs(both[3:] - fitted.embedding_[:3]).max() < 0.2 * np.ptp(fitted.embedding_)


def test_precomputed_affinities(data, fitted):
    W = fitted.graph_
    for affinity in (W, scipy.sparse.csr_array(W + 3 * scipy.sparse.eye_array(250)), W.toarray()):  # no self-loops
        model = HeatGeodesicEmbedding(graph="precomputed", random_state=0).fit(affinity)
        assert np.allclose(model.graph_.toarray(), W.toarray(), atol=0)
        assert np.abs(model.embedding_ - fitted.embedding_).max() < 1e-6
        assert np.abs(model.transform(affinity[:7]) - model.embedding_[:7]).max() <= 1e-6
    new = _new_points.alpha_decay_rows(data[0], data[0][:9] + 0.02, 10, 40.0, 1)
    assert np.allclose(model.transform(new.toarray()), fitted.transform(data[0][:9] + 0.02), atol=1e-4)
    assert HeatGeodesicEmbedding(graph="precomputed", n_landmarks=50, random_state=0).fit(W).distances_.shape[0] == 50


def test_float32_in_float32_out(data):
    model = HeatGeodesicEmbedding(t=9.0).fit(data[0].astype(np.float32))
    assert model.embedding_.dtype == np.float32
    assert model.transform(data[0][:5].astype(np.float32) + 0.1).dtype == np.float32
    assert model.distances_.dtype == np.float64
    wide = HeatGeodesicEmbedding(t=9.0).fit(data[0].astype(np.float32).astype(np.float64))
    assert np.abs(wide.embedding_ - model.embedding_).max() < 1e-3


@pytest.mark.parametrize("options", [{}, {"n_landmarks": 50}, {"mds": "sgd"}])
def test_a_seed_repeats_the_result(options):
    X = roll(200 if options else 600)[0]  # 600: sampled columns
    a, b = (HeatGeodesicEmbedding(random_state=3, max_floored=0.9, **options).fit(X) for _ in range(2))
    assert np.array_equal(a.embedding_, b.embedding_)
    assert a.t_ == b.t_
    before = np.random.get_state()[1].copy()
    HeatGeodesicEmbedding(t=5.0, max_floored=1.0).fit(X[:100])
    assert np.array_equal(np.random.get_state()[1], before)


def test_rotations_and_duplicates_change_little(data):
    X = data[0]
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    a, b = (HeatGeodesicEmbedding(t=9.0).fit(Z).distances_ for Z in (X, X @ Q))
    assert np.median(np.abs(a - b)) < 1e-6
    twice = HeatGeodesicEmbedding(t=9.0, max_floored=1.0, n_neighbors=12).fit(np.vstack([X, X[:20], X[:20]]))
    assert np.isfinite(twice.embedding_).all()
    assert twice.distances_[:20, 250:270].diagonal().max() < np.median(twice.distances_[:20])


def test_scikit_learn_checks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(HeatGeodesicEmbedding())


# ---- warnings and misuse ----


def test_components_are_told_and_farthest():
    X = np.vstack([roll(60)[0], roll(60)[0] + 500])
    with pytest.warns(GeometryWarning, match="2 connected components"):
        model = HeatGeodesicEmbedding(t=12.0, max_floored=1.0).fit(X)
    apart = model.distances_[:60, 60:]
    assert np.isfinite(apart).all()
    assert apart.min() > model.distances_[:60, :60].max()
    assert model.floored_share_ == pytest.approx((model.heat_kernel_[:60, :60] < 1e-9).mean(), abs=0.05)


def test_floors_zeros_clamps_and_lack_of_steps_are_told(data):
    X = data[0]
    with pytest.warns(GeometryWarning, match="below 1e-09 at t=0.5"):
        HeatGeodesicEmbedding(t=0.5).fit(X)
    with pytest.warns(GeometryWarning, match="pairs to distance 0"):
        HeatGeodesicEmbedding(t=9.0, harnack_regul=1.5, max_floored=1.0).fit(X)
    with pytest.warns(GeometryWarning, match="14 are used"):
        HeatGeodesicEmbedding(n_neighbors=40, t=2.0, max_floored=1.0).fit(X[:15])
    for mds in ("smacof", "sgd"):
        with pytest.warns(ConvergenceWarning, match="raise max_iter"):
            model = HeatGeodesicEmbedding(t=12.0, mds=mds, max_iter=3, random_state=0).fit(X)
        assert model.n_iter_ == 3


def test_dense_beyond_memory_is_refused(data, monkeypatch):
    monkeypatch.setattr(_new_points, "_free_memory", lambda: 2 * 8 * 250**2)
    with pytest.raises(MemoryError, match="set n_landmarks"):
        HeatGeodesicEmbedding(t=9.0).fit(data[0])
    HeatGeodesicEmbedding(t=12.0, n_landmarks=30).fit(data[0])
    monkeypatch.undo()
    assert _new_points._free_memory() > 0


@pytest.mark.parametrize(
    "change",
    [
        {"n_neighbors": 0},
        {"n_neighbors": 60},
        {"n_components": 0},
        {"n_components": 61},
        {"graph": "umap"},
        {"decay": 0.0},
        {"anisotropy": -1.0},
        {"n_pca": 4},
        {"laplacian": "random_walk"},
        {"t": 0.0},
        {"t": -1.0},
        {"t": np.nan},
        {"t": "knee"},
        {"t": [1.0, -1.0]},
        {"t": []},
        {"t": 1.0, "log_normalize": True},
        {"t": 32.0, "log_normalize": True, "heat_method": "euler"},
        {"t_grid": [1.0, 2.0]},
        {"t_grid": [1.0, 3.0, 2.0]},
        {"max_floored": 1.5},
        {"t_max": 0.0},
        {"heat_method": "pygsp"},
        {"order": 0},
        {"harnack_regul": -0.1},
        {"distance_power": 0.0},
        {"denoise": 1.1},
        {"denoise": -0.1},
        {"mds": "nonmetric"},
        {"mds_weights": "ones"},
        {"mds_weights": "heat", "mds": "classic"},
        {"mds_weight_scale": 0.0},
        {"max_iter": 0},
        {"n_landmarks": 2},
        {"n_landmarks": 61},
        {"n_landmarks": "many"},
        {"n_jobs": 0},
        {"floor": 0.0},
        {"floor": 1.0},
    ],
)
def test_bad_parameters_are_named(data, change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"^{name} must be"):
        HeatGeodesicEmbedding(**change).fit(data[0][:60])


def test_bad_data_is_said(data):
    X = data[0][:60].copy()
    with pytest.raises(TypeError, match="log_normalize must be"):
        HeatGeodesicEmbedding(log_normalize=1).fit(X)
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        HeatGeodesicEmbedding().fit(X)
    for W in (np.ones((3, 4)), np.triu(np.ones((5, 5))), -np.ones((5, 5))):
        with pytest.raises(ValueError, match="X must be"):
            HeatGeodesicEmbedding(graph="precomputed").fit(W)
    model = HeatGeodesicEmbedding(graph="precomputed", t=1.5).fit(np.ones((30, 30)))
    with pytest.raises(ValueError, match="X must be rows with a positive affinity"):
        model.transform(np.zeros((1, 30)))
    assert unit_columns(np.array([2, 0]), 3).toarray().tolist() == [[0, 1], [0, 0], [1, 0]]
