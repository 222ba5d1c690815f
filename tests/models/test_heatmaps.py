"""Heat maps: exact for linear heads, gradients for networks, occlusion for the rest."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from bundle_sets import QUICK, bundle_of, fit_top_block
from feature_sets import SPEC, draw_features
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from whole_networks import gradcam_through_network

from pipeline.bases.config import BaseConfig
from pipeline.errors import UsageError
from pipeline.heads.calibration import TemperatureScaling
from pipeline.heads.dense import DenseClassifier, DenseRegressor
from pipeline.heads.inputs import flatten_or_pool
from pipeline.heads.novelty import NoveltyDetector
from pipeline.heads.registry import load_head
from pipeline.heads.scaler import CommonScaler
from pipeline.images.decode import pixels_digest
from pipeline.models.bundle import Bundle
from pipeline.models.heatmaps import choose_method, heatmaps
from pipeline.spec import MULTILABEL, REGRESSION

SHAPE = (3, 4, 6)  # no two sides are equal
IMAGES = 40
POOLINGS = ("none", "input", "avg", "max")  # flattened; pooled by the head; cached pooled
LINEAR = ("logistic", "linear_svm", "ridge", "lda", "kornblith")


def draw_maps(labels: np.ndarray) -> np.ndarray:
    return draw_features(labels, SHAPE, seed=3, signal=0.5)


def labels_of(class_count: int) -> np.ndarray:
    return np.arange(IMAGES) % class_count


def rows_of(maps: np.ndarray, pooling: str) -> np.ndarray:
    if pooling == "max":
        return maps.max(axis=(1, 2))
    return flatten_or_pool(maps, "flat" if pooling == "none" else "pooled")


def bundle_for(estimator: Any, pooling: str, class_count: int = 2, **changed: Any) -> Bundle:
    """Return a bundle of a head on maps of SHAPE that are pooled in one of four ways."""
    cached_pooled = pooling in ("avg", "max")
    changed = {
        "layer": f"block5_pool:{pooling}" if cached_pooled else "block5_pool",
        "input": "flat" if pooling == "none" else "pooled",
        "shape": SHAPE[-1:] if cached_pooled else SHAPE,
        **changed,
    }
    return bundle_of(estimator, class_count, **changed)


def fit(name: str, pooling: str, class_count: int = 2) -> tuple[Any, np.ndarray]:
    """Return a fitted head with the middle setting of its grid, and the maps."""
    labels = labels_of(class_count)
    maps = draw_maps(labels)
    rows = rows_of(maps, pooling)
    head = load_head(name, [QUICK])
    estimator = clone(head.build(rows.shape[1], class_count))
    grid = head.grid[0] if isinstance(head.grid, list) else head.grid
    middle = {key: values[len(values) // 2] for key, values in dict(grid or {}).items()}
    estimator.set_params(**middle)
    return estimator.fit(rows, labels), maps


def sums_of(bundle: Bundle, maps: np.ndarray, number: int, method: str = "auto") -> np.ndarray:
    return np.array(
        [each.values.sum() for each in heatmaps(bundle, maps, [number] * IMAGES, method)]
    )


def expected_decisions(estimator: Any, rows: np.ndarray, number: int) -> np.ndarray:
    values = np.asarray(estimator.decision_function(rows))
    if values.ndim == 1:
        return values if number else -values
    return values[:, number]


@pytest.mark.parametrize("class_count", [2, 3])
@pytest.mark.parametrize(
    ("name", "pooling"), [*product(LINEAR, ("none", "input")), ("ridge", "avg"), ("ridge", "max")]
)
def test_positions_of_a_linear_head_add_up_to_its_decision_value(
    name: str, pooling: str, class_count: int
) -> None:
    estimator, maps = fit(name, pooling, class_count)
    bundle = bundle_for(estimator, pooling, class_count)
    assert choose_method(bundle) == "cam"
    for number in range(class_count):
        expected = expected_decisions(estimator, rows_of(maps, pooling), number)
        np.testing.assert_allclose(sums_of(bundle, maps, number), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_prototypes_without_angles_are_linear_up_to_what_all_classes_share(pooling: str) -> None:
    estimator, maps = fit("prototype", pooling, 3)
    rows = rows_of(maps, pooling)
    estimator.set_params(normalizer="passthrough").fit(rows, labels_of(3))
    bundle = bundle_for(TemperatureScaling(estimator, temperature=3.0), pooling, 3)
    shared = (estimator[:-1].transform(rows) ** 2).sum(axis=1) / 2
    for number in range(3):
        expected = estimator.decision_function(rows)[:, number] + shared
        np.testing.assert_allclose(sums_of(bundle, maps, number), expected, atol=1e-5)


@pytest.mark.parametrize("order", [[1, 0], [2, 0, 1]])
def test_classes_in_another_order_are_those_of_the_bundle(order: list[int]) -> None:
    estimator, maps = fit("logistic", "input", len(order))
    expected = [expected_decisions(estimator, rows_of(maps, "input"), n) for n in range(len(order))]
    estimator[-1].classes_ = np.array(order)  # column k is of label order[k]
    bundle = bundle_for(estimator, "input", len(order))
    for column, number in enumerate(order):
        np.testing.assert_allclose(sums_of(bundle, maps, number), expected[column], atol=1e-5)


def test_float16_features_are_explained_as_the_head_sees_them() -> None:
    estimator, maps = fit("logistic", "none")
    bundle = bundle_for(estimator, "none", spec=replace(SPEC, dtype="float16"))
    rounded = maps.astype(np.float16).astype(np.float32)
    expected = estimator.decision_function(rounded.reshape(IMAGES, -1))
    np.testing.assert_allclose(sums_of(bundle, maps, 1), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("labels", [2, 3])
def test_positions_of_labels_add_up_to_the_logit_of_each(pooling: str, labels: int) -> None:
    maps = draw_maps(labels_of(2))
    rows = rows_of(maps, pooling)
    targets = np.random.default_rng(1).integers(0, 2, (IMAGES, labels))
    document = {"task": MULTILABEL, "cache": "c.h5"}
    one_vs_rest = make_pipeline(CommonScaler(), OneVsRestClassifier(LogisticRegression()))
    for estimator in (one_vs_rest, make_pipeline(CommonScaler(), Ridge())):
        estimator.fit(rows, targets)
        bundle = bundle_for(estimator, pooling, labels, document=document)
        values = getattr(estimator, "decision_function", estimator.predict)(rows)
        for number in range(labels):
            np.testing.assert_allclose(sums_of(bundle, maps, number), values[:, number], atol=1e-5)


def test_positions_of_a_regression_add_up_to_the_number() -> None:
    maps = draw_maps(labels_of(2))
    rows = rows_of(maps, "input")
    estimator = make_pipeline(CommonScaler(), Ridge()).fit(rows, rows.sum(axis=1) + 2000)
    document = {"task": REGRESSION, "cache": "c.h5"}
    bundle = bundle_for(estimator, "input", document=document, classes=("year",))
    np.testing.assert_allclose(sums_of(bundle, maps, 0), estimator.predict(rows), atol=1e-5)
    assert heatmaps(bundle, maps, [0] * IMAGES)[0].label == "year"


def test_empty_positions_are_no_evidence() -> None:
    estimator, maps = fit("logistic", "input")
    maps[:, 1:] = 0
    (first, *_) = heatmaps(bundle_for(estimator, "input"), maps, [1] * IMAGES)
    assert not first.values[1:].any()
    maps[:] = 0
    expected = estimator.decision_function(rows_of(maps, "input"))
    for each in heatmaps(bundle_for(estimator, "input"), maps, [1] * IMAGES):
        assert each.is_flat
        assert each.values.sum() == pytest.approx(expected[0])


# ----------------------------------------------------------------------- gradients


def keras_gradients(head: Any, maps: np.ndarray, pooling: str, column: int) -> np.ndarray:
    """Return the derivative of a column of a Keras model's output by the maps."""
    from pipeline.keras_backend import tf

    with tf.GradientTape() as tape:
        tensor = tf.constant(maps)
        tape.watch(tensor)
        reduce = {"avg": tf.reduce_mean, "input": tf.reduce_mean, "max": tf.reduce_max}
        rows = tf.reshape(tensor, (len(maps), -1))
        if pooling != "none":
            rows = reduce[pooling](tensor, axis=(1, 2))
        total = tf.reduce_sum(head(rows)[:, column])
    return np.asarray(tape.gradient(total, tensor))


