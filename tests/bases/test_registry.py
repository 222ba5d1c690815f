"""The table of bases against keras.applications itself."""

import numpy as np
import pytest

from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import (
    BASES,
    PIXELS,
    PREPROCESSING,
    Base,
    check_image_size,
    check_layer,
    find_base,
    layer_names,
)
from pipeline.errors import UsageError

NETWORKS = [base for name, base in BASES.items() if name != PIXELS]


def test_usual_spellings_find_the_base() -> None:
    spellings = {
        "VGG16": "vgg16",
        "inception-v3": "inception_v3",
        "MobileNetV3Small": "mobilenet_v3_small",
        "NASNetMobile": "nasnet_mobile",
        "Pixels": "pixels",
    }
    spellings |= {base.name: base.name for base in NETWORKS}
    spellings |= {base.keras_name: base.name for base in NETWORKS}
    assert {spelling: find_base(spelling).name for spelling in spellings} == spellings


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("vg16", "vgg16"),
        ("vgg1", "vgg16"),
        ("vgg61", "vgg16"),
        ("vgg18", "vgg16"),
        ("vgg9", "vgg19"),
        ("mobilnet_v2", "mobilenet_v2"),
    ],
)
def test_near_miss_gets_a_suggestion(typo: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {meant}"):
        find_base(typo)


def test_misspelt_layer_gets_a_suggestion() -> None:
    check_layer(find_base("vgg16"), "block5_conv3", "--layer")
    with pytest.raises(UsageError, match=r"--unfreeze: .* did you mean block5_conv1"):
        check_layer(find_base("vgg16"), "block5_con1", "--unfreeze")


def test_unknown_base_points_to_the_list() -> None:
    with pytest.raises(UsageError, match="--list-bases"):
        find_base("zzzzzzzz")


def test_size_that_the_base_cannot_take_is_refused() -> None:
    with pytest.raises(UsageError, match=r"inception_v3 needs .* 75 pixels; received .* 74"):
        check_image_size(find_base("inception_v3"), 74)


def test_published_parameter_counts() -> None:
    assert BASES["vgg16"].parameters == 14_714_688
    assert BASES["efficientnet_b3"].parameters == 10_783_535
    assert BASES["efficientnet_b3"].parameters_with_top == 12_320_535


def test_every_network_of_keras_applications_is_in_the_table_with_its_preprocessing() -> None:
    from pipeline.keras_backend import keras

    names = {name for name in dir(keras.applications) if name[0].isupper()}
    in_keras = [base for base in NETWORKS if base.is_in_keras]
    assert names == {base.keras_name for base in in_keras}
    images = np.random.default_rng(0).integers(0, 256, (1, 5, 5, 3)).astype(np.float32)
    for base in in_keras:
        expected = getattr(keras.applications, base.module).preprocess_input(images.copy())
        rescale = PREPROCESSING[base.preprocessing]
        ours = (images[..., ::-1] if rescale.bgr else images) * rescale.scale + rescale.offset
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5, err_msg=base.name)


@pytest.mark.slow
@pytest.mark.parametrize("base", NETWORKS, ids=lambda base: base.name)
def test_every_number_of_the_table_equals_that_of_the_network(base: Base) -> None:
    from pipeline.bases.build import constructor, list_layers
    from pipeline.keras_backend import keras

    try:
        layers = list_layers(BaseConfig(base=base.name))
        assert tuple(layer.name for layer in layers) == layer_names(base)
        assert layers[-1].name == base.last_layer
        assert layers[-1].shape == base.feature_shape
        assert sum(layer.parameters for layer in layers) == base.parameters
        build = constructor(base)
        smallest = (base.min_size, base.min_size, 3)
        with keras.StatelessScope(initialize_variables=False):  # weights take most of the time
            published = build(weights=None)
            build(weights=None, include_top=False, input_shape=smallest)
        assert published.count_params() == base.parameters_with_top
        if base.name != "vgg16":  # 150 pixels, as in the book
            assert published.input_shape[1] in (base.image_size, None)
        smaller = (base.min_size - 1, base.min_size - 1, 3)
        with pytest.raises(ValueError, match="at least"):
            build(weights=None, include_top=False, input_shape=smaller)
    finally:
        keras.utils.clear_session()
