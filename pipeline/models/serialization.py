"""Fitted estimators as bytes and back: skops files, of which nothing is trusted.

skops (``skops.io``) writes an estimator as a zip of ``.npy`` arrays and a ``schema.json`` that
names types. Before it builds anything, a file is held against limits and an allow-list of types.
What it built is held against itself, because compiled code (trees, libsvm) follows indices
unchecked.
"""

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skops.io

from pipeline.errors import BadDataError, UsageError
from pipeline.heads.calibration import TemperatureScaling, class_scores
from pipeline.text import printable

SCHEMA = "schema.json"
MOST_SCHEMA_BYTES = 2**26  # 64 MiB; a forest of 200 trees takes 2
MOST_DEPTH = 50  # of nested objects in a schema; a calibrated pipeline of a forest has 20
MOST_WEIGHT = 1e30  # what no training gives, and whose products overflow
MOST_TREE_DEPTH = 10_000
TEMPERATURES = (1e-30, 1e30)
TOLERANCE = 1e-6  # of the sum of probabilities

# skops trusts scikit-learn's estimators by default; these are ours, and checked below.
OWN_TYPES = (
    "pipeline.heads.calibration.TemperatureScaling",
    "pipeline.heads.dense.DenseClassifier",
    "pipeline.heads.kornblith.KornblithRegression",
    "pipeline.heads.prototype.NearestPrototype",
    "pipeline.heads.scaler.CommonScaler",
    "pipeline.models.top_block.TopBlockClassifier",
    "sklearn.tree._tree.Tree",
)
LOADERS = {
    "DictNode", "JsonNode", "ListNode", "NdArrayNode", "ObjectNode", "TreeNode", "TupleNode",
    "TypeNode",
}  # fmt: skip
PLAIN_TYPES = {f"builtins.{name}" for name in ("dict", "float", "int", "list", "str", "tuple")} | {
    f"numpy.{name}" for name in ("bool", "float32", "float64", "int32", "int64", "ndarray")
}

Arrays = Mapping[str, npt.NDArray[Any]]


class ForeignFileError(BadDataError):
    """A file that is not what `dump_estimator` wrote; the message says what is odd about it."""


class UnsavableError(UsageError):
    """A classifier that cannot be saved; the message says why."""


def dump_estimator(estimator: Any) -> bytes:
    """A fitted estimator as the bytes of a skops file; raises UnsavableError with the reason."""
    reason = getattr(estimator, "not_savable", None)
    if reason is not None:
        raise UnsavableError(reason)
    try:
        data = bytes(skops.io.dumps(estimator))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_schema(json.loads(archive.read(SCHEMA)))
        untrusted = set(skops.io.get_untrusted_types(data=data)) - set(OWN_TYPES)
    except ForeignFileError as error:
        raise UnsavableError(str(error)) from error
    except Exception as error:  # skops has no form for every object
        raise UnsavableError(
            f"skops cannot save it: {printable(' '.join(str(error).split()))[:200]}"
        ) from error
    if untrusted:
        raise UnsavableError(f"it holds a {min(untrusted)}, a type that no file is trusted with")
    try:
        _check_arrays(estimator)
    except ForeignFileError as error:
        raise UnsavableError(str(error)) from error
    return data


def check_savable(estimator: Any) -> None:
    """Raise UnsavableError, with the reason, for an estimator that cannot be saved."""
    dump_estimator(estimator)


def load_estimator(
    path: Path,
    archive: zipfile.ZipFile,
    *,
    feature_count: int,
    class_count: int,
    top_block: Mapping[str, Any],
) -> Any:
    """The estimator in a skops file that is open as a zip archive; nothing in it is executed.

    Parameters
    ----------
    top_block : the attributes that a `TopBlockClassifier` must have.

    Raises ForeignFileError for a file that `dump_estimator` did not write.
    """
    for member in archive.infolist():
        if member.filename.endswith(".npy"):
            _check_array_size(archive, member)
    if archive.getinfo(SCHEMA).file_size > MOST_SCHEMA_BYTES:
        raise ForeignFileError(f"its {SCHEMA} is larger than {MOST_SCHEMA_BYTES:,} bytes")
    _check_schema(json.loads(archive.read(SCHEMA)))
    untrusted = set(skops.io.get_untrusted_types(file=path)) - set(OWN_TYPES)
    if untrusted:
        raise ForeignFileError(f"it holds a {_short(min(untrusted))}, which is not trusted")
    estimator = skops.io.load(path, trusted=list(OWN_TYPES))
    _check_arrays(estimator)
    for part in _parts(estimator):
        _check_part(part)
        if type(part).__name__ == "TopBlockClassifier":
            for name, value in top_block.items():
                if getattr(part, name) != value:
                    raise ForeignFileError(
                        f"its {name} is {_short(getattr(part, name))}; expected {value}"
                    )
    with np.errstate(all="ignore"):
        zeros = np.zeros((1, feature_count), np.float32)
        if getattr(estimator, "n_features_in_", feature_count) != feature_count:
            raise ForeignFileError(
                f"its head takes {estimator.n_features_in_} features; expected {feature_count:,}"
            )
        scores = class_scores(estimator, zeros, class_count)
    if not (scores.min() >= 0 and abs(scores.sum() - 1) < TOLERANCE):
        raise ForeignFileError("the probabilities that its head gives do not sum to 1")
    return estimator


