from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import steepest
from steepest.studies import bibliography, registry
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture
from steepest.studies.context import Context, Job

STUDIES = [k for k in registry.METHODS if registry.has_study(k)]


def test_there_are_thirty_one_methods_each_with_its_entry():
    assert len(registry.METHODS) == 31
    assert {m.bib for m in registry.METHODS.values()} <= set(bibliography.entries())
    assert len({m.bib for m in registry.METHODS.values()}) == 31
    for entry in bibliography.entries().values():
        assert entry.text.count("{") == entry.text.count("}")
        assert re.fullmatch(r"[a-z]+\d{4}[a-z0-9]+", entry.key)
        assert entry.url.startswith("https://")


def test_keys_take_both_spellings_and_unknown_ones_suggest_the_nearest():
    assert registry.find("heat_geodesic") is registry.find("heat-geodesic")
    with pytest.raises(ValueError, match="did you mean 'sophia'"):
        registry.find("sofia")
    assert registry.search("SGDP").key == "adamp"
    assert registry.search("AdaHessian").key == "adahessian"
    with pytest.raises(ValueError, match="key must be"):
        registry.search("optimization")


@pytest.mark.parametrize("key", STUDIES)
def test_a_study_keeps_the_contract(key):
    study, method = registry.load_study(key), registry.METHODS[key]
    assert isinstance(study.PAPER, Paper)
    assert method.area == study.AREA
    assert study.PAPER.title == bibliography.entry(method.bib).title
    assert all(isinstance(c, Claim) for c in study.CLAIMS)
    assert len({c.id for c in study.CLAIMS}) == len(study.CLAIMS)
    assert all(isinstance(p, Peer) for p in study.PEERS)
    assert all(isinstance(f, Figure) for f in study.FIGURES)
    assert len({f.id for f in study.FIGURES}) == len(study.FIGURES) > 0
    pictures = getattr(study, "PICTURES", [])
    assert all(isinstance(p, Picture) and p.alt and p.caption for p in pictures)
    assert len({d.id for d in [*study.FIGURES, *pictures]}) == len(study.FIGURES) + len(pictures)
    assert isinstance(study.OPTIONS, dict)
    assert set(study.REASONS) <= {c.id for c in study.CLAIMS}
    assert study.WHEN_NOT
    about = inspect.getdoc(study).strip().split("\n\n")
    assert len(about) >= 2, "the docstring needs a first sentence and a paragraph: what it is for"
    assert sum(c.measured_at("quick") for c in study.CLAIMS) >= 2
    Context(study, Job(key))


@pytest.mark.parametrize("key", STUDIES)
def test_the_snippet_runs(key):
    exec(compile(registry.load_study(key).SNIPPET, f"<snippet of {key}>", "exec"), {})


@pytest.mark.parametrize("key", STUDIES)
def test_a_study_draws_nothing_and_judges_nothing(key):
    source = Path(inspect.getfile(registry.load_study(key))).read_text()
    modules = {n.module or "" for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import) for a in n.names}
    assert not {m.split(".")[0] for m in modules} & {"matplotlib", "altair"}
    assert "steepest.studies.runner" not in modules
    assert "Verdict" not in source


def test_every_method_with_a_study_has_its_page_and_its_benchmark():
    root = Path(steepest.__file__).parents[2]
    for key in STUDIES:
        page = (root / "docs" / "methods" / f"{key}.md").read_text()
        assert "## When not to use it" in page
        assert (root / "benchmarks" / f"{key.replace('-', '_')}.py").exists()


def test_every_key_that_a_docstring_cites_is_in_the_bibliography():
    root = Path(steepest.__file__).parent
    for path in root.rglob("*.py"):
        cited = re.findall(r"\b[a-z]{2,}(?:19|20)\d\d[a-z]{2,}\b", path.read_text())
        unknown = set(cited) - set(bibliography.entries())
        assert not unknown, f"{path}: {unknown}"
