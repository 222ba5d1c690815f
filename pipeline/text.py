"""Text for people: escape names from outside, format numbers."""

import os
import re
import unicodedata


def printable(name: str | bytes | os.PathLike[str]) -> str:
    """Escape the characters of a name that could control a terminal: control and bidirectional
    characters, newlines and bytes that are not text.

    >>> printable("cat\\x1b[31m.jpg")
    'cat\\\\x1b[31m.jpg'
    """
    text = os.fsdecode(name)
    return "".join(
        character
        if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def error_text(error: BaseException) -> str:
    """Format an exception on one line: 'MemoryError', 'ValueError: bad input'."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return printable(text.rstrip(":."))


def file_size(count: float) -> str:
    """Format bytes in decimal units: 31200000 -> '31.2 MB'."""
    from rich.filesize import decimal

    return decimal(int(count))


def file_name(name: str) -> str:
    """Replace the characters that a file name should not contain: 'my pets' -> 'my_pets'."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".-") or "set"


def duration(seconds: float) -> str:
    """Format seconds: 75 -> '1 min 15 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Format a number with its noun: (1, 'image') -> '1 image', (1200, …) -> '1,200 images'."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
