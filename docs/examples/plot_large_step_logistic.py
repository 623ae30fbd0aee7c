"""
A higher loss, and yet sooner there
===================================

Gradient descent on the logistic loss separates two classes with any step size. Larger steps have a higher loss on the
way and need fewer updates: the loss is the wrong thing to watch. In the worst case the plain method turns its line a
little at a time, because most samples are classified right and say nothing; dividing by the sum of the weights cures
that.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from steepest.landscape import LargeStepLogisticRegression, perceptron_bound, worst_case_data

# %%
# Two digits that are alike, 3 and 8, by the plain method with step sizes over four orders of magnitude.
X, y = load_digits(return_X_y=True)
pair = (y == 3) | (y == 8)
X, y = X[pair] / 16, y[pair]
steps = [0.1, 1.0, 10.0, 1_000.0]
models = [LargeStepLogisticRegression(g, normalize=False, record_history=True).fit(X, y) for g in steps]
for g, model in zip(steps, models):
    print(f"step size {g:6g}: {model.n_iter_[0]:5d} updates, mean loss {model.history_[0]['loss'][:-1].mean():.2f}")

# %%
# The worst case: one sample against n - 1 on one point. The plain method needs a multiple of n, the normalized one two.
sizes = np.array([30, 100, 300, 1_000, 3_000, 10_000])
counts = {}
for normalize in (False, True):
    model = LargeStepLogisticRegression(np.inf, normalize=normalize, fit_intercept=False, max_iter=100_000)
    counts[normalize] = [int(model.fit(*worst_case_data(n)).n_iter_[0]) for n in sizes]

# %%
# Left, misclassified samples (of 357; a dot where none is left); in the middle, the loss of the same runs; right,
# updates in the worst case, with the bounds dashed.
figure, (errors, losses, worst) = plt.subplots(1, 3, figsize=(11, 3.6))
colors = plt.colormaps["viridis"](np.linspace(0.85, 0.1, len(steps)))
for g, model, color in zip(steps, models, colors):
    history = model.history_[0]
    t = np.arange(len(history["loss"]))
    wrong = len(y) * (1 - history["accuracy"])
    errors.plot(t[1:-1], wrong[1:-1], color=color, label=f"{g:g}", lw=1.5)
    errors.plot(t[-1], 0.5, "o", color=color, clip_on=False, zorder=3)
    losses.plot(t[1:-1], history["loss"][1:-1], color=color, lw=1.5)
    losses.plot(t[-2], history["loss"][-2], "o", color=color)
errors.set(xscale="log", yscale="log", ylim=(0.5, 400), xlabel="update", title="misclassified samples")
errors.set_yticks([0.5, 1, 10, 100], ["0", "1", "10", "100"])
errors.legend(title="step size", frameon=False)
losses.set(xscale="log", yscale="log", xlabel="update", title="logistic loss on the way")
for normalize, name, color in ((False, "plain", "tab:orange"), (True, "normalized", "tab:blue")):
    bound = [perceptron_bound(1.25**0.5, 0.5, int(n), normalize=normalize) for n in sizes]
    worst.loglog(sizes, counts[normalize], "o-", color=color, label=name)
    worst.loglog(sizes, bound, "--", color=color, lw=1, alpha=0.7)
worst.set(xlabel="samples", title="updates in the worst case")
worst.legend(frameon=False)
for axes in figure.axes:
    axes.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
plt.show()
