"""A .keras file is checked before Keras sees it, and flattened without a change of its numbers."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from pipeline.bases.build import build_base, list_layers
from pipeline.bases.config import BaseConfig
from pipeline.bases.keras_file import read_contents
from pipeline.bases.registry import check_layer, find_base
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.keras_backend import keras

layers = keras.layers
IMAGES = np.random.default_rng(0).random((2, 16, 16, 3)).astype("f4")


def block(maps: Any, name: str) -> Any:
    """Return an inner model's output; the names of its layers are the same in each block."""
    image = keras.Input(maps.shape[1:])
    branches = [
        layers.Conv2D(2, size, padding="same", name=f"conv{size}")(image) for size in (1, 3)
    ]
    return keras.Model(image, layers.Concatenate(name="output")(branches), name=name)(maps)


def nested() -> Any:
    """A functional model of two inner models, a sequential one and operations."""
    keras.utils.set_random_seed(1)
    image = keras.Input((16, 16, 3))
    stem = keras.Sequential([layers.Conv2D(4, 3, name="stem_conv"), layers.ReLU(name="act")])
    maps = block(layers.Normalization(mean=0.5, variance=2.0, name="norm")(image), "a")
    maps = keras.ops.relu(block(stem(maps), "b") * 2.0 + 0.5)
    values = layers.Dropout(0.5)(layers.Flatten()(layers.AveragePooling2D(14, name="mean")(maps)))
    return keras.Model(image, layers.Dense(3, name="classes")(values))


@pytest.fixture
def saved() -> Path:
    nested().save("net.keras")
    return Path("net.keras")


def config(path: Path = Path("net.keras"), **options: Any) -> BaseConfig:
    return BaseConfig(base=str(path), mean_std="none", **options)


def test_flattened_base_computes_the_maps_of_the_nested_model(saved: Path) -> None:
    base, digest = build_base(config())
    contents = read_contents(saved)
    assert [layer.name for layer in contents.layers] == [
        "norm", "a_conv1", "a_conv3", "a_output", "stem_conv", "act", "b_conv1", "b_conv3",
        "b_output", *(layer.name for layer in contents.layers[9:12]), "mean",
        *(layer.name for layer in contents.layers[13:15]), "classes",
    ]  # fmt: skip
    assert contents.last_layer == base.layers[-1].name  # the average is 1 × 1
    assert base.output_shape == (None, 14, 14, 4)
    assert base.trainable_weights == []
    assert len(digest) == 64
    model = keras.models.load_model(saved)
    maps = keras.Model(model.input, model.get_layer("mean").input)
    np.testing.assert_allclose(base(IMAGES), maps(IMAGES), rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in list_layers(config())] == [each.name for each in base.layers]


def test_fully_convolutional_file_takes_any_size_and_says_so() -> None:
    keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3)]).save("open.keras")
    with pytest.raises(UsageError, match="choose that of its training with --image-size"):
        config(Path("open.keras"))
    base, _ = build_base(config(Path("open.keras"), image_size=20))
    assert base.output_shape == (None, 18, 18, 2)


def test_misspelt_layer_and_missing_file_are_one_line(saved: Path) -> None:
    check_layer(find_base("net.keras"), "stem_conv", "--layer")
    with pytest.raises(UsageError, match="did you mean stem_conv"):
        check_layer(find_base("net.keras"), "stem_con", "--layer")
    with pytest.raises(UsageError, match=r"net has no layer 'classes'"):  # of its classifier
        check_layer(find_base("net.keras"), "classes", "--layer")
    with pytest.raises(NoInputError, match="no such file"):
        find_base("gone.keras")
    with pytest.raises(UsageError, match=r"net\.keras: --mean-std is missing"):
        _ = BaseConfig(base="net.keras").rescale


def shared_layer() -> Any:
    image = keras.Input((16, 16, 3))
    conv = layers.Conv2D(3, 3, padding="same", name="twice")
    return keras.Model(image, conv(conv(image)))


def two_inputs() -> Any:
    images = [keras.Input((16, 16, 3)), keras.Input((16, 16, 3))]
    return keras.Model(images, layers.Add()(images))


def two_outputs() -> Any:
    image = keras.Input((16, 16, 3))
    return keras.Model(image, [layers.Conv2D(2, 3)(image), layers.Conv2D(2, 3)(image)])


def one_channel() -> Any:
    return keras.Sequential([keras.Input((28, 28, 1)), layers.Conv2D(2, 3)])


def calling_python() -> Any:
    return keras.Sequential([keras.Input((16, 16, 3)), layers.Lambda(lambda image: image * 2)])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (shared_layer, "layer twice is used more than once"),
        (two_inputs, "expected one input, an image; it has 2"),
        (two_outputs, "expected one output; it has 2"),
        (one_channel, r"has the shape \(None, 28, 28, 1\); expected square RGB"),
        (calling_python, r"keras\.layers\.Lambda is not a layer for images"),
    ],
)
def test_model_that_is_no_base_is_one_line(make: Callable[[], Any], reason: str) -> None:
    make().save("net.keras")
    with pytest.raises(BadDataError, match=reason) as refused:
        find_base("net.keras")
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("--base net.keras is refused: ")


