"""The log of what a rule was told, and its replay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from steepest.core.errors import kind_error, value_error
from steepest.federated.engine import ClientInfo, Failure, Task, Update

__all__ = ["EventLog", "read_events"]

_PER_FILE = 256


class EventLog:
    """Keeps events in memory, or in files of a folder, `_PER_FILE` to each."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.kept, self.files = folder, list[dict[str, Any]](), 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if next(folder.glob("events-*.pt"), None) is not None:
                raise value_error("record", "a folder without an older log", str(folder))

    def start(self, infos: Sequence[ClientInfo], seed: int) -> None:
        """Note the beginning."""
        self._add({"event": "start", "clients": [asdict(info) for info in infos], "seed": seed})

    def update(self, update: Update, now: float) -> None:
        """Note an update."""
        self._add({"event": "update", "now": now, **{**vars(update), "task": asdict(update.task)}})

    def failure(self, failure: Failure) -> None:
        """Note a failure."""
        self._add({"event": "failure", "now": failure.time, **asdict(failure)})

    def timer(self, tag: str, now: float) -> None:
        """Note a timer."""
        self._add({"event": "timer", "now": now, "tag": tag})

    def _add(self, event: dict[str, Any]) -> None:
        self.kept.append(event)
        if self.folder is not None and len(self.kept) == _PER_FILE:
            self._spill()

    def _spill(self) -> None:
        assert self.folder is not None
        torch.save(self.kept, self.folder / f"events-{self.files:06}.pt")
        self.kept, self.files = [], self.files + 1

    def close(self) -> list[dict[str, Any]] | Path:
        """The events, or the folder where they are."""
        if self.folder is None:
            return self.kept
        if self.kept:
            self._spill()
        return self.folder


def read_events(source: object) -> Iterator[dict[str, Any]]:
    """Events of a result, a folder or a list, with their dataclasses put back."""
    events = getattr(source, "events", source) if not isinstance(source, (str, Path, list)) else source
    if isinstance(events, (str, Path)):
        files = sorted(Path(events).glob("events-*.pt"))
        if not files:
            raise value_error("result_or_path", "a folder with a log of events", str(events))
        for file in files:
            yield from map(_read, torch.load(file, weights_only=True))
    elif isinstance(events, list):
        yield from map(_read, events)
    else:
        raise kind_error("result_or_path", 'a result recorded with record=("events",) or the path of a log', source)


def _read(event: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(event)
    kind = fields.pop("event")
    if kind == "start":
        infos = [ClientInfo(**{**info, "draws": tuple(info["draws"])}) for info in fields["clients"]]
        return {"event": kind, "clients": infos, "seed": fields["seed"]}
    if kind == "timer":
        return dict(event)
    now = fields.pop("now")
    made = (Update if kind == "update" else Failure)(**{**fields, "task": Task(**fields["task"])})
    return {"event": kind, "now": now, kind: made}
