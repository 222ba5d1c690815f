"""Find images: layouts, unusual entries, and the error if a folder is not an image set."""

import os
import shutil
from pathlib import Path

import pytest
from synthetic_images import draw, make_image_folder

from pipeline.errors import BadDataError, NoInputError
from pipeline.images.scan import NO_SPLIT, TEST, TRAIN, VALIDATION, find_images, scan_folder


def test_split_folders_and_classes_are_found(synthetic_set: Path) -> None:
    images = scan_folder(synthetic_set)
    assert images.classes == ("plain", "striped")
    assert {file.split for file in images.files} == {TRAIN, VALIDATION, TEST}
    assert len(images.files) == 3 * 2 * 12
    first = images.files[0]
    assert (first.path, first.label, first.split) == (b"train/plain/000.png", 0, TRAIN)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation"])
def test_usual_names_of_the_validation_folder_are_recognised(tmp_path: Path, name: str) -> None:
    images = scan_folder(make_image_folder(tmp_path / "set", per_class=1, splits=("train", name)))
    assert {file.split for file in images.files} == {TRAIN, VALIDATION}


def test_class_folders_alone_have_no_split(synthetic_classes: Path) -> None:
    images = scan_folder(synthetic_classes)
    assert {file.split for file in images.files} == {NO_SPLIT}


def test_folder_called_test_is_a_class_if_it_contains_images(tmp_path: Path) -> None:
    for name in ("test", "good"):
        (tmp_path / "set" / name).mkdir(parents=True)
        draw(1, stripes=False).save(tmp_path / "set" / name / "a.png")
    assert scan_folder(tmp_path / "set").classes == ("good", "test")


def test_images_in_folders_below_a_class_belong_to_it(synthetic_classes: Path) -> None:
    deep = synthetic_classes / "plain" / "monday" / "camera 2"
    deep.mkdir(parents=True)
    draw(9, stripes=False).save(deep / "x.png")
    assert b"plain/monday/camera 2/x.png" in {
        file.path for file in scan_folder(synthetic_classes).files
    }


def test_limit_takes_the_first_of_each_class_and_split(synthetic_set: Path) -> None:
    images = scan_folder(synthetic_set).limited(2)
    assert [file.path.split(b"/")[-1] for file in images.files] == [b"000.png", b"001.png"] * 6


def test_hidden_files_are_ignored_and_other_folders_reported(synthetic_set: Path) -> None:
    (synthetic_set / "train" / "plain" / ".DS_Store").write_bytes(b"x")
    (synthetic_set / "train" / "plain" / "Thumbs.db").write_bytes(b"x")
    (synthetic_set / "notes").mkdir()
    images = scan_folder(synthetic_set)
    assert len(images.files) == 72
    assert images.ignored == ("notes",)


def test_links_and_pipes_are_skipped_by_name(synthetic_classes: Path, tmp_path: Path) -> None:
    plain = synthetic_classes / "plain"
    draw(5, stripes=False).save(tmp_path / "outside.png")
    (plain / "outside.png").symlink_to(tmp_path / "outside.png")
    (plain / "loop").symlink_to(synthetic_classes)
    (plain / "nowhere.png").symlink_to("missing.png")
    (plain / "same.png").symlink_to("000.png")
    os.mkfifo(plain / "pipe")
    images = scan_folder(synthetic_classes)
    reasons = {item.path.split(b"/")[-1].decode(): item.reason for item in images.skipped}
    assert sorted(reasons) == ["loop", "nowhere.png", "outside.png", "pipe"]
    assert "out of the image folder" in reasons["outside.png"]
    assert b"plain/same.png" in {file.path for file in images.files}


def test_class_folders_that_are_links_are_skipped_by_name(
    synthetic_classes: Path, tmp_path: Path
) -> None:
    outside = make_image_folder(tmp_path / "outside", per_class=2)
    (synthetic_classes / "bird").symlink_to(outside / "plain")
    (synthetic_classes / "loop").symlink_to(synthetic_classes)
    images = scan_folder(synthetic_classes)
    assert images.classes == ("plain", "striped")
    assert [item.path for item in images.skipped] == [b"bird", b"loop"]


def test_any_file_name_keeps_its_bytes(synthetic_classes: Path) -> None:
    names = [b"new\nline.png", b"latin-\xe9.png", "한글.png".encode(), b"x" * 251 + b".png"]
    content = (synthetic_classes / "plain" / "000.png").read_bytes()
    for name in names:
        (synthetic_classes / "plain" / os.fsdecode(name)).write_bytes(content)
    paths = {file.path for file in scan_folder(synthetic_classes).files}
    assert {b"plain/" + name for name in names} <= paths


