r"""Solve A x = b, symmetric positive (semi)definite, along directions that a network proposes and A makes conjugate.

    q     = N(r / ||r||)                                              network, any other callable, or the identity
    q     <- q - sum_j p_j (q'A p_j) / (p_j'A p_j)                    over the last `memory` directions, oldest first
    t     = q'r / q'A q,   x <- x + t q,   r <- r - t A q             exact line search
    keep q, A q, q'A q;  drop the oldest

The line search is exact, so the error in the A-norm never grows, whatever the network returns. With N the identity and
memory >= 1 this is the method of conjugate gradients. The network is trained once for a family of operators, without
solutions (`_conjugate_direction_net`), on mixtures of Ritz vectors (`_ritz`).

Paper: kaneda2023deep, Alg. 1.

| here | paper |
|---|---|
| memory | 2, the directions that are kept |
| direction | f, the network |
| t | alpha, which here is q'A q |

Departures: (1) The published code computes r = b - A x anew at every iteration; here every `recompute_every`, and
before convergence is said. (2) A safeguard: where the residual has not fallen by a tenth over three iterations, or the
proposed direction is not finite, orthogonal to the residual or without positive curvature, the residual itself takes
its place. (3) Where rounding has eaten the residual, the run ends. (4) Null vectors that obstacles and closed boxes
bring are projected out. (5) The tolerance is SciPy's; the published code's is relative to the first residual.
(6) A part of the training set is smoother than the paper's (`tilt`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steepest.core import errors
from steepest.core.distributed import resolve_group
from steepest.core.errors import (
    at_least,
    boolean,
    check_params,
    kind_error,
    nonnegative,
    one_of,
    optional,
    positive,
    value_error,
)
from steepest.core.random import child_seeds, torch_generator
from steepest.curvature.operators import aslinearoperator
from steepest.physics._conjugate_direction_net import ConjugateDirectionNet, levels_for
from steepest.physics._conjugate_directions import MEMORY, LinearSystem, dcdm, product_with
from steepest.physics._direction_training import (
    Grid,
    Losses,
    copy_from_first_rank,
    differentiable_product,
    on_device,
    shared_seed,
    train_directions,
)
from steepest.physics._poisson import PoissonStencil, grid_of
from steepest.physics._ritz import matrix_operator, ritz_mixtures

__all__ = ["DeepConjugateDirection", "dcdm"]

FIT_LIMITS = {
    "n_vectors": at_least(2, integer=True),
    "n_lanczos": at_least(1, integer=True),
    "epochs": at_least(1, integer=True),
    "batch_size": at_least(1, integer=True),
    "lr": positive(),
    "augment": boolean(),
    "resample": boolean(),
    "tilt": nonnegative(),
    "distributed": boolean(),
}
DTYPE = one_of(torch.float32, torch.float64)


class DeepConjugateDirection:
    """A network of search directions for one family of grid operators, and the solver that uses it.

    Parameters
    ----------
    net : ConjugateDirectionNet, optional
        Used, and trained in place, as it is; by default every `fit` makes one of 16 filters with as many levels as
        leave about 8 cells.
    shape : sequence of 2 or 3 int, optional
        Grid that `fit` and `solve` take where none is given there.
    solid : bool array of that shape, optional
        Its obstacles.
    memory : int
        Directions that are kept; 2 in the paper.
    device : torch.device or str, optional
        Of the network; the CPU by default. Residuals travel to it and directions back.
    dtype : torch.float32 or torch.float64
        Of the network; the solver works in that of `b`, float64 as a rule.
    seed : int or None
        Of the first weights and the training; None draws fresh entropy.

    Attributes
    ----------
    net_ : ConjugateDirectionNet
        The trained network.
    history_ : list of (float, float)
        Mean training and held-out loss of every epoch.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind or outside its limits.

    Examples
    --------
    >>> from steepest.physics import poisson_matrix
    >>> model = DeepConjugateDirection(ConjugateDirectionNet(2, filters=8, pairs=1), shape=(16, 16))
    >>> _ = model.fit(n_vectors=400, n_lanczos=120, epochs=1, batch_size=4, lr=1e-2)
    >>> x, info = model.solve(poisson_matrix((16, 16)), np.ones(256))
    >>> info
    0
    """

    def __init__(
        self,
        net: ConjugateDirectionNet | None = None,
        *,
        shape: Sequence[int] | None = None,
        solid: Any = None,
        memory: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int | None = 0,
    ) -> None:
        if net is not None and not isinstance(net, ConjugateDirectionNet):
            raise kind_error("net", "a ConjugateDirectionNet or None", net)
        errors.check("memory", memory, MEMORY)
        errors.check("dtype", dtype, DTYPE)
        self.net, self.memory, self.dtype, self.seed = net, memory, dtype, seed
        self.shape: tuple[int, ...] | None = None
        self.solid: Any = None
        if shape is not None or solid is not None:
            self.shape, self.solid = _shape_and_solid(shape, solid)
        self.device = torch.device(device or "cpu")
        self.history_: Losses = []
        if net is not None:
            self.net_ = self._placed(net)

    def fit(
        self,
        A: Any = None,
        *,
        shape: Sequence[int] | None = None,
        solid: Any = None,
        n_vectors: int = 2048,
        n_lanczos: int = 400,
        epochs: int = 4,
        batch_size: int = 16,
        lr: float = 3e-3,
        augment: bool = True,
        resample: bool = True,
        tilt: float = 1.0,
        distributed: bool = False,
        seed: int | None = None,
        callback: Callable[[int, Losses], Any] | None = None,
    ) -> DeepConjugateDirection:
        """Train the network on products with `A` alone.

        Parameters
        ----------
        A : matrix or LinearOperator, optional
            On the grid's cells, or its fluid cells; by default the Poisson stencil with Dirichlet walls.
        shape, solid
            Grid and obstacles; those of the object where neither is given.
        n_vectors : int
            Right-hand sides of an epoch; a tenth is held out. The official code has 20 000.
        n_lanczos : int
            Ritz vectors they are mixed from; 10 000 in the official code.
        epochs : int
        batch_size : int
            16; 10 in the official code.
        lr : float
            Adam's first step size, which falls to 0 along a cosine; the official code keeps 1e-4.
        augment : bool
            Turn and mirror the grid at random, batch by batch. False for operators that prefer a direction.
        resample : bool
            Draw fresh mixtures every epoch; False repeats those of the first.
        tilt : float
            Half of the mixtures are made smoother: the weight of each Ritz vector is divided by a power, drawn between
            0 and `tilt`, of its Ritz value over the largest. 0 in the official code; late residuals are smooth, and a
            network that has seen few smooth ones needs more iterations on finer grids.
        distributed : bool
            Share every batch among the ranks of `torch.distributed`; all get the same network.
        seed : int, optional
            Instead of the object's.
        callback : callable, optional
            ``callback(epoch, history)`` after every epoch, counted from 1.

        Returns
        -------
        DeepConjugateDirection
            Itself.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong kind or outside its limits; an `A` that is not square, symmetric and of the grid's
            size.
        RuntimeError
            ``distributed=True`` before `torch.distributed` is initialized.
        FloatingPointError
            The loss is not finite.
        """
        settings: dict[str, Any] = {
            "n_vectors": n_vectors, "epochs": epochs, "batch_size": batch_size, "lr": lr, "augment": augment,
            "resample": resample, "tilt": tilt,
        }  # fmt: skip
        check_params(settings | {"n_lanczos": n_lanczos, "distributed": distributed}, FIT_LIMITS)
        grid = self._grid(shape, solid)
        group = resolve_group("default") if distributed else None
        weights_seed, draw_seed = child_seeds(shared_seed(self.seed if seed is None else seed, group), 2)
        net = self.net
        if net is None:
            net = ConjugateDirectionNet(len(grid.shape), levels=levels_for(grid.shape), seed=weights_seed)
        if net.dim != len(grid.shape):
            raise value_error("shape", f"of the network's {net.dim} sizes", grid.shape)
        net = self._placed(net)
        if distributed:
            copy_from_first_rank(net, group)
        if A is None:
            A_apply: Callable[[Tensor], Tensor] = PoissonStencil(
                grid.shape, ~grid.fluid, dtype=self.dtype, device=self.device
            )
            exact = PoissonStencil(grid.shape, ~grid.fluid, device=self.device)
            operator = aslinearoperator(
                lambda V: exact(V.T.reshape(-1, 1, *grid.shape)).flatten(1).T,
                (grid.fluid.size, grid.fluid.size),
                device=self.device,
            )
        else:
            operator = matrix_operator(on_device(A, self.device))
            grid.accept(operator.shape[0])
            A_apply = differentiable_product(operator, grid.spread, grid.gather)
        generator = torch_generator(draw_seed)
        mixtures = ritz_mixtures(operator, n_lanczos, generator=generator)
        self.history_ = train_directions(
            net,
            A_apply,
            grid.spread,
            mixtures.to(self.dtype, self.device),
            grid.mask,
            process_group=group,
            generator=generator,
            callback=callback,
            **settings,
        )
        self.net_ = net
        if self.shape is None:
            self.shape, self.solid = grid.shape, ~grid.fluid
        return self

    def solve(
        self,
        A: Any,
        b: Any,
        x0: Any = None,
        *,
        rtol: float = 1e-5,
        atol: float = 0.0,
        maxiter: int = 100,
        M: Any = None,
        callback: Callable[..., Any] | None = None,
        shape: Sequence[int] | None = None,
        solid: Any = None,
        recompute_every: int = 10,
        tile: int | None = None,
        full_output: bool = False,
    ) -> Any:
        """Solve ``A x = b`` on a grid, which need not be the one of the training.

        Parameters
        ----------
        A : sparse or dense matrix, LinearOperator or callable; a Tensor or callable where `b` is one
            On all cells of the grid in C order, with zero rows in solid cells, or on its fluid cells.
        b, x0
            As in `dcdm`. Where `A` is singular, `b` is first projected on its range: x is a least-squares solution.
        rtol, atol, callback, recompute_every, full_output
            As in `dcdm`.
        maxiter : int
            100, as in the official code.
        M : as `A`, optional
            Approximate inverse, applied to the residual before the network; none by default.
        shape, solid
            The grid of this system; those of the object where neither is given.
        tile : int, optional
            Evaluate the network's finest level in tiles of so many cells a side, for grids that do not fit in memory.

        Returns
        -------
        x, info, stats
            As in `dcdm`.

        Raises
        ------
        RuntimeError
            There is no network: call `fit`, or give one to the constructor.
        TypeError, ValueError
            As in `dcdm`; a grid that does not fit `A`.
        """
        if not hasattr(self, "net_"):
            raise RuntimeError("there is no network: call fit, or give net to the constructor")
        errors.check("tile", tile, optional(at_least(2, integer=True)))
        grid = self._grid(shape, solid)
        if self.net_.dim != len(grid.shape):
            raise value_error("shape", f"of the network's {self.net_.dim} sizes", grid.shape)
        system = LinearSystem(A, b, x0)
        grid.accept(system.n)
        system.check_symmetric()
        system.remove_null_space(grid.fluid, reduced=grid.reduced)
        inverse = None if M is None else product_with(M, system.b, "M")
        return system.solve(
            lambda r: self._direction(r if inverse is None else inverse(r), grid, tile),
            rtol=rtol,
            atol=atol,
            maxiter=maxiter,
            memory=self.memory,
            recompute_every=recompute_every,
            callback=callback,
            full_output=full_output,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write network, grid and settings; `load` reads them without running code from the file.

        Raises
        ------
        RuntimeError
            There is no network.
        """
        if not hasattr(self, "net_"):
            raise RuntimeError("there is no network to save: call fit, or give net to the constructor")
        content = {
            "settings": self.net_.settings,
            "weights": {name: value.cpu() for name, value in self.net_.state_dict().items()},
            "shape": self.shape,
            "solid": None if self.solid is None else torch.as_tensor(self.solid),
            "memory": self.memory,
            "dtype": str(self.dtype).removeprefix("torch."),
            "seed": self.seed,
            "history": self.history_,
        }
        torch.save(content, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> DeepConjugateDirection:
        """Read what `save` wrote; the network goes to `device`, the CPU by default."""
        content = torch.load(path, map_location="cpu", weights_only=True)
        net = ConjugateDirectionNet(**content["settings"])
        dtype = getattr(torch, content["dtype"])
        net.to(dtype).load_state_dict(content["weights"])
        solid = content["solid"]
        model = cls(
            net,
            shape=content["shape"],
            solid=None if solid is None else solid.numpy(),
            memory=content["memory"],
            device=device,
            dtype=dtype,
            seed=content["seed"],
        )
        model.history_ = content["history"]
        return model

    def _placed(self, net: ConjugateDirectionNet) -> ConjugateDirectionNet:
        memory_format = torch.channels_last if net.dim == 2 else torch.channels_last_3d
        net.to(device=self.device, dtype=self.dtype)
        return net.to(memory_format=memory_format).eval()  # type: ignore[call-overload]

    def _grid(self, shape: Any, solid: Any) -> Grid:
        if shape is None and solid is None:
            if self.shape is None:
                raise value_error("shape", "given here or to the constructor", shape)
            shape, solid = self.shape, self.solid
        return Grid(*_shape_and_solid(shape, solid), self.dtype, self.device)

    @torch.inference_mode()
    def _direction(self, r: Any, grid: Grid, tile: int | None) -> Any:
        on_torch = isinstance(r, Tensor)
        flat = r if on_torch else torch.from_numpy(np.ascontiguousarray(r))
        size = torch.linalg.vector_norm(flat)
        u = grid.spread((flat / size).to(self.device, self.dtype).unsqueeze(0))
        q = self.net_(u, grid.mask) if tile is None else self.net_.tiled(u, grid.mask, tile)
        q = grid.gather(q)[0].to(flat)
        return q.clone() if on_torch else q.numpy()


def _shape_and_solid(shape: Any, solid: Any) -> tuple[tuple[int, ...], Any]:
    sizes, fluid = grid_of(np.shape(solid) if shape is None else shape, solid)
    return sizes, ~fluid