@pytest.mark.parametrize(
    ("pooling", "class_count"),
    [
        *((pooling, 2) for pooling in POOLINGS),
        ("avg", 3),
        *(
            pytest.param(pooling, 3, marks=pytest.mark.slow)
            for pooling in POOLINGS
            if pooling != "avg"
        ),
    ],
)
def test_gradients_of_a_dense_head_are_those_of_its_keras_model(
    pooling: str, class_count: int
) -> None:
    from pipeline.keras_backend import keras

    estimator, maps = fit("dense", pooling, class_count)
    bundle = bundle_for(estimator, pooling, class_count)
    kernel, bias, *output = estimator.weights_
    columns = output[1].shape[0]
    model = keras.Sequential(
        [keras.Input(kernel.shape[:1]), keras.layers.Dense(8, "relu"), keras.layers.Dense(columns)]
    )
    model.set_weights([kernel, bias, *output])
    for number in range(class_count):
        gradients = keras_gradients(model, maps, pooling, number if columns > 1 else 0)
        if columns == 1 and number == 0:  # the first class's logit is the negative one
            gradients = -gradients
        weights = gradients.mean(axis=(1, 2), keepdims=True)
        for method, expected in (("hirescam", gradients * maps), ("gradcam", weights * maps)):
            found = heatmaps(bundle, maps, [number] * IMAGES, method)
            np.testing.assert_allclose(
                [each.values for each in found], expected.sum(axis=3), atol=1e-5
            )
    assert choose_method(bundle) == "gradcam"
    assert {each.method for each in heatmaps(bundle, maps, [0] * IMAGES)} == {"gradcam"}


