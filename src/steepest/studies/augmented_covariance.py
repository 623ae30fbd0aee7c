"""Augmented covariances classify imagined movements from EEG better by what the signals do in time.

It is for people who classify motor imagery with pyRiemann or MOABB and want the temporal information that a spatial
covariance throws away, as one more step of the same pipeline. Here: simulated subjects whose rhythms change in power,
frequency and lag (`studies.simulators`), and one real subject (PhysioNet's motor imagery set, S001). Order and lag are
chosen by nested cross-validation inside the training data; plain covariances get the same choice of C and kernel. The
control shuffles the samples of every trial, which leaves the spatial covariance as it is. ``paper`` runs MOABB's sets
and protocol (`studies.augmented_covariance_paper`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.signal import butter, sosfiltfilt
from scipy.spatial.distance import cdist
from scipy.stats import rankdata, wilcoxon
from sklearn import config_context
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from steepest.core.errors import SteepestWarning
from steepest.core.extras import installed, require
from steepest.core.parallel import ordered_map
from steepest.core.random import child_seeds
from steepest.manifold._riemannian import TangentSpace
from steepest.manifold.augmented_covariance import AugmentedCovariance
from steepest.studies import augmented_covariance_paper
from steepest.studies import augmented_covariance_pictures as pictures
from steepest.studies.claim import Claim, Figure, Paper, Peer, Picture, bootstrap_interval
from steepest.studies.context import Context, Unavailable
from steepest.studies.simulators import electrode_positions, motor_imagery

AREA = "manifold"

PAPER = Paper(
    title="Classification of BCI-EEG based on augmented covariance matrix",
    authors="Igor Carrara, Théodore Papadopoulo",
    venue="IEEE Transactions on Biomedical Engineering",
    year=2024,
    url="https://arxiv.org/abs/2302.04508",
)

_WITHIN = "better than the state of the art within sessions, six MOABB sets"
_CROSS = "the same across sessions"

# fmt: off
CLAIMS = [  # id, what it says, the paper's number, bound, unit, scales, invariant
    Claim("simulated-gain", "Within a session of the simulator it beats plain covariances with tangent space and SVM.",
          _WITHIN, ">= 0.03", "ROC-AUC, mean over subjects", "quick full"),
    Claim("simulated-significant", "The gain is not chance: paired Wilcoxon test over subjects, one-sided.",
          "significant in most sets", "< 0.05", "p", "quick full"),
    Claim("real-left-right", "Real EEG, left against right hand: it beats the tangent space of plain covariances.",
          _WITHIN, ">= 0.02", "ROC-AUC, mean over repeated folds", "quick full"),
    Claim("real-hands-feet", "Real EEG, both hands against both feet: nothing is lost.",
          _WITHIN, ">= 0", "ROC-AUC, mean over repeated folds", "quick full"),
    Claim("cross-session-simulated", "Trained on one session of the simulator, it is better on the next.",
          _CROSS, ">= 0.02", "ROC-AUC, mean over subjects", "full"),
    Claim("cross-session-left-right", "Real EEG, each run by the other two, left against right hand: nothing is lost.",
          _CROSS, ">= 0", "ROC-AUC, mean over runs", "full"),
    Claim("cross-session-hands-feet", "The same for both hands against both feet.",
          _CROSS, ">= 0", "ROC-AUC, mean over runs", "full"),
    Claim("time-shuffled", "Temporal order is what helps: with the samples of each trial shuffled the gain is gone.",
          "the matrix holds the lagged autocovariances", "<= 0.01", "ROC-AUC, mean over subjects", "quick full"),
    Claim("simulated-best-peer", "Gain over the best of CSP + LDA, MDM, FgMDM and tangent space + LR in the simulator.",
          _WITHIN, "reported", "ROC-AUC, mean over subjects", "quick full"),
    Claim("selection-auc", "Order and lag read off the signals are as good as the nested grid's.",
          "delay-embedding selection replaces the grid", "<= 0.03", "ROC-AUC lost, mean over subjects", "full"),
    Claim("selection-time", "They come faster than by the official grid of 100 orders and lags.",
          "delay-embedding selection replaces the grid", ">= 5", "x, one training set", "full"),
    Claim("yule-walker", "The blocks solve the Yule-Walker equations: coefficients of a VAR(2), 40,000 samples.",
          "Section II", "<= 0.03", "largest error of a coefficient", "quick full", True),
    Claim("paper-within", "MOABB's sets, within sessions: gain over the tangent space with SVM.",
          _WITHIN, "> 0", "ROC-AUC, mean over sets", "paper"),
    Claim("paper-cross", "MOABB's sets, across sessions.", _CROSS, "> 0", "ROC-AUC, mean over sets", "paper"),
]
# fmt: on

PLAIN, OURS = "tangent space + SVM", "augmented covariance"
PEERS = [
    Peer(PLAIN, "sklearn"),
    Peer("tangent space + LR", "sklearn"),
    Peer("MDM", "pyriemann"),
    Peer("FgMDM", "pyriemann"),
    Peer("CSP + LDA", "pyriemann"),
]

OPTIONS = {
    "datasets": "at paper: MOABB's names of data sets, joined by commas (the default is the paper's six)",
    "backend": "at paper: serial, processes or ray over subjects (the default is serial)",
}

# fmt: off
FIGURES = [
    Figure("auc", "Accuracy on simulated subjects", "auc", "ROC-AUC", "method", "dots",
           caption="Nested 5-fold cross-validation; median and range over subjects."),
    Figure("real", "Accuracy on real EEG, left against right hand", "real", "ROC-AUC", "method", "dots",
           caption="PhysioNet S001, 13 channels, 45 trials; median and range over repetitions of 5 folds."),
    Figure("settings", "What order and lag are worth", "settings", "ROC-AUC", "order x lag", "bars",
           caption="Inner folds of the training sets, best C and kernel; median and range over simulated subjects."),
]
PICTURES = [
    Picture("topography", "Where imagined movements change power, and where they change timing", "topography",
            pictures.draw_topography, size=(7.6, 3.35),
            caption="PhysioNet S001, 64 channels, 8-35 Hz: difference of class means. Power is all that the diagonal "
            "of a plain covariance sees; the lagged autocorrelation (25 ms) is the diagonal of an augmented block.",
            alt="Three heads seen from above. Left against right hand: power is lower over the right hemisphere for "
            "the left hand and over the left one for the right hand. Feet against hands: power is higher over both "
            "hand areas, and lower behind the vertex. The third head shows the change of autocorrelation at 25 "
            "milliseconds: highest in front, lowest behind on the left."),
    Picture("matrices", "An augmented covariance holds the lagged covariances in its blocks", "matrices",
            pictures.draw_matrices, size=(7.6, 2.9),
            caption="One simulated subject, order 4, lag 4 samples: mean correlations of each class and their "
            "difference. The plain covariance is the first block.",
            alt="Three square images of 4 by 4 blocks: the mean matrices of left and right hand, alike and close to "
            "block Toeplitz, and their difference, which is spread over the blocks on the diagonal and off it."),
]
# fmt: on

SNIPPET = """\
import numpy as np
from sklearn.model_selection import cross_val_score
from steepest.manifold import augmented_covariance_pipeline
from steepest.studies.simulators import motor_imagery

