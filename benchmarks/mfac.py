"""What M-FAC's operations cost beside the row recursion, conjugate gradients, bare products and other optimizers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from _rows import Row, compared, fitted, interleaved, rows_of
from steepest.core.extras import installed
from steepest.core.linalg import cg
from steepest.curvature import EmpiricalFisherInverse, flatten, per_sample_gradients, unflatten
from steepest.studies import mfac_costs as costs
from steepest.studies.image_training import ResNet
from steepest.studies.images import ConvNet, mlp
from steepest.studies.task import fresh_model

DS = (20_000, 40_000, 80_000, 160_000, 320_000, 640_000)
MS = (16, 32, 64, 128, 256)
WINDOWS = (64, 128, 256, 512, 1024)


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts = [exponents, dynamic_exponents, recursion, conjugate_gradients, bandwidth, optimizer_steps]
    return rows_of(parts, progress)


def exponents() -> list[Row]:
    """Preparation, product and element of the static inverse."""
    return [
        growth("precompute-in-d", costs.precompute([(32, d) for d in DS], 5), 1, "<= 1.15", "O(d m^2)"),
        growth("precompute-in-m", costs.precompute([(m, 50_000) for m in MS], 5), 0, "<= 2.1", "O(d m^2)"),
        growth("product-in-d", costs.product([(32, d) for d in DS], 15), 1, "<= 1.15", "O(d m)"),
        growth("product-in-m", costs.product([(m, 50_000) for m in MS], 15), 0, "<= 1.15", "O(d m)"),
        growth("element-in-m", costs.element([(m, 50_000) for m in MS], 15), 0, "<= 1.15", "O(m)"),
        growth("element-in-d", costs.element([(32, 10**k) for k in (4, 5, 6)], 15), 1, "<= 0.1", "O(m)"),
    ]


def dynamic_exponents() -> list[Row]:
    """Product with, and change of, the sliding window."""
    in_d = costs.sliding([(64, d) for d in DS], 9)
    in_m = costs.sliding([(m, 2_000) for m in WINDOWS], 9, cold=False)
    return [
        growth("sliding-product-in-d", in_d["product"], 1, "<= 1.15", "O(d m + m^2)"),
        growth("sliding-product-in-m", in_m["product"], 0, "<= 2.2", "O(d m + m^2)"),
        growth("sliding-change-in-d", in_d["change"], 1, "<= 1.15", "O(d m + m^3)"),
        growth("sliding-change-in-m", in_m["change"], 0, "<= 3.2", "O(d m + m^3)"),
    ]


def recursion() -> list[Row]:
    """Level-3 preparation against the paper's recursion, which is the same factor row by row."""
    rows = []
    for m, d in ((64, 20_000), (128, 80_000)):
        G = costs.gaussian(m, d)
        seconds = interleaved(
            {
                "ours": lambda G=G: EmpiricalFisherInverse(G, 1e-3),
                "recursion": lambda G=G: EmpiricalFisherInverse(G, 1e-3, algorithm="recursive"),
            },
            7,
        )
        bound = "<= 0.5" if (m, d) == (128, 80_000) else None
        rows.append(compared(f"precompute d={d} m={m}", seconds, "recursion", bound, "against the recursion"))
    return rows


def conjugate_gradients(m: int = 64, damping: float = 1e-3) -> list[Row]:
    """One product against conjugate gradients to 1e-6 on curvlinops' operator, at the same gradients."""
    if not installed("curvlinops"):
        return []
    import curvlinops

    model = fresh_model(lambda: mlp(64, 256, 256, 10), 0)
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(m, 64, generator=g), torch.randint(10, (m,), generator=g)
    loss_fn, params = nn.CrossEntropyLoss(), list(model.parameters())
    grads = per_sample_gradients(model, loss_fn, X, y)
    G = torch.cat([grads[name].flatten(1) for name, _ in model.named_parameters()], dim=1)
    inverse = EmpiricalFisherInverse(G, damping)
    peer = curvlinops.EFLinearOperator(model, loss_fn, params, [(X, y)], check_deterministic=False)
    x = torch.randn(G.shape[1], generator=g)

    def solve() -> Tensor:
        return cg(lambda v: flatten(peer @ unflatten(v, params)) + damping * v, x, rtol=1e-6, maxiter=1000)[0]

    difference = float((solve() - inverse @ x).norm() / (inverse @ x).norm())
    if difference > 1e-4:
        raise AssertionError(f"the two solve different systems: {difference:.1e}")
    seconds = interleaved({"ours": lambda: inverse @ x, "cg": solve}, 7)
    what = f"one product, d={len(x)}, m={m}, damping {damping:g}, against CG on curvlinops' EF operator"
    return [compared("product-curvlinops", seconds, "cg", "<= 0.05", what)]


def bandwidth() -> list[Row]:
    """Products with the window against the two bare matrix-vector products that read its values twice."""
    rows = []
    for m, d in ((64, 160_000), (64, 640_000)):
        found = costs.sliding([(m, d)], 15)
        seconds = {name: times[m, d] for name, times in found.items()}
        where = f"d={d} m={m}"
        rows += [
            compared(
                f"sliding-matvec {where}",
                seconds,
                "bare products alone",
                "<= 2",
                "against two bare products",
                "product",
            ),
            compared(
                f"sliding-push-matvec {where}",
                seconds,
                "bare products alone",
                "<= 2",
                "against two bare products",
                "change",
            ),
        ]
    return rows


def optimizer_steps() -> list[Row]:
    """A training step at batch 128 with a full window of 64."""
    rows = []
    for name, build, shape, repeats in (
        ("mlp", mlp, (64,), 60),
        ("conv", ConvNet, (1, 8, 8), 40),
        ("resnet20", ResNet, (3, 32, 32), 3),
    ):
        names = ("SGD", "MFAC") if name == "resnet20" else None
        seconds = costs.step_times(build, shape, repeats, names=names)
        for peer in seconds:
            if peer != "MFAC":
                bound = "<= 3" if peer == "SGD" else None
                rows.append(compared(f"step-{name}-{peer}", seconds, peer, bound, "MFAC's training step", "MFAC"))
    return rows


def growth(name: str, seconds: costs.Times, axis: int, bound: str, what: str) -> Row:
    sizes, best = costs.fastest(seconds)
    return fitted(name, [size[axis] for size in sizes], best, bound, what)
