"""Raw images end to end must give what the cache gave, or it is told."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_images import draw

from pipeline.api import Extraction, extract_features
from pipeline.engines import relative_errors
from pipeline.errors import BadDataError, NoInputError
from pipeline.evaluation.compare import compare_heads
from pipeline.models import parity
from pipeline.models.bundle import Bundle
from pipeline.models.parity import Parity, check_parity, compare_predictions, reference_images
from pipeline.models.predictor import Predictor

HEADS = "logistic,ridge,knn"


@pytest.fixture
def extraction(synthetic_set: Path) -> Extraction:
    return extract_features(synthetic_set, base="pixels", image_size=8)


@pytest.fixture
def bundles(extraction: Extraction) -> list[Bundle]:
    outcomes = compare_heads(extraction.table.path, heads=HEADS, audit=False).outcomes
    return [outcome.bundle for outcome in outcomes if outcome.bundle]


def check(*bundles: Bundle, **options: object) -> list[Parity]:
    return check_parity(bundles, cache_dir=Path("cache"), **options)  # type: ignore[arg-type]


def test_every_head_predicts_raw_test_images_as_it_was_measured(bundles: list[Bundle]) -> None:
    assert len(bundles) == 3
    for found in check(*bundles):
        assert found.count == 24  # the test split
        assert found.max_difference <= 1e-4
        assert found.holds
        found.demand("model")


def test_another_resize_or_order_of_colours_is_found(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    (ridge,) = (each for each in bundles if each.head == "ridge")
    read_images = parity.read_images

    def bgr(*arguments, **options):  # type: ignore[no-untyped-def]
        for path, pixels in read_images(*arguments, **options):
            yield path, pixels[..., ::-1]

    def cropped(*arguments, resize, **options):  # type: ignore[no-untyped-def]
        return read_images(*arguments, resize="crop", **options)

    for wrong in (bgr, cropped):
        monkeypatch.setattr(parity, "read_images", wrong)
        (found,) = check(ridge)
        assert not found.holds
        with pytest.raises(BadDataError, match="does not predict from image files") as caught:
            found.demand("model")
        assert "\n" not in str(caught.value)


class Saturated:
    """A head that is sure of the first class, whatever it is shown."""

    classes_ = np.arange(2)

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        return np.tile([1.0, 0.0], (len(rows), 1))


def test_wrong_pixels_are_found_behind_a_head_that_is_sure_of_everything(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saturated = replace(bundles[0], estimator=Saturated())
    caplog.set_level("INFO", "pipeline")
    for found in check(saturated, saturated):
        assert found.holds
        assert found.feature_error < 1e-6
    (line,) = [each for each in caplog.messages if "relative error" in each]
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
        found.demand("model")


def test_error_of_features_is_relative_to_each_row() -> None:
    expected = np.array([[3, 4], [0, 0], [0, 0], [1, 1], [30, 40]], "f4")
    found = np.array([[3, 4.5], [0, 0], [0, 1], [np.nan, 1], [30, 40.5]], "f4")
    errors = relative_errors(expected[:, None], found[:, None])
    np.testing.assert_allclose(errors, [0.1, 0, np.inf, np.inf, 0.01])


def test_half_of_the_images_are_the_heads_closest_decisions(bundles: list[Bundle]) -> None:
    every = reference_images(bundles[0])
    scores = every.predictions(bundles[0])
    margins = dict(zip(every.rows.tolist(), np.abs(scores[:, 0] - scores[:, 1]), strict=True))
    closest = sorted(margins, key=lambda row: margins[row])
    for most in (1, 2, 7, 23):
        rows = reference_images(bundles[0], most=most, closest=True).rows.tolist()
        assert rows == sorted(set(rows))
        assert len(rows) == most
        assert set(closest[: most // 2]) <= set(rows)
    others = [row for row in every.rows.tolist() if row not in closest[:3]]
    rows = reference_images(bundles[0], most=6, closest=True).rows.tolist()
    assert {others[0], others[-1]} <= set(rows)
    for most in (24, 200):
        chosen = reference_images(bundles[0], most=most, closest=True).rows
        np.testing.assert_array_equal(chosen, every.rows)


def test_so_many_images_evenly_spread_or_those_of_the_keys(bundles: list[Bundle]) -> None:
    images = reference_images(bundles[0], most=4)
    names = [(path.parent.parent.name, path.parent.name) for path in images.paths]
    assert names == [("test", "plain")] * 2 + [("test", "striped")] * 2
    keys = images.table.columns.digests[:3]
    chosen = reference_images(bundles[0], keys=keys)
    np.testing.assert_array_equal(np.sort(chosen.table.columns.digests[chosen.rows]), np.sort(keys))
    (found,) = check(bundles[0], most=5)
    assert found.count == 5
    with pytest.raises(NoInputError, match="holds no image"):
        reference_images(bundles[0], keys=keys[:0])


def test_classes_that_differ_are_refused_naming_both(
    bundles: list[Bundle], synthetic_set: Path
) -> None:
    for split in ("train", "validation", "test"):
        (synthetic_set / split / "plain").rename(synthetic_set / split / "smooth")
    with pytest.raises(BadDataError, match=r"smooth, striped.*trained on plain, striped"):
        check(bundles[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", 16), ("preprocessing", "rescale"), ("weights", "0" * 64), ("resize", "crop")],
)
def test_other_features_than_the_caches_are_refused_naming_both(
    bundles: list[Bundle], field: str, value: object
) -> None:
    other = replace(bundles[0], spec=replace(bundles[0].spec, **{field: value}))
    ours = getattr(bundles[0].spec, field)
    with pytest.raises(BadDataError, match=f"{field} {ours}; .*{field} {value}"):
        check(other)


def test_another_layer_or_other_classes_in_the_cache_are_refused(bundles: list[Bundle]) -> None:
    with pytest.raises(BadDataError, match="shape None"):
        check(replace(bundles[0], layer="block9_pool"))
    with pytest.raises(BadDataError, match=r"plain, striped; .*cats, striped"):
        check(replace(bundles[0], classes=("cats", "striped")))


def test_images_or_a_cache_that_are_gone_are_told(
    bundles: list[Bundle], synthetic_set: Path, extraction: Extraction
) -> None:
    synthetic_set.rename(synthetic_set.with_name("elsewhere"))
    with pytest.raises(NoInputError, match="is gone"):
        check(bundles[0])
    extraction.table.path.unlink()
    with pytest.raises(NoInputError, match="does not exist"):
        check(bundles[0])


def test_an_image_that_changed_is_told(bundles: list[Bundle], synthetic_set: Path) -> None:
    picture = synthetic_set / "test" / "plain" / "000.png"
    draw(99, stripes=True).save(picture)
    with pytest.raises(BadDataError, match=r"000\.png is not the image that was cached"):
        check(bundles[0])
    picture.unlink()
    with pytest.raises(BadDataError, match=r"000\.png is not the image that was cached"):
        check(bundles[0])


def test_a_float16_cache_may_differ_more(synthetic_set: Path) -> None:
    done = extract_features(synthetic_set, base="pixels", image_size=8, dtype="float16")
    (outcome,) = compare_heads(done.table.path, heads="logistic", audit=False).outcomes
    assert outcome.bundle is not None
    (found,) = check(outcome.bundle)
    assert (found.tolerance, found.feature_tolerance) == (1e-3, 1e-2)
    assert found.holds


@pytest.fixture
def averaged(synthetic_set: Path) -> tuple[Extraction, list[Bundle]]:
    """Heads whose probabilities are means over four views, and the cache that they are from."""
    done = extract_features(synthetic_set, base="pixels", image_size=8, views=3, tta=True)
    compared = compare_heads(done.table.path, heads=HEADS, audit=False, tta=True)
    return done, [outcome.bundle for outcome in compared.outcomes if outcome.bundle]


def test_means_over_views_are_compared_with_those_of_the_cached_views(
    averaged: tuple[Extraction, list[Bundle]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bundles = averaged
    plain = replace(bundles[0], document=bundles[0].document | {"tta": 0})
    found = check(*bundles, plain)
    assert [each.count for each in found] == [24] * 4
    assert all(each.holds for each in found)
    images = reference_images(bundles[0], most=10, closest=True)
    assert not images.table.columns.views[images.rows].any()
    assert np.abs(images.predictions(bundles[0]) - images.predictions(plain)).max() > 1e-5
    original = Predictor.views
    monkeypatch.setattr(
        Predictor, "views", lambda self, *given: (view[:, ::-1] for view in original(self, *given))
    )
    (found,) = check(bundles[0])
    assert found.feature_error > found.feature_tolerance


def test_views_that_the_cache_lacks_or_draws_otherwise_are_told(
    averaged: tuple[Extraction, list[Bundle]],
) -> None:
    _, (bundle, *_) = averaged
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
    assert not result.holds
    assert str(result).endswith("1 decision of 4 changed")
    same = compare_predictions(expected, expected + 1e-5, tolerance=1e-4)
    assert same.holds
    assert "no decision of 4 changed" in str(same)


def test_predictions_that_are_no_numbers_or_none_at_all_do_not_agree() -> None:
    expected = np.array([[0.9, 0.1]])
    broken = compare_predictions(expected, np.full((1, 2), np.nan), tolerance=1e-4)
    assert not broken.holds
    assert broken.max_difference == float("inf")
    assert not compare_predictions(expected[:0], expected[:0], tolerance=1e-4).holds
    with pytest.raises(BadDataError, match=r"expected probabilities \(1, 2\); received \(1, 3\)"):
        compare_predictions(expected, np.ones((1, 3)) / 3, tolerance=1e-4)