def test_dense_head_of_labels_has_gradients() -> None:
    maps = draw_maps(labels_of(2))
    rows = rows_of(maps, "none")
    targets = np.random.default_rng(1).integers(0, 2, (IMAGES, 3))
    estimator = DenseRegressor(activation="sigmoid", epochs=1, units=4).fit(rows, targets)
    document = {"task": MULTILABEL, "cache": "c.h5"}
    bundle = bundle_for(estimator, "none", 3, document=document)
    kernel, bias, output, _ = estimator.weights_
    active = rows @ kernel + bias > 0
    expected = ((active * output[:, 2]) @ kernel.T * rows).reshape(maps.shape).sum(axis=3)
    found = heatmaps(bundle, maps, [2] * IMAGES, "hirescam")
    np.testing.assert_allclose([each.values for each in found], expected, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("dense", marks=pytest.mark.slow), "logistic"])
def test_gradcam_equals_that_through_the_whole_keras_network(name: str) -> None:
    """Base and head in one model: Grad-CAM with a gradient tape on the layer's output."""
    size, shape = 32, (4, 4, 256)
    base = BaseConfig(base="vgg16", image_size=size, weights="random", seed=1)
    spec = replace(SPEC, weights="random-1", image_size=size, pixels=pixels_digest(size, "squash"))
    pixels = np.random.default_rng(0).integers(0, 256, (6, size, size, 3), np.uint8)
    rows = np.random.default_rng(1).random((IMAGES, math.prod(shape)), np.float32)
    head = load_head(name, [QUICK]).build(rows.shape[1], 2).fit(rows, labels_of(2))
    bundle = bundle_of(head, spec=spec, layer="block3_pool", input="flat", shape=shape)
    maps, expected = gradcam_through_network(bundle, base, pixels)
    found = [each.values for each in heatmaps(bundle, maps, [1] * 6, "gradcam")]
    assert spearmanr(np.ravel(found), np.ravel(expected)).statistic > 0.9999
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


# ----------------------------------------------------------------------- occlusion


@pytest.mark.parametrize("name", ["knn", "svm_rbf", "random_forest", "naive_bayes", "prototype"])
def test_occlusion_finds_the_only_position_with_evidence(name: str) -> None:
    labels = labels_of(2)
    maps = np.random.default_rng(0).random((IMAGES, *SHAPE)).astype(np.float32)
    maps[labels == 1, 2, 1] += 5 * np.array([1, 1, 0, 0, 0, 0])
    maps[labels == 0, 2, 1] += 5 * np.array([0, 0, 0, 0, 1, 1])
    rows = rows_of(maps, "input")
    estimator = load_head(name).build(6, 2)
    if name == "random_forest":
        estimator.set_params(randomforestclassifier__n_estimators=20)
    estimator.fit(rows, labels)
    if not hasattr(estimator, "predict_proba"):
        estimator = TemperatureScaling(estimator)
    found = heatmaps(bundle_for(estimator, "input"), maps, labels, "auto")
    assert {each.method for each in found} == {"occlusion"}
    places = [np.unravel_index(each.values.argmax(), SHAPE[:2]) for each in found]
    assert np.mean([place == (2, 1) for place in places]) >= 0.9


