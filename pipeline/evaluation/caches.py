"""Open the caches of a comparison, check that they match, and split their images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.cache.file import FeatureTable, read_table
from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation.audit_features import read_small
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.groups import check_group_rule
from pipeline.evaluation.label_edits import apply_label_edits, set_normal
from pipeline.evaluation.probe import Floats
from pipeline.evaluation.protocol import TrialPlan
from pipeline.evaluation.rows import CachedViews, images_of, views_suffix
from pipeline.evaluation.splits import Splits
from pipeline.heads.names import classes_of_normal
from pipeline.memory import memory_budget
from pipeline.models.neighbors import CachedNeighbors
from pipeline.spec import UNLABELLED
from pipeline.text import counted, printable

MANY_CLASSES = 12  # more do not fit on one line

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class SplitCache:
    """A cache, its layers to compare, and the splits of its images.

    ``table`` has one row per unaugmented image, in the order of the image numbers of the trials;
    ``views`` includes the rows of augmented views. ``memory`` is the budget in bytes.
    """

    table: FeatureTable
    layers: tuple[str, ...]
    trial_plan: TrialPlan
    views: CachedViews
    memory: int
    _features: dict[str, Floats | None] = field(default_factory=dict, repr=False, compare=False)

    def neighbors(self, layer: str) -> CachedNeighbors:
        """Return the images of a layer as neighbors; see `features`."""
        return CachedNeighbors(self.table, layer, self.features(layer))

    def features(self, layer: str) -> Floats | None:
        """Return the features (N, D) that neighbors and the audit compare; None if they are large.

        Those of the last layer are read once.
        """
        if layer not in self._features:
            self._features.clear()
            self._features[layer] = read_small(self.table, layer, self.memory)
        return self._features[layer]

    def describe(self) -> dict[str, Any]:
        """Return the entry of results.json."""
        table = self.table
        return {
            "path": printable(table.path.as_posix()),
            "set": printable(str(table.document.get("set", table.path.stem))),
            "layers": list(self.layers),
            "fingerprint": table.spec.fingerprint,
            "spec": table.spec.to_dict(),
            "engine": table.document.get("engine"),
            "versions": table.document.get("versions"),
            "created": table.document.get("created"),
            "augmentation": table.document.get("augmentation"),
            "cached_views": int(self.views.rows.views.max(initial=0)),
            "views": self.views.rows.train_views,
            "tta": self.views.rows.tta_views,
            "split_source": self.trial_plan.source,
            "split_counts": self.splits.counts,
        }

    def split_lines(self) -> list[str]:
        """Return a line per split: ``train       500 cats, 500 dogs × 5 views``."""
        rows = self.views.rows
        fold = "fold 1 " if self.trial_plan.folds else ""
        views = {"train": rows.train_views, "validation": rows.tta_views, "test": rows.tta_views}
        return [
            f"{fold}{name:10}  {_counts_text(counts)}{views_suffix(views[name])}"
            for name, counts in self.splits.counts.items()
        ]

    @property
    def splits(self) -> Splits:
        """The splits of the first trial; sizes of other folds differ by about one image."""
        return self.trial_plan.trials[0].splits


def open_caches(paths: Sequence[Path], config: ClassifyConfig) -> list[SplitCache]:
    """Open caches of the same classes and split each; ``block5_pool`` selects all its poolings."""
    if not paths:
        raise UsageError("there is no cache to compare; name a cache file")
    return split_tables([read_table(path) for path in _without_repeats(paths)], config)


def split_tables(tables: Sequence[FeatureTable], config: ClassifyConfig) -> list[SplitCache]:
    """Split the images of tables, as `open_caches`."""
    protocol, layers, edits = config.evaluation_protocol, config.layers, config.label_files
    _check_task(tables, config.task)
    replace(config, task=tables[0].task).requests  # noqa: B018 - raises for options of other tasks
    check_group_rule(protocol.group_of, [table.columns for table in tables])
    normal = config.normal
    if edits:  # those of a run with --normal name its classes
        named = () if normal is None else classes_of_normal(normal)
        tables = apply_label_edits(edits, tables, more_classes=named)
    if normal is not None:
        tables = set_normal(normal, tables)
    _check_same_classes(tables)
    _check_layers(tables, layers)
    opened: list[SplitCache] = []
    for table in tables:
        selected = tuple(layer for layer in table.layers if not layers or _is_named(layer, layers))
        if not selected:
            log.warning("%s contains none of the requested layers: skipped", printable(table.path))
            continue
        cached = CachedViews.of(table)
        images = cached.images
        plan = protocol.plan_trials(images.columns, images.classes, images.task)
        train, evaluation = images_of(plan.trials)
        views = cached.select_views(
            train=train, evaluation=evaluation, views=config.views, tta=config.tta
        )
        cache = SplitCache(images, selected, plan, views, memory_budget(config.memory))
        log.info("%s: %s, %s", printable(table.path), counted(len(images), "image"), plan.source)
        if not opened or cache.split_lines() != opened[-1].split_lines():
            for line in cache.split_lines():
                log.info("  %s", line)
        opened.append(cache)
    return opened


def _without_repeats(paths: Sequence[Path]) -> list[Path]:
    """Return each file once: a repeat would be compared with itself."""
    files = {path.resolve(): path for path in reversed(paths)}
    if len(files) < len(paths):
        log.warning("a cache is named twice; it is compared once")
    return list(reversed(files.values()))


def _check_task(tables: Sequence[FeatureTable], task: str | None) -> None:
    first = tables[0]
    if first.task == UNLABELLED:
        raise BadDataError(
            f"{printable(first.path)} has no labels, which classify needs: extract a folder of "
            f"class folders, or a table of labels"
        )
    if task not in (None, first.task):
        raise UsageError(
            f"--task {task}: {printable(first.path)} is of {first.task}; omit it, or extract with "
            f"--task {task}"
        )
    for table in tables[1:]:
        if table.task != first.task:
            raise BadDataError(
                f"{printable(table.path)} is of {table.task}, {printable(first.path)} of "
                f"{first.task}; compare caches of one task"
            )


def _check_same_classes(tables: Sequence[FeatureTable]) -> None:
    first = tables[0]
    for table in tables[1:]:
        if table.classes != first.classes:
            raise BadDataError(
                f"{printable(table.path)} has the classes {_names(table.classes)}, "
                f"{printable(first.path)} has {_names(first.classes)}; compare caches of the same "
                f"classes"
            )


def _check_layers(tables: Sequence[FeatureTable], names: Sequence[str]) -> None:
    available = sorted({layer for table in tables for layer in table.layers})
    for name in names:
        if not any(_is_named(layer, [name]) for layer in available):
            raise UsageError(
                f"--layer: no cache contains {printable(name)}; "
                f"choose from {', '.join(map(printable, available))}"
            )


def _is_named(layer: str, names: Sequence[str]) -> bool:
    return layer in names or layer.partition(":")[0] in names


def _counts_text(counts: Mapping[str, int]) -> str:
    """Return ``500 cats, 500 dogs``; for many classes, their number and sizes."""
    if len(counts) > MANY_CLASSES:
        low, high = min(counts.values()), max(counts.values())
        each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        return f"{counted(sum(counts.values()), 'image')} of {len(counts)} classes, {each} each"
    return ", ".join(f"{count:,} {printable(name)}" for name, count in counts.items())


def _names(classes: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in classes[:4])
    return f"{shown} and {len(classes) - 4} more" if len(classes) > 4 else shown
