"""Classifiers as plain values and named arrays, and back: an allow-list, nothing that executes."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadDataError
from pipeline.heads.head import Classifier
from pipeline.text import printable

Arrays = dict[str, npt.NDArray[Any]]
Values = Mapping[str, Any]
Sizes = Mapping[str, int]

TOLERANCE = 1e-6  # of the sum of a row's probabilities


class ForeignClassifier(Exception):
    """What a file holds is not what a classifier needs; the message says where."""


class UnsavableError(BadDataError):
    """A classifier has no form on disk; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What one kind of classifier consists of; the names are the fields of its dataclass.

    Attributes
    ----------
    source : ``module:class``, imported when a file needs it.
    arrays : field -> its type and its dimensions, a letter each: D features, K classes, O outputs
        (one of two classes, else K), 2 itself; any other stands for whatever number it is first.
    plain : field -> type of a number.
    parts : field -> kinds that may stand there.
    rule : what else must hold of the values, given the number that each letter stands for; and
        what to say where it does not.
    """

    source: str
    arrays: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    plain: Mapping[str, type] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rule: tuple[Callable[[Values, Sizes], bool], str] | None = None


def _neighbours_vote(values: Values, sizes: Sizes) -> bool:
    return (
        _in_range(values["labels"], sizes["K"])
        and 1 <= values["k"] <= sizes["N"]
        and values["class_weights"].min() > 0
    )


def _trees_end(values: Values, sizes: Sizes) -> bool:
    """Whether every node's children stand behind it, or it is a leaf: its own child, twice."""
    children, nodes = values["children"], np.arange(sizes["N"])[:, None]
    leaves = (children == nodes).all(axis=1)
    return (
        _in_range(values["roots"], sizes["N"])
        and _in_range(children, sizes["N"])
        and _in_range(values["features"], sizes["D"])
        and bool((leaves | (children > nodes).all(axis=1)).all())
        and values["shares"].min() >= 0
    )


def _in_range(numbers: npt.NDArray[Any], end: int) -> bool:
    return bool(numbers.min() >= 0 and numbers.max() < end)


HEAD_KINDS = ("linear", "dense", "knn", "naive_bayes", "svm_rbf", "forest", "majority")
PROBABILITIES = {"has_probabilities": bool}
FORMS: Mapping[str, Form] = {
    "linear": Form(
        source="pipeline.heads.linear:LinearClassifier",
        arrays={"weights": ("float64", "OD"), "intercepts": ("float64", "O")},
        plain=PROBABILITIES,
    ),
    "dense": Form(
        source="pipeline.heads.dense:DenseClassifier",
        arrays={
            "hidden_kernel": ("float32", "DU"),
            "hidden_bias": ("float32", "U"),
            "output_kernel": ("float32", "UO"),
            "output_bias": ("float32", "O"),
        },
        plain=PROBABILITIES,
    ),
    "knn": Form(
        source="pipeline.heads.neighbors:KnnClassifier",
        arrays={
            "directions": ("float32", "ND"),
            "labels": ("int64", "N"),
            "class_weights": ("float64", "K"),
        },
        plain={"k": int, **PROBABILITIES},
        rule=(_neighbours_vote, "its neighbours name classes that it does not have"),
    ),
    "naive_bayes": Form(
        source="pipeline.heads.bayes:NaiveBayesClassifier",
        arrays={
            "means": ("float64", "KD"),
            "variances": ("float64", "KD"),
            "priors": ("float64", "K"),
        },
        plain=PROBABILITIES,
        rule=(
            lambda values, _: values["variances"].min() > 0 and values["priors"].min() > 0,
            "its variances and priors are not all above 0",
        ),
    ),
    "svm_rbf": Form(
        source="pipeline.heads.svm_rbf:SvmRbfClassifier",
        arrays={
            "support": ("float64", "SD"),
            "coefficients": ("float64", "OS"),
            "intercepts": ("float64", "O"),
        },
        plain={"gamma": float, **PROBABILITIES},
        parts={"scaler": ("scaler",)},
    ),
    "forest": Form(
        source="pipeline.heads.forest:ForestClassifier",
        arrays={
            "roots": ("int32", "T"),
            "children": ("int32", "N2"),
            "features": ("int32", "N"),
            "thresholds": ("float64", "N"),
            "shares": ("float64", "NK"),
        },
        plain=PROBABILITIES,
        rule=(_trees_end, "its trees lead out of themselves or round in circles"),
    ),
    "majority": Form(
        source="pipeline.heads.majority:MajorityClassifier",
        arrays={"shares": ("float64", "K")},
        plain=PROBABILITIES,
    ),
    "scaler": Form(
        source="pipeline.heads.training:Scaler",
        arrays={"mean": ("float64", "D")},
        plain={"scale": float},
        rule=(lambda values, _: values["scale"] > 0, "its scale is not above 0"),
    ),
    "calibrated": Form(
        source="pipeline.heads.calibration:Calibrated",
        plain={"temperature": float, **PROBABILITIES},
        parts={"classifier": HEAD_KINDS},
        rule=(lambda values, _: values["temperature"] > 0, "its temperature is not above 0"),
    ),
}


