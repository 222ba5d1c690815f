"""Sets in tar, Parquet and Arrow files are those of the folders that they were written from."""

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import pyarrow as pa
import pytest
from caches import flip
from command import assert_one_line, run_command
from image_layouts import LAYOUTS, parquet_of_datasets, tar_of_folders, webdataset, write_tar
from pyarrow import parquet
from synthetic_images import draw, make_image_folder

from pipeline import extract_features
from pipeline.cache.maintenance import find_prunable
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.images.config import LabelConfig
from pipeline.images.hashes import hash_files
from pipeline.images.image_stores import as_pattern
from pipeline.images.scan import ImageSet, scan_folder
from pipeline.images.sets import is_gone, open_set, reopen_source
from pipeline.models.bundle import load_bundle
from pipeline.models.parity import reference_images

Layout = Callable[[Path, Path], Path]


def image(number: int) -> bytes:
    file = io.BytesIO()
    draw(number, stripes=bool(number % 2), size=(12, 10)).save(file, "PNG")
    return file.getvalue()


def contents(images: ImageSet) -> set[tuple[int, str, bytes]]:
    """Return split, class and SHA-256 of each image."""
    digests, unreadable = hash_files(images.source, images.paths)
    assert not unreadable
    return {(file.split, images.classes[file.label], digests[file.path]) for file in images.files}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_set_moved_into_files_has_the_same_images_and_is_not_computed_again(
    layout: Layout, synthetic_set: Path, tmp_path: Path
) -> None:
    expected = scan_folder(synthetic_set)
    moved = layout(synthetic_set, tmp_path / "moved")
    found = open_set(moved)
    assert found.classes == expected.classes
    assert contents(found) == contents(expected)
    assert extract_features(synthetic_set, base="pixels", image_size=8).computed == 72
    extraction = extract_features(moved, base="pixels", image_size=8)
    assert extraction.computed == 0
    assert len(extraction.table) == 72
    source = reopen_source(extraction.table.document)
    assert source is not None
    paths = extraction.table.columns.paths.tolist()
    random.Random(0).shuffle(paths)
    assert {source.read(path) for path in paths} == {
        path.read_bytes() for path in synthetic_set.rglob("*.png")
    }


@pytest.mark.parametrize("layout", [tar_of_folders, webdataset, parquet_of_datasets])
def test_changed_file_of_a_set_is_hashed_again(
    layout: Layout, synthetic_set: Path, tmp_path: Path
) -> None:
    moved = layout(synthetic_set, tmp_path / "moved")
    first = extract_features(moved, base="pixels", image_size=8)
    other = make_image_folder(tmp_path / "other", splits=("train", "validation", "test"))
    again = layout(other, tmp_path / "again")
    for path in sorted(again.rglob("*")) if again.is_dir() else [again]:
        if path.is_file():
            path.replace(moved / path.relative_to(again) if again.is_dir() else moved)
    second = extract_features(moved, base="pixels", image_size=8)
    assert (first.computed, second.computed) == (72, 72)
    assert contents(second.images) == contents(scan_folder(other))


def test_commands_work_on_an_archive(synthetic_set: Path, tmp_path: Path) -> None:
    name = tar_of_folders(synthetic_set, tmp_path).rename(tmp_path / "pets.tar")
    extracted = json.loads(
        run_command("extract", "pets.tar", "--base", "pixels", "--image-size", "8", "--json").stdout
    )
    assert extracted["images"] == 72
    finished = run_command("classify", "pets.tar", "--heads", "logistic", "--check")
    assert "no decision of 24 changed" in finished.stdout
    (run,) = Path("results").iterdir()
    report = (run / "report.html").read_text()
    assert "data:image/jpeg" in report
    assert "is gone" not in report
    bundle = load_bundle(run / "models/logistic.skops")
    reference = reference_images(bundle, max_images=5)
    copies = {path.read_bytes() for path in reference.files(tmp_path)}
    assert copies <= {path.read_bytes() for path in synthetic_set.rglob("test/*/*.png")}
    assert len(copies) == 5
    moved = reference_images(bundle, images=name, max_images=3)
    assert {path.read_bytes() for path in moved.files(tmp_path)} <= {
        path.read_bytes() for path in synthetic_set.rglob("test/*/*.png")
    }
    error = assert_one_line(run_command("predict", "pets.tar", check=66))
    assert "unpack it first" in error
    cache = Path(extracted["cache"])
    with h5py.File(cache) as file:
        offset = file["features/pixels"].id.get_chunk_info(0).byte_offset
    flip(cache, offset + 9)
    assert "64 images computed again" in run_command("cache", "repair", cache).stdout
    name.unlink()
    (item,) = find_prunable(Path("cache"))
    assert "pets.tar is gone" in item.reason


