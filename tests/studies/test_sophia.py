"""Tests of the Sophia study."""

import math
import re
from pathlib import Path

import pytest
import torch

from steepest.studies import sophia as study
from steepest.studies import sophia_exact as problems
from steepest.studies import sophia_paper
from steepest.studies.context import Context, Job, Unavailable
from steepest.studies.language import GPTConfig
from steepest.studies.runner import run_study

TINY = GPTConfig(vocab=31, block=8, n_layer=1, n_head=2, n_embd=8)


@pytest.fixture(scope="module")
def tiny():
    ctx = Context(study, Job("sophia", "tiny"))
    study.run(ctx)
    return ctx


# ---------------------------------------------------------------------------------------------------------- exact


def test_the_update_is_the_transcription():
    assert problems.update_difference() <= 1e-12


@pytest.mark.parametrize("change", ["gamma", "eps", "sign", "betas"])
def test_a_wrong_update_is_noticed(monkeypatch, change):
    class Wrong(problems.Sophia):
        def __init__(self, *args, **options):
            if change == "gamma":
                options["gamma"] *= 1.01
            if change == "betas":
                options["betas"] = (0.965, 0.999)
            if change == "eps":
                options["eps"] = 1e-2
            super().__init__(*args, **options)

        def step(self, closure=None):
            result = super().step(closure)
            if change == "sign":
                for state in self.state.values():
                    state["hessian"].abs_()
            return result

    monkeypatch.setattr(problems, "Sophia", Wrong)
    assert problems.update_difference() > 1e-6


def test_estimators_are_unbiased():
    error, within = problems.gnb_bias(1500, torch.Generator().manual_seed(3))
    assert error < 0.1
    assert within == 1.0
    error, signs = problems.hutchinson_bias(3000, torch.Generator().manual_seed(3))
    assert error < 0.1
    assert signs == 1.0


def test_true_labels_would_be_noticed(monkeypatch):
    def empirical(logits, generator):
        labels = torch.arange(len(logits)) % logits.shape[-1]
        return torch.nn.functional.cross_entropy(logits, labels)

    monkeypatch.setattr(problems, "sampled_label_loss", empirical)
    error, within = problems.gnb_bias(50, torch.Generator().manual_seed(3))
    assert error > 0.2
    assert within < 0.5


def test_the_step_is_bounded():
    assert 1 - 1e-9 <= problems.largest_toy_step() <= 1 + 1e-6


def test_steps_do_not_depend_on_the_condition_number_while_gradient_descent_slows_down():
    assert problems.sophia_steps(10.0) == problems.sophia_steps(1e5) < 60
    assert problems.gradient_descent_steps(1e3, 5_000) > 4 * problems.gradient_descent_steps(10.0, 5_000)
    assert problems.gradient_descent_steps(1e3, 100) == 100


def test_minima_of_the_picture():
    x = torch.linspace(-1, 2, 30001, dtype=torch.float64)
    values = problems._picture(torch.stack([x, torch.full_like(x, 4.0)], 1))
    inner = (values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])
    minima = x[1:-1][inner]
    assert len(minima) == 2
    for at in minima:
        point = torch.stack([at, torch.tensor(4.0, dtype=torch.float64)])
        assert bool(problems._arrived(point))
        assert not bool(problems._arrived(point + torch.tensor([0.0, 0.05])))
    assert not bool(problems._arrived(torch.tensor([0.5, 4.0], dtype=torch.float64)))  # lower than the left minimum


def test_steps_on_the_picture():
    steps = problems.picture_steps()
    off_axis = problems._starts()[:, 1] != 4
    assert int(off_axis.sum()) == 20
    assert bool((steps["Sophia"] <= 6).all())
    for name in ("gradient descent", "Adam", "SignGD"):
        assert bool((3 * steps["Sophia"] <= steps[name])[off_axis].all()), name


# ------------------------------------------------------------------------------------------------------ the study


def test_every_claim_but_the_papers_is_measured(tiny):
    results = {r.id: r for r in tiny.results()}
    for claim in study.CLAIMS:
        measured = results[claim.id].value is not None
        assert measured == (claim.scales != "paper"), claim.id
        if measured:
            assert not math.isnan(results[claim.id].value), claim.id


def test_every_figure_finds_its_series(tiny):
    logged = {s.name for s in tiny.series_log}
    assert {f.series for f in study.FIGURES} <= logged
    assert len({f.id for f in study.FIGURES}) == len(study.FIGURES)


def test_budgets_and_cuts_are_in_the_result(tiny):
    assert any("2 trials per optimizer instead of 4" in n for n in tiny.notes_log)
    assert any("sha256" in n for n in tiny.notes_log)
    assert tiny.best_peer.peer == "AdamW"


def test_losses_repeat_with_the_seed(tiny):
    again = Context(study, Job("sophia", "tiny"))
    study._language(again)
    first, second = ({r.id: r.value for r in c.results()} for c in (tiny, again))
    for key in ("lower-loss-g", "lower-loss-h", "fewer-steps-g", "peer-quality", "sweep-each"):
        assert first[key] == second[key]


def test_operations_of_the_estimates():
    extra = study._extra_operations(study.language_task())
    assert extra["g"] == pytest.approx(0.05, rel=0.02)  # forward and backward on half the batch, every 10 steps
    assert 1 / 160 < extra["h"] < 4 / 160  # one of 16 sequences, with a double backward


def test_a_missing_peer_costs_its_row(monkeypatch):
    monkeypatch.setattr(study, "installed", lambda package: False)
    assert study._peers(slow=True) == []


def test_the_snippet_runs():
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randint(9, (4, 6), generator=g), torch.randint(9, (4, 6), generator=g)) for _ in range(12)]
    model = torch.nn.Sequential(torch.nn.Embedding(9, 5), torch.nn.Linear(5, 9))
    names = {"model": model, "batches": batches}
    exec(study.SNIPPET, names)
    assert len(names["optimizer"].state) == 3
    assert names["optimizer"].unclipped_fraction() >= 0


def test_the_lines_of_the_page_run():
    page = Path(__file__).parents[2] / "docs" / "methods" / "sophia.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(block, names)
        assert math.isfinite(float(names["loss"].detach()))


def test_the_paper_scale_says_what_is_missing():
    record, _ = run_study(Job("sophia", "paper"))
    assert record.status == "skipped"
    assert "--data" in record.reason
    with pytest.raises(Unavailable):
        study.run(Context(study, Job("sophia", "paper", max_steps=21)))


def test_the_paper_scale_runs_a_few_steps(monkeypatch):
    monkeypatch.setattr(sophia_paper, "GPT2_SMALL", TINY)
    ctx = Context(study, Job("sophia", "paper", max_steps=4, options={"micro": "1"}))
    study.run(ctx)
    results = {r.id: r for r in ctx.results()}
    for key in ("gpt2-small-official", "gpt2-small-tuned"):
        assert math.isfinite(results[key].value)
    assert any("Random tokens" in n for n in ctx.notes_log)
    lengths = {s.method: s.steps[-1] for s in ctx.series_log}
    assert lengths == {"AdamW": 4, "Sophia-G": 2}
