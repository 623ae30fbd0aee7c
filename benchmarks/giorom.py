"""What a simulated frame costs: few particles stepped and the others inferred, against stepping or simulating all."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from _rows import Row, alone, compared, cost, fastest, fitted, in_child, interleaved, rows_of
from steepest.core.extras import installed
from steepest.physics import GNS, Upsampler
from steepest.physics._gns import GraphLayer
from steepest.physics._particle_graph import radius_graph
from steepest.physics._particle_network import graph_of
from steepest.studies import giorom_speed as speed

HIDDEN = 32
CLOUDS = (1000, 2000, 4000, 8000)
INFERRED = (10_000, 30_000, 100_000, 300_000)
SAMPLES = (250, 500, 1000, 2000, 4000)
CLOCK = time.process_time


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    return rows_of([frames, baseline, inference, matrix_of_many, memory], progress)


def frames() -> list[Row]:
    """A frame of n particles by the three, and how each grows with n."""
    ours, gns, mpm = [], [], []
    rows: list[Row] = []
    for n in CLOUDS:
        frame = speed.Frame(n, n // 16, HIDDEN)
        simulate, words = speed.simulator(n)
        tasks = {"ours": frame.reduced, "GNS": frame.dense(), "material point method": simulate}
        for task in tasks.values():
            task()
        seconds = interleaved(tasks, 5, CLOCK)
        ours.append(min(seconds["ours"]))
        gns.append(min(seconds["GNS"]))
        mpm.append(min(seconds["material point method"]))
    rows.append(compared("frame", seconds, "GNS", "<= 0.04", f"{n} particles, width {HIDDEN}, one in 16 stepped"))
    rows.append(compared("frame-simulator", seconds, "material point method", None, f"{n} particles, {words}"))
    few = [n // 16 for n in CLOUDS]
    steps = []
    for n in SAMPLES:
        frame = speed.Frame(n, n // 2, HIDDEN)
        steps.append(fastest(frame.step, 5, CLOCK))
    return [
        *rows,
        fitted("step-exponent", [n // 2 for n in SAMPLES], steps, "<= 1.2", "a step against the particles stepped"),
        fitted("frame-exponent", few, ours, "<= 1.2", "a frame against the samples, all points 16 times as many"),
        alone("gns-exponent", speed_exponent(CLOUDS, gns), "exponent", None, "GNS against its particles"),
        alone("mpm-exponent", speed_exponent(CLOUDS, mpm), "exponent", None, "the simulator, cells and substeps grow"),
    ]


def baseline() -> list[Row]:
    """The baseline's interaction beside torch_geometric's message passing, same weights, same result."""
    if not installed("torch_geometric"):
        return []
    cloud = speed.Cloud.of(4000)
    x = cloud.window[:, -1]
    radius = speed.RADIUS * cloud.spacing
    edges = radius_graph(x, radius)
    graph = graph_of(x, edges, radius)
    model = GNS(hidden=HIDDEN, connectivity_radius=radius)
    layer = model.layers[0]
    assert isinstance(layer, GraphLayer)
    theirs = message_passing(layer)
    generator = torch.Generator().manual_seed(0)
    h, e = (torch.randn(n, HIDDEN, generator=generator) for n in (len(x), edges.shape[1]))
    with torch.no_grad():
        difference = float((layer(h, e, graph)[0] - theirs(h, e, edges)).abs().max())
        if difference > 1e-4:
            raise AssertionError(f"the two compute different interactions: {difference:.1e}")
        tasks = {"ours": lambda: layer(h, e, graph), "torch_geometric": lambda: theirs(h, e, edges)}
        seconds = interleaved(tasks, 15, CLOCK)
    return [compared("gns-layer", seconds, "torch_geometric", "<= 1.1", "one interaction of GNS on 4,000 particles")]


def message_passing(layer: GraphLayer) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from torch_geometric.nn import MessagePassing

    class Interaction(MessagePassing):  # type: ignore[misc]
        __module__ = MessagePassing.__module__  # where it looks annotations up; this file may be no module by name

        def __init__(self, message: nn.Module, update: nn.Module) -> None:
            super().__init__(aggr="sum")
            self.first, self.second = message, update

        def forward(self, h: Tensor, e: Tensor, edges: Tensor) -> Tensor:
            return h + self.second(torch.cat((h, self.propagate(edges, x=h, edge=e)), 1))

        def message(self, x_i: Tensor, x_j: Tensor, edge: Tensor) -> Tensor:
            return self.first(torch.cat((x_i, x_j, edge), 1))

    return Interaction(layer.message, layer.update)


def inference() -> list[Row]:
    """Inferring all points from 1,000: time against their number, and against radial basis functions."""
    found = {n: speed.Frame(n, 1000, HIDDEN) for n in INFERRED}
    seconds = interleaved({n: frame.infer for n, frame in found.items()}, 9, CLOCK)
    best = [min(seconds[n]) for n in INFERRED]
    frame = found[100_000]
    few, everything = (np.asarray(c.window[:, -1], dtype=np.float64) for c in (frame.few, frame.cloud))
    u = np.asarray(frame.step(), dtype=np.float64) - few
    tasks = {"ours": frame.infer, "RBFInterpolator": lambda: speed.radial(few, everything, u)}
    return [
        alone("inference", min(seconds[100_000]), "s", "<= 0.02", "10^5 points from 10^3, one frame"),
        fitted("inference-exponent", INFERRED, best, "<= 1.05", "a frame against the points inferred, 10^4 to 3 10^5"),
        compared("inference-radial", interleaved(tasks, 3, CLOCK), "RBFInterpolator", "<= 0.02",
                 "10^5 points from 10^3, 20 neighbors"),
    ]  # fmt: skip


def matrix_of_many() -> list[Row]:
    """Building the matrix."""
    few, everything = (speed.Cloud.of(n).window[:, -1] for n in (1000, 100_000))
    seconds = [fastest(lambda order=order: Upsampler(few, everything, order=order), 3, CLOCK) for order in (1, 2)]
    return [
        alone("build", seconds[1], "s", "<= 2", "the matrix for 10^5 points from 10^3, order 2"),
        alone("build-first-order", seconds[0], "s", None, "the same of order 1"),
    ]


def memory() -> list[Row]:
    """Peak memory of a process that infers 10^5 points, beyond one that infers a hundred."""
    peak = in_child(peak_of, 100_000) - in_child(peak_of, 100)
    return [alone("memory", peak, "GiB", None, "building the matrix for 10^5 points and placing 20 frames, peak")]


def peak_of(n: int) -> float:
    few, everything = (speed.Cloud.of(k).window[:, -1] for k in (1000, n))
    frames = few.expand(20, -1, -1)
    return cost(lambda: Upsampler(few, everything)(frames))[1]


def speed_exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
