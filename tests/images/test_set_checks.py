"""Warnings about image sets whose scores would mislead."""

import shutil
from pathlib import Path

import pytest
from synthetic_images import make_image_folder

from pipeline import extract_features

SPLITS = ("train", "validation", "test")


def warnings_of(root: Path, caplog: pytest.LogCaptureFixture) -> str:
    extract_features(root, base="pixels", cache_dir=root.parent / "cache")
    return "\n".join(each.message for each in caplog.records if each.levelname == "WARNING")


def test_class_that_a_split_lacks_is_named_with_the_cure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_image_folder(tmp_path / "set", per_class=2, splits=SPLITS)
    shutil.rmtree(root / "validation/plain")
    text = warnings_of(root, caplog)
    assert text == (
        "validation/ has no plain/; add its images, or cross-validate with classify --cv, which "
        "ignores the splits"
    )


def test_class_spelt_otherwise_in_one_split_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_image_folder(tmp_path / "set", per_class=2, splits=SPLITS)
    (root / "test/plain").rename(root / "test/plains")
    assert "test/ has no plain/; plains/ is there: the same class?" in warnings_of(root, caplog)


def test_test_images_that_are_the_train_images_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_image_folder(tmp_path / "set", per_class=3, splits=("train",))
    shutil.copytree(root / "train", root / "test")
    assert "test/ contains the same images as train/" in warnings_of(root, caplog)
    (root / "test/plain/000.png").unlink()
    caplog.clear()
    assert "test/ contains only images of train/" in warnings_of(root, caplog)


def test_image_sets_instead_of_classes_are_suspected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("pets/cat", "pets/dog", "fruit/apple", "fruit/pear")):
        folder = make_image_folder(tmp_path / f"x{number}", per_class=2) / "plain"
        (tmp_path / "both" / name).parent.mkdir(parents=True, exist_ok=True)
        folder.rename(tmp_path / "both" / name)
    assert "extract " + str(tmp_path / "both/fruit") in warnings_of(tmp_path / "both", caplog)


def test_of_many_identical_images_some_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_image_folder(tmp_path / "set", per_class=15, splits=())
    (image, *others) = sorted(root.glob("*/*.png"))
    for other in others:
        shutil.copy(image, other)
    text = warnings_of(root, caplog)
    assert "1 image has several labels: plain/000.png = plain/001.png = " in text
    assert text.count(".png") == 10
    assert text.endswith(" = …")
