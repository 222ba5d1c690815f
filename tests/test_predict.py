"""``python -m pipeline.predict``: tables, CSV, JSON, caches and errors."""

import csv
import hashlib
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bundle_sets import bundle_of, linear_head
from command import assert_one_line, modules_loaded_by, run_command
from feature_sets import SPEC, write_cache
from synthetic_images import draw, make_image_folder

from pipeline.api import extract_features, predict_images
from pipeline.cache.file import make_columns
from pipeline.engines import PixelsEngine
from pipeline.errors import BadDataError, NoInputError, PipelineError
from pipeline.evaluation.compare import compare_heads
from pipeline.images.decode import pixels_digest
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.image_predictions import ImagePredictions, Prediction
from pipeline.models.runs import find_bundle
from pipeline.predict import main
from pipeline.report.run_folder import write_run

MEASURED: dict[str, dict[bytes, np.ndarray]] = {}  # head -> image -> test scores of the table


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a set, its cache of raw pixels, a run and uncached images."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_image_folder(Path("synthetic"), splits=("train", "validation", "test"))
        make_image_folder(Path("unknown"), per_class=5)
        done = extract_features("synthetic", base="pixels", image_size=8)
        compared = compare_heads(done.table.path, heads="logistic,ridge", audit=False)
        write_run(compared, Path("results"))
    for outcome in compared.outcomes:
        assert outcome.test is not None
        keys = [key.tobytes() for key in outcome.test.keys]
        MEASURED[outcome.result.head] = dict(zip(keys, outcome.test.scores, strict=True))
    return folder


