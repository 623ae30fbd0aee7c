"""Spectrum tools side by side: CPU seconds to a given accuracy of largest eigenvalue, trace, density; a rate from them.

``python benchmarks/batch_spectrum.py FILE`` draws the curves of the tools, error against seconds.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import nn

from _rows import Row, Seconds, alone, compared, fitted, interleaved, rows_of, threads
from steepest.core.extras import installed
from steepest.curvature import GGNOperator, slq
from steepest.landscape import BatchSpectrum
from steepest.studies.batch_spectrum_tools import (
    QUANTITIES,
    Curve,
    Quantity,
    against,
    as_arrays,
    best_way,
    draw_tools,
    measure,
    problem,
    tools,
)
from steepest.studies.batch_spectrum_training import digits_data, digits_mlp, independent_batches, seeded

STEPS = 30
SEEDS = range(1, 11)
LOSS = nn.CrossEntropyLoss()
PEERS = {"curvlinops": "curvlinops", "pyhessian": "PyHessian"}


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers'
        return rows_of([spectra, accuracies, range_test, exponents], progress)


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: int, batch: int, seed: int = 0) -> float:
    data = digits_data()
    for index in independent_batches(len(data), batch, steps, seed):
        opt.zero_grad()
        LOSS(model(data.X[index]), data.y[index]).backward()
        opt.step()
    with torch.no_grad():
        return float(LOSS(model(data.X), data.y))


def spectra() -> list[Row]:
    """30 Lanczos steps from one probe on the Hessian of all digits: CPU seconds."""
    model, X, y, dense = problem()
    ways = {name: tool for name, tool in tools(model, X, y)["density"].items() if name.endswith("one probe")}
    found = measure(QUANTITIES[-1], ways, dense, SEEDS, budgets=(STEPS,))
    seconds: Seconds = {name.split(",")[0]: list(curve.seconds[:, 0]) for name, curve in found.items()}
    what = f"spectrum of a Hessian with {len(dense)} parameters, {STEPS} steps, 1 probe"
    rows = []
    for package, peer in PEERS.items():
        if peer in seconds:
            rows.append(compared(f"spectrum-{package}", seconds, peer, "<= 0.5", what, ours="steepest"))
        else:
            rows.append(_without(f"spectrum-{package}", float(np.median(seconds["steepest"])), what, peer))
    return rows


@cache
def curves() -> dict[Quantity, dict[str, Curve]]:
    """Errors and CPU seconds of all tools at all budgets."""
    model, X, y, dense = problem()
    ways = tools(model, X, y)
    return {quantity: measure(quantity, ways[quantity.name], dense, SEEDS) for quantity in QUANTITIES}


def accuracies() -> list[Row]:
    """CPU seconds to an error, the best way of each tool."""
    rows = []
    for quantity, found in curves().items():
        ours, seconds = best_way(found, "steepest", quantity.target)
        what = f"CPU time to {quantity.name} within {quantity.target:g}, {ours}: {_listed(found[ours])}"
        for package, peer in PEERS.items():
            name = f"{quantity.name.replace(' ', '-')}-{package}"
            if not any(way.startswith(peer) for way in found):
                rows.append(_without(name, seconds, what, peer))
                continue
            theirs, its_seconds = best_way(found, peer, quantity.target)
            ratio, interval = against(found[ours], found[theirs], quantity.target)
            text = f"{what}; {theirs} in {its_seconds:.3g} s: {_listed(found[theirs])}"
            row = alone(name, seconds, "s", "<= 1", text)
            rows.append(row | {"peer": peer, "ratio": ratio, "interval": interval})
    return rows


def _without(name: str, seconds: float, what: str, peer: str) -> Row:
    return alone(name, seconds, "s", None, f"{what} ({peer} is not installed)")


def _listed(curve: Curve) -> str:
    errors = np.median(curve.errors, 0)
    return "error by products " + ", ".join(f"{m}: {error:.2g}" for m, error in zip(curve.budgets, errors))


def range_test() -> list[Row]:
    """One rate from 30 products beside the range test's 100 steps: final loss after 400 steps, no updates between."""
    data = digits_data()
    model = seeded(digits_mlp, 1)
    opt = torch.optim.SGD(model.parameters(), lr=1.0)
    BatchSpectrum(model, LOSS, data.X, data.y, seed=1).attach(opt, batch_size=128, every=10_000)
    loss = train(model, opt, 400, 128, seed=1)
    what = "training loss after 400 steps, one rate and momentum from 30 products at the start"
    if not installed("torch_lr_finder"):
        return [alone("range-test", loss, "nats", None, what + " (torch-lr-finder is not installed)")]
    import torch_lr_finder

    model = seeded(digits_mlp, 1)
    opt = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data.X, data.y), 128, shuffle=True, generator=torch.Generator().manual_seed(1)
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        finder = torch_lr_finder.LRFinder(model, opt, LOSS, device="cpu")
        finder.range_test(loader, end_lr=10, num_iter=100)
        losses, rates = np.array(finder.history["loss"]), np.array(finder.history["lr"])
        finder.reset()
    chosen = float(rates[np.gradient(losses).argmin()])  # the steepest point, as the package suggests
    theirs = train(model, torch.optim.SGD(model.parameters(), lr=chosen, momentum=0.9), 400, 128, seed=1)
    row = alone("range-test", loss, "nats", "<= 1", f"{what} (torch-lr-finder: rate {chosen:.3g}, {theirs:.3g} nats)")
    return [row | {"peer": "torch-lr-finder", "ratio": loss / theirs}]


def exponents() -> list[Row]:
    """How the time of a spectrum grows with parameters and samples."""
    rows = []
    for name, cases in (
        ("P", [(w, 256) for w in (128, 256, 512, 1024)]),
        ("N", [(256, n) for n in (256, 512, 1024, 2048)]),
    ):
        g, sizes, runs = torch.Generator().manual_seed(0), [], {}
        for width, n in cases:
            model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
                                  nn.Linear(width, 10))  # fmt: skip
            X, y = torch.randn(n, 64, generator=g), torch.randint(10, (n,), generator=g)
            G = GGNOperator(model, LOSS, (X, y))
            sizes.append(G.shape[0] if name == "P" else n)
            runs[sizes[-1]] = lambda G=G: slq(G, 10, 1, seed=0)
        interleaved(runs, 1)
        seconds = interleaved(runs, 3)
        times = [min(seconds[size]) for size in sizes]
        rows.append(fitted(f"exponent-{name}", sizes, times, "<= 1.1", f"exponent of a spectrum's time in {name}"))
    return rows


if __name__ == "__main__":
    from matplotlib.figure import Figure

    from steepest.report.pictures import Ink

    with threads(1):
        kept = as_arrays({quantity.name: found for quantity, found in curves().items()})
    picture = Figure(figsize=(12, 4), layout="constrained")
    draw_tools(picture, kept, Ink("batch-spectrum", dark=False))
    picture.savefig(sys.argv[1], dpi=110)
