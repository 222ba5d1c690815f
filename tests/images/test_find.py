"""The files that the arguments of a command name."""

import os
from pathlib import Path

import pytest

from pipeline.images.scan import find_images, split_list


@pytest.fixture
def photos() -> Path:
    for name in ("b/2.jpg", "b/10.jpg", "a.jpg", "c.jpg", "b/.hidden.jpg", ".git/x", "b/Thumbs.db"):
        path = Path("photos") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return Path("photos")


def paths_of(*names: str) -> list[str]:
    files, skipped = find_images(names)
    assert not skipped
    return [os.fsdecode(file) for file in files]


def test_folder_stands_for_its_files_in_the_order_of_their_paths(photos: Path) -> None:
    expected = ["photos/a.jpg", "photos/b/10.jpg", "photos/b/2.jpg", "photos/c.jpg"]
    assert paths_of("photos") == expected
    assert paths_of("./photos/b/") == ["./photos/b/10.jpg", "./photos/b/2.jpg"]


def test_arguments_keep_their_order_and_each_file_is_listed_once(photos: Path) -> None:
    assert paths_of("photos/c.jpg", "photos", "photos/a.jpg")[:2] == [
        "photos/c.jpg",
        "photos/a.jpg",
    ]
    assert len(paths_of("photos/c.jpg", "photos", "photos/a.jpg")) == 4


def test_quoted_patterns_are_expanded(photos: Path) -> None:
    assert paths_of("photos/*.jpg") == ["photos/a.jpg", "photos/c.jpg"]
    assert paths_of(f"{photos.absolute()}/[ab].jpg") == [f"{photos.absolute()}/a.jpg"]
    everything = ["photos/a.jpg", "photos/b/10.jpg", "photos/b/2.jpg", "photos/c.jpg"]
    assert paths_of("photos/**/*.jpg") == everything
    assert set(paths_of("photos/**")) == {*everything, "photos/b/Thumbs.db"}


def test_name_that_exists_is_not_a_pattern(photos: Path) -> None:
    (photos / "[ab].jpg").write_bytes(b"")
    assert paths_of("photos/[ab].jpg") == ["photos/[ab].jpg"]


def test_name_that_is_not_a_file_is_skipped_with_a_reason(photos: Path) -> None:
    os.mkfifo(photos / "pipe")
    (photos / "gone.jpg").symlink_to("nowhere")
    (photos / "link").symlink_to("b")
    names = ["photos/pipe", "missing.jpg", "no/*.jpg", "photos/gone.jpg", "a\0b"]
    files, skipped = find_images(names)
    assert files == []
    assert [(item.path, item.reason) for item in skipped] == [
        (b"photos/pipe", "neither a file nor a folder"),
        (b"missing.jpg", "does not exist"),
        (b"no/*.jpg", "does not exist"),
        (b"photos/gone.jpg", "a link that leads nowhere"),
        (b"a\0b", "does not exist"),
    ]
    files, skipped = find_images(["photos"])
    assert len(files) == 4
    assert [item.path for item in skipped] == [b"photos/gone.jpg", b"photos/pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission_is_skipped(photos: Path) -> None:
    (photos / "b").chmod(0)
    _, skipped = find_images(["photos"])
    assert [item.path for item in skipped] == [b"photos/b"]


def test_names_that_are_not_utf8_keep_their_bytes(photos: Path) -> None:
    (photos / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    assert find_images(["photos"])[0][-1] == b"photos/\xff.jpg"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"a.jpg\nb c.jpg\n", ["a.jpg", "b c.jpg"]),
        (b"a.jpg\r\n\r\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"a.jpg\0new\nline.jpg\0", ["a.jpg", "new\nline.jpg"]),
        (b"\xff.jpg\n", [os.fsdecode(b"\xff.jpg")]),
        (b"", []),
    ],
)
def test_lists_are_lines_or_end_names_by_nul(text: bytes, names: list[str]) -> None:
    assert split_list(text) == names
