"""Build a frozen base in Keras: uint8 RGB images in, feature maps or pooled features out."""

import contextlib
import logging
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from pipeline.bases.config import IMAGENET, RANDOM, BaseConfig
from pipeline.bases.registry import PIXELS, Base, Rescale
from pipeline.bases.weights import arrays_digest, fetch_imagenet, file_arrays, imagenet_copy
from pipeline.errors import BadDataError, UnreachableError, UsageError
from pipeline.keras_backend import keras
from pipeline.spec import split_layer_key

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 10
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)  # RGB


class LayerInfo(NamedTuple):
    """A line of ``--list-layers``: the output's shape without the batch."""

    name: str
    kind: str
    shape: tuple[int | None, ...]
    parameters: int


def build_base(config: BaseConfig) -> tuple[Any, str]:
    """Build a base without its top: the model, for preprocessed images, and its weights' digest.

    Raises UnreachableError if ImageNet weights cannot be had, BadDataError if a file does not fit.
    """
    base, path = config.network, config.weights_file
    if config.weights == RANDOM:
        keras.utils.set_random_seed(config.seed)
        return build_untrained(base, config.size), f"random-{config.seed}"
    if path is None and (fetched := imagenet_copy(base, config.weights_folder)).is_file():
        path = fetched
        log.info("Using %s's ImageNet weights fetched earlier: %s", base.keras_name, path)
    if path is None:
        log.info(
            "Looking for %s's ImageNet weights in Keras' own cache (~/.keras/models); if they are "
            "not there, Keras downloads them once from its host.",
            base.keras_name,
        )
        try:
            with downloading(f"ImageNet weights of {base.name}", "--weights"):
                model = build_untrained(base, config.size, weights=IMAGENET)
            return model, arrays_digest(model.get_weights())
        except UnreachableError as keras_failed:
            log.info("Keras' download host could not be reached.")
            try:
                path = fetch_imagenet(base, config.weights_folder)
            except UnreachableError as error:  # what to do about Keras' host helps more
                raise UnreachableError(f"{keras_failed} ({error})") from error
    model = build_untrained(base, config.size)
    load_file(model, path, base)
    digest = arrays_digest(model.get_weights())
    if digest != arrays_digest(file_arrays(path)):
        raise BadDataError(f"weights file {path} does not fit {base.name}: arrays left over")
    restore_imagenet_rescaling(model, base)
    return model, digest


def feature_model(base_model: Any, config: BaseConfig, layers: Sequence[str]) -> Any:
    """Put preprocessing in front of a base and tap the chosen layers.

    Returns a Keras model: uint8 RGB (B, image_size, image_size, 3) -> list of float32 outputs in
    the order of layer keys, (B, H, W, C) or pooled (B, C). Raises UsageError for an unknown layer.
    """
    taps = [_tap(base_model, config.network, key) for key in layers]
    sub_model = keras.Model(base_model.input, taps)
    images = keras.Input((config.size, config.size, 3), dtype="uint8", name="images")
    outputs = sub_model(preprocess(images, config.rescale))
    return keras.Model(images, outputs if isinstance(outputs, list) else [outputs])


def list_layers(config: BaseConfig) -> list[LayerInfo]:
    """Name, kind, output shape and parameters of each layer, as ``model.summary()`` has them."""
    layers = build_untrained(config.network, config.size).layers
    return [
        LayerInfo(each.name, type(each).__name__, tuple(each.output.shape[1:]), each.count_params())
        for each in layers
    ]


def build_untrained(base: Base, image_size: int, weights: str | None = None) -> Any:
    """The frozen base with random or Keras' own weights, its unnamed layers named alike every time.

    Keras numbers unnamed layers by a counter of the thread: in a new one it starts anew.
    """
    constructor = getattr(keras.applications, base.keras_name)
    options = {"include_top": False, "input_shape": (image_size, image_size, 3)}
    with ThreadPoolExecutor(1) as fresh_thread:
        model = fresh_thread.submit(constructor, weights=weights, **options).result()
    model.trainable = False
    return model


