r"""Estimate the score of a distribution by regression with noisy labels, and stop before the noise is learned.

Noise a sample, X_t = a X_0 + sqrt(h) xi, and fit f(X_t, t) to X_0 by least squares. The label X_0 is f* + e with
f*(x, t) = E[X_0 | X_t = x] and E[e | X_t, t] = 0, so the fit is regression, and by Tweedie's formula (a f - x) / h
estimates the gradient of the log density of X_t::

    u = (Pi_R(x) / s, (t - t_min) / (t_max - t_min), 1)       inputs, cut to a ball of radius R
    f(u) = m^(-1/2) A^T relu(W u),   W <- W - eta grad (1/2n) sum |f(u_j) - y_j|^2            full batch, f = 0 at first

As the network widens, training becomes kernel regression in gradient time, whose stop is known from the kernel's
eigenvalues (`_tangent_kernel`, `_stopping`). ``model="kernel"`` is that limit in closed form.

Paper: han2024neural, of which the setting and the outline are taken; the stopping rule is that of raskutti2014early.

======================  ==================================
the paper               here
======================  ==================================
``g(t) = 1``            Ornstein-Uhlenbeck, `OUProcess`
``lambda(t)``           `OUProcess.weight`, h^2 / a^2
``R`` (truncation)      ``truncation_radius_``
``T`` (early stopping)  ``stopping_step_``
======================  ==================================

Departures: (1) a constant input coordinate: without it the network is homogeneous and cannot represent f*. (2) The
antisymmetric start. (3) R = s (sqrt(d) + sqrt(2 log n)), s the root mean square of a coordinate, from the tail of a
Gaussian. (4) Noise and norm of the truth are measured where the theory takes them as known. (5) One stop for all
coordinates.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from steepest.core.errors import (
    ConvergenceWarning,
    SteepestWarning,
    at_least,
    boolean,
    check,
    check_params,
    interval,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import child_seeds, numpy_generator, torch_generator
from steepest.generative._diffusion import OUProcess, noise_levels, run_backwards
from steepest.generative._full_batch import FullBatch, train
from steepest.generative._score_problem import Inputs, Noised, ScoreProblem, Standardization, draw_noised
from steepest.generative._stopping import step_grid
from steepest.generative._tangent_kernel import TwoLayerReLU, relu_ntk

__all__ = ["ScoreRegression"]

LOGGER = logging.getLogger(__name__)
Floats = NDArray[np.floating[Any]]

LIMITS = {
    "t_min": at_least(1e-3),
    "t_max": positive(),
    "model": one_of("network", "kernel"),
    "width": at_least(2, integer=True),
    "max_iter": at_least(1, integer=True),
    "n_noisings": at_least(1, integer=True),
    "validation_fraction": interval(0, 1, low_open=True, high_open=True),
    "standardize": boolean(),
    "n_landmarks": optional(at_least(1, integer=True)),
}
RULES = ("kernel", "mallows", "holdout")
ROWS_IN_FULL = 5000  # beyond it the network's stop comes from a subset
SUBSET = 2000
KERNEL_ROWS = 20_000
HELD_OUT_NOISINGS = 10  # ours: noisings of a held-out or scored data point
CHUNK = 4096  # rows predicted at a time


class ScoreRegression(BaseEstimator):
    """Denoiser and score of a distribution from its samples, with a rule for when to stop.

    Parameters
    ----------
    t_min, t_max : float
        Range of diffusion times, 1e-3 <= t_min < t_max. The score's relative error grows as 1 / t_min.
    model : "network" or "kernel"
        Two-layer ReLU network, or its limit of infinite width in closed form.
    width : int
        Units of the network, even.
    stopping : "kernel", "mallows", "holdout", None or int
        The rule of theory with its published constants (stops early), the least unbiased estimate of the risk, the
        lowest loss on held-out data points, all of `max_iter` steps, or a number of steps.
    max_iter : int
        Largest number of steps.
    learning_rate : "auto" or float
        eta; 0.9 / lambda_max of the kernel over n by default.
    n_noisings : int
        Noisy copies of every data point. They share the label, so n is still that of the data.
    radius, noise : "auto" or float
        RKHS norm of the truth and standard deviation of the labels' noise, both per coordinate and in units of the
        standardized data. "auto" measures them, see Notes.
    validation_fraction : float
        Share of the data points held out by ``stopping="holdout"``.
    standardize : bool
        Center the data and divide all coordinates by one number.
    n_landmarks : int or None
        Nystrom landmarks that stand for the kernel; None takes the full kernel (for the network up to 5000 rows).
    random_state : int, Generator, RandomState or None
    verbose : int
        Above 0 the rules' numbers and the loss at about 80 steps go to the logger of this module.

    Attributes
    ----------
    n_iter_ : int
        Steps made.
    stopping_step_, mallows_step_ : int
        Step of the chosen rule, whose model is kept, and of the unbiased risk.
    sigma_, radius_ : float
        Noise per coordinate and RKHS norm that the rules used (standardized units).
    critical_radius_, error_bound_ : float
        delta, and 12 B^2 delta^2: what theory allows the error per coordinate at the rule's stop to be.
    eigenvalues_ : ndarray
        Of the kernel matrix over n, falling.
    learning_rate_ : float
    history_ : dict
        ``step`` and ``fun``, the training loss (1/2n) sum |f - y|^2 before that step (standardized units); ``holdout``,
        mean |f - x_0|^2 on held-out points, with that rule.
    n_features_in_ : int
    mean_, scale_ : ndarray (d,), float
    truncation_radius_, truncated_fraction_ : float
        Radius of the ball in which inputs are kept (standardized units), and the share of training inputs beyond it.
    net_ : TwoLayerReLU or None
    dual_coef_ : ndarray (n_rows or n_landmarks, d) or None
        Coefficients of the kernel model.

    Notes
    -----
    The noise is measured between nearest neighbors (`label_noise`). The radius is the largest norm over coordinates of
    the fit that minimizes the unbiased risk; the norm of a fit stopped by the rule itself falls to 0 when iterated,
    that of one that interpolates grows with n. Over 5000 rows the network's rules see the kernel through 2000
    landmarks.

    References
    ----------
    han2024neural, raskutti2014early.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.choice([-1.5, 1.5], 200)[:, None] + 0.4 * rng.standard_normal((200, 1))
    >>> model = ScoreRegression(model="kernel", stopping="mallows", random_state=0).fit(X)
    >>> denoised = model.denoise([[-1.2], [1.2]], 0.3)                    # E[X_0 | X_t]
    >>> denoised.round().ravel().tolist(), model.sample(5).shape
    ([-1.0, 1.0], (5, 1))
    """

    def __init__(
        self,
        *,
        t_min: float = 0.05,
        t_max: float = 3.0,
        model: Literal["network", "kernel"] = "network",
        width: int = 2048,
        stopping: str | int | None = "kernel",
        max_iter: int = 20_000,
        learning_rate: float | Literal["auto"] = "auto",
        n_noisings: int = 1,
        radius: float | Literal["auto"] = "auto",
        noise: float | Literal["auto"] = "auto",
        validation_fraction: float = 0.2,
        standardize: bool = True,
        n_landmarks: int | None = None,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.t_min = t_min
        self.t_max = t_max
        self.model = model
        self.width = width
        self.stopping = stopping
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.n_noisings = n_noisings
        self.radius = radius
        self.noise = noise
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.n_landmarks = n_landmarks
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Noise the samples, measure what the stopping rules need, and train.

        Parameters
        ----------
        X : array_like, shape (n, d)
        y : ignored

        Returns
        -------
        ScoreRegression

        Raises
        ------
        ValueError
            Fewer than 2 samples, values that are not finite, an argument outside its range, or a kernel of more than
            20 000 rows without landmarks.
        FloatingPointError
            The step is too large and training diverges.

        Warns
        -----
        ConvergenceWarning
            The rule had not stopped at `max_iter`, or stops before the first step, so that f is the mean.
        SteepestWarning
            A feature is constant.
        """
        self._check_arguments()
        points = _tensor(validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2))
        for_split, for_noise, for_network, for_landmarks, for_held_out = child_seeds(self._seed(), 5)
        constant = (points == points[0]).all(dim=0)
        if bool(constant.any()):
            warnings.warn(f"constant features: {constant.nonzero().ravel().tolist()}", SteepestWarning, stacklevel=2)
        watched = None
        if self.stopping == "holdout":
            points, watched = self._split(points, for_split)
        problem = self._problem(points, (for_noise, for_landmarks))
        self._keep(problem)
        held_out = None
        if watched is not None:
            held_out = self._draw(watched, for_held_out)
        steps = self._number_of_steps(problem)
        if self.model == "kernel":
            self._fit_kernel(problem, steps, held_out)
        else:
            self._fit_network(problem, steps, held_out, for_network)
        self._warn_about_the_stop()
        return self

    def denoise(self, X: ArrayLike, t: ArrayLike) -> Floats:
        """Estimate E[X_0 | X_t = x].

        Parameters
        ----------
        X : array_like, shape (n, d)
            Noisy samples: X_t = a X_0 + scale_ sqrt(h) xi.
        t : float or array_like (n,)
            Diffusion times in [t_min, t_max].

        Returns
        -------
        ndarray, shape (n, d)

        Raises
        ------
        ValueError
            A time outside the range, or shapes that do not fit.
        NotFittedError
            Before `fit`.
        """
        x, time = self._checked(X, t)
        return self._standard.back(self._denoise_standard(self._standard.noisy(x, time), time)).numpy()

    def score_at(self, X: ArrayLike, t: ArrayLike) -> Floats:
        """Estimate the gradient of the log density of X_t at X, shape (n, d); arguments as in `denoise`."""
        x, time = self._checked(X, t)
        z = self._standard.noisy(x, time)
        return (OUProcess().score_from_denoiser(self._denoise_standard(z, time), z, time) / self.scale_).numpy()

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Minus the denoising loss on samples, mean |f(X_t, t) - X_0|^2 over ten noisings of each; higher is better.

        With the weight h^2 / a^2 this is the loss of denoising score matching. The noisings are the same in every call
        when `random_state` is an int.
        """
        check_is_fitted(self)
        points = _tensor(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))
        return -(self.scale_**2) * self._loss(self._draw(points, self._seed()))

    def sample(
        self,
        n_samples: int = 1,
        *,
        method: Literal["sde", "ode"] = "sde",
        n_steps: int = 200,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
    ) -> Floats:
        """Draw samples by running the process backwards from the normal distribution.

        Parameters
        ----------
        n_samples : int
        method : "sde" or "ode"
            The reversed stochastic equation, or the probability flow by Heun's steps.
        n_steps : int
            Between times whose noise variances are a geometric sequence.
        random_state
            None takes that of the estimator.

        Returns
        -------
        ndarray, shape (n_samples, d)
        """
        check_is_fitted(self)
        check("n_samples", n_samples, at_least(1, integer=True))
        check("method", method, one_of("sde", "ode"))
        rng = numpy_generator(self.random_state if random_state is None else random_state, name="random_state")
        g = torch_generator(int(rng.integers(2**62)))
        start = torch.randn((n_samples, self.n_features_in_), generator=g, dtype=torch.float64)
        times = noise_levels(self.t_min, self.t_max, n_steps)
        z = run_backwards(
            lambda x, t: self._denoise_standard(x, torch.full((len(x),), t, dtype=x.dtype)),
            start.to(self._dtype),
            times,
            method=method,
            generator=g,
        )
        return self._standard.back(z).numpy()

    # ---------------------------------------------------------------------------------------------------- arguments

    def _check_arguments(self) -> None:
        check_params(self, LIMITS)
        check("t_max", self.t_max, interval(self.t_min, low_open=True))
        for name in ("learning_rate", "radius", "noise"):
            if not isinstance(value := getattr(self, name), str) or value != "auto":
                check(name, value, positive())
        if isinstance(self.stopping, str) or self.stopping is None:
            if self.stopping is not None and self.stopping not in RULES:
                raise value_error("stopping", f"one of {RULES}, None or a number of steps", self.stopping)
        else:
            check("stopping", self.stopping, at_least(0, integer=True))
        if self.model == "network" and self.width % 2:
            raise value_error("width", "even: half of the units start as the other half's opposite", self.width)

    def _checked(self, X: ArrayLike, t: ArrayLike) -> tuple[Tensor, Tensor]:
        check_is_fitted(self)
        x = _tensor(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))
        time = torch.as_tensor(np.asarray(t, dtype=np.float64))
        if time.ndim > 1 or (time.ndim == 1 and len(time) != len(x)):
            raise value_error("t", f"a number or of shape ({len(x)},)", time)
        if not bool(((time >= self.t_min) & (time <= self.t_max)).all()):
            raise value_error("t", f"in [t_min, t_max] = [{self.t_min:g}, {self.t_max:g}]", time)
        return x, time.expand(len(x)).to(x)

    def _seed(self) -> int:
        return int(numpy_generator(self.random_state, name="random_state").integers(2**62))

    # ---------------------------------------------------------------------------------------- problem and rules

    def _split(self, points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Training points and held-out points: never two noisings of one point on both sides."""
        n = len(points)
        held = max(1, round(self.validation_fraction * n))
        if n - held < 2:
            expected = f"such that 2 of the {n} samples are left"
            raise value_error("validation_fraction", expected, self.validation_fraction)
        order = torch.randperm(n, generator=torch_generator(seed))
        return points[order[held:]], points[order[:held]]

    def _problem(self, points: Tensor, seeds: tuple[int, int]) -> ScoreProblem:
        rows = len(points) * self.n_noisings
        wanted = self.n_landmarks or (SUBSET if self.model == "network" and rows > ROWS_IN_FULL else rows)
        if wanted >= rows > KERNEL_ROWS:
            raise value_error("n_landmarks", f"given for more than {KERNEL_ROWS} rows", self.n_landmarks)
        return ScoreProblem.build(
            points,
            t_min=self.t_min,
            t_max=self.t_max,
            standardize=self.standardize,
            n_noisings=self.n_noisings,
            n_landmarks=wanted if wanted < rows else None,
            step_size=_measured_if_auto(self.learning_rate),
            noise=_measured_if_auto(self.noise),
            radius=_measured_if_auto(self.radius),
            max_iter=self.max_iter,
            seeds=seeds,
        )

    def _keep(self, problem: ScoreProblem) -> None:
        self._standard: Standardization = problem.standard
        self._inputs: Inputs = problem.inputs
        self._anchors = problem.path.anchors
        self._dtype = problem.U.dtype
        self.mean_, self.scale_ = problem.standard.mean.numpy(), problem.standard.scale
        self.truncation_radius_ = problem.inputs.radius
        self.truncated_fraction_ = problem.inputs.cut(problem.train.x)
        self.learning_rate_, self.eigenvalues_ = problem.path.step_size, problem.path.eigenvalues.numpy()
        self.sigma_, self.radius_, self.mallows_step_ = problem.sigma, problem.radius, problem.mallows_step
        self.critical_radius_, self.error_bound_ = problem.critical_radius, problem.error_bound
        if self.verbose:
            LOGGER.info(
                "noise %.3g, radius %.3g, unbiased risk lowest at step %d",
                problem.sigma,
                problem.radius,
                problem.mallows_step,
            )

    def _draw(self, points: Tensor, seed: int) -> Noised:
        """Noisings of data points that training does not see."""
        z = self._standard.data(points).to(self._dtype)
        return draw_noised(z, self.t_min, self.t_max, n_noisings=HELD_OUT_NOISINGS, seed=seed)

    def _number_of_steps(self, problem: ScoreProblem) -> int:
        """What the rule says, or the budget that it may spend."""
        if self.stopping == "mallows":
            return problem.mallows_step
        if self.stopping == "kernel":
            return problem.kernel_step
        return self.max_iter if self.stopping is None or self.stopping == "holdout" else int(self.stopping)

    def _warn_about_the_stop(self) -> None:
        if self.stopping not in RULES:
            return
        text = None
        if self.stopping_step_ >= self.max_iter:
            text = f"the rule {self.stopping!r} had not stopped at max_iter={self.max_iter}; raise it"
        elif self.stopping_step_ == 0:
            text = (
                f"the rule {self.stopping!r} stops before the first step, so that the mean is returned: the labels "
                "are too noisy for these few samples; take more, or stopping='mallows'"
            )
        if text:
            warnings.warn(text, ConvergenceWarning, stacklevel=3)

    # -------------------------------------------------------------------------------------------- training

    def _fit_kernel(self, problem: ScoreProblem, steps: int, held_out: Noised | None) -> None:
        path, grid = problem.path, step_grid(steps) if steps else []
        self.stopping_step_ = steps
        self.history_: dict[str, list[float]] = {"step": [float(k) for k in grid]}
        self.history_["fun"] = [path.flow.loss(k - 1) * self.n_features_in_ / 2 for k in grid]
        if held_out is not None:
            u = self._inputs(held_out.x, held_out.t).double()
            K = torch.cat([relu_ntk(part, path.anchors) for part in u.split(CHUNK)])
            losses = [float((K @ path.dual(k) - held_out.y).square().sum(1).mean()) for k in grid]
            self.history_["holdout"] = losses
            self.stopping_step_ = grid[int(np.argmin(losses))]
        self.n_iter_ = self.stopping_step_
        self.net_: TwoLayerReLU | None = None
        self.dual_coef_: Floats | None = path.dual(self.stopping_step_).numpy()

    def _fit_network(self, problem: ScoreProblem, steps: int, held_out: Noised | None, seed: int) -> None:
        U, Y, path = problem.U, problem.train.y, problem.path
        self.net_ = TwoLayerReLU(U.shape[1], Y.shape[1], self.width, generator=seed, dtype=U.dtype)
        self.dual_coef_ = None
        grid = step_grid(steps) if steps else []
        try:
            losses, watched = train(
                FullBatch(self.net_, U, Y),
                path.step_size,
                steps,
                grid=grid,
                held_out=None if held_out is None else lambda: self._loss(held_out),
                verbose=self.verbose,
            )
        except FloatingPointError as error:
            raise FloatingPointError(
                f"the network diverges ({error}): learning_rate={path.step_size:.4g} is too large beside lambda_max="
                f"{path.top:.4g} of the kernel over n"
            ) from None
        self.n_iter_ = self.stopping_step_ = len(losses)
        self.history_ = {"step": [float(k + 1) for k in range(len(losses))], "fun": losses}
        if held_out is not None:
            self.history_ |= {"holdout_step": [float(k) for k in grid[: len(watched)]], "holdout": watched}
            self.stopping_step_ = grid[int(np.argmin(watched))]

    # -------------------------------------------------------------------------------------------- prediction

    @torch.no_grad()
    def _denoise_standard(self, z: Tensor, t: Tensor) -> Tensor:
        """E[Z_0 | Z_t = z] in standardized units, of z's dtype."""
        parts = []
        for u in self._inputs(z, t).split(CHUNK):
            if self.net_ is not None:
                parts.append(self.net_(u.to(self.net_.W)).to(z))
            else:
                parts.append((relu_ntk(u.double(), self._anchors) @ torch.as_tensor(self.dual_coef_)).to(z))
        return torch.cat(parts)

    def _loss(self, noised: Noised) -> float:
        """Mean of |f(x_t, t) - x_0|^2, standardized units."""
        f = self._denoise_standard(noised.x, noised.t)
        return float((f - noised.y).double().square().sum(1).mean())


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))


def _measured_if_auto(value: float | str) -> float | None:
    return None if value == "auto" else float(value)
