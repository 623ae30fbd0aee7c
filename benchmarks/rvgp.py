"""What a vector-field Gaussian process costs beside the dense form, scikit-learn's, gpytorch's and an interpolator.

``bench()`` returns one dict a row: name, ours (seconds, GiB or an exponent), peer, ratio (ours / peer, median over
repeats), interval (90 % bootstrap; for exponents of the fit), bound (on the ratio, else on ours), unit, what (in words)
and better. Seconds are processor seconds of one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from steepest.core.extras import installed
from steepest.manifold import VectorFieldGP
from steepest.manifold._evidence import Hyperparameters, Moments, evidence, prior_variances
from steepest.studies.claim import bootstrap_interval, slope_fit

Row = dict[str, Any]
N, K, SHARE, NOISE = 2000, 100, 0.5, 0.1
SIZES = (2000, 4000, 8000, 16_000, 32_000)


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts = [against_others, evidence_in_n, total_in_n, hundred_thousand]
    rows: list[Row] = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers complain about bounds of length scales and the like
        for i, part in enumerate(parts):
            rows += part()
            if progress is not None:
                progress((i + 1) / len(parts))
    return rows


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


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def against_others() -> list[Row]:
    """Fit and predict with standard deviations, n = 2000, half of them labelled, K = 100."""
    X, field, y = problem(N)
    hidden = np.isnan(y[:, 0])

    def ours() -> np.ndarray:
        return VectorFieldGP(K).fit(X, y).predict(X, return_std=True)[0]

    peers: dict[str, tuple[Callable[[], np.ndarray], str | None]] = {
        "dense form": (lambda: dense_form(X, y), "<= 0.05"),
        "scikit-learn": (lambda: sklearn_components(X, y), "<= 0.3333333333333333"),
        "RBFInterpolator": (lambda: rbf_interpolator(X, y), None),
    }
    if installed("gpytorch"):
        peers["gpytorch"] = (lambda: gpytorch_components(X, y), None)
    own = [seconds_of(ours) for _ in range(5)]
    own_seconds = [seconds for seconds, _ in own]
    rows = []
    for name, (work, bound) in peers.items():
        seconds, mean = seconds_of(work)
        errors = [float(np.linalg.norm((m - field)[hidden]) / np.linalg.norm(field[hidden])) for m in (own[0][1], mean)]
        ratios = np.divide(own_seconds, seconds)
        rows.append(
            {
                "name": f"fit-predict {name}",
                "ours": float(np.median(own_seconds)),
                "peer": f"{name} ({seconds:.2f} s)",
                "ratio": float(np.median(ratios)),
                "interval": bootstrap_interval(ratios, statistic=np.median),
                "bound": bound,
                "unit": "s",
                "what": f"fit and predict, n={N}, half labelled, K={K}; relative error at hidden points "
                f"{errors[0]:.3f} (ours), {errors[1]:.3f}",
                "better": "lower",
            }
        )
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

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
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
    finally:
        torch.set_num_threads(threads)


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
        seconds.append(
            min(seconds_of(lambda S=log_S, d=data: [evidence(S, 0.1, d) for _ in range(20)])[0] for _ in range(9))
        )
    return [fitted("evidence-in-n", list(sizes), seconds, "<= 0.1", "one evaluation of the evidence, O(K^3)")]


def total_in_n() -> list[Row]:
    """Fit and predict, K = 50."""
    seconds = []
    for n in SIZES:
        X, _, y = problem(n)
        seconds.append(seconds_of(lambda X=X, y=y: VectorFieldGP(50).fit(X, y).predict(X, return_std=True))[0])
    what = f"fit and predict, K=50, n={SIZES[0]} to {SIZES[-1]} ({seconds[-1]:.1f} s)"
    return [fitted("total-in-n", list(SIZES), seconds, "<= 1.3", what)]


CHILD = """
import json, resource, sys, time
sys.path.append(sys.argv[1])
from rvgp import problem
from steepest.manifold import VectorFieldGP
X, field, y = problem(100_000)
start = time.process_time()
mean, std = VectorFieldGP(50).fit(X, y).predict(X, return_std=True)
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
print(json.dumps([seconds, peak]))
"""


def hundred_thousand() -> list[Row]:
    """Fit and predict at n = 1e5, K = 50, in a process of its own."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-W", "ignore", "-c", CHILD, os.path.dirname(os.path.abspath(__file__))]
    child = subprocess.run(command, env=os.environ | one, capture_output=True, text=True, check=True)
    seconds, peak = json.loads(child.stdout.splitlines()[-1])
    what = "fit and predict at n=1e5, half labelled, K=50"
    return [
        alone("seconds-1e5", seconds, "<= 180", "s", what),
        alone("memory-1e5", peak, "<= 4", "GiB", f"peak of the process, {what}"),
    ]


def alone(name: str, value: float, bound: str, unit: str, what: str) -> Row:
    return {
        "name": name,
        "ours": value,
        "peer": None,
        "ratio": None,
        "interval": None,
        "bound": bound,
        "unit": unit,
        "what": what,
        "better": "lower",
    }


def fitted(name: str, sizes: list[int], seconds: list[float], bound: str, what: str) -> Row:
    slope, interval = slope_fit(sizes, seconds)
    return {**alone(name, slope, bound, "exponent", what), "interval": interval}
