"""The arrays alone identify weights, in any kind of file."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.bases.config import BaseConfig
from pipeline.bases.weights import (
    arrays_digest,
    file_arrays,
    file_digest,
    known_digest,
    remember_digest,
)
from pipeline.errors import BadDataError, NoInputError


def test_digest_depends_on_every_number_and_shape_but_not_on_the_order() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("f4") for shape in ((3, 3, 2, 4), (4,), (4, 2))]
    digest = arrays_digest(arrays)
    assert arrays_digest(arrays[::-1]) == digest
    assert arrays_digest([array.astype("f8") for array in arrays]) == digest
    arrays[1][2] += 1e-3
    assert arrays_digest(arrays) != digest
    arrays[1][2] -= 1e-3
    assert arrays_digest([*arrays[:2], arrays[2].T]) != digest


def test_digest_ignores_counters_and_seeds() -> None:
    array = np.ones((2, 2), "f4")
    assert arrays_digest([array, np.array(3), np.zeros(2, "u4")]) == arrays_digest([array])


def test_both_layouts_of_keras_have_one_digest(tmp_path: Path) -> None:
    from pipeline.keras_backend import keras

    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.DepthwiseConv2D(3),
        ]
    )
    model.save_weights(tmp_path / "new.weights.h5")
    with h5py.File(tmp_path / "old.h5", "w") as file:  # Keras' legacy layout
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            for number, weight in enumerate(layer.get_weights()):
                file[f"{layer.name}/weight_{number}:0"] = weight
    expected = arrays_digest(model.get_weights())
    assert file_digest(tmp_path / "new.weights.h5") == expected
    assert file_digest(tmp_path / "old.h5") == expected


def test_digest_ignores_the_state_of_an_optimizer(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 3), "f4")
        file["optimizer/vars/0"] = np.ones((2, 3), "f4")
    assert len(file_arrays(tmp_path / "w.h5")) == 1


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all"])
def test_file_without_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.h5").write_bytes(content)
    with pytest.raises(BadDataError, match="not HDF5"):
        file_digest(tmp_path / "w.h5")


def test_hdf5_without_arrays_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w"):
        pass
    with pytest.raises(BadDataError, match="no arrays"):
        file_digest(tmp_path / "w.h5")


def test_weights_outside_their_file_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("kernel", (4,), "f4", external=[("/etc/passwd", 0, 16)])
    with pytest.raises(BadDataError, match="outside"):
        file_digest(tmp_path / "w.h5")


def test_weights_that_declare_more_than_they_contain_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("kernel", (90_000, 90_000), "f4", chunks=(100, 100))
    with pytest.raises(BadDataError, match="declares 32,400,000,000 bytes"):
        file_digest(tmp_path / "w.h5")


def test_any_flipped_byte_gives_arrays_or_one_line(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a/kernel"] = np.ones((3, 3), "f4")
        file["b/text"] = "no array"
    content = (tmp_path / "w.h5").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(content)
        broken[rng.integers(len(broken))] ^= int(rng.integers(1, 256))
        (tmp_path / "w.h5").write_bytes(broken)
        try:
            assert file_arrays(tmp_path / "w.h5")
        except BadDataError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


def test_missing_weights_file_is_no_input() -> None:
    with pytest.raises(NoInputError, match="imagenet, random or"):
        BaseConfig(weights="nowhere.h5")


def known(size: int) -> str | None:
    return known_digest(BaseConfig(base="mobilenet_v2", image_size=size))


def remember(size: int) -> Path:
    config = BaseConfig(base="mobilenet_v2", image_size=size)
    remember_digest("abc", config)
    (path,) = config.weights_folder.iterdir()
    return path


def test_imagenet_digest_is_remembered_per_base_and_size() -> None:
    assert known(160) is None
    remember(160)
    assert known(160) == "abc"
    assert known(96) is None


@pytest.mark.parametrize("text", ["", "[]", '{"sha": 1}'])
def test_damaged_digest_file_is_ignored(text: str) -> None:
    remember(160).write_text(text)
    assert known(160) is None
