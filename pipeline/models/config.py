"""`PredictConfig`: the options of `pipeline.predict_images` and of the command predict."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bases.config import BATCH_SIZE
from pipeline.bases.registry import PREPROCESSING_POLICIES
from pipeline.config import Config, documented, option

if TYPE_CHECKING:
    from pipeline.models.image_predictions import ImageClassifier

_expected = partial(
    option,
    default=None,
    group="expected settings: another model is refused",
)


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
        help="run of classify, or one of its models (default: newest in results/)",
    )
    head: str | None = option(
        None, metavar="NAME", help="head of the run (default: the recommended one)"
    )
    weights: str | None = option(
        None,
        type=str,
        metavar="FILE",
        help="weights file of the base, if it has moved since training",
    )
    cache_dir: Path = option(
        Path("cache"),
        metavar="FOLDER",
        help="folder of feature caches (default: %(default)s)",
    )
    use_cache: bool = option(True, flag="--no-cache", help="compute every image, without caches")
    batch_size: int = option(
        BATCH_SIZE,
        metavar="N",
        help="images per forward pass (default: two per core, 8 to 32)",
    )
    strict: bool = option(False, help="stop at the first unreadable image")
    base: str | None = _expected(help="base of the model")
    image_size: int | None = _expected(type=int, metavar="PIXELS", help="image size of the base")
    preprocessing: str | None = _expected(
        choices=PREPROCESSING_POLICIES, help="preprocessing: the base's, or the book's 1/255"
    )
