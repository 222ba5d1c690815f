"""FeatureExtractor is a scikit-learn transformer, and computes every image once."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline import (
    FeatureExtractor,
    compare_heads,
    extract_features,
    load_model,
    predict_images,
)
from pipeline.engines import PixelsEngine
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.models.bundle import save_bundle

# scikit-learn's checks pass rows of numbers of any length. As images of one line they take the
# same path as other images.
ROWS = FeatureExtractor("pixels", "none", image_size=8, image_shape=(1, -1), value_range=(-10, 10))
NOT_RUN_HERE = {
    "check_array_api_input": "needs SCIPY_ARRAY_API set before scipy is imported: "
    "test_array_api_check_passes runs it in its own process"
}


def run_check(estimator: FeatureExtractor, check: Any) -> None:
    name = getattr(check, "func", check).__name__
    if name in NOT_RUN_HERE:
        pytest.skip(NOT_RUN_HERE[name])
    check(estimator)


@parametrize_with_checks([ROWS])
def test_scikit_learn_check(estimator: FeatureExtractor, check: Any) -> None:
    run_check(estimator, check)


@pytest.mark.slow
@parametrize_with_checks(
    [
        clone(ROWS).set_params(pooling="max", dtype="float16", resize="pad"),
        clone(ROWS).set_params(
            base="mobilenet_v3_small", image_size=32, weights="random", engine="tensorflow"
        ),
    ]
)
def test_scikit_learn_check_of_other_settings(estimator: FeatureExtractor, check: Any) -> None:
    run_check(estimator, check)


@pytest.mark.slow
def test_array_api_check_passes() -> None:
    code = (
        "from sklearn.utils.estimator_checks import check_array_api_input\n"
        "from pipeline import FeatureExtractor\n"
        f"check_array_api_input('FeatureExtractor', {ROWS!r}, array_namespace='numpy',\n"
        "                      expect_only_array_outputs=False)\n"
        "print('passed')"
    )
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert finished.stdout == "passed\n"


# ------------------------------------------------------------------------------------- caching


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Return the number of images in each call of the engine."""
    counts: list[int] = []
    compute = PixelsEngine.__call__

    def counting(self: PixelsEngine, images: np.ndarray) -> Any:
        counts.append(len(images))
        return compute(self, images)

    monkeypatch.setattr(PixelsEngine, "__call__", counting)
    return counts


