"""A predictor gives the probabilities of the comparison, or an error."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bundle_sets import bundle_of, linear_head
from feature_sets import write_cache
from sklearn.dummy import DummyClassifier

from pipeline.bases.config import BaseConfig
from pipeline.bases.weights import arrays_digest
from pipeline.cache.file import make_columns
from pipeline.engines import Engine
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.images.decode import pixels_digest
from pipeline.images.views import POLICIES, draw_view
from pipeline.models import cached_features, predictor
from pipeline.models.bundle import Bundle
from pipeline.models.predictor import Predictor
from pipeline.spec import FeatureSpec

SIZE = 4
WIDTH = SIZE * SIZE * 3
SPEC = FeatureSpec(
    base="pixels",
    weights="none",
    preprocessing="native",
    image_size=SIZE,
    resize="squash",
    pixels=pixels_digest(SIZE, "squash"),
    dtype="float32",
)
WEIGHTS = np.random.default_rng(0).normal(size=(3, WIDTH))
PIXELS = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
DIGESTS = [bytes([number]) * 32 for number in range(5)]
AUGMENTATION = POLICIES["book"]
TTA = {"tta": 2, "views": 0, "augmentation": AUGMENTATION.to_dict()}


def draw_bundle(spec: FeatureSpec = SPEC, *, factor: float = 1.0, **document: Any) -> Bundle:
    """Return a linear head of three classes on raw pixels, or on the base of another spec."""
    return bundle_of(
        linear_head(WEIGHTS * factor, np.arange(3.0)),
        3,
        spec=spec,
        layer="pixels",
        input="flat",
        shape=(SIZE, SIZE, 3),
        document={"cache": "c.h5", "set": "s", "root": "r", "weights_from": "imagenet"} | document,
    )


def expected_probabilities(features: np.ndarray) -> np.ndarray:
    """Compute the softmax of the head's three decision values."""
    logits = features.reshape(len(features), -1) @ WEIGHTS.T + np.arange(3.0)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class FakeEngine:
    """Counts images; its features are the pixels as fractions."""

    name = "fake"
    version = "1"

    def __init__(self, weights: str, shape: tuple[int, ...] = (SIZE, SIZE, 3)) -> None:
        self.weights = weights
        self.row_shapes = {"pixels": shape}
        self.batches: list[int] = []

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.batches.append(len(images))
        return {"pixels": images[:, :SIZE, :SIZE].astype(np.float32) / 255}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Replace every engine; return the options that it was opened with."""

    def install(fake: FakeEngine) -> list[dict[str, Any]]:
        opened: list[dict[str, Any]] = []

        def open_engine(config: BaseConfig, layers: tuple[str, ...]) -> Engine:
            opened.append({**vars(config), "layers": layers})
            return fake

        monkeypatch.setattr(predictor, "open_engine", open_engine)
        return opened

    return install


def open_bundle(bundle: Bundle, **options: Any) -> Predictor:
    return Predictor(bundle, cache_dir=Path("cache"), **options)


def write_weights(path: Path, seed: int) -> str:
    """Write a weights file; return its digest."""
    arrays = [np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)]
    with h5py.File(path, "w") as file:
        file["kernel"] = arrays[0]
    return arrays_digest(arrays)


def test_probabilities_are_those_of_the_head_on_the_pixels_features() -> None:
    probabilities = open_bundle(draw_bundle()).probabilities(PIXELS, DIGESTS)
    np.testing.assert_allclose(probabilities, expected_probabilities(PIXELS / 255), atol=1e-6)
    assert probabilities.dtype == np.float64


VGG16 = replace(SPEC, base="vgg16", image_size=32, pixels=pixels_digest(32, "squash"))
LARGER = np.zeros((5, 32, 32, 3), np.uint8)


def test_engine_is_opened_once_as_trained_and_fed_in_batches(
    engine: Callable[..., list[dict[str, Any]]],
) -> None:
    spec = replace(VGG16, weights="random-7")
    fake = FakeEngine("random-7")
    opened = engine(fake)
    made = open_bundle(draw_bundle(spec), batch_size=2)
    assert opened == []
    made.features(LARGER)
    assert fake.batches == [2, 2, 1]
    (options,) = opened
    assert options["base"] == "vgg16"
    assert options["seed"] == 7
    assert options["image_size"] == 32
    assert options["layers"] == ("pixels",)
    assert options["batch_size"] == 2


def test_many_images_give_the_same_as_one_by_one() -> None:
    made = open_bundle(draw_bundle(), batch_size=2)
    alone = [
        made.probabilities(PIXELS[place : place + 1], DIGESTS[place : place + 1])[0]
        for place in range(5)
    ]
    np.testing.assert_allclose(made.probabilities(PIXELS, DIGESTS), alone, atol=1e-12)


@pytest.mark.parametrize(
    "pixels", [PIXELS.astype(np.float32), PIXELS[:, :3], PIXELS[..., :1], PIXELS[0]]
)
def test_other_pixels_are_refused_naming_both(pixels: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"expected pixels \(B, 4, 4, 3\) uint8; received"):
        open_bundle(draw_bundle()).probabilities(pixels, DIGESTS)


def test_another_decoder_is_refused_naming_both() -> None:
    bundle = draw_bundle(replace(SPEC, pixels="ab" * 32))
    with pytest.raises(BadDataError, match="abababababab…") as caught:
        open_bundle(bundle)
    assert SPEC.pixels[:12] in str(caught.value)
    assert "extract and classify again" in str(caught.value)


def test_other_weights_are_refused_before_anything_is_loaded(
    engine: Callable[..., list[dict[str, Any]]],
) -> None:
    right, wrong = (write_weights(Path(f"{seed}.h5"), seed) for seed in (1, 2))
    spec = replace(VGG16, weights=right)
    opened = engine(FakeEngine(right))
    with pytest.raises(BadDataError, match=f"{right[:12]}….*{wrong[:12]}….*2.h5"):
        open_bundle(draw_bundle(spec), weights="2.h5")
    with pytest.raises(BadDataError, match=f"{right[:12]}….*{wrong[:12]}….*2.h5"):
        open_bundle(draw_bundle(spec, weights_from="2.h5")).probabilities(LARGER, DIGESTS)
    assert opened == []
    for bundle, weights in (
        (draw_bundle(spec, weights_from="1.h5"), None),
        (draw_bundle(spec, weights_from="moved.h5"), "1.h5"),
    ):
        assert open_bundle(bundle, weights=weights).probabilities(LARGER, DIGESTS).shape == (5, 3)


def test_other_weights_are_refused_when_loaded(
    engine: Callable[..., list[dict[str, Any]]],
) -> None:
    engine(FakeEngine("cd" * 32))
    with pytest.raises(BadDataError, match=r"abababababab….*cdcdcdcdcdcd…"):
        open_bundle(draw_bundle(replace(VGG16, weights="ab" * 32))).probabilities(LARGER, DIGESTS)


@pytest.mark.parametrize("place", ["nowhere.h5", "~nobody/x.h5", "a\0b", "random"])
def test_missing_weights_are_an_error_that_names_weights(place: str) -> None:
    bundle = draw_bundle(replace(SPEC, base="vgg16", weights="ab" * 32), weights_from=place)
    with pytest.raises(NoInputError, match="pass their new path with --weights FILE"):
        open_bundle(bundle).probabilities(PIXELS, DIGESTS)


@pytest.mark.parametrize("layer", ["block9", "pixels:avg"])
def test_unknown_layer_of_a_bundle_is_bad_data(layer: str) -> None:
    with pytest.raises(BadDataError, match="the model"):
        open_bundle(replace(draw_bundle(), layer=layer)).probabilities(PIXELS, DIGESTS)


def test_features_are_rounded_as_the_training_cache_rounded_them() -> None:
    made = open_bundle(draw_bundle(replace(SPEC, dtype="float16")))
    rounded = (PIXELS.astype(np.float32) / 255).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(
        made.probabilities(PIXELS, DIGESTS), expected_probabilities(rounded), atol=1e-9
    )


@pytest.mark.parametrize(("dtype", "value"), [("float32", np.nan), ("float16", 1e6)])
def test_features_that_are_not_finite_are_refused(dtype: str, value: float) -> None:
    features = np.full((2, SIZE, SIZE, 3), value, np.float32)
    with pytest.raises(BadDataError, match=f"not finite as {dtype}"):
        open_bundle(draw_bundle(replace(SPEC, dtype=dtype))).classify(features)


@pytest.mark.parametrize("weight", [1e308, np.nan])
def test_invalid_scores_are_refused_naming_the_model(weight: float) -> None:
    head = linear_head(np.full((3, WIDTH), weight), np.zeros(3))
    made = open_bundle(replace(draw_bundle(), estimator=head))
    with pytest.raises(
        BadDataError, match="the model synthetic on pixels gave scores that are not finite"
    ) as caught:
        made.probabilities(PIXELS, DIGESTS)
    assert caught.value.exit_code == 65


def test_probabilities_below_zero_are_refused() -> None:
    head = DummyClassifier().fit(np.zeros((3, WIDTH)), [0, 1, 2])
    head.class_prior_ = np.array([1.5, 0.5, -1.0])
    bundle = replace(draw_bundle(), estimator=head)
    with pytest.raises(
        BadDataError, match=r"on pixels gave predict_proba from -1 to 1\.5 .*: classify again"
    ):
        open_bundle(bundle).probabilities(PIXELS, DIGESTS)


def test_invalid_seed_of_a_bundle_is_bad_data() -> None:
    bundle = draw_bundle(replace(SPEC, base="vgg16", weights="random-9999999999"))
    with pytest.raises(BadDataError, match="the model cannot be used"):
        open_bundle(bundle).base_config()


def test_batch_size_is_at_least_one() -> None:
    with pytest.raises(UsageError, match="--batch-size"):
        open_bundle(draw_bundle(), batch_size=0)


def test_uncached_images_have_no_cached_outputs() -> None:
    assert list(open_bundle(draw_bundle()).cached_outputs(DIGESTS)) == []
    assert list(open_bundle(draw_bundle(), use_cache=True).cached_outputs(DIGESTS)) == []


# ----------------------------------------------------------------------- means over views


def views_of(views: range) -> np.ndarray:
    """Return views of the images as in a cache: (V, 5, S, S, 3) float32."""
    views = [
        draw_view(pixels, augmentation=AUGMENTATION, image_digest=digest, view=view)
        for view in views
        for pixels, digest in zip(PIXELS, DIGESTS, strict=True)
    ]
    return np.reshape(views, (-1, *PIXELS.shape)) / np.float32(255)


def expected_means() -> np.ndarray:
    return np.mean([expected_probabilities(view) for view in views_of(range(3))], axis=0)


def test_probabilities_are_means_over_the_views_of_the_training() -> None:
    made = open_bundle(draw_bundle(**TTA), batch_size=2)
    found = made.probabilities(PIXELS, DIGESTS)
    np.testing.assert_allclose(found, expected_means(), atol=1e-6)
    assert np.abs(found - expected_probabilities(PIXELS / 255)).max() > 0.01
    assert made.describe()["tta"] == 2
    alone = made.probabilities(PIXELS[3:4], DIGESTS[3:4])[0]
    np.testing.assert_allclose(alone, found[3], atol=1e-12)


def write_views(name: str, numbers: range, *, images: slice = slice(None), **plan: Any) -> None:
    """Write a cache of views of some images; ``plan`` replaces entries of its document."""
    digests = DIGESTS[images]
    rows = [(digest, view) for digest in digests for view in numbers]
    columns = make_columns(
        labels=[0] * len(rows),
        splits=[0] * len(rows),
        paths=[digest.hex().encode() for digest, _ in rows],
        digests=[digest for digest, _ in rows],
        views=[view for _, view in rows],
    )
    features = views_of(numbers)[:, images].swapaxes(0, 1).reshape(-1, SIZE, SIZE, 3)
    path = Path("cache") / f"{name}-{SPEC.fingerprint}.h5"
    write_cache(path, labels=[], spec=SPEC, columns=columns, layers={"pixels": features})
    with h5py.File(path, "r+") as file:
        document = json.loads(file["spec"].asstr()[()])
        del file["spec"]
        file["spec"] = json.dumps(document | plan)


PLAN = {"views": 3, "tta": True, "augmentation": AUGMENTATION.to_dict()}


def test_cached_views_are_used_for_images_that_have_all_of_them() -> None:
    write_views("all", range(4), images=slice(0, 2), **PLAN)
    write_views("too few", range(2), images=slice(2, 3), **PLAN | {"views": 1})
    other = replace(AUGMENTATION, seed=1).to_dict()
    write_views("others", range(4), images=slice(3, 4), **PLAN | {"augmentation": other})
    write_views("odd", range(4), images=slice(4, 5), **PLAN | {"augmentation": "book"})
    ((digests, found),) = open_bundle(draw_bundle(**TTA), use_cache=True).cached_outputs(DIGESTS)
    assert digests == DIGESTS[:2]
    np.testing.assert_allclose(
        [output.probabilities for output in found], expected_means()[:2], atol=1e-6
    )
    plain = open_bundle(draw_bundle(), use_cache=True)
    assert (
        sorted(digest for digests, _ in plain.cached_outputs(DIGESTS) for digest in digests)
        == DIGESTS
    )


def test_cached_views_are_read_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    write_views("all", range(3), **PLAN)
    monkeypatch.setattr(cached_features, "ROWS_PER_BLOCK", 6)
    blocks = list(open_bundle(draw_bundle(**TTA), use_cache=True).cached_outputs(DIGESTS))
    assert [len(digests) for digests, _ in blocks] == [2, 2, 1]
    found = np.stack([output.probabilities for _, outputs in blocks for output in outputs])
    np.testing.assert_allclose(found, expected_means(), atol=1e-6)
