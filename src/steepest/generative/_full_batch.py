"""Full-batch gradient descent on a two-layer ReLU network, by hand: four products a chunk into kept buffers.

With Z = relu(U W^T) and E = Z A / sqrt(m) - Y, the gradient of (1/2n) |E|^2 in W is
((E A^T) * (Z > 0))^T U / (n sqrt(m)). Rows go in chunks that stay in the cache; over several processes each holds its
own rows, and only the gradient of W (with the loss) travels.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steepest.core.distributed import all_reduce_sum
from steepest.core.driver import Progress, drive
from steepest.core.errors import at_least, check, optional, value_error
from steepest.generative._tangent_kernel import TwoLayerReLU

__all__ = ["FullBatch", "train"]

LOGGER = logging.getLogger(__name__)
CACHE = 2**17  # entries of a buffer, 1 MiB in double precision: 64 rows at width 2048
FEWEST, MOST = 25, 200  # rows of a chunk; measured, see the benchmark
PATIENCE = 4  # ours: training goes on until the lowest held-out loss lies before a quarter of the steps made
WARM_UP = 80  # ours: steps below which it always goes on


class FullBatch:
    """Exact gradient steps of the mean loss over all rows.

    Parameters
    ----------
    net : TwoLayerReLU
        Its W is changed in place.
    U : Tensor (n, p)
    Y : Tensor (n, d)
        This process's rows.
    chunk : int, optional
        Rows at a time; as many as keep a buffer in the cache by default.
    process_group
        None, "default" or a group, see `steepest.core.distributed`: the loss is the mean over all processes' rows.

    Raises
    ------
    ValueError
        Shapes that do not fit the network.

    Examples
    --------
    >>> net, U, Y = TwoLayerReLU(3, 1, 8, generator=0), torch.ones(4, 3), torch.ones(4, 1)
    >>> descent = FullBatch(net, U, Y)
    >>> [round(descent.step(0.5), 3) for _ in range(3)]
    [0.5, 0.197, 0.13]
    """

    def __init__(
        self, net: TwoLayerReLU, U: Tensor, Y: Tensor, *, chunk: int | None = None, process_group: Any = None
    ) -> None:
        width, n_in = net.W.shape
        if U.ndim != 2 or U.shape[1] != n_in:
            raise value_error("U", f"of shape (n, {n_in})", U)
        if Y.shape != (len(U), net.A.shape[1]):
            raise value_error("Y", f"of shape {(len(U), net.A.shape[1])}", Y)
        check("chunk", chunk, optional(at_least(1, integer=True)))
        self.net, self.process_group = net, process_group
        rows = min(max(CACHE // width, FEWEST), MOST) if chunk is None else chunk
        self._parts = list(zip(U.split(rows), Y.split(rows), strict=True))
        count = torch.tensor([float(len(U))], dtype=torch.float64)
        all_reduce_sum([count], process_group)
        self.n = int(count)
        rows = min(rows, len(U))
        self._hidden, self._back = (U.new_empty(rows, width) for _ in range(2))
        self._errors = U.new_empty(rows, Y.shape[1])
        self._signs = (net.A / width**0.5).contiguous()
        self._signs_transposed = self._signs.T.contiguous()
        self.gradient = torch.zeros_like(net.W, requires_grad=False)

    @torch.no_grad()
    def step(self, step_size: float) -> float:
        """Move W by one step and return the loss before it, (1/2n) sum |f(u_j) - y_j|^2 over all rows."""
        loss = self.evaluate()
        self.net.W.sub_(self.gradient, alpha=step_size)
        return loss

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the loss; its gradient is in `gradient` until the next call."""
        W, total = self.net.W, self.gradient.zero_()
        loss = torch.zeros(1, dtype=torch.float64, device=W.device)
        for U, Y in self._parts:
            hidden, back, errors = (buffer[: len(U)] for buffer in (self._hidden, self._back, self._errors))
            torch.mm(U, W.T, out=hidden).relu_()
            torch.mm(hidden, self._signs, out=errors).sub_(Y)
            torch.mm(errors, self._signs_transposed, out=back)
            back.mul_(hidden.sign_())
            total.addmm_(back.T, U)
            loss += errors.square().sum(dtype=torch.float64)
        loss = loss.to(total)
        all_reduce_sum([total, loss], self.process_group)
        total.div_(self.n)
        return float(loss) / (2 * self.n)


def train(
    descent: FullBatch,
    step_size: float,
    steps: int,
    *,
    grid: Sequence[int] = (),
    held_out: Callable[[], float] | None = None,
    verbose: int = 0,
) -> tuple[list[float], list[float]]:
    """Make `steps` steps; with a held-out loss, watch it at the steps of `grid` and return to where it was lowest.

    Returns
    -------
    losses : list of float
        Before each step.
    held_out_losses : list of float
        At the steps of the grid that were reached.

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    net, seen, looked_at = descent.net, list[float](), set(grid)
    best = copy.deepcopy(net.state_dict())

    def one(k: int) -> tuple[int, Progress]:
        loss = descent.step(step_size)
        if verbose and k + 1 in looked_at:
            LOGGER.info("step %d of at most %d: loss %.4g before it", k + 1, steps, loss)
        return k + 1, Progress(k + 1, loss)

    def look(k: int) -> None:
        nonlocal best
        if held_out is None or k not in looked_at:
            return
        seen.append(held_out())
        lowest = seen.index(min(seen))
        if lowest == len(seen) - 1:
            best = copy.deepcopy(net.state_dict())
        elif k > PATIENCE * max(grid[lowest], WARM_UP):
            raise StopIteration

    run = drive(one, 0, maxiter=steps, callback=look, on_nonfinite="raise")
    if held_out is not None:
        net.load_state_dict(best)
    return run.history["fun"], seen
