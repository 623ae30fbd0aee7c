"""An invented store with every state a report must show, and invented studies to go with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np

from steepest.core.records import Against, ClaimResult, Environment, RunRecord, Series, Store
from steepest.studies import registry
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture, judge
from steepest.studies.provenance import code_fingerprint

NOW = datetime(2026, 11, 24, 14, 2, tzinfo=UTC)
EVIL = "It <script>alert(1)</script> & \"holds\" 'well'."
METHODS = {
    "adamp": ("AdamP", "SGDP"),
    "adahessian": ("AdaHessian",),
    "sophia": ("Sophia-G", "Sophia-H"),
    "mfac": ("M-FAC",),
}


def _field(figure, arrays, ink) -> None:
    axes = figure.subplots()
    axes.scatter(*arrays["points"].T, c=arrays["values"], cmap=ink.cyclic)
    axes.plot(*arrays["points"].T, color=ink.color("AdamP"))
    axes.set_xlabel("x (m)")


def _broken(figure, arrays, ink) -> None:
    raise ArithmeticError("no <axes>")


def study(key: str) -> ModuleType:
    """Make a study with everything the contract asks for."""
    own = METHODS.get(key, (registry.METHODS[key].name,))
    module = ModuleType(f"study_{key}")
    module.__doc__ = (
        f"Trains what {own[0]} trains, in fewer steps and with ``{own[0].lower()}``.\n\n"
        "You train a network and the step that suits one layer is too long for another. The usual optimizer keeps one\n"
        "average per weight and cannot see this.\n\n"
        f"This method looks at curvature *as well* (``a < b``, ``studies.{key}_with_a_long_name_of_its_very_own``),\n"
        "and takes the step that fits."
    )
    module.PAPER = Paper("A title", "Somebody", "ICLR", 2024, "https://example.org")
    module.AREA = registry.METHODS[key].area
    module.CLAIMS = [
        Claim("holds", EVIL, "2x, Table 1", ">= 1.5", unit="x"),
        Claim("short", "The error stays under that of AdamW.", "0.2 %, Fig. 3", "<= 0.3", unit="%"),
        Claim("undecided", "The slope of the error is between the two.", "-2", "between(-2.3, -1.7)"),
        Claim("elsewhere", "It holds for large models.", "24 GiB, 15 min", ">= 1", scales="paper"),
        Claim("reported", "The time of a step is reported.", "1.17 times, Table 5", "reported", unit="x"),
        Claim("exact", "The product is the gradient's.", "exact", "== 1", invariant=True),
        Claim("no-peer", "It is better than the peer.", "better", "> 1"),
        Claim("small", "The rest is small.", "1e-8", "<= 1e-6", unit="largest relative error, damping 1e-3 to 1"),
    ]
    module.PEERS = [Peer("AdamW"), Peer("SGD"), Peer("Nowhere", "no_such_package")]
    module.SNIPPET = '\nimport torch  # needed\n\nx = torch.zeros(3) + 1.5\nprint("a < b", x)\n'
    module.OPTIONS = {}
    module.FIGURES = [
        Figure("loss", "The loss falls in half the steps", "loss", "steps", "training loss", log_y=True,
               caption="Digits, three seeds. Line: median. Band: 10th to 90th percentile."),
        Figure("accuracy", "More digits are read correctly", "accuracy", "steps", "accuracy (%)", log_x=True,
               caption="The same runs."),
        Figure("final", "The end of every run", "loss", "final loss", "optimizer", kind="dots",
               caption="Median and range."),
        Figure("bars", "Seconds for a step", "seconds", "milliseconds", "optimizer", kind="bars"),
        Figure("nothing", "Not logged at this scale", "absent", "steps", "nothing"),
    ]  # fmt: skip
    module.PICTURES = [
        Picture("field", "A field <turns> once", "field", _field, caption="Sixteen points.", alt="A ring of colors."),
        Picture("broken", "Cannot be drawn", "field", _broken),
        Picture("never", "No run kept its arrays", "nothing", _field),
    ]
    module.REASONS = {"short": "Two seeds in three stop at a saddle: see the loss."}
    module.WHEN_NOT = ["The batch is small: `AdamW` is as good.", "Memory is short."]
    return module


MEASURED: dict[str, tuple[float | None, tuple[float, float] | None, str]] = {
    "holds": (2.345, (2.1, 2.6), ""),
    "short": (0.412, (0.39, 0.45), ""),
    "undecided": (-1.72, (-1.8, -1.65), ""),
    "reported": (1.31, (1.28, 1.35), ""),
    "exact": (1.0, None, ""),
    "no-peer": (None, None, "no_such_package is not installed"),
    "small": (3.1e-9, (2.6e-9, 3.9e-9), ""),
}


def claims(key: str, scale: str = "quick", *, blank: bool = False) -> list[ClaimResult]:
    """Judge the study's claims."""
    found = []
    for c in study(key).CLAIMS:
        value, span, reason = (None, None, "") if blank else MEASURED.get(c.id, (None, None, ""))
        found.append(
            ClaimResult(id=c.id, says=c.says, paper=c.paper, bound=c.bound, unit=c.unit, scales=c.scales,
                        invariant=c.invariant, value=value, interval=span, reason=reason,
                        verdict=judge(c, value, span, scale).value)
        )  # fmt: skip
    return found


