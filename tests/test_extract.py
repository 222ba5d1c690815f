"""``python -m pipeline.extract`` as a user runs it."""

import csv
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from command import assert_one_line, modules_loaded_by, run_command
from PIL import Image
from synthetic_images import make_image_folder

from pipeline import extract_features, load_features
from pipeline.errors import UsageError


def test_second_run_computes_nothing(synthetic_set: Path) -> None:
    first = run_command("extract", synthetic_set, "--base", "pixels")
    assert "features/pixels: (72, 32, 32, 3) float32" in first.stdout
    assert "72 computed" in first.stdout
    assert "train: plain 12, striped 12" in first.stderr
    second = run_command("extract", synthetic_set, "--base", "pixels")
    assert "all from the cache" in second.stdout
    path = Path(first.stdout.splitlines()[-1])
    assert second.stdout.splitlines()[-1] == str(path)
    with h5py.File(path) as file:
        assert file["features/pixels"].shape == (72, 32, 32, 3)


def test_network_caches_several_layers_in_one_pass_and_a_warm_run_loads_no_tensorflow(
    synthetic_set: Path,
) -> None:
    words = "--base MobileNetV3Small --image-size 32 --weights random --engine tensorflow --json"
    layers = "--layer expanded_conv_2_add --layer activation_17 --limit-per-class 2"
    command = ["extract", synthetic_set, *words.split(), *layers.split()]
    document = json.loads(run_command(*command).stdout)
    assert document["computed"] == 12
    assert document["layers"] == {
        "activation_17": [12, 1, 1, 576],
        "expanded_conv_2_add": [12, 4, 4, 24],
    }
    assert not modules_loaded_by(*command) & {"tensorflow", "keras", "sklearn", "matplotlib"}


NETWORK = "--base mobilenet_v3_small,pixels --image-size 32 --weights random --engine tensorflow"


def test_several_bases_are_extracted_in_one_pass_and_compared_in_one_table(
    synthetic_set: Path,
) -> None:
    (synthetic_set / "train/plain/empty.png").write_bytes(b"")
    finished = run_command("extract", synthetic_set, *NETWORK.split(), "--pooling", "avg")
    lines = finished.stdout.splitlines()
    paths = [line for line in lines if line.endswith(".h5")]
    assert ["-mobilenet_v3_small-" in path for path in paths] == [True, False]
    assert sum("train/plain/empty.png: empty file" in line for line in lines) == 1
    assert lines[-1] == "2 caches in one pass; compare them: python -m pipeline.classify"
    again = run_command("extract", synthetic_set, *NETWORK.split(), "--pooling", "avg", "--json")
    caches = json.loads(again.stdout)["caches"]
    assert [(each["cache"], each["computed"]) for each in caches] == [(path, 0) for path in paths]
    compared = run_command("classify", "--heads", "logistic", "--no-audit", "--json")
    assert f"using the newest caches: {', '.join(paths)}\n" in compared.stderr
    rows = json.loads(compared.stdout)["rows"]
    assert {row["base"] for row in rows} == {"mobilenet_v3_small", "pixels"}
    assert any(row["p_value"] is not None for row in rows)


def test_list_of_bases_gives_a_list_of_extractions(synthetic_set: Path) -> None:
    (only,) = extract_features(synthetic_set, base=["pixels"])
    assert only.table.path == extract_features(synthetic_set, base="pixels").table.path
    with pytest.raises(UsageError, match="received an empty list"):
        extract_features(synthetic_set, base=[])


def test_json_is_one_document_on_stdout(synthetic_set: Path) -> None:
    (synthetic_set / "train/plain/empty.png").write_bytes(b"")
    finished = run_command("extract", synthetic_set, "--base", "pixels", "--json")
    document = json.loads(finished.stdout)
    assert document["images"] == document["computed"] == 72
    assert document["layers"] == {"pixels": [72, 32, 32, 3]}
    assert document["skipped"] == [{"path": "train/plain/empty.png", "reason": "empty file"}]
    assert load_features(Path(document["cache"])).spec.fingerprint == document["fingerprint"]


