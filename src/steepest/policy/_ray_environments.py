"""Environments on Ray actors, behind the interface of Stable-Baselines3: any of its algorithms can step them.

An actor holds some of the environments in a vectorized environment of its own, so that resets, time limits and seeds
are exactly those of Stable-Baselines3; results come back in the order of the environments. The same seeds give the same
numbers as in one process, whatever the number of actors and machines.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from steepest.core.errors import check, interval, optional, value_error
from steepest.core.extras import require
from steepest.core.parallel import joined_ray

try:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
except ModuleNotFoundError:
    require("stable_baselines3", "rl", what="RayVecEnv")
    raise

__all__ = ["RayVecEnv"]


class RayVecEnv(VecEnv):
    """A vectorized environment whose environments are stepped by Ray actors, side by side.

    For environments whose step takes much longer than a call to an actor (about a millisecond); for small ones
    `DummyVecEnv` is faster, and `SubprocVecEnv` does the same within one machine.

    Parameters
    ----------
    env_fns : sequence of callables
        Each makes one environment, on its actor.
    n_actors : int, optional
        Actors that share the environments, neighbors together; by default one for each.

    Raises
    ------
    ValueError
        No environments, or more actors than environments.
    ImportError
        Ray or Stable-Baselines3 is not installed; the text has the command.

    Notes
    -----
    Joins the running Ray, or starts a local one that `close` stops. What an environment raises is raised here.

    Examples
    --------
    >>> import gymnasium
    >>> env = RayVecEnv([lambda: gymnasium.make("CartPole-v1")] * 2)        # doctest: +SKIP
    >>> env.reset().shape        # doctest: +SKIP
    (2, 4)
    """

    def __init__(self, env_fns: Sequence[Callable[[], Any]], *, n_actors: int | None = None) -> None:
        if len(env_fns) == 0:
            raise value_error("env_fns", "at least one callable", env_fns)
        check("n_actors", n_actors, optional(interval(1, len(env_fns), integer=True)))
        self._ray = require("ray", "federated", what="RayVecEnv")
        parts = np.array_split(np.arange(len(env_fns)), n_actors or len(env_fns))
        self._leave = contextlib.ExitStack()
        self._leave.enter_context(joined_ray(self._ray, len(parts)))
        try:
            actor = self._ray.remote(_Stage)
            self._stages = [actor.remote([env_fns[k] for k in part]) for part in parts]
            self._where = [(i, k) for i, part in enumerate(parts) for k in range(len(part))]
            self._bounds = np.cumsum([0, *(len(part) for part in parts)])
            observations, actions = self._ray.get(self._stages[0].spaces.remote())
            super().__init__(len(env_fns), observations, actions)
        except BaseException:
            self.close()
            raise

    def reset(self) -> Any:
        """Reset all; the seeds and options that were set are used up."""
        answers = self._all("reset", self._split(self._seeds), self._split(self._options))
        self._reset_seeds()
        self._reset_options()
        observations, infos = zip(*answers, strict=True)
        self.reset_infos = [info for part in infos for info in part]
        return _joined(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Let all actors begin."""
        self._running = [
            stage.step.remote(part) for stage, part in zip(self._stages, self._split(actions), strict=True)
        ]

    def step_wait(self) -> Any:
        """Wait for all actors."""
        answers = self._ray.get(self._running)
        observations, rewards, dones, infos, reset_infos = zip(*answers, strict=True)
        self.reset_infos = [info for part in reset_infos for info in part]
        told = [copy.deepcopy(info) for part in infos for info in part]  # Ray's own arrays are read-only
        return _joined(observations), np.concatenate(rewards), np.concatenate(dones), told

    def close(self) -> None:
        """Close the environments and end the actors; a second call does nothing."""
        stages, self._stages = getattr(self, "_stages", []), []
        with self._leave:
            for stage in stages:
                with contextlib.suppress(self._ray.exceptions.RayError):
                    self._ray.get(stage.call.remote("close"))
                self._ray.kill(stage)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Pictures of all environments."""
        return [image for part in self._all("call", ["get_images"] * len(self._stages)) for image in part]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Attribute of some environments."""
        return self._each("get_attr", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of some environments."""
        self._each("set_attr", indices, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of some environments."""
        return self._each("env_method", indices, method_name, *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Whether some environments are wrapped so."""
        return self._each("env_is_wrapped", indices, wrapper_class)

    def _split(self, values: Any) -> list[Any]:
        return [values[a:b] for a, b in zip(self._bounds[:-1], self._bounds[1:], strict=True)]

    def _all(self, method: str, *arguments: list[Any]) -> list[Any]:
        """Call all actors, each with its own part of every argument."""
        calls = zip(self._stages, *arguments, strict=True)
        return list(self._ray.get([getattr(stage, method).remote(*own) for stage, *own in calls]))

    def _each(self, name: str, indices: Any, *arguments: Any, **named: Any) -> list[Any]:
        """Call the vectorized environments' own method for one environment after the other."""
        places = [self._where[k] for k in self._get_indices(indices)]
        calls = [self._stages[i].call.remote(name, *arguments, indices=[k], **named) for i, k in places]
        return [answer[0] if answer else None for answer in self._ray.get(calls)]


class _Stage:
    """What an actor holds: some environments, one after the other."""

    def __init__(self, env_fns: list[Callable[[], Any]]) -> None:
        self.venv = DummyVecEnv(env_fns)

    def spaces(self) -> tuple[Any, Any]:
        return self.venv.observation_space, self.venv.action_space

    def reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
        self.venv._seeds, self.venv._options = list(seeds), list(options)
        return self.venv.reset(), self.venv.reset_infos

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        return *self.venv.step(actions), self.venv.reset_infos

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self.venv, name)(*arguments, **named)


def _joined(observations: Sequence[Any]) -> Any:
    """Put the actors' observations one after the other: arrays, or dictionaries or tuples of arrays."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: np.concatenate([part[key] for part in observations]) for key in first}
    if isinstance(first, tuple):
        return tuple(np.concatenate(parts) for parts in zip(*observations, strict=True))
    return np.concatenate(observations)
