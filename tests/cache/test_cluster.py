"""Processes and Ray nodes that are killed while they compute parts: no row is lost or doubled."""

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from caches import file_size_limit
from command import run_command
from synthetic_images import make_image_folder

from pipeline import extract_features
from pipeline.cache import compute, fill
from pipeline.cache.shards import ShardFolder
from pipeline.distributed.parts import compute_part, plan_extraction
from pipeline.engines import PixelsEngine
from pipeline.errors import StorageError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc"),
]

EPOCH = "1700000000"
IMAGES = 3000
UNITS = 47  # of 64 rows
OPTIONS: dict[str, Any] = {"base": "pixels", "image_size": 16, "batch_size": 8}
FLAGS = ("--base", "pixels", "--image-size", "16", "--batch-size", "8")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_image_folder(tmp_path_factory.mktemp("images") / "set", per_class=IMAGES // 2)
    (folder / "plain" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(autouse=True)
def _pinned_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        done = extract_features(root, **OPTIONS, cache_dir=tmp_path_factory.mktemp("alone"))
    return done.table.path.read_bytes()


class Process:
    """A forked process that computes a part, and may kill itself after a commit."""

    def __init__(self, root: Path, part: str, *, dies_after: int = 0, run: Any = None) -> None:
        self.part = part
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        with contextlib.suppress(BaseException):
            _die_after_commits(dies_after)
            (run or compute_part)(root, **OPTIONS, part=part)
            code = 0
        os._exit(code)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _die_after_commits(number: int) -> None:
    """Commit each chunk; record computed rows; kill this process after a number of commits."""
    compute.SECONDS_PER_COMMIT = 0
    commit, call, commits = ShardFolder.commit, PixelsEngine.__call__, 0

    def commit_and_die(self: ShardFolder, *arguments: Any, **options: Any) -> None:
        nonlocal commits
        commit(self, *arguments, **options)
        commits += 1
        if commits == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def record(self: PixelsEngine, images: Any) -> Any:
        with Path("computed").open("a") as file:
            file.write(f"{len(images)}\n")
        return call(self, images)

    ShardFolder.commit = commit_and_die  # type: ignore[method-assign]
    PixelsEngine.__call__ = record  # type: ignore[method-assign]


def rows_computed() -> int:
    return sum(map(int, Path("computed").read_text().split()))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_parts_of_killed_processes_make_the_file_of_one(
    root: Path, alone: bytes, count: int
) -> None:
    rng = random.Random(count)
    planned = plan_extraction(root, **OPTIONS)
    assert len(planned.plan.units) == UNITS

    def start(part: str) -> Process:
        return Process(root, part, dies_after=rng.choice([1, 1, 2]) if kills < 30 else 0)

    kills = 0
    running = [start(f"{number}/{count}") for number in range(1, count + 1)]
    while running:
        process = running.pop(0)
        if code := process.wait():
            assert code == -signal.SIGKILL
            kills += 1
            running.append(start(process.part))
    assert kills >= 20
    done = extract_features(root, **OPTIONS)
    assert done.table.path.read_bytes() == alone
    assert [file.path for file in done.skipped] == [b"plain/broken.png"]
    assert done.computed == 0
    assert rows_computed() - IMAGES < IMAGES  # again: fewer than a fresh run
    assert not planned.path.parent.exists()


def test_killed_publisher_and_a_process_that_wakes_after_publishing(
    root: Path, alone: bytes
) -> None:
    planned = plan_extraction(root, **OPTIONS)

    def stopped(*arguments: Any, **options: Any) -> None:
        commit = ShardFolder.commit

        def stop_and_commit(self: ShardFolder, *arguments: Any, **options: Any) -> None:
            ShardFolder.commit = commit  # type: ignore[method-assign]
            os.kill(os.getpid(), signal.SIGSTOP)
            commit(self, *arguments, **options)

        ShardFolder.commit = stop_and_commit  # type: ignore[method-assign]
        compute_part(*arguments, **options)

    zombie = Process(root, "1/2", run=stopped)
    os.waitpid(zombie.pid, os.WUNTRACED)  # it has computed rows, and committed none
    assert Process(root, "2/2").wait() == 0

    def killed_at(name: str) -> Callable[..., None]:
        def publish(*arguments: Any, part: str, **options: Any) -> None:
            setattr(fill, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
            extract_features(*arguments, **options)

        return publish

    for name in ("publish_rows", "read_all_rows"):  # before and after the rename
        assert Process(root, "", run=killed_at(name)).wait() == -signal.SIGKILL
    assert planned.cache.read_bytes() == alone
    done = extract_features(root, **OPTIONS)
    assert done.table.path.read_bytes() == alone
    os.kill(zombie.pid, signal.SIGCONT)
    assert zombie.wait() == 0
    assert any(planned.path.parent.glob("*.h5"))
    done = extract_features(root, **OPTIONS)
    assert (done.computed, done.table.path.read_bytes()) == (0, alone)
    assert not planned.path.parent.exists()


def test_full_disk_of_one_process_stops_only_its_part(root: Path, alone: bytes) -> None:
    plan_extraction(root, **OPTIONS)
    with file_size_limit(10_000), pytest.raises(StorageError, match="no space left"):
        compute_part(root, **OPTIONS, part="1/3")
    for number in (2, 3):
        compute_part(root, **OPTIONS, part=f"{number}/3")
    done = extract_features(root, **OPTIONS)
    assert 0 < done.computed <= IMAGES // 3 + 64
    assert done.table.path.read_bytes() == alone


# ---- Ray


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, to which ``--on ray`` connects."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray", reason="needs the extra [ray]")
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    yield nodes
    nodes.shutdown()


def ray_workers() -> list[int]:
    """Return the processes of actors."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::_Worker"):
                found.append(int(path.parent.name))
    return found


class Killer(threading.Thread):
    """Kill a random worker after each of ``kills`` new shards, and lose a node half-way."""

    def __init__(self, cluster: Any, *, kills: int) -> None:
        super().__init__()
        self.cluster, self.planned_kills, self.kills = cluster, kills, 0
        self.is_over = threading.Event()

    def run(self) -> None:
        rng, seen = random.Random(0), 0
        while not self.is_over.wait(0.02) and self.kills < self.planned_kills:
            shards = len(list(Path("cache").glob("*.parts/*.h5")))
            workers = ray_workers()
            if shards > seen and workers:
                seen = shards
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    self.kills += 1
                if self.kills == self.planned_kills // 2:
                    (node,) = self.cluster.worker_nodes
                    self.cluster.remove_node(node, allow_graceful=False)


def test_ray_makes_the_file_of_one_process_while_workers_and_a_node_are_lost(
    root: Path, alone: bytes, cluster: Any
) -> None:
    killer = Killer(cluster, kills=10)
    killer.start()
    finished = run_command("extract", root, *FLAGS, "--on", "ray")
    killer.is_over.set()
    killer.join()
    assert killer.kills == 10
    assert "3,000 images (" in finished.stdout
    assert ", 1 file skipped," in finished.stdout
    assert "its worker has ended" in finished.stderr
    assert f"{UNITS} units computed: " in finished.stderr
    assert Path(finished.stdout.splitlines()[-1]).read_bytes() == alone
    assert not list(Path("cache").glob("*.parts"))
    time.sleep(1)
    assert not ray_workers()
