"""How well images of none of the classes are rejected: coverage, and classes that are left out."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from pipeline.cores import usable_cores
from pipeline.evaluation.caches import SplitCache
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.probe import TOLERANCE, stratified_order
from pipeline.evaluation.result import Fit, HeadPredictions, Outcome
from pipeline.evaluation.rows import MANY_ROWS, LabelledRows, TrialRows, images_of
from pipeline.evaluation.search import search
from pipeline.evaluation.splits import Images, Trial
from pipeline.heads.config import Input
from pipeline.heads.registry import load_head
from pipeline.models.neighbors import CachedNeighbors, highest, mean_distances
from pipeline.models.rejection import CalibrationSet, conformity
from pipeline.text import duration

MAX_MEASURED = 4000  # validation and test images that distances are computed of
MAX_REFERENCES = 10_000  # cached images that these are to: all of a million take minutes
MAX_LEFT_OUT = 10  # classes; one fit each
MAX_COMPARED = 1000  # images of validation, and of test, for each class that is left out
MAX_FITTED = 2500  # images of train for each of them
MAX_SECONDS = 20.0  # for the fits of all classes; half a minute of audit is too long

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LeftOutClass:
    """How well test images of a class are told from others by a head that has not seen the class.

    Attributes
    ----------
    label : the class; ``images`` is the number of its test images.
    confidence, distance, joint : area under the ROC curve of the head's confidence, of the distance
        to the cached images of the other classes, and of both, as `predict` joins them. Only
        distances tell two classes apart: without one of them there is nothing to learn.
    """

    label: int
    images: int
    confidence: float
    distance: float
    joint: float


def sample_distances(neighbors: CachedNeighbors, trials: Sequence[Trial]) -> Floats:
    """Return the distances (N,) of validation and test images to the nearest other cached images.

    These are `CachedNeighbors.references`. Of more than `MAX_MEASURED` images a random sample is
    measured; the others have NaN.
    """
    _, images = images_of(trials)
    chosen = _sample(images, MAX_MEASURED)
    distances = np.full(len(neighbors.table), np.nan)
    digests = [neighbors.table.columns.digests[image].tobytes() for image in chosen]
    vectors = neighbors.vectors_of(chosen)
    distances[chosen] = neighbors.references(MAX_REFERENCES).measure(vectors, digests)
    return distances


def calibrate(predictions: HeadPredictions, distances: Floats) -> CalibrationSet:
    """Return the calibration set of images that have a distance; distances are of all rows (N,)."""
    used = np.flatnonzero(~np.isnan(distances[predictions.rows]))
    known = CalibrationSet.of(
        predictions.labels[used], predictions.scores[used], distances[predictions.rows[used]]
    )
    return replace(known, references=MAX_REFERENCES * (len(distances) > MAX_REFERENCES))


def conformity_of(calibration: CalibrationSet, scores: Floats, distances: Floats) -> Floats:
    """Return the p-values (n,) of images with probabilities (n, K); NaN without a distance (n,)."""
    values = np.full(len(scores), np.nan)
    used = np.flatnonzero(~np.isnan(distances))
    for block in np.array_split(used, len(used) // 256 + 1):
        values[block], _ = conformity(
            [-calibration.probability, calibration.distance],
            [-scores[block].max(axis=1), distances[block]],
        )
    return values


def leave_classes_out(
    outcome: Outcome,
    cache: SplitCache,
    config: ClassifyConfig,
    *,
    note: Callable[[str], object] = lambda line: None,
) -> list[LeftOutClass] | str:
    """Fit an outcome's setting without each class in turn; see `LeftOutClass`.

    It uses the split of the first trial and the ten classes with most test images. Of more than
    2,500 training images it uses a stratified sample; ``note`` then receives one line. Returns
    the reason instead if the fits would take too long.
    """
    result, labels = outcome.result, cache.table.columns.labels
    class_count, trial = len(cache.table.classes), cache.trial_plan.trials[0]
    test, validation = (
        _sample(images, MAX_COMPARED) for images in (trial.splits.test, trial.splits.validation)
    )
    train = trial.splits.train
    setting = dict(outcome.setting)
    if len(train) > MAX_FITTED:
        order = stratified_order(labels[train], np.random.default_rng(config.seed))
        train = np.sort(train[order[:MAX_FITTED]])
        sampled = f"{MAX_FITTED:,} of {len(trial.splits.train):,} training images"
        note(f"heads that have not seen a class were fitted on {sampled}")
        if result.head == "logistic":  # a sample deserves no exact optimum
            setting["logisticregression__tol"] = TOLERANCE
    largest = np.argsort(-np.bincount(labels[test], minlength=class_count), kind="stable")
    classes = np.sort(largest[:MAX_LEFT_OUT]).tolist()
    one = result.fit_seconds / max(1, result.fits * len(outcome.settings))
    one *= len(train) / len(trial.splits.train)
    if class_count > 2 and one * len(classes) > MAX_SECONDS:
        return (
            f"{len(classes)} fits of {result.head} would take {duration(one * len(classes))}, more "
            f"than {MAX_SECONDS:g} s"
        )
    grid = [{name: [value] for name, value in setting.items()}]
    head = replace(load_head(result.head, config.dense_grid), grid=grid)
    input: Input = "flat" if result.input == "flat" else "pooled"
    splits = replace(trial.splits, train=train, validation=validation, test=test)
    data = None
    if class_count > 2:
        trials = [replace(trial, splits=splits)]
        read = cache.features(result.layer) if len(cache.table) > MANY_ROWS else None
        data = TrialRows.read(cache.views, result.layer, input, trials, in_memory=read)
    neighbors = cache.neighbors(result.layer)
    references = neighbors.references(MAX_REFERENCES)
    images = np.concatenate([test, validation])
    similar = neighbors.vectors_of(images) @ references.vectors.T  # (n, R)
    _, content = np.unique(cache.table.columns.digests, return_inverse=True)
    similar[content[images][:, None] == content[references.rows]] = -np.inf  # identical files
    of_references = labels[references.rows]
    by_class = {
        label: highest(similar[:, of_references == label]) for label in np.unique(of_references)
    }
    classes = [label for label in classes if 0 < np.sum(labels[test] == label) < len(test)]

    def fit_without(left_out: int) -> Fit | None:
        if data is None:
            return None
        known = validation[labels[validation] != left_out]
        return search(
            head,
            _without(data.training_rows(train[labels[train] != left_out]), left_out),
            _without(data.evaluation_rows(known), left_out),
            class_count=class_count - 1,
            seed=config.seed,
            balanced=config.balance,
        )

    with ThreadPoolExecutor(1 if head.is_stochastic else usable_cores()) as pool:
        fits = list(pool.map(fit_without, classes))
    found = []
    for left_out, fit in zip(classes, fits, strict=True):
        is_left_out = labels[test] == left_out
        others = [nearest for label, nearest in by_class.items() if label != left_out]
        measured = mean_distances(np.concatenate(others, axis=1))
        distances, validation_distances = np.split(measured, [len(test)])
        confidence, joint = np.nan, distances
        if data is not None:
            if fit is None:
                continue
            is_known = labels[validation] != left_out
            known = validation[is_known]
            scores = data.evaluation_rows(test).mean_probabilities(fit.estimator)
            own = labels[known] - (labels[known] > left_out)
            calibration = CalibrationSet.of(
                own, fit.validation_scores, validation_distances[is_known]
            )
            joint = -conformity_of(calibration, scores, distances)
            confidence = roc_auc_score(is_left_out, -scores.max(axis=1))
        found.append(
            LeftOutClass(
                label=left_out,
                images=int(is_left_out.sum()),
                confidence=float(confidence),
                distance=float(roc_auc_score(is_left_out, distances)),
                joint=float(roc_auc_score(is_left_out, joint)),
            )
        )
    return found


def _without(rows: LabelledRows, left_out: int) -> LabelledRows:
    """Number the labels again, without a class that none of the rows has."""
    return replace(rows, labels=rows.labels - (rows.labels > left_out))


def _sample(images: Images, count: int) -> Images:
    if len(images) <= count:
        return images
    return np.sort(np.random.default_rng(0).choice(images, count, replace=False))