trials = motor_imagery(60, random_state=0)
for order in (1, 4):  # 1 is the plain covariance
    model = augmented_covariance_pipeline("tangent-svm", order=order, lag=4)
    scores = cross_val_score(model, trials.X, trials.y, cv=3, scoring="roc_auc")
    print(order, np.mean(scores).round(2))
"""

_FRESH = (
    "subjects and trials vary more than the gain: 6 subjects of 64 trials gain 0.015 (seed 0) and 0.024 (fresh, seed "
    "12), of 72 trials 0.000 (fresh, seed 11), of 80 trials 0.038 (seed 0, where the simulator was set up), 8 "
    "subjects of 100 trials 0.030 (seed 0)"
)
REASONS = {
    "simulated-gain": _FRESH,
    "simulated-significant": _FRESH,
    "real-left-right": "choosing on 36 trials is noise. Over 3 x 5 folds 3 inner folds gain -0.004 with three "
    "settings, 0.021 with seven; the same repeated three times gain -0.007 and 0.007, pooled decision values -0.010 "
    "and 0.018, while without any choice 2 x 4, 4 x 4 and 6 x 5 are 0.055, 0.048 and 0.063 above plain "
    "covariances (mean over C and kernel)",
    "cross-session-simulated": "a single split of each subject: the gain of 0.035 holds, its interval over 8 subjects "
    "just reaches below the bound",
    "cross-session-left-right": "three runs of 15 trials: one trial more or less moves a run by 0.02",
    "selection-auc": "the first minimum of mutual information is a quarter of the band's mean period, 2 samples, and "
    "order 4 has the fewest false neighbours: 4 x 2 spans 37 ms, too short for a slowing of 0.5 to 1 Hz",
}

WHEN_NOT = [
    "Classes differ in power alone and trials are few: order 1 has the same information and fewer entries.",
    "Trials are so short that m p comes near T: the matrices are then mostly shrinkage.",
    "Many channels and a tight time limit: means of m p x m p matrices cost (m p)^3; choose channels first.",
    "Evoked potentials: what matters is the phase relative to the stimulus, which covariances of single trials lose.",
]

SETTINGS = [(1, 1), (2, 2), (2, 4), (4, 2), (4, 4), (4, 8), (6, 5)]
FEW = [(1, 1), (4, 4), (4, 8)]
MACHINES = [(c, kernel) for kernel in ("rbf", "linear") for c in (0.5, 1.0, 1.5)]
BAND = (8.0, 35.0)
SENSORIMOTOR = ("FC3", "FCz", "FC4", "C5", "C3", "C1", "Cz", "C2", "C4", "C6", "CP3", "CPz", "CP4")


@dataclass
class Task:
    """Trials of one subject, and their matrices by (order, lag): a matrix depends on its own trial only."""

    X: np.ndarray
    y: np.ndarray
    group: np.ndarray
    matrices: dict[Any, np.ndarray] = field(default_factory=dict)

    def at(self, setting: tuple[int, int]) -> np.ndarray:
        """Augmented covariances (n, m p, m p) for (order, lag)."""
        if setting not in self.matrices:
            self.matrices[setting] = AugmentedCovariance(*setting).fit_transform(self.X)
        return self.matrices[setting]

    def along(self, delays: tuple[int, ...]) -> np.ndarray:
        """The same for any delays."""
        if delays not in self.matrices:
            self.matrices[delays] = AugmentedCovariance(delays=delays).fit_transform(self.X)
        return self.matrices[delays]

    def shuffled(self, seed: int) -> Task:
        """Samples of every trial in another order, the same for all channels."""
        rng = np.random.default_rng(seed)
        order = np.stack([rng.permutation(self.X.shape[2]) for _ in self.X])
        return Task(np.take_along_axis(self.X, order[:, None], axis=2), self.y, self.group)


def run(ctx: Context) -> None:
    """Measure; see the module."""
    if ctx.scale == "paper":
        augmented_covariance_paper.measure(ctx)
        return
    ctx.progress(0.0)
    ctx.measured("yule-walker", _yule_walker_error(ctx.pick(quick=40_000, full=40_000, paper=0, tiny=4_000)))
    ctx.timed("simulator", lambda: _simulated(ctx))
    ctx.timed("real", lambda: _real(ctx))


# ---------------------------------------------------------------------------------------------------------- protocol


def choose(
    task: Task, settings: Sequence[Any], train: np.ndarray, seed: int, of: Callable[[Any], np.ndarray]
) -> tuple[Any, tuple[float, str], np.ndarray]:
    """Best setting and support vector machine by 3 inner folds, and the scores (settings, machines)."""
    inner = StratifiedKFold(3, shuffle=True, random_state=seed)
    scores = np.zeros((len(settings), len(MACHINES)))
    for s, setting in enumerate(settings):
        for fit, check in inner.split(train, task.y[train]):
            scores[s] += _machine_scores(of(setting), task.y, train[fit], train[check], MACHINES) / 3
    s, k = divmod(int(scores.argmax()), len(MACHINES))
    return settings[s], MACHINES[k], scores


def nested(
    task: Task, settings: Sequence[tuple[int, int]], splits: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[dict[str, list[float]], np.ndarray]:
    """ROC-AUC of every outer fold, everything chosen inside its training set; and the best scores of settings there.

    The first setting, order 1, is the plain covariance: its machine is chosen by the same inner folds.
    """
    found: dict[str, list[float]] = {OURS: [], PLAIN: []}
    inside = []
    for i, (train, test) in enumerate(splits):
        setting, machine, scores = choose(task, settings, train, i, task.at)
        plain = MACHINES[int(scores[0].argmax())]
        for name, where, which in ((OURS, setting, machine), (PLAIN, settings[0], plain)):
            found[name].append(float(_machine_scores(task.at(where), task.y, train, test, [which])[0]))
        inside.append(scores.max(axis=1))
    return found, np.mean(inside, axis=0)


def automatic(task: Task, splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """The same with order and lag from the signals of the training set, and only the machine chosen."""
    found = []
    for i, (train, test) in enumerate(splits):
        delays = selected(task.X[train])
        _, machine, _ = choose(task, [delays], train, i, task.along)
        found.append(float(_machine_scores(task.along(delays), task.y, train, test, [machine])[0]))
    return found


def selected(X: np.ndarray) -> tuple[int, ...]:
    """Delays by the default selector; on noisy signals it warns that some neighbours stay false."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteepestWarning)
        return AugmentedCovariance("auto", "auto", random_state=0).fit(X).delays_


