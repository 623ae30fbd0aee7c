"""A recurrent encoder that several classifiers of token sequences share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from steepest.bilevel._tasks_common import DTYPE, Evaluate, make_evaluate
from steepest.bilevel.problem import BilevelProblem
from steepest.core.errors import check, one_of, optional, positive
from steepest.core.random import numpy_generator

__all__ = ["rnn_representation"]

RIDGE = 1e-2
LATENT = 4  # dimensions of the meaning of a token
MEMORY = 0.9  # by which what was read fades with every further token
N_TEST = 400


def rnn_representation(
    n_tasks: int = 8,
    n_train: int = 200,
    n_validation: int = 200,
    length: int = 12,
    vocabulary: int = 30,
    hidden: int = 16,
    cell: str = "lstm",
    spectral_radius: float | None = None,
    seed: int | np.random.Generator | None = 0,
) -> tuple[BilevelProblem, Evaluate]:
    r"""Learn the recurrent encoder x on which linear heads y, trained for each task, do best on validation data.

        lower  mean over tasks of { mean CE(h_x(s) y_i + b_i) on training sequences + 1/2 1e-2 (|y_i|^2 + b_i^2) }
        upper  mean over tasks of   mean CE on validation sequences

    h_x(s) is the last hidden state of a one-layer LSTM or a tanh network. Generated: every token has a meaning in R^4;
    what is read adds up and fades by 0.9 with every further token; a task asks on which side of its own plane through
    the origin ``tanh`` of the sum lies, bent by one product of two coordinates.

    Parameters
    ----------
    n_tasks, n_train, n_validation, length, vocabulary, hidden : int
        Tasks, sequences of each for training and for validation (400 more for testing), tokens of a sequence, different
        tokens, hidden units.
    cell : "lstm" or "rnn"
    spectral_radius : float, optional
        Of the recurrent weights at the start (for an LSTM, of those of each gate). By default they are normal with
        variance 1 / hidden.
    seed : int, numpy.random.Generator or None
        Of data and start.

    Returns
    -------
    problem : BilevelProblem
        x = {input (vocabulary, g hidden), recurrent (hidden, g hidden), bias (g hidden,)}, g = 4 gates (input, forget,
        cell, output) or 1; y (n_tasks, hidden + 1), zeros, its last column the offsets. float64. Batches are indices
        (n_tasks, size): `size` sequences of every task, 64 where none is given.
    evaluate : callable
        ``evaluate(x, y=None)``: test accuracies ``own`` and ``retrained``, means over tasks.

    Raises
    ------
    ValueError, TypeError
        An argument outside its limits.

    Examples
    --------
    >>> rnn_representation(n_tasks=3, hidden=5)[0]
    BilevelProblem('rnn_representation', x: 720, y: 18)
    """
    sizes = {"n_tasks": n_tasks, "n_train": n_train, "n_validation": n_validation, "length": length}
    sizes |= {"vocabulary": vocabulary, "hidden": hidden}
    for name, value in sizes.items():
        check(name, value, positive(integer=True))
    check("cell", cell, one_of("lstm", "rnn"))
    check("spectral_radius", spectral_radius, optional(positive()))
    rng = numpy_generator(seed)
    n = n_train + n_validation + N_TEST
    tokens = rng.integers(vocabulary, size=(n_tasks, n, length))
    labels = _labels(tokens, rng, vocabulary)
    parts = [n_train, n_validation, N_TEST]
    S, S_val, S_test = torch.tensor(tokens).split(parts, 1)
    c, c_val, c_test = torch.tensor(labels, dtype=DTYPE).split(parts, 1)
    encode = _lstm if cell == "lstm" else _tanh_network

    def logits(x: dict[str, Tensor], y: Tensor, S: Tensor) -> Tensor:  # (n_tasks, B)
        h = encode(x, S.reshape(-1, length)).view(n_tasks, -1, hidden)
        return torch.einsum("ibh,ih->ib", h, y[:, :-1]) + y[:, -1:]

    def loss(x: dict[str, Tensor], y: Tensor, S: Tensor, c: Tensor, batch: Tensor | None) -> Tensor:
        if batch is not None:
            S, c = S.take_along_dim(batch.unsqueeze(2), 1), c.take_along_dim(batch, 1)
        return binary_cross_entropy_with_logits(logits(x, y, S), c)

    def lower(x: dict[str, Tensor], y: Tensor, batch: Tensor | None) -> Tensor:
        return loss(x, y, S, c, batch) + RIDGE / 2 * y.square().sum() / n_tasks

    def upper(x: dict[str, Tensor], y: Tensor, batch: Tensor | None) -> Tensor:
        return loss(x, y, S_val, c_val, batch)

    def drawer(n: int) -> Callable[[torch.Generator, int | None], Tensor]:
        return lambda generator, size: torch.randint(n, (n_tasks, 64 if size is None else size), generator=generator)

    problem = BilevelProblem(
        upper,
        lower,
        _start(rng, vocabulary, hidden, 4 if cell == "lstm" else 1, spectral_radius),
        torch.zeros(n_tasks, hidden + 1, dtype=DTYPE),
        sample_upper=drawer(n_validation),
        sample_lower=drawer(n_train),
        name="rnn_representation",
    )

    @torch.no_grad()
    def score(x: dict[str, Tensor], y: Tensor) -> float:
        return float(((logits(x, y, S_test) > 0) == (c_test > 0)).double().mean())

    return problem, make_evaluate(problem, score)


def _labels(tokens: np.ndarray, rng: np.random.Generator, vocabulary: int) -> np.ndarray:  # (n_tasks, n)
    meaning = rng.standard_normal((vocabulary, LATENT))
    planes = rng.standard_normal((len(tokens), LATENT))
    fading = MEMORY ** np.arange(tokens.shape[2])[::-1]
    s = np.tanh(np.einsum("ints,t->ins", meaning[tokens], fading) / np.sqrt((fading**2).sum()))
    sides = np.einsum("ins,is->in", s, planes) + s[..., 0] * s[..., 1]
    return (sides > 0).astype(float)


def _start(
    rng: np.random.Generator, vocabulary: int, hidden: int, gates: int, spectral_radius: float | None
) -> dict[str, Tensor]:
    recurrent = rng.standard_normal((gates, hidden, hidden)) / np.sqrt(hidden)
    if spectral_radius is not None:
        radii = np.abs(np.linalg.eigvals(recurrent)).max(1)
        recurrent *= (spectral_radius / radii)[:, None, None]
    bias = np.zeros((gates, hidden))
    if gates == 4:
        bias[1] = 1.0  # the forget gate starts open, as is customary
    return {
        "input": torch.tensor(rng.standard_normal((vocabulary, gates * hidden)) / 2, dtype=DTYPE),
        "recurrent": torch.tensor(np.concatenate(list(recurrent), 1), dtype=DTYPE),
        "bias": torch.tensor(bias.reshape(-1), dtype=DTYPE),
    }


def _lstm(x: dict[str, Tensor], tokens: Tensor) -> Tensor:  # (B, length) -> (B, hidden)
    h = c = x["recurrent"].new_zeros(len(tokens), len(x["recurrent"]))
    for read in x["input"][tokens].unbind(1):
        i, f, g, o = (read + h @ x["recurrent"] + x["bias"]).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return h


def _tanh_network(x: dict[str, Tensor], tokens: Tensor) -> Tensor:  # (B, length) -> (B, hidden)
    h = x["recurrent"].new_zeros(len(tokens), len(x["recurrent"]))
    for read in x["input"][tokens].unbind(1):
        h = torch.tanh(read + h @ x["recurrent"] + x["bias"])
    return h
