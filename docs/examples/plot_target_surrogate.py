"""
Ten steps for the price of one gradient
=======================================

The gradient of the loss by a model's outputs may be dear: a simulator, an expert or a remote model stands behind it.
SSO asks for it once and minimizes an upper bound of the loss, which calls the model alone. Here is that bound, and how
far a small network on digits gets with the same number of gradients.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from steepest.optim import TargetSurrogate

# %%
# Digits, and a network of one hidden layer from the same start for every method.
X, y = load_digits(return_X_y=True)
X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def batches(n, g):
    rows = [torch.randperm(len(X), generator=g)[:1750].split(125) for _ in range(n // 14 + 1)]
    return [r for epoch in rows for r in epoch][:n]


# %%
# Train with 120 gradients of the loss each: a step of SGD or Adam uses one once, an outer step of SSO for ten L-BFGS
# iterations. The learning rates of the peers are the best of four.
def train(step_of):
    model = network()
    step, losses = step_of(model), []
    for rows in batches(120, torch.Generator().manual_seed(0)):
        step(X[rows], y[rows])
        with torch.no_grad():
            losses.append(F.cross_entropy(model(X), y).item())
    return losses


def surrogate(model, **options):
    opt = TargetSurrogate(model.parameters(), inner="lbfgs", **options)
    return lambda x, t: opt.step(lambda: model(x), lambda z: F.cross_entropy(z, t))


def plain(model, make):
    opt = make(model.parameters())

    def step(x, t):
        opt.zero_grad()
        F.cross_entropy(model(x), t).backward()
        opt.step()

    return step


curves = {
    "SGD": train(lambda m: plain(m, lambda p: torch.optim.SGD(p, 1.0))),
    "Adam": train(lambda m: plain(m, lambda p: torch.optim.Adam(p, 0.03))),
    "SSO, step 8": train(lambda m: surrogate(m, target_lr=8.0)),
    "SSO, KL, step 1": train(lambda m: surrogate(m, target_lr=1.0, divergence="kl")),
}

# %%
# The bound along the line through one outer step: at the start it touches the loss, with the same slope.
model = network()
start = [p.detach().clone() for p in model.parameters()]
z_t = model(X).detach().requires_grad_()
loss_t = F.cross_entropy(z_t, y)
(g,) = torch.autograd.grad(loss_t, z_t)
opt = TargetSurrogate(model.parameters(), target_lr=2.0, inner="lbfgs")
opt.step(lambda: model(X), lambda z: F.cross_entropy(z, y))
ends = [p.detach().clone() for p in model.parameters()]
places, loss, bound = torch.linspace(-1, 2, 60), [], []
for t in places:
    with torch.no_grad():
        for p, a, b in zip(model.parameters(), start, ends, strict=True):
            p.copy_(a + t * (b - a))
        z = model(X)
        loss.append(F.cross_entropy(z, y).item())
        bound.append((loss_t + (g * (z - z_t)).sum() + (z - z_t).square().sum() / (2 * 2.0 * len(X))).item())

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4))
left.plot(places, bound, color="tab:purple", label="surrogate, step 1/L")
left.plot(places, loss, color="black", label="loss")
left.plot([0], [loss_t.item()], "o", color="tab:purple")
left.plot([1], [min(bound)], "v", color="tab:purple")
left.set(xlabel="along an outer step (0 start, 1 end)", ylabel="cross-entropy", title="An upper bound that touches")
left.legend()
colors = {"SGD": "0.5", "Adam": "tab:orange", "SSO, step 8": "tab:purple", "SSO, KL, step 1": "tab:green"}
for name, losses in curves.items():
    right.semilogy(range(1, 121), losses, color=colors[name], label=name)
right.set(xlabel="gradients of the loss", ylabel="training cross-entropy", title="The same gradients, used further")
right.legend()
plt.tight_layout()
plt.show()
