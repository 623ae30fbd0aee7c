"""The network of `wing_pressure` between normalized channels and normalized CP, and the scales on either side of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steepest.core.errors import value_error

__all__ = ["COORDINATES", "AttentionNetwork", "Normaliser", "first_weights", "neighbors", "patches"]

COORDINATES = ("x", "y", "z")


class AttentionNetwork(nn.Module):
    """From patches (B, T, ·), surroundings of P points (B, P, ·) and conditions (B, 2) to numbers (B, P)."""

    def __init__(self, n_patch: int, n_query: int, n_tokens: int, d_model: int, n_heads: int, n_layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(n_patch, d_model)
        self.positions = nn.Parameter(torch.empty(n_tokens, d_model))
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d_model, n_heads, 2 * d_model, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(n_layers)
        )
        self.query = nn.Sequential(nn.Linear(n_query, d_model), nn.GELU(), nn.Linear(d_model, d_model))
        self.cross = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
        self.head = nn.Sequential(
            nn.LayerNorm(2 * d_model + 2),
            nn.Linear(2 * d_model + 2, 2 * d_model),
            nn.GELU(),
            nn.Linear(2 * d_model, 2 * d_model),
            nn.GELU(),
            nn.Linear(2 * d_model, 1),
        )

    def forward(self, patches: Tensor, around: Tensor, conditions: Tensor) -> Tensor:
        """Embed and encode the patches, let every point attend to them."""
        tokens = self.embed(patches) + self.positions
        for layer in self.encoder:
            tokens = layer(tokens)
        flow = conditions[:, None].expand(-1, around.shape[1], -1)
        query = self.query(torch.cat((around, flow), -1))
        attended = self.cross(query, tokens, tokens, need_weights=False)[0]
        return self.head(torch.cat((query, attended, flow), -1))[..., 0]


class Normaliser(nn.Module):
    """Scales of channels, conditions and CP, kept as buffers."""

    channel_mean: Tensor
    channel_std: Tensor
    condition_mean: Tensor
    condition_std: Tensor
    cp_mean: Tensor
    cp_std: Tensor
    median: Tensor
    fitted: Tensor

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        for name, size in (("channel", (n_channels,)), ("condition", (2,)), ("cp", ())):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.register_buffer("median", torch.ones(n_channels - len(COORDINATES)))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, channels: Tensor, conditions: Tensor, cp: Tensor) -> None:
        """Take the scales from raw channels (N, n_u, n_v, C), conditions and CP."""
        flat = channels.flatten(0, -2)
        if not bool(torch.isfinite(flat).all()):
            raise value_error("points", "grids whose rows and columns are nowhere tangent or of no length", channels)
        size = flat[:, len(COORDINATES) :].abs()
        self.median.copy_(_nonzero(size.median(0).values, size.mean(0)))
        for name, values in (("channel", self._squashed(flat)), ("condition", conditions.double())):
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            getattr(self, f"{name}_std").copy_(_nonzero(values.std(0, correction=0)))
        self.cp_mean.copy_(cp.double().mean())
        self.cp_std.copy_(_nonzero(cp.double().std(correction=0)))
        self.fitted.fill_(True)

    def check_fitted(self) -> None:
        """Raise unless `fit` was called or its state loaded."""
        if not self.fitted:
            raise RuntimeError("call fit_normaliser (train_wing_pressure does) or load a fitted state before forward")

    def channels(self, channels: Tensor) -> Tensor:
        """Normalize channels."""
        return (self._squashed(channels) - self.channel_mean) / self.channel_std

    def conditions(self, conditions: Tensor) -> Tensor:
        """Normalize conditions."""
        return (conditions - self.condition_mean) / self.condition_std

    def cp(self, cp: Tensor) -> Tensor:
        """Normalize CP."""
        return (cp - self.cp_mean) / self.cp_std

    def _squashed(self, channels: Tensor) -> Tensor:
        coordinates, features = channels.split((len(COORDINATES), len(self.median)), -1)
        return torch.cat((coordinates, torch.asinh(features / self.median)), -1)


@torch.no_grad()
def first_weights(network: AttentionNetwork, generator: torch.Generator) -> None:
    """Xavier's uniform weights, zero biases, small positions; what depends on the channels comes last in the stream."""
    last = {"embed.weight", "query.0.weight"}
    for _, parameter in sorted(network.named_parameters(), key=lambda named: named[0] in last):  # stable
        if parameter is network.positions:
            parameter.normal_(0.0, 0.02, generator=generator)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter, generator=generator)
        else:
            parameter.zero_()
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)


def patches(channels: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut (B, n_u, n_v, C) into tokens (B, T, patch_u · patch_v · C), padded by zeros behind."""
    n_u, n_v = channels.shape[1:3]
    padded = nn.functional.pad(channels, (0, 0, 0, -n_v % patch[1], 0, -n_u % patch[0]))
    blocks = padded.unflatten(2, (-1, patch[1])).unflatten(1, (-1, patch[0]))  # (B, T_u, patch_u, T_v, patch_v, C)
    return blocks.transpose(2, 3).flatten(3, 5).flatten(1, 2)


def neighbors(channels: Tensor, width: int) -> Tensor:
    """Stack the channels of the width × width neighbors, row by row, the edge repeated: (B, n_u, n_v, width² · C)."""
    n_u, n_v = channels.shape[1:3]
    offsets = range(-(width // 2), width // 2 + 1)
    rows = [torch.arange(n_u, device=channels.device).add(k).clamp(0, n_u - 1) for k in offsets]
    columns = [torch.arange(n_v, device=channels.device).add(k).clamp(0, n_v - 1) for k in offsets]
    return torch.cat([channels[:, i][:, :, j] for i in rows for j in columns], -1) if width > 1 else channels


def _nonzero(scale: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """Replace zeros, of a constant channel, by another scale or one."""
    scale = scale if otherwise is None else torch.where(scale > 0, scale, otherwise)
    return torch.where(scale > 0, scale, 1.0)
