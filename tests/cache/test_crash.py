"""Crashes at every call that changes the disk lose no committed row and invent none.

A `Sweep` runs one scenario on a `SimulatedDisk`. It checks every state that a kill or a power cut
can leave at any call, then lets every call fail once. The planted faults at the end prove that the
sweep notices them. One short sweep runs with every test; the others are slow.
"""

import copy
import errno
import hashlib
import io
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import h5py
import numpy as np
import pytest
from caches import PIXEL_SPEC, SIZE, PixelEngine, fill, flip
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
from pipeline.cache import compute, maintenance, provenance, publish, shards
from pipeline.cache import file as cache_file
from pipeline.cache import fill as cache_fill
from pipeline.cache.checksums import find_damage, read_checksums
from pipeline.cache.reuse import find_other_rows
from pipeline.cache.shards import ShardFolder
from pipeline.durable import TEMPORARY_SUFFIX, DiskFile, sync_folder
from pipeline.errors import PipelineError
from pipeline.images.decode import decode

ROWS_PER_SHARD = 4
CACHE = "synthetic.h5"
IS_TEMPORARY = re.compile(r"synthetic\.parts/.+\.tmp").fullmatch
Rows = frozenset[tuple[str, bytes]]  # (layer key, pixels): what must not be computed again


# ---- scenarios: the state before, and the run that crashes


@dataclass(frozen=True)
class Scenario:
    """``prepare(images, cache)`` makes the state before; ``run(images, cache, engine)`` crashes,
    and runs again afterwards."""

    prepare: Callable[[Path, Path], None]
    run: Callable[[Path, Path, PixelEngine], None]
    may_leave_shards: bool = False  # the next extraction removes them


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
    engine: PixelEngine,
    *,
    layers: Sequence[str] = ("maps",),
    limit: int | None = None,
) -> None:
    fill(root, cache / CACHE, engine, layers=layers, limit=limit, batch_size=ROWS_PER_SHARD)


def no_cache(root: Path, cache: Path) -> None:
    draw_images(root, 10)
    (root / "plain/broken.png").write_bytes(b"no image")


def ten_rows(root: Path, cache: Path) -> None:
    no_cache(root, cache)
    extract(root, cache, PixelEngine())


def five_more_images(root: Path, cache: Path) -> None:
    ten_rows(root, cache)
    draw_images(root, 5, seed=100)


def images_moved(root: Path, cache: Path) -> None:
    ten_rows(root, cache)
    (root / "plain/000.png").rename(root / "plain/renamed.png")
    (root / "plain/002.png").rename(root / "striped/other label.png")
    (root / "plain/broken.png").unlink()  # skipped.csv must disappear


def one_more_broken(root: Path, cache: Path) -> None:
    ten_rows(root, cache)
    (root / "plain/cut.png").write_bytes((root / "plain/000.png").read_bytes()[:60])


def two_shards(root: Path, cache: Path) -> None:
    no_cache(root, cache)
    with pytest.raises(KeyboardInterrupt):
        extract(root, cache, PixelEngine(die_after=2 * ROWS_PER_SHARD))


def rows_in_another_cache(root: Path, cache: Path) -> None:
    no_cache(root, cache)
    fill(root, cache / "other.h5", PixelEngine())
    draw_images(root, 5, seed=100)


def copy_and_extract(root: Path, cache: Path, engine: PixelEngine) -> None:
    path = cache / CACHE
    others = find_other_rows(spec=PIXEL_SPEC, besides=path)
    fill(root, path, engine, batch_size=ROWS_PER_SHARD, others=others)


def second_layer(root: Path, cache: Path, engine: PixelEngine) -> None:
    extract(root, cache, engine, layers=("maps:avg",))


def fewer_images(root: Path, cache: Path, engine: PixelEngine) -> None:
    extract(root, cache, engine, limit=2)


def damaged_rows_and_labels(root: Path, cache: Path) -> None:
    draw_images(root, 10)
    api.extract_features(root, base="pixels", image_size=SIZE, out=cache / CACHE)
    checksums = read_checksums(cache / CACHE)
    (labels,) = (column for column in checksums.columns if column.dataset == "labels")
    flip(cache / CACHE, checksums.chunks[1].offset + 9)
    flip(cache / CACHE, labels.offset)
    for path in cache.iterdir():
        if path.name != CACHE:  # such as the hash index
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def repair(root: Path, cache: Path, engine: PixelEngine) -> None:
    def open_engine(_: object, layers: tuple[str, ...], **__: Any) -> PixelEngine:
        return engine.open(layers)

    with mock.patch.object(provenance, "open_engine", open_engine):
        api.repair_cache(cache / CACHE)


