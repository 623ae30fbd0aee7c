"""Sketching and projecting against its closed form, against least squares, and against its own promises."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import aslinearoperator

from steepest.constrained import sketch_and_project
from steepest.constrained._sketch_and_project import Blocks, Sketches, least_norm
from steepest.core.random import torch_generator
from steepest.curvature import sketch as draw_sketch

SKETCHES = ("gaussian", "kaczmarz", "sparse", "srht")


def system(p=9, q=9, seed=0):
    rng = np.random.default_rng(seed)
    A = 0.4 * rng.standard_normal((p, q)) + 3 * np.eye(p, q)
    return A, A @ rng.standard_normal(q), rng.standard_normal(q)


# ---------------------------------------------------------------------------------------------------------------- exact


def closed_form(A, b, z, S):  # S: (p, s)
    return z - A.T @ S @ np.linalg.pinv(S.T @ A @ A.T @ S) @ S.T @ (A @ z - b)


@pytest.mark.parametrize(("kind", "owner"), [("gaussian", "gaussian"), ("sparse", "count"), ("srht", "srht")])
@pytest.mark.parametrize("s", [1, 3, 5])
def test_one_step_is_the_closed_form(kind, owner, s):
    A, b, z0 = system()
    z, info = sketch_and_project(A, b, z0, sketch=kind, sketch_size=s, maxiter=1, rtol=0, random_state=7)
    generator = torch_generator(int(np.random.default_rng(7).integers(2**62)))
    S = draw_sketch(owner, s, len(b), seed=generator).dense().numpy().T
    np.testing.assert_allclose(z, closed_form(A, b, z0, S), rtol=1e-9, atol=1e-11)
    assert info == 1


@pytest.mark.parametrize("s", [1, 2, 4])
def test_one_step_of_kaczmarz_projects_onto_rows_drawn_without_replacement(s):
    A, b, z0 = system()
    z, _ = sketch_and_project(A, b, z0, sketch="kaczmarz", sketch_size=s, maxiter=1, rtol=0, random_state=3)
    candidates = [np.eye(len(b))[:, rows] for rows in itertools.combinations(range(len(b)), s)]
    distances = [np.abs(z - closed_form(A, b, z0, np.asarray(S).reshape(len(b), s))).max() for S in candidates]
    assert min(distances) < 1e-11
    assert sorted(distances)[1] > 1e-3


def test_least_norm_solution_with_dependent_rows():
    SA = np.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]])
    np.testing.assert_allclose(least_norm(SA, np.array([1.0, 2.0])), [0.2, 0.4, 0.0], atol=1e-14)
    np.testing.assert_array_equal(least_norm(np.zeros((1, 3)), np.array([0.0])), np.zeros(3))


def test_blocks_project_and_a_double_pass_is_symmetric():
    rng = np.random.default_rng(1)
    A = sparse.random_array((40, 30), density=0.15, random_state=1, format="csr") + sparse.csr_array(np.eye(40, 30))
    A = sparse.csr_array(A)
    b = A @ rng.standard_normal(30)
    blocks = Blocks(A, b, rng.standard_normal(30), 7, "none", rng, grow=False)
    assert sorted(np.concatenate([k.rows for k in blocks.blocks])) == list(range(40))
    for block in blocks.blocks:
        z = rng.standard_normal(30)
        expected = closed_form(A.toarray(), b, z, np.eye(40)[:, block.rows])
        block.project(z, b)
        np.testing.assert_allclose(z, expected, atol=1e-10)
    Q = np.eye(30)
    for column in Q.T:
        z = column.copy()
        for block in [*blocks.blocks, *blocks.blocks[-2::-1]]:
            block.project(z, 0 * b)
        column[:] = z
    np.testing.assert_allclose(Q, Q.T, atol=1e-12)


def test_a_block_whose_rows_are_dependent():
    A = sparse.csr_array(np.array([[1.0, 1.0, 0], [1, 1, 0], [0, 1, 1.0]]))
    x, info = sketch_and_project(A, [2.0, 2.0, 1.0], rtol=1e-12, random_state=0)
    assert info == 0
    np.testing.assert_allclose(x, np.linalg.pinv(A.toarray()) @ [2, 2, 1], atol=1e-12)


# ----------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("kind", SKETCHES)
def test_it_finds_the_solution_nearest_to_the_start(kind):
    A, b, z0 = system(6, 14)
    z, info = sketch_and_project(A, b, z0, sketch=kind, rtol=1e-12, random_state=0)
    assert info == 0
    np.testing.assert_allclose(z, z0 + np.linalg.pinv(A) @ (b - A @ z0), atol=1e-10)


@pytest.mark.parametrize("kind", SKETCHES)
def test_operators_are_sketched_through_their_adjoint(kind):
    A, b, _ = system()
    options = {"sketch": kind, "sketch_size": 3, "maxiter": 4, "rtol": 0, "random_state": 5}
    dense, _ = sketch_and_project(A, b, **options)
    matrix_free, _ = sketch_and_project(aslinearoperator(A), b, **options)
    np.testing.assert_allclose(matrix_free, dense, atol=1e-11)


@pytest.mark.parametrize("acceleration", ["none", "cg"])
def test_sparse_systems(acceleration):
    rng = np.random.default_rng(0)
    A = sparse.csr_array(sparse.random_array((300, 300), density=0.02, random_state=0) + 2 * sparse.eye_array(300))
    x = rng.standard_normal(300)
    found, info = sketch_and_project(A, A @ x, sketch_size=32, rtol=1e-9, acceleration=acceleration, random_state=0)
    assert info == 0
    np.testing.assert_allclose(found, x, atol=1e-6)


def test_acceleration_takes_fewer_sketches():
    A = sparse.csr_array(sparse.diags_array([-1.0, 2.2, -1.0], offsets=[-1, 0, 1], shape=(200, 200)))
    b = A @ np.ones(200)
    counts = {}
    for acceleration in ("none", "cg"):
        solver = Blocks(A, b, np.zeros(200), 10, acceleration, np.random.default_rng(0), grow=False)
        assert solver.run(1e-8, 10**5)
        counts[acceleration] = solver.steps
    assert counts["cg"] < 0.5 * counts["none"]


def test_the_budget_and_what_info_says():
    A, b, _ = system()
    _, info = sketch_and_project(A, b, sketch_size=1, rtol=1e-14, maxiter=5, random_state=0)
    assert info == 5
    seen = []
    x, info = sketch_and_project(A, b, sketch_size=3, rtol=1e-8, random_state=0, callback=seen.append)
    assert info == 0
    np.testing.assert_array_equal(seen[-1], x)
    residuals = [np.linalg.norm(A @ z - b) for z in seen]
    assert residuals[-1] <= 1e-8 * np.linalg.norm(b) < residuals[-2]


def test_sketches_grow_where_they_stall_and_end_in_an_exact_solve():
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((12, 12)))[0] for _ in range(2))
    A = U * np.logspace(0, -7, 12) @ V.T
    b = A @ np.ones(12)
    grown = Sketches(A, b, np.zeros(12), "gaussian", 1, np.random.default_rng(0), grow=True)
    assert grown.run(1e-12, 10**6)
    assert grown.exact
    assert grown.size >= 12
    assert grown.residual < 1e-12
    sparse_one = Blocks(sparse.csr_array(A), b, np.zeros(12), 1, "none", np.random.default_rng(0), grow=True)
    assert sparse_one.run(1e-12, 10**6)
    assert sparse_one.exact
    fixed = Sketches(A, b, np.zeros(12), "gaussian", 1, np.random.default_rng(0), grow=False)
    assert not fixed.run(1e-12, 500)
    assert not fixed.exact
    assert fixed.size == 1
    assert fixed.steps == 500


@pytest.mark.parametrize(
    ("residuals", "size"),
    [
        ([0.9, 0.0], 4),  # no judgment before the fourth check
        ([0.9, 0.8, 0.7, 0.6, 0.0], 8),
        ([0.9, 0.8, 0.7, 0.5, 0.0], 4),
        ([0.9, 0.8, 0.7, 0.5, 0.4, 0.4, 0.4, 0.26, 0.0], 8),
        ([0.9, 0.8, 0.7, 0.5, 0.4, 0.4, 0.4, 0.25, 0.0], 4),
    ],
)
def test_a_sketch_doubles_when_four_checks_did_not_halve_the_residual(residuals, size):
    values = iter([1.0, *residuals])

    class Told(Sketches):
        def _residual(self):
            return next(values)

        def _period(self, count):
            return iter(())

    solver = Told(np.eye(16), np.ones(16), np.zeros(16), "gaussian", 4, np.random.default_rng(0), grow=True)
    assert solver.run(0.0, 1)
    assert solver.size == size


def test_rows_are_paved_at_random_and_blocks_visited_in_random_orders():
    def paved(seed):
        A = sparse.csr_array(sparse.eye_array(64))
        return Blocks(A, np.ones(64), np.zeros(64), 4, "none", np.random.default_rng(seed), grow=False)

    first, other = (np.concatenate([k.rows for k in paved(seed).blocks]) for seed in (0, 1))
    assert (first != np.arange(64)).any()
    assert (first != other).any()
    solver, seen = paved(0), []
    for i, block in enumerate(solver.blocks):
        block.project = lambda z, b, i=i: seen.append(i)
    solver.run(0.0, 48)
    passes = np.reshape(seen, (3, 16))
    assert (np.sort(passes) == np.arange(16)).all()
    assert (passes[0] != passes[1]).any()
    assert (passes[0] != np.arange(16)).any()


def test_an_exact_solve_of_a_singular_system_is_a_least_squares_one():
    A = np.diag([1.0, 2.0, 0.0])
    solver = Sketches(A, np.array([1.0, 1.0, 0.0]), np.zeros(3), "kaczmarz", 1, np.random.default_rng(0), grow=True)
    solver._solve_exactly()
    np.testing.assert_allclose(solver.z, [1, 0.5, 0])


def test_the_same_seed_gives_the_same_answer_and_no_global_stream_is_touched():
    A, b, _ = system()
    states = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    for kind in SKETCHES:
        runs = [sketch_and_project(A, b, sketch=kind, random_state=seed, rtol=1e-3)[0] for seed in (1, 1, 2)]
        np.testing.assert_array_equal(runs[0], runs[1])
        assert (runs[0] != runs[2]).any()
    np.testing.assert_array_equal(states[0], np.random.get_state()[1])
    assert torch.equal(states[1], torch.random.get_rng_state())


def test_the_start_is_left_alone():
    A, b, z0 = system()
    kept = z0.copy()
    for matrix in (A, sparse.csr_array(A)):
        sketch_and_project(matrix, b, z0, random_state=0)
        np.testing.assert_array_equal(z0, kept)


# --------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sketch": "fft"}, "sketch must be one of 'gaussian'"),
        ({"sketch_size": 0}, "sketch_size must be None or an integer >= 1"),
        ({"acceleration": "nesterov"}, "acceleration must be one of"),
        ({"rtol": -1.0}, "rtol must be >= 0"),
        ({"atol": math.nan}, "atol must be >= 0"),
        ({"maxiter": -1}, "maxiter must be"),
        ({"b": np.ones(3)}, r"b must be of shape \(9,\)"),
        ({"b": np.full(9, np.nan)}, "b must be finite"),
        ({"x0": np.ones(4)}, r"x0 must be of shape \(9,\)"),
        ({"A": np.ones(3)}, "A must be a matrix"),
        ({"A": np.full((9, 9), np.inf)}, "A must be finite"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    A, b, _ = system()
    with pytest.raises(ValueError, match=message):
        sketch_and_project(**({"A": A, "b": b} | changes))


def test_an_operator_cannot_be_cut_into_blocks():
    A, b, _ = system()
    with pytest.raises(TypeError, match="A must be an array or a sparse matrix for acceleration='cg'"):
        sketch_and_project(aslinearoperator(A), b, acceleration="cg")
