"""
Fewer steps from more blocks
============================

Sixty-four small regressions share four numbers x, and all see a stream of noisy samples. A step of BSVRB touches a few
of them. The gradient of the whole problem is known exactly here, so that progress can be seen: more blocks a step reach
a lower gradient in the same number of steps, at a larger step size.
"""

import matplotlib.pyplot as plt
import torch

from steepest.bilevel import BilevelProblem, bsvrb

# %%
# Block i fits ``b = a'(A_i x + c_i) + noise`` to samples a, b; the upper objective wants its solution near a target.
# A batch is drawn once and evaluated at the current and at the previous point.
generator = torch.Generator().manual_seed(0)
m, p, n = 64, 3, 4
A = torch.randn(m, p, n, generator=generator, dtype=torch.float64) / n**0.5
c, t = torch.randn(2, m, p, generator=generator, dtype=torch.float64)


def upper(x, yb, batch, blocks):
    return (yb - t[blocks] - (0 if batch is None else batch)).square().sum(1) / 2


def lower(x, yb, batch, blocks):
    error = yb - A[blocks] @ x - c[blocks]
    if batch is None:
        return error.square().sum(1) / 2
    a, noise = batch
    return ((a @ error.unsqueeze(2)).squeeze(2) - noise).square().mean(1) / 2


def sample_lower(generator, size, blocks):
    draw = torch.randn(len(blocks), size, p + 1, generator=generator, dtype=torch.float64)
    return draw[..., :p], draw[..., p]


def sample_upper(generator, size, blocks):
    return torch.randn(len(blocks), size, p, generator=generator, dtype=torch.float64).mean(1)


problem = BilevelProblem(upper, lower, torch.zeros(n, dtype=torch.float64), torch.zeros(m, p, dtype=torch.float64),
                         sample_upper=sample_upper, sample_lower=sample_lower, n_blocks=m)  # fmt: skip
K = (A.mT @ A).mean(0)
h = (A.mT @ (t - c).unsqueeze(2)).mean(0).squeeze(1)

# %%
# Step sizes grow with the number of blocks a step, as the noise allows. Thin lines: three seeds, thick: their mean.
fig, ax = plt.subplots(figsize=(8, 4.6))
settings = ((4, 0.005, 0.012, "tab:blue"), (16, 0.02, 0.03, "tab:orange"), (64, 0.1, 0.4, "tab:green"))
for n_drawn, lr_x, lr_y, color in settings:
    courses = []
    for seed in range(3):
        course = []
        bsvrb(
            problem, variant="v2", lr_x=lr_x, lr_y=lr_y, alpha=0.1, beta=0.05, blocks_per_step=n_drawn, batch_size=16,
            maxiter=400, random_state=seed,
            callback=lambda intermediate_result, course=course: course.append(intermediate_result.x),
        )  # fmt: skip
        gradient = torch.linalg.vector_norm(torch.stack([problem.x0, *course]) @ K - h, dim=1)
        courses.append(gradient / gradient[0])
        ax.semilogy(courses[-1], color=color, lw=0.6, alpha=0.45)
    ax.semilogy(torch.stack(courses).mean(0), color=color, label=f"{n_drawn} of 64 blocks a step", lw=2.2)
ax.axhline(0.2, color="0.5", ls="--", lw=1)
ax.annotate("target", (50, 0.2), va="bottom", color="0.4")
ax.set(xlabel="step", ylabel="gradient of F, relative to the first", title="More blocks a step, far fewer steps")
ax.legend(frameon=False, loc="lower left")
ax.spines[["top", "right"]].set_visible(False)
plt.tight_layout()
plt.show()
