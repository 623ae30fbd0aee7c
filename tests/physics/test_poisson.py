"""The Poisson matrix by hand, the stencil against it, obstacles, null vectors, the authors' file layout."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage, sparse

from steepest.physics._poisson import (
    PoissonStencil,
    grid_of,
    null_space_projection,
    poisson_matrix,
    random_obstacles,
    read_dcdm_matrix,
)

GRIDS = [(5, 7), (1, 4), (1, 1), (4, 3, 5), (2, 1, 3)]


def by_hand(shape, solid, wall):
    """Assemble cell by cell, face by face."""
    n = int(np.prod(shape))
    A = np.zeros((n, n))
    index = {cell: k for k, cell in enumerate(itertools.product(*(range(m) for m in shape)))}
    for cell, k in index.items():
        if solid[cell]:
            continue
        for axis, step in itertools.product(range(len(shape)), (-1, 1)):
            other = tuple(c + step * (a == axis) for a, c in enumerate(cell))
            if other not in index:
                A[k, k] += wall == "dirichlet"
            elif not solid[other]:
                A[k, k] += 1
                A[k, index[other]] -= 1
    return A


def layout(shape, seed=0):
    solid = np.random.default_rng(seed).random(shape) < 0.3
    solid.flat[0] = False
    return solid


# ------------------------------------------------------------------------------------------------------ exact


@pytest.mark.parametrize("wall", ["dirichlet", "neumann"])
@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("obstacles", [False, True])
def test_matrix_and_stencil_equal_the_assembly_by_hand(shape, wall, obstacles):
    solid = layout(shape) if obstacles else np.zeros(shape, bool)
    expected = by_hand(shape, solid, wall)
    A = poisson_matrix(shape, solid if obstacles else None, wall)
    assert isinstance(A, sparse.csr_matrix)
    assert A.dtype == np.float64
    assert np.array_equal(A.toarray(), expected)
    fluid = ~solid.reshape(-1)
    reduced = poisson_matrix(shape, solid, wall, reduced=True)
    assert np.array_equal(reduced.toarray(), expected[np.ix_(fluid, fluid)])
    x = torch.randn(3, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = PoissonStencil(shape, solid, wall)(x)
    np.testing.assert_allclose(y.reshape(3, -1).numpy(), x.reshape(3, -1).numpy() @ expected, atol=1e-13)


def test_the_stencil_has_its_gradient():
    stencil = PoissonStencil((3, 4), layout((3, 4)))
    x = torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(stencil, x)


def test_eigenvalues_of_the_box_are_those_of_sines():
    n, m = 6, 9
    sines = [4 * np.sin(np.pi * np.arange(1, k + 1) / (2 * (k + 1))) ** 2 for k in (n, m)]
    expected = np.sort((sines[0][:, None] + sines[1]).reshape(-1))
    np.testing.assert_allclose(np.linalg.eigvalsh(poisson_matrix((n, m)).toarray()), expected, atol=1e-12)


# ------------------------------------------------------------------------------------------------- null vectors


def two_rooms():
    solid = np.zeros((6, 7), bool)
    solid[:, 3] = True  # two components when walls let nothing through
    solid[1:4, 4:7] = True
    solid[2, 5] = False  # a closed cell
    return solid


@pytest.mark.parametrize("wall", ["dirichlet", "neumann"])
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_projection_is_the_one_onto_the_range(wall, reduced, kind):
    solid = two_rooms()
    A = poisson_matrix(solid.shape, solid, wall, reduced).toarray()
    b = np.random.default_rng(1).standard_normal(len(A))
    project = null_space_projection(lambda v: A @ v, b, ~solid, reduced=reduced)
    if kind == "torch":
        T = torch.as_tensor(A)
        project = null_space_projection(lambda v: T @ v, torch.as_tensor(b), ~solid, reduced=reduced)
        found = project(torch.as_tensor(b)).numpy()
    else:
        found = project(b)
    np.testing.assert_allclose(found, A @ np.linalg.pinv(A) @ b, atol=1e-12)


def test_nothing_is_projected_where_nothing_is_null():
    A = poisson_matrix((4, 5))
    assert null_space_projection(lambda v: A @ v, np.ones(20), np.ones((4, 5), bool), reduced=False) is None


def test_a_matrix_that_acts_in_solid_cells_is_refused():
    solid = two_rooms()
    A = poisson_matrix(solid.shape, solid) + sparse.diags(solid.reshape(-1).astype(float))
    with pytest.raises(ValueError, match="A must be zero in the rows of solid cells"):
        null_space_projection(lambda v: A @ v, np.ones(42), ~solid, reduced=False)


# ---------------------------------------------------------------------------------------------------- obstacles


@pytest.mark.parametrize("shape", [(32, 40), (16, 16, 20)])
def test_obstacles_leave_fluid_in_one_piece(shape):
    for seed in range(5):
        solid = random_obstacles(shape, 4, seed)
        assert solid.shape == shape
        assert solid.dtype == bool
        assert 0 < solid.mean() < 0.5
        assert ndimage.label(~solid)[1] == 1
    assert np.array_equal(random_obstacles(shape, 4, 3), random_obstacles(shape, 4, 3))
    assert not np.array_equal(random_obstacles(shape, 4, 3), random_obstacles(shape, 4, 4))
    assert not random_obstacles(shape, 0, 0).any()


def test_every_obstacle_takes_cells():
    counts = [random_obstacles((64, 64), k, np.random.default_rng(7)).sum() for k in range(6)]
    assert all(a < b for a, b in itertools.pairwise(counts))


def test_a_full_grid_is_said():
    with pytest.raises(ValueError, match="n_obstacles must be so few"):
        random_obstacles((4, 4), 40, 0)


# ----------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_the_authors_layout_is_read(tmp_path, kind):
    A = poisson_matrix((3, 4))
    header = np.array([12, 12, A.nnz, 12, 0], "<i4")
    parts = [header, A.data.astype(kind), A.indptr[:-1].astype("<i4"), A.indices.astype("<i4")]
    path = tmp_path / "matrixA_1.bin"
    path.write_bytes(b"".join(part.tobytes() for part in parts))
    read = read_dcdm_matrix(path)
    assert read.dtype == np.float64
    assert np.array_equal(read.toarray(), A.toarray())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="path must be a file in the layout"):
        read_dcdm_matrix(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="path"):
        read_dcdm_matrix(path)
    parts[3] = parts[3] + 12
    path.write_bytes(b"".join(part.tobytes() for part in parts))
    with pytest.raises(ValueError, match="columns exist"):
        read_dcdm_matrix(path)


# ------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("shape", "solid", "error", "match"),
    [
        ((3,), None, ValueError, "shape must be 2 or 3 sizes"),
        ((3, 0), None, ValueError, "shape must be an integer >= 1"),
        ((3, 2.5), None, TypeError, "shape must be an integer"),
        (3, None, TypeError, "shape must be a sequence"),
        ((3, 4), np.zeros((4, 3), bool), ValueError, r"solid must be of shape \(3, 4\)"),
        ((3, 4), np.ones((3, 4), bool), ValueError, "solid must be False in some cell"),
        ((3, 4), np.zeros((3, 4)), TypeError, "solid must be an array of booleans"),
    ],
)
def test_bad_grids_are_named(shape, solid, error, match):
    for build in (poisson_matrix, PoissonStencil, grid_of):
        with pytest.raises(error, match=match):
            build(shape, solid)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="wall must be one of"):
        poisson_matrix((3, 3), wall="periodic")
    with pytest.raises(TypeError, match="reduced must be True or False"):
        poisson_matrix((3, 3), reduced=1)
    with pytest.raises(ValueError, match="n_obstacles"):
        random_obstacles((9, 9), -1)
