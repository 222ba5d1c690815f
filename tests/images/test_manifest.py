"""Manifests name images, labels, splits and groups."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pandas
import pytest
from synthetic_images import draw

from pipeline.errors import BadDataError, NoInputError, PipelineError, UsageError
from pipeline.images.config import LabelConfig
from pipeline.images.scan import ImageSet
from pipeline.images.sets import open_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the images a.png, b.png, c.png and sub/d.png."""
    (tmp_path / "set/sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "c.png", "sub/d.png")):
        draw(number, stripes=False).save(tmp_path / "set" / name)
    return tmp_path / "set"


def write(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def labels_of(images: ImageSet) -> dict[str, str]:
    return {os.fsdecode(file.path): images.classes[file.label] for file in images.files}


def reasons(images: ImageSet) -> dict[str, str]:
    return {os.fsdecode(item.path): item.reason for item in images.skipped}


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["10", "2", "2.0"], ("2", "10")),
        (["1", "1.0", "0"], ("0", "1")),
        (["-1", "0.50", "0.5"], ("-1", "0.5")),
        (["001", "1", "01"], ("001", "01", "1")),
        (["True", "false", "TRUE"], ("False", "True")),
        (["dog", "cat", "cat "], ("cat", "dog")),
        (["Zebra", "äffchen", "ape"], ("Zebra", "ape", "äffchen")),
        (["12345678901234567890", "12345678901234567891", "x"],
         ("12345678901234567890", "12345678901234567891", "x")),
    ],
)  # fmt: skip
def test_classes_are_ordered_as_numbers_or_names(
    folder: Path, cells: list[str], classes: tuple[str, ...]
) -> None:
    rows = zip(("a.png", "b.png", "c.png"), cells, strict=True)
    text = "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows)
    assert open_set(write(folder, text)).classes == classes


TABLE = {
    "path": ["a.png", "b.png", "c.png", "sub/d.png"],
    "label": [1, 0, 1, 0],
    "split": ["train", "train", "VAL", "test"],
    "group": ["x", None, "x", "y"],
}


@pytest.mark.parametrize("kind", ["csv", "tsv", "excel", "utf-16", "jsonl", "parquet", "frame"])
def test_every_kind_of_table_gives_the_same_set(folder: Path, kind: str) -> None:
    frame = pandas.DataFrame(TABLE)
    data: Any = folder / f"labels.{kind}"
    if kind == "frame":
        data = frame
    elif kind == "jsonl":
        frame.to_json(data, orient="records", lines=True)
    elif kind == "parquet":
        frame.to_parquet(data)
    else:
        data = folder / ("labels.tsv" if kind == "tsv" else "labels.csv")
        separator = {"tsv": "\t", "excel": ";"}.get(kind, ",")
        encoding = {"excel": "utf-8-sig", "utf-16": "utf-16"}.get(kind, "utf-8")
        frame.to_csv(data, sep=separator, encoding=encoding, index=False, lineterminator="\r\n")
    images = open_set(data, LabelConfig(root=folder))
    assert images.classes == ("0", "1")
    assert [(file.path, file.label, file.split, file.group) for file in images.files] == [
        (b"a.png", 1, 1, b"x"),
        (b"b.png", 0, 1, b""),
        (b"c.png", 1, 2, b"x"),
        (b"sub/d.png", 0, 3, b"y"),
    ]
    assert images.skipped == ()


def test_names_of_columns_and_the_folder_of_paths_are_options(folder: Path) -> None:
    table = write(folder.parent, "id,breed,fold\na,cat,train\nb,dog,train\nd,cat,test\n", "t.csv")
    (folder / "sub/d.png").rename(folder / "d.JPG")  # ids have no suffix
    write(folder, "not an image", "a.txt")
    options = LabelConfig(root=folder, path_column="id", label_column="Breed", split_column="fold")
    images = open_set(table, options)
    assert labels_of(images) == {"a.png": "cat", "b.png": "dog", "d.JPG": "cat"}
    assert [file.split for file in images.files] == [1, 1, 3]


