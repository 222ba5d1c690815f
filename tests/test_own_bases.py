"""LeNet, AlexNet and GoogLeNet of docs/OWN_BASES.md are bases in every command."""

import json
import re
import shlex
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from command import assert_one_line, run_command
from synthetic_images import make_image_folder

from pipeline.bases.build import feature_model
from pipeline.bases.config import BaseConfig
from pipeline.bases.keras_model import load_file_base
from pipeline.engines import relative_errors
from pipeline.engines.keras_reader import read_network

PAGE = (Path(__file__).parents[1] / "docs" / "OWN_BASES.md").read_text()
SCALES = {"lenet": 1, "alexnet": 1 / 16, "googlenet": 1 / 16}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 227, 227, 3)).astype(np.uint8)


def networks() -> dict[str, Any]:
    definitions, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(definitions, names)
    return {name: names[name] for name in SCALES}


def save(name: str) -> Path:
    """Save a network of the page, with fewer channels than the published one."""
    networks()[name](scale=SCALES[name]).save(f"{name}.keras")
    return Path(f"{name}.keras")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lenet", (5, 5, 16)),
        ("alexnet", (6, 6, 16)),
        pytest.param("googlenet", (7, 7, 64), marks=pytest.mark.slow),
    ],
)
def test_every_engine_computes_its_maps(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    from pipeline.engines import ncnn, onnx

    scaling = "none" if name == "lenet" else "half"
    config = BaseConfig(base=str(save(name)), mean_std=scaling)
    base = load_file_base(Path(config.base), config.size)
    last = config.network.last_layer
    assert base.get_layer(last).output.shape[1:] == shape
    images = IMAGES[:, : config.size, : config.size]
    expected = np.asarray(feature_model(base, config, [last])(images)).reshape(2, *shape)
    network = read_network(base, config, [last])
    for number, (module, kind) in enumerate([(onnx, "OnnxEngine"), (ncnn, "NcnnEngine")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        module.convert(network, folder)
        received = getattr(module, kind)(folder, layers=[last])(images)[last]
        assert relative_errors(expected, received).max() < 1e-5


def test_lenet_is_extracted_classified_and_predicts_until_its_file_changes(
    synthetic_set: Path,
) -> None:
    save("lenet")
    arguments = ("extract", synthetic_set, "--base", "lenet.keras", "--engine", "tensorflow")
    assert "--mean-std is missing" in assert_one_line(run_command(*arguments, check=2))
    Path("lenet.base.toml").write_text('mean-std = "none"\n')
    done = json.loads(run_command(*arguments, "--json").stdout)
    assert list(done["layers"].values()) == [[72, 5, 5, 16]]
    assert Path(done["cache"]).name.startswith("synthetic-lenet-")
    assert json.loads(run_command(*arguments, "--json").stdout)["computed"] == 0
    run_command("classify", "--heads", "logistic", "--no-audit")
    (model,) = Path("results").glob("*/models/logistic.skops")
    photos = Path("photos")
    photos.mkdir()
    image = (synthetic_set / "test" / "plain" / "000.png").read_bytes()
    (photos / "new.png").write_bytes(image + b" ")  # not in the cache
    assert "1 image (all computed)" in run_command("predict", photos, "--model", model).stderr
    Path("lenet.keras").rename("moved.keras")
    line = assert_one_line(run_command("predict", photos, "--model", model, check=66))
    assert "pass their new path with --weights FILE" in line
    run_command("predict", photos, "--model", model, "--weights", "moved.keras")
    save("lenet")  # other random weights
    line = assert_one_line(run_command("predict", photos, "--model", model, check=65))
    assert "trained on lenet with weights" in line


@pytest.mark.slow
def test_commands_of_the_page_run() -> None:
    for name in SCALES:
        save(name)
    root = Path("data") / "pets"
    make_image_folder(root, per_class=4, splits=("train", "validation", "test"))
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    lines = [line.split("  #")[0] for block in blocks for line in block.splitlines()]
    for line in lines:
        command = shlex.split(line.removeprefix("$ python -m pipeline."))
        if command[0] == "finetune":
            command += ["--epochs", "1", "--head-epochs", "1"]
        if command[0] in ("finetune", "extract"):
            command += ["--engine", "tensorflow"]
        run_command(*command)
    (tuned,) = Path("results").glob("*/models/fine*.skops")
    photos = copytree(root / "test" / "plain", Path("photos"))
    (photos / "000.png").write_bytes((photos / "000.png").read_bytes() + b" ")
    assert "4 images" in run_command("predict", photos, "--model", tuned).stderr
    for kind in ("keras", "onnx"):
        head = f"--head={tuned.stem}"
        run_command("export", tuned.parents[1], head, "--format", kind)
