"""Look at a run, correct its labels, train again, and compare: what the page shows."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.review.labels_file import Edit as Edit
    from pipeline.review.labels_file import LabelsFile as LabelsFile
    from pipeline.review.queue import QueueItem as QueueItem
    from pipeline.review.retraining import retrain as retrain
    from pipeline.review.review import Review as Review
    from pipeline.review.review import open_review as open_review
    from pipeline.review.run_comparison import ImageChange as ImageChange
    from pipeline.review.run_comparison import RowChange as RowChange
    from pipeline.review.run_comparison import RunComparison as RunComparison
    from pipeline.review.run_comparison import compare_runs as compare_runs

_MODULES = {
    "Edit": "labels_file",
    "ImageChange": "run_comparison",
    "LabelsFile": "labels_file",
    "QueueItem": "queue",
    "Review": "review",
    "RowChange": "run_comparison",
    "RunComparison": "run_comparison",
    "compare_runs": "run_comparison",
    "open_review": "review",
    "retrain": "retraining",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use: scikit-learn takes a second."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
