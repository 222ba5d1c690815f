"""Look at a run, correct its labels, train again, and compare: what the page shows."""

from pipeline.review.labels_file import Edit, LabelsFile
from pipeline.review.queue import QueueItem
from pipeline.review.retraining import retrain
from pipeline.review.review import Review, open_review
from pipeline.review.run_comparison import ImageChange, RowChange, RunComparison, compare_runs

__all__ = [
    "Edit",
    "ImageChange",
    "LabelsFile",
    "QueueItem",
    "Review",
    "RowChange",
    "RunComparison",
    "compare_runs",
    "open_review",
    "retrain",
]