SCENARIOS = {
    "first extraction": Scenario(no_cache, extract),
    "images added": Scenario(five_more_images, extract),
    "images renamed and relabelled": Scenario(images_moved, extract),
    "broken image added": Scenario(one_more_broken, extract),
    "second layer": Scenario(ten_rows, second_layer),
    "resumed": Scenario(two_shards, extract),
    "rows of another cache": Scenario(rows_in_another_cache, copy_and_extract),
    "limit": Scenario(ten_rows, fewer_images),
    "repair": Scenario(damaged_rows_and_labels, repair, may_leave_shards=True),
}


# ---- the sweep


@dataclass(frozen=True)
class Crash:
    """The files that a run left when it ended at some call, and the rows that it had promised."""

    tree: Tree
    acknowledged: Rows
    returned: bool

    def without_temporary_bytes(self) -> "Crash":
        plain = (
            (name, b"" if name.endswith(TEMPORARY_SUFFIX) else content)
            for name, content in self.tree
        )
        return replace(self, tree=frozenset(plain))


Checked = set[Crash]
Covered = set[tuple[str, str]]  # (call site, fault)


class Sweep:
    """One scenario, crashed everywhere; all files are below ``folder``."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.folder = folder
        self.root = folder / "synthetic"
        self._numbers = itertools.count()
        before = folder / "before"
        before.mkdir()
        scenario.prepare(self.root, before)
        self.before = read_tree(before)
        # Every crashed run must end with what this uninterrupted one writes to the real disk.
        whole, engine = self._place(self.before), PixelEngine()
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
        """Run once on a simulated disk; record each state that a crash at any call can leave."""
        found = Crashes(self)
        folder = self._place(self.before)
        disk = disk_type(folder, observe=found.watch, **options)
        found.record(disk)
        found.note("the run", "after")
        assert read_tree(folder) == disk.tree(KILL), "a change bypassed pipeline.durable"
        return found

    def crashes_after(self, killed: tuple[Folder, Rows], **options: Any) -> "Crashes":
        """Run again after a kill; record each state that a crash can leave after a commit.

        What the killed run had not synced is still not synced.
        """
        model, acknowledged = copy.deepcopy(killed)
        folder = self._place(SimulatedDisk(self.folder, model=model).tree(KILL))
        found = Crashes(self, acknowledged)
        disk = SimulatedDisk(folder, model=model, run=1, **options)
        found.record(disk, on_commit=lambda: found.note("a commit", "after"))
        found.note("the run", "after")
        return found

    def check(self, crash: Crash, label: str, versions: set[bytes | None]) -> None:
        """Run again on what a crash left; AssertionError if anything is lost or wrong.

        ``versions`` : the contents that the cache file may have, None for no file.
        """
        left = dict(crash.tree).get(CACHE)
        if crash.returned:
            assert left is not None, f"{label}: the file of a finished run is gone"
            assert contents(left) == self.contents, f"{label}: a finished run's file is old"
            skipped = "synthetic.skipped.csv"
            assert dict(crash.tree).get(skipped) == dict(self.after).get(skipped), (
                f"{label}: a finished run's {skipped} is old"
            )
        elif left not in versions:
            assert left is not None, f"{label}: the cache file is gone"
            assert contents(left) == self.contents, f"{label}: the file is neither old nor new"
        folder, engine = self._place(crash.tree), PixelEngine()
        try:
            with SimulatedDisk(folder, run=1).mounted():
                self.run(folder, engine)
        except Exception as error:
            raise AssertionError(f"{label}: the next run fails: {error!r}") from error
        again = crash.acknowledged & set(engine.computed)
        assert not again, f"{label}: {len(again)} committed rows were computed again"
        assert len(set(engine.computed)) == len(engine.computed), f"{label}: computed twice"
        self._check_end(folder, label)
        shutil.rmtree(folder)

    def _check_end(self, folder: Path, label: str) -> None:
        """The next run wrote what the uninterrupted one wrote."""
        end = dict(read_tree(folder))
        assert contents(end[CACHE]) == self.contents, f"{label}: other rows than uninterrupted"
        assert not find_damage(folder / CACHE), f"{label}: damaged"
        others = {name: content for name, content in end.items() if name != CACHE}
        # Another process may be writing a shard: its temporary file stays for a day.
        others = {name: data for name, data in others.items() if not IS_TEMPORARY(name)}
        if not any(name.startswith("synthetic.parts/") for name in others):
            others.pop("synthetic.parts", None)
        if self.scenario.may_leave_shards:
            others = {name: data for name, data in others.items() if ".parts" not in name}
        expected = {name: content for name, content in self.after if name != CACHE}
        assert others == expected, f"{label}: other files than uninterrupted: {sorted(others)}"

    def check_failures(self, sound: "Crashes", checked: Checked, *, thorough: bool) -> Covered:
        """Let each call of a sound run fail once and check what that leaves.

        Every call fails with one error, and every call site with each error that it can raise;
        every call with each error if ``thorough``.
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

    def run(self, folder: Path, engine: PixelEngine) -> None:
        self.scenario.run(self.root, folder, engine)


