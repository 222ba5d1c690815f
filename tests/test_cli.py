"""What all commands share: errors in options, help, version and interrupts."""

from pathlib import Path

import pytest
from command import assert_one_line, run_command, run_process


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("extract --bse vgg16", "did you mean --base?"),
        ("extract --pooling=avg --imagesize=8", "did you mean --image-size?"),
        ("extract --resize cropp", "did you mean crop?"),
        ("extract --image-size x", "--image-size: expected a whole number, received 'x'"),
        ("classify --epochs 10,x", "--epochs: expected a whole number from 1, received 'x'"),
        ("classify --learning-rate x", "expected a number above 0, received 'x'"),
        ("classify --cv x", "--cv: expected a whole number from 1, received 'x'"),
        ("predict photos --topp 3", "did you mean --top?"),
        ("predict", "the following arguments are required: IMAGES"),
        ("export --format kera", "did you mean keras?"),
        ("finetune --unfreze block5_conv1 data", "did you mean --unfreeze?"),
        ("cache verifi", "did you mean verify?"),
    ],
)
def test_wrong_options_are_one_line_with_a_suggestion(words: str, message: str) -> None:
    name, *_ = words.split()
    line = assert_one_line(run_command(*words.split(), check=2))
    assert message in line
    assert line.endswith(f"See python -m pipeline.{name} --help")


def test_commands_are_listed_and_other_words_are_refused() -> None:
    from pipeline import __version__

    for words in ([], ["help"], ["--help"]):
        assert "python -m pipeline.extract" in run_command("pipeline.__main__", *words).stdout
    assert run_command("pipeline.__main__", "--version").stdout == f"{__version__}\n"
    for word, message in (("clasify", "did you mean classify?"), ("--nope", "unknown option")):
        refused = run_command("pipeline.__main__", word, check=2)
        assert message in assert_one_line(refused)


def test_interrupt_during_the_first_imports_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("argparse.py").write_text("raise KeyboardInterrupt")  # imported by every command
    for name in ("extract", "classify", "predict", "export"):
        interrupted = run_process(name, check=130)
        assert assert_one_line(interrupted) == "error: interrupted"