@pytest.fixture(autouse=True)
def _at_the_workplace(
    workplace: Path, tmp_path: Path, _empty_folder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give every test its own copy."""
    shutil.copytree(workplace, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the number of images in each call of the base."""
    calls: list[int] = []
    forward = PixelsEngine.__call__

    def counted(engine: PixelsEngine, images: np.ndarray) -> dict[str, Any]:
        calls.append(len(images))
        return forward(engine, images)

    monkeypatch.setattr(PixelsEngine, "__call__", counted)
    return calls


def predictions(made: ImagePredictions) -> list[Prediction]:
    return [item for item in made if isinstance(item, Prediction)]


def read_csv(text: str) -> dict[str, Mapping[str, str]]:
    return {row["path"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}


def only(folder: str, pattern: str = "*") -> Path:
    (path,) = Path(folder).glob(pattern)
    return path


def test_newest_runs_recommended_head_classifies_a_folder() -> None:
    finished = run_command("predict", "unknown")
    title, *lines = finished.stdout.partition("\n\n")[0].splitlines()
    assert title.split() == ["path", "label", "probability", "margin", "then"]
    assert [line.split()[0] for line in lines] == [
        f"unknown/{label}/{number:03d}.png" for label in ("plain", "striped") for number in range(5)
    ]
    for line in lines:
        path, label, probability, margin, other, share = line.split()
        assert label == Path(path).parent.name
        assert float(probability) + float(share) == pytest.approx(1, abs=2e-4)
        assert float(margin) == pytest.approx(float(probability) - float(share), abs=2e-4)
        assert {label, other} == {"plain", "striped"}
    assert "10 images (all computed), 0 files skipped" in finished.stderr


def test_files_get_the_probabilities_of_the_comparison(engine_calls: list[int]) -> None:
    shutil.copytree("synthetic/test", "moved")
    shutil.rmtree("synthetic")
    for head, expected in MEASURED.items():
        engine_calls.clear()
        made = predictions(predict_images("moved", head=head, use_cache=False))
        assert len(made) == sum(engine_calls) == len(expected) == 24
        for prediction in made:
            content = Path(os.fsdecode(prediction.path)).read_bytes()
            np.testing.assert_allclose(
                prediction.probabilities, expected[hashlib.sha256(content).digest()], atol=1e-6
            )


def test_cached_images_are_neither_decoded_nor_computed(
    engine_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = {
        item.path: item for item in predictions(predict_images("synthetic", use_cache=False))
    }
    assert sum(engine_calls) == 72
    engine_calls.clear()
    monkeypatch.setattr("pipeline.images.reader.decode", None)
    made = predictions(predict_images("synthetic"))
    assert engine_calls == []
    assert len(made) == 72
    for item in made:
        assert item.cached
        expected = computed[item.path].probabilities
        np.testing.assert_allclose(item.probabilities, expected, atol=1e-6)


def test_means_over_views_are_those_of_the_comparison(
    engine_calls: list[int],
) -> None:
    table = extract_features("synthetic", base="pixels", image_size=8, views=2, tta=True).table
    outcome = compare_heads(table.path, heads="logistic", audit=False, tta=True).shown
    assert outcome.bundle
    assert outcome.test
    save_bundle(outcome.bundle, Path("averaged.skops"))
    keys = [key.tobytes() for key in outcome.test.keys]
    expected = dict(zip(keys, outcome.test.scores, strict=True))
    engine_calls.clear()
    for use_cache in (True, False):
        made = predict_images("synthetic/test", model="averaged.skops", use_cache=use_cache)
        for prediction in predictions(made):
            assert prediction.cached == use_cache
            content = Path(os.fsdecode(prediction.path)).read_bytes()
            np.testing.assert_allclose(
                prediction.probabilities, expected[hashlib.sha256(content).digest()], atol=1e-6
            )
    assert sum(engine_calls) == 3 * 24
    shown = run_command("predict", "unknown", "--model", "averaged.skops", "--json")
    assert json.loads(shown.stdout)["model"]["tta"] == 2
    assert "mean over 3 views" in shown.stderr


def test_cached_and_new_images_keep_their_order(engine_calls: list[int]) -> None:
    cached = [f"synthetic/test/plain/{number:03d}.png" for number in range(3)]
    new = [f"unknown/striped/{number:03d}.png" for number in range(3)]
    paths = [path for pair in zip(cached, new, strict=True) for path in pair]
    made = predictions(predict_images(paths))
    assert [os.fsdecode(item.path) for item in made] == paths
    assert [item.cached for item in made] == [True, False] * 3
    assert engine_calls == [3]


def test_moved_cache_is_found_by_its_fingerprint(engine_calls: list[int]) -> None:
    bundle = load_bundle(find_bundle(only("results")))
    document = {**bundle.document, "cache": "cache/renamed.h5"}  # not where it was trained
    save_bundle(replace(bundle, document=document), Path("m.skops"))
    Path("cache").rename("elsewhere")
    made = predict_images("synthetic", model="m.skops", cache_dir="elsewhere")
    assert all(item.cached for item in predictions(made))
    made = predict_images("synthetic/test", model="m.skops")
    assert not any(item.cached for item in predictions(made))
    assert sum(engine_calls) == 24


def test_cache_of_other_features_is_not_used() -> None:
    bundle = load_bundle(find_bundle(only("results")))
    other = extract_features(
        "synthetic", base="pixels", image_size=8, resize="crop", out="other/cropped.h5"
    )
    misnamed = other.table.path.with_name(f"synthetic-pixels-{bundle.spec.fingerprint}.h5")
    other.table.path.rename(misnamed)
    document = {**bundle.document, "cache": os.fspath(misnamed)}
    save_bundle(replace(bundle, document=document), Path("m.skops"))
    made = predict_images("synthetic/test", model="m.skops", cache_dir="other")
    assert not any(item.cached for item in predictions(made))


def test_damaged_cache_is_reported_and_not_needed() -> None:
    bundle = load_bundle(find_bundle(only("results")))
    document = {**bundle.document, "cache": "broken.h5"}
    save_bundle(replace(bundle, document=document), Path("m.skops"))
    Path("broken.h5").write_bytes(b"no HDF5")
    shutil.rmtree("cache")
    finished = run_command("predict", "synthetic/test", "--csv", "--model", "m.skops")
    assert len(read_csv(finished.stdout)) == 24
    assert "broken.h5 cannot be read: it is not a feature cache" in finished.stderr


@pytest.mark.slow
def test_tensorflow_is_not_imported_when_every_image_is_cached() -> None:
    pixels = pixels_digest(32, "squash")
    spec = replace(SPEC, image_size=32, weights="ab" * 32, pixels=pixels)  # no file has these
    files = sorted(Path("synthetic/test").rglob("*.png"))
    columns = make_columns(
        labels=[0] * 24,
        splits=[0] * 24,
        paths=[b"%d.png" % row for row in range(24)],
        digests=[hashlib.sha256(file.read_bytes()).digest() for file in files],
        views=[0] * 24,
    )
    features = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    layers = {"block5_pool:avg": features}
    cache = write_cache(
        Path("cache/vgg16.h5"), labels=[0] * 24, spec=spec, columns=columns, layers=layers
    )
    head = linear_head(np.ones((1, 5)), np.zeros(1))
    document = {"cache": os.fspath(cache), "set": "s", "root": "r", "weights_from": "imagenet"}
    bundle = bundle_of(head, spec=spec, shape=(5,), document=document)
    save_bundle(bundle, Path("vgg16.skops"))
    arguments = ["predict", "synthetic/test", "--csv", "--model", "vgg16.skops"]
    by_path = read_csv(run_command(*arguments).stdout)
    for file, expected in zip(files, head.predict_proba(features), strict=True):
        assert float(by_path[str(file)]["probability"]) == pytest.approx(expected.max())
    loaded = modules_loaded_by(*arguments)
    assert "numpy" in loaded
    assert not loaded & {"tensorflow", "keras", "matplotlib"}


def test_broken_images_are_skipped_with_a_reason() -> None:
    Path("unknown/plain/text\x1b[31m.png").write_bytes(b"text")
    finished = run_command("predict", "unknown", "missing.jpg")
    assert len(finished.stdout.partition("\n\n")[0].splitlines()) == 11
    assert "skipped missing.jpg: does not exist" in finished.stderr
    assert r"text\x1b[31m.png: not an image" in finished.stderr
    assert "\x1b" not in finished.stderr + finished.stdout
    assert "10 images (all computed), 2 files skipped" in finished.stderr


def test_images_in_class_folders_are_counted_as_right_or_wrong() -> None:
    Path("unknown/plain/000.png").rename("unknown/striped/wrong.png")
    Path("unknown/plain/001.png").rename("unknown/001.png")
    table = run_command("predict", "unknown", "--no-cache")
    lines = table.stdout.partition("\n\n")[2].splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["class", "predicted", "images", "right", "%", "wrong", "predictions"],
        ["plain", "5", "3", "100.0"],
        ["striped", "5", "6", "83.3", "plain", "1"],
    ]
    assert lines[3:] == ["88.9 % of 9 images in class folders are right (95 % interval 56.5–98.0)"]
    assert "margin: the probability minus that of the second class" in table.stderr
    comma_separated = run_command("predict", "unknown", "--csv", "--no-cache")
    assert lines[3] in comma_separated.stderr
    assert len(comma_separated.stdout.splitlines()) == 11
    summary = json.loads(run_command("predict", "unknown", "--json", "--no-cache").stdout)[
        "summary"
    ]
    assert summary == {
        "predicted": {"striped": 5, "plain": 5},
        "in_class_folders": {"striped": 6, "plain": 3},
        "right": {"striped": 5, "plain": 3},
        "confused": [{"class": "striped", "predicted": "plain", "images": 1}],
        "accuracy": pytest.approx(8 / 9),
    }


def test_images_outside_class_folders_are_counted_by_predicted_class() -> None:
    Path("unknown/plain").rename("flat")
    finished = run_command("predict", "flat", "synthetic/test")
    assert finished.stdout.splitlines()[-1].endswith("; cached images may be those of the training")
    finished = run_command("predict", "flat")
    assert finished.stdout.partition("\n\n")[2].splitlines() == [
        "class  predicted",
        "plain          5",
    ]


def test_csv_and_json_agree_and_keep_names_byte_for_byte() -> None:
    odd = os.fsdecode(b"unknown/plain/\xff, \xea\xb3\xa0\xec\x96\x91\n.png")
    draw(5, stripes=False).save(odd)
    Path("unknown/plain/empty.png").write_bytes(b"")
    by_path = read_csv(run_command("predict", "unknown", "--csv").stdout)
    document = json.loads(run_command("predict", "unknown", "--json", "--no-cache").stdout)
    assert odd in by_path
    assert len(by_path) == len(document["images"]) == 11
    for image in document["images"]:
        row = by_path[image["path"]]
        assert [row["label"], row["label_2"]] == [top["label"] for top in image["top"]]
        assert float(row["probability"]) == pytest.approx(image["probability"], abs=1e-9)
        assert float(row["margin"]) == pytest.approx(image["margin"], abs=1e-9)
    assert document["model"]["classes"] == ["plain", "striped"]
    assert document["model"]["image_size"] == 8
    assert document["skipped"] == [{"path": "unknown/plain/empty.png", "reason": "empty file"}]
    assert document["cached"] == 0


@pytest.mark.slow
def test_list_is_read_from_stdin_and_rows_are_piped_while_a_terminal_shows_progress() -> None:
    listed, last = ["unknown/striped/002.png", "unknown/plain"], "synthetic/test/plain/001.png"
    terminal_end, process_end = pty.openpty()
    with open(terminal_end, "rb", buffering=0) as terminal:  # noqa: PTH123 - a descriptor
        finished = subprocess.run(
            [sys.executable, "-m", "pipeline.predict", "-", last, "--csv"],
            input="".join(f"{name}\0" for name in listed),
            stdout=subprocess.PIPE,
            stderr=process_end,
            text=True,
            check=True,
        )
        shown = terminal.read(65536)
    os.close(process_end)
    assert b"predicting" in shown
    assert b"plain/000.png" not in shown
    assert list(read_csv(finished.stdout)) == [
        listed[0],
        *(f"unknown/plain/{number:03d}.png" for number in range(5)),
        last,
    ]


def test_contact_sheet_is_written_on_request() -> None:
    finished = run_command("predict", "unknown", "--sheet", "sheets/new.png", "--json")
    assert json.loads(finished.stdout)["sheet"] == "sheets/new.png"
    assert Path("sheets/new.png").read_bytes().startswith(b"\x89PNG")


def test_help_loads_no_library() -> None:
    loaded = modules_loaded_by("predict", "--help")
    assert not {"numpy", "h5py", "sklearn", "tensorflow", "keras"} & loaded


def test_expectations_that_the_model_meets_are_accepted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["unknown", "--base", "Pixels", "--image-size", "8", "--preprocessing", "native"])
    assert len(capsys.readouterr().out.partition("\n\n")[0].splitlines()) == 11


def test_weights_of_another_model_are_refused_naming_both() -> None:
    bundle = load_bundle(find_bundle(only("results")))
    spec = replace(bundle.spec, base="vgg16", weights="ab" * 32, image_size=32)
    spec = replace(spec, pixels=pixels_digest(32, "squash"))
    save_bundle(replace(bundle, spec=spec), Path("vgg16.skops"))
    with h5py.File("other.h5", "w") as file:
        file["kernel"] = np.ones((3, 3), np.float32)
    with pytest.raises(BadDataError, match=r"weights abababababab…; received .*other.h5"):
        predict_images("synthetic", model="vgg16.skops", weights="other.h5")


FAILURES = [
    (["nowhere.jpg"], 66, "there is no image file to classify: nowhere.jpg does not exist"),
    (["no*.jpg"], 66, "no*.jpg does not exist"),
    (["empty"], 66, "there is no image file to classify"),
    (["text.jpg"], 65, "none of 1 file can be read as an image"),
    (["text.jpg", "synthetic", "--strict"], 65, "--strict stops here"),
    (["synthetic", "missing.jpg", "--strict"], 65, "missing.jpg: does not exist"),
    (["synthetic", "--model", "nothing"], 66, "nothing does not exist"),
    (["synthetic", "--head", "dense"], 2, "dense"),
    (["synthetic", "--head", "rigde"], 2, "did you mean ridge?"),
    (["synthetic", "--base", "vgg61"], 2, "did you mean vgg16?"),
    (["synthetic", "--model", "text.jpg"], 65, "text.jpg is refused"),
    (["synthetic", "--top", "0"], 2, "--top"),
    (["synthetic", "--batch-size", "0"], 2, "--batch-size"),
    (["synthetic", "--labels", "l.txt"], 2, "--imagenet"),
    (["synthetic", "--imagenet", "vgg16", "--head", "ridge"], 2, "leave out --head"),
    (["synthetic", "--sheet", "sheet.jpg"], 2, "PNG"),
    (["synthetic", "--sheet", "folder.png"], 73, "is a folder"),
    (["synthetic", "--weights", "gone.h5"], 66, "no such file"),
    (["synthetic", "--image-size", "150"], 2, "with --image-size 8; received --image-size 150"),
    (["synthetic", "--base", "VGG16"], 2, "with --base pixels; received --base vgg16"),
    (
        ["synthetic", "--preprocessing", "rescale"],
        2,
        "native; received --preprocessing rescale",
    ),
]


def test_expected_failures_are_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("text.jpg").write_bytes(b"text")
    Path("empty").mkdir()
    Path("folder.png").mkdir()
    for arguments, code, message in FAILURES:
        with pytest.raises(PipelineError) as caught:
            main(arguments)
        assert caught.value.exit_code == code, arguments
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert capsys.readouterr().out == ""


def test_refused_options_do_not_wait_for_scikit_learn() -> None:
    for words, code in (("--model nothing", 66), ("--head rigde", 2), ("--base vgg61", 2)):
        loaded = modules_loaded_by("predict", "synthetic", *words.split(), check=code)
        assert "sklearn" not in loaded, words


def test_without_a_run_classify_is_named() -> None:
    shutil.rmtree("results")
    message = assert_one_line(run_command("predict", "synthetic", "--json", check=66))
    assert "python -m pipeline.classify first" in message


def test_no_images_named_is_an_error() -> None:
    with pytest.raises(NoInputError, match="no path was passed"):
        predict_images([])