def test_range_of_12_bit_files_is_warned_of_measured_and_part_of_the_features(
    tmp_path: Path,
) -> None:
    for name, level in (("dark", 1560), ("light", 1640)):  # one of 256 levels of the full range
        (tmp_path / "deep" / name).mkdir(parents=True)
        for number in range(4):
            values = np.full((9, 9), level + number, np.uint16)
            values[0], values[1] = 0, 4095
            Image.fromarray(values).save(tmp_path / "deep" / name / f"{number}.png")
    command = ["extract", tmp_path / "deep", "--base", "pixels", "--image-size", "9"]
    full = run_command(*command)
    assert "use 16 of 256 grey levels" in full.stderr
    auto = run_command(*command, "--range", "auto", "--json")
    assert "warning" not in auto.stderr
    table = load_features(Path(json.loads(auto.stdout)["cache"]))
    assert table.spec.range == "0,4095"
    means = table.features("pixels").mean(axis=(1, 2, 3))
    assert means[:4].max() < means[4:].max()
    assert "all from the cache" in run_command(*command, "--range=0.0,4095").stdout
    assert "all from the cache" in run_command(*command, "--range", "-0,4095").stdout
    refused = run_command(*command, "--range=9,1", check=2)
    assert "LOW below HIGH; received '9,1'" in assert_one_line(refused)


def test_skipped_files_are_counted_and_listed(synthetic_set: Path) -> None:
    (synthetic_set / "train/plain/odd\x1b[31m.png").write_bytes(b"text")
    finished = run_command("extract", synthetic_set, "--base", "pixels")
    assert "1 file skipped" in finished.stdout
    assert r"  train/plain/odd\x1b[31m.png: not an image" in finished.stdout
    assert "\x1b" not in finished.stdout + finished.stderr
    (listed,) = Path("cache").glob("*.skipped.csv")
    with listed.open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["train/plain/odd\x1b[31m.png"]


def test_float16_features_are_stored_in_half_the_bytes(synthetic_set: Path) -> None:
    done = extract_features(synthetic_set, base="pixels", dtype="float16")
    with h5py.File(done.table.path) as file:
        assert file["features/pixels"].dtype == np.float16
    assert done.table.features("pixels").dtype == np.float32


def test_only_set_in_data_needs_no_argument() -> None:
    make_image_folder(Path("data/pets"), per_class=2)
    assert "pets-pixels-" in run_command("extract", "--base", "pixels").stdout
    make_image_folder(Path("data/cars"), per_class=2)
    message = assert_one_line(run_command("extract", "--base", "pixels", check=2))
    assert "data/cars, data/pets" in message


def test_each_image_size_and_resize_policy_has_its_own_file(synthetic_set: Path) -> None:
    paths = {
        extract_features(synthetic_set, base="pixels", image_size=size, resize=resize).table.path
        for size in (16, 32)
        for resize in ("squash", "crop", "pad")
    }
    assert len(paths) == 6


def test_bases_are_listed_with_their_published_parameters() -> None:
    lines = run_command("extract", "--list-bases").stdout.splitlines()
    assert len(lines) == 45
    (vgg16,) = (line for line in lines if line.startswith("vgg16 "))
    assert vgg16.split() == ["vgg16", "150", "4×4×512", "14,714,688", "138,357,544"]


def test_layers_are_listed_as_in_keras_summary() -> None:
    lines = run_command("extract", "--list-layers", "VGG16").stdout.splitlines()
    assert ["block1_conv1", "Conv2D", "150×150×64", "1,792"] in [line.split() for line in lines]
    assert lines[-1].split()[-1] == "14,714,688"


def test_unknown_choice_in_a_notebook_lists_the_choices(synthetic_set: Path) -> None:
    for option in ("preprocessing", "resize", "pooling", "dtype", "engine"):
        with pytest.raises(UsageError, match=f"--{option} is one of .* received 'nope'"):
            extract_features(synthetic_set, base="pixels", **{option: "nope"})


