"""`FeatureSpec`, which identifies features, and its fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from pipeline.errors import UsageError

POOLING_POLICIES = ("none", "avg", "max")
RESIZE_POLICIES = ("squash", "crop", "pad")
DTYPES = ("float32", "float16")
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

    @property
    def fingerprint(self) -> str:
        """The `json_digest` of all fields."""
        return json_digest(asdict(self))

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Create a spec from parsed JSON; raises ValueError if a field is missing or invalid."""
        kinds = {field.name: str for field in fields(cls)} | {"image_size": int}
        check_fields(values, kinds, "feature spec")
        return cls(**values)


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
