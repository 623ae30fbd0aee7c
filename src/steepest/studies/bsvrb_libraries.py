"""Libraries for nested problems as rivals of BSVRB: higher, TorchOpt, betty and jaxopt, with all blocks in every step.

    higher, TorchOpt    differentiate through K lower steps
    betty               K lower steps, then its Neumann series of K terms
    jaxopt              K lower steps, compiled, then conjugate gradients on the implicit equation

They take the joined problem: the sum of the lower objectives, the mean of the upper ones, a batch for each block. Lower
steps go on from where the last ones ended. jaxopt sees the same losses written in JAX, for the weighting task alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steepest.bilevel import BilevelProblem
from steepest.bilevel._loop import decayed
from steepest.bilevel._tasks_blocks import RIDGE, SCALES
from steepest.bilevel.problem import BilevelResult
from steepest.core.extras import installed, require
from steepest.core.random import torch_generator

__all__ = ["LIBRARIES", "Watch", "at_rates", "present"]

K = 5
CG_STEPS = 10
Watch = Callable[[Tensor, Tensor], None]
"""Told x and y after every upper step; raises StopIteration when it has seen enough."""


class Joined:
    """Minibatch objectives of all blocks, and the step sizes: `rate` of upper step k, `lr_y`."""

    def __init__(self, problem: BilevelProblem, rate: Callable[[int], float], lr_y: float, seed: int) -> None:
        self.problem, self.rate, self.lr_y, self.blocks = problem, rate, lr_y, problem.all_blocks
        assert isinstance(problem.x0, Tensor)
        assert isinstance(problem.y0, Tensor)
        self.x0, self.y0 = problem.x0, problem.y0
        self.generator = torch_generator(seed, self.x0.device, name="random_state")

    def draw(self, level: str) -> Any:
        """Draw a batch of every block from the sampler of "upper" or "lower"."""
        return getattr(self.problem, f"sample_{level}")(self.generator, None, self.blocks)

    def lower(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum over the blocks."""
        return self.problem.lower(x, y, self.draw("lower"), self.blocks).sum()

    def upper(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean over the blocks."""
        return self.problem.upper(x, y, self.draw("upper"), self.blocks).mean()


class Variable(nn.Module):
    """A tensor as a module, which is what these libraries take."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(start.clone())

    def forward(self) -> Tensor:
        """The tensor."""
        return self.value


def higher_unrolled(joined: Joined, watch: Watch) -> None:
    """Unrolled by higher."""
    higher: Any = require("higher", what="the row of higher")
    x, heads = joined.x0.clone().requires_grad_(), Variable(joined.y0)
    optimizer = torch.optim.SGD(heads.parameters(), lr=joined.lr_y)
    for k in _forever():
        with higher.innerloop_ctx(heads, optimizer) as (unrolled, differentiable):
            for _ in range(K):
                differentiable.step(joined.lower(x, unrolled.value))
            (h,) = torch.autograd.grad(joined.upper(x, unrolled.value), x)
            last = unrolled.value.detach()
        with torch.no_grad():
            heads.value.copy_(last)
            x -= joined.rate(k) * h
        watch(x.detach(), last)


def torchopt_unrolled(joined: Joined, watch: Watch) -> None:
    """Unrolled by TorchOpt's `MetaSGD`."""
    torchopt: Any = require("torchopt", what="the row of TorchOpt")
    x, heads = joined.x0.clone().requires_grad_(), Variable(joined.y0)
    optimizer = torchopt.MetaSGD(heads, lr=joined.lr_y)
    for k in _forever():
        for _ in range(K):
            optimizer.step(joined.lower(x, heads.value))
        (h,) = torch.autograd.grad(joined.upper(x, heads.value), x)
        torchopt.stop_gradient(heads)
        torchopt.stop_gradient(optimizer)
        with torch.no_grad():
            x -= joined.rate(k) * h
        watch(x.detach(), heads.value.detach())


def betty_neumann(joined: Joined, watch: Watch) -> None:
    """Approximate implicit differentiation by betty's engine."""
    problems: Any = require("betty.problems", what="the row of betty")
    configs: Any = require("betty.configs", what="the row of betty")
    engine: Any = require("betty.engine", what="the row of betty")
    x, heads = Variable(joined.x0), Variable(joined.y0)
    optimizer = torch.optim.SGD(x.parameters(), lr=joined.rate(0))
    taken = _forever()
    next(taken)

    class Batches:
        """The objectives draw for themselves."""

        def __iter__(self) -> Iterator[tuple[Tensor]]:
            while True:
                yield (torch.zeros(1),)

        def __len__(self) -> int:
            return 10**6

    class Upper(problems.ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return joined.upper(self(), self.inner())

        def param_callback(self, params: Any) -> None:
            optimizer.param_groups[0]["lr"] = joined.rate(next(taken))
            watch(x.value.detach(), heads.value.detach())

    class Lower(problems.ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return joined.lower(self.outer(), self())

    outer = Upper(name="outer", module=x, optimizer=optimizer, train_data_loader=Batches(), config=configs.Config())
    inner = Lower(
        name="inner", module=heads, optimizer=torch.optim.SGD(heads.parameters(), lr=joined.lr_y),
        train_data_loader=Batches(),
        config=configs.Config(type="neumann", unroll_steps=K, neumann_iterations=K, neumann_alpha=joined.lr_y),
    )  # fmt: skip
    links = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    options = engine.EngineConfig(train_iters=10**6, valid_step=10**7)
    engine.Engine(config=options, problems=[outer, inner], dependencies=links).run()


def jaxopt_implicit(joined: Joined, watch: Watch) -> None:
    """Implicit differentiation by jaxopt, compiled once for a problem."""
    step = _jax_step(joined.problem)
    x, y = joined.x0.numpy(), joined.y0.numpy()
    for k in _forever():
        lower = np.stack([joined.draw("lower").numpy() for _ in range(K)])
        x, y = step(x, y, lower, joined.draw("upper").numpy(), joined.rate(k), joined.lr_y)
        watch(torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y)))


@lru_cache(maxsize=2)
def _jax_step(problem: BilevelProblem) -> Callable[..., Any]:
    jax: Any = require("jax", what="the row of jaxopt")
    linear_solve: Any = require("jaxopt.linear_solve", what="the row of jaxopt")
    implicit_diff: Any = require("jaxopt.implicit_diff", what="the row of jaxopt")
    jax.config.update("jax_enable_x64", True)
    jnp = jax.numpy
    train, validation = (jnp.asarray(x) for x in samples(problem))
    scales = jnp.geomspace(*SCALES, problem.n_blocks)[:, None]

    def losses(Z: Any, y: Any, i: Any) -> Any:
        return jax.nn.softplus(-scales * jnp.einsum("mbp,mp->mb", Z[i], y)) / scales

    def lower(y: Any, x: Any, i: Any) -> Any:
        return (jax.nn.sigmoid(x[i]) * losses(train, y, i)).mean(1).sum() + RIDGE / 2 * (y**2).sum()

    def solver(start: Any, x: Any, batches: Any, lr_y: Any) -> Any:
        return jax.lax.fori_loop(0, K, lambda k, y: y - lr_y * jax.grad(lower)(y, x, batches[k]), start)

    def solve(matvec: Any, right: Any) -> Any:
        return linear_solve.solve_cg(matvec, right, maxiter=CG_STEPS)

    def stationary(y: Any, x: Any, batches: Any, lr_y: Any) -> Any:
        return jax.grad(lower)(y, x, batches[-1])

    implicit = implicit_diff.custom_root(stationary, solve=solve)(solver)

    def upper(x: Any, y: Any, batches: Any, i: Any, lr_y: Any) -> Any:
        y = implicit(y, x, batches, lr_y)
        return losses(validation, y, i).mean(), y

    def step(x: Any, y: Any, batches: Any, i: Any, lr_x: Any, lr_y: Any) -> Any:
        h, y = jax.grad(upper, has_aux=True)(x, y, batches, i, lr_y)
        return x - lr_x * h, y

    compiled: Callable[..., Any] = jax.jit(step)
    return compiled


def samples(problem: BilevelProblem) -> tuple[np.ndarray, np.ndarray]:
    """Samples of the weighting task times their labels, training and validation: -2 (-4) times gradients at 0."""
    assert isinstance(problem.y0, Tensor)
    found = []
    for level, objective, factor in (("train", problem.lower, -4.0), ("validation", problem.upper, -2.0)):
        n = len(problem.x0) if level == "train" else _count(problem)
        y = problem.y0.new_zeros(n, problem.y0.shape[1]).requires_grad_()
        values = objective(problem.x0, y, torch.arange(n).unsqueeze(1), torch.zeros(n, dtype=torch.long))
        (g,) = torch.autograd.grad(values.sum(), y)
        found.append(factor * g.numpy())
    return found[0], found[1]


def _count(problem: BilevelProblem) -> int:
    """How many validation samples there are: the largest index that a batch may have."""
    assert problem.sample_upper is not None
    drawn = problem.sample_upper(torch.Generator().manual_seed(0), 100_000, torch.zeros(1, dtype=torch.long))
    return int(drawn.max()) + 1


LIBRARIES: dict[str, tuple[str, Callable[[Joined, Watch], None]]] = {
    "higher": ("higher", higher_unrolled),
    "TorchOpt": ("torchopt", torchopt_unrolled),
    "betty": ("betty", betty_neumann),
    "jaxopt": ("jaxopt", jaxopt_implicit),
}


def present() -> list[str]:
    """The libraries that are installed."""
    return [name for name, (package, _) in LIBRARIES.items() if installed(package)]


def at_rates(
    name: str, problem: BilevelProblem, *, lr_x: float, lr_y: float, decay: str, maxiter: int, random_state: int
) -> BilevelResult:
    """Run a library for `maxiter` upper steps, `lr_x` decaying as in `bsvrb`."""
    last: list[Tensor] = []
    count = 0

    def watch(x: Tensor, y: Tensor) -> None:
        nonlocal count
        last[:] = x, y
        count += 1
        if count >= maxiter or not math.isfinite(float(x.sum() + y.sum())):
            raise StopIteration

    joined = Joined(problem, lambda k: decayed(lr_x, decay, k, maxiter), lr_y, random_state)
    with suppress(StopIteration):
        LIBRARIES[name][1](joined, watch)
    x, y = (value.clone() for value in last)
    with torch.no_grad():
        fun = float(problem.upper(x, y, None, problem.all_blocks).mean())
    return BilevelResult(x=x, y=y, fun=fun, nit=count, success=math.isfinite(fun))


def _forever() -> Iterator[int]:
    k = 0
    while True:
        yield k
        k += 1