def compared(task: Task, splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, list[float]]:
    """ROC-AUC of the peers on plain covariances, fold by fold."""
    plain = task.at((1, 1))
    models: dict[str, Any] = {"tangent space + LR": make_pipeline(TangentSpace(), LogisticRegression(max_iter=1000))}
    if installed("pyriemann"):
        classification: Any = require("pyriemann.classification", "eeg")
        filters: Any = require("pyriemann.spatialfilters", "eeg")
        models["MDM"] = classification.MDM()
        models["FgMDM"] = classification.FgMDM()
        models["CSP + LDA"] = make_pipeline(filters.CSP(nfilter=6), LinearDiscriminantAnalysis())
    found: dict[str, list[float]] = {name: [] for name in models}
    for train, test in splits:
        for name, model in models.items():
            model.fit(plain[train], task.y[train])
            found[name].append(_auc(task.y[test], model.predict_proba(plain[test])[:, 1]))
    return found


def _machine_scores(
    C: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, machines: Sequence[tuple[float, str]]
) -> np.ndarray:
    """ROC-AUC of machines in the tangent space at the mean of the training matrices."""
    space = TangentSpace().fit(C[train])
    grams = _grams(space.transform(C[train]), space.transform(C[test]))
    scores = []
    for c, kernel in machines:
        fit, check = grams[kernel]
        with config_context(assume_finite=True, skip_parameter_validation=True):
            machine = SVC(C=c, kernel="precomputed").fit(fit, y[train])
            scores.append(_auc(y[test], machine.decision_function(check)))
    return np.array(scores)


