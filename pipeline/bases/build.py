"""Build a frozen base in Keras: uint8 RGB images in, feature maps or pooled features out."""

import contextlib
import logging
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from pipeline.bases.config import IMAGENET, RANDOM, BaseConfig
from pipeline.bases.efficientnet_lite import build_efficientnet_lite
from pipeline.bases.file_base import describe
from pipeline.bases.keras_model import load_file_base
from pipeline.bases.package_index import fetch_imagenet, imagenet_copy
from pipeline.bases.registry import PIXELS, Base, Rescale
from pipeline.bases.weights import arrays_digest, file_arrays
from pipeline.errors import BadDataError, UnreachableError, UsageError
from pipeline.keras_backend import keras
from pipeline.spec import split_layer_key

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 10
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)  # RGB


class LayerInfo(NamedTuple):
    """A line of ``--list-layers``; the output shape excludes the batch."""

    name: str
    kind: str
    shape: tuple[int | None, ...]
    parameters: int


def build_base(config: BaseConfig) -> tuple[Any, str]:
    """Return a base without its top, for preprocessed images, and the digest of its weights.

    Raises UnreachableError if ImageNet weights cannot be downloaded, BadDataError if a weights file
    does not fit.
    """
    base, path = config.network, config.weights_file
    if config.file:
        return load_file_base(config.file, config.size), describe(config.file).sha256
    if config.weights == RANDOM:
        keras.utils.set_random_seed(config.seed)
        return build_untrained(base, config.size), f"random-{config.seed}"
    if path is None and (fetched := imagenet_copy(base, config.weights_folder)).is_file():
        path = fetched
        log.info("using the downloaded ImageNet weights of %s: %s", base.keras_name, path)
    if path is None and not base.is_in_keras:
        path = fetch_imagenet(base, config.weights_folder)
    if path is None:
        log.info(
            "loading the ImageNet weights of %s from ~/.keras/models; if they are missing, Keras "
            "downloads them once",
            base.keras_name,
        )
        try:
            with downloading(f"ImageNet weights of {base.name}", "--weights"):
                model = build_untrained(base, config.size, weights=IMAGENET)
            return model, arrays_digest(model.get_weights())
        except UnreachableError as keras_failed:
            try:
                path = fetch_imagenet(base, config.weights_folder)
            except UnreachableError as error:  # the cure for Keras' host comes first
                raise UnreachableError(f"{keras_failed} ({error})") from error
    model = build_untrained(base, config.size)
    load_file(model, path, base)
    digest = arrays_digest(model.get_weights())
    if digest != arrays_digest(file_arrays(path)):
        raise BadDataError(f"weights file {path} does not fit {base.name}: it has more arrays")
    restore_imagenet_rescaling(model, base)
    return model, digest


def feature_model(base_model: Any, config: BaseConfig, layers: Sequence[str]) -> Any:
    """Return a Keras model of preprocessing and base whose outputs are the chosen layers.

    uint8 RGB (B, image_size, image_size, 3) -> list of float32 outputs in the order of layer keys,
    (B, H, W, C) or pooled (B, C). Raises UsageError for an unknown layer.
    """
    symbols = [_layer_output(base_model, config.network, key) for key in layers]
    sub_model = keras.Model(base_model.input, symbols)
    images = keras.Input((config.size, config.size, 3), dtype="uint8", name="images")
    outputs = sub_model(preprocess(images, config.rescale))
    return keras.Model(images, outputs if isinstance(outputs, list) else [outputs])


def list_layers(config: BaseConfig) -> list[LayerInfo]:
    """Return name, kind, output shape and parameters of each layer, as in ``model.summary()``."""
    layers = build_untrained(config.network, config.size).layers
    return [
        LayerInfo(
            layer.name, type(layer).__name__, tuple(layer.output.shape[1:]), layer.count_params()
        )
        for layer in layers
    ]


def build_untrained(base: Base, image_size: int, weights: str | None = None) -> Any:
    """Build the frozen base with random weights or Keras' own; its layer names never change.

    Keras numbers unnamed layers with a counter per thread: in a new thread it starts at zero.
    """
    if base.file:
        return load_file_base(Path(base.file), image_size)
    options = {"include_top": False, "input_shape": (image_size, image_size, 3)}
    with ThreadPoolExecutor(1) as fresh_thread:
        model = fresh_thread.submit(constructor(base), weights=weights, **options).result()
    model.trainable = False
    return model


def constructor(base: Base) -> Callable[..., Any]:
    """Return the function that builds a network, with the arguments of keras.applications."""
    if base.is_in_keras:
        return getattr(keras.applications, base.keras_name)  # type: ignore[no-any-return]
    return partial(build_efficientnet_lite, base.keras_name)


