"""Tests of training at the papers' size."""

import math
import os
import socket

import numpy as np
import pytest
import torch

from steepest.studies.context import Unavailable
from steepest.studies.language import GPTConfig
from steepest.studies.pretraining import Pretraining, TokenFile, pretrain
from tests import processes

TINY = GPTConfig(vocab=17, block=8, n_layer=2, n_head=2, n_embd=8)
SMALL = Pretraining(model=TINY, sequences=4, micro=2, steps=6, warmup=2, eval_each=3, eval_batches=4)


def adamw(params, lr, weight_decay=0.1):
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay)


def write_tokens(folder, n=2000, vocab=17):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        (rng.integers(vocab, size=n) // 4).astype("<u2").tofile(folder / f"{part}.bin")
    return folder


def test_tokens_are_read_from_nanogpts_format(tmp_path):
    np.arange(500, dtype="<u2").tofile(tmp_path / "train.bin")
    with pytest.raises(FileNotFoundError, match=r"val\.bin is missing"):
        TokenFile(tmp_path)
    np.arange(9, dtype="<u2").tofile(tmp_path / "val.bin")
    data = TokenFile(tmp_path)
    x, y = data.batch("train", 7, 10, torch.Generator().manual_seed(0))
    assert x.shape == (7, 10)
    assert x.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert torch.equal(x[:, 1:], y[:, :-1])
    with pytest.raises(ValueError, match=r"val\.bin must be more than 10 tokens long, got 9"):
        data.batch("val", 1, 10, torch.Generator())


def test_the_large_schedule():
    plan = Pretraining()
    assert plan.tokens_per_step() == 491_520
    assert plan.lr(0, 6e-4) == pytest.approx(6e-4 / 2001)
    assert plan.lr(2000, 6e-4) == pytest.approx(6e-4)
    assert plan.lr(51_000, 6e-4) == pytest.approx((6e-4 + 3e-5) / 2)
    assert plan.lr(100_000, 6e-4) == pytest.approx(3e-5)
    short = plan.prefix(10_000)
    assert (short.steps, short.warmup) == (10_000, 200)
    assert plan.prefix(None) is plan


def test_pretraining_learns_from_token_files(tmp_path):
    seen = []
    plan = Pretraining(model=TINY, sequences=16, micro=8, steps=20, warmup=2, eval_each=10, eval_batches=8, min_lr=1e-3)
    result = pretrain(plan, adamw, {"lr": 3e-2}, data=write_tokens(tmp_path), on_eval=lambda s, v: seen.append((s, v)))
    assert result["steps"] == [10, 20]
    assert seen == list(zip(result["steps"], result["losses"]))
    assert result["value"] < 1.9 < math.log(17)  # five equally frequent values: log 5 = 1.61 at best
    assert not result["random_tokens"]
    assert result["tokens"] == 20 * 16 * 8


def test_accumulation_equals_one_large_batch(tmp_path):
    folder = write_tokens(tmp_path)
    values = []
    for micro in (1, 2, 4):
        plan = Pretraining(
            model=TINY, sequences=4, micro=micro, steps=5, warmup=1, eval_each=5, eval_batches=8 // micro
        )
        values.append(pretrain(plan, lambda p, lr: torch.optim.SGD(p, lr=lr), {"lr": 0.5}, data=folder)["value"])
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_a_few_steps_run_without_data_and_are_marked():
    result = pretrain(
        Pretraining(model=TINY, sequences=2, micro=1, eval_batches=1), adamw, {"lr": 1e-3}, data=None, max_steps=2
    )
    assert result["random_tokens"]
    assert result["value"] == pytest.approx(math.log(17), rel=0.1)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(Unavailable, match="--data DIR"):
        pretrain(Pretraining(), adamw, {"lr": 1e-3}, data=None)
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable, match="need a CUDA device; --max-steps 20"):
            pretrain(Pretraining(), adamw, {"lr": 1e-3}, data=write_tokens(tmp_path), max_steps=21)
    with pytest.raises(ValueError, match=r"sequences must be a multiple of 1 processes x 2 \(micro\), got 3"):
        pretrain(Pretraining(model=TINY, sequences=3, micro=2, steps=1), adamw, {"lr": 1e-3}, data=None)


def _rank(rank, port, queue):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    queue.put((rank, pretrain(SMALL, adamw, {"lr": 1e-2}, data=None)))


@pytest.mark.slow
def test_two_processes_agree():
    context = processes.context()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    queue = context.Queue()
    workers = [context.Process(target=_rank, args=(r, port, queue)) for r in range(2)]
    for w in workers:
        w.start()
    results = dict(queue.get(timeout=120) for _ in workers)
    for w in workers:
        w.join(30)
    assert results[0]["losses"] == results[1]["losses"]
    assert results[0]["processes"] == 2
    assert math.isfinite(results[0]["value"])
