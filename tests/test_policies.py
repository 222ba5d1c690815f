"""The cases of docs/POLICIES.md that need a complete run; each name states its case."""

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
from pipeline.cache.config import ExtractConfig
from pipeline.cache.provenance import feature_spec
from pipeline.cache.shards import ShardFolder, writer_lock
from pipeline.errors import BadDataError, CannotCreateError
from pipeline.images import hashes
from pipeline.images.scan import scan_folder
from pipeline.images.source import FolderSource

NOBODY = 65534
ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def as_other_user(folder: Path) -> Iterator[None]:
    """Run as a user who, unlike root, cannot read everything, but owns the folder."""
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
    """A folder that another user can enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_unreadable_file_is_skipped_for_a_user_who_is_not_root(reachable: Path) -> None:
    root = make_image_folder(reachable / "set", per_class=3)
    (root / "plain/000.png").chmod(0)
    with as_other_user(reachable):
        digests, skipped = hashes.hash_files(FolderSource(root), scan_folder(root).paths)
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


def test_other_weights_go_to_another_file() -> None:
    configs = [
        ExtractConfig(base="mobilenet_v3_small", weights="random", seed=seed) for seed in (0, 1)
    ]
    assert len({feature_spec(config).fingerprint for config in configs}) == 2


def test_other_decoder_goes_to_another_file(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_features(synthetic_set, base="pixels").table.path
    monkeypatch.setattr("pipeline.cache.provenance.pixels_digest", lambda size, resize: "another")
    assert extract_features(synthetic_set, base="pixels").table.path != first


def test_damaged_shard_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_image_folder(tmp_path / "set", per_class=40)
    expected = extract_features(root, base="pixels", out="expected.h5").table

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    def flipped(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    damages = {
        "deleted": lambda content: None,
        "truncated": lambda content: content[:-50],
        "flipped": flipped,
    }
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.cache.fill.publish_rows", interrupted)
        patch.setattr("pipeline.cache.compute.SECONDS_PER_COMMIT", 0.0)
        with pytest.raises(KeyboardInterrupt):
            extract_features(root, base="pixels", out="interrupted.h5")
    for name, damage in damages.items():
        shutil.copytree("interrupted.parts", f"{name}.parts")
        shard = min(Path(f"{name}.parts").glob("*.h5"), key=lambda path: path.stat().st_size)
        content = damage(shard.read_bytes())
        if content is None:
            shard.unlink()
        else:
            shard.write_bytes(content)
        done = extract_features(root, base="pixels", out=f"{name}.h5")
        assert done.computed == 16  # of 80: one shard of two
        rows = {path: row for row, path in enumerate(done.table.columns.paths.tolist())}
        order = np.array([rows[path] for path in expected.columns.paths.tolist()])
        np.testing.assert_array_equal(
            done.table.features("pixels", order), expected.features("pixels")
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