class Crashes:
    """The distinct crashes of one run, each with the call where it first occurs.

    Attributes
    ----------
    sites : the call site of each call, in order.
    killed : call site -> the state that a kill before its first call leaves.
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
        """Run the scenario on a disk, until its end or until a call fails."""
        self._disk = disk
        with disk.mounted(), self._commits_noted(on_commit):
            try:
                self._sweep.run(disk.root, PixelEngine())
                self._returned = True
            except (PipelineError, OSError):
                assert disk.failed, "a run fails although no call failed"

    def watch(self, site: str, moment: str) -> None:
        """Observe a disk: record the call and every state that a crash leaves at this point."""
        assert self._disk is not None
        if moment == "before":
            self.sites.append(site)
            if site not in self.killed:
                self.killed[site] = copy.deepcopy(self._disk.model), self._acknowledged
        if moment != "after":  # the same as before the next call
            self.covered.add((site, f"ends {moment}"))
        self.note(site, moment)

    def note(self, site: str, moment: str) -> None:
        """Record every state that a crash leaves now."""
        assert self._disk is not None
        for survival in SURVIVALS:
            crash = Crash(self._disk.tree(survival), self._acknowledged, self._returned)
            self._found.setdefault(crash, f"{survival}, {moment} {site}")

    def versions(self) -> set[bytes | None]:
        """The cache file before and after, and between if one run publishes it twice."""
        found = {dict(self._sweep.before).get(CACHE), dict(self._sweep.after)[CACHE]}
        for crash, label in self._found.items():
            if label.startswith(f"{KILL}, after") and label.endswith("> rename"):
                found.add(dict(crash.tree).get(CACHE))
        return found

    def trees(self) -> set[Tree]:
        return {crash.tree for crash in self._found}

    def check(
        self, checked: Checked, versions: set[bytes | None], *, thorough: bool = False
    ) -> None:
        """Check each new crash; temporary files' bytes count only if ``thorough``."""
        for crash, label in self._found.items():
            seen = crash if thorough else crash.without_temporary_bytes()
            if seen not in checked:
                self._sweep.check(crash, label, versions)
                checked.add(seen)

    @contextmanager
    def _commits_noted(self, on_commit: Callable[[], None] | None) -> Iterator[None]:
        """Count the rows of a commit as promised when it returns."""
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
    """A sweep, the crashes of its sound run, and those already checked."""

    sweep: Sweep
    sound: Crashes
    checked: Checked


def contents(data: bytes) -> dict[str, Any]:
    """All arrays of an HDF5 file, bit by bit, read by plain h5py; empty if it is damaged."""
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
        mock.patch.object(compute, "SECONDS_PER_COMMIT", 0.0),
    ):
        yield


@pytest.fixture(scope="module")
def sweep_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Swept]:
    """Scenario name -> its sweep, built once."""

    @cache
    def make(name: str) -> Swept:
        sweep = Sweep(SCENARIOS[name], tmp_path_factory.mktemp("sweep"))
        return Swept(sweep, sweep.crashes(), set())

    return make


