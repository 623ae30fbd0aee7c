"""The verdicts on the methods' pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steepest import verdicts
from steepest.cli import app
from steepest.core.records import ClaimResult, Environment, RunRecord, Store
from steepest.studies import registry
from steepest.studies.claim import Claim

PAGES = Path(__file__).parent.parent / "docs" / "methods"
HERE = Environment(
    python="3.11.7", system="Linux", processor="Sample CPU", cores=2, threads=1, accelerator="none",
    libraries={"torch": "2.13.0"},
)  # fmt: skip
CLAIMS = [
    Claim("fast", "It is *fast* | always.", "2x", ">= 1.5", unit="x"),
    Claim("small", "It is small.", "8 bytes", "<= 8", unit="bytes", scales="quick full"),
    Claim("new", "It is new.", "Fig. 1", "<= 1"),
]


def run(scale, day, value, interval=None, says=None, small=None, status="ok", key="sophia", **more):
    claims = [
        ClaimResult(id="fast", says=says or CLAIMS[0].says, paper="", bound=">= 1.5", scales="", value=value,
                    interval=interval, verdict="holds"),
        ClaimResult(id="small", says=CLAIMS[1].says, paper="", bound="<= 8", scales="", value=small, verdict="x"),
        ClaimResult(id="new", says=CLAIMS[2].says, paper="", bound="<= 2", scales="", value=0.5, verdict="holds"),
    ]  # fmt: skip
    started = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=day)
    return RunRecord(
        id=f"{scale}-{day}-{status}-{key}", key=key, area="optim", scale=scale, seed=0, seeds=[0], status=status,
        claims=claims, started=started, wall_seconds=61, peak_memory_bytes=1, code="c", environment=HERE, **more,
    )  # fmt: skip


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| It ")]


def test_the_widest_and_newest_finished_runs_are_read():
    runs = [run("quick", 1, 1.0), run("full", 0, 2.0), run("quick", 3, 1.1), run("quick", 4, 9.0, status="error"),
            run("quick", 5, 9.0, max_steps=3), run("tiny", 6, 9.0), run("quick", 7, 9.0, key="adamp")]  # fmt: skip
    assert [(r.scale, r.started.day) for r in verdicts.newest(runs, "sophia")] == [("full", 1), ("quick", 4)]


def test_each_claim_has_the_value_of_the_widest_scale_that_measured_it_as_it_stands():
    text = verdicts.table(CLAIMS, [run("full", 0, 2.0, (1.4, 2.5)), run("quick", 1, 1.0, small=8.0)])
    assert rows(text) == [
        r"| It is \*fast\* \| always. | 2x | ≥ 1.5 | 2× (1 to 2) | **undecided** | full |",
        "| It is small. | 8 bytes | ≤ 8 | 8 bytes | holds | quick |",
        "| It is new. | Fig. 1 | ≤ 1 |  | not measured at this scale |  |",  # its bound was another
    ]
    assert "1 hold; 1 undecided." in text
    assert "at scale `full` on 2026-11-01 in 1 min 1 s (Sample CPU, 2 cores, torch 2.13.0)" in text
    reworded = verdicts.table(CLAIMS, [run("full", 0, 2.0, says="It is slow."), run("quick", 1, 1.0)])
    assert "| 1× | **falls short** | quick |" in rows(reworded)[0]


def test_a_page_gets_the_table_before_it_says_when_not_to_use_it_and_again_in_the_same_place():
    page = "# Sophia\n\n## What for\n\ntext\n\n## When not to use it\n\nnever\n"
    once = verdicts.splice(page, "first")
    assert once.index("## What for") < once.index(verdicts.HEAD) < once.index("first") < once.index("## When not")
    twice = verdicts.splice(once, "second")
    assert twice == once.replace("first", "second")
    assert verdicts.splice("# Sophia\n", "first").startswith("# Sophia\n\n" + verdicts.HEAD)


def test_the_command_writes_the_pages_of_methods_that_ran(tmp_path):
    key = "sgd-stability"
    page = tmp_path / f"{key}.md"
    page.write_text("# It\n")
    store = Store(tmp_path / "store")
    command = ["verdicts", str(tmp_path), "--out", str(store.root)]
    assert CliRunner().invoke(app, command).exit_code == 2
    store.write(run("quick", 1, 2.0, key=key))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert page.read_text().count("\n| ") == 1 + len(registry.load_study(key).CLAIMS)


@pytest.mark.parametrize("key", registry.METHODS)
def test_every_page_shows_the_claims_as_they_stand(key):
    page = (PAGES / f"{key}.md").read_text("utf-8")
    assert verdicts.OPEN in page, f"no verdicts: steepest run {key}, then steepest verdicts"
    shown = page.split(verdicts.OPEN)[1].split(verdicts.CLOSE)[0]
    claims = registry.load_study(key).CLAIMS
    table = [line for line in shown.splitlines() if line.startswith("| ")][1:]
    assert len(table) == len(claims)
    for line, claim in zip(table, claims):
        _, bare = verdicts.table([claim], [run("quick", 0, 1.0)]).rsplit("\n", 1)
        assert line.split(" | ")[:3] == bare.split(" | ")[:3], "steepest verdicts writes it anew"
