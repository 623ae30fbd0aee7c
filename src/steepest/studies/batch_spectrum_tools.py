"""Tools that measure a Hessian's spectrum, side by side: the error that a budget of products leaves, and its seconds.

Largest eigenvalue, trace and spectral density of the digits network's Hessian, each by every way that a tool offers,
from its model to its number, several budgets and seeds. The reference is the dense matrix in double precision. Peers
that are not installed are left out.
"""

from __future__ import annotations

import contextlib
import copy
import io
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from steepest.core.extras import installed, require
from steepest.curvature import HessianOperator, lanczos, slq, trace
from steepest.studies.batch_spectrum_training import digits_data, digits_mlp, independent_batches, seeded
from steepest.studies.context import Context

__all__ = [
    "QUANTITIES",
    "Curve",
    "Quantity",
    "against",
    "as_arrays",
    "best_way",
    "compare_tools",
    "draw_tools",
    "measure",
    "problem",
    "seconds_to",
    "tools",
]

Floats = NDArray[np.float64]
Density = tuple[Floats, Floats]  # nodes, weights
Tool = Callable[[int, int], Any]  # (products, seed) -> what it found
LOSS = nn.CrossEntropyLoss()
STEPS = 10  # Lanczos steps of a probe, where a budget pays for several probes
PEERS = ("curvlinops", "PyHessian")
COLORS = {"steepest": 1, "curvlinops": 2, "PyHessian": 5}  # places in `Ink.categories`
LINES = ("-", "--", ":")  # the ways of a tool


@dataclass(frozen=True)
class Quantity:
    """What is measured, with the error to reach: relative, and for the density its distance over the mean |lambda|."""

    name: str
    target: float
    budgets: tuple[int, ...]
    error: Callable[[Any, Floats], float]


@dataclass(frozen=True)
class Curve:
    """Seconds and errors of one tool, both (seeds, budgets)."""

    budgets: tuple[int, ...]
    seconds: Floats
    errors: Floats


def _relative(exact: Callable[[Floats], float]) -> Callable[[Any, Floats], float]:
    return lambda found, dense: abs(float(found) / exact(dense) - 1)


def _distance(found: Density, dense: Floats) -> float:
    nodes, weights = found
    return float(wasserstein_distance(nodes, dense, np.maximum(weights, 0)) / np.abs(dense).mean())


QUANTITIES = (
    Quantity("largest eigenvalue", 0.01, (2, 4, 5, 6, 7, 8, 10, 15, 20, 40), _relative(np.max)),
    Quantity("trace", 0.03, (6, 12, 24, 48, 96), _relative(np.sum)),
    Quantity("density", 0.15, (5, 10, 20, 40, 60, 80), _distance),
)


def problem() -> tuple[nn.Module, Tensor, Tensor, Floats]:
    """Give the digits network at a loss of about 0.26, the digits, and all eigenvalues of its Hessian, ascending."""
    data, model = digits_data(), seeded(digits_mlp, 0)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for index in independent_batches(len(data), 64, 150, 0):
        opt.zero_grad()
        LOSS(model(data.X[index]), data.y[index]).backward()
        opt.step()
    model.zero_grad()
    precise = HessianOperator(copy.deepcopy(model).double(), LOSS, (data.X.double(), data.y))
    return model, data.X, data.y, torch.linalg.eigvalsh(precise.dense()).numpy()


# ------------------------------------------------------------------------------------------------------------ the tools


def tools(model: nn.Module, X: Tensor, y: Tensor) -> dict[str, dict[str, Tool]]:
    """Give every quantity's tools, by "tool, way"; each builds its operator anew."""
    found = _ours(model, X, y)
    for package, make in (("curvlinops", _curvlinops), ("pyhessian", _pyhessian)):
        if installed(package):
            for name, ways in make(model, X, y).items():
                found[name] |= ways
    return found


