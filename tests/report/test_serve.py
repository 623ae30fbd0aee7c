from __future__ import annotations

import http.client
import json
import threading
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from steepest.core.records import Store
from steepest.report import serve
from steepest.report.live import live_view
from steepest.report.serve import make_server
from steepest.report.site import read_runs
from steepest.studies.context import Job
from steepest.studies.live import Beacon
from tests.report import sample

JOBS = [Job(k) for k in ("adamp", "sophia", "mfac", "cbo")]


@pytest.fixture
def served(store: Store):
    server = make_server(store)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, path, method="GET", **headers):
    with closing(http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read()


@contextmanager
def events(server):
    """Yield what the stream says, one by one."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)) as connection:
        connection.request("GET", "/events")
        with closing(connection.getresponse()) as answer:
            assert answer.getheader("Content-Type") == "text/event-stream"
            lines = (line.decode() for line in iter(answer.readline, b""))
            yield (json.loads(line[6:]) for line in lines if line.startswith("data: {"))


def test_pages_are_those_of_the_written_site_with_a_way_to_the_live_page(served):
    status, kind, index = ask(served, "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b'href="live.html"' in index
    assert ask(served, "/index.html?x=1")[2] == index
    page = ask(served, "/method/adamp.html")[2]
    assert b"2.345" in page or b"2.35" in page
    assert b'href="../live.html"' in page
    assert ask(served, "/static/site.css")[1].startswith("text/css")
    assert ask(served, "/pictures/adamp-field-light.png")[:2] == (200, "image/png")
    assert b"Nothing is running" in ask(served, "/live.html")[2]  # hidden until the script finds it so


def test_nothing_else_is_given_away(served):
    for path in (
        "/nothing.html",
        "/method/nothing.html",
        "/static/../site.py",
        "/pictures/../../x.png",
        "/pictures/%2e.png",
    ):
        assert ask(served, path)[0] == 404, path
    assert ask(served, "/", Host="steepest.example:80")[0] == 403
    status, _, body = ask(served, "/", "HEAD")
    assert (status, body) == (200, b"")
    assert ask(served, "/", "POST")[0] == 501


def test_a_page_changes_when_the_store_does(served, store):
    before = ask(served, "/method/bsvrb.html")[2]
    assert ask(served, "/method/bsvrb.html")[2] == before
    target = store.write(sample.record("bsvrb", id="20261124T150000-bsvrb-quick-s0-fffff1"))
    try:
        after = ask(served, "/method/bsvrb.html")[2]
        assert b"Earlier runs" in after
        assert b"Earlier runs" not in before
    finally:
        for part in sorted(target.rglob("*"), reverse=True):
            part.rmdir() if part.is_dir() else part.unlink()
        target.rmdir()


def test_the_stream_says_what_runs(served, store, monkeypatch):
    monkeypatch.setattr(serve, "EVERY", 0.02)
    with events(served) as stream:
        assert next(stream)["state"] in ("idle", "finished")
        with Beacon(store, JOBS, {}, at_once=2) as beacon:
            beacon.event(JOBS[0], {"event": "start"})
            while (state := next(stream))["studies"][0]["state"] != "running":
                assert state["state"] == "running"
            assert state["studies"][1]["state"] == "waiting"
        while (state := next(stream))["state"] == "running":
            pass
        assert state["state"] == "finished"


def test_the_view_has_words_for_every_state(store):
    runs, _ = read_runs(store)
    good = next(r for r in runs if r.key == "adamp")
    bad = next(r for r in runs if r.status == "error")
    skipped = next(r for r in runs if r.status == "skipped")
    with Beacon(store, JOBS, {}, at_once=2) as beacon:
        for job, made in zip(JOBS, (good, bad, skipped)):
            beacon.event(job, {"event": "start"})
            beacon.event(job, {"event": "done", "record": made})
        beacon.event(JOBS[3], {"event": "start"})
        for share in (0.25, 0.5):
            beacon.event(
                JOBS[3], {"event": "progress", "fraction": share, "numbers": {"loss": 1 - share, "seed": "2 of 3"}}
            )
        beacon.event(JOBS[3], {"event": "start"})
        beacon.event(JOBS[3], {"event": "progress", "fraction": 0.25, "numbers": {"loss": 10.0, "part": "peers"}})
        beacon._write()
        view = live_view(store, runs)
        assert view["state"] == "running"
        ok, error, skip, now = view["studies"]
        assert ok["head"] == "2 of 5 hold" or "hold" in ok["head"]
        assert ok["ratio"].endswith("fewer steps")
        assert (error["trouble"]["name"], skip["trouble"]["command"]) == (
            "FloatingPointError",
            'pip install "steepest[eeg]"',
        )
        assert now["numbers"] == [("loss", "10"), ("part", "peers")]
        late = live_view(store, runs, now=datetime.now(UTC) + timedelta(seconds=30))
        assert (late["state"], late["silent"]) == ("silent", "30 s")
    assert live_view(store, runs)["left"] == ""
