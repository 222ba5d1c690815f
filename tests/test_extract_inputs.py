"""``extract`` with other inputs than one image folder, and the commands after it."""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas
import pytest
from command import assert_one_line, run_command
from synthetic_images import make_image_folder

from pipeline import compare_heads, extract_features, load_features
from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation.frames import table_of_frame
from pipeline.evaluation.protocol import EvaluationProtocol

BASE = ("--base", "pixels", "--image-size", "9", "--json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of each of the classes plain and striped, in class folders."""
    os.chdir(tmp_path)
    return make_image_folder(tmp_path / "photos")


def frame_of(folder: Path) -> pandas.DataFrame:
    """Return path, label, age and group (six groups) of all images, from the folder's parent."""
    paths = sorted(path.relative_to(folder.parent).as_posix() for path in folder.rglob("*.png"))
    numbers = range(len(paths))
    return pandas.DataFrame(
        {
            "path": paths,
            "label": [Path(path).parent.name for path in paths],
            "age": [number / 2 for number in numbers],
            "group": [f"g{number % 6}" for number in numbers],
        }
    )


def extract(*arguments: str | Path) -> dict[str, object]:
    return dict(json.loads(run_command("extract", *arguments, *BASE).stdout))


def test_image_in_another_layout_is_not_computed_again(folder: Path) -> None:
    frame = frame_of(folder)
    frame.to_csv("labels.csv", index=False)
    shutil.copytree(folder, "copy")
    Path("first").mkdir()
    shutil.move("copy/plain", "first/plain")
    assert extract(folder)["computed"] == 24
    for arguments in (
        ("labels.csv",),
        ("labels.csv", "--task", "regression", "--label-column", "age"),
        ("first", "copy"),
        ("photos", "--unlabeled"),
    ):
        document = extract(*arguments)
        assert (document["images"], document["computed"]) == (24, 0)
    assert extract_features(frame, base="pixels", image_size=9).computed == 0
    names = [path.name for path in Path("cache").glob("*.h5")]
    assert len(names) == 6


@pytest.mark.slow
def test_manifest_works_in_every_command(folder: Path, tmp_path: Path) -> None:
    frame_of(folder).rename(columns={"label": "class"}).to_csv("labels.csv", index=False)
    (folder / "plain/000.png").unlink()
    finished = run_command("extract", "labels.csv", "--label-column", "class", *BASE)
    assert "plain 11, striped 12" in finished.stderr
    assert "6 groups, which classify keeps in one split" in finished.stderr
    assert "1 row of" in finished.stderr
    cache = Path(json.loads(finished.stdout)["cache"])
    assert (
        "photos/plain/000.png: does not exist" in run_command("cache", "show", "labels.csv").stdout
    )
    classified = run_command("classify", "labels.csv", "--heads", "ridge", "--check")
    assert "groups kept together" in classified.stderr
    assert "no decision of 23 changed" in classified.stdout
    (run,) = Path("results").iterdir()
    assert "the image folder is gone" not in (run / "report.html").read_text()
    exported = run_command("export", "--format", "onnx").stdout
    assert "ridge predicts as in the comparison" in exported
    assert "needs classes" in assert_one_line(
        run_command(
            "finetune", "labels.csv", "--task", "regression", "--label-column", "age", check=2
        )
    )
    predicted = run_command("predict", "labels.csv", check=2)
    assert "labels.csv is a manifest" in assert_one_line(predicted)
    Path("labels.csv").unlink()  # the images are found without it
    with h5py.File(cache) as file:
        offset = file["features/pixels"].id.get_chunk_info(0).byte_offset
    content = bytearray(cache.read_bytes())
    content[offset + 9] ^= 1
    cache.write_bytes(content)
    assert "23 images computed again" in run_command("cache", "repair", cache).stdout
    assert "nothing to prune" in run_command("cache", "prune").stdout


def test_groups_of_a_manifest_stay_in_one_split_unless_a_rule_is_named(folder: Path) -> None:
    frame_of(folder).to_csv("labels.csv", index=False)
    columns = load_features(str(extract("labels.csv")["cache"])).columns
    last_digits = np.array([path[-5:-4] for path in columns.paths.tolist()])
    for groups, options in ((columns.groups, {}), (last_digits, {"group": r"(\d)\.png"})):
        plan = EvaluationProtocol(folds=3, **options).plan_trials(columns, ("plain", "striped"))
        assert "groups kept together" in plan.source
        for trial in plan.trials:
            parts = (trial.splits.train, trial.splits.validation, trial.splits.test)
            found = [group for part in parts for group in set(groups[part].tolist())]
            assert sorted(found) == sorted(set(groups.tolist()))


def test_several_folders_are_one_set_in_every_command(folder: Path, tmp_path: Path) -> None:
    make_image_folder(tmp_path / "more")
    document = extract("photos", "more")
    assert document["images"] == 48
    assert "48 rows" in run_command("cache", "ls").stdout
    finished = run_command("classify", "more+photos", "--heads", "ridge", "--check")
    assert "no decision of 48 changed" in finished.stdout
    refused = run_command("classify", "photos", check=66)
    assert "is a part of the set more+photos" in assert_one_line(refused)
    shutil.move("more", "moved")
    refused = run_command("export", "--format", "onnx", check=66)
    assert f"{tmp_path}/more, the image folder of" in assert_one_line(refused)


def test_set_without_labels_has_features_only(folder: Path) -> None:
    document = extract("photos", "--unlabeled")
    table = load_features(str(document["cache"]))
    assert (table.task, table.classes, len(table)) == ("unlabelled", (), 24)
    frame = load_features(table.path, as_="pandas")
    assert list(frame.columns[:3]) == ["path", "split", "pixels_0"]
    assert load_features(table.path, as_="arrow").column_names == ["path", "split", "features"]
    assert "unlabelled" in run_command("cache", "show", "photos").stdout
    refused = run_command("classify", "photos", check=65)
    assert "has no labels, which classify needs" in assert_one_line(refused)
    extract("photos")
    run_command("classify", "photos", "--heads", "ridge", "--no-audit")
    predicted = json.loads(run_command("predict", "photos/plain", "--json").stdout)
    assert predicted["cached"] == 12


def test_targets_are_cached_and_loaded(folder: Path) -> None:
    frame = frame_of(folder)
    parities = ["even", "odd"] * 12
    pairs = zip(frame.label, parities, strict=True)
    frame["label"] = [f"{label}|{parity}" for label, parity in pairs]
    frame.to_csv("labels.csv", index=False)
    path = str(extract("labels.csv", "--task", "multilabel")["cache"])
    assert load_features(path).classes == ("even", "odd", "plain", "striped")
    _, labels = load_features(path, as_="arrays")
    assert labels[:2].tolist() == [[1, 0, 1, 0], [0, 1, 1, 0]]
    table = load_features(path, as_="pandas")
    assert table.label[1] == "odd|plain"
    on_cache, on_frame = (
        compare_heads(each, heads="logistic", task="multilabel", cv=3, audit=False).classes
        for each in (path, table)
    )
    assert on_cache == on_frame == ("even", "odd", "plain", "striped")
    for labels in (table.label.str.split("|"), table.label.str.replace("|", " | ")):
        assert table_of_frame(table.assign(label=labels), "multilabel").classes == on_cache
    with pytest.raises(UsageError, match="labels are lists, which need task="):
        compare_heads(table.assign(label=table.label.str.split("|")))
    with pytest.raises(UsageError, match="one of classes, multilabel, regression"):
        compare_heads(table, task="x")
    path = str(extract("labels.csv", "--task", "regression", "--label-column", "age")["cache"])
    np.testing.assert_array_equal(load_features(path, as_="arrays")[1], frame["age"])
    assert load_features(path, as_="arrow")["label"][1].as_py() == 0.5


def test_heads_are_compared_on_a_data_frame_as_on_the_cache(folder: Path) -> None:
    path = extract_features(folder, base="pixels", image_size=9).table.path
    frame = load_features(path, as_="pandas")
    # Rows are identified by their features, not their files: the splits are fixed.
    frame["split"] = ["train", "val", "test"] * 8
    comparison = compare_heads(frame, heads="ridge,knn", audit=False)
    assert comparison.classes == ("plain", "striped")
    assert comparison.shown.result.test_accuracy == 1
    assert {outcome.result.base for outcome in comparison.outcomes} == {"dataframe"}
    assert comparison.findings is None or not comparison.findings.suspects
    with pytest.raises(UsageError, match="needs a column label"):
        compare_heads(frame.drop(columns="label"))
    with pytest.raises(UsageError, match="which are numbers; received note"):
        compare_heads(frame.assign(note="x"))
    with pytest.raises(UsageError, match="24 of 24 rows have no label, or"):
        compare_heads(frame.assign(pixels_0=np.nan))
    with pytest.raises(BadDataError, match="no column path"):
        extract_features(frame.drop(columns="path"), base="pixels")


def test_manifest_in_a_folder_without_classes_is_suggested(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.png"):
        path.rename(folder / f"{path.parent.name}-{path.name}")
    shutil.rmtree(folder / "plain")
    shutil.rmtree(folder / "striped")
    refused = run_command("extract", folder, *BASE, check=65)
    assert "for features only, pass --unlabeled" in assert_one_line(refused)
    (folder / "train.csv").write_text("path,label\n")
    refused = run_command("extract", folder, *BASE, check=65)
    assert "did you mean" in assert_one_line(refused)
