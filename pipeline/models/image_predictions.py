"""From image files to predictions, one after another and in bounded memory."""

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

FILES_AT_ONCE = 1024  # hashed before their first is decoded: a tenth of a second, 1 MB of answers

Probabilities = npt.NDArray[np.float64]


class ImageClassifier(Protocol):
    """What turns pixels into class probabilities: a head of ours or a ready-made network.

    It takes ``batch_size`` images a call, squares of ``image_size`` (S) pixels; ``resize`` says how
    an image becomes one.
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
        """Who it is, for JSON."""
        ...

    def probabilities(self, pixels: Pixels, digests: Sequence[bytes]) -> Probabilities:
        """(B, S, S, 3) uint8 RGB and the SHA-256 of their files -> (B, K)."""
        ...

    def cached_probabilities(
        self, digests: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], Probabilities]]:
        """What is known without looking, by the SHA-256 of files."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    path: bytes  # as it was named
    classes: tuple[str, ...]
    probabilities: Probabilities  # (K,), they sum to 1
    cached: bool = False  # whether the features came from a cache

    def top(self, count: int) -> list[tuple[str, float]]:
        """The most probable classes with their probabilities, the first of equals first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[place], float(self.probabilities[place])) for place in order]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        return float(self.probabilities.max())

    @property
    def margin(self) -> float:
        """How far the most probable class is ahead of the second."""
        (_, first), (_, second) = self.top(2)
        return first - second


class ImagePredictions:
    """Predictions for files in their order, computed during iteration; skips unreadable files.

    Identical files are looked at once; some hundred decoded images are held at a time.
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
        self.total = len(paths) + len(skipped)  # items that there will be
        self._skipped = skipped
        self._strict = strict

    def __iter__(self) -> Iterator[Prediction | Skipped]:
        """Raises BadDataError if no image can be read; under ``strict``, if one cannot."""
        first_skipped: Skipped | None = None
        answered = False
        for item in self._items():
            if isinstance(item, Prediction):
                answered = True
            else:
                first_skipped = first_skipped or item
                if self._strict:
                    raise BadDataError(
                        f"{printable(item.path)}: {item.reason} (--strict stops here)"
                    )
            yield item
        if first_skipped and not answered:
            raise BadDataError(
                f"none of {counted(len(self.paths), 'file')} can be read as an image, e.g. "
                f"{printable(first_skipped.path)} ({first_skipped.reason})"
            )

    def _items(self) -> Iterator[Prediction | Skipped]:
        yield from self._skipped
        for start in range(0, len(self.paths), FILES_AT_ONCE):
            paths = self.paths[start : start + FILES_AT_ONCE]
            digests, unreadable = hash_files(Path(), paths)
            skipped = {item.path: item for item in unreadable}
            answers = _Answers(self.model, digests)
            waiting = deque(paths)
            for _ in answers.fill():
                while waiting and (waiting[0] in skipped or answers.has(waiting[0])):
                    path = waiting.popleft()
                    yield skipped.get(path) or answers.of(path)


class _Answers:
    """What is known of some files by now, found by content."""

    def __init__(self, model: ImageClassifier, digests: Mapping[bytes, bytes]) -> None:
        self._model = model
        self._digests = digests  # path -> content
        self._paths: dict[bytes, bytes] = {}  # content -> the first of identical files
        for path, digest in digests.items():
            self._paths.setdefault(digest, path)
        self._cached: dict[bytes, Probabilities] = {}
        self._computed: dict[bytes, Probabilities] = {}
        self._broken: dict[bytes, str] = {}

    def has(self, path: bytes) -> bool:
        digest = self._digests[path]
        return any(digest in each for each in (self._cached, self._computed, self._broken))

    def of(self, path: bytes) -> Prediction | Skipped:
        digest = self._digests[path]
        if digest in self._broken:
            return Skipped(path, self._broken[digest])
        cached = digest in self._cached
        probabilities = (self._cached if cached else self._computed)[digest]
        return Prediction(path, self._model.classes, probabilities, cached)

    def fill(self) -> Iterator[None]:
        """Find every answer; a step at a time, the last one included."""
        for digests, probabilities in self._model.cached_probabilities(self._paths):
            self._cached.update(zip(digests, probabilities, strict=True))
        yield
        with closing(self._readable()) as images:
            batches = iter(lambda: list(islice(images, self._model.batch_size)), [])
            if first := next(batches, None):
                # In this thread: it opens the base, for seconds in which ^C is heard.
                self._keep(first, self._probabilities(first))
                yield
            with closing(prefetch(self._probabilities, batches)) as computed:
                for batch, probabilities in computed:
                    self._keep(batch, probabilities)
                    yield
        yield

    def _keep(self, batch: Sequence[tuple[bytes, Pixels]], probabilities: Probabilities) -> None:
        digests = [digest for digest, _ in batch]
        self._computed.update(zip(digests, probabilities, strict=True))

    def _probabilities(self, batch: Sequence[tuple[bytes, Pixels]]) -> Probabilities:
        pixels = np.stack([pixels for _, pixels in batch])  # (B, S, S, 3)
        return self._model.probabilities(pixels, [digest for digest, _ in batch])

    def _readable(self) -> Generator[tuple[bytes, Pixels]]:
        """The images that must be looked at, decoded in threads ahead."""
        unknown = {
            path: digest for digest, path in self._paths.items() if digest not in self._cached
        }
        size, resize = self._model.image_size, self._model.resize
        with closing(read_images(Path(), unknown, image_size=size, resize=resize)) as images:
            for path, pixels in images:
                if isinstance(pixels, Skipped):
                    self._broken[unknown[path]] = pixels.reason
                else:
                    yield unknown[path], pixels