def pack(classifier: Classifier, arrays: Arrays) -> dict[str, Any]:
    """A classifier's plain values, ready for JSON; its arrays are added to ``arrays``.

    Raises UnsavableError, with the reason, for a classifier that is not of this list.
    """
    return _pack(classifier, arrays, "")


def _pack(thing: Any, arrays: Arrays, place: str) -> dict[str, Any]:
    name = f"{type(thing).__module__}:{type(thing).__qualname__}"
    kind = next((kind for kind, form in FORMS.items() if form.source == name), None)
    if kind is None:
        reason = getattr(thing, "unsavable", f"a {name} has no form on disk")
        raise UnsavableError(reason)
    form = FORMS[kind]
    for each in form.arrays:
        array = getattr(thing, each)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UnsavableError("its weights are not all finite")
        arrays[place + each] = np.ascontiguousarray(array)
    values = {each: kind_of(getattr(thing, each)) for each, kind_of in form.plain.items()}
    parts = {each: _pack(getattr(thing, each), arrays, f"{place}{each}.") for each in form.parts}
    return {"kind": kind, **values, **parts}


def unpack(description: Any, arrays: Arrays, *, feature_count: int, class_count: int) -> Classifier:
    """The classifier that `pack` described, once everything in it was looked at.

    It has probabilities. Raises ForeignClassifier, also for arrays that nobody asked for.
    """
    outputs = 1 if class_count == 2 else class_count
    sizes = {"D": feature_count, "K": class_count, "O": outputs, "2": 2}
    left = dict(arrays)
    kinds = (*HEAD_KINDS, "calibrated")
    classifier: Classifier = _unpack(description, left, "", kinds, sizes)
    if left:
        raise ForeignClassifier(
            f"it holds arrays of no use: {', '.join(map(printable, left))[:60]}"
        )
    with np.errstate(all="ignore"):
        scores = classifier.scores(np.zeros((1, feature_count), np.float32))
    if not classifier.has_probabilities or scores.shape != (1, class_count):
        raise ForeignClassifier(f"its head gives no probabilities of {class_count} classes")
    if not (scores.min() >= 0 and abs(scores.sum() - 1) < TOLERANCE):
        raise ForeignClassifier("the probabilities that its head gives do not sum to 1")
    return classifier


def _unpack(
    description: Any, arrays: Arrays, place: str, kinds: tuple[str, ...], sizes: dict[str, int]
) -> Any:
    kind = description.get("kind") if isinstance(description, dict) else None
    if kind not in kinds:
        raise ForeignClassifier(
            f"its {place or 'classifier'} is of kind {printable(repr(kind))[:40]}; "
            f"expected one of {', '.join(kinds)}"
        )
    form = FORMS[kind]
    if set(description) != {"kind", *form.plain, *form.parts}:
        raise ForeignClassifier(f"its {kind} classifier has other values than one has")
    sizes = dict(sizes)  # letters are of one kind each
    values: dict[str, Any] = {
        name: _array(arrays, place + name, *expected, sizes)
        for name, expected in form.arrays.items()
    }
    for name, number in form.plain.items():
        value: Any = description[name]
        if type(value) is not number:
            raise ForeignClassifier(f"its {place}{name} is no {number.__name__}")
        values[name] = value
    for name, allowed in form.parts.items():
        values[name] = _unpack(description[name], arrays, f"{place}{name}.", allowed, sizes)
    if form.rule is not None and not form.rule[0](values, sizes):
        raise ForeignClassifier(form.rule[1])
    module, _, name = form.source.partition(":")
    return getattr(importlib.import_module(module), name)(**values)


def _array(
    arrays: Arrays, name: str, dtype: str, dimensions: str, sizes: dict[str, int]
) -> npt.NDArray[Any]:
    """Take an array out of a file's, if it is of that type and shape."""
    array = arrays.pop(name, None)
    if array is None:
        raise ForeignClassifier(f"it lacks the array {name}")
    fits = array.ndim == len(dimensions) and all(
        sizes.setdefault(letter, length) == length
        for letter, length in zip(dimensions, array.shape, strict=False)
    )
    if array.dtype != dtype or not fits or not array.size:
        shape = ", ".join(str(sizes.get(letter, letter)) for letter in dimensions)
        raise ForeignClassifier(
            f"its {name} is {array.dtype} {array.shape}; expected {dtype} ({shape})"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ForeignClassifier(f"its {name} is not finite everywhere")
    return array
