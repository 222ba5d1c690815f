"""A trained head on disk, with everything that turns an image into class probabilities.

A bundle is one ``.skops`` file: the zip that `skops.io` writes of the estimator, plus the members
``bundle.json`` (format, head, params, spec, fingerprint, layer, input, shape, classes and document)
and ``sha256``, a digest of all other members. Loading executes nothing, and refuses invalid content
before its use.
"""

import hashlib
import json
import math
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args

from pipeline.bases.config import RANDOM
from pipeline.bases.file_base import is_base_name, options_in
from pipeline.bases.registry import (
    FILE_SUFFIXES,
    MAX_IMAGE_SIZE,
    PREPROCESSING_POLICIES,
    check_image_size,
    find_base,
)
from pipeline.cache.config import ViewPlan
from pipeline.durable import storage_errors, write_durably
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.heads.config import Input
from pipeline.heads.inputs import feature_count
from pipeline.images.views import Augmentation
from pipeline.models.estimator_validation import InvalidModelError, quote
from pipeline.models.rejection import CalibrationSet
from pipeline.models.runs import OLD_SUFFIX, SUFFIX
from pipeline.models.serialization import SCHEMA, dump_estimator, load_estimator
from pipeline.spec import (
    CLASSES,
    DTYPES,
    MULTILABEL,
    POOLING_POLICIES,
    REGRESSION,
    RESIZE_POLICIES,
    FeatureSpec,
    check_seed,
    layer_key,
    split_layer_key,
)
from pipeline.text import printable

FORMAT_VERSION = 2
DESCRIPTION, DIGEST = "bundle.json", "sha256"
OTHER_MEMBERS = (SCHEMA, DESCRIPTION, DIGEST)  # all but arrays
MAX_BYTES = 2**32  # 4 GiB; nearest neighbors of 100,000 images with flattened features take 3
MAX_MEMBERS = 50_000  # arrays in a file; a forest of 200 trees has 1,200
# A sparse file has gigabytes of zeros that take no disk space. Small files do no harm; compressing
# file systems save a factor below 16; those that do not count blocks report 0.
SPARSE_BYTES, SPARSE_TIMES = 2**26, 16
MAX_DESCRIPTION_BYTES = 2**24  # 16 MiB; 1,000 classes take about 20 kB
MAX_FEATURES = 2**26  # of one image; as in the first block of VGG16 at 1,024 pixels
MAX_REASON = 300  # characters of a message that may quote the file


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A trained head with everything that turns an image into class probabilities.

    Attributes
    ----------
    head, params : as in the results table: ``logistic``, ``C=1``.
    estimator : has ``predict_proba``, or ``predict`` for targets; takes features from
        `flatten_or_pool`.
    layer : layer key, ``block5_pool`` or ``block5_pool:avg``.
    shape : of one cached row of that layer, (4, 4, 512).
    classes : class names, in the order of the probabilities; of a regression, the target's name.
    document : the task, if it is not ``classes``; the class that a comparison took for ``normal``,
        all others being one; provenance: the path of the cache; its set, root
        and weights_from; engine, versions, fitted_on, created. For means over views of an image:
        their number (tta) and augmentation. Of classes, the `CalibrationSet`.
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
    def task(self) -> str:
        """What the head predicts: ``classes``, ``multilabel`` or ``regression``."""
        return str(self.document.get("task", CLASSES))

    @property
    def plan(self) -> ViewPlan:
        """Return the views of an image to average over; by default the image alone."""
        return _view_plan(self.document)

    @property
    def calibration_set(self) -> CalibrationSet | None:
        """What `Rejector` needs; None for targets, and for heads of an earlier version."""
        return _calibration_set(self.document, len(self.classes))


FIELDS = {"format", "fingerprint"} | Bundle.__annotations__.keys() - {"estimator"}


def check_savable(bundle: Bundle) -> None:
    """Raise UnsavableError if the estimator cannot be saved, StorageError on a full disk."""
    with (
        storage_errors(Path(tempfile.gettempdir()) / f"{bundle.head}{SUFFIX}"),
        tempfile.TemporaryFile() as file,  # not memory: kNN is as large as its training rows
    ):
        _dump(bundle, file)


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Write a bundle durably; raise UnsavableError for an estimator that cannot be saved."""

    def write(file: Any) -> None:
        _dump(bundle, file)
        add_description(file, description)

    fields = {name: value for name, value in vars(bundle).items() if name in FIELDS}
    description = fields | {
        "format": FORMAT_VERSION,
        "spec": bundle.spec.to_dict(),
        "fingerprint": bundle.spec.fingerprint,
        "document": dict(bundle.document),
    }
    write_durably(path, write)


def _dump(bundle: Bundle, file: BinaryIO) -> None:
    dump_estimator(bundle.estimator, file, len(bundle.classes), bundle.task)


def add_description(file: BinaryIO, description: Mapping[str, Any]) -> None:
    """Add to a skops file the two members that make it a bundle."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(DESCRIPTION, json.dumps(description, allow_nan=False))
        archive.writestr(DIGEST, digest_of(archive))


