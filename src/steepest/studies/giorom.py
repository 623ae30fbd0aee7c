"""GIOROM simulates fluids, sand and jelly by stepping a few sampled particles and inferring all others from them.

It is for people in graphics and robotics who want many particles in motion at interactive rates, learned from
simulations that they have. A network steps about a sixteenth of the particles; the rest follow by one sparse matrix
that is built once. Here: the time of a frame against a graph network simulator that steps all and against the
simulator itself (`studies.giorom_speed`); how well true motion of few gives that of all, beside other interpolations
(`studies.giorom_upsampling`); and whether the learned steps are right, on scenes that were not learned from, beside
extrapolation and the graph network simulator at equal training time (`studies.giorom_learning`). The data are five
materials of our own material point method (`studies.giorom_scenes`); ``paper`` is the three-dimensional setting and
needs an accelerator (`studies.giorom_paper`).
"""

from __future__ import annotations

from steepest.studies import giorom_paper, giorom_speed, giorom_upsampling
from steepest.studies import giorom_pictures as pictures
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture
from steepest.studies.context import Context
from steepest.studies.giorom_learning import Learning, Sizes
from steepest.studies.giorom_scenes import MATERIALS, Setting
from steepest.studies.giorom_training import Plan
from steepest.studies.provenance import cores

AREA = "physics"

PAPER = Paper(
    title="Reduced-Order Neural Operators: Learning Lagrangian Dynamics on Highly Sparse Graphs",
    authors="Hrishikesh Viswanath, Yue Chang, Aleksey Panas, Julius Berner, Peter Yichen Chen, Aniket Bera",
    venue="arXiv",
    year=2024,
    url="https://arxiv.org/abs/2407.03925",
)

