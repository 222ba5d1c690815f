"""Each engine is tried once on the user's images before it is used."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bases.config import RUNTIMES, BaseConfig
from pipeline.engines import Engine, open_engine, trials, worker
from pipeline.engines.trials import TOLERANCE, open_fastest
from pipeline.engines.worker import (
    JOBS,
    WorkerDied,
    conversions_folder,
    in_subprocess,
    is_complete,
    runtime_version,
    write_conversion,
)
from pipeline.errors import BadDataError, UnreachableError, UsageError

LAYER = "activation_17"
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)


def config_in(folder: Path, **changes: Any) -> BaseConfig:
    settings = {"image_size": 32, "weights": "random", "batch_size": 4, "cache_dir": folder}
    return BaseConfig(base="mobilenet_v3_small", **(settings | changes))


def opened(folder: Path, engine: str = "auto", **options: Any) -> Engine:
    return open_engine(config_in(folder, engine=engine), (LAYER,), **options)


def fastest(folder: Path) -> str:
    """The engine that ``auto`` chooses by the record alone."""
    engine = open_fastest(config_in(folder), (LAYER,), None)
    return "tensorflow" if engine is None else engine.name


@pytest.fixture(scope="module")
def trials_of_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which every engine was tried, in this process."""
    folder = tmp_path_factory.mktemp("tried") / "cache"

    def run_here(
        job: str, config: BaseConfig, *, quiet: bool = False, **details: Any
    ) -> dict[str, Any]:
        return JOBS[job](config, **details)

    with pytest.MonkeyPatch.context() as patch:  # another process takes seconds to import all
        patch.setattr(trials, "in_subprocess", run_here)
        patch.setattr(worker, "MIN_SECONDS", 0.0)
        patch.setattr(trials, "MAX_SPREAD", math.inf)  # other tests run at the same time
        opened(folder, images=IMAGES)
    return folder


@pytest.fixture
def tried(trials_of_module: Path, tmp_path: Path) -> Path:
    """A copy of the cache folder in which every engine was tried."""
    return Path(shutil.copytree(trials_of_module, tmp_path / "cache"))


def record_in(folder: Path) -> Path:
    (record,) = (folder / "engines").glob("*/trials-*.json")
    return record


def read_record(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads(record_in(folder).read_text()).values())


def assert_every_engine_agrees(folder: Path) -> None:
    record = read_record(folder)
    assert {trial["engine"] for trial in record} == {"tensorflow", *RUNTIMES}
    for trial in record:
        assert trial["dropped"] == ""
        assert trial["images_per_second"] > 0
        if trial["engine"] != "tensorflow":
            assert 0 < trial["error"][LAYER] < TOLERANCE


def test_every_engine_is_tried_and_agrees(tried: Path) -> None:
    assert_every_engine_agrees(tried)


@pytest.mark.slow
def test_every_engine_is_tried_in_another_process(tmp_path: Path) -> None:
    opened(tmp_path, images=IMAGES)
    assert_every_engine_agrees(tmp_path)


