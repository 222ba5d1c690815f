"""What all windows of the page share: a run, its review, its model, and the run trained after it."""

import io
import secrets
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.api import predict_images
from pipeline.errors import PipelineError
from pipeline.images.decode import decode
from pipeline.images.scan import Skipped
from pipeline.images.sets import Name
from pipeline.models.config import PredictConfig
from pipeline.models.image_predictions import Prediction
from pipeline.models.predictor import Predictor, open_predictor
from pipeline.models.runs import find_bundle
from pipeline.review import Review, RunComparison, compare_runs, open_review, retrain

NEIGHBORS = 6  # a row of pictures


@dataclass
class OpenRun:
    """A run on the page; Try works without its cache, the other tabs without its model.

    Attributes
    ----------
    review, predictor : or the reason why there is none.
    comparison, trained : the run that was trained last, against ``review``.
    stage : what the training does now; empty if none runs.
    version : increases with each change that other windows show.
    token : names this review in the addresses of its pictures.
    """

    run: Path
    review: Review | str
    predictor: Predictor | str
    comparison: RunComparison | None = None
    trained: Review | None = None
    stage: str = ""
    version: int = 0
    token: str = field(default_factory=secrets.token_hex)

    def __post_init__(self) -> None:
        self._predicting, self._training = threading.Lock(), threading.Lock()
        paths = self.review.table.columns.paths if isinstance(self.review, Review) else []
        self.rows = {path: row for row, path in enumerate(paths)}

    def warm_up(self) -> None:
        """Load the base and predict a black image, so that the first picture takes no seconds."""
        if isinstance(model := self.predictor, Predictor):
            with self._predicting:
                black = np.zeros((1, model.image_size, model.image_size, 3), np.uint8)
                try:
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

    def overlay(self, path: Path, prediction: Prediction) -> tuple[bytes, bytes | None]:
        """Return JPEGs of an image file, plain and below its heat map if there is one."""
        model = self.predictor
        pixels = decode(path.read_bytes(), image_size=512, resize="pad", range=model.range)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        return buffer.getvalue(), None

    def train(self, *, all_heads: bool) -> str:
        """Train again with the labels file and compare; return the reason if that fails."""
        assert isinstance(self.review, Review)
        if not self._training.acquire(blocking=False):
            return "another window is training"
        try:
            self._report("starting", 0, 0)
            heads = self.review.heads if all_heads else None
            run = retrain(self.review, heads=heads, progress=self._report)
            trained = open_review(run, cache_dir=self.review.cache_dir, images=self.review.images)
            self.comparison, self.trained = compare_runs(self.review, trained), trained
        except PipelineError as error:
            return str(error)
        finally:
            self._report("", 0, 0)
            self._training.release()
        return ""

    def adopt(self) -> None:
        """Go on with the run that was trained last."""
        if self.trained is not None:
            self.run, self.review = self.trained.run, self.trained
            self.__post_init__()
            self.predictor = open_model(self.run, self.review.cache_dir)
            self.comparison = self.trained = None
            self.token = secrets.token_hex()

    def _report(self, stage: str, done: int, total: int) -> None:
        self.stage = f"{stage}: {done} of {total}" if total else stage
        self.version += 1


def open_model(run: Path, cache_dir: Path) -> Predictor | str:
    """Open the recommended head of a run, or return the reason why that fails."""
    config = PredictConfig(cache_dir=cache_dir, explain=True, neighbors=NEIGHBORS, reject=True)
    try:
        return open_predictor(find_bundle(run), config)
    except PipelineError as error:
        return str(error)


def open_run(
    run: Path, *, cache_dir: Path, images: Name | None = None, labels: Path | None = None
) -> OpenRun:
    """Open a run for the page; raise the error of its review if it has no model either."""
    model = open_model(run, cache_dir)
    try:
        review: Review | str = open_review(run, labels=labels, cache_dir=cache_dir, images=images)
    except PipelineError as error:
        if isinstance(model, str):
            raise
        review = str(error)
    return OpenRun(run, review, model)
