"""
A shape under an equation: the hanging chain
============================================

A chain of links of fixed length hangs between two points in the position of least potential energy. Every link is an
equation with a sparse Jacobian, the energy is linear, and all curvature comes from the constraints, through their
multipliers: the forces in the links. Sketched Newton solves each of its systems roughly at first and says how roughly.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse
from scipy.optimize import NonlinearConstraint, minimize

from steepest.constrained import sketched_newton

# %%
# Thirty links of length 0.1 between points two apart; one weight hangs on the tenth joint. Variables are the 29 joints.
links, span, length = 30, 2.0, 0.1
ends = np.array([[0.0, 0.0], [span, 0.0]])
weights = np.ones(links - 1)
weights[9] = 12.0


def differences(x):
    joints = np.vstack([ends[:1], x.reshape(-1, 2), ends[1:]])
    return np.diff(joints, axis=0)


D = sparse.diags_array([1.0, -1.0], offsets=[0, -1], shape=(links, links - 1)).toarray()  # links from joints


def lengths(x):
    return ((differences(x) ** 2).sum(axis=1) - length**2) / 2


def jacobian(x):
    return (D[:, :, None] * differences(x)[:, None, :]).reshape(links, -1)


def curvature(x, v):
    return np.kron(D.T @ (v[:, None] * D), np.eye(2))


chain = NonlinearConstraint(lengths, 0, 0, jac=jacobian, hess=curvature)
gradient = np.column_stack([np.zeros(links - 1), weights]).ravel()
t = np.linspace(0, 1, links + 1)[1:-1]
start = np.column_stack([span * t, -2.2 * t * (1 - t)]).ravel()

# %%
# Its systems have 88 equations; each iteration sketches 22 random combinations of them at a time.
shapes = [start]
result = minimize(
    lambda x: gradient @ x, start, jac=lambda x: gradient, hess=lambda x: np.zeros((x.size, x.size)), constraints=chain,
    method=sketched_newton, callback=lambda x: shapes.append(x),
    options={"random_state": 0, "lam0": np.full(links, 100.0)},
)  # fmt: skip
print(result.message, result.nit, "iterations, largest error of a link", result.constr_violation)

# %%
# Left, the iterates and the chain, its links drawn as wide as their force. Right, the KKT residual.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=[1.4, 1])
for k in np.unique(np.geomspace(1, len(shapes), 6).astype(int) - 1)[:-1]:
    joints = np.vstack([ends[:1], shapes[k].reshape(-1, 2), ends[1:]])
    left.plot(*joints.T, color="0.75", lw=1)
joints = np.vstack([ends[:1], result.x.reshape(-1, 2), ends[1:]])
force = result.lam * length
for i in range(links):
    left.plot(*joints[i : i + 2].T, color="tab:blue", lw=0.8 + 5 * force[i] / force.max(), solid_capstyle="round")
left.plot(*joints[10], "o", ms=12, color="tab:orange", label="twelve times the weight of a joint")
left.plot(*ends.T, "k^")
left.set(aspect="equal", title="links as wide as their force: the multipliers")
left.legend(loc="lower right")
left.set_axis_off()
kkt = result.history["kkt"]
right.semilogy(kkt, "o-", ms=3, label="KKT residual")
right.set(xlabel="iteration", title=f"{sum(result.history['inner'])} sketches in {result.nit} iterations")
right.legend()
plt.tight_layout()
plt.show()
