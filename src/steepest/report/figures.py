"""Figures as Vega-Lite: from what a study declares and what its runs logged to a specification, an SVG, a table.

Colours are properties of the style sheet (``var(--s1)``), so that one drawing serves light and dark pages; files that
stand alone get the values (`theme.resolve`). Rules of the drawing: no frame, one baseline, hairlines on the value axis
only, at most 8 tick labels, the axis title level above the axis, names at the ends of lines instead of a legend, our
method 2.75 px and peers 1.75 px wide, references dashed grey, bands at 13 %.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from steepest.core.errors import SteepestWarning
from steepest.core.extras import MissingExtra, require
from steepest.core.records import RunRecord, Store, write_atomically
from steepest.report import pictures, theme
from steepest.report.drawing import MAX_POINTS, Drawing, Line, drawings, thin
from steepest.report.text import THIN, number, power
from steepest.studies import registry
from steepest.studies.claim import Figure

__all__ = ["bundle", "draw_run", "specification", "svg"]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.1.json"
HEIGHT, HEIGHT_SMALL = 400, 280
LABEL_GAP, LETTER = 16, 7.2
USUAL_WIDTH = 620  # of the plot; the page decides it later
FONT = 'Inter, "Helvetica Neue", Arial, sans-serif'

Spec = dict[str, Any]


# ------------------------------------------------------------------------------------------------- specifications


def specification(
    drawing: Drawing,
    *,
    width: int | None = None,
    height: int = HEIGHT,
    labels: bool = True,
    points: int = MAX_POINTS,
) -> Spec:
    """Make the Vega-Lite specification of a figure.

    Parameters
    ----------
    width : int, optional
        In pixels; by default that of the box it is put into.
    height : int
        Of the whole picture in pixels.
    labels : bool
        Names at the ends of lines.
    points : int
        Of each line at most.
    """
    data: dict[str, list[Spec]] = {}
    if drawing.figure.kind == "line":
        lines = [x for x in drawing.lines if len(x.steps)]
        data = {f"line_{i}": _rows(x, thin(x.steps, points, log=drawing.figure.log_x)) for i, x in enumerate(lines)}
        layers, right = _line_layers(drawing.figure, lines, list(data), width, height if labels else None)
    else:
        layers, right = _dot_layers(drawing, max(190, (width or 0) // 2))
    return {
        "$schema": SCHEMA,
        "description": drawing.sentence,
        "width": width or "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": {"left": 2, "right": 12, "top": 6, "bottom": 2},
        "usermeta": {"right": right},  # about what the names at the right will take
        "background": "transparent",
        "config": _config(),
        "datasets": data,
        "layer": [layer | {"name": f"{layer['name']}_{i}"} for i, layer in enumerate(layers)],
    }


def _config() -> Spec:
    grey = {"labelColor": "var(--ink-3)", "titleColor": "var(--ink-3)", "domainColor": "var(--line-2)"}
    return {
        "aria": False,
        "font": FONT,
        "view": {"stroke": None},
        "axis": grey
        | {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "var(--line)"}
        | {"tickColor": "var(--line-2)", "tickSize": 4, "labelPadding": 6},
    }


def _positive(parts: Sequence[np.ndarray], log: bool) -> np.ndarray:
    """All values that an axis must hold."""
    found = np.concatenate(parts)
    return found[found > 0] if log else found


def _domain(values: np.ndarray, log: bool, *, zero: bool = False) -> tuple[float, float]:
    """Extent of an axis with a little air."""
    low, high = float(values.min()), float(values.max())
    if log:
        air = max((high / low) ** 0.04, 1.02)
        return low / air, high * air
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    air = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low - air if low or not zero else low), (high + air if high or not zero else high)


def _ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: at most 8, decades where there are enough of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))

    def inside(values: Sequence[float]) -> list[float]:
        return [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]

    decades = inside([float(f"1e{e}") for e in range(first, last + 1)])
    if len(decades) >= 3:
        return decades[:: math.ceil(len(decades) / 8)]
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = inside([float(f"{d}e{e}") for e in range(first, last + 1) for d in digits])
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 8)]
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    start = math.ceil(low / step)
    even = [float(f"{(start + i) * step:.6g}") for i in range(math.floor(high / step) - start + 1)]
    return even[:: math.ceil(len(even) / 8)] if even else [low, high]


def _axis(title: str, log: bool, domain: tuple[float, float], *, value: bool) -> Spec:
    """One axis; the title of a value axis stands level above it."""
    axis: Spec = {"title": title, "grid": value, "domain": not value, "ticks": not value, "labelOverlap": True}
    if log:
        ticks = _ticks(*domain)
        axis |= {"values": ticks, "labelExpr": f"{json.dumps([power(t) for t in ticks], ensure_ascii=False)}[indexof("
                 f"{json.dumps(ticks)}, datum.value)]"}  # fmt: skip
    else:
        axis |= {"tickCount": 6, "labelExpr": f"replace(datum.label, regexp(',', 'g'), '{THIN}')"}
    return axis


def _above(axis: Spec, extent: int = 46) -> Spec:
    """Put the title of an upright axis level above it."""
    place = {"titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleX": -extent, "titleY": -10}
    return axis | place | {"minExtent": extent, "maxExtent": extent}


def _scale(log: bool, domain: tuple[float, float]) -> Spec:
    return {"type": "log" if log else "linear", "domain": list(domain), "nice": False} | (
        {} if log else {"zero": False}
    )


def _rows(x: Line, few: np.ndarray) -> list[Spec]:
    rows = [{"step": float(x.steps[i]), "value": _short(x.median[i])} for i in few]
    if len(x.last) > 1:
        for row, i in zip(rows, few):
            row |= {"low": _short(x.low[i]), "high": _short(x.high[i])}
    return rows


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _line_layers(
    f: Figure, lines: Sequence[Line], names: Sequence[str], width: int | None, labels: int | None
) -> tuple[list[Spec], int]:
    """Bands, lines, their ends, and (`labels`: the height) their names; and the room to leave at the right."""
    xs = _domain_x(np.concatenate([x.steps for x in lines]))
    ys = _domain(_positive([v for line in lines for v in (line.low, line.high)], f.log_y), f.log_y)
    x = {"field": "step", "type": "quantitative", "scale": _scale(f.log_x, xs)}
    x["axis"] = _axis(f.x, f.log_x, xs, value=False) | {"titleAnchor": "end", "titleAlign": "right", "titlePadding": 6}
    y = {"field": "value", "type": "quantitative", "scale": _scale(f.log_y, ys)}
    y["axis"] = _above(_axis(f.y, f.log_y, ys, value=True))
    behind = sorted(zip(lines, names), key=lambda item: item[0].own)  # our method is drawn last
    layers = [_band(line, name, x, y) for line, name in behind if len(line.last) > 1]
    layers += [_curve(line, name, x, y) for line, name in behind]
    layers[-1]["params"] = ZOOM
    layers += [_end(line) for line, _ in behind]
    if labels is None:
        return layers, 0
    right = min(16 + round(LETTER * max(len(line.method) for line in lines)), 190)
    plot = width - 60 - right if width else USUAL_WIDTH
    return layers + _labels(lines, xs, ys, f, plot, labels), right


ZOOM: list[Spec] = [
    {
        "name": "zoom",
        "bind": "scales",
        "select": {"type": "interval", "encodings": ["x"], "translate": False, "zoom": "wheel![event.ctrlKey]"},
    },
    {"name": "brush", "select": {"type": "interval", "encodings": ["x"], "translate": False, "zoom": False}},
]
"""Dragging marks a range, which the page's script hands to the axis; wheel with Ctrl (a pinch) zooms."""

