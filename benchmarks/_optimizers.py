"""What a step costs: AdamP, SGDP, Sophia and AdaHessian beside AdamW and the packages that have them.

Every row times whole steps, ours and the peer's in turns in one process, and compares minima (least disturbed by
other work on the machine); the interval is the 90 % bootstrap of the ratio of minima. Curvature is excluded: gradients
and one estimate are there before the clock starts.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import steepest.optim as ours
from _rows import Row, alone, fitted, interleaved, rows_of, threads
from steepest.core.extras import installed, require
from steepest.studies.claim import slope_fit

Make = Callable[[list[Tensor]], Any]
REPEATS = 25
AFTER = 2  # steps before the native kernel, instead of 20: the warm-up is longer


def gpt_shapes() -> list[tuple[int, ...]]:
    """6 layers of width 256: 4.78 M parameters in 40 tensors."""
    d = 256
    layer = [(d,), (3 * d, d), (d, d), (d,), (4 * d, d), (d, 4 * d)]
    return [(103, d), (128, d), *6 * layer, (d,), (d,)]


def resnet_shapes() -> list[tuple[int, ...]]:
    """ResNet-20 with 1 x 1 convolutions as shortcuts: 0.27 M parameters in 65 tensors."""
    shapes: list[tuple[int, ...]] = [(16, 3, 3, 3), (16,), (16,)]
    inner = 16
    for width in (16, 32, 64):
        for _ in range(3):
            shapes += [(width, inner, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            if inner != width:
                shapes += [(width, inner, 1, 1), (width,), (width,)]
            inner = width
    return [*shapes, (10, 64), (10,)]


SETS = {"GPT 4.8 M": gpt_shapes(), "ResNet-20": resnet_shapes(), "one 16 M tensor": [(4000, 4000)]}

ADAMW: dict[str, Make] = {
    "fused": lambda p: torch.optim.AdamW(p, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "loop": lambda p: torch.optim.AdamW(p, foreach=False),
}

# name: how it is made, bounds beside AdamW fused (native), fused (plain), foreach (plain)
METHODS: dict[str, tuple[Callable[..., Any], str, str | None, str | None]] = {
    "AdamP": (lambda p, **k: ours.AdamP(p, weight_decay=0.01, **k), "<= 2", None, None),
    "SGDP": (lambda p, **k: ours.SGDP(p, momentum=0.9, weight_decay=0.01, **k), "<= 1.5", None, None),
    "Sophia": (lambda p, **k: ours.Sophia(p, seed=0, update_each=10**6, **k), "<= 1.2", "<= 3.5", "<= 0.7"),
    "AdaHessian": (lambda p, **k: ours.AdaHessian(p, seed=0, update_each=10**6, **k), "<= 1.5", None, "<= 1"),
}
PEERS: dict[str, dict[str, tuple[str, Callable[[Any, list[Tensor]], Any]]]] = {
    "AdamP": {
        "adamp": ("adamp", lambda m, p: m.AdamP(p, weight_decay=0.01)),
        "torch_optimizer": ("torch_optimizer", lambda m, p: m.AdamP(p, weight_decay=0.01)),
        "pytorch_optimizer": ("pytorch_optimizer", lambda m, p: m.AdamP(p, weight_decay=0.01, foreach=False)),
    },
    "SGDP": {
        "adamp": ("adamp", lambda m, p: m.SGDP(p, 0.1, momentum=0.9, weight_decay=0.01)),
        "torch_optimizer": ("torch_optimizer", lambda m, p: m.SGDP(p, 0.1, momentum=0.9, weight_decay=0.01)),
        "pytorch_optimizer": ("pytorch_optimizer", lambda m, p: m.SGDP(p, 0.1, momentum=0.9, weight_decay=0.01)),
    },
}


def bench(progress: Callable[[float], None] | None = None, methods: Sequence[str] | None = None) -> list[Row]:
    """Measure every row, of all optimizers or of `methods`; `progress` is told the share that is done."""
    chosen = METHODS if methods is None else methods
    parts: list[Callable[[], list[Row]]] = [
        partial(steps, name, set_name, n_threads)
        for n_threads in (1, 2)
        for set_name in SETS
        for name in chosen
        if n_threads <= (os.cpu_count() or 1)
    ]
    parts += [partial(scaling, name) for name in chosen]
    parts += [partial(memory, name) for name in chosen]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers' deprecations
        return rows_of(parts, progress)


def steps(name: str, set_name: str, n_threads: int) -> list[Row]:
    """One optimizer on one set: native and plain beside AdamW's three paths and beside the packages."""
    make, native_bound, fused_bound, foreach_bound = METHODS[name]
    contenders: dict[str, Make] = {
        "native": lambda p: make(p, compile_after=AFTER),
        "plain": lambda p: make(p, compile=False),
        **ADAMW,
    }
    peers = []
    for peer, (package, build) in PEERS.get(name, {}).items():
        if installed(package):
            module = require(package, "peers")
            contenders[peer] = lambda p, build=build, module=module: build(module, p)
            peers.append(peer)
    with threads(n_threads):
        tasks = {key: prepared(build, SETS[set_name]).step for key, build in contenders.items()}
        times = interleaved(tasks, REPEATS)
    where = f"{name}, {set_name}, {n_threads} thread{'s' * (n_threads > 1)}"

    def row(path: str, peer: str, label: str, bound: str | None) -> Row:
        ratio, interval = ratio_of_minima(times[path], times[peer])
        what = f"time of a step, curvature excluded ({label} takes {1e3 * min(times[peer]):.2f} ms)"
        found = alone(f"{where}, {path}", 1e3 * min(times[path]), "ms", bound, what)
        return found | {"peer": label, "ratio": ratio, "interval": interval}

    rows = [
        row("native", "fused", "AdamW fused", native_bound),
        row("plain", "fused", "AdamW fused", fused_bound),
        row("plain", "foreach", "AdamW foreach", foreach_bound),
        row("native", "loop", "AdamW loop", None),
    ]
    if peers:
        fastest = min(peers, key=lambda peer: min(times[peer]))
        label = f"{fastest}, the fastest of {len(peers)}"
        rows += [
            row("native", fastest, label, "<= 0.4" if name == "AdamP" else None),
            row("plain", fastest, label, "<= 1.1"),
        ]
    return rows


