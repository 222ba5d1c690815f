"""The references: methods that train on images, with new views in every epoch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import assert_one_line, run_command
from feature_sets import alternating_labels, draw_columns, folder_splits
from finetuning_tasks import synthetic_task
from synthetic_images import make_image_folder

from benchmarks import reference_training as module
from benchmarks.reference_training import (
    ImageRows,
    ImageTask,
    scratch_images,
    task_of,
    train_end_to_end,
    train_from_scratch,
)
from benchmarks.references import ReferenceConfig
from pipeline.bases.boundary import find_boundary
from pipeline.bases.build import build_base
from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import PREPROCESSING, find_base
from pipeline.cache.config import ExtractConfig
from pipeline.errors import UsageError
from pipeline.finetuning.config import Plan, Schedule
from pipeline.finetuning.training import RunOptions
from pipeline.heads.config import DenseConfig
from pipeline.images.decode import decode
from pipeline.images.hashes import hash_files
from pipeline.images.scan import scan_folder
from pipeline.images.views import POLICIES, draw_view

SMALL = ["--image-size", "48", "--weights", "random", "--engine", "tensorflow"]
QUICK = ["--head-epochs", "3", "--epochs", "3", "--learning-rate", "1e-4", "--units", "16"]
SHORT = Plan(
    network=DenseConfig(units=16),
    head=Schedule(epochs=2, learning_rate=1e-3),
    joint=Schedule(epochs=2, learning_rate=1e-5),
)


def run_references(root: Path, *options: str) -> dict[str, Any]:
    command = ["benchmarks.references", root, *SMALL, *QUICK, *options, "--json"]
    return dict(json.loads(run_command(*command).stdout))


def rows_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["head"]: row for row in document["rows"]}


def synthetic_image_task(shape: tuple[int, ...]) -> ImageTask:
    task = synthetic_task(shape)
    return ImageTask(task, task.validation)


# ------------------------------------------------------------------------------ the options


def test_convnet_from_scratch_has_no_base_to_unfreeze() -> None:
    assert ReferenceConfig().first_unfrozen == ""
    assert ReferenceConfig(views=0).augmentation is None
    with pytest.raises(UsageError, match="--method scratch has no base"):
        ReferenceConfig(method="scratch", unfreeze="block5_conv1")


def test_default_learning_rates_are_the_books() -> None:
    assert ReferenceConfig().plan.joint.learning_rate == 1e-5
    assert ReferenceConfig(method="scratch").plan.joint.learning_rate == 1e-4
    assert ReferenceConfig(method="scratch", learning_rate=0.1).plan.joint.learning_rate == 0.1


# ------------------------------------------------------------------------------ the images


def test_every_epoch_has_another_view_of_each_image() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    digests = draw_columns(alternating_labels(5)).digests
    indices = np.array([4, 2, 0])
    augmentation = POLICIES["book"]
    rows = ImageRows(pixels, np.arange(3), indices, digests[indices], augmentation)
    ((inputs, labels),) = rows.batches(np.array([2, 1]), size=20, epoch=2)
    assert labels.tolist() == [2, 1]
    for view, index in zip(inputs, (0, 2), strict=True):
        digest = digests[index].tobytes()
        expected = draw_view(pixels[index], augmentation=augmentation, image_digest=digest, view=3)
        np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize(
    "options", [{}, {"split": "50/25/25"}, {"split": "60/20/20", "split_seed": 3}]
)
def test_training_images_are_not_evaluated(options: dict[str, Any]) -> None:
    count = 60
    labels = alternating_labels(count)
    columns = draw_columns(labels, splits=None if options else folder_splits(count))
    config = ReferenceConfig(**options)
    rules = config.classify_config(has_splits=not options).evaluation_protocol
    (trial,) = rules.plan_trials(columns, ("a", "b")).trials
    # of one colour, so that a view equals its image
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), "u1")
    task, predicted = task_of(config, pixels, columns, trial, 2)
    splits = trial.splits
    for rows, expected in (
        (task.train, splits.train),
        (task.validation, splits.validation),
        (predicted, np.concatenate([splits.test, splits.train])),
    ):
        ((images, row_labels),) = rows.batches(np.arange(len(rows)), size=count)
        np.testing.assert_array_equal(images[:, 0, 0, 0], expected)
        np.testing.assert_array_equal(row_labels, columns.labels[expected])
    assert not set(splits.train) & {*splits.validation, *splits.test}
    augmented = [rows.augmentation for rows in (task.train, task.validation, predicted)]
    assert augmented == [POLICIES["book"], None, None]


def test_images_are_decoded_once_and_unreadable_ones_skipped(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "synthetic", per_class=3)
    (root / "plain" / "001.png").write_bytes(b"no image")
    found = scan_folder(root)
    digests, _ = hash_files(found.source, found.paths)
    scratch = scratch_images(found.source, digests, image_size=24, resize="squash", folder=tmp_path)
    with scratch as (pixels, kept, skipped):
        assert [item.path for item in skipped] == [b"plain/001.png"]
        assert len(pixels) == len(kept) == 5
        data = (root / "striped" / "002.png").read_bytes()
        np.testing.assert_array_equal(pixels[4], decode(data, image_size=24, resize="squash"))


# ------------------------------------------------------------------------------ the training


@pytest.mark.slow
def test_end_to_end_trains_head_and_unfrozen_layers_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    base = find_base("mobilenet_v2")
    config = BaseConfig(base=base.name, image_size=32, weights="random", seed=4)
    model, _ = build_base(config)
    before = model.get_weights()
    trained = train_end_to_end(
        model,
        synthetic_image_task((32, 32, 3)),
        RunOptions(),
        rescale=PREPROCESSING[base.preprocessing],
        boundary=find_boundary(model, base, "Conv_1"),
        plan=SHORT,
    )
    assert model.trainable_variables == []
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    lines = [line for line in caplog.messages if "trains" in line]
    assert lines[0].startswith("head: trains 4 tensors, 20,513 parameters: head/hidden_kernel (1")
    assert lines[1].startswith("fine-tuning: trains 5 tensors, 430,113 parameters: Conv_1/kernel")
    assert list(trained) == ["frozen_head", "end_to_end"]
    assert trained["end_to_end"].trained.frozen_head is trained["frozen_head"].trained
    for each in trained.values():  # the predicted rows are those of validation
        expected = each.trained.validation_probabilities
        np.testing.assert_allclose(each.probabilities, expected, atol=1e-6)


def test_convnet_from_scratch_is_the_books(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    schedule = ReferenceConfig(method="scratch").plan.joint
    with pytest.raises(KeyboardInterrupt):
        train_from_scratch(
            synthetic_image_task((150, 150, 3)), RunOptions(progress=stop), schedule=schedule
        )
    (line,) = caplog.messages  # listing 5.6
    assert line.startswith("scratch: trains 12 tensors, 3,453,121 parameters: conv1/kernel (3 × 3")


@pytest.mark.slow
def test_small_convnet_learns() -> None:
    schedule = Schedule(epochs=10, learning_rate=1e-3, patience=10)
    trained, _ = train_from_scratch(
        synthetic_image_task((64, 64, 3)), RunOptions(), schedule=schedule
    )
    assert trained.validation_accuracy > 0.8


# ------------------------------------------------------------------------------ the command


def test_invalid_options_are_one_line(synthetic_set: Path) -> None:
    command = ["benchmarks.references", synthetic_set, "--method", "scratch", "--unfreeze", "conv1"]
    assert "has no base" in assert_one_line(run_command(*command, check=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "heads"),
    [
        (["--method", "end_to_end", "--unfreeze", "block5_conv1"], {"frozen_head", "end_to_end"}),
        (["--method", "scratch", "--views", "0"], {"scratch"}),
    ],
)
def test_references_have_rows_and_a_reason_for_no_saved_model(
    synthetic_set: Path, method: list[str], heads: set[str]
) -> None:
    document = run_references(synthetic_set, *method)
    rows, run = rows_of(document), document["run"]
    assert set(rows) == heads
    assert {row["params"].split()[0] for row in rows.values()} == {
        "augmented=no" if "0" in method else "augmented=yes"
    }
    assert run["method"] == method[1]
    assert all("reference" in row["reason"] for row in run["not_saved"])
    assert (Path(run["folder"]) / "curves.png").is_file()
    assert not list(Path("cache/finetuning").glob("*"))  # deleted after the results are written


@pytest.mark.slow
def test_interrupted_training_continues_to_the_same_model(synthetic_set: Path) -> None:
    config = ReferenceConfig(extract=ExtractConfig(image_size=48), method="scratch", epochs=3)
    config.extract.cache_dir.mkdir()
    uninterrupted = module.train_reference(synthetic_set, config, training=None)
    uninterrupted.checkpoints.remove()

    def stop(stage: str, done: int, total: int) -> None:
        if done > 24:  # in the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.train_reference(synthetic_set, config, training=stop)
    seen: list[int] = []
    again = module.train_reference(
        synthetic_set, config, training=lambda _, done, total: seen.append(done)
    )
    assert min(seen) > 24
    ours, theirs = (each.outcomes[0].result for each in (uninterrupted, again))
    assert ours.log_loss == theirs.log_loss


@pytest.mark.slow
def test_cached_and_end_to_end_training_agree(synthetic_set: Path) -> None:
    """Without views, both train on the same feature maps."""
    finetune = run_command("finetune", synthetic_set, *SMALL, *QUICK, "--dropout", "0", "--json")
    cached = rows_of(json.loads(finetune.stdout))
    unfreeze = ("--unfreeze", "block5_conv1", "--views", "0")
    images = rows_of(run_references(synthetic_set, "--dropout", "0", *unfreeze))
    for one, other in (("frozen_head", "frozen_head"), ("fine_tuned", "end_to_end")):
        for measure in ("validation_accuracy", "test_accuracy", "train_accuracy", "log_loss"):
            assert cached[one][measure] == pytest.approx(images[other][measure], abs=2e-3), measure
