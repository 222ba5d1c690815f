"""Train a run's heads again with corrected labels."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.review.review import Review


def retrain(
    review: Review,
    *,
    heads: Sequence[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Compare heads again with the labels file; return the new run's folder, beside the old one.

    Seeds, split and options are the run's; results.json names the labels files. Without the audit,
    which takes seconds: the new run has no suspects.csv.

    Parameters
    ----------
    heads : names; by default the recommended head on its cache and layer. ``review.heads`` compares
        all heads of the run on all its caches and layers.
    progress : called with the stage, the fits done and the fits in all.

    Raises UsageError for a run of finetune, NoInputError if a cache or labels file is gone, and the
    errors of `pipeline.compare_heads`.
    """
    raise NotImplementedError
