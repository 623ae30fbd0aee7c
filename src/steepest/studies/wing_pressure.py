"""Wing pressure predicts the pressure on a wing from its shape, with metric, connection and curvature as inputs.

It is for people who design wings or build surrogates of flow solvers: surface pressure from geometry and flight
condition, much faster than solving for it, where coordinates alone describe shape badly. Here: an attention network
that reads these channels against the same network on coordinates (as DAN), on wings that neither has seen, and what
each group of channels adds (`studies.wing_pressure_experiment`); whether the data, from our own panel method, are
aerodynamics (`studies.wing_pressure_flow`); and what else could be trained in the same time
(`studies.wing_pressure_peers`). ``paper`` takes a table of measured pressures, such as those of the DLR-F11
(`studies.wing_pressure_paper`). The flow is subsonic and attached: Mach numbers up to 0.5 (the correction is valid to
0.6), no stall, no shock.
"""

from __future__ import annotations

from steepest.studies import wing_pressure_flow as flow
from steepest.studies import wing_pressure_paper
from steepest.studies import wing_pressure_peers as peers
from steepest.studies import wing_pressure_pictures as pictures
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture
from steepest.studies.context import Context
from steepest.studies.provenance import cores
from steepest.studies.wing_pressure_experiment import PEER_CLAIMS, Experiment, Sizes
from steepest.studies.wing_pressure_training import Network

AREA = "physics"

PAPER = Paper(
    title="Incorporating Riemannian Geometric Features for Learning Coefficient of Pressure Distributions on Airplane "
    "Wings",
    authors="Liwei Hu, Wenyong Wang, Yu Xiang, Stefan Sommer",
    venue="arXiv",
    year=2024,
    url="https://arxiv.org/abs/2401.09452",
)

