"""The table of bases: the networks of keras.applications, EfficientNet-Lite, and raw pixels.

A base may also be a file, see `pipeline.bases.file_base`.
"""

import difflib
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UsageError

PREPROCESSING_POLICIES = ("native", "rescale")
PIXELS = "pixels"
DEFAULT_BASE = "vgg16"
FILE_SUFFIXES = (".onnx", ".keras")
MAX_IMAGE_SIZE = 4096  # pixels: an image of 50 MB, a batch of 1.6 GB


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """Preprocessing as an affine map: RGB 0..255, reversed if ``bgr`` -> x * scale + offset.

    The numbers are those of Keras' ``imagenet_utils.preprocess_input``.
    """

    bgr: bool = False
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


EFFICIENTNET_LITE = "efficientnet_lite"  # a module of this package, not of keras.applications
# Of the published weights, by module, as Keras' documentation states them; others: Apache-2.0.
LICENCES: Mapping[str, str] = {
    "convnext": "MIT",
    "densenet": "BSD-3-Clause",
    "resnet": "MIT",
    "resnet_v2": "BSD-3-Clause",
    "vgg16": "CC-BY-4.0",
    "vgg19": "CC-BY-4.0",
    "xception": "MIT",
}

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0..1
PREPROCESSING: Mapping[str, Rescale] = {
    "none": Rescale(),  # the network has layers that rescale
    "tf": Rescale(scale=(1 / 127.5,) * 3, offset=(-1.0,) * 3),
    "caffe": Rescale(bgr=True, offset=(-103.939, -116.779, -123.68)),
    "torch": Rescale(
        scale=(1 / (255 * _STD[0]), 1 / (255 * _STD[1]), 1 / (255 * _STD[2])),
        offset=(-_MEAN[0] / _STD[0], -_MEAN[1] / _STD[1], -_MEAN[2] / _STD[2]),
    ),
    "lite": Rescale(scale=(1 / 128,) * 3, offset=(-127 / 128,) * 3),  # as TensorFlow's Lite models
    "rescale": Rescale(scale=(1 / 255,) * 3),  # the book's 1/255, if requested
}


class Base(NamedTuple):
    """A convolutional base without its classifier ("top").

    `image_size` is the default, `min_size` the smallest that Keras accepts, `feature_shape` that of
    the last layer at the default size; `parameters_with_top` includes the classifier. Of a base in
    a ``file``, the size is 0 if any is accepted, and the last layer may be empty: it is measured.
    """

    name: str
    keras_name: str
    module: str
    image_size: int
    min_size: int
    preprocessing: str
    last_layer: str
    feature_shape: tuple[int, int, int]
    parameters: int
    parameters_with_top: int
    file: str = ""  # path of a base in a file

    @property
    def is_in_keras(self) -> bool:
        """Whether keras.applications builds the network."""
        return self.module not in ("", EFFICIENTNET_LITE)

    @property
    def licence(self) -> str:
        """The licence of the ImageNet weights, by its SPDX name; empty if there are none."""
        return LICENCES.get(self.module, "Apache-2.0") if self.module else ""