def test_engines_are_tried_again_if_their_runs_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = iter([(3.0, 2.0), (9.0, 1.0), (4.0, 1.0), (5.0, 1.0), (2.0, 1.0), (6.0, 1.0)])

    def answer(job: str, config: BaseConfig, **details: Any) -> dict[str, Any]:
        speed, spread = next(speeds)
        result = {"images_per_second": speed, "spread": spread}
        return {"tensorflow": result} if job == "reference" else {**result, "error": {LAYER: 0.0}}

    monkeypatch.setattr(trials, "in_subprocess", answer)
    reports: list[tuple[int, int]] = []
    with pytest.raises(StopIteration):  # the chosen engine is not converted
        opened(tmp_path, images=IMAGES, progress=lambda *report: reports.append(report))
    assert [trial["images_per_second"] for trial in read_record(tmp_path)] == [5.0, 9.0, 6.0]
    assert reports == [(0, 3), (1, 3), (2, 3), (3, 3)] * 2


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_engine_that_was_tried_is_opened_from_its_conversion(
    tried: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = (LAYER, f"{LAYER}:avg")  # pooling needs no other conversion
    with caplog.at_level("INFO", "pipeline"):
        engine = open_engine(config_in(tried, engine=name), keys, images=IMAGES[:4])
    assert "choosing" not in caplog.text
    assert (engine.name, engine.weights, set(engine.error)) == (name, "random-0", {LAYER})
    features = engine(IMAGES[:4])
    assert features[LAYER].shape == (4, *engine.row_shapes[LAYER])
    np.testing.assert_allclose(features[keys[1]], features[LAYER].mean((1, 2)), rtol=1e-5)


def test_fastest_engine_is_used(tried: Path) -> None:
    record = json.loads(record_in(tried).read_text())
    for expected in record.values():
        for trial in record.values():
            trial["images_per_second"] = 9.0 if trial is expected else 1.0
        record_in(tried).write_text(json.dumps(record))
        assert fastest(tried) == expected["engine"]


def test_without_images_only_engines_with_a_readable_record_are_used(
    tried: Path, tmp_path: Path
) -> None:
    assert fastest(tmp_path / "new") == "tensorflow"
    for text in ("", "[]", "{", '{"onnx 1": {}}', '{"onnx 1": 3}'):
        record_in(tried).write_text(text)
        assert fastest(tried) == "tensorflow"


@pytest.mark.slow
def test_conversion_that_drops_a_layer_is_never_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The planted conversions are complete and run; only their numbers are wrong."""
    folder = tmp_path / "cache"
    config = config_in(folder)
    plant_conversions_without_a_layer(config)
    engine = opened(folder, images=IMAGES)
    assert engine.name == "tensorflow"
    for trial in read_record(folder):
        if trial["engine"] != "tensorflow":
            assert f"its {LAYER} differs from TensorFlow's by" in trial["dropped"]
            assert f"engine {trial['engine']} is not used: its {LAYER}" in caplog.text
    with pytest.raises(BadDataError, match="--engine onnx cannot compute mobilenet_v3_small: its"):
        opened(folder, "onnx", images=IMAGES)


def plant_conversions_without_a_layer(config: BaseConfig) -> None:
    """Convert the base with one of its activations left out, as a careless converter would."""
    import importlib

    from pipeline.bases.build import build_base
    from pipeline.engines.keras_reader import read_network
    from pipeline.engines.network import Function

    base_model, digest = build_base(config)
    network = read_network(base_model, config, [LAYER])
    left_out = next(
        operation
        for operation in network.operations
        if isinstance(operation, Function) and operation.name not in network.outputs
    )
    (source,) = left_out.inputs
    operations = tuple(
        replace(
            operation,
            inputs=tuple(source if name == left_out.name else name for name in operation.inputs),
        )
        for operation in network.operations
        if operation is not left_out
    )
    wrong = replace(network, operations=operations)
    for name, package in RUNTIMES.items():
        module = importlib.import_module(f"pipeline.engines.{name}")
        folder = conversions_folder(config, (LAYER,), digest) / f"{name}-{runtime_version(package)}"
        write_conversion(folder, lambda path, module=module: module.convert(wrong, path))


@pytest.mark.slow
def test_damaged_conversion_is_converted_again(tried: Path) -> None:
    (folder,) = (path for path in (tried / "engines").glob("*/onnx-*") if path.is_dir())
    expected = opened(tried, "onnx")(IMAGES[:4])[LAYER]
    damaged = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert not is_complete(folder)
    again = opened(tried, "onnx")(IMAGES[:4])[LAYER]
    assert is_complete(folder)
    np.testing.assert_array_equal(again, expected)


def test_engine_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "onnx", "no-such-package")
    with pytest.raises(UnreachableError, match="pip install no-such-package"):
        opened(tmp_path, "onnx", images=IMAGES)


def test_unknown_engine_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--engine is one of auto, tensorflow, onnx, ncnn"):
        opened(tmp_path, "openvino")


def test_process_raises_the_error_of_its_job(tmp_path: Path) -> None:
    details = {"layers": [LAYER], "engine": "onnx", "folder": tmp_path, "reference": ""}
    with pytest.raises(BadDataError, match=r"model.onnx cannot be opened"):
        in_subprocess("try_runtime", config_in(tmp_path), images="", **details)


def test_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "model").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_conversion(tmp_path / "engines" / "onnx-1", interrupted)
    assert list((tmp_path / "engines").iterdir()) == []


@pytest.mark.slow
def test_engine_whose_process_died_is_not_used_but_tried_again_in_the_next_run(
    tried: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record_in(tried).unlink()

    def onnx_dies(job: str, config: BaseConfig, **details: Any) -> dict[str, Any]:
        if details.get("engine") == "onnx":
            raise WorkerDied("its process ended by signal 11")
        return in_subprocess(job, config, **details)

    with monkeypatch.context() as patch:
        patch.setattr(trials, "in_subprocess", onnx_dies)
        assert opened(tried, images=IMAGES).name in ("tensorflow", "ncnn")
    assert "engine onnx is not used: its process ended by signal 11" in caplog.text
    assert "onnx" not in {trial["engine"] for trial in read_record(tried)}
    assert opened(tried, "onnx", images=IMAGES).name == "onnx"
