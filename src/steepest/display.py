"""What the command shows while studies run and after: live bars or plain lines, claim tables, the doctor's page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from steepest.core.records import ClaimResult, RunRecord

if TYPE_CHECKING:
    from rich.console import Console

    from steepest.studies.context import Event, Job

__all__ = ["make_display", "print_doctor", "print_record"]

MARKS = {
    "holds": "[cyan]■ holds[/]",
    "falls short": "[orange3]◩ falls short[/]",
    "undecided": "[yellow]◐ undecided[/]",
    "not measured at this scale": "[dim]_ not measured[/]",
    "reported": "[dim]· reported[/]",
}


def number(value: float | str) -> str:
    """Format a number for a table: three significant digits, powers of ten outside 1e-3 to 1e5."""
    if isinstance(value, str):
        return value
    if value != value:
        return "nan"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}".replace(",", " ")
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def duration(seconds: float) -> str:
    """Format a time as people say it."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _measured(claim: ClaimResult) -> str:
    if claim.value is None:
        return f"[dim]{escape(claim.reason)}[/]" if claim.reason else ""
    text = f"[bold]{number(claim.value)}[/] {escape(claim.unit)}"
    if claim.interval is not None:
        text += f" [dim]({number(claim.interval[0])} to {number(claim.interval[1])})[/]"
    if claim.verdict == "falls short" and claim.reason:
        text += f"\n[dim]{escape(claim.reason)}[/]"
    return text


def print_record(console: Console, record: RunRecord, *, again: bool = False) -> None:
    """Print one run: its claims as a table, or why there are none."""
    seeds = f"{len(record.seeds)} seed{'s' * (len(record.seeds) != 1)}"
    head = f"\n[bold]{record.key}[/] [dim]{record.scale}, {seeds}, {duration(record.wall_seconds)}[/]"
    console.print(head + (" [dim](finished before; --fresh runs it again)[/]" if again else ""))
    if record.status == "skipped":
        console.print(f"[yellow]skipped[/] {escape(record.reason)}")
        return
    if record.status == "error":
        console.print(f"[magenta]error[/] {escape(record.reason)}\n[dim]{escape(record.traceback.rstrip())}[/]")
        return
    table = Table(box=None, pad_edge=False, header_style="bold", expand=console.is_terminal)
    for column, ratio in (("claim", 4), ("paper", 3), ("measured", 3), ("bound", 1), ("verdict", 1)):
        table.add_column(column, overflow="fold", ratio=ratio, no_wrap=column in ("bound", "verdict"))
    for claim in record.claims:
        table.add_row(
            escape(claim.says), escape(claim.paper), _measured(claim), escape(claim.bound), MARKS[claim.verdict]
        )
    console.print(table)
    for note in record.notes:
        console.print(f"[dim]note: {escape(note)}[/]")


class _Lines:
    """Progress as plain lines, for output that is no terminal."""

    def __init__(self, console: Console, jobs: Sequence[Job], done: Mapping[str, RunRecord]) -> None:
        self.console, self.finished, self.total = console, list(done), len(jobs)
        self.said: dict[str, float] = {}

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to put away."""

    def event(self, job: Job, event: Event) -> None:
        """Print a line at start and end of a study, and every tenth of its way or 15 seconds between."""
        kind = event["event"]
        if kind == "start":
            self.said[job.key] = time.monotonic()
            self.console.print(f"{job.key}: started")
        elif kind == "progress":
            if time.monotonic() - self.said[job.key] > 15:
                self.said[job.key] = time.monotonic()
                self.console.print(f"{job.key}: {event['fraction']:.0%} {_numbers(event['numbers'])}".rstrip())
        elif kind == "done":
            self.finished.append(job.key)
            record = event["record"]
            word = "done" if record.status == "ok" else record.status
            count = f"{len(self.finished)} of {self.total}"
            self.console.print(f"{job.key}: {word} after {duration(record.wall_seconds)} ({count})")


class _Bars:
    """Progress as live bars: one per running study, and one for all."""

    def __init__(self, console: Console, jobs: Sequence[Job], done: Mapping[str, RunRecord]) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.finished = list(done)
        self.progress = Progress(
            TextColumn("{task.description:16}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[numbers]}[/]"),
            console=console,
        )
        self.all = self.progress.add_task("[bold]studies[/]", total=len(jobs), completed=len(done), numbers="")
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.progress.stop()

    def event(self, job: Job, event: Event) -> None:
        """Move the bars."""
        kind = event["event"]
        if kind == "start":
            self.tasks[job.key] = self.progress.add_task(job.key, total=1.0, numbers="")
        elif kind == "progress":
            numbers = _numbers(event["numbers"])
            self.progress.update(self.tasks[job.key], completed=event["fraction"], numbers=escape(numbers))
        elif kind == "done":
            self.finished.append(job.key)
            self.progress.update(self.tasks[job.key], completed=1.0, numbers=event["record"].status)
            self.progress.stop_task(self.tasks[job.key])
            self.progress.advance(self.all)


def _numbers(numbers: Mapping[str, float | str]) -> str:
    return "  ".join(f"{k} {number(v)}" for k, v in numbers.items())


def make_display(console: Console, jobs: Sequence[Job], done: Mapping[str, RunRecord]) -> _Bars | _Lines:
    """Choose bars on a terminal and lines elsewhere."""
    return (_Bars if console.is_terminal else _Lines)(console, jobs, done)


def print_doctor(console: Console) -> None:
    """Print versions, machine, and for every extra whether it is complete, with the command that adds it."""
    import importlib.metadata

    import torch

    from steepest.core.extras import extras
    from steepest.studies.provenance import environment

    here = environment()
    console.print(f"[bold]steepest {here.libraries['steepest']}[/]  Python {here.python}, {here.system}")
    console.print(f"processor    {here.processor}, {here.cores} cores, {here.threads} torch threads")
    console.print(f"accelerator  {here.accelerator}")
    blas = "MKL" if torch.backends.mkl.is_available() else "no MKL"
    compiler = _compiler()
    console.print(f"torch        {here.libraries['torch']} ({blas})")
    console.print(f"C compiler   {compiler or 'none: optimizers take their plain path'}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("extra", "state", "packages"):
        table.add_column(column, overflow="fold")
    for extra, packages in extras().items():
        found = {}
        for package in packages:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = ""
        missing = [p for p, v in found.items() if not v]
        state = "[cyan]complete[/]" if not missing else f'[yellow]pip install "steepest\\[{extra}]"[/]'
        table.add_row(extra, state, ", ".join(f"{p} {v or '[yellow]missing[/]'}" for p, v in found.items()))
    console.print("", table)


def _compiler() -> str | None:
    import os
    import shutil

    return next(
        (path for name in (os.environ.get("CC", ""), "cc", "gcc", "clang") if (path := shutil.which(name))), None
    )
