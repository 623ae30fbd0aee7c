"""The learning part of the particle study: networks against extrapolation and each other, on scenes they have not seen.

Every training has the same processor time, scenes, sampled particles and learning rates; errors are ratios of mean
squares, medians over seeds with bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from steepest.physics import Upsampler
from steepest.studies import giorom_training as training
from steepest.studies.claim import bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.giorom_scenes import trajectories
from steepest.studies.giorom_training import WINDOW, Plan, Run, Scores, Trained

__all__ = ["Learning", "Sizes"]

RATES = (1e-3, 3e-4)
ALONE = 0.6  # of the training time, for materials that are not compared with GNS
SHOWN = (0, 9, 19, 29)  # frames of a rollout in the pictures
START = 44  # first frame of the window that they start from
CV, CVG, CA = "constant velocity", "gravity between walls", "constant acceleration"
AR = "autoregression"


@dataclass(frozen=True)
class Sizes:
    """Which trainings a scale affords."""

    plan: Plan
    materials: tuple[str, ...]
    with_gns: tuple[str, ...]
    tuned: bool
    workers: int = 1


class Learning:
    """Trains and measures; `trained` maps (method, material) to one training a seed."""

    def __init__(self, ctx: Context, sizes: Sizes, seeds: Sequence[int]) -> None:
        self.ctx, self.sizes, self.seeds = ctx, sizes, list(seeds)
        self.plan = sizes.plan
        self.rates = {"GIOROM": self.plan.lr, "GNS": self.plan.lr, "published": self.plan.lr}
        self.trained: dict[tuple[str, str], list[Trained]] = {}
        self.extrapolated: dict[str, list[dict[str, Scores]]] = {}

    def run(self, first: float, last: float) -> None:
        """Do all of it, telling progress from `first` to `last`."""
        ctx, sizes = self.ctx, self.sizes
        if sizes.tuned:
            ctx.timed("learning rates", self._choose_rates)
        runs = [
            self._run(method, material, seed)
            for material in sizes.materials
            for seed in self.seeds
            for method in ("GIOROM", "GNS")
            if method == "GIOROM" or material in sizes.with_gns
        ]
        if ctx.wants("published-step"):
            runs.append(self._run("published", "newtonian", self.seeds[0]))
        found = ctx.timed(
            "training",
            lambda: training.train_all(runs, sizes.workers, lambda share: ctx.progress(first + (last - first) * share)),
        )
        for one in found:
            self.trained.setdefault((one.run.method, one.run.material), []).append(one)
        for material in sizes.materials:
            self.extrapolated[material] = [
                training.scores_of_extrapolation(self._unseen(material, seed), self.plan) for seed in self.seeds
            ]
            self._fidelity(material)
        self._series("newtonian")
        self._all_materials()
        self._sampling()
        self._unseen_scenes()
        self._published()
        self._pictures()

    def _run(self, method: str, material: str, seed: int) -> Run:
        share = 1.0 if material in self.sizes.with_gns else ALONE
        return Run(method, material, seed, self.plan, self.ctx.seed, self.rates[method], share=share)

    def _choose_rates(self) -> None:
        methods = ("GIOROM", "GNS")
        runs = [
            replace(self._run(method, "newtonian", self.ctx.seed), lr=lr, split="validation")
            for method in methods
            for lr in RATES
        ]
        found = training.train_all(runs, self.sizes.workers, lambda share: None)
        for method in methods:
            tried = {one.run.lr: one.scores.rollout for one in found if one.run.method == method}
            best = min(tried, key=lambda lr: tried[lr])
            assert best is not None
            self.rates[method] = best
            said = ", ".join(f"{error:.3g} at {lr:g}" for lr, error in tried.items())
            self.ctx.note(f"{method}: learning rate {best:g}; error of 30 steps on validation scenes {said}.")
        self.rates["published"] = self.rates["GIOROM"]

    def _unseen(
        self, material: str, seed: int, split: str = "test", n: int | None = None, how: str = "random"
    ) -> torch.Tensor:
        frames = trajectories(material, split, self.plan.n_test, self.ctx.seed, self.plan.setting)
        return training.chosen(frames, n or self.plan.n_sample, seed, how)

    def _measure(self, claim: str, values: Sequence[float]) -> float:
        """Report the median over seeds."""
        value = float(np.median(values))
        if self.ctx.wants(claim):
            self.ctx.measured(claim, value, _interval(values))
        return value

    # ------------------------------------------------------------------------------------------------------- fidelity

    def _fidelity(self, material: str) -> None:
        """Claims of one material, where the study has such, and a line of the table."""
        ours, gns = self.trained["GIOROM", material], self.trained.get(("GNS", material), [])
        laws = self.extrapolated[material]
        step: dict[str, list[float]] = {
            "cv": [one.scores.step / law[CV].step for one, law in zip(ours, laws, strict=True)],
            "ca": [one.scores.step / law[CA].step for one, law in zip(ours, laws, strict=True)],
            "ar": [one.scores.step / one.start.step for one in ours],
        }
        rollout = {
            "cv": [one.scores.rollout / law[CV].rollout for one, law in zip(ours, laws, strict=True)],
            "cvg": [one.scores.rollout / law[CVG].rollout for one, law in zip(ours, laws, strict=True)],
            "ar": [one.scores.rollout / one.start.rollout for one in ours],
            "start": [one.scores.rollout / one.linear.rollout for one in ours if one.linear],
        }
        if gns:
            step["gns"] = [a.scores.step / b.scores.step for a, b in zip(ours, gns, strict=True)]
            rollout["gns"] = [a.scores.rollout / b.scores.rollout for a, b in zip(ours, gns, strict=True)]
        for part, values in (("step", step), ("rollout", rollout)):
            for name, ratios in values.items():
                claim = f"{material}-{part}-{name}"
                if claim in self.ctx.claims:
                    self._measure(claim, ratios)
        setting, n_steps = self.plan.setting, [len(one.model.history_["loss"]) for one in (*ours, *gns)]
        errors, drift = (
            {name: f"{np.median(values):.3f}" for name, values in part.items()} for part in (step, rollout)
        )
        beside = (f", GNS {errors['gns']}", f", GNS {drift['gns']}") if gns else ("", "")
        self.ctx.note(
            f"{material} (E = {setting.E:g}, frames of {1e3 * setting.dt * setting.substeps:g} ms, "
            f"{setting.substeps} substeps): mean squared error of one step over that of {CV} {errors['cv']}, {CA} "
            f"{errors['ca']}, {AR} {errors['ar']}{beside[0]}; of 30 steps over {CV} {drift['cv']}, {CVG} "
            f"{drift['cvg']}, {AR} {drift['ar']}{beside[1]}, the linear map alone {drift['start']}; "
            f"{min(n_steps)} to {max(n_steps)} steps of training, kept after {_shares(ours)} of them"
            + (f" (GNS {_shares(gns)})." if gns else ".")
        )

    def _series(self, material: str) -> None:
        """Lines of the figures: error along a rollout, and after one step."""
        for method in ("GIOROM", "GNS"):
            for one in self.trained.get((method, material), []):
                self._line(method, one.run.seed, one.scores)
                if method == "GIOROM":
                    self._line(AR, one.run.seed, one.start)
        for seed, laws in zip(self.seeds, self.extrapolated[material], strict=True):
            for name, scores in laws.items():
                self._line(name, seed, scores)

    def _line(self, name: str, seed: int, scores: Scores) -> None:
        curve = [(k + 1, float(np.sqrt(error))) for k, error in enumerate(scores.curve)]
        self.ctx.series("rollout error", curve, method=name, seed=seed)
        self.ctx.series("one-step error", [(0, scores.step)], method=name, seed=seed)

    def _all_materials(self) -> None:
        """The worst material of each row."""
        if not self.ctx.wants("five-step-cv"):
            return
        rows: dict[str, list[float]] = {name: [] for name in ("step-cv", "step-ar", "rollout-cv", "rollout-gns")}
        for material in self.sizes.materials:
            ours, laws = self.trained["GIOROM", material], self.extrapolated[material]
            rows["step-cv"].append(_median(a.scores.step / b[CV].step for a, b in zip(ours, laws)))
            rows["step-ar"].append(_median(a.scores.step / a.start.step for a in ours))
            rows["rollout-cv"].append(_median(a.scores.rollout / b[CV].rollout for a, b in zip(ours, laws)))
            if material in self.sizes.with_gns:
                gns = self.trained["GNS", material]
                ratios = [a.scores.rollout / b.scores.rollout for a, b in zip(ours, gns)]
                rows["rollout-gns"].append(float(np.median(ratios)))
                for one, ratio in zip(ours, ratios):
                    name = material.replace("_", "-")
                    self.ctx.series("rollout against GNS", [(0, ratio)], method=name, seed=one.run.seed)
        for name, values in rows.items():
            self.ctx.measured(f"five-{name}", max(values))
        self.ctx.measured("five-better", sum(ratio < 1 for ratio in rows["rollout-gns"]))

    # ------------------------------------------------------------------------------------- other samples, other scenes

    def _sampling(self) -> None:
        """Newtonian models on more and fewer particles than they were trained on."""
        plan, models = self.plan, self.trained["GIOROM", "newtonian"]

        def look(n: int, how: str) -> list[tuple[float, float]]:
            """Give each seed's error, and by how much the network is below the autoregression."""
            found = []
            for one in models:
                scenes = self._unseen("newtonian", one.run.seed, n=n, how=how)
                error = training.one_step(training.of_model(one.model), scenes)
                linear = training.one_step(training.of_skip(one.model, one.skip), scenes)
                found.append((error, linear - error))
            return found

        base = look(plan.n_sample, "random")
        variants = {
            "agnostic-denser": (2 * plan.n_sample, "random"),
            "agnostic-sparser": (plan.n_sample // 2, "random"),
            "agnostic-fps": (plan.n_sample, "fps"),
        }
        for claim, (n, how) in variants.items():
            other = look(n, how)
            self._measure(claim, [a[0] / b[0] for a, b in zip(other, base, strict=True)])
            shares = [a[1] / b[1] if b[1] else 0.0 for a, b in zip(other, base, strict=True)]
            value, span = float(np.median(shares)), _interval(shares)
            reason = ""
            if min(b[1] for b in base) <= 0:
                span = (min(0.0, *shares), max(1.0, *shares))
                reason = "at the training ratio the network is not below the autoregression, so a share says nothing"
            self.ctx.measured(f"{claim}-share", value, span, reason=reason)

    def _unseen_scenes(self) -> None:
        """Newtonian models on shapes and speeds that training had not, against constant acceleration there."""
        models = self.trained["GIOROM", "newtonian"]

        def look(split: str) -> tuple[list[float], list[float]]:
            errors, relative = [], []
            for one in models:
                scenes = self._unseen("newtonian", one.run.seed, split)
                law = training.scores_of_extrapolation(scenes, self.plan)[CA]
                errors.append(training.one_step(training.of_model(one.model), scenes))
                relative.append(errors[-1] / law.step)
            return errors, relative

        seen = look("test")
        for claim, split in (("unseen-shapes", "shapes"), ("unseen-speeds", "fast")):
            errors, relative = look(split)
            self._measure(claim, [a / b for a, b in zip(relative, seen[1], strict=True)])
            self._measure(f"{claim}-raw", [a / b for a, b in zip(errors, seen[0], strict=True)])

    def _published(self) -> None:
        if not self.ctx.wants("published-step"):
            return
        (theirs,) = self.trained["published", "newtonian"]
        ours = self.trained["GIOROM", "newtonian"][0]
        self.ctx.measured("published-step", theirs.scores.step / ours.scores.step)
        self.ctx.measured("published-rollout", min(theirs.scores.rollout / ours.scores.rollout, 1e9))

    # -------------------------------------------------------------------------------------------------------- pictures

    def _pictures(self) -> None:
        """All particles of one unseen scene of fluid: simulated, and inferred from rolled-out samples."""
        if self.ctx.scale == "quick":  # not worth a look
            self.ctx.note("Frame strips are drawn at full.")
            return
        kept: dict[str, NDArray[np.floating]] = {}
        material = "newtonian"
        ours = self.trained["GIOROM", material][0]
        frames = trajectories(material, "test", self.plan.n_test, self.ctx.seed, self.plan.setting)[0]
        picked = np.random.default_rng(0).choice(frames.shape[1], self.plan.n_sample, replace=False)
        window, last = frames[START : START + WINDOW + 1], START + WINDOW
        kept[f"{material}_truth"] = frames[[last + 1 + k for k in SHOWN]]
        kept[f"{material}_start"] = window[-1]
        for name, found in (("ours", ours), ("gns", next(iter(self.trained.get(("GNS", material), [])), None))):
            if found is not None:
                kept[f"{material}_{name}"] = _all_points(found, window, picked)[list(SHOWN)]
        self.ctx.arrays("strips", frames=np.array(SHOWN) + 1, **kept)


def _all_points(found: Trained, window: NDArray[np.float32], picked: NDArray[np.int64]) -> NDArray[np.float64]:
    """Roll out the picked particles of a window (W + 1, n, d) and infer all: (30, n, d)."""
    initial = torch.tensor(window[:, picked]).transpose(0, 1).contiguous()
    try:
        samples = found.model.rollout(initial, training.N_STEPS)
    except RuntimeError as error:
        samples = getattr(error, "partial", torch.empty(0))
        missing = training.N_STEPS - len(samples)
        samples = torch.cat((samples, samples[-1:].expand(missing, -1, -1)))
    placed: NDArray[np.float64] = Upsampler(window[-1, picked], window[-1])(samples.numpy())
    return placed


def _shares(found: Sequence[Trained]) -> str:
    return ", ".join(f"{100 * one.kept:.0f} %" for one in found)


def _median(values: object) -> float:
    return float(np.median(np.fromiter(values, dtype=float)))  # type: ignore[call-overload]


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    return bootstrap_interval(values, statistic=np.median) if len(values) > 1 else None
