"""Training a GPT at the papers' size: one process, or as many as ``torchrun`` starts.

Tokens in nanoGPT's ``train.bin`` and ``val.bin`` (uint16, mapped), gradient accumulation up to 480 sequences a step,
bfloat16 autocast and cosine schedule; any optimizer, estimates of curvature included.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from steepest.core.errors import at_least, check, value_error
from steepest.core.random import torch_generator
from steepest.studies.context import Unavailable
from steepest.studies.language import GPT, GPT2_SMALL, GPTConfig
from steepest.studies.task import Curvature, decay_groups, estimate_curvature, fresh_model

__all__ = ["CODE_TEST_STEPS", "Pretraining", "TokenFile", "pretrain", "processes"]

CODE_TEST_STEPS = 20


class TokenFile:
    """Tokens in nanoGPT's format: ``train.bin`` and ``val.bin``, raw little-endian uint16, mapped, never read whole.

    Parameters
    ----------
    folder : path
        Holds both files.

    Raises
    ------
    FileNotFoundError
        A file is missing; the text says how to make it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        for part in ("train", "val"):
            if not (self.folder / f"{part}.bin").is_file():
                raise FileNotFoundError(
                    f"{self.folder / f'{part}.bin'} is missing: give the folder of train.bin and val.bin (uint16 "
                    "tokens, as nanoGPT's data/openwebtext/prepare.py writes them)"
                )

    def tokens(self, part: str) -> np.ndarray:
        """Map ``"train"`` or ``"val"``; mapped anew on each call, so that pages do not pile up."""
        return np.memmap(self.folder / f"{part}.bin", dtype="<u2", mode="r")

    def batch(self, part: str, n: int, block: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `n` sequences: inputs and targets (n, block), on the CPU."""
        data = self.tokens(part)
        if len(data) <= block:
            raise value_error(f"{part}.bin", f"more than {block} tokens long", len(data))
        starts = torch.randint(len(data) - block, (n,), generator=generator).tolist()
        rows = torch.from_numpy(np.stack([data[s : s + block + 1] for s in starts]).astype(np.int64))
        return rows[:, :-1], rows[:, 1:]


class _RandomTokens:
    """Uniform tokens in place of a data set: runs the code, teaches nothing."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def batch(self, part: str, n: int, block: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(self.vocab, (n, block + 1), generator=generator)
        return rows[:, :-1], rows[:, 1:]


@dataclass(frozen=True)
class Pretraining:
    """A large run. The defaults are GPT-2 small as the paper trains it.

    Parameters
    ----------
    model : GPTConfig
    sequences : int
        Per step, over all processes; accumulation fills up to it.
    micro : int
        Sequences in one forward pass of one process.
    steps, warmup : int
        Length of the cosine schedule and of the linear warm-up.
    min_lr : float
        Learning rate at the end.
    clip : float
        Largest gradient norm.
    eval_each, eval_batches : int
        Steps between evaluations, micro-batches of each.
    """

    model: GPTConfig = GPT2_SMALL
    sequences: int = 480
    micro: int = 12
    steps: int = 100_000
    warmup: int = 2_000
    min_lr: float = 3e-5
    clip: float = 1.0
    eval_each: int = 1_000
    eval_batches: int = 200

    def lr(self, step: int, peak: float) -> float:
        """Learning rate of step 0..steps-1."""
        if step < self.warmup:
            return peak * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (peak - self.min_lr)

    def prefix(self, max_steps: int | None) -> Pretraining:
        """The same run with a schedule of `max_steps` steps; the warm-up stays the same part of it."""
        if max_steps is None or max_steps >= self.steps:
            return self
        check("max_steps", max_steps, at_least(1, integer=True))
        return replace(self, steps=max_steps, warmup=round(self.warmup * max_steps / self.steps))

    def tokens_per_step(self) -> int:
        """Tokens that one step sees."""
        return self.sequences * self.model.block


def pretrain(
    plan: Pretraining,
    make: Callable[..., Optimizer],
    setting: Mapping[str, Any],
    *,
    data: str | os.PathLike[str] | None,
    curvature: Curvature | None = None,
    seed: int = 0,
    max_steps: int | None = None,
    on_eval: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a GPT at scale, in one process or under ``torchrun`` (then every process calls this).

    Parameters
    ----------
    plan : Pretraining
    make : callable
        ``make(params, lr=..., **setting) -> Optimizer``.
    setting : mapping
        Hyperparameters, ``lr`` (the peak) among them.
    data : path or None
        Folder of ``train.bin`` and ``val.bin``.
    curvature : Curvature, optional
        How the optimizer gets its estimates; ``share`` is the part of the step's sequences that they see.
    seed : int
        Initial weights and data order (every process reads its own stream).
    max_steps : int, optional
        Run a schedule of so many steps. Up to 20 steps run on a CPU and without data, on random tokens.
    on_eval : callable, optional
        ``on_eval(step, validation_loss)``, on the first process.

    Returns
    -------
    dict
        ``value`` (final validation loss in nats per token), ``steps``, ``losses`` (validation), ``seconds``,
        ``tokens``, ``random_tokens``, ``processes``.

    Raises
    ------
    Unavailable
        More than 20 steps without data or without a CUDA device.
    FileNotFoundError
        `data` lacks one of the two files.
    ValueError
        `sequences` does not divide among processes and micro-batches.
    """
    plan = plan.prefix(max_steps)
    code_test = plan.steps <= CODE_TEST_STEPS
    if data is None and not code_test:
        raise Unavailable("no token files: --data DIR names the folder of train.bin and val.bin (uint16 tokens)")
    if not torch.cuda.is_available() and not code_test:
        raise Unavailable(f"{plan.steps} steps need a CUDA device; --max-steps {CODE_TEST_STEPS} or fewer run on a CPU")
    source = TokenFile(data) if data is not None else _RandomTokens(plan.model.vocab)
    with processes() as (rank, world, device):
        if plan.sequences % (plan.micro * world):
            raise value_error("sequences", f"a multiple of {world} processes x {plan.micro} (micro)", plan.sequences)
        result = _pretrain(plan, make, setting, source, curvature, seed, on_eval, rank, world, device)
    return result | {"random_tokens": data is None}


@contextmanager
def processes() -> Iterator[tuple[int, int, torch.device]]:
    """Join the group that ``torchrun`` describes in the environment, if there is one and nobody has joined yet.

    Yields rank, number of processes and device. A study that calls `pretrain` several times holds it open around all.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    started = world > 1 and not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield rank, world, device
    finally:
        if started:
            dist.destroy_process_group()


def _pretrain(
    plan: Pretraining,
    make: Callable[..., Optimizer],
    setting: Mapping[str, Any],
    source: TokenFile | _RandomTokens,
    curvature: Curvature | None,
    seed: int,
    on_eval: Callable[[int, float], None] | None,
    rank: int,
    world: int,
    device: torch.device,
) -> dict[str, Any]:
    model: GPT = fresh_model(plan.model.build, seed).to(device)  # type: ignore[assignment]
    optimizer = make(decay_groups(model), **setting)
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    unsynchronized: Callable[[], AbstractContextManager[Any]] = (
        wrapped.no_sync if isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext
    )
    order = torch_generator(seed * 65_537 + rank)
    labels = torch_generator(seed * 65_537 + rank, device)
    amp: Callable[[], AbstractContextManager[Any]] = (
        (lambda: torch.autocast("cuda", torch.bfloat16)) if device.type == "cuda" else nullcontext
    )
    n_micro = plan.sequences // (plan.micro * world)
    n_estimate = max(1, round(curvature.share * n_micro)) if curvature else 0
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps, losses = [], []
    start = time.perf_counter()

    for step in range(plan.steps):
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = plan.lr(step, peak)
        if curvature is not None and optimizer.hessian_due():  # type: ignore[attr-defined]
            for _ in range(n_estimate):  # on the bare model: the optimizer reduces over processes itself
                x, y = _to(source.batch("train", plan.micro, plan.model.block, order), device)
                with amp(), model.twice() if curvature.kind == "hutchinson" else nullcontext():
                    whole = replace(curvature, share=1.0)
                    estimate_curvature(optimizer, model, x, y, whole, generator=labels, weight=1 / n_estimate)
        optimizer.zero_grad(set_to_none=True)
        for i in range(n_micro):
            x, y = _to(source.batch("train", plan.micro, plan.model.block, order), device)
            with unsynchronized() if i < n_micro - 1 else nullcontext():
                with amp():
                    loss = F.cross_entropy(wrapped(x).flatten(0, 1), y.flatten()) / n_micro
                loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        optimizer.step()
        if (step + 1) % plan.eval_each == 0 or step + 1 == plan.steps:
            value = _evaluate(plan, model, source, amp, rank, world, device)
            steps.append(step + 1)
            losses.append(value)
            if rank == 0 and on_eval is not None:
                on_eval(step + 1, value)
    return {
        "value": losses[-1],
        "steps": steps,
        "losses": losses,
        "seconds": time.perf_counter() - start,
        "tokens": plan.tokens_per_step() * plan.steps,
        "processes": world,
    }


@torch.no_grad()
def _evaluate(
    plan: Pretraining,
    model: GPT,
    source: TokenFile | _RandomTokens,
    amp: Callable[[], AbstractContextManager[Any]],
    rank: int,
    world: int,
    device: torch.device,
) -> float:
    """Mean validation loss over the same random sequences at every call, shared among the processes."""
    model.eval()
    generator = torch_generator(1_000_003 + rank)
    total = torch.zeros((), device=device)
    n = max(1, plan.eval_batches // world)
    for _ in range(n):
        x, y = _to(source.batch("val", plan.micro, plan.model.block, generator), device)
        with amp():
            total += F.cross_entropy(model(x).flatten(0, 1), y.flatten()).float()
    model.train()
    total /= n
    if world > 1:
        dist.all_reduce(total)
        total /= world
    return float(total)


def _to(pair: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    if device.type == "cpu":
        return pair
    x, y = (t.pin_memory().to(device, non_blocking=True) for t in pair)
    return x, y
