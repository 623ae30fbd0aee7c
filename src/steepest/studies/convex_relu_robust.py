"""Training against perturbations in the study of convex networks, its attacks, and time beside other solvers."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from steepest.convex import ConvexReLUClassifier, enumerate_patterns, sample_patterns
from steepest.convex import _losses as losses
from steepest.core.errors import ConvergenceWarning
from steepest.core.extras import MissingExtra, installed, require
from steepest.studies import convex_relu_peers as peers
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context

__all__ = ["LOSSES", "decision", "exactness", "mlp", "run_paper", "speed", "under_attack"]

LOSSES = losses.LOSSES
Array = np.ndarray
Network = tuple[Array, Array]
WIDTH = 36


def classifier(X: Array, y: Array, **options: Any) -> ConvexReLUClassifier:
    """Fit without the warning of a fit that was cut short: its gap says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return ConvexReLUClassifier(**options).fit(X, y)


def exactness(ctx: Context) -> None:
    """The training objective against attacks on a grid with the corners of every box."""
    sizes = ctx.pick(quick=(10,), full=(10, 20, 40), paper=(), tiny=(6,))
    radius, beta = 0.1, 0.1
    steps = np.linspace(-radius, radius, 41)
    moves = np.array(list(itertools.product(steps, steps)))
    for loss in LOSSES:
        differences = []
        for n in sizes:
            X, f = peers.planted(n, 2, ctx.seed)
            y = np.sign(f - np.median(f) + 1e-9)
            model = classifier(X, y, loss=loss, beta=beta, patterns=enumerate_patterns(X), fit_intercept=False,
                               adversarial_radius=radius, max_iter=400)  # fmt: skip
            outputs = model.decision_function((X[:, None] + moves).reshape(-1, 2)).reshape(n, -1)
            values = losses.value(loss, torch.as_tensor(outputs), torch.as_tensor(y)[:, None])
            penalty = beta * (np.linalg.norm(model.v_, axis=1).sum() + np.linalg.norm(model.w_, axis=1).sum())
            differences.append(abs(float(values.amax(1).sum()) + penalty - model.objective_) / model.objective_)
        ctx.measured(f"adversarial-{loss}", max(differences))


def decision(ctx: Context) -> None:
    """Maps of two networks on the plane."""
    n, radius = ctx.pick(quick=32, full=40, paper=40, tiny=12), 0.15
    rng = np.random.default_rng(3)
    angle = rng.uniform(0, 2 * np.pi, n)
    y = np.where(np.arange(n) % 2, 1.0, -1.0)
    X = np.column_stack([np.cos(angle), np.sin(angle)]) * np.where(y > 0, 1.3, 0.75)[:, None]
    X += 0.04 * rng.standard_normal(X.shape)
    x = np.linspace(-2, 2, 161)
    grid = np.array(list(itertools.product(x, x)))[:, ::-1]
    turns = np.linspace(0, 2 * np.pi, ctx.pick(quick=12, full=20, paper=20), endpoint=False)
    normals = np.column_stack([np.cos(turns), np.sin(turns)])
    cuts = [X @ normal >= offset for normal, offset in itertools.product(normals, (0.0, 0.5, 0.85, 1.05))]
    patterns = np.unique(np.vstack([np.ones((1, n), dtype=bool), cuts]), axis=0)
    kept: dict[str, Any] = {}
    for name, loss, eps in (("plain", "squared", 0.0), ("robust", "hinge", radius)):
        model = classifier(X, y, loss=loss, beta=0.02, patterns=patterns, tol=1e-3, adversarial_radius=eps,
                           max_iter=300)  # fmt: skip
        kept[name] = model.decision_function(grid).reshape(len(x), len(x))
        safe = (model.predict(X) == y) & (model.certified_radius(X) >= radius)
        kept[f"{name}_share"] = np.mean(safe)
    ctx.arrays("decision", x=x, points=X, labels=y, radius=np.array(radius), **kept)


# -------------------------------------------------------------------------------------------------------- under attack


