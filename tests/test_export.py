"""``python -m pipeline.export``: an exported model predicts as in the comparison."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from command import assert_one_line, modules_loaded_by, run_command
from synthetic_images import make_image_folder

from pipeline import durable, extract_features
from pipeline.errors import BadDataError, CannotCreateError, PipelineError, UnreachableError
from pipeline.evaluation.compare import compare_heads
from pipeline.export import main
from pipeline.images.decode import pixels_digest
from pipeline.images.views import POLICIES
from pipeline.models import export
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.export import export_bundle, predict_elsewhere
from pipeline.models.runs import find_bundle
from pipeline.report.run_folder import write_run


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a synthetic set, copies of its files made before training, and a run."""
    folder = tmp_path_factory.mktemp("lab")
    data = make_image_folder(folder / "synthetic", splits=("train", "validation", "test"))
    shutil.copytree(data, folder / "copies")
    cache_dir = folder / "cache"
    cache = extract_features(data, base="pixels", image_size=16, cache_dir=cache_dir).table.path
    comparison = compare_heads(cache, heads="logistic:flat,linear_svm:flat,ridge,knn", audit=False)
    write_run(comparison, folder / "results").rename(folder / "run")
    return folder


def expected_of(lab: Path, head: str) -> tuple[list[Path], np.ndarray]:
    """Return copies of the test images and the head's probabilities of their cached features."""
    bundle = load_bundle(find_bundle(lab / "run", head))
    images = export.reference_images(bundle)
    copies = [lab / "copies" / path.relative_to(lab / "synthetic") for path in images.files(lab)]
    return copies, images.predictions(bundle)


def test_onnx_predicts_copied_files_as_in_the_comparison_without_this_project(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(lab / "run"), "--format", "onnx", "--head", "logistic"])
    agreement, _, written = capsys.readouterr().out.splitlines()
    assert agreement.startswith("logistic predicts as in the comparison: largest difference ")
    assert agreement.endswith("no decision of 24 changed")
    folder = lab / "run" / "exports" / "logistic-onnx"
    assert written == f"written to {folder}"
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == ["README.md", "model.onnx", "predict.py"]
    copies, expected = expected_of(lab, "logistic")
    found = predict_elsewhere(folder / "predict.py", copies)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(CannotCreateError, match="exists: choose"):
        main([str(lab / "run"), "--format", "onnx", "--head", "logistic"])


def test_predict_py_prints_each_file_and_skips_other_files(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(lab / "run"), "--format", "onnx", "--head", "ridge", "--json", "--out", "made"])
    document = json.loads(capsys.readouterr().out)
    assert document.pop("max_difference") < 1e-5
    assert document == {"head": "ridge", "folder": "made", "images": 24, "changed": 0}
    copies, expected = expected_of(lab, "ridge")
    Path("broken.jpg").write_bytes(b"text")
    shown = run_predict_py(copies[0], "broken.jpg", copies[-1])
    assert shown.returncode == 1
    assert shown.stdout.splitlines() == [
        f"{copies[0]}\tplain\t{expected[0, 0]:.4f}",
        f"{copies[-1]}\tstriped\t{expected[-1, 1]:.4f}",
    ]
    assert shown.stderr.startswith("broken.jpg\tskipped\tcannot identify image file")
    assert shown.stderr.endswith("1 of 3 files skipped\n")


