"""Tests of the BO-REP study: its problems with known answers, the fairness of its comparisons, its readers of texts."""

import json
import math
import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from steepest.bilevel import hypergradient
from steepest.bilevel.tasks import hyper_cleaning
from steepest.studies import bo_rep as study
from steepest.studies import bo_rep_exact as exact
from steepest.studies import bo_rep_paper as paper
from steepest.studies import bo_rep_tasks as tasks
from steepest.studies.context import Context, Job, Unavailable

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "bo-rep.md"


def context(scale="tiny", **options):
    return Context(study, Job("bo-rep", scale, **options))


# ------------------------------------------------------------------------------------------------------------ problems


def test_the_noisy_quadratic_is_what_it_says():
    case = exact.NoisyQuadratic.draw(3, noise=0.2, distance=2.5)
    problem = case.problem
    y = case.R @ problem.x0 + case.s
    gradient, _ = hypergradient(problem, problem.x0, y)
    assert torch.allclose(gradient, case.A @ problem.x0 + case.c, atol=1e-9)
    assert case.gradient_norm(problem.x0) == pytest.approx(1)
    assert case.gradient_norm(case.optimum) < 1e-12
    assert torch.linalg.vector_norm(problem.x0 - case.optimum).item() == pytest.approx(2.5)


def test_the_noise_has_no_mean_and_the_deviation_it_says():
    case = exact.NoisyQuadratic.draw(0, noise=0.2)
    generator = torch.Generator().manual_seed(0)
    y = case.problem.y0.clone().requires_grad_()
    full = torch.autograd.grad(case.problem.lower(case.problem.x0, y, None), y)[0]
    draws = [case.problem.sample_lower(generator, None) for _ in range(2000)]
    noise = torch.stack(
        [torch.autograd.grad(case.problem.lower(case.problem.x0, y, s), y)[0] - full for s in draws[:300]]
    )
    assert noise.mean(0).abs().max() < 0.2
    assert torch.stack(draws).std(0).numpy() == pytest.approx(0.2, rel=0.1)


def test_the_exploding_problem_explodes():
    problem = exact.exploding_problem()
    gradient, _ = hypergradient(problem, problem.x0, problem.y0)
    assert gradient.item() == pytest.approx(4 * math.sinh(12))


def test_runs_end_where_the_exploding_problem_has_no_number():
    ctx = context(n_seeds=1)
    exact.unbounded(ctx)
    paths = {s.method: s.values for s in ctx.series_log}
    assert np.cosh(4 * 0.999 * exact.LARGEST) < math.inf
    assert paths["BO-REP"][-1] < exact.START
    for name in ("aid_cg", "itd", "stocBiO"):
        assert paths[name] == pytest.approx([3, abs(3 - 0.05 * 4 * math.sinh(12))], rel=1e-3)
    results = {r.id: r.value for r in ctx.results()}
    assert results["unbounded-aid"] == paths["aid_cg"][-1]


def test_an_epsilon_that_is_not_reached_leaves_the_exponent_unmeasured(monkeypatch):
    monkeypatch.setattr(exact, "LIMIT", 30)
    ctx = context("full")
    exact.complexity(ctx)
    result = {r.id: r for r in ctx.results()}["exponent"]
    assert result.value is None
    assert result.reason.startswith("seed 1 does not come to a mean gradient norm of 0.1125 within 30 upper steps")
    assert all(np.isfinite(s.values).all() for s in ctx.series_log)


def test_wrong_labels_are_those_that_the_task_redrew():
    """A head that is sure of class c has a small loss on a sample exactly where its label is c."""
    problem, _ = hyper_cleaning(seed=4)
    labels = torch.zeros(800, dtype=torch.long)
    for c in range(10):
        y = torch.zeros_like(problem.y0)
        y[-1, c] = 30.0
        ridge = 1e-3 * 900
        losses = [2 * (float(problem.lower(problem.x0, y, torch.tensor([i]))) - ridge) for i in range(800)]
        labels[torch.tensor(losses) < 1] = c
    from sklearn.datasets import load_digits

    true = load_digits().target[np.random.default_rng(4).permutation(1797)][:800]
    np.testing.assert_array_equal(labels.numpy() != true, tasks.wrong_labels(4))
    assert 0.3 < tasks.wrong_labels(4).mean() < 0.4


