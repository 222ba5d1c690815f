"""A trained head on disk, with all that it takes to go from an image to class probabilities.

A bundle is one ``.skops`` file: what `skops.io` writes of the estimator, and beside it in the zip
``bundle.json`` (format, head, params, spec, fingerprint, layer, input, shape, classes and document)
and ``sha256``, a digest over all other members. Reading a file executes nothing, and whatever is
odd about it is refused before it is used.
"""

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from pipeline.bases.config import RANDOM
from pipeline.bases.registry import PREPROCESSING_POLICIES, check_image_size, find_base
from pipeline.cache.config import ViewPlan
from pipeline.durable import write_durably
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.heads.config import Input
from pipeline.heads.inputs import feature_count
from pipeline.images.views import Augmentation
from pipeline.models.estimator_validation import InvalidModelError, short
from pipeline.models.serialization import SCHEMA, dump_estimator, load_estimator
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

FORMAT_VERSION = 2
SUFFIX = ".skops"
OLD_SUFFIX = ".safetensors"  # of format 1
DESCRIPTION, DIGEST = "bundle.json", "sha256"
OTHER_MEMBERS = (SCHEMA, DESCRIPTION, DIGEST)  # beside arrays
MOST_BYTES = 2**32  # 4 GiB: nearest neighbors of 100,000 images with flattened features are 3
MOST_MEMBERS = 50_000  # arrays in a file; a forest of 200 trees has 1,200
# A file of holes costs its sender nothing. Smaller ones do no harm, compression and small blocks
# explain less than 16 times, and 0 blocks is what a file system says that does not count them.
SPARSE_BYTES, SPARSE_TIMES = 2**26, 16
MOST_DESCRIPTION_BYTES = 2**24  # 16 MiB; of 1,000 classes it takes some 20 kB
MOST_FEATURES = 2**26  # of one image; the first block of VGG16 at 1,024 pixels has as many
MOST_REASON = 300  # characters that a refusal may quote of a file
FIELDS = {
    "format", "head", "params", "spec", "fingerprint", "layer", "input", "shape", "classes",
    "document",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A trained head with all that it takes to go from an image to class probabilities.

    Attributes
    ----------
    head, params : as in the table of results: ``logistic``, ``C=1``.
    estimator : takes `flatten_or_pool` of the layer's features; has ``predict_proba``.
    layer : layer key, ``block5_pool`` or ``block5_pool:avg``.
    shape : of one row of that layer as cached, (4, 4, 512).
    classes : class names, in the order of the probabilities.
    document : where it comes from: the cache (its path), set, root and weights_from as the cache
        has them, engine, versions, fitted_on, created; of means over views of an image, over how
        many (tta) and what these are drawn from (augmentation).
    """

    head: str
    params: str
    estimator: Any
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


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Write a bundle durably; raises UnsavableError for an estimator that cannot be saved."""
    description = {
        "format": FORMAT_VERSION,
        "head": bundle.head,
        "params": bundle.params,
        "spec": asdict(bundle.spec),
        "fingerprint": bundle.spec.fingerprint,
        "layer": bundle.layer,
        "input": bundle.input,
        "shape": list(bundle.shape),
        "classes": list(bundle.classes),
        "document": dict(bundle.document),
    }
    data = encode(description, dump_estimator(bundle.estimator))
    write_durably(path, lambda file: file.write(data), needs=len(data))


def encode(description: Mapping[str, Any], estimator: bytes) -> bytes:
    """The bytes of a bundle's file: a skops file with two more members."""
    stream = io.BytesIO(estimator)
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr(DESCRIPTION, json.dumps(description, allow_nan=False))
        archive.writestr(DIGEST, digest_of(archive))
    return stream.getvalue()


def digest_of(archive: zipfile.ZipFile) -> str:
    """SHA-256 over all members but itself: it finds damage, not malice."""
    digest = hashlib.sha256()
    for name in sorted(set(archive.namelist()) - {DIGEST}):
        digest.update(f"{name} {archive.getinfo(name).file_size} ".encode())
        with archive.open(name) as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def load_bundle(path: Path) -> Bundle:
    """Read a bundle, trusting nothing in it.

    Raises NoInputError if there is no such file, BadDataError if it is not a whole bundle of ours.
    """
    if not path.exists():
        raise NoInputError(f"{printable(path)} does not exist; name a run or one of its models")
    try:
        return _read(path)
    except (InvalidModelError, UsageError) as error:
        reason = printable(str(error))[:MOST_REASON]
        raise BadDataError(f"{printable(path)} is refused: {reason}") from error


def _read(path: Path) -> Bundle:
    """The bundle in a file; no array is read before all that the file says of it fits."""
    if path.suffix == OLD_SUFFIX:
        raise InvalidModelError("it is of format 1, which this version cannot read: classify again")
    if not path.is_file():
        raise InvalidModelError(f"expected a model file ({SUFFIX})")
    status = path.stat()
    size, held = status.st_size, getattr(status, "st_blocks", 0) * 512
    if size > MOST_BYTES:
        raise InvalidModelError(f"it is of {size:,} bytes, more than {MOST_BYTES:,}")
    if size > SPARSE_BYTES and 0 < held * SPARSE_TIMES < size:
        raise InvalidModelError(f"of its {size:,} bytes only {held:,} were ever written")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, size)
            if archive.read(DIGEST).decode() != digest_of(archive):
                raise InvalidModelError("it is damaged: what it holds is not what was written")
            description = json.loads(
                archive.read(DESCRIPTION),
                object_pairs_hook=_unique,
                parse_float=_finite,
                parse_constant=_finite,
            )
            if not isinstance(description, dict):
                raise InvalidModelError("its description is no JSON object")
            fields = _check(description)
            spec = fields["spec"]
            estimator = load_estimator(
                path,
                archive,
                feature_count=feature_count(fields["shape"], fields["input"]),
                class_count=len(fields["classes"]),
                top_block={
                    "base": spec.base,
                    "image_size": spec.image_size,
                    "boundary": fields["layer"],
                },
            )
    except (BadDataError, UsageError):
        raise
    except Exception as error:  # of what a stranger wrote, anything may go wrong
        raise InvalidModelError(f"it is no model file ({SUFFIX}) of ours, or damaged") from error
    return Bundle(**fields, estimator=estimator)


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Raise InvalidModelError for members that `encode` does not write."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(names) > MOST_MEMBERS or len(set(names)) < len(names):
        raise InvalidModelError(f"it has {len(names):,} members, too many or two of one name")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise InvalidModelError("its members are compressed or encrypted")
        if not member.filename.endswith(".npy") and member.filename not in OTHER_MEMBERS:
            raise InvalidModelError(f"it holds {short(member.filename)}, which no model has")
    if sum(member.file_size for member in members) > size:
        raise InvalidModelError("its members overlap, or are longer than the file")
    if archive.getinfo(DESCRIPTION).file_size > MOST_DESCRIPTION_BYTES:
        raise InvalidModelError(
            f"its {DESCRIPTION} is larger than {MOST_DESCRIPTION_BYTES:,} bytes"
        )


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


