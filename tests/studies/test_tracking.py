from __future__ import annotations

import os

import pytest

from steepest.core.errors import SteepestWarning
from steepest.core.extras import MissingExtra
from steepest.core.records import Series, Store
from steepest.studies import tracking
from steepest.studies.context import Job
from steepest.studies.tracking import Tracking
from tests.report.sample import record, series

JOB = Job("adamp", options={"task": "digits"})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def one_study(store, tool, **changes):
    made = record("adamp", **changes)
    store.write(made, series("adamp"))
    with Tracking(tool, store) as tell:
        tell.event(JOB, {"event": "start"})
        for share in (0.5, 1.0):
            numbers = {"loss": 1 - share, "stage": "peers", "bad": float("nan")}
            tell.event(JOB, {"event": "progress", "fraction": share, "numbers": numbers})
        tell.event(JOB, {"event": "measured", "claim": "holds", "value": 2.0})
        tell.event(JOB, {"event": "done", "record": made})
    return made


def test_curves_are_named_thinned_and_whole_stepped():
    long = Series(
        name="loss", method="A", seed=2, steps=[0.4 * i for i in range(5000)], values=[float(i) for i in range(5000)]
    )
    bare = Series(name="one", steps=[0.0, 1.0, 2.0], values=[None, 3.0, None])
    found = dict(tracking._curves([long, bare, Series(name="empty", steps=[], values=[])]))
    assert len(found["loss/A/seed 2"]) == tracking.POINTS
    assert found["loss/A/seed 2"][-1] == (2000, 4999.0)
    assert found["one"] == [(1, 3.0)]
    assert found["empty"] == []


def test_tensorboard_holds_claims_progress_and_series(store):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one_study(store, "tensorboard")
    (folder,) = (store.root / "tensorboard").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    assert [(e.step, e.value) for e in events.Scalars("progress/loss")] == [(1, 0.5), (2, 0.0)]
    assert events.Scalars("claim/holds")[0].value == pytest.approx(2.345)
    assert len(events.Scalars("loss/AdamP/seed 1")) == 160
    assert "progress/bad" not in events.Tags()["scalars"]
    assert store.damaged() == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_holds_claims_parameters_series_and_the_result(store, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    one_study(store, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{(store.root / 'mlflow' / 'mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params["task"] == "digits"
    assert run.data.tags["verdict/short"] == "falls short"
    assert run.data.metrics["claim/holds"] == pytest.approx(2.345)
    assert len(client.get_metric_history(run.info.run_id, "loss/AdamP/seed 1")) == 160
    assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["result.json"]
    assert store.damaged() == []


class Broken:
    """A tracker whose server goes away."""

    def __init__(self, store):
        self.calls = 0

    def __call__(self, job):
        self.calls += 1
        raise ConnectionError("no server")

    def close(self):
        pass


def test_a_tracker_that_fails_costs_the_tracking_only(store, monkeypatch):
    monkeypatch.setattr(tracking, "TRACKERS", {"mlflow": Broken})
    with Tracking("mlflow", store) as tell:
        with pytest.warns(SteepestWarning, match="tracking stopped, the studies go on: ConnectionError: no server"):
            tell.event(JOB, {"event": "start"})
        tell.event(JOB, {"event": "start"})
        assert tell._begin.calls == 1


def test_a_missing_tracker_says_how_to_get_it(store, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(MissingExtra, match=r'pip install "steepest\[track\]"'):
        Tracking("tensorboard", store)
    assert not os.path.exists(store.root / "tensorboard")
