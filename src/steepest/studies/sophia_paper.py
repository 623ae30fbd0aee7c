"""Sophia at the paper's scale: GPT-2 small on OpenWebText, official settings and both optimizers tuned alike.

Runs under ``torchrun`` on as many GPUs as there are; up to 20 steps also on a CPU, as a test of the code.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from steepest.optim import Sophia
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context, Unavailable
from steepest.studies.language import GPT2_SMALL
from steepest.studies.pretraining import CODE_TEST_STEPS, Pretraining, pretrain, processes
from steepest.studies.training import Contender, Curvature, Run, Setting, search

__all__ = ["gpt2_small"]


def gpt2_small(ctx: Context, curvature: Curvature) -> None:
    """GPT-2 small on OpenWebText: AdamW for 100,000 steps, Sophia-G for 50,000."""
    rows = ctx.options.get("row", "both")
    plan = Pretraining(micro=int(ctx.options.get("micro", 12)))
    code_test = ctx.max_steps is not None and ctx.max_steps <= CODE_TEST_STEPS
    data = _token_folder(ctx, code_test)
    if code_test and not torch.cuda.is_available():
        plan = replace(plan, model=replace(GPT2_SMALL, block=64), sequences=2, micro=1, eval_batches=1)
        ctx.note("A test of the code on a CPU: 2 sequences of 64 tokens a step instead of 480 of 1,024.")
    if data is None:
        ctx.note("Random tokens instead of text: the numbers mean nothing.")
    length = ctx.max_steps or plan.steps
    half = max(1, length // 2)
    with processes() as (_, world, _device):
        group = "default" if world > 1 else None
        adamw, sophia = _official(group, curvature)
        official: dict[str, Setting] = {"AdamW": adamw.recommended(), "Sophia-G": sophia.recommended()}

        def attempt(c: Contender, setting: Setting, steps: int, seed: int) -> Run:
            found = pretrain(plan, c.make, setting, data=data, curvature=c.curvature, seed=seed, max_steps=steps)
            return Run(c.name, setting, seed, found["value"], found["steps"], found["losses"], found["seconds"])

        def both(claim: str, settings: dict[str, Setting], seeds: list[int]) -> None:
            differences = []
            for seed in seeds:
                long, short = (
                    attempt(adamw, settings["AdamW"], length, seed),
                    attempt(sophia, settings["Sophia-G"], half, seed),
                )
                for r in (long, short):
                    ctx.series("loss", list(zip(r.steps, r.losses)), method=r.contender, seed=seed)
                differences.append(short.value - long.value)
            ctx.measured(claim, float(np.mean(differences)), bootstrap_interval(differences, level=0.90))

        if rows in ("official", "both"):
            both("gpt2-small-official", official, ctx.seeds)
        if rows in ("tuned", "both"):
            trial = min(10_000, max(1, length // 10))
            best = {}
            for c in (adamw, sophia):
                found = search(c, lambda s, c=c: attempt(c, s, trial, ctx.seed), n_trials=2 if code_test else 8)  # type: ignore[misc]
                best[c.name] = found.setting
                ctx.note(f"{c.name}, tuned with {len(found.trials)} trials of {trial} steps: {found.setting}.")
            both("gpt2-small-tuned", best, ctx.seeds)


def _token_folder(ctx: Context, code_test: bool) -> str | None:
    try:
        return str(ctx.data("path"))
    except Unavailable:
        if code_test:
            return None
        raise


def _official(group: str | None, curvature: Curvature) -> tuple[Contender, Contender]:
    """The official settings of the 125M model; the same minimum learning rate for both (theirs differ)."""
    adamw = Contender(
        "AdamW",
        lambda p, **k: torch.optim.AdamW(p, fused=True, **k),
        6e-4,
        {"betas": ((0.9, 0.95), (0.965, 0.99)), "weight_decay": (0.1, 0.2)},
        package="torch",
    )
    sophia = Contender(
        "Sophia-G",
        lambda p, **k: Sophia(p, seed=0, process_group=group, **k),
        6e-4,
        {"betas": ((0.965, 0.99), (0.9, 0.95)), "weight_decay": (0.2, 0.1), "gamma": (0.05, 0.08)},
        curvature,
    )
    return adamw, sophia
