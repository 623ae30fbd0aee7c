from __future__ import annotations

import doctest
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import steepest
from steepest import house
from steepest.cli import app
from steepest.studies import registry
from steepest.studies.context import Context, Job

ROOT = Path(steepest.__file__).parents[2]
runner = CliRunner()


@pytest.mark.parametrize("key", [k for k in registry.METHODS if registry.has_study(k)])
def test_every_method_has_source_test_study_and_page(key):
    found = house.places(key)
    assert {"source", "study", "test", "page", "benchmark"} <= {p.what for p in found}
    name = key.replace("-", "_")
    assert ROOT / "docs" / "methods" / f"{key}.md" in [p.path for p in found]
    assert ROOT / "tests" / "studies" / f"test_{name}.py" in [p.path for p in found]
    assert all(f"steepest/{registry.METHODS[key].area}/" in str(p.path) or "steepest/curvature/" in str(p.path)
               or "steepest/geometry/" in str(p.path) for p in found if p.what == "source")  # fmt: skip


def test_where_answers_to_a_key_a_class_and_a_function(monkeypatch):
    monkeypatch.chdir(ROOT)
    out = runner.invoke(app, ["where", "mfac"]).stdout
    assert "src/steepest/optim/mfac.py" in out
    assert "docs/methods/mfac.md" in out
    out = runner.invoke(app, ["where", "minimize_cbo"]).stdout
    assert "defined   src/steepest/particles/consensus.py:" in out
    assert "src/steepest/studies/cbo_search.py" in out
    line = int(out.split("consensus.py:")[1].split()[0])
    source = (ROOT / "src/steepest/particles/consensus.py").read_text().splitlines()
    assert source[line - 1].startswith("def minimize_cbo(")
    result = runner.invoke(app, ["where", "sofia"])
    assert result.exit_code == 2
    assert "did you mean 'sophia'" in result.stderr


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "src" / "steepest").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(monkeypatch, path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_a_new_method_runs_and_passes_its_tests_as_it_stands(checkout, monkeypatch):
    result = runner.invoke(app, ["new", "quick-step", "--area", "optim", "--name", "Quick step"])
    assert result.exit_code == 0, result.output
    assert 'Method("quick-step", "optim", "Quick step"' in result.stdout
    written = [p for p in checkout.rglob("*") if p.is_file() and p.name != "pyproject.toml"]
    assert len(written) == len(house.FILES)
    assert not [p for p in written if "{{" in p.read_text()]
    method = load(monkeypatch, checkout / "src/steepest/optim/_quick_step.py", "steepest.optim._quick_step")
    assert doctest.testmod(method).attempted == 2
    assert doctest.testmod(method).failed == 0
    tests = load(monkeypatch, checkout / "tests/optim/test_quick_step.py", "made_up_test")
    tests.test_it_equals_the_closed_form()
    tests.test_a_bad_argument_is_named()
    study = load(monkeypatch, checkout / "src/steepest/studies/quick_step.py", "steepest.studies.quick_step")
    exec(study.SNIPPET, {})
    ctx = Context(study, Job("quick-step", "quick"))
    study.run(ctx)
    assert [c.verdict for c in ctx.results()] == ["holds", "holds"]
    ruff = Path(sys.executable).parent / "ruff"
    if ruff.exists():
        for command in (["check", "--ignore", "I001"], ["format", "--check"]):
            subprocess.run([ruff, *command, "--config", checkout / "pyproject.toml", "src", "tests", "benchmarks"],
                           cwd=checkout, check=True)  # fmt: skip


def test_a_registered_method_brings_its_paper(checkout):
    runner.invoke(app, ["new", "sophia"], catch_exceptions=False)
    text = (checkout / "src/steepest/studies/sophia.py").read_text()
    assert 'Paper("Sophia: A Scalable' in text
    assert "ICLR" in text


def test_new_refuses_and_then_writes_nothing(checkout):
    (checkout / "docs/methods").mkdir(parents=True)
    (checkout / "docs/methods/quick-step.md").write_text("mine")
    before = sorted(checkout.rglob("*"))
    for words, message in (
        (["quick-step", "--area", "optim"], "is there already"),
        (["quick-step"], "--area must say the room"),
        (["Quick Step", "--area", "optim"], "key must be words of small letters"),
        (["slow-step", "--area", "kitchen"], "area must be one of"),
    ):
        result = runner.invoke(app, ["new", *words])
        assert result.exit_code == 2
        assert message in result.stderr.replace("\n", " ")
    assert sorted(checkout.rglob("*")) == before


def test_new_needs_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["new", "quick-step", "--area", "optim"])
    assert result.exit_code == 2
    assert "a checkout of the source" in result.stderr.replace("\n", " ")
