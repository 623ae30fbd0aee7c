"""What else optimizes over a network, transcribed: EXTRA, gradient tracking, ADOM+, MSDA, continuized dual, gossip.

Every peer returns a `Course`: how often edges were used and how far the nodes were from the solution. An edge use is
one exchange between two neighbors, whatever the messages carry; a round of a synchronous method uses every edge once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.studies.dadao_problems import Edges, Problem

__all__ = ["Course", "adom_plus", "continuized_dual", "extra", "gossip_tracking", "gradient_tracking", "msda"]

Array = NDArray[Any]


@dataclass
class Course:
    """Edge uses, units of time (gradients a node) and the mean squared distance, relative to the start's."""

    edges: list[float] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)

    def reach(self, level: float, of: str = "edges") -> float:
        """Edge uses (or time) after which the distance stays below `level`; infinite where it does not."""
        above = np.flatnonzero(~(np.asarray(self.distance) <= level))
        at = 0 if len(above) == 0 else int(above[-1]) + 1
        return float(getattr(self, of)[at]) if at < len(self.distance) else math.inf


def laplacian(graph: Edges) -> Array:
    """Of the graph with all weights one."""
    n, edges = graph
    L = np.zeros((n, n))
    for i, j in edges:
        L[[i, j, i, j], [i, j, j, i]] += 1, 1, -1, -1
    return L


def _spectrum(graph: Edges) -> tuple[float, float]:
    """Smallest positive and largest eigenvalue."""
    eigenvalues = np.linalg.eigvalsh(laplacian(graph))
    return float(eigenvalues[1]), float(eigenvalues[-1])


def _follow(problem: Problem, rounds: Iterator[Array], edges_a_round: float, level: float, maxiter: int) -> Course:
    """Note the distance after every round until it is below `level`."""
    course, start = Course(), float((problem.x_star**2).sum())
    for k, X in enumerate(rounds):
        distance = float(((X - problem.x_star) ** 2).sum(1).mean()) / start
        course.edges.append(k * edges_a_round)
        course.time.append(float(k))
        course.distance.append(distance)
        if distance <= level or not distance < 1e6 or k >= maxiter:
            break
    return course


def _tuned(steps: Callable[[float], Course], L: float) -> Course:
    """The best of three step sizes."""
    return min((steps(share / L) for share in (1.0, 0.5, 0.25)), key=lambda c: (c.edges[-1], c.distance[-1])
               if c.distance[-1] < 1 else (math.inf, 0.0))  # fmt: skip


def extra(problem: Problem, graph: Edges, level: float, maxiter: int = 20_000) -> Course:
    """EXTRA: descent whose error of consensus is corrected by the last two iterates."""
    L = laplacian(graph)
    W = np.eye(problem.n) - L / _spectrum(graph)[1]

    def steps(step: float) -> Iterator[Array]:
        X = np.zeros((problem.n, problem.d))
        g, mixed = problem.gradients(X), W @ X
        new = mixed - step * g
        yield X
        while True:
            yield new
            g_new, mixed_new = problem.gradients(new), W @ new
            X, new = new, new + mixed_new - (X + mixed) / 2 - step * (g_new - g)
            g, mixed = g_new, mixed_new

    return _tuned(lambda step: _follow(problem, steps(step), len(graph[1]), level, maxiter), problem.L)


def gradient_tracking(problem: Problem, graph: Edges, level: float, maxiter: int = 20_000) -> Course:
    """Gradient tracking: a second vector at each node follows the mean gradient."""
    W = np.eye(problem.n) - laplacian(graph) / _spectrum(graph)[1]

    def steps(step: float) -> Iterator[Array]:
        X = np.zeros((problem.n, problem.d))
        G = problem.gradients(X)
        Y = G
        while True:
            yield X
            X = W @ X - step * Y
            new = problem.gradients(X)
            Y, G = W @ Y + new - G, new

    return _tuned(lambda step: _follow(problem, steps(step), len(graph[1]), level, maxiter), problem.L)


def adom_plus(problem: Problem, graph: Edges, level: float, *, multi_consensus: bool, maxiter: int = 20_000) -> Course:
    """ADOM+ (Kovalev et al. 2021) with its own constants; with multi-consensus, so many gossips that chi is 2."""
    low, high = _spectrum(graph)
    chi, P, repeats = high / low, laplacian(graph) / high, 1
    if multi_consensus:
        repeats = math.ceil(chi * math.log(2))
        P = np.eye(problem.n) - np.linalg.matrix_power(np.eye(problem.n) - P, repeats)
        chi = 1 / float(np.linalg.eigvalsh(P)[1])
    mu, L, nu, alpha, beta = problem.mu, problem.L, problem.mu / 2, problem.mu / 2, 1 / (2 * problem.L)
    tau2 = math.sqrt(mu / L)
    tau1, sigma2 = 1 / (1 / tau2 + 0.5), tau2 / (16 * chi)
    sigma1, eta, delta = 1 / (1 / sigma2 + 0.5), 1 / (L * tau2), 1 / (17 * L)
    gamma, theta, zeta = nu / (14 * sigma2 * chi**2), nu / (4 * sigma2), 0.5

    def steps() -> Iterator[Array]:
        x = y = z = m = x_f = y_f = z_f = np.zeros((problem.n, problem.d))
        shrink = 1 + eta * alpha
        while True:
            yield x
            x_g, y_g, z_g = (tau1 * x + (1 - tau1) * x_f, sigma1 * y + (1 - sigma1) * y_f,
                             sigma1 * z + (1 - sigma1) * z_f)  # fmt: skip
            g = problem.gradients(x_g)
            # x and y are found together: both depend on the new values of both
            right_x = x + eta * alpha * x_g - eta * (g - nu * x_g)
            right_y = y + theta * beta * (g - nu * x_g) - theta / nu * (y_g + z_g)
            new_y = (right_y - theta * right_x / shrink) / (1 + theta * beta + theta * eta / shrink)
            new_x = (right_x + eta * new_y) / shrink
            sent = gamma / nu * (y_g + z_g) + m
            new_z = z + gamma * delta * (z_g - z) - P @ sent
            m = sent - P @ sent
            x_f, y_f = x_g + tau2 * (new_x - x), y_g + sigma2 * (new_y - y)
            z_f = z_g - zeta * (P @ (y_g + z_g))
            x, y, z = new_x, new_y, new_z

    return _follow(problem, steps(), repeats * len(graph[1]), level, maxiter)


