"""Hard constraints by experts: a network gives basis fields, and a least-squares solve inside it fits the equation.

It is for people who train a surrogate of a differential equation without solution data (a solute that moves through
soil, the vorticity of a flow) and want its answers to hold the equation at inference. PI-HC fits one set of weights to
the whole grid, PI-HC-MoE one to each box of it. Here: both beside the same network with the equation only in its loss
(PI-SC), on starts that none has seen, against a numerical solver (`studies.hard_constraint_moe_training`); what the
layer costs as points grow (`studies.hard_constraint_moe_costs`); and what must hold exactly
(`studies.hard_constraint_moe_exact`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from steepest.physics import operator_input, solve_diffusion_sorption
from steepest.studies import hard_constraint_moe_costs as costs
from steepest.studies import hard_constraint_moe_full as full
from steepest.studies import hard_constraint_moe_pictures as pictures
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture, bootstrap_interval
from steepest.studies.context import Context
from steepest.studies.hard_constraint_moe_exact import exact
from steepest.studies.hard_constraint_moe_paper import run_paper
from steepest.studies.hard_constraint_moe_training import (
    HC,
    LAYER,
    MOE,
    PADDING,
    SC,
    SMOOTHING,
    Run,
    Trained,
    best_settings,
    dots,
    moe_on_bases,
    ratio,
    sorption,
    train_all,
    weighted,
    workers_of,
)

AREA = "physics"

PAPER = Paper(
    title="Scaling physics-informed hard constraints with mixture-of-experts",
    authors="Nithin Chalapathi, Yiheng Du, Aditi Krishnapriyan",
    venue="ICLR",
    year=2024,
    url="https://arxiv.org/abs/2402.13412",
)

_ERRORS = "MoE more accurate than PI-HC and PI-SC, Figs. 3 and 5"
_TIMES = "near-constant time, Figs. 4 and 6"

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("hc-sc-steps", "Diffusion-sorption: at equal steps the layer's network has half the error of PI-SC.",
          _ERRORS, "<= 0.5", "x PI-SC's error", "quick full"),
    Claim("hc-sc-time", "The same at equal CPU time.", "not compared", "reported", "x PI-SC's error", "quick full"),
    Claim("moe-none", "Experts in the place of PI-HC's layer, its network as it is: no worse.", _ERRORS, "<= 1.05",
          "x PI-HC's error", "quick full"),
    Claim("moe-global", "Experts that correct the global fit, on the same network: better.", "ours", "<= 0.95",
          "x PI-HC's error", "quick full"),
    Claim("moe-trained-sc", "Trained through experts from scratch, the paper's start, equal time: half of PI-SC's "
          "error.", _ERRORS, "<= 0.5", "x PI-SC's error", "full"),
    Claim("moe-trained-hc", "It has no more than PI-HC's error.", _ERRORS, "<= 1.0", "x PI-HC's error", "full"),
    Claim("moe-trained-hc-paper", "It has 0.7 of PI-HC's error.", _ERRORS, "<= 0.7", "x PI-HC's error", "full"),
    Claim("moe-trained-sc-steps", "The same against PI-SC at equal steps.", _ERRORS, "reported", "x PI-SC's error",
          "full"),
    Claim("flow-hc-sc", "Vorticity, short training: PI-HC is as good as PI-SC.", _ERRORS, "<= 1.0", "x PI-SC's error",
          "full"),
    Claim("flow-moe-bases", "Experts on PI-HC's network are as good as PI-HC.", _ERRORS, "<= 1.0", "x PI-HC's error",
          "full"),
    Claim("flow-persistence", "All three are better than no motion: the worst of them.", "not given", "<= 0.8",
          "x persistence's error", "full"),
    Claim("flow-moe-trained", "Longer training: experts trained through are as good as PI-HC.", _ERRORS, "<= 1.0",
          "x PI-HC's error", "full"),
    Claim("flow-moe-trained-sc", "They have 0.7 of PI-SC's error.", _ERRORS, "<= 0.7", "x PI-SC's error", "full"),
    Claim("flow-hc-sc-long", "So has PI-HC.", _ERRORS, "<= 0.7", "x PI-SC's error", "full"),
    Claim("points-workers", "On 32k points four experts over two workers take less time than the single solve.",
          _TIMES, "<= 0.65", "x PI-HC's seconds", "quick full"),
    Claim("points-one-core", "On one core they cost little more.", _TIMES, "<= 1.5", "x PI-HC's seconds",
          "quick full"),
    Claim("points-exponent", "At a fixed number of experts time grows no faster than the points.", _TIMES, "<= 1.1",
          "exponent of the points", "quick full"),
    Claim("points-experts", "With one expert for each 8k points the slowest takes nearly constant time.", _TIMES,
          "<= 0.2", "exponent of the points", "full"),
    Claim("memory-expert", "An expert of K holds hardly more than 1/K of the rows, 48 x 64 points.", "not given",
          "<= 1.2", "x PI-HC's bytes / K", "quick full"),
    Claim("stable-finite", "No run meets a number that is not finite.", "more stable", "== 0", "runs", "quick full"),
    Claim("stable-converged", "Solves in training converge.", "more stable", "<= 0.05", "share that did not",
          "quick full"),
    Claim("stable-spread", "The spread over seeds of the loss on unseen starts is no larger with experts.",
          "more stable", "<= 1.0", "x PI-HC's spread", "full"),
    Claim("gradient", "The implicit gradient is that of finite differences: PI-HC, experts, corrections.", "exact",
          "<= 1e-6", "relative difference", "quick full", True),
    Claim("gradient-local", "No expert's solution depends on terms of another box.", "exact", "== 0",
          "largest derivative", "quick full", True),
    Claim("enforces", "On unseen starts the layer's weights hold the equation better than any single field and than "
          "its first weights.", "hard constraint", "<= 0.5", "x the best of those", "quick full"),
    Claim("never-above", "They never end above the first weights, on the points solved on.", "hard constraint",
          "== 1", "share of solves", "quick full", True),
    Claim("adherence-hc", "On unseen starts PI-HC's residual of the equation is a fifth of PI-SC's.",
          "lower residual, Fig. 3", "<= 0.2", "x PI-SC's norm", "full"),
    Claim("adherence-moe", "So is that of experts trained through.", "lower residual, Fig. 3", "<= 0.2",
          "x PI-SC's norm", "full"),
    Claim("adherence-initial", "Beside it: the initial condition, PI-HC.", "not given", "reported", "x PI-SC's norm",
          "full"),
    Claim("adherence-boundary", "Beside it: the walls, PI-HC.", "not given", "reported", "x PI-SC's norm", "full"),
    Claim("step-time", "What a training step costs with the layer.", "not given", "reported", "x PI-SC's CPU seconds",
          "quick full"),
    Claim("step-time-experts", "What it costs with experts on the same points in all.",
          "several times faster than PI-HC", "reported", "x PI-HC's CPU seconds", "full"),
    Claim("solver-time", "Inference with the layer against the numerical solver, start by start.", "not compared",
          "reported", "x faster", "quick full"),
    Claim("devices-ray", "Two Ray workers instead of one.", "4 GPUs", ">= 1.5", "x faster (wall)", "full"),
    Claim("devices-same", "The weights are the same wherever they were solved for.", "exact", "<= 1e-10",
          "relative difference", "full", True),
    Claim("batched-scipy", "64 small problems at once, beside a loop over SciPy's Levenberg-Marquardt.",
          "target of ours", ">= 3", "x faster", "quick full"),
    Claim("batched-minima", "Both find the same minima.", "exact", "<= 1e-8", "relative difference", "quick full",
          True),
    Claim("batched-jaxopt", "The same beside a vectorized jaxopt.", "target of ours", ">= 1.5", "x faster", "full"),
    Claim("batched-optimistix", "The same beside a vectorized optimistix.", "target of ours", "reported", "x faster",
          "full"),
    Claim("paper-sorption-sc", "The paper's network on 101 x 1024 points: half of PI-SC's error.", _ERRORS, "<= 0.5",
          "x PI-SC's error", "paper"),
    Claim("paper-sorption-hc", "It has 0.7 of PI-HC's error.", _ERRORS, "<= 0.7", "x PI-HC's error", "paper"),
    Claim("paper-flow-sc", "The paper's network on 64 x 64 x 64 points: 0.7 of PI-SC's error.", _ERRORS, "<= 0.7",
          "x PI-SC's error", "paper"),
    Claim("paper-flow-hc", "It is as good as PI-HC.", _ERRORS, "<= 1.0", "x PI-HC's error", "paper"),
]
# fmt: on

PEERS = [
    Peer(SC),
    Peer(HC),
    Peer("BDF method of lines", "scipy"),
    Peer("scipy.optimize.least_squares", "scipy"),
    Peer("jaxopt.LevenbergMarquardt", "jaxopt"),
    Peer("optimistix.LevenbergMarquardt", "optimistix"),
]
OPTIONS = {"workers": "at full: trainings at a time (default: two)"}

# fmt: off
FIGURES = [
    Figure("error", "Error on unseen starts: what the layer changes", "error", "relative error", "method", "dots",
           log_x=True, caption="Diffusion-sorption, 48 x 64 points, eight unseen starts, against the solver; one point "
           "a seed. PI-SC twice: as many steps as PI-HC, as much CPU time. The experts use PI-HC's network."),
    Figure("loss", "The layer's loss starts low and costs more a step", "loss", "CPU seconds",
           "loss on the equation", log_y=True,
           caption="Training loss, smoothed over ten steps, 48 x 64 points; median and 10-90 % over seeds."),
    Figure("residual", "The residual of the equation against training time", "residual", "CPU seconds",
           "norm of the residual", log_y=True,
           caption="Its first part alone: a constant field has almost none, so read it beside the error."),
    Figure("layer", "Seconds of the layer grow more slowly than the points", "layer", "points", "CPU seconds",
           log_x=True, log_y=True, caption="Forward and backward pass without the network, ten Levenberg-Marquardt "
           "steps, 16 fields, four experts; fastest of several. Dashed: in proportion to the points."),
    Figure("trained", "Trained through the layer from scratch, the paper's start", "trained", "relative error",
           "method", "dots", log_x=True, caption="101 x 256 points, unseen starts, equal CPU time; one point a seed."),
    Figure("flow", "Vorticity after training on the equation alone", "flow", "relative error", "method", "dots",
           caption="16 x 32 x 32 points, Re 1000, unseen starts; one point a seed. Persistence: nothing moves."),
]
PICTURES = [
    Picture("fields", "One unseen start: field, and error of each method", "fields", pictures.draw_fields,
            caption="Diffusion-sorption, first seed, time upwards. The errors share one scale; dotted lines are the "
            "boxes of the experts.",
            alt="Four maps over space and time: the concentration moves in from the left; the errors of PI-SC, PI-HC "
            "and of experts that correct PI-HC, the last with edges at the borders of its boxes.",
            size=(7.6, 5.2)),
    Picture("experts", "What experts do to the residual, box by box", "fields", pictures.draw_experts,
            caption="Left: residual of the equation, root mean square over time, of PI-HC and of experts on the same "
            "network; peaks at the borders are the jumps between boxes. Right: how far each expert's weights moved "
            "from the single fit.",
            alt="Curves of the residual over space: experts lie lower inside the boxes and have peaks at three "
            "borders; bars of four heights.",
            size=(7.6, 3.4)),
]
# fmt: on

SNIPPET = """\
import torch
from steepest.physics import FNO, DiffusionSorption1D, HardConstraintMoE, fit_pde_operator, operator_solution

