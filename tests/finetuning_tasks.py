"""Make small training tasks of synthetic images and feature maps."""

import numpy as np

from pipeline.finetuning.config import Schedule
from pipeline.finetuning.from_cache import head_variables
from pipeline.finetuning.rows import Rows
from pipeline.finetuning.training import RunOptions, Task, TrainableModel, TrainingResult, train
from pipeline.heads.config import DenseConfig
from pipeline.heads.dense import build_dense


def synthetic_rows(count: int, shape: tuple[int, ...], *, seed: int, classes: int = 2) -> Rows:
    """Return noise images, uint8; a higher class is brighter."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    images = random.integers(0, 130, (count, *shape)) + 60 * labels.reshape(-1, 1, 1, 1)
    return Rows(images.astype(np.uint8), labels)


def synthetic_task(shape: tuple[int, ...], *, count: int = 40, classes: int = 2) -> Task:
    """Return ``count`` training rows and half as many validation rows."""
    train = synthetic_rows(count, shape, seed=0, classes=classes)
    return Task(train, synthetic_rows(count // 2, shape, seed=1, classes=classes), classes)


def synthetic_maps(*, count: int = 40, classes: int = 2) -> Task:
    """Return a task of feature maps: (4, 4, 8) float32."""
    task = synthetic_task((4, 4, 8), count=count, classes=classes)
    train, validation = (
        Rows(rows.inputs.astype(np.float32) / 255, rows.labels)
        for rows in (task.train, task.validation)
    )
    return Task(train, validation, classes)


def train_head(
    task: Task, options: RunOptions, schedule: Schedule, *, dropout: float = 0.5
) -> TrainingResult:
    """Train a small head on a task: the cheapest run of the training loop."""
    config = DenseConfig(units=16, dropout=dropout)
    head = build_dense(task.train.inputs.shape[1:], task.class_count, config, options.seed)
    return train(TrainableModel(head, head_variables(head)), task, schedule, options, stage="head")
