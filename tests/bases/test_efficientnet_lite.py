"""EfficientNet-Lite is a base like those of keras.applications."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.bases.boundary import find_boundary
from pipeline.bases.build import build_base, feature_model, list_layers
from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import layer_names
from pipeline.bases.weights import file_digest
from pipeline.engines import ncnn, onnx, relative_errors
from pipeline.engines.keras_reader import read_network

SIDE = 65  # odd: TensorFlow pads it unevenly
IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
LAST = "top_activation"


@pytest.mark.slow
def test_every_engine_computes_its_features_from_random_weights_or_a_file(tmp_path: Path) -> None:
    config = BaseConfig(base="EfficientNetLite0", image_size=SIDE, weights="random", seed=2)
    base, name = build_base(config)
    assert name == "random-2"
    assert tuple(layer.name for layer in list_layers(config)) == layer_names(config.network)
    expected = np.asarray(feature_model(base, config, [LAST])(IMAGES)).reshape(2, 3, 3, 1280)
    preprocessed = (IMAGES.astype(np.float32) - 127) / 128
    assert relative_errors(np.asarray(base(preprocessed)), expected).max() < 1e-5
    network = read_network(base, config, [LAST])
    for module, engine in ((onnx, onnx.OnnxEngine), (ncnn, ncnn.NcnnEngine)):
        folder = tmp_path / module.__name__
        folder.mkdir()
        module.convert(network, folder)
        received = engine(folder, layers=[LAST])(IMAGES)[LAST]
        assert relative_errors(expected, received).max() < 1e-5
    base.save_weights("lite.weights.h5")
    loaded, digest = build_base(
        BaseConfig(base="efficientnet_lite0", image_size=SIDE, weights="lite.weights.h5")
    )
    assert digest == file_digest(Path("lite.weights.h5"))
    np.testing.assert_array_equal(loaded(preprocessed), base(preprocessed))
    boundary = find_boundary(base, config.network, "block7a_expand_conv")
    assert boundary.layer == "block6d_add"
    assert boundary.shape == (3, 3, 192)


@pytest.mark.slow
@pytest.mark.real_data
def test_logistic_on_lite0_reaches_97_percent_on_cats_and_dogs(assets: Path) -> None:
    from pipeline import compare_heads, extract_features

    done = extract_features(
        assets / "data" / "cats_and_dogs",
        base="efficientnet_lite0",
        pooling="avg",
        limit_per_class=100,
        engine="onnx",
    )
    (outcome,) = compare_heads(done.table.path, heads="logistic", audit=False).outcomes
    assert outcome.result.test_accuracy >= 0.97  # 99.2 % of 500 with all images
