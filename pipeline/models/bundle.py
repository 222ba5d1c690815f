"""A trained head on disk, with all that it takes to go from an image to class probabilities.

A bundle is one .safetensors file: the classifier's arrays, and in its metadata two texts. "bundle"
is JSON: format, head, params, classifier (its kind and plain values, see
`pipeline.models.classifiers`), spec, fingerprint, layer, input, shape, classes and document;
"sha256" a digest over it and the arrays. Reading a file executes nothing, and whatever is odd about
it is refused before it is used.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import safe_open

from pipeline.bases.config import RANDOM
from pipeline.bases.registry import PREPROCESSING_POLICIES, check_image_size, find_base
from pipeline.cache.view_plan import ViewPlan
from pipeline.durable import write_durably
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.heads.head import Classifier, Input
from pipeline.images.views import Augmentation
from pipeline.models.classifiers import (
    Arrays,
    ForeignClassifier,
    Header,
    Headers,
    check_headers,
    pack,
    unpack,
)
from pipeline.spec import (
    DTYPES,
    POOLING_POLICIES,
    RESIZE_POLICIES,
    FeatureSpec,
    check_seed,
    layer_key,
    split_layer_key,
)
from pipeline.text import printable

FORMAT_VERSION = 1
SUFFIX = ".safetensors"
FOLDER = "models"  # of a run
ROW_IDENTITY = ("head", "input", "layer", "cache")
MOST_BYTES = 2**32  # 4 GiB: nearest neighbours of 100,000 images with flattened features are 3
# A file of holes costs its sender nothing. Smaller ones do no harm, compression and small blocks
# explain less than 16 times, and 0 blocks is what a file system says that does not count them.
SPARSE_BYTES, SPARSE_TIMES = 2**26, 16
MOST_HEADER_BYTES = 2**24  # 16 MiB; of 1,000 classes it takes some 20 kB
MOST_FEATURES = 2**26  # of one image; the first block of VGG16 at 1,024 pixels has as many
MOST_REASON = 300  # characters that a refusal may quote of a file
STORED_TYPES = {"F64": "float64", "F32": "float32", "I64": "int64", "I32": "int32"}  # NumPy's names
FIELDS = {
    "format", "head", "params", "classifier", "spec", "fingerprint", "layer", "input", "shape",
    "classes", "document",
}  # fmt: skip

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A trained head with all that it takes to go from an image to class probabilities.

    Attributes
    ----------
    head, params : as in the table of results: ``logistic``, ``C=1``.
    classifier : takes `rows_of` the layer's features; its scores are probabilities.
    spec : what those features are.
    layer : layer key, ``block5_pool`` or ``block5_pool:avg``.
    input : ``flat`` or ``pooled``.
    shape : of one row of that layer as cached, (4, 4, 512).
    classes : class names; probabilities are in their order.
    document : where it comes from: the cache (its path), set, root and weights_from as the cache
        has them, engine, versions, fitted_on, created; where probabilities are means over views
        of an image, over how many (tta), and what these are drawn from (augmentation).
    """

    head: str
    params: str
    classifier: Classifier
    spec: FeatureSpec
    layer: str
    input: Input
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    document: Mapping[str, Any]

    @property
    def plan(self) -> ViewPlan:
        """The views of an image that its probabilities are means over; usually the image alone."""
        return _plan_of(self.document)


def rows_of(features: Floats, kind: Input) -> Floats:
    """What heads take of cached features: (B, H, W, C) -> (B, H·W·C) flat or (B, C) pooled.

    Pooled is the mean over each map; what is a vector already stays one.
    """
    if kind == "flat" or features.ndim == 2:
        return features.reshape(len(features), -1)
    return np.asarray(features.mean(axis=tuple(range(1, features.ndim - 1))), np.float32)


def feature_count(shape: Sequence[int], kind: Input) -> int:
    """How many columns `rows_of` has for rows of that shape."""
    return math.prod(shape) if kind == "flat" else shape[-1]


