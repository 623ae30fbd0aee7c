"""The language-model task: a small GPT on the bytes of Python's own help, or of any UTF-8 file.

First 90 % of the text for training, the rest for validation in two halves. `studies.pretraining` trains the same model
at the size of GPT-2.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steepest.core.errors import at_least, check, one_of, value_error
from steepest.core.random import torch_generator
from steepest.studies.training import Split, Task, fresh_model

__all__ = [
    "FULL",
    "GPT",
    "GPT2_SMALL",
    "MEDIUM",
    "QUICK",
    "GPTConfig",
    "describe_text",
    "language_task",
    "load_text",
    "require_same_text",
]

Level = Literal["byte", "char"]

# ------------------------------------------------------------------------------------------------------------ text


@lru_cache(maxsize=4)
def _read(name: str) -> str:
    if name != "pydoc":
        return Path(name).read_text(encoding="utf-8")
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:
        raise FileNotFoundError(
            "the embedded corpus is the module pydoc_data of Python's standard library, which this distribution lacks: "
            "install the package that holds it (Debian: libpython3-stdlib), or give the path of a UTF-8 file"
        ) from None
    return "\n".join(topics[key] for key in sorted(topics))


def load_text(name: str | os.PathLike[str] = "pydoc", level: Level = "byte") -> tuple[Tensor, Tensor, int]:
    """Read a text and split it: the first 90 % for training, the last 10 % for validation.

    Parameters
    ----------
    name : str or path
        ``"pydoc"``, or any UTF-8 file.
    level : "byte" or "char"
        Bytes have a vocabulary of 256; characters are numbered in sorted order.

    Returns
    -------
    train, val : LongTensor (n,)
    vocab : int
        Size of the vocabulary.

    Raises
    ------
    FileNotFoundError
        The file, or the module ``pydoc_data``, is missing.

    Examples
    --------
    >>> train, val, vocab = load_text()
    >>> vocab, round(len(train) / (len(train) + len(val)), 3)
    (256, 0.9)
    """
    check("level", level, one_of("byte", "char"))
    text = _read(os.fspath(name))
    if level == "byte":
        tokens, vocab = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64), 256
    else:
        alphabet, tokens = np.unique(np.array(list(text)), return_inverse=True)
        vocab = len(alphabet)
    cut = int(0.9 * len(tokens))
    data = torch.from_numpy(tokens.astype(np.int64))
    return data[:cut], data[cut:], vocab


def describe_text(name: str | os.PathLike[str] = "pydoc", level: Level = "byte") -> dict[str, Any]:
    """What identifies a text: length in tokens, vocabulary and SHA-256 of its UTF-8 bytes (kept with every result)."""
    train, val, vocab = load_text(name, level)
    digest = hashlib.sha256(_read(os.fspath(name)).encode("utf-8")).hexdigest()
    label = "pydoc" if os.fspath(name) == "pydoc" else Path(name).name
    return {"text": label, "level": level, "length": len(train) + len(val), "vocabulary": vocab, "sha256": digest}


def require_same_text(*facts: Mapping[str, Any]) -> None:
    """Refuse to put results of different texts side by side.

    Raises
    ------
    ValueError
        SHA-256, length, level or vocabulary differ.
    """
    keys = ("sha256", "length", "level", "vocabulary")
    found = {tuple(f.get(k) for k in keys) for f in facts}
    if len(found) > 1:
        raise value_error("results", "of one text", [dict(zip(keys, f)) for f in found])


# ----------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT; see `GPT`."""

    vocab: int = 256
    block: int = 64
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    bias: bool = False
    attention: Literal["sdpa", "math"] = "sdpa"
    scale_attn_by_layer: bool = False

    def build(self) -> GPT:
        """Make the model."""
        return GPT(**vars(self))


