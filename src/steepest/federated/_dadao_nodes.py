"""The states of DADAO's nodes and how they jump; one process may hold all of them or a part."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from steepest.core.errors import kind_error, value_error
from steepest.federated._dadao_events import Schedule, Segment
from steepest.federated._dadao_flow import YT, DadaoConstants, X, Y, Z

__all__ = ["Gradients", "Kind", "Nodes", "NonFiniteGradient", "Simulation"]


class Kind:
    """The caller's kind of array. Blocks are NumPy arrays, also those of tensors on the CPU, which share memory."""

    def __init__(self, x0: Any) -> None:
        self.tensor = isinstance(x0, torch.Tensor)
        self.device = x0.device if self.tensor else torch.device("cpu")
        if self.tensor:
            dtype = x0.dtype if x0.is_floating_point() else torch.float64
            if dtype not in (torch.float32, torch.float64):
                raise value_error("x0", "of dtype float32 or float64", x0)
            self.dtype = np.dtype(str(dtype).removeprefix("torch."))
        else:
            given = np.asarray(x0)
            if given.dtype.kind not in "fiu" or (given.dtype.kind == "f" and given.dtype not in ("f4", "f8")):
                raise value_error("x0", "of dtype float32 or float64", x0)
            self.dtype = given.dtype if given.dtype.kind == "f" else np.dtype(float)
        self.there = self.device.type != "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The tensors' dtype."""
        return torch.float32 if self.dtype == np.float32 else torch.float64

    def take(self, name: str, value: Any, shape: tuple[int, ...] | None = None) -> Any:
        """A copy of the caller's array, as blocks are; finite, of the same kind and of the given shape."""
        if isinstance(value, torch.Tensor) != self.tensor:
            raise kind_error(name, "a tensor, as x0 is" if self.tensor else "a NumPy array, as x0 is", value)
        if self.tensor and value.device != self.device:
            raise value_error(name, f"on x0's device {self.device}", str(value.device))
        if shape is not None and tuple(np.shape(value)) != shape:
            raise value_error(name, f"of shape {shape}", value)
        if not self.tensor:
            block = np.array(value, dtype=self.dtype)
        else:
            block = value.detach().to(self.torch_dtype).clone()
            block = block if self.there else block.numpy()
        if not math.isfinite(float(abs(block).max())):
            raise value_error(name, "finite", f"an entry that is not in an array of shape {tuple(block.shape)}")
        return block

    def lift(self, array: Any) -> Any:
        """Our float64 arrays in the precision and place of the blocks."""
        if self.there:
            return torch.as_tensor(array, dtype=self.torch_dtype, device=self.device)
        return np.asarray(array, dtype=self.dtype)

    def stack(self, blocks: Sequence[Any]) -> Any:
        """Put blocks (…) into one array (n, …)."""
        return torch.stack(list(blocks)) if self.there else np.stack(blocks)

    def lower(self, block: Any) -> Any:
        """A block as the caller's kind of array."""
        return torch.from_numpy(block) if self.tensor and not self.there else block


class Gradients:
    """The caller's gradients as one function ``(i, x) -> g`` on rows of blocks."""

    def __init__(self, grads: Any, n: int, d: int, kind: Kind) -> None:
        if callable(grads):
            self.fn: Callable[[int, Any], Any] = grads
        elif isinstance(grads, Sequence) and all(callable(g) for g in grads):
            if len(grads) != n:
                raise value_error("grads", f"a list of {n} callables, one for each node of the graph", f"{len(grads)}")
            self.fn = _OneEach(list(grads))
        else:
            raise kind_error("grads", "a list of callables x -> gradient, or a callable (i, x) -> gradient", grads)
        self.kind, self.shape, self.dtype, self.tensor = kind, (d,), kind.dtype, kind.tensor

    def __call__(self, i: int, x: Any) -> Any:
        """The gradient of node i at x (d,)."""
        if not self.tensor:
            g = self.fn(i, x)
            if not (isinstance(g, np.ndarray) and g.shape == self.shape and g.dtype == self.dtype):
                raise self._refused(i, g)
            return g
        g = self.fn(i, self.kind.lower(x))
        there = isinstance(g, torch.Tensor) and g.device == self.kind.device
        if not (there and tuple(g.shape) == self.shape and g.dtype == self.kind.torch_dtype):
            raise self._refused(i, g)
        return g.detach() if self.kind.there else g.detach().numpy()

    def _refused(self, i: int, g: Any) -> TypeError:
        what = f"a tensor on {self.kind.device}" if self.tensor else "a NumPy array"
        return kind_error(f"grads of node {i}", f"{what} of shape {self.shape} and x0's dtype {self.dtype}", g)