# VGG16 has the book's 150 pixels, all others the size of their training images.
# tests/bases/test_registry.py compares every number with keras.applications.
# fmt: off
_TABLE = (
    Base("convnext_base", "ConvNeXtBase", "convnext", 224, 32, "none", "layer_normalization", (7, 7, 1024), 87_566_464, 88_591_464),
    Base("convnext_large", "ConvNeXtLarge", "convnext", 224, 32, "none", "layer_normalization", (7, 7, 1536), 196_230_336, 197_767_336),
    Base("convnext_small", "ConvNeXtSmall", "convnext", 224, 32, "none", "layer_normalization", (7, 7, 768), 49_454_688, 50_223_688),
    Base("convnext_tiny", "ConvNeXtTiny", "convnext", 224, 32, "none", "layer_normalization", (7, 7, 768), 27_820_128, 28_589_128),
    Base("convnext_xlarge", "ConvNeXtXLarge", "convnext", 224, 32, "none", "layer_normalization", (7, 7, 2048), 348_147_968, 350_196_968),
    Base("densenet121", "DenseNet121", "densenet", 224, 32, "torch", "relu", (7, 7, 1024), 7_037_504, 8_062_504),
    Base("densenet169", "DenseNet169", "densenet", 224, 32, "torch", "relu", (7, 7, 1664), 12_642_880, 14_307_880),
    Base("densenet201", "DenseNet201", "densenet", 224, 32, "torch", "relu", (7, 7, 1920), 18_321_984, 20_242_984),
    Base("efficientnet_b0", "EfficientNetB0", "efficientnet", 224, 32, "none", "top_activation", (7, 7, 1280), 4_049_571, 5_330_571),
    Base("efficientnet_b1", "EfficientNetB1", "efficientnet", 240, 32, "none", "top_activation", (8, 8, 1280), 6_575_239, 7_856_239),
    Base("efficientnet_b2", "EfficientNetB2", "efficientnet", 260, 32, "none", "top_activation", (9, 9, 1408), 7_768_569, 9_177_569),
    Base("efficientnet_b3", "EfficientNetB3", "efficientnet", 300, 32, "none", "top_activation", (10, 10, 1536), 10_783_535, 12_320_535),
    Base("efficientnet_b4", "EfficientNetB4", "efficientnet", 380, 32, "none", "top_activation", (12, 12, 1792), 17_673_823, 19_466_823),
    Base("efficientnet_b5", "EfficientNetB5", "efficientnet", 456, 32, "none", "top_activation", (15, 15, 2048), 28_513_527, 30_562_527),
    Base("efficientnet_b6", "EfficientNetB6", "efficientnet", 528, 32, "none", "top_activation", (17, 17, 2304), 40_960_143, 43_265_143),
    Base("efficientnet_b7", "EfficientNetB7", "efficientnet", 600, 32, "none", "top_activation", (19, 19, 2560), 64_097_687, 66_658_687),
    Base("efficientnet_lite0", "EfficientNetLite0", EFFICIENTNET_LITE, 224, 32, "lite", "top_activation", (7, 7, 1280), 3_413_024, 4_694_024),
    Base("efficientnet_lite1", "EfficientNetLite1", EFFICIENTNET_LITE, 240, 32, "lite", "top_activation", (8, 8, 1280), 4_189_344, 5_470_344),
    Base("efficientnet_lite2", "EfficientNetLite2", EFFICIENTNET_LITE, 260, 32, "lite", "top_activation", (9, 9, 1280), 4_869_168, 6_150_168),
    Base("efficientnet_v2_b0", "EfficientNetV2B0", "efficientnet_v2", 224, 32, "none", "top_activation", (7, 7, 1280), 5_919_312, 7_200_312),
    Base("efficientnet_v2_b1", "EfficientNetV2B1", "efficientnet_v2", 240, 32, "none", "top_activation", (8, 8, 1280), 6_931_124, 8_212_124),
    Base("efficientnet_v2_b2", "EfficientNetV2B2", "efficientnet_v2", 260, 32, "none", "top_activation", (9, 9, 1408), 8_769_374, 10_178_374),
    Base("efficientnet_v2_b3", "EfficientNetV2B3", "efficientnet_v2", 300, 32, "none", "top_activation", (10, 10, 1536), 12_930_622, 14_467_622),
    Base("efficientnet_v2_l", "EfficientNetV2L", "efficientnet_v2", 480, 32, "none", "top_activation", (15, 15, 1280), 117_746_848, 119_027_848),
    Base("efficientnet_v2_m", "EfficientNetV2M", "efficientnet_v2", 480, 32, "none", "top_activation", (15, 15, 1280), 53_150_388, 54_431_388),
    Base("efficientnet_v2_s", "EfficientNetV2S", "efficientnet_v2", 384, 32, "none", "top_activation", (12, 12, 1280), 20_331_360, 21_612_360),
    Base("inception_resnet_v2", "InceptionResNetV2", "inception_resnet_v2", 299, 75, "tf", "conv_7b_ac", (8, 8, 1536), 54_336_736, 55_873_736),
    Base("inception_v3", "InceptionV3", "inception_v3", 299, 75, "tf", "mixed10", (8, 8, 2048), 21_802_784, 23_851_784),
    Base("mobilenet", "MobileNet", "mobilenet", 224, 32, "tf", "conv_pw_13_relu", (7, 7, 1024), 3_228_864, 4_253_864),
    Base("mobilenet_v2", "MobileNetV2", "mobilenet_v2", 224, 32, "tf", "out_relu", (7, 7, 1280), 2_257_984, 3_538_984),
    Base("mobilenet_v3_large", "MobileNetV3Large", "mobilenet_v3", 224, 32, "none", "activation_19", (7, 7, 960), 2_996_352, 5_507_432),
    Base("mobilenet_v3_small", "MobileNetV3Small", "mobilenet_v3", 224, 32, "none", "activation_17", (7, 7, 576), 939_120, 2_554_968),
    Base("nasnet_large", "NASNetLarge", "nasnet", 331, 32, "tf", "activation_259", (11, 11, 4032), 84_916_818, 88_949_818),
    Base("nasnet_mobile", "NASNetMobile", "nasnet", 224, 32, "tf", "activation_187", (7, 7, 1056), 4_269_716, 5_326_716),
    Base("resnet101", "ResNet101", "resnet", 224, 32, "caffe", "conv5_block3_out", (7, 7, 2048), 42_658_176, 44_707_176),
    Base("resnet101_v2", "ResNet101V2", "resnet_v2", 224, 32, "tf", "post_relu", (7, 7, 2048), 42_626_560, 44_675_560),
    Base("resnet152", "ResNet152", "resnet", 224, 32, "caffe", "conv5_block3_out", (7, 7, 2048), 58_370_944, 60_419_944),
    Base("resnet152_v2", "ResNet152V2", "resnet_v2", 224, 32, "tf", "post_relu", (7, 7, 2048), 58_331_648, 60_380_648),
    Base("resnet50", "ResNet50", "resnet", 224, 32, "caffe", "conv5_block3_out", (7, 7, 2048), 23_587_712, 25_636_712),
    Base("resnet50_v2", "ResNet50V2", "resnet_v2", 224, 32, "tf", "post_relu", (7, 7, 2048), 23_564_800, 25_613_800),
    Base("vgg16", "VGG16", "vgg16", 150, 32, "caffe", "block5_pool", (4, 4, 512), 14_714_688, 138_357_544),
    Base("vgg19", "VGG19", "vgg19", 224, 32, "caffe", "block5_pool", (7, 7, 512), 20_024_384, 143_667_240),
    Base("xception", "Xception", "xception", 299, 71, "tf", "block14_sepconv2_act", (10, 10, 2048), 20_861_480, 22_910_480),
    Base(PIXELS, PIXELS, "", 32, 1, "none", PIXELS, (32, 32, 3), 0, 0),
)
# fmt: on

