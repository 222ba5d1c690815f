"""Crashes at every call that changes the disk: nothing acknowledged is lost, nothing is made up.

A `Sweep` runs one scenario on a `SimulatedDisk` and checks everything that a kill or a power cut
could leave at any of its calls, and then every call failing once. The planted faults at the end
show that it would notice.
"""

import copy
import errno
import hashlib
import io
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import h5py
import numpy as np
import pytest
from simulated_disk import (
    ERRORS,
    KILL,
    SURVIVALS,
    Folder,
    SimulatedDisk,
    Tree,
    read_tree,
    write_tree,
)
from synthetic_images import draw

from pipeline import api, durable
from pipeline.cache import compute, fill, maintenance, provenance, publish, shards
from pipeline.cache import file as cache_file
from pipeline.cache.checksums import find_damage, read_checksums
from pipeline.cache.fill import fill_cache
from pipeline.cache.shards import ShardFolder
from pipeline.durable import TEMPORARY_SUFFIX, DiskFile, sync_folder
from pipeline.errors import PipelineError
from pipeline.images.decode import decode
from pipeline.images.hashes import hash_files
from pipeline.images.scan import scan_folder
from pipeline.spec import FeatureSpec

ROWS_PER_SHARD = 4
SIZE = 8  # pixels
CACHE = "synthetic.h5"
SPEC = FeatureSpec(
    base="tiny",
    weights="none",
    preprocessing="native",
    image_size=SIZE,
    resize="squash",
    pixels="p",
    dtype="float32",
)

Rows = frozenset[tuple[str, bytes]]  # (layer key, pixels): what must not be computed again


class TracingEngine:
    """The pixels themselves as maps; knows which images it has computed, and can die."""

    name, version, weights = "tracing", "1", "none"

    def __init__(self, *, die_after: int | None = None) -> None:
        self.error: dict[str, float] = {}
        self.computed: list[tuple[str, bytes]] = []
        self.row_shapes: dict[str, tuple[int, ...]] = {}
        self.calls_at_once = 1
        self._die_after = die_after

    def open(self, layers: Sequence[str], *_: Any) -> "TracingEngine":
        self.row_shapes = {key: (3,) if key.endswith("avg") else (SIZE, SIZE, 3) for key in layers}
        return self

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if self._die_after is not None and len(self.computed) >= self._die_after:
            raise KeyboardInterrupt
        self.computed += [(key, pixels.tobytes()) for pixels in images for key in self.row_shapes]
        maps = images.astype(np.float32)
        return {key: maps.mean((1, 2)) if key.endswith("avg") else maps for key in self.row_shapes}


# ---- scenarios: what stands before, and the run that crashes


@dataclass(frozen=True)
class Scenario:
    """``prepare(images, cache)`` leaves what stands before; ``run(images, cache, engine)`` is what
    crashes, and what goes on afterwards."""

    prepare: Callable[[Path, Path], None]
    run: Callable[[Path, Path, TracingEngine], None]
    may_leave_shards: bool = False  # for the next extraction to remove


def draw_images(root: Path, count: int, *, seed: int = 0) -> None:
    """``count`` images, alternately of two classes."""
    for number in range(seed, seed + count):
        folder = root / ("plain", "striped")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = draw(number, stripes=bool(number % 2), size=(SIZE, SIZE))
        picture.save(folder / f"{number:03d}.png")


def extract(
    root: Path,
    cache: Path,
    engine: TracingEngine,
    *,
    layers: Sequence[str] = ("maps",),
    limit: int | None = None,
) -> None:
    images = scan_folder(root)
    if limit:
        images = images.limited(limit)
    digests, unreadable = hash_files(root, images.paths)
    fill_cache(
        cache / CACHE,
        images=images,
        digests=digests,
        skipped=(*images.skipped, *unreadable),
        spec=SPEC,
        layers=layers,
        open_engine=engine.open,
        document={"format": 1, "spec": vars(SPEC), "set": root.name, "root": str(root)},
        batch_size=ROWS_PER_SHARD,
    )


def nothing(root: Path, cache: Path) -> None:
    draw_images(root, 10)
    (root / "plain/broken.png").write_bytes(b"no image")


