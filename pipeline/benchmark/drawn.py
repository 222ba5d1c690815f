"""What there is to measure on where no images and no cache are given: both drawn from a seed."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.cache.file import (
    COLUMN_DTYPES,
    FORMAT_VERSION,
    LIBVER,
    ROWS_PER_CHUNK,
    FeatureTable,
    columns_of,
    create_features,
)
from pipeline.cache.seal import write_seal
from pipeline.durable import DiskFile, write_durably
from pipeline.images.scan import TEST, TRAIN, VALIDATION
from pipeline.spec import FeatureSpec

SIZE = (500, 375)  # width and height of a picture from the web, as in cats and dogs
LAYER, MAP_SHAPE = "block5_pool", (4, 4, 512)  # VGG16 at 150 pixels
COUNTS = {TRAIN: 2000, VALIDATION: 1000, TEST: 1000}  # as in the book: 131 MB
LATENT = 32  # what images of one class differ by lies in so many directions, beside noise

Rows = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def draw_photograph(seed: int) -> Image.Image:
    """Noise at every scale, the coarser the stronger: as much for a decoder to do as a photograph.

    500 × 375 pixels; about 40 kB as JPEG.
    """
    random = np.random.default_rng(seed)
    pixels = np.full((SIZE[1], SIZE[0], 3), 128, np.float32)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        noise = random.normal(128, 80, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
        layer = Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
        pixels += (np.asarray(layer, np.float32) - 128) / cells**0.5
    pixels += random.normal(0, 3, pixels.shape)  # of the camera
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_cache(path: Path, *, divisor: int = 1) -> Path:
    """A cache as extract leaves it for the book's cats and dogs: sparse maps of two classes.

    Parameters
    ----------
    divisor : of the 4,000 rows, for a quick look.
    """
    splits = [split for split, count in COUNTS.items() for _ in range(count // divisor)]
    count = len(splits)
    labels = [row % 2 for row in range(count)]
    names = [b"%d.jpg" % row for row in range(count)]
    columns = columns_of(
        labels=labels,
        splits=splits,
        paths=names,
        digests=[hashlib.sha256(name).digest() for name in names],
        views=[0] * count,
    )
    spec = FeatureSpec(
        base="vgg16",
        weights="none",
        preprocessing="native",
        image_size=150,
        resize="squash",
        pixels="none",
        dtype="float32",
    )
    document = {
        "format": FORMAT_VERSION,
        "spec": asdict(spec),
        "set": "drawn",
        "root": "nowhere",
        "engine": {"name": "none"},
        "versions": {},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def write(stream: DiskFile) -> None:
        with h5py.File(stream, "w", libver=LIBVER) as file:
            file["spec"] = json.dumps(document)
            file.create_dataset("classes", data=["cats", "dogs"], dtype=h5py.string_dtype())
            for name in COLUMN_DTYPES:
                file[name] = getattr(columns, name)
            features = create_features(file, LAYER, MAP_SHAPE, count, "float32")
            for start, block in _maps(columns.labels):
                features[start : start + len(block)] = block
        write_seal(stream)

    write_durably(path, write)
    return path


def _maps(labels: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Maps as a ReLU leaves them, 84 % zeros, a chunk of the file at a time, with their place."""
    random = np.random.default_rng(0)
    channels = MAP_SHAPE[-1]
    classes = random.normal(0, 0.2, (2, channels))
    directions = random.normal(0, LATENT**-0.5, (LATENT, channels))
    for start in range(0, len(labels), ROWS_PER_CHUNK):
        block = labels[start : start + ROWS_PER_CHUNK]
        image = classes[block] + random.normal(0, 0.5, (len(block), LATENT)) @ directions  # (n, C)
        noise = random.normal(0, 0.8, (len(block), *MAP_SHAPE))
        yield start, np.maximum(noise + image[:, None, None] - 1, 0).astype(np.float32)


def training_rows(table: FeatureTable) -> tuple[Rows, Rows]:
    """Training and validation rows of a drawn cache: feature maps and labels of each."""
    parts = [np.flatnonzero(table.columns.splits == split) for split in (TRAIN, VALIDATION)]
    train, validation = (
        (table.features(LAYER, rows), table.columns.labels[rows]) for rows in parts
    )
    return train, validation
