"""The 31 methods: key, room, name, one plain sentence, bibliography entry."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from steepest.core.errors import value_error

__all__ = ["METHODS", "Method", "find", "has_study", "load_study", "module_name", "search"]


@dataclass(frozen=True)
class Method:
    """One row of the registry."""

    key: str
    area: str
    name: str
    sentence: str
    bib: str


# fmt: off
METHODS: dict[str, Method] = {
    m.key: m
    for m in (
        Method("adamp", "optim", "AdamP and SGDP", "Momentum optimizers that keep step sizes honest when layers are normalized.", "heo2021adamp"),
        Method("adahessian", "optim", "AdaHessian", "Adam with the Hessian's diagonal in place of the squared gradient.", "yao2021adahessian"),
        Method("sophia", "optim", "Sophia", "A clipped step scaled by a diagonal curvature estimate, made for language models.", "liu2024sophia"),
        Method("mfac", "optim", "M-FAC", "Exact inverse products with the empirical Fisher, for pruning and for training.", "frantar2021mfac"),
        Method("target-surrogate", "optim", "Target-based surrogates", "Reuses each expensive gradient for several cheap parameter steps.", "lavington2023target"),
        Method("sgd-stability", "landscape", "Stability of SGD", "Says how close a training run is to losing stability.", "wu2023implicit"),
        Method("batch-spectrum", "landscape", "Batch spectrum", "Predicts extreme curvature and the right learning rate for another batch size.", "granziol2022learning"),
        Method("matrix-sensing", "landscape", "Matrix sensing", "Recovers a low-rank matrix by gradient descent on its factors.", "xiong2024overparameterization"),
        Method("large-step-logistic", "landscape", "Large-step logistic regression", "A linear classifier trained by gradient descent with arbitrarily large steps.", "tyurin2025logistic"),
        Method("lv-hba", "bilevel", "LV-HBA", "Solves constrained bilevel problems in one loop, without Hessians.", "yao2024constrained"),
        Method("bo-rep", "bilevel", "BO-REP", "Bilevel optimization where smoothness grows with the gradient.", "hao2024bilevel"),
        Method("bsvrb", "bilevel", "BSVRB", "Many bilevel problems at once, a few blocks a step.", "hu2023blockwise"),
        Method("sketched-newton", "constrained", "Sketched Newton", "Constrained optimization with randomized inner solves.", "hong2023constrained"),
        Method("sinkhorn-newton", "transport", "Sinkhorn-Newton-Sparse", "Sharp or very exact transport plans in tens of iterations.", "tang2024accelerating"),
        Method("cbo", "particles", "Consensus-based optimization", "Finds global minima of black boxes with a swarm that agrees.", "riedl2023gradient"),
        Method("convex-relu", "convex", "Convex ReLU networks", "Two-layer ReLU networks trained to the global optimum, with a certificate.", "bai2023efficient"),
        Method("fedfix", "federated", "FedFix", "Asynchronous federated learning with weights that theory approves.", "fraboni2022general"),
        Method("fzoos", "federated", "FZooS", "Federated optimization from function values only.", "shu2023federated"),
        Method("diff2", "federated", "DIFF2", "Private distributed learning from differences of gradients.", "murata2023diff2"),
        Method("dadao", "federated", "DADAO", "Decentralized optimization without rounds or a server.", "nabli2023dadao"),
        Method("harpg", "policy", "HARPG and N-PG-IGT", "Policy gradients with recursive variance reduction.", "fatkhullin2023stochastic"),
        Method("mdpo", "policy", "MDPO", "Policy optimization by mirror descent.", "tomar2022mirror"),
        Method("rvgp", "manifold", "Vector-field Gaussian processes", "Smooth vector fields on a manifold that only the data know.", "peach2024implicit"),
        Method("heat-geodesic", "manifold", "Heat-geodesic embedding", "Low-dimensional pictures that keep distances along the data.", "huguet2023heat"),
        Method("augmented-covariance", "manifold", "Augmented covariance", "Classifies EEG by covariances of delay-embedded signals.", "carrara2024classification"),
        Method("rectified-flow", "generative", "Rectified flow", "Generates and transfers data along straight paths.", "liu2023flow"),
        Method("score-estimation", "generative", "Score estimation", "Score matching with a stopping rule that theory gives.", "han2024neural"),
        Method("deep-conjugate-direction", "physics", "Deep conjugate directions", "Poisson systems solved along learned directions.", "kaneda2023deep"),
        Method("hard-constraint-moe", "physics", "Hard constraints by experts", "Networks that obey a differential equation exactly, at scale.", "chalapathi2024scaling"),
        Method("giorom", "physics", "GIOROM", "Simulates materials on a sparse graph of few points.", "viswanath2024reduced"),
        Method("wing-pressure", "physics", "Wing pressure", "Pressure on wings from Riemannian features of the surface.", "hu2024incorporating"),
    )
}
# fmt: on


def find(key: str) -> Method:
    """Look a method up by its key; ``-`` and ``_`` are the same.

    Raises
    ------
    ValueError
        No such key; the message suggests the nearest.

    Examples
    --------
    >>> find("heat_geodesic").area
    'manifold'
    """
    wanted = key.strip().lower().replace("_", "-")
    if wanted in METHODS:
        return METHODS[wanted]
    words = {m.name.lower(): m.key for m in METHODS.values()} | {k: k for k in METHODS}
    near = difflib.get_close_matches(wanted, words, n=1, cutoff=0.4)
    raise value_error(
        "key", "the key of a method", key, f"did you mean {words[near[0]]!r}?" if near else "see `steepest list`"
    )


def search(word: str) -> Method:
    """Find a method by key, or by a word of its name or its paper's title that no other method has.

    Examples
    --------
    >>> search("SGDP").key
    'adamp'
    """
    from steepest.studies import bibliography

    try:
        return find(word)
    except ValueError:
        wanted = word.strip().lower()
        hits = [
            m
            for m in METHODS.values()
            if wanted and (wanted in m.name.lower() or wanted in bibliography.entry(m.bib).title.lower())
        ]
        if len(hits) == 1:
            return hits[0]
        raise


def module_name(key: str) -> str:
    """Name the module that holds the study of `key`."""
    return f"steepest.studies.{key.replace('-', '_')}"


def has_study(key: str) -> bool:
    """Whether the study of `key` is part of this version."""
    return importlib.util.find_spec(module_name(key)) is not None


def load_study(key: str) -> ModuleType:
    """Import the study of `key`."""
    return importlib.import_module(module_name(find(key).key))