# ---------------------------------------------------------------------------------- on disk


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Write a bundle durably; the file is whole or not there.

    Raises UnsavableError for a classifier that has no form on disk.
    """
    arrays: Arrays = {}
    description = {
        "format": FORMAT_VERSION,
        "head": bundle.head,
        "params": bundle.params,
        "classifier": pack(bundle.classifier, arrays),
        "spec": asdict(bundle.spec),
        "fingerprint": bundle.spec.fingerprint,
        "layer": bundle.layer,
        "input": bundle.input,
        "shape": list(bundle.shape),
        "classes": list(bundle.classes),
        "document": dict(bundle.document),
    }
    data = encode(description, arrays)
    write_durably(path, lambda file: file.write(data), needs=len(data))


def encode(description: Mapping[str, Any], arrays: Arrays) -> bytes:
    """The bytes of a bundle's file."""
    text = json.dumps(description, allow_nan=False)
    return safetensors.numpy.save(arrays, {"bundle": text, "sha256": digest_of(text, arrays)})


def digest_of(text: str, arrays: Arrays) -> str:
    """SHA-256 over all that a file says: it finds damage, not malice."""
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def load_bundle(path: Path) -> Bundle:
    """Read a bundle, trusting nothing in it.

    Raises NoInputError if there is no such file, BadDataError if it is not a whole bundle of ours.
    """
    if not path.exists():
        raise NoInputError(f"{printable(path)} does not exist; name a run or one of its models")
    try:
        return _read(path)
    except (ForeignClassifier, UsageError) as error:
        reason = printable(str(error))[:MOST_REASON]
        raise BadDataError(f"{printable(path)} is refused: {reason}") from error