def _grams(fit: np.ndarray, check: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernels of vectors with the training vectors, shared by all C; "rbf" has scikit-learn's ``gamma="scale"``."""
    gamma = 1 / (fit.shape[1] * fit.var())
    return {
        "linear": (fit @ fit.T, check @ fit.T),
        "rbf": (np.exp(-gamma * cdist(fit, fit, "sqeuclidean")), np.exp(-gamma * cdist(check, fit, "sqeuclidean"))),
    }


def _gains(found: dict[str, list[float]]) -> np.ndarray:
    return np.subtract(found[OURS], found[PLAIN])


def _auc(y: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the share of pairs in the right order."""
    n = int(y.sum())
    return float((rankdata(scores)[y == 1].sum() - n * (n + 1) / 2) / (n * (len(y) - n)))


def _folds(task: Task, repeats: int, seed: int, k: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(RepeatedStratifiedKFold(n_splits=k, n_repeats=repeats, random_state=seed).split(task.X, task.y))


def _filtered(X: np.ndarray, sfreq: float, margin: float) -> np.ndarray:
    """Band-pass, then cut `margin` seconds at both ends, where the filter rings."""
    sos = butter(4, BAND, "bandpass", fs=sfreq, output="sos")
    edge = round(margin * sfreq)
    return np.ascontiguousarray(sosfiltfilt(sos, X, axis=-1)[:, :, edge : X.shape[2] - edge])


# ----------------------------------------------------------------------------------------------------------- simulator


@dataclass(frozen=True)
class Subject:
    """One simulated subject, and what is measured of it."""

    seed: int
    number: int
    n_trials: int
    n_sessions: int
    settings: tuple[tuple[int, int], ...]
    repeats: int
    k: int
    n_automatic: int
    cross: bool
    k_shuffled: int

    def tasks(self) -> tuple[Task, Task]:
        """The first session, and all of them."""
        trials = motor_imagery(self.n_trials, self.n_sessions, random_state=self.seed)
        both = Task(_filtered(trials.X, trials.sfreq, 0.5), trials.y, trials.session)
        first = trials.session == 0
        return Task(both.X[first], both.y[first], both.group[first]), both


@dataclass(frozen=True)
class Measured:
    """ROC-AUC of every method, the best of each setting inside, and the gains of one subject."""

    means: dict[str, float]
    inside: np.ndarray
    lost: list[float]
    cross: list[float]
    shuffled: list[float]


def measure_subject(subject: Subject) -> Measured:
    """Run the nested protocol and its controls on one subject."""
    task, both = subject.tasks()
    settings, splits = subject.settings, _folds(task, subject.repeats, subject.number, subject.k)
    scores, inside = nested(task, settings, splits)
    aucs = scores | compared(task, splits)
    lost, cross, shuffled = list[float](), list[float](), list[float]()
    if n := subject.n_automatic:
        aucs["automatic order and lag"] = automatic(task, splits[:n])
        lost = [float(np.mean(scores[OURS][:n]) - np.mean(aucs["automatic order and lag"]))]
    if subject.cross:
        split = [(np.flatnonzero(both.group == 0), np.flatnonzero(both.group == 1))]
        cross = [float(_gains(nested(both, settings, split)[0])[0])]
    if subject.k_shuffled:
        other = task.shuffled(subject.number)
        folds = _folds(task, 1, subject.number, subject.k_shuffled)
        shuffled = [float(_gains(nested(other, settings, folds)[0]).mean())]
    return Measured({name: float(np.mean(values)) for name, values in aucs.items()}, inside, lost, cross, shuffled)


def _in_turn(ctx: Context, fn: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Results in order; at full scale two processes share the work, two items at a time so that progress is seen."""
    if ctx.scale != "full":
        yield from map(fn, items)
        return
    for i in range(0, len(items), 2):
        yield from ordered_map(fn, items[i : i + 2], backend="processes", n_workers=2)


def _simulated(ctx: Context) -> None:
    n_subjects = ctx.pick(quick=6, full=8, paper=0, tiny=2)
    n_trials = ctx.pick(quick=64, full=100, paper=0, tiny=16)
    repeats, k = ctx.pick(quick=1, full=2, paper=0, tiny=1), ctx.pick(quick=5, full=5, paper=5, tiny=2)
    settings = ctx.pick(quick=FEW, full=SETTINGS, paper=[], tiny=FEW[:2])
    n_shuffled = ctx.pick(quick=2, full=4, paper=0, tiny=2)
    n_sessions = ctx.pick(quick=1, full=2, paper=0, tiny=2)
    wanted = ["cross-session-simulated", "selection-auc", "selection-time"]
    ctx.note(
        f"Simulator: {n_subjects} subjects, {n_trials} trials a session, {repeats} x 5 folds (asked: 5 x 5), settings "
        f"{', '.join(f'{p}x{lag}' for p, lag in settings)} (order x lag) of the official 100, the same folds and "
        f"trials for every method; time-shuffled control: {min(n_shuffled, n_subjects)} subjects."
    )
    subjects = [
        Subject(
            seed,
            s,
            n_trials=n_trials,
            n_sessions=n_sessions,
            settings=tuple(settings),
            repeats=repeats,
            k=k,
            n_automatic=0 if not ctx.wants(wanted[1]) else 1 if ctx.scale == "tiny" else repeats * k,
            cross=ctx.wants(wanted[0]),
            k_shuffled=min(k, ctx.pick(quick=3, full=5, paper=5)) if s < n_shuffled else 0,
        )
        for s, seed in enumerate(child_seeds(ctx.seed, n_subjects))
    ]
    gains: dict[str, list[float]] = {"within": [], "cross": [], "shuffled": [], "lost": []}
    means: dict[str, list[float]] = {}
    for s, found in enumerate(_in_turn(ctx, measure_subject, subjects)):
        for name, value in found.means.items():
            means.setdefault(name, []).append(value)
            ctx.series("auc", [value], method=name, seed=s)
        for setting, value in zip(settings, found.inside):
            ctx.series("settings", [float(value)], method=f"{setting[0]} x {setting[1]}", seed=s)
        gains["within"].append(means[OURS][-1] - means[PLAIN][-1])
        for name, values in (("lost", found.lost), ("cross", found.cross), ("shuffled", found.shuffled)):
            gains[name] += values
        ctx.progress(0.05 + 0.7 * (s + 1) / n_subjects, gain=float(np.mean(gains["within"])))
    first = subjects[0].tasks()[0]
    _keep_matrices(ctx, first)
    if ctx.wants(wanted[2]):
        ctx.measured(wanted[2], _selection_speed(first, _folds(first, 1, 0, k)[0][0], ctx.scale == "tiny"))
    for claim, name in (
        ("simulated-gain", "within"),
        ("time-shuffled", "shuffled"),
        (wanted[0], "cross"),
        (wanted[1], "lost"),
    ):
        if gains[name]:
            ctx.measured(claim, float(np.mean(gains[name])), bootstrap_interval(gains[name]))
    ctx.measured("simulated-significant", float(wilcoxon(gains["within"], alternative="greater").pvalue))
    _against_peers(ctx, means)


def _against_peers(ctx: Context, means: dict[str, list[float]]) -> None:
    peers = [peer.name for peer in PEERS if peer.name in means]
    if "MDM" not in means:
        ctx.note("MDM, FgMDM and CSP + LDA are not here: pyRiemann is not installed.")
    best = max(peers, key=lambda name: float(np.mean(means[name])))
    other = max((p for p in peers if p != PLAIN), key=lambda name: float(np.mean(means[name])))
    pairs = np.subtract(means[OURS], means[other])
    ctx.measured("simulated-best-peer", float(pairs.mean()), bootstrap_interval(pairs))
    ctx.note(f"Simulator: the best peer is {best}; best of the others {other}.")
    errors = (1 - np.array(means[best])), (1 - np.array(means[OURS]))
    draws = np.random.default_rng(0).integers(len(errors[0]), size=(2000, len(errors[0])))
    ratios = errors[0][draws].mean(axis=1) / np.maximum(errors[1][draws].mean(axis=1), 1e-6)
    ctx.against(
        best,
        float(errors[0].mean() / max(errors[1].mean(), 1e-6)),
        (float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))),
        ahead="lower 1 - AUC",
        behind="higher 1 - AUC",
        what="simulated motor imagery, nested 5-fold, mean over subjects",
    )


