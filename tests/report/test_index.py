"""The index in a real browser: search, filters, order, keys, and what it costs with 31 methods and 10 runs each."""

from __future__ import annotations

import statistics

import pytest

from steepest.report import pages
from steepest.report.site import write_site
from steepest.studies import registry
from tests.report import sample
from tests.report.test_browser import browser, visit  # noqa: F401

ROWS = "[...document.querySelectorAll('.row')].filter(r => r.checkVisibility())"
SHOWN = ROWS + ".map(r => r.querySelector('a').textContent)"


@pytest.fixture(scope="module")
def large(studies, tmp_path_factory):
    """The site of 31 methods with 10 runs each, all stale, without the figures of pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "has_study", lambda key: True)
        patch.setattr(pages, "draw", lambda study: [])
        return write_site(sample.fill_all(tmp_path_factory.mktemp("large") / "store", n_runs=10))


def test_the_large_index_keeps_its_budget(browser, large):  # noqa: F811
    assert (large / "index.html").stat().st_size <= 120_000
    assert (large / "static" / "site.css").stat().st_size <= 36_000
    times, context = [], browser.new_context(viewport={"width": 1280, "height": 900})
    for _ in range(3):
        tab, asked = context.new_page(), []
        tab.on("request", lambda request, asked=asked: asked.append(request.url))
        tab.goto((large / "index.html").as_uri())
        tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        times.append(tab.evaluate("Math.max(performance.getEntriesByName('first-contentful-paint')[0].startTime,"
                                  "performance.getEntriesByType('navigation')[0].loadEventEnd)"))  # fmt: skip
    assert statistics.median(times) < 1000
    assert [url.rpartition("/")[2] for url in asked if not url.startswith("data:")] == ["index.html", "site.css"]
    assert tab.evaluate("document.getElementsByTagName('*').length") <= 1600
    assert tab.evaluate("[...document.scripts].reduce((n, s) => n + s.textContent.length, 0)") <= 10_000
    assert tab.locator(".row").count() == 31
    context.close()


def test_a_page_of_the_large_site_shows_ten_runs_and_hides_the_rest_of_more(browser, large, page):  # noqa: F811
    text = (large / "method" / "cbo.html").read_text("utf-8")
    assert text.count('class="nb num run"') == 10
    assert "Show the other" not in text
    assert "<summary>Show the other 2</summary>" in page("adamp")


def test_search_filters_and_order_narrow_the_rows_and_live_in_the_address(visit):  # noqa: F811
    tab, said = visit("index.html", 1280)
    tab.fill("#q", "AdamW curvature")
    assert tab.evaluate(SHOWN) == ["sophia"]
    tab.fill("#q", "adam")
    assert tab.evaluate(SHOWN) == ["adamp", "adahessian", "sophia", "cbo"]
    assert tab.inner_text("#count") == tab.text_content("#status") == "4 of 31 methods"
    tab.click('[data-v="loses"]')
    assert tab.evaluate(SHOWN) == ["adahessian"]
    tab.click('[data-v="state"]')
    assert tab.evaluate(SHOWN) == ["adahessian", "sophia"]
    assert tab.get_attribute('[data-v="loses"]', "aria-pressed") == "false"
    tab.select_option("#sort", "name")
    assert tab.url.endswith("#q=adam&v=state&sort=name")
    again = tab.context.new_page()
    again.goto(tab.url)
    assert again.evaluate(SHOWN) == ["adahessian", "sophia"]
    assert again.input_value("#q") == "adam"
    tab.click('[data-v="state"]')
    tab.fill("#q", "")
    tab.click('[data-area="particles"]')
    tab.click('[data-area="constrained"]')
    assert tab.evaluate(SHOWN) == ["cbo", "sketched-newton"]
    tab.click('[data-area="constrained"]')
    assert tab.evaluate(SHOWN) == ["cbo"]
    tab.click('[data-area="particles"]')
    tab.select_option("#sort", "r")
    assert tab.evaluate(SHOWN)[:4] == ["cbo", "adamp", "sophia", "adahessian"]
    tab.select_option("#sort", "area")
    assert tab.evaluate(SHOWN)[:2] == ["adamp", "adahessian"]
    assert said == []


def test_when_nothing_matches_one_button_clears(visit):  # noqa: F811
    tab, _ = visit("index.html#q=nothing&v=loses&area=optim,physics", 360)
    assert not tab.is_visible(".list")
    assert tab.inner_text("#asked") == "Nothing fits “nothing” with “a peer wins” with “Optimizers” or “Physics”."
    tab.click("#clear")
    assert len(tab.evaluate(SHOWN)) == 31
    assert tab.evaluate("document.activeElement.id") == "q"
    assert tab.url.endswith("#")


def test_keys_reach_the_search_walk_the_rows_and_open_one(visit):  # noqa: F811
    tab, _ = visit("index.html", 1280)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().top >= 0")
    tab.keyboard.press("/")
    tab.keyboard.type("adam")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        tab.keyboard.press(key)
    assert tab.evaluate("document.activeElement.textContent") == "adahessian"
    tab.keyboard.press("/")
    tab.keyboard.press("Escape")
    assert len(tab.evaluate(SHOWN)) == 31
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/method/adamp.html")
    tab.goto(tab.url.replace("method/adamp.html", "index.html#physics"))
    assert len(tab.evaluate(SHOWN)) == 31
    assert tab.evaluate("scrollY") > 300
