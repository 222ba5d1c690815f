"""The ONNX Runtime engine: what it opens, returns and does not touch."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

if find_spec("onnxruntime") is None:  # an import here would let it store usage data
    pytest.skip("needs onnxruntime", allow_module_level=True)

from pipeline.bases.registry import PREPROCESSING
from pipeline.engines.network import (
    IMAGE,
    Affine,
    Conv,
    Function,
    Network,
    Pool,
)
from pipeline.engines.onnx import MODEL_FILE, OnnxEngine, convert
from pipeline.errors import BadDataError

SIDE = 12
DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)


def network() -> Network:
    """A convolution with enough channels for a blocked layout, depthwise, gated, pooled."""
    return Network(
        image_size=SIDE,
        preprocessing=PREPROCESSING["tf"],
        operations=(
            Conv(
                name="stem",
                inputs=(IMAGE,),
                weight=DRAW.normal(size=(32, 3, 3, 3)).astype(np.float32),
                bias=DRAW.normal(size=32).astype(np.float32),
                pads=(0, 0, 1, 1),
                stride=(2, 2),
            ),
            Function(name="active", inputs=("stem",), function="relu"),
            Conv(
                name="depthwise",
                inputs=("active",),
                weight=DRAW.normal(size=(32, 1, 3, 3)).astype(np.float32),
                bias=np.zeros(32, np.float32),
                pads=(1, 1, 1, 1),
                groups=32,
            ),
            Function(name="gate", inputs=("depthwise",), function="sigmoid"),
            Function(function="multiply", name="gated", inputs=("active", "gate")),
            Pool(name="pooled", inputs=("gated",), function="max", size=(2, 2), stride=(2, 2)),
        ),
        outputs={"active": (6, 6, 32), "pooled": (3, 3, 32)},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("conversion")
    convert(network(), path)
    onnx.checker.check_model(path / MODEL_FILE, full_check=True)
    return path


def test_rows_have_the_announced_shapes(folder: Path) -> None:
    keys = ["pooled:max", "active", "pooled", "active:avg"]
    engine = OnnxEngine(folder, layers=keys)
    assert engine.row_shapes == {
        "pooled:max": (32,),
        "active": (6, 6, 32),
        "pooled": (3, 3, 32),
        "active:avg": (32,),
    }
    rows = engine(IMAGES)
    assert list(rows) == keys
    for key in keys:
        assert rows[key].shape == (5, *engine.row_shapes[key])
        assert rows[key].dtype == np.float32
    np.testing.assert_array_equal(rows["pooled:max"], rows["pooled"].max((1, 2)))
    np.testing.assert_allclose(rows["active:avg"], rows["active"].mean((1, 2)), rtol=1e-5)


def test_features_do_not_depend_on_the_rest_of_the_batch(folder: Path) -> None:
    engine = OnnxEngine(folder, layers=["pooled", "pooled:avg"])
    together = engine(IMAGES)
    for key, rows in together.items():
        np.testing.assert_array_equal(engine(IMAGES[::-1])[key][::-1], rows)
        for count in range(1, 5):
            np.testing.assert_array_equal(engine(IMAGES[:count])[key], rows[:count])
            np.testing.assert_array_equal(engine(IMAGES[count:])[key], rows[count:])


def test_preprocessing_and_affine_operations_are_computed(tmp_path: Path) -> None:
    scale, offset = np.float32([1, 2, 3]), np.float32([0, 5, -5])
    affine = Network(
        image_size=SIDE,
        preprocessing=PREPROCESSING["caffe"],
        operations=(Affine(name="last", inputs=(IMAGE,), scale=scale, offset=offset),),
        outputs={"last": (SIDE, SIDE, 3)},
    )
    convert(affine, tmp_path)
    rows = OnnxEngine(tmp_path, layers=["last"])(IMAGES)["last"]
    bgr = IMAGES[..., ::-1] - np.array([103.939, 116.779, 123.68])
    np.testing.assert_allclose(rows, bgr * scale + offset, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("content", [None, b"", b"not a model", "half"])
def test_a_damaged_conversion_is_bad_data(
    content: bytes | str | None, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        model = (folder / MODEL_FILE).read_bytes()
        damaged = content if isinstance(content, bytes) else model[: len(model) // 2]
        (tmp_path / MODEL_FILE).write_bytes(damaged)
    with pytest.raises(
        BadDataError, match=rf"{MODEL_FILE} cannot be opened .* converted again"
    ) as raised:
        OnnxEngine(tmp_path, layers=["pooled"])
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_layer_that_was_not_converted_is_bad_data(folder: Path) -> None:
    with pytest.raises(BadDataError, match=r"contains active, pooled; received block9_pool"):
        OnnxEngine(folder, layers=["block9_pool"])


def test_it_runs_without_tensorflow_and_stores_no_usage_data(folder: Path, tmp_path: Path) -> None:
    program = f"""
import sys
import numpy as np
from pathlib import Path
from pipeline.engines import onnx
assert "onnxruntime" not in sys.modules
engine = onnx.OnnxEngine(Path({str(folder)!r}), layers=["pooled"])
engine(np.zeros((5, {SIDE}, {SIDE}, 3), np.uint8))
assert "tensorflow" not in sys.modules and "onnx" not in sys.modules
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=Path(__file__).parents[2],
        env={**environment, "HOME": str(home)},
    )
    assert not list(home.rglob("*"))  # it stores usage data in ~/.cache before it sends them
