r"""Index of a tangent vector field in the triangles of a surface.

With omega_ij the angle from v_i to R_ij v_j, both in frame i, and Omega the holonomy R_ij R_jk R_ki as an angle, the
index of a triangle i, j, k seen counterclockwise is (omega_ij + omega_jk + omega_ki - Omega) / 2 pi.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steepest.core.errors import value_error
from steepest.geometry._transport import as_frames, as_vertices, overlaps
from steepest.geometry.graph import as_points

__all__ = ["vector_field_index"]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]


def vector_field_index(X: ArrayLike, vectors: ArrayLike, frames: Any, faces: ArrayLike) -> NDArray[np.int64]:
    """Compute the Poincaré index of a tangent vector field in each triangle.

    The turning of the field along the edges of a face, in the connection of the frames, less the holonomy of the
    connection around it, in turns: 1 around a vortex or a source, -1 at a saddle, 0 elsewhere. On a closed surface the
    indices add up to the Euler characteristic.

    Parameters
    ----------
    X : array_like, shape (n, D)
    vectors : array_like, shape (n, D)
        Their parts within the frames count; none may vanish at a corner of a face.
    frames : array_like, shape (n, D, 2), or TangentFrames
        Oriented (`orient_frames`).
    faces : array_like of int, shape (m, 3)
        Corners, in any order.

    Returns
    -------
    ndarray of int64, shape (m,)

    Raises
    ------
    ValueError
        Shapes that do not agree, ``d != 2``, frames that are not oriented along the edges of a face, or a vector that
        vanishes.

    Examples
    --------
    >>> corners = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])
    >>> frames = np.repeat(np.eye(2)[None], 3, axis=0)
    >>> source, saddle, even = corners, corners * [1, -1], 0 * corners + 1
    >>> [int(vector_field_index(corners, v, frames, [[0, 2, 1]])[0]) for v in (source, saddle, even)]
    [1, -1, 0]
    """
    points, field, T = as_points(X), as_points(vectors, "vectors"), as_frames(frames)
    if T.shape[2] != 2:
        raise value_error("frames", "of 2-D tangent planes (n, D, 2)", T)
    if T.shape[:2] != points.shape:
        raise value_error("frames", f"of shape ({points.shape[0]}, {points.shape[1]}, 2) as X asks", T)
    if field.shape != points.shape:
        raise value_error("vectors", f"of the shape of X {points.shape}", field)
    corners = as_vertices("faces", faces, len(points))
    if corners.ndim != 2 or corners.shape[1] != 3:
        raise value_error("faces", "of shape (m, 3)", corners)
    components = np.einsum("nDd,nD->nd", T, field)
    if not (np.linalg.norm(components, axis=1)[corners] > 0).all():
        raise value_error("vectors", "nonzero within the frames at the corners of faces", "one that vanishes")
    heading = np.arctan2(components[:, 1], components[:, 0])
    turning, holonomy = np.zeros(len(corners)), np.zeros(len(corners))
    for start, end in ((0, 1), (1, 2), (2, 0)):
        i, j = corners[:, start], corners[:, end]
        M = overlaps(T, i, j)
        if not (np.linalg.det(M) > 0).all():
            raise value_error(
                "frames", "oriented along the edges of the faces", "some of opposite orientation", "orient_frames"
            )
        rotation = np.arctan2(M[:, 1, 0] - M[:, 0, 1], M[:, 0, 0] + M[:, 1, 1])  # of the nearest rotation R_ij
        turning += _wrapped(heading[j] + rotation - heading[i])
        holonomy += rotation
    a, b, c = corners.T
    sides = [np.einsum("mDd,mD->md", T[a], points[end] - points[a]) for end in (b, c)]
    area = sides[0][:, 0] * sides[1][:, 1] - sides[0][:, 1] * sides[1][:, 0]
    turns = np.rint((turning - _wrapped(holonomy)) / (2 * np.pi)).astype(np.int64)
    return turns * np.where(area < 0, -1, 1)


def _wrapped(angle: Floats) -> Floats:
    """Give the same angle within (-pi, pi]."""
    return np.pi - np.mod(np.pi - angle, 2 * np.pi)
