"""
Solving an equation with fields that somebody else made
=======================================================

A layer of hard constraints takes basis fields and finds the weights with which they satisfy a differential equation,
its start and its walls. Usually a network makes the fields. Here six solutions for other concentrations do, so that
nothing needs to be trained, and a seventh concentration is solved for: once with one set of weights, once with four
experts, one for each quarter of the column, which correct the single fit.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from steepest.physics import DiffusionSorption1D, HardConstraint, HardConstraintMoE, solve_diffusion_sorption

# %%
# A solute enters a column of soil from the left and sorbs; the column holds a little of it from the beginning. The
# isotherm has a kink at zero concentration, which `smoothing` rounds off.
nt, nx = 48, 64
pde = DiffusionSorption1D(nt, nx, smoothing=0.01)
x = (np.arange(nx) + 0.5) / nx
inlet = np.exp(-((x / 0.15) ** 2))


def start(u0):
    return inlet + u0 * (1 - inlet) * (1 - np.exp(-(((1 - x) / 0.15) ** 2)))


others = [solve_diffusion_sorption(start(u0), nt, nx, rtol=1e-6) for u0 in (0.01, 0.03, 0.06, 0.12, 0.18, 0.2)]
basis = torch.stack(others, -1)[None]  # (1, nt, nx, 6)
truth = solve_diffusion_sorption(start(0.09), nt, nx, rtol=1e-6)

# %%
# The layers see the fields, the new start and the equation, never a solution for it.
options = {"row_scaling": "balanced", "pde_weight": 0.1, "ridge": 1e-4}
u0 = torch.from_numpy(start(0.09))[None]
single = HardConstraint(pde, **options)(basis, u0)
experts = HardConstraintMoE(pde, (1, 4), anchor="global", **options)(basis, u0)
nearest = min(others, key=lambda u: float((u - truth).norm()))
found = {"nearest of the six": nearest, "one fit": single.solution[0], "four experts": experts.solution[0]}
print("steps:", single.nit.tolist(), experts.nit.tolist(), "converged:", bool(experts.converged.all()))

# %%
# Errors on a logarithmic scale; dotted lines are the borders of the boxes. With fields this good one fit is enough: it
# is two hundred times nearer than the nearest of the six. Experts fit the errors of the stencils in their boxes too,
# and jump at the borders. They pay where one set of weights cannot serve the whole column.
figure, axes = plt.subplots(1, 4, figsize=(11, 3.2), sharey=True, layout="constrained")
extent = (0, 1, 0, pde.t_max)
image = axes[0].imshow(truth, origin="lower", aspect="auto", extent=extent, cmap="viridis")
axes[0].set(title="solver", ylabel="time")
figure.colorbar(image, ax=axes[0], label="concentration")
for ax, (name, u) in zip(axes[1:], found.items(), strict=True):
    error = (u - truth).abs()
    image = ax.imshow(error.log10().clamp(min=-6), origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-6,
                      vmax=-1)  # fmt: skip
    ax.set_title(f"{name}: {float((u - truth).norm() / truth.norm()):.1e}")
for k in range(1, 4):
    axes[3].axvline(k / 4, color="white", linestyle=":")
figure.colorbar(image, ax=axes[3], label="log10 of the error")
for ax in axes:
    ax.set_xlabel("depth")
plt.show()
