from __future__ import annotations

from steepest.core.records import Environment
from steepest.report.history import COLUMNS, machine, side_by_side
from tests.report import sample

OTHER = sample.record("adamp").environment.model_copy(
    update={"processor": "Other CPU", "cores": 8, "accelerator": "GPU"}
)


def test_the_newest_run_of_every_machine_scale_and_code_has_a_column():
    runs = [
        sample.record("adamp", ago=9),
        sample.record("adamp", ago=8, factor=3.0),
        sample.record("adamp", ago=7, scale="full"),
        sample.record("adamp", ago=6, environment=OTHER, factor=4.0),
        sample.record("adamp", ago=5, code="0" * 16),
        sample.record("adamp", ago=4, status="error", reason="x"),
        sample.record("adamp", ago=3, scale="tiny"),
    ]
    view = side_by_side(runs)
    assert [c["scale"] for c in view["columns"]] == ["quick", "quick", "full", "quick"]
    assert [c["machine"] for c in view["columns"]] == ["2 cores, Sample CPU", "8 cores, Other CPU, GPU"] + [
        "2 cores, Sample CPU"
    ] * 2
    assert view["columns"][3]["ratio"].startswith("3.0")
    assert view["left"] == 0


def test_cells_say_value_and_verdict_and_why_there_is_none():
    new = sample.record("adamp", ago=1, scale="full", claims=sample.claims("adamp")[:3])
    old = sample.record("adamp", ago=2, claims=sample.claims("adamp")[1:])
    first = sample.record("adamp", ago=3, code="0" * 16)
    view = side_by_side([first, old, new])
    rows = {row["says"]: [row["cells"][0], row["cells"][1]] for row in view["rows"]}
    assert len([c for c in sample.claims("adamp") if c.value is not None]) == len(rows)
    assert side_by_side([old, new])["rows"][0]["says"] == sample.claims("adamp")[1].says
    assert [c["word"] for c in rows[sample.EVIL]] == ["holds", "no such claim then"]
    (short,) = (cells for says, cells in rows.items() if says.startswith("The error stays"))
    assert [(c["value"], c["icon"]) for c in short] == [("0.412", "short")] * 2
    assert not any(says.startswith("It is better than the peer") for says in rows)


def test_one_kind_of_run_needs_no_table_and_many_are_cut():
    assert side_by_side([sample.record("adamp", ago=i) for i in (3, 2)]) is None
    many = [sample.record("adamp", ago=i, code=f"{i:016d}") for i in range(20, 0, -1)]
    view = side_by_side(many)
    assert len(view["columns"]) == COLUMNS
    assert view["left"] == 20 - COLUMNS


def test_a_machine_without_accelerator_names_none():
    assert isinstance(OTHER, Environment)
    assert machine(sample.record("adamp").environment) == "2 cores, Sample CPU"
