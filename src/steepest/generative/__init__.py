"""Generative models: straight flows between two clouds of samples, and scores learned by regression.

``rectified_flow`` carries one distribution into another along paths that are made straight, so that one step suffices;
``score`` estimates the gradient of a log density by regression with noisy labels and says when to stop.
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "rectified_flow": ["FlowSample", "RectifiedFlow"],
        "_flow_training": ["FlowFit", "distill", "fit_flow", "rectify", "reflow", "simulate_coupling"],
        "_straightness": ["crossing", "straightness", "transport_cost"],
        "_velocities": ["GaussianSourceVelocity", "KernelVelocity", "MLPVelocity", "UNetVelocity"],
        "metrics": ["frechet_distance", "mmd2", "sliced_wasserstein"],
        "score": ["ScoreRegression"],
        "_diffusion": ["GaussianMixtureScore", "OUProcess"],
        "_tangent_kernel": ["KernelGradientFlow", "TwoLayerReLU", "empirical_ntk", "relu_ntk"],
        "_stopping": ["critical_radius", "early_stopping_step", "label_noise"],
    },
)
