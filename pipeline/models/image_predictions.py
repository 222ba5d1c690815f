"""Predictions for image files, in their order and in bounded memory."""

from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadDataError
from pipeline.images.hashes import hash_files
from pipeline.images.reader import Pixels, read_images
from pipeline.images.scan import Skipped
from pipeline.prefetch import prefetch
from pipeline.text import counted, printable

FILES_PER_WINDOW = 1024  # hashed before the first is decoded: 0.1 s, 1 MB of predictions

Probabilities = npt.NDArray[np.float64]


class ImageClassifier(Protocol):
    """Turns pixels into class probabilities: a trained head or a ready-made network.

    A call takes ``batch_size`` square images of ``image_size`` (S) pixels; ``resize`` names the
    policy that makes them square.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> int: ...
    @property
    def resize(self) -> str: ...
    @property
    def batch_size(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """Return the model's settings, for JSON."""
        ...

    def probabilities(self, pixels: Pixels, digests: Sequence[bytes]) -> Probabilities:
        """Classify (B, S, S, 3) uint8 RGB and the SHA-256 digests of their files -> (B, K)."""
        ...

    def cached_probabilities(
        self, digests: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], Probabilities]]:
        """Return probabilities from caches, by the SHA-256 digests of files."""
        ...


@dataclass(frozen=True)
class Prediction:
    """The class probabilities of one image."""

    path: bytes  # as the user named it
    classes: tuple[str, ...]
    probabilities: Probabilities  # (K,), they sum to 1
    cached: bool = False  # computed from cached features

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities; ties keep their order."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[index], float(self.probabilities[index])) for index in order]

    @property
    def label(self) -> str:
        """Return the most probable class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        return float(self.probabilities.max())

    @property
    def margin(self) -> float:
        """Return the difference of the two highest probabilities."""
        (_, first), (_, second) = self.top(2)
        return first - second


class ImagePredictions:
    """Predictions for files in their order, computed during iteration; skips unreadable files.

    Identical files are computed once; memory contains about a hundred decoded images.
    """

    def __init__(
        self,
        model: ImageClassifier,
        paths: Sequence[bytes],
        *,
        skipped: Sequence[Skipped] = (),
        strict: bool = False,
    ) -> None:
        self.model = model
        self.paths = paths
        self.total = len(paths) + len(skipped)  # number of items
        self._skipped = skipped
        self._strict = strict

    def __iter__(self) -> Iterator[Prediction | Skipped]:
        """Raise BadDataError if no image is readable; under ``strict``, if one is not."""
        first_skipped: Skipped | None = None
        has_prediction = False
        for item in self._items():
            if isinstance(item, Prediction):
                has_prediction = True
            else:
                first_skipped = first_skipped or item
                if self._strict:
                    raise BadDataError(
                        f"{printable(item.path)}: {item.reason} (--strict stops here)"
                    )
            yield item
        if first_skipped and not has_prediction:
            raise BadDataError(
                f"none of {counted(len(self.paths), 'file')} can be read as an image, e.g. "
                f"{printable(first_skipped.path)} ({first_skipped.reason})"
            )

    def _items(self) -> Iterator[Prediction | Skipped]:
        yield from self._skipped
        for start in range(0, len(self.paths), FILES_PER_WINDOW):
            paths = self.paths[start : start + FILES_PER_WINDOW]
            digests, unreadable = hash_files(Path(), paths)
            skipped = {item.path: item for item in unreadable}
            window = _Window(self.model, digests)
            remaining = deque(paths)
            for _ in window.predict():
                while remaining and (remaining[0] in skipped or window.has(remaining[0])):
                    path = remaining.popleft()
                    yield skipped.get(path) or window.get(path)


class _Window:
    """Predictions for some files, kept by the digest of their content."""

    def __init__(self, model: ImageClassifier, digests: Mapping[bytes, bytes]) -> None:
        self._model = model
        self._digests = digests  # path -> digest
        self._paths: dict[bytes, bytes] = {}  # digest -> the first of identical files
        for path, digest in digests.items():
            self._paths.setdefault(digest, path)
        self._cached: dict[bytes, Probabilities] = {}
        self._computed: dict[bytes, Probabilities] = {}
        self._unreadable: dict[bytes, str] = {}  # digest -> reason

    def has(self, path: bytes) -> bool:
        digest = self._digests[path]
        return digest in self._cached or digest in self._computed or digest in self._unreadable

    def get(self, path: bytes) -> Prediction | Skipped:
        digest = self._digests[path]
        if digest in self._unreadable:
            return Skipped(path, self._unreadable[digest])
        cached = digest in self._cached
        probabilities = (self._cached if cached else self._computed)[digest]
        return Prediction(path, self._model.classes, probabilities, cached)

    def predict(self) -> Iterator[None]:
        """Predict every file; yield after the cached ones and after each batch."""
        for digests, probabilities in self._model.cached_probabilities(self._paths):
            self._cached.update(zip(digests, probabilities, strict=True))
        yield
        with closing(self._read_uncached()) as images:
            batches = iter(lambda: list(islice(images, self._model.batch_size)), [])
            if first := next(batches, None):
                # In this thread: it loads the base for seconds, and Ctrl-C must interrupt that.
                self._keep(first, self._classify(first))
                yield
            with closing(prefetch(self._classify, batches)) as computed:
                for batch, probabilities in computed:
                    self._keep(batch, probabilities)
                    yield
        yield

    def _keep(self, batch: Sequence[tuple[bytes, Pixels]], probabilities: Probabilities) -> None:
        digests = [digest for digest, _ in batch]
        self._computed.update(zip(digests, probabilities, strict=True))

    def _classify(self, batch: Sequence[tuple[bytes, Pixels]]) -> Probabilities:
        pixels = np.stack([pixels for _, pixels in batch])  # (B, S, S, 3)
        return self._model.probabilities(pixels, [digest for digest, _ in batch])

    def _read_uncached(self) -> Generator[tuple[bytes, Pixels]]:
        """Return digests and pixels of the uncached images; threads decode them in advance."""
        digests = {
            path: digest for digest, path in self._paths.items() if digest not in self._cached
        }
        size, resize = self._model.image_size, self._model.resize
        with closing(read_images(Path(), digests, image_size=size, resize=resize)) as images:
            for path, pixels in images:
                if isinstance(pixels, Skipped):
                    self._unreadable[digests[path]] = pixels.reason
                else:
                    yield digests[path], pixels
