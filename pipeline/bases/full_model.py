"""The published networks whole, with the classifier that tells the 1,000 classes of ImageNet."""

from pathlib import Path
from typing import Any

from pipeline.bases.build import (
    describe,
    downloading,
    load_file,
    preprocess,
    restore_imagenet_rescaling,
    shapes,
)
from pipeline.bases.registry import PIXELS, Base, check_image_size
from pipeline.bases.weights import IMAGENET, RANDOM, WeightsChoice, file_arrays
from pipeline.errors import BadDataError, UsageError
from pipeline.keras_backend import keras
from pipeline.text import printable

LABELS_URL = "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
LABELS_MD5 = "c2c37ea517e94d9795004a39431a14cb"  # as Keras' decode_predictions has it


def build_full_model(base: Base, *, weights: WeightsChoice, image_size: int | None = None) -> Any:
    """Build a network with its classifier, its own preprocessing in front.

    Parameters
    ----------
    image_size : None for the size that it was trained with.

    Returns a Keras model: uint8 RGB (B, S, S, 3) -> (B, 1000) float32, probabilities. Raises
    UnreachableError if ImageNet weights cannot be had, BadDataError if a weights file does not
    fit, UsageError if there is no such network or it takes no images of that size.
    """
    if base.name == PIXELS:
        raise UsageError("--imagenet names a network of keras.applications; received pixels")
    if image_size is not None:
        check_image_size(base, image_size)
    if weights.kind == RANDOM:
        keras.utils.set_random_seed(weights.seed)
    network = _construct(base, image_size, weights)
    if weights.path is not None:
        _load(network, weights.path, base)
    size = network.input_shape[1]
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    return keras.Model(images, network(preprocess(images, base.preprocessing)))


def fetch_labels() -> Path:
    """Keras' list of the 1,000 classes, from its cache or its host.

    Raises UnreachableError, with what to do.
    """
    with downloading("the names of ImageNet's classes", "--labels"):
        return Path(
            keras.utils.get_file(
                "imagenet_class_index.json",
                LABELS_URL,
                cache_subdir="models",
                file_hash=LABELS_MD5,
            )
        )


def _construct(base: Base, image_size: int | None, weights: WeightsChoice) -> Any:
    constructor = getattr(keras.applications, base.keras_name)
    shape = None if image_size is None else (image_size, image_size, 3)
    source = IMAGENET if weights.kind == IMAGENET else None
    with downloading(f"ImageNet weights of {base.name} with its classifier", "--weights"):
        try:
            return constructor(weights=source, include_top=True, input_shape=shape)
        except ValueError as error:
            if image_size is None:
                raise
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{base.name} with --image-size {image_size}: {reason}") from error


def _load(network: Any, path: Path, base: Base) -> None:
    expected, received = network.get_weights(), file_arrays(path)
    if shapes(expected) != shapes(received):
        raise BadDataError(
            f"weights file {printable(path)} is of another model: {base.name} with its classifier "
            f"has {describe(expected)}; received {describe(received)}"
        )
    load_file(network, path, base)
    restore_imagenet_rescaling(network, base)