STEP: Spec = {"field": "step", "type": "quantitative"}


def _band(line: Line, data: str, x: Spec, y: Spec) -> Spec:
    return {
        "name": "band",
        "data": {"name": data},
        "mark": {"type": "area", "clip": True, "color": line.mark.color, "fillOpacity": 0.13},
        "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}},
    }


def _curve(line: Line, data: str, x: Spec, y: Spec) -> Spec:
    ink = {"stroke": line.mark.color, "strokeWidth": 2.75 if line.own else 1.75, "strokeDash": line.mark.dash}
    return {
        "name": "line",
        "description": line.method,
        "data": {"name": data},
        "mark": {"type": "line", "clip": True, "strokeJoin": "round"} | ink,
        "encoding": {"x": x, "y": y},
    }


def _end(line: Line) -> Spec:
    """The marker at a line's end; a cross where the values stop being finite."""
    mark: Spec = {"type": "point", "opacity": 1, "stroke": line.mark.color}
    if line.stopped:
        mark |= {"size": 60, "strokeWidth": 2.5, "shape": "M-1,-1L1,1M1,-1L-1,1", "clip": True}
    else:
        fill = "var(--bg)" if line.mark.slot == 8 else line.mark.color
        mark |= {"size": 70, "strokeWidth": 1.5, "fill": fill, "shape": line.mark.shape, "clip": False}
    where: Spec = {"x": STEP, "y": {"field": "value", "type": "quantitative"}}
    if not line.stopped:
        where["opacity"] = _unzoomed()
    return {"name": "end", "data": {"values": _rows(line, np.array([-1]))}, "mark": mark, "encoding": where}