PIXELS = "synthetic --base pixels"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("nowhere", 66, "does not exist"),
        ("", 66, "benchmarks.sample textile"),
        ("synthetic --base vgg99", 2, "did you mean"),
        (f"{PIXELS} --layer block5_pool", 2, "one layer, pixels"),
        ("synthetic --base vgg16 --image-size 20", 2, "at least 32 pixels"),
        ("synthetic --weights none.h5", 66, "no such file"),
        ("synthetic --weights synthetic/train/plain/000.png", 65, "not HDF5"),
        (f"{PIXELS} --out synthetic", 2, "ending in .h5"),
        (f"{PIXELS} --out file/x.h5", 73, "cannot create the folder"),
        (f"{PIXELS} --out text.h5", 73, "choose another --out"),
        (f"{PIXELS} --batch-size 0", 2, "at least 1"),
        (f"{PIXELS} --image-size 0", 2, "at least 1 pixels"),
        (f"{PIXELS} --image-size 60000", 2, "at most 4096"),
        (f"{PIXELS} --layer pixels:average", 2, "--pooling"),
        ("synthetic --base vgg16 --weights random --seed -1", 2, "from 0 to"),
        (f"{PIXELS},vgg99", 2, "did you mean"),
        (f"{PIXELS},", 2, "unknown base ''"),
        (f"{PIXELS},Pixels", 2, "names pixels more than once"),
        (
            "synthetic --base vgg16,vgg19 --layer block5_pool",
            2,
            "--layer is for one base; received",
        ),
        (f"{PIXELS},vgg16 --out x.h5", 2, "--out is for one base"),
        (f"{PIXELS},vgg16 --weights text.h5", 2, "--weights FILE is for one base"),
        (f"{PIXELS},vgg16 --image-size 20", 2, "vgg16 needs images of at least 32 pixels"),
        (f"{PIXELS},vgg16 --preview-views", 2, "--preview-views is for one base"),
        ("--list-layers pixels,vgg16", 2, "expected one base"),
    ],
)
def test_invalid_input_is_one_line_with_its_exit_code(
    synthetic_set: Path, words: str, code: int, message: str
) -> None:
    Path("file").write_text("x")
    Path("text.h5").write_text("my notes")
    finished = run_command("extract", *words.split(), check=code)
    assert message in assert_one_line(finished)
    assert Path("text.h5").read_text() == "my notes"


def test_set_without_a_readable_image_is_bad_data(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "x.jpg").write_bytes(b"text")
    finished = run_command("extract", "set", "--base", "pixels", check=65)
    assert "2 of 2 files" in assert_one_line(finished)


def test_image_folder_whose_name_is_not_utf8_is_cached(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / os.fsdecode(b"caf\xe9"), per_class=3)
    table = extract_features(root, base="pixels").table
    assert table.document["root"] == os.fsdecode(root)
    assert extract_features(root, base="pixels").computed == 0


def test_out_of_another_set_is_not_overwritten(synthetic_set: Path, tmp_path: Path) -> None:
    other = make_image_folder(tmp_path / "other", per_class=3)
    extract_features(synthetic_set, base="pixels", out="x.h5")
    content = Path("x.h5").read_bytes()
    finished = run_command("extract", other, "--base", "pixels", "--out", "x.h5", check=73)
    assert str(synthetic_set) in assert_one_line(finished)
    assert Path("x.h5").read_bytes() == content


def test_strict_stops_at_the_first_unreadable_file(synthetic_set: Path) -> None:
    (synthetic_set / "train/plain/empty.png").write_bytes(b"")
    finished = run_command("extract", synthetic_set, "--base", "pixels", "--strict", check=65)
    assert "train/plain/empty.png: empty file" in assert_one_line(finished)


def test_help_shows_an_example() -> None:
    assert "python -m pipeline.extract data/pets" in run_command("extract", "--help").stdout
