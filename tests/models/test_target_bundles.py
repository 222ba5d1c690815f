"""Heads of labels and numbers: saved, loaded, and refused if a part is inconsistent."""

import json
import zipfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_sets import WIDTH, bundle_of, encode
from sklearn.ensemble import RandomForestClassifier
from target_sets import LABELS, draw_targets

from pipeline.errors import BadDataError
from pipeline.evaluation.rows import LabelledRows
from pipeline.evaluation.search import search
from pipeline.heads.calibration import head_outputs
from pipeline.heads.config import DenseConfig
from pipeline.heads.registry import TARGET_HEADS, load_head
from pipeline.models.bundle import Bundle, load_bundle, save_bundle
from pipeline.spec import MULTILABEL, REGRESSION

QUICK = DenseConfig(epochs=2, units=8, learning_rate=1e-2)
FEATURES = np.random.default_rng(1).normal(size=(120, WIDTH)).astype(np.float32)
EVERY_HEAD = [
    pytest.param(task, name, marks=[pytest.mark.slow] if name == "dense" else [])
    for task, heads in TARGET_HEADS.items()
    for name in heads
]


def fit_bundle(task: str, name: str) -> Bundle:
    """Return a bundle of a head with the first setting of its grid; a forest has 5 trees."""
    targets = draw_targets(FEATURES, task, noise=0.1)
    truth = targets[:, 0] if task == REGRESSION else targets.astype(np.int64)
    rows, head = LabelledRows(FEATURES, truth, task=task), load_head(name, [QUICK], task)
    grid = {"randomforestregressor__n_estimators": [5]} if name == "random_forest" else {}
    fit = search(replace(head, grid=grid), rows, rows, class_count=targets.shape[1], seed=0)
    assert fit
    document = bundle_of(None).document | {"task": task}
    classes = LABELS if task == MULTILABEL else ("year",)
    return bundle_of(fit.estimator, head=name, classes=classes, document=document)


@pytest.mark.parametrize(("task", "name"), EVERY_HEAD)
def test_a_loaded_head_predicts_what_the_saved_one_does(
    tmp_path: Path, task: str, name: str
) -> None:
    bundle = fit_bundle(task, name)
    save_bundle(bundle, tmp_path / "model.skops")
    loaded = load_bundle(tmp_path / "model.skops")
    assert (loaded.task, loaded.classes) == (task, bundle.classes)
    outputs = [
        head_outputs(each.estimator, FEATURES, len(bundle.classes), task)
        for each in (bundle, loaded)
    ]
    np.testing.assert_array_equal(*outputs)
    assert outputs[0].shape == (120, 3 if task == MULTILABEL else 1)


def last_step(estimator: Any) -> Any:
    return estimator[-1]


def shorten_labels(estimator: Any) -> None:
    last_step(estimator).estimators_.pop()


def shorten_neighbors(estimator: Any) -> None:
    last_step(estimator)._y = last_step(estimator)._y[:-1]


def widen_coefficients(estimator: Any) -> None:
    last_step(estimator).coef_ = np.zeros((4, WIDTH))


def claim_outputs(estimator: Any) -> None:
    last_step(estimator).n_outputs_ = 2


def replace_trees(estimator: Any) -> None:
    other = RandomForestClassifier(2).fit(FEATURES, np.arange(120) % 2)
    last_step(estimator).estimators_ = list(other.estimators_)


def change_metric(estimator: Any) -> None:
    last_step(estimator).effective_metric_ = "minkowski"


@pytest.mark.parametrize(
    ("task", "name", "change", "said"),
    [
        (MULTILABEL, "logistic", shorten_labels, "does not have 3 labels"),
        (MULTILABEL, "knn", shorten_neighbors, "_y has shape"),
        (MULTILABEL, "ridge", widen_coefficients, "coef_ has shape"),
        (REGRESSION, "random_forest", claim_outputs, "2 outputs, not 1"),
        (REGRESSION, "random_forest", replace_trees, "does not have 1 classes"),
        (REGRESSION, "knn", change_metric, "neighbors are inconsistent"),
    ],
)
def test_an_inconsistent_head_is_refused(
    tmp_path: Path, task: str, name: str, change: Callable[[Any], None], said: str
) -> None:
    bundle, path = fit_bundle(task, name), tmp_path / "model.skops"
    save_bundle(bundle, path)
    with zipfile.ZipFile(path) as archive:
        description = json.loads(archive.read("bundle.json"))
    estimator = deepcopy(bundle.estimator)
    change(estimator)
    path.write_bytes(encode(description, estimator))
    with pytest.raises(BadDataError, match=said):
        load_bundle(path)


@pytest.mark.parametrize(
    ("document", "classes", "said"),
    [
        ({"task": "ranking"}, ("year",), "its task is 'ranking'"),
        ({"task": REGRESSION}, ("year", "month"), "its target is not one name"),
        ({"task": MULTILABEL}, ("sky",), "not two or more different names"),
        ({"task": MULTILABEL}, ("sky", "sea"), "coef_ has shape"),
        ({}, ("sky", "sea", "sand"), "is refused"),
    ],
)
def test_a_task_that_the_head_does_not_have_is_refused(
    tmp_path: Path, document: dict[str, str], classes: tuple[str, ...], said: str
) -> None:
    task = REGRESSION if len(classes) == 1 else MULTILABEL
    bundle, path = fit_bundle(task, "ridge"), tmp_path / "model.skops"
    save_bundle(bundle, path)
    with zipfile.ZipFile(path) as archive:
        description = json.loads(archive.read("bundle.json"))
    origin = {name: value for name, value in description["document"].items() if name != "task"}
    description |= {"document": origin | document, "classes": list(classes)}
    path.write_bytes(encode(description, bundle.estimator))
    with pytest.raises(BadDataError, match=said):
        load_bundle(path)
