"""Real weights and photographs: a saved and an exported fine-tuned VGG16 predict as in training."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import extract_features, load_model
from pipeline.api import predict_images
from pipeline.models.bundle import Bundle, load_bundle, save_bundle
from pipeline.models.export import export_bundle, predict_elsewhere
from pipeline.models.image_predictions import Prediction
from pipeline.models.parity import check_parity

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

PER_CLASS = 10


@pytest.fixture(scope="module")
def lab(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """Return a folder with ``cache/`` and ``copies/`` of photographs, and VGG16's last block
    after ten training steps on them."""

    from pipeline.bases.boundary import find_boundary, unfrozen, upper_model
    from pipeline.bases.build import build_base
    from pipeline.bases.config import BaseConfig
    from pipeline.bases.registry import find_base
    from pipeline.heads.config import DenseConfig
    from pipeline.heads.dense import build_dense
    from pipeline.keras_backend import keras
    from pipeline.models.top_block import HEAD_WEIGHTS, top_block

    folder = tmp_path_factory.mktemp("lab")
    base = find_base("vgg16")
    done = extract_features(
        assets / "data" / "cats_and_dogs",
        layers=["block4_pool"],
        limit_per_class=PER_CLASS,
        cache_dir=folder / "cache",
    )
    table = done.table
    for path in table.columns.paths:
        copy = folder / "copies" / os.fsdecode(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(table.document["root"]) / os.fsdecode(path), copy)
    train = np.flatnonzero(table.columns.splits == 1)
    base_model, _ = build_base(BaseConfig(cache_dir=folder / "cache"))
    boundary = find_boundary(base_model, base, "block5_conv1")
    upper = upper_model(base_model, boundary)
    head = build_dense(upper.output_shape[1:], 2, DenseConfig(), 0)
    with unfrozen(base_model, boundary) as variables:
        before = {name: variable.numpy() for name, variable in variables.items()}
        model = keras.Sequential([keras.Input(boundary.shape), upper, head])
        model.compile(keras.optimizers.RMSprop(1e-4), "binary_crossentropy")
        maps, labels = table.features("block4_pool", train), table.columns.labels[train]
        model.fit(maps, labels, batch_size=10, epochs=5, verbose=0)
        trained = {name: variable.numpy() for name, variable in variables.items()}
    assert all(np.abs(trained[name] - before[name]).max() > 1e-5 for name in before)
    trained |= {
        f"head/{name}": variable.numpy()
        for name, variable in zip(HEAD_WEIGHTS, head.trainable_variables, strict=True)
    }
    bundle = Bundle(
        head="fine_tuned",
        params="unfreeze=block5_conv1",
        estimator=top_block(base_model, base, 150, boundary, trained, 2, DenseConfig()),
        spec=table.spec,
        layer="block4_pool",
        input="flat",
        shape=boundary.shape,
        classes=table.classes,
        document={
            "cache": os.fspath(table.path.resolve()),
            "set": table.document["set"],
            "root": table.document["root"],
            "weights_from": "imagenet",
            "engine": table.document["engine"],
        },
    )
    save_bundle(bundle, folder / "fine_tuned.skops")
    return folder, bundle


def measured(folder: Path, bundle: Bundle) -> dict[bytes, np.ndarray]:
    """Return the probabilities of the cached test maps, by the digest of the image."""
    from pipeline import load_features

    (path,) = (folder / "cache").glob("*.h5")
    table = load_features(path)
    test = np.flatnonzero(table.columns.splits == 3)
    scores = bundle.estimator.predict_proba(
        table.features("block4_pool", test).reshape(len(test), -1)
    )
    digests = [digest.tobytes() for digest in table.columns.digests[test]]
    return dict(zip(digests, scores, strict=True))


def test_photographs_are_predicted_and_compared_as_in_training(
    lab: tuple[Path, Bundle],
) -> None:
    folder, bundle = lab
    expected = measured(folder, bundle)
    assert len(expected) == 2 * PER_CLASS
    path = folder / "fine_tuned.skops"
    (parity,) = check_parity([load_bundle(path)], cache_dir=folder / "cache")
    print(f"check: {parity}, features {parity.feature_error:.1e}")
    parity.raise_for_difference("the fine-tuned model")
    for use_cache in (True, False):
        made = predict_images(
            folder / "copies" / "test", model=path, cache_dir=folder / "cache", use_cache=use_cache
        )
        found = [item for item in made if isinstance(item, Prediction)]
        assert len(found) == len(expected)
        for item in found:
            assert item.cached == use_cache
            content = Path(os.fsdecode(item.path)).read_bytes()
            digest = hashlib.sha256(content).digest()
            np.testing.assert_allclose(item.probabilities, expected[digest], atol=1e-4)
    paths = sorted((folder / "copies" / "test").rglob("*.jpg"))
    loaded = load_model(path, cache_dir=folder / "cache")
    scores = [expected[hashlib.sha256(path.read_bytes()).digest()] for path in paths]
    np.testing.assert_allclose(loaded.predict_proba(paths), scores, atol=1e-4)


@pytest.mark.parametrize("format", ["keras", "onnx"])
def test_exported_model_predicts_copies_as_in_training_without_this_project(
    lab: tuple[Path, Bundle], format: str, tmp_path: Path
) -> None:
    folder, bundle = lab
    done = export_bundle(
        folder / "fine_tuned.skops",
        format=format,
        out=tmp_path / format,
        cache_dir=folder / "cache",
        check_images=10,
    )
    assert done.parity.agrees
    paths = sorted((folder / "copies" / "test").rglob("*.jpg"))
    found = predict_elsewhere(done.folder / "predict.py", paths)
    by_content = measured(folder, bundle)
    scores = [by_content[hashlib.sha256(path.read_bytes()).digest()] for path in paths]
    difference = np.abs(found - scores).max()
    print(f"{format}: largest difference {difference:.1e}; {done.parity}")
    assert difference <= 1e-4
    np.testing.assert_array_equal(found.argmax(axis=1), np.argmax(scores, axis=1))
