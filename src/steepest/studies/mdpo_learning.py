"""MDPO beside PPO, TRPO and SAC on environments that fit into minutes, tuned alike; and the paper's own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from steepest.core.extras import installed
from steepest.policy import OffPolicyMDPO, OnPolicyMDPO
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context, Unavailable
from steepest.studies.mdpo_cleanrl import cleanrl
from steepest.studies.policy_learning import (
    Contender,
    Outcome,
    Score,
    Trial,
    gain,
    improvement,
    pooled,
    run_trials,
    tuned,
)

RATES = (3e-4, 2e-3, 1e-2)
OFF_POLICY_RATE = 1e-3  # for all: SAC with a learned temperature does best with it in so few steps
SIDE_BY_SIDE = 4  # environments of an on-policy run: one forward pass for all
Found = dict[str, list[Outcome]]


# ------------------------------------------------------------------------------------ algorithms, bare and with tricks


def _learning_rate(rate: float, tricks: bool) -> Any:
    from stable_baselines3.common.utils import LinearSchedule

    return LinearSchedule(rate, 0.0, 1.0) if tricks else rate


def on_policy(env: Any, *, seed: int, kind: str, tricks: bool, rate: float = 3e-4, n_steps: int = 2048) -> Any:
    """Make MDPO, PPO or TRPO with `n_steps` of all environments an iteration.

    Tricks are annealing, orthogonal weights and value clipping (TRPO has none).
    """
    shared: dict[str, Any] = {
        "learning_rate": _learning_rate(rate, tricks),
        "n_steps": n_steps // env.num_envs,
        "seed": seed,
        "device": "cpu",
        "policy_kwargs": {"ortho_init": tricks},
    }
    clip = 0.2 if tricks else None
    if kind == "MDPO":
        return OnPolicyMDPO("MlpPolicy", env, clip_range_vf=clip, **shared)
    if kind == "PPO":
        from stable_baselines3 import PPO

        return PPO("MlpPolicy", env, clip_range_vf=clip, **shared)
    from sb3_contrib import TRPO

    return TRPO("MlpPolicy", env, **shared)


mdpo, ppo, trpo = (partial(on_policy, kind=kind) for kind in ("MDPO", "PPO", "TRPO"))


def mdpo_steps(env: Any, *, seed: int, **options: Any) -> Any:
    """MDPO with constant rate and KL weight, for the number of gradient steps alone."""
    return OnPolicyMDPO("MlpPolicy", env, 3e-3, 512 // env.num_envs, seed=seed, device="cpu", **options)


def mdpo_off(env: Any, *, seed: int, starts: int, width: int, **options: Any) -> Any:
    """MDPO with a replay buffer; `starts` steps at random first, two layers of `width` in every network."""
    shared: dict[str, Any] = {"learning_starts": starts, "policy_kwargs": {"net_arch": [width, width]}}
    return OffPolicyMDPO("MlpPolicy", env, seed=seed, device="cpu", **shared, **options)


def sac(env: Any, *, seed: int, starts: int, width: int, **options: Any) -> Any:
    """Soft actor-critic, alike."""
    from stable_baselines3 import SAC

    shared: dict[str, Any] = {"learning_starts": starts, "policy_kwargs": {"net_arch": [width, width]}}
    return SAC("MlpPolicy", env, seed=seed, device="cpu", **shared, **options)


def on_policy_contenders(settings: Sequence[dict[str, Any]], tricks: bool, n_envs: int = 1) -> list[Contender]:
    """Same settings for all; TRPO only where sb3-contrib is installed."""
    own = [s | {"tricks": tricks} for s in settings]
    makers = {"MDPO": mdpo, "PPO": ppo} | ({"TRPO": trpo} if installed("sb3_contrib") else {})
    return [Contender(name, make, own, tricks, n_envs) for name, make in makers.items()]


def off_policy_contenders(trials: int, starts: int, snapshot: int, width: int = 256) -> list[Contender]:
    """KL weights of MDPO (entropy weight 0.2), temperatures of SAC, speeds of its targets; one rate for all."""
    own: dict[str, tuple[Any, list[dict[str, Any]]]] = {
        "MDPO, off-policy": (mdpo_off, [{"kl_coef": c, "policy_update_interval": snapshot} for c in (0.3, 1.0, 0.1)]),
        "SAC, fixed": (sac, [{"ent_coef": c} for c in (0.2, 0.05, 0.5)]),
        "SAC, auto": (sac, [{"tau": c} for c in (0.005, 0.01, 0.02)]),
    }
    shared = {"learning_rate": OFF_POLICY_RATE, "starts": starts, "width": width}
    return [Contender(name, make, [s | shared for s in settings[:trials]]) for name, (make, settings) in own.items()]


# --------------------------------------------------------------------------------------------------------- comparisons


def scores(found: Found) -> dict[str, Score]:
    """Pooled score of everyone in one environment."""
    return {name: pooled([[o.normalized for o in outcomes]]) for name, outcomes in found.items()}


def show(ctx: Context, series: str, found: Found) -> None:
    """Draw the training curves, and write what was chosen."""
    for name, outcomes in found.items():
        for outcome in outcomes:
            ctx.series(series, outcome.curve(), method=name, seed=outcome.trial.seed)
        values = ", ".join(f"{o.score:.0f}" for o in outcomes)
        chosen = {k: v for k, v in outcomes[0].trial.setting.items() if k not in ("tricks", "starts", "width")}
        ctx.note(f"{series}: {name} with {chosen or 'defaults'}: returns {values}.")


def verdict(ctx: Context, claim: str, ours: str, peers: Sequence[str], per_env: Sequence[Found]) -> None:
    """On par with the better peer: the claim itself, the ratio of interquartile means, probability of improvement."""
    parts = {n: [[o.normalized for o in found[n]] for found in per_env] for n in (ours, *peers)}
    score = {n: pooled(p) for n, p in parts.items()}
    best = max(peers, key=lambda n: score[n].value)
    ctx.measured(claim, float(score[ours].on_par(score[best])))
    ratio = float(np.divide(score[ours].value, score[best].value)) if score[best].value else np.nan
    if np.isfinite(ratio):
        ctx.measured(f"{claim}-ratio", ratio)
    else:
        ctx.skipped(f"{claim}-ratio", "nobody has learned anything yet: no episode ended, or the best score is 0")
    ctx.measured(f"{claim}-improvement", improvement(parts[ours], parts[best]))
    for n, s in score.items():
        ctx.note(f"{claim}: {n}: interquartile mean {s.value:.3f} (95 % interval {s.low:.3f} to {s.high:.3f}).")


def untuned(ctx: Context, n_workers: int) -> None:
    """Default settings and the tricks on few steps: what happens at first, without a verdict."""
    steps = ctx.pick(tiny=256, quick=4000, full=4000, paper=4000)
    setting = {"n_steps": ctx.pick(tiny=128, quick=512, full=512, paper=512), "rate": 2e-3}
    trials = [
        Trial(c.name, c.make, "CartPole-v1", steps, seed, c.settings[0], c.normalize, True, c.n_envs)
        for c in on_policy_contenders([setting], True, SIDE_BY_SIDE)
        for seed in ctx.seeds[:2]
    ]
    outcomes = run_trials(trials, n_workers=n_workers)
    found = {name: list(group) for name, group in itertools.groupby(outcomes, key=lambda o: o.trial.name)}
    show(ctx, "first steps", found)
    show_kl(ctx, found, "first steps kl")
    values = {name: float(np.median([o.score for o in group])) for name, group in found.items()}
    ctx.measured("on-policy-untuned", values["MDPO"] / max(v for n, v in values.items() if n != "MDPO"))


def show_kl(ctx: Context, found: Found, series: str) -> None:
    """Draw how far each iteration moved the policy, beside TRPO's limit."""
    for name in ("MDPO", "TRPO"):
        for o in found.get(name, ()):
            ctx.series(series, [(s, max(k, 1e-8)) for s, k in o.kl], method=name, seed=o.trial.seed)
    steps = [s for s, _ in found["MDPO"][0].kl]
    ctx.series(series, [(s, 0.01) for s in steps], method="limit")


