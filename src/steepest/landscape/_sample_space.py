r"""The Gauss-Newton matrix of a model seen from its samples: rows, Gram matrices and products.

With the Jacobian J_i of sample i and a factor ``F_i F_i^T`` of its loss's Hessian, ``A_i = F_i^T J_i`` has C rows. What
stability needs lives in ``K = A A^T / n``, of order n C, with the nonzero eigenvalues of ``H = A^T A / n``:

    z = A^T u / sqrt(n)                       one pass back,
    K u = A z / sqrt(n)                       one pass forward along z,

and on the way ``|K u|^2`` and ``z^T S z``, S the covariance of the samples' gradients g_i: their means over random
signs u are ``|H|_F^2`` and ``tr(H S)``. Per-sample terms need the rows A_i themselves, or
random mixtures of them. Where all parameters belong to linear layers that are called once on vectors, Gram matrices
follow from the layers' inputs x and the outputs' gradients d alone: ``<d_i x_i^T, d_j x_j^T> = <d_i, d_j> <x_i, x_j>``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from steepest.core.errors import at_least, check, kind_error, optional, value_error
from steepest.curvature.autodiff import backward, batch_norm_training, model_output, select_parameters
from steepest.curvature.jacobians import LinearizedOutput
from steepest.curvature.losses import LossFn
from steepest.curvature.operators import CurvatureOperator
from steepest.curvature.vectors import probes
from steepest.landscape._loss_factors import loss_factor, loss_scale

__all__ = ["FactorSamples", "ModelSamples", "SampleKernel", "Samples"]

BLOCK = 2**27  # numbers in one block of rows (1 GiB of float64)


class Samples:
    """What both kinds of samples offer: rows, Gram matrices and products.

    Attributes
    ----------
    n, C, P : int
        Samples, outputs of each, parameters.
    loss : float or None
        Mean of l_i; None where only factors are known.
    """

    n: int
    C: int
    P: int
    loss: float | None
    dtype: torch.dtype
    device: torch.device

    def basis(self) -> Tensor:  # (C, n, C)
        """All C unit vectors of every sample's output."""
        E = torch.eye(self.C, dtype=self.dtype, device=self.device)
        return E.unsqueeze(1).expand(-1, self.n, -1)

    def signs(self, k: int, generator: torch.Generator) -> Tensor:  # (k, n, C)
        """K random sign vectors for every sample."""
        U = probes(self.n * self.C, k, generator=generator, dtype=self.dtype, device=self.device)
        return U.T.reshape(k, self.n, self.C)

    def mixtures(self, U: Tensor) -> Iterator[Tensor]:  # (k, n, C) -> blocks (b, k, P)
        """Compute ``A_i^T u`` for every sample and each of its k vectors u, a block of samples at a time."""
        raise NotImplementedError

    def gradients(self) -> Tensor | None:  # (n, P)
        """The gradient of every l_i; None where only factors are known."""
        return None

    def grams(self, U: Tensor) -> Tensor:  # (k, n, C) -> (n, k, k), float64
        """Inner products of every sample's own k mixtures."""
        return torch.cat([_inner(Z, Z) for Z in self.mixtures(U)])

    def rows(self) -> Tensor:  # (n, C, P), float64
        """All rows A_i."""
        return torch.cat([Z.double() for Z in self.mixtures(self.basis())])

    def kernel(self) -> tuple[Tensor, Tensor | None]:  # (n C, n C), (n C, n) or None; float64
        """K, and the products ``A g_i`` of the rows with the samples' gradients."""
        raise NotImplementedError

    def pull(self, u: Tensor) -> Any:  # (n, C) -> z
        """Compute ``A^T u``, and leave it as `push` takes it."""
        raise NotImplementedError

    def push(self, z: Any) -> tuple[Tensor, Tensor | None]:  # z -> (n, C), (n,) or None
        """Compute ``A z`` and, where there is a loss, ``g_i^T z``."""
        raise NotImplementedError


