"""Curvature of a model's loss on all data, on random batches and on single samples: what a batch spectrum measures.

Lanczos on Gauss-Newton or Hessian products gives the extremes of a matrix; batches are drawn without replacement. The
noise of the spiked model (see `batch_spectrum`) comes from batches, ``b (lambda_B - lambda) lambda`` or, where the bulk
hides lambda, ``b (lambda_B / 2)^2``; or from samples, ``E ||(H_i - H) v||^2`` along one direction v or random ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steepest.core.distributed import all_reduce_sum, group_rank, group_size
from steepest.core.errors import SteepestWarning, at_least, check, interval, kind_error, one_of, value_error
from steepest.core.random import child_seeds, fresh_seed, torch_generator
from steepest.curvature import CurvatureOperator, GGNOperator, HessianOperator, lanczos
from steepest.curvature.autodiff import model_output, select_parameters
from steepest.curvature.losses import LossFn
from steepest.curvature.vectors import probes
from steepest.landscape._learning_rates import effective_batch
from steepest.landscape._sample_noise import squared_deviation
from steepest.landscape._training import measuring, unwrap_model

__all__ = ["LOWER", "UPPER", "BatchCurvature", "warn_unresolved"]

LOWER, UPPER = 0, -1  # ends of a spectrum
OPERATORS: dict[str, Any] = {"ggn": GGNOperator, "hessian": HessianOperator}
NOISES = ("measured", "directional", "frobenius")
STREAMED = 4096  # samples whose graph is kept between products; beyond, it is rebuilt part by part
GRAPH_BYTES = 2**32  # of what the forward pass of a part may keep; its products take a few times that
RESOLVED = 0.05  # residual of an extreme Ritz value, relative to it, above which it is called unresolved
DROWNED = 1e-5  # relative excess of a batch's extreme below which it is rounding
NOISE_PROBES = 8  # random directions for the Frobenius norm


class BatchCurvature:
    """Measures curvature; see `BatchSpectrum` for the parameters."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        X: Tensor,
        y: Tensor,
        *,
        curvature: str,
        repeats: int,
        noise: str,
        num_steps: int,
        seed: int | None,
    ) -> None:
        check("curvature", curvature, one_of(*OPERATORS))
        check("noise", noise, one_of(*NOISES))
        for name, value in (("repeats", repeats), ("num_steps", num_steps)):
            check(name, value, at_least(1, integer=True))
        for name, data in (("X", X), ("y", y)):
            if not isinstance(data, Tensor) or data.ndim == 0:
                raise kind_error(name, "a tensor with samples along its first axis", data)
        if len(X) == 0 or len(y) != len(X):
            raise value_error("X and y", "of the same length, not empty", [len(X), len(y)])
        self._group = model.process_group if isinstance(model, nn.parallel.DistributedDataParallel) else None
        self.model, self.loss_fn, self.X, self.y = unwrap_model(model), loss_fn, X, y
        self.curvature, self.repeats, self.noise, self.num_steps = curvature, repeats, noise, num_steps
        self.seed = fresh_seed() if seed is None else seed
        child_seeds(self.seed, 1)  # checks it
        self.n_samples = int(self._total(float(len(X))))
        self._fitting: int | None = None

    def measure_ends(self, batch_size: int, repeats: int | None = None) -> NDArray[np.float64]:
        """Smallest and largest eigenvalues of the same batches as in `measure`.

        Returns
        -------
        ndarray of shape (repeats, 2)
        """
        check("batch_size", batch_size, interval(1, self.n_samples, integer=True))
        repeats = self.repeats if repeats is None else repeats
        check("repeats", repeats, at_least(1, integer=True))
        starts = np.random.default_rng([self.seed, batch_size]).integers(2**62, size=repeats)
        batches = np.random.default_rng([self.seed, batch_size, 1 + group_rank(self._group)])
        ends, worst = np.empty((repeats, 2)), (0.0, 1.0)
        with self._quiet():
            for k, start in enumerate(starts):
                found = lanczos(
                    self._operator(*self._draw(batch_size, batches)),
                    self.num_steps,
                    check_symmetric=False,
                    seed=int(start),
                )
                ritz = found.ritz_values()
                ends[k] = float(ritz[0]), float(ritz[-1])
                worst = max(worst, (float(found.residuals()[-1]), ends[k, 1]), key=lambda pair: pair[0] / abs(pair[1]))
        warn_unresolved(*worst)
        return ends

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Evaluation mode, and the global random state as it was."""
        devices = [self.X.device] if self.X.device.type == "cuda" else []
        with measuring(self.model), torch.random.fork_rng(devices):
            yield

    def _operator(self, X: Tensor, y: Tensor, params: Iterable[Tensor] | None = None) -> CurvatureOperator:
        part = self._part()
        data = (X, y) if len(X) <= part else list(zip(X.split(part), y.split(part), strict=True))
        operator: CurvatureOperator = OPERATORS[self.curvature](
            self.model, self.loss_fn, data, params=params, process_group=self._group, deterministic=False
        )
        return operator

    def _part(self) -> int:
        """Samples whose graph fits into memory; counted once, as what a second sample adds to that of one."""
        if self._fitting is None:
            one, two = (self._kept_bytes(n) for n in (1, 2))
            self._fitting = min(STREAMED, max(1, GRAPH_BYTES // max(two - one, 1)))
        return self._fitting

    def _kept_bytes(self, n: int) -> int:
        """Bytes that the forward pass of n samples keeps for the backward pass."""
        index, sizes = torch.arange(n) % len(self.X), [0]

        def count(kept: Tensor) -> Tensor:
            sizes[0] += kept.nbytes
            return kept

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
            self.loss_fn(model_output(self.model, self.X[index]), self.y[index])
        return sizes[0]

    def _draw(self, batch_size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw a batch, this rank's share of it."""
        n_ranks = group_size(self._group)
        if batch_size < n_ranks:
            raise value_error("batch_size", f">= {n_ranks}, the number of ranks", batch_size)
        share = batch_size // n_ranks + (group_rank(self._group) < batch_size % n_ranks)
        index = torch.from_numpy(rng.choice(len(self.X), share, replace=False)).to(self.X.device)
        return self.X[index], self.y[index.to(self.y.device)]

    def _loss(self, X: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            parts = zip(X.split(self._part()), y.split(self._part()))
            total = sum(len(x) * float(self.loss_fn(model_output(self.model, x), target)) for x, target in parts)
        return self._total(total) / self._total(float(len(X)))

    def _total(self, value: float) -> float:
        """Sum a number over the ranks."""
        shared = torch.tensor([value], dtype=torch.float64, device=self.X.device)
        all_reduce_sum([shared], self._group)
        return float(shared)

    # ----------------------------------------------------------------------------------------------------- the noise

    def _measured_noise(self, lam: float, means: dict[int, float]) -> float:
        """Solve the formula for the noise at every calibration size; the geometric mean of those that show any."""
        sign, found = -1.0 if lam < 0 else 1.0, []
        for B, lam_B in means.items():
            b, excess = effective_batch(B, self.n_samples), sign * (lam_B - lam)
            if excess > DROWNED * abs(lam):
                hidden = sign * lam_B > 2 * abs(lam)
                found.append(b * lam_B**2 / 4 if hidden else excess * b * abs(lam))
            else:
                warnings.warn(
                    f"the extremes of batches of {B} ({lam_B:.4g}) do not exceed the full data's ({lam:.4g}): no noise "
                    "is seen; calibrate at smaller batch_sizes",
                    SteepestWarning,
                    stacklevel=3,
                )
        return float(np.exp(np.mean(np.log(found)))) if found else 0.0

    def _frobenius_noise(self, A: Any) -> float:
        z = probes(
            A.shape[0],
            NOISE_PROBES,
            distribution="rademacher",
            generator=torch_generator(self.seed, A.device),
            dtype=A.dtype,
            device=A.device,
        )
        return float(np.mean([self._deviation(A, z[:, k]) for k in range(NOISE_PROBES)])) / A.shape[0]

    def _deviation(self, A: Any, v: Tensor) -> float:
        """``E ||(H_i - H) v||^2`` with divisor N - 1: over b, the variance of a batch's product with v."""
        params = select_parameters(self.model, None)
        try:
            total = squared_deviation(self.model, self.loss_fn, self.X, self.y, params, v, A @ v, self.curvature)
        except RuntimeError as error:
            if self.noise != "measured":
                raise
            warnings.warn(
                f"no per-sample curvature for this model, the noise estimates that need it are NaN: {error}",
                SteepestWarning,
                stacklevel=4,
            )
            return float("nan")
        return self._total(float(total)) / (self.n_samples - 1)


def warn_unresolved(residual: float, lam: float) -> None:
    if residual > RESOLVED * abs(lam):
        warnings.warn(
            f"the largest Ritz value {lam:.4g} has a residual of {residual:.2g}: raise num_steps",
            SteepestWarning,
            stacklevel=3,
        )