SITES = {
    "first extraction": (
        "ShardFolder.write > make_folder > mkdir",
        "ShardFolder.write > make_folder > sync_folder > fsync folder",
        "ShardFolder.write > write_durably > DiskFile.__init__ > create",
        "ShardFolder.write > write_durably > DiskFile.write > write",
        "ShardFolder.write > write_durably > DiskFile.sync > fsync file",
        "ShardFolder.write > write_durably > rename",
        "ShardFolder.write > write_durably > sync_folder > fsync folder",
        "write_skipped > write_durably > DiskFile.write > write",
        "write_skipped > write_durably > DiskFile.sync > fsync file",
        "write_skipped > write_durably > rename",
        "publish > write_durably > write > _copy_whole_chunk > DiskFile.write > write",
        "publish > write_durably > write > write_checksums > DiskFile.write > write",
        "publish > write_durably > DiskFile.sync > fsync file",
        "publish > write_durably > rename",
        "publish > write_durably > sync_folder > fsync folder",
        "ShardFolder.remove_published > remove_file > unlink",
        "ShardFolder.remove_published > remove_empty_folder > rmdir",
    ),
    "images renamed and relabelled": (
        "publish > write_durably > rename",
        "write_skipped > remove_file > unlink",
    ),
    "second layer": ("publish > write_durably > rename",),
    "repair": ("repair_metadata > write_durably > rename", "publish > write_durably > rename"),
}


def assert_meets_every_step(swept: Swept, name: str) -> None:
    for site in SITES.get(name, ()):
        assert any(f" > {called}".endswith(f" > {site}") for called in swept.sound.sites), site