_MSE = "x the mean squared error"
_FIDELITY = "high fidelity, in pictures"
_TIME = "25x, 10^5 particles in space, GPU"
_SAMPLES = "independent of the discretization"

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales
    Claim("speed", "A frame of 8,000 particles is faster than by a graph network simulator on all of them.", _TIME,
          ">= 25", "x faster", "quick"),
    Claim("speed-large", "The same with 30,000 particles.", _TIME, ">= 40", "x faster", "full"),
    Claim("speed-wide", "The same with both networks 128 wide.", _TIME, "reported", "x faster", "full"),
    Claim("speed-simulator", "The simulator that made the data, compiled, against the frame.", "not compared",
          "reported", "x GIOROM's time", "quick full"),
    Claim("inference-time", "100,000 particles follow from 1,000 in little time.", "10^5 from 10^3", "<= 0.02",
          "s a frame", "quick full"),
    Claim("inference-growth", "A frame of 100,000 particles takes hardly longer than one of 10,000.",
          "negligible change in time", "<= 1.5", "x the time of 10,000", "quick full"),
    Claim("inference-build", "The matrix for 100,000 particles is built quickly.", "not given", "<= 2", "s",
          "quick full"),
    Claim("inference-radial", "A frame is inferred faster than by SciPy's radial basis functions (20 neighbors).",
          "not compared", ">= 50", "x faster", "quick full"),
    Claim("newtonian-step-cv", "Fluid: one step is far more exact than constant velocity.", _FIDELITY, "<= 0.15",
          f"{_MSE} of constant velocity", "quick full"),
    Claim("newtonian-step-ca", "Fluid: one step is more exact than constant acceleration.", _FIDELITY, "<= 0.6",
          f"{_MSE} of constant acceleration", "quick full"),
    Claim("newtonian-step-ar", "Fluid: one step is on a level with the linear autoregression.", _FIDELITY, "<= 1.15",
          f"{_MSE} of the autoregression", "quick full"),
    Claim("newtonian-step-gns", "Fluid: one step is on a level with GNS at equal training time.", _FIDELITY, "<= 1.05",
          f"{_MSE} of GNS", "quick full"),
    Claim("newtonian-rollout-cv", "Fluid: 30 steps are more exact than constant velocity.", _FIDELITY, "<= 0.6",
          f"{_MSE} of constant velocity", "quick full"),
    Claim("newtonian-rollout-cvg", "Fluid: the same against free fall that ends at the walls.", _FIDELITY, "reported",
          f"{_MSE} of that", "quick full"),
    Claim("newtonian-rollout-gns", "Fluid: 30 steps are at least as exact as GNS at equal training time.", _FIDELITY,
          "<= 1.0", f"{_MSE} of GNS", "quick full"),
    Claim("newtonian-rollout-start", "Fluid: training makes 30 steps more exact than the linear map of neighbors and "
          "walls that it starts from.", _FIDELITY, "<= 0.85", f"{_MSE} of that map alone", "quick full"),
    Claim("newtonian-rollout-ar", "Fluid: 30 steps against the autoregression on a particle's own past.", _FIDELITY,
          "reported", f"{_MSE} of the autoregression", "quick full"),
    Claim("elastic-step-cv", "Jelly: one step is far more exact than constant velocity.", _FIDELITY, "<= 0.15",
          f"{_MSE} of constant velocity", "quick full"),
    Claim("elastic-step-ca", "Jelly: one step is more exact than constant acceleration.", _FIDELITY, "<= 0.6",
          f"{_MSE} of constant acceleration", "quick full"),
    Claim("elastic-step-ar", "Jelly: one step is on a level with the linear autoregression.", _FIDELITY, "<= 1.15",
          f"{_MSE} of the autoregression", "quick full"),
    Claim("elastic-step-gns", "Jelly: one step is on a level with GNS at equal training time.", _FIDELITY, "<= 1.05",
          f"{_MSE} of GNS", "full"),
    Claim("elastic-rollout-cv", "Jelly: 30 steps are more exact than constant velocity.", _FIDELITY, "<= 0.9",
          f"{_MSE} of constant velocity", "quick full"),
    Claim("elastic-rollout-cvg", "Jelly: the same against free fall that ends at the walls.", _FIDELITY, "reported",
          f"{_MSE} of that", "quick full"),
    Claim("elastic-rollout-gns", "Jelly: 30 steps are at least as exact as GNS at equal training time.", _FIDELITY,
          "<= 1.0", f"{_MSE} of GNS", "full"),
    Claim("five-step-cv", "Five materials: one step, the worst of them.", _FIDELITY, "<= 0.25",
          f"{_MSE} of constant velocity", "full"),
    Claim("five-step-ar", "Five materials: one step is more exact than the autoregression, the worst of them.",
          _FIDELITY, "< 1.0", f"{_MSE} of the autoregression", "full"),
    Claim("five-rollout-cv", "Five materials: 30 steps, the worst of them.", _FIDELITY, "<= 1",
          f"{_MSE} of constant velocity", "full"),
    Claim("five-rollout-gns", "Five materials: 30 steps, the worst of them against GNS.", _FIDELITY, "<= 1.25",
          f"{_MSE} of GNS", "full"),
    Claim("five-better", "Five materials: on most of them 30 steps are more exact than GNS.", _FIDELITY, ">= 3",
          "materials", "full"),
    Claim("published-step", "The method with the paper's inputs, noise and no linear skip: one step.", "not split up",
          "reported", f"{_MSE} with our defaults", "full"),
    Claim("published-rollout", "The same over 30 steps.", "not split up", "reported", f"{_MSE} with our defaults",
          "full"),
    *(Claim(f"agnostic-{name}", f"One step on {words}, trained on one particle in six or seven.", _SAMPLES, "<= 1.3",
            f"{_MSE} at the training ratio", "quick full") for name, words in (
                ("denser", "one particle in three"), ("sparser", "one in twelve"), ("fps", "farthest points"))),
    *(Claim(f"agnostic-{name}-share", f"What the network adds to the autoregression stays on {words}.", _SAMPLES,
            ">= 0.5", "x its share at the training ratio", "quick full") for name, words in (
                ("denser", "one particle in three"), ("sparser", "one in twelve"), ("fps", "farthest points"))),
    *(Claim(f"unseen-{name}", f"One step on {words}, over constant acceleration's error there.",
            "generalizes to unseen geometry and motion", "<= 1.25", "x that ratio on the kind of scene trained on",
            "quick full") for name, words in (("shapes", "stars and triangles"), ("speeds", "1.5 times the speed"))),
    *(Claim(f"unseen-{name}-raw", f"One step on {words}, the plain error.",
            "generalizes to unseen geometry and motion", "<= 2", f"{_MSE} on the kind of scene trained on",
            "quick full") for name, words in (("shapes", "stars and triangles"), ("speeds", "1.5 times the speed"))),
    *(Claim(f"reduction-{name}", f"One particle in 16 gives the others: {words}.", "reduction 6.6 to 32x", bound,
            "% of the deformation", scales) for name, words, bound, scales in (
                ("elastic", "jelly", "<= 2", "quick full"), ("newtonian", "fluid", "<= 2", "quick full"),
                ("plasticine", "plasticine", "<= 5", "full"), ("sand", "sand", "<= 10", "full"),
                ("non-newtonian", "non-Newtonian fluid", "<= 10", "full"))),
    Claim("reduction-random", "One in 16 drawn at random instead of farthest points: jelly.", "reduction 6.6 to 32x",
          "reported", "% of the deformation", "quick full"),
    Claim("against-nearest", "Inferring is more exact than by the nearest sample, the worst material.",
          "kernel integral beats nearest neighbors", "<= 0.3", "x the error", "quick full"),
    Claim("against-radial", "It is as exact as radial basis functions (thin plate, 20 neighbors), the worst material.",
          "not compared", "<= 1.1", "x the error", "quick full"),
    Claim("kernel-untrained", "The paper's kernel integral before training (jelly).",
          "kernel integral beats nearest neighbors", "reported", "x the error of the nearest sample", "quick full"),
    Claim("order-one", "Moving least squares of order 1 against radial basis functions (jelly).",
          "not compared", "reported", "x the error of radial basis functions", "quick full"),
    Claim("pca", "Inferring against principal components of the same scene's early frames (jelly).", "not compared",
          "reported", "x the error", "quick full"),
    Claim("peer-operator", "neuraloperator's kernel integral (GNO), trained as long, against moving least squares "
          "(jelly).", "not compared", "reported", "x the error", "full"),
    Claim("kernel-trained", "What training does for the kernel integral (jelly).", "trained", "reported",
          "x the error before", "full"),
    Claim("order-one-trained", "What training does for the kernel of order 1 (jelly).", "not tried", "reported",
          "x the error before", "full"),
    *giorom_paper.CLAIMS,
]
# fmt: on

