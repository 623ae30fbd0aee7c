"""The result store: one folder a run, whole or absent.

``<store>/<run id>/result.json``, ``series.jsonl`` and, for pictures, ``arrays/<name>.npz``. A run is written to a
hidden temporary folder and renamed, so that a killed run never leaves a half result; several processes may write at
once. What cannot be read is skipped with a warning that names it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from steepest.core.errors import SteepestWarning

__all__ = ["Against", "ClaimResult", "Environment", "RunRecord", "Series", "Store", "write_atomically"]

SCHEMA: Literal[1] = 1
RESERVED = {"bench", "live", "mlflow", "site", "tensorboard"}


def _plain(value: float | None) -> float | str | None:
    """JSON has no infinities: write them, and NaN, as words."""
    return value if value is None or math.isfinite(value) else str(value)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)


class ClaimResult(_Record):
    """A claim, what was measured, and the verdict."""

    id: str
    says: str
    paper: str
    bound: str
    unit: str = ""
    scales: str
    invariant: bool = False
    value: float | None = None
    interval: tuple[float, float] | None = None
    verdict: str
    reason: str = ""

    @field_serializer("value")
    def _value(self, value: float | None) -> float | str | None:
        return _plain(value)

    @field_serializer("interval")
    def _interval(self, interval: tuple[float, float] | None) -> list[float | str | None] | None:
        return None if interval is None else [_plain(x) for x in interval]


class Against(_Record):
    """The method beside the best peer: `factor` > 1 means that the method is ahead by that factor."""

    peer: str
    factor: float
    interval: tuple[float, float] | None = None
    ahead: str = "lower error"
    behind: str = "higher error"
    what: str = ""


class Environment(_Record):
    """Where a run was made."""

    python: str
    system: str
    processor: str
    cores: int
    threads: int
    accelerator: str
    libraries: dict[str, str]
    revision: str | None = None


class RunRecord(_Record):
    """Everything about one run of a study but its series."""

    schema_version: Literal[1] = SCHEMA
    id: str
    key: str
    area: str
    scale: str
    seed: int
    seeds: list[int]
    options: dict[str, str] = Field(default_factory=dict)
    max_steps: int | None = None
    data: str | None = None
    status: Literal["ok", "error", "skipped"]
    reason: str = ""
    traceback: str = ""
    claims: list[ClaimResult]
    against: Against | None = None
    seconds: dict[str, list[float]] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    started: datetime
    wall_seconds: float
    peak_memory_bytes: int
    code: str
    environment: Environment

    @field_validator("started")
    @classmethod
    def _aware(cls, value: datetime) -> datetime:
        return value if value.tzinfo else value.replace(tzinfo=UTC)


class Series(_Record):
    """Values of one quantity against steps, for one method and seed."""

    name: str
    method: str | None = None
    seed: int | None = None
    steps: list[float]
    values: list[float | None]


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class Store:
    """A folder of runs.

    Parameters
    ----------
    root : path
        Made when the first run is written.

    Examples
    --------
    >>> import tempfile
    >>> list(Store(tempfile.mkdtemp()).runs())
    []
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def write(
        self,
        record: RunRecord,
        series: Iterable[Series] = (),
        arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> Path:
        """Put a run into the store in one step, and return its folder.

        Raises
        ------
        OSError
            It could not be written (a full disk, say); nothing of it is left behind.
        FileExistsError
            A run of this id is there.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self.root, prefix=".tmp-"))
        try:
            with open(temporary / "series.jsonl", "w", encoding="utf-8") as file:
                for s in series:
                    file.write(json.dumps(s.model_dump(), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            for name, group in (arrays or {}).items():
                (temporary / "arrays").mkdir(exist_ok=True)
                np.savez_compressed(temporary / "arrays" / f"{name}.npz", **dict[str, Any](group))
            (temporary / "figures").mkdir()
            text = json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False)
            write_atomically(temporary / "result.json", text + "\n")
            temporary.chmod(0o755)
            target = self.root / record.id
            if target.exists():
                raise FileExistsError(f"a run with id {record.id} is already in {self.root}")
            os.rename(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return target

    def runs(self) -> Iterator[RunRecord]:
        """Read all runs, oldest first; what is damaged or foreign is skipped with a warning that names it."""
        found = [r for r in (self._read(p) for p in self._folders()) if r is not None]
        yield from sorted(found, key=lambda r: (r.started, r.id))

    def _folders(self) -> Iterator[Path]:
        if self.root.is_dir():
            yield from (p for p in sorted(self.root.iterdir()) if not p.name.startswith(".") and p.name not in RESERVED)

    def _read(self, folder: Path) -> RunRecord | None:
        try:
            record = RunRecord.model_validate_json((folder / "result.json").read_bytes())
            if record.id != folder.name:
                raise ValueError(f"its id says {record.id}")
            return record
        except FileNotFoundError:
            problem = "it holds no result.json" if folder.is_dir() else "it is no folder of a run"
        except NotADirectoryError:
            problem = "it is no folder of a run"
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"its result.json is damaged ({'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']})"
        except (OSError, ValueError) as error:
            problem = str(error)
        warnings.warn(f"skipped {folder}: {problem}", SteepestWarning, stacklevel=3)
        return None

    def damaged(self) -> list[str]:
        """The warnings that reading the store gives, as texts."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(self.runs())
        return [str(w.message) for w in caught if issubclass(w.category, SteepestWarning)]

    def series(self, run_id: str) -> list[Series]:
        """Read a run's series; lines that cannot be read are skipped with one warning."""
        path = self.root / run_id / "series.jsonl"
        found, bad = [], 0
        try:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    found.append(Series.model_validate_json(line))
                except ValidationError:
                    bad += 1
        except (OSError, UnicodeDecodeError) as error:
            warnings.warn(f"skipped {path}: {error}", SteepestWarning, stacklevel=2)
        if bad:
            warnings.warn(f"skipped {bad} damaged lines of {path}", SteepestWarning, stacklevel=2)
        return found

    def arrays(self, run_id: str, name: str) -> dict[str, np.ndarray] | None:
        """Read arrays that a run kept; None where it kept none, or (with a warning) where they cannot be read."""
        path = self.root / run_id / "arrays" / f"{name}.npz"
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as group:
                return {key: group[key] for key in group.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            warnings.warn(f"skipped {path}: {error}", SteepestWarning, stacklevel=2)
            return None

    def latest(self, key: str, **wanted: Any) -> RunRecord | None:
        """Find the newest run of a study whose fields equal `wanted`."""
        hits = [r for r in self.runs() if r.key == key and all(getattr(r, k) == v for k, v in wanted.items())]
        return hits[-1] if hits else None


def run_id(key: str, scale: str, seed: int, started: datetime) -> str:
    """Make a run's id: sorts by time, says what it is, unique among processes."""
    stamp = started.astimezone(UTC).strftime("%Y%m%dT%H%M%S%f")[:-3]
    return re.sub(r"[^A-Za-z0-9-]", "", f"{stamp}-{key}-{scale}-s{seed}-{os.urandom(3).hex()}")
