"""
Several gradient steps are what makes a penalty a trust region
==============================================================

MDPO adds the KL divergence to the previous policy to the objective, and takes several gradient steps on both. At the
first of them the penalty has no gradient at all. Here four actions of one state tell the story exactly: where gradient
steps go, for three weights of the penalty, beside the exact step of mirror descent.
"""

import matplotlib.pyplot as plt
import torch
from torch.distributions import Categorical

from steepest.policy import mdpo_policy_loss, mirror_step

# %%
# One state, four equally likely actions, and their advantages.
old = Categorical(logits=torch.zeros(4, dtype=torch.float64))
A = torch.tensor([1.0, 0.4, -0.2, -1.2], dtype=torch.float64)
actions = torch.arange(4)  # each once: the mean over them is the expectation under the old policy


def gradient_path(kl_coef, steps=600, rate=0.25):
    """Probability of the best action and KL to the old policy along the gradient steps."""
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    path = []
    for _ in range(steps):
        new = Categorical(logits=logits)
        loss, kl = mdpo_policy_loss(new, old, new.log_prob(actions), old.log_prob(actions), A, kl_coef)
        path.append((new.probs[0].item(), kl.item()))
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= rate * gradient
    return path


# %%
# The first step is the same whatever the weight; the steps after it end at ``pi exp(A / weight)``, normalized.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
colors = plt.get_cmap("viridis")([0.1, 0.45, 0.8])
for weight, color in zip((0.3, 1.0, 3.0), colors, strict=True):
    path = gradient_path(weight)
    exact = mirror_step(old.logits, A, 1 / weight).exp()
    left.semilogx(range(1, len(path)), [p for p, _ in path[1:]], color=color, lw=2, label=f"weight {weight:g}")
    left.axhline(exact[0], color=color, ls=":", lw=1.5)
    right.loglog(range(1, len(path)), [kl for _, kl in path[1:]], color=color, lw=2)
    print(
        f"weight {weight:g}: after the first step {path[1][0]:.6f}, at the end {path[-1][0]:.4f}, exact {exact[0]:.4f}"
    )
left.set(xlabel="gradient step", ylabel="probability of the best action", title="Gradient steps end at the exact step")
left.legend(frameon=False, title="KL penalty, dotted: exact step", bbox_to_anchor=(0.0, 0.9), loc="upper left")
right.axhline(0.01, color="gray", lw=1)
right.text(100, 0.0068, "TRPO's limit", color="gray")
right.set(xlabel="gradient step", ylabel="KL(new || old)", title="At first the penalty does not act", ylim=(5e-4, 2))
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
