"""Walk through the queue of a review: an image at a time, a key each."""

from pipeline.review.queue import QueueItem
from pipeline.review.review import Review
from pipeline.text import counted, printable

FOLLOWING = 100  # images: by how many keys may be faster than the screen
KEEP, DROP, UNDO = ("k", "ArrowRight"), ("d",), ("u", "Backspace")


class Walk:
    """The images to review; each edit is on the disk before the walk goes on.

    Attributes
    ----------
    item : the image to decide on; None if none is left.
    rows : its row, and those of the images that follow.
    shown : counts the images that were shown. A key names the one on the screen when it was
        pressed: keys faster than the screen are for the images that followed then, and no others.
    """

    def __init__(self, review: Review) -> None:
        self.labels = review.labels.session()
        self.item: QueueItem | None = None
        self.rows: list[int] = []
        self.shown = 0
        self.progress = ""
        self._review = review
        self._items = review.queue(reviewed=True)
        self._at = 0
        self._rows_of: dict[int, list[int]] = {}  # shown -> rows
        self._stamp = -1
        self.refresh()

    def press(self, key: str, shown: int) -> str:
        """Do what a key says of the image that was on the screen; return what is saved.

        Keys are those of JavaScript: Enter or Space for the suggestion, k to keep the label, d to
        drop the image, u to undo, or the number of a class from 1. Raises the errors of
        `LabelsFile`.
        """
        key = key.lower() if len(key) == 1 else key
        if key in UNDO:
            return self._undo()
        self.refresh()  # another window may have edited the image
        rows, steps = self._rows_of.get(shown, []), self.shown - shown
        if self.item is None or steps >= len(rows) or rows[steps] != self.item.row:
            return f"Not done, the picture had changed: press {key} again"
        row, path = self.item.row, self._name(self.item.row)
        label = int(key) - 1 if key.isdigit() else self.item.suggested
        if key in KEEP:
            self.labels.keep(row)
            said = "keeps its label"
        elif key in DROP:
            self.labels.drop(row)
            said = "is dropped"
        elif 0 <= label < len(self._review.classes):
            self.labels.relabel(row, label)
            said = f"is {printable(self._review.classes[label])}"
        else:
            return f"There is no class {key}" if key.isdigit() else "Nothing is suggested here"
        self._go(self._at + 1)
        return f"Saved: {path} {said}"

    @property
    def pictured(self) -> list[int]:
        """The row of the image, and that of its duplicate."""
        return [] if self.item is None else [r for r in (self.item.row, self.item.other) if r >= 0]

    def describe(self) -> tuple[str, str, str, str]:
        """Return label, suggested label, reason and path of the image; empty ones without."""
        if self.item is None:
            return "", "", "Nothing is left to review: train again with these labels", ""
        item, classes = self.item, self._review.classes
        label = classes[self._review.table.columns.labels[item.row]]
        suggested = classes[item.suggested] if item.suggested >= 0 else ""
        return printable(label), printable(suggested), item.reason, self._name(item.row)

    def refresh(self) -> bool:
        """Read the edits of other windows and programs; return whether there are any."""
        stamp = self.labels.stamp
        if stamp != self._stamp:
            # A step that no key can bridge: a key for the image that another window edited just now
            # is not for the next one.
            self._go(self._at, step=FOLLOWING + 1)
            return True
        return False

    def _undo(self) -> str:
        row = self.labels.undo()
        if row is None:
            return "Nothing to undo in this window"
        rows = [item.row for item in self._items]
        self._go(rows.index(row) if row in rows else self._at)
        return f"Saved: {self._name(row)} is as before"

    def _go(self, start: int, step: int = 1) -> None:
        """Go to the first image from ``start`` on that is not reviewed."""
        self._stamp = self.labels.stamp
        edits, count = self.labels.edits(), len(self._items)
        order = [*range(start, count), *range(min(start, count))]
        left = [index for index in order if self._items[index].row not in edits]
        self.progress = f"{count - len(left):,} of {counted(count, 'image')} reviewed"
        before, self.item = self.item, self._items[left[0]] if left else None
        self.rows = [self._items[index].row for index in left[: FOLLOWING + 1]]
        self._at = left[0] if left else 0
        if self.item != before:
            self.shown += step
            self._rows_of.pop(self.shown - 50, None)
        self._rows_of[self.shown] = self.rows

    def _name(self, row: int) -> str:
        return printable(self._review.table.columns.paths[row])
