"""Elements of a NiceGUI page: text, lists of which one page at a time is sent, tables, bars."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from pipeline.errors import PipelineError

PER_PAGE = 24

ui.button.default_props("no-caps")


def text(tag: str, words: str, classes: str = "") -> Any:
    """Add an element with text, which is escaped."""
    return TextElement(tag=tag, text=words).classes(classes)


def box(classes: str = "", tag: str = "div") -> Any:
    """Add an element that may contain others."""
    return ui.element(tag).classes(classes)


def warn(error: Exception | str) -> None:
    """Show an expected failure as one sentence."""
    if not isinstance(error, PipelineError | str):
        error = "This failed; the terminal says why"
    ui.notify(str(error), type="warning", multi_line=True, timeout=10_000, close_button="Close")


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Add a table of text."""
    with box(tag="table"):
        for tag, rows in ("th", [header]), ("td", cells):
            for row in rows:
                with box(tag="tr"):
                    for cell in row:
                        text(tag, cell)


def bars(shares: Iterable[tuple[str, float]]) -> None:
    """Add a bar for each name and its share, 0 … 1."""
    for name, share in shares:
        with box("bar"):
            text("span", name)
            text("span", f"{share * 100:.1f} %")
        with box("fill"):
            box().style(f"width: {share:.1%}")


class Pages:
    """A list of which one page at a time is sent; ``tile`` adds an entry."""

    def __init__(self, tile: Callable[[Any], None]) -> None:
        self._tile = tile
        self._entries: Sequence[Any] = ()
        self._grid = box("grid")
        self._pages = ui.pagination(1, 1, direction_links=True, on_change=self._draw)
        self._pages.props("max-pages=6 boundary-links")

    def show(self, entries: Sequence[Any], *, stay: bool = False) -> None:
        """Show the first page of entries, or with ``stay`` the page that is shown, if any."""
        self._entries = entries
        self._pages.max = max(1, -(-len(entries) // PER_PAGE))
        self._pages.set_visibility(len(entries) > PER_PAGE)
        self._pages.value = min(self._pages.value, self._pages.max) if stay else 1
        self._draw()

    def _draw(self) -> None:
        start = (self._pages.value - 1) * PER_PAGE
        self._grid.clear()
        with self._grid:
            for entry in self._entries[start : start + PER_PAGE]:
                self._tile(entry)
