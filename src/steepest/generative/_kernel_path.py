"""The kernel regression that a network's training follows: with the full kernel, or through landmarks.

Noisings of one data point are consecutive rows (a block). What the stopping rule counts are data points: its
eigenvalues are those of the kernel averaged over blocks. Landmarks are all noisings of some data points; their own
eigenvalues over their number estimate the leading ones of the whole (williams2001using).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from steepest.core.linalg import operator_norm
from steepest.core.random import torch_generator
from steepest.generative._tangent_kernel import KernelGradientFlow, relu_ntk

__all__ = ["KernelPath"]

SAFETY = 0.9  # of the largest step that the kernel allows
CHUNK = 4096
NEGLIGIBLE = 1e-10  # share of the largest eigenvalue below which an inverse root amplifies round-off


@dataclass
class KernelPath:
    """Kernel regression after any number of steps.

    Attributes
    ----------
    flow : KernelGradientFlow
    anchors : Tensor (r, p)
        Points at which the kernel is evaluated: the rows, or landmarks.
    to_dual : Tensor or None
        From weights of features to coefficients at the landmarks.
    eigenvalues : Tensor (n,)
        Of K/n with blocks averaged, falling; zero beyond the landmarks' number.
    top : float
        Largest eigenvalue of K over the number of rows.
    step_size : float
    """

    flow: KernelGradientFlow
    anchors: Tensor
    to_dual: Tensor | None
    eigenvalues: Tensor
    top: float
    step_size: float

    @classmethod
    def build(
        cls,
        U: Tensor,  # (rows, p)
        Y: Tensor,  # (rows, d)
        *,
        step_size: float | None = None,
        block: int = 1,
        n_landmarks: int | None = None,
        seed: int = 0,
    ) -> Self:
        """Evaluate the kernel and decompose it; ``step_size=None`` takes 0.9 / lambda_max.

        Raises
        ------
        FloatingPointError
            The step is at least 1 / lambda_max.
        """
        if n_landmarks is None:
            K: Tensor = relu_ntk(U)
            top = operator_norm(K / len(U), seed=seed)
            step_size = _step_size(step_size, top)
            flow = KernelGradientFlow(K, Y, step_size=step_size)
            values = flow.eigenvalues if block == 1 else _block_eigenvalues(K, block)
            return cls(flow, U, None, values, top, step_size)
        n = len(U) // block
        chosen = torch.randperm(n, generator=torch_generator(seed))[: max(1, n_landmarks // block)]
        anchors = U.reshape(n, block, -1)[chosen].reshape(-1, U.shape[1])
        K = relu_ntk(anchors)
        values, vectors = torch.linalg.eigh(K)
        kept = values > NEGLIGIBLE * values[-1]
        to_dual = vectors[:, kept] / values[kept].sqrt()
        features = torch.cat([relu_ntk(part, anchors) @ to_dual for part in U.split(CHUNK)])
        top = operator_norm(features.T @ features / len(U), seed=seed)
        step_size = _step_size(step_size, top)
        flow = KernelGradientFlow.from_features(features, Y, step_size=step_size)
        few = _block_eigenvalues(K, block)
        return cls(flow, anchors, to_dual, torch.cat([few, few.new_zeros(n - len(few))]), top, step_size)

    def dual(self, k: int) -> Tensor:
        """Coefficients at the anchors after k steps, shape (r, d)."""
        weights: Tensor = self.flow.coef(k)
        return weights if self.to_dual is None else self.to_dual @ weights


def _step_size(given: float | None, top: float) -> float:
    step_size = SAFETY / top if given is None else given
    if step_size * top >= 1:
        raise FloatingPointError(
            f"learning_rate={step_size:.4g} is too large: training may diverge unless it is below 1 / lambda_max, and "
            f"lambda_max of the kernel over n is {top:.4g}"
        )
    return step_size


def _block_eigenvalues(K: Tensor, block: int) -> Tensor:
    """Eigenvalues of K/n, rows and columns averaged over blocks, n the number of blocks; falling."""
    n = len(K) // block
    averaged = K.reshape(n, block, n, block).mean((1, 3))
    return torch.linalg.eigvalsh(averaged / n).flip(0).clamp(min=0.0)
