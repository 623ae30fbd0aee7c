"""What the panel method and the network of wing-pressure cost, and what else learns in the same time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import lu_factor

from _rows import Row, alone, compared, fastest, fitted, interleaved, rows_of
from steepest.core.extras import installed
from steepest.physics import WingParameters, WingPressureModel, make_wing_dataset, panel_method, wing_surface
from steepest.physics._panel_method import _assemble
from steepest.studies import wing_pressure_peers as peers
from steepest.studies import wing_pressure_training as training
from steepest.studies.wing_pressure_training import BASELINE, GEOMETRY, Network, Run, Wings

PANELS = ((17, 5), (25, 7), (33, 9), (41, 13), (57, 17))
GRIDS = ((32, 8), (64, 16), (96, 24), (128, 32))


def bench(progress: Callable[[float], None] | None = None) -> list[Row]:
    """Measure every row; `progress` is told the share that is done."""
    parts = [reference, one_wing, solver_exponents, model_exponent, surrogate, equal_time]
    return rows_of(parts, progress)


def reference() -> list[Row]:
    """The whole solver against loops over pairs of panels in plain Python, same formulas, same potential."""
    P = wing_surface(WingParameters(), 13, 5)
    _, info = panel_method(P, 5.0, return_info=True)
    difference = float(np.abs(info["potential"].ravel() - plain_potential(P, 5.0)).max())
    if difference > 1e-8:
        raise AssertionError(f"the two solve different systems: {difference:.1e}")
    seconds = interleaved({"ours": lambda: panel_method(P, 5.0), "plain": lambda: plain_potential(P, 5.0)}, 5)
    return [compared("solver", seconds, "plain", "<= 0.333", "one wing of 48 panels against loops in Python")]


def one_wing() -> list[Row]:
    """256 panels, four angles, one Mach number."""
    P = wing_surface(WingParameters(), 33, 9)
    seconds = fastest(lambda: panel_method(P, [1.0, 3.0, 5.0, 7.0], 0.3), 15)
    return [alone("one-wing", seconds, "s", "<= 0.5", "256 panels, 4 angles, 1 Mach number")]


def solver_exponents() -> list[Row]:
    """Assembly and factorization against the number of panels."""
    assembly, factor, sizes = [], [], []
    for n_u, n_v in PANELS:
        P = wing_surface(WingParameters(), n_u, n_v)
        matrix = _assemble(P, True, True, 50.0)[0]
        sizes.append(len(matrix))
        assembly.append(fastest(lambda P=P: _assemble(P, True, True, 50.0), 5))
        factor.append(fastest(lambda matrix=matrix: lu_factor(matrix), 15))
    return [
        fitted("assembly", sizes, assembly, "<= 2.2", "influence matrix, panels 64 to 896: n^2"),
        fitted("factorization", sizes, factor, "<= 3.2", "LU, panels 64 to 896: n^3"),
        alone("factorization-share", factor[-1] / assembly[-1], "x the assembly", None, "LU at 896 panels"),
    ]


def model_exponent() -> list[Row]:
    """A forward pass against the number of points, patches as they are."""
    seconds = []
    for n_u, n_v in GRIDS:
        points, conditions = centers(n_u, n_v), torch.tensor([[5.0, 0.3]])
        model = fitted_model(points, conditions)
        seconds.append(fastest(lambda m=model, p=points, c=conditions: forward(m, p, c), 15))
    sizes = [n_u * n_v for n_u, n_v in GRIDS]
    return [fitted("forward", sizes, seconds, "<= 1.2", "forward pass, 256 to 4096 points: n")]


def surrogate() -> list[Row]:
    """Network (the default trunk) and solver on one wing at one condition."""
    P = wing_surface(WingParameters(), 33, 9)
    points, conditions = centers(32, 8), torch.tensor([[5.0, 0.3]])
    model = fitted_model(points, conditions)
    tasks = {"ours": lambda: forward(model, points, conditions), "solver": lambda: panel_method(P, 5.0, 0.3)}
    return [compared("surrogate", interleaved(tasks, 15), "solver", "<= 0.05", "forward pass of 256 points")]


def equal_time() -> list[Row]:
    """MSE on unseen wings: the network against its twin on coordinates and against every peer, equal CPU seconds."""
    wings = Wings.of(make_wing_dataset(60, seed=0, conditions_per_wing=2))
    train, test = wings.take(range(40)), wings.take(range(40, 60))
    runs = [Run(v, 1, 3e-3, Network(32, 1, 60), train, test) for v in (GEOMETRY, BASELINE)]
    ours, dan = (training.train_one(run) for run in runs)
    mine = training.per_wing([ours], test)
    rows = [error_row("DAN", mine, training.per_wing([dan], test))]
    model = training.model_of(runs[0])
    data = train.tensors()
    model.fit_normaliser(data.points, data.conditions, data.cp)
    channels = [model.local_channels(w.tensors().points).numpy() for w in (train, test)]
    mean, scale = train.conditions.mean(axis=0), train.conditions.std(axis=0)
    conditions = [(w.conditions - mean) / scale for w in (train, test)]
    for name, package in peers.PACKAGES.items():
        if not installed(package):
            continue
        found = [
            peers.train_peer(
                peers.PeerRun(
                    name, channels[0], conditions[0], train.cp, channels[1], conditions[1], ours.seconds, trial, 1
                )
            )
            for trial in (0, 1)
        ]
        errors = [training.per_wing([training.Trained(name, 1, 0.0, p, [], [], ours.seconds)], test) for p in found]
        rows.append(error_row(name, mine, min(errors, key=lambda e: float(e.mean()))))  # the better one, on the test
    return rows


# -------------------------------------------------------------------------------------------------------------- helpers


def centers(n_u: int, n_v: int) -> torch.Tensor:
    P = wing_surface(WingParameters(), n_u + 1, n_v + 1)
    return torch.from_numpy((P[:-1, :-1] + P[1:, :-1] + P[:-1, 1:] + P[1:, 1:]) / 4).float()[None]


def fitted_model(points: torch.Tensor, conditions: torch.Tensor) -> WingPressureModel:
    model = WingPressureModel(points.shape[1], points.shape[2])
    two = torch.cat([points, 1.1 * points])
    model.fit_normaliser(two, torch.cat([conditions, 1.1 * conditions]), two[..., 2])
    return model


def forward(model: WingPressureModel, points: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(points, conditions)


def error_row(peer: str, mine: np.ndarray, theirs: np.ndarray) -> Row:
    cut = training.reduction(theirs, mine)
    what = f"MSE of CP on 20 unseen wings at equal training time ({peer} has {theirs.mean():.4g})"
    return alone(f"error {peer}", mine.mean(), "MSE", "<= 1", what) | {
        "peer": peer,
        "ratio": float(mine.mean() / theirs.mean()),
        "interval": (1 - cut.interval[1] / 100, 1 - cut.interval[0] / 100),
    }


# ----------------------------------------------------------------------------------------------- the plain reference


def plain_potential(P: np.ndarray, alpha: float, wake_length: float = 50.0) -> np.ndarray:
    """The perturbation potential on half a wing at Mach 0, one pair of panels after the other."""
    n_u, n_v = P.shape[0] - 1, P.shape[1] - 1
    quads = [[P[i, j], P[i + 1, j], P[i + 1, j + 1], P[i, j + 1]] for i in range(n_u) for j in range(n_v)]
    mirrored = [[q * [1, -1, 1] for q in (a, d, c, b)] for a, b, c, d in quads]  # the same diagonal
    edge = (P[0] + P[-1]) / 2
    far = edge + np.array([wake_length * np.ptp(P[:, 0, 0]), 0, 0])
    wake = [[edge[j], far[j], far[j + 1], edge[j + 1]] for j in range(n_v)]
    wake_mirrored = [[q * [1, -1, 1] for q in (a, d, c, b)] for a, b, c, d in wake]
    stream = np.array([math.cos(math.radians(alpha)), 0.0, math.sin(math.radians(alpha))])
    points = [sum(q) / 4 for q in quads]
    n = len(quads)
    matrix, right = np.zeros((n, n)), np.zeros(n)
    for i, p in enumerate(points):
        for j, (quad, image) in enumerate(zip(quads, mirrored)):
            normal = np.cross(quad[2] - quad[0], quad[3] - quad[1])
            strength = float(normal @ stream) / float(np.linalg.norm(normal))
            angle, potential = plain_quad(p, quad, own=i == j)
            other = plain_quad(p, image)
            matrix[i, j] += angle + other[0]
            right[i] += strength * (potential + other[1])
        for j, (sheet, image) in enumerate(zip(wake, wake_mirrored)):
            shed = plain_quad(p, sheet)[0] + plain_quad(p, image)[0]
            matrix[i, (n_u - 1) * n_v + j] += shed
            matrix[i, j] -= shed
    return np.linalg.solve(matrix, right)


def plain_quad(p: np.ndarray, quad: list[np.ndarray], own: bool = False) -> tuple[float, float]:
    """Solid angle and source potential of two triangles."""
    a, b, c, d = quad
    if np.linalg.norm(d - b) < (1 - 1e-12) * np.linalg.norm(c - a):
        a, b, c, d = b, c, d, a  # split along the shorter diagonal
    first, second = plain_triangle(p, (a, b, c), own, 2), plain_triangle(p, (a, c, d), own, 0)
    return first[0] + second[0], first[1] + second[1]


def plain_triangle(p: np.ndarray, corners: tuple[np.ndarray, ...], own: bool, diagonal: int) -> tuple[float, float]:
    a, b, c = (corner - p for corner in corners)
    normal = np.cross(b - a, c - a)
    doubled = float(np.linalg.norm(normal))
    if doubled == 0.0:
        return 0.0, 0.0
    normal = normal / doubled
    height = float(-normal @ a)
    ra, rb, rc = (float(np.linalg.norm(v)) for v in (a, b, c))
    if own:
        angle, height = math.pi, 0.0
    else:
        bottom = ra * rb * rc + float(a @ b) * rc + float(b @ c) * ra + float(c @ a) * rb
        angle = -2 * math.atan2(doubled * height, bottom)
    potential = height * angle
    for k, (start, stop, r1, r2) in enumerate(((a, b, ra, rb), (b, c, rb, rc), (c, a, rc, ra))):
        edge = stop - start
        length = float(np.linalg.norm(edge))
        inside = float(start @ np.cross(edge / length, normal))
        if not (own and k == diagonal):  # the centre may lie on it
            potential += inside * math.log((r1 + r2 + length) / (r1 + r2 - length))
    return angle, potential


if __name__ == "__main__":
    start = time.perf_counter()
    for row in bench():
        ratio = "" if row["ratio"] is None else f"  ratio {row['ratio']:.4g}"
        print(f"{row['name']:>32} {row['ours']:.4g} {row['unit']}{ratio}  bound {row['bound']}  {row['peer'] or ''}")
    print(f"{time.perf_counter() - start:.0f} s")
