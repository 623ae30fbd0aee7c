"""Pictures of the hard-constraint study: a field with the errors of the methods, and what experts do box by box."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.physics import operator_input
from steepest.studies.context import Context
from steepest.studies.hard_constraint_moe_training import Trained, moe_layer

__all__ = ["draw_experts", "draw_fields", "keep"]

Arrays = Mapping[str, NDArray[Any]]
SLOTS = {"PI-SC": 6, "PI-HC": 1, "MoE": 2, "MoE, anchored": 3}


@torch.no_grad()
def keep(ctx: Context, hard: Trained, soft: Trained) -> None:
    """Arrays of both pictures: the first unseen start."""
    problem = hard.run.problem
    u0, truth = problem.test[0][:1], problem.test[1][0]
    net, layer = hard.model()
    basis = net(operator_input(problem.pde, u0))
    assert layer is not None
    single = layer(basis, u0)
    found = {"single": single.solution, "soft": soft.score.example}
    kept: dict[str, NDArray[Any]] = {"truth": truth.numpy()}
    for name in ("none", "global"):
        out = moe_layer(hard, name)(basis, u0)
        found[name] = out.solution
        moved = torch.linalg.vector_norm(out.weights[0] - single.weights[0], dim=-1)
        kept[f"moved_{name}"] = (moved / torch.linalg.vector_norm(single.weights[0])).numpy()
    for name, u in found.items():
        field = torch.as_tensor(u).double().reshape(problem.pde.grid)
        kept[name] = (field - truth).numpy()
        residual = problem.pde.residual(problem.pde.terms(field)) * problem.pde.t_max
        kept[f"residual_{name}"] = residual.square().mean(0).sqrt().numpy()
    ctx.arrays("fields", boxes=np.array(problem.experts), **kept)


def draw_fields(figure: Any, arrays: Arrays, ink: Any) -> None:
    """The solution, and the errors of PI-SC, PI-HC and corrected experts on one scale."""
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    limit = float(np.quantile(np.abs(np.stack([arrays[k] for k in ("soft", "single", "global")])), 0.995))
    shown = [("truth", "solver: concentration u(x, t)")]
    shown += [("soft", "PI-SC: error"), ("single", "PI-HC: error"), ("global", "experts, anchored: error")]
    size = np.linalg.norm(arrays["truth"])
    for ax, (name, title) in zip(axes.ravel(), shown, strict=True):
        how = (
            {"cmap": ink.sequential, "vmin": 0}
            if name == "truth"
            else {"cmap": ink.diverging, "vmin": -limit, "vmax": limit}
        )
        image = ax.imshow(arrays[name], origin="lower", aspect="auto", extent=(0, 1, 0, 500), **how)
        if name != "truth":
            title = f"{title} {np.linalg.norm(arrays[name]) / size:.1%}"
        ax.set_title(title, color=ink.text)
        bar = figure.colorbar(image, ax=ax, shrink=0.9, aspect=18)
        bar.outline.set_visible(False)
        for spine in ax.spines.values():
            spine.set_visible(False)
    for k in range(1, int(arrays["boxes"][1])):
        axes[1, 1].axvline(k / arrays["boxes"][1], color=ink.text, lw=0.9, ls=":")
    for ax in axes[1]:
        ax.set_xlabel("x")
    for ax in axes[:, 0]:
        ax.set_ylabel("t")


def draw_experts(figure: Any, arrays: Arrays, ink: Any) -> None:
    """Residual over space with the borders of the boxes, and how far each expert's weights moved."""
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    n = arrays["truth"].shape[1]
    x = (np.arange(n) + 0.5) / n
    names = (("single", "PI-HC"), ("none", "MoE"), ("global", "MoE, anchored"))
    for name, label in names:
        left.semilogy(x, arrays[f"residual_{name}"], color=ink.categories[SLOTS[label] - 1], label=label, lw=1.4)
    boxes = int(arrays["boxes"][1])
    for k in range(1, boxes):
        left.axvline(k / boxes, color=ink.muted, lw=0.9, ls=":")
    left.set_xlabel("x")
    left.set_ylabel("residual times $t_{max}$, rms over time")
    left.legend()
    at = np.arange(boxes)
    for shift, (name, label) in zip((-0.2, 0.2), names[1:], strict=True):
        right.bar(at + shift, arrays[f"moved_{name}"], 0.38, color=ink.categories[SLOTS[label] - 1], label=label)
    right.set_xticks(at, [f"box {k + 1}" for k in at])
    right.set_ylabel("|w_k - w| / |w|")
