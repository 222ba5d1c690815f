"""Silence libraries that print on stderr."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Discard output to file descriptor 2, which C++ code writes to."""
    try:
        saved = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    sys.stderr.flush()
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
