"""Colours and markers: one table for the whole site, so that a name looks the same in every figure.

A slot is a colour and a marker (`site.css`, ``--s1`` to ``--s8``). Slot 8, grey and dashed, is for references and
limits. A name that the table lacks takes a slot that its figure leaves free, so that every figure can be drawn.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from steepest.core.errors import value_error

__all__ = ["METHOD_SLOTS", "NAME_SLOTS", "Mark", "clashes", "marks", "resolve", "slot_of_method", "token"]

METHOD_SLOTS: dict[str, int] = {
    "adamp": 1, "adahessian": 3, "sophia": 2, "mfac": 4, "target-surrogate": 5,
    "sgd-stability": 1, "batch-spectrum": 2, "matrix-sensing": 3, "large-step-logistic": 4,
    "lv-hba": 1, "bo-rep": 2, "bsvrb": 3,
    "sketched-newton": 1, "sinkhorn-newton": 1, "cbo": 1, "convex-relu": 1,
    "fedfix": 1, "fzoos": 2, "diff2": 3, "dadao": 4,
    "harpg": 1, "mdpo": 2,
    "rvgp": 1, "heat-geodesic": 2, "augmented-covariance": 3,
    "rectified-flow": 1, "score-estimation": 2,
    "deep-conjugate-direction": 1, "hard-constraint-moe": 2, "giorom": 3, "wing-pressure": 4,
}  # fmt: skip
"""The index marks a method with the slot of its key."""

OWN: dict[str, tuple[str, ...]] = {
    "adamp": ("AdamP", "SGDP"),
    "adahessian": ("AdaHessian",),
    "sophia": ("Sophia-G", "Sophia-H", "Sophia"),
    "mfac": ("M-FAC",),
    "target-surrogate": ("SSO", "SSO, KL and L-BFGS"),
    "sgd-stability": ("steepest", "exact threshold"),
    "batch-spectrum": ("learner", "predicted"),
    "matrix-sensing": ("rebalanced",),
    "large-step-logistic": ("large steps", "large steps, limit", "large steps, plain"),
    "lv-hba": ("LV-HBA", "LV-HBA, Gauss-Seidel"),
    "bo-rep": ("BO-REP",),
    "bsvrb": ("BSVRB v2", "BSVRB v1", "measured"),
    "sketched-newton": ("sketched Newton, gaussian", "sketched Newton, kaczmarz", "blocks, accelerated", "blocks"),
    "sinkhorn-newton": ("SNS", "paper's setting"),
    "diff2": ("DIFF2",),
    "dadao": ("DADAO", "DADAO, best rates"),
    "fzoos": ("FZooS", "corrected"),
    "fedfix": ("FedFix, 0.5", "FedFix, 0.2", "FedFix, 0.8"),
    "cbo": ("CBO", "hop"),
    "convex-relu": ("convex program", "convex, against perturbations", "ADMM, extrapolated", "random blocks"),
    "harpg": ("N-PG-IGT", "N-HARPG", "HARPG"),
    "mdpo": ("MDPO", "MDPO, off-policy"),
    "rectified-flow": ("1-flow", "2-flow"),
    "score-estimation": ("Mallows stop", "kernel stop"),
    "rvgp": ("RVGP",),
    "heat-geodesic": ("heat geodesic", "phate_like", "sne_like"),
    "augmented-covariance": ("augmented covariance", "automatic order and lag"),
    "deep-conjugate-direction": ("DCDM", "DCDM, memory 0", "DCDM, memory 1", "DCDM, empty box", "DCDM, obstacles"),
    "hard-constraint-moe": ("PI-HC-MoE",),
    "giorom": ("GIOROM", "moving least squares", "inference", "whole frame"),
    "wing-pressure": ("geometry", "metric", "connection", "curvature"),
}
"""The names under which a study draws its own method."""

NAME_SLOTS: dict[str, int] = {
    # methods
    "AdamP": 1, "SGDP": 3, "AdaHessian": 3, "Sophia": 2, "Sophia-G": 2, "Sophia-H": 3, "M-FAC": 4,
    # what people train with
    "AdamW": 6, "SGD": 7, "Adam": 4, "Lion": 7, "Adagrad": 2, "Shampoo": 2, "SOAP": 5, "PSGDKron": 1,
    "gradient descent": 3, "SignGD": 5, "Newton": 1, "magnitude": 6, "diagonal Fisher": 2,
    # other implementations of the same methods
    "AdamP (adamp)": 4, "AdamP (torch_optimizer)": 5, "AdamP (pytorch_optimizer)": 2,
    "SGDP (adamp)": 4, "SGDP (torch_optimizer)": 5, "SGDP (pytorch_optimizer)": 2,
    "AdaHessian (torch_optimizer)": 1, "AdaHessian (pytorch_optimizer)": 5,
    "SophiaH (pytorch_optimizer)": 4,
    # geometry: fields, pictures, covariances, wings
    "RVGP": 1, "RBF GP on Laplacian eigenvectors": 6, "RBF GP in space": 2, "spherical splines": 5,
    "heat geodesic": 2, "PHATE": 1, "Isomap": 3, "diffusion map": 4, "t-SNE": 5, "UMAP": 6, "spectral": 7,
    "augmented covariance": 3, "automatic order and lag": 4, "tangent space + SVM": 6, "tangent space + LR": 1,
    "MDM": 2, "FgMDM": 5, "CSP + LDA": 7,
    "geometry": 4, "DAN": 6, "point-wise MLP": 2, "point-wise MLP, same channels": 3, "HistGradientBoosting": 5,
    "PointNet": 1, "GCN": 7,
    # landscape
    "SSO": 5, "SSO, KL and L-BFGS": 1, "SLS": 3,
    "exact threshold": 1, "trace bound": 2, "gradient descent's limit": 7, "measured": 1, "sqrt(B)": 8,
    "B = 1": 1, "B = 4": 2, "B = 16": 3,
    "learner": 2, "predicted": 2, "measured batches": 1, "directional noise": 5, "frobenius noise": 6,
    "momentum 0": 4, "momentum 0.5": 6, "momentum 0.9": 7, "theory": 8,
    "rebalanced": 3, "two factors": 7, "two factors, k = r": 2, "ScaledGD": 6, "soft-impute": 1,
    "singular-value projection": 5, "symmetric, k = r": 2, "symmetric, k = r + 1": 7, "symmetric, k = 2r": 4,
    "large steps": 4, "large steps, limit": 1, "large steps, plain": 2, "plain": 2, "normalized": 4,
    "Perceptron": 6, "LogisticRegression": 3, "LinearSVC": 5, "SGD, perceptron loss": 7,
    "batch perceptron": 8, "bound": 8,
    # bilevel, constrained
    "LV-HBA": 1, "LV-HBA, Gauss-Seidel": 4, "BO-REP": 2, "BSVRB v1": 1, "BSVRB v2": 3, "RSVRB v1": 7, "RSVRB v2": 6,
    "aid_cg": 3, "itd": 4, "stocBiO": 5, "value_penalty": 6, "not normalized": 6, "no cleaning": 8, "one C = 1": 8,
    "equal weights": 8,
    "sketched Newton, gaussian": 1, "sketched Newton, kaczmarz": 2, "GMRES-L1-SQP": 4, "SLSQP": 5, "Ipopt": 6,
    "trust-constr": 7, "blocks, accelerated": 1, "blocks": 2, "MINRES": 3, "sparse LU": 8, "in proportion to d": 8,
    # transport
    "SNS": 1, "paper's setting": 3, "Sinkhorn": 6, "POT sinkhorn": 6, "POT stabilized": 2, "POT log": 7, "geomloss": 4,
    "ott-jax": 5, "POT emd": 8,
    # federated
    "FedFix, 0.5": 1, "FedFix, 0.2": 2, "FedFix, 0.8": 3, "asynchronous": 6, "FedBuff, 5": 5, "FedAvg": 7,
    "asynchronous, identical": 6, "asynchronous, unbiased": 2, "FedFix, 0.5, identical": 1, "FedFix, 0.5, unbiased": 3,
    "asynchronous, theory": 8, "FedFix, 0.5, theory": 8,
    "FZooS": 2, "FedZO": 6, "FedZO, prox": 7, "FedZO, scaffold 1": 1, "FedZO, scaffold 2": 5, "corrected": 2,
    "not corrected": 6, "20 differences": 6, "5 differences": 7,
    "DIFF2": 3, "DP-GD": 6, "stated noise": 3, "a quarter of the noise": 6, "epsilon = 1": 8, "slope -1": 8,
    "slope -4/3": 8, "single steps": 1, "local steps": 3, "breast cancer, logistic": 1, "breast cancer, network": 2,
    "digits, logistic": 3, "digits, network": 4,
    "DADAO": 4, "DADAO, best rates": 1, "EXTRA": 6, "gradient tracking": 7, "gossip tracking": 8, "ADOM+": 2, "MSDA": 5,
    "continuized dual": 3,
    # linear solvers
    "DCDM": 1, "DCDM, empty box": 1, "DCDM, obstacles": 2, "DCDM, memory 0": 3, "DCDM, memory 1": 4, "CG": 6,
    "IC(0)-PCG": 2, "ILU-PCG": 3, "deflated CG": 5, "pyamg, Ruge-Stuben": 4, "pyamg, aggregation": 7,
    "in proportion to the cells": 8, "white noise": 4, "smooth sources": 5, "smoke": 7,
    # hard constraints
    "PI-HC": 1, "PI-HC-MoE": 2, "PI-HC-MoE on PI-HC": 2, "PI-HC-MoE, anchored, on PI-HC": 3, "PI-HC-MoE, 2 workers": 3,
    "PI-SC": 6, "PI-SC, equal time": 6, "PI-SC, equal steps": 7, "in proportion": 8, "persistence": 8,
    "PI-SC, 15 s": 7, "PI-SC, 60 s": 6, "PI-HC, 15 s": 4, "PI-HC, 60 s": 1, "PI-HC-MoE, 60 s": 5,
    # particles
    "GIOROM": 3, "GNS": 6, "material point method": 8, "autoregression": 2, "constant velocity": 7,
    "constant acceleration": 5, "gravity between walls": 4, "moving least squares": 3, "kernel integral": 6,
    "nearest neighbor": 7, "radial basis functions": 1, "linear on triangles": 5, "PCA of early frames": 4,
    "inference": 3, "whole frame": 1,
    # flows
    "1-flow": 1, "2-flow": 2, "VP": 3, "sub-VP": 4, "OT-CFM": 5, "optimal transport": 8, "accurate solver": 1,
    "one step": 2, "eight Gaussians to moons": 1, "noise to moons": 2, "noise to checkerboard": 3,
    "noise to spirals": 4, "1-flow, 300 steps": 3, "not moved": 6,
    # scores
    "Mallows stop": 2, "kernel stop": 1, "to the end": 6, "best in hindsight": 4, "four noisings": 5, "kernel ridge": 3,
    "kernel density": 7, "Adam, held-out": 6,
    # policies
    "MDPO": 2, "MDPO, off-policy": 2, "PPO": 6, "TRPO": 7, "SAC, fixed": 1, "SAC, auto": 6, "KL weight 0.3": 1,
    "KL weight 1": 2, "KL weight 3": 3, "CleanRL SAC": 5, "CleanRL PPO": 4,
    "N-PG-IGT": 1, "N-HARPG": 2, "HARPG": 3, "momentum": 4, "policy gradient": 5, "A2C": 4, "one gradient": 8,
    "proved for N-PG-IGT": 8, "proved for policy gradient": 8,
    # particles and convex networks
    "CBO": 1, "hop": 1, "cbx": 2, "CMA-ES": 6, "differential evolution": 5, "dual annealing": 4, "N = 200": 2,
    "N = 400": 3, "N = 1000": 1, "Ackley, N = 200": 7,
    "convex program": 1, "convex, against perturbations": 1, "convex, plain": 2, "PGD training": 6, "FGSM training": 5,
    "ADMM, plain": 2, "ADMM, extrapolated": 1, "random blocks": 1, "breast cancer": 1, "breast cancer, optimum": 2,
    "digits": 3, "digits, optimum": 4, "theory, n d P": 8,
    # references and limits
    "256 sensors": 8, "vortex lattice": 8, "NeuralFoil": 8,
    "reference": 8, "limit": 8, "exact": 8, "dense": 8,
}  # fmt: skip

_MARKERS = {
    1: "circle",
    2: "square",
    3: "triangle-up",
    4: "diamond",
    5: "triangle-down",
    6: "M.5,-.87L1,0L.5,.87L-.5,.87L-1,0L-.5,-.87Z",
    7: "M-.95,-.6L-.6,-.95L0,-.35L.6,-.95L.95,-.6L.35,0L.95,.6L.6,.95L0,.35L-.6,.95L-.95,.6L-.35,0Z",
    8: "circle",
}


@dataclass(frozen=True)
class Mark:
    """How one name is drawn: its slot; `repeat` counts names that had to share one."""

    slot: int
    repeat: int = 0

    @property
    def color(self) -> str:
        """The colour, as a property of the style sheet."""
        return f"var(--s{self.slot})"

    @property
    def shape(self) -> str:
        """The marker, in Vega's words."""
        return _MARKERS[self.slot]

    @property
    def dash(self) -> list[int]:
        """The dash of its line."""
        return [4, 3] if self.slot == 8 else ([1, 0], [9, 3], [2, 3])[min(self.repeat, 2)]


