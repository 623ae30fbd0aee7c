r"""Differential equations as the hard-constraint layer reads them: terms that are linear in u, and pointwise residuals.

`DiffusionSorption1D`   u_t = D/R(u) u_xx,   R(u) = 1 + (1-phi)/phi rho_s k n_f v^(n_f-1),   v = max(u, 0) + 1e-6
                        u(0,t) = 1,   u(1,t) = -D u_x(1,t),   u(x,0) given
`NavierStokes2D`        w_t + v·grad w = 1/Re lap w,   v = (psi_y, -psi_x),   lap psi = -w,   periodic unit square

Stencils are second order: central and one-sided in time, three points for u_xx (four, one-sided, in the end
cells); spatial derivatives of the periodic field are spectral.

What arrives at the right wall leaves: outflow -D u_x = u. PDEBench's text and the paper's code print u = D u_x, while
the generator of PDEBench's data has -D u_x, as here. With the printed sign the wall is a source: exp((x - 1)/D) solves
equation and wall, and grows like exp(t/(D R)).

R has a kink at u = 0: constant to the left of it, of slope -1.5e6 just to the right. Residuals have a derivative in u
on either side (at 0 itself, the right one), so derivatives of the layer's solution are exact unless a sampled point is
within some 1e-6 of zero. But minima like to lie on the kink itself, where the gradient does not vanish: the solve does
not converge there, which is reported. With ``smoothing=s``, v = (u + sqrt(u² + s²))/2 + 1e-6 and the kink is gone; 0.01
is what it takes where concentrations are low.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from steepest.core.errors import at_least, check, kind_error, nonnegative, positive

__all__ = ["PDE", "DiffusionSorption1D", "NavierStokes2D", "operator_input", "require_pde"]

Terms = dict[str, Tensor]
Params = Mapping[str, Tensor] | None


class PDE(Protocol):
    """What a layer needs to know of an equation on a grid (nt, nx[, ny]). Derive from it to have its defaults.

    `residual`, `boundary` and `initial` act point by point on terms that are linear in the field, which is what makes
    the layer's normal equations cheap. `residual_terms`, `boundary_terms` and `initial_terms` name the terms that each
    reads; no names, no rows. A residual term has the shape of the grid.

    Attributes
    ----------
    grid : tuple of int
    t_max : float
    start : float
        Where the weights start: 1 for diffusion-sorption, 0 for Navier-Stokes.
    """

    grid: tuple[int, ...]
    t_max: float
    start: float = 0.0
    residual_terms: ClassVar[Sequence[str]]
    boundary_terms: ClassVar[Sequence[str]] = ()
    initial_terms: ClassVar[Sequence[str]] = ()

    def terms(self, u: Tensor) -> Terms:
        """Every term of fields (..., *grid), linear in u."""
        ...

    def residual(self, terms: Terms, params: Params = None) -> Tensor:
        """Residual of the equation, point by point."""
        ...

    def boundary(self, terms: Terms, params: Params = None) -> Tensor:
        """Residual of the boundary conditions, point by point; the first axis of rows is time."""
        raise NotImplementedError

    def initial(self, terms: Terms, initial_condition: Tensor) -> Tensor:
        """Residual of the initial condition, in its own units."""
        raise NotImplementedError

    def ansatz(self, basis: Tensor, initial_condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn a network's output (B, *grid, N) into basis fields and a field (B, *grid) that is added to their sum."""
        return basis, None

    def coordinates(self) -> tuple[Tensor, ...]:
        """Normalized coordinates of the grid, one float64 vector an axis, for the network's input."""
        return tuple(torch.linspace(0, 1, n, dtype=torch.float64) for n in self.grid)

    def points(self) -> Tensor:
        """Where the equation is asked to hold: bool of the grid's shape."""
        return torch.ones(self.grid, dtype=torch.bool)


def require_pde(pde: object) -> None:
    """Raise `TypeError` naming what `pde` lacks of the protocol."""
    needed = [name for name in vars(PDE) if not name.startswith("_")] + ["grid", "t_max", "residual_terms"]
    lacking = [name for name in dict.fromkeys(needed) if not hasattr(pde, name)]
    if lacking:
        raise kind_error("pde", f"a PDE, with {', '.join(lacking)}", pde, "derive from steepest.physics.PDE")