def test_no_crash_of_a_first_extraction_loses_a_committed_row(
    sweep_of: Callable[[str], Swept],
) -> None:
    """One short sweep, so that a broken protocol is found without the slow tests."""
    swept = sweep_of("first extraction")
    swept.sound.check(swept.checked, swept.sound.versions())
    assert_meets_every_step(swept, "first extraction")
    with without_file_sync():
        assert_found(swept)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_crash_and_no_failing_call_loses_a_committed_row(
    sweep_of: Callable[[str], Swept], name: str
) -> None:
    sweep, sound, checked = sweep_of(name)
    sound.check(checked, sound.versions(), thorough=True)
    covered = sound.covered | sweep.check_failures(sound, checked, thorough=True)
    print(f"{len(checked)} distinct states, each one of: {'; '.join(SURVIVALS)}")
    for site, pairs in itertools.groupby(sorted(covered), key=lambda pair: pair[0]):
        print(f"  {site}: {', '.join(fault for _, fault in pairs)}")
    assert_meets_every_step(sweep_of(name), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first extraction", "images renamed and relabelled", "repair"])
def test_crash_of_the_run_after_a_killed_one_loses_nothing(
    sweep_of: Callable[[str], Swept], name: str
) -> None:
    sweep, sound, checked = sweep_of(name)
    for site, killed in sound.killed.items():
        try:
            sweep.crashes_after(killed).check(checked, sound.versions())
        except AssertionError as error:
            raise AssertionError(f"first run killed before {site}: {error}") from error


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_really_killed_process_leaves_what_the_sweep_checks(
    sweep_of: Callable[[str], Swept], tmp_path: Path
) -> None:
    sweep, sound, _ = sweep_of("first extraction")
    expected = sound.trees()
    for site in sorted(set(sound.sites)):
        number = sound.sites.index(site) + 1
        folder = tmp_path / str(number)
        write_tree(sweep.before, folder)
        child = os.fork()
        if not child:
            with SimulatedDisk(folder, die_at=number, die_half=bool(number % 2)).mounted():
                sweep.run(folder, PixelEngine())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert read_tree(folder) in expected, f"killed at {site}"


def whole_rows(cache: Path) -> set[bytes]:
    """Digests of the rows in all files, published or not; AssertionError if one is damaged."""
    rows: set[bytes] = set()
    for path in cache.rglob("*.h5"):
        assert not find_damage(path), path
        with h5py.File(path) as file:
            rows |= {digest.tobytes() for digest in file["digests"][()]}
    return rows


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
            shutil.rmtree(cache)  # it finished before the kill: start again
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


# ---- shards that the run after an interrupted one does not use


def test_rows_committed_before_a_smaller_run_are_not_lost(tmp_path: Path) -> None:
    root, cache = tmp_path / "synthetic", tmp_path / "cache"
    cache.mkdir()
    two_shards(root, cache)
    extract(root, cache, PixelEngine(), limit=1)
    engine = PixelEngine()
    extract(root, cache, engine)
    assert len(engine.computed) == ROWS_PER_SHARD  # the batch of the two missing rows
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
        extract(root, cache, PixelEngine(die_after=8), layers=("maps:avg",))
    engine = PixelEngine()
    extract(root, cache, engine)
    assert engine.computed == []
    second_layer(root, cache, engine)
    assert len(engine.computed) == 10 - 2 * ROWS_PER_SHARD


# ---- planted faults: the sweep must fail


def assert_found(swept: Swept, **options: Any) -> str:
    """Assert that the sweep finds an error; return it."""
    with pytest.raises(AssertionError) as caught:
        swept.sweep.crashes(**options).check(set(swept.checked), swept.sound.versions())
    return str(caught.value).partition("\n")[0]


FSYNCS = {
    "ShardFolder.write > make_folder > sync_folder > fsync folder": "first extraction",
    "ShardFolder.write > write_durably > DiskFile.sync > fsync file": "first extraction",
    "ShardFolder.write > write_durably > sync_folder > fsync folder": "first extraction",
    "publish > write_durably > DiskFile.sync > fsync file": "first extraction",
    "publish > write_durably > sync_folder > fsync folder": "first extraction",
    "write_skipped > write_durably > DiskFile.sync > fsync file": "broken image added",
    "write_skipped > write_durably > sync_folder > fsync folder": "broken image added",
    "repair_metadata > write_durably > DiskFile.sync > fsync file": "repair",
}
FSYNC_AFTER_A_KILL = "ShardFolder.recover > sync_folder > fsync folder"
FSYNC_REPEATED_LATER = "repair_metadata > write_durably > sync_folder > fsync folder"  # by recover


@pytest.mark.slow
@pytest.mark.parametrize("site", FSYNCS)
def test_missing_fsync_is_found(sweep_of: Callable[[str], Swept], site: str) -> None:
    swept = sweep_of(FSYNCS[site])
    assert any(called.endswith(site) for called in swept.sound.sites)
    print(assert_found(swept, without_sync=lambda called: called.endswith(site)))


@pytest.mark.slow
def test_missing_fsync_of_what_a_killed_run_left_is_found(
    sweep_of: Callable[[str], Swept],
) -> None:
    sweep, sound, _ = sweep_of("first extraction")
    checked: Checked = set()

    def check_all() -> None:
        for killed in sound.killed.values():
            later = sweep.crashes_after(
                killed, without_sync=lambda site: site.endswith(FSYNC_AFTER_A_KILL)
            )
            later.check(checked, sound.versions())

    with pytest.raises(AssertionError):
        check_all()


@pytest.mark.slow
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
    """Write files in place, without a rename."""

    def write_in_place(path: Path, write: Callable[[DiskFile], object], *, needs: int = 0) -> None:
        durable.remove_file(path)
        with DiskFile(path) as file:
            write(file)
            file.sync()
        durable.sync_folder(path.parent)

    with ExitStack() as patches:
        for module in (cache_fill, publish, shards, maintenance):
            patches.enter_context(mock.patch.object(module, "write_durably", write_in_place))
        yield


PLANTS = {
    "no file fsync": without_file_sync,
    "no fsync after a rename": partial(without_folder_sync, "write_durably"),
    "no fsync after mkdir": partial(without_folder_sync, "make_folder"),
    "no rename": without_temporary,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTS)
def test_fault_planted_in_the_code_is_found(sweep_of: Callable[[str], Swept], name: str) -> None:
    swept = sweep_of("first extraction")
    with PLANTS[name]():
        print(assert_found(swept))


class CopyingDisk(SimulatedDisk):
    """Renames by copying: the target exists before it is complete."""

    def replace(self, source: Path, target: Path) -> None:
        descriptor = self.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self.write(descriptor, source.read_bytes())
        self.fsync(descriptor)
        self.close(descriptor)
        self.unlink(source)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first extraction", "images renamed and relabelled"])
def test_copy_instead_of_a_rename_is_found(sweep_of: Callable[[str], Swept], name: str) -> None:
    print(assert_found(sweep_of(name), disk_type=CopyingDisk))