def ten_rows(root: Path, cache: Path) -> None:
    nothing(root, cache)
    extract(root, cache, TracingEngine())


def five_more_images(root: Path, cache: Path) -> None:
    ten_rows(root, cache)
    draw_images(root, 5, seed=100)


def images_moved(root: Path, cache: Path) -> None:
    ten_rows(root, cache)
    (root / "plain/000.png").rename(root / "plain/renamed.png")
    (root / "plain/002.png").rename(root / "striped/other label.png")
    (root / "plain/broken.png").unlink()  # skipped.csv has to go


def one_more_broken(root: Path, cache: Path) -> None:
    ten_rows(root, cache)
    (root / "plain/cut.png").write_bytes((root / "plain/000.png").read_bytes()[:60])


def two_shards(root: Path, cache: Path) -> None:
    nothing(root, cache)
    with pytest.raises(KeyboardInterrupt):
        extract(root, cache, TracingEngine(die_after=2 * ROWS_PER_SHARD))


def second_layer(root: Path, cache: Path, engine: TracingEngine) -> None:
    extract(root, cache, engine, layers=("maps:avg",))


def fewer_images(root: Path, cache: Path, engine: TracingEngine) -> None:
    extract(root, cache, engine, limit=2)


def damaged_rows_and_labels(root: Path, cache: Path) -> None:
    """Of a cache that `repair` can read: made by the real command's function."""
    draw_images(root, 10)
    api.extract_features(root, base="pixels", image_size=SIZE, out=cache / CACHE)
    seal = read_checksums(cache / CACHE)
    (labels,) = (column for column in seal.columns if column.dataset == "labels")
    content = bytearray((cache / CACHE).read_bytes())
    content[seal.chunks[1].offset + 9] ^= 1
    content[labels.offset] ^= 1
    (cache / CACHE).write_bytes(content)
    for path in cache.iterdir():
        if path.name != CACHE:  # the hash index and the like belong to other tests
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def repair(root: Path, cache: Path, engine: TracingEngine) -> None:
    def open_engine(_: object, layers: tuple[str, ...], **__: Any) -> TracingEngine:
        return engine.open(layers)

    with mock.patch.object(provenance, "open_engine", open_engine):
        api.repair_cache(cache / CACHE)


SCENARIOS = {
    "first extraction": Scenario(nothing, extract),
    "images added": Scenario(five_more_images, extract),
    "images renamed and relabelled": Scenario(images_moved, extract),
    "broken image added": Scenario(one_more_broken, extract),
    "second layer": Scenario(ten_rows, second_layer),
    "resumed": Scenario(two_shards, extract),
    "limit": Scenario(ten_rows, fewer_images),
    "repair": Scenario(damaged_rows_and_labels, repair, may_leave_shards=True),
}


# ---- the sweep


@dataclass(frozen=True)
class Crash:
    """What is left of a run that ended at some call, and what it had promised until then."""

    tree: Tree
    acknowledged: Rows
    returned: bool

    def without_temporary_bytes(self) -> "Crash":
        plain = (
            (name, b"" if name.endswith(TEMPORARY_SUFFIX) else content)
            for name, content in self.tree
        )
        return replace(self, tree=frozenset(plain))


Checked = set[Crash]  # what needs no second look
Covered = set[tuple[str, str]]  # (call site, fault)


