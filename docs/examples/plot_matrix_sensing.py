"""
A matrix whose rank was guessed too high
========================================

A matrix of rank 3 is measured, and nobody knows its rank: five columns are given to descent. With one factor the error
falls as 1/T, with two factors at a rate that the start sets. One modified step frees it from both.
"""

import matplotlib.pyplot as plt
import numpy as np

from steepest.landscape import factored_descent

# %%
# A positive semidefinite matrix with singular values 1, 0.8, 0.6 and 1 200 random measurements of it.
n, r, k = 16, 3, 5
rng = np.random.default_rng(0)
U = np.linalg.qr(rng.standard_normal((n, r)))[0]
M = (U * [1.0, 0.8, 0.6]) @ U.T
A = rng.standard_normal((1200, n, n))
y = np.einsum("mij,ij->m", A, M)

# %%
# Plain descent on one factor, on two factors from two starts, and rebalanced once.
options = {"step_size": 0.25, "seed": 0, "truth": M, "tol": 1e-12}
one = factored_descent(A, y, rank=k, parametrization="symmetric", method="gd", maxiter=3000, **options)
two = {
    alpha: factored_descent(A, y, rank=k, method="gd", init_scale=alpha, maxiter=3000, **options)
    for alpha in (0.05, 0.1)
}
rebalanced = factored_descent(A, y, rank=k, init_scale=0.05, maxiter=3000, **options)

# %%
# The dashed line is the theory of a redundant direction, ``sqrt(k - r) / (2 eta T)``; the dot is the modified step.
figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
axes.semilogy(one.history["error"], color="C7", label="one factor")
T = np.arange(40, 3000)
axes.semilogy(T, np.sqrt(k - r) / (2 * 0.25 * T), "--", color="black", lw=1, label=r"theory $\sqrt{k-r}\,/\,2\eta T$")
for (alpha, run), color in zip(two.items(), ("C0", "C1"), strict=True):
    axes.semilogy(run.history["error"], color=color, label=f"two factors, start {alpha:g}")
error, at = rebalanced.history["error"], rebalanced.switch_iter
axes.semilogy(error, color="C3", lw=2, label="rebalanced once, start 0.05")
axes.plot(at, error[at], "o", color="C3")
axes.set(xlabel="iteration", ylabel="Frobenius error", title="Rank 3, five columns", ylim=(1e-11, 3), xlim=(0, 3000))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()
