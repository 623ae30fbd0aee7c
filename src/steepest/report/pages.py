"""What the templates show: runs of the store, turned into words, positions and drawings."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from markupsafe import Markup

from steepest.core.errors import SteepestWarning
from steepest.core.extras import MissingExtra, installed
from steepest.core.records import ClaimResult, RunRecord, Store
from steepest.report import figures, pictures, sketch, text, theme
from steepest.report.drawing import Drawing, drawings, thin
from steepest.report.history import machine, side_by_side
from steepest.report.markup import highlight, prose, script_json
from steepest.studies import bibliography, registry
from steepest.studies.claim import Picture, Verdict
from steepest.studies.provenance import code_fingerprint

__all__ = ["AREAS", "Study", "index", "method", "read_studies", "read_study", "trouble"]

View = dict[str, Any]
log = logging.getLogger("steepest")

AREAS = {
    "optim": ("Optimizers", "drop in for torch.optim"),
    "landscape": ("Landscape", "what training does and why"),
    "bilevel": ("Bilevel", "problems inside problems"),
    "constrained": ("Constrained", "smooth equalities, SciPy style"),
    "transport": ("Transport", "entropic optimal transport"),
    "particles": ("Particles", "no gradients needed"),
    "convex": ("Convex", "networks with a certificate"),
    "federated": ("Federated", "many holders of data"),
    "policy": ("Policy", "reinforcement learning"),
    "manifold": ("Manifold", "geometry from samples"),
    "generative": ("Generative", "flows and scores"),
    "physics": ("Physics", "solvers and surrogates"),
}
ICONS = {
    Verdict.HOLDS: ("holds", "holds"),
    Verdict.SHORT: ("short", "falls short"),
    Verdict.UNDECIDED: ("undecided", "undecided"),
    Verdict.REPORTED: ("reported", "reported"),
    Verdict.UNMEASURED: ("unmeasured", "not measured"),
}
CHIPS = [
    ("holds", "i-holds", "all measured hold"),
    ("short", "i-short", "some fall short or are undecided"),
    ("loses", "m8", "a peer wins"),
    ("state", "i-skipped", "stale, skipped or error"),
]
CONTRACT = ("CLAIMS", "FIGURES", "PEERS", "REASONS", "SNIPPET", "WHEN_NOT")
SHOWN = 10  # runs and notes; the rest is behind one click
UNIT_SHOWN = 12  # a longer unit is a text: it stands once, after the number, and wraps
NARROW, WIDE, WIDE_SMALL, STATIC_POINTS = 328, 704, 448, 120


@dataclass(frozen=True)
class Study:
    """One method with its study and all its runs, oldest first; `problem` says why the study cannot be loaded."""

    method: registry.Method
    module: ModuleType | None
    runs: list[RunRecord]
    drawings: list[Drawing] = field(default_factory=list)
    pictures: list[tuple[Picture, dict[str, np.ndarray]]] = field(default_factory=list)
    problem: str = ""

    @property
    def latest(self) -> RunRecord | None:
        """The newest run; runs at scale ``tiny`` count only when there are no others."""
        some = self._judged
        return some[-1] if some else None

    @property
    def good(self) -> RunRecord | None:
        """The newest run that went well: what the numbers are shown of."""
        some = [r for r in self._judged if r.status == "ok"]
        return some[-1] if some else None

    @property
    def _judged(self) -> list[RunRecord]:
        return [r for r in self.runs if r.scale != "tiny"] or self.runs

    @property
    def stale(self) -> bool:
        """Whether the code changed since the run that is shown."""
        return self.module is not None and self.good is not None and self.good.code != self.code

    @property
    def code(self) -> str:
        """Fingerprint of the code as it is now."""
        try:
            return code_fingerprint(self.method.key)
        except (SyntaxError, OSError):  # of another file of the room: the study's own was imported
            return "unreadable"

    @property
    def state(self) -> str:
        """One of ``ok``, ``stale``, ``error``, ``skipped``, ``unrun``, ``none``, ``broken``."""
        if self.latest is None and self.problem:
            return "broken"
        if self.latest is None:
            return "none" if self.module is None else "unrun"
        if self.latest.status != "ok":
            return self.latest.status
        return "stale" if self.stale else "ok"


def read_studies(store: Store, runs: Sequence[RunRecord]) -> list[Study]:
    """Put every registered method together with its study, runs and figures."""
    return [read_study(store, m, [r for r in runs if r.key == m.key]) for m in registry.METHODS.values()]


def read_study(store: Store, m: registry.Method, runs: list[RunRecord]) -> Study:
    """Put one method together with its study, its `runs` and the figures of the last good one."""
    module, problem = _load(m.key)
    study = Study(m, module, runs, problem=problem)
    if module is None or study.good is None:
        return study
    with warnings.catch_warnings():  # what cannot be read of a run is missing in its figures
        warnings.simplefilter("ignore", SteepestWarning)
        series = store.series(study.good.id)
        images = pictures.available(store, study.good.id, module)
    peers = [p.name for p in module.PEERS]
    return replace(study, drawings=drawings(m.key, module.FIGURES, peers, series), pictures=images)


def _load(key: str) -> tuple[ModuleType | None, str]:
    """Import a study; one that cannot be imported costs its own page's words, not the site."""
    if not registry.has_study(key):
        return None, ""
    try:
        module = registry.load_study(key)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    lacking = [name for name in CONTRACT if not hasattr(module, name)]
    return (None, f"it lacks {', '.join(lacking)}") if lacking else (module, "")


