"""Find installed fonts that have the letters of class and file names."""

import logging
import unicodedata
from functools import cache
from pathlib import Path

from matplotlib import get_data_path
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font

DEFAULT = str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))  # part of matplotlib
INVISIBLE = {"Cc", "Cf", "Cs", "Mn", "Zs"}  # categories: controls, joiners, marks, spaces
FIRST_EMOJI = "\U0001f000"
CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL")  # first words of the names of letters

log = logging.getLogger("pipeline")


def fonts_for(text: str) -> list[str]:
    """Return the paths of fonts that together have the letters of a text, `DEFAULT` first."""
    fonts, missing = [DEFAULT], _visible(text) - letters_of(DEFAULT)
    while missing and _installed():
        best = max(_installed(), key=lambda font: len(missing & letters_of(font)))
        if missing.isdisjoint(letters_of(best)):
            break
        fonts.append(best)
        missing -= letters_of(best)
    return fonts


def warn_of_boxes(text: str, file: str) -> None:
    """Warn of letters that no installed font has, which are boxes in a file."""
    missing = sorted(_visible(text).difference(*map(letters_of, fonts_for(text))))
    if missing:
        packages = " and ".join(sorted({_debian_package(letter) for letter in missing}))
        log.warning(
            "%s shows boxes instead of %s: no installed font has them; install one, such as %s of "
            "Debian and Ubuntu",
            file, "".join(missing[:10]) + "…" * (len(missing) > 10), packages,
        )  # fmt: skip


def _visible(text: str) -> set[str]:
    return {letter for letter in text if unicodedata.category(letter) not in INVISIBLE}


@cache
def _installed() -> list[str]:
    """Return fonts, plain ones first; matplotlib's list on disk lacks fonts installed later."""
    return sorted(findSystemFonts(), key=_plainness)


@cache
def letters_of(font: str) -> frozenset[str]:
    """Return the letters of a font; none if it has no outlines, such as one of colour emoji."""
    try:
        face = FT2Font(font)
        return frozenset(map(chr, face.get_charmap())) if face.scalable else frozenset()
    except (OSError, RuntimeError):  # not a font that FreeType reads
        return frozenset()


def _plainness(font: str) -> tuple[bool, bool, str]:
    name = Path(font).stem.lower()
    return "regular" not in name, "serif" in name, font


def _debian_package(letter: str) -> str:
    if unicodedata.name(letter, "").startswith(CJK):
        return "fonts-noto-cjk"
    is_symbol = letter >= FIRST_EMOJI or unicodedata.category(letter) == "So"
    return "fonts-symbola" if is_symbol else "fonts-noto-core"
