"""Names are shown in fonts that have their letters; a warning names letters that no font has."""

import logging
from pathlib import Path

import pytest

from pipeline.report.fonts import DEFAULT, fonts_for, letters_of, warn_of_boxes


@pytest.mark.parametrize("name", ["cats", "été", "кошка", "γάτα", "قطة", "😀", "a\u200db\ufe0f"])
def test_the_default_font_has_the_letters_of_many_scripts(name: str) -> None:
    assert fonts_for(name) == [DEFAULT]


def test_the_fonts_have_all_letters_or_a_warning_lists_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="pipeline")
    name = "猫 고양이 ネコ 🐈 \u13a0"
    fonts = fonts_for(name)
    assert fonts[0] == DEFAULT
    assert len(set(fonts)) == len(fonts)
    missing = {letter for letter in name if not any(letter in letters_of(font) for font in fonts)}
    warn_of_boxes(name, "confusion.png")
    assert all(letter in caplog.text for letter in missing - {" "})
    assert len(caplog.records) == bool(missing - {" "})


@pytest.mark.parametrize(
    ("letter", "package"),
    [("\U0002ebe0", "fonts-noto-cjk"), ("\U0001fae9", "fonts-symbola"), ("\u1b84", "noto-core")],
)
def test_the_warning_names_a_package(
    letter: str, package: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report.fonts._installed", lambda: [DEFAULT])
    caplog.set_level(logging.WARNING, logger="pipeline")
    warn_of_boxes(f"cats {letter}", "confusion.png")
    assert f"confusion.png shows boxes instead of {letter}: " in caplog.text
    assert package in caplog.text


def test_a_file_that_is_no_font_has_no_letters(tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_bytes(b"no font")
    assert letters_of(str(tmp_path / "font.ttf")) == frozenset()
    assert letters_of(str(tmp_path / "missing.ttf")) == frozenset()
