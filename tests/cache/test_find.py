"""Caches are found by the names of sets, image folders and files; other names get a cure."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import assert_one_line, run_command
from synthetic_images import make_image_folder

from pipeline import extract_features
from pipeline.cache.find import find_cache, find_caches, latest_caches, record_latest
from pipeline.errors import NoInputError, PipelineError, UsageError

CACHE = Path("cache")


def extract(root: Path, **options: Any) -> Path:
    return extract_features(root, **{"base": "pixels", "pooling": "avg"} | options).table.path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return extract(make_image_folder(tmp_path / "data/pets", per_class=6))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return extract(make_image_folder(tmp_path / "data/other", per_class=6), image_size=16)


def test_set_is_named_by_its_folder_or_name(pets: Path, other: Path) -> None:
    for name in ("data/pets", "data/pets/", "pets", Path("data/pets").resolve()):
        assert find_cache(CACHE, Path(name)) == pets
    stderr = run_command("classify", "data/other", "--heads", "majority", "--no-audit").stderr
    assert f"using the newest cache of data/other: {other}\n" in stderr


def test_last_extract_of_each_set_decides(pets: Path, other: Path) -> None:
    small = extract(Path("data/pets"), image_size=8)
    assert extract(Path("data/pets")) == pets  # answered from the cache
    extract(Path("data/other"), image_size=16)
    os.utime(small)
    assert latest_caches(CACHE) == [other]
    assert find_cache(CACHE, Path("pets")) == pets
    shutil.copytree("cache", "copied")
    assert find_cache(Path("copied"), Path("pets")) == Path("copied", pets.name)


def test_record_of_one_line_names_the_latest(pets: Path, other: Path) -> None:
    Path("cache/latest").write_text(pets.name)
    assert latest_caches(CACHE) == [pets]
    assert extract(Path("data/other"), image_size=16) == other
    assert latest_caches(CACHE) == [other]


def test_caches_of_the_last_extract_belong_together(pets: Path, other: Path) -> None:
    together = [extract(Path("data/pets"), image_size=8), pets]  # as with two bases
    record_latest(CACHE, together)
    assert latest_caches(CACHE) == together
    for name in ("pets", "data/pets"):
        assert find_caches(CACHE, [Path(name), Path("other")]) == [*together, other]
    assert find_cache(CACHE, Path("pets")) == together[0]
    assert find_caches(CACHE, [pets, Path("pets")]) == together[::-1]
    extract(Path("data/other"), image_size=16)
    assert latest_caches(CACHE) == [other]
    assert find_caches(CACHE, [Path("pets")]) == together[:1]
    other.unlink()
    assert latest_caches(CACHE) == together[:1]


def test_two_folders_of_one_set_name_need_the_folder(pets: Path, tmp_path: Path) -> None:
    second = extract(make_image_folder(tmp_path / "more/pets", per_class=7))
    message = assert_one_line(run_command("classify", "pets", check=2))
    roots = " or ".join(str(tmp_path / name / "pets") for name in ("data", "more"))
    assert message == (
        f"error: pets is the name of 2 image folders: name one of them by its path, {roots}"
    )
    assert find_cache(CACHE, Path("data/pets")) == pets
    assert find_cache(CACHE, Path("more/pets")) == second
    shutil.rmtree("data/pets")  # a moved folder is no second set
    assert find_cache(CACHE, Path("pets")) == second
    shutil.rmtree("more/pets")
    with pytest.raises(UsageError, match="the name of 2 image folders"):
        find_cache(CACHE, Path("pets"))
    assert find_cache(CACHE, Path("data/pets")) == pets


def test_folder_named_like_another_set_is_not_taken_for_it(pets: Path) -> None:
    Path("pets").mkdir()
    with pytest.raises(UsageError, match="the name of 2 image folders"):
        find_cache(CACHE, Path("pets"))
    Path("data").rename("gone")
    assert find_cache(CACHE, Path("pets")) == pets


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "contains image folders, and is not one: name one of data/other, data/pets"),
        ("/", "contains image folders"),
        ("data", "contains image folders, and is not one: name one of data/other, data/pets"),
        ("data/pets/plain", "is in the image folder of a set: name data/pets"),
        ("data/pets/plain/000.png", "is in the image folder of a set: name data/pets"),
        ("results", "is a folder of runs of classify, not of images: name one of the sets other"),
        ("results/run", "is a run of classify, or in one, not a cache: name one of the sets"),
        ("results/run/results.json", "is a run of classify, or in one, not a cache"),
        ("results/run/models", "is a run of classify, or in one, not a cache"),
        ("cache", "is the folder of caches: name one of the sets other, pets, or a cache file"),
        ("cache/hashes", "is a part of the folder of caches, not a cache: name one of the sets"),
        ("cache/latest", "is a part of the folder of caches, not a cache"),
        ("copied", "is a folder of caches: pass --cache-dir copied, or name a file in it"),
        ("data/new", "run python -m pipeline.extract data/new first"),
        ("data/none", "name one of the sets other, pets, or a cache file"),
        ("notes.txt", "is not a feature cache (a .h5 file): name one of the sets other, pets"),
        ("data/pest", "did you mean data/pets?"),
        ("PETS", "did you mean pets?"),
        ("pets ", "did you mean pets?"),
        ("/elsewhere/pets", "did you mean data/pets?"),
        ("x.h5", "x.h5 does not exist; run python -m pipeline.extract first, or name one of "),
    ],
)
def test_other_names_say_what_they_are_and_what_to_name(
    pets: Path, other: Path, name: str, message: str
) -> None:
    for folder in ("results/run/models", "cache/hashes", "data/new"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    Path("results/run/results.json").write_text("{}")
    Path("notes.txt").write_text("mine")
    Path("cache/broken.h5").write_bytes(b"text")
    shutil.copytree("cache", "copied")
    with pytest.raises(PipelineError) as raised:
        find_cache(CACHE, Path(name))
    assert message in str(raised.value)


def test_what_a_name_is_needs_no_cache() -> None:
    Path("results/run").mkdir(parents=True)
    Path("results/run/results.json").write_text("{}")
    Path("new").mkdir()
    for name, message in (
        ("results", "is a folder of runs of classify, not of images: name a cache file"),
        ("new", "run python -m pipeline.extract new first"),
        ("pets", "run python -m pipeline.extract pets first"),
    ):
        with pytest.raises(NoInputError, match=message):
            find_cache(CACHE, Path(name))


def test_files_beside_a_named_cache_are_left_out(
    pets: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pets.with_suffix(".skipped.csv").touch()
    for folder in ("engines", "hashes", "new-pixels-1.parts"):
        (CACHE / folder).mkdir(exist_ok=True)
    assert find_caches(CACHE, sorted(CACHE.glob("pets-*"))) == [pets]
    assert find_caches(CACHE, sorted(CACHE.glob("*"))) == [other, pets]
    assert "cache/new-pixels-1.parts is an interrupted run of extract" in caplog.text
    assert find_caches(CACHE, [pets, Path("pets"), Path("other")]) == [pets, other]
    for suffix in (".lock", ".skipped.csv"):
        with pytest.raises(PipelineError, match=f"belongs to a cache: name {pets}"):
            find_caches(CACHE, [pets.with_suffix(suffix)])
    with pytest.raises(PipelineError, match="interrupted run of extract: run extract again"):
        find_caches(CACHE, [CACHE / "new-pixels-1.parts"])


def test_cache_file_is_found_by_its_name_alone(pets: Path) -> None:
    assert find_cache(CACHE, Path(pets.name)) == pets
    with pytest.raises(NoInputError, match=rf"x\.h5 does not exist; did you mean {pets.name}\?"):
        find_cache(CACHE, Path(pets.name.replace(".h5", "x.h5")))
