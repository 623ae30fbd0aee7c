"""Tests of the mirror descent study: statistics, training runs that do not disturb, and a tiny run."""

import functools

import numpy as np
import pytest
import torch

from steepest.policy import mirror_step
from steepest.studies import mdpo as study
from steepest.studies import mdpo_cleanrl, mdpo_exact, mdpo_learning
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.policy_learning import Contender, Outcome, Score, Trial, gain, improvement, pooled, train, tuned
from tests.studies import check_study as check


def fake(env, *, seed, quality):
    """An algorithm whose episodes last 10 steps and pay `quality` in all; nothing learns."""

    class Model:
        num_timesteps = 0

        def learn(self, steps, callback):
            callback.init_callback(self)
            callback.on_training_start({}, {})
            for step in range(10, steps + 1, 10):
                callback.num_timesteps = step
                callback.locals = {"infos": [{"episode": {"r": quality + seed}}]}
                callback._on_step()
            callback.on_training_end()

        def get_env(self):
            return env

        logger = None

    np.random.random()
    return Model()


def test_score_and_curve_by_hand():
    trial = Trial("a", fake, "CartPole-v1", 100, 0)
    outcome = Outcome(trial, [(10, 5.0), (60, 15.0), (80, 260.0), (99, 260.0)], [], 0.0)
    assert outcome.score == 260
    assert outcome.normalized == pytest.approx(0.5)
    assert outcome.curve(points=4, window=1) == [(25, 5), (50, 5), (75, 15), (100, 260)]
    assert Outcome(trial, [(10, 5.0)], [], 0.0).score == 5


def test_the_best_setting_on_the_tuning_seed_is_run_on_the_others():
    before = np.random.get_state()[1].tolist()
    c = Contender("a", fake, [{"quality": 1.0}, {"quality": 3.0}, {"quality": 2.0}])
    found = tuned([c], "CartPole-v1", 50, tuning_seed=0, seeds=[1, 2])["a"]
    assert [o.score for o in found] == [4, 5]
    assert np.random.get_state()[1].tolist() == before


def test_statistics_of_runs():
    score = pooled([[0.1, 0.2, 0.3, 0.4], [10.0, 10.0, 10.0, 10.0]])
    assert score.low <= score.value <= score.high
    constant = pooled([[1.0, 1.0], [3.0, 3.0]])  # each environment keeps its runs: nothing to vary
    assert (constant.low, constant.high) == (constant.value, constant.value) == (2.0, 2.0)
    assert improvement([[1, 2], [5, 5]], [[0, 0], [5, 5]]) == 0.75
    assert Score(0.9, 0.85, 0.95).on_par(Score(1.0, 0.94, 1.1))
    assert not Score(0.9, 0.85, 0.93).on_par(Score(1.0, 0.94, 1.1))
    assert Score(0.96, 0.955, 0.965).on_par(Score(1.0, 0.99, 1.1))


def test_gain_is_a_difference_of_interquartile_means():
    assert gain([[3.0, 3.0]], [[1.0, 1.0]]) == (2.0, (2.0, 2.0))
    value, (low, high) = gain([[0.0, 1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0, 0.0]])
    assert value == 1.5
    assert low < 1.5 < high


def test_steps_of_all_environments_count():
    setting = {"tricks": True, "n_steps": 64}
    outcome = train(Trial("MDPO", mdpo_learning.mdpo, "CartPole-v1", 128, 1, setting, record_kl=True, n_envs=4))
    assert [step for step, _ in outcome.kl] == [64, 128]
    assert max(step for step, _ in outcome.returns) <= 128
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="n_steps"):
        train(Trial("MDPO", mdpo_learning.mdpo, "CartPole-v1", 96, 1, {"tricks": True, "n_steps": 0}))
    assert torch.get_num_threads() == before


SCRIPT = """
import sys
if "Broken" in " ".join(sys.argv):
    raise KeyError("final_observation")
import helper
seed = int(sys.argv[sys.argv.index("--seed") + 1])
steps = int(sys.argv[sys.argv.index("--total-timesteps") + 1])
assert "--no-cuda" in sys.argv and "--autotune" in sys.argv and "--learning-starts" in sys.argv
print("SPS: 7")
for step in range(99, steps, 100):
    print(f"global_step={step}, episodic_return=[-{1000 + seed}.5]")
print("global_step=400, episodic_return=-1e+02")
"""


def cleanrl_context(folder):
    (folder / "cleanrl").mkdir()
    (folder / "helper.py").write_text("")  # the checkout is importable
    (folder / "cleanrl" / "sac_continuous_action.py").write_text(SCRIPT)
    return Context(study, Job("mdpo", "full", options={"cleanrl": str(folder)}))