pde = DiffusionSorption1D(16, 32)
net = FNO(3, 8, (4, 4), (8, 8, 8), 16, output_activation=None)
layer = HardConstraintMoE(pde, (1, 4), row_scaling="balanced", pde_weight=0.1, ridge=1e-2)
starts = 0.2 * torch.rand(16, 1).expand(-1, 32)
history = fit_pde_operator(net, layer, pde, starts, steps=5, batch_size=2)
u, info = operator_solution(net, layer, pde, starts[:2])
print(u.shape, history["fun"][-1], "converged:", bool(info.converged.all()))
"""

REASONS: dict[str, str] = {
    "points-workers": "each worker computes the terms of all boxes and their gradient, and shares only solve and "
    "gradient of the weights: of 0.23 s on one core 0.11 s are terms, 0.13 s are shared. Stencils with half of the "
    "passes over memory took a third from both sides and left the ratio where it was.",
    "batched-scipy": "ten steps of all 64 problems read 16 MB three times each, while each problem alone stays in "
    "SciPy's cache; blocks of 2 to 16 problems and pieces of rows from 128 kB to 32 MB were not faster.",
    "moe-trained-hc": "in the first three steps the loss is 16 behind experts and 2.2 behind one solve: the second "
    "difference multiplies their jumps at the borders by the square of 256. After 25 CPU seconds (one seed) 115 steps "
    "of experts had an error of 0.35, 112 of PI-HC 0.17; the residual was 0.51 against 0.27.",
    "moe-trained-hc-paper": "as above: jumps at the borders cost experts the first half of a short training.",
    "adherence-hc": "the solver's own answer has a residual of 0.27 here, because the start jumps at the inlet, and a "
    "constant has none. In 25 CPU seconds (one seed) PI-SC ended at 0.008 with an error of 0.85, nearly a constant, "
    "PI-HC at 0.27 with an error of 0.17: no right answer can have a fifth of PI-SC's residual.",
    "flow-hc-sc": "at equal time PI-SC makes 2.3 times as many steps. In 15 CPU seconds (one seed) 293 steps of PI-SC "
    "gave an error of 0.37 and a residual of 90, 127 of PI-HC 0.40 and 95; no motion has 0.57 and 235, the solver's "
    "own answer a residual of 27.",
    "flow-hc-sc-long": "a step of PI-HC is worth nearly three of PI-SC's and takes nearly three times as long: on "
    "other starts (one seed) both had an error of 0.38 after 15 CPU seconds (117 and 314 steps), after 50 PI-HC 0.27 "
    "and PI-SC 0.26.",
    "flow-moe-trained-sc": "as in flow-hc-sc-long; in these times experts are on a level with the single solve.",
    "adherence-moe": "as for PI-HC, and experts' jumps at the borders come on top: 0.51 with an error of 0.35 after "
    "115 steps, where the solver's own answer has 0.27.",
    "stable-spread": "two seeds: the ratio of the distances of two pairs of equally spread numbers is above 1 every "
    "second time and above 2.2 in 27 of 100.",
    "devices-ray": "CPU seconds of a worker fall from 0.72 to 0.37 when there are two, 1.9 times; the terms, which "
    "the caller computes alone, and Ray's own processes on the same two cores take the rest.",
}

WHEN_NOT = [
    "A numerical solver is fast enough: for one dimension it is, and it is exact.",
    "There are many solutions to learn from: the layer is for training without any.",
    "The network's fields cannot span the solution: N weights fit the equation, they do not make it true.",
    "The solution must be smooth across boxes: experts jump at the borders of their boxes.",
    "Concentrations come close to zero: the isotherm has a kink there, and gradients with it.",
]

SMALL = {"modes": (4, 4), "widths": (16,) * 6, "head": 64, "output_activation": None, "padding": (PADDING, PADDING)}


def run(ctx: Context) -> None:
    """Measure with one thread; see the module."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if ctx.scale == "paper":
            run_paper(ctx)
        else:
            _measure(ctx)
    finally:
        torch.set_num_threads(before)


