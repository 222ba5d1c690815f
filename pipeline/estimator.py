"""The pipeline for programs that know scikit-learn: a transformer, and a trained model."""

import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.bases.config import AUTO, BATCH_SIZE, IMAGENET
from pipeline.cache.config import ExtractConfig
from pipeline.cache.content import FOLDER, features_by_content
from pipeline.cache.provenance import cache_document, continue_engine, feature_spec
from pipeline.engines import Engine
from pipeline.errors import BadDataError, UsageError
from pipeline.images.reader import Pixels
from pipeline.images.sources import ImageSources, array_sources, image_sources
from pipeline.models.bundle import load_bundle
from pipeline.models.predictor import Predictor
from pipeline.models.runs import find_bundle
from pipeline.spec import FeatureSpec


@dataclass(eq=False, repr=False)
class FeatureExtractor(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn images into features of a frozen convolutional base, each image once.

    A scikit-learn transformer. Features are cached on the disk by the images' content: a second
    fit, another fold, a clone, another process, a set extracted before cost no forward pass.

    Parameters
    ----------
    layer : layer name; None for the base's last.
    image_shape : None where images are paths or uint8 arrays (N, H, W, 3). Else rows of X are
        flattened images of this shape: ``(28, 28)`` for grey, ``(32, 32, 3)`` for RGB; one side
        may be -1, as in `numpy.reshape`.
    value_range : black and white in such rows; what is beyond is cut off.
    others : as for `pipeline.ExtractConfig`; maps that are not pooled are flattened, (N, H·W·C).

    Attributes
    ----------
    spec_ : what the features are, a `pipeline.spec.FeatureSpec`.
    layer_ : layer and pooling, ``block5_pool:avg``.
    n_features_in_ : columns of X, where X has columns.

    Raises a `pipeline.errors.PipelineError` for every expected failure, ValueError for rows of
    another length than those it was fitted to.

    Examples
    --------
    >>> import numpy as np
    >>> from pipeline import FeatureExtractor
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> random = np.random.default_rng(0)
    >>> dark = random.integers(0, 100, (20, 40, 30, 3))
    >>> images = np.concatenate([dark, dark + 100]).astype(np.uint8)
    >>> labels = ["dark"] * 20 + ["light"] * 20
    >>> extractor = FeatureExtractor("pixels")  # "vgg16" is the default
    >>> model = make_pipeline(extractor, StandardScaler(), LogisticRegression())
    >>> model.fit(images, labels).score(images, labels)
    1.0
    >>> extractor.transform(images).shape  # the mean red, green and blue, from the cache
    (40, 3)
    """

    base: str = "vgg16"
    pooling: str = "avg"
    _: KW_ONLY
    layer: str | None = None
    image_size: int | None = None
    image_shape: tuple[int, ...] | None = None
    value_range: tuple[float, float] = (0, 255)
    weights: str | os.PathLike[str] = IMAGENET
    preprocessing: str = "native"
    resize: str = "squash"
    dtype: str = "float32"
    batch_size: int = BATCH_SIZE
    engine: str = AUTO
    seed: int = 0
    cache_dir: str | os.PathLike[str] = "cache"

    def fit(self, X: Any, y: Any = None) -> Self:
        """Compute the images' features, so that `transform` finds them; nothing else is learned."""
        self._fit(X)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> npt.NDArray[np.float32]:
        """As `fit`, then `transform`: (N, D) float32."""
        return self._fit(X)

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Features of the images in their order, (N, D) float32; computes what no cache holds."""
        check_is_fitted(self)
        images = self._images(X, reset=False)
        if not hasattr(self, "_config"):  # unpickled, maybe on another machine
            config = self._make_config()
            if (here := feature_spec(config)) != self.spec_:
                there = vars(self.spec_)
                names = [name for name, value in vars(here).items() if value != there[name]]
                raise BadDataError(
                    f"this FeatureExtractor was fitted with other {' and '.join(names)}: "
                    f"fingerprint {self.spec_.fingerprint}, here {here.fingerprint}; fit it again"
                )
            self._config = config
            self._engine: Engine | None = None
        return self._features(images)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.string = self.image_shape is None
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """What is learned, without the open network."""
        state: dict[str, Any] = dict(super().__getstate__())
        return {name: value for name, value in state.items() if name not in ("_config", "_engine")}

    def _fit(self, X: Any) -> npt.NDArray[np.float32]:
        images = self._images(X, reset=True)
        self._config, self._engine = self._make_config(), None
        (self.layer_,) = self._config.layer_keys
        self.spec_: FeatureSpec = feature_spec(self._config)
        features = self._features(images)
        self._n_features_out = features.shape[1]
        return features

    def _make_config(self) -> ExtractConfig:
        own = ("layer", "image_shape", "value_range")
        params = self.get_params(deep=False)
        options = {name: value for name, value in params.items() if name not in own}
        return ExtractConfig(layers=[self.layer] if self.layer else (), **options)

    def _images(self, X: Any, *, reset: bool) -> ImageSources:
        if self.image_shape is None:
            return image_sources(X)
        rows = validate_data(self, X, reset=reset)  # (N, H·W) or (N, H·W·3)
        low, high = self.value_range
        if not low < high:
            raise UsageError(f"value_range goes from less to more; received {self.value_range}")
        values = np.rint((rows - float(low)) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        try:
            return array_sources(values.reshape(len(values), *self.image_shape))
        except ValueError as error:
            raise UsageError(
                f"rows of {values.shape[1]} values are no images of shape {self.image_shape}"
            ) from error

    def _features(self, images: ImageSources) -> npt.NDArray[np.float32]:
        config = self._config
        folder = (config.cache_dir / FOLDER).resolve()
        features = features_by_content(
            config.cache_dir,
            images,
            spec=self.spec_,
            layer=self.layer_,
            open_engine=self._open_engine,
            document=cache_document(FOLDER, folder, config, self.spec_),
            batch_size=config.batch_size,
        )
        return features.reshape(len(features), -1)

    def _open_engine(
        self, layers: tuple[str, ...], images: Pixels, recorded: Mapping[str, Any] | None
    ) -> Engine:
        """Open the engine once: each further batch of new images takes the same."""
        if self._engine is None:
            self._engine = continue_engine(self._config, layers, images, recorded)
        return self._engine


class TrainedModel:
    """A head of a run and the base before it: images in, classes out.

    ``classes_`` are (K,) class names, ``bundle`` a `pipeline.models.bundle.Bundle`.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.bundle = predictor.bundle
        self.classes_ = np.array(self.bundle.classes)
        self._predictor = predictor

    def predict(self, images: Any) -> npt.NDArray[np.str_]:
        """The likeliest class of each image: (N,) str; takes what `predict_proba` takes."""
        named: npt.NDArray[np.str_] = self.classes_[self.predict_proba(images).argmax(axis=1)]
        return named

    def predict_proba(self, images: Any) -> npt.NDArray[np.float64]:
        """Class probabilities of each image: (N, K) float64.

        Parameters
        ----------
        images : paths, a uint8 array (N, H, W, 3), or a sequence of arrays (H, W, 3). Views
            (``--tta``) are drawn by content: an array has others than a file of the same picture.

        Raises BadDataError for an image that cannot be decoded.
        """
        given = image_sources(images)
        spec = self.bundle.spec
        decoded = given.read(given.digests, image_size=spec.image_size, resize=spec.resize)
        probabilities: dict[bytes, npt.NDArray[np.float64]] = {}
        while batch := list(islice(decoded, self._predictor.batch_size)):
            pixels = np.stack([pixels for _, pixels in batch])
            digests = [digest for digest, _ in batch]
            predicted = self._predictor.probabilities(pixels, digests)
            probabilities |= zip(digests, predicted, strict=True)
        return np.stack([probabilities[digest] for digest in given.digests])


def load_model(
    path: str | os.PathLike[str],
    head: str | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] = "cache",
    batch_size: int = BATCH_SIZE,
) -> TrainedModel:
    """Load a head that classify saved, to be used on new images.

    Parameters
    ----------
    path : the folder of a run, ``results/<run>``, or one of its model files.
    head : None for the one that the run recommends.
    weights : the base's weights file, where the one that it was trained with has moved.
    cache_dir : where fetched ImageNet weights are.

    Raises NoInputError if there is no such run, UsageError if the head was not saved, BadDataError
    if the file is not what was written or images become other pixels here.

    Examples
    --------
    >>> from pipeline import load_model
    >>> model = load_model("results/logistic.skops")  # or a run, and a head of it
    >>> model.classes_.tolist()
    ['plain', 'striped']
    >>> model.predict(["photos/test/striped/000.png"]).tolist()
    ['striped']
    """
    predictor = Predictor(
        load_bundle(find_bundle(Path(path), head)),
        weights=None if weights is None else os.fspath(weights),
        cache_dir=Path(cache_dir),
        batch_size=batch_size,
    )
    return TrainedModel(predictor)