def under_attack(ctx: Context) -> None:
    """Accuracy under attack of four ways to train, each tuned on a quarter of the training rows with two trials."""
    X, y = ctx.data("breast_cancer")
    radii = ctx.pick(quick=(0.2,), full=(0.05, 0.1, 0.2), paper=(), tiny=(0.2,))
    gained: dict[str, list[float]] = {name: [] for name in TRAINERS}
    curves: dict[tuple[str, int], list[tuple[float, float]]] = {}
    gaps = []
    for radius in radii:
        rows, target, *_ = peers.split(X, 2.0 * y - 1, ctx.seed)
        if ctx.scale == "tiny":
            rows, target = rows[:60], target[:60]
        cut = len(rows) // 4
        settings = {}
        for name, (train, trials) in TRAINERS.items():
            scores = []
            for trial in trials:
                W, a, _ = train(ctx, rows[cut:], target[cut:], radius, trial, ctx.seed)
                scores.append(peers.attacked_accuracy(W, a, rows[:cut], target[:cut], radius, ctx.seed, restarts=3))
            settings[name] = trials[int(np.argmax(scores))]
        for seed in ctx.seeds:
            rows, target, test, truth = peers.split(X, 2.0 * y - 1, seed)
            if ctx.scale == "tiny":
                rows, target = rows[:60], target[:60]
            for name, (train, _) in TRAINERS.items():
                W, a, gap = train(ctx, rows, target, radius, settings[name], seed)
                score = peers.attacked_accuracy(W, a, test, truth, radius, seed)
                curves.setdefault((name, seed), []).append((radius, score))
                if radius == 0.2:
                    gained[name].append(score)
                    if name == OURS:
                        gaps.append(gap)
    for (name, seed), curve in curves.items():
        ctx.series("robust", curve, method=name, seed=seed)
    ours = np.array(gained[OURS])
    for claim, name in (("robust-plain", PLAIN), ("robust-pgd", PGD), ("robust-fgsm", FGSM)):
        differences = ours - np.array(gained[name])
        ctx.measured(claim, float(np.mean(differences)), bootstrap_interval(differences))
    ctx.measured("robust-gap", max(gaps))
    ctx.note("accuracy under attack at 0.2: " + ", ".join(f"{k} {np.mean(v):.3f}" for k, v in gained.items()) + ".")


def _convex(ctx: Context, X: Array, y: Array, radius: float, beta: float, seed: int) -> tuple[Array, Array, float]:
    patterns = sample_patterns(X, WIDTH, perturbation=radius, random_state=seed)
    patterns = np.unique(np.vstack([np.ones((1, len(X)), dtype=bool), patterns]), axis=0)
    model = classifier(X[:, :-1], y, loss="hinge", beta=beta, patterns=patterns, adversarial_radius=radius,
                       max_iter=250, tol=1e-3)  # fmt: skip
    return *_weights(model), model.duality_gap_ / model.objective_


def _plain(ctx: Context, X: Array, y: Array, radius: float, beta: float, seed: int) -> tuple[Array, Array, float]:
    patterns = sample_patterns(X, WIDTH, random_state=seed)
    model = classifier(X[:, :-1], y, loss="squared", beta=beta, patterns=patterns, tol=5e-2)
    return *_weights(model), model.duality_gap_ / model.objective_


def _attacked(steps: int) -> Callable[..., tuple[Array, Array, float]]:
    def train(ctx: Context, X: Array, y: Array, radius: float, rate: float, seed: int) -> tuple[Array, Array, float]:
        length = ctx.pick(quick=100, full=300, paper=300, tiny=10)
        W, a = peers.adam_networks(X, y, 2 * WIDTH, [seed], beta=0.1, loss="logistic", rate=rate, steps=length,
                                   radius=radius, attack_steps=steps)  # fmt: skip
        return W[0].numpy(), a[0].numpy(), np.nan

    return train


OURS, PLAIN, PGD, FGSM = "convex, against perturbations", "convex, plain", "PGD training", "FGSM training"
TRAINERS: dict[str, tuple[Callable[..., tuple[Array, Array, float]], tuple[float, float]]] = {
    OURS: (_convex, (0.1, 1.0)),
    PLAIN: (_plain, (1.0, 10.0)),
    PGD: (_attacked(7), (3e-3, 1e-2)),
    FGSM: (_attacked(1), (3e-3, 1e-2)),
}


def _weights(model: ConvexReLUClassifier) -> Network:
    return np.column_stack([model.hidden_coef_, model.hidden_intercept_]), model.output_coef_


# --------------------------------------------------------------------------------------------------------------- peers


def mlp(ctx: Context) -> None:
    """Test accuracy beside scikit-learn's network of the same width, two trials each."""
    if not ctx.wants("peer-mlp"):
        return
    from sklearn.exceptions import ConvergenceWarning as Unconverged
    from sklearn.neural_network import MLPClassifier

    X, y = ctx.data("breast_cancer")
    differences = []
    for seed in ctx.seeds:
        rows, target, test, truth = peers.split(X, 2.0 * y - 1, seed)
        if ctx.scale == "tiny":
            rows, target = rows[:60], target[:60]
        cut = len(rows) // 4
        scores = []
        for trials in (_ours_of(seed), _mlp_of(MLPClassifier, seed)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Unconverged)
                tuned = max(trials, key=lambda m: m.fit(rows[cut:, :-1], target[cut:]).score(rows[:cut, :-1],
                                                                                             target[:cut]))  # fmt: skip
                scores.append(tuned.fit(rows[:, :-1], target).score(test[:, :-1], truth))
        differences.append(scores[0] - scores[1])
    ctx.measured("peer-mlp", float(np.mean(differences)), bootstrap_interval(differences))


def _ours_of(seed: int) -> list[Any]:
    options: dict[str, Any] = {"loss": "squared", "n_patterns": WIDTH, "tol": 5e-2, "random_state": seed}
    return [ConvexReLUClassifier(beta=beta, **options) for beta in (1.0, 10.0)]


def _mlp_of(kind: Any, seed: int) -> list[Any]:
    return [kind((2 * WIDTH,), alpha=alpha, max_iter=200, random_state=seed) for alpha in (1e-2, 1.0)]


