"""Prefetched images keep their order; a file that changed is skipped."""

import os
from pathlib import Path

import numpy as np

from pipeline.images.decode import decode
from pipeline.images.hashes import hash_files
from pipeline.images.reader import read_images
from pipeline.images.scan import Skipped, scan_folder
from pipeline.images.source import FolderSource


def test_pixels_come_in_the_order_of_the_paths(synthetic_set: Path) -> None:
    digests, _ = hash_files(FolderSource(synthetic_set), scan_folder(synthetic_set).paths)
    for path, (read, pixels) in zip(
        digests,
        read_images(FolderSource(synthetic_set), digests, image_size=20, resize="squash"),
        strict=True,
    ):
        assert read == path
        data = (synthetic_set / os.fsdecode(path)).read_bytes()
        np.testing.assert_array_equal(pixels, decode(data, image_size=20))


def test_file_that_changed_after_hashing_gives_no_row(synthetic_set: Path) -> None:
    paths = scan_folder(synthetic_set).paths
    digests, _ = hash_files(FolderSource(synthetic_set), paths)
    changed = synthetic_set / os.fsdecode(paths[4])
    changed.write_bytes((synthetic_set / os.fsdecode(paths[5])).read_bytes())
    read = read_images(FolderSource(synthetic_set), digests, image_size=8, resize="squash")
    results = [pixels for _, pixels in read]
    assert isinstance(results[4], Skipped)
    assert "changed while" in results[4].reason
    assert sum(isinstance(result, Skipped) for result in results) == 1