def _plain(name: str) -> str:
    return re.sub(r"[-_\s>]", "", name.casefold())


_TABLE = {_plain(name): slot for name, slot in NAME_SLOTS.items()}


def _known(name: str) -> int | None:
    """Look a name up; case, hyphens, spaces and a ">" before it do not count."""
    return _TABLE.get(_plain(name))


def _base(name: str) -> str:
    """What a variant is a variant of: ``AdamW`` of ``AdamW, tuned`` and of ``AdamW at the end``."""
    for cut in re.finditer(r"[,'’]| (?!\()", name):
        if _known(name[: cut.start()]) is not None:
            return name[: cut.start()]
    return name


def slot_of_method(key: str) -> int:
    """Slot of a method in the index.

    Examples
    --------
    >>> slot_of_method("mfac")
    4
    """
    return METHOD_SLOTS[key]


def is_own(key: str, name: str, peers: Iterable[str]) -> bool:
    """Whether `name` is the study's own method or a variant of it.

    A study that has no row in the table owns every name that is neither one of its peers nor known as something else.

    Examples
    --------
    >>> is_own("adamp", "SGDP", ["AdamW"]), is_own("adamp", "AdamW", ["AdamW"]), is_own("cbo", "CBO", ["CMA-ES"])
    (True, False, True)
    """
    if key in OWN:
        return not {_plain(name), _plain(_base(name))}.isdisjoint(map(_plain, OWN[key]))
    plain = _plain(name)
    return _known(_base(name)) is None and not any(_plain(p) and plain.startswith(_plain(p)) for p in peers)


