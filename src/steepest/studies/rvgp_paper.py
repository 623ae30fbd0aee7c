"""RVGP's study at the paper's size: the Stanford bunny from a mesh file, and the authors' EEG fields from MATLAB files.

Meshes are read here (Wavefront OBJ; PLY as text or little-endian binary); MATLAB files by SciPy, up to version 7.2.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from steepest.core.errors import value_error
from steepest.geometry.connection import tangent_frames
from steepest.geometry.graph import knn_graph
from steepest.manifold import VectorFieldGP, furthest_point_sampling, vector_diffusion
from steepest.studies.context import Context
from steepest.studies.rvgp_fields import relative_error
from steepest.studies.rvgp_peers import eigenvector_gp, laplacian_eigenvectors, spherical_spline

__all__ = ["measure", "read_fields", "read_mesh"]

Array = np.ndarray
SPACING = 0.015  # share of the diameter between points: official example
N_EIGENPAIRS = 100
PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip


def measure(ctx: Context) -> None:
    """The bunny of ``--data``, and the EEG fields of the option ``eeg``."""
    points = read_mesh(ctx.data("path"))
    sample = points[furthest_point_sampling(points, spacing=SPACING)]
    if ctx.max_steps is not None:
        sample = points[furthest_point_sampling(points, n=min(len(points), 200))]
    graph = knn_graph(sample, 10)
    frames = tangent_frames(sample, n_neighbors=15, dim=2, graph=graph).frames
    k = min(N_EIGENPAIRS, len(sample) // 4)
    features = laplacian_eigenvectors(sample, k)
    logs = []
    for seed in ctx.seeds:
        rng = np.random.default_rng(seed)
        angle = rng.uniform(0, 2 * np.pi, len(sample))
        start = np.einsum("nda,na->nd", frames, np.stack([np.cos(angle), np.sin(angle)], axis=1))
        truth = vector_diffusion(start, 100.0, frames, graph)
        hidden = rng.permutation(len(sample)) >= len(sample) // 2
        y = np.where(hidden[:, None], np.nan, truth)
        ours = ctx.timed("RVGP", lambda y=y: VectorFieldGP(k, dim=2).fit(sample, y).predict(sample))  # type: ignore[misc]
        peer = ctx.timed("baseline", lambda y=y: eigenvector_gp(features, y))  # type: ignore[misc]
        errors = [relative_error(field[hidden], truth[hidden]) for field in (ours, peer)]
        logs.append(np.log(errors[0] / errors[1]))
        ctx.note(f"Bunny, {len(sample)} points, seed {seed}: error {errors[0]:.4f}, baseline {errors[1]:.4f}.")
    ctx.measured("bunny", float(np.exp(np.mean(logs))))
    if "eeg" not in ctx.options:
        ctx.skipped("eeg-fields", "give the authors' MATLAB file with --option eeg=PATH")
        return
    X, Y = read_fields(
        ctx.options["eeg"], ctx.options.get("positions", "positions"), ctx.options.get("fields", "fields")
    )
    if ctx.max_steps is not None:
        Y = Y[: ctx.max_steps]
    low = np.zeros(len(X), dtype=bool)
    low[furthest_point_sampling(X, n=min(61, len(X) // 2))] = True
    means = VectorFieldGP(min(N_EIGENPAIRS, len(X) // 4), dim=2).fit_many(X, np.where(low[:, None], Y, np.nan))
    splines = [spherical_spline(X - X.mean(axis=0), np.where(low[:, None], frame, np.nan)) for frame in Y]
    both = [relative_error(np.stack(found)[:, ~low], Y[:, ~low]) for found in (means, splines)]
    ctx.measured("eeg-fields", both[0] / both[1])


def read_mesh(path: str | Path) -> Array:
    """Vertices (n, 3) of an OBJ or PLY file.

    Raises
    ------
    ValueError
        Another suffix, a big-endian PLY file, or one without vertices x, y, z as first element.
    """
    path = Path(path)
    if path.suffix.lower() == ".obj":
        rows = [line.split()[1:4] for line in path.read_text().splitlines() if line.startswith("v ")]
        if not rows:
            raise value_error("data", "an OBJ file with vertices", path.name)
        return np.array(rows, dtype=float)
    if path.suffix.lower() == ".ply":
        return _read_ply(path.read_bytes(), path.name)
    raise value_error("data", "an OBJ or PLY file", path.name)


def _read_ply(content: bytes, name: str) -> Array:
    end = re.search(rb"end_header\r?\n", content)
    if not content.startswith(b"ply") or end is None:
        raise value_error("data", "a PLY file with a header", name)
    header = content[: end.start()].decode("ascii", "replace").splitlines()
    elements = [line.split() for line in header if line.startswith("element")]
    if not elements or elements[0][1] != "vertex":
        raise value_error("data", "a PLY file whose first element is vertex", name)
    count, columns, inside = int(elements[0][2]), [], False
    for line in header:
        if line.startswith("element"):
            inside = line.split()[1] == "vertex"
        elif inside and line.startswith("property"):
            columns.append(line.split()[1:])
    if any(kind[0] == "list" for kind in columns) or not {"x", "y", "z"} <= {kind[-1] for kind in columns}:
        raise value_error("data", "a PLY file with scalar x, y, z for each vertex", name)
    names = [kind[-1] for kind in columns]
    coding = next(line.split()[1] for line in header if line.startswith("format"))
    if coding == "ascii":
        rows = content[end.end() :].decode("ascii").split("\n")[:count]
        table = np.array([row.split()[: len(names)] for row in rows], dtype=float)
        return table[:, [names.index(axis) for axis in "xyz"]]
    if coding != "binary_little_endian":
        raise value_error("data", "a PLY file as text or little-endian binary", coding)
    layout = np.dtype([(label, "<" + PLY_TYPES[kind]) for kind, label in columns])
    vertices = np.frombuffer(content, layout, count, end.end())
    return np.stack([vertices[axis].astype(float) for axis in "xyz"], axis=1)


def read_fields(path: str | Path, positions: str = "positions", fields: str = "fields") -> tuple[Array, Array]:
    """Electrode positions (n, 3) and frames (T, n, 3) from a MATLAB file.

    Raises
    ------
    ValueError
        A name that the file lacks, or shapes other than (n, 3) and (n, 3) or (n, 3, T).
    """
    from scipy.io import loadmat

    content: dict[str, Any] = loadmat(path)
    for name in (positions, fields):
        if name not in content:
            held = ", ".join(sorted(key for key in content if not key.startswith("__")))
            raise value_error("option positions or fields", f"the name of a variable of the file ({held})", name)
    X, Y = np.asarray(content[positions], dtype=float), np.asarray(content[fields], dtype=float)
    Y = Y[..., None] if Y.ndim == 2 else Y
    if X.ndim != 2 or X.shape[1] != 3 or Y.shape[:2] != X.shape:
        raise value_error("fields", "of shape (n, 3, frames) with positions (n, 3)", Y)
    return X, np.moveaxis(Y, 2, 0)
