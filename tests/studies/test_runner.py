from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch

from steepest.core.records import Store
from steepest.studies.claim import Claim, Figure, Paper, Peer
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.runner import finished, run_many, run_study


def study(**changes):
    module = types.SimpleNamespace(CLAIMS=[Claim("a", "s", "p", "<= 1", scales="quick"), Claim("b", "s", "p", "<= 1")])
    module.OPTIONS = {"size": "how large"}
    return types.SimpleNamespace(**(vars(module) | changes))


def test_a_job_is_checked_and_knows_its_seeds():
    assert Job("adamp").seeds == [1, 2]
    assert Job("adamp", "full", seed=10, n_seeds=4).seeds == [11, 12, 13, 14]
    for bad in ({"scale": "huge"}, {"seed": -1}, {"n_seeds": 0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="must be"):
            Job("adamp", **bad)


def test_the_context_gives_the_same_streams_for_the_same_seed():
    a, b = Context(study(), Job("adamp", seed=3)), Context(study(), Job("adamp", seed=3))
    assert a.rng.random() == b.rng.random()
    assert torch.equal(torch.rand(2, generator=a.generator), torch.rand(2, generator=b.generator))


def test_the_context_picks_by_scale():
    values = {"quick": 1, "full": 2, "paper": 3}
    assert [Context(study(), Job("adamp", s)).pick(**values) for s in ("tiny", "quick", "full", "paper")] == [
        1,
        1,
        2,
        3,
    ]
    assert Context(study(), Job("adamp", "tiny")).pick(**values, tiny=0) == 0


def test_arrays_are_kept_once_in_single_precision_and_never_as_objects():
    ctx = Context(study(), Job("adamp"))
    ctx.arrays("field", points=np.zeros((3, 2)), names=["a", "b"], labels=np.arange(3))
    kept = ctx.arrays_log["field"]
    assert kept["points"].dtype == np.float32
    assert kept["names"].dtype.kind == "U"
    assert kept["labels"].dtype.kind == "i"
    with pytest.raises(ValueError, match="already kept"):
        ctx.arrays("field", x=[1.0])
    with pytest.raises(ValueError, match="things must be an array of numbers or texts"):
        ctx.arrays("other", things=[object()])


def test_a_study_reports_each_claim_once_and_only_its_own():
    ctx = Context(study(), Job("adamp"))
    ctx.measured("a", 0.5)
    with pytest.raises(ValueError, match="already reported"):
        ctx.measured("a", 0.6)
    with pytest.raises(ValueError, match="already reported"):
        ctx.skipped("a", "no")
    with pytest.raises(ValueError, match="claim_id must be one of a, b"):
        ctx.measured("c", 1)
    with pytest.raises(ValueError, match="option must be one of the study's own"):
        Context(study(), Job("adamp", options={"sice": "1"}))
    with pytest.raises(ValueError, match="values must be"):
        ctx.series("x", [(1, 2, 3)])


def test_verdicts_are_the_runner_s(made_up_studies):
    record, series = run_study(Job("mdpo", seed=5))
    assert record.status == "ok"
    assert [c.verdict for c in record.claims] == ["holds", "falls short", "not measured at this scale"]
    assert record.claims[0].interval == (0.0, 1.5)
    assert record.seconds["draw"][0] >= 0
    assert record.notes == ["nothing was cut"]
    assert record.against.factor == 1.2
    assert (record.seed, record.seeds, record.area) == (5, [6, 7], "policy")
    assert series[0].steps == [0, 1, 2, 3, 4]
    assert record.environment.libraries["torch"] == torch.__version__
    again, _ = run_study(Job("mdpo", seed=5))
    assert again.claims == record.claims
    tiny, _ = run_study(Job("mdpo", "tiny"))
    assert {c.verdict for c in tiny.claims} == {"not measured at this scale"}


def test_errors_and_missing_things_are_results(made_up_studies, tmp_path):
    store = Store(tmp_path / "store")
    broken, _ = run_study(Job("dadao"), store)
    assert broken.status == "error"
    assert broken.reason == "ZeroDivisionError: by design"
    assert "in run" in broken.traceback
    assert broken.claims[0].value == 1.0
    assert broken.claims[1].reason == "the study failed before it was measured"
    skipped, _ = run_study(Job("fzoos"), store)
    assert (skipped.status, 'pip install "steepest[rl]"' in skipped.reason) == ("skipped", True)
    if not torch.cuda.is_available():
        assert "needs a CUDA device" in run_study(Job("harpg"), store)[0].reason
    assert len(list(store.runs())) >= 2


def test_a_claim_that_the_study_forgot_says_so():
    ctx = Context(study(), Job("adamp"))
    ctx.measured("a", 0.5)
    assert [c.reason for c in ctx.results("nothing was reported")] == ["", "nothing was reported"]


@pytest.mark.slow
def test_many_studies_at_once_one_dies_and_the_others_finish(made_up_studies, tmp_path):
    store, events = Store(tmp_path / "store"), []
    jobs = [Job(k) for k in ("diff2", "cbo", "dadao")]
    records = run_many(jobs, store, n_jobs=2, on_event=lambda job, event: events.append((job.key, event["event"])))
    assert [r.key for r in records] == ["diff2", "cbo", "dadao"]
    assert [r.status for r in records] == ["error", "ok", "error"]
    assert "ended with code 9" in records[0].reason
    assert [c.reason for c in records[0].claims] == ["the study's process was lost"] * 2 + [""]
    assert {r.id for r in store.runs()} == {r.id for r in records}
    assert [e for k, e in events if k == "cbo"] == ["start", "progress", "measured", "measured", "done"]
    assert records[1].environment.threads == max(1, len(os.sched_getaffinity(0)) // 2)
    here, _ = run_study(Job("cbo"))
    assert here.claims == records[1].claims  # the same numbers in this process


@pytest.mark.slow
def test_under_torchrun_one_rank_writes(made_up_studies, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    store = Store(tmp_path / "store")
    (record,) = run_many([Job("cbo")], store)
    assert record.status == "ok"
    assert not list(store.runs())


def test_what_is_finished_is_found_again_until_the_code_changes(made_up_studies, tmp_path):
    from steepest.studies import provenance

    store = Store(tmp_path / "store")
    jobs = [Job("cbo"), Job("mdpo")]
    run_study(jobs[0], store)
    assert list(finished(store, jobs)) == ["cbo"]
    for other in (Job("cbo", "full"), Job("cbo", seed=1), Job("cbo", n_seeds=3), Job("cbo", options={"size": "2"})):
        assert not finished(store, [other])
    path = made_up_studies / "cbo.py"
    path.write_text(path.read_text() + "\n# changed\n")
    provenance.code_fingerprint.cache_clear()
    assert not finished(store, jobs)


def test_failed_runs_are_made_again(made_up_studies, tmp_path):
    store = Store(tmp_path / "store")
    run_study(Job("dadao"), store)
    assert not finished(store, [Job("dadao")])


def command(*words, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "steepest.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else what a shell gave
        **kwargs,
    )


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_an_interrupt_keeps_what_finished_and_leaves_no_worker(made_up_studies, tmp_path):
    process = command("run", "cbo", "rvgp", "--out", "store", cwd=tmp_path)
    store, deadline = Store(tmp_path / "store"), time.monotonic() + 60
    while not list(store.runs()) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3)  # the second study is on its way now
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert "1 finished studies are kept" in out
    assert [r.key for r in store.runs()] == ["cbo"]
    deadline = time.monotonic() + 10
    while (alive := group_lives(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive
    assert not list((tmp_path / "store").glob(".tmp-*"))


def test_data_that_is_not_here_is_said(monkeypatch, tmp_path):
    ctx = Context(study(), Job("adamp"))
    X, y = ctx.data("digits")
    assert X.shape == (1797, 64)
    assert len(y) == 1797
    with pytest.raises(Unavailable, match="--data PATH"):
        ctx.data("path")
    monkeypatch.delenv("STEEPEST_DATA", raising=False)
    with pytest.raises(Unavailable, match="set STEEPEST_DATA"):
        ctx.data("single_cell")
    (tmp_path / "sets" / "single_cell").mkdir(parents=True)
    monkeypatch.setenv("STEEPEST_DATA", str(tmp_path / "sets"))
    assert ctx.data("single_cell").name == "single_cell"
    with pytest.raises(ValueError, match="name must be one of"):
        ctx.data("mnist")


def test_the_types_of_a_study_are_plain_data():
    assert Paper("t", "a", "v", 2024, "u").year == 2024
    assert Peer("AdamW").package == "torch"
    assert Figure("f", "t", "s", "x", "y").kind == "line"
