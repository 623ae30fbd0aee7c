"""Matrix-free curvature of PyTorch models: products, diagonals, spectra, sketches, inverse empirical Fisher.

``vectors``, ``autodiff``, ``jacobians`` and ``losses`` are the tools; ``products`` and ``model_operators`` (on
``batched_operators``) multiply with Hessian, Gauss-Newton and Fisher matrices; ``operators`` turns anything that
multiplies into one kind of operator; ``diagonal``, ``_trace``, ``spectrum`` and ``eigenvalues`` estimate from products
alone; ``sketching`` draws random projections; ``empirical_fisher`` inverts a damped sum of rank-one terms.
"""

from steepest.curvature._sliding_fisher import SlidingFisherInverse
from steepest.curvature._trace import NormEstimate, TraceEstimate, frobenius_norm, trace
from steepest.curvature.diagonal import (
    DiagonalEstimate,
    gauss_newton_bartlett,
    gnb_diagonal,
    hessian_diagonal,
    hutchinson_diagonal,
    sample_labels,
    sampled_label_loss,
)
from steepest.curvature.eigenvalues import EigenResult, extreme_eigenvalues
from steepest.curvature.empirical_fisher import EmpiricalFisherInverse
from steepest.curvature.model_operators import FisherOperator, GGNOperator, HessianOperator
from steepest.curvature.operators import CurvatureOperator, aslinearoperator
from steepest.curvature.products import fisher_vp, ggn_vp, hvp, per_sample_gradients, per_sample_jacobian
from steepest.curvature.sketching import Sketch, sketch
from steepest.curvature.spectrum import LanczosResult, SpectralDensity, lanczos, slq
from steepest.curvature.vectors import flatten, unflatten

__all__ = [
    "CurvatureOperator",
    "DiagonalEstimate",
    "EigenResult",
    "EmpiricalFisherInverse",
    "FisherOperator",
    "GGNOperator",
    "HessianOperator",
    "LanczosResult",
    "NormEstimate",
    "Sketch",
    "SlidingFisherInverse",
    "SpectralDensity",
    "TraceEstimate",
    "aslinearoperator",
    "extreme_eigenvalues",
    "fisher_vp",
    "flatten",
    "frobenius_norm",
    "gauss_newton_bartlett",
    "ggn_vp",
    "gnb_diagonal",
    "hessian_diagonal",
    "hutchinson_diagonal",
    "hvp",
    "lanczos",
    "per_sample_gradients",
    "per_sample_jacobian",
    "sample_labels",
    "sampled_label_loss",
    "sketch",
    "slq",
    "trace",
    "unflatten",
]
