"""EfficientNet-Lite 0 to 2 in Keras layers: EfficientNet for phones, which Keras does not ship.

Against EfficientNet (Tan and Le 2019, arXiv:1905.11946), Lite has no squeeze-and-excite, ReLU6
instead of swish, and the same stem, first and last blocks at every scale
(github.com/tensorflow/tpu, models/official/efficientnet/lite). Layers have the names of Keras'
EfficientNet.
"""

import math
from typing import Any

from pipeline.keras_backend import keras

SCALES = {  # width, depth
    "EfficientNetLite0": (1.0, 1.0),
    "EfficientNetLite1": (1.0, 1.1),
    "EfficientNetLite2": (1.1, 1.2),
}
IMAGE_SIZES = {"EfficientNetLite0": 224, "EfficientNetLite1": 240, "EfficientNetLite2": 260}
BLOCKS = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, TOP_CHANNELS = 32, 1280
MIN_SIZE = 32  # pixels: one position in the last maps
EPSILON = 1e-3  # of batch normalisation
INITIALIZER = keras.initializers.VarianceScaling(2.0, "fan_out")  # as in Keras' EfficientNet


def build_efficientnet_lite(
    name: str,
    *,
    weights: str | None = None,
    include_top: bool = True,
    input_shape: tuple[int, int, int] | None = None,
    classes: int = 1000,
) -> Any:
    """Build a network with random weights, as a function of keras.applications does.

    (B, H, W, 3) float32, (x - 127) / 128 -> maps (B, H/32, W/32, 1280), or (B, classes)
    probabilities with ``include_top``. Raises ValueError for sides below 32 pixels or ``weights``.
    """
    if weights is not None:
        raise ValueError(f"{name} is built without weights; received {weights}")
    size = IMAGE_SIZES[name]
    images = keras.Input(input_shape or (size, size, 3))
    if min(images.shape[1:3]) < MIN_SIZE:
        raise ValueError(f"the images need at least {MIN_SIZE} pixels; received {images.shape}")
    width, depth = SCALES[name]
    values = _conv_norm(images, STEM_CHANNELS, 3, 2, "stem_")
    for stage, (repeats, kernel, stride, expansion, channels) in enumerate(BLOCKS, start=1):
        is_scaled = 1 < stage < len(BLOCKS)
        for number in range(math.ceil(repeats * depth) if is_scaled else repeats):
            values = _block(
                values,
                _round_channels(channels * width),
                kernel,
                1 if number else stride,
                expansion,
                f"block{stage}{chr(ord('a') + number)}_",
            )
    values = _conv_norm(values, TOP_CHANNELS, 1, 1, "top_")
    if include_top:
        values = keras.layers.GlobalAveragePooling2D(name="avg_pool")(values)
        values = keras.layers.Dropout(0.2, name="top_dropout")(values)
        values = keras.layers.Dense(classes, activation="softmax", name="predictions")(values)
    return keras.Model(images, values, name=name.lower())


def _block(inputs: Any, channels: int, kernel: int, stride: int, expansion: int, name: str) -> Any:
    """Expand, filter each channel, project; add the input if the shape stays the same."""
    values = inputs
    if expansion > 1:
        values = _conv_norm(values, inputs.shape[-1] * expansion, 1, 1, f"{name}expand_")
    values = keras.layers.DepthwiseConv2D(
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=INITIALIZER,
        name=f"{name}dwconv",
    )(values)
    values = _norm_relu6(values, name)
    values = _conv_norm(values, channels, 1, 1, f"{name}project_", is_linear=True)
    if stride == 1 and inputs.shape[-1] == channels:
        values = keras.layers.Add(name=f"{name}add")([values, inputs])
    return values


def _conv_norm(
    inputs: Any, channels: int, kernel: int, stride: int, name: str, *, is_linear: bool = False
) -> Any:
    values = keras.layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=INITIALIZER,
        name=f"{name}conv",
    )(inputs)
    return _norm_relu6(values, name, is_linear=is_linear)


def _norm_relu6(inputs: Any, name: str, *, is_linear: bool = False) -> Any:
    values = keras.layers.BatchNormalization(epsilon=EPSILON, name=f"{name}bn")(inputs)
    return values if is_linear else keras.layers.ReLU(6.0, name=f"{name}activation")(values)


def _round_channels(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of 8, not down by more than 10 %."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor
