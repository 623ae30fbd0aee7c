r"""What a two-layer ReLU network can do when its input moves within a box: certified radii and ranges of its output.

With pre-activations z_j = w_j'x + b_j a box of radius r moves neuron j by at most r ||w_j||_1. Neurons that cannot
switch make an affine function, whose change is at most r times the 1-norm of its gradient; one that can switch changes
the output by at most r |a_j| ||w_j||_1. Where the range has to be exact, a mixed-integer program decides the switches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

__all__ = ["Network"]

HALVINGS, DOUBLINGS = 40, 60


@dataclass(frozen=True)
class Network:
    """f(x) = sum_j a_j (w_j'x + b_j)_+ ; `W` (m, d), `b` (m,), `a` (m,)."""

    W: np.ndarray
    b: np.ndarray
    a: np.ndarray

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return (X @ self.W.T + self.b).clip(min=0) @ self.a

    def certified_radius(self, X: np.ndarray) -> np.ndarray:
        """Radius (n,) of a box in which the sign of f provably stays; infinite where f is found to be constant."""
        f = np.abs(self(X))
        low, high = np.zeros(len(X)), np.ones(len(X))
        for _ in range(DOUBLINGS):
            safe = f > self._change(X, high)
            if not safe.any():
                break
            low, high = np.where(safe, high, low), np.where(safe, 2 * high, high)
        else:
            low[safe] = np.inf
        for _ in range(HALVINGS):
            middle = np.where(np.isinf(low), np.inf, (low + high) / 2)
            safe = np.isinf(low) | (f > self._change(X, np.where(np.isinf(low), 0.0, middle)))
            low, high = np.where(safe, middle, low), np.where(safe, high, middle)
        return low

    def output_range(self, X: np.ndarray, radius: float, *, exact: bool) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest output (n,) in the boxes; bounds of them unless `exact` or no neuron can switch."""
        active, switching = self._states(X, np.full(len(X), radius))
        gradient = (active * self.a) @ self.W
        steady = np.einsum("nd,nd->n", gradient, X) + (active * self.a) @ self.b
        spread = radius * np.abs(gradient).sum(1)
        top = switching * (X @ self.W.T + self.b + radius * np.abs(self.W).sum(1))
        low = steady - spread + top @ self.a.clip(max=0)
        high = steady + spread + top @ self.a.clip(min=0)
        if exact:
            for k in np.flatnonzero(switching.any(1)):
                low[k] = -self._highest(X[k], radius, gradient[k], steady[k], switching[k], -1.0)
                high[k] = self._highest(X[k], radius, gradient[k], steady[k], switching[k], 1.0)
        return low, high

    def _states(self, X: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which neurons are active in all of a box, and which can switch: (n, m) each."""
        z, reach = X @ self.W.T + self.b, radius[:, None] * np.abs(self.W).sum(1)
        active = z >= reach
        return active, ~active & (z + reach > 0)

    def _change(self, X: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Bound on the change of f within each sample's box."""
        active, switching = self._states(X, radius)
        steady = np.abs((active * self.a) @ self.W).sum(1)
        return radius * (steady + switching @ (np.abs(self.a) * np.abs(self.W).sum(1)))

    def _highest(
        self, x: np.ndarray, radius: float, gradient: np.ndarray, steady: float, switching: np.ndarray, sign: float
    ) -> float:
        """Maximize sign * f over the box: variables are the move, the switching neurons' outputs, and their states."""
        W, a = self.W[switching], sign * self.a[switching]
        z, reach = W @ x + self.b[switching], radius * np.abs(W).sum(1)
        d, m = len(x), len(a)
        eye, none = np.eye(m), np.zeros((m, m))
        constraints = [
            LinearConstraint(np.hstack([-W, eye, none]), lb=z),  # output >= pre-activation
            LinearConstraint(np.hstack([-W, eye, np.diag(reach - z)]), ub=z + (reach - z)),  # = it where active
            LinearConstraint(np.hstack([np.zeros((m, d)), eye, -np.diag(z + reach)]), ub=0.0),  # 0 elsewhere
        ]
        bounds = Bounds(
            np.concatenate([np.full(d, -radius), np.zeros(2 * m)]),
            np.concatenate([np.full(d, radius), z + reach, np.ones(m)]),
        )
        cost = -np.concatenate([sign * gradient, a, np.zeros(m)])
        whole = np.concatenate([np.zeros(d + m), np.ones(m)])
        solution = milp(cost, constraints=constraints, bounds=bounds, integrality=whole, options={"mip_rel_gap": 1e-9})
        if solution.status != 0:
            raise RuntimeError(f"the program of a box was not solved: {solution.message}")
        return sign * steady - float(solution.fun)
