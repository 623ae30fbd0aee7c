"""Tests of the RVGP study: its protocol at the tiny scale, its pictures, and the readers of the paper's scale."""

import math

import numpy as np
import pytest

from steepest.report.pictures import Ink, draw
from steepest.studies import rvgp as study
from steepest.studies import rvgp_paper
from steepest.studies.context import Context, Job, Unavailable

AT_PAPER = {"bunny", "eeg-fields"}


@pytest.fixture(scope="module")
def tiny():
    ctx = Context(study, Job("rvgp", "tiny", n_seeds=1))
    study.run(ctx)
    return ctx


def test_every_claim_of_the_small_scales_is_measured(tiny):
    assert {c.id for c in study.CLAIMS} - set(tiny._measured) == AT_PAPER
    for claim, (value, _, reason) in tiny._measured.items():
        assert (value is not None and math.isfinite(value)) or reason or claim == "inpainting-place", claim
    assert tiny.best_peer is not None


def test_figures_and_pictures_have_their_data(tiny):
    assert {figure.series for figure in study.FIGURES} <= {s.name for s in tiny.series_log}
    assert {picture.arrays for picture in study.PICTURES} <= set(tiny.arrays_log)
    ids = [claim.id for claim in study.CLAIMS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("picture", study.PICTURES, ids=lambda p: p.id)
def test_pictures_are_drawn(tiny, picture):
    pytest.importorskip("matplotlib")
    for dark in (False, True):
        assert draw(picture, tiny.arrays_log[picture.arrays], Ink("rvgp", dark))[1:4] == b"PNG"


def test_mesh_readers_agree(tmp_path):
    X = np.arange(12.0).reshape(4, 3)
    text = "".join(f"v {x:g} {y:g} {z:g}\n" for x, y, z in X)
    (tmp_path / "a.obj").write_text("# bunny\n" + text + "vn 0 0 1\nf 1 2 3\n")
    head = "ply\nformat {} 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    head += "property uchar red\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    rows = "".join(f"{x:g} {y:g} {z:g} 7\n" for x, y, z in X)
    (tmp_path / "b.ply").write_text(head.format("ascii") + rows + "3 0 1 2\n")
    table = np.zeros(4, dtype=[("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1")])
    table["x"], table["y"], table["z"] = X.T
    (tmp_path / "c.ply").write_bytes(head.format("binary_little_endian").encode() + table.tobytes() + b"\3" + bytes(12))
    for name in ("a.obj", "b.ply", "c.ply"):
        np.testing.assert_array_equal(rvgp_paper.read_mesh(tmp_path / name), X)
    (tmp_path / "d.ply").write_text(head.format("binary_big_endian"))
    (tmp_path / "e.obj").write_text("f 1 2 3\n")
    for name, words in (("d.ply", "little-endian"), ("e.obj", "vertices"), ("f.stl", "OBJ or PLY")):
        with pytest.raises(ValueError, match=words):
            rvgp_paper.read_mesh(tmp_path / name)


def test_paper_scale_runs_on_small_files(tmp_path):
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 3))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    (tmp_path / "ball.obj").write_text("".join(f"v {x} {y} {z}\n" for x, y, z in X))
    Y = np.stack([np.cross(axis, X[:80]) for axis in np.eye(3)], axis=2)
    savemat(tmp_path / "eeg.mat", {"positions": X[:80], "fields": Y})
    options = {"eeg": str(tmp_path / "eeg.mat")}
    ctx = Context(study, Job("rvgp", "paper", n_seeds=1, max_steps=2, options=options, data=str(tmp_path / "ball.obj")))
    study.run(ctx)
    assert set(ctx._measured) == AT_PAPER
    assert 0 < ctx._measured["eeg-fields"][0] < math.inf
    with pytest.raises(ValueError, match="fields, positions"):
        rvgp_paper.read_fields(tmp_path / "eeg.mat", "places")
    with pytest.raises(Unavailable, match="--data"):
        study.run(Context(study, Job("rvgp", "paper")))