def record(
    key: str, *, ago: float = 0, factor: float | None = 2.1, spread: float = 1.1, **changes: object
) -> RunRecord:
    """Make one run, `ago` hours before now."""
    started = NOW - timedelta(hours=ago)
    fields: dict[str, object] = {
        "id": f"{started:%Y%m%dT%H%M%S}-{key}-quick-s0-abc123",
        "key": key,
        "area": registry.METHODS[key].area,
        "scale": "quick",
        "seed": 0,
        "seeds": [1, 2, 3],
        "status": "ok",
        "claims": claims(key),
        "against": None
        if factor is None
        else Against(peer="AdamW", factor=factor, interval=(factor / spread, factor * spread), ahead="fewer steps",
                     behind="more steps", what="digits"),
        "seconds": {"AdamW": [1.2, 1.3], "tuning": [20.0]},
        "notes": ["Seeds were cut from 5 to 3.", "A peer <b>diverged</b> once.", "sha256 " + 8 * "2a95af4a"],
        "started": started,
        "wall_seconds": 38.2,
        "peak_memory_bytes": 412 * 2**20,
        "code": changes.get("code") or code_fingerprint(key),
        "environment": Environment(
            python="3.11.7", system="Linux 6.1", processor="Sample CPU", cores=2, threads=1, accelerator="none",
            libraries={"steepest": "0.1.0", "torch": "2.13.0"}, revision="4f1c2ab",
        ),
    }  # fmt: skip
    return RunRecord.model_validate(fields | changes)


def series(key: str, n: int = 160, seeds: int = 3) -> list[Series]:
    """Make losses and accuracies of the method and two peers; one seed of SGD ends early."""
    own = METHODS.get(key, (registry.METHODS[key].name,))
    rng, found = np.random.default_rng(7), []
    steps = np.arange(1, n + 1, dtype=float)
    for speed, name in zip((1.0, 0.8, 0.5, 0.3), (*own, "AdamW", "SGD")):
        for seed in range(1, seeds + 1):
            loss = 2.3 * np.exp(-speed * steps / n * 5) + 0.01 * np.exp(0.3 * rng.standard_normal(n)) / speed
            values: list[float | None] = loss.tolist()
            if name == "SGD" and seed > 1:
                values[n // 2 :] = [None] * (n - n // 2)
            more = {"method": name, "seed": seed, "steps": steps.tolist()}
            found.append(Series(name="loss", values=values, **more))
            found.append(Series(name="accuracy", values=(100 * (1 - np.exp(-3 * speed * steps / n))).tolist(), **more))
            found.append(Series(name="seconds", method=name, seed=seed, steps=[0.0], values=[8 / speed + seed]))
    return found


def arrays() -> dict[str, dict[str, np.ndarray]]:
    """Make what the picture is drawn from."""
    angle = np.linspace(0, 2 * np.pi, 16)
    return {"field": {"points": np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32), "values": angle}}


def fill(root: Path) -> Store:
    """Make a store in which every state can be seen."""
    store = Store(root)
    for i in range(12):
        store.write(record("adamp", ago=200 - i, factor=2.0 + 0.05 * i), series("adamp"), arrays())
    store.write(record("adahessian", ago=3, factor=0.74, code="0" * 16), series("adahessian"))
    store.write(record("sophia", ago=30, factor=1.05, spread=1.15), series("sophia"))
    store.write(
        record("sophia", ago=2, status="error", reason="FloatingPointError: loss is not finite <at> step 3",
               traceback="Traceback (most recent call last):\n  File \"x.py\"\nFloatingPointError: <b>", factor=None,
               claims=claims("sophia", blank=True), wall_seconds=14.2)
    )  # fmt: skip
    store.write(
        record("mfac", ago=1, status="skipped", factor=None, claims=claims("mfac", blank=True),
               reason='M-FAC needs pyriemann: pip install "steepest[eeg]"')
    )  # fmt: skip
    store.write(record("cbo", ago=4, factor=14.2), series("cbo"))
    (root / "broken-run").mkdir()
    (root / "broken-run" / "result.json").write_text("{")
    return store


def fill_all(root: Path, n_runs: int = 1) -> Store:
    """Make a store with good runs of every method, of code that has changed since; the newest have their series."""
    store = Store(root)
    for i, key in enumerate(registry.METHODS):
        factor = float(np.exp(np.sin(5.1 * i) + 0.5))
        newest = record(key, ago=i, factor=factor, claims=claims(key) * 4, code="0" * 16)
        store.write(newest, series(key))
        for j in range(1, n_runs):
            started = newest.started - timedelta(days=j)
            older = newest.model_copy(update={"id": f"{started:%Y%m%dT%H%M%S}-{key}", "started": started})
            (root / older.id).mkdir()
            (root / older.id / "result.json").write_text(older.model_dump_json(), "utf-8")
    return store