def test_shards_are_named_by_a_pattern_or_by_the_shell(tmp_path: Path) -> None:
    for shard in range(4):
        members = [
            (f"{label}/{shard}{i}.png", image(20 * shard + i + 9 * (label == "b")))
            for label in "ab"
            for i in range(3)
        ]
        write_tar(tmp_path / f"shard-{shard:04d}.tar", members)
    for name in ("shard-000{0..2}.tar", "shard-{0000,0001,0002}.tar", "shard-000[012].tar",
                 as_pattern([f"shard-000{i}.tar" for i in range(3)])):  # fmt: skip
        images = open_set(name)
        assert (len(images.files), images.classes) == (18, ("a", "b"))
        assert images.files[0].path == b"shard-0000.tar/a/00.png"
        assert reopen_source({"root": images.root}).read(images.paths[0]) == image(0)  # type: ignore[union-attr]
    with pytest.raises(NoInputError, match=r"shard-0004\.tar"):
        open_set("shard-000{3..4}.tar")


def test_members_that_are_no_plain_files_of_the_archive_are_skipped(tmp_path: Path) -> None:
    name = write_tar(
        tmp_path / "odd.tar",
        [
            *((f"{label}/{i}.png", image(i + ord(label))) for label in "ab" for i in range(3)),
            ("a/../../etc/x.png", image(1)),
            ("/b/y.png", image(2)),
            ("a/._0.png", b"resource fork"),
        ],
    )
    with tarfile.open(name, "a") as archive:
        for kind, path in (
            (tarfile.SYMTYPE, "a/l"),
            (tarfile.LNKTYPE, "a/h"),
            (tarfile.CHRTYPE, "b/d"),
        ):
            member = tarfile.TarInfo(path)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    images = open_set(name)
    assert len(images.files) == 6
    assert {item.path: item.reason for item in images.skipped} == {
        b"a/../../etc/x.png": "a name that leads out of the archive",
        b"/b/y.png": "a name that leads out of the archive",
        b"a/l": "a link in an archive",
        b"a/h": "a link in an archive",
        b"b/d": "neither a file nor a folder",
    }


def damaged(content: bytes, place: int) -> bytes:
    return content[:place] + b"\x77" * 8 + content[place + 8 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:700], "unexpected end of data"),
        (lambda content: b"", "empty file"),
        (lambda content: damaged(content, 100), "plain tar"),
        (lambda content: damaged(content, 1024), "damaged at byte 1,024"),
    ],
)
def test_damaged_archive_is_refused(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    name = write_tar(tmp_path / "x.tar", [(f"{i % 2}/{i}.png", image(i)[:500]) for i in range(6)])
    name.write_bytes(damage(name.read_bytes()))
    with pytest.raises(BadDataError, match=message) as refused:
        open_set(name)
    assert "\n" not in str(refused.value)


def test_compressed_archive_is_refused_with_the_cure(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "x.tar", [("a/0.png", image(0)), ("b/1.png", image(1))])
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert "decompress it first" in assert_one_line(run_command("extract", "x.tar.gz", check=65))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([(".cls", b"10\n"), (".cls", b"9")], ("9", "10")),
        ([(".cls", b"dog"), (".cls", b"cat")], ("cat", "dog")),
        ([(".txt", b" dog \n"), (".txt", b"cat")], ("cat", "dog")),
        ([(".json", b'{"label": 10, "w": 1}'), (".json", b'{"label": 2}')], ("2", "10")),
        ([(".json", b'{"class": "dog"}'), (".json", b'"cat"')], ("cat", "dog")),
    ],
)
def test_labels_of_samples_become_classes_in_a_stable_order(
    labels: list[tuple[str, bytes]], classes: tuple[str, ...], tmp_path: Path
) -> None:
    members = [("key.7.jpg", image(99))]
    for number in range(6):
        suffix, label = labels[number % 2]
        members += [(f"a.{number}.png", image(number)), (f"a.{number}{suffix}", label)]
    images = open_set(write_tar(tmp_path / "x.tar", members))
    assert images.classes == classes
    assert {(file.path, images.classes[file.label]) for file in images.files} == {
        (b"a.%d.png" % number, classes[1 - number % 2]) for number in range(6)
    }
    ((path, reason),) = ((item.path, item.reason) for item in images.skipped)
    assert path == b"key.7.jpg"
    assert reason.startswith("has no label")


def test_key_of_a_sample_ends_at_its_first_dot_if_it_has_one_image(tmp_path: Path) -> None:
    members = [(f"{number}.left.png", image(number)) for number in range(4)]
    members += [(f"{number}.cls", b"%d" % (number % 2)) for number in range(4)]
    images = open_set(write_tar(tmp_path / "x.tar", members))
    assert [file.label for file in images.files] == [0, 1, 0, 1]
    members += [(f"{number}.right.png", image(number + 9)) for number in range(4)]
    with pytest.raises(BadDataError, match="has no labels"):
        open_set(write_tar(tmp_path / "y.tar", members))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([(f"{i}.txt", b"a photo %d" % i) for i in range(30)], "captions or numbers"),
        ([], "has no labels: expected class folders"),
    ],
)
def test_samples_without_classes_are_refused(
    members: list[tuple[str, bytes]], message: str, tmp_path: Path
) -> None:
    images = [(f"{i}.png", image(i)) for i in range(30)]
    with pytest.raises(BadDataError, match=message):
        open_set(write_tar(tmp_path / "x.tar", [*images, *members]))


