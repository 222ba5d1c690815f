"""`BaseConfig`: the base, its input pixels and the engine that computes its features."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.bases.registry import (
    DEFAULT_BASE,
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
from pipeline.spec import FULL_RANGE, RESIZE_POLICIES, check_seed, format_range, parse_range

IMAGENET, RANDOM = "imagenet", "random"
AUTO, TENSORFLOW = "auto", "tensorflow"
RUNTIMES = {"onnx": "onnxruntime", "ncnn": "ncnn"}  # engine -> package
ENGINES = (TENSORFLOW, *RUNTIMES)
# Images per call: on 2 cores, VGG16 at 150 pixels is as fast with 8 as with 32, in 0.3 GB less
# memory; with more cores two per core, as an engine computes one or two images per core at a time.
BATCH_SIZE = min(max(8, 2 * usable_cores()), 32)

_base_option = partial(option, group="base")


@documented
@dataclass(frozen=True, kw_only=True)
class BaseConfig(Config):
    """Options of the frozen base that computes features of images.

    Raises UsageError for an unknown base or choice or an image size that the base does not support,
    NoInputError if the weights file does not exist.
    """

    base: str = _base_option(
        DEFAULT_BASE, help="keras.applications model, or pixels; extract: a comma list"
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
    resize: str = _base_option(
        "squash", choices=RESIZE_POLICIES, help="squash: stretch; crop: centre; pad: black bars"
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
    def size(self) -> int:
        """Height and width of the input in pixels."""
        return self.network.image_size if self.image_size is None else self.image_size

    @property
    def rescale(self) -> Rescale:
        is_native = self.preprocessing == "native"
        return PREPROCESSING[self.network.preprocessing if is_native else self.preprocessing]

    @property
    def weights_file(self) -> Path | None:
        return None if self.weights in (IMAGENET, RANDOM) else Path(self.weights).expanduser()

    @property
    def weights_folder(self) -> Path:
        """Return the folder of ImageNet weights from the package index and of weight digests."""
        return self.cache_dir / "weights"


def _canonical_range(text: str) -> str:
    try:
        limits = parse_range(text)
    except ValueError as error:
        raise UsageError(f"--range: {error}; auto measures the range") from error
    return format_range(*limits) if limits else text
