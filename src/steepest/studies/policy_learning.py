"""Training curves of Stable-Baselines3 algorithms on equal terms: seeds, tuning, and the statistics of few runs.

A `Trial` is one training run, described so that another process can do it; `train` does it and gives every episode's
return. Scores are normalized per environment, and pooled by the interquartile mean with an interval from resampling
the runs of each environment (Agarwal et al., 2021).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from steepest.core.parallel import ordered_map
from steepest.studies.claim import interquartile_mean

__all__ = ["Contender", "Outcome", "Score", "Trial", "gain", "improvement", "pooled", "run_trials", "train", "tuned"]

SCALES = {  # returns that count as 0 and 1: random actions, and what tuned methods reach (a limit where there is one)
    "CartPole-v1": (20.0, 500.0),
    "Pendulum-v1": (-1250.0, -150.0),
    "Acrobot-v1": (-500.0, -80.0),
    "LunarLander-v3": (-200.0, 250.0),
    "Hopper-v5": (20.0, 3500.0),
    "HalfCheetah-v5": (-280.0, 11000.0),
    "Walker2d-v5": (2.0, 4500.0),
    "Ant-v5": (-60.0, 5500.0),
    "Humanoid-v5": (120.0, 6000.0),
}
Make = Callable[..., Any]


@dataclass(frozen=True)
class Trial:
    """One training run: ``make(env, seed=seed, **setting)`` gives the algorithm.

    For runs in other processes `make` must be a module's function or a partial of one.
    """

    name: str
    make: Make
    env: str
    steps: int
    seed: int
    setting: Mapping[str, Any] = field(default_factory=dict)
    normalize: bool = False  # VecNormalize around the environment
    record_kl: bool = False  # of an on-policy algorithm, KL(old || new) of every iteration
    n_envs: int = 1  # environments side by side; steps are those of all


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    trial: Trial
    returns: list[tuple[int, float]]  # (steps when the episode ended, its undiscounted return)
    kl: list[tuple[int, float]]
    seconds: float  # of this process's CPU, in `learn`

    @property
    def score(self) -> float:
        """Mean return of the episodes that ended in the last quarter of training; of the last if there are none."""
        late = [value for step, value in self.returns if step > 0.75 * self.trial.steps]
        return float(np.mean(late or [value for _, value in self.returns][-1:] or [np.nan]))

    @property
    def normalized(self) -> float:
        """The score where random actions have 0 and tuned methods about 1."""
        low, high = SCALES[self.trial.env]
        return (self.score - low) / (high - low)

    def curve(self, points: int = 20, window: int = 10) -> list[tuple[float, float]]:
        """Mean return of the last `window` episodes at equal distances; of the first before any has ended."""
        steps, values = np.array(self.returns).T if self.returns else (np.zeros(1), np.full(1, np.nan))
        grid = np.linspace(0, self.trial.steps, points + 1)[1:]
        ended = np.maximum(np.searchsorted(steps, grid, side="right"), 1)
        return [(float(g), float(values[max(n - window, 0) : n].mean())) for g, n in zip(grid, ended, strict=True)]


def train(trial: Trial) -> Outcome:
    """Do a trial; global generators are as before when it is done."""
    import gymnasium
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    from steepest.policy._streams import Streams

    env: Any = DummyVecEnv([lambda: Monitor(gymnasium.make(trial.env))] * trial.n_envs)
    if trial.normalize:
        env = VecNormalize(env)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny networks: threads would only wait
    try:
        with Streams().own(torch.device("cpu")):
            model = trial.make(env, seed=trial.seed, **trial.setting)
            recorder = _recorder(trial.record_kl)
            start = time.process_time()
            model.learn(trial.steps, callback=recorder)
            seconds = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
        env.close()
    return Outcome(trial, recorder.returns, recorder.kl, seconds)


def _recorder(record_kl: bool) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    from steepest.policy._mirror import kl

    class Recorder(BaseCallback):
        """Keep the episodes' returns and, around each update of an on-policy algorithm, KL(old || new)."""

        def __init__(self) -> None:
            super().__init__()
            self.returns: list[tuple[int, float]] = []
            self.kl: list[tuple[int, float]] = []
            self.before: Any = None

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    self.returns.append((self.num_timesteps, float(info["episode"]["r"])))
            return True

        def _distribution(self, observations: Any) -> Any:
            with torch.no_grad():
                return self.model.policy.get_distribution(observations).distribution  # type: ignore[operator]

        def _on_rollout_end(self) -> None:
            if record_kl:
                seen = self.model.rollout_buffer.observations  # type: ignore[attr-defined]
                observations = torch.as_tensor(seen.reshape(-1, *seen.shape[2:]))
                self.before = observations, self._distribution(observations)

        def _on_rollout_start(self) -> None:
            if self.before is not None:
                observations, old = self.before
                self.kl.append((self.num_timesteps, float(kl(old, self._distribution(observations)).mean())))

        _on_training_end = _on_rollout_start

    return Recorder()