def test_paths_may_be_absolute_above_the_folder_or_from_windows(folder: Path) -> None:
    text = f"path,label\n{folder}/a.png,x\n..\\b.png,y\nd.png,x\n./../c.png,y\n"
    images = open_set(write(folder / "sub", text))
    assert [file.path for file in images.files] == [b"a.png", b"b.png", b"c.png", b"sub/d.png"]
    assert images.folders == {"": str(folder)}
    assert images.source.read(b"sub/d.png") == (folder / "sub/d.png").read_bytes()


def test_rows_that_cannot_be_used_are_listed(folder: Path) -> None:
    (folder / "b.jpg").write_bytes((folder / "b.png").read_bytes())
    text = (
        "path,label\na.png,x\nb.png,y\n\nc.png,x\nsub/d.png,y\nb.jpg,y\n"
        "gone.png,x\nb,x\na.png,NaN\n,x\na.png,x,1\n"
    )
    images = open_set(write(folder, text))
    assert len(images.files) == 5
    assert reasons(images) == {
        "gone.png": "does not exist",
        "b": "means several files: b.jpg, b.png",
        "a.png": "no label",
        f"{folder}/labels.csv:11": "no path",
        f"{folder}/labels.csv:12": "has more cells than the first line",
    }


@pytest.mark.parametrize(
    ("header", "row", "end"),
    [
        ("path,label", "{},{}", "\r"),  # of an old Mac
        ("\n  \npath,label", "{},{}", "\n"),
        ('"path", "label"', '"{}", "{}"', "\n"),
        (",path,label,", "1,{},{},", "\n"),
        ("\tpath\tlabel", "1\t{}\t{}", "\n"),
        ('path;label;"a;\tb"', '{};{};"two\nlines"', "\r\n"),
    ],
)
def test_csv_files_of_all_programs_are_read(folder: Path, header: str, row: str, end: str) -> None:
    rows = [("a.png", "x"), ("b.png", "y"), ("c.png", "x"), ("gone.png", "y"), ("sub/d.png", "y")]
    text = end.join([header, *(row.format(*each) for each in rows)])
    images = open_set(write(folder, text))
    assert labels_of(images) == {path: label for path, label in rows if path != "gone.png"}
    assert reasons(images) == {"gone.png": "does not exist"}
    text = text.replace("label", "split")
    with pytest.raises(BadDataError) as refused:
        open_set(write(folder, text), LabelConfig(label_column="split"))
    line = 1 + (header + row).count("\n")  # where the first row ends
    assert f"labels.csv:{line + 1}: the split is" in str(refused.value)


def test_rows_without_a_split_are_listed_if_others_have_one(folder: Path) -> None:
    text = "path,label,split\na.png,x,train\nb.png,y,Train\nc.png,y,test\nsub/d.png,x,\n"
    images = open_set(write(folder, text))
    assert [file.split for file in images.files] == [1, 1, 3]
    assert reasons(images) == {"sub/d.png": "no split"}


