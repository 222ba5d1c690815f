"""Make synthetic comparisons: results, audit and images, without fitting heads."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from feature_sets import SPEC, write_cache
from synthetic_images import draw

from pipeline.cache.file import FeatureTable, make_columns, read_table
from pipeline.evaluation.audit import AuditResult
from pipeline.evaluation.duplicates import DuplicatePair
from pipeline.evaluation.learning_curve import LearningCurve
from pipeline.evaluation.result import Comparison, HeadPredictions, Outcome, Result
from pipeline.evaluation.suspects import Suspect

MARKUP = '"><img src=x onerror=alert(1)>'
COMPOSED, DECOMPOSED = "\uac15\uc544\uc9c0", "\u1100\u1161\u11bc\u110b\u1161\u110c\u1175"  # puppy
ARABIC = "\u0642\u0637\u0629"
PER_CLASS = 9  # images of each class: three for each split


def synthetic_table(
    folder: Path, classes: Sequence[str] = ("cats", "dogs"), *, file_name: str = "picture"
) -> FeatureTable:
    """Return the table of a cache, with images in ``folder/images``."""
    root = folder / "images"
    root.mkdir(parents=True)
    labels = [row % len(classes) for row in range(PER_CLASS * len(classes))]
    paths = []
    for row, label in enumerate(labels):
        paths.append(f"{file_name} {row}.png".encode())
        draw(row, stripes=label % 2 == 1).save(root / f"{file_name} {row}.png")
    columns = make_columns(
        labels=labels,
        splits=[1 + row // len(classes) % 3 for row in range(len(labels))],
        paths=paths,
        digests=[hashlib.sha256((root / path.decode()).read_bytes()).digest() for path in paths],
        views=[0] * len(labels),
    )
    table = read_table(
        write_cache(folder / "synthetic.h5", labels=labels, classes=classes, columns=columns)
    )
    return replace(table, document={**table.document, "root": str(root)})


def synthetic_predictions(table: FeatureTable, split: int, *, seed: int = 0) -> HeadPredictions:
    """Return predictions that are mostly correct, and wrong for the first image of the split."""
    rows = np.flatnonzero(table.columns.splits == split)
    labels = table.columns.labels[rows]
    class_count = len(table.classes)
    scores = np.random.default_rng(seed).random((len(rows), class_count))
    scores[np.arange(len(rows)), labels] += 1
    scores[0] = 0.01
    scores[0, (labels[0] + 1) % class_count] = 2
    return HeadPredictions(
        rows=rows,
        keys=table.columns.digests[rows],
        paths=table.columns.paths[rows],
        labels=labels,
        scores=scores / scores.sum(axis=1, keepdims=True),
    )


def synthetic_result(**changes: Any) -> Result:
    """Return the scores of a head; ``changes`` are fields of the Result."""
    values: dict[str, Any] = {
        "head": "logistic",
        "input": "pooled",
        "params": "C=0.1",
        "train_accuracy": 1.0,
        "validation_accuracy": 0.97,
        "test_accuracy": 0.96,
        "test_low": 0.94,
        "test_high": 0.98,
        "macro_f1": 0.96,
        "roc_auc": 0.99,
        "log_loss": 0.12,
        "top5_accuracy": float("nan"),
        "fit_seconds": 0.2,
        "predict_ms": 0.002,
        "parameters": 1026,
        "base": "vgg16",
        "layer": "block5_pool",
        "image_size": 150,
        "fingerprint": SPEC.fingerprint,
        "cache": "cache/synthetic.h5",
        "balanced_accuracy": 0.96,
        "brier": 0.03,
        "ece": 0.021,
        "temperature": 1.3,
        "calibrated_log_loss": 0.1,
        "calibrated_ece": 0.012,
        "fits": 1,
    }
    return Result(**values | changes)


def synthetic_history(epochs: int = 12) -> dict[str, tuple[float, ...]]:
    """Return the history of a head that overfits from epoch 6 on without a fall of accuracy."""
    ages = np.arange(epochs)
    curves = {
        "loss": 0.6 * 0.7**ages,
        "accuracy": 1 - 0.3 * 0.7**ages,
        "val_loss": 0.2 + 0.02 * np.abs(ages - 5),
        "val_accuracy": 0.96 - 0.2 * 0.3**ages,
    }
    return {name: tuple(values.tolist()) for name, values in curves.items()}


def synthetic_comparison(
    folder: Path,
    classes: Sequence[str] = ("cats", "dogs"),
    *,
    file_name: str = "picture",
    audit: bool = True,
    **changes: Any,
) -> Comparison:
    """Return a comparison of three heads and a failed one; ``changes`` are fields of it."""
    table = synthetic_table(folder, classes, file_name=file_name)
    test, validation = synthetic_predictions(table, 3), synthetic_predictions(table, 2)
    scored = [
        synthetic_result(verdict="best", head="dense", params="units=64", input="flat"),
        synthetic_result(verdict="≈ best", recommended=True, p_value=0.2, p_holm=0.4),
        synthetic_result(head="naive_bayes", validation_accuracy=0.8, p_value=1e-9, p_holm=2e-9),
    ]
    outcomes = [Outcome(result=result, test=test, validation=validation) for result in scored]
    outcomes[0] = replace(outcomes[0], history=synthetic_history())
    failed = Result(
        head="svm_rbf", input="pooled", base="vgg16", layer="block5_pool", image_size=150,
        fingerprint=SPEC.fingerprint, cache="cache/synthetic.h5", status="stopped after 10 s",
    )  # fmt: skip
    return replace(
        Comparison(
            outcomes=(*outcomes, Outcome(result=failed)),
            classes=tuple(classes),
            run=synthetic_run(table),
            recommendation="Use logistic: 96.0 % of the test images right.",
            table_notices=("2 test images are also in train: test accuracy is too high.",),
            audit=SimpleNamespace(findings=synthetic_findings(table)) if audit else None,
        ),
        **changes,
    )


def synthetic_findings(table: FeatureTable) -> AuditResult:
    """Return a pair of duplicates of each kind, one suspect, and a learning curve."""
    labels = table.columns.labels
    pairs = (
        DuplicatePair(first=0, second=5, similarity=1.0, exact=True, across=True),
        DuplicatePair(first=1, second=3, similarity=0.981, exact=False, across=False),
    )
    suspect = Suspect(
        row=2,
        label=int(labels[2]),
        suggested=int(labels[2] + 1) % len(table.classes),
        label_probability=0.0004,
        suggested_probability=0.987,
    )
    curve = LearningCurve(
        sizes=np.array([10, 20, 40]),
        accuracies=np.array([[0.7, 0.8], [0.85, 0.87], [0.9, 0.92]]),
        head="logistic (C=1)",
        sentence="More images would probably help",
    )
    return AuditResult(
        table=table,
        layer="block5_pool",
        duplicates=pairs,
        suspects=(suspect,),
        learning_curve=curve,
    )


def synthetic_run(table: FeatureTable) -> dict[str, Any]:
    """Return the facts of a run, as `compare_heads` does."""
    return {
        "created": "2026-11-22T02:00:00+00:00",
        "classes": list(table.classes),
        "heads": ["all"],
        "seed": 17,
        "cv": None,
        "balance": False,
        "versions": {"python": "3.11.7", "numpy": "2.4.6"},
        "caches": [
            {
                "path": "cache/synthetic.h5",
                "set": "pets & <co>",
                "layers": ["block5_pool"],
                "fingerprint": table.spec.fingerprint,
                "spec": asdict(table.spec),
                "engine": {"name": "tensorflow"},
                "split_source": "split as the folders say",
                "split_counts": {"train": dict.fromkeys(table.classes, 3)},
            }
        ],
    }