# --------------------------------------------------------------------------------------------------- tuning and seeds


@dataclass(frozen=True)
class Contender:
    """An algorithm and the settings that it may be tuned over."""

    name: str
    make: Make
    settings: Sequence[Mapping[str, Any]]
    normalize: bool = False
    n_envs: int = 1


def run_trials(
    trials: Sequence[Trial], *, n_workers: int = 1, progress: Callable[[float], object] | None = None
) -> list[Outcome]:
    """Do trials in this process, or several at a time; the same numbers either way."""
    backend = "serial" if n_workers == 1 else "processes"
    return ordered_map(train, trials, backend=backend, n_workers=n_workers, progress=progress)  # type: ignore[arg-type]


def tuned(
    contenders: Sequence[Contender],
    env: str,
    steps: int,
    *,
    tuning_seed: int,
    seeds: Sequence[int],
    tuning_steps: int | None = None,
    record_kl: bool = False,
    n_workers: int = 1,
    progress: Callable[[float], object] | None = None,
) -> dict[str, list[Outcome]]:
    """Choose each contender's setting by its score on the tuning seed, then run it on the seeds.

    Tuning runs have `tuning_steps`, by default as many as the others.

    Returns
    -------
    dict
        Name to outcomes, one a seed, of the chosen setting.
    """

    def trial(c: Contender, setting: Mapping[str, Any], seed: int, n: int = steps) -> Trial:
        return Trial(c.name, c.make, env, n, seed, dict(setting), c.normalize, record_kl, c.n_envs)

    def part(low: float, high: float) -> Callable[[float], object] | None:
        return None if progress is None else lambda done: progress(low + (high - low) * done)

    searched = [(c, s) for c in contenders if len(c.settings) > 1 for s in c.settings]
    share = len(searched) / (len(searched) + len(contenders) * len(seeds))
    found = run_trials([trial(c, s, tuning_seed) for c, s in searched], n_workers=n_workers, progress=part(0.0, share))
    chosen = {c.name: c.settings[0] for c in contenders}
    for c in contenders:
        own = [outcome for outcome in found if outcome.trial.name == c.name]
        if own:
            chosen[c.name] = max(own, key=lambda outcome: outcome.score).trial.setting
    final = run_trials(
        [trial(c, chosen[c.name], seed) for c in contenders for seed in seeds],
        n_workers=n_workers,
        progress=part(share, 1.0),
    )
    return {c.name: [outcome for outcome in final if outcome.trial.name == c.name] for c in contenders}


# -------------------------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Score:
    """Interquartile mean of normalized scores, with its 95 % interval."""

    value: float
    low: float
    high: float

    def on_par(self, other: Score) -> bool:
        """At least 95 % of the other's, or the intervals overlap."""
        return self.value >= 0.95 * other.value or (self.high >= other.low and other.high >= self.low)


def pooled(scores: Sequence[Sequence[float]], *, level: float = 0.95, n_resamples: int = 4000, seed: int = 0) -> Score:
    """Interquartile mean over all runs; the interval resamples the runs of each environment (stratified bootstrap).

    Parameters
    ----------
    scores : sequence of sequences
        Normalized scores, one inner sequence for each environment.

    Examples
    --------
    >>> pooled([[0.0, 1.0, 2.0, 3.0]]).value
    1.5
    """
    rng = np.random.default_rng(seed)
    strata = [np.asarray(part, dtype=float) for part in scores]
    value = float(interquartile_mean(np.concatenate(strata)))
    drawn = [part[rng.integers(len(part), size=(n_resamples, len(part)))] for part in strata]
    low, high = np.quantile(
        interquartile_mean(np.concatenate(drawn, axis=1), axis=1), [(1 - level) / 2, (1 + level) / 2]
    )
    return Score(value, float(low), float(high))


def improvement(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Probability that a run of ours beats a run of theirs, averaged over the environments; ties count half.

    Examples
    --------
    >>> improvement([[1.0, 3.0]], [[2.0, 3.0]])
    0.375
    """
    shares = []
    for a, b in zip(ours, theirs, strict=True):
        difference = np.subtract.outer(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
        shares.append(np.mean((difference > 0) + 0.5 * (difference == 0)))
    return float(np.mean(shares))


def gain(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], n: int = 4000
) -> tuple[float, tuple[float, float]]:
    """Difference of interquartile means, and its interval: runs are resampled within each environment."""
    rng = np.random.default_rng(0)

    def drawn(parts: Sequence[Sequence[float]]) -> np.ndarray:
        strata = [np.asarray(part)[rng.integers(len(part), size=(n, len(part)))] for part in parts]
        return interquartile_mean(np.concatenate(strata, axis=1), axis=1)

    low, high = np.quantile(drawn(ours) - drawn(theirs), [0.025, 0.975])
    return pooled(ours).value - pooled(theirs).value, (float(low), float(high))
