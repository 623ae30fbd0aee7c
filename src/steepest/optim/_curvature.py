r"""How curvature gets into AdaHessian and Sophia: estimates are made beside `backward` and wait for the next `step`.

    if opt.hessian_due():
        opt.update_hessian(loss, retain_graph=True)
    loss.backward()
    opt.step()                       # folds the estimate into its running average, then moves the parameters

hutchinson   D = z * (H z), z one joint random probe over all parameters, H z = d<g, z>/dw, so that E[D] = diag(H);
             the calls before a step add up with their weights
gnb          G = sum_a weight_a g_a and B = sum_a B_a over the calls before a step, estimate (sqrt(B) G)^2

Papers: yao2021adahessian, Eq. 10; liu2024sophia, Alg. 1 and 2.
Notation: w parameters, g gradient on sampled labels, B their number, a a call of `update_hessian`, k = ``update_each``.
Departures: the papers neither accumulate nor speak of processes. Over the ranks of a process group Hutchinson estimates
are averaged (every rank has probes of its own); for gnb the gradients are averaged, B is summed, and only then is
squared: squaring first would estimate something else.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from steepest.core.distributed import all_reduce_sum, group_rank, group_size, resolve_group
from steepest.core.errors import SteepestWarning, check, one_of, positive, value_error
from steepest.core.random import fresh_seed, torch_generator
from steepest.curvature.autodiff import backward, loss_value, second_gradient
from steepest.curvature.vectors import accumulation_dtype, probe_like
from steepest.optim._base import Group, State, SteepestOptimizer, Work

__all__ = ["CurvatureOptimizer"]

Loss = Tensor | Callable[[], Tensor]
FEW = 1 << 19  # elements: a step's tensors still fit into the last-level cache
PLAIN = (Tensor, torch.nn.Parameter)


@dataclass
class _Accumulators:
    """What calls of `update_hessian` have left for the next step.

    Attributes
    ----------
    sums : dict
        Parameter to ``sum weight_a D_a`` (or ``G_a``).
    called, dropped : bool
        Whether there was a call, and whether one was dropped.
    given, kept : float
        Weights of all calls and of those that were kept.
    peak : float
        Largest magnitude of an entry so far.
    labels : float
        B, the number of labels.
    wanted : bool
        Whether some parameter still waits for its first estimate.
    """

    sums: dict[Tensor, Tensor] = field(default_factory=dict)
    called: bool = False
    dropped: bool = False
    given: float = 0.0
    kept: float = 0.0
    peak: float = 0.0
    labels: float = 0
    wanted: bool = True

    def clear(self) -> None:
        self.sums = {}
        self.called = self.dropped = False
        self.given = self.kept = self.peak = 0.0
        self.labels = 0


class CurvatureOptimizer(SteepestOptimizer):
    """Base of the optimizers that take curvature by `hessian_due` and `update_hessian`.

    A subclass supplies ``_fold(group, p, state, estimate)``, which takes the estimate of one parameter (its own to
    overwrite) into the state, and sets ``SQUARES`` if it squares it.

    Attributes
    ----------
    missed_updates : int
        Steps that wanted an estimate and got none, so that the old average was used again (not counted with
        ``capturable``, where a step reads nothing on the host).
    dropped_estimates : int
        Estimates that were not finite (or whose square, where it is squared, is not): they never reach the state.
    """

    SQUARES: ClassVar[bool] = False
    ATTRIBUTES: ClassVar[tuple[str, ...]] = (
        *SteepestOptimizer.ATTRIBUTES,
        *("update_each", "n_samples", "distribution", "missed_updates", "dropped_estimates"),
        *("_estimator", "_generator", "_process_group", "_clip", "_pending"),
    )

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        estimator: str,
        update_each: int,
        n_samples: int,
        distribution: str,
        seed: int | torch.Generator | None,
        generator: torch.Generator | None,
        process_group: Any,
        compile: bool | None,
        compile_after: int,
    ) -> None:
        for name, value in (("update_each", update_each), ("n_samples", n_samples)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise value_error(name, "an integer >= 1", value)
        check("distribution", distribution, one_of("rademacher", "gaussian"))
        if seed is not None and generator is not None:
            raise value_error("seed", "None where a generator is given", seed)
        resolve_group(process_group)
        self.update_each, self.n_samples, self.distribution = update_each, n_samples, distribution
        self.missed_updates = self.dropped_estimates = 0
        self._estimator, self._process_group = estimator, process_group
        self._clip: float | None = None  # largest norm of G, gnb only
        self._pending = _Accumulators()
        super().__init__(params, defaults, compile=compile, compile_after=compile_after)
        device = self.param_groups[0]["params"][0].device if self.param_groups[0]["params"] else None
        source = generator if seed is None else seed
        if not isinstance(source, torch.Generator):
            source = ((fresh_seed() if source is None else source) + group_rank(process_group)) % 2**63
        self._generator = torch_generator(source, device, name="generator" if seed is None else "seed")

    # ---------------------------------------------------------------------------------------------------- the protocol

    def hessian_due(self) -> bool:
        """Tell whether the coming step wants a fresh estimate: every `update_each` steps, and for new parameters."""
        return self._pending.wanted or self._clock() % self.update_each == 0

    def _clock(self) -> int:
        """Number of steps done; from the state where a captured or compiled step counts there alone."""
        if not self._is_capturable():
            return self.n_steps
        steps = [state["step"] for state in self.state.values() if state]
        return int(torch.stack(steps).max()) if steps else 0

    def _is_capturable(self) -> bool:
        return any(group["capturable"] for group in self.param_groups)

    @torch.no_grad()
    def update_hessian(
        self,
        loss: Loss | None = None,
        *,
        batch_size: int | None = None,
        weight: float = 1.0,
        retain_graph: bool = False,
    ) -> None:
        """Make an estimate of the curvature at the present parameters, for the next `step` to use.

        ``p.grad`` is not written, and not read if `loss` is given; hooks do not fire. Calls before one `step` add up.

        Parameters
        ----------
        loss : scalar Tensor with a graph, or callable that returns one
            A callable is called with gradients enabled. Unscaled: not multiplied by a `GradScaler`.
        batch_size : int, optional
            Number of sampled labels that the loss is a mean over; needed by Gauss-Newton-Bartlett estimates only.
        weight : float
            Part of the batch that this call represents: 1/A for A micro-batches.
        retain_graph : bool
            Keep the graph of `loss`, for ``loss.backward()``.

        Raises
        ------
        ValueError
            The loss is not scalar, has no graph or depends on none of the parameters; ``weight <= 0``; a missing or
            too small `batch_size` where it is needed; a missing `loss`.
        TypeError
            The loss is neither a tensor nor a callable.
        RuntimeError
            The loss uses a fused attention kernel, which has no double backward (the text names the cure); there are
            no gradients to read.
        NotImplementedError
            Hutchinson estimates of sharded parameters (DTensor).
        """
        check("weight", weight, positive())
        params = self._tracked()
        if self._estimator == "gnb":
            if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
                raise value_error("batch_size", "an integer >= 1, the number of sampled labels", batch_size)
            g = _gradients_as_they_are(params) if loss is None else _gradient(loss, params, retain_graph=retain_graph)
            self._add(params, [None if x is None else _raised(x) for x in g], weight, batch_size)
            return
        if loss is None:
            raise value_error("loss", "the training loss", loss, "call update_hessian(loss)")
        _refuse_sharded(params)
        g = _gradient(loss, params, create_graph=True)
        self._add(params, self._probe(g, params, retain_graph=retain_graph), weight)

    # -------------------------------------------------------------------------------------------- making an estimate

    def _tracked(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _probe(
        self, g: Sequence[Tensor | None], params: Sequence[Tensor], *, retain_graph: bool = False
    ) -> list[Tensor]:
        """Mean of ``z * Hz`` over joint probes, as `hessian_diagonal` makes it, from gradients that carry a graph."""
        graph = [x if x is not None and x.requires_grad else None for x in g]
        D: list[Tensor] = []
        for s in range(self.n_samples):
            z = probe_like(params, self.distribution, generator=self._generator)
            Hz = second_gradient(graph, params, z, retain_graph=retain_graph or s + 1 < self.n_samples)
            products = [_raised(a) * _raised(b) for a, b in zip(z, Hz, strict=True)]
            D = products if s == 0 else D
            if s:
                torch._foreach_add_(D, products)
        if self.n_samples > 1:
            torch._foreach_div_(D, self.n_samples)
        return D

    def _add(
        self, params: Sequence[Tensor], estimate: Sequence[Tensor | None], weight: float, labels: float = 1
    ) -> None:
        """Add one call to the accumulators, unless what would be folded is not finite (one reading of the device)."""
        pending = self._pending
        pending.called = True
        pending.given += weight
        found = [(p, e) for p, e in zip(params, estimate, strict=True) if e is not None]
        peak = max(pending.peak, _largest([e for _, e in found]))
        kept, labels = pending.kept + weight, pending.labels + labels
        if not self._folds(peak * max(kept, 1.0), [e for _, e in found], labels):
            pending.dropped = True
            self._drop()
            return
        pending.peak, pending.kept, pending.labels = peak, kept, labels
        for p, e in found:
            if p in pending.sums:
                pending.sums[p].add_(e, alpha=weight)
            elif self._estimator == "gnb":  # gradients may share memory with one another or be p.grad
                pending.sums[p] = e * weight
            else:
                pending.sums[p] = e if weight == 1.0 else e.mul_(weight)

    def _folds(self, peak: float, tensors: Sequence[Tensor], labels: float) -> bool:
        """Whether an entry of this size, or what it is squared to, is a finite number."""
        if not tensors:
            return True
        limit = min(torch.finfo(t.dtype).max for t in tensors)
        if self._estimator == "gnb":
            return peak <= math.sqrt(limit / labels)
        return peak <= (math.sqrt(limit) if self.SQUARES else limit)

    def _drop(self) -> None:
        self.dropped_estimates += 1
        if self.dropped_estimates == 1:
            warnings.warn(
                f"an estimate of {type(self).__name__} is not finite: it is dropped, the old average is used again "
                "(further ones are counted in dropped_estimates)",
                SteepestWarning,
                stacklevel=4,
            )

    # ---------------------------------------------------------------------------------------------------- in the step

    def _uses_foreach(self, group: Group, params: list[Tensor]) -> bool:
        """Lists also on the CPU where the tensors are small: measured, there a call costs more than its work."""
        small = group["foreach"] is None and sum(p.numel() for p in params) <= FEW and type(params[0]) in PLAIN
        return small or super()._uses_foreach(group, params)

    def _before_update(self, work: Work) -> None:
        """Fold what is pending into the state of the parameters that will move."""
        if not work:
            return
        called = self._pending.called
        estimates = self._take() if called else {}
        self._require(work, estimates)
        if not called and not self._is_capturable() and self.hessian_due():
            self.missed_updates += 1
        for group, params, _ in work:
            for p in params:
                if p in estimates:
                    self._fold(group, p, self._state_of(p, group), estimates.pop(p))
                    self._pending.wanted = False

    def _require(self, work: Work, estimates: Mapping[Tensor, Tensor]) -> None:
        """Raise if a parameter cannot move without an estimate; nothing has changed yet."""

    def _fold(self, group: Group, p: Tensor, state: State, estimate: Tensor) -> None:
        """Take the estimate of one parameter, which may be overwritten, into its state."""
        raise NotImplementedError

    def _take(self) -> dict[Tensor, Tensor]:
        """Clear the accumulators and return the estimate of every parameter; empty if it was dropped."""
        pending = self._pending
        sums, labels, several = pending.sums, pending.labels, group_size(self._process_group) > 1
        if several:
            labels = self._reduce(pending)
        elif pending.dropped and pending.kept > 0:  # the calls that were kept stand for the whole batch
            torch._foreach_mul_(list(sums.values()), pending.given / pending.kept)
        pending.clear()
        values = list(sums.values())
        if values and self._estimator == "gnb":
            if self._clip is not None:
                norm = get_total_norm(values)
                torch._foreach_mul_(values, (self._clip / (norm + 1e-6)).clamp_(max=1.0))
            torch._foreach_mul_(values, math.sqrt(labels))
            torch._foreach_mul_(values, values)
        if several and not _largest(values) < math.inf:
            self._drop()
            return {}
        return sums

    def _reduce(self, pending: _Accumulators) -> float:
        """Average over the ranks, in place, weighted by what each kept; return the sum of their numbers of labels."""
        params, sums = self._tracked(), pending.sums
        for p in params:
            if p not in sums:
                sums[p] = torch.zeros_like(p, dtype=accumulation_dtype(p.dtype), requires_grad=False)
        values = [sums[p] for p in params]
        totals = torch.tensor(
            [pending.given, pending.kept, pending.labels], dtype=torch.float64, device=values[0].device
        )
        all_reduce_sum([*values, totals], self._process_group)
        given, kept, labels = totals.tolist()
        if kept == 0:
            sums.clear()
        else:
            size = group_size(self._process_group)
            torch._foreach_mul_(values, 1 / size if given == kept else given / kept / size)
        return labels

    # -------------------------------------------------------------------------------------------- groups, checkpoints

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, also in the middle of a run; the next step then wants an estimate.

        Raises
        ------
        TypeError, ValueError
            A hyperparameter is outside its limits, or a parameter is complex.
        """
        super().add_param_group(param_group)
        self._pending.wanted = True

    def _extra_state(self) -> dict[str, Any]:
        order = [p for group in self.param_groups for p in group["params"]]
        pending = {name: value for name, value in vars(self._pending).items() if name != "sums"}
        pending["sums"] = {i: self._pending.sums[p].clone() for i, p in enumerate(order) if p in self._pending.sums}
        return super()._extra_state() | {
            "generator": self._generator.get_state(),
            "pending": pending,
            "missed_updates": self.missed_updates,
            "dropped_estimates": self.dropped_estimates,
        }

    def _load_extra_state(self, extra: Mapping[str, Any] | None) -> None:
        super()._load_extra_state(extra)
        self._pending = _Accumulators()
        self.missed_updates = self.dropped_estimates = 0
        if extra is None:
            return
        order = [p for group in self.param_groups for p in group["params"]]
        self._generator.set_state(extra["generator"].cpu())
        sums = {order[i]: value for i, value in extra["pending"]["sums"].items()}
        sums = {p: value.to(p.device, accumulation_dtype(p.dtype), copy=True) for p, value in sums.items()}
        self._pending = _Accumulators(**(extra["pending"] | {"sums": sums}))
        self.missed_updates, self.dropped_estimates = extra["missed_updates"], extra["dropped_estimates"]


