"""Tests of the heat-geodesic study: its data against closed forms, its scores, its protocol at the tiny scale."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import cdist

from steepest.studies import heat_geodesic as study
from steepest.studies import heat_geodesic_data as data
from steepest.studies import heat_geodesic_distances as distances
from steepest.studies import heat_geodesic_paper as paper
from steepest.studies import heat_geodesic_pictures as pictures
from steepest.studies import heat_geodesic_scores as scores
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.heat_geodesic_peers import OURS, diffusion_map, embeddings, ours, plane

# ---------------------------------------------------------------------------------------------------------------- data


def test_the_roll_is_unrolled_by_its_arc_length():
    sample = data.swiss_roll(6, 0.0, seed=3)
    t = sample.position
    np.testing.assert_allclose(np.hypot(sample.X[:, 0], sample.X[:, 2]), t)
    for i, j in ((0, 1), (2, 5)):
        s = np.linspace(t[i], t[j], 20001)
        curve = np.column_stack([s * np.cos(s), s * np.sin(s)])
        length = np.linalg.norm(np.diff(curve, axis=0), axis=1).sum()
        height = sample.X[i, 1] - sample.X[j, 1]
        assert sample.geodesics[i, j] == pytest.approx(math.hypot(length, height), rel=1e-6)
    assert 1.5 * np.pi <= t.min()
    assert t.max() <= 4.5 * np.pi
    assert 0 <= sample.X[:, 1].min() <= sample.X[:, 1].max() <= 5


def test_the_roll_in_many_dimensions_is_the_same_roll_turned():
    flat, turned = data.swiss_roll(40, 0.0, seed=1), data.swiss_roll(40, 0.0, dim=10, seed=1)
    np.testing.assert_allclose(cdist(flat.X, flat.X), cdist(turned.X, turned.X), atol=1e-9)
    np.testing.assert_array_equal(flat.geodesics, turned.geodesics)
    noisy = data.swiss_roll(4000, 0.3, dim=10, seed=1)
    clean = data.swiss_roll(4000, 0.0, dim=10, seed=1)
    np.testing.assert_allclose((noisy.X - clean.X).std(axis=0), 0.3, rtol=0.06)  # in every dimension


def test_tree_distances_are_shortest_paths_along_its_branches():
    sample = data.tree(60, 0.0, dim=4, seed=2)
    D = sample.geodesics
    assert np.allclose(D, D.T)
    assert not D.diagonal().any()
    # a tree: of the three pairings of four points the two largest sums agree
    rng = np.random.default_rng(0)
    for a, b, c, d in rng.integers(60, size=(200, 4)):
        sums = sorted([D[a, b] + D[c, d], D[a, c] + D[b, d], D[a, d] + D[b, c]])
        assert sums[2] == pytest.approx(sums[1])
    # consecutive points of a branch are one step apart, and paths through them are shortest
    steps = np.linalg.norm(np.diff(sample.X, axis=0), axis=1)
    inside = np.diff(sample.labels) == 0
    np.testing.assert_allclose(D[np.arange(59), np.arange(1, 60)][inside], steps[inside])
    edges = sparse.coo_array((steps[:11], (np.arange(11), np.arange(1, 12))), shape=(12, 12))
    np.testing.assert_allclose(shortest_path(edges, directed=False), D[:12, :12])
    assert (cdist(sample.X, sample.X) - 1e-9 <= D).all()


def test_tree_noise_is_ten_times_the_number():
    difference = data.tree(600, 0.5, seed=4).X - data.tree(600, 0.0, seed=4).X
    assert difference.std() == pytest.approx(5.0, rel=0.04)


def test_two_groups_have_the_angles_of_the_papers_code():
    sample = data.two_cluster_roll(4000, seed=0)
    for k, middle in ((0, 7.0), (1, 12.0)):
        angles = sample.position[sample.labels == k]
        assert angles.mean() == pytest.approx(middle, abs=0.1)
        assert angles.std() == pytest.approx(1.0, abs=0.06)


def test_cells_decide_twice():
    sample = data.differentiation(600, 0.0, seed=0)
    assert len(np.unique(sample.labels)) == 4
    early, late = sample.position < 0.3, sample.position > 0.9

    def spread(chosen):
        centers = [sample.X[chosen & (sample.labels == k)].mean(axis=0) for k in range(4)]
        return cdist(centers, centers).max()

    assert spread(early) < 0.15 * spread(late)
    again = data.differentiation(600, 0.0, seed=0)
    np.testing.assert_array_equal(sample.X, again.X)


def test_time_bins_are_equal_in_size_and_in_order():
    time = np.random.default_rng(0).random(80)
    bins = data.time_bins(time, 8)
    assert np.bincount(bins).tolist() == [10] * 8
    assert all(time[bins == b].max() < time[bins == b + 1].min() for b in range(7))


def test_cells_are_read(tmp_path):
    (tmp_path / "krumsiek11.txt").write_text("# a comment\n" + "".join(f"{i % 3} {i} {-i}\n" for i in range(6)))
    sample = data.krumsiek(tmp_path, noise=0.0)
    np.testing.assert_array_equal(sample.X, [[i, -i] for i in range(6)])
    assert sample.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert sample.position.tolist() == [0, 1, 2, 0, 1, 2]
    np.savez(tmp_path / "pbmc68k_reduced.npz", X_pca=np.eye(3, 50, dtype=np.float32), labels=np.array([4, 4, 9]))
    cells = data.blood_cells(tmp_path)
    assert cells.X.dtype == np.float64
    assert cells.labels.tolist() == [0, 0, 1]
    with pytest.raises(Unavailable, match="krumsiek11"):
        data.krumsiek(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="geodesics"):
        _ = cells.geodesics


class Columns(dict):
    @property
    def columns(self):
        return list(self)


def test_annotated_data_are_reduced_where_they_are_not():
    X = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    cells = SimpleNamespace(
        X=sparse.csr_matrix(X), obsm={}, obs=Columns(kind=np.array(list("ab") * 15), day=np.ones(30))
    )
    sample = data.annotated(cells, "kind", n_pca=5)
    assert sample.X.shape == (30, 5)
    assert sample.position is None
    assert data.annotated(cells, "day").position.tolist() == [1.0] * 30
    cells.obsm["X_pca"] = X
    np.testing.assert_array_equal(data.annotated(cells, "kind").X, X)
    with pytest.raises(ValueError, match="label must be a column of obs"):
        data.annotated(cells, "type")


# -------------------------------------------------------------------------------------------------------------- scores


def test_row_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    A, B = rng.random((7, 7)), rng.random((7, 7))
    found = scores.row_correlations({"one": A, "same": B}, B)
    pearson, spearman = found["one"]
    assert found["same"] == pytest.approx((1.0, 1.0))
    assert pearson == pytest.approx(np.mean([stats.pearsonr(a, b)[0] for a, b in zip(A, B)]))
    assert spearman == pytest.approx(np.mean([stats.spearmanr(a, b)[0] for a, b in zip(A, B)]))
    A[0] = 1.0
    assert scores.pearson_of_rows(A, B) == pytest.approx(
        np.mean([0, *(stats.pearsonr(a, b)[0] for a, b in zip(A[1:], B[1:]))])
    )


def test_the_middle_between_two_translated_bins_is_found():
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    cloud = rng.standard_normal((20, 2))
    Y = np.vstack([cloud + np.array([shift, 0.0]) for shift in (0, 4, 8)])
    bins = np.repeat([0, 1, 2], 20)
    assert scores.interpolation_errors(Y, bins) == pytest.approx(0, abs=1e-9)
    Y[20:40] += [0, 1.5]
    scale = Y.std(axis=0)
    assert scores.interpolation_errors(Y, bins) == pytest.approx(1.5 / scale[1], abs=1e-9)


def test_wasserstein_of_a_line_is_that_of_sorted_points():
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    a, b = rng.random(15), rng.random(15) + 1
    assert scores.wasserstein(a[:, None], b[:, None]) == pytest.approx(np.abs(np.sort(a) - np.sort(b)).mean())


def test_clusters_and_neighbors_are_scored():
    Y = np.array([[0.0, 0], [0, 1], [9, 0], [9, 1]])
    assert scores.cluster_scores(Y, np.array([1, 1, 0, 0])) == {"homogeneity": 1.0, "ARI": 1.0, "AMI": 1.0}
    assert scores.cluster_scores(Y, np.array([0, 1, 0, 1]))["ARI"] < 0.1
    line = np.arange(30.0)[:, None]
    assert scores.common_neighbors(line, line[::-1] * 2, 4) == 1.0
    assert scores.common_neighbors(line, np.random.default_rng(0).random((30, 1)), 4) < 0.5


# --------------------------------------------------------------------------------------------------------------- peers


def test_every_peer_embeds_without_a_word(capsys):
    X = data.swiss_roll(50, 0.1, seed=0).X
    before = X.copy()
    for name, embed in embeddings("PHATE", "pydiffmap", "diffusion map", "Isomap", "t-SNE", "spectral").items():
        Y = embed(X, 0)
        assert Y.shape == (50, 2), name
        assert np.isfinite(Y).all(), name
    np.testing.assert_array_equal(X, before)
    assert capsys.readouterr().out == ""


def test_the_diffusion_map_of_a_circle_is_a_circle():
    angle = 2 * np.pi * np.arange(80) / 80
    Y = diffusion_map(np.column_stack([np.cos(angle), np.sin(angle)]), n_neighbors=6)
    radius = np.linalg.norm(Y, axis=1)
    assert radius.std() < 0.02 * radius.mean()


# --------------------------------------------------------------------------------------------------------------- study


@pytest.fixture(scope="module")
def tiny():
    ctx = Context(study, Job("heat-geodesic", "tiny"))
    study.run(ctx)
    return ctx


def test_every_claim_of_the_small_scales_is_measured(tiny):
    left = {c.id for c in study.CLAIMS} - set(tiny._measured)
    assert left == {"own-cells-clusters", "own-cells-times"}
    for claim, (value, _, reason) in tiny._measured.items():
        assert (value is not None and math.isfinite(value)) or reason, claim
    assert tiny._measured["heat-chebyshev"][0] >= 0.9999
    assert tiny.best_peer is not None


def test_the_worst_data_set_is_what_phate_like_is_judged_by(tiny):
    best = {s.method: min(s.values) for s in tiny.series_log if s.name == "phate-like"}
    assert {"tree", "digits"} <= set(best)
    assert tiny._measured["phate-disparity"][0] == max(best.values())


def test_figures_and_pictures_have_their_data(tiny):
    assert {figure.series for figure in study.FIGURES} <= {s.name for s in tiny.series_log}
    left = {p.arrays for p in study.PICTURES} - set(tiny.arrays_log)
    assert left <= {"blood cells"}  # kept where the cells are on this machine
    assert sum(a.nbytes for arrays in tiny.arrays_log.values() for a in arrays.values()) < 300_000


def test_pictures_are_drawn(tiny):
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from steepest.report.pictures import Ink

    with matplotlib.rc_context():
        for picture in study.PICTURES:
            arrays = tiny.arrays_log.get(picture.arrays)
            if arrays is not None:
                figure = Figure(figsize=picture.size, layout="constrained")
                picture.draw(figure, arrays, Ink("heat-geodesic", dark=True))
                assert len(figure.axes) >= len(arrays["names"])
    assert {p.draw for p in study.PICTURES} >= {pictures.draw_groups, pictures.draw_pairs}


def test_a_worse_distance_is_noticed():
    setting = distances.QUICK[0]
    found = distances._score_distances(400, (setting, 1))
    sample = setting.sample(400, 1)
    assert found[OURS][0] > 0.95
    assert found["Isomap"][0] > 0.99
    assert scores.pearson_of_rows(cdist(sample.X, sample.X), sample.geodesics) < 0.5  # straight lines do not do


def test_the_selection_chooses_on_the_tuning_seeds_and_scores_on_the_others(monkeypatch):
    setting = distances.QUICK[0]
    known = {42: [0.9, 0.1, 0.5], 43: [0.9, 0.3, 0.5], 47: [0.2, 0.9, 0.5]}
    trials = [(10, 1.0, 1.0), (10, 2.0, 1.0), (10, 3.0, 1.0)]
    monkeypatch.setattr(distances, "TRIALS", trials)
    monkeypatch.setattr(
        distances, "_score_trials", lambda n, asked, item: [known[item[1]][trials.index(t)] for t in asked]
    )
    assert distances.score_selected([setting], 10, [42, 43], [47]) == {setting.name: [0.2]}


def test_a_trial_is_what_the_estimator_gives():
    setting = distances.QUICK[0]
    sample = setting.sample(80, 0)
    trials = [distances.TRIALS[0], distances.TRIALS[7]]
    for (k, t, sigma), value in zip(trials, distances._score_trials(80, trials, (setting, 0))):
        D = ours(sample.X, n_neighbors=k, t=t, harnack_regul=sigma, mds="classic").distances_
        assert value == pytest.approx(scores.pearson_of_rows(D, sample.geodesics), abs=1e-6)


def test_paper_code_runs_on_a_few_cells():
    ctx = Context(study, Job("heat-geodesic", "paper", n_seeds=1, max_steps=1))
    paper.own_cells(ctx)
    assert ctx._measured["own-cells-clusters"][2] == paper.CODE_TEST
    assert ctx._measured["own-cells-times"][2] == paper.CODE_TEST


def test_paper_scale_says_what_is_missing(tmp_path):
    ctx = Context(study, Job("heat-geodesic", "paper"))
    paper.own_cells(ctx)
    assert "--data" in ctx._measured["own-cells-times"][2]
    ctx = Context(study, Job("heat-geodesic", "paper", data=str(tmp_path)))
    paper.own_cells(ctx)
    assert ".h5ad" in ctx._measured["own-cells-clusters"][2]


def test_our_plane_is_the_same_twice():
    X = data.swiss_roll(80, 0.1, seed=0).X
    np.testing.assert_array_equal(plane(X), plane(X))