_V1 = "8.41 % lower MSE than DAN on DLR-F11 (15.00 % in v2)"

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("gain", "Geometric features cut the MSE of the pressure on unseen wings, same network, seeds and batches.",
          _V1, ">= 8.41", "% lower MSE (95 % interval over wings)", "quick full"),
    Claim("gain-significant", "Wing by wing the cut is no accident: Wilcoxon's signed-rank test, one-sided.",
          _V1, "< 0.01", "p", "full"),
    Claim("gain-interval", "The 95 % bootstrap interval of the cut lies above 0.", _V1, "> 0",
          "lower end, % of the MSE", "full"),
    Claim("gain-target", "The cut reaches this project's own target.", "8.41 % and 15 %; target of ours", ">= 40",
          "% lower MSE", "full"),
    Claim("gain-plateau", "The cut stays when both networks are trained four times as long.", _V1, ">= 8.41",
          "% lower MSE", "full"),
    Claim("plateau-dan", "What four times the epochs change for the network on coordinates.", "not given", "reported",
          "% lower MSE", "full"),
    Claim("plateau-geometry", "What four times the epochs change for the network with geometry.", "not given",
          "reported", "% lower MSE", "full"),
    Claim("gain-interior", "The cut without the panels at the trailing edge and the last strip at the tip.",
          _V1, "reported", "% lower MSE", "quick full"),
    Claim("ablation-metric", "What the metric adds to the coordinates.", "all features help", "reported",
          "% lower MSE", "full"),
    Claim("ablation-connection", "What the connection adds to coordinates and metric.", "all features help", "reported",
          "% lower MSE", "full"),
    Claim("ablation-curvature", "What the curvature adds to coordinates, metric and connection.", "all features help",
          "reported", "% lower MSE", "full"),
    Claim("ablation-extrinsic", "What mean and principal curvatures add to the ten intrinsic channels.", "not tried",
          "reported", "% lower MSE", "full"),
    Claim("ablation-all", "Metric, connection and curvature together are as good as the best group alone.",
          "all features help", "<= 1.02", "x the MSE of the best single group", "full"),
    Claim("neighbourhood-geometry", "What the features of the 3 x 3 neighbours add.",
          "15.00 % in v2 with neighbourhoods, 8.41 % in v1", "reported", "% lower MSE", "full"),
    Claim("neighbourhood-dan", "What the coordinates of the 3 x 3 neighbours add to the network on coordinates.",
          "not tried", "reported", "% lower MSE", "full"),
    Claim("incidence", "Geometry helps at large angles too: the top third of the angles of attack.",
          "gain at large incidence", "> 0", "% lower MSE", "quick full"),
    Claim("sphere", "The solver gives the pressure on a sphere, 24 x 32 panels.", "exact", "<= 0.01",
          "root mean square error of CP over the surface", "quick full", True),
    Claim("ellipsoid", "It gives the pressure on a flat ellipsoid (1, 2, 0.5) at 5 degrees, 24 x 32 panels.", "exact",
          "<= 0.01", "root mean square error of CP over the surface", "quick full", True),
    Claim("refinement", "Its error on the sphere falls with the panel size.", "second order", ">= 1.5",
          "order", "quick full", True),
    Claim("lift-slope", "A long plain wing has the lift of lifting-line theory.", "2 pi AR / (AR + 2), AR 40",
          "between(0.88, 1.12)", "x lifting line", "quick full", True),
    Claim("lift-thickness", "Thickness makes the lift higher: 12 % against 6 %.", "thin-wing theory has none", "> 1",
          "x lift of the thin one", "quick full", True),
    Claim("lift-lattice", "Lift of ten random wings agrees with AeroSandbox's vortex lattice.",
          "another program, no thickness", "<= 0.12", "largest relative difference", "quick full"),
    Claim("viscous", "How far the boundary layer (NeuralFoil) moves the pressure at mid-span.", "not in the paper",
          "reported", "root mean square change of CP", "full"),
    Claim("surrogate-speed", "A forward pass for a wing is faster than the solver, 256 points.",
          "orders of magnitude against CFD", ">= 20", "x faster", "quick full"),
    Claim("surrogate-speed-batch", "The same for each of 64 wings that pass at once.",
          "orders of magnitude against CFD", "reported", "x faster", "quick full"),
    *(Claim(claim, f"At equal training time its MSE is at most that of {name}.", "not compared", "<= 1",
            "x the peer's MSE", "full") for claim, name in PEER_CLAIMS.items()),
    Claim("gain-dlr-f11", "Geometric features cut the MSE on held-out conditions of a table of measured pressures.",
          _V1, ">= 8.41", "% lower MSE", "paper"),
]
# fmt: on

PEERS = [
    Peer("DAN"),
    *(Peer(name, package) for name, package in peers.PACKAGES.items()),
    Peer("vortex lattice", "aerosandbox"),
    Peer("NeuralFoil", "neuralfoil"),
]

OPTIONS = {"workers": "at full: trainings at a time (default: two, or one on a single core)"}

