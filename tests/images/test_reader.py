"""Reading ahead keeps the order and notices what changed."""

import os
from pathlib import Path

import numpy as np

from pipeline.images.decode import decode
from pipeline.images.hashes import hash_files
from pipeline.images.reader import read_images
from pipeline.images.scan import Skipped, scan_folder


def test_pixels_come_in_the_order_of_the_references(drawn_set: Path) -> None:
    refs, _ = hash_files(drawn_set, scan_folder(drawn_set).files)
    for ref, (read, pixels) in zip(
        refs, read_images(drawn_set, refs, image_size=20, resize="squash"), strict=True
    ):
        assert read is ref
        data = (drawn_set / os.fsdecode(ref.path)).read_bytes()
        np.testing.assert_array_equal(pixels, decode(data, image_size=20))


def test_file_that_changed_after_hashing_gives_no_row(drawn_set: Path) -> None:
    refs, _ = hash_files(drawn_set, scan_folder(drawn_set).files)
    changed = drawn_set / os.fsdecode(refs[4].path)
    changed.write_bytes((drawn_set / os.fsdecode(refs[5].path)).read_bytes())
    results = [pixels for _, pixels in read_images(drawn_set, refs, image_size=8, resize="squash")]
    assert isinstance(results[4], Skipped)
    assert "changed while" in results[4].reason
    assert sum(isinstance(result, Skipped) for result in results) == 1
