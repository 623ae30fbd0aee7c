"""Geometry without a mesh: neighbour graphs, tangent frames, connections, heat, and surfaces given by parameters.

``graph`` (neighbours, Laplacians, farthest points); ``connection`` (tangent frames, parallel transport, connection
Laplacian, indices of vector fields); ``eigenpairs`` (lowest eigenpairs of a sparse Laplacian); ``heat`` (heat kernel,
heat-geodesic distances); ``surface`` (metric, Christoffel symbols, curvatures).
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "graph": [
            "GeometryWarning",
            "alpha_decay_graph",
            "connected_components",
            "density_normalise",
            "farthest_points",
            "knn_graph",
            "laplacian",
            "radius_neighbors",
        ],
        "connection": [
            "TangentFrames",
            "connection_laplacian",
            "orient_frames",
            "parallel_transport",
            "tangent_frames",
            "vector_field_index",
        ],
        "eigenpairs": ["lowest_eigenpairs"],
        "heat": ["chebyshev_order", "heat_apply", "heat_geodesic_distance", "heat_kernel", "spectral_upper_bound"],
        "surface": ["SurfaceGeometry", "grid_geometry", "surface_features", "surface_geometry"],
    },
)
