"""Classifiers as plain values and named arrays, and back: an allow-list, nothing that executes."""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import BadDataError
from pipeline.heads.head import Classifier
from pipeline.text import printable

Arrays = dict[str, npt.NDArray[Any]]
Values = Mapping[str, Any]
Sizes = Mapping[str, int]
Headers = Mapping[str, "Header"]

TOLERANCE = 1e-6  # of the sum of a row's probabilities
MOST_WEIGHT = 1e30  # of any number in an array; sums of products stay far from 1e308
TEMPERATURES = 1e-6, 1e6  # logits are thousands at most, and a fit looks within 1e3 of those
MOST_TREES = 10_000  # a forest here has 200
MOST_DEPTH = 1_000  # a tree of 25,000 images is some 40 deep


class ForeignClassifier(Exception):
    """What a file holds is not what a classifier needs; the message says where."""


class UnsavableError(BadDataError):
    """A classifier has no form on disk; the message says why."""


@dataclass(frozen=True)
class Header:
    """What a file says of an array before a byte of it is read.

    Attributes
    ----------
    dtype : as NumPy calls it, ``float32``; or whatever else the file has.
    shape : its dimensions.
    """

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What one kind of classifier consists of; the names are the fields of its dataclass.

    Attributes
    ----------
    source : ``module:class``, imported when a file needs it.
    arrays : field -> its type and its dimensions, a letter each: D features, K classes, O outputs
        (one of two classes, else K), 2 itself; any other stands for whatever number it is first.
    tensors : field -> type of arrays by name, as many and of such shapes as its `scores` needs.
    plain : field -> type of a number.
    limits : field -> the least and the most that such a number may be.
    parts : field -> kinds that may stand there.
    given : fields that the bundle says itself, under these names.
    rule : what else must hold of the values, given the number that each letter stands for; and
        what to say where it does not.
    """

    source: str
    arrays: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    plain: Mapping[str, type] = field(default_factory=dict)
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    rule: tuple[Callable[[Values, Sizes], bool], str] | None = None


def _neighbours_vote(values: Values, sizes: Sizes) -> bool:
    return (
        _in_range(values["labels"], sizes["K"])
        and 1 <= values["k"] <= sizes["N"]
        and values["class_weights"].min() > 0
    )


def _trees_end(values: Values, sizes: Sizes) -> bool:
    """Whether the nodes are trees: each is a root or the child of one node before it.

    A leaf is its own child, twice.
    """
    roots, children = values["roots"], values["children"]
    if not (
        len(roots) <= MOST_TREES
        and roots[0] == 0
        and bool((np.diff(roots) > 0).all())
        and _in_range(roots, sizes["N"])
        and _in_range(children, sizes["N"])
        and _in_range(values["features"], sizes["D"])
        and values["shares"].min() >= 0
    ):
        return False
    nodes = np.arange(sizes["N"])[:, None]
    inner = (children != nodes).any(axis=1)
    if (children <= nodes)[inner].any():
        return False
    parents = np.bincount(children[inner].ravel(), minlength=sizes["N"])
    parents[roots] += 1  # which have none, so that every node has to have 1
    return bool((parents == 1).all()) and _depth_within(MOST_DEPTH, roots, children, inner)


def _depth_within(
    most: int,
    roots: npt.NDArray[np.int32],
    children: npt.NDArray[np.int32],
    inner: npt.NDArray[np.bool_],
) -> bool:
    """Whether no node is more than that many steps from its root; every node is met once."""
    level = roots
    for _ in range(most + 1):
        level = level[inner[level]]
        if not level.size:
            return True
        level = children[level].ravel()
    return False


def _in_range(numbers: npt.NDArray[Any], end: int) -> bool:
    return bool(numbers.min() >= 0 and numbers.max() < end)


HEAD_KINDS = ("linear", "dense", "knn", "naive_bayes", "svm_rbf", "forest", "majority")
OUTERMOST = (*HEAD_KINDS, "top_block", "calibrated")
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
    "top_block": Form(  # F features behind the last layer of its block
        source="pipeline.models.top_block:TopBlockClassifier",
        arrays={
            "hidden_kernel": ("float32", "FU"),
            "hidden_bias": ("float32", "U"),
            "output_kernel": ("float32", "UO"),
            "output_bias": ("float32", "O"),
        },
        tensors={"block": "float32"},
        plain=PROBABILITIES,
        given=("base", "image_size", "boundary"),
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
        rule=(
            _trees_end,
            f"its trees lead out of themselves, together or round in circles, or are more than "
            f"{MOST_TREES:,} or deeper than {MOST_DEPTH:,}",
        ),
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
        limits={"temperature": TEMPERATURES},
        parts={"classifier": HEAD_KINDS},
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
    found = {each: getattr(thing, each) for each in form.arrays}
    for each in form.tensors:
        found |= {f"{each}/{name}": array for name, array in getattr(thing, each).items()}
    for each, array in found.items():
        if not _within(array, MOST_WEIGHT):
            raise UnsavableError(f"its weights are not all finite and within {MOST_WEIGHT:g}")
        arrays[place + each] = np.ascontiguousarray(array)
    values = {each: kind_of(getattr(thing, each)) for each, kind_of in form.plain.items()}
    for each, (least, most) in form.limits.items():
        if not least <= values[each] <= most:
            raise UnsavableError(f"its {each} is not within {least:g} and {most:g}")
    parts = {each: _pack(getattr(thing, each), arrays, f"{place}{each}.") for each in form.parts}
    return {"kind": kind, **values, **parts}


def check_headers(
    description: Any, headers: Headers, *, feature_count: int, class_count: int
) -> None:
    """Raise ForeignClassifier unless arrays of those types and shapes are what is described.

    No array is looked at: none need be read, nor room made for it. Arrays that nobody asked for
    are refused too.
    """
    left = dict(headers)
    sizes = _sizes(feature_count, class_count)
    _check_part(description, left, "", OUTERMOST, sizes)
    if left:
        raise ForeignClassifier(
            f"it holds arrays of no use: {', '.join(map(printable, left))[:60]}"
        )


def unpack(
    description: Any,
    arrays: Arrays,
    *,
    feature_count: int,
    class_count: int,
    given: Values = MappingProxyType({}),
) -> Classifier:
    """The classifier that `pack` described, once everything in it was looked at.

    It has probabilities. ``given`` is what the bundle says of itself, see `Form`. Raises
    ForeignClassifier, also for what `check_headers` refuses.
    """
    headers = {name: Header(str(array.dtype), array.shape) for name, array in arrays.items()}
    check_headers(description, headers, feature_count=feature_count, class_count=class_count)
    sizes = _sizes(feature_count, class_count)
    classifier: Classifier = _unpack(description, arrays, "", sizes, given)
    with np.errstate(all="ignore"):
        scores = classifier.scores(np.zeros((1, feature_count), np.float32))
    if not classifier.has_probabilities or scores.shape != (1, class_count):
        raise ForeignClassifier(f"its head gives no probabilities of {class_count} classes")
    if not (scores.min() >= 0 and abs(scores.sum() - 1) < TOLERANCE):
        raise ForeignClassifier("the probabilities that its head gives do not sum to 1")
    return classifier


def _sizes(feature_count: int, class_count: int) -> dict[str, int]:
    outputs = 1 if class_count == 2 else class_count
    return {"D": feature_count, "K": class_count, "O": outputs, "2": 2}


def _check_part(
    description: Any,
    headers: dict[str, Header],
    place: str,
    kinds: tuple[str, ...],
    sizes: dict[str, int],
) -> None:
    """Take a classifier's arrays out of a file's, if they and its values are such as it has."""
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
    for name, (dtype, dimensions) in form.arrays.items():
        _check_header(headers, place + name, dtype, dimensions, sizes)
    for name, dtype in form.tensors.items():
        for each in [each for each in headers if each.startswith(f"{place}{name}/")]:
            header = headers.pop(each)
            if header.dtype != dtype or 0 in header.shape:
                raise ForeignClassifier(
                    f"its {printable(each)} is {header.dtype} {header.shape}; expected {dtype}"
                )
    for name, number in form.plain.items():
        if type(description[name]) is not number:
            raise ForeignClassifier(f"its {place}{name} is no {number.__name__}")
    for name, (least, most) in form.limits.items():
        if not least <= description[name] <= most:
            raise ForeignClassifier(f"its {place}{name} is not within {least:g} and {most:g}")
    for name, allowed in form.parts.items():
        _check_part(description[name], headers, f"{place}{name}.", allowed, sizes)


def _check_header(
    headers: dict[str, Header], name: str, dtype: str, dimensions: str, sizes: dict[str, int]
) -> None:
    """Take an array out of a file's, if it is of that type and shape."""
    header = headers.pop(name, None)
    if header is None:
        raise ForeignClassifier(f"it lacks the array {name}")
    fits = len(header.shape) == len(dimensions) and all(
        sizes.setdefault(letter, length) == length
        for letter, length in zip(dimensions, header.shape, strict=False)
    )
    if header.dtype != dtype or not fits or 0 in header.shape:
        shape = ", ".join(str(sizes.get(letter, letter)) for letter in dimensions)
        raise ForeignClassifier(
            f"its {name} is {header.dtype} {header.shape}; expected {dtype} ({shape})"
        )


