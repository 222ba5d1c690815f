"""A run opens for review with what it predicted, and without its images."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from feature_sets import add_views, draw_columns, write_cache
from PIL import Image
from review_sets import CLASSES, review_columns, write_cache_and_run
from target_sets import write_targets

from pipeline import compare_heads, extract_features
from pipeline.cache.file import read_table
from pipeline.errors import BadDataError, NoInputError, PipelineError, UsageError
from pipeline.images.scan import TEST, TRAIN, VALIDATION
from pipeline.report.run_folder import write_run
from pipeline.review import open_review
from pipeline.text import printable


def predictions(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_the_recommended_head_on_validation_and_test(
    run: Path,
) -> None:
    columns = read_table(Path("cache/synthetic.h5")).columns
    review = open_review(run)
    splits = np.array(["", "train", "validation", "test"])[columns.splits]
    read = predictions(run)
    assert len(read) == np.count_nonzero(columns.splits > TRAIN)
    places = {printable(path): row for row, path in enumerate(columns.paths.tolist())}
    for line in read:
        row = places[line["path"]]
        assert line["digest"] == columns.digests[row].tobytes().hex()
        assert line["split"] == splits[row]
        assert line["label"] == CLASSES[columns.labels[row]]
        assert line["predicted"] == CLASSES[review.predicted[row]]
        assert float(line["probability"]) == review.probability[row]
        assert float(line["label_probability"]) == review.label_probability[row]
    np.testing.assert_array_equal(review.splits, columns.splits)
    np.testing.assert_array_equal(review.predicted >= 0, columns.splits > TRAIN)
    is_test = review.splits == TEST
    accuracy = (review.predicted == columns.labels)[is_test].mean()
    assert accuracy == pytest.approx(review.row["test_accuracy"])
    assert review.row["recommended"]


def test_after_folds_every_image_has_a_prediction() -> None:
    run = write_cache_and_run(review_columns(splits=[0] * 120), cv=3)
    review = open_review(run)
    assert len(predictions(run)) == 120
    assert (review.splits == TEST).all()
    assert (review.predicted >= 0).all()


def test_rows_are_selected_by_class_split_and_mistake_after_edits(run: Path) -> None:
    review = open_review(run)
    labels = review.table.columns.labels
    wrong = review.select(only_mistakes=True)
    expected = np.flatnonzero((review.predicted >= 0) & (review.predicted != labels))
    assert sorted(wrong) == expected.tolist()
    assert len(wrong) > 5
    lead = review.probability[wrong] - review.label_probability[wrong]
    assert (np.diff(lead) <= 0).all()
    cats = review.select(label=0, split=VALIDATION)
    assert (labels[cats] == 0).all()
    assert (review.splits[cats] == VALIDATION).all()
    first, second = wrong[:2].tolist()
    review.labels.relabel(first, int(review.predicted[first]))
    review.labels.drop(second)
    assert review.select(only_mistakes=True).tolist() == wrong[2:].tolist()
    assert first in review.select(label=int(review.predicted[first]))
    assert second not in np.concatenate([review.select(label=label) for label in range(3)])


def test_the_map_has_a_bounded_number_of_points(run: Path) -> None:
    review = open_review(run)
    for most, count in ((2000, 120), (30, 30)):
        points, rows = review.feature_map(most)
        assert points.shape == (count, 2)
        assert (np.diff(rows) > 0).all()
        assert ((points >= 0) & (points <= 1)).all()


def test_pictures_are_only_those_that_were_extracted(synthetic_set: Path) -> None:
    table = extract_features(synthetic_set, base="pixels", image_size=8).table
    review = open_review(
        write_run(compare_heads(table.path, heads="logistic", audit=False), Path("results"))
    )
    picture = review.picture(0, side=20)
    assert isinstance(picture, bytes)
    assert Image.open(io.BytesIO(picture)).size == (20, 16)
    names = [synthetic_set / path.decode() for path in table.columns.paths[:2]]
    names[1].write_bytes(names[0].read_bytes())
    assert review.picture(1) == "the file has changed"
    names[1].unlink()
    names[1].symlink_to("/etc/passwd")
    assert review.picture(1) == "the file is gone"
    moved = shutil.move(synthetic_set, "moved")
    assert open_review().picture(0) == "the image folder is gone"
    assert open_review(images=moved).picture(0, side=20) == picture


def test_each_image_is_queued_once_until_it_is_reviewed() -> None:
    columns = review_columns()
    columns.labels[3] = 1  # rows 0 and 3 are one file
    review = open_review(write_cache_and_run(columns, signal=1.5))
    queue = review.queue()
    rows = [item.row for item in queue]
    assert len(set(rows)) == len(rows)
    kinds = [item.kind for item in queue]
    assert kinds == sorted(kinds, key=["label", "mistake", "duplicate"].index)
    assert {0, 3} & set(rows)
    for item in queue[:3]:
        review.labels.keep(item.row)
    reviewed = set(review.labels.edits())
    assert [item.row for item in review.queue()] == [row for row in rows if row not in reviewed]
    assert len(review.queue(reviewed=True)) == len(queue)


def test_a_duplicate_in_another_split_is_queued() -> None:
    columns = review_columns()
    columns.splits[[0, 3]] = TEST, TRAIN
    columns.labels[[0, 3]] = 0
    items = open_review(write_cache_and_run(columns, signal=3.0)).queue()
    (item,) = [item for item in items if item.row == 3]
    assert (item.kind, item.other) == ("duplicate", 0)
    assert item.reason == "the same file as =cmd 0.jpg, cats in test"


def test_an_old_run_opens_without_mistakes(run: Path) -> None:
    (run / "predictions.csv").unlink()
    review = open_review(run)
    assert (review.predicted == -1).all()
    assert review.notices == (f"{run} has no predictions.csv: its mistakes are not known",)
    (run / "predictions.csv").write_text("path,digest\n")
    assert "no mistakes are known" in open_review(run).notices[0]
    (run / "predictions.csv").write_bytes(b"\xff\x00")
    assert "no mistakes are known" in open_review(run).notices[0]


def test_a_moved_cache_is_found_and_a_missing_one_is_one_line(run: Path) -> None:
    shutil.move("cache", "moved")
    with pytest.raises(
        NoInputError, match=r"the cache of .*, cache/synthetic\.h5, is gone.*cache-"
    ):
        open_review(run)
    assert open_review(run, cache_dir="moved").table.path == Path("moved/synthetic.h5")
    write_cache(Path("cache/synthetic.h5"), labels=[0, 1, 2] * 30, classes=CLASSES)
    assert len(open_review(run).table) == 90  # another set of these features


def test_runs_without_classes_and_folders_without_a_run_are_one_line() -> None:
    cache = write_targets(Path("cache/labels.h5"), "multilabel", count=60)
    run = write_run(compare_heads(cache, heads="knn", audit=False), Path("results"))
    assert not (run / "predictions.csv").exists()
    with pytest.raises(UsageError, match="is a run of multilabel; only labels of classes"):
        open_review(run)
    with pytest.raises(NoInputError, match="does not exist"):
        open_review("nowhere")
    for content in ("{}", '{"run": {}, "rows": []}', "nonsense"):
        (run / "results.json").write_text(content)
        with pytest.raises(BadDataError) as raised:
            open_review(run)
        assert "\n" not in str(raised.value)


def test_a_tampered_run_is_one_line(run: Path) -> None:
    path = run / "results.json"
    document = json.loads(path.read_text())
    for change in (
        {"caches": []},
        {"caches": 1},
        {"dense": [{"epoch": 1}]},
        {"cv": "x"},
        {"split": "1/2"},
        {"labels": 7},
        {"heads": ["x"]},
    ):
        path.write_text(json.dumps({**document, "run": document["run"] | change}))
        with pytest.raises(PipelineError) as raised:
            open_review(run)
        assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_augmented_views_are_not_images() -> None:
    columns, _ = add_views(draw_columns([0, 1, 2] * 30, splits=[1, 1, 1, 2, 2, 2, 3, 3, 3] * 10), 2)
    review = open_review(write_cache_and_run(columns, views=1))
    assert len(review.table) == 90
    assert np.count_nonzero(review.predicted >= 0) == 60