BASES: Mapping[str, Base] = {base.name: base for base in _TABLE}


def find_base(name: str) -> Base:
    """Return a base by name, in any usual spelling: ``VGG16``, ``inception_v3``, ``InceptionV3``.

    The name may be the path of a file. Raises UsageError, with a suggestion for a similar name, and
    the errors of `pipeline.bases.file_base.file_base`.
    """
    if name.endswith(FILE_SUFFIXES):
        from pipeline.bases.file_base import file_base

        return file_base(name)
    bases = {_letters_and_digits(base.name): base for base in _TABLE}
    if base := bases.get(_letters_and_digits(name)):
        return base
    if "," in name:
        raise UsageError(f"expected one base, received {name!r}: several are for extract")
    typed = _letters_and_digits(name)
    close = {each: difflib.SequenceMatcher(None, each, typed).ratio() for each in bases}
    # vgg1 and vgg61 are as close to vgg19: the default wins
    similar = max(bases, key=lambda each: (close[each], each == DEFAULT_BASE))
    hint = f"did you mean {bases[similar].name}? " if close[similar] >= 0.6 else ""
    raise UsageError(f"unknown base {name!r}: {hint}--list-bases shows all {len(_TABLE)}")


@cache
def layer_names(base: Base) -> tuple[str, ...]:
    """Return the names of a base's layers, which Keras has not changed since 2.0.

    They are in a file: building the network takes ten seconds.
    """
    if base.name == PIXELS:
        return (PIXELS,)
    if base.file:
        from pipeline.bases.keras_file import read_contents

        names = [layer.name for layer in read_contents(Path(base.file)).layers]
        return tuple(names[: names.index(base.last_layer) + 1])  # without its classifier
    packed = resources.files("pipeline.bases").joinpath("layers.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    return next(tuple(names) for name, *names in map(str.split, lines) if name == base.name)


def check_layer(base: Base, layer: str, flag: str) -> None:
    """Raise UsageError, with a suggestion, for a layer that a named base does not have."""
    if base.file.endswith(".onnx"):  # checked when its layers are measured
        return
    names = layer_names(base)
    if base.name == PIXELS and layer != PIXELS:
        raise UsageError(f"the base pixels has one layer, pixels; received {flag} {layer}")
    if layer not in names:
        similar = difflib.get_close_matches(layer, names, n=3)
        hint = f"did you mean {' or '.join(similar)}? " if similar else ""
        raise UsageError(
            f"{flag}: {base.name} has no layer {layer!r}: {hint}"
            f"--list-layers {base.file or base.name} shows all {len(names)}"
        )


def check_image_size(base: Base, image_size: int) -> None:
    """Raise UsageError if the base does not support images of this size."""
    if base.file and not image_size:
        raise UsageError(
            f"{base.file} takes images of any size: choose that of its training with --image-size"
        )
    if image_size > MAX_IMAGE_SIZE:
        raise UsageError(f"--image-size is at most {MAX_IMAGE_SIZE}; received {image_size}")
    if image_size < base.min_size:
        raise UsageError(
            f"{base.name} needs images of at least {base.min_size} pixels; "
            f"received --image-size {image_size}"
        )


def _letters_and_digits(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
