"""An image's split depends on its bytes, the shares and the seed; folders take precedence."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from feature_sets import alternating_labels, draw_columns, sides

from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation.splits import Shares, make_folds, make_splits, uniform_draws
from pipeline.images.scan import SPLIT_FOLDERS

CLASSES = ("cats", "dogs")
LABELS = alternating_labels(600)


def test_draws_are_the_documented_digest() -> None:
    columns = draw_columns([0, 1, 0])
    expected = [
        int.from_bytes(hashlib.sha256(b"7" + digest.tobytes()).digest()[:8], "big") / 2**64
        for digest in columns.digests
    ]
    np.testing.assert_array_equal(uniform_draws(columns.digests, seed=7), expected)


def test_without_folders_each_class_is_split_by_the_shares() -> None:
    splits = make_splits(draw_columns(LABELS), CLASSES)
    assert "60/20/20" in splits.source
    for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        for label in CLASSES:
            assert splits.counts[name][label] == pytest.approx(300 * share, abs=35)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 600
    assert (sides(splits, 600) > 0).all()


def test_added_images_move_no_other() -> None:
    before = sides(make_splits(draw_columns(LABELS[:400]), CLASSES), 400)
    after = sides(make_splits(draw_columns(LABELS), CLASSES), 600)
    np.testing.assert_array_equal(before, after[:400])


def test_identical_files_are_in_one_split() -> None:
    columns = draw_columns(LABELS)
    twice = replace(columns, digests=np.tile(columns.digests[:300], 2))
    side = sides(make_splits(twice, CLASSES), 600)
    np.testing.assert_array_equal(side[:300], side[300:])


def test_another_seed_gives_another_split() -> None:
    columns = draw_columns(LABELS)
    first, second = (sides(make_splits(columns, CLASSES, seed=seed), 600) for seed in (0, 1))
    assert 0.3 < np.mean(first != second) < 0.8


@pytest.mark.parametrize("present", [(1, 2, 3), (1, 2), (1, 3), (1,)])
def test_folders_are_kept_and_missing_splits_are_taken_from_train(present: tuple[int, ...]) -> None:
    folders = np.resize(np.repeat(present, 10), 600)
    splits = make_splits(draw_columns(LABELS, splits=folders.tolist()), CLASSES)
    side = sides(splits, 600)
    missing = {1, 2, 3} - set(present)
    if present != (1,):
        moved = side != folders
        assert set(side[moved]) == missing
        draws = uniform_draws(draw_columns(LABELS).digests, seed=0)
        expected = (folders == 1) & (draws >= 1 - (0.25 if missing else 0))  # 20 / (60 + 20)
        np.testing.assert_array_equal(moved, expected)
        assert all(("validation", "test")[number - 2] in splits.source for number in missing)
    else:
        assert "only a train folder" in splits.source
        np.testing.assert_array_equal(side, sides(make_splits(draw_columns(LABELS), CLASSES), 600))


def test_test_without_train_is_refused() -> None:
    with pytest.raises(BadDataError, match=r"validation and test but none in train/"):
        make_splits(draw_columns([0, 1] * 4, splits=[2, 2, 3, 3] * 2), CLASSES)


def test_one_class_is_refused() -> None:
    with pytest.raises(BadDataError, match="two classes or more; the set has one: cats"):
        make_splits(draw_columns([0] * 50), ("cats",))


def test_a_split_that_lacks_a_class_is_refused_with_a_remedy() -> None:
    rare = draw_columns([0] * 200 + [1] * 3)
    with pytest.raises(BadDataError) as raised:
        make_splits(rare, CLASSES, shares=Shares.parse("98/1/1"))
    assert str(raised.value) == (
        "the validation split (3 of 203 images) has no image of dogs: try another --split-seed, or "
        "cross-validate with --cv 3 instead of --split"
    )
    assert list(make_folds(rare, CLASSES, folds=3, seed=0, identities=rare.digests))


@pytest.mark.parametrize(
    ("folders", "lacking"),
    [
        (("train", "val", "test"), "val"),
        (("Train", "validation", "test"), "Train"),
        (("train", "valid"), "valid"),
        (("train", "test"), "test"),
    ],
)
def test_a_missing_class_folder_is_named(folders: tuple[str, ...], lacking: str) -> None:
    files = [
        (folder, label, number)
        for folder in folders
        for label in ("cats", "dogs")
        for number in range(4)
        if (folder, label) != (lacking, "dogs")
    ]
    columns = replace(
        draw_columns(
            [int(label == "dogs") for _, label, _ in files],
            splits=[SPLIT_FOLDERS[folder.lower()] for folder, _, _ in files],
        ),
        paths=np.array([f"{'/'.join(map(str, file))}.jpg".encode() for file in files]),
    )
    most = sum(label == "dogs" for _, label, _ in files)
    with pytest.raises(BadDataError) as raised:
        make_splits(columns, CLASSES)
    assert f"{lacking}/ has no image of dogs: add images in {lacking}/dogs, or" in str(raised.value)
    assert f"--cv {min(5, most)}, which ignores the split folders" in str(raised.value)
    assert list(make_folds(columns, CLASSES, folds=4, seed=0, identities=columns.digests))


def test_one_training_image_cannot_be_in_two_splits() -> None:
    labels, folders = [0] * 400 + [1] * 4, [1] * 300 + [2] * 100 + [1, 2, 2, 2]
    columns = draw_columns(labels, splits=folders)
    columns = replace(columns, paths=np.array([b"train/x/1.jpg"] * 404))
    with pytest.raises(
        BadDataError, match="has only one image of dogs: add images in train/dogs, or"
    ):
        make_splits(columns, CLASSES)


@pytest.mark.parametrize(("count", "size"), [(1, "1 different image"), (2, "2 different images")])
def test_a_class_too_small_for_any_split_is_refused(count: int, size: str) -> None:
    columns = draw_columns([0] * 200 + [1] * 2 * count)
    digests = columns.digests.copy()
    digests[200 + count :] = digests[200 : 200 + count]  # each file twice
    columns = replace(columns, digests=digests)
    with pytest.raises(BadDataError, match=f"class dogs has {size}; train, valid.*--labels"):
        make_splits(columns, CLASSES)


def test_a_class_of_too_few_groups_is_refused() -> None:
    columns = draw_columns([0] * 200 + [1] * 4)
    digests = columns.digests.copy()
    digests[200:202], digests[202:] = digests[200], digests[202]
    with pytest.raises(BadDataError, match="class dogs has 2 groups; train, validation and test"):
        make_splits(columns, CLASSES, identities=digests)


def test_a_class_without_images_is_refused() -> None:
    with pytest.raises(BadDataError, match="class rare has no image; add some"):
        make_splits(draw_columns(LABELS), (*CLASSES, "rare"))


def test_a_file_in_all_three_folders_is_enough() -> None:
    columns = draw_columns([0, 1] * 3, splits=[1, 1, 2, 2, 3, 3])
    digests = columns.digests.copy()
    digests[[3, 5]] = digests[1]
    assert len(make_splits(replace(columns, digests=digests), CLASSES).test) == 2


def test_names_in_an_error_are_escaped() -> None:
    with pytest.raises(BadDataError) as raised:
        make_splits(draw_columns([0, 1, 0, 1, 0], splits=[1, 1, 2, 2, 3]), ("a", "b\x1b[31m"))
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("text", ["60/20", "60/20/20/0", "a/b/c", "60/40/0", "-1/1/1", "nan/1/1"])
def test_invalid_shares_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="60/20/20"):
        Shares.parse(text)


def test_shares_of_any_sum_are_read() -> None:
    assert Shares.parse("3/1/1") == Shares()
    assert str(Shares.parse("70/10/20")) == "70/10/20"


@pytest.mark.parametrize("folder", [2, 3])
def test_identical_files_in_two_folders_are_not_moved_to_a_third(folder: int) -> None:
    columns = draw_columns(LABELS, splits=[1] * 400 + [folder] * 200)
    digests = columns.digests.copy()
    digests[:100] = digests[400:500]  # in train and in the other folder
    splits = make_splits(replace(columns, digests=digests), CLASSES)
    filled = splits.test if folder == 2 else splits.validation
    assert len(filled) > 40
    assert not np.isin(digests[filled], digests[400:]).any()
