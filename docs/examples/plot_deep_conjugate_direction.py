"""
Pressure along learned directions
=================================

A small network looks at the residual of a Poisson system and proposes where to go; made conjugate to the last two
directions, its proposals take the place of those of conjugate gradients. It is trained for a few seconds on an empty
box of 32 x 32 cells, without a single solution, and then solves a box of four times the cells around obstacles.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse.linalg import cg

from steepest.physics import ConjugateDirectionNet, DeepConjugateDirection, poisson_matrix, random_obstacles

# %%
# Training asks for products with the matrix alone: the loss is the residual that an exact step along the proposed
# direction leaves of a right-hand side. Right-hand sides are random mixtures of Ritz vectors, new ones in every batch.
net = ConjugateDirectionNet(2, levels=3, pairs=2, seed=1)
model = DeepConjugateDirection(net, shape=(32, 32), seed=1)
model.fit(n_vectors=1200, n_lanczos=200, epochs=1, batch_size=4)
print(f"loss on right-hand sides that were held out: {model.history_[-1][1]:.3f}")

# %%
# A finer grid, obstacles, and a few sources and sinks: nothing of this was in the training.
shape = (64, 64)
solid = random_obstacles(shape, 5, seed=4)
places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
rng = np.random.default_rng(4)
b = np.zeros(shape)
for sign in (1, -1, 1, -1):
    b += sign * np.exp(-np.sum((places - rng.uniform(8, 56, 2)) ** 2, axis=-1) / (2 * 3.0**2))
b = (b * ~solid).ravel()
A = poisson_matrix(shape, solid)
x, info, stats = model.solve(A, b, shape=shape, solid=solid, rtol=1e-6, full_output=True)
norms = [np.linalg.norm(b)]
cg(A, b, rtol=1e-6, callback=lambda x: norms.append(np.linalg.norm(b - A @ x)))
print(f"{stats['iterations']} iterations, conjugate gradients {len(norms) - 1}")

# %%
# Left, sources and sinks between the obstacles; in the middle, the pressure. Right, the residuals. Each of the few
# iterations evaluates the network, which costs as much as a hundred products with the matrix: on a processor conjugate
# gradients are done first all the same.
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.7), width_ratios=[1, 1, 1.35])
for axes, values, title in ((left, b, "sources and sinks"), (middle, x, "pressure")):
    top = np.abs(values).max()
    axes.imshow(np.where(solid, np.nan, values.reshape(shape)), cmap="RdBu_r", vmin=-top, vmax=top)
    axes.imshow(np.where(solid, 0.45, np.nan), cmap="gray", vmin=0, vmax=1)
    axes.set(title=title, xticks=[], yticks=[])
right.semilogy(norms / norms[0], color="0.5", label=f"conjugate gradients, {len(norms) - 1} iterations")
learned = np.array(stats["residuals"])
right.semilogy(learned / learned[0], color="tab:blue", lw=2, label=f"learned directions, {stats['iterations']}")
right.set(xlabel="iteration", title="relative residual")
right.legend(frameon=False)
plt.tight_layout()
plt.show()
