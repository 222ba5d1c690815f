"""Validation of a loaded estimator: a known type whose parts are consistent.

Compiled code (trees, libsvm) does not check indices, and broadcast arrays may exhaust the memory.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import BadDataError
from pipeline.spec import CLASSES, MULTILABEL
from pipeline.text import printable

MAX_WEIGHT = 1e36  # float32 ends at 3e38; weights of features around 1e-30 are large
TEMPERATURES = (1e-30, 1e30)

TEMPERATURE_SCALING = "pipeline.heads.calibration.TemperatureScaling"
DENSE = "pipeline.heads.dense.DenseClassifier"
TOP_BLOCK = "pipeline.models.top_block.TopBlockClassifier"
NOVELTY = "pipeline.heads.novelty.NoveltyDetector"
PIPELINE = "sklearn.pipeline.Pipeline"
SVC = "sklearn.svm._classes.SVC"
NEIGHBORS = "sklearn.neighbors._classification.KNeighborsClassifier"
NEIGHBORS_MEAN = "sklearn.neighbors._regression.KNeighborsRegressor"
DENSE_TARGETS = "pipeline.heads.dense.DenseRegressor"
ONE_VS_REST = "sklearn.multiclass.OneVsRestClassifier"
TREES = (
    "sklearn.tree._classes.DecisionTreeClassifier",
    "sklearn.tree._classes.DecisionTreeRegressor",
    "sklearn.tree._classes.ExtraTreeClassifier",
)
TREE = "sklearn.tree._tree.Tree"

# The estimators that can be saved, with the shapes of their fitted arrays: D features, K classes,
# R = 1 row for two classes and K for more, P pairs of classes, M = K - 1; B, N and C are any
# numbers. Estimators of targets have K of them; a last dimension T = K = 1 may be left out.
LINEAR = {"coef_": "RD", "intercept_": "R"}
CENTROIDS = {"centroids_": "KD", "class_prior_": "K", "within_class_std_dev_": "D"}
SHAPES: Mapping[str, Mapping[str, str]] = {
    DENSE: {},
    "pipeline.heads.kornblith.KornblithRegression": LINEAR,
    "pipeline.heads.prototype.NearestPrototype": CENTROIDS,
    NOVELTY: {"patches_": "NC", "means_": "BC", "center_": "K", "scale_": "K"},
    "pipeline.heads.scaler.CommonScaler": {"mean_": "D"},
    "sklearn.decomposition._pca.PCA": {
        "mean_": "D", "components_": "CD", "explained_variance_": "C",
    },
    "sklearn.discriminant_analysis.LinearDiscriminantAnalysis": LINEAR,
    "sklearn.dummy.DummyClassifier": {"class_prior_": "K"},
    "sklearn.ensemble._forest.ExtraTreesClassifier": {},
    "sklearn.ensemble._forest.RandomForestClassifier": {},
    "sklearn.linear_model._logistic.LogisticRegression": LINEAR,
    "sklearn.linear_model._ridge.RidgeClassifier": LINEAR,
    "sklearn.naive_bayes.GaussianNB": {"theta_": "KD", "var_": "KD", "class_prior_": "K"},
    NEIGHBORS: {"_fit_X": "ND", "_y": "N"},
    "sklearn.neighbors._nearest_centroid.NearestCentroid": CENTROIDS,
    "sklearn.preprocessing._data.Normalizer": {},
    "sklearn.preprocessing._data.StandardScaler": {"mean_": "D", "scale_": "D"},
    "sklearn.svm._classes.LinearSVC": LINEAR,
    SVC: {
        "support_": "N", "support_vectors_": "ND", "_n_support": "K",
        "_dual_coef_": "MN", "dual_coef_": "MN", "_intercept_": "P", "intercept_": "P",
    },
    DENSE_TARGETS: {},
    NEIGHBORS_MEAN: {"_fit_X": "ND", "_y": "NT"},
    ONE_VS_REST: {},
    "sklearn.dummy.DummyRegressor": {"constant_": "OT"},
    "sklearn.ensemble._forest.RandomForestRegressor": {},
    "sklearn.linear_model._ridge.Ridge": {"coef_": "TD", "intercept_": "T"},
    **{name: {} for name in TREES},
}  # fmt: skip


class InvalidModelError(BadDataError):
    """A model file with invalid content; the message names it."""


def validate_estimator(estimator: Any, class_count: int, task: str = CLASSES) -> None:
    """Raise InvalidModelError unless an estimator is of a known type and consistent."""
    _check_numbers(estimator)
    if type_name(estimator) == TEMPERATURE_SCALING:
        least, most = TEMPERATURES
        if not least <= estimator.temperature <= most:
            raise InvalidModelError(f"its temperature is not within {least:g} and {most:g}")
        if estimator.method not in ("decision_function", "predict"):
            raise InvalidModelError(f"its scores come from {quote(estimator.method)}")
        estimator = estimator.estimator
    if type_name(estimator) == TOP_BLOCK:
        estimator = estimator.head
    is_pipeline = type_name(estimator) == PIPELINE
    for step in [step for _, step in estimator.steps] if is_pipeline else [estimator]:
        if step != "passthrough":
            _check_step(step, class_count, task)


def _check_step(step: Any, class_count: int, task: str = CLASSES) -> None:
    """Raise InvalidModelError unless the arrays of a transformer or classifier are consistent."""
    name = type_name(step)
    if name not in SHAPES:
        raise InvalidModelError(f"it contains a {name} in an unexpected place")
    for attribute in vars(step).keys() - step.get_params(deep=False).keys():
        if hasattr(type(step), attribute):
            raise InvalidModelError(f"its {quote(attribute)} shadows an attribute of {name}")
    counts = {
        "D": step.n_features_in_,
        "K": class_count,
        "R": 1 if class_count == 2 else class_count,
        "P": class_count * (class_count - 1) // 2,
        "M": class_count - 1,
        "T": class_count,
        "O": 1,
    }
    outputs = 1 if task == CLASSES else class_count
    if hasattr(step, "classes_") and not (
        np.array_equal(np.sort(step.classes_), np.arange(class_count))
        and getattr(step, "n_classes_", class_count) == class_count
        and getattr(step, "n_outputs_", 1) == 1
    ):
        raise InvalidModelError(f"its head does not have {class_count} classes")
    if getattr(step, "n_outputs_", outputs) != outputs:
        raise InvalidModelError(f"its {name} has {quote(step.n_outputs_)} outputs, not {outputs}")
    for attribute, dimensions in SHAPES[name].items():
        array = getattr(step, attribute)
        if array is None and attribute in ("mean_", "scale_"):  # the scaler does not use it
            continue
        counts = dict(zip(dimensions, np.shape(array), strict=False)) | counts  # sets N and C
        expected = tuple(counts[letter] for letter in dimensions)
        flat = expected[1:] if expected[0] == 1 else expected  # RidgeClassifier omits the 1
        short = expected[:-1] if dimensions[-1] == "T" and expected[-1] == 1 else expected
        is_number = isinstance(array, np.ndarray | np.floating) and array.dtype.kind in "fi"
        if not is_number or array.shape not in (expected, flat, short):
            raise InvalidModelError(
                f"its {attribute} has shape {np.shape(array)}; expected numbers of shape {expected}"
            )
    if name == SVC:
        supports = step._n_support
        if (  # libsvm would read outside an array
            step.kernel not in ("linear", "poly", "rbf", "sigmoid")
            or step._sparse
            or supports.min() < 0
            or supports.sum(dtype=np.int64) != len(step.support_)
            or np.size(step._probA)
            or np.size(step._probB)
        ):
            raise InvalidModelError("its support vectors are inconsistent")
    elif name == NOVELTY:
        shape = step.map_shape or (step.n_features_in_,)
        if (
            not all(type(size) is int and size > 0 for size in shape)
            or math.prod(shape) != step.n_features_in_
            or shape[-1] != step.patches_.shape[1]
            or step.scale_.min() <= 0
        ):
            raise InvalidModelError(f"its patches are not of maps {quote(step.map_shape)}")
        step.threshold_ = float(step.threshold_)
    elif name == NEIGHBORS:
        if (
            step._fit_method != "brute"
            or step.effective_metric_ not in ("cosine", "euclidean")
            or step.effective_metric_params_
            or step.outputs_2d_
            or step._y.min() < 0
            or step._y.max() >= class_count
        ):
            raise InvalidModelError("its neighbors are inconsistent")
    elif name == NEIGHBORS_MEAN:
        if (
            step._fit_method != "brute"
            or step.effective_metric_ not in ("cosine", "euclidean")
            or step.effective_metric_params_
            or step.weights != "uniform"
        ):
            raise InvalidModelError("its neighbors are inconsistent")
    elif name == ONE_VS_REST:
        if len(step.estimators_) != class_count or not step.multilabel_:
            raise InvalidModelError(f"its head does not have {class_count} labels")
        for estimator in step.estimators_:
            _check_step(estimator, 2)
    elif name in TREES:
        kinds = class_count if task == CLASSES else 1
        _check_tree(step.tree_, step.n_features_in_, kinds, outputs)
    elif hasattr(step, "estimators_"):
        for tree in step.estimators_:
            if type_name(tree) not in TREES:
                raise InvalidModelError(f"its forest contains a {type_name(tree)}")
            _check_step(tree, class_count, task)
    elif name in (DENSE, DENSE_TARGETS):
        step.tensorboard = None  # a folder on another machine
        step.__post_init__()  # validates the config
        if name == DENSE:
            outputs = 1 if class_count == 2 else class_count
        elif step.activation != ("sigmoid" if task == MULTILABEL else "linear"):
            raise InvalidModelError(f"its activation is {quote(step.activation)}")
        received = [(array.shape, array.dtype.name) for array in step.weights_]
        hidden, output = (step.n_features_in_, step.units), (step.units, outputs)
        shapes = [hidden, hidden[1:], output, output[1:]]
        if received != [(shape, "float32") for shape in shapes]:
            raise InvalidModelError(f"its dense layers have weights {quote(received)}")
    if hasattr(step, "n_jobs"):
        step.n_jobs = None  # a file must not set the number of threads


def _check_tree(tree: Any, feature_count: int, class_count: int, outputs: int) -> None:
    """Raise InvalidModelError unless the nodes form a tree, each child after its parent."""
    left, right, count = tree.children_left, tree.children_right, tree.node_count
    inner = np.flatnonzero(left != -1)
    children = np.concatenate([left[inner], right[inner]])
    parents = np.concatenate([inner, inner])
    if (
        count < 1
        or (right[left == -1] != -1).any()
        or (children <= parents).any()
        or (children >= count).any()
        or (np.bincount(children, minlength=count)[1:] != 1).any()
        or (tree.feature[inner] < 0).any()
        or (tree.feature[inner] >= feature_count).any()
        or (tree.n_features, tree.max_n_classes) != (feature_count, class_count)
        or tree.n_outputs != outputs
    ):
        raise InvalidModelError("its trees are not valid trees")


def _check_numbers(value: Any) -> None:
    """Raise InvalidModelError unless every array of an object is finite and within MAX_WEIGHT."""
    if isinstance(value, np.ndarray):
        has_floats = value.dtype.kind == "f" and value.size
        if has_floats and not (np.isfinite(value).all() and np.abs(value).max() <= MAX_WEIGHT):
            raise InvalidModelError(f"its weights are not all finite and within {MAX_WEIGHT:g}")
    elif isinstance(value, list | tuple):
        for element in value:
            _check_numbers(element)
    elif not isinstance(value, str | int | float | type | None):
        state = value if isinstance(value, dict) else value.__getstate__()
        _check_numbers(list(state.values()) if isinstance(state, dict) else None)


def type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def quote(value: Any) -> str:
    """Return at most 60 characters of a value's repr, for a message."""
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:60]}…"
