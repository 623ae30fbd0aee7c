"""Terms of the equations by hand, and the reference solvers against closed forms and themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from steepest.physics._pde import PDE, DiffusionSorption1D, NavierStokes2D, operator_input, require_pde
from steepest.physics._pde_solvers import load_pdebench, solve_diffusion_sorption, solve_navier_stokes_2d

F64 = torch.float64


def order(errors: list[float]) -> float:
    """Observed order when the spacing halves from one entry to the next; the last pair counts."""
    return math.log2(errors[-2] / errors[-1])


# ------------------------------------------------------------------------------------------- exact: diffusion-sorption


def test_terms_of_a_quadratic_are_exact():
    pde = DiffusionSorption1D(6, 8, t_max=3.0)
    t, x = torch.linspace(0, 3, 6, dtype=F64)[:, None], (torch.arange(8, dtype=F64) + 0.5) / 8
    u = 0.2 + 0.3 * x - 0.5 * x**2 + 0.7 * t * x + 0.1 * t**2
    terms = pde.terms(u)
    assert torch.allclose(terms["u_t"], 0.7 * x + 0.2 * t, atol=1e-12)
    assert torch.allclose(terms["u_xx"], torch.full((6, 8), -1.0, dtype=F64), atol=1e-11)
    assert torch.allclose(terms["u_start"], 0.2 + 0.3 * x - 0.5 * x**2, atol=1e-14)
    slope = torch.cat((0.3 + 0.7 * t[1:], -0.7 + 0.7 * t[1:]), 1)  # at the walls
    assert torch.allclose(terms["u_x_wall"], slope, atol=1e-11)
    linear = pde.terms(0.2 + 0.3 * x + 0.7 * t * x)  # walls by linear extrapolation
    walls = torch.cat((torch.full_like(t[1:], 0.2), 0.5 + 0.7 * t[1:]), 1)
    assert torch.allclose(linear["u_wall"], walls, atol=1e-12)


def test_residual_and_boundary_are_the_equation():
    pde = DiffusionSorption1D(3, 4, D=2e-3, phi=0.4, rho_s=1000.0, k=1e-3, n_f=0.7)
    u, u_t, u_xx = (torch.tensor([value], dtype=F64) for value in (0.3, 0.02, 1.5))
    R = 1 + 0.6 / 0.4 * 1000 * 1e-3 * 0.7 * (0.3 + 1e-6) ** (0.7 - 1)
    found = pde.residual({"u": u, "u_t": u_t, "u_xx": u_xx})
    assert float(found) == pytest.approx(0.02 - 2e-3 / R * 1.5, rel=1e-12)
    at_zero = pde.residual({"u": -u, "u_t": u_t, "u_xx": u_xx})
    assert float(at_zero) == pytest.approx(0.02 - 2e-3 / (1 + 1.05 * 1e-6**-0.3) * 1.5, rel=1e-12)
    walls = {"u_wall": torch.tensor([[0.9, 0.1]], dtype=F64), "u_x_wall": torch.tensor([[-3.0, -2.0]], dtype=F64)}
    assert torch.allclose(pde.boundary(walls), torch.tensor([[-0.1, 0.1 - 2e-3 * 2.0]], dtype=F64))
    given = {"D": torch.tensor(5e-3, dtype=F64)}
    assert torch.allclose(pde.boundary(walls, given), torch.tensor([[-0.1, 0.1 - 5e-3 * 2.0]], dtype=F64))


def test_the_isotherm_has_a_kink_that_smoothing_takes_away():
    u = torch.tensor([-0.3, -1e-9, 0.0, 1e-9, 0.3], dtype=F64, requires_grad=True)
    terms = {"u": u, "u_t": torch.zeros_like(u), "u_xx": -torch.ones_like(u)}
    kinked, smooth = (DiffusionSorption1D(3, 4, smoothing=s).residual(terms) for s in (0.0, 0.02))
    slopes, rounded = (torch.autograd.grad(r.sum(), u)[0] for r in (kinked, smooth))
    smooth = smooth.detach()
    assert slopes[:2].tolist() == [0.0, 0.0]
    assert float(slopes[2]) > 1.0  # at zero itself the right derivative
    assert float((rounded[1] - rounded[3]).abs()) < 1e-6 * float(rounded[2])
    v = (0.3 + math.sqrt(0.09 + 4e-4)) / 2 + 1e-6
    assert float(smooth[4]) == pytest.approx(5e-4 / (1 + 0.71 / 0.29 * 2880 * 3.5e-4 * 0.874 * v**-0.126), rel=1e-12)
    at_zero = 5e-4 / (1 + 0.71 / 0.29 * 2880 * 3.5e-4 * 0.874 * (0.01 + 1e-6) ** -0.126)
    assert float(smooth[2]) == pytest.approx(at_zero, rel=1e-12)


def test_the_right_wall_lets_out_what_arrives():
    """No blow-up on grids finer than 2 D, where u = D u_x would; the flow out of the column is u."""
    fine = solve_diffusion_sorption(0.2, 3, 1024, n_f=1.0, t_max=500.0, rtol=1e-6)
    assert float(fine.max()) <= 1.0
    assert bool((fine[-1].diff() < 0).all())
    pde = DiffusionSorption1D(3, 1024, n_f=1.0)
    outflow = -5e-4 * pde.terms(fine)["u_x_wall"][-1, 1]
    assert float(outflow) == pytest.approx(float(pde.terms(fine)["u_wall"][-1, 1]), rel=0.02)


def heat_series(nx: int, t: np.ndarray, *, D: float, R: float) -> tuple[np.ndarray, np.ndarray]:
    """Start and solution for constant R: steady state and modes with tan(beta) = -D beta, which meet both walls."""
    x = (np.arange(nx) + 0.5) / nx
    u = np.tile(1 - x / (1 + D), (len(t), 1))
    for j, amplitude in ((1, 0.3), (2, -0.1), (3, 0.05)):
        beta = brentq(lambda b: math.sin(b) + D * b * math.cos(b), (j - 0.4) * math.pi, (j + 0.4) * math.pi, xtol=1e-14)
        u += amplitude * np.exp(-(beta**2) * D / R * t)[:, None] * np.sin(beta * x)
    return u[0], u


def test_diffusion_sorption_is_second_order_against_the_heat_series():
    D, phi, rho_s, k = 5e-4, 0.29, 2880.0, 3.5e-4
    R = 1 + (1 - phi) / phi * rho_s * k
    errors = []
    for nx in (8, 16, 32):
        start, exact = heat_series(3 * nx, np.linspace(0, 500, 4), D=D, R=R)
        found = _solve_from_fine(start, 4, nx, n_f=1.0)
        errors.append(float(np.abs(found.numpy() - exact[:, 1::3]).max()))
    assert order(errors) >= 1.9
    assert errors[-1] < 5e-5


def _solve_from_fine(start: np.ndarray, nt: int, nx: int, **options: float) -> Tensor:
    """Solve from a start that is known on the solver's own grid, so that only the scheme's error is seen."""
    from steepest.physics import _pde_solvers as module

    patch = pytest.MonkeyPatch()
    with patch.context() as p:
        p.setattr(module, "_on_fine_grid", lambda u0, n: start)
        return solve_diffusion_sorption(0.1, nt, nx, **options)


def test_a_constant_start_is_the_complementary_error_function():
    D, R = 5e-4, 1 + 0.71 / 0.29 * 2880 * 3.5e-4
    u = solve_diffusion_sorption(0.1, 3, 48, n_f=1.0, t_max=60.0)  # the front has not reached the right wall
    x = (torch.arange(48, dtype=F64) + 0.5) / 48
    exact = 0.1 + 0.9 * torch.erfc(x / (2 * math.sqrt(D / R * 60.0)))
    assert float((u[-1] - exact)[x < 0.6].abs().max()) < 1e-3


def test_a_start_is_interpolated_smoothly_and_without_overshoot():
    from steepest.physics._pde_solvers import _on_fine_grid

    x, fine = (np.arange(16) + 0.5) / 16, (np.arange(48) + 0.5) / 48
    assert np.abs(_on_fine_grid(np.sin(3 * x), 16) - np.sin(3 * fine)).max() < 3e-3  # a broken line has 6e-2
    step = _on_fine_grid((x < 0.5).astype(float), 16)
    assert step.min() >= 0
    assert step.max() <= 1


def test_diffusion_sorption_converges_in_itself():
    def start(nx: int) -> np.ndarray:
        x = (np.arange(nx) + 0.5) / nx
        edge = np.exp(-((x / 0.15) ** 2))
        return edge + 0.1 * (1 - edge) * (1 - np.exp(-(((1 - x) / 0.15) ** 2)))

    finest = solve_diffusion_sorption(start(243), 3, 243, rtol=1e-7)[-1]
    errors = []
    for nx, skip in ((9, 27), (27, 9), (81, 3)):  # centers of every grid are centers of the finest
        u = solve_diffusion_sorption(start(nx), 3, nx, rtol=1e-7)[-1]
        errors.append(float((u - finest[skip // 2 :: skip]).norm() / math.sqrt(nx)))
    assert math.log(errors[1] / errors[2], 3) >= 1.0
    assert errors[0] > errors[1] > errors[2]


def test_the_solution_meets_the_equation_of_the_layer():
    sizes = []
    for nt, nx in ((33, 24), (65, 48)):
        pde = DiffusionSorption1D(nt, nx)
        x = (torch.arange(nx, dtype=F64) + 0.5) / nx
        edge, right = torch.exp(-((x / 0.15) ** 2)), 1 - torch.exp(-(((1 - x) / 0.15) ** 2))
        terms = pde.terms(solve_diffusion_sorption(edge + 0.1 * (1 - edge) * right, nt, nx))
        late = slice(nt // 4, -1)
        sizes.append(float(pde.residual(terms)[late].square().mean().sqrt()))
        assert sizes[-1] < 0.03 * float(terms["u_t"][late].square().mean().sqrt())
        assert float(pde.boundary(terms).abs().max()) < 0.02
    assert order(sizes) > 1.5


# ------------------------------------------------------------------------------------------------ exact: Navier-Stokes


def test_navier_stokes_terms_are_the_derivatives():
    nt, nx, ny = 5, 16, 12
    pde = NavierStokes2D(nt, nx, ny, Re=50.0, t_max=2.0)
    t = torch.linspace(0, 2, nt, dtype=F64)[:, None, None]
    x, y = (2 * math.pi * torch.arange(n, dtype=F64) / n for n in (nx, ny))
    x, y = x[:, None], y[None]
    w = (1 + t**2) * torch.sin(2 * x) * torch.cos(3 * y)  # psi = w / k²
    terms, k, p = pde.terms(w), 2 * math.pi, (2 * math.pi) ** 2 * 13
    g = 1 + t**2
    assert torch.allclose(terms["w_t"], 2 * t * torch.sin(2 * x) * torch.cos(3 * y), atol=1e-12)
    assert torch.allclose(terms["w_x"], g * 2 * k * torch.cos(2 * x) * torch.cos(3 * y), atol=1e-10)
    assert torch.allclose(terms["w_y"], -g * 3 * k * torch.sin(2 * x) * torch.sin(3 * y), atol=1e-10)
    assert torch.allclose(terms["lap_w"], -p * w, atol=1e-9)
    assert torch.allclose(terms["v_x"], -g * 3 * k / p * torch.sin(2 * x) * torch.sin(3 * y), atol=1e-12)
    assert torch.allclose(terms["v_y"], -g * 2 * k / p * torch.cos(2 * x) * torch.cos(3 * y), atol=1e-12)
    byhand = terms["w_t"] + terms["v_x"] * terms["w_x"] + terms["v_y"] * terms["w_y"] + p * w / 50.0
    assert torch.allclose(pde.residual(terms), byhand, atol=1e-9)
    doubled = pde.residual(terms, {"Re": torch.tensor(100.0, dtype=F64)})
    assert torch.allclose(byhand - doubled, p * w / 100.0, atol=1e-9)


def test_the_highest_wave_has_no_odd_derivative():
    pde = NavierStokes2D(3, 8, 6)
    i, j = torch.arange(8, dtype=F64)[:, None], torch.arange(6, dtype=F64)
    across = ((-1) ** i * torch.cos(2 * math.pi * j / 6)).expand(3, 8, 6)
    along = ((-1) ** j * torch.cos(2 * math.pi * i / 8)).expand(3, 8, 6)
    assert float(pde.terms(across)["w_x"].abs().max()) < 1e-12
    assert float(pde.terms(along)["w_y"].abs().max()) < 1e-12
    assert torch.allclose(pde.terms(across)["lap_w"], -((2 * math.pi) ** 2) * (16 + 1) * across, atol=1e-9)


def test_the_ansatz_keeps_the_initial_vorticity():
    pde = NavierStokes2D(5, 8, 6, t_max=2.0)
    g = torch.Generator().manual_seed(0)
    basis, w0 = torch.rand(2, 5, 8, 6, 3, generator=g, dtype=F64), torch.rand(2, 8, 6, generator=g, dtype=F64)
    fields, added = pde.ansatz(basis, w0)
    assert bool((fields[:, 0] == 0).all())
    assert float(fields.mean((2, 3)).abs().max()) < 1e-16
    share = 0.005 * torch.linspace(0, 1, 5, dtype=F64)[:, None, None, None]
    assert torch.allclose(fields, share * (basis - basis.mean((2, 3), keepdim=True)), atol=1e-15)
    assert torch.equal(added, w0[:, None].expand(-1, 5, -1, -1))


def test_taylor_green_decays():
    x, y = (2 * math.pi * torch.arange(n, dtype=F64) / n for n in (16, 12))
    w0 = torch.cos(x)[:, None] * torch.cos(y)
    w = solve_navier_stokes_2d(w0, torch.tensor([0.0, 0.4, 1.0], dtype=F64), 100.0)
    for field, t in zip(w, (0.0, 0.4, 1.0), strict=True):
        assert float((field - w0 * math.exp(-8 * math.pi**2 * t / 100)).abs().max()) < 1e-8


def swirl(n: int = 16) -> Tensor:
    g = torch.Generator().manual_seed(3)
    k = torch.fft.fftfreq(n, 1 / n)[:, None] ** 2 + torch.fft.rfftfreq(n, 1 / n) ** 2
    noise = torch.fft.rfft2(torch.randn(n, n, generator=g, dtype=F64)) * torch.exp(-k / 8) * (k > 0)
    w = torch.fft.irfft2(noise, s=(n, n))
    return 20 * w / w.std()


def test_navier_stokes_is_fourth_order_in_time():
    t = torch.tensor([0.0, 0.4], dtype=F64)
    exact = solve_navier_stokes_2d(swirl(), t, 500.0, n_steps=640)[-1]
    errors = [float((solve_navier_stokes_2d(swirl(), t, 500.0, n_steps=n)[-1] - exact).norm()) for n in (40, 80, 160)]
    assert order(errors) >= 3.8
    assert errors[-1] < 1e-4 * float(exact.norm())


def test_enstrophy_never_grows_and_the_mean_stays():
    w = solve_navier_stokes_2d(swirl(), torch.linspace(0, 1, 9), 1e4)
    enstrophy = w.square().mean((1, 2))
    assert bool((enstrophy.diff() <= 0).all())
    assert float(w.mean((1, 2)).abs().max()) < 1e-12
    assert float((w[-1] - w[0]).norm() / w[0].norm()) > 0.3  # it did move


def test_leading_axes_are_flows_of_their_own():
    w0, t = torch.stack((swirl(), swirl().flip(0))), torch.linspace(0, 0.1, 3)
    together = solve_navier_stokes_2d(w0, t, 1e3, n_steps=8)
    assert together.shape == (2, 3, 16, 16)
    assert torch.allclose(together[1], solve_navier_stokes_2d(w0[1], t, 1e3, n_steps=8), atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------- data


def test_operator_input_holds_normalized_coordinates_and_the_start():
    u0 = torch.rand(2, 8, generator=torch.Generator().manual_seed(0))
    x = operator_input(DiffusionSorption1D(5, 8), u0)
    assert x.shape == (2, 5, 8, 3)
    assert x.dtype == torch.float32
    assert torch.allclose(x[0, :, 0, 0], torch.linspace(0, 1, 5))  # not 0 to 500
    assert torch.allclose(x[1, 2, :, 1], (torch.arange(8) + 0.5) / 8)
    assert torch.equal(x[..., 2], u0[:, None].expand(-1, 5, -1))
    y = operator_input(NavierStokes2D(5, 8, 6, t_max=2.0), torch.zeros(1, 8, 6))
    assert torch.allclose(y[0, 0, :, 0, 1], torch.arange(8) / 8)
    assert torch.allclose(y[0, :, 0, 0, 0], torch.linspace(0, 1, 5))


def test_load_pdebench_reads_its_layout(tmp_path):
    h5py = pytest.importorskip("h5py")
    u = np.random.default_rng(0).random((3, 5, 8, 1), dtype=np.float32)
    with h5py.File(tmp_path / "some.h5", "w") as file:
        for i in range(3):
            file.create_dataset(f"{i:04d}/data", data=u[i])
            file.create_dataset(f"{i:04d}/grid/x", data=np.arange(8, dtype=np.float32))
            file.create_dataset(f"{i:04d}/grid/t", data=np.arange(5, dtype=np.float32))
    data = load_pdebench(tmp_path / "some.h5")
    assert np.array_equal(data.u.numpy(), u[..., 0])
    assert data.x.shape == (8,)
    assert data.t.shape == (5,)
    assert load_pdebench(tmp_path / "some.h5", 2).u.shape == (2, 5, 8)
    with pytest.raises(ValueError, match="path must be a file with 4 or more trajectories"):
        load_pdebench(tmp_path / "some.h5", 4)
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        load_pdebench(tmp_path / "none.h5")


# -------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionSorption1D(2, 8), "nt must be"),
        (lambda: DiffusionSorption1D(5, 3), "nx must be"),
        (lambda: DiffusionSorption1D(5, 8, phi=0.0), "phi must be"),
        (lambda: DiffusionSorption1D(5, 8, skip_corner=-1), "skip_corner must be"),
        (lambda: DiffusionSorption1D(5, 8, smoothing=-1.0), "smoothing must be >= 0"),
        (lambda: NavierStokes2D(5, 8, 8, Re=0.0), "Re must be > 0"),
        (lambda: NavierStokes2D(5, 8, 8, Re=-1.0), "Re must be > 0"),
        (lambda: solve_diffusion_sorption(float("nan"), 3, 8), "u0 must be finite"),
        (lambda: solve_diffusion_sorption([0.1, 0.2], 3, 8), r"u0 must be a number or of shape \(8,\)"),
        (lambda: solve_navier_stokes_2d(torch.zeros(8, 8), torch.tensor([0.0, 1.0]), 0.0), "Re must be > 0"),
        (lambda: solve_navier_stokes_2d(torch.zeros(8), torch.tensor([0.0, 1.0]), 1.0), "w0 must be of shape"),
        (lambda: solve_navier_stokes_2d(torch.full((8, 8), math.inf), torch.tensor([0.0]), 1.0), "w0 must be finite"),
        (lambda: solve_navier_stokes_2d(torch.zeros(8, 8), torch.tensor([1.0, 2.0]), 1.0), "t must be times"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_protocol_names_what_is_missing():
    class Nothing:
        grid, t_max = (4, 4), 1.0

    with pytest.raises(TypeError, match=r"pde must be a PDE, with .*terms.*residual"):
        require_pde(Nothing())

    class Heat(PDE):
        grid, t_max, residual_terms = (4, 4), 1.0, ("u",)

        def terms(self, u):
            return {"u": u}

        def residual(self, terms, params=None):
            return terms["u"]

    require_pde(Heat())