def test_scripts_of_cleanrl_are_run_and_read(tmp_path):
    ctx = cleanrl_context(tmp_path)
    outcomes = mdpo_cleanrl.cleanrl(ctx, "CleanRL SAC", "Pendulum-v1", 350, [3, 4], 1, learning_starts=100)
    assert [o.trial.seed for o in outcomes] == [3, 4]
    assert outcomes[0].returns == [(99, -1003.5), (199, -1003.5), (299, -1003.5), (400, -100.0)]
    assert outcomes[1].score == (-1004.5 - 100) / 2
    assert outcomes[0].seconds > 0


def test_what_scripts_of_cleanrl_lack_is_said(tmp_path, monkeypatch):
    ctx = cleanrl_context(tmp_path)
    ours = Outcome(Trial("MDPO, off-policy", None, "Broken-v1", 100, 1), [(90, -500.0)], [], 0.0)
    mdpo_learning.beside_cleanrl(ctx, "cleanrl-sac", "CleanRL SAC", {"Broken-v1": [ours]}, learning_starts=10)
    assert (
        "ended with an error (KeyError: 'final_observation'); it may want an older" in ctx._measured["cleanrl-sac"][2]
    )
    with pytest.raises(Unavailable, match=r"CleanRL has no ppo_continuous_action\.py"):
        mdpo_cleanrl.cleanrl(ctx, "CleanRL PPO", "Pendulum-v1", 100, [1], 1)
    monkeypatch.setattr(mdpo_cleanrl.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="CleanRL is not installed"):
        mdpo_cleanrl.cleanrl(Context(study, Job("mdpo", "full")), "CleanRL SAC", "Pendulum-v1", 100, [1], 1)


def test_beside_cleanrl(tmp_path):
    ctx = cleanrl_context(tmp_path)
    run = functools.partial(Outcome, kl=[], seconds=0.0)
    ours = [run(Trial("MDPO, off-policy", None, "Pendulum-v1", 350, s), [(340, -150.0)]) for s in (3, 4)]
    mdpo_learning.beside_cleanrl(ctx, "cleanrl-sac", "CleanRL SAC", {"Pendulum-v1": ours}, learning_starts=100)
    value, (low, high), _ = ctx._measured["cleanrl-sac"]
    assert value == pytest.approx(((1003.5 + 100) / 2 + (1004.5 + 100) / 2) / 2 / 1100 - 150 / 1100)
    assert low <= value <= high


def test_training_twice_is_the_same_and_records_kl():
    trial = Trial("MDPO", mdpo_learning.mdpo, "CartPole-v1", 96, 1, {"tricks": True, "n_steps": 32}, True, True)
    a, b = train(trial), train(trial)
    assert a.returns == b.returns
    assert len(a.returns) > 0
    assert a.kl == b.kl
    assert [step for step, _ in a.kl] == [32, 64, 96]
    assert all(k > 0 for _, k in a.kl)


def test_tabular_values_by_hand():
    mdp = mdpo_exact.Tabular(0)
    pi = torch.full((20, 4), 0.25, dtype=torch.float64)
    V, A = mdp.values(pi)
    torch.testing.assert_close((pi * A).sum(1), torch.zeros(20, dtype=torch.float64), atol=1e-12, rtol=0)
    best = mdp.optimum()
    assert (best >= V - 1e-12).all()
    improved, _ = mdp.values(mirror_step(pi.log(), A, 1.0).exp())
    assert (improved >= V - 1e-12).all()  # a step of mirror descent improves every state


@pytest.fixture(scope="module")
def tiny():
    return check.run_tiny(study)


@pytest.mark.slow
def test_tiny_run_reports_every_claim_and_draws(tiny):
    check.check_measured(study, tiny, unless=("not installed",))
    check.check_logged(study, tiny, fewer=("steps", "pendulum"))
    assert tiny.best_peer is not None


@pytest.mark.slow
def test_what_does_not_depend_on_size_holds_even_at_tiny(tiny):
    assert tiny._measured["sac-identity"][0] <= 1e-6
    assert tiny._measured["one-step"][0] <= 1e-7
    assert tiny._measured["ten-steps"][0] > 1e-5
    assert tiny._measured["mirror-rate"][0] <= -1


def test_the_paper_needs_mujoco():
    if mdpo_learning.installed("mujoco"):
        pytest.skip("here it would train for days")
    with pytest.raises(Unavailable, match="MuJoCo"):
        study.run(Context(study, Job("mdpo", "paper")))


@pytest.mark.slow
def test_a_few_steps_of_the_paper(monkeypatch):
    monkeypatch.setattr(mdpo_learning, "installed", lambda package: package == "sb3_contrib")
    monkeypatch.setattr(mdpo_learning, "RATES", (1e-3,))
    ctx = Context(study, Job("mdpo", "paper", n_seeds=1, max_steps=256))
    study.run(ctx)
    ratio, _, reason = ctx._measured["paper-on-policy-ratio"]
    assert "learned anything" in reason if ratio is None else np.isfinite(ratio)
    assert "MuJoCo" in ctx._measured["paper-off-policy"][2]


def test_the_snippet_and_the_page_run():
    check.check_texts(study)