# ----------------------------------------------------------------------------------------------------------- index


def index(studies: Sequence[Study], problems: Sequence[str]) -> View:
    """What the index shows."""
    rows = [_row(s) for s in studies]
    groups = []
    for area, (title, says) in AREAS.items():
        inside = [row for row in rows if row["area"] == area]
        total = sum((row["tally"] for row in inside if row["tally"]), sketch.Tally())
        head = text.count(len(inside), "method") + (f" · {total.head} hold" if total.judged else "")
        groups.append({"area": area, "title": title, "says": says, "head": head, "rows": inside})
    shown = [s.good for s in studies if s.good is not None]
    total = sum((sketch.tally(r.claims) for r in shown), sketch.Tally())
    ratios = [(row["key"], row["ratio"]) for row in rows if row["ratio"] and row["ratio"].state != "none"]
    return {
        "groups": groups,
        "n_methods": len(rows),
        "n_runs": sum(len(s.runs) for s in studies),
        "provenance": _provenance(shown),
        "tally": total,
        "ratios": {state: sum(r.state == state for _, r in ratios) for state in ("wins", "ties", "loses")},
        "swarm": sketch.swarm(ratios),
        "chips": [(*chip, n) for chip in CHIPS if (n := sum(chip[0] in row["chips"] for row in rows))],
        "ticks": [(sketch.octave(2.0**k), f"{2**k}×" if k >= 0 else "½×") for k in range(-1, 6)],
        "beyond": [any(r.factor < 0.25 for _, r in ratios), any(r.factor > 64 for _, r in ratios)],
        "problems": problems,
        "first": next((s.method.key for s in studies if s.module is not None), None),
    }


def _provenance(shown: Sequence[RunRecord]) -> list[str]:
    if not shown:
        return []
    seeds = sorted({len(r.seeds) for r in shown})
    machines = sorted({machine(r.environment) for r in shown})
    torches = sorted({r.environment.libraries.get("torch", "unknown") for r in shown})
    return [
        f"{' and '.join(sorted({r.scale for r in shown}))} scale",
        f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else text.count(seeds[0], "seed"),
        machines[0] if len(machines) == 1 else f"{len(machines)} machines",
        f"torch {', '.join(torches)}",
        f"latest run {text.date(max(r.started for r in shown))}",
        f"{text.duration(sum(r.wall_seconds for r in shown))} in all",
    ]


