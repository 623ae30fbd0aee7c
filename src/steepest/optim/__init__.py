"""Training optimizers that use curvature or the geometry of the weights, as drop-in `torch.optim` optimizers.

``adamp`` (AdamP, SGDP; ``_projection``, and ``_effective_step`` to watch it); ``adahessian`` and ``sophia`` on
``_curvature``; ``mfac`` with ``pruning``; ``target_surrogate`` on ``_surrogate`` and ``_target_search``. They share
``_base`` (groups, checkpoints, paths of a step), ``_tensors`` (blocks, layouts) and ``_native`` (C kernels built on
first use).
"""

from steepest.optim._effective_step import EffectiveStepMonitor, effective_step
from steepest.optim.adahessian import AdaHessian
from steepest.optim.adamp import SGDP, AdamP
from steepest.optim.mfac import MFAC
from steepest.optim.pruning import apply_mask, keep_mask, mfac_prune
from steepest.optim.sophia import Sophia
from steepest.optim.target_surrogate import TargetSurrogate

__all__ = [
    "MFAC",
    "SGDP",
    "AdaHessian",
    "AdamP",
    "EffectiveStepMonitor",
    "Sophia",
    "TargetSurrogate",
    "apply_mask",
    "effective_step",
    "keep_mask",
    "mfac_prune",
]