def _read(path: Path) -> Bundle:
    """The bundle in a file; no room is made for arrays before all that it says of them fits."""
    if not path.is_file():
        raise ForeignClassifier(f"expected a model file ({SUFFIX})")
    _check_size(path)
    foreign = f"it is no model file ({SUFFIX}) of ours, or damaged"
    try:
        with safe_open(path, framework="np") as opened:  # looks at every size
            headers = {name: _header(opened.get_slice(name)) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
        text, digest = metadata["bundle"], metadata["sha256"]
        description = json.loads(
            text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite
        )
    except Exception as error:  # of types that NumPy lacks, for one
        raise ForeignClassifier(foreign) from error
    if not isinstance(description, dict):
        raise ForeignClassifier("its description is no JSON object")
    make = _check(description, headers)
    try:
        with safe_open(path, framework="np") as opened:
            arrays = {name: opened.get_tensor(name) for name in headers}
    except Exception as error:
        raise ForeignClassifier(foreign) from error
    if digest != digest_of(text, arrays):
        raise ForeignClassifier("it is damaged: what it holds is not what was written")
    return make(arrays)


def _check_size(path: Path) -> None:
    """Raise ForeignClassifier for a file that cannot be a bundle, or whose bytes are not there."""
    status = path.stat()
    size, held = status.st_size, getattr(status, "st_blocks", 0) * 512
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
    if not 2 <= header_size <= min(size - 8, MOST_HEADER_BYTES):
        raise ForeignClassifier(f"it is no model file ({SUFFIX}), or not a whole one")
    if size > MOST_BYTES:
        raise ForeignClassifier(f"it is of {size:,} bytes, more than {MOST_BYTES:,}")
    if size > SPARSE_BYTES and 0 < held * SPARSE_TIMES < size:
        raise ForeignClassifier(f"of its {size:,} bytes only {held:,} were ever written")


def _header(array: Any) -> Header:
    stored = str(array.get_dtype())
    return Header(STORED_TYPES.get(stored, stored), tuple(array.get_shape()))


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # two readers could take different ones
        raise ValueError("a key stands twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number


def _check(description: Mapping[str, Any], headers: Headers) -> Callable[[Arrays], Bundle]:
    """What makes the described bundle of its arrays, if everything but those fits together."""
    if description.get("format") != FORMAT_VERSION or set(description) != FIELDS:
        raise ForeignClassifier(f"its description is not one of format {FORMAT_VERSION}")
    names = {name: _text(description, name) for name in ("head", "params", "layer")}
    if not _is_name(names["head"]) or not _is_name(names["params"] or "none"):
        raise ForeignClassifier("its head or params are no name that a file could have")
    _check_layer(names["layer"])
    try:
        spec = FeatureSpec.from_dict(description["spec"])
    except ValueError as error:
        raise ForeignClassifier(str(error)) from error
    _check_spec(spec)
    if description["fingerprint"] != spec.fingerprint:
        raise ForeignClassifier("its fingerprint is not that of its features")
    classes, shape, kind = (description[name] for name in ("classes", "shape", "input"))
    if not _is_list_of(str, classes) or len(set(classes)) != len(classes) or len(classes) < 2:
        raise ForeignClassifier("its classes are no list of two or more different names")
    if not all(map(_is_name, classes)):
        raise ForeignClassifier("its classes are not all names that a folder could have")
    if not _is_list_of(int, shape) or not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise ForeignClassifier(f"its shape is {_short(shape)}; expected one such as [4, 4, 512]")
    if kind not in get_args(Input) or (kind == "flat" and len(shape) == 1):
        raise ForeignClassifier(f"its input is {_short(kind)} of shape {_short(shape)}")
    width = feature_count(shape, kind)
    if width > MOST_FEATURES:
        raise ForeignClassifier(f"it declares {width:,} features, more than {MOST_FEATURES:,}")
    document = description["document"]
    if not isinstance(document, dict):
        raise ForeignClassifier("its document is no JSON object")
    for name in ("cache", "root", "set", "weights_from"):
        _text(document, name)
    if not isinstance(document.get("engine"), dict | None):
        raise ForeignClassifier(f"its engine is {_short(document['engine'])}")
    _plan_of(document)
    counts = {"feature_count": width, "class_count": len(classes)}
    check_headers(description["classifier"], headers, **counts)
    given = {"base": spec.base, "image_size": spec.image_size, "boundary": names["layer"]}
    return lambda arrays: Bundle(
        **names,
        classifier=unpack(description["classifier"], arrays, **counts, given=given),
        spec=spec,
        input=kind,
        shape=tuple(shape),
        classes=tuple(classes),
        document=document,
    )


def _check_spec(spec: FeatureSpec) -> None:
    """Raise ForeignClassifier or UsageError for features that nothing here can make."""
    base = find_base(spec.base)
    check_image_size(base, spec.image_size)
    for name, value, allowed in (
        ("base", spec.base, (base.name,)),
        ("preprocessing", spec.preprocessing, PREPROCESSING_POLICIES),
        ("resize", spec.resize, RESIZE_POLICIES),
        ("dtype", spec.dtype, DTYPES),
    ):
        if value not in allowed:
            raise ForeignClassifier(
                f"its {name} is {_short(value)}; expected {' or '.join(allowed)}"
            )
    if spec.weights.startswith(RANDOM):
        drawn = re.fullmatch(rf"{RANDOM}-([0-9]{{1,10}})", spec.weights)
        if drawn is None:
            raise ForeignClassifier(f"its weights are {_short(spec.weights)}; expected random-SEED")
        check_seed(int(drawn[1]), "the seed of its weights")


def _plan_of(document: Mapping[str, Any]) -> ViewPlan:
    """See `Bundle.plan`; raises ForeignClassifier if what a document says of it is odd."""
    views = document.get("tta", 0)
    if type(views) is not int:
        raise ForeignClassifier(f"its tta is {_short(views)}; expected a number of views")
    try:
        augmentation = Augmentation.from_dict(document.get("augmentation")) if views else None
    except ValueError as error:
        raise ForeignClassifier(str(error)) from error
    return ViewPlan(views, augmentation, tta=views != 0)


def _check_layer(key: str) -> None:
    """Raise ForeignClassifier for a layer that no cache could have."""
    layer, pooling = split_layer_key(key)
    if not _is_name(layer) or pooling not in POOLING_POLICIES or layer_key(layer, pooling) != key:
        raise ForeignClassifier(
            f"its layer is {_short(key)}; expected one such as block5_pool or block5_pool:avg"
        )


def _is_name(text: str) -> bool:
    """Whether a file or folder could have that name; Python writes foreign bytes as surrogates."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return text != "" and "\0" not in text


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is kind for each in value)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise ForeignClassifier(f"its {name} is no text: {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:60]}…"


# ------------------------------------------------------------------------------------ in runs


def find_bundle(run: Path, head: str | None = None) -> Path:
    """The bundle file of a run's head.

    Parameters
    ----------
    run : a folder that classify wrote, or a bundle file itself.
    head : as in the table, ``logistic``, or a model file's name without its ending. Of several
        rows the best on validation. None for the head that the run recommends.

    Raises NoInputError if there is no such run, UsageError if the head was not saved, naming those
    that were; BadDataError if the run's results cannot be read.
    """
    if run.is_file():
        if head is not None:
            raise UsageError(f"{printable(run)} holds one head: leave out --head {printable(head)}")
        return run
    rows, not_saved = _read_results(run / "results.json")
    saved = [row for row in rows if row["model"]]
    names = ", ".join(dict.fromkeys(printable(row["head"]) for row in saved)) or "none"
    if head is None:
        chosen = next((row for row in rows if row["recommended"]), None)
    else:  # the best first, as in the table
        chosen = next((row for row in [*saved, *rows] if head in _names_of(row)), None)
    if chosen is None:
        asked = "it recommends no head" if head is None else f"it has no head {printable(head)}"
        raise UsageError(f"{printable(run)}: {asked}; saved are: {names}")
    if not chosen["model"]:
        reasons = [each.get("reason") for each in not_saved if _same_row(each, chosen)]
        raise UsageError(
            f"{printable(run)}: {printable(chosen['head'])} was not saved "
            f"({printable(str(reasons[0])) if reasons else 'by an older version'}); "
            f"saved are: {names}"
        )
    return _inside(run, run / str(chosen["model"]))


def _inside(run: Path, path: Path) -> Path:
    """The path; raises BadDataError if links lead it out of the run."""
    try:
        inside = path.resolve().is_relative_to(run.resolve())
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    if not inside:
        raise BadDataError(f"{printable(path)} is a link out of the run: name the file itself")
    return path


def newest_run(results: Path) -> Path:
    """The run that was written last; raises NoInputError if there is none."""
    written = sorted(results.glob("*/results.json"), key=lambda path: path.stat().st_mtime_ns)
    if not written:
        raise NoInputError(
            f"there is no run in {printable(results)}/; run python -m pipeline.classify first"
        )
    return written[-1].parent


def _names_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["head"], f"{row['head']}:{row['input']}", Path(row["model"]).stem


def _same_row(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == other[name] for name in ROW_IDENTITY)


def _read_results(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a results.json and which of them have no model, and why."""
    if not path.is_file():
        raise NoInputError(f"{printable(path.parent)} is no run of classify: it has no {path.name}")
    try:
        document = json.loads(path.read_text("utf-8"))
        rows = [{"model": "", **row} for row in document["rows"]]
        not_saved = [dict(each) for each in document["run"].get("not_saved", [])]
        for row in rows:
            texts = [row[name] for name in ("model", *ROW_IDENTITY)]
            if not all(isinstance(text, str) for text in texts) or "recommended" not in row:
                raise ValueError(row)
            if row["model"] and not re.fullmatch(rf"{FOLDER}/[^/\\\\]+{SUFFIX}", row["model"]):
                raise ValueError(row)  # it would lead out of the run
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadDataError(f"{printable(path)} is no results.json of classify") from error
    return rows, not_saved
