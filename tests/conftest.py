"""Shared fixtures: synthetic images, tiny and offline."""

import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest
from synthetic_images import make_image_folder

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime
os.environ["PYTHONPATH"] = os.fspath(Path(__file__).parents[1])  # for commands in other processes

ASSETS = os.environ.get("PIPELINE_TEST_ASSETS")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first; skip tests that need real photographs if there are none."""
    items.sort(key=lambda item: not item.path.name.startswith(("test_docs", "test_real_")))
    if ASSETS and Path(ASSETS).is_dir():
        return
    reason = "needs real photographs: set PIPELINE_TEST_ASSETS to the folder with data/, weights/"
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def assets() -> Path:
    """Return the folder with ``data/`` and ``weights/``, for tests marked real_data."""
    assert ASSETS
    return Path(ASSETS).resolve()


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in an empty folder, and forget the modules that it imports from there."""
    monkeypatch.chdir(tmp_path)
    import_path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = import_path
    for name in set(sys.modules) - modules:  # only the few new ones
        if Path(getattr(sys.modules[name], "__file__", None) or "").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture(scope="session")
def _image_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create image folders once; tests copy them, which is six times as fast."""
    folder = tmp_path_factory.mktemp("folders")
    make_image_folder(folder / "splits" / "synthetic", splits=("train", "validation", "test"))
    make_image_folder(folder / "classes" / "synthetic", per_class=40)
    return folder


@pytest.fixture
def synthetic_set(tmp_path: Path, _image_folders: Path) -> Path:
    """Return ``synthetic/`` with 12 images per class in each of train, validation and test."""
    return copytree(_image_folders / "splits" / "synthetic", tmp_path / "synthetic")


@pytest.fixture
def synthetic_classes(tmp_path: Path, _image_folders: Path) -> Path:
    """Return ``synthetic/`` with two class folders of 40 images each and no splits."""
    return copytree(_image_folders / "classes" / "synthetic", tmp_path / "synthetic")


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start an S3 server with an empty bucket "bucket" that ``s3://`` reaches; give its address."""
    s3fs = pytest.importorskip("s3fs", reason="needs the extra [storage]")
    moto = pytest.importorskip("moto.server", reason="needs moto, flask and flask-cors")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": address,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    # moto keeps its buckets, and s3fs its connections, as long as the process lives.
    urllib.request.urlopen(f"{address}/moto-api/reset", data=b"").close()
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield address
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()
