"""Compare heads on the features in a data frame, as if it were a cache."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cache.file import FeatureTable, make_columns
from pipeline.errors import UsageError
from pipeline.images.manifest import as_text, class_names, is_number, is_several, split_labels
from pipeline.images.scan import SPLIT_FOLDERS
from pipeline.spec import CLASSES, MULTILABEL, REGRESSION, FeatureSpec
from pipeline.text import printable

LAYER = "features"
ORIGIN = ("path", "label", "split", "group", "view")  # columns that are not features
SPEC = FeatureSpec(
    base="dataframe",
    weights="none",
    preprocessing="none",
    image_size=0,
    resize="none",
    pixels="none",
    dtype="float32",
)


@dataclass(frozen=True, kw_only=True)
class FrameTable(FeatureTable):
    """A table whose features are in memory: ``values`` (N, D)."""

    values: npt.NDArray[np.float32]

    def features(
        self, layer: str, rows: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return (n, D) float32."""
        return self.values[self.file_rows if rows is None else self.file_rows[rows]]


def table_of_frame(frame: Any, task: str = CLASSES) -> FrameTable:
    """Return the rows of a data frame such as `pipeline.load_features` returns as a table.

    ``label`` is a column of class names, categories or numbers, or of the labels of another
    ``task``; ``path``, ``split``, ``group`` and ``view`` are optional; all other columns are
    features. Rows with equal features are one image, which a split does not divide.

    Raises UsageError for another layout.
    """
    count = len(frame)
    if (repeated := frame.columns[frame.columns.duplicated()]).size:
        raise UsageError(f"a data frame has several columns {printable(str(repeated[0]))}")
    present = {
        name: frame[name].astype(object).where(frame[name].notna())
        for name in ORIGIN
        if name in frame
    }
    if task != MULTILABEL and any(map(is_several, present.get("label", ()))):
        raise UsageError('labels are lists, which need task="multilabel"')
    cells = {
        name: [str(value) if is_several(value) else as_text(value) for value in values]
        for name, values in present.items()
    }
    features = frame.drop(columns=list(cells))
    if "label" not in cells or not count:
        listed = ", ".join(printable(str(name)) for name in frame.columns[:5])
        raise UsageError(f"a data frame needs a column label and rows; received {listed or 'none'}")
    others = [str(name) for name in features.columns.drop(features.select_dtypes("number").columns)]
    if others or not features.shape[1]:
        raise UsageError(
            "all columns but path, label, split, group and view are features, which are numbers; "
            f"received {', '.join(map(printable, others[:5])) or 'no such column'}"
        )
    values = np.ascontiguousarray(features.to_numpy(np.float32))
    missing = 0 if task == MULTILABEL else cells["label"].count("")
    if bad := missing or int((~np.isfinite(values)).any(axis=1).sum()):
        raise UsageError(
            f"{bad:,} of {count:,} rows have no label, or features that are not finite"
        )
    if task == REGRESSION and not all(map(is_number, cells["label"])):
        raise UsageError("the labels of a regression are finite numbers; received other text")
    splits = [text.lower().replace("none", "") for text in cells.get("split", [""] * count)]
    if unknown := set(splits) - {"", *SPLIT_FOLDERS}:
        raise UsageError(
            f"the split is train, validation or test; received {printable(unknown.pop())}"
        )
    paths = [text.encode() for text in cells.get("path", map(str, range(count)))]
    labels = [
        split_labels(value) if task == MULTILABEL else (as_text(value),)
        for value in present["label"]
    ]
    names = class_names({label for each in labels for label in each})
    if task == CLASSES and hasattr(frame["label"], "cat"):  # in the order of the categories
        names = {text: text for text in map(as_text, frame["label"].cat.categories)}
    classes = list(dict.fromkeys(names.values()))
    targets = [[float(text)] for text in cells["label"]] if task == REGRESSION else []
    if task == MULTILABEL:
        of_rows = [{names[label] for label in each} for each in labels]
        targets = [[float(name in of_row) for name in classes] for of_row in of_rows]
    identities = paths if "view" in cells else [row.tobytes() for row in values]
    return FrameTable(
        path=Path("dataframe"),
        spec=SPEC,
        document={
            "set": "dataframe",
            "root": "dataframe",
            "engine": None,
            "task": task,
            "spec": SPEC.to_dict(),
        },
        classes=("label",) if task == REGRESSION else tuple(classes),
        columns=make_columns(
            labels=[classes.index(names[each[0]]) if task == CLASSES else 0 for each in labels],
            targets=targets,
            splits=[SPLIT_FOLDERS.get(split, 0) for split in splits],
            paths=paths,
            digests=[hashlib.sha256(each).digest() for each in identities],
            views=[int(view) for view in cells.get("view", [0] * count)],
            groups=[group.encode() for group in cells.get("group", [])],
        ),
        layers={LAYER: values.shape[1:]},
        file_rows=np.arange(count),
        version=(),
        values=values,
    )
