"""A workbench: a run with its review and its model, and what training again changed."""

import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.api import predict_images
from pipeline.errors import PipelineError, UsageError
from pipeline.images.decode import decode
from pipeline.images.scan import Skipped
from pipeline.images.sets import Name
from pipeline.models.config import PredictConfig
from pipeline.models.image_predictions import Prediction
from pipeline.models.predictor import Predictor, open_predictor
from pipeline.models.runs import find_bundle
from pipeline.report.overlays import blend
from pipeline.report.thumbnails import jpeg_address
from pipeline.review.retraining import retrain
from pipeline.review.review import Review, open_review
from pipeline.review.run_comparison import ImageChange, RunComparison, compare_runs
from pipeline.spec import REGRESSION
from pipeline.text import counted, printable

NEIGHBORS = 6  # a row of pictures
LARGE = 640  # pixels
SHARES = 5  # classes of a prediction


@dataclass
class Workbench:
    """A run, for several threads: without its cache `predict` works, without its model the rest.

    Attributes
    ----------
    review, predictor : or the reason why there is none.
    trained, comparison : the run that was trained last, and its comparison with ``review``.
    stage : what the training does now; empty if none runs.
    version : increases whenever one of these changes.
    token : names this review in the addresses of its pictures.
    """

    run: Path
    review: Review | str
    predictor: Predictor | str
    trained: Review | None = None
    comparison: RunComparison | None = None
    stage: str = ""
    version: int = 0
    token: str = field(default_factory=secrets.token_hex)

    def __post_init__(self) -> None:
        self._predicting, self._training = threading.Lock(), threading.Lock()
        paths = self.review.table.columns.paths if isinstance(self.review, Review) else ()
        self.rows = {bytes(path): row for row, path in enumerate(paths)}

    def warm_up(self) -> None:
        """Load the base and predict a black image, so that the first picture takes no seconds."""
        if isinstance(model := self.predictor, Predictor):
            black = np.zeros((1, model.image_size, model.image_size, 3), np.uint8)
            try:
                with self._predicting:
                    model.outputs(black, [bytes(32)])
            except PipelineError as error:
                self.predictor = str(error)

    def predict(self, path: Path) -> Prediction | str:
        """Return the prediction for an image file, or the reason why there is none."""
        if isinstance(self.predictor, str):
            return self.predictor
        try:
            with self._predicting:
                prediction = next(iter(predict_images(path, model=self.predictor)))
        except PipelineError as error:
            return str(error)
        return prediction.reason if isinstance(prediction, Skipped) else prediction

    def pictures(self, path: Path, prediction: Prediction) -> list[str]:
        """Return a picture of an image file, and if it has a heat map, one with the map on it.

        They are JPEG, as ``data:`` addresses.
        """
        if isinstance(model := self.predictor, str):
            raise UsageError(model)
        data = path.read_bytes()
        pixels = decode(data, image_size=LARGE, resize="contain", range=model.range)
        drawn = [Image.fromarray(pixels)]
        if prediction.heatmap is not None:
            drawn.append(blend(drawn[0], prediction.heatmap, model.resize))
        return [jpeg_address(picture, quality=85) for picture in drawn]

    def picture(self, token: str, row: int, side: int) -> bytes | str:
        """Return a JPEG of a row of the review, or the reason why there is none."""
        review, sides = self.review, range(1, LARGE + 1)
        if isinstance(review, str) or token != self.token or side not in sides:
            return "there is no such picture"
        return review.picture(row, side) if row in range(len(review.predicted)) else "no such row"

    def train(self, all_heads: bool = False) -> None:
        """Train again with the labels file, and compare; raises the errors of `retrain`."""
        old = self._opened()
        if self._training.acquire(blocking=False):
            try:
                self._report("starting", 0, 0)
                heads = old.heads if all_heads else None
                run = retrain(old, heads=heads, progress=self._report)
                trained = open_review(run, cache_dir=old.cache_dir, images=old.images)
                self.comparison, self.trained = compare_runs(old, trained), trained
            finally:
                self._report("", 0, 0)
                self._training.release()

    def adopt(self) -> None:
        """Go on with the run that was trained last."""
        if (trained := self.trained) is not None:
            self.run, self.review, self.trained, self.comparison = trained.run, trained, None, None
            self.predictor = _open_model(self.run, trained.cache_dir)
            self.__post_init__()
            self.token = secrets.token_hex()
            self.warm_up()

    def describe(self) -> tuple[str, str, list[str]]:
        """Return name and summary of the run, and notices, such as that its images are gone."""
        if isinstance(review := self.review, str):
            return printable(self.run), "", []
        images, classes = counted(len(review.predicted), "image"), len(review.classes)
        head = f"{printable(review.row['head'])} {accuracy(review.row)}"
        sizes = f"{images} in {counted(classes, 'class', 'classes')}"
        gone = review.picture(0)
        notices = [*review.notices, *([f"no pictures: {gone}"] if isinstance(gone, str) else [])]
        name = printable(review.table.document["set"])
        return name, f"{printable(self.run)}: {sizes}, {head}", notices

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and cells: the run's heads, beside those of the run trained last."""
        if self.comparison is None:
            cells = [[*self._names(row), accuracy(row)] for row in self._opened().rows]
            return ["head", "input", "accuracy"], cells
        cells = []
        for change in self.comparison.rows:
            old, new = (row["test_accuracy"] if row else None for row in (change.old, change.new))
            difference = ""
            if old is not None and new is not None:
                difference = f"{(new - old) * 100:+.1f} points"
            names = self._names(change.old or change.new or {})
            cells.append([*names, accuracy(change.old), accuracy(change.new), difference])
        return ["head", "input", "before", "after", "difference"], cells

    def comparison_lines(self) -> list[str]:
        """Return the accuracies of both runs by the new labels, and notices; empty without one."""
        if (comparison := self.comparison) is None:
            return []
        if not comparison.tested:
            return [*comparison.notices]
        before, after = 100 * comparison.old_accuracy, 100 * comparison.new_accuracy
        both = (
            f"By the new labels, the recommended head is right on {before:.1f} % before and "
            f"{after:.1f} % after, of {counted(comparison.tested, 'test image')}; "
            "in the table, each run is tested on its own labels"
        )
        return [both, *comparison.notices]

    def _names(self, row: Mapping[str, Any]) -> list[str]:
        """Return head and input of a row of results.json, with layer and cache if several."""
        names = [str(row["input"])]
        for name in ("layer", "cache"):
            if len({each[name] for each in self._opened().rows}) > 1:
                names.append(Path(row[name]).name)
        return [printable(str(row["head"])), printable(" ".join(names))]

    def _opened(self) -> Review:
        """Return the review; raise UsageError with the reason why there is none."""
        if isinstance(self.review, str):
            raise UsageError(self.review)
        return self.review

    def _report(self, stage: str, done: int, total: int) -> None:
        self.stage = f"{stage}: {done} of {total}" if total else stage
        self.version += 1


