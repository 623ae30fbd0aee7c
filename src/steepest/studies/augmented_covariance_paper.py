"""The paper's setting: MOABB's motor imagery sets, within and across sessions, with the official grid.

MOABB downloads the sets (tens of gigabytes) for the user who asks for this scale. A test of the code (``--max-steps``
of at most 10) runs the same program on MOABB's made-up set with a grid of two.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, cast

import numpy as np
from sklearn.model_selection import GridSearchCV

from steepest.core.errors import check, one_of, value_error
from steepest.core.extras import require
from steepest.core.parallel import ordered_map
from steepest.manifold.augmented_covariance import augmented_covariance_pipeline
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context

__all__ = ["measure"]

DATASETS = ("BNCI2014_001", "BNCI2014_004", "Cho2017", "Schirrmeister2017", "Weibo2014", "Zhou2016")
CODE_TEST_STEPS = 10
CODE_TEST = f"at most {CODE_TEST_STEPS} steps: a test of the code"
PLAIN, OURS = "tangent space + SVM", "augmented covariance"
CLASSES = {"left-right": ["left_hand", "right_hand"], "hand-feet": ["right_hand", "feet"]}


def measure(ctx: Context) -> None:
    """Run both evaluations on all sets, and report the mean gains."""
    for package in ("moabb", "mne"):
        require(package, "eeg-data", what="the paper's scale")
    code_test = ctx.max_steps is not None and ctx.max_steps <= CODE_TEST_STEPS
    names = ["FakeDataset"] if code_test else ctx.options.get("datasets", ",".join(DATASETS)).split(",")
    unknown = set(names) - set(DATASETS) - {"FakeDataset"}
    if unknown:
        raise value_error("option datasets", f"some of {', '.join(DATASETS)}", sorted(unknown)[0])
    backend = ctx.options.get("backend", "serial")
    check("option backend", backend, one_of("serial", "processes", "ray"))
    for claim, kind in (("paper-within", "WithinSessionEvaluation"), ("paper-cross", "CrossSessionEvaluation")):
        jobs = [(name, subject) for name in names for subject in _subjects(name)]
        work = partial(_evaluate, kind=kind, code_test=code_test)
        tables = ordered_map(work, jobs, backend=cast(Literal["serial"], backend))
        rows = [row for table in tables for row in table]
        gains = []
        for name in names:
            for task in CLASSES:
                scores = {p: [r[3] for r in rows if r[:3] == (name, task, p)] for p in (OURS, PLAIN)}
                if not scores[OURS]:
                    continue  # the set lacks this pair of classes, or has one session only
                gains.append(float(np.mean(scores[OURS]) - np.mean(scores[PLAIN])))
                text = ", ".join(f"{p} {np.mean(values):.3f}" for p, values in scores.items())
                ctx.note(f"{claim[6:]}, {name}, {task}: {text} ({len(scores[OURS])} subjects and sessions).")
        if code_test:
            ctx.skipped(claim, CODE_TEST)
        elif gains:
            ctx.measured(claim, float(np.mean(gains)), bootstrap_interval(gains))
        else:
            ctx.skipped(claim, "no set has the classes, or more than one session")


def _dataset(name: str) -> Any:
    if name == "FakeDataset":
        fake: Any = require("moabb.datasets.fake", "eeg-data")
        return fake.FakeDataset(
            ["left_hand", "right_hand", "feet"],
            n_subjects=1,
            n_sessions=2,
            n_runs=1,
            channels=("C3", "Cz", "C4"),
            seed=1,
        )
    return getattr(require("moabb.datasets", "eeg-data"), name)()


def _subjects(name: str) -> list[int]:
    return list(_dataset(name).subject_list)


def _evaluate(job: tuple[str, int], *, kind: str, code_test: bool) -> list[tuple[str, str, str, float]]:
    """Scores of one subject as (set, task, pipeline, ROC-AUC), one for each session."""
    name, subject = job
    evaluations: Any = require("moabb.evaluations", "eeg-data")
    paradigms: Any = require("moabb.paradigms", "eeg-data")
    found = []
    for task, events in CLASSES.items():
        dataset = _dataset(name)
        dataset.subject_list = [subject]
        if not set(events) <= set(dataset.event_id):
            continue
        paradigm = paradigms.MotorImagery(events=events, n_classes=2, fmin=8, fmax=35, scorer="roc_auc")
        if not paradigm.is_valid(dataset) or (kind == "CrossSessionEvaluation" and dataset.n_sessions < 2):
            continue
        evaluation = getattr(evaluations, kind)(
            paradigm=paradigm, datasets=[dataset], overwrite=True, suffix=f"steepest-{task}", random_state=0
        )
        results = evaluation.process(_pipelines(code_test))
        found += [(name, task, row.pipeline, float(row.score)) for row in results.itertuples()]
    return found


def _pipelines(code_test: bool) -> dict[str, Any]:
    """Both get 3 inner folds for what they have to choose."""
    ours = augmented_covariance_pipeline("tangent-svm")
    grid = cast(Any, ours).param_grid_
    plain = augmented_covariance_pipeline("tangent-svm", order=1, lag=1)
    machine = {key: values for key, values in grid.items() if key.startswith("svc__")}
    if code_test:
        grid = {"augmentedcovariance__order": [1, 2], "augmentedcovariance__lag": [2]}
        machine = {"svc__C": [1.0]}
    search = partial(GridSearchCV, cv=3, scoring="roc_auc")
    return {OURS: search(ours, grid), PLAIN: search(plain, machine)}
