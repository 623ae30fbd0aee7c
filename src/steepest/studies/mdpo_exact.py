"""What can be checked exactly about mirror descent on policies: its step and rate, m = 1, SAC as a special case."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.distributions import Categorical

from steepest.core.random import numpy_generator
from steepest.policy import OffPolicyMDPO, OnPolicyMDPO, mdpo_policy_loss, mirror_step
from steepest.policy._streams import Streams
from steepest.studies.claim import slope_fit
from steepest.studies.context import Context

GAMMA, STATES, ACTIONS = 0.9, 20, 4


def exact_statements(ctx: Context) -> None:
    """All of them."""
    inner_steps_reach_the_exact_step(ctx)
    iterates_converge(ctx)
    one_step_does_not_see_kl(ctx)
    sac_is_a_special_case(ctx)


class Tabular:
    """A random Markov decision process, valued exactly: garnet transitions, rewards uniform on [0, 1]."""

    def __init__(self, seed: int) -> None:
        rng = numpy_generator(seed)
        self.move = torch.as_tensor(rng.dirichlet(np.full(STATES, 0.1), size=(STATES, ACTIONS)))  # (s, a, s')
        self.reward = torch.as_tensor(rng.random((STATES, ACTIONS)))

    def values(self, pi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """V (s,) and advantages (s, a) of a policy (s, a)."""
        transition = torch.einsum("sa,sat->st", pi, self.move)
        eye = torch.eye(STATES, dtype=pi.dtype)
        V = torch.linalg.solve(eye - GAMMA * transition, (pi * self.reward).sum(1))
        return V, self.reward + GAMMA * self.move @ V - V[:, None]

    def optimum(self) -> torch.Tensor:
        """V of the best policy, by policy iteration."""
        greedy = torch.zeros(STATES, dtype=torch.int64)
        while True:
            V, A = self.values(torch.nn.functional.one_hot(greedy, ACTIONS).double())
            better = A.argmax(1)
            if bool((A.gather(1, better[:, None]).squeeze(1) <= 1e-12).all()):
                return V
            greedy = better


def inner_steps_reach_the_exact_step(ctx: Context) -> None:
    """Many gradient steps on the sampled loss, all actions once with their weights, against `mirror_step`."""
    mdp = Tabular(ctx.seed)
    logits = torch.zeros(STATES, ACTIONS, dtype=torch.float64)
    old = Categorical(logits=logits)
    _, A = mdp.values(old.probs)
    t, n = 1.0, ctx.pick(tiny=300, quick=500, full=1000, paper=1000)
    exact = mirror_step(old.logits, A, t).exp()
    states = torch.arange(STATES).repeat_interleave(ACTIONS)
    actions = torch.arange(ACTIONS).repeat(STATES)
    weight = ACTIONS * old.probs[states, actions]
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    distances = []
    for _ in range(n):
        new = Categorical(logits=logits)
        distances.append(float((new.probs.detach() - exact).abs().sum(1).max() / 2))
        rows, before = Categorical(logits=logits[states]), Categorical(logits=old.logits[states])
        loss, _ = mdpo_policy_loss(
            rows, before, rows.log_prob(actions), before.log_prob(actions), weight * A[states, actions], 1 / t
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ctx.series("inner", [(k + 1, max(d, 1e-16)) for k, d in enumerate(distances)], method="measured")
    ctx.measured("mirror-inner", distances[-1])


def iterates_converge(ctx: Context) -> None:
    """Gap to the optimum of the exact iteration with exact advantages, t = 1."""
    slopes, n = [], ctx.pick(tiny=100, quick=500, full=1000, paper=1000)
    for seed in ctx.seeds:
        mdp = Tabular(seed)
        best = mdp.optimum()
        log_pi = torch.full((STATES, ACTIONS), 1 / ACTIONS, dtype=torch.float64).log()
        gaps = []
        for _ in range(n):
            V, A = mdp.values(log_pi.exp())
            gaps.append(float((best - V).mean()))
            log_pi = mirror_step(log_pi, A, 1.0)
        k = np.arange(1, n + 1)
        shown = (np.array(gaps) > 1e-10) & (k >= 10)
        slopes.append(slope_fit(k[shown], np.array(gaps)[shown])[0])
        ctx.series("gap", [(float(i), g) for i, g in zip(k, gaps, strict=True) if g > 1e-10], method="MDPO", seed=seed)
        if seed == ctx.seeds[0]:
            ctx.series("gap", [(float(i), gaps[0] / float(i)) for i in k], method="theory")
    ctx.measured("mirror-rate", max(slopes), (min(slopes), max(slopes)))


def one_step_does_not_see_kl(ctx: Context) -> None:
    """Parameters after an iteration of one gradient step, for KL weights a factor of 10 apart; and of ten steps."""
    for m, claim in ((1, "one-step"), (10, "ten-steps")):
        models = [
            OnPolicyMDPO("MlpPolicy", "CartPole-v1", n_steps=256, n_policy_steps=m, kl_coef=c, seed=0, device="cpu")
            for c in (0.3, 3.0)
        ]
        a, b = (model.learn(256).policy.state_dict() for model in models)
        ctx.measured(claim, max(float((a[name] - b[name]).abs().max()) for name in a))


def sac_is_a_special_case(ctx: Context) -> None:
    """Kappa equal to lambda, beside Stable-Baselines3's SAC with the same seed."""
    from stable_baselines3 import SAC

    steps = ctx.pick(tiny=130, quick=600, full=600, paper=600)

    def shared() -> dict[str, Any]:
        return {
            "learning_starts": 100,
            "batch_size": 64,
            "seed": 0,
            "device": "cpu",
            "policy_kwargs": {"net_arch": [64, 64]},
        }

    with Streams().own(torch.device("cpu")):
        sac = SAC("MlpPolicy", "Pendulum-v1", ent_coef=0.2, **shared()).learn(steps)
    ours = OffPolicyMDPO(
        "MlpPolicy", "Pendulum-v1", kl_coef=0.2, ent_coef=0.2, actor_q="min", output_regularization=0.0,
        **shared(),
    ).learn(steps)  # fmt: skip
    a, b = sac.policy.state_dict(), ours.policy.state_dict()
    ctx.measured("sac-identity", max(float((a[name] - b[name]).abs().max()) for name in a))
