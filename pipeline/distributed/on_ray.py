"""Compute a plan's units on a Ray cluster, with one worker on each node.

Ray starts the workers and notices their end. Units whose worker has ended are computed again: at
least once. Shards are named by their rows, so each row exists once.
"""

import contextlib
import logging
import os
import re
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.cache.config import ExtractConfig
from pipeline.cache.plan import ComputedUnits
from pipeline.distributed.parts import PartWorker, PlannedCache
from pipeline.errors import BadDataError, PipelineError, UnreachableError, UsageError
from pipeline.text import counted, error_text, printable

SECONDS_PER_TASK = 10.0  # about: a lost worker loses no more, and a call costs little
SECONDS_PER_LOOK = 2.0  # for nodes that join or leave
MAX_ENDS = 5  # workers that a unit may end: then it is the cause, such as by its memory
NEW_CLUSTER = {"include_dashboard": False, "object_store_memory": 80 << 20}  # results are small

log = logging.getLogger("pipeline")


@contextlib.contextmanager
def connected_ray(address: str) -> Iterator[Any]:
    """Yield the package ray, connected to a cluster; nothing is sent to Ray's authors.

    ``address`` : ``ray`` for the cluster of this machine, which is started if there is none, or
    ``ray://HOST:10001``. Raises UnreachableError without Ray or a cluster with this package.
    """
    if not re.fullmatch(r"ray|ray://[^\s/]+:\d+", address):
        raise UsageError(f"--on: expected ray or ray://HOST:10001; received {printable(address)}")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before the import
    try:
        import ray
    except ImportError as error:
        raise UnreachableError("--on: ray is missing: pip install -e '.[ray]'") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    ray._private.worker._worker_logs_enabled = False  # no paragraph for each worker that ends
    try:
        with warnings.catch_warnings(action="ignore"):
            try:
                ray.init("auto" if address == "ray" else address, **quiet)
            except ConnectionError as refused:
                if address != "ray":
                    raise
                try:
                    ray.init(**NEW_CLUSTER, **quiet)
                except ValueError as error:  # there is a cluster, which refuses
                    raise refused from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UnreachableError(
            f"--on {printable(address)} reaches no Ray cluster ({error_text(error)[:200]}): check "
            f"ray status there, the versions of Python and Ray, and RAY_AUTH_MODE"
        ) from error
    try:
        yield ray
    except ImportError as error:
        raise UnreachableError(
            f"--on {printable(address)}: {error} on the cluster: install this package on each node"
        ) from error
    finally:
        ray.shutdown()


class _Worker:
    """The actor on a node."""

    def __init__(self, arguments: tuple[Any, ...], folder: Path) -> None:
        with contextlib.suppress(OSError):  # a node without this disk
            os.chdir(folder)
        self._arguments = arguments
        self._worker: PartWorker | None = None

    def compute(self, units: Sequence[int]) -> ComputedUnits | PipelineError:
        """Return an expected failure: Ray adds its traceback to one that is raised."""
        try:
            self._worker = self._worker or PartWorker(*self._arguments)
            return self._worker.compute(units)
        except PipelineError as error:
            return error


class Cluster:
    """The nodes of a cluster, and their workers: they need the images and the plan's folder.

    A node where a PipelineError is raised, as by a full disk or another engine version, gets no
    more units.
    """

    def __init__(self, ray: Any, planned: PlannedCache, config: ExtractConfig) -> None:
        self._ray = ray
        self._arguments = planned, None, config
        self._workers: dict[str, Any] = {}  # node -> actor
        self._open: set[str] = set()  # nodes whose worker runs; others may wait for free cores
        self._failures: dict[str, PipelineError] = {}  # node that gets no more units -> why
        # Unit, or node of a worker that opens -> workers that have ended since the last result
        self._ends = Counter[str]()

    def compute(self, units: Sequence[int]) -> Iterator[tuple[list[int], ComputedUnits]]:
        """Yield units and their results as they are computed; at the end log the nodes' shares.

        Raises the last failure if all nodes have failed, BadDataError for units that end workers.
        """
        waiting, computed = deque(units), Counter[str]()
        running: dict[Any, tuple[str, list[int], float]] = {}  # result -> node, units, start
        size = 1  # units of a task
        while waiting or any(task for _, task, _ in running.values()):
            busy = {node for node, _, _ in running.values()}
            nodes = self._nodes()
            for node in (node for node in nodes if waiting and node not in busy):
                share = len(waiting) // (2 * len(nodes))  # nodes end at about the same time
                count = max(1, min(size, share)) if node in self._open else 0
                task = [waiting.popleft() for _ in range(count)]
                running[self._workers[node].compute.remote(task)] = node, task, time.monotonic()
            if not running:
                no_node = UnreachableError(
                    "--on: no node has cores, or the cluster has ended, such as one that another "
                    "run had started: run the same command again; committed rows are kept"
                )
                raise [no_node, *self._failures.values()][-1]
            done, _ = self._ray.wait(list(running), timeout=SECONDS_PER_LOOK)
            for pending in done:
                node, task, started = running.pop(pending)
                if (result := self._result(pending, node, task)) is None:
                    waiting.extend(task)
                    size = 1  # so that a cause becomes known
                    continue
                if task:
                    self._ends.clear()
                computed[node] += len(task)
                size = int(len(task) * SECONDS_PER_TASK / (time.monotonic() - started))
                yield task, result
        shares = [f"{node} {count:,}" for node, count in computed.most_common() if count]
        if shares:
            log.info("%s computed: %s", counted(len(units), "unit"), ", ".join(shares))

    def _nodes(self) -> list[str]:
        """Start missing workers, with all cores and GPUs of a node; return the nodes' names."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        found = {
            printable(f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"): node
            for node in self._ray.nodes()
            if node["Alive"] and "CPU" in node["Resources"]  # else a head that computes nothing
        }
        for name in found.keys() - self._workers.keys():
            resources, place = found[name]["Resources"], found[name]["NodeID"]
            worker = self._ray.remote(_Worker).options(
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=NodeAffinitySchedulingStrategy(place, soft=False),
            )
            self._workers[name] = worker.remote(self._arguments, Path.cwd())
        return [name for name in found if name not in self._failures]

    def _result(self, pending: Any, node: str, task: Sequence[int]) -> ComputedUnits | None:
        """Return the result of a task; None if its node has failed or its worker has ended."""
        try:
            result: ComputedUnits | PipelineError = self._ray.get(pending)
        except self._ray.exceptions.RayTaskError:
            raise  # a bug
        except self._ray.exceptions.RayError as error:
            reason = printable(str(error).strip().splitlines()[-1].partition(". ")[0])
            log.warning("%s: its worker has ended: %s", node, reason)
            del self._workers[node]
            self._open.discard(node)
            self._ends.update([f"unit {unit}" for unit in task] or [node])
            what, count = self._ends.most_common(1)[0]
            if count == MAX_ENDS:
                raise BadDataError(
                    f"{what} has ended {MAX_ENDS} workers ({reason}): install this package on each "
                    f"node; if memory is short, use a smaller --batch-size"
                ) from error
            return None
        if isinstance(result, PipelineError):
            log.warning("%s gets no more units: %s", node, result)
            self._failures[node] = result
            return None
        self._open.add(node)
        return result