def _selection_speed(task: Task, train: np.ndarray, small: bool) -> float:
    """Seconds of the official grid of orders and lags over those of the selector; the machine is chosen in both."""
    orders = range(1, 3 if small else 11)
    grid = [(order, lag) for order in orders for lag in orders]
    fresh = Task(task.X, task.y, task.group)
    start = time.perf_counter()
    choose(fresh, grid, train, 0, fresh.at)
    by_grid = time.perf_counter() - start
    start = time.perf_counter()
    choose(fresh, [selected(fresh.X[train])], train, 0, fresh.along)
    return by_grid / (time.perf_counter() - start)


def _keep_matrices(ctx: Context, task: Task) -> None:
    matrices = AugmentedCovariance(4, 4, normalise="corr").fit_transform(task.X)
    left, right = (matrices[task.y == label].mean(axis=0) for label in (0, 1))
    ctx.arrays("matrices", left=left, right=right)


def _yule_walker_error(n_samples: int) -> float:
    """Largest error of the coefficients of a stable VAR(2) of three channels."""
    rng = np.random.default_rng(0)
    A = np.array(
        [[[0.5, 0.2, 0.0], [-0.1, 0.4, 0.1], [0.0, 0.2, 0.3]], [[-0.4, 0.0, 0.1], [0.1, -0.3, 0.0], [0, 0, -0.5]]]
    )
    x = np.zeros((n_samples + 200, 3))
    noise = rng.standard_normal(x.shape)
    for t in range(2, len(x)):
        x[t] = A[0] @ x[t - 1] + A[1] @ x[t - 2] + noise[t]
    model = AugmentedCovariance(3, 1, estimator="scm", block_toeplitz=True)
    C = model.fit_transform(x[200:].T[None])[0].reshape(3, 3, 3, 3)  # block, row, block, column
    past = C[:2, :, :2].reshape(6, 6)  # x(t-2), x(t-1)
    found = np.linalg.solve(past, C[:2, :, 2].reshape(6, 3)).T
    return float(np.abs(found - np.concatenate([A[1], A[0]], axis=1)).max())


