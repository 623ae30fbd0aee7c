"""What an outer step of SSO costs: beside forward and backward passes of the model, and how it grows.

CPU seconds of one thread. A row per inner step compares the step, divided by its inner steps, with one forward and
backward pass of the same model on the same batch, made in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _rows import Row, alone, compared, fastest, fitted, interleaved, rows_of
from steepest.core.memory import peak_tensor_bytes
from steepest.core.random import torch_generator
from steepest.optim.target_surrogate import TargetSurrogate
from steepest.studies import target_surrogate_digits as digits
from steepest.studies.task import fresh_model

STEPS = 10
REPEATS = 9
CPU = time.process_time


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure; see the module."""
    parts = [
        partial(_inner_step, "digits", (64, 32, 10), 125),
        partial(_inner_step, "wide", (784, 1024, 1024, 10), 125),
        _outer_step,
        _gradients,
        _memory,
        _growth_in_steps,
        _growth_in_rows,
        _growth_in_parameters,
    ]
    return rows_of(parts, progress)


def _problem(widths: tuple[int, ...], n: int) -> tuple[nn.Module, Tensor, Tensor]:
    g = torch_generator(0)

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    x, y = torch.randn(n, widths[0], generator=g), torch.randint(widths[-1], (n,), generator=g)
    return fresh_model(build, 0), x, y


def _sso(widths: tuple[int, ...], n: int, **options: Any) -> Callable[[], Any]:
    model, x, y = _problem(widths, n)
    opt = TargetSurrogate(model.parameters(), target_lr=2.0, **options)
    return lambda: opt.step(lambda: model(x), lambda z: F.cross_entropy(z, y))


def _passes(widths: tuple[int, ...], n: int, times: int) -> Callable[[], Any]:
    model, x, _ = _problem(widths, n)
    params = list(model.parameters())

    def go() -> None:
        for _ in range(times):
            z = model(x)
            torch.autograd.grad(z, params, z.detach())

    return go


def _inner_step(label: str, widths: tuple[int, ...], n: int) -> list[Row]:
    name = "x".join(map(str, widths))
    inners: dict[str, Any] = {"lbfgs": "lbfgs", "SGD": partial(torch.optim.SGD, lr=1e-3)}
    rows = []
    for inner, make in inners.items():
        tasks = {
            "ours": _sso(widths, n, inner=make, inner_steps=STEPS),
            "forward and backward alone": _passes(widths, n, STEPS),
        }
        interleaved(tasks, 2)
        seconds = interleaved(tasks, REPEATS, CPU)
        what = f"{STEPS} inner steps on {name}, batch {n}, beside {STEPS} passes"
        rows.append(compared(f"inner step, {inner}, {label}", seconds, "forward and backward alone", "<= 1.3", what))
    return rows


def _outer_step() -> list[Row]:
    """An outer step beside a step of SGD and of Adam: what a gradient must cost to be worth it."""
    widths, n = (64, 32, 10), 125
    rows = []
    for name, make in (("SGD", torch.optim.SGD), ("Adam", torch.optim.Adam)):
        model, x, y = _problem(widths, n)
        opt = make(model.parameters(), lr=1e-3)

        def plain(model: nn.Module = model, opt: Any = opt, x: Tensor = x, y: Tensor = y) -> None:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()

        tasks = {"ours": _sso(widths, n, inner="lbfgs"), name: plain}
        interleaved(tasks, 2)
        what = "an outer step, L-BFGS, ten iterations, on the digits network"
        rows.append(compared(f"outer step beside {name}", interleaved(tasks, 15, CPU), name, None, what))
    return rows


def _gradients() -> list[Row]:
    """Gradients to a loss of 0.05 on digits, SSO at its tuned step beside the best peer's."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    task = digits.Task(torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y), 150)
    ours = digits.run(task, digits.OURS[-1], 1).gradients_to(digits.TARGET)
    peers = [digits.run(task, m, 1).gradients_to(digits.TARGET) for grid in digits.PEERS.values() for m in grid]
    what = "best peer of 16 settings over ours, gradients to a training loss of 0.05 on digits, one seed"
    return [alone("fewer gradients", min(peers) / ours, "x", ">= 2", what) | {"better": "higher"}]


def _memory() -> list[Row]:
    """What a step holds at its peak beyond a pass of the model: in copies of the parameters, and of the targets."""
    rows = []
    for of, widths, n in (("parameters", (784, 256, 256, 10), 50), ("targets", (4, 10), 50_000)):
        model, x, _ = _problem(widths, n)
        size = 4 * (sum(p.numel() for p in model.parameters()) if of == "parameters" else model(x).numel())
        passes = _peak_bytes(_passes(widths, n, 1))
        for name, inner in (("SGD", partial(torch.optim.SGD, lr=1e-3)), ("Armijo", "armijo"), ("L-BFGS", "lbfgs")):
            copies = (_peak_bytes(_sso(widths, n, inner=inner, inner_steps=STEPS)) - passes) / size
            what = f"peak of a step of ten inner steps beyond that of a pass, {'x'.join(map(str, widths))}, batch {n}"
            rows.append(alone(f"memory, {of}, {name}", copies, f"x the {of}", None, what))
    return rows


def _peak_bytes(task: Callable[[], Any]) -> int:
    """Largest number of bytes that a second call holds beyond what was there before it, from the allocator's log."""
    task()
    return peak_tensor_bytes(task)


def _growth_in_steps() -> list[Row]:
    sizes = (4, 8, 16, 32, 64)
    make = partial(torch.optim.SGD, lr=1e-3)
    seconds = [_fastest(_sso((256, 256, 10), 250, inner=make, inner_steps=k)) for k in sizes]
    return [fitted("growth in inner_steps", sizes, seconds, "<= 1.1", "4 to 64 steps of SGD inside")]


def _growth_in_rows() -> list[Row]:
    sizes = (250, 500, 1000, 2000, 4000)
    seconds = [_fastest(_sso((256, 256, 10), n, inner="lbfgs")) for n in sizes]
    return [fitted("growth in n", sizes, seconds, "<= 1.1", "250 to 4000 rows, L-BFGS inside")]


def _growth_in_parameters() -> list[Row]:
    widths = (128, 256, 512, 1024, 2048)
    seconds = [_fastest(_sso((256, w, 10), 250, inner="lbfgs")) for w in widths]
    return [fitted("growth in P", [267 * w for w in widths], seconds, "<= 1.1", "3e4 to 5e5 parameters, L-BFGS inside")]


def _fastest(task: Callable[[], Any]) -> float:
    task()
    return fastest(task, 3, CPU)
