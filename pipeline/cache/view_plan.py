"""Which views of which images a cache holds, and what they are called in its file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pipeline.cache.keys import RowKey
from pipeline.errors import UsageError
from pipeline.images.reader import Pixels
from pipeline.images.scan import NO_SPLIT, TRAIN
from pipeline.images.views import Augmentation, draw_view

MOST_VIEWS = 1000  # 16 bits number them; more than some dozens were never of use to anybody


@dataclass(frozen=True)
class ViewPlan:
    """View 0, the image as it is, of every image; of some, further ones.

    Attributes
    ----------
    views : K, random views of each training image; of every image where a set has no split
        folders, since stage two makes the split.
    augmentation : what they are drawn from; None only if there are none.
    tta : draw them of validation and test images, too, for test-time averaging.
    """

    views: int = 0
    augmentation: Augmentation | None = None
    tta: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.views <= MOST_VIEWS:
            raise UsageError(f"--views is a number from 0 to {MOST_VIEWS}; received {self.views}")
        if bool(self.views) != (self.augmentation is not None):
            raise ValueError("views need an augmentation, and it needs views")
        if self.tta and not self.views:
            raise UsageError("--tta averages over views: say how many with --views")

    def views_of(self, split: int) -> range:
        """The numbers of the views of an image in a split."""
        has_views = self.tta or split in (NO_SPLIT, TRAIN)
        return range(self.views + 1 if has_views else 1)

    def draw(self, key: RowKey, pixels: Pixels) -> Pixels:
        """The pixels of a row, from those of its image."""
        if self.augmentation is None:
            return pixels
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
        views, tta = document.get("views"), document.get("tta")
        if type(views) is not int or type(tta) is not bool:
            raise ValueError("its views and tta should be a number and true or false")
        try:
            return cls(views, Augmentation.from_dict(document["augmentation"]), tta)
        except UsageError as error:
            raise ValueError(str(error)) from error
