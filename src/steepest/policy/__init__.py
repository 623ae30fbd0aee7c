"""Policies that learn from reward, as Stable-Baselines3 algorithms.

``variance_reduced`` (policy gradients with implicit transport or Hessian-aided recursion) on ``_ascent`` (the same
recursions for any stochastic oracle), ``_trajectories`` (what one trajectory says about the gradient and the Hessian)
and ``_rollouts`` (whole episodes from vectorized environments). Only the algorithms need Stable-Baselines3.
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "_ascent": ["harpg_ascent", "igt_ascent"],
        "_trajectories": ["Trajectory", "actor_parameters", "trajectory_gradient", "trajectory_hvp"],
        "variance_reduced": ["HARPG", "NPGIGT"],
    },
)