class GPT(nn.Module):
    """A decoder with pre-layer-norm, GELU, learned positions and tied input and output embeddings.

    Parameters
    ----------
    vocab, block : int
        Size of the vocabulary; longest sequence.
    n_layer, n_head, n_embd : int
        Blocks, heads and width; `n_head` divides `n_embd`.
    bias : bool
        Biases in linear layers and norms.
    attention : "sdpa" or "math"
        ``math`` can be differentiated twice, which the fused kernels cannot (Hutchinson estimates need it). The
        attribute may be changed at any time.
    scale_attn_by_layer : bool
        Divide the scores of layer i = 0, 1, ... by i + 1.

    Notes
    -----
    Weights start as N(0, 0.02), those that write into the residual stream as N(0, 0.02 / sqrt(2 n_layer)).

    Examples
    --------
    >>> model = GPT(vocab=11, block=8, n_layer=1, n_head=2, n_embd=4)
    >>> model(torch.zeros(3, 8, dtype=torch.long)).shape
    torch.Size([3, 8, 11])
    """

    def __init__(
        self,
        vocab: int = 256,
        block: int = 64,
        n_layer: int = 2,
        n_head: int = 4,
        n_embd: int = 64,
        bias: bool = False,
        attention: Literal["sdpa", "math"] = "sdpa",
        scale_attn_by_layer: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"vocab": vocab, "block": block, "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
        for name, value in sizes.items():
            check(name, value, at_least(1, integer=True))
        check("attention", attention, one_of("sdpa", "math"))
        if n_embd % n_head:
            raise value_error("n_embd", f"a multiple of n_head = {n_head}", n_embd)
        self.block, self.attention = block, attention
        self.tokens = nn.Embedding(vocab, n_embd)
        self.positions = nn.Embedding(block, n_embd)
        self.blocks = nn.ModuleList(
            _Block(n_embd, n_head, bias, layer + 1 if scale_attn_by_layer else 1) for layer in range(n_layer)
        )
        self.norm = nn.LayerNorm(n_embd, bias=bias)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                into_residual = name.endswith(("attention.project.weight", "mlp.2.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * n_layer) if into_residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (batch, length) to logits (batch, length, vocab)."""
        if x.shape[1] > self.block:
            raise value_error("x", f"at most {self.block} tokens long", x)
        h = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h, self.attention)
        return F.linear(self.norm(h), self.tokens.weight)

    @contextmanager
    def twice(self) -> Iterator[None]:
        """Within this context the model can be differentiated twice."""
        before, self.attention = self.attention, "math"
        try:
            yield
        finally:
            self.attention = before


class _Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int, bias: bool, divisor: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(n_embd, bias=bias)
        self.attention = _Attention(n_embd, n_head, bias, divisor)
        self.norm_2 = nn.LayerNorm(n_embd, bias=bias)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd, bias=bias), nn.GELU(), nn.Linear(4 * n_embd, n_embd, bias=bias)
        )

    def forward(self, h: Tensor, attention: str) -> Tensor:
        h = h + self.attention(self.norm_1(h), attention)
        return h + self.mlp(self.norm_2(h))


class _Attention(nn.Module):
    def __init__(self, n_embd: int, n_head: int, bias: bool, divisor: int) -> None:
        super().__init__()
        self.n_head, self.scale = n_head, 1 / (divisor * math.sqrt(n_embd // n_head))
        self.expand = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.project = nn.Linear(n_embd, n_embd, bias=bias)

    def forward(self, h: Tensor, attention: str) -> Tensor:
        n, length, width = h.shape
        q, k, v = self.expand(h).view(n, length, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # (n, heads, length, d)
        if attention == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        else:
            later = torch.ones(length, length, dtype=torch.bool, device=h.device).triu(1)
            scores = (q @ k.transpose(-2, -1) * self.scale).masked_fill(later, -torch.inf)
            out = scores.softmax(-1) @ v
        return self.project(out.transpose(1, 2).reshape(n, length, width))


QUICK = FULL = GPTConfig()  # 2 layers, 64 wide, 4 heads, block 64: 0.12 M parameters
MEDIUM = GPTConfig(block=128, n_layer=4, n_head=4, n_embd=128)
GPT2_SMALL = GPTConfig(vocab=50304, block=1024, n_layer=12, n_head=12, n_embd=768, scale_attn_by_layer=True)

# ------------------------------------------------------------------------------------------------- small task


def language_task(
    config: GPTConfig = QUICK,
    *,
    batch: int = 16,
    text: str | os.PathLike[str] = "pydoc",
    level: Level = "byte",
    name: str = "language",
) -> Task:
    """Make the language-model task of the studies.

    Parameters
    ----------
    config : GPTConfig
        The model; its vocabulary is set to the text's.
    batch : int
        Sequences a step, drawn uniformly from the training text with replacement.
    text, level
        See `load_text`.

    Returns
    -------
    Task
        Metric: mean cross-entropy in nats per token over disjoint windows of half A or half B.
    """
    train_tokens, val, vocab = load_text(text, level)
    config = replace(config, vocab=vocab)
    length = config.block + 1
    if len(val) // 2 < length:
        raise value_error("text", f"at least {20 * length} tokens long", len(train_tokens) + len(val))
    windows = train_tokens.unfold(0, length, 1)
    middle = len(val) // 2
    halves = {"tune": _disjoint(val[:middle], length), "held-out": _disjoint(val[middle:], length)}

    def batches(seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        starts = torch.randint(len(windows), (steps, batch), generator=torch_generator(seed))
        for row in starts:
            chosen = windows[row]
            yield chosen[:, :-1], chosen[:, 1:]

    @torch.no_grad()
    def evaluate(model: nn.Module, split: Split) -> float:
        total, count = 0.0, 0
        for part in halves[split].split(64):
            logits = model(part[:, :-1])
            total += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
            count += part[:, 1:].numel()
        return total / count

    return Task(
        name=name,
        model=lambda seed: fresh_model(config.build, seed),
        batches=batches,
        evaluate=evaluate,
        metric="validation loss (nats per token)",
        twice=lambda model: model.twice(),  # type: ignore[operator]
        facts=describe_text(text, level),
    )


def _disjoint(tokens: Tensor, length: int) -> Tensor:
    """Cut into windows (n, length) whose targets do not overlap: each begins at the last token of the one before."""
    return tokens.unfold(0, length, length - 1)
