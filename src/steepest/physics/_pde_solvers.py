r"""Reference solutions for `hard_constraint_moe`: an implicit method of lines and a pseudo-spectral method.

`solve_diffusion_sorption`  cell-centered finite volumes on a grid three times finer (so that every cell center asked
for is one of its centers), BDF in time. Ghost cells beyond the walls, h the fine spacing:

    left   (g + u_1)/2 = 1                right  (g + u_n)/2 = -D (g - u_n)/h,   g = u_n (D/h - 1/2)/(D/h + 1/2)

`solve_navier_stokes_2d`  vorticity, 2/3 of the waves kept, E = exp(-k² h/(2 Re)), N the transform of -v·grad w:

    a = E (w + h/2 N(w)),  b = E w + h/2 N(a),  c = E² w + h E N(b)                (integrating-factor Runge-Kutta 4)
    w <- E² w + h/6 (E² N(w) + 2 E N(a) + 2 E N(b) + N(c))
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from steepest.core.errors import at_least, check, optional, positive, value_error
from steepest.core.extras import require
from steepest.physics._pde import DiffusionSorption1D, spectral_terms, wavenumbers

__all__ = ["PDEBenchData", "load_pdebench", "solve_diffusion_sorption", "solve_navier_stokes_2d"]

REFINE = 3
Array = NDArray[np.float64]


class PDEBenchData(NamedTuple):
    """Trajectories `u` (n, nt, nx) float32, cell centers `x` (nx,) and times `t` (nt,)."""

    u: Tensor
    x: Tensor
    t: Tensor


def solve_diffusion_sorption(
    u0: float | ArrayLike | Tensor,
    nt: int,
    nx: int,
    *,
    t_max: float = 500.0,
    D: float = 5e-4,
    phi: float = 0.29,
    rho_s: float = 2880.0,
    k: float = 3.5e-4,
    n_f: float = 0.874,
    rtol: float = 1e-8,
) -> Tensor:
    """Solve the diffusion-sorption equation of `DiffusionSorption1D` on its grid.

    Parameters
    ----------
    u0 : float or array of shape (nx,)
        Start, constant or at the cell centers; between them it is interpolated monotonically (PCHIP).
    nt, nx : int
        Times ``linspace(0, t_max, nt)`` and cell centers ``(i + 1/2)/nx``.
    t_max, D, phi, rho_s, k, n_f : float
        As in `DiffusionSorption1D`.
    rtol : float
        Of the integrator, 1e-8 by default; its ``atol`` is a hundredth of it.

    Returns
    -------
    Tensor of shape (nt, nx), float64
        Second order in 1/nx.

    Raises
    ------
    ValueError
        Arguments outside their limits, a start that is not finite or of another shape.
    FloatingPointError
        The integrator gave up.

    Examples
    --------
    >>> u = solve_diffusion_sorption(0.1, 3, 8)
    >>> u.shape, bool(u[-1, 0] > u[-1, 1] > 0.1)
    (torch.Size([3, 8]), True)
    """
    from scipy.integrate import solve_ivp
    from scipy.sparse import diags

    pde = DiffusionSorption1D(nt, nx, t_max=t_max, D=D, phi=phi, rho_s=rho_s, k=k, n_f=n_f)
    check("rtol", rtol, positive())
    n = REFINE * nx
    start = _on_fine_grid(np.asarray(u0, dtype=np.float64), nx)
    h, sorbed = 1 / n, (1 - phi) / phi * rho_s * k * n_f
    beyond = (D / h - 0.5) / (D / h + 0.5)

    def velocity(t: float, u: Array) -> Array:
        wide = np.concatenate(([2 - u[0]], u, [beyond * u[-1]]))
        R = 1 + sorbed * (np.maximum(u, 0) + 1e-6) ** (n_f - 1)
        return np.asarray(D / R * (wide[:-2] - 2 * u + wide[2:]) / h**2)

    with np.errstate(invalid="ignore", over="ignore"):  # SciPy's BDF subtracts rows that it has not filled yet
        found = solve_ivp(
            velocity,
            (0.0, t_max),
            start,
            method="BDF",
            t_eval=np.linspace(0.0, t_max, nt),
            rtol=rtol,
            atol=rtol / 100,
            jac_sparsity=diags([np.ones(n - 1), np.ones(n), np.ones(n - 1)], [-1, 0, 1]),
        )
    if not found.success or not np.isfinite(found.y).all():
        raise FloatingPointError(
            f"the integrator stopped at t = {found.t[-1] if len(found.t) else 0.0:.4g}: {found.message}"
        )
    return torch.from_numpy(np.ascontiguousarray(found.y[REFINE // 2 :: REFINE].T)).view(pde.grid)


def solve_navier_stokes_2d(
    w0: Tensor, t: Tensor, Re: float, *, n_steps: int | None = None, courant: float = 0.5
) -> Tensor:
    """Solve the vorticity equation of `NavierStokes2D`, pseudo-spectrally.

    Parameters
    ----------
    w0 : Tensor of shape (..., nx, ny)
        Vorticity at the points ``(i/nx, j/ny)``; leading axes are independent flows, which share the steps.
    t : Tensor of shape (nt,)
        Increasing times, the first of them 0.
    Re : float
    n_steps : int, optional
        Steps in every interval of `t`; by default as many as the Courant number asks for, at the speed at its start.
    courant : float
        ``max |v| step / spacing`` of the default, 0.5.

    Returns
    -------
    Tensor of shape (..., nt, nx, ny), float64

    Raises
    ------
    ValueError
        Shapes that do not fit, times that do not increase from 0, values that are not finite, ``Re <= 0``.
    FloatingPointError
        The flow stopped being finite; more steps are needed.

    Examples
    --------
    >>> x = torch.arange(16, dtype=torch.float64) / 16 * 2 * torch.pi
    >>> w0 = torch.cos(x)[:, None] * torch.cos(x)  # Taylor-Green: decays in place
    >>> w = solve_navier_stokes_2d(w0, torch.tensor([0.0, 1.0]), 100.0)
    >>> round(float(w[-1, 0, 0]), 6) == round(math.exp(-8 * math.pi**2 / 100), 6)
    True
    """
    check("Re", Re, positive())
    check("n_steps", n_steps, optional(at_least(1, integer=True)))
    check("courant", courant, positive())
    w, times = torch.as_tensor(w0).detach().double(), torch.as_tensor(t).detach().double()
    if w.ndim < 2 or min(w.shape[-2:]) < 4:
        raise value_error("w0", "of shape (..., nx, ny), 4 points or more each way", w0)
    if not bool(torch.isfinite(w).all()):
        raise value_error("w0", "finite", w0)
    if times.ndim != 1 or len(times) < 1 or float(times[0]) != 0 or not bool((times.diff() > 0).all()):
        raise value_error("t", "times that increase from 0", t)
    nx, ny = w.shape[-2:]
    waves = wavenumbers(nx, ny, w)
    low_x, low_y = torch.fft.fftfreq(nx).abs() < 1 / 3, torch.fft.rfftfreq(ny) < 1 / 3
    kept = (low_x[:, None] & low_y).to(w.device)

    def transport(w_hat: Tensor) -> Tensor:
        q = spectral_terms(w_hat * kept, waves, (nx, ny))
        return -torch.fft.rfft2(q["v_x"] * q["w_x"] + q["v_y"] * q["w_y"]) * kept

    w_hat, fields = torch.fft.rfft2(w), [w]
    for begin, end in itertools.pairwise(times.tolist()):
        steps = n_steps or _steps(spectral_terms(w_hat, waves, (nx, ny)), end - begin, max(nx, ny), courant)
        h = (end - begin) / steps
        E = torch.exp(-waves[2] * h / (2 * Re))
        for _ in range(steps):
            w_hat = _step(transport, w_hat, E, h)
        fields.append(torch.fft.irfft2(w_hat, s=(nx, ny)))
        if not bool(torch.isfinite(fields[-1]).all()):
            raise FloatingPointError(f"the flow is not finite at t = {end:.6g}; lower courant or raise n_steps")
    return torch.stack(fields, -3)


def load_pdebench(path: str | Path, n_samples: int | None = None) -> PDEBenchData:
    """Read trajectories of PDEBench's ``1D_diff-sorp_NA_NA.h5``.

    Its generator puts the wall values 1 and ``-D u_x`` (a first-order difference) into the ghost cells, half a cell
    beyond the walls, and leaves the integrator at SciPy's default tolerance.

    Parameters
    ----------
    path : str or Path
        A file with groups of ``data`` (nt, nx, 1), ``grid/x`` and ``grid/t``, one a trajectory.
    n_samples : int, optional
        How many, in the order of their names; all by default (4 GB).

    Returns
    -------
    PDEBenchData

    Raises
    ------
    MissingExtra
        An `ImportError` when h5py is not installed.
    FileNotFoundError
        There is no such file.
    ValueError
        The file has no such groups, or fewer than asked for.
    """
    check("n_samples", n_samples, optional(at_least(1, integer=True)))
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be a file, got {str(path)!r}")
    h5py = require("h5py", "physics", what="load_pdebench")
    with h5py.File(path, "r") as file:
        names = sorted(name for name, group in file.items() if isinstance(group, h5py.Group) and "data" in group)
        if len(names) < (n_samples or 1):
            raise value_error("path", f"a file with {n_samples or 1} or more trajectories", f"{len(names)} in {path}")
        names = names[:n_samples]
        u = np.stack([np.asarray(file[name]["data"], dtype=np.float32)[..., 0] for name in names])
        x, t = (np.asarray(file[names[0]]["grid"][axis], dtype=np.float32) for axis in ("x", "t"))
    return PDEBenchData(torch.from_numpy(u), torch.from_numpy(x), torch.from_numpy(t))


def _on_fine_grid(u0: Array, nx: int) -> Array:
    from scipy.interpolate import PchipInterpolator

    if u0.shape not in ((), (nx,)):
        raise value_error("u0", f"a number or of shape ({nx},)", u0)
    if not np.isfinite(u0).all():
        raise value_error("u0", "finite", u0)
    if u0.shape == ():
        return np.full(REFINE * nx, float(u0))
    fine, coarse = (np.arange(REFINE * nx) + 0.5) / REFINE, np.arange(nx) + 0.5
    return np.asarray(PchipInterpolator(coarse, u0, extrapolate=True)(fine), dtype=np.float64)


def _steps(terms: dict[str, Tensor], interval: float, n: int, courant: float) -> int:
    speed = float((terms["v_x"].abs() + terms["v_y"].abs()).max())
    return max(1, math.ceil(interval * speed * n / courant)) if math.isfinite(speed) else 1


def _step(N: Callable[[Tensor], Tensor], w: Tensor, E: Tensor, h: float) -> Tensor:
    N_w = N(w)
    N_a = N(E * (w + h / 2 * N_w))
    N_b = N(E * w + h / 2 * N_a)
    N_c = N(E**2 * w + h * E * N_b)
    return E**2 * w + h / 6 * (E**2 * N_w + 2 * E * (N_a + N_b) + N_c)
