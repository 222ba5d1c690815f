"""Save fitted estimators as skops files; load them from untrusted ones.

skops writes a zip of ``.npy`` arrays and a ``schema.json`` that names types. A file is checked
against limits and an allow-list of types before skops builds anything;
`pipeline.models.estimator_validation` checks the result.
"""

import json
import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import skops.io

from pipeline.errors import UsageError
from pipeline.heads.calibration import head_outputs
from pipeline.models.estimator_validation import (
    PIPELINE,
    SHAPES,
    TEMPERATURE_SCALING,
    TOP_BLOCK,
    TREE,
    InvalidModelError,
    quote,
    type_name,
    validate_estimator,
)
from pipeline.spec import CLASSES
from pipeline.text import printable

SCHEMA = "schema.json"
MAX_SCHEMA_BYTES = 2**26  # 64 MiB; a forest of 200 trees takes 2
MAX_DEPTH = 50  # nested objects in a schema; a calibrated pipeline of a forest has 20
PROTOCOL = 2  # of skops; older ones build objects differently
TOLERANCE = 1e-6  # of the sum of probabilities

# Types that skops does not trust by default; their contents are checked below.
TRUSTED = [TEMPERATURE_SCALING, TOP_BLOCK, TREE]
TRUSTED += [name for name in SHAPES if name.startswith("pipeline.")]
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
        | {
            "sklearn.preprocessing._label.LabelBinarizer"
        }  # of RidgeClassifier and OneVsRestClassifier
    ),
    "TreeNode": frozenset({TREE}),
    "TupleNode": frozenset({"builtins.tuple"}),
    "TypeNode": frozenset({"builtins.str"}),  # of a dictionary's keys
}


class UnsavableError(UsageError):
    """A classifier that cannot be saved; the message says why."""


def dump_estimator(estimator: Any, file: BinaryIO, class_count: int, task: str = CLASSES) -> None:
    """Write a skops file; raise UnsavableError if the estimator cannot be saved.

    ``class_count`` is the number of classes or targets.
    """
    reason = getattr(estimator, "not_savable", None)
    if reason is not None:
        raise UnsavableError(reason)
    try:
        skops.io.dump(estimator, file)
        with zipfile.ZipFile(file) as archive:
            _check_schema(archive)
        validate_estimator(estimator, class_count, task)
    except InvalidModelError as error:
        raise UnsavableError(str(error)) from error
    except OSError:  # of the file
        raise
    except Exception as error:  # skops cannot write every object
        raise UnsavableError(
            f"skops cannot save it: {printable(' '.join(str(error).split()))[:200]}"
        ) from error


def load_estimator(
    path: Path,
    archive: zipfile.ZipFile,
    *,
    feature_count: int,
    class_count: int,
    task: str = CLASSES,
    top_block: Mapping[str, Any],
    in_file: bool = False,
) -> Any:
    """Return the estimator of a skops file; execute nothing.

    ``archive`` is the same file, open as a zip; ``top_block`` has the required attributes of a
    `TopBlockClassifier`, whose base may be ``in_file``. Raises InvalidModelError for a file that
    `dump_estimator` cannot write.
    """
    _check_schema(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other versions: the attributes are checked
        estimator = skops.io.load(path, trusted=TRUSTED)
    validate_estimator(estimator, class_count, task)
    if type_name(estimator) == TOP_BLOCK:
        for name, value in top_block.items():
            if getattr(estimator, name) != value:
                raise InvalidModelError(
                    f"its {name} is {quote(getattr(estimator, name))}; expected {value}"
                )
        if in_file:  # `Predictor` knows where its layers are
            return estimator
    elif estimator.n_features_in_ != feature_count:
        raise InvalidModelError(
            f"its head takes {estimator.n_features_in_:,} features; expected {feature_count:,}"
        )
    if task != CLASSES:
        output = head_outputs(
            estimator, np.zeros((1, feature_count), np.float32), class_count, task
        )
        if output.shape != (1, class_count) or not np.isfinite(output).all():
            raise InvalidModelError("the outputs of its head are not finite numbers")
        return estimator
    with np.errstate(all="ignore"):
        scores = estimator.predict_proba(np.zeros((1, feature_count), np.float32))
    is_complete = scores.shape == (1, class_count) and abs(scores.sum() - 1) < TOLERANCE
    if not (is_complete and scores.min() >= 0):
        raise InvalidModelError("the probabilities of its head do not sum to 1")
    return estimator


def _check_schema(archive: zipfile.ZipFile) -> None:
    """Raise InvalidModelError unless skops would build only objects of the listed types.

    skops builds the first of two objects with one id: they must be equal.
    """
    shapes = {
        member.filename: _shape_of_array(archive, member)
        for member in archive.infolist()
        if member.filename.endswith(".npy")
    }
    if archive.getinfo(SCHEMA).file_size > MAX_SCHEMA_BYTES:
        raise InvalidModelError(f"its {SCHEMA} is larger than {MAX_SCHEMA_BYTES:,} bytes")
    schema = json.loads(archive.read(SCHEMA))
    if schema["protocol"] < PROTOCOL:
        raise InvalidModelError(f"its {SCHEMA} has protocol {quote(schema['protocol'])}")
    by_id: dict[int, Any] = {}
    for node in _nodes(schema):
        name = f"{node.get('__module__')}.{node.get('__class__')}"
        if name not in LOADERS.get(str(node["__loader__"]), ()):
            raise InvalidModelError(f"it contains a {printable(name)[:60]}, which is not trusted")
        if _without_ids(by_id.setdefault(node["__id__"], node)) != _without_ids(node):
            raise InvalidModelError(f"its {SCHEMA} has two objects with one id")
        if node["__loader__"] == "NdArrayNode" and (
            node["type"] != "numpy" or node["file"] != f"{node['__id__']}.npy"
        ):
            raise InvalidModelError("its arrays are not in their own files")
        if node["__loader__"] == "TreeNode":  # its __setstate__ does not check sizes
            _, classes, outputs = node["__reduce__"]["args"]["content"]
            state = node["content"]["content"]
            count = (int(state["node_count"]["content"]),)
            if (
                shapes[classes["file"]] != (int(outputs["content"]),)
                or shapes[state["nodes"]["file"]] != count
            ):
                raise InvalidModelError("its trees have arrays unlike the number of nodes")


def _nodes(schema: Any, depth: int = 0) -> Iterator[Any]:
    """Return all objects of a schema; raise InvalidModelError if they are nested too deeply."""
    if depth > MAX_DEPTH:
        raise InvalidModelError(f"its {SCHEMA} is nested deeper than {MAX_DEPTH}")
    if isinstance(schema, dict):
        if "__loader__" in schema:
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for value in schema:
            yield from _nodes(value, depth + 1)


def _without_ids(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: _without_ids(value) for name, value in schema.items() if name != "__id__"}
    return [_without_ids(value) for value in schema] if isinstance(schema, list) else schema


def _shape_of_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, ...]:
    """Return an array's shape; raise InvalidModelError if its size is not that of the file."""
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise InvalidModelError(f"its {printable(member.filename)} has an unknown version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        size = member.file_size - file.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != size:
        raise InvalidModelError(
            f"its {printable(member.filename)} declares {dtype} {shape}; it has {size:,} bytes"
        )
    return tuple(shape)
