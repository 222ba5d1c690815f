"""A saved fine-tuned block gives the scores of the trained network."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_sets import bundle_of, fit_top_block, scores_of

from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import find_base
from pipeline.errors import BadDataError
from pipeline.heads.config import DenseConfig
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.estimator_validation import InvalidModelError
from pipeline.models.serialization import UnsavableError
from pipeline.models.top_block import HEAD_WEIGHTS, TopBlockClassifier, top_block


def classifier_of(**options: Any) -> TopBlockClassifier:
    estimator = fit_top_block(**options).estimator
    assert isinstance(estimator, TopBlockClassifier)
    return estimator


WIDTH = 2 * 2 * 512  # of block5_conv2 at 32 pixels
HEAD = {
    f"head/{name}": np.full(shape, 0.1, np.float32)
    for name, shape in zip(HEAD_WEIGHTS, ((512, 8), (8,), (8, 1), (1,)), strict=True)
}


def draw_maps(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, width)).astype(np.float32)


@cache
def build(name: str) -> Any:
    """Build a base with random weights; tests may overwrite them."""
    from pipeline.bases.build import build_base

    return build_base(BaseConfig(base=name, image_size=32, weights="random", seed=1))[0]


@pytest.mark.parametrize(
    "fitted",
    [
        {},
        # with BatchNorm, a residual sum, squeeze and excitation
        pytest.param(
            {
                "base": "mobilenet_v3_small",
                "first_unfrozen": "expanded_conv_9_expand",
                "class_count": 3,
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_scores_are_those_of_the_network_that_was_trained(fitted: dict[str, Any]) -> None:
    from pipeline.heads.dense import build_dense
    from pipeline.keras_backend import keras

    tuned = classifier_of(**fitted)
    base_model = build(tuned.base)
    for layer in base_model.layers:
        for variable in layer.weights:
            if variable.path in tuned.block:
                variable.assign(tuned.block[variable.path])
    boundary = base_model.get_layer(tuned.boundary).output
    upper = keras.Model(boundary, base_model.output)
    class_count = fitted.get("class_count", 2)
    head = build_dense(upper.output_shape[1:], class_count, DenseConfig(units=8), 0)
    head.set_weights(tuned.head.weights_)
    maps = draw_maps(11, int(np.prod(boundary.shape[1:])))
    shares = head(upper(maps.reshape(11, *boundary.shape[1:]), training=False), training=False)
    expected = np.asarray(shares)
    if class_count == 2:
        expected = np.hstack([1 - expected, expected])
    found = tuned.predict_proba(maps)
    assert found.dtype == np.float64
    assert np.ptp(found[:, 0]) > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


def test_untrained_arrays_come_from_the_base_and_all_parameters_count() -> None:
    from pipeline.bases.boundary import find_boundary

    base_model, base, tuned = build("vgg16"), find_base("vgg16"), classifier_of()
    boundary = find_boundary(base_model, base, "block5_conv3")
    trained = {"block5_conv3/kernel": tuned.block["block5_conv3/kernel"]}
    made = top_block(base_model, base, 32, boundary, trained | HEAD, 2, DenseConfig(units=8))
    assert isinstance(made, TopBlockClassifier)
    assert sorted(made.block) == ["block5_conv3/bias", "block5_conv3/kernel"]
    np.testing.assert_array_equal(made.block["block5_conv3/kernel"], trained["block5_conv3/kernel"])
    bias = base_model.get_layer("block5_conv3").bias.numpy()
    np.testing.assert_array_equal(made.block["block5_conv3/bias"], bias)
    assert made.parameters == 3 * 3 * 512 * 512 + 512 + 512 * 8 + 8 + 8 + 1


def test_scores_of_an_image_do_not_depend_on_its_batch() -> None:
    tuned = classifier_of()
    maps = draw_maps(19, WIDTH)
    together = tuned.predict_proba(maps)
    for place in (0, 7, 8, 18):
        np.testing.assert_array_equal(
            tuned.predict_proba(maps[place : place + 1])[0], together[place]
        )
    assert tuned.predict_proba(maps[:0]).shape == (0, 2)


def test_a_saved_block_gives_the_same_scores_to_the_last_bit(tmp_path: Path) -> None:
    bundle = fit_top_block()
    save_bundle(bundle, tmp_path / "model.skops")
    loaded = load_bundle(tmp_path / "model.skops")
    np.testing.assert_array_equal(scores_of(loaded), scores_of(bundle))
    assert loaded.estimator.parameters == bundle.estimator.parameters


def test_layers_that_the_base_does_not_have_are_refused() -> None:
    from pipeline.models.upper_layers import layers_above, put_weights

    for boundary, message in (
        ("block6_pool", "cannot be cut after a layer block6_pool"),
        ("block5_conv1", r"block5_conv2/bias has shape none; expected \(512,\)"),
        ("block5_conv3", r"block5_conv3/bias has shape \(512,\); expected none"),
    ):
        with pytest.raises(InvalidModelError, match=message):
            put_weights(layers_above(build("vgg16"), boundary), classifier_of().block)


def test_a_layer_inside_a_residual_block_is_not_a_boundary() -> None:
    from pipeline.models.upper_layers import layers_above

    with pytest.raises(InvalidModelError, match="cannot be cut after"):
        layers_above(build("mobilenet_v3_small"), "expanded_conv_9_expand")


def test_maps_of_another_width_are_refused() -> None:
    with pytest.raises(InvalidModelError, match="take 2,048 features; received 7"):
        classifier_of().predict_proba(draw_maps(1, 7))


@pytest.mark.slow
def test_a_block_that_depends_on_the_base_cannot_be_saved() -> None:
    from pipeline.bases.boundary import find_boundary

    base = find_base("efficientnet_b0")
    base_model = build(base.name)
    boundary = find_boundary(base_model, base, "normalization")  # HEAD is not of its width
    with pytest.raises(UnsavableError, match=r"cannot be saved.*unfreeze fewer layers"):
        top_block(base_model, base, 32, boundary, HEAD, 2, DenseConfig(units=8))


def test_a_block_of_another_boundary_than_the_bundles_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of(
        classifier_of(),
        spec=fit_top_block().spec,
        layer="block5_conv1",
        input="flat",
        shape=(2, 2, 512),
    )
    save_bundle(bundle, tmp_path / "model.skops")
    with pytest.raises(BadDataError, match="is refused: its boundary is"):
        load_bundle(tmp_path / "model.skops")


@pytest.mark.slow
def test_tensorflow_is_not_imported_until_scores_are_computed() -> None:
    code = (
        "import sys, numpy as np, pipeline.models.head_layers\n"
        "from pipeline.models.top_block import TopBlockClassifier\n"
        "from pipeline.heads.dense import DenseClassifier\n"
        "head = DenseClassifier()\n"
        "head.weights_ = [np.ones((1, 1), 'f4')]\n"
        "TopBlockClassifier('vgg16', 32, 'block4_pool', {}, head).parameters\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
