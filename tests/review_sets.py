"""Make runs to review: a cache of drawn features, without image files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from feature_sets import alternating_labels, draw_columns, folder_splits, write_cache

from pipeline.cache.file import Columns
from pipeline.evaluation.compare import compare_heads
from pipeline.report.run_folder import write_run

CLASSES = ("cats", "고양이", '"><img src=x onerror=alert(1)>')


def review_columns(count: int = 120, *, splits: Sequence[int] | None = None) -> Columns:
    """Return columns whose rows 0 and 3 are one file; row 1 has bytes that are not UTF-8."""
    splits = folder_splits(count) if splits is None else splits
    columns = draw_columns(alternating_labels(count, len(CLASSES)), splits=splits)
    paths = columns.paths.tolist()
    paths[:3] = [b"=cmd 0.jpg", b"a/\xff\n1.jpg", "고양이/2.jpg".encode()]
    digests = columns.digests.copy()
    digests[3] = digests[0]
    return type(columns)(**(vars(columns) | {"paths": np.array(paths), "digests": digests}))


def write_cache_and_run(
    columns: Columns | None = None, *, signal: float = 1.0, **options: Any
) -> Path:
    """Write ``cache/synthetic.h5`` and a run of it in ``results/``; return the run."""
    columns = review_columns() if columns is None else columns
    path = write_cache(
        Path("cache/synthetic.h5"),
        labels=columns.labels.tolist(),
        classes=CLASSES,
        columns=columns,
        signal=signal,
    )
    options = {"heads": "logistic", "audit": False} | options
    return write_run(compare_heads(path, **options), Path("results"), save="none")
