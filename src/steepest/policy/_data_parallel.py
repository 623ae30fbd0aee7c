"""Data-parallel training by `torch.distributed`: each rank plays environments of its own, all learn one policy.

A minibatch consists of equal parts, one from each rank, so that the mean of the ranks' gradients is the gradient of the
whole; it is taken before the gradient is clipped. With one process all this is the identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steepest.core.distributed import all_reduce_mean, all_reduce_sum, group_rank, group_size
from steepest.core.errors import value_error
from steepest.policy._mirror import check_finite_loss

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm as Base
else:
    Base = object

__all__ = ["DataParallel", "log_share", "mean_over_ranks"]


class DataParallel(Base):
    """For an algorithm of Stable-Baselines3 with an attribute `process_group`."""

    process_group: Any

    def set_random_seed(self, seed: int | None = None) -> None:
        """Start all streams anew from `seed`; environments of a rank get the seeds after those of the one before."""
        first = group_rank(self.process_group) * self.n_envs
        super().set_random_seed(None if seed is None else seed + first)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "process_group"]

    def _begin_together(self, *modules: nn.Module) -> None:
        """Let all ranks go on from the parameters and buffers of rank 0."""
        n = torch.tensor([self.n_envs, self.n_envs**2], dtype=torch.float64, device=self.device)
        all_reduce_mean([n], self.process_group)
        if n[1] != n[0] ** 2:
            raise value_error("env", "with the same number of environments on all ranks", self.n_envs)
        held = [value for module in modules for value in module.state_dict().values()]
        if group_rank(self.process_group) > 0:
            for value in held:
                value.zero_()
        all_reduce_sum(held, self.process_group)

    def _own_part(self, name: str, n: int) -> int:
        """How many of a minibatch's n rows this rank contributes."""
        size = group_size(self.process_group)
        if n % size != 0:
            raise value_error(name, f"a multiple of the {size} ranks", n)
        return n // size

    def _backward(self, optimizer: torch.optim.Optimizer, loss: Tensor, what: str, n: int) -> float:
        """Set the gradients of the mean loss of all ranks, and give it; on all alike it is finite or an error."""
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        mean = loss.detach().clone()
        all_reduce_mean([mean, *gradients], self.process_group)
        value = mean.item()
        check_finite_loss(value, what, n)
        return value


def mean_over_ranks(values: Tensor, process_group: Any) -> Tensor:
    """Mean of the values of all ranks, which have equally many."""
    mean = values.mean()
    all_reduce_mean([mean], process_group)
    return mean


def log_share(values: Tensor, process_group: Any) -> Tensor:
    """Logarithm of this rank's part of the sum over all ranks of exp(values)."""
    own = values.logsumexp(0)
    of_all = own.new_zeros(group_size(process_group))
    of_all[group_rank(process_group)] = own
    all_reduce_sum([of_all], process_group)
    return own - of_all.logsumexp(0)
