"""`ExtractConfig`: the options of `pipeline.extract_features` and of the command extract."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bases.config import BaseConfig
from pipeline.config import documented, option
from pipeline.errors import CannotCreateError, UsageError
from pipeline.spec import DTYPES, POOLING_POLICIES, layer_key

if TYPE_CHECKING:
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
        help="average or maximum of each map: (N, H, W, C) features become (N, C)",
    )
    dtype: str = option("float32", choices=DTYPES, help="type of the stored features")
    views: int = option(0, metavar="K", help="random views of each training image")
    augmentation: "str | Augmentation" = option(
        "book", flag="", help="what views are drawn from: light, book, strong, or an Augmentation"
    )
    tta: bool = option(False, help="views of validation and test images, too, for classify --tta")
    limit_per_class: int | None = option(
        None, type=int, metavar="N", help="use the first N files of each class, for a quick try"
    )
    strict: bool = option(False, help="stop at the first unreadable image")
    rehash: bool = option(False, help="read even files that look unchanged")
    wait: bool = option(False, help="wait for another run on the same cache")
    out: Path | None = option(None, type=Path, metavar="FILE", help="the cache file (.h5)")

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
