"""Spectrum tools side by side: seconds and accuracy of largest eigenvalue, trace and density, and a rate from them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from _rows import Row, alone, compared, fitted, interleaved, rows_of
from steepest.core.extras import installed
from steepest.curvature import GGNOperator, HessianOperator, slq
from steepest.landscape import BatchSpectrum
from steepest.studies.batch_spectrum_training import digits_data, digits_mlp, independent_batches, seeded

STEPS = 30
LOSS = nn.CrossEntropyLoss()


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers'
        return rows_of([spectra, range_test, exponents], progress)


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """Give the digits network at a loss of about 0.26."""
    data, model = digits_data(), seeded(digits_mlp, 0)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 150, 64)
    return model, data.X, data.y


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: int, batch: int, seed: int = 0) -> float:
    data = digits_data()
    for index in independent_batches(len(data), batch, steps, seed):
        opt.zero_grad()
        LOSS(model(data.X[index]), data.y[index]).backward()
        opt.step()
    with torch.no_grad():
        return float(LOSS(model(data.X), data.y))


def spectra() -> list[Row]:
    """30 Lanczos steps from one probe on the Hessian of all digits: seconds, and errors against the dense matrix."""
    model, X, y = problem()
    dense = torch.linalg.eigvalsh(HessianOperator(model, LOSS, (X, y)).dense().double()).numpy()
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def ours() -> None:
        s = slq(HessianOperator(model, LOSS, (X, y)), STEPS, 1, seed=0)
        found["ours"] = s.nodes[0].numpy(), s.weights[0].numpy()

    runs: dict[str, Callable[[], Any]] = {"ours": ours}
    if installed("curvlinops"):
        import curvlinops

        params = list(model.parameters())

        def theirs() -> None:
            H = curvlinops.HessianLinearOperator(model, LOSS, params, [(X, y)], check_deterministic=False)
            with torch.random.fork_rng([]):
                torch.manual_seed(0)
                nodes, weights = _fast_lanczos(H, dense.shape[0])
            found["curvlinops"] = nodes, weights

        runs["curvlinops"] = theirs
    if installed("pyhessian"):
        import pyhessian

        def pyh() -> None:
            with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng([]), _old_eig():
                torch.manual_seed(0)
                nodes, weights = pyhessian.hessian(model, LOSS, data=(X, y), cuda=False).density(iter=STEPS, n_v=1)
            found["PyHessian"] = np.real(np.array(nodes[0])), np.real(np.array(weights[0]))

        runs["PyHessian"] = pyh
    interleaved(runs, 1)
    seconds = interleaved(runs, 5)
    rows = []
    what = f"spectrum of a Hessian with {len(dense)} parameters, {STEPS} steps, 1 probe"
    for peer in ("curvlinops", "PyHessian"):
        if peer in runs:
            rows.append(compared(f"spectrum-{peer.lower()}", seconds, peer, "<= 0.5", what))
        else:
            rows.append(alone(f"spectrum-{peer.lower()}", np.median(seconds["ours"]), "s", None, f"{what} (no {peer})"))
    for name, (nodes, weights) in found.items():
        label = name.lower()
        for key, value in errors(nodes, weights, dense).items():
            rows.append(alone(f"{key}-{label}", value, "1", None, f"error of the {key}, {STEPS} products, {name}"))
    return rows


@contextlib.contextmanager
def _old_eig() -> Iterator[None]:
    """Give back `torch.eig`, which PyHessian 0.1 calls and torch has removed."""

    def eig(T: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(T)
        return torch.stack([values, torch.zeros_like(values)], 1), vectors

    before, torch.eig = torch.eig, eig
    try:
        yield
    finally:
        torch.eig = before


def _fast_lanczos(H: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    values, vectors = fast_lanczos(H, STEPS)
    return np.asarray(values), np.asarray(vectors)[0] ** 2


def errors(nodes: np.ndarray, weights: np.ndarray, dense: np.ndarray) -> dict[str, float]:
    """Relative errors of largest eigenvalue and trace; the density's distance is that of cumulative shares."""
    weights = weights / weights.sum()
    order = np.argsort(nodes)
    grid = np.linspace(dense[0], dense[-1], 2000)
    exact = np.searchsorted(dense, grid, side="right") / len(dense)
    cumulative = np.concatenate([[0.0], np.cumsum(weights[order])])
    shares = cumulative[np.searchsorted(nodes[order], grid, side="right")]
    return {
        "lambda-max": abs(nodes.max() / dense[-1] - 1),
        "trace": abs(len(dense) * (weights @ nodes) / dense.sum() - 1),
        "density": float(np.abs(shares - exact).mean()),
    }


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
