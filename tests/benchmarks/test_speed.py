"""``python -m benchmarks.speed`` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from synthetic_images import make_image_folder

from benchmarks.plot import draw_benchmark
from benchmarks.speed import main
from benchmarks.table import table_lines
from pipeline.errors import PipelineError


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--base pixels", 2, "--base pixels has no network to measure"),
        ("--base mobilenetv22", 2, "did you mean mobilenet_v2?"),
        ("--image-size 20", 2, "at least 32 pixels"),
        ("--rounds 0", 2, "--rounds needs at least 1; received 0"),
        ("--images 31", 2, "--images needs at least 32; received 31"),
        ("--engine torch", 2, "--engine is one of tensorflow, onnx, ncnn; received 'torch'"),
        ("--weights gone.h5", 66, "gone.h5"),
        ("gone", 66, "gone does not exist"),
        ("--layer block5_pool:max", 2, "use --pooling"),
    ],
)
def test_invalid_input_is_an_error_before_any_measurement(
    words: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PipelineError) as caught:
        main(words.split())
    assert caught.value.exit_code == code
    assert message in str(caught.value)
    assert capsys.readouterr().out == ""
    assert not Path("results").exists()


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median}


def side(name: str, rate: float, **others: Any) -> dict[str, Any]:
    return {
        "side": name,
        "images_per_second": spread(rate),
        "against_book": spread(rate / 8),
        "share_of_matrix_product": spread(rate / 100),
        "relative_error": None,
        "start_seconds": 2.5,
        "peak_bytes": 600_000_000,
        "rounds": [rate],
    } | others


DOCUMENT: dict[str, Any] = {
    "run": {"cores": 2, "rounds": 7},
    "stage_one": {
        "base": "vgg16",
        "image_size": 150,
        "layer": "block5_pool\x1b",
        "images": 128,
        "drawn": True,
        "operations_per_image": 13_700_000_000,
        "gpus": ["GPU:0"],
        "matrix_product_gflops": spread(130),
        "sides": [
            side("book's loop", 8.0),
            side("onnx", 12.0, relative_error=4e-7),
            side("decoding alone", 400.0, share_of_matrix_product=None),
            side("extract", 11.0, peak_bytes=None),
        ],
        "ceiling": {"engine": "onnx", "images_per_second": spread(11.65), "reached": spread(0.94)},
        "left_out": {"ncnn": "ncnn is missing"},
        "command": {
            "first": {"seconds": 70.0, "peak_bytes": 1_100_000_000},
            "again": {"seconds": 15.0, "peak_bytes": None},
        },
    },
    "stage_two": {
        "rows": 2000,
        "features": 8192,
        "batch_size": 20,
        "sides": [
            {
                "side": name,
                "seconds_per_epoch": spread(seconds),
                "times_faster": spread(2.0 / seconds),
                "peak_bytes": 230_000_000,
            }
            for name, seconds in (("Keras fit", 2.0), ("dense head", 0.5))
        ],
    },
}


def test_table_has_every_value_with_its_quartiles() -> None:
    lines = list(table_lines(DOCUMENT))
    text = "\n".join(lines)
    (book,) = (line for line in lines if line.startswith("book's loop"))
    assert book.split()[2:] == [
        "8.0", "(7.2–8.8)", "1.00", "(0.90–1.10)", "8%", "2.5", "s", "600.0", "MB",
    ]  # fmt: skip
    (onnx,) = (line for line in lines if line.startswith("onnx"))
    assert "1.50 (1.35–1.65)" in onnx
    assert "4e-07" in onnx
    assert "matrix products reach 130 (117–143) GFLOP/s" in text
    assert "reaches 94% (85–103%) of the ceiling" in text
    assert "first run: 1 min 10 s, peak memory 1.1 GB" in text
    assert "TensorFlow computes on GPU:0" in text
    assert "engine ncnn is not measured: ncnn is missing" in text
    assert "4.00 (3.60–4.40)" in text
    assert "\x1b" not in text
    assert all(len(line) < 130 for line in lines)


def test_plot_has_a_panel_per_stage() -> None:
    heights = []
    for stages in (["stage_two"], ["stage_one", "stage_two"]):
        draw_benchmark({name: DOCUMENT[name] for name in ("run", *stages)}, Path("bench.png"))
        with Image.open("bench.png") as image:
            heights.append(image.height)
    assert heights[1] == 2 * heights[0]


@pytest.mark.slow
def test_both_stages_are_measured_and_no_cache_remains() -> None:
    root = make_image_folder(Path("synthetic"), per_class=20)
    arguments = (
        root, "--base", "mobilenet_v2", "--image-size", "32", "--pooling", "avg",
        "--weights", "random", "--images", "32", "--rounds", "1", "--out", "out", "--json",
        "--engine", "onnx", "--engine", "tensorflow",
    )  # fmt: skip
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *map(str, arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    document = json.loads(finished.stdout)
    assert document == json.loads(Path("out/bench.json").read_text())
    assert Path("out/bench.png").read_bytes().startswith(b"\x89PNG")
    assert "1 round will take about" in finished.stderr
    measured = document["stage_one"]
    assert measured["images"] == 32
    assert measured["operations_per_image"] / 2e6 == pytest.approx(6.1, abs=0.3)  # MMACs
    sides = {side["side"]: side for side in measured["sides"]}
    assert {"book's loop", "tensorflow", "decoding alone", "onnx", "extract"} <= sides.keys()
    for each in sides.values():
        assert len(each["rounds"]) == 1
    assert sides["onnx"]["relative_error"] < 1e-4
    assert "ncnn" not in sides
    assert measured["ceiling"]["engine"] == "onnx"
    for side in document["stage_two"]["sides"]:
        assert 0 < side["seconds_per_epoch"]["low"] <= side["seconds_per_epoch"]["high"]
    assert list(Path("cache/hashes").glob("*")) == []
    assert list(Path("cache").glob("*.h5")) == []
