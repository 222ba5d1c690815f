"""predictions.csv of a run: what the recommended head says of each image it is evaluated on."""

import csv
import io
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable
from pipeline.durable import write_durably
from pipeline.errors import BadDataError, NoInputError
from pipeline.evaluation.label_edits import class_number
from pipeline.evaluation.result import Comparison
from pipeline.images.manifest import read_csv
from pipeline.text import printable

PREDICTIONS = "predictions.csv"
COLUMNS = ("path", "digest", "split", "label", "predicted", "probability", "label_probability")


def write_predictions(path: Path, comparison: Comparison) -> None:
    """Write the recommended head's predictions of validation and test; after folds, every image's.

    Each is by a classifier that was not fitted on the image; of several seeds, by the first. The
    file is durable, and starts with a byte order mark, as suspects.csv.
    """
    shown, text = comparison.shown, io.StringIO()
    classes = [printable(name) for name in comparison.classes]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for split in ("test",) if shown.folds else ("validation", "test"):
        part = shown.test if split == "test" else shown.validation
        every, predicted = np.arange(len(part)), part.predicted
        highest, of_label = part.scores[every, predicted], part.scores[every, part.labels]
        for index in every.tolist():
            writer.writerow(
                (
                    printable(part.paths[index]),
                    part.keys[index].tobytes().hex(),
                    split,
                    classes[part.labels[index]],
                    classes[predicted[index]],
                    f"{highest[index]:.6f}",
                    f"{of_label[index]:.6f}",
                )
            )
    data = text.getvalue().encode("utf-8-sig")
    write_durably(path, lambda file: file.write(data))


class TablePredictions(NamedTuple):
    """Predictions in the order of a table's N rows.

    ``labels`` and ``predicted`` are class numbers (N,), -1 for rows without a prediction;
    probabilities are NaN for these.
    """

    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    label_probability: npt.NDArray[np.float64]


def no_predictions(count: int) -> TablePredictions:
    """Return the predictions of a run that has none."""
    numbers, probabilities = np.full((2, count), -1), np.full((2, count), np.nan)
    return TablePredictions(*numbers, *probabilities)


def read_predictions(path: Path, table: FeatureTable) -> TablePredictions:
    """Read a run's predictions of a table's rows; images that are not in the table are left out.

    Raises NoInputError if the file cannot be read, BadDataError if it is invalid.
    """
    name = printable(path)
    try:
        frame = read_csv(path)
    except OSError as error:
        raise NoInputError(f"{name} cannot be read: {error.strerror}") from error
    if missing := [column for column in COLUMNS if column not in frame]:
        raise BadDataError(f"{name} has no column {missing[0]}")
    labels, predicted = (
        frame[column].map(
            {text: class_number(text, table.classes, name) for text in set(frame[column])}
        )
        for column in ("label", "predicted")
    )
    try:
        probabilities = frame[["probability", "label_probability"]].astype(float).to_numpy()
    except ValueError as error:
        raise BadDataError(f"{name}: expected probabilities ({error})") from error
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(table.columns.digests):
        rows_of[digest.tobytes().hex()].append(row)
    read = no_predictions(len(table))
    cells = zip(frame["path"], frame["digest"], labels, predicted, probabilities, strict=True)
    for text, digest, label, prediction, shares in cells:
        for row in (rows := rows_of.get(digest, [])):
            # copies of a file may be in several splits
            if len(rows) == 1 or printable(table.columns.paths[row]) == text:
                read.labels[row], read.predicted[row] = label, prediction
                read.probability[row], read.label_probability[row] = shares
    return read
