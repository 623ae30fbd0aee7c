"""Tests of the shapes, fields, holes, simulators and peers of the RVGP study, against closed forms."""

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree

from steepest.studies import rvgp_eeg as eeg
from steepest.studies import rvgp_fields as fields
from steepest.studies import rvgp_peers as peers
from steepest.studies import rvgp_trials as trials


@pytest.fixture(scope="module", params=fields.SHAPES)
def shape(request):
    return fields.surface(request.param, 500, 1)


def test_normals_are_those_of_the_surface(shape):
    """Chords to near points are nearly tangent: the normal share of a chord is at most curvature times its length."""
    whole = fields.surface(shape.name, 2000, 1)
    distances, nearest = cKDTree(whole.points).query(whole.points, 2)
    chords = whole.points[nearest[:, 1]] - whole.points
    share = np.abs((chords * whole.normals).sum(axis=1)) / distances[:, 1]
    assert np.median(share / distances[:, 1]) < 1.0
    np.testing.assert_allclose(np.linalg.norm(whole.normals, axis=1), 1, atol=1e-12)


def test_frames_are_orthonormal_tangent_and_oriented(shape):
    T = shape.frames
    np.testing.assert_allclose(T.transpose(0, 2, 1) @ T, np.broadcast_to(np.eye(2), (len(shape), 2, 2)), atol=1e-12)
    np.testing.assert_allclose(np.cross(T[:, :, 0], T[:, :, 1]), shape.normals, atol=1e-12)


def test_faces_have_the_euler_characteristic(shape):
    faces = shape.faces
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    euler = len(np.unique(faces)) - len(edges) + len(faces)
    assert euler == {"sphere": 2, "bumpy sphere": 2, "torus": 0}.get(shape.name, euler)


def test_shapes_lie_on_their_equations():
    x, y, z = fields.surface("torus", 200).points.T
    np.testing.assert_allclose((np.hypot(x, y) - 2) ** 2 + z**2, 0.64, atol=1e-12)
    roll = fields.surface("Swiss roll", 200).points
    radius, turn = np.hypot(roll[:, 0], roll[:, 2]), np.arctan2(roll[:, 2], roll[:, 0])
    winding = (radius - 1.5) / 2 - turn / (2 * math.pi)
    np.testing.assert_allclose(winding, np.round(winding), atol=1e-9)
    assert set(np.round(winding).astype(int)) == {0, 1, 2}


def test_the_uneven_field_of_the_torus_is_a_gradient():
    s = fields.surface("torus", 500, 2)
    field = fields.singular_field(s, "source", 5, even=False)
    u, v = s.parameters.T
    (u0, v0) = np.arctan2(field.place[1], field.place[0]), np.arcsin(np.clip(field.place[2] / fields.MINOR, -1, 1))
    inward = np.hypot(field.place[0], field.place[1]) < fields.MAJOR
    v0 = np.pi - v0 if inward else v0
    potential = -np.cos(u - u0) - np.cos(v - v0)
    pairs = np.stack([np.arange(500), np.argsort(((s.points[:, None] - s.points) ** 2).sum(-1), axis=1)[:, 1]], axis=1)
    i, j = pairs.T
    step = s.points[j] - s.points[i]
    along = ((field.vectors[i] + field.vectors[j]) / 2 * step).sum(axis=1)
    difference = potential[j] - potential[i]
    assert np.corrcoef(along, difference)[0, 1] > 0.995


@pytest.mark.parametrize(("name", "even"), [("sphere", True), ("torus", True), ("torus", False)])
@pytest.mark.parametrize("kind", fields.KINDS)
def test_singular_fields_have_their_zero(name, even, kind):
    s = fields.surface(name, 500, 2)
    field = fields.singular_field(s, kind, 5, even=even)
    np.testing.assert_allclose((field.vectors * s.normals).sum(axis=1), 0, atol=1e-12)
    assert (field.vectors**2).sum(axis=1).mean() == pytest.approx(1)
    zeros = fields.find_zeros(s, field.vectors)
    assert sum(z.index for z in zeros) == {"sphere": 2, "torus": 0}[name]
    nearest = min(zeros, key=lambda z: np.linalg.norm(z.place - field.place))
    assert nearest.index == field.index
    assert np.linalg.norm(nearest.place - field.place) < 0.05
    near = fields.hole(s.points, field.place, 0.45)
    away = s.points[near] - field.place
    radial = (away * field.vectors[near]).sum(axis=1) / np.linalg.norm(away, axis=1)
    if kind == "source":
        assert (radial > 0).all()
    elif kind == "vortex" and name == "sphere":
        np.testing.assert_allclose(radial, 0, atol=1e-9)


def test_diffused_fields_are_tangent_unit_and_smooth():
    s = fields.surface("sphere", 400, 0)
    truth = fields.diffused_field(s, 200, time=20, random_state=1)
    np.testing.assert_allclose((truth * s.normals).sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(truth, axis=1), 1, atol=1e-6)
    assert sum(z.index for z in fields.find_zeros(s, truth)) == 2
    nearest = cKDTree(s.points).query(s.points, 2)[1][:, 1]
    assert fields.cosine(truth, truth[nearest]) > 0.95
    official = fields.official_field(s.first(200), time=20, random_state=1)
    assert np.median(np.abs((official * s.normals[:200]).sum(axis=1))) < 0.1


