"""Write a cache of drawn features: how commands behave at a size for which no photographs are here.

    python -m benchmarks.drawn_cache 300000 512 --classes 100 --out 300k.h5
    python -m benchmarks.drawn_cache 1000000 1280 --spread 2.8 --out 1m.h5

Rows are vectors as after a ReLU, of correlated components and classes that overlap. There are no
images: galleries of the report stay empty.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.cache.checksums import write_checksums
from pipeline.cache.chunks import write_chunk
from pipeline.cache.file import FORMAT_VERSION, ROWS_PER_CHUNK, create_features, make_columns
from pipeline.spec import FeatureSpec

LAYER = "drawn"
FACTORS = 64  # that features are correlated by
SPREAD = 1.8  # standard deviation within a class; that of the class means is 1
SHARES = (0.8, 0.1, 0.1)  # of train, validation and test
COPIES = 1000  # one of so many rows repeats the row before it, with a little noise


def write_drawn_cache(
    path: Path, rows: int, width: int, class_count: int, *, spread: float = SPREAD, seed: int = 0
) -> None:
    """Write ``rows`` vectors of ``width`` features, a chunk at a time."""
    random = np.random.default_rng(seed)
    labels = random.integers(class_count, size=rows)
    columns = make_columns(
        labels=labels.tolist(),
        splits=random.choice([1, 2, 3], rows, p=SHARES).tolist(),
        paths=[b"drawn/%07d.png" % row for row in range(rows)],
        digests=[hashlib.sha256(b"%d %d" % (seed, row)).digest() for row in range(rows)],
        views=[0] * rows,
    )
    means = random.normal(size=(class_count, FACTORS)).astype(np.float32)
    mixing = random.normal(size=(FACTORS, width)).astype(np.float32) / np.sqrt(FACTORS)
    spec = FeatureSpec(
        base="drawn", weights=f"seed-{seed}", preprocessing="native", image_size=32,
        resize="squash", pixels="none", dtype="float32",
    )  # fmt: skip
    document = {
        "format": FORMAT_VERSION,
        "spec": spec.to_dict(),
        "fingerprint": spec.fingerprint,
        "set": path.stem,
        "root": "nowhere",
        "engine": {"name": "none", "version": "1"},
        "versions": {},
        "created": "2026-01-01T00:00:00+00:00",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", libver=("earliest", "v110")) as file:
        file["spec"] = json.dumps(document)
        names = [f"class {number:03}" for number in range(class_count)]
        file.create_dataset("classes", data=names, dtype=h5py.string_dtype())
        for name, values in columns.stored().items():
            file[name] = values
        dataset = create_features(file, LAYER, (width,), rows, "float32")
        for start in range(0, rows, ROWS_PER_CHUNK):
            of_chunk = labels[start : start + ROWS_PER_CHUNK]
            factors = means[of_chunk] + spread * random.standard_normal(
                (len(of_chunk), FACTORS), np.float32
            )
            write_chunk(dataset, start, _draw(random, factors, mixing))
    with path.open("r+b") as stream:
        write_checksums(stream)


def _draw(
    random: np.random.Generator,
    factors: npt.NDArray[np.float32],
    mixing: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Return the features (n, D) of factors (n, F)."""
    noise = random.standard_normal((len(factors), mixing.shape[1]), np.float32)
    features = np.maximum(factors @ mixing + noise, 0)
    for row in np.flatnonzero(random.random(len(factors)) < 1 / COPIES):
        features[row] = features[row - 1] * random.uniform(0.97, 1.03, mixing.shape[1])
    return np.asarray(features, np.float32)


def main(arguments: list[str] | None = None) -> int:
    """Write the file that the arguments describe."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drawn_cache", description=__doc__)
    parser.add_argument("rows", type=int, help="number of rows")
    parser.add_argument("width", type=int, help="features per row")
    parser.add_argument("--classes", type=int, default=10, help="number of classes")
    parser.add_argument("--out", type=Path, required=True, help="cache file to write")
    parser.add_argument("--spread", type=float, default=SPREAD, help="overlap of the classes")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parsed = parser.parse_args(arguments)
    options = {"spread": parsed.spread, "seed": parsed.seed}
    write_drawn_cache(parsed.out, parsed.rows, parsed.width, parsed.classes, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