def split(products: int) -> tuple[int, int]:
    """Lanczos steps and probes of a budget where probes of ten steps share it."""
    probes = max(1, products // STEPS)
    return products // probes, probes


def _ours(model: nn.Module, X: Tensor, y: Tensor) -> dict[str, dict[str, Tool]]:
    def operator() -> HessianOperator:
        return HessianOperator(model, LOSS, (X, y), deterministic=False)

    def density(num_steps: int, num_probes: int, seed: int) -> Density:
        s = slq(operator(), num_steps, num_probes, check_symmetric=False, seed=seed)
        return s.nodes.reshape(-1).numpy(), s.weights.reshape(-1).numpy()

    return {
        "largest eigenvalue": {
            "steepest, Lanczos": lambda m, seed: float(
                lanczos(operator(), m, check_symmetric=False, seed=seed).ritz_values()[-1]
            )
        },
        "trace": {
            "steepest, Hutch++": lambda m, seed: trace(operator(), m, seed=seed).value,
            "steepest, Hutchinson": lambda m, seed: trace(operator(), m, method="hutchinson", seed=seed).value,
        },
        "density": {
            "steepest, one probe": lambda m, seed: density(m, 1, seed),
            "steepest, probes": lambda m, seed: density(*split(m), seed),
        },
    }


def _curvlinops(model: nn.Module, X: Tensor, y: Tensor) -> dict[str, dict[str, Tool]]:
    import curvlinops
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    params = list(model.parameters())

    def calling(fn: Callable[[Any, int], Any]) -> Tool:
        def tool(products: int, seed: int) -> Any:
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                H = curvlinops.HessianLinearOperator(model, LOSS, params, [(X, y)], check_deterministic=False)
                return fn(H, products)

        return tool

    def density(H: Any, num_steps: int, num_probes: int) -> Density:
        pairs = [fast_lanczos(H, num_steps) for _ in range(num_probes)]
        return tuple(np.concatenate(part) for part in zip(*((v.numpy(), S[0].numpy() ** 2) for v, S in pairs)))  # type: ignore[return-value]

    return {
        "largest eigenvalue": {"curvlinops, Lanczos": calling(lambda H, m: float(fast_lanczos(H, m)[0].max()))},
        "trace": {
            "curvlinops, Hutch++": calling(curvlinops.hutchpp_trace),
            "curvlinops, XTrace": calling(curvlinops.xtrace),
            "curvlinops, Hutchinson": calling(curvlinops.hutchinson_trace),
        },
        "density": {
            "curvlinops, one probe": calling(lambda H, m: density(H, m, 1)),
            "curvlinops, probes": calling(lambda H, m: density(H, *split(m))),
        },
    }


def _pyhessian(model: nn.Module, X: Tensor, y: Tensor) -> dict[str, dict[str, Tool]]:
    pyhessian: Any = import_module("pyhessian")

    def calling(fn: Callable[[Any, int], Any]) -> Tool:
        def tool(products: int, seed: int) -> Any:
            with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng([]), _old_eig():
                torch.manual_seed(seed)
                model.zero_grad()  # it differentiates what has gathered in the gradients
                value = fn(pyhessian.hessian(model, LOSS, data=(X, y), cuda=False), products)
                model.zero_grad()
                return value

        return tool

    def density(H: Any, num_steps: int, num_probes: int) -> Density:
        return tuple(np.real(np.concatenate(part)) for part in H.density(iter=num_steps, n_v=num_probes))  # type: ignore[return-value]

    return {
        "largest eigenvalue": {
            "PyHessian, Lanczos": calling(lambda H, m: density(H, m, 1)[0].max()),
            "PyHessian, power iteration": calling(lambda H, m: H.eigenvalues(maxIter=m, tol=0.0)[0][0]),
        },
        "trace": {"PyHessian, Hutchinson": calling(lambda H, m: np.mean(H.trace(maxIter=m, tol=0.0)))},
        "density": {
            "PyHessian, one probe": calling(lambda H, m: density(H, m, 1)),
            "PyHessian, probes": calling(lambda H, m: density(H, *split(m))),
        },
    }


@contextlib.contextmanager
def _old_eig() -> Iterator[None]:
    """Give back `torch.eig`, which PyHessian 0.1 calls and torch has removed."""

    def eig(T: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(T)
        return torch.stack([values, torch.zeros_like(values)], 1), vectors

    names = vars(torch)
    before, names["eig"] = names["eig"], eig
    try:
        yield
    finally:
        names["eig"] = before


# ------------------------------------------------------------------------------------------------------------ measuring


def measure(
    quantity: Quantity, ways: dict[str, Tool], dense: Floats, seeds: Sequence[int], budgets: Sequence[int] | None = None
) -> dict[str, Curve]:
    """Run every way at every budget and seed, in turns; CPU seconds."""
    budgets = quantity.budgets if budgets is None else tuple(budgets)
    seconds, errors = ({name: np.empty((len(seeds), len(budgets))) for name in ways} for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers'
        for tool in ways.values():
            tool(budgets[0], 0)  # warm
        for i, seed in enumerate(seeds):
            for j, products in enumerate(budgets):
                for name, tool in ways.items():
                    start = time.process_time()
                    found = tool(products, seed)
                    seconds[name][i, j] = time.process_time() - start
                    errors[name][i, j] = quantity.error(found, dense)
    return {name: Curve(tuple(budgets), seconds[name], errors[name]) for name in ways}


def seconds_to(curve: Curve, target: float, seeds: Any = slice(None)) -> float:
    """Median seconds of the smallest budget from which the median error stays within the target; infinite if none."""
    outside = np.flatnonzero(np.median(curve.errors[seeds], 0) > target)
    first = outside[-1] + 1 if len(outside) else 0
    return float(np.median(curve.seconds[seeds], 0)[first]) if first < len(curve.budgets) else float("inf")


def best_way(found: dict[str, Curve], tool: str, target: float) -> tuple[str, float]:
    """Give the way of a tool that reaches the target soonest, and its seconds."""
    times = {name: seconds_to(curve, target) for name, curve in found.items() if name.startswith(tool)}
    name = min(times, key=times.__getitem__)
    return name, times[name]


def against(ours: Curve, theirs: Curve, target: float, resamples: int = 400) -> tuple[float, tuple[float, float]]:
    """Ratio of the seconds to the target with its 90 % interval over seeds, which both have in common.

    A resample in which neither gets there counts as even.
    """

    def ratio(seeds: Any) -> float:
        a, b = seconds_to(ours, target, seeds), seconds_to(theirs, target, seeds)
        return 1.0 if np.isinf(a) and np.isinf(b) else a / b

    rng = np.random.default_rng(0)
    n = len(ours.errors)
    ratios = [ratio(rng.integers(n, size=n)) for _ in range(resamples)]
    low, high = np.quantile(ratios, [0.05, 0.95], method="inverted_cdf")
    return ratio(slice(None)), (float(low), float(high))


def compare_tools(ctx: Context, seeds: Sequence[int], budgets: Sequence[int] | None = None) -> None:
    """Measure all tools; a claim for each quantity is the ratio of CPU seconds to the fastest peer's."""
    model, X, y, dense = problem()
    ways = tools(model, X, y)
    curves = {quantity: measure(quantity, ways[quantity.name], dense, seeds, budgets) for quantity in QUANTITIES}
    for quantity, found in curves.items():
        claim = f"tools-{quantity.name.split()[0]}"
        ours, soonest = best_way(found, "steepest", quantity.target)
        peers = [best_way(found, peer, quantity.target) for peer in PEERS if any(w.startswith(peer) for w in found)]
        if not peers:
            ctx.skipped(claim, "no other tool is here: pip install curvlinops-for-pytorch pyhessian")
            continue
        theirs = min(peers, key=lambda pair: pair[1])[0]
        if np.isfinite(soonest):
            ctx.measured(claim, *against(found[ours], found[theirs], quantity.target))
            ctx.note(f"{quantity.name.capitalize()}: {ours} beside {theirs}.")
        else:
            ctx.skipped(claim, f"{ours} does not get there within the budgets")
    ctx.arrays("tools", **as_arrays({quantity.name: found for quantity, found in curves.items()}))


def as_arrays(curves: Mapping[str, Mapping[str, Curve]]) -> dict[str, NDArray[Any]]:
    """One row for each quantity and way: medians over seeds, errors with quartiles; NaN where budgets end."""
    rows = [(quantity, way, curve) for quantity, found in curves.items() for way, curve in found.items()]
    width = max(len(curve.budgets) for _, _, curve in rows)

    def padded(values: Callable[[Curve], Any]) -> Floats:
        table = np.full((len(rows), width), np.nan)
        for row, (_, _, curve) in zip(table, rows):
            row[: len(curve.budgets)] = values(curve)
        return table

    return {
        "quantity": np.array([row[0] for row in rows]),
        "way": np.array([row[1] for row in rows]),
        "seconds": padded(lambda curve: np.median(curve.seconds, 0)),
        **{name: padded(partial(_quantile, q)) for name, q in (("low", 0.25), ("error", 0.5), ("high", 0.75))},
    }


def _quantile(q: float, curve: Curve) -> Any:
    return np.quantile(curve.errors, q, axis=0)


def draw_tools(figure: Any, arrays: Mapping[str, NDArray[Any]], ink: Any) -> None:
    """Draw error against seconds, a panel for each quantity; a line is a way of a tool, with quartiles over seeds."""
    ticker: Any = require("matplotlib.ticker", "report", what="the picture of the tools")
    axes = figure.subplots(1, len(QUANTITIES))
    units = {"density": "distance / mean |eigenvalue|"}
    for ax, quantity in zip(axes, QUANTITIES):
        drawn = dict.fromkeys(COLORS, 0)
        for k in np.flatnonzero(arrays["quantity"] == quantity.name):
            tool, way = str(arrays["way"][k]).split(", ")
            style = {"color": ink.categories[COLORS[tool]], "ls": LINES[drawn[tool]]}
            drawn[tool] += 1
            ms = 1e3 * arrays["seconds"][k]
            ax.plot(ms, np.maximum(arrays["error"][k], 1e-8), lw=1.8, label=f"{tool}, {way}", **style)
            low, high = (np.maximum(arrays[side][k], 1e-8) for side in ("low", "high"))
            ax.fill_between(ms, low, high, color=style["color"], alpha=0.1, lw=0)
        ax.axhline(quantity.target, color=ink.muted, lw=0.8)
        ax.set(xscale="log", yscale="log", xlabel="CPU milliseconds", ylabel=units.get(quantity.name, "relative error"))
        for axis in (ax.xaxis, ax.yaxis):  # labels of decades and of 2, 5 between them, where a panel spans few
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if quantity.name != "largest eigenvalue" else (1,)))
            axis.set_minor_formatter(ticker.NullFormatter())
        if quantity.name != "largest eigenvalue":
            ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        ax.set_title(quantity.name, color=ink.text)
        ax.legend(
            frameon=False, fontsize=7, loc="lower left" if quantity.name != "largest eigenvalue" else "upper right"
        )