def test_observations_have_the_noise_and_gaps_asked_for():
    s = fields.surface("sphere", 600, 0)
    truth = np.cross([0, 0, 1.0], s.points)
    y = fields.observe(s, truth, np.arange(0, 600, 2), 0.1, 3)
    assert np.isnan(y[1::2]).all()
    off = (y - truth)[::2]
    assert np.sqrt((off**2).sum(axis=1).mean() / 2) == pytest.approx(0.1, rel=0.1)
    np.testing.assert_allclose((off * s.normals[::2]).sum(axis=1), 0, atol=1e-12)


def test_metrics():
    truth = np.array([[1.0, 0, 0], [0, 2.0, 0]])
    assert fields.relative_error(1.5 * truth, truth) == pytest.approx(0.5)
    assert fields.cosine(-truth, truth) == pytest.approx(-1)


def test_spline_matches_its_kernel_matrix_and_interpolates():
    X = eeg.cap(60, 20).points
    labelled = np.arange(60) < 25
    matrix = peers.spline_matrix(X, labelled, smoothing=0.0)
    np.testing.assert_allclose(matrix[labelled], np.eye(25), atol=1e-6)
    np.testing.assert_allclose(peers.spline_matrix(X, labelled).sum(axis=1), 1, atol=1e-9)  # constants are kept
    heavy = peers.spline_matrix(X, labelled, smoothing=1e6)
    np.testing.assert_allclose(heavy, 1 / 25, atol=1e-6)


def test_gaussian_process_in_space_recovers_a_smooth_field(monkeypatch):
    monkeypatch.setattr(peers, "STARTS", (1.0,))
    s = fields.surface("sphere", 80, 0)
    truth = np.cross([0, 0, 1.0], s.points)
    y = fields.observe(s, truth, np.arange(40), 0.02, 0)
    tuned = fields.relative_error(peers.ambient_gp(s.points, y)[40:], truth[40:])
    assert tuned < 0.05
    assert tuned < fields.relative_error(peers.ambient_gp(s.points, y, tune=False)[40:], truth[40:])


def test_laplacian_eigenvectors_begin_with_the_constant():
    phi = peers.laplacian_eigenvectors(fields.surface("sphere", 150, 0).points, 4)
    np.testing.assert_allclose(np.abs(phi[:, 0]), 1, atol=1e-6)
    np.testing.assert_allclose(phi.T @ phi / 150, np.eye(4), atol=1e-8)


def test_simulated_patients_have_fewer_and_slower_centers():
    sensors = eeg.cap()
    cohort = eeg.simulate(sensors, 12, 4, 0)
    power = (cohort.truth**2).sum(axis=3).mean(axis=(1, 2))
    assert np.median(power[cohort.patient]) < np.median(power[~cohort.patient])
    np.testing.assert_allclose(np.einsum("stnd,nd->stn", cohort.noisy, sensors.points), 0, atol=1e-12)
    noise = cohort.noisy - cohort.truth
    assert np.sqrt((noise**2).sum(axis=-1).mean() / 2) == pytest.approx(eeg.NOISE, rel=0.05)


def test_markers_see_a_vortex_and_a_source():
    sensors = eeg.cap()
    X = sensors.points
    vortex = np.cross([0, 0, 1.0], X)
    source = X * X[:, 2:] - [0, 0, 1.0]
    places, index = eeg.zeros(sensors, vortex)
    assert index.tolist() == [1]
    assert np.linalg.norm(places[0] - [0, 0, 1]) < 0.2
    counts = eeg.features(sensors, np.stack([vortex, source])[:, None])
    assert counts[:, 0].tolist() == [1, 1]
    assert counts[:, 1].tolist() == [0, 0]
    assert counts.shape == (2, 2 + 2 * eeg.N_BINS)
    np.testing.assert_allclose(counts[:, 2 : 2 + eeg.N_BINS].sum(axis=1), 1)
    assert (
        counts[1, 2 + eeg.N_BINS // 2 : 2 + eeg.N_BINS].sum() > 0.75
    )  # the source's divergence is the larger one where z > 0, on 79 % of the cap


def test_auc_tells_signal_from_none():
    rng = np.random.default_rng(0)
    patient = np.repeat([False, True], 15)
    assert eeg.auc(rng.standard_normal((30, 3)) + 3 * patient[:, None], patient, n_repeats=1) > 0.95
    assert 0.2 < eeg.auc(rng.standard_normal((30, 3)), patient, n_repeats=2) < 0.8


def test_an_unseen_hole_without_zero_is_counted_as_missed(monkeypatch):
    case = trials.Hole("sphere", "vortex", 500, 1)
    right, distance = trials.inpaint(case)[trials.OURS]
    assert right
    assert distance < 0.2

    class Constant:
        def __init__(self, field):
            self.field = field

        def predict(self, X):
            return self.field

    def shifted(X, y, n_eigenpairs=0):
        return Constant(np.broadcast_to([1.0, 0.3, 0.2], X.shape))

    monkeypatch.setattr(trials, "fitted", shifted)
    assert not trials.inpaint(case)[trials.OURS][0]
