"""axe-core on the pages of the site: WCAG 2.2 AA and best practice, at two widths, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from steepest.core.records import Store
from steepest.studies.context import Job
from steepest.studies.live import Beacon
from tests.report import sample
from tests.report.test_browser import browser, visit  # noqa: F401
from tests.report.test_live_page import KEYS, finish, served

axe = pytest.importorskip("axe_playwright_python")
SCRIPT = (Path(axe.__file__).parent / "axe.min.js").read_text("utf-8")
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
@pytest.mark.parametrize("name", ["index.html", "method/adamp.html", "method/sophia.html", "method/mfac.html"])
def test_axe_finds_nothing(visit, name, width, scheme):  # noqa: F811
    tab, _ = visit(name, width, scheme, bypass_csp=True)
    if name == "method/adamp.html":
        tab.wait_for_selector("#fig-loss .plot.live")
    assert violations(tab) == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_axe_finds_nothing_on_the_live_page_while_studies_run(studies, browser, tmp_path, width, scheme):  # noqa: F811
    store, jobs = Store(tmp_path / "results"), [Job(k) for k in KEYS]
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    with served(store) as port, Beacon(store, jobs, {}, at_once=2) as beacon:
        finish(beacon, store, jobs[0])
        finish(beacon, store, jobs[1], status="error", reason="FloatingPointError: at step 3", traceback="Traceback",
               claims=sample.claims("sophia", blank=True), factor=None)  # fmt: skip
        finish(beacon, store, jobs[2], status="skipped", factor=None, claims=sample.claims("mfac", blank=True),
               reason='it needs x: pip install "steepest[eeg]"')  # fmt: skip
        for job in jobs[3:5]:
            beacon.event(job, {"event": "start"})
        beacon.event(jobs[3], {"event": "progress", "fraction": 0.4, "numbers": {"loss": 0.5, "peer": 0.7}})
        tab = context.new_page()
        tab.goto(f"http://127.0.0.1:{port}/live.html")
        tab.wait_for_selector("#now .card:nth-child(2)")
        assert violations(tab) == []
    context.close()


def violations(tab):
    tab.evaluate(SCRIPT)
    found = tab.evaluate("tags => axe.run(document, {runOnly: {type: 'tag', values: tags}})", TAGS)
    return [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]]
