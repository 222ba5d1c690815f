"""Heat maps on real photographs: the maximum lies on an animal that is pasted on a known place."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.stats import spearmanr
from whole_networks import gradcam_through_network

from pipeline import compare_heads, extract_features
from pipeline.images.decode import decode
from pipeline.models.heatmaps import Heatmap, heatmaps
from pipeline.models.predictor import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

CASES, TRAIN = 50, 150


def photographs(assets: Path, split: str, name: str, count: int) -> list[Path]:
    return sorted((assets / "data" / "cats_and_dogs" / split / name).iterdir())[:count]


def paste(
    animal: Path, other: Path, size: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of a photograph on a blurred one, half as wide, and its corner."""
    background = Image.open(other).convert("RGB").resize((size, size))
    background = background.filter(ImageFilter.GaussianBlur(size / 8))
    photo = Image.open(animal).convert("RGB")
    side = int(min(photo.size) * 0.8)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    middle = photo.crop((left, top, left + side, top + side)).resize((size // 2, size // 2))
    corner = random.integers(0, size - size // 2 + 1, 2)
    background.paste(middle, (int(corner[0]), int(corner[1])))
    return np.asarray(background), corner


def is_on_object(heatmap: Heatmap, corner: np.ndarray, size: int) -> bool:
    """Return whether the middle of the position with the highest value is on the object."""
    height, width = heatmap.values.shape
    row, column = np.unravel_index(heatmap.values.argmax(), heatmap.values.shape)
    place = np.array([(column + 0.5) / width, (row + 0.5) / height]) * size
    return bool(((corner <= place) & (place <= corner + size // 2)).all())


@pytest.mark.parametrize(("base", "size"), [("mobilenet_v2", 224), ("vgg16", 150)])
def test_maximum_lies_on_the_pasted_animal(base: str, size: int, assets: Path) -> None:
    """For pairs that a head classifies as the pasted animal, in the maps of its last layer."""
    for split, count in (("train", TRAIN), ("validation", 20), ("test", 20)):
        for name in ("cats", "dogs"):
            folder = Path("pets", split, name)
            folder.mkdir(parents=True)
            for path in photographs(assets, split, name, count):
                shutil.copy(path, folder)
    weights = assets / "weights" / "mobilenet_v2_imagenet_notop.weights.h5"
    options: dict[str, Any] = {"weights": str(weights)} if base == "mobilenet_v2" else {}
    done = extract_features("pets", base=base, image_size=size, **options)
    compared = compare_heads(done.table.path, heads="logistic,dense", audit=False)
    random = np.random.default_rng(0)
    cats, dogs = (photographs(assets, "validation", name, 80)[20:] for name in ("cats", "dogs"))
    pairs = [*zip(cats, dogs, strict=True), *zip(dogs, cats, strict=True)]
    labels = np.repeat([0, 1], len(cats))
    pasted = [paste(*pair, size, random) for pair in pairs]
    bundles = {outcome.result.head: outcome.bundle for outcome in compared.outcomes}
    for head, bundle in bundles.items():
        assert bundle is not None
        predictor = Predictor(bundle, cache_dir=Path("cache"))
        if head == next(iter(bundles)):
            maps = predictor.features(np.stack([image for image, _ in pasted]))
        is_right = predictor.classify(maps).argmax(axis=1) == labels
        found = zip(heatmaps(bundle, maps, labels), pasted, strict=True)
        hits = [is_on_object(heatmap, corner, size) for heatmap, (_, corner) in found]
        cases = np.random.default_rng(1).permutation(np.flatnonzero(is_right))[:CASES]
        assert len(cases) == CASES
        assert np.mean(np.array(hits)[cases]) >= 0.8, head


def test_gradcam_equals_that_through_mobilenet(assets: Path) -> None:
    weights = assets / "weights" / "mobilenet_v2_imagenet_notop.weights.h5"
    photographs = assets / "data" / "cats_and_dogs"
    options: dict[str, Any] = {"base": "mobilenet_v2", "image_size": 96, "weights": str(weights)}
    table = extract_features(photographs, limit_per_class=10, **options).table
    compared = compare_heads(table.path, heads="logistic,logistic:flat,dense", audit=False)
    assert len(compared.outcomes) == 3
    for outcome in compared.outcomes:
        assert outcome.bundle is not None
        predictor = Predictor(outcome.bundle, cache_dir=Path("cache"))
        files = sorted((photographs / "test" / "dogs").iterdir())[:8]
        pixels = np.stack([decode(file.read_bytes(), image_size=96) for file in files])
        config = predictor.base_config()
        maps, expected = gradcam_through_network(outcome.bundle, config, pixels)
        found = [each.values for each in heatmaps(outcome.bundle, maps, [1] * 8, "gradcam")]
        assert spearmanr(np.ravel(found), np.ravel(expected)).statistic > 0.9999
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
        engine = predictor.features(pixels)  # not the network's own maps
        found = [each.values for each in heatmaps(outcome.bundle, engine, [1] * 8, "gradcam")]
        assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