class FactorSamples(Samples):
    """Samples whose factors A of shape (n, C, P) are given."""

    def __init__(self, A: Tensor) -> None:
        self.A = A
        self.n, self.C, self.P = A.shape
        self.dtype, self.device, self.loss = A.dtype, A.device, None

    def mixtures(self, U: Tensor) -> Iterator[Tensor]:
        yield torch.einsum("knc,ncp->nkp", U, self.A)

    def rows(self) -> Tensor:
        return self.A

    def kernel(self) -> tuple[Tensor, Tensor | None]:
        flat = self.A.reshape(self.n * self.C, self.P)
        return flat @ flat.T / self.n, None

    def pull(self, u: Tensor) -> Tensor:
        return self.A.reshape(self.n * self.C, self.P).T @ u.reshape(-1)

    def push(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.A @ z, None


class ModelSamples(Samples):
    """Samples of a model and a loss at the present parameters.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    loss_fn : callable (output, y) -> scalar
    X, y : Tensor of shape (n, ...)
    batch_size : int
        Matters to a loss that sums over the batch.
    params : iterable of Tensor or str, optional
    chunk_size : int, optional
        Samples in one graph; all by default, in a graph that is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        X: Tensor,
        y: Tensor,
        *,
        batch_size: int,
        params: Iterable[Tensor | str] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        check("chunk_size", chunk_size, optional(at_least(1, integer=True)))
        for name, value in (("X", X), ("y", y)):
            if not isinstance(value, Tensor):
                raise kind_error(name, "a tensor with samples along its first axis", value)
            if value.ndim == 0 or len(value) == 0:
                raise value_error(name, "a tensor with at least one sample along its first axis", value)
        if len(X) != len(y):
            raise value_error("y", f"of length {len(X)}, as X is", y)
        if batch_norm_training(model):
            raise value_error("model", "without normalization by batch statistics", "one that needs the batch")
        self.model, self.X = model, X
        self.chosen = select_parameters(model, params)
        self.params = list(self.chosen.values())
        self.chunks = [slice(i, i + (chunk_size or len(X))) for i in range(0, len(X), chunk_size or len(X))]
        self._kept: LinearizedOutput | None = None
        self._layers: list[tuple[nn.Linear, Tensor, Tensor]] | None = None
        f = self._outputs()
        if f.ndim == 0 or len(f) != len(X):
            raise value_error("model(X)", f"a tensor with {len(X)} samples along its first axis", f)
        self.n, self.C, self.P = len(f), f[0].numel(), sum(p.numel() for p in self.params)
        self.dtype, self.device, self.shape = f.dtype, f.device, f.shape
        leaf = f.requires_grad_()
        with torch.enable_grad():
            loss = loss_fn(leaf, y)
            (r,) = torch.autograd.grad(loss, leaf)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the loss on X is {float(loss.detach())}: there is no stability to measure")
        scale = loss_scale(loss_fn, self.n, batch_size)
        self.loss = float(loss.detach().double()) * scale / self.n
        self.r = r.detach() * scale  # the gradient of every l_i with respect to its output
        self.factor = loss_factor(loss_fn, leaf, y, scale)

    def _outputs(self) -> Tensor:
        """The outputs, without a graph; the graph is kept where there is one chunk."""
        if len(self.chunks) == 1:
            return self._chunk(0).f.detach().clone()
        with torch.no_grad():
            return torch.cat([model_output(self.model, self.X[c]) for c in self.chunks])

    def _chunk(self, k: int) -> LinearizedOutput:
        if self._kept is not None:
            return self._kept
        recorded: dict[nn.Linear, tuple[Tensor, Tensor, Any]] = {}
        with torch.enable_grad(), _recording(self._linear_layers(), recorded):
            output = LinearizedOutput(model_output(self.model, self.X[self.chunks[k]]), self.params)
        if len(self.chunks) == 1:
            self._kept = output
            self._layers = _once_on_vectors(output.f, self.params, recorded)
        return output

    def _linear_layers(self) -> list[nn.Linear]:
        """The linear layers, if all chosen parameters belong to such; else none."""
        chosen = {id(p) for p in self.params}
        owners = [m for m in self.model.modules() if any(id(p) in chosen for p in m.parameters(recurse=False))]
        return owners if all(type(m) is nn.Linear for m in owners) else []  # type: ignore[return-value]

    # ------------------------------------------------------------------------------------------- rows and Gram matrices

    def mixtures(self, U: Tensor) -> Iterator[Tensor]:
        yield from self._jacobian_rows(self._through_factor(U))

    def _through_factor(self, U: Tensor) -> Tensor:  # (k, n, C) -> (k, n, C)
        return self.factor.apply(U.reshape(-1, *self.shape)).view(U.shape)

    def _jacobian_rows(self, V: Tensor) -> Iterator[Tensor]:  # (k, n, C) -> blocks (b, k, P)
        theta = {name: p.detach() for name, p in self.chosen.items()}
        fixed = {name: p.detach() for name, p in self.model.named_parameters() if name not in theta}

        def rows(x: Tensor, v: Tensor) -> Tensor:  # v: (k, C)
            pull = vjp(lambda t: functional_call(self.model, fixed | t, (x.unsqueeze(0),)).reshape(-1), theta)[1]
            found = vmap(pull)(v)[0]
            return torch.cat([found[name].reshape(len(v), -1) for name in theta], 1)

        width = max(1, BLOCK // (len(V) * self.P))
        width = min(width, self.chunks[0].stop)
        for start in range(0, self.n, width):
            yield vmap(rows)(self.X[start : start + width], V[:, start : start + width].transpose(0, 1))

    def gradients(self) -> Tensor:
        return torch.cat([g[:, 0].double() for g in self._jacobian_rows(self.r.reshape(1, self.n, self.C))])

    def grams(self, U: Tensor) -> Tensor:
        if self._layers is None:
            return super().grams(U)
        V = self._through_factor(U)
        total = torch.zeros(self.n, len(V), len(V), dtype=torch.float64, device=self.device)
        for weight, x, bias, D in self._output_gradients(V):
            size = x.square().sum(1, dtype=torch.float64) * weight + bias
            total += (D @ D.mT).double() * size[:, None, None]
        return total

    def kernel(self) -> tuple[Tensor, Tensor | None]:
        V = torch.cat([self._through_factor(self.basis()), self.r.reshape(1, self.n, self.C)])
        order, k = self.n * self.C, len(V)
        full = torch.zeros(self.n * k, order, dtype=torch.float64, device=self.device)  # all rows with those of A
        if self._layers is not None:
            for weight, x, bias, D in self._output_gradients(V):
                x, D = x.double(), D.double()
                inner = D.reshape(self.n * k, -1) @ D[:, :-1].reshape(order, -1).T
                full += (inner.view(self.n, k, self.n, k - 1) * (x @ x.T * weight + bias)[:, None, :, None]).view(
                    full.shape
                )
        else:
            start = 0
            for left in self._jacobian_rows(V):
                top = slice(start, start + len(left) * k)
                first = 0
                for right in self._jacobian_rows(V[:-1]) if len(left) < self.n else [left[:, :-1]]:
                    wide = slice(first, first + len(right) * (k - 1))
                    full[top, wide] = _gram(left.reshape(-1, self.P), right.reshape(-1, self.P))
                    first = wide.stop
                start = top.stop
        blocks = full.view(self.n, k, order)
        K = blocks[:, :-1].reshape(order, order) / self.n
        return (K + K.T) / 2, blocks[:, -1].T.contiguous()

    def _output_gradients(self, V: Tensor) -> Iterator[tuple[bool, Tensor, bool, Tensor]]:
        """For every linear layer: does its weight count, inputs (n, in), does its bias, gradients (n, k, out).

        The gradients are its outputs', along the k vectors of every sample.
        """
        assert self._kept is not None
        assert self._layers is not None
        outputs = [output for _, _, output in self._layers]
        found = [backward(self._kept.f, outputs, v.reshape(self.shape), retain_graph=True) for v in V]
        chosen = {id(p) for p in self.params}
        for i, (layer, x, output) in enumerate(self._layers):
            D = torch.stack([torch.zeros_like(output) if d[i] is None else d[i] for d in found])  # type: ignore[misc]
            yield id(layer.weight) in chosen, x, id(layer.bias) in chosen, D.transpose(0, 1)

    # --------------------------------------------------------------------------------------------------------- products

    def pull(self, u: Tensor) -> list[Tensor]:
        v = self._through_factor(u.unsqueeze(0))[0].view(self.shape)
        total: list[Tensor] = []
        for k, chunk in enumerate(self.chunks):
            z = self._chunk(k).vjp(v[chunk])
            total = [a + b for a, b in zip(total, z, strict=True)] if total else z
        return total

    def push(self, z: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        Jz = torch.cat([self._chunk(k).jvp(z) for k in range(len(self.chunks))])
        along = (self.r * Jz).reshape(self.n, -1).sum(1, dtype=torch.float64)
        return self.factor.adjoint(Jz).reshape(self.n, self.C), along


class SampleKernel(CurvatureOperator):
    """K as an operator that notes, for every product, ``|K u|^2`` and ``z^T S z``."""

    def __init__(self, samples: Samples) -> None:
        order = samples.n * samples.C
        super().__init__((order, order), samples.dtype, samples.device)
        self.samples = samples
        self.notes: list[tuple[float, float]] = []

    def _matmat(self, V: Tensor) -> Tensor:
        n, columns = self.samples.n, []
        for u in V.T:
            z = self.samples.pull(u.reshape(n, -1))
            Az, along = self.samples.push(z)
            Ku = Az.reshape(-1) / n
            noise = math.nan if along is None else float(along.var(correction=0)) / n
            self.notes.append((float(Ku.square().sum(dtype=torch.float64)), noise))
            columns.append(Ku)
        return torch.stack(columns, 1)


def _inner(a: Tensor, b: Tensor) -> Tensor:  # (n, k, d), (n, l, d) -> (n, k, l), float64
    return a.double() @ b.double().mT


def _gram(a: Tensor, b: Tensor) -> Tensor:  # (m, P), (l, P) -> (m, l), float64
    """Sum in double precision, a part of the columns at a time."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    width = max(1, 2**23 // max(len(a), len(b)))
    for i in range(0, a.shape[1], width):
        total.addmm_(a[:, i : i + width].double(), b[:, i : i + width].double().T)
    return total


class _recording:
    """Note the inputs, outputs and graph nodes of linear layers while the model runs."""

    def __init__(self, layers: list[nn.Linear], into: dict[nn.Linear, tuple[Tensor, Tensor, Any]]) -> None:
        self.layers, self.into = layers, into

    def __enter__(self) -> None:
        def note(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.into[layer] = (inputs[0].detach(), output, output.grad_fn)  # type: ignore[index]

        self.handles = [layer.register_forward_hook(note) for layer in self.layers]

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def _once_on_vectors(
    f: Tensor, params: list[Tensor], recorded: dict[nn.Linear, tuple[Tensor, Tensor, Any]]
) -> list[tuple[nn.Linear, Tensor, Tensor]] | None:
    """The layers with inputs and outputs, if each saw one vector a sample and each parameter is used once in `f`.

    An output that was changed in place (a ReLU, say) has another node than the layer gave it.
    """
    if not recorded or any(
        x.ndim != 2 or len(x) != len(f) or output.grad_fn is not node for x, output, node in recorded.values()
    ):
        return None
    uses = {id(p): 0 for p in params}
    seen, stack = set(), [f.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            leaf = getattr(following, "variable", None)
            if leaf is not None and id(leaf) in uses:
                uses[id(leaf)] += 1
            stack.append(following)
    owned = {id(p) for layer in recorded for p in layer.parameters(recurse=False)}
    if any(count > 1 or (count == 1 and key not in owned) for key, count in uses.items()):
        return None
    return [(layer, x, output) for layer, (x, output, _) in recorded.items()]
