"""Plan an extraction, and compute a part of it: functions of ``extract --plan`` and ``--part``.

Any number of processes, on one machine or many, compute parts; the ordinary ``extract`` computes
what lacks and publishes the file. Only the folder of caches is shared, and the images are readable
for all, at any place.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.api import PreparedFills, prepare_fills
from pipeline.cache.config import ExtractConfig
from pipeline.cache.fill import RowProgress, write_plan
from pipeline.cache.plan import ComputedUnits, ExtractionPlan, compute_units
from pipeline.cache.provenance import feature_spec, open_cache_engine
from pipeline.cache.row_index import RowIndex
from pipeline.cache.shards import PLAN, ShardFolder
from pipeline.distributed.shared_folder import SharedFolder, SharedShards
from pipeline.errors import BadDataError, NoInputError, PipelineError, UsageError
from pipeline.images.scan import ImageSet
from pipeline.images.sets import Data, open_set, reopen_source
from pipeline.images.source import ImageSource
from pipeline.text import printable

log = logging.getLogger("pipeline")

MAX_LOOKED_UP = 100  # images: each may be a request to a storage


@dataclass(frozen=True)
class PlannedCache:
    """A plan, and the cache file that it is for, or the shared folder of its shards."""

    plan: ExtractionPlan
    cache: Path
    shared: SharedFolder | None = None

    @property
    def path(self) -> Path:
        return self.cache.with_suffix(".parts") / PLAN

    @property
    def name(self) -> str:
        """The path of the plan, or its address."""
        return f"{self.shared.address}/{PLAN}" if self.shared else os.fspath(self.path)

    @property
    def shards(self) -> ShardFolder:
        """A new view of the shards beside the plan."""
        if self.shared:
            return SharedShards(self.shared, self.plan)
        augmentation = self.plan.views.to_document().get("augmentation")
        return ShardFolder(self.cache, self.plan.spec, augmentation)

    @property
    def rows(self) -> int:
        return sum(len(batch) for batches in self.plan.batches.values() for batch in batches)


def plan_extraction(
    data: Data,
    config: ExtractConfig | None = None,
    *,
    engine_progress: Callable[[int, int], None] | None = None,
    on_scan: Callable[[ImageSet], None] | None = None,
    shared: str | None = None,
    **options: Any,
) -> PlannedCache:
    """Find the missing rows of a cache, choose the engine, and write both beside its shards.

    Parameters and errors as in `pipeline.extract_features`; one base. ``shared`` is an address or
    folder for plan and shards.
    """
    config = replace(config or ExtractConfig(), **options)
    prepared = prepare_fills(data, [config], engine_progress, on_scan)
    return plan_prepared(prepared, config, shared)


def plan_prepared(
    prepared: PreparedFills, config: ExtractConfig, shared: str | None = None
) -> PlannedCache:
    """Write the plan of one cache, as `plan_extraction`."""
    images, digests, (fill,), _ = prepared
    folder = SharedFolder(shared) if shared else None
    if folder:
        folder.fetch(fill)
    plan, _ = write_plan(
        fill,
        images=images,
        digests=digests,
        batch_size=config.batch_size,
        plan=config.view_plan,
        wait=config.wait,
    )
    if folder:
        folder.write_plan(plan)
    return PlannedCache(plan, fill.path, folder)


@contextmanager
def computed_elsewhere(
    prepared: PreparedFills,
    *,
    config: ExtractConfig,
    on: str | None,
    shared: str | None,
    progress: RowProgress,
) -> Iterator[int]:
    """Compute the rows of one cache ``on`` a cluster, and fetch those of a ``shared`` folder.

    Yields the number of computed rows; the caller publishes. Then deletes what is published.
    """
    computed = 0
    if on:
        from pipeline.distributed.on_ray import Cluster, connected_ray

        with connected_ray(on) as ray:
            planned = plan_prepared(prepared, config, shared)
            units, done = planned.plan.units, 0
            missing = planned.plan.incomplete_units(planned.shards.read())
            total = sum(units[number].row_count for number in missing)
            for numbers, result in Cluster(ray, planned, config).compute(missing):
                done += sum(units[number].row_count for number in numbers)
                computed += result.rows
                progress(done, total)
    if not shared:
        yield computed
        return
    folder, (fill,) = SharedFolder(shared), prepared.fills
    fetched = folder.fetch(fill)
    yield computed
    folder.remove_published(fill, fetched)


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
    shared: str | None = None,
    **options: Any,
) -> ComputedUnits:
    """Compute the rows of a part ``I/N`` of a plan that the shards lack, and commit them as shards.

    ``data`` and the config are those of the plan; the images may be in another place. Needs no
    lock. Raises NoInputError without a plan, BadDataError if this machine computes other features,
    UnreachableError if it does not have the plan's engine.
    """
    config = replace(config or ExtractConfig(), **options)
    number, count = parse_part(part)
    planned = find_plan(data, config, shared)
    worker = PartWorker(planned, data, config)
    units = range(number - 1, len(planned.plan.units), count)
    return worker.compute(units, progress=progress)


def find_plan(data: Data, config: ExtractConfig, shared: str | None = None) -> PlannedCache:
    """Return the plan of ``--out``, or the only one in the folder of caches for set and base.

    With ``shared``, that of the shared folder. Raises NoInputError for none, UsageError for
    several.
    """
    if shared:
        folder = SharedFolder(shared)
        return PlannedCache(folder.read_plan(), Path(), folder)
    if config.out is not None:
        cache = config.out
        return PlannedCache(ExtractionPlan.read(cache.with_suffix(".parts") / PLAN), cache)
    base, found = config.network.name, []
    failure: PipelineError | OSError | None = None
    for path in sorted(config.cache_dir.glob(f"*.parts/{PLAN}")):
        try:
            planned = PlannedCache(ExtractionPlan.read(path), path.parent.with_suffix(".h5"))
        except (PipelineError, OSError) as error:  # perhaps of another set
            failure = error
            continue
        if planned.plan.spec.base == base:
            found.append(planned)
    if len(found) > 1 or failure:
        name = open_set(data, config).name
        of_set = [each for each in found if each.plan.document["set"] == name]
        if failure and not of_set:
            raise failure
        found = of_set or found
    if not found:
        raise NoInputError(
            f"{printable(config.cache_dir)} contains no plan of {printable(base)}: run the same "
            f"command with --plan first"
        )
    if len(found) > 1:
        names = ", ".join(printable(each.cache) for each in found)
        raise UsageError(f"several plans of {printable(base)}: select one with --out, of {names}")
    return found[0]


class PartWorker:
    """A process that computes units of a plan; its engine stays open between calls.

    Raises BadDataError if this machine computes other features than the plan's, NoInputError if it
    does not have the images or the folder of the plan.
    """

    def __init__(self, planned: PlannedCache, data: Data | None, config: ExtractConfig) -> None:
        plan = planned.plan
        if not planned.shared and not planned.path.exists():  # its parts would be found by nobody
            raise NoInputError(
                f"{printable(planned.path.absolute())} does not exist on this machine: share the "
                f"folder of caches, or use --shared"
            )
        config = replace(config, range=plan.spec.range)
        if (spec := feature_spec(config)) != plan.spec:
            differences = ", ".join(
                f"{name} {value} (here {getattr(spec, name)})"
                for name, value in vars(plan.spec).items()
                if value != getattr(spec, name)
            )
            raise BadDataError(
                f"{printable(planned.name)} is for features with {printable(differences)}: use the "
                f"options and package versions of the plan"
            )
        self._plan = plan
        self._source = _source_of(plan.document, data, config)
        _require_images(plan, self._source)
        self._config = config
        self._shards = planned.shards
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


def _require_images(plan: ExtractionPlan, source: ImageSource) -> None:
    """Raise NoInputError if no image is there, as on a machine without their disk."""
    paths = [batch[0].path for batches in plan.batches.values() for batch in batches]
    for path in paths[:MAX_LOOKED_UP]:
        with suppress(OSError):
            source.stat(path)
            return
    if paths:
        raise NoInputError(
            f"{printable(source.root)} does not contain the images of the plan, such as "
            f"{printable(paths[0])}: name their folder, or run extract with --plan again"
        )