def digest_of(archive: zipfile.ZipFile) -> str:
    """Return the SHA-256 of all members but ``sha256``; it detects damage, not malice."""
    digest = hashlib.sha256()
    for name in sorted(set(archive.namelist()) - {DIGEST}):
        digest.update(f"{name} {archive.getinfo(name).file_size} ".encode())
        with archive.open(name) as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def load_bundle(path: Path) -> Bundle:
    """Read a bundle from an untrusted file.

    Raises NoInputError for a missing file, BadDataError for a file that is not a valid bundle.
    """
    if not path.exists():
        raise NoInputError(f"{printable(path)} does not exist; name a run or one of its models")
    try:
        return _read_bundle(path)
    except (InvalidModelError, UsageError) as error:
        reason = printable(str(error))[:MAX_REASON]
        raise BadDataError(f"{printable(path)} is refused: {reason}") from error


def _read_bundle(path: Path) -> Bundle:
    """Read a bundle; check all declared types and sizes before any array is read."""
    if path.suffix == OLD_SUFFIX:
        raise InvalidModelError("it is of format 1, which this version cannot read: classify again")
    if not path.is_file():
        raise InvalidModelError(f"expected a model file ({SUFFIX})")
    status = path.stat()
    size, allocated = status.st_size, getattr(status, "st_blocks", 0) * 512
    if size > MAX_BYTES:
        raise InvalidModelError(f"it has {size:,} bytes, more than {MAX_BYTES:,}")
    if size > SPARSE_BYTES and 0 < allocated * SPARSE_TIMES < size:
        raise InvalidModelError(f"it is sparse: only {allocated:,} of its {size:,} bytes exist")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, size)
            if archive.read(DIGEST).decode() != digest_of(archive):
                raise InvalidModelError("it is damaged: its content does not match its checksum")
            description = json.loads(
                archive.read(DESCRIPTION),
                object_pairs_hook=_dict_of_unique_keys,
                parse_float=_finite_float,
                parse_constant=_finite_float,
            )
            if not isinstance(description, dict):
                raise InvalidModelError("its description is not a JSON object")
            fields = _validate_description(description)
            spec = fields["spec"]
            estimator = load_estimator(
                path,
                archive,
                feature_count=feature_count(fields["shape"], fields["input"]),
                class_count=len(fields["classes"]),
                task=fields["document"].get("task", CLASSES),
                top_block={
                    "base": spec.base,
                    "image_size": spec.image_size,
                    "boundary": fields["layer"],
                },
                in_file=options_in(spec.preprocessing) is not None,
            )
    except (BadDataError, UsageError):
        raise
    except Exception as error:  # an untrusted file may raise anything
        raise InvalidModelError(f"it is damaged, or not a model file ({SUFFIX})") from error
    return Bundle(**fields, estimator=estimator)


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Raise InvalidModelError unless the members are of the kinds that `encode` writes."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(names) > MAX_MEMBERS or len(set(names)) < len(names):
        raise InvalidModelError(f"it has {len(names):,} members, too many or with equal names")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise InvalidModelError("its members are compressed or encrypted")
        if not member.filename.endswith(".npy") and member.filename not in OTHER_MEMBERS:
            raise InvalidModelError(f"it contains the unexpected member {quote(member.filename)}")
    if sum(member.file_size for member in members) > size:
        raise InvalidModelError("its members overlap or are longer than the file")
    if archive.getinfo(DESCRIPTION).file_size > MAX_DESCRIPTION_BYTES:
        raise InvalidModelError(f"its {DESCRIPTION} is larger than {MAX_DESCRIPTION_BYTES:,} bytes")


def _dict_of_unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):  # two readers could use different values
        raise ValueError("a key is repeated")
    return result


def _finite_float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a number")
    return number


