r"""A two-layer ReLU network trained in its first layer, its tangent kernel, and gradient descent in closed form.

    f_i(u) = m^(-1/2) sum_r A_ri relu(w_r . u),   A_ri = +-1 fixed,   w_r ~ N(0, I) trained
    K(u, v) = <u, v> (pi - arccos rho) / (2 pi),  rho the cosine of the angle           (kernel of the wide network)

Gradient descent on (1/2n) sum |f(u_j) - y_j|^2 with step eta is then, one coordinate of y at a time, kernel regression:

    residual after k steps   (I - eta K/n)^k Y
    f(v) = K(v, U) c_k,      c_k = (1/n) sum_{i<k} eta (I - eta K/n)^i Y = K^-1 [I - (I - eta K/n)^k] Y

One eigendecomposition K/n = Q diag(l) Q^T gives all k.

Papers: han2024neural, jacot2018neural, cho2009kernel (the kernel).
Departure: half of the network repeats W and negates A at the start, so that f = 0 there exactly; both halves then move
freely.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from steepest.core.errors import at_least, boolean, check, positive, value_error
from steepest.core.random import Seed, torch_generator
from steepest.generative._kinds import as_tensor, like

__all__ = ["KernelGradientFlow", "TwoLayerReLU", "empirical_ntk", "relu_ntk"]

BLOCK = 2**17  # entries of a kernel matrix whose angles are held at a time
ROUND_OFF = 1e-8  # negative eigenvalues up to this share of the largest are clipped


class TwoLayerReLU(nn.Module):
    """Two-layer ReLU network without biases, second layer fixed at +-1.

    Parameters
    ----------
    n_in, n_out : int
        Inputs (the caller adds a constant one) and outputs.
    width : int
        m, even with the antisymmetric start.
    antisymmetric : bool
        The second half of the units repeats the first with the signs reversed: the network starts at 0.
    generator : int, torch.Generator or None
    dtype : torch.dtype, optional
        torch's default.

    Attributes
    ----------
    W : Parameter (width, n_in)
        The only parameter.
    A : Tensor (width, n_out)
        A buffer of signs.

    Raises
    ------
    ValueError
        ``width < 2``, or odd with the antisymmetric start.

    Examples
    --------
    >>> net = TwoLayerReLU(3, 2, 64, generator=0)
    >>> net(torch.ones(5, 3)).abs().max().item(), [name for name, _ in net.named_parameters()]
    (0.0, ['W'])
    """

    A: Tensor

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int,
        *,
        antisymmetric: bool = True,
        generator: Seed = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check("n_in", n_in, at_least(1, integer=True))
        check("n_out", n_out, at_least(1, integer=True))
        check("width", width, at_least(2, integer=True))
        check("antisymmetric", antisymmetric, boolean())
        if antisymmetric and width % 2:
            raise value_error("width", "even with the antisymmetric start", width)
        g = torch_generator(generator, name="generator")
        dtype = dtype or torch.get_default_dtype()
        drawn = width // 2 if antisymmetric else width
        # drawn in double precision, so that networks of either precision start alike
        W = torch.randn((drawn, n_in), generator=g, dtype=torch.float64)
        A = torch.randint(2, (drawn, n_out), generator=g).double() * 2 - 1
        if antisymmetric:
            W, A = torch.cat([W, W]), torch.cat([A, -A])
        self.W = nn.Parameter(W.to(dtype))
        self.register_buffer("A", A.to(dtype))

    def forward(self, u: Tensor) -> Tensor:
        """Evaluate at u (n, n_in), shape (n, n_out)."""
        # halves subtract only after each is summed in the same order: at the start they cancel to the last bit
        hidden = torch.relu(u @ self.W.T)
        half = len(self.W) // 2
        return (hidden[:, :half] @ self.A[:half] + hidden[:, half:] @ self.A[half:]) / len(self.W) ** 0.5


def relu_ntk(U: Any, V: Any = None) -> Any:
    """Tangent kernel of the infinitely wide network, first layer trained.

    Parameters
    ----------
    U : array_like or Tensor (n, p)
    V : array_like or Tensor (m, p), optional
        `U` by default; the diagonal is then <u, u> / 2 exactly.

    Returns
    -------
    ndarray or Tensor (n, m)
        Of the kind of `U`.

    Notes
    -----
    Near 0 and pi the arc cosine of a rounded cosine loses half of its digits: there the angle comes from the lengths of
    u/|u| - v/|v| and u/|u| + v/|v|.

    Examples
    --------
    >>> relu_ntk([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]).round(4)
    array([[0.5  , 0.   , 1.125],
           [0.   , 2.   , 2.25 ],
           [1.125, 2.25 , 9.   ]])
    """
    u = as_tensor(U)
    v = u if V is None else as_tensor(V).to(u)
    if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[1]:
        raise value_error("V", f"of shape (m, p) with the p of U, {tuple(u.shape)}", V if V is not None else U)
    tiny = torch.finfo(u.dtype).tiny
    ends = [x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=tiny) for x in (u, v)]
    K = u @ v.T
    rows = max(1, BLOCK // max(1, len(v)))
    for block, begin in zip(K.split(rows), ends[0].split(rows), strict=True):
        rho = (begin @ ends[1].T).clamp_(-1, 1)
        aligned = (rho.abs() > 1 - torch.finfo(u.dtype).eps ** (1 / 3)).nonzero(as_tuple=True)
        angle = rho.acos_()
        sides = begin[aligned[0]], ends[1][aligned[1]]
        near, far = (torch.linalg.vector_norm(sides[0] + sign * sides[1], dim=1) for sign in (-1, 1))
        angle[aligned] = 2 * torch.atan2(near, far)
        block *= angle.neg_().add_(torch.pi).div_(2 * torch.pi)
    if V is None:
        K.diagonal().copy_(u.square().sum(1) / 2)
    return like(K, U)


@torch.no_grad()
def empirical_ntk(net: TwoLayerReLU, U: Any, V: Any = None) -> Any:
    """Tangent kernel of a network as it is, averaged over its outputs: (1/d) trace of the d x d block of every pair.

    Parameters
    ----------
    net : TwoLayerReLU
    U : array_like or Tensor (n, p)
    V : array_like or Tensor (m, p), optional
        `U` by default.

    Returns
    -------
    ndarray or Tensor (n, m)
        Of the kind of `U`.

    Examples
    --------
    >>> net, U = TwoLayerReLU(2, 1, 100_000, generator=0), torch.eye(2)
    >>> bool((empirical_ntk(net, U) - relu_ntk(U)).abs().max() < 0.01)
    True
    """
    u = as_tensor(U)
    v = u if V is None else as_tensor(V).to(u)
    W = net.W.to(u)
    mean_square = net.A.to(u).square().mean(1)
    on_u, on_v = ((x @ W.T > 0).to(u) for x in (u, v))
    return like((u @ v.T) * ((on_u * mean_square) @ on_v.T) / len(W), U)


class KernelGradientFlow:
    """Gradient descent on a kernel least-squares problem, after any number of steps at once.

    Parameters
    ----------
    K : array_like or Tensor (n, n)
        Symmetric positive semidefinite.
    Y : array_like or Tensor (n, d)
    step_size : float
        eta of the mean loss, less than 1 / lambda_max(K / n).

    Attributes
    ----------
    eigenvalues : Tensor (r,)
        Of K / n, falling; negative ones of the size of round-off are set to 0.
    clipped : float
        The most negative eigenvalue that was, or 0.

    Raises
    ------
    ValueError
        Shapes that do not fit, eigenvalues negative beyond round-off, a step that is too large.

    Examples
    --------
    >>> K, Y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double(), torch.ones(2, 1).double()
    >>> flow = KernelGradientFlow(K, Y, step_size=0.5)
    >>> flow.residual(3).T, flow.predict(K, 3).T             # (1 - 0.5 * 2 / 2)^3 and (1 - 0.5 / 2)^3
    (tensor([[0.1250, 0.4219]], dtype=torch.float64), tensor([[0.8750, 0.5781]], dtype=torch.float64))
    """

    def __init__(self, K: Any, Y: Any, *, step_size: float) -> None:
        kernel, labels = as_tensor(K), as_tensor(Y)
        if kernel.ndim != 2 or kernel.shape != (len(labels), len(labels)) or labels.ndim != 2:
            raise value_error("K", "of shape (n, n) with Y (n, d)", K)
        values, vectors = torch.linalg.eigh(kernel / len(labels))
        self._begin(values.flip(0), vectors.flip(1), labels, step_size, Y)
        self._basis = self._vectors
        self._power = -1.0  # c_k = Q diag(filled / (n l)) Q^T Y

    @classmethod
    def from_features(cls, Phi: Any, Y: Any, *, step_size: float) -> Self:
        """The same for K = Phi Phi^T with few features (n, r), in O(n r^2): `coef` are weights of the features.

        Examples
        --------
        >>> Phi, Y = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double(), torch.ones(9, 1).double()
        >>> few, full = KernelGradientFlow.from_features(Phi, Y, step_size=0.1), None
        >>> full = KernelGradientFlow(Phi @ Phi.T, Y, step_size=0.1)
        >>> bool(torch.allclose(few.predict(Phi, 7), full.predict(Phi @ Phi.T, 7)))
        True
        """
        features, labels = as_tensor(Phi), as_tensor(Y)
        if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels):
            raise value_error("Phi", "of shape (n, r) with Y (n, d)", Phi)
        n = len(labels)
        values, basis = torch.linalg.eigh(features.T @ features / n)
        values, basis = values.flip(0), basis.flip(1)
        kept = values > ROUND_OFF**2 * values[0]  # below it a direction is round-off alone
        values, basis = values[kept], basis[:, kept]
        flow = cls.__new__(cls)
        flow._begin(values, features @ (basis / (n * values).sqrt()), labels, step_size, Y)
        flow._basis, flow._power = basis, -0.5  # w_k = V diag(filled / sqrt(n l)) Q^T Y
        return flow

    def _begin(self, values: Tensor, vectors: Tensor, labels: Tensor, step_size: float, kind: Any) -> None:
        check("step_size", step_size, positive())
        top = float(values[0]) if len(values) else 0.0
        lowest = float(values.min()) if len(values) else 0.0
        if lowest < -ROUND_OFF * max(top, 1e-300):
            raise value_error("K", "positive semidefinite", f"an eigenvalue of K/n of {lowest:.3g}")
        if step_size * top >= 1:
            raise value_error("step_size", f"less than 1 / lambda_max(K / n) = {1 / top:.6g}", step_size)
        self.step_size = float(step_size)
        self.clipped = min(lowest, 0.0)
        self.eigenvalues = values.clamp(min=0.0)
        self._vectors = vectors  # Q (n, r)
        self._labels = labels
        self._coordinates = vectors.T @ labels  # Q^T Y (r, d)
        self._outside = (labels.square().sum(0) - self._coordinates.square().sum(0)).clamp(min=0.0)  # beyond Q's range
        self._log_decay = torch.log1p(-step_size * self.eigenvalues)
        self._kind = kind

    def residual(self, k: int) -> Any:
        """Labels less predictions at the training points after k steps, shape (n, d), of the kind of Y."""
        return like(self._labels - self._vectors @ (self._filled(k) * self._coordinates), self._kind)

    def coef(self, k: int) -> Any:
        """Coefficients c_k after k steps, shape (n, d) or, with features, (r, d), of the kind of Y."""
        n = len(self._labels)
        per_value = self._filled_over_value(k)
        if self._power == -0.5:
            gain = per_value * (self.eigenvalues[:, None] / n).sqrt()
        else:
            gain = per_value / n
        return like(self._basis @ (gain * self._coordinates), self._kind)

    def predict(self, K_vu: Any, k: int) -> Any:
        """Predict after k steps from the kernel (m, n) between new points and the training points, shape (m, d)."""
        return like(as_tensor(K_vu) @ as_tensor(self.coef(k)), self._kind)

    def loss(self, k: int) -> float:
        """Mean over rows and coordinates of the squared residual after k steps, in O(r d)."""
        left = torch.exp(2 * k * self._log_decay)[:, None] * self._coordinates.square()
        return float((left.sum() + self._outside.sum()) / self._labels.numel())

    def freedom(self, k: int, *, block: int = 1) -> float:
        """Trace of the map H_k from labels to predictions after k steps, in O(r).

        With blocks of rows that share their noise, the trace of its product with the matrix that is 1 within blocks.
        """
        if block == 1:
            return float(self._filled(k).sum())
        shared = self._vectors.reshape(-1, block, self._vectors.shape[1]).sum(1).square().sum(0)
        return float(self._filled(k)[:, 0] @ shared)

    def norms(self, k: int) -> Tensor:
        """RKHS norm of every coordinate after k steps, shape (d,): sqrt(c_k^T K c_k), in O(r d)."""
        squared = self._filled(k) * self._filled_over_value(k) * self._coordinates.square()
        return (squared.sum(0) / len(self._labels)).sqrt()

    def _filled(self, k: int) -> Tensor:
        """1 - (1 - eta l)^k, shape (r, 1), without cancellation."""
        check("k", k, at_least(0, integer=True))
        return -torch.expm1(k * self._log_decay)[:, None]

    def _filled_over_value(self, k: int) -> Tensor:
        """The same divided by l; its limit at 0 is k eta."""
        zero = (self.eigenvalues == 0)[:, None]
        values = torch.where(zero, 1.0, self.eigenvalues[:, None])
        return torch.where(zero, k * self.step_size, self._filled(k) / values)
