"""The ready-made network: Keras' own numbers and names, from the image file on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic_images import draw

from pipeline.api import predict_images
from pipeline.bases.registry import find_base
from pipeline.errors import BadDataError, NoInputError, UnreachableError, UsageError
from pipeline.images.scan import Skipped
from pipeline.keras_backend import keras
from pipeline.models.imagenet import ImagenetModel, read_labels
from pipeline.predict import main

NAMES = [f"thing {number}" for number in range(1000)]


@pytest.fixture
def labels() -> Path:
    """A list as Keras' own is written, its entries out of order."""
    entries = {str(number): [f"n{number:08d}", NAMES[number]] for number in range(1000)}
    path = Path("labels.json")
    path.write_text(json.dumps(dict(sorted(entries.items()))))
    return path


@pytest.fixture
def photos() -> Path:
    """Pictures of one colour each, and of stripes: a random network tells them apart."""
    folder = Path("photos")
    folder.mkdir()
    for number, colour in enumerate(("red", "lime", "blue", "white")):
        Image.new("RGB", (150 + number, 90), colour).save(folder / f"{number}.png")
    draw(0, stripes=True, size=(200, 150)).save(folder / "4.jpg")
    (folder / "5.jpg").write_bytes(b"text")
    return folder


def draw_network(name: str, size: int, files: list[Path]) -> Path:
    """Save a random whole network that tells these pictures apart, in a file."""
    keras.utils.set_random_seed(3)
    base = find_base(name)
    network = getattr(keras.applications, base.keras_name)(
        weights=None, include_top=True, input_shape=(size, size, 3)
    )
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # takes the statistics of one batch, else nothing gets through
    images = preprocessed(name, size, files)
    network(images, training=True)
    last = [layer for layer in network.layers if layer.get_weights()][-1]
    kernel, bias = last.get_weights()
    spread = np.log(network(images)).std()
    last.set_weights([kernel * 3 / spread, bias])  # sure of itself, with a second and a third
    path = Path(f"{name}.weights.h5")
    network.save_weights(path)
    return path


def decoded_by_keras(
    name: str, size: int, weights: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> list[list[tuple[str, float]]]:
    """What Keras' documentation does with a photograph, from the file to the names."""
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
    """Pictures as Keras' functions prepare them: (N, size, size, 3) float32."""
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
    name: str, size: int, labels: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(photos.iterdir())[:5]
    weights = draw_network(name, size, files)
    model = ImagenetModel(name, weights=str(weights), labels=labels, image_size=size, batch_size=2)
    *made, skipped = predict_images(photos, model=model)
    assert isinstance(skipped, Skipped)
    expected = decoded_by_keras(name, size, weights, files, monkeypatch)
    assert len({rows[0][0] for rows in expected}) > 1, "the network should tell pictures apart"
    for item, rows in zip(made, expected, strict=True):
        assert not isinstance(item, Skipped)
        ours = item.top(3)
        assert [label for label, _ in ours] == [label for label, _ in rows]
        np.testing.assert_allclose([p for _, p in ours], [p for _, p in rows], rtol=1e-4)
        assert item.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_command_prints_the_top_classes_and_draws_a_sheet(
    labels: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["photos", "--imagenet", "MobileNet", "--image-size", "128", "--top", "3"]
    arguments += ["--weights", "random", "--labels", str(labels), "--json"]
    main(arguments)
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == {"imagenet": "mobilenet", "image_size": 128, "resize": "squash"}
    assert [len(image["top"]) for image in document["images"]] == [3] * 5
    sheet = Path(document["sheet"])
    assert sheet.parent == Path("results")
    with Image.open(sheet) as picture:
        assert picture.width > picture.height > 200


def test_network_stands_at_the_size_it_was_trained_with(labels: Path) -> None:
    model = ImagenetModel("mobilenet", weights="random", labels=labels)
    assert model.image_size == 224
    assert model.classes == tuple(NAMES)
    assert list(model.cached_probabilities([b"x"])) == []


def test_what_does_not_fit_is_refused(labels: Path) -> None:
    headless = keras.applications.MobileNet(
        weights=None, include_top=False, input_shape=(128, 128, 3)
    )
    headless.save_weights("headless.weights.h5")
    with pytest.raises(BadDataError, match=r"mobilenet with its classifier has .*; received"):
        ImagenetModel("mobilenet", weights="headless.weights.h5", labels=labels)
    short = Path("short.txt")
    short.write_text("cat\ndog\n")
    with pytest.raises(BadDataError, match="tells 1,000 classes apart; received 2 names"):
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


@pytest.mark.parametrize("text", ["a\nb\n", '{"1": ["n1", "b"], "0": ["n0", "a"]}', "\n a \r\nb"])
def test_names_come_from_keras_list_or_from_lines(text: str) -> None:
    Path("labels").write_text(text)
    assert read_labels(Path("labels")) == ("a", "b")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b'{"0": "a"',
        b'{"5": ["n", "a"]}',
        b'{"0": ["n"]}',
        b'{"0": ["n", 3]}',
        b'{"0": 1}',
    ],
)
def test_what_is_no_list_of_names_is_refused(content: bytes) -> None:
    Path("labels").write_bytes(content)
    with pytest.raises(BadDataError, match="is no list of classes"):
        read_labels(Path("labels"))
    with pytest.raises(NoInputError, match="no such file"):
        read_labels(Path("gone"))