def _validate_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bundle's fields except the estimator; raise InvalidModelError for invalid ones."""
    if description.get("format") != FORMAT_VERSION or set(description) != FIELDS:
        raise InvalidModelError(f"its description is not of format {FORMAT_VERSION}")
    names = {name: _text_field(description, name) for name in ("head", "params", "layer")}
    if not _is_file_name(names["head"]) or not _is_file_name(names["params"] or "none"):
        raise InvalidModelError("its head or params are not valid file names")
    key = names["layer"]
    layer, pooling = split_layer_key(key)
    is_key = pooling in POOLING_POLICIES and layer_key(layer, pooling) == key
    if not _is_file_name(layer) or not is_key:
        raise InvalidModelError(
            f"its layer is {quote(key)}; expected a key such as block5_pool or block5_pool:avg"
        )
    spec = _validate_spec(description["spec"])
    if description["fingerprint"] != spec.fingerprint:
        raise InvalidModelError("its fingerprint does not match its feature spec")
    classes, shape, input = (description[name] for name in ("classes", "shape", "input"))
    document = description["document"]
    if not isinstance(document, dict):
        raise InvalidModelError("its document is not a JSON object")
    task = document.get("task", CLASSES)
    if task not in (CLASSES, MULTILABEL, REGRESSION):
        raise InvalidModelError(f"its task is {quote(task)}")
    if not _is_list_of(str, classes) or len(set(classes)) != len(classes):
        raise InvalidModelError("its classes are not two or more different names")
    if task == REGRESSION and len(classes) != 1:
        raise InvalidModelError("its target is not one name")
    if task != REGRESSION and len(classes) < 2:
        raise InvalidModelError("its classes are not two or more different names")
    if not all(map(_is_file_name, classes)):
        raise InvalidModelError("its classes are not all valid folder names")
    if not _is_list_of(int, shape) or not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise InvalidModelError(f"its shape is {quote(shape)}; expected one such as [4, 4, 512]")
    if input not in get_args(Input) or (input == "flat" and len(shape) == 1):
        raise InvalidModelError(f"its input is {quote(input)} of shape {quote(shape)}")
    width = feature_count(shape, input)
    if width > MAX_FEATURES:
        raise InvalidModelError(f"it declares {width:,} features, more than {MAX_FEATURES:,}")
    for name in ("cache", "root", "set", "weights_from"):
        _text_field(document, name)
    if not isinstance(document.get("normal"), str | None):
        raise InvalidModelError(f"its normal class is {quote(document['normal'])}")
    if not isinstance(document.get("engine"), dict | None):
        raise InvalidModelError(f"its engine is {quote(document['engine'])}")
    _view_plan(document)
    _calibration_set(document, len(classes))
    return {
        **names,
        "spec": spec,
        "input": input,
        "shape": tuple(shape),
        "classes": tuple(classes),
        "document": document,
    }


def _validate_spec(values: Mapping[str, Any]) -> FeatureSpec:
    """Return a spec; raise InvalidModelError or UsageError if no base computes its features."""
    try:
        spec = FeatureSpec.from_dict(values)
        is_file = options_in(spec.preprocessing) is not None
    except ValueError as error:
        raise InvalidModelError(str(error)) from error
    if is_file:
        if not (is_base_name(spec.base) and 1 <= spec.image_size <= MAX_IMAGE_SIZE):
            raise InvalidModelError(f"its base is {quote(spec.base)} at {spec.image_size} pixels")
    else:
        if spec.base.endswith(FILE_SUFFIXES):  # `find_base` would open it
            raise InvalidModelError(f"its base {quote(spec.base)} is not a name")
        base = find_base(spec.base)
        check_image_size(base, spec.image_size)
        if spec.base != base.name:
            raise InvalidModelError(f"its base is {quote(spec.base)}; expected {base.name}")
    for name, value, allowed in (
        (
            "preprocessing",
            spec.preprocessing,
            (spec.preprocessing,) if is_file else PREPROCESSING_POLICIES,
        ),
        ("resize", spec.resize, RESIZE_POLICIES),
        ("dtype", spec.dtype, DTYPES),
    ):
        if value not in allowed:
            raise InvalidModelError(
                f"its {name} is {quote(value)}; expected {' or '.join(allowed)}"
            )
    if spec.weights.startswith(RANDOM):
        match = re.fullmatch(rf"{RANDOM}-([0-9]{{1,10}})", spec.weights)
        if match is None:
            raise InvalidModelError(f"its weights are {quote(spec.weights)}; expected random-SEED")
        check_seed(int(match[1]), "the seed of its weights")
    return spec


def _view_plan(document: Mapping[str, Any]) -> ViewPlan:
    """Return the views of `Bundle.plan`; raise InvalidModelError for invalid ones."""
    views = document.get("tta", 0)
    if type(views) is not int:
        raise InvalidModelError(f"its tta is {quote(views)}; expected a number of views")
    try:
        augmentation = Augmentation.from_dict(document.get("augmentation")) if views else None
    except ValueError as error:
        raise InvalidModelError(str(error)) from error
    return ViewPlan(views, augmentation, tta=views != 0)


def _calibration_set(document: Mapping[str, Any], class_count: int) -> CalibrationSet | None:
    """Return the calibration set, if any; raise InvalidModelError for an invalid one."""
    if "calibration_set" not in document:
        return None
    try:
        return CalibrationSet.from_document(document["calibration_set"], class_count)
    except ValueError as error:
        raise InvalidModelError(str(error)) from error


def _is_file_name(text: str) -> bool:
    """Return whether a text can be a file name; surrogates stand for bytes that are not UTF-8."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return text != "" and "\0" not in text


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(element) is kind for element in value)


def _text_field(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise InvalidModelError(f"its {name} is not a string: {quote(value)}")
    return value
