"""Estimators for data on a manifold that only the data know, as scikit-learn estimators.

``vector_gp`` (Gaussian processes for vector fields) with ``_vector_fields``; ``heat_geodesic`` (embeddings that keep
geodesic distances) with ``_mds``; ``augmented_covariance`` (EEG by covariances of delay embeddings) with
``_delay_selection`` and ``_riemannian``.
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "vector_gp": ["VectorFieldGP"],
        "_vector_fields": ["divergence_curl", "furthest_point_sampling", "vector_diffusion"],
        "heat_geodesic": ["HeatGeodesicEmbedding", "phate_like", "sne_like"],
        "augmented_covariance": ["AugmentedCovariance", "DelayEmbedding", "augmented_covariance_pipeline"],
        "_delay_selection": [
            "cao_e1",
            "false_nearest_neighbours",
            "mdop",
            "mutual_information",
            "select_lag",
            "select_order",
        ],
    },
)