def test_image_listed_twice_counts_once_unless_its_rows_differ(folder: Path) -> None:
    text = "path,label\na.png,1\nb.png,2\n./a.png,1.0\n"
    assert len(open_set(write(folder, text)).files) == 2
    with pytest.raises(BadDataError, match=r"labels.csv:5 contradicts .*:[24] on the label"):
        open_set(write(folder, text + "a.png,2\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: expected columns such as path and label"),
        ("path,label\n", "has no rows"),
        ("file,label\na.png,x\n", "no column path; it has file, label; name it with --path-column"),
        ("path,class\na.png,x\n", "no column label; it has path, class; name it with --label-col"),
        ("path,label,label\na.png,x,y\n", "has 2 columns label"),
        ("path,label\na,x\nno,y\nnix,y\n", "2 of 3 rows of .* cannot be used, e.g. no (does not"),
        ("path,label\nd,x\n", "d (does not exist); did you mean --root "),
        ("path,label\nhttps://x.org/a.png,x\n", "is an address, which is not fetched"),
        ("path,label\nsub,x\n", "sub (is a folder)"),
        ("path,label,split\na.png,x,tran\n", "labels.csv:2: the split is train, validation or test;"
         " received tran; did you mean train?"),
        ("path,label,split\na.png,x,test\nb.png,y,test\n", "none of train"),
        ("path,label\na.png,caf\u00e9\n".encode("latin-1"), "labels.csv:2 is not UTF-8"),
        ('path,label\na.png,"x\nb.png,y\n', "labels.csv is not CSV: EOF inside"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(folder: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(PipelineError) as refused:
        open_set(write(folder, content))
    pattern = message.split(".*")
    assert all(part in str(refused.value) for part in pattern)
    assert "\n" not in str(refused.value)


def test_other_mistakes_are_one_line_too(folder: Path) -> None:
    table = write(folder, "path,label\na.png,x\nb.png,y\n")
    for options, message in (
        (LabelConfig(label_column="lable"), "no column lable; .*; did you mean label?"),
        (LabelConfig(root=folder / "no"), "--root .*no is not a folder"),
    ):
        with pytest.raises((BadDataError, NoInputError), match=message):
            open_set(table, options)
    with pytest.raises(NoInputError, match=r"no.csv does not exist"):
        open_set(folder / "no.csv")
    with pytest.raises(BadDataError, match=r"lines.jsonl:2 is not JSON"):
        open_set(write(folder, '{"path": "a.png", "label": 1}\n{"path"\n', "lines.jsonl"))
    with pytest.raises(BadDataError, match=r"not a Parquet file"):
        open_set(write(folder, "PAR1", "labels.parquet"))
    with pytest.raises(UsageError, match=r"--label-column needs a manifest"):
        open_set(folder, LabelConfig(label_column="x"))
    with pytest.raises(UsageError, match=r"exclude each other"):
        LabelConfig(label_column="x", label_columns="y")
    with pytest.raises(UsageError, match=r"--unlabeled reads no labels; received --task"):
        LabelConfig(unlabeled=True, task="regression")


def test_a_limit_per_class_keeps_images_of_each_label(folder: Path) -> None:
    table = write(folder, "path,label\na.png,sun\nb.png,sun\nc.png,sun|sea\nsub/d.png,sea\n")
    images = open_set(table, LabelConfig(task="multilabel")).limited(1)
    assert [file.path for file in images.files] == [b"a.png", b"c.png"]


def test_several_labels_are_separated_by_bars_or_have_a_column_each(folder: Path) -> None:
    bars = "path,label\na.png,sun | sea\nb.png,sea\nc.png,sun\na.png,sand\n"
    images = open_set(write(folder, bars), LabelConfig(task="multilabel"))
    assert (images.task, images.classes) == ("multilabel", ("sand", "sea", "sun"))
    assert [file.targets for file in images.files] == [(1, 1, 1), (0, 1, 0), (0, 0, 1)]
    columns = "path,sun,sea,split\na.png,1,1,train\nb.png,0,True,train\nc.png,1.0,0,test\n"
    for names in ("all", "sun,SEA"):
        images = open_set(write(folder, columns), LabelConfig(label_columns=names))
        assert (images.task, images.classes) == ("multilabel", ("sun", "sea"))
        assert [file.targets for file in images.files] == [(1, 1), (0, 1), (1, 0)]
    images = open_set(write(folder, columns), LabelConfig(label_columns="all", split_column=""))
    assert (images.classes, {file.split for file in images.files}) == (("sun", "sea"), {0})
    images = open_set(
        write(folder, columns + "sub/d.png,-1,0,train\n"), LabelConfig(label_columns="all")
    )
    assert reasons(images) == {"sub/d.png": "sun: expected 0 or 1, received '-1'"}
    lines = [{"path": "a.png", "label": ["x", "y"]}, {"path": "b.png", "label": []}]
    table = write(folder, "\n".join(map(json.dumps, lines)), "lines.jsonl")
    images = open_set(table, LabelConfig(task="multilabel"))
    assert [file.targets for file in images.files] == [(1, 1), (0, 0)]


def test_data_frame_has_lists_of_labels_and_any_names_of_columns(folder: Path) -> None:
    paths = ["a.png", "b.png", "c.png"]
    frame = pandas.DataFrame({"path": paths, "label": [["x", "y"], ["y"], ["z"]], "x": 1, 2: 0})
    images = open_set(frame, LabelConfig(root=folder, task="multilabel"))
    assert [file.targets for file in images.files] == [(1, 1, 0), (0, 1, 0), (0, 0, 1)]
    for columns in (["x", 2], "x,2"):
        options = LabelConfig(root=folder, label_columns=columns)
        assert open_set(frame.set_index("path"), options).classes == ("x", "2")
    with pytest.raises(BadDataError, match=r"its label is a list, which needs --task multilabel"):
        open_set(frame, LabelConfig(root=folder))
    frame.columns = pandas.MultiIndex.from_product([["path"], range(4)])
    with pytest.raises(BadDataError, match="has no column path"):
        open_set(frame, LabelConfig(root=folder))


def test_numbers_of_a_regression_are_targets(folder: Path) -> None:
    text = "path,age\na.png,1.5\na.png,1.50\nb.png,-2e3\nc.png,inf\nsub/d.png,7\n"
    images = open_set(write(folder, text), LabelConfig(task="regression", label_column="age"))
    assert (images.task, images.classes) == ("regression", ("age",))
    assert [file.targets for file in images.files] == [(1.5,), (-2000,), (7,)]
    assert reasons(images) == {"c.png": "its label is not a number: inf"}


def test_labels_that_look_like_another_task_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        open_set(write(folder, "path,label\na.png,1|2\nb.png,0.33\n"))
    assert "labels such as 1|2 are one class each" in caplog.text
    assert "2 of 2 classes have one image" in caplog.text


def test_folders_merge_classes_by_name_and_paths_name_their_folder(tmp_path: Path) -> None:
    for place in ("x/photos/cat/1.png", "x/photos/dog/1.png", "y/photos/cat/1.png",
                  "y/photos/bird/sub/2.png"):  # fmt: skip
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        draw(len(place), stripes=False).save(tmp_path / place)
    first, second = tmp_path / "x/photos", tmp_path / "y/photos"
    images = open_set([second, first])
    assert images == open_set([first, second])
    assert labels_of(images) == {
        "x-photos/cat/1.png": "cat",
        "x-photos/dog/1.png": "dog",
        "y-photos/bird/sub/2.png": "bird",
        "y-photos/cat/1.png": "cat",
    }
    assert images.name == "x-photos+y-photos"
    assert images.source.read(b"y-photos/cat/1.png") == (second / "cat/1.png").read_bytes()
    with pytest.raises(UsageError, match="named twice"):
        open_set([first, tmp_path / "x/../x/photos"])
    with pytest.raises(UsageError, match=r"cat is inside .*photos"):
        open_set([first, first / "cat"])
    with pytest.raises(NoInputError, match="does not exist"):
        open_set([first, tmp_path / "no"])
    for name in ("pets.tar", "s3://bucket/pets"):
        with pytest.raises(UsageError, match=f"{name} is not a folder"):
            open_set([first, name])
    (tmp_path / "z/train/cat").mkdir(parents=True)
    draw(0, stripes=False).save(tmp_path / "z/train/cat/1.png")
    with pytest.raises(BadDataError, match=r"z has split folders, .*photos has none"):
        open_set([first, tmp_path / "z"])


def test_files_of_any_depth_need_no_labels(folder: Path) -> None:
    images = open_set(folder, LabelConfig(unlabeled=True))
    assert (images.task, images.classes, len(images.files)) == ("unlabelled", (), 4)
    table = write(folder, "path\na.png\nsub/d.png\n")
    assert len(open_set(table, LabelConfig(unlabeled=True)).files) == 2
