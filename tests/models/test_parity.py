"""Raw images get the probabilities of the cached features, or an error says why not."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_images import draw, make_image_folder

from pipeline.api import Extraction, extract_features
from pipeline.engines import relative_errors
from pipeline.errors import BadDataError, NoInputError
from pipeline.evaluation.compare import compare_heads
from pipeline.models import parity
from pipeline.models.bundle import Bundle
from pipeline.models.parity import Parity, check_parity, compare_predictions, reference_images
from pipeline.models.predictor import Predictor

HEADS = "logistic,ridge,knn"


def train(folder: Path, *, heads: str = HEADS, **options: Any) -> tuple[Extraction, list[Bundle]]:
    """Return the cache of a synthetic set in ``folder`` and heads trained on it."""
    data = make_image_folder(folder / "synthetic", splits=("train", "validation", "test"))
    cache_dir = folder / "cache"
    done = extract_features(data, base="pixels", image_size=8, cache_dir=cache_dir, **options)
    compared = compare_heads(
        done.table.path, heads=heads, audit=False, tta=options.get("tta", False)
    )
    return done, [outcome.bundle for outcome in compared.outcomes if outcome.bundle]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    return train(tmp_path_factory.mktemp("parity"))[1]


def check(*bundles: Bundle, **options: object) -> list[Parity]:
    return check_parity(bundles, cache_dir=Path("cache"), **options)  # type: ignore[arg-type]


def test_every_head_predicts_raw_test_images_as_in_the_comparison(bundles: list[Bundle]) -> None:
    assert len(bundles) == 3
    for found in check(*bundles):
        assert found.count == 24  # the test split
        assert found.max_difference <= 1e-4
        assert found.agrees
        found.raise_for_difference("model")


def test_another_resize_or_order_of_colours_is_found(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    (ridge,) = (bundle for bundle in bundles if bundle.head == "ridge")
    read_images = parity.read_images

    def bgr(*arguments, **options):  # type: ignore[no-untyped-def]
        for path, pixels in read_images(*arguments, **options):
            yield path, pixels[..., ::-1]

    def cropped(*arguments, resize, **options):  # type: ignore[no-untyped-def]
        return read_images(*arguments, resize="crop", **options)

    for wrong in (bgr, cropped):
        monkeypatch.setattr(parity, "read_images", wrong)
        (found,) = check(ridge)
        assert not found.agrees
        with pytest.raises(BadDataError, match="does not predict from image files") as caught:
            found.raise_for_difference("model")
        assert "\n" not in str(caught.value)


class Saturated:
    """A head that predicts the first class with certainty for every image."""

    classes_ = np.arange(2)

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return np.tile([1.0, 0.0], (len(rows), 1))


def test_wrong_features_are_found_although_the_head_hides_them(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saturated = replace(bundles[0], estimator=Saturated())
    caplog.set_level("INFO", "pipeline")
    for found in check(saturated, saturated):
        assert found.agrees
        assert found.feature_error < 1e-6
    (line,) = [message for message in caplog.messages if "relative error" in message]
    assert re.fullmatch(
        r"features of \S+ from 24 files: largest relative error \S+ \(at most 0\.001\)", line
    )
    features = Predictor.features
    monkeypatch.setattr(
        Predictor, "features", lambda self, pixels: features(self, pixels) * np.float32(1.01)
    )
    (found,) = check(saturated)
    assert found.max_difference == found.changed == 0
    assert found.feature_error == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(BadDataError, match=r"features differ by 1\.0e-02 of their length"):
        found.raise_for_difference("model")


def test_error_of_features_is_relative_to_each_row() -> None:
    expected = np.array([[3, 4], [0, 0], [0, 0], [1, 1], [30, 40]], "f4")
    found = np.array([[3, 4.5], [0, 0], [0, 1], [np.nan, 1], [30, 40.5]], "f4")
    errors = relative_errors(expected[:, None], found[:, None])
    np.testing.assert_allclose(errors, [0.1, 0, np.inf, np.inf, 0.01])


def test_half_of_the_reference_images_are_the_closest_decisions(bundles: list[Bundle]) -> None:
    every = reference_images(bundles[0])
    scores = every.predictions(bundles[0])
    margins = dict(zip(every.rows.tolist(), np.abs(scores[:, 0] - scores[:, 1]), strict=True))
    closest = sorted(margins, key=lambda row: margins[row])
    for count in (1, 2, 7, 23):
        rows = reference_images(bundles[0], max_images=count, closest=True).rows.tolist()
        assert rows == sorted(set(rows))
        assert len(rows) == count
        assert set(closest[: count // 2]) <= set(rows)
    others = [row for row in every.rows.tolist() if row not in closest[:3]]
    rows = reference_images(bundles[0], max_images=6, closest=True).rows.tolist()
    assert {others[0], others[-1]} <= set(rows)
    for count in (24, 200):
        chosen = reference_images(bundles[0], max_images=count, closest=True).rows
        np.testing.assert_array_equal(chosen, every.rows)


def test_reference_images_are_evenly_spread_or_selected_by_keys(bundles: list[Bundle]) -> None:
    images = reference_images(bundles[0], max_images=4)
    names = [(path.parent.parent.name, path.parent.name) for path in images.files(Path())]
    assert names == [("test", "plain")] * 2 + [("test", "striped")] * 2
    keys = images.table.columns.digests[:3]
    chosen = reference_images(bundles[0], keys=keys)
    np.testing.assert_array_equal(np.sort(chosen.table.columns.digests[chosen.rows]), np.sort(keys))
    (found,) = check(bundles[0], max_images=5)
    assert found.count == 5
    with pytest.raises(NoInputError, match="contains no image"):
        reference_images(bundles[0], keys=keys[:0])


def test_features_layers_and_classes_unlike_the_caches_are_refused_naming_both(
    bundles: list[Bundle],
) -> None:
    spec = bundles[0].spec
    for field, value in {
        "image_size": 16, "preprocessing": "rescale", "weights": "0" * 64, "resize": "crop",
    }.items():  # fmt: skip
        other = replace(bundles[0], spec=replace(spec, **{field: value}))
        with pytest.raises(
            BadDataError, match=f"{field} {getattr(spec, field)}; .*{field} {value}"
        ):
            check(other)
    with pytest.raises(BadDataError, match="shape None"):
        check(replace(bundles[0], layer="block9_pool"))
    with pytest.raises(BadDataError, match=r"plain, striped; .*cats, striped"):
        check(replace(bundles[0], classes=("cats", "striped")))


def test_changed_or_missing_images_and_caches_are_refused(tmp_path: Path) -> None:
    done, (bundle,) = train(tmp_path, heads="ridge", dtype="float16")
    (found,) = check(bundle)
    assert (found.tolerance, found.feature_tolerance) == (1e-3, 1e-2)  # a float16 cache
    assert found.agrees
    images = tmp_path / "synthetic"
    image = images / "test" / "plain" / "000.png"
    draw(99, stripes=True).save(image)
    with pytest.raises(BadDataError, match=r"000\.png is not the cached image"):
        check(bundle)
    image.unlink()
    with pytest.raises(BadDataError, match=r"000\.png is not the cached image"):
        check(bundle)
    for split in ("train", "validation", "test"):
        (images / split / "plain").rename(images / split / "smooth")
    with pytest.raises(BadDataError, match=r"smooth, striped.*trained on plain, striped"):
        check(bundle)
    images.rename(tmp_path / "elsewhere")
    with pytest.raises(NoInputError, match="does not exist"):
        check(bundle)
    done.table.path.unlink()
    with pytest.raises(NoInputError, match="does not exist"):
        check(bundle)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Return heads whose probabilities are means over four views."""
    return train(tmp_path_factory.mktemp("averaged"), views=3, tta=True)[1]


