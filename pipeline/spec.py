"""`FeatureSpec`, which identifies features, and its fingerprint."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Self

from pipeline.errors import UsageError

POOLING_POLICIES = ("none", "avg", "max")
RESIZE_POLICIES = ("squash", "crop", "pad")
DTYPES = ("float32", "float16")
FULL_RANGE = "full"
CLASSES, MULTILABEL, REGRESSION, UNLABELLED = "classes", "multilabel", "regression", "unlabelled"
TASKS = (CLASSES, MULTILABEL, REGRESSION, UNLABELLED)  # what the labels of a set are
FINGERPRINT_DIGITS = 12  # 48 bits: a collision among a million caches has probability 1/560


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """The properties that determine the values of features, and nothing else."""

    base: str  # name in the registry
    weights: str  # SHA-256 of the weight arrays, ``random-<seed>``, or ``none``
    preprocessing: str
    image_size: int  # height and width that the base sees
    resize: str
    pixels: str  # SHA-256 of probe images, see `pipeline.images.decode.pixels_digest`
    dtype: str
    range: str = FULL_RANGE  # of the numbers in deep images, see `pipeline.images.decode.decode`

    @property
    def fingerprint(self) -> str:
        """The `json_digest` of `to_dict`; the name of a base in a file is not part of it."""
        values = self.to_dict()
        if " " in self.preprocessing:
            del values["base"]
        return json_digest(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, without the full range: older files do not contain it."""
        values = asdict(self)
        if self.range == FULL_RANGE:
            del values["range"]
        return values

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Create a spec from parsed JSON; raises ValueError if a field is missing or invalid."""
        kinds = {field.name: str for field in fields(cls)} | {"image_size": int}
        if isinstance(values, dict):
            values = {"range": FULL_RANGE, **values}
        check_fields(values, kinds, "feature spec")
        parse_range(values["range"])
        return cls(**values)


@cache
def parse_range(text: str) -> tuple[float, float] | None:
    """Parse ``LOW,HIGH``; None for ``full``. Raises ValueError for other texts."""
    if text == FULL_RANGE:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"expected full, or LOW,HIGH with LOW below HIGH; received {text!r}")
    return low, high


def format_range(low: float, high: float) -> str:
    """Return ``LOW,HIGH`` in the shortest form: ``0,4095``."""
    return ",".join(repr(float(value) + 0.0).removesuffix(".0") for value in (low, high))


def json_digest(values: Mapping[str, Any]) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of values as canonical JSON."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:FINGERPRINT_DIGITS]


def check_fields(values: Any, kinds: Mapping[str, type], what: str) -> None:
    """Raise ValueError unless parsed JSON is an object with exactly these fields and types."""
    if not isinstance(values, dict) or values.keys() != kinds.keys():
        received = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"the {what} needs the fields {sorted(kinds)}, not {received}")
    for name, kind in kinds.items():
        if type(values[name]) not in ((int, float) if kind is float else (kind,)):
            raise ValueError(f"the {what}'s {name} should be {kind.__name__}")


def check_seed(seed: int, flag: str = "--seed") -> None:
    """Raise UsageError for a seed that a library would refuse."""
    if not 0 <= seed < 2**32:
        raise UsageError(f"{flag} is a number from 0 to {2**32 - 1}; received {seed}")


def layer_key(layer: str, pooling: str) -> str:
    """Return the key of a cached layer: ``block5_pool``, or ``block5_pool:avg`` if pooled."""
    return layer if pooling == "none" else f"{layer}:{pooling}"


def split_layer_key(key: str) -> tuple[str, str]:
    """Return layer and pooling of a key: ``block5_pool:avg`` -> ``("block5_pool", "avg")``."""
    layer, _, pooling = key.partition(":")
    return layer, pooling or "none"
