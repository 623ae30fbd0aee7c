"""Policies that learn from reward, as Stable-Baselines3 algorithms.

``variance_reduced`` (policy gradients with implicit transport or Hessian-aided recursion) on ``_ascent`` (the same
recursions for any stochastic oracle), ``_trajectories`` (what one trajectory says about the gradient and the Hessian)
and ``_rollouts`` (whole episodes from vectorized environments); ``mdpo`` (mirror descent, on and off policy) on
``_mirror`` (its step and its loss), ``_streams`` (random numbers of its own), ``_data_parallel`` (a batch shared by the
ranks of a process group) and ``_ray_environments`` (environments on Ray actors). Only the algorithms need
Stable-Baselines3.
"""

from steepest.core.extras import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "_ascent": ["harpg_ascent", "igt_ascent"],
        "_ray_environments": ["RayVecEnv"],
        "_mirror": ["mdpo_policy_loss", "mirror_step"],
        "_trajectories": ["Trajectory", "actor_parameters", "trajectory_gradient", "trajectory_hvp"],
        "mdpo": ["OffPolicyMDPO", "OnPolicyMDPO"],
        "variance_reduced": ["HARPG", "NPGIGT"],
    },
)
