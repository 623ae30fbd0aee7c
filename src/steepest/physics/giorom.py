r"""Fast particle simulation: step a few sampled particles by a learned model, infer all others from their motion.

Positions of n sampled particles over W + 1 frames, velocities as differences of frames:

    h_i = encoder(kind, last velocity, W - 1 accelerations, distances to the walls)
    e_ij = encoder((x_i - x_j) / R, its norm)
    2 interactions with neighbors -> kernel integral to a grid -> linear transformer -> kernel integral back
    -> 2 interactions
    a = acc_mean + acc_std (decoder(h) + A [normalized accelerations]),    v <- v + a,    x <- x + v
    all points:  x(X) = X + S u,    u = x(Y) - Y the displacements of the samples, S a sparse matrix built once

Papers: viswanath2024reduced; sanchezgonzalez2020learning (inputs, noise, step of time).
Parts: `_particle_network` (interactions), `_neural_operator` (grid), `_particle_forward` (inputs), `_particle_model`
(step, rollout), `_particle_training` (noise, training), `_upsampling` (S).

=====================  ==========================================
paper, official code   here
=====================  ==========================================
window_size            ``window``, W
gno_radius             ``operator_radius``, R_o
connectivity radius    ``connectivity_radius``, R
latent_grid_dim        ``latent_grid``, nodes of each axis
not_layers, not_heads  ``operator_layers``, ``heads``
fom_gno                ``upsample_order=0``
=====================  ==========================================

Departures, the paper's being ``GIOROM(node_input="velocities", skip=None, upsample_order=0)`` with
``fit(noise=3e-4, noise_unit="frame")``: (1) accelerations as inputs, the same information in the unit of what is
predicted; (2) A, the least-squares map that training starts from (``skip="neighbors"``: of neighbors and walls too);
(3) noise in units of the data's acceleration; (4) moving least squares for the other points; (5) the grid's result is
added to h, where the official code replaces it; (6) particles that are put back on a wall come to rest along that
axis; what else differs is said in the parts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from steepest.core.errors import Limit, at_least, check, check_params, interval, one_of, optional, positive, value_error
from steepest.core.parallel import ordered_map
from steepest.core.random import torch_generator
from steepest.physics._neural_operator import NeuralOperator, grid_sizes
from steepest.physics._particle_data import as_trajectories
from steepest.physics._particle_graph import farthest_point_sample
from steepest.physics._particle_model import ParticleModel
from steepest.physics._particle_network import Graph, SpectralLayer
from steepest.physics._particle_training import SAMPLE, Batch, sample_size
from steepest.physics._upsample_training import DistanceKernel, train_kernel
from steepest.physics._upsampling import Upsampler

__all__ = ["GIOROM"]

SIMULATION_CHUNK = 16384  # queries that one worker infers at a time


class GIOROM(ParticleModel):
    """Graph interaction operator for reduced-order modelling (viswanath2024reduced).

    Parameters
    ----------
    dim : 2 or 3
    window : int
        W, velocities in the input (official: 5).
    hidden : int
        Width (official: 128); the grid's transformer is twice as wide.
    n_mp_layers : int
        Interactions before and again after the grid (official: 2).
    n_types : int
        Kinds of particles (official: 9).
    latent_grid : int or sequence of int, optional
        Nodes of the grid along each axis, from bound to bound (official: 32 in the plane, 16 in space).
    bounds : array_like (d, 2), optional
        The box's (lo, hi) on each axis; the unit box by default.
    connectivity_radius : float, optional
        R, in the units of the positions (official: 0.032 in the plane, 0.085 to 0.114 in space: 0.1 here). It should be
        2 to 3 times the mean spacing of the particles that are stepped.
    operator_radius : float, optional
        R_o, of the kernel integrals. By default 1.5 of the grid's largest spacing, so that every particle meets a node
        (official: 0.024 in the plane, less than the spacing there, 0.165 in space).
    operator_layers, heads, experts : int
        Of the grid's transformer (official: 2, 4, 2).
    upsample_radius : float, optional
    upsample_order : 0, 1 or 2
    upsample_neighbors : int, optional
        As `radius`, `order` and `neighbors` of `Upsampler`. Order 0 is the paper's; 2 needs no training.
    node_input : "accelerations" or "velocities"
        The last velocity and W - 1 accelerations, or the W velocities (official).
    skip : "least_squares", "neighbors" or None
        Whether a linear map, set by the first `fit`, is added to the network (None is the paper): of a particle's own
        accelerations, or of these, how its neighbors' mean motion differs from its own, and the walls within R. The
        latter has much better rollouts, and needs scenes enough that some hundred windows of them hold impacts.
    normalize_velocity : bool
        For ``node_input="velocities"``: False feeds them raw, as the official code does.
    seed : int, torch.Generator or None
        Of the first weights.

    Attributes
    ----------
    vel_mean_, vel_std_, acc_mean_, acc_std_ : Tensor (d,)
        From the training data, a frame being the unit of time; the spreads already contain the noise.
    history_ : dict of lists
        See `fit`.
    upsampler_history_ : list of float
        See `fit_upsampler`.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind or outside its limits.

    Examples
    --------
    Particles in free fall: the autoregression that training starts from has it already.

    >>> start = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.5
    >>> t = torch.arange(20.0)[:, None, None]
    >>> fall = start - torch.tensor([0.0, 1e-3]) * t**2
    >>> model = GIOROM(hidden=8, latent_grid=6, connectivity_radius=0.2).fit([fall], steps=0)
    >>> frames = model.rollout(fall[:6].transpose(0, 1), 5)
    >>> bool((frames - fall[6:11]).abs().max() < 1e-4)
    True
    """

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        **ParticleModel.LIMITS,
        "n_mp_layers": at_least(1, integer=True),
        "operator_radius": optional(positive()),
        "operator_layers": at_least(1, integer=True),
        "heads": at_least(1, integer=True),
        "experts": at_least(1, integer=True),
        "upsample_radius": optional(positive()),
        "upsample_order": one_of(0, 1, 2),
    }

    def __init__(
        self,
        dim: int = 2,
        *,
        window: int = 5,
        hidden: int = 128,
        n_mp_layers: int = 2,
        n_types: int = 9,
        latent_grid: Any = None,
        bounds: Any = None,
        connectivity_radius: float | None = None,
        operator_radius: float | None = None,
        operator_layers: int = 2,
        heads: int = 4,
        experts: int = 2,
        upsample_radius: float | None = None,
        upsample_order: int = 2,
        upsample_neighbors: int | None = None,
        node_input: str = "accelerations",
        skip: str | None = "least_squares",
        normalize_velocity: bool = True,
        seed: int | torch.Generator | None = 0,
    ) -> None:
        settings = {
            "dim": dim, "window": window, "hidden": hidden, "n_mp_layers": n_mp_layers, "n_types": n_types,
            "latent_grid": latent_grid, "bounds": bounds, "connectivity_radius": connectivity_radius,
            "operator_radius": operator_radius, "operator_layers": operator_layers, "heads": heads, "experts": experts,
            "upsample_radius": upsample_radius, "upsample_order": upsample_order,
            "upsample_neighbors": upsample_neighbors, "node_input": node_input, "skip": skip,
            "normalize_velocity": normalize_velocity,
        }  # fmt: skip
        super().__init__(seed, settings)
        self.upsample_radius, self.upsample_order = upsample_radius, upsample_order
        self.upsample_neighbors = upsample_neighbors
        self.upsampler_history_: list[float] = []
        self.operator.set_grid(self.low, self.high)
        if self.kernel is not None:
            self.kernel.start()

    def _build(self, box: list[list[float]]) -> None:
        get = self.settings.__getitem__
        check("upsample_neighbors", get("upsample_neighbors"), optional(interval(self.dim + 2, integer=True)))
        self.latent_grid = self.settings["latent_grid"] = grid_sizes(get("latent_grid"), self.dim)
        if 2 * self.hidden % get("heads"):
            raise value_error("heads", f"a divisor of the transformer's width {2 * self.hidden}", get("heads"))
        layers = [SpectralLayer(self.hidden) for _ in range(2 * get("n_mp_layers"))]
        half = len(layers) // 2
        self.before, self.after = nn.ModuleList(layers[:half]), nn.ModuleList(layers[half:])
        low, high = ([float(side[k]) for side in box] for k in (0, 1))
        self.operator = NeuralOperator(
            self.hidden, low, high, self.latent_grid, get("operator_radius"), get("operator_layers"), get("heads"),
            get("experts"),
        )  # fmt: skip
        self.kernel = DistanceKernel(self.dim) if get("upsample_order") < 2 else None

    def _process(self, h: Tensor, e: Tensor, graph: Graph, batch: Batch) -> Tensor:
        for layer in self.before:
            h, e = layer(h, e, graph)
        h = self.operator(h, batch.positions[:, -1], batch.graph_index, batch.n_graphs)
        for layer in self.after:
            h, e = layer(h, e, graph)
        return h

    def trained_parameters(self) -> list[nn.Parameter]:
        """List the parameters that `fit` trains: all but the upsampler's."""
        return [p for name, p in self.named_parameters() if not name.startswith("kernel.")]

    def fit_upsampler(
        self, trajectories: Any, *, n_sample: float, steps: int = 500, lr: float = 1e-3, seed: int | None = 0
    ) -> Self:
        """Train kappa of the orders 0 and 1: from the first frame as reference, infer points of later ones.

        Parameters
        ----------
        trajectories : list
            As in `fit`, of two frames or more.
        n_sample : int or float
            Samples, a number or a share, drawn anew in every step.
        steps : int
            Steps of Adam.
        lr : float
        seed : int or None

        Returns
        -------
        self
            With `upsampler_history_`, each step's squared error by the mean squared deformation of all trajectories.

        Raises
        ------
        ValueError
            ``upsample_order=2``, which has nothing to train; data as in `fit`.
        RuntimeError
            Less than d + 2 samples.
        """
        check_params(
            {"n_sample": n_sample, "steps": steps, "lr": lr},
            {"n_sample": SAMPLE, "steps": at_least(0, integer=True), "lr": positive()},
        )
        if self.kernel is None:
            raise value_error("upsample_order", "0 or 1 for fit_upsampler", 2, "order 2 has no kernel to train")
        scenes = as_trajectories(trajectories, self._frame(), 2)
        sizes = [sample_size(n_sample, scene.positions.shape[1]) for scene in scenes]
        self._check_enough(min(sizes))
        self.upsampler_history_ = train_kernel(
            self.kernel, scenes, sizes, self.upsample_order, self.upsample_radius, steps=steps, lr=lr,
            generator=torch_generator(seed),
        )  # fmt: skip
        return self

    def build_upsampler(self, reference_samples: Any, reference_queries: Any) -> Upsampler:
        """Make the sparse matrix S that moves all points with the samples.

        Parameters
        ----------
        reference_samples : array or Tensor (n, d)
            Y, samples in the reference configuration.
        reference_queries : array or Tensor (q, d)
            X, all points in it.

        Returns
        -------
        Upsampler
            ``upsampler(samples)`` gives positions (q, d) or (T, q, d).

        Raises
        ------
        RuntimeError
            Less than d + 2 samples.
        ValueError
            As in `Upsampler`.
        """
        return self._upsampler_maker()(reference_samples, reference_queries)

    def upsample(self, reference_samples: Any, samples: Any, reference_queries: Any, *, chunk: int = 65536) -> Any:
        """Build the upsampler and apply it, `chunk` queries at a time.

        Parameters
        ----------
        reference_samples : array or Tensor (n, d)
        samples : array or Tensor (T, n, d) or (n, d)
            Where the samples are, in one frame or T.
        reference_queries : array or Tensor (q, d)
        chunk : int
            Memory grows as `chunk` times the neighbors.

        Returns
        -------
        array or Tensor (T, q, d) or (q, d)
            Of the kind and dtype of `samples`.

        Raises
        ------
        RuntimeError, ValueError
            As in `build_upsampler`.
        """
        check("chunk", chunk, positive(integer=True))
        make = self._upsampler_maker()
        n = max(1, len(reference_queries))
        parts = [
            make(reference_samples, reference_queries[first : first + chunk])(samples) for first in range(0, n, chunk)
        ]
        return torch.cat(parts, -2) if isinstance(samples, Tensor) else np.concatenate(parts, -2)

    def simulate(
        self,
        initial_dense: Tensor,
        n_steps: int,
        n_sample: int,
        *,
        sampling: str = "random",
        rebase_every: int | None = None,
        backend: str = "serial",
        seed: int | None = 0,
    ) -> dict[str, Tensor]:
        """Sample particles, roll them out, and infer all others in every frame.

        Parameters
        ----------
        initial_dense : Tensor (q, window + 1, d)
            All particles, all of kind 0. The last frame is the reference configuration.
        n_steps : int
        n_sample : int
            At least d + 2.
        sampling : "random" or "fps"
            A random subset, or farthest points of the last frame.
        rebase_every : int, optional
            Make every so many frames the reached configuration the reference: for fluids, whose neighborhoods disperse.
        backend : "serial" or "ray"
            Where the points are inferred; the result is the same.
        seed : int or None
            Of the sampling.

        Returns
        -------
        dict
            ``samples`` (n_steps, n, d), ``indices`` (n,) of the samples, ``positions`` (n_steps, q, d).

        Raises
        ------
        RuntimeError
            As in `rollout`; less than d + 2 samples.
        ValueError
            An unknown `sampling` or `backend`, `n_sample` above q, positions as in `forward`.
        MissingExtra
            ``backend="ray"`` without Ray.
        """
        self._check_fitted("simulate")
        check("n_sample", n_sample, positive(integer=True))
        check("sampling", sampling, one_of("random", "fps"))
        check("rebase_every", rebase_every, optional(positive(integer=True)))
        check("backend", backend, one_of("serial", "ray"))
        self._scene(initial_dense, None)
        reference = initial_dense[:, -1]
        sample_size(n_sample, len(reference))
        self._check_enough(n_sample)
        generator = torch_generator(seed)
        if sampling == "fps":
            first = int(torch.randint(2**31, (), generator=generator))
            indices = farthest_point_sample(reference, n_sample, seed=first)
        else:
            indices = torch.randperm(len(reference), generator=generator)[:n_sample].to(reference.device)
        samples = self.rollout(initial_dense[indices], n_steps)
        make, every = self._upsampler_maker(), rebase_every or n_steps

        def infer(queries: Tensor) -> Tensor:  # Ray takes functions only, no partial ones
            return _infer(make, reference[indices], samples, every, queries)

        parts = ordered_map(infer, list(reference.split(SIMULATION_CHUNK)), backend=cast(Any, backend))
        return {"samples": samples, "indices": indices, "positions": torch.cat(parts, 1)}

    def _check_enough(self, n: int) -> None:
        if n < self.dim + 2:
            raise RuntimeError(f"upsampling in {self.dim} dimensions needs at least {self.dim + 2} samples, got {n}")

    def _upsampler_maker(self) -> Callable[[Any, Any], Upsampler]:
        return functools.partial(
            Upsampler,
            order=self.upsample_order,
            neighbors=self.upsample_neighbors,
            radius=self.upsample_radius,
            kernel=self.kernel,
        )


def _infer(
    make: Callable[[Any, Any], Upsampler], reference: Tensor, samples: Tensor, rebase_every: int, queries: Tensor
) -> Tensor:
    """Place queries (q, d) in all frames (T, q, d), on a new reference every so many of them."""
    placed = []
    for frames in samples.split(rebase_every):
        placed.append(make(reference, queries)(frames))
        reference, queries = frames[-1], placed[-1][-1]
    return torch.cat(placed)
