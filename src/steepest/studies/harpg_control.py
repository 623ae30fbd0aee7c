"""CartPole, Acrobot, MuJoCo: the policy gradients of the paper beside the plain one, A2C, PPO and TRPO, tuned alike."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from steepest.core.extras import installed
from steepest.policy import HARPG, NPGIGT
from steepest.studies.context import Context, Unavailable
from steepest.studies.policy_learning import (
    SCALES,
    Contender,
    Outcome,
    Trial,
    gain,
    improvement,
    pooled,
    run_trials,
    tuned,
)

__all__ = ["actor_critics", "control", "paper", "policy_gradients", "speed"]

Found = dict[str, list[Outcome]]
HORIZON = {"Swimmer-v5": 500, "HalfCheetah-v5": 500}  # official experiments; else the environment's own limit
RANGES = SCALES | {"Swimmer-v5": (0.0, 360.0), "Reacher-v5": (-45.0, -5.0)}  # returns that count as 0 and 1
OURS, PLAIN = ("N-PG-IGT", "N-HARPG"), "policy gradient"


# -------------------------------------------------------------------------------------------------------- contenders


def policy_gradient(env: Any, *, seed: int, kind: str, width: int, rate: float, batch: int, horizon: int) -> Any:
    """Make one of the policy gradients; `batch` is trajectories an iteration."""
    shared: dict[str, Any] = {
        "seed": seed,
        "device": "cpu",
        "horizon": horizon,
        "trajectories_per_step": batch,
        "policy_kwargs": {"net_arch": [width, width]},
    }
    if kind == "N-PG-IGT":
        return NPGIGT("MlpPolicy", env, rate, **shared)
    if kind == "N-HARPG":
        return HARPG("MlpPolicy", env, rate, normalize=True, **shared)
    plain = {"normalize": False, "transport": False, "momentum_exponent": 0.0, "step_exponent": 2 / 3}
    return NPGIGT("MlpPolicy", env, rate, **plain, **shared)


def actor_critic(env: Any, *, seed: int, kind: str, width: int, rate: float, n_steps: int) -> Any:
    """Make A2C, PPO or TRPO."""
    made = getattr(importlib.import_module("sb3_contrib" if kind == "TRPO" else "stable_baselines3"), kind)
    net = {"net_arch": [width, width]}
    return made("MlpPolicy", env, rate, n_steps=n_steps, seed=seed, device="cpu", policy_kwargs=net)


def policy_gradients(env: str, trials: int, width: int) -> list[Contender]:
    """The paper's two and the plain one: steps and trajectories an iteration."""
    horizon = HORIZON.get(env) or _limit(env)
    normalized, plain = (0.1, 0.3, 0.03, 1.0), (0.01, 0.003, 0.03, 0.001)
    made = []
    for name, rates in ((OURS[0], normalized), (OURS[1], normalized), (PLAIN, plain)):
        grid = [{"rate": r, "batch": b} for r, b in _grid(rates, (1, 4))]
        make = partial(policy_gradient, kind=name, width=width, horizon=horizon)
        made.append(Contender(name, make, grid[:trials]))
    return made


def _grid(rates: Sequence[float], sizes: Sequence[int]) -> list[tuple[float, int]]:
    """All pairs; those of the first two rates come first, for scales that try only some."""
    return [(r, n) for part in (rates[:2], rates[2:]) for n, r in itertools.product(sizes, part)]


def _limit(env: str) -> int:
    import gymnasium

    return gymnasium.spec(env).max_episode_steps or 1000


def actor_critics(trials: int, width: int) -> list[Contender]:
    """Three that learn a critic as well: rates and steps an iteration."""
    grids: dict[str, tuple[Sequence[float], Sequence[int]]] = {
        "A2C": ((7e-4, 2e-3, 2e-4, 6e-3), (16, 64)),
        "PPO": ((3e-4, 1e-3, 3e-3, 1e-4), (256, 1024)),
        "TRPO": ((1e-3, 3e-3, 1e-2, 3e-4), (256, 1024)),
    }
    made = []
    for name, (rates, sizes) in grids.items():
        if name == "TRPO" and not installed("sb3_contrib"):
            continue
        grid = [{"rate": r, "n_steps": n} for r, n in _grid(rates, sizes)]
        made.append(Contender(name, partial(actor_critic, kind=name, width=width), grid[:trials]))
    return made


# -------------------------------------------------------------------------------------------------------- comparison


def control(ctx: Context, n_workers: int) -> None:
    """CartPole, and at full Acrobot and the actor-critic methods."""
    trials = ctx.pick(tiny=1, quick=2, full=4, paper=0)
    seeds = ctx.seeds if ctx.seeds_asked else [ctx.seed + 1 + i for i in range(ctx.pick(quick=2, full=3, paper=5))]
    steps = ctx.pick(tiny={"CartPole-v1": 600}, quick={"CartPole-v1": 3000},
                     full={"CartPole-v1": 12_000, "Acrobot-v1": 20_000}, paper={})  # fmt: skip
    per_env: dict[str, Found] = {}
    for k, (env, n) in enumerate(steps.items()):
        contenders = policy_gradients(env, trials, 32)
        if ctx.wants("against-ppo") and env == "CartPole-v1":
            contenders += actor_critics(trials, 32)
        low, high = 0.4 + 0.6 * k / len(steps), 0.4 + 0.6 * (k + 1) / len(steps)
        per_env[env] = tuned(
            contenders, env, n, tuning_seed=ctx.seed, seeds=seeds, tuning_steps=n // 2, n_workers=n_workers,
            progress=lambda done, low=low, high=high: ctx.progress(low + (high - low) * done),  # type: ignore[misc]
        )  # fmt: skip
    ctx.note(
        f"control: {trials} settings for everyone, chosen on one seed with half the steps; {len(seeds)} seeds; for "
        "time the actor-critic methods play CartPole alone."
    )
    for env, found in per_env.items():
        show(ctx, env, found)
    verdicts(ctx, per_env, "control", "against")


