"""Counts of operations equal the published ones."""

import pytest

from benchmarks.roofline import operations_per_image
from pipeline.keras_backend import keras


@pytest.mark.parametrize(
    ("name", "size", "gmacs"),
    # torchvision's figures with top, minus the top's
    [("VGG16", 224, 15.35), ("MobileNetV2", 224, 0.30)],
)
def test_networks_have_the_published_operations(name: str, size: int, gmacs: float) -> None:
    model = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(size, size, 3)
    )
    assert operations_per_image(model) / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_each_kernel_counts_once_per_position() -> None:
    inner = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Dense(3)])
    model = keras.Sequential(
        [
            keras.Input((8, 8, 6)),
            keras.layers.Conv2D(4, 3, padding="same", groups=2),  # 8·8 · 3·3·3·4
            keras.layers.BatchNormalization(),
            inner,  # 8·8 · 4·3
            keras.layers.SeparableConv2D(5, 3, strides=2, padding="same"),  # 4·4 · (3·3·3 + 3·5)
        ]
    )
    assert operations_per_image(model) == 2 * (64 * 108 + 64 * 12 + 16 * (27 + 15))
