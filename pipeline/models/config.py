"""`PredictConfig`: the options of `pipeline.predict_images` and of the command predict."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bases.config import BATCH_SIZE
from pipeline.bases.registry import FILE_SUFFIXES, PREPROCESSING_POLICIES, find_base
from pipeline.config import Config, count, documented, fraction, option
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.models.image_predictions import ImageClassifier

AUTO = "auto"  # the first of these that is for the head
METHODS = ("cam", "gradcam", "hirescam", "distance", "occlusion")  # of heat maps
MAX_NEIGHBORS = 1000  # per image; each is three columns of CSV

_expected = partial(
    option, default=None, group="expected model: stop if the model was trained otherwise"
)
_explained = partial(option, group="why, what is similar, and none of these")


@documented
@dataclass(frozen=True, kw_only=True)
class PredictConfig(Config):
    """Options of a prediction.

    Examples
    --------
    >>> from pipeline import PredictConfig, predict_images
    >>> config = PredictConfig(model="results/logistic.skops", use_cache=False)
    >>> next(iter(predict_images("photos/test/plain", config))).label
    'plain'
    """

    model: "str | os.PathLike[str] | ImageClassifier | None" = option(
        None,
        metavar="RUN",
        help="run folder or saved model (default: the newest with a saved head in results/)",
    )
    head: str | None = option(
        None, metavar="NAME", help="head of the run (default: the recommended one)"
    )
    weights: str | None = option(
        None, type=str, metavar="FILE", help="weights file of the base, if moved"
    )
    cache_dir: Path = option(
        Path("cache"), metavar="FOLDER", help="folder of caches to read features from"
    )
    use_cache: bool = option(True, flag="--no-cache", help="compute the features of every image")
    batch_size: int = option(BATCH_SIZE, help="images per batch (default: two per core, 8 to 32)")
    strict: bool = option(False, help="stop at the first unreadable image")
    explain: bool = _explained(False, help="compute heat maps of the evidence for each prediction")
    explain_method: str = _explained(
        AUTO,
        choices=(AUTO, *METHODS),
        help="auto: cam, exact, for linear heads, gradcam for dense ones, distance for novelty, "
        "else occlusion",
    )
    neighbors: int = _explained(
        0, type=count, metavar="K", help="list the most similar cached images"
    )
    reject: bool = _explained(
        False, help="abstain from images that the head is unsure of, or unlike the cached ones"
    )
    coverage: float | None = _explained(
        None,
        type=fraction,
        metavar="SHARE",
        help="keep this share of images like the cached ones (default: 0.95); implies --reject",
    )
    max_error: float | None = _explained(
        None,
        type=fraction,
        metavar="SHARE",
        help="keep images with one possible class; of at most this share the true class is missed; "
        "implies --reject",
    )
    per_class: bool = _explained(False, help="hold the share in each class; implies --reject")
    base: str | None = _expected(help="name of the base, or its FILE.onnx")
    image_size: int | None = _expected(
        type=int, metavar="PIXELS", help="height and width of the input"
    )
    preprocessing: str | None = _expected(
        choices=PREPROCESSING_POLICIES,
        help="native: as the base was trained; rescale: the book's 1/255",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.neighbors <= MAX_NEIGHBORS:
            raise UsageError(
                f"--neighbors: expected 0 to {MAX_NEIGHBORS:,}; received {self.neighbors:,}"
            )
        if self.coverage is not None and self.max_error is not None:
            raise UsageError("--coverage and --max-error exclude each other; omit one")
        for flag, share in (("--coverage", self.coverage), ("--max-error", self.max_error)):
            if share is not None and not 0 < share < 1:
                raise UsageError(
                    f"{flag}: expected a share above 0 and below 1; received {share:g}"
                )
        if self.coverage is not None or self.max_error is not None or self.per_class:
            object.__setattr__(self, "reject", True)
        if self.base is not None and not self.base.endswith(FILE_SUFFIXES):
            object.__setattr__(self, "base", find_base(self.base).name)
        if self.explain_method != AUTO and not self.explain:
            raise UsageError(
                f"--explain-method {self.explain_method} is for heat maps: add --explain"
            )