# ---------------------------------------------------------------------------------------------------------------- real

REAL = {"left-right": (0, 1), "hands-feet": (2, 3)}


@dataclass(frozen=True)
class Recording:
    """Two classes of the real subject, and what is measured of them."""

    task: Task
    settings: tuple[tuple[int, int], ...]
    splits: list[tuple[np.ndarray, np.ndarray]]
    across: bool


def measure_recording(work: Recording) -> tuple[dict[str, list[float]], np.ndarray]:
    """ROC-AUC of every method and fold, and the gain on each run that is left out."""
    task = work.task
    aucs = nested(task, work.settings, work.splits)[0] | compared(task, work.splits)
    if not work.across:
        return aucs, np.empty(0)
    runs = [(np.flatnonzero(task.group != run), np.flatnonzero(task.group == run)) for run in np.unique(task.group)]
    return aucs, _gains(nested(task, work.settings, runs)[0])


def _real(ctx: Context) -> None:
    try:
        folder = ctx.data("eegmmidb_s001")
    except Unavailable as missing:
        for claim in CLAIMS:
            if claim.id.endswith(tuple(REAL)):
                ctx.skipped(claim.id, str(missing))
        return
    with np.load(folder / "s001_imagery_epochs.npz") as file:
        names, y, group, sfreq = list(file["ch_names"]), file["y"], file["run"], float(file["sfreq"])
        X = _filtered(1e-6 * file["X_uV"][:, :, : round(4 * sfreq)].astype(float), sfreq, 0.5)
    _keep_topography(ctx, X, y, names, sfreq)
    motor = X[:, [names.index(name) for name in SENSORIMOTOR]]
    settings = ctx.pick(quick=FEW, full=SETTINGS, paper=[], tiny=FEW[:2])
    repeats = ctx.pick(quick=dict.fromkeys(REAL, 1), full=dict.fromkeys(REAL, 5), paper={})
    if ctx.scale == "tiny":
        repeats, motor = dict.fromkeys(REAL, 1), motor[:, [4, 7, 8]]
    work = []
    for name, classes in REAL.items():
        mine = np.isin(y, classes)
        task = Task(motor[mine], (y[mine] == classes[1]).astype(int), group[mine])
        splits = _folds(task, repeats[name], ctx.seed, 2 if ctx.scale == "tiny" else 5)
        work.append(Recording(task, tuple(settings), splits, ctx.wants(f"cross-session-{name}")))
    for i, (name, (aucs, across)) in enumerate(zip(REAL, _in_turn(ctx, measure_recording, work))):
        n = repeats[name]
        by_repeat = {method: np.reshape(values, (n, -1)).mean(axis=1) for method, values in aucs.items()}
        if name == "left-right":
            for method, values in by_repeat.items():
                for seed, value in enumerate(values):
                    ctx.series("real", [float(value)], method=method, seed=seed)
        ctx.note(f"Real, {name}: " + ", ".join(f"{method} {v.mean():.3f}" for method, v in by_repeat.items()) + ".")
        gains = by_repeat[OURS] - by_repeat[PLAIN]
        ctx.measured(f"real-{name}", float(gains.mean()), bootstrap_interval(gains) if n > 1 else None)
        if ctx.wants(f"cross-session-{name}"):
            ctx.measured(f"cross-session-{name}", float(across.mean()), bootstrap_interval(across))
        ctx.progress(0.75 + 0.125 * (i + 1))
    ctx.note(f"Real EEG: {', '.join(f'{name} {n} x 5' for name, n in repeats.items())} folds (asked: 5 x 5).")


def _keep_topography(ctx: Context, X: np.ndarray, y: np.ndarray, names: list[str], sfreq: float) -> None:
    """Differences of class means of log power, and of the autocorrelation at 25 ms, for every channel."""
    lag = round(0.025 * sfreq)
    centered = X - X.mean(axis=2, keepdims=True)
    power = np.log((centered**2).mean(axis=2))
    timing = (centered[:, :, lag:] * centered[:, :, :-lag]).mean(axis=2) / (centered**2).mean(axis=2)
    ctx.arrays(
        "topography",
        positions=electrode_positions(names),
        power_left_right=power[y == 1].mean(axis=0) - power[y == 0].mean(axis=0),
        power_hands_feet=power[y == 3].mean(axis=0) - power[y == 2].mean(axis=0),
        timing_left_right=timing[y == 1].mean(axis=0) - timing[y == 0].mean(axis=0),
    )
