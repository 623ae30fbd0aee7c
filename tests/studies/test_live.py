from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from steepest.core.errors import SteepestWarning
from steepest.core.records import Store
from steepest.studies import live
from steepest.studies.context import Job
from steepest.studies.live import Beacon, live_runs
from tests.report.sample import record

JOBS = [Job("adamp"), Job("mfac"), Job("cbo")]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_run_tells_where_it_is_until_it_has_finished(store):
    with Beacon(store, JOBS, {"cbo": record("cbo")}, at_once=2) as beacon:
        (run,) = live_runs(store)
        assert [s.state for s in run.studies] == ["waiting", "waiting", "ok"]
        assert (run.scale, run.at_once, run.n_seeds, run.ended, run.lost) == ("quick", 2, 2, None, False)
        beacon.event(JOBS[0], {"event": "start"})
        beacon.event(JOBS[0], {"event": "measured", "claim": "x", "value": 1.0})
        beacon.event(JOBS[0], {"event": "progress", "fraction": 0.5, "numbers": {"loss": 0.25, "stage": "peers"}})
        beacon.event(JOBS[1], {"event": "start"})  # a start is written at once
        adamp, mfac, _ = live_runs(store)[0].studies
        assert (adamp.state, adamp.fraction, adamp.measured) == ("running", 0.5, 1)
        assert adamp.numbers == {"loss": 0.25, "stage": "peers"}
        assert adamp.curve == [(0.5, 0.25)]
        assert mfac.state == "running"
        bad = record("mfac", status="error", reason="ArithmeticError: one\ntwo")
        beacon.event(JOBS[1], {"event": "done", "record": bad})
        beacon.event(JOBS[0], {"event": "done", "record": record("adamp")})
    (run,) = live_runs(store)
    assert run.how == "finished"
    assert [s.state for s in run.studies] == ["ok", "error", "ok"]
    assert run.studies[1].run == bad.id
    assert run.log[-2].endswith("error: ArithmeticError: one")
    assert "hold" in run.log[-1]


def test_an_interrupt_is_told_and_the_beating_keeps_a_silent_study_alive(store, monkeypatch):
    monkeypatch.setattr(live, "LONGEST", 0.01)

    def interrupted():
        with Beacon(store, JOBS, {}, at_once=1) as beacon:
            first = live_runs(store)[0].updated
            while live_runs(store)[0].updated == first:
                assert not beacon._rest.wait(0.005)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert live_runs(store)[0].how == "interrupted"


def test_a_curve_keeps_its_length_and_its_ends(store):
    with Beacon(store, JOBS[:1], {}, at_once=1) as beacon:
        beacon.event(JOBS[0], {"event": "start"})
        for i in range(5001):
            beacon.event(JOBS[0], {"event": "progress", "fraction": i / 5000, "numbers": {"loss": 1.0 - i / 5000}})
        curve = beacon.state.studies[0].curve
    assert live.CURVE / 2 <= len(curve) <= live.CURVE
    assert curve[0] == (0.0, 1.0)
    assert curve[-1][0] > 0.98
    assert all(abs(x + y - 1) < 1e-12 for x, y in curve)


def test_a_killed_run_is_told_from_one_that_is_only_silent(store):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with Beacon(store, JOBS, {}, at_once=1) as beacon:
        alive = beacon.state.model_copy()
    here = {"ended": None, "how": ""}
    assert not alive.model_copy(update=here | {"pid": os.getpid()}).lost
    assert alive.model_copy(update=here | {"pid": gone.pid}).lost
    assert not alive.model_copy(update=here | {"pid": gone.pid, "host": platform.node() + "-other"}).lost


def test_a_new_run_clears_away_ended_ones_and_leaves_those_that_speak(store):
    with Beacon(store, JOBS, {}, at_once=1):
        with Beacon(store, JOBS[:1], {}, at_once=1):
            assert [len(r.studies) for r in live_runs(store)] == [1, 3]
        with Beacon(store, JOBS[:2], {}, at_once=1):
            assert [len(r.studies) for r in live_runs(store)] == [2, 3]
    assert {r.how for r in live_runs(store)} == {"finished"}
    old = live_runs(store)[0].model_copy(update={"ended": None, "updated": datetime.now(UTC) - timedelta(days=2)})
    for path in (store.root / "live").iterdir():
        path.write_text(old.model_dump_json())
    (store.root / "live" / "damaged.json").write_text("{")
    with Beacon(store, JOBS[:1], {}, at_once=1):
        assert len(live_runs(store)) == 1


def test_a_store_that_cannot_be_written_costs_the_live_page_and_nothing_else(store):
    store.root.parent.mkdir(parents=True, exist_ok=True)
    store.root.write_text("a file where the folder should be")
    with pytest.warns(SteepestWarning, match="no live page"), Beacon(store, JOBS, {}, at_once=1) as beacon:
        beacon.event(JOBS[0], {"event": "start"})
    assert live_runs(store) == []