def _check(description: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the described bundle but its estimator, if they fit together."""
    if description.get("format") != FORMAT_VERSION or set(description) != FIELDS:
        raise InvalidModelError(f"its description is not one of format {FORMAT_VERSION}")
    names = {name: _text(description, name) for name in ("head", "params", "layer")}
    if not _is_name(names["head"]) or not _is_name(names["params"] or "none"):
        raise InvalidModelError("its head or params are no name that a file could have")
    key = names["layer"]
    layer, pooling = split_layer_key(key)
    if not _is_name(layer) or pooling not in POOLING_POLICIES or layer_key(layer, pooling) != key:
        raise InvalidModelError(
            f"its layer is {short(key)}; expected one such as block5_pool or block5_pool:avg"
        )
    try:
        spec = FeatureSpec.from_dict(description["spec"])
    except ValueError as error:
        raise InvalidModelError(str(error)) from error
    _check_spec(spec)
    if description["fingerprint"] != spec.fingerprint:
        raise InvalidModelError("its fingerprint is not that of its features")
    classes, shape, kind = (description[name] for name in ("classes", "shape", "input"))
    if not _is_list_of(str, classes) or len(set(classes)) != len(classes) or len(classes) < 2:
        raise InvalidModelError("its classes are no list of two or more different names")
    if not all(map(_is_name, classes)):
        raise InvalidModelError("its classes are not all names that a folder could have")
    if not _is_list_of(int, shape) or not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise InvalidModelError(f"its shape is {short(shape)}; expected one such as [4, 4, 512]")
    if kind not in get_args(Input) or (kind == "flat" and len(shape) == 1):
        raise InvalidModelError(f"its input is {short(kind)} of shape {short(shape)}")
    width = feature_count(shape, kind)
    if width > MOST_FEATURES:
        raise InvalidModelError(f"it declares {width:,} features, more than {MOST_FEATURES:,}")
    document = description["document"]
    if not isinstance(document, dict):
        raise InvalidModelError("its document is no JSON object")
    for name in ("cache", "root", "set", "weights_from"):
        _text(document, name)
    if not isinstance(document.get("engine"), dict | None):
        raise InvalidModelError(f"its engine is {short(document['engine'])}")
    _plan_of(document)
    return {
        **names,
        "spec": spec,
        "input": kind,
        "shape": tuple(shape),
        "classes": tuple(classes),
        "document": document,
    }


def _check_spec(spec: FeatureSpec) -> None:
    """Raise InvalidModelError or UsageError for features that nothing here can make."""
    base = find_base(spec.base)
    check_image_size(base, spec.image_size)
    for name, value, allowed in (
        ("base", spec.base, (base.name,)),
        ("preprocessing", spec.preprocessing, PREPROCESSING_POLICIES),
        ("resize", spec.resize, RESIZE_POLICIES),
        ("dtype", spec.dtype, DTYPES),
    ):
        if value not in allowed:
            raise InvalidModelError(
                f"its {name} is {short(value)}; expected {' or '.join(allowed)}"
            )
    if spec.weights.startswith(RANDOM):
        drawn = re.fullmatch(rf"{RANDOM}-([0-9]{{1,10}})", spec.weights)
        if drawn is None:
            raise InvalidModelError(f"its weights are {short(spec.weights)}; expected random-SEED")
        check_seed(int(drawn[1]), "the seed of its weights")


def _plan_of(document: Mapping[str, Any]) -> ViewPlan:
    """See `Bundle.plan`; raises InvalidModelError if it is odd."""
    views = document.get("tta", 0)
    if type(views) is not int:
        raise InvalidModelError(f"its tta is {short(views)}; expected a number of views")
    try:
        augmentation = Augmentation.from_dict(document.get("augmentation")) if views else None
    except ValueError as error:
        raise InvalidModelError(str(error)) from error
    return ViewPlan(views, augmentation, tta=views != 0)


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
        raise InvalidModelError(f"its {name} is no text: {short(value)}")
    return value
