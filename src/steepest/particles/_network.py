"""Training a module by consensus: its parameters are the particles, a loader's batches the objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steepest.core.errors import at_least, check, check_params, kind_error, one_of, optional, value_error
from steepest.particles._arguments import check_functions
from steepest.particles._run import Status
from steepest.particles._weights import consensus_point
from steepest.particles.consensus import minimize_cbo

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

__all__ = ["train_module"]

# official network code; the data batch there is 60
NETWORK: dict[str, Any] = {
    "n_particles": 100,
    "batch_size": 10,
    "alpha": 50.0,
    "alpha_schedule": 2.0,
    "sigma": math.sqrt(0.4),
    "sigma_schedule": "log",
    "lam": 1.0,
    "dt": 0.1,
    "noise": "anisotropic",
    "stagnation_tol": 1e-5,
    "tol": 0.0,
}
OURS = (
    "fun",
    "args",
    "bounds",
    "jac",
    "gradient_weight",
    "resample",
    "vectorized",
    "workers",
    "maxiter",
    "steps_per_epoch",
)


def train_module(
    module: torch.nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    loader: Iterable[tuple[Any, Any]],
    *,
    epochs: int,
    preset: str | None = "network",
    **cbo: Any,
) -> OptimizeResult:
    """Train a module without gradients: minimize the loss over its parameters by `minimize_cbo` (riedl2023gradient).

    Every iteration sees the loader's next batch. At the end the whole loader is read once more: the consensus of the
    final swarm under the loss on all of it, or its best particle if that is better, is written into the module.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters that require a gradient are trained; all of one dtype and device. It is called on all particles
        at once through `torch.func`, so that it must not change its buffers (put batch normalization into eval mode)
        nor draw random numbers.
    loss_fn : callable
        ``loss_fn(module(inputs), targets)``, a scalar tensor; it need not be differentiable.
    loader : iterable of (inputs, targets)
        One pass is one epoch; it must have a length. A `DataLoader` or a list of batches.
    epochs : int
    preset : "network" or None
        The official network code: 100 particles in batches of 10 drawn from N(0, I), alpha 50 doubled and sigma
        ``sqrt(0.4)`` cooled every epoch, lam 1, dt 0.1, stagnation test 1e-5. None: the defaults of `minimize_cbo`.
    **cbo
        Arguments of `minimize_cbo` that replace the preset's. `x0` of shape (d,) or (N, d) starts elsewhere than at
        N(0, I), in the order of ``torch.nn.utils.parameters_to_vector``.

    Returns
    -------
    scipy.optimize.OptimizeResult
        As `minimize_cbo` returns it, with ``x`` (d,) what the module holds now, ``fun`` its mean loss over the loader,
        ``consensus, fun_consensus, population, population_fun`` under that loss too, ``epochs`` finished. ``history``
        is of the batches' losses. ``nfev`` counts evaluations on batches, the last pass included. A swarm that flew
        apart (status 3) is not judged on all data: x is the best point on its batch.

    Raises
    ------
    FloatingPointError
        A loss is NaN.
    ValueError, TypeError
        No trainable parameters, mixed dtypes, an empty loader, a loss that is no scalar, and as `minimize_cbo`.

    Examples
    --------
    >>> x = torch.linspace(-1, 1, 32)[:, None]
    >>> line = torch.nn.Linear(1, 1)
    >>> result = train_module(line, torch.nn.functional.mse_loss, [(x, 2 * x + 1)] * 20, epochs=5, seed=0)
    >>> result.fun < 1e-2, [round(float(p.detach()), 1) for p in line.parameters()]
    (True, [2.0, 1.0])
    """
    check_params({"epochs": epochs, "preset": preset}, LIMITS)
    check_functions(loss_fn=loss_fn, fun=module)
    for name in OURS:
        if name in cbo:
            raise value_error(name, "left to train_module, which sets it", cbo[name])
    trained = _Trained(module, loss_fn)
    steps = _length(loader)
    batches = _Batches(loader)
    given = (NETWORK if preset == "network" else {}) | cbo
    x0 = given.pop("x0", None)
    if x0 is None:
        x0 = torch.zeros_like(trained.vector)
    elif not isinstance(x0, Tensor):
        raise kind_error("x0", "a tensor", x0)
    elif x0.ndim not in (1, 2) or x0.shape[-1] != len(trained.vector):
        raise value_error("x0", f"of shape ({len(trained.vector)},) or (N, {len(trained.vector)})", x0)

    result = minimize_cbo(
        lambda x: trained.losses(x, *batches.current),
        x0,
        resample=batches.advance,
        vectorized=True,
        maxiter=epochs * steps,
        steps_per_epoch=steps,
        **given,
    )
    if result.status != Status.DIVERGED:
        _judge(result, trained, batches)
    result.epochs = result.nit // steps
    trained.load(result.x)
    return result


LIMITS = {"epochs": at_least(1, integer=True), "preset": optional(one_of("network"))}


def _judge(result: OptimizeResult, trained: _Trained, batches: _Batches) -> None:
    """Replace losses on the last batch by losses on all data; choose between consensus and best particle."""
    f = batches.mean_losses(trained, result.population)
    c = consensus_point(result.population, f, result.alpha)
    at_c = float(batches.mean_losses(trained, c[None])[0])
    best = int(f.argmin())
    x, fun = (c, at_c) if at_c <= float(f[best]) else (result.population[best].clone(), float(f[best]))
    result.update(x=x, fun=fun, consensus=c, fun_consensus=at_c, population_fun=f)
    result.nfev += (len(f) + 1) * batches.seen


def _length(loader: Any) -> int:
    if not hasattr(loader, "__len__"):
        raise kind_error("loader", "an iterable of (inputs, targets) with a length", loader)
    n = len(loader)
    check("len(loader)", n, at_least(1, integer=True))
    return n


class _Batches:
    """The loader's batches, over and over."""

    def __init__(self, loader: Iterable[tuple[Any, Any]]) -> None:
        self.loader = loader
        self.iterator: Iterator[tuple[Any, Any]] = iter(())
        self.current: tuple[Any, Any] = (None, None)
        self.seen = 0

    def advance(self, k: int) -> None:
        try:
            self.current = next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.loader)
            self.current = next(self.iterator)

    def mean_losses(self, trained: _Trained, x: Tensor) -> Tensor:
        """Average the losses of particles (m, d) over all batches, weighted by their sizes."""
        total, weight, self.seen = torch.zeros(len(x), dtype=torch.float64, device=x.device), 0, 0
        for inputs, targets in self.loader:
            n = len(targets)
            total += n * trained.losses(x, inputs, targets).to(torch.float64)
            weight, self.seen = weight + n, self.seen + 1
        return total / weight


