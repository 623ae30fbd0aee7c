import os
import signal
from pathlib import Path

import pytest

from steepest.core.records import Store
from steepest.studies.cluster import run_on_ray
from steepest.studies.context import Job
from steepest.studies.runner import run_many
from tests.studies.conftest import made_up_studies  # noqa: F401

SLOW_AT_FIRST = """
def run(ctx):
    ctx.progress(0.1)
    if not os.path.exists({marker!r}):
        open({marker!r}, "w").close()
        time.sleep(120)
    measure(ctx)
"""


@pytest.fixture
def two_machines(made_up_studies, monkeypatch):  # noqa: F811
    """A Ray cluster of two nodes with one core each, on this machine; its workers see the made-up studies."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from ray.cluster_utils import Cluster

    with open(made_up_studies / "cbo.py", "a") as file:
        file.write(SLOW_AT_FIRST.format(marker=str(made_up_studies / "begun")))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


def kill_those_that_run_studies():
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.joinpath("cmdline").read_bytes().startswith(b"ray::_study"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_cluster_gives_the_numbers_of_a_local_run_though_a_worker_is_killed(two_machines, made_up_studies, tmp_path):  # noqa: F811
    jobs = [Job("cbo"), Job("mdpo"), Job("diff2"), Job("fzoos")]  # the third ends its own process, every time
    events = []

    def kill_once(job, event):
        events.append((job.key, event["event"]))
        if event["event"] == "progress" and events.count(("cbo", "progress")) == 1 and job.key == "cbo":
            kill_those_that_run_studies()

    stores = Store(tmp_path / "cluster"), Store(tmp_path / "local")
    found = run_on_ray(jobs, stores[0], address=two_machines, on_event=kill_once)
    assert [r.status for r in found] == ["ok", "ok", "error", "skipped"]
    assert events.count(("cbo", "start")) == 2
    assert events.count(("diff2", "start")) == 3
    assert "its worker was lost 3 times" in found[2].reason
    assert len({key for key, event in events if event == "done"}) == 4
    local = run_many(jobs[:2], stores[1], threads=1)
    for ours, theirs in zip(found, local, strict=False):
        assert ours.environment.threads == theirs.environment.threads == 1
        assert ours.claims == theirs.claims
        assert ours.code == theirs.code
        series = [store.series(r.id) for store, r in zip(stores, (ours, theirs), strict=True)]
        assert series[0] == series[1]
    assert {r.key for r in stores[0].runs()} == {"cbo", "mdpo", "diff2", "fzoos"}