def speed(ctx: Context) -> None:
    """Time to an objective within 1e-3 of the best one known, for these patterns."""
    if not ctx.wants("peer-pyscnn"):
        return
    n, d, P = ctx.pick(quick=(400, 31, 50), full=(400, 31, 50), paper=(400, 31, 50), tiny=(30, 4, 6))
    X, y = peers.planted(n, d, ctx.seed)
    gates = np.random.default_rng(ctx.seed).standard_normal((P, d))
    patterns = (X @ gates.T >= 0).T
    p = peers.program(X, y, patterns, 1.0)
    best = peers.optimum(p, 1e-6)[0]
    taken = []
    for _ in range(3):
        start = time.process_time()
        model = classifier_of_squares(X, y, patterns)
        taken.append(time.process_time() - start)
    if model.objective_ > best * (1 + 1e-3):
        raise RuntimeError("the fit stopped before its tolerance")
    ours, ratios = float(np.median(taken)), {}
    try:
        for tol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            seconds, objective = peers.pyscnn(X, y, gates, 1.0, tol)
            if objective <= best * (1 + 1e-3):
                ratios["pyscnn"] = seconds / ours
                ctx.note(f"pyscnn: tolerance {tol:g} is the loosest that comes within 1e-3, {seconds:.2f} s.")
                break
            if seconds > 120:
                break
    except MissingExtra:
        ctx.skipped("peer-pyscnn", "pyscnn is not here (it is imported as scnn): pip install pyscnn")
    else:
        if "pyscnn" in ratios:
            ctx.measured("peer-pyscnn", ratios["pyscnn"])
        else:
            ctx.skipped("peer-pyscnn", f"pyscnn did not come within 1e-3 of the optimum in {seconds:.0f} s")
    if installed("cvxpy"):
        ratios["Clarabel"] = peers.clarabel(X, y, patterns, 1.0)[2] / ours
        ctx.measured("peer-cvxpy", ratios["Clarabel"])
        _beside_scs(ctx, (X, y, patterns), best, ours)
    else:
        for claim in ("peer-cvxpy", "peer-scs"):
            ctx.skipped(claim, "cvxpy is not installed: pip install steepest[optim]")
    if ratios:
        name = min(ratios, key=lambda k: ratios[k])
        ctx.against(name, ratios[name], ahead="faster", behind="slower", what=f"to 1e-3, n = {n}, {P} patterns")


def _beside_scs(ctx: Context, problem: tuple[Array, Array, Array], best: float, ours: float) -> None:
    """Loosest tolerance of SCS whose optimal value is within 1e-3; its point may miss cones by that tolerance."""
    for tol in (1e-2, 1e-3, 1e-4, 1e-5):
        value, _, seconds = peers.clarabel(*problem, 1.0, tol=tol, solver="SCS")
        if abs(value / best - 1) <= 1e-3:
            ctx.measured("peer-scs", seconds / ours)
            ctx.note(f"SCS: tolerance {tol:g} is the loosest that comes within 1e-3, {seconds:.2f} s.")
            return
    ctx.skipped("peer-scs", f"SCS did not come within 1e-3 of the optimum in {seconds:.0f} s")


def classifier_of_squares(X: Array, y: Array, patterns: Array) -> Any:
    """Our fit of the comparison of times."""
    from steepest.studies.convex_relu_optima import fit

    return fit(X, y, patterns, beta=1.0, tol=1e-3)


# ------------------------------------------------------------------------------------------------------- paper's scale


def run_paper(ctx: Context) -> None:
    """CIFAR-10 in two classes from the folder that --data names."""
    folder = ctx.data("path")
    data = require("torchvision.datasets", what="CIFAR-10")
    train, test = (data.CIFAR10(str(folder), train=part) for part in (True, False))
    two = [_two_classes(part.data, np.asarray(part.targets)) for part in (train, test)]
    ctx.measured("paper-robust", images(ctx, two[0], two[1]))


def _two_classes(pixels: Array, labels: Array) -> tuple[Array, Array]:
    """Birds and ships as rows in [0, 1]."""
    chosen = (labels == 2) | (labels == 8)
    return pixels[chosen].reshape(int(chosen.sum()), -1) / 255.0, np.where(labels[chosen] == 8, 1.0, -1.0)


def images(ctx: Context, train: tuple[Array, Array], test: tuple[Array, Array], n: int = 600) -> float:
    """Difference in accuracy under attack of the two convex networks."""
    order = np.random.default_rng(ctx.seed).permutation(len(train[0]))[:n]
    X, y = train[0][order], train[1][order]
    radius, steps = 10 / 255, ctx.max_steps or 1000
    unseen = np.column_stack([test[0], np.ones(len(test[0]))])
    scores = []
    for eps in (radius, 0.0):
        model = classifier(X, y, loss="hinge", beta=1e-4, n_patterns=WIDTH, adversarial_radius=eps, max_iter=steps,
                           solver="pdhg", random_state=ctx.seed)  # fmt: skip
        scores.append(peers.attacked_accuracy(*_weights(model), unseen, test[1], radius, ctx.seed, restarts=1))
    return scores[0] - scores[1]