@contextlib.contextmanager
def downloading(what: str, option: str) -> Iterator[None]:
    """Keras' words go to stderr; a failed download raises UnreachableError, naming ``option``."""
    # Keras' download sets no timeout of its own and would hang behind a silent firewall
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
    """Load a weights file of either Keras layout, recognised by content, not by name."""
    expected, received = model.get_weights(), file_arrays(path)
    if _shapes(expected) != _shapes(received):
        raise BadDataError(
            f"weights file {path} is of another model: {base.name} {top} has "
            f"{_describe(expected)}; received {_describe(received)}"
        )
    with h5py.File(path, "r") as file:
        legacy = "layer_names" in file.attrs
    with tempfile.TemporaryDirectory() as scratch:
        # Keras tells the layouts apart by the file's ending alone.
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
    return sorted(each.shape for each in arrays if each.ndim and each.dtype.kind == "f")


def _describe(arrays: Sequence[Any]) -> str:
    numbers = sum(int(np.prod(shape)) for shape in _shapes(arrays))
    return f"{len(arrays)} arrays of {numbers:,} numbers"


def restore_imagenet_rescaling(model: Any, base: Base) -> None:
    """Make an EfficientNet (version 1) from a file equal the one that Keras names "imagenet".

    Keras adds ``Rescaling(1 / sqrt(std))`` behind the normalisation only for the named weights,
    which is the same as a variance multiplied by std. An unadapted normalisation (mean 0) is that
    of a network built without ImageNet weights and is left as it is.
    """
    if base.module != "efficientnet":
        return
    layer = next(part for part in model.layers if isinstance(part, keras.layers.Normalization))
    if not np.any(layer.adapt_mean.numpy()):
        return
    layer.adapt_variance.assign(layer.adapt_variance.numpy() * IMAGENET_STD)
    layer.finalize_state()


def preprocess(images: Any, rescale: Rescale) -> Any:
    """Preprocessing as layers: uint8 RGB (B, H, W, 3) -> float32."""
    values = keras.layers.Rescaling(1.0, name="to_float")(images)
    if rescale.bgr:
        values = keras.ops.flip(values, axis=-1)
    if rescale != Rescale():
        scale, offset = list(rescale.scale), list(rescale.offset)
        values = keras.layers.Rescaling(scale, offset, name="preprocessing")(values)
    return values


def feature_maps(model: Any, base: Base, layer: str) -> Any:
    """The symbolic output of a layer, (B, H, W, C); UsageError for one that gives no maps."""
    try:
        maps = model.get_layer(layer).output
    except ValueError as error:
        raise UsageError(
            f"{base.name} has no layer {layer!r}: --list-layers {base.name} shows them"
        ) from error
    if isinstance(maps, list) or len(maps.shape) != 4:
        raise UsageError(f"layer {layer} of {base.name} gives no feature maps; choose another")
    return maps


def _tap(model: Any, base: Base, key: str) -> Any:
    layer, pooling = split_layer_key(key)
    maps = feature_maps(model, base, layer)
    if pooling == "none":
        return maps
    kinds = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}
    return kinds[pooling](name=key.replace(":", "_pooled_"))(maps)


LABELS_URL = "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
LABELS_MD5 = "c2c37ea517e94d9795004a39431a14cb"  # as Keras' decode_predictions has it


def build_full_model(config: BaseConfig) -> Any:
    """Build a published network with its classifier: uint8 RGB (B, S, S, 3) -> (B, 1000) float32.

    S is the size it was trained with, unless ``config`` names one. Raises as `build_base`, and
    UsageError if there is no such network or it takes no images of that size.
    """
    if config.network.name == PIXELS:
        raise UsageError("--imagenet names a network of keras.applications; received pixels")
    if config.weights == RANDOM:
        keras.utils.set_random_seed(config.seed)
    base, size = config.network, config.image_size
    with downloading(f"ImageNet weights of {base.name} with its classifier", "--weights"):
        try:
            network = getattr(keras.applications, base.keras_name)(
                weights=IMAGENET if config.weights == IMAGENET else None,
                input_shape=None if size is None else (size, size, 3),
            )
        except ValueError as error:
            if size is None:
                raise
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{base.name} with --image-size {size}: {reason}") from error
    if config.weights_file is not None:
        load_file(network, config.weights_file, base, top="with its classifier")
        restore_imagenet_rescaling(network, base)
    size = network.input_shape[1]
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    return keras.Model(images, network(preprocess(images, config.rescale)))


def fetch_labels() -> Path:
    """Keras' list of the 1,000 classes, from its cache or its host; raises UnreachableError."""
    name, options = "imagenet_class_index.json", {"cache_subdir": "models", "file_hash": LABELS_MD5}
    with downloading("the names of ImageNet's classes", "--labels"):
        return Path(keras.utils.get_file(name, LABELS_URL, **options))