def test_class_name_that_is_not_text_is_escaped(synthetic_classes: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    (synthetic_classes / "plain").rename(synthetic_classes / odd)
    assert scan_folder(synthetic_classes).classes == ("caf\\xe9", "striped")


def test_missing_folder_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="does not exist"):
        scan_folder(tmp_path / "nowhere")


def test_file_instead_of_folder_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NoInputError, match="is a file"):
        scan_folder(tmp_path / "file")


def test_empty_folder_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputError, match="is empty"):
        scan_folder(tmp_path / "empty")


def test_images_without_class_folders_are_bad_data(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    draw(1, stripes=False).save(tmp_path / "flat" / "a.png")
    with pytest.raises(BadDataError, match="no class folders"):
        scan_folder(tmp_path / "flat")


def test_empty_class_is_bad_data(synthetic_classes: Path) -> None:
    (synthetic_classes / "third").mkdir()
    with pytest.raises(BadDataError, match="third contains no files"):
        scan_folder(synthetic_classes)


def test_one_class_is_a_set_but_a_folder_around_a_set_is_not(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "outer/set", per_class=1)
    shutil.copytree(root / "plain", tmp_path / "set/good")
    assert scan_folder(tmp_path / "set").classes == ("good",)
    with pytest.raises(BadDataError, match=r"1 class: .*; did you mean .*outer/set"):
        scan_folder(tmp_path / "outer")


def test_two_validation_folders_are_bad_data(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "set", per_class=1, splits=("train", "val", "validation"))
    with pytest.raises(BadDataError, match="both"):
        scan_folder(root)


def test_splits_without_train_are_bad_data(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "set", per_class=1, splits=("test", "val"))
    with pytest.raises(BadDataError, match="no train/"):
        scan_folder(root)


def make_set(root: Path, *folders: str) -> Path:
    """Write one image to each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        draw(len(folder), stripes=False).save(root / folder / "a.png")
    return root


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        (
            ["training/a", "training/b", "testing/a"],
            r"testing contains 1 file; .* test/\? .* training/ to train/",
        ),
        (["trian/a", "trian/b", "tset/a", "tset/b"], r"Rename trian/ to train/, tset/ to test/"),
        (["train/a", "train/b", "vaild/a"], r"vaild contains 1 file; did you mean validation/\?"),
        (
            ["pets/train/a", "pets/train/b", "fruit/train/c"],
            r"2 image sets.*: name one, .*fruit or ",
        ),
        (["a", "b", "pets/train/a", "pets/train/b"], r"1 image set.* name one, .*pets"),
        (["train/a", "train/b", "pets/train/a"], r"1 image set"),
        (["Training_data/a", "Training_data/b", "Test_data/a"], r"Training_data/ to train/"),
        (["cat", "dog", "more/cat", "more/dog"], r"1 image set .* name one, .*more"),
        (["train/images/a", "train/images/b", "test/images/a"], r"folders in t\w+/images/ up"),
        (["train/train/a", "train/test/a"], r"contains test/ below train/: a set inside a set"),
        (["pets/a", "pets/b"], r"1 class: .* did you mean .*set/pets\?"),
    ],
)
def test_folders_that_are_no_classes_are_bad_data_with_the_likely_meaning(
    folders: list[str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(BadDataError, match=reason):
        scan_folder(make_set(tmp_path / "set", *folders))


def test_folders_whose_names_resemble_splits_can_be_classes(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", "trains", "tests", "planes")
    assert scan_folder(root).classes == ("planes", "tests", "trains")
    root = make_set(tmp_path / "deep", "trains/steam", "planes/jet")
    assert scan_folder(root).classes == ("planes", "trains")


@pytest.mark.parametrize("junk", ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN"])
def test_folders_that_programs_create_are_ignored_everywhere(
    junk: str, synthetic_set: Path
) -> None:
    for folder in (".", "train", "train/plain", "test/striped"):
        make_set(synthetic_set / folder, junk)
    for name in ("._000.png", "desktop.ini", "Thumbs.db"):
        (synthetic_set / "train/plain" / name).write_bytes(b"x")
    images = scan_folder(synthetic_set)
    assert (images.classes, len(images.files), images.ignored) == (("plain", "striped"), 72, ())
    found, skipped = find_images([str(synthetic_set)])
    assert (len(found), skipped) == (72, [])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("pets.zip", "unpack it first"), ("https://example.org/pets", "download it first")],
)
def test_archive_and_address_are_no_input_with_the_cure(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pets.zip").write_bytes(b"PK\3\4")
    with pytest.raises(NoInputError, match=reason):
        scan_folder(Path(name))


def test_only_links_out_of_the_folder_give_their_reason(tmp_path: Path) -> None:
    outside = make_set(tmp_path / "elsewhere", "cat", "dog")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/cat").symlink_to(outside / "cat")
    with pytest.raises(BadDataError, match="cat is a link that leads out of the image folder"):
        scan_folder(tmp_path / "set")
