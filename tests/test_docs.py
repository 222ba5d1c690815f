"""The documents are true."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copyfile, which

import numpy as np
import pytest
from synthetic_images import make_image_folder

from pipeline import classify, export, extract_features, predict
from pipeline.errors import PipelineError
from pipeline.heads import registry

ROOT = Path(__file__).parents[1]


def test_reader_of_the_format_page_reads_a_cache(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "FORMAT.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "pipeline" not in code
    assert len(code.split("def ")[1].splitlines()) <= 10
    root = make_image_folder(tmp_path / "synthetic", per_class=4)
    table = extract_features(root, base="pixels").table
    expected = table.features("pixels")
    extract_features(root, base="pixels", limit_per_class=3)
    names: dict[str, object] = {}
    exec(code, names)
    features, labels, classes, splits, paths, document = names["read_cache"](table.path)  # type: ignore[operator]
    assert classes == ["plain", "striped"]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert not splits.any()
    assert document["spec"]["base"] == "pixels"
    kept = [table.columns.paths.tolist().index(path) for path in paths]
    np.testing.assert_array_equal(features["pixels"], expected[kept])


README = (ROOT / "README.md").read_text()
GUIDES = (
    "EXTRACT",
    "EVALUATION",
    "CACHE",
    "FINETUNE",
    "PREDICT",
    "EXPLAIN",
    "PERFORMANCE",
    "INPUTS",
    "STORAGE",
    "CLUSTER",
)  # with commands


def commands_of(page: str) -> list[str]:
    """Return the commands in the console blocks of a page, without comments."""
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [line.removeprefix("$ ").split("  #")[0].strip() for line in lines]


def test_readme_is_short_and_names_every_command() -> None:
    from pipeline.__main__ import COMMANDS

    assert len(README.splitlines()) < 150
    for name in COMMANDS:
        assert f"python -m pipeline.{name}" in README
    for name in ("sample", "speed"):
        assert f"python -m benchmarks.{name}" in README


def test_links_of_the_documents_exist() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {command.split()[1] for command in commands_of(README) if command.startswith("make ")}
    assert targets >= {"demo", "test"}
    for target in targets | set(re.findall(r"`make ([\w-]+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow
def test_head_that_the_documents_add_works_in_every_command(
    synthetic_set: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "EVALUATION.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (code,) = (block for block in blocks if "HEADS[" in block)
    assert len(code.splitlines()) <= 10
    monkeypatch.setattr(registry, "HEADS", HEADS := dict(registry.HEADS))
    monkeypatch.setattr("pipeline.heads.names.HEADS", HEADS)
    exec(code, dict(vars(registry)))
    cache = extract_features(synthetic_set, base="pixels").table.path
    classify.main([str(cache), "--heads", "extra_trees", "--no-audit"])
    (run,) = Path("results").iterdir()
    (row,) = json.loads((run / "results.json").read_text("utf-8"))["rows"]
    assert (row["head"], row["model"]) == ("extra_trees", "models/extra_trees.skops")
    assert row["test_accuracy"] > 0.6
    capsys.readouterr()
    predict.main([str(synthetic_set / "test" / "plain"), "--model", str(run)])
    assert "plain" in capsys.readouterr().out
    export.main([str(run), "--format", "onnx"])
    assert "extra_trees predicts as in the comparison" in capsys.readouterr().out
    with pytest.raises(PipelineError) as refused:
        export.main([str(run), "--format", "keras"])
    assert "extra_trees" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_every_command_of_the_documents_runs(tmp_path: Path) -> None:
    """In order, as written, in a copy of a fresh clone with a set of images."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copyfile(ROOT / name, tmp_path / name)
    make_image_folder(tmp_path / "data" / "pets", per_class=40)
    make_image_folder(tmp_path / "data" / "synthetic", per_class=4)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    guides = [(ROOT / "docs" / f"{name}.md").read_text() for name in GUIDES]
    commands = [command for page in (README, *guides) for command in commands_of(page)]
    assert len(commands) > 20
    for command in commands:
        if command.startswith("make ") or (command.startswith("h5ls") and not which("h5ls")):
            continue
        finished = subprocess.run(
            command, shell=True, env=environment, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, f"{command}\n{finished.stderr}"