def operator_input(pde: PDE, initial_condition: Tensor) -> Tensor:
    """Channels for a neural operator: normalized coordinates and the initial condition at every time.

    Parameters
    ----------
    initial_condition : Tensor of shape (B, nx[, ny])

    Returns
    -------
    Tensor of shape (B, *grid, number of axes + 1)
        In the dtype of `initial_condition`.

    Examples
    --------
    >>> operator_input(DiffusionSorption1D(5, 8), torch.full((2, 8), 0.1)).shape
    torch.Size([2, 5, 8, 3])
    """
    axes = [x.to(initial_condition) for x in pde.coordinates()]
    channels = [x.expand(len(initial_condition), *pde.grid) for x in torch.meshgrid(*axes, indexing="ij")]
    start = initial_condition[:, None].expand(len(initial_condition), *pde.grid)
    return torch.stack([*channels, start], -1)


class DiffusionSorption1D(PDE):
    """Diffusion of a solute that sorbs, Freundlich's isotherm (PDEBench; chalapathi2024scaling, Sec. 4.1).

    Parameters
    ----------
    nt, nx : int
        Times ``linspace(0, t_max, nt)`` (at least 3) and cell centers ``(i + 1/2)/nx`` (at least 4).
    t_max : float
        500 by default.
    D, phi, rho_s, k, n_f : float
        Diffusivity, porosity, bulk density, Freundlich's constant and exponent; PDEBench's values by default. The
        layer's `params` may give them per sample.
    smoothing : float
        s: R takes ``(u + sqrt(u**2 + s**2)) / 2`` for ``max(u, 0)``, 0 by default (the paper's). Fits of low
        concentrations need 0.01 to converge; it changes solutions by less than 3e-4.
    skip_corner : int
        c: no residual where ``t < c dt`` and x is within ``c dx`` of a wall, 0 by default. A start that jumps at the
        wall has a finite-difference residual there that no network can lower.

    Raises
    ------
    ValueError, TypeError
        A size or coefficient outside its limits.

    Examples
    --------
    >>> pde = DiffusionSorption1D(11, 16)
    >>> u = torch.full((11, 16), 0.3, dtype=torch.float64)
    >>> float(pde.residual(pde.terms(u)).abs().max()) < 1e-12
    True
    """

    start = 1.0
    residual_terms = ("u", "u_t", "u_xx")
    boundary_terms = ("u_wall", "u_x_wall")
    initial_terms = ("u_start",)

    def __init__(
        self,
        nt: int,
        nx: int,
        *,
        t_max: float = 500.0,
        D: float = 5e-4,
        phi: float = 0.29,
        rho_s: float = 2880.0,
        k: float = 3.5e-4,
        n_f: float = 0.874,
        smoothing: float = 0.0,
        skip_corner: int = 0,
    ) -> None:
        check("nt", nt, at_least(3, integer=True))
        check("nx", nx, at_least(4, integer=True))
        check("skip_corner", skip_corner, at_least(0, integer=True))
        check("smoothing", smoothing, nonnegative())
        self.coefficients = {"D": D, "phi": phi, "rho_s": rho_s, "k": k, "n_f": n_f}
        for name, value in {"t_max": t_max, **self.coefficients}.items():
            check(name, value, positive())
        self.grid, self.t_max, self.smoothing, self.skip_corner = (nt, nx), float(t_max), smoothing, skip_corner

    def terms(self, u: Tensor) -> Terms:
        """``u, u_t, u_xx`` (..., nt, nx); ``u_wall, u_x_wall`` (..., nt - 1, 2), left and right, t > 0; ``u_start``."""
        nt, nx = self.grid
        h = 1 / nx
        inner = u[..., :-2] - 2 * u[..., 1:-1] + u[..., 2:]
        cells = torch.stack((u[..., :4], u[..., -4:].flip(-1)), -2)  # from the walls inward: few slices, cheap backward
        a, b, c, d = cells.unbind(-1)  # (..., nt, 2)
        left, right = (2 * a - 5 * b + 4 * c - d).split(1, -1)
        u_xx = torch.cat((left, inner, right), -1) / h**2
        a, b, c = (x[..., 1:, :] for x in (a, b, c))
        outward = (2 * a - 3 * b + c) / h
        sign = outward.new_tensor([-1.0, 1.0])
        return {
            "u": u,
            "u_t": _time_derivative(u, self.t_max / (nt - 1), -2),
            "u_xx": u_xx,
            "u_wall": 1.5 * a - 0.5 * b,
            "u_x_wall": outward * sign,
            "u_start": u[..., 0, :],
        }

    def residual(self, terms: Terms, params: Params = None) -> Tensor:
        """``u_t - D/R(u) u_xx``."""
        D, phi, rho_s, k, n_f = (self._coefficient(name, params) for name in ("D", "phi", "rho_s", "k", "n_f"))
        u, s = terms["u"], self.smoothing
        v = ((u + (u.square() + s**2).sqrt()) / 2 if s else u.clamp(min=0)) + 1e-6
        R = 1 + (1 - phi) / phi * rho_s * k * n_f * v ** (n_f - 1)
        return terms["u_t"] - D / R * terms["u_xx"]

    def boundary(self, terms: Terms, params: Params = None) -> Tensor:
        """``u - 1`` at the left wall and ``u + D u_x`` at the right one, in the last axis."""
        u, u_x = terms["u_wall"], terms["u_x_wall"]
        at_left, at_right = u.new_tensor([1.0, 0.0]), u.new_tensor([0.0, 1.0])
        return u - at_left + at_right * self._coefficient("D", params) * u_x

    def initial(self, terms: Terms, initial_condition: Tensor) -> Tensor:
        """``u(x, 0) - u0(x)``."""
        return terms["u_start"] - initial_condition

    def coordinates(self) -> tuple[Tensor, ...]:
        """``t/t_max`` and the cell centers."""
        nt, nx = self.grid
        return torch.linspace(0, 1, nt, dtype=torch.float64), (torch.arange(nx, dtype=torch.float64) + 0.5) / nx

    def points(self) -> Tensor:
        """All but the corners."""
        everywhere = torch.ones(self.grid, dtype=torch.bool)
        c = self.skip_corner
        if c:
            everywhere[:c, :c] = False
            everywhere[:c, -c:] = False
        return everywhere

    def _coefficient(self, name: str, params: Params) -> Tensor | float:
        return params[name] if params is not None and name in params else self.coefficients[name]


