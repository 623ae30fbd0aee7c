"""The learning part of the wing-pressure study: two networks, their ablation, their plateau, and the peers.

All trainings see the same wings. Those of a variant share the learning rate that was chosen on validation wings; the
test wings are looked at once, at the end. What is compared is compared wing by wing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from steepest.core.extras import installed
from steepest.core.parallel import ordered_map
from steepest.physics import WingParameters, make_wing_dataset, panel_method, sample_wings, wing_surface
from steepest.physics._wings import WingData
from steepest.studies import wing_pressure_flow as flow
from steepest.studies import wing_pressure_peers as peers
from steepest.studies import wing_pressure_training as training
from steepest.studies.context import Context
from steepest.studies.wing_pressure_training import ABLATION, BASELINE, GEOMETRY, Network, Run, Trained, Variant, Wings

__all__ = ["PEER_CLAIMS", "Experiment", "Sizes"]

NDArray = npt.NDArray[Any]

PEER_CLAIMS = {
    "peer-mlp": "point-wise MLP",
    "peer-mlp-channels": "point-wise MLP, same channels",
    "peer-boosting": "HistGradientBoosting",
    "peer-pointnet": "PointNet",
    "peer-gcn": "GCN",
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    train: int
    validation: int
    test: int
    conditions: int
    network: Network
    panels: tuple[tuple[int, int], ...]
    wing: tuple[int, int] = (33, 9)
    repeats: int = 20


class Experiment:
    """The learning part: data, the two networks, ablation, peers, speed, and what pictures need."""

    def __init__(self, ctx: Context, sizes: Sizes, seeds: Sequence[int], workers: int) -> None:
        self.ctx, self.sizes, self.seeds, self.workers = ctx, sizes, list(seeds), workers
        self.everything = ctx.scale != "quick"
        self.few = self.seeds[:2]
        n = sizes.train + sizes.validation + sizes.test
        self.data = ctx.timed("data", lambda: self._data(n))
        samples = Wings.of(self.data)
        first, last = sizes.train, sizes.train + sizes.validation
        self.train, self.test = samples.take(range(first)), samples.take(range(last, n))
        self.validation = samples.take(range(first, last)) if sizes.validation else None
        self.rates = {BASELINE.name: 3e-3, GEOMETRY.name: 3e-3}

    def _data(self, n: int) -> WingData:
        n_u, n_v = self.sizes.wing
        return make_wing_dataset(
            n,
            seed=self.ctx.seed,
            n_u=n_u,
            n_v=n_v,
            conditions_per_wing=self.sizes.conditions,
            n_jobs=self.workers,
        )

    def run(self) -> None:
        """Everything of this scale."""
        ctx = self.ctx
        ctx.progress(0.2)
        if self.everything:
            ctx.timed("learning rates", self._choose_rates)
        runs = self._runs((BASELINE, GEOMETRY), self.seeds)
        trained = ctx.timed("headline", lambda: self._trained(runs, 0.25, 0.5 if self.everything else 0.95))
        self._headline(trained)
        self._speed()
        self._keep(trained)
        if self.everything:
            ctx.timed("ablation", lambda: self._ablation(trained))
            ctx.timed("plateau", lambda: self._plateau(trained))
            ctx.timed("peers", lambda: self._peers(trained[GEOMETRY.name]))

    def _runs(self, variants: Sequence[Variant], seeds: Sequence[int], network: Network | None = None) -> list[Run]:
        """Each seed once for every variant; a variant takes the learning rate of the network it descends from."""
        return [
            Run(
                variant,
                seed,
                self.rates[BASELINE.name if variant.features == "none" else GEOMETRY.name],
                network or self.sizes.network,
                self.train,
                self.test,
                self.validation,
            )
            for seed in seeds
            for variant in variants
        ]

    def _trained(self, runs: Sequence[Run], start: float, end: float) -> dict[str, list[Trained]]:
        def done(n: int) -> None:
            self.ctx.progress(start + (end - start) * n / len(runs))

        found: dict[str, list[Trained]] = {}
        for one in training.train_all(runs, self.workers, done):
            found.setdefault(one.variant, []).append(one)
        return found

    def _choose_rates(self) -> None:
        runs = [
            replace(run, lr=lr, network=self.sizes.network)
            for lr in peers.RATES
            for run in self._runs((BASELINE, GEOMETRY), [self.ctx.seed])
        ]
        trained = self._trained(runs, 0.2, 0.25)
        self.rates = training.best_lr(runs, [one for ones in trained.values() for one in ones])
        for name, ones in trained.items():
            tried = ", ".join(f"{one.val_mse[-1]:.4g} at {one.lr:g}" for one in ones)
            self.ctx.note(f"{name}: learning rate {self.rates[name]:g}; MSE on validation wings {tried}.")

    def _headline(self, trained: dict[str, list[Trained]]) -> None:
        ctx, test = self.ctx, self.test
        base, ours = trained[BASELINE.name], trained[GEOMETRY.name]
        errors = [training.per_wing(ones, test) for ones in (base, ours)]
        found = training.reduction(*errors)
        ctx.measured("gain", found.percent, found.interval)
        if self.everything:
            ctx.measured("gain-significant", found.p)
            ctx.measured("gain-interval", found.interval[0])
            ctx.measured("gain-target", found.percent, found.interval)
        interior = np.ones(test.cp.shape[1:], dtype=bool)
        interior[[0, -1]] = interior[:, -1] = False
        inside = [training.per_wing(ones, test, interior) for ones in (base, ours)]
        ctx.measured("gain-interior", training.reduction(*inside).percent)
        ctx.note(
            f"MSE of CP on {len(errors[0])} unseen wings: {errors[0].mean():.4g} on coordinates, "
            f"{errors[1].mean():.4g} with geometry, which is better on {100 * found.share:.0f} % of the wings "
            f"(p = {found.p:.1e}); without trailing edge and tip {inside[0].mean():.4g} and {inside[1].mean():.4g}. "
            f"On the training wings {base[0].train_mse[-1]:.3g} and {ours[0].train_mse[-1]:.3g}."
        )
        for name, ones in trained.items():
            for one in ones:
                self._keep_error(one)
                curve = one.train_mse
                ctx.series("training error", [(k + 1, v) for k, v in enumerate(curve)], method=name, seed=one.seed)
        self._incidence(base, ours)
        factor = errors[0].mean() / errors[1].mean()
        low, high = (1 / max(1 - x / 100, 1e-9) for x in found.interval)
        ctx.against(BASELINE.name, factor, (low, high), what="MSE of the pressure on unseen wings, same network")

    def _keep_error(self, one: Trained) -> None:
        mse = float(np.mean((one.prediction - self.test.cp) ** 2))
        self.ctx.series("test error", [(0, mse)], method=one.variant, seed=one.seed)

    def _incidence(self, base: list[Trained], ours: list[Trained]) -> None:
        """Thirds of the test samples by their angle of attack."""
        alpha = self.test.conditions[:, 0]
        thirds = np.array_split(np.argsort(alpha), 3)
        for one in (*base, *ours):
            squared = ((one.prediction - self.test.cp) ** 2).mean(axis=(1, 2))
            points = [(float(alpha[rows].mean()), float(squared[rows].mean())) for rows in thirds]
            self.ctx.series("error by incidence", points, method=one.variant, seed=one.seed)
        top = np.isin(np.arange(len(alpha)), thirds[-1])
        found = training.reduction(*(training.per_wing(ones, self.test, top) for ones in (base, ours)))
        self.ctx.measured("incidence", found.percent, found.interval)

    def _speed(self) -> None:
        """The solver on one wing at one condition and a forward pass for it, in turns; the fastest of each."""
        wing = sample_wings(1, seed=self.ctx.seed)[0]
        P = wing_surface(wing, *self.sizes.wing)
        model = training.model_of(self._runs((GEOMETRY,), self.seeds[:1])[0])
        tensors = self.train.tensors()
        model.fit_normaliser(tensors.points, tensors.conditions, tensors.cp)
        point = torch.from_numpy(panel_method(P, 5.0, return_info=True)[1]["centers"]).float()[None]
        condition = torch.tensor([[5.0, 0.3]])

        def forward(n: int) -> Callable[[], object]:
            points, conditions = point.expand(n, -1, -1, -1).contiguous(), condition.expand(n, -1).contiguous()

            def call() -> object:
                with torch.no_grad():
                    return model(points, conditions)

            return call

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            solver, one, many = _in_turns(
                [lambda: panel_method(P, 5.0, 0.3), forward(1), forward(64)], self.sizes.repeats
            )
        finally:
            torch.set_num_threads(threads)
        self.ctx.measured("surrogate-speed", solver / one)
        self.ctx.measured("surrogate-speed-batch", 64 * solver / many)
        self.ctx.note(
            f"One wing: solver {1e3 * solver:.1f} ms, network {1e3 * one:.2f} ms, of 64 at once "
            f"{1e3 * many / 64:.2f} ms, features included, one thread."
        )

    def _keep(self, trained: dict[str, list[Trained]]) -> None:
        """Arrays of the pictures: the test sample with the median error of the network on coordinates."""
        ours, base = trained[GEOMETRY.name][0], trained[BASELINE.name][0]
        error = ((base.prediction - self.test.cp) ** 2).mean(axis=(1, 2))
        k = int(np.argsort(error)[len(error) // 2])
        params = self.data.params[int(self.test.wing[k])]
        grid = wing_surface(params, *self.sizes.wing)
        cp = self.test.cp[k]
        fields = {"cp": cp, "geometry": ours.prediction[k], "dan": base.prediction[k]}
        self.ctx.arrays("pressure", grid=grid, conditions=self.test.conditions[k], **fields)
        stations = np.array([0.1, 0.5, 0.9])
        points = self.test.points[k]
        span = points[0, :, 1] / params.half_span
        columns = np.abs(span[:, None] - stations).argmin(axis=0)
        x = points[:, columns, 0]
        shares = (x - x.min(axis=0)) / np.ptp(x, axis=0)
        extra = self._viscous(params, grid, k, float(span[columns[1]]), int(columns[1]))
        self.ctx.arrays(
            "sections",
            x=shares,
            stations=span[columns],
            **{name: field[:, columns] for name, field in fields.items()},
            **extra,
        )
        model = training.model_of(replace(self._runs((GEOMETRY,), self.seeds[:1])[0], variant=Variant("all", "all")))
        tensors = self.train.tensors()
        model.fit_normaliser(tensors.points, tensors.conditions, tensors.cp)
        channels = model.local_channels(torch.from_numpy(self.test.points[k : k + 1]).float())[0].numpy()
        self.ctx.arrays("channels", cp=cp, **dict(zip(model.channel_names, np.moveaxis(channels, -1, 0))))

    def _viscous(self, params: WingParameters, grid: NDArray, k: int, at: float, column: int) -> dict[str, NDArray]:
        """The section at mid-span with a boundary layer, at the lift of its strip."""
        if not self.everything:
            return {}
        if not (installed("aerosandbox") and installed("neuralfoil")):
            self.ctx.skipped("viscous", "aerosandbox or neuralfoil is not installed")
            return {}
        alpha = float(self.test.conditions[k, 0])
        cp = panel_method(grid, alpha)[:, column]  # Mach 0, as the section
        strip = slice(column, column + 2)
        lift = flow.lift_coefficient(grid[:, strip], cp[:, None], alpha)
        section = flow.section_pressure(params, at, lift)
        x = self.test.points[k][:, column, 0]
        share, half = (x - x.min()) / np.ptp(x), len(x) // 2
        change = [
            np.interp(section.x, share[:half][::-1], cp[:half][::-1]) - section.lower,
            np.interp(section.x, share[half:], cp[half:]) - section.upper,
        ]
        self.ctx.measured("viscous", float(np.sqrt(np.mean(np.square(change)))))
        return {
            "viscous_x": section.x,
            "viscous_upper": section.upper,
            "viscous_lower": section.lower,
            "viscous_station": np.array(1),
        }

    def _ablation(self, trained: dict[str, list[Trained]]) -> None:
        """What each group of channels is worth, all variants on the first seeds."""
        more = self._trained(self._runs(ABLATION, self.few), 0.5, 0.7)
        for ones in more.values():
            for one in ones:
                self._keep_error(one)
        all_runs = {name: ones[: len(self.few)] for name, ones in (trained | more).items()}
        errors = {name: training.per_wing(ones, self.test) for name, ones in all_runs.items()}

        def gain(claim: str, base: str, ours: str) -> None:
            found = training.reduction(errors[base], errors[ours])
            self.ctx.measured(claim, found.percent, found.interval)

        gain("ablation-metric", "DAN", "metric")
        gain("ablation-connection", "metric", "metric, connection")
        gain("ablation-curvature", "metric, connection", "geometry")
        gain("ablation-extrinsic", "geometry", "geometry, extrinsic too")
        gain("neighbourhood-geometry", "geometry", "geometry, 3 x 3")
        gain("neighbourhood-dan", "DAN", "DAN, 3 x 3")
        singles = {name: errors[name].mean() for name in ("metric", "connection", "curvature")}
        best = min(singles, key=lambda name: singles[name])
        self.ctx.measured("ablation-all", float(errors["geometry"].mean() / singles[best]))
        table = ", ".join(f"{name} {e.mean():.4g}" for name, e in errors.items())
        self.ctx.note(f"MSE over {len(self.few)} seeds: {table}; the best single group is {best}.")

    def _plateau(self, trained: dict[str, list[Trained]]) -> None:
        """Both networks again with four times the epochs, on the first seed."""
        network, first = training.longer(self.sizes.network, 4), self.seeds[:1]
        more = self._trained(self._runs((BASELINE, GEOMETRY), first, network), 0.7, 0.85)
        errors = {}
        for variant, claim in ((BASELINE, "plateau-dan"), (GEOMETRY, "plateau-geometry")):
            short = training.per_wing(trained[variant.name][:1], self.test)
            errors[variant.name] = long = training.per_wing(more[variant.name], self.test)
            found = training.reduction(short, long)
            self.ctx.measured(claim, found.percent, found.interval)
            self.ctx.note(
                f"{variant.name}: MSE {short.mean():.4g} after {self.sizes.network.epochs} epochs, {long.mean():.4g} "
                f"after {network.epochs} (training wings {more[variant.name][0].train_mse[-1]:.3g})."
            )
        found = training.reduction(errors[BASELINE.name], errors[GEOMETRY.name])
        self.ctx.measured("gain-plateau", found.percent, found.interval)

    def _peers(self, ours: list[Trained]) -> None:
        """Every peer with the CPU seconds of one of our trainings, one seed; the better of two trials on validation."""
        ctx, validation = self.ctx, self.validation
        assert validation is not None
        seconds = float(np.median([one.seconds for one in ours]))
        model = training.model_of(self._runs((GEOMETRY,), self.seeds[:1])[0])
        tensors = self.train.tensors()
        model.fit_normaliser(tensors.points, tensors.conditions, tensors.cp)

        def read(wings: Wings) -> tuple[NDArray, NDArray]:
            conditions = (wings.conditions - self.train.conditions.mean(axis=0)) / self.train.conditions.std(axis=0)
            return model.local_channels(wings.tensors().points).numpy(), conditions

        x, c = read(self.train)
        queries, conditions = (np.concatenate(parts) for parts in zip(read(validation), read(self.test)))
        mine = training.per_wing(ours, self.test)
        n = len(validation.cp)
        best = self.ctx.best_peer
        for k, (claim, name) in enumerate(PEER_CLAIMS.items()):
            package = peers.PACKAGES[name]
            if not installed(package):
                ctx.skipped(claim, f"{package} is not installed")
                continue
            jobs = [
                peers.PeerRun(name, x, c, self.train.cp, queries, conditions, seconds, trial, seed)
                for seed in self.seeds[:1]
                for trial in (0, 1)
            ]
            found = self._map(peers.train_peer, jobs)
            chosen = min((0, 1), key=lambda t: sum(float(np.mean((p[:n] - validation.cp) ** 2)) for p in found[t::2]))
            theirs = [Trained(name, seed, 0.0, p[n:], [], [], seconds) for seed, p in zip(self.seeds, found[chosen::2])]
            error = training.per_wing(theirs, self.test)
            cut = training.reduction(error, mine)
            high, low = (1 - bound / 100 for bound in cut.interval)
            ctx.measured(claim, float(mine.mean() / error.mean()), (low, high))
            for one in theirs:
                ctx.series(
                    "error of peers",
                    [(0, float(np.mean((one.prediction - self.test.cp) ** 2)))],
                    method=name,
                    seed=one.seed,
                )
            factor = float(error.mean() / mine.mean())
            if best is None or factor < best.factor:
                ctx.against(name, factor, (1 / high, 1 / low), what="MSE on unseen wings, equal training time")
                best = ctx.best_peer
            ctx.progress(0.85 + 0.15 * (k + 1) / len(PEER_CLAIMS))
        for one in ours[: len(self.few)]:
            mse = float(np.mean((one.prediction - self.test.cp) ** 2))
            ctx.series("error of peers", [(0, mse)], method=GEOMETRY.name, seed=one.seed)
        ctx.note(f"Peers: {seconds:.0f} CPU seconds each, one seed, two learning rates.")

    def _map(self, fn: Callable[[peers.PeerRun], NDArray], jobs: list[peers.PeerRun]) -> list[NDArray]:
        if self.workers == 1:
            return ordered_map(fn, jobs)
        return ordered_map(fn, jobs, backend="processes", n_workers=self.workers)


def _in_turns(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Fastest seconds of each."""
    best = [np.inf] * len(calls)
    for _ in range(repeats):
        for k, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - start)
    return best