PEERS = [
    Peer("GNS"),
    Peer("material point method", "numba"),
    Peer("radial basis functions", "scipy"),
    Peer("linear on triangles", "scipy"),
    Peer("nearest neighbor", "scipy"),
    Peer("PCA of early frames", "numpy"),
    Peer("GNO", "neuralop"),
    Peer("autoregression"),
]

OPTIONS = {
    "workers": "at full: trainings at a time (default: two, or one on a single core)",
    "seconds": "processor seconds of each training (default 1.5 at quick, 8 at full)",
}

_SCENES = "Scenes of our own material point method, 1,000 particles, that no network has seen"
# fmt: off
FIGURES = [
    Figure("frame-time", "Stepping few and inferring the rest leaves the graph network simulator behind", "frame time",
           "particles", "processor time of a frame (ms)", log_x=True, log_y=True,
           methods=("GIOROM", "GNS", "material point method"),
           caption="GIOROM steps one particle in 16 and infers all; GNS steps all with ten interactions of the same "
           "width; one thread, fastest of several turns."),
    Figure("rollout", "Errors along a rollout of a fluid", "rollout error", "frame",
           "root mean square error of positions (box = 1)", log_y=True,
           methods=("GIOROM", "GNS", "autoregression", "constant velocity", "gravity between walls"),
           caption=f"{_SCENES}; two starts of each. Equal training time; median and range over seeds."),
    Figure("one-step", "One step of a fluid: most of it is linear", "one-step error",
           "mean squared error of the next position", "model", "dots", log_x=True,
           methods=("GIOROM", "GNS", "autoregression", "constant acceleration", "gravity between walls",
                    "constant velocity"),
           caption=f"{_SCENES}, clean windows. One point a seed."),
    Figure("inference", "One particle in 16 is enough to place the others of a jelly", "inference",
           "particles for each one that is stepped", "error / deformation (%)", log_x=True, log_y=True,
           methods=tuple(giorom_upsampling.METHODS),
           caption="True motion of farthest points; frames 20 to 59, all particles that are no samples, relative to "
           "the norm of the deformation."),
    Figure("inference-time", "Ten times the particles, hardly more time", "inference time", "particles inferred",
           "processor time of a frame (ms)", log_x=True, methods=("inference", "whole frame"),
           caption="From 1,000 samples; one thread, fastest of several turns."),
    Figure("materials", "Rollouts of five materials against GNS", "rollout against GNS",
           "mean squared error of 30 steps over that of GNS", "material", "dots", log_x=True,
           caption=f"{_SCENES}; one point a seed; left of 1 GIOROM is more exact."),
]
PICTURES = [
    Picture("strip", "A fluid that no network has seen: it piles up where it lands, and spreads too little", "strips",
            pictures.draw_strip,
            caption="All 1,000 particles, of which the networks step 150 and the others follow; each starts from six "
            "true frames. Most of what both know is a linear law of neighbors and walls. Color: height at the start. "
            "First seed.",
            alt="Rows of four frames of a blob of fluid that falls and hits the ground: simulated it spreads to the "
            "wall, by GIOROM and by GNS it stays a small heap.", size=(7.6, 3.9)),
    Picture("inferred", "Where inferred particles of a jelly are wrong", "inference", pictures.draw_inference,
            caption="Frame 59 of a test scene; rings are the 62 samples, whose motion is the true one; the color is "
            "each particle's error over the root mean square deformation, on a logarithmic scale.",
            alt="The same blob of particles by nearest neighbor, kernel integral, radial basis functions and moving "
            "least squares; the last two have errors a hundred times smaller, largest at the rim.", size=(7.6, 2.6)),
]
# fmt: on