def _check_array_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise ForeignFileError unless an array's header declares just the bytes that follow it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ForeignFileError(f"its {member.filename} is of an unknown version")
        shape, _, dtype = read(file)
        declared = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or declared != member.file_size - file.tell():
            raise ForeignFileError(
                f"its {member.filename} declares {dtype} {shape}; it has "
                f"{member.file_size - file.tell():,} bytes"
            )


def _check_schema(schema: Any, depth: int = 0) -> None:
    """Raise ForeignFileError for a type or a loader that is not on the lists."""
    if depth > MOST_DEPTH:
        raise ForeignFileError(f"its {SCHEMA} is nested deeper than {MOST_DEPTH}")
    if isinstance(schema, dict):
        if "__loader__" in schema:
            name = f"{schema.get('__module__')}.{schema.get('__class__')}"
            known = name in PLAIN_TYPES or name in OWN_TYPES or name.startswith("sklearn.")
            if schema["__loader__"] not in LOADERS or not known:
                raise ForeignFileError(f"it holds a {_short(name)}, which is not trusted")
        for value in schema.values():
            _check_schema(value, depth + 1)
    elif isinstance(schema, list):
        for value in schema:
            _check_schema(value, depth + 1)


def _parts(thing: Any, depth: int = 0) -> Iterator[Any]:
    """All objects in an estimator, however deep."""
    if depth > MOST_DEPTH:
        raise ForeignFileError("its objects are nested in a circle")
    yield thing
    if isinstance(thing, dict):
        inner = list(thing.values())
    elif isinstance(thing, list | tuple):
        inner = list(thing)
    elif isinstance(thing, np.ndarray) and thing.dtype == object:
        inner = list(thing.ravel())
    else:
        state = None if isinstance(thing, type) else thing.__getstate__()
        inner = list(state.values()) if isinstance(state, dict) else []
    for each in inner:
        if not isinstance(each, str | int | float | None):
            yield from _parts(each, depth + 1)


def _check_arrays(estimator: Any) -> None:
    """Raise ForeignFileError unless every number is finite and of a size that training gives."""
    for array in _parts(estimator):
        is_number = isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size
        if is_number and not (np.isfinite(array).all() and np.abs(array).max() <= MOST_WEIGHT):
            raise ForeignFileError(f"its weights are not all finite and within {MOST_WEIGHT:g}")


def _check_part(part: Any) -> None:
    """Raise ForeignFileError where compiled code would follow an index out of an array."""
    kind = type(part).__name__
    if kind == "Tree":
        _check_tree(part)
    elif hasattr(part, "_n_support"):  # libsvm
        rows, counts = len(part.support_vectors_), np.asarray(part._n_support)
        pairs = len(counts) * (len(counts) - 1) // 2
        shapes = (part._dual_coef_.shape, part.dual_coef_.shape, part._intercept_.shape)
        if (
            counts.min() < 0
            or counts.sum() != rows
            or shapes != ((len(counts) - 1, rows), (len(counts) - 1, rows), (pairs,))
            or part.support_vectors_.shape[1:] != (part.n_features_in_,)
            or np.asarray(part._probA).size + np.asarray(part._probB).size not in (0, 2 * pairs)
        ):
            raise ForeignFileError("its support vectors do not fit together")
    elif hasattr(part, "_fit_X"):  # nearest neighbors
        rows, classes = part._fit_X, len(part.classes_)
        labels = np.asarray(part._y)
        fits = part._fit_method == "brute" and labels.shape == (len(rows),) and rows.ndim == 2
        if not fits or labels.min() < 0 or labels.max() >= classes:
            raise ForeignFileError("its neighbors have classes that it does not have")
    elif isinstance(part, TemperatureScaling):
        least, most = TEMPERATURES
        if not least <= part.temperature <= most:
            raise ForeignFileError(f"its temperature is not within {least:g} and {most:g}")
    elif kind == "CommonScaler" and not part.scale_ > 0:
        raise ForeignFileError("its scale is not above 0")
    elif kind == "DenseClassifier":
        outputs = 1 if len(part.classes_) == 2 else len(part.classes_)
        received = [(each.shape, each.dtype.name) for each in part.weights_]
        hidden, output = (part.n_features_in_, part.units), (part.units, outputs)
        expected = [hidden, hidden[1:], output, output[1:]]
        if received != [(shape, "float32") for shape in expected]:
            raise ForeignFileError(f"its dense layers have weights {_short(received)}")
    if hasattr(part, "n_jobs"):
        part.n_jobs = None


def _check_tree(tree: Any) -> None:
    """Raise ForeignFileError unless the nodes are a tree, each child behind its parent."""
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
        or (tree.feature[inner] >= tree.n_features).any()
        or tree.max_depth > MOST_TREE_DEPTH
    ):
        raise ForeignFileError("its trees lead out of themselves or round in circles")


def _short(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= 60 else f"{text[:60]}…"