class _Trained:
    """A module as a function of the vector of its trainable parameters."""

    def __init__(self, module: torch.nn.Module, loss_fn: Callable[[Any, Any], Tensor]) -> None:
        if not isinstance(module, torch.nn.Module):
            raise kind_error("module", "a torch.nn.Module", module)
        self.module, self.loss_fn = module, loss_fn
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if not self.parameters:
            raise value_error("module", "a module with parameters that require a gradient", module)
        if len({(p.dtype, p.device) for p in self.parameters}) > 1:
            raise value_error("module", "one dtype and device for all trainable parameters", module)
        self.vector = torch.nn.utils.parameters_to_vector(self.parameters).detach()

    def losses(self, x: Tensor, inputs: Any, targets: Any) -> Tensor:
        """Return the losses (m,) of the parameter vectors x (m, d)."""

        def loss(row: Tensor) -> Tensor:
            found = self.loss_fn(torch.func.functional_call(self.module, self._parts(row), (inputs,)), targets)
            if found.ndim != 0:
                raise value_error("loss_fn", "a function that returns a scalar tensor", found)
            return found

        with torch.no_grad():
            return torch.func.vmap(loss)(x)

    def _parts(self, row: Tensor) -> dict[str, Tensor]:
        sizes = [p.numel() for p in self.parameters]
        return {
            name: part.view(p.shape)
            for name, p, part in zip(self.names, self.parameters, row.split(sizes), strict=True)
        }

    def load(self, x: Tensor) -> None:
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(x, self.parameters)
