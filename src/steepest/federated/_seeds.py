"""Seeds of a federated run: each purpose, client and task has a stream of its own.

So a client's draws do not depend on when the others return, and another rule does not change the clients' speeds.
"""

from __future__ import annotations

import numpy as np

__all__ = ["ESTIMATES", "FAILURES", "RULE", "SPEEDS", "TASKS", "stream", "task_seed"]

TASKS, SPEEDS, ESTIMATES, FAILURES, RULE = 1, 2, 3, 4, 5


def stream(seed: int, purpose: int, client: int, number: int = 0) -> np.random.Generator:
    """The generator for one purpose of one task."""
    return np.random.default_rng(np.random.SeedSequence([seed, purpose, client, number]))


def task_seed(seed: int, client: int, number: int) -> int:
    """An integer below 2^63 for the client's own draws in its task `number`."""
    return int(np.random.SeedSequence([seed, TASKS, client, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
