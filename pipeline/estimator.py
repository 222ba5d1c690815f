"""scikit-learn's interface: the transformer `FeatureExtractor` and the trained model."""

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
from pipeline.cache.provenance import cache_document, feature_spec, open_cache_engine
from pipeline.engines import Engine
from pipeline.errors import BadDataError, UsageError
from pipeline.images.passed_images import PassedImages, passed_arrays, passed_images
from pipeline.images.reader import Pixels
from pipeline.images.source import FolderSource
from pipeline.images.value_range import choose_range
from pipeline.models.bundle import load_bundle
from pipeline.models.predictor import Predictor
from pipeline.models.runs import find_bundle
from pipeline.spec import FULL_RANGE, FeatureSpec


@dataclass(eq=False, repr=False)
class FeatureExtractor(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn images into features of a frozen convolutional base; compute each image once.

    A scikit-learn transformer. A cache on disk stores features by the content of images: a second
    fit, another fold, a clone or another process computes no image again, and images of an
    extracted set are not computed at all.

    Parameters
    ----------
    layer : layer name; None for the base's last layer.
    image_shape : None if images are paths or uint8 arrays (N, H, W, 3). Otherwise rows of X are
        flattened images of this shape: ``(28, 28)`` for grey, ``(32, 32, 3)`` for RGB; one side
        may be -1, as in `numpy.reshape`.
    value_range : black and white in such rows; other values are clipped.
    range : of the numbers in image files, see `pipeline.ExtractConfig`; ``auto`` is decided in fit.
    others : as in `pipeline.ExtractConfig`; maps that are not pooled are flattened, (N, H·W·C).

    Attributes
    ----------
    spec_ : the `pipeline.spec.FeatureSpec` of the features.
    layer_ : layer and pooling, ``block5_pool:avg``.
    n_features_in_ : number of columns of X, if X has columns.

    Raises a `pipeline.errors.PipelineError` for every expected failure, ValueError for rows whose
    length differs from `fit`.

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
    range: str = FULL_RANGE
    dtype: str = "float32"
    batch_size: int = BATCH_SIZE
    engine: str = AUTO
    seed: int = 0
    cache_dir: str | os.PathLike[str] = "cache"

    def fit(self, X: Any, y: Any = None) -> Self:
        """Compute and cache the images' features for `transform`; learn nothing else."""
        self._fit(X)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> npt.NDArray[np.float32]:
        """Fit, then return the features: (N, D) float32."""
        return self._fit(X)

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Return features of images in their order, (N, D) float32; compute the uncached ones."""
        check_is_fitted(self)
        images = self._images(X, reset=False)
        if not hasattr(self, "_config"):  # unpickled, maybe on another machine
            config = self._make_config(self.spec_.range)
            if (spec := feature_spec(config)) != self.spec_:
                fitted = vars(self.spec_)
                names = [name for name, value in vars(spec).items() if value != fitted[name]]
                raise BadDataError(
                    f"this FeatureExtractor was fitted with other {' and '.join(names)}: "
                    f"fingerprint {self.spec_.fingerprint}, here {spec.fingerprint}; fit it again"
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
        """Return the fitted state without the open network."""
        state: dict[str, Any] = dict(super().__getstate__())
        return {name: value for name, value in state.items() if name not in ("_config", "_engine")}

    def _fit(self, X: Any) -> npt.NDArray[np.float32]:
        """Set the fitted attributes; return the features, (N, D) float32."""
        images = self._images(X, reset=True)
        files = [path for path in images.contents.values() if isinstance(path, bytes)]
        range = choose_range(FolderSource(Path()), files, self.range) if files else FULL_RANGE
        self._config, self._engine = self._make_config(range), None
        (self.layer_,) = self._config.layer_keys
        self.spec_: FeatureSpec = feature_spec(self._config)
        features = self._features(images)
        self._n_features_out = features.shape[1]
        return features

    def _make_config(self, range: str) -> ExtractConfig:
        options = self.get_params(deep=False) | {"range": range}
        for name in ("layer", "image_shape", "value_range"):  # not options of extract
            del options[name]
        return ExtractConfig(layers=[self.layer] if self.layer else (), **options)

    def _images(self, X: Any, *, reset: bool) -> PassedImages:
        """Return the images of X; ``reset`` stores the number of columns, as in `validate_data`."""
        if self.image_shape is None:
            return passed_images(X)
        rows = validate_data(self, X, reset=reset)  # (N, H·W) or (N, H·W·3)
        low, high = self.value_range
        if not low < high:
            raise UsageError(f"value_range must increase; received {self.value_range}")
        values = np.rint((rows - float(low)) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        try:
            return passed_arrays(values.reshape(len(values), *self.image_shape))
        except ValueError as error:
            raise UsageError(
                f"rows of {values.shape[1]} values are not images of shape {self.image_shape}"
            ) from error

    def _features(self, images: PassedImages) -> npt.NDArray[np.float32]:
        config = self._config
        folder = (config.cache_dir / FOLDER).resolve()
        features = features_by_content(
            config.cache_dir,
            images,
            spec=self.spec_,
            layer=self.layer_,
            open_engine=self._open_engine,
            document=cache_document(FOLDER, str(folder), config, self.spec_),
            batch_size=config.batch_size,
        )
        return features.reshape(len(features), -1)

    def _open_engine(
        self, layers: tuple[str, ...], images: Pixels, recorded: Mapping[str, Any] | None
    ) -> Engine:
        """Open the engine once, for all batches of new images."""
        if self._engine is None:
            self._engine = open_cache_engine(self._config, layers, images, recorded)
        return self._engine


class TrainedModel:
    """A base and a saved head, which classify images.

    ``classes_`` contains (K,) class names; ``bundle`` is a `pipeline.models.bundle.Bundle`.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.bundle = predictor.bundle
        self.classes_ = np.array(self.bundle.classes)
        self._predictor = predictor

    def predict(self, images: Any) -> npt.NDArray[np.str_]:
        """Return the most probable class of each image, (N,) str; see `predict_proba`."""
        labels: npt.NDArray[np.str_] = self.classes_[self.predict_proba(images).argmax(axis=1)]
        return labels

    def predict_proba(self, images: Any) -> npt.NDArray[np.float64]:
        """Return class probabilities of each image, (N, K) float64.

        Parameters
        ----------
        images : paths, a uint8 array (N, H, W, 3), or a sequence of arrays (H, W, 3). Augmented
            views (``--tta``) depend on the digest, which differs for a file and an array of pixels.

        Raises BadDataError for an image that cannot be decoded.
        """
        sources = passed_images(images)
        spec = self.bundle.spec
        decoded = sources.read(
            sources.digests, image_size=spec.image_size, resize=spec.resize, range=spec.range
        )
        probabilities: dict[bytes, npt.NDArray[np.float64]] = {}
        while batch := list(islice(decoded, self._predictor.batch_size)):
            pixels = np.stack([pixels for _, pixels in batch])
            digests = [digest for digest, _ in batch]
            predicted = self._predictor.probabilities(pixels, digests)
            probabilities |= zip(digests, predicted, strict=True)
        return np.stack([probabilities[digest] for digest in sources.digests])


def load_model(
    path: str | os.PathLike[str],
    head: str | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] = "cache",
    batch_size: int = BATCH_SIZE,
) -> TrainedModel:
    """Load a saved head with its base, for new images.

    Parameters
    ----------
    path : folder of a run, ``results/<run>``, or one of its model files.
    head : name of the head; None for the recommended one.
    weights : weights file of the base, if it has moved since training.
    cache_dir : folder of fetched ImageNet weights.

    Raises NoInputError for a missing run, UsageError for a head that was not saved, BadDataError
    for an invalid file or a decoder that gives other pixels than in training.

    Examples
    --------
    >>> from pipeline import load_model
    >>> model = load_model("results/logistic.skops")  # or a run, and one of its heads
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