def _row(study: Study) -> View:
    m, entry, good = study.method, bibliography.entry(study.method.bib), study.good
    ratio = text.ratio(good.against) if good and good.against else None
    count = sketch.tally(good.claims) if good else None
    peer = good.against.peer if good and good.against else ""
    spark = None
    if study.drawings:
        spark = sketch.sparkline(sketch.telling(study.drawings), peer, theme.slot_of_method(m.key))
    verdict = study.state
    if count is not None and study.state in ("ok", "stale"):
        verdict = "" if not count.judged else "holds" if count.holds == count.judged else "short"
    off = study.state if study.state in ("stale", "skipped", "error", "broken") else ""
    return {
        "key": m.key,
        "area": m.area,
        "sentence": m.sentence,
        "short": entry.short,
        "place": f"{entry.venue} {entry.year}",
        "slot": theme.slot_of_method(m.key),
        "state": study.state,
        "verdict": verdict,
        "chips": {verdict, ratio.state if ratio else "", "state" if off else ""},
        "off": off,
        "tally": count,
        "ratio": ratio,
        "strip": sketch.strip(ratio) if ratio and ratio.state != "none" else None,
        "spark": spark,
        "search": f"{m.key} {m.name} {m.sentence} {entry.short} {entry.venue} {entry.year} {peer} {m.area}".lower(),
        "trouble": trouble(study.latest, study.good),
        "problem": study.problem,
    }


def trouble(run: RunRecord | None, good: RunRecord | None = None) -> View | None:
    """Why `run` has no numbers: what failed or is missing, and the last good result."""
    if run is None or run.status == "ok":
        return None
    last = None if good is None else f"{text.day(good.started)}, {sketch.tally(good.claims).head} held"
    command = re.search(r"pip install .+$", run.reason)
    return {
        "status": run.status,
        "reason": run.reason if command is None else run.reason[: command.start()].rstrip(" :"),
        "command": command[0] if command else None,
        "name": run.reason.partition(":")[0],
        "message": run.reason.partition(":")[2].strip(),
        "after": text.duration(run.wall_seconds),
        "when": text.date(run.started),
        "traceback": run.traceback.rstrip(),
        "last": last,
        "measured": sum(c.value is not None for c in run.claims),
        "n_claims": len(run.claims),
    }


# ---------------------------------------------------------------------------------------------------------- method


def method(study: Study, before: Study | None, after: Study | None) -> View:
    """What the page of a method shows."""
    m, entry, module, good = study.method, bibliography.entry(study.method.bib), study.module, study.good
    says, purpose = _docstring(module)
    ratio = text.ratio(good.against) if good and good.against else None
    return {
        "method": m,
        "area": AREAS[m.area][0],
        "slot": theme.slot_of_method(m.key),
        "entry": entry,
        "plain": (says or m.sentence).replace("`", ""),
        "sentence": prose(says or m.sentence),
        "purpose": [prose(p) for p in purpose],
        "state": study.state,
        "trouble": trouble(study.latest, good),
        "stale": study.stale,
        "snippet": highlight(module.SNIPPET) if module else None,
        "when_not": [prose(w) for w in module.WHEN_NOT] if module else [],
        "good": good,
        "old_code": good.code[:7] if good else "",
        "new_code": study.code[:7] if study.stale else "",
        "problem": study.problem,
        "tally": sketch.tally(good.claims) if good else None,
        "ratio": ratio,
        "what": good.against.what if good and good.against else "",
        "measured": _measured(good) if good else "",
        "claims": [_claim(c, module.REASONS if module else {}) for c in (good.claims if good else _declared(module))],
        "interval_note": _interval_note(good) if good else "",
        "figures": [],
        "pictures": [],
        "peers": _peers(module, ratio, m) if module else [],
        "environment": _environment(good) if good else [],
        "command_line": _command(good) if good else f"steepest run {m.key}",
        "notes": good.notes if good else [],
        "seconds": _seconds(good) if good else [],
        "runs": [_run(r) for r in reversed(study.runs)],
        "shown": SHOWN,
        "history": side_by_side(study.runs),
        "before": before and before.method.key,
        "after": after and after.method.key,
    }


def _docstring(module: ModuleType | None) -> tuple[str, list[str]]:
    paragraphs = re.split(r"\n\s*\n", inspect.getdoc(module) or "") if module else [""]
    return " ".join(paragraphs[0].split()), [" ".join(p.split()) for p in paragraphs[1:]]


def _measured(run: RunRecord) -> str:
    seeds = text.count(len(run.seeds), "seed")
    took = text.duration(run.wall_seconds).replace(" ", "\u00a0")
    return f"{text.date(run.started)} · {run.scale} scale · {seeds} · {took}"


