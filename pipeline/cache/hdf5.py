"""Open HDF5 files for reading, with the reasons why that fails: busy is not damaged."""

import contextlib
import re
from pathlib import Path

import h5py

from pipeline.errors import BusyError, DamagedError, PipelineError
from pipeline.text import printable


def open_hdf5(path: Path) -> h5py.File:
    """Open a file; raises BusyError if another program is writing it, else OSError like h5py.

    An OSError without errno means that HDF5 cannot read the file's content; one with errno is of
    the system (permissions, a broken disk) and says nothing about the content.
    """
    try:
        return h5py.File(path, "r")
    except BlockingIOError as error:  # HDF5 locks the files it writes
        raise BusyError(
            f"{printable(path)} is open for writing in another program: close it there and run "
            f"again"
        ) from error
    except OSError as error:
        if "h5clear" not in str(error):
            raise
        raise BusyError(
            f"{printable(path)} is marked as open for writing: close it in the other program; if "
            f"that was killed, run h5clear -s {printable(path)}"
        ) from error


def length_before_cut(path: Path) -> int | None:
    """Return how long a cut-off file was; None for another file."""
    try:
        open_hdf5(path).close()
    except OSError as error:
        if found := re.search(r"truncated file: .*stored_eof = (\d+)", str(error)):
            return int(found[1])
    return None


def describe_cut(path: Path, length: int) -> str:
    """Return the words for a file that is shorter than its former ``length``."""
    left = path.stat().st_size
    return f"cut off, or still being copied: {left:,} of {length:,} bytes exist"


def damaged_error(path: Path, what: str = "") -> PipelineError:
    """Return the error for content that differs from what was written: damaged, or being written.

    ``what`` : the place of the first difference.
    """
    try:
        with contextlib.suppress(OSError):
            open_hdf5(path).close()
    except BusyError as error:
        return error
    place = f" ({printable(what)})" if what else ""
    return DamagedError(
        f"{printable(path)} is damaged, or another program changed it{place}: python -m "
        f"pipeline.cache repair {printable(path)} restores it and computes only damaged rows again"
    )