class NavierStokes2D(PDE):
    """Vorticity of an incompressible flow on the periodic unit square, unforced (chalapathi2024scaling, Sec. 4.2).

    The initial vorticity holds by construction: w = w0 + Σ w_i b_i, ``b <- 0.005 t/t_max b`` less its spatial mean.

    Parameters
    ----------
    nt, nx, ny : int
        Times ``linspace(0, t_max, nt)`` (at least 3) and points ``i/nx``, ``j/ny`` (at least 4).
    Re : float
        Reynolds number, 1e4 by default (the paper's). The layer's `params` may give one per sample.
    t_max : float
        1 by default.

    Raises
    ------
    ValueError, TypeError
        A size outside its limits, ``Re <= 0``.

    Examples
    --------
    >>> pde = NavierStokes2D(5, 8, 8, Re=100.0)
    >>> basis, start = pde.ansatz(torch.ones(1, 5, 8, 8, 3), torch.zeros(1, 8, 8))
    >>> bool((basis[:, 0] == 0).all()), start.shape
    (True, torch.Size([1, 5, 8, 8]))
    """

    residual_terms = ("w_t", "v_x", "v_y", "w_x", "w_y", "lap_w")
    MOLLIFIER = 0.005  # official code

    def __init__(self, nt: int, nx: int, ny: int, Re: float = 1e4, *, t_max: float = 1.0) -> None:
        check("nt", nt, at_least(3, integer=True))
        check("nx", nx, at_least(4, integer=True))
        check("ny", ny, at_least(4, integer=True))
        check("Re", Re, positive())
        check("t_max", t_max, positive())
        self.grid, self.t_max, self.Re = (nt, nx, ny), float(t_max), float(Re)

    def terms(self, u: Tensor) -> Terms:
        """``w_t, v_x, v_y, w_x, w_y, lap_w`` (..., nt, nx, ny) of the vorticity; v is the velocity."""
        nt, nx, ny = self.grid
        waves = wavenumbers(nx, ny, u)
        return {
            "w_t": _time_derivative(u, self.t_max / (nt - 1), -3),
            **spectral_terms(torch.fft.rfft2(u), waves, (nx, ny)),
        }

    def residual(self, terms: Terms, params: Params = None) -> Tensor:
        """``w_t + v_x w_x + v_y w_y - lap w / Re``."""
        Re = params["Re"] if params is not None and "Re" in params else self.Re
        moved = terms["v_x"] * terms["w_x"] + terms["v_y"] * terms["w_y"]
        return terms["w_t"] + moved - terms["lap_w"] / Re

    def ansatz(self, basis: Tensor, initial_condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """Fields that vanish at t = 0 and have no spatial mean; the initial vorticity at every time."""
        nt = self.grid[0]
        t = torch.linspace(0, self.MOLLIFIER, nt, dtype=basis.dtype, device=basis.device)
        fields = basis * t[:, None, None, None]
        fields = fields - fields.mean((2, 3), keepdim=True)
        return fields, initial_condition[:, None].expand(-1, nt, -1, -1)

    def coordinates(self) -> tuple[Tensor, ...]:
        """``t/t_max`` and the points i/n."""
        nt, nx, ny = self.grid
        space = (torch.arange(n, dtype=torch.float64) / n for n in (nx, ny))
        return torch.linspace(0, 1, nt, dtype=torch.float64), *space


def _time_derivative(u: Tensor, dt: float, axis: int) -> Tensor:
    """Second order, one-sided at the ends, as `torch.gradient` has it, whose backward pass takes twice as long."""
    n = u.shape[axis]
    inner = u.narrow(axis, 2, n - 2) - u.narrow(axis, 0, n - 2)
    ends = torch.stack((u.narrow(axis, 0, 3), -u.narrow(axis, n - 3, 3).flip(axis))).movedim(axis, 0)
    first, last = (-3 * ends[0] + 4 * ends[1] - ends[2]).unsqueeze(axis).unbind(0)
    return torch.cat((first, inner, last), axis) / (2 * dt)


def wavenumbers(nx: int, ny: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Angular wavenumbers kx (nx, 1), ky (1, ny//2 + 1) of `rfft2` for odd derivatives, and kx² + ky².

    The odd derivatives of the highest wave of an even number of points are zero: it has no sign.
    """
    kx = 2 * math.pi * torch.fft.fftfreq(nx, 1 / nx, dtype=like.dtype, device=like.device)[:, None]
    ky = 2 * math.pi * torch.fft.rfftfreq(ny, 1 / ny, dtype=like.dtype, device=like.device)[None]
    squared = kx**2 + ky**2
    if nx % 2 == 0:
        kx = kx.clone()
        kx[nx // 2] = 0
    if ny % 2 == 0:
        ky = ky.clone()
        ky[:, -1] = 0
    return kx, ky, squared


def spectral_terms(w_hat: Tensor, waves: tuple[Tensor, Tensor, Tensor], shape: tuple[int, int]) -> Terms:
    """Velocity, gradient and Laplacian of a vorticity from its transform (..., nx, ny//2 + 1)."""
    kx, ky, squared = waves
    psi = w_hat / squared.clamp(min=1.0)  # lap psi = -w; the mean of psi is free, and wavenumbers start at 2π
    parts = {"v_x": 1j * ky * psi, "v_y": -1j * kx * psi, "w_x": 1j * kx * w_hat, "w_y": 1j * ky * w_hat}
    parts["lap_w"] = -squared * w_hat
    return {name: torch.fft.irfft2(part, s=shape) for name, part in parts.items()}
