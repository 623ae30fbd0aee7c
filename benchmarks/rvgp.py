"""What a vector-field Gaussian process costs beside the dense form, scikit-learn's, gpytorch's and an interpolator.

CPU seconds; the peers are measured once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize

from _rows import Row, alone, compared, cost, fastest, fitted, in_child, interleaved, rows_of
from steepest.core.extras import installed
from steepest.manifold import VectorFieldGP
from steepest.manifold._evidence import Hyperparameters, Moments, evidence, prior_variances

N, K, SHARE, NOISE = 2000, 100, 0.5, 0.1
SIZES = (2000, 4000, 8000, 16_000, 32_000)


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts = [against_others, evidence_in_n, total_in_n, hundred_thousand]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers complain about bounds of length scales and the like
        return rows_of(parts, progress)


def sphere(n: int) -> np.ndarray:
    i = np.arange(n) + 0.5
    z, angle = 1 - 2 * i / n, np.pi * (1 + 5**0.5) * i
    r = np.sqrt(1 - z**2)
    return np.column_stack([r * np.cos(angle), r * np.sin(angle), z])


def problem(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, a tangent field with some detail, and noisy vectors at half of them."""
    X, rng = sphere(n), np.random.default_rng(seed)
    field = np.cross([0.0, 0.0, 1.0], X) + np.sin(3 * X[:, :1]) * np.cross(X, [0.0, 1.0, 0.0])
    y = field + NOISE * rng.standard_normal(X.shape)
    y[rng.random(n) > SHARE] = np.nan
    return X, field, y


def against_others() -> list[Row]:
    """Fit and predict with standard deviations, n = 2000, half of them labelled, K = 100."""
    X, field, y = problem(N)
    hidden = np.isnan(y[:, 0])

    peers: dict[str, tuple[Callable[[], np.ndarray], str | None]] = {
        "dense form": (lambda: dense_form(X, y), "<= 0.05"),
        "scikit-learn": (lambda: sklearn_components(X, y), "<= 0.3333333333333333"),
        "RBFInterpolator": (lambda: rbf_interpolator(X, y), None),
    }
    if installed("gpytorch"):
        peers["gpytorch"] = (lambda: gpytorch_components(X, y), None)
    means: dict[str, np.ndarray] = {}

    def task(name: str, work: Callable[[], np.ndarray]) -> Callable[[], None]:
        return lambda: means.update({name: work()})

    seconds = interleaved({"ours": task("ours", partial(fit_predict, X, y, K))}, 5, time.process_time)
    seconds |= interleaved({name: task(name, work) for name, (work, _) in peers.items()}, 1, time.process_time)
    size = np.linalg.norm(field[hidden])
    errors = {name: np.linalg.norm((mean - field)[hidden]) / size for name, mean in means.items()}
    rows = []
    for name, (_, bound) in peers.items():
        what = f"fit and predict, n={N}, half labelled, K={K}; relative error at hidden points "
        what += f"{errors['ours']:.3f} (ours), {errors[name]:.3f}"
        rows.append(compared(f"fit-predict {name}", seconds, name, bound, what))
    return rows


