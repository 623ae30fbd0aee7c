"""Hessian, Gauss-Newton and Fisher matrices of a model's loss over data, as operators.

For a mean loss the operator is that of the mean over all data, ``sum_b w_b A_b / sum_b w_b`` with w_b what the loss
divides by in batch b (see `losses.loss_weight`); for a sum, ``sum_b A_b``. With `process_group` every rank holds its
shard, and a product is one all-reduce.

With ``cache=True`` the graphs of the gradient (or of the output) are built once and kept, and a product is one pass
back through them; with ``cache=False`` they are rebuilt batch by batch at every product, and only one is alive at a
time. A kept graph is void once a parameter was changed in place: `refresh` rebuilds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steepest.core.distributed import group_rank
from steepest.core.errors import at_least, boolean, check, kind_error, one_of, show, value_error
from steepest.core.random import child_seeds, fresh_seed, torch_generator
from steepest.curvature.autodiff import (
    Loss,
    batch_norm_training,
    model_output,
    select_parameters,
)
from steepest.curvature.batched_operators import (
    BatchedOperator,
    GaussNewtonTerm,
    HessianTerm,
    LossHessian,
    Term,
    rows_of,
)
from steepest.curvature.jacobians import gauss_newton_once
from steepest.curvature.losses import LossFn, Product, loss_weight, output_hessian, reduction_of
from steepest.curvature.operators import CurvatureOperator
from steepest.curvature.products import (
    KINDS,
    fisher_factor,
)
from steepest.curvature.vectors import check_parameters

__all__ = ["FisherOperator", "GGNOperator", "HessianOperator"]


class _OnceTerm:
    """A single Gauss-Newton product, by forward mode: nothing is kept."""

    def __init__(self, operator: GGNOperator, X: Any, y: Any) -> None:
        self.operator, self.X, self.y, self.weight, self.rows = operator, X, y, 0.0, 0

    def product(self, v: Sequence[Tensor], *, batched: bool, keep: bool) -> list[Tensor]:
        operator = self.operator

        def matrix(f: Tensor) -> Product:
            self.weight = loss_weight(operator.loss_fn, f, self.y)
            return operator._output_matrix(f, self.y)

        named = dict(zip(operator._names, operator.params, strict=True))
        return gauss_newton_once(operator.model, self.X, named, v, matrix)


class _ModelOperator(BatchedOperator):
    """What the three operators of a model share: the data, its checks, and one term for every batch."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: Any,
        *,
        params: Iterable[Tensor | str] | None,
        cache: bool | str,
        reduction: str,
        process_group: Any,
        deterministic: bool,
    ) -> None:
        check("reduction", reduction, one_of("mean", "sum"))
        check("deterministic", deterministic, boolean())
        if cache not in ("auto", True, False):
            raise value_error("cache", "'auto', True or False", cache)
        chosen = select_parameters(model, params)
        self.model, self.loss_fn, self.reduction = model, loss_fn, reduction_of(loss_fn, reduction)
        self._one_batch = _is_pair(data)
        self.data = [data] if self._one_batch else _check_iterable(data)
        self._names = list(chosen)
        if not self._one_batch and batch_norm_training(model):
            raise value_error(
                "data", "one full batch for a model with batch normalization in training mode", data, "or model.eval()"
            )
        super().__init__(
            list(chosen.values()),
            mean=reduction == "mean",
            cached=self._one_batch if cache == "auto" else bool(cache),
            process_group=process_group,
        )
        if deterministic:
            self._check_deterministic()
        self.refresh()

    def _term(self, X: Any, y: Any, once: bool) -> Term:
        raise NotImplementedError

    def _terms(self, once: bool) -> Iterator[Term]:
        for batch in self.data:
            yield self._term(*_check_batch(batch), once)

    def _check_deterministic(self) -> None:
        """Raise unless the first batch gives the same loss twice; the global random state is put back afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            losses = [
                float(self.loss_fn(model_output(self.model, X), y))
                for X, y in map(_check_batch, self._first_batch_twice())
            ]
        tolerance = 100 * torch.finfo(self.dtype).eps * max(abs(loss) for loss in losses)
        if abs(losses[0] - losses[1]) > tolerance:
            raise value_error(
                "model and data",
                "deterministic: the same loss on the first batch twice",
                losses,
                "call model.eval() or fix the random state of dropout, and do not shuffle; deterministic=False skips "
                "this check",
            )

    def _first_batch_twice(self) -> list[Any]:
        batches = [next(iter(self.data), None) for _ in range(2)]
        if batches[0] is None:
            raise value_error("data", "a non-empty sequence of (X, y)", "an empty one")
        if batches[1] is None:
            raise value_error("data", "re-iterable", "data exhausted at the second pass", "pass a list or a DataLoader")
        return batches


class HessianOperator(_ModelOperator):
    """The Hessian of a model's loss over data.

    Parameters
    ----------
    model : torch.nn.Module
    loss_fn : callable (output, y) -> scalar
    data : (X, y), or re-iterable of such pairs
        One batch, or a list or `DataLoader` (without shuffling) that is read once for every product.
    params : iterable of Tensor or str, optional
        Parameters of the model or their names; all that are trained by default.
    cache : "auto", True or False
        Whether graphs are kept between products; "auto" keeps them for one batch.
    reduction : "mean" or "sum"
        How `loss_fn` reduces; checked against its own attribute.
    process_group : None, "default" or a group of torch.distributed
        Every rank passes its own shard of the data.
    deterministic : bool
        Check that the loss of the first batch is the same twice (one more forward pass).

    Raises
    ------
    TypeError
        `data` is a one-shot iterator.
    ValueError
        Empty data, a random loss (dropout in training mode), batch normalization in training mode over more than one
        batch, or a reduction that differs from the loss's own.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> data = [(torch.ones(3, 1), torch.zeros(3, 1)), (torch.zeros(1, 1), torch.zeros(1, 1))]
    >>> HessianOperator(model, nn.MSELoss(), data).dense().item()     # 2 mean(x^2), batches weighted by size
    1.5
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: Any,
        *,
        params: Iterable[Tensor | str] | None = None,
        cache: bool | str = "auto",
        reduction: str = "mean",
        process_group: Any = None,
        deterministic: bool = True,
    ) -> None:
        super().__init__(
            model,
            loss_fn,
            data,
            params=params,
            cache=cache,
            reduction=reduction,
            process_group=process_group,
            deterministic=deterministic,
        )

    @staticmethod
    def from_loss(loss: Loss, params: Iterable[Tensor]) -> CurvatureOperator:
        """Make the Hessian of a loss that is no model's.

        Parameters
        ----------
        loss : scalar Tensor with a graph, or callable
            A tensor's gradient graph is kept; a callable is evaluated anew at every product.
        params : iterable of Tensor

        Examples
        --------
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> HessianOperator.from_loss((w**3).sum(), [w]).dense().tolist()
        [[6.0, 0.0], [0.0, 12.0]]
        """
        return LossHessian(loss, check_parameters(params))

    def _term(self, X: Any, y: Any, once: bool) -> Term:
        with torch.enable_grad():
            f = model_output(self.model, X)
            return HessianTerm(self.loss_fn(f, y), self.params, loss_weight(self.loss_fn, f, y), rows_of(f))