def test_occlusion_of_a_confident_network_is_not_flat() -> None:
    """Float32 probabilities are 1 whatever is replaced; the logit is not."""
    estimator, maps = fit("dense", "none")
    estimator.weights_[2] *= 1000
    found = heatmaps(bundle_for(estimator, "none"), maps, labels_of(2), "occlusion")
    assert not any(each.is_flat for each in found)


def test_occlusion_of_a_linear_head_is_its_value_against_the_mean_of_the_others() -> None:
    estimator, maps = fit("logistic", "none")
    bundle = bundle_for(estimator, "none")
    weights = (estimator[-1].coef_ / estimator[0].scale_).reshape(SHAPE)
    total = maps.sum(axis=(1, 2), keepdims=True)
    means = (total - maps) / (SHAPE[0] * SHAPE[1] - 1)
    expected = 2 * (weights * (maps - means)).sum(axis=3)  # the log-odds are those of -d and d
    found = heatmaps(bundle, maps, [1] * IMAGES, "occlusion")
    np.testing.assert_allclose([each.values for each in found], expected, atol=1e-4)


def test_large_maps_are_occluded_in_blocks() -> None:
    maps = np.random.default_rng(0).random((2, 35, 40, 2)).astype(np.float32)
    maps[1, 20:22, 30:32, 0] += 500
    means = maps.mean(axis=(1, 2))
    head = make_pipeline(CommonScaler(), KNeighborsClassifier(1)).fit(means, [0, 1])
    bundle = bundle_of(head, layer="block5_pool", shape=maps.shape[1:])
    values = heatmaps(bundle, maps, [0, 1])[1].values
    assert np.unique(values).size > 1
    assert values[20:22, 30:32].max() == values.max()


@pytest.mark.parametrize("wrap", [lambda head: head, TemperatureScaling])
def test_novelty_is_explained_by_the_distance_of_each_position(wrap: Any) -> None:
    maps = draw_maps(labels_of(2))
    rows = rows_of(maps, "none")
    head = NoveltyDetector(map_shape=SHAPE, random_state=0).fit(rows, labels_of(2))
    novel = maps[:2].copy()
    novel[:, 1, 2] *= -1  # of other directions than any
    bundle = bundle_for(wrap(head), "none")
    normal, other = heatmaps(bundle, novel, [0, 1])
    assert normal.method == "distance"
    np.testing.assert_allclose(other.values, head.position_scores(rows_of(novel, "none"))[1])
    for values in (-normal.values, other.values):
        assert np.unravel_index(values.argmax(), values.shape) == (1, 2)
    assert choose_method(bundle_for(wrap(head), "input")) == "occlusion"  # one position


def test_flat_maps_are_said_to_be_flat() -> None:
    maps = draw_maps(labels_of(2))
    head = DummyClassifier(strategy="prior").fit(rows_of(maps, "input"), labels_of(2))
    bundle = bundle_for(head, "input")
    assert all(each.is_flat for each in heatmaps(bundle, maps, labels_of(2), "occlusion"))
    one = np.ones((1, 1, 1, 6), np.float32)
    assert heatmaps(bundle, one, [0], "occlusion")[0].is_flat


def test_top_block_is_explained_by_its_logits() -> None:
    bundle = fit_top_block()
    maps = np.random.default_rng(0).random((2, *bundle.shape)).astype(np.float32)
    logits = bundle.estimator.decision_function(maps.reshape(2, -1))
    shares = bundle.estimator.predict_proba(maps.reshape(2, -1))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), shares[:, 1], atol=1e-6)
    found = heatmaps(bundle, maps, [0, 1])
    assert found[0].method == "occlusion"
    assert found[0].values.shape == bundle.shape[:2]


# ----------------------------------------------------------------------- errors


@pytest.mark.parametrize("method", ["cam", "gradcam", "hirescam", "distance"])
def test_method_that_a_head_does_not_have_is_refused(method: str) -> None:
    estimator, _ = fit("knn", "input")
    with pytest.raises(UsageError, match=f"--explain-method {method} .*choose occlusion"):
        choose_method(bundle_for(estimator, "input"), method)


def test_network_is_not_linear() -> None:
    with pytest.raises(UsageError, match="not linear: choose gradcam or hirescam or occlusion"):
        choose_method(bundle_for(DenseClassifier(), "input"), "cam")


def test_vectors_have_no_heat_map() -> None:
    estimator, _ = fit("logistic", "input")
    with pytest.raises(UsageError, match=r"takes embedding of shape \(6,\): extract a layer with"):
        choose_method(bundle_of(estimator, layer="embedding", shape=(6,)))