def clashes(names: Sequence[str]) -> list[tuple[str, str]]:
    """Find the pairs of a figure's names that share a slot of the table (8, for references, may be shared).

    Examples
    --------
    >>> clashes(["AdamP", "AdamW", "SGD"]), clashes(["SGD", "Lion"])
    ([], [('SGD', 'Lion')])
    """
    held: dict[int, str] = {}
    found = []
    for name in dict.fromkeys(names):
        slot = _known(name)
        if slot is None or slot == 8:
            continue
        if slot in held:
            found.append((held[slot], name))
        held.setdefault(slot, name)
    return found


def marks(names: Sequence[str], own: Sequence[str] = (), key: str = "") -> dict[str, Mark]:
    """Give every name of a figure its mark; the same names always get the same marks.

    Parameters
    ----------
    names : sequence of str
        In drawing order.
    own : sequence of str
        Those that are the study's own method; the first one takes the slot of `key` when the table lacks it.
    """
    chosen: dict[str, Mark] = {}
    used: dict[int, int] = {}

    def take(name: str, slot: int) -> None:
        chosen[name] = Mark(slot, used.get(slot, 0) if slot != 8 else 0)
        used[slot] = used.get(slot, 0) + 1

    todo = list(dict.fromkeys(names))
    for look in (_known, lambda name: _known(_base(name))):
        for name in [n for n in todo if n not in chosen]:
            slot = look(name)
            if slot is not None and (slot == 8 or slot not in used):
                take(name, slot)
    for name in [n for n in todo if n in own and n not in chosen][:1]:
        if key in METHOD_SLOTS and METHOD_SLOTS[key] not in used:
            take(name, METHOD_SLOTS[key])
    for name in [n for n in todo if n not in chosen]:
        take(name, min(range(1, 8), key=lambda s: (used.get(s, 0), s)))
    return {name: chosen[name] for name in todo}


