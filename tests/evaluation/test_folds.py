"""Folds test every image once, contain every class, and keep groups together."""

import numpy as np
import pytest
from feature_sets import alternating_labels, draw_columns, sides

from pipeline.errors import BadDataError
from pipeline.evaluation.splits import make_folds

CLASSES = ("cats", "dogs", "frogs")
LABELS = alternating_labels(90, 3)


@pytest.mark.parametrize("folds", [3, 5])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_image_is_in_test_once_and_in_validation_once(folds: int, grouped: bool) -> None:
    columns = draw_columns(LABELS)
    identities = columns.digests
    if grouped:  # six images in a row are one object
        identities = columns.digests[np.arange(90) // 6 * 6]
    seen = np.stack(
        [
            sides(splits, 90)
            for splits in make_folds(columns, CLASSES, folds=folds, seed=0, identities=identities)
        ]
    )
    assert seen.shape == (folds, 90)
    assert ((seen == 3).sum(axis=0) == 1).all()
    assert ((seen == 2).sum(axis=0) == 1).all()
    for side in seen:
        for split in (1, 2, 3):
            counts = np.bincount(columns.labels[side == split], minlength=3)
            assert counts.max() - counts.min() <= (6 if grouped else 1)
    if grouped:
        assert (seen.reshape(folds, 15, 6) == seen.reshape(folds, 15, 6)[..., :1]).all()


def test_another_seed_gives_other_folds() -> None:
    columns = draw_columns(LABELS)
    first, second = (
        next(make_folds(columns, CLASSES, folds=3, seed=seed, identities=columns.digests)).test
        for seed in (0, 1)
    )
    assert not np.array_equal(first, second)


def test_fold_without_a_class_names_groups_as_the_reason() -> None:
    columns = draw_columns([0] * 8 + [1] * 5)
    groups = columns.digests[[1, 3, 3, 3, 1, 0, 3, 3, 2, 1, 3, 4, 0]]
    with pytest.raises(BadDataError) as raised:
        list(make_folds(columns, CLASSES[:2], folds=3, seed=0, identities=groups))
    assert str(raised.value) == (
        "the validation split (2 of 13 images) has no image of cats: groups stay together; try "
        "another --split-seed, or add groups"
    )


def test_too_few_images_are_refused() -> None:
    columns = draw_columns([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    with pytest.raises(BadDataError, match=r"class frogs has 3 images .*try --cv 3"):
        list(make_folds(columns, CLASSES, folds=5, seed=0, identities=columns.digests))
    few = draw_columns([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    with pytest.raises(BadDataError, match=r"class frogs has 2 different images; train, valid"):
        list(make_folds(few, CLASSES, folds=5, seed=0, identities=few.digests))
    with pytest.raises(BadDataError, match="class rare has no image; add some"):
        list(make_folds(few, (*CLASSES, "rare"), folds=5, seed=0, identities=few.digests))
