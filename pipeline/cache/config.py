"""The options of extract and of its views, and which views they make of which images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipeline.bases.config import BaseConfig
from pipeline.config import Config, documented, option
from pipeline.errors import CannotCreateError, UsageError
from pipeline.images.scan import NO_SPLIT, TRAIN
from pipeline.spec import DTYPES, POOLING_POLICIES, layer_key

if TYPE_CHECKING:
    from pipeline.cache.file import RowKey
    from pipeline.images.reader import Pixels
    from pipeline.images.views import Augmentation


@documented
@dataclass(frozen=True, kw_only=True)
class ExtractConfig(BaseConfig):
    """What is extracted from an image folder, and how.

    Raises a `pipeline.errors.PipelineError` for values that cannot be.

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
        help="average or maximum per map: (N, H, W, C) becomes (N, C)",
    )
    dtype: str = option("float32", choices=DTYPES, help="data type of the stored features")
    views: int = option(0, metavar="K", help="random augmented views per training image")
    augmentation: "str | Augmentation" = option(
        "book", flag="", help="augmentation policy: light, book, strong, or an Augmentation"
    )
    tta: bool = option(False, help="also cache views of validation and test images")
    limit_per_class: int | None = option(None, type=int, help="maximum number of files per class")
    strict: bool = option(False, help="stop at the first unreadable image")
    rehash: bool = option(False, help="read and hash unchanged files again")
    wait: bool = option(False, help="wait for another run that writes this cache")
    out: Path | None = option(
        None,
        type=Path,
        metavar="FILE",
        help="cache file (default: CACHE_DIR/SET-BASE-FINGERPRINT.h5)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.layers:
            if ":" in name:
                raise UsageError(
                    f"--layer {name}: name the layer alone, and its pooling by --pooling"
                )
        if self.limit_per_class is not None and self.limit_per_class < 1:
            raise UsageError(f"--limit-per-class needs at least 1; received {self.limit_per_class}")
        if self.out is not None and self.out.suffix != ".h5":
            raise UsageError(f"--out names an HDF5 file, ending in .h5; received {self.out}")
        if self.out is not None and self.out.is_dir():
            raise CannotCreateError(f"{self.out} is a folder; --out names a file")

    @property
    def layer_keys(self) -> tuple[str, ...]:
        """Keys of the layers to cache, see `pipeline.spec.layer_key`."""
        names = self.layers or [self.network.last_layer]
        return tuple(sorted({layer_key(name, self.pooling) for name in names}))

    @property
    def augmentation_ranges(self) -> "Augmentation":
        """What views are drawn from; a policy's name stands for its ranges, with ``seed``."""
        if not isinstance(self.augmentation, str):
            return self.augmentation
        from pipeline.images.views import choose_augmentation

        return choose_augmentation(self.augmentation, seed=self.seed)

    @property
    def view_plan(self) -> "ViewPlan":
        ranges = self.augmentation_ranges  # an unknown policy is an error, views or none
        return ViewPlan(self.views, ranges if self.views else None, self.tta)


MOST_VIEWS = 1000  # 16 bits number them; more than some dozens were never of use to anybody


@dataclass(frozen=True)
class ViewPlan:
    """View 0, the image as it is, of every image; ``views`` random ones of each training image.

    In a set without split folders, of every image: stage two makes the split.
    """

    views: int = 0
    augmentation: "Augmentation | None" = None  # None only if there are no views
    tta: bool = False  # of validation and test images, too, for test-time averaging

    def __post_init__(self) -> None:
        if not 0 <= self.views <= MOST_VIEWS:
            raise UsageError(f"--views is a number from 0 to {MOST_VIEWS}; received {self.views}")
        if bool(self.views) != (self.augmentation is not None):
            raise ValueError("views need an augmentation, and it needs views")
        if self.tta and not self.views:
            raise UsageError("--tta averages over views: say how many with --views")

    def views_of(self, split: int) -> range:
        has_views = self.tta or split in (NO_SPLIT, TRAIN)
        return range(self.views + 1 if has_views else 1)

    def draw(self, key: "RowKey", pixels: "Pixels") -> "Pixels":
        if self.augmentation is None:
            return pixels
        from pipeline.images.views import draw_view

        return draw_view(
            pixels, augmentation=self.augmentation, image_digest=key.digest, view=key.view
        )

    def to_document(self) -> dict[str, Any]:
        """Its part of the file's ``spec`` dataset; nothing where there are no views."""
        if self.augmentation is None:
            return {}
        return {"views": self.views, "tta": self.tta, "augmentation": self.augmentation.to_dict()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The plan that a file was written by; raises ValueError if what it says is odd."""
        if "augmentation" not in document:
            return cls()
        from pipeline.images.views import Augmentation

        views, tta = document.get("views"), document.get("tta")
        if type(views) is not int or type(tta) is not bool:
            raise ValueError("its views and tta should be a number and true or false")
        try:
            return cls(views, Augmentation.from_dict(document["augmentation"]), tta)
        except UsageError as error:
            raise ValueError(str(error)) from error


_GROUP = "augmentation: a policy and changes to it; book: Deep Learning with Python, 5.2"


def _part(metavar: str, text: str) -> Any:
    return option(None, type=float, metavar=metavar, help=text, group=_GROUP)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Config):
    """The parameters of `pipeline.images.views.choose_augmentation`."""

    policy: str = option(
        "book",
        flag="--augment",
        choices=("light", "book", "strong"),
        help="augmentation policy",
        group=_GROUP,
    )
    rotation: float | None = _part("DEGREES", "maximum rotation (book: 40)")
    shift: float | None = _part("SHARE", "maximum shift, of width and height (book: 0.2)")
    shear: float | None = _part("DEGREES", "maximum shear angle (book: 0.2)")
    zoom: float | None = _part("SHARE", "maximum change of scale (book: 0.2)")
    jitter: float | None = _part("SHARE", "maximum change of colours (book: 0)")
    flip: bool | None = option(None, type=bool, help="mirror half of the views", group=_GROUP)