def dense_form(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The official form: the same kernel by a Cholesky factor of (N D, N D) in every step, one start at κ = 5."""
    model = VectorFieldGP(K, optimise=False).fit(X, y)  # graph, frames, spectrum and encoding
    E, lam, n_values = model.encoding_, model.eigenvalues_, len(model.eigenvectors_)
    rows = ~np.isnan(y[:, 0])
    Phi, z = E[rows].reshape(-1, K), y[rows].ravel()

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        kappa, sigma_f, noise, nu = np.exp(theta)
        log_S, slopes = prior_variances(lam, Hyperparameters(kappa, sigma_f, noise, nu), n_values)
        covariance = (Phi * np.exp(log_S)) @ Phi.T
        covariance.flat[:: len(z) + 1] += noise
        C = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        solved = cho_solve((C, True), np.column_stack([Phi, z]), check_finite=False)
        alpha = solved[:, -1]
        value = -0.5 * z @ alpha - np.log(C.diagonal()).sum() - 0.5 * len(z) * np.log(2 * np.pi)
        inner = np.einsum("mk,mk->k", Phi, solved[:, :-1])
        slope_S = 0.5 * np.exp(log_S) * ((Phi.T @ alpha) ** 2 - inner)
        trace = (len(z) - np.exp(log_S) @ inner) / noise  # of the inverse, by K⁻¹ (Φ S Φᵀ + s² I) = I
        kappa, sigma_f, log_nu = slope_S @ slopes
        gradient = np.array([kappa, sigma_f, 0.5 * noise * (alpha @ alpha - trace), log_nu])
        return -value / len(z), -gradient / len(z)

    start = np.log([5.0, 1.0, 1e-3, 1.5])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(-10, 10)] * 3 + [(-1.2, 3)])
    kappa, sigma_f, noise, nu = np.exp(found.x)
    S = np.exp(prior_variances(lam, Hyperparameters(kappa, sigma_f, noise, nu), n_values)[0])
    covariance = (Phi * S) @ Phi.T
    covariance.flat[:: len(z) + 1] += noise
    C = cholesky(covariance, lower=True)
    cross = (E.reshape(-1, K) * S) @ Phi.T
    np.einsum("ij,ij->i", cross, cho_solve((C, True), cross.T).T)  # what the standard deviations need
    return (cross @ cho_solve((C, True), z)).reshape(X.shape)


def sklearn_components(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Scikit-learn's Gaussian process on the coordinates, one per component."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    rows, means = ~np.isnan(y[:, 0]), []
    for component in y.T:
        kernel = ConstantKernel() * Matern(nu=1.5) + WhiteKernel(0.01)
        model = GaussianProcessRegressor(kernel, random_state=0).fit(X[rows], component[rows])
        means.append(model.predict(X, return_std=True)[0])
    return np.column_stack(means)


def gpytorch_components(X: np.ndarray, y: np.ndarray, steps: int = 50) -> np.ndarray:
    """Exact gpytorch model on the coordinates, one batch of the components, 50 steps of Adam."""
    import gpytorch
    import torch

    rows = ~np.isnan(y[:, 0])
    inputs, targets = torch.as_tensor(X[rows]), torch.as_tensor(y[rows].T.copy())
    batch = torch.Size([len(targets)])

    class Model(gpytorch.models.ExactGP):
        def __init__(self, likelihood: Any) -> None:
            super().__init__(inputs.expand(*batch, *inputs.shape), targets, likelihood)
            self.mean = gpytorch.means.ZeroMean(batch_shape=batch)
            matern = gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=batch)
            self.kernel = gpytorch.kernels.ScaleKernel(matern, batch_shape=batch)

        def forward(self, x: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=batch).double()
    model = Model(likelihood).double()
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -objective(model(*model.train_inputs), targets).sum()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = model(torch.as_tensor(X).expand(*batch, *X.shape))
        found.variance.sqrt()
        return found.mean.T.numpy()


def rbf_interpolator(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """SciPy's thin-plate spline through all labelled points; no uncertainty, smoothing by hand."""
    from scipy.interpolate import RBFInterpolator

    rows = ~np.isnan(y[:, 0])
    return RBFInterpolator(X[rows], y[rows], smoothing=1e-2)(X)


def evidence_in_n() -> list[Row]:
    """One evaluation of the evidence and its gradient, K = 100, from the moments of more and more values."""
    rng, seconds = np.random.default_rng(0), []
    lam, sizes = np.sort(rng.random(K)), (1000, 4000, 16_000, 64_000)
    parameters = Hyperparameters(2.0, 1.0, 0.1, 1.5)
    for size in sizes:
        data = [Moments.of(rng.standard_normal((size, K)), rng.standard_normal((size, 1)))]
        log_S, _ = prior_variances(lam, parameters, size)
        seconds.append(fastest(lambda S=log_S, d=data: [evidence(S, 0.1, d) for _ in range(20)], 9, time.process_time))
    return [fitted("evidence-in-n", sizes, seconds, "<= 0.1", "one evaluation of the evidence, O(K^3)")]


def total_in_n() -> list[Row]:
    """Fit and predict, K = 50."""
    seconds = []
    for n in SIZES:
        X, _, y = problem(n)
        seconds.append(fastest(partial(fit_predict, X, y), 1, time.process_time))
    what = f"fit and predict, K=50, n={SIZES[0]} to {SIZES[-1]} ({seconds[-1]:.1f} s)"
    return [fitted("total-in-n", SIZES, seconds, "<= 1.3", what)]


def hundred_thousand() -> list[Row]:
    """Fit and predict at n = 1e5, K = 50, in a process of its own."""
    seconds, peak = in_child(measure, 100_000)
    what = "fit and predict at n=1e5, half labelled, K=50"
    return [
        alone("seconds-1e5", seconds, "s", "<= 180", what),
        alone("memory-1e5", peak, "GiB", "<= 4", f"peak of the process, {what}"),
    ]


def measure(n: int) -> tuple[float, float]:
    X, _, y = problem(n)
    return cost(partial(fit_predict, X, y))[:2]


def fit_predict(X: np.ndarray, y: np.ndarray, k: int = 50) -> np.ndarray:
    return VectorFieldGP(k).fit(X, y).predict(X, return_std=True)[0]