def tuned_on_policy(ctx: Context, n_workers: int) -> None:
    """CartPole, six settings each, bare and with tricks."""
    steps = ctx.pick(tiny=256, quick=0, full=16_000, paper=0)
    sizes = ctx.pick(tiny=(128,), quick=(), full=(512, 1024), paper=())
    rates = ctx.pick(tiny=RATES[:1], quick=(), full=RATES, paper=())
    settings = [{"rate": r, "n_steps": n} for r in rates for n in sizes]
    for tricks, at in ((True, 0.1), (False, 0.35)):
        found = tuned(
            on_policy_contenders(settings, tricks, SIDE_BY_SIDE),
            "CartPole-v1",
            steps,
            tuning_seed=ctx.seed,
            seeds=ctx.seeds,
            tuning_steps=steps // 4,
            record_kl=True,
            n_workers=n_workers,
            progress=lambda done, at=at: ctx.progress(at + 0.25 * done),  # type: ignore[misc]
        )
        word = "tricks" if tricks else "bare"
        show(ctx, f"cartpole {word}", found)
        verdict(ctx, f"on-policy-{word}", "MDPO", [n for n in found if n != "MDPO"], [found])
        if tricks:
            _trust_region(ctx, found)


def _trust_region(ctx: Context, found: Found) -> None:
    show_kl(ctx, found, "kl")
    exceeded = [np.mean([k > 0.01 for _, k in o.kl]) for o in found["MDPO"]]
    ctx.measured("constraint-exceeded", float(np.mean(exceeded)))
    if "TRPO" not in found:
        ctx.skipped("constraint-not-needed", "sb3-contrib is not installed: pip install sb3-contrib")
        return
    score = scores(found)
    ctx.measured("constraint-not-needed", score["MDPO"].value - score["TRPO"].low)


