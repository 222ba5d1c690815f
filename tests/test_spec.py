"""FeatureSpec: the fingerprint covers every field, and only whole specs are read."""

from dataclasses import asdict, fields, replace

import pytest

from pipeline.spec import FeatureSpec, layer_key, split_layer_key

SPEC = FeatureSpec(
    base="vgg16",
    weights="a" * 64,
    preprocessing="native",
    image_size=150,
    resize="squash",
    pixels="b" * 64,
    dtype="float32",
)


@pytest.mark.parametrize("name", [field.name for field in fields(FeatureSpec)])
def test_every_field_changes_the_fingerprint(name: str) -> None:
    other = 151 if name == "image_size" else "other"
    assert replace(SPEC, **{name: other}).fingerprint != SPEC.fingerprint


def test_spec_survives_the_way_through_json() -> None:
    assert FeatureSpec.from_dict(asdict(SPEC)) == SPEC


@pytest.mark.parametrize(
    "values",
    [None, [], {}, {**asdict(SPEC), "extra": 1}, {**asdict(SPEC), "image_size": "150"}],
)
def test_anything_but_a_whole_spec_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="spec"):
        FeatureSpec.from_dict(values)


@pytest.mark.parametrize("pooling", ["none", "avg", "max"])
def test_layer_key_names_layer_and_pooling(pooling: str) -> None:
    assert split_layer_key(layer_key("block5_pool", pooling)) == ("block5_pool", pooling)
