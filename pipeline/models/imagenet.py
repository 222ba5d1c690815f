"""Networks of keras.applications with their classifier of the 1,000 ImageNet classes."""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.bases.config import BATCH_SIZE, IMAGENET, BaseConfig
from pipeline.errors import BadDataError, NoInputError
from pipeline.models.image_predictions import Output
from pipeline.spec import CLASSES, FULL_RANGE
from pipeline.text import printable


class ImagenetModel:
    """A network of keras.applications with its classifier, an `ImageClassifier`.

    Parameters
    ----------
    name : ``inception_v3``, in any usual spelling.
    weights : ``imagenet``, ``random`` or a Keras weights file of the whole network.
    labels : a file for `read_labels`; None for Keras' list, downloaded if it is not cached.
    image_size : pixels; None for the size that the network was trained with.

    Opening takes seconds. Raises UnreachableError if weights or class names cannot be fetched,
    BadDataError if they do not fit the network.
    """

    resize = "squash"  # as Keras' loaders do
    range = FULL_RANGE
    task = CLASSES

    def __init__(
        self,
        name: str,
        *,
        weights: str = IMAGENET,
        labels: Path | None = None,
        image_size: int | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        config = BaseConfig(
            base=name, weights=weights, image_size=image_size, batch_size=batch_size
        )
        base = config.network
        classes = None if labels is None else read_labels(labels)
        from pipeline.bases.build import build_full_model, fetch_labels  # loads TensorFlow

        self._network: Any = build_full_model(config)
        self.name = base.name
        self.classes = classes or read_labels(fetch_labels())
        self.image_size = int(self._network.input_shape[1])
        self.batch_size = batch_size
        outputs = self._network.output_shape[-1]
        if len(self.classes) != outputs:
            raise BadDataError(
                f"{base.name} has {outputs:,} classes; received {len(self.classes):,} class names"
            )

    def describe(self) -> dict[str, Any]:
        return {"imagenet": self.name, "image_size": self.image_size, "resize": self.resize}

    def outputs(self, pixels: npt.NDArray[np.uint8], digests: Sequence[bytes] = ()) -> list[Output]:
        """Classify (B, S, S, 3) uint8 RGB, B up to batch_size."""
        missing = self.batch_size - len(pixels)  # one batch shape, so that Keras traces once
        padded = np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))
        probabilities = self._network.predict_on_batch(padded)[: len(pixels)]  # (B, K)
        return [Output(row) for row in np.asarray(probabilities, np.float64)]

    def cached_outputs(
        self, digests: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], list[Output]]]:
        """Return nothing: caches have no outputs of whole networks."""
        return iter(())


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names from Keras' ``imagenet_class_index.json`` or a text file, one per line.

    Raises NoInputError for a missing file, BadDataError for another format.
    """
    if not path.is_file():
        raise NoInputError(f"labels {printable(path)}: no such file")
    try:
        text = path.read_text("utf-8")
        if not text.lstrip().startswith("{"):
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        entries = json.loads(text)  # {"0": ["n01440764", "tench"], …}
        names = tuple(entries[str(number)][1] for number in range(len(entries)))
        if all(isinstance(name, str) for name in names):
            return names
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        pass
    raise BadDataError(
        f"{printable(path)} is not a list of classes: expected Keras' imagenet_class_index.json or "
        f"a text file with one name per line"
    )
