"""The live page in a real browser: what a person sees while studies run, when they end, and when the server goes."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager

import pytest

from steepest.core.records import Store
from steepest.report import serve
from steepest.studies.context import Job
from steepest.studies.live import Beacon
from tests.report import sample
from tests.report.test_browser import browser  # noqa: F401

playwright = pytest.importorskip("playwright.sync_api")
KEYS = ("adamp", "sophia", "mfac", "cbo", "harpg", "adahessian")


@contextmanager
def served(store, port=0):
    server = serve.make_server(store, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def live_store(studies, tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture
def tab(browser):  # noqa: F811
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab, said = context.new_page(), []
    tab.on("pageerror", lambda error: said.append(str(error)))
    yield tab
    assert said == []
    context.close()


def finish(beacon, store, job, **changes):
    made = sample.record(job.key, **changes)
    store.write(made)
    beacon.event(job, {"event": "done", "record": made})


def test_a_run_can_be_followed_from_its_start_to_its_end(tab, live_store, monkeypatch):
    monkeypatch.setattr(serve, "EVERY", 0.05)
    jobs = [Job(k) for k in KEYS]
    expect = playwright.expect
    with served(live_store) as port:
        tab.goto(f"http://127.0.0.1:{port}/live.html")
        expect(tab.locator("#idle")).to_be_visible()
        with Beacon(live_store, jobs, {}, at_once=2) as beacon:
            expect(tab.locator("#head")).to_have_text("0 of 6 studies finished")
            assert tab.locator("#wait li").count() == 6
            for job in jobs[:3]:
                beacon.event(job, {"event": "start"})
            beacon.event(jobs[0], {"event": "progress", "fraction": 0.4, "numbers": {"loss <i>": 0.5, "peer": 0.7}})
            finish(beacon, live_store, jobs[1], status="error", reason="FloatingPointError: <b>",
                   traceback="Traceback\n<b>", claims=sample.claims("sophia", blank=True), factor=None)  # fmt: skip
            finish(beacon, live_store, jobs[2], status="skipped", factor=None,
                   claims=sample.claims("mfac", blank=True),
                   reason='it needs x: pip install "steepest[eeg]"')  # fmt: skip
            expect(tab.locator("#head")).to_have_text("2 of 6 studies finished")
            assert tab.title().startswith("2/6")
            card = tab.locator("#now .card")
            expect(card).to_have_count(1)
            assert card.locator(".lab").all_inner_texts() == ["loss <i>", "peer", "claims measured"]
            assert tab.locator("#prog i.err").count() == 1
            assert tab.locator("#prog i.skp").count() == 1
            assert tab.locator("#done li").all_inner_texts()[0].startswith("mfac")
            assert tab.locator("#done details summary").inner_text() == "Traceback of sophia"
            assert 'pip install "steepest[eeg]"' in tab.locator("#done .cmdline").inner_text()
            tab.locator("#pause").click()
            finish(beacon, live_store, jobs[0])
            tab.wait_for_timeout(300)
            expect(tab.locator("#head")).to_have_text("2 of 6 studies finished")
            tab.locator("#pause").click()
            expect(tab.locator("#head")).to_have_text("3 of 6 studies finished")
            assert re.search(r"\d of \d hold", tab.locator("#done li").first.inner_text())
            for job in jobs[3:]:
                finish(beacon, live_store, job)
        expect(tab.locator("#head")).to_have_text("All 6 studies finished")
        assert tab.title().startswith("Done")
        tab.locator("#done a").first.click()
        expect(tab.locator("h1")).to_be_visible()
        assert "method/" in tab.url
        tab.locator('nav a:has-text("Live")').click()
        expect(tab.locator("#head")).to_have_text("All 6 studies finished")


def test_a_server_that_goes_is_missed_and_found_again(tab, live_store, monkeypatch):
    monkeypatch.setattr(serve, "EVERY", 0.05)
    with Beacon(live_store, [Job("adamp")], {}, at_once=1):
        with served(live_store) as port:
            tab.goto(f"http://127.0.0.1:{port}/live.html")
            playwright.expect(tab.locator("#head")).to_have_text("0 of 1 study finished")
        playwright.expect(tab.locator("#lost")).to_be_visible(timeout=20_000)
        assert tab.locator("#lost-what").inner_text().startswith("No word from the server for")
        more = tab.locator("#lost-more").inner_text()
        assert re.search(r"the state at \d\d:\d\d:\d\d UTC\. Studies go on without this page\. Trying again", more)
        with served(live_store, port):
            tab.locator("#retry").click()
            playwright.expect(tab.locator("#lost")).to_be_hidden(timeout=10_000)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_live_page_never_scrolls_sideways(tab, live_store, width):
    jobs = [Job(k) for k in KEYS]
    tab.set_viewport_size({"width": width, "height": 900})
    with served(live_store) as port, Beacon(live_store, jobs, {}, at_once=2) as beacon:
        finish(beacon, live_store, jobs[0])
        for job in jobs[1:3]:
            beacon.event(job, {"event": "start"})
        beacon.event(
            jobs[1], {"event": "progress", "fraction": 0.4, "numbers": {"a rather long name of a number": 0.5}}
        )
        tab.goto(f"http://127.0.0.1:{port}/live.html")
        playwright.expect(tab.locator("#now .card")).to_have_count(2)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
