"""Tests of the study of augmented covariances: its protocol at the tiny scale, and that nothing leaks."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from steepest.core.extras import installed
from steepest.report.pictures import Ink, draw
from steepest.studies import augmented_covariance as study
from steepest.studies import augmented_covariance_paper as paper
from steepest.studies import augmented_covariance_pictures as pictures
from steepest.studies.context import Context, Job
from steepest.studies.simulators import electrode_positions, motor_imagery


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder with a made-up set in the form of the real one."""
    folder = tmp_path_factory.mktemp("data") / "eegmmidb_s001"
    folder.mkdir()
    names = [*study.SENSORIMOTOR, "Fpz", "Oz"]
    trials = motor_imagery(16, 2, channels=names, seconds=4.1, random_state=0)
    np.savez(
        folder / "s001_imagery_epochs.npz",
        X_uV=np.round(1e6 * trials.X).astype(np.int16),
        y=np.where(trials.session == 0, trials.y, trials.y + 2),
        run=np.arange(32) // 4 % 2,
        sfreq=160.0,
        ch_names=np.array(names),
    )
    return folder


@pytest.fixture(scope="module")
def tiny(real):
    ctx = Context(study, Job("augmented-covariance", "tiny", data=str(real)))
    study.run(ctx)
    return ctx


def test_every_claim_of_the_small_scales_is_measured(tiny):
    left = {c.id for c in study.CLAIMS} - set(tiny._measured)
    assert left == {"paper-within", "paper-cross"}
    for claim, (value, _, reason) in tiny._measured.items():
        assert (value is not None and math.isfinite(value)) or reason, claim


def test_figures_and_pictures_have_their_data(tiny):
    assert {f.series for f in study.FIGURES} <= {s.name for s in tiny.series_log}
    assert {p.arrays for p in study.PICTURES} == set(tiny.arrays_log)
    assert sum(a.nbytes for arrays in tiny.arrays_log.values() for a in arrays.values()) < 300_000


def test_pictures_can_be_drawn(tiny):
    pytest.importorskip("matplotlib")
    for picture in study.PICTURES:
        for dark in (False, True):
            drawn = draw(picture, tiny.arrays_log[picture.arrays], Ink("augmented-covariance", dark))
            assert drawn[1:4] == b"PNG"


def test_real_rows_are_skipped_without_data(monkeypatch):
    monkeypatch.delenv("STEEPEST_DATA", raising=False)
    ctx = Context(study, Job("augmented-covariance", "tiny"))
    study._real(ctx)
    assert set(ctx._measured) == {c.id for c in study.CLAIMS if c.id.endswith(("left-right", "hands-feet"))}
    assert all("STEEPEST_DATA" in reason for _, _, reason in ctx._measured.values())


def task(n=24, seed=0):
    trials = motor_imagery(n, random_state=seed, seconds=2.0)
    return study.Task(study._filtered(trials.X, trials.sfreq, 0.25), trials.y, trials.session)


def test_choices_see_training_trials_only():
    one, two = task(), task()
    train, test = np.arange(16), np.arange(16, 24)
    two.X[test] = two.X[test][:, ::-1] * 7
    two.y[test] = 1 - two.y[test]
    a, b = (study.choose(t, study.FEW, train, 0, t.at) for t in (one, two))
    assert a[:2] == b[:2]
    np.testing.assert_array_equal(a[2], b[2])
    assert study.selected(one.X[train[:4], :3]) == study.selected(two.X[train[:4], :3])
    fitted = [study._machine_scores(t.at((1, 1)), one.y, train, test, study.MACHINES) for t in (one, two)]
    assert not np.array_equal(*fitted)


def test_shuffling_keeps_the_spatial_covariance_and_nothing_of_time():
    t = task()
    other = t.shuffled(0)
    np.testing.assert_allclose(other.at((1, 1)), t.at((1, 1)), rtol=1e-9)
    shuffled, lagged = (np.abs(x.at((2, 2))[:, :9, 9:].mean(axis=0)).mean() for x in (other, t))
    assert shuffled < 0.2 * lagged


def test_shared_kernels_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    fit, check, y = rng.standard_normal((30, 7)), rng.standard_normal((9, 7)), np.arange(30) % 2
    for kernel, (inside, across) in study._grams(fit, check).items():
        expected = study.SVC(kernel=kernel).fit(fit, y).decision_function(check)
        found = study.SVC(kernel="precomputed").fit(inside, y).decision_function(across)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_area_under_the_curve():
    rng = np.random.default_rng(0)
    y, scores = rng.integers(2, size=50), np.round(rng.standard_normal(50), 1)
    assert study._auc(y, scores) == pytest.approx(roc_auc_score(y, scores))


def test_yule_walker_errors_are_noticed(monkeypatch):
    assert study._yule_walker_error(4_000) < 0.06

    class Wrong(study.AugmentedCovariance):
        def fit_transform(self, X):
            C = super().fit_transform(X).reshape(3, 3, 3, 3)
            return C.transpose(0, 3, 2, 1).reshape(1, 9, 9)  # blocks transposed: time runs backwards

    monkeypatch.setattr(study, "AugmentedCovariance", Wrong)
    assert study._yule_walker_error(4_000) > 0.1


def test_scalp_maps_go_through_their_electrodes():
    positions = electrode_positions(["Fz", "C3", "Cz", "C4", "Pz", "Oz", "Fpz", "T7", "T8"])
    values = np.arange(9.0)
    image = pictures.scalp_map(positions, values, size=401)
    for point, value in zip(pictures.flatten(positions), values):
        column, row = np.round((point + 1) * 200).astype(int)
        assert image[row, column] == pytest.approx(value, abs=0.1)
    assert np.isnan(image[0, 0])
    np.testing.assert_allclose(pictures.flatten(electrode_positions(["T8", "Fpz"])), [[0.8, 0], [0, 0.8]], atol=1e-12)


def test_paper_scale_says_what_is_missing_or_unknown():
    ctx = Context(study, Job("augmented-covariance", "paper", options={"datasets": "Nothing"}))
    if installed("moabb") and installed("mne"):
        with pytest.raises(ValueError, match="option datasets must be some of"):
            study.run(ctx)
    else:
        with pytest.raises(ImportError, match=r'pip install "steepest\[eeg-data\]"'):
            study.run(ctx)


@pytest.mark.skipif(not installed("moabb"), reason="moabb is not installed")
@pytest.mark.filterwarnings("ignore")  # of MOABB and MNE
def test_paper_code_runs_on_a_made_up_set():
    ctx = Context(study, Job("augmented-covariance", "paper", max_steps=1))
    study.run(ctx)
    assert ctx._measured["paper-within"] == (None, None, paper.CODE_TEST)
    assert any("within, FakeDataset, left-right" in note for note in ctx.notes_log)
