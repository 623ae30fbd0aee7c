"""Matrix-free curvature of PyTorch models: products, diagonals, spectra, sketches, inverse empirical Fisher."""

from steepest.curvature.diagonal import gnb_diagonal, hessian_diagonal, sample_labels, sampled_label_loss
from steepest.curvature.vectors import flatten, unflatten

__all__ = [
    "flatten",
    "gnb_diagonal",
    "hessian_diagonal",
    "sample_labels",
    "sampled_label_loss",
    "unflatten",
]
