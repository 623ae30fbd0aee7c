"""The paper's own setting: measured pressures on structured sections of a wing (DLR-F11), from a table of the user's.

The table is a CSV file with a header. Its columns: ``x, y, z`` (any unit of length), ``cp``, ``alpha`` (degrees),
``reynolds``, and optionally ``section`` (a number for each spanwise station; without it points of equal y form one) and
``wing`` (a number for each geometry). The rows of a section are in order, from the lower trailing edge round the
leading edge to the upper trailing edge. Sections may have different numbers of points: each is brought to `n_u` points
at equal shares of its arc length. So u is the share of the arc length and v counts the sections from root to tip.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steepest.core.errors import at_least, check, value_error
from steepest.studies.context import Context
from steepest.studies.wing_pressure_training import (
    BASELINE,
    GEOMETRY,
    Network,
    Run,
    Trained,
    Wings,
    per_wing,
    reduction,
    train_one,
)

__all__ = ["measure", "read_sections"]

COLUMNS = ("x", "y", "z", "cp", "alpha", "reynolds")
CLAIM = "gain-dlr-f11"
Array = NDArray[np.float64]


def read_sections(path: str | Path, n_u: int = 32) -> Wings:
    """Read a table of pressures on sections.

    Parameters
    ----------
    path : str or Path
        CSV file; see the module for its columns.
    n_u : int
        Points that every section is brought to, at least 4.

    Returns
    -------
    Wings
        One sample for each (wing, alpha, reynolds): points (n, n_u, n_sections, 3), conditions (n, 2) with the angle in
        degrees and the Reynolds number in millions, cp (n, n_u, n_sections). ``wing`` numbers the samples: on a single
        geometry it is conditions that are held out.

    Raises
    ------
    ValueError
        A column is missing, a value is no finite number, a section has fewer than 4 points or the samples differ in
        their number of sections.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> rows = ["x,y,z,cp,alpha,reynolds"]
    >>> rows += [f"{x},{y},0,{x * y},2,5e6" for y in range(4) for x in (1.0, 0.5, 0.0, 0.5, 1.0)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "table.csv"
    ...     _ = file.write_text(chr(10).join(rows))
    ...     read_sections(file, n_u=5).cp.shape
    (1, 5, 4)
    """
    check("n_u", n_u, at_least(4, integer=True))
    table, names = _table(Path(path))
    section = table[:, names.index("section")] if "section" in names else table[:, 1]
    wing = table[:, names.index("wing")] if "wing" in names else np.zeros(len(table))
    samples: dict[tuple[float, float, float], dict[float, list[Array]]] = {}
    for row, s, w in zip(table, section, wing):
        samples.setdefault((float(w), float(row[4]), float(row[5])), {}).setdefault(float(s), []).append(row[:4])
    grids = [
        np.stack([_even(np.array(points), s, n_u) for s, points in sorted(sections.items())], axis=1)
        for sections in samples.values()
    ]
    if len({grid.shape for grid in grids}) != 1:
        raise value_error("path", "a table with equal sections at every condition", sorted({g.shape[1] for g in grids}))
    grid = np.stack(grids)
    conditions = np.array([[alpha, reynolds / 1e6] for _, alpha, reynolds in samples])
    return Wings(grid[..., :3], conditions, grid[..., 3], np.arange(len(grid)))


def _table(path: Path) -> tuple[Array, list[str]]:
    """The columns x, y, z, cp, alpha, reynolds first, then section and wing where there are such."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        header = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise value_error("path", f"a table with the columns {', '.join(COLUMNS)}", header, f"add {missing[0]}")
        names = [*COLUMNS, *(name for name in ("section", "wing") if name in header)]
        rows = [[row[name] for name in names] for row in reader]
    try:
        table = np.array(rows, dtype=float).reshape(len(rows), len(names))
    except ValueError as error:
        raise value_error("path", "a table of numbers", str(error)) from None
    if not len(table) or not np.isfinite(table).all():
        raise value_error("path", "a table of finite numbers with at least one row", table)
    return table, names


def _even(points: Array, section: float, n_u: int) -> Array:
    """Bring the points (x, y, z, cp) of a section to equal shares of its arc length."""
    if len(points) < 4:
        raise value_error(f"section {section:g}", "at least 4 points", len(points))
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1))])
    if not (np.diff(length) > 0).all():
        raise value_error(f"section {section:g}", "points that differ, in order along the section", points)
    at = np.linspace(0, length[-1], n_u)
    return np.stack([np.interp(at, length, column) for column in points.T], axis=1)


def measure(ctx: Context) -> None:
    """Train both networks on the user's table, hold out a fifth of the conditions, compare them condition by condition.

    ``--max-steps`` limits the epochs, for a test of the code.
    """
    data = read_sections(ctx.data("path"))
    n = len(data.cp)
    order = ctx.rng.permutation(n)
    n_test = max(2, n // 5)
    if n - n_test < 2:
        raise value_error("data", "a table with at least 4 conditions", n)
    test, train = data.take(order[:n_test]), data.take(order[n_test:])
    epochs = 200 if ctx.max_steps is None else min(200, ctx.max_steps)
    network = Network(d_model=64, n_layers=4, epochs=epochs)
    trained: dict[str, list[Trained]] = {BASELINE.name: [], GEOMETRY.name: []}
    runs = [Run(variant, seed, 3e-3, network, train, test) for seed in ctx.seeds for variant in (BASELINE, GEOMETRY)]
    for k, run in enumerate(runs):
        trained[run.variant.name].append(train_one(run))
        ctx.progress((k + 1) / len(runs))
    base, ours = (per_wing(trained[v.name], test) for v in (BASELINE, GEOMETRY))
    found = reduction(base, ours)
    ctx.note(
        f"{n} conditions, {n_test} held out; MSE {base.mean():.4g} on coordinates, {ours.mean():.4g} with geometry."
    )
    if epochs < 200:
        ctx.skipped(CLAIM, f"{epochs} epochs: a test of the code")
    else:
        ctx.measured(CLAIM, found.percent, found.interval)
    ctx.against(BASELINE.name, float(base.mean() / ours.mean()), what="held-out conditions of the user's table")
