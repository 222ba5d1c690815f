"""`ExtractConfig`, `AugmentConfig` with the options of views, and `ViewPlan`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipeline.bases.config import BaseConfig
from pipeline.bases.registry import check_layer
from pipeline.config import Config, documented, option
from pipeline.errors import CannotCreateError, UsageError
from pipeline.images.config import LabelConfig
from pipeline.images.scan import NO_SPLIT, TRAIN
from pipeline.spec import DTYPES, POOLING_POLICIES, layer_key

if TYPE_CHECKING:
    from pipeline.cache.file import RowKey
    from pipeline.images.reader import Pixels
    from pipeline.images.views import Augmentation


@documented
@dataclass(frozen=True, kw_only=True)
class ExtractConfig(LabelConfig, BaseConfig):
    """Options of `pipeline.extract_features`.

    Raises a `pipeline.errors.PipelineError` for an invalid value.

    Examples
    --------
    >>> from pipeline import ExtractConfig, extract_features
    >>> extract_features("photos", ExtractConfig(base="pixels", pooling="avg")).table.layers
    {'pixels:avg': (3,)}
    """

    layers: Sequence[str] = option(
        (), flag="--layer", metavar="NAME", help="layer to cache, repeatable (default: the last)"
    )
    pooling: str = option(
        "none",
        choices=POOLING_POLICIES,
        help="average or maximum of each map: (N, H, W, C) becomes (N, C)",
    )
    dtype: str = option("float32", choices=DTYPES, help="type of the stored features")
    views: int = option(0, metavar="K", help="number of random views of each training image")
    augmentation: "str | Augmentation" = option(
        "book", flag="", help="ranges of random views: light, book, strong, or an Augmentation"
    )
    tta: bool = option(False, help="add views of validation and test images, for classify --tta")
    limit_per_class: int | None = option(None, type=int, help="maximum number of files per class")
    strict: bool = option(False, help="stop at the first unreadable image")
    rehash: bool = option(False, help="hash all files again, also unchanged ones")
    wait: bool = option(False, help="wait while another run writes the cache")
    out: Path | None = option(
        None, type=Path, metavar="FILE", help="cache file (default: in --cache-dir)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.layers:
            if ":" in name:
                raise UsageError(f"--layer {name}: set the pooling with --pooling")
            check_layer(self.network, name, "--layer")
        if self.limit_per_class is not None and self.limit_per_class < 1:
            raise UsageError(f"--limit-per-class needs at least 1; received {self.limit_per_class}")
        if self.out is not None and self.out.suffix != ".h5":
            raise UsageError(f"--out names a file ending in .h5; received {self.out}")
        if self.out is not None and self.out.is_dir():
            raise CannotCreateError(f"{self.out} is a folder; --out names a file")

    @property
    def layer_keys(self) -> tuple[str, ...]:
        """Keys of the layers to cache, see `pipeline.spec.layer_key`."""
        names = self.layers or [self.network.last_layer]
        return tuple(sorted({layer_key(name, self.pooling) for name in names}))

    @property
    def augmentation_ranges(self) -> "Augmentation":
        """The ranges that views are drawn from: an Augmentation, or a policy with ``seed``."""
        if not isinstance(self.augmentation, str):
            return self.augmentation
        from pipeline.images.views import choose_augmentation

        return choose_augmentation(self.augmentation, seed=self.seed)

    @property
    def view_plan(self) -> "ViewPlan":
        ranges = self.augmentation_ranges  # an unknown policy is an error even without views
        return ViewPlan(self.views, ranges if self.views else None, self.tta)


MAX_VIEWS = 1000  # fits the int16 column; a few dozen suffice in practice


@dataclass(frozen=True)
class ViewPlan:
    """Which views are cached: view 0 (unaugmented) of every image, ``views`` of training images.

    In a set without split folders every image has random views, as stage two makes the split.
    """

    views: int = 0
    augmentation: "Augmentation | None" = None  # None if and only if views is 0
    tta: bool = False  # also views of validation and test images, for test-time averaging

    def __post_init__(self) -> None:
        if not 0 <= self.views <= MAX_VIEWS:
            raise UsageError(f"--views is a number from 0 to {MAX_VIEWS}; received {self.views}")
        if bool(self.views) != (self.augmentation is not None):
            raise ValueError("views and augmentation need each other")
        if self.tta and not self.views:
            raise UsageError("--tta averages over views: set their number with --views")

    def views_of(self, split: int) -> range:
        """Numbers of the views that each image of a split has."""
        has_views = self.tta or split in (NO_SPLIT, TRAIN)
        return range(self.views + 1 if has_views else 1)

    def draw(self, key: "RowKey", pixels: "Pixels") -> "Pixels":
        """Draw the view of an image, (S, S, 3) uint8, that a row contains."""
        if self.augmentation is None:
            return pixels
        from pipeline.images.views import draw_view

        return draw_view(pixels, self.augmentation, key.digest, key.view)

    def to_document(self) -> dict[str, Any]:
        """Return the plan's entries in the file's ``spec`` dataset; none without views."""
        if self.augmentation is None:
            return {}
        return {"views": self.views, "tta": self.tta, "augmentation": self.augmentation.to_dict()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Read the plan in a file's ``spec`` dataset; raises ValueError if it is invalid."""
        if "augmentation" not in document:
            return cls()
        from pipeline.images.views import Augmentation

        views, tta = document.get("views"), document.get("tta")
        if type(views) is not int or type(tta) is not bool:
            raise ValueError("its views should be an integer, its tta true or false")
        try:
            return cls(views, Augmentation.from_dict(document["augmentation"]), tta)
        except UsageError as error:
            raise ValueError(str(error)) from error


_GROUP = "augmentation: ranges of random views; book: Deep Learning with Python, 5.2"


def _range(metavar: str, text: str) -> Any:
    return option(None, type=float, metavar=metavar, help=text, group=_GROUP)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Config):
    """Options of `pipeline.images.views.choose_augmentation`."""

    policy: str = option(
        "book",
        flag="--augment",
        choices=("light", "book", "strong"),
        help="policy; the options below change its values",
        group=_GROUP,
    )
    rotation: float | None = _range("DEGREES", "maximum rotation (book: 40)")
    shift: float | None = _range("FRACTION", "maximum shift, of width or height (book: 0.2)")
    shear: float | None = _range("DEGREES", "maximum shear (book: 0.2)")
    zoom: float | None = _range("FRACTION", "maximum change of scale (book: 0.2)")
    jitter: float | None = _range("FRACTION", "maximum change of colours (book: 0)")
    flip: bool | None = option(
        None, type=bool, help="mirror each view with a probability of 1/2", group=_GROUP
    )