def _domain_x(steps: np.ndarray) -> tuple[float, float]:
    low, high = float(steps.min()), float(steps.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5) if low <= 0.5 else (low / 1.5, high * 1.5)


def _unzoomed() -> Spec:
    """Hide what stands at the end of a line while the figure is zoomed."""
    return {"condition": {"test": "zoom_step == null", "value": 1}, "value": 0}


def _labels(
    lines: Sequence[Line], xs: tuple[float, float], ys: tuple[float, float], f: Figure, width: int, height: int
) -> list[Spec]:
    """Names at the right edge, each beside the end of its line, moved apart by 16 px."""
    log_x, log = f.log_x, f.log_y
    inner = height - 74

    def pixel(value: float) -> float:
        share = math.log(value / ys[0]) / math.log(ys[1] / ys[0]) if log else (value - ys[0]) / (ys[1] - ys[0])
        return (1 - share) * inner

    def value(pixel: float) -> float:
        share = 1 - pixel / inner
        return ys[0] * (ys[1] / ys[0]) ** share if log else ys[0] + share * (ys[1] - ys[0])

    def share(step: float) -> float:
        return math.log(step / xs[0]) / math.log(xs[1] / xs[0]) if log_x else (step - xs[0]) / (xs[1] - xs[0])

    whole = {
        line.method for line in lines if share(float(line.steps[-1])) > 0.9
    }  # the others are named where they stop
    ends = {line.method: pixel(float(line.median[-1])) for line in lines}
    at = dict(zip(whole, spread([ends[name] for name in whole], LABEL_GAP, 0, inner)))
    taken = [Box(width, at[name], name) for name in whole]
    inside = sorted((line for line in lines if line.method not in whole), key=lambda line: float(line.steps[-1]))
    before: set[str] = set()
    starts = {line.method: share(float(line.steps[-1])) * width for line in inside}
    for name, x in starts.items():
        others = [Box(starts[other] - 2 * LETTER, ends[other], "o") for other in starts if other != name]  # markers
        box = beside(Box(x, ends[name], name), [*taken, *others], inner)
        taken.append(box)
        at[name] = box.y
        if box.x < x:
            before.add(name)
    halo = {"stroke": "var(--bg)", "strokeWidth": 4, "strokeJoin": "round"}
    return [
        {
            "name": "label",
            "data": {"values": [{"step": float(line.steps[-1]), "at": _short(value(at[line.method]))}]},
            "mark": {"type": "text", "baseline": "middle", "clip": False}
            | ({"align": "right", "dx": -10} if line.method in before else {"align": "left", "dx": 10})
            | {"fontSize": 13, "fontWeight": 600, "fill": f"var(--t{line.mark.slot})", "text": line.method}
            | ink,
            "encoding": {
                "x": {"value": "width"} if line.method in whole else STEP,
                "y": {"field": "at", "type": "quantitative"},
                "opacity": _unzoomed(),
            },
        }
        for line in lines
        for ink in ([{}] if line.method in whole else [halo, {}])
    ]


