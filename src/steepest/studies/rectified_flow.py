"""Rectified flow turns one cloud of samples into another along paths that are then made straight, so one step suffices.

It is for people who have noise and data, or two domains without pairs, and want a map that costs one to ten network
calls instead of the hundred of diffusion, or who come from optimal transport that does not scale past ten thousand
points. Learning is plain least squares on pairs; a second training on the flow's own pairs straightens it. Here: eight
Gaussians to moons and noise to moons, where costs, straightness and the exact optimum can be computed
(`studies.rectified_flow_clouds`); handwritten digits generated, translated and carried back to where a classifier was
trained (`studies.rectified_flow_digits`); what training costs beside a bare loop (`studies.rectified_flow_costs`).
``paper`` trains on CIFAR-10 (`studies.rectified_flow_paper`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from steepest.core.extras import installed
from steepest.core.parallel import ordered_map
from steepest.studies import rectified_flow_paper as paper
from steepest.studies import rectified_flow_pictures as pictures
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture, median_interval
from steepest.studies.context import Context
from steepest.studies.provenance import cores
from steepest.studies.rectified_flow_clouds import (
    Found,
    Setting,
    between_clouds,
    from_noise,
    identity_gap,
    ot_cfm,
)
from steepest.studies.rectified_flow_costs import overhead, single_thread
from steepest.studies.rectified_flow_digits import Sizes, adaptation, generation, translation

AREA = "generative"

PAPER = Paper(
    title="Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
    authors="Xingchao Liu, Chengyue Gong, Qiang Liu",
    venue="ICLR",
    year=2023,
    url="https://arxiv.org/abs/2209.03003",
)

MORE = ("checkerboard", "spirals")  # further targets of one seed, for the figure of straightness
_W2 = "x the distance of two fresh true samples (sliced W2)"
_EIGHT = "Eight Gaussians to moons: "
_NOISE = "Noise to moons: "

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("least-squares-plain", "Training costs no more than a bare loop of least squares, same network.",
          "a simple least squares problem", "<= 1.05", "x CPU time, no averaging, no clipping", "quick full"),
    Claim("least-squares-whole", "The same with averaged weights and clipping.", "a simple least squares problem",
          "<= 1.2", "x CPU time", "quick full"),
    Claim("marginals-quick", _EIGHT + "the 1-flow ends at the target.", "Theorem 3.3", "<= 6", _W2, "quick"),
    Claim("marginals-full", _EIGHT + "the 1-flow ends at the target.", "Theorem 3.3", "<= 3", _W2, "full"),
    Claim("convex-1", _EIGHT + "none of five convex costs grows from independent pairs to the 1-flow.", "Theorem 3.5",
          "<= 1.0", "x, the worst of five", "quick full"),
    Claim("convex-2", _EIGHT + "none grows from the 1-flow to the 2-flow.", "Theorem 3.5", "<= 1.03",
          "x, the worst of five", "quick full"),
    Claim("convex-square", _EIGHT + "the squared cost of the 1-flow beside that of independent pairs.", "Theorem 3.5",
          "<= 0.3", "x", "quick full"),
    Claim("convex-1-digits", "Noise to digits: none of five convex costs grows from independent pairs to the 1-flow.",
          "Theorem 3.5", "<= 1.0", "x, the worst of five", "quick full"),
    Claim("convex-2-digits", "Noise to digits: none grows from the 1-flow to the 2-flow.", "Theorem 3.5", "<= 1.03",
          "x, the worst of five", "quick full"),
    Claim("optimal", _EIGHT + "the squared cost of the 2-flow is near that of optimal transport.", "not in the paper",
          "<= 1.3", "x ot.emd2, the same starts and 1,000 targets", "quick full"),
    Claim("straightens-eight", _EIGHT + "reflow straightens.", "Fig. 2 to 4", "<= 0.05", "S(2-flow) / S(1-flow)",
          "quick full"),
    Claim("straightens-noise", _NOISE + "reflow straightens.", "Fig. 2 to 4", "<= 0.05", "S(2-flow) / S(1-flow)",
          "quick full"),
    Claim("law", _EIGHT + "the straightest of K flows keeps the 1/K law.", "Theorem 3.7", "<= 1",
          "largest K min S / E|x1 - x0|^2", "quick full"),
    Claim("identity", "What a flow saves in cost is its bends plus the crossings of its pairs, S + V.",
          "an inequality in the paper", "<= 0.03", "relative gap, exact velocity, Gaussian pair", "quick full", True),
    Claim("one-step-eight", _EIGHT + "one step after reflow beside one step before.", "CIFAR-10 FID 378 to 12.2",
          ">= 4", "x smaller sliced W2", "quick full"),
    Claim("one-step-noise", _NOISE + "one step after reflow beside one step before.", "CIFAR-10 FID 378 to 12.2",
          ">= 4", "x smaller sliced W2", "quick full"),
    Claim("distilled", _EIGHT + "one step of the distilled 2-flow beside the 1-flow with RK45.",
          "CIFAR-10 FID 4.85 beside 2.58", "<= 1.3", "x sliced W2", "quick full"),
    Claim("curved-one-step", _NOISE + "one step of the better curved flow beside one of the 2-flow.",
          "FID 451 (sub-VP) beside 12.2", ">= 3", "x larger sliced W2", "quick full"),
    Claim("curved-straightness", _NOISE + "VP paths bend more than linear ones, both before reflow.", "Fig. 5",
          ">= 1.3", "S(VP) / S(1-flow)", "quick full"),
    Claim("curved-four-steps", _NOISE + "the 1-flow in four steps beside the better curved flow in four.",
          "not claimed", "reported", "x sliced W2", "quick full"),
    Claim("quality-noise", _NOISE + "with RK45 the linear 1-flow is as good as the better curved flow.",
          "FID 2.58 beside 3.16 and 3.93", "<= 1.15", "x sliced W2", "quick full"),
    Claim("quality-digits", "Noise to digits: the same in features of a classifier.", "FID 2.58 beside 3.16 and 3.93",
          "<= 1.15", "x Frechet distance", "full"),
    Claim("evaluations", _NOISE + "evaluations of the 1-flow by RK45.", "127 on CIFAR-10", "reported", "evaluations",
          "quick full"),
    Claim("translation-flow", "Held-out ones that the 1-flow turns into what a classifier calls a seven.",
          "AFHQ and CelebA, by eye", ">= 0.75", "share", "quick full"),
    Claim("translation-reflow", "The same by one step of the 2-flow.", "AFHQ and CelebA, by eye", ">= 0.9", "share",
          "quick full"),
    Claim("translation-cost", "It moves them less than random pairs are apart.", "Theorem 3.5", "<= 0.85",
          "x squared distance", "quick full"),
    Claim("adaptation", "Turned, dimmed digits moved to the training domain: what a classifier gains.",
          "OfficeHome 69.2 %, from memory", ">= 5", "points of accuracy", "quick full"),
    Claim("adaptation-brief", "The same by a flow that is trained for 300 steps only.", "not in the paper",
          "reported", "points of accuracy", "quick full"),
    Claim("adaptation-optimal", "The same by exact optimal transport, which has no map for new samples.",
          "not in the paper", "reported", "points of accuracy", "quick full"),
    Claim("ot-cfm", _NOISE + "the 2-flow is straighter than OT-CFM at equal network calls.", "later work", "<= 1",
          "S(2-flow) / S(OT-CFM)", "full"),
    *paper.CLAIMS,
]
# fmt: on

PEERS = [Peer("VP"), Peer("sub-VP"), Peer("OT-CFM", "ot"), Peer("optimal transport", "ot")]

OPTIONS = {"workers": "at full: trainings at a time (default: two, or one on a single core)"}

# fmt: off
FIGURES = [
    Figure("error-by-steps", "After one reflow a single step does what the others need many for", "error by steps",
           "steps of Euler", "sliced W2 / that of two true samples", log_x=True, log_y=True,
           methods=("1-flow", "2-flow", "VP", "sub-VP"),
           caption="Noise to moons. 1 on the vertical axis is the floor; median and range over seeds."),
    Figure("straightness", "One reflow straightens far below the 1/K law", "straightness", "round K",
           "straightness S", log_y=True,
           caption="Theory: E|x1 - x0|²/K for eight Gaussians to moons bounds the smallest S so far; a trained network "
           "does not go below its own error. Median and range over seeds."),
    Figure("costs", "Every convex cost falls from random pairs to the flow", "convex costs, 1-flow",
           "cost of the 1-flow / cost of independent pairs", "cost of a displacement", "dots",
           caption="Eight Gaussians to moons, five convex functions of the displacement; one point a seed."),
    Figure("costs-again", "No convex cost grows by reflow", "convex costs, 2-flow",
           "cost of the 2-flow / cost of the 1-flow", "cost of a displacement", "dots",
           caption="The same five costs; 1 is no change."),
    Figure("transport", "The squared cost comes down to that of optimal transport", "cost by round",
           "round (0: independent pairs)", "E|z1 - z0|² / optimal cost", log_y=True,
           caption="Eight Gaussians to moons; the optimum is exact between the same starts and 1,000 targets."),
    Figure("drift", "One step catches up with the accurate solver", "drift", "round",
           "sliced W2 / that of two true samples", log_y=True,
           caption="Eight Gaussians to moons. Later flows learn from generated pairs and cannot end nearer to the data "
           "than the first; median and range over seeds."),
    Figure("digits", "Digits in few steps", "digits by steps", "steps of Euler",
           "Frechet distance in a classifier's features",           log_x=True, log_y=True,
           caption="Noise to digits, all 1,797; features are the hidden layer of a classifier of these digits."),
    Figure("adaptation", "Moving features helps the classifier; training longer helps less", "adaptation",
           "accuracy (%)", "features given to the classifier", "dots",
           caption="Digits turned by 25 degrees and dimmed by 0.7, a classifier that was trained on upright ones; one "
           "point a seed."),
]
PICTURES = [
    Picture("samples", "Noise to moons in few steps", "samples by steps", pictures.draw_samples,
            caption="800 samples of each flow over true ones (grey), first seed; steps are Euler's.",
            alt="A grid: with one step only the 2-flow shows two moons; the others are a blob in the middle. With the "
            "accurate solver all four show moons.", size=(7.6, 5.6)),
    Picture("paths", "Paths before and after reflow", "paths", pictures.draw_paths,
            caption="Eight Gaussians (ring) to moons, 120 paths by RK45, first seed; dots are the ends.",
            alt="Left, paths of the 1-flow bend to avoid one another; right, those of the 2-flow are straight lines.",
            size=(7.6, 4.0)),
    Picture("digit-samples", "Digits from noise, the same noise in each column", "digits", pictures.draw_digits,
            caption="Unselected, first seed.",
            alt="Rows of digits: blurred means for one step of the 1-flow, digits for one step of the 2-flow.",
            size=(7.6, 3.6)),
    Picture("translation", "Ones on their way to sevens", "translation", pictures.draw_translation,
            caption="Held-out ones carried by the 1-flow, and by one step of the 2-flow; no pairs were given. "
            "First seed.",
            alt="Eight ones turn step by step into sevens.", size=(5.4, 3.6)),
]
# fmt: on

SNIPPET = """\
import torch
from steepest.generative import MLPVelocity, rectify, sliced_wasserstein

