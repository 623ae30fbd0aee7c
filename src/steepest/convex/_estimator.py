"""What the classifier and the regressor share: arguments, patterns, the fit, and the use of the network."""

from __future__ import annotations

import math
import os
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from steepest.convex import _losses
from steepest.convex._admm import ExactStep
from steepest.convex._certificates import Network
from steepest.convex._fitting import Fit, Settings, fit_output, fit_sampled, fit_shared_out
from steepest.convex._patterns import draw_patterns, enumerate_patterns
from steepest.convex._program import Program
from steepest.convex._sampled_program import unit_directions
from steepest.core.errors import (
    ConvergenceWarning,
    at_least,
    boolean,
    check,
    check_params,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.parallel import ordered_map
from steepest.core.random import child_seeds, numpy_generator

__all__ = ["ConvexReLUNetwork"]

SOLVERS = ("auto", "admm", "admm-rbcd", "scp", "pdhg")
LIMITS = {
    "beta": positive(),
    "n_patterns": optional(at_least(1, integer=True)),
    "solver": one_of(*SOLVERS),
    "adversarial_radius": nonnegative(),
    "perturbations_per_direction": at_least(1, integer=True),
    "fit_intercept": boolean(),
    "rho": optional(positive()),
    "dual_step": optional(positive()),
    "rbcd_block": at_least(1, integer=True),
    "rbcd_tol": positive(),
    "max_iter": at_least(1, integer=True),
    "tol": positive(),
    "warm_start": boolean(),
    "backend": one_of("serial", "ray"),
    "n_jobs": optional(at_least(1, integer=True)),
    "verbose": at_least(0, integer=True),
}
EXACT_SAMPLES = 4000
"""With more samples than these ``auto`` no longer factors a matrix of that size."""
EXACT_FEATURES = 12
"""Up to this many features `adversarial_loss` is exact."""
DROPPED = 1e-8
"""Neurons with a norm below this share of the largest are left out of the network."""


class ConvexReLUNetwork(BaseEstimator):
    """What classifier and regressor share: everything but the targets."""

    _known_losses: tuple[str, ...] = _losses.LOSSES

    def __init__(
        self,
        loss: str = "logistic",
        beta: float = 1e-3,
        n_patterns: int | None = None,
        patterns: str | np.ndarray = "sample",
        solver: str = "auto",
        adversarial_radius: float = 0.0,
        perturbations_per_direction: int = 4,
        fit_intercept: bool = True,
        rho: float | None = None,
        dual_step: float | None = None,
        rbcd_block: int = 1,
        rbcd_tol: float = 1.3e-3,
        max_iter: int = 1000,
        tol: float = 1e-4,
        warm_start: bool = False,
        device: str = "cpu",
        backend: str = "serial",
        n_jobs: int | None = None,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.loss = loss
        self.beta = beta
        self.n_patterns = n_patterns
        self.patterns = patterns
        self.solver = solver
        self.adversarial_radius = adversarial_radius
        self.perturbations_per_direction = perturbations_per_direction
        self.fit_intercept = fit_intercept
        self.rho = rho
        self.dual_step = dual_step
        self.rbcd_block = rbcd_block
        self.rbcd_tol = rbcd_tol
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.device = device
        self.backend = backend
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    # ---- using the network

    def certified_radius(self, X: ArrayLike) -> np.ndarray:
        """Give for each row a radius (n,) within which no change of its features changes the sign or class predicted.

        Never above the distance (largest change of a feature) to the nearest input with another prediction; 0 on the
        boundary. In units of the features as given to `fit`.
        """
        rows = self._rows(X)
        outputs = np.atleast_2d(self.output_coef_)
        if len(outputs) == 1:
            return self._network(outputs[0]).certified_radius(rows)
        scores = np.stack([self._network(a)(rows) for a in outputs], axis=1)
        best = scores.argmax(1)
        radius = np.full(len(rows), np.inf)
        for winner in np.unique(best):
            of_it = best == winner
            for other in np.flatnonzero(np.arange(len(outputs)) != winner):
                rival = self._network(outputs[winner] - outputs[other])
                radius[of_it] = np.minimum(radius[of_it], rival.certified_radius(rows[of_it]))
        return radius

    def adversarial_loss(self, X: ArrayLike, y: ArrayLike, radius: float) -> float:
        """Sum the worst losses when each feature of each row moves by up to `radius`; classes against the rest.

        Exact with up to 12 features (a mixed-integer program for each row where a neuron can switch), an upper bound
        with more.
        """
        check("radius", radius, nonnegative())
        rows = self._rows(X)
        total = 0.0
        for a, target in zip(np.atleast_2d(self.output_coef_), self._targets(np.asarray(y)), strict=True):
            exact = rows.shape[1] <= EXACT_FEATURES
            ends = self._network(a).output_range(rows, float(radius), exact=exact)
            worst = [_losses.value(self.loss, torch.as_tensor(f), torch.as_tensor(target)) for f in ends]
            total += float(torch.maximum(*worst).sum())
        return total

    def to_torch(self) -> torch.nn.Sequential:
        """Give the network as Linear, ReLU, Linear in float64; the last has one output for each class, or one."""
        check_is_fitted(self)
        outputs = np.atleast_2d(self.output_coef_)
        m, d = self.hidden_coef_.shape
        first = torch.nn.utils.skip_init(torch.nn.Linear, d, m, dtype=torch.float64)
        last = torch.nn.utils.skip_init(torch.nn.Linear, m, len(outputs), bias=False, dtype=torch.float64)
        with torch.no_grad():
            first.weight.copy_(torch.as_tensor(self.hidden_coef_))
            first.bias.copy_(torch.as_tensor(self.hidden_intercept_))
            last.weight.copy_(torch.as_tensor(outputs))
        return torch.nn.Sequential(first, torch.nn.ReLU(), last)

    def _rows(self, X: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        rows: np.ndarray = validate_data(self, X, dtype=np.float64, reset=False)
        return rows

    def _network(self, output: np.ndarray) -> Network:
        return Network(self.hidden_coef_, self.hidden_intercept_, output)

    def _outputs(self, X: ArrayLike) -> np.ndarray:
        """(n, outputs)."""
        rows = self._rows(X)
        hidden = (rows @ self.hidden_coef_.T + self.hidden_intercept_).clip(min=0)
        scores: np.ndarray = hidden @ np.atleast_2d(self.output_coef_).T
        return scores

    def _targets(self, y: np.ndarray) -> list[np.ndarray]:
        raise NotImplementedError

    # ---- training

    def _fit(self, X: np.ndarray, y: np.ndarray) -> None:
        solver = self._solver(len(X))
        rng = numpy_generator(self.random_state, name="random_state")
        rows = np.column_stack([X, np.ones(len(X))]) if self.fit_intercept else X
        radius = np.full(rows.shape[1], float(self.adversarial_radius))
        if self.fit_intercept:
            radius[-1] = 0.0
        seen = getattr(self, "_seen", None)
        if not (self.warm_start and seen is not None and seen[0] == solver and np.array_equal(seen[1], rows)):
            seen = None
        if seen is None:
            self._directions, self.patterns_ = self._choose_patterns(rows, radius, solver, rng)
        targets = self._targets(y)
        states = seen[2] if seen is not None and len(seen[2]) == len(targets) else [None] * len(targets)
        seeds = child_seeds(int(rng.integers(2**62)), len(targets))
        own = Settings(
            solver, self.rho, self.dual_step, self.rbcd_block, self.rbcd_tol, self.max_iter, self.tol, self.verbose
        )

        def tensor(a: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(np.array(a, dtype=np.float64), device=self.device)

        data, cells, widths = tensor(rows), tensor(self.patterns_), tensor(radius)
        programs = [Program(data, tensor(t), cells, self.loss, float(self.beta), widths) for t in targets]
        solve: Any
        if self._directions is not None:
            solve = partial(_solve_sampled, directions=self._directions, own=own)
        else:
            exact = ExactStep(programs[0]) if solver == "admm" else None
            solve = partial(_solve_output, own=own, exact=exact)
        jobs = list(zip(programs, seeds, states, strict=True))
        if self.backend == "ray" and solver == "admm" and len(programs) == 1:
            fits = [fit_shared_out(programs[0], own, self.n_jobs or os.cpu_count() or 1)]
        else:
            fits = ordered_map(solve, jobs, backend=self.backend, n_workers=self.n_jobs)  # type: ignore[arg-type]
        self._seen = (solver, rows, [fit.state for fit in fits])
        self._keep(fits, rows, targets)

    def _solver(self, n: int) -> str:
        """Check the arguments and choose."""
        check_params(self, LIMITS)
        check("loss", self.loss, one_of(*self._known_losses))
        chosen = self.solver
        if chosen == "auto":
            exact = self.loss == "squared" and n <= EXACT_SAMPLES
            chosen = "pdhg" if self.adversarial_radius > 0 else "admm" if exact else "admm-rbcd"
        if chosen == "admm" and self.loss != "squared":
            raise value_error("solver", "'admm-rbcd', 'scp' or 'pdhg' with this loss", chosen, "admm is for 'squared'")
        if self.adversarial_radius > 0 and chosen != "pdhg":
            raise value_error("solver", "'pdhg' or 'auto' with adversarial_radius > 0", self.solver)
        return chosen

    def _choose_patterns(
        self, rows: np.ndarray, radius: np.ndarray, solver: str, rng: np.random.Generator
    ) -> tuple[np.ndarray | None, np.ndarray]:
        n = len(rows)
        if isinstance(self.patterns, str):
            check("patterns", self.patterns, one_of("exact", "sample", "perturbed"))
        if solver == "scp":
            if not (isinstance(self.patterns, str) and self.patterns == "sample"):
                raise value_error("patterns", "'sample' with solver='scp', which draws directions", self.patterns)
            directions = unit_directions(self.n_patterns or max(4 * n, 400), rows.shape[1], rng)
            return directions, (rows @ directions.T >= 0).T
        if not isinstance(self.patterns, str):
            given = np.asarray(self.patterns)
            if given.ndim != 2 or given.shape[1] != n or not len(given) or given.dtype != bool:
                raise value_error("patterns", f"a boolean array of shape (P, {n}), P >= 1, or a name", given)
            return None, given
        if self.patterns == "exact":
            return None, enumerate_patterns(rows)
        copies = self.perturbations_per_direction if self.patterns == "perturbed" or radius.any() else 0
        wanted = self.n_patterns or min(10 * n, 500)
        drawn = draw_patterns(rows, wanted, radius, copies, rng, tell=self.n_patterns is not None)
        if radius.any() and self.fit_intercept:  # that of affine functions, which boxes of any size leave alone
            drawn = np.unique(np.vstack([np.ones((1, n), dtype=bool), drawn]), axis=0)[::-1]
        return None, drawn

    def _keep(self, fits: list[Fit], rows: np.ndarray, targets: list[np.ndarray]) -> None:
        """Make the network, and the attributes of one output plain."""
        several = len(fits) > 1
        hidden, outputs = [], []
        for k, fit in enumerate(fits):
            for sign, half in zip((1.0, -1.0), fit.u, strict=True):
                norms = np.linalg.norm(half, axis=1)
                alive = norms > DROPPED * max(float(np.linalg.norm(fit.u, axis=-1).max()), np.finfo(float).tiny)
                roots = np.sqrt(norms[alive])
                hidden.append(half[alive] / roots[:, None])
                outputs.append(np.zeros((len(fits), len(roots))))
                outputs[-1][k] = sign * roots
        coef, output = np.vstack(hidden), np.hstack(outputs)
        if not len(coef):  # a network of zeros keeps one neuron
            coef, output = np.zeros((1, rows.shape[1])), np.zeros((len(fits), 1))
        d = self.n_features_in_
        self.hidden_coef_ = coef[:, :d]
        self.hidden_intercept_ = coef[:, d] if self.fit_intercept else np.zeros(len(coef))
        self.output_coef_ = output if several else output[0]
        scores = (rows @ coef.T).clip(min=0) @ output.T
        losses = [
            float(_losses.value(self.loss, torch.as_tensor(f), torch.as_tensor(t)).sum())
            for f, t in zip(scores.T, targets, strict=True)
        ]
        sizes = (
            0.5 * float(self.beta) * np.array([(np.square(coef[a != 0]).sum() + np.square(a).sum()) for a in output])
        )

        def one(values: list[Any]) -> Any:
            return values if several else values[0]

        self.v_, self.w_ = (np.stack([fit.u[k] for fit in fits]) if several else fits[0].u[k] for k in (0, 1))
        self.objective_ = one([fit.objective for fit in fits])
        self.nonconvex_objective_ = one([a + float(b) for a, b in zip(losses, sizes, strict=True)])
        self.duality_gap_ = one([fit.gap for fit in fits])
        self.constraint_violation_ = one([fit.violation for fit in fits])
        self.rho_ = one([fit.rho for fit in fits])
        self.history_ = one([fit.history for fit in fits])
        self.dual_violation_ = one([fit.dual_violation for fit in fits])
        self.n_iter_ = max(fit.n_iter for fit in fits)
        self.converged_ = all(fit.converged for fit in fits)
        if not self.converged_:
            worst = max(fit.gap / max(abs(fit.objective), math.ulp(1.0)) for fit in fits)
            warnings.warn(
                f"the relative duality gap is {worst:.1e} after {max(fit.n_iter for fit in fits)} iterations, "
                f"tol={self.tol:g} asked for; raise max_iter, tol, beta or n_patterns",
                ConvergenceWarning,
                stacklevel=4,
            )


def _solve_output(job: tuple[Program, int, Any], own: Settings, exact: ExactStep | None) -> Fit:
    program, seed, state = job
    return fit_output(program, own, seed, state, exact)


def _solve_sampled(job: tuple[Program, int, Any], directions: np.ndarray, own: Settings) -> Fit:
    program, seed, state = job
    return fit_sampled(program, directions, own, seed, state)
