"""
When to stop a score network, told without the truth
====================================================

A denoiser is trained on two moons of points. At first it learns the shape, later the noise of its labels, and in the
end samples gather in clots. Three rules say where to stop: theory's, the least unbiased estimate of the
risk, and held-out points. Every step of training is known from one eigendecomposition of the tangent kernel.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons

from steepest.generative import ScoreRegression

# %%
# Points to learn from, and many more to judge by.
X, _ = make_moons(300, noise=0.08, random_state=0)
new, _ = make_moons(1000, noise=0.08, random_state=1)


def fit(stopping):
    model = ScoreRegression(model="kernel", stopping=stopping, max_iter=10**6, n_noisings=2, random_state=0)
    return model.fit(X)


rules = {"kernel rule": fit("kernel"), "unbiased risk": fit("mallows"), "held-out points": fit("holdout")}

# %%
# The loss on new points along training: a step count in place of a rule gives the fit at that step.
steps = np.unique(np.geomspace(1, 10**6, 8).astype(int))
losses = [-fit(int(k)).score(new) for k in steps]

# %%
# Samples of the stopped fit and of the one trained to the end.
stopped = rules["held-out points"].sample(500, n_steps=30, random_state=0)
end = fit(10**6).sample(500, n_steps=30, random_state=0)

figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
axes[0].semilogx(steps, losses, "o-", color="0.6", ms=4, label="training")
for (name, model), marker in zip(rules.items(), "Dos"):
    axes[0].plot(model.stopping_step_, -model.score(new), marker, ms=8, label=name)
axes[0].set(xlabel="step of gradient descent", ylabel="loss on new points", title="Too long, and it rises again")
axes[0].legend(frameon=False)
for ax, drawn, title in (
    (axes[1], stopped, "stopped on held-out points"),
    (axes[2], end, "trained for a million steps"),
):
    ax.plot(*drawn.T, ".", ms=4, color="tab:green" if ax is axes[1] else "tab:red", alpha=0.7, label="samples")
    ax.plot(*X.T, "k+", ms=4, mew=0.6, label="training points")
    ax.set(title=title, xlim=(-1.6, 2.6), ylim=(-1.1, 1.6), xticks=[], yticks=[])
axes[2].legend(frameon=False, loc="upper right")
plt.show()