generator = torch.Generator().manual_seed(0)
noise = torch.randn(2000, 2, generator=generator)
data = torch.randn(2000, 2, generator=generator) * 0.3
data += 3 * torch.sign(torch.randn(2000, 2, generator=generator))  # four clusters

flow, straight = rectify(noise, data, lambda: MLPVelocity(2, seed=0), k=2, n_steps=400, ema=0.98, generator=0)
for name, fit in {"1-flow": flow, "2-flow": straight}.items():
    z = fit.flow.sample(noise, steps=1, method="euler").x
    print(f"{name}, one step: sliced W2 {sliced_wasserstein(z, data, generator=0):.2f}")
"""

REASONS: dict[str, str] = {
    "least-squares-plain": "what a bare loop leaves out is the gradient's norm, which the history keeps for each step "
    "(about 25 microseconds of 1.2 milliseconds), and the check that a step is finite; on a network this small the "
    "ratio also varies by 0.05 from turn to turn.",
    "distilled": "at quick the 2-flow and the distilled one learn from 3,000 pairs for 1,200 steps each, and their "
    "errors add to that of the 1-flow; with 10,000 pairs and 5,000 steps the ratio was 0.99.",
    "adaptation": "the longer the flow is trained, the less is gained: over three seeds 16 to 26 points after 400 "
    "steps, 4 to 16 after 1,000, -3 to 8 after 2,000. Matching distributions does not match classes, and the loss on "
    "held-out samples falls all the way, so that nothing without labels says when to stop.",
    "translation-cost": "with 90 samples of each the cost on held-out ones grows with the training (0.81 after at most "
    "400 steps, 0.89 after at most 1,200, 1.33 after 2,000); the held-out loss stops it late.",
    "quality-noise": "with 3,000 steps VP was ahead by 18 %, with 5,000 by 10 %: the straight flow needs longer.",
    "quality-digits": "it depends on the training: with the defaults (2,000 steps, learning rate 1e-3, decay 0.999) "
    "straight and VP were level on one seed (0.99); with 4,000 faster steps the curved flow led by 17 %, for a reason "
    "that was not found.",
}

WHEN_NOT = [
    "Quality at any price: with a hundred calls allowed, a tuned diffusion model is as good, and reflow costs quality "
    "where the first flow was better with an accurate solver than its pupil can be in one step.",
    "The two clouds are small and every point is known: exact optimal transport gives a cheaper coupling (it has no "
    "map for new points).",
    "A density is needed first of all: log_prob costs a solve with a divergence for each point.",
    "Source and target lie on different supports of much lower dimension, such as discrete data: least squares "
    "averages over what it cannot tell apart.",
]


@dataclass(frozen=True)
class Plan:
    """What a scale runs."""

    clouds: Setting
    digits: Sizes
    small: Sizes
    rival: Setting
    timing: tuple[int, int]
    identity: int


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        paper.run_paper(ctx)
        return
    plan = ctx.pick(
        quick=Plan(Setting(1200, 3000, 2000, fine=20, batch=128, curved=("VP",)), Sizes(16, 300, 1000),
                   Sizes(16, 350, 0), Setting(0, 0, 0), (40, 3), 5000),
        full=Plan(Setting(5000, 10_000, 2000, rounds=3, fine=50), Sizes(64, 2000, 5000, 256), Sizes(16, 1200, 0),
                  Setting(1000, 3000, 2000), (150, 11), 20_000),
        paper=None,
        tiny=Plan(Setting(30, 200, 200, fine=5), Sizes(8, 20, 100, 16), Sizes(8, 20, 0, 16),
                  Setting(10, 100, 100, fine=5), (5, 2), 4000),
    )  # fmt: skip
    assert plan is not None
    with (
        single_thread(),
        threadpool_limits(1),
    ):  # small tensors: a second thread costs time
        _measure(ctx, plan)


def _measure(ctx: Context, plan: Plan) -> None:
    asked = int(ctx.options.get("workers", min(2, cores())))
    digits = ctx.data("digits")
    ctx.progress(0.0)
    ctx.timed("overhead", lambda: _overhead(ctx, plan))  # before workers compute beside it
    gaps = [identity_gap(plan.identity, seed) for seed in ctx.seeds]
    _report(ctx, "identity", gaps)
    ctx.progress(0.05)
    curved, rival = ctx.wants("quality-digits"), ctx.wants("ot-cfm")
    parts: dict[str, tuple[Callable[[Any], Found], Callable[[int], Any]]] = {
        "eight": (between_clouds, lambda seed: (plan.clouds, seed)),
        "noise": (from_noise, lambda seed: (plan.clouds, seed, "moons")),
        "digits": (generation, lambda seed: (plan.digits, seed, digits, curved)),
        "translation": (translation, lambda seed: (plan.small, seed, digits)),
        "adaptation": (adaptation, lambda seed: (plan.small, seed, digits)),
    }
    if ctx.scale == "full":
        parts |= {target: (from_noise, _target(plan, target)) for target in MORE}
    if rival and installed("ot"):
        parts["rival"] = (ot_cfm, lambda seed: (plan.rival, seed))
    work = [(name, seed) for name in parts for seed in (ctx.seeds[:1] if name in MORE else ctx.seeds)]
    jobs = [(parts[name][0], parts[name][1](seed)) for name, seed in work]
    results = ordered_map(
        _call, jobs, backend="processes" if ctx.scale == "full" and asked > 1 else "serial", n_workers=asked,
        progress=lambda share: ctx.progress(0.05 + 0.95 * share),
    )  # fmt: skip
    found: dict[str, list[Found]] = {name: [] for name in parts}
    for (name, seed), result in zip(work, results, strict=True):
        found[name].append(result)
        for (series, method), points in result.curves.items():
            ctx.series(series, points, method=method, seed=seed)
    _claims(ctx, found, plan.clouds.curved)
    kept = {"samples by steps": "noise", "paths": "eight", "digits": "digits", "translation": "translation"}
    for name, part in kept.items():
        ctx.arrays(name, **found[part][0].arrays)
    ctx.note("Clouds: three layers of 128 and fresh samples; curved flows get the linear one's network, steps, seeds.")
    ctx.progress(1.0)


def _target(plan: Plan, target: str) -> Callable[[int], Any]:
    return lambda seed: (plan.clouds, seed, target)


def _call(job: tuple[Callable[[Any], Found], Any]) -> Found:
    function, work = job
    return function(work)


def _overhead(ctx: Context, plan: Plan) -> None:
    for name, ratios in overhead(*plan.timing).items():
        _report(ctx, f"least-squares-{name}", ratios)


def _report(ctx: Context, claim: str, values: list[float]) -> None:
    if ctx.wants(claim):
        value, span = median_interval(values)
        ctx.measured(claim, value, span)


def _claims(ctx: Context, found: dict[str, list[Found]], curved: tuple[str, ...]) -> None:
    def numbers(part: str, name: str) -> list[float]:
        return [f.numbers[name] for f in found[part]]

    for claim, (part, name) in {
        "marginals-quick": ("eight", "marginals"), "marginals-full": ("eight", "marginals"),
        "convex-1": ("eight", "convex-1"), "convex-2": ("eight", "convex-2"),
        "convex-square": ("eight", "convex-square"), "convex-1-digits": ("digits", "convex-1"),
        "convex-2-digits": ("digits", "convex-2"), "straightens-eight": ("eight", "straightens"),
        "straightens-noise": ("noise", "straightens"), "law": ("eight", "law"),
        "one-step-eight": ("eight", "one-step"), "one-step-noise": ("noise", "one-step"),
        "distilled": ("eight", "distilled"), "curved-one-step": ("noise", "curved-one-step"),
        "curved-straightness": ("noise", "curved-straightness"), "curved-four-steps": ("noise", "curved-four-steps"),
        "quality-noise": ("noise", "quality"), "evaluations": ("noise", "nfe 1-flow"),
        "translation-flow": ("translation", "1-flow"), "translation-reflow": ("translation", "2-flow, one step"),
        "translation-cost": ("translation", "cost"),
    }.items():  # fmt: skip
        _report(ctx, claim, numbers(part, name))
    if ctx.wants("quality-digits"):
        _report(ctx, "quality-digits", numbers("digits", "quality"))
    before = np.array(numbers("adaptation", "not moved"))
    _report(ctx, "adaptation", list(np.array(numbers("adaptation", "1-flow")) - before))
    _report(ctx, "adaptation-brief", list(np.array(numbers("adaptation", "1-flow, 300 steps")) - before))
    if installed("ot"):
        _report(ctx, "optimal", numbers("eight", "optimal"))
        _report(ctx, "adaptation-optimal", list(np.array(numbers("adaptation", "optimal transport")) - before))
    else:
        for claim in ("optimal", "adaptation-optimal"):
            ctx.skipped(claim, 'POT is not installed: pip install "steepest[optim]"')
    if ctx.wants("ot-cfm"):
        if "rival" in found:
            _report(ctx, "ot-cfm", numbers("rival", "ot-cfm"))
        else:
            ctx.skipped("ot-cfm", 'POT is not installed: pip install "steepest[optim]"')
    ratio, span = median_interval(numbers("noise", "curved-one-step"))
    ctx.against(f"curved flows ({', '.join(curved)})", ratio, span, what="one step, noise to moons")
    ctx.note(
        "Translation stops where the loss of held-out samples is smallest; adaptation trains for as many steps as "
        "translation may. That 300 are better was seen on the test half, so they have no verdict."
    )
    calls = [f"{name} {np.median(numbers('noise', f'nfe {name}')):.0f}" for name in ("1-flow", "2-flow", *curved)]
    ctx.note(f"Evaluations by RK45, noise to moons: {', '.join(calls)}.")