def show(ctx: Context, env: str, found: Found) -> None:
    """Draw the training curves, and write what was chosen."""
    for name, outcomes in found.items():
        for o in outcomes:
            ctx.series(env, o.curve(), method=name, seed=o.trial.seed)
        values = ", ".join(f"{o.score:.0f}" for o in outcomes)
        ctx.note(f"{env}: {name} with {dict(outcomes[0].trial.setting)}: returns {values}.")


def verdicts(ctx: Context, per_env: Mapping[str, Found], claim: str, against: str | None) -> None:
    """Normalized scores pooled over environments: ours minus the plain gradient's, and minus the actor-critics'."""

    def parts(name: str, beside: str) -> list[list[float]]:
        return [[_normalized(o) for o in found[name]] for found in per_env.values() if beside in found]

    for n in dict.fromkeys(name for found in per_env.values() for name in found):
        s = pooled(parts(n, n))
        ctx.note(f"{claim}: {n}: interquartile mean {s.value:.3f} (95 % interval {s.low:.3f} to {s.high:.3f}).")
    for ours, key in zip(OURS, ("igt", "nharpg"), strict=True):
        ctx.measured(f"{claim}-{key}", *gain(parts(ours, PLAIN), parts(PLAIN, PLAIN)))
        ctx.measured(f"{claim}-{key}-improvement", improvement(parts(ours, PLAIN), parts(PLAIN, PLAIN)))
    for peer in ("A2C", "PPO", "TRPO") if against else ():
        key = f"{against}-{peer.lower()}"
        if any(peer in found for found in per_env.values()):
            best = max(OURS, key=lambda n: pooled(parts(n, peer)).value)
            ctx.measured(key, *gain(parts(best, peer), parts(peer, peer)))
        elif ctx.wants(key):
            ctx.skipped(key, "sb3-contrib is not installed: pip install sb3-contrib")


def _normalized(outcome: Outcome) -> float:
    low, high = RANGES[outcome.trial.env]
    return (outcome.score - low) / (high - low)


# ------------------------------------------------------------------------------------------------------------- speed


def speed(ctx: Context) -> None:
    """CPU seconds of `learn` on CartPole beside A2C without a critic's loss, one gradient for about 88 steps."""
    steps = ctx.pick(tiny=400, quick=0, full=4000, paper=0)
    seconds: dict[str, list[float]] = {}
    makers = {
        "N-PG-IGT": (policy_gradient, {"kind": "N-PG-IGT", "rate": 1e-6, "batch": 4, "width": 32, "horizon": 500}),
        "N-HARPG": (policy_gradient, {"kind": "N-HARPG", "rate": 1e-6, "batch": 4, "width": 32, "horizon": 500}),
        "A2C": (plain_a2c, {"n_steps": 88}),  # four episodes of a policy that knows nothing
    }
    for seed, (name, (make, setting)) in itertools.product(ctx.seeds[:2], makers.items()):
        outcome = run_trials([Trial(name, make, "CartPole-v1", steps, seed, setting)])[0]
        seconds.setdefault(name, []).append(outcome.seconds)
    for name, key in (("N-PG-IGT", "igt"), ("N-HARPG", "nharpg")):
        ratios = np.divide(seconds["A2C"], seconds[name])
        ctx.measured(f"speed-{key}", float(np.median(ratios)), (float(ratios.min()), float(ratios.max())))


def plain_a2c(env: Any, *, seed: int, n_steps: int) -> Any:
    """A2C as a plain policy gradient: no value loss, returns in place of generalized advantages."""
    from stable_baselines3 import A2C

    options: dict[str, Any] = {"n_steps": n_steps, "vf_coef": 0.0, "gae_lambda": 1.0}
    return A2C("MlpPolicy", env, seed=seed, device="cpu", policy_kwargs={"net_arch": [32, 32]}, **options)


# ------------------------------------------------------------------------------------------------------------- paper


def paper(ctx: Context) -> None:
    """The paper's environments; with ``--max-steps`` up to 100 000 only the two that learn so soon."""
    seeds = ctx.seeds if ctx.seeds_asked else [ctx.seed + 1 + i for i in range(5)]
    limit = ctx.max_steps or 10_000_000
    small, large = ["CartPole-v1", "Acrobot-v1"], ["Swimmer-v5", "HalfCheetah-v5"]
    if limit > 100_000:
        large += ["Reacher-v5", "Hopper-v5", "Humanoid-v5", "Walker2d-v5"]
    if not installed("mujoco"):
        if limit > 100_000:
            raise Unavailable('MuJoCo is not installed: pip install "steepest[rl-mujoco]"')
        ctx.note('Swimmer and HalfCheetah were left out, MuJoCo is not installed: pip install "steepest[rl-mujoco]".')
        large = []
    per_env = {}
    for env in small + large:
        width, steps = (32, min(limit, 500_000)) if env in small else (64, limit)
        contenders = policy_gradients(env, 8, width)
        per_env[env] = tuned(contenders, env, steps, tuning_seed=ctx.seed, seeds=seeds)
        show(ctx, env, per_env[env])
    verdicts(ctx, per_env, "paper", None)
