"""
A network whose training leaves nothing to chance
=================================================

Two rings of points are to be told apart. Training a ReLU layer by gradient descent depends on the seed; as a convex
program over activation patterns it has one optimum, with a proof. The same program takes perturbations of the inputs
exactly: the loss is the worst one in a box around each point.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np

from steepest.convex import ConvexReLUClassifier

# %%
# Two noisy rings; each point may be moved by 0.15 along each axis.
rng = np.random.default_rng(3)
n, radius = 32, 0.15
y = np.where(np.arange(n) % 2, 1.0, -1.0)
angle = rng.uniform(0, 2 * np.pi, n)
X = np.column_stack([np.cos(angle), np.sin(angle)]) * np.where(y > 0, 1.3, 0.75)[:, None]
X += 0.04 * rng.standard_normal(X.shape)

# %%
# Patterns: half-planes at four distances along sixteen directions, and the whole plane.
turns = np.linspace(0, 2 * np.pi, 16, endpoint=False)
normals = np.column_stack([np.cos(turns), np.sin(turns)])
cuts = [X @ normal >= offset for normal, offset in itertools.product(normals, (0.0, 0.5, 0.85, 1.05))]
patterns = np.unique(np.vstack([np.ones((1, n), dtype=bool), cuts]), axis=0)
common = {"loss": "hinge", "beta": 0.02, "patterns": patterns, "max_iter": 300, "tol": 1e-3}
plain = ConvexReLUClassifier(**{**common, "loss": "squared"}).fit(X, y)
robust = ConvexReLUClassifier(**common, adversarial_radius=radius).fit(X, y)
print("plain: objective", plain.objective_, "certified gap", plain.duality_gap_)
print("robust: objective", robust.objective_, "certified gap", robust.duality_gap_)

# %%
# Boxes that the sign of the network provably does not change in are drawn with a full line.
x = np.linspace(-2, 2, 161)
grid = np.array(list(itertools.product(x, x)))[:, ::-1]
figure, axes = plt.subplots(1, 2, figsize=(10, 5))
for ax, model, name in zip(axes, (plain, robust), ("trained on the points", "trained on the boxes"), strict=True):
    f = model.decision_function(grid).reshape(len(x), len(x))
    ax.contourf(x, x, f, levels=np.linspace(-2, 2, 21), cmap="RdBu", extend="both")
    ax.contour(x, x, f, levels=[0], colors="k")
    safe = (model.certified_radius(X) >= radius) & (model.predict(X) == y)
    for point, label, kept in zip(X, y, safe, strict=True):
        style = "-" if kept else ":"
        ax.add_patch(plt.Rectangle(point - radius, 2 * radius, 2 * radius, fill=False, ls=style))
        ax.plot(*point, "o" if label > 0 else "x", color="k", ms=4)
    ax.set(aspect="equal", xticks=[], yticks=[], title=f"{name}: {safe.mean():.0%} of boxes certified")
plt.tight_layout()
plt.show()
