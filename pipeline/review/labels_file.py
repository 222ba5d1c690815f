"""A file of corrected labels that several windows and programs edit at once."""

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.cache.file import FeatureTable
from pipeline.durable import DISK_FULL, remove_temporaries, write_durably
from pipeline.errors import BadDataError, BusyError, CannotCreateError, UsageError
from pipeline.evaluation.image_lookup import ImageLookup, assign, read_records
from pipeline.evaluation.label_edits import edited_label, has_edit
from pipeline.text import printable

COLUMNS = ("path", "digest", "new_label", "drop", "reviewed")
LOCK_SECONDS = 10.0  # an edit holds the lock for some hundredths of a second
POLL_SECONDS = 0.01

Line = dict[str, str]  # the cells of a line by column


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
    a lock: edits of other windows and programs stay, and so do other columns. Identical images (one
    digest) are edited together. Rows are those of ``table``; lines of other images are left alone.

    Every method raises BadDataError, with the line, if the file is damaged (it is never
    overwritten); BusyError if another program holds its lock; CannotCreateError or StorageError
    if it cannot be written.
    """

    def __init__(self, path: Path, table: FeatureTable, *, lookup: ImageLookup | None = None):
        self.path = path
        self.table = table
        self._lookup = lookup or ImageLookup([table.columns])
        self._history: list[tuple[int, Line, list[Line]]] = []  # row, line written, lines replaced

    def session(self) -> "LabelsFile":
        """Return the same file with an undo history of its own, such as for another window."""
        return LabelsFile(self.path, self.table, lookup=self._lookup)

    @property
    def stamp(self) -> int:
        """A number that changes with the file: its time of modification."""
        return self.path.stat().st_mtime_ns if self.path.exists() else 0

    def edits(self) -> Mapping[int, Edit]:
        """Return row -> edit, for every reviewed row; read from the disk."""
        return self._edits_of(self._read())

    def relabel(self, row: int, label: str | int) -> None:
        """Give an image another class, by name or number; its own class means `keep`.

        Raises UsageError for a name or number that is no class.
        """
        classes = self.table.classes
        number = classes.index(label) if label in classes else label
        if not isinstance(number, int) or not 0 <= number < len(classes):
            known = ", ".join(map(printable, classes[:10]))
            raise UsageError(f"{printable(str(label))} is not a class; the classes are {known}")
        is_own = number == self.table.columns.labels[row]
        self._edit(row, new_label="" if is_own else printable(classes[number]))

    def drop(self, row: int) -> None:
        """Leave an image out of the training and the evaluation."""
        self._edit(row, drop="yes")

    def keep(self, row: int) -> None:
        """Mark an image as reviewed, with the label that it has in the table."""
        self._edit(row)

    def undo(self) -> int | None:
        """Restore what the file said of the image of this object's last edit; return its row.

        Returns None if there is nothing to undo. Raises BadDataError if the image was edited
        elsewhere since; the next call then undoes the edit before.
        """
        if not self._history:
            return None
        row, written, replaced = self._history[-1]
        with self._locked():
            found = self._replace(row, replaced, only=written)
        self._history.pop()
        if not found:
            name = printable(self.table.columns.paths[row])
            raise BadDataError(f"{name} was edited elsewhere since: nothing is undone")
        return row

    def _edit(self, row: int, *, new_label: str = "", drop: str = "") -> None:
        columns = self.table.columns
        line = {
            "path": printable(columns.paths[row]),
            "digest": columns.digests[row].tobytes().hex(),
            "new_label": new_label,
            "drop": drop,
            "reviewed": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        with self._locked():
            replaced = self._replace(row, [line])
        self._history.append((row, line, replaced))

    def _replace(self, row: int, lines: Sequence[Line], only: Line | None = None) -> list[Line]:
        """Write the file with other lines for a row's image; return the lines that it replaces.

        With ``only``, write nothing and return no line if the image has another line than this.
        """
        kept: list[Line] = []
        replaced: list[Line] = []
        place = 0
        digest = self.table.columns.digests[row].tobytes().hex()
        copies = set(self._lookup.find({"digest": digest, "path": ""}, "")[0])
        found = self._read()
        self._edits_of(found)  # raises for invalid lines
        for _, line, rows in found:
            if not copies.isdisjoint(rows):
                place = place if replaced else len(kept)
                replaced.append(line)
            else:
                kept.append(line)
        if not replaced:
            place = len(kept)
        if only and list(map(_content, replaced)) != [_content(only)]:
            return []
        kept[place:place] = lines
        text = io.StringIO()
        names = dict.fromkeys((*COLUMNS, *(name for line in kept for name in line)))
        writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        data = text.getvalue().encode("utf-8-sig")  # Excel needs the byte order mark
        try:
            write_durably(self.path, lambda file: file.write(data))
        except OSError as error:
            raise self._cannot_write(error) from error
        return replaced

    def _read(self) -> list[tuple[str, Line, list[int]]]:
        """Return the place, cells and rows of each line."""
        if not self.path.exists():
            return []
        records = read_records(self.path, option="the labels file", values=COLUMNS[2:])
        return [(place, line, self._lookup.find(line, place)[0]) for place, line in records]

    def _edits_of(self, lines: Sequence[tuple[str, Line, list[int]]]) -> dict[int, Edit]:
        edits: dict[int, tuple[Edit, str]] = {}
        for place, line, rows in lines:
            if has_edit(line, place):
                label = edited_label(line, self.table.classes, place) if rows else None
                assign(Edit(label), rows, place, edits, self.table.columns)
            elif line["reviewed"].strip():
                assign(Edit(None), rows, place, edits, self.table.columns)
        return {row: edit for row, (edit, _) in edits.items()}

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # A new object for each edit: one object could be acquired twice by a thread.
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(timeout=LOCK_SECONDS, poll_interval=POLL_SECONDS)
        except Timeout as error:
            raise BusyError(
                f"another program holds {printable(lock.lock_file)}; the edit is not saved"
            ) from error
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            remove_temporaries(self.path)
            yield
        finally:
            lock.release()

    def _cannot_write(self, error: OSError) -> Exception:
        if error.errno in DISK_FULL:
            return error
        return CannotCreateError(
            f"cannot write {printable(self.path)} ({error.strerror}); choose another labels file"
        )


def _content(line: Line) -> list[str]:
    """Return the cells that identify an edit, without the spaces that a spreadsheet may drop."""
    return [line[name].strip() for name in COLUMNS[1:]]
