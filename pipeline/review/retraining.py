"""Train a run's heads again with corrected labels."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.heads.names import PROTOCOLS
from pipeline.review.review import (
    Review,
    config_of_run,
    find_cache_of_run,
    labels_files_of_run,
)
from pipeline.text import printable


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
    from pipeline.evaluation.compare import compare_heads  # seconds of scikit-learn
    from pipeline.report.run_folder import write_run

    document = review.document
    if not review.heads:
        raise UsageError(
            f"{printable(review.run)} is a run of finetune, which takes no corrected labels; run "
            f"python -m pipeline.classify {printable(review.table.path)} and review that run"
        )
    names = [entry["path"] for entry in document["caches"]]
    config = config_of_run(document, review.table)
    if heads is None:
        names = [str(review.row["cache"])]
        config = replace(config, layers=[review.layer])
        if config.protocol not in PROTOCOLS:
            config = replace(config, heads=[f"{review.row['head']}:{review.row['input']}"])
    elif config.protocol not in PROTOCOLS:
        config = replace(config, heads=heads)
    files = labels_files_of_run(review.run, document)
    if review.labels.path.exists():
        files.append(review.labels.path)
    comparison = compare_heads(
        [find_cache_of_run(review.run, document, name, review.cache_dir).path for name in names],
        replace(config, labels=files),
        progress=progress,
    )
    return write_run(comparison, review.run.parent)