# ------------------------------------------------------------------------------------------------------------ fairness


@pytest.mark.parametrize("name", tasks.WAYS)
def test_every_way_spends_its_budget_and_no_more(name):
    way = tasks.WAYS[name]
    budget = 700
    outcome = tasks.solve(tasks.Trial("cleaning", name, 0.1, 1.0, 0, budget))
    assert budget - way.each - 3 <= outcome.calls <= budget
    refined = way.method is tasks.bo_rep and name != "without refinement"
    assert way.steps(3000) == int((3000 - 496 * refined) / way.each)


def test_a_logged_run_tells_its_path_and_both_accuracies():
    o = tasks.solve(tasks.Trial("cleaning", "BO-REP", 0.8, 1.0, 1, 120, epochs=1, log=True))
    spent, losses = zip(*o.path, strict=True)
    assert list(spent) == sorted(spent)
    assert spent[-1] == o.calls
    assert losses[-1] == pytest.approx(o.ends)
    assert o.start == pytest.approx(math.log(10))
    assert 0.5 < o.accuracy <= 1
    assert 0.5 < o.own <= 1
    assert o.x.shape == (800,)


def test_a_run_that_breaks_off_is_never_the_best():
    o = tasks.solve(tasks.Trial("cleaning", "itd", 1.0, 1e8, 0, 400))
    assert o.validation == o.ends == math.inf
    assert math.isnan(o.accuracy)


def test_grids_are_equal_for_all():
    for grids in tasks.LR_X.values():
        assert len(grids["length"]) == len(grids["factor"]) >= 4
    assert set(tasks.ABLATIONS.values()) | {"BO-REP", *tasks.RIVALS} == set(tasks.WAYS)


def test_the_best_rate_is_taken_on_the_tuning_seed(monkeypatch):
    asked = []

    def solve(trial):
        asked.append(trial)
        return types.SimpleNamespace(validation=abs(trial.lr_x - 300) + trial.lr_y, calls=1)

    monkeypatch.setattr(tasks, "solve", solve)
    ctx = context()
    tasks.compare(ctx, "cleaning", ["itd"], 100, 3, (1.0, 2.0), [5, 6])
    tuning, final = asked[:6], asked[6:]
    assert {t.seed for t in tuning} == {ctx.seed}
    assert [(t.lr_x, t.lr_y, t.seed, t.log) for t in final] == [(300, 1, 5, True), (300, 1, 6, True)]
    assert "lr_x 300, lr_y 1, the best of 6, at the edge" in ctx.notes_log[0]


# ------------------------------------------------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def tiny():
    ctx = context()
    study.run(ctx)
    return ctx


@pytest.mark.slow
def test_tiny_run_reports_every_claim_of_its_scales(tiny):
    results = {r.id: r for r in tiny.results()}
    for claim in study.CLAIMS:
        if claim.scales != "paper":
            assert results[claim.id].value is not None, claim.id
    assert results["period-count"].value <= 2.5
    assert results["unbounded-aid"].value >= 0.5
    assert results["unbounded-ours"].value < 0.5
    assert results["refinement"].value < 1
    assert results["quadratic"].value < 1


@pytest.mark.slow
def test_tiny_run_keeps_what_the_figures_need(tiny):
    assert {f.series for f in study.FIGURES} <= {s.name for s in tiny.series_log}
    theory = [s for s in tiny.series_log if s.method == "theory"]
    assert {s.name for s in theory} == {"exploding", "complexity", "refinement"}
    picture = study.PICTURES[0]
    ink = types.SimpleNamespace(text="k", muted="0.5", categories=["C0", "C1"])
    figure = Figure(figsize=picture.size)
    picture.draw(figure, tiny.arrays_log[picture.arrays], ink)
    assert len(figure.axes) == 1


def test_the_snippet_and_the_page_run(capsys):
    exec(compile(study.SNIPPET, "SNIPPET", "exec"), {})
    without, with_cleaning = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[-2:])
    assert with_cleaning > without
    namespace: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert namespace["result"].success


def test_reasons_belong_to_claims():
    assert set(study.REASONS) <= {c.id for c in study.CLAIMS}
    assert study.WHEN_NOT


