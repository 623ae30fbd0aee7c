"""What augmented covariances and the choice of delays cost beside MOABB's transformer and neurokit2.

Where MOABB is not installed its transformer's embedded copy is made here in the same way (the row says "embedded
copy"), and pyRiemann's covariances follow as in its pipeline.
"""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable

import numpy as np
from scipy.signal import lfilter

from _rows import Row, alone, compared, fitted, interleaved, rows_of
from steepest.core.extras import installed
from steepest.manifold import (
    AugmentedCovariance,
    cao_e1,
    false_nearest_neighbours,
    mutual_information,
)
from steepest.manifold._riemannian import mean_riemann

N, T, ORDER, LAG = 40, 480, 8, 4


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts = [transformer, memory, exponents, selectors, mean]
    return rows_of(parts, progress)


def transformer() -> list[Row]:
    """Transform of 40 trials at order 8 against the embedded copy and its shrunk covariance."""
    if not installed("pyriemann"):
        return []
    from pyriemann.estimation import Covariances

    embed, name = embedded_copy, "embedded copy"
    if installed("moabb"):
        from moabb.pipelines.features import AugmentedDataset

        embed, name = AugmentedDataset(ORDER, LAG).transform, "moabb"
    theirs, rows = Covariances("oas"), []
    for m in (13, 32, 64):
        X = trials(N if m < 64 else 4, m)
        ours = AugmentedCovariance(ORDER, LAG, compat="moabb").fit(X)
        gap = np.abs(ours.transform(X) - theirs.transform(embed(X))).max() / ours.transform(X).max()
        if gap > 1e-10:
            raise AssertionError(f"the two differ by {gap:.1e}")
        tasks = {"ours": lambda X=X, f=ours: f.transform(X), name: lambda X=X: theirs.transform(embed(X))}
        what = f"{len(X)} trials, m={m}, p={ORDER}, against AugmentedDataset + Covariances('oas')"
        rows.append(compared(f"transform m={m}", interleaved(tasks, 5), name, "<= 0.5", what))
    return rows


def embedded_copy(X: np.ndarray) -> np.ndarray:
    """What MOABB's transformer returns: order copies of T - order lag samples."""
    length = X.shape[2] - ORDER * LAG
    return np.concatenate([X[:, :, k * LAG : k * LAG + length] for k in range(ORDER)], axis=1)


def memory() -> list[Row]:
    """Peak memory beyond the result, against one batch of matrices."""
    from steepest.manifold.augmented_covariance import BATCH_BYTES

    rows = []
    for m in (13, 64):
        X, model = trials(100, m), AugmentedCovariance(ORDER, LAG)
        model.fit(X).transform(X[:2])
        tracemalloc.start()
        out = model.transform(X)
        extra = tracemalloc.get_traced_memory()[1] - out.nbytes
        tracemalloc.stop()
        batch = max(BATCH_BYTES, out[0].nbytes)
        what = "peak beyond the result, 100 trials"
        rows.append(alone(f"memory m={m}", extra / batch, "batches of matrices", "<= 1", what))
    return rows


def exponents() -> list[Row]:
    """Seconds of a transform against trials, samples and size of the matrices."""
    found = {
        "trials": [(n, (n, 13, T, ORDER)) for n in (40, 80, 160, 320)],
        "samples": [(t, (20, 13, t, ORDER)) for t in (2_000, 4_000, 8_000, 16_000)],
        "size m p": [(m * ORDER, (4, m, 2_000, ORDER)) for m in (32, 64, 128)],
    }
    bounds = {"trials": "<= 1.15", "samples": "<= 1.15", "size m p": "<= 2.15"}
    rows = []
    for name, sizes in found.items():
        tasks = {}
        for x, (n, m, t, p) in sizes:
            X = trials(n, m, t)
            model = AugmentedCovariance(p, LAG).fit(X)
            tasks[x] = lambda X=X, f=model: f.transform(X)
        seconds = interleaved(tasks, 5)
        best = [min(values) for values in seconds.values()]
        rows.append(fitted(f"transform in {name}", list(seconds), best, bounds[name], "O((m p)^2 L n)"))
    return rows


def selectors() -> list[Row]:
    """Mutual information, false neighbours and Cao's E1 against neurokit2."""
    if not installed("neurokit2"):
        return []
    import neurokit2

    rows = []
    for t in (480, 4_000):
        x = lfilter([1], [1, -1.8, 0.9], np.random.default_rng(0).standard_normal(t))
        pairs = {
            "mutual information": (
                lambda x=x: mutual_information(x, 50),
                lambda x=x: neurokit2.complexity_delay(x, delay_max=50, method="fraser1986"),
            ),
            "false neighbours": (
                lambda x=x: false_nearest_neighbours(x, 4),
                lambda x=x: neurokit2.complexity_dimension(x, delay=4, dimension_max=10, method="fnn"),
            ),
            "E1": (
                lambda x=x: cao_e1(x, 4),
                lambda x=x: neurokit2.complexity_dimension(x, delay=4, dimension_max=10, method="afnn"),
            ),
        }
        for name, (ours, theirs) in pairs.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                seconds = interleaved({"ours": ours, "neurokit2": theirs}, 5)
            rows.append(compared(f"{name} T={t}", seconds, "neurokit2", "<= 0.333", "lags to 50, orders to 10"))
    return rows


def mean() -> list[Row]:
    """The built-in affine-invariant mean against pyRiemann's, same tolerance."""
    if not installed("pyriemann"):
        return []
    from pyriemann.geometry.mean import mean_riemann as theirs

    def row(order: int) -> Row:
        C = AugmentedCovariance(order, 4).fit_transform(trials(80, 13))
        seconds = interleaved({"ours": lambda: mean_riemann(C), "pyriemann": lambda: theirs(C)}, 5)
        return compared(f"mean {13 * order} x {13 * order}", seconds, "pyriemann", None, "80 matrices, tol 1e-8")

    return [row(1), row(4)]


def trials(n: int, m: int, t: int = T) -> np.ndarray:
    return 1e-5 * lfilter([1], [1, -0.9], np.random.default_rng(0).standard_normal((n, m, t)))
