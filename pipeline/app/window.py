"""One browser window: the tabs Try, Look, Mend and Compare."""

import asyncio
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
from nicegui import run, ui

from pipeline.images.scan import SPLIT_NAMES
from pipeline.images.source import MAX_FILE
from pipeline.models.image_predictions import Prediction
from pipeline.review.feature_chart import FeatureChart, describe
from pipeline.review.review import Review
from pipeline.review.walk import Walk
from pipeline.review.workbench import LARGE, Workbench, changes, verdict
from pipeline.text import counted, file_size, printable
from pipeline.web.elements import Pages, bars, box, table, text, warn

KEYS = 9  # classes with a key


class Window:
    """What a browser window shows of a workbench."""

    def __init__(self, bench: Workbench) -> None:
        self.bench, self.token = bench, bench.token
        self.review = cast(Any, bench.review)  # a reason only where no other tab is built
        files = resources.files(__package__)
        ui.add_head_html(f"<style>{files.joinpath('page.css').read_text('utf-8')}</style>")
        ui.add_body_html(f"<script>{files.joinpath('page.js').read_text('utf-8')}</script>")
        ui.colors(primary="#0b6e99")
        ui.on_exception(warn)
        ui.timer(1, lambda: self.token == bench.token or ui.navigate.reload())
        has_review = isinstance(self.review, Review)
        name, summary, notices = bench.describe()
        ui.page_title(f"{name} · review")
        text("h1", name)
        text("p", summary, "quiet")
        for notice in notices:
            text("p", notice, "warn")
        tabs = {"Try": Try, "Look": Look, "Mend": Mend, "Compare": Compare}
        with ui.tabs().props("align=left no-caps") as bar:
            for tab in tabs:
                ui.tab(tab)
        first = "Mend" if has_review else "Try"
        with ui.tab_panels(bar, value=first, animated=False) as self.panels:
            for tab, build in tabs.items():
                with ui.tab_panel(tab):
                    if has_review or build is Try:
                        build(self)
                    else:
                        text("p", str(self.review), "warn")

    def address(self, row: int, side: int) -> str:
        return f"/picture/{self.token}/{row}?side={side}"

    def picture(self, row: int, classes: str = "", side: int = 256) -> None:
        """Add the picture of a row."""
        path = printable(self.review.table.columns.paths[row])
        box(classes, "img").props.update(src=self.address(row, side), alt=path, title=path)

    def tile(self, row: int, *lines: str, path: bytes = b"") -> None:
        """Add a picture with lines below it, which a click shows large; without row, a path."""
        with box(tag="figure"):
            if row < 0:
                text("div", printable(path))
            else:
                with box("tile", "button").on("click", lambda: self.show(row)):
                    self.picture(row)
            with box(tag="figcaption"):
                for line in lines:
                    text("div", line)

    def show(self, row: int) -> None:
        """Open a dialog with the picture of a row, and buttons to mend its label."""
        review = self.review

        def edit(label: int) -> None:
            dialog.close()
            review.labels.relabel(row, label) if label >= 0 else review.labels.drop(row)
            ui.notify("Saved", type="positive")

        with ui.dialog() as dialog, box("card dialog"):
            self.picture(row, "big", LARGE)
            text("p", printable(review.table.columns.paths[row]), "quiet")
            text("p", describe(review, row, int(review.current_labels()[row])))
            with box("line"):
                names = dict(enumerate(map(printable, review.classes)))
                relabel = ui.select(names, label="Relabel to").classes("select")
                relabel.on_value_change(lambda event: edit(event.value))
                ui.button("Drop", on_click=lambda: edit(-1)).props("outline")
                ui.button("Close", on_click=dialog.close).props("flat")
        dialog.open()


