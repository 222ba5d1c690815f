"""A file of corrected labels that several windows and programs edit at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.file import FeatureTable


@dataclass(frozen=True)
class Edit:
    """What a labels file says of one image.

    Attributes
    ----------
    label : the new class number, `pipeline.evaluation.label_edits.DROPPED` (-1), or None: kept.
    """

    label: int | None


class LabelsFile:
    """A CSV file that ``classify --labels`` reads: path, digest, new_label, drop, reviewed.

    Each edit is on the disk when its method returns. The file is read again before each edit, under
    a lock: edits of other windows and programs stay. Identical images (one digest) are edited
    together. Rows are those of ``table``.

    Every method raises BadDataError, with the line, if the file is damaged (it is never
    overwritten); BusyError if another program holds its lock; CannotCreateError or StorageError
    if it cannot be written.
    """

    def __init__(self, path: Path, table: FeatureTable) -> None:
        self.path = path
        self.table = table

    def session(self) -> "LabelsFile":
        """Return the same file with an undo history of its own, such as for another window."""
        raise NotImplementedError

    def edits(self) -> Mapping[int, Edit]:
        """Return row -> edit, for every reviewed row; read from the disk."""
        raise NotImplementedError

    def relabel(self, row: int, label: str | int) -> None:
        """Give an image another class, by name or number; its own class means `keep`."""
        raise NotImplementedError

    def drop(self, row: int) -> None:
        """Leave an image out of the training and the evaluation."""
        raise NotImplementedError

    def keep(self, row: int) -> None:
        """Mark an image as reviewed, with the label that it has in the table."""
        raise NotImplementedError

    def undo(self) -> int | None:
        """Restore what the file said of the image of this object's last edit; return its row.

        Returns None if there is nothing to undo. Raises BadDataError if the image was edited
        elsewhere since; the next call then undoes the edit before.
        """
        raise NotImplementedError
