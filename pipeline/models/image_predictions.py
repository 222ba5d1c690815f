"""Classify image files, in their order and in bounded memory."""

from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadDataError
from pipeline.heads.config import THRESHOLD
from pipeline.images.hashes import hash_files
from pipeline.images.reader import Pixels, read_images
from pipeline.images.scan import Skipped
from pipeline.images.source import FolderSource
from pipeline.models.neighbors import Neighbor
from pipeline.models.rejection import Rejection
from pipeline.prefetch import prefetch
from pipeline.spec import CLASSES
from pipeline.text import counted, printable

if TYPE_CHECKING:
    from pipeline.models.heatmaps import Heatmap  # loads scikit-learn

FILES_PER_WINDOW = 1024  # hashed before the first is decoded: 0.1 s, 1 MB of predictions

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Output:
    """What a model computes for one image.

    Attributes
    ----------
    probabilities : (K,) of the classes, which sum to 1; of labels, each 0 … 1; or a number (1,).
    heatmap : where the evidence for the predicted class lies, if requested.
    neighbors : the most similar cached images, the most similar first, if requested.
    rejection : whether the image belongs to none of the classes, if requested.
    """

    probabilities: Probabilities
    heatmap: "Heatmap | None" = None
    neighbors: tuple[Neighbor, ...] = ()
    rejection: Rejection | None = None


Result = tuple[Output, bool] | str  # (output, whether cached), or why a file is skipped


class ImageClassifier(Protocol):
    """Turns pixels into class probabilities: a trained head or a ready-made network.

    A call takes ``batch_size`` square images of ``image_size`` (S) pixels, which
    `pipeline.images.decode.decode` makes with ``resize`` and ``range``.
    """

    name: str
    classes: tuple[str, ...]
    task: str
    image_size: int
    resize: str
    range: str
    batch_size: int

    def describe(self) -> dict[str, Any]:
        """Return the model's settings, for JSON."""
        ...

    def outputs(self, pixels: Pixels, digests: Sequence[bytes]) -> Sequence[Output]:
        """Classify (B, S, S, 3) uint8 RGB and the SHA-256 digests of their files."""
        ...

    def cached_outputs(
        self, digests: Collection[bytes]
    ) -> Iterator[tuple[Sequence[bytes], Sequence[Output]]]:
        """Yield blocks of the cached images: their digests and outputs."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prediction(Output):
    """The output for one image file.

    Attributes
    ----------
    path : as the user named it.
    cached : whether it is computed from cached features.
    """

    path: bytes
    classes: tuple[str, ...]
    cached: bool = False
    task: str = CLASSES

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities; ties keep their order."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[index], float(self.probabilities[index])) for index in order]

    @property
    def labels(self) -> list[tuple[str, float]]:
        """Return the labels with a probability above 0.5, the most probable first."""
        return [each for each in self.top(len(self.classes)) if each[1] > THRESHOLD]

    @property
    def number(self) -> float:
        """Return the number of a regression."""
        return float(self.probabilities[0])

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
            digests, unreadable = hash_files(FolderSource(Path()), paths)
            skipped = {item.path: item for item in unreadable}
            results: dict[bytes, Result] = {}
            remaining = deque(paths)
            for _ in self._compute(digests, results):
                while remaining and (remaining[0] in skipped or digests[remaining[0]] in results):
                    path = remaining.popleft()
                    yield skipped.get(path) or self._item(path, results[digests[path]])

    def _item(self, path: bytes, result: Result) -> Prediction | Skipped:
        if isinstance(result, str):
            return Skipped(path, result)
        output, cached = result
        return Prediction(
            **vars(output),
            path=path,
            classes=self.model.classes,
            cached=cached,
            task=self.model.task,
        )

    def _compute(
        self, digests: Mapping[bytes, bytes], results: dict[bytes, Result]
    ) -> Iterator[None]:
        """Fill ``results``, by digest; yield after the cached images and after each batch."""
        paths: dict[bytes, bytes] = {}  # digest -> the first of identical files
        for path, digest in digests.items():
            paths.setdefault(digest, path)
        for cached, outputs in self.model.cached_outputs(paths):
            results |= {
                digest: (output, True) for digest, output in zip(cached, outputs, strict=True)
            }
        yield
        uncached = {path: digest for digest, path in paths.items() if digest not in results}
        with closing(self._read(uncached, results)) as images:
            batches = iter(lambda: list(islice(images, self.model.batch_size)), [])
            if first := next(batches, None):
                # In this thread: it loads the base for seconds, and Ctrl-C must interrupt that.
                results |= self._classify(first)
                yield
            with closing(prefetch(self._classify, batches)) as computed:
                for _, classified in computed:
                    results |= classified
                    yield
        yield

    def _classify(self, batch: Sequence[tuple[bytes, Pixels]]) -> dict[bytes, Result]:
        pixels = np.stack([pixels for _, pixels in batch])  # (B, S, S, 3)
        digests = [digest for digest, _ in batch]
        outputs = self.model.outputs(pixels, digests)
        return {digest: (output, False) for digest, output in zip(digests, outputs, strict=True)}

    def _read(
        self, digests: Mapping[bytes, bytes], results: dict[bytes, Result]
    ) -> Generator[tuple[bytes, Pixels]]:
        """Yield digests and pixels of images, decoded in advance; add failures to ``results``."""
        model = self.model
        decoded = read_images(
            FolderSource(Path()),
            digests,
            image_size=model.image_size,
            resize=model.resize,
            range=model.range,
        )
        with closing(decoded) as images:
            for path, pixels in images:
                if isinstance(pixels, Skipped):
                    results[digests[path]] = pixels.reason
                else:
                    yield digests[path], pixels
