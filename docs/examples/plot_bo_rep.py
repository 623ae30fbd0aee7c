"""
Two variables above, a gradient that explodes
=============================================

The validation loss of a recurrent network can be flat in one place and steeper than any number in another. Here such a
loss has two variables: F grows exponentially in y, which follows x from below. The step size of plain descent is right
in one place alone. BO-REP's step has the length it was given, everywhere.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from steepest.bilevel import BilevelProblem, aid_cg, bo_rep

# %%
# Both walls of F are exponential, one much steeper than the other; the lower level pulls y to x.
start = torch.tensor([2.5, -2.0], dtype=torch.float64)


def upper(x, y, batch):
    return torch.cosh(4 * y[0]) + torch.cosh(2 * y[1])


problem = BilevelProblem(upper, lambda x, y, batch: ((y - x) ** 2).sum() / 2, start, start)


def path_of(method, **options):
    path = [start.numpy()]
    result = method(problem, callback=lambda intermediate_result: path.append(intermediate_result.x.numpy()), **options)
    return np.array(path), result


# %%
# Plain implicit gradients twice: with a step size that survives the start, and with one that is six times as large.
ours, result = path_of(bo_rep, lr_x=0.05, decay="linear", maxiter=250)
small, _ = path_of(aid_cg, lr_x=5e-5, lr_y=1.0, maxiter=250)
large, broken = path_of(aid_cg, lr_x=3e-4, lr_y=1.0, maxiter=250)
print("BO-REP:", result.message, "x =", result.x.numpy().round(3))
print("plain, 3e-4:", broken.message)

# %%
# Left, the paths over the logarithm of F. Right, the gradient that each of them met: ours passes from 40,000 to nearly
# zero at one speed. The small plain step has come down the steep wall and hardly moves along the other; the larger one
# has left the picture, and the range of numbers, at once.
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=[1.25, 1])
u, v = np.meshgrid(np.linspace(-3, 3, 200), np.linspace(-2.6, 2.6, 200))
left.contourf(u, v, np.log10(np.cosh(4 * u) + np.cosh(2 * v)), 24, cmap="Greys", alpha=0.75)
paths = {"BO-REP, lr_x 0.05": (ours, "tab:orange"), "plain step, 5e-5": (small, "tab:blue"),
         "plain step, 3e-4": (large, "tab:green")}  # fmt: skip


def gradient_norm(x):
    return np.hypot(4 * np.sinh(np.clip(4 * x[:, 0], -300, 300)), 2 * np.sinh(2 * x[:, 1]))


for label, (path, color) in paths.items():
    left.plot(*path.T, "-", color=color, lw=2, label=label)
    left.plot(*path[-1], "o", color=color, ms=7)
    right.semilogy(gradient_norm(path), color=color, lw=2, label=label)
left.plot(*start, "k*", ms=13)
left.plot(0, 0, "kx", ms=9)
left.set(xlim=(-3, 3), ylim=(-2.6, 2.6), xlabel="$x_1$", ylabel="$x_2$", title="same number of steps, from the star")
right.set(xlabel="upper step", title="gradient of the validation loss met on the way", ylim=(1e-2, 1e12))
right.legend()
plt.tight_layout()
plt.show()
