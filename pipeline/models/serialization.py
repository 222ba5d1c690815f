"""Fitted estimators as bytes and back: skops files, of which nothing is trusted.

skops writes a zip of ``.npy`` arrays and a ``schema.json`` that names types. Before it builds
anything, a file is held against limits and an allow-list of types; what it built, see
`pipeline.models.estimator_validation`.
"""

import io
import json
import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import skops.io

from pipeline.errors import UsageError
from pipeline.models.estimator_validation import (
    DENSE,
    PIPELINE,
    SHAPES,
    TEMPERATURE_SCALING,
    TOP_BLOCK,
    TREE,
    InvalidModelError,
    short,
    type_name,
    validate_estimator,
)
from pipeline.text import printable

SCHEMA = "schema.json"
MOST_SCHEMA_BYTES = 2**26  # 64 MiB; a forest of 200 trees takes 2
MOST_DEPTH = 50  # of nested objects in a schema; a calibrated pipeline of a forest has 20
PROTOCOL = 2  # of skops; older ones build objects otherwise
TOLERANCE = 1e-6  # of the sum of probabilities

# What skops does not trust by default; their contents are checked below.
TRUSTED = (
    TEMPERATURE_SCALING,
    DENSE,
    TOP_BLOCK,
    TREE,
    "pipeline.heads.kornblith.KornblithRegression",
    "pipeline.heads.prototype.NearestPrototype",
    "pipeline.heads.scaler.CommonScaler",
)
# The types that each loader of skops may build.
LOADERS: Mapping[str, frozenset[str]] = {
    "DictNode": frozenset({"builtins.dict"}),
    "JsonNode": frozenset({"builtins.str"}),
    "ListNode": frozenset({"builtins.list"}),
    "NdArrayNode": frozenset(
        f"numpy.{name}" for name in ("bool", "float32", "float64", "int32", "int64", "ndarray")
    ),
    "ObjectNode": frozenset(
        {*SHAPES, TEMPERATURE_SCALING, TOP_BLOCK, PIPELINE}
        | {"sklearn.preprocessing._label.LabelBinarizer"}  # of RidgeClassifier
    ),
    "TreeNode": frozenset({TREE}),
    "TupleNode": frozenset({"builtins.tuple"}),
    "TypeNode": frozenset({"builtins.str"}),  # of a dictionary's keys
}


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
            _check_schema(archive)
        validate_estimator(estimator, len(estimator.classes_))
    except InvalidModelError as error:
        raise UnsavableError(str(error)) from error
    except Exception as error:  # skops has no form for every object
        raise UnsavableError(
            f"skops cannot save it: {printable(' '.join(str(error).split()))[:200]}"
        ) from error
    return data


def load_estimator(
    path: Path,
    archive: zipfile.ZipFile,
    *,
    feature_count: int,
    class_count: int,
    top_block: Mapping[str, Any],
) -> Any:
    """The estimator in a skops file that is open as a zip archive; nothing in it is executed.

    ``top_block`` are the attributes that a `TopBlockClassifier` must have. Raises InvalidModelError
    for a file that `dump_estimator` did not write.
    """
    _check_schema(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another version's attributes are checked like others
        estimator = skops.io.load(path, trusted=list(TRUSTED))
    validate_estimator(estimator, class_count)
    if type_name(estimator) == TOP_BLOCK:
        for name, value in top_block.items():
            if getattr(estimator, name) != value:
                raise InvalidModelError(
                    f"its {name} is {short(getattr(estimator, name))}; expected {value}"
                )
    elif estimator.n_features_in_ != feature_count:
        raise InvalidModelError(
            f"its head takes {estimator.n_features_in_:,} features; expected {feature_count:,}"
        )
    with np.errstate(all="ignore"):
        scores = estimator.predict_proba(np.zeros((1, feature_count), np.float32))
    is_complete = scores.shape == (1, class_count) and abs(scores.sum() - 1) < TOLERANCE
    if not (is_complete and scores.min() >= 0):
        raise InvalidModelError("the probabilities of its head do not sum to 1")
    return estimator


# ------------------------------------------------------------- before anything is built


def _check_schema(archive: zipfile.ZipFile) -> None:
    """Raise InvalidModelError unless skops would build only what is on the lists.

    Of two objects with one id skops builds the first: they must be the same.
    """
    shapes = {
        member.filename: _shape_of_array(archive, member)
        for member in archive.infolist()
        if member.filename.endswith(".npy")
    }
    if archive.getinfo(SCHEMA).file_size > MOST_SCHEMA_BYTES:
        raise InvalidModelError(f"its {SCHEMA} is larger than {MOST_SCHEMA_BYTES:,} bytes")
    schema = json.loads(archive.read(SCHEMA))
    if schema["protocol"] < PROTOCOL:
        raise InvalidModelError(f"its {SCHEMA} is of protocol {short(schema['protocol'])}")
    by_id: dict[int, Any] = {}
    for node in _nodes(schema):
        name = f"{node.get('__module__')}.{node.get('__class__')}"
        if name not in LOADERS.get(str(node["__loader__"]), ()):
            raise InvalidModelError(f"it holds a {printable(name)[:60]}, which is not trusted")
        if not _is_same(by_id.setdefault(node["__id__"], node), node):
            raise InvalidModelError(f"its {SCHEMA} has two objects of one id")
        if node["__loader__"] == "NdArrayNode" and (
            node["type"] != "numpy" or node["file"] != f"{node['__id__']}.npy"
        ):
            raise InvalidModelError("its arrays are not each in a file of its own")
        if node["__loader__"] == "TreeNode":  # its __setstate__ copies without looking
            _, classes, outputs = node["__reduce__"]["args"]["content"]
            state = node["content"]["content"]
            count = (int(state["node_count"]["content"]),)
            if (
                outputs["content"] != "1"
                or shapes[classes["file"]] != (1,)
                or shapes[state["nodes"]["file"]] != count
            ):
                raise InvalidModelError("its trees do not have the nodes that they declare")


def _nodes(schema: Any, depth: int = 0) -> Iterator[Any]:
    """All objects that a schema describes; raises InvalidModelError if they are nested deeply."""
    if depth > MOST_DEPTH:
        raise InvalidModelError(f"its {SCHEMA} is nested deeper than {MOST_DEPTH}")
    if isinstance(schema, dict):
        if "__loader__" in schema:
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for each in schema:
            yield from _nodes(each, depth + 1)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two objects of a schema are the same but for ids."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            name == "__id__" or _is_same(value, other[name]) for name, value in one.items()
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _shape_of_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, ...]:
    """Raise InvalidModelError unless an array's header declares just the bytes that follow it."""
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise InvalidModelError(f"its {printable(member.filename)} is of an unknown version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        size = member.file_size - file.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != size:
        raise InvalidModelError(
            f"its {printable(member.filename)} declares {dtype} {shape}; it has {size:,} bytes"
        )
    return tuple(shape)