def _wide(text: str) -> float:
    """Pixels that a name takes, about: capitals are wider."""
    return LETTER * len(text) + 2 * sum(letter.isupper() for letter in text)


class Box(NamedTuple):
    """Where a name begins, in pixels, and what it says."""

    x: float
    y: float
    text: str

    def meets(self, other: Box) -> bool:
        left, right = sorted((self, other))
        return abs(self.y - other.y) < LABEL_GAP - 1 and left.x + _wide(left.text) + 4 > right.x


def beside(box: Box, taken: Sequence[Box], high: float) -> Box:
    """Put a name where it is, before the marker, or up or down, whichever is nearest and meets no other; else leave it.

    Examples
    --------
    >>> beside(Box(100, 50, "Adam"), [Box(110, 48, "SGD")], 300)
    Box(x=49.2, y=50.0, text='Adam')
    >>> beside(Box(20, 50, "Adam"), [Box(30, 48, "SGD")], 300)
    Box(x=20, y=66.0, text='Adam')
    """
    half = LABEL_GAP / 2
    shifts = sorted((half * i for i in range(-int(high / half), int(high / half) + 1)), key=abs)
    before = box.x - 20 - _wide(box.text)
    tried = (
        box._replace(x=x, y=box.y + shift) for shift in shifts for x in ([box.x, before] if before >= 0 else [box.x])
    )
    return next((b for b in tried if 0 <= b.y <= high and not any(b.meets(t) for t in taken)), box)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart so that neighbours are `gap` away, as near to where they were as that allows.

    Examples
    --------
    >>> spread([10, 12, 50], 16, 0, 100)
    [3.0, 19.0, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # [sum of (position - offset), number of labels]
    for i in order:
        blocks.append([wanted[i], 1])
        while len(blocks) > 1 and _start(blocks[-2]) + blocks[-2][1] * gap > _start(blocks[-1]):
            total, n = blocks.pop()
            blocks[-1][0] += total - n * blocks[-1][1] * gap
            blocks[-1][1] += n
    placed, end = [0.0] * len(wanted), low - gap
    at = iter(order)
    for block in blocks:
        start = min(max(_start(block), end + gap), high - (block[1] - 1) * gap)
        for k in range(int(block[1])):
            end = start + k * gap
            placed[next(at)] = float(end)
    return placed


def _start(block: Sequence[float]) -> float:
    return block[0] / block[1]


def _dot_layers(drawing: Drawing, limit: int) -> tuple[list[Spec], int]:
    """Draw the last value of every name, median and range over seeds; a longer name than `limit` pixels is cut."""
    log = drawing.value_log
    lines = [line for line in drawing.lines if len(line.last)]
    bars = drawing.figure.kind == "bars" and not log  # a bar on a logarithmic axis has no foot
    domain = _domain(_positive([line.last for line in lines], log), log, zero=bars)
    widest = min(max(len(line.method) for line in lines) * 7 + 10, limit + 10)
    names: Spec = {"title": None, "domain": False, "ticks": False, "labelLimit": limit, "labelFontSize": 13}
    names |= {"labelColor": "var(--ink)", "minExtent": widest}
    y: Spec = {"field": "method", "type": "nominal", "sort": None, "axis": names}
    y["scale"] = {"domain": [line.method for line in lines]}
    x = {"field": "value", "type": "quantitative", "scale": _scale(log, domain)}
    x["axis"] = _axis(drawing.value_title, log, domain, value=True) | {"titleAnchor": "end", "titleAlign": "right"}
    layers: list[Spec] = []
    for line in lines:
        low, median, high = (_short(float(v)) for v in np.quantile(line.last, [0, 0.5, 1]))
        row = {"method": line.method, "value": median, "low": low, "high": high}
        data = {"values": [row]}
        if bars:
            mark: Spec = {"type": "bar", "height": {"band": 0.55}, "color": line.mark.color}
            layers.append({"name": "bar", "data": data, "mark": mark, "encoding": {"x": x, "y": y}})
        rule = {"type": "rule", "strokeWidth": 2, "color": "var(--ink)" if bars else line.mark.color}
        ends = {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y}
        layers.append({"name": "range", "data": data, "mark": rule, "encoding": ends})
        if not bars:
            fill = "var(--bg)" if line.mark.slot == 8 else line.mark.color
            mark = {"type": "point", "size": 90, "opacity": 1, "fill": fill, "stroke": line.mark.color}
            mark |= {"shape": line.mark.shape, "strokeWidth": 1.5}
            layers.append({"name": "dot", "data": data, "mark": mark, "encoding": {"x": x, "y": y}})
        text: Spec = {"type": "text", "align": "left", "dx": 10, "fontSize": 13, "color": "var(--ink-2)"}
        text |= {"text": number(median)}
        where = {"x": x | {"field": "high"}, "y": y}
        layers.append({"name": "number", "data": data, "mark": text, "encoding": where})
    return layers, 64


def dots_height(drawing: Drawing) -> int:
    """Height in pixels of a figure with one row a name."""
    return 76 + 30 * len(drawing.lines)


# ----------------------------------------------------------------------------------------------------- the drawing


def svg(spec: Spec, prefix: str) -> str:
    """Draw a specification; colours stay properties of the style sheet, ids begin with `prefix`.

    Raises
    ------
    MissingExtra
        vl-convert is not installed.
    """
    converter = require("vl_convert", "report", what="the drawing of figures")
    text: str = converter.vegalite_to_svg(spec)
    # the figure as a whole has a role and a sentence; parts that Vega marks as graphics of their own would have none
    text = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", text)
    numbers = itertools.count(1)
    for old in dict.fromkeys(re.findall(r'id="([^"]+)"', text)):
        new = f"{prefix}-{next(numbers)}"
        text = text.replace(f'id="{old}"', f'id="{new}"').replace(f"url(#{old})", f"url(#{new})")
    return re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d)\d+", r"\1", m[0]), text)