def _open_model(run: Path, cache_dir: Path) -> Predictor | str:
    """Open the recommended head with all that its files allow, or return why that fails."""
    options: dict[str, Any] = {"explain": True, "neighbors": NEIGHBORS, "reject": True}
    while True:
        try:
            return open_predictor(find_bundle(run), PredictConfig(cache_dir=cache_dir, **options))
        except PipelineError as error:  # the first is for an old model, the next for a gone cache
            if not options:
                return str(error)
            options.popitem()


def open_workbench(
    run: Path,
    *,
    labels: Path | None = None,
    cache_dir: Path = Path("cache"),
    images: Name | None = None,
) -> Workbench:
    """Open a run; parameters as for `open_review`, whose error is raised without a model too."""
    predictor = _open_model(run, cache_dir)
    try:
        review: Review | str = open_review(run, labels=labels, cache_dir=cache_dir, images=images)
    except PipelineError as error:
        if isinstance(predictor, str):
            raise
        review = str(error)
    return Workbench(run, review, predictor)


def accuracy(row: Any) -> str:
    """Format the test accuracy of a row of results.json with its interval: '94.2 % (92.6–95.5)'."""
    if row is None or row["test_accuracy"] is None:
        return "–"
    low, high = row["test_low"], row["test_high"]
    interval = "" if low is None else f" ({low * 100:.1f}–{high * 100:.1f})"
    return f"{row['test_accuracy'] * 100:.1f} %{interval}"


def verdict(prediction: Prediction) -> tuple[str, str, list[tuple[str, float]]]:
    """Return a warning if the image is rejected, what the head says, and the highest shares."""
    if prediction.task == REGRESSION:
        return "", f"{printable(prediction.classes[0])}: {prediction.number:.4g}", []
    shares = [(printable(label), share) for label, share in prediction.top(SHARES)]
    warning = ""
    if prediction.rejection is not None and (reason := prediction.rejection.reason):
        among = " or ".join(map(printable, prediction.rejection.classes)) or "none of the classes"
        warning = f"Unsure: {among}" if reason == "unsure" else "Unlike anything it learned"
    return warning, f"{shares[0][0]}, {shares[0][1] * 100:.0f} %", shares


def changes(image: ImageChange) -> list[str]:
    """Return one line each: the label before and after, the prediction, and whether it is right."""
    pairs = {
        "label": (image.old_label, image.new_label),
        "head": (image.old_predicted, image.new_predicted),
    }
    lines = [
        f"{name}: {' → '.join(dict.fromkeys(printable(each or 'none') for each in pair))}"
        for name, pair in pairs.items()
    ]
    if image.is_correct is None or image.was_correct == image.is_correct:
        return lines
    return [*lines, "now right" if image.is_correct else "now wrong"]
