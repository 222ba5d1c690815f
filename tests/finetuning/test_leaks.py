"""No view of a validation or test image is used for training.

The features are the numbers of image and view.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sets import add_views, alternating_labels, draw_columns, folder_splits, write_cache
from scipy.stats import binom
from synthetic_images import make_image_folder

from pipeline.cache.config import ExtractConfig
from pipeline.evaluation.caches import SplitCache, open_caches
from pipeline.evaluation.config import ClassifyConfig
from pipeline.finetuning.config import FinetuneConfig
from pipeline.finetuning.from_cache import make_task, needed_rows, trial_rows
from pipeline.finetuning.run import finetune

COUNT, VIEWS = 60, 4
PROTOCOLS: list[dict[str, Any]] = [
    {},
    {"split": "50/25/25"},
    {"split": "60/20/20", "split_seed": 3},
]


def split_cache(path: Path, options: dict[str, Any], *, views: int, tta: bool) -> SplitCache:
    """Shuffled rows whose features are (image, view)."""
    labels = alternating_labels(COUNT)
    splits = None if options else folder_splits(COUNT)
    columns, images = add_views(draw_columns(labels, splits=splits), views, to_all=tta)
    order = np.random.default_rng(2).permutation(len(columns))
    rows = np.stack([images, columns.views], axis=1).astype(np.float32)
    layers = {"names:avg": rows[order]}
    write_cache(path, labels=labels, columns=columns.take(order), layers=layers)
    (cache,) = open_caches([path], ClassifyConfig(layers=["names:avg"], views=views, **options))
    return cache


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("options", PROTOCOLS)
def test_training_rows_show_no_validation_or_test_image(
    tmp_path: Path, options: dict[str, Any], tta: bool
) -> None:
    cache = split_cache(tmp_path / "c.h5", options, views=VIEWS, tta=tta)
    rows = needed_rows(cache)
    data = trial_rows(cache, rows, cache.views.table.features("names:avg", rows))
    task = make_task(data, (2,))
    (trial,) = cache.trial_plan.trials
    names = cache.views.table.features("names:avg", np.arange(len(cache.views.table)))
    of_image = {
        bytes(digest): int(image)
        for digest, image in zip(cache.views.table.columns.digests, names[:, 0], strict=True)
    }

    def images(rows: np.ndarray) -> set[int]:
        return {of_image[bytes(each)] for each in cache.table.columns.digests[rows]}

    train, validation = images(trial.splits.train), images(trial.splits.validation)
    test = images(trial.splits.test)
    trained = Counter((int(image), int(view)) for image, view in task.train.inputs)
    assert trained == Counter((image, view) for image in train for view in range(1 + VIEWS))
    assert {image for image, _ in trained}.isdisjoint(validation | test)
    validated = [(int(image), int(view)) for image, view in task.validation.inputs]
    assert sorted(validated) == [(image, 0) for image in sorted(validation)]
    assert len(train) + len(validation) + len(test) == COUNT


@pytest.mark.slow
def test_random_labels_give_chance_accuracy(tmp_path: Path) -> None:
    """Eight views, and a learning rate that memorises the training images."""
    per_class = 60
    root = make_image_folder(
        tmp_path / "noise", per_class=per_class, splits=("train", "validation", "test")
    )
    shuffle_labels(root)
    extract = ExtractConfig(
        weights="random", image_size=48, cache_dir=tmp_path / "cache", engine="tensorflow"
    )
    config = FinetuneConfig(extract=extract, views=8, epochs=3, learning_rate=1e-4)
    comparison, _ = finetune(root, config, results=tmp_path / "results")
    low, high = binom.interval(0.999, 2 * per_class, 0.5)
    for result in comparison.results:
        assert low <= result.test_accuracy * 2 * per_class <= high


def shuffle_labels(root: Path) -> None:
    """Move the images of each split to random class folders."""
    random = np.random.default_rng(0)
    for split in root.iterdir():
        folders = sorted(split.iterdir())
        files = sorted(split.glob("*/*"))
        moved = [path.rename(split / f"{number}.png") for number, path in enumerate(files)]
        for index, number in enumerate(random.permutation(len(moved))):
            moved[number].rename(folders[index % len(folders)] / moved[number].name)