def draw_images(count: int = 40, *, side: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return noise, every second image lighter, (count, side, side + 4, 3) uint8, and labels."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = random.integers(0, 120, (count, side, side + 4, 3))
    return (pixels + 100 * labels[:, None, None, None]).astype(np.uint8), labels


def files_of(images: np.ndarray, folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_paths_and_arrays_give_the_features_of_extract(synthetic_set: Path) -> None:
    table = extract_features(synthetic_set, base="pixels", cache_dir="other").table
    paths = [synthetic_set / os.fsdecode(path) for path in table.columns.paths]
    expected = table.features("pixels").reshape(len(table), -1)
    extractor = FeatureExtractor("pixels", "none")
    np.testing.assert_array_equal(extractor.fit_transform(paths), expected)
    arrays = [np.asarray(Image.open(path)) for path in paths]
    np.testing.assert_array_equal(extractor.transform(arrays), expected)
    np.testing.assert_array_equal(extractor.transform(np.stack(arrays)), expected)
    names = np.array([os.fspath(path) for path in paths])
    np.testing.assert_array_equal(extractor.transform(names[::-1]), expected[::-1])


def test_second_fit_computes_nothing(passes: list[int], tmp_path: Path) -> None:
    images, _ = draw_images()
    paths = files_of(images, tmp_path / "files")
    first = FeatureExtractor("pixels").fit_transform(paths)
    assert sum(passes) == 40
    passes.clear()
    renamed = [path.rename(path.with_suffix(".image")) for path in paths]
    again = FeatureExtractor("pixels").fit(renamed)
    np.testing.assert_array_equal(again.transform(renamed[::-1]), first[::-1])
    assert passes == []


def test_repeated_image_is_computed_once(passes: list[int]) -> None:
    images, _ = draw_images(4)
    features = FeatureExtractor("pixels").fit_transform(images[[0, 1, 0, 0, 2]])
    assert sum(passes) == 3
    np.testing.assert_array_equal(features[[2, 3]], features[[0, 0]])


def test_grid_search_computes_each_image_once(passes: list[int]) -> None:
    images, labels = draw_images(20)
    model = make_pipeline(FeatureExtractor("pixels"), StandardScaler(), LogisticRegression())
    grid = {"featureextractor__pooling": ["avg", "max"], "logisticregression__C": [0.1, 1]}
    search = GridSearchCV(model, grid, cv=2).fit(images, labels)
    assert search.score(images, labels) == 1
    assert sum(passes) == 20 * 2  # poolings
    GridSearchCV(clone(model), grid, cv=3).fit(images, labels)
    assert sum(passes) == 20 * 2


def fit_images(count: int) -> np.ndarray:
    images, _ = draw_images(60)
    features: np.ndarray = FeatureExtractor("pixels", "none").fit_transform(images[:count])
    return features


def check_writers(pool: Executor) -> None:
    """Fit on different images at the same time."""
    expected = None
    for features in pool.map(fit_images, [10, 20, 30, 40, 50, 60]):
        expected = fit_images(60) if expected is None else expected
        np.testing.assert_array_equal(features, expected[: len(features)])
    assert sorted(path.suffix for path in Path("cache/images").iterdir()) == [".h5", ".lock"]


def test_threads_wait_for_one_another(passes: list[int]) -> None:
    with ThreadPoolExecutor(4) as pool:
        check_writers(pool)
    assert sum(passes) == 60


@pytest.mark.slow
def test_processes_wait_for_one_another() -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        check_writers(pool)


@pytest.mark.slow
def test_grid_search_in_two_processes() -> None:
    images, labels = draw_images()
    model = make_pipeline(FeatureExtractor("pixels"), LogisticRegression())
    search = GridSearchCV(model, {"logisticregression__C": [0.1, 1]}, cv=4, n_jobs=2)
    assert search.fit(images, labels).score(images, labels) == 1


def test_images_of_an_extracted_set_are_not_computed_again(
    passes: list[int], synthetic_set: Path
) -> None:
    extract_features(synthetic_set, base="pixels", pooling="avg")
    passes.clear()
    FeatureExtractor("pixels").fit(sorted(synthetic_set.rglob("*.png")))
    assert passes == []


def test_interrupted_fit_continues(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = draw_images(200)
    compute = PixelsEngine.__call__

    def dying(self: PixelsEngine, batch: np.ndarray) -> Any:
        if sum(passes) >= 150:
            raise KeyboardInterrupt
        return compute(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PixelsEngine, "__call__", dying)
        with pytest.raises(KeyboardInterrupt):
            FeatureExtractor("pixels").fit(images)
    passes.clear()
    FeatureExtractor("pixels").fit(images)
    assert sum(passes) == 200 - 152  # batches of 8


def test_damaged_cache_is_computed_again(passes: list[int], caplog: Any) -> None:
    images, _ = draw_images()
    expected = FeatureExtractor("pixels", "none").fit_transform(images)
    (path,) = Path("cache/images").glob("*.h5")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    passes.clear()
    np.testing.assert_array_equal(
        FeatureExtractor("pixels", "none").fit_transform(images), expected
    )
    assert sum(passes) == 40
    assert "its images are computed again" in caplog.text
    passes.clear()
    FeatureExtractor("pixels", "none").fit(images)
    assert passes == []


# ---------------------------------------------------------------------------- as scikit-learn's


def test_clone_and_pickle_keep_what_is_learned(passes: list[int]) -> None:
    images, _ = draw_images(6)
    unfitted = FeatureExtractor("pixels", "max", image_size=16)
    assert clone(unfitted).get_params() == unfitted.get_params()
    assert pickle.loads(pickle.dumps(unfitted)).get_params() == unfitted.get_params()  # noqa: S301
    fitted = unfitted.fit(images)
    expected = fitted.transform(images)
    data = pickle.dumps(fitted)
    assert b"Engine" not in data
    again = pickle.loads(data)  # noqa: S301
    passes.clear()
    np.testing.assert_array_equal(again.transform(images), expected)
    assert passes == []
    again.transform(255 - images)
    assert sum(passes) == 6


def test_unpickling_with_another_decoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = draw_images(4)
    again = pickle.loads(pickle.dumps(FeatureExtractor("pixels").fit(images)))  # noqa: S301
    monkeypatch.setattr("pipeline.cache.provenance.pixels_digest", lambda *_: "another decoder's")
    with pytest.raises(BadDataError, match=r"other pixels: fingerprint \w+, here \w+; fit it"):
        again.transform(images)


def test_output_is_a_data_frame_on_request() -> None:
    images, _ = draw_images(4)
    extractor = FeatureExtractor("pixels").set_output(transform="pandas")
    frame = extractor.fit_transform(images)
    assert list(frame) == [f"featureextractor{number}" for number in range(3)]
    assert list(extractor.get_feature_names_out()) == list(frame)
    assert frame.shape == (4, 3)
    assert (frame.dtypes == np.float32).all()


def test_flattened_rows_are_images() -> None:
    images, _ = draw_images(5)
    height, width = images.shape[1:3]
    colours = FeatureExtractor("pixels", image_shape=(height, width, 3))
    np.testing.assert_array_equal(
        colours.fit_transform(images.reshape(5, -1)),
        FeatureExtractor("pixels").fit_transform(images),
    )
    assert colours.n_features_in_ == height * width * 3
    grey = images[..., 0] / 255  # 0..1, as in many data sets
    rows = FeatureExtractor("pixels", image_shape=(height, -1), value_range=(0, 1))
    np.testing.assert_array_equal(
        rows.fit_transform(grey.reshape(5, -1)),
        FeatureExtractor("pixels").fit_transform(images[..., :1]),
    )
    with pytest.raises(UsageError, match=r"rows of 10 values are not images of shape \(3, -1\)"):
        clone(rows).set_params(image_shape=(3, -1)).fit(np.zeros((2, 10)))


@pytest.mark.parametrize(
    ("settings", "images", "message"),
    [
        ({}, "one.jpg", "expected a list of images; received the one path one.jpg"),
        ({}, np.zeros((3, 12)), "received an array of shape"),
        ({}, np.zeros((3, 4, 4, 3)), "expected uint8 pixels, 0..255; received float64"),
        ({}, np.zeros((3, 4, 4, 2), np.uint8), "expected images of shape"),
        ({}, [[1, 2, 3]], "received list among them"),
        ({}, 3, "received int"),
        ({"pooling": "mean"}, np.zeros((1, 4, 4, 3), np.uint8), "pooling is one of none, avg, max"),
        ({"base": "vgg_61"}, np.zeros((1, 4, 4, 3), np.uint8), "did you mean vgg"),
        ({"layer": "conv"}, np.zeros((1, 4, 4, 3), np.uint8), "has one layer, pixels"),
        (
            {"image_shape": (2, 2), "value_range": (1, 0)},
            np.zeros((1, 4)),
            "value_range must increase",
        ),
    ],
)
def test_invalid_settings_and_images_are_refused_in_one_line(
    settings: Any, images: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        FeatureExtractor(**{"base": "pixels", **settings}).fit(images)
    assert "\n" not in str(raised.value)


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(BadDataError, match=r"broken.jpg: .*; leave it out or repair it"):
        FeatureExtractor("pixels").fit([tmp_path / "broken.jpg"])
    with pytest.raises(BadDataError, match=r"gone.jpg: cannot be read: No such file"):
        FeatureExtractor("pixels").fit([tmp_path / "gone.jpg"])
    with pytest.raises(NoInputError, match="received none"):
        FeatureExtractor("pixels").fit([])


@pytest.mark.slow
def test_network_gives_the_features_of_extract(synthetic_classes: Path) -> None:
    options = {"image_size": 32, "weights": "random", "seed": 3, "engine": "tensorflow"}
    table = extract_features(
        synthetic_classes, base="mobilenet_v3_small", pooling="avg", cache_dir="other", **options
    ).table
    paths = [synthetic_classes / os.fsdecode(path) for path in table.columns.paths]
    features = FeatureExtractor("MobileNetV3Small", "avg", **options).fit_transform(paths)
    np.testing.assert_array_equal(features, table.features("activation_17:avg"))


# --------------------------------------------------------------------------------- trained model


def test_loaded_model_predicts_as_in_the_comparison(synthetic_set: Path) -> None:
    table = extract_features(synthetic_set, base="pixels").table
    outcome = compare_heads(table.path, heads="logistic", audit=False).shown
    assert outcome.bundle is not None
    assert outcome.test is not None
    save_bundle(outcome.bundle, Path("logistic.skops"))
    model = load_model("logistic.skops")
    assert model.classes_.tolist() == ["plain", "striped"]
    paths = [synthetic_set / os.fsdecode(table.columns.paths[row]) for row in outcome.test.rows]
    probabilities = model.predict_proba(paths)
    np.testing.assert_allclose(probabilities, outcome.test.scores, atol=1e-6)
    assert model.predict(paths).tolist() == [
        model.classes_[number] for number in outcome.test.predicted
    ]
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    np.testing.assert_array_equal(model.predict_proba(arrays), probabilities)


def test_loaded_model_averages_over_views_as_in_the_comparison(
    synthetic_set: Path,
) -> None:
    table = extract_features(synthetic_set, base="pixels", views=2, tta=True).table
    outcome = compare_heads(table.path, heads="logistic", audit=False, tta=True).shown
    assert outcome.bundle is not None
    assert outcome.test is not None
    save_bundle(outcome.bundle, Path("logistic.skops"))
    images = table.columns.paths[table.columns.views == 0]
    paths = [synthetic_set / os.fsdecode(images[row]) for row in outcome.test.rows]
    model = load_model("logistic.skops", batch_size=5)
    np.testing.assert_allclose(model.predict_proba(paths), outcome.test.scores, atol=1e-6)
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths[:3]])
    again = model.predict_proba(arrays)  # arrays have other views than their files
    np.testing.assert_allclose(model.predict_proba(arrays[::-1])[::-1], again, atol=1e-12)
    plain = replace(outcome.bundle, document={**outcome.bundle.document, "tta": 0})
    save_bundle(plain, Path("plain.skops"))
    assert np.abs(load_model("plain.skops").predict_proba(arrays) - again).max() > 1e-5


def test_numpy_numbers_and_data_frame_columns_are_accepted(tmp_path: Path) -> None:
    images, _ = draw_images(4)
    paths = [str(path) for path in files_of(images, tmp_path / "photos")]
    expected = FeatureExtractor("pixels", image_size=8).fit_transform(paths)
    numpys = FeatureExtractor("pixels", image_size=np.int64(8), seed=np.int64(0))
    column = pandas.DataFrame({"path": paths})
    for given in (paths, column, column.to_numpy(), np.array(paths)[:, None]):
        np.testing.assert_array_equal(numpys.fit_transform(given), expected)
    with pytest.raises(UsageError, match="image_size is a whole number"):
        FeatureExtractor("pixels", image_size=8.5).fit(paths)
    with pytest.raises(UsageError, match="expected one column of paths; received 2"):
        FeatureExtractor("pixels").fit(column.assign(label="cats"))


def test_predict_uses_the_features_that_it_computed(synthetic_set: Path, passes: list[int]) -> None:
    table = extract_features(synthetic_set, base="pixels").table
    bundle = compare_heads(table.path, heads="ridge", audit=False).shown.bundle
    assert bundle is not None
    save_bundle(bundle, Path("ridge.skops"))
    images, _ = draw_images(3)
    paths = files_of(images, Path("new"))
    FeatureExtractor("pixels", "none").fit(paths)
    passes.clear()
    found = list(predict_images("new", model="ridge.skops"))
    assert [each.cached for each in found] == [True] * 3
    assert passes == []