def bundle() -> str:
    """Make the script that draws figures in a page: Vega, Vega-Lite and Vega-Embed in one file.

    Raises
    ------
    MissingExtra
        vl-convert is not installed.
    """
    return _bundle(require("vl_convert", "report", what="interactive figures"))


@functools.cache
def _bundle(converter: ModuleType) -> str:
    text: str = converter.javascript_bundle()
    return text


def draw_run(store: Store, record: RunRecord) -> list[Path]:
    """Draw a run into its folder: ``figures/<id>.vl.json`` and ``.svg``, pictures as ``.png`` and ``-dark.png``.

    Raises
    ------
    MissingExtra
        vl-convert or matplotlib is not installed.
    """
    if not registry.has_study(record.key):
        return []
    study = registry.load_study(record.key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteepestWarning)
        series = store.series(record.id)
        images = pictures.available(store, record.id, study)
    folder, written = store.root / record.id / "figures", []
    for d in drawings(record.key, study.FIGURES, [p.name for p in study.PEERS], series):
        folder.mkdir(exist_ok=True)
        height = HEIGHT if d.figure.kind == "line" else dots_height(d)
        spec = specification(d, width=760, height=height) | {"background": "var(--bg)"}
        for name, content in (
            (f"{d.figure.id}.vl.json", json.dumps(spec, indent=1, ensure_ascii=False) + "\n"),
            (f"{d.figure.id}.svg", svg(spec, d.figure.id)),
        ):
            path = folder / name
            write_atomically(path, theme.resolve(content, "light"))
            written.append(path)
    for picture, arrays in images:
        folder.mkdir(exist_ok=True)
        for ink in (pictures.Ink(record.key, False), pictures.Ink(record.key, True)):
            path = folder / (f"{picture.id}-dark.png" if ink.dark else f"{picture.id}.png")
            try:
                path.write_bytes(pictures.draw(picture, arrays, ink))
            except (MissingExtra, OSError):
                raise
            except Exception as error:  # the study's drawing is at fault: the other pictures are drawn
                warnings.warn(f"picture {picture.id} could not be drawn: {error}", SteepestWarning, stacklevel=2)
                break
            written.append(path)
    return written
