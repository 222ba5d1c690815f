"""The cases of docs/POLICIES.md that concern a whole run; each name says its case."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import assert_one_line, run_command
from synthetic_images import draw, make_image_folder

from pipeline import extract_features, load_features
from pipeline.cache.shards import ShardFolder, writer_lock
from pipeline.errors import BadDataError, CannotCreateError
from pipeline.images import hashes
from pipeline.images.scan import scan_folder

NOBODY = 65534
ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def as_other_user(folder: Path) -> Iterator[None]:
    """Without root's power to read everything; the folder stays within reach."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, -1)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that another user can enter, too."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_unreadable_file_is_skipped_for_a_user_who_is_not_root(reachable: Path) -> None:
    root = make_image_folder(reachable / "set", per_class=3)
    (root / "plain/000.png").chmod(0)
    with as_other_user(reachable):
        digests, skipped = hashes.hash_files(root, scan_folder(root).paths)
    assert len(digests) == 5
    assert [(item.path, item.reason) for item in skipped] == [
        (b"plain/000.png", "cannot be read: Permission denied")
    ]


def test_cache_in_a_read_only_folder_cannot_be_created(reachable: Path) -> None:
    reachable.chmod(0o555)
    with as_other_user(reachable), pytest.raises(CannotCreateError, match="Permission denied"):
        writer_lock(reachable / "x.h5").__enter__()


def test_cache_path_that_is_a_folder_is_refused(synthetic_set: Path) -> None:
    Path("x.h5").mkdir()
    finished = run_command("extract", synthetic_set, "--base", "pixels", "--out", "x.h5", check=73)
    assert "x.h5 is a folder" in assert_one_line(finished)


def test_class_with_no_good_image_is_bad_data(synthetic_classes: Path) -> None:
    (synthetic_classes / "third").mkdir()
    (synthetic_classes / "third" / "x.jpg").write_bytes(b"text")
    with pytest.raises(BadDataError, match="no image of third"):
        extract_features(synthetic_classes, base="pixels")


def test_removed_images_leave_the_table_and_cost_nothing(synthetic_set: Path) -> None:
    extract_features(synthetic_set, base="pixels")
    (synthetic_set / "train/plain/001.png").unlink()
    done = extract_features(synthetic_set, base="pixels")
    assert (len(done.table), done.computed) == (71, 0)


def test_other_weights_go_to_another_file(synthetic_set: Path) -> None:
    paths = {
        extract_features(
            synthetic_set,
            base="mobilenet_v3_small",
            image_size=32,
            weights="random",
            engine="tensorflow",
            seed=seed,
            limit_per_class=1,
        ).table.path
        for seed in (0, 1)
    }
    assert len(paths) == 2


def test_other_decoder_goes_to_another_file(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_features(synthetic_set, base="pixels").table.path
    monkeypatch.setattr("pipeline.cache.provenance.pixels_digest", lambda size, resize: "another")
    assert extract_features(synthetic_set, base="pixels").table.path != first


@pytest.mark.parametrize("harm", ["truncated", "flipped", "deleted"])
def test_harmed_shard_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    root = make_image_folder(tmp_path / "set", per_class=100)

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.cache.fill.publish_rows", interrupted)
        patch.setattr("pipeline.cache.compute.SECONDS_PER_COMMIT", 0.0)
        with pytest.raises(KeyboardInterrupt):
            extract_features(root, base="pixels", out="x.h5")
    shard = Path("x.parts/000001.h5")
    content = bytearray(shard.read_bytes())
    if harm == "deleted":
        shard.unlink()
    else:
        content[len(content) // 2] ^= 1
        shard.write_bytes(content[:-50] if harm == "truncated" else content)
    done = extract_features(root, base="pixels", out="x.h5")
    assert done.computed == 64
    whole = extract_features(root, base="pixels", out="y.h5")
    rows = {path: row for row, path in enumerate(done.table.columns.paths.tolist())}
    order = np.array([rows[path] for path in whole.table.columns.paths.tolist()])
    np.testing.assert_array_equal(
        done.table.features("pixels", order), whole.table.features("pixels")
    )


def test_readers_can_read_while_a_run_writes(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = extract_features(synthetic_set, base="pixels").table.path
    seen = []
    commit = ShardFolder.commit

    def reading(*args: object, **options: object) -> None:
        seen.append(len(load_features(path)))
        commit(*args, **options)  # type: ignore[arg-type]

    draw(77, stripes=True).save(synthetic_set / "train/striped/new.png")
    monkeypatch.setattr(ShardFolder, "commit", reading)
    extract_features(synthetic_set, base="pixels")
    assert seen == [72]


def test_every_test_that_the_policies_page_names_exists() -> None:
    page = (ROOT / "docs" / "POLICIES.md").read_text()
    named = re.findall(r"`(test_\w+)`", page)
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 40
    assert [name for name in named if f"def {name}(" not in written] == []
