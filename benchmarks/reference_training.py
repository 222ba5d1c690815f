"""Train the reference methods on images, with new views in every epoch.

They are those of *Deep Learning with Python*, 5.2 and 5.3: a head on a frozen base, end to end with
augmentation; end-to-end fine-tuning; a small convnet from scratch.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.references import ReferenceConfig
from pipeline.bases.boundary import Boundary, find_boundary, unfrozen
from pipeline.bases.build import build_base, preprocess
from pipeline.bases.registry import Rescale
from pipeline.cache.file import Columns, make_columns
from pipeline.cache.provenance import feature_spec
from pipeline.evaluation.metrics import accuracy_of
from pipeline.evaluation.protocol import TrialPlan
from pipeline.evaluation.result import Fit, Outcome, Result
from pipeline.evaluation.scoring import summarize
from pipeline.evaluation.splits import Trial
from pipeline.finetuning.checkpoints import CheckpointFolder
from pipeline.finetuning.config import Plan, Schedule
from pipeline.finetuning.from_cache import HEAD_STAGE, JOINT_STAGE, head_variables
from pipeline.finetuning.method_result import MethodResult, notices_of
from pipeline.finetuning.rows import Array, Indices, Rows, scratch_array
from pipeline.finetuning.training import (
    RunOptions,
    StageProgress,
    Task,
    TrainableModel,
    TrainingResult,
    train,
)
from pipeline.heads.calibration import fit_temperature
from pipeline.heads.dense import build_dense
from pipeline.images.hashes import hash_files
from pipeline.images.reader import read_images
from pipeline.images.scan import NO_SPLIT, ImageSet, Skipped, scan_folder
from pipeline.images.source import ImageSource
from pipeline.images.views import Augmentation, draw_view
from pipeline.keras_backend import keras, tf
from pipeline.text import printable

NOT_SAVED = "a reference for comparison: pipeline.finetune saves models"
SCRATCH_STAGE = "scratch"


@dataclass(frozen=True)
class ImageRows(Rows):
    """Images (N, S, S, 3) uint8 of a larger array, with their labels.

    Attributes
    ----------
    indices : (N,) index of each row in ``inputs``.
    digests : (N,) void, SHA-256 of each file.
    augmentation : the first epoch gets view 1 of each image, the second view 2, and so on; None
        for unaugmented images.
    """

    indices: Indices
    digests: npt.NDArray[np.void]
    augmentation: Augmentation | None = None

    def read(self, rows: Indices, epoch: int) -> Array:
        """Return these rows for an epoch, from 0: (B, S, S, 3) uint8."""
        pixels = np.asarray(self.inputs[self.indices[rows]])
        if self.augmentation is None:
            return pixels
        views = [
            draw_view(
                image, augmentation=self.augmentation, image_digest=digest.tobytes(), view=epoch + 1
            )
            for image, digest in zip(pixels, self.digests[rows], strict=True)
        ]
        return np.stack(views)


class ImageTask(NamedTuple):
    """A training task, and the rows to predict after training."""

    training: Task
    predicted: Rows


class Reference(NamedTuple):
    """A trained network and its probabilities (P, K) for the predicted rows."""

    trained: TrainingResult
    probabilities: npt.NDArray[np.float64]


def train_reference(
    data: Path, config: ReferenceConfig, *, training: StageProgress | None
) -> MethodResult:
    """Train a head, or also the last layers, on a whole base; or a convnet without a base."""
    images, extract = scan_folder(data), config.extract
    index_folder = extract.cache_dir / "hashes"
    digests, unreadable = hash_files(images.source, images.paths, index_folder=index_folder)
    with scratch_images(
        images.source,
        digests,
        image_size=extract.size,
        resize=extract.resize,
        folder=extract.cache_dir,
    ) as (pixels, kept, skipped):
        columns = _columns_of(images, {path: digests[path] for path in kept})
        has_splits = bool((columns.splits != NO_SPLIT).any())
        trial_plan = config.classify_config(has_splits=has_splits).evaluation_protocol.plan_trials(
            columns, images.classes
        )
        (trial,) = trial_plan.trials
        task = task_of(config, pixels, columns, trial, len(images.classes))
        row, source = _describe(config, images, trial_plan)
        identity = f"{config.method} {source['spec']}"
        checkpoints = CheckpointFolder.of(config, columns, trial, features=identity)
        options = RunOptions(identity=checkpoints.identity, progress=training)
        by_seed = [
            _train(config, task, replace(options, seed=seed, checkpoints=checkpoints.of_seed(seed)))
            for seed in trial.seeds
        ]
    outcomes = [
        _outcome(replace(row, head=head), config, [each[head] for each in by_seed], columns, trial)
        for head in by_seed[0]
    ]
    last = [list(each.values())[-1].trained for each in by_seed]
    return MethodResult(
        outcomes=outcomes,
        classes=images.classes,
        trial_plan=trial_plan,
        source=source,
        checkpoints=checkpoints,
        notices=notices_of([*images.skipped, *unreadable, *skipped], last, trial.seeds),
    )


def _columns_of(images: ImageSet, digests: Mapping[bytes, bytes]) -> Columns:
    """Return a row for each readable image; ``digests`` are path -> SHA-256."""
    files = [file for file in images.files if file.path in digests]
    return make_columns(
        labels=[file.label for file in files],
        splits=[file.split for file in files],
        paths=[file.path for file in files],
        digests=[digests[file.path] for file in files],
        views=[0] * len(files),
    )


@contextlib.contextmanager
def scratch_images(
    source: ImageSource,
    digests: Mapping[bytes, bytes],
    *,
    image_size: int,
    resize: str,
    folder: Path,
) -> Iterator[tuple[Array, list[bytes], list[Skipped]]]:
    """Decode images once into a `scratch_array` of (N, S, S, 3) uint8.

    Yields the array, the paths of its rows, and the skipped files.
    """
    kept: list[bytes] = []
    skipped: list[Skipped] = []

    def decoded() -> Iterator[Array]:
        images = read_images(source, digests, image_size=image_size, resize=resize)
        with contextlib.closing(images):
            for path, pixels in images:
                if isinstance(pixels, Skipped):
                    skipped.append(pixels)
                else:
                    kept.append(path)
                    yield pixels[None]

    shape = (len(digests), image_size, image_size, 3)
    with scratch_array(decoded(), shape=shape, dtype="uint8", folder=folder) as pixels:
        yield pixels, kept, skipped


def _describe(
    config: ReferenceConfig, images: ImageSet, trial_plan: TrialPlan
) -> tuple[Result, dict[str, Any]]:
    """Return the row of the table without scores, and the source of images for results.json.

    There is no cache, and a convnet from scratch has no base.
    """
    extract, base, layer = config.extract, "none", "images"
    spec = {"base": base, "preprocessing": "rescale", "image_size": extract.size,
            "resize": extract.resize}  # fmt: skip
    fingerprint = ""
    if config.method != "scratch":
        features = feature_spec(extract)
        spec, fingerprint = asdict(features), features.fingerprint
        base, layer = features.base, extract.network.last_layer
    path = printable(images.root)
    row = Result(
        head="",
        input="flat",
        base=base,
        layer=layer,
        image_size=extract.size,
        fingerprint=fingerprint,
        cache=path,
    )
    source = {
        "path": path,
        "set": printable(images.name),
        "layers": [layer],
        "fingerprint": fingerprint,
        "spec": spec,
        "engine": None,
        "views": 0,
        "tta": 0,
        "split_source": trial_plan.source,
        "split_counts": trial_plan.trials[0].splits.counts,
    }
    return row, source


def task_of(
    config: ReferenceConfig,
    pixels: npt.NDArray[np.uint8],
    columns: Columns,
    trial: Trial,
    class_count: int,
) -> ImageTask:
    """Return the training task; the predicted rows are test, then training without views."""
    splits = trial.splits

    def rows_of(images: Indices, augmentation: Augmentation | None = None) -> Rows:
        labels, digests = columns.labels[images], columns.digests[images]
        return ImageRows(pixels, labels, images, digests, augmentation)

    training = Task(
        train=rows_of(splits.train, config.augmentation),
        validation=rows_of(splits.validation),
        class_count=class_count,
    )
    return ImageTask(training, rows_of(np.concatenate([splits.test, splits.train])))


def _train(config: ReferenceConfig, task: ImageTask, options: RunOptions) -> dict[str, Reference]:
    """Train with one seed: head -> its network, in the order of training."""
    if config.method == "scratch":
        return {"scratch": train_from_scratch(task, options, schedule=config.plan.joint)}
    base_model, _ = build_base(config.extract)
    boundary = None
    if config.first_unfrozen:
        boundary = find_boundary(base_model, config.extract.network, config.first_unfrozen)
    return train_end_to_end(
        base_model,
        task,
        options,
        rescale=config.extract.rescale,
        boundary=boundary,
        plan=config.plan,
    )


def train_end_to_end(
    base_model: Any,
    task: ImageTask,
    options: RunOptions,
    *,
    rescale: Rescale,
    boundary: Boundary | None,
    plan: Plan,
) -> dict[str, Reference]:
    """Train a head on the whole base, then, with a boundary, also the layers above it.

    Parameters
    ----------
    base_model : frozen, as `build_base` returns it; its weights are restored.
    rescale : preprocessing.

    Returns ``frozen_head`` and, with a boundary, ``end_to_end``.
    """
    images = keras.Input(task.training.train.inputs.shape[1:], dtype="uint8")
    body = keras.Model(images, base_model(preprocess(images, rescale)))
    head = build_dense(body.output_shape[1:], task.training.class_count, plan.network, options.seed)
    network = TrainableModel(head, head_variables(head), body)
    trained = {"frozen_head": _fit(network, task, plan.head, options, stage=HEAD_STAGE)}
    if boundary is not None:
        with unfrozen(base_model, boundary) as variables:
            network = TrainableModel(head, variables | head_variables(head), body)
            tuned = _fit(network, task, plan.joint, options, stage=JOINT_STAGE)
        after = replace(tuned.trained, frozen_head=trained["frozen_head"].trained)
        trained["end_to_end"] = tuned._replace(trained=after)
    return trained


def train_from_scratch(
    task: ImageTask, options: RunOptions, *, schedule: Schedule, dropout: float = 0.5
) -> Reference:
    """Train the book's small convnet, without a pretrained base.

    ``dropout`` is the rate before the first dense layer: 0 in listing 5.5, 0.5 in 5.13.
    """
    shape = task.training.train.inputs.shape[1:]
    model = build_small_convnet(
        shape, task.training.class_count, dropout=dropout, seed=options.seed
    )
    variables = {
        f"{layer.name}/{variable.name}": variable
        for layer in model.layers
        for variable in layer.trainable_variables
    }
    return _fit(TrainableModel(model, variables), task, schedule, options, stage=SCRATCH_STAGE)


def build_small_convnet(
    shape: tuple[int, ...], class_count: int, *, dropout: float, seed: int
) -> Any:
    """Build four convolutions with max-pooling, then dense layers (DLwP listings 5.5 and 5.13).

    uint8 images (B, S, S, 3) -> (B, 1) or (B, K); 3,453,121 parameters at 150 pixels.
    """
    seeds = iter(np.random.default_rng(seed).integers(2**31, size=6).tolist())

    def seeded() -> dict[str, Any]:
        return {"kernel_initializer": keras.initializers.GlorotUniform(next(seeds))}

    layers = [keras.Input(shape, dtype="uint8"), keras.layers.Rescaling(1 / 255)]
    for number, filters in enumerate((32, 64, 128, 128), 1):
        name = f"conv{number}"
        layers.append(keras.layers.Conv2D(filters, 3, activation="relu", name=name, **seeded()))
        layers.append(keras.layers.MaxPooling2D())
    outputs, activation = (1, "sigmoid") if class_count == 2 else (class_count, "softmax")
    layers += [
        keras.layers.Flatten(),
        keras.layers.Dropout(dropout),
        keras.layers.Dense(512, activation="relu", name="hidden", **seeded()),
        keras.layers.Dense(outputs, activation=activation, name="output", **seeded()),
    ]
    return keras.Sequential(layers)


def _fit(
    network: TrainableModel, task: ImageTask, schedule: Schedule, options: RunOptions, *, stage: str
) -> Reference:
    """Train a network, then predict with the weights of the best epoch."""
    trained = train(network, task.training, schedule, options, stage=stage)
    forward = tf.function(lambda images: network(images, training=False))
    order = np.arange(len(task.predicted))
    with contextlib.closing(task.predicted.batches(order, size=schedule.batch_size)) as batches:
        outputs = np.concatenate([forward(tf.constant(images)).numpy() for images, _ in batches])
    probabilities = outputs.astype(np.float64)
    if outputs.shape[1] == 1:
        probabilities = np.hstack([1 - probabilities, probabilities])
    return Reference(trained, probabilities / probabilities.sum(axis=1, keepdims=True))


def _outcome(
    row: Result,
    config: ReferenceConfig,
    references: Sequence[Reference],
    columns: Columns,
    trial: Trial,
) -> Outcome:
    """Summarize the networks of one head, one for each seed of the trial."""
    params = {"augmented": "yes" if config.augmentation else "no"}
    if row.head == "end_to_end":
        params["unfreeze"] = config.first_unfrozen
    splits, labels = trial.splits, columns.labels
    truth = labels[splits.validation]
    fits = []
    for seed, (trained, probabilities) in zip(trial.seeds, references, strict=True):
        validation = trained.validation_probabilities
        test, train_rows = np.split(probabilities, [len(splits.test)])
        head_seconds = trained.frozen_head.seconds if trained.frozen_head else ()
        fits.append(
            Fit(
                seed=seed,
                params=params,
                parameters=sum(each.size for each in trained.weights.values()),
                temperature=fit_temperature(truth, validation, has_probabilities=True),
                validation_scores=validation,
                validation_accuracy=accuracy_of(truth, validation),
                validation_balanced_accuracy=accuracy_of(truth, validation, balanced=True),
                history=trained.history,
                fit_seconds=sum(trained.seconds) + sum(head_seconds),
                test_scores=test,
                train_accuracy=accuracy_of(labels[splits.train], train_rows),
            )
        )
    outcome = summarize(row, [fits], [trial], columns, folds=0)
    return replace(outcome, not_saved=NOT_SAVED)