def gradient_steps(ctx: Context, n_workers: int) -> None:
    """M gradient steps and KL weights, CartPole."""
    counts = ctx.pick(tiny=(1, 5), quick=(), full=(1, 5, 10, 20), paper=())
    weights = ctx.pick(tiny=(1.0,), quick=(), full=(0.3, 1.0, 3.0), paper=())
    steps = ctx.pick(tiny=1024, quick=0, full=8192, paper=0)
    seeds = ctx.seeds if ctx.seeds_asked else ctx.seeds[:2]
    trials = [
        Trial(
            f"KL weight {c:g}",
            mdpo_steps,
            "CartPole-v1",
            steps,
            seed,
            {"n_policy_steps": m, "kl_coef": c},
            n_envs=SIDE_BY_SIDE,
        )
        for c in weights
        for m in counts
        for seed in seeds
    ]
    outcomes = run_trials(trials, n_workers=n_workers, progress=lambda done: ctx.progress(0.6 + 0.1 * done))
    by_count: dict[int, list[float]] = {m: [] for m in counts}
    for o in outcomes:
        by_count[o.trial.setting["n_policy_steps"]].append(o.normalized)
    for c in weights:
        for seed in seeds:
            of = [o for o in outcomes if o.trial.setting["kl_coef"] == c and o.trial.seed == seed]
            ctx.series("steps", [(o.trial.setting["n_policy_steps"], o.score) for o in of],
                       method=f"KL weight {c:g}", seed=seed)  # fmt: skip
    iqm = {m: pooled([values]).value for m, values in by_count.items()}
    ctx.measured("more-steps", max(v for m, v in iqm.items() if m > 1) - iqm[1])


def tuned_off_policy(ctx: Context, n_workers: int) -> None:
    """Pendulum, three settings each."""
    steps = ctx.pick(tiny=260, quick=0, full=4000, paper=0)
    starts = ctx.pick(tiny=200, quick=0, full=1000, paper=0)
    trials = ctx.pick(tiny=1, quick=0, full=3, paper=0)
    found = tuned(
        off_policy_contenders(trials, starts, 250, width=128),
        "Pendulum-v1",
        steps,
        tuning_seed=ctx.seed,
        seeds=ctx.seeds if ctx.seeds_asked else ctx.seeds[:3],
        tuning_steps=starts + (steps - starts) // 3,
        n_workers=n_workers,
        progress=lambda done: ctx.progress(0.7 + 0.25 * done),
    )
    show(ctx, "pendulum", found)
    verdict(ctx, "off-policy", "MDPO, off-policy", ["SAC, fixed", "SAC, auto"], [found])
    ratios = [
        (b.score / a.score) for a, b in zip(found["MDPO, off-policy"], found["SAC, auto"], strict=True)
    ]  # costs, both negative
    ctx.against(
        "SAC, auto", float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median, level=0.95),
        ahead="lower cost", behind="higher cost", what="Pendulum, 4 000 steps, each tuned over three settings",
    )  # fmt: skip
    beside_cleanrl(
        ctx, "cleanrl-sac", "CleanRL SAC", {"Pendulum-v1": found["MDPO, off-policy"]}, n_workers, learning_starts=starts
    )


