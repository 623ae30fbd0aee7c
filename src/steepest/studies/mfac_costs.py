"""What M-FAC's operations cost: times against size, against the bandwidth limit, and against other optimizers' steps.

Every time is the fastest of several; what is compared is measured in turns. The products read `m d` values, so that
small sizes would sit in a cache and large ones would not: a buffer larger than the cache is written before each of
their measurements, and every size starts from memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from steepest.core.extras import installed, require
from steepest.core.random import torch_generator
from steepest.curvature import EmpiricalFisherInverse, SlidingFisherInverse
from steepest.optim import MFAC
from steepest.studies.task import fresh_model

__all__ = ["Times", "element", "fastest", "gaussian", "precompute", "product", "sliding", "step_times", "take_turns"]

Times = dict[Any, list[float]]
DAMPING = 1e-3
CACHE = 2**24  # float32 values of the buffer that evicts: 64 MiB


def take_turns(tasks: Mapping[Any, Callable[[], Any]], repeats: int, *, cold: bool = False, calls: int = 1) -> Times:
    """Time every task `repeats` times, in turns.

    Parameters
    ----------
    tasks : mapping
        Label to callable.
    cold : bool
        Write a buffer larger than the cache before each measurement.
    calls : int
        Calls in one measurement; the time is that of one.

    Returns
    -------
    dict
        Label to seconds, one for each turn.
    """
    buffer = torch.zeros(CACHE if cold else 1)
    seconds: Times = {label: [] for label in tasks}
    for _ in range(repeats):
        for label, task in tasks.items():
            buffer.add_(1)
            start = time.perf_counter()
            for _ in range(calls):
                task()
            seconds[label].append((time.perf_counter() - start) / calls)
    return seconds


def gaussian(m: int, d: int, seed: int = 0) -> Tensor:
    """Draw gradients, (m, d) float32."""
    return torch.randn(m, d, generator=torch_generator(seed))


def precompute(sizes: Sequence[tuple[int, int]], repeats: int, algorithm: str = "cholesky") -> Times:
    """Seconds to build the static inverse for sizes (m, d)."""
    seconds: Times = {}
    for m, d in sizes:
        G = gaussian(m, d)
        build = partial(EmpiricalFisherInverse, G, DAMPING, algorithm=algorithm)
        seconds |= take_turns({(m, d): build}, repeats)
    return seconds


def product(sizes: Sequence[tuple[int, int]], repeats: int) -> Times:
    """Seconds of one product with the static inverse, from memory."""
    seconds: Times = {}
    for m, d in sizes:
        inverse, x = EmpiricalFisherInverse(gaussian(m, d), DAMPING, overwrite=True), gaussian(1, d, seed=1)[0]
        seconds |= take_turns({(m, d): partial(inverse.matvec, x)}, repeats, cold=True)
    return seconds


def element(sizes: Sequence[tuple[int, int]], repeats: int) -> Times:
    """Seconds of one element, one far from the other."""
    seconds: Times = {}
    for m, d in sizes:
        inverse = EmpiricalFisherInverse(gaussian(m, d), DAMPING, overwrite=True)
        pick = partial(inverse.element, d // 3, d - 1)
        pick()
        seconds |= take_turns({(m, d): pick}, repeats, calls=50)
    return seconds


def sliding(sizes: Sequence[tuple[int, int]], repeats: int, *, cold: bool = True) -> dict[str, Times]:
    """Seconds of a product, of a change with its product, and of the two bare matrix-vector products."""
    seconds: dict[str, Times] = {"product": {}, "change": {}, "bare": {}}
    for m, d in sizes:
        inverse = SlidingFisherInverse(d, m, DAMPING)
        for g in gaussian(m, d):
            inverse.push(g)
        x, G, c = gaussian(1, d, seed=1)[0], inverse.grads(), torch.ones(m)
        inverse.matvec(x)  # a change factors the system, and the product after it finds it factored
        tasks: dict[str, Callable[[], Any]] = {
            "product": partial(inverse.matvec, x),
            "change": partial(inverse.push_matvec, x),
            "bare": partial(two_products, G, x, c),
        }
        found = take_turns(tasks, repeats, cold=cold)
        for name, values in found.items():
            seconds[name][m, d] = values
    return seconds


def two_products(G: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The limit: every value of the gradients is read twice."""
    return G @ x, G.mT @ c


def step_times(
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    repeats: int,
    *,
    batch: int = 128,
    window: int = 64,
    names: Sequence[str] | None = None,
) -> Times:
    """Seconds of a training step (forward, backward, update) of several optimizers, in turns; the window is full."""
    x = torch.randn(batch, *shape, generator=torch_generator(0))
    y = torch.randint(10, (batch,), generator=torch_generator(1))
    tasks: dict[str, Callable[[], Any]] = {}
    for name, make in optimizers(window).items():
        if names is not None and name not in names:
            continue
        model = fresh_model(build, 0)
        optimizer = make(list(model.parameters()))

        def step(model: nn.Module = model, optimizer: Optimizer = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        for _ in range(12):
            step()
        if isinstance(optimizer, MFAC):
            for g in gaussian(window, optimizer.fisher.d):
                optimizer.fisher.push(g)
        tasks[name] = step
    return take_turns(tasks, repeats)


def optimizers(window: int) -> dict[str, Callable[[list[nn.Parameter]], Optimizer]]:
    """Makers of MFAC, SGD and the second-order optimizers that are installed."""
    found: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
        "SGD": lambda p: torch.optim.SGD(p, 1e-4, momentum=0.9),
        "MFAC": lambda p: MFAC(p, 1e-4, 0.9, window=window, damping=DAMPING),
    }
    if installed("pytorch_optimizer"):
        other: Any = require("pytorch_optimizer", "peers")
        found["Shampoo"] = lambda p: other.Shampoo(p, lr=1e-4)
        found["SOAP"] = lambda p: other.SOAP(p, lr=1e-4)
    if installed("heavyball"):
        heavy: Any = require("heavyball", "peers")
        require("heavyball.utils", "peers").compile_mode = None  # type: ignore[attr-defined]
        found["PSGDKron"] = lambda p: heavy.PSGDKron(p, lr=1e-4, compile_step=False)
    return found


def fastest(seconds: Times) -> tuple[list[Any], list[float]]:
    """The sizes and the fastest time of each."""
    return list(seconds), [float(np.min(values)) for values in seconds.values()]
