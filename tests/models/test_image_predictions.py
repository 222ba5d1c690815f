"""Files become predictions in order, each image once, in bounded memory."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_images import draw

from pipeline.errors import BadDataError
from pipeline.images.hashes import hash_files
from pipeline.images.scan import Skipped
from pipeline.images.source import FolderSource
from pipeline.models import image_predictions
from pipeline.models.image_predictions import ImagePredictions, Output, Prediction


class Brightness:
    """A model of two classes, the brightness of an image; it counts its images."""

    name = "brightness"
    task = "classes"
    classes = ("dark", "bright")
    image_size = 8
    resize = "squash"
    range = "full"
    batch_size = 2

    def __init__(self, cached: dict[bytes, float] | None = None) -> None:
        self.batches: list[int] = []
        self._cached = cached or {}

    def describe(self) -> dict[str, Any]:
        return {}

    def outputs(self, pixels: np.ndarray, digests: Sequence[bytes]) -> list[Output]:
        assert len(digests) == len(pixels)
        self.batches.append(len(pixels))
        return self._pairs(pixels.mean(axis=(1, 2, 3)) / 255)

    def cached_outputs(
        self, digests: Collection[bytes]
    ) -> Iterator[tuple[list[bytes], list[Output]]]:
        cached = [digest for digest in digests if digest in self._cached]
        yield cached, self._pairs(np.array([self._cached[digest] for digest in cached]))

    def _pairs(self, bright: np.ndarray) -> list[Output]:
        return [Output(np.array([1 - each, each])) for each in bright]


def grey(path: str, level: int) -> bytes:
    """An image of one grey, 0..255."""
    draw(0, stripes=False).point(lambda _: level).save(path)
    return os.fsencode(path)


def brightness_of(item: Prediction | Skipped) -> float:
    assert isinstance(item, Prediction)
    return round(float(item.probabilities[1]) * 255)


def test_predictions_keep_the_order_of_cached_new_and_broken_files() -> None:
    paths = [grey(f"{level}.png", level) for level in (10, 20, 30, 40, 50)]
    Path("broken.png").write_bytes(b"text")
    paths[2:2] = [b"broken.png", b"gone.png"]
    digests, _ = hash_files(FolderSource(Path()), [paths[1]])
    model = Brightness({digests[paths[1]]: 200 / 255})
    items = list(ImagePredictions(model, paths))
    assert [item.path for item in items] == paths
    assert [brightness_of(items[place]) for place in (0, 1, 4, 5, 6)] == [10, 200, 30, 40, 50]
    assert [isinstance(item, Prediction) and item.cached for item in items][:2] == [False, True]
    assert items[2] == Skipped(
        b"broken.png", "not an image, or in a format that Pillow does not read"
    )
    assert items[3] == Skipped(b"gone.png", "cannot be read: No such file or directory")
    assert model.batches == [2, 2]  # without broken and cached images


def test_identical_files_are_computed_once() -> None:
    grey("a.png", 10)
    Path("b.png").write_bytes(Path("a.png").read_bytes())
    Path("x.png").write_bytes(b"text")
    Path("y.png").write_bytes(b"text")
    model = Brightness()
    items = list(ImagePredictions(model, [b"a.png", b"x.png", b"b.png", b"y.png"]))
    assert model.batches == [1]
    assert brightness_of(items[2]) == 10
    assert isinstance(items[3], Skipped)
    assert items[3].path == b"y.png"


def test_first_prediction_comes_before_later_images_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_predictions, "FILES_PER_WINDOW", 4)
    paths = [grey(f"{level}.png", level) for level in range(10, 22)]
    model = Brightness()
    items = iter(ImagePredictions(model, paths))
    assert brightness_of(next(items)) == 10
    assert model.batches == [2]
    for path in paths[4:]:
        Path(os.fsdecode(path)).unlink()
    paths[4:] = [grey(os.fsdecode(path), 99) for path in paths[4:]]
    assert [brightness_of(item) for item in items] == [11, 12, 13] + [99] * 8


def test_files_are_hashed_in_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_predictions, "FILES_PER_WINDOW", 3)
    windows: list[int] = []

    def counted(root: Path, files: Any) -> Any:
        windows.append(len(files))
        return hash_files(root, files)

    monkeypatch.setattr(image_predictions, "hash_files", counted)
    list(ImagePredictions(Brightness(), [grey(f"{level}.png", level) for level in range(8)]))
    assert windows == [3, 3, 2]


def test_strict_stops_at_the_first_file_without_a_prediction() -> None:
    paths = [grey("a.png", 1), b"gone.png", grey("b.png", 2)]
    items = iter(ImagePredictions(Brightness(), paths, strict=True))
    assert isinstance(next(items), Prediction)
    with pytest.raises(BadDataError, match=r"gone.png: cannot be read.*--strict stops here"):
        next(items)


def test_none_readable_is_bad_data() -> None:
    Path("text.jpg").write_bytes(b"text")
    with pytest.raises(
        BadDataError, match=r"none of 1 file can be read .* text.jpg \(not an image"
    ):
        list(ImagePredictions(Brightness(), [b"text.jpg"]))


def test_top_is_sorted_and_ties_keep_the_order_of_classes() -> None:
    prediction = Prediction(np.array([0.1, 0.4, 0.1, 0.4]), path=b"x", classes=("a", "b", "c", "d"))
    assert prediction.top(3) == [("b", 0.4), ("d", 0.4), ("a", 0.1)]
    assert (prediction.label, prediction.probability, prediction.margin) == ("b", 0.4, 0.0)
    assert len(prediction.top(9)) == 4
