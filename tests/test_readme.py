from __future__ import annotations

import re
from pathlib import Path

import pytest

import steepest
from steepest.studies import registry

ROOT = Path(steepest.__file__).parents[2]


def runs_its_page(path):
    """Whether a test of its own runs the page already, for a method's that of its study (`check_study.check_texts`)."""
    name = f"test_{path.stem.replace('-', '_')}.py"
    study = ROOT / "tests" / "studies" / name
    return (ROOT / "tests" / name).exists() or (study.exists() and "check_texts(" in study.read_text())


PAGES = [
    page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts and not runs_its_page(page)
]


def snippets(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.S)


def test_the_snippets_of_the_readme_run_in_order(capsys):
    scope: dict[str, object] = {}
    for code in snippets(ROOT / "README.md"):
        exec(compile(code, "<README>", "exec"), scope)
    assert capsys.readouterr().out.count("\n") == 21


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")  # torch's remark, once a process
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_snippets_of_a_page_run_in_order(page):
    scope: dict[str, object] = {}
    for code in snippets(page):
        exec(compile(code, f"<{page.name}>", "exec"), scope)


def test_links_and_pictures_of_the_readme_are_there():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for key in re.findall(r"^\| `([a-z-]+)` \|", text, flags=re.M):
        assert registry.has_study(key)