@contextlib.contextmanager
def downloading(what: str, option: str) -> Iterator[None]:
    """Print Keras' progress on stderr; raise UnreachableError, with ``option``, if it fails."""
    # Keras' download has no timeout: a firewall that drops packets would block it for ever
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Exception as error:  # Keras raises a bare Exception when a download fails
        url = re.search(r"https?://\S+?(?=[:,]?\s|$)", str(error))
        if not isinstance(error, OSError) and "fetch failure" not in str(error):
            raise
        raise UnreachableError(
            f"{what} could not be downloaded: place "
            f"{url.group() if url else 'the file from Keras'} in ~/.keras/models by hand, or "
            f"give {option} FILE"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def load_file(model: Any, path: Path, base: Base, *, top: str = "without top") -> None:
    """Load a weights file in either layout of Keras, detected by its content."""
    expected, received = model.get_weights(), file_arrays(path)
    if _shapes(expected) != _shapes(received):
        raise BadDataError(
            f"weights file {path} is of another model: {base.name} {top} has "
            f"{_describe(expected)}; received {_describe(received)}"
        )
    with h5py.File(path, "r") as file:
        legacy = "layer_names" in file.attrs
    with tempfile.TemporaryDirectory() as scratch:
        # Keras distinguishes the layouts by the file name only
        named = Path(scratch) / ("base.h5" if legacy else "base.weights.h5")
        try:
            named.symlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, named)
        try:
            model.load_weights(named)
        except (ValueError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadDataError(f"weights file {path} does not fit {base.name}: {reason}") from error


def _shapes(arrays: Sequence[Any]) -> list[tuple[int, ...]]:
    return sorted(array.shape for array in arrays if array.ndim and array.dtype.kind == "f")


def _describe(arrays: Sequence[Any]) -> str:
    numbers = sum(int(np.prod(shape)) for shape in _shapes(arrays))
    return f"{len(arrays)} arrays of {numbers:,} numbers"


def restore_imagenet_rescaling(model: Any, base: Base) -> None:
    """Make an EfficientNet (version 1) with a weights file equal to one with ``"imagenet"``.

    Keras adds ``Rescaling(1 / sqrt(std))`` after the normalisation only for "imagenet", which
    equals a variance multiplied by std. A normalisation with mean 0 is that of a network built
    without ImageNet weights; it does not change.
    """
    if base.module != "efficientnet":
        return
    norms = (layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    norm = next(norms)
    if np.any(norm.adapt_mean.numpy()):
        norm.adapt_variance.assign(norm.adapt_variance.numpy() * IMAGENET_STD)
        norm.finalize_state()


def preprocess(images: Any, rescale: Rescale) -> Any:
    """Preprocess with Keras layers: uint8 RGB (B, H, W, 3) -> float32."""
    values = keras.layers.Rescaling(1.0, name="to_float")(images)
    if rescale.bgr:
        values = keras.ops.flip(values, axis=-1)
    if rescale != Rescale():
        scale, offset = list(rescale.scale), list(rescale.offset)
        values = keras.layers.Rescaling(scale, offset, name="preprocessing")(values)
    return values


def feature_maps(model: Any, base: Base, layer: str) -> Any:
    """Return the symbolic output of a layer, (B, H, W, C); UsageError if it has another shape."""
    try:
        maps = model.get_layer(layer).output
    except ValueError as error:
        raise UsageError(
            f"{base.name} has no layer {layer!r}: --list-layers {base.name} shows them"
        ) from error
    if isinstance(maps, list) or len(maps.shape) != 4:
        raise UsageError(f"layer {layer} of {base.name} gives no feature maps; choose another")
    return maps


def _layer_output(model: Any, base: Base, key: str) -> Any:
    layer, pooling = split_layer_key(key)
    maps = feature_maps(model, base, layer)
    if pooling == "none":
        return maps
    kinds = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}
    return kinds[pooling](name=key.replace(":", "_pooled_"))(maps)


LABELS_URL = "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
LABELS_MD5 = "c2c37ea517e94d9795004a39431a14cb"  # as in Keras' decode_predictions


def build_full_model(config: BaseConfig) -> Any:
    """Build a published network with its classifier: uint8 RGB (B, S, S, 3) -> (B, 1000) float32.

    S is the size in ``config``, by default that of training. Raises the errors of `build_base`,
    and UsageError if the base is not a network or cannot use images of that size.
    """
    if config.file or config.network.name == PIXELS:
        raise UsageError(f"--imagenet needs a named network; received {config.base}")
    if config.weights == RANDOM:
        keras.utils.set_random_seed(config.seed)
    base, size, path = config.network, config.image_size, config.weights_file
    if config.weights == IMAGENET and not base.is_in_keras:
        path = fetch_imagenet(base, config.weights_folder, with_top=True)
    with downloading(f"ImageNet weights of {base.name} with its classifier", "--weights"):
        try:
            network = constructor(base)(
                weights=IMAGENET if config.weights == IMAGENET and path is None else None,
                input_shape=None if size is None else (size, size, 3),
            )
        except ValueError as error:
            if size is None:
                raise
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{base.name} with --image-size {size}: {reason}") from error
    if path is not None:
        load_file(network, path, base, top="with its classifier")
        restore_imagenet_rescaling(network, base)
    size = network.input_shape[1]
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    return keras.Model(images, network(preprocess(images, config.rescale)))


def fetch_labels() -> Path:
    """Return the file of the 1,000 classes, from Keras' cache or host; or UnreachableError."""
    name, options = "imagenet_class_index.json", {"cache_subdir": "models", "file_hash": LABELS_MD5}
    with downloading("the names of ImageNet's classes", "--labels"):
        return Path(keras.utils.get_file(name, LABELS_URL, **options))