def _interval_note(run: RunRecord) -> str:
    seeds = text.count(len(run.seeds), "seed")
    return (
        f"Measured over {seeds}, intervals in parentheses. On each scale the shaded part is inside the bound, the "
        "dotted mark is the paper's number."
    )


def _declared(module: ModuleType | None) -> list[ClaimResult]:
    """Give the claims as declared, for a study without a good run."""
    return [
        ClaimResult(
            id=c.id, says=c.says, paper=c.paper, bound=c.bound, unit=c.unit, scales=c.scales, invariant=c.invariant,
            verdict=Verdict.UNMEASURED.value, reason="no run yet",
        )
        for c in (module.CLAIMS if module else [])
    ]  # fmt: skip


def _claim(c: ClaimResult, reasons: Mapping[str, str]) -> View:
    icon, word = ICONS[Verdict(c.verdict)]
    value = None if c.value is None else text.number(c.value)
    spread = text.span(c.interval, value) if value is not None and c.interval is not None else ""
    scales = c.scales.split()
    short = c.verdict in (Verdict.SHORT.value, Verdict.UNDECIDED.value)
    return {
        "id": c.id,
        "says": c.says,
        "invariant": c.invariant,
        "paper": c.paper,
        "bound": text.bound(c.bound, c.unit if len(c.unit) <= UNIT_SHOWN else ""),
        "value": None if value is None else text.with_unit(value, c.unit if len(c.unit) <= UNIT_SHOWN else ""),
        "unit": c.unit if len(c.unit) > UNIT_SHOWN else "",
        "interval": spread,
        "instead": c.reason or f"{' and '.join(scales)} scale only",
        "why": (c.reason or reasons.get(c.id, "")) if short else "",
        "icon": icon,
        "word": word,
        "gauge": sketch.gauge(c),
    }


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _peers(module: ModuleType, ratio: text.Ratio | None, m: registry.Method) -> list[View]:
    names = [(p.name, p.package) for p in module.PEERS]
    slots = theme.marks([n for n, _ in names])
    rows = []
    for name, package in names:
        top = package.partition(".")[0]
        version = next(iter(_distributions().get(top, [])), None)
        here = installed(top)
        number = importlib.metadata.version(version) if here and version else ""
        best = ratio is not None and ratio.rest.partition(" ")[2] == name
        against = "best peer" if best else "not the best here" if ratio else "no ratio at this scale"
        rows.append({
            "name": name, "package": package, "slot": slots[name].slot,
            "here": (f"installed, {number}" if number else "installed") if here else "not installed",
            "installed": here, "best": best, "against": against,
        })  # fmt: skip
    return rows


def _environment(run: RunRecord) -> list[tuple[str, str]]:
    e = run.environment
    seeds = ", ".join(map(str, run.seeds))
    return [
        ("Processor", f"{e.processor}, {text.count(e.cores, 'core')}, {text.count(e.threads, 'thread')}"),
        ("Accelerator", e.accelerator),
        ("System", f"{e.system}, Python {e.python}"),
        ("Libraries", ", ".join(f"{k} {v}" for k, v in e.libraries.items())),
        ("Revision", e.revision or "not from a checkout"),
        ("Code", run.code),
        ("Scale and seeds", f"{run.scale}, tuned on {run.seed}, reported on {seeds}"),
        ("Wall time", text.duration(run.wall_seconds)),
        ("Peak memory", text.memory(run.peak_memory_bytes)),
        *([("Options", ", ".join(f"{k}={v}" for k, v in run.options.items()))] if run.options else []),
    ]


def _command(run: RunRecord) -> str:
    parts = [f"steepest run {run.key} --scale {run.scale} --seed {run.seed} --seeds {len(run.seeds)}"]
    parts += [f"--max-steps {run.max_steps}"] if run.max_steps else []
    parts += [f"--option {k}={v}" for k, v in run.options.items()]
    return " ".join([*parts, "--fresh"])


def _seconds(run: RunRecord) -> list[View]:
    return [
        {"label": label, "median": text.duration(float(np.median(times))), "n": text.count(len(times), "time"),
         "total": text.duration(sum(times))}
        for label, times in run.seconds.items()
    ]  # fmt: skip


