from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from steepest.cli import app
from steepest.core.records import Store
from steepest.studies import registry
from steepest.studies.live import live_runs
from tests.studies.conftest import made_up_studies  # noqa: F401

runner = CliRunner()


def call(*words, code=0):
    result = runner.invoke(app, words)
    assert result.exit_code == code, result.output
    return result


def test_the_help_names_all_commands():
    out = call("--help").output
    for name in ("list", "show", "run", "report", "serve", "bench", "where", "new", "cite", "doctor"):
        assert name in out


def test_list_shows_all_methods_and_areas_filter():
    assert call("list").stdout.count("\n") == 32
    lines = call("list", "--area", "transport").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["method", "sinkhorn-newton"]
    assert "--area must be one of" in call("list", "--area", "kitchen", code=2).stderr


def test_show_and_cite_find_a_method_by_key_class_or_word():
    assert "liu2024sophia" in call("cite", "sophia").stdout
    assert call("cite", "SGDP").stdout == call("cite", "adamp").stdout
    assert "did you mean 'sophia'" in call("show", "sofia", code=2).stderr


def test_show_holds_claims_snippet_peers_and_paths(made_up_studies):  # noqa: F811
    out = call("show", "cbo").stdout
    for text in (
        "It is small.",
        "1, Table 1",
        "<= 2 s",
        "print(1)",
        "AdamW",
        "not installed",
        "--option size",
        "docs/methods/cbo.md",
    ):
        assert text in out, text


def test_doctor_says_what_is_missing_and_how_to_add_it():
    out = call("doctor").stdout
    assert "torch" in out
    assert 'pip install "steepest[track]"' in out.replace("\n", "") or "mlflow" in out


@pytest.mark.slow
def test_run_prints_verdicts_keeps_results_and_resumes(made_up_studies):  # noqa: F811
    out = call("run", "cbo", "mdpo", "--jobs", "2", "--out", "store", code=1).stdout
    for text in ("It is large.", "■ holds", "◩ falls short", "_ not measured", "cbo: done", "mdpo: done", "2 of 2"):
        assert text in out, text
    assert [r.key for r in Store("store").runs()] in (["cbo", "mdpo"], ["mdpo", "cbo"])
    again = call("run", "cbo", "--out", "store", code=0).stdout
    assert "finished before; --fresh runs it again" in again
    assert len(list(Store("store").runs())) == 2
    listing = call("list", "--out", "store").stdout
    assert "2 of 2 hold" in listing
    assert "1 of 2 hold" in listing


@pytest.mark.slow
def test_json_prints_one_object_per_study_and_nothing_else(made_up_studies):  # noqa: F811
    result = call("run", "cbo", "dadao", "--json", "--out", "store", code=3)
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(o["key"], o["status"]) for o in objects] == [("cbo", "ok"), ("dadao", "error")]


@pytest.mark.slow
def test_nothing_could_run(made_up_studies):  # noqa: F811
    out = call("run", "fzoos", "--out", "store", code=2).stdout
    assert 'pip install "steepest[rl]"' in out.replace("\n", "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("run", "sofia"), "did you mean 'sophia'"),
        (("run", "cbo", "--scale", "huge"), "scale must be one of"),
        (("run", "cbo", "--seeds", "0"), "seeds must be"),
        (("run", "cbo", "--jobs", "0"), "--jobs must be"),
        (("run", "cbo", "--engine", "spark"), "--engine must be local or ray"),
        (("run", "cbo", "--address", "auto"), "--address needs --engine ray"),
        (("run", "cbo", "--option", "size"), "NAME=VALUE"),
        (("run", "cbo", "--option", "sice=1"), "no option 'sice'"),
        (("run", "cbo", "--track", "paper"), "--track must be mlflow or tensorboard"),
        (("serve", "--port", "70000"), "--port must be between 0 and 65535"),
        (("bench",), "no folder benchmarks"),
    ],
)
def test_usage_errors_exit_with_2_and_name_the_argument(made_up_studies, words, text):  # noqa: F811
    result = call(*words, code=2)
    assert text in result.stderr.replace("\n", " ")
    assert result.stdout == ""


def test_a_method_whose_study_this_version_lacks_is_named(monkeypatch):
    monkeypatch.setattr(registry, "has_study", lambda key: key != "mdpo")
    assert "no study of mdpo" in call("run", "mdpo", code=2).stderr


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        text = call("serve", "--port", port, "--out", str(tmp_path), code=2).stderr.replace("\n", " ")
    assert f"port {port} of 127.0.0.1" in text
    assert "--port" in text


@pytest.mark.slow
def test_a_run_leaves_its_live_state(made_up_studies):  # noqa: F811
    call("run", "cbo", "dadao", "--out", "store", code=3)
    (run,) = live_runs(Store("store"))
    assert (run.how, [(s.key, s.state) for s in run.studies]) == ("finished", [("cbo", "ok"), ("dadao", "error")])


def test_the_command_starts_quickly_and_a_damaged_store_is_a_warning(tmp_path):
    (tmp_path / "store" / "junk").mkdir(parents=True)
    words = [sys.executable, "-X", "importtime", "-m", "steepest.cli", "list", "--out", str(tmp_path / "store")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0
    assert "warning: skipped" in done.stderr
    assert "junk" in done.stderr


def test_benchmarks_run_compare_and_keep(tmp_path):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "toy.py").write_text(
        "def bench(progress=None):\n"
        "    return [dict(name='step', what='time of a step', unit='ms', ours=2.0, peer='AdamW', ratio=RATIO,\n"
        "                 interval=[LOW, RATIO + 0.1], bound='<= 1', better='lower')]\n"
        "RATIO, LOW = 0.5, 0.4\n"
    )
    assert "■ met" in call("bench", "toy", "--keep").stdout
    path = folder / "toy.py"
    kept = path.read_text()
    for near in ("0.55, 0.52", "1.5, 0.45"):  # under 20 % worse; so noisy that it may be as fast
        path.write_text(kept.replace("0.5, 0.4", near))
        call("bench")
    path.write_text(kept.replace("0.5, 0.4", "1.5, 1.4"))
    out = call("bench", code=1).stdout
    assert "◩ not met" in out
    assert "ratio 1.5, kept 0.5" in out
    assert len(list((tmp_path / "steepest-results" / "bench").glob("toy-*.json"))) == 4
    assert "no benchmark 'nothing'" in call("bench", "nothing", code=2).stderr