class Try:
    """Predict a picture."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._uploader = ui.upload(auto_upload=True, max_file_size=MAX_FILE, on_upload=self._tried)
        self._uploader.classes("picker")
        self._uploader.on_rejected(
            lambda: self._refuse(f"the file is empty or larger than {file_size(MAX_FILE)}")
        )
        with box("card drop"):
            text("p", "Drop a picture here, paste one, or")
            with box("line"):
                ui.button("Choose a picture").on("click", js_handler="() => picker().pickFiles()")
                ui.button("Use the camera", on_click=self._camera).props("outline")
        self._result = box().props("aria-live=polite")
        ui.on("camera", lambda event: warn(printable(str(event.args))))

    def _camera(self) -> None:
        with ui.dialog().props("persistent") as dialog, box("card dialog"):
            box(tag="video").props("autoplay playsinline muted")
            with box("line"):
                take = ui.button("Take the picture", on_click=dialog.close)
                take.on("click", js_handler="() => takePicture()")
                ui.button("Close", on_click=dialog.close).props("flat")
        dialog.on("show", js_handler="() => openCamera()")
        dialog.on("before-hide", js_handler="() => closeCamera()")
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
        bench = self._window.bench
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "picture")
            await event.file.save(path)
            prediction = await run.io_bound(bench.predict, path)
            if isinstance(prediction, str):
                self._refuse(prediction)
                return
            pictures = await run.io_bound(bench.pictures, path, prediction)
        self._result.clear()
        with self._result, box("two"):
            with box("card"):
                self._show_pictures(pictures, printable(event.file.name))
            with box("card"):
                self._show_prediction(prediction)

    def _show_pictures(self, addresses: Sequence[str], name: str) -> None:
        image = box("big", "img")
        image.props.update(src=addresses[-1], alt=name)
        text("p", name, "quiet")
        if len(addresses) > 1:
            switch = ui.switch("Heat map: orange is evidence for it, blue against", value=True)
            switch.on_value_change(lambda event: image.props.update(src=addresses[event.value]))

    def _show_prediction(self, prediction: Prediction) -> None:
        warning, says, shares = verdict(prediction)
        if warning:
            text("p", warning, "warn says")
        text("p", says, "says")
        bars(shares)
        if prediction.neighbors:
            text("h2", "Most similar images")
        with box("grid near"):
            for each in prediction.neighbors:
                lines = printable(each.label), f"similarity {each.similarity:.2f}"
                row = self._window.bench.rows.get(each.path, -1)
                self._window.tile(row, *lines, path=each.path)


class Look:
    """The map of the features and a list, filtered."""

    def __init__(self, window: Window) -> None:
        self._window, self._review = window, window.review
        self._filters: dict[str, Any] = {}
        with box() as self._root:
            ui.spinner(size="lg")
        ui.timer(0.01, self._start, once=True)

    async def _start(self) -> None:
        """Build the tab when its map is computed: in seconds, for 100,000 images."""
        window, review = self._window, self._review
        self._map = await run.io_bound(FeatureChart, review, lambda row: window.address(row, 64))
        self._root.clear()
        with self._root:
            part = f"{len(self._map.rows):,} of {counted(len(review.predicted), 'image')}"
            text("p", f"{part} by two principal components: scroll to zoom, click to see", "quiet")
            with box("line"):
                splits = {int(each): SPLIT_NAMES[each] for each in np.unique(review.splits)}
                self._select("label", "Class", dict(enumerate(map(printable, review.classes))))
                self._select("split", "Split", splits)
                switch = ui.switch("Only mistakes")
                switch.on_value_change(lambda event: self._filter(only_mistakes=event.value))
            self._chart = ui.echart(self._map.options | {"series": []}).classes("map card")
            self._chart.on_point_click(lambda event: window.show(event.data["row"]))
            self._chart.on("chart:datazoom", self._zoom, ["batch"], throttle=0.3)
            self._title = text("h2", "")
            self._pages = Pages(
                lambda row: window.tile(int(row), describe(review, row, self._labels[row]))
            )
            self._filter()
            ui.timer(0.5, self._follow)

    def _select(self, name: str, title: str, options: dict[int, str]) -> None:
        select = ui.select(options, label=title, clearable=True).classes("select")
        select.on_value_change(lambda event: self._filter(**{name: event.value}))

    def _follow(self) -> None:
        if self._window.panels.value == "Look" and self._stamp != self._review.labels.stamp:
            self._filter()

    def _filter(self, **filters: Any) -> None:
        self._filters |= filters
        self._stamp = self._review.labels.stamp
        self._labels = self._review.current_labels()
        self._rows = self._review.select(**self._filters)
        self._title.text = counted(len(self._rows), "image")
        self._pages.show(self._rows, stay=not filters)
        self._draw()

    def _zoom(self, event: Any) -> None:
        for each in event.args["batch"] or ():
            self._map.zoom(each["dataZoomId"], each["start"], each["end"])
        self._draw()

    def _draw(self) -> None:
        self._chart.options["series"] = self._map.series(self._rows, self._labels)
        self._chart.update()


class Mend:
    """The queue of images to review, a key each."""

    def __init__(self, window: Window) -> None:
        self._window, self._review = window, window.review
        self._turn = asyncio.Lock()  # keys act in order
        self._walk: Walk | None = None
        classes = list(map(printable, self._review.classes))
        with box() as self._root:
            self._progress = text("h2", "Finding the images to review …")
            with box("two"):
                self._pictures = box()
                with box("card"):
                    self._label = text("p", "", "says")
                    self._reason = text("p", "")
                    self._path = text("p", "", "quiet")
                    with box("line"):
                        self._accept = self._button("Enter", "")
                        self._keep = self._button("k", "", "outline")
                    with box("line"):
                        for number, name in enumerate(classes[:KEYS], start=1):
                            self._button(str(number), name, "outline")
                    if len(classes) > KEYS:
                        names = dict(enumerate(classes, start=1))
                        other = ui.select(names, label="Other class", with_input=True)
                        other.classes("select").on_value_change(self._choose)
                    with box("line"):
                        self._button("d", "Drop the image", "outline")
                        self._button("u", "Undo", "outline")
                    self._said = text("p", "", "saved").props("aria-live=polite")
        ui.on("mend", lambda event: self._press(**event.args))
        ui.timer(0.01, self._start, once=True)
        ui.timer(1, self._follow)

    def _button(self, key: str, label: str, props: str = "") -> Any:
        with ui.button().props(props) as button:
            text("kbd", key)
            button.words = text("span", label)
        # A click must not leave the focus here: Enter would press this button again.
        button.on("mousedown", js_handler="(event) => event.preventDefault()")
        button.on("click", js_handler=f"() => pressMend('{key}')")
        return button

    async def _start(self) -> None:
        self._walk = await run.io_bound(Walk, self._review)
        self._draw(self._walk)

    async def _follow(self) -> None:
        if (walk := self._walk) is not None:
            async with self._turn:
                if await run.io_bound(walk.refresh):
                    self._draw(walk)

    async def _press(self, key: str, shown: int | None = None) -> None:
        if (walk := self._walk) is not None:
            async with self._turn:
                shown = walk.shown if shown is None else shown
                self._said.text = await run.io_bound(walk.press, key, shown)
                self._draw(walk)

    async def _choose(self, event: Any) -> None:
        if event.value is not None:
            event.sender.value = None
            await self._press(str(event.value))

    def _draw(self, walk: Walk) -> None:
        self._progress.text = walk.progress
        if self._root.props.get("data-shown") == walk.shown:
            return
        self._root.props["data-shown"] = walk.shown
        self._pictures.clear()  # new elements: an old picture never stays beside a new text
        with self._pictures:
            with box("pair"):
                for row in walk.pictured:
                    self._window.picture(row, "big", LARGE)
            with box("grid strip"):
                for row in walk.rows[1:7]:
                    self._window.picture(row, side=LARGE)  # the browser has it when it is shown
        label, suggested, self._reason.text, self._path.text = walk.describe()
        self._label.text = f"Labelled {label}" if label else ""
        self._keep.words.text, self._accept.words.text = f"Keep {label}", f"It is {suggested}"
        self._accept.set_visibility(bool(suggested))


class Compare:
    """The run's heads; train again, and what that changes."""

    def __init__(self, window: Window) -> None:
        self._window, self._version = window, -1
        self._table = box("scroll card")
        with box("line"):
            self._train = ui.button("Train again with these labels").props("accesskey=t")
            with_all = ui.switch("All heads of the run, which takes longer")
            with_all.set_visibility(len(window.review.heads) > 1)
            self._train.on_click(lambda: run.io_bound(window.bench.train, with_all.value))
            self._adopt = ui.button("Go on with the new run").props("outline")
            self._adopt.on_click(lambda: run.io_bound(window.bench.adopt))
        self._stage = text("p", "", "saved").props("aria-live=polite")
        self._title = text("h2", "")
        self._pages = Pages(lambda each: window.tile(each.row, *changes(each), path=each.path))
        ui.timer(0.3, self._follow)

    def _follow(self) -> None:
        """Show the state of the training, which another window may have started."""
        bench = self._window.bench
        if bench.version == self._version:
            return
        self._version = bench.version
        self._stage.text = f"Training, {bench.stage}" if bench.stage else ""
        self._train.set_enabled(not bench.stage)
        self._adopt.set_visibility(bench.trained is not None)
        self._table.clear()
        with self._table:
            table(*bench.table())
            for line in bench.comparison_lines():
                text("p", line)
        images = bench.comparison.images if bench.comparison else ()
        self._title.text = f"{counted(len(images), 'image')} changed" if bench.comparison else ""
        self._pages.show(images)
