"""Open a run with its cache: predictions, labels, pictures, and the images to review."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable, read_table
from pipeline.errors import BadDataError, NoInputError, PipelineError, UsageError
from pipeline.evaluation.caches import split_tables
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.predictions_file import (
    PREDICTIONS,
    no_predictions,
    read_predictions,
)
from pipeline.evaluation.splits import Shares
from pipeline.heads.config import DenseConfig
from pipeline.heads.names import PROTOCOLS
from pipeline.images.decode import register_heic
from pipeline.images.scan import NO_SPLIT, SPLIT_NAMES, TEST, TRAIN, VALIDATION
from pipeline.images.sets import Name, open_source, reopen_source
from pipeline.images.source import ImageSource
from pipeline.models.runs import newest_run, read_results
from pipeline.review.labels_file import LabelsFile
from pipeline.review.queue import QueueItem, build_queue
from pipeline.spec import CLASSES
from pipeline.text import printable

LABELS = "labels.csv"  # in the run's folder
MIN_POINTS = 3  # of a map

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Review:
    """A run of classify or finetune with the cache of its recommended head; N images, K classes.

    Attributes
    ----------
    run : its folder.
    document : the ``run`` of its results.json.
    rows : the rows of results.json; ``row`` is that of the recommended head.
    table : the unaugmented images, with the labels that the run used; features are read on request.
    splits : (N,) 1 train, 2 validation, 3 test, as the run used them (`SPLIT_NAMES` of
        `pipeline.images.scan`); after folds every image is test.
    predicted : (N,) class numbers by the recommended head, which was not fitted on the image; -1
        if it has no prediction for it, such as a training image.
    probability, label_probability : (N,) of the predicted class and of the label, NaN without.
    labels : the file of corrected labels.
    cache_dir, images : as for `open_review`.
    notices : one line each, such as that an old run has no predictions.csv.
    """

    run: Path
    document: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    row: Mapping[str, Any]
    table: FeatureTable
    splits: npt.NDArray[np.uint8]
    predicted: Rows
    probability: npt.NDArray[np.float64]
    label_probability: npt.NDArray[np.float64]
    labels: LabelsFile
    cache_dir: Path
    images: Name | None = None
    notices: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.table.classes

    @property
    def layer(self) -> str:
        """The cached layer of the recommended head."""
        return str(self.row["layer"])

    @property
    def heads(self) -> list[str]:
        """The heads of the run, for `retrain`; empty for a run of finetune."""
        return list(self.document.get("heads", ()))

    def current_labels(self) -> Rows:
        """Return class numbers (N,) after the edits of the labels file; -1 for dropped images."""
        labels = self.table.columns.labels.copy()
        for row, edit in self.labels.edits().items():
            if edit.label is not None:
                labels[row] = edit.label
        return labels

    def mistakes(self, labels: Rows) -> Rows:
        """Return the rows (n,) whose predicted class is not their label, the most confident first.

        ``labels`` : (N,) class numbers, -1 for dropped images, which are left out.
        """
        wrong = np.flatnonzero((self.predicted >= 0) & (labels >= 0) & (self.predicted != labels))
        lead = self.probability[wrong] - self.label_probability[wrong]
        return wrong[np.argsort(-lead, kind="stable")]

    def select(
        self,
        *,
        label: int | None = None,
        predicted: int | None = None,
        split: int | None = None,
        only_mistakes: bool = False,
    ) -> Rows:
        """Return the rows (n,), ascending, of a current label, predicted class and split.

        Mistakes are images whose predicted class is not their current label; the most confident
        come first.
        """
        labels = self.current_labels()
        rows = self.mistakes(labels) if only_mistakes else np.arange(len(labels))
        for values, wanted in ((labels, label), (self.predicted, predicted), (self.splits, split)):
            if wanted is not None:
                rows = rows[values[rows] == wanted]
        return rows

    def feature_map(self, max_points: int = 2000) -> tuple[npt.NDArray[np.float64], Rows]:
        """Return two principal components (n, 2), in 0 … 1, and their rows (n,), ascending.

        Of more than ``max_points`` images, as many, spread evenly over the classes.
        """
        from pipeline.evaluation.rows import read_input
        from pipeline.report.galleries import pca_points, spread_rows  # 0.5 s of matplotlib

        rows = spread_rows(self.table.columns.labels, max(MIN_POINTS, max_points))
        if len(rows) < MIN_POINTS:
            return np.full((len(rows), 2), 0.5), rows
        points, _ = pca_points(read_input(self.table, self.layer, rows, "pooled"))
        return points.clip(0, 1), rows

    def picture(self, row: int, side: int = 256) -> bytes | str:
        """Return a JPEG of at most ``side`` pixels, or the reason why there is none.

        It is read from the image set, and shown only if its SHA-256 is that of the cached image.
        """
        from pipeline.report.thumbnails import read_picture

        try:
            if (source := self._source) is None:
                self.__dict__.pop("_source", None)  # the folder may come back
                return "the image folder is gone"
            return read_picture(source, self.table, row, side)
        except PipelineError as error:  # of an archive or a storage
            return f"the images cannot be reached: {error}"

    @cached_property
    def _source(self) -> ImageSource | None:
        register_heic()
        if self.images is None:
            return reopen_source(self.table.document)
        return open_source(self.images)

    def queue(self, *, reviewed: bool = False) -> list[QueueItem]:
        """Return the images to review: likely label errors, confident mistakes, then duplicates.

        Each image is in it once. Those in the labels file are left out unless ``reviewed``.
        The first call takes seconds; later ones read the labels file only.
        """
        edits = {} if reviewed else self.labels.edits()
        return [item for item in self._queue if item.row not in edits]

    @cached_property
    def _queue(self) -> list[QueueItem]:
        return build_queue(self)


def open_review(
    run: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    cache_dir: Path | str = "cache",
    images: Name | None = None,
) -> Review:
    """Open a run of classes for review.

    Parameters
    ----------
    run : folder of classify or finetune (default: the newest in results/).
    labels : file of corrected labels (default: ``labels.csv`` in the run's folder); it need not
        exist.
    cache_dir : folder to look for the run's cache in, if it has moved.
    images : folder or archive with the images, if moved.

    Raises UsageError for runs of labels or numbers; NoInputError if the run or its cache is gone;
    BadDataError if either, or the labels file, is damaged.
    """
    folder = newest_run() if run is None else Path(run)
    document, rows = read_results(folder)
    if (task := document.get("task", CLASSES)) != CLASSES:
        raise UsageError(
            f"{printable(folder)} is a run of {task}; only labels of classes can be reviewed"
        )
    row = next((row for row in rows if row["recommended"]), None)
    if row is None:
        raise BadDataError(f"{printable(folder)} recommends no head: choose another run")
    notices = []
    try:
        table = find_cache_of_run(folder, document, str(row["cache"]), Path(cache_dir))
        config = config_of_run(document, table)
        config.evaluation_protocol  # noqa: B018 - raises for values of other types
        files = labels_files_of_run(folder, document)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        name = printable(folder / "results.json")
        raise BadDataError(f"{name} is not a results.json of classify") from error
    for each in [each for each in files if not each.exists()]:
        notices.append(f"{printable(each)}, which the run used, is gone: labels are as cached")
        files.remove(each)
    config = replace(config, labels=files, layers=[str(row["layer"])], views=0, tta=False)
    (cache,) = split_tables([table], config)
    table, trials = cache.table, cache.trial_plan.trials
    splits = np.full(len(table), TEST if cache.trial_plan.folds else NO_SPLIT, np.uint8)
    if not cache.trial_plan.folds:
        for number in (TRAIN, VALIDATION, TEST):
            splits[getattr(trials[0].splits, SPLIT_NAMES[number])] = number
    try:
        predictions = read_predictions(folder / PREDICTIONS, table)
    except PipelineError as error:
        notices.append(f"no mistakes are known: {error}")
        if isinstance(error, NoInputError):
            notices[-1] = f"{printable(folder)} has no {PREDICTIONS}: its mistakes are not known"
        predictions = no_predictions(len(table))
    # the labels files may have changed since the run
    evaluated = np.where(predictions.labels >= 0, predictions.labels, table.columns.labels)
    table = replace(table, columns=replace(table.columns, labels=evaluated))
    review = Review(
        run=folder,
        document=document,
        rows=tuple(rows),
        row=row,
        table=table,
        splits=splits,
        predicted=predictions.predicted,
        probability=predictions.probability,
        label_probability=predictions.label_probability,
        labels=LabelsFile(folder / LABELS if labels is None else Path(labels), table),
        cache_dir=Path(cache_dir),
        images=images,
        notices=tuple(notices),
    )
    review.labels.edits()  # raises if the file is damaged
    return review


def find_cache_of_run(
    run: Path, document: Mapping[str, Any], name: str, cache_dir: Path
) -> FeatureTable:
    """Open a run's cache, where the run names it or in ``cache_dir``.

    Raises NoInputError if it is gone, or of other features.
    """
    entry = next(entry for entry in document["caches"] if entry["path"] == name)
    named = Path(entry["path"])
    for path in (named, run.absolute().parent.parent / named, cache_dir / named.name):
        if path.is_file() and (table := read_table(path)).spec.fingerprint == entry["fingerprint"]:
            return table
    raise NoInputError(
        f"the cache of {printable(run)}, {printable(named)}, is gone: restore it, run "
        f"python -m pipeline.extract again, or name its folder with --cache-dir"
    )


def labels_files_of_run(run: Path, document: Mapping[str, Any]) -> list[Path]:
    """Return the run's labels files, where the run names them or beside ``results/``."""
    beside = run.absolute().parent.parent
    files = [Path(each) for each in document.get("labels", ())]
    return [beside / each if (beside / each).exists() else each for each in files]


def config_of_run(document: Mapping[str, Any], table: FeatureTable) -> ClassifyConfig:
    """Return the options of a run's comparison, without labels files and the audit."""
    names = {field.name for field in fields(ClassifyConfig)} & document.keys() - {"labels"}
    options = {name: document[name] for name in names} | {
        "layers": sorted({layer for entry in document["caches"] for layer in entry["layers"]}),
        "dense": [DenseConfig(**each) for each in document.get("dense", ())],
        "audit": False,
    }
    if document.get("protocol") in PROTOCOLS:
        del options["heads"]
    is_divided = table.columns.splits.max(initial=0) > TRAIN
    if document.get("cv") is None and document.get("split") is None and not is_divided:
        options["split"] = str(Shares())  # fewer images after edits must not lead to folds
    return ClassifyConfig(**options)