# fmt: off
FIGURES = [
    Figure("error", "Error on unseen wings: the same network with other channels", "test error",
           "MSE of the pressure coefficient", "channels", "dots", log_x=True,
           caption="One point a seed; test wings that no network has seen."),
    Figure("training", "The network on coordinates learns more slowly", "training error", "epoch",
           "training MSE of the pressure coefficient", log_y=True, methods=("DAN", "geometry"),
           caption="Same batches in the same order; median and range over seeds."),
    Figure("incidence", "Error against the angle of attack", "error by incidence", "angle of attack (degrees)",
           "MSE of the pressure coefficient", log_y=True, methods=("DAN", "geometry"),
           caption="Thirds of the test samples by their angle, at the mean angle of each; one value a seed."),
    Figure("peers", "At equal training time", "error of peers", "MSE of the pressure coefficient", "model", "dots",
           log_x=True, caption="CPU seconds of one core, two learning rates each, chosen on validation wings."),
    Figure("refinement", "The solver's error on the sphere falls with the panel size", "error on the sphere",
           "panels along the meridian", "error of CP", log_x=True, log_y=True, caption="Closed form 1 - 9/4 sin²θ."),
]
PICTURES = [
    Picture("pressure", "Pressure on a wing that no network has seen", "pressure", pictures.draw_pressure,
            caption="A test wing from above, flow from the top; the left half shows the lower side. The errors share "
            "one scale; first seed.",
            alt="A wing drawn four times in colors of the pressure coefficient: solver and network with geometry look "
            "alike; of the errors, that on coordinates is larger, most of all near the leading edge.",
            size=(7.6, 3.4)),
    Picture("sections", "Suction along the chord at three stations", "sections", pictures.draw_sections,
            caption="The wing above. Dotted, where NeuralFoil is installed: its section with a boundary layer at the "
            "lift of the strip at mid-span.",
            alt="Three panels of pressure against chord: the network with geometry follows the solver's circles "
            "through the suction peak, that on coordinates misses part of it.",
            size=(7.6, 3.6)),
    Picture("channels", "What the network reads besides coordinates", "channels", pictures.draw_channels,
            caption="The unrolled surface of the same wing, normalized channels: asinh, then mean and deviation over "
            "the training wings; the pressure beside them.",
            alt="Six maps over the unrolled wing: metric, connection and curvature show the leading edge as a band "
            "in the middle, where the pressure has its suction peak too.",
            size=(7.6, 4.4)),
    Picture("lift", "Lift agrees with another program", "lift", pictures.draw_lift,
            caption="Ten random wings at 5 degrees, Mach 0; AeroSandbox's vortex lattice leaves out thickness.",
            alt="Points near the diagonal, inside the band of 12 per cent.", size=(5.4, 4.2)),
]
# fmt: on

SNIPPET = """\
import torch
from steepest.physics import WingPressureModel, make_wing_dataset, train_wing_pressure

train = make_wing_dataset(4, seed=0, n_u=17, n_v=9, conditions_per_wing=2)
test = make_wing_dataset(2, seed=1, n_u=17, n_v=9, conditions_per_wing=2)
model = WingPressureModel(16, 8, features="intrinsic", d_model=16, n_layers=1)
history = train_wing_pressure(model, train, epochs=3, batch_size=4)
with torch.no_grad():
    cp = model(test.points, test.conditions)
print(f"MSE on unseen wings: {(cp - test.cp).square().mean():.3f}")
"""

REASONS = {
    "surrogate-speed": "the solver needs a few hundredths of a second for a wing of 256 panels, some twenty times less "
    "than its prototype, and half of a single forward pass is the features in float64; of 64 wings at once each is "
    "about 30 times faster than the solver",
}

WHEN_NOT = [
    "There are shocks, stall or Mach numbers above 0.6: the solver that makes the data knows none of them, and a model "
    "trained on it cannot either.",
    "The surface is not a structured grid with the same parametrization for every shape: metric and connection depend "
    "on the parameters and mean nothing across different ones.",
    "Only a few shapes are asked about: the panel method itself takes a fraction of a second for a wing.",
    "Only the lift is wanted: a vortex lattice gives it in hundredths of a second.",
]


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        wing_pressure_paper.measure(ctx)
        return
    sizes = ctx.pick(
        quick=Sizes(40, 0, 20, 2, Network(32, 1, 60), ((12, 16), (18, 24), (24, 32))),
        full=Sizes(108, 12, 40, 2, Network(32, 1, 80), ((12, 16), (18, 24), (24, 32), (36, 48))),
        paper=None,
        tiny=Sizes(5, 2, 3, 2, Network(16, 1, 2), ((6, 8), (8, 10)), (13, 7), 2),
    )
    assert sizes is not None
    seeds = ctx.seeds if ctx.seeds_asked or ctx.scale != "full" else [ctx.seed + 1 + k for k in range(5)]
    asked = int(ctx.options.get("workers", min(2, cores())))
    workers = asked if ctx.scale == "full" else 1
    ctx.progress(0.0)
    ctx.timed("solver", lambda: flow.measure(ctx, sizes.panels, sizes.wing))
    ctx.progress(0.1)
    Experiment(ctx, sizes, seeds, workers).run()
    ctx.note("Subsonic attached flow: Mach numbers up to 0.5, no stall, no shock, no boundary layer in the data.")
