"""
A vector field on a torus from a few noisy vectors
==================================================

Vectors are known at one point in four of a scattered torus, with noise. No mesh is given: the manifold is what the
points say. The Gaussian process denoises the field, fills it in everywhere and says how sure it is. The places where it
vanishes are found by the index of the field.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial import Delaunay

from steepest.geometry import knn_graph, orient_frames, vector_field_index
from steepest.manifold import VectorFieldGP, furthest_point_sampling

# %%
# Points on a torus, and a smooth tangent field with eight zeros: four of index +1, four of index -1.
rng = np.random.default_rng(0)
u, v = rng.uniform(0, 2 * np.pi, (2, 4000))
cloud = np.column_stack([(2 + 0.8 * np.cos(v)) * np.cos(u), (2 + 0.8 * np.cos(v)) * np.sin(u), 0.8 * np.sin(v)])
chosen = furthest_point_sampling(cloud, 700)
X, u, v = cloud[chosen], u[chosen], v[chosen]
along = np.column_stack([-np.sin(u), np.cos(u), 0 * u])
around = np.column_stack([-np.sin(v) * np.cos(u), -np.sin(v) * np.sin(u), np.cos(v)])
field = np.sin(2 * u)[:, None] * along + np.sin(v)[:, None] * around
y = field + 0.1 * rng.standard_normal(X.shape)
y[rng.random(len(X)) > 0.25] = np.nan

# %%
# Fit, predict, and look for triangles around which the field turns once. They close up to a torus, whose Euler
# characteristic is 0: so is the sum of the indices, and all eight zeros are found.
model = VectorFieldGP(n_eigenpairs=60, dim=2).fit(X, y)
mean, std = model.predict(X, return_std=True)
hidden = np.isnan(y[:, 0])
error = np.linalg.norm((mean - field)[hidden]) / np.linalg.norm(field[hidden])
# Triangles between the angles, which are repeated on all sides so that none is cut off; each is kept once.
shifts = 2 * np.pi * np.mgrid[-1:2, -1:2].reshape(2, 9, 1)
angles = np.stack([u, v])[:, None] + shifts
flat = angles.reshape(2, -1).T
tiles = Delaunay(flat * [2.0, 0.8]).simplices  # about in the proportions of the torus
centers = flat[tiles].mean(axis=1)
triangles = tiles[((centers >= 0) & (centers < 2 * np.pi)).all(axis=1)] % len(X)
frames = orient_frames(model.frames_, knn_graph(X, 10))
index = vector_field_index(X, mean, frames, triangles)
zeros = X[triangles].mean(axis=1)

# %%
# Arrows are the posterior mean, colors its standard deviation; circles mark zeros of index +1, crosses those of -1.
axes = plt.figure(figsize=(9, 5.5)).add_subplot(projection="3d", computed_zorder=False)
spread = np.linalg.norm(std, axis=1)
points = axes.scatter(*X.T, c=spread, s=9, cmap="viridis", alpha=0.7)
axes.quiver(*X.T, *(0.22 * mean).T, color="0.35", linewidth=0.6)
style = {"s": 90, "color": "crimson", "edgecolor": "white", "depthshade": False}
for sign, marker in ((1, "o"), (-1, "X")):
    axes.scatter(*zeros[index == sign].T, marker=marker, label=f"index {sign:+d}", **style)
axes.set_box_aspect(np.ptp(X, axis=0), zoom=1.5)
axes.set(title=f"relative error at hidden points: {error:.2f}")
axes.view_init(55, -60)
axes.set_axis_off()
axes.legend(loc="upper left")
plt.colorbar(points, ax=axes, shrink=0.6, label="posterior standard deviation")
plt.tight_layout()
plt.show()