def _unpack(
    description: Values, arrays: Arrays, place: str, sizes: dict[str, int], given: Values
) -> Any:
    """What `_check_part` found in order, made of its values once they are looked at."""
    form = FORMS[description["kind"]]
    sizes = dict(sizes)
    values: dict[str, Any] = {name: description[name] for name in form.plain}
    for name, (_, dimensions) in form.arrays.items():
        values[name] = _looked_at(arrays, place + name)
        sizes.update(zip(dimensions, values[name].shape, strict=True))
    for name in form.tensors:
        start = f"{place}{name}/"
        values[name] = {
            each.removeprefix(start): _looked_at(arrays, each)
            for each in arrays
            if each.startswith(start)
        }
    for name in form.parts:
        values[name] = _unpack(description[name], arrays, f"{place}{name}.", sizes, given)
    for name in form.given:
        values[name] = given[name]
    if form.rule is not None and not form.rule[0](values, sizes):
        raise ForeignClassifier(form.rule[1])
    module, _, name = form.source.partition(":")
    return getattr(importlib.import_module(module), name)(**values)


def _looked_at(arrays: Arrays, name: str) -> npt.NDArray[Any]:
    if not _within(arrays[name], np.inf):
        raise ForeignClassifier(f"its {printable(name)} is not finite everywhere")
    if not _within(arrays[name], MOST_WEIGHT):
        raise ForeignClassifier(f"its {printable(name)} is beyond {MOST_WEIGHT:g} somewhere")
    return arrays[name]


def _within(array: npt.NDArray[Any], most: float) -> bool:
    """Whether all are numbers, none infinite and none of a size above that."""
    if array.dtype.kind != "f" or not array.size:
        return True
    least, greatest = float(array.min()), float(array.max())  # NaN if any is
    return all(math.isfinite(end) and abs(end) <= most for end in (least, greatest))
