"""The published networks whole, with the classifier that tells the 1,000 classes of ImageNet."""

from pathlib import Path
from typing import Any

from pipeline.bases.build import (
    downloading,
    load_file,
    preprocess,
    restore_imagenet_rescaling,
)
from pipeline.bases.config import IMAGENET, RANDOM, BaseConfig
from pipeline.bases.registry import PIXELS
from pipeline.errors import UsageError
from pipeline.keras_backend import keras

LABELS_URL = "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
LABELS_MD5 = "c2c37ea517e94d9795004a39431a14cb"  # as Keras' decode_predictions has it


def build_full_model(config: BaseConfig) -> Any:
    """Build a network with its classifier, its own preprocessing in front.

    Where ``config`` names no image size, the network takes that which it was trained with.

    Returns a Keras model: uint8 RGB (B, S, S, 3) -> (B, 1000) float32, probabilities. Raises
    UnreachableError if ImageNet weights cannot be had, BadDataError if a weights file does not
    fit, UsageError if there is no such network or it takes no images of that size.
    """
    if config.network.name == PIXELS:
        raise UsageError("--imagenet names a network of keras.applications; received pixels")
    if config.weights == RANDOM:
        keras.utils.set_random_seed(config.seed)
    network = _construct(config)
    if config.weights_file is not None:
        load_file(network, config.weights_file, config.network, top="with its classifier")
        restore_imagenet_rescaling(network, config.network)
    size = network.input_shape[1]
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    return keras.Model(images, network(preprocess(images, config.rescale)))


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


def _construct(config: BaseConfig) -> Any:
    base, size = config.network, config.image_size
    constructor = getattr(keras.applications, base.keras_name)
    shape = None if size is None else (size, size, 3)
    source = IMAGENET if config.weights == IMAGENET else None
    with downloading(f"ImageNet weights of {base.name} with its classifier", "--weights"):
        try:
            return constructor(weights=source, include_top=True, input_shape=shape)
        except ValueError as error:
            if size is None:
                raise
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{base.name} with --image-size {size}: {reason}") from error
