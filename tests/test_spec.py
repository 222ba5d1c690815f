"""The fingerprint of a FeatureSpec covers every field, and only complete specs are read."""

from dataclasses import asdict, fields, replace

import pytest
from feature_sets import SPEC

from pipeline.spec import FeatureSpec, layer_key, split_layer_key


def test_every_field_changes_the_fingerprint() -> None:
    for field in fields(FeatureSpec):
        value = 151 if field.name == "image_size" else "other"
        assert replace(SPEC, **{field.name: value}).fingerprint != SPEC.fingerprint, field.name


def test_spec_is_read_from_json_and_nothing_else_is() -> None:
    assert FeatureSpec.from_dict(asdict(SPEC)) == SPEC
    for values in (None, [], {}, {**asdict(SPEC), "extra": 1}, {**asdict(SPEC), "image_size": "9"}):
        with pytest.raises(ValueError, match="spec"):
            FeatureSpec.from_dict(values)


def test_layer_key_names_layer_and_pooling() -> None:
    for pooling in ("none", "avg", "max"):
        assert split_layer_key(layer_key("block5_pool", pooling)) == ("block5_pool", pooling)