def beside_cleanrl(
    ctx: Context, claim: str, name: str, ours: Mapping[str, list[Outcome]], n_workers: int = 1, **given: Any
) -> None:
    """How far our interquartile mean is ahead of a script's with its own constants, same seeds and steps."""
    theirs = {}
    try:
        for env, outcomes in ours.items():
            seeds = [o.trial.seed for o in outcomes]
            theirs[env] = cleanrl(ctx, name, env, outcomes[0].trial.steps, seeds, n_workers, **given)
    except Unavailable as error:
        ctx.skipped(claim, str(error))
        return
    for env, outcomes in theirs.items():
        show(ctx, "pendulum" if env == "Pendulum-v1" else f"{env} {claim}", {name: outcomes})
    mine, peer = ([[o.normalized for o in found[env]] for env in ours] for found in (ours, theirs))
    ctx.measured(claim, *gain(mine, peer))


def cost(ctx: Context) -> None:
    """CPU seconds of `learn`, CartPole, 1024 steps an iteration, in turns."""
    steps, n = ctx.pick(tiny=256, quick=0, full=4096, paper=0), ctx.pick(tiny=128, quick=0, full=1024, paper=0)
    seconds: dict[str, list[float]] = {}
    for seed, c in itertools.product(ctx.seeds[:2], on_policy_contenders([{"n_steps": n}], True)):
        outcome = run_trials([Trial(c.name, c.make, "CartPole-v1", steps, seed, c.settings[0])])[0]
        seconds.setdefault(c.name, []).append(outcome.seconds)
    for peer in ("TRPO", "PPO"):
        if peer in seconds:
            ratios = np.divide(seconds["MDPO"], seconds[peer])
            ctx.measured(f"cost-{peer.lower()}", float(np.median(ratios)), (ratios.min(), ratios.max()))
        else:
            ctx.skipped(f"cost-{peer.lower()}", "sb3-contrib is not installed: pip install sb3-contrib")


# ------------------------------------------------------------------------------------------------------------- paper


def run_paper(ctx: Context) -> None:
    """The paper's environments; with ``--max-steps`` up to 100 000, smaller ones beside them."""
    seeds = ctx.seeds if ctx.seeds_asked else [ctx.seed + 1 + i for i in range(5)]
    short = ctx.max_steps is not None and ctx.max_steps <= 100_000
    names = ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5"] + ([] if short else ["Ant-v5", "Humanoid-v5"])
    if not installed("mujoco"):
        if not short:
            raise Unavailable('MuJoCo is not installed: pip install "steepest[rl-mujoco]"')
        names = []
    small = (["Acrobot-v1"] + ["LunarLander-v3"] * installed("Box2D")) if short else []
    on_steps, off_steps = (min(ctx.max_steps or n, n) for n in (10_000_000, 1_000_000))
    n_steps = 2048 if on_steps >= 8192 else 256
    settings = [{"rate": r, "n_steps": n} for r in RATES for n in (n_steps, n_steps // 2)]
    per_env = [
        tuned(on_policy_contenders(settings, True), env, on_steps, tuning_seed=ctx.seed, seeds=seeds)
        for env in (*small, *names)
    ]
    for env, found in zip((*small, *names), per_env, strict=True):
        show(ctx, f"{env} on-policy", found)
    verdict(ctx, "paper-on-policy", "MDPO", [n for n in per_env[0] if n != "MDPO"], per_env)
    if not names:
        for claim in ("paper-off-policy", "cleanrl-ppo", "cleanrl-sac"):
            ctx.skipped(claim, 'MuJoCo is not installed: pip install "steepest[rl-mujoco]"')
        return
    ours = {env: found["MDPO"] for env, found in zip((*small, *names), per_env, strict=True) if env in names}
    beside_cleanrl(ctx, "cleanrl-ppo", "CleanRL PPO", ours)
    starts = min(10_000, off_steps // 10)
    per_env = [
        tuned(off_policy_contenders(3, starts, 1000), env, off_steps, tuning_seed=ctx.seed, seeds=seeds)
        for env in names
    ]
    for env, found in zip(names, per_env, strict=True):
        show(ctx, f"{env} off-policy", found)
    verdict(ctx, "paper-off-policy", "MDPO, off-policy", ["SAC, fixed", "SAC, auto"], per_env)
    ours = {env: found["MDPO, off-policy"] for env, found in zip(names, per_env, strict=True)}
    beside_cleanrl(ctx, "cleanrl-sac", "CleanRL SAC", ours, learning_starts=starts)
