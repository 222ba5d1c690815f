"""Every side of stage one reads the same files, and can read them all."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_images import draw, make_image_folder

from benchmarks.images import MIN_IMAGES, SIZE, draw_photograph, gather_images
from pipeline.errors import BadDataError
from pipeline.images.scan import scan_folder


def test_synthetic_photographs_differ_and_have_the_size_of_real_ones() -> None:
    files = []
    for seed in range(4):
        stream = io.BytesIO()
        draw_photograph(seed).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    assert len(set(files)) == 4
    assert draw_photograph(0).size == SIZE
    assert np.array_equal(draw_photograph(3), draw_photograph(3))
    for file in files:
        assert 20_000 < len(file) < 80_000  # cats and dogs: 5 to 70 kB, mean 23 kB


def test_images_come_from_all_folders_without_files_that_keras_cannot_read(
    tmp_path: Path,
) -> None:
    root = make_image_folder(tmp_path / "synthetic", per_class=30, splits=("train", "test"))
    content = (root / "train" / "plain" / "000.png").read_bytes()
    for number in range(40):  # one content under many names
        (root / "train" / "plain" / f"copy{number}.png").write_bytes(content)
    (root / "test" / "plain" / "broken.png").write_bytes(content[:300])
    (root / "test" / "plain" / "text.jpg").write_text("text")
    draw(1000, stripes=True).save(root / "test" / "plain" / "wrong name.jpg", "BMP")
    draw(1001, stripes=True).save(root / "test" / "plain" / "photograph.jpeg")
    draw(1002, stripes=True).convert("CMYK").save(root / "test" / "plain" / "cmyk.jpg")
    paths = gather_images(root, tmp_path / "made", 1000)
    assert len(paths) == 96  # of 121 usable ones: full batches of 32
    assert len({path.read_bytes() for path in paths}) == 96
    for path in paths:
        with Image.open(path) as image:
            assert image.format == {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
    found = scan_folder(tmp_path / "made")
    assert {Path(found.root) / file.path.decode() for file in found.files} == set(paths)
    assert [sum(file.label == label for file in found.files) for label in (0, 1)] == [48, 48]
    few = gather_images(root, tmp_path / "few", 32)
    sources = {path.read_bytes(): path for path in root.rglob("*.png")}
    folders = {sources[path.read_bytes()].parent for path in few if path.suffix == ".png"}
    assert len(folders) == 4


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "synthetic", per_class=10)
    with pytest.raises(BadDataError, match="20 different JPEG or PNG images; expected 32"):
        gather_images(root, tmp_path / "made", 64)
    assert sum(path.is_file() for path in root.rglob("*")) == 20


def test_images_are_synthetic_without_a_folder(tmp_path: Path) -> None:
    paths = gather_images(None, tmp_path / "made", MIN_IMAGES)
    assert len({path.read_bytes() for path in paths}) == MIN_IMAGES