def test_shards_have_splits_in_all_names_or_in_none(tmp_path: Path) -> None:
    members = [("a/0.png", image(0)), ("b/1.png", image(1))]
    for name in ("train-0.tar", "valid-0.tar", "more-0.tar"):
        write_tar(tmp_path / "set" / name, members)
    with pytest.raises(BadDataError, match=r"more-0\.tar has no split"):
        open_set(tmp_path / "set")
    (tmp_path / "set/more-0.tar").unlink()
    assert {file.split for file in open_set(tmp_path / "set").files} == {1, 2}


def test_folder_whose_name_is_like_a_pattern_is_a_folder(synthetic_classes: Path) -> None:
    for name in ("[set]", "{a,b}", "a*"):
        done = extract_features(synthetic_classes.rename(name), base="pixels", image_size=8)
        synthetic_classes = Path(name)
        assert reopen_source(done.table.document) is not None
        assert not is_gone(done.table.document)


def test_archive_beside_class_folders_is_ignored_as_before(synthetic_classes: Path) -> None:
    write_tar(synthetic_classes / "backup.tar", [("a/0.png", image(0))])
    images = open_set(synthetic_classes)
    assert (len(images.files), images.ignored) == (80, ("backup.tar",))


def test_rows_without_label_or_bytes_are_skipped(tmp_path: Path) -> None:
    pictures = [{"bytes": image(i), "path": None} for i in range(6)]
    pictures[5] = {"bytes": None, "path": "/data/5.png"}  # type: ignore[dict-item]
    labels = ["a", "b", None, "a", "b", "a"]
    parquet.write_table(pa.table({"image": pictures, "label": labels}), tmp_path / "x.parquet")
    done = extract_features("x.parquet", base="pixels", image_size=8)
    assert {item.path: item.reason for item in done.skipped} == {
        b"0000002": "has no label",
        b"0000005-5.png": "cannot be read: the row has no bytes, only a path: embed the images",
    }
    assert len(done.table) == 4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [1.5, 2.5]}, "numbers of classes or texts as labels, received 1.5"),
        ({"label": [["a"], ["b"]]}, "labels of type list"),
        ({"other": ["a", "b"]}, "no column label among image, other"),
    ],
)
def test_table_without_classes_is_refused(
    columns: dict[str, list[object]], message: str, tmp_path: Path
) -> None:
    parquet.write_table(pa.table({"image": [image(0), image(1)], **columns}), "x.parquet")
    with pytest.raises(BadDataError, match=message):
        open_set("x.parquet")
    Path("x.parquet").write_bytes(Path("x.parquet").read_bytes()[:-9])
    with pytest.raises(BadDataError, match="not a Parquet file"):
        open_set("x.parquet")


def test_rows_with_images_have_splits_and_groups(tmp_path: Path) -> None:
    columns = {
        "image": [image(number) for number in range(5)],
        "label": [0.0, 1.0, None, 1.0, 0.0],  # as pandas writes 0, 1 and a missing label
        "split": ["train", "Train", "train", "test", None],
        "site": ["a", "b", "a", None, "b"],
    }
    path = tmp_path / "sites.parquet"
    parquet.write_table(pa.table(columns), path)
    images = open_set(path, LabelConfig(group_column="site"))
    assert images.classes == ("0", "1")
    assert [(file.label, file.split, file.group) for file in images.files] == [
        (0, 1, b"a"),
        (1, 1, b"b"),
        (1, 3, b""),
    ]
    assert {item.reason for item in images.skipped} == {"has no label", "no split"}
    images = open_set(path, LabelConfig(split_column=""))
    assert {(file.split, file.group) for file in images.files} == {(0, b"")}
    with pytest.raises(BadDataError, match="the split is train, validation or test; received a"):
        open_set(path, LabelConfig(split_column="site"))
    with pytest.raises(BadDataError, match="no column sit among image, label, split, site"):
        open_set(path, LabelConfig(group_column="sit"))
    with pytest.raises(UsageError, match=r"--task needs a manifest of paths; .* the images"):
        open_set(path, LabelConfig(task="regression"))


def test_column_of_labels_is_named_and_names_the_set(tmp_path: Path) -> None:
    columns = {"image": [image(i) for i in range(4)], "fine": list("abcd"), "coarse": [0, 0, 1, 1]}
    parquet.write_table(pa.table(columns), "x.parquet")
    with pytest.raises(BadDataError, match="name the column with --label-column"):
        open_set("x.parquet")
    images = open_set("x.parquet", LabelConfig(label_column="coarse"))
    assert (images.name, images.classes) == ("x-coarse", ("0", "1"))
    write_tar(tmp_path / "x.tar", [("a/0.png", image(0)), ("b/1.png", image(1))])
    with pytest.raises(UsageError, match="--label-column needs a manifest"):
        open_set("x.tar", LabelConfig(label_column="coarse"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_not_needed_with_unlabeled(
    layout: Layout, synthetic_set: Path, tmp_path: Path
) -> None:
    done = extract_features(
        layout(synthetic_set, tmp_path / "moved"), base="pixels", image_size=8, unlabeled=True
    )
    assert (done.computed, done.skipped, done.table.task) == (72, (), "unlabelled")
