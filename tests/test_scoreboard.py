from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from steepest import scoreboard
from steepest.cli import app
from steepest.core.errors import SteepestWarning

HERE = {
    "processor": "Sample CPU",
    "cores": 2,
    "python": "3.11.7",
    "libraries": {"torch": "2.13.0"},
    "accelerator": "none",
}


def row(name="step", ratio=None, interval=None, peer=None, better="lower", bound=None, ours=2.0, unit="s"):
    return {"name": name, "what": "a | b", "unit": unit, "ours": ours, "peer": peer, "ratio": ratio,
            "interval": interval, "bound": bound, "better": better}  # fmt: skip


ROWS = [
    row("fast", 0.25, (0.2, 0.3), "AdamW", bound="<= 0.5"),
    row("slow", 2.0, (1.8, 2.2), "SGD", bound="<= 1"),
    row("level", 1.1, (0.9, 1.3), "Lion <x>"),
    row("more is better", 3.0, (2.0, 4.0), "Sophia", better="higher"),
    row("limit", 1.5, None, "bandwidth limit"),
    row("grows", unit="exponent", ours=1.02),
    row("held", unit="MiB", ours=300.0),
    row("held more", unit="GiB", ours=1.5),
]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "benchmarks" / "results"
    place.mkdir(parents=True)
    for name, day, rows in (("adamp", 1, ROWS[1:2]), ("adamp", 2, ROWS), ("curvature", 1, ROWS[5:6])):
        raw = {"name": name, "date": datetime(2026, 11, day, tzinfo=UTC).isoformat(), "environment": HERE, "rows": rows}
        (place / f"{name}-{day}.json").write_text(json.dumps(raw))
    return place


def test_the_newest_of_each_is_read_methods_first_and_damage_is_named(folder):
    (folder / "broken.json").write_text("{")
    with pytest.warns(SteepestWarning, match="broken.json"):
        found = scoreboard.read_results(folder)
    assert [(r.title, r.date.day) for r in found] == [("AdamP and SGDP", 2), ("Curvature", 1)]


def test_the_summary_counts_sides_and_knows_limits_exponents_and_memory(folder):
    text = scoreboard.page(scoreboard.read_results(folder), "x.svg")
    (line,) = (line for line in text.splitlines() if line.startswith("| AdamP and SGDP |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "2, 1, 1"
    assert cells[2] == "2× behind SGD (slow)"
    assert cells[3] == "1.5"
    assert cells[4] == "1.02"
    assert cells[5] == "1.5 GiB"
    assert cells[6] == "1 of 2 met"
    assert "| fast: a / b | 2 s | AdamW | 0.25 (0.2 to 0.3) | <= 0.5 | met |" in text
    assert "2026-11-02, machine 1." in text


def test_the_chart_is_a_picture_with_a_dot_for_each_peer(folder):
    tree = ET.fromstring(scoreboard.chart(scoreboard.read_results(folder)))
    dots = tree.findall(".//{*}circle")
    assert [d.get("class") for d in dots] == ["a", "b", "l", "a"]
    x = [float(d.get("cx")) for d in dots]
    assert x[1] < x[2] < x[3] < x[0]
    assert x[0] - x[1] == pytest.approx(scoreboard._at(4.0) - scoreboard._at(0.5), abs=0.11)


def test_the_command_writes_page_and_chart(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["scoreboard"])
    assert result.exit_code == 0, result.output
    assert "2 benchmarks in docs/scoreboard.md" in result.output
    assert "(scoreboard.svg)" in (tmp_path / "docs" / "scoreboard.md").read_text()
    assert (tmp_path / "docs" / "scoreboard.svg").is_file()
    monkeypatch.chdir(tmp_path / "docs")
    assert CliRunner().invoke(app, ["scoreboard"]).exit_code == 2
