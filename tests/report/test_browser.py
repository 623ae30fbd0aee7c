"""The site in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("vl_convert")


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, site):
    """Open a page of the site at a width; what the console says is kept."""
    contexts = []

    def go(name, width, scheme="light", **more):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more)
        contexts.append(context)
        tab, said = context.new_page(), []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(f"{site.as_uri()}/{name}")
        return tab, said

    yield go
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("name", ["index.html", "method/adamp.html", "method/sophia.html"])
def test_the_page_never_scrolls_sideways_and_the_console_is_silent(visit, name, width):
    tab, said = visit(name, width, "dark" if width == 768 else "light")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []


def test_figures_draw_when_they_come_into_view_without_moving_anything(visit):
    tab, said = visit("method/adamp.html", 1280)
    before = tab.evaluate("document.body.scrollHeight")
    tab.evaluate(
        "new PerformanceObserver(all => { window.moved = (window.moved || 0) + all.getEntries().reduce("
        "(sum, e) => sum + e.value, 0) }).observe({ type: 'layout-shift', buffered: true })"
    )
    tab.wait_for_selector("#fig-loss .plot.live")
    assert tab.locator("#fig-accuracy .plot.live").count() == 0
    tab.locator("#fig-accuracy").scroll_into_view_if_needed()
    tab.wait_for_selector("#fig-accuracy .plot.live")
    assert tab.evaluate("document.body.scrollHeight") == before
    assert tab.evaluate("window.moved || 0") < 0.001
    paths = tab.locator("#fig-loss .plot.live > :not(.static) .mark-line path")
    assert paths.count() == 4
    assert "AdamP" in tab.locator("#fig-loss .plot").text_content()
    assert said == []


def test_a_figure_reads_values_and_zooms(visit):
    tab, said = visit("method/adamp.html", 1280)
    tab.wait_for_selector("#fig-loss .plot.live")
    box = tab.locator("#fig-loss .plot").bounding_box()
    reset = tab.locator("#fig-loss [data-reset]")
    tab.mouse.move(box["x"] + 300, box["y"] + 150)
    assert tab.locator("#fig-loss .read").inner_text().startswith("steps 4")
    tab.mouse.down()
    tab.mouse.move(box["x"] + 600, box["y"] + 160, steps=4)
    tab.mouse.up()
    reset.wait_for(state="visible")
    reset.click()
    reset.wait_for(state="hidden")
    tab.keyboard.press("+")
    reset.wait_for(state="visible")
    tab.keyboard.press("Escape")
    reset.wait_for(state="hidden")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#fig-loss .read").inner_text().startswith("steps ")
    assert said == []


TARGETS = """
[...document.querySelectorAll('button, summary, select, input, .bar a, .toc a, .pn a')].filter(e => e.checkVisibility())
  .filter(e => e.getBoundingClientRect().height < least || e.getBoundingClientRect().width < 24).map(e => e.outerHTML)
"""


@pytest.mark.parametrize("name", ["index.html", "method/adamp.html", "method/sophia.html"])
@pytest.mark.parametrize(("width", "touch", "least"), [(360, True, 40), (1280, False, 24)])
def test_targets_are_large_enough(visit, name, width, touch, least):
    tab, _ = visit(name, width, has_touch=touch, is_mobile=touch)
    assert tab.evaluate(f"(least => {TARGETS})({least})") == []


def test_wide_things_scroll_in_regions_that_have_a_name_and_take_the_focus(visit):
    tab, _ = visit("method/adamp.html", 360)
    wide = "[...document.querySelectorAll('main *')].filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 1"
    wide += " && /auto|scroll/.test(getComputedStyle(e).overflowX))"
    regions = tab.evaluate(wide + ".map(e => [e.tabIndex, !!e.ariaLabel])")
    assert len(regions) >= 3
    assert {tuple(r) for r in regions} == {(0, True)}


def test_forced_colors_keep_the_shapes_and_reduced_motion_moves_nothing(visit):
    tab, _ = visit("index.html", 1280, forced_colors="active", reduced_motion="reduce")
    color = "s => { const c = getComputedStyle(document.querySelector(s)); return [c.fill, c.backgroundColor] }"
    canvas = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert tab.evaluate(color, ".meter .h")[0] != canvas
    for shape in (".stack .h", ".strip b", ".strip i", ".swarm .dot:not(.loses, .ties)"):
        assert tab.evaluate(color, shape)[1] != canvas, shape
    assert tab.evaluate("document.getAnimations().length") == 0


def test_colors_follow_the_theme(visit):
    tab, _ = visit("method/adamp.html", 1280)
    tab.wait_for_selector("#fig-loss .plot.live")
    lines = "document.querySelectorAll('#fig-loss .plot.live > :not(.static) .mark-line path')"
    color = f"getComputedStyle([...{lines}].at(-1)).stroke"
    light = tab.evaluate(color)
    button = tab.locator("#theme")
    assert button.inner_text() == "system"
    button.click()
    button.click()
    assert button.inner_text() == "dark"
    assert tab.evaluate(color) != light
    for _ in range(3):  # the browser writes storage a moment later
        tab.reload()
        if tab.locator("#theme").inner_text() == "dark":
            break
    assert tab.locator("#theme").inner_text() == "dark"


def test_without_scripts_the_picture_is_there_and_no_dead_button(visit):
    tab, _ = visit("method/adamp.html", 1280, java_script_enabled=False)
    assert tab.locator("#fig-loss .static.wide svg").first.is_visible()
    assert not tab.locator("#theme").is_visible()
    assert not tab.locator("[data-copy]").first.is_visible()


def test_commands_can_be_copied(visit):
    tab, _ = visit("index.html", 1280, permissions=["clipboard-read", "clipboard-write"])
    button = tab.locator(".cmdline", has_text="steepest run harpg").locator("button")
    button.click()
    tab.wait_for_function("document.getElementById('status').textContent === 'Copied'")
    assert button.inner_text() == "Copied"
