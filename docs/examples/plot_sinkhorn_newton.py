"""
A sharp transport plan, exact to the last digit
===============================================

Mass is moved from one shape to another. With little entropy the plan is sharp, and Sinkhorn's sweeps crawl: each takes
off a sliver of the error. Sparse Newton steps, along decreasing entropies, bring it to machine precision.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial.distance import cdist

from steepest.transport import sinkhorn_newton_sparse

# %%
# A ring and two disks on a grid of 26 x 26 points; the cost is the squared distance.
side = 26
t = np.linspace(-1, 1, side)
X = np.stack(np.meshgrid(t, t, indexing="ij"), axis=-1).reshape(-1, 2)
radius = np.linalg.norm(X, axis=1)
ring = np.exp(-(((radius - 0.75) / 0.1) ** 2))
disks = sum(np.exp(-((X - c) ** 2).sum(axis=1) / 0.05) for c in ([-0.35, -0.35], [0.35, 0.35]))
a, b = (w / w.sum() * 0.99 + 0.01 / len(X) for w in (ring, disks))
M = cdist(X, X, "sqeuclidean")
M /= M.max()
reg = 1 / 10000

# %%
# The error after every iteration: along decreasing entropies, and by sweeps at the final entropy alone.
plan, log = sinkhorn_newton_sparse(a, b, M, reg, stopThr=1e-12, log=True)
_, sweeps = sinkhorn_newton_sparse(
    a, b, M, reg, stopThr=1e-12, anneal=None, n_sinkhorn=2000, numItermax=2000, log=True, warn=False
)
print(f"{log['n_sinkhorn']} sweeps and {log['n_newton']} Newton steps: {log['err_newton'][-1]:.1e}")

# %%
# Left, where the mass goes: arrows to the mean of each row of the plan. Right, the errors.
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.6), width_ratios=[1, 1.15])
left.contourf(t, t, b.reshape(side, side).T, levels=12, cmap="Blues")
heavy = a > 1.2 * 0.01 / len(X) + 0.1 * a.max()
target = (plan @ X / plan.sum(axis=1)[:, None])[heavy]
left.quiver(
    *X[heavy].T, *(target - X[heavy]).T, a[heavy], angles="xy", scale_units="xy", scale=1, width=0.004, cmap="autumn"
)
left.set(aspect="equal", title="from a ring to two disks")
left.set_axis_off()
n = log["niter"] - len(log["err_newton"]) + 1
right.loglog(range(1, len(sweeps["err"]) + 1), sweeps["err"], color="tab:gray", label="Sinkhorn, final entropy")
right.loglog(range(1, n + 1), log["err"][:n], color="tab:orange", label="path of decreasing entropies")
right.loglog(range(n, log["niter"] + 1), log["err_newton"], "o-", ms=4, color="tab:blue", label="sparse Newton steps")
right.set(
    xlabel="iteration", ylabel="error of the marginals", ylim=(1e-15, 30), title=f"{log['niter']} iterations to 1e-12"
)
right.legend(loc="lower left")
plt.tight_layout()
plt.show()
