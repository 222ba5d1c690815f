"""The data of a comparison: rows of the results table, fits, predictions, outcomes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.spec import CLASSES

if TYPE_CHECKING:
    from pipeline.evaluation.audit import Audit, AuditResult
    from pipeline.models.bundle import Bundle
    from pipeline.models.rejection import CalibrationSet


@dataclass(frozen=True, kw_only=True)
class Result:
    """A head on one layer of one cache; the fields, but the last two, are columns of results.csv.

    New columns are added at the end. Shares are in 0 … 1, NaN where a metric does not apply.

    Attributes
    ----------
    params : the chosen setting, ``C=0.1``.
    train_accuracy : of the training images without their augmented views; of a stratified sample
        of more than 20,000.
    test_low, test_high : 95 % Wilson interval.
    fit_seconds : for all settings of the head.
    predict_ms : milliseconds per test image, from cached features to a class.
    parameters : number of fitted values that predictions use; 0 without metrics.
    balanced_accuracy : mean recall of the classes.
    brier : half the mean squared distance of the probabilities from the truth.
    ece : expected calibration error of the predicted class's probability, 15 bins of equal width.
    temperature : divides the logarithms of the scores, fitted on validation; above 1 for an
        overconfident head.
    calibrated_log_loss, calibrated_ece : on test, with that temperature.
    fits : number of fits, folds or seeds, that the metrics are means of.
    test_spread : standard deviation of their test accuracies; NaN for a single fit.
    p_value, p_holm : exact McNemar test against the best head on the same test images, uncorrected
        and Holm-corrected over the table. No choice depends on them.
    verdict : ``best`` or ``≈ best`` on validation, else empty.
    recommended : whether the sentence below the table recommends it.
    status : empty, or why there are no metrics: ``stopped after 10 s``, ``diverged``.
    model : file of the saved classifier in the run's folder, or empty.
    views, tta : number of augmented views per image, in addition to the image, that it is trained
        on, and that validation and test probabilities are averaged over.
    coverage, kept_accuracy : share of the test images that ``predict --reject`` keeps, and the
        accuracy of these, with thresholds from validation.
    left_out_auroc : mean area under the ROC curve for images of a class that was left out, of the
        recommended head; the audit adds it, see `leave_classes_out`.
    recall_at_5_percent_false_alarms, false_alarms : with a normal class, the shares of the other
        and of normal test images above a threshold, of the probability not to be normal, that
        normal validation images exceed at a rate of at most 5 %.
    best_recall_at_5_percent_false_alarms : the same recall with a threshold of the test images.
    note : what differs from a fit on all images, ``fitted on 10,000 of 36,000 images``.
    task, metrics : of a set without classes; the metrics are columns, instead of those of classes.
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
    coverage: float = math.nan
    kept_accuracy: float = math.nan
    left_out_auroc: float = math.nan
    recall_at_5_percent_false_alarms: float = math.nan
    false_alarms: float = math.nan
    best_recall_at_5_percent_false_alarms: float = math.nan
    note: str = ""
    task: str = CLASSES
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns in results.csv."""
        return (*ROW_START, *self.metrics, *ROW_END) if self.metrics else COLUMN_NAMES

    def row(self) -> dict[str, Any]:
        """Return column -> value, with None instead of NaN for JSON and CSV."""
        values = {**vars(self), **self.metrics}
        return without_nan({name: values[name] for name in self.columns})


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with None instead of NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }


COLUMN_NAMES = tuple(f.name for f in fields(Result) if f.name not in ("task", "metrics"))
# the columns around the metrics of another task
ROW_START = ("head", "input", "params")
ROW_END = ("fit_seconds", "predict_ms", "parameters", "base", "layer", "image_size", "fingerprint",
           "cache", "fits", "p_value", "p_holm", "verdict", "recommended", "status", "model",
           "views", "tta", "note")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HeadPredictions:
    """A head's predictions for n images that it was not fitted on, each image once.

    Attributes
    ----------
    rows : (n,) row numbers in the cache.
    keys : (n,) void, SHA-256 of each image file.
    paths : (n,) paths of the image files, relative to the image root.
    labels : (n,) true classes; of another task as in `truth_of`.
    scores : (n, K) float64 probabilities, or the numbers of a regression (n, 1).
    """

    rows: npt.NDArray[np.int64]
    keys: npt.NDArray[np.void]
    paths: npt.NDArray[np.bytes_]
    labels: npt.NDArray[Any]
    scores: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The class of the highest score (n,)."""
        return np.asarray(self.scores.argmax(axis=1), np.int64)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether the predicted class is the true class (n,)."""
        return np.asarray(self.predicted == self.labels)


_NO_ROWS = np.empty(0, np.int64)
NO_PREDICTIONS = HeadPredictions(
    rows=_NO_ROWS,
    keys=np.empty(0, "V32"),
    paths=np.empty(0, "S1"),
    labels=_NO_ROWS,
    scores=np.empty((0, 1)),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a head's grid, for settings.csv.

    ``validation_accuracy`` is the measure of another task, which has no log loss.
    """

    params: str
    validation_accuracy: float
    validation_log_loss: float
    converged: bool
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One fit of a head on one split: the setting chosen on validation, and its predictions.

    Attributes
    ----------
    estimator : fitted, with ``predict_proba``; None if it was not kept.
    params : its point in the head's grid.
    parameters : number of fitted values that predictions use.
    native_probabilities : whether the estimator has its own probabilities; else a temperature
        fitted on validation makes them.
    temperature : fitted on validation.
    validation_scores : (V, K) probabilities.
    history : of heads trained by epoch: loss, accuracy, val_loss, val_accuracy.
    fit_seconds : for all settings and a refit.
    test_scores : (T, K) probabilities; `score_on_test` adds them, train_accuracy (the measure of
        another task) and predict_seconds.
    note : see `Result`.
    """

    estimator: Any = None
    seed: int = 0
    params: Mapping[str, Any]
    parameters: int
    native_probabilities: bool = True
    temperature: float = math.nan
    validation_scores: npt.NDArray[np.float64]
    validation_accuracy: float = math.nan
    validation_balanced_accuracy: float = math.nan
    settings: tuple[Setting, ...] = ()
    history: Mapping[str, Sequence[float]] | None = None
    fit_seconds: float = math.nan
    test_scores: npt.NDArray[np.float64] | None = None
    train_accuracy: float = math.nan
    predict_seconds: float = math.nan
    note: str = ""


def params_text(params: Mapping[str, Any]) -> str:
    """Format a setting on one line, without the names of a pipeline's steps: ``C=0.1``."""
    return " ".join(
        f"{name.split('__')[-1]}={format(value, 'g') if isinstance(value, int | float) else value}"
        for name, value in params.items()
    )


