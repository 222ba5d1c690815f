"""Building bases: Keras' own numbers, and refusal of weights that do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bases.build import build_base, feature_model, list_layers
from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import Base, find_base
from pipeline.bases.weights import file_digest
from pipeline.errors import BadDataError, UnreachableError, UsageError
from pipeline.keras_backend import keras

TINY = find_base("mobilenet_v3_small")
SIZE = 32


def config(base: Base = TINY, **options: Any) -> BaseConfig:
    settings = {"weights": "random", "seed": 3, "image_size": SIZE, "cache_dir": Path()}
    return BaseConfig(base=base.name, **(settings | options))


def build(base: Base = TINY, **options: Any) -> tuple[Any, str]:
    return build_base(config(base, **options))


def synthetic_images(count: int = 3, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Greatest over the rows, in the L2 norm."""
    rows = len(ours)
    difference = np.linalg.norm((ours - theirs).reshape(rows, -1), axis=1)
    return float((difference / np.linalg.norm(theirs.reshape(rows, -1), axis=1)).max())


def test_random_weights_repeat_by_seed() -> None:
    first, name = build(seed=5)
    again, _ = build(seed=5)
    other, _ = build(seed=6)
    assert name == "random-5"
    images = synthetic_images().astype("f4")
    np.testing.assert_array_equal(first(images), again(images))
    assert not np.array_equal(first(images), other(images))


def test_layers_have_the_same_names_however_often_a_base_is_built() -> None:
    names = [[layer.name for layer in list_layers(config())] for _ in range(2)]
    assert names[0] == names[1]
    assert names[0][-1] == TINY.last_layer


def test_base_is_frozen() -> None:
    model, _ = build()
    assert model.trainable_weights == []


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooled_output_equals_keras_pooling(pooling: str) -> None:
    base_model, _ = build()
    layers = [f"{TINY.last_layer}:{pooling}", "expanded_conv_2_add"]
    tapped = feature_model(base_model, config(), layers)
    theirs = keras.applications.MobileNetV3Small(
        weights=None, include_top=False, input_shape=(SIZE, SIZE, 3), pooling=pooling
    )
    theirs.set_weights(base_model.get_weights())
    pooled, maps = tapped.predict(synthetic_images(), verbose=0)
    expected = theirs.predict(synthetic_images().astype("f4"), verbose=0)
    assert relative_error(pooled, expected) < 1e-5
    assert maps.shape == (3, 4, 4, 24)


def test_rescale_is_the_books_division_by_255() -> None:
    base = find_base("mobilenet")
    base_model, _ = build(base)
    rescaled = config(base, preprocessing="rescale")
    tapped = feature_model(base_model, rescaled, [base.last_layer])
    (ours,) = keras.tree.flatten(tapped.predict(synthetic_images(), verbose=0))
    expected = base_model.predict(synthetic_images().astype("f4") / 255, verbose=0)
    assert relative_error(ours, expected) < 1e-5


@pytest.mark.parametrize("name", ["weights.weights.h5", "renamed.h5"])
def test_weights_file_gives_the_weights_it_was_saved_from(tmp_path: Path, name: str) -> None:
    saved, _ = build(seed=8)
    saved.save_weights(tmp_path / "saved.weights.h5")
    (tmp_path / "saved.weights.h5").rename(tmp_path / name)
    loaded, digest = build(weights=tmp_path / name)
    assert digest == file_digest(tmp_path / name)
    for ours, theirs in zip(loaded.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_of_another_model_are_refused_with_both_counts(tmp_path: Path) -> None:
    other, _ = build(find_base("mobilenet"))
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(BadDataError, match=r"another model: mobilenet_v3_small .* received") as e:
        build(weights=tmp_path / "other.weights.h5")
    assert "numbers" in str(e.value)


def test_unknown_layer_names_the_remedy() -> None:
    base_model, _ = build()
    with pytest.raises(UsageError, match="--list-layers mobilenet_v3_small"):
        feature_model(base_model, config(), ["nope"])


def test_layer_without_maps_is_refused() -> None:
    base = find_base("efficientnet_b0")
    with pytest.raises(UsageError, match="no feature maps"):
        feature_model(build(base)[0], config(base), ["block1a_se_squeeze"])


def _keras_efficientnet(monkeypatch: pytest.MonkeyPatch, file: Path) -> object:
    """EfficientNetB0 as Keras builds it for weights="imagenet", with a file instead of its own."""
    module = __import__("keras.src.applications.efficientnet", fromlist=["file_utils"])
    monkeypatch.setattr(module.file_utils, "get_file", lambda *args, **options: str(file))
    return keras.applications.EfficientNetB0(
        weights="imagenet", include_top=False, input_shape=(SIZE, SIZE, 3)
    )


@pytest.mark.slow
def test_efficientnet_from_a_file_equals_the_named_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = find_base("efficientnet_b0")
    model, _ = build(base)
    norm = next(part for part in model.layers if isinstance(part, keras.layers.Normalization))
    norm.adapt_mean.assign([0.485, 0.456, 0.406])  # what Keras' own file holds
    norm.adapt_variance.assign([0.229, 0.224, 0.225])
    file = tmp_path / "efficientnet.weights.h5"
    model.save_weights(file)
    named = _keras_efficientnet(monkeypatch, file)
    ours, _ = build(base, weights=file)
    images = synthetic_images().astype("f4")
    assert relative_error(ours.predict(images, verbose=0), named.predict(images, verbose=0)) < 1e-5


@pytest.mark.slow
def test_efficientnet_trained_from_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    base = find_base("efficientnet_b0")
    model, _ = build(base)
    model.save_weights(tmp_path / "own.weights.h5")
    ours, _ = build(base, weights=tmp_path / "own.weights.h5")
    images = synthetic_images().astype("f4")
    np.testing.assert_array_equal(ours.predict(images, verbose=0), model.predict(images, verbose=0))


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
