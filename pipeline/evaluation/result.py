"""One line of the results table, and what else is known of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.models.bundle import Bundle

if TYPE_CHECKING:
    from pipeline.evaluation.audit import AuditResult


@dataclass(frozen=True, kw_only=True)
class Result:
    """A chosen head on one layer of one cache; the fields are the columns of results.csv.

    Later columns are added at the end. Shares are in 0 … 1, NaN where a measure does not apply.

    Attributes
    ----------
    params : the chosen settings, ``C=0.1``.
    train_accuracy : of the training images without their augmented views.
    test_low, test_high : 95 % Wilson interval.
    fit_seconds : for all settings of the head.
    predict_ms : milliseconds per test image, from cached features to a class.
    parameters : how many numbers the classifier has learned; 0 where none was chosen.
    balanced_accuracy : mean over the classes of recall.
    brier : half the mean squared distance of the probabilities from the truth.
    ece : expected calibration error of the predicted class's probability, 15 bins of equal width.
    temperature : divides the logarithms of the scores, fitted on validation; above 1, the head is
        too sure of itself.
    calibrated_log_loss, calibrated_ece : on test, with that temperature.
    fits : how many fits the measures are means of: folds, or seeds.
    test_spread : standard deviation of their test accuracies; NaN of a single fit.
    p_value, p_holm : exact McNemar test against the best head on the same test images, as it is
        and Holm-corrected over the table. Nothing is chosen by it.
    verdict : ``best`` or ``≈ best`` on validation, else empty.
    recommended : the simplest of these.
    status : empty, or why there are no figures: ``stopped after 10 s``, ``diverged``.
    model : the saved classifier's file in the run's folder, or empty.
    views, tta : how many augmented views, besides the image, it learned from, and its validation
        and test probabilities are averaged over.
    """

    head: str
    input: str
    params: str = ""
    train_accuracy: float = math.nan
    validation_accuracy: float = math.nan
    test_accuracy: float = math.nan
    test_low: float = math.nan
    test_high: float = math.nan
    macro_f1: float = math.nan
    roc_auc: float = math.nan
    log_loss: float = math.nan
    top5_accuracy: float = math.nan
    fit_seconds: float = math.nan
    predict_ms: float = math.nan
    parameters: int = 0
    base: str
    layer: str
    image_size: int
    fingerprint: str
    cache: str
    balanced_accuracy: float = math.nan
    brier: float = math.nan
    ece: float = math.nan
    temperature: float = math.nan
    calibrated_log_loss: float = math.nan
    calibrated_ece: float = math.nan
    fits: int = 0
    test_spread: float = math.nan
    p_value: float = math.nan
    p_holm: float = math.nan
    verdict: str = ""
    recommended: bool = False
    status: str = ""
    validation_balanced_accuracy: float = math.nan
    model: str = ""
    views: int = 0
    tta: int = 0

    def row(self) -> dict[str, Any]:
        """Column -> value; None instead of NaN, as JSON and CSV want it."""
        return without_nan({name: getattr(self, name) for name in COLUMN_NAMES})


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None where there was NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }


COLUMN_NAMES = tuple(field.name for field in fields(Result))


@dataclass(frozen=True, kw_only=True)
class HeadPredictions:
    """What a head says of images that it was not fitted on, each image once.

    Attributes
    ----------
    rows : (n,) row numbers in the cache.
    keys : (n,) void, SHA-256 of each image file.
    labels : (n,) true classes.
    scores : (n, K) float64 probabilities.
    """

    rows: npt.NDArray[np.int64]
    keys: npt.NDArray[np.void]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """(n,): the class of the highest score."""
        return np.asarray(self.scores.argmax(axis=1), np.int64)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(n,) bool: whether that is the true class."""
        return np.asarray(self.predicted == self.labels)


_NO_ROWS = np.empty(0, np.int64)
NO_PREDICTIONS = HeadPredictions(
    rows=_NO_ROWS, keys=np.empty(0, "V32"), labels=_NO_ROWS, scores=np.empty((0, 1))
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a head's grid, for settings.csv."""

    params: str
    validation_accuracy: float
    validation_log_loss: float
    converged: bool
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One fit of a head on one division: the setting chosen on validation, and its predictions.

    Attributes
    ----------
    estimator : fitted, with ``predict_proba``; None where it is not at hand.
    params : its place in the head's grid.
    parameters : how many numbers it predicts with.
    native_probabilities : whether they are the head's own, nothing fitted on validation.
    temperature : fitted on validation.
    validation_scores : (V, K) probabilities.
    history : of a head that is trained by epoch: loss, accuracy, val_loss, val_accuracy.
    fit_seconds : for all settings and a refit.
    test_scores : (T, K) probabilities; with train_accuracy and predict_seconds, computed by
        `pipeline.evaluation.scoring`.
    """

    estimator: Any = None
    seed: int = 0
    params: Mapping[str, Any]
    parameters: int
    native_probabilities: bool = True
    temperature: float
    validation_scores: npt.NDArray[np.float64]
    validation_accuracy: float
    validation_balanced_accuracy: float
    settings: tuple[Setting, ...] = ()
    history: Mapping[str, Sequence[float]] | None = None
    fit_seconds: float
    test_scores: npt.NDArray[np.float64] | None = None
    train_accuracy: float = math.nan
    predict_seconds: float = math.nan


def params_text(params: Mapping[str, Any]) -> str:
    """Settings on one line, without the names of a pipeline's steps: ``C=0.1``."""
    return " ".join(
        f"{name.split('__')[-1]}={format(value, 'g') if isinstance(value, int | float) else value}"
        for name, value in params.items()
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A result with what plots and statistics need.

    Each image's prediction is of the fold that left it out, in the first repeat; of several seeds
    it is the first one's. ``native_probabilities``, ``history`` and ``settings`` are those of the
    first fit.

    Attributes
    ----------
    test, validation : predictions, none where the head has no figures (see `Result.status`).
    folds : in how many parts every image was tested; 0 for one test set.
    bundle : the classifier with what it takes to use it.
    not_saved : why there is none.
    """

    result: Result
    test: HeadPredictions = NO_PREDICTIONS
    validation: HeadPredictions = NO_PREDICTIONS
    native_probabilities: bool = True
    folds: int = 0
    history: Mapping[str, Sequence[float]] | None = None
    settings: tuple[Setting, ...] = ()
    bundle: Bundle | None = None
    not_saved: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every head's outcome, the highest validation accuracy first; those without figures last.

    Attributes
    ----------
    run : what was compared and how: caches, splits, settings, versions.
    recommendation : one sentence for people.
    notices : what to know before reading the table: duplicates across splits, imbalance.
    findings : of the recommended row's cache and layer.
    """

    outcomes: tuple[Outcome, ...]
    classes: tuple[str, ...]
    run: Mapping[str, Any]
    recommendation: str = ""
    notices: tuple[str, ...] = ()
    findings: "AuditResult | None" = None

    @property
    def results(self) -> tuple[Result, ...]:
        return tuple(outcome.result for outcome in self.outcomes)

    @property
    def shown(self) -> Outcome:
        """The outcome that validation recommends."""
        return next(each for each in self.outcomes if each.result.recommended)

    def document(self) -> dict[str, Any]:
        """The contents of results.json."""
        said = {"recommendation": self.recommendation, "notices": list(self.notices)}
        return {"run": {**self.run, **said}, "rows": [result.row() for result in self.results]}
