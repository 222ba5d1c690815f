"""predictions.csv of a run: what the recommended head says of each image it is evaluated on."""

import csv
import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable
from pipeline.durable import write_durably
from pipeline.errors import BadDataError
from pipeline.evaluation.image_lookup import read_records
from pipeline.evaluation.label_edits import class_number
from pipeline.evaluation.result import Comparison
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


@dataclass(frozen=True, kw_only=True)
class TablePredictions:
    """Predictions in the order of a table's N rows.

    Attributes
    ----------
    labels, predicted : (N,) class numbers; -1 for rows without a prediction.
    probability, label_probability : (N,), NaN for rows without a prediction.
    """

    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    label_probability: npt.NDArray[np.float64]

    @classmethod
    def none(cls, count: int) -> Self:
        return cls(
            labels=np.full(count, -1),
            predicted=np.full(count, -1),
            probability=np.full(count, np.nan),
            label_probability=np.full(count, np.nan),
        )


def read_predictions(path: Path, table: FeatureTable) -> TablePredictions:
    """Read a run's predictions of a table's rows; images that are not in the table are left out.

    Raises NoInputError if the file cannot be read, BadDataError, with the line, if it is invalid.
    """
    read = TablePredictions.none(len(table))
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(table.columns.digests):
        rows_of[digest.tobytes().hex()].append(row)
    numbers: dict[str, int] = {}
    for line, record in read_records(path, option="the run's", values=COLUMNS[2:]):
        rows = rows_of.get(record["digest"], [])
        if len(rows) > 1:  # copies of a file may be in several splits
            rows = [row for row in rows if printable(table.columns.paths[row]) == record["path"]]
        try:
            probabilities = float(record["probability"]), float(record["label_probability"])
        except ValueError as error:
            raise BadDataError(f"{line}: expected two probabilities") from error
        for name in (record["label"], record["predicted"]):
            if name not in numbers:
                numbers[name] = class_number(name, table.classes, line)
        read.labels[rows] = numbers[record["label"]]
        read.predicted[rows] = numbers[record["predicted"]]
        read.probability[rows], read.label_probability[rows] = probabilities
    return read