SNIPPET = """\
import torch
from steepest.physics import GIOROM, MPM

drop = MPM(2, 32, "newtonian", dt=5e-4, gravity=(0.0, -9.8), E=200.0)
drop.add_sphere((0.5, 0.6), 0.15, 400, velocity=(1.0, 0.0))
frames = torch.tensor(drop.run(40, substeps=10), dtype=torch.float32)
model = GIOROM(hidden=16, latent_grid=8, connectivity_radius=0.06)
model.fit([frames], n_sample=100, steps=20)
found = model.simulate(frames[10:16].transpose(0, 1).contiguous(), 10, n_sample=100)
error = (found["positions"] - frames[16:26]).norm(dim=-1).mean()
print(f"400 particles from 100, mean distance after 10 frames: {error:.4f}")
"""

_DRIFT = (
    "errors that the model itself makes are not those it trained on: on validation scenes 600 steps on noise "
    "alone bring one step to 0.82 of the autoregression's error and 30 steps to 2.0"
)
_NEAR = (
    "both networks start from the same linear map of neighbors and walls, and training adds little to it in the time "
    "there is; weights are kept only if rollouts of validation scenes get better: " + _DRIFT
)
REASONS: dict[str, str] = {
    "newtonian-rollout-start": "the start itself, which sees neighbors and walls, has 0.75 of the autoregression's "
    "error over 30 steps; what training adds in seconds is small: " + _DRIFT,
    "newtonian-rollout-cv": _DRIFT,
    "newtonian-rollout-gns": _NEAR,
    "elastic-rollout-gns": _NEAR,
    "five-rollout-gns": _NEAR,
    "elastic-step-ar": "the noise that helps 30 steps costs one: with 0.2 of the acceleration it was 1.21, with "
    "the 0.1 that jelly has 1.11",
    "agnostic-sparser-share": "the share itself is small, and differs between seeds by more than it is",
    "five-step-ar": "noise of 0.2 of the acceleration gives up some of one step for the sake of thirty (a fluid: 0.90 "
    "with noise 0.1 and 0.99 with 0.2), and weights are chosen by thirty",
    "unseen-speeds": "the plain error is smaller than at the speeds trained on (unseen-speeds-raw); it is constant "
    "acceleration that is less wrong there",
    "unseen-shapes": "the plain error is nearly that on the kinds of shapes trained on (unseen-shapes-raw); it is "
    "constant acceleration that is less wrong there",
    "against-radial": "it is sand, 2.2 % of the deformation against 1.7 %, whose scenes differ much; the "
    "other four materials are at 0.65 to 0.98",
    "reduction-elastic": "62 samples of 1,000 particles are one to a cell of the simulator; radial basis functions "
    "have 2.9 % there, samples drawn at random 5 %; one particle in 6.6 gives 1.1 %",
}