def _measure(ctx: Context) -> None:
    exact(ctx)
    costs.memory(ctx)
    costs.many_problems(ctx)
    costs.points(ctx)
    ctx.progress(0.2)
    runs = small(ctx)
    if ctx.wants("moe-trained-sc"):
        runs += full.trained_through(ctx)
        ctx.progress(0.6)
        runs += full.vorticity(ctx)
        costs.devices(ctx)
    _stability(ctx, runs)


# -------------------------------------------------------------------------------------------------- diffusion-sorption


def small(ctx: Context) -> list[Trained]:
    """48 x 64 points from a compatible start: PI-HC against PI-SC, then experts on PI-HC's networks."""
    nt, nx = ctx.pick(tiny=(8, 16), quick=(48, 64), full=(48, 64), paper=(48, 64))
    network = SMALL if ctx.scale != "tiny" else SMALL | {"modes": (2, 2), "widths": (4, 4), "head": 8}
    sampled = nt * nx // 4
    layer = LAYER | {"num_sampled_points": sampled, "ridge": 1e-3}  # 1e-2 binds experts to the single fit
    problem = sorption(nt, nx, 8, ctx.seed, network=network, layer=layer, compatible=True, smoothing=SMOOTHING)
    steps, tuning = ctx.pick(tiny=(3, 0.0), quick=(60, 0.0), full=(80, 4.0), paper=(60, 0.0))
    workers, chosen = workers_of(ctx), {HC: (4e-3, 0.1), SC: (4e-3, 0.1)}
    if tuning:
        chosen = best_settings(problem, ctx.seed, tuning, workers)
        ctx.note(f"48 x 64 points, four trials of {tuning:.0f} CPU seconds each on validation starts: {HC} takes the "
                 f"learning rate {chosen[HC][0]} and pde_weight {chosen[HC][1]} (two of each), {SC} the learning rate "
                 f"{chosen[SC][0]} (of four).")  # fmt: skip
    else:
        ctx.note(f"nothing is tuned here: learning rate {chosen[HC][0]} for both, pde_weight {chosen[HC][1]}, ridge "
                 f"{layer['ridge']} and balanced rows as chosen beforehand on few seeds, 0 among them, "
                 f"mostly for {HC}.")  # fmt: skip
    rates = {m: lr for m, (lr, _) in chosen.items()}
    problem = weighted(problem, chosen[HC][1])
    hard = train_all([Run(problem, HC, seed, rates[HC], steps) for seed in ctx.seeds], workers)
    soft = train_all([Run(problem, SC, seed, rates[SC], steps) for seed in ctx.seeds], workers)
    timed = train_all(
        [Run(problem, SC, h.run.seed, rates[SC], max_seconds=h.seconds) for h in hard], workers
    )  # fmt: skip
    experts = {anchor: [moe_on_bases(h, anchor) for h in hard] for anchor in ("none", "global")}
    ratio(ctx, "hc-sc-steps", hard, soft)
    ratio(ctx, "hc-sc-time", hard, timed)
    for anchor, scores in experts.items():
        ratio(ctx, f"moe-{anchor}", scores, hard)
    per_step = [np.median(np.diff(t.history["seconds"])) for t in (*hard, *soft)]
    ratios = np.divide(per_step[: len(hard)], per_step[len(hard) :])
    ctx.measured("step-time", float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))
    dots(ctx, "error", {
        "PI-SC, equal steps": soft, "PI-SC, equal time": timed, HC: hard, f"{MOE} on PI-HC": experts["none"],
        f"{MOE}, anchored, on PI-HC": experts["global"],
    })  # fmt: skip
    for name, group in ((HC, hard), (SC, timed)):
        _curves(ctx, name, group)
    best = min((timed, soft), key=lambda group: float(np.median([t.score.error for t in group])))
    factor = np.median([t.score.error for t in best]) / np.median([s.error for s in experts["global"]])
    ctx.against(SC, float(factor), what="diffusion-sorption, 48 x 64 points, unseen starts")
    ctx.note(
        f"48 x 64 points: {steps} steps of PI-HC take {np.median([t.seconds for t in hard]):.1f} CPU seconds; PI-SC "
        f"makes {np.median([t.steps for t in timed]):.0f} in that time. PI-HC samples {sampled} points, four experts "
        f"{sampled} each, {4 * sampled} in all."
    )
    _enforces(ctx, hard)
    _solver(ctx, hard[0])
    pictures.keep(ctx, hard[0], timed[0])
    return [*hard, *soft, *timed]