class GGNOperator(_ModelOperator):
    """The Gauss-Newton matrix ``J^T H_l J`` of a model's loss over data; positive semi-definite for convex losses.

    Parameters
    ----------
    model, loss_fn, data, params, cache, reduction, process_group, deterministic
        As in `HessianOperator`; closed forms of H_l as in `ggn_vp`.

    Raises
    ------
    TypeError, ValueError
        As `HessianOperator`.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> GGNOperator(model, nn.MSELoss(), (torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1))).dense().tolist()
    [[2.0, 4.0], [4.0, 8.0]]
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: Any,
        *,
        params: Iterable[Tensor | str] | None = None,
        cache: bool | str = "auto",
        reduction: str = "mean",
        process_group: Any = None,
        deterministic: bool = True,
    ) -> None:
        super().__init__(
            model,
            loss_fn,
            data,
            params=params,
            cache=cache,
            reduction=reduction,
            process_group=process_group,
            deterministic=deterministic,
        )

    def _output_matrix(self, f: Tensor, y: Any) -> Product:
        return output_hessian(self.loss_fn, f, y)

    def _term(self, X: Any, y: Any, once: bool) -> Term:
        if once:
            return _OnceTerm(self, X, y)
        with torch.enable_grad():
            f = model_output(self.model, X)
            return GaussNewtonTerm(f, self.params, self._output_matrix(f, y), loss_weight(self.loss_fn, f, y))


class FisherOperator(GGNOperator):
    """A Fisher information matrix of a model over data, the loss taken as a negative log-likelihood.

    Parameters
    ----------
    model, loss_fn, data, params, cache, reduction, process_group, deterministic
        As in `HessianOperator`.
    kind : "type-2", "mc" or "empirical"
        As in `fisher_vp`. Labels of "mc" are drawn anew from `seed` at every pass over the data: the operator is one
        fixed matrix.
    num_samples : int
        Labels drawn for every sample, only for "mc".
    seed : int, torch.Generator or None
        Only for "mc"; every rank of a group has its own stream.

    Raises
    ------
    TypeError, ValueError
        As `HessianOperator`; "type-2" or "mc" for a loss without a known likelihood.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> X = torch.ones(2, 1)
    >>> y = model(X).detach() - torch.tensor([[1.0], [-1.0]])       # gradients 2 and -2: their mean vanishes
    >>> round(FisherOperator(model, nn.MSELoss(), (X, y), kind="empirical").dense().item(), 5)
    4.0
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: Any,
        *,
        params: Iterable[Tensor | str] | None = None,
        kind: str = "type-2",
        num_samples: int = 1,
        seed: int | torch.Generator | None = None,
        cache: bool | str = "auto",
        reduction: str = "mean",
        process_group: Any = None,
        deterministic: bool = True,
    ) -> None:
        check("kind", kind, one_of(*KINDS))
        check("num_samples", num_samples, at_least(1, integer=True))
        self.kind, self.num_samples = kind, num_samples
        if isinstance(seed, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
        self._seed = fresh_seed() if seed is None else seed
        if process_group is not None:
            rank = group_rank(process_group)
            self._seed = child_seeds(self._seed, rank + 1)[rank]
        super().__init__(
            model,
            loss_fn,
            data,
            params=params,
            cache=cache,
            reduction=reduction,
            process_group=process_group,
            deterministic=deterministic,
        )

    def _terms(self, once: bool) -> Iterator[Term]:
        self._generator = torch_generator(self._seed, self.device)
        yield from super()._terms(once)

    def _output_matrix(self, f: Tensor, y: Any) -> Product:
        return fisher_factor(
            f,
            loss_fn=self.loss_fn,
            y=y,
            kind=self.kind,
            num_samples=self.num_samples,
            reduction=self.reduction,
            generator=self._generator,
        )


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], Tensor)


def _check_batch(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise value_error("data", "a pair (X, y) of tensors or a re-iterable of pairs", f"a batch {show(batch)}")
    return batch[0], batch[1]


def _check_iterable(data: Any) -> Any:
    if not isinstance(data, Iterable):
        raise kind_error("data", "a pair (X, y) or a re-iterable of pairs", data)
    if isinstance(data, Iterator):
        raise kind_error("data", "re-iterable", data, "a one-shot iterator is empty at the second product: pass a list")
    return data
