"""
A run of SGD climbs to its stability limit
==========================================

Three of a hundred features matter, forty samples are known, and a diagonal linear network fits them all. Trained on
single samples with a learning rate that rises slowly, SGD must leave one minimum after the other: it ends where the
exact threshold allows, which is flatter and generalizes better. Gradient descent stays where it began.
"""

import warnings

import matplotlib.pyplot as plt
import torch

from steepest.landscape import DiagonalLinear, StabilityMonitor

# %%
# The problem: inputs from N(0, I), coefficients 1, -1, 1 and ninety-seven zeros.
generator = torch.Generator().manual_seed(0)
X = torch.randn(40, 100, generator=generator, dtype=torch.float64)
truth = torch.zeros(100, dtype=torch.float64)
truth[:3] = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
y = (X @ truth).unsqueeze(1)


# %%
# One training loop for both; the monitor reads every 200 steps. PyTorch's squared error has no 1/2, so that a learning
# rate of 0.03 is one of 0.06 for the loss ``(f - y)^2 / 2``.
def train(batch_size, steps=8000, peak=0.03):
    model = DiagonalLinear(100, scale=0.7, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak)
    loss_fn, errors = torch.nn.MSELoss(), []
    monitor = StabilityMonitor(
        model, loss_fn, X, y, every=200, batch_size=batch_size, replacement=batch_size == 1, optimizer=optimizer,
        callback=lambda report: errors.append(float((model.coef - truth).detach().square().sum())),
    )  # fmt: skip
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = peak * min(1.0, 2 * (t + 1) / steps)
        rows = torch.randint(40, (1,), generator=generator) if batch_size == 1 else slice(None)
        optimizer.zero_grad()
        loss_fn(model(X[rows]), y[rows]).backward()
        optimizer.step()
    return monitor.history, errors


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # the loss is far from zero at first
    runs = {"SGD, single samples": train(1), "gradient descent": train(40)}

# %%
# The last report of SGD, in words.
print(runs["SGD, single samples"][0][-1])

# %%
# Left: lr tr H / 2, what single samples must keep below 1. Right: what it is good for.
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for name, (history, errors) in runs.items():
    steps = [report.step for report in history]
    left.plot(steps, [report.lr * report.trace / 2 for report in history], label=name)
    right.plot(steps, errors)
left.axhline(1, color="gray", lw=1, ls="--")
left.annotate("limit of SGD", (steps[-1], 1), (0, 4), textcoords="offset points", ha="right", color="gray")
left.set_yscale("log")
left.set_ylabel("learning rate x tr H / 2")
left.legend()
right.set_ylim(0, 4)
right.set_ylabel("squared error of the coefficients")
for ax in (left, right):
    ax.set_xlabel("step")
    ax.spines[["top", "right"]].set_visible(False)
figure.suptitle("SGD keeps to its limit and finds the flatter, better solution")
plt.show()
