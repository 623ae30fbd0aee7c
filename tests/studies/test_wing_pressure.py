"""Tests of the wing-pressure study: its protocol at the tiny scale, its statistics, closed forms, peers and loader."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from steepest.core.extras import installed
from steepest.report.pictures import Ink
from steepest.report.pictures import draw as draw_picture
from steepest.studies import wing_pressure as study
from steepest.studies import wing_pressure_flow as flow
from steepest.studies import wing_pressure_paper as paper
from steepest.studies import wing_pressure_peers as peers
from steepest.studies import wing_pressure_training as training
from steepest.studies.context import Context, Job
from steepest.studies.runner import run_study
from steepest.studies.wing_pressure_training import Trained, Wings


@pytest.fixture(scope="module")
def tiny():
    ctx = Context(study, Job("wing-pressure", "tiny"))
    study.run(ctx)
    return ctx


def test_every_claim_of_the_small_scales_is_measured(tiny):
    assert {c.id for c in study.CLAIMS} - set(tiny._measured) == {"gain-dlr-f11"}
    for claim, (value, _, reason) in tiny._measured.items():
        assert (value is not None and math.isfinite(value)) or reason, claim
    assert tiny.best_peer is not None
    assert study.WHEN_NOT


def test_figures_have_their_series_and_claims_their_names(tiny):
    assert {figure.series for figure in study.FIGURES} <= {s.name for s in tiny.series_log}
    ids = [claim.id for claim in study.CLAIMS]
    assert len(set(ids)) == len(ids)
    assert set(study.REASONS) <= set(ids)


def test_pictures_are_drawn_from_the_arrays_of_the_run(tiny):
    for picture in study.PICTURES:
        if picture.id == "lift" and not installed("aerosandbox"):
            continue
        assert sum(a.nbytes for a in tiny.arrays_log[picture.arrays].values()) < 300_000
        assert draw_picture(picture, tiny.arrays_log[picture.arrays], Ink("wing-pressure", False))[1:4] == b"PNG"


def test_quick_measures_the_headline():
    at_quick = {c.id for c in study.CLAIMS if c.measured_at("quick")}
    assert {"gain", "incidence", "sphere", "lift-slope", "surrogate-speed"} <= at_quick


# ---------------------------------------------------------------------------------------------------------- statistics


def test_reduction_is_paired_over_wings():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 2.0, 30)
    ours = base * rng.uniform(0.5, 0.7, 30)
    found = training.reduction(base, ours)
    assert found.percent == pytest.approx(100 * (1 - ours.sum() / base.sum()))
    assert found.interval[0] < found.percent < found.interval[1]
    assert found.interval[1] - found.interval[0] < 10  # unpaired, it would be as wide as the wings differ
    assert found.p == pytest.approx(stats.wilcoxon(base - ours, alternative="greater").pvalue)
    assert found.share == 1.0
    back = training.reduction(ours, base)
    assert back.percent < 0
    assert back.p > 0.99
    assert training.reduction(base, base).p == 1.0
    with pytest.raises(ValueError, match="ours must be"):
        training.reduction(base, ours[:5])


def test_errors_are_averaged_over_seeds_and_conditions_of_a_wing():
    wings = Wings(np.zeros((4, 2, 2, 3)), np.zeros((4, 2)), np.zeros((4, 2, 2)), np.array([7, 7, 9, 9]))
    value = np.array([1.0, 2.0, 3.0, 4.0])[:, None, None] * np.ones((4, 2, 2))
    value[0, 0, 0] = 5.0
    runs = [Trained("a", s, 1e-3, f * value, [], [], 1.0) for s, f in ((1, 1.0), (2, 2.0))]
    first = (25 + 1 + 1 + 1) / 4
    assert training.per_wing(runs, wings) == pytest.approx([2.5 * (first + 4) / 2, 2.5 * (9 + 16) / 2])
    inside = np.array([[False, True], [True, True]])
    assert training.per_wing(runs, wings, inside) == pytest.approx([2.5 * (1 + 4) / 2, 2.5 * 12.5])
    rows = np.array([False, True, True, False])
    assert training.per_wing(runs, wings, rows) == pytest.approx([2.5 * 4, 2.5 * 9])


def test_wings_are_split_whole():
    wing = np.repeat(np.arange(5), 3)
    wings = Wings(np.zeros((15, 2, 2, 3)), np.zeros((15, 2)), np.arange(15.0)[:, None, None], wing)
    part = wings.take(range(1, 3))
    assert part.wing.tolist() == [1, 1, 1, 2, 2, 2]
    assert part.cp.ravel().tolist() == [3, 4, 5, 6, 7, 8]


def test_learning_rates_are_chosen_on_validation_wings():
    def one(name, lr, val):
        return Trained(name, 0, lr, np.zeros(1), [0.0], [9.0, val], 1.0)

    wings = Wings(np.zeros((1, 2, 2, 3)), np.zeros((1, 2)), np.zeros((1, 2, 2)), np.zeros(1))
    network = training.Network(8, 1, 1)
    runs = [training.Run(training.BASELINE, 0, 1e-3, network, wings, wings, wings)]
    trained = [one("DAN", 1e-3, 0.5), one("DAN", 3e-3, 0.4), one("geometry", 1e-3, 0.1), one("geometry", 3e-3, 0.2)]
    assert training.best_lr(runs, trained) == {"DAN": 3e-3, "geometry": 1e-3}
    with pytest.raises(ValueError, match="validation"):
        training.best_lr([training.Run(training.BASELINE, 0, 1e-3, network, wings, wings)], trained)


# -------------------------------------------------------------------------------------------------------- closed forms


def test_ellipsoids_have_their_limits():
    P = np.random.default_rng(0).normal(size=(5, 4, 3))
    n = P / np.linalg.norm(P, axis=-1, keepdims=True)
    assert flow.ellipsoid_cp((1, 1, 1), P) == pytest.approx(1 - 9 / 4 * (1 - n[..., 0] ** 2), abs=1e-9)
    angle = np.linspace(0, 2 * np.pi, 9)
    ring = np.stack([np.cos(angle), np.zeros(9), np.sin(angle)], axis=-1)
    assert flow.ellipsoid_cp((1, 1e4, 1), ring) == pytest.approx(1 - 4 * np.sin(angle) ** 2, abs=1e-5)  # a cylinder
    top = np.array([[0.0, 0.0, 0.2]])  # an elliptic cylinder: speed 1 + thickness ratio at its crest
    assert flow.ellipsoid_cp((1, 1e4, 0.2), top) == pytest.approx(1 - 1.2**2, abs=1e-5)
    across = flow.ellipsoid_cp((1, 2, 0.5), np.array([[0.3, 0.4, 0.2]]), alpha=90.0)
    turned = flow.ellipsoid_cp((0.5, 2, 1), np.array([[0.2, 0.4, -0.3]]), alpha=0.0)
    assert across == pytest.approx(turned, abs=1e-9)


def test_grid_of_an_ellipsoid_points_outwards():
    P = flow.ellipsoid((1.0, 2.0, 0.5), 8, 6)
    vectors = flow._area_vectors(P)
    assert ((vectors * (P[:-1, :-1] + P[1:, 1:])).sum(axis=-1) > 0).all()
    assert np.abs(vectors.sum(axis=(0, 1))).max() < 1e-12  # a closed surface


def test_lift_is_the_pressure_on_the_planform():
    P = flow.wing_surface(flow.rectangular(6.0, 0.12), 17, 5)
    cp = np.zeros((16, 4))
    cp[8:] = -1.0  # suction on the upper side
    assert flow.lift_coefficient(P, cp, 0.0) == pytest.approx(1.0, rel=1e-9)
    assert flow.lift_coefficient(P, -cp, 0.0) == pytest.approx(-1.0, rel=1e-9)
    assert flow.lifting_line_slope(1e9) == pytest.approx(2 * np.pi)


# --------------------------------------------------------------------------------------------------------------- peers


def test_grid_edges_join_neighbours_both_ways():
    edges = peers.grid_edges(3, 4)
    pairs = {tuple(e) for e in edges.T.tolist()}
    assert len(pairs) == edges.shape[1] == 2 * (2 * 4 + 3 * 3)
    assert all((b, a) in pairs for a, b in pairs)
    for a, b in pairs:
        assert abs(a // 4 - b // 4) + abs(a % 4 - b % 4) == 1


@pytest.mark.parametrize("name", list(peers.PACKAGES))
def test_peers_learn_within_their_time(name):
    if not installed(peers.PACKAGES[name]):
        pytest.skip("not installed")
    rng = np.random.default_rng(0)
    channels, conditions = rng.normal(size=(24, 6, 4, 5)), rng.normal(size=(24, 2))
    cp = channels[..., 0] + 2 * conditions[:, None, None, 0]
    run = peers.PeerRun(name, channels, conditions, cp, channels[:3], conditions[:3], 0.5, 1, 0)
    found = peers.train_peer(run)
    assert found.shape == (3, 6, 4)
    assert np.mean((found - cp[:3]) ** 2) < 0.5 * cp.var()


def test_a_surface_network_hears_its_neighbours_and_the_whole():
    pytest.importorskip("torch_geometric")
    net = peers._surface_network("GCN", 3, peers.grid_edges(12, 1))
    x, c = torch.randn(2, 12, 1, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 2)
    moved = x.clone()
    moved[0, 0] += 10.0
    change = (net(moved, c) - net(x, c)).abs()[..., 0]
    assert change[0].min() > 0  # through the maximum over the surface
    assert change[1].max() < 1e-6  # another wing is not reached


# -------------------------------------------------------------------------------------------------------------- loader


def table(path, *, n=9, thickness=0.1, alphas=(0.0, 2.0, 4.0, 6.0), header="x,y,z,cp,alpha,reynolds"):
    t = np.linspace(0, 2 * np.pi, n)
    rows = [
        f"{(1 + np.cos(u)) / 2},{y},{-thickness * np.sin(u)},{np.sin(u) * a + y},{a},1.35e6"
        for a in alphas
        for y in (0.0, 0.3, 0.7, 1.0)
        for u in t
    ]
    path.write_text("\n".join([header, *rows]))
    return path


def test_sections_are_read_and_evenly_spaced(tmp_path):
    wings = paper.read_sections(table(tmp_path / "f11.csv", n=65, thickness=0.5), n_u=16)
    assert wings.points.shape == (4, 16, 4, 3)
    assert wings.conditions.tolist() == [[a, 1.35] for a in (0.0, 2.0, 4.0, 6.0)]
    assert wings.points[0, 0, :, 1].tolist() == [0.0, 0.3, 0.7, 1.0]
    steps = np.linalg.norm(np.diff(wings.points[0, :, 0], axis=0), axis=-1)
    assert steps.max() / steps.min() < 1.01  # chords of equal arcs
    assert wings.points[0, 0, 0] == pytest.approx([1, 0, 0], abs=1e-12)
    assert wings.cp[2, -1] == pytest.approx([0.0, 0.3, 0.7, 1.0], abs=1e-9)


def test_sections_of_different_lengths_agree(tmp_path):
    lines = table(tmp_path / "a.csv", n=33).read_text().splitlines()
    (tmp_path / "b.csv").write_text("\n".join([lines[0], *lines[1:2], *lines[3:]]))  # one tap fewer
    a, b = (paper.read_sections(tmp_path / f"{k}.csv", n_u=16) for k in "ab")
    assert np.abs(a.points - b.points).max() < 0.01


@pytest.mark.parametrize(
    ("header", "row", "match"),
    [
        ("x,y,z,cp,alpha", None, "reynolds"),
        ("x,y,z,cp,alpha,reynolds", "0,0,0,nan,0,1", "finite"),
        ("x,y,z,cp,alpha,reynolds", "0,0,0,none,0,1", "numbers"),
        ("x,y,z,cp,alpha,reynolds", "0,0.5,0,1,0,1.35e6", "at least 4 points"),
    ],
)
def test_bad_tables_are_refused(tmp_path, header, row, match):
    path = table(tmp_path / "bad.csv", header=header)
    if row:
        path.write_text(path.read_text() + "\n" + row)
    with pytest.raises(ValueError, match=match):
        paper.read_sections(path)


def test_paper_code_trains_for_one_epoch(tmp_path):
    path = table(tmp_path / "f11.csv", n=33)
    record, _ = run_study(Job("wing-pressure", "paper", n_seeds=1, max_steps=1, data=str(path)))
    assert record.status == "ok", record
    claims = {c.id: (c.value, c.reason) for c in record.claims}
    assert claims["gain-dlr-f11"] == (None, "1 epochs: a test of the code")


def test_paper_scale_asks_for_a_table():
    record, _ = run_study(Job("wing-pressure", "paper"))
    assert record.status == "skipped"
    assert "--data" in record.reason