def _run(r: RunRecord) -> View:
    ratio = text.ratio(r.against) if r.against else None
    word = "" if r.status == "ok" else r.status
    return {
        "date": text.date(r.started),
        "revision": r.environment.revision or "none",
        "code": r.code[:7],
        "scale": r.scale,
        "tally": sketch.tally(r.claims),
        "status": word,
        "ratio": ratio,
        "wall": text.duration(r.wall_seconds),
    }


# --------------------------------------------------------------------------------------------------------- figures


def draw(study: Study) -> list[View]:
    """Draw a method's figures for its page; without the drawing's packages only their words and numbers."""
    found = []
    for i, d in enumerate(study.drawings):
        dots = d.figure.kind != "line"
        height = figures.dots_height(d) if dots else figures.HEIGHT_SMALL if i else figures.HEIGHT
        small = height if dots else figures.HEIGHT_SMALL if i else 320
        spec = figures.specification(d, height=height)
        width = WIDE_SMALL if i else WIDE
        labels = width - spec["usermeta"]["right"] >= 300  # otherwise the names stand above the figure
        wide = narrow = None
        with contextlib.suppress(MissingExtra):  # the page says which command adds it
            wide = Markup(_static(d, width, height, f"{d.figure.id}-w", labels=labels))
            narrow = Markup(_static(d, NARROW, small, f"{d.figure.id}-n", labels=False))
        found.append({
            "id": d.figure.id,
            "title": d.figure.title,
            "caption": d.caption,
            "sentence": d.sentence,
            "line": not dots,
            "labels": labels,
            "height": height,
            "small": small,
            "wide": wide,
            "narrow": narrow,
            "spec": script_json(spec),
            "names": [{"name": x.method, "slot": x.mark.slot} for x in d.lines if len(x.steps)],
            "table": _table(d),
        })  # fmt: skip
    return found


def draw_pictures(study: Study, folder: Path) -> list[View]:
    """Draw a method's pictures into `folder`, in both themes; one that fails costs itself, and the page says so."""
    found: list[View] = []
    for picture, arrays in study.pictures:
        view = {"id": picture.id, "title": picture.title, "caption": picture.caption, "alt": picture.alt,
                "width": 0, "height": 0, "light": None, "dark": None, "problem": ""}  # fmt: skip
        try:
            for dark in (False, True):
                ink = pictures.Ink(study.method.key, dark)
                file = folder / f"{study.method.key}-{picture.id}-{ink.name}.png"
                folder.mkdir(exist_ok=True)
                drawn = pictures.draw(picture, arrays, ink)
                file.write_bytes(drawn)
                view[ink.name] = file.name
                view["width"], view["height"] = pictures.size(drawn)
        except MissingExtra:
            break  # the page says which command adds it
        except Exception as error:
            view |= {"light": None, "dark": None, "problem": f"{type(error).__name__}: {error}"}
            log.warning("picture %s of %s could not be drawn: %s", picture.id, study.method.key, view["problem"])
        found.append(view)
    return found


def _static(d: Drawing, width: int, height: int, prefix: str, *, labels: bool) -> str:
    return figures.svg(
        figures.specification(d, width=width, height=height, labels=labels, points=STATIC_POINTS), prefix
    )


def _table(d: Drawing) -> View:
    """The figure as numbers."""
    if d.figure.kind != "line":
        return {
            "head": ["median", "least", "greatest", "seeds"],
            "rows": [
                (x.method, [text.number(float(f(x.last))) for f in (np.median, np.min, np.max)] + [str(len(x.last))])
                for x in d.lines
                if len(x.last)
            ],
        }
    lines = [x for x in d.lines if len(x.steps)]
    longest = max(lines, key=lambda x: float(x.steps[-1])).steps
    few = longest[thin(longest, 5, log=d.figure.log_x)]
    rows = []
    for x in lines:
        cells = []
        for s in few:
            inside = x.steps[0] <= s <= x.steps[-1]
            cells.append(text.number(float(np.interp(s, x.steps, x.median))) if inside else "no value")
        last = text.number(float(x.median[-1]))
        spread = text.span((float(x.low[-1]), float(x.high[-1])), last) if len(x.last) > 1 else "one seed"
        rows.append((x.method, [*cells, f"{last} ({spread})"]))
    return {"head": [f"at {text.number(float(s))}" for s in few] + ["last (10 to 90 %)"], "rows": rows}
