"""Cache files of random features for the tests."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.cache.checksums import write_checksums
from pipeline.cache.file import Source, columns_of, create_features
from pipeline.cache.publish import publish
from pipeline.spec import FeatureSpec

SPEC = FeatureSpec(
    base="vgg16",
    weights="0" * 64,
    preprocessing="native",
    image_size=150,
    resize="squash",
    pixels="1" * 64,
    dtype="float32",
)


def document(root: str = "/photos/pets") -> dict[str, Any]:
    return {"format": 1, "spec": vars(SPEC).copy(), "set": "pets", "root": root, "engine": None}


def publish_random(path: Path, *, rows: int = 150, gone: int = 0) -> dict[str, np.ndarray]:
    """A cache of random maps and vectors; the last ``gone`` rows are of images that are gone."""
    rng = np.random.default_rng(rows)
    arrays = {
        "maps": rng.normal(size=(rows, 2, 2, 3)).astype("f4"),
        "maps:avg": rng.normal(size=(rows, 3)).astype("f4"),
    }
    shard = path.with_name("source.h5")
    with h5py.File(shard, "w") as file:
        for layer, values in arrays.items():
            create_features(file, layer, values.shape[1:], rows, "float32")[...] = values
    with shard.open("r+b") as stream:
        write_checksums(stream)
    labels = rng.integers(0, 2, rows)
    labels[rows - gone :] = -1
    publish(
        path,
        document=document(),
        classes=["고양이", "dog"],
        columns=columns_of(
            labels=labels.tolist(),
            splits=[0] * rows,
            paths=[b"a/%d-\xff.jpg" % row for row in range(rows)],
            digests=[bytes(31) + bytes([row % 256]) for row in range(rows)],
            views=[0] * rows,
        ),
        layers={
            layer: (values.shape[1:], [Source(shard, row) for row in range(rows)])
            for layer, values in arrays.items()
        },
    )
    return arrays
