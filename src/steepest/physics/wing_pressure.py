r"""Pressure on a wing from its surface grid and the flow, by attention over Riemannian features of the surface.

    channels(p) = (x, y, z, g_11, g_12, g_22, Γ^k_ij, K) at the grid point p        each normalized
    tokens      = patches of the grid's channels -> linear -> + position -> n_layers of pre-norm attention
    q(p)        = MLP(channels about p, α, M)
    CP(p)       = MLP(LayerNorm(q(p), attention(q(p); tokens), α, M))

Paper: hu2024incorporating, whose point is the extra channels: what a network has to find out from coordinates by
itself, the surface's metric, connection and curvature, is handed to it. `features="none"` is the network without
them, its baseline.

| here | paper |
|---|---|
| features="none" | DAN, the deep attention network on coordinates |
| features="intrinsic" | metric, connection coefficients, curvature |
| neighbourhood=3 | features in a neighbourhood of the point (second version of the paper) |

Departures: (1) the paper's network for wings is not published in detail; ours is the one above, and both variants
share it. (2) Which components of the curvature enter is derived: the Gaussian curvature, the only independent one of
a surface. (3) Features pass through asinh(x / median |x|) before they are standardized: curvature spans six decades
along a section.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.errors import at_least, check, kind_error, nonnegative, one_of, positive, value_error
from steepest.core.random import torch_generator
from steepest.geometry.surface import EXTRINSIC, INTRINSIC, surface_features
from steepest.physics._wing_network import COORDINATES, AttentionNetwork, Normaliser, first_weights, neighbors, patches

__all__ = ["WingPressureModel", "train_wing_pressure"]

WARM_UP = 0.3  # share of the steps in which the one-cycle schedule rises, torch's default
IN_MEMORY = 100_000  # samples; the channels of more lie in a temporary file that batches are read from
CHUNK = 4096


class WingPressureModel(nn.Module):
    """Attention network for the pressure coefficient on a structured surface.

    Parameters
    ----------
    n_u, n_v : int
        Size of the grid of panel centers, where CP lives; each at least 4.
    features : "intrinsic", "none", "all" or sequence of str
        Channels beside the coordinates: the ten intrinsic ones of `steepest.geometry.surface_features`, none, these and
        the mean and principal curvatures, or names of that function.
    d_model, n_heads, n_layers : int
        Width, heads (a divisor of the width) and encoder layers; 64, 4, 4 by default.
    patch : pair of int
        Size of a token on the grid, which is padded by zeros to a multiple; 4 × 4 by default.
    neighbourhood : int
        Odd; 3 gives every query the channels of its 3 × 3 neighbors (the edge repeated), 1 (default) its own.
    seed : int, torch.Generator or None
        Stream of the first weights. For one seed all parts whose shape does not depend on `features` and
        `neighbourhood` start from the same weights.

    Attributes
    ----------
    channel_names : tuple of str
        "x", "y", "z", then the features.

    Raises
    ------
    ValueError
        Unknown features, sizes out of range, a width that the heads do not divide.

    Examples
    --------
    >>> from steepest.physics import make_wing_dataset
    >>> data = make_wing_dataset(2, n_u=9, n_v=5, conditions_per_wing=2)
    >>> model = WingPressureModel(8, 4, features=["g_11", "K"], d_model=8, n_layers=1)
    >>> model.channel_names
    ('x', 'y', 'z', 'g_11', 'K')
    >>> _ = model.fit_normaliser(data.points, data.conditions, data.cp)
    >>> model(data.points, data.conditions).shape
    torch.Size([4, 8, 4])
    """

    def __init__(
        self,
        n_u: int,
        n_v: int,
        *,
        features: str | Sequence[str] = "intrinsic",
        d_model: int = 64,
        n_heads: int = 4,
        n_layers: int = 4,
        patch: tuple[int, int] = (4, 4),
        neighbourhood: int = 1,
        seed: int | torch.Generator | None = 0,
    ) -> None:
        super().__init__()
        for name, size, least in (("n_u", n_u, 4), ("n_v", n_v, 4), ("d_model", d_model, 1), ("n_heads", n_heads, 1)):
            check(name, size, at_least(least, integer=True))
        check("n_layers", n_layers, nonnegative(integer=True))
        if d_model % n_heads:
            raise value_error("d_model", f"a multiple of n_heads={n_heads}", d_model)
        if isinstance(patch, str) or not hasattr(patch, "__len__") or len(patch) != 2:
            raise value_error("patch", "a pair of sizes", patch)
        for size in patch:
            check("patch", size, at_least(1, integer=True))
        check("neighbourhood", neighbourhood, at_least(1, integer=True))
        if neighbourhood % 2 == 0:
            raise value_error("neighbourhood", "odd", neighbourhood)
        self.n_u, self.n_v, self.patch, self.neighbourhood = n_u, n_v, (patch[0], patch[1]), neighbourhood
        self.channel_names = COORDINATES + _feature_names(features)
        n_channels = len(self.channel_names)
        n_tokens = -(-n_u // patch[0]) * -(-n_v // patch[1])
        with torch.device("meta"):  # shapes only: torch's own first weights would come from the global generator
            self.attention = AttentionNetwork(
                n_patch=n_channels * patch[0] * patch[1],
                n_query=n_channels * neighbourhood**2 + 2,
                n_tokens=n_tokens,
                d_model=d_model,
                n_heads=n_heads,
                n_layers=n_layers,
            )
        self.attention.to_empty(device="cpu")
        first_weights(self.attention, torch_generator(seed))
        self.normaliser = Normaliser(n_channels)

    def fit_normaliser(self, points: Tensor, conditions: Tensor, cp: Tensor) -> WingPressureModel:
        """Take medians, means and standard deviations from training wings; they are saved with the weights.

        Parameters
        ----------
        points : (N, n_u, n_v, 3)
        conditions : (N, 2)
            Angle of attack in degrees, Mach number.
        cp : (N, n_u, n_v)

        Returns
        -------
        WingPressureModel
            Itself.
        """
        self._check(points, conditions, cp)
        self.normaliser.fit(self._raw_channels(points), conditions, cp)
        return self

    def local_channels(self, points: Tensor) -> Tensor:
        """Normalized channels (B, n_u, n_v, C) of points (B, n_u, n_v, 3), computed in float64.

        Raises
        ------
        RuntimeError
            Before `fit_normaliser`.
        """
        self.normaliser.check_fitted()
        self._check(points)
        return self.normaliser.channels(self._raw_channels(points)).to(self.attention.positions)

    def forward(self, points: Tensor, conditions: Tensor) -> Tensor:
        """Pressure coefficient (B, n_u, n_v).

        Parameters
        ----------
        points : (B, n_u, n_v, 3)
            Panel centers.
        conditions : (B, 2)
            Angle of attack in degrees, Mach number.

        Raises
        ------
        RuntimeError
            Before `fit_normaliser`, or a state that holds what it found, was loaded.
        ValueError
            A grid of another size, batches of different size, values that are not finite.
        """
        self._check(points, conditions)
        self.normaliser.check_fitted()
        scaled = self._normalized_cp(self.local_channels(points), self.normaliser.conditions(conditions))
        return scaled * self.normaliser.cp_std + self.normaliser.cp_mean

    def _normalized_cp(self, channels: Tensor, conditions: Tensor) -> Tensor:
        """The network itself, from normalized channels and conditions to normalized CP."""
        dtype = self.attention.positions.dtype
        tokens, around = patches(channels, self.patch), neighbors(channels, self.neighbourhood)
        return self.attention(tokens, around.flatten(1, 2), conditions.to(dtype)).unflatten(1, (self.n_u, self.n_v))

    def _raw_channels(self, points: Tensor) -> Tensor:
        points = points.detach().double()
        names = self.channel_names[3:]
        if not names:
            return points
        return torch.cat((points, surface_features(points, channels=names)), -1)

    def _check(self, points: Tensor, conditions: Tensor | None = None, cp: Tensor | None = None) -> None:
        expected: list[tuple[str, Any, tuple[int, ...]]] = [("points", points, (self.n_u, self.n_v, 3))]
        expected += [] if conditions is None else [("conditions", conditions, (2,))]
        expected += [] if cp is None else [("cp", cp, (self.n_u, self.n_v))]
        for name, value, shape in expected:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise kind_error(name, "a floating tensor", value)
            if value.ndim != len(shape) + 1 or tuple(value.shape[1:]) != shape:
                raise value_error(name, f"of shape (B, {', '.join(map(str, shape))})", value)
            if len(value) != len(points):
                raise value_error(name, f"of {len(points)} samples, as points are", value)
            if not bool(torch.isfinite(value).all()):
                raise value_error(name, "finite", value)


def train_wing_pressure(
    model: WingPressureModel,
    data: Any,
    *,
    epochs: int = 200,
    batch_size: int = 16,
    lr: float = 3e-3,
    weight_decay: float = 1e-4,
    validation: Any = None,
    seed: int | torch.Generator | None = 0,
    callback: Callable[[int, dict[str, list[float]]], Any] | None = None,
) -> dict[str, list[float]]:
    """Fit the normaliser and the weights: mean squared error, AdamW, one cycle of the learning rate, all epochs.

    Parameters
    ----------
    model : WingPressureModel
        Trained in place, from the weights it has, on the device it is on.
    data : WingData
        Or anything with tensors `points`, `conditions` and `cp`, which may be mapped from files. Channels are computed
        once; those of more than 1e5 samples are written to a temporary file and read batch by batch, and the normaliser
        is then fitted on 1e5 samples, evenly spaced.
    epochs, batch_size : int
        200 and 16 by default.
    lr : float
        Peak of the one-cycle schedule, 3e-3 by default.
    weight_decay : float
        1e-4 by default.
    validation : WingData, optional
        Wings on which the error is taken after every epoch; nothing is chosen by it.
    seed : int, torch.Generator or None
        Order of the batches, the same for every model.
    callback : callable, optional
        ``callback(epoch, history)`` after every epoch, counted from 1.

    Returns
    -------
    dict
        `train_mse` (the mean over an epoch's batches, as they were met) and `val_mse` (empty without `validation`), one
        number per epoch, in units of CP².

    Raises
    ------
    ValueError
        Sizes that differ from the model's or from one another, values that are not finite, settings out of range.
    FloatingPointError
        The loss is not finite; lower `lr`.

    Examples
    --------
    >>> from steepest.physics import make_wing_dataset
    >>> data = make_wing_dataset(4, n_u=9, n_v=5, conditions_per_wing=2)
    >>> model = WingPressureModel(8, 4, d_model=16, n_layers=1)
    >>> history = train_wing_pressure(model, data, epochs=20)
    >>> history["train_mse"][-1] < 0.5 * history["train_mse"][0]
    True
    """
    if not isinstance(model, WingPressureModel):
        raise kind_error("model", "a WingPressureModel", model)
    check("epochs", epochs, at_least(1, integer=True))
    check("batch_size", batch_size, at_least(1, integer=True))
    check("lr", lr, positive())
    check("weight_decay", weight_decay, nonnegative())
    model._check(data.points, data.conditions, data.cp)
    if validation is not None:
        model._check(validation.points, validation.conditions, validation.cp)
    generator = torch_generator(seed)
    n, where = len(data.points), model.attention.positions.device
    some = slice(None) if n <= IN_MEMORY else torch.linspace(0, n - 1, IN_MEMORY, dtype=torch.float64).long()
    model.fit_normaliser(data.points[some], data.conditions[some], data.cp[some])
    training = _prepared(model, data)
    held_out = None if validation is None else _prepared(model, validation)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    total = epochs * -(-n // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(total, 2), pct_start=WARM_UP)
    unit = float(model.normaliser.cp_std) ** 2
    history: dict[str, list[float]] = {"train_mse": [], "val_mse": []}
    for epoch in range(1, epochs + 1):
        model.train()
        squared = torch.zeros((), device=where)
        for rows in torch.randperm(n, generator=generator).split(batch_size):
            channels, conditions, cp = (tensor[rows.to(tensor.device)].to(where) for tensor in training)
            loss = nn.functional.mse_loss(model._normalized_cp(channels, conditions), cp)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            squared += loss.detach() * len(rows)
        history["train_mse"].append(unit * float(squared) / n)
        if not torch.isfinite(squared):
            raise FloatingPointError(f"the training loss is not finite in epoch {epoch}; lower lr={lr:g}")
        if held_out is not None:
            history["val_mse"].append(unit * _mean_squared_error(model, held_out, batch_size))
        if callback is not None:
            callback(epoch, history)
    model.eval()
    return history


def _feature_names(features: Any) -> tuple[str, ...]:
    if isinstance(features, str):
        check("features", features, one_of("intrinsic", "none", "all"))
        return {"intrinsic": INTRINSIC, "none": (), "all": INTRINSIC + EXTRINSIC}[features]
    known = INTRINSIC + EXTRINSIC
    names = tuple(features) if isinstance(features, Sequence) else (features,)
    if len(set(names)) < len(names) or not set(names) <= set(known):
        expected = f"'intrinsic', 'none', 'all' or a sequence of different names among {', '.join(known)}"
        raise value_error("features", expected, features)
    return names


def _prepared(model: WingPressureModel, data: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized channels (in memory or in a file), and conditions and CP where the model is."""
    where = model.attention.positions
    conditions, cp = model.normaliser.conditions(data.conditions.to(where)), model.normaliser.cp(data.cp.to(where))
    if len(data.points) <= IN_MEMORY:
        return model.local_channels(data.points.to(where.device)), conditions, cp
    shape = (*data.points.shape[:3], len(model.channel_names))
    with tempfile.NamedTemporaryFile(prefix="steepest-channels-") as file:  # gone from the folder, mapped while in use
        channels = torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=where.dtype).reshape(shape)
    for start in range(0, len(channels), CHUNK):
        rows = slice(start, start + CHUNK)
        channels[rows] = model.local_channels(data.points[rows].to(where.device)).cpu()
    return channels, conditions, cp


@torch.no_grad()
def _mean_squared_error(model: WingPressureModel, data: tuple[Tensor, Tensor, Tensor], batch_size: int) -> float:
    model.eval()
    where = model.attention.positions.device
    batches = zip(*(tensor.split(8 * batch_size) for tensor in data), strict=True)
    squared = sum(float(((model._normalized_cp(x.to(where), c) - cp) ** 2).sum()) for x, c, cp in batches)
    return squared / data[2].numel()
