"""The particle simulator beside one written in Taichi: the same step in another language and with its own algebra."""

import os

import numpy as np
import pytest

from steepest.physics import MPM

N_GRID, DT, GRAVITY, E, NU, VISCOSITY = 16, 5e-4, -9.8, 200.0, 0.3, 0.1
MU, LAM, BULK = E / (2 * (1 + NU)), E * NU / ((1 + NU) * (1 - 2 * NU)), E / (3 * (1 - 2 * NU))


def by_taichi(ti, x0, v0, volume, fluid, steps):
    """MLS-MPM with fixed-corotated jelly or a weakly compressible fluid, density 1 and slippery walls."""
    n = len(x0)
    x, v = (ti.Vector.field(2, ti.f64, n) for _ in range(2))
    C, F = (ti.Matrix.field(2, 2, ti.f64, n) for _ in range(2))
    J, mass = ti.field(ti.f64, n), ti.field(ti.f64, (N_GRID + 1, N_GRID + 1))
    grid = ti.Vector.field(2, ti.f64, (N_GRID + 1, N_GRID + 1))
    x.from_numpy(x0)
    v.from_numpy(v0)
    F.from_numpy(np.tile(np.eye(2), (n, 1, 1)))
    J.fill(1.0)

    @ti.kernel
    def scatter():
        for p in x:
            base = ti.cast(x[p] * N_GRID - 0.5, ti.i32)
            f = x[p] * N_GRID - ti.cast(base, ti.f64)
            w = [0.5 * (1.5 - f) ** 2, 0.75 - (f - 1.0) ** 2, 0.5 * (f - 0.5) ** 2]
            one = ti.Matrix.identity(ti.f64, 2)
            tau = one
            if ti.static(fluid):
                J[p] *= 1.0 + DT * C[p].trace()
                tau = J[p] * (BULK * (J[p] - 1.0) * one + VISCOSITY * (C[p] + C[p].transpose()))
            else:
                F[p] = (one + DT * C[p]) @ F[p]
                R, _ = ti.polar_decompose(F[p], ti.f64)
                det = F[p].determinant()
                tau = 2 * MU * (F[p] - R) @ F[p].transpose() + LAM * (det - 1.0) * det * one
            affine = volume * C[p] - 4.0 * N_GRID**2 * DT * volume * tau
            for i, j in ti.static(ti.ndrange(3, 3)):
                offset = (ti.Vector([i, j]) - f) / N_GRID
                weight = w[i][0] * w[j][1]
                grid[base + ti.Vector([i, j])] += weight * (volume * v[p] + affine @ offset)
                mass[base + ti.Vector([i, j])] += weight * volume

    @ti.kernel
    def on_grid():
        for i, j in mass:
            if mass[i, j] > 0:
                u = grid[i, j] / mass[i, j] + DT * ti.Vector([0.0, GRAVITY])
                for a in ti.static(range(2)):
                    node = ti.Vector([i, j])[a]
                    if node <= 3:
                        u[a] = ti.max(u[a], 0.0)
                    if node >= N_GRID - 3:
                        u[a] = ti.min(u[a], 0.0)
                grid[i, j] = u

    @ti.kernel
    def gather():
        for p in x:
            base = ti.cast(x[p] * N_GRID - 0.5, ti.i32)
            f = x[p] * N_GRID - ti.cast(base, ti.f64)
            w = [0.5 * (1.5 - f) ** 2, 0.75 - (f - 1.0) ** 2, 0.5 * (f - 0.5) ** 2]
            u, B = ti.Vector([0.0, 0.0]), ti.Matrix.zero(ti.f64, 2, 2)
            for i, j in ti.static(ti.ndrange(3, 3)):
                found = w[i][0] * w[j][1] * grid[base + ti.Vector([i, j])]
                u += found
                B += 4.0 * N_GRID**2 * found.outer_product((ti.Vector([i, j]) - f) / N_GRID)
            v[p], C[p] = u, B
            x[p] += DT * u

    for _ in range(steps):
        grid.fill(0)
        mass.fill(0)
        scatter()
        on_grid()
        gather()
    return x.to_numpy(), v.to_numpy(), C.to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize("material", ["elastic", "newtonian"])
def test_the_same_by_taichi(material):
    """Two hundred steps of a drop that falls onto the floor."""
    os.environ.setdefault("TI_LOG_LEVEL", "error")
    ti = pytest.importorskip("taichi")
    drop = MPM(2, N_GRID, material, dt=DT, gravity=(0.0, GRAVITY), E=E, nu=NU, viscosity=VISCOSITY)
    drop.add_sphere((0.5, 0.36), 0.12, 150, velocity=(0.5, -2.0))
    ti.init(arch=ti.cpu, default_fp=ti.f64, cpu_max_num_threads=1, offline_cache=False, log_level=ti.ERROR)
    try:
        x, v, C = by_taichi(ti, drop.x.copy(), drop.v.copy(), float(drop.volume[0]), material == "newtonian", 200)
    finally:
        ti.reset()
    drop.step(200)
    assert drop.x[:, 1].min() < 5 / N_GRID  # within reach of the floor, and jelly on its way up again
    for ours, theirs in ((drop.x, x), (drop.v, v), (drop.C, C)):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8 * np.abs(theirs).max())
