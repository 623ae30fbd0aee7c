from __future__ import annotations

import errno
import json
import math
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from steepest.core import records
from steepest.core.errors import SteepestWarning
from steepest.core.records import ClaimResult, Environment, RunRecord, Series, Store, run_id, write_atomically
from tests import processes

ENVIRONMENT = Environment(
    python="3.11", system="Linux", processor="cpu", cores=2, threads=1, accelerator="none", libraries={"torch": "2"}
)


def record(key="adamp", minute=0, **changes) -> RunRecord:
    started = datetime(2026, 11, 24, 14, minute, tzinfo=UTC)
    values = {
        "id": run_id(key, "quick", 0, started),
        "key": key,
        "area": "optim",
        "scale": "quick",
        "seed": 0,
        "seeds": [1, 2],
        "status": "ok",
        "claims": [
            ClaimResult(
                id="a", says="s", paper="p", bound="<= 1", scales="quick", verdict="holds", value=math.inf,
                interval=(-math.inf, math.nan),
            )
        ],
        "started": started,
        "wall_seconds": 1.0,
        "peak_memory_bytes": 1,
        "code": "abc",
        "environment": ENVIRONMENT,
    }  # fmt: skip
    return RunRecord(**(values | changes))


def test_what_is_written_is_read_back(tmp_path):
    store = Store(tmp_path / "store")
    series = [Series(name="loss", method="ours", seed=1, steps=[0, 1], values=[2.0, None])]
    folder = store.write(record(), series)
    (back,) = store.runs()
    assert back.model_dump_json() == record(id=back.id).model_dump_json()
    assert back.claims[0].value == math.inf
    assert math.isnan(back.claims[0].interval[1])
    assert store.series(back.id) == series
    assert sorted(p.name for p in folder.iterdir()) == ["figures", "result.json", "series.jsonl"]
    json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail)  # strict JSON, no NaN


def test_runs_come_oldest_first_and_latest_filters(tmp_path):
    store = Store(tmp_path)
    for minute in (5, 1, 3):
        store.write(record(minute=minute, scale="full" if minute == 5 else "quick"))
    assert [r.started.minute for r in store.runs()] == [1, 3, 5]
    assert store.latest("adamp").started.minute == 5
    assert store.latest("adamp", scale="quick").started.minute == 3
    assert store.latest("sophia") is None


def test_damaged_and_foreign_things_are_skipped_with_a_warning_that_names_them(tmp_path):
    store = Store(tmp_path)
    good, cut, alien, newer, renamed = (store.write(record(minute=m)) for m in range(5))
    (cut / "result.json").write_bytes((cut / "result.json").read_bytes()[:100])
    (alien / "result.json").unlink()
    data = json.loads((newer / "result.json").read_text()) | {"schema_version": 99}
    (newer / "result.json").write_text(json.dumps(data))
    renamed.rename(tmp_path / "copied-by-hand")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".tmp-half").mkdir()
    (tmp_path / "bench").mkdir()
    with pytest.warns(SteepestWarning) as caught:
        assert [r.id for r in store.runs()] == [good.name]
    texts = [str(w.message) for w in caught]
    assert len(texts) == 5
    for name in (cut.name, alien.name, newer.name, "copied-by-hand", "notes.txt"):
        assert any(name in t for t in texts)
    assert sorted(store.damaged()) == sorted(texts)


def test_damaged_series_cost_only_their_lines(tmp_path):
    store = Store(tmp_path)
    folder = store.write(
        record(), [Series(name="a", steps=[0], values=[1.0]), Series(name="b", steps=[0], values=[2.0])]
    )
    lines = (folder / "series.jsonl").read_text().splitlines()
    (folder / "series.jsonl").write_text(lines[0] + "\n" + lines[1][:10] + "\n")
    with pytest.warns(SteepestWarning, match="skipped 1 damaged lines"):
        assert [s.name for s in store.series(folder.name)] == ["a"]
    (folder / "series.jsonl").unlink()
    with pytest.warns(SteepestWarning, match=r"series\.jsonl"):
        assert store.series(folder.name) == []


def test_a_full_disk_leaves_nothing_behind_and_costs_no_finished_result(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.write(record())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write(record(minute=1))
    monkeypatch.undo()
    assert len(list(store.runs())) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_atomic_writing_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    monkeypatch.setattr(records.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def write_many(root: str, key: str) -> None:
    for minute in range(20):
        Store(root).write(record(key, minute))


@pytest.mark.slow
def test_two_processes_write_to_one_store(tmp_path):
    others = [processes.context().Process(target=write_many, args=(str(tmp_path), key)) for key in ("adamp", "sophia")]
    for p in others:
        p.start()
    for p in others:
        p.join()
        assert p.exitcode == 0
    runs = list(Store(tmp_path).runs())
    assert len(runs) == 40
    assert len({r.id for r in runs}) == 40


def test_ids_sort_by_time_and_the_same_id_is_refused(tmp_path):
    now = datetime.now(UTC)
    assert run_id("a-b", "quick", 3, now) < run_id("a-b", "quick", 3, now + timedelta(seconds=1))
    store = Store(tmp_path)
    store.write(record(id="x"))
    with pytest.raises(FileExistsError, match="x is already"):
        store.write(record(id="x"))
    assert [p for p in Path(tmp_path).iterdir() if p.name.startswith(".")] == []


def test_a_store_that_is_not_there_is_empty(tmp_path):
    assert list(Store(tmp_path / "nothing").runs()) == []
    assert not os.path.exists(tmp_path / "nothing")
