"""Random streams: every draw comes from an explicit generator, never from the global ones.

``None`` means fresh entropy, an int a reproducible stream, a generator itself (and advances it).
"""

from __future__ import annotations

import operator
import secrets
from typing import Any

import numpy as np
import torch

from steepest.core.errors import kind_error, value_error

__all__ = ["child_seeds", "fresh_seed", "numpy_generator", "torch_generator"]

Seed = int | torch.Generator | None


def fresh_seed() -> int:
    """Draw a 63-bit seed from the operating system; keep it, and the run can be repeated."""
    return secrets.randbits(63)


def _checked(seed: Any, name: str) -> int:
    try:
        value = operator.index(seed)
    except TypeError:
        raise kind_error(name, "an int, a generator or None", seed) from None
    if isinstance(seed, bool):
        raise kind_error(name, "an int, a generator or None", seed)
    if not 0 <= value < 2**63:
        raise value_error(name, "in [0, 2**63)", seed)
    return value


def torch_generator(
    seed: Seed = None, device: torch.device | str | None = None, *, name: str = "seed"
) -> torch.Generator:
    """Turn an int, a generator or None into a `torch.Generator` on `device`.

    Parameters
    ----------
    seed : int, torch.Generator or None
        A generator is returned as it is (and must live on `device`); an int starts a new stream; None draws
        fresh entropy (read it back with ``generator.initial_seed()``).
    device : torch.device, str or None
        Where the draws will be made; the CPU by default.
    name : str
        The caller's word for `seed` in messages.

    Raises
    ------
    TypeError
        `seed` is none of these kinds.
    ValueError
        A negative or too large seed, or a generator on another device.

    Examples
    --------
    >>> a, b = torch_generator(0), torch_generator(0)
    >>> torch.equal(torch.rand(2, generator=a), torch.rand(2, generator=b))
    True
    """
    wanted = torch.device(device or "cpu")
    if isinstance(seed, torch.Generator):
        if seed.device.type != wanted.type:
            raise value_error(name, f"a generator on {wanted}", str(seed.device))
        return seed
    generator = torch.Generator(device=wanted)
    generator.manual_seed(fresh_seed() if seed is None else _checked(seed, name))
    return generator


def numpy_generator(
    seed: int | np.random.Generator | np.random.RandomState | None = None, *, name: str = "seed"
) -> np.random.Generator:
    """Turn an int, a NumPy generator or None into a `numpy.random.Generator`.

    A `RandomState` (scikit-learn's word) is advanced once and seeds the new generator.
    """
    if isinstance(seed, np.random.Generator):
        return seed
    if isinstance(seed, np.random.RandomState):
        return np.random.default_rng(int(seed.randint(0, 2**31 - 1)))
    return np.random.default_rng(fresh_seed() if seed is None else _checked(seed, name))


def child_seeds(seed: int, n: int) -> list[int]:
    """Derive `n` independent seeds from one, the same for any number of workers.

    Examples
    --------
    >>> child_seeds(0, 3) == child_seeds(0, 5)[:3]
    True
    """
    children = np.random.SeedSequence(_checked(seed, "seed")).spawn(n)
    return [int(c.generate_state(1, np.uint64)[0] >> np.uint64(1)) for c in children]
