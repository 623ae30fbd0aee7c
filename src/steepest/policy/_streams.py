"""Random streams of its own for an algorithm of Stable-Baselines3, which draws from the global generators.

While such an algorithm works, the global generators of Python, NumPy and torch hold its states; when it is done they
get their own back, and its states are kept, and saved with it. So nothing outside is read or advanced, two algorithms
do not disturb one another, and a saved one goes on with the draws that it would have made.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from steepest.core.random import fresh_seed

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm as Base
else:
    Base = object

__all__ = ["OwnStreams", "Streams"]

States = tuple[Any, ...]


class Streams:
    """States of the global generators that belong to one owner; fresh entropy at first."""

    def __init__(self) -> None:
        self._kept: States | None = None
        self._device: torch.device | None = None  # while the owner works

    @property
    def started(self) -> bool:
        """Whether there are states to go on from."""
        return self._kept is not None or self._device is not None

    @contextmanager
    def own(self, device: torch.device) -> Iterator[None]:
        """Let the global generators be the owner's; within another such block nothing changes."""
        if self._device is not None:
            yield
            return
        theirs = _states(device)
        if self._kept is None:
            _seed(fresh_seed(), device)
        else:
            _restore(self._kept, device)
        self._device = device
        try:
            yield
        finally:
            self._kept, self._device = _states(device), None
            _restore(theirs, device)

    def __getstate__(self) -> dict[str, Any]:
        kept = self._kept if self._device is None else _states(self._device)
        return {"_kept": copy.deepcopy(kept), "_device": None}


class OwnStreams(Base):
    """For an algorithm's first base class: all that draws random numbers does so from streams of its own.

    The streams must exist before Stable-Baselines3's constructor runs: ``self._streams = Streams()`` comes first.
    """

    _streams: Streams

    def _setup_model(self) -> None:
        if not self._streams.started:
            with self._streams.own(self.device):
                super()._setup_model()  # type: ignore[safe-super]
            return
        # A loaded model: its weights are put in place afterwards, and its streams must not start again.
        space = copy.deepcopy(self.action_space)
        kept, self._streams = self._streams, Streams()
        with self._streams.own(self.device):
            super()._setup_model()  # type: ignore[safe-super]
        self._streams, self.action_space = kept, space

    def set_random_seed(self, seed: int | None = None) -> None:
        """Start the algorithm's streams anew from `seed`; None leaves them as they are."""
        with self._streams.own(self.device):
            super().set_random_seed(seed)

    def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
        """Give actions for observations, as Stable-Baselines3 does; random ones come from the algorithm's streams."""
        with self._streams.own(self.device):
            return super().predict(*args, **kwargs)


def _seed(seed: int, device: torch.device) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _states(device: torch.device) -> States:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def _restore(states: States, device: torch.device) -> None:
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(cpu)
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda, device)
