r"""Extreme curvature and learning rates as functions of the batch size: which step for which batch, without a sweep.

The curvature of a batch is that of the whole data plus noise. In the spiked model H_B = H + E_B, E_B symmetric with
independent entries of variance sigma^2 / b, the extremes of H_B are

    lambda_B = lambda + (noise / b) / lambda   where |lambda| > s,    else sign(lambda) 2 s,
    s = sqrt(noise / b),    b = B / (1 - B/N),

so that in B a hidden extreme falls as B^-1/2, a visible one approaches lambda with an excess as 1 / B, and beyond the
batch size where noise / b = lambda^2 more batch changes it by less than a factor of 2. SGD tolerates learning rates up
to 2 / lambda_B; adaptive methods, whose preconditioner grows as the root of the curvature, follow 1 / sqrt(lambda_B).
Three ways to the noise:

    frobenius     E ||H_i - H||_F^2 / P                   the model's own: entries independent
    directional   E ||(H_i - H) u||^2                     u the extreme eigenvector (second-order perturbation)
    measured      lambda_B of batches of two sizes, solved for the noise; the geometric mean

Paper: granziol2022learning.
Notation: B batch size, N = `num_data`, P parameters, lambda = `lambda_max_` or `lambda_min_`, H_i curvature of sample
i, noise = P sigma^2. The formulas are in `_learning_rates`, measurements in `_batch_curvature`, the learner behind
`attach` in `_curvature_steps`.
Departures: (1) the formula is solved for the noise in either regime, ``b (lambda_B / 2)^2`` where the extreme of the
calibration batches exceeds ``2 lambda``. (2) Per-sample curvature of networks is far from independent entries
("frobenius" is low by orders of magnitude), so that "measured" is the default. (3) The two ends of a Hessian have each
their own noise. (4) Where the data given are a subset of `num_data` samples, the extreme of the subset is freed of its
own excess by the same formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from steepest.core.distributed import group_rank
from steepest.core.errors import at_least, check, interval, optional, value_error
from steepest.curvature import SpectralDensity, lanczos, slq
from steepest.curvature.autodiff import select_parameters
from steepest.curvature.losses import LossFn
from steepest.landscape._batch_curvature import LOWER, UPPER, BatchCurvature, warn_unresolved
from steepest.landscape._curvature_steps import CurvatureSteps, Measured
from steepest.landscape._learning_rates import (
    NO_CURVATURE,
    OPTIMIZERS,
    LearningRate,
    LearningRateAdvice,
    batch_extreme_eigenvalue,
    effective_batch,
    learning_rate_from_spectrum,
    population_extreme,
    saturation_batch,
    scale_learning_rate,
)
from steepest.landscape._training import lightning_callback, trainer_callback

__all__ = [
    "BatchSpectrum",
    "LearningRate",
    "LearningRateAdvice",
    "batch_extreme_eigenvalue",
    "effective_batch",
    "learning_rate_from_spectrum",
    "scale_learning_rate",
]


class BatchSpectrum(BatchCurvature):
    """Extreme curvature of a model's loss as a function of the batch size, and learning rates from it.

    Parameters
    ----------
    model : torch.nn.Module
        Measured in evaluation mode. Inside `DistributedDataParallel` every rank passes its own shard of the data, and
        all batch sizes count samples over all ranks.
    loss_fn : callable (output, y) -> scalar
        The mean over samples.
    X, y : Tensor
        The training data, or a fixed subset of a thousand samples or more.
    curvature : "ggn" or "hessian"
        The Gauss-Newton matrix has no negative curvature, which contaminates the Hessian's top early in training.
    num_data : int, optional
        N, the true size of the training set where `X` is a subset; the number of samples given by default.
    batch_sizes : sequence of int
        At which ``noise="measured"`` calibrates.
    repeats : int
        Random batches of each size.
    noise : "measured", "directional" or "frobenius"
        Which estimate `noise_` is; see the module. `noise_estimates_` has all three.
    num_steps, num_probes : int
        Of stochastic Lanczos quadrature. 30 steps resolve extremes that stand out.
    seed : int, optional
        Of batches and probes; None draws fresh entropy.

    Attributes
    ----------
    lambda_max_, lambda_min_ : float
        Extremes over the full data.
    noise_ : float
        P sigma^2 at the upper end.
    noise_estimates_ : dict of str to float
    measured_ : dict of int to float
        Mean largest eigenvalue of batches of each calibration size.
    spectrum_ : SpectralDensity
        Of the data given.
    history : list of LearningRate
        One for every scheduled update since `attach`.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits.

    Warns
    -----
    SteepestWarning
        An extreme that the Lanczos steps did not resolve, noise that drowned in the extreme of the full data, a model
        whose samples cannot be told apart (no "directional" and "frobenius", which are then NaN).

    Examples
    --------
    >>> import torch
    >>> g = torch.Generator().manual_seed(0)
    >>> X = torch.randn(512, 5, generator=g)
    >>> model = torch.nn.Linear(5, 1, bias=False)
    >>> found = BatchSpectrum(model, torch.nn.MSELoss(), X, torch.zeros(512, 1)).fit()
    >>> found.extreme(8) > found.extreme(64) > found.lambda_max_       # small batches are sharper
    True
    >>> found.max_learning_rate(512) > found.max_learning_rate(8)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        X: Tensor,
        y: Tensor,
        *,
        curvature: str = "ggn",
        num_data: int | None = None,
        batch_sizes: Sequence[int] = (16, 64),
        repeats: int = 8,
        noise: str = "measured",
        num_steps: int = 30,
        num_probes: int = 1,
        seed: int | None = 0,
    ) -> None:
        super().__init__(
            model, loss_fn, X, y, curvature=curvature, repeats=repeats, noise=noise, num_steps=num_steps, seed=seed
        )
        check("num_probes", num_probes, at_least(1, integer=True))
        self.num_probes = num_probes
        self._noisy_ends = (UPPER, LOWER) if curvature == "hessian" else (UPPER,)
        check("num_data", num_data, optional(at_least(self.n_samples, integer=True)))
        self.num_data = self.n_samples if num_data is None else int(num_data)
        self.batch_sizes = tuple(batch_sizes)
        for size in self.batch_sizes:
            check("batch_sizes", size, at_least(1, integer=True))
        if not self.batch_sizes:
            raise value_error("batch_sizes", "not empty", batch_sizes)
        self.history: list[LearningRate] = []
        self._steps: CurvatureSteps | None = None

    # --------------------------------------------------------------------------------------------------- the full data

    def fit(self) -> BatchSpectrum:
        """Measure the full data and the calibration batches.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            A calibration size that is not below the number of samples.
        """
        for size in self.batch_sizes:
            check("batch_sizes", size, interval(1, self.n_samples, high_open=True, integer=True))
        with self._quiet():
            A = self._operator(self.X, self.y)
            spectrum = slq(A, self.num_steps, self.num_probes, check_symmetric=False, seed=self.seed)
            vectors = lanczos(A, self.num_steps, check_symmetric=False, seed=self.seed).ritz_pairs()[1]
            means = {B: self.measure_ends(B).mean(0) for B in self.batch_sizes}
            frobenius = self._frobenius_noise(A)
            directional = {end: self._deviation(A, vectors[:, end]) for end in self._noisy_ends}
        extremes = spectrum.extreme()
        warn_unresolved(float(spectrum.residuals.reshape(-1)[spectrum.nodes.argmax()]), extremes[1])
        estimates = {
            end: {
                "measured": self._measured_noise(extremes[end], {B: float(mean[end]) for B, mean in means.items()}),
                "directional": directional[end],
                "frobenius": frobenius,
            }
            for end in self._noisy_ends
        }
        noise = {end: found[self.noise] for end, found in estimates.items()}
        own = 1 / effective_batch(self.n_samples, self.num_data)  # the data given are themselves a batch
        self.lambda_min_, self.lambda_max_ = (
            population_extreme(lam, noise.get(end, 0.0) * own) for lam, end in zip(extremes, (LOWER, UPPER))
        )
        self.spectrum_, self.measured_ = spectrum, {B: float(mean[UPPER]) for B, mean in means.items()}
        self.noise_estimates_, self.noise_, self._noise_lower = estimates[UPPER], noise[UPPER], noise.get(LOWER, 0.0)
        return self

    def measure(self, batch_size: int, repeats: int | None = None) -> NDArray[np.float64]:
        """Largest eigenvalues of random batches, drawn without replacement from (seed, batch_size) alone.

        Parameters
        ----------
        batch_size : int
        repeats : int, optional
            Number of batches.

        Returns
        -------
        ndarray of shape (repeats,)
        """
        return self.measure_ends(batch_size, repeats)[:, UPPER]

    def spectral_density(self) -> SpectralDensity:
        """Return `spectrum_`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
        """
        self._check_fitted()
        return self.spectrum_

    # ------------------------------------------------------------------------------------------- another batch size

    def extreme(self, batch_size: float) -> float:
        """Predict the largest eigenvalue of batches of any size."""
        self._check_fitted()
        return batch_extreme_eigenvalue(self.lambda_max_, self.noise_, batch_size, num_data=self.num_data)

    def extreme_lower(self, batch_size: float) -> float:
        """Predict their smallest eigenvalue; that of a Gauss-Newton matrix is taken as the full data's."""
        self._check_fitted()
        check("batch_size", batch_size, interval(1, self.num_data))
        if self.curvature == "ggn":
            return self.lambda_min_
        flipped = max(-self.lambda_min_, 0.0)  # the formula for the upper end, of -H
        return -batch_extreme_eigenvalue(flipped, self._noise_lower, batch_size, num_data=self.num_data)

    def max_learning_rate(self, batch_size: float, optimizer: str = "sgd") -> float:
        """Largest learning rate that is stable on a quadratic of the predicted extreme.

        Parameters
        ----------
        batch_size : float
        optimizer : "sgd" or "adam"
            ``2 / lambda_B`` for SGD. For adaptive methods ``2 / sqrt(lambda_B)``, of which only the ratio between batch
            sizes means something: the loss's scale drops out of their steps.

        Raises
        ------
        ValueError
            The extreme is not positive.
        """
        check("optimizer", optimizer, OPTIMIZERS)
        lam = self.extreme(batch_size)
        if lam <= 0:
            raise value_error("extreme(batch_size)", "> 0", lam, NO_CURVATURE)
        return 2 / lam if optimizer == "sgd" else 2 / lam**0.5

    def recommend(
        self, lr: float, batch_size: float, new_batch_size: float, optimizer: str = "sgd"
    ) -> LearningRateAdvice:
        """Carry a learning rate that was tuned at one batch size to another.

        Parameters
        ----------
        lr : float
        batch_size, new_batch_size : float
        optimizer : "sgd" or "adam"

        Returns
        -------
        LearningRateAdvice
        """
        self._check_fitted()
        spectrum = (self.lambda_max_, self.noise_)
        new = scale_learning_rate(
            lr, batch_size, new_batch_size, optimizer=optimizer, spectrum=spectrum, num_data=self.num_data
        )
        limit = saturation_batch(*spectrum, self.num_data)
        ratio = self.extreme(batch_size) / self.extreme(new_batch_size)
        rule = "lr * lambda_B / lambda_B'" if optimizer == "sgd" else "lr * sqrt(lambda_B / lambda_B')"
        gain = "below it the rate grows with the batch" if new_batch_size < limit else "beyond it more batch gains < 2x"
        text = (
            f"batch {batch_size:g} -> {new_batch_size:g}: curvature changes by {1 / ratio:.3g}x, learning rate "
            f"{lr:.4g} -> {new:.4g} ({rule}); noise and curvature balance at batch {limit:.4g}, {gain}"
        )
        return LearningRateAdvice(new, rule, limit, text)

    # --------------------------------------------------------------------------------------------- during training

    def attach(
        self,
        optimizer: Optimizer,
        *,
        every: int = 20,
        momentum: bool = True,
        batch_size: int | None = None,
        safety: float = 0.1,
        relative_floor: float = 1e-3,
        ema: float = 0.0,
        max_growth: float = 1.2,
        warmup: int = 0,
        callback: Callable[[LearningRate], Any] | None = None,
    ) -> BatchSpectrum:
        """Let the curvature set learning rate and momentum of an optimizer, before its first step and every k steps.

        Needs no `fit`. Gradients, random state and buffers are left alone; `detach` gives the groups their rates back.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            SGD (heavy ball). Adaptive methods need ``momentum=False``: their rate is their own times
            ``sqrt(lambda_1 at the start / lambda_1)``.
        every : int
            k, steps between updates.
        momentum : bool
            Heavy ball, or a rate alone with momentum 0.
        batch_size : int, optional
            Of a fresh random batch for every measurement; all of `X`, `y` by default. The batch size of the training
            overestimates the full data's curvature, which is the safe side.
        safety : float
            Factor on the rate of the quadratic; 1, the quadratic's own optimum, diverges on networks (ours, chosen by
            study as are the next three).
        relative_floor : float
            Eigenvalues at or below this share of the largest do not count.
        ema : float
            In [0, 1): weight of the old logarithms of both extremes; 0 is off.
        max_growth : float
            Largest factor by which the rate grows in an update.
        warmup : int
            Steps at the start over which the rate rises linearly to what the curvature gives; 0: none. With 20 a
            `safety` of 0.2 trains convolutional networks that the defaults train slowly (ours).
        callback : callable (LearningRate) -> None, optional
            Called after every update.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            An argument outside its limits, an optimizer that is neither SGD nor adaptive, Nesterov's momentum or
            dampening with ``momentum=True``, an adaptive optimizer with it, or no positive curvature at the start.
        FloatingPointError
            While training: the curvature is not finite.
        """
        check("batch_size", batch_size, optional(interval(1, self.n_samples, integer=True)))
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        select_parameters(self.model, trained)  # all of them are the model's
        self.detach()
        self.history = []
        seeds = np.random.default_rng([self.seed, 0])
        batches = np.random.default_rng([self.seed, 0, 1 + group_rank(self._group)])

        def measure() -> Measured:
            with self._quiet():
                X, y = (self.X, self.y) if batch_size is None else self._draw(batch_size, batches)
                A = self._operator(X, y, trained)
                start = int(seeds.integers(2**62))
                return Measured(
                    slq(A, self.num_steps, self.num_probes, check_symmetric=False, seed=start), self._loss(X, y)
                )

        self._steps = CurvatureSteps(
            optimizer,
            measure,
            self.history,
            every=every,
            momentum=momentum,
            safety=safety,
            relative_floor=relative_floor,
            ema=ema,
            max_growth=max_growth,
            warmup=warmup,
            callback=callback,
        )
        return self

    def detach(self) -> BatchSpectrum:
        """Follow no optimizer; the one that was followed gets its own learning rates and momenta back."""
        if self._steps is not None:
            self._steps.remove()
            self._steps = None
        return self

    def as_lightning_callback(self) -> Any:
        """Make a Lightning callback that attaches this to the run's optimizer, with `attach`'s defaults.

        Raises
        ------
        ImportError
            Lightning is not installed.
        """
        return lightning_callback(self)

    def as_trainer_callback(self) -> Any:
        """Make a callback for Hugging Face's ``Trainer`` that attaches this to its optimizer.

        Raises
        ------
        ImportError
            ``transformers`` is not installed.
        """
        return trainer_callback(self)

    # ------------------------------------------------------------------------------------------------------- helpers

    def _check_fitted(self) -> None:
        if not hasattr(self, "spectrum_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this BatchSpectrum is not fitted yet: call fit() first")
