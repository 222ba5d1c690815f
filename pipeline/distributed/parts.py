"""Plan an extraction, and compute a part of it: functions of ``extract --plan`` and ``--part``.

Any number of processes, on one machine or many, compute parts; the ordinary ``extract`` computes
what lacks and publishes the file. Only the folder of caches is shared, and the images are readable
for all, at any place.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.api import prepare_fills
from pipeline.cache.config import ExtractConfig
from pipeline.cache.fill import RowProgress, write_plan
from pipeline.cache.plan import ComputedUnits, ExtractionPlan, compute_units
from pipeline.cache.provenance import feature_spec, open_cache_engine
from pipeline.cache.row_index import RowIndex
from pipeline.cache.shards import PLAN, ShardFolder
from pipeline.errors import BadDataError, NoInputError, UsageError
from pipeline.images.scan import ImageSet
from pipeline.images.sets import Data, open_set, reopen_source
from pipeline.images.source import ImageSource
from pipeline.text import printable

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class PlannedCache:
    """A plan, and the cache file that it is for."""

    plan: ExtractionPlan
    cache: Path

    @property
    def path(self) -> Path:
        return self.cache.with_suffix(".parts") / PLAN

    @property
    def rows(self) -> int:
        return sum(len(batch) for batches in self.plan.batches.values() for batch in batches)


def plan_extraction(
    data: Data,
    config: ExtractConfig | None = None,
    *,
    engine_progress: Callable[[int, int], None] | None = None,
    on_scan: Callable[[ImageSet], None] | None = None,
    **options: Any,
) -> PlannedCache:
    """Find the missing rows of a cache, choose the engine, and write both beside its shards.

    Parameters and errors as in `pipeline.extract_features`; one base.
    """
    config = replace(config or ExtractConfig(), **options)
    images, digests, (fill,), _ = prepare_fills(data, [config], engine_progress, on_scan)
    plan, _ = write_plan(
        fill,
        images=images,
        digests=digests,
        batch_size=config.batch_size,
        plan=config.view_plan,
        wait=config.wait,
    )
    return PlannedCache(plan, fill.path)


def parse_part(text: str) -> tuple[int, int]:
    """Parse ``2/8``, the second of eight parts; raises UsageError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise UsageError(f"--part is I/N, such as 2/8 for the second of eight; received {text}")
    return number, count


def compute_part(
    data: Data,
    config: ExtractConfig | None = None,
    *,
    part: str,
    progress: RowProgress | None = None,
    **options: Any,
) -> ComputedUnits:
    """Compute the rows of a part ``I/N`` of a plan that the shards lack, and commit them as shards.

    ``data`` and the config are those of the plan; the images may be in another place. Needs no
    lock. Raises NoInputError without a plan, BadDataError if this machine computes other features,
    UnreachableError if it does not have the plan's engine.
    """
    config = replace(config or ExtractConfig(), **options)
    number, count = parse_part(part)
    planned = find_plan(data, config)
    worker = PartWorker(planned, data, config)
    units = range(number - 1, len(planned.plan.units), count)
    return worker.compute(units, progress=progress)


def find_plan(data: Data, config: ExtractConfig) -> PlannedCache:
    """Return the plan of ``--out``, or the only one in the folder of caches for set and base.

    Raises NoInputError for none, UsageError for several.
    """
    if config.out is not None:
        cache = config.out
        return PlannedCache(ExtractionPlan.read(cache.with_suffix(".parts") / PLAN), cache)
    paths = sorted(config.cache_dir.glob(f"*.parts/{PLAN}"))
    planned = [PlannedCache(ExtractionPlan.read(path), _cache_of(path)) for path in paths]
    base = config.network.name
    found = [each for each in planned if each.plan.spec.base == base]
    if len(found) > 1:
        name = Path(os.fspath(data)).name if isinstance(data, str | os.PathLike) else ""
        found = [each for each in found if each.plan.document["set"] == name] or found
    if not found:
        raise NoInputError(
            f"{printable(config.cache_dir)} contains no plan of {printable(base)}: run the same "
            f"command with --plan first"
        )
    if len(found) > 1:
        names = ", ".join(printable(each.cache) for each in found)
        raise UsageError(f"several plans of {printable(base)}: select one with --out, of {names}")
    return found[0]


def _cache_of(plan: Path) -> Path:
    return plan.parent.with_suffix(".h5")


class PartWorker:
    """A process that computes units of a plan; its engine stays open between calls.

    Raises BadDataError if this machine computes other features than the plan's.
    """

    def __init__(self, planned: PlannedCache, data: Data | None, config: ExtractConfig) -> None:
        plan = planned.plan
        config = replace(config, range=plan.spec.range)
        if (spec := feature_spec(config)) != plan.spec:
            differences = ", ".join(
                f"{name} {value} (here {getattr(spec, name)})"
                for name, value in vars(plan.spec).items()
                if value != getattr(spec, name)
            )
            raise BadDataError(
                f"{printable(planned.path)} is for features with {printable(differences)}: use the "
                f"options and package versions of the plan"
            )
        self._plan = plan
        self._source = _source_of(plan.document, data, config)
        self._config = config
        augmentation = plan.views.to_document().get("augmentation")
        self._shards = ShardFolder(planned.cache, plan.spec, augmentation)
        self._index = RowIndex(None, self._shards.read(verify=False))
        self._engines: dict[tuple[str, ...], Any] = {}

    def compute(
        self, numbers: Sequence[int], *, progress: RowProgress | None = None
    ) -> ComputedUnits:
        """Compute units by number, without the batches that the shards contained at the start."""
        units = [self._plan.units[number] for number in numbers]
        total = sum(len(batch) for unit in units for batch in unit.batches)
        done = 0

        def report(rows: int) -> None:
            nonlocal done
            done += rows
            if progress:
                progress(done, total)

        return compute_units(
            self._plan,
            numbers,
            self._shards,
            self._source,
            self._open_engine,
            index=self._index,
            on_batch=report,
        )

    def _open_engine(self, layers: tuple[str, ...], *arguments: Any) -> Any:
        if layers not in self._engines:
            self._engines[layers] = open_cache_engine(self._config, layers, *arguments)
        return self._engines[layers]


def _source_of(
    document: Mapping[str, Any], data: Data | None, config: ExtractConfig
) -> ImageSource:
    """Return where a worker reads the images: in ``data``, or as recorded; lists no folder."""
    folder = Path(data) if isinstance(data, str | os.PathLike) else None
    is_folder = folder is not None and folder.is_dir() and "folders" not in document
    if data is None or is_folder:
        root = os.fspath(folder.resolve()) if folder else document["root"]
        if (source := reopen_source({**document, "root": root})) is not None:
            return source
        if data is None:
            raise NoInputError(f"the images in {printable(str(root))} are gone: name their folder")
    return open_set(data, config).source