WHEN_NOT = [
    "The simulator itself is fast enough: a compiled material point method steps thousands of particles in "
    "milliseconds, is exact, and needs no training.",
    "You have minutes, not hours, to train: within those, the network adds little to a linear autoregression of the "
    "last accelerations, for one step.",
    "Long rollouts have to be right: errors accumulate, and nothing keeps mass apart, momentum or contact.",
    "Matter mixes or tears: particles are inferred from neighbors of a reference configuration; renew it "
    "(`rebase_every`), or step all particles.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        giorom_paper.measure(ctx)
        return
    small = Setting(n_points=120)
    plan = ctx.pick(
        quick=Plan(float(ctx.options.get("seconds", 0.5)), n_test=2, looks=1),
        full=Plan(float(ctx.options.get("seconds", 8))),
        paper=None,
        tiny=Plan(0.08, 8, 4, 0.1, 2, 2, 1, 30, setting=small),
    )
    assert plan is not None
    seeds = ctx.seeds if ctx.seeds_asked else ctx.seeds[:2]
    everything = ctx.scale != "quick"
    workers = int(ctx.options.get("workers", min(2, cores()))) if ctx.scale == "full" else 1
    materials = MATERIALS if everything else ("newtonian", "elastic")
    learned = MATERIALS if ctx.scale == "full" else ("newtonian", "elastic")
    sizes = Sizes(plan, learned, learned if everything else ("newtonian",), ctx.scale == "full", workers)
    ctx.progress(0.0)
    speed = ctx.pick(
        quick=giorom_speed.Sizes(8000, 32, (2000,), repeats=1),
        full=giorom_speed.Sizes(30_000, 32, (1000, 3000, 10_000), repeats=2, wide=True),
        paper=None,
        tiny=giorom_speed.Sizes(640, 8, (320,), (500, 1000), 100, 1, True),
    )
    assert speed is not None
    ctx.timed("speed", lambda: giorom_speed.measure(ctx, speed))
    ctx.progress(0.15)
    ctx.timed(
        "inference",
        lambda: giorom_upsampling.measure(ctx, materials, seeds, 2 * plan.n_test, plan.setting),
    )
    if ctx.wants("kernel-trained"):
        steps = 250 if ctx.scale == "full" else 3
        ctx.timed(
            "kernels",
            lambda: giorom_upsampling.train_kernels(ctx, plan.setting, plan.n_training, plan.n_test, steps),
        )
    ctx.progress(0.25)
    Learning(ctx, sizes, seeds).run(0.25, 0.95)
    ctx.note(
        f"Networks {plan.hidden} wide, {plan.seconds:g} processor seconds of training each, {plan.n_sample} particles "
        f"of {plan.setting.n_points}, connectivity radius {plan.connectivity_radius:g}; GNS has ten interactions and "
        f"learns and steps the same particles; half of both networks' batches go on by {plan.unroll} frames at most of "
        "their own first. Rollouts of validation scenes choose the start, a linear map with neighbors and walls or one "
        "without, and the weights kept. Jelly at quick has 0.6 of the time."
    )
    if ctx.scale == "full":
        ctx.note("Cut to end in time: two seeds, and 8 processor seconds of training in place of 36.")
    ctx.progress(1.0)
