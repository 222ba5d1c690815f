"""One window of the page: the tabs Try, Look, Mend and Compare."""

import asyncio
import base64
import json
import tempfile
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nicegui import run, ui
from nicegui.elements.mixins.text_element import TextElement

from pipeline.errors import PipelineError
from pipeline.images.scan import SPLIT_NAMES
from pipeline.images.source import MAX_FILE
from pipeline.models.image_predictions import Prediction
from pipeline.page.open_run import OpenRun
from pipeline.review import ImageChange, QueueItem, Review
from pipeline.spec import REGRESSION
from pipeline.text import counted, file_size, printable

SIDE, LARGE = 256, 640  # pixels of pictures in lists, and of one picture
PER_PAGE = 24
PICTURES_ON_MAP = 81  # more of them overlap
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")  # Okabe-Ito
SYMBOLS = ("circle", "triangle", "rect", "diamond", "pin")
KEYS = 9  # classes with a key


def text(tag: str, words: str, classes: str = "") -> Any:
    """Add an element with text, escaped."""
    return TextElement(tag=tag, text=words).classes(classes)


class Window:
    """What one browser window shows of an open run."""

    def __init__(self, open_run: OpenRun) -> None:
        self.open_run, self.review, self.token = open_run, open_run.review, open_run.token
        style, script = (
            resources.files("pipeline.page").joinpath(name).read_text("utf-8")
            for name in ("page.css", "page.js")
        )
        ui.add_head_html(f"<style>{style}</style>")
        ui.add_body_html(f"<script>{script}</script>")
        ui.colors(primary="#0b6e99")
        review = self.review if isinstance(self.review, Review) else None
        name = printable(review.table.document["set"]) if review else open_run.run.name
        ui.page_title(f"{name} · review")
        text("h1", name)
        text("p", f"{printable(open_run.run)}: {summary(review)}", "quiet")
        for notice in self._notices(review):
            text("p", notice, "warn")
        tabs = {"Try": Try, "Look": Look, "Mend": Mend, "Compare": Compare}
        with ui.tabs().props("align=left") as bar:
            for name in tabs:
                ui.tab(name)
        with ui.tab_panels(bar, value="Try" if review is None else "Mend", animated=False):
            for name, tab in tabs.items():
                with ui.tab_panel(name):
                    if name == "Try" or review is not None:
                        tab(self)
                    else:
                        text("p", str(self.review), "warn")
        ui.timer(1, self._reload_if_replaced)

    def _notices(self, review: Review | None) -> list[str]:
        if review is None:
            return []
        shown = review.picture(0, 32)  # an image folder that is gone is said once, here
        return [*review.notices, *([f"no pictures: {shown}"] if isinstance(shown, str) else [])]

    def _reload_if_replaced(self) -> None:
        if self.token != self.open_run.token:
            ui.navigate.reload()

    def picture(self, row: int, classes: str = "", side: int = SIDE) -> None:
        """Add the picture of a row."""
        path = printable(self.review.table.columns.paths[row])
        image = ui.element("img").classes(classes)
        image.props["src"] = f"/picture/{self.token}/{row}?side={side}"
        image.props["alt"], image.props["title"] = path, path

    def tile(self, row: int, *lines: str) -> None:
        """Add a picture with lines below it; a click shows it large."""
        with ui.element("figure"):
            with ui.element("button").classes("tile").on("click", lambda: self.show(row)):
                self.picture(row)
            with ui.element("figcaption"):
                for line in lines:
                    text("div", line)

    def show(self, row: int) -> None:
        """Open a dialog with the picture of a row, and buttons to mend its label."""
        review = self.review
        labels = review.labels.session()

        def edit(method: Callable[..., None], *arguments: Any) -> None:
            if attempt(method, row, *arguments) is None:
                ui.notify("Saved")
            dialog.close()

        with ui.dialog() as dialog, ui.card().classes("dialog"):
            self.picture(row, "big", LARGE)
            text("p", printable(review.table.columns.paths[row]), "quiet")
            text("p", describe(review, row, int(review.current_labels()[row])))
            with ui.element("div").classes("line"):
                ui.select(dict(enumerate(map(printable, review.classes))), label="Relabel to",
                          on_change=lambda event: edit(labels.relabel, event.value),
                          ).classes("select")  # fmt: skip
                ui.button("Drop", on_click=lambda: edit(labels.drop)).props("outline")
                ui.button("Close", on_click=dialog.close).props("flat")
        dialog.on("hide", dialog.delete)
        dialog.open()