class _OneEach:
    def __init__(self, grads: list[Callable[[Any], Any]]) -> None:
        self.grads = grads

    def __call__(self, i: int, x: Any) -> Any:
        return self.grads[i](x)


class NonFiniteGradient(FloatingPointError):
    """The gradient of `node` is not finite; its state is as it was before."""

    def __init__(self, node: int) -> None:
        super().__init__(node)
        self.node = node


class Nodes:
    """Blocks (6, d) of some nodes, rows X, Xt, Y, Yt, Z, Zt, each at the time of its last event.

    `first` keeps the squared norm of each node's first gradient.
    """

    def __init__(self, gradients: Gradients, constants: DadaoConstants, blocks: Mapping[int, Any]) -> None:
        self.gradients, self.constants, self.blocks = gradients, constants, dict(blocks)
        self.nu = constants.nu
        self.at_gradient = gradients.kind.lift(constants.at_gradient)
        self.at_gossip = gradients.kind.lift(constants.at_gossip)
        self.first: dict[int, float] = {}

    def gradient(self, i: int, flow: Any) -> None:
        """Node i, led to the present, computes a gradient."""
        S = flow @ self.blocks[i]
        raw = self.gradients(i, S[X])
        size = float(raw.dot(raw))
        if not math.isfinite(size) and not math.isfinite(float(abs(raw).max())):
            raise NonFiniteGradient(i)
        if i not in self.first:
            self.first[i] = size
        g = raw - self.nu * S[X] - S[YT]
        self.blocks[i] = S + self.at_gradient * g  # X -= gamma g,  Xt -= gamma~ g,  Yt += (delta + delta~) g

    def gossip(self, i: int, j: int, flow: Any, flow2: Any) -> None:
        """Nodes i and j, led to the present, exchange messages."""
        S, T = flow @ self.blocks[i], flow2 @ self.blocks[j]
        m = (S[Y] + S[Z]) - (T[Y] + T[Z])
        S[Z:] -= self.at_gossip * m  # Z -= beta m,  Zt -= beta~ m
        T[Z:] += self.at_gossip * m
        self.blocks[i], self.blocks[j] = S, T

    def event(self, i: int, j: int, flow: Any, flow2: Any) -> None:
        """A gradient where j is -1, else a gossip."""
        if j < 0:
            self.gradient(i, flow)
        else:
            self.gossip(i, j, flow, flow2)

    def message(self, i: int, flow: Any) -> Any:
        """The first half of a gossip with a node elsewhere: what i sends."""
        S = self.blocks[i] = flow @ self.blocks[i]
        return S[Y] + S[Z]

    def mix(self, i: int, theirs: Any) -> None:
        """The second half: what i makes of the other's message."""
        S = self.blocks[i]
        S[Z:] -= self.at_gossip * ((S[Y] + S[Z]) - theirs)

    def advance(self, segment: Segment) -> Segment:
        """Play all events; what was played where a gradient is not finite."""
        done = 0
        try:
            for piece in segment.pieces:
                for i, j, flow, flow2 in piece.events():
                    self.event(i, j, flow, flow2)
                    done += 1
        except NonFiniteGradient as error:
            return segment.until_failure(done, error.node)
        return segment


class Simulation:
    """All nodes in this process, events one after the other."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes

    def run(self, schedule: Schedule, ahead: bool, segments: Iterable[Segment] = ()) -> Iterator[tuple[Segment, Nodes]]:
        """Give each segment that was played, and the nodes after it; first `segments`, then those of the schedule."""
        for planned in itertools.chain(segments, iter(schedule.next, None)):
            segment = self.nodes.advance(planned)
            yield segment, self.nodes
            if segment.end:
                return

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing has to be put away."""

    def gradients_at(self, x: Any) -> list[Any]:
        """The gradients of all nodes at one point."""
        return [self.nodes.gradients(i, x) for i in self.nodes.blocks]
