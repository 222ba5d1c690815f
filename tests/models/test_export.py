"""Exported models: heads as layers, one model in Keras, ONNX and LiteRT, and its predict.py."""

import importlib.util
import json
import os
import shutil
import sys
import zipfile
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bundle_sets import bundle_of, draw_rows, fit_head, fit_top_block, linear_head, scores_of
from PIL import Image, UnidentifiedImageError
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier
from synthetic_images import draw

from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import find_base
from pipeline.bases.weights import file_digest
from pipeline.engines import open_engine
from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.search import search
from pipeline.heads.calibration import TemperatureScaling, class_scores
from pipeline.heads.config import DenseConfig
from pipeline.heads.dense import DenseClassifier
from pipeline.heads.inputs import flatten_or_pool
from pipeline.heads.registry import HEADS, load_head
from pipeline.images import decode as ours
from pipeline.images import scan
from pipeline.images.views import POLICIES
from pipeline.models import export
from pipeline.models.bundle import Bundle
from pipeline.models.head_layers import (
    NotExportableError,
    head_layers,
    steps_of,
    why_not_exportable,
)
from pipeline.models.head_onnx import OPSETS, append_head
from pipeline.models.top_block import HEAD_WEIGHTS, dense_classifier
from pipeline.spec import RESIZE_POLICIES, FeatureSpec

TINY, SIZE = find_base("mobilenet_v3_small"), 32
ABOUT = {"classes": ["a", "b"], "fingerprint": "f00d", "spec": {"resize": "crop"}}
LINEAR = ("logistic", "linear_svm", "ridge", "lda", "kornblith")


# --------------------------------------------------------------------------- heads as layers


def forward(bundle: Bundle, rows: np.ndarray) -> np.ndarray:
    """Compute the probabilities with the head's layers: (N, D) -> (N, K), float32 throughout."""
    *hidden, last = head_layers(bundle)
    for layer in hidden:
        rows = np.maximum(rows @ layer.kernel + layer.bias, 0)
    logits = rows @ last.kernel + last.bias
    if logits.shape[1] > 1:
        return softmax(logits, axis=1)
    return np.hstack([1 - expit(logits), expit(logits)])


@pytest.mark.parametrize("name", [*LINEAR, "dense", "majority"])
def test_layers_give_the_heads_probabilities(name: str) -> None:
    for class_count in (2, 4):
        bundle = bundle_of(fit_head(name, class_count), class_count)
        probabilities = forward(bundle, draw_rows(class_count).features)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, scores_of(bundle), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", [*LINEAR, "dense"])
def test_layers_of_tiny_and_huge_features_neither_overflow_nor_vanish(
    name: str, scale: float
) -> None:
    rows = draw_rows()
    scaled = LabelledRows(rows.features * np.float32(scale), rows.labels)
    dense = DenseConfig(epochs=1, units=8)
    fit = search(load_head(name, [dense]), scaled, scaled, class_count=2, seed=0)
    assert fit is not None
    probabilities = forward(bundle_of(fit.estimator), scaled.features)
    np.testing.assert_allclose(probabilities, fit.validation_scores, atol=1e-5)
    assert np.ptp(probabilities[:, 0]) > 0.01


@pytest.mark.parametrize("name", ["logistic", "linear_svm", "dense"])
def test_layers_are_in_the_order_of_the_bundles_classes(name: str) -> None:
    for class_count in (2, 4):
        unchanged = bundle_of(fit_head(name, class_count), class_count)
        bundle = replace(unchanged, estimator=deepcopy(unchanged.estimator))
        estimator = getattr(bundle.estimator, "estimator", bundle.estimator)
        labels = np.roll(np.arange(class_count), 1)
        (estimator if name == "dense" else estimator[-1]).classes_ = labels
        scores = scores_of(bundle)
        np.testing.assert_allclose(scores[:, labels], scores_of(unchanged), atol=1e-12)
        probabilities = forward(bundle, draw_rows(class_count).features)
        np.testing.assert_allclose(probabilities, scores, atol=1e-5)


