"""`BaseConfig`: the base, its input pixels and the engine that computes its features."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.bases.file_base import (
    CHANNELS,
    LAYOUTS,
    OPTIONS,
    TOKENS,
    FileDescription,
    canonical_mean_std,
    describe,
    layout_of,
    options_in,
    preprocessing_text,
    read_sidecar,
    rescale_of,
    resolve_options,
    version_of,
)
from pipeline.bases.onnx_file import FileLayer, Measurement, measure, patch_grid
from pipeline.bases.registry import (
    DEFAULT_BASE,
    FILE_SUFFIXES,
    PREPROCESSING,
    PREPROCESSING_POLICIES,
    Base,
    Rescale,
    check_image_size,
    find_base,
)
from pipeline.config import Config, documented, option
from pipeline.cores import usable_cores
from pipeline.errors import NoInputError, UsageError
from pipeline.spec import (
    FULL_RANGE,
    RESIZE_POLICIES,
    FeatureSpec,
    check_seed,
    format_range,
    parse_range,
)

IMAGENET, RANDOM = "imagenet", "random"
AUTO, TENSORFLOW = "auto", "tensorflow"
RUNTIMES = {"onnx": "onnxruntime", "ncnn": "ncnn"}  # engine -> package
ENGINES = (TENSORFLOW, *RUNTIMES)
# Images per call: on 2 cores, VGG16 at 150 pixels is as fast with 8 as with 32, in 0.3 GB less
# memory; with more cores two per core, as an engine computes one or two images per core at a time.
BATCH_SIZE = min(max(8, 2 * usable_cores()), 32)

_base_option = partial(option, group="base")
_file_option = partial(
    option, default=None, group="base in a file: required where FILE.base.toml does not say it"
)


@documented
@dataclass(frozen=True, kw_only=True)
class BaseConfig(Config):
    """Options of the frozen base that computes features of images.

    Raises UsageError for an unknown base or choice or an image size that the base does not support,
    NoInputError if the weights file does not exist.
    """

    base: str = _base_option(
        DEFAULT_BASE,
        type=str,
        help="name in --list-bases, pixels, FILE.onnx or FILE.keras; extract: a comma list",
    )
    image_size: int | None = _base_option(
        None,
        type=int,
        metavar="PIXELS",
        help="height and width of the input (default: 150 for VGG16, else the base's own)",
    )
    weights: str = _base_option(
        IMAGENET, type=str, metavar="W", help="imagenet, random, or a Keras .h5 file"
    )
    preprocessing: str = _base_option(
        "native", choices=PREPROCESSING_POLICIES, help="native: that of the base; rescale: 1/255"
    )
    resize: str = _base_option(  # None until `__post_init__`
        None,
        choices=RESIZE_POLICIES,
        help="squash: stretch (default); crop: centre; pad: black bars",
    )
    range: str = _base_option(
        FULL_RANGE,
        type=str,
        metavar="R",
        help="black and white in images of over 8 bits, signed numbers or floats: full, the range "
        "of their type; auto, what the set uses; or LOW,HIGH, as in --range=-1024,3071",
    )
    engine: str = _base_option(
        AUTO,
        choices=(AUTO, *ENGINES),
        help="runtime of the base; auto: that of the cache, for a new cache the fastest that "
        "agrees with TensorFlow",
    )
    mean_std: str | None = _file_option(
        type=str,
        metavar="M",
        help="imagenet, half, clip, unit (0..1), none (0..255), or m,m,m/s,s,s",
    )
    channels: str | None = _file_option(
        choices=CHANNELS, help="order of colours that the network takes (default: rgb)"
    )
    layout: str | None = _file_option(
        choices=LAYOUTS, help="of a .onnx input, where the file does not tell"
    )
    tokens: str | None = _file_option(
        choices=TOKENS, help="of a .onnx transformer: the class token (default) or the patches"
    )
    batch_size: int = option(BATCH_SIZE, help="images per batch (default: two per core, 8 to 32)")
    seed: int = option(0, help="seed of random weights and views")
    cache_dir: Path = option(
        Path("cache"), metavar="FOLDER", help="folder of caches and downloaded weights"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        if self.range != AUTO:
            object.__setattr__(self, "range", _canonical_range(self.range))
        if self.batch_size < 1:
            raise UsageError(f"--batch-size needs at least 1; received {self.batch_size}")
        if self.mean_std is not None:
            try:
                object.__setattr__(self, "mean_std", canonical_mean_std(self.mean_std))
            except ValueError as error:
                raise UsageError(str(error)) from error
        self._check_file_options()
        check_image_size(self.network, self.size)
        if self.weights_file is not None and not self.weights_file.is_file():
            raise NoInputError(
                f"weights {self.weights}: no such file; expected imagenet, random or a .h5 file"
            )

    @property
    def network(self) -> Base:
        """The row of the base in the table of bases."""
        return find_base(self.base)

    @property
    def file(self) -> Path | None:
        """The path of a base in a file."""
        is_file = self.base.endswith(FILE_SUFFIXES)
        return Path(self.base).expanduser() if is_file else None

    @property
    def onnx_file(self) -> Path | None:
        """The path of a base in a .onnx file."""
        return self.file if self.file and self.file.suffix == ".onnx" else None

    @property
    def description(self) -> FileDescription:
        """What the file of a base says about it."""
        return describe(Path(self.base).expanduser())

    @property
    def measured(self) -> Measurement:
        """The layers of a .onnx file at this image size."""
        path = Path(self.base).expanduser()
        return measure(path, self.size, layout_of(path, self.layout), version_of(path))

    def file_layers(self, names: Sequence[str]) -> list[FileLayer]:
        """Return layers of a .onnx file, by default the last map or tokens.

        Raises UsageError for a name that it does not have, or tokens without a class token.
        """
        measured, layers = self.measured, []
        for name in names or [measured.default]:
            layer = measured.find(name)
            if layer is None:
                known = [each.name for each in measured.layers]
                similar = difflib.get_close_matches(name, known, n=3)
                hint = f"did you mean {' or '.join(similar)}? " if similar else ""
                raise UsageError(
                    f"--layer: {self.base} has no layer {name!r}: {hint}--list-layers {self.base} "
                    f"shows all {len(known)}"
                )
            side = patch_grid(layer.shape[0], self.size) if layer.form == "tokens" else 0
            if side and side**2 == layer.shape[0] and self.file_options["tokens"] == "cls":
                raise UsageError(
                    f"--tokens: {name} of {self.base} has {side} × {side} patches and no class "
                    f"token: choose --tokens patches"
                )
            layers.append(layer)
        return layers

    @property
    def file_options(self) -> dict[str, str]:
        """The preprocessing of a base in a file, see `resolve_options`; {} for a named base."""
        given = {name: getattr(self, name) for name in OPTIONS}
        return resolve_options(self.file, given) if self.file else {}

    @property
    def preprocessing_text(self) -> str:
        """The preprocessing in a `FeatureSpec`."""
        return preprocessing_text(self.file, self.file_options) if self.file else self.preprocessing

    @property
    def size(self) -> int:
        """Height and width of the input in pixels."""
        return self.network.image_size if self.image_size is None else self.image_size

    @property
    def rescale(self) -> Rescale:
        if self.file:
            return rescale_of(self.file_options["mean_std"], self.file_options["channels"])
        is_native = self.preprocessing == "native"
        return PREPROCESSING[self.network.preprocessing if is_native else self.preprocessing]

    @property
    def weights_file(self) -> Path | None:
        return None if self.weights in (IMAGENET, RANDOM) else Path(self.weights).expanduser()

    @property
    def weights_folder(self) -> Path:
        """Return the folder of ImageNet weights from the package index and of weight digests."""
        return self.cache_dir / "weights"

    def _check_file_options(self) -> None:
        """Raise UsageError for options that do not belong to the base; set the default resize."""
        file = self.file
        default = read_sidecar(file).get("resize", "squash") if file else "squash"
        object.__setattr__(self, "resize", self.resize or default)
        flags = {name: f"--{name.replace('_', '-')}" for name in OPTIONS}
        given = [flags[name] for name in OPTIONS if getattr(self, name) is not None]
        if file is None:
            if given:
                raise UsageError(
                    f"{given[0]} is for a base in a file, FILE.onnx or FILE.keras; {self.base} has "
                    f"its own preprocessing"
                )
            return
        if self.preprocessing != "native":
            raise UsageError(f"--preprocessing is for named bases; use --mean-std with {file}")
        if self.weights != IMAGENET:
            raise UsageError(f"--weights is for named bases: {file} contains its weights")
        if self.onnx_file and self.engine not in (AUTO, "onnx"):
            raise UsageError(f"--engine {self.engine} cannot run {file}: leave --engine out")
        fixed = describe(file).image_size
        if fixed and self.size != fixed:
            raise UsageError(
                f"{file} takes images of {fixed} pixels; received --image-size {self.size}"
            )


def base_options(spec: FeatureSpec, weights: str) -> dict[str, Any]:
    """Return the fields of a `BaseConfig` that compute features of a spec again.

    ``weights`` : where the weights are now: ``imagenet``, a weights file, or the file of the base.
    Raises ValueError for a spec that no base has, UsageError for another file than that of a base.
    """
    shared = {"image_size": spec.image_size, "resize": spec.resize, "range": spec.range}
    if (options := options_in(spec.preprocessing)) is not None:
        suffix = f".{spec.preprocessing.partition(' ')[0]}"
        if not weights.endswith(suffix):
            raise UsageError(
                f"expected the {suffix} file of the base {spec.base}; received {weights}"
            )
        if not Path(weights).is_file():
            raise NoInputError(
                f"the file of the base {spec.base}, {weights}, does not exist: pass its new path "
                f"with --weights FILE"
            )
        return {**shared, "base": weights, **options}
    kind, _, seed = spec.weights.partition("-")
    is_random = kind == RANDOM
    return {
        **shared,
        "base": spec.base,
        "preprocessing": spec.preprocessing,
        "weights": RANDOM if is_random else weights,
        "seed": int(seed) if is_random else 0,
    }


def _canonical_range(text: str) -> str:
    try:
        limits = parse_range(text)
    except ValueError as error:
        raise UsageError(f"--range: {error}; auto measures the range") from error
    return format_range(*limits) if limits else text