# --------------------------------------------------------------------------------------------------------- paper scale


@pytest.fixture
def folder(tmp_path):
    """Small made files in the forms of the real ones."""
    rng = np.random.default_rng(0)
    good, bad = ["fine", "nice", "lovely"], ["poor", "ugly", "broken"]
    vectors = {word: rng.standard_normal(5) + (2 if word in good else -2) for word in good + bad}
    lines = [f"{word} {' '.join(f'{v:.4f}' for v in vector)}" for word, vector in vectors.items()]
    (tmp_path / "glove.tiny.txt").write_text("\n".join([*lines, "unused 0 0 0 0 0"]))

    def text(label):
        return " ".join(rng.choice(good if label else bad, size=3))

    reviews = [{"text": text(i % 2), "label": "positive" if i % 2 else "negative", "domain": domain}
               for domain in ("books", "automotive") for i in range(50)]  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(reviews))
    kinds = ["contradiction", "entailment", "neutral", "-"]
    for part in ("train", "dev", "test"):
        pairs = [{"sentence1": text(i % 2), "sentence2": "Fine!", "gold_label": kinds[i % 4]} for i in range(24)]
        (tmp_path / f"snli_1.0_{part}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tweets = [f'"{4 * (i % 2)}","{i}","date","NO_QUERY","name","{text(i % 2)}, ""ok"""' for i in range(30)]
    (tmp_path / "training.1600000.processed.noemoticon.csv").write_text("\n".join(tweets), encoding="latin-1")
    return tmp_path


def test_readers_of_texts(folder):
    reviews = paper.read_reviews(folder / "dataset.json")
    assert {domain: len(found) for domain, found in reviews.items()} == {"books": 50, "automotive": 50}
    assert {label for _, label in reviews["books"]} == {0, 1}
    pairs = paper.read_snli(folder / "snli_1.0_dev.jsonl")
    assert len(pairs) == 18
    assert pairs[0][0].endswith(" | Fine!")
    assert [label for _, label in pairs[:3]] == [2, 0, 1]
    tweets = paper.read_sentiment140(folder / "training.1600000.processed.noemoticon.csv")
    assert len(tweets) == 30
    assert tweets[1][0].endswith('"ok"')
    assert tweets[1][1] == 1
    assert paper.words("It's Fine!") == ["it", "'", "s", "fine", "!"]
    with pytest.raises(ValueError, match="glove"):
        paper.read_glove(folder / "glove.tiny.txt", ["absent"])


def test_padding_does_not_change_what_a_text_means(folder):
    texts = paper.Texts.of([("fine nice", 1), ("fine nice absent", 0)], folder / "glove.tiny.txt", torch.device("cpu"))
    x = texts.start(4, 0)
    first, second = texts.encode(x, torch.tensor([0, 1]))
    assert torch.allclose(first, second)
    assert torch.allclose(first, texts.encode(x, torch.tensor([0]))[0])
    assert not torch.allclose(first, torch.full_like(first, -1.0))


def test_paper_scale_runs_on_files(folder, monkeypatch):
    monkeypatch.setattr(paper, "TASKS", 6)
    monkeypatch.setattr(paper, "TEST_TASKS", 3)
    monkeypatch.setattr(paper, "EPOCHS", 1)
    monkeypatch.setattr(paper, "LR_X", {unit: grid[:1] for unit, grid in paper.LR_X.items()})
    ctx = context("paper", data=str(folder), n_seeds=1, max_steps=2, options={"encoder": "3"})
    study.run(ctx)
    results = {r.id: r for r in ctx.results()}
    for part in ("representation", "regularization", "cleaning"):
        assert -100 <= results[f"paper-{part}"].value <= 100


def test_paper_scale_says_what_is_missing(tmp_path, folder):
    (folder / "dataset.json").unlink()
    with pytest.raises(Unavailable, match=r"no dataset\.json"):
        paper.representation(folder, 3, torch.device("cpu"), 0)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Unavailable, match=r"snli_1\.0_train"):
        study.run(context("paper", data=str(empty), options={"encoder": "3"}))
    with pytest.raises(ValueError, match="encoder must be"):
        study.run(context("paper", data=str(folder), options={"encoder": "0"}))
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable, match="CUDA"):
            study.run(context("paper", data=str(folder)))
