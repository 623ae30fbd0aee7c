"""Clients that train a torch module on their part of a data set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steepest.core.errors import at_least, check, kind_error, optional, positive, value_error
from steepest.federated.engine import Reply, State, Task

__all__ = ["TorchClient", "make_clients"]


class TorchClient:
    """Local training: some optimizer steps on batches drawn, with replacement, from the client's samples.

    Parameters
    ----------
    module : torch.nn.Module
        Trained in ``train()`` mode; clients of one process may share it, for every task loads the model it was sent.
    dataset : tuple of Tensor, or map-style data set
        The last of a sample's parts is the target, the others the module's inputs.
    indices : array_like of int
        The client's samples.
    loss_fn : callable
        ``loss_fn(output, target) -> scalar``.
    optimizer : callable
        ``optimizer(parameters) -> torch.optim.Optimizer``, built anew for every task.
    steps : int
        Optimizer steps per task (K).
    batch_size : int or None
        None takes all of the client's samples in each step.
    max_grad_norm : float, optional
        Gradients are clipped to this norm.
    device : torch.device or str, optional
        Where batches are sent; the module must be there.
    evaluate_fn : callable, optional
        ``evaluate_fn(module) -> dict of float`` after the work, added to the metrics.

    Notes
    -----
    Metrics are ``loss`` (of the last step) and ``steps``. Entries of a batch norm are averaged as parameters are.
    The global random state is as before when a task has ended.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        dataset: Any,
        indices: Any,
        loss_fn: Callable[..., Tensor],
        *,
        optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
        steps: int = 10,
        batch_size: int | None = 64,
        max_grad_norm: float | None = None,
        device: torch.device | str | None = None,
        evaluate_fn: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    ) -> None:
        if not isinstance(module, torch.nn.Module):
            raise kind_error("module", "a torch.nn.Module", module)
        for name, value in (("loss_fn", loss_fn), ("optimizer", optimizer)):
            if not callable(value):
                raise kind_error(name, "callable", value)
        check("steps", steps, at_least(1, integer=True))
        check("batch_size", batch_size, optional(at_least(1, integer=True)))
        check("max_grad_norm", max_grad_norm, optional(positive()))
        self.indices = torch.as_tensor(indices, dtype=torch.long)
        size = len(dataset[0]) if isinstance(dataset, tuple) else len(dataset)
        if self.indices.ndim != 1 or not len(self.indices):
            raise value_error("indices", "at least one sample", self.indices)
        if int(self.indices.min()) < 0 or int(self.indices.max()) >= size:
            raise value_error("indices", f"in [0, {size})", f"{int(self.indices.min())} to {int(self.indices.max())}")
        self.module, self.dataset, self.loss_fn, self.optimizer = module, dataset, loss_fn, optimizer
        self.steps, self.batch_size, self.max_grad_norm = steps, batch_size, max_grad_norm
        self.device, self.evaluate_fn = device, evaluate_fn
        self.n_samples = len(self.indices)

    def fit(self, model: State, task: Task) -> Reply:
        """Train from `model`."""
        module = self.module
        module.load_state_dict(model)
        module.train()
        with seeded(task.seed, next(module.parameters()).device):
            draws = torch.Generator().manual_seed(task.seed)
            parameters = [p for p in module.parameters() if p.requires_grad]
            optimizer = self.optimizer(parameters)
            loss = torch.zeros(())
            for _ in range(self.steps):
                *inputs, target = self.batch(draws)
                optimizer.zero_grad()
                loss = self.loss_fn(module(*inputs), target)
                loss.backward()
                if self.max_grad_norm is not None:
                    clip_(parameters, self.max_grad_norm)
                optimizer.step()
        metrics = {"loss": float(loss.detach()), "steps": float(self.steps)}
        if self.evaluate_fn is not None:
            metrics.update(self.evaluate_fn(module))
        return Reply(difference(module.state_dict(), model), metrics=metrics)

    def batch(self, draws: torch.Generator) -> Sequence[Tensor]:
        """Draw a batch; all of the client's samples without a batch size."""
        chosen = self.indices
        if self.batch_size is not None:
            chosen = chosen[torch.randint(len(chosen), (self.batch_size,), generator=draws)]
        if isinstance(self.dataset, tuple):
            parts = [part[chosen] for part in self.dataset]
        else:
            parts = torch.utils.data.default_collate([self.dataset[int(k)] for k in chosen])
        return parts if self.device is None else [part.to(self.device) for part in parts]

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a client begins every task anew."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Give the global streams, which dropout draws from, a seed of the task's own, and put them back afterwards."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed all devices, and is slow
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def clip_(parameters: Sequence[Tensor], max_norm: float) -> None:
    """Scale gradients to a joint norm of at most `max_norm`: `clip_grad_norm_` at a third of its overhead."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))


def difference(after: State, before: State) -> State:
    """The delta of a model: what changed, and of entries that cannot be averaged their new value."""
    names = [name for name, value in before.items() if value.is_floating_point() or value.is_complex()]
    changed = torch._foreach_sub([after[name].detach() for name in names], [before[name] for name in names])
    delta = {name: after[name].detach().clone() for name in before.keys() - set(names)}
    delta.update(zip(names, changed, strict=True))
    return {name: delta[name] for name in before}


def make_clients(
    module: torch.nn.Module, dataset: Any, partition: Sequence[Any], loss_fn: Callable[..., Tensor], **options: Any
) -> list[TorchClient]:
    """One `TorchClient` per part; they share the data set and one copy of the module.

    Parameters
    ----------
    module : torch.nn.Module
        Copied once, so that yours is not trained.
    dataset : tuple of Tensor, or map-style data set
    partition : sequence of array_like of int
        From `dirichlet_partition`, `iid_partition`, `shard_partition`, or your own lists of indices.
    loss_fn : callable
    **options
        Those of `TorchClient`; ``optimizer`` is required.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.functional import mse_loss
    >>> data = torch.randn(20, 3), torch.randn(20, 1)
    >>> clients = make_clients(
    ...     torch.nn.Linear(3, 1), data, [range(8), range(8, 20)], mse_loss, optimizer=lambda p: torch.optim.SGD(p, 0.1)
    ... )
    >>> [client.n_samples for client in clients]
    [8, 12]
    """
    shared = copy.deepcopy(module)
    return [TorchClient(shared, dataset, list(part), loss_fn, **options) for part in partition]