def _gradient(
    loss: Loss, params: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool = False
) -> Sequence[Tensor | None]:
    g = backward(loss_value(loss), params, create_graph=create_graph, retain_graph=retain_graph or create_graph)
    if all(x is None for x in g):
        raise value_error("loss", "a function of at least one parameter of this optimizer", "a function of none")
    return g


def _gradients_as_they_are(params: Sequence[Tensor]) -> list[Tensor | None]:
    if all(p.grad is None for p in params):
        raise RuntimeError(
            "update_hessian without a loss reads p.grad, and no parameter has one: first call "
            "sampled_label_loss(model(x)).backward(), or give the loss: "
            "update_hessian(sampled_label_loss(model(x)), batch_size=B)"
        )
    return [p.grad for p in params]


def _largest(tensors: Sequence[Tensor]) -> float:
    """Largest magnitude of all entries, infinite if one is not finite."""
    filled = [t for t in tensors if t.numel()]
    if not filled:
        return 0.0
    peak = get_total_norm(filled, norm_type=math.inf)
    value = float(peak.full_tensor() if hasattr(peak, "full_tensor") else peak)
    return value if math.isfinite(value) else math.inf


def _raised(t: Tensor) -> Tensor:
    """In float32 if it is half precision."""
    return t.to(accumulation_dtype(t.dtype))


def _refuse_sharded(params: Sequence[Tensor]) -> None:
    if any(type(p).__name__ == "DTensor" for p in params):
        raise NotImplementedError(
            "Hutchinson estimates of sharded parameters (DTensor) are not available: FSDP has no double backward; "
            "Sophia with estimator='gnb' needs none"
        )
