from __future__ import annotations

import re
from importlib.resources import files

import pytest

from steepest.report import theme
from steepest.studies import registry

FIGURES = {
    "adamp": ["AdamP", "SGDP", "AdamW", "SGD", "Adam"],
    "adamp implementations": ["AdamP", "AdamP (adamp)", "AdamP (torch_optimizer)", "AdamP (pytorch_optimizer)",
                              "AdamW"],
    "sgdp implementations": ["SGDP", "SGDP (adamp)", "SGDP (torch_optimizer)", "SGDP (pytorch_optimizer)", "SGD"],
    "adahessian": ["AdaHessian", "AdamW", "SGD", "Adam", "AdaHessian (torch_optimizer)",
                   "AdaHessian (pytorch_optimizer)", "Adagrad"],
    "sophia": ["Sophia-G", "Sophia-H", "AdamW", "Lion", "SophiaH (pytorch_optimizer)", "SOAP", "PSGDKron"],
    "mfac": ["M-FAC", "AdamW", "SGD", "Shampoo", "AdaHessian", "SOAP", "PSGDKron"],
    "pruning": ["M-FAC", "magnitude", "diagonal Fisher"],
    "rvgp": ["RVGP", "RBF GP on Laplacian eigenvectors", "RBF GP in space", "spherical splines", "256 sensors"],
    "heat-geodesic": ["heat geodesic", "PHATE", "Isomap", "diffusion map", "t-SNE", "UMAP", "spectral"],
    "augmented-covariance": ["augmented covariance", "automatic order and lag", "tangent space + SVM",
                             "tangent space + LR", "MDM", "FgMDM", "CSP + LDA"],
    "wing-pressure": ["geometry", "DAN", "point-wise MLP", "point-wise MLP, same channels", "HistGradientBoosting",
                      "PointNet", "GCN"],
    "sophia problems": ["Sophia", "gradient descent", "SignGD", "Newton", "AdamW", "Adam"],
}  # fmt: skip


@pytest.mark.parametrize("names", FIGURES.values(), ids=FIGURES)
def test_no_two_names_of_a_figure_share_a_slot(names):
    assert theme.clashes(names) == []
    assert len({mark.slot for mark in theme.marks(names).values()}) == len(names)


@pytest.mark.parametrize("key", [k for k in registry.METHODS if registry.has_study(k)])
def test_no_two_names_of_a_study_share_a_slot(key):
    study = registry.load_study(key)
    for figure in study.FIGURES:
        assert theme.clashes(figure.methods) == [], figure.id
    assert theme.clashes([p.name for p in study.PEERS]) == []


def test_a_clash_is_found():
    assert theme.clashes(["SGD", "AdamW", "Lion"]) == [("SGD", "Lion")]
    assert theme.clashes(["reference", "limit"]) == []


def test_every_method_has_a_slot_and_its_own_name_has_the_same():
    assert set(theme.METHOD_SLOTS) == set(registry.METHODS)
    for key, names in theme.OWN.items():
        assert theme.marks([names[0]])[names[0]].slot == theme.slot_of_method(key)


def test_unknown_names_take_free_slots_always_the_same_ones():
    names = ["AdamW", "Zebra", "AdamP", "Yak"]
    marks = theme.marks(names)
    assert marks == theme.marks(names)
    assert [marks["AdamW"].slot, marks["AdamP"].slot] == [6, 1]
    assert len({m.slot for m in marks.values()}) == 4
    assert list(marks) == names
    assert theme.marks(["Yak", "CBO"], own=["CBO"], key="cbo")["CBO"].slot == theme.slot_of_method("cbo")


def test_a_variant_has_the_slot_of_what_it_varies_where_that_is_free():
    marks = theme.marks(["MFAC m=32", "AdamW at the end", "M-FAC, independent"])
    assert [m.slot for m in marks.values()][:2] == [4, 6]
    assert marks["M-FAC, independent"].slot not in (4, 6)
    marks = theme.marks(["M-FAC's choice", "M-FAC"])
    assert marks["M-FAC"].slot == 4


def test_more_names_than_slots_differ_in_their_dash():
    marks = theme.marks([f"name {i}" for i in range(14)])
    assert len({(m.slot, *m.dash) for m in marks.values()}) == 14


def test_names_that_clash_are_still_told_apart():
    marks = theme.marks(["SGD", "Lion"])
    assert marks["SGD"].slot != marks["Lion"].slot


@pytest.mark.parametrize(
    ("key", "name", "own"),
    [("adamp", "SGDP", True), ("adamp", "AdamP (adamp)", False), ("mfac", "MFAC", True), ("mfac", "AdaHessian", False),
     ("mfac", "M-FAC, independent", True), ("mfac", "MFAC m=32", True), ("sophia", "gradient descent", False),
     ("adamp", "AdamP (timm)", False), ("cbo", "CMA-ES", False), ("cbo", "CMA-ES, tuned", False), ("cbo", "CBO", True)],
)  # fmt: skip
def test_a_studys_own_names(key, name, own):
    assert theme.is_own(key, name, ["CMA-ES"]) is own


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_can_be_seen_and_read(scheme):
    paper = theme.token("bg", scheme)
    for i in range(1, 9):
        assert contrast(theme.token(f"s{i}", scheme), paper) >= 3.0
        assert contrast(theme.token(f"t{i}", scheme), paper) >= 4.5
    for name in ("ink", "ink-2", "ink-3", "link", "holds", "short", "error", "stale"):
        assert contrast(theme.token(name, scheme), paper) >= 4.5


def test_no_text_of_the_style_sheet_is_smaller_than_12_px():
    css = files("steepest.report").joinpath("static/site.css").read_text("utf-8")
    assert not re.search(r"font(?:-size)?:[^;]*\b(?:[1-9]|1[01])px", css)


def test_resolve_leaves_no_property():
    assert (
        theme.resolve('"var(--s1) var(--t2)"', "dark") == f'"{theme.token("s1", "dark")} {theme.token("t2", "dark")}"'
    )
    with pytest.raises(ValueError, match="theme must be 'light' or 'dark', got 'blue'"):
        theme.token("s1", "blue")


def test_a_name_of_the_table_is_the_studys_own_also_where_its_first_word_is_known():
    assert theme.is_own("sgd-stability", "exact threshold", [])
    assert theme.is_own("fedfix", "FedFix, 0.5, unbiased", [])
    assert not theme.is_own("sgd-stability", "SGD", [])


def test_a_name_that_stopped_before_the_end_keeps_its_slot():
    assert theme.marks(["> POT sinkhorn"]) == {"> POT sinkhorn": theme.marks(["POT sinkhorn"])["POT sinkhorn"]}
