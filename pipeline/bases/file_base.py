"""A base in a file, ``--base FILE.onnx`` or ``FILE.keras``, and its sidecar ``FILE.base.toml``.

No network states how its pixels are to be scaled, so this has no default: the options of
`pipeline.bases.config.BaseConfig` say it, or the sidecar, whose keys have the same names. Nothing
here loads TensorFlow.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.bases.registry import BASES, FILE_SUFFIXES, Base, Rescale
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.spec import RESIZE_POLICIES
from pipeline.text import file_name, printable

CHANNELS = ("rgb", "bgr")
LAYOUTS = ("nchw", "nhwc")
TOKENS = ("cls", "patches")
# Mean and deviation of numbers in 0..1, except `none`, which leaves 0..255 as it is
MEAN_STD = {
    "imagenet": "0.485,0.456,0.406/0.229,0.224,0.225",
    "half": "0.5,0.5,0.5/0.5,0.5,0.5",
    "clip": "0.48145466,0.4578275,0.40821073/0.26862954,0.26130258,0.27577711",
    "unit": "0,0,0/1,1,1",
    "none": "none",
}
OPTIONS = ("mean_std", "channels", "layout", "tokens")  # fields of `BaseConfig`
CHOICES = {"channels": CHANNELS, "layout": LAYOUTS, "tokens": TOKENS, "resize": RESIZE_POLICIES}
SIDECAR_KINDS = {
    "mean-std": str, "channels": str, "layout": str, "tokens": str, "image-size": int,
    "resize": str, "licence": str, "source": str, "probe": dict,
}  # fmt: skip
MAX_SIDECAR_BYTES = 2**20  # a probe of 1,000 numbers has 20 kB


class FileDescription(NamedTuple):
    """What a file says about its network before it is run.

    ``sha256`` : of the file and of the data files that belong to it. ``image_size`` : the only one
    that it accepts, 0 for any. ``batch`` : images per run, 0 for any. ``layout`` : of its input.
    """

    sha256: str
    image_size: int
    parameters: int
    batch: int = 0
    layout: str = ""
    last_layer: str = ""  # the default layer; empty if it is measured later


def file_base(name: str) -> Base:
    """Return the row of a base in a file; raise NoInputError or BadDataError if there is none."""
    path = Path(name).expanduser()
    described = describe(path)
    sidecar = read_sidecar(path)
    return Base(
        name=base_name(path),
        keras_name="",
        module="",
        image_size=int(sidecar.get("image-size", described.image_size)),
        min_size=1,
        preprocessing="",
        last_layer=described.last_layer,
        feature_shape=(0, 0, 0),
        parameters=described.parameters,
        parameters_with_top=described.parameters,
        file=str(path),
    )


def base_name(path: Path) -> str:
    """Return the name of a file's base in tables and cache files: its stem.

    >>> base_name(Path("models/my net.onnx")), base_name(Path("VGG16.onnx"))
    ('my_net', 'VGG16_onnx')
    """
    stem = file_name(path.stem)
    letters = "".join(filter(str.isalnum, stem.lower()))
    is_taken = any(letters == name.replace("_", "") for name in BASES)
    return f"{stem}_{path.suffix[1:]}" if is_taken else stem


def describe(path: Path) -> FileDescription:
    """Describe a file, once per process; its errors are one line each."""
    if not path.is_file():
        raise NoInputError(
            f"--base {printable(path)}: no such file; expected a file that ends in "
            f"{' or '.join(FILE_SUFFIXES)}"
        )
    return _describe(path, version_of(path))


def version_of(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written again."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache
def _describe(path: Path, version: tuple[int, ...]) -> FileDescription:
    from pipeline.bases import keras_file, onnx_file

    if path.suffix == ".onnx":
        return onnx_file.describe(path, version)
    return keras_file.describe(path, version)


def read_sidecar(path: Path) -> Mapping[str, Any]:
    """Read the sidecar of a base file, ``net.base.toml`` for ``net.onnx``; {} without one.

    Raises BadDataError for unknown keys, and values of another kind.
    """
    sidecar = path.with_suffix(".base.toml")
    if not sidecar.is_file():
        return {}
    name = printable(sidecar)
    if sidecar.is_symlink():  # of a stranger's archive: nothing outside its folder is read
        raise BadDataError(f"{name} is a link: place the file itself beside the network")
    if sidecar.stat().st_size > MAX_SIDECAR_BYTES:
        raise BadDataError(f"{name} has more than {MAX_SIDECAR_BYTES:,} bytes")
    try:
        values = tomllib.loads(sidecar.read_text("utf-8"))
    except ValueError as error:
        raise BadDataError(f"{name} is not TOML: {printable(str(error))}") from error
    for key, value in values.items():
        if key not in SIDECAR_KINDS:
            similar = difflib.get_close_matches(key, SIDECAR_KINDS, n=1)
            cure = (
                f"did you mean {similar[0]}?" if similar else f"one of {', '.join(SIDECAR_KINDS)}"
            )
            raise BadDataError(f"{name}: unknown key {printable(key)}: {cure}")
        if type(value) is not SIDECAR_KINDS[key]:
            kind = {str: "a text", int: "a whole number", dict: "a table"}[SIDECAR_KINDS[key]]
            raise BadDataError(f"{name}: {key} is {kind}; received {printable(repr(value))}")
        if key in CHOICES and value not in CHOICES[key]:
            expected = ", ".join(CHOICES[key])
            raise BadDataError(
                f"{name}: {key} is one of {expected}; received {printable(repr(value))}"
            )
    try:
        if "mean-std" in values:
            canonical_mean_std(values["mean-std"])
    except ValueError as error:
        raise BadDataError(f"{name}: {error}") from error
    if (probe := values.get("probe")) is not None:
        image, expected = probe.get("image"), probe.get("expected")
        is_valid = probe.keys() <= {"image", "layer", "expected"} and isinstance(image, str)
        numbers = expected if isinstance(expected, list) else []
        if not (is_valid and numbers and all(type(each) in (int, float) for each in numbers)):
            raise BadDataError(f"{name}: probe needs an image, expected = [numbers], and a layer")
        if not image or set(image) & set("/\\:\0") or image in (".", ".."):
            raise BadDataError(f"{name}: the image of the probe is not a plain file name beside it")
    if values.get("image-size", 1) < 1:
        raise BadDataError(f"{name}: image-size is from 1; received {values['image-size']}")
    return values


def resolve_options(path: Path, options: Mapping[str, str | None]) -> dict[str, str]:
    """Return the values of `OPTIONS` for a file: of the options, else the sidecar, else defaults.

    Raises UsageError if the mean and deviation are missing, or a layout that the file leaves open.
    """
    is_onnx, name, sidecar = path.suffix == ".onnx", printable(path), read_sidecar(path)
    given = {key: options[key] or sidecar.get(key.replace("_", "-")) for key in OPTIONS}
    if given["mean_std"] is None:
        raise UsageError(
            f"{name}: --mean-std is missing: choose {', '.join(MEAN_STD)} or m,m,m/s,s,s as the "
            f"network was trained, here or in {printable(path.with_suffix('.base.toml').name)}"
        )
    resolved = {"mean_std": canonical_mean_std(given["mean_std"])}
    resolved["channels"] = given["channels"] or "rgb"
    if not is_onnx:
        if given["layout"] or given["tokens"]:
            raise UsageError(f"--layout and --tokens are for .onnx files; received {name}")
        return resolved
    layout = layout_of(path, given["layout"])
    return {**resolved, "layout": layout, "tokens": given["tokens"] or "cls"}


def layout_of(path: Path, option: str | None) -> str:
    """Return the layout of a file's input: its own, else that of the option or the sidecar.

    Raises UsageError if there is none, or the option contradicts the file.
    """
    layout, name = describe(path).layout, printable(path)
    given = option or read_sidecar(path).get("layout")
    if not (layout or given):
        raise UsageError(f"{name} does not tell its layout: choose --layout nchw or nhwc")
    if layout and given not in (None, layout):
        raise UsageError(f"{name} has the layout {layout}; received --layout {given}")
    return layout or str(given)


def canonical_mean_std(text: str) -> str:
    """Return the name of a mean and deviation if it has one, else its numbers in shortest form.

    Raises ValueError for other texts.

    >>> canonical_mean_std("0.50, 0.5,0.5/0.5,0.5,.5"), canonical_mean_std("127/128")
    ('half', '127,127,127/128,128,128')
    """
    if text in MEAN_STD:
        return text
    expected = f"--mean-std is one of {', '.join(MEAN_STD)}, or m,m,m/s,s,s"
    parts = [part.split(",") for part in text.split("/")]
    try:
        mean, deviation = ([float(number) for number in part] for part in parts)
    except ValueError:
        raise ValueError(f"{expected}; received {printable(repr(text))}") from None
    numbers = [part * 3 if len(part) == 1 else part for part in (mean, deviation)]
    is_valid = all(len(part) == 3 and all(abs(n) < 1e6 for n in part) for part in numbers)
    if not is_valid or min(numbers[1]) <= 0:
        raise ValueError(f"{expected}, three numbers and three above 0; received {printable(text)}")
    shortest = "/".join(",".join(f"{n + 0.0!r}".removesuffix(".0") for n in p) for p in numbers)
    return next((name for name, known in MEAN_STD.items() if known == shortest), shortest)


def rescale_of(mean_std: str, channels: str) -> Rescale:
    """Return the preprocessing (x - mean) / deviation of RGB in 0..255.

    Numbers are in the order of ``channels``, named ones in RGB. If one is above 1, they are those
    of pixels in 0..255, else of pixels in 0..1, as PyTorch has them.
    """
    bgr = channels == "bgr"
    if mean_std == "none":
        return Rescale(bgr=bgr)
    text = MEAN_STD.get(mean_std, mean_std)
    mean, deviation = ([float(n) for n in part.split(",")] for part in text.split("/"))
    if bgr and mean_std in MEAN_STD:
        mean, deviation = mean[::-1], deviation[::-1]
    unit = 1 if max(*mean, *deviation) > 1 else 255
    scale = [1 / (unit * each) for each in deviation]
    offset = [-center / each for center, each in zip(mean, deviation, strict=True)]
    return Rescale(
        bgr=bgr, scale=(scale[0], scale[1], scale[2]), offset=(offset[0], offset[1], offset[2])
    )


def preprocessing_text(path: Path, options: Mapping[str, str]) -> str:
    """Return the preprocessing of a `FeatureSpec`: ``onnx mean_std=unit channels=rgb …``."""
    return " ".join([path.suffix[1:], *(f"{key}={value}" for key, value in options.items())])


def options_in(preprocessing: str) -> dict[str, str] | None:
    """Return the options in a spec's preprocessing; None for that of a named base.

    Raises ValueError for other texts.
    """
    kind, *pairs = preprocessing.split(" ")
    if f".{kind}" not in FILE_SUFFIXES:
        return None
    options = dict(pair.partition("=")[::2] for pair in pairs)
    keys = OPTIONS if kind == "onnx" else OPTIONS[:2]
    is_valid = tuple(options) == keys and options["mean_std"] == canonical_mean_std(
        options["mean_std"]
    )
    if not is_valid or any(options[key] not in CHOICES[key] for key in keys[1:]):
        raise ValueError(f"its preprocessing {printable(preprocessing)!r} is not that of a file")
    return options


def is_base_name(name: str) -> bool:
    """Return whether a name may be that of a file's base: no path, no named base."""
    return bool(re.fullmatch(r"[\w.-]+", name)) and name == base_name(Path(f"{name}.onnx"))
