"""What is asked of fine-tuning; apart from the training, so that mistakes are told at once."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.bases.registry import Base, find_base
from pipeline.bases.weights import IMAGENET, WeightsChoice
from pipeline.cache.view_plan import ViewPlan
from pipeline.engines import AUTO, BATCH_SIZE
from pipeline.errors import UsageError
from pipeline.evaluation.protocol import Protocol
from pipeline.finetuning.settings import Plan
from pipeline.images.views import Augmentation, choose_augmentation
from pipeline.recipe import Recipe
from pipeline.spec import check_seed

METHODS = ("boundary", "end_to_end", "scratch")
USUAL_SPLIT = "60/20/20"  # of a set without split folders
FIRST_UNFROZEN = {"vgg16": "block5_conv1", "vgg19": "block5_conv1"}  # the book's last block


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What to train, on what, and how; checked when it is made.

    Attributes
    ----------
    method : ``boundary`` trains from the cache of the freeze boundary; ``end_to_end`` from the
        images, augmented anew in every epoch; ``scratch`` a small convnet without a base.
    unfreeze : the first layer that learns, beside the head; None for the last block of VGG16 and
        VGG19, and for the head alone where the method is ``end_to_end``.
    views : of each training image, cached; none by default. The other methods draw a new one in
        every epoch, unless this is 0.
    seed : of initial weights, of the order of rows and of dropout.
    """

    data: Path
    method: str = "boundary"
    base: str = "vgg16"
    unfreeze: str | None = None
    image_size: int | None = None
    weights: str = IMAGENET
    preprocessing: str = "native"
    resize: str = "squash"
    views: int | None = None
    augmentation: Augmentation = field(default_factory=choose_augmentation)
    engine: str = AUTO
    batch_size: int = BATCH_SIZE
    split: str | None = None
    split_seed: int = 0
    group: str | None = None
    seed: int = 0
    repeats: int = 1
    plan: Plan = field(default_factory=Plan)
    cache_dir: Path = Path("cache")

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.method not in METHODS:
            raise UsageError(f"--method is one of {', '.join(METHODS)}; received {self.method!r}")
        if not self.chosen_base.module:
            raise UsageError("the base pixels has no layers to train; choose a network")
        if self.method == "scratch" and self.unfreeze:
            raise UsageError("--unfreeze: --method scratch has no base; leave one of them out")
        if self.method == "boundary" and not self.first_unfrozen:
            raise UsageError(
                f"--unfreeze names the first layer of {self.chosen_base.name} that shall learn: "
                f"--list-layers {self.chosen_base.name} of pipeline.extract shows them"
            )

        self.protocol(has_splits=self.split is None)
        ViewPlan(self.cached_views, self.augmentation if self.cached_views else None)
        self.recipe  # noqa: B018 - it checks sizes, policies and the weights file

    @property
    def cached_views(self) -> int:
        """K of the cache."""
        return self.views or 0

    @property
    def augmented(self) -> int | bool:
        """How training images are augmented: K cached views, or whether on the fly."""
        return self.cached_views if self.method == "boundary" else self.views != 0

    @property
    def chosen_base(self) -> Base:
        return find_base(self.base)

    @property
    def first_unfrozen(self) -> str | None:
        if self.unfreeze or self.method != "boundary":
            return self.unfreeze
        return FIRST_UNFROZEN.get(self.chosen_base.name)

    @property
    def recipe(self) -> Recipe:
        base = self.chosen_base
        return Recipe(
            base=base,
            image_size=self.image_size or base.image_size,
            preprocessing=self.preprocessing,
            resize=self.resize,
            dtype="float32",
            weights=WeightsChoice.parse(self.weights),
            cache_folder=self.cache_dir,
            batch_size=self.batch_size,
        )

    def protocol(self, *, has_splits: bool) -> Protocol:
        """How images are divided; folds would be as many trainings."""
        return Protocol.parse(
            folds=None,
            split=self.split or (None if has_splits else USUAL_SPLIT),
            group=self.group,
            split_seed=self.split_seed,
            seed=self.seed,
            repeats=self.repeats,
        )