class Sweep:
    """One scenario, crashed everywhere.

    Parameters
    ----------
    folder : where everything happens.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.folder = folder
        self.root = folder / "synthetic"
        self._numbers = itertools.count()
        before = folder / "before"
        before.mkdir()
        scenario.prepare(self.root, before)
        self.before = read_tree(before)
        # The uninterrupted run, on the real system: what every crashed one must come to.
        whole, engine = self._place(self.before), TracingEngine()
        self.run(whole, engine)
        self.after = read_tree(whole)
        self.contents = contents(dict(self.after)[CACHE])
        self.pixels = {
            hashlib.sha256(path.read_bytes()).digest(): decode(
                path.read_bytes(), image_size=SIZE
            ).tobytes()
            for path in self.root.rglob("*.png")
            if path.name not in ("broken.png", "cut.png")
        }
        layers = {name.removeprefix("features/") for name in self.contents if "/" in name}
        everything = {(layer, pixels) for layer in layers for pixels in self.pixels.values()}
        self.known_before: Rows = frozenset(everything - set(engine.computed))

    def crashes(self, disk_type: type[SimulatedDisk] = SimulatedDisk, **options: Any) -> "Crashes":
        """Run once on a simulated disk and note what could be left at each of its calls."""
        found = Crashes(self)
        folder = self._place(self.before)
        disk = disk_type(folder, observe=found.watch, **options)
        found.record(disk)
        found.note("the run", "after")
        assert read_tree(folder) == disk.tree(KILL), "something was changed behind durable's back"
        return found

    def crashes_after(self, killed: tuple[Folder, Rows], **options: Any) -> "Crashes":
        """Kill the run where it left this; note what could be left whenever the next one promises
        more. What the first one had not synced is still not synced."""
        model, acknowledged = copy.deepcopy(killed)
        folder = self._place(SimulatedDisk(self.folder, model=model).tree(KILL))
        found = Crashes(self, acknowledged)
        disk = SimulatedDisk(folder, model=model, run=1, **options)
        found.record(disk, on_commit=lambda: found.note("a commit", "after"))
        found.note("the run", "after")
        return found

    def check(self, crash: Crash, label: str, versions: set[bytes | None]) -> None:
        """Look at what is left, go on from there; AssertionError if anything is lost or wrong.

        Parameters
        ----------
        versions : what the cache file may be, None for not there; a whole one, old or new.
        """
        left = dict(crash.tree).get(CACHE)
        if crash.returned:
            assert left is not None, f"{label}: the file of a run that had ended is gone"
            assert contents(left) == self.contents, f"{label}: an ended run's file is an old one"
            skipped = "synthetic.skipped.csv"
            assert dict(crash.tree).get(skipped) == dict(self.after).get(skipped), (
                f"{label}: an ended run's {skipped} is an old one"
            )
        elif left not in versions:
            assert left is not None, f"{label}: the cache file is gone"
            assert contents(left) == self.contents, f"{label}: neither the old file nor the new"
        folder, engine = self._place(crash.tree), TracingEngine()
        try:
            with SimulatedDisk(folder, run=1).mounted():
                self.run(folder, engine)
        except Exception as error:
            raise AssertionError(f"{label}: the next run fails: {error!r}") from error
        again = crash.acknowledged & set(engine.computed)
        assert not again, f"{label}: {len(again)} acknowledged rows were computed again"
        assert len(set(engine.computed)) == len(engine.computed), f"{label}: computed twice"
        self._check_end(folder, label)
        shutil.rmtree(folder)

    def _check_end(self, folder: Path, label: str) -> None:
        """The next run came to what the uninterrupted one came to."""
        end = dict(read_tree(folder))
        assert contents(end[CACHE]) == self.contents, f"{label}: other rows than uninterrupted"
        assert not find_damage(folder / CACHE), f"{label}: damaged"
        others = {name: content for name, content in end.items() if name != CACHE}
        if self.scenario.may_leave_shards:
            others = {name: found for name, found in others.items() if ".parts" not in name}
        expected = {name: content for name, content in self.after if name != CACHE}
        assert others == expected, f"{label}: other files than uninterrupted: {sorted(others)}"

    def check_failures(self, sound: "Crashes", checked: Checked, *, thorough: bool) -> Covered:
        """Let each call of a sound run fail once and check what is left then.

        Every call fails with one error and every call site with each that it can answer; every
        call with each of them where ``thorough``.
        """
        covered: Covered = set()
        for number, site in enumerate(sound.sites, start=1):
            errors = ERRORS[site.rpartition(" > ")[2]]
            for code in errors:
                fault = f"fails with {errno.errorcode[code]}"
                if (site, fault) in covered and not (thorough or code == errors[number % 2 - 1]):
                    continue
                covered.add((site, fault))
                folder = self._place(self.before)
                failing = Crashes(self)
                failing.record(SimulatedDisk(folder, fail_at=number, error=code))
                failing.note(site, fault)
                failing.check(checked, sound.versions())
                shutil.rmtree(folder)
        return covered

    def _place(self, tree: Tree) -> Path:
        folder = self.folder / str(next(self._numbers))
        write_tree(tree, folder)
        return folder

    def run(self, folder: Path, engine: TracingEngine) -> None:
        self.scenario.run(self.root, folder, engine)


class Crashes:
    """The distinct crashes of one run, each with the first place that it was met at.

    Attributes
    ----------
    sites : the call site of each call, in order.
    killed : what a process leaves that is killed before the first call of a site.
    """

    def __init__(self, sweep: Sweep, acknowledged: Rows | None = None) -> None:
        self.sites: list[str] = []
        self.covered: Covered = set()
        self.killed: dict[str, tuple[Folder, Rows]] = {}
        self._sweep = sweep
        self._acknowledged = sweep.known_before if acknowledged is None else acknowledged
        self._returned = False
        self._found: dict[Crash, str] = {}
        self._disk: SimulatedDisk | None = None

    def record(self, disk: SimulatedDisk, *, on_commit: Callable[[], None] | None = None) -> None:
        """Run the scenario on a disk; a failure that the disk made may end it."""
        self._disk = disk
        with disk.mounted(), self._commits_noted(on_commit):
            try:
                self._sweep.run(disk.root, TracingEngine())
                self._returned = True
            except (PipelineError, OSError):
                assert disk.failed, "a run fails although no call failed"

    def watch(self, site: str, moment: str) -> None:
        """Observe a disk: note the call and every end there could be at this point."""
        assert self._disk is not None
        if moment == "before":
            self.sites.append(site)
            if site not in self.killed:
                self.killed[site] = copy.deepcopy(self._disk.model), self._acknowledged
        if moment != "after":  # that is before the next one
            self.covered.add((site, f"ends {moment}"))
        self.note(site, moment)

    def note(self, site: str, moment: str) -> None:
        """Every end there could be now."""
        assert self._disk is not None
        for survival in SURVIVALS:
            crash = Crash(self._disk.tree(survival), self._acknowledged, self._returned)
            self._found.setdefault(crash, f"{survival}, {moment} {site}")

    def versions(self) -> set[bytes | None]:
        """The cache file before and after; and between, where one run publishes it twice."""
        found = {dict(self._sweep.before).get(CACHE), dict(self._sweep.after)[CACHE]}
        for crash, label in self._found.items():
            if label.startswith(f"{KILL}, after") and label.endswith("> rename"):
                found.add(dict(crash.tree).get(CACHE))
        return found

    def ends(self) -> Iterable[Crash]:
        return self._found

    def check(
        self, checked: Checked, versions: set[bytes | None], *, thorough: bool = False
    ) -> None:
        """Check each crash that was not checked before.

        Unless ``thorough``, those that differ only in the bytes of temporary files count as one.
        """
        for crash, label in self._found.items():
            seen = crash if thorough else crash.without_temporary_bytes()
            if seen not in checked:
                self._sweep.check(crash, label, versions)
                checked.add(seen)

    @contextmanager
    def _commits_noted(self, on_commit: Callable[[], None] | None) -> Iterator[None]:
        """When a commit returns, its rows count as acknowledged."""
        commit = ShardFolder.commit

        def noted(folder: ShardFolder, keys: Any, features: Any, **options: Any) -> None:
            commit(folder, keys, features, **options)
            pixels = [self._sweep.pixels[key.digest] for key in keys]
            self._acknowledged |= set(itertools.product(features, pixels))
            if on_commit:
                on_commit()

        with mock.patch.object(ShardFolder, "commit", noted):
            yield


class Swept(NamedTuple):
    """A sweep with what its sound run leaves and what of that has been checked."""

    sweep: Sweep
    sound: Crashes
    checked: Checked


def contents(data: bytes) -> dict[str, Any]:
    """All arrays of an HDF5 file, bit by bit, read by plain h5py; empty if it is not whole."""
    return dict(_contents(data))


@lru_cache(256)
def _contents(data: bytes) -> tuple[tuple[str, Any], ...]:
    found: list[tuple[str, Any]] = []

    def add(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            values = np.asarray(node[()])
            plain = repr(values.tolist()) if values.dtype == object else values.tobytes()
            found.append((name, (values.shape, str(values.dtype), plain)))

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            file.visititems(add)
    except (OSError, RuntimeError):
        return ()
    return tuple(found)


# ---- the tests


@pytest.fixture(scope="module", autouse=True)
def _small_shards() -> Iterator[None]:
    with (
        mock.patch.object(cache_file, "ROWS_PER_CHUNK", ROWS_PER_SHARD),
        mock.patch.object(compute, "SECONDS", 0.0),
    ):
        yield


@pytest.fixture(scope="module")
def sweep_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Swept]:
    """Scenario name -> its sweep, what a sound run leaves, and what of that has been checked."""

    @cache
    def make(name: str) -> Swept:
        sweep = Sweep(SCENARIOS[name], tmp_path_factory.mktemp("sweep"))
        return Swept(sweep, sweep.crashes(), set())

    return make


def check_all(found: Iterable[Crashes], checked: Checked, versions: set[bytes | None]) -> None:
    for crashes in found:
        crashes.check(checked, versions)


def sweep_all(swept: Swept, *, thorough: bool) -> None:
    sweep, sound, checked = swept
    sound.check(checked, sound.versions(), thorough=thorough)
    covered = sound.covered | sweep.check_failures(sound, checked, thorough=thorough)
    print(f"{len(checked)} different ends, each one of: {'; '.join(SURVIVALS)}")
    for site, pairs in itertools.groupby(sorted(covered), key=lambda pair: pair[0]):
        print(f"  {site}: {', '.join(fault for _, fault in pairs)}")


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_acknowledged_is_lost_at_any_call(
    sweep_of: Callable[[str], Swept], name: str
) -> None:
    sweep_all(sweep_of(name), thorough=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_acknowledged_is_lost_at_any_call_with_any_error(
    sweep_of: Callable[[str], Swept], name: str
) -> None:
    sweep_all(sweep_of(name), thorough=True)


@pytest.mark.parametrize(
    "name",
    [
        "first extraction",
        "images renamed and relabelled",
        "repair",
    ],
)
def test_nothing_is_lost_when_the_run_after_a_killed_one_crashes(
    sweep_of: Callable[[str], Swept], name: str
) -> None:
    sweep, sound, checked = sweep_of(name)
    for site, killed in sound.killed.items():
        try:
            sweep.crashes_after(killed).check(checked, sound.versions())
        except AssertionError as error:
            raise AssertionError(f"first run killed before {site}: {error}") from error


SITES = {
    "first extraction": (
        "ShardFolder.commit > make_folder > mkdir",
        "ShardFolder.commit > make_folder > sync_folder > fsync folder",
        "ShardFolder.commit > write_durably > DiskFile.__init__ > create",
        "ShardFolder.commit > write_durably > DiskFile.write > write",
        "ShardFolder.commit > write_durably > DiskFile.sync > fsync file",
        "ShardFolder.commit > write_durably > rename",
        "ShardFolder.commit > write_durably > sync_folder > fsync folder",
        "write_skipped > write_durably > DiskFile.write > write",
        "write_skipped > write_durably > DiskFile.sync > fsync file",
        "write_skipped > write_durably > rename",
        "publish > write_durably > write > _copy_whole_chunk > DiskFile.write > write",
        "publish > write_durably > write > write_checksums > DiskFile.write > write",
        "publish > write_durably > DiskFile.sync > fsync file",
        "publish > write_durably > rename",
        "publish > write_durably > sync_folder > fsync folder",
        "ShardFolder.remove_published > remove_folder > remove_file > unlink",
        "ShardFolder.remove_published > remove_folder > rmdir",
    ),
    "images renamed and relabelled": (
        "publish > write_durably > rename",
        "write_skipped > remove_file > unlink",
    ),
    "second layer": ("publish > write_durably > rename",),
    "repair": ("repair_metadata > write_durably > rename", "publish > write_durably > rename"),
}


@pytest.mark.parametrize("name", SITES)
def test_sweep_meets_every_step_of_the_protocol(
    sweep_of: Callable[[str], Swept], name: str
) -> None:
    met = sweep_of(name).sound.sites
    for site in SITES[name]:
        assert any(f" > {one}".endswith(f" > {site}") for one in met), site


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_process_that_is_really_killed_leaves_what_the_sweep_checks(
    sweep_of: Callable[[str], Swept], tmp_path: Path
) -> None:
    sweep, sound, _ = sweep_of("first extraction")
    expected = {crash.tree for crash in sound.ends()}
    for site in sorted(set(sound.sites)):
        number = sound.sites.index(site) + 1
        folder = tmp_path / str(number)
        write_tree(sweep.before, folder)
        child = os.fork()
        if not child:
            with SimulatedDisk(folder, die_at=number, die_half=bool(number % 2)).mounted():
                sweep.run(folder, TracingEngine())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert read_tree(folder) in expected, f"killed at {site}"


def whole_rows(cache: Path) -> set[bytes]:
    """Digests of the rows in whole files, published or not; AssertionError for a damaged one."""
    found: set[bytes] = set()
    for path in cache.rglob("*.h5"):
        assert not find_damage(path), path
        with h5py.File(path) as file:
            found |= {digest.tobytes() for digest in file["digests"][()]}
    return found


@pytest.mark.slow
@pytest.mark.real_data
def test_thirty_random_kills_of_the_real_command_lose_nothing(assets: Path, tmp_path: Path) -> None:
    root = assets / "data/cats_and_dogs/validation"
    command = [sys.executable, "-m", "pipeline.extract", root, "--base", "pixels"]
    delays = random.Random(0)
    cache, kills, earlier = tmp_path / "cache", 0, set[bytes]()
    while kills < 30:
        run = subprocess.Popen([*command, "--cache-dir", cache], stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            assert run.wait(delays.uniform(0.2, 3)) == 0
            shutil.rmtree(cache)  # it ended before its time: once more from the beginning
            earlier = set()
            continue
        run.kill()
        run.wait()
        kills += 1
        now = whole_rows(cache)
        assert now >= earlier, f"{len(earlier - now)} rows lost by kill {kills}"
        earlier = now
    for folder in (cache, tmp_path / "whole"):
        subprocess.run([*command, "--cache-dir", folder], check=True)
    (killed,), (whole,) = cache.glob("*.h5"), (tmp_path / "whole").glob("*.h5")
    with h5py.File(killed) as ours, h5py.File(whole) as theirs:
        for name in ("features/pixels", "labels", "splits", "paths", "digests", "views"):
            np.testing.assert_array_equal(ours[name][()], theirs[name][()])


# ---- shards that the run after an interrupted one has no use for


def test_rows_committed_before_a_smaller_run_are_not_lost(tmp_path: Path) -> None:
    root, cache = tmp_path / "synthetic", tmp_path / "cache"
    cache.mkdir()
    two_shards(root, cache)
    extract(root, cache, TracingEngine(), limit=1)
    engine = TracingEngine()
    extract(root, cache, engine)
    assert len(engine.computed) == 10 - 2 * ROWS_PER_SHARD
    assert sorted(path.name for path in cache.iterdir()) == [
        "synthetic.h5",
        "synthetic.lock",
        "synthetic.skipped.csv",
    ]


def test_first_layer_is_served_while_a_second_is_half_done(tmp_path: Path) -> None:
    root, cache = tmp_path / "synthetic", tmp_path / "cache"
    cache.mkdir()
    ten_rows(root, cache)
    with pytest.raises(KeyboardInterrupt):
        extract(root, cache, TracingEngine(die_after=8), layers=("maps:avg",))
    engine = TracingEngine()
    extract(root, cache, engine)
    assert engine.computed == []
    second_layer(root, cache, engine)
    assert len(engine.computed) == 10 - 2 * ROWS_PER_SHARD


# ---- planted faults: the sweep has to turn red


def assert_red(swept: Swept, **options: Any) -> str:
    """The sweep finds something wrong; says what."""
    with pytest.raises(AssertionError) as caught:
        swept.sweep.crashes(**options).check(set(swept.checked), swept.sound.versions())
    return str(caught.value).partition("\n")[0]


FSYNCS = {
    "ShardFolder.commit > make_folder > sync_folder > fsync folder": "first extraction",
    "ShardFolder.commit > write_durably > DiskFile.sync > fsync file": "first extraction",
    "ShardFolder.commit > write_durably > sync_folder > fsync folder": "first extraction",
    "publish > write_durably > DiskFile.sync > fsync file": "first extraction",
    "publish > write_durably > sync_folder > fsync folder": "first extraction",
    "write_skipped > write_durably > DiskFile.sync > fsync file": "broken image added",
    "write_skipped > write_durably > sync_folder > fsync folder": "broken image added",
    "repair_metadata > write_durably > DiskFile.sync > fsync file": "repair",
}
FSYNC_AFTER_A_KILL = "ShardFolder.settle > sync_folder > fsync folder"
FSYNC_REPEATED_LATER = "repair_metadata > write_durably > sync_folder > fsync folder"  # by settle


@pytest.mark.parametrize("site", FSYNCS)
def test_missing_fsync_is_found(sweep_of: Callable[[str], Swept], site: str) -> None:
    swept = sweep_of(FSYNCS[site])
    assert any(one.endswith(site) for one in swept.sound.sites)
    print(assert_red(swept, without_sync=lambda one: one.endswith(site)))


def test_missing_fsync_of_what_a_killed_run_left_is_found(
    sweep_of: Callable[[str], Swept],
) -> None:
    sweep, sound, _ = sweep_of("first extraction")
    later = [
        sweep.crashes_after(killed, without_sync=lambda one: one.endswith(FSYNC_AFTER_A_KILL))
        for killed in sound.killed.values()
    ]
    with pytest.raises(AssertionError):
        check_all(later, set(), sound.versions())


def test_every_fsync_has_been_left_out(sweep_of: Callable[[str], Swept]) -> None:
    left_out = (*FSYNCS, FSYNC_AFTER_A_KILL, FSYNC_REPEATED_LATER)
    for name in SCENARIOS:
        for site in sweep_of(name).sound.sites:
            assert "fsync" not in site or site.endswith(left_out), site


def without_file_sync() -> AbstractContextManager[object]:
    return mock.patch.object(DiskFile, "sync", DiskFile.check)


def without_folder_sync(caller: str) -> AbstractContextManager[object]:
    def sync_folder_of_others(folder: Path) -> None:
        if sys._getframe(1).f_code.co_name != caller:
            sync_folder(folder)

    return mock.patch.object(durable, "sync_folder", sync_folder_of_others)


@contextmanager
def without_temporary() -> Iterator[None]:
    """Files are written where they belong, without a rename."""

    def write_in_place(path: Path, write: Callable[[DiskFile], object], *, needs: int = 0) -> None:
        durable.remove_file(path)
        with DiskFile(path) as file:
            write(file)
            file.sync()
        durable.sync_folder(path.parent)

    with ExitStack() as patches:
        for module in (fill, publish, shards, maintenance):
            patches.enter_context(mock.patch.object(module, "write_durably", write_in_place))
        yield


@pytest.mark.parametrize(
    "plant",
    [
        without_file_sync,
        partial(without_folder_sync, "write_durably"),
        partial(without_folder_sync, "make_folder"),
        without_temporary,
    ],
    ids=["no file fsync", "no fsync after a rename", "no fsync after mkdir", "no rename"],
)
def test_fault_planted_in_the_code_is_found(
    sweep_of: Callable[[str], Swept], plant: Callable[[], AbstractContextManager[object]]
) -> None:
    swept = sweep_of("first extraction")
    with plant():
        print(assert_red(swept))


class CopyingDisk(SimulatedDisk):
    """Renames by copying: the target is there before it is whole."""

    def replace(self, source: Path, target: Path) -> None:
        descriptor = self.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self.write(descriptor, source.read_bytes())
        self.fsync(descriptor)
        self.close(descriptor)
        self.unlink(source)


@pytest.mark.parametrize("name", ["first extraction", "images renamed and relabelled"])
def test_copy_in_place_of_a_rename_is_found(sweep_of: Callable[[str], Swept], name: str) -> None:
    print(assert_red(sweep_of(name), disk_type=CopyingDisk))