@pytest.mark.parametrize("name", sorted(HEADS.keys() - {*LINEAR, "dense", "majority"}))
def test_head_that_is_not_a_network_is_refused_for_keras(name: str) -> None:
    bundle = bundle_of(fit_head(name), head=name)
    if name == "prototype":  # with lengths, not angles, it is linear
        assert "normalizer" in dict(bundle.estimator.estimator.steps)
    with pytest.raises(NotExportableError, match=f"{name} cannot be exported to Keras.* onnx"):
        head_layers(bundle)


# ------------------------------------------------------------------------- heads in ONNX


def onnx_probabilities(bundle: Bundle, rows: np.ndarray) -> np.ndarray:
    """Compute the probabilities with the converted head, after a base that only casts."""
    base = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 15]> base (float[N, {rows.shape[1]}] images) '
        f"=> (double[N, {rows.shape[1]}] features) {{ features = Cast<to = 11>(images) }}"
    )
    model = append_head(base, bundle)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(["probabilities"], {"images": rows})
    assert found.dtype == np.float32
    return np.asarray(found)


@pytest.mark.parametrize("name", sorted(HEADS.keys() - {"dense"}))
def test_onnx_gives_the_probabilities_of_every_head(name: str) -> None:
    for class_count in (2, 4):
        bundle = bundle_of(fit_head(name, class_count), class_count)
        rows = draw_rows(class_count).features
        np.testing.assert_allclose(onnx_probabilities(bundle, rows), scores_of(bundle), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_onnx_heads_take_features_of_any_unit(scale: float) -> None:
    rows = draw_rows()
    features = rows.features * np.float32(scale)
    for name in sorted(HEADS.keys() - {"dense"}):
        estimator = deepcopy(fit_head(name))
        getattr(estimator, "estimator", estimator).fit(features, rows.labels)
        bundle = bundle_of(estimator)
        expected = class_scores(estimator, features, 2)
        np.testing.assert_allclose(onnx_probabilities(bundle, features), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["logistic", "ridge", "naive_bayes", "knn", "random_forest"])
def test_onnx_gives_probabilities_in_the_order_of_the_labels(name: str) -> None:
    for class_count in (2, 4):
        estimator, rows = deepcopy(fit_head(name, class_count)), draw_rows(class_count).features
        labels = np.roll(np.arange(class_count), 1)
        steps_of(estimator)[-1].classes_ = labels
        bundle = bundle_of(estimator, class_count)
        expected = scores_of(bundle_of(fit_head(name, class_count), class_count))
        np.testing.assert_allclose(onnx_probabilities(bundle, rows)[:, labels], expected, atol=1e-5)


def test_head_of_more_than_2_gib_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", 1_000)
    with pytest.raises(NotExportableError, match=r"knn .* ONNX file has at most 2"):
        onnx_probabilities(bundle_of(fit_head("knn"), head="knn"), draw_rows().features)


CUSTOM = {
    "scaled logistic": make_pipeline(StandardScaler(), LogisticRegression()),
    "whitened": make_pipeline(PCA(5, whiten=True), LinearDiscriminantAnalysis()),
    "centered": make_pipeline(StandardScaler(with_std=False), RidgeClassifier()),
    "not centered": make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
    "angles": make_pipeline(Normalizer(), LinearDiscriminantAnalysis()),
    "absolute": make_pipeline(Normalizer("l1"), LinearSVC()),
    "pairs": SVC(kernel="linear"),
    "polynomial": SVC(kernel="poly"),
    "distances": KNeighborsClassifier(3, algorithm="brute"),
    "centroids": NearestCentroid(),
    "tree": DecisionTreeClassifier(random_state=0),
    "extra tree": ExtraTreeClassifier(random_state=0),
    "extra trees": ExtraTreesClassifier(5, random_state=0),
}


def fit_custom(estimator: Any, class_count: int) -> Bundle:
    rows = draw_rows(class_count)
    fitted = clone(estimator).fit(rows.features, rows.labels)
    if not hasattr(fitted, "predict_proba"):
        fitted = TemperatureScaling(fitted, temperature=0.7)
    return bundle_of(fitted, class_count, head="custom")


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_heads_have_their_probabilities_in_onnx_and_those_of_one_layer_in_keras(
    name: str,
) -> None:
    for class_count in (2, 3):
        bundle = fit_custom(CUSTOM[name], class_count)
        rows = draw_rows(class_count).features
        rows = rows + np.random.default_rng(7).normal(size=rows.shape).astype(np.float32)
        expected = class_scores(bundle.estimator, rows, class_count)
        np.testing.assert_allclose(onnx_probabilities(bundle, rows), expected, atol=1e-5)
        if hasattr(steps_of(bundle.estimator)[0], "mean_") or name == "centroids":
            np.testing.assert_allclose(forward(bundle, rows), expected, atol=1e-5)
        else:
            with pytest.raises(NotExportableError):
                head_layers(bundle)


def test_heads_that_onnx_cannot_hold_say_why() -> None:
    averaged = {"tta": 4, "augmentation": POLICIES["book"].to_dict()}
    bundle = network_bundle(synthetic_dense())
    views = replace(bundle, document=bundle.document | averaged)
    weighted = KNeighborsClassifier(3, algorithm="brute", weights="distance")
    for refused, reason in (
        (views, "over 5 views of an image: classify without --tta"),
        (fit_custom(weighted, 2), "skl2onnx ignores the weights"),
        (fit_custom(DummyClassifier(strategy="most_frequent"), 2), "strategy most_frequent"),
    ):
        assert reason in why_not_exportable(refused)
    for exported in (bundle, fit_custom(DummyClassifier(), 2), fit_custom(GaussianNB(), 2)):
        assert why_not_exportable(exported) == ""
    with pytest.raises(NotExportableError, match=r"custom cannot be exported: skl2onnx .*Dummy"):
        onnx_probabilities(fit_custom(DummyClassifier(strategy="stratified"), 2), np.ones((1, 12)))


# ------------------------------------------------------------------------------ one model


def synthetic_images(size: int = SIZE, count: int = 5) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def network_bundle(estimator: Any, classes: tuple[str, ...] = ("a", "b"), **spec: Any) -> Bundle:
    """Return a bundle on a small network with random weights."""
    fields = {
        "base": TINY.name, "weights": "random-1", "preprocessing": "native", "image_size": SIZE,
        "resize": "squash", "pixels": "none", "dtype": "float32",
    }  # fmt: skip
    return bundle_of(
        estimator,
        spec=FeatureSpec(**fields | spec),
        layer="expanded_conv_2_add",
        shape=(4, 4, 24),
        classes=classes,
        input="flat" if isinstance(estimator, DenseClassifier) else "pooled",
    )


@cache
def synthetic_dense() -> DenseClassifier:
    """Return a dense head of two classes for flattened (4, 4, 24) maps."""
    random = np.random.default_rng(3)
    shapes = ((384, 6), (6,), (6, 1), (1,))
    named = {
        f"head/{name}": random.normal(size=shape).astype("f4")
        for name, shape in zip(HEAD_WEIGHTS, shapes, strict=True)
    }
    return dense_classifier(named, 2, DenseConfig(units=6, dropout=0.25))


def synthetic_linear(class_count: int, width: int = 24) -> Any:
    random = np.random.default_rng(4)
    outputs = 1 if class_count == 2 else class_count
    return linear_head(random.normal(size=(outputs, width)), np.ones(outputs))


def config_of(bundle: Bundle, **options: Any) -> BaseConfig:
    spec = bundle.spec
    settings = {"image_size": SIZE, "preprocessing": spec.preprocessing, "batch_size": 8}
    settings |= {"weights": "random", "seed": 1, "engine": "tensorflow"}
    return BaseConfig(base=spec.base, **(settings | options))


def compose(bundle: Bundle, **options: Any) -> Any:
    from pipeline.models import composition

    config = config_of(bundle, **options)
    return composition.compose(bundle, config)


def compose_onnx(bundle: Bundle, **options: Any) -> Any:
    from pipeline.models import composition

    return composition.compose_onnx(bundle, config_of(bundle, **options))


def measured(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """Compute the probabilities as extract and classify do."""
    engine = open_engine(config_of(bundle), (bundle.layer,))
    rows = flatten_or_pool(engine(images)[bundle.layer], bundle.input)
    return class_scores(bundle.estimator, rows, len(bundle.classes))


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved model with a dense head."""
    from pipeline.models.composition import save_keras

    path = tmp_path_factory.mktemp("keras") / "model.keras"
    save_keras(compose(network_bundle(synthetic_dense())), ABOUT, path)
    return path


@pytest.fixture(scope="module")
def tflite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved model with a dense head; nothing else is in its folder."""
    from pipeline.models.composition import save_tflite

    path = tmp_path_factory.mktemp("tflite") / "model.tflite"
    save_tflite(compose(network_bundle(synthetic_dense())), ABOUT, path)
    return path


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved model with a linear head of four classes; nothing else is in its folder."""
    from pipeline.models.head_onnx import save_onnx

    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    save_onnx(compose_onnx(linear_bundle()), ABOUT, path)
    return path


def linear_bundle() -> Bundle:
    return network_bundle(synthetic_linear(4), ("a", "b", "c", "d"), preprocessing="rescale")


def test_keras_model_loads_without_custom_code_and_has_the_layers_of_the_book(
    keras_file: Path,
) -> None:
    from pipeline.models.composition import keras

    model = keras.models.load_model(keras_file)
    images = synthetic_images()
    expected = measured(network_bundle(synthetic_dense()), images)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-6)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds[-5:] == ["Functional", "Flatten", "Dense", "Dropout", "Dense"]
    assert model.get_layer("dropout").rate == 0.25
    assert model.input_shape == (None, SIZE, SIZE, 3)
    assert model.input.dtype == "uint8"
    with zipfile.ZipFile(keras_file) as archive:
        assert json.loads(archive.read("classifier.json")) == ABOUT


def test_keras_model_can_be_fine_tuned_as_in_the_book(keras_file: Path) -> None:
    from pipeline.models.composition import keras

    model = keras.models.load_model(keras_file)
    network, head = model.get_layer(TINY.name), model.get_layer("hidden")

    def fit_changes() -> tuple[bool, bool]:
        """Return whether a training step changes the base, and whether it changes the head."""
        before = [network.get_weights(), head.get_weights()]
        loss = "sparse_categorical_crossentropy"
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)  # spares a graph
        model.train_on_batch(synthetic_images(), np.arange(5) % 2)
        after = [network.get_weights(), head.get_weights()]
        changed = [
            any(not np.array_equal(x, y) for x, y in zip(old, new, strict=True))
            for old, new in zip(before, after, strict=True)
        ]
        return changed[0], changed[1]

    assert fit_changes() == (False, True)
    for layer in network.layers[-4:]:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    assert fit_changes() == (True, True)


def test_litert_model_takes_one_image_and_contains_its_metadata(tflite_file: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    assert [entry.name for entry in tflite_file.parent.iterdir()] == ["model.tflite"]
    run = Interpreter(os.fspath(tflite_file)).get_signature_runner()
    (images,), (found,) = run.get_input_details().items(), run.get_output_details().items()
    assert (images[0], images[1]["dtype"]) == ("images", np.uint8)
    assert images[1]["shape_signature"].tolist() == [1, SIZE, SIZE, 3]
    assert (found[0], found[1]["shape_signature"].tolist()) == ("probabilities", [1, 2])
    images = synthetic_images()
    found = np.concatenate([run(images=image[None])["probabilities"] for image in images])
    expected = measured(network_bundle(synthetic_dense()), images)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with zipfile.ZipFile(tflite_file) as archive:
        assert json.loads(archive.read("classifier.json")) == ABOUT


def test_network_beyond_the_operators_of_litert_is_refused_in_one_line(tmp_path: Path) -> None:
    from pipeline.models.composition import keras, save_tflite, tf

    images = keras.Input((2, 2, 3), dtype="uint8", name="images")
    svd = keras.layers.Lambda(
        lambda x: tf.linalg.svd(tf.cast(x, tf.float32), compute_uv=False), output_shape=(2, 2)
    )
    about = ABOUT | {"head": "dense", "spec": {"base": "mine"}}
    with pytest.raises(UsageError, match=r"dense on mine cannot .* --format onnx$") as caught:
        save_tflite(keras.Model(images, svd(images)), about, tmp_path / "model.tflite")
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_onnx_model_is_one_checked_file_with_metadata(onnx_file: Path) -> None:
    assert [entry.name for entry in onnx_file.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    assert {opset.domain: opset.version for opset in model.opset_import} == OPSETS
    session = onnxruntime.InferenceSession(onnx_file)
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    assert session.get_modelmeta().custom_metadata_map == {
        "classes": '["a", "b"]',
        "fingerprint": "f00d",
        "spec": '{"resize": "crop"}',
    }
    for count in (1, 5):
        images = synthetic_images(count=count)
        (found,) = session.run(["probabilities"], {"images": images})
        np.testing.assert_allclose(found, measured(linear_bundle(), images), atol=1e-5)


def test_fine_tuned_layers_replace_those_of_the_base() -> None:
    bundle = fit_top_block()
    images = synthetic_images()
    expected = measured(bundle, images)
    assert np.ptp(expected[:, 0]) > 1e-3
    model = compose(bundle)
    kernel = model.get_layer("vgg16").get_layer("block5_conv3").kernel
    np.testing.assert_array_equal(kernel, bundle.estimator.block["block5_conv3/kernel"])
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-5)


def test_raw_pixels_are_exported_too() -> None:
    bundle = network_bundle(synthetic_linear(2, width=3), base="pixels", weights="none")
    bundle = replace(bundle, layer="pixels:max", shape=(3,))
    images = synthetic_images()
    expected = bundle.estimator.predict_proba(images.max(axis=(1, 2)) / np.float32(255))
    found = compose(bundle).predict(images, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_other_weights_or_shapes_than_in_training_are_refused_with_both() -> None:
    bundle = network_bundle(synthetic_dense())
    with pytest.raises(BadDataError, match=r"weights random-1…; received random-2…"):
        compose(bundle, seed=2)
    bundle = replace(bundle, layer=TINY.last_layer)
    with pytest.raises(BadDataError, match=r"shape \(4, 4, 24\); .* gives \(1, 1, 576\)"):
        compose(bundle)


@pytest.mark.slow
def test_normalisation_layer_of_efficientnet_is_part_of_the_onnx_model(tmp_path: Path) -> None:
    from pipeline.bases.build import build_base
    from pipeline.models.composition import keras
    from pipeline.models.head_onnx import save_onnx

    base = find_base("efficientnet_b0")
    network, _ = build_base(BaseConfig(base=base.name, image_size=SIZE, weights="random", seed=1))
    norm = next(part for part in network.layers if isinstance(part, keras.layers.Normalization))
    norm.adapt_mean.assign([0.485, 0.456, 0.406])
    norm.adapt_variance.assign([0.229, 0.224, 0.225])
    file = tmp_path / "base.weights.h5"
    network.save_weights(file)
    loud = linear_head(np.random.default_rng(5).normal(size=(1, 1280)) * 3e4, np.ones(1))
    bundle = network_bundle(loud, base=base.name, weights=file_digest(file))
    bundle = replace(bundle, layer=base.last_layer, shape=(1, 1, 1280))
    model = compose(bundle, weights=file)
    save_onnx(compose_onnx(bundle, weights=file), ABOUT, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {"images": synthetic_images()})
    expected = model.predict(synthetic_images(), verbose=0)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


# ------------------------------------------------------------------------------ predict.py


def exported_script(
    path: Path = Path(export.__file__).parent / "templates" / "predict.py",
) -> Any:
    """Return the exported predict.py as a module."""
    spec = importlib.util.spec_from_file_location("exported_predict", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def odd_images(folder: Path) -> list[Path]:
    """Write one image of every kind that the decoder treats differently."""
    picture = draw(3, stripes=True, size=(60, 40)).convert("RGB")
    grey = np.linspace(0, 60_000, 2400).reshape(40, 60)
    exif = Image.Exif()
    exif[ours.EXIF_ORIENTATION] = 6
    clear = picture.convert("RGBA")
    clear.putalpha(90)
    made = {
        "plain.png": picture, "turned.jpg": picture, "cmyk.jpg": picture.convert("CMYK"),
        "palette.gif": picture.quantize(16), "grey.png": picture.convert("L"),
        "one.png": picture.convert("1"), "clear.png": clear, "clear_grey.png": clear.convert("LA"),
        "deep.png": Image.fromarray(grey.astype(np.uint16)),
        "deeper.tiff": Image.fromarray((grey * 30_000).astype(np.int32)),
        "float.tiff": Image.fromarray((grey / 60_000).astype(np.float32)),
    }  # fmt: skip
    for name, image in made.items():
        image.save(folder / name, **({"exif": exif} if name == "turned.jpg" else {}))
    return [folder / name for name in made]


@pytest.mark.parametrize("resize", RESIZE_POLICIES)
def test_predict_py_decodes_and_resizes_as_training_does(tmp_path: Path, resize: str) -> None:
    script = exported_script()
    probes = sorted((Path(ours.__file__).parent / "probes").iterdir())
    for path in [*probes, *odd_images(tmp_path)]:
        found = script.decode(str(path), 24, resize)
        expected = ours.decode(path.read_bytes(), image_size=24, resize=resize)
        np.testing.assert_array_equal(found, expected, err_msg=path.name)
        assert found.dtype == np.uint8


def test_predict_py_reads_the_same_formats_as_training(tmp_path: Path) -> None:
    script = exported_script()
    for name in (
        "FORMATS", "MAX_MEMORY", "BYTES_PER_PIXEL", "BYTES_PER_OTHER_PIXEL", "EXIF_ORIENTATION",
    ):  # fmt: skip
        assert getattr(script, name) == getattr(ours, name)
    assert tuple(script.known_formats()) == ours._formats()
    assert script.JUNK == scan.JUNK
    for name in ("picture.eps", "picture.tga"):
        draw(3, stripes=True).convert("RGB").save(tmp_path / name)
        with pytest.raises(UnidentifiedImageError):
            script.decode(str(tmp_path / name), 24, "squash")


@pytest.mark.parametrize(("orientation", "limit"), [(1, 60 * 40 * 4), (6, 60 * 40 * 4 * 2)])
def test_predict_py_refuses_images_of_the_same_size_as_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, limit: int
) -> None:
    script, path = exported_script(), tmp_path / "picture.jpg"
    exif = Image.Exif()
    exif[ours.EXIF_ORIENTATION] = orientation
    draw(3, stripes=True, size=(60, 40)).convert("RGB").save(path, exif=exif)
    for most in (limit, limit - 1):
        monkeypatch.setattr(script, "MAX_MEMORY", most)
        monkeypatch.setattr(ours, "MAX_MEMORY", most)
        if most == limit:
            script.decode(str(path), 24, "squash")
            ours.decode(path.read_bytes(), image_size=24)
            continue
        with pytest.raises(ValueError, match="60 x 40 pixels are too many"):
            script.decode(str(path), 24, "squash")
        with pytest.raises(ours.UnreadableImage, match="claims"):
            ours.decode(path.read_bytes(), image_size=24)


def test_predict_py_reads_heic_with_pillow_heif(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', None)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert "HEIF" in exported_script().known_formats()
    monkeypatch.delitem(sys.modules, "pillow_heif")


def test_predict_py_opens_its_model_whatever_else_is_in_its_folder(
    onnx_file: Path, keras_file: Path, tflite_file: Path, tmp_path: Path
) -> None:
    template = Path(export.__file__).parent / "templates" / "predict.py"
    for model, class_count in ((onnx_file, 4), (keras_file, 2), (tflite_file, 2)):
        folder = tmp_path / model.suffix
        folder.mkdir()
        for name in ("model.bak", "model.a", "model.zip"):
            (folder / name).write_text("")
        shutil.copy(model, folder)
        shutil.copy(template, folder)
        classes, _, run = exported_script(folder / "predict.py").open_model()
        assert classes == ABOUT["classes"]
        assert run(synthetic_images()).shape == (5, class_count)


def test_predict_py_escapes_control_characters_of_names() -> None:
    shown = exported_script().printable("Möwe\x1b[31m\n\udcff")
    assert shown == r"Möwe\x1b[31m\n\udcff"
