r"""Metric, connection and curvature of a surface r(u, v) in space, given by a function or by points on a grid.

Subscripts are partial derivatives, i, j, k, l in {1, 2} are u, v, and n = r_u × r_v / \|r_u × r_v\| is the normal:

    g_ij = r_i·r_j                     h_ij = n·r_ij                   Γ^k_ij = g^{kl} (r_ij·r_l)
    K = det h / det g                  H = ½ g^{ij} h_ij               κ = H ± sqrt(H² - K)
    R_1212 = K det g = det h           dA = sqrt(det g) du dv

The features are those of hu2024incorporating: metric, Levi-Civita connection, curvature.

| here | paper |
|---|---|
| metric[i, j], inverse_metric | g_ij, g^{ij} |
| christoffel[k, i, j] | Γ^k_ij |
| riemann | R_1212 |

Departures: (1) which components of the curvature tensor enter the features is derived, not taken over: in two
dimensions R_1212 is the only independent one, and K = R_1212/det g does not depend on the parameters. (2) H² - K is
computed as ((S_11 - S_22)/2)² + S_12 S_21 with the shape operator S = g⁻¹h, the same number without its cancellation
near umbilics.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.func import jacfwd, vmap

from steepest.core.errors import boolean, check, kind_error, one_of, positive, value_error
from steepest.geometry._differences import axis_derivatives, smallest_size
from steepest.geometry.graph import GeometryWarning

__all__ = ["SurfaceGeometry", "grid_geometry", "surface_features", "surface_geometry"]

Array = TypeVar("Array", torch.Tensor, np.ndarray)

INTRINSIC = (
    *("g_11", "g_12", "g_22"),
    *("Gamma1_11", "Gamma1_12", "Gamma1_22", "Gamma2_11", "Gamma2_12", "Gamma2_22"),
    "K",
)
EXTRINSIC = ("H", "kappa_1", "kappa_2")

SINGULAR = 1e-14  # of the largest det g: there the parameters have a pole
FINE = 1e-3  # spacing below which second differences in single precision drown in round-off


@dataclass(frozen=True)
class SurfaceGeometry(Generic[Array]):
    """Geometry of a surface at each of its points; tensors, or arrays where arrays were given.

    At a pole of the parametrisation (det g ≤ 1e-14 of the largest) all but the metric and the area element is NaN.

    Attributes
    ----------
    metric, inverse_metric : (..., 2, 2)
        First fundamental form g_ij and its inverse g^{ij}.
    second_form : (..., 2, 2)
        h_ij = n·r_ij.
    christoffel : (..., 2, 2, 2)
        Γ^k_ij, indexed [k, i, j].
    normal : (..., 3)
        Unit normal along r_u × r_v.
    principal_curvatures : (..., 2)
        The larger first. A sphere of radius a with outward normal has -1/a twice.
    gaussian_curvature, mean_curvature : (...)
    area_element : (...)
        sqrt(det g).
    riemann : (...)
        R_1212 = K det g.

    Examples
    --------
    >>> uv = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> cylinder = surface_geometry(lambda p: torch.stack((2 * p[0].cos(), 2 * p[0].sin(), p[1])), uv)
    >>> cylinder.principal_curvatures
    tensor([[ 0.0000, -0.5000]], dtype=torch.float64)
    """

    metric: Array
    inverse_metric: Array
    second_form: Array
    christoffel: Array
    normal: Array
    principal_curvatures: Array
    gaussian_curvature: Array
    mean_curvature: Array
    area_element: Array
    riemann: Array


def surface_geometry(f: Callable[[torch.Tensor], torch.Tensor], uv: Array) -> SurfaceGeometry[Array]:
    """Geometry of the surface r = f(u, v), by automatic differentiation.

    Parameters
    ----------
    f : callable
        Maps a tensor (2,) to a tensor (3,), in operations of torch that `torch.func.vmap` can batch.
    uv : torch.Tensor or numpy.ndarray, (..., 2)
        Parameters, floating. What is returned has their kind, precision and device, and tensors can be differentiated.

    Returns
    -------
    SurfaceGeometry

    Warns
    -----
    GeometryWarning
        Poles of the parametrisation, with their number.

    Raises
    ------
    TypeError
        `uv` is no floating tensor or array.
    ValueError
        A last size of `uv` other than 2, a value that is not finite, or an `f` that does not give three numbers.

    Examples
    --------
    >>> def sphere(p):
    ...     return torch.stack((p[0].sin() * p[1].cos(), p[0].sin() * p[1].sin(), p[0].cos()))
    >>> geometry = surface_geometry(sphere, np.array([[0.4, 1.0], [1.2, 5.0]]))
    >>> geometry.gaussian_curvature.round(12)
    array([1., 1.])
    """
    if not callable(f):
        raise kind_error("f", "a function of a (2,) tensor", f)
    parameters = _floating("uv", uv)
    if parameters.ndim < 1 or parameters.shape[-1] != 2 or not parameters.numel():
        raise value_error("uv", "of shape (..., 2)", uv)
    flat = parameters.reshape(-1, 2)
    shape = getattr(f(flat[0]), "shape", None)
    if shape is None or tuple(shape) != (3,):
        raise value_error("f", "a function that returns a tensor of shape (3,)", shape and tuple(shape))
    lead = parameters.shape[:-1]
    first = vmap(jacfwd(f))(flat).reshape(*lead, 3, 2).movedim(-2, -1)
    second = vmap(jacfwd(jacfwd(f)))(flat).reshape(*lead, 3, 2, 2).movedim(-3, -1)
    return _like(uv, _geometry(first, second, tuple(range(len(lead)))))


def grid_geometry(
    points: Array,
    *,
    spacing: Sequence[float] = (1.0, 1.0),
    periodic: Sequence[bool] = (False, False),
    order: int = 2,
    u: Array | None = None,
    v: Array | None = None,
) -> SurfaceGeometry[Array]:
    """Geometry of a surface known by points on a grid, by finite differences.

    Parameters
    ----------
    points : torch.Tensor or numpy.ndarray, (..., n_u, n_v, 3)
        Points r(u_i, v_j), floating; leading axes are separate surfaces.
    spacing : pair of float
        Steps in u and in v; default 1.
    periodic : pair of bool
        Whether the grid closes along u, along v; the closing point is not repeated. At other edges the stencils are
        one-sided and of the same order.
    order : int
        2 (default) or 4: the error falls with this power of the spacing.
    u, v : (n_u,) and (n_v,), optional
        The parameters' values where they are not evenly spaced, strictly monotonic, in place of `spacing` (chain rule).
        A periodic axis needs one value more, which closes the period.

    Returns
    -------
    SurfaceGeometry

    Warns
    -----
    GeometryWarning
        Poles of the parametrisation; a spacing below 1e-3 in single precision.

    Raises
    ------
    TypeError
        Points that are no floating tensor or array.
    ValueError
        Shapes, values that are not finite, or too few points: an axis needs `order` + 2, a periodic one `order` + 1.

    Examples
    --------
    >>> angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    >>> a, b = np.meshgrid(angle, angle, indexing="ij")
    >>> ring = 2 + 0.7 * np.cos(a)
    >>> torus = np.stack((ring * np.cos(b), ring * np.sin(b), 0.7 * np.sin(a)), -1)
    >>> geometry = grid_geometry(torus, spacing=(angle[1], angle[1]), periodic=(True, True), order=4)
    >>> abs(float((geometry.gaussian_curvature * geometry.area_element).sum())) < 1e-6  # Gauss-Bonnet
    True
    """
    grid = _floating("points", points)
    check("order", order, one_of(2, 4))
    wrap = _pair("periodic", periodic, boolean())
    steps = _pair("spacing", spacing, positive())
    if grid.ndim < 3 or grid.shape[-1] != 3:
        raise value_error("points", "of shape (..., n_u, n_v, 3)", points)
    for name, n, closed in zip(("n_u", "n_v"), grid.shape[-3:-1], wrap, strict=True):
        if n < smallest_size(order, closed):
            kind = "periodic" if closed else "open"
            expected = f"of at least {smallest_size(order, closed)} points along {name} ({kind}, order {order})"
            raise value_error("points", expected, points)
    scale_u: float | torch.Tensor = steps[0] if u is None else _parameter("u", u, grid, grid.shape[-3] + wrap[0])
    scale_v: float | torch.Tensor = steps[1] if v is None else _parameter("v", v, grid, grid.shape[-2] + wrap[1])
    _warn_fine(grid.dtype, scale_u, scale_v)
    axis_u, axis_v = grid.ndim - 3, grid.ndim - 2
    r_u, r_uu = axis_derivatives(grid, axis_u, order, wrap[0], scale_u)
    r_v, r_vv = axis_derivatives(grid, axis_v, order, wrap[1], scale_v)
    r_uv = axis_derivatives(r_u, axis_v, order, wrap[1], scale_v)[0]
    first = torch.stack((r_u, r_v), -2)
    second = torch.stack((torch.stack((r_uu, r_uv), -2), torch.stack((r_uv, r_vv), -2)), -3)
    return _like(points, _geometry(first, second, (axis_u, axis_v)))


def surface_features(
    points: Array,
    *,
    spacing: Sequence[float] | None = None,
    periodic: Sequence[bool] = (False, False),
    order: int = 2,
    extrinsic: bool = False,
    channels: Sequence[str] | None = None,
    return_names: bool = False,
    u: Array | None = None,
    v: Array | None = None,
) -> Any:
    """Stack the geometry of gridded surfaces as channels, for learning.

    Parameters
    ----------
    points : torch.Tensor or numpy.ndarray, (..., n_u, n_v, 3)
    spacing : pair of float, optional
        Steps in u and v. By default both parameters run over [0, 1]: 1/(n - 1), or 1/n where periodic.
    periodic, order, u, v
        As in `grid_geometry`.
    extrinsic : bool
        Append mean and principal curvatures, which depend on how the surface lies in space.
    channels : sequence of str, optional
        Names to keep, in this order; any of the 13, whatever `extrinsic` says.
    return_names : bool
        Return the names as well.

    Returns
    -------
    features : (..., n_u, n_v, C), of the kind of `points`
        In the order g_11 g_12 g_22, Gamma1_11 Gamma1_12 Gamma1_22 Gamma2_11 Gamma2_12 Gamma2_22, K, then H kappa_1
        kappa_2.
    names : tuple of str
        Only with `return_names`.

    Raises
    ------
    ValueError
        An unknown or repeated channel, and what `grid_geometry` raises.

    Examples
    --------
    >>> x, y = np.meshgrid(np.linspace(0, 3, 5), np.linspace(0, 2, 6), indexing="ij")
    >>> features, names = surface_features(np.stack((x, y, x * y), -1), channels=["g_11", "K"], return_names=True)
    >>> features.shape, names
    ((5, 6, 2), ('g_11', 'K'))
    """
    check("extrinsic", extrinsic, boolean())
    check("return_names", return_names, boolean())
    known = INTRINSIC + EXTRINSIC
    names = INTRINSIC + EXTRINSIC * extrinsic if channels is None else tuple(channels)
    if isinstance(channels, str) or not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise value_error("channels", f"a sequence of different names among {', '.join(known)}", channels)
    wrap = _pair("periodic", periodic, boolean())
    if spacing is None:
        shape = np.shape(points)
        if len(shape) < 3:
            raise value_error("points", "of shape (..., n_u, n_v, 3)", points)
        spacing = [1 / max(n - 1 + closed, 1) for n, closed in zip(shape[-3:-1], wrap, strict=True)]
    geometry = grid_geometry(points, spacing=spacing, periodic=periodic, order=order, u=u, v=v)
    values = [_channel(geometry, name) for name in names]
    features = torch.stack(values, -1) if isinstance(points, torch.Tensor) else np.stack(values, -1)
    return (features, names) if return_names else features


def _geometry(first: torch.Tensor, second: torch.Tensor, axes: tuple[int, ...]) -> SurfaceGeometry[torch.Tensor]:
    """From r_i (..., 2, 3) and r_ij (..., 2, 2, 3); `axes` span one surface."""
    metric = first @ first.mT
    cross = torch.linalg.cross(first[..., 0, :], first[..., 1, :])
    area = torch.linalg.vector_norm(cross, dim=-1)  # sqrt(det g) without the cancellation of g_11 g_22 - g_12²
    singular = area**2 <= SINGULAR * (area.amax(axes, keepdim=True) if axes else area) ** 2
    if bool(singular.any()):
        text = f"the parametrisation is singular at {int(singular.sum())} of {singular.numel()} points"
        warnings.warn(f"{text} (det g <= {SINGULAR:g} of its largest): their curvatures are NaN", GeometryWarning, 3)
    area_safe = torch.where(singular, 1.0, area)  # so that gradients at the other points stay finite
    normal = cross / area_safe[..., None]
    second_form = (second * normal[..., None, None, :]).sum(-1)
    adjugate = torch.stack((metric[..., 1, 1], -metric[..., 0, 1], -metric[..., 1, 0], metric[..., 0, 0]), -1)
    inverse = adjugate.unflatten(-1, (2, 2)) / (area_safe**2)[..., None, None]
    lowered = (second[..., None, :, :, :] * first[..., :, None, None, :]).sum(-1)  # r_ij·r_l, indexed [l, i, j]
    christoffel = (inverse[..., :, :, None, None] * lowered[..., None, :, :, :]).sum(-3)
    riemann = second_form[..., 0, 0] * second_form[..., 1, 1] - second_form[..., 0, 1] ** 2
    shape = inverse @ second_form
    mean = (shape[..., 0, 0] + shape[..., 1, 1]) / 2
    squared = ((shape[..., 0, 0] - shape[..., 1, 1]) / 2) ** 2 + shape[..., 0, 1] * shape[..., 1, 0]
    umbilic = squared <= 0  # where the root has no derivative
    root = torch.where(umbilic, 0.0, torch.where(umbilic, 1.0, squared).sqrt())

    def regular(value: torch.Tensor) -> torch.Tensor:
        where = singular.reshape(singular.shape + (1,) * (value.ndim - singular.ndim))
        return torch.where(where, torch.nan, value)

    return SurfaceGeometry(
        metric=metric,
        inverse_metric=regular(inverse),
        second_form=regular(second_form),
        christoffel=regular(christoffel),
        normal=regular(normal),
        principal_curvatures=regular(torch.stack((mean + root, mean - root), -1)),
        gaussian_curvature=regular(riemann / area_safe**2),
        mean_curvature=regular(mean),
        area_element=area,
        riemann=regular(riemann),
    )


def _channel(geometry: SurfaceGeometry[Any], name: str) -> Any:
    if name.startswith("g_"):
        return geometry.metric[..., int(name[2]) - 1, int(name[3]) - 1]
    if name.startswith("Gamma"):
        return geometry.christoffel[..., int(name[5]) - 1, int(name[7]) - 1, int(name[8]) - 1]
    if name.startswith("kappa"):
        return geometry.principal_curvatures[..., int(name[6]) - 1]
    return geometry.gaussian_curvature if name == "K" else geometry.mean_curvature


def _floating(name: str, value: Any) -> torch.Tensor:
    """Check a floating tensor or array and give it as a tensor; both share their memory."""
    if not isinstance(value, torch.Tensor | np.ndarray):
        raise kind_error(name, "a torch.Tensor or a numpy.ndarray", value)
    if str(value.dtype).rsplit(".", maxsplit=1)[-1] not in ("float32", "float64"):
        raise kind_error(name, "of a floating dtype, single or double precision", value)
    tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    if not bool(torch.isfinite(tensor).all()):
        raise value_error(name, "finite", value)
    return tensor


def _pair(name: str, values: Any, limit: Any) -> tuple[Any, Any]:
    if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != 2:
        raise value_error(name, "a pair, one for u and one for v", values)
    for value in values:
        check(name, value, limit)
    return values[0], values[1]


def _parameter(name: str, values: Any, grid: torch.Tensor, n: int) -> torch.Tensor:
    tensor = torch.as_tensor(values, dtype=grid.dtype, device=grid.device)
    if tensor.shape != (n,):
        raise value_error(name, f"of shape ({n},)", values)
    steps = tensor.diff()
    if not bool(((steps > 0).all() | (steps < 0).all()).item()):
        raise value_error(name, "finite and strictly monotonic", values)
    return tensor


def _warn_fine(dtype: torch.dtype, *scales: float | torch.Tensor) -> None:
    steps = [float(s.diff().abs().min()) if isinstance(s, torch.Tensor) else s for s in scales]
    if dtype == torch.float32 and min(steps) < FINE:
        text = f"second differences in single precision lose 1e-7/h², and h is {min(steps):.2g}"
        warnings.warn(f"{text}; pass points in double precision", GeometryWarning, stacklevel=3)


def _like(given: Array, geometry: SurfaceGeometry[torch.Tensor]) -> SurfaceGeometry[Array]:
    if isinstance(given, torch.Tensor):
        return geometry
    return SurfaceGeometry(**{f.name: getattr(geometry, f.name).detach().numpy() for f in fields(geometry)})
