"""Engines prove themselves on the user's images before they are trusted, and once only."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bases.config import RUNTIMES, BaseConfig
from pipeline.engines import Engine, open_engine, trials, worker
from pipeline.engines.trials import TOLERANCE
from pipeline.engines.worker import (
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


@pytest.fixture(scope="module")
def _tried_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tried") / "cache"
    opened(folder, images=IMAGES)
    return folder


@pytest.fixture
def tried(_tried_once: Path, tmp_path: Path) -> Path:
    """A cache folder in which every engine was tried."""
    return Path(shutil.copytree(_tried_once, tmp_path / "cache"))


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing may be tried."""

    def refuse(job: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"a process was started for {job}")

    monkeypatch.setattr(trials, "in_subprocess", refuse)


def record_of(folder: Path) -> Path:
    (record,) = (folder / "engines").glob("*/trials-*.json")
    return record


def test_every_engine_is_tried_and_agrees(tried: Path) -> None:
    found = json.loads(record_of(tried).read_text())
    assert {each["engine"] for each in found.values()} == {"tensorflow", *RUNTIMES}
    for each in found.values():
        assert each["dropped"] == ""
        assert each["images_per_second"] > 0
        if each["engine"] != "tensorflow":
            assert 0 < each["error"][LAYER] < TOLERANCE


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("name", list(RUNTIMES))
def test_engine_that_was_tried_is_opened_from_its_conversion(tried: Path, name: str) -> None:
    engine = opened(tried, name, images=IMAGES[:4])
    assert engine.name == name
    assert engine.weights == "random-0"
    assert set(engine.error) == {LAYER}
    assert engine(IMAGES[:4])[LAYER].shape == (4, *engine.row_shapes[LAYER])


@pytest.mark.usefixtures("no_process")
def test_pooling_asks_for_no_other_conversion(tried: Path) -> None:
    maps = opened(tried, "onnx")(IMAGES[:4])[LAYER]
    pooled = open_engine(config_in(tried, engine="onnx"), (f"{LAYER}:avg",))
    np.testing.assert_allclose(pooled(IMAGES[:4])[f"{LAYER}:avg"], maps.mean((1, 2)), rtol=1e-5)


@pytest.mark.usefixtures("no_process")
def test_fastest_is_taken(tried: Path) -> None:
    record = record_of(tried)
    found = json.loads(record.read_text())
    for fastest in found:
        for key, each in found.items():
            each["images_per_second"] = 9.0 if key == fastest else 1.0
        record.write_text(json.dumps(found))
        name = fastest.split()[0]
        assert opened(tried).name == name


@pytest.mark.usefixtures("no_process")
def test_without_images_what_was_not_tried_stays_out(tmp_path: Path) -> None:
    assert opened(tmp_path / "new").name == "tensorflow"


@pytest.mark.slow
def test_conversion_that_drops_a_layer_is_never_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The planted conversions are whole and run; only their numbers are wrong."""
    folder = tmp_path / "cache"
    config = config_in(folder)
    plant_conversions_without_a_layer(config)
    engine = opened(folder, images=IMAGES)
    assert engine.name == "tensorflow"
    found = json.loads(record_of(folder).read_text())
    for each in found.values():
        if each["engine"] != "tensorflow":
            assert f"its {LAYER} differs from TensorFlow's by" in each["dropped"]
            assert f"engine {each['engine']} is not used: its {LAYER}" in caplog.text
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
        each
        for each in network.operations
        if isinstance(each, Function) and each.name not in network.outputs
    )
    (before,) = left_out.inputs
    operations = tuple(
        replace(each, inputs=tuple(before if n == left_out.name else n for n in each.inputs))
        for each in network.operations
        if each is not left_out
    )
    wrong = replace(network, operations=operations)
    for name, package in RUNTIMES.items():
        module = importlib.import_module(f"pipeline.engines.{name}")
        folder = conversions_folder(config, (LAYER,), digest) / f"{name}-{runtime_version(package)}"
        write_conversion(folder, lambda made, module=module: module.convert(wrong, made))


@pytest.mark.slow
def test_damaged_conversion_is_made_anew(tried: Path) -> None:
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


@pytest.mark.usefixtures("no_process")
def test_record_that_cannot_be_read_is_no_record(tried: Path) -> None:
    for text in ("", "[]", "{", '{"onnx 1": {}}', '{"onnx 1": 3}'):
        record_of(tried).write_text(text)
        assert opened(tried).name == "tensorflow"


def test_engine_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "onnx", "no-such-package")
    with pytest.raises(UnreachableError, match="pip install no-such-package"):
        opened(tmp_path, "onnx", images=IMAGES)


def test_unknown_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--engine is one of auto, tensorflow, onnx, ncnn"):
        opened(tmp_path, "openvino")


@pytest.mark.slow
def test_process_raises_what_its_job_raised(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mobilenet_v3_small has no layer 'block9_pool'"):
        in_subprocess(
            "reference",
            config_in(tmp_path),
            layers=["block9_pool"],
            images="",
            reference="",
            folders={},
        )


def onnx_dies(signal: int) -> Callable[..., dict[str, Any]]:
    """`in_subprocess`, in which every process of the engine onnx is killed."""

    def run(job: str, config: BaseConfig, **details: Any) -> dict[str, Any]:
        if details.get("engine") == "onnx":
            raise WorkerDied(f"its process ended by signal {signal}")
        return worker.in_subprocess(job, config, **details)

    return run


@pytest.mark.slow
def test_engine_that_crashes_is_out_and_nothing_else(
    tried: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record_of(tried).unlink()
    monkeypatch.setattr(trials, "in_subprocess", onnx_dies(11))
    assert opened(tried, images=IMAGES).name in ("tensorflow", "ncnn")
    assert "engine onnx is not used: its process ended by signal 11" in caplog.text


def test_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(made: Path) -> None:
        (made / "model").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_conversion(tmp_path / "engines" / "onnx-1", interrupted)
    assert list((tmp_path / "engines").iterdir()) == []


@pytest.mark.slow
def test_passing_failure_is_no_verdict(tried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose process was killed is out this time, and tried again the next."""
    record_of(tried).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(trials, "in_subprocess", onnx_dies(9))
        opened(tried, images=IMAGES)
    assert "onnx" not in {
        each["engine"] for each in json.loads(record_of(tried).read_text()).values()
    }
    assert opened(tried, "onnx", images=IMAGES).name == "onnx"