def run_predict_py(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "made/predict.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_predict_py_takes_folders_and_patterns_and_writes_a_csv(lab: Path) -> None:
    export_bundle(find_bundle(lab / "run", "ridge"), format="onnx", out=Path("made"))
    copies, expected = expected_of(lab, "ridge")
    photos = Path("my photos")
    for path in copies:
        name = photos / path.parent.name / f"{path.stem}, [1]é.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, name)
    for ignored in (".hidden.png", "Thumbs.db", ".cache/a.png"):
        (photos / ignored).parent.mkdir(exist_ok=True)
        (photos / ignored).write_bytes(b"no image")
    paths = [str(photos / path.parent.name / f"{path.stem}, [1]é.png") for path in copies]
    for names in (["my photos"], ["my photos/**/*.png"], ["my photos/*"], [paths[0], "my photos"]):
        shown = run_predict_py(*names, "--csv", "found.csv")
        assert (shown.returncode, shown.stderr) == (0, "")
        with Path("found.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["path"] for row in rows] == paths
        assert [row["label"] for row in rows] == [path.parent.name for path in copies]
        found = [float(row["probability"]) for row in rows]
        np.testing.assert_allclose(found, expected.max(axis=1), atol=1e-5)
        lines = [line.split("\t") for line in shown.stdout.splitlines()]
        assert lines == [
            [row["path"], row["label"], f"{share:.4f}"]
            for row, share in zip(rows, found, strict=True)
        ]
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does
    command = [sys.executable, "-I", "made/predict.py", paths[0]]
    with os.fdopen(writing) as closed:
        shown = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (shown.returncode, shown.stderr) == (141, "")


def test_predict_py_says_what_is_wrong_with_its_arguments_or_its_folder() -> None:
    Path("made").mkdir()
    template = Path(export.__file__).parent / "templates" / "predict.py"
    shutil.copy(template, "made")
    Path("empty").mkdir()
    for arguments, code, message in (
        (["--help"], 0, "--csv FILE"),
        ([], 2, "arguments are required: IMAGE"),
        (["empty"], 2, "no files in empty"),
        (["a.jpg"], 1, "a.jpg\tskipped\tdoes not exist"),
        (["https://a.org/b.jpg"], 1, "skipped\tis not fetched: download it first"),
        (["made/predict.py"], 2, "there is no model.onnx, model.tflite, model.keras in"),
    ):
        shown = run_predict_py(*arguments)
        assert shown.returncode == code
        assert message in shown.stdout + shown.stderr
        assert "Traceback" not in shown.stderr


def recommend(run: Path, **changed: object) -> None:
    """Recommend the knn of a run, with changed values in its row."""
    document = json.loads((run / "results.json").read_text("utf-8"))
    for row in document["rows"]:
        row["recommended"] = row["head"] == "knn"
        row.update(changed if row["recommended"] else {})
    (run / "results.json").write_text(json.dumps(document), "utf-8")


def test_recommended_head_is_exported_even_if_it_is_no_network(lab: Path) -> None:
    shutil.copytree(lab / "run", "results/run", ignore=shutil.ignore_patterns("exports"))
    recommend(Path("results/run"))
    Path("results/README.md").write_text("")
    Path("results/2099-01-01_000000-bench").mkdir()
    finished = run_command("export", "--format", "onnx")
    assert finished.stdout.splitlines()[0].startswith("knn predicts as in the comparison")
    copies, expected = expected_of(lab, "knn")
    found = predict_elsewhere(Path("results/run/exports/knn-onnx/predict.py"), copies)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_next_best_head_is_exported_if_the_recommended_one_cannot(lab: Path) -> None:
    shutil.copytree(lab / "run", "run", ignore=shutil.ignore_patterns("exports"))
    bundle = load_bundle(find_bundle(lab / "run", "knn"))
    averaged = {"tta": 4, "augmentation": POLICIES["book"].to_dict()}
    document = {**bundle.document, **averaged}
    save_bundle(replace(bundle, document=document), Path("run/models/averaged.skops"))
    for model, reason in (
        ("", "knn was not saved"),
        ("models/averaged.skops", "knn cannot be exported: its probabilities are means"),
    ):
        recommend(Path("run"), model=model)
        finished = run_command("export", "run", "--format", "onnx", "--out", "made", "--json")
        best = json.loads(finished.stdout)["head"]
        assert best != "knn"
        assert reason in finished.stderr
        assert f"trying {best} instead, the next best" in finished.stderr
        shutil.rmtree("made")
        failed = run_command("export", "run", "--format", "onnx", "--head", "knn", check=2)
        assert reason in assert_one_line(failed)


@pytest.mark.slow
def test_next_best_head_is_exported_if_the_recommended_one_predicts_otherwise(
    lab: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(lab / "run", "run", ignore=shutil.ignore_patterns("exports"))
    recommend(Path("run"))
    errors = iter([0.5, 0, 0])

    def with_error(script: Path, paths: list[Path]) -> np.ndarray:
        return np.abs(predict_elsewhere(script, paths) - np.float32(next(errors)))

    monkeypatch.setattr(export, "predict_elsewhere", with_error)
    done = export.export_run(Path("run"), format="onnx")
    assert done.head != "knn"
    assert done.folder == Path("run/exports") / f"{done.head}-onnx"
    assert "the exported knn does not predict from image files what" in caplog.text
    assert [path.name for path in Path("run/exports").iterdir()] == [done.folder.name]


def test_moved_and_renamed_images_are_found_by_content(synthetic_set: Path) -> None:
    options = {"base": "pixels", "image_size": 8, "cache_dir": Path("old")}
    cache = extract_features(synthetic_set, **options).table.path
    write_run(compare_heads(cache, heads="ridge", audit=False), Path("results"))
    synthetic_set.rename("moved")
    Path("old").rename("cache")
    cache = Path("cache") / cache.name
    Path("moved/test").rename("moved/renamed")
    for number, path in enumerate(sorted(Path("moved").rglob("*.png"))):
        path.rename(path.with_name(f"renamed {number}.png"))
    shutil.copytree("moved/renamed", "moved/copies")
    command = ["export", "--format", "onnx"]
    message = assert_one_line(run_command(*command, check=66))
    assert f"{synthetic_set}, the image folder of {cache}, does not exist" in message
    assert "--images" in message
    Path("empty").mkdir()
    for wrong, reason in (("empty", "contains none of 24 test images"), ("no", "not exist")):
        failed = assert_one_line(run_command(*command, "--images", wrong, check=66))
        assert reason in failed
    finished = run_command(*command, "--images", "moved", "--json")
    assert json.loads(finished.stdout)["images"] == 24


@pytest.mark.slow
def test_removed_or_renamed_images_say_how_to_find_the_others(
    synthetic_set: Path,
) -> None:
    cache = extract_features(synthetic_set, base="pixels", image_size=8).table.path
    write_run(compare_heads(cache, heads="ridge", audit=False), Path("results"))
    command = ["export", "--format", "onnx"]
    (synthetic_set / "test/plain/000.png").unlink()
    message = assert_one_line(run_command(*command, check=65))
    assert "000.png is not the cached image any more" in message
    assert "--images" in message
    for split in ("train", "validation", "test"):
        (synthetic_set / split / "plain").rename(synthetic_set / split / "smooth")
    message = assert_one_line(run_command(*command, check=65))
    assert f"--images {synthetic_set} finds the images by content" in message
    finished = run_command(*command, "--images", synthetic_set, "--json")
    assert json.loads(finished.stdout)["images"] == 23


@pytest.mark.slow
def test_keras_predicts_copied_files_as_in_the_comparison_without_this_project(lab: Path) -> None:
    done = export_bundle(
        find_bundle(lab / "run", "ridge"), format="keras", out=Path("new/ridge"), check_images=5
    )
    assert done.parity.count == 5
    assert "of 5 changed" in (done.folder / "README.md").read_text("utf-8")
    copies, expected = expected_of(lab, "ridge")
    found = predict_elsewhere(done.folder / "predict.py", copies)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_tflite_predicts_copied_files_and_takes_the_next_best_head_for_one_that_is_no_network(
    lab: Path,
) -> None:
    shutil.copytree(lab / "run", "run", ignore=shutil.ignore_patterns("exports"))
    recommend(Path("run"))
    finished = run_command("export", "run", "--format", "tflite", "--out", "made", "--json")
    document = json.loads(finished.stdout)
    assert "knn cannot be exported to Keras or LiteRT" in finished.stderr
    assert f"trying {document['head']} instead, the next best" in finished.stderr
    assert finished.stderr.count("checking 24 images") == 1  # absl prints messages again
    copies, expected = expected_of(lab, document["head"])
    found = predict_elsewhere(Path("made/predict.py"), copies)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    shown = run_predict_py(copies[-1])
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == f"{copies[-1]}\tstriped\t{expected[-1, 1]:.4f}\n"
    without = "import runpy, sys; sys.modules['ai_edge_litert'] = None; del sys.argv[0]; "
    without += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-I", "-c", without, "made/predict.py", str(copies[0])]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert shown.stderr.endswith("ai-edge-litert is missing: pip install ai-edge-litert\n")


def test_predict_elsewhere_cannot_import_this_project(tmp_path: Path) -> None:
    script = tmp_path / "predict.py"
    script.write_text("def predict(paths):\n    import pipeline.images\n")
    with pytest.raises(BadDataError, match=r"predict\.py failed: ModuleNotFoundError"):
        predict_elsewhere(script, [tmp_path])


PLANTED = {
    "order of colours": (
        'return np.asarray(rgb.convert("RGB"))',
        'return np.asarray(rgb.convert("RGB"))[..., ::-1]',
    ),
    "resize policy": ('resize == "crop"', 'resize == "squash"'),
    "filter": ("Resampling.BILINEAR)\n    return", "Resampling.NEAREST)\n    return"),
    "order of classes": ("return np.stack", "return 1 - np.stack"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_error_planted_in_predict_py_is_found_and_leaves_nothing(
    lab: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = export._template

    def planted(file: str) -> str:
        right, wrong = PLANTED[name]
        return template(file).replace(right, wrong)

    assert planted("predict.py") != template("predict.py")
    monkeypatch.setattr(export, "_template", planted)
    with pytest.raises(BadDataError, match="the exported linear_svm does not predict"):
        export_bundle(find_bundle(lab / "run", "linear_svm"), format="onnx", out=Path("new/onnx"))
    assert list(Path.cwd().iterdir()) == []


def test_error_planted_in_the_model_is_found_and_leaves_nothing(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.models import composition

    monkeypatch.setattr(composition, "_pool", lambda maps, pooling: maps[..., ::-1])
    with pytest.raises(BadDataError, match="the exported linear_svm does not predict"):
        export_bundle(find_bundle(lab / "run", "linear_svm"), format="onnx", out=Path("new/onnx"))
    assert list(Path.cwd().iterdir()) == []


def test_link_in_a_received_run_writes_nothing_outside_it(lab: Path) -> None:
    shutil.copytree(lab / "run", "run", ignore=shutil.ignore_patterns("exports"))
    Path("victim").mkdir()
    for target in ("../victim", "models", "../not there", "exports"):
        Path("run/exports").symlink_to(target)
        before = sorted(Path.cwd().rglob("*"))
        with pytest.raises(BadDataError, match="exports is a link out of the run: choose --out"):
            export_bundle(find_bundle(Path("run"), "ridge"), format="onnx")
        assert sorted(Path.cwd().rglob("*")) == before
        Path("run/exports").unlink()
    Path("run/exports").mkdir()
    Path("run/exports/ridge-onnx").symlink_to("../../victim/new")
    with pytest.raises(CannotCreateError, match="exists: choose"):
        export_bundle(find_bundle(Path("run"), "ridge"), format="onnx")


def test_next_export_removes_the_folders_of_a_killed_one(lab: Path) -> None:
    Path("elsewhere").mkdir()
    Path(".export-linkedto").symlink_to("elsewhere")
    two_days_ago = time.time() - 2 * durable.STALE_AFTER
    for name in (".export-abc12_78", "new/.export-abc12_78", ".export-running0", ".export-theirs"):
        Path(name, "onnx").mkdir(parents=True)
        Path(name, "onnx", "model.onnx").write_bytes(b"half")
        if "running" not in name:
            os.utime(name, (two_days_ago, two_days_ago))
    os.utime("elsewhere", (two_days_ago, two_days_ago))
    export_bundle(find_bundle(lab / "run", "ridge"), format="onnx", out=Path("new/onnx"))
    assert {path.name for path in Path.cwd().iterdir()} == {
        ".export-linkedto", ".export-running0", ".export-theirs", "elsewhere", "new",
    }  # fmt: skip
    assert [path.name for path in Path("new").iterdir()] == ["onnx"]


def test_predict_py_without_an_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CHECK_TIMEOUT", 0.2)
    script = tmp_path / "predict.py"
    script.write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(BadDataError, match=r"did not classify 1 image within 0\.2 s") as caught:
        predict_elsewhere(script, [tmp_path])
    assert "\n" not in str(caught.value)


def test_missing_extra_says_how_to_install_it(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for format in ("onnx", "tflite"):
        monkeypatch.setitem(export.EXTRAS, format, ("numpy", "no_such_package"))
        with pytest.raises(UnreachableError, match=rf"no_such_package is .*: pip .*\[{format}\]"):
            export_bundle(find_bundle(lab / "run", "logistic"), format=format)


def test_expected_failures_are_one_line_and_an_exit_code(lab: Path) -> None:
    Path("run").symlink_to(lab / "run")
    with h5py.File("other.h5", "w") as file:
        file["kernel"] = np.ones(3, "f4")
    bundle = load_bundle(find_bundle(lab / "run", "ridge"))
    moved = replace(bundle, document={**bundle.document, "cache": "gone.h5"})
    save_bundle(moved, Path("moved.skops"))
    spec = replace(
        bundle.spec,
        base="mobilenet",
        weights="ab" * 32,
        image_size=32,
        pixels=pixels_digest(32, "squash"),
    )
    save_bundle(replace(bundle, spec=spec), Path("network.skops"))
    before = sorted(Path.cwd().rglob("*"))
    for command, code, message in (
        ("run --head mine", 2, "it has no head mine"),
        ("run --head logistic --check-images 0 --out new", 2, "at least 1; received 0"),
        ("run --head logistic --out run", 73, "choose another --out"),
        ("network.skops --weights other.h5", 65, "with weights abababababab…; received"),
        ("nowhere", 66, "nowhere"),
        ("moved.skops", 66, "gone.h5 does not exist"),
    ):
        with pytest.raises(PipelineError) as caught:
            main([*command.split(), "--format", "onnx"])
        assert caught.value.exit_code == code, command
        assert message in str(caught.value)
        assert str(caught.value).isprintable()
        assert sorted(Path.cwd().rglob("*")) == before


def test_refused_options_do_not_wait_for_scikit_learn(lab: Path) -> None:
    for words, code in (
        ("onnx --head mine", 2),
        ("onnx --head logistic --out .", 73),
        ("keras --head knn", 2),
        ("tflite --head knn", 2),
    ):
        loaded = modules_loaded_by("export", lab / "run", "--format", *words.split(), check=code)
        assert not {"sklearn", "tensorflow"} & loaded, words


def test_help_loads_no_library() -> None:
    loaded = modules_loaded_by("export", "--help")
    assert not {"numpy", "h5py", "sklearn", "tensorflow", "keras", "onnx"} & loaded
