"""Ready-made networks give Keras' probabilities and class names for image files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic_images import draw

from pipeline.bases.registry import find_base
from pipeline.errors import BadDataError, NoInputError, UnreachableError, UsageError
from pipeline.keras_backend import keras
from pipeline.models.imagenet import ImagenetModel, read_labels
from pipeline.predict import main

NAMES = [f"thing {number}" for number in range(1000)]


@pytest.fixture
def labels() -> Path:
    """Write a list in Keras' format, its entries out of order."""
    entries = {str(number): [f"n{number:08d}", NAMES[number]] for number in range(1000)}
    path = Path("labels.json")
    path.write_text(json.dumps(dict(sorted(entries.items()))))
    return path


@pytest.fixture
def photos() -> Path:
    """Write images of one colour and of stripes: a random network distinguishes them."""
    folder = Path("photos")
    folder.mkdir()
    for number, colour in enumerate(("red", "lime", "blue", "white")):
        Image.new("RGB", (150 + number, 90), colour).save(folder / f"{number}.png")
    draw(0, stripes=True, size=(200, 150)).save(folder / "4.jpg")
    (folder / "5.jpg").write_bytes(b"text")
    return folder


def draw_network(name: str, size: int, files: list[Path]) -> Path:
    """Save a random whole network that distinguishes these images."""
    keras.utils.set_random_seed(3)
    base = find_base(name)
    network = getattr(keras.applications, base.keras_name)(
        weights=None, include_top=True, input_shape=(size, size, 3)
    )
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # uses the statistics of one batch, else outputs are constant
    images = preprocessed(name, size, files)
    network(images, training=True)
    last = [layer for layer in network.layers if layer.get_weights()][-1]
    kernel, bias = last.get_weights()
    spread = np.log(network(images)).std()
    last.set_weights([kernel * 3 / spread, bias])  # certain, with a second and a third
    path = Path(f"{name}.weights.h5")
    network.save_weights(path)
    return path


def decoded_by_keras(
    name: str, size: int, weights: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> list[list[tuple[str, float]]]:
    """Predict as in Keras' documentation, from the file to the class names."""
    from keras.src.applications import imagenet_utils

    base = find_base(name)
    network = getattr(keras.applications, base.keras_name)(
        weights=weights, include_top=True, input_shape=(size, size, 3)
    )
    index = {str(number): [f"n{number:08d}", NAMES[number]] for number in range(1000)}
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", index)
    outputs = network.predict(preprocessed(name, size, files), verbose=0)
    decoded = keras.applications.imagenet_utils.decode_predictions(outputs, top=3)
    return [[(label, float(share)) for _, label, share in rows] for rows in decoded]


def preprocessed(name: str, size: int, files: list[Path]) -> np.ndarray:
    """Preprocess images with Keras' functions: (N, size, size, 3) float32."""
    images = [
        Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        for file in files
    ]
    pixels = np.stack([np.asarray(image, np.float32) for image in images])
    preprocess = getattr(keras.applications, find_base(name).module).preprocess_input
    return np.asarray(preprocess(pixels))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet", 128),
        *(
            pytest.param(name, size, marks=pytest.mark.slow)
            for name, size in (("resnet50", 96), ("densenet121", 96), ("efficientnet_b0", 96))
        ),
    ],
)
def test_top_classes_are_those_that_keras_decodes(
    name: str,
    size: int,
    labels: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = sorted(photos.iterdir())[:5]
    weights = draw_network(name, size, files)
    arguments = ["photos", "--imagenet", name, "--image-size", str(size), "--batch-size", "2"]
    main([*arguments, "--weights", str(weights), "--labels", str(labels), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == {"imagenet": name, "image_size": size, "resize": "squash"}
    assert [skipped["path"] for skipped in document["skipped"]] == ["photos/5.jpg"]
    expected = decoded_by_keras(name, size, weights, files, monkeypatch)
    assert len({rows[0][0] for rows in expected}) > 1, "the network should distinguish images"
    for image, rows in zip(document["images"], expected, strict=True):
        assert [top["label"] for top in image["top"]] == [label for label, _ in rows]
        np.testing.assert_allclose(
            [top["probability"] for top in image["top"]], [share for _, share in rows], rtol=1e-4
        )
    sheet = Path(document["sheet"])
    assert sheet.parent == Path("results")
    with Image.open(sheet) as picture:
        assert picture.width > picture.height > 200


def test_default_image_size_is_that_of_training(labels: Path) -> None:
    model = ImagenetModel("mobilenet", weights="random", labels=labels)
    assert model.image_size == 224
    assert model.classes == tuple(NAMES)
    assert list(model.cached_outputs([b"x"])) == []


def test_invalid_settings_and_files_are_refused(labels: Path) -> None:
    headless = keras.applications.MobileNet(
        weights=None, include_top=False, input_shape=(128, 128, 3)
    )
    headless.save_weights("headless.weights.h5")
    with pytest.raises(BadDataError, match=r"mobilenet with its classifier has .*; received"):
        ImagenetModel("mobilenet", weights="headless.weights.h5", labels=labels)
    short = Path("short.txt")
    short.write_text("cat\ndog\n")
    with pytest.raises(BadDataError, match="has 1,000 classes; received 2 class names"):
        ImagenetModel("mobilenet", weights="random", labels=short, image_size=128)
    with pytest.raises(UsageError, match="received pixels"):
        ImagenetModel("pixels", labels=labels)
    with pytest.raises(UsageError, match="at least 32 pixels"):
        ImagenetModel("mobilenet", weights="random", labels=labels, image_size=16)
    with pytest.raises(UsageError, match="did you mean"):
        ImagenetModel("mobilnet", labels=labels)
    with pytest.raises(NoInputError, match="no such file"):
        ImagenetModel("mobilenet", weights="gone.h5", labels=labels)


@pytest.mark.parametrize("what", ["weights", "labels"])
def test_offline_says_where_to_put_the_file(
    what: str, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras.src.applications import mobilenet as keras_mobilenet

    def offline(*arguments: object, **options: object) -> None:
        raise Exception("URL fetch failure on https://host/file.h5: None -- unreachable")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    monkeypatch.setattr(keras_mobilenet.file_utils, "get_file", offline)
    given: dict[str, Any] = {"weights": {"labels": labels}, "labels": {"weights": "random"}}[what]
    with pytest.raises(UnreachableError) as caught:
        ImagenetModel("mobilenet", **given)
    cure = f"place https://host/file.h5 in ~/.keras/models by hand, or give --{what} FILE"
    assert cure in str(caught.value)
    assert caught.value.exit_code == 69


def test_class_names_are_read_from_keras_list_or_from_lines() -> None:
    for text in ("a\nb\n", '{"1": ["n1", "b"], "0": ["n0", "a"]}', "\n a \r\nb"):
        Path("labels").write_text(text)
        assert read_labels(Path("labels")) == ("a", "b")
    for content in (
        b"\xff\xfe", b'{"0": "a"', b'{"5": ["n", "a"]}', b'{"0": ["n"]}', b'{"0": ["n", 3]}',
        b'{"0": 1}',
    ):  # fmt: skip
        Path("labels").write_bytes(content)
        with pytest.raises(BadDataError, match="is not a list of classes"):
            read_labels(Path("labels"))
    with pytest.raises(NoInputError, match="no such file"):
        read_labels(Path("gone"))
