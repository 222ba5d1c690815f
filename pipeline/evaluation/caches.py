"""The caches of a comparison: opened, checked against one another, split."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.file import FeatureTable, read_table
from pipeline.errors import BadDataError, UsageError
from pipeline.evaluation.config import ClassifyConfig
from pipeline.evaluation.groups import check_group_rule
from pipeline.evaluation.label_edits import apply_label_edits
from pipeline.evaluation.protocol import TrialPlan
from pipeline.evaluation.rows import CachedViews, images_of, views_suffix
from pipeline.evaluation.splits import Splits
from pipeline.text import counted, printable

MANY_CLASSES = 12  # more no longer fit on a line

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class SplitCache:
    """A cache, which of its layers are compared, and how its images are divided.

    ``table`` has a row for each image as it is, which the division's numbers refer to; ``views``
    has the rows of the augmented views, too.
    """

    table: FeatureTable
    layers: tuple[str, ...]
    trial_plan: TrialPlan
    views: CachedViews

    def describe(self) -> dict[str, Any]:
        """The cache as results.json records it."""
        table = self.table
        return {
            "path": printable(table.path.as_posix()),
            "set": printable(str(table.document.get("set", table.path.stem))),
            "layers": list(self.layers),
            "fingerprint": table.spec.fingerprint,
            "spec": asdict(table.spec),
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
        """``train       500 cats, 500 dogs × 5 views``, a line for each split."""
        rows = self.views.rows
        views = {"train": rows.train_views, "validation": rows.tta_views, "test": rows.tta_views}
        return [
            f"{name:10}  {_counts_text(counts)}{views_suffix(views[name])}"
            for name, counts in self.splits.counts.items()
        ]

    @property
    def splits(self) -> Splits:
        """Of the first trial; those of other folds differ by an image or so."""
        return self.trial_plan.trials[0].splits


def open_caches(paths: Sequence[Path], config: ClassifyConfig) -> list[SplitCache]:
    """Open caches of the same classes and divide each; a layer's name means all its poolings."""
    protocol, layers, edits = config.evaluation_protocol, config.layers, config.label_files
    if not paths:
        raise UsageError("no cache was given to compare")
    tables = [read_table(path) for path in _once(paths)]
    check_group_rule(protocol.group_of, [table.columns for table in tables])
    if edits:
        tables = apply_label_edits(edits, tables)
    _check_same_classes(tables)
    _check_layers(tables, layers)
    opened: list[SplitCache] = []
    for table in tables:
        chosen = tuple(layer for layer in table.layers if not layers or _is_named(layer, layers))
        if not chosen:
            log.warning("%s holds none of the layers asked for and is left out", table.path)
            continue
        cached = CachedViews.of(table)
        images = cached.images
        division = protocol.plan_trials(images.columns, images.classes)
        train, judged = images_of(division.trials)
        views = cached.chosen(train=train, judged=judged, views=config.views, tta=config.tta)
        cache = SplitCache(images, chosen, division, views)
        log.info(
            "%s: %s, %s", printable(table.path), counted(len(images), "image"), division.source
        )
        if not opened or cache.split_lines() != opened[-1].split_lines():
            for line in cache.split_lines():
                log.info("  %s", line)
        opened.append(cache)
    return opened


def _once(paths: Sequence[Path]) -> list[Path]:
    """Each file once: a second mention would count as another rival of the best."""
    files = {path.resolve(): path for path in reversed(paths)}
    if len(files) < len(paths):
        log.warning("a cache was named twice; it is compared once")
    return list(reversed(files.values()))


def _check_same_classes(tables: Sequence[FeatureTable]) -> None:
    first = tables[0]
    for table in tables[1:]:
        if table.classes != first.classes:
            raise BadDataError(
                f"{_names(table.classes)} are the classes of {table.path}, but "
                f"{_names(first.classes)} those of {first.path}; compare caches of the same classes"
            )


def _check_layers(tables: Sequence[FeatureTable], wanted: Sequence[str]) -> None:
    available = sorted({layer for table in tables for layer in table.layers})
    for name in wanted:
        if not any(_is_named(layer, [name]) for layer in available):
            raise UsageError(
                f"--layer: no cache given holds {printable(name)}; "
                f"choose from {', '.join(map(printable, available))}"
            )


def _is_named(layer: str, names: Sequence[str]) -> bool:
    return layer in names or layer.partition(":")[0] in names


def _counts_text(counts: Mapping[str, int]) -> str:
    """``500 cats, 500 dogs``; of many classes their number and range."""
    if len(counts) > MANY_CLASSES:
        low, high = min(counts.values()), max(counts.values())
        each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        return f"{counted(sum(counts.values()), 'image')} of {len(counts)} classes, {each} each"
    return ", ".join(f"{count:,} {printable(name)}" for name, count in counts.items())


def _names(classes: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in classes[:4])
    return f"{shown} and {len(classes) - 4} more" if len(classes) > 4 else shown
