"""The heat-geodesic study on cells that a user brings: PBMC3k, embryoid bodies, CITE-seq or any other AnnData.

``--data`` names a file ``.h5ad`` (or a folder, with ``--option data=NAME.h5ad``). The column ``label`` of its cells
gives the types, the column ``time`` the time at which they were taken; what is there is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from steepest.core.extras import MissingExtra, installed, require
from steepest.studies.context import Context, Unavailable
from steepest.studies.heat_geodesic_data import Sample, annotated, code_test, differentiation
from steepest.studies.heat_geodesic_peers import OURS, embeddings, plane
from steepest.studies.heat_geodesic_scores import cluster_scores, interpolation_errors

__all__ = ["CODE_TEST", "own_cells"]

CODE_TEST = "a test of the code on a few simulated cells"


def own_cells(ctx: Context) -> None:
    """Measure clusters and withheld times on the user's cells."""
    try:
        types, times = _read(ctx)
    except (MissingExtra, Unavailable) as error:
        for claim in ("own-cells-clusters", "own-cells-times"):
            ctx.skipped(claim, str(error))
        return
    if "PHATE" not in embeddings("PHATE"):
        for claim in ("own-cells-clusters", "own-cells-times"):
            ctx.skipped(claim, "PHATE is not installed")
        return
    names = ("PHATE",) if code_test(ctx) else ("PHATE", "UMAP")  # UMAP compiles for a minute
    X = next(s.X for s in (types, times) if s is not None)
    planes = {OURS: plane(X)} | {name: embed(X, ctx.seed) for name, embed in embeddings(*names).items()}
    if types is None or types.labels is None:
        ctx.skipped("own-cells-clusters", f"the cells have no column {_column(ctx, 'label')}")
    else:
        ami = {name: cluster_scores(Y, types.labels)["AMI"] for name, Y in planes.items()}
        ctx.note(f"AMI on {len(X)} cells: " + ", ".join(f"{name} {value:.3f}" for name, value in ami.items()) + ".")
        _report(ctx, "own-cells-clusters", ami[OURS] - ami["PHATE"])
    if times is None or times.position is None:
        ctx.skipped("own-cells-times", f"the cells have no column {_column(ctx, 'time')} of numbers")
    else:
        bins = np.unique(times.position, return_inverse=True)[1]
        errors = {name: float(interpolation_errors(Y, bins).mean()) for name, Y in planes.items()}
        _report(ctx, "own-cells-times", errors[OURS] / errors["PHATE"])


def _report(ctx: Context, claim: str, value: float) -> None:
    if code_test(ctx):
        ctx.skipped(claim, CODE_TEST)
    else:
        ctx.measured(claim, value)


def _read(ctx: Context) -> tuple[Sample | None, Sample | None]:
    """The user's cells with their types, and with their times."""
    if code_test(ctx):
        cells = differentiation(60, seed=ctx.seed)
        assert cells.position is not None
        return cells, Sample(cells.X, position=np.floor(4 * cells.position))
    path = Path(ctx.data("path"))
    path = path / ctx.options["data"] if path.is_dir() and "data" in ctx.options else path
    if path.suffix != ".h5ad" or not path.is_file():
        raise Unavailable(f"{path.name} is no .h5ad file: name one with --option data=NAME.h5ad")
    reader: Any = require("anndata" if installed("anndata") else "scanpy", what="reading AnnData")
    cells = reader.read_h5ad(path)
    wanted = [_column(ctx, name) for name in ("label", "time")]
    types, times = (annotated(cells, column) if column in cells.obs else None for column in wanted)
    return types, times


def _column(ctx: Context, name: str) -> str:
    return ctx.options.get(name, {"label": "cell_type", "time": "time"}[name])
