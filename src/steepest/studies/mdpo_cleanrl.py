"""CleanRL's PPO and SAC for continuous actions, run as the scripts that they are, with their constants pinned here.

The scripts come from a checkout of CleanRL (``--option cleanrl=PATH``) or from the installed package, and are run by
this interpreter or by another one (``--option cleanrl-python=PATH``): CleanRL asks for an older Gymnasium than ours. A
script's own lines about ended episodes are what is read from it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from steepest.core.parallel import ordered_map
from steepest.studies.context import Context, Unavailable
from steepest.studies.policy_learning import Outcome, Trial

__all__ = ["SCRIPT_OPTIONS", "cleanrl", "run_script"]

SCRIPT_OPTIONS = {
    "cleanrl": "a checkout of CleanRL, for its PPO and SAC (the installed package by default)",
    "cleanrl-python": "at full and paper: interpreter of an environment where its scripts run (this one)",
}
SCRIPTS: dict[str, tuple[str, dict[str, Any]]] = {  # the values are CleanRL's own
    "CleanRL PPO": (
        "ppo_continuous_action.py",
        {"learning-rate": 3e-4, "num-envs": 1, "num-steps": 2048, "anneal-lr": True, "gamma": 0.99, "gae-lambda": 0.95,
         "num-minibatches": 32, "update-epochs": 10, "norm-adv": True, "clip-coef": 0.2, "clip-vloss": True,
         "ent-coef": 0.0, "vf-coef": 0.5, "max-grad-norm": 0.5},
    ),
    "CleanRL SAC": (
        "sac_continuous_action.py",
        {"buffer-size": 1_000_000, "gamma": 0.99, "tau": 0.005, "batch-size": 256, "policy-lr": 3e-4, "q-lr": 1e-3,
         "policy-frequency": 2, "target-network-frequency": 1, "autotune": True},
    ),
}  # fmt: skip
ENDED = re.compile(r"global_step=(\d+), episodic_return=\[?\s*([-+.\deE]+)")


def cleanrl(
    ctx: Context, name: str, env: str, steps: int, seeds: list[int], n_workers: int, **given: Any
) -> list[Outcome]:
    """Run one of the scripts on all seeds; `given` are constants that everyone shares, as ``learning_starts``.

    Raises
    ------
    Unavailable
        The script is not there, or it ended with an error.
    """
    folder = _folder(ctx.options.get("cleanrl"))
    python = ctx.options.get("cleanrl-python", sys.executable)
    setting = {key.replace("_", "-"): value for key, value in given.items()}
    trials = [Trial(name, partial(run_script, folder, python), env, steps, seed, setting) for seed in seeds]
    backend = "serial" if n_workers == 1 else "processes"
    return ordered_map(_run, trials, backend=backend, n_workers=n_workers)  # type: ignore[arg-type]


def _folder(checkout: str | None) -> Path:
    """Where the scripts lie."""
    if checkout is not None:
        return Path(checkout).expanduser().resolve() / "cleanrl"
    spec = importlib.util.find_spec("cleanrl")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("CleanRL is not installed: clone github.com/vwxyzjn/cleanrl, and give --option cleanrl=PATH")
    return Path(next(iter(spec.submodule_search_locations)))


def _run(trial: Trial) -> Outcome:
    outcome: Outcome = trial.make(trial)
    return outcome


def run_script(folder: Path, python: str, trial: Trial) -> Outcome:
    """Run a script once, in a folder of its own that is thrown away, and read the returns that it prints."""
    file, constants = SCRIPTS[trial.name]
    script = folder / file
    if not script.is_file():
        raise Unavailable(f"CleanRL has no {file} in {folder}")
    options = constants | dict(trial.setting)
    options |= {"env-id": trial.env, "total-timesteps": trial.steps, "seed": trial.seed, "cuda": False, "track": False}
    paths = [str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    world = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = _child_seconds()
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [python, str(script), *_flags(options)], cwd=scratch, env=world, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"CleanRL's {file} ended with an error ({last}); it may want an older Gymnasium, see "
                          "--option cleanrl-python")  # fmt: skip
    returns = [(int(step), float(value)) for step, value in ENDED.findall(done.stdout)]
    return Outcome(trial, returns, [], _child_seconds() - before)


def _flags(options: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in options.items():
        flags += [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return flags


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