def scaling(name: str) -> list[Row]:
    """How the time of a step grows with the number of parameters, in tensors of 1e5 to 3e7."""
    make = METHODS[name][0]
    sizes = [10**5, 4 * 10**5, 16 * 10**5, 64 * 10**5, 3 * 10**7]
    rows = []
    for path, options in (("native", {"compile_after": AFTER}), ("plain", {"compile": False})):
        square = {n: [(math.isqrt(n), math.isqrt(n))] for n in sizes}
        runs: dict[Any, Callable[[], Any]] = {n: prepared(partial(make, **options), square[n]).step for n in sizes}
        runs |= {f"AdamW {n}": prepared(ADAMW["fused"], square[n]).step for n in sizes}
        times = interleaved(runs, 20)
        adamw, _ = slope_fit(sizes, [min(times[f"AdamW {n}"]) for n in sizes])  # leaves the caches too
        what = "exponent of time in the number of parameters, 1e5 to 3e7"
        row = fitted(f"{name}, {path}", sizes, [min(times[n]) for n in sizes], "<= 1.05", what)
        rows.append(row | {"unit": "", "peer": f"AdamW fused ({adamw:.2f})"})
    return rows


def memory(name: str) -> list[Row]:
    """Bytes of state for a parameter, beside AdamW."""

    def state_bytes(optimizer: Any) -> float:
        tensors = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors) / sum(
            p.numel() for group in optimizer.param_groups for p in group["params"]
        )

    shapes = SETS["GPT 4.8 M"]
    mine, theirs = (state_bytes(prepared(m, shapes, steps=1)) for m in (METHODS[name][0], ADAMW["fused"]))
    row = alone(f"{name}, state", mine, "bytes a parameter", "<= 1.01", "memory of the optimizer")
    return [row | {"peer": f"AdamW ({theirs:.2f})", "ratio": mine / theirs}]


# -------------------------------------------------------------------------------------------------------------- helpers


def prepared(make: Make, shapes: list[tuple[int, ...]], steps: int = AFTER + 1) -> Any:
    """An optimizer with gradients, one curvature estimate if it wants one, and a few steps behind it."""
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(0.02 * torch.randn(s, generator=g)) for s in shapes]
    optimizer = make(params)
    if hasattr(optimizer, "update_hessian"):
        loss = sum((p**2).sum() for p in params)
        optimizer.update_hessian(loss, **({"batch_size": 1} if isinstance(optimizer, ours.Sophia) else {}))
    for p in params:
        p.grad = 0.01 * torch.randn(p.shape, generator=g)
    for _ in range(steps):
        optimizer.step()
    return optimizer


def ratio_of_minima(a: list[float], b: list[float], n: int = 200) -> tuple[float, tuple[float, float]]:
    """Ratio of the smallest times, and its 90 % bootstrap interval over paired repeats."""
    x, y = np.asarray(a), np.asarray(b)
    rows = np.random.default_rng(0).integers(len(x), size=(n, len(x)))
    low, high = np.quantile(x[rows].min(1) / y[rows].min(1), (0.05, 0.95))
    return float(x.min() / y.min()), (float(low), float(high))
