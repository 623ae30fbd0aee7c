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
    tab.wait_for_selector("#fig-loss .plot.live")
    assert tab.locator("#fig-accuracy .plot.live").count() == 0
    tab.locator("#fig-accuracy").scroll_into_view_if_needed()
    tab.wait_for_selector("#fig-accuracy .plot.live")
    assert tab.evaluate("document.body.scrollHeight") == before
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
