"""SSO reuses each expensive gradient of the loss for several cheap steps of the model's parameters.

It is for training where the gradient of the loss by the model's output is dear (a simulator, an expert or a large
remote model that labels, an inner loop) and the model itself is cheap. An outer step asks for one such gradient and
minimizes an upper bound of the loss that calls only the model. This study counts gradients: how far a network on digits
gets with 150 of them, beside tuned first-order optimizers (`studies.target_surrogate_digits`); what waiting for a
gradient must cost before that pays; the theorems, measured (`studies.target_surrogate_theory`); and imitation learning,
where a gradient is a question to an expert (`studies.target_surrogate_imitation`). The paper's own data run at
``--scale paper`` (`studies.target_surrogate_paper`).
"""

from __future__ import annotations

from steepest.studies import target_surrogate_digits as digits
from steepest.studies import target_surrogate_imitation as imitation
from steepest.studies import target_surrogate_theory as theory
from steepest.studies.claim import Claim, Figure, Paper, Peer
from steepest.studies.context import Context

PAPER = Paper(
    "Target-based Surrogates for Stochastic Optimization",
    "Jonathan Wilder Lavington, Sharan Vaswani, Reza Babanezhad, Mark Schmidt, Nicolas Le Roux",
    "ICML",
    2023,
    "https://arxiv.org/abs/2302.02607",
)
AREA = "optim"
PEERS = [Peer("SGD"), Peer("Adam"), Peer("AdaGrad"), Peer("SLS")]
OPTIONS = {
    "workers": "digits: runs at a time (two at full, otherwise one)",
    "task": "what --scale paper trains: libsvm (default), factorization or mujoco",
}
_150 = "digits, 150 gradients, both tuned"
CLAIMS = [
    Claim("bound-majorizes", "The surrogate lies above the loss everywhere, at steps of 1/L.",
          "Sec. 3: a global upper bound", "== 0", unit="violations", scales="quick full", invariant=True),
    Claim("bound-monotone", "No outer step raises the loss, for 1 to 100 inner steps.",
          "Sec. 3: majorization-minimization", "== 0", unit="violations", scales="quick full", invariant=True),
    Claim("stationary-drop", "It converges to a stationary point of a network: fall of the smallest squared gradient.",
          "abstract: a stationary point for non-convex losses", ">= 100", unit="x in 300 steps", scales="full"),
    Claim("stationary-slope", "That gradient falls at least like 1/t.",
          "O(1/t)", "<= -0.9", unit="exponent", scales="full"),
    Claim("amortize-monotone", "More inner steps on one gradient always give a lower loss: 1, 5, 10, 20.",
          "Fig. 1 to 3", "== 1", unit="share of pairs", scales="quick full"),
    Claim("amortize-10", "Ten inner steps against one, after 150 gradients.",
          "Fig. 1 to 3", "<= 0.5", unit="x the loss", scales="quick full"),
    Claim("amortize-5", "Five inner steps against one.", "Fig. 1 to 3", "reported", unit="x the loss",
          scales="quick full"),
    Claim("amortize-20", "Twenty inner steps against one.", "Fig. 1 to 3", "reported", unit="x the loss",
          scales="quick full"),
    Claim("beats-sgd", "After the same gradients its loss is below that of tuned SGD.",
          _150, "<= 0.25", unit="x SGD's loss", scales="quick full"),
    Claim("beats-adam", "After the same gradients its loss is below that of tuned Adam.",
          _150, "<= 0.6", unit="x Adam's loss", scales="quick full"),
    Claim("beats-adagrad", "The same beside AdaGrad.", _150, "reported", unit="x AdaGrad's loss", scales="quick full"),
    Claim("beats-sls", "The same beside a stochastic line search.", _150, "reported", unit="x its loss",
          scales="quick full"),
    Claim("untuned-sgd", "Without tuning (step 1/L) beside tuned SGD.", "not in the paper", "reported",
          unit="x SGD's loss", scales="quick full"),
    Claim("untuned-adam", "Without tuning (step 1/L) beside tuned Adam.", "not in the paper", "reported",
          unit="x Adam's loss", scales="quick full"),
    Claim("default-adam", "Without tuning and with the published inner search, beside tuned Adam.",
          "not in the paper", "reported", unit="x Adam's loss", scales="quick full"),
    Claim("kl-adam", "KL surrogate without tuning, published inner search, beside tuned Adam.",
          "not in the paper", "reported", unit="x Adam's loss", scales="quick full"),
    Claim("kl-lbfgs-adam", "KL surrogate without tuning, L-BFGS inside, beside tuned Adam.",
          "not in the paper", "reported", unit="x Adam's loss", scales="quick full"),
    Claim("gradients", "A loss of 0.05 takes fewer gradients than the best tuned peer needs.",
          "target of ours", ">= 2", unit="x fewer", scales="quick full"),
    Claim("delay-0", "Time to a loss of 0.05 beside tuned Adam, gradients without delay.",
          "not in the paper", "reported", unit="x faster", scales="quick full"),
    Claim("delay-1", "The same when a gradient takes 1 ms more.", "not in the paper", "reported", unit="x faster",
          scales="quick full"),
    Claim("delay-10", "When a gradient takes 10 ms more, it is faster than tuned Adam.",
          "expensive gradients", "> 1", unit="x faster", scales="quick full"),
    Claim("delay-100", "When a gradient takes 100 ms more, it is faster than tuned Adam.",
          "expensive gradients", "> 1", unit="x faster", scales="quick full"),
    Claim("delay-crossover", "The delay of a gradient from which on it is faster than tuned Adam.",
          "not in the paper", "reported", unit="ms", scales="quick full"),
    Claim("convex-linear", "Least squares that can be interpolated: the error falls at a linear rate.",
          "linear rate", "== 1", unit="share of quarters with a steady fall", scales="full"),
    Claim("convex-noisy", "Least squares with noise, step over the root of t: how the error falls.",
          "O(1/sqrt(t))", "<= -0.4", unit="exponent", scales="full"),
    Claim("imitation-cartpole", "CartPole: its return at half the questions beside Adam's at all.",
          "Fig. 4: fewer environment steps", ">= 0", unit="return", scales="full"),
    Claim("imitation-pendulum", "Pendulum: its return at half the questions beside Adam's at all.",
          "Fig. 4: fewer environment steps", ">= 0", unit="return", scales="full"),
    Claim("imitation-cartpole-replay", "CartPole: the same beside Adam that keeps all answers.",
          "not in the paper", "reported", unit="return", scales="full"),
    Claim("imitation-pendulum-replay", "Pendulum: the same beside Adam that keeps all answers.",
          "not in the paper", "reported", unit="return", scales="full"),
    Claim("libsvm-mushrooms", "Linear models on mushrooms: its loss beside the best tuned peer's.",
          "Fig. 1 and 2", "<= 1", unit="x the loss", scales="paper"),
    Claim("libsvm-ijcnn", "Linear models on ijcnn1.", "Fig. 1 and 2", "<= 1", unit="x the loss", scales="paper"),
    Claim("libsvm-rcv1", "Linear models on rcv1.", "Fig. 1 and 2", "<= 1", unit="x the loss", scales="paper"),
    Claim("factorization", "A badly conditioned matrix factorization.", "appendix", "<= 1", unit="x the loss",
          scales="paper"),
    Claim("mujoco-hopper", "Hopper: its return at half the questions beside Adam's at all.", "Fig. 4", ">= 0",
          unit="return", scales="paper"),
    Claim("mujoco-walker2d", "Walker2d: the same.", "Fig. 4", ">= 0", unit="return", scales="paper"),
]  # fmt: skip
SNIPPET = """
import torch
from torch import nn
from torch.nn import functional as F
from steepest.optim import TargetSurrogate

g = torch.Generator().manual_seed(0)
x = torch.randn(256, 8, generator=g)
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 2))
opt = TargetSurrogate(model.parameters(), target_lr=1.0, divergence="kl", inner="lbfgs")
for _ in range(20):
    loss = opt.step(lambda: model(x), lambda z: F.cross_entropy(z, y))   # one gradient of the loss
print(f"{loss:.3f} after {opt.info['loss_calls']} gradients and {opt.info['forward_calls']} calls of the model")
"""
FIGURES = [
    Figure("loss", "A gradient of the loss goes further in target space", "loss", "gradients of the loss",
           "training cross-entropy (nats)", log_y=True,
           methods=("SSO", "SSO, KL and L-BFGS", "Adam", "SLS", "AdaGrad", "SGD"),
           caption="Digits, 64-32-10, batches of 125, the same for all. SSO and peers tuned on a seed of its own; KL "
           "runs untuned. Line: median over seeds, band: 10 to 90 %."),
    Figure("delay", "It pays when a gradient takes milliseconds", "delay", "delay of a gradient (ms)",
           "seconds to a loss of 0.05", log_x=True, log_y=True,
           caption="Median processor time of the steps plus the delay of every gradient, which is added, not slept."),
    Figure("amortization", "More steps on one gradient, lower loss", "amortization", "gradients of the loss",
           "training cross-entropy (nats)", log_y=True,
           caption="Digits, step 1/L = 2, the published inner search; median and 10 to 90 % over seeds."),
    Figure("bound", "The surrogate touches the loss and stays above it", "bound", "steps of length one along a step",
           "cross-entropy (nats)", methods=("loss", "surrogate, Euclidean", "surrogate, KL"),
           caption="Digits, full batch, along the line through an outer step; 0 is the start, 1 its end. For "
           "cross-entropy the KL surrogate is the loss."),
    Figure("stationarity", "The gradient vanishes faster than 1/t", "stationarity", "outer step",
           "smallest squared gradient so far", log_x=True, log_y=True,
           caption="All digits as one batch, 64-32-10, step 1/L; median and 10 to 90 % over seeds."),
    Figure("convex", "Least squares: linear with interpolation, a root of t at worst with noise", "convex",
           "outer step", "squared error above its minimum", log_x=True, log_y=True,
           caption="400 rows, 20 unknowns, batches of 5, inner minimization to machine precision."),
    Figure("pendulum", "Pendulum: more learned from every answer", "imitation pendulum", "questions to the expert",
           "average return", methods=("SSO", "Adam", "Adam, replay"),
           caption="DAgger, 100 questions a round, 8 episodes for every value; the expert reaches -165. Median and "
           "10 to 90 % over seeds."),
    Figure("cartpole", "CartPole: the same", "imitation cartpole", "questions to the expert", "average return",
           methods=("SSO", "Adam", "Adam, replay"),
           caption="DAgger, 100 questions a round, 8 episodes for every value; 500 is the most. Median and 10 to 90 % "
           "over seeds."),
]  # fmt: skip
REASONS = {
    "beats-adam": "Adam's largest rate, 0.1, wins its tuning and ends between 0.003 and 0.024 depending on the seed, "
    "so that a few seeds settle no ratio; at 0.03 it ends at 0.019 to 0.022, four times the loss of SSO, which does "
    "not depend on the seed.",
    "delay-10": "the two meet at 4 to 10 ms, where an outer step of about 8 ms of processor time is paid back by the "
    "gradients saved: 23 to 25 against 51 and 72 for Adam, by seed.",
}
WHEN_NOT = [
    "The gradient of the loss costs about as much as a pass through the model, as in most supervised training: an "
    "outer step costs ten passes, so that Adam is done earlier (see the delays).",
    "Labels can be stored and used again: training on all of them learns more from each (see the replay rows).",
    "The model draws random numbers in its forward pass (dropout, sampled layers): the surrogate then bounds nothing.",
    "The loss is not smooth, or it depends on more than the outputs of the batch (for a penalty on weights there is "
    "weight_decay).",
]


def run(ctx: Context) -> None:
    """Measure all claims of this scale."""
    if ctx.scale == "paper":
        from steepest.studies import target_surrogate_paper

        target_surrogate_paper.measure(ctx)
        return
    ctx.progress(0.0)
    theory.majorization(ctx)
    theory.along_a_step(ctx)
    ctx.progress(0.1)
    theorems = ctx.wants("stationary-slope")
    digits.measure(ctx, (0.1, 0.5 if theorems else 1.0))
    if theorems:
        theory.stationarity(ctx)
        ctx.progress(0.6)
        theory.convex_rates(ctx)
        ctx.progress(0.7)
        imitation.measure(ctx)
