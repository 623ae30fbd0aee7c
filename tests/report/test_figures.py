from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest

from steepest.core.errors import SteepestWarning
from steepest.core.extras import MissingExtra
from steepest.core.records import Series
from steepest.report import figures
from steepest.report.drawing import drawings, thin
from steepest.studies.claim import Figure
from tests.report import sample

altair = pytest.importorskip("altair")
pytest.importorskip("vl_convert")


def draw(values_by_seed, **changes):
    """One figure with one method."""
    steps = changes.pop("steps", None)
    series = [
        Series(name="loss", method="AdamP", seed=i, values=v, steps=steps[i] if steps else list(range(len(v))))
        for i, v in enumerate(values_by_seed)
    ]
    figure = Figure("f", "title", "loss", "steps", "loss", **changes)
    return drawings("adamp", [figure], ["AdamW"], series)


def rows(drawing, name):
    spec = figures.specification(drawing)
    layer = next(x for x in spec["layer"] if x["name"].startswith(name))
    data = layer["data"]
    return spec["datasets"][data["name"]] if "name" in data else data["values"]


def test_a_line_is_the_median_over_seeds_with_its_10_to_90_band():
    [d] = draw([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    assert rows(d, "line") == [
        {"step": 0.0, "value": 2.0, "low": 1.2, "high": 5.2},
        {"step": 1.0, "value": 20.0, "low": 12.0, "high": 52.0},
    ]
    assert rows(d, "band") == rows(d, "line")


def test_one_seed_has_no_band():
    [d] = draw([[1.0, 2.0]])
    assert rows(d, "line") == [{"step": 0.0, "value": 1.0}, {"step": 1.0, "value": 2.0}]
    assert not any(x["name"].startswith("band") for x in figures.specification(d)["layer"])


def test_seeds_with_other_steps_are_read_between_their_own():
    [d] = draw([[0.0, 4.0], [2.0, 2.0, 2.0]], steps=[[0, 4], [0, 2, 4]])
    assert [(r["step"], r["value"]) for r in rows(d, "line")] == [(0.0, 1.0), (2.0, 2.0), (4.0, 3.0)]


def test_a_line_ends_with_a_cross_where_most_seeds_stop_being_finite():
    [d] = draw([[1.0, 1.0, None], [3.0, None, None], [5.0, 5.0, 5.0]])
    assert [(r["step"], r["value"]) for r in rows(d, "line")] == [(0.0, 3.0), (1.0, 3.0)]
    end = next(x for x in figures.specification(d)["layer"] if x["name"].startswith("end"))
    assert end["mark"]["shape"].startswith("M-1,-1L1,1")
    assert d.caption == "A cross: from there on not finite, AdamP (in 2 of 3 seeds)."


def test_what_a_logarithmic_axis_cannot_show_is_said():
    [d] = draw([[1.0, 0.0, 0.5]], log_y=True)
    assert [r["value"] for r in rows(d, "line")] == [1.0, 0.5]
    assert "no place on a logarithmic axis" in d.caption
    assert draw([[0.0, -1.0]], log_y=True) == []


@pytest.mark.parametrize("log", [False, True])
def test_thinning_keeps_the_ends_and_the_limit(log):
    steps = np.arange(1.0, 12_346.0)
    few = thin(steps, 400, log=log)
    assert few[0] == 0
    assert few[-1] == len(steps) - 1
    assert (np.diff(few) > 0).all()
    assert 250 < len(few) <= 400
    assert thin(np.arange(3.0), 400).tolist() == [0, 1, 2]


def test_a_line_has_at_most_400_points():
    values = np.linspace(3, 1, 5_000).tolist()
    [d] = draw([values, values])
    assert len(rows(d, "line")) == 400
    assert rows(d, "line")[0]["value"] == 3.0
    assert rows(d, "line")[-1]["value"] == 1.0


def test_dots_are_the_last_values_median_and_range():
    [d] = draw([[9.0, 1.0], [9.0, 2.0], [9.0, 6.0]], kind="dots")
    assert rows(d, "range") == [{"method": "AdamP", "value": 2.0, "low": 1.0, "high": 6.0}]
    axes = [x["encoding"]["x"]["axis"]["title"] for x in figures.specification(d)["layer"]]
    assert set(axes) == {"steps"}  # dots and bars lie: x is the axis of the values


def test_bars_begin_at_zero_and_never_stand_on_a_logarithmic_axis():
    [d] = draw([[4.0], [6.0]], kind="bars")
    bar = next(x for x in figures.specification(d)["layer"] if x["name"].startswith("bar"))
    assert bar["encoding"]["x"]["scale"]["domain"][0] == 0
    [d] = draw([[4.0], [6.0]], kind="bars", log_x=True)
    assert not any(x["name"].startswith("bar") for x in figures.specification(d)["layer"])


def test_ours_is_wider_and_drawn_last():
    study = sample.study("adamp")
    d = drawings("adamp", study.FIGURES, [p.name for p in study.PEERS], sample.series("adamp"))[0]
    curves = [x for x in figures.specification(d)["layer"] if x["name"].startswith("line")]
    assert [c["description"] for c in curves] == ["AdamW", "SGD", "AdamP", "SGDP"]
    assert [c["mark"]["strokeWidth"] for c in curves] == [1.75, 1.75, 2.75, 2.75]
    assert [c["mark"]["stroke"] for c in curves] == ["var(--s6)", "var(--s7)", "var(--s1)", "var(--s3)"]


def test_methods_chooses_and_orders():
    series = [Series(name="loss", method=m, seed=0, steps=[0, 1], values=[1, 2]) for m in ("a", "b", "c")]
    figure = Figure("f", "t", "loss", "x", "y", methods=("c", "a", "absent"))
    [d] = drawings("adamp", [figure], [], series)
    assert [line.method for line in d.lines] == ["c", "a"]


def every_drawing():
    study = sample.study("adamp")
    found = drawings("adamp", study.FIGURES, [p.name for p in study.PEERS], sample.series("adamp", n=50))
    extreme = [
        draw([[1e-12, 1e6]], log_y=True),
        draw([[3.0]]),
        draw([[3.0, 3.0]], log_x=True),
        draw([[0.0, 0.0]]),
        draw([[1.0, 1.01]], log_y=True),
        draw([[2.0], [2.5]], kind="dots", log_x=True),
        draw([[-2.0], [3.0]], kind="bars"),
    ]
    return found + [d for part in extreme for d in part]


@pytest.mark.parametrize("d", every_drawing(), ids=lambda d: d.figure.id + d.figure.kind)
def test_specifications_are_valid_vega_lite_and_can_be_drawn(d):
    for labels in (True, False):
        spec = figures.specification(d, width=400, labels=labels)
        altair.Chart.from_dict(spec)
        text = figures.svg(spec, "p")
        assert text.startswith("<svg")
        assert "NaN" not in text
        assert set(re.findall(r'id="([^"]*)"', text)) == set(re.findall(r"url\(#([^)]*)\)", text))


def test_an_axis_has_at_most_eight_labels():
    for low, high in ((1e-14, 1e3), (0.02, 2.4), (1.0, 1.02), (0.5, 9.0), (3e-5, 1e-3), (999.0, 1001.0)):
        ticks = figures._ticks(low, high)
        assert 2 <= len(ticks) <= 8
        assert all(low * 0.999 <= t <= high * 1.001 for t in ticks)


def test_labels_are_moved_apart():
    placed = figures.spread([100, 101, 102, 300, 399], 16, 0, 400)
    assert np.diff(placed).min() >= 16 - 1e-9
    assert placed[3] == 300
    assert placed[1] == pytest.approx(101)
    crowded = figures.spread([399, 400, 400], 16, 0, 400)
    assert crowded == [368, 384, 400]


def test_names_of_lines_that_stop_early_do_not_cover_one_another():
    ends = {"first to stop": 4, "second to stop": 5, "third": 4, "whole": 20}
    series = [
        Series(name="loss", method=m, seed=0, steps=range(n), values=np.linspace(2, 1, n).tolist())
        for m, n in ends.items()
    ]
    [d] = drawings("adamp", [Figure("f", "t", "loss", "x", "y")], [], series)
    names = [x for x in figures.specification(d)["layer"] if x["name"].startswith("label")]
    places = {}
    for x in names:
        mark, at = x["mark"], x["data"]["values"][0]
        begin = at["step"] / 19 * figures.USUAL_WIDTH + mark["dx"]
        wide = 7 * len(mark["text"])
        left = begin - wide if mark["align"] == "right" else begin
        places[mark["text"]] = (left, left + wide, (figures.HEIGHT - 74) * at["at"])  # the axis spans a little over 1
    assert places["whole"][2] == pytest.approx(figures.HEIGHT - 74)
    for one, other in itertools.combinations([places[m] for m in ends if m != "whole"], 2):
        apart = abs(one[2] - other[2]) > figures.LABEL_GAP - 2
        assert apart or one[1] < other[0] or other[1] < one[0]


def test_names_are_escaped_in_drawings():
    [d] = drawings("adamp", [Figure("f", "t", "s", "x", "y")], [], [
        Series(name="s", method=sample.EVIL, seed=0, steps=[0, 1], values=[1, 2])
    ])  # fmt: skip
    text = figures.svg(figures.specification(d, width=500), "p")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@pytest.fixture
def record(store):
    with pytest.warns(SteepestWarning, match="broken-run"):
        return store.latest("adamp")


@pytest.mark.filterwarnings("ignore:picture broken")
def test_draw_run_writes_whole_files_with_plain_colors(store, record):
    paths = figures.draw_run(store, record)
    names = ["loss", "accuracy", "final", "bars"]
    drawn = [f"{n}.{end}" for n in names for end in ("vl.json", "svg")]
    assert [p.name for p in paths] == [*drawn, "field.png", "field-dark.png"]
    for path in paths[: len(drawn)]:
        assert "var(--" not in path.read_text("utf-8")
    spec = json.loads(paths[0].read_text("utf-8"))
    altair.Chart.from_dict(spec)
    assert paths[0].parent == store.root / record.id / "figures"
    before = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in figures.draw_run(store, record)] == before
    assert not list(paths[0].parent.glob(".*"))


def test_without_the_extra_drawing_says_what_to_install(store, record, monkeypatch):
    def absent(package, extra, *, what):
        raise MissingExtra(what, package, extra)

    monkeypatch.setattr(figures, "require", absent)
    with pytest.raises(ImportError, match=r'pip install "steepest\[report\]"'):
        figures.draw_run(store, record)