def test_means_over_views_are_compared_with_those_of_the_cached_views(
    averaged: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = averaged[0]
    plain = replace(bundle, document=bundle.document | {"tta": 0})
    results = check(*averaged, plain)
    assert [result.count for result in results] == [24] * 4
    assert all(result.agrees for result in results)
    images = reference_images(bundle, max_images=10, closest=True)
    assert not images.table.columns.views[images.rows].any()
    assert np.abs(images.predictions(bundle) - images.predictions(plain)).max() > 1e-5
    original = Predictor.views
    monkeypatch.setattr(
        Predictor, "views", lambda self, *given: (view[:, ::-1] for view in original(self, *given))
    )
    (found,) = check(bundle)
    assert found.feature_error > found.feature_tolerance


def test_missing_views_and_other_augmentations_are_refused(averaged: list[Bundle]) -> None:
    bundle = averaged[0]
    more = replace(bundle, document=bundle.document | {"tta": 4})
    with pytest.raises(BadDataError, match=r"view 4 of 0 of 24 images.*again with --tta"):
        check(more)
    augmentation = dict(bundle.document["augmentation"]) | {"seed": 1}
    other = replace(bundle, document=bundle.document | {"augmentation": augmentation})
    with pytest.raises(BadDataError, match=r"other views than .*seed 1\): classify again"):
        check(other)


def test_changed_decisions_count_unless_they_were_ties() -> None:
    expected = np.array([[0.9, 0.1], [0.50004, 0.49996], [0.5001, 0.4999], [0.2, 0.8]])
    found = np.array([[0.9, 0.1], [0.49996, 0.50004], [0.4999, 0.5001], [0.2, 0.8]])
    result = compare_predictions(expected, found, tolerance=1e-4)
    assert result.max_difference == pytest.approx(2e-4)
    assert (result.changed, result.count) == (1, 4)
    assert not result.agrees
    assert str(result).endswith("1 decision of 4 changed")
    same = compare_predictions(expected, expected + 1e-5, tolerance=1e-4)
    assert same.agrees
    assert "no decision of 4 changed" in str(same)


def test_predictions_that_are_nan_or_empty_do_not_agree() -> None:
    expected = np.array([[0.9, 0.1]])
    broken = compare_predictions(expected, np.full((1, 2), np.nan), tolerance=1e-4)
    assert not broken.agrees
    assert broken.max_difference == float("inf")
    assert not compare_predictions(expected[:0], expected[:0], tolerance=1e-4).agrees
    with pytest.raises(BadDataError, match=r"expected probabilities \(1, 2\); received \(1, 3\)"):
        compare_predictions(expected, np.ones((1, 3)) / 3, tolerance=1e-4)
