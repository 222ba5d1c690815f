"""Files that only look like caches are refused before their features are read."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import document, publish_random

from pipeline.cache.checksums import read_checksums, write_checksums
from pipeline.cache.file import read_table
from pipeline.errors import BadDataError


def replace(file: h5py.File, name: str, value: object) -> None:
    del file[name]
    file[name] = value


def text_of(file: h5py.File, **changes: object) -> None:
    replace(file, "spec", json.dumps({**document(), **changes}))


def soft_link(file: h5py.File) -> None:
    file.move("labels", "real")
    file["labels"] = h5py.SoftLink("/real")


def external_link(file: h5py.File) -> None:
    replace(file, "labels", h5py.ExternalLink("other.h5", "/labels"))


def external_storage(file: h5py.File) -> None:
    del file["features/maps"]
    outside = [("/etc/passwd", 0, 7200)]
    file.create_dataset("features/maps", (150, 2, 2, 3), "f4", external=outside)


def virtual(file: h5py.File) -> None:
    del file["features/maps"]
    layout = h5py.VirtualLayout((150, 2, 2, 3), "f4")
    layout[:] = h5py.VirtualSource("missing.h5", "x", (150, 2, 2, 3))
    file.create_virtual_dataset("features/maps", layout)


def huge_declared(file: h5py.File) -> None:
    del file["features/maps"]
    file.create_dataset("features/maps", (150, 10_000, 10_000, 3), "f4", chunks=(1, 100, 100, 3))


def bomb(file: h5py.File) -> None:
    """Zeros compress 1,000 : 1; 32 GB are declared and never written."""
    del file["features/maps"]
    shape = (150, 4096, 4096, 3)
    file.create_dataset("features/maps", shape, "f4", chunks=(1, *shape[1:]), compression="gzip")


def unwritten_chunks(file: h5py.File) -> None:
    rows = file["features/maps"][()]
    del file["features/maps"]
    rows_written = file.create_dataset("features/maps", rows.shape, "f4", chunks=(64, 2, 2, 3))
    rows_written[:64] = rows[:64]


def unwritten_column(file: h5py.File) -> None:
    del file["labels"]
    file.create_dataset("labels", (150,), "i8")


def other_filter(file: h5py.File) -> None:
    rows = file["features/maps"][()]
    del file["features/maps"]
    file.create_dataset("features/maps", data=rows, chunks=(64, 2, 2, 3), compression="lzf")


def path_out_of_the_root(file: h5py.File) -> None:
    paths = file["paths"][()]
    paths[3] = b"a/../../x.jpg"
    replace(file, "paths", paths)


def absolute_path(file: h5py.File) -> None:
    paths = file["paths"][()]
    paths[3] = b"/etc/passwd"
    replace(file, "paths", paths)


HOSTILE: dict[str, Callable[[h5py.File], None]] = {
    "soft link": soft_link,
    "external link": external_link,
    "external storage": external_storage,
    "virtual": virtual,
    "huge declared": huge_declared,
    "bomb": bomb,
    "unwritten chunks": unwritten_chunks,
    "unwritten column": unwritten_column,
    "other filter": other_filter,
    "path out of the root": path_out_of_the_root,
    "absolute path": absolute_path,
}
ODD: dict[str, Callable[[h5py.File], None]] = {
    "labels are text": lambda file: replace(file, "labels", [b"x"] * 150),
    "labels are floats": lambda file: replace(file, "labels", np.zeros(150)),
    "labels name no class": lambda file: replace(file, "labels", np.full(150, 7)),
    "labels are a group": lambda file: (file.__delitem__("labels"), file.create_group("labels")),  # type: ignore[func-returns-value, dict-item]
    "one label too few": lambda file: replace(file, "labels", np.zeros(149, int)),
    "splits out of range": lambda file: replace(file, "splits", np.full(150, 9, "u1")),
    "no classes": lambda file: file.__delitem__("classes"),
    "features are integers": lambda file: replace(file, "features/maps", np.zeros((150, 3), int)),
    "no features": lambda file: (file.__delitem__("features"), file.create_group("features")),  # type: ignore[func-returns-value, dict-item]
    "spec is a number": lambda file: replace(file, "spec", 3),
    "spec is no JSON": lambda file: replace(file, "spec", "{"),
    "spec is a list": lambda file: replace(file, "spec", "[]"),
    "spec lacks a field": lambda file: text_of(file, spec={"base": "vgg16"}),
    "later format": lambda file: text_of(file, format=3),
}


def change(path: Path, make: Callable[[h5py.File], object]) -> None:
    """Change a cache as an attacker does, with valid checksums."""
    with h5py.File(path, "a") as file:
        make(file)
    with path.open("r+b") as stream, contextlib.suppress(Exception):
        write_checksums(stream)  # HDF5 cannot read the layout of some


def refused(path: Path) -> str:
    with pytest.raises(BadDataError) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a valid cache."""
    path = tmp_path_factory.mktemp("valid") / "pets.h5"
    publish_random(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", [*HOSTILE, *ODD])
def test_invalid_cache_is_refused(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "pets.h5").write_bytes(content)
    change(tmp_path / "pets.h5", {**HOSTILE, **ODD}[kind])
    assert "is refused" in refused(tmp_path / "pets.h5")


def test_any_flipped_byte_is_read_or_refused_but_never_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "pets.h5"
    publish_random(path, rows=20)
    content = path.read_bytes()[: read_checksums(path).end]  # the checksums would find all
    rng = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(content)
        broken[rng.integers(len(broken))] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        with contextlib.suppress(BadDataError):
            table = read_table(path)
            for layer in table.layers:
                table.features(layer)
