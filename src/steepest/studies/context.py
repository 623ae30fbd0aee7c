"""What a study sees of the world: its scale, seeds, data and options, and the only way it can report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from steepest.core.errors import at_least, check, nonnegative, one_of, optional, value_error
from steepest.core.records import Against, ClaimResult, Series
from steepest.studies.claim import SCALES, Claim, Verdict, judge

__all__ = ["Context", "Job", "Unavailable"]

T = TypeVar("T")
Event = dict[str, Any]
DEFAULT_SEEDS = {"tiny": 2, "quick": 2, "full": 3, "paper": 3}


class Unavailable(RuntimeError):
    """What this scale needs is not here (data, an accelerator); the text says what, and how to get it."""


@dataclass(frozen=True)
class Job:
    """One study to run, and how."""

    key: str
    scale: str = "quick"
    seed: int = 0
    n_seeds: int | None = None
    options: dict[str, str] = field(default_factory=dict)
    data: str | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check("scale", self.scale, one_of(*SCALES))
        check("seed", self.seed, nonnegative(integer=True))
        check("seeds", self.n_seeds, optional(at_least(1, integer=True)))
        check("max_steps", self.max_steps, optional(at_least(1, integer=True)))

    @property
    def seeds(self) -> list[int]:
        """The seeds that results are reported on; `seed` itself is for tuning."""
        return [self.seed + 1 + i for i in range(self.n_seeds or DEFAULT_SEEDS[self.scale])]


class Context:
    """What a study sees of the world, and the only way it can report.

    Attributes
    ----------
    scale : str
        "tiny", "quick", "full" or "paper".
    seed : int
        For tuning and for what is drawn once.
    seeds : list of int
        Fresh seeds to report on.
    seeds_asked : int or None
        How many the user asked for with ``--seeds``; None: `seeds` is the scale's default and may be cut for time.
    rng : numpy.random.Generator
    generator : torch.Generator
        Two streams started from `seed`.
    options : dict
        Values of the study's own options, as given by ``--option NAME=VALUE``.
    max_steps : int or None
        The user's limit on training steps (paper scale).
    """

    def __init__(self, study: ModuleType, job: Job, emit: Callable[[Event], None] | None = None) -> None:
        unknown = set(job.options) - set(getattr(study, "OPTIONS", {}))
        if unknown:
            known = ", ".join(study.OPTIONS) or "none"
            raise value_error("option", f"one of the study's own ({known})", sorted(unknown)[0])
        self.scale, self.seed, self.seeds, self.seeds_asked = job.scale, job.seed, job.seeds, job.n_seeds
        self.options, self.max_steps, self._data = dict(job.options), job.max_steps, job.data
        self.rng = np.random.default_rng(job.seed)
        self.generator = torch.Generator().manual_seed(job.seed)
        self._reasons: dict[str, str] = getattr(study, "REASONS", {})
        self.claims: dict[str, Claim] = {c.id: c for c in study.CLAIMS}
        self._emit = emit or (lambda event: None)
        self._measured: dict[str, tuple[float | None, tuple[float, float] | None, str]] = {}
        self.series_log: list[Series] = []
        self.arrays_log: dict[str, dict[str, np.ndarray]] = {}
        self.seconds_log: dict[str, list[float]] = {}
        self.notes_log: list[str] = []
        self.best_peer: Against | None = None
        self._last_progress = 0.0

    def pick(self, *, quick: T, full: T, paper: T, tiny: T | None = None) -> T:
        """Choose by scale; ``tiny`` falls back to ``quick``."""
        return {"tiny": quick if tiny is None else tiny, "quick": quick, "full": full, "paper": paper}[self.scale]

    def wants(self, claim_id: str) -> bool:
        """Whether the claim is measured at this scale, so that its work is worth doing."""
        return self._claim(claim_id).measured_at(self.scale)

    def data(self, name: str) -> Any:
        """Load a data set by name, or the path behind ``--data`` and ``STEEPEST_DATA`` (see `studies.data`).

        Raises
        ------
        Unavailable
            It is not on this machine; the text says how to get it.
        """
        from steepest.studies import data

        return data.load(name, self._data)

    def timed(self, label: str, fn: Callable[[], T]) -> T:
        """Call `fn`, add its wall-clock seconds to those of `label`, return its result."""
        start = time.perf_counter()
        result = fn()
        self.seconds_log.setdefault(label, []).append(time.perf_counter() - start)
        return result

    def seconds(self, label: str) -> list[float]:
        """The seconds recorded under `label` so far."""
        return list(self.seconds_log.get(label, []))

    def series(
        self,
        name: str,
        values: Iterable[float] | Iterable[tuple[float, float]],
        *,
        method: str | None = None,
        seed: int | None = None,
    ) -> None:
        """Keep values for figures: numbers (their step is their index) or pairs ``(step, value)``."""
        items = np.asarray(list(values), dtype=float)
        if items.ndim == 2 and items.shape[1] == 2:
            steps, ys = items[:, 0], items[:, 1]
        elif items.ndim == 1:
            steps, ys = np.arange(len(items), dtype=float), items
        else:
            raise value_error("values", "numbers or pairs (step, value)", items)
        self.series_log.append(
            Series(
                name=name,
                method=method,
                seed=seed,
                steps=steps.tolist(),
                values=[float(y) if np.isfinite(y) else None for y in ys],
            )
        )

    def arrays(self, name: str, **arrays: ArrayLike) -> None:
        """Keep arrays for pictures (`claim.Picture`); double precision is kept as single.

        Raises
        ------
        ValueError
            `name` was already kept, or an array holds objects.
        """
        if name in self.arrays_log:
            raise ValueError(f"arrays {name!r} were already kept")
        kept = {}
        for key, value in arrays.items():
            array = np.asarray(value)
            if array.dtype.kind not in "biufU":
                raise value_error(key, "an array of numbers or texts", array)
            kept[key] = array.astype(np.float32) if array.dtype == np.float64 else array
        self.arrays_log[name] = kept

    def progress(self, fraction: float, **numbers: float | str) -> None:
        """Say how far the study is (0 to 1) and the current numbers; cheap to call often."""
        now = time.monotonic()
        if now - self._last_progress > 0.1 or fraction >= 1:
            self._last_progress = now
            self._emit({"event": "progress", "fraction": min(max(fraction, 0.0), 1.0), "numbers": numbers})

    def measured(
        self, claim_id: str, value: float, interval: tuple[float, float] | None = None, *, reason: str = ""
    ) -> None:
        """Hand over what was measured for a claim; the verdict is not the study's.

        `interval` is over seeds. `reason` explains a number that falls short, where the study can tell.
        """
        if claim_id in self._measured:
            raise ValueError(f"claim {claim_id!r} was already reported")
        self._claim(claim_id)
        span = None if interval is None else (float(interval[0]), float(interval[1]))
        self._measured[claim_id] = (float(value), span, reason)
        self._emit({"event": "measured", "claim": claim_id, "value": float(value)})

    def skipped(self, claim_id: str, reason: str) -> None:
        """Say why a claim of this scale could not be measured (a peer or data set that is not here)."""
        if claim_id in self._measured:
            raise ValueError(f"claim {claim_id!r} was already reported")
        self._claim(claim_id)
        self._measured[claim_id] = (None, None, reason)

    def note(self, text: str) -> None:
        """Write a sentence into the result: what was cut, what was seen."""
        self.notes_log.append(text)

    def against(
        self,
        peer: str,
        factor: float,
        interval: tuple[float, float] | None = None,
        *,
        ahead: str = "lower error",
        behind: str = "higher error",
        what: str = "",
    ) -> None:
        """Give the one ratio to the best peer that the index shows.

        Parameters
        ----------
        peer : str
            The best peer's name.
        factor : float
            Above 1 the method is ahead by that factor.
        interval : (low, high), optional
            95 % interval of `factor`.
        ahead, behind : str
            The words for each direction, e.g. "faster" and "slower".
        what : str
            The problem and setting in a few words.
        """
        span = None if interval is None else (float(interval[0]), float(interval[1]))
        self.best_peer = Against(peer=peer, factor=float(factor), interval=span, ahead=ahead, behind=behind, what=what)

    def need_cuda(self) -> torch.device:
        """Return the accelerator, or say that this scale needs one.

        Raises
        ------
        Unavailable
            No CUDA device.
        """
        if not torch.cuda.is_available():
            raise Unavailable(f"scale {self.scale} needs a CUDA device, and there is none here")
        return torch.device("cuda")

    def _claim(self, claim_id: str) -> Claim:
        if claim_id not in self.claims:
            raise value_error("claim_id", f"one of {', '.join(self.claims)}", claim_id)
        return self.claims[claim_id]

    def results(self, blank: str = "") -> list[ClaimResult]:
        """Judge all claims; `blank` is the reason of those that nothing was reported for."""
        found = []
        for claim in self.claims.values():
            wanted = claim.measured_at(self.scale)
            value, span, reason = self._measured.get(claim.id, (None, None, blank if wanted else ""))
            if not wanted:
                value, span = None, None
            verdict = judge(claim, value, span, self.scale)
            if verdict in (Verdict.SHORT, Verdict.UNDECIDED) and not reason:
                reason = self._reasons.get(claim.id, "")
            found.append(
                ClaimResult(
                    id=claim.id,
                    says=claim.says,
                    paper=claim.paper,
                    bound=claim.bound,
                    unit=claim.unit,
                    scales=claim.scales,
                    invariant=claim.invariant,
                    value=value,
                    interval=span,
                    verdict=verdict.value,
                    reason=reason,
                )
            )
        return found