def rewrite(path: Path, **members: bytes) -> None:
    """Replace members of a file; names have ``_`` for dots."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, members.get(name.replace(".", "_"), data))


def changed_config(path: Path, old: str, new: str) -> None:
    with zipfile.ZipFile(path) as archive:
        text = archive.read("config.json").decode()
    assert old in text
    rewrite(path, config_json=text.replace(old, new, 1).encode())


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"module": "keras.layers", "class_name": "Dense"',
         '"module": "os", "class_name": "system"', r"os\.system is not a layer"),
        ('"class_name": "Dense"', '"class_name": "TFSMLayer"', r"keras\.layers\.TFSMLayer is not"),
        ('"class_name": "DTypePolicy"', '"class_name": "Lambda"', r"keras\.Lambda is not a layer"),
        ('"class_name": "GlorotUniform", "config": {',
         '"class_name": "X", "module": "mine", "config": {', r"mine\.X is not a layer"),
        ('"module": "keras.initializers"', '"module": "keras.src.utils"', "is not a layer"),
        ('"units": 3', '"units": 3000000000', "its layers have .* weights; the file contains"),
        ('"filters": 4', '"filters": 5', "Keras cannot load it"),
        ('"pool_size": [14, 14]', '"pool_size": ["x"]', "Keras cannot load it"),
    ],
)  # fmt: skip
def test_changed_description_is_one_line(saved: Path, old: str, new: str, reason: str) -> None:
    changed_config(saved, old, new)
    with pytest.raises(BadDataError, match=reason) as refused:
        build_base(config(saved))
    assert "\n" not in str(refused.value)


def weights_file(fill: Callable[[h5py.File], Any]) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file)
    return stream.getvalue()


def declare_much(file: h5py.File) -> None:
    file.create_dataset("kernel", (90_000, 90_000), "f4", chunks=(100, 100))


def link_elsewhere(file: h5py.File) -> None:
    file["kernel"] = h5py.ExternalLink("/etc/passwd", "x")


def use_other_file(file: h5py.File) -> None:
    file.create_dataset("kernel", (4,), "f4", external=[("/etc/passwd", 0, 16)])


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"model_weights_h5": weights_file(declare_much)}, "declare 32,400,000,000 bytes"),
        ({"model_weights_h5": weights_file(link_elsewhere)}, "its weights link to kernel"),
        ({"model_weights_h5": weights_file(use_other_file)}, "kernel declare 16 bytes"),
        ({"model_weights_h5": bytes(10**7)}, "model.weights.h5 declares 10,000,000 bytes"),
        ({"config_json": b"[" * 60_000}, "not a model that Keras 3 saved"),
        ({"config_json": b"{}"}, "no Functional or Sequential model"),
        ({"config_json": b"\xff"}, "not a model that Keras 3 saved"),
        ({"model_weights_h5": b"text"}, "not a model that Keras 3 saved"),
    ],
)
def test_damaged_or_oversized_member_is_one_line(
    saved: Path, members: dict[str, bytes], reason: str
) -> None:
    rewrite(saved, **members)
    with pytest.raises(BadDataError, match=reason) as refused:
        find_base(str(saved))
    assert "\n" not in str(refused.value)


def test_foreign_and_truncated_files_are_one_line(saved: Path) -> None:
    content = saved.read_bytes()
    for wrong in (b"", b"text", content[: len(content) // 2], json.dumps({}).encode()):
        saved.write_bytes(wrong)
        with pytest.raises(BadDataError, match="not a model that Keras 3 saved"):
            find_base(str(saved))


def test_probe_of_the_sidecar_is_checked(saved: Path) -> None:
    pixels = np.full((16, 16, 3), 200, np.uint8)
    Image.fromarray(pixels).save("probe.png")
    base, _ = build_base(config())
    features = np.asarray(base(pixels[np.newaxis] / np.float32(255)))[0].mean(axis=(0, 1))
    text = 'mean-std = "{}"\n[probe]\nimage = "probe.png"\nexpected = {}\n'
    Path("net.base.toml").write_text(text.format("unit", features.tolist()))
    build_base(config())
    Path("net.base.toml").write_text(text.format("half", features.tolist()))
    with pytest.raises(BadDataError, match=r"probe of net\.base\.toml has other features"):
        build_base(config())
    Path("net.base.toml").write_text(text.format("unit", [1.0, 2.0]))
    with pytest.raises(BadDataError, match="expects 2 features"):
        build_base(config())
    Path("probe.png").unlink()
    with pytest.raises(BadDataError, match=r"probe\.png is missing"):
        build_base(config())