def most_frequent_setting(fits: Sequence[Fit]) -> list[Fit]:
    """Return the fits with the setting that most fits chose; ties go to the first."""
    texts = [params_text(fit.params) for fit in fits]
    chosen = max(texts, key=texts.count)
    return [fit for fit, text in zip(fits, texts, strict=True) if text == chosen]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A result with the data of plots and statistics.

    An image's prediction is from the fold that tests it, in the first repeat, or from the first
    seed. ``native_probabilities``, ``history`` and ``settings`` are those of the first fit.

    Attributes
    ----------
    test, validation : predictions; empty for a head without metrics (see `Result.status`).
    folds : number of folds; 0 for one split.
    setting : its point in the head's grid.
    calibration : what thresholds for new images are computed from: validation, or after folds test.
    conformity : p-value of each test image (n,), see `conformity`; NaN outside of a sample.
    bundle : the classifier with all that `predict` needs.
    not_saved : why there is no bundle.
    """

    result: Result
    test: HeadPredictions = NO_PREDICTIONS
    validation: HeadPredictions = NO_PREDICTIONS
    native_probabilities: bool = True
    folds: int = 0
    history: Mapping[str, Sequence[float]] | None = None
    settings: tuple[Setting, ...] = ()
    setting: Mapping[str, Any] = field(default_factory=dict)
    calibration: "CalibrationSet | None" = None
    conformity: npt.NDArray[np.float64] | None = None
    bundle: "Bundle | None" = None
    not_saved: str = ""

    @property
    def excerpt(self) -> str:
        """Which fits ``test`` is of, ``the first of 3 seeds``; empty if of all."""
        passes = self.result.fits // max(self.folds, 1)
        return f"the first of {passes} {'repeats' if self.folds else 'seeds'}" if passes > 1 else ""


NO_RECOMMENDATION = "No head can be recommended"  # such a sentence starts with this


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The outcomes of all heads: the highest validation accuracy first, those without metrics last.

    Attributes
    ----------
    run : caches, splits, options and versions of the comparison.
    recommendation : one sentence.
    table_notices : problems that affect the table, without those that the audit finds.
    audit : of the recommended row's cache and layer; None if not requested.
    """

    outcomes: tuple[Outcome, ...]
    classes: tuple[str, ...]
    run: Mapping[str, Any]
    recommendation: str = ""
    table_notices: tuple[str, ...] = ()
    audit: "Audit | None" = None

    @property
    def findings(self) -> "AuditResult | None":
        """What the audit finds; it runs when this, or `notices`, is first read."""
        return None if self.audit is None else self.audit.findings

    @property
    def notices(self) -> tuple[str, ...]:
        """Problems that affect the table: duplicates across splits, imbalance."""
        return (*(self.findings.notices if self.findings else ()), *self.table_notices)

    @property
    def results(self) -> tuple[Result, ...]:
        return tuple(outcome.result for outcome in self.outcomes)

    @property
    def recommends(self) -> bool:
        """Whether the head that is chosen on validation is recommended."""
        return not self.recommendation.startswith(NO_RECOMMENDATION)

    @property
    def shown(self) -> Outcome:
        """The outcome that is chosen on validation."""
        return next(outcome for outcome in self.outcomes if outcome.result.recommended)

    @property
    def task(self) -> str:
        return str(self.run.get("task", CLASSES))

    def document(self) -> dict[str, Any]:
        """Return the contents of results.json."""
        texts = {"recommendation": self.recommendation, "notices": list(self.notices)}
        auroc = math.nan if self.findings is None else self.findings.left_out_auroc
        results = [
            replace(each, left_out_auroc=auroc) if each.recommended else each
            for each in self.results
        ]
        return {"run": {**self.run, **texts}, "rows": [result.row() for result in results]}