def msda(problem: Problem, graph: Edges, level: float, maxiter: int = 5_000) -> Course:
    """MSDA (Scaman et al. 2017, Alg. 2): accelerated ascent on the dual, gossip speeded up by Chebyshev polynomials."""
    low, high = _spectrum(graph)
    share = low / high
    c1 = (1 - math.sqrt(share)) / (1 + math.sqrt(share))
    K = max(1, int(1 / math.sqrt(share)))
    c2 = (1 + share) / (1 - share) if share < 1 - 1e-12 else math.inf
    A = np.eye(problem.n) - 2 / ((1 + share) * high) * laplacian(graph)
    top, root = c1**K, math.sqrt(problem.kappa)
    step = problem.mu * (1 + top**2) / (1 + top) ** 2
    momentum = ((1 + top) * root - 1 + top) / ((1 + top) * root + 1 - top)

    def gossiped(X: Array) -> Array:
        if math.isinf(c2):
            return X - A @ X
        old, new, a_old, a_new = X, c2 * (A @ X), 1.0, c2
        for _ in range(1, K):
            old, new = new, 2 * c2 * (A @ new) - old
            a_old, a_new = a_new, 2 * c2 * a_new - a_old
        return X - new / a_new

    def steps() -> Iterator[Array]:
        x = y = np.zeros((problem.n, problem.d))
        while True:
            theta = problem.dual(x)
            yield theta
            y_new = x - step * gossiped(theta)
            x, y = y_new + momentum * (y_new - y), y_new

    return _follow(problem, steps(), K * len(graph[1]), level, maxiter)


def continuized_dual(problem: Problem, graph: Edges, level: float, seed: int, max_edges: int = 200_000) -> Course:
    """Continuized dual ascent (Even et al. 2021): edges at random, two gradients of conjugates at each."""
    n, edges = graph
    rng, m, start = np.random.default_rng(seed), len(edges), float((problem.x_star**2).sum())
    L = laplacian(graph) / m
    K = np.linalg.pinv(L)
    resistance = np.array([K[i, i] + K[j, j] - 2 * K[i, j] for i, j in edges])
    gossip, worst = float(np.linalg.eigvalsh(L)[1]), float(resistance.max())
    eta = math.sqrt(gossip / worst * problem.mu / problem.L)
    gamma, gamma_tilde = problem.mu / (2 * worst), math.sqrt(problem.L * problem.mu / (2 * gossip * worst))
    S, last, t, course = np.zeros((n, 2, problem.d)), np.zeros(n), 0.0, Course()
    for k in range(max_edges + 1):
        if k % n == 0:
            e = (1 - np.exp(-2 * eta * (t - last)))[:, None] / 2
            X = problem.dual(S[:, 0] + e * (S[:, 1] - S[:, 0]))
            course.edges.append(float(k))
            course.time.append(t)
            course.distance.append(float(((X - problem.x_star) ** 2).sum(1).mean()) / start)
            if course.distance[-1] <= level:
                break
        t += rng.standard_exponential()
        edge = int(rng.integers(m))
        i, j = edges[edge]
        for node in (i, j):
            y, z = S[node]
            move = (1 - math.exp(-2 * eta * (t - last[node]))) / 2 * (z - y)
            S[node], last[node] = (y + move, z - move), t
        g = problem.dual_of(i, S[i, 0]) - problem.dual_of(j, S[j, 0])
        jump = np.array([gamma * resistance[edge], gamma_tilde])[:, None] * g
        S[i] -= jump
        S[j] += jump
    return course


def gossip_tracking(
    problem: Problem, graph: Edges, rate: float, level: float, seed: int, *, step: float, max_time: float
) -> Course:
    """Gradient tracking on the clocks of DADAO: descent at a node's gradients, averages of both vectors at gossips."""
    n, edges = graph
    rng, start, course = np.random.default_rng(seed), float((problem.x_star**2).sum()), Course()
    S = [np.zeros((2, problem.d)) for _ in range(n)]
    for i in range(n):
        S[i][1] = problem.gradient(i, S[i][0])
    memory = [s[1].copy() for s in S]
    total = n + rate * len(edges)
    used, k = 0, 0
    while True:
        if k % (10 * n) == 0:
            X = np.array([s[0] for s in S])
            course.edges.append(float(used))
            course.time.append(k / total)
            course.distance.append(float(((X - problem.x_star) ** 2).sum(1).mean()) / start)
            if course.distance[-1] <= level or not course.distance[-1] < 1e6 or k / total > max_time:
                return course
            ticks = (rng.random(10 * n) * total).tolist()
        tick = ticks[k % (10 * n)]
        k += 1
        if tick < n:
            i = int(tick)
            x, y = S[i]
            x = x - step * y
            g = problem.gradient(i, x)
            S[i] = np.stack([x, y + g - memory[i]])
            memory[i] = g
        else:
            used += 1
            i, j = edges[min(int((tick - n) / rate), len(edges) - 1)]
            S[i] = S[j] = (S[i] + S[j]) / 2
