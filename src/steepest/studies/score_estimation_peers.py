"""What people use in place of score regression: kernel ridge, a kernel density, and a deeper network with Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from steepest.core.random import child_seeds, torch_generator
from steepest.generative import OUProcess
from steepest.generative._score_problem import Standardization, draw_noised

__all__ = ["adam_denoiser", "density_denoiser", "ridge_predictions"]

Denoiser = Callable[[Tensor, Tensor], Tensor]
RATES = (3e-4, 1e-3, 3e-3)
LOOK_EACH = 50
BATCH = 128


def ridge_predictions(
    K: np.ndarray, Y: np.ndarray, K_test: np.ndarray, penalties: Sequence[float] | np.ndarray
) -> Iterator[np.ndarray]:
    """Scikit-learn's kernel ridge regression, one solve for every penalty."""
    from sklearn.kernel_ridge import KernelRidge

    for penalty in penalties:
        yield KernelRidge(alpha=float(penalty), kernel="precomputed").fit(K, Y).predict(K_test)


def density_denoiser(points: Tensor, n_bandwidths: int, folds: int = 5) -> Denoiser:
    """Denoiser whose score is that of scikit-learn's Gaussian `KernelDensity`, carried through the process.

    The bandwidth has the highest likelihood in cross-validation. A kernel at x_i of width b becomes
    N(a x_i, a^2 b^2 + h): the denoiser is a mean of shrunken centers.
    """
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KernelDensity

    widths = {"bandwidth": np.geomspace(0.05, 2.0, n_bandwidths)}
    width = GridSearchCV(KernelDensity(), widths, cv=folds).fit(points.numpy()).best_params_["bandwidth"]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        process = OUProcess()
        a, h = process.alpha(t)[:, None], process.h(t)[:, None]
        spread = a**2 * width**2 + h
        squared = torch.cdist(x / a, points).square() * a**2  # |x - a y|^2
        share = torch.softmax(-squared / (2 * spread), dim=1)
        center = share @ points
        return center + a * width**2 / spread * (x - a * center)

    return denoise


def adam_denoiser(
    points: Tensor,
    t_min: float,
    t_max: float,
    *,
    steps: int,
    seed: int,
    width: int = 128,
    rates: Sequence[float] = RATES,
    standardize: bool = False,
) -> Denoiser:
    """The usual denoising score matching: three SiLU layers, Adam, new noise in every batch, a fifth held out.

    Of all rates and all looks (every 50 steps) the weights with the lowest held-out loss are kept.
    """
    for_split, for_net, for_noise, for_held = child_seeds(seed, 4)
    standard = Standardization.of(points, standardize)
    z = standard.data(points).float()
    order = torch.randperm(len(z), generator=torch_generator(for_split))
    held = max(1, len(z) // 5)
    train = z[order[held:]]
    watched = draw_noised(z[order[:held]], t_min, t_max, n_noisings=10, seed=for_held)
    best, weights = float("inf"), None
    net = _network(z.shape[1], width, for_net)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    for rate in rates:
        net.load_state_dict(start)
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)
        g, process = torch_generator(for_noise), OUProcess()
        for k in range(1, steps + 1):
            x0 = train[torch.randint(len(train), (BATCH,), generator=g)]
            t = t_min + (t_max - t_min) * torch.rand(BATCH, generator=g)
            x, _ = process.perturb(x0, t, g)
            loss = (_evaluate(net, x, t, t_min, t_max) - x0).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if k % LOOK_EACH == 0 or k == steps:
                with torch.no_grad():
                    f = _evaluate(net, watched.x, watched.t, t_min, t_max)
                    now = float((f - watched.y).square().sum(1).mean())
                if now < best:
                    best, weights = now, {name: value.clone() for name, value in net.state_dict().items()}
    assert weights is not None, "no held-out loss was finite"
    net.load_state_dict(weights)

    @torch.no_grad()
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        f = _evaluate(net, standard.noisy(x, t).float(), t.float(), t_min, t_max).to(x)
        return standard.back(f)

    return denoise


def _network(d: int, width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(d + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, d)]
        return nn.Sequential(*layers)


def _evaluate(net: nn.Module, x: Tensor, t: Tensor, t_min: float, t_max: float) -> Tensor:
    f: Tensor = net(torch.cat([x, ((t - t_min) / (t_max - t_min))[:, None]], 1))
    return f
