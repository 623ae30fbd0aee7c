"""
Unrolling a noisy sheet
=======================

Twelve hundred points near a rolled-up sheet. The straight distance between two points says little about the way along
the sheet; the heat-geodesic embedding draws a plane whose distances are those ways.
"""

# %%
# The data: a Swiss roll of width 5 with noise, and the coordinates on the unrolled sheet, which are known here.
import matplotlib.pyplot as plt
import numpy as np

from steepest.manifold import HeatGeodesicEmbedding

rng = np.random.default_rng(0)
angle = 1.5 * np.pi * (1 + 2 * rng.random(1200))
height = 5 * rng.random(1200)
X = np.column_stack([angle * np.cos(angle), height, angle * np.sin(angle)]) + 0.3 * rng.standard_normal((1200, 3))
sheet = np.column_stack([(angle * np.sqrt(1 + angle**2) + np.arcsinh(angle)) / 2, height])

# %%
# The embedding. ``t_`` is the time that heat was followed for, ``floored_share_`` the share of pairs it did not reach.
model = HeatGeodesicEmbedding(n_components=2, random_state=0)
Y = model.fit_transform(X)
print(f"t = {model.t_:.1f}, unreached pairs {model.floored_share_:.1%}, {model.n_iter_} steps of scaling")

# %%
# Left the points, in the middle the plane, right its distances against the true ones.
figure = plt.figure(figsize=(9, 3), layout="constrained")
solid = figure.add_subplot(131, projection="3d")
solid.scatter(*X.T, c=angle, s=3)
solid.set_axis_off()
plane = figure.add_subplot(132)
plane.scatter(*Y.T, c=angle, s=3)
plane.set_aspect("equal", adjustable="datalim")
i, j = rng.integers(1200, size=(2, 3000))
pairs = figure.add_subplot(133)
pairs.scatter(np.linalg.norm(sheet[i] - sheet[j], axis=1), np.linalg.norm(Y[i] - Y[j], axis=1), s=2, alpha=0.4)
pairs.set_xlabel("way along the sheet")
pairs.set_ylabel("distance in the plane")
plt.show()
