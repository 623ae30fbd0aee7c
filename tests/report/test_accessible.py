"""axe-core on the pages of the site: WCAG 2.2 AA and best practice, at two widths, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.test_browser import browser, visit  # noqa: F401

axe = pytest.importorskip("axe_playwright_python")
SCRIPT = (Path(axe.__file__).parent / "axe.min.js").read_text("utf-8")
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
@pytest.mark.parametrize("name", ["index.html", "method/adamp.html", "method/sophia.html", "method/mfac.html"])
def test_axe_finds_nothing(visit, name, width, scheme):  # noqa: F811
    tab, _ = visit(name, width, scheme, bypass_csp=True)
    if name == "method/adamp.html":
        tab.wait_for_selector("#fig-loss .plot.live")
    tab.evaluate(SCRIPT)
    found = tab.evaluate("tags => axe.run(document, {runOnly: {type: 'tag', values: tags}})", TAGS)
    assert [(v["id"], v["nodes"][0]["html"]) for v in found["violations"]] == []