@functools.cache
def _tokens() -> dict[str, tuple[str, str]]:
    """Read the colours from the style sheet: name to (light, dark)."""
    css = files("steepest.report").joinpath("static/site.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([a-z0-9-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", css)
    return {name: (light, dark) for name, light, dark in pairs}


def token(name: str, theme: str) -> str:
    """Value of a colour of the style sheet; ``t1`` to ``t8`` are the slots mixed with ink, for text.

    Examples
    --------
    >>> token("s1", "light"), token("t1", "light")
    ('#0e5d96', '#10476f')
    """
    if theme not in ("light", "dark"):
        raise value_error("theme", "'light' or 'dark'", theme)
    which = theme == "dark"
    if re.fullmatch(r"t[1-8]", name):
        slot, ink = token("s" + name[1], theme), token("ink", theme)
        mixed = (round(0.68 * int(slot[i : i + 2], 16) + 0.32 * int(ink[i : i + 2], 16)) for i in (1, 3, 5))
        return "#" + "".join(f"{x:02x}" for x in mixed)
    return _tokens()[name][which]


def resolve(text: str, theme: str) -> str:
    """Put plain colours in the place of the style sheet's properties, for files that stand alone."""
    return re.sub(r"var\(--([a-z0-9-]+)\)", lambda m: token(m[1], theme), text)