def _enforces(ctx: Context, hard: Sequence[Trained]) -> None:
    """Objective of the layer's weights against that of every single field and of the first weights."""
    ratios, below = [], []
    for trained in hard:
        problem, (net, layer) = trained.run.problem, trained.model()
        assert layer is not None
        u0 = problem.test[0]
        with torch.no_grad():
            basis = net(operator_input(problem.pde, u0))
            out = layer(basis, u0)
            N = basis.shape[-1]
            first = torch.ones(N, dtype=torch.float64) if layer.running is None else layer.running[0]
            candidates = torch.cat((torch.eye(N, dtype=torch.float64), first[None]))
            values = torch.stack(
                [layer.objective(basis, w.expand(len(u0), 1, N), u0) for w in candidates]
            )  # (N + 1, B)
            found = layer.objective(basis, out.weights, u0)
        ratios += (found / values.min(0).values).tolist()
        ridge = layer.ridge**2 / 2 * (out.weights[:, 0].square().sum(-1) - first.square().sum())
        below += (found + ridge <= values[-1] * (1 + 1e-12)).tolist()
    ctx.measured("enforces", float(np.median(ratios)), bootstrap_interval(ratios, statistic=np.median))
    ctx.measured("never-above", float(np.mean(below)))


def _solver(ctx: Context, trained: Trained) -> None:
    """CPU seconds of inference, start by start, against the numerical solver on the same grid."""
    problem, (net, layer) = trained.run.problem, trained.model()
    assert layer is not None
    u0, (nt, nx) = problem.test[0][:4], problem.pde.grid

    def seconds(work: Callable[[], Any]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    def infer() -> None:
        with torch.no_grad():
            for one in u0:
                layer(net(operator_input(problem.pde, one[None])), one[None])

    solver = seconds(lambda: [solve_diffusion_sorption(one, nt, nx, rtol=1e-6) for one in u0]) / len(u0)
    ours = min(seconds(infer) for _ in range(2)) / len(u0)
    ctx.measured("solver-time", solver / ours)
    ctx.note(f"one start on {nt} x {nx} points: solver {1e3 * solver:.0f} ms (three times finer grid, rtol 1e-6), "
             f"network and layer {1e3 * ours:.0f} ms.")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- helpers


def _stability(ctx: Context, runs: Sequence[Trained]) -> None:
    ctx.measured("stable-finite", sum(not t.score.finite for t in runs))
    solved = [t for t in runs if t.run.method != SC]
    shares = [float(np.mean(t.history["not_converged"])) for t in solved]
    ctx.measured("stable-converged", float(np.mean(shares)), bootstrap_interval(shares))


def _curves(ctx: Context, name: str, group: Sequence[Trained], n: int = 40) -> None:
    """Loss and residual at common times, smoothed over ten steps."""
    end = min(t.seconds for t in group)
    times = np.linspace(0.02 * end, end, n)
    for t in group:
        for series, key in (("loss", "fun"), ("residual", "residual")):
            values = np.array(t.history[key])
            width = min(10, len(values))
            smooth = np.exp(np.convolve(np.log(values), np.ones(width) / width, mode="valid"))
            at = np.array(t.history["seconds"])[width - 1 :]
            found = np.interp(times, at, smooth)
            ctx.series(series, list(zip(times, found, strict=True)), method=name, seed=t.run.seed)
