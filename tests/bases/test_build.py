"""Building bases: Keras' own numbers; weights that do not fit are refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.bases.build import build_base, feature_model, list_layers
from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import Base, find_base
from pipeline.bases.weights import file_digest
from pipeline.engines import relative_errors
from pipeline.errors import BadDataError, UnreachableError, UsageError
from pipeline.keras_backend import keras

TINY = find_base("mobilenet_v3_small")
EFFICIENTNET = find_base("efficientnet_b0")
SIZE = 32
IMAGES = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)


def config(base: Base = TINY, **options: Any) -> BaseConfig:
    settings = {"weights": "random", "seed": 3, "image_size": SIZE, "cache_dir": Path()}
    return BaseConfig(base=base.name, **(settings | options))


def build(base: Base = TINY, **options: Any) -> tuple[Any, str]:
    return build_base(config(base, **options))


@pytest.fixture(scope="module")
def model() -> Any:
    """The base TINY with random weights of seed 3."""
    return build()[0]


def assert_same_arrays(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)


def assert_close(received: Any, expected: Any) -> None:
    """The relative error of each row is below 1e-5."""
    assert relative_errors(np.asarray(expected), np.asarray(received)).max() < 1e-5


def test_base_is_frozen_and_its_random_weights_repeat_by_seed(model: Any) -> None:
    again, name = build()
    other, _ = build(seed=6)
    assert name == "random-3"
    assert model.trainable_weights == []
    assert_same_arrays(again.get_weights(), model.get_weights())
    assert not np.array_equal(other.get_weights()[0], model.get_weights()[0])


def test_layers_have_the_same_names_however_often_a_base_is_built(model: Any) -> None:
    names = [layer.name for layer in list_layers(config())]
    assert names == [layer.name for layer in model.layers]
    assert names[-1] == TINY.last_layer


def test_feature_model_gives_feature_maps_and_pools_them(model: Any) -> None:
    last, middle = TINY.last_layer, "expanded_conv_2_add"
    layers = [last, middle, f"{middle}:avg", f"{middle}:max"]
    outputs = feature_model(model, config(), layers)(IMAGES)
    tapped = keras.Model(model.input, [model.output, model.get_layer(middle).output])
    expected, maps = map(np.asarray, tapped(IMAGES.astype("f4")))
    assert maps.shape == (3, 4, 4, 24)
    for ours, theirs in zip(
        outputs, [expected, maps, maps.mean((1, 2)), maps.max((1, 2))], strict=True
    ):
        assert_close(ours, theirs)


def test_rescale_is_the_books_division_by_255(model: Any) -> None:
    rescaled = feature_model(model, config(preprocessing="rescale"), [TINY.last_layer])
    (features,) = keras.tree.flatten(rescaled(IMAGES))
    assert_close(features, model(IMAGES.astype("f4") / 255))


def test_weights_file_of_any_name_gives_the_weights_it_was_saved_from(
    model: Any, tmp_path: Path
) -> None:
    model.save_weights(tmp_path / "saved.weights.h5")
    path = (tmp_path / "saved.weights.h5").rename(tmp_path / "renamed.h5")
    loaded, digest = build(weights=path)
    assert digest == file_digest(path)
    assert_same_arrays(loaded.get_weights(), model.get_weights())


def test_weights_of_another_model_are_refused_with_both_counts(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones((3, 4), "f4")
    expected = "another model: mobilenet_v3_small .* received 1 arrays of 12 numbers"
    with pytest.raises(BadDataError, match=expected):
        build(weights=tmp_path / "other.h5")


def test_unknown_layer_names_the_option_that_lists_them(model: Any) -> None:
    with pytest.raises(UsageError, match="--list-layers mobilenet_v3_small"):
        feature_model(model, config(), ["nope"])


@pytest.mark.slow
def test_efficientnet_from_a_file_equals_the_named_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a base trained without ImageNet statistics are loaded unchanged."""
    trained, _ = build(EFFICIENTNET)
    file = tmp_path / "efficientnet.weights.h5"
    trained.save_weights(file)
    images = IMAGES.astype("f4")
    np.testing.assert_array_equal(build(EFFICIENTNET, weights=file)[0](images), trained(images))

    norm = next(layer for layer in trained.layers if isinstance(layer, keras.layers.Normalization))
    norm.adapt_mean.assign([0.485, 0.456, 0.406])  # the numbers in Keras' own file
    norm.adapt_variance.assign([0.229, 0.224, 0.225])
    trained.save_weights(file)
    module = __import__("keras.src.applications.efficientnet", fromlist=["file_utils"])
    monkeypatch.setattr(module.file_utils, "get_file", lambda *args, **options: str(file))
    named = keras.applications.EfficientNetB0(
        weights="imagenet", include_top=False, input_shape=(SIZE, SIZE, 3)
    )
    assert_close(build(EFFICIENTNET, weights=file)[0](images), named(images))


def test_weights_that_cannot_be_downloaded_say_where_to_put_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(**options: object) -> None:
        print("Downloading data from https://host/mobilenet.h5")
        raise Exception(  # as Keras does
            "URL fetch failure on https://host/mobilenet.h5: None -- [Errno -2] Name unknown"
        )

    monkeypatch.setattr(keras.applications, "MobileNetV3Small", unreachable)
    with pytest.raises(UnreachableError, match=r"place https://host/mobilenet\.h5 in ~/\.keras"):
        build(weights="imagenet")
    assert capsys.readouterr().out == ""


def test_bug_inside_keras_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**options: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(keras.applications, "MobileNetV3Small", broken)
    with pytest.raises(TypeError, match="a bug"):
        build(weights="imagenet")