class Pages:
    """A list of which one page at a time is sent."""

    def __init__(self, tile: Callable[[Any], None]) -> None:
        self._tile, self._entries = tile, ()
        self._grid = ui.element("div").classes("grid")
        self._pages = ui.pagination(1, 1, direction_links=True, on_change=self._draw)
        self._pages.props("max-pages=6 boundary-links").classes("pages")

    def show(self, entries: Sequence[Any]) -> None:
        self._entries = entries
        self._pages.max = max(1, -(-len(entries) // PER_PAGE))
        self._pages.set_visibility(len(entries) > PER_PAGE)
        self._pages.value = 1
        self._draw()

    def _draw(self) -> None:
        start = (self._pages.value - 1) * PER_PAGE
        self._grid.clear()
        with self._grid:
            for entry in self._entries[start : start + PER_PAGE]:
                self._tile(entry)


class Try:
    """Predict a picture."""

    def __init__(self, window: Window) -> None:
        self._window = window
        uploader = ui.upload(
            auto_upload=True, max_file_size=MAX_FILE, on_upload=self._tried,
            on_rejected=lambda: self._refuse(f"it is empty, or larger than {file_size(MAX_FILE)}"),
        ).classes("picker")  # fmt: skip
        self._uploader = uploader
        with ui.element("div").classes("card drop"):
            text("p", "Drop a picture here, paste one, or")
            with ui.element("div").classes("line"):
                ui.button("Choose a picture").on("click", js_handler="() => picker().pickFiles()")
                ui.button("Use the camera", on_click=self._camera).props("outline")
        ui.on("camera", lambda event: self._refuse(printable(str(event.args))))
        self._result = ui.element("div").props("aria-live=polite")

    def _camera(self) -> None:
        with ui.dialog().props("persistent") as dialog, ui.card().classes("dialog"):
            ui.element("video").classes("camera").props("autoplay playsinline muted")
            with ui.element("div").classes("line"):
                take = ui.button("Take the picture", on_click=dialog.close)
                take.on("click", js_handler="() => takePicture()")
                close = ui.button("Close", on_click=dialog.close).props("flat")
                close.on("click", js_handler="() => closeCamera()")
        dialog.on("show", js_handler="() => openCamera()")
        dialog.on("hide", dialog.delete)
        dialog.open()

    def _refuse(self, reason: str) -> None:
        self._result.clear()
        with self._result:
            text("p", f"No prediction: {reason}", "warn")

    async def _tried(self, event: Any) -> None:
        self._uploader.reset()
        self._result.clear()
        with self._result:
            ui.spinner(size="lg")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "picture")
            await event.file.save(path)
            found = await run.io_bound(self._window.open_run.predict, path)
            if isinstance(found, str):
                self._refuse(found)
                return
            plain, heat = await run.io_bound(self._window.open_run.overlay, path, found)
        self._result.clear()
        with self._result:
            self._show(found, printable(event.file.name), plain, heat)

    def _show(self, prediction: Prediction, name: str, plain: bytes, heat: bytes | None) -> None:
        with ui.element("div").classes("two"):
            with ui.element("figure").classes("card"):
                image = ui.element("img").classes("big")
                image.props["alt"] = name
                addresses = [data_address(each) for each in (plain, heat or plain)]
                image.props["src"] = addresses[1]
                text("figcaption", name, "quiet")
                if heat:
                    ui.switch("Heat map: where the evidence lies", value=True,
                              on_change=lambda event: image.props.update(src=addresses[event.value]),
                              )  # fmt: skip
            with ui.element("div").classes("card"):
                if rejection := prediction.rejection:
                    if rejection.reason == "unlike":
                        text("p", "Unlike anything it learned", "warn says")
                    elif rejection.reason == "unsure":
                        among = " or ".join(map(printable, rejection.classes))
                        text("p", f"Unsure: {among or 'none of the classes fits'}", "warn says")
                if prediction.task == REGRESSION:
                    text(
                        "p", f"{printable(prediction.classes[0])}: {prediction.number:.4g}", "says"
                    )
                else:
                    top = prediction.top(5)
                    text("p", f"{printable(top[0][0])}, {top[0][1]:.0%}", "says")
                    for label, share in top:
                        with ui.element("div").classes("bar"):
                            text("span", printable(label), "name")
                            text("span", f"{share:.1%}")
                            with ui.element("i"):
                                ui.element("b").style(f"width: {share:.1%}")
        if prediction.neighbors:
            text("h2", "Most similar images")
            with ui.element("div").classes("grid"):
                for neighbor in prediction.neighbors:
                    lines = (printable(neighbor.label), f"similarity {neighbor.similarity:.2f}")
                    row = self._window.open_run.rows.get(neighbor.path)
                    if row is not None:
                        self._window.tile(row, *lines)
                    else:
                        with ui.element("figure"):
                            for line in (*lines, printable(neighbor.path)):
                                text("div", line)


class Look:
    """The map of the features and a list, filtered."""

    def __init__(self, window: Window) -> None:
        self._window, review = window, window.review
        self._points, self._rows = review.feature_map()
        counted_rows = counted(len(self._rows), "image")
        part = (
            f"{counted_rows} of {len(review.predicted):,}, "
            if len(self._rows) < len(review.predicted)
            else ""
        )
        text("p", f"{part}two principal components of the features. Scroll to zoom, drag to move, "
                  "click for the picture.", "quiet")  # fmt: skip
        self._filters: dict[str, Any] = {}
        splits = {int(each): SPLIT_NAMES[int(each)] for each in np.unique(review.splits)}
        with ui.element("div").classes("line"):
            for name, label, options in (
                ("label", "Class", dict(enumerate(map(printable, review.classes)))),
                ("split", "Split", splits),
            ):
                ui.select(
                    options, label=label, clearable=True, on_change=self._filter(name)
                ).classes("select")
            ui.switch("Only mistakes", on_change=self._filter("only_mistakes"))
        self._chart = ui.echart(self._options(), on_point_click=self._clicked).classes("map card")
        self._chart.on("chart:datazoom", self._zoomed, ["batch"], throttle=0.3)
        self._window_of = np.array([[0.0, 0.0], [1.0, 1.0]])  # visible corners
        self._title = text("h2", "")
        self._pages = Pages(self._tile)
        self._refresh()

    def _filter(self, name: str) -> Callable[[Any], None]:
        def changed(event: Any) -> None:
            self._filters[name] = event.value
            self._refresh()

        return changed

    def _options(self) -> dict[str, Any]:
        axis = {"min": 0, "max": 1, "axisLabel": {"show": False}, "axisTick": {"show": False},
                "splitLine": {"show": False}, "axisLine": {"show": False}}  # fmt: skip
        zoom = [
            {"type": "inside", "id": name, f"{name}AxisIndex": 0, "filterMode": "none"}
            for name in "xy"
        ]
        return {
            "animation": False,
            "color": list(COLORS),
            "grid": {"left": 12, "right": 12, "top": 40, "bottom": 12},
            "legend": {"type": "scroll", "top": 4},
            "tooltip": {"renderMode": "richText", "formatter": "{b}"},  # never HTML
            "xAxis": axis,
            "yAxis": axis,
            "dataZoom": zoom,
            "series": [],
        }

    def _refresh(self) -> None:
        review = self._window.review
        self._selected = review.select(**self._filters)
        self._current = review.current_labels()
        self._title.text = counted(len(self._selected), "image")
        self._pages.show(self._selected)
        self._draw()

    def _draw(self) -> None:
        review, rows = self._window.review, self._rows
        shown = np.isin(rows, self._selected)
        series: list[dict[str, Any]] = []
        for number, name in enumerate(review.classes):
            chosen = np.flatnonzero(shown & (self._current[rows] == number))
            series.append({
                "type": "scatter",
                "name": printable(name),
                "symbol": SYMBOLS[number % len(SYMBOLS)],
                "symbolSize": 8,
                "itemStyle": {"opacity": 0.75},
                "data": [self._point(index) for index in chosen],
            })  # fmt: skip
        low, high = self._window_of
        inside = shown & ((self._points >= low) & (self._points <= high)).all(axis=1)
        chosen = np.flatnonzero(inside)
        spread = chosen[spread_out(self._points[chosen], PICTURES_ON_MAP)]
        series.append({
            "type": "scatter",
            "symbolSize": 36,
            "z": 3,
            "data": [self._point(index) | {"symbol": "image://" + self._address(rows[index])}
                     for index in spread],
        })  # fmt: skip
        self._chart.options["series"] = series
        self._chart.update()

    def _point(self, index: int) -> dict[str, Any]:
        review, row = self._window.review, int(self._rows[index])
        label = describe(review, row, int(self._current[row]))
        path = printable(review.table.columns.paths[row])
        return {"value": self._points[index].tolist(), "name": f"{path}\n{label}", "row": row}

    def _address(self, row: int) -> str:
        return f"/picture/{self._window.token}/{row}?side=64"

    def _clicked(self, event: Any) -> None:
        self._window.show(int(event.data["row"]))

    def _zoomed(self, event: Any) -> None:
        for each in event.args["batch"] or ():
            axis = "xy".index(each["dataZoomId"])
            self._window_of[:, axis] = each["start"] / 100, each["end"] / 100
        self._draw()

    def _tile(self, row: int) -> None:
        self._window.tile(
            int(row), describe(self._window.review, int(row), int(self._current[row]))
        )


class Mend:
    """The queue of images to review, one at a time, a key each.

    ``shown`` counts the images that were shown. A key names the one on the screen when it was
    pressed: keys that are faster than the screen go to the images that were shown to follow.
    """

    def __init__(self, window: Window) -> None:
        self._window, self._review = window, window.review
        self._labels = window.review.labels.session()
        self._items: list[QueueItem] = []
        self._at, self.shown = -1, 0
        self._followers: dict[int, list[int]] = {}  # shown -> rows from there on
        self._turn = asyncio.Lock()  # keys act in order
        self._stamp: Any = None
        self._root = ui.element("div")
        with self._root:
            self._progress = text("h2", "Finding the images to review …")
            with ui.element("div").classes("two"):
                self._picture = ui.element("div")
                with ui.element("div").classes("card"):
                    self._reason = text("p", "", "says").props("aria-live=polite")
                    self._path = text("p", "", "quiet")
                    self._accept = self._button("Enter", "Accept")
                    self._keep = self._button("k", "Keep")
                    with ui.element("div").classes("line keys"):
                        for number, name in enumerate(self._review.classes[:KEYS], start=1):
                            self._button(str(number), printable(name), "outline")
                    if len(self._review.classes) > KEYS:
                        self._select = ui.select(
                            dict(enumerate(map(printable, self._review.classes))),
                            label="Other class", with_input=True, on_change=self._chosen,
                        ).classes("select")  # fmt: skip
                    with ui.element("div").classes("line keys"):
                        self._button("d", "Drop the image", "outline")
                        self._button("u", "Undo", "outline")
                    self._said = text("p", "", "saved").props("aria-live=polite")
        ui.on("mend", lambda event: self.press(event.args["key"], event.args["shown"]))
        ui.timer(0.01, self._load, once=True)
        ui.timer(1, self._follow_others)

    def _button(self, key: str, label: str, props: str = "") -> Any:
        button = ui.button().props(f"no-caps {props}")
        with button:
            text("kbd", key)
            button.words = text("span", label)
        # A click must not leave the focus here, where Enter would press this button again.
        button.on("mousedown", js_handler="(event) => event.preventDefault()")
        button.on("click", js_handler=f"() => pressMend({json.dumps(key)})")
        return button

    async def _load(self) -> None:
        try:
            self._items = await run.io_bound(self._review.queue, reviewed=True)
        except PipelineError as error:
            self._progress.text = str(error)
            return
        await self._advance()

    async def _follow_others(self) -> None:
        """Show what other windows and programs wrote to the labels file."""
        if self._items and self._file_stamp() != self._stamp:
            async with self._turn:
                await self._advance(stay=True)

    def _file_stamp(self) -> Any:
        path = self._labels.path
        return path.stat().st_mtime_ns if path.exists() else None

    async def press(self, key: str, shown: int) -> None:
        """Do what a key says of the image that was on the screen, and show the next one."""
        async with self._turn:
            followers, steps = self._followers.get(shown, []), self.shown - shown
            item = self._items[self._at] if self._at >= 0 else None
            is_undo = key in ("u", "U", "Backspace")
            if not is_undo and (
                item is None or not 0 <= steps < len(followers) or followers[steps] != item.row
            ):
                self._said.text = f"Not done: the picture had changed. Press {key} again."
                return
            try:
                said = await run.io_bound(self._undo if is_undo else self._apply, key, item)
            except PipelineError as error:
                said = ""
                ui.notify(str(error), type="warning")
            self._said.text = said or ""
            if said and said.startswith("Saved"):
                await self._advance()

    def _apply(self, key: str, item: QueueItem) -> str:
        """Write an edit; return what was saved, once it is on the disk."""
        classes, path = self._review.classes, printable(self._review.table.columns.paths[item.row])
        if key in ("Enter", " ") and item.suggested >= 0:
            label = item.suggested
        elif key in ("k", "K", "ArrowRight"):
            self._labels.keep(item.row)
            return f"Saved: {path} keeps its label"
        elif key in ("d", "D"):
            self._labels.drop(item.row)
            return f"Saved: {path} is dropped"
        elif key.isdigit() and 1 <= int(key) <= len(classes):
            label = int(key) - 1
        else:
            return f"{key.strip() or 'Space'} does nothing here"
        self._labels.relabel(item.row, label)
        return f"Saved: {path} is {printable(classes[label])}"

    def _undo(self, key: str, item: QueueItem | None) -> str:
        row = self._labels.undo()
        if row is None:
            return "Nothing to undo in this window"
        rows = [each.row for each in self._items]
        self._at = rows.index(row) - 1 if row in rows else self._at - 1
        return f"Saved: {printable(self._review.table.columns.paths[row])} is as before"

    async def _chosen(self, event: Any) -> None:
        if event.value is not None:
            self._select.value = None
            await self.press(str(event.value + 1), self.shown)

    async def _advance(self, *, stay: bool = False) -> None:
        """Show the first image after the current one that is not reviewed; or stay, if it is not."""
        self._stamp = self._file_stamp()
        try:
            edits = await run.io_bound(self._labels.edits)
        except PipelineError as error:
            ui.notify(str(error), type="warning")
            return
        count = len(self._items)
        start = self._at if stay else self._at + 1
        order = [(start + step) % count for step in range(count)]
        left = [index for index in order if self._items[index].row not in edits]
        done = count - len(left)
        self._progress.text = f"{done:,} of {counted(count, 'image')} reviewed"
        if stay and left and left[0] == self._at:
            return
        self._at = left[0] if left else -1
        self._draw([self._items[index].row for index in left[:7]])

    def _draw(self, rows: list[int]) -> None:
        self.shown += 1
        self._followers[self.shown] = rows
        self._followers.pop(self.shown - 50, None)
        self._root.props["data-shown"] = self.shown
        self._picture.clear()  # new elements: an old picture never stays above a new text
        if self._at < 0:
            self._reason.text = "Nothing is left to review. Compare trains again with these labels."
            self._path.text = ""
            return
        item, review = self._items[self._at], self._window.review
        with self._picture:
            with ui.element("div").classes("pair" if item.other >= 0 else ""):
                for row in (item.row, item.other):
                    if row >= 0:
                        self._window.picture(row, "big", LARGE)
            with ui.element("div").classes("grid strip").props("aria-label='what follows'"):
                for row in rows[1:]:
                    self._window.picture(row, side=LARGE)  # in the browser's cache when it is shown
        self._reason.text = item.reason
        self._path.text = printable(review.table.columns.paths[item.row])
        self._accept.set_visibility(item.suggested >= 0)
        self._accept.words.text = f"It is {printable(review.classes[item.suggested])}"
        label = review.classes[int(review.table.columns.labels[item.row])]
        self._keep.words.text = f"Keep {printable(label)}"


class Compare:
    """The run's heads; train again, and what that changes."""

    def __init__(self, window: Window) -> None:
        self._window, self._version = window, -1
        self._table = ui.element("div").classes("scroll card")
        with ui.element("div").classes("line keys"):
            self._train = ui.button("Train again with these labels", on_click=self._start)
            self._all = ui.switch("All heads of the run, which takes longer")
            self._all.set_visibility(len(window.review.heads) > 1)
        self._stage = text("p", "", "saved").props("aria-live=polite")
        self._adopt = ui.button("Go on with the new run", on_click=self._go_on).props("outline")
        self._title = text("h2", "")
        self._pages = Pages(self._tile)
        self._follow()
        ui.timer(0.5, self._follow)

    async def _start(self) -> None:
        reason = await run.io_bound(self._window.open_run.train, all_heads=self._all.value)
        if reason:
            ui.notify(f"Not trained: {reason}", type="warning", multi_line=True)

    async def _go_on(self) -> None:
        await run.io_bound(self._window.open_run.adopt)

    def _follow(self) -> None:
        """Show the state of the training, which another window may have started."""
        shared = self._window.open_run
        if shared.version == self._version:
            return
        self._version = shared.version
        self._stage.text = f"Training, {shared.stage}" if shared.stage else ""
        self._train.set_enabled(not shared.stage)
        self._adopt.set_visibility(shared.trained is not None)
        self._table.clear()
        with self._table:
            table(*comparison_table(shared))
            for notice in shared.comparison.notices if shared.comparison else ():
                text("p", notice, "quiet")
        images = shared.comparison.images if shared.comparison else ()
        self._title.text = f"{counted(len(images), 'image')} changed" if shared.comparison else ""
        self._pages.show(images)

    def _tile(self, change: ImageChange) -> None:
        lines = []
        for name, old, new in (
            ("label", change.old_label, change.new_label),
            ("head", change.old_predicted, change.new_predicted),
        ):
            shown = [printable(each or "none") for each in (old, new)]
            lines.append(f"{name}: {' → '.join(dict.fromkeys(shown))}")
        if change.was_correct != change.is_correct and change.is_correct is not None:
            lines.append("now right" if change.is_correct else "now wrong")
        if change.row >= 0:
            self._window.tile(change.row, *lines)
        else:
            with ui.element("figure"):
                for line in (printable(change.path), *lines):
                    text("div", line)


def comparison_table(shared: OpenRun) -> tuple[list[str], list[list[str]]]:
    """Return header and cells: the run's heads, and those of the run that was trained last."""
    assert isinstance(shared.review, Review)
    if shared.comparison is None:
        rows = shared.review.document["rows"]
        return ["head", "input", "accuracy"], [
            [printable(row["head"]), printable(row["input"]), accuracy(row)] for row in rows
        ]
    cells = []
    for change in shared.comparison.rows:
        figures = [row and row["test_accuracy"] for row in (change.old, change.new)]
        both = figures[0] is not None and figures[1] is not None
        difference = f"{(figures[1] - figures[0]) * 100:+.1f} points" if both else ""
        names = [printable(change.head), printable(change.input)]
        cells.append([*names, accuracy(change.old), accuracy(change.new), difference])
    return ["head", "input", "before", "after", "difference"], cells


def accuracy(row: Any) -> str:
    """Format the accuracy on test, with its 95 % interval: '94.2 % (92.6–95.5)'."""
    if row is None or row["test_accuracy"] is None:
        return "–"
    shown = f"{row['test_accuracy'] * 100:.1f} %"
    if row["test_low"] is None:
        return shown
    return f"{shown} ({row['test_low'] * 100:.1f}–{row['test_high'] * 100:.1f})"


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Add a table of text."""
    with ui.element("table"):
        for tag, rows in (("th", [header]), ("td", cells)):
            for row in rows:
                with ui.element("tr"):
                    for cell in row:
                        text(tag, cell)


def summary(review: Review | None) -> str:
    """Return one line on a run."""
    if review is None:
        return "its model only"
    images, classes = counted(len(review.predicted), "image"), len(review.classes)
    head = f"{printable(review.row['head'])} {accuracy(review.row)}"
    return f"{images} in {counted(classes, 'class', 'classes')}, {head}"


def describe(review: Review, row: int, label: int) -> str:
    """Return what an image is labelled and predicted: 'cats, predicted dogs 98 %'."""
    name = printable(review.classes[label]) if label >= 0 else "dropped"
    predicted = int(review.predicted[row])
    if predicted < 0:
        return name
    return f"{name}, predicted {printable(review.classes[predicted])} {review.probability[row]:.0%}"


def attempt(function: Callable[..., Any], *arguments: Any) -> str | None:
    """Call a function; show its expected failure and return it."""
    try:
        function(*arguments)
    except PipelineError as error:
        ui.notify(str(error), type="warning", multi_line=True)
        return str(error)
    return None


def spread_out(points: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """Return indices of at most ``count`` points (n, 2): one of each cell of a square grid."""
    if not len(points):
        return np.empty(0, np.intp)
    side = int(count**0.5)
    shares = (points - points.min(axis=0)) / (np.ptp(points, axis=0) + 1e-9)
    cells = (shares * side).astype(int).clip(0, side - 1) @ (side, 1)
    return np.unique(cells, return_index=True)[1]


def data_address(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
