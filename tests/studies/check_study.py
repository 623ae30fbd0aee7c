"""What the test of every study looks at: run it at tiny, draw it, run the code of its texts.

The functions take the study's module, so that a test says which study and what is special about it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from steepest.report.pictures import Ink
from steepest.studies.context import Context, Job, Unavailable

PAGES = Path(__file__).parents[2] / "docs" / "methods"


def key_of(study: ModuleType) -> str:
    """The key under which a study runs."""
    return study.__name__.rpartition(".")[2].replace("_", "-")


def run_tiny(study: ModuleType) -> Context:
    """The study's context after a run at tiny."""
    ctx = Context(study, Job(key_of(study), "tiny"))
    study.run(ctx)
    return ctx


def check_measured(
    study: ModuleType, ctx: Context, unless: Collection[str] = (), infinite: Collection[str] = ()
) -> None:
    """Every claim but the paper's own has a finite number, or a reason in which a word of `unless` occurs.

    Those in `infinite` may be so at tiny, where budgets are too small to arrive.
    """
    for claim in study.CLAIMS:
        if claim.scales == "paper":
            continue
        value, _, reason = ctx._measured[claim.id]
        if value is None:
            assert any(word in reason for word in unless), (claim.id, reason)
        else:
            assert math.isfinite(value) or claim.id in infinite, claim.id


def check_logged(study: ModuleType, ctx: Context, missing: Collection[str] = (), fewer: Collection[str] = ()) -> None:
    """Series are finite, figures find all their lines and pictures their arrays.

    Figures in `missing` may be without a series here, those in `fewer` have fewer lines at tiny.
    """
    for series in ctx.series_log:
        assert all(v is not None and math.isfinite(v) for v in series.values), (series.name, series.method)
    for figure in study.FIGURES:
        drawn = {s.method for s in ctx.series_log if s.name == figure.series}
        if figure.id not in missing:
            assert drawn, figure.id
            assert figure.id in fewer or set(figure.methods) <= drawn, (figure.id, set(figure.methods) - drawn)
    assert {picture.arrays for picture in getattr(study, "PICTURES", ())} <= set(ctx.arrays_log)


def check_pictures(study: ModuleType, ctx: Context) -> None:
    """Every picture can be drawn in both inks, and draws something."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    for picture in study.PICTURES:
        for dark in (False, True):
            figure = Figure(figsize=picture.size)
            picture.draw(figure, ctx.arrays_log[picture.arrays], Ink(key_of(study), dark))
            assert any(ax.has_data() for ax in figure.axes), picture.id


def check_refuses_without_accelerator(study: ModuleType, word: str = "CUDA") -> None:
    """The paper's scale says what is missing."""
    if torch.cuda.is_available():
        pytest.skip("here it would train for hours")
    with pytest.raises(Unavailable, match=word):
        study.run(Context(study, Job(key_of(study), "paper")))


def check_texts(study: ModuleType) -> dict[str, Any]:
    """The snippet and the page's code run; reasons belong to claims, and there is a word on when not to use it.

    Returns
    -------
    dict
        The names that the page's code leaves behind.
    """
    exec(compile(study.SNIPPET, "SNIPPET", "exec"), {})
    page = PAGES / f"{key_of(study)}.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert set(study.REASONS) <= {claim.id for claim in study.CLAIMS}
    assert study.WHEN_NOT
    return names
